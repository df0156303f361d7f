"""Writes tests/model/tiny: a random model of every architecture, by transformers itself, and what it answers.

Run it where torch and transformers are: python tests/model/make_tiny_models.py [NAME ...]. Weights are drawn wide enough
that every feature moves the logits by far more than the tests allow (see README.md there for what each model has).
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parent / "tiny"
VOCAB, LENGTHS = 96, (9, 40)
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.3,
}  # fmt: skip
GEMMA = {
    **SIZES, "head_dim": 12, "num_hidden_layers": 4, "sliding_window": 7, "query_pre_attn_scalar": 10,
    "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.05, 1.2], "long_factor": [1.5, 3.0, 7.0],
    "partial_rotary_factor": 0.75,
}  # fmt: skip
# name: (transformers' configuration class, its fields, storage type)
MODELS = {
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCAB, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 80,
            "initializer_range": 0.3, "bos_token_id": 2, "eos_token_id": 2,
        },
        "float32",
    ),
    "llama": ("LlamaConfig", {**SIZES, "tie_word_embeddings": True}, "bfloat16"),
    "llama-biases": ("LlamaConfig", {**SIZES, "attention_bias": True, "mlp_bias": True, "head_dim": 12}, "float16"),
    "llama-linear": (
        "LlamaConfig",
        {**SIZES, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        "float16",
    ),
    "llama-3": ("LlamaConfig", {**SIZES, "head_dim": 16, "max_position_embeddings": 256, "rope_parameters": LLAMA3}, "bfloat16"),
    "llama-yarn": ("LlamaConfig", {**SIZES, "head_dim": 16, "max_position_embeddings": 256, "rope_parameters": YARN}, "bfloat16"),
    "mistral": ("MistralConfig", {**SIZES, "sliding_window": 7, "head_dim": 12}, "bfloat16"),
    "qwen2": (
        "Qwen2Config",
        {**SIZES, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1, "tie_word_embeddings": True},
        "bfloat16",
    ),
    "qwen3": ("Qwen3Config", {**SIZES, "head_dim": 12}, "bfloat16"),
    "gemma2": (
        "Gemma2Config",
        {**GEMMA, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0},
        "bfloat16",
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **GEMMA, "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            },
        },
        "bfloat16",
    ),
    # two sets of factors: the short one up to 16 positions, the long one beyond
    "phi3": (
        "Phi3Config",
        {
            **SIZES, "original_max_position_embeddings": 16, "rope_parameters": LONGROPE, "sliding_window": 25,
            "max_position_embeddings": 64,
        },
        "bfloat16",
    ),
}  # fmt: skip


def ids_of(length: int) -> np.ndarray:
    """int64 [length], the same always."""
    return np.random.default_rng(length).integers(3, VOCAB, length)


def make(name: str) -> None:
    kind, values, dtype = MODELS[name]
    torch.manual_seed(sum(name.encode()))
    config = getattr(transformers, kind)(**values)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases that say something
                parameter.add_(0.2 * torch.randn_like(parameter))
    model = model.to(getattr(torch, dtype))
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size="20KB" if name == "qwen3" else "5GB")
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    goldens = {}
    for length in LENGTHS:
        ids = ids_of(length)
        with torch.no_grad():
            goldens[f"ids_{length}"] = ids
            goldens[f"logits_{length}"] = again.eval()(torch.tensor(ids[None])).logits[0].float().numpy()
    np.savez_compressed(folder / "goldens.npz", **goldens)
    spread = float(goldens[f"logits_{LENGTHS[1]}"].std())
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name:14s} {size:8d} bytes, logits' deviation {spread:.2f}")


def main() -> None:
    for name in sys.argv[1:] or MODELS:
        make(name)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__, "numpy": np.__version__}
    (FOLDER / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()

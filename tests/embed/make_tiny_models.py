"""Writes tests/embed/tiny: a random encoder of every architecture, by transformers itself, and what it answers.

Run it where torch and transformers are: python tests/embed/make_tiny_models.py [NAME ...]. Weights are drawn wide enough
that every feature moves the hidden states by far more than the tests allow (see README.md there for what each model has).
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parent / "tiny"
VOCAB, LENGTHS = 96, (9, 45)
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
ROBERTA = {**SIZES, "max_position_embeddings": 66, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
DISTILBERT = {
    "vocab_size": VOCAB, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64,
    "initializer_range": 0.3,
}  # fmt: skip
MPNET = {**ROBERTA, "max_position_embeddings": 162}  # longer than its farthest relative position
MODERNBERT = {
    **SIZES, "num_hidden_layers": 3, "local_attention": 10, "global_attn_every_n_layers": 2, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
    "sep_token_id": 2,
}  # fmt: skip
# name: (class, configuration class, its fields)
MODELS = {
    "bert": ("BertModel", "BertConfig", SIZES),
    "bert-classifier": ("BertForSequenceClassification", "BertConfig", {**SIZES, "num_labels": 1, "hidden_act": "gelu_new"}),
    "distilbert": ("DistilBertForMaskedLM", "DistilBertConfig", DISTILBERT),
    "distilbert-classifier": ("DistilBertForSequenceClassification", "DistilBertConfig", {**DISTILBERT, "num_labels": 3}),
    "roberta": ("RobertaModel", "RobertaConfig", {**ROBERTA, "type_vocab_size": 1}),
    "roberta-classifier": ("RobertaForSequenceClassification", "RobertaConfig", {**ROBERTA, "num_labels": 1}),
    "xlm-roberta": ("XLMRobertaForMaskedLM", "XLMRobertaConfig", {**ROBERTA, "hidden_act": "relu"}),
    "camembert": ("CamembertModel", "CamembertConfig", ROBERTA),
    "mpnet": ("MPNetModel", "MPNetConfig", MPNET),
    "mpnet-classifier": ("MPNetForSequenceClassification", "MPNetConfig", {**ROBERTA, "num_labels": 2}),
    "modernbert": ("ModernBertModel", "ModernBertConfig", MODERNBERT),
    "modernbert-classifier": (
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        {
            **MODERNBERT, "num_labels": 1, "classifier_pooling": "mean", "norm_bias": True, "attention_bias": True,
            "mlp_bias": True, "classifier_bias": True,
        },
    ),
}  # fmt: skip


def ids_of(length: int) -> np.ndarray:
    """int64 [length], the same always."""
    return np.random.default_rng(length).integers(3, VOCAB, length)


def token_types_of(config: object, length: int) -> np.ndarray:
    """int64 [length]: of two sentences, where the model knows of two."""
    return (np.arange(length) >= length // 2) * int(getattr(config, "type_vocab_size", 1) > 1)


def make(name: str) -> None:
    kind, config_kind, values = MODELS[name]
    torch.manual_seed(sum(name.encode()))
    config = getattr(transformers, config_kind)(**values)
    model = getattr(transformers, kind)._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases that say something
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif parameter.shape[0] != VOCAB and parameter.std() < 0.1:  # ModernBERT draws some of its own narrower
                parameter.mul_(0.3 / parameter.std())
    model = model.to(torch.bfloat16)
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    again = getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    goldens = {}
    for length in (*LENGTHS, 150) if name == "mpnet" else LENGTHS:
        ids, types = ids_of(length), token_types_of(config, length)
        inputs = {"input_ids": torch.tensor(ids[None])}
        if types.any():
            inputs["token_type_ids"] = torch.tensor(types[None])
        with torch.no_grad():
            out = again(**inputs, output_hidden_states=True)
            body = getattr(again, again.base_model_prefix, again)
            hidden = (out if kind.endswith("Model") else body(**inputs)).last_hidden_state
        goldens[f"ids_{length}"], goldens[f"types_{length}"] = ids, types
        goldens[f"hidden_{length}"] = hidden[0].float().numpy()
        if "classifier" in name:
            goldens[f"logits_{length}"] = out.logits[0].float().numpy()
    np.savez_compressed(folder / "goldens.npz", **goldens)
    size = sum(path.stat().st_size for path in folder.iterdir())
    spread = float(goldens[f"hidden_{LENGTHS[1]}"].std())
    print(f"{name:24s} {size:8d} bytes, hidden states' deviation {spread:.2f}", goldens.get("logits_9", ""))


def main() -> None:
    for name in sys.argv[1:] or MODELS:
        make(name)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__, "numpy": np.__version__}
    (FOLDER / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""The names and layouts that transformers' GPT-2 and Llama give their tensors, as those of a Transformer of ours: written out
here once more, to hold weights/hf_names.py against.

GPT-2 keeps linear weights as [in, out], as a Transformer does; Llama as [out, in], and q, k and v apart.
"""

import numpy as np

# Within a layer: (their name, ours). GPT-2's each have a weight and a bias.
GPT2_LAYER = (
    ("ln_1", "attention_norm"), ("attn.c_attn", "attention.qkv"), ("attn.c_proj", "attention.output"),
    ("ln_2", "feedforward_norm"), ("mlp.c_fc", "feedforward.up"), ("mlp.c_proj", "feedforward.down"),
)  # fmt: skip
LLAMA_NORMS = (("input_layernorm", "attention_norm"), ("post_attention_layernorm", "feedforward_norm"))
LLAMA_LINEARS = (
    ("self_attn.o_proj", "attention.output"), ("mlp.gate_proj", "feedforward.gate"),
    ("mlp.up_proj", "feedforward.up"), ("mlp.down_proj", "feedforward.down"),
)  # fmt: skip


def from_gpt2(tensors, layers):
    """Our tensors (weights or gradients) from those of a GPT2LMHeadModel whose head is the embedding."""
    tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    modules = [(f"h.{i}.{theirs}", f"layers.{i}.{ours}") for i in range(layers) for theirs, ours in GPT2_LAYER]
    found = {"embedding.weight": tensors["wte.weight"], "positions.weight": tensors["wpe.weight"]}
    for theirs, ours in [*modules, ("ln_f", "final_norm")]:
        for kind in ("weight", "bias"):
            found[f"{ours}.{kind}"] = tensors[f"{theirs}.{kind}"]
    return found


def from_llama(tensors, layers):
    """Our tensors (weights or gradients) from those of a LlamaForCausalLM with a head of its own."""
    tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
    found = {"embedding.weight": tensors["embed_tokens.weight"]}
    for prefix in (f"layers.{layer}" for layer in range(layers)):
        for theirs, ours in LLAMA_NORMS:
            found[f"{prefix}.{ours}.weight"] = tensors[f"{prefix}.{theirs}.weight"]
        qkv = np.concatenate([tensors[f"{prefix}.self_attn.{part}_proj.weight"] for part in "qkv"])
        found[f"{prefix}.attention.qkv.weight"] = np.ascontiguousarray(qkv.T)
        for theirs, ours in LLAMA_LINEARS:
            found[f"{prefix}.{ours}.weight"] = np.ascontiguousarray(tensors[f"{prefix}.{theirs}.weight"].T)
    return {**found, "final_norm.weight": tensors["norm.weight"], "head.weight": tensors["lm_head.weight"]}

"""The names that transformers' GPT-2 and Llama give their weights, in terms of ours. Knows no file format.

GPT-2 keeps linear weights as [in, out], as we do; Llama as [out, in], and q, k, v and gate, up apart.
"""

import numpy as np

Tensors = dict[str, np.ndarray]


def from_gpt2(tensors: Tensors, layers: int) -> Tensors:
    """Our tensors from those of a GPT2LMHeadModel (names with or without "transformer.")."""
    tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    ours = {"embedding.weight": tensors["wte.weight"], "positions.weight": tensors["wpe.weight"]}
    parts = {
        "ln_1": "attention_norm", "attn.c_attn": "attention.qkv", "attn.c_proj": "attention.output",
        "ln_2": "feedforward_norm", "mlp.c_fc": "feedforward.up", "mlp.c_proj": "feedforward.down",
    }  # fmt: skip
    for layer in range(layers):
        for theirs, name in parts.items():
            for kind in ("weight", "bias"):
                ours[f"layers.{layer}.{name}.{kind}"] = tensors[f"h.{layer}.{theirs}.{kind}"]
    ours["final_norm.weight"], ours["final_norm.bias"] = tensors["ln_f.weight"], tensors["ln_f.bias"]
    return ours


def from_llama(tensors: Tensors, layers: int) -> Tensors:
    """Our tensors from those of a LlamaForCausalLM (names with or without "model.")."""
    tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
    ours = {"embedding.weight": tensors["embed_tokens.weight"]}
    for layer in range(layers):
        theirs, prefix = f"layers.{layer}", f"layers.{layer}"
        ours[f"{prefix}.attention_norm.weight"] = tensors[f"{theirs}.input_layernorm.weight"]
        qkv = [tensors[f"{theirs}.self_attn.{part}_proj.weight"] for part in "qkv"]
        ours[f"{prefix}.attention.qkv.weight"] = np.ascontiguousarray(np.concatenate(qkv).T)
        ours[f"{prefix}.feedforward_norm.weight"] = tensors[f"{theirs}.post_attention_layernorm.weight"]
        linears = {
            "attention.output": "self_attn.o_proj", "feedforward.gate": "mlp.gate_proj",
            "feedforward.up": "mlp.up_proj", "feedforward.down": "mlp.down_proj",
        }  # fmt: skip
        for name, part in linears.items():
            ours[f"{prefix}.{name}.weight"] = np.ascontiguousarray(tensors[f"{theirs}.{part}.weight"].T)
    ours["final_norm.weight"] = tensors["norm.weight"]
    if "lm_head.weight" in tensors:
        ours["head.weight"] = tensors["lm_head.weight"]
    return ours

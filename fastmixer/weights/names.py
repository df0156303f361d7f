"""The names that transformers' GPT-2 and Llama give their weights, in terms of ours and back. Knows no file format.

GPT-2 keeps linear weights as [in, out], as we do; Llama as [out, in], and q, k, v and gate, up apart. A tied head is
the embedding and has no name with us.
"""

from collections.abc import Sequence

import numpy as np

Tensors = dict[str, np.ndarray]

# Within a layer: (their name, ours). GPT-2's each have a weight and a bias.
_GPT2_LAYER = (
    ("ln_1", "attention_norm"), ("attn.c_attn", "attention.qkv"), ("attn.c_proj", "attention.output"),
    ("ln_2", "feedforward_norm"), ("mlp.c_fc", "feedforward.up"), ("mlp.c_proj", "feedforward.down"),
)  # fmt: skip
_LLAMA_NORMS = (("input_layernorm", "attention_norm"), ("post_attention_layernorm", "feedforward_norm"))
_LLAMA_LINEARS = (
    ("self_attn.o_proj", "attention.output"), ("mlp.gate_proj", "feedforward.gate"),
    ("mlp.up_proj", "feedforward.up"), ("mlp.down_proj", "feedforward.down"),
)  # fmt: skip
_QKV = tuple(f"self_attn.{part}_proj.weight" for part in "qkv")


def _gpt2_pairs(layers: int) -> list[tuple[str, str]]:
    """(their name, ours) of every tensor of a GPT-2."""
    pairs = [("wte.weight", "embedding.weight"), ("wpe.weight", "positions.weight")]
    modules = [(f"h.{i}.{theirs}", f"layers.{i}.{ours}") for i in range(layers) for theirs, ours in _GPT2_LAYER]
    for theirs, ours in [*modules, ("ln_f", "final_norm")]:
        pairs += [(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias")]
    return pairs


def from_gpt2(tensors: Tensors, layers: int) -> Tensors:
    """Our tensors (weights or gradients) from those of a GPT2LMHeadModel, names with or without "transformer.".

    Raises ValueError naming a tensor that is missing.
    """
    tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    pairs = _gpt2_pairs(layers)
    _require("from_gpt2", tensors, [theirs for theirs, _ in pairs])
    return {ours: tensors[theirs] for theirs, ours in pairs}


def to_gpt2(tensors: Tensors, layers: int) -> Tensors:
    """The tensors of a GPT2LMHeadModel, head included, from ours. Raises ValueError naming a tensor that is missing."""
    pairs = _gpt2_pairs(layers)
    _require("to_gpt2", tensors, [ours for _, ours in pairs])
    theirs = {f"transformer.{name}": tensors[ours] for name, ours in pairs}
    return {**theirs, "lm_head.weight": tensors["embedding.weight"]}


def from_llama(tensors: Tensors, layers: int, *, tied_head: bool = False) -> Tensors:
    """Our tensors (weights or gradients) from those of a LlamaForCausalLM, names with or without "model.".

    Raises ValueError naming a tensor that is missing.
    """
    tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
    wanted = ["embed_tokens.weight", "norm.weight", *([] if tied_head else ["lm_head.weight"])]
    for layer in range(layers):
        wanted += [f"layers.{layer}.{part}" for part in _QKV]
        wanted += [f"layers.{layer}.{theirs}.weight" for theirs, _ in _LLAMA_NORMS + _LLAMA_LINEARS]
    _require("from_llama", tensors, wanted)

    ours = {"embedding.weight": tensors["embed_tokens.weight"]}
    for layer in range(layers):
        prefix = f"layers.{layer}"
        for theirs, name in _LLAMA_NORMS:
            ours[f"{prefix}.{name}.weight"] = tensors[f"{prefix}.{theirs}.weight"]
        qkv = np.concatenate([tensors[f"{prefix}.{part}"] for part in _QKV])
        ours[f"{prefix}.attention.qkv.weight"] = np.ascontiguousarray(qkv.T)
        for theirs, name in _LLAMA_LINEARS:
            ours[f"{prefix}.{name}.weight"] = np.ascontiguousarray(tensors[f"{prefix}.{theirs}.weight"].T)
    ours["final_norm.weight"] = tensors["norm.weight"]
    if not tied_head:
        ours["head.weight"] = tensors["lm_head.weight"]
    return ours


def to_llama(tensors: Tensors, layers: int) -> Tensors:
    """The tensors of a LlamaForCausalLM, head included, from ours. Raises ValueError naming a tensor that is missing."""
    wanted = ["embedding.weight", "final_norm.weight"]
    for layer in range(layers):
        wanted.append(f"layers.{layer}.attention.qkv.weight")
        wanted += [f"layers.{layer}.{ours}.weight" for _, ours in _LLAMA_NORMS + _LLAMA_LINEARS]
    _require("to_llama", tensors, wanted)

    theirs = {"model.embed_tokens.weight": tensors["embedding.weight"]}
    for layer in range(layers):
        prefix = f"layers.{layer}"
        for name, ours in _LLAMA_NORMS:
            theirs[f"model.{prefix}.{name}.weight"] = tensors[f"{prefix}.{ours}.weight"]
        qkv = tensors[f"{prefix}.attention.qkv.weight"]  # q is as wide as the model; k and v share the rest
        dim, width = qkv.shape
        for name, part in zip(_QKV, np.split(qkv, [dim, (dim + width) // 2], axis=1), strict=True):
            theirs[f"model.{prefix}.{name}"] = np.ascontiguousarray(part.T)
        for name, ours in _LLAMA_LINEARS:
            theirs[f"model.{prefix}.{name}.weight"] = np.ascontiguousarray(tensors[f"{prefix}.{ours}.weight"].T)
    theirs["model.norm.weight"] = tensors["final_norm.weight"]
    theirs["lm_head.weight"] = tensors.get("head.weight", tensors["embedding.weight"])
    return theirs


def _require(op: str, tensors: Tensors, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"{op}: tensor {missing[0]!r} is missing ({len(missing)} in all)")

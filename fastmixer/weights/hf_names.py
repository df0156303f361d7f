"""Where our tensors lie in transformers' models: one table of names for each way of naming. Knows no file format."""

from fastmixer.model.config import ModelConfig
from fastmixer.weights.placed import Place
from fastmixer.weights.stored import expected_tensors

# Our names and theirs; those of a layer after "layers.{i}." on either side.
_LLAMA = {
    "embedding": "embed_tokens", "final_norm": "norm", "head": "lm_head", "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj", "attention.k": "self_attn.k_proj", "attention.v": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj", "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm", "feedforward_norm": "post_attention_layernorm",
    "feedforward.gate": "mlp.gate_proj", "feedforward.up": "mlp.up_proj", "feedforward.down": "mlp.down_proj",
}  # fmt: skip
_GEMMA = {
    **_LLAMA, "attention_post_norm": "post_attention_layernorm", "feedforward_norm": "pre_feedforward_layernorm",
    "feedforward_post_norm": "post_feedforward_layernorm",
}  # fmt: skip
_PHI3 = {
    **_LLAMA, "attention.q": "self_attn.qkv_proj", "attention.k": "self_attn.qkv_proj",
    "attention.v": "self_attn.qkv_proj", "feedforward.gate": "mlp.gate_up_proj", "feedforward.up": "mlp.gate_up_proj",
}  # fmt: skip
_GPT2 = {
    "embedding": "wte", "positions": "wpe", "final_norm": "ln_f", "head": "lm_head", "attention_norm": "ln_1",
    "attention.q": "attn.c_attn", "attention.k": "attn.c_attn", "attention.v": "attn.c_attn",
    "attention.output": "attn.c_proj", "feedforward_norm": "ln_2", "feedforward.up": "mlp.c_fc",
    "feedforward.down": "mlp.c_proj",
}  # fmt: skip
_TABLES = {"gpt2": _GPT2, "phi3": _PHI3, "gemma2": _GEMMA, "gemma3_text": _GEMMA}
# What stands before a name, where the model's body is saved with its head (the last) or inside a larger model.
_PREFIX = "model."
_PREFIXES = {
    "gpt2": ("transformer.",),
    "gemma3_text": ("language_model.model.", "model.language_model.", "language_model.", _PREFIX),
}
_HEAD = "lm_head."
# Tensors that are no weights of ours: buffers that old versions saved, and the other parts of larger models.
_IGNORED_ENDS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
_IGNORED_STARTS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def plain_name(architecture: str, name: str) -> str | None:
    """A tensor's name as the model's body alone would have it, None for one that is no weight of a model that writes."""
    if (architecture == "gpt2" and name.endswith(_IGNORED_ENDS[:2])) or name.endswith(_IGNORED_ENDS[2]):
        return None
    if architecture == "gemma3_text" and name.startswith(_IGNORED_STARTS):
        return None
    for prefix in _PREFIXES.get(architecture, (_PREFIX,)):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def full_name(architecture: str, plain: str) -> str:
    """The name of a tensor where the model's body is saved with its head."""
    return plain if plain.startswith(_HEAD) else _PREFIXES.get(architecture, (_PREFIX,))[-1] + plain


def hf_places(architecture: str, config: ModelConfig, context: int) -> dict[str, Place]:
    """The place of each of our tensors, by its plain name. context: rows of learned positions in the file."""
    names = _TABLES.get(architecture, _LLAMA)
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    starts = {
        "attention.q": 0, "attention.k": q, "attention.v": q + kv, "feedforward.gate": 0, "feedforward.up": config.hidden,
    }  # fmt: skip
    places = {}
    for ours, shape in expected_tensors(config).items():
        stem, kind = ours.rsplit(".", 1)
        layer, part = stem.split(".", 2)[1:] if stem.startswith("layers.") else ("", stem)
        group = "h" if architecture == "gpt2" else "layers"
        name = f"{group}.{layer}.{names[part]}.{kind}" if layer else f"{names[part]}.{kind}"
        rows, whole = None, shape
        if list(names.values()).count(names[part]) > 1:
            rows = slice(starts[part], starts[part] + shape[0])
            whole = (q + 2 * kv if part.startswith("attention") else 2 * config.hidden, *shape[1:])
        elif part == "positions":
            rows, whole = slice(0, shape[0]), (context, shape[1])
        transposed = architecture == "gpt2" and bool(layer) and len(shape) == 2
        plus = 1.0 if architecture.startswith("gemma") and part.endswith("norm") else 0.0
        places[ours] = Place(name, whole[::-1] if transposed else whole, rows, transposed, plus)
    return places

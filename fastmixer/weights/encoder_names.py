"""Where our tensors lie in transformers' encoders: one table of names for each way of naming. Knows no file format."""

from fastmixer.model.encoder_config import EncoderConfig, encoder_shapes
from fastmixer.weights.placed import Place

# Our names and theirs; those of a layer after "layers.{i}." here and after the layers' own prefix there.
_BERT = {
    "embedding": "embeddings.word_embeddings", "positions": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings", "embedding_norm": "embeddings.LayerNorm",
    "attention.q": "attention.self.query", "attention.k": "attention.self.key", "attention.v": "attention.self.value",
    "attention.output": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
    "feedforward.up": "intermediate.dense", "feedforward.down": "output.dense", "feedforward_norm": "output.LayerNorm",
    "head.dense": "pooler.dense", "head.output": "classifier",
}  # fmt: skip
_ROBERTA = {**_BERT, "head.dense": "classifier.dense", "head.output": "classifier.out_proj"}
_MPNET = {
    **_ROBERTA, "attention.q": "attention.attn.q", "attention.k": "attention.attn.k", "attention.v": "attention.attn.v",
    "attention.output": "attention.attn.o", "attention_norm": "attention.LayerNorm",
    "relative": "encoder.relative_attention_bias",
}  # fmt: skip
_DISTILBERT = {
    **_BERT, "attention.q": "attention.q_lin", "attention.k": "attention.k_lin", "attention.v": "attention.v_lin",
    "attention.output": "attention.out_lin", "attention_norm": "sa_layer_norm", "feedforward.up": "ffn.lin1",
    "feedforward.down": "ffn.lin2", "feedforward_norm": "output_layer_norm", "head.dense": "pre_classifier",
}  # fmt: skip
_MODERNBERT = {
    "embedding": "embeddings.tok_embeddings", "embedding_norm": "embeddings.norm", "final_norm": "final_norm",
    "attention.q": "attn.Wqkv", "attention.k": "attn.Wqkv", "attention.v": "attn.Wqkv", "attention.output": "attn.Wo",
    "attention_norm": "attn_norm", "feedforward.gate": "mlp.Wi", "feedforward.up": "mlp.Wi", "feedforward.down": "mlp.Wo",
    "feedforward_norm": "mlp_norm", "head.dense": "head.dense", "head.norm": "head.norm", "head.output": "classifier",
}  # fmt: skip
_TABLES = {
    "bert": _BERT, "roberta": _ROBERTA, "xlm-roberta": _ROBERTA, "camembert": _ROBERTA, "mpnet": _MPNET,
    "distilbert": _DISTILBERT, "modernbert": _MODERNBERT,
}  # fmt: skip
_LAYERS = {"distilbert": "transformer.layer", "modernbert": "layers"}
# What stands before the body's names beside a head.
_BODIES = {"xlm-roberta": "roberta.", "camembert": "roberta.", "modernbert": "model."}
# Tensors that are no part of the body: a buffer that old versions saved, and heads of what the model was trained for.
_BUFFERS = ("embeddings.position_ids",)
_HEADS = (
    "pooler.", "cls.", "lm_head.", "classifier.", "vocab_transform.", "vocab_layer_norm.", "vocab_projector.",
    "pre_classifier.", "qa_outputs.", "head.", "decoder.",
)  # fmt: skip


def plain_encoder_name(architecture: str, config: EncoderConfig, name: str) -> str | None:
    """A tensor's name as the body alone would have it, None for one that inference needs not."""
    name = name.removeprefix(_BODIES.get(architecture, f"{architecture}."))
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):  # BERT's first converted files
        if "LayerNorm" in name and name.endswith(old):
            name = name.removesuffix(old) + new
    if name in _BUFFERS:
        return None
    own = {_TABLES[architecture][part] for part in ("head.dense", "head.output")} if config.head else set()
    if architecture == "modernbert" and config.head:
        own.add("head.norm")
    if name.startswith(_HEADS) and name.rsplit(".", 1)[0] not in own:
        return None
    return name


def encoder_places(architecture: str, config: EncoderConfig, padding_rows: int) -> dict[str, Place]:
    """The place of each of our tensors, by its plain name. padding_rows: of learned positions, before the first token's."""
    names, group = _TABLES[architecture], _LAYERS.get(architecture, "encoder.layer")
    starts = {
        "attention.q": 0,
        "attention.k": config.dim,
        "attention.v": 2 * config.dim,
        "feedforward.up": config.hidden,
    }
    places = {}
    for ours, shape in encoder_shapes(config).items():
        stem, kind = ours.rsplit(".", 1)
        layer, part = stem.split(".", 2)[1:] if stem.startswith("layers.") else ("", stem)
        name = f"{group}.{layer}.{names[part]}.{kind}" if layer else f"{names[part]}.{kind}"
        rows, whole = None, shape
        if list(names.values()).count(names[part]) > 1:
            start = starts.get(part, 0)
            rows = slice(start, start + shape[0])
            whole = (3 * config.dim if part.startswith("attention") else 2 * config.hidden, *shape[1:])
        elif part == "positions" and padding_rows:
            rows, whole = slice(padding_rows, padding_rows + shape[0]), (padding_rows + shape[0], shape[1])
        places[ours] = Place(name, whole, rows)
    return places

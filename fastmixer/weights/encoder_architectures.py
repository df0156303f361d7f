"""An encoder's config.json as our EncoderConfig: one table of architectures; anything else is refused by name.

Every field is checked where it is read; defaults are those of transformers' configuration classes. Knows no tensors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastmixer.model.encoder_config import EncoderConfig, HeadConfig, encoder_shapes
from fastmixer.weights.architectures import ACTIVATIONS, MAX_PARAMETERS, layer_types
from fastmixer.weights.strict_json import Fields

CLASSIFIER = "ForSequenceClassification"
RELATIVE_BUCKETS = 32  # transformers' MPNet computes no other number, whatever the field says


@dataclass(frozen=True)
class EncoderArchitecture:
    """What a model_type alone says. padding_rows: rows of learned positions before that of the first token.

    names: of config.json's fields where they differ from BERT's. only: fields whose one value here is known, which is also
    what it is where the file does not say. head_activation: of a classifier's dense layer.
    """

    choices: dict[str, Any]
    padding_rows: int = 0
    head_activation: str = "tanh"
    names: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    only: dict[str, Any] = field(default_factory=dict)


_BERT_ONLY = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
_BERT = {"vocab_size": 30522, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
_ROBERTA = EncoderArchitecture(
    {}, padding_rows=2, defaults={"vocab_size": 50265, "type_vocab_size": 2, "layer_norm_eps": 1e-12},
    only={**_BERT_ONLY, "pad_token_id": 1},
)  # fmt: skip
_XLM_ROBERTA = replace(_ROBERTA, defaults={**_ROBERTA.defaults, "vocab_size": 30522})
ENCODERS: Mapping[str, EncoderArchitecture] = {
    "bert": EncoderArchitecture({}, defaults=_BERT, only=_BERT_ONLY),
    "distilbert": EncoderArchitecture(
        {"norm_epsilon": 1e-12}, head_activation="relu", defaults={"vocab_size": 30522, "num_hidden_layers": 6},
        names={
            "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim", "hidden_act": "activation",
        },
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _XLM_ROBERTA,
    "camembert": _XLM_ROBERTA,
    "mpnet": EncoderArchitecture(
        {"relative_buckets": RELATIVE_BUCKETS}, padding_rows=2,
        defaults={"vocab_size": 30527, "layer_norm_eps": 1e-12},
        only={"relative_attention_num_buckets": RELATIVE_BUCKETS},
    ),
    "modernbert": EncoderArchitecture(
        {"placement": "pre", "gated": True, "learned_positions": False},
        names={"hidden_act": "hidden_activation", "layer_norm_eps": "norm_eps"},
        defaults={
            "vocab_size": 50368, "num_hidden_layers": 22, "intermediate_size": 1152, "max_position_embeddings": 8192,
            "layer_norm_eps": 1e-5,
        },
    ),
}  # fmt: skip
# What transformers calls these too: gelu_fast's constants are gelu_tanh's but for the last digits of a double.
_ACTIVATIONS = {
    **ACTIVATIONS, "gelu_python": "gelu", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
}  # fmt: skip
_SIZES = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu",
    "max_position_embeddings": 512,
}  # fmt: skip


def read_encoder_config(values: dict[str, Any], where: str | Path) -> EncoderConfig:
    """The EncoderConfig of a config.json's fields; with a head where `architectures` names a ...ForSequenceClassification.
    Raises ValueError that names where, field and value."""
    where = str(where)
    name = Fields(values, where).choice("model_type", tuple(ENCODERS))
    architecture = ENCODERS[name]
    fields = _Renamed({**_SIZES, **architecture.defaults}, values, architecture.names, where)
    if fields.has("quantization_config"):
        raise fields.wrong("quantization_config", "absent (use the model's own weights)")
    for only, value in architecture.only.items():
        if fields.values.get(only, value) != value:
            raise fields.wrong(only, f"{value!r} (nothing else is known)".lower())

    rows = architecture.padding_rows
    dim, heads = fields.integer("hidden_size", high=1 << 20), fields.integer("num_attention_heads", high=1 << 14)
    if dim % heads:
        raise fields.wrong("num_attention_heads", f"a divisor of hidden_size {dim}")
    found: dict[str, Any] = {
        "vocab": fields.integer("vocab_size"), "dim": dim, "heads": heads,
        "context": fields.integer("max_position_embeddings", low=rows + 1) - rows,
        "layers": fields.integer("num_hidden_layers", high=1 << 12), "hidden": fields.integer("intermediate_size"),
        "activation": _ACTIVATIONS[fields.choice("hidden_act", tuple(_ACTIVATIONS))],
        "norm_epsilon": fields.number("layer_norm_eps", 1e-12, above=True),
        "token_types": fields.integer("type_vocab_size", 0, low=0),
        "head": _head(name, architecture, fields), **architecture.choices,
    }  # fmt: skip
    if name in ("distilbert", "mpnet", "modernbert"):
        found["token_types"] = 0
    if name == "modernbert":
        found.update(_modern(fields, found["layers"], found["context"]))
    try:
        config = EncoderConfig(**found)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    parameters = sum(math.prod(shape) for shape in encoder_shapes(config).values())
    if parameters > MAX_PARAMETERS:
        raise ValueError(f"{where}: the sizes make {parameters} parameters; expected at most {MAX_PARAMETERS}")
    return config


class _Renamed(Fields):
    """Fields under BERT's names; errors name them as the file does."""

    def __init__(self, defaults: dict[str, Any], values: dict[str, Any], names: dict[str, str], where: str):
        self.names = names
        present = {name: value for name, value in values.items() if value is not None}
        theirs = {ours: present[name] for ours, name in names.items() if name in present}
        super().__init__({**defaults, **present, **theirs}, where)

    def wrong(self, name: str, expected: str) -> ValueError:
        theirs = self.names.get(name, name)
        return Fields({theirs: self.values.get(name)}, self.where).wrong(theirs, expected)


def _head(name: str, architecture: EncoderArchitecture, fields: Fields) -> HeadConfig | None:
    """The classification head, if the model has one. Its number of classes: as many as id2label names."""
    classes = fields.values.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
        raise fields.wrong("architectures", "a list of names")
    if not any(one.endswith(CLASSIFIER) for one in classes):
        return None
    labels = fields.object("id2label").values
    count = len(labels) if labels else fields.integer("num_labels", 2, high=1 << 20)
    if name != "modernbert":
        return HeadConfig(count, architecture.head_activation)
    return HeadConfig(
        classes=count,
        activation=_ACTIVATIONS[fields.choice("classifier_activation", tuple(_ACTIVATIONS), "gelu")],
        pooling=fields.choice("classifier_pooling", ("cls", "mean"), "cls"),
        bias=fields.flag("classifier_bias", False),
        has_norm=True,
    )


def _modern(fields: Fields, layers: int, context: int) -> dict[str, Any]:
    """ModernBERT's biases, rotations and local layers: a token of those sees local_attention / 2 to either side."""
    if fields.has("layer_types"):
        local = tuple(kind == "sliding_attention" for kind in layer_types(fields, layers))
    else:
        every = fields.integer("global_attn_every_n_layers", 3)
        local = tuple(layer % every > 0 for layer in range(layers))
    window = fields.integer("local_attention", 128, low=2) // 2
    rope = fields.object("rope_parameters")
    bases = {}
    for kind, old, usual in (("full", "global_rope_theta", 160_000.0), ("sliding", "local_rope_theta", 10_000.0)):
        own = rope.object(f"{kind}_attention")
        own.choice("rope_type", ("default",), "default")
        bases[kind] = own.number("rope_theta", fields.number(old, usual, above=True), above=True)
    if fields.has("rope_scaling"):
        raise fields.wrong("rope_scaling", "absent (nothing else is known in modernbert)")
    found: dict[str, Any] = {
        "attention_bias": fields.flag("attention_bias", False), "feedforward_bias": fields.flag("mlp_bias", False),
        "norm_bias": fields.flag("norm_bias", False), "rotary_base": bases["full"],
    }  # fmt: skip
    if any(local):
        found.update(local_layers=local, local_rotary_base=bases["sliding"], window=min(window, context))
    return found

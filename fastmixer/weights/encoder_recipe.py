"""How an encoder's hidden states become vectors of sentences: sentence-transformers' files beside a model. Knows no encoder.

modules.json lists folders: the transformer, pooling, dense layers, normalization. Where it is absent, the mean is taken,
which is what sentence-transformers does too.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmixer.weights.folder import CONFIG
from fastmixer.weights.hf_folder import weight_files
from fastmixer.weights.placed import Place, check_places
from fastmixer.weights.stored import StoredTensor
from fastmixer.weights.strict_json import MAX_FILE, Fields, parse_object, read_object, short

MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
LENGTHS = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json",
           "sentence_xlm-roberta_config.json", "sentence_mpnet_config.json")  # fmt: skip
POOLINGS = ("mean", "cls", "max", "last")
_MODES = {
    "mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens",
    "last": "pooling_mode_lasttoken", "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
}  # fmt: skip
_NAMED_MODES = {"lasttoken": "last"}
_DENSE_ACTIVATIONS = {"Tanh": "tanh", "Identity": "none", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu"}
MAX_MODULES = 16


@dataclass(frozen=True)
class DenseStage:
    """pooled [sentences, in] -> act(pooled weight^T + bias) [sentences, out]. weight: [out, in]; bias: [out] or None;
    activation: "tanh", "none", or one of the encoder's."""

    weight: StoredTensor
    bias: StoredTensor | None
    activation: str


@dataclass(frozen=True)
class SentenceRecipe:
    """pooling: one of POOLINGS; dense: stages after it; normalize: whether the folder itself asks for unit length;
    max_length: tokens of a text, special ones among them (None: not said); lower_case: texts are lowered first;
    prompts: what stands before a text, by name; default_prompt: the name of the one used where none is asked for."""

    pooling: str = "mean"
    dense: tuple[DenseStage, ...] = ()
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


def transformer_folder(folder: Path) -> Path:
    """Where in a model's folder config.json and weights lie: what modules.json names first, or the folder itself."""
    modules = list_modules(folder)
    return folder / modules[0][1] if modules else folder


def read_recipe(folder: Path, dim: int) -> SentenceRecipe:
    """The recipe in a model's folder; dim: of the encoder's hidden states. FileNotFoundError or ValueError that names file
    and field."""
    modules = list_modules(folder)
    found: dict[str, Any] = {}
    dense: list[DenseStage] = []
    width = dim
    for kind, place in modules[1:]:
        where = folder / place
        if kind == "Pooling":
            if "pooling" in found or dense:
                raise ValueError(f"{folder / MODULES}: Pooling must come once, before Dense; nothing else is known")
            found["pooling"] = _pooling(where, dim)
        elif kind == "Dense":
            dense.append(_dense(where, width))
            width = dense[-1].weight.shape[0]
        else:  # Normalize has no files; what follows it would undo it
            found["normalize"] = True
            if (kind, place) != modules[-1]:
                raise ValueError(f"{folder / MODULES}: Normalize must come last; nothing else is known")
    if modules and "pooling" not in found:
        raise ValueError(f"{folder / MODULES} names no Pooling: what one vector is made of is not said")
    return SentenceRecipe(dense=tuple(dense), **found, **_lengths(transformer_folder(folder)), **_prompts(folder))


def list_modules(folder: Path) -> list[tuple[str, str]]:
    """(kind, folder within the model's) of each module in order; empty where there is no modules.json."""
    path = folder / MODULES
    if not path.exists():
        return []
    with path.open("rb") as file:
        text = file.read(MAX_FILE + 1)
    if len(text) > MAX_FILE:
        raise ValueError(f"{path} must be at most {MAX_FILE} bytes; got more")
    listed = parse_object(b'{"modules": ' + text + b"}", str(path))["modules"]  # the file itself holds a list
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_MODULES:
        raise ValueError(f"{path} must hold a list of 1 to {MAX_MODULES} modules")
    modules = []
    for index, values in enumerate(listed):
        if not isinstance(values, dict):
            raise ValueError(f"{path}: module {index} must be an object; got {short(values)}")
        fields = Fields(values, str(path), f"module {index}: ")
        name = fields.values.get("type")
        kind = name.rsplit(".", 1)[-1] if isinstance(name, str) else ""
        expected = ("Transformer",) if index == 0 else ("Pooling", "Dense", "Normalize")
        if kind not in expected:
            raise fields.wrong("type", f"sentence_transformers.models.{' or '.join(expected)}")
        place = fields.values.get("path", "")
        if not isinstance(place, str) or Path(place).name != place or "\\" in place or place == "..":
            raise fields.wrong("path", "the name of a folder beside it, or empty")
        modules.append((kind, place))
    return modules


def _pooling(folder: Path, dim: int) -> str:
    fields = Fields(read_object(folder / CONFIG), str(folder / CONFIG))
    own = "embedding_dimension" if fields.has("embedding_dimension") else "word_embedding_dimension"
    if fields.integer(own, dim) != dim:
        raise fields.wrong(own, f"{dim}, the width of the encoder")
    if not fields.flag("include_prompt", True):
        raise fields.wrong("include_prompt", "true (leaving prompts out of the pooling is not known)")
    if fields.has("pooling_mode"):
        chosen = [fields.choice("pooling_mode", (*_MODES, *_NAMED_MODES))]
        chosen = [_NAMED_MODES.get(chosen[0], chosen[0])]
    else:
        chosen = [mode for mode, name in _MODES.items() if fields.flag(name, False)]
    if len(chosen) != 1:
        raise ValueError(f"{fields.where} must choose one pooling mode; got {', '.join(chosen) or 'none'}")
    if chosen[0] not in POOLINGS:
        raise ValueError(f"{fields.where}: pooling {chosen[0]} is not known; expected one of {', '.join(POOLINGS)}")
    return chosen[0]


def _dense(folder: Path, width: int) -> DenseStage:
    fields = Fields(read_object(folder / CONFIG), str(folder / CONFIG))
    inputs, outputs = (fields.integer(name, high=1 << 20) for name in ("in_features", "out_features"))
    if inputs != width:
        raise fields.wrong("in_features", f"{width}, the width of what comes before it")
    activation = fields.values.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = activation.rsplit(".", 1)[-1] if isinstance(activation, str) else None
    if name not in _DENSE_ACTIVATIONS:
        raise fields.wrong("activation_function", f"one of torch.nn's {', '.join(_DENSE_ACTIVATIONS)}")
    places = {"weight": Place("linear.weight", (outputs, inputs))}
    if fields.flag("bias", True):
        places["bias"] = Place("linear.bias", (outputs,))
    files = weight_files(folder)
    check_places(places, files.shapes(), files.where, "a Dense module")
    bias = files.tensor("linear.bias") if "bias" in places else None
    return DenseStage(files.tensor("linear.weight"), bias, _DENSE_ACTIVATIONS[name])


def _lengths(folder: Path) -> dict[str, Any]:
    path = next((folder / name for name in LENGTHS if (folder / name).exists()), None)
    if path is None:
        return {}
    fields = Fields(read_object(path), str(path))
    length = fields.integer("max_seq_length") if fields.has("max_seq_length") else None
    return {"max_length": length, "lower_case": fields.flag("do_lower_case", False)}


def _prompts(folder: Path) -> dict[str, Any]:
    path = folder / PROMPTS
    if not path.exists():
        return {}
    fields = Fields(read_object(path), str(path))
    prompts = fields.object("prompts").values
    for name, text in prompts.items():
        if not isinstance(text, str):
            raise ValueError(f"{path}: prompts.{name} must be text; got {short(text)}")
    default = fields.choice("default_prompt_name", tuple(prompts)) if fields.has("default_prompt_name") else None
    return {"prompts": prompts, "default_prompt": default}

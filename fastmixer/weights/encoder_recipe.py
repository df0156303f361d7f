"""How an encoder's hidden states become vectors of sentences: sentence-transformers' files beside a model. Knows no encoder.

modules.json lists folders: the transformer, pooling, dense layers, normalization; of a cross-encoder the transformer alone.
Where it is absent, the mean is taken, which is what sentence-transformers does too.
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
# What sentence-transformers calls each pooling: our name, and the flag that older files have for it, in the order in which
# the vectors of several stand side by side.
_POOLINGS = {
    "cls": ("cls", "pooling_mode_cls_token"), "max": ("max", "pooling_mode_max_tokens"),
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "mean_sqrt_len_tokens": ("mean_sqrt_len", "pooling_mode_mean_sqrt_len_tokens"),
    "weightedmean": ("weightedmean", "pooling_mode_weightedmean_tokens"), "lasttoken": ("last", "pooling_mode_lasttoken"),
}  # fmt: skip
POOLINGS = ("mean", "cls", "max", "last", "weightedmean", "mean_sqrt_len")
EMBEDS, CLASSIFIES = "feature-extraction", "sequence-classification"  # tasks of a transformer
VECTOR = "sentence_embedding"  # what modules call it that pass it on
_DENSE_ACTIVATIONS = {"Tanh": "tanh", "Identity": "none", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu"}
MAX_MODULES = 16
# Names of the prompts for queries and for what they look for, the first that a model has counts: as sentence-transformers'
# encode_query and encode_document.
PROMPTS_FOR = {"query": ("query",), "document": ("document", "passage", "corpus")}


@dataclass(frozen=True)
class DenseStage:
    """pooled [sentences, in] -> act(pooled weight^T + bias) [sentences, out]. weight: [out, in]; bias: [out] or None;
    activation: "tanh", "none", or one of the encoder's. adds_input: pooled is added to that, or pooled residual^T where
    there is a residual: [out, in]."""

    weight: StoredTensor
    bias: StoredTensor | None
    activation: str
    adds_input: bool = False
    residual: StoredTensor | None = None


@dataclass(frozen=True)
class SentenceRecipe:
    """pooling: one of POOLINGS, or several joined by "+", whose vectors stand side by side; pools_prompt: whether a prompt's
    tokens count; dense: stages after it; normalize: whether the folder itself asks for unit length; truncate_dim: how many
    numbers of a vector are kept (None: all); max_length: tokens of a text, special ones among them (None: not said);
    lower_case: texts are lowered first; prompts: what stands before a text, by name; default_prompt: the name of the one
    used where none is asked for; classifies: a cross-encoder's, which makes no vectors."""

    pooling: str = "mean"
    pools_prompt: bool = True
    dense: tuple[DenseStage, ...] = ()
    normalize: bool = False
    truncate_dim: int | None = None
    max_length: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    classifies: bool = False

    def vector_dim(self, dim: int) -> int:
        """Numbers of a vector; dim: of a hidden state."""
        made = self.dense[-1].weight.shape[0] if self.dense else dim * len(self.pooling.split("+"))
        return made if self.truncate_dim is None else min(made, self.truncate_dim)

    def prompt_for(self, use: str) -> str | None:
        """The prompt for one use of PROMPTS_FOR; None where there is none, even if there is a default prompt."""
        return next((self.prompts[name] for name in PROMPTS_FOR[use] if name in self.prompts), None)


def transformer_folder(folder: Path) -> Path:
    """Where in a model's folder config.json and weights lie: what modules.json names first, or the folder itself."""
    modules = list_modules(folder)
    return folder / modules[0][1] if modules else folder


def read_recipe(folder: Path, dim: int) -> SentenceRecipe:
    """The recipe in a model's folder; dim: of the encoder's hidden states. FileNotFoundError or ValueError that names file
    and field."""
    modules = list_modules(folder)
    found = {**_transformer(transformer_folder(folder)), **_model(folder)}
    dense: list[DenseStage] = []
    width = dim
    for kind, place in modules[1:]:
        where = folder / place
        if kind == "Pooling":
            if "pooling" in found or dense:
                raise ValueError(f"{folder / MODULES}: Pooling must come once, before Dense; nothing else is known")
            found["pooling"], found["pools_prompt"] = _pooling(where, dim)
            width *= len(found["pooling"].split("+"))
        elif kind == "Dense":
            dense.append(_dense(where, width))
            width = dense[-1].weight.shape[0]
        else:  # Normalize has no files, or one that says what it reads; what follows it would undo it
            found["normalize"] = True
            if (where / CONFIG).exists():
                _check_names(Fields(read_object(where / CONFIG), str(where / CONFIG)))
            if (kind, place) != modules[-1]:
                raise ValueError(f"{folder / MODULES}: Normalize must come last; nothing else is known")
    if found["classifies"] and len(modules) > 1:
        raise ValueError(f"{folder / MODULES}: a transformer whose task is {CLASSIFIES} must stand alone")
    if modules and not found["classifies"] and "pooling" not in found:
        raise ValueError(f"{folder / MODULES} names no Pooling: what one vector is made of is not said")
    return SentenceRecipe(dense=tuple(dense), **found)


def token_limit(said: Any, context: int) -> int:
    """Tokens of a text at most: what a file says (model_max_length, max_seq_length), if it does, within the context."""
    return int(min(context, said)) if isinstance(said, int | float) and said >= 1 else context


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


def _pooling(folder: Path, dim: int) -> tuple[str, bool]:
    """(pooling, pools_prompt) of a recipe."""
    fields = Fields(read_object(folder / CONFIG), str(folder / CONFIG))
    own = "embedding_dimension" if fields.has("embedding_dimension") else "word_embedding_dimension"
    if fields.integer(own, dim) != dim:
        raise fields.wrong(own, f"{dim}, the width of the encoder")
    if fields.has("pooling_mode"):
        named = fields.values["pooling_mode"]
        named = named if isinstance(named, list) else [named]
        if not named or not all(isinstance(name, str) and name in _POOLINGS for name in named):
            raise fields.wrong("pooling_mode", f"one of {', '.join(_POOLINGS)}, or a list of them")
    else:
        named = [name for name, (_, flag) in _POOLINGS.items() if fields.flag(flag, False)]
        named = named or ["mean"]  # sentence-transformers' own choice where a file makes none
    return "+".join(_POOLINGS[name][0] for name in named), fields.flag("include_prompt", True)


def _dense(folder: Path, width: int) -> DenseStage:
    fields = Fields(read_object(folder / CONFIG), str(folder / CONFIG))
    inputs, outputs = (fields.integer(name, high=1 << 20) for name in ("in_features", "out_features"))
    if inputs != width:
        raise fields.wrong("in_features", f"{width}, the width of what comes before it")
    activation = fields.values.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = activation.rsplit(".", 1)[-1] if isinstance(activation, str) else None
    if name not in _DENSE_ACTIVATIONS:
        raise fields.wrong("activation_function", f"one of torch.nn's {', '.join(_DENSE_ACTIVATIONS)}")
    _check_names(fields)
    places = {"weight": Place("linear.weight", (outputs, inputs))}
    if fields.flag("bias", True):
        places["bias"] = Place("linear.bias", (outputs,))
    adds_input = fields.flag("use_residual", False)
    if adds_input and inputs != outputs:
        places["residual"] = Place("residual.weight", (outputs, inputs))
    files = weight_files(folder)
    check_places(places, files.shapes(), files.where, "a Dense module")
    tensors = {part: files.tensor(place.name) for part, place in places.items()}
    return DenseStage(
        tensors["weight"], tensors.get("bias"), _DENSE_ACTIVATIONS[name], adds_input, tensors.get("residual")
    )


def _check_names(fields: Fields) -> None:
    """ValueError for a module that reads or writes anything but the sentence's vector."""
    for name in ("module_input_name", "module_output_name"):
        fields.choice(name, (VECTOR,), VECTOR)


def _transformer(folder: Path) -> dict[str, Any]:
    """What stands beside the transformer."""
    path = next((folder / name for name in LENGTHS if (folder / name).exists()), None)
    if path is None:
        return {"classifies": False}
    fields = Fields(read_object(path), str(path))
    if fields.object("processing_kwargs").values:
        raise fields.wrong("processing_kwargs", "absent or empty (other ways to cut texts are not known)")
    return {
        "max_length": fields.integer("max_seq_length") if fields.has("max_seq_length") else None,
        "lower_case": fields.flag("do_lower_case", False),
        "classifies": fields.choice("transformer_task", (EMBEDS, CLASSIFIES), EMBEDS) == CLASSIFIES,
    }


def _model(folder: Path) -> dict[str, Any]:
    """What stands beside the modules: prompts, and how much of a vector is kept."""
    path = folder / PROMPTS
    if not path.exists():
        return {}
    fields = Fields(read_object(path), str(path))
    prompts = fields.object("prompts").values
    for name, text in prompts.items():
        if not isinstance(text, str):
            raise ValueError(f"{path}: prompts.{name} must be text; got {short(text)}")
    default = fields.choice("default_prompt_name", tuple(prompts)) if fields.has("default_prompt_name") else None
    truncate_dim = fields.integer("truncate_dim") if fields.has("truncate_dim") else None
    return {"prompts": prompts, "default_prompt": default, "truncate_dim": truncate_dim}

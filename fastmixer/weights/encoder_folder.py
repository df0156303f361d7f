"""Folders of encoders as open models: transformers' files, and sentence-transformers' around them. Knows the files; what
names and fields mean is in encoder_architectures.py, encoder_names.py and encoder_recipe.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastmixer.model.encoder_config import EncoderConfig
from fastmixer.weights.encoder_architectures import CLASSIFIER, ENCODERS, read_encoder_config
from fastmixer.weights.encoder_names import encoder_places, plain_encoder_name
from fastmixer.weights.encoder_recipe import (
    CLASSIFIES,
    MODULES,
    PROMPTS,
    SentenceRecipe,
    read_recipe,
    transformer_folder,
)
from fastmixer.weights.folder import CONFIG
from fastmixer.weights.hf_folder import weight_files
from fastmixer.weights.hub import download
from fastmixer.weights.placed import PlacedTensors, check_places
from fastmixer.weights.source import may_be_on_hub
from fastmixer.weights.stored import StoredTensor
from fastmixer.weights.strict_json import Fields, read_object

SCORE_ACTIVATIONS = {"Sigmoid": "sigmoid", "Identity": "none"}
FIRST_ORG = "sentence-transformers"  # whose models are known by their names alone
FIRST_NAMES = ("all-", "multi-qa-", "paraphrase-", "msmarco-", "distiluse-", "gtr-", "sentence-")  # how they begin


@dataclass
class EncoderSource:
    """An encoder that is open but not yet loaded: tensors (see encoder_config.encoder_shapes for names) are views of its
    files. folder: the whole model's; path: where its config.json and tokenizer lie, the same or one in it. recipe: how
    sentences get their vectors; score_activation: what a cross-encoder's single output passes through: "sigmoid" or
    "none"."""

    name: str
    folder: Path
    path: Path
    config: EncoderConfig
    tensors: Mapping[str, StoredTensor]
    recipe: SentenceRecipe
    score_activation: str = "sigmoid"


def is_encoder_folder(folder: str | Path) -> bool:
    """Whether a folder holds an encoder, by the model_type in its config.json. ValueError for files that are damaged."""
    path = transformer_folder(Path(folder)) / CONFIG
    return path.is_file() and read_object(path).get("model_type") in ENCODERS


def is_sentence_folder(folder: str | Path) -> bool:
    """Whether a folder says how texts become vectors: an encoder's, or any that sentence-transformers wrote."""
    return is_encoder_folder(folder) or (Path(folder) / MODULES).exists()


def open_encoder(
    path_or_name: str | Path,
    *,
    offline: bool | None = None,
    revision: str | None = None,
    name: str | None = None,
) -> EncoderSource:
    """The encoder in a folder, or of a name on huggingface.co: "org/name", or of sentence-transformers' own the name alone
    (see hub_name_of; hub.download for offline and revision). name: what it is called in errors (None: as it was asked for).

    Raises FileNotFoundError that names the missing file, or ValueError that names file, field and value; for names also
    ConnectionError and PermissionError.
    """
    folder, asked = Path(path_or_name), str(path_or_name)
    if folder.is_dir():
        asked = folder.resolve().name
    else:
        full = None if isinstance(path_or_name, Path) else hub_name_of(asked)
        if full is None:
            raise FileNotFoundError(f"{asked} does not exist (expected an encoder's folder, or org/name)")
        folder = download(full, offline=offline, revision=revision)
    inner = transformer_folder(folder)
    values, where = read_object(inner / CONFIG), str(inner / CONFIG)
    config = read_encoder_config(values, where)
    architecture = values["model_type"]
    files = weight_files(inner)
    files.rename(lambda stored: plain_encoder_name(architecture, config, stored))
    places = encoder_places(architecture, config, ENCODERS[architecture].padding_rows)
    check_places(places, files.shapes(), files.where, architecture)
    recipe = read_recipe(folder, config.dim)
    if recipe.classifies and config.head is None:
        raise Fields(values, where).wrong(
            "architectures", f"a list with a ...{CLASSIFIER} (the transformer's task is {CLASSIFIES})"
        )
    return EncoderSource(
        name=name or asked, folder=folder, path=inner, config=config, tensors=PlacedTensors(places, files.tensor),
        recipe=recipe, score_activation=_score_activation(folder, Fields(values, where)),
    )  # fmt: skip


def _score_activation(folder: Path, config: Fields) -> str:
    """What sentence-transformers' cross-encoders put after a single output; newer versions' word for it counts first."""
    path = folder / PROMPTS
    beside = Fields(read_object(path) if path.exists() else {}, str(path))
    said = (
        (beside, "activation_fn"), (config.object("sentence_transformers"), "activation_fn"),
        (config, "sbert_ce_default_activation_function"),
    )  # fmt: skip
    for fields, name in said:
        if fields.has(name):
            chosen = fields.values[name]
            kind = chosen.rsplit(".", 1)[-1] if isinstance(chosen, str) and chosen.startswith("torch.") else None
            if kind not in SCORE_ACTIVATIONS:
                raise fields.wrong(name, f"torch.nn's {' or '.join(SCORE_ACTIVATIONS)}")
            return SCORE_ACTIVATIONS[kind]
    return "sigmoid"


def hub_name_of(name: str) -> str | None:
    """The "org/name" on the hub that a name stands for which is no file or folder here; None if it stands for none. Names
    without an organization are guessed at only where they look like sentence-transformers': a mistyped folder is no
    download."""
    if "/" not in name and not name.startswith(FIRST_NAMES):
        return None
    full = name if "/" in name else f"{FIRST_ORG}/{name}"
    return full if may_be_on_hub(full) else None

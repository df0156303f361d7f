"""An encoder with new weights as a folder that sentence-transformers opens: the files of the one it came from, its tensors
under the names that they had there, in float32. Knows the files; what a tensor is called is in encoder_names.py."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastmixer.text.conventions import TOKENIZER_CONFIG
from fastmixer.weights.encoder_architectures import ENCODERS
from fastmixer.weights.encoder_folder import EncoderSource
from fastmixer.weights.encoder_names import encoder_places, plain_encoder_name
from fastmixer.weights.encoder_recipe import LENGTHS, MODULES, PROMPTS, list_modules, token_limit
from fastmixer.weights.files import replace_folder, sync, write_json
from fastmixer.weights.folder import CONFIG, WEIGHTS
from fastmixer.weights.hf_folder import weight_files
from fastmixer.weights.strict_json import read_object

# What is copied of the files beside the weights: configurations, tokenizers, licences. Not the weights in other formats,
# nor lists of their parts: they would be those from before.
COPIED = (".json", ".txt", ".model")
TRAINING = "training.json"  # how the weights came about
NOT_COPIED = (".index.json", TRAINING, MODULES)
LICENCES = ("LICENSE", "LICENCE", "NOTICE")
BUFFER = "position_ids"  # which old versions of transformers saved beside weights


def require_free(folder: Path) -> None:
    """FileExistsError unless a folder can be written there without anything being lost; OSError if it cannot be at all."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        kind = "holds files" if folder.is_dir() else "is a file"
        raise FileExistsError(f"{folder} {kind}; choose a folder that is new or empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    probe = folder.parent / f".writing-{folder.name}.probe"
    probe.mkdir(exist_ok=True)
    probe.rmdir()


def write_encoder_folder(
    source: EncoderSource, tensors: Mapping[str, np.ndarray], folder: str | Path, record: Mapping[str, Any],
    prompts: Mapping[str, str] | None = None,
) -> Path:  # fmt: skip
    """Write source's model with these tensors in place of its own, all or nothing; returns the folder.

    tensors: float32, by the names and in the shapes of encoder_config.encoder_shapes, those that changed or all; of Dense
    stages dense.{i}.weight: [out, in], dense.{i}.bias: [out], dense.{i}.residual.weight: [out, in]. record: what
    training.json is to hold. prompts: by name, in place of source's of that name. Raises FileExistsError for a folder that
    holds anything; OSError as it came.
    """
    folder = Path(folder)
    require_free(folder)
    inside = source.path.relative_to(source.folder)
    modules = list_modules(source.folder)

    def write(temporary: Path) -> None:
        (temporary / inside).mkdir(exist_ok=True)
        for part in {source.folder, source.path}:
            _copy_files(part, temporary / part.relative_to(source.folder))
        for _, place in modules[1:]:
            (temporary / place).mkdir(exist_ok=True)  # that of Normalize is empty, or was never there
            _copy_files(source.folder / place, temporary / place)
        if modules:
            shutil.copyfile(source.folder / MODULES, temporary / MODULES)
        else:
            _write_modules(source, temporary)
        if prompts:
            _add_prompts(temporary / PROMPTS, prompts)
        _write_config(source.path / CONFIG, temporary / inside / CONFIG)
        _write_weights(source, tensors, temporary / inside / WEIGHTS)
        stages = [place for kind, place in modules[1:] if kind == "Dense"]
        for index, place in enumerate(stages):
            _write_dense(source.folder / place, tensors, index, temporary / place / WEIGHTS)
        write_json(temporary / TRAINING, dict(record))
        for path in temporary.rglob("*"):
            sync(path)

    return replace_folder(folder, write)


def _copy_files(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()) if source.is_dir() else []:
        kept = path.suffix in COPIED and not path.name.endswith(NOT_COPIED)
        if path.is_file() and (kept or path.name.upper().startswith(LICENCES)):
            shutil.copyfile(path, target / path.name)


def _write_modules(source: EncoderSource, folder: Path) -> None:
    """What a folder without sentence-transformers' files is taken for, said by them: the mean of all tokens."""
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"))
    listed = [
        {"idx": index, "name": str(index), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, place) in enumerate(kinds)
    ]
    write_json(folder / MODULES, listed)
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": source.config.dim, f"pooling_mode_{source.recipe.pooling}_tokens": True}
    write_json(folder / "1_Pooling" / CONFIG, pooling)
    if not any((folder / name).exists() for name in LENGTHS):
        settings = source.path / TOKENIZER_CONFIG  # whose word counts no more once this file is there
        said = read_object(settings).get("model_max_length") if settings.exists() else None
        write_json(folder / LENGTHS[0], {"max_seq_length": token_limit(said, source.config.context)})


def _add_prompts(path: Path, prompts: Mapping[str, str]) -> None:
    values = read_object(path) if path.exists() else {}
    write_json(path, values | {"prompts": (values.get("prompts") or {}) | dict(prompts)})


def _write_config(source: Path, target: Path) -> None:
    values = read_object(source)
    for name in ("dtype", "torch_dtype"):
        if name in values:
            values[name] = "float32"
    write_json(target, values)


def _write_weights(source: EncoderSource, tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """All tensors that source's file holds, under their names there; those of the body from tensors."""
    from safetensors.numpy import save

    architecture = read_object(source.path / CONFIG)["model_type"]
    places = encoder_places(architecture, source.config, ENCODERS[architecture].padding_rows)
    ours: dict[str, list[str]] = {}
    for name, place in places.items():
        ours.setdefault(place.name, []).append(name)
    files = weight_files(source.path)
    files.rename(lambda stored: None if stored.endswith(BUFFER) else stored)
    written = {}
    for stored in files.shapes():
        values = files.tensor(stored).values()
        for name in ours.get(plain_encoder_name(architecture, source.config, stored) or "", []):
            rows = places[name].rows
            if name in tensors and rows is None:
                values = tensors[name]
            elif name in tensors:
                values = values.copy()
                values[rows] = tensors[name]
        written[stored] = np.ascontiguousarray(values, np.float32)
    path.write_bytes(save(written, metadata={"format": "pt"}))


def _write_dense(source: Path, tensors: Mapping[str, np.ndarray], index: int, path: Path) -> None:
    """The tensors of a Dense stage, as its own files have them but for those that changed."""
    from safetensors.numpy import save

    files = weight_files(source)
    written = {}
    for stored in files.shapes():
        changed = tensors.get(f"dense.{index}.{stored.removeprefix('linear.')}")
        written[stored] = np.ascontiguousarray(files.tensor(stored).values() if changed is None else changed, np.float32)
    path.write_bytes(save(written, metadata={"format": "pt"}))

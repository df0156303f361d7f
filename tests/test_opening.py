"""load judges what it was given before any work begins."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from random_models import random_source

from fastmixer.cli.main import main
from fastmixer.opening import load
from fastmixer.weights.convert import convert


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return convert(random_source("llama"), tmp_path_factory.mktemp("opening") / "m.gguf")


@pytest.mark.parametrize(
    ("place", "error", "text"),
    [
        (None, TypeError, "load: path_or_name must be a string or a path; got NoneType"),
        (b"m.gguf", TypeError, "load: path_or_name must be a string or a path; got bytes"),
        ("", ValueError, "load: path_or_name must name a .gguf file, a model's folder, or org/name; got ''"),
        ("/dev/null", ValueError, "/dev/null is neither a file nor a folder; expected a .gguf file or a model's folder"),
    ],
)
def test_what_names_no_model(place, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        load(place)


def test_errors_name_whose_argument_it_is(tmp_path):
    for command in (["info", ""], ["convert", "", str(tmp_path / "m.gguf")]):
        said = CliRunner().invoke(main, command).output
        assert said == f"Error: {command[0]}: MODEL must name a .gguf file, a model's folder, or org/name; got ''\n"


def test_a_tilde_is_the_home(path, monkeypatch):
    monkeypatch.setenv("HOME", str(path.parent))
    for place in ("~/m.gguf", Path("~/m.gguf"), path):
        assert load(place, progress=False).config.vocab == 320
    with pytest.raises(FileNotFoundError, match=re.escape(f"{path.parent}/absent.gguf does not exist")):
        load("~/absent.gguf")


def test_the_cache_is_judged_before_weights_are_packed(path, monkeypatch):
    monkeypatch.setattr("fastmixer.opening.Decoder", None)
    for cache_tokens, error, text in (
        (10, ValueError, "load: cache_tokens must be >= 64; got 10"),
        (64.0, TypeError, "load: cache_tokens must be an integer; got float"),
        (10**12, MemoryError, "load: 'random' with a context of 64 and a cache of 1000000000000 tokens in bfloat16 takes "),
    ):
        with pytest.raises(error, match=f"^{text}"):
            load(path, cache_tokens=cache_tokens)

"""The package as its users meet it: quick to import, whole public face there, no Numba unless used."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import fastmixer

IMPORT_SECONDS = 0.15


def run(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return result.stdout


def test_import_is_quick_and_brings_no_numba():
    code = (
        "import sys, time; start = time.perf_counter(); import fastmixer; seconds = time.perf_counter() - start;"
        "print(seconds, 'numba' in sys.modules, 'tokenizers' in sys.modules)"
    )
    runs = [run(code).split() for _ in range(3)]
    assert min(float(seconds) for seconds, _, _ in runs) < IMPORT_SECONDS
    assert {(numba, tokenizers) for _, numba, tokenizers in runs} == {("False", "False")}


def test_every_public_name_resolves():
    for name in fastmixer.__all__:
        assert getattr(fastmixer, name) is not None, name
    assert set(fastmixer.__all__) <= set(dir(fastmixer))


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(fastmixer.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {(node.module, alias.name) for node in block.body for alias in node.names}
    assert declared == {(module, name) for module, names in fastmixer._HOME.items() for name in names}


def test_public_names_are_documented():
    undocumented = [
        name for name in fastmixer.__all__ if callable(getattr(fastmixer, name)) and not getattr(fastmixer, name).__doc__
    ]
    assert not undocumented


def test_unknown_attribute():
    try:
        fastmixer.atention  # noqa: B018
    except AttributeError as error:
        assert str(error) == "module 'fastmixer' has no attribute 'atention'"
    else:
        raise AssertionError("no AttributeError")

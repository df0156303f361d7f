"""`fastmixer convert`: what was written opens, and says the same."""

import re

import pytest
from random_models import random_source

from fastmixer.weights.convert import convert
from fastmixer.weights.source import open_source


@pytest.fixture(scope="module")
def book(run, text_file, train_options):
    """A run with a tokenizer that GGUF files can hold."""
    folder = text_file.parent / "book"
    options = ["bpe" if one == "characters" else one for one in train_options]
    assert run("train", text_file, "--out", folder, "--vocab-size", 300, *options).exit_code == 0
    return folder


@pytest.mark.parametrize("target", ["small.gguf", "small"])
def test_a_run_in_other_formats_writes_the_same_text(run, book, tmp_path, target):
    result = run("convert", book, tmp_path / target, "--type", "f32")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(
        rf"wrote {re.escape(str(tmp_path / target))}: [\d.]+ MB, tensors: \d+ F32, with its tokenizer\n", result.output
    )
    options = ["Alice", "-n", 10, "--temperature", 0, "--weights", "float32", "--cache", "float32"]
    assert run("generate", tmp_path / target, *options).stdout == run("generate", book, *options).stdout


def test_matrices_without_such_blocks_are_told(run, tmp_path):
    folder = convert(random_source("llama", hidden=112), tmp_path / "folder")
    result = run("convert", folder, tmp_path / "m.gguf", "--type", "q4_0")
    warning = f"Warning: {tmp_path / 'm.gguf'}: 3 matrices are F16 instead of Q4_0, as their rows are no multiple of 32: "
    assert result.exit_code == 0 and result.stderr == f"{warning}blk.*.ffn_down.weight\n"


def test_a_shorter_context_has_no_window(run, tmp_path):
    folder = convert(random_source("mistral", window=9), tmp_path / "folder")
    result = run("convert", folder, tmp_path / "m.gguf")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("has no window 9 (there would be none with a context of at most 9)\n")
    result = run("convert", folder, tmp_path / "m.gguf", "--context", 9)
    assert result.exit_code == 0, result.output
    assert open_source(tmp_path / "m.gguf").config.context == 9


def test_what_stands_there_stays_unless_forced(run, book, tmp_path):
    target = tmp_path / "small.gguf"
    target.write_text("precious")
    result = run("convert", book, target)
    assert (result.exit_code, result.output) == (1, f"Error: {target} exists; add --force to write over it\n")
    assert target.read_text() == "precious"
    assert run("convert", book, target, "--force", "--type", "Q8_0").exit_code == 0
    assert {tensor.type.name for tensor in open_source(target).tensors.values()} == {"F32", "Q8_0"}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter.txt").write_text("precious")
    result = run("convert", book, tmp_path / "folder", "--force")
    assert result.exit_code == 1 and "holds 'letter.txt', which is no part of a model" in result.output


def test_types_that_there_are_not(run, book, tmp_path):
    result = run("convert", book, tmp_path / "a.gguf", "--type", "Q3_K")
    assert result.output == "Error: convert: type must be one of F32, F16, BF16, Q8_0, Q4_0; got 'Q3_K'\n"
    result = run("convert", book, tmp_path / "a", "--type", "q4_0")
    assert result.output == f"Error: {tmp_path / 'a'}: type of a folder must be one of F32, F16, BF16; got Q4_0\n"
    assert list(tmp_path.iterdir()) == []

"""`fastmixer perplexity`: the number that the model's own logits give."""

import math
import re

import numpy as np
import pytest

from fastmixer.opening import load

OPTIONS = ["--weights", "float32", "--cache", "float32"]


def test_one_window(run, trained, tmp_path):
    text = "Alice was here"
    path = tmp_path / "text.txt"
    path.write_text(text)
    result = run("perplexity", trained[0], path, *OPTIONS)
    assert result.exit_code == 0, result.output
    perplexity, nats, bits = map(
        float,
        re.match(r"perplexity ([\d.]+), ([\d.]+) nats a token, ([\d.]+) bits a byte\n13 tokens, 13 bytes, ", result.output).groups(),
    )  # fmt: skip
    model = load(trained[0], weights="float32", cache="float32")
    logits = model.logits(text)[:-1].astype(np.float64)
    targets = model.tokenize(text)[1:]
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(13), targets])
    assert nats == pytest.approx(expected, abs=1e-4) and perplexity == pytest.approx(math.exp(expected), rel=1e-4)
    assert bits == pytest.approx(expected / math.log(2), abs=1e-4)  # one byte a token


def test_windows(run, trained, text_file, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(text_file.read_text()[:500])
    short = run("perplexity", trained[0], path, "--context", 8, "--stride", 7, *OPTIONS).stdout
    whole = run("perplexity", trained[0], path, *OPTIONS).stdout
    assert short.splitlines()[0] != whole.splitlines()[0]
    assert "499 tokens, 499 bytes, " in short and "499 tokens, 499 bytes, " in whole


def test_bad_input(run, trained, tmp_path):
    path = tmp_path / "text.txt"
    result = run("perplexity", trained[0], path)
    assert (result.exit_code, result.output) == (1, f"Error: {path} is not a file\n")
    path.write_text("A")
    assert run("perplexity", trained[0], path).output == (
        "Error: perplexity: text must have at least two tokens; got 1\n"
    )
    path.write_text("Alice")
    assert run("perplexity", trained[0], path, "--stride", 16).output == (
        "Error: perplexity: stride must be < 16, the window; got 16\n"
    )
    assert (
        "context must be an integer from 1 to context 16; got 0"
        in run("perplexity", trained[0], path, "--context", 0).output
    )

"""A real model, SmolLM2-135M-Instruct in Q4_1: its float32 path against the reference, its 4- and 8-bit paths against that."""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from fastmixer.kernels.select import native_levels, use_kernels
from fastmixer.model.decoder import Decoder
from fastmixer.model.plan import plan
from fastmixer.text.assets import alice_text
from fastmixer.weights.source import open_source

TOKENS, CHUNK = 2000, 500
GOLDENS = Path(__file__).parent / "goldens" / "smollm2_llama_cpp.npz"
PROMPT = "The capital of France is"

spec = importlib.util.spec_from_file_location(
    "make_llama_cpp_goldens", Path(__file__).parent / "make_llama_cpp_goldens.py"
)
make_llama_cpp_goldens = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_llama_cpp_goldens)


@pytest.fixture(scope="module")
def ids(smollm2_path):
    return open_source(smollm2_path).tokenizer.encode(alice_text())[:TOKENS]


def log_probabilities(path, ids, weights, cache):
    """float32 [tokens, vocab] after each of ids."""
    decoder = Decoder(open_source(path), weights, progress=False)
    pages = decoder.new_pages(-(-len(ids) // 64), cache)
    tables = np.arange(pages.pages_per_group[0], dtype=np.int32)[None, None]
    rows = []
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        starts, first = np.array([0, len(chunk)]), np.array([start])
        logits, _ = decoder.forward(chunk, starts, first, pages, tables, np.arange(len(chunk)))
        logits -= logits.max(axis=1, keepdims=True)
        rows.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def float32_rows(smollm2_path, ids):
    return log_probabilities(smollm2_path, ids, "float32", "float32")


def perplexity(rows, ids):
    return np.exp(-rows[np.arange(len(ids) - 1), ids[1:]].mean(dtype=np.float64))


@pytest.fixture(scope="module")
def rows_of(smollm2_path, ids):
    """log_probabilities of a way to keep weights, with a cache in bfloat16; each computed once."""
    return functools.cache(lambda weights: log_probabilities(smollm2_path, ids, weights, "bfloat16"))


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_packed_weights_say_nearly_the_same(ids, float32_rows, rows_of, weights):
    rows = rows_of(weights)
    divergence = (np.exp(float32_rows) * (float32_rows - rows)).sum(axis=1, dtype=np.float64)
    assert divergence.mean() <= 0.01  # nats
    assert (rows.argmax(axis=1) == float32_rows.argmax(axis=1)).mean() >= 0.97
    assert perplexity(rows, ids) == pytest.approx(perplexity(float32_rows, ids), rel=0.005)


def test_int4_is_what_auto_makes_of_this_file(smollm2_path):
    assert plan(open_source(smollm2_path), "int4").kinds == plan(open_source(smollm2_path)).kinds


def test_the_text_is_foreseen_as_well_as_by_llama_cpp(ids, rows_of):
    """The same file and the same 2,000 tokens; llama.cpp's figures were stored by make_llama_cpp_goldens.py."""
    stored = np.load(GOLDENS)
    np.testing.assert_array_equal(stored["ids"], ids)
    theirs = np.exp(-stored["logprobs"].mean(dtype=np.float64))
    for weights in ("auto", "int8"):
        assert perplexity(rows_of(weights), ids) <= 1.005 * theirs, weights


def test_the_stored_figures_are_llama_cpps(smollm2_path, ids):
    pytest.importorskip("xllamacpp")
    count = 48
    found = make_llama_cpp_goldens.logprobs_of(smollm2_path, ids[:count].tolist())
    stored = np.load(GOLDENS)["logprobs"][: count - 1]
    # another processor's kernels round otherwise: by a tenth of a nat here and there
    np.testing.assert_allclose(found, stored, atol=0.6)
    assert found.mean() == pytest.approx(stored.mean(), abs=0.03)


def forward_of(path):
    """(forward(ids, position): logits of each of ids float32 [tokens, vocab], ids of the prompt), weights in float32."""
    source = open_source(path)
    decoder = Decoder(source, "float32", progress=False)
    pages = decoder.new_pages(4, "float32")
    tables = np.arange(4, dtype=np.int32)[None, None]

    def forward(ids, position):
        starts = np.array([0, len(ids)])
        return decoder.forward(ids, starts, np.array([position]), pages, tables, np.arange(len(ids)))[0]

    return forward, source.tokenizer.encode(PROMPT)


def test_float32_is_the_reference(smollm2_path):
    """Written token by token; read by the reference in one piece, it says the same at every place, so that it would have
    written the same."""
    levels = native_levels("decoder")
    with use_kernels(f"native-{levels[0]}" if levels else "jit"):
        forward, prompt = forward_of(smollm2_path)
        rows = [forward(prompt, 0)]
        written = [int(rows[0][-1].argmax())]
        while len(written) < 128:
            rows.append(forward(np.array(written[-1:]), len(prompt) + len(written) - 1))
            written.append(int(rows[-1][-1].argmax()))
    with use_kernels("reference"):
        expected = forward_of(smollm2_path)[0](np.array([*prompt, *written[:-1]]), 0)
    np.testing.assert_allclose(np.concatenate(rows), expected, atol=1e-3)
    assert expected[len(prompt) - 1 :].argmax(axis=1).tolist() == written

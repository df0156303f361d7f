"""A real model, SmolLM2-135M-Instruct in Q4_1: its float32 path against the reference, its 4- and 8-bit paths against that."""

import numpy as np
import pytest

from fastmixer.kernels.select import native_levels, use_kernels
from fastmixer.model.decoder import Decoder
from fastmixer.text.assets import alice_text
from fastmixer.weights.source import open_source

TOKENS, CHUNK = 2000, 500
PROMPT = "The capital of France is"


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


@pytest.mark.parametrize(("weights", "cache"), [("auto", "bfloat16"), ("int4", "bfloat16"), ("int8", "bfloat16")])
def test_packed_weights_say_nearly_the_same(smollm2_path, ids, float32_rows, weights, cache):
    rows = log_probabilities(smollm2_path, ids, weights, cache)
    divergence = (np.exp(float32_rows) * (float32_rows - rows)).sum(axis=1, dtype=np.float64)
    assert divergence.mean() <= 0.01  # nats
    assert (rows.argmax(axis=1) == float32_rows.argmax(axis=1)).mean() >= 0.97
    assert perplexity(rows, ids) == pytest.approx(perplexity(float32_rows, ids), rel=0.005)


def greedy(path, count):
    """(ids written, logits of the prompt's tokens: float32 [tokens, vocab])."""
    source = open_source(path)
    decoder = Decoder(source, "float32", progress=False)
    prompt = source.tokenizer.encode(PROMPT)
    pages = decoder.new_pages(4, "float32")
    tables = np.arange(4, dtype=np.int32)[None, None]

    def forward(ids, position):
        starts = np.array([0, len(ids)])
        return decoder.forward(ids, starts, np.array([position]), pages, tables, np.arange(len(ids)))[0]

    first = logits = forward(prompt, 0)
    written = []
    for position in range(len(prompt), len(prompt) + count):
        written.append(int(logits[-1].argmax()))
        logits = forward(np.array(written[-1:]), position)
    return written, first


def test_float32_is_the_reference(smollm2_path):
    levels = native_levels("decoder")
    with use_kernels("reference"):
        expected, expected_logits = greedy(smollm2_path, 128)
    with use_kernels(f"native-{levels[0]}" if levels else "jit"):
        written, logits = greedy(smollm2_path, 128)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-3)
    assert written == expected

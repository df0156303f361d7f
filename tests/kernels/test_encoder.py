"""A whole encoder: every implementation against the reference over every feature, ragged batches and kinds of weights.

The reference itself is held to a plain forward of one sequence in float64, written out below without batches.
"""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fastmixer.kernels import select, threads
from fastmixer.kernels.encoder import reference
from fastmixer.kernels.encoder.spec import EncoderLayerSpec, EncoderSpec, Linear, Norm
from fastmixer.kernels.packed import FOR_MANY_ROWS

CONTEXT = 300
# What may differ between implementations, of the largest hidden state: sums in another order; where numbers are rounded
# in between (bfloat16, int8), a few that lie on the edge go the other way.
TOLERANCE = {"float32": 2e-5, "bfloat16": 6e-3, "int8": 2e-2, "int4": 2e-2}

PLAIN = {
    "dim": 48, "heads": 4, "head_dim": 12, "hidden": 96, "vocab": 67, "layers": 3, "placement": "post",
    "activation": "gelu", "gated": False, "bias": True, "positions": True, "token_types": 2, "embedding_norm": True,
    "kind": "float32",
}  # fmt: skip
MODERN = {
    "placement": "pre", "gated": True, "bias": False, "positions": False, "token_types": 0, "rotary_dim": 12,
    "final_norm": True,
}  # fmt: skip
FEATURES = {
    "bert": {},
    "distilbert": {"token_types": 0},
    "mpnet": {"token_types": 0, "relative": 128},
    "near relative positions": {"relative": 5},
    "modernbert": {**MODERN, "windows": (0, 5, 5)},
    "modernbert, windows everywhere": {**MODERN, "windows": (7, 64, 1)},
    "pre, plain, biases": {"placement": "pre", "final_norm": True},
    "post, gated": {"gated": True, "activation": "silu", "bias": False},
    "windows and relative positions": {"relative": 9, "windows": (3, 0, 100)},
    "part of a head turns": {**MODERN, "rotary_dim": 6},
    "head_dim apart from dim": {"head_dim": 20},
    "one head": {"heads": 1, "head_dim": 48},
    "odd sizes": {"dim": 31, "hidden": 37, "vocab": 19, "heads": 3, "head_dim": 7, "token_types": 1},
    "wide heads": {"heads": 2, "head_dim": 80},
    "tanh gelu": {"activation": "gelu_tanh"},
    "relu": {"activation": "relu"},
    "rmsnorm": {**MODERN, "norm": "rmsnorm"},
    "no embedding norm": {"embedding_norm": False, "placement": "pre"},
    "no layers": {"layers": 0},
}  # fmt: skip


# ---- specs of random weights ----


def make_spec(packed, seed=0, **changes):
    """An EncoderSpec of random weights, packed by this module; the same seed gives the same weights to all."""
    sizes, rng = {**PLAIN, **changes}, np.random.default_rng(seed)
    dim, hidden, vocab, width = sizes["dim"], sizes["hidden"], sizes["vocab"], sizes["heads"] * sizes["head_dim"]
    norm_kind = sizes.get("norm", "layernorm")

    def weight(outputs, inputs, deviation=1.0):
        values = rng.standard_normal((outputs, inputs), dtype=np.float32) * np.float32(deviation / np.sqrt(inputs))
        return packed.pack_weight(values.view(np.uint8), "F32", outputs, inputs, sizes["kind"])

    def linear(outputs, inputs):
        bias = rng.standard_normal(outputs, dtype=np.float32) * np.float32(0.3) if sizes["bias"] else None
        return Linear(weight(outputs, inputs), bias)

    def norm():
        bias = rng.standard_normal(dim, dtype=np.float32) * np.float32(0.1) if sizes["bias"] else None
        return Norm(norm_kind, rng.uniform(0.5, 1.5, dim).astype(np.float32), bias, 1e-5)

    def table(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    half = sizes.get("rotary_dim", 0) // 2
    layers = []
    for index, window in enumerate(sizes.get("windows", (0,) * sizes["layers"])):
        angles = np.arange(CONTEXT)[:, None] * (100.0 if window else 10000.0) ** (-np.arange(half) / max(half, 1))
        bare = sizes["placement"] == "pre" and index == 0
        layers.append(
            EncoderLayerSpec(
                attention_norm=None if bare else norm(), q=linear(width, dim), k=linear(width, dim),
                v=linear(width, dim), output=linear(dim, width), feedforward_norm=norm(),
                gate=linear(hidden, dim) if sizes["gated"] else None, up=linear(hidden, dim), down=linear(dim, hidden),
                window=window, cos=np.cos(angles).astype(np.float32) if half else None,
                sin=np.sin(angles).astype(np.float32) if half else None,
            )
        )  # fmt: skip
    relative = sizes.get("relative", 0)
    return EncoderSpec(
        dim=dim, heads=sizes["heads"], head_dim=sizes["head_dim"], hidden=hidden, vocab=vocab,
        placement=sizes["placement"], activation=sizes["activation"], attention_scale=sizes["head_dim"] ** -0.5,
        embedding=weight(vocab, dim, np.sqrt(dim)), positions=table(CONTEXT, dim) if sizes["positions"] else None,
        token_types=table(sizes["token_types"], dim) if sizes["token_types"] else None,
        embedding_norm=norm() if sizes["embedding_norm"] else None,
        relative=table(sizes["heads"], 2 * relative + 1) if relative else None, layers=tuple(layers),
        final_norm=norm() if sizes.get("final_norm") else None,
    )  # fmt: skip


def batch_of(spec, lengths, seed=1):
    """(ids int64 [tokens], starts int64 [sequences + 1], token_types int64 [tokens] or None)."""
    rng = np.random.default_rng(seed)
    ids, starts = rng.integers(0, spec.vocab, sum(lengths)), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    types = None if spec.token_types is None else rng.integers(0, len(spec.token_types), len(ids))
    return ids, starts, types


def forward(module, spec, batch):
    hidden = np.full((len(batch[0]), spec.dim), np.nan, np.float32)
    module.Encoder(spec).forward(*batch, hidden)
    return hidden


def packed_of(implementation):
    return select.kernel_module("packed", implementation)


def close(actual, expected, kind="float32"):
    assert np.isfinite(actual).all()
    limit = TOLERANCE[kind.split("_")[0]]  # however the kind is laid out
    assert np.abs(actual - expected).max() <= limit * max(1.0, np.abs(expected).max())


# ---- the reference, against a forward that is as plain as can be ----


def plain_forward(spec, ids, types):
    """float64 [tokens, dim] of one sequence, one query and one head at a time."""

    def apply(linear, x):
        y = x @ linear.weight.arrays["rows"].astype(np.float64).T
        return y if linear.bias is None else y + linear.bias

    def normalized(norm, x):
        if norm is None:
            return x
        centred = x - x.mean(-1, keepdims=True) if norm.kind == "layernorm" else x
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.epsilon) * norm.weight
        return y if norm.bias is None else y + norm.bias

    def act(x):
        erf = np.vectorize(math.erf)
        return {
            "silu": lambda: x / (1 + np.exp(-x)), "relu": lambda: np.maximum(x, 0),
            "gelu": lambda: 0.5 * x * (1 + erf(x / np.sqrt(2))),
            "gelu_tanh": lambda: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        }[spec.activation]()  # fmt: skip

    def turned(layer, x):
        if layer.cos is None:
            return x
        half = layer.cos.shape[1]
        turn = np.exp(1j * np.arctan2(layer.sin[: len(x)], layer.cos[: len(x)]))
        pairs = (x[:, :half] + 1j * x[:, half : 2 * half]) * turn
        return np.concatenate([pairs.real, pairs.imag, x[:, 2 * half :]], axis=1)

    def attention(layer, x):
        blends = np.empty((len(x), spec.heads * spec.head_dim))
        for head in range(spec.heads):
            own = slice(head * spec.head_dim, (head + 1) * spec.head_dim)
            q, k = (turned(layer, apply(linear, x)[:, own]) for linear in (layer.q, layer.k))
            v = apply(layer.v, x)[:, own]
            for i in range(len(x)):
                seen = [j for j in range(len(x)) if not layer.window or abs(j - i) <= layer.window]
                scores = k[seen] @ q[i] * spec.attention_scale
                if spec.relative is not None:
                    farthest = spec.relative.shape[1] // 2
                    scores += [spec.relative[head, farthest + max(-farthest, min(farthest, j - i))] for j in seen]
                weights = np.exp(scores - scores.max())
                blends[i, own] = weights @ v[seen] / weights.sum()
        return apply(layer.output, blends)

    def feedforward(layer, x):
        wide = apply(layer.up, x)
        return apply(layer.down, act(wide) if layer.gate is None else act(apply(layer.gate, x)) * wide)

    x = spec.embedding.arrays["rows"][ids].astype(np.float64)
    if spec.positions is not None:
        x = x + spec.positions[: len(ids)]
    if spec.token_types is not None:
        x = x + spec.token_types[types]
    x = normalized(spec.embedding_norm, x)
    for layer in spec.layers:
        if spec.placement == "post":
            x = normalized(layer.attention_norm, x + attention(layer, x))
            x = normalized(layer.feedforward_norm, x + feedforward(layer, x))
        else:
            x = x + attention(layer, normalized(layer.attention_norm, x))
            x = x + feedforward(layer, normalized(layer.feedforward_norm, x))
    return normalized(spec.final_norm, x)


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_against_the_plain_forward(kernel, implementation, feature):
    spec = make_spec(packed_of(implementation), **FEATURES[feature])
    batch = batch_of(spec, [75])
    plain = plain_forward(make_spec(packed_of("reference"), **FEATURES[feature]), batch[0], batch[2])
    close(forward(kernel, spec, batch), plain)


# ---- every implementation, against the reference ----


def pair(kernel, implementation, lengths, seed=0, **changes):
    """The hidden states by the implementation under test and by the reference."""
    specs = [make_spec(packed_of(name), seed, **changes) for name in (implementation, "reference")]
    batch = batch_of(specs[0], lengths, seed + 1)
    return [forward(module, spec, batch) for module, spec in zip((kernel, reference), specs, strict=True)]


@pytest.mark.parametrize("feature", FEATURES)
def test_ragged_batches(kernel, implementation, feature):
    close(*pair(kernel, implementation, [3, 150, 0, 64, 65, 1, 17, 0], **FEATURES[feature]))


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4", *FOR_MANY_ROWS.values()])
@pytest.mark.parametrize("feature", ["bert", "mpnet", "modernbert", "odd sizes"])
def test_kinds_of_weights(kernel, implementation, feature, kind):
    actual, expected = pair(kernel, implementation, [40, 1, 5], kind=kind, **FEATURES[feature])
    close(actual, expected, kind)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 300])
def test_lengths(kernel, implementation, length):
    close(*pair(kernel, implementation, [length], **FEATURES["windows and relative positions"]))


def test_random_specs(kernel, implementation, rng):
    for seed in range(12):
        head_dim = int(rng.choice([8, 10, 16, 33, 64]))
        layers = int(rng.integers(1, 4))
        changes = {
            "dim": int(rng.integers(8, 100)), "hidden": int(rng.integers(8, 150)), "heads": int(rng.integers(1, 7)),
            "head_dim": head_dim, "rotary_dim": 2 * int(rng.integers(0, head_dim // 2 + 1)), "layers": layers,
            "placement": str(rng.choice(["post", "pre"])), "gated": bool(rng.integers(2)), "bias": bool(rng.integers(2)),
            "norm": str(rng.choice(["rmsnorm", "layernorm"])), "positions": bool(rng.integers(2)),
            "activation": str(rng.choice(["silu", "gelu", "gelu_tanh", "relu"])), "token_types": int(rng.integers(4)),
            "windows": tuple(int(w) for w in rng.choice([0, 1, 20, 70], layers)), "relative": int(rng.choice([0, 1, 30])),
            "embedding_norm": bool(rng.integers(2)), "final_norm": bool(rng.integers(2)),
        }  # fmt: skip
        close(*pair(kernel, implementation, [100, 9, 1, 31], seed=seed, **changes))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("feature", ["bert", "mpnet", "modernbert"])
def test_a_sequence_does_not_depend_on_the_others(kernel, implementation, feature, kind):
    spec = make_spec(packed_of(implementation), kind=kind, **FEATURES[feature])
    ids, starts, types = batch_of(spec, [100, 30, 1, 64])
    together = forward(kernel, spec, (ids, starts, types))
    for start, stop in pairwise(starts):
        part = slice(start, stop)
        own = (ids[part], np.array([0, stop - start]), None if types is None else types[part])
        close(forward(kernel, spec, own), together[part], kind)


def test_without_token_types_all_are_of_type_0(kernel, implementation):
    spec = make_spec(packed_of(implementation))
    ids, starts, _ = batch_of(spec, [20, 3])
    np.testing.assert_array_equal(
        forward(kernel, spec, (ids, starts, None)), forward(kernel, spec, (ids, starts, np.zeros_like(ids)))
    )
    assert (
        np.abs(
            forward(kernel, spec, (ids, starts, np.ones_like(ids))) - forward(kernel, spec, (ids, starts, None))
        ).max()
        > 0.1
    )


def test_a_window_as_long_as_the_sequence_hides_nothing(kernel, implementation):
    spec = make_spec(packed_of(implementation), **MODERN)
    wide = replace(spec, layers=tuple(replace(layer, window=CONTEXT) for layer in spec.layers))
    batch = batch_of(spec, [150, 9])
    close(forward(kernel, wide, batch), forward(kernel, spec, batch))


@pytest.mark.parametrize("scale", [1e3, 1e4])
def test_large_scores_stay_finite(kernel, implementation, scale):
    spec = replace(make_spec(packed_of(implementation)), attention_scale=scale)
    assert np.isfinite(forward(kernel, spec, batch_of(spec, [40, 70]))).all()


def test_no_tokens(kernel, implementation):
    spec = make_spec(packed_of(implementation))
    for lengths in ([], [0], [0, 0]):
        assert forward(kernel, spec, batch_of(spec, lengths)).shape == (0, spec.dim)


def test_read_only_input_is_not_written(kernel, implementation):
    spec = make_spec(packed_of(implementation))
    batch = batch_of(spec, [20, 9])
    copies = [array.copy() for array in batch]
    for array in batch:
        array.flags.writeable = False
    forward(kernel, spec, batch)
    for array, copy in zip(batch, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", *FOR_MANY_ROWS.values()])
def test_threads_do_not_change_a_bit(kernel, implementation, kind):
    """Also not where one or two threads take sequences through all layers alone, and four share each layer."""
    spec = make_spec(packed_of(implementation), kind=kind, **FEATURES["mpnet"])
    batch = batch_of(spec, [200, 40, 7, 130, 128, 20, 0, 20, 90, 100, 3, 2])
    results = []
    for count in (1, 2, 4):
        threads.set_threads(count)
        results.append(forward(kernel, spec, batch))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])

"""A whole decoder step: every implementation against the reference over every feature, ragged batches, pages and kinds.

The reference itself is held to a plain forward of one sequence, written out below without pages, groups or batches.
"""

from dataclasses import replace

import numpy as np
import pytest

from fastmixer.kernels import select, threads
from fastmixer.kernels.decoder import reference
from fastmixer.kernels.decoder.pages import PAGE, RUN, KVPages
from fastmixer.kernels.decoder.spec import FEW_TOKENS, DecoderSpec, LayerSpec, Linear, Norm

CONTEXT = 400
# What may differ between implementations, of the largest logit: sums in another order; where numbers are rounded in
# between (int8 rows, pages), a few that lie on the edge go the other way.
TOLERANCE = {"float32": 2e-5, "bfloat16": 6e-3, "int8": 2e-2, "int4": 2e-2}
# Where there are bfloat16 instructions, queries and weights are rounded too.
PAGE_TOLERANCE = {"float32": 0.0, "bfloat16": 4e-3, "int8": 8e-3}

PLAIN = {
    "dim": 48, "heads": 4, "kv_heads": 2, "head_dim": 16, "hidden": 96, "vocab": 67, "layers": 3, "norm": "rmsnorm",
    "activation": "silu", "gated": True, "bias": False, "rotary_dim": 16, "kind": "float32",
}  # fmt: skip
FEATURES = {
    "llama": {},
    "gpt2": {"norm": "layernorm", "activation": "gelu_tanh", "gated": False, "bias": True, "rotary_dim": 0,
             "positions": True, "kv_heads": 4},
    "one kv head": {"kv_heads": 1, "heads": 6},
    "head_dim apart from dim": {"head_dim": 24, "rotary_dim": 24},
    "odd head_dim": {"head_dim": 13, "rotary_dim": 0},
    "part of a head turns": {"rotary_dim": 6},
    "q and k norms": {"qk_norm": True},
    "norms around blocks": {"post_norms": True, "embedding_scale": 6.9},
    "soft caps": {"attention_softcap": 2.0, "logit_softcap": 30.0},
    "scale of its own": {"attention_scale": 0.4},
    "all windows": {"windows": (70, 70, 70)},
    "local and global": {"windows": (5, 0, 5), "qk_norm": True, "post_norms": True, "local_base": 100.0},
    "biases of q, k, v": {"qkv_bias": True},
    "gelu": {"activation": "gelu"},
    "relu, plain": {"activation": "relu", "gated": False},
    "odd sizes": {"dim": 31, "hidden": 37, "vocab": 19, "heads": 3, "kv_heads": 3, "head_dim": 10, "rotary_dim": 10},
    "wide heads": {"head_dim": 80, "rotary_dim": 80, "heads": 2, "kv_heads": 1},
    "heads of 32": {"head_dim": 32, "rotary_dim": 32},
    "heads of 96": {"head_dim": 96, "rotary_dim": 96, "heads": 3, "kv_heads": 1, "windows": (5, 0, 5)},
}  # fmt: skip


# ---- specs of random weights ----


def make_spec(packed, seed=0, **changes):
    """A DecoderSpec of random weights, packed by this module; the same seed gives the same weights to all."""
    sizes, rng = {**PLAIN, **changes}, np.random.default_rng(seed)
    dim, hidden, vocab = sizes["dim"], sizes["hidden"], sizes["vocab"]
    width, kv_width = (sizes[heads] * sizes["head_dim"] for heads in ("heads", "kv_heads"))

    def weight(outputs, inputs, deviation=1.0):
        values = rng.standard_normal((outputs, inputs), dtype=np.float32) * np.float32(deviation / np.sqrt(inputs))
        return packed.pack_weight(values.view(np.uint8), "F32", outputs, inputs, sizes["kind"])

    def linear(outputs, inputs, bias=sizes["bias"]):
        return Linear(weight(outputs, inputs), rng.standard_normal(outputs, dtype=np.float32) if bias else None)

    def norm(width, kind=sizes["norm"]):
        bias = rng.standard_normal(width, dtype=np.float32) * np.float32(0.1) if kind == "layernorm" else None
        return Norm(kind, rng.uniform(0.5, 1.5, width).astype(np.float32), bias, 1e-5)

    windows = sizes.get("windows", (0,) * sizes["layers"])
    places = [0, 0]
    layers = []
    for window in windows:
        group = int(bool(window) and not all(windows))
        half = sizes["rotary_dim"] // 2
        base = sizes.get("local_base", 10000.0) if window else 10000.0
        angles = np.arange(CONTEXT)[:, None] * base ** (-np.arange(half) / max(half, 1))
        turns = half > 0
        post, qk = sizes.get("post_norms"), sizes.get("qk_norm")
        qkv_bias = sizes["bias"] or sizes.get("qkv_bias", False)
        layers.append(
            LayerSpec(
                attention_norm=norm(dim), q=linear(width, dim, qkv_bias), k=linear(kv_width, dim, qkv_bias),
                v=linear(kv_width, dim, qkv_bias), q_norm=norm(sizes["head_dim"]) if qk else None,
                k_norm=norm(sizes["head_dim"]) if qk else None, output=linear(dim, width),
                attention_post_norm=norm(dim) if post else None, feedforward_norm=norm(dim),
                gate=linear(hidden, dim) if sizes["gated"] else None, up=linear(hidden, dim), down=linear(dim, hidden),
                feedforward_post_norm=norm(dim) if post else None, window=window,
                cos=np.cos(angles).astype(np.float32) if turns else None,
                sin=np.sin(angles).astype(np.float32) if turns else None, group=group, index=places[group],
            )
        )  # fmt: skip
        places[group] += 1
    embedding = weight(vocab, dim, np.sqrt(dim))
    return DecoderSpec(
        dim=dim, heads=sizes["heads"], kv_heads=sizes["kv_heads"], head_dim=sizes["head_dim"], hidden=hidden, vocab=vocab,
        activation=sizes["activation"], attention_scale=sizes.get("attention_scale", sizes["head_dim"] ** -0.5),
        attention_softcap=sizes.get("attention_softcap", 0.0), logit_softcap=sizes.get("logit_softcap", 0.0),
        embedding_scale=sizes.get("embedding_scale", 1.0), embedding=embedding,
        positions=rng.standard_normal((CONTEXT, dim), dtype=np.float32) if sizes.get("positions") else None,
        layers=tuple(layers), final_norm=norm(dim), head=Linear(embedding, None),
    )  # fmt: skip


# ---- a few sequences, fed in pieces ----


class Run:
    """Sequences with pages of their own, fed in steps to one decoder."""

    def __init__(self, module, spec, lengths, page_type="float32", seed=1):
        self.decoder, self.spec = module.Decoder(spec), spec
        rng = np.random.default_rng(seed)
        self.tokens = [rng.integers(0, spec.vocab, length) for length in lengths]
        self.fed = [0] * len(lengths)
        pages_each = -(-max(lengths) // PAGE) + 1
        layers = [sum(layer.group == group for layer in spec.layers) for group in (0, 1)]
        layers = tuple(count for count in layers if count)
        total = pages_each * len(lengths)
        self.pages = KVPages(layers, (total,) * len(layers), spec.kv_heads, spec.head_dim, page_type)
        for arrays in (self.pages.keys, self.pages.values, self.pages.key_scales, self.pages.value_scales):
            for array in arrays:  # what was never written must never be read
                array[...] = 127 if array.dtype == np.int8 else 0x7FC0 if array.dtype == np.uint16 else np.nan
        self.tables = np.stack(
            [rng.permutation(total).reshape(len(lengths), pages_each).astype(np.int32) for _ in layers]
        )

    def step(self, counts, wanted=None, hidden=None, written=None):
        """Feeds the next counts[s] tokens of each sequence; logits [wanted, vocab], of all tokens by default."""
        counts = np.asarray(counts)
        ids = np.concatenate([t[f : f + n] for t, f, n in zip(self.tokens, self.fed, counts, strict=True)])
        starts = np.concatenate([[0], np.cumsum(counts)])
        wanted = np.arange(len(ids)) if wanted is None else np.asarray(wanted, np.int64)
        logits = np.full((len(wanted), self.spec.vocab), np.nan, np.float32)
        self.decoder.forward(
            ids, starts, np.array(self.fed), self.pages, self.tables, wanted, logits, hidden,
            None if written is None else np.array(written, np.uint8),
        )  # fmt: skip
        self.fed = [f + int(n) for f, n in zip(self.fed, counts, strict=True)]
        return logits

    def forget_behind_windows(self):
        """Pages that a window has passed are given back, and used by nobody."""
        for group in range(len(self.tables)):
            window = next(layer.window for layer in self.spec.layers if layer.group == group)
            for sequence, fed in enumerate(self.fed):
                if window:
                    self.tables[group, sequence, : max(0, fed - window + 1) // PAGE] = -1


def packed_of(implementation):
    return select.kernel_module("packed", implementation)


def close(actual, expected, kind="float32", page_type="float32"):
    limit = (TOLERANCE[kind] + PAGE_TOLERANCE[page_type]) * max(1.0, np.abs(expected).max())
    assert np.isfinite(actual).all()
    assert np.abs(actual - expected).max() <= limit


# ---- the reference, against a forward that is as plain as can be ----


def plain_forward(spec, ids):
    """float32 [tokens, vocab] of one sequence: no pages, no batches; float64 throughout."""

    def values(linear):
        return linear.weight.arrays["rows"].astype(np.float64)

    def apply(linear, x):
        y = x @ values(linear).T
        return y if linear.bias is None else y + linear.bias

    def normalized(norm, x):
        if norm is None:
            return x
        centred = x - x.mean(-1, keepdims=True) if norm.kind == "layernorm" else x
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.epsilon) * norm.weight
        return y if norm.bias is None else y + norm.bias

    def capped(x, cap):
        return cap * np.tanh(x / cap) if cap else x

    def act(x):
        erf = np.vectorize(__import__("math").erf)
        return {
            "silu": lambda: x / (1 + np.exp(-x)), "relu": lambda: np.maximum(x, 0),
            "gelu": lambda: 0.5 * x * (1 + erf(x / np.sqrt(2))),
            "gelu_tanh": lambda: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        }[spec.activation]()  # fmt: skip

    x = spec.embedding.arrays["rows"][ids].astype(np.float64) * spec.embedding_scale
    if spec.positions is not None:
        x = x + spec.positions[: len(ids)]
    for layer in spec.layers:
        normed = normalized(layer.attention_norm, x)
        attended = []
        for head in range(spec.heads):
            kv_head = head * spec.kv_heads // spec.heads
            own = slice(head * spec.head_dim, (head + 1) * spec.head_dim)
            shared = slice(kv_head * spec.head_dim, (kv_head + 1) * spec.head_dim)
            q = normalized(layer.q_norm, apply(layer.q, normed)[:, own])
            k = normalized(layer.k_norm, apply(layer.k, normed)[:, shared])
            v = apply(layer.v, normed)[:, shared]
            if layer.cos is not None:
                half = layer.cos.shape[1]
                turn = np.exp(1j * np.arctan2(layer.sin[: len(ids)], layer.cos[: len(ids)]))
                for y in (q, k):
                    turned = (y[:, :half] + 1j * y[:, half : 2 * half]) * turn
                    y[:, :half], y[:, half : 2 * half] = turned.real, turned.imag
            blends = []
            for t in range(len(ids)):
                first = max(0, t - layer.window + 1) if layer.window else 0
                scores = capped(k[first : t + 1] @ q[t] * spec.attention_scale, spec.attention_softcap)
                weights = np.exp(scores - scores.max())
                blends.append(weights @ v[first : t + 1] / weights.sum())
            attended.append(blends)
        branch = apply(layer.output, np.concatenate([np.array(a) for a in attended], axis=1))
        x = x + normalized(layer.attention_post_norm, branch)
        normed = normalized(layer.feedforward_norm, x)
        wide = apply(layer.up, normed)
        wide = act(wide) if layer.gate is None else act(apply(layer.gate, normed)) * wide
        x = x + normalized(layer.feedforward_post_norm, apply(layer.down, wide))
    return capped(apply(spec.head, normalized(spec.final_norm, x)), spec.logit_softcap)


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_against_the_plain_forward(kernel, implementation, feature):
    run = Run(kernel, make_spec(packed_of(implementation), **FEATURES[feature]), [90])
    plain = plain_forward(make_spec(packed_of("reference"), **FEATURES[feature]), run.tokens[0])
    close(run.step([90]), plain)


# ---- every implementation, against the reference ----


def pair(kernel, implementation, lengths, page_type="float32", seed=0, **changes):
    """The same run by the implementation under test and by the reference."""
    runs = [
        Run(module, make_spec(packed_of(name), seed, **changes), lengths, page_type)
        for module, name in ((kernel, implementation), (reference, "reference"))
    ]
    return runs


@pytest.mark.parametrize("page_type", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("feature", FEATURES)
def test_ragged_batches_of_prefill_and_decode(kernel, implementation, feature, page_type):
    runs = pair(kernel, implementation, [3, 150, 70, 66, 1], page_type, **FEATURES[feature])
    # prefill of some; then decode of those beside prefill of others; single tokens; nothing for some
    for counts in ([2, 100, 0, 64, 0], [1, 1, 69, 1, 0], [0, 48, 1, 1, 1], [0, 1, 0, 0, 0]):
        actual, expected = (run.step(counts) for run in runs)
        close(actual, expected, page_type=page_type)


@pytest.mark.parametrize("page_type", ["float32", "int8"])
@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("feature", ["llama", "gpt2", "norms around blocks", "odd sizes"])
def test_kinds_of_weights(kernel, implementation, feature, kind, page_type):
    runs = pair(kernel, implementation, [40, 5], page_type, kind=kind, **FEATURES[feature])
    for counts in ([39, 2], [1, 1], [0, 2]):
        actual, expected = (run.step(counts) for run in runs)
        close(actual, expected, kind, page_type)


def test_random_specs(kernel, implementation, rng):
    for seed in range(12):
        heads = int(rng.choice([1, 2, 4, 6]))
        kv_heads = int(rng.choice([n for n in range(1, heads + 1) if heads % n == 0]))
        head_dim = int(rng.choice([8, 10, 16, 33, 64]))
        changes = {
            "dim": int(rng.integers(8, 100)), "hidden": int(rng.integers(8, 150)), "heads": heads, "kv_heads": kv_heads,
            "head_dim": head_dim, "rotary_dim": 2 * int(rng.integers(0, head_dim // 2 + 1)), "gated": bool(rng.integers(2)),
            "bias": bool(rng.integers(2)), "norm": str(rng.choice(["rmsnorm", "layernorm"])),
            "activation": str(rng.choice(["silu", "gelu", "gelu_tanh", "relu"])), "qk_norm": bool(rng.integers(2)),
            "post_norms": bool(rng.integers(2)), "windows": tuple(int(w) for w in rng.choice([0, 70], 3)),
            "attention_softcap": float(rng.choice([0, 5])), "logit_softcap": float(rng.choice([0, 5])),
            "positions": bool(rng.integers(2)), "embedding_scale": float(rng.choice([1, 3])),
        }  # fmt: skip
        if not all(changes["windows"]) and any(changes["windows"]) and changes["windows"][0]:
            changes["windows"] = changes["windows"][::-1]
        runs = pair(kernel, implementation, [100, 9], seed=seed, **changes)
        for counts in ([80, 1], [19, 7], [1, 1]):
            actual, expected = (run.step(counts) for run in runs)
            close(actual, expected)


@pytest.mark.parametrize("feature", ["llama", "gpt2", "local and global", "all windows", "soft caps"])
@pytest.mark.parametrize("chunk", [1, 7, 64, 100])
def test_chunked_prefill_equals_whole(kernel, implementation, feature, chunk):
    spec = make_spec(packed_of(implementation), **FEATURES[feature])
    length = 40 if chunk == 1 else 210
    whole = Run(kernel, spec, [length]).step([length])
    run, parts = Run(kernel, spec, [length]), []
    while run.fed[0] < length:
        parts.append(run.step([min(chunk, length - run.fed[0])]))
    close(np.concatenate(parts), whole)


@pytest.mark.parametrize("page_type", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("heads, length", [(1, 385), (2, 385), (3, 337), (4, 385)])
def test_the_last_tile_of_a_long_prompt_has_one_query(kernel, implementation, heads, length, page_type):
    """As few rows as in decoding, but they see more pages than those are read at a time."""
    runs = pair(kernel, implementation, [length + 1], page_type, heads=heads, kv_heads=1, head_dim=16)
    for counts in ([length], [1]):
        actual, expected = (run.step(counts) for run in runs)
        close(actual, expected, page_type=page_type)


@pytest.mark.parametrize("page_type", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("feature", ["local and global", "all windows"])
def test_windows_give_pages_back(kernel, implementation, feature, page_type):
    runs = pair(kernel, implementation, [300, 130], page_type, **FEATURES[feature])
    whole = Run(reference, runs[1].spec, [300, 130], page_type).step([300, 130])
    fed = np.zeros(2, np.int64)
    for counts in ([128, 20], [100, 60], [1, 1], [30, 1], [40, 48], [1, 0]):
        actual, expected = (run.step(counts) for run in runs)
        close(actual, expected, page_type=page_type)
        known = np.concatenate([np.arange(fed[0], fed[0] + counts[0]), 300 + np.arange(fed[1], fed[1] + counts[1])])
        close(actual, whole[known], page_type=page_type)
        fed += counts
        for run in runs:
            run.forget_behind_windows()
    window = next(group for group in range(len(runs[0].tables)) if (runs[0].tables[group] < 0).any())
    assert (runs[0].tables[window, 0, :3] == -1).all()
    if feature == "local and global":
        assert (runs[0].tables[0] >= 0).all()


def test_a_sequence_does_not_depend_on_the_others(kernel, implementation):
    spec = make_spec(packed_of(implementation))
    lengths = [100, 30, 64]
    together = Run(kernel, spec, lengths)
    alone = [Run(kernel, spec, [length]) for length in lengths]
    for sequence, run in enumerate(alone):
        run.tokens = [together.tokens[sequence]]
    for counts in ([90, 20, 63], [1, 1, 1], [5, 5, 0]):
        logits = np.split(together.step(counts), np.cumsum(counts)[:-1])
        for run, count, expected in zip(alone, counts, logits, strict=True):
            if count:
                close(run.step([count]), expected)


@pytest.fixture
def native(implementation):
    """An implementation whose bits can be held to each other."""
    if not implementation.startswith("native"):
        pytest.skip("NumPy's and Numba's sums depend on the number of rows")
    return implementation


def of_every_form(test):
    """test(feature, page_type, kind) with all that decides in what order sums are made."""
    test = pytest.mark.parametrize("feature", ["llama", "local and global", "heads of 32", "odd sizes"])(test)
    test = pytest.mark.parametrize("page_type", ["float32", "bfloat16", "int8"])(test)
    return pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4"])(test)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_bits_of_packed_weights_do_not_depend_on_the_other_sequences(kernel, native, kind):
    """Single tokens, long and short prompts, each beside another one that may be multiplied otherwise."""
    spec = make_spec(packed_of(native), kind=kind)
    lengths, steps = [60, 130, 20], ([50, 0, 3], [1, 100, 1], [1, 1, 10], [0, 20, 1])
    together = Run(kernel, spec, lengths, "bfloat16")
    found = [np.split(together.step(counts), np.cumsum(counts)[:-1]) for counts in steps]
    for sequence, length in enumerate(lengths):
        alone = Run(kernel, spec, [length], "bfloat16")
        alone.tokens = [together.tokens[sequence]]
        for counts, logits in zip(steps, found, strict=True):
            if counts[sequence]:
                np.testing.assert_array_equal(alone.step([counts[sequence]]), logits[sequence])


@of_every_form
def test_few_tokens_at_once_are_bit_for_bit_what_they_are_one_by_one(kernel, native, feature, page_type, kind):
    """As many as guesses are checked at once: from the last page of a run into the next, alone and beside another sequence."""
    spec, read = make_spec(packed_of(native), kind=kind, **FEATURES[feature]), RUN * PAGE - 5
    lengths = [read + FEW_TOKENS, 6, 200]  # beside one that is written and one that is read
    one_by_one = Run(kernel, spec, lengths[:1], page_type)
    one_by_one.step([read], written=[0])
    expected = np.concatenate([one_by_one.step([1], written=[1]) for _ in range(FEW_TOKENS)])
    for counts in ([[FEW_TOKENS, 0, 0]], [[2, 1, 0], [3, 0, 60], [5, 1, 1], [6, 1, 70]], [[7, 1, 20], [9, 1, 5]]):
        run = Run(kernel, spec, lengths, page_type)
        run.step([read, 3, 0], written=[0, 0, 0])
        # the others' logits are not asked for: the head has no more rows than are written
        found = np.concatenate([run.step(count, wanted=range(count[0]), written=[1, 1, 0]) for count in counts])
        np.testing.assert_array_equal(found, expected)


@of_every_form
def test_a_text_is_read_to_the_same_bits_however_it_is_cut(kernel, native, feature, page_type, kind):
    """So a prompt whose beginning is known already, where it ends in a page, writes what it writes when it is read whole."""
    spec, length = make_spec(packed_of(native), kind=kind, **FEATURES[feature]), RUN * PAGE + 70

    def read(counts):
        run = Run(kernel, spec, [length + 4], page_type)
        for count in counts:
            last = run.step([count], wanted=[count - 1], written=[0])
        return np.concatenate([last, *(run.step([1], written=[1]) for _ in range(4))])

    whole = read([length])
    for counts in ([PAGE, length - PAGE], [length - 5, 5], [length - 1, 1], [100, 9, 1, length - 110]):
        np.testing.assert_array_equal(read(counts), whole)


@pytest.mark.parametrize("page_type", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("feature", ["llama", "local and global", "heads of 32"])
def test_what_follows_does_not_depend_on_what_was_wanted(kernel, implementation, feature, page_type):
    """Keys and values of all layers are there for tokens of which nothing was wanted."""
    runs = pair(kernel, implementation, [90, 75, 3], page_type, **FEATURES[feature])
    for counts, wanted in (([80, 70, 2], [79, 151]), ([7, 1, 0], []), ([0, 1, 1], [0, 1]), ([3, 3, 0], [2, 5, 1])):
        actual, expected = (run.step(counts, wanted) for run in runs)
        if wanted:
            close(actual, expected, page_type=page_type)


def test_wanted_tokens_and_hidden(kernel, implementation):
    spec = make_spec(packed_of(implementation))
    everything = Run(kernel, spec, [20, 30]).step([20, 30])
    for wanted in ([], [0], [49], [19, 49], [7, 3, 3, 30]):
        hidden = np.full((len(wanted), spec.dim), np.nan, np.float32)
        close(Run(kernel, spec, [20, 30]).step([20, 30], wanted, hidden), everything[wanted]) if wanted else None
        if wanted:
            logits = np.empty((len(wanted), spec.vocab), np.float32)
            packed_of(implementation).packed_linear(hidden, spec.head.weight, spec.head.bias, logits)
            close(logits, everything[wanted])
    # without logits, or without anything: keys and values are written all the same
    run = Run(kernel, spec, [20])
    run.decoder.forward(
        run.tokens[0][:19], np.array([0, 19]), np.array([0]), run.pages, run.tables, np.empty(0, np.int64), None, None
    )
    run.fed = [19]
    close(run.step([1]), everything[19:20])


def test_no_tokens(kernel, implementation):
    run = Run(kernel, make_spec(packed_of(implementation)), [5, 5])
    assert run.step([0, 0]).shape == (0, PLAIN["vocab"])


def test_threads_do_not_change_a_bit(kernel, implementation):
    for kind in ("float32", "int8"):
        results = []
        for count in (1, 2, 4):
            threads.set_threads(count)
            run = Run(kernel, make_spec(packed_of(implementation), kind=kind), [330, 40])
            results.append(np.concatenate([run.step(counts) for counts in ([329, 39], [1, 1])]))
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("wanted", [None, [329, 1000]])
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("feature", ["gpt2", "local and global"])
def test_blocks_of_many_tokens_do_not_change_a_bit(kernel, implementation, feature, kind, wanted):
    """So many that each thread takes blocks of them from attention to attention; one thread takes them all together."""
    results = []
    for count in (1, 2, 4):
        threads.set_threads(count)
        run = Run(kernel, make_spec(packed_of(implementation), kind=kind, **FEATURES[feature]), [331, 350, 341])
        first = run.step([330, 349, 340], wanted)
        results.append(np.concatenate([first, run.step([1, 1, 1])]))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_head_of_its_own_with_a_bias(kernel, implementation):
    runs = []
    for module, name in ((kernel, implementation), (reference, "reference")):
        spec, other = make_spec(packed_of(name)), make_spec(packed_of(name), seed=9, bias=True)
        bias = np.linspace(-1, 1, spec.vocab, dtype=np.float32)
        runs.append(Run(module, replace(spec, head=Linear(other.embedding, bias)), [10]))
    actual, expected = (run.step([10]) for run in runs)
    close(actual, expected)

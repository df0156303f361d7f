"""The named workloads: every op at the sizes of GPT-2 124M, and its whole training step.

FLOPs count a fused multiply-add as two. Bytes count each array that must come from or go to memory once; arrays that
fit the last-level cache and were just used (activations of 256 tokens) are not counted. Knows nothing of timing.
"""

from collections.abc import Callable, Iterator

import numpy as np

from fastmixer.bench.arrays import empty, normal, zeros
from fastmixer.bench.workload import Workload
from fastmixer.ops.attention import attention, attention_backward
from fastmixer.ops.bfloat16 import round_weight
from fastmixer.ops.cross_entropy import head_loss
from fastmixer.ops.dropout import dropout
from fastmixer.ops.embedding import embedding, embedding_backward
from fastmixer.ops.feedforward import feedforward
from fastmixer.ops.matmul import linear, linear_backward, matmul
from fastmixer.ops.norm import layernorm, layernorm_backward
from fastmixer.ops.optimizer import adamw_step
from fastmixer.ops.positions import rotary_tables, rotate
from fastmixer.ops.sampling import sample
from fastmixer.ops.search import search

FLOAT = 4  # bytes
VOCAB, DIM, HIDDEN, CONTEXT = 50257, 768, 3072, 1024
PADDED_VOCAB = 50304

# tokens x out x in: the linear layers of GPT-2 124M (output, qkv, up, down, head) on 4 x 64 tokens.
LINEAR_SHAPES = ((256, 768, 768), (256, 2304, 768), (256, 3072, 768), (256, 768, 3072), (256, 50304, 768))

Call = Callable[[], object]
Rng = np.random.Generator


def workloads(op: str | None = None) -> list[Workload]:
    """All workloads in the order of the pipeline, or those of one op."""
    found = [workload for workload in _all() if op is None or workload.op == op]
    if not found:
        raise ValueError(f"bench: op must be one of {', '.join(ops())}; got {op!r}")
    return found


def ops() -> list[str]:
    """Names of the ops that have workloads."""
    return list(dict.fromkeys(workload.op for workload in _all()))


def _all() -> Iterator[Workload]:
    yield from _embedding()
    yield from _positions()
    yield from _norm()
    yield from _matmul()
    yield from _matmul_bfloat16()
    yield from _feedforward()
    yield from _attention()
    yield from _dropout()
    yield from _cross_entropy()
    yield from _optimizer()
    yield from _sampling()
    yield from _search()
    yield from _step()


def _embedding() -> Iterator[Workload]:
    count = 4096
    moved = 2.0 * count * DIM * FLOAT

    def gather(rng: Rng) -> Call:
        table, ids, out = normal(rng, VOCAB, DIM), rng.integers(0, VOCAB, count), empty(count, DIM)
        return lambda: embedding(table, ids, out=out)

    def gradient(rng: Rng) -> Call:
        d_out, ids, values = normal(rng, count, DIM), rng.integers(0, VOCAB, count), empty(count, DIM)
        return lambda: embedding_backward(d_out, ids, VOCAB, values=values)

    def add_at(rng: Rng) -> Call:
        d_out, ids = normal(rng, count, DIM), rng.integers(0, VOCAB, count)
        d_table = zeros(VOCAB, DIM)
        return lambda: np.add.at(d_table, ids, d_out)

    yield Workload("embedding", f"gather {count} ids of {VOCAB}x{DIM}", gather, bytes=moved, stream="update")
    yield Workload(
        "embedding", f"gradient {count} ids into {VOCAB}x{DIM}", gradient, bytes=moved, stream="update",
        numpy=add_at, target=("ratio", 20),
    )  # fmt: skip


def _positions() -> Iterator[Workload]:
    shape = (4, 12, 256, 64)

    def rotary(rng: Rng) -> Call:
        x = normal(rng, *shape)
        cos, sin = rotary_tables(CONTEXT, shape[-1])
        return lambda: rotate(x, cos, sin, out=x)

    yield Workload("positions", "rotate 4x12x256x64", rotary, bytes=2.0 * np.prod(shape) * FLOAT, stream="update")


def _norm() -> Iterator[Workload]:
    tokens = 4096
    one = float(tokens * DIM * FLOAT)

    def forward(rng: Rng) -> Call:
        x, weight, bias, out = (
            normal(rng, tokens, DIM),
            normal(rng, DIM),
            normal(rng, DIM),
            empty(tokens, DIM),
        )
        return lambda: layernorm(x, weight, bias, out=out)

    def backward(rng: Rng) -> Call:
        x, weight, bias = normal(rng, tokens, DIM), normal(rng, DIM), normal(rng, DIM)
        d_out, d_weight, d_bias = normal(rng, tokens, DIM), zeros(DIM), zeros(DIM)
        _, saved = layernorm(x, weight, bias, return_saved=True)
        d_x = empty(*x.shape)
        return lambda: layernorm_backward(d_out, x, weight, saved, d_weight, d_bias, d_x=d_x)

    yield Workload("norm", f"layernorm forward {tokens}x{DIM}", forward, bytes=2 * one, stream="update")
    yield Workload("norm", f"layernorm backward {tokens}x{DIM}", backward, bytes=3 * one, stream="update")


def _matmul() -> Iterator[Workload]:
    for tokens, n, k in LINEAR_SHAPES:
        flops = 2.0 * tokens * n * k
        weights = float(n * k * FLOAT)
        shape = f"{tokens}x{n}x{k}"
        head = n == PADDED_VOCAB

        # The head's weight is [vocab, dim]; all others are [in, out].
        def forward(rng: Rng, tokens=tokens, n=n, k=k, head=head) -> Call:
            x, weight, out = (
                normal(rng, tokens, k),
                normal(rng, *((n, k) if head else (k, n))),
                empty(tokens, n),
            )
            return lambda: linear(x, weight, transpose_weight=head, out=out)

        def input_gradient(rng: Rng, tokens=tokens, n=n, k=k, head=head) -> Call:
            d_out, weight, d_x = (
                normal(rng, tokens, n),
                normal(rng, *((n, k) if head else (k, n))),
                empty(tokens, k),
            )
            return lambda: matmul(d_out, weight, transpose_b=not head, out=d_x)

        def weight_gradient(rng: Rng, tokens=tokens, n=n, k=k, head=head) -> Call:
            x, d_out, d_weight = (
                normal(rng, tokens, k),
                normal(rng, tokens, n),
                zeros(*((n, k) if head else (k, n))),
            )
            if head:
                return lambda: matmul(d_out, x, transpose_a=True, out=d_weight, accumulate=True)
            return lambda: matmul(x, d_out, transpose_a=True, out=d_weight, accumulate=True)

        target = ("peak", 0.80)
        yield Workload("matmul", f"{shape} forward", forward, flops, weights, target=target)
        yield Workload("matmul", f"{shape} d_x", input_gradient, flops, weights, target=target)
        yield Workload("matmul", f"{shape} d_weight", weight_gradient, flops, 2 * weights, target=target)


def _matmul_bfloat16() -> Iterator[Workload]:
    """The linear layer as it trains in bfloat16: x and d_out are float32 and rounded on their way."""
    for tokens, n, k in LINEAR_SHAPES[:-1]:
        flops = 2.0 * tokens * n * k
        shape = f"{tokens}x{n}x{k}"

        def forward(rng: Rng, tokens=tokens, n=n, k=k) -> Call:
            x, weight, out = normal(rng, tokens, k), normal(rng, k, n), empty(tokens, n)
            rounded = round_weight(weight)
            return lambda: linear(x, weight, rounded=rounded, out=out)

        def plain_forward(rng: Rng, tokens=tokens, n=n, k=k) -> Call:
            x, weight, out = normal(rng, tokens, k), normal(rng, k, n), empty(tokens, n)
            return lambda: np.matmul(x, weight, out=out)

        def backward(rng: Rng, tokens=tokens, n=n, k=k) -> Call:
            x, weight, d_out = normal(rng, tokens, k), normal(rng, k, n), normal(rng, tokens, n)
            d_weight, d_x, rounded = (
                zeros(k, n),
                empty(tokens, k),
                round_weight(weight),
            )
            return lambda: linear_backward(d_out, x, weight, d_weight, d_x=d_x, rounded=rounded)

        def plain_backward(rng: Rng, tokens=tokens, n=n, k=k) -> Call:
            x, weight, d_out = normal(rng, tokens, k), normal(rng, k, n), normal(rng, tokens, n)
            d_weight, d_x = zeros(k, n), empty(tokens, k)

            def call() -> None:
                np.matmul(d_out, weight.T, out=d_x)
                d_weight.__iadd__(x.T @ d_out)

            return call

        for name, prepare, plain, work in (
            ("forward", forward, plain_forward, flops), ("d_x, d_weight", backward, plain_backward, 2 * flops),
        ):  # fmt: skip
            yield Workload(
                "bfloat16", f"{shape} {name}", prepare, work, 0.5 * n * k * FLOAT, numpy=plain,
                target=("peak", 0.70), precision="bfloat16",
            )  # fmt: skip


def _feedforward() -> Iterator[Workload]:
    tokens = 256

    def forward(rng: Rng) -> Call:
        x, w_up, b_up = normal(rng, tokens, DIM), 0.02 * normal(rng, DIM, HIDDEN), normal(rng, HIDDEN)
        w_down, b_down, out = 0.02 * normal(rng, HIDDEN, DIM), normal(rng, DIM), empty(tokens, DIM)
        return lambda: feedforward(x, w_up, b_up, w_down, b_down, "gelu_tanh", residual=x, out=out)

    yield Workload(
        "feedforward", f"forward {tokens}x{DIM}x{HIDDEN} gelu, residual", forward,
        4.0 * tokens * DIM * HIDDEN, 2.0 * DIM * HIDDEN * FLOAT,
    )  # fmt: skip


def _attention() -> Iterator[Workload]:
    for shape, target in (((4, 12, 256, 64), ("ratio", 5.0)), ((1, 12, 1024, 64), None)):
        batch, heads, time, head_dim = shape
        flops = 2.0 * batch * heads * time * time * head_dim  # two products, half of them masked
        name = "x".join(map(str, shape)) + " causal"

        def forward(rng: Rng, shape=shape) -> Call:
            q, k, v, out = (normal(rng, *shape) for _ in range(4))
            return lambda: attention(q, k, v, causal=True, out=out)

        def both(rng: Rng, shape=shape) -> Call:
            q, k, v, out, d_out, d_q, d_k, d_v = (normal(rng, *shape) for _ in range(8))

            def call() -> None:
                _, log_sum_exp = attention(q, k, v, causal=True, out=out, return_saved=True)
                attention_backward(d_out, q, k, v, out, log_sum_exp, causal=True, d_q=d_q, d_k=d_k, d_v=d_v)

            return call

        yield Workload("attention", f"forward {name}", forward, flops)
        yield Workload("attention", f"forward+backward {name}", both, 3.5 * flops, target=target)


def _dropout() -> Iterator[Workload]:
    count = 1 << 22

    def forward(rng: Rng) -> Call:
        x, out = normal(rng, count), empty(count)
        return lambda: dropout(x, 0.1, 7, out=out)

    yield Workload("dropout", f"{count} values", forward, bytes=2.0 * count * FLOAT, stream="update")


def _cross_entropy() -> Iterator[Workload]:
    tokens = 256

    def both(rng: Rng) -> Call:
        x, weight, targets = (
            normal(rng, tokens, DIM),
            0.02 * normal(rng, PADDED_VOCAB, DIM),
            rng.integers(0, VOCAB, tokens),
        )
        d_x, d_weight = empty(tokens, DIM), zeros(PADDED_VOCAB, DIM)
        return lambda: head_loss(x, weight, targets, d_x=d_x, d_weight=d_weight)

    yield Workload(
        "cross_entropy", f"head + loss, forward+backward {tokens}x{DIM}x{PADDED_VOCAB}", both,
        6.0 * tokens * DIM * PADDED_VOCAB, 4.0 * DIM * PADDED_VOCAB * FLOAT, heavy=True,
    )  # fmt: skip


def _optimizer() -> Iterator[Workload]:
    count = 1 << 24

    def adamw(rng: Rng) -> Call:
        p, m, v, g = (normal(rng, count) for _ in range(4))
        np.abs(v, out=v)
        return lambda: adamw_step(
            p, m, v, g, learning_rate=1e-3, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1, step=10,
            gradient_scale=1.0, zero_gradient=False,
        )  # fmt: skip

    yield Workload("optimizer", f"adamw {count} parameters", adamw, bytes=7.0 * count * FLOAT, stream="update")


def _sampling() -> Iterator[Workload]:
    def top_p(rng: Rng) -> Call:
        logits = 3 * normal(rng, 1, VOCAB)
        generator = np.random.default_rng(0)
        return lambda: sample(logits, temperature=0.8, top_k=50, top_p=0.95, generator=generator)

    yield Workload("sampling", f"top-k 50, top-p 0.95 of {VOCAB}", top_p, bytes=1.0 * VOCAB * FLOAT)


def _search() -> Iterator[Workload]:
    """Vectors of sentences, as MiniLM makes them, beside the products of all of them and a partition."""
    rows, dim, k = 100_000, 384, 10

    for count in (1, 16, 192):

        def fused(rng: Rng, count=count) -> Call:
            vectors, queries = normal(rng, rows, dim), normal(rng, count, dim)
            return lambda: search(vectors, queries, k)

        def plain(rng: Rng, count=count) -> Call:
            vectors, queries = normal(rng, rows, dim), normal(rng, count, dim)

            def call() -> tuple[np.ndarray, np.ndarray]:
                scores = queries @ vectors.T
                ids = np.argpartition(scores, -k, axis=1)[:, -k:]
                best = np.take_along_axis(scores, ids, axis=1)
                order = np.argsort(-best, axis=1)
                return np.take_along_axis(ids, order, axis=1), np.take_along_axis(best, order, axis=1)

            return call

        yield Workload(
            "search", f"top {k} of {rows}x{dim} for {count}", fused, 2.0 * rows * dim * count, 1.0 * rows * dim * FLOAT,
            numpy=plain,
        )  # fmt: skip


def _step() -> Iterator[Workload]:
    yield step_workload(4, 64, target=("ratio", 2.0))


def step_workload(
    batch: int, time: int, precision: str = "float32", target: tuple[str, float] | None = None
) -> Workload:
    """A training step of GPT-2 124M: loss, gradients, AdamW."""

    def prepare(rng: Rng) -> Call:
        # Imported here: everything else in this file needs the ops only.
        from fastmixer.model import ModelConfig, Transformer
        from fastmixer.train import AdamW

        model = Transformer(ModelConfig.preset("gpt2"), seed=0, precision=precision, force_precision=True)
        optimizer = AdamW(model.parameters, learning_rate=3e-4)
        ids, targets = rng.integers(0, VOCAB, (2, batch, time))

        def call() -> float:
            loss = model.forward_backward(ids, targets)
            optimizer.step()
            return loss

        return call

    parameters = 124_439_808
    attention_flops = 12 * 6.0 * batch * time * time * DIM  # causal: half of 12 * batch * time^2 * dim a layer
    return Workload(
        "step", f"GPT-2 124M, batch {batch}x{time}, {precision}", prepare,
        6.0 * parameters * batch * time + attention_flops, 7.0 * parameters * FLOAT, target=target, heavy=True,
        precision=precision,
    )  # fmt: skip

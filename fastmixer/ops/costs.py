"""What each kernel call has to do at least: floating-point operations, and bytes to and from memory, from its arguments.

A fused multiply-add counts as two. Bytes are those of arrays too large to stay in cache between steps (weights, moments,
activations of all layers). Knows nothing of time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

FLOAT = 4


class Cost(NamedTuple):
    """label: the row of a profile that the call belongs to; flops, bytes: its least work; precision of its products;
    stream: how the bytes pass, "read" or, where about half of them are written, "update"."""

    label: str
    flops: float = 0.0
    bytes: float = 0.0
    precision: str = "float32"
    stream: str = "read"


def cost(op: str, function: str, arguments: tuple[Any, ...]) -> Cost:
    """The cost of kernels(op).function(*arguments); a function that is not known here costs nothing, under its own name."""
    rule = _RULES.get((op, function))
    return Cost(f"{op}: {function}") if rule is None else rule(*arguments)


def _linear(label: str, products: int, precision: str = "float32", weight_bytes: float = FLOAT) -> Callable[..., Cost]:
    """A rule for a linear layer's kernel: `products` of [tokens, inputs] and [inputs, outputs], over a weight of so many
    bytes an element."""

    def rule(tokens: int, inputs: int, outputs: int) -> Cost:
        work = 2.0 * tokens * inputs * outputs
        return Cost(label, products * work, weight_bytes * inputs * outputs, precision)

    return rule


def _forward(x: Any, weight: Any, bias: Any, multiplier: Any, residual: Any, pre: Any, out: Any, *rest: Any) -> Cost:
    return _linear("linear, forward", 1)(len(x), x.shape[1], out.shape[1])


def _forward_bfloat16(
    x: Any, weight: Any, bias: Any, multiplier: Any, residual: Any, pre: Any, out: Any, *rest: Any
) -> Cost:
    return _linear("linear, forward", 1, "bfloat16", 2)(len(x), x.shape[1], out.shape[1])


def _d_x(d_out: Any, weight: Any, pre: Any, multiplier: Any, d_x: Any, *rest: Any) -> Cost:
    return _linear("linear, d_x", 1)(len(d_out), d_x.shape[1], d_out.shape[1])


def _d_weight(x: Any, d_out: Any, d_weight: Any, transpose: Any, accumulate: Any = True) -> Cost:
    moved = (1 + bool(accumulate)) * FLOAT
    return _linear("linear, d_weight", 1, weight_bytes=moved)(len(x), x.shape[1], d_out.shape[1])


def _backward_bfloat16(
    d_out: Any, x: Any, weight: Any, pre: Any, multiplier: Any, d_x: Any, d_multiplier: Any, d_weight: Any, *rest: Any
) -> Cost:
    gradient = 0 if d_weight is None else 1 + bool(rest[-1])
    rule = _linear("linear, d_x and d_weight", 1 if d_weight is None else 2, "bfloat16", 2 + gradient * FLOAT)
    return rule(len(d_out), d_x.shape[1], d_out.shape[1])


def _matmul(a: Any, b: Any, out: Any, transpose_a: Any, *rest: Any) -> Cost:
    depth = a.shape[0] if transpose_a else a.shape[1]
    return Cost("matmul", 2.0 * out.size * depth, FLOAT * b.size)


def _feedforward(label: str, times: int) -> Callable[..., Cost]:
    def rule(x: Any, w_gate: Any, w_up: Any) -> Cost:
        matrices = 2 if w_gate is None else 3
        return Cost(
            label, times * matrices * 2.0 * len(x) * w_up.size, matrices * FLOAT * w_up.size * (1 if times == 1 else 3)
        )

    return rule


def _attention(label: str, products: float, precision: str = "float32") -> Callable[..., Cost]:
    """products of [queries, keys, head_dim], over the pairs that see each other."""

    def rule(q: Any, spans: Any, before: int, after: int) -> Cost:
        pairs = 0
        for _, q_start, q_stop, k_start, k_stop in spans:
            keys = k_stop - k_start
            position = np.arange(q_stop - q_start) + keys - (q_stop - q_start)
            first = np.clip(position - before, 0, keys) if before >= 0 else 0
            end = np.clip(position + after + 1, 0, keys) if after >= 0 else np.full(len(position), keys)
            pairs += int((end - first).sum())
        return Cost(label, products * 2.0 * pairs * q.shape[1] * q.shape[3], 0.0, precision)

    return rule


def _attention_forward(precision: str) -> Callable[..., Cost]:
    rule = _attention("attention, forward", 2, precision)
    return lambda q, k, v, spans, scale, before, after, *_: rule(q, spans, before, after)


def _attention_backward(precision: str) -> Callable[..., Cost]:
    rule = _attention("attention, backward", 5, precision)
    return lambda d_out, q, k, v, out, lse, spans, scale, before, after, *_: rule(q, spans, before, after)


def _moved(label: str, arrays: float) -> Callable[..., Cost]:
    """`arrays` times the first argument's bytes pass through memory; where it is more than once, some are written."""
    return lambda x, *rest: Cost(label, 0.0, arrays * FLOAT * x.size, stream="update" if arrays > 1 else "read")


def _adamw(rounded: int) -> Callable[..., Cost]:
    """p, m, v are read and written, the gradient is read, and written where it is zeroed; rounded: floats' worth of
    bfloat16 copies that are written."""

    def rule(p: Any, m: Any, v: Any, g: Any, *rest: Any) -> Cost:
        zeroed = bool(rest[-1])
        return Cost("AdamW", 0.0, (7.0 + zeroed + rounded) * FLOAT * p.size, stream="update")

    return rule


def _head(precision: str) -> Callable[..., Cost]:
    """Of arguments that end in logits, losses, d_x, d_weight and whether d_weight is added to."""

    def rule(x: Any, *rest: Any) -> Cost:
        logits, _, d_x, d_weight, accumulate = rest[-5:]
        products, weight = 1 + (d_x is not None) + (d_weight is not None), logits.shape[1] * x.shape[1]
        moved = weight * (FLOAT if precision == "float32" else 2) * (1 + (d_x is not None))
        if d_weight is not None:
            moved += (1 + accumulate) * FLOAT * weight
        return Cost("head and loss", products * 2.0 * len(x) * weight, moved, precision)

    return rule


_RULES: dict[tuple[str, str], Callable[..., Cost]] = {
    ("matmul", "linear_forward"): _forward,
    ("matmul", "linear_forward_bfloat16"): _forward_bfloat16,
    ("matmul", "linear_backward_input"): _d_x,
    ("matmul", "linear_backward_weight"): _d_weight,
    ("matmul", "linear_backward_bfloat16"): _backward_bfloat16,
    ("matmul", "linear_backward_bias"): _moved("bias gradients", 1),
    ("matmul", "matmul"): _matmul,
    ("feedforward", "feedforward_forward"): lambda x, w_gate, b_gate, w_up, *_: _feedforward("feedforward, forward", 1)(
        x, w_gate, w_up
    ),
    ("feedforward", "feedforward_backward"): lambda d_out, x, w_gate, w_up, *_: _feedforward(
        "feedforward, backward", 2
    )(x, w_gate, w_up),
    ("attention", "attention_forward"): _attention_forward("float32"),
    ("attention", "attention_backward"): _attention_backward("float32"),
    ("attention", "attention_forward_bfloat16"): _attention_forward("bfloat16"),
    ("attention", "attention_backward_bfloat16"): _attention_backward("bfloat16"),
    ("norm", "layernorm_forward"): _moved("normalization", 2),
    ("norm", "layernorm_backward"): _moved("normalization", 4),
    ("norm", "rmsnorm_forward"): _moved("normalization", 2),
    ("norm", "rmsnorm_backward"): _moved("normalization", 4),
    ("positions", "rotate"): _moved("positions", 2),
    ("positions", "add_positions"): _moved("positions", 2),
    ("dropout", "dropout_forward"): _moved("dropout", 2),
    ("embedding", "gather"): lambda table, ids, out: Cost("embedding", 0.0, 2.0 * FLOAT * out.size, stream="update"),
    ("embedding", "scatter_gradient"): _moved("embedding", 2),
    ("embedding", "add_rows"): lambda target, rows, values: Cost(
        "embedding", 0.0, 3.0 * FLOAT * values.size, stream="update"
    ),
    ("embedding", "group_by_row"): lambda *_: Cost("embedding"),
    ("embedding", "adamw_rows"): lambda table, m, v, rows, values, *_: Cost(
        "AdamW", 0.0, 7.0 * FLOAT * values.size, stream="update"
    ),
    ("cross_entropy", "head_loss"): _head("float32"),
    ("cross_entropy", "head_loss_bfloat16"): _head("bfloat16"),
    ("optimizer", "adamw"): _adamw(0),
    ("optimizer", "adamw_bfloat16"): _adamw(1),
    ("optimizer", "squared_norm"): _moved("gradients' norm", 1),
}

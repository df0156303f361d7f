"""Feedforward in Numba: the products and epilogues of kernels/matmul/jit.py, one after the other.

Shapes: reference.py.
"""

from fastmixer.kernels.matmul.jit import (
    linear_backward_bias,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
)


def feedforward_forward(
    x, w_gate, b_gate, w_up, b_up, w_down, b_down, residual, activation, gate_pre, up, hidden, out, dropout=0.0,
    seed=0,
):  # fmt: skip
    """plain (w_gate None): up = x w_up + b_up, hidden = act(up);
    gated: up = x w_up + b_up, gate_pre = x w_gate + b_gate, hidden = act(gate_pre) * up;
    out = dropout(hidden w_down + b_down) + residual.

    x, residual, out: float [tokens, dim]; w_gate, w_up: [dim, hidden]; b_gate, b_up: [hidden]; w_down: [hidden, dim];
    b_down: [dim]; gate_pre, up, hidden: [tokens, hidden]. Biases, residual, gate_pre and (plain) up may be None.
    """
    # 1. up, and the bend
    if w_gate is None:
        linear_forward(x, w_up, b_up, None, None, up, hidden, False, activation)
    else:
        linear_forward(x, w_up, b_up, None, None, None, up, False, 0)
        linear_forward(x, w_gate, b_gate, up, None, gate_pre, hidden, False, activation)
    # 2. down
    linear_forward(hidden, w_down, b_down, None, residual, None, out, False, 0, dropout, seed)


def feedforward_backward(
    d_out, x, w_gate, w_up, w_down, activation, gate_pre, up, hidden, d_gate_pre, d_up, d_x,
    d_w_gate, d_b_gate, d_w_up, d_b_up, d_w_down, d_b_down, accumulate_weights=True,
):  # fmt: skip
    """d_x, d_up, d_gate_pre are overwritten, the parameters' gradients (each may be None) are added to,
    those of weights only with accumulate_weights.

    Shapes as in feedforward_forward; d_up is the gradient of up before the bend if plain. residual's gradient is d_out.
    """
    # 2. down, and the bend
    _add_gradients(hidden, d_out, d_w_down, d_b_down, accumulate_weights)
    if w_gate is None:
        linear_backward_input(d_out, w_down, up, None, d_up, None, False, activation, False)
    else:
        linear_backward_input(d_out, w_down, gate_pre, up, d_gate_pre, d_up, False, activation, False)
    # 1. up
    _add_gradients(x, d_up, d_w_up, d_b_up, accumulate_weights)
    linear_backward_input(d_up, w_up, None, None, d_x, None, False, 0, False)
    if w_gate is not None:
        _add_gradients(x, d_gate_pre, d_w_gate, d_b_gate, accumulate_weights)
        linear_backward_input(d_gate_pre, w_gate, None, None, d_x, None, False, 0, True)


def _add_gradients(x, d_out, d_weight, d_bias, accumulate):
    if d_weight is not None:
        linear_backward_weight(x, d_out, d_weight, False, accumulate)
    if d_bias is not None:
        linear_backward_bias(d_out, d_bias)

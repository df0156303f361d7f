import numpy as np

def matmul(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, transpose_a: bool, transpose_b: bool, accumulate: bool
) -> None: ...
def linear_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray | None,
    residual: np.ndarray | None,
    pre_activation: np.ndarray | None,
    out: np.ndarray,
    transpose_weight: bool,
    activation: int,
    dropout: float = 0,
    seed: int = 0,
) -> None: ...
def linear_backward_input(
    d_out: np.ndarray,
    weight: np.ndarray,
    pre_activation: np.ndarray | None,
    multiplier: np.ndarray | None,
    d_x: np.ndarray,
    d_multiplier: np.ndarray | None,
    transpose_weight: bool,
    activation: int,
    accumulate: bool,
) -> None: ...
def linear_backward_weight(
    x: np.ndarray, d_out: np.ndarray, d_weight: np.ndarray, transpose_weight: bool, accumulate: bool = ...
) -> None: ...
def linear_backward_bias(d_out: np.ndarray, d_bias: np.ndarray) -> None: ...
def packed_size(inputs: int, outputs: int) -> int: ...
def pack_weight(weight: np.ndarray, packed: np.ndarray, transpose_weight: bool) -> None: ...
def linear_forward_packed(
    x: np.ndarray,
    packed: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray | None,
    residual: np.ndarray | None,
    out: np.ndarray,
    activation: int,
) -> None: ...
def to_panels(x: np.ndarray, over_rows: np.ndarray, over_columns: np.ndarray) -> None: ...
def linear_forward_bfloat16(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    multiplier: np.ndarray | None,
    residual: np.ndarray | None,
    pre_activation: np.ndarray | None,
    out: np.ndarray,
    activation: int,
    dropout: float = 0,
    seed: int = 0,
) -> None: ...
def linear_backward_bfloat16(
    d_out: np.ndarray,
    x: np.ndarray | None,
    weight: np.ndarray,
    pre_activation: np.ndarray | None,
    multiplier: np.ndarray | None,
    d_x: np.ndarray,
    d_multiplier: np.ndarray | None,
    d_weight: np.ndarray | None,
    transpose_weight: bool,
    activation: int,
    accumulate: bool,
    accumulate_weight: bool = ...,
) -> None: ...

import numpy as np

def layernorm_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    epsilon: float,
    out: np.ndarray,
    mean: np.ndarray,
    inverse_std: np.ndarray,
) -> None: ...
def layernorm_backward(
    d_out: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    mean: np.ndarray,
    inverse_std: np.ndarray,
    d_residual: np.ndarray | None,
    d_x: np.ndarray,
    d_weight: np.ndarray,
    d_bias: np.ndarray | None,
    partial: np.ndarray,
) -> None: ...
def rmsnorm_forward(
    x: np.ndarray, weight: np.ndarray, epsilon: float, out: np.ndarray, inverse_rms: np.ndarray
) -> None: ...
def rmsnorm_backward(
    d_out: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    inverse_rms: np.ndarray,
    d_residual: np.ndarray | None,
    d_x: np.ndarray,
    d_weight: np.ndarray,
    partial: np.ndarray,
) -> None: ...

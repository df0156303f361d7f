import numpy as np

def adamw(
    p: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    step: int,
    gradient_scale: float,
    zero_gradient: bool,
) -> None: ...
def adamw_bfloat16(
    p: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    over_rows: np.ndarray,
    over_columns: np.ndarray,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    step: int,
    gradient_scale: float,
    zero_gradient: bool,
) -> None: ...
def sgd(p: np.ndarray, g: np.ndarray, learning_rate: float, gradient_scale: float, zero_gradient: bool) -> None: ...
def squared_norm(g: np.ndarray, partial: np.ndarray) -> float: ...
def first_nonfinite(x: np.ndarray, partial: np.ndarray) -> int: ...

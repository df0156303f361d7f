import numpy as np

def dropout_forward(
    x: np.ndarray, rate: float, seed: int, residual: np.ndarray | None, out: np.ndarray
) -> None: ...

import numpy as np

def gather(table: np.ndarray, ids: np.ndarray, out: np.ndarray) -> None: ...
def group_by_row(ids: np.ndarray, num_rows: int, order: np.ndarray, starts: np.ndarray, rows: np.ndarray) -> int: ...
def scatter_gradient(d_out: np.ndarray, order: np.ndarray, starts: np.ndarray, d_rows: np.ndarray) -> None: ...
def add_rows(target: np.ndarray, rows: np.ndarray, values: np.ndarray) -> None: ...
def sgd_rows(table: np.ndarray, rows: np.ndarray, d_rows: np.ndarray, learning_rate: float) -> None: ...
def adagrad_rows(
    table: np.ndarray,
    accumulator: np.ndarray,
    rows: np.ndarray,
    d_rows: np.ndarray,
    learning_rate: float,
    epsilon: float,
) -> None: ...
def adamw_rows(
    table: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    rows: np.ndarray,
    d_rows: np.ndarray,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    step: int,
) -> None: ...

import numpy as np

def head_loss(
    x: np.ndarray,
    weight: np.ndarray,
    targets: np.ndarray,
    ignore_index: int,
    scale: float,
    logits: np.ndarray,
    losses: np.ndarray,
    d_x: np.ndarray | None,
    d_weight: np.ndarray | None,
    accumulate: bool = ...,
) -> None: ...
def cross_entropy_rows(
    logits: np.ndarray,
    targets: np.ndarray,
    ignore_index: int,
    scale: float,
    losses: np.ndarray,
    d_logits: np.ndarray | None,
) -> None: ...
def softmax_rows(logits: np.ndarray, out: np.ndarray) -> None: ...
def head_loss_bfloat16(
    x: np.ndarray,
    over_columns: np.ndarray,
    over_rows: np.ndarray,
    targets: np.ndarray,
    ignore_index: int,
    scale: float,
    logits: np.ndarray,
    losses: np.ndarray,
    d_x: np.ndarray | None,
    d_weight: np.ndarray | None,
    accumulate: bool = ...,
) -> None: ...

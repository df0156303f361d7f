import numpy as np

def attention_forward(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    spans: np.ndarray,
    scale: float,
    causal: bool,
    window: int,
    dropout: float,
    seed: int,
    out: np.ndarray,
    log_sum_exp: np.ndarray,
) -> None: ...
def attention_backward(
    d_out: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    log_sum_exp: np.ndarray,
    spans: np.ndarray,
    scale: float,
    causal: bool,
    window: int,
    dropout: float,
    seed: int,
    delta: np.ndarray,
    d_q: np.ndarray,
    d_k: np.ndarray,
    d_v: np.ndarray,
) -> None: ...

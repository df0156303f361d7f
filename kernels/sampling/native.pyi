import numpy as np

def sample(
    logits: np.ndarray,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: np.ndarray,
    out: np.ndarray,
) -> None: ...
def penalize_repetition(logits: np.ndarray, ids: np.ndarray, penalty: float) -> None: ...

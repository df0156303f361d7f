"""What a model makes of a given text: logits of every token, and how well it foresees them. Nothing is written here.

Each call has pages of its own, so that it can run beside generation.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastmixer.generate.memory import require_memory
from fastmixer.kernels.decoder.pages import PAGE

CHUNK = 256  # tokens whose logits exist at once


def chunks_of_logits(decoder: Any, ids: np.ndarray, dtype: str, wanted_from: int = 0) -> Iterator[np.ndarray]:
    """float32 [up to CHUNK, vocab] after each of ids (int64 [tokens]) from place wanted_from on, chunk by chunk."""
    count = -(-len(ids) // PAGE)
    groups = len(decoder.windows)
    size = count * sum(decoder.page_bytes(group, dtype) for group in range(groups))
    require_memory(f"keys and values of {len(ids)} tokens in {dtype}", size, "give fewer tokens")
    pages = decoder.new_pages((count,) * groups, dtype)
    tables = np.ascontiguousarray(np.broadcast_to(np.arange(count, dtype=np.int32), (groups, 1, count)))
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        wanted = np.arange(max(0, wanted_from - start), len(chunk))
        starts, first_positions = np.array([0, len(chunk)]), np.array([start])
        logits, _ = decoder.forward(chunk, starts, first_positions, pages, tables, wanted)
        if len(wanted):
            yield logits


def perplexity(
    decoder: Any, ids: np.ndarray, window: int, stride: int, dtype: str,
    progress: Callable[[int], object] = lambda done: None,
) -> float:  # fmt: skip
    """exp of the mean cross-entropy, in nats, of all ids (int64 [tokens]) but the first. Windows of so many tokens begin
    every stride tokens; each token counts in the first window that holds it, so all but those of the first window have at
    least window - stride tokens before them. progress is called with each chunk's number of tokens."""
    total, counted = 0.0, 1  # ids[:counted] are done
    start = 0
    while counted < len(ids):
        end = min(start + window, len(ids))
        place = counted
        for logits in chunks_of_logits(decoder, ids[start : end - 1], dtype, counted - 1 - start):
            targets = ids[place : place + len(logits)]
            total += float(_losses(logits, targets).sum())
            place += len(logits)
            progress(len(logits))
        counted = end
        start += stride
    return float(np.exp(total / (len(ids) - 1)))


def _losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """float64 [tokens]: the cross-entropy of softmax(logits [tokens, vocab]) against targets; logits are overwritten."""
    chosen = np.take_along_axis(logits, targets[:, None], axis=1)[:, 0].astype(np.float64)
    largest = logits.max(axis=1, keepdims=True)
    logits -= largest
    np.exp(logits, out=logits)
    return largest[:, 0] + np.log(logits.sum(axis=1, dtype=np.float64)) - chosen

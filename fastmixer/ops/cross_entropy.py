"""The output head with its softmax cross-entropy, and the loss alone: shapes and targets are judged here.

Knows nothing of batches and time (tokens are one axis) or of where the weight lives.
"""

import numpy as np

from fastmixer.kernels.select import kernels
from fastmixer.ops.bfloat16 import RoundedWeight, check_rounded
from fastmixer.ops.checks import Arrays, check_integer, check_number, require_all_apart

# Tokens whose logits exist at once. Fewer would read the weight more often than the cache forgives; up to 256 go together,
# more of them in whole register tiles of 8 that keep the logits of GPT-2's vocabulary within 42 MB.
ONE_CHUNK, CHUNK = 256, 208


def head_loss(
    x: np.ndarray,
    weight: np.ndarray,
    targets: np.ndarray,
    *,
    ignore_index: int = -100,
    loss_scale: float = 1.0,
    d_x: np.ndarray | None = None,
    d_weight: np.ndarray | None = None,
    chunk: int | None = None,
    logits: np.ndarray | None = None,
    rounded: RoundedWeight | None = None,
    overwrite_d_weight: bool = False,
) -> float:
    """Mean of the cross-entropy of softmax(x weight^T) against targets, over the targets that count, in nats.

    x: float32 [tokens, dim]; weight: float32 [vocab, dim]; targets: integer [tokens], each in 0..vocab-1 or equal to
    ignore_index (which adds nothing to loss and gradients). Where given, d_x: float32 [tokens, dim] is overwritten
    with, and d_weight: float32 [vocab, dim] is increased by (with overwrite_d_weight: overwritten with), the gradient of
    loss_scale * loss (the loss that is returned is not scaled). Never are there more than chunk * vocab logits; logits:
    float32 [rows, vocab] is memory for them, its rows then the chunk (a caller of many steps saves the system clearing it
    each time). With rounded (of weight) the products are those of x, weight and the logits' gradient rounded to bfloat16.
    What is written shares no memory with anything else.

    Raises TypeError and ValueError for wrong arrays and numbers, IndexError for a target out of range, ValueError if
    no target counts.
    """
    arrays = Arrays("head_loss", "cross_entropy")
    x = arrays.check("x", x, "tokens dim")
    weight = arrays.check("weight", weight, "vocab dim")
    vocab = arrays.sizes["vocab"]
    ignore_index = check_integer("head_loss", "ignore_index", ignore_index)
    targets = arrays.check_ids("targets", targets, "tokens", vocab, ignore_index)
    if d_x is not None:
        d_x = arrays.check_output("d_x", d_x, "tokens dim")
    if d_weight is not None:
        d_weight = arrays.check_output("d_weight", d_weight, "vocab dim")
    check_number("head_loss", "loss_scale", loss_scale)
    chunk = chunk_rows(len(x)) if chunk is None else check_integer("head_loss", "chunk", chunk, at_least=1)
    counted = _count_targets("head_loss", targets, ignore_index)

    if logits is None:
        logits = np.empty((min(chunk, len(x)), vocab), x.dtype)
    elif not len(arrays.check_output("logits", logits, "rows vocab")):
        raise ValueError(f"head_loss: logits must have at least one row; got {logits.shape}")
    read = {"x": x, "weight": weight, "targets": targets}
    if rounded is not None:
        check_rounded("head_loss", "rounded", rounded, weight)
        read.update({f"rounded.{part}": array for part, array in rounded._asdict().items()})
    require_all_apart("head_loss", {"d_x": d_x, "d_weight": d_weight, "logits": logits}, read)
    losses = np.empty(len(x), x.dtype)
    scale = float(loss_scale) / counted
    kernel = kernels("cross_entropy")
    rest = (targets, ignore_index, scale, logits, losses, d_x, d_weight, not overwrite_d_weight)
    if rounded is None:
        kernel.head_loss(x, weight, *rest)
    else:
        kernel.head_loss_bfloat16(x, rounded.over_columns, rounded.over_rows, *rest)
    return _mean(losses, counted)


def chunk_rows(tokens: int) -> int:
    """How many tokens' logits head_loss works on at once if it is not told."""
    return tokens if tokens <= ONE_CHUNK else CHUNK


def cross_entropy(logits: np.ndarray, targets: np.ndarray, *, ignore_index: int = -100) -> tuple[float, np.ndarray]:
    """(loss, d_logits): the mean cross-entropy of softmax(logits) against targets, in nats, and its gradient.

    logits: float32 [tokens, vocab]; targets: integer [tokens], each in 0..vocab-1 or equal to ignore_index;
    d_logits: float32 [tokens, vocab], 0 where ignored. Raises as head_loss.
    """
    arrays = Arrays("cross_entropy")
    logits = arrays.check("logits", logits, "tokens vocab")
    ignore_index = check_integer("cross_entropy", "ignore_index", ignore_index)
    targets = arrays.check_ids("targets", targets, "tokens", arrays.sizes["vocab"], ignore_index)
    counted = _count_targets("cross_entropy", targets, ignore_index)

    losses, d_logits = np.empty(len(logits), logits.dtype), np.empty_like(logits)
    kernels("cross_entropy").cross_entropy_rows(logits, targets, ignore_index, 1.0 / counted, losses, d_logits)
    return _mean(losses, counted), d_logits


def _count_targets(op: str, targets: np.ndarray, ignore_index: int) -> int:
    counted = int(np.count_nonzero(targets != ignore_index))
    if counted == 0:
        came = f"{len(targets)} targets, all {ignore_index} (ignore_index)" if len(targets) else "no targets"
        raise ValueError(f"{op}: targets must hold at least one that counts; got {came}")
    return counted


def _mean(losses: np.ndarray, counted: int) -> float:
    """In float64 and in one fixed order, so that equal losses give equal bits."""
    return float(np.sum(losses, dtype=np.float64)) / counted

"""Output head and softmax cross-entropy in NumPy: the truth that jit and native are held to; float32 or float64.

Knows nothing of batches or models: tokens in, one loss a token out.
"""

import numpy as np

from fastmixer.kernels.bfloat16 import from_panels, round_bfloat16


def head_loss(x, weight, targets, ignore_index, scale, logits, losses, d_x, d_weight, accumulate=True):
    """The loss of every token against its target, and the gradients of scale * sum(losses).

    x: float32 [tokens, dim]; weight: float32 [vocab, dim]; targets: int64 [tokens], ignore_index or 0..vocab-1;
    scale: what d loss is worth (1 / counted targets, times a loss scale); logits: scratch [chunk, vocab], whose rows
    set how many tokens are worked on at a time; losses: [tokens], 0 where ignored;
    d_x: [tokens, dim] (=) or None; d_weight: [vocab, dim] (+=, or = unless accumulate) or None.
    """
    tokens, chunk = len(x), len(logits)
    for start in range(0, tokens, chunk):
        stop = min(start + chunk, tokens)
        x_chunk, chunk_logits = x[start:stop], logits[: stop - start]
        # logits = x W^T, for these tokens only
        np.matmul(x_chunk, weight.T, out=chunk_logits)
        # losses; d_logits takes the place of the logits
        d_logits = None if d_x is None and d_weight is None else chunk_logits
        cross_entropy_rows(chunk_logits, targets[start:stop], ignore_index, scale, losses[start:stop], d_logits)
        # d_x = d_logits W; d_W = (d_W +) d_logits^T x
        if d_x is not None:
            np.matmul(d_logits, weight, out=d_x[start:stop])
        if d_weight is not None:
            product = d_logits.T @ x_chunk
            d_weight[...] = d_weight + product if accumulate or start else product


def head_loss_bfloat16(
    x, over_columns, over_rows, targets, ignore_index, scale, logits, losses, d_x, d_weight, accumulate=True
):  # fmt: skip
    """As head_loss with products in bfloat16. The weight comes rounded in both layouts of panels (kernels/bfloat16.py):
    over_columns: uint32 [ceil(vocab / 48), ceil(dim / 2), 48] for the logits, over_rows: uint32
    [ceil(dim / 48), ceil(vocab / 2), 48] for d_x; x and d_logits are rounded here."""
    tokens, chunk = len(x), len(logits)
    weight = from_panels(over_columns, x.shape[1], logits.shape[1]).T.astype(x.dtype)
    for start in range(0, tokens, chunk):
        stop = min(start + chunk, tokens)
        x_chunk, chunk_logits = _rounded(x[start:stop]), logits[: stop - start]
        # logits = x W^T, for these tokens only
        np.matmul(x_chunk, weight.T, out=chunk_logits)
        # losses; d_logits takes the place of the logits
        d_logits = None if d_x is None and d_weight is None else chunk_logits
        cross_entropy_rows(chunk_logits, targets[start:stop], ignore_index, scale, losses[start:stop], d_logits)
        # d_x = d_logits W; d_W = (d_W +) d_logits^T x
        if d_logits is not None:
            d_logits = _rounded(d_logits)
        if d_x is not None:
            np.matmul(d_logits, weight, out=d_x[start:stop])
        if d_weight is not None:
            product = d_logits.T @ x_chunk
            d_weight[...] = d_weight + product if accumulate or start else product


def _rounded(x):
    return round_bfloat16(x).astype(x.dtype)


def cross_entropy_rows(logits, targets, ignore_index, scale, losses, d_logits):
    """The loss of every row, log(sum(exp(logits))) - logits[target], and the gradient of scale * sum(losses):
    d_logits = scale * (softmax(logits) - onehot(target)).

    logits: [rows, vocab]; targets: int64 [rows]; losses: [rows]; d_logits: [rows, vocab] (=), which may be logits
    itself, or None. Rows whose target is ignore_index have loss 0 and gradient 0.
    """
    counted = targets != ignore_index
    rows, classes = np.arange(len(targets)), np.where(counted, targets, 0)
    # the row's maximum is taken away: exp neither overflows nor vanishes, and the loss keeps its digits
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1)
    losses[:] = np.where(counted, np.log(total) - shifted[rows, classes], 0)
    if d_logits is not None:
        np.multiply(exponentials, (scale / total)[:, None], out=d_logits)
        d_logits[rows, classes] -= scale
        d_logits[~counted] = 0


def softmax_rows(logits, out):
    """out = softmax of every row of logits: [rows, vocab]; out may be logits itself."""
    if logits.size == 0:
        return
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.divide(exponentials, exponentials.sum(axis=1, keepdims=True), out=out)

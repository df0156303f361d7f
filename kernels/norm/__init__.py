"""LayerNorm and RMSNorm: forward, and backward in one pass over the rows.

Parameter gradients are summed over fixed blocks of rows into `partial`, then over the blocks in order, so that the
number of threads does not show in the result. The blocks depend on the number of rows alone:
"""

SMALLEST_ROW_BLOCK = 16
MOST_ROW_BLOCKS = 64


def row_block(tokens: int) -> int:
    """Rows a block: 16, or as many as leave at most 64 blocks."""
    return max(SMALLEST_ROW_BLOCK, -(-tokens // MOST_ROW_BLOCKS))


def row_blocks(tokens: int) -> int:
    """The number of blocks, and with it the first axis of `partial`."""
    return -(-tokens // row_block(tokens))

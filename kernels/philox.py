"""Philox4x32-10 in NumPy: random numbers that are a pure function of (seed, counter), so none need be stored.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (Random123, SC 2011). philox.h is
the same in C, philox_jit.py in Numba. Knows nothing of what is dropped.

- Key: seed is an integer in [0, 2^64); key word 0 is its low 32 bits, key word 1 its high 32 bits.
- Counter: four uint32 (c0, c1, c2, c3), c0 the lowest of the 128 bits. A block is the four uint32 words 0..3
  that come out.
- Flat arrays (dropout): element `index` uses word index % 4 of block index // 4, whose counter is
  (low 32 bits of the block, its high 32 bits, 0, 0).
- Attention weights: (sequence, head, query, key) uses word key % 4 of the block with counter
  (key // 4, query, head, sequence).
- Keep rule: an element is kept if word >= keep_threshold(rate) = round(rate * 2^32), and multiplied by
  keep_scale(rate) = float32(1 / (1 - rate)); others become 0.
- fold_seed(seed, number) is a new seed for a numbered use (a step, a layer, a place in a layer), so that no
  two uses share random numbers.
"""

import numpy as np

ROUNDS = 10
MULTIPLIER_0 = np.uint64(0xD2511F53)
MULTIPLIER_1 = np.uint64(0xCD9E8D57)
WEYL_0 = 0x9E3779B9  # golden ratio
WEYL_1 = 0xBB67AE85  # sqrt(3) - 1
WORD_BITS = np.uint64(32)
WORD_MASK = np.uint64(0xFFFFFFFF)
FOLD_COUNTER = 0xFFFFFFFF  # c3 of fold_seed's blocks, out of reach of every other use


def philox(seed, c0, c1=0, c2=0, c3=0):
    """Blocks: uint32 [..., 4]; counter words c0..c3 (integers or arrays in [0, 2^32)) broadcast to [...]."""
    x0, x1, x2, x3 = (np.asarray(c).astype(np.uint64) for c in np.broadcast_arrays(c0, c1, c2, c3))
    k0, k1 = int(seed) & 0xFFFFFFFF, int(seed) >> 32
    for _ in range(ROUNDS):
        p0 = MULTIPLIER_0 * x0
        p1 = MULTIPLIER_1 * x2
        x0, x1, x2, x3 = (
            (p1 >> WORD_BITS) ^ x1 ^ np.uint64(k0),
            p1 & WORD_MASK,
            (p0 >> WORD_BITS) ^ x3 ^ np.uint64(k1),
            p0 & WORD_MASK,
        )
        k0 = (k0 + WEYL_0) & 0xFFFFFFFF
        k1 = (k1 + WEYL_1) & 0xFFFFFFFF
    return np.stack([x0, x1, x2, x3], axis=-1).astype(np.uint32)


def flat_words(seed, start, stop):
    """The words of elements start..stop-1 of a flat array: uint32 [stop - start]."""
    first = start // 4
    blocks = np.arange(first, (stop + 3) // 4, dtype=np.uint64)
    words = philox(seed, blocks & WORD_MASK, blocks >> WORD_BITS).reshape(-1)
    return words[start - 4 * first : stop - 4 * first]


def attention_words(seed, sequence, head, query_start, query_stop, key_start, key_stop):
    """The words of a tile of one head's weights: uint32 [query_stop - query_start, key_stop - key_start]."""
    first = key_start // 4
    queries = np.arange(query_start, query_stop, dtype=np.uint64)[:, None]
    blocks = np.arange(first, (key_stop + 3) // 4, dtype=np.uint64)[None, :]
    words = philox(seed, blocks, queries, head, sequence)
    words = words.reshape(query_stop - query_start, 4 * blocks.shape[1])
    return words[:, key_start - 4 * first : key_stop - 4 * first]


def keep_threshold(rate):
    """The smallest word that is kept: round(rate * 2^32), an int in [0, 2^32 - 1]; 0 <= rate < 1."""
    return min(round(rate * 2.0**32), 0xFFFFFFFF)


def keep_scale(rate):
    """What kept values are multiplied by, so that the expectation stays: float32 1 / (1 - rate)."""
    return np.float32(1.0 / (1.0 - rate))


def fold_seed(seed, number):
    """A seed for the numbered use of a seed: an int in [0, 2^64); number in [0, 2^64)."""
    words = philox(seed, number & 0xFFFFFFFF, number >> 32, 0, FOLD_COUNTER)
    return int(words[0]) | int(words[1]) << 32

/* Philox4x32-10, the counter-based random numbers of dropout: the same (seed, counter) gives the same four uint32 in
 * any order, on any thread, in C, Numba and NumPy (philox.py defines the mapping and has the known answers).
 * Knows nothing of arrays, rates or ops.
 */
#ifndef FASTMIXER_PHILOX_H
#define FASTMIXER_PHILOX_H

#include <stddef.h>
#include <stdint.h>

#include "vec.h"

#define PHILOX_ROUNDS 10
#define PHILOX_MULTIPLIER_0 0xD2511F53u
#define PHILOX_MULTIPLIER_1 0xCD9E8D57u
#define PHILOX_WEYL_0 0x9E3779B9u /* golden ratio */
#define PHILOX_WEYL_1 0xBB67AE85u /* sqrt(3) - 1 */

/* Blocks that philox_batch makes at once, and the random numbers in them. */
#define PHILOX_BATCH 16
#define PHILOX_BATCH_WORDS (4 * PHILOX_BATCH)

/* One block: random[0..3] for counter (c0 lowest, c3 highest) under the key `seed`. */
static inline void philox_block(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t *random) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t p0 = (uint64_t)PHILOX_MULTIPLIER_0 * c0, p1 = (uint64_t)PHILOX_MULTIPLIER_1 * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += PHILOX_WEYL_0;
        k1 += PHILOX_WEYL_1;
    }
    random[0] = c0;
    random[1] = c1;
    random[2] = c2;
    random[3] = c3;
}

/* PHILOX_BATCH blocks with c0, c0 + 1, ... (c0 wraps at 2^32 without a carry into c1): random[4 * block + word].
 * A block has its words in the low halves of four 64-bit lanes; whatever the high halves hold is ignored by the next
 * multiplication and cut off at the end. Two vectors of blocks at a time hide the multiplication's latency. */
static inline void philox_batch(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t *random) {
    enum { VECTORS = 2, GROUP = VECTORS * VL_WIDTH };
    vl lanes, zero = {0};
    for (int lane = 0; lane < VL_WIDTH; lane++) lanes[lane] = (uint64_t)lane;
    for (int first = 0; first < PHILOX_BATCH; first += GROUP) {
        vl x0[VECTORS], x1[VECTORS], x2[VECTORS], x3[VECTORS];
        vl k0 = zero + seed, k1 = zero + (seed >> 32);
        for (int i = 0; i < VECTORS; i++) {
            x0[i] = lanes + (uint64_t)(c0 + (uint32_t)(first + i * VL_WIDTH));
            x1[i] = zero + c1;
            x2[i] = zero + c2;
            x3[i] = zero + c3;
        }
        for (int round = 0; round < PHILOX_ROUNDS; round++) {
            for (int i = 0; i < VECTORS; i++) {
                vl p0 = vl_multiply_low(x0[i], zero + PHILOX_MULTIPLIER_0);
                vl p1 = vl_multiply_low(x2[i], zero + PHILOX_MULTIPLIER_1);
                x0[i] = (p1 >> 32) ^ x1[i] ^ k0;
                x1[i] = p1;
                x2[i] = (p0 >> 32) ^ x3[i] ^ k1;
                x3[i] = p0;
            }
            k0 += PHILOX_WEYL_0;
            k1 += PHILOX_WEYL_1;
        }
        for (int i = 0; i < VECTORS; i++) {
            vl low = (x0[i] & 0xffffffffu) | (x1[i] << 32), high = (x2[i] & 0xffffffffu) | (x3[i] << 32);
            for (int lane = 0; lane < VL_WIDTH; lane++) {
                uint64_t block[2] = {low[lane], high[lane]}; /* little-endian: words 0, 1 and 2, 3 */
                memcpy(random + 4 * (first + i * VL_WIDTH + lane), block, sizeof block);
            }
        }
    }
}

#endif

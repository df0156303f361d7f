/* The register tile of the packed GEMM: TILE_ROWS x TILE_COLUMNS sums held in registers.
 *
 * Zen 4 has one 512-bit FMA a cycle: 8 x 48 does 24 of them over 3 loads and 8 broadcasts, so loads never wait.
 * Knows nothing of tasks or epilogues; of blocks only the sizes that suit the tile.
 */
#ifndef FASTMIXER_TILE_H
#define FASTMIXER_TILE_H

#include "amx.h"
#include "bfloat16.h"
#include "half.h"
#include "transpose.h"
#include "vec.h"

#if VF_REGISTERS == 32
#define TILE_ROWS 8
#define TILE_VECTORS 3 /* 24 sums, 3 of B, and what broadcasts need */
#define FIRST_TILE_PACKS 1 /* a panel is packed by the tile that meets it first */
#if AMX
#define UNROLL_K UNROLL_FOUR /* 5-8 % on a Granite Rapids, nothing on a Zen 4 */
#else
#define UNROLL_K
#endif
#else
#define TILE_ROWS 4
#define TILE_VECTORS 3 /* 12 sums, 3 of B, 1 broadcast: all 16 registers */
/* On a Zen 3 (AVX2, 12 multiply-adds in 6 cycles) other work on the core leaves few slots: 4 x 24 takes 7 loads a k, 6 x 16 eight and
 * 1-9 % longer, the most where k is long. Panels packed in groups by a copy gave 2 %, four k a turn of the loop 4 %, 12 % for a
 * weight's gradient. On a Zen 4 neither helps AVX-512. */
#define FIRST_TILE_PACKS 0
#define UNROLL_K UNROLL_FOUR
#endif
#define TILE_COLUMNS (TILE_VECTORS * VF_WIDTH)
#define TILE_SUMS (TILE_ROWS * TILE_VECTORS)
#define K_BLOCK 768 /* half of it: 3 % slower on a Zen 3, 1 % on a Zen 4, and 7 % where k is a vocabulary */
#if AMX
#define GROUP_PANELS 2 /* 4-10 % faster than one: runs of six lines in B, and each row of A met twice while it is near */
#else
#define GROUP_PANELS (48 / TILE_COLUMNS) /* panels of B that are packed and multiplied side by side: three lines of each row */
#endif
#define PACK_AHEAD 8 /* rows of B that the packing tile asks for ahead of their use: 3 % of a product of 256 rows */
#if AMX
#define PAIR_TILE_ROWS AMX_BAND_ROWS /* of a tile of pairs: TILE_COLUMNS is AMX_BAND_COLUMNS */
#else
#define PAIR_TILE_ROWS TILE_ROWS
#endif
#define DOT_PARTS 4 /* independent sums of one product: they hide the latency of the multiply-add */

/* out [row_count][vectors * VF_WIDTH] = (out if add) + A B over `depth` (+ bias, a row, unless NULL): row i of A starts at rows[i]
 * and moves by `a_step` a k; B's row moves by `b_step`. `row_count` and `vectors` (their product at most TILE_SUMS) are constants at
 * each call: the loops unroll early and the sums are registers. Every sum runs over k in the same order at any size.
 * With `ahead`, B comes from memory and is asked for so many k ahead. With `packed`, B's rows are also copied there, side
 * by side: stores that the multiply-adds hide (a pack of its own took 4 % of a product of 256 rows). With `pairs` the
 * numbers of A and B are pairs of bfloat16 (bfloat16.h) and k counts pairs; all else stays as it is. */
VEC_INLINE void tile_multiply(const int row_count, const int vectors, const int ahead, const int pairs,
                              const float *const rows[TILE_ROWS],
                              ptrdiff_t a_step, const float *b, ptrdiff_t b_step, ptrdiff_t depth, float *packed,
                              float *out, ptrdiff_t out_row, int add, const float *bias) {
    vf sums[TILE_SUMS];
    const float *a[TILE_ROWS];
    UNROLL for (int i = 0; i < row_count; i++) {
        a[i] = a_step == TILE_ROWS ? rows[0] + i : rows[i]; /* packed: one address for all */
        UNROLL for (int j = 0; j < vectors; j++) sums[i * vectors + j] = vf_zero();
    }
    UNROLL_K for (ptrdiff_t k = 0; k < depth; k++) {
        vf b_row[TILE_SUMS];
        UNROLL for (int j = 0; j < vectors; j++) {
            b_row[j] = vf_load(b + j * VF_WIDTH);
            if (ahead) __builtin_prefetch(b + ahead * b_step + j * VF_WIDTH);
            if (packed) vf_store(packed + (k * vectors + j) * VF_WIDTH, b_row[j]);
        }
        b += b_step;
        UNROLL for (int i = 0; i < row_count; i++) {
            vf broadcast = vf_set(a[i][k * a_step]);
            UNROLL for (int j = 0; j < vectors; j++)
                sums[i * vectors + j] = pairs ? bf16_dot(sums[i * vectors + j], broadcast, b_row[j])
                                              : vf_fma(broadcast, b_row[j], sums[i * vectors + j]);
        }
    }
    if (bias) {
        UNROLL for (int j = 0; j < vectors; j++) {
            vf added = vf_load(bias + j * VF_WIDTH);
            UNROLL for (int i = 0; i < row_count; i++) sums[i * vectors + j] = sums[i * vectors + j] + added;
        }
    }
    if (add) {
        UNROLL for (int i = 0; i < row_count; i++) {
            UNROLL for (int j = 0; j < vectors; j++) {
                float *target = out + i * out_row + j * VF_WIDTH;
                vf_store(target, vf_load(target) + sums[i * vectors + j]);
            }
        }
    } else {
        UNROLL for (int i = 0; i < row_count; i++) {
            UNROLL for (int j = 0; j < vectors; j++) vf_store(out + i * out_row + j * VF_WIDTH, sums[i * vectors + j]);
        }
    }
}

/* The full tile, in functions of their own: inlined into one caller, their row pointers spilled (7 % of a product). */
#define FULL_TILE(name, ahead, pairs, a_step, b_step, packed)                                                          \
    static __attribute__((noinline)) void name(const float *const rows[TILE_ROWS], ptrdiff_t a_k, const float *b,      \
                                               ptrdiff_t b_k, ptrdiff_t depth, float *panel, float *out,               \
                                               ptrdiff_t out_row, int add, const float *bias) {                        \
        tile_multiply(TILE_ROWS, TILE_VECTORS, ahead, pairs, rows, a_step, b, b_step, depth, packed, out, out_row,     \
                      add, bias);                                                                                      \
    }
FULL_TILE(full_tile, 0, 0, 1, TILE_COLUMNS, NULL)
FULL_TILE(full_tile_of_packed, 0, 0, TILE_ROWS, TILE_COLUMNS, NULL)
FULL_TILE(full_tile_packing, PACK_AHEAD, 0, a_k, b_k, panel)
FULL_TILE(full_tile_pairs, 0, 1, 1, TILE_COLUMNS, NULL)
FULL_TILE(full_tile_pairs_of_packed, 0, 1, TILE_ROWS, TILE_COLUMNS, NULL)
FULL_TILE(full_tile_pairs_packing, PACK_AHEAD, 1, a_k, b_k, panel)
#undef FULL_TILE

/* out [row_count][TILE_COLUMNS], with bias, of the rows that are left below whole tiles: so many and no more (a tile of eight for
 * them took 2 % of MiniLM's time, whose blocks have some 140 rows). */
#define REST_TILE(count)                                                                                               \
    static __attribute__((noinline)) void rest_tile_##count(int pairs, const float *const rows[TILE_ROWS], ptrdiff_t a_k, \
                                                            const float *b, ptrdiff_t depth, float *out,               \
                                                            const float *bias) {                                       \
        if (pairs) tile_multiply(count, TILE_VECTORS, 0, 1, rows, a_k, b, TILE_COLUMNS, depth, NULL, out, TILE_COLUMNS, 0, bias); \
        else tile_multiply(count, TILE_VECTORS, 0, 0, rows, a_k, b, TILE_COLUMNS, depth, NULL, out, TILE_COLUMNS, 0, bias); \
    }
REST_TILE(1)
REST_TILE(2)
REST_TILE(3)
#if TILE_ROWS == 8
REST_TILE(4)
REST_TILE(5)
REST_TILE(6)
REST_TILE(7)
#endif
#undef REST_TILE

static void rest_tile(ptrdiff_t row_count, int pairs, const float *const rows[TILE_ROWS], ptrdiff_t a_k, const float *b,
                      ptrdiff_t depth, float *out, const float *bias) {
    switch (row_count) {
    case 1: rest_tile_1(pairs, rows, a_k, b, depth, out, bias); break;
    case 2: rest_tile_2(pairs, rows, a_k, b, depth, out, bias); break;
#if TILE_ROWS == 8
    case 3: rest_tile_3(pairs, rows, a_k, b, depth, out, bias); break;
    case 4: rest_tile_4(pairs, rows, a_k, b, depth, out, bias); break;
    case 5: rest_tile_5(pairs, rows, a_k, b, depth, out, bias); break;
    case 6: rest_tile_6(pairs, rows, a_k, b, depth, out, bias); break;
    default: rest_tile_7(pairs, rows, a_k, b, depth, out, bias);
#else
    default: rest_tile_3(pairs, rows, a_k, b, depth, out, bias);
#endif
    }
}

#define PACK_STEP 8 /* so many k are packed tile by tile: the lines that they fill are full before they leave L1 */

/* out [tiles][depth][TILE_ROWS] = rows of A that stand side by side at each k; a last tile repeats its last row. */
static void pack_rows_of_a(const float *a, ptrdiff_t a_k, ptrdiff_t depth, ptrdiff_t rows, float *out) {
    ptrdiff_t full = rows / TILE_ROWS, rest = rows - full * TILE_ROWS;
    for (ptrdiff_t start = 0; start < depth; start += PACK_STEP) {
        ptrdiff_t stop = start + PACK_STEP < depth ? start + PACK_STEP : depth;
        for (ptrdiff_t tile = 0; tile < full; tile++)
            for (ptrdiff_t k = start; k < stop; k++) {
                const float *source = a + k * a_k + tile * TILE_ROWS;
                __builtin_prefetch(source + PACK_STEP * a_k);
                memcpy(out + (tile * depth + k) * TILE_ROWS, source, sizeof(float) * TILE_ROWS);
            }
        for (ptrdiff_t k = start; rest > 0 && k < stop; k++)
            for (ptrdiff_t i = 0; i < TILE_ROWS; i++)
                out[(full * depth + k) * TILE_ROWS + i] = a[k * a_k + full * TILE_ROWS + (i < rest ? i : rest - 1)];
    }
}

/* VF_WIDTH numbers of b from number k on, or the first `lanes` of them, zeros behind: floats, or float16 (half.h). */
VEC_INLINE vf dot_part(const int halves, const void *b, ptrdiff_t k) {
    return halves ? vf_load_half((const uint8_t *)b + 2 * k) : vf_load((const float *)b + k);
}
VEC_INLINE vf dot_rest(const int halves, const void *b, ptrdiff_t k, ptrdiff_t lanes) {
    float rest[VF_WIDTH] = {0}; /* room for a vector of either */
    if (!halves) return vf_load_first((const float *)b + k, lanes);
    memcpy(rest, (const uint8_t *)b + 2 * k, 2 * (size_t)lanes);
    return vf_load_half((const uint8_t *)rest);
}

/* sums[i * sums_step] = row i of A times b over `depth`, all of it along memory, read from front to back. `halves`: b is float16,
 * widened as it comes. */
VEC_INLINE void dot_multiply(const int row_count, const int halves, const float *const rows[TILE_ROWS], const void *b, ptrdiff_t depth,
                             float *sums, ptrdiff_t sums_step) {
    vf total[4][DOT_PARTS];
    ptrdiff_t k = 0;
    UNROLL for (int i = 0; i < row_count; i++) {
        UNROLL for (int p = 0; p < DOT_PARTS; p++) total[i][p] = vf_zero();
    }
    for (; k + DOT_PARTS * VF_WIDTH <= depth; k += DOT_PARTS * VF_WIDTH) {
        UNROLL for (int p = 0; p < DOT_PARTS; p++) {
            vf b_part = dot_part(halves, b, k + p * VF_WIDTH);
            UNROLL for (int i = 0; i < row_count; i++)
                total[i][p] = vf_fma(vf_load(rows[i] + k + p * VF_WIDTH), b_part, total[i][p]);
        }
    }
    for (; k < depth; k += VF_WIDTH) {
        ptrdiff_t lanes = depth - k < VF_WIDTH ? depth - k : VF_WIDTH;
        vf b_part = dot_rest(halves, b, k, lanes);
        UNROLL for (int i = 0; i < row_count; i++)
            total[i][0] = vf_fma(vf_load_first(rows[i] + k, lanes), b_part, total[i][0]);
    }
    UNROLL for (int i = 0; i < row_count; i++)
        sums[i * sums_step] = vf_sum((total[i][0] + total[i][1]) + (total[i][2] + total[i][3]));
}

#endif

/* The register tile of search: TILE_ROWS rows of vectors, read where they lie, times up to TILE_COLUMNS packed queries.
 *
 * As matmul/tile.h has it, but for what is asked for ahead: here A comes from memory, so while a line of each row is
 * multiplied the same line of a later row is fetched. Asked for in one go before a tile, those lines stood in each other's
 * way: 48 queries took 77 instead of 48 ms over 300,000 rows of 384.
 */
#ifndef FASTMIXER_SEARCH_TILE_H
#define FASTMIXER_SEARCH_TILE_H

#include "matmul/tile.h"

#define LINE_FLOATS 16

/* out [TILE_ROWS][TILE_COLUMNS] = (out if add) + A B over `depth`, the first vectors * VF_WIDTH columns: row i of A starts at
 * rows[i], B's rows of so many vectors stand side by side (with gaps between them few queries fill L1). ahead: how many floats
 * after each row the row lies that comes later; 0: none. */
VEC_INLINE void search_tile(const int vectors, const float *const rows[TILE_ROWS], const float *b, ptrdiff_t depth,
                            ptrdiff_t ahead, float *out, int add) {
    vf sums[TILE_SUMS];
    const float *a[TILE_ROWS];
    UNROLL for (int i = 0; i < TILE_ROWS; i++) {
        a[i] = rows[i];
        UNROLL for (int j = 0; j < vectors; j++)
            sums[i * vectors + j] = add ? vf_load(out + i * TILE_COLUMNS + j * VF_WIDTH) : vf_zero();
    }
    for (ptrdiff_t start = 0; start < depth; start += LINE_FLOATS) {
        ptrdiff_t stop = start + LINE_FLOATS < depth ? start + LINE_FLOATS : depth;
        if (ahead) {
            UNROLL for (int i = 0; i < TILE_ROWS; i++) __builtin_prefetch(a[i] + start + ahead, 0, 2);
        }
        for (ptrdiff_t k = start; k < stop; k++) {
            vf b_row[TILE_VECTORS];
            UNROLL for (int j = 0; j < vectors; j++) b_row[j] = vf_load(b + (k * vectors + j) * VF_WIDTH);
            UNROLL for (int i = 0; i < TILE_ROWS; i++) {
                vf broadcast = vf_set(a[i][k]);
                UNROLL for (int j = 0; j < vectors; j++)
                    sums[i * vectors + j] = vf_fma(broadcast, b_row[j], sums[i * vectors + j]);
            }
        }
    }
    UNROLL for (int i = 0; i < TILE_ROWS; i++) {
        UNROLL for (int j = 0; j < vectors; j++) vf_store(out + i * TILE_COLUMNS + j * VF_WIDTH, sums[i * vectors + j]);
    }
}

/* In functions of their own: inlined into one caller, their row pointers spill. */
#define SEARCH_TILE(name, vectors)                                                                                     \
    static __attribute__((noinline)) void name(const float *const rows[TILE_ROWS], const float *b, ptrdiff_t depth,    \
                                               ptrdiff_t ahead, float *out, int add) {                                 \
        search_tile(vectors, rows, b, depth, ahead, out, add);                                                         \
    }
SEARCH_TILE(tile_of_one, 1)
SEARCH_TILE(tile_of_two, 2)
SEARCH_TILE(tile_of_all, TILE_VECTORS)
#undef SEARCH_TILE

#endif

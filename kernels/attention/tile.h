/* The small products inside attention: C = (C +) A B with everything in a thread's scratch.
 *
 * A is read a number at a time with any strides (so also transposed), B by vectors. Four rows times VALUE_VECTORS
 * vectors of sums stay in registers. Words of A and B are floats, or pairs of bfloat16 (bfloat16.h) that lie as floats do;
 * depth counts words. Knows nothing of softmax, heads or masks.
 */
#ifndef FASTMIXER_ATTENTION_TILE_H
#define FASTMIXER_ATTENTION_TILE_H

#include "amx.h"
#include "bfloat16.h"
#include "attention/rows.h"
#include "matmul/tile.h"
#include "parts.h"
#include "vec.h"

#if VF_REGISTERS == 32
#define VALUE_VECTORS 4
#else
#define VALUE_VECTORS 2
#endif
#define VALUE_ROWS 4 /* divides VF_WIDTH: a group of keys stays in one vector */
enum { TILE_STEPS = KEY_TILE / PARTS_STEP }; /* of a tile of keys, or of queries, in parts */
#define BACKWARD_TILES (AMX ? 6 : 4) /* of keys, which a tile of queries meets once it is packed, where that takes long */
#define MOST_ROWS (AMX ? AMX_BAND_ROWS : VALUE_ROWS) /* that a product of any kind makes together */

VEC_INLINE void multiply_rows(const float *a, ptrdiff_t a_row, ptrdiff_t a_step, ptrdiff_t rows, const float *b,
                              ptrdiff_t b_stride, float *c, ptrdiff_t c_stride, ptrdiff_t depth, int vectors, int pairs,
                              int add) {
    const float *row[VALUE_ROWS];
    vf sums[VALUE_ROWS][VALUE_VECTORS];
    for (int i = 0; i < VALUE_ROWS; i++) row[i] = a + (i < rows ? i : rows - 1) * a_row; /* past the end: the last row */
    for (int i = 0; i < VALUE_ROWS; i++)
        for (int j = 0; j < vectors; j++) sums[i][j] = vf_zero();
    UNROLL_K for (ptrdiff_t k = 0; k < depth; k++) {
        vf values[VALUE_VECTORS];
        for (int j = 0; j < vectors; j++) values[j] = vf_load(b + k * b_stride + j * VF_WIDTH);
        for (int i = 0; i < VALUE_ROWS; i++) {
            vf x = vf_set(row[i][k * a_step]);
            for (int j = 0; j < vectors; j++)
                sums[i][j] = pairs ? bf16_dot(sums[i][j], x, values[j]) : vf_fma(x, values[j], sums[i][j]);
        }
    }
    for (int i = 0; i < VALUE_ROWS; i++)
        if (i < rows)
            for (int j = 0; j < vectors; j++) {
                float *place = c + i * c_stride + j * VF_WIDTH;
                vf_store(place, add ? vf_add(vf_load(place), sums[i][j]) : sums[i][j]);
            }
}

/* c [rows <= VALUE_ROWS][columns] = (c +) A B: A's row i, number k at a + i a_row + k a_step; b [depth][b_stride];
 * columns is a multiple of VF_WIDTH, and b and c are padded to it. */
VEC_INLINE void multiply_group_of(int pairs, const float *a, ptrdiff_t a_row, ptrdiff_t a_step, ptrdiff_t rows,
                                  const float *b, ptrdiff_t b_stride, float *c, ptrdiff_t c_stride, ptrdiff_t columns,
                                  ptrdiff_t depth, int add) {
    for (ptrdiff_t column = 0; column < columns; column += VALUE_VECTORS * VF_WIDTH) {
        ptrdiff_t vectors = (columns - column) / VF_WIDTH;
#define WITH(count)                                                                                                     \
    multiply_rows(a, a_row, a_step, rows, b + column, b_stride, c + column, c_stride, depth, count, pairs, add)
        if (vectors >= VALUE_VECTORS) WITH(VALUE_VECTORS);
#if VALUE_VECTORS == 4
        else if (vectors == 3) WITH(3);
        else if (vectors == 2) WITH(2);
#endif
        else WITH(1);
#undef WITH
    }
}

static void multiply_floats(const float *a, ptrdiff_t a_row, ptrdiff_t a_step, ptrdiff_t rows, const float *b,
                            ptrdiff_t b_stride, float *c, ptrdiff_t c_stride, ptrdiff_t columns, ptrdiff_t depth, int add) {
    multiply_group_of(0, a, a_row, a_step, rows, b, b_stride, c, c_stride, columns, depth, add);
}

static void multiply_pairs(const float *a, ptrdiff_t a_row, ptrdiff_t a_step, ptrdiff_t rows, const float *b,
                           ptrdiff_t b_stride, float *c, ptrdiff_t c_stride, ptrdiff_t columns, ptrdiff_t depth, int add) {
    multiply_group_of(1, a, a_row, a_step, rows, b, b_stride, c, c_stride, columns, depth, add);
}

/* x in lanes first..end-1, -inf in the others. */
VEC_INLINE vf vf_only(vf x, ptrdiff_t first, ptrdiff_t end) {
    vi lanes = vi_lanes();
    return vf_select((lanes >= (int32_t)first) & (lanes < (int32_t)end), x, vf_set(-INFINITY));
}

/* Asks for rows that are packed soon: packing them cold waits for memory longer than it works. */
VEC_INLINE void ask_for_rows(const float *rows, ptrdiff_t stride, ptrdiff_t count, ptrdiff_t width) {
    for (ptrdiff_t i = 0; i < count; i++)
        for (ptrdiff_t j = 0; j < width; j += 16) __builtin_prefetch(rows + i * stride + j, 0, 2); /* 64 bytes */
}

VEC_INLINE void copy_row(float *out, const float *row, ptrdiff_t count) {
    ptrdiff_t j = 0;
    for (; j + VF_WIDTH <= count; j += VF_WIDTH) vf_store(out + j, vf_load(row + j));
    if (j < count) vf_store_first(out + j, vf_load_first(row + j, count - j), count - j);
}

/* out [count][out_stride] = rows of in (in_stride apart, `width` floats) times factor, zeros up to out_stride. */
static void pack_rows(const float *in, ptrdiff_t in_stride, ptrdiff_t count, ptrdiff_t width, float factor, float *out,
                      ptrdiff_t out_stride) {
    for (ptrdiff_t i = 0; i < count; i++)
        for (ptrdiff_t j = 0; j < out_stride; j += VF_WIDTH) {
            ptrdiff_t lanes = width - j < VF_WIDTH ? width - j : VF_WIDTH;
            const float *place = in + i * in_stride + j;
            vf_store(out + i * out_stride + j, (lanes == VF_WIDTH ? vf_load(place) : vf_load_first(place, lanes)) * factor);
        }
}

/* `lanes` floats from p on, at most a vector, zeros after them; none are read where lanes <= 0. */
VEC_INLINE vf vf_load_some(const float *p, ptrdiff_t lanes) {
    return lanes >= VF_WIDTH ? vf_load(p) : lanes <= 0 ? vf_zero() : vf_load_first(p, lanes);
}

/* out [count][out_stride] = the rows times factor as pairs of neighbours: ceil(width / 2) words, then zeros. */
static void pack_neighbours(const float *in, ptrdiff_t in_stride, ptrdiff_t count, ptrdiff_t width, float factor, float *out,
                            ptrdiff_t out_stride) {
    for (ptrdiff_t i = 0; i < count; i++)
        for (ptrdiff_t j = 0; j < out_stride; j += VF_WIDTH) {
            const float *place = in + i * in_stride + 2 * j;
            ptrdiff_t lanes = width - 2 * j;
            vf_store(out + i * out_stride + j, bf16_neighbours(vf_load_some(place, lanes) * factor,
                                                               vf_load_some(place + VF_WIDTH, lanes - VF_WIDTH) * factor));
        }
}

/* out [ceil(count / 2)][out_stride] = two rows at a time as pairs of one number of each, times factor, zeros past the ends. */
static void pack_couples(const float *in, ptrdiff_t in_stride, ptrdiff_t count, ptrdiff_t width, float factor, float *out,
                         ptrdiff_t out_stride) {
    for (ptrdiff_t i = 0; i < count; i += 2)
        for (ptrdiff_t j = 0; j < out_stride; j += VF_WIDTH) {
            const float *place = in + i * in_stride + j;
            vf second = i + 1 < count ? vf_load_some(place + in_stride, width - j) : vf_zero();
            vf_store(out + i / 2 * out_stride + j, bf16_couples(vf_load_some(place, width - j) * factor, second * factor));
        }
}

#endif

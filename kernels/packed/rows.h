/* Products of few rows with weights that lie as rows, floats or pairs of bfloat16: dot products along memory. A row's sums take
 * the same steps however many rows there are. Knows nothing of tasks or threads.
 */
#ifndef FASTMIXER_PACKED_ROWS_H
#define FASTMIXER_PACKED_ROWS_H

#include "bfloat16.h"

#define DOT_COLUMNS 4
#define DOT_ROWS (VF_REGISTERS == 32 ? 4 : 2)

/* sums [rows][sums_row], `columns` of each: x's rows (`words` each) times the weight's rows at `weight`. */
VEC_INLINE void dot_words(const int rows, const int columns, const int pairs, const float *x, const float *weight, ptrdiff_t words,
                          float *sums, ptrdiff_t sums_row) {
    vf total[DOT_ROWS][DOT_COLUMNS];
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < columns; j++) total[i][j] = vf_zero();
    }
    for (ptrdiff_t k = 0; k < words; k += VF_WIDTH) {
        const ptrdiff_t lanes = words - k;
        vf w[DOT_COLUMNS];
        UNROLL for (int j = 0; j < columns; j++)
            w[j] = lanes >= VF_WIDTH ? vf_load(weight + j * words + k) : vf_load_first(weight + j * words + k, lanes);
        UNROLL for (int i = 0; i < rows; i++) {
            vf a = lanes >= VF_WIDTH ? vf_load(x + i * words + k) : vf_load_first(x + i * words + k, lanes);
            UNROLL for (int j = 0; j < columns; j++) total[i][j] = pairs ? bf16_dot(total[i][j], a, w[j]) : vf_fma(a, w[j], total[i][j]);
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < columns; j++) sums[i * sums_row + j] = vf_sum(total[i][j]);
    }
}

VEC_INLINE void dot_rows(ptrdiff_t rows, const int columns, const int pairs, const float *x, const float *weight, ptrdiff_t words,
                         float *sums, ptrdiff_t sums_row) {
    ptrdiff_t row = 0;
    for (; row + DOT_ROWS <= rows; row += DOT_ROWS)
        dot_words(DOT_ROWS, columns, pairs, x + row * words, weight, words, sums + row * sums_row, sums_row);
    for (; row < rows; row++) dot_words(1, columns, pairs, x + row * words, weight, words, sums + row * sums_row, sums_row);
}

/* sums [rows][sums_row], of each the first `columns`, in steps of DOT_COLUMNS and then of one. */
static void dot_columns(ptrdiff_t rows, ptrdiff_t columns, int pairs, const float *x, const float *weight, ptrdiff_t words, float *sums,
                        ptrdiff_t sums_row) {
    ptrdiff_t j = 0;
    for (; j + DOT_COLUMNS <= columns; j += DOT_COLUMNS) {
        if (pairs) dot_rows(rows, DOT_COLUMNS, 1, x, weight + j * words, words, sums + j, sums_row);
        else dot_rows(rows, DOT_COLUMNS, 0, x, weight + j * words, words, sums + j, sums_row);
    }
    for (; j < columns; j++) {
        if (pairs) dot_rows(rows, 1, 1, x, weight + j * words, words, sums + j, sums_row);
        else dot_rows(rows, 1, 0, x, weight + j * words, words, sums + j, sums_row);
    }
}

#endif

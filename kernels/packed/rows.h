/* Products of few rows of bfloat16 pairs with weights that lie as rows: dot products along memory.
 *
 * Knows nothing of tasks or threads.
 */
#ifndef FASTMIXER_PACKED_ROWS_H
#define FASTMIXER_PACKED_ROWS_H

#include "bfloat16.h"

#define DOT_COLUMNS 4
#define DOT_ROWS 4

/* sums [rows][sums_row], DOT_COLUMNS of each: x's rows (`half` pairs each) times the weight's rows at `weight`. */
VEC_INLINE void dot_pairs(int rows, const float *x, const float *weight, ptrdiff_t half, float *sums, ptrdiff_t sums_row) {
    vf total[DOT_ROWS][DOT_COLUMNS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < DOT_COLUMNS; j++) total[i][j] = vf_zero();
    for (ptrdiff_t k = 0; k < half; k += VF_WIDTH) {
        ptrdiff_t lanes = half - k;
        vf w[DOT_COLUMNS];
        for (int j = 0; j < DOT_COLUMNS; j++)
            w[j] = lanes >= VF_WIDTH ? vf_load(weight + j * half + k) : vf_load_first(weight + j * half + k, lanes);
        for (int i = 0; i < rows; i++) {
            vf a = lanes >= VF_WIDTH ? vf_load(x + i * half + k) : vf_load_first(x + i * half + k, lanes);
            for (int j = 0; j < DOT_COLUMNS; j++) total[i][j] = bf16_dot(total[i][j], a, w[j]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < DOT_COLUMNS; j++) sums[i * sums_row + j] = vf_sum(total[i][j]);
}

static void dot_pairs_of(ptrdiff_t rows, const float *x, const float *weight, ptrdiff_t half, float *sums,
                         ptrdiff_t sums_row) {
    if (rows == 1) dot_pairs(1, x, weight, half, sums, sums_row);
    else if (rows == 2) dot_pairs(2, x, weight, half, sums, sums_row);
    else if (rows == 3) dot_pairs(3, x, weight, half, sums, sums_row);
    else dot_pairs(4, x, weight, half, sums, sums_row);
}

#endif

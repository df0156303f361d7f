/* Products of few rows with weights that lie as rows, floats or pairs of bfloat16: dot products along memory. A row's sums take
 * the same steps however many rows there are. Knows nothing of tasks or threads.
 */
#ifndef FASTMIXER_PACKED_ROWS_H
#define FASTMIXER_PACKED_ROWS_H

#include "bfloat16.h"

/* A column has its sum in SUM_PARTS parts: one column after another is one stretch of memory, which processors prefetch (four
 * columns at a time, with a sum each, took 1.2-1.5 times as long in float32). */
#define SUM_PARTS 4
#define DOT_ROWS (VF_REGISTERS == 32 ? 4 : 2)
/* Every ASKED_EVERY words the line that lies WORDS_AHEAD further is asked for. What follows it processors fetch on their own, but no
 * further than a page of 4 KB (a Zen 4 takes 10 % more time without, on two threads 6 %; 20 % more if every line is asked for).
 * Not by DOT_ROWS rows of floats, whose products take longer than memory: 6-15 % more time with it. */
enum { ASKED_EVERY = 128, WORDS_AHEAD = 2048 };

VEC_INLINE vf dot_step(vf sum, vf a, vf w, const int pairs) { return pairs ? bf16_dot(sum, a, w) : vf_fma(a, w, sum); }

/* sums[i * sums_row] = x's row i (`words` each) times the weight's row. */
VEC_INLINE void dot_words(const int rows, const int pairs, const float *x, const float *weight, ptrdiff_t words, float *sums,
                          ptrdiff_t sums_row) {
    vf total[DOT_ROWS][SUM_PARTS];
    ptrdiff_t k = 0;
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int p = 0; p < SUM_PARTS; p++) total[i][p] = vf_zero();
    }
    for (; k + SUM_PARTS * VF_WIDTH <= words; k += SUM_PARTS * VF_WIDTH) {
        if ((pairs || rows < DOT_ROWS) && k % ASKED_EVERY == 0) __builtin_prefetch(weight + k + WORDS_AHEAD, 0, 2);
        UNROLL for (int p = 0; p < SUM_PARTS; p++) {
            const vf w = vf_load(weight + k + p * VF_WIDTH);
            UNROLL for (int i = 0; i < rows; i++) total[i][p] = dot_step(total[i][p], vf_load(x + i * words + k + p * VF_WIDTH), w, pairs);
        }
    }
    for (; k < words; k += VF_WIDTH) {
        const ptrdiff_t lanes = words - k < VF_WIDTH ? words - k : VF_WIDTH;
        const vf w = vf_load_first(weight + k, lanes);
        UNROLL for (int i = 0; i < rows; i++) total[i][0] = dot_step(total[i][0], vf_load_first(x + i * words + k, lanes), w, pairs);
    }
    UNROLL for (int i = 0; i < rows; i++) sums[i * sums_row] = vf_sum((total[i][0] + total[i][1]) + (total[i][2] + total[i][3]));
}

VEC_INLINE void dot_row_columns(const int rows, ptrdiff_t columns, const int pairs, const float *x, const float *weight,
                                ptrdiff_t words, float *sums, ptrdiff_t sums_row) {
    for (ptrdiff_t j = 0; j < columns; j++) dot_words(rows, pairs, x, weight + j * words, words, sums + j, sums_row);
}

VEC_INLINE void dot_rows(ptrdiff_t rows, ptrdiff_t columns, const int pairs, const float *x, const float *weight, ptrdiff_t words,
                         float *sums, ptrdiff_t sums_row) {
    /* so many rows meet all columns before the next ones do: they stay in L1, weights come from L2 then */
    for (; rows >= DOT_ROWS; rows -= DOT_ROWS, x += DOT_ROWS * words, sums += DOT_ROWS * sums_row)
        dot_row_columns(DOT_ROWS, columns, pairs, x, weight, words, sums, sums_row);
    if (DOT_ROWS == 4 && rows == 3) dot_row_columns(3, columns, pairs, x, weight, words, sums, sums_row);
    else if (DOT_ROWS == 4 && rows == 2) dot_row_columns(2, columns, pairs, x, weight, words, sums, sums_row);
    else if (rows == 1) dot_row_columns(1, columns, pairs, x, weight, words, sums, sums_row);
}

/* sums [rows][sums_row], of each the first `columns`. */
static void dot_columns(ptrdiff_t rows, ptrdiff_t columns, int pairs, const float *x, const float *weight, ptrdiff_t words, float *sums,
                        ptrdiff_t sums_row) {
    if (pairs) dot_rows(rows, columns, 1, x, weight, words, sums, sums_row);
    else dot_rows(rows, columns, 0, x, weight, words, sums, sums_row);
}

#endif

/* Rows of floats rounded to pairs of bfloat16 and turned: neighbours in a row become a word, and a row becomes a lane.
 * Knows nothing of panels.
 */
#ifndef FASTMIXER_PAIRS_H
#define FASTMIXER_PAIRS_H

#include "bfloat16.h"
#include "transpose.h"

/* out [ceil(columns / 2)][out_row]: word k of lane i is the pair (2k, 2k + 1) of row i of x; rows, `row` floats apart, are
 * at most VF_WIDTH, and lanes past them are left alone. `stream`: past the caches. */
static void pairs_turned(const float *x, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t columns, float *out, ptrdiff_t out_row,
                         int stream) {
    float square[VF_WIDTH * VF_WIDTH], turned[VF_WIDTH * VF_WIDTH];
    memset(square, 0, sizeof square);
    for (ptrdiff_t column = 0; column < columns; column += 2 * VF_WIDTH, out += VF_WIDTH * out_row) {
        const ptrdiff_t left = columns - column, words = left < 2 * VF_WIDTH ? (left + 1) / 2 : VF_WIDTH;
        for (ptrdiff_t i = 0; i < rows; i++) {
            const float *at = x + i * row + column;
            vf first, second;
            if (left >= 2 * VF_WIDTH) {
                first = vf_load(at);
                second = vf_load(at + VF_WIDTH);
            } else {
                first = vf_load_first(at, left < VF_WIDTH ? left : VF_WIDTH);
                second = left > VF_WIDTH ? vf_load_first(at + VF_WIDTH, left - VF_WIDTH) : vf_zero();
            }
            vf_store(square + i * VF_WIDTH, bf16_all_neighbours(first, second));
        }
        vf_transpose(square, VF_WIDTH, turned, VF_WIDTH);
        for (ptrdiff_t k = 0; k < words; k++) {
            const vf word = vf_load(turned + k * VF_WIDTH);
            if (rows < VF_WIDTH) vf_store_first(out + k * out_row, word, rows);
            else if (stream) vf_stream(out + k * out_row, word);
            else vf_store(out + k * out_row, word);
        }
    }
}

#endif

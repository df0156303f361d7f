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
    vf pairs[VF_WIDTH];
    for (; columns >= 2 * VF_WIDTH && rows == VF_WIDTH; columns -= 2 * VF_WIDTH, x += 2 * VF_WIDTH, out += VF_WIDTH * out_row) {
        UNROLL for (int i = 0; i < VF_WIDTH; i++)
            pairs[i] = bf16_all_neighbours(vf_load(x + i * row), vf_load(x + i * row + VF_WIDTH));
        vf_turn(pairs);
        if (stream) {
            UNROLL for (int k = 0; k < VF_WIDTH; k++) vf_stream(out + k * out_row, pairs[k]);
        } else {
            UNROLL for (int k = 0; k < VF_WIDTH; k++) vf_store(out + k * out_row, pairs[k]);
        }
    }
    for (; columns > 0; columns -= 2 * VF_WIDTH, x += 2 * VF_WIDTH, out += VF_WIDTH * out_row) {
        const ptrdiff_t first = columns < VF_WIDTH ? columns : VF_WIDTH;
        const ptrdiff_t second = columns < 2 * VF_WIDTH ? columns - first : VF_WIDTH;
        for (ptrdiff_t i = 0; i < VF_WIDTH; i++)
            pairs[i] = i < rows ? bf16_all_neighbours(vf_load_first(x + i * row, first), vf_load_first(x + i * row + VF_WIDTH, second))
                                : vf_zero();
        vf_turn(pairs);
        for (ptrdiff_t k = 0; k < (first + second + 1) / 2; k++) vf_store_first(out + k * out_row, pairs[k], rows);
    }
}

#endif

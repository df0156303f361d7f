/* What becomes of rows of a tile of scores between the small products: online softmax, gradients, rounding to pairs.
 *
 * A row has KEY_TILE columns, of which first..end-1, whole vectors, are at work. Most rows are seen whole: with constants for
 * bounds they stay in registers from their largest score to what the next product reads. Knows nothing of heads or masks.
 */
#ifndef FASTMIXER_ATTENTION_ROWS_H
#define FASTMIXER_ATTENTION_ROWS_H

#include "bfloat16.h"
#include "vec.h"

enum { KEY_TILE = 64 }; /* as many as philox_batch has words; keys and values of 64 fit L1 and a corner of L2 */

/* Two vectors as pairs of neighbours, at their place in a row of words. */
VEC_INLINE void store_neighbours(float *row, ptrdiff_t column, vf a, vf b) { vf_store(row + column / 2, bf16_neighbours(a, b)); }

/* The same of the last vector of a row. */
VEC_INLINE void store_last_neighbours(float *row, ptrdiff_t column, vf a) {
    vf_store_first(row + column / 2, bf16_neighbours(a, vf_zero()), VF_WIDTH / 2);
}

VEC_INLINE vf kept_part(vf x, const float *kept, ptrdiff_t column) { return kept ? x * vf_load(kept + column) : x; }

/* ---- forward ---- */

VEC_INLINE vf online_softmax(float *scores, ptrdiff_t first, ptrdiff_t end, float *largest, float *shrink, int pairs,
                             const float *kept) {
    vf most = vf_set(-INFINITY), total = vf_zero();
    UNROLL_FOUR for (ptrdiff_t j = first; j < end; j += VF_WIDTH) most = vf_max(most, vf_load(scores + j));
    const float grown = vf_largest(most);
    *shrink = 1;
    if (grown > *largest) {
        if (*largest != -INFINITY) *shrink = expf(*largest - grown);
        *largest = grown;
    }
    const vf shift = vf_set(*largest == -INFINITY ? 0 : *largest);
    ptrdiff_t j = first;
    UNROLL_FOUR for (; j + VF_WIDTH < end; j += 2 * VF_WIDTH) {
        vf a = vf_exp_negative(vf_load(scores + j) - shift), b = vf_exp_negative(vf_load(scores + j + VF_WIDTH) - shift);
        total += a + b;
        a = kept_part(a, kept, j), b = kept_part(b, kept, j + VF_WIDTH);
        if (pairs) store_neighbours(scores, j, a, b);
        else vf_store(scores + j, a), vf_store(scores + j + VF_WIDTH, b);
    }
    if (j < end) {
        vf a = vf_exp_negative(vf_load(scores + j) - shift);
        total += a;
        a = kept_part(a, kept, j);
        if (pairs) store_last_neighbours(scores, j, a);
        else vf_store(scores + j, a);
    }
    return total;
}

/* scores = exp(scores - largest) times kept (unless NULL), in pairs of neighbours if pairs, where largest grows to theirs
 * first; shrink: what earlier sums are to be multiplied by then. Returns the sum before kept, a part in each lane. */
static vf softmax_row(float *scores, ptrdiff_t first, ptrdiff_t end, float *largest, float *shrink, int pairs, const float *kept) {
    if (end - first < KEY_TILE || kept) return online_softmax(scores, first, end, largest, shrink, pairs, kept);
    if (pairs) return online_softmax(scores, 0, KEY_TILE, largest, shrink, 1, NULL);
    return online_softmax(scores, 0, KEY_TILE, largest, shrink, 0, NULL);
}

/* ---- backward ---- */

/* One vector: weights = exp(weights - shift), d_weights become d_scores = weights (kept d_weights - delta); the weights that
 * blended are kept weights. */
VEC_INLINE void vector_gradient(vf *weights, vf *d_weights, vf shift, vf delta, const float *kept, ptrdiff_t column) {
    const vf weight = vf_exp_negative(*weights - shift);
    *d_weights = weight * (kept_part(*d_weights, kept, column) - delta);
    *weights = kept_part(weight, kept, column);
}

VEC_INLINE void float_gradients(float *weights, float *d_weights, ptrdiff_t first, ptrdiff_t end, float shift, float delta,
                                const float *kept) {
    UNROLL_FOUR for (ptrdiff_t j = first; j < end; j += VF_WIDTH) {
        vf w = vf_load(weights + j), d = vf_load(d_weights + j);
        vector_gradient(&w, &d, vf_set(shift), vf_set(delta), kept, j);
        vf_store(weights + j, w), vf_store(d_weights + j, d);
    }
}

/* A row of weights and of d_weights, in place. */
static void row_gradients(float *weights, float *d_weights, ptrdiff_t first, ptrdiff_t end, float shift, float delta,
                          const float *kept) {
    if (end - first < KEY_TILE || kept) float_gradients(weights, d_weights, first, end, shift, delta, kept);
    else float_gradients(weights, d_weights, 0, KEY_TILE, shift, delta, NULL);
}

VEC_INLINE void pair_gradients(const float *weights, const float *d_weights, ptrdiff_t rows, ptrdiff_t first, ptrdiff_t end,
                               const float *shifts, const float *deltas, const float *kept, float *d_scores, float *couples,
                               float *d_couples) {
    UNROLL_FOUR for (ptrdiff_t j = first; j < end; j += 2 * VF_WIDTH) {
        const int last = j + VF_WIDTH >= end;
        vf w[2][2], d[2][2];
        UNROLL for (int i = 0; i < 2; i++) {
            w[i][0] = w[i][1] = d[i][0] = d[i][1] = vf_zero();
            if (i >= rows) continue;
            UNROLL for (int half = 0; half < 2 - last; half++) {
                const ptrdiff_t column = j + half * VF_WIDTH, place = i * KEY_TILE + column;
                w[i][half] = vf_load(weights + place), d[i][half] = vf_load(d_weights + place);
                vector_gradient(&w[i][half], &d[i][half], vf_set(shifts[i]), vf_set(deltas[i]), kept, place);
            }
            if (last) store_last_neighbours(d_scores + i * KEY_TILE, j, d[i][0]);
            else store_neighbours(d_scores + i * KEY_TILE, j, d[i][0], d[i][1]);
        }
        UNROLL for (int half = 0; half < 2 - last; half++) {
            vf_store(couples + j + half * VF_WIDTH, bf16_couples(w[0][half], w[1][half]));
            vf_store(d_couples + j + half * VF_WIDTH, bf16_couples(d[0][half], d[1][half]));
        }
    }
}

/* Two rows (or one, its fellow zeros) of weights and d_weights: d_scores as pairs along each row, [2][KEY_TILE]; weights and
 * d_scores as pairs of the two rows, in couples and d_couples [KEY_TILE], which may be the first row or before it. */
static void row_gradients_in_pairs(const float *weights, const float *d_weights, ptrdiff_t rows, ptrdiff_t first, ptrdiff_t end,
                                   const float *shifts, const float *deltas, const float *kept, float *d_scores, float *couples,
                                   float *d_couples) {
    if (end - first < KEY_TILE || kept || rows < 2)
        pair_gradients(weights, d_weights, rows, first, end, shifts, deltas, kept, d_scores, couples, d_couples);
    else pair_gradients(weights, d_weights, 2, 0, KEY_TILE, shifts, deltas, NULL, d_scores, couples, d_couples);
}

#endif

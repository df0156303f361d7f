/* A few rows of queries against one page of keys and values: scores, online softmax, blend.
 *
 * Keys lie transposed [head_dim][PAGE_KEYS], so that scores of neighbouring keys are neighbours in a vector; values lie
 * [PAGE_KEYS][head_dim]. Pages hold float32, bfloat16 or int8 with a scale a key and are widened once for all rows.
 * Source of the online softmax: Milakov and Gimelshein 2018 (arXiv 1805.02867). Knows nothing of page tables or threads.
 */
#ifndef FASTMIXER_DECODER_ATTEND_H
#define FASTMIXER_DECODER_ATTEND_H

#include <math.h>

#include "vec.h"

enum { PAGE_KEYS = 64, ATTEND_ROWS = 4 };
enum { PAGES_FLOAT32, PAGES_BFLOAT16, PAGES_INT8 };

#if VF_REGISTERS == 32
#define ATTEND_VECTORS 4
#else
#define ATTEND_VECTORS 2
#endif

/* VF_WIDTH numbers of bfloat16, or of int8, as floats. */
VEC_INLINE vf vf_from_bfloat16(const uint16_t *p) {
#if defined(VEC_AVX512)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#elif defined(VEC_AVX2)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
#else
    vi bits;
    for (int i = 0; i < VF_WIDTH; i++) bits[i] = (int32_t)((uint32_t)p[i] << 16);
    return (vf)bits;
#endif
}

VEC_INLINE vf vf_from_int8(const int8_t *p) {
#if defined(VEC_AVX512)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(VEC_AVX2)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    vi numbers;
    for (int i = 0; i < VF_WIDTH; i++) numbers[i] = p[i];
    return __builtin_convertvector(numbers, vf);
#endif
}

static inline uint16_t bfloat16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* out [rows][out_row] = a page's rows of `width` numbers, of any type. width is a multiple of VF_WIDTH, or the rows'
 * ends are filled one by one; what lies behind them is zero. */
static void widen_page(const void *page, int type, ptrdiff_t rows, ptrdiff_t width, float *out, ptrdiff_t out_row) {
    for (ptrdiff_t i = 0; i < rows; i++) {
        float *to = out + i * out_row;
        ptrdiff_t j = 0;
        if (type == PAGES_BFLOAT16) {
            const uint16_t *from = (const uint16_t *)page + i * width;
            for (; j + VF_WIDTH <= width; j += VF_WIDTH) vf_store(to + j, vf_from_bfloat16(from + j));
            for (; j < width; j++) {
                uint32_t bits = (uint32_t)from[j] << 16;
                memcpy(to + j, &bits, sizeof bits);
            }
        } else if (type == PAGES_INT8) {
            const int8_t *from = (const int8_t *)page + i * width;
            for (; j + VF_WIDTH <= width; j += VF_WIDTH) vf_store(to + j, vf_from_int8(from + j));
            for (; j < width; j++) to[j] = from[j];
        } else {
            const float *from = (const float *)page + i * width;
            for (; j < width; j++) to[j] = from[j];
        }
        for (; j < out_row; j++) to[j] = 0;
    }
}

/* c [rows <= ATTEND_ROWS][columns] = (c +) A B: A [rows][a_row], B [depth][b_row]; columns a multiple of VF_WIDTH. */
VEC_INLINE void attend_rows(const float *a, ptrdiff_t a_row, ptrdiff_t rows, const float *b, ptrdiff_t b_row, float *c,
                            ptrdiff_t c_row, ptrdiff_t depth, int row_count, int vectors, int add) {
    vf sums[ATTEND_ROWS][ATTEND_VECTORS];
    for (int i = 0; i < row_count; i++)
        for (int j = 0; j < vectors; j++) sums[i][j] = add ? vf_load(c + i * c_row + j * VF_WIDTH) : vf_zero();
    for (ptrdiff_t k = 0; k < depth; k++) {
        vf values[ATTEND_VECTORS];
        for (int j = 0; j < vectors; j++) values[j] = vf_load(b + k * b_row + j * VF_WIDTH);
        for (int i = 0; i < row_count; i++) {
            vf x = vf_set(a[i * a_row + k]);
            for (int j = 0; j < vectors; j++) sums[i][j] = vf_fma(x, values[j], sums[i][j]);
        }
    }
    for (int i = 0; i < row_count; i++)
        for (int j = 0; j < vectors; j++) vf_store(c + i * c_row + j * VF_WIDTH, sums[i][j]);
}

static __attribute__((noinline)) void attend_product(const float *a, ptrdiff_t a_row, ptrdiff_t rows, const float *b,
                                                     ptrdiff_t b_row, float *c, ptrdiff_t c_row, ptrdiff_t columns,
                                                     ptrdiff_t depth, int add) {
    for (ptrdiff_t column = 0; column < columns; column += ATTEND_VECTORS * VF_WIDTH) {
        ptrdiff_t vectors = (columns - column) / VF_WIDTH;
#define WITH(row_count, count)                                                                                         \
    attend_rows(a, a_row, rows, b + column, b_row, c + column, c_row, depth, row_count, count, add)
#define ROWS(count)                                                                                                    \
    if (rows >= 4) WITH(4, count);                                                                                     \
    else if (rows == 3) WITH(3, count);                                                                                \
    else if (rows == 2) WITH(2, count);                                                                                \
    else WITH(1, count)
        if (vectors >= ATTEND_VECTORS) { ROWS(ATTEND_VECTORS); }
#if ATTEND_VECTORS == 4
        else if (vectors == 3) { ROWS(3); }
        else if (vectors == 2) { ROWS(2); }
#endif
        else { ROWS(1); }
#undef ROWS
#undef WITH
    }
}

/* What a row of queries has gathered so far. */
typedef struct {
    float *blend;   /* [rows][dim]: the sum of weights times values */
    float *totals;  /* [rows]: the sum of weights */
    float *largest; /* [rows]: the largest score */
    ptrdiff_t dim;  /* head_dim, padded to VF_WIDTH */
} Gathered;

/* Rows row..row+rows-1 (at most ATTEND_ROWS) meet a page. queries [rows][dim], times scale; keys [head_dim][PAGE_KEYS];
 * values [PAGE_KEYS][dim]; key_scales, value_scales: of each key or NULL; row i sees keys first[i]..end[i]-1 of the page. */
static void attend_page(const Gathered *g, ptrdiff_t row, ptrdiff_t rows, const float *queries, const float *keys,
                        const float *values, const float *key_scales, const float *value_scales, ptrdiff_t head_dim,
                        float softcap, const ptrdiff_t *first, const ptrdiff_t *end) {
    float weights[ATTEND_ROWS * PAGE_KEYS];
    ptrdiff_t lowest = first[0], highest = end[0];
    for (ptrdiff_t i = 1; i < rows; i++) {
        lowest = first[i] < lowest ? first[i] : lowest;
        highest = end[i] > highest ? end[i] : highest;
    }
    if (lowest >= highest) return;
    attend_product(queries + row * g->dim, g->dim, rows, keys, PAGE_KEYS, weights, PAGE_KEYS, PAGE_KEYS, head_dim, 0);
    for (ptrdiff_t i = 0; i < rows; i++) {
        float *w = weights + i * PAGE_KEYS;
        vf most = vf_set(-INFINITY);
        vi lanes = vi_lanes();
        for (ptrdiff_t j = 0; j < PAGE_KEYS; j += VF_WIDTH) {
            vf score = vf_load(w + j);
            if (key_scales != NULL) score = score * vf_load(key_scales + j);
            if (softcap > 0) /* c tanh(s / c) */
                score = softcap * (1.0f - 2.0f / (1.0f + vf_exp(score * (2.0f / softcap))));
            if (j < first[i] || j + VF_WIDTH > end[i]) {
                vi seen = (lanes >= (int32_t)(first[i] - j)) & (lanes < (int32_t)(end[i] - j));
                score = vf_select(seen, score, vf_set(-INFINITY));
            }
            vf_store(w + j, score);
            most = vf_max(most, score);
        }
        float largest = vf_largest(most), before = g->largest[row + i];
        if (largest > before) {
            if (before != -INFINITY) {
                float correction = expf(before - largest);
                g->totals[row + i] *= correction;
                for (ptrdiff_t d = 0; d < g->dim; d += VF_WIDTH) {
                    float *place = g->blend + (row + i) * g->dim + d;
                    vf_store(place, vf_load(place) * correction);
                }
            }
            g->largest[row + i] = largest;
        } else
            largest = before;
        if (largest == -INFINITY) largest = 0; /* no key is seen yet: every weight becomes 0 */
        vf total = vf_zero();
        for (ptrdiff_t j = 0; j < PAGE_KEYS; j += VF_WIDTH) {
            vf weight = vf_exp(vf_load(w + j) - largest);
            total += weight;
            if (value_scales != NULL) weight = weight * vf_load(value_scales + j);
            vf_store(w + j, weight);
        }
        g->totals[row + i] += vf_sum(total);
    }
    /* Keys that nobody sees may hold anything, NaN too: they are left out, not multiplied by zero. */
    attend_product(weights + lowest, PAGE_KEYS, rows, values + lowest * g->dim, g->dim, g->blend + row * g->dim, g->dim,
                   g->dim, highest - lowest, 1);
}

#endif

/* A few rows of queries against one page of keys and values: scores, online softmax, blend.
 *
 * Keys lie transposed [head_dim][PAGE_KEYS], so that scores of neighbouring keys are neighbours in a vector; values lie
 * [PAGE_KEYS][head_dim]. Pages hold float32, bfloat16 or int8 with a scale a key. More rows: attend_tile.h.
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

/* VF_WIDTH numbers of a page, from number `at` on. */
VEC_INLINE vf load_from(const char *page, ptrdiff_t at, int type) {
    return type == PAGES_BFLOAT16 ? vf_from_bfloat16((const uint16_t *)page + at)
           : type == PAGES_INT8   ? vf_from_int8((const int8_t *)page + at)
                                  : vf_load((const float *)page + at);
}

VEC_INLINE ptrdiff_t number_bytes(int type) { return type == PAGES_FLOAT32 ? 4 : type == PAGES_BFLOAT16 ? 2 : 1; }

/* c [rows][columns] = (c +) A B: A [rows][a_row], B [depth][b_row] of any type; `vectors` vectors of columns. The same
 * place of the page that comes next, `ahead` bytes away, is asked for on the way. */
VEC_INLINE void attend_rows(const float *a, ptrdiff_t a_row, const char *b, ptrdiff_t b_row, ptrdiff_t column, float *c,
                            ptrdiff_t c_row, ptrdiff_t depth, ptrdiff_t ahead, int rows, int vectors, int type, int add) {
    vf sums[ATTEND_ROWS][ATTEND_VECTORS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++) sums[i][j] = add ? vf_load(c + i * c_row + column + j * VF_WIDTH) : vf_zero();
    for (ptrdiff_t k = 0; k < depth; k++) {
        vf values[ATTEND_VECTORS];
        for (int j = 0; j < vectors; j++) values[j] = load_from(b, k * b_row + column + j * VF_WIDTH, type);
        if (ahead)
            for (ptrdiff_t line = 0; line < vectors * VF_WIDTH * number_bytes(type); line += 64)
                __builtin_prefetch(b + (k * b_row + column) * number_bytes(type) + line + ahead, 0, 2);
        for (int i = 0; i < rows; i++) {
            vf x = vf_set(a[i * a_row + k]);
            for (int j = 0; j < vectors; j++) sums[i][j] = vf_fma(x, values[j], sums[i][j]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++) vf_store(c + i * c_row + column + j * VF_WIDTH, sums[i][j]);
}

VEC_INLINE void attend_columns(const float *a, ptrdiff_t a_row, ptrdiff_t rows, const char *b, ptrdiff_t b_row, float *c,
                               ptrdiff_t c_row, ptrdiff_t columns, ptrdiff_t depth, ptrdiff_t ahead, int type, int add) {
    for (ptrdiff_t column = 0; column < columns; column += ATTEND_VECTORS * VF_WIDTH) {
        ptrdiff_t vectors = (columns - column) / VF_WIDTH;
#define WITH(row_count, count)                                                                                         \
    attend_rows(a, a_row, b, b_row, column, c, c_row, depth, ahead, row_count, count, type, add)
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

/* rows <= ATTEND_ROWS; columns is a multiple of VF_WIDTH. */
static __attribute__((noinline)) void attend_product(const float *a, ptrdiff_t a_row, ptrdiff_t rows, const char *b,
                                                     ptrdiff_t b_row, float *c, ptrdiff_t c_row, ptrdiff_t columns,
                                                     ptrdiff_t depth, ptrdiff_t ahead, int type, int add) {
    if (type == PAGES_BFLOAT16)
        attend_columns(a, a_row, rows, b, b_row, c, c_row, columns, depth, ahead, PAGES_BFLOAT16, add);
    else if (type == PAGES_INT8)
        attend_columns(a, a_row, rows, b, b_row, c, c_row, columns, depth, ahead, PAGES_INT8, add);
    else
        attend_columns(a, a_row, rows, b, b_row, c, c_row, columns, depth, ahead, PAGES_FLOAT32, add);
}

/* One page of one kv head: keys [head_dim][PAGE_KEYS]; values [PAGE_KEYS][value_row]; scales of each key or NULL; how many
 * bytes on the page that comes next lies (0: none). */
typedef struct {
    const char *keys;
    const char *values;
    const float *key_scales;
    const float *value_scales;
    ptrdiff_t value_row;
    ptrdiff_t ahead;
    int type;
} Page;

/* What a row of queries has gathered so far. */
typedef struct {
    float *blend;   /* [rows][dim]: the sum of weights times values */
    float *totals;  /* [rows]: the sum of weights */
    float *largest; /* [rows]: the largest score */
    ptrdiff_t dim;  /* head_dim, padded to VF_WIDTH */
} Gathered;

/* Rows row..row+rows-1 (at most ATTEND_ROWS) meet a page. queries [rows][dim], times scale; row i sees keys
 * first[i]..end[i]-1 of the page. */
static void attend_page(const Gathered *g, ptrdiff_t row, ptrdiff_t rows, const float *queries, const Page *page,
                        ptrdiff_t head_dim, float softcap, const ptrdiff_t *first, const ptrdiff_t *end) {
    const float *key_scales = page->key_scales, *value_scales = page->value_scales;
    float weights[ATTEND_ROWS * PAGE_KEYS];
    ptrdiff_t lowest = first[0], highest = end[0];
    for (ptrdiff_t i = 1; i < rows; i++) {
        lowest = first[i] < lowest ? first[i] : lowest;
        highest = end[i] > highest ? end[i] : highest;
    }
    if (lowest >= highest) return;
    /* whole vectors of keys, as far as some row sees */
    const ptrdiff_t begin = lowest / VF_WIDTH * VF_WIDTH, stop = (highest + VF_WIDTH - 1) / VF_WIDTH * VF_WIDTH;
    attend_product(queries + row * g->dim, g->dim, rows, page->keys + begin * number_bytes(page->type), PAGE_KEYS,
                   weights + begin, PAGE_KEYS, stop - begin, head_dim, page->ahead, page->type, 0);
    for (ptrdiff_t i = 0; i < rows; i++) {
        float *w = weights + i * PAGE_KEYS;
        vf most = vf_set(-INFINITY);
        vi lanes = vi_lanes();
        for (ptrdiff_t j = begin; j < stop; j += VF_WIDTH) {
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
        for (ptrdiff_t j = begin; j < stop; j += VF_WIDTH) {
            vf weight = vf_exp(vf_load(w + j) - largest);
            total += weight;
            if (value_scales != NULL) weight = weight * vf_load(value_scales + j);
            vf_store(w + j, weight);
        }
        g->totals[row + i] += vf_sum(total);
    }
    /* Keys that nobody sees may hold anything, NaN too: they are left out, not multiplied by zero. */
    attend_product(weights + lowest, PAGE_KEYS, rows, page->values + lowest * page->value_row * number_bytes(page->type),
                   page->value_row, g->blend + row * g->dim, g->dim, g->dim, highest - lowest, page->ahead, page->type,
                   1);
}

#endif

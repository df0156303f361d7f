/* A few rows of queries against one page of keys and values: scores, online softmax, blend.
 *
 * Keys lie transposed [head_dim][PAGE_KEYS], so that scores of neighbouring keys are neighbours in a vector; values lie
 * [PAGE_KEYS][head_dim]. Pages hold float32, bfloat16 or int8 with a scale a key. More rows: attend_tile.h.
 * Source of the online softmax: Milakov and Gimelshein 2018 (arXiv 1805.02867). Knows nothing of page tables or threads.
 */
#ifndef FASTMIXER_DECODER_ATTEND_H
#define FASTMIXER_DECODER_ATTEND_H

#include <math.h>

#include "bfloat16.h"
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
 * bytes on the page that comes next lies, and how many floats on its scales (0: none). */
typedef struct {
    const char *keys;
    const char *values;
    const float *key_scales;
    const float *value_scales;
    ptrdiff_t value_row;
    ptrdiff_t ahead, scales_ahead;
    int type;
} Page;

/* Without it half of the time between the two products went by waiting for scales (int8 at 4,096 tokens of context). */
VEC_INLINE void ask_for_next_scales(const Page *page) {
    if (page->key_scales == NULL || page->scales_ahead == 0) return;
    for (ptrdiff_t key = page->scales_ahead; key < page->scales_ahead + PAGE_KEYS; key += 64 / (ptrdiff_t)sizeof(float)) {
        __builtin_prefetch(page->key_scales + key, 0, 2);
        __builtin_prefetch(page->value_scales + key, 0, 2);
    }
}

/* What a row of queries has gathered so far. */
typedef struct {
    float *blend;   /* [rows][dim]: the sum of weights times values */
    float *totals;  /* [rows]: the sum of weights */
    float *largest; /* [rows]: the largest score */
    ptrdiff_t dim;  /* head_dim, padded to VF_WIDTH */
} Gathered;

/* ---- the same in pairs of 16-bit numbers, where one instruction multiplies them ---- */

/* Pages of bfloat16 are multiplied as they are, by queries and weights rounded to it. 8-bit numbers are widened to 16 bits and
 * meet queries and weights of 15 bits: to float32 they took twice the instructions, and more time than memory. */
#if defined(__AVX512BF16__)
#define PAIRED(type) ((type) != PAGES_FLOAT32)
#elif defined(__AVX512VNNI__)
#define PAIRED(type) ((type) == PAGES_INT8)
#else
#define PAIRED(type) 0
#endif

enum { PAIR_MOST = 32767 };

#if defined(__AVX512VNNI__)
/* 32 numbers of a page, from number `at` on. */
VEC_INLINE __m512i halves_from(const char *page, ptrdiff_t at, int type) {
    return type == PAGES_INT8 ? _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(page + at)))
                              : _mm512_loadu_si512((const void *)(page + 2 * at));
}

VEC_INLINE vi pair_dot(vi sum, int32_t x, __m512i words, int type) {
#if defined(__AVX512BF16__)
    if (type == PAGES_BFLOAT16) return (vi)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(x), (__m512bh)words);
#endif
    return (vi)_mm512_dpwssd_epi32((__m512i)sum, _mm512_set1_epi32(x), words);
}

/* sums [rows][sums_row], from `column` on: the words a [rows][a_row] times B's rows [count][b_row], which pair with their
 * neighbours; an odd last one with zeros. 32 halves columns. */
VEC_INLINE void paired_rows(const int32_t *a, ptrdiff_t a_row, const char *b, ptrdiff_t b_row, ptrdiff_t column, ptrdiff_t count,
                            ptrdiff_t ahead, float *sums, ptrdiff_t sums_row, const int rows, const int halves, const int type) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
                                         35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    vi found[ATTEND_ROWS][4];
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < 2 * halves; j++) found[i][j] = vi_lanes() & 0;
    }
    for (ptrdiff_t k = 0; k < count; k += 2, b += 2 * b_row * number_bytes(type)) {
        __m512i words[4];
        UNROLL for (int j = 0; j < halves; j++) {
            __m512i first = halves_from(b, column + 32 * j, type);
            __m512i second = k + 1 < count ? halves_from(b, b_row + column + 32 * j, type) : _mm512_setzero_si512();
            words[2 * j] = _mm512_permutex2var_epi16(first, low, second);
            words[2 * j + 1] = _mm512_permutex2var_epi16(first, high, second);
        }
        if (ahead)
            for (ptrdiff_t line = 0; line < 32 * halves * number_bytes(type); line += 64) {
                __builtin_prefetch(b + column * number_bytes(type) + line + ahead, 0, 2);
                __builtin_prefetch(b + (b_row + column) * number_bytes(type) + line + ahead, 0, 2);
            }
        UNROLL for (int i = 0; i < rows; i++) {
            UNROLL for (int j = 0; j < 2 * halves; j++) found[i][j] = pair_dot(found[i][j], a[i * a_row + k / 2], words[j], type);
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < 2 * halves; j++)
            vf_store(sums + i * sums_row + column + j * VF_WIDTH,
                     type == PAGES_INT8 ? __builtin_convertvector(found[i][j], vf) : (vf)found[i][j]);
    }
}

VEC_INLINE void paired_columns(const int32_t *a, ptrdiff_t a_row, const char *b, ptrdiff_t b_row, ptrdiff_t columns, ptrdiff_t count,
                               ptrdiff_t ahead, float *sums, ptrdiff_t sums_row, const int rows, const int type) {
    ptrdiff_t column = 0;
    for (; column + 64 <= columns; column += 64)
        paired_rows(a, a_row, b, b_row, column, count, ahead, sums, sums_row, rows, 2, type);
    if (column < columns) paired_rows(a, a_row, b, b_row, column, count, ahead, sums, sums_row, rows, 1, type);
}

#define PAIRED_COLUMNS(name, type)                                                                                     \
    static __attribute__((noinline)) void name(const int32_t *a, ptrdiff_t a_row, const char *b, ptrdiff_t b_row,      \
                                               ptrdiff_t columns, ptrdiff_t count, ptrdiff_t ahead, float *sums,       \
                                               ptrdiff_t sums_row, ptrdiff_t rows) {                                   \
        if (rows == 4) paired_columns(a, a_row, b, b_row, columns, count, ahead, sums, sums_row, 4, type);             \
        else if (rows == 3) paired_columns(a, a_row, b, b_row, columns, count, ahead, sums, sums_row, 3, type);        \
        else if (rows == 2) paired_columns(a, a_row, b, b_row, columns, count, ahead, sums, sums_row, 2, type);        \
        else paired_columns(a, a_row, b, b_row, columns, count, ahead, sums, sums_row, 1, type);                       \
    }
PAIRED_COLUMNS(paired_columns_int8, PAGES_INT8)
#if defined(__AVX512BF16__)
PAIRED_COLUMNS(paired_columns_bfloat16, PAGES_BFLOAT16)
#endif
#undef PAIRED_COLUMNS
#endif

/* sums [rows][sums_row] = a B of words, columns a multiple of 32. */
static void paired_product(int type, const int32_t *a, ptrdiff_t a_row, const char *b, ptrdiff_t b_row, ptrdiff_t columns,
                           ptrdiff_t count, ptrdiff_t ahead, float *sums, ptrdiff_t sums_row, ptrdiff_t rows) {
#if defined(__AVX512BF16__)
    if (type == PAGES_BFLOAT16) {
        paired_columns_bfloat16(a, a_row, b, b_row, columns, count, ahead, sums, sums_row, rows);
        return;
    }
#endif
#if defined(__AVX512VNNI__)
    paired_columns_int8(a, a_row, b, b_row, columns, count, ahead, sums, sums_row, rows);
#endif
}

/* words [(count + 1) / 2, padded to VF_WIDTH] of x [count], zeros behind it up to a multiple of 2 VF_WIDTH; what the numbers are
 * to be multiplied by. */
static float paired_words(const float *x, ptrdiff_t count, int type, int32_t *words) {
#if defined(__AVX512VNNI__)
    float most = 0;
    vf largest = vf_zero();
#if defined(__AVX512BF16__)
    if (type == PAGES_BFLOAT16) {
        for (ptrdiff_t at = 0; at < count; at += 2 * VF_WIDTH)
            vf_store((float *)(words + at / 2), bf16_neighbours(vf_load(x + at), vf_load(x + at + VF_WIDTH)));
        return 1;
    }
#endif
    for (ptrdiff_t at = 0; at < count; at += VF_WIDTH) largest = vf_max(largest, vf_abs(vf_load(x + at)));
    most = vf_largest(largest);
    const float inverse = most > 0 ? PAIR_MOST / most : 0;
    for (ptrdiff_t at = 0; at < count; at += VF_WIDTH)
        _mm256_storeu_si256((__m256i *)((int16_t *)words + at),
                            _mm512_cvtepi32_epi16(_mm512_cvtps_epi32((__m512)(vf_load(x + at) * inverse))));
    return most / PAIR_MOST;
#endif
    return 0;
}

/* ---- a page ---- */

/* Whether a page of so many numbers a head is multiplied in pairs. */
VEC_INLINE int is_paired(int type, ptrdiff_t head_dim) { return PAIRED(type) && head_dim % 32 == 0; }

/* At most ATTEND_ROWS rows meet a page. queries [rows][head_dim], times scale, or if is_paired their words [rows][head_dim / 2], to
 * be multiplied by query_scales [rows]; row i sees keys first[i]..end[i]-1 of the page. head_dim is a multiple of VF_WIDTH. */
static void attend_page(const Gathered *g, ptrdiff_t rows, const float *queries, const float *query_scales, const Page *page,
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
    const int paired = is_paired(page->type, head_dim);
    int32_t words[ATTEND_ROWS * PAGE_KEYS / 2];
    float scales[ATTEND_ROWS];
    ask_for_next_scales(page);
    if (paired)
        paired_product(page->type, (const int32_t *)queries, head_dim / 2, page->keys, PAGE_KEYS, PAGE_KEYS, head_dim, page->ahead,
                       weights, PAGE_KEYS, rows);
    else
        attend_product(queries, head_dim, rows, page->keys + begin * number_bytes(page->type), PAGE_KEYS, weights + begin,
                       PAGE_KEYS, stop - begin, head_dim, page->ahead, page->type, 0);
    for (ptrdiff_t i = 0; i < rows; i++) {
        float *w = weights + i * PAGE_KEYS;
        vf most = vf_set(-INFINITY);
        vi lanes = vi_lanes();
        for (ptrdiff_t j = begin; j < stop; j += VF_WIDTH) {
            vf score = vf_load(w + j);
            if (paired) score = score * query_scales[i];
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
        float largest = vf_largest(most), before = g->largest[i];
        if (largest > before) {
            if (before != -INFINITY) {
                float correction = expf(before - largest);
                g->totals[i] *= correction;
                for (ptrdiff_t d = 0; d < g->dim; d += VF_WIDTH) {
                    float *place = g->blend + i * g->dim + d;
                    vf_store(place, vf_load(place) * correction);
                }
            }
            g->largest[i] = largest;
        } else
            largest = before;
        if (largest == -INFINITY) largest = 0; /* no key is seen yet: every weight becomes 0 */
        vf total = vf_zero();
        for (ptrdiff_t j = begin; j < stop; j += VF_WIDTH) {
            vf weight = vf_exp_negative(vf_load(w + j) - largest);
            total += weight;
            if (value_scales != NULL) /* those of keys that nobody sees may be anything */
                weight = vf_select(weight > 0, weight * vf_load(value_scales + j), vf_zero());
            vf_store(w + j, weight);
        }
        g->totals[i] += vf_sum(total);
        if (paired) { /* no weight is left of what the page holds elsewhere */
            for (ptrdiff_t j = 0; j < begin; j += VF_WIDTH) vf_store(w + j, vf_zero());
            for (ptrdiff_t j = stop; j < PAGE_KEYS; j += VF_WIDTH) vf_store(w + j, vf_zero());
            scales[i] = paired_words(w, PAGE_KEYS, page->type, words + i * PAGE_KEYS / 2);
        }
    }
    if (paired) {
        float *sums = weights; /* of which nothing is needed any more */
        const ptrdiff_t from = lowest / 2 * 2;
        for (ptrdiff_t d = 0; d < head_dim; d += PAGE_KEYS) {
            ptrdiff_t columns = head_dim - d < PAGE_KEYS ? head_dim - d : PAGE_KEYS;
            paired_product(page->type, words + from / 2, PAGE_KEYS / 2,
                           page->values + (from * page->value_row + d) * number_bytes(page->type), page->value_row, columns,
                           highest - from, page->ahead, sums, PAGE_KEYS, rows);
            for (ptrdiff_t i = 0; i < rows; i++)
                for (ptrdiff_t j = 0; j < columns; j += VF_WIDTH) {
                    float *place = g->blend + i * g->dim + d + j;
                    vf_store(place, vf_fma(vf_load(sums + i * PAGE_KEYS + j), vf_set(scales[i]), vf_load(place)));
                }
        }
        return;
    }
    /* Keys that nobody sees may hold anything, NaN too: they are left out, not multiplied by zero. */
    attend_product(weights + lowest, PAGE_KEYS, rows, page->values + lowest * page->value_row * number_bytes(page->type),
                   page->value_row, g->blend, g->dim, g->dim, highest - lowest, page->ahead, page->type, 1);
}

#endif

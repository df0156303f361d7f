/* A few rows of queries against a run of pages of keys and values: scores, softmax, blend.
 *
 * Keys lie transposed [head_dim][PAGE_KEYS], so that scores of neighbouring keys are neighbours in a vector; values lie
 * [PAGE_KEYS][head_dim]. Pages hold float32, bfloat16 or int8 with a scale a key. More rows: attend_tile.h.
 * Source of the softmax in parts: Milakov and Gimelshein 2018 (arXiv 1805.02867). Knows nothing of page tables or threads.
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

/* One page of one kv head: keys [head_dim][PAGE_KEYS]; values [PAGE_KEYS][value_row]; scales of each key or NULL; the place of its
 * first key in the run that it is part of. */
typedef struct {
    const char *keys;
    const char *values;
    const float *key_scales;
    const float *value_scales;
    ptrdiff_t value_row;
    ptrdiff_t place;
    int type;
} Page;

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
/* 32 columns of row `at` of a page and, if there is one, the row b_row behind it, as words; in what order columns_of tells. Bytes are
 * brought together before they are widened, in vectors of half the size: that takes a fifth less of a product's time than
 * widening both rows first (a Zen 4, whose shuffles share a unit with the products). */
VEC_INLINE void words_from(const char *page, ptrdiff_t at, ptrdiff_t b_row, int two, int type, __m512i words[2]) {
    if (type == PAGES_INT8) {
        __m256i first = _mm256_loadu_si256((const __m256i *)(page + at));
        __m256i second = two ? _mm256_loadu_si256((const __m256i *)(page + at + b_row)) : _mm256_setzero_si256();
        words[0] = _mm512_cvtepi8_epi16(_mm256_unpacklo_epi8(first, second));
        words[1] = _mm512_cvtepi8_epi16(_mm256_unpackhi_epi8(first, second));
    } else {
        const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
                                             35, 3, 34, 2, 33, 1, 32, 0);
        const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
        __m512i first = _mm512_loadu_si512((const void *)(page + 2 * at));
        __m512i second = two ? _mm512_loadu_si512((const void *)(page + 2 * (at + b_row))) : _mm512_setzero_si512();
        words[0] = _mm512_permutex2var_epi16(first, low, second);
        words[1] = _mm512_permutex2var_epi16(first, high, second);
    }
}

/* The sums of 32 columns, in order. Of bytes words[0] held columns 0-7 and 16-23. */
VEC_INLINE void columns_of(const vi found[2], int type, float *sums) {
    if (type == PAGES_INT8) {
        const __m512 first = _mm512_cvtepi32_ps((__m512i)found[0]), second = _mm512_cvtepi32_ps((__m512i)found[1]);
        vf_store(sums, (vf)_mm512_shuffle_f32x4(first, second, 0x44));
        vf_store(sums + VF_WIDTH, (vf)_mm512_shuffle_f32x4(first, second, 0xee));
    } else {
        vf_store(sums, (vf)found[0]);
        vf_store(sums + VF_WIDTH, (vf)found[1]);
    }
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
    vi found[ATTEND_ROWS][4];
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < 2 * halves; j++) found[i][j] = vi_lanes() & 0;
    }
    for (ptrdiff_t k = 0; k < count; k += 2, b += 2 * b_row * number_bytes(type)) {
        __m512i words[4];
        UNROLL for (int j = 0; j < halves; j++) words_from(b, column + 32 * j, b_row, k + 1 < count, type, words + 2 * j);
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
        UNROLL for (int j = 0; j < halves; j++) columns_of(found[i] + 2 * j, type, sums + i * sums_row + column + 32 * j);
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

/* Words of x [count], a multiple of 2 VF_WIDTH, none larger than most; returns what they are to be multiplied by. */
static float paired_words(const float *x, ptrdiff_t count, float most, int type, int32_t *words) {
#if defined(__AVX512BF16__)
    if (type == PAGES_BFLOAT16) {
        for (ptrdiff_t at = 0; at < count; at += 2 * VF_WIDTH)
            vf_store((float *)(words + at / 2), bf16_neighbours(vf_load(x + at), vf_load(x + at + VF_WIDTH)));
        return 1;
    }
#endif
#if defined(__AVX512VNNI__)
    const float inverse = most > 0 ? PAIR_MOST / most : 0;
    for (ptrdiff_t at = 0; at < count; at += VF_WIDTH)
        _mm256_storeu_si256((__m256i *)((int16_t *)words + at),
                            _mm512_cvtepi32_epi16(_mm512_cvtps_epi32((__m512)(vf_load(x + at) * inverse))));
    return most / PAIR_MOST;
#endif
    return 0;
}

/* Whether a page of so many numbers a head is multiplied in pairs. */
VEC_INLINE int is_paired(int type, ptrdiff_t head_dim) { return PAIRED(type) && head_dim % 32 == 0; }

/* A query [head_dim] of such pages, as words [head_dim / 2]. */
static float query_pairs(const float *query, ptrdiff_t head_dim, int type, int32_t *words) {
    vf largest = vf_zero();
    for (ptrdiff_t at = 0; at < head_dim; at += VF_WIDTH) largest = vf_max(largest, vf_abs(vf_load(query + at)));
    return paired_words(query, head_dim, vf_largest(largest), type, words);
}

/* ---- a run of pages ---- */

enum { RUN_PAGES = 4, RUN_KEYS = RUN_PAGES * PAGE_KEYS };

/* What is asked for while something else is read lies two pieces ahead, one where that is far enough: 4 KB ahead (8-bit pages of 64
 * numbers a head) memory answers too late (a Zen 4 reads such pages 1.2 times as fast from 8 KB ahead, and no faster from 12). */
enum { MOST_AHEAD = 2, FAR_ENOUGH = 8192 };

/* A piece of what is read: a page's keys or its values; or NULL. Scales are read with the keys, those of values too: a run's
 * weights are made before any of its values are read. */
typedef struct {
    const char *numbers;
    const float *scales[2];
} Piece;

/* Piece i of a run in the order in which it is read, keys first; behind its end those of what is read after it. */
VEC_INLINE Piece piece_of(const Page *pages, ptrdiff_t count, const Piece after[MOST_AHEAD], ptrdiff_t i) {
    if (i < count) return (Piece){pages[i].keys, {pages[i].key_scales, pages[i].value_scales}};
    if (i < 2 * count) return (Piece){pages[i - count].values, {NULL, NULL}};
    return after[i - 2 * count];
}

VEC_INLINE ptrdiff_t pieces_ahead(int type, ptrdiff_t head_dim) {
    return PAGE_KEYS * head_dim * number_bytes(type) >= FAR_ENOUGH ? 1 : MOST_AHEAD;
}

/* Scales too: without it half of the time between the two products went by waiting for them. Returns how many bytes after
 * `numbers` the next ones lie. */
VEC_INLINE ptrdiff_t ask_for(Piece next, const char *numbers) {
    if (next.numbers == NULL) return 0;
    for (int i = 0; i < 2; i++)
        if (next.scales[i] != NULL)
            for (ptrdiff_t key = 0; key < PAGE_KEYS; key += 64 / (ptrdiff_t)sizeof(float)) __builtin_prefetch(next.scales[i] + key, 0, 2);
    return next.numbers - numbers;
}

/* scores [rows][RUN_KEYS] of one page, at least those of the run's keys begin..stop-1; not scaled. */
static void score_page(ptrdiff_t rows, const float *queries, const Page *page, Piece next, ptrdiff_t head_dim, ptrdiff_t begin,
                       ptrdiff_t stop, float *scores) {
    const ptrdiff_t ahead = ask_for(next, page->keys);
    const ptrdiff_t from = begin > page->place ? begin - page->place : 0;
    const ptrdiff_t to = stop - page->place < PAGE_KEYS ? stop - page->place : PAGE_KEYS;
    if (is_paired(page->type, head_dim))
        paired_product(page->type, (const int32_t *)queries, head_dim / 2, page->keys, PAGE_KEYS, PAGE_KEYS, head_dim, ahead,
                       scores + page->place, RUN_KEYS, rows);
    else
        attend_product(queries, head_dim, rows, page->keys + from * number_bytes(page->type), PAGE_KEYS,
                       scores + page->place + from, RUN_KEYS, to - from, head_dim, ahead, page->type, 0);
}

/* A row's scores w [RUN_KEYS], of which keys first..end-1 are seen, become the weights of pages' values: e^(score - largest), times
 * values' scales. Keys begin..stop-1 hold them all. Returns the largest weight. */
VEC_INLINE float soften(float *w, float query_scale, const Page *pages, ptrdiff_t count, ptrdiff_t begin, ptrdiff_t stop,
                        ptrdiff_t first, ptrdiff_t end, float softcap, float *total, float *largest) {
    const int scaled = pages->key_scales != NULL;
    vf most = vf_set(-INFINITY), sum = vf_zero(), heaviest = vf_zero();
    for (const Page *page = pages; page < pages + count; page++)
        for (ptrdiff_t key = 0, j = page->place; key < PAGE_KEYS; key += VF_WIDTH, j += VF_WIDTH) {
            if (j < begin || j >= stop) continue;
            vf score = vf_load(w + j) * query_scale;
            if (scaled) score = score * vf_load(page->key_scales + key);
            if (softcap > 0) /* c tanh(s / c) */
                score = softcap * (1.0f - 2.0f / (1.0f + vf_exp(score * (2.0f / softcap))));
            if (j < first || j + VF_WIDTH > end) {
                vi lanes = vi_lanes(), seen = (lanes >= (int32_t)(first - j)) & (lanes < (int32_t)(end - j));
                score = vf_select(seen, score, vf_set(-INFINITY));
            }
            vf_store(w + j, score);
            most = vf_max(most, score);
        }
    *largest = vf_largest(most);
    const float taken = *largest == -INFINITY ? 0 : *largest; /* no key is seen: every weight becomes 0 */
    for (const Page *page = pages; page < pages + count; page++)
        for (ptrdiff_t key = 0, j = page->place; key < PAGE_KEYS; key += VF_WIDTH, j += VF_WIDTH) {
            if (j < begin || j >= stop) continue;
            vf weight = vf_exp_negative(vf_load(w + j) - taken);
            sum += weight;
            if (scaled) /* those of keys that nobody sees may be anything */
                weight = vf_select(weight > 0, weight * vf_load(page->value_scales + key), vf_zero());
            heaviest = vf_max(heaviest, weight);
            vf_store(w + j, weight);
        }
    *total = vf_sum(sum);
    return vf_largest(heaviest);
}

/* g->blend += weights times the values of the run's keys lowest..highest-1 that the page holds. weights [rows][RUN_KEYS], or if
 * is_paired their words [rows][RUN_KEYS / 2], to be multiplied by weight_scales [rows]. */
static void blend_page(const Gathered *g, ptrdiff_t rows, const float *weights, const int32_t *words, const float *weight_scales,
                       const Page *page, Piece next, ptrdiff_t head_dim, ptrdiff_t lowest, ptrdiff_t highest) {
    const ptrdiff_t ahead = ask_for(next, page->values);
    const int paired = is_paired(page->type, head_dim);
    /* Keys that nobody sees may hold anything, NaN too: they are left out, not multiplied by zero. */
    ptrdiff_t from = lowest > page->place ? lowest - page->place : 0;
    ptrdiff_t to = highest - page->place < PAGE_KEYS ? highest - page->place : PAGE_KEYS;
    if (from >= to) return;
    if (paired) from = from / 2 * 2;
    const char *values = page->values + from * page->value_row * number_bytes(page->type);
    if (!paired) {
        attend_product(weights + page->place + from, RUN_KEYS, rows, values, page->value_row, g->blend, g->dim, g->dim, to - from,
                       ahead, page->type, 1);
        return;
    }
    for (ptrdiff_t d = 0; d < head_dim; d += PAGE_KEYS) {
        float sums[ATTEND_ROWS * PAGE_KEYS];
        ptrdiff_t columns = head_dim - d < PAGE_KEYS ? head_dim - d : PAGE_KEYS;
        paired_product(page->type, words + (page->place + from) / 2, RUN_KEYS / 2, values + d * number_bytes(page->type),
                       page->value_row, columns, to - from, ahead, sums, PAGE_KEYS, rows);
        for (ptrdiff_t i = 0; i < rows; i++)
            for (ptrdiff_t j = 0; j < columns; j += VF_WIDTH) {
                float *place = g->blend + i * g->dim + d + j;
                vf_store(place, vf_fma(vf_load(sums + i * PAGE_KEYS + j), vf_set(weight_scales[i]), vf_load(place)));
            }
    }
}

/* At most ATTEND_ROWS rows meet a run of pages, whose softmax is one: all scores first, then all values. The maxima and sums across
 * lanes that every page brought with it took a quarter of the time. queries [rows][head_dim], times scale, or if is_paired their
 * words [rows][head_dim / 2]; query_scales [rows] is what their scores are multiplied by; row i sees keys first[i]..end[i]-1 of the
 * run; `after` will be read after it: its first pieces. head_dim is a multiple of VF_WIDTH. What was gathered before is overwritten. */
static void attend_run(const Gathered *g, ptrdiff_t rows, const float *queries, const float *query_scales, const Page *pages,
                       ptrdiff_t count, const Piece after[MOST_AHEAD], ptrdiff_t head_dim, float softcap, const ptrdiff_t *first,
                       const ptrdiff_t *end) {
    float weights[ATTEND_ROWS * RUN_KEYS], weight_scales[ATTEND_ROWS];
    int32_t words[ATTEND_ROWS * RUN_KEYS / 2];
    ptrdiff_t lowest = first[0], highest = end[0];
    for (ptrdiff_t i = 0; i < rows; i++) {
        lowest = first[i] < lowest ? first[i] : lowest;
        highest = end[i] > highest ? end[i] : highest;
        g->totals[i] = 0, g->largest[i] = -INFINITY;
    }
    memset(g->blend, 0, sizeof(float) * rows * g->dim);
    if (count == 0 || lowest >= highest) return;
    const int type = pages->type, paired = is_paired(type, head_dim);
    /* whole vectors of keys, as far as some row sees; words take two of them */
    const ptrdiff_t step = 2 * VF_WIDTH, begin = lowest / step * step, stop = (highest + step - 1) / step * step;
    const ptrdiff_t ahead = pieces_ahead(type, head_dim);
    for (ptrdiff_t p = 0; p < count; p++)
        score_page(rows, queries, pages + p, piece_of(pages, count, after, p + ahead), head_dim, begin, stop, weights);
    for (ptrdiff_t i = 0; i < rows; i++) {
        float *w = weights + i * RUN_KEYS;
        float most = soften(w, query_scales[i], pages, count, begin, stop, first[i], end[i], softcap, g->totals + i, g->largest + i);
        if (paired) weight_scales[i] = paired_words(w + begin, stop - begin, most, type, words + (i * RUN_KEYS + begin) / 2);
    }
    for (ptrdiff_t p = 0; p < count; p++)
        blend_page(g, rows, weights, words, weight_scales, pages + p, piece_of(pages, count, after, count + p + ahead), head_dim, lowest,
                   highest);
}

#endif

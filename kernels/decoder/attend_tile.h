/* Many rows of queries against a block of keys and values: scores, softmax over the whole block, blend.
 *
 * Keys and values are copied first, as words that rows of queries then share: floats, or pairs of bfloat16 (bfloat16.h)
 * where that is asked for. A block holds most texts whole: the maxima and sums across lanes, and the corrections of the
 * online softmax (attend.h), that pages of 64 keys bring with them cost as much as the exponentials themselves.
 * Knows nothing of page tables or threads.
 */
#ifndef FASTMIXER_DECODER_ATTEND_TILE_H
#define FASTMIXER_DECODER_ATTEND_TILE_H

#include "amx.h"
#include "bfloat16.h"
#include "decoder/attend.h"
#include "matmul/tile.h"

enum { BLOCK_KEYS = 256, REGISTER_ROWS = 6, ATTEND_TILE_ROWS = AMX ? AMX_ROWS : REGISTER_ROWS };

_Static_assert(RUN_KEYS % BLOCK_KEYS == 0, "a run of pages is whole blocks: what begins at one begins at the other");

/* Whether pairs of bfloat16 are multiplied in one instruction. */
#if defined(__AVX512BF16__)
enum { FAST_PAIRS = 1 };
#else
enum { FAST_PAIRS = 0 };
#endif

typedef struct {
    float *keys;         /* words [depth, padded to VF_WIDTH][key_row]; in pairs neighbours of a key's numbers */
    float *values;       /* words [BLOCK_KEYS][dim]; in pairs [BLOCK_KEYS / 2][dim], the same number of two neighbouring keys */
    float *key_scales;   /* [BLOCK_KEYS] or NULL */
    float *value_scales;
    ptrdiff_t key_row;   /* keys it has room for, and a vector more: words of a key lie in many sets of the cache */
    ptrdiff_t head_dim;
    ptrdiff_t depth;     /* words of a query: head_dim, in pairs half of it */
    ptrdiff_t dim;       /* head_dim, padded to VF_WIDTH */
    int pairs;
    int tiles;           /* pairs are multiplied by AMX: whole tiles of words, zeros behind the last */
    ptrdiff_t rows;      /* of queries that meet it together, at most ATTEND_TILE_ROWS */
} KeyBlock;

VEC_INLINE ptrdiff_t whole_vectors(ptrdiff_t numbers) { return (numbers + VF_WIDTH - 1) / VF_WIDTH * VF_WIDTH; }

/* Floats of a block's four arrays, one after another, and the block in such memory. */
VEC_INLINE ptrdiff_t key_block_floats(ptrdiff_t head_dim) {
    return BLOCK_KEYS * (2 * whole_vectors(head_dim) + 2) + VF_WIDTH * whole_vectors(head_dim);
}

/* Until end_block, a block in pairs may have this thread's tiles (amx.h). */
VEC_INLINE void begin_block(const KeyBlock *b) {
    if (b->tiles) tiles_begin();
}

VEC_INLINE void end_block(const KeyBlock *b) {
    if (b->tiles) tiles_end();
}

/* most: keys that it will hold, at most BLOCK_KEYS. */
static KeyBlock carve_key_block(float *memory, ptrdiff_t most, ptrdiff_t head_dim, int pairs, int scales) {
    KeyBlock b;
    b.key_row = (most + 2 * VF_WIDTH - 1) / (2 * VF_WIDTH) * (2 * VF_WIDTH) + VF_WIDTH;
    b.head_dim = head_dim, b.dim = whole_vectors(head_dim), b.pairs = pairs;
    b.depth = pairs ? (head_dim + 1) / 2 : head_dim;
    b.tiles = AMX && pairs, b.rows = b.tiles ? ATTEND_TILE_ROWS : REGISTER_ROWS;
    b.keys = memory, b.values = memory + b.key_row * b.dim;
    if (b.tiles) memset(b.keys + b.depth * b.key_row, 0, sizeof(float) * (whole_vectors(b.depth) - b.depth) * b.key_row);
    b.key_scales = scales ? b.values + BLOCK_KEYS * b.dim : NULL;
    b.value_scales = scales ? b.key_scales + BLOCK_KEYS : NULL;
    return b;
}

/* The floats of x from number `at` on, zeros where its `count` numbers end. */
VEC_INLINE vf load_within(const float *x, ptrdiff_t at, ptrdiff_t count) {
    return count - at >= VF_WIDTH ? vf_load(x + at) : count > at ? vf_load_first(x + at, count - at) : vf_zero();
}

/* VF_WIDTH words of x [count], from word `at` on. */
VEC_INLINE vf words_of(const float *x, ptrdiff_t at, ptrdiff_t count, int pairs) {
    return pairs ? bf16_neighbours(load_within(x, 2 * at, count), load_within(x, 2 * at + VF_WIDTH, count))
                 : load_within(x, at, count);
}

/* out [depth, padded] = the words of scale * q [head_dim]. */
static void query_words(const KeyBlock *b, const float *q, float scale, float *out) {
    for (ptrdiff_t at = 0; at < b->depth; at += VF_WIDTH) {
        if (b->pairs)
            vf_store(out + at, bf16_neighbours(scale * load_within(q, 2 * at, b->head_dim),
                                               scale * load_within(q, 2 * at + VF_WIDTH, b->head_dim)));
        else
            vf_store(out + at, scale * load_within(q, at, b->head_dim));
    }
}

/* Values behind the last key are zeros up to whole tiles. */
static void end_values(const KeyBlock *b, ptrdiff_t keys) {
    const ptrdiff_t words = (keys + 1) / 2, whole = whole_vectors(words);
    if (b->tiles) memset(b->values + words * b->dim, 0, sizeof(float) * (whole - words) * b->dim);
}

/* ---- a block from rows of floats ---- */

/* The block = k and v [keys][head_dim], rows `row` floats apart. Keys after the last are zeros up to whole vectors (what lay
 * there before might be numbers so small that products of them take hundreds of cycles), values up to a whole pair. */
static void block_from_rows(const KeyBlock *b, const float *k, const float *v, ptrdiff_t row, ptrdiff_t keys) {
    float square[VF_WIDTH * VF_WIDTH];
    for (ptrdiff_t key = 0; key < keys; key += VF_WIDTH)
        for (ptrdiff_t at = 0; at < b->depth; at += VF_WIDTH) {
            for (ptrdiff_t j = 0; j < VF_WIDTH; j++)
                vf_store(square + j * VF_WIDTH,
                         key + j < keys ? words_of(k + (key + j) * row, at, b->head_dim, b->pairs) : vf_zero());
            vf_transpose(square, VF_WIDTH, b->keys + at * b->key_row + key, b->key_row);
        }
    if (b->pairs && whole_vectors(keys) / VF_WIDTH % 2) /* scores are made two vectors at a time */
        for (ptrdiff_t at = 0; at < b->depth; at++) vf_store(b->keys + at * b->key_row + whole_vectors(keys), vf_zero());
    for (ptrdiff_t key = 0; key < keys; key += b->pairs ? 2 : 1) {
        float *out = b->values + (b->pairs ? key / 2 : key) * b->dim;
        for (ptrdiff_t at = 0; at < b->dim; at += VF_WIDTH) {
            vf first = load_within(v + key * row, at, b->head_dim);
            if (b->pairs)
                first = bf16_couples(first, key + 1 < keys ? load_within(v + (key + 1) * row, at, b->head_dim) : vf_zero());
            vf_store(out + at, first);
        }
    }
    end_values(b, keys);
}

/* ---- a block from pages (attend.h) ---- */

VEC_INLINE vf load_from_within(const char *page, ptrdiff_t at, ptrdiff_t lanes, int type) {
    float part[VF_WIDTH] = {0};
    if (lanes >= VF_WIDTH) return load_from(page, at, type);
    for (ptrdiff_t lane = 0; lane < lanes; lane++)
        part[lane] = type == PAGES_INT8 ? (float)((const int8_t *)page)[at + lane] : ((const float *)page)[at + lane];
    if (type == PAGES_BFLOAT16)
        for (ptrdiff_t lane = 0; lane < lanes; lane++) {
            uint32_t bits = (uint32_t)((const uint16_t *)page)[at + lane] << 16;
            memcpy(part + lane, &bits, sizeof bits);
        }
    return vf_load(part);
}

/* Numbers that bfloat16 holds, such as 8-bit integers, in pairs: nothing is rounded. */
VEC_INLINE vf pairs_of_exact(vf first, vf second) {
    return (vf)(((vi)first >> 16 & 0xffff) | ((vi)second & (int32_t)0xffff0000));
}

VEC_INLINE void typed_page_into_block(const KeyBlock *b, const Page *page, ptrdiff_t place, ptrdiff_t keys, int type) {
    const ptrdiff_t step = b->pairs ? 2 : 1;
    for (ptrdiff_t d = 0; d < b->head_dim; d += step)
        for (ptrdiff_t key = 0; key < PAGE_KEYS; key += VF_WIDTH) {
            vf words = load_from(page->keys, d * PAGE_KEYS + key, type);
            if (b->pairs)
                words = pairs_of_exact(words, d + 1 < b->head_dim ? load_from(page->keys, (d + 1) * PAGE_KEYS + key, type) : vf_zero());
            vf_store(b->keys + d / step * b->key_row + place + key, words);
        }
    for (ptrdiff_t key = 0; key < keys; key += step)
        for (ptrdiff_t at = 0; at < b->dim; at += VF_WIDTH) {
            vf words = load_from_within(page->values, key * b->head_dim + at, b->head_dim - at, type);
            if (b->pairs)
                words = pairs_of_exact(words, key + 1 < keys ? load_from_within(page->values, (key + 1) * b->head_dim + at,
                                                                                b->head_dim - at, type) : vf_zero());
            vf_store(b->values + (place + key) / step * b->dim + at, words);
        }
}

/* The block's keys from `place` on = a page, of whose keys the first `keys` are seen: values after those are left out, as they
 * may be anything. In pairs only pages of bfloat16 and int8. */
static __attribute__((noinline)) void page_into_block(const KeyBlock *b, const Page *page, ptrdiff_t place, ptrdiff_t keys) {
    if (page->type == PAGES_BFLOAT16) typed_page_into_block(b, page, place, keys, PAGES_BFLOAT16);
    else if (page->type == PAGES_INT8) typed_page_into_block(b, page, place, keys, PAGES_INT8);
    else typed_page_into_block(b, page, place, keys, PAGES_FLOAT32);
    end_values(b, place + keys);
    if (b->key_scales != NULL) {
        memcpy(b->key_scales + place, page->key_scales, PAGE_KEYS * sizeof(float));
        memcpy(b->value_scales + place, page->value_scales, (size_t)keys * sizeof(float));
        memset(b->value_scales + place + keys, 0, (size_t)(PAGE_KEYS - keys) * sizeof(float));
    }
}

/* ---- the products: c [rows][columns] = (c +) A B of words ---- */

VEC_INLINE void tile_product(const int rows, const int vectors, const int pairs, const float *a, ptrdiff_t a_row, const float *b,
                             ptrdiff_t b_row, float *c, ptrdiff_t c_row, ptrdiff_t depth, int add) {
    vf sums[ATTEND_TILE_ROWS][ATTEND_VECTORS];
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < vectors; j++) sums[i][j] = add ? vf_load(c + i * c_row + j * VF_WIDTH) : vf_zero();
    }
    for (ptrdiff_t k = 0; k < depth; k++, a++, b += b_row) {
        vf words[ATTEND_VECTORS];
        UNROLL for (int j = 0; j < vectors; j++) words[j] = vf_load(b + j * VF_WIDTH);
        UNROLL for (int i = 0; i < rows; i++) {
            vf x = vf_set(a[i * a_row]);
            UNROLL for (int j = 0; j < vectors; j++)
                sums[i][j] = pairs ? bf16_dot(sums[i][j], x, words[j]) : vf_fma(x, words[j], sums[i][j]);
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < vectors; j++) vf_store(c + i * c_row + j * VF_WIDTH, sums[i][j]);
    }
}

VEC_INLINE void tile_columns(const int rows, const int pairs, const float *a, ptrdiff_t a_row, const float *b, ptrdiff_t b_row,
                             float *c, ptrdiff_t c_row, ptrdiff_t columns, ptrdiff_t depth, int add) {
    ptrdiff_t vectors = columns / VF_WIDTH;
#define WITH(count) tile_product(rows, count, pairs, a, a_row, b, b_row, c, c_row, depth, add)
    for (; vectors >= ATTEND_VECTORS; vectors -= ATTEND_VECTORS, b += ATTEND_VECTORS * VF_WIDTH, c += ATTEND_VECTORS * VF_WIDTH)
        WITH(ATTEND_VECTORS);
#if ATTEND_VECTORS == 4
    if (vectors == 3) WITH(3);
    else if (vectors == 2) WITH(2);
    else
#endif
        if (vectors == 1) WITH(1);
#undef WITH
}

/* In functions of their own, with a constant for the rows: the sums are registers. */
#define TILE_COLUMNS_OF(count)                                                                                         \
    static __attribute__((noinline)) void tile_columns_##count(                                                        \
        int pairs, const float *a, ptrdiff_t a_row, const float *b, ptrdiff_t b_row, float *c, ptrdiff_t c_row,        \
        ptrdiff_t columns, ptrdiff_t depth, int add) {                                                                 \
        if (FAST_PAIRS && pairs) tile_columns(count, FAST_PAIRS, a, a_row, b, b_row, c, c_row, columns, depth, add);   \
        else tile_columns(count, 0, a, a_row, b, b_row, c, c_row, columns, depth, add);                                \
    }
TILE_COLUMNS_OF(1)
TILE_COLUMNS_OF(2)
TILE_COLUMNS_OF(3)
TILE_COLUMNS_OF(4)
TILE_COLUMNS_OF(5)
TILE_COLUMNS_OF(6)
#undef TILE_COLUMNS_OF

/* rows <= ATTEND_TILE_ROWS; columns is a multiple of VF_WIDTH. */
static void tile_product_of(ptrdiff_t rows, int pairs, const float *a, ptrdiff_t a_row, const float *b, ptrdiff_t b_row, float *c,
                            ptrdiff_t c_row, ptrdiff_t columns, ptrdiff_t depth, int add) {
    switch (rows) {
    case 1: tile_columns_1(pairs, a, a_row, b, b_row, c, c_row, columns, depth, add); break;
    case 2: tile_columns_2(pairs, a, a_row, b, b_row, c, c_row, columns, depth, add); break;
    case 3: tile_columns_3(pairs, a, a_row, b, b_row, c, c_row, columns, depth, add); break;
    case 4: tile_columns_4(pairs, a, a_row, b, b_row, c, c_row, columns, depth, add); break;
    case 5: tile_columns_5(pairs, a, a_row, b, b_row, c, c_row, columns, depth, add); break;
    default: tile_columns_6(pairs, a, a_row, b, b_row, c, c_row, columns, depth, add);
    }
}

/* ---- softmax ---- */

/* Scores w [BLOCK_KEYS], of which keys begin..stop-1 are made and first..end-1 are seen, become what they are scaled, capped and
 * -inf where not seen; returns the largest. */
VEC_INLINE float finish_scores(const KeyBlock *b, float *w, ptrdiff_t begin, ptrdiff_t stop, ptrdiff_t first, ptrdiff_t end,
                               float softcap, const float *added) {
    vf most = vf_set(-INFINITY);
    ptrdiff_t j = begin;
    if (b->key_scales == NULL && added == NULL && !(softcap > 0) && first <= begin) /* nothing to do but where a row ends */
        for (; j + VF_WIDTH <= end; j += VF_WIDTH) most = vf_max(most, vf_load(w + j));
    for (; j < stop; j += VF_WIDTH) {
        vf score = vf_load(w + j);
        int edge = j < first || j + VF_WIDTH > end;
        if (b->key_scales != NULL) score = score * vf_load(b->key_scales + j);
        if (added != NULL) score = score + vf_load(added + j);
        if (softcap > 0) /* c tanh(s / c) */
            score = softcap * (1.0f - 2.0f / (1.0f + vf_exp(score * (2.0f / softcap))));
        if (edge) {
            vi lanes = vi_lanes();
            vi seen = (lanes >= (int32_t)(first - j)) & (lanes < (int32_t)(end - j));
            score = vf_select(seen, score, vf_set(-INFINITY));
        }
        if (edge || b->key_scales != NULL || added != NULL || softcap > 0) vf_store(w + j, score);
        most = vf_max(most, score);
    }
    return vf_largest(most);
}

/* e^(w - largest); of what is rounded to pairs next a rougher one will do. */
VEC_INLINE vf weight_of(const int pairs, vf w, float largest) {
    return pairs ? vf_exp2_rough(vf_fma(w, vf_set(LOG2_E), vf_set(-LOG2_E * largest))) : vf_exp_negative(w - largest);
}

/* w becomes the words of e^(w - largest), times the values' scales; returns the sum of the weights before those. In pairs, of two
 * vectors at a time, of which begin and stop are multiples. */
VEC_INLINE float weights_of(const int pairs, const float *value_scales, float *w, ptrdiff_t begin, ptrdiff_t stop, float largest) {
    vf total = vf_zero(), next_total = vf_zero();
    for (ptrdiff_t j = begin; j < stop; j += 2 * VF_WIDTH) {
        vf weight = weight_of(pairs, vf_load(w + j), largest), next = vf_zero();
        const int both = pairs || j + VF_WIDTH < stop;
        total += weight;
        if (value_scales != NULL) weight = weight * vf_load(value_scales + j);
        if (both) {
            next = weight_of(pairs, vf_load(w + j + VF_WIDTH), largest);
            next_total += next;
            if (value_scales != NULL) next = next * vf_load(value_scales + j + VF_WIDTH);
        }
        if (pairs)
            vf_store(w + j / 2, bf16_neighbours(weight, next));
        else {
            vf_store(w + j, weight);
            if (both) vf_store(w + j + VF_WIDTH, next);
        }
    }
    return vf_sum(total + next_total);
}

/* Rows row..row+rows-1 (at most ATTEND_TILE_ROWS) meet a block. queries: words [rows][depth, padded], times scale; row i sees
 * keys first[i]..end[i]-1 of the block; added [rows]: of each row BLOCK_KEYS numbers that join its scores, or NULL. */
static void attend_tile(const Gathered *g, ptrdiff_t row, ptrdiff_t rows, const float *queries, const KeyBlock *b, float softcap,
                        const ptrdiff_t *first, const ptrdiff_t *end, const float *const *added) {
    float weights[ATTEND_TILE_ROWS * BLOCK_KEYS];
    const ptrdiff_t query_row = whole_vectors(b->depth), step = b->pairs ? 2 * VF_WIDTH : VF_WIDTH;
    ptrdiff_t lowest = first[0], highest = end[0];
    for (ptrdiff_t i = 1; i < rows; i++) {
        lowest = first[i] < lowest ? first[i] : lowest;
        highest = end[i] > highest ? end[i] : highest;
    }
    if (lowest >= highest) return;
    /* whole vectors of keys, as far as some row sees */
    const ptrdiff_t begin = lowest / step * step, stop = (highest + step - 1) / step * step;
    if (b->tiles)
        wide_tiles_of_pairs(rows, stop - begin, queries + row * query_row, query_row, b->keys + begin, b->key_row, query_row,
                            weights + begin, BLOCK_KEYS, 0);
    else
        tile_product_of(rows, b->pairs, queries + row * query_row, query_row, b->keys + begin, b->key_row, weights + begin, BLOCK_KEYS,
                    stop - begin, b->depth, 0);
    float *largest = g->largest + row;
    for (ptrdiff_t i = 0; i < rows; i++) {
        float most = finish_scores(b, weights + i * BLOCK_KEYS, begin, stop, first[i], end[i], softcap, added != NULL ? added[i] : NULL);
        if (!(most > largest[i])) continue;
        if (largest[i] != -INFINITY) {
            float correction = expf(largest[i] - most);
            g->totals[row + i] *= correction;
            for (ptrdiff_t d = 0; d < g->dim; d += VF_WIDTH) {
                float *place = g->blend + (row + i) * g->dim + d;
                vf_store(place, vf_load(place) * correction);
            }
        }
        largest[i] = most;
    }
    /* in a loop of its own: the first weights of a row would wait for its largest score */
    for (ptrdiff_t i = 0; i < rows; i++) {
        float *w = weights + i * BLOCK_KEYS;
        const float most = largest[i] == -INFINITY ? 0 : largest[i]; /* no key is seen yet: every weight becomes 0 */
        if (!b->pairs) g->totals[row + i] += weights_of(0, b->value_scales, w, begin, stop, most);
        else if (b->value_scales != NULL) g->totals[row + i] += weights_of(1, b->value_scales, w, begin, stop, most);
        else g->totals[row + i] += weights_of(1, NULL, w, begin, stop, most);
    }
    /* Values that nobody sees may be anything, NaN too: they are left out, not multiplied by zero (tiles: those of other pages). */
    if (b->tiles) {
        wide_tiles_of_pairs(rows, g->dim, weights + begin / 2, BLOCK_KEYS, b->values + begin / 2 * b->dim, b->dim, (stop - begin) / 2,
                            g->blend + row * g->dim, g->dim, 1);
        return;
    }
    const ptrdiff_t from = b->pairs ? lowest / 2 : lowest, to = b->pairs ? (highest + 1) / 2 : highest;
    tile_product_of(rows, b->pairs, weights + from, BLOCK_KEYS, b->values + from * b->dim, b->dim, g->blend + row * g->dim, g->dim,
                    g->dim, to - from, 1);
}

#endif

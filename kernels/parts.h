/* float32 in three parts of bfloat16 each, whose sum it is to the last bit: products of float32 by AMX's tiles.
 *
 * Of the nine products of parts six are made; each of the others is below 2^-25 |a b|, half a rounding of float32. A tile adds 32
 * products up before they meet a sum, so sums are rounded 6 times for 32 numbers: the error is half that of an FMA after another.
 * Source: Henry, Tang, Heinecke: Leveraging the bfloat16 Artificial Intelligence Datatype for Higher-Precision Computations (2019).
 * Knows nothing of matrices beyond one block.
 */
#ifndef FASTMIXER_PARTS_H
#define FASTMIXER_PARTS_H

#include "amx.h"
#include "transpose.h"

enum {
    PARTS = 3,
    PARTS_TILE = AMX_ROWS, /* rows of A, or columns of B, in a tile */
    PARTS_STEP = 2 * AMX_WORDS, /* numbers along k in one */
    PARTS_FLOATS = PARTS * AMX_ROWS * AMX_WORDS, /* a step's tiles of all parts, as they lie in memory */
    PARTS_STEP_ASKS = 6, /* products of parts, after each of which memory is asked for some lines */
    PARTS_BAND = 2, /* tiles of A, and of B, that a product takes at once: with four of sums, all eight registers */
};

/* What a product does besides: a panel of B is split while the one before is multiplied, as tiles leave the vector units idle, and
 * memory answers late. */
typedef struct {
    const float *x[PARTS_BAND]; /* where B has a panel's tiles, `width` columns in all; */
    ptrdiff_t row;              /* rows are so many floats apart, */
    int along;                  /* k goes along them, or from one to the next */
    ptrdiff_t depth, width;
    float *parts; /* [PARTS_BAND][ceil(depth / PARTS_STEP)] steps, a tile's so many floats: */
    ptrdiff_t tile_floats;
    ptrdiff_t done, units, a_step; /* units of work: in all, and at a step of the product */
    LinesAsk ask; /* for what is not split meanwhile */
    vf left;      /* NaN once a number was not finite */
} PartsWork;

#if AMX

/* Numbers below the least normal one become zero, as tiles take them: as they are, each costs an Intel processor 150 cycles. */
enum { MXCSR_NO_DENORMALS = 0x8040 };

#define LEAST_INFINITE 0x1.ffp127f /* of what has an infinity for its first part */

/* What x still lacks, once its nearest bfloat16 (the result) is taken from it. */
VEC_INLINE vf part_of(vf *x) {
    const vf part = (vf)(((vi)*x + 0x8000) & (int32_t)0xffff0000);
    *x -= part;
    return part;
}

/* The high halves of a and b, neighbours in a row side by side. */
VEC_INLINE vf parts_neighbours(vf a, vf b) {
    const __m512i odd = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19,
                                         17, 15, 13, 11, 9, 7, 5, 3, 1);
    return (vf)_mm512_permutex2var_epi16((__m512i)a, odd, (__m512i)b);
}

/* The same of two rows, one above the other. */
VEC_INLINE vf parts_couples(vf first, vf second) {
    return (vf)((((vi)first >> 16) & 0xffff) | ((vi)second & (int32_t)0xffff0000));
}

/* Two rows of a step, or a row whose halves they are: vector i of 2 PARTS_TILE. */
VEC_INLINE vf step_vector(const int along, const int whole, const float *x, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t width, int i) {
    const ptrdiff_t half = i / PARTS_TILE, line = i % PARTS_TILE;
    if (along) {
        const float *p = x + line * row + half * VF_WIDTH;
        depth -= half * VF_WIDTH;
        return whole ? vf_load(p) : line < width && depth > 0 ? vf_load_first(p, depth < VF_WIDTH ? depth : VF_WIDTH) : vf_zero();
    }
    return whole ? vf_load(x + i * row) : i < depth ? vf_load_first(x + i * row, width) : vf_zero();
}

/* The first `rows` rows of words of one step's tiles. along: x [PARTS_TILE, PARTS_STEP], k along its rows; else x [PARTS_STEP,
 * PARTS_TILE]. Rows are `row` floats apart; of k there are `depth`, of the other `width`, zeros behind. turned: not as x lies. Adds what
 * is left of each number (0, or NaN where that is not finite) to `left`. */
VEC_INLINE vf step_of_parts(const int along, const int turned, const int whole, const int rows, const float *x, ptrdiff_t row, ptrdiff_t depth,
                            ptrdiff_t width, float *out, vf left) {
    vf square[2 * PARTS_TILE];
    if (turned) {
        UNROLL for (int i = 0; i < 2 * PARTS_TILE; i++) square[i] = step_vector(along, whole, x, row, depth, width, i);
        vf_turn(square);
        vf_turn(square + PARTS_TILE);
    }
    UNROLL_FOUR for (int i = 0; i < rows; i++) {
        const int neighbours = along != turned, one = neighbours ? i : 2 * i, other = neighbours ? i + PARTS_TILE : 2 * i + 1;
        vf a = turned ? square[one] : step_vector(along, whole, x, row, depth, width, one);
        vf b = turned ? square[other] : step_vector(along, whole, x, row, depth, width, other);
        UNROLL for (int part = 0; part < PARTS; part++) {
            const vf part_a = part + 1 < PARTS ? part_of(&a) : a, part_b = part + 1 < PARTS ? part_of(&b) : b;
            vf_store(out + (part * AMX_ROWS + i) * AMX_WORDS, neighbours ? parts_neighbours(part_a, part_b) : parts_couples(part_a, part_b));
        }
        left += a + b;
    }
    return left;
}

/* Whether parts of x, of which step_of_parts left this, have products as x has: one with NaN is NaN, but an infinity times a part that
 * is zero would be NaN too. */
static int products_as_whole(vf left, int along, const float *x, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t width) {
    if (!_mm512_cmp_ps_mask((__m512)left, (__m512)left, _CMP_UNORD_Q)) return 1;
    for (ptrdiff_t i = 0; i < (along ? width : depth); i++)
        for (ptrdiff_t j = 0; j < (along ? depth : width); j++)
            if (fabsf(x[i * row + j]) >= LEAST_INFINITE) return 0;
    return 1;
}

VEC_INLINE int steps_of_parts(const int along, const int turned, const float *x, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t width, float *out) {
    const unsigned mode = _mm_getcsr();
    const float *at = x;
    vf left = vf_zero();
    _mm_setcsr(mode | MXCSR_NO_DENORMALS);
    for (ptrdiff_t k = depth; k > 0; k -= PARTS_STEP, at += along ? PARTS_STEP : PARTS_STEP * row, out += PARTS_FLOATS)
        left = k >= PARTS_STEP && width == PARTS_TILE ? step_of_parts(along, turned, 1, AMX_ROWS, at, row, k, width, out, left)
                                                      : step_of_parts(along, turned, 0, AMX_ROWS, at, row, k, width, out, left);
    _mm_setcsr(mode);
    return products_as_whole(left, along, x, row, depth, width);
}

/* out: [ceil(depth / PARTS_STEP)][PARTS][16][16 words], a tile of A's rows or of B's columns (width of them), of x with k along its
 * rows (along) or from row to row. Returns whether products of them are what x's are. */
static __attribute__((noinline)) int parts_of_a(int along, const float *x, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t width, float *out) {
    return along ? steps_of_parts(1, 0, x, row, depth, width, out) : steps_of_parts(0, 1, x, row, depth, width, out);
}

static __attribute__((noinline)) int parts_of_b(int along, const float *x, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t width, float *out) {
    return along ? steps_of_parts(1, 1, x, row, depth, width, out) : steps_of_parts(0, 0, x, row, depth, width, out);
}

enum {
    UNIT_ROWS = 4, /* rows of words that a unit of work makes */
    STEP_UNITS = PARTS_BAND * AMX_ROWS / UNIT_ROWS,
    UNITS_AHEAD = 16, /* asked for so early: rows that lie a power of two apart push each other out of L2 before long */
};

/* Begins to split B's next panel, while products take so many steps. One that is turned, or is not whole, is left to parts_end_panel and
 * only asked for: shuffles take a port that products need (5-12 % slower). */
static void parts_begin_panel(PartsWork *w, int along, const float *x, const float *x_right, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t width,
                              ptrdiff_t product_steps, float *parts) {
    w->x[0] = x, w->x[1] = x_right, w->row = row, w->along = along, w->depth = depth, w->width = width, w->parts = parts;
    w->tile_floats = (depth + PARTS_STEP - 1) / PARTS_STEP * PARTS_FLOATS;
    w->done = 0, w->units = 0, w->left = vf_zero();
    w->ask.left = 0;
    if (along || width < PARTS_BAND * PARTS_TILE) {
        if (product_steps) spread_lines(&w->ask, x, row, along ? width : depth, along ? depth : width, PARTS_STEP_ASKS * product_steps);
    } else {
        w->units = depth / PARTS_STEP * STEP_UNITS;
        w->a_step = product_steps ? (w->units + product_steps - 1) / product_steps : 0;
    }
}

VEC_INLINE void parts_work(PartsWork *w, ptrdiff_t count) {
    if (count > w->units - w->done) count = w->units - w->done;
    for (; count > 0; count--, w->done++) {
        const ptrdiff_t tile = w->done % PARTS_BAND, rows = w->done / PARTS_BAND * UNIT_ROWS; /* of words, above these */
        const float *x = w->x[tile] + 2 * rows * w->row;
        if (w->done + UNITS_AHEAD < w->units)
            UNROLL for (int i = 0; i < 2 * UNIT_ROWS; i++) {
                const float *ahead = x + (UNITS_AHEAD / PARTS_BAND * 2 * UNIT_ROWS + i) * w->row;
                __builtin_prefetch(ahead, 0, 2);
                if (tile) __builtin_prefetch(ahead + PARTS_TILE - 1, 0, 2); /* another line where x begins within one */
            }
        w->left = step_of_parts(0, 0, 1, UNIT_ROWS, x, w->row, PARTS_STEP, PARTS_TILE,
                                w->parts + tile * w->tile_floats + rows / AMX_ROWS * PARTS_FLOATS + rows % AMX_ROWS * AMX_WORDS, w->left);
    }
}

/* Does what is left; returns what parts_of_b does. */
static int parts_end_panel(PartsWork *w) {
    const ptrdiff_t split = w->units / STEP_UNITS * PARTS_STEP;
    int as_whole = 1;
    parts_work(w, w->units);
    for (ptrdiff_t tile = 0; tile < PARTS_BAND && split; tile++)
        as_whole &= products_as_whole(w->left, 0, w->x[tile], w->row, split, PARTS_TILE);
    for (ptrdiff_t tile = 0; tile * PARTS_TILE < w->width && split < w->depth; tile++) {
        const ptrdiff_t width = w->width - tile * PARTS_TILE;
        as_whole &= parts_of_b(w->along, w->x[tile] + (w->along ? split : split * w->row), w->row, w->depth - split,
                             width < PARTS_TILE ? width : PARTS_TILE, w->parts + tile * w->tile_floats + split / PARTS_STEP * PARTS_FLOATS);
    }
    return as_whole;
}

#define PARTS_OF_A(part)                                                                                               \
    TILE_LOAD(4, a + (part) * PART_WORDS, 64);                                                                         \
    if (band > 1) TILE_LOAD(5, a_low + (part) * PART_WORDS, 64)
#define PARTS_OF_B(part)                                                                                               \
    TILE_LOAD(6, b + (part) * PART_WORDS, 64);                                                                         \
    if (across > 1) TILE_LOAD(7, b_right + (part) * PART_WORDS, 64)
#define PARTS_DOT()                                                                                                    \
    TILE_DOT(0, 4, 6);                                                                                                 \
    if (across > 1) TILE_DOT(1, 4, 7);                                                                                 \
    if (band > 1) TILE_DOT(2, 5, 6);                                                                                   \
    if (band > 1 && across > 1) TILE_DOT(3, 5, 7)
#define FOR_PARTS_SUMS(DO)                                                                                             \
    DO(0, out);                                                                                                        \
    if (across > 1) DO(1, out + AMX_WORDS);                                                                            \
    if (band > 1) DO(2, out_low);                                                                                      \
    if (band > 1 && across > 1) DO(3, out_low + AMX_WORDS)

/* out [band * 16, across * 16] = (out if add) + A B over so many steps; a_tile, b_tile: floats from one tile's parts to the next's.
 * With `work` (and then out_ask), that is done besides. */
VEC_INLINE void parts_multiply(const int band, const int across, const float *a, ptrdiff_t a_tile, const float *b, ptrdiff_t b_tile,
                               ptrdiff_t steps, float *out, ptrdiff_t out_row, int add, const LinesAsk *out_ask, PartsWork *work) {
    enum { PART_WORDS = AMX_ROWS * AMX_WORDS };
    const float *a_low = a + a_tile, *b_right = b + b_tile;
    float *out_low = out + AMX_ROWS * out_row;
    const ptrdiff_t out_bytes = 4 * out_row;
    const unsigned mode = work ? _mm_getcsr() : 0;
    LinesAsk written, read; /* copies that registers hold */
    if (work) written = *out_ask, read = work->ask, _mm_setcsr(mode | MXCSR_NO_DENORMALS);
    if (add) {
        FOR_PARTS_SUMS(LOAD_SUMS);
    } else {
        FOR_PARTS_SUMS(ZERO_SUMS);
    }
#define BETWEEN_PARTS()                                                                                                \
    if (work) ask_for_lines(&read, 0), ask_for_lines(&written, 1)
    for (; steps > 0; steps--, a += PARTS_FLOATS, a_low += PARTS_FLOATS, b += PARTS_FLOATS, b_right += PARTS_FLOATS) {
        /* From one product of parts to the next only A's or only B's are other ones. */
        PARTS_OF_A(2);
        PARTS_OF_B(0);
        PARTS_DOT();
        BETWEEN_PARTS();
        PARTS_OF_A(0);
        PARTS_DOT();
        BETWEEN_PARTS();
        PARTS_OF_B(2);
        PARTS_DOT();
        BETWEEN_PARTS();
        if (work && work->units) parts_work(work, work->a_step);
        PARTS_OF_B(1);
        PARTS_DOT();
        BETWEEN_PARTS();
        PARTS_OF_A(1);
        PARTS_DOT();
        BETWEEN_PARTS();
        PARTS_OF_B(0);
        PARTS_DOT();
        BETWEEN_PARTS();
    }
#undef BETWEEN_PARTS
    if (work) work->ask = read, _mm_setcsr(mode);
    FOR_PARTS_SUMS(STORE_SUMS);
}

static __attribute__((noinline)) void parts_product(int band, int across, const float *a, ptrdiff_t a_tile, const float *b, ptrdiff_t b_tile,
                                                    ptrdiff_t steps, float *out, ptrdiff_t out_row, int add, const LinesAsk *out_ask,
                                                    PartsWork *work) {
#define WITH(band, across) parts_multiply(band, across, a, a_tile, b, b_tile, steps, out, out_row, add, out_ask, work)
    if (band > 1 && across > 1) WITH(2, 2);
    else if (band > 1) WITH(2, 1);
    else if (across > 1) WITH(1, 2);
    else WITH(1, 1);
#undef WITH
}

/* out [rows, columns] = (out if add) + A B of at most a band of rows, exactly so many, and whole tiles of columns. */
static void parts_of_rows(ptrdiff_t rows, ptrdiff_t columns, const float *a, ptrdiff_t a_tile, const float *b, ptrdiff_t b_tile, ptrdiff_t steps,
                          float *out, ptrdiff_t out_row, int add) {
    enum { SIDE = PARTS_BAND * PARTS_TILE };
    float sums[SIDE * SIDE];
    const int band = rows > PARTS_TILE ? 2 : 1, in_place = rows % PARTS_TILE == 0; /* else other rows follow, which are not ours */
    for (; columns > 0; columns -= SIDE, b += PARTS_BAND * b_tile, out += SIDE) {
        const int across = columns > PARTS_TILE ? 2 : 1;
        if (in_place) {
            parts_product(band, across, a, a_tile, b, b_tile, steps, out, out_row, add, NULL, NULL);
            continue;
        }
        parts_product(band, across, a, a_tile, b, b_tile, steps, sums, SIDE, 0, NULL, NULL);
        for (ptrdiff_t i = 0; i < rows; i++)
            for (ptrdiff_t j = 0; j < across * PARTS_TILE; j += VF_WIDTH) {
                const vf sum = vf_load(sums + i * SIDE + j);
                vf_store(out + i * out_row + j, add ? sum + vf_load(out + i * out_row + j) : sum);
            }
    }
}

#else
/* Never called. */
static int parts_of_a(int along, const float *x, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t width, float *out) { return 1; }
static int parts_of_b(int along, const float *x, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t width, float *out) { return 1; }
static void parts_begin_panel(PartsWork *w, int along, const float *x, const float *x_right, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t width,
                              ptrdiff_t product_steps, float *parts) {}
static int parts_end_panel(PartsWork *w) { return 1; }
static void parts_product(int band, int across, const float *a, ptrdiff_t a_tile, const float *b, ptrdiff_t b_tile, ptrdiff_t steps,
                          float *out, ptrdiff_t out_row, int add, const LinesAsk *out_ask, PartsWork *work) {}
static void parts_of_rows(ptrdiff_t rows, ptrdiff_t columns, const float *a, ptrdiff_t a_tile, const float *b, ptrdiff_t b_tile, ptrdiff_t steps,
                          float *out, ptrdiff_t out_row, int add) {}
#endif

#endif

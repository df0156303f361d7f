/* AMX: tiles of 16 rows of 64 bytes, and an instruction that multiplies two of them. A word is a pair of bfloat16 (bfloat16.h):
 * 16 rows of 16 words by as many words of 16 columns at once.
 *
 * Between tiles_begin and tiles_end a thread's tile registers are set up; whoever multiplies tiles does both within one task.
 * Source: Intel's Software Developer's Manual. Knows nothing of heads or threads.
 */
#ifndef FASTMIXER_AMX_H
#define FASTMIXER_AMX_H

#include "bfloat16.h"
#include "cpu/tiles.h"

enum {
    AMX_ROWS = 16,
    AMX_WORDS = 16,   /* 64 bytes: of a row of A, and of one of B and of the sums */
    AMX_BAND = 2,     /* tiles of rows that a product takes at once, */
    AMX_ACROSS = 3,   /* and of columns: six tiles of sums, one of A, one of B */
    AMX_BAND_ROWS = AMX_BAND * AMX_ROWS,
    AMX_BAND_COLUMNS = AMX_ACROSS * AMX_WORDS,
};

/* Lines that memory is asked for while tiles are multiplied, some at a time: in bursts they would take the 16 places for lines on their
 * way from those that are needed now. */
typedef struct {
    const float *at; /* a row of so many lines, of which the first `line` are done; the next one is `row` floats on */
    ptrdiff_t row, lines, line;
    ptrdiff_t left, a_time;
} LinesAsk;

typedef struct {
    LinesAsk read, written;
} TilesAsk;

/* Rows of so many floats, in so many times. */
static void spread_lines(LinesAsk *ask, const float *x, ptrdiff_t row, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t times) {
    const ptrdiff_t within = (ptrdiff_t)((uintptr_t)x / sizeof(float) % AMX_WORDS); /* a line: NumPy's large arrays begin so */
    ask->at = x - within, ask->row = row, ask->line = 0, ask->lines = (within + columns + AMX_WORDS - 1) / AMX_WORDS;
    ask->left = rows * ask->lines, ask->a_time = (ask->left + times - 1) / times;
}

#if defined(__AMX_BF16__)
#define AMX 1

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileShapes;

/* "memory": the compiler knows nothing of what tiles read. */
#define TILE_SHAPES(shapes) __asm__ volatile("ldtilecfg %0" ::"m"(*(shapes)) : "memory")
#define TILE_RELEASE() __asm__ volatile("tilerelease" ::: "memory")
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::: "memory")
#define TILE_LOAD(tile, place, bytes)                                                                                  \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(place), "r"((ptrdiff_t)(bytes)) : "memory")
#define TILE_STORE(tile, place, bytes)                                                                                 \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(place), "r"((ptrdiff_t)(bytes)) : "memory")
#define TILE_DOT(sums, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sums ::: "memory")

/* Tiles 0..5 are sums, [AMX_BAND][AMX_ACROSS]; 6: A; 7: B. So many rows of A and of the sums. */
static void tiles_of_rows(ptrdiff_t rows) {
    TileShapes shapes __attribute__((aligned(64)));
    memset(&shapes, 0, sizeof shapes);
    shapes.palette = 1;
    for (int tile = 0; tile < 8; tile++) shapes.row_bytes[tile] = 4 * AMX_WORDS, shapes.rows[tile] = (uint8_t)rows;
    shapes.rows[7] = AMX_WORDS;
    TILE_SHAPES(&shapes);
}

static void tiles_begin(void) { tiles_of_rows(AMX_ROWS); }
static void tiles_end(void) { TILE_RELEASE(); }

/* For a module that is imported: whether it can run. */
static int tiles_can_begin(void) { return system_allows_tiles(); }

/* ---- pairs of bfloat16: sums in float32, k from first to last ---- */

/* For each tile of sums that tiles_multiply has, and its place in out. */
#define FOR_SUMS(DO)                                                                                                   \
    DO(0, out);                                                                                                        \
    if (across > 1) DO(1, out + AMX_WORDS);                                                                            \
    if (across > 2) DO(2, out + 2 * AMX_WORDS);                                                                        \
    if (band > 1) DO(3, out_low);                                                                                      \
    if (band > 1 && across > 1) DO(4, out_low + AMX_WORDS);                                                            \
    if (band > 1 && across > 2) DO(5, out_low + 2 * AMX_WORDS)
#define LOAD_SUMS(tile, place) TILE_LOAD(tile, place, out_bytes)
#define ZERO_SUMS(tile, place) TILE_ZERO(tile)
#define STORE_SUMS(tile, place) TILE_STORE(tile, place, out_bytes)

VEC_INLINE void ask_for_lines(LinesAsk *ask, const int written) {
    ptrdiff_t count = ask->left < ask->a_time ? ask->left : ask->a_time;
    ask->left -= count;
    for (; count > 0; count--) {
        __builtin_prefetch(ask->at + ask->line * AMX_WORDS, written, 2);
        if (++ask->line == ask->lines) ask->line = 0, ask->at += ask->row;
    }
}

/* out [band * AMX_ROWS][across * AMX_WORDS] = (out if add) + A [.., depth] B [depth, ..], depth in whole tiles of words; rows of A, B
 * and out so many words apart. `band` and `across` are constants at each call. With `asks`, a part of what it says at each step. */
VEC_INLINE void tiles_multiply(const int band, const int across, const float *a, ptrdiff_t a_row, const float *b, ptrdiff_t b_row,
                               ptrdiff_t depth, float *out, ptrdiff_t out_row, int add, const TilesAsk *asks) {
    const float *a_low = a + AMX_ROWS * a_row;
    float *out_low = out + AMX_ROWS * out_row;
    const ptrdiff_t a_bytes = 4 * a_row, b_bytes = 4 * b_row, out_bytes = 4 * out_row;
    LinesAsk read, written; /* copies that registers hold */
    if (asks) read = asks->read, written = asks->written;
    if (add) {
        FOR_SUMS(LOAD_SUMS);
    } else {
        FOR_SUMS(ZERO_SUMS);
    }
    for (ptrdiff_t k = 0; k < depth; k += AMX_WORDS, a += AMX_WORDS, a_low += AMX_WORDS, b += AMX_WORDS * b_row) {
        if (asks) ask_for_lines(&read, 0), ask_for_lines(&written, 1);
        TILE_LOAD(6, a, a_bytes);
        TILE_LOAD(7, b, b_bytes);
        TILE_DOT(0, 6, 7);
        if (band > 1) {
            TILE_LOAD(6, a_low, a_bytes);
            TILE_DOT(3, 6, 7);
        }
        if (across > 1) {
            TILE_LOAD(7, b + AMX_WORDS, b_bytes);
            if (band > 1) {
                TILE_DOT(4, 6, 7);
                TILE_LOAD(6, a, a_bytes);
            }
            TILE_DOT(1, 6, 7);
        }
        if (across > 2) {
            TILE_LOAD(7, b + 2 * AMX_WORDS, b_bytes);
            TILE_DOT(2, 6, 7);
            if (band > 1) {
                TILE_LOAD(6, a_low, a_bytes);
                TILE_DOT(5, 6, 7);
            }
        }
    }
    FOR_SUMS(STORE_SUMS);
}

VEC_INLINE void tiles_across(const int band, int across, const float *a, ptrdiff_t a_row, const float *b, ptrdiff_t b_row,
                             ptrdiff_t depth, float *out, ptrdiff_t out_row, int add) {
    if (across == 3) tiles_multiply(band, 3, a, a_row, b, b_row, depth, out, out_row, add, NULL);
    else if (across == 2) tiles_multiply(band, 2, a, a_row, b, b_row, depth, out, out_row, add, NULL);
    else tiles_multiply(band, 1, a, a_row, b, b_row, depth, out, out_row, add, NULL);
}

/* The same of any number of rows, depth in whole tiles. */
static __attribute__((noinline)) void whole_tiles(ptrdiff_t rows, int across, const float *a, ptrdiff_t a_row, const float *b,
                                                  ptrdiff_t b_row, ptrdiff_t depth, float *out, ptrdiff_t out_row, int add) {
    for (; rows >= AMX_BAND_ROWS; rows -= AMX_BAND_ROWS, a += AMX_BAND_ROWS * a_row, out += AMX_BAND_ROWS * out_row)
        tiles_across(2, across, a, a_row, b, b_row, depth, out, out_row, add);
    if (rows >= AMX_ROWS) {
        tiles_across(1, across, a, a_row, b, b_row, depth, out, out_row, add);
        rows -= AMX_ROWS, a += AMX_ROWS * a_row, out += AMX_ROWS * out_row;
    }
    if (rows > 0) {
        tiles_of_rows(rows);
        tiles_across(1, across, a, a_row, b, b_row, depth, out, out_row, add);
        tiles_begin();
    }
}

/* Where depth ends within a tile: the last words of A and B, with zeros behind them. At most a band of rows. */
static __attribute__((noinline)) void last_tiles(ptrdiff_t rows, int across, const float *a, ptrdiff_t a_row, const float *b,
                                                 ptrdiff_t b_row, ptrdiff_t depth, float *out, ptrdiff_t out_row, int add) {
    float a_part[AMX_BAND_ROWS * AMX_WORDS], b_part[AMX_WORDS * AMX_BAND_COLUMNS];
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t k = 0; k < AMX_WORDS; k++) a_part[i * AMX_WORDS + k] = k < depth ? a[i * a_row + k] : 0;
    for (ptrdiff_t k = 0; k < AMX_WORDS; k++)
        for (ptrdiff_t j = 0; j < across * AMX_WORDS; j++) b_part[k * AMX_BAND_COLUMNS + j] = k < depth ? b[k * b_row + j] : 0;
    whole_tiles(rows, across, a_part, AMX_WORDS, b_part, AMX_BAND_COLUMNS, AMX_WORDS, out, out_row, add);
}

/* out [rows][columns] = (out if add) + A [rows, depth] B [depth, columns] of pairs; rows at most AMX_BAND_ROWS, columns whole tiles
 * (AMX_WORDS), at most AMX_BAND_COLUMNS. */
VEC_INLINE void tiles_of_pairs(ptrdiff_t rows, ptrdiff_t columns, const float *a, ptrdiff_t a_row, const float *b, ptrdiff_t b_row,
                               ptrdiff_t depth, float *out, ptrdiff_t out_row, int add) {
    const ptrdiff_t whole = depth / AMX_WORDS * AMX_WORDS;
    const int across = (int)(columns / AMX_WORDS);
    if (whole) whole_tiles(rows, across, a, a_row, b, b_row, whole, out, out_row, add);
    if (whole < depth || !depth)
        last_tiles(rows, across, a + whole, a_row, b + whole * b_row, b_row, depth - whole, out, out_row, add || whole);
}

/* The same of a panel, AMX_BAND_COLUMNS side by side, while memory is asked for what comes next. */
static __attribute__((noinline)) void tiles_of_panel(ptrdiff_t rows, const float *a, ptrdiff_t a_row, const float *b, ptrdiff_t depth,
                                                     float *out, ptrdiff_t out_row, int add, const TilesAsk *asks) {
    const ptrdiff_t whole = depth / AMX_WORDS * AMX_WORDS;
    if (rows == AMX_BAND_ROWS && whole)
        tiles_multiply(AMX_BAND, AMX_ACROSS, a, a_row, b, AMX_BAND_COLUMNS, whole, out, out_row, add, asks);
    else if (whole)
        whole_tiles(rows, AMX_ACROSS, a, a_row, b, AMX_BAND_COLUMNS, whole, out, out_row, add);
    if (whole < depth)
        last_tiles(rows, AMX_ACROSS, a + whole, a_row, b + whole * AMX_BAND_COLUMNS, AMX_BAND_COLUMNS, depth - whole, out, out_row,
                   add || whole);
}

#else
#define AMX 0
static int tiles_can_begin(void) { return 1; }
/* Never called. */
static void tiles_begin(void) {}
static void tiles_end(void) {}
static void tiles_of_pairs(ptrdiff_t rows, ptrdiff_t columns, const float *a, ptrdiff_t a_row, const float *b, ptrdiff_t b_row,
                           ptrdiff_t depth, float *out, ptrdiff_t out_row, int add) {}
static void tiles_of_panel(ptrdiff_t rows, const float *a, ptrdiff_t a_row, const float *b, ptrdiff_t depth, float *out,
                           ptrdiff_t out_row, int add, const TilesAsk *asks) {}
#endif

/* The same of any number of columns: two tiles of them at a time, as most heads and blocks of keys are a multiple of that. */
static void wide_tiles_of_pairs(ptrdiff_t rows, ptrdiff_t columns, const float *a, ptrdiff_t a_row, const float *b, ptrdiff_t b_row,
                                ptrdiff_t depth, float *out, ptrdiff_t out_row, int add) {
    enum { COLUMNS = 2 * AMX_WORDS };
    for (; columns > 0; columns -= COLUMNS, b += COLUMNS, out += COLUMNS)
        tiles_of_pairs(rows, columns < COLUMNS ? columns : COLUMNS, a, a_row, b, b_row, depth, out, out_row, add);
}

#endif

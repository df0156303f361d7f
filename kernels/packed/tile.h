/* Weights in blocks of 32 with a scale (and a minimum), packed in panels of VF_WIDTH columns, and the tiles that
 * multiply them by rows of 8-bit activations.
 *
 * A panel holds, for each pair of blocks: numbers (8-bit: eight vectors a block, vector g with numbers 4g..4g+3 of
 * each column; 4-bit: four vectors, group g in the low halves and g + 4 in the high ones), then scales [2][VF_WIDTH],
 * then minima [2][VF_WIDTH]. It is read from end to end. A column's sum takes the same steps in every tile, so the
 * same bits come out whatever the number of rows. Knows nothing of tasks or threads.
 */
#ifndef FASTMIXER_PACKED_TILE_H
#define FASTMIXER_PACKED_TILE_H

#include "packed/dot.h"

enum {
    BLOCK = 32,       /* numbers with one scale */
    PAIR = 2 * BLOCK, /* columns of x are padded to it */
    GROUPS = BLOCK / 4,
    PANEL_AHEAD = 8192,
    REST_STEPS = 254, /* rounding leaves at most half a step: 127 of these */
};

/* FEW rows read a panel as it lies, up to MANY rows in several turns, the later ones from L1; more rows unpack it first. */
enum { MANY = 32 };
#if VF_REGISTERS == 32
#define FEW 8
#define ROWS_TILE 6
#define PANELS_TILE 2
#else
#define FEW 4
#define ROWS_TILE 2
#define PANELS_TILE 2
#endif

typedef struct {
    const uint8_t *data;
    ptrdiff_t outputs, inputs;
    ptrdiff_t pairs;       /* of blocks, in a column */
    ptrdiff_t panel_bytes; /* of VF_WIDTH columns */
    int bits;              /* 4 or 8 */
    int half;              /* scales and minima are half-precision numbers, else floats */
    int minimum;           /* there are minima */
} PackedMatrix;

/* Activations: numbers int8 [rows, pairs * PAIR], and for each block its scale, the sum of its numbers and that times
 * the scale: [rows, 2 pairs]. */
typedef struct {
    int8_t *numbers;
    float *scales;
    int32_t *sums;
    float *scaled_sums;
    ptrdiff_t pairs;
} QuantizedRows;

VEC_INLINE ptrdiff_t packed_scale_bytes(int half) { return VF_WIDTH * (half && HALF_SCALES ? 2 : 4); }

VEC_INLINE ptrdiff_t packed_block_bytes(int bits) { return BLOCK * VF_WIDTH * bits / 8; }

VEC_INLINE ptrdiff_t packed_pair_bytes(int bits, int half, int minimum) {
    return 2 * (packed_block_bytes(bits) + packed_scale_bytes(half) * (minimum ? 2 : 1));
}

/* What the stored bytes are higher than the numbers: numbers with a minimum are never negative and stay as they are. */
VEC_INLINE int packed_offset(int bits, int minimum) { return bits == 8 && !minimum ? DOT_OFFSET : 0; }

VEC_INLINE vf load_scale(const uint8_t *p, int half) {
    return half && HALF_SCALES ? vf_load_half(p) : vf_load((const float *)p);
}

/* ---- activations ---- */

/* The rounded numbers of one block of a row, and what goes with them. */
VEC_INLINE void store_rounded(const vi *numbers, float scale, int8_t *out, float *scales, int32_t *sums, float *scaled_sums) {
    vi sum = vi_set(0);
    for (int i = 0; i < BLOCK / VF_WIDTH; i++) {
        sum += numbers[i];
#if defined(VEC_AVX512)
        _mm_storeu_si128((__m128i *)(out + i * VF_WIDTH), _mm512_cvtepi32_epi8((__m512i)numbers[i]));
#else
        for (int lane = 0; lane < VF_WIDTH; lane++) out[i * VF_WIDTH + lane] = (int8_t)numbers[i][lane];
#endif
    }
    int32_t total = vi_sum(sum);
    *scales = scale;
    *sums = total;
    *scaled_sums = scale * (float)total;
}

/* One row of x [columns], padded with zeros to whole pairs: round(x / scale) with scale = max |x| / 127 of each block.
 * fine: a second row follows with what rounding left over, in steps REST_STEPS times as fine: together 15 bits. */
static void quantize_row(const float *x, ptrdiff_t columns, int fine, ptrdiff_t pairs, int8_t *numbers, float *scales,
                         int32_t *sums, float *scaled_sums) {
    for (ptrdiff_t block = 0, rest = 2 * pairs; block < 2 * pairs; block++, rest++) {
        vf parts[BLOCK / VF_WIDTH], largest = vf_zero();
        vi rounded[BLOCK / VF_WIDTH];
        ptrdiff_t left = columns - block * BLOCK;
        for (int i = 0; i < BLOCK / VF_WIDTH; i++) {
            ptrdiff_t lanes = left - i * VF_WIDTH;
            const float *place = x + block * BLOCK + i * VF_WIDTH;
            parts[i] = lanes >= VF_WIDTH ? vf_load(place) : lanes > 0 ? vf_load_first(place, lanes) : vf_zero();
            largest = vf_max(largest, vf_abs(parts[i]));
        }
        float most = vf_largest(largest), scale = most / 127.0f, inverse = most > 0 ? 127.0f / most : 0.0f;
        for (int i = 0; i < BLOCK / VF_WIDTH; i++) {
            parts[i] = parts[i] * inverse;
            rounded[i] = __builtin_convertvector(vf_round(parts[i]), vi);
        }
        store_rounded(rounded, scale, numbers + block * BLOCK, scales + block, sums + block, scaled_sums + block);
        if (!fine) continue;
        for (int i = 0; i < BLOCK / VF_WIDTH; i++)
            rounded[i] = __builtin_convertvector(vf_round((parts[i] - vf_from_int(rounded[i])) * (float)REST_STEPS), vi);
        store_rounded(rounded, scale / REST_STEPS, numbers + rest * BLOCK, scales + rest, sums + rest, scaled_sums + rest);
    }
}

/* ---- the product of one block, and a panel as the tiles read it ---- */

typedef struct {
    const uint8_t *numbers; /* [2 pairs][GROUPS] vectors of bytes */
    const float *scales;    /* [2 pairs][VF_WIDTH] */
    const float *minima;    /* the same or NULL */
    int nibbles;            /* numbers are 0..15 */
} OpenPanel;

VEC_INLINE vf add_block(vf sum, vi dots, vf scale, float x_scale) {
    return vf_fma(vf_from_int(dots), scale * vf_set(x_scale), sum);
}

/* Bytes of the scratch that holds one open panel. */
VEC_INLINE ptrdiff_t open_panel_bytes(ptrdiff_t pairs) {
    return 2 * pairs * (GROUPS * VF_WIDTH * 4 + 2 * VF_WIDTH * (ptrdiff_t)sizeof(float));
}

/* A panel with its numbers a byte each and its scales floats, in scratch. */
static OpenPanel open_panel(const PackedMatrix *w, ptrdiff_t panel, uint8_t *scratch) {
    OpenPanel open;
    ptrdiff_t blocks = 2 * w->pairs, block_bytes = packed_block_bytes(w->bits), scale_bytes = packed_scale_bytes(w->half);
    float *scales = (float *)(scratch + blocks * GROUPS * VF_WIDTH * 4), *minima = scales + blocks * VF_WIDTH;
    const uint8_t *pair = w->data + panel * w->panel_bytes;
    for (ptrdiff_t block = 0; block < blocks; block += 2, pair += packed_pair_bytes(w->bits, w->half, w->minimum))
        for (int h = 0; h < 2; h++) {
            const uint8_t *in = pair + h * block_bytes, *scale = pair + 2 * block_bytes + h * scale_bytes;
            uint8_t *out = scratch + (block + h) * GROUPS * VF_WIDTH * 4;
            if (w->bits == 4)
                for (int g = 0; g < GROUPS / 2; g++) {
                    vi both = vi_load(in + g * VF_WIDTH * 4);
                    vi_store(out + g * VF_WIDTH * 4, both & 0x0f0f0f0f);
                    vi_store(out + (g + GROUPS / 2) * VF_WIDTH * 4, (both >> 4) & 0x0f0f0f0f);
                }
            else
                memcpy(out, in, GROUPS * VF_WIDTH * 4);
            vf_store(scales + (block + h) * VF_WIDTH, load_scale(scale, w->half));
            if (w->minimum) vf_store(minima + (block + h) * VF_WIDTH, load_scale(scale + 2 * scale_bytes, w->half));
        }
    open.numbers = scratch;
    open.scales = scales;
    open.minima = w->minimum ? minima : NULL;
    open.nibbles = w->bits == 4;
    return open;
}

/* sums [rows][panels * VF_WIDTH]: rows of x against open panels. */
VEC_INLINE void open_tile(int rows, int panels, int minimum, int offset, int nibbles, const OpenPanel *open, const QuantizedRows *x,
                          ptrdiff_t first_row, float *sums) {
    ptrdiff_t width = x->pairs * PAIR, blocks = 2 * x->pairs;
    vf total[ROWS_TILE][PANELS_TILE];
    for (int i = 0; i < rows; i++)
        for (int p = 0; p < panels; p++) total[i][p] = vf_zero();
    const int8_t *numbers = x->numbers + first_row * width;
    /* The rows of the next tile are asked for on the way: its short runs of memory are too many for the processor to guess
     * (0.56 -> 0.7 of the peak). */
    const int8_t *next = numbers + rows * width;
    ptrdiff_t next_scales = (first_row + rows) * blocks;
    for (ptrdiff_t block = 0; block < blocks; block++) {
        vi dots[ROWS_TILE][PANELS_TILE];
        if (block % 2 == 0)
            for (int i = 0; i < rows; i++) __builtin_prefetch(next + i * width + block * BLOCK);
        for (ptrdiff_t at = block * rows; at < (block + 1) * rows; at += 16) {
            __builtin_prefetch(x->scales + next_scales + at);
            if (offset) __builtin_prefetch(x->sums + next_scales + at);
            if (minimum) __builtin_prefetch(x->scaled_sums + next_scales + at);
        }
        for (int i = 0; i < rows; i++)
            for (int p = 0; p < panels; p++)
                dots[i][p] = vi_set(offset ? -offset * x->sums[(first_row + i) * blocks + block] : 0);
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; g++) {
            vi w[PANELS_TILE];
            for (int p = 0; p < panels; p++) w[p] = vi_load(open[p].numbers + (block * GROUPS + g) * VF_WIDTH * 4);
            for (int i = 0; i < rows; i++) {
                vi four = vi_broadcast_bytes(numbers + i * width + block * BLOCK + 4 * g);
                for (int p = 0; p < panels; p++)
                    dots[i][p] = nibbles ? vi_chain_dot(dots[i][p], w[p], four) : vi_dot(dots[i][p], w[p], four);
            }
        }
        if (nibbles)
            for (int i = 0; i < rows; i++)
                for (int p = 0; p < panels; p++) dots[i][p] = vi_chain_sum(dots[i][p]);
        for (int p = 0; p < panels; p++) {
            vf scale = vf_load(open[p].scales + block * VF_WIDTH);
            for (int i = 0; i < rows; i++)
                total[i][p] = add_block(total[i][p], dots[i][p], scale, x->scales[(first_row + i) * blocks + block]);
            if (minimum) {
                vf least = vf_load(open[p].minima + block * VF_WIDTH);
                for (int i = 0; i < rows; i++)
                    total[i][p] = vf_fma(least, vf_set(x->scaled_sums[(first_row + i) * blocks + block]), total[i][p]);
            }
        }
    }
    for (int i = 0; i < rows; i++)
        for (int p = 0; p < panels; p++) vf_store(sums + (i * panels + p) * VF_WIDTH, total[i][p]);
}

#define OPEN_TILE(count)                                                                                               \
    static __attribute__((noinline)) void open_tile_##count(const OpenPanel *open, const QuantizedRows *x,             \
                                                            ptrdiff_t row, int offset, float *sums) {                  \
        if (open->nibbles) open_tile(count, PANELS_TILE, 1, 0, 1, open, x, row, sums);                                 \
        else if (open->minima != NULL) open_tile(count, PANELS_TILE, 1, 0, 0, open, x, row, sums);                     \
        else if (offset) open_tile(count, PANELS_TILE, 0, DOT_OFFSET, 0, open, x, row, sums);                          \
        else open_tile(count, PANELS_TILE, 0, 0, 0, open, x, row, sums);                                               \
    }
OPEN_TILE(1)
OPEN_TILE(2)
#if ROWS_TILE == 6
OPEN_TILE(3)
OPEN_TILE(4)
OPEN_TILE(5)
OPEN_TILE(6)
#endif
#undef OPEN_TILE

/* sums [rows <= ROWS_TILE][PANELS_TILE * VF_WIDTH]. offset: the numbers are stored DOT_OFFSET higher. */
static void open_tile_of(ptrdiff_t rows, const OpenPanel *open, const QuantizedRows *x, ptrdiff_t row, int offset,
                         float *sums) {
    switch (rows) {
    case 1: open_tile_1(open, x, row, offset, sums); break;
    case 2: open_tile_2(open, x, row, offset, sums); break;
#if ROWS_TILE == 6
    case 3: open_tile_3(open, x, row, offset, sums); break;
    case 4: open_tile_4(open, x, row, offset, sums); break;
    case 5: open_tile_5(open, x, row, offset, sums); break;
    default: open_tile_6(open, x, row, offset, sums);
#endif
    }
}

/* ---- few rows: the panel is read as it lies, once ---- */

/* sums [rows][VF_WIDTH] of one panel. */
VEC_INLINE void panel_dot(int rows, int bits, int half, int minimum, const PackedMatrix *w, ptrdiff_t panel,
                          const QuantizedRows *x, ptrdiff_t first_row, float *sums) {
    ptrdiff_t width = x->pairs * PAIR, blocks = 2 * x->pairs;
    const ptrdiff_t block_bytes = packed_block_bytes(bits), scale_bytes = packed_scale_bytes(half);
    const int offset = packed_offset(bits, minimum);
    const uint8_t *pair = w->data + panel * w->panel_bytes;
    const int8_t *numbers = x->numbers + first_row * width;
    vf total[FEW];
    for (int i = 0; i < rows; i++) total[i] = vf_zero();
    for (ptrdiff_t block = 0; block < blocks; block += 2, pair += packed_pair_bytes(bits, half, minimum)) {
        if (rows >= 4)
            for (ptrdiff_t line = 0; line < packed_pair_bytes(bits, half, minimum); line += 64)
                __builtin_prefetch(pair + PANEL_AHEAD + line, 0, 2);
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            const uint8_t *in = pair + h * block_bytes, *scale_place = pair + 2 * block_bytes + h * scale_bytes;
            const int8_t *four = numbers + (block + h) * BLOCK;
            vi dots[FEW];
            for (int i = 0; i < rows; i++)
                dots[i] = vi_set(offset ? -offset * x->sums[(first_row + i) * blocks + block + h] : 0);
            if (bits == 4) {
#pragma GCC unroll 4
                for (int g = 0; g < GROUPS / 2; g++) {
                    vi both = vi_load(in + g * VF_WIDTH * 4);
                    vi low = both & 0x0f0f0f0f, high = (both >> 4) & 0x0f0f0f0f;
                    for (int i = 0; i < rows; i++) {
                        dots[i] = vi_chain_dot(dots[i], low, vi_broadcast_bytes(four + i * width + 4 * g));
                        dots[i] = vi_chain_dot(dots[i], high, vi_broadcast_bytes(four + i * width + 4 * g + BLOCK / 2));
                    }
                }
                for (int i = 0; i < rows; i++) dots[i] = vi_chain_sum(dots[i]);
            } else {
#pragma GCC unroll 8
                for (int g = 0; g < GROUPS; g++) {
                    vi w_group = vi_load(in + g * VF_WIDTH * 4);
                    for (int i = 0; i < rows; i++)
                        dots[i] = vi_dot(dots[i], w_group, vi_broadcast_bytes(four + i * width + 4 * g));
                }
            }
            vf scale = load_scale(scale_place, half);
            for (int i = 0; i < rows; i++)
                total[i] = add_block(total[i], dots[i], scale, x->scales[(first_row + i) * blocks + block + h]);
            if (minimum) {
                vf least = load_scale(scale_place + 2 * scale_bytes, half);
                for (int i = 0; i < rows; i++)
                    total[i] = vf_fma(least, vf_set(x->scaled_sums[(first_row + i) * blocks + block + h]), total[i]);
            }
        }
    }
    for (int i = 0; i < rows; i++) vf_store(sums + i * VF_WIDTH, total[i]);
}

#define PANEL_DOTS(name, bits, half, minimum)                                                                          \
    static __attribute__((noinline)) void name(int rows, const PackedMatrix *w, ptrdiff_t panel,                       \
                                               const QuantizedRows *x, ptrdiff_t row, float *sums) {                  \
        if (rows == 1) panel_dot(1, bits, half, minimum, w, panel, x, row, sums);                                      \
        else if (rows == 2) panel_dot(2, bits, half, minimum, w, panel, x, row, sums);                                 \
        else if (rows == 4) panel_dot(4, bits, half, minimum, w, panel, x, row, sums);                                 \
        else panel_dot(FEW, bits, half, minimum, w, panel, x, row, sums);                                              \
    }
PANEL_DOTS(panel_dot_4_half_minimum, 4, 1, 1)
PANEL_DOTS(panel_dot_4_minimum, 4, 0, 1)
PANEL_DOTS(panel_dot_8_half, 8, 1, 0)
PANEL_DOTS(panel_dot_8_half_minimum, 8, 1, 1)
PANEL_DOTS(panel_dot_8, 8, 0, 0)
PANEL_DOTS(panel_dot_8_minimum, 8, 0, 1)
#undef PANEL_DOTS

/* sums [rows][VF_WIDTH] of one panel, whatever its form. */
static void panel_dots(ptrdiff_t rows, const PackedMatrix *w, ptrdiff_t panel, const QuantizedRows *x, float *sums) {
    void (*dots)(int, const PackedMatrix *, ptrdiff_t, const QuantizedRows *, ptrdiff_t, float *) =
        w->bits == 4 ? (w->half ? panel_dot_4_half_minimum : panel_dot_4_minimum) /* 4 bits count from a minimum */
        : w->half    ? (w->minimum ? panel_dot_8_half_minimum : panel_dot_8_half)
                     : (w->minimum ? panel_dot_8_minimum : panel_dot_8);
    for (ptrdiff_t row = 0; row < rows;) {
        ptrdiff_t left = rows - row;
        int count = left >= FEW ? FEW : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        dots(count, w, panel, x, row, sums + row * VF_WIDTH);
        row += count;
    }
}

#endif

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

#include "amx.h"
#include "half.h"
#include "packed/round.h"

enum {
    BLOCK = 32,       /* numbers with one scale */
    PAIR = 2 * BLOCK, /* columns of x are padded to it */
    GROUPS = BLOCK / 4,
    PANEL_AHEAD = 8192,
};

/* FEW rows read a panel as it lies, up to MANY rows in several turns, the later ones from L1; more rows unpack it first. */
enum { MANY = 32 };
#if VF_REGISTERS == 32
#define FEW 8
/* So many rows ask for all that comes PANEL_AHEAD bytes later; fewer for a line of every pair, as processors fetch what follows it
 * on their own, but no further than a page of 4 KB. On a Zen 4 one row takes 8-12 % more time without (two threads: 3 %), and 20 % more
 * if it asks for all (5 %). */
#define ASKING_ROWS 4
#define ROWS_TILE 6
#define PANELS_TILE 2
#else
#define FEW 4
#define ASKING_ROWS 1 /* a Zen 3 writes 1.2 times as fast with it, on one thread and on two */
#define ROWS_TILE 4
#define PANELS_TILE 2
#endif

enum { WHOLE_TILES = AMX ? AMX_BAND_ROWS : 6 }; /* rows of x that are whole tiles of any kind */

typedef struct {
    const uint8_t *data;
    ptrdiff_t outputs, inputs;
    ptrdiff_t pairs;       /* of blocks, in a column */
    ptrdiff_t panel_bytes; /* of VF_WIDTH columns */
    int bits;              /* 4 or 8 */
    int half;              /* scales and minima are half-precision numbers, else floats */
    int minimum;           /* there are minima */
} PackedMatrix;

/* Activations: numbers int8 [rows, 2 pairs, BLOCK], and for each block its scale, what its products with weights that are
 * stored DOT_OFFSET higher begin at (-DOT_OFFSET times the sum of its numbers), and the sum times the scale: [rows, 2 pairs].
 * Outliers are zeros among the numbers: where they were in their row, and what: [rows, outliers]. */
typedef struct {
    int8_t *numbers;
    float *scales;
    int32_t *offsets;
    float *scaled_sums;
    uint32_t *places;
    float *values;
    ptrdiff_t pairs, outliers;
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

enum { BLOCK_VECTORS = BLOCK / VF_WIDTH };

/* Block `place` of all rows' blocks = x. */
VEC_INLINE void round_x_block(const vf x[BLOCK_VECTORS], const QuantizedRows *rows, ptrdiff_t place) {
    vf most = vf_zero();
    vi sum = vi_set(0);
    UNROLL for (int i = 0; i < BLOCK_VECTORS; i++) most = vf_max(most, vf_abs(x[i]));
    const float largest = vf_largest(most), inverse = largest > 0 ? 127.0f / largest : 0;
    UNROLL for (int i = 0; i < BLOCK_VECTORS; i++) {
        vi rounded = vi_nearest(x[i] * inverse);
        sum += rounded;
        store_bytes(rows->numbers + place * BLOCK + i * VF_WIDTH, rounded, VF_WIDTH);
    }
    const int32_t total = vi_sum(sum);
    rows->scales[place] = largest / 127.0f;
    rows->offsets[place] = total * -DOT_OFFSET;
    rows->scaled_sums[place] = rows->scales[place] * (float)total;
}

/* Number `place` of a block becomes 0; one that lies in another block changes nothing. */
VEC_INLINE void clear_number(vf block[BLOCK_VECTORS], ptrdiff_t place) {
    UNROLL for (int i = 0; i < BLOCK_VECTORS; i++)
        block[i] = vf_select(vi_lanes() == (int32_t)(place - i * VF_WIDTH), vf_zero(), block[i]);
}

/* A rounded row's outliers: again and again the largest number of the block with the largest scale, which is rounded anew
 * without it. */
static void take_outliers(const float *x, ptrdiff_t columns, const QuantizedRows *rows, ptrdiff_t row) {
    const ptrdiff_t blocks = 2 * rows->pairs;
    uint32_t *places = rows->places + row * rows->outliers;
    float *values = rows->values + row * rows->outliers;
    for (ptrdiff_t k = 0; k < rows->outliers; k++) {
        const ptrdiff_t block = largest_place(rows->scales + row * blocks, blocks), start = block * BLOCK;
        vf left[BLOCK_VECTORS];
        float magnitudes[BLOCK];
        load_group(x + start, columns - start, BLOCK_VECTORS, left);
        for (ptrdiff_t taken = 0; taken < k; taken++) clear_number(left, places[taken] - start);
        UNROLL for (int i = 0; i < BLOCK_VECTORS; i++) vf_store(magnitudes + i * VF_WIDTH, vf_abs(left[i]));
        const ptrdiff_t at = largest_place(magnitudes, BLOCK);
        places[k] = (uint32_t)(start + at), values[k] = magnitudes[at] > 0 ? x[start + at] : 0;
        clear_number(left, at);
        round_x_block(left, rows, row * blocks + block);
    }
}

/* One row of x [columns], padded with zeros to whole pairs: round(x / scale) with scale = max |x| / 127 of each block. */
static void quantize_row(const float *x, ptrdiff_t columns, const QuantizedRows *rows, ptrdiff_t row) {
    const ptrdiff_t blocks = 2 * rows->pairs, first = row * blocks;
    int8_t *numbers = rows->numbers + first * BLOCK;
    for (ptrdiff_t block = 0; block < blocks; block += VF_WIDTH) {
        float inverses[VF_WIDTH];
        vi sums[VF_WIDTH];
        ptrdiff_t count = blocks - block < VF_WIDTH ? blocks - block : VF_WIDTH;
        vf scale = group_scales(x + block * BLOCK, BLOCK, count, columns - block * BLOCK, BLOCK_VECTORS, inverses);
        for (ptrdiff_t b = 0; b < VF_WIDTH; b++) sums[b] = vi_set(0);
        for (ptrdiff_t b = 0; b < count; b++) {
            vf parts[BLOCK_VECTORS];
            vi sum = vi_set(0); /* not in place: a store of bytes may be to anywhere, for all the compiler knows */
            load_group(x + (block + b) * BLOCK, columns - (block + b) * BLOCK, BLOCK_VECTORS, parts);
            UNROLL for (int i = 0; i < BLOCK_VECTORS; i++) {
                vi rounded = vi_nearest(parts[i] * inverses[b]);
                sum += rounded;
                store_bytes(numbers + (block + b) * BLOCK + i * VF_WIDTH, rounded, VF_WIDTH);
            }
            sums[b] = sum;
        }
        vi total = sum_of_each(sums);
        vf_store_first(rows->scales + first + block, scale, count);
        vi_store_first(rows->offsets + first + block, total * -DOT_OFFSET, count);
        vf_store_first(rows->scaled_sums + first + block, scale * vf_from_int(total), count);
    }
    if (rows->outliers) take_outliers(x, columns, rows, row);
}

/* ---- the product of one block, and a panel as the tiles read it ---- */

/* Panels with their numbers a byte each, pairs of blocks as they are packed: 8-bit ones as they lie, others unpacked. */
typedef struct {
    const uint8_t *pairs; /* of the first panel */
    ptrdiff_t next;       /* bytes to the next panel's */
    int half, minimum;
    int nibbles; /* numbers are 0..15 */
} OpenPanels;

VEC_INLINE vf add_block(vf sum, vi dots, vf scale, float x_scale) {
    return vf_fma(vf_from_int(dots), scale * vf_set(x_scale), sum);
}

/* Bytes of the scratch that holds one open panel. */
VEC_INLINE ptrdiff_t open_panel_bytes(ptrdiff_t pairs) { return pairs * packed_pair_bytes(8, 0, 1); }

/* A panel of 4-bit numbers as one of 8-bit numbers, its scales and minima floats, in scratch. */
static void unpack_panel(const PackedMatrix *w, ptrdiff_t panel, uint8_t *scratch) {
    const ptrdiff_t block_bytes = packed_block_bytes(4), open_bytes = packed_block_bytes(8), scale_bytes = packed_scale_bytes(w->half);
    const uint8_t *in = w->data + panel * w->panel_bytes;
    for (ptrdiff_t pair = 0; pair < w->pairs; pair++, in += packed_pair_bytes(4, w->half, 1), scratch += packed_pair_bytes(8, 0, 1))
        for (int h = 0; h < 2; h++) {
            const uint8_t *scale = in + 2 * block_bytes + h * scale_bytes;
            uint8_t *out = scratch + h * open_bytes;
            float *scales = (float *)(scratch + 2 * open_bytes);
            for (int g = 0; g < GROUPS / 2; g++) {
                vi both = vi_load(in + h * block_bytes + g * VF_WIDTH * 4);
                vi_store(out + g * VF_WIDTH * 4, both & 0x0f0f0f0f);
                vi_store(out + (g + GROUPS / 2) * VF_WIDTH * 4, (both >> 4) & 0x0f0f0f0f);
            }
            vf_store(scales + h * VF_WIDTH, load_scale(scale, w->half));
            vf_store(scales + (2 + h) * VF_WIDTH, load_scale(scale + 2 * scale_bytes, w->half));
        }
}

/* PANELS_TILE panels from `panel` on; if there are only so few `panels`, the first one again: computed, never stored. scratch has
 * room for PANELS_TILE open panels. */
static OpenPanels open_panels(const PackedMatrix *w, ptrdiff_t panel, ptrdiff_t panels, uint8_t *scratch) {
    OpenPanels open = {w->data + panel * w->panel_bytes, w->panel_bytes, w->half, w->minimum, w->bits == 4};
    if (open.nibbles) {
        open.pairs = scratch, open.next = open_panel_bytes(w->pairs), open.half = 0;
        for (ptrdiff_t p = 0; p < panels; p++) unpack_panel(w, panel + p, scratch + p * open.next);
    }
    if (panels < PANELS_TILE) open.next = 0;
    return open;
}

#if AMX
/* ---- panels of pairs, as tiles of AMX read them ---- */

enum { PAIR_PANELS = AMX_ACROSS, PAIR_COLUMNS = PAIR_PANELS * VF_WIDTH };

/* A number of 8 bits that lies in bits 15..22 of each lane, or one of 4 in bits 19..22, is added to 256 (16) where it comes to lie in
 * a float's fraction: a shift and one operation of logic, and the scale's multiply-add takes the 256 (16) away again. */
VEC_INLINE vf number_in_fraction(vi lanes, const int bits) {
    const int32_t base = bits == 8 ? 0x43800000 : 0x41800000, mask = bits == 8 ? 0x7f8000 : 0x780000;
    return (vf)((lanes & mask) | base);
}

VEC_INLINE vi moved(vi lanes, const int left) { return left >= 0 ? lanes << left : lanes >> -left; }

/* Four numbers of each column (or eight: those of a 4-bit group and of its fellow in the high halves) as words, two rows of them. */
VEC_INLINE void pairs_of_group(vi group, const int bits, const int high, vf scale, vf least, float *out) {
    vf values[4];
    UNROLL for (int i = 0; i < 4; i++) /* bit 8 i (and 4 more) moves to where the fraction's ones lie */
        values[i] = vf_fma(number_in_fraction(moved(group, (bits == 8 ? 15 : 19) - 8 * i - 4 * high), bits), scale, least);
    vf_store(out, bf16_couples(values[0], values[1]));
    vf_store(out + PAIR_COLUMNS, bf16_couples(values[2], values[3]));
}

/* Panel `panel` as words [pairs * PAIR / 2][PAIR_COLUMNS], of which these are the first columns: scale times number plus minimum,
 * rounded to bfloat16. */
VEC_INLINE void panel_of_pairs(const int bits, const PackedMatrix *w, ptrdiff_t panel, float *out) {
    const ptrdiff_t block_bytes = packed_block_bytes(bits), scale_bytes = packed_scale_bytes(w->half);
    const uint8_t *pair = w->data + panel * w->panel_bytes;
    const float below = (bits == 8 ? 256.0f : 16.0f) + (float)packed_offset(bits, w->minimum);
    for (ptrdiff_t i = 0; i < w->pairs; i++, pair += w->panel_bytes / w->pairs)
        for (int h = 0; h < 2; h++, out += BLOCK / 2 * PAIR_COLUMNS) {
            const uint8_t *in = pair + h * block_bytes, *scales = pair + 2 * block_bytes + h * scale_bytes;
            const vf scale = load_scale(scales, w->half), minimum = w->minimum ? load_scale(scales + 2 * scale_bytes, w->half) : vf_zero();
            const vf least = minimum - scale * below;
            for (int g = 0; g < (bits == 8 ? GROUPS : GROUPS / 2); g++) {
                const vi group = vi_load(in + g * VF_WIDTH * 4);
                pairs_of_group(group, bits, 0, scale, least, out + 2 * g * PAIR_COLUMNS);
                if (bits == 4) pairs_of_group(group, bits, 1, scale, least, out + (2 * g + GROUPS) * PAIR_COLUMNS);
            }
        }
}

static void open_pairs(const PackedMatrix *w, ptrdiff_t panel, ptrdiff_t panels, float *words) {
    for (ptrdiff_t p = 0; p < panels; p++) {
        if (w->bits == 4) panel_of_pairs(4, w, panel + p, words + p * VF_WIDTH);
        else panel_of_pairs(8, w, panel + p, words + p * VF_WIDTH);
    }
}
#else
enum { PAIR_PANELS = PANELS_TILE, PAIR_COLUMNS = PAIR_PANELS * VF_WIDTH };
static void open_pairs(const PackedMatrix *w, ptrdiff_t panel, ptrdiff_t panels, float *words) {} /* never called */
#endif

/* Where a panel keeps input `place`: the bytes of its group of four, and the scales of its block. */
typedef struct {
    size_t group, scales;
} InputPlace;

/* A 4-bit group of a block's second half shares its bytes with one of the first. */
VEC_INLINE InputPlace input_place(size_t place, int bits, int half, int minimum) {
    const size_t block = place / BLOCK, pair = block / 2 * packed_pair_bytes(bits, half, minimum), h = block % 2;
    const size_t group = place % BLOCK / 4 % (bits == 4 ? GROUPS / 2 : GROUPS);
    return (InputPlace){pair + h * packed_block_bytes(bits) + group * VF_WIDTH * 4,
                        pair + 2 * packed_block_bytes(bits) + h * packed_scale_bytes(half)};
}

static const int32_t BYTE_ONE[4] = {1, 1 << 8, 1 << 16, 1 << 24};

/* sum + an outlier, which was number `place` of its row, times its weights in a panel's columns: `group` holds them and their three
 * neighbours', which meet zeros. */
VEC_INLINE vf add_outlier(vf sum, vi group, const uint8_t *scales, size_t place, float value, const int half, const int minimum,
                          const int offset, const int nibbles) {
    const vi one = vi_set(BYTE_ONE[place % 4]);
    const vi weights = nibbles ? vi_chain_sum(vi_chain_dot(vi_set(0), group, one)) : vi_dot(vi_set(-offset), group, one);
    sum = add_block(sum, weights, load_scale(scales, half), value);
    return minimum ? vf_fma(load_scale(scales + 2 * packed_scale_bytes(half), half), vf_set(value), sum) : sum;
}

/* sums [rows][PANELS_TILE * VF_WIDTH]: rows of x against open panels, of which the first is given. Addresses are a start and a
 * stride each (channel.h says why). */
VEC_INLINE void open_tile(const int rows, const int half, const int minimum, const int offset, const int nibbles,
                          const OpenPanels *open, const QuantizedRows *x, ptrdiff_t first_row, float *sums) {
    const ptrdiff_t width = x->pairs * PAIR, blocks = 2 * x->pairs, next = open->next;
    const ptrdiff_t block_bytes = packed_block_bytes(8), scale_bytes = packed_scale_bytes(half);
    const int8_t *numbers = x->numbers + first_row * width;
    const uint8_t *weights = open->pairs;
    const float *scales = x->scales + first_row * blocks;
    const int32_t *offsets = x->offsets + first_row * blocks;
    const float *scaled_sums = x->scaled_sums + first_row * blocks;
    vf total[ROWS_TILE][PANELS_TILE];
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int p = 0; p < PANELS_TILE; p++) total[i][p] = vf_zero();
    }
    for (ptrdiff_t block = 0; block < blocks; block++) {
        const ptrdiff_t h = block % 2;
        vi dots[ROWS_TILE][PANELS_TILE];
        /* The rows of the next tile are asked for on the way: its short runs of memory are too many for the processor to guess
         * (0.56 -> 0.7 of the peak). */
        if (h == 0) {
            UNROLL for (int i = 0; i < rows; i++) __builtin_prefetch(numbers + (rows + i) * width);
        }
        if (block % 16 == 0) {
            UNROLL for (int i = 0; i < rows; i++) {
                __builtin_prefetch(scales + (rows + i) * blocks);
                if (offset) __builtin_prefetch(offsets + (rows + i) * blocks);
                if (minimum) __builtin_prefetch(scaled_sums + (rows + i) * blocks);
            }
        }
        UNROLL for (int i = 0; i < rows; i++) {
            UNROLL for (int p = 0; p < PANELS_TILE; p++) dots[i][p] = vi_set(offset ? offsets[i * blocks] : 0);
        }
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; g++, weights += VF_WIDTH * 4, numbers += 4) {
            vi w[PANELS_TILE];
            UNROLL for (int p = 0; p < PANELS_TILE; p++) w[p] = vi_load(weights + p * next);
            UNROLL for (int i = 0; i < rows; i++) {
                vi four = vi_broadcast_bytes(numbers + i * width);
                UNROLL for (int p = 0; p < PANELS_TILE; p++)
                    dots[i][p] = vi_in_order(nibbles ? vi_chain_dot(dots[i][p], w[p], four) : vi_dot(dots[i][p], w[p], four));
            }
        }
        /* the pair's scales lie behind its second block */
        const uint8_t *w_scales = weights + (h ? scale_bytes : block_bytes);
        UNROLL for (int p = 0; p < PANELS_TILE; p++) {
            vf scale = load_scale(w_scales + p * next, half);
            UNROLL for (int i = 0; i < rows; i++) {
                vi dot = nibbles ? vi_chain_sum(dots[i][p]) : dots[i][p];
                total[i][p] = add_block(total[i][p], dot, scale, scales[i * blocks]);
            }
            if (minimum) {
                vf least = load_scale(w_scales + p * next + 2 * scale_bytes, half);
                UNROLL for (int i = 0; i < rows; i++) total[i][p] = vf_fma(least, vf_set(scaled_sums[i * blocks]), total[i][p]);
            }
        }
        weights += h ? scale_bytes * (minimum ? 4 : 2) : 0;
        scales++, offsets++, scaled_sums++;
    }
    /* Outliers lie elsewhere in every row. */
    const uint32_t *places = x->places + first_row * x->outliers;
    const float *values = x->values + first_row * x->outliers;
    for (ptrdiff_t k = 0; k < x->outliers; k++, places++, values++) {
        UNROLL for (int i = 0; i < rows; i++) {
            const InputPlace in = input_place(places[i * x->outliers], 8, half, minimum);
            UNROLL for (int p = 0; p < PANELS_TILE; p++)
                total[i][p] = add_outlier(total[i][p], vi_load(open->pairs + in.group + p * next), open->pairs + in.scales + p * next,
                                          places[i * x->outliers], values[i * x->outliers], half, minimum, offset, nibbles);
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int p = 0; p < PANELS_TILE; p++) vf_store(sums + (i * PANELS_TILE + p) * VF_WIDTH, total[i][p]);
    }
}

#define OPEN_TILE(count)                                                                                               \
    static __attribute__((noinline)) void open_tile_##count(const OpenPanels *open, const QuantizedRows *x,             \
                                                            ptrdiff_t row, float *sums) {                              \
        if (open->nibbles) open_tile(count, 0, 1, 0, 1, open, x, row, sums);                                           \
        else if (open->minimum && open->half) open_tile(count, 1, 1, 0, 0, open, x, row, sums);                        \
        else if (open->minimum) open_tile(count, 0, 1, 0, 0, open, x, row, sums);                                      \
        else if (open->half) open_tile(count, 1, 0, DOT_OFFSET, 0, open, x, row, sums);                                \
        else open_tile(count, 0, 0, DOT_OFFSET, 0, open, x, row, sums);                                                \
    }
OPEN_TILE(1)
OPEN_TILE(2)
OPEN_TILE(3)
OPEN_TILE(4)
#if ROWS_TILE == 6
OPEN_TILE(5)
OPEN_TILE(6)
#endif
#undef OPEN_TILE

/* sums [rows <= ROWS_TILE][PANELS_TILE * VF_WIDTH]. */
static void open_tile_of(ptrdiff_t rows, const OpenPanels *open, const QuantizedRows *x, ptrdiff_t row, float *sums) {
    switch (rows) {
    case 1: open_tile_1(open, x, row, sums); break;
    case 2: open_tile_2(open, x, row, sums); break;
    case 3: open_tile_3(open, x, row, sums); break;
#if ROWS_TILE == 6
    case 4: open_tile_4(open, x, row, sums); break;
    case 5: open_tile_5(open, x, row, sums); break;
    default: open_tile_6(open, x, row, sums);
#else
    default: open_tile_4(open, x, row, sums);
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
    const uint8_t *panel_start = w->data + panel * w->panel_bytes, *pair = panel_start;
    const int8_t *numbers = x->numbers + first_row * width;
    vf total[FEW];
    for (int i = 0; i < rows; i++) total[i] = vf_zero();
    for (ptrdiff_t block = 0; block < blocks; block += 2, pair += packed_pair_bytes(bits, half, minimum)) {
        if (rows >= ASKING_ROWS)
            for (ptrdiff_t line = 0; line < packed_pair_bytes(bits, half, minimum); line += 64)
                __builtin_prefetch(pair + PANEL_AHEAD + line, 0, 2);
        else __builtin_prefetch(pair + PANEL_AHEAD, 0, 2);
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            const uint8_t *in = pair + h * block_bytes, *scale_place = pair + 2 * block_bytes + h * scale_bytes;
            const int8_t *four = numbers + (block + h) * BLOCK;
            vi dots[FEW];
            for (int i = 0; i < rows; i++)
                dots[i] = vi_set(offset ? x->offsets[(first_row + i) * blocks + block + h] : 0);
            if (bits == 4) {
#pragma GCC unroll 4
                for (int g = 0; g < GROUPS / 2; g++) {
                    vi both = vi_load(in + g * VF_WIDTH * 4);
                    vi low = both & 0x0f0f0f0f, high = (both >> 4) & 0x0f0f0f0f;
                    for (int i = 0; i < rows; i++) {
                        dots[i] = vi_chain_dot(dots[i], low, vi_broadcast_bytes(four + i * width + 4 * g));
                        dots[i] = vi_chain_dot(dots[i], high, vi_broadcast_bytes(four + i * width + 4 * g + BLOCK / 2));
                        if (rows > 1) dots[i] = vi_in_order(dots[i]); /* one row's sums wait for each other: a tree is 4 % faster */
                    }
                }
                for (int i = 0; i < rows; i++) dots[i] = vi_chain_sum(dots[i]);
            } else {
#pragma GCC unroll 8
                for (int g = 0; g < GROUPS; g++) {
                    vi w_group = vi_load(in + g * VF_WIDTH * 4);
                    for (int i = 0; i < rows; i++)
                        dots[i] = vi_in_order(vi_dot(dots[i], w_group, vi_broadcast_bytes(four + i * width + 4 * g)));
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
    const uint32_t *places = x->places + first_row * x->outliers;
    const float *values = x->values + first_row * x->outliers;
    for (ptrdiff_t k = 0; k < x->outliers; k++, places++, values++)
        for (int i = 0; i < rows; i++) {
            const size_t place = places[i * x->outliers];
            const InputPlace in = input_place(place, bits, half, minimum);
            vi group = vi_load(panel_start + in.group);
            if (bits == 4) group = (place % BLOCK < BLOCK / 2 ? group : group >> 4) & 0x0f0f0f0f;
            total[i] = add_outlier(total[i], group, panel_start + in.scales, place, values[i * x->outliers], half, minimum, offset,
                                   bits == 4);
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

/* Weights of 8 bits with one scale a column, packed in panels of VF_WIDTH columns, and the tile that multiplies them by rows
 * of 8-bit activations with a scale every CHANNEL_GROUP numbers: sums stay whole numbers for as long as that.
 *
 * A panel holds one vector of bytes for every four inputs (numbers 4s..4s+3 of each column). A column's sum takes the same
 * steps in every tile, so the same bits come out whatever the number of rows. Knows nothing of tasks or threads.
 */
#ifndef FASTMIXER_PACKED_CHANNEL_H
#define FASTMIXER_PACKED_CHANNEL_H

#include "packed/round.h"

/* A few features of a text's hidden states are many times as large as the others, and rounding hurts those that share their
 * scale: of MiniLM's ten nearest of 500 sentences 97.4 % stay with 32 or 48 inputs a scale, 97.0 with 64, 94.3 with 384. */
enum {
    CHANNEL_GROUP = 48,
    CHANNEL_DEPTH = 8, /* groups of one visit: a tile's panels of so many inputs, 18 KB, stay in L1 while rows pass by */
    CHANNEL_STEPS = CHANNEL_GROUP / 4,
};

#if VF_REGISTERS == 32
#define CHANNEL_ROWS 4
#define CHANNEL_PANELS 3 /* 12 sums of a group, 12 of all, 3 of weights, and a broadcast */
#else
#define CHANNEL_ROWS 4
#define CHANNEL_PANELS 2
#endif

typedef struct {
    const uint8_t *numbers; /* [channel_panels][steps][VF_WIDTH][4], stored DOT_OFFSET higher */
    const float *scales;    /* [channel_panels * VF_WIDTH] */
    ptrdiff_t outputs, inputs;
    ptrdiff_t steps; /* of four inputs, in a column */
} ChannelMatrix;

/* Activations: numbers int8 [rows, 4 steps]; of each group its scale and what its products begin at, -DOT_OFFSET times the
 * sum of its numbers: [rows, groups]. */
typedef struct {
    int8_t *numbers;
    float *scales;
    int32_t *offsets;
    ptrdiff_t steps, groups;
} ChannelRows;

VEC_INLINE ptrdiff_t channel_panel_bytes(const ChannelMatrix *w) { return w->steps * VF_WIDTH * 4; }

/* One row of x [columns]: in each group round(x / scale) with scale = max |x| / 127; zeros behind the last number. */
static void round_channel_row(const float *x, ptrdiff_t columns, const ChannelRows *rows, ptrdiff_t row) {
    enum { VECTORS = CHANNEL_GROUP / VF_WIDTH };
    const ptrdiff_t width = 4 * rows->steps;
    int8_t *out = rows->numbers + row * width;
    for (ptrdiff_t group = 0; group < rows->groups; group += VF_WIDTH) {
        float inverses[VF_WIDTH];
        vi sums[VF_WIDTH];
        ptrdiff_t count = rows->groups - group < VF_WIDTH ? rows->groups - group : VF_WIDTH, place = row * rows->groups + group;
        vf scale = group_scales(x + group * CHANNEL_GROUP, CHANNEL_GROUP, count, columns - group * CHANNEL_GROUP, VECTORS, inverses);
        for (ptrdiff_t g = 0; g < VF_WIDTH; g++) sums[g] = vi_set(0);
        for (ptrdiff_t g = 0, at = group * CHANNEL_GROUP; g < count; g++, at += CHANNEL_GROUP) {
            vf parts[VECTORS];
            vi sum = vi_set(0); /* not in place: a store of bytes may be to anywhere, for all the compiler knows */
            load_group(x + at, columns - at, VECTORS, parts);
            UNROLL for (int i = 0; i < VECTORS; i++) {
                vi rounded = vi_nearest(parts[i] * inverses[g]);
                sum += rounded;
                store_bytes(out + at + i * VF_WIDTH, rounded, width - at - i * VF_WIDTH);
            }
            sums[g] = sum;
        }
        vf_store_first(rows->scales + place, scale, count);
        vi_store_first(rows->offsets + place, sum_of_each(sums) * -DOT_OFFSET, count);
    }
}

/* A tile's columns are a group of the map that comes next: it can be rounded while it is in L1. */
enum { CHANNEL_FUSES = CHANNEL_PANELS * VF_WIDTH == CHANNEL_GROUP };

/* Group `group` of count rows from `row` on = x [count][CHANNEL_GROUP], as round_channel_row would have it. */
static void round_channel_group(const float *x, ptrdiff_t count, const ChannelRows *rows, ptrdiff_t row, ptrdiff_t group) {
    enum { VECTORS = CHANNEL_GROUP / VF_WIDTH };
    for (; count > 0; count -= VF_WIDTH, row += VF_WIDTH, x += VF_WIDTH * CHANNEL_GROUP) {
        const ptrdiff_t some = count < VF_WIDTH ? count : VF_WIDTH;
        float inverses[VF_WIDTH], scales[VF_WIDTH];
        int32_t offsets[VF_WIDTH];
        vi sums[VF_WIDTH];
        vf_store(scales, group_scales(x, CHANNEL_GROUP, some, some * CHANNEL_GROUP, VECTORS, inverses));
        for (ptrdiff_t r = 0; r < VF_WIDTH; r++) sums[r] = vi_set(0);
        for (ptrdiff_t r = 0; r < some; r++) {
            int8_t *out = rows->numbers + (row + r) * 4 * rows->steps + group * CHANNEL_GROUP;
            vi sum = vi_set(0);
            UNROLL for (int i = 0; i < VECTORS; i++) {
                vi rounded = vi_nearest(vf_load(x + r * CHANNEL_GROUP + i * VF_WIDTH) * inverses[r]);
                sum += rounded;
                store_bytes(out + i * VF_WIDTH, rounded, VF_WIDTH);
            }
            sums[r] = sum;
        }
        vi_store(offsets, sum_of_each(sums) * -DOT_OFFSET);
        for (ptrdiff_t r = 0; r < some; r++) {
            rows->scales[(row + r) * rows->groups + group] = scales[r];
            rows->offsets[(row + r) * rows->groups + group] = offsets[r];
        }
    }
}

/* dots += four inputs of every row times those of every column. */
VEC_INLINE void channel_step(const int row_count, const uint8_t *weights, ptrdiff_t panel_bytes, const int8_t *numbers,
                             ptrdiff_t width, vi dots[CHANNEL_ROWS][CHANNEL_PANELS]) {
    vi columns[CHANNEL_PANELS];
    UNROLL for (int p = 0; p < CHANNEL_PANELS; p++) columns[p] = vi_load(weights + p * panel_bytes);
    UNROLL for (int i = 0; i < row_count; i++) {
        vi four = vi_broadcast_bytes(numbers + i * width);
        UNROLL for (int p = 0; p < CHANNEL_PANELS; p++) dots[i][p] = vi_dot(dots[i][p], columns[p], four);
    }
}

/* sums [row_count][CHANNEL_PANELS * VF_WIDTH] = (sums if add) + rows of x from `row` on times panels from `panel` on, over
 * CHANNEL_DEPTH groups from `group` on, or as many as there are. Addresses are a start and a stride each: with a pointer for
 * every row and panel the compiler kept pointers in vector registers, and half of the sums in memory. */
VEC_INLINE void channel_tile(const int row_count, const ChannelMatrix *w, ptrdiff_t panel, const ChannelRows *x,
                             ptrdiff_t row, ptrdiff_t group, float *sums, int add) {
    const ptrdiff_t stop = group + CHANNEL_DEPTH < x->groups ? group + CHANNEL_DEPTH : x->groups;
    const ptrdiff_t panel_bytes = channel_panel_bytes(w), width = 4 * x->steps, groups = x->groups;
    const int8_t *numbers = x->numbers + row * width + group * CHANNEL_GROUP;
    const uint8_t *weights = w->numbers + panel * panel_bytes + group * CHANNEL_STEPS * VF_WIDTH * 4;
    const float *scales = x->scales + row * groups;
    const int32_t *offsets = x->offsets + row * groups;
    vf totals[CHANNEL_ROWS][CHANNEL_PANELS];
    UNROLL for (int i = 0; i < row_count; i++) {
        UNROLL for (int p = 0; p < CHANNEL_PANELS; p++)
            totals[i][p] = add ? vf_load(sums + (i * CHANNEL_PANELS + p) * VF_WIDTH) : vf_zero();
    }
    for (; group < stop; group++) {
        ptrdiff_t steps = x->steps - group * CHANNEL_STEPS;
        vi dots[CHANNEL_ROWS][CHANNEL_PANELS];
        UNROLL for (int i = 0; i < row_count; i++) {
            UNROLL for (int p = 0; p < CHANNEL_PANELS; p++) dots[i][p] = vi_set(offsets[i * groups + group]);
        }
        if (steps >= CHANNEL_STEPS) { /* a number of rounds that is known: nothing to guess at the loop's end */
#pragma GCC unroll 4
            for (int step = 0; step < CHANNEL_STEPS; step++, weights += VF_WIDTH * 4, numbers += 4)
                channel_step(row_count, weights, panel_bytes, numbers, width, dots);
        } else
            for (; steps > 0; steps--, weights += VF_WIDTH * 4, numbers += 4)
                channel_step(row_count, weights, panel_bytes, numbers, width, dots);
        UNROLL for (int i = 0; i < row_count; i++) {
            vf scale = vf_set(scales[i * groups + group]);
            UNROLL for (int p = 0; p < CHANNEL_PANELS; p++) totals[i][p] = vf_fma(vf_from_int(dots[i][p]), scale, totals[i][p]);
        }
    }
    UNROLL for (int i = 0; i < row_count; i++) {
        UNROLL for (int p = 0; p < CHANNEL_PANELS; p++) vf_store(sums + (i * CHANNEL_PANELS + p) * VF_WIDTH, totals[i][p]);
    }
}

/* In functions of their own, with a constant for the rows: the sums are registers. */
#define CHANNEL_TILE(count)                                                                                            \
    static __attribute__((noinline)) void channel_tile_##count(const ChannelMatrix *w, ptrdiff_t panel,                \
                                                               const ChannelRows *x, ptrdiff_t row, ptrdiff_t group,   \
                                                               float *sums, int add) {                                 \
        channel_tile(count, w, panel, x, row, group, sums, add);                                                       \
    }
CHANNEL_TILE(1)
CHANNEL_TILE(2)
#if CHANNEL_ROWS == 4
CHANNEL_TILE(3)
CHANNEL_TILE(4)
#endif
#undef CHANNEL_TILE

/* The same of row_count <= CHANNEL_ROWS rows. */
static void channel_tile_of(ptrdiff_t row_count, const ChannelMatrix *w, ptrdiff_t panel, const ChannelRows *x,
                            ptrdiff_t row, ptrdiff_t group, float *sums, int add) {
    if (row_count == 1) channel_tile_1(w, panel, x, row, group, sums, add);
    else if (row_count == 2) channel_tile_2(w, panel, x, row, group, sums, add);
#if CHANNEL_ROWS == 4
    else if (row_count == 3) channel_tile_3(w, panel, x, row, group, sums, add);
    else channel_tile_4(w, panel, x, row, group, sums, add);
#endif
}

typedef struct {
    vf scale[CHANNEL_PANELS], bias[CHANNEL_PANELS];
} ChannelColumns;

/* What the sums of a tile's columns are multiplied by, and what joins them: bias [outputs], or NULL. */
VEC_INLINE ChannelColumns channel_columns(const ChannelMatrix *w, ptrdiff_t panel, const float *bias) {
    const ptrdiff_t column = panel * VF_WIDTH;
    ChannelColumns c;
    for (int p = 0; p < CHANNEL_PANELS; p++) c.scale[p] = vf_load(w->scales + column + p * VF_WIDTH), c.bias[p] = vf_zero();
    if (bias != NULL) load_group(bias + column, w->outputs - column, CHANNEL_PANELS, c.bias);
    return c;
}

/* sums [rows][CHANNEL_PANELS * VF_WIDTH] become what they stand for: times the columns' scales, with the bias. */
static void scale_channels(const ChannelMatrix *w, ptrdiff_t panel, const float *bias, ptrdiff_t rows, float *sums) {
    const ChannelColumns c = channel_columns(w, panel, bias);
    for (ptrdiff_t row = 0; row < rows; row++, sums += CHANNEL_PANELS * VF_WIDTH) {
        UNROLL for (int p = 0; p < CHANNEL_PANELS; p++)
            vf_store(sums + p * VF_WIDTH, vf_fma(vf_load(sums + p * VF_WIDTH), c.scale[p], c.bias[p]));
    }
}

/* out [rows][outputs], in a tile's columns, = (out if add) + the same of sums. */
static void store_channels(const ChannelMatrix *w, ptrdiff_t panel, const float *bias, ptrdiff_t rows, const float *sums, float *out,
                           int add) {
    const ChannelColumns c = channel_columns(w, panel, bias);
    out += panel * VF_WIDTH;
    for (ptrdiff_t row = 0; row < rows; row++, sums += CHANNEL_PANELS * VF_WIDTH, out += w->outputs) {
        UNROLL for (int p = 0; p < CHANNEL_PANELS; p++) {
            const ptrdiff_t lanes = w->outputs - (panel + p) * VF_WIDTH;
            vf value = vf_fma(vf_load(sums + p * VF_WIDTH), c.scale[p], c.bias[p]);
            if (lanes >= VF_WIDTH) vf_store(out + p * VF_WIDTH, add ? vf_load(out + p * VF_WIDTH) + value : value);
            else if (lanes > 0)
                vf_store_first(out + p * VF_WIDTH, add ? vf_load_first(out + p * VF_WIDTH, lanes) + value : value, lanes);
        }
    }
}

/* The same of sums that are scaled already. */
static void copy_channels(const ChannelMatrix *w, ptrdiff_t panel, ptrdiff_t rows, const float *sums, float *out) {
    enum { COLUMNS = CHANNEL_PANELS * VF_WIDTH };
    const ptrdiff_t left = w->outputs - panel * VF_WIDTH, columns = left < COLUMNS ? left : COLUMNS;
    for (ptrdiff_t row = 0; row < rows; row++)
        memcpy(out + row * w->outputs + panel * VF_WIDTH, sums + row * COLUMNS, sizeof(float) * columns);
}

/* Panels of a weight: whole tiles of them, the last ones zeros where its columns end. */
VEC_INLINE ptrdiff_t channel_panels(const ChannelMatrix *w) {
    ptrdiff_t columns = CHANNEL_PANELS * VF_WIDTH;
    return (w->outputs + columns - 1) / columns * CHANNEL_PANELS;
}

/* Panel `panel` of values: float32 [outputs, inputs]; columns past the last are zero. */
static void pack_channel_panel(const ChannelMatrix *w, uint8_t *numbers, float *scales, ptrdiff_t panel, const float *values) {
    uint8_t *out = numbers + panel * channel_panel_bytes(w);
    memset(out, DOT_OFFSET, (size_t)channel_panel_bytes(w));
    for (ptrdiff_t column = 0; column < VF_WIDTH; column++) {
        ptrdiff_t output = panel * VF_WIDTH + column;
        scales[output] = 0;
        if (output >= w->outputs) continue;
        const float *row = values + output * w->inputs;
        vf part, most = vf_zero();
        for (ptrdiff_t i = 0; i < w->inputs; i += VF_WIDTH) {
            load_group(row + i, w->inputs - i, 1, &part);
            most = vf_max(most, vf_abs(part));
        }
        const float largest = vf_largest(most);
        if (!(largest > 0)) continue;
        scales[output] = largest / 127.0f;
        for (ptrdiff_t i = 0; i < w->inputs; i += VF_WIDTH) {
            int8_t bytes[VF_WIDTH];
            load_group(row + i, w->inputs - i, 1, &part);
            store_bytes(bytes, vi_nearest(part / scales[output]) + DOT_OFFSET, VF_WIDTH);
            for (ptrdiff_t step = i / 4; step < w->steps && 4 * step < i + VF_WIDTH; step++)
                memcpy(out + (step * VF_WIDTH + column) * 4, bytes + 4 * step - i, 4);
        }
    }
}

/* out [inputs] = the values of one output's weights. */
static void unpack_channel_row(const ChannelMatrix *w, ptrdiff_t output, float *out) {
    const uint8_t *in = w->numbers + output / VF_WIDTH * channel_panel_bytes(w) + output % VF_WIDTH * 4;
    for (ptrdiff_t i = 0; i < w->inputs; i++)
        out[i] = w->scales[output] * (float)(int8_t)(in[i / 4 * VF_WIDTH * 4 + i % 4] - DOT_OFFSET);
}

#endif

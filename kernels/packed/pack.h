/* Weights from the blocks of a file into panels (tile.h), and single rows back out of them.
 *
 * Types that are 32 numbers with one scale, and those that come to the same, keep their values; all others arrive as
 * floats and are rounded here. Source of the layouts: ggml's ggml-quants. Knows nothing of files or threads.
 */
#ifndef FASTMIXER_PACKED_PACK_H
#define FASTMIXER_PACKED_PACK_H

#include "packed/tile.h"

enum { FROM_Q4_0, FROM_Q4_1, FROM_Q4_K, FROM_Q5_0, FROM_Q5_1, FROM_Q8_0, FROM_IQ4_NL, FROM_FLOAT };

typedef struct {
    int8_t numbers[BLOCK];
    float scale, minimum;
} BlockOfNumbers;

static inline float half_at(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return half_to_float(half);
}

/* The six-bit scale and minimum of sub-block j of a K block. */
static inline void scale_and_minimum_of_k(const uint8_t *packed, int j, int *scale, int *minimum) {
    if (j < 4) {
        *scale = packed[j] & 63;
        *minimum = packed[j + 4] & 63;
    } else {
        *scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
        *minimum = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
    }
}

static inline void nibbles(const uint8_t *in, int8_t *out) {
    for (int i = 0; i < BLOCK / 2; i++) {
        out[i] = (int8_t)(in[i] & 15);
        out[i + BLOCK / 2] = (int8_t)(in[i] >> 4);
    }
}

static inline void fifth_bits(const uint8_t *in, int8_t *out) {
    for (int i = 0; i < BLOCK; i++) out[i] = (int8_t)(out[i] | (in[i / 8] >> i % 8 & 1) << 4);
}

/* Floats rounded to 8 bits around zero, or to 4 bits above their smallest. */
static void round_block(const float *values, ptrdiff_t count, int bits, BlockOfNumbers *out) {
    float smallest = values[0], largest = values[0];
    for (ptrdiff_t i = 1; i < count; i++) {
        smallest = values[i] < smallest ? values[i] : smallest;
        largest = values[i] > largest ? values[i] : largest;
    }
    if (bits == 8) {
        float most = largest > -smallest ? largest : -smallest;
        out->scale = most / 127.0f, out->minimum = 0;
    } else
        out->scale = (largest - smallest) / 15.0f, out->minimum = smallest;
    for (ptrdiff_t i = 0; i < count; i++)
        out->numbers[i] = out->scale > 0 ? (int8_t)nearbyintf((values[i] - out->minimum) / out->scale) : 0;
}

/* Block `block` of a row; past its end zeros. */
static void read_block(int from, int bits, const uint8_t *row, ptrdiff_t inputs, ptrdiff_t block, BlockOfNumbers *out) {
    static const int8_t iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    const uint8_t *in;
    int scale, minimum;
    memset(out, 0, sizeof *out);
    if (block * BLOCK >= inputs) return;
    switch (from) {
    case FROM_Q4_0:
        in = row + block * 18;
        nibbles(in + 2, out->numbers);
        out->scale = half_at(in), out->minimum = -8 * out->scale;
        break;
    case FROM_Q4_1:
        in = row + block * 20;
        nibbles(in + 4, out->numbers);
        out->scale = half_at(in), out->minimum = half_at(in + 2);
        break;
    case FROM_Q4_K:
        in = row + block / 8 * 144;
        scale_and_minimum_of_k(in + 4, (int)(block % 8), &scale, &minimum);
        out->scale = half_at(in) * (float)scale, out->minimum = -half_at(in + 2) * (float)minimum;
        for (int i = 0; i < BLOCK; i++)
            out->numbers[i] = (int8_t)(in[16 + block % 8 / 2 * BLOCK + i] >> (block % 2 ? 4 : 0) & 15);
        break;
    case FROM_Q5_0:
        in = row + block * 22;
        nibbles(in + 6, out->numbers);
        fifth_bits(in + 2, out->numbers);
        for (int i = 0; i < BLOCK; i++) out->numbers[i] = (int8_t)(out->numbers[i] - 16);
        out->scale = half_at(in);
        break;
    case FROM_Q5_1:
        in = row + block * 24;
        nibbles(in + 8, out->numbers);
        fifth_bits(in + 4, out->numbers);
        out->scale = half_at(in), out->minimum = half_at(in + 2);
        break;
    case FROM_Q8_0:
        in = row + block * 34;
        memcpy(out->numbers, in + 2, BLOCK);
        out->scale = half_at(in);
        break;
    case FROM_IQ4_NL:
        in = row + block * 18;
        nibbles(in + 2, out->numbers);
        for (int i = 0; i < BLOCK; i++) out->numbers[i] = iq4[out->numbers[i]];
        out->scale = half_at(in);
        break;
    default: {
        ptrdiff_t left = inputs - block * BLOCK;
        round_block((const float *)row + block * BLOCK, left < BLOCK ? left : BLOCK, bits, out);
    }
    }
}

static inline void write_scale(uint8_t *place, ptrdiff_t column, float value, int half) {
    if (half && HALF_SCALES) {
        uint16_t bits = float_to_half(value);
        memcpy(place + 2 * column, &bits, sizeof bits);
    } else
        memcpy(place + 4 * column, &value, sizeof value);
}

static inline float read_scale(const uint8_t *place, ptrdiff_t column, int half) {
    uint16_t bits;
    float value;
    if (half && HALF_SCALES) {
        memcpy(&bits, place + 2 * column, sizeof bits);
        return half_to_float(bits);
    }
    memcpy(&value, place + 4 * column, sizeof value);
    return value;
}

/* Panel `panel` of a weight whose rows lie row_bytes apart. Columns past the last are zero. */
static void pack_panel_of_blocks(const PackedMatrix *w, uint8_t *data, ptrdiff_t panel, int from, const uint8_t *raw,
                                 ptrdiff_t row_bytes) {
    ptrdiff_t block_bytes = packed_block_bytes(w->bits), scale_bytes = packed_scale_bytes(w->half);
    uint8_t *pair = data + panel * w->panel_bytes;
    const int offset = packed_offset(w->bits, w->minimum);
    for (ptrdiff_t block = 0; block < 2 * w->pairs; block += 2, pair += packed_pair_bytes(w->bits, w->half, w->minimum))
        for (int h = 0; h < 2; h++) {
            uint8_t *out = pair + h * block_bytes, *scale = pair + 2 * block_bytes + h * scale_bytes;
            for (ptrdiff_t column = 0; column < VF_WIDTH; column++) {
                ptrdiff_t output = panel * VF_WIDTH + column;
                BlockOfNumbers b;
                memset(&b, 0, sizeof b);
                if (output < w->outputs) read_block(from, w->bits, raw + output * row_bytes, w->inputs, block + h, &b);
                for (int g = 0; g < (w->bits == 4 ? GROUPS / 2 : GROUPS); g++)
                    for (int i = 0; i < 4; i++) {
                        uint8_t *place = out + (g * VF_WIDTH + column) * 4 + i;
                        if (w->bits == 4)
                            *place = (uint8_t)(b.numbers[4 * g + i] | b.numbers[4 * g + i + BLOCK / 2] << 4);
                        else
                            *place = (uint8_t)(b.numbers[4 * g + i] + offset);
                    }
                write_scale(scale, column, b.scale, w->half);
                if (w->minimum) write_scale(scale + 2 * scale_bytes, column, b.minimum, w->half);
            }
        }
}

/* out [inputs] = the values of one output's weights. */
static void unpack_row(const PackedMatrix *w, ptrdiff_t output, float *out) {
    ptrdiff_t block_bytes = packed_block_bytes(w->bits), scale_bytes = packed_scale_bytes(w->half);
    ptrdiff_t column = output % VF_WIDTH;
    const uint8_t *pair = w->data + output / VF_WIDTH * w->panel_bytes;
    for (ptrdiff_t block = 0; block * BLOCK < w->inputs; block++) {
        const uint8_t *place = pair + block / 2 * packed_pair_bytes(w->bits, w->half, w->minimum);
        const uint8_t *in = place + block % 2 * block_bytes, *scale = place + 2 * block_bytes + block % 2 * scale_bytes;
        float step = read_scale(scale, column, w->half);
        float least = w->minimum ? read_scale(scale + 2 * scale_bytes, column, w->half) : 0;
        for (ptrdiff_t i = 0; i < BLOCK && block * BLOCK + i < w->inputs; i++) {
            ptrdiff_t g = i / 4;
            ptrdiff_t group = w->bits == 8 ? g : g % (GROUPS / 2);
            int stored = in[(group * VF_WIDTH + column) * 4 + i % 4];
            int number = w->bits == 8 ? (int8_t)(stored - packed_offset(8, w->minimum)) : stored >> (i < BLOCK / 2 ? 0 : 4) & 15;
            out[block * BLOCK + i] = step * (float)number + least;
        }
    }
}

#endif

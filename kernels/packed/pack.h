/* Weights from the blocks of a file into panels (tile.h), and single rows back out of them.
 *
 * Types that are 32 numbers with one scale, and those that come to the same, keep their values; all others are made floats
 * (some of them here) and rounded. Source of the layouts: ggml's ggml-quants. Knows nothing of files or threads.
 */
#ifndef FASTMIXER_PACKED_PACK_H
#define FASTMIXER_PACKED_PACK_H

#include "packed/tile.h"

enum { FROM_Q4_0, FROM_Q4_1, FROM_Q4_K, FROM_Q5_0, FROM_Q5_1, FROM_Q8_0, FROM_IQ4_NL, FROM_FLOAT, FROM_F16, FROM_Q3_K, FROM_Q6_K };

typedef struct {
    int8_t numbers[BLOCK];
    float scale, minimum;
} BlockOfNumbers;

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

/* Half a block's bytes at once: left to themselves, compilers move them one by one (packing took a third of the time that
 * opening a model did). */
typedef uint8_t HalfBlock __attribute__((vector_size(BLOCK / 2)));

static inline HalfBlock half_block(const void *in) {
    HalfBlock bytes;
    memcpy(&bytes, in, sizeof bytes);
    return bytes;
}

static inline void put_half_block(void *out, HalfBlock bytes) { memcpy(out, &bytes, sizeof bytes); }

static inline void nibbles(const uint8_t *in, int8_t *out) {
    const HalfBlock both = half_block(in);
    put_half_block(out, both & 15);
    put_half_block(out + BLOCK / 2, both >> 4);
}

static inline void fifth_bits(const uint8_t *in, int8_t *out) {
    uint32_t bits;
    memcpy(&bits, in, sizeof bits);
    for (int i = 0; i < BLOCK; i++) out[i] = (int8_t)(out[i] | (bits >> i & 1) << 4);
}

/* ---- rows as floats ---- */

static inline void scaled(HalfBlock numbers, float scale, float *out) {
    int8_t each[BLOCK / 2];
    put_half_block(each, numbers);
    for (int i = 0; i < BLOCK / 2; i++) out[i] = scale * (float)each[i];
}

/* 256 numbers: a third bit [32], two bits [64], scales of six bits [12], scale. Without its third bit a number is 4 less. */
static void widen_q3_k(const uint8_t *in, float *out) {
    const float scale = half_at(in + 108);
    const uint8_t *scales = in + 96;
    for (int part = 0; part < 16; part++) { /* 16 numbers under one scale */
        const int quarter = part / 2 % 4, at = part % 2 * 16, shift = 2 * quarter;
        const HalfBlock low = half_block(in + 32 + part / 8 * 32 + at) >> shift & 3;
        const HalfBlock third = half_block(in + at) >> (part / 8 * 4 + quarter) & 1;
        const int four = scales[part % 8] >> (part < 8 ? 0 : 4) & 15, two = scales[8 + part % 4] >> part / 4 * 2 & 3;
        scaled(low + 4 * third - 4, scale * (float)((four | two << 4) - 32), out + 16 * part);
    }
}

/* 256 numbers: four bits [128], two more [64], scales [16] of eight bits, scale. */
static void widen_q6_k(const uint8_t *in, float *out) {
    const float scale = half_at(in + 208);
    const int8_t *scales = (const int8_t *)in + 192;
    for (int part = 0; part < 16; part++) {
        const int quarter = part / 2 % 4, at = part % 2 * 16;
        const HalfBlock four = half_block(in + part / 8 * 64 + quarter % 2 * 32 + at) >> quarter / 2 * 4 & 15;
        const HalfBlock two = half_block(in + 128 + part / 8 * 32 + at) >> 2 * quarter & 3;
        scaled((four | two << 4) - 32, scale * (float)scales[part], out + 16 * part);
    }
}

/* out [inputs] = the row's values, to the bit as formats.py has them. */
static void widen_row(int from, const uint8_t *row, ptrdiff_t inputs, float *out) {
    if (from == FROM_F16) halves_to_floats(row, inputs, out);
    else
        for (ptrdiff_t i = 0; i < inputs; i += 256)
            if (from == FROM_Q3_K) widen_q3_k(row + i / 256 * 110, out + i);
            else widen_q6_k(row + i / 256 * 210, out + i);
}

/* ---- blocks of numbers ---- */

/* Floats rounded to 8 bits around zero, or to 4 bits above their smallest. out: all zeros before. */
static void round_block(const float *values, ptrdiff_t count, int bits, BlockOfNumbers *out) {
    float padded[BLOCK];
    if (count < BLOCK) { /* what lies past the end has no say */
        for (ptrdiff_t i = 0; i < BLOCK; i++) padded[i] = values[i < count ? i : 0];
        values = padded;
    }
    vf part, smallest = vf_set(values[0]), largest = smallest;
    UNROLL for (int i = 0; i < BLOCK; i += VF_WIDTH) {
        part = vf_load(values + i);
        smallest = vf_min(smallest, part), largest = vf_max(largest, part);
    }
    const float least = -vf_largest(-smallest), most = vf_largest(largest);
    if (bits == 8) out->scale = (most > -least ? most : -least) / 127.0f, out->minimum = 0;
    else out->scale = (most - least) / 15.0f, out->minimum = least;
    if (!(out->scale > 0)) return;
    UNROLL for (int i = 0; i < BLOCK; i += VF_WIDTH)
        store_bytes(out->numbers + i, vi_nearest((vf_load(values + i) - out->minimum) / out->scale), VF_WIDTH);
    memset(out->numbers + count, 0, (size_t)(BLOCK - count));
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
        for (int i = 0; i < BLOCK; i += BLOCK / 2) {
            const HalfBlock both = half_block(in + 16 + block % 8 / 2 * BLOCK + i);
            put_half_block(out->numbers + i, block % 2 ? both >> 4 : both & 15);
        }
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

/* A column's block, in words of four bytes that lie VF_WIDTH words apart. */
static inline void write_numbers(uint8_t *place, const BlockOfNumbers *block, int bits, int offset) {
    const HalfBlock first = half_block(block->numbers), second = half_block(block->numbers + BLOCK / 2);
    uint8_t bytes[BLOCK];
    if (bits == 4)
        put_half_block(bytes, first | second << 4);
    else {
        put_half_block(bytes, first + (uint8_t)offset);
        put_half_block(bytes + BLOCK / 2, second + (uint8_t)offset);
    }
    for (int word = 0; word < BLOCK * bits / 32; word++) memcpy(place + 4 * VF_WIDTH * word, bytes + 4 * word, 4);
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

/* Panel `panel` of a weight whose rows lie row_bytes apart. Columns past the last are zero. Column by column: what is read lies
 * as it comes from the file, what is written stays in a cache until all columns are there. */
static void pack_panel_of_blocks(const PackedMatrix *w, uint8_t *data, ptrdiff_t panel, int from, const uint8_t *raw,
                                 ptrdiff_t row_bytes) {
    const ptrdiff_t block_bytes = packed_block_bytes(w->bits), scale_bytes = packed_scale_bytes(w->half);
    const int offset = packed_offset(w->bits, w->minimum);
    for (ptrdiff_t column = 0; column < VF_WIDTH; column++) {
        const ptrdiff_t output = panel * VF_WIDTH + column;
        uint8_t *pair = data + panel * w->panel_bytes;
        for (ptrdiff_t block = 0; block < 2 * w->pairs; block++) {
            uint8_t *out = pair + block % 2 * block_bytes, *scale = pair + 2 * block_bytes + block % 2 * scale_bytes;
            BlockOfNumbers b;
            read_block(from, w->bits, raw + output * row_bytes, output < w->outputs ? w->inputs : 0, block, &b);
            write_numbers(out + 4 * column, &b, w->bits, offset);
            write_scale(scale, column, b.scale, w->half);
            if (w->minimum) write_scale(scale + 2 * scale_bytes, column, b.minimum, w->half);
            if (block % 2) pair += packed_pair_bytes(w->bits, w->half, w->minimum);
        }
    }
}

/* out [inputs] = the values of one output's weights. A block's bytes are brought together first: so the rest is vectors. */
static void unpack_row(const PackedMatrix *w, ptrdiff_t output, float *out) {
    const ptrdiff_t block_bytes = packed_block_bytes(w->bits), scale_bytes = packed_scale_bytes(w->half);
    const ptrdiff_t column = output % VF_WIDTH, groups = w->bits == 8 ? GROUPS : GROUPS / 2;
    const uint8_t *pair = w->data + output / VF_WIDTH * w->panel_bytes;
    const int offset = packed_offset(w->bits, w->minimum);
    for (ptrdiff_t block = 0; block * BLOCK < w->inputs; block++, out += BLOCK) {
        const uint8_t *place = pair + block / 2 * packed_pair_bytes(w->bits, w->half, w->minimum);
        const uint8_t *in = place + block % 2 * block_bytes + column * 4, *scale = place + 2 * block_bytes + block % 2 * scale_bytes;
        const float step = read_scale(scale, column, w->half);
        const float least = w->minimum ? read_scale(scale + 2 * scale_bytes, column, w->half) : 0;
        const ptrdiff_t count = w->inputs - block * BLOCK < BLOCK ? w->inputs - block * BLOCK : BLOCK;
        uint8_t stored[BLOCK];
        for (ptrdiff_t group = 0; group < groups; group++) memcpy(stored + 4 * group, in + group * VF_WIDTH * 4, 4);
        if (w->bits == 4)
            for (ptrdiff_t i = 0; i < BLOCK / 2; i++) stored[BLOCK / 2 + i] = stored[i] >> 4, stored[i] &= 15;
        for (ptrdiff_t i = 0; i < count; i++) out[i] = step * (float)(int8_t)(stored[i] - offset) + least;
    }
}

#endif

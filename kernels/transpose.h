/* Transposing floats, or words of their size: squares of VF_WIDTH x VF_WIDTH in registers. Knows nothing of what they hold. */
#ifndef FASTMIXER_TRANSPOSE_H
#define FASTMIXER_TRANSPOSE_H

#include "vec.h"

/* Lane r of rows[c] becomes lane c of rows[r]. */
VEC_INLINE void vf_turn(vf rows[VF_WIDTH]) {
#if defined(VEC_AVX512)
    __m512 r[16], t[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps((__m512)rows[i], (__m512)rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps((__m512)rows[i], (__m512)rows[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    UNROLL for (int i = 0; i < 4; i++) { /* r[i], r[i+4], r[i+8], r[i+12] hold 128-bit columns i, 4+i, 8+i, 12+i */
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        rows[i] = (vf)_mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        rows[i + 8] = (vf)_mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        rows[i + 4] = (vf)_mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        rows[i + 12] = (vf)_mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
#elif defined(VEC_AVX2)
    __m256 r[8], t[8];
    UNROLL for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps((__m256)rows[i], (__m256)rows[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps((__m256)rows[i], (__m256)rows[i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        rows[i] = (vf)_mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        rows[i + 4] = (vf)_mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
#else
    float square[VF_WIDTH * VF_WIDTH], turned[VF_WIDTH * VF_WIDTH];
    memcpy(square, rows, sizeof square);
    for (int r = 0; r < VF_WIDTH; r++)
        for (int c = 0; c < VF_WIDTH; c++) turned[c * VF_WIDTH + r] = square[r * VF_WIDTH + c];
    memcpy(rows, turned, sizeof turned);
#endif
}

/* out[c * out_stride + r] = in[r * in_stride + c] for a square of VF_WIDTH x VF_WIDTH. */
VEC_INLINE void vf_transpose(const float *in, ptrdiff_t in_stride, float *out, ptrdiff_t out_stride) {
    vf rows[VF_WIDTH];
    UNROLL for (int i = 0; i < VF_WIDTH; i++) rows[i] = vf_load(in + i * in_stride);
    vf_turn(rows);
    UNROLL for (int i = 0; i < VF_WIDTH; i++) vf_store(out + i * out_stride, rows[i]);
}

/* out [width][out_stride] = rows of in [count][width], in_stride apart, transposed; columns past count are zero. */
static void pack_transposed(const float *in, ptrdiff_t in_stride, ptrdiff_t count, ptrdiff_t width, float *out,
                            ptrdiff_t out_stride) {
    if (count < out_stride) memset(out, 0, sizeof(float) * width * out_stride);
    ptrdiff_t r = 0;
    for (; r + VF_WIDTH <= count; r += VF_WIDTH) {
        ptrdiff_t c = 0;
        for (; c + VF_WIDTH <= width; c += VF_WIDTH)
            vf_transpose(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
        for (; c < width; c++)
            for (ptrdiff_t i = 0; i < VF_WIDTH; i++) out[c * out_stride + r + i] = in[(r + i) * in_stride + c];
    }
    for (; r < count; r++)
        for (ptrdiff_t c = 0; c < width; c++) out[c * out_stride + r] = in[r * in_stride + c];
}

#endif

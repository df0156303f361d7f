/* Transposing floats, or words of their size: squares of VF_WIDTH x VF_WIDTH in registers. Knows nothing of what they hold. */
#ifndef FASTMIXER_TRANSPOSE_H
#define FASTMIXER_TRANSPOSE_H

#include "vec.h"

/* out[c * out_stride + r] = in[r * in_stride + c] for a square of VF_WIDTH x VF_WIDTH. */
VEC_INLINE void vf_transpose(const float *in, ptrdiff_t in_stride, float *out, ptrdiff_t out_stride) {
#if defined(VEC_AVX512)
    __m512 r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_ps(in + i * in_stride);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) { /* r[i], r[i+4], r[i+8], r[i+12] hold 128-bit columns i, 4+i, 8+i, 12+i */
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_ps(out + i * out_stride, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
        _mm512_storeu_ps(out + (i + 8) * out_stride, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd));
        _mm512_storeu_ps(out + (i + 4) * out_stride, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88));
        _mm512_storeu_ps(out + (i + 12) * out_stride, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd));
    }
#elif defined(VEC_AVX2)
    __m256 r[8], t[8];
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(in + i * in_stride);
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(out + i * out_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * out_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
#else
    for (int r = 0; r < VF_WIDTH; r++)
        for (int c = 0; c < VF_WIDTH; c++) out[c * out_stride + r] = in[r * in_stride + c];
#endif
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

/* Half-precision numbers (float16) to floats and back. Knows nothing of who keeps them. */
#ifndef FASTMIXER_HALF_H
#define FASTMIXER_HALF_H

#include "vec.h"

/* Whether one instruction widens them: packed scales are half-precision numbers only there, in a tenth less memory. */
#if defined(VEC_AVX512) || defined(__F16C__) || defined(__aarch64__)
#define HALF_SCALES 1
#else
#define HALF_SCALES 0
#endif

/* VF_WIDTH half-precision numbers, or floats where there are no half scales. */
VEC_INLINE vf vf_load_half(const uint8_t *p) {
#if defined(VEC_AVX512)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__aarch64__)
    float16x4_t halves;
    memcpy(&halves, p, sizeof halves);
    return (vf)vcvt_f32_f16(halves);
#elif HALF_SCALES
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    return vf_load((const float *)p);
#endif
}

/* One half-precision number, exactly. */
static inline float half_to_float(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = (half >> 10) & 31, fraction = half & 1023, bits;
    float value;
    if (exponent == 31) bits = sign | 0x7f800000 | fraction << 13;
    else if (exponent) bits = sign | (exponent + 112) << 23 | fraction << 13;
    else {
        value = (float)fraction * 5.9604644775390625e-8f; /* 2^-24 */
        return sign ? -value : value;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

static inline float half_at(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return half_to_float(half);
}

/* So many of them, one after another. */
static inline void halves_to_floats(const uint8_t *in, ptrdiff_t count, float *out) {
    ptrdiff_t i = 0;
    for (; HALF_SCALES && i + VF_WIDTH <= count; i += VF_WIDTH) vf_store(out + i, vf_load_half(in + 2 * i));
    for (; i < count; i++) out[i] = half_at(in + 2 * i);
}

/* The nearest half-precision number, ties to even; too large ones become infinite. */
static inline uint16_t float_to_half(float value) {
#if defined(__F16C__)
    return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x47800000) return sign | 0x7c00;
    if (magnitude < 0x38800000) { /* subnormal: adding 0.5 leaves 2^-24 as the last place */
        float shifted;
        memcpy(&shifted, &magnitude, sizeof shifted);
        shifted += 0.5f;
        memcpy(&bits, &shifted, sizeof bits);
        return sign | (uint16_t)(bits - 0x3f000000);
    }
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return sign | (uint16_t)((magnitude >> 13) - 0x1c000);
#endif
}

#endif

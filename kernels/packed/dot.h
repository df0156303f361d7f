/* Products of 8-bit integers, four to a 32-bit lane, and half-precision scales: one source, one width per level.
 *
 * A lane of `numbers` holds four weights of one column, a lane of `x` four numbers of the activations. Where the
 * processor multiplies unsigned by signed bytes and adds up in one step (VNNI), weights are stored DOT_OFFSET higher
 * than they are and the caller takes DOT_OFFSET times the sum of x away again. Knows nothing of matrices.
 */
#ifndef FASTMIXER_PACKED_DOT_H
#define FASTMIXER_PACKED_DOT_H

#include "vec.h"

#if defined(__AVX512VNNI__)
#define DOT_OFFSET 128
#else
#define DOT_OFFSET 0
#endif

/* Half-precision scales take a tenth less memory where one instruction widens them. */
#if defined(VEC_AVX512) || defined(__F16C__) || defined(__aarch64__)
#define HALF_SCALES 1
#else
#define HALF_SCALES 0
#endif

VEC_INLINE vi vi_load(const void *p) {
    vi v;
    memcpy(&v, p, sizeof v);
    return v;
}

VEC_INLINE void vi_store(void *p, vi v) { memcpy(p, &v, sizeof v); }

VEC_INLINE vi vi_set(int32_t x) { return x - (vi){0}; }

VEC_INLINE int32_t vi_sum(vi v) {
#if defined(VEC_AVX512)
    return _mm512_reduce_add_epi32((__m512i)v);
#endif
    int32_t total = 0;
    for (int lane = 0; lane < VF_WIDTH; lane++) total += v[lane];
    return total;
}

/* The same four bytes in every lane. */
VEC_INLINE vi vi_broadcast_bytes(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return vi_set(four);
}

/* A sum as it is, made now. Compilers turn a chain of such sums (not VNNI's, one instruction each) into a tree and make all its
 * products first, more than there are registers for: on a Zen 3 four rows by 4-bit weights took 1.3 times as long. */
VEC_INLINE vi vi_in_order(vi sum) {
#if defined(__x86_64__) && !defined(__AVX512VNNI__)
    __asm__("" : "+v"(sum));
#endif
    return sum;
}

VEC_INLINE vf vf_from_int(vi v) { return __builtin_convertvector(v, vf); }

/* sum + the four products in each lane. numbers: weights + DOT_OFFSET, or 0..15 as they are; x: -127..127. */
VEC_INLINE vi vi_dot(vi sum, vi numbers, vi x) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)numbers, (__m512i)x);
#elif defined(VEC_AVX512)
    __m512i w = (__m512i)numbers, zero = _mm512_setzero_si512();
    __m512i signed_x = _mm512_mask_sub_epi8((__m512i)x, _mm512_movepi8_mask(w), zero, (__m512i)x);
    __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), signed_x); /* at most 2 * 128 * 127: no overflow */
    return sum + (vi)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(VEC_AVX2)
    __m256i w = (__m256i)numbers;
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8((__m256i)x, w));
    return sum + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(__SSSE3__)
    __m128i w = (__m128i)numbers;
    __m128i pairs = _mm_maddubs_epi16(_mm_abs_epi8(w), _mm_sign_epi8((__m128i)x, w));
    return sum + (vi)_mm_madd_epi16(pairs, _mm_set1_epi16(1));
#elif defined(__ARM_FEATURE_DOTPROD)
    return (vi)vdotq_s32((int32x4_t)sum, (int8x16_t)numbers, (int8x16_t)x);
#else
    for (int shift = 24; shift >= 0; shift -= 8) sum += ((numbers << shift) >> 24) * ((x << shift) >> 24);
    return sum;
#endif
}

/* The same for numbers 0..15, as a block's chain: sum begins at zero, takes eight steps at most, and vi_chain_sum says what
 * it comes to. Without VNNI pairs of products add up in 16 bits (8 * 2 * 15 * 127 < 2^15): two instructions a step, not five. */
VEC_INLINE vi vi_chain_dot(vi sum, vi numbers, vi x) {
#if defined(__AVX512VNNI__)
    return vi_dot(sum, numbers, x);
#elif defined(VEC_AVX512)
    return (vi)_mm512_add_epi16((__m512i)sum, _mm512_maddubs_epi16((__m512i)numbers, (__m512i)x));
#elif defined(VEC_AVX2)
    return (vi)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)numbers, (__m256i)x));
#elif defined(__SSSE3__)
    return (vi)_mm_add_epi16((__m128i)sum, _mm_maddubs_epi16((__m128i)numbers, (__m128i)x));
#else
    return vi_dot(sum, numbers, x);
#endif
}

VEC_INLINE vi vi_chain_sum(vi sum) {
#if defined(__AVX512VNNI__)
    return sum;
#elif defined(VEC_AVX512)
    return (vi)_mm512_madd_epi16((__m512i)sum, _mm512_set1_epi16(1));
#elif defined(VEC_AVX2)
    return (vi)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1));
#elif defined(__SSSE3__)
    return (vi)_mm_madd_epi16((__m128i)sum, _mm_set1_epi16(1));
#else
    return sum;
#endif
}

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

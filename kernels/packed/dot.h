/* Products of 8-bit integers, four to a 32-bit lane: one source, one width per level.
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

#endif

/* bfloat16 in pairs: two numbers that are multiplied and added up together stand in one 32-bit word, the first in its
 * low half. So an array of pairs is laid out, packed and moved like one of floats; only the product differs.
 *
 * Rounding is to nearest, ties to even, in integers: the same bits at every level. Knows nothing of matrices.
 */
#ifndef FASTMIXER_BFLOAT16_H
#define FASTMIXER_BFLOAT16_H

#include "vec.h"

enum { PANEL_COLUMNS = 48 }; /* of a matrix of pairs in panels (kernels/bfloat16.py): every level's tile goes into it */

/* The float32 nearest to each lane that bfloat16 holds, as bits whose low half is to be ignored; NaN stays NaN. */
VEC_INLINE vi bf16_round(vf x) {
    vi bits = (vi)x;
    vi rounded = bits + 0x7fff + ((bits >> 16) & 1);
    return (vi)vf_select(x == x, (vf)rounded, (vf)(bits | 0x400000));
}

VEC_INLINE vf bf16_nearest(vf x) { return (vf)(bf16_round(x) & (int32_t)0xffff0000); }

/* One word a lane: bfloat16 of `first` in the low half, of `second` in the high half. */
VEC_INLINE vf bf16_pairs(vf first, vf second) {
    return (vf)(((bf16_round(first) >> 16) & 0xffff) | (bf16_round(second) & (int32_t)0xffff0000));
}

/* The even and the odd floats of 2 VF_WIDTH in a row. */
VEC_INLINE void bf16_split(vf a, vf b, vf *even, vf *odd) {
    float both[2 * VF_WIDTH], split[2][VF_WIDTH];
    memcpy(both, &a, sizeof a);
    memcpy(both + VF_WIDTH, &b, sizeof b);
#if defined(VEC_AVX512)
    const __m512i step = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    *even = (vf)_mm512_permutex2var_ps((__m512)a, step, (__m512)b);
    *odd = (vf)_mm512_permutex2var_ps((__m512)a, _mm512_or_si512(step, _mm512_set1_epi32(1)), (__m512)b);
    return;
#endif
    for (int i = 0; i < VF_WIDTH; i++) split[0][i] = both[2 * i], split[1][i] = both[2 * i + 1];
    memcpy(even, split[0], sizeof *even);
    memcpy(odd, split[1], sizeof *odd);
}

/* Neighbours of 2 VF_WIDTH floats in a row, as words of a pair each. Numbers smaller than the least normal one may become
 * zero, as the instruction for the product takes them. */
VEC_INLINE vf bf16_neighbours(vf a, vf b) {
#if defined(__AVX512BF16__)
    return (vf)(__m512)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
#else
    vf even, odd;
    bf16_split(a, b, &even, &odd);
    return bf16_pairs(even, odd);
#endif
}

/* As bf16_pairs, but for the same small numbers. */
VEC_INLINE vf bf16_couples(vf first, vf second) {
#if defined(__AVX512BF16__)
    const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                           5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (vf)_mm512_permutexvar_epi16(turns, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
#else
    return bf16_pairs(first, second);
#endif
}

/* The same two, but exact for small numbers too, as what is stored has to be at every level. */
VEC_INLINE vf bf16_all_neighbours(vf a, vf b) {
#if defined(__AVX512BF16__)
    enum { SMALL = 0x20 };
    if (!(_mm512_fpclass_ps_mask((__m512)a, SMALL) | _mm512_fpclass_ps_mask((__m512)b, SMALL))) return bf16_neighbours(a, b);
#endif
    vf even, odd;
    bf16_split(a, b, &even, &odd);
    return bf16_pairs(even, odd);
}

VEC_INLINE vf bf16_all_couples(vf first, vf second) {
#if defined(__AVX512BF16__)
    enum { SMALL = 0x20 };
    if (!(_mm512_fpclass_ps_mask((__m512)first, SMALL) | _mm512_fpclass_ps_mask((__m512)second, SMALL)))
        return bf16_couples(first, second);
#endif
    return bf16_pairs(first, second);
}

/* One number as it stands in a pair. */
VEC_INLINE uint16_t bf16_half(float x) {
    int32_t words[VF_WIDTH];
    const vi rounded = bf16_round(vf_set(x));
    memcpy(words, &rounded, sizeof rounded);
    return (uint16_t)((uint32_t)words[0] >> 16);
}

/* The first or the second number of a pair. */
VEC_INLINE float bf16_of_pair(float pair, int second) {
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    bits = second ? bits & 0xffff0000u : bits << 16;
    memcpy(&pair, &bits, sizeof pair);
    return pair;
}

/* sum + a.first * b.first + a.second * b.second, in float32. */
VEC_INLINE vf bf16_dot(vf sum, vf a, vf b) {
#if defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512)a, (__m512bh)(__m512)b);
#else
    vf first_a = (vf)((vi)a << 16), first_b = (vf)((vi)b << 16);
    vf second_a = (vf)((vi)a & (int32_t)0xffff0000), second_b = (vf)((vi)b & (int32_t)0xffff0000);
    return vf_fma(second_a, second_b, vf_fma(first_a, first_b, sum));
#endif
}

#endif

/* Rounding of activations to 8 bits in groups with a scale each, VF_WIDTH groups at a time: their maxima and sums are found
 * together, lane by lane, as finding them one by one across lanes took longer than the rounding (a tenth of a sentence's time).
 *
 * Knows nothing of how groups lie beside their scales.
 */
#ifndef FASTMIXER_PACKED_ROUND_H
#define FASTMIXER_PACKED_ROUND_H

#include "packed/dot.h"

#if defined(VEC_AVX512)
/* Folds sixteen vectors into one: lane i is v[i]'s lanes, joined by `join`. */
#define FOLD_EACH(join, v)                                                                                             \
    __m512 fours[4], halves[2];                                                                                        \
    UNROLL for (int i = 0; i < 4; i++) {                                                                               \
        __m512 ab = join(_mm512_unpacklo_ps(v[4 * i], v[4 * i + 1]), _mm512_unpackhi_ps(v[4 * i], v[4 * i + 1]));      \
        __m512 cd = join(_mm512_unpacklo_ps(v[4 * i + 2], v[4 * i + 3]), _mm512_unpackhi_ps(v[4 * i + 2], v[4 * i + 3])); \
        fours[i] = join(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));                             \
    }                                                                                                                  \
    UNROLL for (int i = 0; i < 2; i++)                                                                                 \
        halves[i] = join(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),                                   \
                         _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xdd));                                  \
    return join(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88), _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd))

VEC_INLINE __m512 join_largest(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
VEC_INLINE __m512 join_sum(__m512 a, __m512 b) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
VEC_INLINE __m512 largest_fold(const __m512 *v) { FOLD_EACH(join_largest, v); }
VEC_INLINE __m512 sum_fold(const __m512 *v) { FOLD_EACH(join_sum, v); }
#undef FOLD_EACH
#endif

/* Lane i: the largest lane of v[i]. */
VEC_INLINE vf largest_of_each(const vf v[VF_WIDTH]) {
#if defined(VEC_AVX512)
    return (vf)largest_fold((const __m512 *)v);
#endif
    vf found;
    for (int i = 0; i < VF_WIDTH; i++) found[i] = vf_largest(v[i]);
    return found;
}

/* Lane i: the sum of the lanes of v[i]. */
VEC_INLINE vi sum_of_each(const vi v[VF_WIDTH]) {
#if defined(VEC_AVX512)
    return (vi)sum_fold((const __m512 *)v);
#endif
    vi found;
    for (int i = 0; i < VF_WIDTH; i++) found[i] = vi_sum(v[i]);
    return found;
}

/* The nearest integers, ties to even. */
VEC_INLINE vi vi_nearest(vf x) {
#if defined(VEC_AVX512)
    return (vi)_mm512_cvtps_epi32((__m512)x);
#endif
    return __builtin_convertvector(vf_round(x), vi);
}

/* The first lane that is x; VF_WIDTH: none. */
VEC_INLINE ptrdiff_t first_equal(vf v, float x) {
#if defined(VEC_AVX512)
    uint32_t lanes = _mm512_cmpeq_ps_mask((__m512)v, _mm512_set1_ps(x));
#elif defined(VEC_AVX2)
    uint32_t lanes = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_set1_ps(x), _CMP_EQ_OQ));
#else
    uint32_t lanes = 0;
    for (int i = 0; i < VF_WIDTH; i++) lanes |= (uint32_t)(v[i] == x) << i;
#endif
    return lanes ? __builtin_ctz(lanes) : VF_WIDTH;
}

/* The first `lanes` of numbers, a byte each. */
VEC_INLINE void store_bytes(int8_t *out, vi numbers, ptrdiff_t lanes) {
#if defined(VEC_AVX512)
    if (lanes >= VF_WIDTH) {
        _mm_storeu_si128((__m128i *)out, _mm512_cvtepi32_epi8((__m512i)numbers));
        return;
    }
#endif
    for (ptrdiff_t lane = 0; lane < VF_WIDTH && lane < lanes; lane++) out[lane] = (int8_t)numbers[lane];
}

/* parts [vectors] = x from number `at` on, zeros where its `left` numbers end. */
VEC_INLINE void load_group(const float *x, ptrdiff_t left, const int vectors, vf *parts) {
    if (left >= vectors * VF_WIDTH) {
        UNROLL for (int i = 0; i < vectors; i++) parts[i] = vf_load(x + i * VF_WIDTH);
        return;
    }
    UNROLL for (int i = 0; i < vectors; i++) {
        ptrdiff_t lanes = left - i * VF_WIDTH;
        parts[i] = lanes >= VF_WIDTH ? vf_load(x + i * VF_WIDTH) : lanes > 0 ? vf_load_first(x + i * VF_WIDTH, lanes) : vf_zero();
    }
}

/* Where the largest of x [count] >= 0 is, the first of equal ones (0 if none compares). */
static ptrdiff_t largest_place(const float *x, ptrdiff_t count) {
    vf part, most = vf_zero();
    for (ptrdiff_t i = 0; i < count; i += VF_WIDTH) {
        load_group(x + i, count - i, 1, &part);
        most = vf_max(most, part);
    }
    const float largest = vf_largest(most);
    for (ptrdiff_t i = 0; i < count; i += VF_WIDTH) {
        load_group(x + i, count - i, 1, &part);
        ptrdiff_t lane = first_equal(part, largest);
        if (lane < VF_WIDTH) return i + lane;
    }
    return 0;
}

/* The scales of the first `count` of VF_WIDTH groups of `vectors` vectors, `apart` floats from one to the next, and 127 by
 * their largest magnitudes (0 where that is 0); `left` numbers are left of x. */
VEC_INLINE vf group_scales(const float *x, ptrdiff_t apart, ptrdiff_t count, ptrdiff_t left, const int vectors,
                           float inverses[VF_WIDTH]) {
    vf largest[VF_WIDTH];
    for (int g = 0; g < VF_WIDTH; g++, x += apart, left -= apart) {
        vf parts[48 / VF_WIDTH], most = vf_zero(); /* more than any group has */
        if (g < count) {
            load_group(x, left, vectors, parts);
            UNROLL for (int i = 0; i < vectors; i++) most = vf_max(most, vf_abs(parts[i]));
        }
        largest[g] = most;
    }
    vf most = largest_of_each(largest);
    vf_store(inverses, vf_select(most > 0, 127.0f / most, vf_zero()));
    return most / 127.0f;
}

VEC_INLINE void vi_store_first(int32_t *p, vi v, ptrdiff_t n) { vf_store_first((float *)p, (vf)v, n); }

#endif

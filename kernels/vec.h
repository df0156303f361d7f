/* Vectors of float32 for native kernels: one source, one width per instruction-set level.
 *
 * `vf` holds VF_WIDTH floats, `vi` as many int32. Everything is GCC/Clang vector extensions, so any processor has a
 * working version; where one instruction is better than what the compiler finds, an intrinsic stands beside it.
 * Knows nothing of ops, threads or Python. Tile sizes per level stand with the kernels that use them.
 */
#ifndef FASTMIXER_VEC_H
#define FASTMIXER_VEC_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define VF_WIDTH 16
#define VEC_AVX512 1
#elif defined(__AVX2__)
#define VF_WIDTH 8
#define VEC_AVX2 1
#else
#define VF_WIDTH 4 /* SSE, NEON, or whatever the compiler makes of it */
#endif

/* How many vector registers a kernel may plan with. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define VF_REGISTERS 32
#else
#define VF_REGISTERS 16
#endif

typedef float vf __attribute__((vector_size(VF_WIDTH * 4)));
typedef int32_t vi __attribute__((vector_size(VF_WIDTH * 4)));

#define VEC_INLINE static inline __attribute__((always_inline))

/* Before a loop over a register tile: it unrolls early, or the tile's sums pass through memory. */
#if defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 32")
#define UNROLL_FOUR _Pragma("GCC unroll 4") /* so many turns of a long loop at once */
#else
#define UNROLL
#define UNROLL_FOUR
#endif

/* ---- load, store ---- */

VEC_INLINE vf vf_load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

VEC_INLINE void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }

/* A store past the caches, for what is not read again soon; an ordinary one where p is not aligned to a vector. */
VEC_INLINE void vf_stream(float *p, vf v) {
#if defined(VEC_AVX512)
    if (((uintptr_t)p & 63) == 0) {
        _mm512_stream_ps(p, (__m512)v);
        return;
    }
#endif
    vf_store(p, v);
}

VEC_INLINE vf vf_set(float x) { return x - (vf){0}; }

VEC_INLINE vf vf_zero(void) { return (vf){0}; }

/* 0, 1, 2, ... */
VEC_INLINE vi vi_lanes(void) {
    vi v;
    for (int i = 0; i < VF_WIDTH; i++) v[i] = i;
    return v;
}

/* The first n floats (0 <= n <= VF_WIDTH); the other lanes are zero and their memory is not touched. */
VEC_INLINE vf vf_load_first(const float *p, ptrdiff_t n) {
#if defined(VEC_AVX512)
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif defined(VEC_AVX2)
    return (vf)_mm256_maskload_ps(p, (__m256i)(vi_lanes() < (int32_t)n));
#else
    vf v = {0};
    for (ptrdiff_t i = 0; i < n; i++) v[i] = p[i];
    return v;
#endif
}

/* Stores the first n lanes only. */
VEC_INLINE void vf_store_first(float *p, vf v, ptrdiff_t n) {
#if defined(VEC_AVX512)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#elif defined(VEC_AVX2)
    _mm256_maskstore_ps(p, (__m256i)(vi_lanes() < (int32_t)n), (__m256)v);
#else
    for (ptrdiff_t i = 0; i < n; i++) p[i] = v[i];
#endif
}

/* ---- arithmetic ---- */

VEC_INLINE vf vf_add(vf a, vf b) { return a + b; }
VEC_INLINE vf vf_sub(vf a, vf b) { return a - b; }
VEC_INLINE vf vf_mul(vf a, vf b) { return a * b; }
VEC_INLINE vf vf_div(vf a, vf b) { return a / b; }

/* a * b + c, one rounding where the processor has FMA. */
VEC_INLINE vf vf_fma(vf a, vf b, vf c) {
#if defined(VEC_AVX512)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(VEC_AVX2) && defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* a / b within an ulp, for b that is neither tiny nor huge: an estimate and two corrections, a third of a division's cycles. */
VEC_INLINE vf vf_quotient(vf a, vf b) {
#if defined(VEC_AVX512)
    vf inverse = (vf)_mm512_rcp14_ps((__m512)b);
    inverse = vf_fma(vf_fma(-b, inverse, (vf){0} + 1.0f), inverse, inverse);
    vf quotient = a * inverse;
    return vf_fma(vf_fma(-b, quotient, a), inverse, quotient);
#else
    return a / b;
#endif
}

/* c - a * b */
VEC_INLINE vf vf_fnma(vf a, vf b, vf c) { return vf_fma(-a, b, c); }

/* ---- comparison: masks are vi with all bits set where true ---- */

VEC_INLINE vf vf_select(vi mask, vf if_true, vf if_false) {
    return (vf)(((vi)if_true & mask) | ((vi)if_false & ~mask));
}

VEC_INLINE vi vf_less(vf a, vf b) { return a < b; }

/* Larger and smaller of the two; b where either is NaN, so that vf_max(limit, x) keeps a NaN in x. */
VEC_INLINE vf vf_max(vf a, vf b) {
#if defined(VEC_AVX512)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(VEC_AVX2)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return vf_select(a > b, a, b);
#endif
}

VEC_INLINE vf vf_min(vf a, vf b) {
#if defined(VEC_AVX512)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(VEC_AVX2)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return vf_select(a < b, a, b);
#endif
}

VEC_INLINE vf vf_abs(vf a) { return (vf)((vi)a & 0x7fffffff); }

VEC_INLINE vf vf_sqrt(vf a) {
#if defined(VEC_AVX512)
    return (vf)_mm512_sqrt_ps((__m512)a);
#elif defined(VEC_AVX2)
    return (vf)_mm256_sqrt_ps((__m256)a);
#else
    for (int i = 0; i < VF_WIDTH; i++) a[i] = sqrtf(a[i]);
    return a;
#endif
}

/* ---- reduction: always the same tree, so the same bits ---- */

VEC_INLINE float vf_sum(vf v) {
#if defined(VEC_AVX512)
    return _mm512_reduce_add_ps((__m512)v); /* halves, as below */
#endif
    float lanes[VF_WIDTH];
    memcpy(lanes, &v, sizeof v);
    for (int half = VF_WIDTH / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

VEC_INLINE float vf_largest(vf v) {
#if defined(VEC_AVX512)
    return _mm512_reduce_max_ps((__m512)v);
#endif
    float lanes[VF_WIDTH];
    memcpy(lanes, &v, sizeof v);
    for (int half = VF_WIDTH / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    return lanes[0];
}

/* ---- exp ---- */

#define LOG2_E 1.44269504088896341f

/* 2^n for integer-valued float n in [-126, 127]. */
VEC_INLINE vf vf_power_of_two(vf n) {
    return (vf)((__builtin_convertvector(n, vi) + 127) << 23);
}

/* Nearest integer, ties to even; |x| < 2^22, NaN stays. */
VEC_INLINE vf vf_round(vf x) {
#if defined(VEC_AVX512)
    return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#endif
    const float shift = 12582912.0f; /* 1.5 * 2^23 */
    return (x + shift) - shift;
}

/* Below it e^x is less than the least normal float and counts as 0. Nothing on the way may become such a number: an Intel processor
 * takes 230 cycles for a vector that holds one, where e^x takes 9. */
#define EXP_LEAST -87.33654f

/* e^x within about 1 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial in r (Cephes expf), times 2^n in two factors.
 * -inf and everything below -87.33 (where the result stops being a normal number) give 0; above 88.72 +inf; NaN stays. */
VEC_INLINE vf vf_exp(vf x) {
    vf clamped = vf_min(vf_set(89.0f), vf_max(vf_set(EXP_LEAST), x));
    vf n = vf_round(clamped * LOG2_E);
    vf r = vf_fma(n, vf_set(-0.693359375f), clamped);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    vf p = vf_set(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set(5.0000001201e-1f));
    p = vf_fma(p, r * r, r) + 1.0f;
#if defined(VEC_AVX512)
    vf y = (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    vf half = vf_round(n * 0.5f);
    vf y = p * vf_power_of_two(half) * vf_power_of_two(n - half);
#endif
    return vf_select(x < EXP_LEAST, vf_zero(), y);
}

#if defined(VEC_AVX512) && defined(__AVX512DQ__)
VEC_INLINE vf vf_fraction(vf t) { return (vf)_mm512_reduce_ps((__m512)t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }

/* p times 2^t's whole part; 0 where t < -126 (EXP_LEAST). */
VEC_INLINE vf vf_scaled_negative(vf p, vf t) {
    return (vf)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)t, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), (__m512)p, (__m512)t);
}
#endif

/* e^x for x <= 0, as a softmax needs it: off by 2^-22 of it, and by |x| 2^-24 where x is far below. -inf gives 0; NaN stays.
 * 2^t of the fraction of t = x log2(e) is one polynomial (least relative error with 2^0 = 1), a scaling takes the rest of t: nine
 * instructions where vf_exp takes seventeen. */
VEC_INLINE vf vf_exp_negative(vf x) {
#if defined(VEC_AVX512) && defined(__AVX512DQ__)
    vf t = x * LOG2_E, r = vf_fraction(t);
    vf p = vf_fma(r, vf_set(1.86713005e-3f), vf_set(9.01703071e-3f));
    p = vf_fma(p, r, vf_set(5.57999127e-2f));
    p = vf_fma(p, r, vf_set(2.40164444e-1f));
    p = vf_fma(p, r, vf_set(6.93151295e-1f));
    return vf_scaled_negative(vf_fma(p, r, vf_set(1.0f)), t);
#else
    return vf_exp(x);
#endif
}

/* 2^t for t <= 0, off by 2^-13 of it, for what is rounded to bfloat16 next; below -126 0, as -inf; NaN stays. */
VEC_INLINE vf vf_exp2_rough(vf t) {
#if defined(VEC_AVX512) && defined(__AVX512DQ__)
    vf r = vf_fraction(t);
    vf p = vf_fma(r, vf_set(7.70670425e-2f), vf_set(2.27644990e-1f));
    p = vf_fma(p, r, vf_set(6.95116787e-1f));
    return vf_scaled_negative(vf_fma(p, r, vf_set(1.0f)), t);
#else
    return vf_exp(t * 0.69314718055994531f);
#endif
}

/* ---- 64-bit lanes, as counter-based random numbers need them ---- */

typedef uint64_t vl __attribute__((vector_size(VF_WIDTH * 4)));

#define VL_WIDTH (VF_WIDTH / 2)

/* The 64-bit product of the low 32 bits of each lane; the high 32 bits of a and b are ignored. */
VEC_INLINE vl vl_multiply_low(vl a, vl b) {
#if defined(VEC_AVX512)
    return (vl)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(VEC_AVX2)
    return (vl)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (vl)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

#endif

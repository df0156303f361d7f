/* The activation functions and their derivatives over vec.h, as their formulas read.
 *
 * Numbers as in activations.py. tanh-GELU is x * sigmoid(2u), the same function with one exponential and no
 * cancellation. Knows nothing of layers.
 */
#ifndef FASTMIXER_ACTIVATIONS_H
#define FASTMIXER_ACTIVATIONS_H

#include "vec.h"

enum { ACTIVATION_NONE, ACTIVATION_GELU, ACTIVATION_GELU_TANH, ACTIVATION_SILU, ACTIVATION_RELU };

/* Odd polynomial over even polynomial on [-4, 4] (the form and coefficients that Eigen and XLA use). */
VEC_INLINE vf vf_erf(vf x) {
    x = vf_min(vf_set(4.0f), vf_max(vf_set(-4.0f), x));
    vf square = x * x;
    vf p = vf_set(-2.72614225801306e-10f);
    p = vf_fma(p, square, vf_set(2.77068142495902e-08f));
    p = vf_fma(p, square, vf_set(-2.10102402082508e-06f));
    p = vf_fma(p, square, vf_set(-5.69250639462346e-05f));
    p = vf_fma(p, square, vf_set(-7.34990630326855e-04f));
    p = vf_fma(p, square, vf_set(-2.95459980854025e-03f));
    p = vf_fma(p, square, vf_set(-1.60960333262415e-02f));
    vf q = vf_set(-1.45660718464996e-05f);
    q = vf_fma(q, square, vf_set(-2.13374055278905e-04f));
    q = vf_fma(q, square, vf_set(-1.68282697438203e-03f));
    q = vf_fma(q, square, vf_set(-7.37332916720468e-03f));
    q = vf_fma(q, square, vf_set(-1.42647390514189e-02f));
    return vf_min(vf_set(1.0f), vf_max(vf_set(-1.0f), vf_quotient(x * p, q)));
}

#if defined(VEC_AVX512) && defined(__AVX512DQ__)
/* GELU(x) = max(x, 0) - a (1 - Phi(a)), a = |x|; the second part is under 1e-7 from 5.5 on, and below that sixteen polynomials of
 * degree 4 (of least largest error: 2.1e-7), each number of them one permutation. Half the instructions of an erf. */
#define GELU_END 5.5f
static const float GELU_BELOW[5][16] __attribute__((aligned(64))) = {
    {0.000000f, 1.256463e-1f, 1.690450e-1f, 1.559371e-1f, 1.162779e-1f, 7.361406e-2f, 4.038398e-2f, 1.939108e-2f,
     8.194353e-3f, 3.057298e-3f, 1.009089e-3f, 2.950141e-4f, 7.646199e-5f, 1.757886e-5f, 3.586378e-6f, 6.494848e-7f},
    {1.718750e-1f, 8.122084e-2f, 1.009519e-2f, -3.111400e-2f, -4.419976e-2f, -3.909476e-2f, -2.698780e-2f, -1.547897e-2f,
     -7.572204e-3f, -3.202044e-3f, -1.179560e-3f, -3.803762e-4f, -1.077258e-4f, -2.685521e-5f, -5.902830e-6f, -1.145394e-6f},
    {-4.715210e-2f, -4.189358e-2f, -2.850163e-2f, -1.300450e-2f, -9.894264e-4f, 5.167342e-3f, 6.360851e-3f, 4.953642e-3f,
     2.990749e-3f, 1.487250e-3f, 6.256565e-4f, 2.258613e-4f, 7.057424e-5f, 1.919548e-5f, 4.562480e-6f, 9.503561e-7f},
    {4.775342e-5f, 3.624726e-3f, 5.395886e-3f, 4.908857e-3f, 3.014872e-3f, 1.017176e-3f, -2.496501e-4f, -6.839245e-4f,
     -6.105372e-4f, -3.815699e-4f, -1.886449e-4f, -7.716459e-5f, -2.669780e-5f, -7.912909e-6f, -2.025426e-6f, -4.502141e-7f},
    {8.760374e-4f, 4.470638e-4f, -9.703966e-5f, -4.495098e-4f, -4.896521e-4f, -3.199878e-4f, -1.164109e-4f, 1.248947e-5f,
     5.493947e-5f, 4.816909e-5f, 2.848500e-5f, 1.313399e-5f, 4.969038e-6f, 1.581138e-6f, 4.291728e-7f, 1.002694e-7f},
};

VEC_INLINE vf vf_gelu(vf x) {
    vf a = vf_abs(x), place = a * (16 / GELU_END), r = vf_fraction(place);
    __m512i piece = _mm512_cvttps_epi32((__m512)place); /* only its last four bits count */
    __mmask16 inside = _mm512_cmp_ps_mask((__m512)a, _mm512_set1_ps(GELU_END), _CMP_NGE_UQ); /* or NaN, which stays */
    __m512 below = _mm512_permutexvar_ps(piece, _mm512_load_ps(GELU_BELOW[4]));
    UNROLL for (int power = 3; power > 0; power--)
        below = _mm512_fmadd_ps(below, (__m512)r, _mm512_permutexvar_ps(piece, _mm512_load_ps(GELU_BELOW[power])));
    below = _mm512_maskz_fmadd_ps(inside, below, (__m512)r, _mm512_permutexvar_ps(piece, _mm512_load_ps(GELU_BELOW[0])));
    return vf_max(vf_zero(), x) - (vf)below;
}
#else
VEC_INLINE vf vf_gelu(vf x) { return 0.5f * x * (1.0f + vf_erf(x * 0.70710678118654752f)); }
#endif

/* Below -87, where e^-x leaves what vf_quotient takes, it stays at its least: 2e-38. */
VEC_INLINE vf vf_sigmoid(vf x) { return vf_quotient(vf_set(1.0f), 1.0f + vf_exp(-vf_max(vf_set(-87.0f), x))); }

/* 2 sqrt(2 / pi) (x + 0.044715 x^3), and its slope. */
VEC_INLINE vf gelu_tanh_argument(vf x) { return x * vf_fma(x * x, vf_set(0.0713548163f), vf_set(1.5957691216f)); }
VEC_INLINE vf gelu_tanh_slope(vf x) { return vf_fma(x * x, vf_set(0.2140644488f), vf_set(1.5957691216f)); }

VEC_INLINE vf vf_activate(vf x, int activation) {
    switch (activation) {
    case ACTIVATION_GELU: return vf_gelu(x);
    case ACTIVATION_GELU_TANH: return x * vf_sigmoid(gelu_tanh_argument(x));
    case ACTIVATION_SILU: return x * vf_sigmoid(x);
    case ACTIVATION_RELU: return vf_max(vf_zero(), x);
    default: return x;
    }
}

VEC_INLINE vf vf_derivative(vf x, int activation) {
    vf s;
    switch (activation) {
    case ACTIVATION_GELU:
        return vf_fma(x * 0.39894228040143268f, vf_exp(-0.5f * x * x),
                      0.5f * (1.0f + vf_erf(x * 0.70710678118654752f)));
    case ACTIVATION_GELU_TANH:
        x = vf_max(vf_set(-16.0f), x); /* the slope below is 0, and x^3 would outgrow the sigmoid's least */
        s = vf_sigmoid(gelu_tanh_argument(x));
        return vf_fma(x * s * (1.0f - s), gelu_tanh_slope(x), s);
    case ACTIVATION_SILU:
        s = vf_sigmoid(x);
        return vf_fma(x * s, 1.0f - s, s);
    case ACTIVATION_RELU: return vf_select(vf_less(vf_zero(), x), vf_set(1.0f), vf_zero());
    default: return vf_set(1.0f);
    }
}

#endif

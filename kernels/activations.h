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

/* Below -87, where e^-x leaves what vf_quotient takes, it stays at its least: 2e-38. */
VEC_INLINE vf vf_sigmoid(vf x) { return vf_quotient(vf_set(1.0f), 1.0f + vf_exp(-vf_max(vf_set(-87.0f), x))); }

/* 2 sqrt(2 / pi) (x + 0.044715 x^3), and its slope. */
VEC_INLINE vf gelu_tanh_argument(vf x) { return x * vf_fma(x * x, vf_set(0.0713548163f), vf_set(1.5957691216f)); }
VEC_INLINE vf gelu_tanh_slope(vf x) { return vf_fma(x * x, vf_set(0.2140644488f), vf_set(1.5957691216f)); }

VEC_INLINE vf vf_activate(vf x, int activation) {
    switch (activation) {
    case ACTIVATION_GELU: return 0.5f * x * (1.0f + vf_erf(x * 0.70710678118654752f));
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

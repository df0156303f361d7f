"""e^x for jit kernels, as vec.h's vf_exp: plain arithmetic that LLVM turns into vectors.

(Numba's own np.exp is a library call for each number, some fifteen times slower.)
Imported by jit.py modules only. Knows nothing of ops.
"""

import numpy as np
from numba import njit

_HIGHEST = np.float32(88.72283)  # above it the result is larger than any float32: +inf
_LOWEST = np.float32(-87.33654)  # below it the result is not a normal number: 0
_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_C2, _C3, _C4 = np.float32(5.0000001201e-1), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
_C5, _C6, _C7 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3), np.float32(1.9875691500e-4)
_HALF, _ZERO, _ONE, _INFINITY = np.float32(0.5), np.float32(0), np.float32(1), np.float32(np.inf)
_MANTISSA_BITS = np.int32(23)


# No "reassoc" here: ln 2 is subtracted in two parts, in that order. LLVM inlines the call all the same.
@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def exp_float32(x):
    """e^x of a float32 number, within about 1 ulp: x = n ln 2 + r, a polynomial in r (Cephes expf), and n
    added to the exponent's bits. -inf and below -87.33 give 0, above 88.72 +inf; NaN stays.
    """
    clamped = _LOWEST if x < _LOWEST else x
    clamped = _HIGHEST if clamped > _HIGHEST else clamped
    n = np.floor(clamped * _LOG2_E + _HALF)
    r = clamped - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = _C7
    p = p * r + _C6
    p = p * r + _C5
    p = p * r + _C4
    p = p * r + _C3
    p = p * r + _C2
    p = p * (r * r) + r + _ONE
    y = np.int32(np.float32(p).view(np.int32) + (np.int32(n) << _MANTISSA_BITS)).view(np.float32)
    y = _ZERO if x < _LOWEST else y
    y = _INFINITY if x > _HIGHEST else y
    return y if x == x else x

"""The one way jit kernels are compiled, so that all of them share the same floating-point rules and cache.

Imported by jit.py modules only: Numba costs half a second, which nobody pays who does not use it.
"""

from numba import njit

# contract and reassoc let LLVM use FMA and vector sums; nsz ignores the sign of zero. Full fastmath would also
# assume that no infinity or NaN occurs, and -inf is how attention masks.
FASTMATH = {"contract", "reassoc", "nsz"}

compiled = njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy")
inlined = njit(nogil=True, cache=True, fastmath=FASTMATH, error_model="numpy", inline="always")

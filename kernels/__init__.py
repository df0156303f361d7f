"""Plain loops over contiguous arrays: one folder an op, in NumPy (reference), Numba (jit) and Cython (native).

Kernels know nothing of models, allocate nothing that users see, and check nothing: fastmixer.ops did.
"""

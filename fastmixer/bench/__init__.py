"""Benchmarks: named workloads, timed side by side in NumPy, Numba and Cython, over the machine's measured limits."""

"""The processor's level, as it and the system tell."""

cdef extern from "cpu/cpuid.h":
    int cpu_level()


def level():
    """On x86-64 4, 3, 2 or 1 (micro-architecture levels of the psABI; 5: 4 with VNNI, 6: 5 with BF16, 7: 6 with AMX); on
    aarch64 1 with products of four bytes (dotprod); 0 without, and on any other processor."""
    return cpu_level()

"""The processor's x86-64 level, from CPUID and XGETBV."""

cdef extern from "cpu/cpuid.h":
    int cpu_x86_64_level()


def x86_64_level():
    """4, 3, 2 or 1 on x86-64 (micro-architecture levels of the psABI; 5: 4 with VNNI, 6: 5 with BF16, 7: 6 with AMX), 0 on any other processor."""
    return cpu_x86_64_level()

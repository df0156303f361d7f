# What every native.pyx includes: the vector primitives of vec.h and the thread pool of threads/pool.h.
# Usage: `include "vec.pxi"` at the top of kernels/<op>/native.pyx.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stddef cimport ptrdiff_t, size_t

cdef extern from "vec.h" nogil:
    enum: VF_WIDTH
    enum: VF_REGISTERS
    ctypedef struct vf:
        pass
    ctypedef struct vi:
        pass
    vf vf_load(const float *p)
    void vf_store(float *p, vf v)
    void vf_stream(float *p, vf v)
    vf vf_set(float x)
    vf vf_zero()
    vi vi_lanes()
    vf vf_load_first(const float *p, ptrdiff_t n)
    void vf_store_first(float *p, vf v, ptrdiff_t n)
    vf vf_add(vf a, vf b)
    vf vf_sub(vf a, vf b)
    vf vf_mul(vf a, vf b)
    vf vf_div(vf a, vf b)
    vf vf_fma(vf a, vf b, vf c)
    vf vf_fnma(vf a, vf b, vf c)
    vf vf_select(vi mask, vf if_true, vf if_false)
    vi vf_less(vf a, vf b)
    vf vf_max(vf a, vf b)
    vf vf_min(vf a, vf b)
    vf vf_abs(vf a)
    vf vf_sqrt(vf a)
    float vf_sum(vf v)
    float vf_largest(vf v)
    vf vf_round(vf x)
    vf vf_exp(vf x)

cdef extern from "threads/pool.h":
    ctypedef void (*pool_task)(void *argument, ptrdiff_t task) noexcept nogil
    int pool_import() except -1
    int pool_run(pool_task function, void *argument, ptrdiff_t tasks) except -1 nogil
    void *pool_scratch(size_t bytes) noexcept nogil
    void *pool_shared(size_t bytes) noexcept nogil
    int pool_threads() noexcept nogil

cdef extern from "amx.h":
    bint tiles_can_begin() nogil

if not tiles_can_begin():
    raise ImportError("kernels for AMX: the system does not let this process use its tiles")

# The first look at the number of threads loads the pool and sizes it.
from fastmixer.kernels.threads import get_threads as _size_the_pool
_size_the_pool()
pool_import()


# A vector, or its first `lanes` where a row ends.
cdef inline vf load_part(const float *p, ptrdiff_t lanes) noexcept nogil:
    return vf_load(p) if lanes >= VF_WIDTH else vf_load_first(p, lanes)


cdef inline void store_part(float *p, vf value, ptrdiff_t lanes) noexcept nogil:
    if lanes >= VF_WIDTH:
        vf_store(p, value)
    else:
        vf_store_first(p, value, lanes)

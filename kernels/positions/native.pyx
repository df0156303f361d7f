"""Positions in Cython: blocks of tokens are tasks. Shapes and meaning: reference.py."""

include "vec.pxi"

cdef enum:
    TOKEN_BLOCK = 32  # tokens a task


cdef struct Rotation:
    const float *x
    float *out
    ptrdiff_t x_batch, x_head, x_time, out_batch, out_head, out_time  # strides, in floats
    const float *cos
    const float *sin
    const int64_t *positions
    float sign
    ptrdiff_t heads, time, half, blocks


def rotate(const float[:, :, :, :] x, const float[:, ::1] cos, const float[:, ::1] sin, const int64_t[:, ::1] positions,
           bint inverse, float[:, :, :, :] out):
    cdef Rotation r
    cdef ptrdiff_t tasks
    r.x, r.out = &x[0, 0, 0, 0], &out[0, 0, 0, 0]
    r.x_batch, r.x_head, r.x_time = x.strides[0] // 4, x.strides[1] // 4, x.strides[2] // 4
    r.out_batch, r.out_head, r.out_time = out.strides[0] // 4, out.strides[1] // 4, out.strides[2] // 4
    r.cos, r.sin, r.positions = &cos[0, 0], &sin[0, 0], &positions[0, 0]
    r.sign = -1 if inverse else 1
    r.heads, r.time, r.half = x.shape[1], x.shape[2], x.shape[3] // 2
    r.blocks = (r.time + TOKEN_BLOCK - 1) // TOKEN_BLOCK
    tasks = x.shape[0] * r.blocks
    with nogil:
        pool_run(rotate_block, &r, tasks)


cdef void rotate_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef Rotation *r = <Rotation *>argument
    cdef ptrdiff_t b = task // r.blocks, start = task % r.blocks * TOKEN_BLOCK, stop = min(start + TOKEN_BLOCK, r.time)
    cdef ptrdiff_t t, head, i, lanes
    cdef const float *x
    cdef const float *cos
    cdef const float *sin
    cdef float *out
    cdef vf first, second, c, s, sign = vf_set(r.sign)
    for t in range(start, stop):
        cos = r.cos + r.positions[b * r.time + t] * r.half
        sin = r.sin + r.positions[b * r.time + t] * r.half
        for head in range(r.heads):
            x = r.x + b * r.x_batch + head * r.x_head + t * r.x_time
            out = r.out + b * r.out_batch + head * r.out_head + t * r.out_time
            i = 0
            while i < r.half:
                lanes = min(VF_WIDTH, r.half - i)
                first, second = vf_load_first(x + i, lanes), vf_load_first(x + r.half + i, lanes)
                c, s = vf_load_first(cos + i, lanes), vf_mul(sign, vf_load_first(sin + i, lanes))
                vf_store_first(out + i, vf_fnma(second, s, vf_mul(first, c)), lanes)
                vf_store_first(out + r.half + i, vf_fma(first, s, vf_mul(second, c)), lanes)
                i += VF_WIDTH


cdef struct Addition:
    float *x
    const float *table
    const int64_t *positions
    ptrdiff_t tokens, dim


def add_positions(float[:, ::1] x, const float[:, ::1] table, const int64_t[::1] positions):
    cdef Addition a
    cdef ptrdiff_t tasks
    a.x, a.table, a.positions = &x[0, 0], &table[0, 0], &positions[0]
    a.tokens, a.dim = x.shape[0], x.shape[1]
    tasks = (a.tokens + TOKEN_BLOCK - 1) // TOKEN_BLOCK
    with nogil:
        pool_run(add_block, &a, tasks)


cdef void add_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef Addition *a = <Addition *>argument
    cdef ptrdiff_t t, j
    cdef float *x
    cdef const float *row
    for t in range(task * TOKEN_BLOCK, min((task + 1) * TOKEN_BLOCK, a.tokens)):
        x, row = a.x + t * a.dim, a.table + a.positions[t] * a.dim
        for j in range(a.dim):
            x[j] += row[j]

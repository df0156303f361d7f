"""Attention in Cython: tiles of queries meet tiles of keys in a thread's scratch. Shapes and meaning: reference.py.

With pairs, the small products multiply pairs of bfloat16: what they read is rounded as it is packed, the weights and their
gradients as they are made; all else is float32. sight.pxi: which keys a query sees; rows.h: rows of scores; forward.pxi:
online softmax over tiles of keys; backward.pxi: d_k, d_v by the task that owns the keys. Every number has one writer and one
order of sums, whatever the threads.
Source of the tiles: Dao et al. 2022 (arXiv 2205.14135).
"""

include "vec.pxi"

from libc.math cimport INFINITY, logf
from libc.string cimport memset

from fastmixer.kernels.philox import keep_scale, keep_threshold

cdef extern from "attention/rows.h" nogil:
    enum: KEY_TILE
    vf softmax_row(float *scores, ptrdiff_t first, ptrdiff_t end, float *largest, float *shrink, int pairs, const float *kept)
    void row_gradients(float *weights, float *d_weights, ptrdiff_t first, ptrdiff_t end, float shift, float delta, const float *kept)
    void row_gradients_in_pairs(const float *weights, const float *d_weights, ptrdiff_t rows, ptrdiff_t first, ptrdiff_t end,
                                const float *shifts, const float *deltas, const float *kept, float *d_scores, float *couples,
                                float *d_couples)

cdef extern from "attention/tile.h" nogil:
    enum: VALUE_ROWS
    enum: TILE_STEPS
    enum: BACKWARD_TILES
    enum: MOST_ROWS
    vf vf_only(vf x, ptrdiff_t first, ptrdiff_t end)
    void multiply_floats(const float *a, ptrdiff_t a_row, ptrdiff_t a_step, ptrdiff_t rows, const float *b, ptrdiff_t b_stride,
                         float *c, ptrdiff_t c_stride, ptrdiff_t columns, ptrdiff_t depth, int add)
    void multiply_pairs(const float *a, ptrdiff_t a_row, ptrdiff_t a_step, ptrdiff_t rows, const float *b, ptrdiff_t b_stride,
                        float *c, ptrdiff_t c_stride, ptrdiff_t columns, ptrdiff_t depth, int add)
    void pack_rows(const float *x, ptrdiff_t in_stride, ptrdiff_t count, ptrdiff_t width, float factor, float *out,
                   ptrdiff_t out_stride)
    void pack_transposed(const float *x, ptrdiff_t in_stride, ptrdiff_t count, ptrdiff_t width, float *out,
                         ptrdiff_t out_stride)
    void pack_neighbours(const float *x, ptrdiff_t in_stride, ptrdiff_t count, ptrdiff_t width, float factor, float *out,
                         ptrdiff_t out_stride)
    void pack_couples(const float *x, ptrdiff_t in_stride, ptrdiff_t count, ptrdiff_t width, float factor, float *out,
                      ptrdiff_t out_stride)
    void copy_row(float *out, const float *row, ptrdiff_t count)
    void ask_for_rows(const float *rows, ptrdiff_t stride, ptrdiff_t count, ptrdiff_t width)

cdef extern from "amx.h" nogil:
    enum: AMX
    enum: AMX_WORDS
    void tiles_begin()
    void tiles_end()
    void wide_tiles_of_pairs(ptrdiff_t rows, ptrdiff_t columns, const float *a, ptrdiff_t a_row, const float *b, ptrdiff_t b_row,
                             ptrdiff_t depth, float *out, ptrdiff_t out_row, bint add)

cdef extern from "parts.h" nogil:
    enum: PARTS_TILE
    enum: PARTS_STEP
    enum: PARTS_FLOATS
    bint parts_of_a(bint along, const float *x, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t width, float *out)
    bint parts_of_b(bint along, const float *x, ptrdiff_t row, ptrdiff_t depth, ptrdiff_t width, float *out)
    void parts_of_rows(ptrdiff_t rows, ptrdiff_t columns, const float *a, ptrdiff_t a_tile, const float *b, ptrdiff_t b_tile,
                       ptrdiff_t steps, float *out, ptrdiff_t out_row, bint add)

cdef extern from "bfloat16.h" nogil:
    vf bf16_nearest(vf x)
    float bf16_of_pair(float pair, int second)

cdef extern from "philox.h" nogil:
    void philox_batch(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t *random)

include "attention/sight.pxi"
include "attention/products.pxi"
include "attention/forward.pxi"
include "attention/backward.pxi"


def attention_forward(q, k, v, spans, scale, before, after, bias, dropout, seed, out, log_sum_exp):
    forward(q, k, v, spans, scale, before, after, bias, dropout, seed, out, log_sum_exp, False)


def attention_forward_bfloat16(q, k, v, spans, scale, before, after, bias, dropout, seed, out, log_sum_exp):
    forward(q, k, v, spans, scale, before, after, bias, dropout, seed, out, log_sum_exp, True)


def attention_backward(d_out, q, k, v, out, log_sum_exp, spans, scale, before, after, bias, dropout, seed, delta, d_q, d_k, d_v, d_bias):
    backward(d_out, q, k, v, out, log_sum_exp, spans, scale, before, after, bias, dropout, seed, delta, d_q, d_k, d_v, d_bias, False)


def attention_backward_bfloat16(d_out, q, k, v, out, log_sum_exp, spans, scale, before, after, bias, dropout, seed, delta,
                                d_q, d_k, d_v, d_bias):
    backward(d_out, q, k, v, out, log_sum_exp, spans, scale, before, after, bias, dropout, seed, delta, d_q, d_k, d_v, d_bias, True)


cdef int forward(const float[:, :, :, :] q, const float[:, :, :, :] k, const float[:, :, :, :] v, const int64_t[:, ::1] spans,
                 double scale, ptrdiff_t before, ptrdiff_t after, const float[:, ::1] bias, double dropout, uint64_t seed,
                 float[:, :, :, :] out, float[:, :, ::1] log_sum_exp, bint pairs) except -1:
    cdef Attention op
    memset(&op, 0, sizeof(op))
    set_options(&op, q, k, spans, scale, before, after, bias, dropout, seed, pairs)
    op.q, op.k, op.v, op.out = view_of(q), view_of(k), view_of(v), view_of(out)
    op.log_sum_exp = &log_sum_exp[0, 0, 0]
    op.query_tiles = tiles_of_longest(spans, 1, FORWARD_QUERIES)
    with nogil:
        pool_run(forward_tile, &op, op.sequences * op.heads * op.query_tiles)


cdef int backward(const float[:, :, :, :] d_out, const float[:, :, :, :] q, const float[:, :, :, :] k,
                  const float[:, :, :, :] v, const float[:, :, :, :] out, const float[:, :, ::1] log_sum_exp,
                  const int64_t[:, ::1] spans, double scale, ptrdiff_t before, ptrdiff_t after, const float[:, ::1] bias,
                  double dropout, uint64_t seed, float[:, :, ::1] delta, float[:, :, :, :] d_q, float[:, :, :, :] d_k,
                  float[:, :, :, :] d_v, float[:, ::1] d_bias, bint pairs) except -1:
    cdef Attention op
    cdef ptrdiff_t key_tiles, part_tiles, owners = spans.shape[0] * k.shape[1], d_q_floats = 0
    if q.shape[0] == 0 or q.shape[2] == 0 or k.shape[2] == 0 or owners == 0:
        return 0  # nothing looked at anything: the face has zeroed what there is
    memset(&op, 0, sizeof(op))
    set_options(&op, q, k, spans, scale, before, after, bias, dropout, seed, pairs)
    op.q, op.k, op.v, op.out, op.d_out = view_of(q), view_of(k), view_of(v), view_of(out), view_of(d_out)
    op.d_q, op.d_k, op.d_v = view_of(d_q), view_of(d_k), view_of(d_v)
    op.log_sum_exp, op.delta = <float *>&log_sum_exp[0, 0, 0], &delta[0, 0, 0]
    op.query_tiles, key_tiles = tiles_of_longest(spans, 1, QUERY_TILE), max(1, tiles_of_longest(spans, 3, KEY_TILE))
    op.parts = min(key_tiles, (BACKWARD_TASKS + owners - 1) // owners)
    part_tiles = (key_tiles + op.parts - 1) // op.parts
    op.parts, op.part_keys = (key_tiles + part_tiles - 1) // part_tiles, part_tiles * KEY_TILE
    if op.parts > 1:
        d_q_floats = op.parts * op.batch * op.heads * op.queries * op.dim
    if op.bias != NULL:
        op.d_bias = &d_bias[0, 0]
    with nogil:
        if op.parts > 1 or op.d_bias != NULL:
            op.d_q_parts = <float *>pool_shared(
                sizeof(float) * (d_q_floats + op.parts * op.sequences * op.heads * op.distances)
            )
            op.d_bias_parts = op.d_q_parts + d_q_floats
        pool_run(set_delta, &op, op.sequences * op.heads)
        pool_run(backward_part, &op, op.parts * owners)
        if op.parts > 1:
            pool_run(add_parts, &op, op.sequences * op.heads * op.query_tiles)
        if op.d_bias != NULL:
            pool_run(add_bias_parts, &op, op.heads)


cdef ptrdiff_t tiles_of_longest(const int64_t[:, ::1] spans, ptrdiff_t start, ptrdiff_t tile) except -1:
    """Tiles of the longest sequence; its rows stand in columns start, start + 1 of spans."""
    cdef ptrdiff_t sequence, longest = 0
    for sequence in range(spans.shape[0]):
        longest = max(longest, spans[sequence, start + 1] - spans[sequence, start])
    return (longest + tile - 1) // tile

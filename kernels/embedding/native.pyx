"""Embedding in Cython: blocks of rows are tasks, a row has one writer. Shapes and meaning: reference.py.

The rows of 3 KB that are copied and added are the whole work, so the loops are plain and memory is the limit.
"""

include "vec.pxi"

from libc.math cimport sqrtf
from libc.string cimport memcpy, memset

cdef enum:
    ROW_BLOCK = 64  # rows a task: some 200 KB at GPT-2's width
    DIGIT_BITS = 11
    DIGIT_VALUES = 1 << DIGIT_BITS
    AHEAD = 4  # rows whose first lines are asked for before they are needed


cdef extern from *:
    """
    #define prefetch_row(p) __builtin_prefetch((p), 0, 2)
    """
    void prefetch_row(const void *p) nogil


cdef struct Rows:
    const float *source  # table, d_out, values or d_rows
    const int64_t *rows  # ids or rows
    const int64_t *order
    const int64_t *starts
    float *out  # out, d_rows, target or table
    float *m
    float *v
    float *accumulator
    ptrdiff_t count, dim, positions
    float rate, epsilon, beta1, beta2, correction, keep


cdef inline ptrdiff_t block_stop(const Rows *r, ptrdiff_t task) noexcept nogil:
    return min((task + 1) * ROW_BLOCK, r.count)


cdef inline int run_rows(pool_task block, Rows *r) except -1 nogil:
    return pool_run(block, r, (r.count + ROW_BLOCK - 1) // ROW_BLOCK)


cdef inline void add_row(float *target, const float *values, ptrdiff_t dim) noexcept nogil:
    cdef ptrdiff_t j
    for j in range(dim):
        target[j] += values[j]


def gather(const float[:, ::1] table, const int64_t[::1] ids, float[:, ::1] out):
    cdef Rows r
    r.source, r.rows, r.out = &table[0, 0], &ids[0], &out[0, 0]
    r.count, r.dim = ids.shape[0], table.shape[1]
    with nogil:
        run_rows(gather_block, &r)


cdef void gather_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef Rows *r = <Rows *>argument
    cdef ptrdiff_t i, stop = block_stop(r, task)
    for i in range(task * ROW_BLOCK, stop):
        if i + AHEAD < stop:
            prefetch_row(r.source + r.rows[i + AHEAD] * r.dim)
        memcpy(r.out + i * r.dim, r.source + r.rows[i] * r.dim, sizeof(float) * r.dim)


def group_by_row(const int64_t[::1] ids, int64_t num_rows, int64_t[::1] order, int64_t[::1] starts, int64_t[::1] rows):
    cdef ptrdiff_t n = ids.shape[0], i
    cdef int64_t touched = 0
    with nogil:
        if n > 0:
            sort_by_row(&ids[0], n, num_rows, &order[0])
        # a row begins where the id changes
        for i in range(n):
            if i == 0 or ids[order[i]] != ids[order[i - 1]]:
                rows[touched] = ids[order[i]]
                starts[touched] = i
                touched += 1
        starts[touched] = n
    return touched


cdef void sort_by_row(const int64_t *ids, ptrdiff_t n, int64_t num_rows, int64_t *order) noexcept nogil:
    """A stable counting sort in digits of 11 bits, least significant first: two passes for 50,257 rows."""
    cdef int64_t *other = <int64_t *>pool_scratch(sizeof(int64_t) * n)
    cdef int64_t *source = order
    cdef int64_t *target = other
    cdef int64_t counts[DIGIT_VALUES + 1]
    cdef int64_t value, shift = 0
    cdef ptrdiff_t i
    for i in range(n):
        order[i] = i
    while num_rows >> shift > 0:
        memset(counts, 0, sizeof(counts))
        for i in range(n):
            counts[((ids[i] >> shift) & (DIGIT_VALUES - 1)) + 1] += 1
        for i in range(DIGIT_VALUES):
            counts[i + 1] += counts[i]
        for i in range(n):
            value = (ids[source[i]] >> shift) & (DIGIT_VALUES - 1)
            target[counts[value]] = source[i]
            counts[value] += 1
        source, target = target, source
        shift += DIGIT_BITS
    if source != order:
        memcpy(order, source, sizeof(int64_t) * n)


def scatter_gradient(const float[:, ::1] d_out, const int64_t[::1] order, const int64_t[::1] starts, float[:, ::1] d_rows):
    cdef Rows r
    r.source, r.order, r.starts, r.out = &d_out[0, 0], &order[0], &starts[0], &d_rows[0, 0]
    r.count, r.dim, r.positions = d_rows.shape[0], d_rows.shape[1], order.shape[0]
    with nogil:
        run_rows(scatter_block, &r)


cdef void scatter_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef Rows *r = <Rows *>argument
    cdef ptrdiff_t row, j
    cdef ptrdiff_t whole = r.dim // VF_WIDTH * VF_WIDTH
    cdef const float *next
    cdef float *out
    for row in range(task * ROW_BLOCK, block_stop(r, task)):
        out = r.out + row * r.dim
        # the row that the next one begins with is asked for line by line, while this one is written past the caches
        next = r.source + r.order[min(r.starts[row + 1], r.positions - 1)] * r.dim
        j = 0
        while j < whole:
            prefetch_row(next + j)
            vf_stream(out + j, sum_of_rows(r, row, j, VF_WIDTH))
            j += VF_WIDTH
        if j < r.dim:
            vf_store_first(out + j, sum_of_rows(r, row, j, r.dim - j), r.dim - j)


cdef inline vf sum_of_rows(const Rows *r, ptrdiff_t row, ptrdiff_t column, ptrdiff_t lanes) noexcept nogil:
    """A vector of the sum of a row's occurrences, in their order."""
    cdef int64_t i
    cdef vf total = load_part(r.source + r.order[r.starts[row]] * r.dim + column, lanes)
    for i in range(r.starts[row] + 1, r.starts[row + 1]):
        total = vf_add(total, load_part(r.source + r.order[i] * r.dim + column, lanes))
    return total


def add_rows(float[:, ::1] target, const int64_t[::1] rows, const float[:, ::1] values):
    cdef Rows r
    r.source, r.rows, r.out = &values[0, 0], &rows[0], &target[0, 0]
    r.count, r.dim = rows.shape[0], target.shape[1]
    with nogil:
        run_rows(add_block, &r)


cdef void add_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef Rows *r = <Rows *>argument
    cdef ptrdiff_t i
    for i in range(task * ROW_BLOCK, block_stop(r, task)):
        add_row(r.out + r.rows[i] * r.dim, r.source + i * r.dim, r.dim)


def sgd_rows(float[:, ::1] table, const int64_t[::1] rows, const float[:, ::1] d_rows, double learning_rate):
    cdef Rows r
    r.source, r.rows, r.out = &d_rows[0, 0], &rows[0], &table[0, 0]
    r.count, r.dim, r.rate = rows.shape[0], table.shape[1], learning_rate
    with nogil:
        run_rows(sgd_block, &r)


cdef void sgd_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef Rows *r = <Rows *>argument
    cdef ptrdiff_t i, j
    cdef float *p
    cdef const float *d
    for i in range(task * ROW_BLOCK, block_stop(r, task)):
        p, d = r.out + r.rows[i] * r.dim, r.source + i * r.dim
        for j in range(r.dim):
            p[j] -= r.rate * d[j]


def adagrad_rows(float[:, ::1] table, float[::1] accumulator, const int64_t[::1] rows, const float[:, ::1] d_rows,
                 double learning_rate, double epsilon):
    cdef Rows r
    r.source, r.rows, r.out, r.accumulator = &d_rows[0, 0], &rows[0], &table[0, 0], &accumulator[0]
    r.count, r.dim, r.rate, r.epsilon = rows.shape[0], table.shape[1], learning_rate, epsilon
    with nogil:
        run_rows(adagrad_block, &r)


cdef void adagrad_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef Rows *r = <Rows *>argument
    cdef ptrdiff_t i, j
    cdef float *p
    cdef const float *d
    cdef vf squares
    cdef float factor
    for i in range(task * ROW_BLOCK, block_stop(r, task)):
        p, d = r.out + r.rows[i] * r.dim, r.source + i * r.dim
        squares = vf_zero()
        j = 0
        while j < r.dim:
            squares = vf_fma(
                vf_load_first(d + j, min(VF_WIDTH, r.dim - j)), vf_load_first(d + j, min(VF_WIDTH, r.dim - j)), squares
            )
            j += VF_WIDTH
        r.accumulator[r.rows[i]] += vf_sum(squares) / r.dim
        factor = r.rate / (sqrtf(r.accumulator[r.rows[i]]) + r.epsilon)
        for j in range(r.dim):
            p[j] -= factor * d[j]


def adamw_rows(float[:, ::1] table, float[:, ::1] m, float[:, ::1] v, const int64_t[::1] rows, const float[:, ::1] d_rows,
               double learning_rate, double beta1, double beta2, double epsilon, double weight_decay, int64_t step):
    cdef Rows r
    r.source, r.rows, r.out, r.m, r.v = &d_rows[0, 0], &rows[0], &table[0, 0], &m[0, 0], &v[0, 0]
    r.count, r.dim, r.epsilon, r.beta1, r.beta2 = rows.shape[0], table.shape[1], epsilon, beta1, beta2
    r.rate = learning_rate / (1 - beta1 ** step)
    r.correction = 1 / (1 - beta2 ** step)
    r.keep = 1 - learning_rate * weight_decay
    with nogil:
        run_rows(adamw_block, &r)


cdef void adamw_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef Rows *r = <Rows *>argument
    cdef ptrdiff_t i, j
    cdef float *p
    cdef float *m
    cdef float *v
    cdef const float *d
    for i in range(task * ROW_BLOCK, block_stop(r, task)):
        p, m, v = r.out + r.rows[i] * r.dim, r.m + r.rows[i] * r.dim, r.v + r.rows[i] * r.dim
        d = r.source + i * r.dim
        for j in range(r.dim):
            m[j] = r.beta1 * m[j] + (1 - r.beta1) * d[j]
            v[j] = r.beta2 * v[j] + (1 - r.beta2) * d[j] * d[j]
            p[j] = p[j] * r.keep - r.rate * m[j] / (sqrtf(v[j] * r.correction) + r.epsilon)

"""Output head and softmax cross-entropy over the packed GEMM: a chunk of tokens at a time, logits turned into their
gradient in place.

Rows are independent: a block of rows is one task, so the number of threads changes nothing.
"""

include "vec.pxi"
include "matmul/gemm.pxi"

from libc.math cimport INFINITY, log
from libc.stdint cimport uint16_t

cdef extern from "bfloat16.h" nogil:
    uint16_t bf16_half(float x)

cdef enum:
    TASK_FLOATS = 16384  # logits a task: small vocabularies take many rows at a time
    SUM_BLOCK = 1024  # columns summed in float32 before they join the row's float64 total
    VOCAB_BLOCK = 4096  # d_logits [chunk, this] stays in cache while every panel of d_x reads it


# ---- one row: vectors first, then the last few columns ----

cdef float row_largest(const float *row, ptrdiff_t vocab) noexcept nogil:
    cdef vf a = vf_set(-INFINITY), b = a, c = a, d = a
    cdef float largest
    cdef ptrdiff_t i = 0
    while i + 4 * VF_WIDTH <= vocab:
        a = vf_max(a, vf_load(row + i))
        b = vf_max(b, vf_load(row + i + VF_WIDTH))
        c = vf_max(c, vf_load(row + i + 2 * VF_WIDTH))
        d = vf_max(d, vf_load(row + i + 3 * VF_WIDTH))
        i += 4 * VF_WIDTH
    while i + VF_WIDTH <= vocab:
        a = vf_max(a, vf_load(row + i))
        i += VF_WIDTH
    largest = vf_largest(vf_max(vf_max(a, b), vf_max(c, d)))
    while i < vocab:
        largest = row[i] if row[i] > largest else largest
        i += 1
    return largest


cdef double row_exponentials(const float *row, ptrdiff_t vocab, float largest, float *out) noexcept nogil:
    """out = exp(row - largest); returns its sum. out may be row itself, or NULL."""
    cdef vf shift = vf_set(largest), exponential, partial
    cdef double total = 0
    cdef ptrdiff_t stop = 0, i = 0, lane
    cdef float last[VF_WIDTH]
    while stop < vocab:
        stop = min(stop + SUM_BLOCK, vocab)
        partial = vf_zero()
        while i + VF_WIDTH <= stop:
            exponential = vf_exp(vf_sub(vf_load(row + i), shift))
            if out != NULL:
                vf_store(out + i, exponential)
            partial = vf_add(partial, exponential)
            i += VF_WIDTH
        total += vf_sum(partial)
        if i < stop:
            exponential = vf_exp(vf_sub(vf_load_first(row + i, stop - i), shift))
            if out != NULL:
                vf_store_first(out + i, exponential, stop - i)
            vf_store(last, exponential)
            for lane in range(stop - i):
                total += last[lane]
            i = stop
    return total


cdef void row_scale(float *row, ptrdiff_t vocab, float factor) noexcept nogil:
    cdef vf factors = vf_set(factor)
    cdef ptrdiff_t i = 0
    while i + VF_WIDTH <= vocab:
        vf_store(row + i, vf_mul(vf_load(row + i), factors))
        i += VF_WIDTH
    while i < vocab:
        row[i] *= factor
        i += 1


# ---- a block of rows ----

cdef struct Rows:
    const float *logits
    const int64_t *targets
    float *losses
    float *out  # d_logits or the softmax; NULL if only losses are wanted
    ptrdiff_t rows, vocab, task_rows
    int64_t ignore_index
    double scale


cdef void loss_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef Rows *r = <Rows *>argument
    cdef ptrdiff_t row
    cdef int64_t target
    cdef const float *logits
    cdef float *d_logits
    cdef float largest, target_shifted
    cdef double total
    for row in range(task * r.task_rows, min((task + 1) * r.task_rows, r.rows)):
        target = r.targets[row]
        logits = r.logits + row * r.vocab
        d_logits = r.out + row * r.vocab if r.out != NULL else NULL
        if target == r.ignore_index:
            r.losses[row] = 0
            if d_logits != NULL:
                memset(d_logits, 0, r.vocab * sizeof(float))
            continue
        # the row's maximum is taken away: exp neither overflows nor vanishes, and the loss keeps its digits
        largest = row_largest(logits, r.vocab)
        target_shifted = logits[target] - largest
        total = row_exponentials(logits, r.vocab, largest, d_logits)
        r.losses[row] = <float>(log(total) - target_shifted)
        if d_logits != NULL:
            row_scale(d_logits, r.vocab, <float>(r.scale / total))
            d_logits[target] -= <float>r.scale


# ---- two rows at a time, whose gradients products in bfloat16 read as pairs: logits stay what they are ----

cdef struct RowPairs:
    Rows rows
    float *along  # NULL, or d_logits in pairs along its rows: [rows, along_row], the first halved(vocab) of each
    float *across  # NULL, or over its rows: [halved(rows), across_row], the first vocab of each
    ptrdiff_t along_row, across_row  # whole cache lines


cdef struct RowGradient:
    const float *logits  # NULL: no gradient
    vf shift, factor  # d_logits = e^(logits - shift) * factor, less scale at the target
    int64_t target


cdef void loss_pairs_block(void *argument, ptrdiff_t task) noexcept nogil:
    """Exponentials are found twice, and no float of d_logits goes to memory: 7 % of the head's time for 1024 tokens."""
    cdef RowPairs *p = <RowPairs *>argument
    cdef Rows *r = &p.rows
    cdef RowGradient first, second
    cdef ptrdiff_t row = task * 2 * r.task_rows
    while row < min((task + 1) * 2 * r.task_rows, r.rows):
        first = loss_of_row(r, row)
        second = loss_of_row(r, row + 1)
        store_gradients(p, row, &first, &second)
        patch_target(p, row, &first)
        patch_target(p, row + 1, &second)
        row += 2


cdef RowGradient loss_of_row(const Rows *r, ptrdiff_t row) noexcept nogil:
    cdef RowGradient g
    cdef const float *logits = r.logits + row * r.vocab
    cdef float largest
    cdef double total
    g.logits, g.shift, g.factor, g.target = NULL, vf_zero(), vf_zero(), r.ignore_index
    if row >= r.rows:
        return g
    g.target = r.targets[row]
    if g.target == r.ignore_index:
        r.losses[row] = 0
        return g
    largest = row_largest(logits, r.vocab)
    total = row_exponentials(logits, r.vocab, largest, NULL)
    r.losses[row] = <float>(log(total) - (logits[g.target] - largest))
    g.logits, g.shift, g.factor = logits, vf_set(largest), vf_set(<float>(r.scale / total))
    return g


cdef inline vf gradient_at(const RowGradient *g, ptrdiff_t column, ptrdiff_t lanes) noexcept nogil:
    """d_logits of so many columns (of VF_WIDTH, if there are more), but for the target's."""
    if g.logits == NULL or lanes <= 0:
        return vf_zero()
    return vf_mul(vf_exp(vf_sub(load_part(g.logits + column, lanes), g.shift)), g.factor)


cdef void store_gradients(const RowPairs *p, ptrdiff_t row, const RowGradient *first, const RowGradient *second) noexcept nogil:
    cdef ptrdiff_t vocab = p.rows.vocab, left
    cdef float *along = p.along + row * p.along_row if p.along != NULL else NULL
    cdef float *along_next = along + p.along_row if along != NULL and row + 1 < p.rows.rows else NULL
    cdef float *across = p.across + row // 2 * p.across_row if p.across != NULL else NULL
    cdef ptrdiff_t i
    cdef vf a, b, c, d
    for i from 0 <= i < vocab by 2 * VF_WIDTH:
        left = vocab - i
        a, b = gradient_at(first, i, left), gradient_at(first, i + VF_WIDTH, left - VF_WIDTH)
        c, d = gradient_at(second, i, left), gradient_at(second, i + VF_WIDTH, left - VF_WIDTH)
        if along != NULL:
            store_words(along + i // 2, bf16_all_neighbours(a, b), halved(left))
        if along_next != NULL:
            store_words(along_next + i // 2, bf16_all_neighbours(c, d), halved(left))
        if across != NULL:
            store_words(across + i, bf16_all_couples(a, c), left)
            if left > VF_WIDTH:
                store_words(across + i + VF_WIDTH, bf16_all_couples(b, d), left - VF_WIDTH)


cdef inline void store_words(float *out, vf words, ptrdiff_t lanes) noexcept nogil:
    """Past the caches: the products come when all rows are done."""
    if lanes >= VF_WIDTH:
        vf_stream(out, words)
    else:
        vf_store_first(out, words, lanes)


cdef void patch_target(const RowPairs *p, ptrdiff_t row, const RowGradient *g) noexcept nogil:
    cdef float lanes[VF_WIDTH]
    cdef uint16_t half
    if g.logits == NULL:
        return
    vf_store(lanes, vf_mul(vf_exp(vf_sub(vf_set(g.logits[g.target]), g.shift)), g.factor))
    half = bf16_half(lanes[0] - <float>p.rows.scale)
    if p.along != NULL:
        (<uint16_t *>(p.along + row * p.along_row))[g.target] = half
    if p.across != NULL:
        (<uint16_t *>(p.across + row // 2 * p.across_row))[2 * g.target + row % 2] = half


cdef void softmax_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef Rows *r = <Rows *>argument
    cdef ptrdiff_t row
    cdef const float *logits
    cdef float *out
    cdef double total
    for row in range(task * r.task_rows, min((task + 1) * r.task_rows, r.rows)):
        logits, out = r.logits + row * r.vocab, r.out + row * r.vocab
        total = row_exponentials(logits, r.vocab, row_largest(logits, r.vocab), out)
        row_scale(out, r.vocab, <float>(1.0 / total))


cdef int run_rows(pool_task block, Rows *rows) except -1 nogil:
    rows.task_rows = max(1, TASK_FLOATS // max(1, rows.vocab))
    return pool_run(block, rows, (rows.rows + rows.task_rows - 1) // rows.task_rows)


# ---- the functions ----

def head_loss(
    const float[:, ::1] x, const float[:, ::1] weight, const int64_t[::1] targets, int64_t ignore_index, double scale,
    float[:, ::1] logits, float[::1] losses, float[:, ::1] d_x, float[:, ::1] d_weight, bint accumulate=True,
):
    """The loss of every token against its target, and the gradients of scale * sum(losses); shapes: reference.py."""
    cdef ptrdiff_t tokens = x.shape[0], dim = x.shape[1], vocab = weight.shape[0], chunk = logits.shape[0]
    cdef ptrdiff_t start = 0, count, block, depth
    cdef const float *w
    cdef const float *x_chunk
    cdef float *d_logits
    cdef float *d_x_chunk
    cdef GemmTask g
    cdef Rows rows
    if tokens == 0 or vocab == 0:
        return
    w, d_logits = &weight[0, 0], &logits[0, 0]
    rows.vocab, rows.logits, rows.ignore_index, rows.scale = vocab, d_logits, ignore_index, scale
    rows.out = NULL if d_x is None and d_weight is None else d_logits
    with nogil:
        while start < tokens:
            count = min(chunk, tokens - start)
            x_chunk = &x[start, 0]
            # logits = x W^T, for these tokens only
            g = gemm_task(x_chunk, dim, 1, w, 1, dim, d_logits, count, vocab, dim, False)
            gemm(&g)
            # losses; d_logits takes the place of the logits
            rows.rows, rows.targets, rows.losses = count, &targets[start], &losses[start]
            run_rows(loss_block, &rows)
            # d_x = d_logits W, by blocks of the vocabulary
            if d_x is not None:
                block = 0
                while block < vocab:
                    depth = min(VOCAB_BLOCK, vocab - block)
                    g = gemm_task(
                        d_logits + block, vocab, 1, w + block * dim, dim, 1, &d_x[start, 0], count, dim, depth,
                        block > 0,
                    )
                    gemm(&g)
                    block += depth
            # d_W = (d_W +) d_logits^T x
            if d_weight is not None:
                g = gemm_task(d_logits, 1, vocab, x_chunk, dim, 1, &d_weight[0, 0], vocab, dim, count, accumulate or start > 0)
                gemm(&g)
            start += count


def head_loss_bfloat16(
    const float[:, ::1] x, const uint32_t[:, :, ::1] over_columns, const uint32_t[:, :, ::1] over_rows,
    const int64_t[::1] targets, int64_t ignore_index, double scale, float[:, ::1] logits, float[::1] losses, float[:, ::1] d_x,
    float[:, ::1] d_weight, bint accumulate=True,
):
    """As head_loss with products in bfloat16, over the weight in both layouts of panels; shapes: reference.py."""
    cdef ptrdiff_t tokens = x.shape[0], dim = x.shape[1], chunk = logits.shape[0], vocab = logits.shape[1]
    cdef ptrdiff_t half_dim = halved(dim), half_vocab = halved(vocab), start = 0, count, block, depth
    cdef ptrdiff_t x_words = whole_lines(chunk * half_dim), x_panels = panel_words(chunk, dim)
    cdef const float *logits_weight
    cdef const float *d_x_weight
    cdef float *scratch
    cdef PairsTask x_pairs
    cdef GemmTask g
    cdef RowPairs pairs
    if tokens == 0 or vocab == 0:
        return
    logits_weight, d_x_weight = <const float *>&over_columns[0, 0, 0], <const float *>&over_rows[0, 0, 0]
    pairs.rows.vocab, pairs.rows.logits, pairs.rows.ignore_index, pairs.rows.scale = vocab, &logits[0, 0], ignore_index, scale
    pairs.rows.out = NULL
    with nogil:
        pairs.along_row, pairs.across_row = whole_lines(half_vocab), whole_lines(vocab)
        scratch = <float *>pool_shared(
            sizeof(float) * (x_words + x_panels + chunk * pairs.along_row + halved(chunk) * pairs.across_row)
        )
        while start < tokens:
            count = min(chunk, tokens - start)
            x_pairs = pairs_task(&x[start, 0], dim, count, dim)
            x_pairs.along = scratch
            if d_weight is not None:
                x_pairs.over_rows = x_pairs.along + x_words
            make_pairs(&x_pairs)
            # logits = x W^T, for these tokens only
            g = gemm_task(x_pairs.along, half_dim, 1, NULL, 1, 1, &logits[0, 0], count, vocab, half_dim, False)
            g.pairs = True
            take_panels(&g, logits_weight, half_dim * PANEL_COLUMNS)
            gemm(&g)
            # losses and d_logits
            pairs.along = scratch + x_words + x_panels if d_x is not None else NULL
            pairs.across = scratch + x_words + x_panels + chunk * pairs.along_row if d_weight is not None else NULL
            pairs.rows.rows, pairs.rows.targets, pairs.rows.losses = count, &targets[start], &losses[start]
            if pairs.across == NULL and pairs.along == NULL:
                run_rows(loss_block, &pairs.rows)
            else:
                pairs.rows.task_rows = max(1, TASK_FLOATS // max(1, vocab))
                pool_run(loss_pairs_block, &pairs, (count + 2 * pairs.rows.task_rows - 1) // (2 * pairs.rows.task_rows))
            # d_x = d_logits W, by blocks of the vocabulary
            if d_x is not None:
                block = 0
                while block < half_vocab:
                    depth = min(VOCAB_BLOCK, half_vocab - block)
                    g = gemm_task(pairs.along + block, pairs.along_row, 1, NULL, 1, 1, &d_x[start, 0], count, dim, depth, block > 0)
                    g.pairs = True
                    take_panels(&g, d_x_weight + block * PANEL_COLUMNS, half_vocab * PANEL_COLUMNS)
                    gemm(&g)
                    block += depth
            # d_W = (d_W +) d_logits^T x
            if d_weight is not None:
                g = gemm_task(pairs.across, 1, pairs.across_row, NULL, 1, 1, &d_weight[0, 0], vocab, dim, halved(count), accumulate or start > 0)
                g.pairs = True
                take_panels(&g, x_pairs.over_rows, halved(count) * PANEL_COLUMNS)
                gemm(&g)
            start += count


def cross_entropy_rows(
    const float[:, ::1] logits, const int64_t[::1] targets, int64_t ignore_index, double scale, float[::1] losses,
    float[:, ::1] d_logits,
):
    """The loss of every row, and d_logits = scale * (softmax(logits) - onehot(target)); shapes as in reference.py."""
    cdef Rows rows
    rows.rows, rows.vocab = logits.shape[0], logits.shape[1]
    if rows.rows == 0:
        return
    rows.logits, rows.targets, rows.losses = &logits[0, 0], &targets[0], &losses[0]
    rows.out = &d_logits[0, 0] if d_logits is not None else NULL
    rows.ignore_index, rows.scale = ignore_index, scale
    with nogil:
        run_rows(loss_block, &rows)


def softmax_rows(const float[:, ::1] logits, float[:, ::1] out):
    """out = softmax of every row of logits: [rows, vocab]; out may be logits itself."""
    cdef Rows rows
    rows.rows, rows.vocab = logits.shape[0], logits.shape[1]
    if rows.rows == 0 or rows.vocab == 0:
        return
    rows.logits, rows.out = &logits[0, 0], &out[0, 0]
    with nogil:
        run_rows(softmax_block, &rows)

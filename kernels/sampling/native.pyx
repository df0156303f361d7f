"""Drawing the next token from logits. Instead of sorting, top-k and top-p find the value at which enough tokens (or
enough probability) have been passed, in three histograms over the bits of the numbers. Before that the many tokens that
cannot be among them are dropped, by a bound and the largest logit of each block.

Rows are independent: a row is a task.
"""

include "vec.pxi"

from libc.math cimport INFINITY
from libc.string cimport memcpy, memset

cdef enum:
    BINS = 2048
    PEAK_BLOCK = 64  # values that are passed over at once where the largest of them is not kept
    DRAW_BLOCK = 1024  # weights that are summed before the draw looks into them one by one
    DRAW_LANES = 8  # independent sums in a block: a multiple of nothing the ISA knows, so all levels draw alike


# ---- selection without sorting ----

cdef inline uint32_t rank_bits(float value) noexcept nogil:
    """An integer that orders as the float32 value does; -0 and 0 are equal."""
    cdef uint32_t bits
    memcpy(&bits, &value, sizeof(bits))
    if bits == 0x80000000u:
        bits = 0
    # negative numbers: all bits flipped; others: the sign bit set. No branch: signs of logits cannot be guessed
    return bits ^ (<uint32_t>(<int32_t>bits >> 31) | 0x80000000u)


cdef inline float ranked_value(uint64_t bits) noexcept nogil:
    """The value whose rank_bits are these. Beyond the infinities it is NaN, than which nothing is larger or smaller."""
    cdef uint32_t plain = <uint32_t>bits
    cdef float value
    plain ^= 0x80000000u if plain >> 31 else 0xFFFFFFFFu
    memcpy(&value, &plain, sizeof(value))
    return value


cdef float last_kept(const float *values, ptrdiff_t count, double needed, bint by_weight, double *passed) noexcept nogil:
    """The least of the fewest largest values that reach `needed` (their number, or their sum if by_weight); passed: what those
    above it bring."""
    cdef double histogram[BINS]
    cdef uint64_t threshold = 0, bits  # the leading bits of the last value kept
    cdef float lowest, highest
    cdef int step, shift, width, last
    cdef ptrdiff_t i
    passed[0] = 0
    # 11, 11 and 10 bits more of the threshold at a time
    for step in range(3):
        shift = 21 if step == 0 else 10 if step == 1 else 0
        width = 11 if step < 2 else 10
        lowest = ranked_value(threshold << (shift + width))
        highest = ranked_value(((threshold + 1) << (shift + width)) - 1)
        memset(histogram, 0, sizeof(histogram))
        for i in range(count):
            if values[i] < lowest or values[i] > highest:
                continue  # the quick way past most of them
            bits = rank_bits(values[i]) >> shift
            if bits >> width == threshold:
                histogram[bits & ((1 << width) - 1)] += values[i] if by_weight else 1.0
        last = (1 << width) - 1
        while last > 0 and passed[0] + histogram[last] < needed:
            passed[0] += histogram[last]
            last -= 1
        threshold = threshold << width | <uint64_t>last
    return ranked_value(threshold)


cdef ptrdiff_t keep_best(float *values, int32_t *ids, ptrdiff_t count, double needed, bint by_weight) noexcept nogil:
    """Keep the fewest largest values that reach `needed` (their number, or their sum if by_weight), and their ids, in
    the order they stand in; returns how many. Among equals the first stay.
    """
    cdef double passed
    cdef float lowest = last_kept(values, count, needed, by_weight, &passed)
    cdef ptrdiff_t i, kept = 0
    # all above it stay, and of those equal to it the ones that are still needed
    for i in range(count):
        if values[i] < lowest:
            continue
        if values[i] == lowest:
            if passed >= needed:
                continue
            passed += values[i] if by_weight else 1.0
        values[kept], ids[kept] = values[i], ids[i]
        kept += 1
    return kept


cdef ptrdiff_t find_peaks(const float *values, ptrdiff_t count, float *peaks) noexcept nogil:
    """peaks: the largest of each PEAK_BLOCK of values; returns how many."""
    cdef ptrdiff_t start = 0, i, blocks = 0
    cdef vf largest
    while start + PEAK_BLOCK <= count:
        largest = vf_load(values + start)
        i = VF_WIDTH
        while i < PEAK_BLOCK:
            largest = vf_max(largest, vf_load(values + start + i))
            i += VF_WIDTH
        peaks[blocks] = vf_largest(largest)
        blocks += 1
        start += PEAK_BLOCK
    if start < count:
        peaks[blocks] = values[start]
        for i in range(start + 1, count):
            peaks[blocks] = max(peaks[blocks], values[i])
        blocks += 1
    return blocks


cdef ptrdiff_t keep_at_least(
    float *values, int32_t *ids, ptrdiff_t count, float least, const float *peaks
) noexcept nogil:
    """Of values that stand at their ids and have these peaks, keep those of at least `least`, and write their ids; returns how many."""
    cdef ptrdiff_t start = 0, stop = 0, block = 0, i, kept = 0
    while stop < count:
        start, stop = stop, min(stop + PEAK_BLOCK, count)
        if peaks[block] >= least:
            for i in range(start, stop):
                # stored in any case, and written over by the next: which ones stay cannot be guessed
                values[kept], ids[kept] = values[i], <int32_t>i
                kept += values[kept] >= least
        block += 1
    return kept


# ---- the draw ----

cdef double sum_weights(const float *weights, ptrdiff_t start, ptrdiff_t stop) noexcept nogil:
    cdef double lanes[DRAW_LANES]
    cdef double total = 0
    cdef ptrdiff_t i = start, lane
    for lane in range(DRAW_LANES):
        lanes[lane] = 0
    while i + DRAW_LANES <= stop:
        for lane in range(DRAW_LANES):
            lanes[lane] += weights[i + lane]
        i += DRAW_LANES
    while i < stop:
        total += weights[i]
        i += 1
    for lane in range(DRAW_LANES):
        total += lanes[lane]
    return total


cdef double sum_blocks(const float *weights, ptrdiff_t count) noexcept nogil:
    cdef double total = 0
    cdef ptrdiff_t start = 0, stop = 0
    while stop < count:
        start, stop = stop, min(stop + DRAW_BLOCK, count)
        total += sum_weights(weights, start, stop)
    return total


cdef ptrdiff_t draw(const float *weights, ptrdiff_t count, double uniform) noexcept nogil:
    """The position at which the summed weights pass uniform times their total; never one of weight 0."""
    cdef double wanted = uniform * sum_blocks(weights, count), reached = 0, block
    cdef ptrdiff_t start = 0, stop = 0, i, last = 0
    while stop < count:
        start, stop = stop, min(stop + DRAW_BLOCK, count)
        block = sum_weights(weights, start, stop)
        if block == 0:
            continue
        last = stop
        if reached + block <= wanted:
            reached += block
            continue
        for i in range(start, stop):
            reached += weights[i]
            if reached > wanted:
                return i
        break
    # rounding left the sum just short of what was wanted: the last that can be drawn
    while weights[last - 1] == 0:
        last -= 1
    return last - 1


# ---- one row ----

cdef struct Sample:
    float *logits
    ptrdiff_t vocab, top_k
    double temperature, top_p, min_p
    const double *uniform
    int64_t *out


cdef ptrdiff_t keep_top_k(float *logits, int32_t *ids, ptrdiff_t vocab, ptrdiff_t top_k, const float *peaks, ptrdiff_t blocks) noexcept nogil:
    """Keep the top_k largest of logits [vocab] and write their ids; returns how many."""
    cdef double passed
    cdef float least = -INFINITY
    if top_k <= blocks:  # as many blocks hold a value of this size, so top_k values do
        least = last_kept(peaks, blocks, <double>top_k, False, &passed)
    return keep_best(logits, ids, keep_at_least(logits, ids, vocab, least, peaks), <double>top_k, False)


cdef void weigh(float *logits, ptrdiff_t count, float largest, double temperature) noexcept nogil:
    """logits [count] become e^((logit - largest) / temperature)."""
    cdef vf shift = vf_set(largest), warmth = vf_set(<float>temperature)
    cdef ptrdiff_t i = 0
    while i + VF_WIDTH <= count:
        vf_store(logits + i, vf_exp(vf_div(vf_sub(vf_load(logits + i), shift), warmth)))
        i += VF_WIDTH
    if i < count:
        vf_store_first(
            logits + i, vf_exp(vf_div(vf_sub(vf_load_first(logits + i, count - i), shift), warmth)), count - i
        )


cdef ptrdiff_t keep_top_p(float *weights, int32_t *ids, ptrdiff_t count, bint all_stand, double top_p, float *peaks) noexcept nogil:
    """Keep the fewest largest of weights [count] that reach their share top_p; returns how many. all_stand: each stands at its id,
    and ids are written here."""
    cdef double total = sum_blocks(weights, count)
    if all_stand:
        find_peaks(weights, count, peaks)
        # All that weigh less bring less than what top-p leaves out. Half of that, as sums are rounded.
        count = keep_at_least(weights, ids, count, <float>(0.5 * (1 - top_p) * total / count), peaks)
    return keep_best(weights, ids, count, top_p * total, True)


cdef void sample_row(void *argument, ptrdiff_t row) noexcept nogil:
    cdef Sample *s = <Sample *>argument
    cdef float *logits = s.logits + row * s.vocab
    cdef float *weights = logits
    cdef float *peaks = <float *>pool_scratch((s.vocab // PEAK_BLOCK + 1 + s.vocab) * sizeof(float))
    cdef int32_t *ids = <int32_t *>(peaks + s.vocab // PEAK_BLOCK + 1)  # of the tokens that are left
    cdef ptrdiff_t blocks = find_peaks(logits, s.vocab, peaks)
    cdef float largest = peaks[0], least = <float>s.min_p
    cdef bint all_stand = True  # ids have no say yet
    cdef ptrdiff_t count = s.vocab, i
    for i in range(blocks):
        largest = max(largest, peaks[i])
    if s.temperature == 0:
        i = 0
        while logits[i] != largest:
            i += 1
        s.out[row] = i
        return
    if 0 < s.top_k < s.vocab:
        count, all_stand = keep_top_k(logits, ids, count, s.top_k, peaks, blocks), False
    weigh(weights, count, largest, s.temperature)  # the best token weighs 1
    if s.top_p < 1:
        count, all_stand = keep_top_p(weights, ids, count, all_stand, s.top_p, peaks), False
    # min-p
    for i in range(count):
        weights[i] = 0 if weights[i] < least else weights[i]
    # draw
    i = draw(weights, count, s.uniform[row])
    s.out[row] = i if all_stand else ids[i]


def sample(
    float[:, ::1] logits, double temperature, ptrdiff_t top_k, double top_p, double min_p,
    const double[::1] uniform, int64_t[::1] out,
):
    """One token id per row of logits: [batch, vocab] (overwritten: scratch); the rules stand in reference.py."""
    cdef Sample s
    cdef ptrdiff_t batch = logits.shape[0]
    if batch == 0:
        return
    s.logits, s.vocab, s.uniform, s.out = &logits[0, 0], logits.shape[1], &uniform[0], &out[0]
    s.temperature, s.top_k, s.top_p, s.min_p = temperature, top_k, top_p, min_p
    with nogil:
        pool_run(sample_row, &s, batch)


# ---- repetition ----

cdef struct Penalty:
    float *logits
    const int64_t *ids
    ptrdiff_t vocab, count
    float penalty


cdef void penalize_row(void *argument, ptrdiff_t row) noexcept nogil:
    cdef Penalty *p = <Penalty *>argument
    cdef float *logits = p.logits + row * p.vocab
    cdef const int64_t *ids = p.ids + row * p.count
    cdef float *penalized = <float *>pool_scratch(p.count * sizeof(float))
    cdef ptrdiff_t j
    cdef float value
    # all are read before any is written, so that an id that occurred twice is changed once
    for j in range(p.count):
        if ids[j] >= 0:
            value = logits[ids[j]]
            penalized[j] = value * p.penalty if value < 0 else value / p.penalty
    for j in range(p.count):
        if ids[j] >= 0:
            logits[ids[j]] = penalized[j]


def penalize_repetition(float[:, ::1] logits, const int64_t[:, ::1] ids, float penalty):
    """Divide positive and multiply negative logits of the ids that occurred by penalty, once each, in place."""
    cdef Penalty p
    cdef ptrdiff_t batch = logits.shape[0]
    if batch == 0 or ids.shape[1] == 0:
        return
    p.logits, p.ids, p.penalty = &logits[0, 0], &ids[0, 0], penalty
    p.vocab, p.count = logits.shape[1], ids.shape[1]
    with nogil:
        pool_run(penalize_row, &p, batch)

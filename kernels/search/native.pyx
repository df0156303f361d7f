"""Top-k search in Cython: the register tile of kernels/matmul over rows of vectors where they lie and packed queries; a
tile's scores are looked through while they are in L1, and each query keeps its best in a heap.

Rows are cut into fixed parts with heaps of their own, joined at the end. Which rows are best does not depend on the order
they are met in, and a score's sum runs in a fixed order, so the number of threads changes nothing. Of few queries the
products are plain dot products: then memory sets the time.
"""

include "vec.pxi"
include "matmul/gemm.pxi"

from libc.math cimport INFINITY
from libc.stdint cimport INT64_MAX, uint8_t, uint16_t
from libc.string cimport memmove

cdef extern from "half.h" nogil:
    void halves_to_floats(const uint8_t *halves, ptrdiff_t count, float *out)
    enum: HALF_SCALES

cdef extern from "search/tile.h" nogil:
    void tile_of_one(const float **rows, const float *b, ptrdiff_t depth, ptrdiff_t ahead, float *out, bint add)
    void tile_of_two(const float **rows, const float *b, ptrdiff_t depth, ptrdiff_t ahead, float *out, bint add)
    void tile_of_all(const float **rows, const float *b, ptrdiff_t depth, ptrdiff_t ahead, float *out, bint add)

cdef enum:
    ROWS = 128  # of vectors, whole tiles, that stay in L2 while panels of queries pass by: 192 KB if each has 384 numbers
    MOST_PARTS = 32  # enough for a few threads to balance; each part's heaps fill up anew: 2 % of a search for 10
    PART_ROWS = 1024  # at least, and
    PART_TIMES_K = 16  # times k at least
    PANELS = 4  # of queries that meet a block of rows once it is in cache
    HEAP_BYTES = 1 << 24  # of all heaps, unless one panel's are larger
    FEW_QUERIES = 2
    AHEAD = 16  # rows that are asked for ahead while the first panel is multiplied
    # Of few queries: every so many numbers of rows the line is asked for that lies so much further; what follows it processors fetch on
    # their own, but no further than a page of 4 KB.
    ASKED_EVERY = 128
    ASKED_AHEAD = 2048
    SEEN_ROWS = 8  # that are looked at together for scores that pass


cdef struct Search:
    const float *vectors
    const uint16_t *halves  # instead of vectors
    const float *queries  # of this round
    const float *packed  # the same as panels [dim, TILE_COLUMNS], of each block of k; the last one's rows are whole vectors only
    ptrdiff_t rows, dim, count, k, panels, k_block
    ptrdiff_t parts, part_rows
    int64_t *part_ids  # [parts, count, k]
    float *part_scores
    float *checks  # [parts]: 0 where all scores were finite
    int64_t *ids  # [count, k]
    float *scores


# ---- a heap of the k best: its root is the worst of them ----

cdef inline bint is_worse(float score, int64_t row, float other_score, int64_t other_row) noexcept nogil:
    return score < other_score or (score == other_score and row > other_row)


cdef void put(int64_t *ids, float *scores, ptrdiff_t size, int64_t row, float score) noexcept nogil:
    """Row and score take the place of the root of a heap [size]; it sinks to where it belongs."""
    cdef ptrdiff_t place = 0, child
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and is_worse(scores[child + 1], ids[child + 1], scores[child], ids[child]):
            child += 1
        if not is_worse(scores[child], ids[child], score, row):
            break
        ids[place], scores[place] = ids[child], scores[child]
        place = child
    ids[place], scores[place] = row, score


cdef void empty_heap(int64_t *ids, float *scores, ptrdiff_t size) noexcept nogil:
    cdef ptrdiff_t i
    for i in range(size):
        ids[i], scores[i] = INT64_MAX, -INFINITY


cdef void sort_heap(int64_t *ids, float *scores, ptrdiff_t size) noexcept nogil:
    """Best first: the worst, which is the root, goes to the end, again and again."""
    cdef ptrdiff_t last = size - 1
    cdef int64_t row
    cdef float score
    while last > 0:
        row, score = ids[last], scores[last]
        ids[last], scores[last] = ids[0], scores[0]
        put(ids, scores, last, row, score)
        last -= 1


# ---- one part of the rows ----

cdef void search_part(void *argument, ptrdiff_t part) noexcept nogil:
    cdef Search *s = <Search *>argument
    cdef ptrdiff_t row = part * s.part_rows, stop = min(s.rows, (part + 1) * s.part_rows), rows
    cdef float *scratch = <float *>pool_scratch(
        sizeof(float) * (ROWS * (TILE_COLUMNS + (s.dim if s.halves != NULL else 0)) + s.panels * TILE_COLUMNS)
    )
    cdef float *thresholds = scratch + ROWS * TILE_COLUMNS  # what a score must pass: the worst of each heap
    cdef float *opened = thresholds + s.panels * TILE_COLUMNS  # float16 rows as floats
    cdef int64_t *ids = s.part_ids + part * s.count * s.k
    cdef float *scores = s.part_scores + part * s.count * s.k
    cdef const float *block
    cdef const uint16_t *halves
    cdef ptrdiff_t panel, query
    cdef float check = 0
    cdef bint opens = s.halves != NULL and not (HALF_SCALES and s.count <= FEW_QUERIES)  # else they are widened in registers
    empty_heap(ids, scores, s.count * s.k)
    for query in range(s.panels * TILE_COLUMNS):
        thresholds[query] = -INFINITY if query < s.count else INFINITY
    while row < stop:
        rows = min(ROWS, stop - row)
        halves = s.halves + row * s.dim if s.halves != NULL else NULL
        block = opened if s.halves != NULL else s.vectors + row * s.dim
        if opens:
            halves_to_floats(<const uint8_t *>halves, rows * s.dim, opened)
        if s.count <= FEW_QUERIES:
            check += search_few(s, NULL if opens else halves, block, row, rows, ids, scores)
        else:
            for panel in range(s.panels):
                multiply_panel(s, block, rows, panel, row, scratch)
                query = panel * TILE_COLUMNS
                check += keep_best(
                    scratch, row, rows, min(TILE_COLUMNS, s.count - query), thresholds + query, ids + query * s.k,
                    scores + query * s.k, s.k,
                )
        row += rows
    s.checks[part] = check


cdef float search_few(
    Search *s, const uint16_t *halves, const float *block, ptrdiff_t first, ptrdiff_t rows, int64_t *ids, float *scores
) noexcept nogil:
    """A block of rows (halves, unless that is NULL) against at most FEW_QUERIES; returns 0 if all scores are finite, else NaN."""
    cdef const float *starts[TILE_ROWS]
    cdef float sums[FEW_QUERIES]
    cdef float check = 0
    cdef ptrdiff_t row, query, i
    for query in range(TILE_ROWS):
        starts[query] = s.queries + min(query, s.count - 1) * s.dim
    for row in range(rows):
        if halves != NULL and s.count == 1:
            dot_multiply(1, True, starts, halves + row * s.dim, s.dim, sums, 1)
        elif halves != NULL:
            dot_multiply(2, True, starts, halves + row * s.dim, s.dim, sums, 1)
        else:
            for i from 0 <= i < s.dim by ASKED_EVERY:
                prefetch_read(block + row * s.dim + i + ASKED_AHEAD)
            if s.count == 1:
                dot_multiply(1, False, starts, block + row * s.dim, s.dim, sums, 1)
            else:
                dot_multiply(2, False, starts, block + row * s.dim, s.dim, sums, 1)
        for query in range(s.count):
            check += sums[query] * 0
            if sums[query] > scores[query * s.k]:
                put(ids + query * s.k, scores + query * s.k, s.k, first + row, sums[query])
    return check


cdef void multiply_panel(
    Search *s, const float *block, ptrdiff_t rows, ptrdiff_t panel, ptrdiff_t first, float *out
) noexcept nogil:
    """out [rows, TILE_COLUMNS] = a block of rows, the first of which is row `first`, times one panel of queries."""
    cdef ptrdiff_t width = min(TILE_COLUMNS, s.count - panel * TILE_COLUMNS), k_start = 0, depth, tile, i, ahead
    cdef const float *starts[TILE_ROWS]
    cdef const float *queries
    while k_start < s.dim:
        depth = min(s.k_block, s.dim - k_start)
        queries = s.packed + (k_start * s.panels + panel * depth) * TILE_COLUMNS
        tile = 0
        while tile < rows:
            # Rows past the end repeat the last one: computed, never kept.
            for i in range(TILE_ROWS):
                starts[i] = block + min(tile + i, rows - 1) * s.dim + k_start
            ahead = AHEAD * s.dim if s.halves == NULL and panel == 0 and first + tile + AHEAD + TILE_ROWS <= s.rows else 0
            if s.halves != NULL and panel == 0 and k_start == 0:  # the next block's, which will be opened
                for i from 0 <= i < TILE_ROWS * s.dim by 2 * LINE:
                    prefetch_read(s.halves + (first + ROWS + tile) * s.dim + i)
            if width <= VF_WIDTH:
                tile_of_one(starts, queries, depth, ahead, out + tile * TILE_COLUMNS, k_start > 0)
            elif width <= 2 * VF_WIDTH:
                tile_of_two(starts, queries, depth, ahead, out + tile * TILE_COLUMNS, k_start > 0)
            else:
                tile_of_all(starts, queries, depth, ahead, out + tile * TILE_COLUMNS, k_start > 0)
            tile += TILE_ROWS
        k_start += s.k_block


cdef float keep_best(
    const float *block, ptrdiff_t first, ptrdiff_t rows, ptrdiff_t count, float *thresholds, int64_t *ids, float *scores,
    ptrdiff_t k,
) noexcept nogil:
    """What passes its threshold, of block [rows, TILE_COLUMNS], enters its query's heap; few do, so that SEEN_ROWS are
    first looked at together. Returns 0 if all scores are finite, else NaN."""
    cdef ptrdiff_t seen = 0, stop, row, query, vectors = (count + VF_WIDTH - 1) // VF_WIDTH, j
    cdef float largest[TILE_COLUMNS]
    cdef vf most, above, score, check = vf_zero()
    cdef float value
    while seen < rows:
        stop = min(rows, seen + SEEN_ROWS)
        above = vf_set(-INFINITY)
        for j in range(vectors):
            most = vf_set(-INFINITY)
            for row in range(seen, stop):
                score = vf_load(block + row * TILE_COLUMNS + j * VF_WIDTH)
                check = vf_fma(score, vf_zero(), check)
                most = vf_max(most, score)
            vf_store(largest + j * VF_WIDTH, most)
            above = vf_max(above, vf_sub(most, vf_load(thresholds + j * VF_WIDTH)))
        if vf_largest(above) > 0:
            for query in range(count):
                if not largest[query] > thresholds[query]:
                    continue
                for row in range(seen, stop):
                    value = block[row * TILE_COLUMNS + query]
                    if value > thresholds[query]:
                        put(ids + query * k, scores + query * k, k, first + row, value)
                        thresholds[query] = scores[query * k]
        seen = stop
    return vf_sum(check)


# ---- all parts ----

cdef void join_parts(void *argument, ptrdiff_t query) noexcept nogil:
    """The best of all parts, best first."""
    cdef Search *s = <Search *>argument
    cdef int64_t *ids = s.ids + query * s.k
    cdef float *scores = s.scores + query * s.k
    cdef ptrdiff_t part, i, at
    empty_heap(ids, scores, s.k)
    for part in range(s.parts):
        at = (part * s.count + query) * s.k
        for i in range(at, at + s.k):
            if is_worse(scores[0], ids[0], s.part_scores[i], s.part_ids[i]):
                put(ids, scores, s.k, s.part_ids[i], s.part_scores[i])
    sort_heap(ids, scores, s.k)


cdef void pack_queries(void *argument, ptrdiff_t panel) noexcept nogil:
    cdef Search *s = <Search *>argument
    cdef ptrdiff_t query = panel * TILE_COLUMNS, k_start = 0, depth, k
    cdef ptrdiff_t columns = (min(TILE_COLUMNS, s.count - query) + VF_WIDTH - 1) // VF_WIDTH * VF_WIDTH
    cdef float *packed
    while k_start < s.dim:
        depth = min(s.k_block, s.dim - k_start)
        packed = <float *>s.packed + (k_start * s.panels + panel * depth) * TILE_COLUMNS
        pack_panel(s.queries + query * s.dim + k_start, 1, s.dim, depth, min(TILE_COLUMNS, s.count - query), packed)
        for k in range(1, depth if columns < TILE_COLUMNS else 0):
            memmove(packed + k * columns, packed + k * TILE_COLUMNS, sizeof(float) * columns)
        k_start += s.k_block


cdef bint search_all(Search *s, const float[:, ::1] queries, int64_t[:, ::1] ids, float[:, ::1] scores) except -1:
    """Some queries at a time; returns whether all scores were finite."""
    cdef ptrdiff_t total = queries.shape[0], first = 0, most, part, heap
    cdef char *memory
    cdef bint all_finite = True
    s.dim, s.k = queries.shape[1], ids.shape[1]
    s.k_block = even_block(s.dim, K_BLOCK, LINE)
    s.parts = max(1, min(MOST_PARTS, s.rows // max(PART_ROWS, PART_TIMES_K * s.k)))
    s.part_rows = ((s.rows + s.parts - 1) // s.parts + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    s.parts = (s.rows + s.part_rows - 1) // s.part_rows
    heap = s.parts * s.k * (sizeof(int64_t) + sizeof(float))
    most = max(1, min(PANELS, HEAP_BYTES // (heap * TILE_COLUMNS))) * TILE_COLUMNS
    with nogil:
        while first < total:
            s.count = min(most, total - first)
            s.panels = (s.count + TILE_COLUMNS - 1) // TILE_COLUMNS
            memory = <char *>pool_shared(s.count * heap + sizeof(float) * (s.parts + s.panels * TILE_COLUMNS * s.dim))
            s.packed = <float *>memory
            s.part_ids = <int64_t *>(memory + sizeof(float) * s.panels * TILE_COLUMNS * s.dim)
            s.part_scores = <float *>(s.part_ids + s.parts * s.count * s.k)
            s.checks = s.part_scores + s.parts * s.count * s.k
            s.queries, s.ids, s.scores = &queries[first, 0], &ids[first, 0], &scores[first, 0]
            if s.count > FEW_QUERIES:
                pool_run(pack_queries, s, s.panels)
            pool_run(search_part, s, s.parts)
            pool_run(join_parts, s, s.count)
            for part in range(s.parts):
                if s.checks[part] != 0:
                    all_finite = False
            first += s.count
    return all_finite


# ---- the functions ----

def search(const float[:, ::1] vectors, const float[:, ::1] queries, int64_t[:, ::1] ids, float[:, ::1] scores):
    """The rows of vectors with the largest dot products with each query; shapes and rules: reference.py."""
    cdef Search s
    if queries.shape[0] == 0:
        return True
    s.vectors, s.halves, s.rows = &vectors[0, 0], NULL, vectors.shape[0]
    return search_all(&s, queries, ids, scores)


def search_half(const uint16_t[:, ::1] halves, const float[:, ::1] queries, int64_t[:, ::1] ids, float[:, ::1] scores):
    """As search over halves: uint16 [rows, dim], the bits of float16 numbers."""
    cdef Search s
    if queries.shape[0] == 0:
        return True
    s.vectors, s.halves, s.rows = NULL, &halves[0, 0], halves.shape[0]
    return search_all(&s, queries, ids, scores)

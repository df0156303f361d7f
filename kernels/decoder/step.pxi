# One step of a decoder: where its tokens stand, its buffers, and the maps between them. Rows of all buffers are the
# step's tokens, those of all sequences one after another.

from libc.string cimport memmove

cdef enum:
    MAX_GROUPS = 2
    BLOCK_TOKENS = 200  # a block's at least


cdef struct Pages:
    char *keys  # [runs, layers, kv_heads, RUN_PAGES, head_dim, PAGE_KEYS]: transposed within a page
    char *values  # [runs, layers, kv_heads, RUN_PAGES, PAGE_KEYS, head_dim]
    float *key_scales  # [runs, layers, kv_heads, RUN_PAGES, PAGE_KEYS] or NULL
    float *value_scales
    ptrdiff_t layers
    const int32_t *tables  # [sequences, table_pages]
    ptrdiff_t table_pages


cdef struct Step:
    const Model *model
    const int64_t *ids
    const int64_t *starts  # [sequences + 1]
    const int64_t *first_positions  # [sequences]
    const uint8_t *written  # [sequences]: whether its tokens are being written, others are read; NULL: few are, many are not
    ptrdiff_t tokens, sequences
    int page_type
    ptrdiff_t page_bytes  # of one kv head's keys in a page
    Pages pages[MAX_GROUPS]
    # buffers
    int64_t *sequence_of  # [tokens]
    int64_t *position_of
    float *x  # [tokens, dim]: the residual stream
    float *normed  # [tokens, dim]
    float *q  # [tokens, heads * head_dim]
    float *k  # [tokens, kv_heads * head_dim]
    float *v
    float *attended  # [tokens, heads * head_dim]
    Bench bench
    ptrdiff_t block_tokens  # of a block that one thread takes from attention to attention; all of them: threads share each map
    # attention's work, of each group of layers (attention.pxi)
    AttendPlan attend[MAX_GROUPS]
    ptrdiff_t slot_rows  # of queries that a task of few has at most (most_written)
    float *partials
    const Layer *layer  # the one at work
    # what the last layer goes on with behind keys and values: of each sequence its first wanted token and all after it
    const int64_t *kept_starts  # [sequences + 1]; NULL: all tokens
    const int64_t *kept_positions  # [sequences]: of the first
    AttendPlan kept_attend


cdef inline ptrdiff_t widest(const Model *m) noexcept nogil:
    return max(m.dim, max(m.hidden, m.heads * m.head_dim))


cdef ptrdiff_t buffer_bytes(const Model *m, ptrdiff_t rows) noexcept nogil:
    """What carve_buffers takes."""
    cdef ptrdiff_t q = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim
    return (
        2 * lines(2 * rows) + 2 * lines(rows * m.dim) + 2 * lines(rows * q) + 2 * lines(rows * kv)
        + bench_bytes(rows, m.hidden, widest(m))
    )


cdef void carve_buffers(Step *s, char **memory, ptrdiff_t rows) noexcept nogil:
    """For so many rows: the step's tokens, or the wanted ones where those are more."""
    cdef const Model *m = s.model
    cdef ptrdiff_t sequence, t
    s.sequence_of = <int64_t *>take_floats(memory, 2 * s.tokens)
    s.position_of = <int64_t *>take_floats(memory, 2 * s.tokens)
    s.x, s.normed = take_floats(memory, rows * m.dim), take_floats(memory, rows * m.dim)
    s.q = take_floats(memory, s.tokens * m.heads * m.head_dim)
    s.k = take_floats(memory, s.tokens * m.kv_heads * m.head_dim)
    s.v = take_floats(memory, s.tokens * m.kv_heads * m.head_dim)
    s.attended = take_floats(memory, s.tokens * m.heads * m.head_dim)
    carve_bench(&s.bench, memory, rows, m.hidden, widest(m))
    for sequence in range(s.sequences):
        for t in range(s.starts[sequence], s.starts[sequence + 1]):
            s.sequence_of[t] = sequence
            s.position_of[t] = s.first_positions[sequence] + t - s.starts[sequence]


# ---- blocks of tokens, from attention to attention ----

cdef ptrdiff_t block_tokens_of(const Step *s) noexcept nogil:
    """Where there are many tokens for every thread, it takes blocks of them through all that lies between attentions: then it reads
    what it wrote itself. Where threads share each map by columns instead, every row goes to and fro between their caches."""
    cdef ptrdiff_t blocks = s.tokens // (BLOCK_TOKENS * pool_threads()) * pool_threads()
    if not s.model.shared or pool_threads() == 1 or blocks == 0:
        return s.tokens
    return (s.tokens + blocks * WHOLE_TILES - 1) // (blocks * WHOLE_TILES) * WHOLE_TILES


cdef Step tokens_of(const Step *s, ptrdiff_t first, ptrdiff_t count) noexcept nogil:
    """So many tokens from `first` on alone: all but attention can run on them."""
    cdef const Model *m = s.model
    cdef Step b = s[0]
    b.tokens = count
    b.sequence_of, b.position_of = s.sequence_of + first, s.position_of + first
    b.x, b.normed = s.x + first * m.dim, s.normed + first * m.dim
    b.q, b.attended = s.q + first * m.heads * m.head_dim, s.attended + first * m.heads * m.head_dim
    b.k, b.v = s.k + first * m.kv_heads * m.head_dim, s.v + first * m.kv_heads * m.head_dim
    b.bench.wide, b.bench.other = s.bench.wide + first * m.hidden, s.bench.other + first * m.hidden
    b.bench.pairs = s.bench.pairs + first * halved(widest(m))
    b.bench.quantized = <char *>s.bench.quantized + quantized_most(first, widest(m))
    return b


# ---- tokens that are written, and those that are read ----

cdef inline bint is_written(const uint8_t *written, const int64_t *starts, ptrdiff_t sequence) noexcept nogil:
    """Whether each of a sequence's tokens comes out as it would alone. What is read comes out as in any other piece of its text."""
    return starts[sequence + 1] - starts[sequence] <= FEW_TOKENS and (written == NULL or written[sequence])


cdef inline bint is_apart(const Step *s, ptrdiff_t t) noexcept nogil:
    """Whether token t is one of many that are read, where those are multiplied otherwise (by tiles, or weights that lie as rows): its
    own sequence decides it, whatever else is in the batch."""
    cdef ptrdiff_t sequence = s.sequence_of[t]
    if s.written != NULL:
        return (AMX or s.model.has_rows) and not is_written(s.written, s.starts, sequence)
    return is_for_tiles(s.starts[sequence + 1] - s.starts[sequence])


cdef int by_length(Step *s, int (*part)(Step *s, const Layer *layer) except -1 nogil, const Layer *layer) except -1 nogil:
    """A part of the layer for runs of tokens that are multiplied alike."""
    cdef Step run
    cdef ptrdiff_t first = 0, stop
    cdef bint apart
    while first < s.tokens:
        stop, apart = first + 1, is_apart(s, first)
        while stop < s.tokens and is_apart(s, stop) == apart:
            stop += 1
        run = tokens_of(s, first, stop - first)
        run.bench.tiles, run.bench.read = AMX and apart, apart and s.written != NULL
        run.bench.few = not apart and stop - first <= FEW_TOKENS
        part(&run, layer)
        first = stop
    return 0


cdef ptrdiff_t wanted_alike(Step *s, const int64_t *wanted, ptrdiff_t count, ptrdiff_t first) noexcept nogil:
    """Where a run of wanted tokens ends that the head multiplies alike, as s.bench.tiles says then: those of a sequence that stand
    together decide it."""
    cdef ptrdiff_t start = first, stop, sequence
    while start < count:
        sequence, stop = sequence_with(s, wanted[start]), start + 1
        while stop < count and sequence_with(s, wanted[stop]) == sequence:
            stop += 1
        if start == first:
            s.bench.tiles = is_for_tiles(stop - start)
        elif is_for_tiles(stop - start) != s.bench.tiles:
            return start
        start = stop
    return count


# ---- the last layer's tokens ----

cdef void keep_wanted(Step *s, const int64_t *wanted, ptrdiff_t wanted_count, int64_t *lists) noexcept nogil:
    """s.kept_starts and s.kept_positions, in lists [2 sequences + 1 + wanted_count], and behind them the wanted tokens' places
    among those kept. Which tokens a sequence keeps does not depend on the others."""
    cdef int64_t *kept_starts = lists
    cdef int64_t *first = lists + s.sequences + 1  # kept tokens, counted from the step's first; then their positions
    cdef int64_t *places = first + s.sequences
    cdef ptrdiff_t sequence, i
    for sequence in range(s.sequences):
        first[sequence] = s.starts[sequence + 1]
    for i in range(wanted_count):
        sequence = sequence_with(s, wanted[i])
        first[sequence] = min(first[sequence], wanted[i])
    kept_starts[0] = 0
    for sequence in range(s.sequences):
        kept_starts[sequence + 1] = kept_starts[sequence] + s.starts[sequence + 1] - first[sequence]
    for i in range(wanted_count):
        sequence = sequence_with(s, wanted[i])
        places[i] = kept_starts[sequence] + wanted[i] - first[sequence]
    for sequence in range(s.sequences):
        first[sequence] += s.first_positions[sequence] - s.starts[sequence]
    if kept_starts[s.sequences] < s.tokens:
        s.kept_starts, s.kept_positions = kept_starts, first


cdef inline ptrdiff_t sequence_with(const Step *s, ptrdiff_t token) noexcept nogil:
    """Which sequence a token is of."""
    cdef ptrdiff_t low = 0, high = s.sequences, middle
    while high - low > 1:
        middle = (low + high) // 2
        if s.starts[middle] <= token:
            low = middle
        else:
            high = middle
    return low


cdef Step kept_step(const Step *s) noexcept nogil:
    """The kept tokens alone: their rows are moved together."""
    cdef Step kept = s[0]
    cdef ptrdiff_t sequence, count, source, target, dim = s.model.dim, group = s.layer.group
    for sequence in range(s.sequences):
        target, count = s.kept_starts[sequence], s.kept_starts[sequence + 1] - s.kept_starts[sequence]
        source = s.starts[sequence + 1] - count
        memmove(s.x + target * dim, s.x + source * dim, sizeof(float) * count * dim)
        memmove(s.normed + target * dim, s.normed + source * dim, sizeof(float) * count * dim)
        memmove(s.position_of + target, s.position_of + source, sizeof(int64_t) * count)
        memmove(s.sequence_of + target, s.sequence_of + source, sizeof(int64_t) * count)
    kept.tokens, kept.starts, kept.first_positions = s.kept_starts[s.sequences], s.kept_starts, s.kept_positions
    kept.attend[group] = s.kept_attend
    return kept


# ---- embedding ----

cdef void embed_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef Step *s = <Step *>argument
    cdef const Model *m = s.model
    cdef ptrdiff_t t, i
    cdef const float *row
    cdef float *x
    for t in range(task * ROWS_A_BLOCK, min(s.tokens, (task + 1) * ROWS_A_BLOCK)):
        x = s.x + t * m.dim
        matrix_row(&m.embedding, s.ids[t], x)
        if m.embedding_scale != 1:
            for i in range(m.dim):
                x[i] *= m.embedding_scale
        if m.positions != NULL:
            row = m.positions + s.position_of[t] * m.dim
            for i in range(m.dim):
                x[i] += row[i]

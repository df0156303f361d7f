# Attention of a step over paged keys and values. A task is a tile of one sequence's queries, all heads of one kv head,
# against all its pages; where a sequence brings few queries that are written (decoding), its pages are cut into chunks instead, each
# gathered on its own, and the last one to be gathered joins them in order. What a task computes depends on its own sequence only,
# what becomes of a query that is written on nothing that stands beside it, of one that is read not on how its text is cut.

cdef extern from "decoder/attend.h" nogil:
    enum: PAGE_KEYS
    enum: ATTEND_ROWS
    enum: RUN_PAGES
    enum: PAGES_FLOAT32
    enum: PAGES_BFLOAT16
    enum: PAGES_INT8
    ctypedef struct Gathered:
        float *blend
        float *totals
        float *largest
        ptrdiff_t dim
    ctypedef struct Page:
        const char *keys
        const char *values
        const float *key_scales
        const float *value_scales
        ptrdiff_t value_row, place
        int type
    enum: MOST_AHEAD
    ctypedef struct Piece:
        pass
    Piece piece_of(const Page *pages, ptrdiff_t count, const Piece *after, ptrdiff_t i)
    bint is_paired(int type, ptrdiff_t head_dim)
    float query_pairs(const float *query, ptrdiff_t head_dim, int type, int32_t *words)
    void attend_run(const Gathered *g, ptrdiff_t rows, const float *queries, const float *query_scales, const Page *pages,
                    ptrdiff_t count, const Piece *after, ptrdiff_t head_dim, float softcap, const ptrdiff_t *first, const ptrdiff_t *end)
    uint16_t bfloat16_of(float x)

cdef extern from "decoder/attend_tile.h" nogil:
    enum: BLOCK_KEYS
    enum: ATTEND_TILE_ROWS
    enum: FAST_PAIRS
    ctypedef struct KeyBlock:
        ptrdiff_t dim, depth, rows
    ptrdiff_t whole_vectors(ptrdiff_t numbers)
    ptrdiff_t key_block_floats(ptrdiff_t head_dim)
    KeyBlock carve_key_block(float *memory, ptrdiff_t most, ptrdiff_t head_dim, bint pairs, bint scales)
    void begin_block(const KeyBlock *b)
    void end_block(const KeyBlock *b)
    void query_words(const KeyBlock *b, const float *q, float scale, float *out)
    void page_into_block(const KeyBlock *b, const Page *page, ptrdiff_t place, ptrdiff_t keys)
    void attend_tile(const Gathered *g, ptrdiff_t row, ptrdiff_t rows, const float *queries, const KeyBlock *b, float softcap,
                     const ptrdiff_t *first, const ptrdiff_t *end, const float **added)

cdef extern from *:
    """
    /* *count, less one; what other threads wrote before they took one is seen by who takes the last. */
    static inline ptrdiff_t one_less(ptrdiff_t *count) { return __atomic_sub_fetch(count, 1, __ATOMIC_ACQ_REL); }
    """
    ptrdiff_t one_less(ptrdiff_t *count) nogil

cdef enum:
    TILE_QUERY_ROWS = 128  # queries times heads of a tile: they share the copy of their keys and values
    BLOCK_PAGES = BLOCK_KEYS // PAGE_KEYS
    CHUNK_PAGES = RUN_PAGES  # pages a chunk
    # Tokens a task of rotations: as many as share lines of a page's transposed keys. With 8, threads wrote the same lines.
    TOKENS_A_BLOCK = 32


cdef struct AttendTask:
    ptrdiff_t sequence, kv_head
    ptrdiff_t first, count  # queries, counted from the sequence's first new token
    ptrdiff_t first_page, end_page
    ptrdiff_t slot  # of its partial result; -1: the result is whole
    ptrdiff_t join  # that its slot is part of


cdef struct Join:
    ptrdiff_t sequence, kv_head, first_slot, slots
    ptrdiff_t left  # slots that are not gathered yet; who gathers the last one joins them


cdef struct AttendPlan:
    AttendTask *tasks
    Join *joins
    ptrdiff_t task_count, join_count, slot_count


# ---- what there is to do, once a step for each group of layers ----

cdef ptrdiff_t most_written(const Step *s, const int64_t *starts) noexcept nogil:
    """Rows of queries of a sequence that brings few, the most of any: of the step's tokens or those kept."""
    cdef ptrdiff_t sequence, most = 0
    for sequence in range(s.sequences):
        if is_written(s.written, starts, sequence):
            most = max(most, starts[sequence + 1] - starts[sequence])
    return most * (s.model.heads // s.model.kv_heads)


cdef inline ptrdiff_t slot_floats(const Step *s) noexcept nogil:
    """A partial result: for each row its blend, total and largest score."""
    return s.slot_rows * (whole_vectors(s.model.head_dim) + 2)


cdef void plan_attention(const Step *s, const int64_t *starts, const int64_t *first_positions, ptrdiff_t window,
                         AttendPlan *plan) noexcept nogil:
    """The tasks, joins and slots of a group of layers, of the step's tokens or those kept; with plan.tasks NULL they are only
    counted."""
    cdef const Model *m = s.model
    cdef ptrdiff_t sequence, kv_head, queries, heads = m.heads // m.kv_heads, tile = max(1, TILE_QUERY_ROWS // heads)
    cdef ptrdiff_t position, first_page, end_page, chunk, first, chunks
    cdef AttendTask task
    cdef Join join
    plan.task_count, plan.join_count, plan.slot_count = 0, 0, 0
    for sequence in range(s.sequences):
        queries, position = starts[sequence + 1] - starts[sequence], first_positions[sequence]
        if queries == 0:
            continue
        for kv_head in range(m.kv_heads):
            task.sequence, task.kv_head, task.slot = sequence, kv_head, -1
            if is_written(s.written, starts, sequence):
                first_page = max(0, position - window + 1) // PAGE_KEYS if window else 0
                end_page = (position + queries - 1) // PAGE_KEYS + 1
                chunks = (end_page - 1) // CHUNK_PAGES - first_page // CHUNK_PAGES + 1
                task.first, task.count, task.join = 0, queries, plan.join_count
                for chunk in range(first_page // CHUNK_PAGES, (end_page - 1) // CHUNK_PAGES + 1):
                    task.first_page, task.end_page = max(first_page, chunk * CHUNK_PAGES), min(end_page, (chunk + 1) * CHUNK_PAGES)
                    if chunks > 1:
                        task.slot = plan.slot_count + chunk - first_page // CHUNK_PAGES
                    add_task(plan, &task)
                if chunks > 1:
                    join.sequence, join.kv_head, join.first_slot = sequence, kv_head, plan.slot_count
                    join.slots = join.left = chunks
                    if plan.joins != NULL:
                        plan.joins[plan.join_count] = join
                    plan.join_count += 1
                    plan.slot_count += chunks
            else:
                # the last tiles see the most keys: they go first
                first = (queries - 1) // tile * tile
                while first >= 0:
                    task.first, task.count = first, min(tile, queries - first)
                    task.first_page = max(0, position + first - window + 1) // PAGE_KEYS if window else 0
                    task.end_page = (position + first + task.count - 1) // PAGE_KEYS + 1
                    add_task(plan, &task)
                    first -= tile


cdef inline void add_task(AttendPlan *plan, const AttendTask *task) noexcept nogil:
    if plan.tasks != NULL:
        plan.tasks[plan.task_count] = task[0]
    plan.task_count += 1


cdef inline ptrdiff_t plan_bytes(const AttendPlan *plan) noexcept nogil:
    """What carve_plan takes."""
    return lines(plan.task_count * sizeof(AttendTask) // sizeof(float)) + lines(plan.join_count * sizeof(Join) // sizeof(float))


cdef void carve_plan(AttendPlan *plan, char **memory) noexcept nogil:
    """Room for what was counted."""
    plan.tasks = <AttendTask *>take_floats(memory, plan.task_count * sizeof(AttendTask) // sizeof(float))
    plan.joins = <Join *>take_floats(memory, plan.join_count * sizeof(Join) // sizeof(float))


# ---- keys and values go into their pages ----

cdef inline ptrdiff_t token_blocks(ptrdiff_t tokens) noexcept nogil:
    return (tokens + TOKENS_A_BLOCK - 1) // TOKENS_A_BLOCK


cdef inline ptrdiff_t place_in_pages(const Step *s, const Layer *layer, ptrdiff_t page, ptrdiff_t kv_head) noexcept nogil:
    """Which [page // RUN_PAGES, layer, kv_head, page % RUN_PAGES] this is."""
    return ((page // RUN_PAGES * s.pages[layer.group].layers + layer.index) * s.model.kv_heads + kv_head) * RUN_PAGES + page % RUN_PAGES


cdef inline ptrdiff_t place_of(const Step *s, const Layer *layer, const AttendTask *task, ptrdiff_t page) noexcept nogil:
    """Where the task finds its kv head in its sequence's page `page`."""
    cdef const Pages *pages = &s.pages[layer.group]
    return place_in_pages(s, layer, pages.tables[task.sequence * pages.table_pages + page], task.kv_head)


cdef void remember_block(void *argument, ptrdiff_t task) noexcept nogil:
    """For a block of tokens: k normed and turned, k and v written into their pages."""
    cdef Step *s = <Step *>argument
    cdef const Model *m = s.model
    cdef const Layer *layer = s.layer
    cdef Pages *pages = &s.pages[layer.group]
    cdef ptrdiff_t t, head, position, place
    cdef float *k
    for t in range(task * TOKENS_A_BLOCK, min(s.tokens, (task + 1) * TOKENS_A_BLOCK)):
        position = s.position_of[t]
        for head in range(m.kv_heads):
            k = s.k + (t * m.kv_heads + head) * m.head_dim
            prepare_head(layer, &layer.k_norm, k, m.head_dim, position)
            place = place_in_pages(s, layer, pages.tables[s.sequence_of[t] * pages.table_pages + position // PAGE_KEYS], head)
            write_head(s, pages, place, position % PAGE_KEYS, k, s.v + (t * m.kv_heads + head) * m.head_dim)


cdef void turn_block(void *argument, ptrdiff_t task) noexcept nogil:
    """For a block of tokens: q normed, turned and scaled."""
    cdef Step *s = <Step *>argument
    cdef const Model *m = s.model
    cdef ptrdiff_t t, head, i
    cdef float *q
    for t in range(task * TOKENS_A_BLOCK, min(s.tokens, (task + 1) * TOKENS_A_BLOCK)):
        for head in range(m.heads):
            q = s.q + (t * m.heads + head) * m.head_dim
            prepare_head(s.layer, &s.layer.q_norm, q, m.head_dim, s.position_of[t])
            for i in range(m.head_dim):
                q[i] *= m.attention_scale


cdef void turn_and_remember_block(void *argument, ptrdiff_t task) noexcept nogil:
    turn_block(argument, task)
    remember_block(argument, task)


cdef inline void prepare_head(const Layer *layer, const Norm *norm, float *x, ptrdiff_t head_dim, ptrdiff_t position) noexcept nogil:
    """One head's q or k: normed, then its first 2 half numbers turned by the position's angles."""
    cdef const float *cos = layer.cos + position * layer.half
    cdef const float *sin = layer.sin + position * layer.half
    cdef ptrdiff_t i
    cdef float first
    if norm.present:
        norm_row(norm, x, x, head_dim, False)
    for i in range(layer.half):
        first = x[i]
        x[i] = first * cos[i] - x[layer.half + i] * sin[i]
        x[layer.half + i] = x[layer.half + i] * cos[i] + first * sin[i]


cdef inline float scale_to_int8(const float *x, ptrdiff_t count) noexcept nogil:
    cdef float largest = 0
    cdef ptrdiff_t i
    for i in range(count):
        largest = max(largest, fabsf(x[i]))
    return largest / 127


cdef inline void write_head(const Step *s, Pages *pages, ptrdiff_t place, ptrdiff_t slot, const float *k, const float *v) noexcept nogil:
    cdef char *keys = pages.keys + place * s.page_bytes
    cdef char *values = pages.values + place * s.page_bytes
    cdef ptrdiff_t d, head_dim = s.model.head_dim
    cdef float scale, inverse
    if s.page_type == PAGES_FLOAT32:
        for d in range(head_dim):
            (<float *>keys)[d * PAGE_KEYS + slot] = k[d]
            (<float *>values)[slot * head_dim + d] = v[d]
    elif s.page_type == PAGES_BFLOAT16:
        for d in range(head_dim):
            (<uint16_t *>keys)[d * PAGE_KEYS + slot] = bfloat16_of(k[d])
            (<uint16_t *>values)[slot * head_dim + d] = bfloat16_of(v[d])
    else:
        scale = scale_to_int8(k, head_dim)
        inverse = 1 / scale if scale > 0 else 0
        pages.key_scales[place * PAGE_KEYS + slot] = scale
        for d in range(head_dim):
            (<int8_t *>keys)[d * PAGE_KEYS + slot] = <int8_t>nearbyintf(k[d] * inverse)
        scale = scale_to_int8(v, head_dim)
        inverse = 1 / scale if scale > 0 else 0
        pages.value_scales[place * PAGE_KEYS + slot] = scale
        for d in range(head_dim):
            (<int8_t *>values)[slot * head_dim + d] = <int8_t>nearbyintf(v[d] * inverse)


# ---- queries meet pages ----

cdef void attend_block(void *argument, ptrdiff_t index) noexcept nogil:
    cdef Step *s = <Step *>argument
    cdef const AttendPlan *plan = &s.attend[s.layer.group]
    cdef const AttendTask *task = &plan.tasks[index]
    if is_written(s.written, s.starts, task.sequence) and s.model.head_dim % VF_WIDTH == 0:
        attend_few(s, index)
    else:
        attend_many(s, task)
    if task.slot >= 0 and one_less(&plan.joins[task.join].left) == 0:
        join_slots(s, &plan.joins[task.join])


cdef inline Page look_at(const Step *s, const AttendTask *task, ptrdiff_t page) noexcept nogil:
    """The task's kv head in its sequence's page `page`."""
    cdef const Pages *pages = &s.pages[s.layer.group]
    cdef ptrdiff_t place = place_of(s, s.layer, task, page)
    cdef Page look
    look.keys, look.values = pages.keys + place * s.page_bytes, pages.values + place * s.page_bytes
    look.key_scales = pages.key_scales + place * PAGE_KEYS if pages.key_scales != NULL else NULL
    look.value_scales = pages.value_scales + place * PAGE_KEYS if pages.value_scales != NULL else NULL
    look.type, look.value_row, look.place = s.page_type, s.model.head_dim, (page - task.first_page) * PAGE_KEYS
    return look


cdef inline bint is_kept(const Step *s, const AttendTask *task, ptrdiff_t page) noexcept nogil:
    """No window has passed it."""
    cdef const Pages *pages = &s.pages[s.layer.group]
    return pages.tables[task.sequence * pages.table_pages + page] >= 0


cdef inline Gathered gathered(const Step *s, const AttendTask *task, float *memory, ptrdiff_t rows, ptrdiff_t dim) noexcept nogil:
    """Where a task gathers: in memory [rows * (dim + 2)], a partial result where it will be joined."""
    cdef Gathered g
    g.blend, g.dim = memory, dim
    if task.slot >= 0:
        g.blend, rows = s.partials + task.slot * slot_floats(s), s.slot_rows
    g.totals = g.blend + rows * dim
    g.largest = g.totals + rows
    return g


cdef inline Gathered from_row(const Gathered *g, ptrdiff_t row) noexcept nogil:
    """Rows from this one on."""
    cdef Gathered part = g[0]
    part.blend, part.totals, part.largest = g.blend + row * g.dim, g.totals + row, g.largest + row
    return part


cdef ptrdiff_t run_of(const Step *s, const AttendTask *task, Page *run) noexcept nogil:
    """Pages that the task reads, as many as are kept of a run (of a tile's, the first ones); returns how many."""
    cdef ptrdiff_t page, count = 0
    for page in range(task.first_page, min(task.end_page, task.first_page + RUN_PAGES)):
        if is_kept(s, task, page):
            run[count] = look_at(s, task, page)
            count += 1
    return count


cdef void attend_few(Step *s, ptrdiff_t index) noexcept nogil:
    """Few rows read a run of pages as they lie, ATTEND_ROWS at a time, and ask on the way for the one that this thread is likely to
    read next."""
    cdef const Model *m = s.model
    cdef const AttendPlan *plan = &s.attend[s.layer.group]
    cdef const AttendTask *task = &plan.tasks[index]
    cdef ptrdiff_t heads = m.heads // m.kv_heads, dim = m.head_dim, rows = task.count * heads
    cdef ptrdiff_t row, i, position, count, next_count = 0, token = s.starts[task.sequence] + task.first
    cdef float *memory = <float *>pool_scratch(sizeof(float) * (rows * (dim + 2) + ATTEND_ROWS * dim))
    cdef float *queries = memory + rows * (dim + 2)
    cdef Gathered g = gathered(s, task, memory, rows, dim)
    cdef Gathered part
    cdef Page run[RUN_PAGES]
    cdef Page next_run[RUN_PAGES]
    cdef Piece nothing[MOST_AHEAD]
    cdef Piece after[MOST_AHEAD]
    cdef const float *query
    cdef float query_scales[ATTEND_ROWS]
    cdef ptrdiff_t first[ATTEND_ROWS]
    cdef ptrdiff_t end[ATTEND_ROWS]
    count = run_of(s, task, run)
    if index + pool_threads() < plan.task_count:
        next_count = run_of(s, task + pool_threads(), next_run)
    memset(nothing, 0, sizeof(nothing))
    for i in range(MOST_AHEAD):
        after[i] = piece_of(next_run, next_count, nothing, i)
    row = 0
    while row < rows:
        for i in range(min(ATTEND_ROWS, rows - row)):
            query = query_of(s, token + (row + i) // heads, task.kv_head * heads + (row + i) % heads, s.q)
            if is_paired(s.page_type, dim):
                query_scales[i] = query_pairs(query, dim, s.page_type, <int32_t *>queries + i * dim // 2)
            else:
                memcpy(queries + i * dim, query, sizeof(float) * dim)
                query_scales[i] = 1
            position = s.position_of[token + (row + i) // heads] - task.first_page * PAGE_KEYS
            first[i] = max(0, position - s.layer.window + 1) if s.layer.window else 0
            end[i] = max(0, min((task.end_page - task.first_page) * PAGE_KEYS, position + 1))
        part = from_row(&g, row)
        attend_run(&part, min(ATTEND_ROWS, rows - row), queries, query_scales, run, count,
                   &after[0] if row + ATTEND_ROWS >= rows else &nothing[0], dim, m.attention_softcap, first, end)
        row += ATTEND_ROWS
    if task.slot < 0:
        finish_queries(s, task, &g)


cdef void attend_many(Step *s, const AttendTask *task) noexcept nogil:
    """Many rows share a copy of BLOCK_PAGES pages: in pairs of bfloat16, if pages hold nothing more exact."""
    cdef const Model *m = s.model
    cdef ptrdiff_t heads = m.heads // m.kv_heads, dim = whole_vectors(m.head_dim), rows = task.count * heads, query_row
    cdef ptrdiff_t row, i, page, stop, position, token = s.starts[task.sequence] + task.first
    cdef ptrdiff_t last = s.position_of[token + task.count - 1]
    cdef float *memory = <float *>pool_scratch(sizeof(float) * (rows * (2 * dim + 2) + key_block_floats(m.head_dim)))
    cdef float *queries = memory + rows * (dim + 2)
    cdef Gathered g = gathered(s, task, memory, rows, dim)
    cdef Page look
    cdef KeyBlock seen
    cdef ptrdiff_t first[ATTEND_TILE_ROWS]
    cdef ptrdiff_t end[ATTEND_TILE_ROWS]
    seen = carve_key_block(queries + rows * dim, BLOCK_KEYS, m.head_dim, FAST_PAIRS and s.page_type != PAGES_FLOAT32, s.page_type == PAGES_INT8)
    query_row = whole_vectors(seen.depth)
    for row in range(rows):
        query_words(&seen, query_of(s, token + row // heads, task.kv_head * heads + row % heads, s.q), 1, queries + row * query_row)
        g.totals[row], g.largest[row] = 0, -INFINITY
    memset(g.blend, 0, sizeof(float) * rows * dim)
    begin_block(&seen)
    # blocks begin at multiples of their length, so that a query meets the same ones whatever stands before it in its tile
    page = task.first_page // BLOCK_PAGES * BLOCK_PAGES
    while page < task.end_page:
        stop = min(task.end_page, page + BLOCK_PAGES)
        for i in range(max(page, task.first_page), stop):
            if is_kept(s, task, i):
                look = look_at(s, task, i)
                page_into_block(&seen, &look, (i - page) * PAGE_KEYS, min(PAGE_KEYS, last + 1 - i * PAGE_KEYS))
        row = 0
        while row < rows:
            for i in range(min(seen.rows, rows - row)):
                position = s.position_of[token + (row + i) // heads] - page * PAGE_KEYS
                first[i] = max(0, position - s.layer.window + 1) if s.layer.window else 0
                end[i] = max(0, min((stop - page) * PAGE_KEYS, position + 1))
            attend_tile(&g, row, min(seen.rows, rows - row), queries, &seen, m.attention_softcap, first, end, NULL)
            row += seen.rows
        page = stop
    end_block(&seen)
    if task.slot < 0:
        finish_queries(s, task, &g)


cdef inline void finish_queries(const Step *s, const AttendTask *task, const Gathered *g) noexcept nogil:
    cdef ptrdiff_t heads = s.model.heads // s.model.kv_heads, row, token = s.starts[task.sequence] + task.first
    for row in range(task.count * heads):
        finish_query(s, token + row // heads, task.kv_head * heads + row % heads, g.blend + row * g.dim, g.totals[row])


cdef inline float *query_of(const Step *s, ptrdiff_t token, ptrdiff_t head, float *rows) noexcept nogil:
    return rows + (token * s.model.heads + head) * s.model.head_dim


cdef inline void finish_query(const Step *s, ptrdiff_t token, ptrdiff_t head, const float *blend, float total) noexcept nogil:
    cdef float inverse = 1 / total
    cdef float *out = query_of(s, token, head, s.attended)
    cdef ptrdiff_t d
    for d in range(s.model.head_dim):
        out[d] = blend[d] * inverse


cdef void join_slots(const Step *s, Join *join) noexcept nogil:
    """The chunks of one sequence and kv head, joined in order."""
    cdef const Model *m = s.model
    cdef ptrdiff_t heads = m.heads // m.kv_heads, dim = whole_vectors(m.head_dim), token = s.starts[join.sequence], row, i, d
    cdef ptrdiff_t rows = (s.starts[join.sequence + 1] - token) * heads, most_rows = s.slot_rows
    cdef float *first = s.partials + join.first_slot * slot_floats(s)
    cdef float *part
    cdef float largest, total, factor
    cdef float blend[MAX_HEAD_DIM]
    join.left = join.slots  # the next layer gathers them anew
    for row in range(rows):
        largest, total = -INFINITY, 0
        for i in range(join.slots):
            largest = max(largest, (first + i * slot_floats(s) + most_rows * (dim + 1))[row])
        memset(blend, 0, sizeof(float) * m.head_dim)
        for i in range(join.slots):
            part = first + i * slot_floats(s)
            factor = expf((part + most_rows * (dim + 1))[row] - largest)
            total += factor * (part + most_rows * dim)[row]
            for d in range(m.head_dim):
                blend[d] += factor * part[row * dim + d]
        finish_query(s, token + row // heads, join.kv_head * heads + row % heads, blend, total)

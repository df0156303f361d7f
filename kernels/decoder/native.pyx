"""A whole decoder in Cython: one call takes tokens of any number of sequences through all layers, without the GIL.

model.pxi: the weights as structs; step.pxi: buffers, norms, linear maps; attention.pxi: paged keys and values.
Shapes and meaning: reference.py, spec.py, pages.py. Keys lie transposed within a page here. Knows nothing of sampling.
"""

include "vec.pxi"
include "norm/sums.pxi"
include "matmul/gemm.pxi"
include "matmul/linear.pxi"
include "packed/packed.pxi"
include "packed/channel.pxi"
include "packed/rows.pxi"
include "packed/matrix.pxi"
include "decoder/parts.pxi"

from cpython.exc cimport PyErr_CheckSignals

import numpy as np

from fastmixer.kernels.activations import ACTIVATIONS

cdef enum:
    MAX_HEAD_DIM = 512
    # one in so many numbers of what a map reads is an outlier (reference.py)
    OUTLIER = 288
    HEAD_OUTLIER = 144

include "decoder/model.pxi"
include "decoder/attention.pxi"
include "decoder/step.pxi"

PAGE_TYPES = {"float32": PAGES_FLOAT32, "bfloat16": PAGES_BFLOAT16, "int8": PAGES_INT8}


cdef class Decoder:
    """The layers of a DecoderSpec. One object may be called from several threads."""

    cdef readonly object spec
    cdef Model model

    def __cinit__(self, spec):
        self.model.layer = <Layer *>PyMem_Calloc(len(spec.layers), sizeof(Layer))
        if self.model.layer == NULL:
            raise MemoryError

    def __init__(self, spec):
        cdef Model *m = &self.model
        cdef ptrdiff_t i
        if spec.head_dim > MAX_HEAD_DIM:
            raise ValueError(f"decoder: head_dim must be at most {MAX_HEAD_DIM}; got {spec.head_dim}")
        self.spec = spec
        m.dim, m.heads, m.kv_heads, m.head_dim = spec.dim, spec.heads, spec.kv_heads, spec.head_dim
        m.hidden, m.vocab, m.layers = spec.hidden, spec.vocab, len(spec.layers)
        m.activation = ACTIVATIONS[spec.activation]
        m.attention_scale, m.attention_softcap = spec.attention_scale, spec.attention_softcap
        m.logit_softcap, m.embedding_scale = spec.logit_softcap, spec.embedding_scale
        m.embedding, m.head = matrix_of(spec.embedding), linear_of(spec.head)
        m.positions = table_of(spec.positions) if spec.positions is not None else NULL
        m.final_norm = norm_of(spec.final_norm)
        for i in range(m.layers):
            m.layer[i] = layer_of(spec.layers[i])
        look_at_weights(m)

    def __dealloc__(self):
        PyMem_Free(self.model.layer)

    def forward(self, const int64_t[::1] ids, const int64_t[::1] starts, const int64_t[::1] first_positions, pages,
                const int32_t[:, :, ::1] tables, const int64_t[::1] wanted, float[:, ::1] logits, float[:, ::1] hidden,
                const uint8_t[::1] written=None):
        """logits [wanted, vocab] (and hidden [wanted, dim]) of the wanted tokens, both may be None; keys and values of all
        tokens go into pages. Shapes: reference.py."""
        cdef Step s
        cdef ptrdiff_t group
        cdef int64_t[::1] lists = np.empty(2 * starts.shape[0] + wanted.shape[0], np.int64)
        if ids.shape[0] == 0:
            return
        memset(&s, 0, sizeof(s))
        s.model, s.tokens, s.sequences = &self.model, ids.shape[0], starts.shape[0] - 1
        s.ids, s.starts, s.first_positions = &ids[0], &starts[0], &first_positions[0]
        s.page_type = PAGE_TYPES[pages.dtype]
        s.written = &written[0] if written is not None else NULL
        for group in range(tables.shape[0]):
            set_pages(&s, group, pages)
            s.pages[group].tables, s.pages[group].table_pages = &tables[group, 0, 0], tables.shape[2]
        with nogil:
            run(&s, &lists[0], &wanted[0] if wanted.shape[0] else NULL, wanted.shape[0],
                &logits[0, 0] if logits is not None and wanted.shape[0] else NULL,
                &hidden[0, 0] if hidden is not None and wanted.shape[0] else NULL)


cdef int set_pages(Step *s, ptrdiff_t group, pages) except -1:
    cdef size_t keys = pages.keys[group].ctypes.data, values = pages.values[group].ctypes.data
    s.pages[group].keys, s.pages[group].values = <char *>keys, <char *>values
    s.pages[group].layers = pages.keys[group].shape[1]
    s.page_bytes = pages.keys[group].itemsize * PAGE_KEYS * s.model.head_dim
    if s.page_type == PAGES_INT8:
        keys, values = pages.key_scales[group].ctypes.data, pages.value_scales[group].ctypes.data
        s.pages[group].key_scales, s.pages[group].value_scales = <float *>keys, <float *>values
    return 0


cdef int run(Step *s, int64_t *lists, const int64_t *wanted, ptrdiff_t wanted_count, float *logits, float *hidden) except -1 nogil:
    """The data's flow: embedding, layers, norm, head. lists: keep_wanted's."""
    cdef const Model *m = s.model
    cdef ptrdiff_t i
    cdef Step kept
    cdef Passage p
    keep_wanted(s, wanted, wanted_count, lists)
    prepare(s, wanted_count)
    pool_run(embed_block, s, blocks_of(s.tokens))
    p.step, p.attended = s, NULL
    for i in range(m.layers):
        s.layer = &m.layer[i]
        if i == m.layers - 1 and s.kept_starts != NULL:
            p.next = NULL
            pass_on(&p)
            by_length(s, remember_all, s.layer)
            kept = kept_step(s)
            if wanted_count:
                run_kept(&kept, s.layer)
                run_head(&kept, lists + 2 * s.sequences + 1, wanted_count, logits, hidden)
            return 0
        p.next = s.layer
        pass_on(&p)
        attend(s)
        p.attended = s.layer
        if s.tokens > ROWS_A_BLOCK:  # a long step: Ctrl-C is noticed between layers
            with gil:
                PyErr_CheckSignals()
    p.next = NULL
    pass_on(&p)
    if wanted_count:
        run_head(s, wanted, wanted_count, logits, hidden)
    return 0


cdef int prepare(Step *s, ptrdiff_t wanted_count) except -1 nogil:
    """All of the step's memory, in one piece, and attention's tasks."""
    cdef const Model *m = s.model
    cdef ptrdiff_t windows[MAX_GROUPS]
    cdef ptrdiff_t most_slots = 0, rows = max(s.tokens, wanted_count), bytes, group, last = m.layer[m.layers - 1].group, i
    cdef char *memory
    bytes = buffer_bytes(m, rows)
    s.slot_rows = most_written(s, s.starts)
    if s.kept_starts != NULL:
        s.slot_rows = max(s.slot_rows, most_written(s, s.kept_starts))
    for i in range(m.layers):
        windows[m.layer[i].group] = m.layer[i].window
    for group in range(MAX_GROUPS):
        if s.pages[group].keys == NULL:
            continue
        plan_attention(s, s.starts, s.first_positions, windows[group], &s.attend[group])
        bytes += plan_bytes(&s.attend[group])
        most_slots = max(most_slots, s.attend[group].slot_count)
    if s.kept_starts != NULL:
        plan_attention(s, s.kept_starts, s.kept_positions, windows[last], &s.kept_attend)
        bytes += plan_bytes(&s.kept_attend)
        most_slots = max(most_slots, s.kept_attend.slot_count)
    s.block_tokens = block_tokens_of(s)
    memory = <char *>pool_shared(bytes + lines(most_slots * slot_floats(s)))
    carve_buffers(s, &memory, rows)
    s.partials = take_floats(&memory, most_slots * slot_floats(s))
    for group in range(MAX_GROUPS):
        if s.pages[group].keys == NULL:
            continue
        carve_plan(&s.attend[group], &memory)
        plan_attention(s, s.starts, s.first_positions, windows[group], &s.attend[group])
    if s.kept_starts != NULL:
        carve_plan(&s.kept_attend, &memory)
        plan_attention(s, s.kept_starts, s.kept_positions, windows[last], &s.kept_attend)
    return 0


cdef struct Passage:
    # from one layer's attention to the next one's: every token alone
    Step *step
    const Layer *attended  # NULL: the step begins
    const Layer *next  # NULL: it ends


cdef int pass_on(Passage *p) except -1 nogil:
    if p.step.block_tokens < p.step.tokens:
        return pool_run(pass_block, p, (p.step.tokens + p.step.block_tokens - 1) // p.step.block_tokens)
    return pass_tokens(p, p.step)


cdef void pass_block(void *argument, ptrdiff_t block) noexcept nogil:
    cdef Passage *p = <Passage *>argument
    cdef ptrdiff_t first = block * p.step.block_tokens
    cdef Step b = tokens_of(p.step, first, min(p.step.block_tokens, p.step.tokens - first))
    pass_tokens(p, &b)


cdef int pass_tokens(const Passage *p, Step *s) except -1 nogil:
    if p.attended != NULL:
        by_length(s, finish_layer, p.attended)
    if p.next != NULL:
        by_length(s, begin_layer, p.next)
    return 0


cdef int begin_layer(Step *s, const Layer *layer) except -1 nogil:
    """As far as queries, keys and values."""
    cdef const Linear *maps[3]
    cdef float *outs[3]
    normalize(&layer.attention_norm, s.x, s.normed, s.tokens, s.model.dim, False)
    maps[0], maps[1], maps[2] = &layer.q, &layer.k, &layer.v
    outs[0], outs[1], outs[2] = s.q, s.k, s.v
    project(&s.bench, s.normed, s.tokens, s.model.dim, maps, outs, 3, LINEAR_STORE, 0, OUTLIER)
    return pool_run(turn_and_remember_block, s, token_blocks(s.tokens))


cdef int attend(Step *s) except -1 nogil:
    """What this layer reads from other tokens."""
    return pool_run(attend_block, s, s.attend[s.layer.group].task_count)


cdef int finish_layer(Step *s, const Layer *layer) except -1 nogil:
    """What it makes of it, each token alone: attention's output map and feedforward."""
    cdef const Model *m = s.model
    cdef const Linear *maps[1]
    cdef const Linear *gate = &layer.gate if layer.gated else NULL
    cdef float *outs[1]
    maps[0], outs[0] = &layer.output, s.normed if layer.attention_post_norm.present else s.x
    project(&s.bench, s.attended, s.tokens, m.heads * m.head_dim, maps, outs, 1,
            LINEAR_STORE if layer.attention_post_norm.present else LINEAR_ADD, 0, 0)
    if layer.attention_post_norm.present:
        normalize(&layer.attention_post_norm, s.normed, s.x, s.tokens, m.dim, True)
    normalize(&layer.feedforward_norm, s.x, s.normed, s.tokens, m.dim, False)
    if layer.feedforward_post_norm.present:
        feed_forward(&s.bench, gate, &layer.up, &layer.down, m.activation, s.normed, s.tokens, m.dim, m.hidden, s.normed,
                     LINEAR_STORE, OUTLIER)
        return normalize(&layer.feedforward_post_norm, s.normed, s.x, s.tokens, m.dim, True)
    return feed_forward(&s.bench, gate, &layer.up, &layer.down, m.activation, s.normed, s.tokens, m.dim, m.hidden, s.x, LINEAR_ADD,
                        OUTLIER)


# ---- the last layer, where something is wanted of some tokens only ----

cdef int remember_all(Step *s, const Layer *layer) except -1 nogil:
    """As far as all tokens take part in it: keys and values."""
    cdef const Linear *maps[2]
    cdef float *outs[2]
    normalize(&layer.attention_norm, s.x, s.normed, s.tokens, s.model.dim, False)
    maps[0], maps[1], outs[0], outs[1] = &layer.k, &layer.v, s.k, s.v
    project(&s.bench, s.normed, s.tokens, s.model.dim, maps, outs, 2, LINEAR_STORE, 0, OUTLIER)
    return pool_run(remember_block, s, token_blocks(s.tokens))


cdef int run_kept(Step *s, const Layer *layer) except -1 nogil:
    """And the rest of it, for tokens that something is wanted of."""
    by_length(s, begin_kept, layer)
    attend(s)
    return by_length(s, finish_layer, layer)


cdef int begin_kept(Step *s, const Layer *layer) except -1 nogil:
    """As far as queries."""
    cdef const Linear *maps[1]
    cdef float *outs[1]
    maps[0], outs[0] = &layer.q, s.q
    project(&s.bench, s.normed, s.tokens, s.model.dim, maps, outs, 1, LINEAR_STORE, 0, OUTLIER)
    return pool_run(turn_block, s, token_blocks(s.tokens))


cdef int run_head(Step *s, const int64_t *wanted, ptrdiff_t count, float *logits, float *hidden) except -1 nogil:
    cdef const Model *m = s.model
    cdef const Linear *maps[1]
    cdef float *outs[1]
    cdef ptrdiff_t i, stop
    for i in range(count):
        norm_row(&m.final_norm, s.x + wanted[i] * m.dim, s.normed + i * m.dim, m.dim, False)
    if hidden != NULL:
        memcpy(hidden, s.normed, sizeof(float) * count * m.dim)
    if logits == NULL:
        return 0
    maps[0], i = &m.head, 0
    while i < count:
        outs[0], stop = logits + i * m.vocab, wanted_alike(s, wanted, count, i)
        s.bench.few, s.bench.read = stop - i <= FEW_TOKENS, False
        project(&s.bench, s.normed + i * m.dim, stop - i, m.dim, maps, outs, 1, LINEAR_STORE, 0, HEAD_OUTLIER)
        i = stop
    if m.logit_softcap > 0:
        for i in range(count * m.vocab):
            logits[i] = m.logit_softcap * tanhf(logits[i] / m.logit_softcap)
    return 0

"""A whole encoder in Cython: one call takes the tokens of any number of sequences through all layers, without the GIL.

Norms, linear maps and feedforward are the decoder's (decoder/parts.pxi), and so is what a few rows of queries do with a
block of keys (decoder/attend.h). Where there are sequences for every thread, each thread takes a few of them through all
layers: nobody waits, and what is read was written by the same core (step.pxi). Shapes and meaning: reference.py, spec.py.
Knows nothing of pooling.
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
include "encoder/step.pxi"

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Calloc, PyMem_Free

import numpy as np

from fastmixer.kernels.activations import ACTIVATIONS


cdef class Encoder:
    """The layers of an EncoderSpec. One object may be called from several threads."""

    cdef readonly object spec
    cdef Model model

    def __cinit__(self, spec):
        self.model.layer = <Layer *>PyMem_Calloc(len(spec.layers), sizeof(Layer))
        if self.model.layer == NULL:
            raise MemoryError

    def __init__(self, spec):
        cdef Model *m = &self.model
        cdef ptrdiff_t i
        self.spec = spec
        m.dim, m.heads, m.head_dim, m.hidden, m.layers = spec.dim, spec.heads, spec.head_dim, spec.hidden, len(spec.layers)
        m.pre, m.activation, m.attention_scale = spec.placement == "pre", ACTIVATIONS[spec.activation], spec.attention_scale
        m.embedding = matrix_of(spec.embedding)
        m.positions = table_of(spec.positions) if spec.positions is not None else NULL
        m.token_types = table_of(spec.token_types) if spec.token_types is not None else NULL
        m.embedding_norm, m.final_norm = norm_of(spec.embedding_norm), norm_of(spec.final_norm)
        if spec.relative is not None:
            m.relative, m.distance = table_of(spec.relative), spec.relative.shape[1] // 2
        for i in range(m.layers):
            m.layer[i] = layer_of(spec.layers[i])
        m.rounded, m.paired = is_rounded(m), is_paired(m)

    def __dealloc__(self):
        PyMem_Free(self.model.layer)

    def forward(self, const int64_t[::1] ids, const int64_t[::1] starts, const int64_t[::1] token_types, float[:, ::1] hidden):
        """hidden [tokens, dim] after the final norm. Shapes: reference.py."""
        cdef Call call
        cdef Step s
        cdef ptrdiff_t threads = pool_threads(), alone = 0  # chunks that are one thread's each; all threads share the rest
        if ids.shape[0] == 0:
            return
        call.model, call.sequences = &self.model, starts.shape[0] - 1
        call.ids, call.starts, call.hidden = &ids[0], &starts[0], &hidden[0, 0]
        call.token_types = &token_types[0] if token_types is not None else NULL
        cdef int64_t[::1] bounds = np.empty(call.sequences + 1, np.int64)
        call.bounds = &bounds[0]
        with nogil:
            call.chunks = cut_into_chunks(&call)
            if call.chunks >= CHUNKS_A_THREAD * threads:
                alone = call.chunks // threads * threads
            pool_run(chunk_block, &call, alone)
            if alone < call.chunks:
                s = step_of(&call, call.bounds[alone], call.sequences)
                run(&s, True)


cdef void chunk_block(void *argument, ptrdiff_t chunk) noexcept nogil:
    """A few sequences through all layers on this thread alone."""
    cdef Call *call = <Call *>argument
    cdef Step s = step_of(call, call.bounds[chunk], call.bounds[chunk + 1])
    run(&s, False)


cdef int run(Step *s, bint signals) except -1 nogil:
    """The data's flow: embedding, layers, norm."""
    cdef const Model *m = s.model
    cdef ptrdiff_t i
    prepare(s)
    pool_run(embed_block, s, blocks_of(s.tokens))
    for i in range(m.layers):
        s.layer = &m.layer[i]
        if m.rounded:
            run_rounded_layer(s, s.layer)
        else:
            run_layer(s, s.layer)
        if signals:  # Ctrl-C is noticed between layers
            with gil:
                PyErr_CheckSignals()
    if m.final_norm.present:
        normalize(&m.final_norm, s.x, s.x, s.tokens, m.dim, False)
    return 0


cdef int run_layer(Step *s, const Layer *layer) except -1 nogil:
    """In bfloat16 (model.paired) what a map reads is rounded where it is made: norms fill bench.pairs, attention its result."""
    cdef const Model *m = s.model
    cdef const Linear *maps[3]
    cdef float *outs[3]
    cdef const float *x = NULL if m.paired else s.x
    cdef float *pairs = s.bench.pairs if m.paired else NULL
    cdef Bench after = s.bench  # what reads attention's result
    # attention: what a token reads from the others of its sequence
    if m.pre and layer.attention_norm.present:
        normalize(&layer.attention_norm, s.x, s.normed, s.tokens, m.dim, False, NULL, pairs)
        x = NULL if m.paired else s.normed
    maps[0], maps[1], maps[2] = &layer.q, &layer.k, &layer.v
    outs[0], outs[1], outs[2] = s.q, s.k, s.v
    project(&s.bench, x, s.tokens, m.dim, maps, outs, 3, LINEAR_STORE, 0, 0)
    if layer.half:
        pool_run(turn_block, s, blocks_of(s.tokens))
    pool_run(attend_block, s, s.tasks)
    maps[0], outs[0] = &layer.output, s.x
    if m.paired:
        after.pairs = s.attended
    project(&after, NULL if m.paired else s.attended, s.tokens, m.heads * m.head_dim, maps, outs, 1, LINEAR_ADD, 0, 0)
    if not m.pre:
        normalize(&layer.attention_norm, s.x, s.x, s.tokens, m.dim, False, NULL, pairs)
    # feedforward: what it makes of it, each token alone
    x = NULL if m.paired else s.x
    if m.pre:
        normalize(&layer.feedforward_norm, s.x, s.normed, s.tokens, m.dim, False, NULL, pairs)
        x = NULL if m.paired else s.normed
    feed_forward(&s.bench, &layer.gate if layer.gated else NULL, &layer.up, &layer.down, m.activation, x, s.tokens, m.dim,
                 m.hidden, s.x, LINEAR_ADD)
    if not m.pre:
        normalize(&layer.feedforward_norm, s.x, s.x, s.tokens, m.dim, False, NULL, pairs)
    return 0


cdef int run_rounded_layer(Step *s, const Layer *layer) except -1 nogil:
    """The same of a model whose norms come after each branch, in 8 bits: rows are rounded by the thread that made them."""
    cdef const Model *m = s.model
    cdef const Linear *maps[3]
    cdef float *outs[3]
    cdef ChannelRows hidden = carve_channel(s.bench.wide, s.tokens, m.hidden)
    # attention
    maps[0], maps[1], maps[2] = &layer.q, &layer.k, &layer.v
    outs[0], outs[1], outs[2] = s.q, s.k, s.v
    channel_project(&s.rounded, s.tokens, maps, outs, 3, LINEAR_STORE, 0, NULL)
    if layer.half:
        pool_run(turn_block, s, blocks_of(s.tokens))
    pool_run(attend_block, s, s.tasks)
    maps[0], outs[0] = &layer.output, s.x
    project(&s.bench, s.attended, s.tokens, m.heads * m.head_dim, maps, outs, 1, LINEAR_ADD, 0, 0)
    normalize(&layer.attention_norm, s.x, s.x, s.tokens, m.dim, False, &s.rounded)
    # feedforward
    maps[0] = &layer.up
    channel_project(&s.rounded, s.tokens, maps, NULL, 1, LINEAR_ACTIVATE, m.activation, &hidden)
    maps[0], outs[0] = &layer.down, s.x
    channel_project(&hidden, s.tokens, maps, outs, 1, LINEAR_ADD, 0, NULL)
    return normalize(&layer.feedforward_norm, s.x, s.x, s.tokens, m.dim, False, &s.rounded)

# A DecoderSpec (spec.py) as native code sees it: pointers into its arrays, which the Decoder object keeps alive.

from cpython.mem cimport PyMem_Calloc, PyMem_Free


cdef struct Layer:
    Norm attention_norm, q_norm, k_norm, attention_post_norm, feedforward_norm, feedforward_post_norm
    Linear q, k, v, output, gate, up, down
    bint gated
    ptrdiff_t window  # 0: none
    const float *cos  # [context, half] or NULL
    const float *sin
    ptrdiff_t half  # numbers of a head that turn, halved
    ptrdiff_t group, index


cdef struct Model:
    ptrdiff_t dim, heads, kv_heads, head_dim, hidden, vocab, layers
    bint shared  # every thread may run all of a layer's maps on tokens of its own
    bint has_rows  # of any map in a layer the weights lie as rows
    int activation
    float attention_scale, attention_softcap, logit_softcap, embedding_scale
    Matrix embedding
    const float *positions  # [context, dim] or NULL
    Norm final_norm
    Linear head
    Layer *layer


cdef Layer layer_of(layer) except *:
    cdef Layer l
    memset(&l, 0, sizeof(l))
    l.attention_norm, l.q_norm, l.k_norm = norm_of(layer.attention_norm), norm_of(layer.q_norm), norm_of(layer.k_norm)
    l.attention_post_norm, l.feedforward_norm = norm_of(layer.attention_post_norm), norm_of(layer.feedforward_norm)
    l.feedforward_post_norm = norm_of(layer.feedforward_post_norm)
    l.q, l.k, l.v, l.output = linear_of(layer.q), linear_of(layer.k), linear_of(layer.v), linear_of(layer.output)
    l.gate, l.up, l.down = linear_of(layer.gate), linear_of(layer.up), linear_of(layer.down)
    l.gated, l.window, l.group, l.index = layer.gate is not None, layer.window, layer.group, layer.index
    if layer.cos is not None:
        l.cos, l.sin, l.half = table_of(layer.cos), table_of(layer.sin), layer.cos.shape[1]
    return l


cdef enum:
    SHARED_BYTES = 33554432  # of a layer's weights at most, where every thread reads them all: a shared cache holds them


cdef void look_at_weights(Model *m) noexcept nogil:
    """Sets has_rows and shared."""
    cdef const Linear *maps[7]
    cdef const Layer *l
    cdef ptrdiff_t i, map, bytes, most = 0
    m.has_rows = False
    for i in range(m.layers):
        l, bytes = &m.layer[i], 0
        maps[0], maps[1], maps[2], maps[3], maps[4], maps[5], maps[6] = &l.q, &l.k, &l.v, &l.output, &l.up, &l.down, &l.gate
        for map in range(7 if l.gated else 6):
            if in_blocks(&maps[map].weight):
                bytes += panels_of(&maps[map].weight.packed) * maps[map].weight.packed.panel_bytes
            else:
                m.has_rows = True
        most = max(most, bytes)
    m.shared = not m.has_rows and most <= SHARED_BYTES  # rows may have to be packed on the way

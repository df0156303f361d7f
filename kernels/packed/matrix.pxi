# A PackedWeight (kernels/packed/__init__.py) as native code sees it. The Python object must outlive the Matrix.

cdef extern from "packed/pack.h" nogil:
    void unpack_row(const PackedMatrix *w, ptrdiff_t output, float *out)

cdef extern from "packed/channel.h" nogil:
    void unpack_channel_row(const ChannelMatrix *w, ptrdiff_t output, float *out)


cdef struct Matrix:
    PackedMatrix packed  # 4 and 8 bits in blocks
    ChannelMatrix channel  # 8 bits, one scale an output; numbers NULL: it is not that
    const float *rows  # float32 [outputs, width], or pairs of bfloat16 [outputs, width / 2]; NULL: another form
    const float *panels  # the same as gemm's panels (matmul/panels.pxi); NULL: another form
    bint bfloat16
    ptrdiff_t outputs, inputs, width


cdef Matrix matrix_of(weight) except *:
    cdef Matrix m
    cdef const uint8_t[::1] data
    cdef const int64_t[::1] layout
    cdef const float[:, ::1] floats
    cdef const float[::1] panels
    cdef const float[::1] scales
    cdef const uint16_t[:, ::1] halves
    memset(&m, 0, sizeof(m))
    m.outputs, m.inputs = weight.outputs, weight.inputs
    if weight.kind in ("float32_panels", "bfloat16_panels"):
        panels = weight.arrays["panels"]
        m.panels, m.bfloat16, m.width = &panels[0], weight.kind == "bfloat16_panels", m.inputs
    elif weight.kind == "float32":
        floats = weight.arrays["rows"]
        m.rows, m.width = &floats[0, 0], floats.shape[1]
    elif weight.kind == "bfloat16":
        halves = weight.arrays["rows"]
        m.rows, m.bfloat16, m.width = <const float *>&halves[0, 0], True, halves.shape[1]
    elif weight.kind == "int8_channel":
        data, scales = weight.arrays["data"], weight.arrays["scales"]
        m.channel.numbers, m.channel.scales = &data[0], &scales[0]
        m.channel.outputs, m.channel.inputs, m.channel.steps = m.outputs, m.inputs, (m.inputs + 3) // 4
    else:
        data, layout = weight.arrays["data"], weight.arrays["layout"]
        m.packed.data = &data[0]
        m.packed.outputs, m.packed.inputs = m.outputs, m.inputs
        m.packed.pairs = (m.inputs + PAIR - 1) // PAIR
        m.packed.bits, m.packed.half, m.packed.minimum = layout[0], layout[1], layout[2]
        m.packed.panel_bytes = m.packed.pairs * packed_pair_bytes(m.packed.bits, m.packed.half, m.packed.minimum)
    return m


cdef inline bint in_channels(const Matrix *m) noexcept nogil:
    """Whether the weight has one scale an output."""
    return m.channel.numbers != NULL


cdef inline bint in_blocks(const Matrix *m) noexcept nogil:
    return m.rows == NULL and m.panels == NULL and not in_channels(m)


cdef inline bint in_pairs(const Matrix *m) noexcept nogil:
    """Whether the weight is panels of bfloat16."""
    return m.bfloat16 and m.panels != NULL


cdef inline bint in_floats(const Matrix *m) noexcept nogil:
    """Whether the weight is exact to float32."""
    return not m.bfloat16 and (m.rows != NULL or m.panels != NULL)


cdef void panels_row(const Matrix *m, ptrdiff_t row, float *out) noexcept nogil:
    cdef ptrdiff_t depth = halved(m.inputs) if m.bfloat16 else m.inputs, k, i
    cdef uint32_t word, bits
    for k in range(depth):
        memcpy(&word, m.panels + (row // TILE_COLUMNS * depth + k) * TILE_COLUMNS + row % TILE_COLUMNS, sizeof(word))
        if not m.bfloat16:
            memcpy(out + k, &word, sizeof(word))
            continue
        for i in range(min(2, m.inputs - 2 * k)):
            bits = word << 16 if i == 0 else word & <uint32_t>0xFFFF0000
            memcpy(out + 2 * k + i, &bits, sizeof(bits))


cdef inline void matrix_row(const Matrix *m, ptrdiff_t row, float *out) noexcept nogil:
    """out [inputs] = the values of one output's weights."""
    cdef const uint16_t *halves
    cdef uint32_t bits
    cdef ptrdiff_t i
    if m.panels != NULL:
        panels_row(m, row, out)
    elif in_channels(m):
        unpack_channel_row(&m.channel, row, out)
    elif in_blocks(m):
        unpack_row(&m.packed, row, out)
    elif m.bfloat16:
        halves = <const uint16_t *>m.rows + row * m.width
        for i in range(m.inputs):
            bits = <uint32_t>halves[i] << 16
            memcpy(out + i, &bits, sizeof(float))
    else:
        memcpy(out, m.rows + row * m.width, sizeof(float) * m.inputs)

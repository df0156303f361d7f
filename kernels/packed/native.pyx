"""Linear maps over weights of 4 and 8 bits, bfloat16 or float32, in Cython. Shapes and meaning: reference.py.

4 and 8 bits: panels of VF_WIDTH columns, in blocks (tile.h, pack.h, packed.pxi) or with one scale a column (channel.h,
channel.pxi). bfloat16 and float32 stay rows, as they lie in a
file, or become panels, and go through the GEMM of kernels/matmul (rows.pxi). Knows nothing of models.
"""

include "vec.pxi"
include "matmul/gemm.pxi"
include "matmul/linear.pxi"
include "matmul/panels.pxi"
include "packed/packed.pxi"
include "packed/channel.pxi"
include "packed/rows.pxi"
include "packed/matrix.pxi"

import numpy as np

from fastmixer.kernels.memory import Arena
from fastmixer.kernels.packed import PackedWeight
from fastmixer.kernels.packed.formats import TYPES, dequantize
from fastmixer.kernels.threads import parallel_for

cdef extern from "packed/pack.h" nogil:
    enum: HALF_SCALES
    enum: FROM_FLOAT
    enum: FROM_F16
    enum: FROM_Q3_K
    enum: FROM_Q6_K
    void pack_panel_of_blocks(const PackedMatrix *w, uint8_t *data, ptrdiff_t panel, int origin, const uint8_t *raw,
                              ptrdiff_t row_bytes)
    void widen_row(int origin, const uint8_t *row, ptrdiff_t inputs, float *out)

cdef extern from "packed/channel.h" nogil:
    void pack_channel_panel(const ChannelMatrix *w, uint8_t *numbers, float *scales, ptrdiff_t panel, const float *values)

BY_NAME = {block_type.name: block_type for block_type in TYPES.values()}
# Formats whose blocks are packed with their values, name -> number in pack.h; and which a kind holds.
ORIGINS = {"Q4_0": 0, "Q4_1": 1, "Q4_K": 2, "Q5_0": 3, "Q5_1": 4, "Q8_0": 5, "IQ4_NL": 6}
EXACT = {"int4": ("Q4_0", "Q4_1", "Q4_K"), "int8": tuple(ORIGINS)}
# Formats that are widened here: one product a number at most (where one is added to it, compilers make an FMA of both, and
# the last bit is not NumPy's).
WIDENED_HERE = {"F16": FROM_F16, "Q3_K": FROM_Q3_K, "Q6_K": FROM_Q6_K}
WIDENED = 1 << 16  # numbers that one thread widens at a time with NumPy
FLOAT_PANELS = 64  # panels' worth of rows that are widened to floats at once when a format is rounded


cdef struct PackTask:
    PackedMatrix w
    uint8_t *data
    const uint8_t *raw
    ptrdiff_t row_bytes, first_panel
    int origin


cdef struct WidenTask:
    const uint8_t *raw
    ptrdiff_t row_bytes, inputs
    float *out  # [rows, inputs]
    int origin


def pack_weight(raw, str type_name, ptrdiff_t outputs, ptrdiff_t inputs, str kind):
    """The weight [outputs, inputs] whose blocks are raw: uint8 [outputs, bytes a row], as PackedWeight of this kind."""
    if kind.endswith("_panels"):
        return _pack_into_panels(pack_weight(raw, type_name, outputs, inputs, kind.removesuffix("_panels")))
    if kind == "int8_channel":
        return _pack_channels(raw, type_name, outputs, inputs)
    if kind in ("int4", "int8"):
        return _pack_panels(raw, type_name, outputs, inputs, kind)
    if kind == "bfloat16":
        if type_name == "BF16" and inputs % 2 == 0:
            rows = raw.view(np.uint16)
        else:
            rows = _rounded(raw, type_name, inputs)
    else:
        rows = _widened(raw, type_name, inputs)
    return PackedWeight(kind, outputs, inputs, {"rows": rows})


def _pack_into_panels(weight):
    """A weight that lies as rows as gemm's panels."""
    cdef PanelsTask p
    cdef const float[:, ::1] rows = weight.arrays["rows"].view(np.float32)
    p.weight, p.k_stride, p.column_stride = &rows[0, 0], 1, rows.shape[1]
    p.k, p.n = rows.shape[1], weight.outputs
    panels = _memory.empty(panels_size(p.k, p.n), np.float32)
    cdef float[::1] view = panels
    p.packed = &view[0]
    with nogil:
        pack_panels(&p)
    return PackedWeight(f"{weight.kind}_panels", weight.outputs, weight.inputs, {"panels": panels})


def _widened(raw, str type_name, inputs):
    """float32 [outputs, inputs]: the values of raw's blocks. Of formats that are not widened here rows are shared among Python
    threads: NumPy lets the GIL go."""
    cdef WidenTask p
    cdef const uint8_t[:, ::1] raw_view
    cdef float[:, ::1] values_view
    if type_name == "F32":
        return raw.view(np.float32)
    values = np.empty((len(raw), inputs), np.float32)
    if type_name in WIDENED_HERE:
        raw_view, values_view = np.ascontiguousarray(raw), values
        p.raw, p.row_bytes, p.inputs, p.out = &raw_view[0, 0], raw_view.shape[1], inputs, &values_view[0, 0]
        p.origin = WIDENED_HERE[type_name]
        with nogil:
            pool_run(widen_one, &p, values_view.shape[0])
        return values

    def widen(part):
        values[part] = dequantize(raw[part], BY_NAME[type_name])

    _for_rows(widen, len(raw), inputs)
    return values


cdef void widen_one(void *argument, ptrdiff_t task) noexcept nogil:
    cdef WidenTask *p = <WidenTask *>argument
    widen_row(p.origin, p.raw + task * p.row_bytes, p.inputs, p.out + task * p.inputs)


def _rounded(raw, str type_name, inputs):
    """uint16 [outputs, inputs, or one more where that is odd]: the same in bfloat16, to nearest, ties to even; zeros behind
    the last."""
    cdef const float[:, ::1] values
    cdef uint32_t[:, ::1] words
    cdef ptrdiff_t first, count = FLOAT_PANELS * VF_WIDTH
    rows = np.empty((len(raw), inputs + inputs % 2), np.uint16)
    words = rows.view(np.uint32)
    for first in range(0, len(rows), count):
        values = np.ascontiguousarray(_widened(raw[first : first + count], type_name, inputs))
        with nogil:
            make_pairs_along(&values[0, 0], values.shape[0], values.shape[1], <float *>&words[first, 0])
    return rows


def _for_rows(function, rows, inputs):
    """function(slice of rows), each of about WIDENED numbers, which stay in a cache between NumPy's steps."""
    count = max(1, WIDENED // inputs)
    parallel_for(lambda task: function(slice(task * count, (task + 1) * count)), -(-rows // count))


def _pack_panels(raw, str type_name, ptrdiff_t outputs, ptrdiff_t inputs, str kind):
    cdef PackTask p
    cdef uint8_t[::1] data_view
    cdef const uint8_t[:, ::1] raw_view
    cdef ptrdiff_t panels = (outputs + VF_WIDTH - 1) // VF_WIDTH, panel, count
    exact = type_name in EXACT[kind]
    p.w.bits = 4 if kind == "int4" else 8
    p.w.half = exact and type_name != "Q4_K" and HALF_SCALES
    p.w.minimum = kind == "int4" or type_name in ("Q4_0", "Q4_1", "Q4_K", "Q5_1")
    p.w.outputs, p.w.inputs, p.w.pairs = outputs, inputs, (inputs + PAIR - 1) // PAIR
    p.w.panel_bytes = p.w.pairs * packed_pair_bytes(p.w.bits, p.w.half, p.w.minimum)
    data = _memory.empty(panels * p.w.panel_bytes, np.uint8)
    data_view = data
    p.data = &data_view[0]
    p.w.data = p.data
    p.origin = ORIGINS[type_name] if exact else FROM_FLOAT
    panel = 0
    while panel < panels:
        count = panels if exact else min(FLOAT_PANELS, panels - panel)
        blocks = raw[panel * VF_WIDTH : (panel + count) * VF_WIDTH]
        if not exact:  # FROM_FLOAT: read as bytes all the same
            blocks = np.ascontiguousarray(_widened(blocks, type_name, inputs)).view(np.uint8)
        raw_view = np.ascontiguousarray(blocks)
        p.row_bytes, p.first_panel = raw_view.shape[1], panel
        # the task counts outputs from the weight's first row, which would lie here
        p.raw = &raw_view[0, 0] - panel * VF_WIDTH * p.row_bytes
        with nogil:
            pool_run(pack_block, &p, count)
        panel += count
    layout = np.array([p.w.bits, p.w.half, p.w.minimum], np.int64)
    return PackedWeight(kind, outputs, inputs, {"data": data, "layout": layout})


cdef void pack_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef PackTask *p = <PackTask *>argument
    pack_panel_of_blocks(&p.w, p.data, p.first_panel + task, p.origin, p.raw, p.row_bytes)


cdef struct ChannelPackTask:
    ChannelMatrix w
    uint8_t *numbers
    float *scales
    const float *values


def _pack_channels(raw, str type_name, ptrdiff_t outputs, ptrdiff_t inputs):
    cdef ChannelPackTask p
    cdef ptrdiff_t panels
    cdef const float[:, ::1] values = np.ascontiguousarray(_widened(raw, type_name, inputs))
    p.w.outputs, p.w.inputs, p.w.steps = outputs, inputs, (inputs + 3) // 4
    panels = channel_panels(&p.w)
    data, scales = _memory.empty(panels * channel_panel_bytes(&p.w), np.uint8), np.empty(panels * VF_WIDTH, np.float32)
    cdef uint8_t[::1] data_view = data
    cdef float[::1] scales_view = scales
    p.numbers, p.scales, p.values = &data_view[0], &scales_view[0], &values[0, 0]
    with nogil:
        pool_run(pack_channel_block, &p, panels)
    return PackedWeight("int8_channel", outputs, inputs, {"data": data, "scales": scales})


cdef void pack_channel_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef ChannelPackTask *p = <ChannelPackTask *>argument
    pack_channel_panel(&p.w, p.numbers, p.scales, task, p.values)


# A decode step runs through all weights, and page by small page the processor's prefetching stops at every end.
_memory = Arena()


def packed_linear(const float[:, ::1] x, weight, const float[::1] bias, float[:, ::1] out, ptrdiff_t outliers=0):
    """out [tokens, outputs] = x [tokens, inputs] W^T + bias. outliers: of each row of x, numbers that stay as they are."""
    cdef Matrix matrix = matrix_of(weight)
    cdef LinearTask op
    cdef RowsTask rows
    cdef float *pairs
    cdef ChannelTask channel
    if x.shape[0] == 0:
        return
    memset(&op, 0, sizeof(op))
    memset(&rows, 0, sizeof(rows))
    memset(&channel, 0, sizeof(channel))
    if in_channels(&matrix):
        channel.parts[0].weight, channel.parts[0].bias = &matrix.channel, &bias[0] if bias is not None else NULL
        channel.parts[0].out, channel.tokens, channel.count = &out[0, 0], x.shape[0], 1
        with nogil:
            channel.x = carve_channel(pool_shared(channel_bytes(x.shape[0], x.shape[1])), x.shape[0], x.shape[1])
            round_channel_rows(&x[0, 0], x.shape[0], x.shape[1], &channel.x)
            channel_linears(&channel)
    elif in_blocks(&matrix):
        with nogil:
            op.tokens, op.count = x.shape[0], 1
            op.x = carve_quantized(
                pool_shared(quantized_bytes(op.tokens, matrix.packed.pairs, outliers)), op.tokens, matrix.packed.inputs, outliers
            )
            quantize_rows(&x[0, 0], x.shape[1], op.tokens, x.shape[1], &op.x)
            op.parts[0].weight, op.parts[0].bias = matrix.packed, &bias[0] if bias is not None else NULL
            op.parts[0].out, op.parts[0].out_row = &out[0, 0], out.shape[1]
            packed_linears(&op)
    else:
        rows.x, rows.weight, rows.panels, rows.bfloat16 = &x[0, 0], matrix.rows, matrix.panels, matrix.bfloat16
        rows.bias, rows.out = &bias[0] if bias is not None else NULL, &out[0, 0]
        rows.tokens, rows.inputs, rows.outputs = x.shape[0], x.shape[1], out.shape[1]
        with nogil:
            if matrix.bfloat16:
                pairs = <float *>pool_shared(sizeof(float) * (x.shape[0] * halved(x.shape[1])))
                make_pairs_along(&x[0, 0], x.shape[0], x.shape[1], pairs)
                rows.pairs = pairs
            linear_rows(&rows)


def packed_rows(weight, const int64_t[::1] ids, float[:, ::1] out):
    """out [tokens, inputs] = the weights of outputs `ids`: an embedding's rows."""
    cdef Matrix matrix = matrix_of(weight)
    cdef ptrdiff_t t
    for t in range(ids.shape[0]):
        matrix_row(&matrix, ids[t], &out[t, 0])

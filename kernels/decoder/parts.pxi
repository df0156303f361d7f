# What decoders and encoders are made of: norms, linear maps, feedforward, over rows of tokens. Include after "vec.pxi",
# "norm/sums.pxi", "matmul/gemm.pxi", "matmul/linear.pxi", "packed/packed.pxi", "packed/channel.pxi", "packed/rows.pxi" and
# "packed/matrix.pxi".

from libc.math cimport INFINITY, expf, fabsf, nearbyintf, sqrtf, tanhf

cdef enum:
    ROWS_A_BLOCK = 8  # rows a task of norms and rotations: up to so many the caller does alone


cdef struct Bench:
    # what linear maps need beside their input and output
    float *wide  # [tokens, hidden]
    float *other  # [tokens, hidden]
    float *pairs  # [tokens, widest / 2]
    void *quantized
    bint tiles  # x of packed weights is rounded to bfloat16 and multiplied by AMX, instead of to 8 bits
    bint few  # x has FEW_TOKENS rows at most, each of which comes out as it would alone
    bint read  # x is of a text that comes out the same however it is cut


cdef inline ptrdiff_t blocks_of(ptrdiff_t rows) noexcept nogil:
    return (rows + ROWS_A_BLOCK - 1) // ROWS_A_BLOCK


# ---- memory ----

cdef inline float *take_floats(char **memory, ptrdiff_t count) noexcept nogil:
    """The next `count` floats of memory, beginning at a cache line."""
    cdef float *taken = <float *>memory[0]
    memory[0] += lines(count)
    return taken


cdef inline ptrdiff_t lines(ptrdiff_t count) noexcept nogil:
    """Bytes that take_floats takes."""
    return (count * <ptrdiff_t>sizeof(float) + 63) // 64 * 64


cdef inline ptrdiff_t bench_bytes(ptrdiff_t tokens, ptrdiff_t hidden, ptrdiff_t widest) noexcept nogil:
    return 2 * lines(tokens * hidden) + lines(tokens * halved(widest)) + quantized_most(tokens, widest) + 64


cdef inline ptrdiff_t quantized_most(ptrdiff_t tokens, ptrdiff_t widest) noexcept nogil:
    """Bytes of bench.quantized; no more than one number in PAIR is an outlier."""
    return quantized_bytes(tokens, widest // PAIR + 1, widest // PAIR + 1)


cdef inline void carve_bench(Bench *bench, char **memory, ptrdiff_t tokens, ptrdiff_t hidden, ptrdiff_t widest) noexcept nogil:
    bench.wide, bench.other = take_floats(memory, tokens * hidden), take_floats(memory, tokens * hidden)
    bench.pairs = take_floats(memory, tokens * halved(widest))
    bench.quantized = take_floats(memory, (quantized_most(tokens, widest) + 3) // 4)
    bench.tiles, bench.few, bench.read = False, False, False


# ---- from specs ----

cdef struct Norm:
    bint present, layernorm
    const float *weight
    const float *bias  # NULL: none
    float epsilon


cdef struct Linear:
    Matrix weight
    const float *bias  # NULL: none


cdef const float *vector_of(array) except? NULL:
    cdef const float[::1] view = array
    return &view[0]


cdef const float *table_of(array) except? NULL:
    cdef const float[:, ::1] view = array
    return &view[0, 0]


cdef Norm norm_of(norm) except *:
    cdef Norm n
    memset(&n, 0, sizeof(n))
    if norm is not None:
        n.present, n.layernorm, n.epsilon = True, norm.kind == "layernorm", norm.epsilon
        n.weight = vector_of(norm.weight)
        n.bias = vector_of(norm.bias) if norm.bias is not None else NULL
    return n


cdef Linear linear_of(linear) except *:
    cdef Linear l
    memset(&l, 0, sizeof(l))
    if linear is not None:
        l.weight = matrix_of(linear.weight)
        l.bias = vector_of(linear.bias) if linear.bias is not None else NULL
    return l


# ---- norms ----

cdef struct NormTask:
    const Norm *norm
    const float *x  # [rows, width]
    float *out
    ptrdiff_t rows, width
    bint add  # out += the normed row: a branch joins the residual stream
    const ChannelRows *rounded  # NULL, or out once more in 8 bits
    float *pairs  # NULL, or once more in pairs: [rows, halved(width)]


cdef int normalize(const Norm *norm, const float *x, float *out, ptrdiff_t rows, ptrdiff_t width, bint add,
                   const ChannelRows *rounded = NULL, float *pairs = NULL) except -1 nogil:
    cdef NormTask n
    n.norm, n.x, n.out, n.rows, n.width, n.add, n.rounded, n.pairs = norm, x, out, rows, width, add, rounded, pairs
    return pool_run(norm_block, &n, (rows + ROWS_A_BLOCK - 1) // ROWS_A_BLOCK)


cdef void norm_block(void *argument, ptrdiff_t task) noexcept nogil:
    cdef NormTask *n = <NormTask *>argument
    cdef ptrdiff_t row
    for row in range(task * ROWS_A_BLOCK, min(n.rows, (task + 1) * ROWS_A_BLOCK)):
        norm_row(n.norm, n.x + row * n.width, n.out + row * n.width, n.width, n.add)
        if n.rounded != NULL:
            round_channel_row(n.out + row * n.width, n.width, n.rounded, row)
        if n.pairs != NULL:
            row_along(n.out + row * n.width, n.width, n.pairs + row * halved(n.width))


cdef void norm_row(const Norm *norm, const float *x, float *out, ptrdiff_t width, bint add) noexcept nogil:
    """One row normalized: LayerNorm or RMSNorm."""
    cdef float mean = row_sum(x, width) / width if norm.layernorm else 0
    cdef vf inverse = vf_set(1 / sqrtf(row_square_sum(x, mean, width) / width + norm.epsilon)), middle = vf_set(mean), value
    cdef ptrdiff_t i = 0, left
    while i < width:
        left = width - i
        value = vf_mul(vf_mul(vf_sub(load_part(x + i, left), middle), inverse), load_part(norm.weight + i, left))
        if norm.bias != NULL:
            value = vf_add(value, load_part(norm.bias + i, left))
        if add:
            value = vf_add(load_part(out + i, left), value)
        store_part(out + i, value, left)
        i += VF_WIDTH


# ---- linear maps ----

cdef int project(const Bench *bench, const float *x, ptrdiff_t rows, ptrdiff_t width, const Linear **linears, float **outs, int count,
                 int mode, int activation, ptrdiff_t one_in) except -1 nogil:
    """Up to three linear maps of x [rows, width], into outs [rows, outputs] of each; those of packed weights in one region, of x in
    8 bits with one in so many numbers kept as outliers (0: none), or in bfloat16 (bench.tiles). x is NULL where bench.pairs holds
    it and all weights are in bfloat16."""
    cdef LinearTask packed
    cdef RowsTask dense
    cdef ChannelTask channel
    cdef bint paired = x == NULL
    cdef ptrdiff_t i
    memset(&packed, 0, sizeof(packed))
    memset(&channel, 0, sizeof(channel))
    for i in range(count):
        if in_channels(&linears[i].weight):
            channel.parts[channel.count].weight, channel.parts[channel.count].bias = &linears[i].weight.channel, linears[i].bias
            channel.parts[channel.count].out = outs[i]
            channel.count += 1
        elif in_blocks(&linears[i].weight):
            packed.parts[packed.count].weight, packed.parts[packed.count].bias = linears[i].weight.packed, linears[i].bias
            packed.parts[packed.count].out, packed.parts[packed.count].out_row = outs[i], linears[i].weight.outputs
            packed.count += 1
        else:
            if linears[i].weight.bfloat16 and not paired:
                make_pairs_along(x, rows, width, bench.pairs)
                paired = True
            dense = rows_task(bench, x, rows, width, linears[i], outs[i], mode, activation)
            linear_rows(&dense)
    if channel.count:
        channel.x, channel.tokens = carve_channel(bench.quantized, rows, width), rows
        channel.mode, channel.activation = mode, activation
        round_channel_rows(x, rows, width, &channel.x)
        channel_linears(&channel)
    if packed.count:
        if bench.tiles:
            if not paired:
                make_pairs_along(x, rows, width, bench.pairs)
            packed.pairs = bench.pairs
        else:
            packed.x = carve_quantized(bench.quantized, rows, width, outliers_of(width, one_in))
            quantize_rows(x, width, rows, width, &packed.x)
        packed.tokens, packed.mode, packed.activation = rows, mode, activation
        packed_linears(&packed)
    return 0


cdef inline RowsTask rows_task(const Bench *bench, const float *x, ptrdiff_t rows, ptrdiff_t width, const Linear *linear, float *out,
                               int mode, int activation) noexcept nogil:
    """A map of weights that lie as rows or as panels of them; x in pairs is in bench.pairs already."""
    cdef RowsTask dense
    memset(&dense, 0, sizeof(dense))
    dense.x, dense.pairs, dense.few, dense.read = x, bench.pairs, bench.few, bench.read
    dense.weight, dense.panels, dense.bfloat16 = linear.weight.rows, linear.weight.panels, linear.weight.bfloat16
    dense.bias, dense.out, dense.tokens, dense.inputs, dense.outputs = linear.bias, out, rows, width, linear.weight.outputs
    dense.mode, dense.activation = mode, activation
    return dense


cdef int channel_project(const ChannelRows *x, ptrdiff_t rows, const Linear **linears, float **outs, int count, int mode,
                         int activation, const ChannelRows *rounded) except -1 nogil:
    """project() of weights with one scale an output and of x in 8 bits; into rounded instead of outs where that is given."""
    cdef ChannelTask channel
    cdef ptrdiff_t i
    memset(&channel, 0, sizeof(channel))
    for i in range(count):
        channel.parts[i].weight, channel.parts[i].bias = &linears[i].weight.channel, linears[i].bias
        channel.parts[i].out = outs[i] if rounded == NULL else NULL
    channel.x, channel.tokens, channel.count, channel.rounded = x[0], rows, count, rounded
    channel.mode, channel.activation = mode, activation
    return channel_linears(&channel)


cdef int feed_forward(const Bench *bench, const Linear *gate, const Linear *up, const Linear *down, int activation, const float *x,
                      ptrdiff_t rows, ptrdiff_t dim, ptrdiff_t hidden, float *out, int mode, ptrdiff_t one_in=0) except -1 nogil:
    """out = (out +) down(act(gate) * up), or down(act(up)) if gate is NULL, of x [rows, dim]; one_in: of x, as in project()."""
    cdef const Linear *maps[2]
    cdef float *outs[2]
    cdef Gating g
    maps[0], maps[1], outs[0], outs[1] = up, NULL, bench.wide, NULL
    if gate == NULL and in_pairs(&up.weight) and in_pairs(&down.weight) and can_pass_pairs(dim, hidden):
        return feed_forward_in_pairs(bench, up, down, activation, x, rows, dim, hidden, out, mode)
    if gate == NULL:
        project(bench, x, rows, dim, maps, outs, 1, LINEAR_ACTIVATE, activation, one_in)
    elif in_blocks(&gate.weight) and in_blocks(&up.weight):
        maps[0], maps[1], outs[1] = gate, up, bench.other
        project(bench, x, rows, dim, maps, outs, 2, LINEAR_GATE, activation, one_in)
    else:
        maps[0], outs[0] = gate, bench.wide
        project(bench, x, rows, dim, maps, outs, 1, LINEAR_ACTIVATE, activation, one_in)
        maps[0], outs[0] = up, bench.other
        project(bench, x, rows, dim, maps, outs, 1, LINEAR_STORE, 0, one_in)
        g.out, g.factor, g.rows, g.width = bench.wide, bench.other, rows, hidden
        pool_run(gate_block, &g, (rows + ROWS_A_BLOCK - 1) // ROWS_A_BLOCK)
    maps[0], outs[0] = down, out
    return project(bench, bench.wide, rows, hidden, maps, outs, 1, mode, 0, 0)


cdef int feed_forward_in_pairs(const Bench *bench, const Linear *up, const Linear *down, int activation, const float *x, ptrdiff_t rows,
                               ptrdiff_t dim, ptrdiff_t hidden, float *out, int mode) except -1 nogil:
    """down(act(up)) in bfloat16: what the second map reads is rounded by the first one's epilogue."""
    cdef RowsTask task = rows_task(bench, x, rows, dim, up, NULL, LINEAR_ACTIVATE, activation)
    if x != NULL:
        make_pairs_along(x, rows, dim, bench.pairs)
    task.out_pairs = bench.wide
    linear_rows(&task)
    task = rows_task(bench, NULL, rows, hidden, down, out, mode, 0)
    task.pairs = bench.wide
    return linear_rows(&task)


cdef struct Gating:
    float *out  # [rows, width]
    const float *factor
    ptrdiff_t rows, width


cdef void gate_block(void *argument, ptrdiff_t task) noexcept nogil:
    """out *= factor."""
    cdef Gating *g = <Gating *>argument
    cdef ptrdiff_t i
    for i in range(task * ROWS_A_BLOCK * g.width, min(g.rows, (task + 1) * ROWS_A_BLOCK) * g.width):
        g.out[i] *= g.factor[i]

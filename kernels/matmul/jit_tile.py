"""The register tile of the packed GEMM for Numba, as tile.h: written in LLVM's vectors, because sums that live in an
array would go through memory once a multiply-add.

Addresses and strides come as integers (strides in floats). Knows nothing of blocks, tasks or epilogues.
"""

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = binding.get_host_cpu_features()
if _FEATURES.get("avx512f"):
    WIDTH, TILE_ROWS, TILE_VECTORS = 16, 8, 3  # 24 sums of 32 registers
elif _FEATURES.get("avx2"):
    WIDTH, TILE_ROWS, TILE_VECTORS = 8, 6, 2  # 12 sums of 16 registers
else:
    WIDTH, TILE_ROWS, TILE_VECTORS = 4, 6, 2
TILE_COLUMNS = WIDTH * TILE_VECTORS

_FLOAT_BYTES = 4
_INDEX = ir.IntType(64)
_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, WIDTH)
_LANE = ir.IntType(32)
_FUSE = ("contract",)  # an FMA where the processor has one


def _constant(value):
    return ir.Constant(_INDEX, value)


def _bytes(builder, floats):
    return builder.mul(floats, _constant(_FLOAT_BYTES))


def _load(builder, address, kind):
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=_FLOAT_BYTES)


def _store(builder, value, address):
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=_FLOAT_BYTES)


def _shuffle(builder, a, b, lanes):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_LANE, len(lanes)), lanes))


@intrinsic
def tile_multiply(typing, a, a_row, a_k, rows, panel, depth, sums):
    """sums [TILE_ROWS, TILE_COLUMNS] = A B over depth >= 1; A's row i of `rows` starts at a + i * a_row and moves by
    a_k a k (rows past the end repeat the last one); B is a packed panel [depth, TILE_COLUMNS]."""

    def generate(context, builder, signature, arguments):
        a, a_row, a_k, rows, panel, depth, sums = arguments
        last_row = builder.sub(rows, _constant(1))
        row_bytes, step_bytes = _bytes(builder, a_row), _bytes(builder, a_k)
        starts = []
        for i in range(TILE_ROWS):
            within = builder.icmp_signed("<", _constant(i), rows)
            row = builder.select(within, _constant(i), last_row)
            starts.append(builder.add(a, builder.mul(row, row_bytes)))
        before = builder.block
        loop, after = builder.append_basic_block("k"), builder.append_basic_block("done")
        builder.branch(loop)

        builder.position_at_end(loop)
        k, a_offset, b_address = builder.phi(_INDEX), builder.phi(_INDEX), builder.phi(_INDEX)
        totals = [[builder.phi(_VECTOR) for _ in range(TILE_VECTORS)] for _ in range(TILE_ROWS)]
        b = [
            _load(builder, builder.add(b_address, _constant(j * WIDTH * _FLOAT_BYTES)), _VECTOR)
            for j in range(TILE_VECTORS)
        ]
        following = []
        for i in range(TILE_ROWS):
            scalar = _load(builder, builder.add(starts[i], a_offset), _FLOAT)
            single = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(_LANE, 0))
            broadcast = _shuffle(builder, single, single, [0] * WIDTH)
            products = (builder.fmul(broadcast, b[j], flags=_FUSE) for j in range(TILE_VECTORS))
            following.append([builder.fadd(p, totals[i][j], flags=_FUSE) for j, p in enumerate(products)])
        next_k = builder.add(k, _constant(1))
        next_a = builder.add(a_offset, step_bytes)
        next_b = builder.add(b_address, _constant(TILE_COLUMNS * _FLOAT_BYTES))
        builder.cbranch(builder.icmp_signed("<", next_k, depth), loop, after)
        for phi, start, step in (
            (k, _constant(0), next_k),
            (a_offset, _constant(0), next_a),
            (b_address, panel, next_b),
        ):
            phi.add_incoming(start, before)
            phi.add_incoming(step, loop)
        for i in range(TILE_ROWS):
            for j in range(TILE_VECTORS):
                totals[i][j].add_incoming(ir.Constant(_VECTOR, [0.0] * WIDTH), before)
                totals[i][j].add_incoming(following[i][j], loop)

        builder.position_at_end(after)
        for i in range(TILE_ROWS):
            for j in range(TILE_VECTORS):
                offset = (i * TILE_COLUMNS + j * WIDTH) * _FLOAT_BYTES
                _store(builder, following[i][j], builder.add(sums, _constant(offset)))
        return context.get_dummy_value()

    index = types.intp
    return types.void(index, index, index, index, index, index, index), generate


@intrinsic
def transpose_square(typing, source, source_stride, target, target_stride):
    """target[c * target_stride + r] = source[r * source_stride + c] for a square of WIDTH x WIDTH."""

    def generate(context, builder, signature, arguments):
        source, source_stride, target, target_stride = arguments
        source_bytes, target_bytes = _bytes(builder, source_stride), _bytes(builder, target_stride)
        rows = [
            _load(builder, builder.add(source, builder.mul(source_bytes, _constant(r))), _VECTOR) for r in range(WIDTH)
        ]
        # log2(WIDTH) rounds: each swaps the off-diagonal halves of 2 x 2 blocks of `distance` x `distance`
        distance = 1
        while distance < WIDTH:
            lower = [lane if not lane & distance else WIDTH + lane - distance for lane in range(WIDTH)]
            upper = [lane + distance if not lane & distance else WIDTH + lane for lane in range(WIDTH)]
            for r in range(WIDTH):
                if not r & distance:
                    first, second = rows[r], rows[r + distance]
                    rows[r] = _shuffle(builder, first, second, lower)
                    rows[r + distance] = _shuffle(builder, first, second, upper)
            distance *= 2
        for r in range(WIDTH):
            _store(builder, rows[r], builder.add(target, builder.mul(target_bytes, _constant(r))))
        return context.get_dummy_value()

    index = types.intp
    return types.void(index, index, index, index), generate


@intrinsic
def float_pointer(typing, address):
    """The address as a pointer to float32, which numba.carray makes an array of."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.intp), generate


@intrinsic
def prefetch(typing, address):
    """Ask for the cache line at this address."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], cgutils.voidptr_t)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _LANE, _LANE, _LANE])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, second_level, data = ir.Constant(_LANE, 0), ir.Constant(_LANE, 2), ir.Constant(_LANE, 1)
        builder.call(function, [pointer, read, second_level, data])
        return context.get_dummy_value()

    return types.void(types.intp), generate

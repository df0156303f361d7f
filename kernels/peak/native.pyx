"""What this machine can do at most: fused multiply-adds from registers, bytes from memory.

Every share of a peak that fastmixer prints stands over these figures, probed in the same run. Knows nothing of ops.
"""

include "vec.pxi"

cdef extern from *:
    """
    #include "amx.h"
    #include "bfloat16.h"
    #include "packed/dot.h"
    #include "vec.h"
    /* Twelve independent sums hide the latency of the multiply-add; without fast-math no round can be folded. */
    #define PEAK_SUMS 12
    VEC_INLINE float peak_rounds(const int pairs, long rounds) {
        vf sums[PEAK_SUMS], a = vf_set(0.5f), b = vf_set(0.25f);
        for (int i = 0; i < PEAK_SUMS; i++) sums[i] = vf_set((float)i);
        for (long round = 0; round < rounds; round++)
            for (int i = 0; i < PEAK_SUMS; i++) sums[i] = pairs ? bf16_dot(sums[i], a, b) : vf_fma(a, sums[i], b);
        vf total = vf_zero();
        for (int i = 0; i < PEAK_SUMS; i++) total = vf_add(total, sums[i]);
        return vf_sum(total);
    }
    /* The same of pairs by tiles, of which six are sums: TILE_OPERATIONS a round. */
    #if AMX
    #define TILE_OPERATIONS (6.0 * AMX_ROWS * AMX_WORDS * AMX_WORDS * 4)
    static float peak_tile_rounds(long rounds) {
        tiles_begin();
        TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2); TILE_ZERO(3); TILE_ZERO(4); TILE_ZERO(5); TILE_ZERO(6); TILE_ZERO(7);
        for (long round = 0; round < rounds; round++) {
            TILE_DOT(0, 6, 7); TILE_DOT(1, 6, 7); TILE_DOT(2, 6, 7); TILE_DOT(3, 6, 7); TILE_DOT(4, 6, 7); TILE_DOT(5, 6, 7);
        }
        tiles_end();
        return 0;
    }
    #else
    #define TILE_OPERATIONS (4.0 * VF_WIDTH * PEAK_SUMS)
    static float peak_tile_rounds(long rounds) { return peak_rounds(1, rounds); }
    #endif
    /* The compiler must not know that x stays as it is: without VNNI it would multiply once and add forever. */
    #if defined(__x86_64__)
    #define PEAK_HIDE(x) __asm__ volatile("" : "+x"(x))
    #else
    #define PEAK_HIDE(x) __asm__ volatile("" : "+m"(x))
    #endif
    VEC_INLINE float peak_dot_rounds(long rounds) {
        vi sums[PEAK_SUMS], numbers = vi_set(0x01010101), x = vi_set(0x01010101);
        for (int i = 0; i < PEAK_SUMS; i++) sums[i] = vi_set(i);
        for (long round = 0; round < rounds; round++) {
            PEAK_HIDE(x);
            for (int i = 0; i < PEAK_SUMS; i++) {
    #if !defined(__AVX512VNNI__)
                PEAK_HIDE(x);
    #endif
                sums[i] = vi_dot(sums[i], numbers, x);
            }
        }
        float total = 0;
        for (int i = 0; i < PEAK_SUMS; i++) total += (float)vi_sum(sums[i]);
        return total;
    }
    """
    enum: PEAK_SUMS
    float peak_rounds(int pairs, long rounds) noexcept nogil
    double TILE_OPERATIONS
    float peak_tile_rounds(long rounds) noexcept nogil
    float peak_dot_rounds(long rounds) noexcept nogil


cdef struct FmaTask:
    long rounds
    float *sink


cdef void fma_task(void *argument, ptrdiff_t task) noexcept nogil:
    cdef FmaTask *probe = <FmaTask *>argument
    probe.sink[task] = peak_rounds(0, probe.rounds)


cdef void pairs_task(void *argument, ptrdiff_t task) noexcept nogil:
    cdef FmaTask *probe = <FmaTask *>argument
    probe.sink[task] = peak_tile_rounds(probe.rounds)


cdef void dot_task(void *argument, ptrdiff_t task) noexcept nogil:
    cdef FmaTask *probe = <FmaTask *>argument
    probe.sink[task] = peak_dot_rounds(probe.rounds)


def fma_rounds(float[::1] sink, long rounds):
    """One task an element of sink: float32 [threads], each `rounds` times over; returns the floating-point operations."""
    cdef FmaTask probe
    cdef ptrdiff_t tasks = sink.shape[0]
    probe.rounds = rounds
    probe.sink = &sink[0]
    with nogil:
        pool_run(fma_task, &probe, tasks)
    return 2.0 * VF_WIDTH * PEAK_SUMS * rounds * tasks


def bfloat16_rounds(float[::1] sink, long rounds):
    """As fma_rounds, with products of bfloat16 in pairs, by vectors of them or by tiles."""
    cdef FmaTask probe
    cdef ptrdiff_t tasks = sink.shape[0]
    probe.rounds = rounds
    probe.sink = &sink[0]
    with nogil:
        pool_run(pairs_task, &probe, tasks)
    return TILE_OPERATIONS * rounds * tasks


def int8_rounds(float[::1] sink, long rounds):
    """As fma_rounds, with products of 8-bit integers in fours, as kernels/packed/dot.h adds them up."""
    cdef FmaTask probe
    cdef ptrdiff_t tasks = sink.shape[0]
    probe.rounds = rounds
    probe.sink = &sink[0]
    with nogil:
        pool_run(dot_task, &probe, tasks)
    return 8.0 * VF_WIDTH * PEAK_SUMS * rounds * tasks


cdef enum:
    READ_BLOCK = 1 << 16  # floats a task: 256 KB


cdef struct ReadTask:
    const float *data
    ptrdiff_t count
    float *sink


cdef void read_task(void *argument, ptrdiff_t task) noexcept nogil:
    cdef ReadTask *probe = <ReadTask *>argument
    cdef const float *data = probe.data + task * READ_BLOCK
    cdef ptrdiff_t count = min(READ_BLOCK, probe.count - task * READ_BLOCK)
    cdef vf s0 = vf_zero(), s1 = vf_zero(), s2 = vf_zero(), s3 = vf_zero()
    cdef ptrdiff_t i = 0
    while i + 4 * VF_WIDTH <= count:
        s0 = vf_add(s0, vf_load(data + i))
        s1 = vf_add(s1, vf_load(data + i + VF_WIDTH))
        s2 = vf_add(s2, vf_load(data + i + 2 * VF_WIDTH))
        s3 = vf_add(s3, vf_load(data + i + 3 * VF_WIDTH))
        i += 4 * VF_WIDTH
    probe.sink[task] = vf_sum(vf_add(vf_add(s0, s1), vf_add(s2, s3)))


def read_memory(const float[::1] data, float[::1] sink):
    """Read data: float32 [n] once on all threads into sink: float32 [ceil(n / 65536)]; returns the bytes read."""
    cdef ReadTask probe
    cdef ptrdiff_t tasks = (data.shape[0] + READ_BLOCK - 1) // READ_BLOCK
    probe.data = &data[0]
    probe.count = data.shape[0]
    probe.sink = &sink[0]
    with nogil:
        pool_run(read_task, &probe, tasks)
    return 4.0 * data.shape[0]


cdef struct UpdateTask:
    float *data
    ptrdiff_t count


cdef void update_task(void *argument, ptrdiff_t task) noexcept nogil:
    cdef UpdateTask *probe = <UpdateTask *>argument
    cdef float *data = probe.data + task * READ_BLOCK
    cdef ptrdiff_t count = min(READ_BLOCK, probe.count - task * READ_BLOCK)
    cdef vf half = vf_set(0.5)
    cdef ptrdiff_t i = 0
    while i + 4 * VF_WIDTH <= count:
        vf_store(data + i, vf_fma(vf_load(data + i), half, half))
        vf_store(data + i + VF_WIDTH, vf_fma(vf_load(data + i + VF_WIDTH), half, half))
        vf_store(data + i + 2 * VF_WIDTH, vf_fma(vf_load(data + i + 2 * VF_WIDTH), half, half))
        vf_store(data + i + 3 * VF_WIDTH, vf_fma(vf_load(data + i + 3 * VF_WIDTH), half, half))
        i += 4 * VF_WIDTH


def update_memory(float[::1] data):
    """Read data: float32 [n], n a multiple of 65536, change it and write it back, once, on all threads; returns the
    bytes read and written."""
    cdef UpdateTask probe
    cdef ptrdiff_t tasks = (data.shape[0] + READ_BLOCK - 1) // READ_BLOCK
    probe.data = &data[0]
    probe.count = data.shape[0]
    with nogil:
        pool_run(update_task, &probe, tasks)
    return 8.0 * data.shape[0]

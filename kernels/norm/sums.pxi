# Sums over a row, as norms need them: four at once, as one would wait for itself. Include after "vec.pxi".


cdef inline float row_sum(const float *x, ptrdiff_t dim) noexcept nogil:
    cdef vf s0 = vf_zero(), s1 = vf_zero(), s2 = vf_zero(), s3 = vf_zero()
    cdef ptrdiff_t i = 0
    while i + 4 * VF_WIDTH <= dim:
        s0 = vf_add(s0, vf_load(x + i))
        s1 = vf_add(s1, vf_load(x + i + VF_WIDTH))
        s2 = vf_add(s2, vf_load(x + i + 2 * VF_WIDTH))
        s3 = vf_add(s3, vf_load(x + i + 3 * VF_WIDTH))
        i += 4 * VF_WIDTH
    while i + VF_WIDTH <= dim:
        s0 = vf_add(s0, vf_load(x + i))
        i += VF_WIDTH
    s1 = vf_add(s1, vf_load_first(x + i, dim - i))
    return vf_sum(vf_add(vf_add(s0, s1), vf_add(s2, s3)))


cdef inline vf add_square(vf total, vf value) noexcept nogil:
    return vf_fma(value, value, total)


# The sum of (x - centre)^2.
cdef inline float row_square_sum(const float *x, float centre, ptrdiff_t dim) noexcept nogil:
    cdef vf s0 = vf_zero(), s1 = vf_zero(), s2 = vf_zero(), s3 = vf_zero(), middle = vf_set(centre)
    cdef ptrdiff_t i = 0
    while i + 4 * VF_WIDTH <= dim:
        s0 = add_square(s0, vf_sub(vf_load(x + i), middle))
        s1 = add_square(s1, vf_sub(vf_load(x + i + VF_WIDTH), middle))
        s2 = add_square(s2, vf_sub(vf_load(x + i + 2 * VF_WIDTH), middle))
        s3 = add_square(s3, vf_sub(vf_load(x + i + 3 * VF_WIDTH), middle))
        i += 4 * VF_WIDTH
    while i + VF_WIDTH <= dim:
        s0 = add_square(s0, vf_sub(vf_load(x + i), middle))
        i += VF_WIDTH
    cdef float total = vf_sum(vf_add(vf_add(s0, s1), vf_add(s2, s3)))
    while i < dim:
        total += (x[i] - centre) * (x[i] - centre)
        i += 1
    return total

# A constant B, packed once as the panels that gemm reads from g.packed_b: include after "matmul/gemm.pxi".


cdef struct PanelsTask:
    const float *weight  # B: its rows k_stride apart, its columns column_stride
    ptrdiff_t k_stride, column_stride
    float *packed  # [panels_size(k, n)]
    ptrdiff_t k, n


cdef inline ptrdiff_t panels_size(ptrdiff_t k, ptrdiff_t n) noexcept nogil:
    """Floats (or pairs of bfloat16) of all panels."""
    return k * ((n + TILE_COLUMNS - 1) // TILE_COLUMNS * TILE_COLUMNS)


cdef int pack_panels(PanelsTask *p) except -1 nogil:
    return pool_run(pack_panel_block, p, (p.n + TILE_COLUMNS - 1) // TILE_COLUMNS)


cdef void pack_panel_block(void *argument, ptrdiff_t panel) noexcept nogil:
    cdef PanelsTask *p = <PanelsTask *>argument
    cdef ptrdiff_t column = panel * TILE_COLUMNS
    pack_panel(
        p.weight + column * p.column_stride, p.k_stride, p.column_stride, p.k, min(TILE_COLUMNS, p.n - column),
        p.packed + panel * p.k * TILE_COLUMNS,
    )

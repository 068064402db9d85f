# Block passes: LANES whole rows of neighbouring classes, each row by vectors as in the row passes.
#
# What a row has one number of (a maximum, a sum, a factor) lies side by side, a row in each lane,
# and no step of one row waits for that of another. A row's exponentials are kept in vectors in
# split order: that of class c lies at kept[k * stride + split_place(c)].

cdef inline vector block_maximum(
    const char *x, Py_ssize_t row_stride, Py_ssize_t n
) noexcept nogil:
    """row_maximum() of each row."""
    cdef vector[16] maxima
    cdef Py_ssize_t k
    for k in range(LANES):
        maxima[k] = row_maxima(<const storage *>(x + k * row_stride), n)
    return rows_maximum(maxima)


cdef struct BlockOutput:
    # What to write for the rows of a block, and where.
    const real *kept
    Py_ssize_t stride
    real[16] factor
    real[16] factor_rest
    bint by_label
    int64_t[16] label        # the class of each row that gets at_label instead
    real[16] at_label
    unsigned int ignored     # bit k: row k gets 0
    storage *out             # the rows lie one behind the other
    bint stream


cdef inline void block_write_row(
    const BlockOutput *block, Py_ssize_t k, Py_ssize_t n
) noexcept nogil:
    """Write row k to where it goes."""
    if block.stream:
        block_unpack(block, k, n, block.out + k * n, True, False)
    else:
        block_unpack(block, k, n, block.out + k * n, False, k + 1 < LANES)


cdef inline void block_pack(const BlockOutput *block, Py_ssize_t n, Line *line) noexcept nogil:
    """Lay the rows one behind the other, for lines that are written with the next block."""
    cdef Py_ssize_t k
    lines_close(line)
    for k in range(LANES):
        block_unpack(block, k, n, line.elements + line.pending + k * n, False, True)
    lines_open(line, block.out, LANES * n, True)


cdef inline void block_unpack(
    const BlockOutput *block, Py_ssize_t k, Py_ssize_t n, storage *row, bint stream, bint overrun,
) noexcept nogil:
    """Compute row k; `stream`: past the caches; `overrun`: its last vector may be whole."""
    cdef const real *kept = block.kept + k * block.stride
    cdef Pair factor
    cdef vector v
    cdef Py_ssize_t i = 0
    factor.high = vector_set(block.factor[k])
    factor.low = vector_set(block.factor_rest[k])
    while i + LANES <= n:
        v = output_product(vector_get(kept + i), factor)
        if stream:
            # Split order is the usual one then; see BLOCKS_STREAM.
            vector_stream(row + i, v)
        else:
            split_store(row + i, v)
        i += LANES
    if i < n:
        v = output_product(vector_get(kept + i), factor)
        if overrun:
            split_store(row + i, v)
        else:
            split_store_first(row + i, v, n - i)
    if block.by_label:
        storage_write(<char *>(row + block.label[k]), block.at_label[k])
        if block.ignored >> k & 1:
            memset(row, 0, n * sizeof(storage))


cdef inline void block_exponentials(
    const char *x, Py_ssize_t row_stride, Py_ssize_t n, Reference references, const Scale *scale_,
    real *kept, Py_ssize_t stride, Py_ssize_t ahead, const BlockOutput *behind, Line *line_,
    bint general,
) noexcept nogil:
    """Keep the exponentials, 0 past the end of a row.

    Memory is kept busy meanwhile, see row_exponentials(): what lies `ahead` is fetched; the rows of
    another block, `behind` (NULL for none), or its lines are written. `general` (see scale_with) is
    a constant where this is called.
    """
    cdef Scale local = scale_with(scale_, general)
    cdef Reference reference
    cdef real[16] shift
    cdef real[16] exponent
    cdef const storage *row
    cdef Py_ssize_t k, i
    cdef Line line = line_[0]
    vector_put(shift, references.shift)
    vector_put(exponent, references.exponent)
    for k in range(LANES):
        row = <const storage *>(x + k * row_stride)
        reference.shift = vector_set(shift[k])
        reference.exponent = vector_set(exponent[k])
        i = 0
        while i + LANES <= n:
            prefetch(<const char *>(row + i) + ahead)
            if line.lines > 0:
                line_write(&line)
            vector_put(
                kept + k * stride + i, exponential(split_load(row + i), reference, &local))
            i += LANES
        if i < n:
            vector_put(kept + k * stride + i, exponential(
                split_load_first(row + i, n - i), reference, &local))
        if behind != NULL:
            block_write_row(behind, k, n)
    line_[0] = line


cdef inline Pair block_sums(const real *kept, Py_ssize_t stride, Py_ssize_t n) noexcept nogil:
    """The sums of the rows, of what row_exponentials() adds up."""
    cdef real[256] high         # LANES * LANES numbers
    cdef real[256] low
    cdef Pair total
    cdef vector[RUN] e
    cdef Py_ssize_t k, i, j
    for k in range(LANES):
        i = 0
        while i < n:
            for j in range(RUN):
                e[j] = vector_set(0.0)
                if i + j * LANES < n:
                    e[j] = vector_get(kept + k * stride + i + j * LANES)
            if i == 0:
                total = pair_from(run_sum(e))
            else:
                total = pair_add(total, run_sum(e))
            i += RUN * LANES
        vector_put(high + k * LANES, split_join(total.high))
        vector_put(low + k * LANES, split_join(total.low))
    return rows_reduce(high, low, LANES, n)

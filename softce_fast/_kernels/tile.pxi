# Tile passes: LANES rows side by side, one row in each lane.
#
# A tile holds class c of its rows at tile[c * LANES]. How the rows lie in memory matters only when a
# tile is filled and when it is emptied; the arithmetic between is that of the row passes, operation
# by operation and in the same order, so that a row comes out the same, bit for bit.


cdef inline void tile_load(
    real *tile, const char *x, Py_ssize_t class_stride, Py_ssize_t row_stride,
    const Py_ssize_t *offsets, Py_ssize_t n, Py_ssize_t rows,
) noexcept nogil:
    """Fill a tile with n classes; `offsets` are those of the rows, even steps of row_stride if not 0."""
    cdef vector[QUARTER_LANES] columns
    cdef Py_ssize_t c, k, start, count
    if rows == LANES and row_stride == sizeof(storage):
        for c in range(n):
            vector_put(tile + c * LANES, vector_load(
                <const storage *>(x + offsets[0] + c * class_stride)))
    elif rows == LANES and row_stride != 0 and class_stride == sizeof(storage):
        count = min(n, <Py_ssize_t>QUARTER_LANES)
        c = 0
        while c < n:
            # The last step is taken back so far that it is a whole one.
            start = min(c, n - count)
            vectors_load_rows(
                columns, x + offsets[0] + start * class_stride, row_stride, count)
            for k in range(count):
                vector_put(tile + (start + k) * LANES, columns[k])
            c += QUARTER_LANES
    else:
        for c in range(n):
            for k in range(LANES):
                # Lanes without a row repeat the first one.
                tile[c * LANES + k] = storage_read(
                    x + c * class_stride + (offsets[k] if k < rows else offsets[0]))


cdef inline vector tile_maximum(const real *tile, Py_ssize_t n) noexcept nogil:
    cdef vector a = vector_set(NEGATIVE_INFINITY)
    cdef vector b = a
    cdef Py_ssize_t c = 0
    while c + 2 <= n:
        a = vector_maximum(vector_get(tile + c * LANES), a)
        b = vector_maximum(vector_get(tile + (c + 1) * LANES), b)
        c += 2
    if c < n:
        a = vector_maximum(vector_get(tile + c * LANES), a)
    return vector_maximum(a, b)


cdef inline vector tile_find(const real *tile, Py_ssize_t n, vector value) noexcept nogil:
    """The first class equal to `value`, row by row; -1 if there is none."""
    cdef vector found = vector_set(-1.0)
    cdef Py_ssize_t c
    for c in range(n - 1, -1, -1):
        found = vector_select(
            vector_equal(vector_get(tile + c * LANES), value), vector_set(<real>c), found)
    return found


cdef inline Pair tile_exponentials(
    real *tile, Py_ssize_t n, vector pivot, bint use_pivot, Reference reference,
    const Scale *scale_, bint keep, bint tempered,
) noexcept nogil:
    """Return the sums of the exponentials but the pivots'; keep them, in place, if asked to.

    The flags are constants where this is called, to keep branches out of the loop.
    """
    cdef Scale local = scale_with(scale_, tempered)
    cdef Scale *scale = &local
    cdef Pair[16] lane
    cdef vector[RUN] e
    cdef Py_ssize_t c = 0, k, j, width = LANES // 2
    for k in range(LANES):
        lane[k] = pair_from(vector_set(0.0))
    while c < n:
        for k in range(min(<Py_ssize_t>LANES, n - c)):
            for j in range(RUN):
                e[j] = tile_exponential(
                    tile, c + j * LANES + k, n, pivot, use_pivot, reference, scale, keep)
            lane[k] = pair_add(lane[k], run_sum(e))
        c += RUN * LANES
    # As vector_reduce_compensated has it.
    while width > 0:
        for k in range(width):
            lane[k] = pair_merge(lane[k], lane[k + width])
        width = width // 2
    return lane[0]


cdef inline Pair tile_exponentials_few(
    real *tile, Py_ssize_t n, vector pivot, bint use_pivot, Reference reference,
    const Scale *scale_, bint keep, bint tempered,
) noexcept nogil:
    """tile_exponentials for at most LANES classes: each is a lane of its own, added up plainly."""
    cdef Scale local = scale_with(scale_, tempered)
    cdef Scale *scale = &local
    cdef vector[16] lane
    cdef Py_ssize_t k, width = LANES // 2
    for k in range(n):
        lane[k] = tile_exponential(tile, k, n, pivot, use_pivot, reference, scale, keep)
    # As vector_reduce_sum has it.
    while width > 0:
        for k in range(min(width, n - width)):
            lane[k] = vector_add(lane[k], lane[k + width])
        width = width // 2
    return pair_from(lane[0])


cdef inline Pair tile_sums(
    real *tile, Py_ssize_t n, vector pivot, bint use_pivot, Reference reference,
    const Scale *scale, bint keep, bint tempered,
) noexcept nogil:
    if n <= LANES:
        return tile_exponentials_few(
            tile, n, pivot, use_pivot, reference, scale, keep, tempered)
    return tile_exponentials(tile, n, pivot, use_pivot, reference, scale, keep, tempered)


cdef inline vector tile_exponential(
    real *tile, Py_ssize_t c, Py_ssize_t n, vector pivot, bint use_pivot, Reference reference,
    const Scale *scale, bint keep,
) noexcept nogil:
    cdef vector e
    if c >= n:
        return vector_set(0.0)
    e = exponential(vector_get(tile + c * LANES), reference, scale)
    if keep:
        vector_put(tile + c * LANES, e)
    if use_pivot:
        e = vector_select(vector_equal(vector_set(<real>c), pivot), vector_set(0.0), e)
    return e


cdef inline void tile_store(
    real *tile, Py_ssize_t n, char *out, Py_ssize_t class_stride, Py_ssize_t row_stride,
    const Py_ssize_t *offsets, Py_ssize_t rows,
) noexcept nogil:
    """Write n classes of a tile to rows of any layout."""
    cdef Py_ssize_t c, k
    if rows == LANES and row_stride == sizeof(storage):
        for c in range(n):
            vector_store(
                <storage *>(out + offsets[0] + c * class_stride), vector_get(tile + c * LANES))
    else:
        for k in range(rows):
            for c in range(n):
                storage_write(out + offsets[k] + c * class_stride, tile[c * LANES + k])


cdef inline void tile_unpack(const real *tile, Py_ssize_t n, real *rows) noexcept nogil:
    """Lay the rows of a tile one behind the other; `rows` needs QUARTER_LANES numbers more."""
    cdef vector[QUARTER_LANES] columns
    cdef Py_ssize_t c = 0, k, start
    cdef Py_ssize_t count = min(n, <Py_ssize_t>QUARTER_LANES)
    while c < n:
        start = min(c, n - count)
        for k in range(QUARTER_LANES):
            columns[k] = vector_get(tile + (start + min(k, count - 1)) * LANES)
        vectors_put_rows(rows + start, n, columns)
        c += QUARTER_LANES

# Tile passes: LANES rows side by side, one row in each lane.
#
# A tile holds class c of its rows at tile[c * LANES]. How the rows lie in memory matters only when
# a tile is filled and when it is emptied; the arithmetic between is that of the row passes,
# operation by operation and in the same order, so that a row comes out the same, bit for bit.

cdef enum:
    # Packed rows up to this length go by tiles; within the caches, in float64, up to half of it.
    TILE_CLASSES = 120


cdef struct Offsets:
    # Where a group's rows lie in an array.
    Py_ssize_t step            # from one to the next; 0 if uneven, or fewer than LANES
    Py_ssize_t[16] of_row      # of each; where there is a step, of the first alone


cdef inline Py_ssize_t offset_of(const Offsets *offsets, Py_ssize_t k) noexcept nogil:
    if offsets.step != 0:
        return offsets.of_row[0] + k * offsets.step
    return offsets.of_row[k]


cdef inline void tile_load_packed(real *tile, const storage *x, Py_ssize_t n) noexcept nogil:
    """Fill a tile with n classes (2 to MOST_COLUMNS, a constant) of packed rows."""
    cdef vector[3] rows
    cdef vector[3] columns
    cdef Py_ssize_t c
    for c in range(n):
        rows[c] = vector_load(x + c * LANES)
    columns_from_rows(columns, rows, n)
    for c in range(n):
        vector_put(tile + c * LANES, columns[c])


cdef inline void tile_load(
    real *tile, const char *x, Py_ssize_t class_stride, const Offsets *offsets, Py_ssize_t n,
    Py_ssize_t rows,
) noexcept nogil:
    """Fill a tile with n classes."""
    cdef Py_ssize_t row_stride = offsets.step
    cdef vector[QUARTER_LANES] words
    cdef Py_ssize_t c, k, start
    if rows == LANES and row_stride == sizeof(storage):
        for c in range(n):
            vector_put(tile + c * LANES, vector_load(
                <const storage *>(x + offsets.of_row[0] + c * class_stride)))
    elif (
        2 <= n <= MOST_COLUMNS and rows == LANES and class_stride == sizeof(storage)
        and row_stride == n * <Py_ssize_t>sizeof(storage)
    ):
        if n == 2:
            tile_load_packed(tile, <const storage *>(x + offsets.of_row[0]), 2)
        else:
            tile_load_packed(tile, <const storage *>(x + offsets.of_row[0]), 3)
    elif rows == LANES and row_stride != 0 and class_stride == sizeof(storage):
        if n < QUARTER_CLASSES:
            words_load_first(words, x + offsets.of_row[0], row_stride, n)
            for k in range((n + WORD_CLASSES - 1) // WORD_CLASSES):
                word_put(tile + k * WORD_CLASSES * LANES, words[k], n - k * WORD_CLASSES)
            return
        c = 0
        while c < n:
            # The last step is taken back so far that it is a whole one.
            start = min(c, n - QUARTER_CLASSES)
            words_load(words, x + offsets.of_row[0] + start * class_stride, row_stride)
            for k in range(QUARTER_LANES):
                if start + (k + 1) * WORD_CLASSES > c:
                    word_put(
                        tile + (start + k * WORD_CLASSES) * LANES, words[k], WORD_CLASSES)
            c += QUARTER_CLASSES
    else:
        for c in range(n):
            for k in range(LANES):
                # Lanes without a row repeat the first one.
                tile[c * LANES + k] = storage_read(
                    x + c * class_stride + offset_of(offsets, k if k < rows else 0))


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


cdef struct TileCoefficients:
    # Of the classes in a dense target; see Coefficients.
    const real *weight
    const real *probabilities    # a tile of them
    vector share
    vector even


cdef inline vector tile_coefficient(
    const TileCoefficients *coefficients, Py_ssize_t c
) noexcept nogil:
    cdef vector v = coefficients.even
    if coefficients.probabilities != NULL:
        v = vector_fma(
            coefficients.share, vector_get(coefficients.probabilities + c * LANES), v)
    if coefficients.weight != NULL:
        v = vector_multiply(v, vector_set(coefficients.weight[c]))
    return v


cdef struct Line:
    # Where rows that follow each other in memory meet: elements that wait for the rest of their
    # cache line, which is then written as a whole.
    storage *elements     # room for two vectors, and for what is unpacked behind those pending
    Py_ssize_t pending
    storage *at           # where the first of them goes
    # Of what is unpacked:
    const storage *unwritten   # the lines that are whole,
    storage *out               # where they go,
    Py_ssize_t lines           # how many they are,
    bint stream                # whether they are written past the caches,
    Py_ssize_t rest            # and the elements behind them


cdef inline void line_flush(Line *line) noexcept nogil:
    if line.pending > 0:
        memcpy(line.at, line.elements, line.pending * sizeof(storage))
        line.pending = 0


cdef inline void lines_open(Line *line, storage *out, Py_ssize_t n, bint stream) noexcept nogil:
    """Begin to write n elements that are unpacked behind those pending."""
    cdef Py_ssize_t head = 0
    out = out - line.pending
    n += line.pending
    if line.pending == 0:
        head = stream_head(out)
        if head > 0:
            memcpy(out, line.elements, head * sizeof(storage))
    line.stream = stream and head >= 0
    head = max(head, <Py_ssize_t>0)
    line.unwritten = line.elements + head
    line.out = out + head
    line.lines = (n - head) // LANES
    line.rest = (n - head) % LANES
    line.pending = 0


cdef inline void line_write(Line *line) noexcept nogil:
    """Write the next whole line."""
    if line.stream:
        storage_stream(line.out, line.unwritten)
    else:
        storage_copy(line.out, line.unwritten)
    line.unwritten += LANES
    line.out += LANES
    line.lines -= 1


cdef inline void lines_close(Line *line) noexcept nogil:
    """Write the whole lines that are left, and keep the rest."""
    while line.lines > 0:
        line_write(line)
    if line.rest > 0:
        storage_copy(line.elements, line.unwritten)
        line.pending = line.rest
        line.at = line.out
        line.rest = 0


cdef struct TileTerms:
    # What tile_exponentials() reads and writes.
    const real *logits
    real *exponentials        # NULL where they are not wanted; may be the tile of logits
    real *terms               # with a pivot: what is to be added up; may be either of these
    vector pivot              # class to leave out of a row's sum; outside [0, n) for none
    vector pivot_logit        # the logit of that class
    # Memory is kept busy meanwhile. For each class,
    const char *ahead         # a cache line is fetched,
    Py_ssize_t ahead_stride   # from one to the next,
    Line *line                # and one of the batch before is written


cdef inline void tile_exponentials(
    TileTerms *tile_, Py_ssize_t n, Reference reference, const Scale *scale_, bint use_pivot,
    bint general,
) noexcept nogil:
    """Turn logits into exponentials; `use_pivot` and `general` are constants here."""
    cdef Scale local = scale_with(scale_, general)
    # A copy, which no store in the loop can change.
    cdef TileTerms tile = tile_[0]
    cdef Line line = tile_.line[0]
    cdef vector x, e
    cdef vector one = vector_set(1.0)
    cdef vector zero = vector_set(0.0)
    cdef vector number = zero
    cdef mask here
    cdef Py_ssize_t c
    for c in range(n):
        prefetch(tile.ahead + c * tile.ahead_stride)
        if line.lines > 0:
            line_write(&line)
        x = vector_get(tile.logits + c * LANES)
        e = exponential(x, reference, &local)
        if not use_pivot or tile.exponentials != NULL:
            vector_put(tile.exponentials + c * LANES, e)
        if use_pivot:
            here = vector_equal(number, tile.pivot)
            vector_put(tile.terms + c * LANES, vector_select(here, zero, e))
            tile.pivot_logit = vector_select(here, x, tile.pivot_logit)
            number = vector_add(number, one)
    tile_.pivot_logit = tile.pivot_logit
    tile_.line[0] = line


cdef inline vector tile_coefficients(
    const TileCoefficients *coefficients, Py_ssize_t n, vector top, real *terms
) noexcept nogil:
    """Lay the coefficients out, 0 for class `top`; return those."""
    cdef vector zero = vector_set(0.0)
    cdef vector own = zero
    cdef vector v
    cdef mask here
    cdef Py_ssize_t c
    for c in range(n):
        v = tile_coefficient(coefficients, c)
        here = vector_equal(top, vector_set(<real>c))
        own = vector_select(here, v, own)
        vector_put(terms + c * LANES, vector_select(here, zero, v))
    return own


cdef inline void tile_spread_terms(
    const real *tile, const TileCoefficients *coefficients, vector origin, Py_ssize_t n, real *terms
) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(n):
        vector_put(terms + c * LANES, spread_term(
            tile_coefficient(coefficients, c), origin, vector_get(tile + c * LANES)))


cdef inline Pair tile_sums(const real *terms, Py_ssize_t n) noexcept nogil:
    """Add up what a tile has of each row."""
    if n <= 4:
        return tile_sums_few(terms, n, 4)
    if n <= 8:
        return tile_sums_few(terms, n, 8)
    if n <= LANES:
        return tile_sums_few(terms, n, LANES)
    return tile_sums_many(terms, n)


cdef inline Pair tile_sums_few(
    const real *terms, Py_ssize_t n, Py_ssize_t width
) noexcept nogil:
    """At most LANES classes: each is a lane of its own, added up as vector_reduce_few does.

    `width`, a power of two and a constant here, is at least n.
    """
    cdef vector[16] lane
    cdef Py_ssize_t k
    for k in range(width):
        lane[k] = vector_get(terms + k * LANES) if k < n else vector_set(0.0)
    if width > 8:
        for k in range(8):
            lane[k] = vector_add(lane[k], lane[k + 8])
    if width > 4:
        for k in range(4):
            lane[k] = vector_add(lane[k], lane[k + 4])
    return pair_merge(
        pair_merge(pair_from(lane[0]), pair_from(lane[2])),
        pair_merge(pair_from(lane[1]), pair_from(lane[3])))


cdef inline Pair tile_sums_many(const real *terms, Py_ssize_t n) noexcept nogil:
    """Lane by lane as row_exponentials, added up as vector_reduce_compensated does."""
    cdef Pair[16] lane
    cdef vector[RUN] e
    cdef Py_ssize_t c = 0, k, j
    if n <= RUN * LANES:
        for k in range(LANES):
            lane[k] = pair_from(tile_run_sum(terms, k, n))
        return lanes_merge(lane)
    for k in range(LANES):
        lane[k] = pair_from(vector_set(0.0))
    while c + RUN * LANES <= n:
        for k in range(LANES):
            for j in range(RUN):
                e[j] = vector_get(terms + (c + j * LANES + k) * LANES)
            lane[k] = pair_add(lane[k], run_sum(e))
        c += RUN * LANES
    for k in range(min(<Py_ssize_t>LANES, n - c)):
        lane[k] = pair_add(lane[k], tile_run_sum(terms, c + k, n))
    return lanes_merge(lane)


cdef inline vector tile_run_sum(const real *terms, Py_ssize_t c, Py_ssize_t n) noexcept nogil:
    """run_sum() of what a lane has of the last run, class c first, without adding zeros."""
    cdef vector total = vector_get(terms + c * LANES)
    cdef vector second
    if c + LANES < n:
        total = vector_add(total, vector_get(terms + (c + LANES) * LANES))
    if c + 2 * LANES < n:
        second = vector_get(terms + (c + 2 * LANES) * LANES)
        if c + 3 * LANES < n:
            second = vector_add(second, vector_get(terms + (c + 3 * LANES) * LANES))
        total = vector_add(total, second)
    return total


cdef struct TileOutput:
    # What to write for the classes of a tile.
    OutputKind kind
    const real *values        # exponentials or logits
    vector minus
    Pair factor
    Reference reference
    bint dense                # subtract dense_factor * coefficient
    vector dense_factor
    TileCoefficients coefficients
    bint by_label
    vector label              # the class that gets at_label instead
    vector at_label
    vector top                # dense targets: the same for at_top, which goes first
    vector at_top
    vector active             # rows where this is not above 0 get 0


cdef inline vector tile_output(
    const TileOutput *tile, OutputKind kind, bint dense, bint by_label, Py_ssize_t c,
    const Scale *scale,
) noexcept nogil:
    """The output for class c."""
    cdef vector v = output_vector(
        vector_get(tile.values + c * LANES), tile.minus, tile.factor, tile.reference, scale, kind)
    if dense:
        v = vector_fnma(tile.dense_factor, tile_coefficient(&tile.coefficients, c), v)
    if by_label:
        v = vector_select(vector_equal(tile.label, vector_set(<real>c)), tile.at_label, v)
    if dense:
        v = vector_select(vector_equal(tile.top, vector_set(<real>c)), tile.at_top, v)
    if dense or by_label:
        v = vector_select(vector_greater(tile.active, vector_set(0.0)), v, vector_set(0.0))
    return v


cdef inline void tile_unpack_few(
    const TileOutput *tile, OutputKind kind, bint dense, bint by_label, Py_ssize_t n,
    const Scale *scale, storage *rows,
) noexcept nogil:
    """tile_unpack_kind() for n classes, a constant from 2 to MOST_COLUMNS."""
    cdef vector[3] columns
    cdef vector[3] packed
    cdef Py_ssize_t c
    for c in range(n):
        columns[c] = tile_output(tile, kind, dense, by_label, c, scale)
    rows_from_columns(packed, columns, n)
    for c in range(n):
        vector_store(rows + c * LANES, packed[c])


cdef inline void tile_unpack_kind(
    const TileOutput *tile_, OutputKind kind, bint dense, bint by_label, Py_ssize_t n,
    const Scale *scale, real *words, storage *rows,
) noexcept nogil:
    cdef TileOutput tile = tile_[0]
    cdef vector[WORD_CLASSES] columns
    cdef vector[QUARTER_LANES] turned
    cdef Py_ssize_t count = (n + WORD_CLASSES - 1) // WORD_CLASSES
    cdef Py_ssize_t last = max(count - QUARTER_LANES, <Py_ssize_t>0)
    cdef Py_ssize_t step = 0, start = last, i, k
    if 2 <= n <= MOST_COLUMNS:
        if n == 2:
            tile_unpack_few(&tile, kind, dense, by_label, 2, scale, rows)
        else:
            tile_unpack_few(&tile, kind, dense, by_label, 3, scale, rows)
        return
    if WORD_CLASSES > 1:
        for i in range(count):
            for k in range(WORD_CLASSES):
                columns[k] = tile_output(
                    &tile, kind, dense, by_label, min(i * WORD_CLASSES + k, n - 1), scale)
            vector_put(words + i * LANES, word_from(columns))
    # The last step first: half a word too much goes to the next row, before that row's first one.
    while True:
        for k in range(QUARTER_LANES):
            # To compute a few numbers twice costs less than to keep them all.
            if start + k >= count:
                turned[k] = vector_set(0.0)
            elif WORD_CLASSES > 1:
                turned[k] = vector_get(words + (start + k) * LANES)
            else:
                turned[k] = tile_output(&tile, kind, dense, by_label, start + k, scale)
        words_store(rows + start * WORD_CLASSES, n * <Py_ssize_t>sizeof(storage), turned)
        if step >= last:
            return
        start = step
        step += QUARTER_LANES


cdef inline void tile_unpack(
    const TileOutput *tile, Py_ssize_t n, const Scale *scale, real *words, storage *rows
) noexcept nogil:
    """Lay the output's rows one behind the other; `rows` needs room for QUARTER_CLASSES more.

    `words` may get the output as it is stored, before it is turned over; it may be the tile itself.
    """
    if tile.kind == LOGARITHMS:
        tile_unpack_kind(tile, LOGARITHMS, False, False, n, scale, words, rows)
    elif tile.dense and tile.by_label:
        tile_unpack_kind(tile, FROM_KEPT, True, True, n, scale, words, rows)
    elif tile.dense:
        tile_unpack_kind(tile, FROM_KEPT, True, False, n, scale, words, rows)
    elif tile.by_label:
        tile_unpack_kind(tile, FROM_KEPT, False, True, n, scale, words, rows)
    else:
        tile_unpack_kind(tile, FROM_KEPT, False, False, n, scale, words, rows)


cdef inline void tile_store(
    const TileOutput *tile, Py_ssize_t n, const Scale *scale, char *out, Py_ssize_t class_stride,
    const Offsets *offsets, Py_ssize_t rows, bint stream,
) noexcept nogil:
    """Write the output to rows of any layout."""
    cdef Py_ssize_t c, k
    cdef vector v
    cdef real[16] lane
    cdef storage *line
    for c in range(n):
        v = tile_output(tile, tile.kind, tile.dense, tile.by_label, c, scale)
        if rows == LANES and offsets.step == sizeof(storage):
            line = <storage *>(out + offsets.of_row[0] + c * class_stride)
            if stream and stream_head(line) == 0:
                vector_stream(line, v)
            else:
                vector_store(line, v)
        else:
            vector_put(lane, v)
            for k in range(rows):
                storage_write(out + offset_of(offsets, k) + c * class_stride, lane[k])

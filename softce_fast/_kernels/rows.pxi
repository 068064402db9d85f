# Row passes: one row at a time, the lanes of a vector on neighbouring classes.
#
# `x` is contiguous in all of these (see contiguous_row). A row is worked on in chunks of CHUNK
# classes, which stay in the first-level cache from one pass to the next.

cdef enum:
    CHUNK = 4096
    # Vectors whose exponentials are added up plainly, two by two, before the sum goes into a
    # compensated one: an element meets two roundings, however long the row.
    RUN = 4


cdef inline real row_maximum(const storage *x, Py_ssize_t n) noexcept nogil:
    """The greatest element that is a number; -inf if there is none."""
    return vector_reduce_maximum(row_maxima(x, n))


cdef inline vector row_maxima(const storage *x, Py_ssize_t n) noexcept nogil:
    """row_maximum(), lane by lane, in any order.

    Whole vectors are read from the start of cache lines on: what is read twice does no harm.
    """
    cdef vector a = vector_set(NEGATIVE_INFINITY)
    cdef vector b = a, c = a, d = a
    cdef Py_ssize_t i
    if n < LANES:
        return vector_maximum(vector_load_first(x, n), a)
    a = vector_maximum(vector_load(x), a)
    b = vector_maximum(vector_load(x + n - LANES), b)
    i = max(<Py_ssize_t>0, stream_head(x))
    while i + 4 * LANES <= n:
        a = vector_maximum(vector_load(x + i), a)
        b = vector_maximum(vector_load(x + i + LANES), b)
        c = vector_maximum(vector_load(x + i + 2 * LANES), c)
        d = vector_maximum(vector_load(x + i + 3 * LANES), d)
        i += 4 * LANES
    while i + LANES <= n:
        a = vector_maximum(vector_load(x + i), a)
        i += LANES
    return vector_maximum(vector_maximum(a, b), vector_maximum(c, d))


cdef inline vector row_vector(const storage *x, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """The vector from class i on; -inf past the end."""
    if i + LANES <= n:
        return vector_load(x + i)
    if i < n:
        return vector_load_first(x + i, n - i)
    return vector_set(NEGATIVE_INFINITY)


cdef inline Py_ssize_t row_find(const storage *x, Py_ssize_t n, real value) noexcept nogil:
    """The first position of `value`; -1 if it is nowhere."""
    cdef vector wanted = vector_set(value)
    cdef Py_ssize_t i = 0, k
    cdef unsigned int found
    while i < n:
        found = vector_mask_bits(vector_equal(row_vector(x, i, n), wanted))
        if found != 0:
            for k in range(min(<Py_ssize_t>LANES, n - i)):
                if found >> k & 1:
                    return i + k
        i += LANES
    return -1


cdef inline vector run_sum(const vector *e) noexcept nogil:
    return vector_add(vector_add(e[0], e[1]), vector_add(e[2], e[3]))


cdef inline void row_drop(vector *e, Py_ssize_t place, vector counting) noexcept nogil:
    """Set one element of a run to 0."""
    cdef Py_ssize_t k
    for k in range(RUN):
        e[k] = vector_select(
            vector_equal(counting, vector_set(<real>(place - k * LANES))), vector_set(0.0), e[k])


cdef struct Coefficients:
    # Of the classes in a dense target: weight * (share * probability + even).
    const real *weight               # NULL: all 1
    const storage *probabilities     # NULL: all 0
    vector share
    vector even


cdef inline vector coefficient_vector(
    const Coefficients *coefficients, Py_ssize_t i, Py_ssize_t n
) noexcept nogil:
    """The coefficients from class i on; 0 past the end."""
    cdef vector v = coefficients.even
    cdef real[16] lane
    cdef Py_ssize_t k
    if coefficients.probabilities != NULL:
        v = vector_fma(coefficients.share, row_vector(coefficients.probabilities, i, n), v)
    if coefficients.weight != NULL:
        if i + LANES <= n:
            v = vector_multiply(v, vector_get(coefficients.weight + i))
        else:
            for k in range(LANES):
                lane[k] = coefficients.weight[min(i + k, n - 1)]
            v = vector_multiply(v, vector_get(lane))
    return zero_past_end(v, i, n)


cdef inline real coefficient_at(
    const Coefficients *coefficients, Py_ssize_t place, Py_ssize_t n
) noexcept nogil:
    """The coefficient of one class; 0 if there is none."""
    cdef real[16] lane
    cdef Py_ssize_t start = place // LANES * LANES
    if place < 0:
        return 0
    vector_put(lane, coefficient_vector(coefficients, start, n))
    return lane[place - start]


cdef inline vector zero_past_end(vector v, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """The vector from class i on, 0 past the end."""
    if i + LANES <= n:
        return v
    return vector_select(
        vector_greater(vector_set(<real>(n - i)), vector_counting()), v, vector_set(0.0))


cdef inline vector spread_origin(vector maximum) noexcept nogil:
    """What logits are counted from: the maximum, 0 where there is none."""
    return vector_select(
        vector_greater(maximum, vector_set(NEGATIVE_INFINITY)), maximum, vector_set(0.0))


cdef inline vector spread_term(vector coefficient, vector origin, vector x) noexcept nogil:
    """coefficient * (origin - x), where 0 * inf is 0."""
    cdef vector zero = vector_set(0.0)
    return vector_select(
        vector_equal(coefficient, zero), zero,
        vector_multiply(coefficient, vector_subtract(origin, x)))


cdef inline void row_spread(
    const storage *x, Py_ssize_t n, vector origin, const Coefficients *coefficients_,
    Py_ssize_t top, bint soft, bint weighted, Pair *total, Pair *spread,
) noexcept nogil:
    """Sum, lane by lane, the spread_term() of a row and, where `soft`, the coefficients.

    That of class `top` is left out of the latter.

    `soft` (there are probabilities) and `weighted` are constants where this is called.
    """
    cdef Coefficients coefficients = coefficients_[0]
    cdef Py_ssize_t i = 0
    total[0] = pair_from(vector_set(0.0))
    spread[0] = total[0]
    if not soft:
        coefficients.probabilities = NULL
    if not weighted:
        coefficients.weight = NULL
    while i + RUN * LANES <= n:
        run_spread(x, i, i + RUN * LANES, origin, &coefficients, top, soft, total, spread)
        i += RUN * LANES
    if i < n:
        run_spread(x, i, n, origin, &coefficients, top, soft, total, spread)


cdef inline void run_spread(
    const storage *x, Py_ssize_t i, Py_ssize_t n, vector origin,
    const Coefficients *coefficients, Py_ssize_t top, bint soft, Pair *total, Pair *spread,
) noexcept nogil:
    """Add what row_spread() sums of a run that begins at class i and ends at n at the latest."""
    cdef vector[RUN] a
    cdef vector[RUN] term
    cdef Py_ssize_t k
    for k in range(RUN):
        a[k] = coefficient_vector(coefficients, i + k * LANES, n)
        term[k] = spread_term(a[k], origin, row_vector(x, i + k * LANES, n))
    if soft:
        if i <= top < i + RUN * LANES:
            row_drop(a, top - i, vector_counting())
        total[0] = pair_add(total[0], run_sum(a))
    spread[0] = pair_add(spread[0], run_sum(term))


cdef inline vector pair_finite(Pair pair) noexcept nogil:
    """high + low, or high alone where it is infinite: low is then NaN."""
    cdef vector zero = vector_set(0.0)
    cdef vector difference = vector_subtract(pair.high, pair.high)
    return vector_add(pair.high, vector_select(vector_equal(difference, zero), pair.low, zero))


cdef enum OutputKind:
    FROM_KEPT      # kept exponential * factor
    FROM_LOGITS    # the same, the exponential computed again
    LOGARITHMS     # (x - minus) / T - factor


cdef inline void kept_put(real *kept, vector e, Py_ssize_t count) noexcept nogil:
    """Keep a vector of exponentials, or the first `count` of it if that is less.

    Where others follow, in the output, those may be another thread's. Half types have room.
    """
    if STORAGE_IS_REAL and count < LANES:
        vector_store_first(<storage *>kept, e, count)
    else:
        vector_put(kept, e)


cdef struct RowOutput:
    # What to write for n classes of a row.
    OutputKind kind
    const storage *x
    const real *kept
    vector minus
    Pair factor
    Reference reference
    bint dense             # subtract dense_factor * coefficient
    vector dense_factor
    Coefficients coefficients
    Py_ssize_t label       # the class that gets at_label instead; outside [0, n) for none
    real at_label
    Py_ssize_t top         # dense targets: the same for at_top, which goes first
    real at_top


cdef inline vector output_vector(
    vector v, vector minus, Pair factor, Reference reference, const Scale *scale,
    OutputKind kind,
) noexcept nogil:
    """Make output of kept exponentials (FROM_KEPT) or of logits (the others)."""
    if kind == FROM_KEPT:
        return output_product(v, factor)
    if kind == FROM_LOGITS:
        return output_product(exponential(v, reference, scale), factor)
    return vector_subtract(cooled_difference(v, minus, scale), factor.high)


cdef inline vector row_output(
    const RowOutput *row, OutputKind kind, Py_ssize_t i, const Scale *scale
) noexcept nogil:
    """A whole vector of output from class i on, but for dense targets and the label."""
    return output_vector(
        vector_get(row.kept + i) if kind == FROM_KEPT else vector_load(row.x + i),
        row.minus, row.factor, row.reference, scale, kind)


cdef inline vector row_output_at(
    const RowOutput *row, OutputKind kind, Py_ssize_t i, Py_ssize_t n, vector counting,
    const Scale *scale,
) noexcept nogil:
    """The output from class i on, as much of a vector as there is."""
    cdef vector v
    if i + LANES <= n or (kind == FROM_KEPT and not STORAGE_IS_REAL):
        v = row_output(row, kind, i, scale)
    else:
        v = output_vector(
            vector_load_first(<const storage *>row.kept + i if kind == FROM_KEPT else row.x + i,
                              n - i),
            row.minus, row.factor, row.reference, scale, kind)
    if row.dense:
        v = vector_fnma(row.dense_factor, coefficient_vector(&row.coefficients, i, n), v)
    if i <= row.label < i + LANES:
        v = vector_select(
            vector_equal(counting, vector_set(<real>(row.label - i))), vector_set(row.at_label), v)
    if row.dense and i <= row.top < i + LANES:
        v = vector_select(
            vector_equal(counting, vector_set(<real>(row.top - i))), vector_set(row.at_top), v)
    return v


cdef enum:
    # Lines that wait to be written past the caches: read back at once, a line would have to wait
    # for all stores before it, those to memory included.
    SEAMS_WAITING = 6
    # Room for these, the next one, and to count by.
    SEAMS = 8


cdef struct Seams:
    # Cache lines in which rows, or their chunks, that follow each other in memory meet: each is
    # put together before it is written as a whole.
    storage *lines           # SEAMS of them in turn, each with room for two vectors
    storage *at[SEAMS]       # where they go
    Py_ssize_t whole         # how many there were that are whole,
    Py_ssize_t written       # how many of these are written,
    Py_ssize_t pending       # and elements of the next one


cdef inline storage *seam(const Seams *seams, Py_ssize_t number) noexcept nogil:
    return seams.lines + number % SEAMS * 2 * LANES


cdef inline void seams_write(Seams *seams, Py_ssize_t waiting) noexcept nogil:
    """Write whole lines until so many wait."""
    while seams.whole - seams.written > waiting:
        storage_stream(seams.at[seams.written % SEAMS], seam(seams, seams.written))
        seams.written += 1


cdef inline void seams_close(Seams *seams) noexcept nogil:
    """Write all there is."""
    seams_write(seams, 0)
    if seams.pending > 0:
        memcpy(
            seams.at[seams.whole % SEAMS], seam(seams, seams.whole),
            seams.pending * sizeof(storage))
        seams.pending = 0


cdef struct RowWriter:
    # The way through the output of a row.
    const RowOutput *row
    storage *out
    Py_ssize_t n
    Py_ssize_t next
    bint stream
    Seams *seams


cdef inline RowWriter writer_open(
    const RowOutput *row, OutputKind kind, Py_ssize_t n, const Scale *scale, storage *out,
    bint stream, Seams *seams,
) noexcept nogil:
    """Start a row. With `stream`, up to its first whole cache line."""
    cdef RowWriter writer
    cdef Py_ssize_t head
    cdef vector first
    writer.row = row
    writer.out = out
    writer.n = n
    writer.next = 0
    writer.seams = seams
    writer.stream = stream
    if not stream:
        return writer
    if seams.pending > 0 and seams.at[seams.whole % SEAMS] + seams.pending != out:
        seams_close(seams)
    head = LANES - seams.pending if seams.pending > 0 else stream_head(out)
    if head < 0:
        writer.stream = False
    elif head > 0:
        first = row_output_at(row, kind, 0, n, vector_counting(), scale)
        writer.next = min(head, n)
        if seams.pending == 0:
            vector_store_first(out, first, writer.next)
        else:
            vector_store(seam(seams, seams.whole) + seams.pending, first)
            seams.pending += writer.next
            if seams.pending == LANES:
                seams.pending = 0
                seams.whole += 1
                seams_write(seams, SEAMS_WAITING)
    return writer


cdef inline void writer_step(
    RowWriter *writer, OutputKind kind, vector counting, const Scale *scale
) noexcept nogil:
    """Write the next vector."""
    cdef vector v = row_output_at(writer.row, kind, writer.next, writer.n, counting, scale)
    if writer.stream:
        vector_stream(writer.out + writer.next, v)
    else:
        vector_store(writer.out + writer.next, v)
    writer.next += LANES


cdef inline void writer_close(
    RowWriter *writer, OutputKind kind, const Scale *scale
) noexcept nogil:
    """Write the rest of the row."""
    cdef vector counting = vector_counting()
    cdef vector last
    while writer.next + LANES <= writer.n:
        writer_step(writer, kind, counting, scale)
    if writer.next < writer.n:
        last = row_output_at(writer.row, kind, writer.next, writer.n, counting, scale)
        if writer.stream:
            vector_store(seam(writer.seams, writer.seams.whole), last)
            writer.seams.at[writer.seams.whole % SEAMS] = writer.out + writer.next
            writer.seams.pending = writer.n - writer.next
        else:
            vector_store_first(writer.out + writer.next, last, writer.n - writer.next)


cdef inline void row_write_kind(
    const RowOutput *row_, OutputKind kind, Py_ssize_t n, const Scale *scale_, storage *out,
    bint stream, Seams *seams,
) noexcept nogil:
    # Copies, which no store in the loop can change: they stay in registers.
    cdef RowOutput row = row_[0]
    cdef Scale scale = scale_[0]
    cdef RowWriter writer = writer_open(&row, kind, n, &scale, out, stream, seams)
    writer_close(&writer, kind, &scale)


cdef void row_write(
    const RowOutput *row, Py_ssize_t n, const Scale *scale, storage *out, bint stream, Seams *seams
) noexcept nogil:
    """Write n classes of a row."""
    if row.kind == FROM_KEPT:
        row_write_kind(row, FROM_KEPT, n, scale, out, stream, seams)
    elif row.kind == FROM_LOGITS:
        row_write_kind(row, FROM_LOGITS, n, scale, out, stream, seams)
    else:
        row_write_kind(row, LOGARITHMS, n, scale, out, stream, seams)


cdef inline Pair row_exponentials(
    const storage *x, Py_ssize_t n, Py_ssize_t pivot, Reference reference, const Scale *scale_,
    real *kept, bint keep, bint general, Py_ssize_t ahead,
) noexcept nogil:
    """Return the sum of the exponentials but the pivot's, lane by lane; keep them if asked to.

    What lies `ahead` bytes on, to be worked on next, is fetched meanwhile; where nothing is kept,
    up to the first-level cache, once half way there. `general` (see scale_with) and, unless
    `general`, `keep` are constants where this is called, to keep branches out of the loop.
    """
    cdef Scale local = scale_with(scale_, general)
    cdef Scale *scale = &local
    cdef Pair total = pair_from(vector_set(0.0))
    cdef vector run = vector_set(0.0)
    cdef vector[RUN] e
    cdef vector counting = vector_counting()
    cdef vector zero = vector_set(0.0)
    cdef Py_ssize_t i = 0, k
    while i + RUN * LANES <= n:
        for k in range(RUN):
            prefetch(<const char *>(x + i + k * LANES) + ahead)
            if not keep:
                prefetch_near(<const char *>(x + i + k * LANES) + ahead // 2)
            e[k] = exponential(vector_load(x + i + k * LANES), reference, scale)
            if keep:
                vector_put(kept + i + k * LANES, e[k])
        if i <= pivot < i + RUN * LANES:
            row_drop(e, pivot - i, counting)
        # One run late: the additions need not wait for the exponentials above.
        if i > RUN * LANES:
            total = pair_add(total, run)
        else:
            total = pair_from(run)
        run = run_sum(e)
        i += RUN * LANES
    if i > RUN * LANES:
        total = pair_add(total, run)
    else:
        total = pair_from(run)
    if i < n:
        for k in range(RUN):
            e[k] = zero
            if i + k * LANES < n:
                e[k] = exponential(row_vector(x, i + k * LANES, n), reference, scale)
                if keep:
                    kept_put(kept + i + k * LANES, e[k], n - i - k * LANES)
        if i <= pivot:
            row_drop(e, pivot - i, counting)
        if i > 0:
            total = pair_add(total, run_sum(e))
        else:
            total = pair_from(run_sum(e))
    return total


cdef inline Pair lanes_merge(Pair *lane) noexcept nogil:
    """Add LANES pairs up as vector_reduce_compensated adds the lanes of one up."""
    cdef Py_ssize_t k
    if LANES == 16:
        for k in range(8):
            lane[k] = pair_merge(lane[k], lane[(k + 8) % LANES])
    for k in range(4):
        lane[k] = pair_merge(lane[k], lane[k + 4])
    for k in range(2):
        lane[k] = pair_merge(lane[k], lane[k + 2])
    return pair_merge(lane[0], lane[1])


cdef inline void pairs_fold(vector *high, vector *low, Py_ssize_t width) noexcept nogil:
    """Halve 2 * width vectors, each of which then holds the sums of twice as many rows."""
    cdef Pair even, odd
    cdef Py_ssize_t k
    for k in range(width):
        vectors_halve(high + 2 * k, width, &even.high, &odd.high)
        vectors_halve(low + 2 * k, width, &even.low, &odd.low)
        even = pair_merge(even, odd)
        high[k] = even.high
        low[k] = even.low


cdef inline Pair rows_reduce(
    const real *high, const real *low, Py_ssize_t rows, Py_ssize_t n
) noexcept nogil:
    """Add up, row by row, LANES partial sums each: `high` and `low` of rows of n classes.

    Alone each row would wait for its own additions; many are added up side by side.
    """
    cdef real[16] total
    cdef real[16] rest
    cdef vector[16] highs
    cdef vector[16] lows
    cdef Pair result
    cdef Py_ssize_t k
    if n > LANES and rows > LANES // 4:
        for k in range(LANES):
            highs[k] = vector_get(high + k * LANES)
            lows[k] = vector_set(0.0)
        if n > RUN * LANES:
            # Else nothing was added up yet with a rest.
            for k in range(LANES):
                lows[k] = vector_get(low + k * LANES)
        if LANES == 16:
            pairs_fold(highs, lows, 8)
        pairs_fold(highs, lows, 4)
        pairs_fold(highs, lows, 2)
        pairs_fold(highs, lows, 1)
        result.high = highs[0]
        result.low = lows[0]
        return result
    for k in range(LANES):
        total[k] = 1
        rest[k] = 0
    for k in range(rows):
        if n <= LANES:
            total[k] = vector_reduce_few(vector_get(high + k * LANES), rest + k)
        else:
            total[k] = vector_reduce_compensated(
                vector_get(high + k * LANES), vector_get(low + k * LANES), rest + k)
    result.high = vector_get(total)
    result.low = vector_get(rest)
    return result

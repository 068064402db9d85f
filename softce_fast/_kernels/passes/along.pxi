# The pass along rows: one row at a time, the lanes of a vector on neighbouring classes.
#
# A row is worked on in chunks of CHUNK classes, which stay in the first-level cache from one step
# to the next. Rows that are not plain are copied there first (panel.pxi).
#
# Uses state.pxi, panel.pxi, writer.pxi, numbers.pxd.

cdef enum:
    # Vectors whose exponentials are added up plainly, two by two, before the sum goes into a
    # compensated one: an element meets two roundings, however long the row.
    RUN = 4


# ---- one chunk of a row --------------------------------------------------------------------------


cdef inline vector row_maxima(const char *x, Py_ssize_t n, int kind) noexcept nogil:
    """The greatest elements that are numbers, lane by lane, in any order; -inf where none is.

    Whole vectors are read from the start of cache lines on: what is read twice does no harm.
    """
    cdef Py_ssize_t size = kind_size(kind)
    cdef vector a = vector_set(NEGATIVE_INFINITY)
    cdef vector b = a, c = a, d = a
    cdef Py_ssize_t i
    if n < LANES:
        return vector_maximum(element_vector(x, 0, n, kind), a)
    a = vector_maximum(kind_vector(x, kind), a)
    b = vector_maximum(kind_vector(x + (n - LANES) * size, kind), b)
    i = max(<Py_ssize_t>0, stream_head(x, size))
    while i + 4 * LANES <= n:
        a = vector_maximum(kind_vector(x + i * size, kind), a)
        b = vector_maximum(kind_vector(x + (i + LANES) * size, kind), b)
        c = vector_maximum(kind_vector(x + (i + 2 * LANES) * size, kind), c)
        d = vector_maximum(kind_vector(x + (i + 3 * LANES) * size, kind), d)
        i += 4 * LANES
    while i + LANES <= n:
        a = vector_maximum(kind_vector(x + i * size, kind), a)
        i += LANES
    return vector_maximum(vector_maximum(a, b), vector_maximum(c, d))


cdef real row_maximum(const char *x, Py_ssize_t n, int kind) noexcept nogil:
    if kind == REAL_KIND:
        return vector_reduce_maximum(row_maxima(x, n, REAL_KIND))
    if kind == KIND_BFLOAT16:
        return vector_reduce_maximum(row_maxima(x, n, KIND_BFLOAT16))
    return vector_reduce_maximum(row_maxima(x, n, KIND_FLOAT16))


cdef inline vector element_vector(
    const char *x, Py_ssize_t i, Py_ssize_t n, int kind
) noexcept nogil:
    """The vector from class i on; -inf past the end."""
    if i + LANES <= n:
        return kind_vector(x + i * kind_size(kind), kind)
    if i >= n:
        return vector_set(NEGATIVE_INFINITY)
    if kind == REAL_KIND:
        return vector_load_first(<const real *>x + i, n - i)
    return vector_select(
        vector_greater(vector_set(<real>(n - i)), vector_counting()),
        kind_vector_first(x + i * kind_size(kind), n - i, kind), vector_set(NEGATIVE_INFINITY))


cdef inline vector row_vector(const real *x, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    return element_vector(<const char *>x, i, n, REAL_KIND)


cdef inline void row_store(real *to, vector v, Py_ssize_t count) noexcept nogil:
    """Store a vector, or the first `count` of it: what follows may be another thread's."""
    if count < LANES:
        vector_store_first(to, v, count)
    else:
        vector_store(to, v)


cdef inline mask equals_in_two(const char *x, vector wanted, int kind) noexcept nogil:
    """Where one of two vectors is `wanted`."""
    return mask_either(
        vector_equal(kind_vector(x, kind), wanted),
        vector_equal(kind_vector(x + LANES * kind_size(kind), kind), wanted))


cdef inline Py_ssize_t element_find(
    const char *x, Py_ssize_t n, real value, int kind
) noexcept nogil:
    cdef vector wanted = vector_set(value)
    cdef Py_ssize_t size = kind_size(kind)
    cdef Py_ssize_t i = 0, k
    cdef unsigned int found
    while i + 4 * LANES <= n and not any_lane(mask_either(
        equals_in_two(x + i * size, wanted, kind),
        equals_in_two(x + (i + 2 * LANES) * size, wanted, kind))
    ):
        i += 4 * LANES
    while i < n:
        found = vector_mask_bits(vector_equal(element_vector(x, i, n, kind), wanted))
        if found != 0:
            for k in range(min(<Py_ssize_t>LANES, n - i)):
                if found >> k & 1:
                    return i + k
        i += LANES
    return -1


cdef Py_ssize_t row_find(const char *x, Py_ssize_t n, real value, int kind) noexcept nogil:
    """The first position of `value`; -1 if it is nowhere."""
    if kind == REAL_KIND:
        return element_find(x, n, value, REAL_KIND)
    return element_find(x, n, value, kind)


cdef inline vector run_sum(const vector *e) noexcept nogil:
    return vector_add(vector_add(e[0], e[1]), vector_add(e[2], e[3]))


cdef inline Py_ssize_t next_place(
    Py_ssize_t i, Py_ssize_t n, Py_ssize_t first, Py_ssize_t second
) noexcept nogil:
    """The nearest of two places in a row of n classes, from class i on; n for neither."""
    if first >= i:
        n = min(n, first)
    return min(n, second) if second >= i else n


cdef inline void run_drop(vector *e, Py_ssize_t place, vector counting) noexcept nogil:
    """Set one element of a run to 0."""
    cdef Py_ssize_t k
    for k in range(RUN):
        e[k] = vector_select(
            vector_equal(counting, vector_set(<real>(place - k * LANES))), vector_set(0.0), e[k])


cdef struct RowSums:
    # Of each row of a group, LANES partial sums.
    real[LANES_SQUARED] high
    real[LANES_SQUARED] low


cdef inline void sums_put(RowSums *sums, Py_ssize_t k, DoubleDouble total) noexcept nogil:
    vector_store(sums.high + k * LANES, total.high)
    vector_store(sums.low + k * LANES, total.low)


cdef struct DenseSums:
    # What is summed of each row of a group besides its exponentials.
    RowSums coefficients
    RowSums spread
    RowSums all         # shards: the exponentials of all,
    RowSums unlabelled  # and without the label
    real[16] own        # the coefficient, or factor, of the maximum
    real[16] below      # scores: how many classes are not above the label


cdef struct Stretch:
    # Classes of a row whose exponentials are added up.
    const char *x
    int kind              # of its elements
    Py_ssize_t n
    Py_ssize_t pivot      # what is left out; outside [0, n) for nothing
    DenseSums *further    # where further sums go; NULL if they are not wanted,
    Py_ssize_t row        # else which row of theirs this is,
    Py_ssize_t label      # what is left out of one of them,
    vector origin         # what logits are counted from
    bint gaps             # in another, and whether that is wanted
    real *kept            # where the exponentials go, which may be x; NULL if they are not wanted
    const real *factors   # of the exponentials before they are added up; NULL for none
    Ahead ahead           # what is fetched meanwhile: up to the second cache,
    Ahead near            # where nothing is kept, up to the first,
    Ahead factors_ahead   # and, where there are factors, of these


cdef inline vector weighted(vector e, vector x, vector factor) noexcept nogil:
    """exp(x) times a factor; nothing of x = -inf, whatever the factor."""
    return vector_select(
        vector_equal(x, vector_set(NEGATIVE_INFINITY)), vector_set(0.0),
        vector_multiply(e, factor))


cdef inline vector row_exponential(
    vector x, const Stretch *row, Py_ssize_t i, Reference reference, const Scale *scale, bint weigh
) noexcept nogil:
    """The exponentials of x, which begins at class i."""
    cdef vector e = exponential(x, reference, scale)
    if weigh:
        return weighted(e, x, row_vector(row.factors, i, row.n))
    return e


cdef inline void copy_weighty(
    real *to, const real *x, const real *factors, Py_ssize_t n
) noexcept nogil:
    """Copy what has a factor other than 0, and -inf for all else; `to` may be x."""
    cdef Py_ssize_t i = 0
    while i < n:
        row_store(to + i, vector_select(
            vector_equal(row_vector(factors, i, n), vector_set(0.0)),
            vector_set(NEGATIVE_INFINITY), row_vector(x, i, n)), n - i)
        i += LANES


cdef enum:
    # What is added up over a row, bits: exponentials without the pivot, of all, and without the
    # label; and how far logits are below the maximum.
    SUM_REST = 1
    SUM_ALL = 2
    SUM_UNLABELLED = 4
    SUM_GAPS = 8


cdef struct RunSums:
    # These sums, lane by lane, but for the last run, which is not in the total yet.
    DoubleDouble[4] total
    vector[4] run


cdef inline void runs_next(RunSums *sums, Py_ssize_t i, int wanted, bint few_digits) noexcept nogil:
    """Take the last run into the total; the next one begins at class i."""
    cdef int j
    for j in range(4):
        if not wanted >> j & 1:
            continue
        if i > RUN * LANES:
            sums.total[j] = sum_add(sums.total[j], sums.run[j], few_digits)
        else:
            sums.total[j] = double_double_from(sums.run[j])


cdef inline vector run_without(const vector *e, Py_ssize_t place) noexcept nogil:
    """The sum of a run without the element at that place, if it is in the run."""
    cdef vector[RUN] others
    cdef Py_ssize_t k
    if not 0 <= place < RUN * LANES:
        return run_sum(e)
    for k in range(RUN):
        others[k] = e[k]
    run_drop(others, place, vector_counting())
    return run_sum(others)


cdef inline void pairs_take(vector *pairs, Py_ssize_t k, vector v) noexcept nogil:
    """Take vector k of a run, which run_sum() would add up, as soon as it is there."""
    if k % 2 == 0:
        pairs[k // 2] = v
    else:
        pairs[k // 2] = vector_add(pairs[k // 2], v)


cdef inline void runs_put_whole(
    RunSums *sums, const vector *pairs, const vector *gap_pairs, int wanted
) noexcept nogil:
    """Set a run of which nothing is left out, so that all sums of exponentials are the same."""
    cdef int j
    for j in range(3):
        if wanted >> j & 1:
            sums.run[j] = vector_add(pairs[0], pairs[1])
    if wanted & SUM_GAPS:
        sums.run[3] = vector_add(gap_pairs[0], gap_pairs[1])


cdef inline void runs_put(
    RunSums *sums, const vector *e, const vector *x, const Stretch *stretch, Py_ssize_t i,
    int wanted,
) noexcept nogil:
    """Set the run from class i on, as much of it as there is: its exponentials, and logits."""
    cdef vector[RUN] gap
    cdef Py_ssize_t k
    sums.run[0] = run_without(e, stretch.pivot - i)
    if wanted & SUM_ALL:
        sums.run[1] = run_sum(e)
    if wanted & SUM_UNLABELLED:
        sums.run[2] = run_without(e, stretch.label - i)
    if wanted & SUM_GAPS:
        for k in range(RUN):
            gap[k] = zero_past_end(
                vector_subtract(stretch.origin, x[k]), i + k * LANES, stretch.n)
        sums.run[3] = run_sum(gap)


cdef inline void runs_hand_over(
    const RunSums *sums, const Stretch *stretch, int wanted
) noexcept nogil:
    if wanted & SUM_ALL:
        sums_put(&stretch.further.all, stretch.row, sums.total[1])
        sums_put(
            &stretch.further.unlabelled, stretch.row,
            sums.total[2 if wanted & SUM_UNLABELLED else 1])
    if wanted & SUM_GAPS and stretch.gaps:
        sums_put(&stretch.further.spread, stretch.row, sums.total[3])


cdef inline void stretch_ahead(
    const Stretch *stretch, Py_ssize_t c, bint keep, bint weigh
) noexcept nogil:
    """Fetch what is wanted later than the vector from class c on."""
    fetch(&stretch.ahead, c)
    if not keep:
        prefetch_near(stretch.near.start + c * stretch.near.step)
    if weigh:
        fetch(&stretch.factors_ahead, c)


cdef inline DoubleDouble row_exponentials(
    const Stretch *stretch_, Reference reference, const Scale *scale_, bint keep, bint weigh,
    int kind, Arithmetic arithmetic, int wanted,
) noexcept nogil:
    """Return the sum of the exponentials, lane by lane; the last five are constants if possible."""
    # Copies, which no store in the loop can change: they stay in registers.
    cdef Scale local = scale_with(scale_, arithmetic)
    cdef Scale *scale = &local
    cdef Stretch stretch = stretch_[0]
    cdef Py_ssize_t i = 0, k, n = stretch.n, stop
    cdef RunSums sums
    cdef vector[RUN] x
    cdef vector[RUN] e
    cdef vector[2] pairs
    cdef vector[2] gap_pairs
    cdef vector one
    reference.shift = vector_alike(reference.shift)
    reference.exponent = vector_alike(reference.exponent)
    for k in range(4):
        sums.run[k] = vector_set(0.0)
    while i < n:
        stop = 1 - RUN * LANES + next_place(
            i, n, stretch.pivot, stretch.label if wanted & SUM_UNLABELLED else -1)
        while i < stop:
            # One run late: the additions need not wait for the exponentials.
            runs_next(&sums, i, wanted, scale.few_digits)
            for k in range(RUN):
                stretch_ahead(&stretch, i + k * LANES, keep, weigh)
                one = kind_vector(stretch.x + (i + k * LANES) * kind_size(kind), kind)
                if wanted & SUM_GAPS:
                    pairs_take(gap_pairs, k, vector_subtract(stretch.origin, one))
                one = row_exponential(one, &stretch, i + k * LANES, reference, scale, weigh)
                if keep:
                    vector_store(stretch.kept + i + k * LANES, one)
                pairs_take(pairs, k, one)
            runs_put_whole(&sums, pairs, gap_pairs, wanted)
            i += RUN * LANES
        if i >= n:
            break
        runs_next(&sums, i, wanted, scale.few_digits)
        for k in range(RUN):
            x[k] = element_vector(stretch.x, i + k * LANES, n, kind)
            e[k] = vector_set(0.0)
            if i + k * LANES < n:
                stretch_ahead(&stretch, i + k * LANES, keep, weigh)
                e[k] = row_exponential(x[k], &stretch, i + k * LANES, reference, scale, weigh)
                if keep:
                    row_store(stretch.kept + i + k * LANES, e[k], n - i - k * LANES)
        runs_put(&sums, e, x, &stretch, i, wanted)
        i += RUN * LANES
    runs_next(&sums, i, wanted, scale.few_digits)
    runs_hand_over(&sums, &stretch, wanted)
    return sums.total[0]


# A function each, which has its registers to itself.


cdef DoubleDouble exponentials_plain(
    const Stretch *stretch, Reference reference, const Scale *scale
) noexcept nogil:
    if stretch.kept == NULL:
        return row_exponentials(
            stretch, reference, scale, False, False, REAL_KIND, PLAIN, SUM_REST)
    return row_exponentials(
        stretch, reference, scale, True, False, REAL_KIND, PLAIN, SUM_REST)


cdef DoubleDouble exponentials_bfloat16(
    const Stretch *stretch, Reference reference, const Scale *scale
) noexcept nogil:
    if stretch.kept == NULL:
        return row_exponentials(
            stretch, reference, scale, False, False, KIND_BFLOAT16, FEW_DIGITS, SUM_REST)
    return row_exponentials(
        stretch, reference, scale, True, False, KIND_BFLOAT16, FEW_DIGITS, SUM_REST)


cdef DoubleDouble exponentials_float16(
    const Stretch *stretch, Reference reference, const Scale *scale
) noexcept nogil:
    if stretch.kept == NULL:
        return row_exponentials(
            stretch, reference, scale, False, False, KIND_FLOAT16, FEW_DIGITS, SUM_REST)
    return row_exponentials(
        stretch, reference, scale, True, False, KIND_FLOAT16, FEW_DIGITS, SUM_REST)


cdef DoubleDouble exponentials_general(
    const Stretch *stretch, Reference reference, const Scale *scale
) noexcept nogil:
    return row_exponentials(
        stretch, reference, scale, stretch.kept != NULL, False, stretch.kind, GENERAL,
        SUM_REST)


cdef DoubleDouble exponentials_weighted(
    const Stretch *stretch, Reference reference, const Scale *scale, bint shifted
) noexcept nogil:
    if not shifted and not scale.few_digits:
        return row_exponentials(
            stretch, reference, scale, False, True, REAL_KIND, PLAIN, SUM_REST)
    return row_exponentials(
        stretch, reference, scale, False, True, REAL_KIND, GENERAL, SUM_REST)


cdef DoubleDouble exponentials_further(
    const Stretch *stretch, Reference reference, const Scale *scale, bint shifted
) noexcept nogil:
    """Where the label is elsewhere, the sum without it is that of all."""
    if stretch.kind != REAL_KIND or arithmetic_for(scale, shifted) != PLAIN:
        return row_exponentials(
            stretch, reference, scale, False, False, stretch.kind, GENERAL,
            SUM_REST | SUM_ALL | SUM_UNLABELLED | SUM_GAPS)
    if stretch.label >= 0:
        return row_exponentials(
            stretch, reference, scale, False, False, REAL_KIND, PLAIN,
            SUM_REST | SUM_ALL | SUM_UNLABELLED | SUM_GAPS)
    if stretch.gaps:
        return row_exponentials(
            stretch, reference, scale, False, False, REAL_KIND, PLAIN,
            SUM_REST | SUM_ALL | SUM_GAPS)
    return row_exponentials(
        stretch, reference, scale, False, False, REAL_KIND, PLAIN, SUM_REST | SUM_ALL)


cdef inline DoubleDouble row_absorb(
    const Stretch *stretch, Reference reference, const Scale *scale, bint shifted
) noexcept nogil:
    """row_exponentials() in the arithmetic that the row needs."""
    if stretch.further != NULL:
        return exponentials_further(stretch, reference, scale, shifted)
    if stretch.factors != NULL:
        return exponentials_weighted(stretch, reference, scale, shifted)
    if not (scale.tempered or shifted):
        if stretch.kind == REAL_KIND and not scale.few_digits:
            return exponentials_plain(stretch, reference, scale)
        if stretch.kind == KIND_BFLOAT16 and scale.few_digits:
            return exponentials_bfloat16(stretch, reference, scale)
        if stretch.kind == KIND_FLOAT16 and scale.few_digits:
            return exponentials_float16(stretch, reference, scale)
    return exponentials_general(stretch, reference, scale)


# ---- sums of many rows ---------------------------------------------------------------------------


cdef inline DoubleDouble lanes_merge(
    DoubleDouble *lane, Py_ssize_t n, bint few_digits
) noexcept nogil:
    """Add up to LANES numbers up as vector_reduce_compensated adds the lanes of one up.

    Those from n on are 0, and need not be there.
    """
    cdef Py_ssize_t k
    if LANES == 16:
        for k in range(min(<Py_ssize_t>8, n - 8)):
            lane[k] = sum_merge(lane[k], lane[(k + 8) % LANES], few_digits)
    for k in range(min(<Py_ssize_t>4, n - 4)):
        lane[k] = sum_merge(lane[k], lane[k + 4], few_digits)
    for k in range(min(<Py_ssize_t>2, n - 2)):
        lane[k] = sum_merge(lane[k], lane[k + 2], few_digits)
    return sum_merge(lane[0], lane[1], few_digits) if n > 1 else lane[0]


cdef inline void rows_fold(
    vector *high, vector *low, Py_ssize_t width, bint few_digits
) noexcept nogil:
    """Halve 2 * width vectors, each of which then holds the sums of twice as many rows."""
    cdef DoubleDouble even, odd
    cdef Py_ssize_t k
    for k in range(width):
        vectors_halve(high + 2 * k, width, &even.high, &odd.high)
        if not few_digits:
            vectors_halve(low + 2 * k, width, &even.low, &odd.low)
        even = sum_merge(even, odd, few_digits)
        high[k] = even.high
        low[k] = even.low


cdef inline DoubleDouble rows_folded(
    vector *high, vector *low, bint few_digits
) noexcept nogil:
    """Add LANES vectors up, each of them the partial sums of a row."""
    cdef DoubleDouble result
    if LANES == 16:
        rows_fold(high, low, 8, few_digits)
    rows_fold(high, low, 4, few_digits)
    rows_fold(high, low, 2, few_digits)
    rows_fold(high, low, 1, few_digits)
    result.high = high[0]
    result.low = low[0]
    return result


cdef DoubleDouble rows_reduce(
    const RowSums *sums, Py_ssize_t rows, Py_ssize_t n, bint few_digits=False
) noexcept nogil:
    """Add up, row by row, the partial sums of rows of n classes.

    Alone each row would wait for its own additions; many are added up side by side.
    """
    cdef real[16] total
    cdef real[16] rest
    cdef vector[16] highs
    cdef vector[16] lows
    cdef DoubleDouble result
    cdef Py_ssize_t k
    if n > LANES and rows > LANES // 4:
        for k in range(LANES):
            highs[k] = vector_load(sums.high + k * LANES)
            lows[k] = vector_set(0.0)
        if n > RUN * LANES and not few_digits:
            # Else nothing was added up yet with a rest.
            for k in range(LANES):
                lows[k] = vector_load(sums.low + k * LANES)
        if few_digits:
            return rows_folded(highs, lows, True)
        return rows_folded(highs, lows, False)
    for k in range(LANES):
        total[k] = 1
        rest[k] = 0
    for k in range(rows):
        if n <= LANES:
            total[k] = vector_reduce_few(vector_load(sums.high + k * LANES), rest + k)
        else:
            total[k] = vector_reduce_compensated(
                vector_load(sums.high + k * LANES), vector_load(sums.low + k * LANES), rest + k)
    result.high = vector_load(total)
    result.low = vector_set(0.0) if few_digits else vector_load(rest)
    return result


# ---- dense targets -------------------------------------------------------------------------------


cdef struct Coefficients:
    # Of the classes in a dense target: weight * (share * probability + even), without
    # probabilities weight * even, and where these are not smoothed weight * probability.
    const real *weight               # NULL: all 1
    const real *probabilities        # NULL for none
    bint smoothed
    vector share
    vector even
    Ahead ahead                      # what is fetched while probabilities are added up


cdef inline Coefficients coefficients_of_call(
    const Problem *problem, Py_ssize_t chunk
) noexcept nogil:
    """What all rows have in common, for a chunk."""
    cdef Coefficients coefficients
    coefficients.weight = coefficients.probabilities = NULL
    coefficients.even = vector_set(<real>problem.even.total)
    coefficients.share = vector_set(<real>(1 - problem.options.label_smoothing))
    coefficients.smoothed = problem.options.label_smoothing != 0 and not shares_by_row(problem)
    if problem.options.coefficients != NULL:
        coefficients.weight = <const real *>problem.options.coefficients + chunk * CHUNK
    return coefficients


cdef inline vector zero_past_end(vector v, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """The vector from class i on, 0 past the end."""
    if i + LANES <= n:
        return v
    return vector_select(
        vector_greater(vector_set(<real>(n - i)), vector_counting()), v, vector_set(0.0))


cdef inline vector coefficient_vector(
    const Coefficients *coefficients, Py_ssize_t i, Py_ssize_t n
) noexcept nogil:
    """The coefficients from class i on; 0 past the end."""
    cdef vector v = coefficients.even
    if coefficients.probabilities != NULL:
        v = row_vector(coefficients.probabilities, i, n)
        if coefficients.smoothed:
            v = vector_fma(coefficients.share, v, coefficients.even)
    if coefficients.weight != NULL:
        v = product_or_zero(zero_past_end(row_vector(coefficients.weight, i, n), i, n), v)
    return zero_past_end(v, i, n)


cdef inline real coefficient_at(
    const Coefficients *coefficients, Py_ssize_t place, Py_ssize_t n
) noexcept nogil:
    """The coefficient of one class; 0 if there is none."""
    cdef real[16] lane
    cdef Py_ssize_t start = place // LANES * LANES
    if place < 0:
        return 0
    vector_store(lane, coefficient_vector(coefficients, start, n))
    return lane[place - start]


cdef inline vector spread_origin(vector maximum) noexcept nogil:
    """What logits are counted from: the maximum, 0 where there is none."""
    return vector_select(
        vector_greater(maximum, vector_set(NEGATIVE_INFINITY)), maximum, vector_set(0.0))


cdef inline vector spread_term(vector coefficient, vector origin, vector x) noexcept nogil:
    """coefficient * (origin - x), where 0 * inf is 0."""
    return product_or_zero(coefficient, vector_subtract(origin, x))


cdef inline void run_spread(
    const real *x, Py_ssize_t i, Py_ssize_t n, vector origin, const Coefficients *coefficients,
    Py_ssize_t top, DoubleDouble *total, DoubleDouble *spread,
) noexcept nogil:
    """Add what row_spread() sums of the run from class i on, as much of it as there is."""
    cdef vector[RUN] a
    cdef vector[RUN] term
    cdef Py_ssize_t k
    for k in range(RUN):
        if coefficients.probabilities != NULL:
            fetch(&coefficients.ahead, i + k * LANES)
        a[k] = coefficient_vector(coefficients, i + k * LANES, n)
        term[k] = spread_term(a[k], origin, row_vector(x, i + k * LANES, n))
    if coefficients.probabilities != NULL:
        total[0] = double_double_add(total[0], run_without(a, top - i))
    spread[0] = double_double_add(spread[0], run_sum(term))


cdef inline void row_spread(
    const real *x, Py_ssize_t n, vector origin, const Coefficients *given, Py_ssize_t top,
    DoubleDouble *total_, DoubleDouble *spread_,
) noexcept nogil:
    """Sum, lane by lane, the spread_term() of a row and, of probabilities, the coefficients.

    That of class `top` is left out of the latter.
    """
    cdef Py_ssize_t i = 0, k, c, stop
    cdef DoubleDouble total = double_double_from(vector_set(0.0))    # in registers
    cdef DoubleDouble spread = total
    cdef Coefficients coefficients = given[0]
    cdef vector[2] sums
    cdef vector[2] terms
    cdef vector a, gap
    # Alike in all classes, and not 0: row_spread_of() has seen to that.
    cdef bint alike = coefficients.probabilities == NULL and coefficients.weight == NULL
    coefficients.share = vector_alike(coefficients.share)
    coefficients.even = vector_alike(coefficients.even)
    origin = vector_alike(origin)
    while i < n:
        stop = 1 - RUN * LANES + next_place(
            i, n, -1 if coefficients.probabilities == NULL else top, -1)
        while i < stop:
            for k in range(RUN):
                c = i + k * LANES
                if coefficients.probabilities != NULL:
                    fetch(&coefficients.ahead, c)
                a = coefficient_vector(&coefficients, c, c + LANES)
                gap = vector_subtract(origin, vector_load(x + c))
                pairs_take(
                    terms, k, vector_multiply(a, gap) if alike else product_or_zero(a, gap))
                if coefficients.probabilities != NULL:
                    pairs_take(sums, k, a)
            spread = double_double_add(spread, vector_add(terms[0], terms[1]))
            if coefficients.probabilities != NULL:
                total = double_double_add(total, vector_add(sums[0], sums[1]))
            i += RUN * LANES
        if i < n:
            run_spread(x, i, n, origin, &coefficients, top, &total, &spread)
            i += RUN * LANES
    total_[0] = total
    spread_[0] = spread


cdef void row_spread_of(
    const real *x, Py_ssize_t n, vector origin, const Coefficients *given, Py_ssize_t top,
    DoubleDouble *total, DoubleDouble *spread,
) noexcept nogil:
    """row_spread() with constants for what there is."""
    cdef Coefficients coefficients = given[0]
    if coefficients.probabilities != NULL and coefficients.weight != NULL:
        row_spread(x, n, origin, &coefficients, top, total, spread)
    elif coefficients.probabilities != NULL and coefficients.smoothed:
        coefficients.weight = NULL
        row_spread(x, n, origin, &coefficients, top, total, spread)
    elif coefficients.probabilities != NULL:
        coefficients.weight = NULL
        coefficients.smoothed = False
        row_spread(x, n, origin, &coefficients, top, total, spread)
    elif coefficients.weight != NULL:
        coefficients.probabilities = NULL
        row_spread(x, n, origin, &coefficients, top, total, spread)
    elif any_lane(vector_equal(coefficients.even, vector_set(0.0))):
        total[0] = spread[0] = double_double_from(vector_set(0.0))
    else:
        coefficients.probabilities = NULL
        coefficients.weight = NULL
        row_spread(x, n, origin, &coefficients, top, total, spread)


cdef inline const real *second_read(
    const Group *group, const Problem *problem, Py_ssize_t k, Py_ssize_t chunk,
    const Scratch *scratch,
) noexcept nogil:
    """A chunk of row k of SECOND: where it is if it is plain, else a copy."""
    return row_read(
        &problem.layout, &problem.arrays[<int>SECOND], in_group(group, problem, SECOND, k),
        chunk * CHUNK, chunk_length(problem, chunk), scratch.target, scratch.raw)


cdef inline Coefficients coefficients_of(
    const Group *group, const Problem *problem, Py_ssize_t k, Py_ssize_t chunk,
    const Scratch *scratch,
) noexcept nogil:
    """Describe the coefficients of a chunk of a row."""
    cdef Coefficients coefficients = coefficients_of_call(problem, chunk)
    if wants_entropy(problem):
        coefficients.probabilities = scratch.packed
    elif shares_by_row(problem):
        row_shares(group, problem, k, chunk, coefficients.share, scratch)
        coefficients.probabilities = scratch.target
    elif has(problem, SECOND):
        coefficients.probabilities = second_read(group, problem, k, chunk, scratch)
    return coefficients


cdef void row_shares(
    const Group *group, const Problem *problem, Py_ssize_t k, Py_ssize_t chunk, vector share,
    const Scratch *scratch,
) noexcept nogil:
    """Lay out share * probability, and what smoothing adds to the classes that a mask includes."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef real even = <real>group.weights.even[k]
    cdef real *to = scratch.target
    cdef const real *probabilities
    cdef Py_ssize_t i
    for i in range(n):
        to[i] = even
    row_exclude(
        &problem.layout, &problem.arrays[<int>MASK], in_group(group, problem, MASK, k),
        chunk * CHUNK, n, to, 0, scratch.raw)
    if not has(problem, SECOND):
        return
    # Nothing is on its way to the writer yet.
    probabilities = row_read(
        &problem.layout, &problem.arrays[<int>SECOND], in_group(group, problem, SECOND, k),
        chunk * CHUNK, n, scratch.packed, scratch.raw)
    i = 0
    while i < n:
        row_store(
            to + i, vector_fma(share, row_vector(probabilities, i, n), row_vector(to, i, n)),
            n - i)
        i += LANES


# ---- absorb --------------------------------------------------------------------------------------


cdef inline real *row_kept(
    const Group *group, const Problem *problem, Py_ssize_t k, Py_ssize_t chunk,
    const Scratch *scratch,
) noexcept nogil:
    """Where the exponentials of a chunk of a row are kept; NULL if they are not."""
    if wants_entropy(problem):
        return scratch.packed    # not for long
    if not problem.plan.keep:
        return NULL
    if problem.plan.keep_in_output:
        return <real *>(
            problem.arrays[<int>OUTPUT].data + in_group(group, problem, OUTPUT, k)) + chunk * CHUNK
    return scratch.kept + k * scratch.kept_stride + chunk * CHUNK


cdef inline bint is_read_in_place(const Problem *problem) noexcept nogil:
    """Whether row_input() gives a row where it is."""
    return not problem.plan.gather and has_neighbours(
        &problem.layout, &problem.arrays[<int>INPUT])


cdef inline int input_kind(const Problem *problem) noexcept nogil:
    """The kind of what row_input() gives."""
    return problem.arrays[<int>INPUT].kind if is_read_in_place(problem) else REAL_KIND


cdef inline const char *row_input(
    const Group *group, const Problem *problem, Py_ssize_t k, Py_ssize_t chunk, real *buffer,
    const Scratch *scratch,
) noexcept nogil:
    """A chunk of a row's logits: where they are, or copied to `buffer`, masked and capped."""
    cdef const Array *array = &problem.arrays[<int>INPUT]
    cdef Py_ssize_t offset = in_group(group, problem, INPUT, k)
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    if is_read_in_place(problem):
        return array.data + offset + chunk * CHUNK * array.size
    if problem.options.softcap != 0 and not has(problem, MASK):
        numbers_cap(
            buffer, row_read(
                &problem.layout, array, offset, chunk * CHUNK, n, buffer, scratch.raw),
            n, &scratch.softcap)
        return <const char *>buffer
    if is_weighted(problem):
        copy_weighty(
            buffer, row_read(
                &problem.layout, array, offset, chunk * CHUNK, n, buffer, scratch.raw),
            second_read(group, problem, k, chunk, scratch), n)
    else:
        row_gather(&problem.layout, array, offset, chunk * CHUNK, n, buffer, scratch.raw)
    if has(problem, MASK):
        row_exclude(
            &problem.layout, &problem.arrays[<int>MASK], in_group(group, problem, MASK, k),
            chunk * CHUNK, n, buffer, NEGATIVE_INFINITY, scratch.raw)
    if problem.options.softcap != 0:
        numbers_cap(buffer, buffer, n, &scratch.softcap)
    return <const char *>buffer


cdef void row_correct(
    const Group *group, const Problem *problem, Py_ssize_t k, Py_ssize_t chunk, real *gradient,
    const Scratch *scratch,
) noexcept nogil:
    """Do to a chunk of a row's gradient what row_input() did to its logits."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    if problem.options.softcap != 0:
        numbers_slope(
            gradient, row_read(
                &problem.layout, &problem.arrays[<int>INPUT], in_group(group, problem, INPUT, k),
                chunk * CHUNK, n, scratch.target, scratch.raw),
            n, &scratch.softcap)
    if has(problem, MASK):
        row_exclude(
            &problem.layout, &problem.arrays[<int>MASK], in_group(group, problem, MASK, k),
            chunk * CHUNK, n, gradient, 0, scratch.raw)


cdef inline Py_ssize_t label_place(
    const Group *group, const Problem *problem, Py_ssize_t chunk, Py_ssize_t k
) noexcept nogil:
    """Which class of a chunk is the label of row k; -1 if none is."""
    cdef Py_ssize_t label = group.labels[k] - chunk * CHUNK
    return label if has(problem, LABELS) and label < chunk_length(problem, chunk) else -1


cdef inline Py_ssize_t row_pivot(
    const Group *group, const Problem *problem, Py_ssize_t chunk, Py_ssize_t k, const char *x,
    real maximum,
) noexcept nogil:
    """Which class of a chunk of row k is left out of its sum; -1 for none."""
    if leaves_out_maximum(problem.operation):
        return row_find(x, chunk_length(problem, chunk), maximum, input_kind(problem))
    if not leaves_out_label(problem.operation):
        return -1
    return label_place(group, problem, chunk, k)


cdef inline Stretch stretch_of(const Problem *problem, Py_ssize_t n) noexcept nogil:
    """A stretch of n classes, of which nothing is known yet."""
    cdef Stretch stretch
    stretch.n = n
    stretch.kind = input_kind(problem)
    stretch.factors = NULL
    stretch.further = NULL
    return stretch


cdef inline void stretch_fetch(
    Stretch *stretch, const Group *group, const Problem *problem, Py_ssize_t k, Py_ssize_t chunk
) noexcept nogil:
    """Set what is fetched while a chunk of row k is worked on."""
    stretch.ahead = row_ahead(group, problem, INPUT, k, chunk)
    stretch.near = stretch.ahead
    stretch.near.start -= problem.plan.ahead // 2


cdef void along_absorb(
    Group *group, const Problem *problem, Py_ssize_t chunk, RowState *state, Scratch *scratch,
) noexcept nogil:
    """Fill the state of one chunk of the group, row by row."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t k, stop, first = 0
    cdef const char *x[16]
    cdef real[16] maximum
    cdef real[16] position
    cdef real[16] shift
    cdef real[16] exponent
    cdef RowSums sums    # elsewhere rows took 3 % longer
    cdef Reference reference
    cdef DenseSums *dense = <DenseSums *>scratch.sums
    cdef Stretch stretch = stretch_of(problem, n)
    if is_scored(problem.operation):
        own_logit_find(group, problem, &scratch.softcap)
    for k in range(LANES):
        maximum[k] = dense.own[k] = dense.below[k] = 0
        position[k] = -1
    while first < group.rows:
        stop = min(first + problem.plan.rows_at_once, group.rows)
        for k in range(first, stop):
            x[k] = row_input(
                group, problem, k, chunk,
                scratch.staged + (k - first) * staged_row_stride(problem), scratch)
            maximum[k] = row_maximum(x[k], n, stretch.kind)
        state.maximum = vector_load(maximum)
        state.reference = reference_for(state.maximum, &scratch.scale)
        vector_store(shift, state.reference.shift)
        vector_store(exponent, state.reference.exponent)
        for k in range(first, stop):
            stretch.pivot = row_pivot(group, problem, chunk, k, x[k], maximum[k])
            position[k] = <real>stretch.pivot
            stretch.x = x[k]
            stretch_fetch(&stretch, group, problem, k, chunk)
            if is_dense(problem.operation) and not sums_gaps(problem):
                along_spread(group, problem, chunk, k, &stretch, maximum[k], dense, scratch)
            elif is_weighted(problem):
                along_factors(group, problem, chunk, k, &stretch, maximum[k], dense, scratch)
            reference.shift = vector_set(shift[k])
            reference.exponent = vector_set(exponent[k])
            stretch.kept = row_kept(group, problem, k, chunk, scratch)
            if problem.shard.exported != NULL:
                shard_stretch(&stretch, group, problem, chunk, k, maximum[k], dense)
            sums_put(&sums, k, row_absorb(
                &stretch, reference, &scratch.scale, shift[k] != 0))
            if is_scored(problem.operation):
                position[k] = along_compare(
                    group, problem, chunk, k, &stretch, maximum[k], dense, scratch)
        first = stop
    state.others = rows_reduce(&sums, group.rows, n, scratch.scale.few_digits)
    state.position = vector_load(position)
    state.own_coefficient = vector_load(dense.own)
    state.below = double_double_from(vector_load(dense.below))
    if sums_coefficients(problem):
        dense_reduce(group, problem, chunk, state, dense)
    if is_scored(problem.operation):
        along_rest(group, problem, chunk, state, x, &sums, scratch)
    shard_export(group, problem, chunk, state, dense)


cdef inline real along_compare(
    const Group *group, const Problem *problem, Py_ssize_t chunk, Py_ssize_t k,
    Stretch *stretch, real maximum, DenseSums *dense, const Scratch *scratch,
) noexcept nogil:
    """What scores take of a chunk of row k besides its sum; return where its maximum is."""
    stretch.pivot = row_find(stretch.x, stretch.n, maximum, REAL_KIND)
    dense.below[k] = row_compare(group, problem, chunk, k, stretch, scratch)
    if wants_entropy(problem):
        along_spread(group, problem, chunk, k, stretch, maximum, dense, scratch)
    return <real>stretch.pivot


cdef inline void along_spread(
    const Group *group, const Problem *problem, Py_ssize_t chunk, Py_ssize_t k,
    const Stretch *stretch, real maximum, DenseSums *dense, const Scratch *scratch,
) noexcept nogil:
    cdef Coefficients coefficients = coefficients_of(group, problem, k, chunk, scratch)
    cdef DoubleDouble total, spread
    coefficients.ahead = Ahead(<const char *>coefficients.probabilities, 0)
    if has(problem, SECOND):
        coefficients.ahead = row_ahead(group, problem, SECOND, k, chunk)
    row_spread_of(
        <const real *>stretch.x, stretch.n, spread_origin(vector_set(maximum)), &coefficients,
        stretch.pivot, &total, &spread)
    sums_put(&dense.spread, k, spread)
    sums_put(&dense.coefficients, k, total)
    if coefficients.probabilities != NULL:
        dense.own[k] = coefficient_at(&coefficients, stretch.pivot, stretch.n)


cdef inline void along_factors(
    const Group *group, const Problem *problem, Py_ssize_t chunk, Py_ssize_t k,
    Stretch *stretch, real maximum, DenseSums *dense, const Scratch *scratch,
) noexcept nogil:
    stretch.factors = second_read(group, problem, k, chunk, scratch)
    stretch.factors_ahead = row_ahead(group, problem, SECOND, k, chunk)
    if maximum > NEGATIVE_INFINITY:
        memcpy(&dense.own[k], stretch.factors + stretch.pivot, sizeof(real))


cdef inline void dense_reduce(
    const Group *group, const Problem *problem, Py_ssize_t chunk, RowState *state,
    const DenseSums *dense,
) noexcept nogil:
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    state.spread = double_double_rounded(rows_reduce(&dense.spread, group.rows, n))
    if coefficients_by_row(problem):
        state.other_coefficients = rows_reduce(&dense.coefficients, group.rows, n)
        unmasked_coefficients(group, problem, chunk, state)
    else:
        state.other_coefficients = chunk_coefficients(problem, chunk)


cdef inline DoubleDouble chunk_coefficients(
    const Problem *problem, Py_ssize_t chunk
) noexcept nogil:
    """The sum of what label smoothing gives to the classes of a chunk, of any row."""
    return double_double_of_sum(sum_product(problem.even, problem.options.chunk_sums[chunk]))


cdef void unmasked_coefficients(
    const Group *group, const Problem *problem, Py_ssize_t chunk, RowState *state
) noexcept nogil:
    """Give rows that a mask excludes nothing of the sums that they have without one."""
    cdef real[16] unmasked
    cdef mask here
    cdef Py_ssize_t k
    if has(problem, SECOND) or not shares_by_row(problem) or group.weights.unmasked == 0:
        return
    for k in range(LANES):
        unmasked[k] = <real>(group.weights.unmasked >> k & 1)
    here = vector_equal(vector_load(unmasked), vector_set(1.0))
    state.own_coefficient = vector_select(here, vector_set(0.0), state.own_coefficient)
    state.other_coefficients = double_double_select(
        here, chunk_coefficients(problem, chunk), state.other_coefficients)


# ---- emit ----------------------------------------------------------------------------------------


cdef enum OutputKind:
    FROM_KEPT      # kept exponentials
    FROM_LOGITS    # exponentials, computed again
    LOGARITHMS
    FINISHED       # output, which is only to be written


cdef struct RowEntry:
    # A class that gets a value of its own; outside [0, n) for none.
    Py_ssize_t place
    real value


cdef struct RowOutput:
    # What to write for n classes of a row, in one number of each vector of a Recipe.
    const char *x             # kept exponentials, or logits,
    int source                # the kind of them,
    Ahead ahead               # and logits that are fetched meanwhile
    int stored                # kind of the output
    Reference reference
    DoubleDouble factor
    vector unscale
    vector minus
    vector coefficient_factor
    bint dense
    Coefficients coefficients
    bint curved               # the Hessian: times 1 - share * exponential, not below the floor
    DoubleDouble share        # (1 / the sum of the exponentials)
    vector floor
    RowEntry label            # of dense targets, its coefficient,
    RowEntry top              # and this goes first


cdef inline vector output_product(
    vector e, DoubleDouble factor, vector unscale, bint few_digits
) noexcept nogil:
    """e * factor * unscale, rounded once (where multiply-adds are fused)."""
    if few_digits:
        return vector_multiply(e, factor.high)
    return vector_multiply(
        vector_fma(e, factor.high, vector_multiply(e, factor.low)), unscale)


cdef inline vector curvature_product(
    vector e, DoubleDouble factor, vector unscale, DoubleDouble share, vector floor
) noexcept nogil:
    cdef vector v = product_rounded(factor, e)
    # The power last: a product that leaves the range is infinite, not a difference of such.
    v = vector_multiply(vector_fnma(product_rounded(share, e), v, v), unscale)
    return vector_maximum(floor, v)


cdef inline vector row_output(
    const RowOutput *row, vector v, OutputKind kind, vector coefficient, const Scale *scale
) noexcept nogil:
    """Make output of kept exponentials (FROM_KEPT) or of logits (the others)."""
    if kind == LOGARITHMS:
        return vector_subtract(cooled_difference(v, row.minus, scale), row.factor.high)
    if kind == FROM_LOGITS:
        v = exponential(v, row.reference, scale)
    if row.curved:
        return curvature_product(
            v, row.factor, row.unscale, row.share, row.floor)
    if not row.dense:
        return output_product(v, row.factor, row.unscale, scale.few_digits)
    return vector_multiply(
        vector_fnma(row.coefficient_factor, coefficient, product_rounded(row.factor, v)),
        row.unscale)


cdef inline vector row_entry_put(
    const RowEntry *entry, Py_ssize_t i, vector counting, vector v
) noexcept nogil:
    """v, which begins at class i, with the entry in its place."""
    if i <= entry.place < i + LANES:
        return vector_select(
            vector_equal(counting, vector_set(<real>(entry.place - i))),
            vector_set(entry.value), v)
    return v


cdef inline vector row_output_at(
    const RowOutput *row, OutputKind kind, Py_ssize_t i, Py_ssize_t n, vector counting,
    const Scale *scale,
) noexcept nogil:
    """The output from class i on, as much of a vector as there is."""
    cdef vector v = element_vector(row.x, i, n, row.source)
    cdef vector coefficient = vector_set(0.0)
    if row.dense:
        coefficient = row_entry_put(
            &row.label, i, counting, coefficient_vector(&row.coefficients, i, n))
        return row_entry_put(
            &row.top, i, counting, row_output(row, v, kind, coefficient, scale))
    return row_entry_put(
        &row.label, i, counting, row_output(row, v, kind, coefficient, scale))


cdef inline void row_vector_put(char *to, vector v, int kind, bint stream) noexcept nogil:
    if stream:
        kind_vector_stream(to, v, kind)
    else:
        kind_vector_store(to, v, kind)


cdef inline Py_ssize_t row_emit_whole(
    const RowOutput *row, OutputKind kind, Py_ssize_t i, Py_ssize_t n, const Scale *scale,
    char *to, bint stream,
) noexcept nogil:
    """Write the whole vectors from class i on; return where they end."""
    cdef Py_ssize_t size = kind_size(row.stored)
    cdef Py_ssize_t stop
    cdef vector counting = vector_counting()
    cdef vector coefficient = vector_set(0.0)
    while i + LANES <= n:
        stop = 1 - LANES + next_place(i, n, row.label.place, row.top.place if row.dense else -1)
        while i < stop:
            if stream and kind != FROM_KEPT:
                fetch(&row.ahead, i)
            if row.dense:
                coefficient = coefficient_vector(&row.coefficients, i, i + LANES)
            row_vector_put(to + i * size, row_output(
                row, element_vector(row.x, i, i + LANES, row.source), kind, coefficient, scale),
                row.stored, stream)
            i += LANES
        if i + LANES <= n:
            row_vector_put(
                to + i * size, row_output_at(row, kind, i, n, counting, scale), row.stored, stream)
            i += LANES
    return i


cdef inline void lanes_are_alike(RowOutput *row) noexcept nogil:
    """Say so to the compiler, which then needs fewer registers."""
    row.reference.shift = vector_alike(row.reference.shift)
    row.reference.exponent = vector_alike(row.reference.exponent)
    row.factor.high = vector_alike(row.factor.high)
    row.factor.low = vector_alike(row.factor.low)
    row.unscale = vector_alike(row.unscale)
    row.coefficient_factor = vector_alike(row.coefficient_factor)
    row.coefficients.share = vector_alike(row.coefficients.share)
    row.coefficients.even = vector_alike(row.coefficients.even)


cdef inline void row_emit(
    const RowOutput *row_, OutputKind kind, Py_ssize_t n, const Scale *scale_,
    Arithmetic arithmetic, char *to, Joints *joints,
) noexcept nogil:
    """Write n classes of a row, past the caches if there are `joints`.

    `kind` and `arithmetic` are constants where this is called.
    """
    # Copies, which no store in the loop can change: they stay in registers.
    cdef RowOutput row = row_[0]
    cdef Scale scale = scale_with(scale_, arithmetic)
    cdef vector counting = vector_counting()
    cdef Py_ssize_t size = kind_size(row.stored)
    cdef Py_ssize_t i = 0, head = -1
    lanes_are_alike(&row)
    if joints != NULL:
        head = joint_head(joints, to)
        if head > 0:
            i = min(head, n)
            joint_first(joints, to, row_output_at(&row, kind, 0, n, counting, &scale), i)
    if head >= 0:
        i = row_emit_whole(&row, kind, i, n, &scale, to, True)
    else:
        i = row_emit_whole(&row, kind, i, n, &scale, to, False)
    if i < n:
        if head >= 0:
            joint_last(
                joints, to + i * size, row_output_at(&row, kind, i, n, counting, &scale), n - i)
        else:
            kind_vector_store_first(
                to + i * size, row_output_at(&row, kind, i, n, counting, &scale), n - i,
                row.stored)


# A function for each kind of output, which has its registers to itself. Exponentials that are kept
# need no arithmetic but the digits of the product. A field that is set to what it was compared with
# is a constant to the compiler.


cdef void emit_kept_dense(
    const RowOutput *row_, Py_ssize_t n, const Scale *scale, char *to, Joints *joints
) noexcept nogil:
    cdef RowOutput row = row_[0]
    row.source = REAL_KIND
    row.curved = False
    row.dense = True
    if row.stored != REAL_KIND or row.coefficients.weight != NULL or (
        row.coefficients.probabilities != NULL and row.coefficients.smoothed
    ):
        row_emit(&row, FROM_KEPT, n, scale, PLAIN, to, joints)
        return
    row.stored = REAL_KIND
    row.coefficients.weight = NULL
    if row.coefficients.probabilities == NULL:
        row.coefficients.probabilities = NULL
        row_emit(&row, FROM_KEPT, n, scale, PLAIN, to, joints)
    else:
        row.coefficients.smoothed = False
        row_emit(&row, FROM_KEPT, n, scale, PLAIN, to, joints)


cdef void emit_kept(
    const RowOutput *row_, Py_ssize_t n, const Scale *scale, char *to, Joints *joints
) noexcept nogil:
    cdef RowOutput row = row_[0]
    if row.dense:
        emit_kept_dense(&row, n, scale, to, joints)
        return
    row.source = REAL_KIND
    row.dense = row.curved = False
    if not scale.few_digits and row.stored == REAL_KIND:
        row.stored = REAL_KIND
        row_emit(&row, FROM_KEPT, n, scale, PLAIN, to, joints)
    elif not scale.few_digits:
        row_emit(&row, FROM_KEPT, n, scale, PLAIN, to, joints)
    else:
        emit_kept_few(&row, n, scale, to, joints)


cdef void emit_kept_few(
    const RowOutput *row_, Py_ssize_t n, const Scale *scale, char *to, Joints *joints
) noexcept nogil:
    cdef RowOutput row = row_[0]
    row.source = REAL_KIND
    row.dense = row.curved = False
    if row.stored == KIND_BFLOAT16:
        row.stored = KIND_BFLOAT16
        row_emit(&row, FROM_KEPT, n, scale, FEW_DIGITS, to, joints)
    elif row.stored == KIND_FLOAT16:
        row.stored = KIND_FLOAT16
        row_emit(&row, FROM_KEPT, n, scale, FEW_DIGITS, to, joints)
    else:
        row.stored = REAL_KIND
        row_emit(&row, FROM_KEPT, n, scale, FEW_DIGITS, to, joints)


cdef void emit_curvature(
    const RowOutput *row_, Py_ssize_t n, const Scale *scale, char *to, Joints *joints
) noexcept nogil:
    cdef RowOutput row = row_[0]
    row.source = REAL_KIND
    row.curved = True
    if scale.few_digits:
        row_emit(&row, FROM_KEPT, n, scale, FEW_DIGITS, to, joints)
    else:
        row_emit(&row, FROM_KEPT, n, scale, PLAIN, to, joints)


cdef void emit_again(
    const RowOutput *row_, Py_ssize_t n, const Scale *scale, bint shifted, char *to, Joints *joints
) noexcept nogil:
    cdef RowOutput row = row_[0]
    if (
        row.curved or scale.tempered or shifted or scale.few_digits
        or row.source != REAL_KIND or row.stored != REAL_KIND
    ):
        row_emit(&row, FROM_LOGITS, n, scale, GENERAL, to, joints)
        return
    row.curved = False
    row.source = row.stored = REAL_KIND
    if row.dense:
        row.dense = True
        row_emit(&row, FROM_LOGITS, n, scale, PLAIN, to, joints)
    else:
        row.dense = False
        row_emit(&row, FROM_LOGITS, n, scale, PLAIN, to, joints)


cdef void emit_logarithms(
    const RowOutput *row_, Py_ssize_t n, const Scale *scale, char *to, Joints *joints
) noexcept nogil:
    cdef RowOutput row = row_[0]
    row.dense = False
    if scale.tempered or row.source != REAL_KIND or row.stored != REAL_KIND:
        row_emit(&row, LOGARITHMS, n, scale, GENERAL, to, joints)
    else:
        row.source = row.stored = REAL_KIND
        row_emit(&row, LOGARITHMS, n, scale, PLAIN, to, joints)


cdef struct RowsOutput:
    # A chunk of a group's output, of this role, a row in each lane, in memory.
    Role role
    real[16] factor
    real[16] factor_rest
    real[16] unscale
    real[16] minus
    real[16] share
    real[16] share_rest
    real[16] coefficient_factor
    real[16] at_label
    real[16] at_top
    real[16] shift
    real[16] exponent
    unsigned int again        # rows whose kept exponentials are to be computed again


cdef extern from *:
    """
    /* A factor this small could underflow; see chunk_factor(). */
    #define CHUNK_FACTOR_LIMIT ((real)0x1p-32)
    """
    const real CHUNK_FACTOR_LIMIT


cdef inline DoubleDouble chunk_factor(
    DoubleDouble factor, const Group *group, const Problem *problem, const RowState *state,
    Reference *reference,
) noexcept nogil:
    """Return a row's factor, and set the reference, for the exponentials of a chunk.

    Far below the row's maximum a chunk's factor could underflow where its product with an
    exponential does not: such a chunk starts again from the row's reference.
    """
    cdef mask low
    reference[0] = state.reference
    if not merges_chunks(problem) or emits_logarithms(problem.operation):
        return factor
    low = vector_greater(vector_set(CHUNK_FACTOR_LIMIT), state.factor.high)
    reference.shift = vector_select(low, group.whole.reference.shift, reference.shift)
    reference.exponent = vector_select(low, group.whole.reference.exponent, reference.exponent)
    return double_double_select(low, factor, double_double_product(factor, state.factor))


cdef inline void rows_output_open(
    RowsOutput *rows, const Group *group, const Problem *problem, const RowState *state, Role role
) noexcept nogil:
    cdef const Recipe *recipe = &group.recipe
    cdef const Curvature *curvature = &recipe.curvature
    cdef bint curved = role == HESSIAN
    cdef Reference references
    cdef DoubleDouble factors = chunk_factor(
        curvature.factor if curved else recipe.factor, group, problem, state, &references)
    rows.role = role
    vector_store(rows.factor, factors.high)
    vector_store(rows.factor_rest, factors.low)
    vector_store(rows.unscale, curvature.unscale if curved else recipe.unscale)
    vector_store(rows.minus, recipe.minus)
    vector_store(rows.coefficient_factor, recipe.coefficient_factor)
    vector_store(rows.at_label, curvature.at_top if curved else recipe.at_label)
    vector_store(rows.at_top, recipe.at_top)
    vector_store(rows.shift, references.shift)
    vector_store(rows.exponent, references.exponent)
    if curved:
        factors = chunk_factor(curvature.share, group, problem, state, &references)
        vector_store(rows.share, factors.high)
        vector_store(rows.share_rest, factors.low)
    rows.again = 0
    if merges_chunks(problem) and problem.plan.keep:
        rows.again = vector_mask_bits(
            vector_greater(vector_set(CHUNK_FACTOR_LIMIT), state.factor.high))


cdef struct RowPlace:
    # Where a chunk of a row is put,
    char *to
    int kind           # as what,
    Joints *joints     # and past the caches if there are such


cdef inline void row_make(
    const RowsOutput *rows, const Group *group, const Problem *problem, Py_ssize_t chunk,
    Py_ssize_t k, const Scratch *scratch, RowPlace place,
) noexcept nogil:
    """Compute a chunk of the output of one row."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef RowOutput row
    row.stored = place.kind
    row.reference.shift = vector_set(rows.shift[k])
    row.reference.exponent = vector_set(rows.exponent[k])
    row.factor.high = vector_set(rows.factor[k])
    row.factor.low = vector_set(rows.factor_rest[k])
    row.unscale = vector_set(rows.unscale[k])
    row.minus = vector_set(rows.minus[k])
    row.label.place = -1
    row.label.value = rows.at_label[k]
    row.curved = rows.role == HESSIAN
    row.dense = is_dense(problem.operation) and not row.curved
    if row.curved:
        row.label.place = group.recipe.curvature.top[k] - chunk * CHUNK
        row.share.high = vector_set(rows.share[k])
        row.share.low = vector_set(rows.share_rest[k])
        row.floor = vector_set(<real>problem.options.hessian.floor)
    elif has(problem, LABELS):
        row.label.place = group.labels[k] - chunk * CHUNK
    if row.dense:
        row.coefficient_factor = vector_set(rows.coefficient_factor[k])
        row.coefficients = coefficients_of(group, problem, k, chunk, scratch)
        row.top.place = group.recipe.top[k] - chunk * CHUNK
        row.top.value = rows.at_top[k]
    if problem.plan.keep and not rows.again >> k & 1:
        row.x = <const char *>row_kept(group, problem, k, chunk, scratch)
        if row.curved:
            emit_curvature(&row, n, &scratch.scale, place.to, place.joints)
        else:
            emit_kept(&row, n, &scratch.scale, place.to, place.joints)
        return
    row.source = input_kind(problem)
    row.x = row_input(group, problem, k, chunk, scratch.staged, scratch)
    row.ahead = row_ahead(group, problem, INPUT, k, chunk)
    if emits_logarithms(problem.operation):
        emit_logarithms(&row, n, &scratch.scale, place.to, place.joints)
    else:
        emit_again(
            &row, n, &scratch.scale, rows.shift[k] != 0, place.to, place.joints)


cdef void along_emit(
    const Group *group, const Problem *problem, Py_ssize_t chunk, const RowState *state,
    Scratch *scratch,
) noexcept nogil:
    """Write one chunk of the group's rows."""
    if has(problem, HESSIAN):
        # First: the gradient may take the place of what both are made of.
        along_write(group, problem, HESSIAN, chunk, state, scratch)
    along_write(group, problem, OUTPUT, chunk, state, scratch)


cdef void along_write(
    const Group *group, const Problem *problem, Role role, Py_ssize_t chunk,
    const RowState *state, Scratch *scratch,
) noexcept nogil:
    """Write one output, one row after the other."""
    cdef const Array *output = &problem.arrays[<int>role]
    cdef Writer *writer = writer_of(scratch, role)
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t k, offset
    cdef bint corrected = corrects_output(problem)
    cdef bint neighbours = has_neighbours(&problem.layout, output)
    cdef bint straight = neighbours and kind_has_vectors(output.kind) and not corrected
    cdef RowPlace place
    cdef RowsOutput rows
    rows_output_open(&rows, group, problem, state, role)
    place.kind = output.kind if straight else REAL_KIND
    place.joints = NULL
    if straight and problem.plan.stream:
        place.joints = &writer.joints
    for k in range(group.rows):
        offset = in_group(group, problem, role, k)
        place.to = output.data + offset + chunk * CHUNK * output.size
        if neighbours and not straight:
            place.to = <char *>writer_room(writer, place.to)
        elif not neighbours:
            place.to = <char *>scratch.packed
        if not group.ignored >> k & 1:
            row_make(&rows, group, problem, chunk, k, scratch, place)
        else:
            if place.joints != NULL:
                joints_close(place.joints)
            memset(place.to, 0, n * kind_size(place.kind))
        if straight:
            continue
        if corrected:
            row_correct(group, problem, k, chunk, <real *>place.to, scratch)
        if neighbours:
            writer_take(writer, n)
        else:
            row_scatter(
                &problem.layout, output, offset, chunk * CHUNK, n, <real *>place.to, scratch.raw)

# The gradients through softmax and log_softmax: sums of two arrays and what is made of them.
#
#     softmax       S_i (g_i - sum_j g_j S_j) / T
#     log_softmax   (g_i - exp(y_i) sum_j g_j) / T
#
# At most one probability is above 1/2. There a sum of all g less its own would lose digits: what
# belongs to that class is left out of the sum of log_softmax.
#
# Uses pairs.pxi, along.pxi (row_vector(), row_store(), zero_past_end()), numbers.pxd.

# ---- sums ----------------------------------------------------------------------------------------


cdef inline mask is_likely(vector y) noexcept nogil:
    """Whether y is the logarithm of a probability above 1/2; above 0 it is that of none."""
    return vector_greater(
        vector_select(vector_greater(y, vector_set(0.0)), vector_set(NEGATIVE_INFINITY), y),
        vector_set(-LN2))


cdef inline void backward_add(
    Operation operation, vector a, vector b, DoubleDouble *total, vector *left_out
) noexcept nogil:
    """Add what a class of INPUT (a) and SECOND (b) contributes; `operation` is a constant."""
    cdef vector zero = vector_set(0.0)
    cdef DoubleDouble term
    cdef vector own
    if operation == SOFTMAX_BACKWARD:
        term.high = vector_multiply(a, b)
        term.low = multiply_error(a, b, term.high)
        total[0] = double_double_merge(total[0], term)
        return
    own = vector_select(is_likely(b), a, zero)
    left_out[0] = vector_add(left_out[0], own)
    a = vector_select(is_likely(b), zero, a)
    total[0] = double_double_add(total[0], a)


cdef inline PairSum backward_sum(Operation operation, const PairChunk *chunk) noexcept nogil:
    cdef vector left_out = vector_set(0.0)
    cdef DoubleDouble total = double_double_from(left_out)
    cdef const real *a = chunk.input
    cdef const real *b = chunk.second
    cdef Py_ssize_t i = 0, n = chunk.n, k
    cdef PairSum result
    cdef real[16] lane
    cdef real rest
    while i + LANES <= n:
        backward_add(operation, vector_load(a + i), vector_load(b + i), &total, &left_out)
        i += LANES
    if i < n:
        backward_add(
            operation, zero_past_end(row_vector(a, i, n), i, n),
            zero_past_end(row_vector(b, i, n), i, n), &total, &left_out)
    result.left_out = 0
    if operation == LOG_SOFTMAX_BACKWARD:
        result.left_out = vector_reduce_compensated(left_out, vector_set(0.0), &rest)
    result.sum = vector_reduce_compensated(total.high, total.low, &rest)
    result.rest = rest
    if rest != rest:
        # What an infinite sum lost is no number.
        vector_store(lane, double_double_rounded(total))
        result.rest = 0
        result.sum = 0
        for k in range(LANES):
            result.sum += lane[k]
    return result


cdef inline void backward_tile_sum(Operation operation, const PairTile *tile) noexcept nogil:
    """The same of all rows of a tile: class c in the sum that is its lane's along a row."""
    cdef TileSums *sums = tile.sums
    cdef Py_ssize_t c, k
    for k in range(min(<Py_ssize_t>LANES, tile.stop) if tile.first == 0 else 0):
        sums.lane[k] = double_double_from(vector_set(0.0))
        if operation == LOG_SOFTMAX_BACKWARD:
            sums.other[k] = sums.lane[k]
    for c in range(tile.first, tile.stop):
        k = c % LANES
        pair_fetch(tile, c)
        backward_add(
            operation, tile_vector(&tile.input, c), tile_vector(&tile.second, c), &sums.lane[k],
            &sums.other[k].high)


cdef void backward_tile_total(
    Operation operation, TileSums *lanes, Py_ssize_t n, PairSums *sums
) noexcept nogil:
    """Add the sums in n lanes up for each row of a tile."""
    cdef DoubleDouble[16] merged
    cdef DoubleDouble total
    cdef real[16] number
    cdef Py_ssize_t k, row
    cdef vector left_out = vector_set(0.0)
    if operation == LOG_SOFTMAX_BACKWARD:
        left_out = lanes_merge(lanes.other, n, False).high
    for k in range(n):
        merged[k] = lanes.lane[k]
    total = lanes_merge(merged, n, False)
    numbers_store(sums.sum, total.high)
    numbers_store(sums.rest, total.low)
    numbers_store(sums.left_out, left_out)
    if vector_mask_bits(vector_equal(total.low, total.low)) == (1 << LANES) - 1:
        return
    # What an infinite sum lost is no number.
    for row in range(LANES):
        if sums.rest[row] != sums.rest[row]:
            sums.rest[row] = 0
            sums.sum[row] = 0
            for k in range(n):
                vector_store(number, double_double_rounded(lanes.lane[k]))
                sums.sum[row] += number[row]


# A function each, which has its registers to itself.


cdef PairSum softmax_backward_sum(const PairChunk *chunk) noexcept nogil:
    return backward_sum(SOFTMAX_BACKWARD, chunk)


cdef PairSum log_softmax_backward_sum(const PairChunk *chunk) noexcept nogil:
    return backward_sum(LOG_SOFTMAX_BACKWARD, chunk)


cdef void softmax_backward_tile_sum(const PairTile *tile) noexcept nogil:
    backward_tile_sum(SOFTMAX_BACKWARD, tile)


cdef void log_softmax_backward_tile_sum(const PairTile *tile) noexcept nogil:
    backward_tile_sum(LOG_SOFTMAX_BACKWARD, tile)


# ---- gradients -----------------------------------------------------------------------------------


cdef struct BackwardSums:
    # What the gradients of rows are made of, besides the two arrays.
    DoubleDouble total      # the sum over all classes,
    DoubleDouble others     # that without what is left out,
    vector left_out         # and that
    DoubleDouble inverse    # 1 / temperature
    bint hot                # the temperature is above 1
    bint tempered           # and not 1


cdef inline PairSum whole_sum(PairSum sum_) noexcept nogil:
    """With what is left out."""
    return pair_sum_merge(sum_, PairSum(sum_.left_out, 0, 0))


cdef inline void temperature_put(BackwardSums *sums, double temperature) noexcept nogil:
    sums.hot = temperature > 1
    sums.tempered = temperature != 1
    if sums.tempered:
        sums.inverse = double_double_reciprocal(temperature)


cdef inline BackwardSums backward_sums(
    const Problem *problem, PairSum of_row
) noexcept nogil:
    """Those of one row, in each lane."""
    cdef PairSum whole = whole_sum(of_row)
    cdef BackwardSums sums
    sums.total = double_double_set(whole.sum, whole.rest)
    sums.others = double_double_set(of_row.sum, of_row.rest)
    sums.left_out = vector_set(<real>of_row.left_out)
    temperature_put(&sums, problem.options.temperature)
    return sums


cdef inline BackwardSums backward_tile_sums(
    const Group *group, const Problem *problem, bint leaves_out
) noexcept nogil:
    """Those of a tile, a row in each lane; `leaves_out` is a constant."""
    cdef BackwardSums sums
    cdef PairSums whole
    cdef real[16] left_out
    cdef Py_ssize_t k
    sums.total = sums.others = double_doubles_set(&group.sums)
    sums.left_out = vector_set(0.0)
    if leaves_out:
        for k in range(LANES):
            sum_of_row_put(&whole, k, whole_sum(sum_of_row(&group.sums, k)))
            left_out[k] = <real>group.sums.left_out[k]
        sums.total = double_doubles_set(&whole)
        sums.left_out = vector_load(left_out)
    temperature_put(&sums, problem.options.temperature)
    return sums


cdef inline vector cooled(vector v, const BackwardSums *sums) noexcept nogil:
    """v / temperature."""
    return vector_fma(v, sums.inverse.high, vector_multiply(v, sums.inverse.low))


cdef inline vector softmax_gradient(vector g, vector s, const BackwardSums *sums) noexcept nogil:
    """Neither factor leaves the range unless the result does."""
    cdef mask tiny = vector_equal(s, vector_set(0.0))
    cdef vector unit = vector_set(1.0)
    g = vector_subtract(vector_subtract(g, sums.total.high), sums.total.low)
    if any_lane(tiny):
        s = vector_select(tiny, subnormal_part(s), s)
        unit = vector_select(tiny, vector_set(SMALLEST_NORMAL), unit)
    if sums.tempered and sums.hot:
        g = cooled(g, sums)
    elif sums.tempered:
        s = cooled(s, sums)
    return vector_multiply(vector_multiply(s, g), unit)


cdef inline vector log_softmax_gradient(
    vector g, vector y, const BackwardSums *sums, const Scale *scale
) noexcept nogil:
    cdef mask likely = is_likely(y)
    cdef vector others, missing, unit
    cdef vector e = exponential_apart(y, &unit, scale)
    cdef vector result = vector_fnma(e, vector_multiply(sums.total.high, unit), g)
    if any_lane(likely):
        # g (1 - p) - p (the sum of the others)
        others = vector_add(
            vector_add(sums.others.high, vector_subtract(sums.left_out, g)), sums.others.low)
        missing = exponential_minus_one(y, scale)
        others = vector_multiply(vector_add(missing, vector_set(1.0)), others)
        result = vector_select(
            likely, vector_subtract(vector_set(0.0), vector_fma(missing, g, others)), result)
    return cooled(result, sums) if sums.tempered else result


cdef void softmax_backward_emit(
    const Group *group, const Problem *problem, Py_ssize_t k, const PairChunk *chunk, real *to
) noexcept nogil:
    cdef BackwardSums sums = backward_sums(problem, sum_of_row(&group.sums, k))
    cdef Py_ssize_t i = 0, n = chunk.n
    while i + LANES <= n:
        vector_store(to + i, softmax_gradient(
            vector_load(chunk.input + i), vector_load(chunk.second + i), &sums))
        i += LANES
    if i < n:
        vector_store_first(to + i, softmax_gradient(
            row_vector(chunk.input, i, n), row_vector(chunk.second, i, n), &sums), n - i)


cdef void log_softmax_backward_emit(
    const Group *group, const Problem *problem, Py_ssize_t k, const PairChunk *chunk,
    const Scale *scale_, real *to,
) noexcept nogil:
    cdef Scale scale = scale_with(scale_, PLAIN)
    cdef BackwardSums sums = backward_sums(problem, sum_of_row(&group.sums, k))
    cdef Py_ssize_t i = 0, n = chunk.n
    while i + LANES <= n:
        vector_store(to + i, log_softmax_gradient(
            vector_load(chunk.input + i), vector_load(chunk.second + i), &sums, &scale))
        i += LANES
    if i < n:
        vector_store_first(to + i, log_softmax_gradient(
            row_vector(chunk.input, i, n), row_vector(chunk.second, i, n), &sums, &scale), n - i)


cdef void softmax_backward_tile_emit(
    const Group *group, const Problem *problem, const PairTile *tile, const TilePlace *place
) noexcept nogil:
    cdef BackwardSums sums = backward_tile_sums(group, problem, False)
    cdef Py_ssize_t c
    for c in range(tile.first, tile.stop):
        fetch(&tile.input_ahead, c)
        vector_store(<real *>(place.to + c * place.class_stride), softmax_gradient(
            tile_vector(&tile.input, c), tile_vector(&tile.second, c), &sums))


cdef void log_softmax_backward_tile_emit(
    const Group *group, const Problem *problem, const PairTile *tile, const Scale *scale_,
    const TilePlace *place,
) noexcept nogil:
    cdef Scale scale = scale_with(scale_, PLAIN)
    cdef BackwardSums sums = backward_tile_sums(group, problem, True)
    cdef Py_ssize_t c
    for c in range(tile.first, tile.stop):
        fetch(&tile.input_ahead, c)
        vector_store(<real *>(place.to + c * place.class_stride), log_softmax_gradient(
            tile_vector(&tile.input, c), tile_vector(&tile.second, c), &sums, &scale))

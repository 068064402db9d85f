# The gradients through softmax and log_softmax, and the diagonal of the Hessian: sums of two arrays
# and what is made of them.
#
#     softmax       S_i (g_i - sum_j g_j S_j) / T
#     log_softmax   (g_i - exp(y_i) sum_j g_j) / T
#     curvature     p_i (1 - p_i) times the row's factor, not below the floor
#
# At most one probability is above 1/2. There 1 - p would lose digits, and so would a sum of all g
# less its own: what belongs to that class is left out of the sums of log_softmax and curvature.
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
    if operation == LOG_SOFTMAX_BACKWARD:
        own = vector_select(is_likely(b), a, zero)
        left_out[0] = vector_add(left_out[0], own)
        a = vector_select(is_likely(b), zero, a)
    else:
        a = vector_select(vector_greater(a, vector_set(0.5)), zero, a)
    total[0] = double_double_add(total[0], a)


cdef inline PairSum backward_sum(
    Operation operation, const real *a, const real *b, Py_ssize_t n
) noexcept nogil:
    cdef vector left_out = vector_set(0.0)
    cdef DoubleDouble total = double_double_from(left_out)
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        backward_add(operation, vector_load(a + i), vector_load(b + i), &total, &left_out)
        i += LANES
    if i < n:
        backward_add(
            operation, zero_past_end(row_vector(a, i, n), i, n),
            zero_past_end(row_vector(b, i, n), i, n), &total, &left_out)
    return pair_sum_from(total, left_out)


# A function each, which has its registers to itself.


cdef PairSum softmax_backward_sum(
    const real *gradient, const real *output, Py_ssize_t n
) noexcept nogil:
    return backward_sum(SOFTMAX_BACKWARD, gradient, output, n)


cdef PairSum log_softmax_backward_sum(
    const real *gradient, const real *output, Py_ssize_t n
) noexcept nogil:
    return backward_sum(LOG_SOFTMAX_BACKWARD, gradient, output, n)


cdef PairSum curvature_sum(const real *probabilities, Py_ssize_t n) noexcept nogil:
    return backward_sum(CURVATURE, probabilities, probabilities, n)


# ---- gradients -----------------------------------------------------------------------------------


cdef struct BackwardRow:
    # What the gradient of a row is made of, besides the two arrays.
    DoubleDouble total      # the sum over all classes,
    DoubleDouble others     # that without what is left out,
    vector left_out         # and that
    DoubleDouble inverse    # 1 / temperature
    bint hot                # the temperature is above 1
    bint tempered           # and not 1


cdef inline BackwardRow backward_row(
    const Problem *problem, const PairSum *total
) noexcept nogil:
    cdef double temperature = problem.options.temperature
    cdef double inverse = 1 / temperature
    cdef BackwardRow row
    cdef PairSum own
    own.sum = total.left_out
    own.rest = 0
    own.left_out = 0
    own = pair_sum_merge(total[0], own)
    row.total = double_double_set(own.sum, own.rest)
    row.others = double_double_set(total.sum, total.rest)
    row.left_out = vector_set(<real>total.left_out)
    row.inverse = double_double_set(inverse, inverse * (
        (1 - inverse * temperature) - product_error(inverse, temperature)))
    row.hot = temperature > 1
    row.tempered = temperature != 1
    return row


cdef inline vector cooled(vector v, const BackwardRow *row) noexcept nogil:
    """v / temperature."""
    return vector_fma(v, row.inverse.high, vector_multiply(v, row.inverse.low))


cdef inline vector softmax_gradient(vector g, vector s, const BackwardRow *row) noexcept nogil:
    """Neither factor leaves the range unless the result does."""
    cdef mask tiny = vector_equal(s, vector_set(0.0))
    cdef vector unit = vector_set(1.0)
    g = vector_subtract(vector_subtract(g, row.total.high), row.total.low)
    if any_lane(tiny):
        s = vector_select(tiny, subnormal_part(s), s)
        unit = vector_select(tiny, vector_set(SMALLEST_NORMAL), unit)
    if row.tempered and row.hot:
        g = cooled(g, row)
    elif row.tempered:
        s = cooled(s, row)
    return vector_multiply(vector_multiply(s, g), unit)


cdef inline vector log_softmax_gradient(
    vector g, vector y, const BackwardRow *row, const Scale *scale
) noexcept nogil:
    cdef mask likely = is_likely(y)
    cdef vector others, missing, unit
    cdef vector e = exponential_apart(y, &unit, scale)
    cdef vector result = vector_fnma(e, vector_multiply(row.total.high, unit), g)
    if any_lane(likely):
        # g (1 - p) - p (the sum of the others)
        others = vector_add(
            vector_add(row.others.high, vector_subtract(row.left_out, g)), row.others.low)
        missing = exponential_minus_one(y, scale)
        others = vector_multiply(vector_add(missing, vector_set(1.0)), others)
        result = vector_select(
            likely, vector_subtract(vector_set(0.0), vector_fma(missing, g, others)), result)
    return cooled(result, row) if row.tempered else result


cdef void softmax_backward_emit(
    const Problem *problem, const real *gradient, const real *output, const PairSum *total,
    Py_ssize_t n, real *to,
) noexcept nogil:
    cdef BackwardRow row = backward_row(problem, total)
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        vector_store(to + i, softmax_gradient(
            vector_load(gradient + i), vector_load(output + i), &row))
        i += LANES
    if i < n:
        vector_store_first(to + i, softmax_gradient(
            row_vector(gradient, i, n), row_vector(output, i, n), &row), n - i)


cdef void log_softmax_backward_emit(
    const Problem *problem, const real *gradient, const real *output, const PairSum *total,
    Py_ssize_t n, const Scale *scale_, real *to,
) noexcept nogil:
    cdef Scale scale = scale_with(scale_, PLAIN)
    cdef BackwardRow row = backward_row(problem, total)
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        vector_store(to + i, log_softmax_gradient(
            vector_load(gradient + i), vector_load(output + i), &row, &scale))
        i += LANES
    if i < n:
        vector_store_first(to + i, log_softmax_gradient(
            row_vector(gradient, i, n), row_vector(output, i, n), &row, &scale), n - i)


# ---- curvature -----------------------------------------------------------------------------------


cdef struct CurvatureRow:
    vector others      # the sum of all probabilities but the one above 1/2
    vector factor      # the row's factor: a number of size 1 to 2,
    vector[2] power    # times two powers of two, which may be beyond the range together
    vector floor


cdef inline CurvatureRow curvature_row(
    const Group *group, const Problem *problem, Py_ssize_t k, const PairSum *total
) noexcept nogil:
    cdef CurvatureRow row
    cdef int power, most = EXPONENT_BIAS - 2
    cdef int first
    row.others = vector_set(<real>(total.sum + total.rest))
    row.factor = vector_set(<real>power_split(
        group.weights.sample[k] if group.weights.given else 1, &power))
    first = max(-most, min(most, power))
    row.power[0] = vector_set(<real>power_apply(1, first))
    row.power[1] = vector_set(<real>power_apply(1, max(-most, min(most, power - first))))
    row.floor = vector_set(<real>problem.options.floor)
    return row


cdef inline vector curvature(vector p, const CurvatureRow *row) noexcept nogil:
    cdef vector rest = vector_select(
        vector_greater(p, vector_set(0.5)), row.others, vector_subtract(vector_set(1.0), p))
    cdef vector product = vector_multiply(p, vector_multiply(rest, row.factor))
    return vector_maximum(row.floor, vector_multiply(
        vector_multiply(product, row.power[0]), row.power[1]))


cdef void curvature_emit(
    const Group *group, const Problem *problem, const real *probabilities, Py_ssize_t k,
    const PairSum *total, Py_ssize_t n, real *to,
) noexcept nogil:
    cdef CurvatureRow row = curvature_row(group, problem, k, total)
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        vector_store(to + i, curvature(vector_load(probabilities + i), &row))
        i += LANES
    if i < n:
        vector_store_first(to + i, curvature(row_vector(probabilities, i, n), &row), n - i)

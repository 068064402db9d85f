# Binary cross-entropy: losses, and their gradients by the logits, element by element.
#
#     w (v t log(1 + exp(-x)) + (1 - t) log(1 + exp(x))),    of probabilities q
#     w (-t log q - (1 - t) log(1 - q))
#
# Where products with weights could leave the range though the result does not, each factor is split
# into a fraction and a power of two. The operations are the same, and so are their bits.
#
# Uses panel.pxi, state.pxi (chunk_length()), along.pxi (row_vector(), row_store()), likelihood.pxi
# (octets), numbers.pxd.

cdef extern from *:
    """
    /* Within these bounds products with two weights, and what they lose, stay in the range. A
     * target may be as small as it likes: then the other part of the loss is what counts. */
    #define MOST_WEIGHT ((real)(sizeof(real) == 4 ? 0x1p16 : 0x1p100))
    #define MOST_LOGIT ((real)(sizeof(real) == 4 ? 30 : 300))
    #define LEAST_PROBABILITY ((real)(sizeof(real) == 4 ? 0x1p-40 : 0x1p-400))
    """
    const real MOST_WEIGHT
    const real MOST_LOGIT
    const real LEAST_PROBABILITY


# ---- numbers of any size -------------------------------------------------------------------------


cdef struct Wide:
    # fraction * 2**exponent
    vector fraction
    vector exponent


cdef enum:
    EXPONENT_OF_ZERO = -1048576    # below any other
    ELEMENTS_AT_ONCE = 1024        # whose arrays the first-level cache holds
    NEAR_IS_SMALL = -60            # log(1 + x) of an x of that exponent is x


cdef inline vector clamped(vector x, real low, real high) noexcept nogil:
    x = vector_select(vector_greater(x, vector_set(high)), vector_set(high), x)
    return vector_maximum(vector_set(low), x)


cdef inline vector power_of_two(vector exponent) noexcept nogil:
    """2**exponent for whole numbers in the range of normal numbers; those below give the least."""
    return vector_power_of_two(vector_fma(
        vector_maximum(vector_set(2 - EXPONENT_BIAS), exponent), vector_set(STEPS),
        vector_set(POWER_ROUNDER)))


cdef inline Wide wide(vector x) noexcept nogil:
    """Split a number; infinity and NaN stay whole."""
    cdef vector zero = vector_set(0.0)
    cdef vector size = vector_absolute(x)
    cdef mask small = vector_greater(vector_set(SMALLEST_NORMAL), size)
    cdef mask finite = vector_equal(vector_subtract(x, x), zero)
    cdef Wide result
    size = vector_select(small, subnormal_part(x), vector_fraction(size))
    result.fraction = vector_select(finite, vector_select(
        vector_greater(zero, x), vector_subtract(zero, size), size), x)
    result.exponent = vector_select(finite, vector_select(
        small, vector_set(1 - EXPONENT_BIAS), vector_exponent(vector_absolute(x))), zero)
    result.exponent = vector_select(
        vector_equal(result.fraction, zero), vector_set(EXPONENT_OF_ZERO), result.exponent)
    return result


cdef inline Wide wide_product(Wide coefficient, Wide x) noexcept nogil:
    """0 for a coefficient of 0, whatever x is."""
    coefficient.fraction = product_or_zero(coefficient.fraction, x.fraction)
    coefficient.exponent = vector_add(coefficient.exponent, x.exponent)
    return coefficient


cdef inline Wide wide_sum(Wide a, Wide x, Wide b, Wide y) noexcept nogil:
    """a x + b y, where a coefficient of 0, a or b, takes its term out."""
    cdef vector zero = vector_set(0.0)
    cdef vector of_x = vector_add(a.exponent, x.exponent)
    cdef vector of_y = vector_add(b.exponent, y.exponent)
    cdef Wide result
    result.exponent = vector_maximum(of_x, of_y)
    result.fraction = vector_fma(
        vector_multiply(a.fraction, power_of_two(vector_subtract(of_x, result.exponent))),
        vector_select(vector_equal(a.fraction, zero), zero, x.fraction),
        product_or_zero(
            vector_multiply(b.fraction, power_of_two(vector_subtract(of_y, result.exponent))),
            y.fraction))
    return result


cdef inline vector wide_value(Wide x) noexcept nogil:
    cdef real most = EXPONENT_BIAS - 2
    cdef vector first = clamped(x.exponent, -most, most)
    cdef vector second = clamped(vector_subtract(x.exponent, first), -most, most)
    return vector_multiply(
        vector_multiply(x.fraction, power_of_two(first)), power_of_two(second))


# ---- losses --------------------------------------------------------------------------------------


cdef struct BinaryElements:
    # n elements of a row in each array, as they are computed with; NULL for none.
    const real *x
    const real *yes
    const real *weight
    const real *pos_weight
    real *losses
    real *gradient
    Py_ssize_t n
    DoubleDouble gradient_scale


cdef struct Odds:
    # What a logit x comes to.
    Wide small             # exp(-|x|),
    DoubleDouble others    # 1 + exp(-|x|),
    vector near            # log(1 + exp(-|x|)),
    vector far             # log(1 + exp(|x|))
    mask positive          # x > 0: the far one is that of no


cdef inline Odds odds_of(vector x, const Scale *scale) noexcept nogil:
    cdef vector zero = vector_set(0.0)
    cdef vector one = vector_set(1.0)
    cdef vector rounder = vector_set(ROUNDER)
    cdef vector size = vector_absolute(x)
    # Beyond, no weight could bring the exponential back into the range.
    cdef vector minus = vector_maximum(
        vector_set(-300.0 if sizeof(real) == 4 else -2200.0), vector_subtract(zero, size))
    cdef Reference reference
    cdef DoubleDouble e
    cdef Odds odds
    reference.shift = zero
    reference.exponent = vector_subtract(
        vector_fma(minus, vector_set(scale.log2e / STEPS), rounder), rounder)
    e = exponential_pair(minus, reference, scale)
    odds.small.fraction = e.high
    odds.small.exponent = vector_select(
        vector_equal(x, x), reference.exponent, zero)    # NaN is in the fraction
    e.high = wide_value(odds.small)
    odds.others = double_double_from(vector_add(one, e.high))
    odds.others.low = vector_add(
        vector_subtract(e.high, vector_subtract(odds.others.high, one)),
        vector_multiply(e.low, power_of_two(odds.small.exponent)))
    odds.near = vector_select(
        vector_greater(vector_set(NEAR_IS_SMALL), odds.small.exponent), e.high,
        logarithm(odds.others.high, odds.others.low, zero))
    odds.far = vector_add(odds.near, size)
    odds.positive = vector_greater(x, zero)
    return odds


cdef inline DoubleDouble sigmoid_of_size(const Odds *odds, DoubleDouble scale) noexcept nogil:
    """The sigmoid of |x|, 1 / (1 + exp(-|x|)), times a scale."""
    return double_double_product(
        double_double_quotient(double_double_from(vector_set(1.0)), odds.others), scale)


cdef inline vector signed_product(mask positive, vector x, DoubleDouble factor) noexcept nogil:
    """x * factor, or -x * factor where not positive; rounded once (with fused multiply-adds)."""
    x = vector_select(positive, x, vector_subtract(vector_set(0.0), x))
    return vector_fma(x, factor.high, vector_multiply(x, factor.low))


cdef inline vector sum_of_terms(vector a, vector x, vector b, vector y) noexcept nogil:
    """a x + b y, where a coefficient of 0, a or b, takes its term out."""
    cdef vector zero = vector_set(0.0)
    return vector_fma(
        a, vector_select(vector_equal(a, zero), zero, x), product_or_zero(b, y))


cdef inline vector weight_or_one(const real *weight, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    return vector_set(1.0) if weight == NULL else row_vector(weight, i, n)


cdef inline vector weighted_by(
    const real *weight, Py_ssize_t i, Py_ssize_t n, vector v
) noexcept nogil:
    return v if weight == NULL else product_or_zero(row_vector(weight, i, n), v)


cdef inline vector outside(vector x, real least, real most) noexcept nogil:
    """1 where x is neither 0 nor of a size within these bounds, else 0."""
    cdef vector zero = vector_set(0.0)
    cdef vector one = vector_set(1.0)
    cdef vector size = vector_absolute(x)
    return vector_select(vector_equal(x, zero), zero, vector_select(
        vector_greater(size, vector_set(most)), one, vector_select(
            vector_greater(vector_set(least), size), one, zero)))


cdef inline bint are_extreme(
    const BinaryElements *at, Py_ssize_t i, real least_x, real most_x
) noexcept nogil:
    """Whether products with weights could leave the range."""
    cdef vector any_ = vector_add(
        outside(row_vector(at.x, i, at.n), least_x, most_x),
        outside(row_vector(at.yes, i, at.n), 0, MOST_WEIGHT))
    any_ = vector_add(any_, vector_add(
        outside(weight_or_one(at.weight, i, at.n), 1 / MOST_WEIGHT, MOST_WEIGHT),
        outside(weight_or_one(at.pos_weight, i, at.n), 1 / MOST_WEIGHT, MOST_WEIGHT)))
    return any_lane(vector_greater(zero_past_end(any_, i, at.n), vector_set(0.0)))


cdef inline void logit_losses(
    const BinaryElements *at, Py_ssize_t i, const Scale *scale, vector *loss, vector *gradient
) noexcept nogil:
    """The losses of LANES elements from i on, and their gradients."""
    cdef vector zero = vector_set(0.0)
    cdef vector x = row_vector(at.x, i, at.n)
    cdef vector t = row_vector(at.yes, i, at.n)
    cdef vector yes = vector_multiply(t, weight_or_one(at.pos_weight, i, at.n))
    cdef vector no = vector_subtract(vector_set(1.0), t)
    cdef Odds odds = odds_of(x, scale)
    cdef vector of_far = vector_select(odds.positive, no, yes)
    cdef vector of_near = vector_select(odds.positive, yes, no)
    cdef vector total, weight
    cdef DoubleDouble factor
    loss[0] = weighted_by(
        at.weight, i, at.n, sum_of_terms(of_far, odds.far, of_near, odds.near))
    if at.gradient == NULL:
        return
    # The sigmoid of -|x| is that of |x| times exp(-|x|).
    total = sum_of_terms(
        vector_subtract(zero, of_near), wide_value(odds.small), of_far, vector_set(1.0))
    factor = sigmoid_of_size(&odds, at.gradient_scale)
    if at.weight != NULL:
        weight = row_vector(at.weight, i, at.n)
        factor = double_double_multiply(factor, weight)
        total = vector_select(vector_equal(weight, zero), zero, total)
    gradient[0] = signed_product(odds.positive, total, factor)
    if at.weight != NULL or at.pos_weight != NULL:
        # Else the coefficients are not both 0.
        gradient[0] = vector_select(vector_equal(total, zero), zero, gradient[0])


cdef inline Wide wide_select(mask m, Wide a, Wide b) noexcept nogil:
    a.fraction = vector_select(m, a.fraction, b.fraction)
    a.exponent = vector_select(m, a.exponent, b.exponent)
    return a


cdef void extreme_logit_losses(
    const BinaryElements *at, Py_ssize_t i, const Scale *scale, vector *loss, vector *gradient
) noexcept nogil:
    """The same where products could leave the range."""
    cdef vector zero = vector_set(0.0)
    cdef vector t = row_vector(at.yes, i, at.n)
    cdef Odds odds = odds_of(row_vector(at.x, i, at.n), scale)
    cdef Wide one = wide(vector_set(1.0))
    cdef Wide weight = wide(weight_or_one(at.weight, i, at.n))
    cdef Wide yes = wide_product(wide(t), wide(weight_or_one(at.pos_weight, i, at.n)))
    cdef Wide no = wide(vector_subtract(vector_set(1.0), t))
    cdef Wide of_far = wide_select(odds.positive, no, yes)
    cdef Wide of_near = wide_select(odds.positive, yes, no)
    cdef Wide near = wide_select(
        vector_greater(vector_set(NEAR_IS_SMALL), odds.small.exponent), odds.small,
        wide(odds.near))
    cdef Wide total
    loss[0] = wide_value(wide_product(weight, wide_sum(of_far, wide(odds.far), of_near, near)))
    if at.gradient == NULL:
        return
    of_near.fraction = vector_subtract(zero, of_near.fraction)
    total = wide_sum(of_near, odds.small, of_far, one)
    weight.fraction = vector_select(
        vector_equal(total.fraction, zero), zero, weight.fraction)
    total.fraction = signed_product(
        odds.positive, total.fraction, double_double_multiply(
            sigmoid_of_size(&odds, at.gradient_scale), weight.fraction))
    total.exponent = vector_add(total.exponent, weight.exponent)
    gradient[0] = vector_select(
        vector_equal(weight.fraction, zero), zero, wide_value(total))


cdef inline vector probability_losses(
    const BinaryElements *at, Py_ssize_t i, bint extreme
) noexcept nogil:
    cdef vector zero = vector_set(0.0)
    cdef vector x = row_vector(at.x, i, at.n)
    cdef vector yes = row_vector(at.yes, i, at.n)
    cdef vector no = vector_subtract(vector_set(1.0), yes)
    cdef vector of_yes = vector_subtract(zero, plain_logarithm(x, zero))
    cdef vector of_no = vector_subtract(zero, logarithm_of_one_plus(vector_subtract(zero, x)))
    if extreme:
        return wide_value(wide_product(
            wide(row_vector(at.weight, i, at.n)),
            wide_sum(wide(yes), wide(of_yes), wide(no), wide(of_no))))
    return weighted_by(at.weight, i, at.n, sum_of_terms(yes, of_yes, no, of_no))


cdef void extreme_probability_losses(
    const BinaryElements *at, Py_ssize_t i, vector *loss
) noexcept nogil:
    loss[0] = probability_losses(at, i, True)


cdef inline void binary_logits(
    const BinaryElements *given, bint weighted, const Scale *scale_
) noexcept nogil:
    """All losses, and gradients; `weighted` is a constant."""
    cdef Scale scale = scale_with(scale_, PLAIN)
    cdef BinaryElements at = given[0]
    cdef vector loss
    cdef vector gradient = vector_set(0.0)
    cdef Py_ssize_t i = 0
    if not weighted:
        at.weight = NULL
        at.pos_weight = NULL
    while i < at.n:
        if weighted and are_extreme(&at, i, 0, MOST_LOGIT):
            extreme_logit_losses(given, i, &scale, &loss, &gradient)
        else:
            logit_losses(&at, i, &scale, &loss, &gradient)
        row_store(at.losses + i, loss, at.n - i)
        if at.gradient != NULL:
            row_store(at.gradient + i, gradient, at.n - i)
        i += LANES


cdef inline void binary_probabilities(const BinaryElements *given, bint weighted) noexcept nogil:
    cdef BinaryElements at = given[0]
    cdef vector loss
    cdef Py_ssize_t i = 0
    if not weighted:
        at.weight = NULL
    while i < at.n:
        if weighted and are_extreme(&at, i, LEAST_PROBABILITY, 1):
            extreme_probability_losses(given, i, &loss)
        else:
            loss = probability_losses(&at, i, False)
        row_store(at.losses + i, loss, at.n - i)
        i += LANES


# A function each, which has its registers to itself.


cdef void binary_of_logits(const BinaryElements *at, const Scale *scale) noexcept nogil:
    binary_logits(at, False, scale)


cdef void binary_of_logits_weighted(const BinaryElements *at, const Scale *scale) noexcept nogil:
    binary_logits(at, True, scale)


cdef void binary_of_probabilities(const BinaryElements *at) noexcept nogil:
    binary_probabilities(at, False)


cdef void binary_of_probabilities_weighted(const BinaryElements *at) noexcept nogil:
    binary_probabilities(at, True)


# ---- tasks ---------------------------------------------------------------------------------------


cdef struct OctetSum:
    octet total
    octet rest


cdef struct BinaryScratch:
    # Elements of each array that are copied.
    real *x
    real *yes
    real *weight
    real *pos_weight
    real *losses
    real *gradient
    char *raw


cdef size_t binary_scratch_place(
    const Problem *problem, char *memory, BinaryScratch *scratch
) noexcept nogil:
    cdef size_t size = min(
        <Py_ssize_t>ELEMENTS_AT_ONCE, problem.layout.rows * problem.layout.classes) * sizeof(real)
    cdef char *start = memory
    scratch.x = <real *>part_take(&memory, size)
    scratch.yes = <real *>part_take(&memory, size)
    scratch.weight = <real *>part_take(&memory, size)
    scratch.pos_weight = <real *>part_take(&memory, size)
    scratch.losses = <real *>part_take(&memory, size)
    scratch.gradient = <real *>part_take(&memory, size)
    scratch.raw = part_take(&memory, 8 * size // sizeof(real))
    return memory - start


cdef size_t binary_scratch_size(const Problem *problem) noexcept nogil:
    cdef BinaryScratch scratch
    return binary_scratch_place(problem, NULL, &scratch)


cdef struct BinaryRows:
    # Elements that are worked on together: n of one row, from `start` on, or all n of some rows.
    Py_ssize_t first
    Py_ssize_t rows
    Py_ssize_t start
    Py_ssize_t n


cdef inline bint lie_together(
    const Problem *problem, Role role, const BinaryRows *at
) noexcept nogil:
    """Whether they can be read, or written, where they are."""
    cdef const Array *array = &problem.arrays[<int>role]
    return is_plain(&problem.layout, array) and (
        at.rows == 1 or array.row_stride == at.n * array.size)


cdef inline bint is_repeated(const Layout *layout, const Array *array) noexcept nogil:
    """Whether all rows of an array are one."""
    cdef int axis
    for axis in range(layout.row_axes):
        if array.strides[axis] != 0:
            return False
    return True


cdef const real *binary_read(
    const Problem *problem, Role role, const BinaryRows *at, real *buffer, char *raw
) noexcept nogil:
    """The elements of an array: themselves, or a copy; NULL if there is no array."""
    cdef const Layout *layout = &problem.layout
    cdef const Array *array = &problem.arrays[<int>role]
    cdef Py_ssize_t row = 0, done
    if array.data == NULL:
        return NULL
    if lie_together(problem, role, at):
        return <const real *>(array.data + row_offset(layout, array, at.first)) + at.start
    while row < at.rows:
        if row > 0 and is_repeated(layout, array):
            done = min(row, at.rows - row)
            memcpy(buffer + row * at.n, buffer, done * at.n * sizeof(real))
            row += done
            continue
        row_gather(
            layout, array, row_offset(layout, array, at.first + row), at.start, at.n,
            buffer + row * at.n, raw)
        row += 1
    return buffer


cdef inline real *binary_place(
    const Problem *problem, Role role, const BinaryRows *at, real *buffer
) noexcept nogil:
    """Where results can be written to: where they belong, if they lie together there."""
    cdef const Array *array = &problem.arrays[<int>role]
    if array.data == NULL or not lie_together(problem, role, at):
        return buffer
    return <real *>(array.data + row_offset(&problem.layout, array, at.first)) + at.start


cdef void binary_write(
    const Problem *problem, Role role, const BinaryRows *at, const real *results, char *raw
) noexcept nogil:
    """Write results that are not yet where they belong."""
    cdef const Array *array = &problem.arrays[<int>role]
    cdef Py_ssize_t row
    if array.data == NULL or lie_together(problem, role, at):
        return
    for row in range(at.rows):
        row_scatter(
            &problem.layout, array, row_offset(&problem.layout, array, at.first + row), at.start,
            at.n, results + row * at.n, raw)


cdef void binary_elements(
    const Problem *problem, const BinaryRows *rows, const BinaryScratch *scratch,
    const Scale *scale, OctetSum *sums,
) noexcept nogil:
    """Compute the losses of some elements, at most ELEMENTS_AT_ONCE."""
    cdef BinaryElements at
    at.n = rows.rows * rows.n
    at.gradient_scale = double_double_reciprocal(problem.options.divisor)
    at.x = binary_read(problem, INPUT, rows, scratch.x, scratch.raw)
    at.yes = binary_read(problem, SECOND, rows, scratch.yes, scratch.raw)
    at.weight = binary_read(problem, WEIGHT, rows, scratch.weight, scratch.raw)
    at.pos_weight = binary_read(problem, POS_WEIGHT, rows, scratch.pos_weight, scratch.raw)
    at.losses = binary_place(problem, RESULT, rows, scratch.losses)
    at.gradient = NULL
    if has(problem, OUTPUT):
        at.gradient = binary_place(problem, OUTPUT, rows, scratch.gradient)
    if not problem.options.from_logits and at.weight == NULL:
        binary_of_probabilities(&at)
    elif not problem.options.from_logits:
        binary_of_probabilities_weighted(&at)
    elif at.weight == NULL and at.pos_weight == NULL:
        binary_of_logits(&at, scale)
    else:
        binary_of_logits_weighted(&at, scale)
    if problem.task_sums != NULL:
        numbers_add(sums, at.losses, at.n)
    binary_write(problem, RESULT, rows, at.losses, scratch.raw)
    binary_write(problem, OUTPUT, rows, at.gradient, scratch.raw)


cdef void numbers_add(OctetSum *sums, const real *x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i < n:
        octet_add(&sums.total, &sums.rest, reals_from(x, i, n))
        i += 8


cdef inline environment binary_environment(const Problem *problem) noexcept nogil:
    """Products below the smallest normal number are 0, unless a weight could bring them back."""
    if problem.options.from_logits and not has(problem, WEIGHT) and not has(problem, POS_WEIGHT):
        return environment_enter()
    return environment_plain()


cdef void binary_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    """Work through the rows of a task, or through a chunk of a row."""
    cdef const Problem *problem = <const Problem *>context
    cdef Py_ssize_t row = task * problem.plan.rows_per_task
    cdef Py_ssize_t last = min(row + problem.plan.rows_per_task, problem.layout.rows)
    cdef Py_ssize_t start = 0, stop = problem.layout.classes
    cdef Py_ssize_t rows_at_once = max(<Py_ssize_t>1, ELEMENTS_AT_ONCE // stop)
    cdef BinaryRows rows
    cdef BinaryScratch scratch
    cdef OctetSum sums
    cdef PairSum total
    cdef Scale scale = scale_for(1.0, False)
    cdef environment before = binary_environment(problem)
    binary_scratch_place(problem, memory, &scratch)
    sums.total = octet_set(0)
    sums.rest = sums.total
    if problem.plan.by_chunks:
        row = task // problem.plan.chunks
        last = row + 1
        start = task % problem.plan.chunks * CHUNK
        stop = start + chunk_length(problem, task % problem.plan.chunks)
    while row < last:
        rows.first = row
        rows.rows = min(rows_at_once, last - row)
        rows.start = start
        while rows.start < stop:
            rows.n = min(<Py_ssize_t>ELEMENTS_AT_ONCE, stop - rows.start)
            binary_elements(problem, &rows, &scratch, &scale, &sums)
            rows.start += rows.n
        row += rows.rows
    environment_leave(before)
    if problem.task_sums != NULL:
        total = octet_total(sums.total, sums.rest)
        problem.task_sums[task] = total.sum + total.rest

# softmax, log_softmax and logsumexp: how they finish a row's state.
#
#     S_i = exp(x_i / T) / sum_j exp(x_j / T)
#
# Uses state.pxi, numbers.pxd.

cdef inline mask is_empty(const RowState *state) noexcept nogil:
    """Whether there is no finite element: a NaN, which is never the maximum, is in the sum."""
    return vector_equal(
        vector_add(state.others.high, state.maximum), vector_set(NEGATIVE_INFINITY))


cdef inline DoubleDouble with_exact_maximum(
    DoubleDouble total, const RowState *state, mask where_, const Scale *scale
) noexcept nogil:
    """Add what the exponential of the maximum lost: all the error that a confident row has."""
    cdef DoubleDouble top
    if scale.few_digits:
        return total
    top = exponential_pair(state.maximum, state.reference, scale)
    total.low = vector_add(total.low, vector_select(where_, top.low, vector_set(0.0)))
    return total


cdef inline vector log_of_rest(const RowState *state, const Scale *scale) noexcept nogil:
    """log(sum(exp((x - maximum) / T))), where the maximum is left out of the state's sum."""
    cdef DoubleDouble own = exponential_pair(state.maximum, state.reference, scale)
    return logarithm_of_share(state.others, own, state.maximum, state.reference, scale)


cdef inline void unscale_few_digits(Recipe *recipe, const Scale *scale) noexcept nogil:
    """Where few digits will do, the output is one product: see output_product()."""
    if scale.few_digits:
        recipe.factor = double_double_from(vector_multiply(recipe.factor.high, recipe.unscale))


cdef inline void finish_softmax(
    Group *group, const Problem *problem, const Scratch *scratch
) noexcept nogil:
    cdef vector zero = vector_set(0.0)
    cdef const Scale *scale = &scratch.scale
    cdef Recipe *recipe = &group.recipe
    cdef DoubleDouble total = group.whole.others
    if problem.layout.classes > 1:    # the quotient of a single one is to be 1
        total = with_exact_maximum(total, &group.whole, vector_equal(zero, zero), scale)
    recipe.factor = sum_quotient(
        double_double_from(vector_set(TWO_TO_HEADROOM)), total, scale.few_digits)
    recipe.unscale = vector_set(TWO_TO_MINUS_HEADROOM)
    if problem.options.empty_is_zero:
        recipe.factor = double_double_select(
            is_empty(&group.whole), double_double_from(zero), recipe.factor)
    unscale_few_digits(recipe, scale)


cdef inline void finish_log_softmax(
    Group *group, const Problem *problem, const Scratch *scratch
) noexcept nogil:
    cdef vector zero = vector_set(0.0)
    cdef const Scale *scale = &scratch.scale
    cdef Recipe *recipe = &group.recipe
    cdef mask empty
    recipe.minus = group.whole.maximum
    recipe.factor = double_double_from(log_of_rest(&group.whole, scale))
    if problem.options.empty_is_zero:
        empty = is_empty(&group.whole)
        recipe.minus = vector_select(empty, zero, recipe.minus)
        recipe.factor = double_double_select(empty, double_double_from(zero), recipe.factor)


cdef inline void finish_logsumexp(
    Group *group, const Problem *problem, const Scratch *scratch
) noexcept nogil:
    """Of a confident row, the maximum plus what the others add: near 0, too, none of it is lost."""
    cdef RowState *whole = &group.whole
    cdef const Scale *scale = &scratch.scale
    cdef DoubleDouble own = exponential_pair(whole.maximum, whole.reference, scale)
    cdef vector sign = vector_select(
        vector_greater(whole.maximum, vector_set(NEGATIVE_INFINITY)),
        vector_set(1.0), vector_set(0.0))
    cdef vector maximum = whole.maximum
    cdef vector result
    cdef double[16] signs
    if scale.tempered:
        maximum = vector_multiply(maximum, vector_set(scale.inverse))
    if is_weighted(problem):
        result = log_weighted(whole, scale, &sign)
    else:
        result = vector_select(
            vector_greater(own.high, whole.others.high),
            vector_add(maximum, log_of_rest(whole, scale)),
            log_total(double_double_merge(whole.others, own), whole.reference, scale))
    numbers_store(group.result, result)
    numbers_store(signs, sign)
    if vector_mask_bits(vector_equal(
        whole.maximum, vector_set(-NEGATIVE_INFINITY)
    )) != 0:
        finish_infinite(group, problem, signs)
    if is_weighted(problem) or has(problem, SIGN):
        finish_signs(group, problem, signs)


cdef inline vector log_weighted(
    const RowState *whole, const Scale *scale, vector *sign
) noexcept nogil:
    """The logarithm of the magnitude of a sum with factors, and the sum's sign.

    It is taken apart as without them, which gives the same bits where the factors are 1.
    """
    cdef vector zero = vector_set(0.0)
    cdef vector infinity = vector_set(-NEGATIVE_INFINITY)
    cdef DoubleDouble own = exponential_pair(whole.maximum, whole.reference, scale)
    cdef DoubleDouble total
    cdef mask negative
    cdef vector of_own, of_all
    # Rounded as the others' products are, so that equal ones of opposite signs leave 0.
    own.high = vector_multiply(own.high, whole.own_coefficient)
    own.low = vector_multiply(own.low, whole.own_coefficient)
    total = double_double_merge(whole.others, own)
    negative = vector_greater(zero, total.high)
    of_own = vector_add(
        plain_logarithm(vector_absolute(whole.own_coefficient), zero),
        logarithm_of_share(whole.others, own, whole.maximum, whole.reference, scale))
    of_all = vector_add(whole.reference.shift, logarithm(
        vector_absolute(total.high),
        vector_select(negative, vector_subtract(zero, total.low), total.low),
        whole.reference.exponent))
    sign[0] = vector_select(negative, vector_set(-1.0), vector_select(
        vector_greater(total.high, zero), vector_set(1.0), total.high))
    return vector_select(
        vector_greater(vector_absolute(own.high), vector_absolute(whole.others.high)),
        vector_add(whole.maximum, of_own),
        vector_select(vector_equal(vector_absolute(total.high), infinity), infinity, of_all))


cdef void finish_infinite(Group *group, const Problem *problem, double *signs) noexcept nogil:
    """An infinite maximum is the logsumexp, unless there is a NaN; two of them look like one."""
    cdef real[16] maximum
    cdef double weight
    cdef Py_ssize_t k
    vector_store(maximum, group.whole.maximum)
    for k in range(group.rows):
        if maximum[k] == -NEGATIVE_INFINITY:
            weight = infinite_weight(group, problem, k)
            if not is_weighted(problem):
                # Of a shard, the infinite element may be elsewhere.
                weight = NAN if isnan(weight) else 1
            signs[k] = 1 if weight > 0 else -1
            group.result[k] = maximum[k] if weight < 0 or weight > 0 else weight * maximum[k]


cdef double infinite_weight(
    const Group *group, const Problem *problem, Py_ssize_t k
) noexcept nogil:
    """The sum of the factors of a row's infinite elements; NaN if the row has a NaN."""
    cdef const Array *array = &problem.arrays[<int>INPUT]
    cdef const Array *second = &problem.arrays[<int>SECOND]
    cdef double weight = 0, factor = 1
    cdef Py_ssize_t c
    cdef real x
    for c in range(problem.layout.classes):
        if is_excluded(group, problem, k, c):
            continue
        x = real_read(
            array, array.data + in_group(group, problem, INPUT, k)
            + class_offset(&problem.layout, array, c))
        if second.data != NULL:
            factor = real_read(
                second, second.data + in_group(group, problem, SECOND, k)
                + class_offset(&problem.layout, second, c))
        if factor == 0 or x == NEGATIVE_INFINITY:
            continue
        if x != x or factor != factor:
            return x + factor
        if x == -NEGATIVE_INFINITY:
            weight += factor
    return weight


cdef void finish_signs(Group *group, const Problem *problem, double *signs) noexcept nogil:
    """Write the signs of the sums; without them a negative one has no logarithm."""
    cdef Py_ssize_t k
    if not has(problem, SIGN):
        for k in range(LANES):
            group.result[k] = group.result[k] if signs[k] >= 0 else NAN
        return
    for k in range(LANES):
        signs[k] = group.result[k] if group.result[k] != group.result[k] else signs[k]
    group_write(group, problem, SIGN, signs)


cdef inline void numbers_store(double *to, vector v) noexcept nogil:
    cdef real[16] lane
    cdef Py_ssize_t k
    vector_store(lane, v)
    for k in range(LANES):
        to[k] = lane[k]

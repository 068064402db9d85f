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
    cdef DoubleDouble top = exponential_pair(state.maximum, state.reference, scale)
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
    recipe.factor = double_double_quotient(vector_set(TWO_TO_HEADROOM), total)
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
    cdef vector infinity = vector_set(-NEGATIVE_INFINITY)
    cdef vector maximum = whole.maximum
    cdef vector result
    if scale.tempered:
        maximum = vector_multiply(maximum, vector_set(scale.inverse))
    result = vector_select(
        vector_greater(own.high, whole.others.high),
        vector_add(maximum, log_of_rest(whole, scale)),
        log_total(double_double_merge(whole.others, own), whole.reference, scale))
    numbers_store(group.result, result)
    if vector_mask_bits(vector_equal(whole.maximum, infinity)) != 0:
        finish_infinite(group, problem)


cdef void finish_infinite(Group *group, const Problem *problem) noexcept nogil:
    """An infinite maximum is the logsumexp, unless there is a NaN; two of them look like one."""
    cdef real[16] maximum
    cdef Py_ssize_t k
    vector_store(maximum, group.whole.maximum)
    for k in range(group.rows):
        if maximum[k] == -NEGATIVE_INFINITY and not row_has_nan(group, problem, k):
            group.result[k] = maximum[k]


cdef bint row_has_nan(const Group *group, const Problem *problem, Py_ssize_t k) noexcept nogil:
    cdef const Array *array = &problem.arrays[<int>INPUT]
    cdef Py_ssize_t c
    cdef real x
    for c in range(problem.layout.classes):
        x = real_read(
            array, array.data + in_group(group, problem, INPUT, k)
            + class_offset(&problem.layout, array, c))
        if x != x and not is_excluded(group, problem, k, c):
            return True
    return False


cdef inline void numbers_store(double *to, vector v) noexcept nogil:
    cdef real[16] lane
    cdef Py_ssize_t k
    vector_store(lane, v)
    for k in range(LANES):
        to[k] = lane[k]

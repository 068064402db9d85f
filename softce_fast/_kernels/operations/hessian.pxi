# The diagonal of the Hessian of the cross-entropy, written beside the gradient:
#
#     K p_i (1 - p_i) / T**2, times the row's weight and share in the reduced loss,
#
# with K the sum of the coefficients. Where p is above 1/2, 1 - p is the sum of the others.
#
# Uses cross_entropy.pxi, along.pxi (stretch_of(), row_input(), row_find(), row_absorb()),
# numbers.pxd.

cdef inline Scaled scale_of_hessian(const Problem *problem) noexcept nogil:
    """What every row's diagonal is multiplied by."""
    return scaled_product(
        scaled_quotient(scale_of_gradients(problem), problem.options.temperature),
        problem.options.hessian.scale)


cdef void finish_hessian(
    Group *group, const Problem *problem, const Scratch *scratch
) noexcept nogil:
    cdef Curvature *curvature = &group.recipe.curvature
    cdef RowFactors factors = scratch.common.factors[1].alike
    cdef DoubleDouble total = exact_total(group, problem, scratch)
    cdef DoubleDouble own, others, product
    if not weighs_alike(problem):
        factors = factors_of(group, problem, scratch.common.factors[1].of_all, False)
    elif has(problem, SECOND):
        factors = factors_by_sum(group, problem, &scratch.common.factors[1], False)
    finish_top(group, problem, &total, &own, &others, scratch)
    curvature.factor = double_double_quotient(
        factors.whole, double_double_scaled(total, factors.lift))
    curvature.unscale = factors.power
    curvature.share = ratio_of(double_double_from(vector_set(1.0)), total)
    # The power of two last: the others may be tiny, and the row's weight large.
    product = double_double_product(
        double_double_product(double_double_quotient(own, total), curvature.factor), others)
    curvature.at_top = vector_maximum(
        vector_set(<real>problem.options.hessian.floor),
        vector_multiply(double_double_rounded(product), curvature.unscale))


cdef inline void finish_top(
    Group *group, const Problem *problem, DoubleDouble *total, DoubleDouble *own,
    DoubleDouble *others, const Scratch *scratch,
) noexcept nogil:
    """Find the class more likely than all others, its exponential and the sum of the others'.

    It may be one that was not left out of the row's sum: then the row is summed once more, and the
    total is of these, too.
    """
    cdef int64_t *top = group.recipe.curvature.top
    cdef const int64_t *own_class = group.labels
    cdef DoubleDouble largest = exponential_pair(
        group.whole.maximum, group.whole.reference, &scratch.scale)
    cdef unsigned int confident, wrong
    cdef Py_ssize_t k
    own[0] = group.own
    others[0] = group.whole.others
    confident = vector_mask_bits(vector_greater(
        own.high, vector_add(others.high, others.low)))
    if is_dense(problem.operation):
        own_class = group.recipe.top
    for k in range(LANES):
        top[k] = own_class[k] if confident >> k & 1 else -1
    wrong = ~confident & ~group.ignored & vector_mask_bits(
        vector_greater(vector_add(largest.high, largest.high), total.high))
    if wrong == 0 or is_dense(problem.operation):
        return
    own[0] = largest
    if is_in_tile(group, problem):
        tile_others(group, problem, wrong, others, scratch)
    else:
        rows_others(group, problem, wrong, others, scratch)
    total[0] = lanes_replaced(
        total[0], wrong, sum_merge(others[0], largest, scratch.scale.few_digits))


cdef void rows_others(
    Group *group, const Problem *problem, unsigned int wrong, DoubleDouble *others,
    const Scratch *scratch,
) noexcept nogil:
    """row_others() for the rows of a group that are `wrong`, bits."""
    cdef int64_t *top = group.recipe.curvature.top
    cdef real[16] high
    cdef real[16] low
    cdef Py_ssize_t k
    vector_store(high, others.high)
    vector_store(low, others.low)
    for k in range(group.rows):
        if wrong >> k & 1:
            high[k] = row_others(group, problem, k, top + k, low + k, scratch)
    others.high = vector_load(high)
    others.low = vector_load(low)


cdef void tile_others(
    Group *group, const Problem *problem, unsigned int wrong, DoubleDouble *others,
    const Scratch *scratch,
) noexcept nogil:
    """row_others() for the rows of a tile that are `wrong`, bits: their exponentials are there."""
    cdef Py_ssize_t n = problem.layout.classes
    cdef const real *tile = scratch.kept + (group - scratch.groups) * scratch.kept_stride
    cdef real *terms = tile_terms(problem, <real *>tile, n)
    cdef vector zero = vector_set(0.0)
    cdef Tile exponentials = tile_at(tile)
    cdef vector maximum = vector_set(NEGATIVE_INFINITY)
    cdef vector position = vector_set(-1.0)
    cdef real[16] top
    cdef int64_t *where_ = group.recipe.curvature.top
    cdef Py_ssize_t k
    tile_top(&exponentials, 0, n, &maximum, &position)
    for k in range(n):
        vector_store(terms + k * LANES, vector_select(
            vector_equal(position, vector_set(<real>k)), zero, vector_load(tile + k * LANES)))
    vector_store(top, position)
    others[0] = lanes_replaced(
        others[0], wrong, tile_sums(terms, n, scratch.scale.few_digits))
    for k in range(LANES):
        where_[k] = <int>top[k] if wrong >> k & 1 else where_[k]


cdef inline DoubleDouble lanes_replaced(
    DoubleDouble numbers, unsigned int lanes, DoubleDouble by
) noexcept nogil:
    """The numbers, but `by` in those lanes, bits."""
    cdef real[16] chosen
    cdef Py_ssize_t k
    for k in range(LANES):
        chosen[k] = <real>(<int>(lanes >> k & 1))
    return double_double_select(
        vector_equal(vector_load(chosen), vector_set(0.0)), numbers, by)


cdef real row_others(
    const Group *group, const Problem *problem, Py_ssize_t k, int64_t *top, real *low,
    const Scratch *scratch,
) noexcept nogil:
    """The sum of a row's exponentials without the largest, whose class is found.

    `low` becomes what it misses.
    """
    cdef real[16] lane
    cdef real sum_, maximum, shift
    cdef Reference reference
    cdef DoubleDouble total = double_double_from(vector_set(0.0))
    cdef Stretch stretch = stretch_of(problem, 0)
    cdef Py_ssize_t chunk
    vector_store(lane, group.whole.maximum)
    maximum = lane[k]
    vector_store(lane, group.whole.reference.exponent)
    reference.exponent = vector_set(lane[k])
    vector_store(lane, group.whole.reference.shift)
    shift = lane[k]
    reference.shift = vector_set(shift)
    stretch.kept = NULL
    for chunk in range(problem.plan.chunks):
        stretch.x = row_input(group, problem, k, chunk, scratch.target, scratch)
        stretch.ahead = stretch.near = Ahead(stretch.x, 0)
        stretch.n = chunk_length(problem, chunk)
        stretch.pivot = -1
        if top[0] < 0:
            stretch.pivot = row_find(stretch.x, stretch.n, maximum, stretch.kind)
        if stretch.pivot >= 0:
            top[0] = chunk * CHUNK + stretch.pivot
        total = double_double_merge(
            total, row_absorb(&stretch, reference, &scratch.scale, shift != 0))
    if problem.layout.classes <= LANES:
        sum_ = vector_reduce_few(total.high, low)
    else:
        sum_ = vector_reduce_compensated(total.high, total.low, low)
    if scratch.scale.few_digits:
        low[0] = 0
    return sum_

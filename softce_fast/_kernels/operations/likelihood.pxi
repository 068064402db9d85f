# Losses of given (log-)probabilities: those of class probabilities, which are a sum of two arrays,
# and those of class indices, for which one element of each row is read.
#
#     -sum_c t_c w_c log q_c,    -w_y log q_y,    times the weight of the row
#
# A coefficient of 0 takes its term out, whatever the logarithm is. Weights have any size: products
# are made and added up in double.
#
# Uses pairs.pxi, state.pxi, cross_entropy.pxi (sum_of_parts()), along.pxi (row_vector(),
# row_store()), tasks.pxi (group_results()), numbers.pxd.

# ---- class probabilities -------------------------------------------------------------------------


cdef inline PairSum octet_total(octet total, octet rest) noexcept nogil:
    cdef PairSum result
    result.sum = octet_reduce(total, rest, &result.rest)
    result.left_out = 0
    return result


cdef inline octet reals_from(const real *x, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """Eight numbers from i on, one at least; 0 past the end."""
    cdef real[8] number
    if i + 8 <= n:
        return octet_from_reals(x + i)
    memset(number, 0, sizeof(number))
    memcpy(number, x + i, (n - i) * sizeof(real))
    return octet_from_reals(number)


cdef inline octet doubles_from(const double *x, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    cdef double[8] number
    cdef Py_ssize_t k
    if i + 8 <= n:
        return octet_load(x + i)
    for k in range(8):
        number[k] = x[i + k] if i + k < n else 0
    return octet_load(number)


cdef inline octet likelihood_term(
    octet target, octet class_weight, octet logarithm, bint weighted
) noexcept nogil:
    if weighted:
        target = octet_coefficient(target, class_weight)
    return octet_product_or_zero(target, logarithm)


cdef inline PairSum weighted_sum(
    const PairChunk *chunk, const real *logarithms, const double *class_weight
) noexcept nogil:
    """The sum of target * class_weight * logarithm. class_weight: a constant, if NULL."""
    cdef octet of_class = octet_set(1)
    cdef octet total = octet_set(0)
    cdef octet rest = total
    cdef Py_ssize_t i = 0
    while i < chunk.n:
        if class_weight != NULL:
            of_class = doubles_from(class_weight, i, chunk.n)
        octet_add(&total, &rest, likelihood_term(
            reals_from(chunk.second, i, chunk.n), of_class,
            reals_from(logarithms, i, chunk.n), class_weight != NULL))
        i += 8
    return octet_total(total, rest)


cdef PairSum likelihood_sum(
    const Problem *problem, const PairChunk *chunk, real *memory
) noexcept nogil:
    """The sum of the coefficients of a row times the logarithms; `memory` has room for these."""
    cdef const real *logarithms = chunk.input
    cdef Py_ssize_t i = 0
    if not problem.options.logarithms:
        while i < chunk.n:
            row_store(
                memory + i, plain_logarithm(row_vector(chunk.input, i, chunk.n), vector_set(0.0)),
                chunk.n - i)
            i += LANES
        logarithms = memory
    if problem.options.class_weight == NULL:
        return weighted_sum(chunk, logarithms, NULL)
    return weighted_sum(chunk, logarithms, problem.options.class_weight + chunk.start)


cdef inline octet *likelihood_lanes(TileSums *lanes) noexcept nogil:
    """Eight sums of all rows, or of half of them, then of the others; and what these lost."""
    return <octet *>lanes.lane


cdef void likelihood_tile_sum(const Problem *problem, const PairTile *tile) noexcept nogil:
    """The same of all rows of a tile: class c in the sum that is its lane's along a row."""
    cdef octet *total = likelihood_lanes(tile.sums)
    cdef octet *rest = total + LANES
    cdef octet of_class = octet_set(1)
    cdef bint weighted = problem.options.class_weight != NULL
    cdef real[16] logarithm
    cdef real[16] coefficient
    cdef vector v
    cdef Py_ssize_t c, k, half
    for k in range(LANES if tile.first == 0 else 0):
        total[k] = octet_set(0)
        rest[k] = octet_set(0)
    for c in range(tile.first, tile.stop):
        pair_fetch(tile, c)
        v = tile_vector(&tile.input, c)
        vector_store(coefficient, tile_vector(&tile.second, c))
        if not problem.options.logarithms:
            v = plain_logarithm(v, vector_set(0.0))
        vector_store(logarithm, v)
        if weighted:
            of_class = octet_set(problem.options.class_weight[tile.start + c])
        for half in range(LANES // 8):
            k = 8 * half + c % 8
            octet_add(&total[k], &rest[k], likelihood_term(
                octet_from_reals(coefficient + 8 * half), of_class,
                octet_from_reals(logarithm + 8 * half), weighted))


cdef void likelihood_tile_total(TileSums *lanes, PairSums *sums) noexcept nogil:
    cdef octet *total = likelihood_lanes(lanes)
    cdef Py_ssize_t half
    for half in range(LANES // 8):
        octets_total(total + 8 * half, total + LANES + 8 * half)
        octet_store(sums.sum + 8 * half, total[8 * half])
        octet_store(sums.rest + 8 * half, total[LANES + 8 * half])
    memset(sums.left_out, 0, sizeof(sums.left_out))


cdef inline void octets_total(octet *total, octet *rest) noexcept nogil:
    """octet_total() of each of eight rows, in place of the first sums."""
    cdef Py_ssize_t k
    for k in range(4):
        octet_merge(&total[k], &rest[k], total[k + 4], rest[k + 4])
    for k in range(2):
        octet_merge(&total[k], &rest[k], total[k + 2], rest[k + 2])
    octet_merge(&total[0], &rest[0], total[1], rest[1])


cdef inline double likelihood_loss(
    const Group *group, const Problem *problem, Py_ssize_t k
) noexcept nogil:
    if group.ignored >> k & 1:
        return 0
    return product_apply(
        0 - (group.sums.sum[k] + group.sums.rest[k]),
        group.weights.sample[k] if group.weights.given else 1, result_power(problem))


# ---- class indices -------------------------------------------------------------------------------


cdef size_t label_scratch_size(const Problem *problem) noexcept nogil:
    return round_up(sizeof(Group)) + (problem.plan.rows_per_task + LANES) * sizeof(double)


cdef inline Py_ssize_t label_rows_ahead(const Problem *problem) noexcept nogil:
    """How many rows on are those whose elements are fetched meanwhile; 0 for none."""
    cdef Py_ssize_t step = problem.arrays[<int>INPUT].row_stride
    if step == 0 or problem.arrays[<int>LABELS].row_stride == 0:
        return 0
    return problem.plan.ahead // step


cdef inline void label_elements_fetch(
    const Problem *problem, Py_ssize_t first, Py_ssize_t rows
) noexcept nogil:
    """Have the elements of rows that come later fetched: a cache line each."""
    cdef const Array *labels = &problem.arrays[<int>LABELS]
    cdef const Array *input = &problem.arrays[<int>INPUT]
    cdef const char *row = input.data + first * input.row_stride
    cdef Py_ssize_t step = input.row_stride
    cdef Py_ssize_t class_step = input.class_stride
    cdef uint64_t last = problem.layout.classes - 1
    cdef int64_t[16] label
    cdef Py_ssize_t k
    if 0 < step <= 64:
        # Each line has some of them.
        for k in range(0, rows * step, 64):
            prefetch_near(row + k)
        return
    if labels.kind == KIND_INT64 and labels.row_stride == labels.size and rows == LANES:
        memcpy(label, labels.data + first * labels.row_stride, LANES * sizeof(int64_t))
    else:
        labels_read(
            label, labels.data + first * labels.row_stride, labels.row_stride, rows, labels.kind,
            labels.swapped)
    for k in range(rows):
        # What is no class, an ignored label, counts for one here.
        prefetch_near(row + k * step + <Py_ssize_t>min(<uint64_t>label[k], last) * class_step)


cdef void label_losses_group(Group *group, const Problem *problem) noexcept nogil:
    cdef vector v = label_logits(group, problem, NULL)
    cdef int power = result_power(problem)
    cdef bint moderate
    cdef Py_ssize_t k
    if not problem.options.logarithms:
        v = plain_logarithm(v, vector_set(0.0))
    numbers_store(group.result, vector_subtract(vector_set(0.0), v))
    if not group.weights.given and group.ignored == 0:
        return
    moderate = group.weights.given and power == 0 and parts_are_moderate(
        group.weights.sample, group.weights.label, group.result, group.result)
    for k in range(LANES):
        if group.ignored >> k & 1:
            group.result[k] = 0
        elif moderate:
            group.result[k] *= group.weights.label[k]
            group.result[k] *= group.weights.sample[k]
        elif group.weights.given:
            group.result[k] = sum_of_parts(
                group.weights.sample[k], group.weights.label[k], group.result[k], 1, 0, power)


cdef void label_losses_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    """Compute the losses of the rows of a task."""
    cdef const Problem *problem = <const Problem *>context
    cdef Py_ssize_t rows_per_task = problem.plan.rows_per_task
    cdef Py_ssize_t first = task * rows_per_task
    cdef Py_ssize_t stop = min(first + rows_per_task, problem.layout.rows)
    cdef Py_ssize_t row = first
    cdef Group *group = <Group *>memory
    cdef double *results = <double *>(memory + round_up(sizeof(Group)))
    cdef Py_ssize_t ahead = label_rows_ahead(problem)
    while row < stop:
        if ahead > 0 and row + ahead < problem.layout.rows:
            label_elements_fetch(problem, row + ahead, min(
                <Py_ssize_t>LANES, problem.layout.rows - row - ahead))
        group_open(group, problem, row, min(<Py_ssize_t>LANES, stop - row))
        label_losses_group(group, problem)
        group_results(group, problem, results + (row - first))
        row += group.rows
    if problem.task_sums != NULL:
        problem.task_sums[task] = sum_in_lanes(results, stop - first)

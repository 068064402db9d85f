# Losses of given (log-)probabilities: those of class probabilities, which are a sum of two arrays,
# and those of class indices, for which one element of each row is read.
#
#     -sum_c t_c w_c log q_c,    -w_y log q_y,    times the weight of the row
#
# A coefficient of 0 takes its term out, whatever the logarithm is. Weights have any size: products
# are made and added up in double.
#
# Uses pairs.pxi, state.pxi, along.pxi (row_vector(), row_store()), tasks.pxi (group_results()),
# numbers.pxd.

cdef enum:
    ROWS_AHEAD = 64    # rows whose elements are on their way from memory


# ---- class probabilities -------------------------------------------------------------------------


cdef struct LaneSums:
    # Eight sums in double, and what each lost.
    octet sum
    octet rest


cdef inline void lanes_open(LaneSums *lanes) noexcept nogil:
    lanes.sum = octet_set(0)
    lanes.rest = lanes.sum


cdef inline PairSum lanes_total(const LaneSums *lanes) noexcept nogil:
    cdef PairSum total, lane
    cdef double[8] sum_
    cdef double[8] rest
    cdef Py_ssize_t k
    octet_store(sum_, lanes.sum)
    octet_store(rest, lanes.rest)
    lane.left_out = 0
    total = lane
    total.sum = sum_[0]
    total.rest = rest[0]
    for k in range(1, 8):
        lane.sum = sum_[k]
        lane.rest = rest[k]
        total = pair_sum_merge(total, lane)
    return total


cdef void logarithms_of(const real *x, Py_ssize_t n, real *to) noexcept nogil:
    cdef vector zero = vector_set(0.0)
    cdef Py_ssize_t i
    i = 0
    while i < n:
        row_store(to + i, plain_logarithm(row_vector(x, i, n), zero), n - i)
        i += LANES


cdef inline octet reals_from(const real *x, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """Eight numbers from i on; 0 past the end."""
    cdef real[8] number
    cdef Py_ssize_t k
    if i + 8 <= n:
        return octet_from_reals(x + i)
    for k in range(8):
        number[k] = x[i + k] if i + k < n else <real>0
    return octet_from_reals(number)


cdef inline octet doubles_from(const double *x, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    cdef double[8] number
    cdef Py_ssize_t k
    if i + 8 <= n:
        return octet_load(x + i)
    for k in range(8):
        number[k] = x[i + k] if i + k < n else 0
    return octet_load(number)


cdef inline PairSum weighted_sum(
    const real *target, const real *logarithms, const double *class_weight, double weight,
    Py_ssize_t n,
) noexcept nogil:
    """The sum of target * class_weight * weight * logarithm. class_weight: a constant, if NULL."""
    cdef LaneSums lanes
    cdef octet coefficient
    cdef octet of_row = octet_set(weight)
    cdef Py_ssize_t i = 0
    lanes_open(&lanes)
    while i < n:
        coefficient = of_row
        if class_weight != NULL:
            coefficient = octet_multiply(doubles_from(class_weight, i, n), of_row)
        coefficient = octet_multiply(reals_from(target, i, n), coefficient)
        octet_add(&lanes.sum, &lanes.rest, octet_product_or_zero(
            coefficient, reals_from(logarithms, i, n)))
        i += 8
    return lanes_total(&lanes)


cdef PairSum likelihood_sum(
    const Group *group, const Problem *problem, const PairRows *rows, Py_ssize_t k,
    Py_ssize_t start, Py_ssize_t n, const Scratch *scratch,
) noexcept nogil:
    """The sum of the coefficients of row k, n classes from `start` on, times the logarithms."""
    cdef const real *logarithms = rows.input[k]
    cdef double weight = group.weights.sample[k] if group.weights.given else 1
    if not problem.options.logarithms:
        logarithms_of(logarithms, n, scratch.kept)
        logarithms = scratch.kept
    if problem.options.class_weight == NULL:
        return weighted_sum(rows.second[k], logarithms, NULL, weight, n)
    return weighted_sum(
        rows.second[k], logarithms, problem.options.class_weight + start, weight, n)


cdef inline double likelihood_loss(
    const Group *group, const PairSum *total, Py_ssize_t k
) noexcept nogil:
    if group.ignored >> k & 1:
        return 0
    return 0 - (total.sum + total.rest)


# ---- class indices -------------------------------------------------------------------------------


cdef size_t label_scratch_size(const Problem *problem) noexcept nogil:
    return round_up(sizeof(Group)) + (problem.plan.rows_per_task + LANES) * sizeof(double)


cdef inline void label_elements_fetch(
    const Problem *problem, Py_ssize_t first, Py_ssize_t rows
) noexcept nogil:
    """Have the elements of rows that come later fetched: a cache line each."""
    cdef const Array *labels = &problem.arrays[<int>LABELS]
    cdef const Array *input = &problem.arrays[<int>INPUT]
    cdef const char *row = input.data + first * input.row_stride
    cdef int64_t[16] label
    cdef Py_ssize_t k
    if labels.kind == KIND_INT64 and labels.row_stride == labels.size and rows == LANES:
        memcpy(label, labels.data + first * labels.row_stride, LANES * sizeof(int64_t))
    else:
        labels_read(
            label, labels.data + first * labels.row_stride, labels.row_stride, rows, labels.kind,
            labels.swapped)
    for k in range(rows):
        prefetch_near(row + class_offset(&problem.layout, input, max(
            <int64_t>0, min(label[k], <int64_t>(problem.layout.classes - 1)))))
        row += input.row_stride


cdef void label_losses_group(Group *group, const Problem *problem) noexcept nogil:
    cdef vector v = label_logits(group, problem)
    cdef double weight
    cdef Py_ssize_t k
    if not problem.options.logarithms:
        v = plain_logarithm(v, vector_set(0.0))
    numbers_store(group.result, vector_subtract(vector_set(0.0), v))
    if not group.weights.given and group.ignored == 0:
        return
    for k in range(LANES):
        weight = group.weights.label[k] * group.weights.sample[k] if group.weights.given else 1
        if group.ignored >> k & 1:
            group.result[k] = 0
        else:
            group.result[k] *= weight


cdef void label_losses_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    """Compute the losses of the rows of a task."""
    cdef const Problem *problem = <const Problem *>context
    cdef Py_ssize_t rows_per_task = problem.plan.rows_per_task
    cdef Py_ssize_t first = task * rows_per_task
    cdef Py_ssize_t stop = min(first + rows_per_task, problem.layout.rows)
    cdef Py_ssize_t row = first
    cdef Group *group = <Group *>memory
    cdef double *results = <double *>(memory + round_up(sizeof(Group)))
    cdef bint even = (
        problem.arrays[<int>LABELS].row_stride != 0 and problem.arrays[<int>INPUT].row_stride != 0)
    while row < stop:
        if even and row + ROWS_AHEAD < problem.layout.rows:
            label_elements_fetch(problem, row + ROWS_AHEAD, min(
                <Py_ssize_t>LANES, problem.layout.rows - row - ROWS_AHEAD))
        group_open(group, problem, row, min(<Py_ssize_t>LANES, stop - row))
        label_losses_group(group, problem)
        group_results(group, problem, results + (row - first))
        row += group.rows
    if problem.task_sums != NULL:
        problem.task_sums[task] = sum_of(results, stop - first)

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
    # Eight sums, and what each lost.
    double[8] sum
    double[8] rest


cdef inline void lanes_open(LaneSums *lanes) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(8):
        lanes.sum[k] = 0
        lanes.rest[k] = 0


cdef inline void lanes_add(LaneSums *lanes, const double *x) noexcept nogil:
    cdef Py_ssize_t k
    cdef double total, kept
    for k in range(8):
        total = lanes.sum[k] + x[k]
        kept = total - lanes.sum[k]
        lanes.rest[k] += (lanes.sum[k] - (total - kept)) + (x[k] - kept)
        lanes.sum[k] = total


cdef inline PairSum lanes_total(const LaneSums *lanes) noexcept nogil:
    cdef PairSum total, lane
    cdef Py_ssize_t k
    total.sum = 0
    total.rest = 0
    total.left_out = 0
    lane.left_out = 0
    for k in range(8):
        lane.sum = lanes.sum[k]
        lane.rest = lanes.rest[k]
        total = pair_sum_merge(total, lane)
    return total


cdef inline double product_of(double coefficient, double logarithm) noexcept nogil:
    return 0 if coefficient == 0 else coefficient * logarithm


cdef void logarithms_of(const real *x, Py_ssize_t n, real *to) noexcept nogil:
    cdef vector zero = vector_set(0.0)
    cdef Py_ssize_t i
    i = 0
    while i < n:
        row_store(to + i, plain_logarithm(row_vector(x, i, n), zero), n - i)
        i += LANES


cdef inline PairSum weighted_sum(
    const real *target, const real *logarithms, const double *class_weight, double weight,
    Py_ssize_t n,
) noexcept nogil:
    """The sum of target * class_weight * weight * logarithm. class_weight: a constant, if NULL."""
    cdef LaneSums lanes
    cdef double[8] term
    cdef Py_ssize_t i = 0, k
    lanes_open(&lanes)
    while i + 8 <= n:
        for k in range(8):
            term[k] = product_of(
                target[i + k] * (
                    weight if class_weight == NULL else class_weight[i + k] * weight),
                logarithms[i + k])
        lanes_add(&lanes, term)
        i += 8
    if i < n:
        for k in range(8):
            term[k] = 0
        for k in range(n - i):
            term[k] = product_of(
                target[i + k] * (
                    weight if class_weight == NULL else class_weight[i + k] * weight),
                logarithms[i + k])
        lanes_add(&lanes, term)
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

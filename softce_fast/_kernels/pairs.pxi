# Operations on two arrays of one shape: the gradients through the two softmaxes, the losses of
# given (log-)probabilities, and the binary losses. And on one, given as both: the diagonal of the
# Hessian.
#
# Rows go in groups of up to LANES rows, chunk by chunk of PAIR_CHUNK classes: a sum over each
# chunk, the sums of a row added up in order, then the output, if there is one. Few long rows are
# shared out by chunks; the sums are the same ones. The binary losses have no rows: a task is a
# stretch of elements.

cdef enum PairOperation:
    # What the first and the second array hold.
    SOFTMAX_BACKWARD         # gradient, probabilities
    LOG_SOFTMAX_BACKWARD     # gradient, log-probabilities
    PROBABILITY_LOSS         # target, probabilities
    LOG_PROBABILITY_LOSS     # target, log-probabilities
    CURVATURE                # probabilities, and the same


cdef enum:
    # Classes of a chunk: those of a group, of both arrays, fit the second-level cache.
    PAIR_CHUNK = 1024
    # Labels of a task that takes their losses.
    LABELS_PER_TASK = 4096


cdef struct PairProblem:
    PairOperation operation
    Py_ssize_t rows
    Py_ssize_t classes
    Py_ssize_t chunks
    Array first
    Array second
    Array output                # of the gradients
    const real *class_weight    # of the losses
    const real *factors         # of each row's curvature,
    real floor                  # and its least value where that is not 0
    double *sums                # of each chunk of each row


# ---- exp and log of any number -----------------------------------------------------------------


cdef inline vector plain_exponential(vector x, const Scale *scale) noexcept nogil:
    """exp(x): infinity where that is too large, 0 where it is below the smallest normal number."""
    cdef vector zero = vector_set(0.0)
    cdef vector limit = vector_set(100.0 if sizeof(real) == 4 else 720.0)
    cdef mask large = vector_greater(x, zero)
    cdef Reference reference
    reference.shift = zero
    reference.exponent = vector_select(large, vector_set(64.0), zero)
    return vector_multiply(
        exponential(vector_select(vector_greater(x, limit), limit, x), reference, scale),
        vector_select(large, vector_set(TWO_TO_64), vector_set(1.0)))


cdef inline vector exponential_minus_one(vector x, const Scale *scale) noexcept nogil:
    """exp(x) - 1 near 0."""
    cdef Reference reference
    cdef Split s
    reference.shift = vector_set(0.0)
    reference.exponent = reference.shift
    s = exponential_split(x, reference, scale)
    return vector_fma(
        vector_multiply(s.power, s.r), s.p, vector_subtract(s.power, vector_set(1.0)))


cdef inline vector plain_logarithm(vector x, vector correction) noexcept nogil:
    """log(x + correction) for |correction| far below x: of any x, also subnormal; NaN below 0."""
    cdef vector zero = vector_set(0.0)
    cdef mask small = vector_greater(vector_set(SMALLEST_NORMAL), x)
    cdef vector scaled = vector_select(small, vector_multiply(x, vector_set(TWO_TO_64)), x)
    cdef vector result = logarithm(
        scaled, correction, vector_select(small, vector_set(-64.0), zero))
    cdef vector infinity = vector_set(-NEGATIVE_INFINITY)
    result = vector_select(vector_equal(x, infinity), x, result)
    return vector_select(vector_greater(zero, x), vector_subtract(infinity, infinity), result)


cdef inline vector logarithm_of_one_plus(vector x) noexcept nogil:
    """log(1 + x), for x of any size above -1."""
    cdef vector one = vector_set(1.0)
    cdef vector zero = vector_set(0.0)
    cdef vector sum_ = vector_add(one, x)
    cdef vector rest = vector_subtract(x, vector_subtract(sum_, one))
    return plain_logarithm(sum_, vector_select(vector_equal(rest, rest), rest, zero))


# ---- rows ----------------------------------------------------------------------------------------


cdef inline void rows_together(
    const Array *array, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t start, Py_ssize_t n,
    storage *staged, const storage **x,
) noexcept nogil:
    """Point x at n classes of each row: where they are if they are neighbours, else at copies."""
    cdef Offsets offsets
    cdef Py_ssize_t c, k
    cdef const char *at = array.data + start * array.class_stride
    offsets_fill(&offsets, array, first, rows)
    for k in range(rows):
        x[k] = <const storage *>(at + offset_of(&offsets, k))
    if array.class_stride == sizeof(storage):
        return
    for c in range(n):
        for k in range(rows):
            memcpy(staged + k * PAIR_CHUNK + c,
                   at + offset_of(&offsets, k) + c * array.class_stride,
                   sizeof(storage))
    for k in range(rows):
        x[k] = staged + k * PAIR_CHUNK


cdef inline double lanes_sum(vector v) noexcept nogil:
    """The sum of the lanes, which may be infinite."""
    cdef real[16] lane
    cdef double total = 0
    cdef Py_ssize_t k
    vector_put(lane, v)
    for k in range(LANES):
        total += lane[k]
    return total


cdef inline double pair_sum(
    const PairProblem *problem, PairOperation operation, const storage *first,
    const storage *second, Py_ssize_t start, Py_ssize_t n,
) noexcept nogil:
    """The sum over n classes of a row that the operation, a constant here, asks for."""
    cdef vector zero = vector_set(0.0)
    cdef Pair total = pair_from(zero)
    cdef Coefficients coefficients
    cdef Py_ssize_t i = 0
    cdef double result
    cdef real rest
    coefficients.weight = NULL
    if problem.class_weight != NULL:
        coefficients.weight = problem.class_weight + start
    coefficients.probabilities = first
    coefficients.share = vector_set(1.0)
    coefficients.even = zero
    while i + LANES <= n:
        total = pair_merge(total, pair_term(
            operation, vector_load(first + i), vector_load(second + i), &coefficients, i, n))
        i += LANES
    if i < n:
        total = pair_merge(total, pair_term(
            operation, zero_past_end(row_vector(first, i, n), i, n),
            zero_past_end(row_vector(second, i, n), i, n), &coefficients, i, n))
    result = vector_reduce_compensated(total.high, total.low, &rest)
    result += rest
    if result != result:
        # What an infinite sum lost is no number.
        result = lanes_sum(pair_finite(total))
    return result


cdef inline Pair pair_term(
    PairOperation operation, vector a, vector b, const Coefficients *coefficients, Py_ssize_t i,
    Py_ssize_t n,
) noexcept nogil:
    """What classes i and on, `a` and `b` of the two arrays, add to the sum of their row."""
    cdef Pair term
    if operation == SOFTMAX_BACKWARD:
        term.high = vector_multiply(a, b)
        term.low = multiply_error(a, b, term.high)
        return term
    if operation == LOG_SOFTMAX_BACKWARD:
        return pair_from(a)
    if operation == CURVATURE:
        # All but the one that can exceed 1/2: what that one misses of 1.
        return pair_from(vector_select(
            vector_greater(a, vector_set(0.5)), vector_set(0.0), a))
    if coefficients.weight != NULL:
        a = coefficient_vector(coefficients, i, n)
    if operation == PROBABILITY_LOSS:
        b = plain_logarithm(b, vector_set(0.0))
    return pair_from(product_or_zero(a, b))


cdef inline void pair_write(
    PairOperation operation, const storage *first, const storage *second, double total,
    Py_ssize_t n, const Scale *scale, storage *out,
) noexcept nogil:
    """Write n classes of a gradient."""
    cdef double rest = total - <real>total
    cdef Pair sum_
    cdef Py_ssize_t i = 0
    sum_.high = vector_set(<real>total)
    sum_.low = vector_set(<real>rest if rest == rest else <real>0)
    while i + LANES <= n:
        vector_store(out + i, pair_gradient(
            operation, vector_load(first + i), vector_load(second + i), sum_, scale))
        i += LANES
    if i < n:
        vector_store_first(out + i, pair_gradient(
            operation, row_vector(first, i, n), row_vector(second, i, n), sum_, scale), n - i)


cdef inline vector pair_gradient(
    PairOperation operation, vector a, vector b, Pair total, const Scale *scale
) noexcept nogil:
    cdef vector zero = vector_set(0.0)
    cdef vector plain, exact
    if operation == SOFTMAX_BACKWARD:
        return vector_multiply(b, vector_subtract(vector_subtract(a, total.high), total.low))
    # Above 1/2, of a probability S: the sum of the others, and the total by 1 - S. What is no
    # logarithm of a probability, above 0, and an infinite total go the plain way.
    plain = vector_fnma(plain_exponential(b, scale), total.high, a)
    exact = vector_fnma(
        total.high, exponential_minus_one(b, scale),
        vector_subtract(vector_subtract(a, total.high), total.low))
    exact = vector_select(
        vector_equal(vector_subtract(total.high, total.high), zero), exact, plain)
    return vector_select(
        vector_greater(b, vector_set(-LN2)),
        vector_select(vector_greater(b, zero), plain, exact), plain)


cdef inline vector curvature(vector p, vector others, vector factor, vector floor) noexcept nogil:
    """p * (1 - p) * factor, not below the floor."""
    return vector_maximum(floor, product_or_zero(factor, vector_multiply(p, vector_select(
        vector_greater(p, vector_set(0.5)), others, vector_subtract(vector_set(1.0), p)))))


cdef inline void curvature_write(
    const storage *p, double others, Py_ssize_t n, real factor, real floor, storage *out
) noexcept nogil:
    """Write the curvature of n classes of a row."""
    cdef vector missing = vector_set(<real>others)
    cdef vector factors = vector_set(factor)
    cdef vector floors = vector_set(floor if factor != 0 else NEGATIVE_INFINITY)
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        vector_store(out + i, curvature(vector_load(p + i), missing, factors, floors))
        i += LANES
    if i < n:
        vector_store_first(
            out + i, curvature(row_vector(p, i, n), missing, factors, floors), n - i)


cdef void pair_sums_of_chunk(
    const PairProblem *problem, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t chunk,
    storage *staged,
) noexcept nogil:
    """Sum one chunk of a group's rows."""
    cdef Py_ssize_t start = chunk * PAIR_CHUNK
    cdef Py_ssize_t n = min(<Py_ssize_t>PAIR_CHUNK, problem.classes - start)
    cdef Py_ssize_t k
    cdef const storage *a[16]
    cdef const storage *b[16]
    cdef environment before = 0
    # A logarithm is to see subnormal probabilities; elsewhere they would only be slow.
    cdef bint flush = problem.output.data != NULL
    if flush:
        before = environment_enter()
    rows_together(&problem.first, first, rows, start, n, staged, a)
    rows_together(&problem.second, first, rows, start, n, staged + LANES * PAIR_CHUNK, b)
    cdef double *sums = problem.sums + first * problem.chunks + chunk
    for k in range(rows):
        if problem.operation == SOFTMAX_BACKWARD:
            sums[k * problem.chunks] = pair_sum(problem, SOFTMAX_BACKWARD, a[k], b[k], start, n)
        elif problem.operation == LOG_SOFTMAX_BACKWARD:
            sums[k * problem.chunks] = pair_sum(
                problem, LOG_SOFTMAX_BACKWARD, a[k], b[k], start, n)
        elif problem.operation == CURVATURE:
            sums[k * problem.chunks] = pair_sum(problem, CURVATURE, a[k], b[k], start, n)
        elif problem.operation == PROBABILITY_LOSS:
            sums[k * problem.chunks] = pair_sum(problem, PROBABILITY_LOSS, a[k], b[k], start, n)
        else:
            sums[k * problem.chunks] = pair_sum(
                problem, LOG_PROBABILITY_LOSS, a[k], b[k], start, n)
    if flush:
        environment_leave(before)


cdef void pair_write_chunk(
    const PairProblem *problem, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t chunk,
    storage *staged,
) noexcept nogil:
    """Write one chunk of a group's rows; the first of a row's sums is that of the whole row."""
    cdef Py_ssize_t start = chunk * PAIR_CHUNK
    cdef Py_ssize_t n = min(<Py_ssize_t>PAIR_CHUNK, problem.classes - start)
    cdef Py_ssize_t c, k
    cdef Offsets offsets
    cdef Scale scale = scale_for(1.0)
    cdef char *out = problem.output.data + start * problem.output.class_stride
    cdef const storage *a[16]
    cdef const storage *b[16]
    cdef storage *row
    cdef double total
    cdef environment before = environment_enter()
    scale = scale_with(&scale, False)
    rows_together(&problem.first, first, rows, start, n, staged, a)
    rows_together(&problem.second, first, rows, start, n, staged + LANES * PAIR_CHUNK, b)
    offsets_fill(&offsets, &problem.output, first, rows)
    staged += 2 * LANES * PAIR_CHUNK
    for k in range(rows):
        row = staged + k * PAIR_CHUNK
        if problem.output.class_stride == sizeof(storage):
            row = <storage *>(out + offset_of(&offsets, k))
        total = problem.sums[(first + k) * problem.chunks]
        if problem.operation == SOFTMAX_BACKWARD:
            pair_write(SOFTMAX_BACKWARD, a[k], b[k], total, n, &scale, row)
        elif problem.operation == CURVATURE:
            curvature_write(a[k], total, n, problem.factors[first + k], problem.floor, row)
        else:
            pair_write(LOG_SOFTMAX_BACKWARD, a[k], b[k], total, n, &scale, row)
    if problem.output.class_stride != sizeof(storage):
        for c in range(n):
            for k in range(rows):
                memcpy(out + offset_of(&offsets, k) + c * problem.output.class_stride,
                       staged + k * PAIR_CHUNK + c, sizeof(storage))
    environment_leave(before)


cdef inline void pair_merge_sums(
    const PairProblem *problem, Py_ssize_t first, Py_ssize_t rows
) noexcept nogil:
    """Add the sums of each row's chunks up, into the first of them."""
    cdef Py_ssize_t row, chunk
    for row in range(first, first + rows):
        for chunk in range(1, problem.chunks):
            problem.sums[row * problem.chunks] += problem.sums[row * problem.chunks + chunk]


cdef void pair_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    """Work through the rows of a task, all chunks of a group before the next group."""
    cdef const PairProblem *problem = <const PairProblem *>context
    cdef storage *staged = <storage *>memory
    cdef Py_ssize_t rows_per_task = pair_rows_per_task(problem)
    cdef Py_ssize_t first = task * rows_per_task
    cdef Py_ssize_t stop = min(first + rows_per_task, problem.rows)
    cdef Py_ssize_t chunk, rows
    while first < stop:
        rows = min(<Py_ssize_t>LANES, stop - first)
        for chunk in range(problem.chunks):
            pair_sums_of_chunk(problem, first, rows, chunk, staged)
        pair_merge_sums(problem, first, rows)
        if problem.output.data != NULL:
            for chunk in range(problem.chunks):
                pair_write_chunk(problem, first, rows, chunk, staged)
        first += rows


cdef inline Py_ssize_t pair_rows_per_task(const PairProblem *problem) noexcept nogil:
    return max(<Py_ssize_t>1, task_work(problem.rows * problem.classes) // problem.classes)


# Few long rows: a task is one chunk of one row.


cdef void pair_sum_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const PairProblem *problem = <const PairProblem *>context
    pair_sums_of_chunk(
        problem, task // problem.chunks, 1, task % problem.chunks, <storage *>memory)


cdef void pair_merge_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const PairProblem *problem = <const PairProblem *>context
    pair_merge_sums(problem, 0, problem.rows)


cdef void pair_write_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const PairProblem *problem = <const PairProblem *>context
    pair_write_chunk(
        problem, task // problem.chunks, 1, task % problem.chunks, <storage *>memory)


cdef int run_pairs(PairProblem *problem, int n_threads) except -1:
    """Run a problem: fill problem.sums, and the output if there is one."""
    cdef Py_ssize_t per_thread = 3 * LANES * PAIR_CHUNK * <Py_ssize_t>sizeof(storage)
    cdef char *memory
    n_threads = threads_for_call(n_threads, problem.rows * problem.classes)
    memory = aligned_memory(n_threads * per_thread)
    if parts_pay(problem.rows, problem.chunks, n_threads):
        share_out_parts(
            pair_sum_task, pair_merge_task, pair_write_task, problem.output.data != NULL,
            problem.rows * problem.chunks, problem, n_threads, memory, per_thread)
    else:
        share_out_tasks(
            pair_task, task_count(problem.rows, pair_rows_per_task(problem)), problem, n_threads,
            memory, per_thread, False)
    memory_give(memory)
    return 0


cdef PairProblem pair_problem(
    PairOperation operation, const storage[:, :, :] first, const storage[:, :, :] second
) except *:
    """Describe a problem, and take the memory for its sums."""
    cdef PairProblem problem
    memset(&problem, 0, sizeof(problem))
    problem.operation = operation
    problem.rows = first.shape[0] * first.shape[2]
    problem.classes = first.shape[1]
    problem.chunks = (problem.classes + PAIR_CHUNK - 1) // PAIR_CHUNK
    problem.first = array_from(<const char *>&first[0, 0, 0], first.shape, first.strides)
    problem.second = array_from(<const char *>&second[0, 0, 0], second.shape, second.strides)
    problem.sums = <double *>aligned_memory(problem.rows * problem.chunks * sizeof(double))
    return problem


def backward(
    const storage[:, :, :] gradient, const storage[:, :, :] output, storage[:, :, :] result,
    bint log, int n_threads,
):
    """Write the gradient through softmax or log_softmax along axis 1 to `result`."""
    cdef PairProblem problem = pair_problem(
        LOG_SOFTMAX_BACKWARD if log else SOFTMAX_BACKWARD, gradient, output)
    problem.output = array_from(<const char *>&result[0, 0, 0], result.shape, result.strides)
    try:
        run_pairs(&problem, n_threads)
    finally:
        memory_give(problem.sums)


def curvatures(
    const storage[:, :, :] probabilities, storage[:, :, :] result, const real[::1] factors,
    double floor, int n_threads,
):
    """Write p * (1 - p) times the row's factor, at least `floor` where that is not 0, to `result`.

    `result` may be `probabilities`.
    """
    cdef PairProblem problem = pair_problem(CURVATURE, probabilities, probabilities)
    problem.output = array_from(<const char *>&result[0, 0, 0], result.shape, result.strides)
    problem.factors = &factors[0]
    problem.floor = <real>floor
    try:
        run_pairs(&problem, n_threads)
    finally:
        memory_give(problem.sums)


def probability_losses(
    const storage[:, :, :] values, const storage[:, :, :] target, const real[::1] class_weight,
    real[::1] losses, bint values_are_logarithms, int n_threads,
):
    """Write the losses of class probabilities, one for each row, to `losses`."""
    cdef PairProblem problem = pair_problem(
        LOG_PROBABILITY_LOSS if values_are_logarithms else PROBABILITY_LOSS, target, values)
    cdef Py_ssize_t row
    if class_weight is not None:
        problem.class_weight = &class_weight[0]
    try:
        run_pairs(&problem, n_threads)
        for row in range(problem.rows):
            losses[row] = <real>(0 - problem.sums[row * problem.chunks])
    finally:
        memory_give(problem.sums)


def label_losses(
    const storage[:, :, :] values, const int64_t[:, :] labels, const real[::1] class_weight,
    real[::1] losses, int64_t ignore_index, bint values_are_logarithms, int n_threads,
):
    """Write the losses of class indices, one for each row, to `losses`; 0 for ignored rows."""
    cdef LabelLosses problem
    cdef Py_ssize_t n = losses.shape[0]
    problem.rows = n
    problem.classes = values.shape[1]
    problem.values = array_from(<const char *>&values[0, 0, 0], values.shape, values.strides)
    problem.target = rows_from(<const char *>&labels[0, 0], labels.shape, labels.strides)
    problem.class_weight = &class_weight[0] if class_weight is not None else NULL
    problem.ignore_index = ignore_index
    problem.values_are_logarithms = values_are_logarithms
    problem.losses = &losses[0]
    share_out_tasks(
        label_losses_task, task_count(n, LABELS_PER_TASK), &problem,
        threads_for_call(n_threads, n), NULL, 0, False)


cdef struct LabelLosses:
    Py_ssize_t rows
    Py_ssize_t classes
    Array values
    Array target
    const real *class_weight    # NULL for none
    int64_t ignore_index
    bint values_are_logarithms
    real *losses


cdef void label_losses_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const LabelLosses *problem = <const LabelLosses *>context
    cdef Py_ssize_t first = task * LABELS_PER_TASK
    cdef Py_ssize_t stop = min(first + LABELS_PER_TASK, problem.rows)
    while first < stop:
        label_losses_group(problem, first, min(<Py_ssize_t>LANES, stop - first))
        first += LANES


cdef void label_losses_group(
    const LabelLosses *problem, Py_ssize_t first, Py_ssize_t rows
) noexcept nogil:
    """Compute the losses of up to LANES rows."""
    cdef real[16] picked
    cdef real[16] weight
    cdef vector v
    cdef int64_t label
    cdef Py_ssize_t k
    for k in range(LANES):
        picked[k] = 0
        weight[k] = 0
    for k in range(rows):
        memcpy(&label, problem.target.data + row_offset(&problem.target, first + k), sizeof(label))
        if label != problem.ignore_index:
            # One that another thread has changed since it was checked must not lead outside.
            label = min(max(<int64_t>0, label), <int64_t>(problem.classes - 1))
            picked[k] = storage_read(
                problem.values.data + row_offset(&problem.values, first + k)
                + label * problem.values.class_stride)
            weight[k] = problem.class_weight[label] if problem.class_weight != NULL else <real>1
    v = vector_get(picked)
    if not problem.values_are_logarithms:
        v = plain_logarithm(v, vector_set(0.0))
    vector_put(picked, product_or_zero(
        vector_get(weight), vector_subtract(vector_set(0.0), v)))
    memcpy(problem.losses + first, picked, rows * sizeof(real))


# ---- binary losses -----------------------------------------------------------------------------


cdef struct BinaryProblem:
    # Pointers are NULL for none.
    Py_ssize_t size
    const storage *values
    const storage *target
    const storage *weight
    const storage *pos_weight
    storage *losses
    storage *gradient
    bint from_logits
    real gradient_scale
    Py_ssize_t per_task    # elements of a task
    double *sums           # of the losses, for each task


cdef inline vector binary_vector(
    const BinaryProblem *problem, Py_ssize_t i, const Scale *scale, vector *gradient
) noexcept nogil:
    """The losses from element i on, and their gradients."""
    cdef Py_ssize_t n = problem.size
    cdef vector zero = vector_set(0.0)
    cdef vector one = vector_set(1.0)
    cdef vector x = zero_past_end(row_vector(problem.values, i, n), i, n)
    cdef vector yes = zero_past_end(row_vector(problem.target, i, n), i, n)
    cdef vector no = vector_subtract(one, yes)
    cdef vector minus = vector_subtract(zero, x)
    cdef vector small, softplus, share, rest, loss
    cdef mask positive = vector_greater(x, zero)
    if not problem.from_logits:
        return vector_subtract(zero, vector_add(
            product_or_zero(yes, plain_logarithm(x, zero)),
            product_or_zero(no, logarithm_of_one_plus(minus))))
    if problem.pos_weight != NULL:
        yes = vector_multiply(yes, row_vector(problem.pos_weight, i, n))
    small = plain_exponential(vector_subtract(zero, vector_absolute(x)), scale)
    softplus = logarithm_of_one_plus(small)
    loss = vector_add(
        product_or_zero(yes, vector_add(softplus, vector_select(positive, zero, minus))),
        product_or_zero(no, vector_add(softplus, vector_select(positive, x, zero))))
    # The sigmoid of x and of -x: neither is 1 minus the other, which would lose digits.
    share = vector_divide(one, vector_add(one, small))
    rest = vector_multiply(small, share)
    gradient[0] = vector_subtract(
        vector_multiply(no, vector_select(positive, share, rest)),
        vector_multiply(yes, vector_select(positive, rest, share)))
    return loss


cdef void binary_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    """Work through the elements of a task."""
    cdef const BinaryProblem *problem = <const BinaryProblem *>context
    cdef Scale scale = scale_for(1.0)
    cdef vector loss, gradient, weight
    cdef Pair total = pair_from(vector_set(0.0))
    cdef Py_ssize_t i = task * problem.per_task
    cdef Py_ssize_t stop = min(i + problem.per_task, problem.size)
    scale = scale_with(&scale, False)
    gradient = total.high
    while i < stop:
        loss = binary_vector(problem, i, &scale, &gradient)
        if problem.weight != NULL:
            weight = row_vector(problem.weight, i, problem.size)
            loss = product_or_zero(weight, loss)
            gradient = product_or_zero(weight, gradient)
        gradient = vector_multiply(gradient, vector_set(problem.gradient_scale))
        total = pair_add(total, zero_past_end(loss, i, problem.size))
        if i + LANES <= problem.size:
            if problem.losses != NULL:
                vector_store(problem.losses + i, loss)
            if problem.gradient != NULL:
                vector_store(problem.gradient + i, gradient)
        else:
            if problem.losses != NULL:
                vector_store_first(problem.losses + i, loss, problem.size - i)
            if problem.gradient != NULL:
                vector_store_first(problem.gradient + i, gradient, problem.size - i)
        i += LANES
    problem.sums[task] = lanes_sum(pair_finite(total))


def binary(
    const storage[::1] values, const storage[::1] target, const storage[::1] weight,
    const storage[::1] pos_weight, storage[::1] losses, storage[::1] gradient, bint from_logits,
    double gradient_scale, int n_threads,
):
    """Return the sum of the binary losses, and write them and their gradients where asked to."""
    cdef BinaryProblem problem
    cdef Py_ssize_t task, tasks
    cdef double total = 0
    problem.size = values.shape[0]
    problem.values = &values[0]
    problem.target = &target[0]
    problem.weight = &weight[0] if weight is not None else NULL
    problem.pos_weight = &pos_weight[0] if pos_weight is not None else NULL
    problem.losses = &losses[0] if losses is not None else NULL
    problem.gradient = &gradient[0] if gradient is not None else NULL
    problem.from_logits = from_logits
    problem.gradient_scale = <real>gradient_scale
    problem.per_task = task_work(problem.size)
    tasks = task_count(problem.size, problem.per_task)
    problem.sums = <double *>aligned_memory(tasks * sizeof(double))
    share_out_tasks(
        binary_task, tasks, &problem, threads_for_call(n_threads, problem.size), NULL, 0, False)
    for task in range(tasks):
        total += problem.sums[task]
    memory_give(problem.sums)
    return total

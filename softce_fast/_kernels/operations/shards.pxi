# Classes shared out over arrays: what is found out about the chunks of a row in one read, and the
# state of a row that is merged from the chunks of all.
#
# Chunks are merged as they are in an undivided call: where they begin at the same classes, the bits
# are the same. A label that is not among the classes at hand is counted as the one behind the last.
#
# Uses state.pxi, along.pxi.

cdef inline char *shard_place(
    const char *numbers, const Group *group, const Problem *problem, Py_ssize_t k, Py_ssize_t chunk
) noexcept nogil:
    """Where the numbers of a chunk of row k are."""
    return <char *>numbers + (
        (group.first + k) * problem.shard.row_stride
        + chunk * <Py_ssize_t>(SHARD_NUMBERS * sizeof(double)))


# ---- what is found out ---------------------------------------------------------------------------


cdef inline bint sums_gaps(const Problem *problem) noexcept nogil:
    """Whether all coefficients are 1, so that they need no read of their own."""
    return (
        problem.shard.exported != NULL and is_dense(problem.operation)
        and not coefficients_by_row(problem) and problem.options.coefficients == NULL)


cdef inline void shard_stretch(
    Stretch *stretch, const Group *group, const Problem *problem, Py_ssize_t chunk, Py_ssize_t k,
    real maximum, DenseSums *dense,
) noexcept nogil:
    """Have all kinds of sums taken in one read."""
    stretch.further = dense
    stretch.row = k
    stretch.label = label_place(group, problem, chunk, k)
    stretch.origin = spread_origin(vector_set(maximum))
    stretch.gaps = sums_gaps(problem)


cdef inline void shard_export(
    const Group *group, const Problem *problem, Py_ssize_t chunk, const RowState *state,
    const DenseSums *dense,
) noexcept nogil:
    if problem.shard.exported != NULL:
        shard_write(group, problem, chunk, state, dense)


cdef void shard_write(
    const Group *group, const Problem *problem, Py_ssize_t chunk, const RowState *state,
    const DenseSums *dense,
) noexcept nogil:
    """Write what is known of a chunk of the rows of a group."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef bint few_digits = problem.plan.few_digits
    cdef Py_ssize_t k, i, count = SHARD_WEIGHTS
    cdef double[SHARD_NUMBERS][16] numbers
    cdef double[SHARD_NUMBERS] row
    numbers_store(numbers[<int>SHARD_MAXIMUM], state.maximum)
    numbers_store(numbers[<int>SHARD_REFERENCE], state.reference.shift)
    numbers_store(numbers[<int>SHARD_REFERENCE + 1], state.reference.exponent)
    sum_store(
        &numbers[<int>SHARD_ALL], rows_reduce(&dense.all, group.rows, n, few_digits))
    sum_store(&numbers[<int>SHARD_REST], state.others)
    sum_store(
        &numbers[<int>SHARD_OTHERS], rows_reduce(&dense.unlabelled, group.rows, n, few_digits))
    if is_dense(problem.operation):
        count = SHARD_NUMBERS
        sum_store(&numbers[<int>SHARD_WEIGHTS], state.other_coefficients)
        numbers_store(numbers[<int>SHARD_WEIGHTS + 2], state.own_coefficient)
        numbers_store(numbers[<int>SHARD_SPREAD], state.spread)
    for k in range(group.rows):
        for i in range(count):
            row[i] = numbers[i][k]
            if i >= <int>SHARD_WEIGHTS:
                row[i] = power_apply(row[i], problem.options.coefficient_power)
        memcpy(
            shard_place(problem.shard.exported, group, problem, k, chunk), row,
            count * sizeof(double))


cdef inline void sum_store(double[16] *to, DoubleDouble sum_) noexcept nogil:
    numbers_store(to[0], sum_.high)
    numbers_store(to[1], sum_.low)


# ---- what is known of all ------------------------------------------------------------------------


cdef void chunk_absorb(
    Group *group, const Problem *problem, Py_ssize_t chunk, RowState *state, Scratch *scratch
) noexcept nogil:
    """Fill the state of one chunk of the group; where the whole row is known, all but the sums."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef int kind = input_kind(problem)
    cdef const char *x
    cdef real[16] maximum
    cdef real[16] position
    cdef Py_ssize_t k
    if problem.shard.imported == NULL:
        along_absorb(group, problem, chunk, state, scratch)
        return
    for k in range(LANES):
        maximum[k] = 0
        position[k] = -1
    for k in range(group.rows):
        x = row_input(group, problem, k, chunk, scratch.staged, scratch)
        maximum[k] = row_maximum(x, n, kind)
        if notes_maximum(problem.operation):
            position[k] = <real>row_find(x, n, maximum[k], kind)
    state.maximum = vector_load(maximum)
    state.position = vector_load(position)
    state.reference = reference_for(state.maximum, &scratch.scale)


cdef inline Py_ssize_t sum_wanted(Operation operation) noexcept nogil:
    """Which of the sums of exponentials an operation is made of."""
    if leaves_out_maximum(operation):
        return SHARD_REST
    return SHARD_OTHERS if leaves_out_label(operation) else SHARD_ALL


cdef inline vector shard_read(
    const Group *group, const Problem *problem, Py_ssize_t chunk, Py_ssize_t number
) noexcept nogil:
    """One of the numbers of a chunk of the whole rows."""
    cdef real[16] lane
    cdef double x
    cdef Py_ssize_t k
    for k in range(group.rows):
        memcpy(
            &x, shard_place(problem.shard.imported, group, problem, k, chunk)
            + number * <Py_ssize_t>sizeof(double), sizeof(double))
        lane[k] = <real>x
    if group.rows == 1:
        return vector_set(lane[0])
    for k in range(group.rows, LANES):
        lane[k] = lane[0]
    return vector_load(lane)


cdef void shard_coefficients(
    RowState *state, const Group *group, const Problem *problem, Py_ssize_t chunk
) noexcept nogil:
    """Import what the class weights of a chunk sum up to, times what smoothing gives to each."""
    cdef double[4][16] number
    cdef double[4] row
    cdef double share
    cdef Py_ssize_t k, i, at
    for k in range(LANES):
        at = k if k < group.rows else 0    # lanes without a row repeat the first
        memcpy(
            row, shard_place(problem.shard.imported, group, problem, at, chunk)
            + <int>SHARD_WEIGHTS * <Py_ssize_t>sizeof(double), sizeof(row))
        share = problem.shard.even
        if problem.shard.share != NULL:
            share = problem.shard.share[group.first + at]
        for i in range(4):
            number[i][k] = power_apply(row[i] * share, -problem.options.coefficient_power)
        number[0][k] += number[1][k]
        number[1][k] = number_or_nothing(number[0][k] - <real>number[0][k])
    state.other_coefficients.high = vector_from(number[0])
    state.other_coefficients.low = vector_from(number[1])
    state.own_coefficient = vector_from(number[2])
    state.spread = vector_from(number[3])


cdef inline void shard_bring_down(
    RowState *state, const Group *group, const Problem *problem, Py_ssize_t chunk, Py_ssize_t sums
) noexcept nogil:
    """Read a sum of exponentials, and what it is a multiple of.

    Those of float64 have more headroom than float32 has; their sum with the maximum shows it.
    """
    cdef double[2][16] number
    cdef double[16] exponent
    cdef double[SHARD_NUMBERS] row
    cdef int down
    cdef Py_ssize_t k
    for k in range(LANES):
        memcpy(
            row, shard_place(
                problem.shard.imported, group, problem, k if k < group.rows else 0, chunk),
            <size_t>SHARD_WEIGHTS * sizeof(double))
        down = 0
        if fabs(row[<int>SHARD_ALL]) > TWO_TO_HEADROOM * <double>TWO_TO_HEADROOM:
            down = DOUBLE_HEADROOM - HEADROOM
        number[0][k] = power_apply(row[sums], -down)
        number[1][k] = power_apply(row[sums + 1], -down)
        exponent[k] = row[<int>SHARD_REFERENCE + 1] + down
    state.others.high = vector_from(number[0])
    state.others.low = vector_from(number[1])
    state.reference.exponent = vector_from(exponent)


cdef RowState shard_import(
    const Group *group, const Problem *problem, Py_ssize_t chunk
) noexcept nogil:
    """The state of a chunk of the whole rows."""
    cdef RowState state
    state.maximum = shard_read(group, problem, chunk, SHARD_MAXIMUM)
    state.reference.shift = shard_read(group, problem, chunk, SHARD_REFERENCE)
    shard_bring_down(&state, group, problem, chunk, sum_wanted(problem.operation))
    state.position = vector_set(-1.0)
    state.own_coefficient = state.spread = vector_set(0.0)
    state.other_coefficients = double_double_from(vector_set(0.0))
    if is_dense(problem.operation):
        shard_coefficients(&state, group, problem, chunk)
    return state


cdef void shard_merge(
    Group *group, const Problem *problem, RowState *states, const Scale *scale
) noexcept nogil:
    """Merge the chunks of the whole rows; bring those at hand to its reference."""
    cdef vector first = vector_set(1.0)
    cdef vector maximum = vector_set(NEGATIVE_INFINITY)
    cdef RowState state
    cdef Py_ssize_t chunk, k
    for chunk in range(problem.shard.chunks):
        maximum = vector_maximum(shard_read(group, problem, chunk, SHARD_MAXIMUM), maximum)
    state_open(&group.whole, maximum, scale)
    for chunk in range(problem.shard.chunks):
        state = shard_import(group, problem, chunk)
        state_set_factor(&state, &group.whole, scale)
        state_merge(group, problem, &state, chunk, &first, scale)
    for k in range(LANES):
        group.recipe.top[k] = -1
    for chunk in range(problem.plan.chunks):
        state_set_factor(states + chunk, &group.whole, scale)
        group_note_top(group, chunk, states + chunk, vector_mask_bits(
            vector_equal(states[chunk].maximum, maximum)))
    if problem.shard.label_weight != NULL:
        shard_label_weights(group, problem)


cdef inline void shard_label_weights(Group *group, const Problem *problem) noexcept nogil:
    """What the call with a label's class knows of it."""
    cdef Py_ssize_t k
    for k in range(LANES):
        if not group.weights.given:
            group.weights.sample[k] = 1
        group.weights.label[k] = 1
        if k >= group.rows:
            continue
        group.weights.label[k] = problem.shard.label_weight[group.first + k]
        if group.weights.label[k] == 0 and not is_dense(problem.operation) and (
            problem.options.z_loss == 0
        ):
            # Nothing is left of the row.
            group.ignored |= <unsigned int>1 << k
    group.weights.given = True

# Classes shared out over arrays: what is found out about the chunks of a row in one call, and the
# state of a row that is merged from the chunks of all.
#
# Chunks are merged as they are in an undivided call: where they begin at the same classes, the bits
# are the same. A label that is not among the classes at hand is counted as the one behind the last.
#
# Uses state.pxi, tasks.pxi.

cdef struct ShardNumbers:
    # What is known of a chunk, by row: see shard_export().
    double[SHARD_NUMBERS][16] of


cdef void shard_export(
    const Group *group, const Problem *problem, const RowState *states
) noexcept nogil:
    """Write what is known of the chunks of the rows of a group."""
    cdef int power = problem.options.coefficient_power
    cdef Py_ssize_t chunks = problem.plan.chunks
    cdef Py_ssize_t chunk, k, i
    cdef double *to
    cdef ShardNumbers numbers
    memset(&numbers, 0, sizeof(numbers))
    for chunk in range(chunks):
        numbers_store(numbers.of[0], states[chunk].maximum)
        numbers_store(numbers.of[1], states[chunk].reference.shift)
        numbers_store(numbers.of[2], states[chunk].reference.exponent)
        numbers_store(numbers.of[3], states[chunk].others.high)
        numbers_store(numbers.of[4], states[chunk].others.low)
        if is_dense(problem.operation):
            numbers_store(numbers.of[5], states[chunk].other_coefficients.high)
            numbers_store(numbers.of[6], states[chunk].other_coefficients.low)
            numbers_store(numbers.of[7], states[chunk].own_coefficient)
            numbers_store(numbers.of[8], states[chunk].spread)
        for k in range(group.rows):
            to = problem.shard.exported + ((group.first + k) * chunks + chunk) * SHARD_NUMBERS
            for i in range(SHARD_NUMBERS):
                to[i] = numbers.of[i][k] if i < 5 else power_apply(numbers.of[i][k], power)


cdef RowState shard_import(
    const Group *group, const Problem *problem, Py_ssize_t chunk
) noexcept nogil:
    """The state of a chunk of the whole rows; lanes without a row repeat the first."""
    cdef int power = -problem.options.coefficient_power
    cdef const double *numbers
    cdef Py_ssize_t k, i
    cdef RowState state
    cdef ShardNumbers rows
    for k in range(LANES):
        numbers = problem.shard.imported + SHARD_NUMBERS * (
            (group.first + (k if k < group.rows else 0)) * problem.shard.chunks + chunk)
        for i in range(5):
            rows.of[i][k] = numbers[i]
        rows.of[5][k] = power_apply(numbers[5] + numbers[6], power)
        rows.of[6][k] = rows.of[5][k] - <real>rows.of[5][k]
        for i in range(7, SHARD_NUMBERS):
            rows.of[i][k] = power_apply(numbers[i], power)
    state.maximum = vector_from(rows.of[0])
    state.reference.shift = vector_from(rows.of[1])
    state.reference.exponent = vector_from(rows.of[2])
    state.others.high = vector_from(rows.of[3])
    state.others.low = vector_from(rows.of[4])
    state.position = vector_set(-1.0)
    state.other_coefficients.high = vector_from(rows.of[5])
    state.other_coefficients.low = vector_from(rows.of[6])
    state.own_coefficient = vector_from(rows.of[7])
    state.spread = vector_from(rows.of[8])
    return state


cdef void shard_merge(
    Group *group, const Problem *problem, RowState *states, const Scale *scale
) noexcept nogil:
    """Merge the chunks of the whole rows; bring those at hand to its reference."""
    cdef Py_ssize_t chunks = problem.shard.chunks
    cdef vector first = vector_set(1.0)
    cdef vector maximum = vector_set(NEGATIVE_INFINITY)
    cdef RowState state
    cdef Py_ssize_t chunk, k
    for chunk in range(chunks):
        state = shard_import(group, problem, chunk)
        maximum = vector_maximum(state.maximum, maximum)
    state_open(&group.whole, maximum, scale)
    for chunk in range(chunks):
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

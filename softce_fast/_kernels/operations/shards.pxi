# Classes shared out over arrays: what is found out about the chunks of a row in one call, and the
# state of a row that is merged from the chunks of all.
#
# Chunks are merged as they are in an undivided call: where they begin at the same classes, the bits
# are the same. A label that is not among the classes at hand is counted as the one behind the last.
#
# Uses state.pxi, tasks.pxi.

cdef inline double first_lane(vector v) noexcept nogil:
    cdef real[16] lane
    vector_store(lane, v)
    return lane[0]


cdef void shard_export(
    const Problem *problem, Py_ssize_t row, const RowState *states
) noexcept nogil:
    """Write what is known of the chunks of a row."""
    cdef int power = problem.options.coefficient_power
    cdef Py_ssize_t chunk
    cdef double *to = problem.shard.exported + row * problem.plan.chunks * SHARD_NUMBERS
    for chunk in range(problem.plan.chunks):
        to[0] = first_lane(states[chunk].maximum)
        to[1] = first_lane(states[chunk].reference.shift)
        to[2] = first_lane(states[chunk].reference.exponent)
        to[3] = first_lane(states[chunk].others.high)
        to[4] = first_lane(states[chunk].others.low)
        if is_dense(problem.operation):
            to[5] = power_apply(first_lane(states[chunk].other_coefficients.high), power)
            to[6] = power_apply(first_lane(states[chunk].other_coefficients.low), power)
            to[7] = power_apply(first_lane(states[chunk].own_coefficient), power)
            to[8] = power_apply(first_lane(states[chunk].spread), power)
        to += SHARD_NUMBERS


cdef RowState shard_import(const Problem *problem, const double *numbers) noexcept nogil:
    """The state of a chunk, in all lanes."""
    cdef int power = -problem.options.coefficient_power
    cdef double coefficients = power_apply(numbers[5] + numbers[6], power)
    cdef RowState state
    state.maximum = vector_set(<real>numbers[0])
    state.reference.shift = vector_set(<real>numbers[1])
    state.reference.exponent = vector_set(<real>numbers[2])
    state.others.high = vector_set(<real>numbers[3])
    state.others.low = vector_set(<real>numbers[4])
    state.position = vector_set(-1.0)
    state.other_coefficients.high = vector_set(<real>coefficients)
    state.other_coefficients.low = vector_set(<real>(coefficients - <real>coefficients))
    state.own_coefficient = vector_set(<real>power_apply(numbers[7], power))
    state.spread = vector_set(<real>power_apply(numbers[8], power))
    return state


cdef void shard_merge(
    Group *group, const Problem *problem, RowState *states, const Scale *scale
) noexcept nogil:
    """Merge the chunks of the whole row; bring those at hand to its reference."""
    cdef Py_ssize_t chunks = problem.shard.chunks
    cdef const double *numbers = (
        problem.shard.imported + group.first * chunks * SHARD_NUMBERS)
    cdef vector first = vector_set(1.0)
    cdef vector maximum = vector_set(NEGATIVE_INFINITY)
    cdef RowState state
    cdef Py_ssize_t chunk
    for chunk in range(chunks):
        maximum = vector_maximum(vector_set(<real>numbers[chunk * SHARD_NUMBERS]), maximum)
    state_open(&group.whole, maximum, scale)
    for chunk in range(chunks):
        state = shard_import(problem, numbers + chunk * SHARD_NUMBERS)
        state_set_factor(&state, &group.whole, scale)
        state_merge(group, problem, &state, chunk, &first, scale)
    group.recipe.top[0] = -1
    for chunk in range(problem.plan.chunks):
        state_set_factor(states + chunk, &group.whole, scale)
        group_note_top(group, chunk, states + chunk, 1 & vector_mask_bits(
            vector_equal(states[chunk].maximum, maximum)))
    if problem.shard.label_weight != NULL:
        shard_label_weight(group, problem)


cdef inline void shard_label_weight(Group *group, const Problem *problem) noexcept nogil:
    """What the call with the label's class knows of it."""
    cdef Py_ssize_t k
    for k in range(LANES):
        if not group.weights.given:
            group.weights.sample[k] = 1
        group.weights.label[k] = problem.shard.label_weight[group.first]
    group.weights.given = True
    if group.weights.label[0] == 0 and not is_dense(problem.operation) and (
        problem.options.z_loss == 0
    ):
        # Nothing is left of the row.
        group.ignored |= 1

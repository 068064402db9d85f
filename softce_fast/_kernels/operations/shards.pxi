# Classes shared out over arrays: what is found out about the chunks of a row in one read, and the
# state of a row that is merged from the chunks of all.
#
# Chunks are merged as they are in an undivided call: where they begin at the same classes, the bits
# are the same. A label that is not among the classes at hand is counted as the one behind the last.
#
# Uses state.pxi, along.pxi.

cdef enum:
    # Binary orders that the references of two chunks may be apart by, whose exponentials are made
    # from one: further ones are anyway (chunk_factor()).
    REFERENCES_APART = 34


cdef inline const char *shard_row(const Problem *problem, Py_ssize_t row) noexcept nogil:
    """Where the states of a row are."""
    cdef const char *rows = problem.shard.imported
    if rows == NULL:
        rows = problem.shard.exported
    return rows + row * problem.shard.row_stride


cdef inline RowHead shard_head(const Problem *problem, Py_ssize_t row) noexcept nogil:
    cdef RowHead head
    memcpy(&head, shard_row(problem, row), sizeof(RowHead))
    return head


cdef inline double shard_share(const Problem *problem, Py_ssize_t row) noexcept nogil:
    """What smoothing gives to each class of a row that is allowed, by its weight."""
    if problem.shard.exported != NULL:
        return 1
    return even_share(problem, shard_head(problem, row).allowed)


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
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef bint few_digits = problem.plan.few_digits
    cdef DoubleDouble all_, unlabelled
    if problem.shard.exported == NULL:
        return
    all_ = unlabelled = rows_reduce(&dense.all, group.rows, n, few_digits)
    if has(problem, LABELS):
        unlabelled = rows_reduce(&dense.unlabelled, group.rows, n, few_digits)
    shard_write(group, problem, chunk, state, all_, unlabelled)


cdef void tile_export(
    const Group *group, const Problem *problem, Py_ssize_t t, Py_ssize_t chunk, Scratch *scratch
) noexcept nogil:
    """The same of a tile whose exponentials are summed without the maximum: with that, too."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef bint few_digits = problem.plan.few_digits
    cdef real *terms = tile_terms(problem, scratch.kept + t * scratch.kept_stride, n)
    cdef const RowState *state = chunk_state(group, problem, t, chunk, scratch)
    cdef DoubleDouble all_, unlabelled
    tile_put(terms, n, state.position, exponential(
        state.maximum, state.reference, &scratch.scale))
    all_ = unlabelled = tile_sums(terms, n, few_digits)
    if has(problem, LABELS):
        tile_put(terms, n, classes_in_chunk(group.labels, chunk), vector_set(0.0))
        unlabelled = tile_sums(terms, n, few_digits)
    shard_write(group, problem, chunk, state, all_, unlabelled)


cdef void shard_write(
    const Group *group, const Problem *problem, Py_ssize_t chunk, const RowState *state,
    DoubleDouble all_, DoubleDouble unlabelled,
) noexcept nogil:
    """Write what is known of a chunk of the rows of a group."""
    cdef Py_ssize_t k, i, count = SHARD_NUMBERS
    cdef double[SHARD_LABELLED_NUMBERS][16] numbers
    cdef double *row
    numbers_store(numbers[<int>SHARD_MAXIMUM], state.maximum)
    numbers_store(numbers[<int>SHARD_REFERENCE], state.reference.shift)
    numbers_store(numbers[<int>SHARD_REFERENCE + 1], state.reference.exponent)
    sum_store(&numbers[<int>SHARD_ALL], all_)
    sum_store(&numbers[<int>SHARD_REST], state.others)
    if has(problem, LABELS):
        count = SHARD_WEIGHTS
        sum_store(&numbers[<int>SHARD_OTHERS], unlabelled)
    if is_dense(problem.operation):
        count = SHARD_LABELLED_NUMBERS
        shard_weights(numbers, problem, state)
    for k in range(group.rows):
        row = <double *>(
            problem.shard.exported + (group.first + k) * problem.shard.row_stride
            + problem.shard.place + chunk * problem.shard.chunk_size)
        for i in range(count):
            row[i] = numbers[i][k]
        shard_write_head(group, problem, chunk, k, numbers[<int>SHARD_ALL][k])


cdef inline void shard_weights(
    double[SHARD_LABELLED_NUMBERS][16] numbers, const Problem *problem, const RowState *state
) noexcept nogil:
    cdef Py_ssize_t i, k
    sum_store(&numbers[<int>SHARD_WEIGHTS], state.other_coefficients)
    numbers_store(numbers[<int>SHARD_WEIGHTS + 2], state.own_coefficient)
    numbers_store(numbers[<int>SHARD_SPREAD], state.spread)
    for k in range(LANES):
        if not coefficients_by_row(problem):
            # All are 1, that of the maximum too.
            numbers[<int>SHARD_WEIGHTS][k] -= 1
            numbers[<int>SHARD_WEIGHTS + 2][k] = 1
        for i in range(<int>SHARD_WEIGHTS, <int>SHARD_LABELLED_NUMBERS):
            numbers[i][k] = power_apply(numbers[i][k], problem.options.powers.coefficient)


cdef inline void shard_write_head(
    const Group *group, const Problem *problem, Py_ssize_t chunk, Py_ssize_t k, double sum_
) noexcept nogil:
    """Add to what begins a row's states; rows with +inf have no number as their sum, either."""
    cdef RowHead *head = <RowHead *>(
        problem.shard.exported + (group.first + k) * problem.shard.row_stride)
    cdef const Array *array = &problem.arrays[<int>INPUT]
    cdef int64_t label = group.labels[k]
    if sum_ != sum_:
        flag_raise(&head.has_nan)
        flag_raise(problem.shard.any_nan)
    if not is_dense(problem.operation) or label_place(group, problem, chunk, k) < 0:
        return
    head.found = True
    head.weight = 1
    if problem.options.class_weight != NULL:
        head.weight = problem.options.class_weight[label]
    head.logit = NEGATIVE_INFINITY
    if not is_excluded(group, problem, k, label):
        head.logit = real_read(
            array, array.data + in_group(group, problem, INPUT, k)
            + class_offset(&problem.layout, array, label))


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
    cdef real limit = (
        scratch.scale.shift_limit - <real>(REFERENCES_APART * STEPS) / scratch.scale.log2e)
    if problem.shard.imported == NULL:
        along_absorb(group, problem, chunk, state, scratch)
        return
    state.position = vector_set(-1.0)
    state.maximum = shard_maximum(group, problem)
    if notes_maximum(problem.operation) or any_lane(vector_greater(
        vector_absolute(state.maximum), vector_set(limit))
    ):
        # The chunk's own reference may be another than a power of two away from the row's.
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


cdef inline const char *shard_chunk(
    const Group *group, const Problem *problem, Py_ssize_t k, Py_ssize_t chunk
) noexcept nogil:
    """What is known of a chunk of whole row k; lanes without a row repeat the first."""
    return shard_row(problem, group.first + (k if k < group.rows else 0)) + (
        problem.shard.place + chunk * problem.shard.chunk_size)


cdef inline double number_at(const char *numbers, Py_ssize_t i) noexcept nogil:
    cdef double x
    memcpy(&x, numbers + i * <Py_ssize_t>sizeof(double), sizeof(double))
    return x


cdef vector shard_maximum(const Group *group, const Problem *problem) noexcept nogil:
    """The maximum of the whole rows."""
    cdef real[16] maximum
    cdef const char *numbers
    cdef Py_ssize_t k, chunk
    for k in range(LANES):
        maximum[k] = NEGATIVE_INFINITY
        numbers = shard_chunk(group, problem, k, 0)
        for chunk in range(problem.shard.chunks):
            maximum[k] = max(maximum[k], <real>number_at(numbers, SHARD_MAXIMUM))
            numbers += problem.shard.chunk_size
    return vector_load(maximum)


cdef void shard_coefficients(
    RowState *state, const Group *group, const Problem *problem, Py_ssize_t chunk
) noexcept nogil:
    """Import what the class weights of a chunk sum up to, times what smoothing gives to each."""
    cdef int power = -problem.options.powers.coefficient - problem.shard.power
    cdef double[4][16] number
    cdef const char *numbers
    cdef double share
    cdef Py_ssize_t k, i
    for k in range(LANES):
        numbers = shard_chunk(group, problem, k, chunk)
        share = shard_share(problem, group.first + (k if k < group.rows else 0))
        for i in range(4):
            number[i][k] = power_apply(number_at(numbers, SHARD_WEIGHTS + i) * share, power)
        number[0][k] += number[1][k]
        number[1][k] = number_or_nothing(number[0][k] - <real>number[0][k])
    state.other_coefficients.high = vector_from(number[0])
    state.other_coefficients.low = vector_from(number[1])
    state.own_coefficient = vector_from(number[2])
    state.spread = vector_from(number[3])


cdef DoubleDouble sum_import(
    const Group *group, const Problem *problem, Py_ssize_t chunk, Py_ssize_t place, const int *down
) noexcept nogil:
    """One of the sums of a chunk of the whole rows, less these powers of two."""
    cdef const char *numbers
    cdef DoubleDouble sum_
    cdef real[16] high
    cdef real[16] low
    cdef Py_ssize_t k
    for k in range(LANES):
        numbers = shard_chunk(group, problem, k, chunk)
        high[k] = <real>power_apply(number_at(numbers, place), -down[k])
        low[k] = <real>power_apply(number_at(numbers, place + 1), -down[k])
    sum_.high = vector_load(high)
    sum_.low = vector_load(low)
    return sum_


cdef RowState shard_import(
    const Group *group, const Problem *problem, Py_ssize_t chunk
) noexcept nogil:
    """The state of a chunk of the whole rows.

    Sums of float64 have more headroom than float32 has; that with the maximum shows it.
    """
    cdef const char *numbers
    cdef real[16] maximum
    cdef real[16] shift
    cdef real[16] exponent
    cdef int[16] down
    cdef RowState state
    cdef Py_ssize_t k
    for k in range(LANES):
        numbers = shard_chunk(group, problem, k, chunk)
        down[k] = 0
        if fabs(number_at(numbers, SHARD_ALL)) > TWO_TO_HEADROOM * <double>TWO_TO_HEADROOM:
            down[k] = DOUBLE_HEADROOM - HEADROOM
        maximum[k] = <real>number_at(numbers, SHARD_MAXIMUM)
        shift[k] = <real>number_at(numbers, SHARD_REFERENCE)
        exponent[k] = <real>(number_at(numbers, SHARD_REFERENCE + 1) + down[k])
    state.maximum = vector_load(maximum)
    state.reference.shift = vector_load(shift)
    state.reference.exponent = vector_load(exponent)
    state.others = sum_import(group, problem, chunk, sum_wanted(problem.operation), down)
    state.position = vector_set(-1.0)
    state.own_coefficient = state.spread = vector_set(0.0)
    state.other_coefficients = state.below = double_double_from(vector_set(0.0))
    if sums_rest(problem):
        state.rest = sum_import(group, problem, chunk, SHARD_REST, down)
    if is_dense(problem.operation):
        shard_coefficients(&state, group, problem, chunk)
    return state


cdef void shard_merge(
    Group *group, const Problem *problem, RowState *states, const Scale *scale
) noexcept nogil:
    """Merge the chunks of the whole rows; bring those at hand to its reference."""
    cdef vector first = vector_set(1.0)
    cdef vector maximum = shard_maximum(group, problem)
    cdef RowState state
    cdef Py_ssize_t chunk, k
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
    if problem.shard.weighs_label:
        shard_label_weights(group, problem)


cdef inline void shard_label_weights(Group *group, const Problem *problem) noexcept nogil:
    """What the call with a label's class knows of it."""
    cdef double share = 1 - problem.options.label_smoothing
    cdef Py_ssize_t k
    for k in range(LANES):
        if not group.weights.given:
            group.weights.sample[k] = 1
        group.weights.label[k] = share
        if k < group.rows and share != 0:
            group.weights.label[k] *= power_apply(
                shard_head(problem, group.first + k).weight, -problem.shard.power)
        if group.weights.label[k] == 0 and not is_dense(problem.operation) and (
            problem.options.z_loss == 0
        ):
            # Nothing is left of the row.
            group.ignored |= <unsigned int>1 << k
    group.weights.given = True

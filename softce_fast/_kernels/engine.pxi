# The way of a batch through a kernel.
#
# rows -> tasks (a fixed number of rows, whatever the number of threads) -> groups of up to LANES
# rows -> chunks of CHUNK classes. A group goes through three steps:
#
#   forward   maximum, reference and sum of exponentials of each chunk; the chunks merged
#   finish    what the operation makes of a row's sums: a loss, a factor, a constant (vectors: one
#             row in each lane)
#   write     the output, if there is one
#
# Forward and write exist twice: for single rows (rows.pxi) and for tiles (tile.pxi). Both give the
# same bits, so which one serves a group is a matter of speed alone: rows that are left over and
# would not fill a tile go one by one. Few long rows are shared out by chunks instead of rows; the
# chunks are the same ones.
#
# What is `cdef inline` is inlined wherever it is called; the rest, by GCC, nowhere (see setup.py).
# So each pass is a function with all its loops, and no two compete for registers.

cdef enum Operation:
    SOFTMAX
    LOG_SOFTMAX
    LOGSUMEXP
    CROSS_ENTROPY         # of class indices
    SOFT_CROSS_ENTROPY    # of class probabilities


cdef enum Passes:
    # What the rows of a problem go by, those left over excepted.
    BY_ROWS
    BY_TILES


cdef struct Array:
    # A 3-d array (outer, class, inner) seen as rows; strides in bytes. `data` is NULL for none.
    char *data
    Py_ssize_t inner_length
    Py_ssize_t outer_stride
    Py_ssize_t class_stride
    Py_ssize_t inner_stride
    Py_ssize_t row_stride     # from one row to the next where that is always the same, else 0


cdef extern from *:
    """
    /* A factor this small could underflow; see chunk_output. */
    #define CHUNK_FACTOR_LIMIT ((real)0x1p-32)
    """
    const real CHUNK_FACTOR_LIMIT


cdef enum:
    BATCH = 4    # most tiles worked on together
    LABELS_AHEAD = 1024    # bytes of labels that are on their way from memory


cdef struct Problem:
    Operation operation
    Py_ssize_t rows
    Py_ssize_t classes
    Py_ssize_t chunks
    bint by_chunks          # a task is one chunk of one row, rows being few and long
    Py_ssize_t rows_per_task    # else
    Py_ssize_t tasks
    Py_ssize_t rows_per_group
    Py_ssize_t rows_at_once     # rows of a group that the first-level cache holds together
    Py_ssize_t batch        # tiles worked on together
    Array logits
    Array target            # class indices (int64) or class probabilities
    Array output            # probabilities, log-probabilities or gradient
    Array result            # logsumexp or loss of each row
    Array sample_weight     # of each row, in `real`
    const real *class_weight
    const real *coefficient_sums    # of each chunk, where every row has the same coefficients,
    const real *other_coefficients  # and for each class the sum of all others, if they differ
    Scale scale
    double *task_losses     # the sum of the losses of each task,
    real *row_losses        # or, where rows are long, the loss of each row
    real gradient_scale     # weight of a row's loss in the reduced one, / T
    real label_smoothing
    real z_loss
    bint dense              # the target has a coefficient for every class
    int64_t ignore_index
    bint empty_is_zero      # rows without a finite logit give 0 instead of NaN
    Passes passes
    const Problem *by_rows  # the same planned by rows, for those too few for the rest; or NULL
    bint stream             # write the output past the caches
    bint keep               # exponentials of all chunks are kept from forward to write,
    bint keep_in_output     # and that where the output will be
    bint by_lines           # tiles end where the output's cache lines end
    Py_ssize_t ahead        # bytes from what is worked on to what comes next,
    Py_ssize_t ahead_stride  # and from one cache line of that to the next
    size_t kept_stride      # numbers from one kept row, or tile, to the next


cdef struct ChunkState:
    # One chunk of a group's rows, a row in each lane.
    vector maximum
    Reference reference
    Pair others             # sum of the exponentials but the pivot's
    Pair factor             # from the chunk's reference to the row's
    vector position         # of the maximum, from the start of the chunk; -1 for none
    vector coefficients     # dense targets: the sum of the coefficients,
    vector other_coefficients   # that without the maximum's own,
    vector spread           # and that of coefficient * (maximum - x)


cdef struct Group:
    # Up to LANES rows, a row in each lane.
    Py_ssize_t first
    Py_ssize_t rows
    Offsets logits
    Offsets output
    Offsets target                # of class probabilities
    int64_t[16] labels
    vector active                 # 0 where the label is ignored or nothing weighs, else 1
    unsigned int ignored          # the same: bit k is row k
    vector label_weight           # class weight at the label, without what smoothing takes
    vector sample_weight
    ChunkState whole              # the chunks merged, or the only one; without `factor`
    vector own_logit              # cross-entropy: of what is left out of the sum,
    Pair own                      # its exponential,
    Pair total                    # the sum of all,
    vector share                  # that of the coefficients,
    vector from_z                 # and 2 * z_loss * logsumexp
    vector result                 # set where the operation has it, as all of these:
    vector minus                  # see output_vector
    Pair factor
    vector at_label               # the gradient at the label
    int64_t[16] top               # dense targets: the class of the maximum where its probability is
    vector at_top                 # above 1/2 (else -1), the gradient there,
    vector dense_factor           # and what a coefficient takes off the gradient


cdef struct Scratch:
    # Of one thread.
    ChunkState *states            # of all chunks of a group
    real *kept                    # exponentials: the rows of a group, or its tile; where they
    #                               are not kept in the output
    Line line                     # of tiles: its elements are followed by rows, unpacked;
    Seams seams                   # of rows, in the same memory
    storage *staged               # rows copied together
    real *results                 # of the rows of a task
    storage *target               # a row of class probabilities copied together


cdef inline Py_ssize_t row_offset(const Array *array, Py_ssize_t row) noexcept nogil:
    if array.row_stride != 0:
        return row * array.row_stride
    return (
        row // array.inner_length * array.outer_stride
        + row % array.inner_length * array.inner_stride)


cdef inline void offsets_fill(
    Offsets *offsets, const Array *array, Py_ssize_t first, Py_ssize_t rows
) noexcept nogil:
    cdef Py_ssize_t k
    offsets.step = array.row_stride
    if offsets.step == 0 and (
        first // array.inner_length == (first + rows - 1) // array.inner_length
    ):
        offsets.step = array.inner_stride
    if rows < LANES:
        offsets.step = 0
    offsets.of_row[0] = row_offset(array, first)
    if offsets.step == 0:
        for k in range(1, rows):
            offsets.of_row[k] = row_offset(array, first + k)


cdef inline Py_ssize_t chunk_length(const Problem *problem, Py_ssize_t chunk) noexcept nogil:
    return min(<Py_ssize_t>CHUNK, problem.classes - chunk * CHUNK)


cdef inline const storage *contiguous_row(
    const char *x, Py_ssize_t class_stride, Py_ssize_t n, storage *staged
) noexcept nogil:
    """The row itself where its classes are neighbours, else a copy of it."""
    cdef Py_ssize_t c
    if class_stride == sizeof(storage):
        return <const storage *>x
    for c in range(n):
        memcpy(staged + c, x + c * class_stride, sizeof(storage))
    return staged


# ---- forward ---------------------------------------------------------------------------------


cdef inline void group_open(
    Group *group, const Problem *problem, Py_ssize_t first, Py_ssize_t rows
) noexcept nogil:
    cdef Py_ssize_t k
    group.first = first
    group.rows = rows
    group.active = vector_set(1.0)
    group.ignored = 0
    offsets_fill(&group.logits, &problem.logits, first, rows)
    if problem.output.data != NULL:
        offsets_fill(&group.output, &problem.output, first, rows)
    if problem.operation == SOFT_CROSS_ENTROPY:
        offsets_fill(&group.target, &problem.target, first, rows)
    for k in range(LANES):
        group.labels[k] = -1
    if problem.operation == CROSS_ENTROPY:
        group_labels(group, problem)
    if problem.sample_weight.data != NULL:
        group_sample_weights(group, problem)


cdef inline vector rows_active(const Group *group) noexcept nogil:
    """0 where a row is ignored, else 1."""
    cdef real[16] active
    cdef Py_ssize_t k
    for k in range(LANES):
        active[k] = not group.ignored >> k & 1
    return vector_get(active)


cdef inline void group_labels(Group *group, const Problem *problem) noexcept nogil:
    """Read the labels, and the weights of their classes."""
    cdef const char *labels
    cdef Py_ssize_t k
    cdef real[16] weight
    if group.rows == LANES and problem.target.row_stride == sizeof(int64_t):
        labels = problem.target.data + group.first * <Py_ssize_t>sizeof(int64_t)
        prefetch(labels + LABELS_AHEAD)
        prefetch(labels + LABELS_AHEAD + 64)
        memcpy(group.labels, labels, LANES * sizeof(int64_t))
    else:
        for k in range(LANES):
            group.labels[k] = 0
        for k in range(group.rows):
            memcpy(group.labels + k,
                   problem.target.data + row_offset(&problem.target, group.first + k),
                   sizeof(int64_t))
    if labels_are_special(group.labels, problem.ignore_index, problem.classes):
        for k in range(LANES):
            if group.labels[k] == problem.ignore_index:
                group.ignored |= <unsigned int>1 << k
                group.labels[k] = 0
            # They were checked, but another Python thread may have changed them since.
            group.labels[k] = max(
                <int64_t>0, min(group.labels[k], <int64_t>(problem.classes - 1)))
        group.active = rows_active(group)
    group.label_weight = vector_set(1.0)
    if problem.class_weight != NULL:
        for k in range(LANES):
            weight[k] = problem.class_weight[group.labels[k]]
            if weight[k] == 0 and not problem.dense and problem.z_loss == 0:
                # Nothing is left of the row.
                group.ignored |= <unsigned int>1 << k
        group.label_weight = vector_get(weight)
        group.active = rows_active(group)
    if problem.label_smoothing != 0:
        group.label_weight = vector_multiply(
            group.label_weight, vector_set(<real>1 - problem.label_smoothing))


cdef inline void group_sample_weights(Group *group, const Problem *problem) noexcept nogil:
    cdef Py_ssize_t k
    cdef real[16] weight
    for k in range(LANES):
        weight[k] = 1
    for k in range(group.rows):
        memcpy(weight + k, problem.sample_weight.data
               + row_offset(&problem.sample_weight, group.first + k), sizeof(real))
        if weight[k] == 0:
            # It takes the row out, whatever the row holds.
            group.ignored |= <unsigned int>1 << k
    group.sample_weight = vector_get(weight)
    group.active = rows_active(group)


cdef inline bint pivots_at_maximum(const Problem *problem) noexcept nogil:
    """Whether the element left out of a row's sum is its maximum; else it is the label, or none."""
    return (
        problem.operation == LOG_SOFTMAX or problem.operation == LOGSUMEXP or problem.dense)


cdef void rows_forward(
    Group *group, const Problem *problem, Py_ssize_t chunk, ChunkState *state, Scratch *scratch,
) noexcept nogil:
    """Fill the state of one chunk of the group, row by row."""
    cdef Py_ssize_t start = chunk * CHUNK
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t columns = min(<Py_ssize_t>CHUNK, problem.classes)
    cdef Py_ssize_t k, stop
    cdef Py_ssize_t first = 0
    cdef const storage *x[16]
    cdef real[16] maximum
    cdef real[16] position
    cdef Py_ssize_t pivot
    cdef real[256] high       # LANES * LANES numbers
    cdef real[256] low
    cdef Pair total
    cdef real[16] shift
    cdef real[16] exponent
    for k in range(LANES):
        maximum[k] = 0
        position[k] = -1
    while first < group.rows:
        stop = min(first + problem.rows_at_once, group.rows)
        for k in range(first, stop):
            x[k] = contiguous_row(
                problem.logits.data + offset_of(&group.logits, k)
                + start * problem.logits.class_stride,
                problem.logits.class_stride, n, scratch.staged + (k - first) * columns)
            maximum[k] = row_maximum(x[k], n)
        state.maximum = vector_get(maximum)
        state.reference = reference_for(state.maximum, &problem.scale)
        vector_put(shift, state.reference.shift)
        vector_put(exponent, state.reference.exponent)
        for k in range(first, stop):
            pivot = row_pivot(group, problem, chunk, k, x[k], maximum[k])
            position[k] = <real>pivot
            total = row_forward(
                group, problem, chunk, k, x[k], pivot, shift[k], exponent[k], scratch)
            vector_put(high + k * LANES, total.high)
            vector_put(low + k * LANES, total.low)
        first = stop
    state.others = rows_reduce(high, low, group.rows, n)
    state.position = vector_get(position)
    if problem.dense:
        rows_spread(group, problem, chunk, x, maximum, position, state, scratch)


cdef inline Py_ssize_t row_pivot(
    const Group *group, const Problem *problem, Py_ssize_t chunk, Py_ssize_t k, const storage *x,
    real maximum,
) noexcept nogil:
    """Which class of a chunk of row k is left out of its sum; -1 for none."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t label
    if pivots_at_maximum(problem):
        return row_find(x, n, maximum)
    if problem.operation != CROSS_ENTROPY:
        return -1
    label = group.labels[k] - chunk * CHUNK
    return label if label < n else -1


cdef inline Pair row_forward(
    const Group *group, const Problem *problem, Py_ssize_t chunk, Py_ssize_t k, const storage *x,
    Py_ssize_t pivot, real shift, real exponent, const Scratch *scratch,
) noexcept nogil:
    """Sum one chunk of row k."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef real *kept = row_kept(group, problem, k, chunk, scratch.kept)
    cdef Reference reference
    reference.shift = vector_set(shift)
    reference.exponent = vector_set(exponent)
    if problem.scale.tempered or shift != 0:
        return row_exponentials(
            x, n, pivot, reference, &problem.scale, kept, problem.keep, True, problem.ahead)
    if problem.keep:
        return row_exponentials(
            x, n, pivot, reference, &problem.scale, kept, True, False, problem.ahead)
    return row_exponentials(
        x, n, pivot, reference, &problem.scale, NULL, False, False, problem.ahead)


cdef inline real *row_kept(
    const Group *group, const Problem *problem, Py_ssize_t k, Py_ssize_t chunk, real *kept
) noexcept nogil:
    """Where the exponentials of a chunk of a row are kept: in the output, or at `kept`."""
    if problem.keep_in_output:
        return <real *>(problem.output.data + offset_of(&group.output, k)) + chunk * CHUNK
    return kept + k * problem.kept_stride + chunk * CHUNK


cdef inline Coefficients coefficients_of(
    const Group *group, const Problem *problem, Py_ssize_t row, Py_ssize_t chunk, Scratch *scratch
) noexcept nogil:
    """Describe the coefficients of a chunk of a row."""
    cdef Coefficients coefficients
    cdef Py_ssize_t start = chunk * CHUNK
    coefficients.weight = NULL
    coefficients.probabilities = NULL
    coefficients.even = vector_set(problem.label_smoothing / <real>problem.classes)
    coefficients.share = vector_set(<real>1 - problem.label_smoothing)
    if problem.class_weight != NULL:
        coefficients.weight = problem.class_weight + start
    if problem.operation == SOFT_CROSS_ENTROPY:
        coefficients.probabilities = contiguous_row(
            problem.target.data + offset_of(&group.target, row)
            + start * problem.target.class_stride,
            problem.target.class_stride, chunk_length(problem, chunk), scratch.target)
    return coefficients


cdef inline void rows_spread(
    Group *group, const Problem *problem, Py_ssize_t chunk, const storage **x,
    const real *maximum, const real *position, ChunkState *state, Scratch *scratch
) noexcept nogil:
    """Sum what dense targets take over one chunk."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t k
    cdef Coefficients coefficients
    cdef Pair total, spread
    cdef vector origin
    cdef real[256] total_high       # LANES * LANES numbers
    cdef real[256] total_low
    cdef real[256] spread_high
    cdef real[256] spread_low
    cdef real[16] own
    for k in range(LANES):
        own[k] = 0
    for k in range(group.rows):
        coefficients = coefficients_of(group, problem, k, chunk, scratch)
        origin = spread_origin(vector_set(maximum[k]))
        if problem.operation == SOFT_CROSS_ENTROPY:
            row_spread(
                x[k], n, origin, &coefficients, <Py_ssize_t>position[k], True, True, &total,
                &spread)
            own[k] = coefficient_at(&coefficients, <Py_ssize_t>position[k], n)
            vector_put(total_high + k * LANES, total.high)
            vector_put(total_low + k * LANES, total.low)
        elif problem.class_weight != NULL:
            row_spread(x[k], n, origin, &coefficients, -1, False, True, &total, &spread)
        else:
            row_spread(x[k], n, origin, &coefficients, -1, False, False, &total, &spread)
        vector_put(spread_high + k * LANES, spread.high)
        vector_put(spread_low + k * LANES, spread.low)
    state.spread = pair_finite(rows_reduce(spread_high, spread_low, group.rows, n))
    if problem.operation == SOFT_CROSS_ENTROPY:
        state.other_coefficients = pair_finite(
            rows_reduce(total_high, total_low, group.rows, n))
        state.coefficients = vector_add(state.other_coefficients, vector_get(own))
    else:
        state.coefficients = vector_set(problem.coefficient_sums[chunk])
        state.other_coefficients = vector_set(0.0)


cdef inline TileCoefficients tile_coefficients_of(
    const Problem *problem, Py_ssize_t chunk, const real *probabilities
) noexcept nogil:
    """Describe the coefficients of a chunk of a tile."""
    cdef TileCoefficients coefficients
    coefficients.weight = NULL
    coefficients.probabilities = NULL
    coefficients.even = vector_set(problem.label_smoothing / <real>problem.classes)
    coefficients.share = vector_set(<real>1 - problem.label_smoothing)
    if problem.class_weight != NULL:
        coefficients.weight = problem.class_weight + chunk * CHUNK
    if problem.operation == SOFT_CROSS_ENTROPY:
        coefficients.probabilities = probabilities
    return coefficients


cdef inline void tile_spread(
    const Problem *problem, Py_ssize_t chunk, ChunkState *state, const real *tile,
    const real *probabilities, real *terms,
) noexcept nogil:
    """rows_spread() for a tile."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef TileCoefficients coefficients = tile_coefficients_of(problem, chunk, probabilities)
    tile_spread_terms(tile, &coefficients, spread_origin(state.maximum), n, terms)
    cdef vector own
    state.spread = pair_finite(tile_sums(terms, n))
    if problem.operation == SOFT_CROSS_ENTROPY:
        own = tile_coefficients(&coefficients, n, state.position, terms)
        state.other_coefficients = pair_finite(tile_sums(terms, n))
        state.coefficients = vector_add(state.other_coefficients, own)
    else:
        state.coefficients = vector_set(problem.coefficient_sums[chunk])
        state.other_coefficients = vector_set(0.0)


cdef inline bint any_nonzero(vector v) noexcept nogil:
    return vector_mask_bits(vector_greater(vector_absolute(v), vector_set(0.0))) != 0


cdef inline void tile_fill(
    real *tile, const Group *group, const Problem *problem, Py_ssize_t chunk
) noexcept nogil:
    """Fill a tile with logits and, where the target has some, probabilities behind them."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    tile_load(
        tile, problem.logits.data + chunk * CHUNK * problem.logits.class_stride,
        problem.logits.class_stride, &group.logits, n, group.rows)
    if problem.operation == SOFT_CROSS_ENTROPY:
        tile_load(
            tile + n * LANES,
            problem.target.data + chunk * CHUNK * problem.target.class_stride,
            problem.target.class_stride, &group.target, n, group.rows)


cdef inline vector classes_in_chunk(const int64_t *classes, Py_ssize_t chunk) noexcept nogil:
    """A class of each row counted from the start of the chunk; outside [0, CHUNK) if elsewhere."""
    cdef real[16] counted
    cdef Py_ssize_t k
    for k in range(LANES):
        counted[k] = <real>(classes[k] - chunk * CHUNK)
    return vector_get(counted)


cdef inline ChunkState *tile_state(
    Group *group, const Problem *problem, Py_ssize_t tile, Py_ssize_t chunk, Scratch *scratch
) noexcept nogil:
    """The state of a chunk of a tile of the batch."""
    return chunk_state(group, problem, scratch.states + tile * problem.chunks, chunk)


cdef inline real *tile_terms(const Problem *problem, real *tile, Py_ssize_t n) noexcept nogil:
    """Where what is to be added up of a tile goes: behind what is still wanted of it."""
    if problem.operation == SOFT_CROSS_ENTROPY:
        return tile + 2 * n * LANES
    if problem.operation == LOG_SOFTMAX or problem.dense:
        return tile + n * LANES
    return tile


cdef void tiles_fill(
    Group *groups, const Problem *problem, Py_ssize_t tiles, Py_ssize_t chunk, Scratch *scratch
) noexcept nogil:
    """Read one chunk of each tile, and choose its reference."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t t
    cdef ChunkState *state
    cdef real *tile
    for t in range(tiles):
        tile = scratch.kept + t * problem.kept_stride
        state = tile_state(groups + t, problem, t, chunk, scratch)
        tile_fill(tile, groups + t, problem, chunk)
        state.maximum = tile_maximum(tile, n)
        state.reference = reference_for(state.maximum, &problem.scale)


cdef void tiles_exponentials(
    Group *groups, const Problem *problem, Py_ssize_t tiles, Py_ssize_t chunk, Scratch *scratch
) noexcept nogil:
    """Compute what is to be added up of each tile."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t t
    cdef TileTerms terms
    cdef ChunkState *state
    cdef real *tile
    cdef bint general
    terms.ahead_stride = problem.ahead_stride
    terms.pivot_logit = vector_set(0.0)
    terms.line = &scratch.line
    for t in range(tiles):
        tile = scratch.kept + t * problem.kept_stride
        state = tile_state(groups + t, problem, t, chunk, scratch)
        general = problem.scale.tempered or any_nonzero(state.reference.shift)
        terms.logits = tile
        terms.terms = tile_terms(problem, tile, n)
        terms.ahead = problem.logits.data + groups[t].logits.of_row[0] + problem.ahead
        if pivots_at_maximum(problem):
            terms.pivot = tile_find(tile, n, state.maximum)
            state.position = terms.pivot
        elif problem.operation == CROSS_ENTROPY:
            terms.pivot = classes_in_chunk(groups[t].labels, chunk)
        else:
            terms.exponentials = tile
            if general:
                tile_exponentials(&terms, n, state.reference, &problem.scale, False, True)
            else:
                tile_exponentials(&terms, n, state.reference, &problem.scale, False, False)
            continue
        terms.exponentials = NULL
        if problem.dense:
            tile_spread(problem, chunk, state, tile, tile + n * LANES, terms.terms)
            terms.exponentials = tile
        if general:
            tile_exponentials(&terms, n, state.reference, &problem.scale, True, True)
        else:
            tile_exponentials(&terms, n, state.reference, &problem.scale, True, False)
        # Where the pivot is the maximum finish_total() sets it anew, for rows without one.
        groups[t].own_logit = terms.pivot_logit


cdef void tiles_sum(
    Group *groups, const Problem *problem, Py_ssize_t tiles, Py_ssize_t chunk, Scratch *scratch
) noexcept nogil:
    """Add up the exponentials of each tile."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t t
    for t in range(tiles):
        tile_state(groups + t, problem, t, chunk, scratch).others = tile_sums(
            tile_terms(problem, scratch.kept + t * problem.kept_stride, n), n)


cdef inline ChunkState *chunk_state(
    Group *group, const Problem *problem, ChunkState *states, Py_ssize_t chunk
) noexcept nogil:
    """The state of a chunk: one of `states`, or that of the whole rows."""
    return &group.whole if problem.chunks == 1 else states + chunk


cdef inline void group_note_top(
    Group *group, Py_ssize_t chunk, const ChunkState *state, vector is_top
) noexcept nogil:
    """Remember the class of the maximum in the rows whose chunk `is_top` (not 0)."""
    cdef real[16] chosen
    cdef real[16] position
    cdef Py_ssize_t k
    vector_put(chosen, is_top)
    vector_put(position, state.position)
    for k in range(LANES):
        if chosen[k] != 0:
            group.top[k] = -1 if position[k] < 0 else <int64_t>position[k] + chunk * CHUNK


cdef inline void group_merge(
    Group *group, const Problem *problem, ChunkState *states
) noexcept nogil:
    """Bring the sums of the chunks to one reference, that of the whole row."""
    cdef Py_ssize_t chunk
    cdef Reference between
    cdef vector top, is_top
    cdef vector zero = vector_set(0.0)
    cdef vector one = vector_set(1.0)
    cdef vector lowest = vector_set(NEGATIVE_INFINITY)
    cdef mask occupied
    cdef Pair total, part
    if problem.chunks == 1:
        if problem.dense:
            group_note_top(group, 0, &group.whole, one)
        return
    group.whole.maximum = states[0].maximum
    for chunk in range(1, problem.chunks):
        group.whole.maximum = vector_maximum(states[chunk].maximum, group.whole.maximum)
    group.whole.reference = reference_for(group.whole.maximum, &problem.scale)
    total = pair_from(zero)
    group.whole.coefficients = zero
    group.whole.other_coefficients = zero
    group.whole.spread = zero
    top = one
    for chunk in range(problem.chunks):
        occupied = vector_greater(states[chunk].maximum, lowest)
        # The chunk's reference as seen from the row's: a power of two where neither is shifted.
        between.shift = zero
        between.exponent = vector_select(occupied, vector_subtract(
            group.whole.reference.exponent, states[chunk].reference.exponent), zero)
        states[chunk].factor = exponential_pair(
            vector_select(occupied, vector_subtract(
                states[chunk].reference.shift, group.whole.reference.shift), zero),
            between, &problem.scale)
        part = states[chunk].others
        if pivots_at_maximum(problem):
            # Each chunk left its own maximum out; only the row's is to stay out.
            is_top = vector_select(
                vector_equal(states[chunk].maximum, group.whole.maximum), top, zero)
            top = vector_subtract(top, is_top)
            group_note_top(group, chunk, states + chunk, is_top)
            part = pair_add(part, vector_select(vector_greater(is_top, zero), zero, exponential(
                states[chunk].maximum, states[chunk].reference, &problem.scale)))
        total = pair_merge_exactly(total, pair_product(part, states[chunk].factor))
        if problem.dense:
            # The chunk's spread is counted from its own maximum.
            group.whole.coefficients = vector_add(
                group.whole.coefficients, states[chunk].coefficients)
            group.whole.other_coefficients = vector_add(
                group.whole.other_coefficients, vector_select(
                    vector_greater(is_top, zero), states[chunk].other_coefficients,
                    states[chunk].coefficients))
            group.whole.spread = vector_add(group.whole.spread, vector_fma(
                states[chunk].coefficients,
                vector_select(
                    occupied, vector_subtract(group.whole.maximum, states[chunk].maximum), zero),
                states[chunk].spread))
    group.whole.others = total


# ---- finish ----------------------------------------------------------------------------------


cdef void groups_finish(Group *groups, const Problem *problem, Py_ssize_t count) noexcept nogil:
    """What the operation makes of the sums: results, and what the writing needs.

    Each step is done for all groups: few instructions wait for the one before them then.
    """
    cdef Py_ssize_t k
    if problem.operation == SOFTMAX:
        for k in range(count):
            finish_softmax(groups + k, problem)
    elif problem.operation == LOG_SOFTMAX:
        for k in range(count):
            finish_log_softmax(groups + k, problem)
    elif problem.operation == LOGSUMEXP:
        for k in range(count):
            finish_logsumexp(groups + k, problem)
    else:
        for k in range(count):
            finish_total(groups + k, problem)
        for k in range(count):
            finish_loss(groups + k, problem)
        if problem.output.data != NULL:
            for k in range(count):
                finish_gradient(groups + k, problem)


cdef inline void finish_softmax(Group *group, const Problem *problem) noexcept nogil:
    cdef vector zero = vector_set(0.0)
    cdef Pair total = with_exact_maximum(
        group.whole.others, group, problem, vector_equal(zero, zero))
    group.factor = pair_quotient(vector_set(OUTPUT_SCALE), total)
    if problem.empty_is_zero:
        group.factor = pair_select(row_is_empty(group), pair_from(zero), group.factor)


cdef inline void finish_logsumexp(Group *group, const Problem *problem) noexcept nogil:
    """Of a confident row, the maximum plus what the others add: near 0, too, none of it is lost."""
    cdef Pair own = exponential_pair(group.whole.maximum, group.whole.reference, &problem.scale)
    cdef vector confident = vector_add(
        group.whole.maximum, log_total_over_maximum(group, problem))
    group.result = vector_select(
        vector_greater(own.high, group.whole.others.high), confident, log_total(
            pair_merge(group.whole.others, own), group.whole.reference, &problem.scale))


cdef inline mask row_is_empty(const Group *group) noexcept nogil:
    """Whether there is no finite element: a NaN, which is never the maximum, is in the sum."""
    return vector_equal(
        vector_add(group.whole.others.high, group.whole.maximum), vector_set(NEGATIVE_INFINITY))


cdef inline void finish_log_softmax(Group *group, const Problem *problem) noexcept nogil:
    cdef vector zero = vector_set(0.0)
    cdef mask empty
    group.minus = group.whole.maximum
    group.factor = pair_from(log_total_over_maximum(group, problem))
    if problem.empty_is_zero:
        empty = row_is_empty(group)
        group.minus = vector_select(empty, zero, group.minus)
        group.factor = pair_select(empty, pair_from(zero), group.factor)


cdef inline vector log_total_over_maximum(
    const Group *group, const Problem *problem
) noexcept nogil:
    """log(sum(exp((x - maximum) / T))), where the pivot is the maximum."""
    cdef Pair own = exponential_pair(group.whole.maximum, group.whole.reference, &problem.scale)
    return negative_log_share(
        group.whole.others, own, group.whole.maximum, group.whole.reference, &problem.scale)


cdef inline vector product_or_zero(vector coefficient, vector x) noexcept nogil:
    """coefficient * x; 0 for a coefficient of 0, whatever it stands before."""
    cdef vector zero = vector_set(0.0)
    return vector_select(
        vector_equal(coefficient, zero), zero, vector_multiply(coefficient, x))


# The cross-entropy. With coefficients a_c that sum to A, and z = z_loss * logsumexp:
# loss = sum_c a_c (logsumexp - x_c / T) + z * logsumexp, times the row's weight;
# gradient_c = (p_c (A + 2 z) - a_c) / T, times the row's weight and share in the reduced loss.


cdef inline void finish_total(Group *group, const Problem *problem) noexcept nogil:
    """Add what was left out of the sum of exponentials: that of the label, or of the maximum."""
    if pivots_at_maximum(problem):
        group.own_logit = group.whole.maximum
    elif problem.passes != BY_TILES or problem.chunks > 1:
        # Tiles of one chunk have come across it: see tiles_exponentials().
        group.own_logit = label_logits(group, problem)
    group.own = exponential_pair(group.own_logit, group.whole.reference, &problem.scale)
    group.total = pair_merge(group.whole.others, group.own)


cdef inline void finish_loss(Group *group, const Problem *problem) noexcept nogil:
    cdef vector zero = vector_set(0.0)
    cdef bint by_label = problem.operation == CROSS_ENTROPY
    cdef bint weighted = problem.class_weight != NULL or problem.sample_weight.data != NULL
    # A tiny logarithm is lifted until its weights have made it larger.
    cdef mask tiny = vector_greater(zero, zero)
    cdef vector lift = vector_set(1.0)
    cdef vector log_share, top, loss
    cdef vector spread = zero, gap = zero, beside = zero
    log_share = negative_log_share(
        group.whole.others, group.own, group.own_logit, group.whole.reference, &problem.scale)
    group.from_z = zero
    if problem.dense:
        spread = vector_multiply(group.whole.spread, vector_set(problem.scale.inverse))
        beside = vector_absolute(spread)
        if by_label:
            # What the label is given on top of its share in the smoothing.
            gap = vector_select(
                vector_equal(group.label_weight, zero), zero, cooled_difference(
                    group.whole.maximum, label_logits(group, problem), &problem.scale))
            # The gap is lifted before it is weighted.
            beside = vector_maximum(beside, vector_multiply(gap, vector_maximum(
                vector_absolute(group.label_weight), vector_set(TWO_TO_MINUS_HEADROOM))))
    if problem.z_loss != 0:
        # Near 0 the logsumexp has the digits of what the others add to the largest.
        group.from_z = vector_select(
            vector_greater(group.own.high, group.whole.others.high),
            vector_fma(group.own_logit, vector_set(problem.scale.inverse), log_share),
            log_total(group.total, group.whole.reference, &problem.scale))
        beside = vector_maximum(beside, vector_absolute(vector_multiply(
            vector_multiply(group.from_z, vector_set(problem.z_loss)), group.from_z)))
    loss = log_share
    if weighted:
        loss = lifted_log_share(group.whole.others, group.own, loss, beside, &tiny)
        lift = vector_select(tiny, vector_set(TWO_TO_HEADROOM), lift)
    group.share = vector_set(1.0)
    if problem.dense:
        group.share = group.whole.coefficients
        top = loss
        loss = vector_fma(group.share, top, vector_multiply(spread, lift))
        if by_label:
            loss = vector_add(loss, product_or_zero(
                group.label_weight, vector_fma(gap, lift, top)))
            group.share = vector_add(group.share, group.label_weight)
    elif problem.class_weight != NULL:
        loss = product_or_zero(group.label_weight, loss)
        group.share = group.label_weight
    if problem.z_loss != 0:
        top = vector_multiply(group.from_z, vector_set(problem.z_loss))
        loss = vector_fma(vector_multiply(top, lift), group.from_z, loss)
        group.from_z = vector_add(top, top)
    if problem.sample_weight.data != NULL:
        loss = product_or_zero(group.sample_weight, loss)
    if weighted:
        loss = vector_select(tiny, vector_multiply(loss, vector_set(TWO_TO_MINUS_HEADROOM)), loss)
    group.result = vector_select(vector_greater(group.active, zero), loss, zero)


cdef inline void finish_gradient(Group *group, const Problem *problem) noexcept nogil:
    """The factors of the gradient."""
    cdef vector zero = vector_set(0.0)
    cdef vector share = group.share
    cdef vector row_scale
    cdef Pair total
    if problem.classes == 1 and not problem.dense:
        # Its probability is 1: what its coefficient gives and takes cancels, but for rounding.
        share = group.label_weight
    # The share in the mean first: of tiny weights a large multiple, it could not stand alone.
    row_scale = vector_set(problem.gradient_scale)
    if problem.sample_weight.data != NULL:
        row_scale = vector_multiply(row_scale, group.sample_weight)
    # Divided by the output's scale, instead of what it divides multiplied: that may be large.
    total = with_exact_maximum(
        group.total, group, problem, vector_greater(group.whole.maximum, group.own_logit))
    total.high = vector_multiply(total.high, vector_set(1.0 / OUTPUT_SCALE))
    total.low = vector_multiply(total.low, vector_set(1.0 / OUTPUT_SCALE))
    group.factor = pair_quotient(
        vector_multiply(row_scale, vector_add(share, group.from_z)), total)
    if problem.dense:
        finish_dense_gradient(group, problem, row_scale, total)
        return
    group.at_label = others_gradient(group, row_scale, group.label_weight, total)
    if problem.z_loss != 0:
        group.at_label = vector_add(group.at_label, output_product(
            group.own.high, pair_quotient(
                vector_multiply(row_scale, vector_add(
                    vector_subtract(share, group.label_weight), group.from_z)),
                total)))


cdef inline vector others_gradient(
    const Group *group, vector row_scale, vector share, Pair total
) noexcept nogil:
    """Minus the share of the others, where subtracting that of one from 1 would lose the digits."""
    return output_product(
        vector_subtract(
            vector_set(0.0), vector_add(group.whole.others.high, group.whole.others.low)),
        pair_quotient(vector_multiply(row_scale, share), total))


cdef inline void finish_dense_gradient(
    Group *group, const Problem *problem, vector row_scale, Pair total
) noexcept nogil:
    """What a coefficient takes off, and the entries that are computed on their own.

    At the maximum, the only entry whose probability can exceed 1/2, p * K - k is
    (the sum of the other k) - K * (1 - p); neither part loses digits.
    """
    cdef bint by_label = problem.operation == CROSS_ENTROPY
    cdef vector others = group.whole.other_coefficients
    cdef unsigned int confident = vector_mask_bits(vector_greater(
        group.own.high, vector_add(group.whole.others.high, group.whole.others.low)))
    cdef Py_ssize_t k
    cdef Pair own
    group.dense_factor = row_scale
    if by_label:
        others = other_coefficients_of_labels(group, problem)
        own = exponential_pair(
            label_logits(group, problem), group.whole.reference, &problem.scale)
        group.at_label = vector_fnma(
            group.dense_factor, label_coefficients(group, problem),
            output_product(own.high, group.factor))
    group.at_top = vector_fma(
        group.dense_factor, others, others_gradient(group, row_scale, group.share, total))
    if problem.z_loss != 0:
        group.at_top = vector_add(group.at_top, output_product(
            group.own.high, pair_quotient(vector_multiply(row_scale, group.from_z), total)))
    for k in range(LANES):
        if not confident >> k & 1:
            group.top[k] = -1


cdef inline vector label_coefficients(const Group *group, const Problem *problem) noexcept nogil:
    """The coefficient of each row's label under smoothing."""
    cdef vector even = vector_set(problem.label_smoothing / <real>problem.classes)
    if problem.class_weight != NULL:
        even = vector_multiply(even, label_class_weights(group, problem))
    return vector_add(even, group.label_weight)


cdef inline vector other_coefficients_of_labels(
    const Group *group, const Problem *problem
) noexcept nogil:
    """The sum of the coefficients but that of the maximum, under smoothing."""
    cdef real[16] weight
    cdef real[16] other
    cdef Py_ssize_t k
    cdef int64_t top
    vector_put(weight, group.label_weight)
    for k in range(LANES):
        top = max(<int64_t>0, group.top[k]) if k < group.rows else 0
        other[k] = problem.label_smoothing / <real>problem.classes * <real>(problem.classes - 1)
        if problem.other_coefficients != NULL:
            other[k] = problem.other_coefficients[top]
        if group.labels[k] != top:
            other[k] += weight[k]
    return vector_get(other)


cdef inline vector label_logits(const Group *group, const Problem *problem) noexcept nogil:
    cdef real[16] logit
    cdef Py_ssize_t k
    for k in range(LANES):
        logit[k] = 0
    for k in range(group.rows):
        logit[k] = storage_read(
            problem.logits.data + offset_of(&group.logits, k)
            + group.labels[k] * problem.logits.class_stride)
    return vector_get(logit)


cdef inline vector label_class_weights(const Group *group, const Problem *problem) noexcept nogil:
    cdef real[16] weight
    cdef Py_ssize_t k
    for k in range(LANES):
        weight[k] = problem.class_weight[max(<int64_t>0, group.labels[k])]
    return vector_get(weight)


cdef inline Pair with_exact_maximum(
    Pair total, const Group *group, const Problem *problem, mask where_
) noexcept nogil:
    """Add what the exponential of the maximum lost: all the error that a confident row has."""
    cdef Pair top = exponential_pair(group.whole.maximum, group.whole.reference, &problem.scale)
    if DIGITS_TO_SPARE or problem.classes == 1:
        return total    # the quotient of a single class is to be 1
    total.low = vector_add(total.low, vector_select(where_, top.low, vector_set(0.0)))
    return total


cdef inline void group_results(Group *group, const Problem *problem, real *results) noexcept nogil:
    """Hand the results of the group's rows over: to an array of rows, or to the task's sum."""
    cdef real[16] result
    cdef real[16] maximum
    cdef Py_ssize_t k
    vector_put(result, group.result)
    if problem.operation == LOGSUMEXP and vector_mask_bits(
        vector_equal(group.whole.maximum, vector_set(-NEGATIVE_INFINITY))
    ) != 0:
        vector_put(maximum, group.whole.maximum)
        for k in range(group.rows):
            if maximum[k] == -NEGATIVE_INFINITY and not row_has_nan(
                problem, offset_of(&group.logits, k)
            ):
                result[k] = maximum[k]
    if problem.task_losses != NULL or problem.row_losses != NULL:
        if group.rows == LANES:
            vector_put(results, vector_get(result))
        else:
            for k in range(group.rows):
                results[k] = result[k]
    if problem.result.data == NULL:
        return
    if group.rows == LANES and problem.result.row_stride == sizeof(storage):
        vector_store(<storage *>problem.result.data + group.first, vector_get(result))
    else:
        for k in range(group.rows):
            storage_write(
                problem.result.data + row_offset(&problem.result, group.first + k), result[k])


cdef bint row_has_nan(const Problem *problem, Py_ssize_t offset) noexcept nogil:
    cdef Py_ssize_t c
    cdef real x
    for c in range(problem.classes):
        x = storage_read(problem.logits.data + offset + c * problem.logits.class_stride)
        if x != x:
            return True
    return False


# ---- write -----------------------------------------------------------------------------------


cdef inline OutputKind output_kind(const Problem *problem) noexcept nogil:
    if problem.operation == LOG_SOFTMAX:
        return LOGARITHMS
    return FROM_KEPT if problem.keep else FROM_LOGITS


cdef inline Pair chunk_output(
    const Group *group, const Problem *problem, const ChunkState *state, Reference *reference
) noexcept nogil:
    """Return the factor, and set the reference, of the exponentials of a chunk.

    Far below the row's maximum a chunk's factor could underflow where its product with an
    exponential does not: such a chunk starts again from the row's reference.
    """
    cdef mask low
    reference[0] = state.reference
    if problem.chunks == 1 or problem.operation == LOG_SOFTMAX:
        return group.factor
    low = chunk_is_low(state)
    reference.shift = vector_select(low, group.whole.reference.shift, reference.shift)
    reference.exponent = vector_select(low, group.whole.reference.exponent, reference.exponent)
    return pair_select(low, group.factor, pair_product(group.factor, state.factor))


cdef inline mask chunk_is_low(const ChunkState *state) noexcept nogil:
    return vector_greater(vector_set(CHUNK_FACTOR_LIMIT), state.factor.high)


cdef struct RowsOutput:
    # What rows_write knows of a chunk of a group's rows.
    const Group *group
    Py_ssize_t chunk
    Py_ssize_t n
    real[16] minus
    real[16] at_label
    real[16] at_top
    real[16] factor
    real[16] factor_rest
    real[16] dense_factor
    real[16] shift
    real[16] exponent
    unsigned int low              # rows whose exponentials are to be computed again


cdef inline RowsOutput rows_output_open(
    const Group *group, const Problem *problem, Py_ssize_t chunk, const ChunkState *state
) noexcept nogil:
    cdef RowsOutput rows
    cdef Reference references
    cdef Pair factors = chunk_output(group, problem, state, &references)
    rows.group = group
    rows.chunk = chunk
    rows.n = chunk_length(problem, chunk)
    vector_put(rows.factor, factors.high)
    vector_put(rows.factor_rest, factors.low)
    vector_put(rows.shift, references.shift)
    vector_put(rows.exponent, references.exponent)
    if problem.operation == LOG_SOFTMAX:
        vector_put(rows.minus, group.minus)
    if problem.operation == CROSS_ENTROPY:
        vector_put(rows.at_label, group.at_label)
    if problem.dense:
        vector_put(rows.dense_factor, group.dense_factor)
        vector_put(rows.at_top, group.at_top)
    rows.low = 0
    if problem.chunks > 1 and problem.keep:
        rows.low = vector_mask_bits(chunk_is_low(state))
    return rows


cdef inline RowOutput rows_output_row(
    const RowsOutput *rows, const Problem *problem, Py_ssize_t k, Scratch *scratch
) noexcept nogil:
    cdef RowOutput row
    cdef Py_ssize_t start = rows.chunk * CHUNK
    row.kind = output_kind(problem)
    row.label = rows.group.labels[k] - start
    row.at_label = rows.at_label[k]
    row.dense = problem.dense
    if problem.dense:
        row.coefficients = coefficients_of(rows.group, problem, k, rows.chunk, scratch)
        row.dense_factor = vector_set(rows.dense_factor[k])
        row.top = rows.group.top[k] - start
        row.at_top = rows.at_top[k]
    if row.kind == FROM_KEPT and rows.low >> k & 1:
        row.kind = FROM_LOGITS
    row.kept = row_kept(rows.group, problem, k, rows.chunk, scratch.kept)
    row.x = NULL
    if row.kind != FROM_KEPT:
        row.x = contiguous_row(
            problem.logits.data + offset_of(&rows.group.logits, k)
            + start * problem.logits.class_stride,
            problem.logits.class_stride, rows.n, scratch.staged)
    row.reference.shift = vector_set(rows.shift[k])
    row.reference.exponent = vector_set(rows.exponent[k])
    row.minus = vector_set(rows.minus[k])
    row.factor.high = vector_set(rows.factor[k])
    row.factor.low = vector_set(rows.factor_rest[k])
    return row


cdef inline char *rows_output_address(
    const RowsOutput *rows, const Problem *problem, Py_ssize_t k
) noexcept nogil:
    return (
        problem.output.data + offset_of(&rows.group.output, k)
        + rows.chunk * CHUNK * problem.output.class_stride)


cdef inline void rows_write_row(
    const RowsOutput *rows, const Problem *problem, Py_ssize_t k, Scratch *scratch
) noexcept nogil:
    """Write one chunk of one row."""
    cdef char *out = rows_output_address(rows, problem, k)
    cdef bint direct = problem.output.class_stride == sizeof(storage)
    cdef RowOutput row
    cdef Py_ssize_t c
    if rows.group.ignored >> k & 1:
        seams_close(&scratch.seams)
        for c in range(rows.n):
            storage_write(out + c * problem.output.class_stride, 0)
        return
    row = rows_output_row(rows, problem, k, scratch)
    if direct:
        row_write(
            &row, rows.n, &problem.scale, <storage *>out, problem.stream, &scratch.seams)
        return
    row_write(&row, rows.n, &problem.scale, scratch.staged, False, &scratch.seams)
    for c in range(rows.n):
        memcpy(out + c * problem.output.class_stride, scratch.staged + c, sizeof(storage))


cdef inline void rows_write(
    const Group *group, const Problem *problem, Py_ssize_t chunk, const ChunkState *state,
    Scratch *scratch,
) noexcept nogil:
    """Write one chunk of the group's rows, one after the other."""
    cdef RowsOutput rows = rows_output_open(group, problem, chunk, state)
    cdef Py_ssize_t k
    for k in range(group.rows):
        rows_write_row(&rows, problem, k, scratch)


cdef inline TileOutput tile_output_open(
    Group *group, const Problem *problem, Py_ssize_t chunk, ChunkState *state, real *tile
) noexcept nogil:
    """Describe the output of one chunk of a tile."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef TileOutput output
    output.kind = FROM_KEPT
    if problem.operation == LOG_SOFTMAX:
        output.kind = LOGARITHMS
        output.minus = group.minus
    elif problem.chunks > 1:
        output.kind = FROM_LOGITS
    output.dense = problem.dense
    if problem.dense:
        output.coefficients = tile_coefficients_of(problem, chunk, tile + n * LANES)
        output.dense_factor = group.dense_factor
        output.top = classes_in_chunk(group.top, chunk)
        output.at_top = group.at_top
    output.values = tile
    output.factor = chunk_output(group, problem, state, &output.reference)
    output.by_label = problem.operation == CROSS_ENTROPY
    if output.by_label:
        output.label = classes_in_chunk(group.labels, chunk)
        output.at_label = group.at_label
    output.active = group.active
    return output


cdef void tiles_write(
    Group *groups, const Problem *problem, Py_ssize_t tiles, Scratch *scratch
) noexcept nogil:
    """Write tiles whose rows lie one behind the other, all of them."""
    cdef Py_ssize_t n = problem.classes
    cdef Py_ssize_t t
    cdef TileOutput output
    cdef Line *line = &scratch.line
    cdef storage *out = <storage *>(problem.output.data + groups[0].output.of_row[0])
    # What is unpacked may reach past the end of a row: not where it has whole words only.
    cdef bint direct = (
        not problem.stream and n >= QUARTER_CLASSES and n % WORD_CLASSES == 0)
    cdef storage *unpacked = out if direct else line.elements + line.pending
    for t in range(tiles):
        output = tile_output_open(
            groups + t, problem, 0, &groups[t].whole, scratch.kept + t * problem.kept_stride)
        tile_unpack(
            &output, n, &problem.scale, scratch.kept + t * problem.kept_stride,
            unpacked + t * n * LANES)
    if not direct:
        # The lines are written while the next batch is worked on.
        lines_open(line, out, tiles * n * LANES, problem.stream)


cdef void tile_write(
    Group *group, const Problem *problem, Py_ssize_t chunk, ChunkState *state, real *tile
) noexcept nogil:
    """Write one chunk of a tile of any layout."""
    cdef TileOutput output
    if problem.chunks > 1:
        tile_fill(tile, group, problem, chunk)
    output = tile_output_open(group, problem, chunk, state, tile)
    tile_store(
        &output, chunk_length(problem, chunk), &problem.scale,
        problem.output.data + chunk * CHUNK * problem.output.class_stride,
        problem.output.class_stride, &group.output, group.rows, problem.stream)


# ---- tasks -------------------------------------------------------------------------------------


cdef size_t scratch_size(const Problem *problem) noexcept nogil:
    cdef size_t size = scratch_place(problem, NULL, NULL)
    if problem.by_rows != NULL:
        size = max(size, scratch_place(problem.by_rows, NULL, NULL))
    return size


cdef size_t scratch_place(const Problem *problem, char *memory, Scratch *scratch) noexcept nogil:
    """Lay the parts of a thread's scratch memory out; return how many bytes they take."""
    cdef Py_ssize_t columns = min(<Py_ssize_t>CHUNK, problem.classes)
    cdef size_t states = problem.chunks * sizeof(ChunkState)
    cdef size_t kept = 0, staged = 0, results = 0, target = 0
    cdef size_t line = 2 * LANES * sizeof(storage)
    if problem.passes == BY_ROWS:
        line *= SEAMS
        staged = problem.rows_at_once * columns * sizeof(storage)
    else:
        line += problem.batch * (columns + 1) * LANES * sizeof(storage)
    if problem.passes == BY_TILES:
        states *= problem.batch
        kept = problem.batch * problem.kept_stride * sizeof(real)
    elif problem.keep and not problem.keep_in_output:
        kept = problem.rows_per_group * problem.kept_stride * sizeof(real)
    if problem.task_losses != NULL:
        results = (problem.rows_per_task + LANES) * sizeof(real)
    if problem.operation == SOFT_CROSS_ENTROPY:
        target = columns * sizeof(storage)
    states = round_up(states)
    kept = round_up(kept)
    line = round_up(line)
    staged = round_up(staged)
    results = round_up(results)
    if scratch != NULL:
        # The results first: at the same place however the rows are worked on.
        scratch.results = <real *>memory
        memory += results
        scratch.states = <ChunkState *>memory
        scratch.kept = <real *>(memory + states)
        memory += states + kept
        scratch.line.elements = <storage *>memory
        scratch.line.pending = 0
        scratch.line.lines = 0
        scratch.line.rest = 0
        scratch.seams.lines = <storage *>memory
        scratch.seams.whole = 0
        scratch.seams.written = 0
        scratch.seams.pending = 0
        scratch.staged = <storage *>(memory + line)
        scratch.target = <storage *>(memory + line + staged)
    return round_up(states + kept + line + staged + results + target)


cdef inline size_t round_up(size_t size) noexcept nogil:
    return (size + 63) // 64 * 64


cdef void run_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    """Work through the rows of one task of a Problem."""
    cdef const Problem *problem = <const Problem *>context
    cdef Py_ssize_t first = task * problem.rows_per_task
    cdef Py_ssize_t stop = min(first + problem.rows_per_task, problem.rows)
    cdef Py_ssize_t row = first
    cdef const Problem *rest = problem
    cdef real *results
    cdef Scratch scratch
    cdef environment before = environment_enter()
    scratch_place(problem, memory, &scratch)
    results = scratch.results
    if problem.row_losses != NULL:
        results = problem.row_losses + first
    if problem.passes != BY_ROWS:
        row = stop
        if problem.by_rows != NULL:
            rest = problem.by_rows
            row -= (stop - first) % LANES
        scratch.results = results
        run_tiles(problem, first, row, &scratch)
    if row < stop:
        scratch_place(rest, memory, &scratch)
        scratch.results = results + (row - first)
        run_rows(rest, row, stop, &scratch)
    if problem.task_losses != NULL:
        problem.task_losses[task] = sum_in_double(results, stop - first)
    if problem.stream:
        stores_finish()
    environment_leave(before)


cdef void run_rows(
    const Problem *problem, Py_ssize_t first, Py_ssize_t stop, Scratch *scratch
) noexcept nogil:
    cdef Py_ssize_t row = first, chunk
    cdef Group group
    while row < stop:
        group_open(&group, problem, row, min(problem.rows_per_group, stop - row))
        for chunk in range(problem.chunks):
            rows_forward(
                &group, problem, chunk, chunk_state(&group, problem, scratch.states, chunk),
                scratch)
        group_merge(&group, problem, scratch.states)
        groups_finish(&group, problem, 1)
        group_results(&group, problem, scratch.results + (row - first))
        row += group.rows
        if problem.output.data != NULL:
            for chunk in range(problem.chunks):
                rows_write(
                    &group, problem, chunk,
                    chunk_state(&group, problem, scratch.states, chunk), scratch)
    seams_close(&scratch.seams)


cdef inline Py_ssize_t rows_of_tile(
    const Problem *problem, Py_ssize_t row, Py_ssize_t stop
) noexcept nogil:
    """How many rows make the next tile: LANES, or as many as end at the end of a cache line."""
    cdef Py_ssize_t rows = min(<Py_ssize_t>LANES, stop - row)
    cdef Py_ssize_t inner
    if problem.by_lines:
        inner = row % problem.output.inner_length
        rows = min(rows, problem.output.inner_length - inner)
        inner = stream_head(
            <storage *>(problem.output.data + row_offset(&problem.output, row)))
        if inner > 0:
            rows = min(rows, inner)
    return rows


cdef void run_tiles(
    const Problem *problem, Py_ssize_t first, Py_ssize_t stop, Scratch *scratch
) noexcept nogil:
    """A batch of tiles goes through each step before the next: no tile waits for another."""
    cdef Py_ssize_t row = first, chunk, k, tiles, whole
    cdef Group[BATCH] groups
    cdef bint packed = (
        problem.chunks == 1 and problem.output.class_stride == sizeof(storage)
        and problem.output.row_stride == problem.classes * <Py_ssize_t>sizeof(storage))
    while row < stop:
        tiles = 0
        while tiles < problem.batch and row < stop:
            group_open(groups + tiles, problem, row, rows_of_tile(problem, row, stop))
            row += groups[tiles].rows
            tiles += 1
        for chunk in range(problem.chunks):
            tiles_fill(groups, problem, tiles, chunk, scratch)
            tiles_exponentials(groups, problem, tiles, chunk, scratch)
            tiles_sum(groups, problem, tiles, chunk, scratch)
        if problem.chunks > 1 or problem.dense:
            for k in range(tiles):
                group_merge(groups + k, problem, scratch.states + k * problem.chunks)
        groups_finish(groups, problem, tiles)
        for k in range(tiles):
            group_results(groups + k, problem, scratch.results + (groups[k].first - first))
        if problem.output.data == NULL:
            continue
        # The last tile of all may have fewer rows.
        whole = tiles if groups[tiles - 1].rows == LANES else tiles - 1
        if not packed:
            whole = 0
        lines_close(&scratch.line)
        if whole > 0:
            tiles_write(groups, problem, whole, scratch)
        if whole < tiles:
            lines_close(&scratch.line)
            line_flush(&scratch.line)
        for k in range(whole, tiles):
            for chunk in range(problem.chunks):
                tile_write(
                    groups + k, problem, chunk,
                    tile_state(groups + k, problem, k, chunk, scratch),
                    scratch.kept + k * problem.kept_stride)
    lines_close(&scratch.line)
    line_flush(&scratch.line)


cdef double sum_in_double(const real *x, Py_ssize_t n) noexcept nogil:
    """The sum in an order fixed by n alone: eight lanes, then one after the other."""
    cdef double[8] lane
    cdef double total = 0
    cdef Py_ssize_t i, k
    for k in range(8):
        lane[k] = 0
    for i in range(0, n - 7, 8):
        for k in range(8):
            lane[k] += x[i + k]
    for i in range(n // 8 * 8, n):
        lane[i % 8] += x[i]
    for k in range(8):
        total += lane[k]
    return total


# Few long rows: a task is one chunk of one row.


cdef struct LongRows:
    const Problem *problem
    ChunkState *states    # of all chunks of all rows
    Group *groups         # of each row, merged


cdef void forward_chunk_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const LongRows *rows = <const LongRows *>context
    cdef const Problem *problem = rows.problem
    cdef Scratch scratch
    cdef Group group
    cdef environment before = environment_enter()
    scratch_place(problem, memory, &scratch)
    group_open(&group, problem, task // problem.chunks, 1)
    rows_forward(&group, problem, task % problem.chunks, rows.states + task, &scratch)
    environment_leave(before)


cdef void merge_rows_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    """Merge the chunks of all rows: a single task."""
    cdef const LongRows *rows = <const LongRows *>context
    cdef const Problem *problem = rows.problem
    cdef Py_ssize_t row
    cdef real[16] result
    cdef environment before = environment_enter()
    for row in range(problem.rows):
        group_open(rows.groups + row, problem, row, 1)
        group_merge(rows.groups + row, problem, rows.states + row * problem.chunks)
        groups_finish(rows.groups + row, problem, 1)
        group_results(rows.groups + row, problem, result)
        if problem.row_losses != NULL:
            problem.row_losses[row] = result[0]
    environment_leave(before)


cdef void write_chunk_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const LongRows *rows = <const LongRows *>context
    cdef const Problem *problem = rows.problem
    cdef Scratch scratch
    cdef environment before = environment_enter()
    scratch_place(problem, memory, &scratch)
    rows_write(
        rows.groups + task // problem.chunks, problem, task % problem.chunks, rows.states + task,
        &scratch)
    seams_close(&scratch.seams)
    if problem.stream:
        stores_finish()
    environment_leave(before)

# What the passes know of rows: where they lie, the state that their classes are absorbed into, how
# two states merge, and the recipe by which results are made.
#
# Uses problem.pxd, numbers.pxd, panel.pxi, writer.pxi.

cdef enum:
    LABELS_AHEAD = 1024    # bytes of labels that are on their way from memory


cdef struct Offsets:
    # Where a group's rows lie in an array.
    Py_ssize_t step            # from one to the next; 0 if uneven, or fewer than LANES
    Py_ssize_t[16] of_row      # of each; where there is a step, of the first alone


cdef struct RowState:
    # What is known of some classes of LANES rows, a row in each lane.
    vector maximum
    Reference reference
    DoubleDouble others              # sum of the exponentials, without the one that is left out
    vector position                  # of the maximum among the classes, where that is the one; -1
    DoubleDouble factor              # from this reference to that of the merged state
    DoubleDouble other_coefficients  # of the coefficients, the sum without the maximum's own,
    vector own_coefficient           # that one; or its factor,
    vector spread                    # and the sum of coefficient * (maximum - x)
    DoubleDouble rest                # `others` with the maximum left out instead of the label,
    DoubleDouble below               # and how many classes are not above the label: see sums_rest()


cdef struct Curvature:
    # How the diagonal of the Hessian is made, a row in each lane:
    #     exponential * factor * unscale * (1 - exponential * share).
    DoubleDouble factor
    vector unscale
    DoubleDouble share       # 1 / the sum of the exponentials
    vector at_top            # what the class `top`, more likely than all others, gets instead;
    int64_t[16] top          # outside of the row for none


cdef struct Recipe:
    # How results are made, a row in each lane:
    #     (exponential * factor - coefficient * coefficient_factor) * unscale, or of logarithms
    #     (logit - minus) / T - factor.
    DoubleDouble factor
    vector unscale
    vector minus
    vector coefficient_factor
    vector at_label          # what the class `label` gets instead, or as its coefficient,
    vector at_top            # and before it the class `top`; outside of the row for none
    int64_t[16] top
    Curvature curvature


cdef struct RowFactors:
    # What multiplies a row's gradient, a row in each lane, all but `power` times 2**HEADROOM and
    # divided by it: the row's weight times
    DoubleDouble whole   # the sum of its coefficients and what z_loss adds,
    DoubleDouble target  # the sum of its coefficients,
    DoubleDouble rest    # what z_loss adds,
    vector coefficient   # 1
    vector lift          # what totals are to be multiplied by: 1 but for the largest weights
    vector power         # a power of two, so that none of these leaves the range


cdef struct Scaled:
    # A number, with what it misses, times a power of two.
    double number
    double rest
    int power


cdef struct CommonFactors:
    Scaled of_all            # what is multiplied in every row,
    RowFactors alike         # and the factors of rows that weigh alike, of which the class
    #                          probabilities, if there are such, sum to 1


cdef struct EvenTarget:
    # Coefficients under label smoothing, where rows weigh alike:
    double of_all                    # the sum of what smoothing gives to all classes,
    DoubleDouble others              # to all but the maximum,
    DoubleDouble others_and_label    # and with what it leaves to the label;
    vector at_label                  # the label's own


cdef struct Common:
    # What rows that weigh alike have in common:
    CommonFactors[2] factors    # for gradient and Hessian,
    EvenTarget even             # and for dense targets


cdef struct GroupWeights:
    bint given               # else none is set here: see weighs_alike()
    double[16] label         # class weight at the label, less what smoothing takes
    double[16] sample
    double[16] even          # what smoothing gives to each class, where that depends on the row,
    unsigned int unmasked    # and, bit k, whether it gives that to all classes of row k


cdef struct PairSum:
    # What an operation sums over classes of a row in two arrays.
    double sum
    double rest        # what the sum lost
    double left_out    # the sum of what is left out of it


cdef struct PairSums:
    # Those of the rows of a group.
    double[16] sum
    double[16] rest
    double[16] left_out


cdef struct Group:
    # Up to LANES rows, a row in each lane.
    int64_t[16] labels
    Py_ssize_t first
    Py_ssize_t rows
    Offsets[WEIGHT] offsets    # by Role, of those before WEIGHT that have no row_stride
    unsigned int ignored       # bit k: row k is taken out
    GroupWeights weights
    PairSums sums              # of two arrays
    bint own_is_known          # a tile has come across own_logit
    RowState whole             # all classes
    vector own_logit           # what is left out of the sum,
    DoubleDouble own           # its exponential
    DoubleDouble total         # and the sum with it
    double[16] from_z          # 2 * z_loss * logsumexp,
    double[16] from_z_lost     # and what that misses
    double[16] result
    Recipe recipe


cdef inline bint is_in_tile(const Group *group, const Problem *problem) noexcept nogil:
    """Whether all exponentials of a group are in a tile; a rest along rows is no whole group."""
    return problem.plan.passes == ACROSS and problem.plan.chunks == 1 and not (
        problem.plan.rest_along and group.rows < LANES)


cdef inline void offsets_fill(
    Offsets *offsets, const Layout *layout, const Array *array, Py_ssize_t first, Py_ssize_t rows
) noexcept nogil:
    """Find rows that have no one stride."""
    cdef Py_ssize_t k, within = first % layout.inner
    cdef Py_ssize_t start = row_offset(layout, array, first) - within * array.inner_stride
    offsets.step = array.inner_stride if rows == LANES and within + rows <= layout.inner else 0
    offsets.of_row[0] = start + within * array.inner_stride
    if offsets.step != 0:
        return
    for k in range(rows):
        offsets.of_row[k] = start + within * array.inner_stride
        within += 1
        if within == layout.inner:
            within = 0
            # Without dividing, if there is but one axis before.
            start = (
                start + array.strides[0] if layout.row_axes == 2
                else row_offset(layout, array, first + k + 1))


cdef inline Py_ssize_t chunk_length(const Problem *problem, Py_ssize_t chunk) noexcept nogil:
    return min(<Py_ssize_t>CHUNK, problem.layout.classes - chunk * CHUNK)


cdef inline Py_ssize_t in_group(
    const Group *group, const Problem *problem, Role role, Py_ssize_t k
) noexcept nogil:
    """Where row k of a group begins in an array."""
    cdef const Offsets *offsets = &group.offsets[<int>role]
    cdef Py_ssize_t step = problem.arrays[<int>role].row_stride
    if step != 0:
        return (group.first + k) * step
    if offsets.step != 0:
        return offsets.of_row[0] + k * offsets.step
    return offsets.of_row[k]


cdef inline Py_ssize_t step_in_group(
    const Group *group, const Problem *problem, Role role
) noexcept nogil:
    """Bytes from one row of a whole group to the next; 0 if it is none, or they are uneven."""
    cdef Py_ssize_t step = problem.arrays[<int>role].row_stride
    if group.rows < LANES:
        return 0
    return step if step != 0 else group.offsets[<int>role].step


cdef struct Ahead:
    # What is fetched from memory while something else is worked on,
    const char *start
    Py_ssize_t step     # and how far on with each class


cdef inline void fetch(const Ahead *ahead, Py_ssize_t c) noexcept nogil:
    prefetch(ahead.start + c * ahead.step)


cdef inline Py_ssize_t bytes_ahead(const Problem *problem, Role role) noexcept nogil:
    """How far ahead to fetch in an array of the batch's size."""
    return problem.plan.ahead // problem.arrays[<int>INPUT].size * problem.arrays[<int>role].size


cdef inline Ahead row_ahead(
    const Group *group, const Problem *problem, Role role, Py_ssize_t k, Py_ssize_t chunk
) noexcept nogil:
    """What is fetched while a chunk of row k is worked on."""
    cdef const Array *array = &problem.arrays[<int>role]
    return Ahead(
        array.data + in_group(group, problem, role, k) + chunk * CHUNK * array.size
        + bytes_ahead(problem, role), array.size)


# ---- opening a group -----------------------------------------------------------------------------


cdef inline void group_open(
    Group *group, const Problem *problem, Py_ssize_t first, Py_ssize_t rows
) noexcept nogil:
    cdef int role
    group.first = first
    group.rows = rows
    group.ignored = 0
    group.weights.given = False
    group.own_is_known = False
    if not problem.layout.even:
        for role in range(<int>WEIGHT):
            if has(problem, <Role>role) and problem.arrays[role].row_stride == 0:
                offsets_fill(
                    &group.offsets[role], &problem.layout, &problem.arrays[role], first, rows)
    if has(problem, LABELS):
        group_labels(group, problem)
    if has(problem, SAMPLE_WEIGHT):
        group_sample_weights(group, problem)
    if shares_by_row(problem):
        group_shares(group, problem)


cdef inline void group_labels(Group *group, const Problem *problem) noexcept nogil:
    """Read the labels, and the weights of their classes."""
    cdef int64_t last = problem.layout.classes - (not problem.shard.given)
    cdef int64_t label
    cdef unsigned int ignored = 0
    cdef const Array *array = &problem.arrays[<int>LABELS]
    cdef const char *start = array.data + row_offset(&problem.layout, array, group.first)
    cdef Py_ssize_t k
    if array.row_stride == array.size or group.rows == 1:
        prefetch_near(start + LABELS_AHEAD)
        prefetch_near(start + LABELS_AHEAD + 64)
    if not (
        array.kind == KIND_INT64 and array.row_stride == sizeof(int64_t)
        and group.rows == LANES and not array.swapped
    ):
        group_labels_read(group, problem)
        start = <const char *>group.labels
    if labels_take(
        group.labels, start, problem.options.ignore_index, problem.layout.classes
    ):
        for k in range(LANES):
            ignored |= <unsigned int>(group.labels[k] == problem.options.ignore_index) << k
        group.ignored |= ignored
        for k in range(LANES):
            label = 0 if ignored >> k & 1 else group.labels[k]
            # They were checked, but another Python thread may have changed them since.
            group.labels[k] = max(<int64_t>0, min(label, last))
    if not weighs_alike(problem) and (
        problem.options.class_weight != NULL or problem.options.label_smoothing != 0
    ):
        group_label_weights(group, problem)


cdef void group_labels_read(Group *group, const Problem *problem) noexcept nogil:
    cdef const Array *array = &problem.arrays[<int>LABELS]
    cdef const char *start = array.data + row_offset(&problem.layout, array, group.first)
    cdef Py_ssize_t k
    for k in range(LANES):
        group.labels[k] = 0
    if array.row_stride == array.size or group.rows == 1:
        labels_read(group.labels, start, array.size, group.rows, array.kind, array.swapped)
        return
    for k in range(group.rows):
        labels_read(
            group.labels + k,
            array.data + row_offset(&problem.layout, array, group.first + k), 0, 1,
            array.kind, array.swapped)


cdef void group_label_weights(Group *group, const Problem *problem) noexcept nogil:
    cdef double share = 1 - problem.options.label_smoothing
    cdef const double *class_weight = problem.options.class_weight
    cdef unsigned int nothing = 0
    cdef Py_ssize_t k
    group.weights.given = True
    for k in range(LANES):
        group.weights.label[k] = share
        group.weights.sample[k] = 1
    if class_weight == NULL:
        return
    for k in range(LANES):
        if group.labels[k] < problem.layout.classes:
            group.weights.label[k] *= class_weight[group.labels[k]]
        nothing |= <unsigned int>(group.weights.label[k] == 0) << k
    if not is_dense(problem.operation) and problem.options.z_loss == 0:
        # Nothing is left of these rows.
        group.ignored |= nothing


cdef void group_sample_weights(Group *group, const Problem *problem) noexcept nogil:
    cdef Py_ssize_t k
    cdef unsigned int nothing = 0
    for k in range(LANES):
        group.weights.sample[k] = 1
    if not group.weights.given:
        for k in range(LANES):
            group.weights.label[k] = 1
    group.weights.given = True
    sample_weights_read(group.weights.sample, problem, group.first, group.rows)
    for k in range(LANES):
        # It takes the row out, whatever the row holds.
        nothing |= <unsigned int>(group.weights.sample[k] == 0) << k
    group.ignored |= nothing


cdef Py_ssize_t classes_allowed(
    const Group *group, const Problem *problem, Py_ssize_t k
) noexcept nogil:
    """How many classes of a row the mask includes."""
    cdef const Array *included = &problem.arrays[<int>MASK]
    cdef const char *start = included.data + in_group(group, problem, MASK, k)
    cdef Py_ssize_t c, count = 0
    if has_neighbours(&problem.layout, included):
        for c in range(problem.layout.classes):
            count += start[c] != 0
    else:
        for c in range(problem.layout.classes):
            count += start[class_offset(&problem.layout, included, c)] != 0
    return count


cdef void group_shares(Group *group, const Problem *problem) noexcept nogil:
    cdef Py_ssize_t k, allowed
    group.weights.unmasked = 0
    for k in range(LANES):
        group.weights.even[k] = group.weights.even[0]
        if k < group.rows and problem.shard.given:
            group.weights.even[k] = shard_share(problem, group.first + k)
        elif k < group.rows:
            allowed = classes_allowed(group, problem, k)
            group.weights.even[k] = even_share(problem, allowed)
            group.weights.unmasked |= <unsigned int>(allowed == problem.layout.classes) << k


cdef inline bint is_excluded(
    const Group *group, const Problem *problem, Py_ssize_t k, Py_ssize_t c
) noexcept nogil:
    """Whether a mask excludes class c of row k."""
    cdef const Array *included = &problem.arrays[<int>MASK]
    return included.data != NULL and included.data[
        in_group(group, problem, MASK, k) + class_offset(&problem.layout, included, c)] == 0


cdef inline vector label_logits(
    const Group *group, const Problem *problem, const Softcap *cap
) noexcept nogil:
    """The logit of each row's label, capped; -inf where a mask excludes it."""
    cdef const Array *array = &problem.arrays[<int>INPUT]
    cdef const char *row = array.data + in_group(group, problem, INPUT, 0)
    cdef Py_ssize_t step = step_in_group(group, problem, INPUT)
    cdef real[16] logit
    cdef char[128] half    # of a type of two bytes
    cdef Py_ssize_t k
    if (
        not kind_has_vectors(array.kind) or array.swapped
        or has(problem, MASK) or problem.layout.class_axes > 1
        or problem.options.softcap != 0 or problem.shard.given
    ):
        return label_logits_anywhere(group, problem, cap)
    if step == 0:
        memset(logit, 0, sizeof(logit))
        for k in range(group.rows):
            logit[k] = real_read(
                array, array.data + in_group(group, problem, INPUT, k)
                + group.labels[k] * array.class_stride)
        return vector_load(logit)
    if array.kind == REAL_KIND:
        for k in range(LANES):
            memcpy(
                &logit[k], row + k * step + group.labels[k] * array.class_stride, sizeof(real))
        return vector_load(logit)
    for k in range(LANES):
        memcpy(
            half + 2 * k, row + k * step + group.labels[k] * array.class_stride, 2)
    return kind_vector(half, array.kind)


cdef vector label_logits_anywhere(
    const Group *group, const Problem *problem, const Softcap *cap
) noexcept nogil:
    """The same, whatever the layout and what comes before the logits."""
    cdef const Array *array = &problem.arrays[<int>INPUT]
    cdef real[16] logit
    cdef char[128] raw
    cdef Py_ssize_t[16] offsets
    cdef Py_ssize_t k
    memset(logit, 0, sizeof(logit))
    if problem.shard.given:
        # Its class may be another shard's.
        for k in range(group.rows):
            logit[k] = <real>shard_head(problem, group.first + k).logit
    else:
        for k in range(group.rows):
            offsets[k] = in_group(group, problem, INPUT, k) + class_offset(
                &problem.layout, array, group.labels[k])
        elements_collect(raw, array.data, offsets, group.rows, array.size)
        if array.swapped:
            elements_swap(raw, group.rows, array.size)
        numbers_load(logit, raw, group.rows, array.kind)
        for k in range(group.rows if has(problem, MASK) else 0):
            if is_excluded(group, problem, k, group.labels[k]):
                logit[k] = NEGATIVE_INFINITY
    if problem.options.softcap != 0:
        return softcapped(vector_load(logit), cap)
    return vector_load(logit)


cdef inline void own_logit_find(
    Group *group, const Problem *problem, const Softcap *cap
) noexcept nogil:
    if not group.own_is_known:
        group.own_logit = label_logits(group, problem, cap)
        group.own_is_known = True


# ---- merging -------------------------------------------------------------------------------------


cdef inline void group_note_top(
    Group *group, Py_ssize_t chunk, const RowState *state, unsigned int rows
) noexcept nogil:
    """Remember the class of the maximum in some rows, bits, that is in this chunk."""
    cdef real[16] position
    cdef int64_t first = chunk * CHUNK
    cdef int64_t top
    cdef Py_ssize_t k
    vector_store(position, state.position)
    for k in range(LANES):
        top = <int>position[k]
        top = -1 if top < 0 else first + top
        group.recipe.top[k] = top if rows >> k & 1 else group.recipe.top[k]


cdef void group_merge(
    Group *group, const Problem *problem, RowState *states, const Scale *scale
) noexcept nogil:
    """Bring the states of all chunks to one reference, that of the whole row."""
    cdef Py_ssize_t chunk
    cdef vector first = vector_set(1.0)
    cdef vector maximum = states[0].maximum
    cdef RowState state
    if problem.plan.chunks == 1:
        if notes_maximum(problem.operation):
            group_note_top(group, 0, &group.whole, ~<unsigned int>0)
        return
    for chunk in range(1, problem.plan.chunks):
        maximum = vector_maximum(states[chunk].maximum, maximum)
    state_open(&group.whole, maximum, scale)
    for chunk in range(problem.plan.chunks):
        state_set_factor(states + chunk, &group.whole, scale)
        state = states[chunk]
        state_merge(group, problem, &state, chunk, &first, scale)


cdef inline void state_open(RowState *whole, vector maximum, const Scale *scale) noexcept nogil:
    """The state of rows of that maximum, of which nothing is summed yet."""
    whole.maximum = maximum
    whole.reference = reference_for(maximum, scale)
    whole.others = double_double_from(vector_set(0.0))
    whole.other_coefficients = whole.others
    whole.own_coefficient = vector_set(0.0)
    whole.spread = vector_set(0.0)
    whole.rest = whole.others
    whole.below = whole.others


cdef inline void state_set_factor(
    RowState *state, const RowState *whole, const Scale *scale
) noexcept nogil:
    """Its reference as seen from the row's: a power of two where neither is shifted."""
    cdef vector zero = vector_set(0.0)
    cdef mask occupied = vector_greater(state.maximum, vector_set(NEGATIVE_INFINITY))
    cdef Reference between
    between.shift = zero
    between.exponent = vector_select(occupied, vector_subtract(
        whole.reference.exponent, state.reference.exponent), zero)
    state.factor = exponential_pair(
        vector_select(occupied, vector_subtract(
            state.reference.shift, whole.reference.shift), zero),
        between, scale)


cdef inline void state_merge(
    Group *group, const Problem *problem, RowState *state, Py_ssize_t chunk, vector *first,
    const Scale *scale,
) noexcept nogil:
    """Add one state, which it uses up, to that of the whole row.

    `first` is 1 where no maximum was left out yet.
    """
    cdef RowState *whole = &group.whole
    cdef vector zero = vector_set(0.0)
    cdef vector is_top, coefficient, gap
    cdef vector left_out = zero
    cdef DoubleDouble part
    cdef mask chosen = vector_greater(zero, zero)
    if any_lane(vector_greater(vector_set(1 / TWO_TO_64), state.factor.high)):
        state_lift(state, problem, whole, scale)
    if wants_entropy(problem):
        state_scale_coefficients(state)
    if leaves_out_maximum(problem.operation) or sums_rest(problem):
        # Each left its own maximum out; only the row's, the first of them, is to stay out.
        is_top = vector_select(vector_equal(state.maximum, whole.maximum), first[0], zero)
        first[0] = vector_subtract(first[0], is_top)
        chosen = vector_greater(is_top, zero)
        group_note_top(group, chunk, state, vector_mask_bits(chosen))
        left_out = exponential(state.maximum, state.reference, scale)
        if is_weighted(problem):
            left_out = vector_multiply(left_out, state.own_coefficient)
        left_out = vector_select(chosen, zero, left_out)
        whole.own_coefficient = vector_select(
            chosen, state.own_coefficient, whole.own_coefficient)
    if sums_rest(problem):
        whole.rest = double_double_merge(whole.rest, double_double_product(
            double_double_add(state.rest, left_out), state.factor))
        whole.below = double_double_merge(whole.below, state.below)
        left_out = zero
    part = double_double_product(double_double_add(state.others, left_out), state.factor)
    if is_weighted(problem):
        # Without fused multiply-adds, what the largest products lose is not to be had.
        part.low = vector_select(vector_equal(part.low, part.low), part.low, zero)
    whole.others = double_double_merge(whole.others, part)
    if not sums_coefficients(problem):
        return
    whole.other_coefficients = double_double_add(
        double_double_merge(whole.other_coefficients, state.other_coefficients),
        vector_select(chosen, zero, state.own_coefficient))
    # Its spread is counted from its own maximum; of coefficients that are 0 nothing is.
    coefficient = double_double_rounded(
        double_double_add(state.other_coefficients, state.own_coefficient))
    gap = vector_select(
        vector_greater(state.maximum, vector_set(NEGATIVE_INFINITY)),
        vector_subtract(whole.maximum, state.maximum), zero)
    gap = vector_select(vector_equal(coefficient, zero), zero, gap)
    whole.spread = vector_add(whole.spread, vector_fma(coefficient, gap, state.spread))


cdef void state_lift(
    RowState *state, const Problem *problem, const RowState *whole, const Scale *scale
) noexcept nogil:
    """Take the headroom out of sums far below the row, whose factor would else lose its digits."""
    cdef mask far = vector_greater(vector_set(1 / TWO_TO_64), state.factor.high)
    cdef vector down = vector_select(
        far, vector_set(TWO_TO_MINUS_HEADROOM), vector_set(1.0))
    state.reference.exponent = vector_add(state.reference.exponent, vector_select(
        far, vector_set(HEADROOM), vector_set(0.0)))
    state.others = double_double_scaled(state.others, down)
    if sums_rest(problem):
        state.rest = double_double_scaled(state.rest, down)
    if wants_entropy(problem):
        state.other_coefficients = double_double_scaled(state.other_coefficients, down)
        state.own_coefficient = vector_multiply(state.own_coefficient, down)
        state.spread = vector_multiply(state.spread, down)
    state_set_factor(state, whole, scale)


cdef inline void state_scale_coefficients(RowState *state) noexcept nogil:
    """Bring coefficients that are exponentials to the reference of the merged state."""
    state.other_coefficients = double_double_product(state.other_coefficients, state.factor)
    state.own_coefficient = vector_multiply(state.own_coefficient, state.factor.high)
    state.spread = vector_multiply(state.spread, state.factor.high)


# ---- the memory of a thread ----------------------------------------------------------------------


cdef enum:
    MOST_TILES = 16    # of a batch,
    MOST_ROWS = 256    # and rows of these


cdef struct Runs:
    # The rows of a batch in an array: runs of neighbours.
    bint apart                       # each row is a run, and its length is not set
    Py_ssize_t count
    Py_ssize_t[MOST_ROWS] offset     # of each, from the first row of the array on,
    Py_ssize_t[MOST_ROWS] length     # and how many rows it has


cdef struct Writers:
    Writer output
    Writer hessian


cdef struct Beside:
    # How rows that lie side by side are found in arrays:
    Runs[3] runs               # those of a batch in one, in the mask and in the logits;
    Picking picking            # where few are, which elements are of one row,
    Weaving weaving            # and where they are put back


cdef struct Scratch:
    # The first part of that memory: the stack may be small.
    Scale scale
    Softcap softcap            # if there is any
    Common common
    RowState *states           # of all chunks of the groups at work
    real *kept                 # exponentials, or tiles,
    Py_ssize_t kept_stride     # and numbers from one row, or tile, to the next
    real *staged               # rows that are copied together
    real *packed               # output on its way to the writer
    real *target               # a row of class probabilities that is copied
    char *raw                  # elements before they are converted
    double *results            # of the rows of a task
    Group *groups              # of a batch
    char *sums                 # at work: DenseSums along, TileTerms of a batch across
    Writers writers
    Beside *beside             # rows of a batch that lie side by side
    char *best                 # what is selected of the rows at work: see operations/scores.pxi


cdef inline Writer *writer_of(Scratch *scratch, Role role) noexcept nogil:
    return &scratch.writers.hessian if role == HESSIAN else &scratch.writers.output

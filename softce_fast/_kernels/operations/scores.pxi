# Scores of a label among the classes of its row: its log-probability, how many logits are above
# its own, the largest logit and the next ones, the logsumexp and the entropy.
#
#     entropy = log(sum_i e_i) + sum_i e_i (m - x_i) / T / sum_i e_i,  e_i = exp((x_i - m) / T)
#
# The label is left out of the sum of exponentials, as by the loss, whose bits the log-probability
# has. Where nearly all of a row is its maximum, and that is another class, the logsumexp needs
# the sum without the maximum: another look at the chunk that it is in. Logits are compared as they
# are. What is selected of a row along is a heap with the last of it on top; across, a sorted list
# in each lane.
#
# Uses along.pxi, across.pxi, cross_entropy.pxi.

cdef extern from *:
    int lowest_bit "__builtin_ctz"(unsigned int) nogil


cdef inline vector next_above(vector x) noexcept nogil:
    """The next number above x; subnormal ones count as 0."""
    cdef vector smallest = vector_set(SMALLEST_NORMAL)
    return vector_select(
        vector_greater(smallest, vector_absolute(x)), smallest, vector_next(x))


cdef inline int64_t ties_split(const Problem *problem, int64_t label) noexcept nogil:
    """The class before which an equal logit counts as above the label's."""
    if problem.scores.ties == TIES_FIRST:
        return label
    return 0 if problem.scores.ties == TIES_MIN else problem.layout.classes


# ---- selecting -----------------------------------------------------------------------------------


cdef struct Candidate:
    real value
    int64_t index    # INT64_MAX for a place that is still free


cdef inline bint comes_after(Candidate a, Candidate b) noexcept nogil:
    return a.value < b.value or (a.value == b.value and a.index > b.index)


cdef inline void best_clear(Candidate *best, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(count):
        best[j].value = NEGATIVE_INFINITY
        best[j].index = INT64_MAX


cdef void best_replace(Candidate *best, Py_ssize_t count, Candidate item) noexcept nogil:
    """Put an item into a heap instead of the one on top, which comes last."""
    cdef Py_ssize_t place = 0, child = 1
    while child < count:
        if child + 1 < count and comes_after(best[child + 1], best[child]):
            child += 1
        if not comes_after(best[child], item):
            break
        best[place] = best[child]
        place = child
        child = 2 * place + 1
    best[place] = item


cdef void best_sort(Candidate *best, Py_ssize_t count) noexcept nogil:
    cdef Candidate item
    while count > 1:
        count -= 1
        item = best[count]
        best[count] = best[0]
        best_replace(best, count, item)


cdef inline Py_ssize_t chunk_best(const Problem *problem) noexcept nogil:
    """How many places the heap of a row has; of a chunk, where these are apart."""
    if problem.plan.by_chunks:
        return min(problem.scores.top_k, <Py_ssize_t>CHUNK)
    return problem.scores.top_k


cdef inline size_t best_size(const Problem *problem) noexcept nogil:
    """Bytes for what is selected of the rows at work, and for the lists of their tiles."""
    cdef Py_ssize_t rows = LANES * problem.plan.batch, lists = 0
    if problem.plan.passes == ACROSS:
        lists = 2 * sizeof(real)
    elif problem.plan.chunks > 1:
        rows = problem.plan.rows_at_once
    return rows * problem.scores.top_k * (sizeof(Candidate) + lists)


cdef inline Candidate *row_best(
    const Problem *problem, Py_ssize_t tile, Py_ssize_t k, const Scratch *scratch
) noexcept nogil:
    """Where the candidates of row k of a group are."""
    return <Candidate *>scratch.best + (tile * LANES + k) * problem.scores.top_k


cdef inline real *tile_best(
    const Problem *problem, Py_ssize_t tile, const Scratch *scratch
) noexcept nogil:
    """Where the lists of a tile are: logits, and behind them their classes."""
    return <real *>row_best(problem, problem.plan.batch, 0, scratch) + (
        tile * 2 * problem.scores.top_k * LANES)


cdef inline real least_of_best(const real *x, Py_ssize_t n, Py_ssize_t count) noexcept nogil:
    """A number that `count` of n classes are above, if possible: LANES at most.

    Of the largest in each lane there are so many.
    """
    cdef vector most = vector_set(NEGATIVE_INFINITY)
    cdef real[16] lane
    cdef vector above = vector_set(0.0)
    cdef real least
    cdef Py_ssize_t i = 0, k
    while i < n:
        most = vector_maximum(vector_maximum(
            vector_maximum(row_vector(x, i, n), most), row_vector(x, i + LANES, n)
        ), vector_maximum(
            vector_maximum(row_vector(x, i + 2 * LANES, n), most),
            row_vector(x, i + 3 * LANES, n)))
        i += RUN * LANES
    vector_store(lane, most)
    for k in range(LANES):
        above = vector_add(above, is_below(vector_set(lane[k]), most))
    least = -vector_reduce_maximum(vector_select(
        vector_greater(vector_set(<real>count), above), vector_subtract(vector_set(0.0), most),
        vector_set(NEGATIVE_INFINITY)))
    vector_store(lane, next_above(vector_set(-least)))
    return -lane[0] if least > NEGATIVE_INFINITY else least


cdef void row_select(
    const real *x, Py_ssize_t n, int64_t first, Candidate *best, Py_ssize_t count
) noexcept nogil:
    """Let n classes of a row, from class `first` on, into its heap. Those at -inf stay outside."""
    cdef Candidate item
    cdef real least = best[0].value
    cdef vector limit
    cdef unsigned int above
    cdef Py_ssize_t i = 0
    if best[0].index == INT64_MAX and count <= LANES:
        least = least_of_best(x, n, count)
    limit = vector_set(least)
    while i < n:
        above = vector_mask_bits(vector_greater(row_vector(x, i, n), limit))
        while above != 0:
            item.index = i + lowest_bit(above)
            memcpy(&item.value, x + item.index, sizeof(real))
            above &= above - 1
            if item.value > best[0].value:
                item.index += first
                best_replace(best, count, item)
                limit = vector_set(max(least, best[0].value))
        i += LANES


cdef void best_merge(
    const Problem *problem, const char *chunks, const Scratch *scratch
) noexcept nogil:
    """Select from what was selected of all chunks of a row."""
    cdef const Candidate *items = <const Candidate *>chunks
    cdef Candidate *best = row_best(problem, 0, 0, scratch)
    cdef Py_ssize_t i
    if problem.scores.top_k == 0:
        return
    best_clear(best, problem.scores.top_k)
    for i in range(problem.plan.chunks * chunk_best(problem)):
        if comes_after(best[0], items[i]):
            best_replace(best, problem.scores.top_k, items[i])
    best_sort(best, problem.scores.top_k)


cdef void tile_select(
    const real *tile, Py_ssize_t n, Py_ssize_t first, real *best, Py_ssize_t count
) noexcept nogil:
    """Let n classes of a tile into the sorted lists of its rows."""
    cdef real *places = best + count * LANES
    cdef vector own, value, place, other
    cdef mask above
    cdef Py_ssize_t c, j
    for c in range(n):
        own = vector_load(tile + c * LANES)
        if not any_lane(vector_greater(own, vector_load(best + (count - 1) * LANES))):
            continue
        # From where it is put in on, each takes the place of the next one, as far as there are.
        value = own
        place = vector_set(<real>(first + c))
        for j in range(min(count, first + c + 1)):
            other = vector_load(best + j * LANES)
            above = vector_greater(own, other)
            vector_store(best + j * LANES, vector_select(above, value, other))
            value = vector_select(above, other, value)
            other = vector_load(places + j * LANES)
            vector_store(places + j * LANES, vector_select(above, place, other))
            place = vector_select(above, other, place)


cdef void tile_best_open(real *best, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(count):
        vector_store(best + j * LANES, vector_set(NEGATIVE_INFINITY))


cdef void tile_best_close(
    const Problem *problem, Py_ssize_t rows, const real *best, Candidate *to
) noexcept nogil:
    """Hand the lists of a tile over, row by row."""
    cdef Py_ssize_t count = problem.scores.top_k
    cdef Py_ssize_t j, k
    for k in range(rows):
        for j in range(count):
            to[k * count + j].value = best[j * LANES + k]
            to[k * count + j].index = INT64_MAX
            if best[j * LANES + k] > NEGATIVE_INFINITY:
                to[k * count + j].index = <int64_t>best[(count + j) * LANES + k]


# ---- absorb --------------------------------------------------------------------------------------


cdef inline vector is_below(vector limit, vector x) noexcept nogil:
    return vector_select(vector_greater(limit, x), vector_set(1.0), vector_set(0.0))


cdef inline real count_below(const real *x, Py_ssize_t n, real limit_) noexcept nogil:
    """How many of n classes, a chunk at most, are below a limit."""
    cdef vector limit = vector_set(limit_)
    cdef vector total = vector_set(0.0)
    cdef vector[RUN] below
    cdef real rest
    cdef Py_ssize_t i = 0, k
    while i + RUN * LANES <= n:
        for k in range(RUN):
            below[k] = is_below(limit, vector_load(x + i + k * LANES))
        total = vector_add(total, run_sum(below))
        i += RUN * LANES
    while i < n:
        total = vector_add(total, zero_past_end(is_below(limit, row_vector(x, i, n)), i, n))
        i += LANES
    return vector_reduce_few(total, &rest) + rest


cdef real row_compare(
    const Group *group, const Problem *problem, Py_ssize_t chunk, Py_ssize_t k,
    const Stretch *stretch, const Scratch *scratch,
) noexcept nogil:
    """Select from a chunk of row k; return how many of its classes are not above the label."""
    cdef Py_ssize_t split = max(<int64_t>0, min(
        ties_split(problem, group.labels[k]) - chunk * CHUNK, <int64_t>stretch.n))
    cdef Candidate *best = row_best(problem, 0, k, scratch)
    cdef Py_ssize_t count = chunk_best(problem)
    cdef const real *x = <const real *>stretch.x
    cdef real[16] own
    cdef real[16] above
    if count > 0:
        if chunk == 0 or problem.plan.by_chunks:
            best_clear(best, count)
        row_select(x, stretch.n, chunk * CHUNK, best, count)
        if chunk == problem.plan.chunks - 1 and not problem.plan.by_chunks:
            best_sort(best, count)
    vector_store(own, group.own_logit)
    vector_store(above, next_above(group.own_logit))
    return count_below(x, split, own[k]) + count_below(
        x + split, stretch.n - split, above[k])


cdef inline void tile_rank(
    const Group *group, const Problem *problem, Py_ssize_t n, vector label, const real *tile,
    RowState *state,
) noexcept nogil:
    """Find where the maximum of n classes is first, and how many are not above the label."""
    cdef vector own = group.own_logit
    cdef vector above = next_above(own)
    cdef vector maximum = state.maximum
    cdef vector one = vector_set(1.0)
    cdef vector total = vector_set(0.0)
    cdef vector position = vector_set(-1.0)
    cdef vector number = vector_set(<real>n)
    cdef vector split = label
    cdef vector x
    cdef Py_ssize_t c
    if problem.scores.ties != TIES_FIRST:
        split = number if problem.scores.ties == TIES_MAX else total
    for c in range(n - 1, -1, -1):
        number = vector_subtract(number, one)
        x = vector_load(tile + c * LANES)
        position = vector_select(vector_equal(x, maximum), number, position)
        total = vector_add(total, is_below(
            vector_select(vector_greater(split, number), own, above), x))
    state.position = position
    state.below = double_double_from(total)


cdef inline mask set_rest(
    const Group *group, Py_ssize_t n, vector label, RowState *state, const Scale *scale
) noexcept nogil:
    """Set the sum without the maximum, from that without the label; return where this is too rough.

    It is where the maximum is more than all the rest, and another class than the label.
    """
    cdef vector zero = vector_set(0.0)
    cdef vector top = exponential(state.maximum, state.reference, scale)
    cdef DoubleDouble own = exponential_pair(group.own_logit, state.reference, scale)
    cdef mask is_label = vector_equal(label, state.position)
    own = double_double_select(
        vector_greater(vector_set(<real>n), label), own,
        double_double_from(zero))
    own = double_double_select(vector_greater(zero, label), double_double_from(zero), own)
    state.rest = double_double_select(is_label, state.others, double_double_add(
        double_double_merge(state.others, own), vector_subtract(zero, top)))
    return vector_greater(vector_select(is_label, zero, top), state.rest.high)


cdef void along_rest(
    const Group *group, const Problem *problem, Py_ssize_t chunk, RowState *state,
    const char **x, RowSums *sums, const Scratch *scratch,
) noexcept nogil:
    """Sum a chunk of the group, in `sums`, without the maximum of each row."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef mask again = set_rest(
        group, n, classes_in_chunk(group.labels, chunk), state, &scratch.scale)
    cdef real[16] position
    cdef real[16] shift
    cdef real[16] exponent
    cdef Reference reference
    cdef Stretch stretch = stretch_of(problem, n)
    cdef Py_ssize_t k
    cdef unsigned int rows = vector_mask_bits(again) & ((<unsigned int>1 << group.rows) - 1)
    if rows == 0:
        return
    stretch.kept = NULL
    vector_store(position, state.position)
    vector_store(shift, state.reference.shift)
    vector_store(exponent, state.reference.exponent)
    for k in range(group.rows):
        sums_put(sums, k, double_double_from(vector_set(0.0)))
        if rows >> k & 1:
            stretch.x = x[k]
            stretch.ahead = stretch.near = Ahead(x[k], 0)    # nothing is fetched
            stretch.pivot = <Py_ssize_t>position[k]
            reference.shift = vector_set(shift[k])
            reference.exponent = vector_set(exponent[k])
            sums_put(sums, k, row_absorb(
                &stretch, reference, &scratch.scale, shift[k] != 0))
    state.rest = double_double_select(
        again, rows_reduce(sums, group.rows, stretch.n, scratch.scale.few_digits), state.rest)


cdef inline void tile_put(
    real *tile, Py_ssize_t n, vector classes, vector numbers
) noexcept nogil:
    """Put a number in the place of a class of each row, if it is one of n."""
    cdef real[16] place
    cdef real[16] number
    cdef Py_ssize_t c, k
    vector_store(place, classes)
    vector_store(number, numbers)
    for k in range(LANES):
        c = <Py_ssize_t>place[k]
        if 0 <= c < n:
            tile[c * LANES + k] = number[k]


cdef void tile_compare(
    Group *group, const Problem *problem, Py_ssize_t t, Py_ssize_t chunk, Scratch *scratch
) noexcept nogil:
    """What row_compare() and along_rest() do, for a tile whose exponentials are summed."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t count = problem.scores.top_k
    cdef real *tile = scratch.kept + t * scratch.kept_stride
    cdef RowState *state = chunk_state(group, problem, t, chunk, scratch)
    cdef real *terms = tile_terms(problem, tile, n)
    cdef vector label = classes_in_chunk(group.labels, chunk)
    cdef mask again
    own_logit_find(group, problem, &scratch.softcap)
    tile_rank(group, problem, n, label, tile, state)
    again = set_rest(group, n, label, state, &scratch.scale)
    if any_lane(again):
        # The label, which they leave out, into the terms, and the maximum out of them.
        tile_put(terms, n, label, exponential(
            group.own_logit, state.reference, &scratch.scale))
        tile_put(terms, n, state.position, vector_set(0.0))
        state.rest = double_double_select(
            again, tile_sums(terms, n, scratch.scale.few_digits), state.rest)
    if wants_entropy(problem):
        tile_spread(group, problem, chunk, state, tile, terms)
    if count > 0:
        if chunk == 0:
            tile_best_open(tile_best(problem, t, scratch), count)
        tile_select(tile, n, chunk * CHUNK, tile_best(problem, t, scratch), count)
        if chunk == problem.plan.chunks - 1:
            tile_best_close(
                problem, group.rows, tile_best(problem, t, scratch),
                row_best(problem, t, 0, scratch))


# ---- finish --------------------------------------------------------------------------------------


cdef struct ScoreNumbers:
    # Of each row of a group, in float64.
    double[16] maximum
    double[16] own_logit
    double[16] log_rest     # log(sum(exp((x - maximum) / T)))
    double[16] below        # classes that are not above the label
    double[16] logsumexp
    double[16] entropy
    unsigned int finite     # bit k: row k has a maximum, and no NaN


cdef inline void finish_scores(
    Group *group, const Problem *problem, Candidate *best, const Scratch *scratch
) noexcept nogil:
    cdef const Scores *scores = &problem.scores
    cdef int64_t others = problem.layout.classes - (scores.ties == TIES_MAX)
    cdef int64_t[16] rank
    cdef unsigned int special
    cdef Py_ssize_t k
    cdef ScoreNumbers numbers
    finish_total(group, problem, scratch)
    finish_loss(group, problem, scratch)
    score_numbers(&numbers, group, problem, scratch)
    for k in range(LANES):
        group.result[k] = 0 - group.result[k]
        rank[k] = others - <int64_t>numbers.below[k]
    memcpy(scores.rank + group.first, rank, group.rows * sizeof(int64_t))
    memcpy(scores.argmax + group.first, group.recipe.top, group.rows * sizeof(int64_t))
    special = ~numbers.finite | group.ignored | vector_mask_bits(
        vector_equal(group.own_logit, vector_set(NEGATIVE_INFINITY)))
    for k in range(group.rows if special != 0 else 0):
        if special >> k & 1:
            finish_special(group, problem, k, &numbers)
    scores_write(group, problem, scores.logsumexp, numbers.logsumexp)
    if wants_entropy(problem):
        scores_write(group, problem, scores.entropy, numbers.entropy)
    if scores.top_k > 0:
        finish_best(group, problem, &numbers, best)


cdef void score_numbers(
    ScoreNumbers *numbers, const Group *group, const Problem *problem, const Scratch *scratch
) noexcept nogil:
    cdef const RowState *whole = &group.whole
    cdef vector total = vector_add(group.total.high, whole.maximum)
    cdef double temperature = problem.options.temperature
    cdef LogRatio ratio = log_ratio(
        whole.rest, exponential_pair(whole.maximum, whole.reference, &scratch.scale),
        whole.maximum, whole.reference, &scratch.scale)
    cdef double[16] low
    cdef double[16] lowering
    cdef double[16] sum_
    cdef double[16] spread
    cdef Py_ssize_t k
    numbers_store(numbers.maximum, whole.maximum)
    numbers_store(numbers.own_logit, group.own_logit)
    log_ratio_store(numbers.log_rest, lowering, ratio)
    numbers_store(numbers.below, whole.below.high)
    numbers_store(low, whole.below.low)
    numbers.finite = vector_mask_bits(vector_equal(
        vector_subtract(total, total), vector_set(0.0)))
    for k in range(LANES):
        numbers.below[k] += low[k]
        numbers.log_rest[k] *= lowering[k]
        numbers.logsumexp[k] = numbers.maximum[k] / temperature + numbers.log_rest[k]
    if wants_entropy(problem):
        numbers_store(spread, whole.spread)
        numbers_store(sum_, double_double_rounded(
            double_double_add(whole.other_coefficients, whole.own_coefficient)))
        for k in range(LANES):
            numbers.entropy[k] = numbers.log_rest[k] + spread[k] / sum_[k] / temperature


cdef void scores_write(
    const Group *group, const Problem *problem, char *to, const double *values
) noexcept nogil:
    """Write a number of each row to an array like that of the results."""
    cdef const Array *array = &problem.arrays[<int>RESULT]
    cdef real[16] lane
    cdef Py_ssize_t k
    for k in range(LANES):
        lane[k] = <real>values[k]
    elements_store(to + group.first * array.size, lane, group.rows, array.kind)


cdef void finish_special(
    Group *group, const Problem *problem, Py_ssize_t k, ScoreNumbers *numbers
) noexcept nogil:
    """Row k, whose label is at -inf or ignored, or that is not finite."""
    cdef const Scores *scores = &problem.scores
    cdef Py_ssize_t row = group.first + k
    cdef bint has_label = not (
        group.ignored >> k & 1 or is_excluded(group, problem, k, group.labels[k]))
    if numbers.finite >> k & 1:
        scores.rank[row] = -1
        if has_label:
            scores.rank[row] = row_lowest(group, problem, k, NULL) - (scores.ties == TIES_MAX)
        return
    scores.rank[row] = -1
    scores.argmax[row] = -1
    if not group.ignored >> k & 1:
        group.result[k] = NAN
    numbers.logsumexp[k] = NAN
    numbers.entropy[k] = NAN
    if fabs(numbers.maximum[k]) == -NEGATIVE_INFINITY and not isnan(
        infinite_weight(group, problem, k)
    ):
        numbers.logsumexp[k] = numbers.maximum[k]


cdef int64_t row_lowest(
    const Group *group, const Problem *problem, Py_ssize_t k, Candidate *best
) noexcept nogil:
    """Return how many classes are above a label at -inf, or equal and before where that counts.

    What a mask excludes is at -inf as well, but no class any more: these are told apart here. If
    there is `best`, classes at -inf get the places that are still free.
    """
    cdef const Array *array = &problem.arrays[<int>INPUT]
    cdef int64_t split = ties_split(problem, group.labels[k])
    cdef int64_t above = 0
    cdef Py_ssize_t free = 0, c
    cdef bint is_lowest
    for c in range(problem.layout.classes):
        if is_excluded(group, problem, k, c):
            continue
        is_lowest = NEGATIVE_INFINITY == real_read(
            array, array.data + in_group(group, problem, INPUT, k)
            + class_offset(&problem.layout, array, c))
        above += not is_lowest or c < split
        if best != NULL and is_lowest:
            while free < problem.scores.top_k and best[free].index != INT64_MAX:
                free += 1
            if free < problem.scores.top_k:
                best[free].index = c
    return above


cdef inline void finish_best(
    const Group *group, const Problem *problem, const ScoreNumbers *numbers, Candidate *best
) noexcept nogil:
    """What was selected of each row, and its log-probabilities."""
    cdef const Array *array = &problem.arrays[<int>RESULT]
    cdef Py_ssize_t count = problem.scores.top_k
    cdef int64_t *indices = problem.scores.top_indices + group.first * count
    cdef char *log_probs = problem.scores.top_log_probs + group.first * count * array.size
    cdef bint plain = array.kind == REAL_KIND
    cdef double twice = 2 / problem.options.temperature
    cdef double half, log_rest
    cdef Py_ssize_t i = 0, j, k, stop
    for k in range(group.rows):
        stop = i + count
        half = numbers.maximum[k] / 2
        log_rest = numbers.log_rest[k]
        if not numbers.finite >> k & 1:
            log_rest = NAN
            best_clear(best + i, count)
        elif best[stop - 1].index == INT64_MAX:
            row_lowest(group, problem, k, best + i)
        for j in range(i, stop):
            indices[j] = -1 if best[j].index == INT64_MAX else best[j].index
        if plain:
            for j in range(i, stop):
                (<real *>log_probs)[j] = <real>((best[j].value / 2 - half) * twice - log_rest)
        else:
            for j in range(i, stop):
                number_write(
                    log_probs + j * array.size, (best[j].value / 2 - half) * twice - log_rest,
                    array.kind, False)
        i = stop

# The passes over two arrays: a sum over the classes of each row, then, if there is an output, what
# is made of both arrays and that sum.
#
# They know an operation by pair_sum() and pair_emit(), for one chunk of a row, and by
# tile_pair_sum() and tile_pair_emit(), for one of a tile, which do the same in the same order.
# Along, a row goes through all steps before the next; few long ones are shared out by chunks.
#
# Uses panel.pxi, writer.pxi, state.pxi, across.pxi (tiles), tasks.pxi (results, memory). The
# operations are in operations/backward.pxi and operations/likelihood.pxi.

cdef struct PairChunk:
    # One chunk of a row of both arrays.
    const real *input
    const real *second
    Py_ssize_t start     # its first class,
    Py_ssize_t n         # and how many it has


cdef struct PairTile:
    # Some classes of a chunk of a tile of both arrays.
    Tile input
    Tile second
    Py_ssize_t start     # the first class of the chunk;
    Py_ssize_t first     # from there on, the first of these,
    Py_ssize_t stop      # and the one after the last
    TileSums *sums       # what they are added to
    Ahead input_ahead    # what is fetched meanwhile: of both arrays while they are summed,
    Ahead second_ahead   # the first of these of the output while that is made


cdef inline void pair_fetch(const PairTile *tile, Py_ssize_t c) noexcept nogil:
    fetch(&tile.input_ahead, c)
    fetch(&tile.second_ahead, c)


# ---- sums ----------------------------------------------------------------------------------------


cdef inline PairSum pair_sum_merge(PairSum a, PairSum b) noexcept nogil:
    cdef PairSum result
    cdef double kept
    result.sum = a.sum + b.sum
    kept = result.sum - a.sum
    result.rest = (a.rest + b.rest) + (
        (a.sum - (result.sum - kept)) + (b.sum - kept))
    if result.rest != result.rest:
        # What an infinite sum lost is no number.
        result.rest = 0
    result.left_out = a.left_out + b.left_out
    return result


cdef inline PairSum sum_of_row(const PairSums *sums, Py_ssize_t k) noexcept nogil:
    return PairSum(sums.sum[k], sums.rest[k], sums.left_out[k])


cdef inline void sum_of_row_put(PairSums *sums, Py_ssize_t k, PairSum sum_) noexcept nogil:
    sums.sum[k] = sum_.sum
    sums.rest[k] = sum_.rest
    sums.left_out[k] = sum_.left_out


cdef inline void pair_sum_add(
    PairSums *sums, Py_ssize_t k, Py_ssize_t chunk, PairSum part
) noexcept nogil:
    """Add the sum of the next chunk of row k."""
    if chunk > 0:
        part = pair_sum_merge(sum_of_row(sums, k), part)
    sum_of_row_put(sums, k, part)


cdef inline DoubleDouble double_double_set(double number, double rest) noexcept nogil:
    """number + rest, in each lane."""
    cdef DoubleDouble result
    cdef real high = <real>(number + rest)
    cdef real low = <real>((number - high) + rest)
    result.high = vector_set(high)
    result.low = vector_set(low if low - low == 0 else <real>0)
    return result


cdef inline DoubleDouble double_double_reciprocal(double x) noexcept nogil:
    """1 / x, in each lane."""
    cdef double inverse = 1 / x
    return double_double_set(inverse, inverse * (
        (1 - inverse * x) - product_error(inverse, x)))


cdef inline DoubleDouble double_doubles_set(const PairSums *sums) noexcept nogil:
    """The sums of LANES rows, a row in each lane."""
    cdef DoubleDouble result
    cdef double[16] number
    cdef double[16] high
    cdef Py_ssize_t k
    for k in range(LANES):
        number[k] = sums.sum[k] + sums.rest[k]
    result.high = vector_from(number)
    numbers_store(high, result.high)
    for k in range(LANES):
        number[k] = (sums.sum[k] - high[k]) + sums.rest[k]
    result.low = vector_from(number)
    result.low = vector_select(
        vector_equal(vector_subtract(result.low, result.low), vector_set(0.0)), result.low,
        vector_set(0.0))
    return result


# ---- operations ----------------------------------------------------------------------------------


cdef inline PairSum pair_sum(
    const Problem *problem, const PairChunk *chunk, const Scratch *scratch
) noexcept nogil:
    """Sum a chunk of a row."""
    if problem.operation == SOFTMAX_BACKWARD:
        return softmax_backward_sum(chunk)
    if problem.operation == LOG_SOFTMAX_BACKWARD:
        return log_softmax_backward_sum(chunk)
    return likelihood_sum(problem, chunk, scratch.packed)


cdef inline void pair_emit(
    const Group *group, const Problem *problem, Py_ssize_t k, const PairChunk *chunk,
    const Scratch *scratch, real *to,
) noexcept nogil:
    """Make a chunk of the output of row k."""
    if problem.operation == SOFTMAX_BACKWARD:
        softmax_backward_emit(group, problem, k, chunk, to)
    else:
        log_softmax_backward_emit(group, problem, k, chunk, &scratch.scale, to)


cdef inline void tile_pair_sum(const Problem *problem, const PairTile *tile) noexcept nogil:
    """Sum some classes of all rows of a tile."""
    if problem.operation == SOFTMAX_BACKWARD:
        softmax_backward_tile_sum(tile)
    elif problem.operation == LOG_SOFTMAX_BACKWARD:
        log_softmax_backward_tile_sum(tile)
    else:
        likelihood_tile_sum(problem, tile)


cdef inline void tile_pair_total(
    const Problem *problem, TileSums *lanes, Py_ssize_t n, PairSums *sums
) noexcept nogil:
    """The sums of each row of a tile, when n classes of a chunk are added; `lanes` is used up."""
    if problem.operation == PROBABILITY_LOSS:
        likelihood_tile_total(lanes, sums)
    else:
        backward_tile_total(problem.operation, lanes, min(<Py_ssize_t>LANES, n), sums)


cdef inline void tile_pair_emit(
    const Group *group, const Problem *problem, const PairTile *tile, const Scale *scale,
    const TilePlace *place,
) noexcept nogil:
    """Make the output of some classes of a tile, in the place of INPUT's tile or elsewhere."""
    if problem.operation == SOFTMAX_BACKWARD:
        softmax_backward_tile_emit(group, problem, tile, place)
    else:
        log_softmax_backward_tile_emit(group, problem, tile, scale, place)


cdef inline void pair_results(
    Group *group, const Problem *problem, double *results
) noexcept nogil:
    """Hand over what is known of rows when they are summed, if the sum is the result."""
    cdef Py_ssize_t k
    if problem.operation == PROBABILITY_LOSS:
        for k in range(group.rows):
            group.result[k] = likelihood_loss(group, problem, k)
        group_results(group, problem, results)


# ---- along ---------------------------------------------------------------------------------------


cdef inline PairChunk pair_read(
    const Group *group, const Problem *problem, Py_ssize_t k, Py_ssize_t chunk,
    const Scratch *scratch,
) noexcept nogil:
    """A chunk of row k: where it is if it is plain, else a copy."""
    cdef const Layout *layout = &problem.layout
    cdef PairChunk at
    at.start = chunk * CHUNK
    at.n = chunk_length(problem, chunk)
    at.input = row_read(
        layout, &problem.arrays[<int>INPUT], in_group(group, problem, INPUT, k), at.start, at.n,
        scratch.staged, scratch.raw)
    at.second = at.input
    if has(problem, SECOND):
        at.second = row_read(
            layout, &problem.arrays[<int>SECOND], in_group(group, problem, SECOND, k), at.start,
            at.n, scratch.target, scratch.raw)
    return at


cdef void pair_write(
    const Group *group, const Problem *problem, Py_ssize_t k, const PairChunk *chunk,
    Scratch *scratch,
) noexcept nogil:
    """Write a chunk of the output of row k."""
    cdef const Array *output = &problem.arrays[<int>OUTPUT]
    cdef Py_ssize_t offset = in_group(group, problem, OUTPUT, k)
    cdef char *to = output.data + offset + chunk.start * output.size
    if not has_neighbours(&problem.layout, output):
        pair_emit(group, problem, k, chunk, scratch, scratch.packed)
        row_scatter(
            &problem.layout, output, offset, chunk.start, chunk.n, scratch.packed, scratch.raw)
    elif output.kind == REAL_KIND and not problem.plan.stream:
        pair_emit(group, problem, k, chunk, scratch, <real *>to)
    else:
        pair_emit(group, problem, k, chunk, scratch, writer_room(&scratch.writers.output, to))
        writer_take(&scratch.writers.output, chunk.n)


cdef void pairs_along(
    const Problem *problem, Py_ssize_t first, Py_ssize_t stop, double *results, Scratch *scratch
) noexcept nogil:
    cdef Py_ssize_t row = first, k, chunk
    cdef Group *group = scratch.groups
    cdef PairChunk at
    while row < stop:
        group_open(group, problem, row, min(<Py_ssize_t>LANES, stop - row))
        for k in range(group.rows):
            for chunk in range(problem.plan.chunks):
                at = pair_read(group, problem, k, chunk, scratch)
                pair_sum_add(&group.sums, k, chunk, pair_sum(problem, &at, scratch))
            if not has(problem, OUTPUT):
                continue
            for chunk in range(problem.plan.chunks):
                if problem.plan.chunks > 1:
                    at = pair_read(group, problem, k, chunk, scratch)
                pair_write(group, problem, k, &at, scratch)
        pair_results(group, problem, NULL if results == NULL else results + (row - first))
        row += group.rows


# ---- across --------------------------------------------------------------------------------------


cdef inline void pair_tiles_fill(
    const Group *groups, const Problem *problem, Py_ssize_t tiles, Py_ssize_t chunk,
    Scratch *scratch,
) noexcept nogil:
    tiles_fill(groups, problem, INPUT, tiles, chunk, scratch)
    if has(problem, SECOND):
        tiles_fill(groups, problem, SECOND, tiles, chunk, scratch)


cdef inline PairTile pair_tile(
    const Problem *problem, Py_ssize_t tile, Py_ssize_t chunk, Py_ssize_t first, Py_ssize_t stop,
    const Scratch *scratch,
) noexcept nogil:
    """Some classes of a chunk of a tile."""
    cdef const Group *group = scratch.groups + tile
    cdef const real *filled = scratch.kept + tile * scratch.kept_stride
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef PairTile at
    at.start = chunk * CHUNK
    at.first = first
    at.stop = stop
    at.sums = sums_of_tile(problem, tile, scratch)
    at.input = pair_side(group, problem, INPUT, chunk, filled)
    at.input_ahead = pair_ahead(group, problem, INPUT, &at, &at.input, n)
    at.second = at.input
    at.second_ahead = at.input_ahead
    if has(problem, SECOND):
        at.second = pair_side(group, problem, SECOND, chunk, filled + n * LANES)
        at.second_ahead = pair_ahead(group, problem, SECOND, &at, &at.second, n)
    at.input = tile_run(&at.input, first, stop, at.sums.terms)
    at.second = tile_run(&at.second, first, stop, at.sums.second)
    return at


cdef inline Tile pair_side(
    const Group *group, const Problem *problem, Role role, Py_ssize_t chunk, const real *filled
) noexcept nogil:
    return tile_of(group, problem, role, chunk, filled, reads_tiles_in_place(problem, role))


cdef inline Ahead pair_ahead(
    const Group *group, const Problem *problem, Role role, const PairTile *at, const Tile *tile,
    Py_ssize_t n,
) noexcept nogil:
    """What is fetched with some of n classes of a tile: those next to come of an array."""
    cdef Ahead ahead = tile_ahead(group, problem, role)
    cdef bint in_place = (
        is_made_of_tiles(problem, role) if role == OUTPUT
        else reads_tiles_in_place(problem, role))
    if problem.plan.ahead == 0 or not in_place:
        return ahead
    if at.stop < n:
        return Ahead(tile.data + TILE_RUN * tile.stride, tile.stride)
    # The first ones of the next batch.
    ahead.start -= at.first * ahead.step
    return ahead


cdef void pairs_across(
    const Problem *problem, Py_ssize_t first, Py_ssize_t stop, double *results, Scratch *scratch
) noexcept nogil:
    """A batch of tiles goes through each step before the next."""
    cdef Py_ssize_t row = first, chunk, t, tiles
    cdef Group *groups = scratch.groups
    scratch.kept_stride = tile_stride(problem)
    while row < stop:
        tiles = batch_open(groups, problem, row, stop)
        row += batch_rows(groups, tiles)
        for chunk in range(problem.plan.chunks):
            pair_tiles_fill(groups, problem, tiles, chunk, scratch)
            pair_tiles_sum(groups, problem, tiles, chunk, scratch)
        for t in range(tiles):
            pair_results(
                groups + t, problem,
                NULL if results == NULL else results + (groups[t].first - first))
        if has(problem, OUTPUT):
            for chunk in range(problem.plan.chunks):
                pair_tiles_emit(groups, problem, tiles, chunk, scratch)


cdef void pair_tiles_sum(
    Group *groups, const Problem *problem, Py_ssize_t tiles, Py_ssize_t chunk, Scratch *scratch
) noexcept nogil:
    """Add up one chunk of the tiles."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t run, t, k
    cdef PairTile at
    cdef PairSums sums
    for run in range(runs_of(n)):
        for t in range(tiles):
            at = pair_tile(
                problem, t, chunk, run * TILE_RUN, min((run + 1) * TILE_RUN, n), scratch)
            tile_pair_sum(problem, &at)
    for t in range(tiles):
        tile_pair_total(problem, sums_of_tile(problem, t, scratch), n, &sums)
        for k in range(LANES):
            pair_sum_add(&groups[t].sums, k, chunk, sum_of_row(&sums, k))


cdef void pair_tiles_emit(
    Group *groups, const Problem *problem, Py_ssize_t tiles, Py_ssize_t chunk, Scratch *scratch
) noexcept nogil:
    """Make one chunk of the tiles' output where it belongs, or where INPUT was, and write it."""
    cdef bint by_class = lays_pairs_by_class(problem)
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t t
    cdef PairTile at
    cdef Tile result
    cdef TilePlace[MOST_TILES] places
    cdef Laying batch = Laying(groups, problem, tiles, chunk, &places[0], &scratch.scale, 0, 0)
    if problem.plan.chunks > 1:
        pair_tiles_fill(groups, problem, tiles, chunk, scratch)
    for t in range(tiles):
        places[t] = tile_place(groups, problem, OUTPUT, t, chunk, scratch)
        place_by_class(
            places + t, groups + t, problem, chunk, scratch.kept + t * scratch.kept_stride)
        if not by_class:
            places[t].to = <char *>places[t].values.data
            places[t].class_stride = LANES * sizeof(real)
    while batch.stop < n:
        laying_next(&batch, places)
        for t in range(tiles):
            at = pair_tile(problem, t, chunk, batch.first, batch.stop, scratch)
            result = Tile(places[t].to, places[t].class_stride, LANES)
            if places[t].straight:
                at.input_ahead = pair_ahead(groups + t, problem, OUTPUT, &at, &result, n)
            tile_pair_emit(groups + t, problem, &at, &scratch.scale, places + t)
        if by_class:
            tiles_write_rest(&batch, scratch)
    if not by_class:
        tiles_write(groups, problem, OUTPUT, tiles, chunk, scratch)


# ---- tasks ---------------------------------------------------------------------------------------


cdef environment pair_open(const Problem *problem, Scratch *scratch) noexcept nogil:
    scratch_take(problem, scratch)
    scratch.scale = scale_for(1.0, False)
    writer_open(
        &scratch.writers.output, &problem.arrays[<int>OUTPUT], problem.plan.stream,
        scratch.writers.output.lines.buffer)
    # A logarithm is to see the smallest probabilities.
    return environment_plain() if problem.operation == PROBABILITY_LOSS else environment_enter()


cdef inline void pair_close(
    const Problem *problem, Scratch *scratch, environment before
) noexcept nogil:
    scratch_close(problem, scratch)
    environment_leave(before)


cdef void pair_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    """Work through the rows of a task."""
    cdef const Problem *problem = <const Problem *>context
    cdef Py_ssize_t first = task * problem.plan.rows_per_task
    cdef Py_ssize_t stop = min(first + problem.plan.rows_per_task, problem.layout.rows)
    cdef Py_ssize_t across = first
    cdef double *results = NULL
    cdef Scratch *scratch = <Scratch *>memory
    cdef environment before = pair_open(problem, scratch)
    if problem.row_results != NULL:
        results = problem.row_results + first
    elif problem.task_sums != NULL:
        results = scratch.results
    if problem.plan.passes == ACROSS:
        across = stop
        if problem.plan.rest_along:
            across -= (stop - first) % LANES
        pairs_across(problem, first, across, results, scratch)
    if across < stop:
        pairs_along(
            problem, across, stop, NULL if results == NULL else results + (across - first),
            scratch)
    if problem.task_sums != NULL:
        problem.task_sums[task] = sum_in_lanes(results, stop - first)
    pair_close(problem, scratch, before)


# Few long rows: a task is one chunk of one row. The sum of a row's chunks takes the place of the
# first one's.


cdef void pair_sums_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const Problem *problem = <const Problem *>context
    cdef PairSum *parts = <PairSum *>problem.parts
    cdef PairChunk at
    cdef Scratch *scratch = <Scratch *>memory
    cdef environment before = pair_open(problem, scratch)
    group_open(scratch.groups, problem, task // problem.plan.chunks, 1)
    at = pair_read(scratch.groups, problem, 0, task % problem.plan.chunks, scratch)
    parts[task] = pair_sum(problem, &at, scratch)
    pair_close(problem, scratch, before)


cdef void pair_merge_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    """Add the sums of each row's chunks up, in order: a single task."""
    cdef const Problem *problem = <const Problem *>context
    cdef PairSum *parts = <PairSum *>problem.parts
    cdef Py_ssize_t row, chunk
    cdef Scratch *scratch = <Scratch *>memory
    cdef environment before = pair_open(problem, scratch)
    for row in range(problem.layout.rows):
        for chunk in range(1, problem.plan.chunks):
            parts[0] = pair_sum_merge(parts[0], parts[chunk])
        group_open(scratch.groups, problem, row, 1)
        sum_of_row_put(&scratch.groups.sums, 0, parts[0])
        pair_results(
            scratch.groups, problem,
            NULL if problem.row_results == NULL else problem.row_results + row)
        parts += problem.plan.chunks
    pair_close(problem, scratch, before)


cdef void pair_emit_task(const void *context, Py_ssize_t task, char *memory) noexcept nogil:
    cdef const Problem *problem = <const Problem *>context
    cdef Py_ssize_t row = task // problem.plan.chunks
    cdef PairChunk at
    cdef Scratch *scratch = <Scratch *>memory
    cdef environment before = pair_open(problem, scratch)
    group_open(scratch.groups, problem, row, 1)
    sum_of_row_put(
        &scratch.groups.sums, 0, (<const PairSum *>problem.parts)[row * problem.plan.chunks])
    at = pair_read(scratch.groups, problem, 0, task % problem.plan.chunks, scratch)
    pair_write(scratch.groups, problem, 0, &at, scratch)
    pair_close(problem, scratch, before)

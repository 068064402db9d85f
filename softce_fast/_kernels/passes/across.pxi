# The pass across rows: a row in each lane, LANES rows side by side.
#
# A tile holds class c of its rows at tile[c * LANES]; some tiles, a batch, go through each step
# together, so that no tile waits for another. How the rows lie in memory matters only when tiles
# are filled and emptied: class by class where rows are neighbours (in runs as long as the batch is
# wide), else row by row. Plain rows that are neighbours are a tile as they are: they are read where
# they lie. The arithmetic between is that of along.pxi, operation by operation and in
# the same order, so that a row comes out the same, bit for bit.
#
# Uses state.pxi, along.pxi, panel.pxi, writer.pxi, numbers.pxd.

cdef inline Py_ssize_t batch_rows(const Group *groups, Py_ssize_t tiles) noexcept nogil:
    return groups[tiles - 1].first + groups[tiles - 1].rows - groups[0].first


cdef void runs_fill(
    Runs *runs, const Group *groups, const Problem *problem, Role role, Py_ssize_t tiles
) noexcept nogil:
    """Find the rows of a batch in an array."""
    cdef const Array *array = &problem.arrays[<int>role]
    cdef Py_ssize_t first = groups[0].first, rows = batch_rows(groups, tiles)
    cdef Py_ssize_t done = 0, length, k
    runs.apart = not problem.plan.runs or step_in_runs(array) != array.size
    if runs.apart:
        runs.count = rows
        for k in range(rows):
            runs.offset[k] = in_group(groups + k // LANES, problem, role, k % LANES)
        return
    runs.count = 0
    while done < rows:
        length = rows - done
        if array.row_stride == 0:
            length = min(length, problem.layout.inner - (first + done) % problem.layout.inner)
        runs.offset[runs.count] = row_offset(&problem.layout, array, first + done)
        runs.length[runs.count] = length
        runs.count += 1
        done += length


cdef inline Py_ssize_t step_in_runs(const Array *array) noexcept nogil:
    """Bytes from one row of a run to the next."""
    return array.row_stride if array.row_stride != 0 else array.inner_stride


cdef inline bint picks_rows(const Problem *problem, const Array *array) noexcept nogil:
    """Whether the classes of a row are picked out of those of the few rows beside it."""
    return (
        problem.plan.pick and problem.layout.class_axes <= 1 and not array.swapped
        and are_few_apart(array.class_stride, array.size))


cdef inline bint goes_by_class(const Problem *problem, const Array *array) noexcept nogil:
    """Whether rows that are closer to each other than the classes are taken class by class."""
    return not has_neighbours(&problem.layout, array) and not picks_rows(problem, array) and (
        problem.layout.class_axes > 1
        or llabs(step_in_runs(array)) < llabs(array.class_stride))


cdef struct Tile:
    # The numbers of LANES rows, side by side for each class: in a tile, or where the rows are.
    const char *data
    Py_ssize_t stride    # bytes from one class to the next
    Py_ssize_t rows      # where these are fewer than LANES, the other numbers are 0


cdef inline Tile tile_at(const real *numbers) noexcept nogil:
    return Tile(<const char *>numbers, LANES * sizeof(real), LANES)


cdef inline const real *tile_numbers(const Tile *tile, Py_ssize_t c) noexcept nogil:
    return <const real *>(tile.data + c * tile.stride)


cdef inline vector tile_vector(const Tile *tile, Py_ssize_t c) noexcept nogil:
    """A class of a tile that has all rows."""
    return vector_load(tile_numbers(tile, c))


cdef inline vector tile_part(const Tile *tile, Py_ssize_t c) noexcept nogil:
    """A class of any tile."""
    if tile.rows < LANES:
        return vector_load_first(tile_numbers(tile, c), tile.rows)
    return tile_vector(tile, c)


cdef inline Tile tile_run(
    const Tile *tile, Py_ssize_t first, Py_ssize_t stop, real *memory
) noexcept nogil:
    """A tile that has all rows, but of some classes alone: a copy of one that has not."""
    cdef Py_ssize_t c
    if tile.rows == LANES:
        return tile[0]
    for c in range(first, stop):
        vector_store(memory + (c - first) * LANES, tile_part(tile, c))
    return tile_at(memory - first * LANES)


cdef inline bint is_side_by_side(
    const Group *group, const Problem *problem, Role role
) noexcept nogil:
    """Whether the rows of a whole group are neighbours in an array."""
    cdef const Array *array = &problem.arrays[<int>role]
    return step_in_group(group, problem, role) == array.size and not array.swapped


cdef inline Py_ssize_t tiles_alike(
    const Group *groups, const Problem *problem, Role role, Py_ssize_t tiles
) noexcept nogil:
    """How many of the first tiles are side by side in an array, or are not, as the very first."""
    cdef bint wanted = is_side_by_side(groups, problem, role)
    cdef Py_ssize_t t = 1
    while t < tiles and is_side_by_side(groups + t, problem, role) == wanted:
        t += 1
    return t


cdef inline bint is_made_of_tiles(const Problem *problem, Role role) noexcept nogil:
    """Whether plain rows that are neighbours lie in an array as in a tile."""
    cdef const Array *array = &problem.arrays[<int>role]
    return (
        array.kind == REAL_KIND and not array.swapped
        and goes_by_class(problem, array) and step_in_runs(array) == array.size)


cdef inline bint reads_tiles_in_place(const Problem *problem, Role role) noexcept nogil:
    """Whether no tile of an array is filled: groups end where neighbouring rows do, then."""
    if problem.plan.gather or not is_made_of_tiles(problem, INPUT):
        return False
    return role == INPUT or (is_pair(problem.operation) and is_made_of_tiles(problem, role))


cdef inline Py_ssize_t batch_open(
    Group *groups, const Problem *problem, Py_ssize_t row, Py_ssize_t stop
) noexcept nogil:
    """Open the groups of the batch that begins at a row; return how many. Only the last is partial.

    Batches are alike: to read a few rows of all classes would take as long as to read many.
    """
    cdef Py_ssize_t most = problem.plan.batch
    cdef Py_ssize_t inner = problem.layout.inner
    cdef Py_ssize_t tiles = 0, rows, left, batches
    cdef bint in_place = False
    if goes_by_class(problem, &problem.arrays[<int>INPUT]):
        in_place = reads_tiles_in_place(problem, INPUT)
        left = (stop - row + LANES - 1) // LANES
        batches = (left + most - 1) // most
        most = (left + batches - 1) // batches
    while tiles < most and row < stop:
        rows = min(<Py_ssize_t>LANES, stop - row)
        if in_place:
            rows = min(rows, inner - row % inner)
        group_open(groups + tiles, problem, row, rows)
        row += rows
        tiles += 1
        if rows < LANES:
            break
    return tiles


cdef inline Tile tile_of(
    const Group *group, const Problem *problem, Role role, Py_ssize_t chunk, const real *filled,
    bint in_place,
) noexcept nogil:
    """One chunk of a group in an array; or, if not `in_place`, the tile that it was copied to."""
    cdef const Array *array = &problem.arrays[<int>role]
    if not in_place:
        return tile_at(filled)
    return Tile(
        array.data + in_group(group, problem, role, 0) + chunk * CHUNK * array.class_stride,
        array.class_stride, group.rows)


# ---- filling -------------------------------------------------------------------------------------


cdef void run_bytes(
    const Array *array, const Runs *runs, Py_ssize_t at_class, char *to
) noexcept nogil:
    """Copy one class of all rows of a batch, in native byte order."""
    cdef const char *x = array.data + at_class
    cdef Py_ssize_t i, done = 0
    if runs.apart:
        elements_collect(to, x, runs.offset, runs.count, array.size)
        done = runs.count
    else:
        for i in range(runs.count):
            memcpy(to + done * array.size, x + runs.offset[i], runs.length[i] * array.size)
            done += runs.length[i]
    if array.swapped:
        elements_swap(to, done, array.size)


cdef inline void runs_join(const char *x, const Runs *runs, real *to) noexcept nogil:
    """Copy `real` numbers run by run."""
    cdef const real *run
    cdef Py_ssize_t i, k, n
    for i in range(runs.count):
        run = <const real *>(x + runs.offset[i])
        n = runs.length[i]
        k = 0
        while k + LANES <= n:
            vector_store(to + k, vector_load(run + k))
            k += LANES
        if k < n:
            # What is stored too much is where the next run begins.
            vector_store(to + k, vector_load_first(run + k, n - k))
        to += n


cdef inline void runs_part(char *to, const Runs *runs, const real *x) noexcept nogil:
    """The inverse of runs_join()."""
    cdef real *run
    cdef Py_ssize_t i, k, n
    for i in range(runs.count):
        run = <real *>(to + runs.offset[i])
        n = runs.length[i]
        k = 0
        while k + LANES <= n:
            vector_store(run + k, vector_load(x + k))
            k += LANES
        if k < n:
            vector_store_first(run + k, vector_load_first(x + k, n - k), n - k)
        x += n


cdef const real *run_read(
    const Array *array, const Runs *runs, Py_ssize_t at_class, Py_ssize_t rows, real *buffer,
    const Scratch *scratch,
) noexcept nogil:
    """One class of all rows of a batch, and of as many more as make whole groups."""
    cdef const char *x = array.data + at_class
    cdef bint plain = array.kind == REAL_KIND and not array.swapped
    cdef bint together = runs.count == 1 and not runs.apart
    cdef Py_ssize_t i
    if plain and together and rows % LANES == 0:
        return <const real *>(x + runs.offset[0])
    if plain and runs.apart:
        elements_collect(<char *>buffer, x, runs.offset, rows, sizeof(real))
    elif plain:
        runs_join(x, runs, buffer)
    elif together and not array.swapped:
        numbers_load(buffer, x + runs.offset[0], rows, array.kind)
    else:
        run_bytes(array, runs, at_class, scratch.raw)
        numbers_load(buffer, scratch.raw, rows, array.kind)
    for i in range(rows, (rows + LANES - 1) // LANES * LANES):
        # Lanes without a row repeat the first one of the group.
        buffer[i] = buffer[rows // LANES * LANES]
    return buffer


cdef void tiles_fill_by_class(
    const Group *groups, const Problem *problem, Role role, Py_ssize_t tiles, Py_ssize_t chunk,
    real *tile, Scratch *scratch,
) noexcept nogil:
    """Fill tiles that are alike; the first one is `tile`."""
    cdef const Array *array = &problem.arrays[<int>role]
    cdef const Array *included = &problem.arrays[<int>MASK]
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t rows = batch_rows(groups, tiles)
    cdef Py_ssize_t c, t, i
    cdef const char *at_class
    cdef const real *run
    cdef bint masked = included.data != NULL and role == INPUT
    if not masked and kind_has_vectors(array.kind) and is_side_by_side(groups, problem, role):
        for c in range(n):
            at_class = array.data + class_offset(&problem.layout, array, chunk * CHUNK + c)
            for t in range(tiles):
                vector_store(
                    tile + t * scratch.kept_stride + c * LANES,
                    kind_vector(at_class + in_group(groups + t, problem, role, 0), array.kind))
        return
    runs_fill(scratch.beside.runs, groups, problem, role, tiles)
    if masked:
        runs_fill(scratch.beside.runs + 1, groups, problem, MASK, tiles)
    for c in range(n):
        run = run_read(
            array, scratch.beside.runs, class_offset(&problem.layout, array, chunk * CHUNK + c),
            rows, scratch.packed, scratch)
        if masked:
            run_bytes(
                included, scratch.beside.runs + 1,
                class_offset(&problem.layout, included, chunk * CHUNK + c), scratch.raw)
            if run != scratch.packed:
                memcpy(scratch.packed, run, rows * sizeof(real))
                run = scratch.packed
            for i in range(rows):
                if scratch.raw[i] == 0:
                    scratch.packed[i] = NEGATIVE_INFINITY
        for t in range(tiles):
            vector_store(
                tile + t * scratch.kept_stride + c * LANES, vector_load(run + t * LANES))


cdef inline void tile_load(
    real *tile, const char *rows, Py_ssize_t row_stride, Py_ssize_t n
) noexcept nogil:
    """Fill a tile with n classes, neighbours, of rows that are evenly spaced."""
    cdef vector[QUARTER_LANES] columns
    cdef Py_ssize_t c = 0, start, k
    if n == 1 and row_stride == sizeof(real):
        vector_store(tile, vector_load(<const real *>rows))
    elif n == 2 and row_stride == 2 * <Py_ssize_t>sizeof(real):
        tile_load_packed(tile, <const real *>rows, 2)
    elif n == 3 and row_stride == 3 * <Py_ssize_t>sizeof(real):
        tile_load_packed(tile, <const real *>rows, 3)
    elif n < QUARTER_LANES:
        columns_load_first(columns, rows, row_stride, n)
        for c in range(n):
            vector_store(tile + c * LANES, columns[c])
    else:
        while c < n:
            # The last step is taken back so far that it is a whole one.
            start = min(c, n - QUARTER_LANES)
            columns_load(columns, rows + start * <Py_ssize_t>sizeof(real), row_stride)
            for k in range(QUARTER_LANES):
                if start + k >= c:
                    vector_store(tile + (start + k) * LANES, columns[k])
            c += QUARTER_LANES


cdef inline void tile_load_packed(real *tile, const real *x, Py_ssize_t n) noexcept nogil:
    """Fill a tile with n classes (2 or 3, a constant) of packed rows."""
    cdef vector[3] rows
    cdef vector[3] columns
    cdef Py_ssize_t c
    for c in range(n):
        rows[c] = vector_load(x + c * LANES)
    columns_from_rows(columns, rows, n)
    for c in range(n):
        vector_store(tile + c * LANES, columns[c])


cdef inline bint rows_follow(
    const Group *group, const Problem *problem, Role role
) noexcept nogil:
    """Whether the rows of a whole group follow each other, class by class."""
    cdef const Array *array = &problem.arrays[<int>role]
    return (
        problem.layout.class_axes <= 1 and array.class_stride == array.size
        and problem.plan.chunks == 1
        and step_in_group(group, problem, role) == problem.layout.classes * array.size)


cdef inline bint rows_are_one(const Problem *problem, Role role) noexcept nogil:
    """Whether all rows of an array are one."""
    return problem.arrays[<int>role].inner_stride == 0 and problem.layout.row_axes == 1


cdef inline bint leaves_class_out(const Problem *problem, Py_ssize_t c) noexcept nogil:
    """Whether a mask that is broadcast leaves a class out."""
    cdef const Array *included = &problem.arrays[<int>MASK]
    return included.data[class_offset(&problem.layout, included, c)] == 0


cdef void group_exclude(
    const Group *group, const Problem *problem, Py_ssize_t chunk, real *rows, real value,
    const Scratch *scratch,
) noexcept nogil:
    """Replace what a mask leaves out of the rows of a group, packed."""
    cdef const Array *included = &problem.arrays[<int>MASK]
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t k, c
    if rows_follow(group, problem, MASK):
        numbers_exclude(
            rows, included.data + in_group(group, problem, MASK, 0), LANES * n, value)
    elif rows_are_one(problem, MASK):
        for c in range(n):
            if leaves_class_out(problem, chunk * CHUNK + c):
                for k in range(group.rows):
                    rows[k * n + c] = value
    else:
        for k in range(group.rows):
            row_exclude(
                &problem.layout, included, in_group(group, problem, MASK, k), chunk * CHUNK, n,
                rows + k * n, value, scratch.raw)


cdef void group_gather(
    const Group *group, const Problem *problem, Role role, Py_ssize_t chunk, real *rows,
    Scratch *scratch,
) noexcept nogil:
    """Copy the rows of a group, packed."""
    cdef const Array *array = &problem.arrays[<int>role]
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t[16] offsets
    cdef Py_ssize_t k
    if picks_rows(problem, array):
        for k in range(group.rows):
            offsets[k] = in_group(group, problem, role, k) + chunk * CHUNK * array.class_stride
        elements_pick(
            &scratch.beside.picking, <char *>rows if array.kind == REAL_KIND else scratch.raw,
            n * array.size, array.data, offsets, group.rows, array.class_stride, n, array.size)
        if array.kind != REAL_KIND:
            numbers_load(rows, scratch.raw, group.rows * n, array.kind)
    elif rows_follow(group, problem, role) and (
        array.kind == REAL_KIND or not array.swapped or LANES * n <= MOST_ROWS    # in scratch.raw
    ):
        row_gather(
            &problem.layout, array, in_group(group, problem, role, 0), 0, LANES * n, rows,
            scratch.raw)
    else:
        for k in range(group.rows):
            row_gather(
                &problem.layout, array, in_group(group, problem, role, k), chunk * CHUNK, n,
                rows + k * n, scratch.raw)


cdef void tile_fill_by_row(
    const Group *group, const Problem *problem, Role role, Py_ssize_t chunk, real *tile,
    Scratch *scratch,
) noexcept nogil:
    cdef const Array *array = &problem.arrays[<int>role]
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t step = step_in_group(group, problem, role)
    cdef Py_ssize_t c
    cdef bint masked = role == INPUT and has(problem, MASK)
    cdef bint by_class = masked and rows_are_one(problem, MASK)
    if step != 0 and is_plain(&problem.layout, array) and (
        by_class or not masked
    ):
        tile_load(
            tile, array.data + in_group(group, problem, role, 0)
            + chunk * CHUNK * <Py_ssize_t>sizeof(real), step, n)
    elif rows_are_one(problem, role) and (by_class or not masked):
        row_gather(&problem.layout, array, 0, chunk * CHUNK, n, scratch.staged, scratch.raw)
        for c in range(n):
            vector_store(tile + c * LANES, vector_set(scratch.staged[c]))
    else:
        group_gather(group, problem, role, chunk, scratch.staged, scratch)
        if masked and not by_class:
            group_exclude(group, problem, chunk, scratch.staged, NEGATIVE_INFINITY, scratch)
        for c in range(group.rows, LANES):
            # Lanes without a row repeat the first one.
            memcpy(scratch.staged + c * n, scratch.staged, n * sizeof(real))
        tile_load(tile, <const char *>scratch.staged, n * <Py_ssize_t>sizeof(real), n)
    if by_class:
        for c in range(n):
            if leaves_class_out(problem, chunk * CHUNK + c):
                vector_store(tile + c * LANES, vector_set(NEGATIVE_INFINITY))


cdef void tiles_fill(
    const Group *groups, const Problem *problem, Role role, Py_ssize_t tiles, Py_ssize_t chunk,
    Scratch *scratch,
) noexcept nogil:
    """Fill the tiles of a batch with logits, or with probabilities or a mask, which lie behind."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t t = 0, alike
    cdef real *first = scratch.kept + <int>role * n * LANES
    cdef real *tile
    if reads_tiles_in_place(problem, role):
        return
    if goes_by_class(problem, &problem.arrays[<int>role]):
        while t < tiles:
            alike = tiles_alike(groups + t, problem, role, tiles - t)
            tiles_fill_by_class(
                groups + t, problem, role, alike, chunk, first + t * scratch.kept_stride, scratch)
            t += alike
    else:
        for t in range(tiles):
            tile_fill_by_row(
                groups + t, problem, role, chunk, first + t * scratch.kept_stride, scratch)
    if problem.options.softcap != 0 and role == INPUT:
        for t in range(tiles):
            tile = scratch.kept + t * scratch.kept_stride
            numbers_cap(tile, tile, n * LANES, &scratch.softcap)


cdef void tiles_read(
    const Group *groups, const Problem *problem, Py_ssize_t tiles, Py_ssize_t chunk,
    Scratch *scratch,
) noexcept nogil:
    """Fill the tiles of a batch with all that one chunk of it takes."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t t
    tiles_fill(groups, problem, INPUT, tiles, chunk, scratch)
    if has(problem, SECOND):
        tiles_fill(groups, problem, SECOND, tiles, chunk, scratch)
    if shares_by_row(problem):
        tiles_fill(groups, problem, MASK, tiles, chunk, scratch)
        for t in range(tiles):
            tile_shares(
                groups + t, problem, n, scratch.kept + t * scratch.kept_stride + n * LANES)


cdef void tile_shares(
    const Group *group, const Problem *problem, Py_ssize_t n, real *tile
) noexcept nogil:
    """row_shares(), of a tile that the mask lies behind."""
    cdef vector share = vector_set(<real>(1 - problem.options.label_smoothing))
    cdef vector zero = vector_set(0.0)
    cdef vector even = vector_from(group.weights.even)
    cdef vector v
    cdef Py_ssize_t c
    for c in range(n):
        v = vector_select(
            vector_equal(vector_load(tile + (n + c) * LANES), zero), zero, even)
        if has(problem, SECOND):
            v = vector_fma(share, vector_load(tile + c * LANES), v)
        vector_store(tile + c * LANES, v)


# ---- absorb --------------------------------------------------------------------------------------


cdef enum:
    TILE_RUN = RUN * LANES    # classes of a tile that the first-level cache holds, and that a sum
    #                           takes in at once


cdef struct TileSums:
    # Sums of a tile that are not finished, LANES of each row.
    DoubleDouble[16] lane
    DoubleDouble[16] other               # pairs: another sum
    real[RUN * LANES_SQUARED] terms      # of a run, where they are not kept; or few rows' numbers,
    real[RUN * LANES_SQUARED] second     # and of another array
    vector apart                         # lest a class of all tiles be in one set of a cache


cdef inline Py_ssize_t runs_of(Py_ssize_t n) noexcept nogil:
    return (n + TILE_RUN - 1) // TILE_RUN


cdef inline bint sums_by_run(const Problem *problem) noexcept nogil:
    """Whether what is added up of a run is, before the next one's is made."""
    return is_pair(problem.operation) or (
        problem.layout.classes > TILE_RUN and not is_weighted(problem)
        and problem.shard.exported == NULL)


cdef inline bint lays_pairs_by_class(const Problem *problem) noexcept nogil:
    """Whether the output of two arrays goes from the tiles to memory run by run."""
    cdef const Array *array = &problem.arrays[<int>OUTPUT]
    return array.kind == REAL_KIND and goes_by_class(problem, array)


cdef inline Py_ssize_t tile_room(const Problem *problem, Py_ssize_t n) noexcept nogil:
    """Of how many classes, of n, a tile keeps numbers; a run's where it keeps none for long."""
    if (
        keeps_exponentials(problem) or not reads_tiles_in_place(problem, INPUT)
        or (has(problem, SECOND) and not reads_tiles_in_place(problem, SECOND))
        or (is_pair(problem.operation) and not lays_pairs_by_class(problem))
    ):
        return n
    return min(<Py_ssize_t>TILE_RUN, n)


cdef inline Py_ssize_t tile_size(const Problem *problem) noexcept nogil:
    return LANES * tile_sections(problem) * tile_room(
        problem, min(<Py_ssize_t>CHUNK, problem.layout.classes))


cdef inline Py_ssize_t tile_stride(const Problem *problem) noexcept nogil:
    """Numbers from one tile to the next."""
    if sums_by_run(problem) or reads_tiles_in_place(problem, INPUT):
        return tile_size(problem) + <Py_ssize_t>(sizeof(TileSums) // sizeof(real))
    return tile_size(problem)


cdef inline TileSums *sums_of_tile(
    const Problem *problem, Py_ssize_t t, const Scratch *scratch
) noexcept nogil:
    return <TileSums *>(scratch.kept + t * scratch.kept_stride + tile_size(problem))


cdef inline vector tile_maximum(
    const Tile *tile, Py_ssize_t first, Py_ssize_t stop, vector before, bint fetch
) noexcept nogil:
    """The maximum of some classes and of `before`; if they are not the last, `fetch` the next."""
    cdef vector a = before
    cdef vector b = before
    cdef Py_ssize_t c = first
    while c + 2 <= stop:
        if fetch:
            prefetch(tile.data + (c + TILE_RUN) * tile.stride)
            prefetch(tile.data + (c + 1 + TILE_RUN) * tile.stride)
        a = vector_maximum(tile_vector(tile, c), a)
        b = vector_maximum(tile_vector(tile, c + 1), b)
        c += 2
    if c < stop:
        a = vector_maximum(tile_vector(tile, c), a)
    return vector_maximum(a, b)


cdef inline void tile_top(
    const Tile *tile, Py_ssize_t first, Py_ssize_t stop, vector *maximum, vector *position
) noexcept nogil:
    """The same, and where it is first."""
    cdef vector number = vector_set(<real>first)
    cdef vector one = vector_set(1.0)
    cdef vector value = maximum[0]
    cdef vector place = position[0]
    cdef vector x
    cdef Py_ssize_t c
    for c in range(first, stop):
        prefetch(tile.data + (c + TILE_RUN) * tile.stride)
        x = tile_vector(tile, c)
        place = vector_select(vector_greater(x, value), number, place)
        value = vector_maximum(x, value)
        number = vector_add(number, one)
    maximum[0] = value
    position[0] = place


cdef vector tile_find(const Tile *tile, Py_ssize_t n, vector value) noexcept nogil:
    """The first class equal to `value`, row by row; -1 if there is none."""
    cdef vector found = vector_set(-1.0)
    cdef Py_ssize_t c
    for c in range(n - 1, -1, -1):
        found = vector_select(
            vector_equal(tile_part(tile, c), value), vector_set(<real>c), found)
    return found


cdef inline void tiles_maxima(
    Group *groups, const Problem *problem, Py_ssize_t tiles, Py_ssize_t chunk, Scratch *scratch
) noexcept nogil:
    """Find the maximum of one chunk of each tile, and its place where that is asked for."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t first = 0, stop, t
    if not reads_tiles_in_place(problem, INPUT):
        for t in range(tiles):
            tile_raise(groups + t, problem, t, chunk, 0, n, False, scratch)
        return
    while first < n:
        stop = min(first + TILE_RUN, n)
        for t in range(tiles):
            tile_raise(groups + t, problem, t, chunk, first, stop, True, scratch)
        first = stop


cdef inline void tile_raise(
    Group *group, const Problem *problem, Py_ssize_t t, Py_ssize_t chunk, Py_ssize_t first,
    Py_ssize_t stop, bint in_place, Scratch *scratch,
) noexcept nogil:
    """Let some classes of a tile into the maximum of its chunk; `in_place` is a constant."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef RowState *state = chunk_state(group, problem, t, chunk, scratch)
    cdef Tile tile = tile_of(
        group, problem, INPUT, chunk, scratch.kept + t * scratch.kept_stride, in_place)
    cdef Tile run = tile
    cdef vector maximum = vector_set(NEGATIVE_INFINITY)
    cdef vector position = vector_set(-1.0)
    if in_place:
        run = tile_run(&tile, first, stop, sums_of_tile(problem, t, scratch).terms)
    if first > 0:
        maximum = state.maximum
        position = state.position
    if leaves_out_maximum(problem.operation):
        tile_top(&run, first, stop, &maximum, &position)
        if stop == n and any_lane(vector_equal(position, vector_set(-1.0))):
            # Nothing is above -inf.
            position = tile_find(&tile, n, maximum)
    elif stop < n:
        maximum = tile_maximum(&run, first, stop, maximum, True)
    else:
        maximum = tile_maximum(&run, first, stop, maximum, False)
    state.maximum = maximum
    state.position = position


cdef struct TileTerms:
    # What tile_exponentials() reads and writes.
    Reference reference
    Tile logits
    real *copied              # where that is copied to, if it has not all rows
    real *exponentials        # NULL where they are not wanted; may be the tile of logits
    real *terms               # what is to be added up: may be either of these; where exponentials
    #                           are not wanted, those of the last run
    vector pivot              # class to leave out of a row's sum; outside [0, n) for none
    vector pivot_logit        # the logit of that class
    Ahead ahead               # what is fetched meanwhile
    Ahead factors_ahead       # and while terms are multiplied by factors
    DoubleDouble *lane        # the sums that terms are added to, run by run; NULL if they are not


cdef inline real *run_terms(const TileTerms *tile, Py_ssize_t first) noexcept nogil:
    """Where what is to be added up of the run from class `first` on is."""
    return tile.terms if tile.exponentials == NULL else tile.terms + first * LANES


cdef inline void tile_exponentials(
    TileTerms *tile_, Tile logits, Py_ssize_t first, Py_ssize_t stop, const Scale *scale,
    Lines *lines, bint use_pivot,
) noexcept nogil:
    """Turn logits into exponentials; `use_pivot` is a constant, and what scale's flags say."""
    # A copy, which no store in the loop can change.
    cdef TileTerms tile = tile_[0]
    cdef real *terms = run_terms(&tile, first)
    cdef vector x, e
    cdef vector one = vector_set(1.0)
    cdef vector zero = vector_set(0.0)
    cdef vector number = vector_set(<real>first)
    cdef mask here
    cdef Py_ssize_t c
    for c in range(first, stop):
        fetch(&tile.ahead, c)
        line_step(lines)
        x = tile_vector(&logits, c)
        e = exponential(x, tile.reference, scale)
        if use_pivot:
            if tile.exponentials != NULL:
                vector_store(tile.exponentials + c * LANES, e)
            here = vector_equal(number, tile.pivot)
            tile.pivot_logit = vector_select(here, x, tile.pivot_logit)
            number = vector_add(number, one)
            e = vector_select(here, zero, e)
        vector_store(terms + (c - first) * LANES, e)
    tile_.pivot_logit = tile.pivot_logit


cdef inline void tiles_absorb_with(
    TileTerms *terms, Py_ssize_t tiles, Py_ssize_t n, const Scale *scale_, Lines *lines_,
    bint use_pivot, Arithmetic arithmetic,
) noexcept nogil:
    cdef Scale scale = scale_with(scale_, arithmetic)
    cdef Lines lines = lines_[0]
    cdef Py_ssize_t t, first = 0, stop = n
    while first < n:
        if terms.lane != NULL:
            stop = min(first + TILE_RUN, n)
        for t in range(tiles):
            tile_exponentials(
                terms + t, tile_run(&terms[t].logits, first, stop, terms[t].copied), first, stop,
                &scale, &lines, use_pivot)
            if terms.lane != NULL:
                tile_run_add(
                    terms[t].lane, run_terms(terms + t, first), first, stop - first,
                    scale.few_digits)
        first = stop
    lines_[0] = lines


cdef inline void tiles_absorb(
    TileTerms *terms, Py_ssize_t tiles, Py_ssize_t n, const Scale *scale, Lines *lines,
    bint use_pivot,
) noexcept nogil:
    """tile_exponentials() of a batch, in the arithmetic that its rows need.

    Meanwhile, for each class, one of the lines that wait is written.
    """
    cdef vector shift = vector_set(0.0)
    cdef Py_ssize_t t
    for t in range(tiles):
        shift = vector_maximum(vector_absolute(terms[t].reference.shift), shift)
    cdef Arithmetic arithmetic = arithmetic_for(
        scale, vector_mask_bits(vector_greater(shift, vector_set(0.0))) != 0)
    if arithmetic == GENERAL:
        tiles_absorb_with(terms, tiles, n, scale, lines, use_pivot, GENERAL)
    elif arithmetic == FEW_DIGITS:
        tiles_absorb_with(terms, tiles, n, scale, lines, use_pivot, FEW_DIGITS)
    else:
        tiles_absorb_with(terms, tiles, n, scale, lines, use_pivot, PLAIN)


cdef void tiles_absorb_all(
    TileTerms *terms, Py_ssize_t tiles, Py_ssize_t n, const Scale *scale, Lines *lines
) noexcept nogil:
    tiles_absorb(terms, tiles, n, scale, lines, False)


cdef void tiles_absorb_others(
    TileTerms *terms, Py_ssize_t tiles, Py_ssize_t n, const Scale *scale, Lines *lines
) noexcept nogil:
    tiles_absorb(terms, tiles, n, scale, lines, True)


cdef inline vector tile_weigh(const TileTerms *tile, Py_ssize_t n) noexcept nogil:
    """Multiply the terms by the factors, which lie behind the logits; return that of the pivot."""
    cdef vector zero = vector_set(0.0)
    cdef vector own = zero
    cdef vector x, factor
    cdef mask here
    cdef Py_ssize_t c
    for c in range(n):
        fetch(&tile.factors_ahead, c)
        x = tile_vector(&tile.logits, c)
        factor = tile_vector(&tile.logits, n + c)
        here = vector_equal(tile.pivot, vector_set(<real>c))
        own = vector_select(here, weighted(vector_set(1.0), x, factor), own)
        vector_store(tile.terms + c * LANES, vector_select(
            here, zero, weighted(vector_load(tile.terms + c * LANES), x, factor)))
    return own


cdef inline vector classes_in_chunk(const int64_t *classes, Py_ssize_t chunk) noexcept nogil:
    """A class of each row counted from the start of the chunk; outside [0, CHUNK) if elsewhere."""
    cdef real[16] counted
    cdef int64_t first = chunk * CHUNK
    cdef int64_t at
    cdef Py_ssize_t k
    for k in range(LANES):
        at = classes[k] - first
        at = -1 if at < 0 else at
        at = CHUNK if at > CHUNK else at
        counted[k] = <real><int>at
    return vector_load(counted)


cdef inline RowState *chunk_state(
    Group *group, const Problem *problem, Py_ssize_t tile, Py_ssize_t chunk, Scratch *scratch
) noexcept nogil:
    """The state of a chunk of a group of the batch: of the whole rows if it is the only one."""
    if not merges_chunks(problem):
        return &group.whole
    return scratch.states + tile * problem.plan.chunks + chunk


cdef inline real *tile_terms(const Problem *problem, real *tile, Py_ssize_t n) noexcept nogil:
    """Where what is to be added up of a tile goes: behind what is still wanted of it."""
    return tile + (tile_sections(problem) - 1) * n * LANES


cdef inline void tiles_open(
    Group *groups, const Problem *problem, Py_ssize_t tiles, Py_ssize_t chunk, Scratch *scratch
) noexcept nogil:
    """Read one chunk of each tile, and choose its reference."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t t
    cdef RowState *state
    cdef real *tile
    tiles_read(groups, problem, tiles, chunk, scratch)
    for t in range(tiles if is_weighted(problem) else 0):
        tile = scratch.kept + t * scratch.kept_stride
        copy_weighty(tile, tile, tile + n * LANES, n * LANES)
    tiles_maxima(groups, problem, tiles, chunk, scratch)
    for t in range(tiles):
        state = chunk_state(groups + t, problem, t, chunk, scratch)
        state.reference = reference_for(state.maximum, &scratch.scale)


cdef inline bint keeps_exponentials(const Problem *problem) noexcept nogil:
    """Whether the output is made of the exponentials in the tiles."""
    return (
        has(problem, OUTPUT) and not emits_from_logits(problem)
        and not is_pair(problem.operation))


cdef inline void terms_open(
    TileTerms *terms, const Problem *problem, Py_ssize_t t, real *tile, Py_ssize_t n,
    const Scratch *scratch,
) noexcept nogil:
    """Say where what is added up of a tile goes."""
    terms.terms = tile_terms(problem, tile, n)
    terms.lane = NULL
    if sums_by_run(problem) and terms.exponentials == NULL:
        terms.terms = sums_of_tile(problem, t, scratch).terms
    if sums_by_run(problem) and n > LANES:
        terms.lane = sums_of_tile(problem, t, scratch).lane


cdef inline Ahead tile_ahead(
    const Group *group, const Problem *problem, Role role
) noexcept nogil:
    """What is fetched while a tile is worked on: for each class, a cache line."""
    cdef const Array *array = &problem.arrays[<int>role]
    cdef Py_ssize_t row = group.first
    if problem.plan.ahead == 0 or not goes_by_class(problem, array):
        return Ahead(
            array.data + in_group(group, problem, role, 0) + bytes_ahead(problem, role),
            LANES * array.size)
    # The next batch, if it is in lines of its own.
    row += problem.plan.ahead // problem.arrays[<int>INPUT].size
    return Ahead(
        array.data + row_offset(&problem.layout, array, min(row, problem.layout.rows - 1)),
        array.class_stride)


cdef void tiles_exponentials(
    Group *groups, const Problem *problem, Py_ssize_t tiles, Py_ssize_t chunk, Scratch *scratch
) noexcept nogil:
    """Compute what is to be added up of each tile, and add it up."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Lines *lines = &scratch.writers.output.lines
    cdef Py_ssize_t t
    cdef bint keeps = keeps_exponentials(problem)
    cdef bint in_place = reads_tiles_in_place(problem, INPUT)
    cdef TileTerms *terms = <TileTerms *>scratch.sums
    cdef RowState *state
    cdef real *tile
    for t in range(tiles):
        tile = scratch.kept + t * scratch.kept_stride
        state = chunk_state(groups + t, problem, t, chunk, scratch)
        terms[t].reference = state.reference
        terms[t].logits = tile_of(groups + t, problem, INPUT, chunk, tile, in_place)
        if in_place:
            terms[t].copied = sums_of_tile(problem, t, scratch).terms
        terms[t].exponentials = tile if keeps else NULL
        if is_scored(problem.operation):
            # The coefficients of the entropy; else the terms, of which there may be another sum.
            terms[t].exponentials = tile + n * LANES
        terms_open(terms + t, problem, t, tile, n, scratch)
        terms[t].ahead = tile_ahead(groups + t, problem, INPUT)
        if is_weighted(problem):
            terms[t].factors_ahead = tile_ahead(groups + t, problem, SECOND)
        if leaves_out_nothing(problem.operation):
            continue
        terms[t].pivot_logit = vector_set(0.0)
        terms[t].pivot = state.position
        if leaves_out_label(problem.operation):
            terms[t].pivot = classes_in_chunk(groups[t].labels, chunk)
        if is_dense(problem.operation):
            tile_spread(
                groups + t, problem, chunk, state, tile, tile_terms(problem, tile, n))
    if leaves_out_nothing(problem.operation):
        tiles_absorb_all(terms, tiles, n, &scratch.scale, lines)
    else:
        tiles_absorb_others(terms, tiles, n, &scratch.scale, lines)
    for t in range(tiles):
        state = chunk_state(groups + t, problem, t, chunk, scratch)
        if is_weighted(problem):
            state.own_coefficient = tile_weigh(terms + t, n)
        state.others = tile_total(terms + t, n, scratch.scale.few_digits)
        if leaves_out_label(problem.operation) and problem.plan.chunks == 1:
            groups[t].own_logit = terms[t].pivot_logit
            groups[t].own_is_known = True


cdef inline DoubleDouble tile_total(
    const TileTerms *tile, Py_ssize_t n, bint few_digits
) noexcept nogil:
    """The sum of the terms of a tile, for each row."""
    if tile.lane != NULL:
        return lanes_merge(tile.lane, LANES, few_digits)
    return tile_sums(tile.terms, n, few_digits)


# ---- sums ----------------------------------------------------------------------------------------


cdef inline DoubleDouble tile_sums(const real *terms, Py_ssize_t n, bint few_digits) noexcept nogil:
    """Add up what a tile has of each row."""
    if n <= 4:
        return tile_sums_few(terms, n, 4, few_digits)
    if n <= 8:
        return tile_sums_few(terms, n, 8, few_digits)
    if n <= LANES:
        return tile_sums_few(terms, n, LANES, few_digits)
    if few_digits:
        return tile_sums_many(terms, n, True)
    return tile_sums_many(terms, n, False)


cdef inline vector tile_lane(const real *terms, Py_ssize_t n, Py_ssize_t width) noexcept nogil:
    """Every fourth term, (0 + 8) + (4 + 12), of n that are left, without adding zeros.

    Of `width` terms more than a half are there in all.
    """
    cdef vector total = vector_set(0.0)
    cdef vector second
    if width > 4 or n > 0:
        total = vector_load(terms)
    if width > 8 and n > 8:
        total = vector_add(total, vector_load(terms + 8 * LANES))
    if width > 8 or (width > 4 and n > 4):
        second = vector_load(terms + 4 * LANES)
        if width > 8 and n > 12:
            second = vector_add(second, vector_load(terms + 12 * LANES))
        total = vector_add(total, second)
    return total


cdef inline DoubleDouble tile_sums_few(
    const real *terms, Py_ssize_t n, Py_ssize_t width, bint few_digits
) noexcept nogil:
    """At most LANES classes: each is a lane of its own, added up as vector_reduce_few does.

    `width`, a constant here, is 4, 8 or 16, the least that n is not above.
    """
    cdef vector[4] lane
    cdef Py_ssize_t k
    for k in range(4):
        lane[k] = tile_lane(terms + k * LANES, n - k, width)
    return sum_merge(
        sum_add(double_double_from(lane[0]), lane[2], few_digits),
        sum_add(double_double_from(lane[1]), lane[3], few_digits), few_digits)


cdef inline DoubleDouble tile_sums_many(
    const real *terms, Py_ssize_t n, bint few_digits
) noexcept nogil:
    """Lane by lane as row_exponentials, added up as vector_reduce_compensated does."""
    cdef DoubleDouble[16] lane
    cdef Py_ssize_t run, first
    for run in range(runs_of(n)):
        first = run * TILE_RUN
        tile_run_add(
            lane, terms + first * LANES, first, min(<Py_ssize_t>TILE_RUN, n - first), few_digits)
    return lanes_merge(lane, LANES, few_digits)


cdef inline void tile_run_add(
    DoubleDouble *lane, const real *terms, Py_ssize_t first, Py_ssize_t n, bint few_digits
) noexcept nogil:
    """Add the terms of one run, which begins at class `first` and has n, to the lanes' sums."""
    cdef vector[RUN] e
    cdef Py_ssize_t k, j
    if first == 0:
        for k in range(LANES):
            lane[k] = double_double_from(tile_run_sum(terms, k, n))
        return
    if n < TILE_RUN:
        for k in range(min(<Py_ssize_t>LANES, n)):
            lane[k] = sum_add(lane[k], tile_run_sum(terms, k, n), few_digits)
        return
    for k in range(LANES):
        for j in range(RUN):
            e[j] = vector_load(terms + (j * LANES + k) * LANES)
        lane[k] = sum_add(lane[k], run_sum(e), few_digits)


cdef inline vector tile_run_sum(const real *terms, Py_ssize_t c, Py_ssize_t n) noexcept nogil:
    """run_sum() of what a lane has of the last run, class c first, without adding zeros."""
    cdef vector total = vector_load(terms + c * LANES)
    cdef vector second
    if c + LANES < n:
        total = vector_add(total, vector_load(terms + (c + LANES) * LANES))
    if c + 2 * LANES < n:
        second = vector_load(terms + (c + 2 * LANES) * LANES)
        if c + 3 * LANES < n:
            second = vector_add(second, vector_load(terms + (c + 3 * LANES) * LANES))
        total = vector_add(total, second)
    return total


# ---- dense targets -------------------------------------------------------------------------------


cdef inline Coefficients tile_coefficients_of(
    const Problem *problem, Py_ssize_t chunk, const real *tile
) noexcept nogil:
    """Describe the coefficients of a chunk of a tile: `probabilities` is a tile, too."""
    cdef Coefficients coefficients = coefficients_of_call(problem, chunk)
    if coefficients_by_row(problem):
        coefficients.probabilities = tile + chunk_length(problem, chunk) * LANES
    return coefficients


cdef inline vector tile_coefficient(
    const Coefficients *coefficients, Py_ssize_t c
) noexcept nogil:
    cdef vector v = coefficients.even
    if coefficients.probabilities != NULL:
        v = vector_load(coefficients.probabilities + c * LANES)
        if coefficients.smoothed:
            v = vector_fma(coefficients.share, v, coefficients.even)
    if coefficients.weight != NULL:
        v = product_or_zero(vector_set(coefficients.weight[c]), v)
    return v


cdef inline vector tile_coefficients_lay(
    const Coefficients *coefficients, Py_ssize_t n, vector top, real *terms
) noexcept nogil:
    """Lay the coefficients out, 0 for class `top`; return those."""
    cdef vector zero = vector_set(0.0)
    cdef vector own = zero
    cdef vector v
    cdef mask here
    cdef Py_ssize_t c
    for c in range(n):
        v = tile_coefficient(coefficients, c)
        here = vector_equal(top, vector_set(<real>c))
        own = vector_select(here, v, own)
        vector_store(terms + c * LANES, vector_select(here, zero, v))
    return own


cdef void tile_spread(
    const Group *group, const Problem *problem, Py_ssize_t chunk, RowState *state,
    const real *tile, real *terms,
) noexcept nogil:
    """Sum, over one chunk, what there are coefficients for."""
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Coefficients coefficients = tile_coefficients_of(problem, chunk, tile)
    cdef vector origin = spread_origin(state.maximum)
    cdef Py_ssize_t c
    coefficients.ahead = Ahead(<const char *>tile, 0)
    if has(problem, SECOND):
        coefficients.ahead = tile_ahead(group, problem, SECOND)
    if coefficients_are_even(problem):
        for c in range(n):
            vector_store(terms + c * LANES, vector_multiply(
                coefficients.even, vector_subtract(origin, vector_load(tile + c * LANES))))
    else:
        for c in range(n):
            if coefficients.probabilities != NULL:
                fetch(&coefficients.ahead, c)
            vector_store(terms + c * LANES, spread_term(
                tile_coefficient(&coefficients, c), origin, vector_load(tile + c * LANES)))
    state.spread = double_double_rounded(tile_sums(terms, n, False))
    state.own_coefficient = vector_set(0.0)
    if coefficients_by_row(problem):
        state.own_coefficient = tile_coefficients_lay(&coefficients, n, state.position, terms)
        state.other_coefficients = tile_sums(terms, n, False)
        unmasked_coefficients(group, problem, chunk, state)
    else:
        state.other_coefficients = chunk_coefficients(problem, chunk)


# ---- emit ----------------------------------------------------------------------------------------


cdef enum TileTarget:
    # What the classes of a target get instead of, or on top of, their share of the sum.
    NO_TARGET = 0
    BY_LABEL = 1
    DENSE = 2
    CURVED = 4    # the Hessian instead of the gradient
    EVEN = 8      # of a dense target, all classes but the label have the same coefficient


cdef struct TileOutput:
    # What to write for the classes of a tile.
    OutputKind kind
    int target                 # of TileTarget
    Tile values                # exponentials or logits
    DoubleDouble factor
    vector unscale
    vector minus
    DoubleDouble share         # for the Hessian: 1 / the sum of the exponentials
    vector coefficient_factor
    Reference reference
    Coefficients coefficients
    vector label               # the class that gets at_label instead, or as its coefficient
    vector at_label
    vector top                 # dense targets: the same for at_top, which goes first
    vector at_top
    vector floor               # of the Hessian


cdef struct TilePlace:
    # A chunk of a tile, and where its output, of this role, goes:
    Role role
    const RowState *state
    Tile values
    Py_ssize_t n
    char *to
    Py_ssize_t row_stride
    Py_ssize_t class_stride    # by rows if 0, else class by class,
    int kind                   # as elements of this kind;
    bint straight              # that is where it belongs


cdef struct Laying:
    # A batch whose output is laid out.
    const Group *groups
    const Problem *problem
    Py_ssize_t tiles
    Py_ssize_t chunk
    const TilePlace *places    # of each tile
    const Scale *scale
    Py_ssize_t first           # by classes: the first that is laid out,
    Py_ssize_t stop            # and the one after the last


cdef inline TileOutput tile_output_open(
    const Group *group, const Problem *problem, Py_ssize_t chunk, const TilePlace *place,
    OutputKind kind, int target,
) noexcept nogil:
    """Describe the output of one chunk of a tile; what is not needed is not set."""
    cdef TileOutput output
    output.values = place.values
    output.kind = kind
    output.target = target
    if kind == FINISHED:
        return output
    if target == CURVED:
        tile_curvature_open(&output, group, problem, chunk, place)
        return output
    output.factor = chunk_factor(
        group.recipe.factor, group, problem, place.state, &output.reference)
    output.unscale = group.recipe.unscale
    output.minus = group.recipe.minus
    if target & DENSE:
        output.coefficients = tile_coefficients_of(
            problem, chunk, <const real *>place.values.data)
        if target & EVEN:
            output.coefficients.probabilities = output.coefficients.weight = NULL
        output.coefficient_factor = group.recipe.coefficient_factor
        output.top = classes_in_chunk(group.recipe.top, chunk)
        output.at_top = group.recipe.at_top
    if target & BY_LABEL:
        output.label = classes_in_chunk(group.labels, chunk)
        output.at_label = group.recipe.at_label
    return output


cdef inline void tile_curvature_open(
    TileOutput *output, const Group *group, const Problem *problem, Py_ssize_t chunk,
    const TilePlace *place,
) noexcept nogil:
    cdef const Curvature *curvature = &group.recipe.curvature
    output.share = chunk_factor(
        curvature.share, group, problem, place.state, &output.reference)
    output.factor = chunk_factor(
        curvature.factor, group, problem, place.state, &output.reference)
    output.unscale = curvature.unscale
    output.label = classes_in_chunk(curvature.top, chunk)
    output.at_label = curvature.at_top
    output.floor = vector_set(<real>problem.options.hessian.floor)


cdef inline vector tile_output(
    const TileOutput *tile, Py_ssize_t c, const Scale *scale
) noexcept nogil:
    """The output for class c."""
    cdef vector number = vector_set(<real>c)
    cdef vector coefficient
    cdef vector v
    if tile.kind == FROM_LOGITS or tile.kind == LOGARITHMS:
        v = tile_part(&tile.values, c)
    else:
        v = vector_load(<const real *>tile.values.data + c * LANES)
    if tile.kind == FINISHED:
        return v
    if tile.kind == LOGARITHMS:
        return vector_subtract(cooled_difference(v, tile.minus, scale), tile.factor.high)
    if tile.kind == FROM_LOGITS:
        v = exponential(v, tile.reference, scale)
    if tile.target == CURVED:
        v = curvature_product(
            v, tile.factor, tile.unscale, tile.share, tile.floor)
    elif tile.target & DENSE:
        coefficient = tile_coefficient(&tile.coefficients, c)
        if tile.target & BY_LABEL:
            coefficient = vector_select(
                vector_equal(tile.label, number), tile.at_label, coefficient)
        v = vector_multiply(
            vector_fnma(
                tile.coefficient_factor, coefficient, product_rounded(tile.factor, v)),
            tile.unscale)
        return vector_select(vector_equal(tile.top, number), tile.at_top, v)
    else:
        v = output_product(v, tile.factor, tile.unscale, scale.few_digits)
    if tile.target & (BY_LABEL | CURVED):
        v = vector_select(vector_equal(tile.label, number), tile.at_label, v)
    return v


cdef inline void tile_unpack_few(
    const TileOutput *tile, Py_ssize_t n, const Scale *scale, real *rows
) noexcept nogil:
    """tile_unpack() for n classes, a constant from 2 to MOST_COLUMNS, to packed rows."""
    cdef vector[3] columns
    cdef vector[3] packed
    cdef Py_ssize_t c
    for c in range(n):
        columns[c] = tile_output(tile, c, scale)
    rows_from_columns(packed, columns, n)
    for c in range(n):
        vector_store(rows + c * LANES, packed[c])


cdef inline void tile_unpack(
    const TileOutput *tile, Py_ssize_t n, const Scale *scale, char *rows, Py_ssize_t row_stride
) noexcept nogil:
    """Lay the output out in rows; fewer than QUARTER_LANES or 4 classes in packed ones."""
    cdef vector[QUARTER_LANES] turned
    cdef Py_ssize_t last = n - QUARTER_LANES
    cdef Py_ssize_t step = 0, start = last, k
    if n == 1:
        vector_store(<real *>rows, tile_output(tile, 0, scale))
        return
    if n == 2:
        tile_unpack_few(tile, 2, scale, <real *>rows)
        return
    if n == 3:
        tile_unpack_few(tile, 3, scale, <real *>rows)
        return
    # To compute a few numbers of the last step twice costs less than to keep them.
    while True:
        for k in range(QUARTER_LANES):
            turned[k] = tile_output(tile, start + k, scale)
        columns_store(rows + start * <Py_ssize_t>sizeof(real), row_stride, turned)
        if step >= last:
            return
        start = step
        step += QUARTER_LANES


cdef inline void tile_lay(
    const Laying *batch, Py_ssize_t t, const Scale *scale, OutputKind kind, int target
) noexcept nogil:
    """Lay the output of a tile out; `kind` and `target` are constants where they can be."""
    cdef const Group *group = batch.groups + t
    cdef const TilePlace *place = batch.places + t
    cdef TileOutput tile = tile_output_open(
        group, batch.problem, batch.chunk, place, kind, target)
    cdef bint fetch = batch.stop < place.n
    cdef Py_ssize_t c
    if place.class_stride == 0:
        tile_unpack(&tile, place.n, scale, place.to, place.row_stride)
    else:
        for c in range(batch.first, batch.stop):
            if fetch:
                prefetch(place.to + (c + TILE_RUN) * place.class_stride)
                prefetch(tile.values.data + (c + TILE_RUN) * tile.values.stride)
            kind_vector_store(
                place.to + c * place.class_stride, tile_output(&tile, c, scale), place.kind)
    if target != NO_TARGET and group.ignored != 0:
        tile_clear(batch, t)


cdef void tile_clear(const Laying *batch, Py_ssize_t t) noexcept nogil:
    """Set the output of rows that are taken out to 0."""
    cdef const Group *group = batch.groups + t
    cdef const TilePlace *place = batch.places + t
    cdef Py_ssize_t k, c
    for k in range(LANES):
        if not group.ignored >> k & 1:
            continue
        if place.class_stride == 0:
            memset(place.to + k * place.row_stride, 0, place.n * sizeof(real))
            continue
        for c in range(batch.first, batch.stop):
            memset(
                place.to + c * place.class_stride + k * kind_size(place.kind), 0,
                kind_size(place.kind))


cdef inline void tiles_lay(
    const Laying *batch, OutputKind kind, int target, Arithmetic arithmetic
) noexcept nogil:
    """tile_lay() of a batch; `arithmetic` is a constant, too."""
    cdef Scale scale = scale_with(batch.scale, arithmetic)
    cdef Py_ssize_t t
    for t in range(batch.tiles):
        tile_lay(batch, t, &scale, kind, target)


# A function for each kind of output, which has its registers to itself.


cdef void tiles_emit_kept(const Laying *batch) noexcept nogil:
    if not batch.scale.few_digits:
        tiles_lay(batch, FROM_KEPT, NO_TARGET, PLAIN)
    else:
        tiles_lay(batch, FROM_KEPT, NO_TARGET, FEW_DIGITS)


cdef void tiles_emit_by_label(const Laying *batch) noexcept nogil:
    if not batch.scale.few_digits:
        tiles_lay(batch, FROM_KEPT, BY_LABEL, PLAIN)
    else:
        tiles_lay(batch, FROM_KEPT, BY_LABEL, FEW_DIGITS)


cdef void tiles_emit_curvature(const Laying *batch) noexcept nogil:
    if not batch.scale.few_digits:
        tiles_lay(batch, FROM_KEPT, CURVED, PLAIN)
    else:
        tiles_lay(batch, FROM_KEPT, CURVED, FEW_DIGITS)


cdef void tiles_emit_dense(const Laying *batch) noexcept nogil:
    if has(batch.problem, LABELS) and coefficients_are_even(batch.problem):
        tiles_lay(batch, FROM_KEPT, BY_LABEL | DENSE | EVEN, PLAIN)
    elif has(batch.problem, LABELS):
        tiles_lay(batch, FROM_KEPT, BY_LABEL | DENSE, PLAIN)
    else:
        tiles_lay(batch, FROM_KEPT, DENSE, PLAIN)


cdef void tiles_emit_other(const Laying *batch) noexcept nogil:
    cdef int target = NO_TARGET
    if is_pair(batch.problem.operation):
        tiles_lay(batch, FINISHED, NO_TARGET, PLAIN)
    elif emits_logarithms(batch.problem.operation):
        tiles_lay(batch, LOGARITHMS, NO_TARGET, GENERAL)
    else:
        if batch.places.role == HESSIAN:
            target = CURVED
        elif has(batch.problem, LABELS):
            target |= BY_LABEL
        if is_dense(batch.problem.operation) and batch.places.role == OUTPUT:
            target |= DENSE
        tiles_lay(batch, FROM_LOGITS, target, GENERAL)


cdef void tiles_emit_by(const Laying *batch) noexcept nogil:
    """tiles_lay() of the output that is asked for."""
    cdef const Problem *problem = batch.problem
    if is_pair(problem.operation) or emits_from_logits(problem):
        tiles_emit_other(batch)
    elif batch.places.role == HESSIAN:
        tiles_emit_curvature(batch)
    elif is_dense(problem.operation):
        tiles_emit_dense(batch)
    elif has(problem, LABELS):
        tiles_emit_by_label(batch)
    else:
        tiles_emit_kept(batch)


cdef void run_write(
    const Array *array, const Runs *runs, Py_ssize_t at_class, real *run, Writer *writer,
    const Scratch *scratch,
) noexcept nogil:
    """Write one class of all rows of a batch."""
    cdef char *to = array.data + at_class
    cdef bint plain = array.kind == REAL_KIND and not array.swapped
    cdef Py_ssize_t i
    if plain and runs.apart:
        elements_spread(to, runs.offset, <const char *>run, runs.count, sizeof(real))
    elif plain and not writer.lines.stream:
        runs_part(to, runs, run)
    elif runs.apart or array.swapped:
        run_convert(array, runs, at_class, run, scratch.raw)
    else:
        for i in range(runs.count):
            write_run(writer, run, runs.length[i], to + runs.offset[i])
            run += runs.length[i]


cdef void run_convert(
    const Array *array, const Runs *runs, Py_ssize_t at_class, const real *run, char *raw
) noexcept nogil:
    """Write one class of all rows of a batch, not as it is."""
    cdef char *to = array.data + at_class
    cdef Py_ssize_t i, rows = 0
    for i in range(runs.count):
        rows += 1 if runs.apart else runs.length[i]
    elements_store(raw, run, rows, array.kind)
    if array.swapped:
        elements_swap(raw, rows, array.size)
    if runs.apart:
        elements_spread(to, runs.offset, raw, rows, array.size)
        return
    for i in range(runs.count):
        memcpy(to + runs.offset[i], raw, runs.length[i] * array.size)
        raw += runs.length[i] * array.size


cdef void group_correct(
    const Group *group, const Problem *problem, Py_ssize_t chunk, real *rows,
    const Scratch *scratch,
) noexcept nogil:
    """row_correct() for the rows of a group, packed."""
    cdef const Array *logits = &problem.arrays[<int>INPUT]
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t k
    if problem.options.softcap == 0:
        group_exclude(group, problem, chunk, rows, 0, scratch)
    elif (
        rows_follow(group, problem, INPUT) and is_plain(&problem.layout, logits)
        and not has(problem, MASK)
    ):
        numbers_slope(
            rows, <const real *>(logits.data + in_group(group, problem, INPUT, 0)), LANES * n,
            &scratch.softcap)
    else:
        for k in range(group.rows):
            row_correct(group, problem, k, chunk, rows + k * n, scratch)


cdef void run_correct(
    const Problem *problem, Py_ssize_t c, Py_ssize_t rows, real *gradient, const Scratch *scratch
) noexcept nogil:
    """row_correct() for one class of all rows of a batch."""
    cdef const Array *logits = &problem.arrays[<int>INPUT]
    cdef const Array *included = &problem.arrays[<int>MASK]
    cdef Py_ssize_t i
    if problem.options.softcap != 0:
        numbers_slope(
            gradient,
            run_read(
                logits, scratch.beside.runs + 2, class_offset(&problem.layout, logits, c), rows,
                scratch.target, scratch),
            rows, &scratch.softcap)
    if has(problem, MASK):
        run_bytes(
            included, scratch.beside.runs + 1, class_offset(&problem.layout, included, c),
            scratch.raw)
        for i in range(rows):
            if scratch.raw[i] == 0:
                gradient[i] = 0


cdef inline Py_ssize_t tile_section(const Problem *problem, Role role) noexcept nogil:
    """Which section of a tile an output is laid out in on its way."""
    return tile_sections(problem) - 1 if role == HESSIAN else 0


cdef void tiles_write_by_class(
    const Laying *batch, Py_ssize_t begin, Py_ssize_t tiles, Scratch *scratch
) noexcept nogil:
    """Write the output that tiles from one on hold, class by class."""
    cdef const Problem *problem = batch.problem
    cdef const Group *groups = batch.groups + begin
    cdef const real *tile = <const real *>batch.places[begin].to
    cdef Role role = batch.places.role
    cdef const Array *array = &problem.arrays[<int>role]
    cdef Py_ssize_t rows = batch_rows(groups, tiles)
    cdef Py_ssize_t c, t, number
    cdef real *run = scratch.packed
    runs_fill(scratch.beside.runs, groups, problem, role, tiles)
    if has(problem, MASK):
        runs_fill(scratch.beside.runs + 1, groups, problem, MASK, tiles)
    if problem.options.softcap != 0:
        runs_fill(scratch.beside.runs + 2, groups, problem, INPUT, tiles)
    for c in range(batch.first, batch.stop):
        number = batch.chunk * CHUNK + c
        for t in range(tiles):
            vector_store(
                run + t * LANES, vector_load(tile + t * scratch.kept_stride + c * LANES))
        if corrects_output(problem):
            run_correct(problem, number, rows, run, scratch)
        run_write(
            array, scratch.beside.runs, class_offset(&problem.layout, array, number), run,
            writer_of(scratch, role), scratch)


cdef void tile_write_by_row(
    const Group *group, const Problem *problem, Role role, Py_ssize_t chunk, real *rows,
    Scratch *scratch,
) noexcept nogil:
    """Write the rows of one tile that were laid out at `rows`, packed."""
    cdef const Array *array = &problem.arrays[<int>role]
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t k, offset
    for k in range(group.rows):
        offset = in_group(group, problem, role, k)
        if has_neighbours(&problem.layout, array):
            write_run(
                writer_of(scratch, role), rows + k * n, n,
                array.data + offset + chunk * CHUNK * array.size)
        else:
            row_scatter(
                &problem.layout, array, offset, chunk * CHUNK, n, rows + k * n, scratch.raw)


cdef void rows_weave(
    const Problem *problem, Role role, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t chunk,
    const char *x, Py_ssize_t row_stride, Scratch *scratch,
) noexcept nogil:
    """Write rows to where they were to be picked: whole blocks of neighbours at a time."""
    cdef const Array *array = &problem.arrays[<int>role]
    cdef Py_ssize_t inner = problem.layout.inner
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t done = 0, count
    cdef char *to
    if array.kind != REAL_KIND:
        elements_store(scratch.raw, <const real *>x, rows * n, array.kind)
        x = scratch.raw
        row_stride = n * array.size
    cdef bint dense = array.inner_stride == array.size and array.class_stride == inner * array.size
    while done < rows:
        to = (
            array.data + row_offset(&problem.layout, array, first + done)
            + chunk * CHUNK * array.class_stride)
        count = 1
        if dense:
            count = min(inner - (first + done) % inner, rows - done)
        if dense and count == inner:
            count = (rows - done) // inner if problem.layout.row_axes == 2 else 1
            elements_weave(
                &scratch.beside.weaving, to, array.strides[0], x, row_stride, count,
                array.class_stride, n, array.size)
            count *= inner
        else:
            elements_place(
                &scratch.beside.weaving, to, x, row_stride, count, array.class_stride, n,
                array.size)
        x += count * row_stride
        done += count


cdef inline bint goes_straight(const Problem *problem, Role role) noexcept nogil:
    """Whether output can be laid out where it belongs."""
    cdef const Array *array = &problem.arrays[<int>role]
    return (
        kind_has_vectors(array.kind) and not array.swapped and problem.layout.class_axes <= 1
        and not problem.plan.stream and not corrects_output(problem))


cdef inline TilePlace tile_place(
    Group *groups, const Problem *problem, Role role, Py_ssize_t t, Py_ssize_t chunk,
    Scratch *scratch,
) noexcept nogil:
    """Where the output of tile t comes from; where it goes is still to be said."""
    cdef real *tile = scratch.kept + t * scratch.kept_stride
    cdef TilePlace place
    place.role = role
    place.n = chunk_length(problem, chunk)
    place.state = chunk_state(groups + t, problem, t, chunk, scratch)
    place.values = tile_at(tile)
    if emits_from_logits(problem):
        place.values = tile_of(
            groups + t, problem, INPUT, chunk, tile, reads_tiles_in_place(problem, INPUT))
    place.row_stride = 0
    place.class_stride = 0
    place.kind = REAL_KIND
    place.straight = False
    return place


cdef inline void place_by_class(
    TilePlace *place, const Group *group, const Problem *problem, Py_ssize_t chunk, real *tile
) noexcept nogil:
    """Have the output laid out class by class: where it belongs, if it can be, else in the tile."""
    cdef const Array *array = &problem.arrays[<int>place.role]
    place.class_stride = LANES * sizeof(real)
    place.to = <char *>(
        tile + tile_section(problem, place.role) * tile_room(problem, place.n) * LANES)
    if goes_straight(problem, place.role) and is_side_by_side(group, problem, place.role):
        place.straight = True
        place.class_stride = array.class_stride
        place.kind = array.kind
        place.to = (
            array.data + in_group(group, problem, place.role, 0)
            + chunk * CHUNK * array.class_stride)


cdef void tiles_write_rest(const Laying *batch, Scratch *scratch) noexcept nogil:
    """Write the output of the tiles that was not laid out where it belongs."""
    cdef Py_ssize_t t = 0, begin
    while t < batch.tiles:
        begin = t
        while t < batch.tiles and not batch.places[t].straight:
            t += 1
        if t > begin:
            tiles_write_by_class(batch, begin, t - begin, scratch)
        t += 1


cdef inline void laying_next(Laying *batch, TilePlace *places) noexcept nogil:
    """Go on to the next run of classes."""
    cdef Py_ssize_t t
    batch.first = batch.stop
    batch.stop = min(batch.stop + TILE_RUN, places.n)
    if batch.first == 0 or tile_room(batch.problem, places.n) == places.n:
        return
    for t in range(batch.tiles):
        if not places[t].straight:
            # It takes the room of the one before.
            places[t].to -= TILE_RUN * LANES * sizeof(real)


cdef void tiles_emit_by_class(
    Group *groups, const Problem *problem, Role role, Py_ssize_t tiles, Py_ssize_t chunk,
    Scratch *scratch,
) noexcept nogil:
    """Write one chunk of the tiles of a batch whose rows are neighbours."""
    cdef Py_ssize_t t
    cdef TilePlace[MOST_TILES] places
    cdef Laying batch = Laying(groups, problem, tiles, chunk, &places[0], &scratch.scale, 0, 0)
    for t in range(tiles):
        places[t] = tile_place(groups, problem, role, t, chunk, scratch)
        place_by_class(
            places + t, groups + t, problem, chunk, scratch.kept + t * scratch.kept_stride)
    while batch.stop < places[0].n:
        laying_next(&batch, places)
        tiles_emit_by(&batch)
        tiles_write_rest(&batch, scratch)


cdef inline bint is_packed(const Problem *problem, Role role) noexcept nogil:
    """Whether the rows of the output follow each other, whole."""
    cdef const Array *array = &problem.arrays[<int>role]
    return (
        has_neighbours(&problem.layout, array) and problem.plan.chunks == 1
        and array.row_stride == problem.layout.classes * array.size)


cdef void tiles_emit_by_row(
    Group *groups, const Problem *problem, Role role, Py_ssize_t tiles, Py_ssize_t chunk,
    Scratch *scratch,
) noexcept nogil:
    """Write one chunk of the tiles of a batch whose rows lie one after the other."""
    cdef const Array *array = &problem.arrays[<int>role]
    cdef Py_ssize_t n = chunk_length(problem, chunk)
    cdef Py_ssize_t packed = n * <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t t, step
    cdef bint straight = goes_straight(problem, role) and is_plain(&problem.layout, array)
    cdef TilePlace[MOST_TILES] places
    cdef Laying batch = Laying(groups, problem, tiles, chunk, &places[0], &scratch.scale, 0, n)
    cdef char *room = <char *>scratch.staged
    cdef bint together = is_packed(problem, role)
    cdef bint woven = picks_rows(problem, array)
    if woven and packed % 512 == 0 and array.kind == REAL_KIND and not corrects_output(problem):
        packed += 64    # else all would be in few sets of a cache
    if together:
        room = <char *>writer_room(
            writer_of(scratch, role), array.data + in_group(groups, problem, role, 0))
    for t in range(tiles):
        places[t] = tile_place(groups, problem, role, t, chunk, scratch)
        places[t].to = room + t * LANES * packed
        places[t].row_stride = packed
        step = step_in_group(groups + t, problem, role)
        if not together and straight and step != 0 and n >= 4:
            places[t].to = (
                array.data + in_group(groups + t, problem, role, 0)
                + chunk * CHUNK * <Py_ssize_t>sizeof(real))
            places[t].row_stride = step
    tiles_emit_by(&batch)
    if corrects_output(problem):
        for t in range(tiles):
            group_correct(groups + t, problem, chunk, <real *>places[t].to, scratch)
    if together:
        writer_take(
            writer_of(scratch, role),
            batch_rows(groups, tiles) * n)
        return
    if woven:
        rows_weave(
            problem, role, groups[0].first, batch_rows(groups, tiles), chunk, room, packed,
            scratch)
        return
    for t in range(tiles):
        if places[t].to == room + t * LANES * packed:
            tile_write_by_row(
                groups + t, problem, role, chunk, <real *>places[t].to, scratch)


cdef void tiles_emit(
    Group *groups, const Problem *problem, Py_ssize_t tiles, Py_ssize_t chunk, Scratch *scratch
) noexcept nogil:
    """Write one chunk of the tiles of a batch."""
    if problem.plan.chunks > 1:
        tiles_read(groups, problem, tiles, chunk, scratch)
    if has(problem, HESSIAN):
        # First: the gradient may take the place of what both are made of.
        tiles_write(groups, problem, HESSIAN, tiles, chunk, scratch)
    tiles_write(groups, problem, OUTPUT, tiles, chunk, scratch)


cdef inline void tiles_write(
    Group *groups, const Problem *problem, Role role, Py_ssize_t tiles, Py_ssize_t chunk,
    Scratch *scratch,
) noexcept nogil:
    """Write what is made of the tiles as they are."""
    if goes_by_class(problem, &problem.arrays[<int>role]):
        tiles_emit_by_class(groups, problem, role, tiles, chunk, scratch)
    else:
        tiles_emit_by_row(groups, problem, role, tiles, chunk, scratch)

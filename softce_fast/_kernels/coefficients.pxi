# What class weights give dense targets: they are the same for all rows, so they are looked at once.
# Uses problem.pxd.

cdef enum:
    # How far apart the exponents of class weights may lie that are added up in float32.
    WIDEST = 60
    # How far above 1 they are to be,
    FAR = 500
    # and how far from it they may get.
    FARTHEST = 900


cdef inline double sum_of(const Sum *sum_) noexcept nogil:
    return sum_.total + sum_.rest if isfinite(sum_.total) else sum_.total


cdef void exponents_of(const double *weights, Py_ssize_t n, int *least, int *most) noexcept nogil:
    """The exponents between which weights lie, but for 0 and what is not finite; 0 for none."""
    cdef Py_ssize_t c
    cdef double smallest = INFINITY, largest = 0, size
    for c in range(n):
        size = fabs(weights[c])
        if size != 0 and size < INFINITY:
            smallest = min(smallest, size)
            largest = max(largest, size)
    least[0] = ilogb(smallest) if largest > 0 else 0
    most[0] = ilogb(largest) if largest > 0 else 0


cdef void fill_even(Problem *problem) noexcept nogil:
    """Fill in what label smoothing gives to each class; that of shards is told in one number."""
    cdef Py_ssize_t classes = problem.layout.classes
    cdef RowHead head
    problem.even.total = problem.even.rest = 0
    if problem.options.label_smoothing == 0:
        return
    if problem.shard.exported != NULL:
        problem.even.total = 1
    elif problem.shard.given:
        memcpy(&head, problem.shard.imported, sizeof(RowHead))
        problem.even.total = even_share(problem, head.allowed)
    else:
        problem.even.total = even_share(problem, classes)
        problem.even.rest = fma(
            -problem.even.total, <double>classes, problem.options.label_smoothing
        ) / max(<Py_ssize_t>1, classes)


cdef size_t coefficients_size(const Problem *problem, size_t real_size) noexcept nogil:
    """Bytes that the coefficients and their sums take."""
    cdef size_t size = 0
    if problem.options.class_weight != NULL:
        size += problem.layout.classes * (
            real_size + (sizeof(Sum) if has(problem, OUTPUT) else 0))
    return 0 if not is_dense(problem.operation) else size + problem.plan.chunks * sizeof(Sum)


cdef void fill_coefficients(Problem *problem, int real_kind, char *memory) noexcept nogil:
    """Fill in what dense targets take, in memory of coefficients_size()."""
    cdef const double *weights = problem.options.class_weight
    cdef Sum *chunk_sums = <Sum *>memory
    cdef Sum *others = chunk_sums + problem.plan.chunks
    cdef char *coefficients = <char *>others
    cdef Py_ssize_t classes = problem.layout.classes
    cdef int least, most
    problem.options.chunk_sums = chunk_sums
    if weights != NULL:
        exponents_of(weights, classes, &least, &most)
        # The smallest is 1, so that no product of it and a probability vanishes; the largest is in
        # range with all that it is multiplied by. Where both cannot be, neither is out of range.
        most = min(max(least, most - FAR), max(least + FARTHEST, most - FARTHEST))
        if problem.options.z_loss != 0:
            # What z_loss adds to coefficients loses the same power.
            most = max(most, ilogb(problem.options.z_loss) - FARTHEST)
        # Sums of other shards are not to grow beyond the range where the weights of one are small.
        problem.options.powers.coefficient = most if problem.shard.imported == NULL else 0
        if has(problem, OUTPUT):
            fill_other_sums(problem, others)
            coefficients = <char *>(others + classes)
        fill_scaled(problem, real_kind, coefficients)
    fill_chunk_sums(problem, chunk_sums)


cdef inline double coefficient(const Problem *problem, Py_ssize_t c) noexcept nogil:
    """A class weight without the power of two that is taken out of all."""
    return power_apply(problem.options.class_weight[c], -problem.options.powers.coefficient)


cdef void fill_scaled(Problem *problem, int real_kind, char *memory) noexcept nogil:
    cdef Py_ssize_t c
    problem.options.coefficients = memory
    for c in range(problem.layout.classes):
        number_write(
            memory + c * kind_size(real_kind), coefficient(problem, c), real_kind, False)


cdef void fill_chunk_sums(const Problem *problem, Sum *sums) noexcept nogil:
    cdef Py_ssize_t length = chunk_classes(problem.operation)
    cdef Py_ssize_t chunk, c, stop
    for chunk in range(problem.plan.chunks):
        stop = min((chunk + 1) * length, problem.layout.classes)
        sums[chunk].total = sums[chunk].rest = 0
        if problem.options.class_weight == NULL:
            sums[chunk].total = stop - chunk * length
            continue
        for c in range(chunk * length, stop):
            sum_extend(sums + chunk, coefficient(problem, c))


cdef void fill_other_sums(Problem *problem, Sum *others) noexcept nogil:
    """The classes before each, and those behind it: nothing is taken off a larger sum."""
    cdef Py_ssize_t c
    cdef Sum total
    problem.options.other_sums = others
    total.total = total.rest = 0
    for c in range(problem.layout.classes):
        others[c] = total
        sum_extend(&total, coefficient(problem, c))
    total.total = total.rest = 0
    for c in range(problem.layout.classes - 1, -1, -1):
        sum_extend(others + c, total.total)
        others[c].rest += total.rest
        sum_extend(&total, coefficient(problem, c))

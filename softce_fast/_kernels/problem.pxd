# A call as the kernels see it: what execute.pyx fills in and a kernel module works on. Nothing in
# here depends on the instruction set or on what is computed in.
#
# rows -> tasks (a fixed number of rows, whatever the number of threads) -> groups of up to LANES
# rows -> chunks of CHUNK classes.
from libc.stdint cimport int64_t, uint64_t

cdef extern from "kind.h" nogil:
    enum:
        KIND_BOOL
        KIND_INT8
        KIND_UINT8
        KIND_INT16
        KIND_UINT16
        KIND_INT32
        KIND_UINT32
        KIND_INT64
        KIND_UINT64
        KIND_FLOAT16
        KIND_BFLOAT16
        KIND_FLOAT32
        KIND_FLOAT64
    Py_ssize_t kind_size(int kind)
    double power_split(double x, int *power)
    double power_apply(double x, int power)
    int64_t exponent_of(double x)
    double two_to(int64_t power)
    double number_read(const char *p, int kind, bint swapped)
    void numbers_read(
        double *to, const char *start, Py_ssize_t step, Py_ssize_t n, int kind, bint swapped)
    void number_write(char *p, double value, int kind, bint swapped)
    void labels_read(
        int64_t *labels, const char *start, Py_ssize_t step, Py_ssize_t n, int kind, bint swapped)

cdef extern from *:
    # What the table of a kernel module is called: a hash of this file is in it (setup.py).
    const char *SOFTCE_FAST_KERNELS


cdef enum Operation:
    # A row state, finished and emitted (tasks.pxi):
    SOFTMAX
    LOG_SOFTMAX
    LOGSUMEXP                # SECOND, if given: factors of the exponentials
    CROSS_ENTROPY            # of class indices
    DENSE_CROSS_ENTROPY      # of targets that have a coefficient for every class
    SCORES                   # of class indices
    # Sums over two arrays (pairs.pxi):
    SOFTMAX_BACKWARD         # INPUT: gradient by the output, SECOND: probabilities
    LOG_SOFTMAX_BACKWARD     # INPUT: gradient by the output, SECOND: log-probabilities
    PROBABILITY_LOSS         # INPUT: (log-)probabilities, SECOND: target
    # One element a row:
    LABEL_LOSS               # INPUT: (log-)probabilities, LABELS
    # Element by element:
    BINARY_LOSS              # INPUT: logits or probabilities, SECOND: target


cdef enum Role:
    # The arrays of a call. Of the size of the batch:
    INPUT
    SECOND
    MASK             # of bool: what takes part
    OUTPUT
    HESSIAN          # beside a gradient: the diagonal
    WEIGHT           # binary losses: of each element,
    POS_WEIGHT       # and of the yes part
    # One number a row:
    LABELS
    SAMPLE_WEIGHT
    RESULT
    SIGN             # of the sum whose logarithm RESULT is
    ROLES


cdef enum:
    CHUNK = 4096       # classes that stay in the first-level cache from one step to the next
    PAIR_PARTS = 3     # numbers that are summed of a chunk of two arrays


cdef struct Array:
    # Elements of one array; strides in bytes.
    char *data                     # NULL for none
    int kind
    bint swapped                   # bytes in the other order
    Py_ssize_t size                # of an element
    Py_ssize_t row_stride          # from one row to the next where that is always the same, else 0
    Py_ssize_t inner_stride        # the same within the last of the row axes
    Py_ssize_t class_stride        # from one class to the next where there is one class axis
    const Py_ssize_t *strides      # of the row axes, then of the class axes


cdef struct Layout:
    # How the elements of all arrays are numbered: rows in C order, classes in C order. Axes that
    # can be seen as one in every array are one; there is none of length 1.
    Py_ssize_t rows
    Py_ssize_t classes
    Py_ssize_t inner               # length of the last row axis; 1 without any
    bint even                      # every array has a row_stride
    int row_axes
    int class_axes
    const Py_ssize_t *lengths      # of the row axes, then of the class axes


cdef struct HessianOptions:
    double scale
    double floor                   # the least there is; -inf for none


cdef struct Sum:
    # A sum of numbers, and what it lost by rounding.
    double total
    double rest


cdef struct Powers:
    # Of two, that multiply in the end: they are taken out of weights beforehand.
    int result         # What is written,
    int sum            # and losses that are added up.
    int coefficient    # Of class weights in what dense targets sum.


cdef struct Options:
    double temperature
    double softcap                 # of logits; 0 for none
    double label_smoothing
    double z_loss
    double divisor                 # of gradients: what the reduced loss is divided by
    const double *class_weight     # NULL for none
    Powers powers
    int64_t ignore_index
    bint empty_is_zero             # rows without a finite logit give 0 instead of NaN
    bint logarithms                # INPUT holds log-probabilities
    bint from_logits               # binary losses: INPUT holds logits
    HessianOptions hessian
    # Dense targets; class weights (all 1 without any) less their power:
    const void *coefficients       # in what is computed in; NULL where all are 1
    const Sum *chunk_sums          # of each chunk's class weights
    const Sum *other_sums          # for each class of all others' class weights; NULL: classes - 1


cdef enum Ties:
    # Which of the classes whose logit is the label's own count as above it:
    TIES_FIRST    # those before the label,
    TIES_MIN      # none,
    TIES_MAX      # or all others


cdef struct Scores:
    # What SCORES finds out besides its result, row by row; NULL for what is not asked for.
    Ties ties
    int64_t *rank
    int64_t *argmax
    char *logsumexp           # of the kind of RESULT, as
    char *entropy             # this
    int64_t *top_indices      # top_k a row
    char *top_log_probs       # and this
    Py_ssize_t top_k


cdef struct RowHead:
    # What begins a row of states, an element of an array of NumPy's: see _row_states.py.
    double temperature
    double softcap
    int64_t target
    int64_t classes
    int64_t allowed      # of these, by a mask
    double logit         # of the label, where its class was found,
    double weight        # and the weight of that class
    char labelled        # there is a target: what all states of a row have in common ends here
    char weighted
    char found
    char has_nan
    int dtype            # only its name says something


cdef enum:
    # Behind it, what is known of each chunk of the row, in float64:
    SHARD_MAXIMUM
    SHARD_REFERENCE       # shift and exponent;
    SHARD_ALL = 3         # sums of exponentials, two numbers each: of all classes,
    SHARD_REST = 5        # and without the maximum;
    SHARD_NUMBERS = 7     # all that there is without a target:
    SHARD_OTHERS = 7      # such a sum without the label;
    SHARD_WEIGHTS = 9     # the sum of coefficients without the maximum's own (two), that one,
    SHARD_SPREAD = 12
    SHARD_LABELLED_NUMBERS


cdef struct Shard:
    # Where the classes of INPUT are some of a row's: see operations/shards.pxi.
    bint given
    char *exported               # the states that what is found out is written to
    char *any_nan                # (and whether a sum of theirs is NaN); or
    const char *imported         # those of all classes, merged:
    Py_ssize_t row_stride        # where the next row's begin, in bytes,
    Py_ssize_t place             # where the chunks begin in these,
    Py_ssize_t chunks            # how many these are,
    Py_ssize_t chunk_size        # and the bytes of each;
    Py_ssize_t classes           # of all shards together
    bint weighs_label            # the label's coefficient is not 1
    int power                    # of two, that class weights are to be divided by


cdef enum Pass:
    ALONG     # lanes of a vector on neighbouring classes of a row
    ACROSS    # a row in each lane


cdef struct Plan:
    # All that is decided before anything runs; see plan.pxi.
    Pass passes
    int threads
    Py_ssize_t rows_per_task
    Py_ssize_t chunks         # of a row
    bint by_chunks            # a task is one chunk of one row, rows being few and long
    Py_ssize_t rows_at_once   # along: rows of a group that the first-level cache holds together
    Py_ssize_t batch          # across: groups worked on together
    bint pick                 # across: rows are picked out of those beside them, if few are
    bint runs                 # across: rows that are neighbours are taken together
    bint rest_along           # across: rows that do not fill a group go along
    bint gather               # INPUT is copied before it is read
    bint few_digits           # results have fewer digits than are computed with
    bint stream               # OUTPUT is written past the caches
    bint keep                 # exponentials are kept until OUTPUT is written,
    bint keep_in_output       # and that where it will be
    Py_ssize_t ahead          # bytes from what is worked on to what is fetched meanwhile


cdef struct Problem:
    Operation operation
    Layout layout
    Array[ROLES] arrays       # by Role
    Options options
    Sum even                  # what smoothing gives to each class, times its weight, if to all
    #                           rows alike; and what that number misses
    Scores scores
    Shard shard
    Plan plan
    double *task_sums         # of the results of each task; NULL if not asked for.
    double *row_results       # Where rows have many chunks instead: of each row.
    double *parts             # pairs by chunks: the PAIR_PARTS sums of each chunk of each row
    char *states              # by chunks: states_size() bytes


ctypedef void (*Task)(const void *problem, Py_ssize_t task, char *scratch) noexcept nogil


cdef struct ChunkTasks:
    # The steps of rows that are shared out by chunks:
    Task absorb            # a chunk of a row (task = row * chunks + chunk),
    Task finish            # all rows (one task),
    Task emit              # and a chunk of a row written


cdef struct Kernels:
    # What a kernel module offers. `scratch` has scratch_size() bytes for each thread.
    int lanes
    int real_kind
    bint permutes          # rows that lie side by side are taken apart by registers, not one by one
    size_t (*scratch_size)(const Problem *) noexcept nogil
    size_t (*states_size)(const Problem *) noexcept nogil
    Task rows              # all steps for the rows of a task
    ChunkTasks rows_by_chunks
    Task pairs             # the same for sums over two arrays
    ChunkTasks pairs_by_chunks
    Task label_losses      # LABEL_LOSS of the rows of a task
    Py_ssize_t (*labels_count)(
        const char *labels, Py_ssize_t n, int kind, int64_t ignored, int64_t classes, int *bad
    ) noexcept nogil       # see labels.h
    Task binary_losses     # BINARY_LOSS of the rows of a task, or of a chunk of a row


cdef inline Py_ssize_t row_offset(
    const Layout *layout, const Array *array, Py_ssize_t row
) noexcept nogil:
    """Where a row begins, in bytes from the first one."""
    cdef Py_ssize_t offset = 0
    cdef int axis
    if array.row_stride != 0 or layout.row_axes == 0:
        return row * array.row_stride
    for axis in range(layout.row_axes - 1, -1, -1):
        offset += row % layout.lengths[axis] * array.strides[axis]
        row //= layout.lengths[axis]
    return offset


cdef inline Py_ssize_t class_offset(
    const Layout *layout, const Array *array, Py_ssize_t c
) noexcept nogil:
    """Where a class lies, in bytes from the start of its row."""
    cdef Py_ssize_t offset = 0
    cdef int axis
    if layout.class_axes <= 1:
        return c * array.class_stride
    for axis in range(layout.row_axes + layout.class_axes - 1, layout.row_axes - 1, -1):
        offset += c % layout.lengths[axis] * array.strides[axis]
        c //= layout.lengths[axis]
    return offset


cdef inline void sample_weights_read(
    double *weights, const Problem *problem, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """The sample weights of n rows."""
    cdef const Array *array = &problem.arrays[<int>SAMPLE_WEIGHT]
    cdef const char *start = array.data + row_offset(&problem.layout, array, first)
    cdef Py_ssize_t k
    if array.row_stride != 0:
        numbers_read(weights, start, array.row_stride, n, array.kind, array.swapped)
        return
    for k in range(n):
        weights[k] = number_read(
            array.data + row_offset(&problem.layout, array, first + k), array.kind, array.swapped)


cdef inline double sum_in_lanes(const double *x, Py_ssize_t n) noexcept nogil:
    """The sum in an order fixed by n alone: eight lanes, then one after the other."""
    cdef inline double[8] lane
    cdef inline double total = 0
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


# ---- traits of operations ------------------------------------------------------------------------


cdef inline bint leaves_out_maximum(Operation operation) noexcept nogil:
    """Whether a row's sum is kept without the exponential of its maximum."""
    return (
        operation == LOG_SOFTMAX or operation == LOGSUMEXP or operation == DENSE_CROSS_ENTROPY)


cdef inline bint leaves_out_label(Operation operation) noexcept nogil:
    """The same of that of its label."""
    return operation == CROSS_ENTROPY or operation == SCORES


cdef inline bint leaves_out_nothing(Operation operation) noexcept nogil:
    return not (leaves_out_maximum(operation) or leaves_out_label(operation))


cdef inline bint is_scored(Operation operation) noexcept nogil:
    """Whether a row's classes are compared with one another: see operations/scores.pxi."""
    return operation == SCORES


cdef inline bint sums_rest(const Problem *problem) noexcept nogil:
    """Whether the sum without the maximum is kept beside the one without the label."""
    return is_scored(problem.operation) or (
        problem.shard.given and problem.options.z_loss != 0
        and leaves_out_label(problem.operation))


cdef inline bint notes_maximum(Operation operation) noexcept nogil:
    """Whether it is to be known which class has the maximum."""
    return is_dense(operation) or is_scored(operation)


cdef inline bint is_cross_entropy(Operation operation) noexcept nogil:
    return operation == CROSS_ENTROPY or operation == DENSE_CROSS_ENTROPY


cdef inline bint is_dense(Operation operation) noexcept nogil:
    """Whether the target has a coefficient for every class."""
    return operation == DENSE_CROSS_ENTROPY


cdef inline bint wants_entropy(const Problem *problem) noexcept nogil:
    return problem.scores.entropy != NULL


cdef inline bint sums_coefficients(const Problem *problem) noexcept nogil:
    """Whether what is summed besides the exponentials has a coefficient for each class.

    For the entropy, the exponential itself.
    """
    return is_dense(problem.operation) or wants_entropy(problem)


cdef inline double sum_error(double a, double b, double total) noexcept nogil:
    """What a + b lost by rounding (Knuth's two-sum)."""
    cdef double kept = total - a
    return (a - (total - kept)) + (b - kept)


cdef inline void sum_extend(Sum *sum_, double x) noexcept nogil:
    cdef double total = sum_.total + x
    sum_.rest += sum_error(sum_.total, x, total)
    sum_.total = total


cdef inline double even_share(const Problem *problem, int64_t classes) noexcept nogil:
    """What label smoothing gives to each of so many classes, times its weight."""
    return problem.options.label_smoothing / <double>max(<int64_t>1, classes)


cdef inline bint shares_by_row(const Problem *problem) noexcept nogil:
    """Whether how many classes label smoothing is shared by depends on the row."""
    return problem.options.label_smoothing != 0 and problem.arrays[<int>MASK].data != NULL


cdef inline int result_power(const Problem *problem) noexcept nogil:
    """The power of two that each row's loss is multiplied by."""
    return problem.options.powers.result if has(problem, RESULT) else problem.options.powers.sum


cdef inline double product_apply(double a, double b, int power) noexcept nogil:
    """a * b * 2**power, which leaves the range only where that does."""
    cdef int of_a, of_b
    if power == 0:
        return a * b
    a = power_split(a, &of_a)
    b = power_split(b, &of_b)
    return power_apply(a * b, of_a + of_b + power)


cdef inline bint weighs_alike(const Problem *problem) noexcept nogil:
    """Whether no row has a weight: what multiplies its gradient follows from its target alone."""
    return (
        problem.options.class_weight == NULL and not has(problem, SAMPLE_WEIGHT)
        and problem.options.z_loss == 0 and not problem.shard.given
        and (has(problem, SECOND) or not shares_by_row(problem)))


cdef inline bint coefficients_by_row(const Problem *problem) noexcept nogil:
    """Whether the coefficients differ from row to row."""
    return has(problem, SECOND) or wants_entropy(problem) or shares_by_row(problem)


cdef inline bint merges_chunks(const Problem *problem) noexcept nogil:
    """Whether the state of a row is another than that of a chunk."""
    return problem.plan.chunks > 1 or problem.shard.given


cdef inline bint coefficients_are_even(const Problem *problem) noexcept nogil:
    """Whether label smoothing gives all classes of all rows the same, more than float32 drops."""
    return not coefficients_by_row(problem) and (
        problem.options.coefficients == NULL and <float>problem.even.total != 0)


cdef inline bint is_weighted(const Problem *problem) noexcept nogil:
    """Whether exponentials are multiplied before they are added up, by those of SECOND."""
    return problem.operation == LOGSUMEXP and has(problem, SECOND)


cdef inline bint is_pair(Operation operation) noexcept nogil:
    """Whether sums over two arrays are all that is needed of a row."""
    return SOFTMAX_BACKWARD <= operation <= PROBABILITY_LOSS


cdef inline bint emits_logarithms(Operation operation) noexcept nogil:
    """Whether the output is made of logits; else it is made of exponentials."""
    return operation == LOG_SOFTMAX


cdef inline bint emits_from_logits(const Problem *problem) noexcept nogil:
    """Whether logits are read once more for it: for exponentials, if a chunk is not a whole row."""
    return emits_logarithms(problem.operation) or (
        problem.plan.chunks > 1 and not is_pair(problem.operation))


cdef inline bint corrects_output(const Problem *problem) noexcept nogil:
    """Whether the output is a gradient by logits that were changed as they were read."""
    return is_cross_entropy(problem.operation) and (
        problem.arrays[<int>MASK].data != NULL or problem.options.softcap != 0)


cdef inline Py_ssize_t tile_sections(const Problem *problem) noexcept nogil:
    """How many numbers a tile has for each logit: what is added up lies behind what is read on."""
    if coefficients_by_row(problem):
        return 3
    return 2 if (
        emits_logarithms(problem.operation) or notes_maximum(problem.operation)
        or is_pair(problem.operation) or has(problem, HESSIAN)) else 1


cdef inline bint has(const Problem *problem, Role role) noexcept nogil:
    """Whether there is an array of that role."""
    return problem.arrays[<int>role].data != NULL

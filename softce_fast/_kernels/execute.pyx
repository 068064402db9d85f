# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, infer_types=False
"""The way from Python's calls to the kernels of a build, which have no Python functions.

Arguments were checked before; here a call is laid out and planned, memory for it is taken once, and
the GIL is released while it runs.
"""

from contextlib import contextmanager

from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from cpython.ref cimport Py_INCREF, PyObject
from cython.parallel cimport parallel, threadid
from libc.math cimport INFINITY, fabs, fma, ilogb, isfinite
from libc.stdint cimport INT64_MAX, INT64_MIN, UINT64_MAX, int64_t, uint64_t
from libc.stdlib cimport abs
from libc.string cimport memcpy, memset, strcmp, strrchr
from numpy cimport import_array, ndarray

from .problem cimport *

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

cdef extern from "memory.h":
    void *memory_take(size_t size)
    void memory_give(void *memory)

cdef extern from "probe.h":
    int openmp_pause()

include "layout.pxi"
include "share.pxi"
include "plan.pxi"
include "coefficients.pxi"
include "labels.pxi"
include "signature.pxi"
include "states.pxi"

import_array()

# Classes that are merged together: shards that begin at multiples of so many keep the bits.
SPLIT = CHUNK


# ---- the kernels in use --------------------------------------------------------------------------

# Of the build that serves, by what they compute in: float32, float64.
cdef const Kernels *tables[2]


def use(float32_table, float64_table):
    """Let these kernels serve from now on: the capsules that a build's modules hold."""
    for table in (float32_table, float64_table):
        if not PyCapsule_IsValid(table, SOFTCE_FAST_KERNELS):
            raise ImportError(
                "the compiled modules of softce_fast are not of one version: build it again")
    tables[0] = <const Kernels *>PyCapsule_GetPointer(float32_table, SOFTCE_FAST_KERNELS)
    tables[1] = <const Kernels *>PyCapsule_GetPointer(float64_table, SOFTCE_FAST_KERNELS)


cdef const Kernels *kernels_for(const Problem *problem, int result_kind) except NULL:
    """The kernels that compute in what the arrays and options of a call need."""
    cdef bint wide = needs_double(problem, result_kind)
    if tables[wide] == NULL:
        raise RuntimeError("no kernels are in use")
    return tables[wide]


cdef inline bint needs_double(const Problem *problem, int result_kind) noexcept:
    cdef int kind, least, most, role
    cdef double temperature = problem.options.temperature
    cdef double softcap = problem.options.softcap
    if result_kind == KIND_FLOAT64 or not 1e-20 <= temperature <= 1e20 or (
        softcap != 0 and not 1e-15 <= softcap <= 1e15
    ) or fabs(problem.options.z_loss) > 1e20:
        # Beyond these the kernels' constants, multiples and squares, leave the range of float32.
        return True
    for role in range(LABELS):
        kind = problem.arrays[role].kind
        if not OUTPUT <= role <= HESSIAN and problem.arrays[role].data != NULL and (
            kind == KIND_FLOAT64 or KIND_INT32 <= kind <= KIND_UINT64
        ):
            return True
    if problem.options.class_weight == NULL:
        return False
    if has_many_classes(problem):
        with nogil:
            exponents_of(problem.options.class_weight, problem.layout.classes, &least, &most)
    else:
        exponents_of(problem.options.class_weight, problem.layout.classes, &least, &most)
    return most - least > WIDEST


cdef inline bint has_many_classes(const Problem *problem) noexcept:
    """Whether a look at all class weights takes so long that other threads may have the GIL."""
    return problem.layout.classes > WORK_PER_TASK


# ---- running -------------------------------------------------------------------------------------


cdef inline size_t round_up(size_t size) noexcept nogil:
    return (size + 63) // 64 * 64


cdef char *aligned_memory(size_t size) except NULL:
    cdef char *memory = <char *>memory_take(size)
    if memory == NULL:
        raise MemoryError(f"no memory for {size} bytes of work space")
    return memory


cdef inline int threads_of(Py_ssize_t size, int lanes, threads_for) except 0:
    """threads_for_call() on that many elements; Python is not asked where one thread will do."""
    if threads_worth(2, size, lanes) == 1:
        return 1
    return threads_for_call(threads_for(size), size, lanes)


cdef size_t memory_place(
    Problem *problem, const Kernels *kernels, bint sums, char *memory
) noexcept:
    """Lay out all memory of a problem but the threads'; return how many bytes it takes."""
    cdef const Layout *layout = &problem.layout
    cdef Plan *plan = &problem.plan
    cdef char *start = memory
    if sums and (plan.chunks == 1 or problem.operation == BINARY_LOSS):
        problem.task_sums = <double *>memory
        memory += round_up(tasks_of(problem) * sizeof(double))
    elif sums:
        # How long rows are shared out may depend on the threads; their sum may not.
        problem.row_results = <double *>memory
        memory += round_up(layout.rows * sizeof(double))
    if plan.by_chunks and has_row_state(problem.operation):
        problem.states = memory
        memory += round_up(kernels.states_size(problem))
    elif plan.by_chunks and problem.operation < LABEL_LOSS:
        problem.parts = <double *>memory
        memory += round_up(tasks_of(problem) * PAIR_PARTS * sizeof(double))
    return memory - start


cdef double run(
    Problem *problem, const Kernels *kernels, int n_threads, int result_kind, bint sums
) except? -1.0:
    """Run a problem; return the sum of its results if asked to, in a fixed order."""
    cdef char *memory = <char *>problem    # anywhere: this is to find out how much it takes
    cdef size_t shared, weights, per_thread
    cdef double total = 0
    make_plan(problem, kernels, n_threads, result_kind)
    fill_even(problem)
    weights = round_up(coefficients_size(problem, 4 if kernels.real_kind == KIND_FLOAT32 else 8))
    shared = memory_place(problem, kernels, sums, memory)
    per_thread = round_up(kernels.scratch_size(problem))
    memory = aligned_memory(shared + weights + problem.plan.threads * per_thread)
    memory_place(problem, kernels, sums, memory)
    if weights > 0 and has_many_classes(problem):
        with nogil:
            fill_coefficients(problem, kernels.real_kind, memory + shared)
    elif weights > 0:
        fill_coefficients(problem, kernels.real_kind, memory + shared)
    share_out_problem(problem, kernels, memory + shared + weights, per_thread)
    if problem.task_sums != NULL:
        total = sum_of_tasks(problem.task_sums, tasks_of(problem))
    elif problem.row_results != NULL:
        total = sum_in_lanes(problem.row_results, problem.layout.rows)
    memory_give(memory)
    return total


cdef void share_out_problem(
    const Problem *problem, const Kernels *kernels, char *memory, size_t per_thread
) noexcept:
    cdef const Plan *plan = &problem.plan
    cdef bint has_state = has_row_state(problem.operation)
    cdef ChunkTasks by_chunks = (
        kernels.rows_by_chunks if has_state else kernels.pairs_by_chunks)
    cdef Stage[3] stages
    cdef Task task = kernels.rows if has_state else kernels.pairs
    if problem.operation == BINARY_LOSS:
        task = kernels.binary_losses
    elif problem.operation == LABEL_LOSS:
        task = kernels.label_losses
    elif plan.by_chunks:
        # All chunks of all rows, then the rows at once, then, if there is output, all chunks again.
        stages[0].function = by_chunks.absorb
        stages[1].function = by_chunks.finish
        stages[2].function = by_chunks.emit
        stages[0].tasks = tasks_of(problem)
        stages[1].tasks = 1
        stages[2].tasks = tasks_of(problem)
        share_out(
            stages, 3 if has(problem, OUTPUT) else 2, problem, plan.threads, memory, per_thread,
            False)
        return
    share_out_tasks(
        task, tasks_of(problem), problem, plan.threads, memory, per_thread,
        work_of(problem) <= WORK_PER_TASK)


cdef double sum_of_tasks(const double *sums, Py_ssize_t n) noexcept nogil:
    cdef double total = 0
    cdef Py_ssize_t task
    for task in range(n):
        total += sums[task]
    return total


cdef inline Py_ssize_t work_of(const Problem *problem) noexcept nogil:
    """How many numbers a call works on."""
    if problem.operation == LABEL_LOSS:
        return problem.layout.rows * LABEL_WORK
    return problem.layout.rows * problem.layout.classes


cdef double execute(
    Call *call, int result_kind, bint sums, threads_for
) except? -1.0:
    """Run a call that is laid out and whose options are set."""
    cdef Problem *problem = &call.problem
    cdef const Kernels *kernels = kernels_for(problem, result_kind)
    return run(
        problem, kernels, threads_of(work_of(problem), kernels.lanes, threads_for), result_kind,
        sums)


# ---- what Python calls ---------------------------------------------------------------------------


cdef unsigned long long axes_bits(tuple axes) except? 0:
    cdef unsigned long long bits = 0
    cdef int axis
    for axis in axes:
        bits |= <unsigned long long>1 << axis
    return bits


cdef int result_kind_for(dtype, ndarray x) except -1:
    """The kind of results of `dtype`; without any what those of x have."""
    cdef int kind = kind_of(x)
    if dtype is not None:
        kind = kind_of_dtype(<PyArray_Descr *>dtype, dtype.itemsize)
    return kind if is_float_kind(kind) else KIND_FLOAT64


cdef int set_class_weight(Problem *problem, ndarray weight) except -1:
    if weight is None:
        return 0
    if (
        kind_of(weight) != KIND_FLOAT64 or not PyArray_ISCARRAY_RO(weight)
        or PyArray_NDIM(weight) != 1 or PyArray_DIM(weight, 0) != problem.layout.classes
    ):
        raise ValueError("class weights are a contiguous array of float64, one for each class")
    problem.options.class_weight = <const double *>PyArray_BYTES(weight)
    return 0


def softmax(
    ndarray x not None, ndarray out not None, ndarray where, tuple axes not None, bint log,
    double temperature, bint empty_is_zero, threads_for,
):
    """Write softmax or log_softmax along `axes` to `out`."""
    cdef Call call
    call_open(&call, LOG_SOFTMAX if log else SOFTMAX, x, axes_bits(axes))
    call_array(&call, INPUT, x)
    call_result(&call, OUTPUT, out)
    if where is not None:
        call_array(&call, MASK, where)
    call_close(&call)
    call.problem.options.temperature = temperature
    call.problem.options.empty_is_zero = empty_is_zero
    execute(&call, call.problem.arrays[<int>OUTPUT].kind, False, threads_for)


def logsumexp(
    ndarray x not None, ndarray factors, ndarray result not None, ndarray sign, ndarray where,
    tuple axes not None, threads_for,
):
    """Write the logsumexp along `axes` to `result`, and the sum's sign; they have the other axes.

    `factors`: of the exponentials, of the shape of x. Without `sign` a negative sum gives NaN.
    """
    cdef Call call
    call_open(&call, LOGSUMEXP, x, axes_bits(axes))
    call_array(&call, INPUT, x)
    if factors is not None:
        call_array(&call, SECOND, factors)
    call_result(&call, RESULT, result, True)
    if sign is not None:
        call_result(&call, SIGN, sign, True)
    if where is not None:
        call_array(&call, MASK, where)
    call_close(&call)
    execute(&call, call.problem.arrays[<int>RESULT].kind, False, threads_for)


def cross_entropy(
    ndarray logits not None, ndarray labels, ndarray probabilities, ndarray where, ndarray losses,
    ndarray gradient, ndarray hessian, int axis, ndarray class_weight, ndarray sample_weight,
    double label_smoothing, double z_loss, double temperature, double softcap, bint mean,
    denominator, ignore_index, tuple powers not None, threads_for, dtype=None,
    double hessian_scale=1, double hessian_floor=-INFINITY,
):
    """Return the sum of the losses and what their mean divides by; None if a label is no class.

    Of `labels` and `probabilities` one is None. `losses`, `gradient` and, beside a gradient,
    `hessian` are written where they are given, but not if a label is no class. The gradient is
    that of the sum, or with `mean` that of the mean, which divides by `denominator` if that is not
    None. Dividing by 0 is left to the caller. `powers` are exponents of two, for what weights have
    been relieved of: the first multiplies what is written, the second each loss that is summed, the
    third each weight that the mean divides by. `dtype` is that of the results, if it is not that of
    the logits.
    """
    cdef Call call
    cdef Scan scan
    cdef Problem *problem = &call.problem
    call_open(
        &call,
        CROSS_ENTROPY if labels is not None and label_smoothing == 0 else DENSE_CROSS_ENTROPY,
        logits, <unsigned long long>1 << axis)
    call_array(&call, INPUT, logits)
    if where is not None:
        call_array(&call, MASK, where)
    if gradient is not None:
        call_result(&call, OUTPUT, gradient)
    if hessian is not None:
        call_result(&call, HESSIAN, hessian)
    problem.options.hessian.scale = hessian_scale
    problem.options.hessian.floor = hessian_floor
    problem.options.label_smoothing = label_smoothing
    problem.options.z_loss = z_loss
    problem.options.temperature = temperature
    problem.options.softcap = softcap
    set_target(&call, &scan, labels, probabilities, ignore_index)
    set_rows(&call, losses, class_weight, sample_weight)
    set_powers(&call, &scan, powers)
    return run_loss(
        &call, &scan, mean, denominator, result_kind_for(dtype, logits), threads_for)


def scores(
    ndarray logits not None, ndarray labels not None, ndarray where, dict results not None,
    int axis, Py_ssize_t top_k, int ties, double temperature, double softcap, ignore_index,
    threads_for,
):
    """Fill the arrays of `results` in, by name; return whether all labels are classes.

    If one is not, nothing is written. Those of `entropy`, `top_indices` and `top_log_probs` may be
    missing; `ties` is the number of Ties.
    """
    cdef Call call
    cdef Scan scan
    cdef Problem *problem = &call.problem
    cdef const Kernels *kernels
    cdef ndarray log_prob = results["log_prob"]
    cdef int result_kind = kind_of(log_prob), n_threads, bad = 0
    call_open(&call, SCORES, logits, <unsigned long long>1 << axis)
    call_array(&call, INPUT, logits)
    if where is not None:
        call_array(&call, MASK, where)
    set_target(&call, &scan, labels, None, ignore_index)
    set_rows(&call, log_prob, None, None)
    problem.options.temperature = temperature
    problem.options.softcap = softcap
    problem.scores.ties = <Ties>ties
    problem.scores.top_k = top_k
    problem.scores.rank = <int64_t *>score_bytes(problem, results, "rank", KIND_INT64, 1)
    problem.scores.argmax = <int64_t *>score_bytes(problem, results, "argmax", KIND_INT64, 1)
    problem.scores.logsumexp = score_bytes(problem, results, "logsumexp", result_kind, 1)
    problem.scores.entropy = score_bytes(problem, results, "entropy", result_kind, 1)
    problem.scores.top_indices = <int64_t *>score_bytes(
        problem, results, "top_indices", KIND_INT64, top_k)
    problem.scores.top_log_probs = score_bytes(
        problem, results, "top_log_probs", result_kind, top_k)
    kernels = kernels_for(problem, result_kind)
    n_threads = threads_of(work_of(problem), kernels.lanes, threads_for)
    scan_rows(&scan, problem, kernels, n_threads, &bad)
    if not bad:
        run(problem, kernels, n_threads, result_kind, False)
    return not bad


def shard(
    str operation not None, ndarray logits not None, ndarray labels, ndarray where,
    ndarray result, ndarray output, int axis, ndarray states not None, str sums not None,
    ndarray class_weight, ndarray sample_weight, double label_smoothing, double z_loss,
    double temperature, double softcap, double divisor, int power, int class_power,
    bint weighs_label, dtype, threads_for,
):
    """Run an operation of a row state on some of the classes of each row.

    `states` is an array of them for each row, `sums` the name of the field that has the chunks.
    What is known of the classes is written to it where there is neither `result` nor `output`, and
    True returned if any of that is NaN; else it is of all classes. Class weights in it are to be
    divided by 2**class_power; if not `weighs_label`, that of the label's class is 1. Labels are
    counted from the first of these classes on, other classes are the number of these, and -1 is
    ignored.
    """
    cdef Call call
    cdef Problem *problem = &call.problem
    cdef const Kernels *kernels
    cdef int number = OPERATIONS.index(operation)
    cdef int result_kind = result_kind_for(dtype, logits)
    cdef char any_nan = False
    call_open(&call, <Operation>number, logits, <unsigned long long>1 << axis)
    call_array(&call, INPUT, logits)
    if where is not None:
        call_array(&call, MASK, where)
    if labels is not None:
        call_array(&call, LABELS, labels, True)
        check_labels(&problem.arrays[<int>LABELS])
    if output is not None:
        call_result(&call, OUTPUT, output)
    set_rows(&call, result, class_weight, sample_weight)
    problem.options.label_smoothing = label_smoothing
    problem.options.z_loss = z_loss
    problem.options.temperature = temperature
    problem.options.softcap = softcap
    problem.options.divisor = divisor
    problem.options.powers.result = power
    problem.options.ignore_index = -1
    problem.shard.power = class_power
    problem.shard.weighs_label = weighs_label
    problem.shard.any_nan = &any_nan
    set_states(problem, states, sums, result is None and output is None)
    kernels = kernels_for(problem, result_kind)
    run(
        problem, kernels, threads_of(work_of(problem), kernels.lanes, threads_for), result_kind,
        False)
    return any_nan != 0


cdef int set_states(Problem *problem, ndarray states, str sums, bint exported) except -1:
    """Set where states of the rows are, and where in each its chunks are."""
    cdef Shard *shard = &problem.shard
    cdef RowHead head
    record, shard.place = states.dtype.fields[sums][:2]
    shard.given = True
    shard.chunks = record.shape[0]
    shard.chunk_size = record.base.itemsize
    shard.row_stride = PyArray_STRIDE(states, 0)
    if (
        PyArray_NDIM(states) != 1 or PyArray_DIM(states, 0) != problem.layout.rows
        or shard.place < <Py_ssize_t>sizeof(RowHead)
        or shard.chunk_size < <Py_ssize_t>sizeof(double) * (
            SHARD_LABELLED_NUMBERS if has(problem, LABELS) else SHARD_NUMBERS)
        or exported and shard.chunks * CHUNK < problem.layout.classes
    ):
        raise ValueError("states have a head, and numbers of each chunk, for each row")
    if exported:
        shard.exported = PyArray_BYTES(states)
    else:
        shard.imported = PyArray_BYTES(states)
        memcpy(&head, shard.imported, sizeof(RowHead))
        shard.classes = head.classes
    return 0


cdef char *score_bytes(
    const Problem *problem, dict results, str name, int kind, Py_ssize_t per_row
) except? NULL:
    """Where the scores of that name go; NULL where they are not wanted."""
    cdef ndarray array = results.get(name)
    if array is None:
        return NULL
    if (
        kind_of(array) != kind or not PyArray_ISCARRAY(array)
        or PyArray_SIZE(array) != problem.layout.rows * per_row
    ):
        raise ValueError(f"{name} is no array for these scores")
    return PyArray_BYTES(array)


def negative_log(
    ndarray values not None, ndarray labels, ndarray probabilities, ndarray losses, int axis,
    ndarray class_weight, ndarray sample_weight, ignore_index, bint values_are_logarithms,
    tuple powers not None, threads_for, dtype=None,
):
    """Return the sum of the losses of given (log-)probabilities, as cross_entropy()."""
    cdef Call call
    cdef Scan scan
    call_open(
        &call, LABEL_LOSS if labels is not None else PROBABILITY_LOSS, values,
        <unsigned long long>1 << axis)
    call_array(&call, INPUT, values)
    call.problem.options.logarithms = values_are_logarithms
    set_target(&call, &scan, labels, probabilities, ignore_index)
    set_rows(&call, losses, class_weight, sample_weight)
    set_powers(&call, &scan, powers)
    return run_loss(&call, &scan, False, None, result_kind_for(dtype, values), threads_for)


cdef int set_target(
    Call *call, Scan *scan, ndarray labels, ndarray probabilities, ignore_index
) except -1:
    if labels is None:
        call_array(call, SECOND, probabilities)
        return 0
    call_array(call, LABELS, labels, True)
    check_labels(&call.problem.arrays[<int>LABELS])
    return set_ignored(scan, &call.problem, ignore_index)


cdef int set_rows(
    Call *call, ndarray losses, ndarray class_weight, ndarray sample_weight
) except -1:
    """Set what there is one of for each row, and for each class; all arrays are there then."""
    if sample_weight is not None:
        call_array(call, SAMPLE_WEIGHT, sample_weight, True)
    if losses is not None:
        call_result(call, RESULT, losses, True)
    call_close(call)
    return set_class_weight(&call.problem, class_weight)


cdef int set_powers(Call *call, Scan *scan, tuple powers) except -1:
    call.problem.options.powers.result, call.problem.options.powers.sum, scan.power = powers
    return 0


cdef object run_loss(
    Call *call, Scan *scan, bint mean, denominator, int result_kind, threads_for
):
    """Run a call whose arrays and options are set."""
    cdef Problem *problem = &call.problem
    cdef const Kernels *kernels = kernels_for(problem, result_kind)
    cdef int n_threads = threads_of(work_of(problem), kernels.lanes, threads_for)
    cdef int bad = 0
    cdef double divisor = scan_rows(scan, problem, kernels, n_threads, &bad)
    if bad:
        return None
    if denominator is not None:
        divisor = denominator
    if mean and divisor != 0:
        problem.options.divisor = divisor
    return run(problem, kernels, n_threads, result_kind, True), divisor


def backward(
    ndarray gradient not None, ndarray output not None, ndarray result not None,
    tuple axes not None, bint log, double temperature, threads_for,
):
    """Write the gradient through softmax or log_softmax along `axes` to `result`."""
    cdef Call call
    call_open(
        &call, LOG_SOFTMAX_BACKWARD if log else SOFTMAX_BACKWARD, gradient, axes_bits(axes))
    call_array(&call, INPUT, gradient)
    call_array(&call, SECOND, output)
    call_result(&call, OUTPUT, result)
    call_close(&call)
    call.problem.options.temperature = temperature
    execute(&call, call.problem.arrays[<int>OUTPUT].kind, False, threads_for)


def binary(
    ndarray values not None, ndarray target not None, ndarray weight, ndarray pos_weight,
    ndarray losses, ndarray gradient, bint from_logits, double divisor, threads_for,
    dtype=None,
):
    """Return the sum of the binary losses; write them and their gradients where asked to."""
    cdef Call call
    call_open(&call, BINARY_LOSS, values, 0)
    call_array(&call, INPUT, values)
    call_array(&call, SECOND, target)
    if weight is not None:
        call_array(&call, WEIGHT, weight)
    if pos_weight is not None:
        call_array(&call, POS_WEIGHT, pos_weight)
    if losses is not None:
        call_result(&call, RESULT, losses)
    if gradient is not None:
        call_result(&call, OUTPUT, gradient)
    call_close(&call, True)
    call.problem.options.from_logits = from_logits
    call.problem.options.divisor = divisor
    return execute(&call, result_kind_for(dtype, values), True, threads_for)


def pause():
    """Give back the idle threads of the OpenMP that this module is bound to, before a fork."""
    openmp_pause()


include "fast.pxi"

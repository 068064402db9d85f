# Ordinary calls, from Python's arguments to Python's result. The smallest take a microsecond; a
# memoryview for each array and the general checks, in Python, take 7 to 15 of them.
#
# What is not ordinary, errors included, is left to the general way: a function here then returns
# None and has done nothing. So types are compared exactly: an array may be equal to 1.0, too, and a
# masked array lends its memory.

cdef extern from "numpy/arrayobject.h":
    ctypedef Py_ssize_t npy_intp
    ctypedef struct PyArray_Descr:
        pass
    char *PyArray_BYTES(ndarray)
    PyArray_Descr *PyArray_DESCR(ndarray)
    npy_intp PyArray_DIM(ndarray, int)
    npy_intp *PyArray_DIMS(ndarray)
    object PyArray_Empty(int, npy_intp *, PyArray_Descr *, int)
    bint PyArray_IS_C_CONTIGUOUS(ndarray)
    bint PyArray_ISNOTSWAPPED(ndarray)
    bint PyArray_ISSIGNED(ndarray)
    bint PyArray_ISWRITEABLE(ndarray)
    npy_intp PyArray_ITEMSIZE(ndarray)
    int PyArray_NDIM(ndarray)
    object PyArray_Scalar(void *, PyArray_Descr *, PyObject *)
    npy_intp PyArray_SIZE(ndarray)
    npy_intp PyArray_STRIDE(ndarray, int)


cdef enum:
    # Scratch memory that the stack may give, and room for the sums of that many tasks.
    STACK_BYTES = 32768
    STACK_TASKS = 16
    # Elements from which on a call need not be hurried; all have less than _memory.py would keep.
    ORDINARY_SIZE = 1048576


cdef struct OrdinaryArray:
    Array array
    Py_ssize_t rows
    Py_ssize_t classes
    Py_ssize_t itemsize


cdef inline bint is_ordinary(x) noexcept:
    """Whether `x` is an array with elements, but not very many."""
    return (
        type(x) is ndarray
        and 0 < PyArray_SIZE(<ndarray>x) < ORDINARY_SIZE
        and (PyArray_NDIM(<ndarray>x) <= 2 or PyArray_IS_C_CONTIGUOUS(<ndarray>x)))


cdef inline bint is_last_axis(axis, ndarray x) noexcept:
    return type(axis) is int and axis == -1 and PyArray_NDIM(x) > 0


cdef inline bint is_float(value, double expected) noexcept:
    return type(value) is float and PyFloat_AS_DOUBLE(value) == expected


cdef inline bint is_word(value, str expected) noexcept:
    return type(value) is str and <str>value == expected


cdef OrdinaryArray ordinary_array(ndarray x) noexcept:
    """See an array as rows along its last axis."""
    cdef OrdinaryArray view
    cdef int ndim = PyArray_NDIM(x)
    cdef Py_ssize_t[2] strides
    cdef Py_ssize_t[2] shape
    shape[1] = PyArray_DIM(x, ndim - 1)
    shape[0] = PyArray_SIZE(x) // shape[1]
    strides[1] = PyArray_STRIDE(x, ndim - 1)
    strides[0] = PyArray_STRIDE(x, 0) if ndim == 2 else shape[1] * <Py_ssize_t>sizeof(storage)
    view.array = array_2d(PyArray_BYTES(x), shape, strides)
    view.rows = shape[0]
    view.classes = shape[1]
    view.itemsize = sizeof(storage)
    return view


cdef inline bint same_shape(ndarray a, ndarray b, int ndim) noexcept:
    """Whether the first `ndim` axes have the same lengths."""
    cdef int axis
    for axis in range(ndim):
        if PyArray_DIM(a, axis) != PyArray_DIM(b, axis):
            return False
    return True


cdef bint takes_result(out, ndarray x, const OrdinaryArray *input, OrdinaryArray *output) noexcept:
    """Describe `out`; False if the result of `x` cannot go there, or not without a look at both."""
    if not is_ordinary(out) or not PyArray_ISWRITEABLE(<ndarray>out):
        return False
    if (
        PyArray_DESCR(<ndarray>out) != PyArray_DESCR(x)
        or PyArray_NDIM(<ndarray>out) != PyArray_NDIM(x)
        or not same_shape(<ndarray>out, x, PyArray_NDIM(x))
    ):
        return False
    output[0] = ordinary_array(<ndarray>out)
    return is_same_place(input, output) or not overlap(input, output)


cdef inline bint is_same_place(const OrdinaryArray *a, const OrdinaryArray *b) noexcept:
    return (
        a.array.data == b.array.data and a.array.outer_stride == b.array.outer_stride
        and a.array.class_stride == b.array.class_stride)


cdef inline bint overlap(const OrdinaryArray *a, const OrdinaryArray *b) noexcept:
    """Whether the memory between the ends of two arrays overlaps."""
    return low_end(a) < high_end(b) and low_end(b) < high_end(a)


cdef inline Py_ssize_t low_end(const OrdinaryArray *a) noexcept:
    return (
        <Py_ssize_t>a.array.data + min(0, (a.rows - 1) * a.array.outer_stride)
        + min(0, (a.classes - 1) * a.array.class_stride))


cdef inline Py_ssize_t high_end(const OrdinaryArray *a) noexcept:
    return (
        <Py_ssize_t>a.array.data + max(0, (a.rows - 1) * a.array.outer_stride)
        + max(0, (a.classes - 1) * a.array.class_stride) + a.itemsize)


cdef ndarray empty_like(ndarray x, int ndim):
    """Return a new contiguous array of the same dtype, of the shape of the first `ndim` axes."""
    cdef PyArray_Descr *descriptor = PyArray_DESCR(x)
    Py_INCREF(<object>descriptor)  # PyArray_Empty takes a reference over
    return PyArray_Empty(ndim, PyArray_DIMS(x), descriptor, 0)


cdef inline int threads_of(const OrdinaryArray *view, threads_for) except 0:
    """threads_for_call() on that array; Python's threads_for() is not asked where one will do."""
    cdef Py_ssize_t size = view.rows * view.classes
    if threads_worth(2, size) == 1:
        return 1
    return threads_for_call(threads_for(size), size)


cdef double run_ordinary(Problem *problem, bint sum_results, int n_threads) except? -1.0:
    """run(), without taking memory for a problem that has few tasks and little scratch."""
    cdef double total = 0
    cdef double[STACK_TASKS] sums
    cdef char[STACK_BYTES + 64] memory
    cdef Py_ssize_t task
    cdef Problem by_rows
    if n_threads != 1:
        return run(problem, n_threads, sum_results)
    choose_plan(problem, 1)
    if sum_results:
        problem.task_losses = sums
    plan_by_rows(problem, &by_rows)
    if (
        problem.tasks > STACK_TASKS or problem.rows * problem.classes > WORK_PER_TASK
        or (sum_results and problem.classes > CHUNK) or scratch_size(problem) > STACK_BYTES
    ):
        problem.task_losses = NULL
        problem.by_rows = NULL
        return run(problem, 1, sum_results)
    share_out_tasks(
        run_task, problem.tasks, problem, 1, <char *>round_up(<size_t>memory), 0, True)
    if sum_results:
        for task in range(problem.tasks):
            total += sums[task]
    return total


def softmax_ordinary(x, axis, temperature, empty, out, bint log, threads_for):
    """Return softmax or log_softmax along the last axis, of an ordinary call."""
    cdef OrdinaryArray input, output
    cdef Problem problem
    if not (
        is_ordinary(x) and is_last_axis(axis, x) and is_float(temperature, 1.0)
        and is_word(empty, "nan")
    ):
        return None
    input = ordinary_array(x)
    if out is None:
        out = empty_like(x, PyArray_NDIM(<ndarray>x))
        output = ordinary_array(out)
    elif not takes_result(out, x, &input, &output):
        return None
    problem = problem_for(
        LOG_SOFTMAX if log else SOFTMAX, input.array, input.classes, input.rows, 1.0)
    set_output(&problem, output.array)
    run_ordinary(&problem, False, threads_of(&input, threads_for))
    return out


def logsumexp_ordinary(x, axis, threads_for):
    """Return the logsumexp along the last axis, of an ordinary call."""
    cdef OrdinaryArray input
    cdef Problem problem
    cdef ndarray result
    if not (is_ordinary(x) and is_last_axis(axis, x) and PyArray_NDIM(<ndarray>x) > 1):
        return None
    input = ordinary_array(x)
    result = empty_like(x, PyArray_NDIM(<ndarray>x) - 1)
    problem = problem_for(LOGSUMEXP, input.array, input.classes, input.rows, 1.0)
    problem.result.data = PyArray_BYTES(result)
    problem.result.row_stride = sizeof(storage)
    run_ordinary(&problem, False, threads_of(&input, threads_for))
    return result


cdef bint takes_labels(target, ndarray logits, OrdinaryArray *view) noexcept:
    """Describe `target`; False if it does not hold one int64 for each row of the logits."""
    cdef ndarray labels
    cdef int ndim = PyArray_NDIM(logits) - 1
    if not is_ordinary(target):
        return False
    labels = target
    if (
        not PyArray_ISSIGNED(labels) or PyArray_ITEMSIZE(labels) != sizeof(int64_t)
        or not PyArray_ISNOTSWAPPED(labels) or PyArray_NDIM(labels) != ndim
        or not same_shape(labels, logits, ndim)
        or (ndim == 2 and not PyArray_IS_C_CONTIGUOUS(labels))
    ):
        return False
    memset(view, 0, sizeof(OrdinaryArray))
    view.array.data = PyArray_BYTES(labels)
    view.array.row_stride = PyArray_STRIDE(labels, 0) if ndim == 1 else <Py_ssize_t>sizeof(int64_t)
    view.array.outer_stride = view.array.row_stride
    view.array.inner_length = 1
    view.rows = PyArray_SIZE(labels)
    view.classes = 1
    view.itemsize = sizeof(int64_t)
    return True


def cross_entropy_ordinary(
    logits, target, axis, ignore_index, label_smoothing, z_loss, temperature, reduction, empty,
    bint with_grad, grad_out, threads_for,
):
    """Return the mean loss and its gradient (or None), of an ordinary call."""
    cdef OrdinaryArray input, labels, output
    cdef Problem problem
    cdef double divisor, loss
    cdef int overflow = 0
    cdef int bad = 0
    cdef int n_threads
    cdef storage result
    if not (
        is_ordinary(logits) and is_last_axis(axis, logits) and type(ignore_index) is int
        and is_float(label_smoothing, 0.0) and is_float(z_loss, 0.0) and is_float(temperature, 1.0)
        and is_word(reduction, "mean") and is_word(empty, "nan")
        and takes_labels(target, logits, &labels)
    ):
        return None
    input = ordinary_array(logits)
    if grad_out is not None and (
        not takes_result(grad_out, logits, &input, &output) or overlap(&labels, &output)
    ):
        return None
    problem = problem_for(CROSS_ENTROPY, input.array, input.classes, input.rows, 1.0)
    problem.target = labels.array
    problem.ignore_index = PyLong_AsLongLongAndOverflow(ignore_index, &overflow)
    if overflow:
        return None
    n_threads = threads_of(&input, threads_for)
    divisor = scan_labels(&problem, n_threads, &bad)
    if bad or divisor == 0:
        return None
    problem.gradient_scale = <real>(1.0 / divisor)
    if with_grad:
        if grad_out is None:
            grad_out = empty_like(logits, PyArray_NDIM(<ndarray>logits))
            output = ordinary_array(grad_out)
        set_output(&problem, output.array)
    loss = run_ordinary(&problem, True, n_threads) / divisor
    if STORAGE_IS_REAL:
        result = <storage>loss
        return PyArray_Scalar(&result, PyArray_DESCR(logits), NULL), grad_out
    return (<object>PyArray_DESCR(logits)).type(loss), grad_out

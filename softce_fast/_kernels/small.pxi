# Ordinary small calls, from Python's arguments to Python's result. Such a call takes a microsecond;
# a memoryview for each array and the general checks, in Python, would take two more.
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
    # Scratch memory that the stack may give.
    STACK_BYTES = 32768


cdef struct SmallArray:
    Array array
    Py_ssize_t rows
    Py_ssize_t classes
    Py_ssize_t itemsize


cdef inline bint is_small(x) noexcept:
    """Whether `x` is an array with elements, but fewer than would be worth a second thread."""
    return (
        type(x) is ndarray
        and 0 < PyArray_SIZE(<ndarray>x) < SERIAL_SIZE
        and (PyArray_NDIM(<ndarray>x) <= 2 or PyArray_IS_C_CONTIGUOUS(<ndarray>x)))


cdef inline bint is_last_axis(axis, ndarray x) noexcept:
    return type(axis) is int and axis == -1 and PyArray_NDIM(x) > 0


cdef inline bint is_float(value, double expected) noexcept:
    return type(value) is float and PyFloat_AS_DOUBLE(value) == expected


cdef inline bint is_word(value, str expected) noexcept:
    return type(value) is str and <str>value == expected


cdef SmallArray small_array(ndarray x) noexcept:
    """See an array as rows along its last axis."""
    cdef SmallArray small
    cdef int ndim = PyArray_NDIM(x)
    cdef Py_ssize_t[2] strides
    cdef Py_ssize_t[2] shape
    shape[1] = PyArray_DIM(x, ndim - 1)
    shape[0] = PyArray_SIZE(x) // shape[1]
    strides[1] = PyArray_STRIDE(x, ndim - 1)
    strides[0] = PyArray_STRIDE(x, 0) if ndim == 2 else shape[1] * <Py_ssize_t>sizeof(storage)
    small.array = array_2d(PyArray_BYTES(x), shape, strides)
    small.rows = shape[0]
    small.classes = shape[1]
    small.itemsize = sizeof(storage)
    return small


cdef inline bint same_shape(ndarray a, ndarray b, int ndim) noexcept:
    """Whether the first `ndim` axes have the same lengths."""
    cdef int axis
    for axis in range(ndim):
        if PyArray_DIM(a, axis) != PyArray_DIM(b, axis):
            return False
    return True


cdef bint takes_result(out, ndarray x, const SmallArray *input, SmallArray *output) noexcept:
    """Describe `out`; False if the result of `x` cannot go there, or not without a look at both."""
    if not is_small(out) or not PyArray_ISWRITEABLE(<ndarray>out):
        return False
    if (
        PyArray_DESCR(<ndarray>out) != PyArray_DESCR(x)
        or PyArray_NDIM(<ndarray>out) != PyArray_NDIM(x)
        or not same_shape(<ndarray>out, x, PyArray_NDIM(x))
    ):
        return False
    output[0] = small_array(<ndarray>out)
    return is_same_place(input, output) or not overlap(input, output)


cdef inline bint is_same_place(const SmallArray *a, const SmallArray *b) noexcept:
    return (
        a.array.data == b.array.data and a.array.outer_stride == b.array.outer_stride
        and a.array.class_stride == b.array.class_stride)


cdef inline bint overlap(const SmallArray *a, const SmallArray *b) noexcept:
    """Whether the memory between the ends of two arrays overlaps."""
    return low_end(a) < high_end(b) and low_end(b) < high_end(a)


cdef inline Py_ssize_t low_end(const SmallArray *a) noexcept:
    return (
        <Py_ssize_t>a.array.data + min(0, (a.rows - 1) * a.array.outer_stride)
        + min(0, (a.classes - 1) * a.array.class_stride))


cdef inline Py_ssize_t high_end(const SmallArray *a) noexcept:
    return (
        <Py_ssize_t>a.array.data + max(0, (a.rows - 1) * a.array.outer_stride)
        + max(0, (a.classes - 1) * a.array.class_stride) + a.itemsize)


cdef ndarray empty_like(ndarray x):
    """Return a new contiguous array of the same shape and dtype."""
    cdef PyArray_Descr *descriptor = PyArray_DESCR(x)
    Py_INCREF(<object>descriptor)  # PyArray_Empty takes a reference over
    return PyArray_Empty(PyArray_NDIM(x), PyArray_DIMS(x), descriptor, 0)


cdef double run_small(Problem *problem, bint sum_results) except? -1.0:
    """run() on one thread, of a problem that is a single task if its scratch fits the stack."""
    cdef double total = 0
    cdef char[STACK_BYTES + 64] memory
    cdef Problem by_rows
    choose_plan(problem)
    if sum_results:
        problem.task_losses = &total
    plan_by_rows(problem, &by_rows)
    if (
        problem.rows > problem.rows_per_task or (sum_results and problem.classes > CHUNK)
        or scratch_size(problem) > STACK_BYTES
    ):
        problem.task_losses = NULL
        problem.by_rows = NULL
        return run(problem, 1, sum_results)
    run_task(problem, 0, <char *>round_up(<size_t>memory))
    return total


def softmax_small(x, axis, temperature, empty, out, bint log):
    """Return softmax or log_softmax along the last axis, of an ordinary small call."""
    cdef SmallArray input, output
    cdef Problem problem
    if not (
        is_small(x) and is_last_axis(axis, x) and is_float(temperature, 1.0)
        and is_word(empty, "nan")
    ):
        return None
    input = small_array(x)
    if out is None:
        out = empty_like(x)
        output = small_array(out)
    elif not takes_result(out, x, &input, &output):
        return None
    problem = problem_for(
        LOG_SOFTMAX if log else SOFTMAX, input.array, input.classes, input.rows, 1.0)
    set_output(&problem, output.array)
    run_small(&problem, False)
    return out


cdef bint takes_labels(target, ndarray logits, SmallArray *small) noexcept:
    """Describe `target`; False if it does not hold one int64 for each row of the logits."""
    cdef ndarray labels
    cdef int ndim = PyArray_NDIM(logits) - 1
    if not is_small(target):
        return False
    labels = target
    if (
        not PyArray_ISSIGNED(labels) or PyArray_ITEMSIZE(labels) != sizeof(int64_t)
        or not PyArray_ISNOTSWAPPED(labels) or PyArray_NDIM(labels) != ndim
        or not same_shape(labels, logits, ndim)
        or (ndim == 2 and not PyArray_IS_C_CONTIGUOUS(labels))
    ):
        return False
    memset(small, 0, sizeof(SmallArray))
    small.array.data = PyArray_BYTES(labels)
    small.array.row_stride = PyArray_STRIDE(labels, 0) if ndim == 1 else <Py_ssize_t>sizeof(int64_t)
    small.array.outer_stride = small.array.row_stride
    small.array.inner_length = 1
    small.rows = PyArray_SIZE(labels)
    small.classes = 1
    small.itemsize = sizeof(int64_t)
    return True


def cross_entropy_small(
    logits, target, axis, ignore_index, label_smoothing, z_loss, temperature, reduction, empty,
    bint with_grad, grad_out,
):
    """Return the mean loss and its gradient (or None), of an ordinary small call."""
    cdef SmallArray input, labels, output
    cdef Problem problem
    cdef double divisor, loss
    cdef int overflow = 0
    cdef int bad = 0
    cdef storage result
    if not (
        is_small(logits) and is_last_axis(axis, logits) and type(ignore_index) is int
        and is_float(label_smoothing, 0.0) and is_float(z_loss, 0.0) and is_float(temperature, 1.0)
        and is_word(reduction, "mean") and is_word(empty, "nan")
        and takes_labels(target, logits, &labels)
    ):
        return None
    input = small_array(logits)
    if grad_out is not None and (
        not takes_result(grad_out, logits, &input, &output) or overlap(&labels, &output)
    ):
        return None
    problem = problem_for(CROSS_ENTROPY, input.array, input.classes, input.rows, 1.0)
    problem.target = labels.array
    problem.ignore_index = PyLong_AsLongLongAndOverflow(ignore_index, &overflow)
    if overflow:
        return None
    divisor = scan_task(&problem, 0, problem.rows, &bad)
    if bad or divisor == 0:
        return None
    problem.gradient_scale = <real>(1.0 / divisor)
    if with_grad:
        if grad_out is None:
            grad_out = empty_like(logits)
            output = small_array(grad_out)
        set_output(&problem, output.array)
    loss = run_small(&problem, True) / divisor
    if STORAGE_IS_REAL:
        result = <storage>loss
        return PyArray_Scalar(&result, PyArray_DESCR(logits), NULL), grad_out
    return (<object>PyArray_DESCR(logits)).type(loss), grad_out

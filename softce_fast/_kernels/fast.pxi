# Fast calls: ordinary ones, from Python's arguments to Python's result. The smallest take a
# microsecond; the general checks, in Python, take 7 to 15 of them.
#
# What is not ordinary, errors included, is left to the general way: a function here then returns
# None and has done nothing. So types are compared exactly: an array may be equal to 1.0, too, and a
# masked array lends its memory.

cdef enum:
    # Elements from which on a call need not be hurried; _fresh_outputs.py would keep larger ones.
    FAST_SIZE = 1048576
    # What is rounded to no number of float16.
    FLOAT16_INFINITE = 65520


cdef inline bint is_small(x) noexcept:
    """Whether `x` is an array with elements, but not very many."""
    return type(x) is ndarray and 0 < PyArray_SIZE(<ndarray>x) < FAST_SIZE


cdef inline bint holds_floats(x) noexcept:
    """Whether `x` is an array with elements and an axis, of what results can be."""
    return (
        type(x) is ndarray and PyArray_NDIM(<ndarray>x) > 0 and PyArray_SIZE(<ndarray>x) > 0
        and is_float_kind(kind_of(<ndarray>x)) and PyArray_ISNOTSWAPPED(<ndarray>x))


cdef inline bint is_input(x) noexcept:
    return is_small(x) and holds_floats(x)


cdef inline bint is_last_axis(axis) noexcept:
    return type(axis) is int and axis == -1


cdef inline bint is_float(value, double expected) noexcept:
    return type(value) is float and PyFloat_AS_DOUBLE(value) == expected


cdef inline bint is_between(value, double least, double most) noexcept:
    return type(value) is float and least <= PyFloat_AS_DOUBLE(value) <= most


cdef inline bint is_word(value, str expected) noexcept:
    return type(value) is str and <str>value == expected


cdef inline bint same_shape(ndarray a, ndarray b, int ndim) noexcept:
    """Whether the first `ndim` axes have the same lengths."""
    cdef int axis
    for axis in range(ndim):
        if PyArray_DIM(a, axis) != PyArray_DIM(b, axis):
            return False
    return True


cdef inline bint takes_result(out, ndarray x) noexcept:
    """Whether `out` is an array like x."""
    return (
        is_small(out) and PyArray_ISWRITEABLE(<ndarray>out)
        and PyArray_DESCR(<ndarray>out) == PyArray_DESCR(x)
        and PyArray_NDIM(<ndarray>out) == PyArray_NDIM(x)
        and same_shape(<ndarray>out, x, PyArray_NDIM(x)))


cdef bint output_is_input(const Call *call) noexcept:
    """Whether the one is the other, element by element."""
    cdef const Array *input = &call.problem.arrays[<int>INPUT]
    cdef const Array *output = &call.problem.arrays[<int>OUTPUT]
    cdef int axis
    for axis in range(call.problem.layout.row_axes + call.problem.layout.class_axes):
        if input.strides[axis] != output.strides[axis]:
            return False
    return input.data == output.data


cdef bint output_is_apart(const Call *call, Role role) noexcept:
    """Whether OUTPUT shares no memory with another array."""
    return not overlap(
        &call.problem.layout, &call.problem.arrays[<int>role], &call.problem.arrays[<int>OUTPUT])


cdef ndarray empty_like(ndarray x, int ndim):
    """Return a new contiguous array of the same dtype, of the shape of the first `ndim` axes."""
    cdef PyArray_Descr *descriptor = PyArray_DESCR(x)
    Py_INCREF(<object>descriptor)  # PyArray_Empty takes a reference over
    return PyArray_Empty(ndim, PyArray_DIMS(x), descriptor, 0)


cdef inline void fast_open(Call *call, Operation operation, ndarray x) except *:
    call_open(call, operation, x, <unsigned long long>1 << (PyArray_NDIM(x) - 1))
    call_array(call, INPUT, x)


def softmax_fast(x, axis, temperature, empty, out, bint log, threads_for):
    """Return softmax or log_softmax along the last axis, of an ordinary call."""
    cdef Call call
    if not (
        is_input(x) and is_last_axis(axis) and is_float(temperature, 1.0) and is_word(empty, "nan")
        and (out is None or takes_result(out, <ndarray>x))
    ):
        return None
    if out is None:
        out = empty_like(x, PyArray_NDIM(<ndarray>x))
    fast_open(&call, LOG_SOFTMAX if log else SOFTMAX, x)
    call_array(&call, OUTPUT, out)
    call_close(&call)
    if not (output_is_apart(&call, INPUT) or output_is_input(&call)):
        return None
    execute(&call, call.problem.arrays[<int>OUTPUT].kind, False, threads_for)
    return out


def logsumexp_fast(x, axis, threads_for):
    """Return the logsumexp along the last axis, of an ordinary call."""
    cdef Call call
    cdef ndarray result
    if not (is_input(x) and is_last_axis(axis) and PyArray_NDIM(<ndarray>x) > 1):
        return None
    result = empty_like(x, PyArray_NDIM(<ndarray>x) - 1)
    fast_open(&call, LOGSUMEXP, x)
    call_array(&call, RESULT, result, True)
    call_close(&call)
    execute(&call, call.problem.arrays[<int>RESULT].kind, False, threads_for)
    return result


cdef bint takes_labels(target, ndarray logits) noexcept:
    """Whether `target` holds a whole number for each row of the logits."""
    cdef int ndim = PyArray_NDIM(logits) - 1
    cdef int kind
    if not is_small(target) or PyArray_NDIM(<ndarray>target) != ndim:
        return False
    kind = kind_of(<ndarray>target)
    return (
        kind != NO_KIND and kind != KIND_BOOL and not is_float_kind(kind)
        and same_shape(<ndarray>target, logits, ndim))


cdef inline bint is_mean(values, target, axis, ignore_index, reduction, empty) noexcept:
    """Whether a loss is the mean over labels."""
    return (
        is_last_axis(axis) and type(ignore_index) is int and is_word(reduction, "mean")
        and is_word(empty, "nan") and takes_labels(target, <ndarray>values))


cdef bint are_ordinary(weights) noexcept:
    """Whether `weights` is an array of numbers around 1 and of zeros, one beside the other."""
    cdef double[SCAN_BLOCK] block
    cdef const char *start
    cdef Py_ssize_t size, step, k, n, i = 0
    cdef bint ordinary = True
    cdef double number
    if not (
        is_small(weights) and is_float_kind(kind_of(<ndarray>weights))
        and PyArray_ISCARRAY_RO(<ndarray>weights)
    ):
        return False
    start, step = PyArray_BYTES(<ndarray>weights), PyArray_ITEMSIZE(<ndarray>weights)
    size = PyArray_SIZE(<ndarray>weights)
    while i < size:
        n = min(<Py_ssize_t>SCAN_BLOCK, size - i)
        numbers_read(block, start + i * step, step, n, kind_of(<ndarray>weights), False)
        for k in range(n):
            number = fabs(block[k])
            ordinary &= (number == 0) | (1e-27 < number) & (number < 1e27)
        i += n
    return ordinary


cdef inline bint takes_weights(weight, sample_weight, ndarray values, output) noexcept:
    """Whether these are weights of the classes and of the rows, and share no memory with output."""
    cdef int ndim = PyArray_NDIM(values) - 1
    if weight is None and sample_weight is None:
        return True
    return output is None and (
        weight is None or are_ordinary(weight) and PyArray_NDIM(<ndarray>weight) == 1
        and PyArray_DIM(<ndarray>weight, 0) == PyArray_DIM(values, ndim)
    ) and (
        sample_weight is None or are_ordinary(sample_weight)
        and PyArray_NDIM(<ndarray>sample_weight) == ndim
        and same_shape(<ndarray>sample_weight, values, ndim))


cdef ndarray fast_weights(Call *call, weight, sample_weight):
    """Set what takes_weights() let pass, after the other arrays; return what is to live on."""
    if sample_weight is not None:
        call_array(call, SAMPLE_WEIGHT, sample_weight, True)
    call_close(call)
    if weight is not None:
        weight = weight.astype("d", copy=False)
    set_class_weight(&call.problem, weight)
    return weight


def cross_entropy_fast(
    logits, target, axis, weight, sample_weight, ignore_index, label_smoothing, z_loss,
    temperature, reduction, empty, bint with_grad, grad_out, threads_for,
):
    """Return the mean loss and its gradient (or None), of an ordinary call."""
    cdef Call call
    if not (
        is_input(logits) and is_mean(logits, target, axis, ignore_index, reduction, empty)
        and (is_float(label_smoothing, 0.0) or is_between(label_smoothing, 1e-9, 1.0))
        and (is_float(z_loss, 0.0) or is_between(z_loss, 1e-9, 1e9))
        and is_between(temperature, 1e-9, 1e9)
        and (grad_out is None or takes_result(grad_out, <ndarray>logits))
        and takes_weights(weight, sample_weight, <ndarray>logits, grad_out)
    ):
        return None
    fast_open(&call, CROSS_ENTROPY if label_smoothing == 0 else DENSE_CROSS_ENTROPY, logits)
    call.problem.options.label_smoothing = label_smoothing
    call.problem.options.z_loss = z_loss
    call.problem.options.temperature = temperature
    call_array(&call, LABELS, target, True)
    if with_grad:
        if grad_out is None:
            grad_out = empty_like(logits, PyArray_NDIM(<ndarray>logits))
        call_array(&call, OUTPUT, grad_out)
    weight = fast_weights(&call, weight, sample_weight)
    if with_grad and not (
        (output_is_apart(&call, INPUT) or output_is_input(&call))
        and output_is_apart(&call, LABELS)
    ):
        return None
    loss = mean_loss(&call, logits, ignore_index, threads_for)
    return None if loss is None else (loss, grad_out)


def negative_log_fast(
    values, target, axis, weight, sample_weight, ignore_index, reduction, empty, bint logarithms,
    threads_for,
):
    """Return the mean loss of given (log-)probabilities, of an ordinary call.

    These may be many: one in each row is read.
    """
    cdef Call call
    if not (
        holds_floats(values) and is_mean(values, target, axis, ignore_index, reduction, empty)
        and takes_weights(weight, sample_weight, <ndarray>values, None)
    ):
        return None
    fast_open(&call, LABEL_LOSS, values)
    call_array(&call, LABELS, target, True)
    weight = fast_weights(&call, weight, sample_weight)
    call.problem.options.logarithms = logarithms
    return mean_loss(&call, values, ignore_index, threads_for)


cdef object mean_loss(Call *call, ndarray values, ignore_index, threads_for):
    """Run the call; None, with nothing done, if a label is no class or no row counts."""
    cdef Problem *problem = &call.problem
    cdef int kind = problem.arrays[<int>INPUT].kind
    cdef const Kernels *kernels = kernels_for(problem, kind)
    cdef int n_threads = threads_of(work_of(problem), kernels.lanes, threads_for)
    cdef int bad = 0
    cdef double divisor, loss
    cdef float narrow
    cdef Scan scan
    set_ignored(&scan, problem, ignore_index)
    scan.power = 0
    divisor = scan_rows(&scan, problem, kernels, n_threads, &bad)
    if bad or divisor == 0:
        return None
    problem.options.divisor = divisor
    loss = run(problem, kernels, n_threads, kind, True) / divisor
    if kind == KIND_FLOAT32:
        narrow = <float>loss
        return PyArray_Scalar(&narrow, PyArray_DESCR(values), NULL)
    if kind == KIND_FLOAT64:
        return PyArray_Scalar(&loss, PyArray_DESCR(values), NULL)
    if kind == KIND_FLOAT16 and fabs(loss) >= FLOAT16_INFINITE:
        loss *= INFINITY    # NumPy would warn
    return (<object>PyArray_DESCR(values)).type(loss)

# From ndarrays to a Layout and its Arrays: axes that are neighbours in every array become one.
#
# Arrays were checked by Python, but what depends on it here is memory: kinds and shapes are checked
# once more. Of an ndarray's subclass nothing is asked but its memory. Uses problem.pxd.

cdef extern from "numpy/arrayobject.h":
    ctypedef Py_ssize_t npy_intp
    ctypedef struct PyTypeObject_ "PyTypeObject":
        const char *tp_name
    ctypedef struct PyArray_Descr:
        PyTypeObject_ *typeobj
        char kind
    char *PyArray_BYTES(ndarray)
    PyArray_Descr *PyArray_DESCR(ndarray)
    npy_intp PyArray_DIM(ndarray, int)
    npy_intp *PyArray_DIMS(ndarray)
    object PyArray_Empty(int, npy_intp *, PyArray_Descr *, int)
    bint PyArray_ISCARRAY_RO(ndarray)
    bint PyArray_ISCARRAY(ndarray)
    bint PyArray_ISNOTSWAPPED(ndarray)
    bint PyArray_ISWRITEABLE(ndarray)
    npy_intp PyArray_ITEMSIZE(ndarray)
    int PyArray_NDIM(ndarray)
    object PyArray_Scalar(void *, PyArray_Descr *, PyObject *)
    npy_intp PyArray_SIZE(ndarray)
    npy_intp PyArray_STRIDE(ndarray, int)


cdef enum:
    MOST_AXES = 64     # of an ndarray
    MOST_ARRAYS = 7    # of a call: a loss with gradient and Hessian, mask and sample weights
    NO_KIND = -1


cdef struct Call:
    # A problem, and what its layout points at. Not to be copied.
    Problem problem
    int ndim
    int row_ndim                 # of these axes, which come first here
    int[MOST_AXES] axes          # which axis of the arrays each is
    Py_ssize_t[MOST_AXES] lengths
    int roles                    # how many arrays there are,
    int[MOST_ARRAYS] role        # which,
    Py_ssize_t strides[MOST_ARRAYS][MOST_AXES]    # and theirs


cdef inline int kind_of(ndarray array) noexcept:
    """The kind of an array's elements, NO_KIND if kernels do not know it."""
    return kind_of_dtype(PyArray_DESCR(array), PyArray_ITEMSIZE(array))


cdef int kind_of_dtype(const PyArray_Descr *descriptor, Py_ssize_t size) noexcept:
    cdef char kind = descriptor.kind
    if kind == c"f":
        if size == 4:
            return KIND_FLOAT32
        if size == 8:
            return KIND_FLOAT64
        return KIND_FLOAT16 if size == 2 else NO_KIND
    if kind == c"i" or kind == c"u":
        if size == 8:
            return KIND_INT64 if kind == c"i" else KIND_UINT64
        if size == 4:
            return KIND_INT32 if kind == c"i" else KIND_UINT32
        if size == 2:
            return KIND_INT16 if kind == c"i" else KIND_UINT16
        return KIND_INT8 if kind == c"i" else KIND_UINT8
    if kind == c"b":
        return KIND_BOOL
    if kind == c"V" and size == 2 and is_bfloat16(descriptor.typeobj.tp_name):
        return KIND_BFLOAT16
    return NO_KIND


cdef inline bint is_bfloat16(const char *name) noexcept:
    """Whether that is ml_dtypes' type; its module may be named as well."""
    cdef const char *last = strrchr(name, c".")
    return strcmp(name if last == NULL else last + 1, b"bfloat16") == 0


cdef inline bint is_float_kind(int kind) noexcept nogil:
    return kind >= KIND_FLOAT16


cdef inline bint is_half_kind(int kind) noexcept nogil:
    return kind == KIND_FLOAT16 or kind == KIND_BFLOAT16


cdef void call_open(
    Call *call, Operation operation, ndarray x, unsigned long long class_axes
) noexcept:
    """Begin a call on arrays of the shape of x; bit k of `class_axes`: axis k belongs to a row."""
    cdef int axis, place = 0
    memset(&call.problem, 0, sizeof(Problem))
    call.problem.operation = operation
    call.problem.options.temperature = 1
    call.problem.options.divisor = 1
    call.roles = 0
    call.ndim = PyArray_NDIM(x)
    for axis in range(call.ndim):
        if not class_axes >> axis & 1:
            call.axes[place] = axis
            call.lengths[place] = PyArray_DIM(x, axis)
            place += 1
    call.row_ndim = place
    if place == call.ndim:
        return
    for axis in range(call.ndim):
        if class_axes >> axis & 1:
            call.axes[place] = axis
            call.lengths[place] = PyArray_DIM(x, axis)
            place += 1


cdef int call_array(Call *call, Role role, ndarray array, bint per_row=False) except -1:
    """Add an array of the shape of the batch or, where `per_row`, of the row axes alone."""
    cdef Array *place = &call.problem.arrays[<int>role]
    cdef Py_ssize_t *strides = call.strides[call.roles]
    cdef int ndim = call.row_ndim if per_row else call.ndim
    cdef int axis, k
    place.kind = kind_of(array)
    if place.kind == NO_KIND:
        raise TypeError(f"no kernel takes arrays of {array.dtype}")
    if PyArray_NDIM(array) != ndim:
        raise ValueError(f"an array of {PyArray_NDIM(array)} axes where it takes {ndim}")
    place.data = PyArray_BYTES(array)
    place.size = PyArray_ITEMSIZE(array)
    place.swapped = not PyArray_ISNOTSWAPPED(array)
    place.strides = strides
    call.role[call.roles] = role
    call.roles += 1
    for k in range(call.ndim):
        axis = k if per_row else call.axes[k]
        strides[k] = 0
        if k < ndim:
            strides[k] = PyArray_STRIDE(array, axis)
            if PyArray_DIM(array, axis) != call.lengths[k]:
                raise ValueError(
                    f"an array of length {PyArray_DIM(array, axis)} along an axis of length "
                    f"{call.lengths[k]}")
    return 0


cdef int call_result(Call *call, Role role, ndarray array, bint per_row=False) except -1:
    """Add an array that is written to."""
    call_array(call, role, array, per_row)
    if not is_float_kind(call.problem.arrays[<int>role].kind):
        raise TypeError(f"no kernel writes arrays of {array.dtype}")
    if not PyArray_ISWRITEABLE(array):
        raise ValueError("an array to write to is read-only")
    return 0


cdef int call_close(Call *call, bint by_elements=False) except -1:
    """Fill the layout in, once all arrays are there.

    `by_elements`: no axis is one of classes, and the last, once they are joined, is taken as that.
    """
    cdef Layout *layout = &call.problem.layout
    cdef int k
    layout.row_axes = axes_joined(call, 0, call.row_ndim, 0)
    layout.class_axes = axes_joined(
        call, call.row_ndim, call.ndim, layout.row_axes) - layout.row_axes
    if by_elements and layout.row_axes > 0:
        layout.row_axes -= 1
        layout.class_axes = 1
    layout.lengths = call.lengths
    layout.rows = 1
    layout.classes = 1
    layout.inner = 1
    for k in range(layout.row_axes):
        layout.inner = call.lengths[k]
        layout.rows *= layout.inner
    for k in range(layout.row_axes, layout.row_axes + layout.class_axes):
        layout.classes *= call.lengths[k]
    if layout.rows * layout.classes == 0:
        raise ValueError("arrays without elements are not for kernels")
    layout.even = True
    for k in range(call.roles):
        array_close(layout, &call.problem.arrays[call.role[k]])
        layout.even = layout.even and call.problem.arrays[call.role[k]].row_stride != 0
    return 0


cdef int axes_joined(Call *call, int first, int stop, int to) noexcept:
    """Move axes to place `to`, as few of them as all arrays allow; return where they end."""
    cdef int start = to
    cdef int axis, k
    for axis in range(first, stop):
        if call.lengths[axis] == 1:
            continue
        if to > start and axes_follow(call, to - 1, axis):
            to -= 1
            call.lengths[axis] *= call.lengths[to]
        call.lengths[to] = call.lengths[axis]
        for k in range(call.roles):
            call.strides[k][to] = call.strides[k][axis]
        to += 1
    return to


cdef inline bint axes_follow(const Call *call, int outer, int inner) noexcept:
    """Whether each step along one axis is, in every array, as long as the other axis."""
    cdef int k
    for k in range(call.roles):
        if call.strides[k][outer] != call.lengths[inner] * call.strides[k][inner]:
            return False
    return True


cdef inline void array_close(const Layout *layout, Array *array) noexcept:
    """Fill in the strides that most layouts have."""
    cdef int axis
    array.row_stride = 0
    array.inner_stride = 0
    if layout.row_axes > 0:
        array.inner_stride = array.strides[layout.row_axes - 1]
        array.row_stride = array.inner_stride
        for axis in range(layout.row_axes - 1):
            if array.strides[axis] != layout.lengths[axis + 1] * array.strides[axis + 1]:
                array.row_stride = 0
    array.class_stride = array.size
    if layout.class_axes > 0:
        array.class_stride = array.strides[layout.row_axes] if layout.class_axes == 1 else 0


cdef inline bint has_neighbour_classes(const Problem *problem, Role role) noexcept nogil:
    """Whether the classes of a row follow each other in an array."""
    cdef const Array *array = &problem.arrays[<int>role]
    return problem.layout.class_axes <= 1 and array.class_stride == array.size


cdef inline bint has_neighbour_rows(const Problem *problem, Role role) noexcept nogil:
    """Whether rows follow each other element by element."""
    cdef const Array *array = &problem.arrays[<int>role]
    return array.inner_stride == array.size and problem.layout.row_axes > 0


cdef inline bint is_aligned(const Layout *layout, const Array *array) noexcept nogil:
    """Whether elements lie at multiples of their size, so that some begin a cache line."""
    cdef size_t all_ = <size_t>array.data
    cdef int axis
    for axis in range(layout.row_axes + layout.class_axes):
        all_ |= <size_t>array.strides[axis]
    return all_ % <size_t>array.size == 0


cdef inline bint overlap(const Layout *layout, const Array *a, const Array *b) noexcept nogil:
    """Whether the memory between the ends of two arrays overlaps."""
    return (
        array_end(layout, a, False) < array_end(layout, b, True)
        and array_end(layout, b, False) < array_end(layout, a, True))


cdef inline Py_ssize_t array_end(
    const Layout *layout, const Array *array, bint high
) noexcept nogil:
    """The address of an array's first byte or, where `high`, behind its last one."""
    cdef Py_ssize_t end = <Py_ssize_t>array.data
    cdef Py_ssize_t reach
    cdef int axis
    for axis in range(layout.row_axes + layout.class_axes):
        reach = (layout.lengths[axis] - 1) * array.strides[axis]
        if (reach > 0) == high:
            end += reach
    return end + array.size if high else end

# The one end of a kernel: elements of any kind, strides, byte order and mask become rows of `real`
# numbers, side by side in memory that a cache holds. Plain rows are read where they are.
#
# Uses element.h (conversion), problem.pxd, vector.pxd.

cdef extern from "element.h" nogil:
    int REAL_KIND
    void elements_load(real *to, const char *start, Py_ssize_t n, int kind)
    void elements_store(char *to, const real *start, Py_ssize_t n, int kind)
    void elements_stream(char *to, const real *start, Py_ssize_t n, int kind)
    void elements_copy(
        char *to, Py_ssize_t to_step, const char *start, Py_ssize_t step, Py_ssize_t n,
        Py_ssize_t size)
    void elements_collect(
        char *to, const char *start, const Py_ssize_t *offsets, Py_ssize_t n, Py_ssize_t size)
    void elements_spread(
        char *to, const Py_ssize_t *offsets, const char *start, Py_ssize_t n, Py_ssize_t size)
    void elements_swap(char *p, Py_ssize_t n, Py_ssize_t size)
    # Rows whose elements are a few apart:
    bint PERMUTES
    bint are_few_apart(Py_ssize_t step, Py_ssize_t size)
    ctypedef struct Picking:
        Py_ssize_t n
    ctypedef struct Weaving:
        Py_ssize_t n
    void elements_pick(
        Picking *picking, char *to, Py_ssize_t to_step, const char *start,
        const Py_ssize_t *offsets, Py_ssize_t rows, Py_ssize_t step, Py_ssize_t n, Py_ssize_t size)
    void elements_place(
        Weaving *weaving, char *to, const char *start, Py_ssize_t start_step, Py_ssize_t rows,
        Py_ssize_t step, Py_ssize_t n, Py_ssize_t size)
    void elements_weave(
        Weaving *weaving, char *to, Py_ssize_t to_step, const char *start, Py_ssize_t start_step,
        Py_ssize_t blocks, Py_ssize_t step, Py_ssize_t n, Py_ssize_t size)
    # A vector at a time:
    bint kind_has_vectors(int kind)
    vector kind_vector(const char *start, int kind)
    vector kind_vector_first(const char *start, Py_ssize_t count, int kind)
    void kind_vector_store(char *to, vector v, int kind)
    void kind_vector_store_first(char *to, vector v, Py_ssize_t count, int kind)
    void kind_vector_stream(char *to, vector v, int kind)


cdef inline bint has_neighbours(const Layout *layout, const Array *array) noexcept nogil:
    """Whether the classes of a row follow each other, in native byte order."""
    return layout.class_axes <= 1 and array.class_stride == array.size and not array.swapped


cdef inline bint is_plain(const Layout *layout, const Array *array) noexcept nogil:
    """The same of numbers of the kind that is computed in."""
    return array.kind == REAL_KIND and has_neighbours(layout, array)


cdef inline real real_read(const Array *array, const char *p) noexcept nogil:
    """One element."""
    cdef real x
    if array.kind == REAL_KIND and not array.swapped:
        memcpy(&x, p, sizeof(real))
        return x
    return <real>number_read(p, array.kind, array.swapped)


cdef inline void numbers_load(
    real *to, const char *start, Py_ssize_t n, int kind
) noexcept nogil:
    """Convert n elements; also those that are subnormal in float32 and not in float64."""
    cdef environment before
    if sizeof(real) == 4 or kind != KIND_FLOAT32:
        elements_load(to, start, n, kind)
        return
    before = environment_plain()
    elements_load(to, start, n, kind)
    environment_leave(before)


cdef void bytes_gather(
    const Layout *layout, const Array *array, const char *row, Py_ssize_t start, Py_ssize_t n,
    char *to,
) noexcept nogil:
    """Copy n classes of a row, from class `start` on, in native byte order."""
    cdef Py_ssize_t done = 0, count, last
    cdef int axis = layout.row_axes + layout.class_axes - 1
    if layout.class_axes <= 1:
        elements_copy(
            to, array.size, row + start * array.class_stride, array.class_stride, n, array.size)
    else:
        last = layout.lengths[axis]
        while done < n:
            count = min(n - done, last - (start + done) % last)
            elements_copy(
                to + done * array.size, array.size,
                row + class_offset(layout, array, start + done), array.strides[axis], count,
                array.size)
            done += count
    if array.swapped:
        elements_swap(to, n, array.size)


cdef void bytes_scatter(
    const Layout *layout, const Array *array, char *row, Py_ssize_t start, Py_ssize_t n,
    char *values,
) noexcept nogil:
    """The inverse of bytes_gather(); it uses `values` up."""
    cdef Py_ssize_t done = 0, count, last
    cdef int axis = layout.row_axes + layout.class_axes - 1
    if array.swapped:
        elements_swap(values, n, array.size)
    if layout.class_axes <= 1:
        elements_copy(
            row + start * array.class_stride, array.class_stride, values, array.size, n,
            array.size)
        return
    last = layout.lengths[axis]
    while done < n:
        count = min(n - done, last - (start + done) % last)
        elements_copy(
            row + class_offset(layout, array, start + done), array.strides[axis],
            values + done * array.size, array.size, count, array.size)
        done += count


cdef void row_gather(
    const Layout *layout, const Array *array, Py_ssize_t offset, Py_ssize_t start, Py_ssize_t n,
    real *to, char *raw,
) noexcept nogil:
    """Copy n classes of a row as `real` numbers; `raw` has room for as many elements."""
    cdef const char *row = array.data + offset
    if has_neighbours(layout, array):
        numbers_load(to, row + start * array.size, n, array.kind)
    elif array.kind == REAL_KIND:
        bytes_gather(layout, array, row, start, n, <char *>to)
    else:
        bytes_gather(layout, array, row, start, n, raw)
        numbers_load(to, raw, n, array.kind)


cdef inline const real *row_read(
    const Layout *layout, const Array *array, Py_ssize_t offset, Py_ssize_t start, Py_ssize_t n,
    real *buffer, char *raw,
) noexcept nogil:
    """The n classes themselves where they are plain, else a copy."""
    if is_plain(layout, array):
        return <const real *>(array.data + offset) + start
    row_gather(layout, array, offset, start, n, buffer, raw)
    return buffer


cdef void row_exclude(
    const Layout *layout, const Array *included, Py_ssize_t offset, Py_ssize_t start, Py_ssize_t n,
    real *x, real value, char *raw,
) noexcept nogil:
    """Replace what a mask leaves out of n classes of a row."""
    cdef const char *taken = included.data + offset + start * included.class_stride
    if not has_neighbours(layout, included):
        bytes_gather(layout, included, included.data + offset, start, n, raw)
        taken = raw
    numbers_exclude(x, taken, n, value)


cdef inline void numbers_exclude(
    real *x, const char *taken, Py_ssize_t n, real value
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        x[i] = x[i] if taken[i] != 0 else value


cdef void row_scatter(
    const Layout *layout, const Array *array, Py_ssize_t offset, Py_ssize_t start, Py_ssize_t n,
    const real *x, char *raw,
) noexcept nogil:
    """Write n classes of a row through the caches, whatever the array's layout."""
    if has_neighbours(layout, array):
        elements_store(array.data + offset + start * array.size, x, n, array.kind)
    else:
        elements_store(raw, x, n, array.kind)
        bytes_scatter(layout, array, array.data + offset, start, n, raw)

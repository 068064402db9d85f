# The other end of a kernel: how results that follow each other reach memory.
#
# They are put together in a buffer, and leave it when the next ones come: read back at once, they would
# wait for all stores before them. Past the caches, whole cache lines are written, also where runs
# meet within one.
#
# Uses panel.pxi (conversion), vector.pxd.

cdef struct Writer:
    int kind
    Py_ssize_t size      # of an element
    bint stream          # past the caches
    real *buffer
    char *at             # where the first number of the buffer goes,
    Py_ssize_t begin     # the first that is ours,
    Py_ssize_t end       # and the end of those that wait
    bint lines           # whether lines of the buffer are lines of memory


cdef inline void writer_open(
    Writer *writer, const Array *array, bint stream, real *buffer
) noexcept nogil:
    writer.kind = array.kind
    writer.size = array.size
    writer.stream = stream
    writer.buffer = buffer
    writer.begin = 0
    writer.end = 0
    writer.lines = False


cdef void writer_advance(Writer *writer, bint flush) noexcept nogil:
    """Write what waits; unless `flush`, only whole lines, and what they leave goes to the front."""
    cdef Py_ssize_t whole = writer.end // LANES * LANES, first = 0
    if writer.lines and whole > 0:
        if writer.begin > 0:
            first = LANES
            elements_store(
                writer.at + writer.begin * writer.size, writer.buffer + writer.begin,
                LANES - writer.begin, writer.kind)
        elements_stream(
            writer.at + first * writer.size, writer.buffer + first, whole - first, writer.kind)
        writer.begin = 0
        writer.end -= whole
        writer.at += whole * writer.size
        vector_store(writer.buffer, vector_load(writer.buffer + whole))
    if (flush or not writer.lines) and writer.begin < writer.end:
        elements_store(
            writer.at + writer.begin * writer.size, writer.buffer + writer.begin,
            writer.end - writer.begin, writer.kind)
        writer.end = writer.begin


cdef inline void writer_close(Writer *writer) noexcept nogil:
    writer_advance(writer, True)
    if writer.stream:
        stores_finish()


cdef inline real *writer_room(Writer *writer, char *to) noexcept nogil:
    """Where to put numbers that go to neighbouring elements from `to` on."""
    cdef Py_ssize_t head
    writer_advance(writer, writer.at + writer.end * writer.size != to)
    if writer.begin < writer.end:
        return writer.buffer + writer.end
    writer.lines = writer.stream
    writer.begin = 0
    if writer.stream:
        head = stream_head(to, writer.size)
        writer.lines = head >= 0
        if head > 0:
            writer.begin = LANES - head
    writer.end = writer.begin
    writer.at = to - writer.begin * writer.size
    return writer.buffer + writer.begin


cdef inline void writer_take(Writer *writer, Py_ssize_t n) noexcept nogil:
    """n numbers were put there."""
    writer.end += n


cdef inline void write_run(Writer *writer, const real *x, Py_ssize_t n, char *to) noexcept nogil:
    """Write n numbers to neighbouring elements."""
    memcpy(writer_room(writer, to), x, n * sizeof(real))
    writer_take(writer, n)

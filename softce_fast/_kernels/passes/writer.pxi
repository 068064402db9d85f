# The other end of a kernel: how results that follow each other reach memory. Past the caches, runs
# that meet in a cache line are put together first, so that each line is written once, as a whole.
#
# Uses panel.pxi (conversion), vector.pxd.

cdef struct Writer:
    int kind
    Py_ssize_t size      # of an element
    bint stream
    char *at             # where the first of the numbers goes that wait for the rest of their line,
    Py_ssize_t pending   # how many they are,
    real[32] line        # and they themselves


cdef inline void writer_open(Writer *writer, const Array *array, bint stream) noexcept nogil:
    writer.kind = array.kind
    writer.size = array.size
    writer.stream = stream
    writer.pending = 0


cdef inline void writer_flush(Writer *writer) noexcept nogil:
    """Write what waits."""
    if writer.pending > 0:
        elements_store(writer.at, writer.line, writer.pending, writer.kind)
        writer.pending = 0


cdef inline void writer_close(Writer *writer) noexcept nogil:
    writer_flush(writer)
    if writer.stream:
        stores_finish()


cdef void write_run(Writer *writer, const real *x, Py_ssize_t n, char *to) noexcept nogil:
    """Write n numbers to elements that follow each other, in native byte order."""
    cdef Py_ssize_t head = 0, whole
    if writer.stream:
        if writer.pending > 0 and writer.at + writer.pending * writer.size != to:
            writer_flush(writer)
        if writer.pending > 0:
            head = min(LANES - writer.pending, n)
            memcpy(writer.line + writer.pending, x, head * sizeof(real))
            writer.pending += head
            if writer.pending < LANES:
                return
            elements_stream(writer.at, writer.line, LANES, writer.kind)
            writer.pending = 0
        else:
            head = stream_head(to, writer.size)
            if 0 < head:
                head = min(head, n)
                elements_store(to, x, head, writer.kind)
    if not writer.stream or head < 0:
        elements_store(to, x, n, writer.kind)
        return
    x += head
    to += head * writer.size
    n -= head
    whole = n // LANES * LANES
    elements_stream(to, x, whole, writer.kind)
    writer.pending = n - whole
    writer.at = to + whole * writer.size
    memcpy(writer.line, x + whole, writer.pending * sizeof(real))

# The other end of a kernel: how results that follow each other reach memory.
#
# They are put together in a buffer, whole cache lines of it, and leave it later: read back at once
# they would wait for all stores before them, those to memory included. Rows of what is computed in
# are written past the caches vector by vector; only lines in which two rows meet are put together.
#
# Uses panel.pxi (conversion), vector.pxd.

cdef enum:
    JOINTS_WAITING = 6   # lines in which rows meet that wait to be written
    JOINTS = 8           # room for these, the next one, and to count by


cdef struct Joints:
    # Lines of memory in which rows meet.
    real[JOINTS][32] line    # each with room for a vector more
    real *at[JOINTS]         # where they go
    Py_ssize_t whole         # how many there were that are whole,
    Py_ssize_t written       # how many of these are written,
    Py_ssize_t pending       # and numbers of the next one


cdef struct Writer:
    int kind
    Py_ssize_t size      # of an element
    bint stream          # past the caches
    real *buffer
    char *at             # where the first number of the buffer goes,
    Py_ssize_t begin     # the first that is ours,
    Py_ssize_t end       # and the end of those that wait
    Py_ssize_t next      # those from here
    Py_ssize_t whole     # to here are whole lines, which may be written
    Joints joints


cdef inline void writer_open(
    Writer *writer, const Array *array, bint stream, real *buffer
) noexcept nogil:
    writer.kind = array.kind
    writer.size = array.size
    writer.stream = stream
    writer.buffer = buffer
    writer.at = NULL
    writer.begin = 0
    writer.end = 0
    writer.next = 0
    writer.whole = 0
    writer.joints.whole = 0
    writer.joints.written = 0
    writer.joints.pending = 0


cdef inline void writer_step(Writer *writer) noexcept nogil:
    """Write the next whole line of the buffer, if there is one."""
    if writer.next < writer.whole:
        if writer.kind == REAL_KIND:
            vector_stream(
                <real *>writer.at + writer.next, vector_load(writer.buffer + writer.next))
        else:
            elements_stream(
                writer.at + writer.next * writer.size, writer.buffer + writer.next, LANES,
                writer.kind)
        writer.next += LANES


cdef void writer_advance(Writer *writer, bint flush) noexcept nogil:
    """Write the lines that wait, and move the rest to the front; if `flush`, write that, too."""
    if writer.next < writer.whole:
        elements_stream(
            writer.at + writer.next * writer.size, writer.buffer + writer.next,
            writer.whole - writer.next, writer.kind)
    if writer.whole > 0:
        vector_store(writer.buffer, vector_load(writer.buffer + writer.whole))
        writer.at += writer.whole * writer.size
        writer.end -= writer.whole
        writer.begin = 0
    writer.next = 0
    writer.whole = 0
    if flush and writer.begin < writer.end:
        elements_store(
            writer.at + writer.begin * writer.size, writer.buffer + writer.begin,
            writer.end - writer.begin, writer.kind)
        writer.end = writer.begin


cdef inline real *writer_room(Writer *writer, char *to) noexcept nogil:
    """Where to put numbers that go to neighbouring elements from `to` on."""
    writer_advance(writer, writer.at + writer.end * writer.size != to)
    if writer.begin < writer.end:
        return writer.buffer + writer.end
    writer.begin = 0
    if writer.stream:
        writer.begin = (LANES - max(<Py_ssize_t>0, stream_head(to, writer.size))) % LANES
    writer.end = writer.begin
    writer.at = to - writer.begin * writer.size
    return writer.buffer + writer.begin


cdef inline void writer_take(Writer *writer, Py_ssize_t n) noexcept nogil:
    """n numbers were put there."""
    writer.end += n
    if not writer.stream:
        elements_store(writer.at, writer.buffer, n, writer.kind)
        writer.end = 0
        return
    writer.whole = writer.end // LANES * LANES
    if writer.begin > 0 and writer.whole > 0:
        # The start of the first line belongs to others.
        elements_store(
            writer.at + writer.begin * writer.size, writer.buffer + writer.begin,
            LANES - writer.begin, writer.kind)
        writer.next = LANES


cdef inline void write_run(Writer *writer, const real *x, Py_ssize_t n, char *to) noexcept nogil:
    """Write n numbers to neighbouring elements."""
    memcpy(writer_room(writer, to), x, n * sizeof(real))
    writer_take(writer, n)


# ---- rows that are written vector by vector ------------------------------------------------------


cdef inline void joints_write(Joints *joints, Py_ssize_t waiting) noexcept nogil:
    """Write whole lines until so many wait."""
    while joints.whole - joints.written > waiting:
        vector_stream(
            joints.at[joints.written % JOINTS],
            vector_load(joints.line[joints.written % JOINTS]))
        joints.written += 1


cdef inline void joints_close(Joints *joints) noexcept nogil:
    """Write all there is."""
    joints_write(joints, 0)
    if joints.pending > 0:
        memcpy(
            joints.at[joints.whole % JOINTS], joints.line[joints.whole % JOINTS],
            joints.pending * sizeof(real))
        joints.pending = 0


cdef inline Py_ssize_t joint_head(Joints *joints, real *to) noexcept nogil:
    """How many numbers of a row that goes to `to` are in a line with what was before them."""
    if joints.pending > 0 and joints.at[joints.whole % JOINTS] + joints.pending != to:
        joints_close(joints)
    if joints.pending > 0:
        return LANES - joints.pending
    return stream_head(to, sizeof(real))


cdef inline void joint_first(
    Joints *joints, real *to, vector first, Py_ssize_t count
) noexcept nogil:
    """Write the first numbers of a row, `count` of them, less than a line."""
    if joints.pending == 0:
        vector_store_first(to, first, count)
        return
    vector_store(joints.line[joints.whole % JOINTS] + joints.pending, first)
    joints.pending += count
    if joints.pending == LANES:
        joints.pending = 0
        joints.whole += 1
        joints_write(joints, JOINTS_WAITING)


cdef inline void joint_last(
    Joints *joints, real *to, vector last, Py_ssize_t count
) noexcept nogil:
    """Keep the last numbers of a row, which begin a line."""
    vector_store(joints.line[joints.whole % JOINTS], last)
    joints.at[joints.whole % JOINTS] = to
    joints.pending = count


cdef inline void writer_close(Writer *writer) noexcept nogil:
    writer_advance(writer, True)
    joints_close(&writer.joints)
    if writer.stream:
        stores_finish()

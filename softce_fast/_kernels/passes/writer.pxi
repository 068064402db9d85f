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
    int kind                 # of the elements that they become,
    Py_ssize_t size          # and bytes of one
    real[JOINTS][32] line    # each with room for a vector more
    char *at[JOINTS]         # where they go
    Py_ssize_t whole         # how many there were that are whole,
    Py_ssize_t written       # how many of these are written,
    Py_ssize_t pending       # and numbers of the next one


cdef struct Lines:
    # Numbers that are put together.
    int kind             # of the elements that they become,
    Py_ssize_t size      # and bytes of one
    bint stream          # past the caches
    real *buffer
    char *at             # where the first number of the buffer goes
    Py_ssize_t next      # those from here
    Py_ssize_t whole     # to here are whole lines, which may be written


cdef struct Writer:
    Lines lines
    Py_ssize_t begin     # the first number of the buffer that is ours,
    Py_ssize_t end       # and the end of those that wait
    Joints joints


cdef inline void writer_open(
    Writer *writer, const Array *array, bint stream, real *buffer
) noexcept nogil:
    writer.lines.kind = array.kind
    writer.lines.size = array.size
    writer.lines.stream = stream
    writer.lines.buffer = buffer
    writer.lines.at = NULL
    writer.begin = 0
    writer.end = 0
    writer.lines.next = 0
    writer.lines.whole = 0
    writer.joints.kind = array.kind
    writer.joints.size = array.size
    writer.joints.whole = 0
    writer.joints.written = 0
    writer.joints.pending = 0


cdef inline void line_step(Lines *lines) noexcept nogil:
    """Write the next whole line, if there is one and it needs no conversion."""
    if lines.next < lines.whole and lines.kind == REAL_KIND:
        if lines.stream:
            vector_stream(<real *>lines.at + lines.next, vector_load(lines.buffer + lines.next))
        else:
            vector_store(<real *>lines.at + lines.next, vector_load(lines.buffer + lines.next))
        lines.next += LANES


cdef inline void lines_write(
    const Lines *lines, Py_ssize_t begin, Py_ssize_t end, bint stream
) noexcept nogil:
    cdef char *to = lines.at + begin * lines.size
    if stream:
        elements_stream(to, lines.buffer + begin, end - begin, lines.kind)
    else:
        elements_store(to, lines.buffer + begin, end - begin, lines.kind)


cdef void writer_advance(Writer *writer, bint flush) noexcept nogil:
    """Write the lines that wait, and move the rest to the front; if `flush`, write that, too."""
    cdef Lines *lines = &writer.lines
    if lines.next < lines.whole:
        lines_write(lines, lines.next, lines.whole, lines.stream)
    if lines.whole > 0:
        vector_store(lines.buffer, vector_load(lines.buffer + lines.whole))
        lines.at += lines.whole * lines.size
        writer.end -= lines.whole
        writer.begin = 0
    lines.next = 0
    lines.whole = 0
    if flush and writer.begin < writer.end:
        lines_write(lines, writer.begin, writer.end, False)
        writer.end = writer.begin


cdef inline real *writer_room(Writer *writer, char *to) noexcept nogil:
    """Where to put numbers that go to neighbouring elements from `to` on."""
    cdef Lines *lines = &writer.lines
    writer_advance(writer, lines.at + writer.end * lines.size != to)
    if writer.begin < writer.end:
        return lines.buffer + writer.end
    writer.begin = (LANES - max(<Py_ssize_t>0, stream_head(to, lines.size))) % LANES
    writer.end = writer.begin
    lines.at = to - writer.begin * lines.size
    return lines.buffer + writer.begin


cdef inline void writer_take(Writer *writer, Py_ssize_t n) noexcept nogil:
    """n numbers were put there."""
    cdef Lines *lines = &writer.lines
    writer.end += n
    lines.whole = writer.end // LANES * LANES
    if writer.begin > 0 and lines.whole > 0:
        # The start of the first line belongs to others.
        lines_write(lines, writer.begin, LANES, False)
        lines.next = LANES


cdef inline void write_run(Writer *writer, const real *x, Py_ssize_t n, char *to) noexcept nogil:
    """Write n numbers to neighbouring elements."""
    memcpy(writer_room(writer, to), x, n * sizeof(real))
    writer_take(writer, n)


# ---- rows that are written vector by vector ------------------------------------------------------


cdef inline void joints_write(Joints *joints, Py_ssize_t waiting) noexcept nogil:
    """Write whole lines until so many wait."""
    while joints.whole - joints.written > waiting:
        kind_vector_stream(
            joints.at[joints.written % JOINTS],
            vector_load(joints.line[joints.written % JOINTS]), joints.kind)
        joints.written += 1


cdef inline void joints_close(Joints *joints) noexcept nogil:
    """Write all there is."""
    joints_write(joints, 0)
    if joints.pending > 0:
        kind_vector_store_first(
            joints.at[joints.whole % JOINTS],
            vector_load(joints.line[joints.whole % JOINTS]), joints.pending, joints.kind)
        joints.pending = 0


cdef inline Py_ssize_t joint_head(Joints *joints, char *to) noexcept nogil:
    """How many numbers of a row that goes to `to` are in a line with what was before them."""
    if (
        joints.pending > 0
        and joints.at[joints.whole % JOINTS] + joints.pending * joints.size != to
    ):
        joints_close(joints)
    if joints.pending > 0:
        return LANES - joints.pending
    return stream_head(to, joints.size)


cdef inline void joint_first(
    Joints *joints, char *to, vector first, Py_ssize_t count
) noexcept nogil:
    """Write the first numbers of a row, `count` of them, less than a line."""
    if joints.pending == 0:
        kind_vector_store_first(to, first, count, joints.kind)
        return
    vector_store(joints.line[joints.whole % JOINTS] + joints.pending, first)
    joints.pending += count
    if joints.pending == LANES:
        joints.pending = 0
        joints.whole += 1
        joints_write(joints, JOINTS_WAITING)


cdef inline void joint_last(
    Joints *joints, char *to, vector last, Py_ssize_t count
) noexcept nogil:
    """Keep the last numbers of a row, which begin a line."""
    vector_store(joints.line[joints.whole % JOINTS], last)
    joints.at[joints.whole % JOINTS] = to
    joints.pending = count


cdef inline void writer_close(Writer *writer) noexcept nogil:
    writer_advance(writer, True)
    joints_close(&writer.joints)
    if writer.lines.stream:
        stores_finish()

# What the kernels see of vector.h: a vector of numbers, opaque, and the words to work on it.

cdef extern from "vector.h" nogil:
    ctypedef struct vector:
        pass
    ctypedef struct mask:
        pass
    ctypedef unsigned int environment

    enum:
        LANES            # numbers in a vector: 16 of 4 bytes or 8 of 8
        QUARTER_LANES    # numbers in 16 bytes
        QUARTERS
        QUARTER_CLASSES  # elements in 16 bytes, as they are stored
        WORD_CLASSES     # and in as many bytes as a number has
        STORAGE_IS_REAL
        DIGITS_TO_SPARE  # numbers are stored with fewer digits than they are computed with
        EXPONENT_BIAS
        STEPS            # of exponential() in a power of two
        HAS_FMA          # a*b + c rounds once
    const real NEGATIVE_INFINITY
    const real LN2       # LN2 + LN2_REST is ln(2)
    const real LN2_REST
    const real SMALLEST_NORMAL
    const real TWO_TO_MINUS_HEADROOM
    const real TWO_TO_64
    const real OUTPUT_SCALE
    const real ROUNDER   # adding it rounds to a whole number
    const real POWER_ROUNDER
    const storage STORAGE_NEGATIVE_INFINITY

    vector vector_set(real x)
    vector vector_add(vector a, vector b)
    vector vector_subtract(vector a, vector b)
    vector vector_multiply(vector a, vector b)
    vector vector_divide(vector a, vector b)
    vector vector_fma(vector a, vector b, vector c)       # a*b + c
    vector vector_fnma(vector a, vector b, vector c)      # c - a*b
    vector vector_maximum(vector a, vector b)             # b where either is NaN
    vector vector_absolute(vector a)
    mask vector_greater(vector a, vector b)
    mask vector_equal(vector a, vector b)
    unsigned int vector_mask_bits(mask m)
    vector vector_select(mask m, vector a, vector b)      # m ? a : b
    vector vector_power_of_two(vector n)                  # 2**((n - POWER_ROUNDER) / STEPS)
    vector vector_exponent(vector a)
    vector vector_fraction(vector a)
    real vector_reduce_few(vector v, real *rest)
    real vector_reduce_compensated(vector high, vector low, real *rest)
    real vector_reduce_maximum(vector a)

    vector vector_get(const real *p)
    void vector_put(real *p, vector v)
    vector vector_load(const storage *p)
    vector vector_load_first(const storage *p, Py_ssize_t count)
    void vector_store(storage *p, vector v)
    void vector_store_first(storage *p, vector v, Py_ssize_t count)
    void vector_stream(storage *p, vector v)
    void storage_copy(storage *p, const storage *source)      # LANES elements
    void storage_stream(storage *p, const storage *source)
    void words_load(vector *words, const char *rows, Py_ssize_t row_stride)
    void words_load_first(vector *words, const char *rows, Py_ssize_t row_stride, Py_ssize_t count)
    void words_store(storage *rows, Py_ssize_t row_stride, vector *words)
    void word_put(real *p, vector word, Py_ssize_t count)
    vector word_from(const vector *columns)
    const Py_ssize_t MOST_COLUMNS
    void columns_from_rows(vector *columns, const vector *rows, Py_ssize_t n)
    void rows_from_columns(vector *rows, const vector *columns, Py_ssize_t n)
    void vectors_halve(const vector *pair, Py_ssize_t width, vector *even, vector *odd)
    real storage_read(const char *p)
    void storage_write(char *p, real x)

    environment environment_enter()
    void environment_leave(environment before)
    Py_ssize_t stream_head(const storage *p)
    void stores_finish()
    void prefetch(const char *p)
    void prefetch_near(const char *p)
    bint labels_are_special(const int64_t *labels, int64_t ignored, int64_t classes)


cdef inline vector vector_counting() noexcept nogil:
    """Lane k holds k."""
    cdef real[16] lane
    cdef Py_ssize_t k
    for k in range(LANES):
        lane[k] = <real>k
    return vector_get(lane)

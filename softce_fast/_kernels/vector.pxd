# What the kernels see of vector.h: a vector of numbers, opaque, and the words to work on it.
from libc.stdint cimport int64_t

cdef extern from "vector.h" nogil:
    ctypedef double real         # float in a module that computes in float32
    ctypedef struct vector:
        pass
    ctypedef struct mask:
        pass
    ctypedef unsigned int environment

    enum:
        LANES_SQUARED
        LANES            # numbers in a vector: 16 of 4 bytes or 8 of 8
        QUARTER_LANES    # numbers in 16 bytes
        EXPONENT_BIAS
        STEPS            # of exponential() in a power of two
        HAS_FMA          # a*b + c rounds once
        MOST_COLUMNS
    const real NEGATIVE_INFINITY
    const real LN2       # LN2 + LN2_REST is ln(2)
    const real LN2_REST
    const real SMALLEST_NORMAL
    const real LARGEST
    const real ROUNDER   # adding it rounds to a whole number
    const real POWER_ROUNDER

    vector vector_set(real x)
    vector vector_alike(vector v)
    vector vector_add(vector a, vector b)
    vector vector_subtract(vector a, vector b)
    vector vector_multiply(vector a, vector b)
    vector vector_divide(vector a, vector b)
    vector vector_fma(vector a, vector b, vector c)       # a*b + c
    vector vector_fnma(vector a, vector b, vector c)      # c - a*b
    vector vector_maximum(vector a, vector b)             # b where either is NaN
    vector vector_absolute(vector a)
    vector vector_next(vector a)                          # above a, which is normal or -inf
    mask vector_greater(vector a, vector b)
    mask vector_equal(vector a, vector b)
    mask mask_either(mask a, mask b)
    unsigned int vector_mask_bits(mask m)
    bint any_lane(mask m)
    vector vector_select(mask m, vector a, vector b)      # m ? a : b
    vector vector_power_of_two(vector n)                  # 2**((n - POWER_ROUNDER) / STEPS)
    vector vector_exponent(vector a)
    vector vector_fraction(vector a)
    real vector_reduce_few(vector v, real *rest)
    real vector_reduce_compensated(vector high, vector low, real *rest)
    real vector_reduce_maximum(vector a)

    vector vector_load(const real *p)
    vector vector_load_first(const real *p, Py_ssize_t count)
    void vector_store(real *p, vector v)
    void vector_stream(real *p, vector v)
    void vector_store_first(real *p, vector v, Py_ssize_t count)
    void columns_load(vector *columns, const char *rows, Py_ssize_t row_stride)
    void columns_load_first(
        vector *columns, const char *rows, Py_ssize_t row_stride, Py_ssize_t count)
    void columns_store(char *rows, Py_ssize_t row_stride, vector *columns)
    void columns_from_rows(vector *columns, const vector *rows, Py_ssize_t n)
    void rows_from_columns(vector *rows, const vector *columns, Py_ssize_t n)
    void vectors_halve(const vector *pair, Py_ssize_t width, vector *even, vector *odd)

    ctypedef struct octet:    # eight doubles
        pass
    octet octet_set(double x)
    octet octet_load(const double *p)
    octet octet_from_reals(const real *p)
    void octet_store(double *p, octet v)
    octet octet_coefficient(octet a, octet b)            # a*b, 0 only where one of them is
    octet octet_product_or_zero(octet a, octet b)        # 0 where a is, whatever b is
    void octet_add(octet *sum, octet *rest, octet x)     # and what that loses, to `rest`
    void octet_merge(octet *sum, octet *rest, octet x, octet x_rest)
    double octet_reduce(octet sum, octet rest, double *lost)

    environment environment_enter()    # subnormal numbers are 0
    environment environment_plain()
    void environment_leave(environment before)
    Py_ssize_t stream_head(const void *p, Py_ssize_t size)
    void stores_finish()
    void prefetch(const char *p)
    void prefetch_near(const char *p)
    bint labels_take(int64_t *to, const char *start, int64_t ignored, int64_t classes)


cdef inline vector vector_counting() noexcept nogil:
    """Lane k holds k."""
    cdef real[16] lane
    cdef Py_ssize_t k
    for k in range(LANES):
        lane[k] = <real>k
    return vector_load(lane)

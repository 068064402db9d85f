# Soft caps: logits x become limit * tanh(x / limit), and a gradient by these one by x.
#
# Most are far smaller than the limit, where tanh is a polynomial; what is larger is rare and goes
# through functions of its own, so that the loops have their registers to themselves.
#
# Uses numbers.pxd, vector.pxd.

cdef struct Softcap:
    # Constants of limit * tanh(x / limit).
    Scale scale            # of exp(2 * x / limit)
    real limit             # the first digits of it,
    real limit_rest        # and what they miss;
    real inverse           # the same of 1 / limit
    real inverse_rest
    real near              # up to here tanh is a polynomial,
    real near_slope        # and so is its slope, which loses more by it


cdef inline Softcap softcap_for(double limit) noexcept nogil:
    cdef Softcap cap
    cdef double inverse = min(1 / limit, <double>LARGEST)
    cap.scale = scale_for(limit / 2, False)
    cap.scale.shifted = False
    cap.limit = <real>limit
    cap.limit_rest = <real>(limit - <double>cap.limit)
    cap.inverse = <real>inverse
    cap.inverse_rest = <real>(inverse - <double>cap.inverse)
    if sizeof(real) == 8 and 1e-290 < limit < 1e290:
        cap.inverse_rest = <real>(
            ((1 - inverse * limit) - product_error(inverse, limit)) / limit)
    cap.near = <real>(0.6 * limit)
    cap.near_slope = <real>(0.5 * limit)
    return cap


cdef inline vector tanh_missing(vector x, const Softcap *cap, vector *square) noexcept nogil:
    """What tanh(u) / u misses of 1, for u = x / limit up to 0.6; and u**2.

    Interpolated at the zeros of a Chebyshev polynomial, within 2**-28 or 2**-57 of itself.
    """
    cdef vector u = vector_fma(
        x, vector_set(cap.inverse), vector_multiply(x, vector_set(cap.inverse_rest)))
    cdef vector s = vector_multiply(u, u)
    cdef vector p
    square[0] = s
    if sizeof(real) == 4:
        p = vector_fma(
            s, vector_set(-0.002370765640497788), vector_set(0.008410070801530736))
        p = vector_fma(p, s, vector_set(-0.02178832199710853))
        p = vector_fma(p, s, vector_set(0.05396155178134269))
        p = vector_fma(p, s, vector_set(-0.1333331286686180))
        return vector_multiply(s, vector_fma(p, s, vector_set(0.3333333323120793)))
    p = vector_fma(
        s, vector_set(-0.000006934046420988953), vector_set(0.00003208661403793599))
    p = vector_fma(p, s, vector_set(-0.00009332432233847447))
    p = vector_fma(p, s, vector_set(0.0002379520138392499))
    p = vector_fma(p, s, vector_set(-0.0005897680994688268))
    p = vector_fma(p, s, vector_set(0.001455795885573463))
    p = vector_fma(p, s, vector_set(-0.003592124250008692))
    p = vector_fma(p, s, vector_set(0.008863235292803289))
    p = vector_fma(p, s, vector_set(-0.02186948852736811))
    p = vector_fma(p, s, vector_set(0.05396825396808531))
    p = vector_fma(p, s, vector_set(-0.1333333333333321))
    return vector_multiply(s, vector_fma(p, s, vector_set(0.3333333333333333)))


cdef inline vector softcapped(vector x, const Softcap *cap) noexcept nogil:
    """limit * tanh(x / limit); infinity and NaN stay."""
    cdef mask far = vector_greater(vector_absolute(x), vector_set(cap.near))
    cdef vector square
    cdef vector near = vector_fnma(x, tanh_missing(x, cap, &square), x)
    if any_lane(far):
        return vector_select(far, softcapped_far(x, cap), near)
    return near


cdef vector softcapped_far(vector x, const Softcap *cap) noexcept nogil:
    """What tanh misses of 1 is 2 * v / (1 + v) with v = exp(-2 * |x| / limit)."""
    cdef vector one = vector_set(1.0)
    cdef vector zero = vector_set(0.0)
    cdef vector size = vector_absolute(x)
    cdef vector limit = vector_set(cap.limit)
    cdef DoubleDouble v = exponential_pair(
        vector_subtract(zero, size), reference_at(0), &cap.scale)
    cdef DoubleDouble missing = double_double_multiply(
        double_double_quotient(
            double_double_merge(v, v), double_double_merge(double_double_from(one), v)),
        limit)
    cdef vector result = vector_subtract(limit, missing.high)
    result = vector_add(result, vector_add(vector_set(cap.limit_rest), vector_subtract(
        vector_subtract(vector_subtract(limit, result), missing.high), missing.low)))
    return vector_select(
        vector_equal(size, vector_set(-NEGATIVE_INFINITY)), x,
        vector_select(vector_greater(zero, x), vector_subtract(zero, result), result))


cdef inline vector softcap_gradient(vector gradient, vector x, const Softcap *cap) noexcept nogil:
    """A gradient by softcapped(x), times 1 - tanh(x / limit)**2: that by x; 0 stays, beside NaN."""
    cdef vector zero = vector_set(0.0)
    cdef mask far = vector_greater(vector_absolute(x), vector_set(cap.near_slope))
    cdef vector one = vector_set(1.0)
    cdef vector square, share, near
    share = vector_subtract(one, tanh_missing(x, cap, &square))
    near = vector_multiply(gradient, vector_fnma(vector_multiply(square, share), share, one))
    if any_lane(far):
        near = vector_select(far, softcap_gradient_far(gradient, x, cap), near)
    return vector_select(vector_equal(gradient, zero), zero, near)


cdef vector softcap_gradient_far(
    vector gradient, vector x, const Softcap *cap
) noexcept nogil:
    """It is multiplied by 4 * v / (1 + v)**2, which has all digits."""
    cdef vector zero = vector_set(0.0)
    cdef vector one = vector_set(1.0)
    cdef vector down = vector_set(TWO_TO_MINUS_HEADROOM)
    cdef mask large = vector_greater(vector_absolute(gradient), one)
    # Times 2**HEADROOM: a small slope of a large gradient counts.
    cdef DoubleDouble v = exponential_pair(
        vector_subtract(zero, vector_absolute(x)), reference_at(-HEADROOM), &cap.scale)
    cdef DoubleDouble below = double_double_add(
        double_double_from(one), vector_multiply(v.high, down))
    cdef DoubleDouble slope = double_double_product(
        v, double_double_quotient(
            double_double_from(vector_set(4.0)), double_double_product(below, below)))
    gradient = vector_select(large, vector_multiply(gradient, down), gradient)
    gradient = vector_fma(gradient, slope.high, vector_multiply(gradient, slope.low))
    return vector_select(large, gradient, vector_multiply(gradient, down))


cdef void numbers_cap(real *to, const real *x, Py_ssize_t n, const Softcap *cap_) noexcept nogil:
    """Cap n logits; it may be where they are."""
    cdef Softcap cap = cap_[0]    # which no store in the loop can change
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        vector_store(to + i, softcapped(vector_load(x + i), &cap))
        i += LANES
    if i < n:
        vector_store_first(to + i, softcapped(vector_load_first(x + i, n - i), &cap), n - i)


cdef void numbers_slope(
    real *gradient, const real *x, Py_ssize_t n, const Softcap *cap_
) noexcept nogil:
    """Turn n gradients by capped logits into those by the logits x."""
    cdef Softcap cap = cap_[0]
    cdef Py_ssize_t i = 0
    while i + LANES <= n:
        vector_store(gradient + i, softcap_gradient(
            vector_load(gradient + i), vector_load(x + i), &cap))
        i += LANES
    if i < n:
        vector_store_first(gradient + i, softcap_gradient(
            vector_load_first(gradient + i, n - i), vector_load_first(x + i, n - i), &cap), n - i)

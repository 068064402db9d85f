# exp and log on vectors, double-double numbers, and the reference point of a row.
#
# Subtracting the maximum of a row and rounding the difference is where a softmax usually loses its
# digits. Here each exponential is split, exp(x/T) = exp(r/T) * 2**(n/STEPS) with
# |r/T| <= ln(2)/(2*STEPS), and a power of two common to the row, 2**exponent, is taken out
# exactly. Only where |maximum| is so large that subtracting it is exact for every element that
# matters is it subtracted: the row's `shift`.
#
# The coefficients come from tools/coefficients.py. Uses vector.pxd,
# problem.pxd (exponent_of()).
from libc.math cimport fma
from libc.stdint cimport int64_t

from .problem cimport Sum, exponent_of, sum_error, sum_extend, two_to
from .vector cimport *

cdef extern from *:
    """
    /* The exponential of a row's maximum is 2**HEADROOM, within a factor of sqrt(2). Its square,
       times the number of classes, is in range. */
    #define DOUBLE_HEADROOM 400
    #define HEADROOM (sizeof(real) == 4 ? 48 : DOUBLE_HEADROOM)
    #define TWO_TO_HEADROOM ((real)(sizeof(real) == 4 ? 0x1p48 : 0x1p400))
    #define TWO_TO_MINUS_HEADROOM (1 / TWO_TO_HEADROOM)
    #define TWO_TO_64 ((real)0x1p64)
    /* It splits a number into halves: of a smaller one than the other, these may be subnormal. */
    #define SPLITTER ((real)(sizeof(real) == 4 ? 4097 : 134217729))
    #define LEAST_SPLIT (SMALLEST_NORMAL * SPLITTER * SPLITTER)
    /* log1p of a smaller ratio is that ratio. */
    #define TINY_RATIO ((real)(sizeof(real) == 4 ? 0x1p-26 : 0x1p-55))
    """
    const int DOUBLE_HEADROOM
    const int HEADROOM
    const real TWO_TO_HEADROOM
    const real TWO_TO_MINUS_HEADROOM
    const real TWO_TO_64
    const real SPLITTER
    const real LEAST_SPLIT
    const real TINY_RATIO


cdef struct Scale:
    # Constants of exp(x / temperature), in the units of x.
    real inverse         # 1 / temperature
    real log2e           # log2(e) * STEPS / temperature
    real ln2_high        # ln(2) / STEPS * temperature in pieces, so that n * ln2_high is exact or
    real ln2_middle      # fused; the middle one is used without fused multiply-adds only
    real ln2_low
    real shift_limit     # largest |maximum| served without a shift: an element in exp's range of a
    #                      larger one is within a factor of 2 of it, the subtraction is exact
    real headroom        # see reference_for()
    bint tempered        # temperature != 1
    bint shifted         # references may have a shift
    bint few_digits      # results are stored with fewer digits than they are computed with


cdef struct Reference:
    # The point that a row's exponentials are relative to: exp(shift / T) * 2**exponent.
    vector shift
    vector exponent


cdef struct DoubleDouble:
    # A number in two pieces: high, and low, what high lost by rounding.
    vector high
    vector low


cdef inline DoubleDouble double_double_from(vector high) noexcept nogil:
    cdef DoubleDouble pair
    pair.high = high
    pair.low = vector_set(0.0)
    return pair


cdef inline DoubleDouble double_double_merge(DoubleDouble a, DoubleDouble b) noexcept nogil:
    """a + b by Knuth's two-sum, which is exact in the high parts."""
    cdef DoubleDouble result
    cdef vector kept
    result.high = vector_add(a.high, b.high)
    kept = vector_subtract(result.high, a.high)
    result.low = vector_add(vector_add(a.low, b.low), vector_add(
        vector_subtract(a.high, vector_subtract(result.high, kept)),
        vector_subtract(b.high, kept)))
    return result


cdef inline DoubleDouble double_double_add(DoubleDouble a, vector b) noexcept nogil:
    """The same of a b without a low part: a compiler would not leave out adding its 0."""
    cdef DoubleDouble result
    cdef vector kept
    result.high = vector_add(a.high, b)
    kept = vector_subtract(result.high, a.high)
    result.low = vector_add(a.low, vector_add(
        vector_subtract(a.high, vector_subtract(result.high, kept)), vector_subtract(b, kept)))
    return result


cdef inline DoubleDouble sum_merge(
    DoubleDouble a, DoubleDouble b, bint few_digits
) noexcept nogil:
    """a + b, with what it loses unless few digits will do."""
    if few_digits:
        return double_double_from(vector_add(a.high, b.high))
    return double_double_merge(a, b)


cdef inline DoubleDouble sum_add(DoubleDouble a, vector b, bint few_digits) noexcept nogil:
    if few_digits:
        return double_double_from(vector_add(a.high, b))
    return double_double_add(a, b)


cdef inline vector double_double_rounded(DoubleDouble a) noexcept nogil:
    """high + low, or high alone where it is infinite: low is then NaN."""
    cdef vector zero = vector_set(0.0)
    cdef vector difference = vector_subtract(a.high, a.high)
    return vector_add(a.high, vector_select(vector_equal(difference, zero), a.low, zero))


cdef inline vector multiply_error(vector a, vector b, vector product) noexcept nogil:
    """a*b - product, where product is a*b rounded; 0 where a or b is tiny and this is not known."""
    cdef vector a_high, a_low, b_high, b_low, factor, least, error
    if HAS_FMA:
        return vector_fma(a, b, vector_subtract(vector_set(0.0), product))
    factor = vector_set(SPLITTER)
    a_high = vector_multiply(factor, a)
    a_high = vector_subtract(a_high, vector_subtract(a_high, a))
    a_low = vector_subtract(a, a_high)
    b_high = vector_multiply(factor, b)
    b_high = vector_subtract(b_high, vector_subtract(b_high, b))
    b_low = vector_subtract(b, b_high)
    error = vector_fma(a_low, b_low, vector_add(vector_add(
        vector_subtract(vector_multiply(a_high, b_high), product),
        vector_multiply(a_high, b_low)), vector_multiply(a_low, b_high)))
    least = vector_select(
        vector_greater(vector_absolute(a), vector_set(LEAST_SPLIT)), vector_set(LEAST_SPLIT),
        vector_set(-NEGATIVE_INFINITY))
    return vector_select(vector_greater(vector_absolute(b), least), error, vector_set(0.0))


cdef inline DoubleDouble double_double_multiply(DoubleDouble a, vector b) noexcept nogil:
    cdef DoubleDouble result = double_double_from(vector_multiply(a.high, b))
    result.low = vector_fma(a.low, b, multiply_error(a.high, b, result.high))
    return result


cdef inline vector product_rounded(DoubleDouble a, vector b) noexcept nogil:
    """a * b, rounded once: also where multiply-adds are not fused, unless a or b is tiny."""
    if HAS_FMA:
        return vector_fma(b, a.high, vector_multiply(b, a.low))
    return double_double_rounded(double_double_multiply(a, b))


cdef inline DoubleDouble double_double_product(DoubleDouble a, DoubleDouble b) noexcept nogil:
    cdef DoubleDouble result = double_double_multiply(a, b.high)
    result.low = vector_fma(a.high, b.low, result.low)
    return result


cdef inline DoubleDouble double_double_quotient(DoubleDouble a, DoubleDouble b) noexcept nogil:
    """a / b: a quotient, and what it misses."""
    cdef vector inverse = vector_divide(vector_set(1.0), b.high)
    cdef DoubleDouble result = double_double_from(vector_multiply(a.high, inverse))
    cdef vector product, rest
    product = vector_multiply(result.high, b.high)
    rest = vector_subtract(vector_subtract(a.high, product), multiply_error(
        result.high, b.high, product))
    rest = vector_add(vector_fnma(result.high, b.low, rest), a.low)
    result.low = vector_multiply(rest, inverse)
    return result


cdef inline DoubleDouble sum_quotient(
    DoubleDouble a, DoubleDouble b, bint few_digits
) noexcept nogil:
    """a / b, with what it misses unless few digits will do."""
    if few_digits:
        return double_double_from(vector_divide(a.high, b.high))
    return double_double_quotient(a, b)


cdef inline DoubleDouble double_double_select(
    mask m, DoubleDouble a, DoubleDouble b
) noexcept nogil:
    cdef DoubleDouble result
    result.high = vector_select(m, a.high, b.high)
    result.low = vector_select(m, a.low, b.low)
    return result


cdef inline Scale scale_for(double temperature, bint few_digits) noexcept nogil:
    cdef Scale scale
    # ln(2) in 106 bits, so that temperature * ln(2) can be cut anew.
    cdef double step = 0.693147180559945286 / STEPS    # exact: STEPS is a power of two
    cdef double ln2 = step * temperature
    cdef double ln2_rest = (
        product_error(step, temperature) + 2.31904681384629956e-17 / STEPS * temperature)
    cdef double high, low
    scale.few_digits = few_digits
    scale.headroom = HEADROOM
    scale.tempered = temperature != 1.0
    scale.shifted = True
    scale.inverse = <real>(1.0 / temperature)
    scale.log2e = <real>(1.44269504088896341 * STEPS / temperature)
    if few_digits:
        # What ln2_low would have been is not worth an operation for small numbers only.
        scale.shift_limit = <real>(32.0 * temperature)
    else:
        scale.shift_limit = <real>((256.0 if sizeof(real) == 4 else 2048.0) * temperature)
    if HAS_FMA:
        high = <double>(<real>ln2)
        scale.ln2_middle = 0
        scale.ln2_high = <real>high
        scale.ln2_low = <real>((ln2 - high) + ln2_rest)
    else:
        high = leading_bits(ln2, 14 if sizeof(real) == 4 else 40)
        low = leading_bits(ln2 - high, 14 if sizeof(real) == 4 else 40)
        scale.ln2_high = <real>high
        scale.ln2_middle = <real>low
        scale.ln2_low = <real>(((ln2 - high) - low) + ln2_rest)
    return scale


cdef enum Arithmetic:
    # What loops over exponentials are compiled for:
    GENERAL       # anything
    PLAIN         # temperature 1, references without a shift, all digits
    FEW_DIGITS    # the same, for results that are stored with fewer digits


cdef inline Arithmetic arithmetic_for(const Scale *scale, bint shifted) noexcept nogil:
    if scale.tempered or shifted:
        return GENERAL
    return FEW_DIGITS if scale.few_digits else PLAIN


cdef inline Scale scale_with(const Scale *scale, Arithmetic arithmetic) noexcept nogil:
    """A copy for a loop; unless GENERAL, its flags are constants that the compiler sees."""
    cdef Scale local = scale[0]
    if arithmetic != GENERAL:
        local.tempered = False
        local.shifted = False
        local.few_digits = arithmetic == FEW_DIGITS
    return local


cdef inline double leading_bits(double x, int count) noexcept nogil:
    """Return x rounded to its first `count` bits."""
    cdef double factor = <double>((<long long>1 << (53 - count)) + 1)
    cdef double product = factor * x
    return product - (product - x)


cdef inline double product_error(double a, double b) noexcept nogil:
    """Return a*b minus its rounded value (Dekker, where multiply-adds are not fused)."""
    if HAS_FMA:
        return fma(a, b, -(a * b))
    # Of the same size, so that the halves of either are in range.
    cdef int64_t shift = (exponent_of(b) - exponent_of(a)) >> 1
    cdef double product = a * b
    a *= two_to(shift)
    b *= two_to(-shift)
    cdef double a_high = leading_bits(a, 26)
    cdef double b_high = leading_bits(b, 26)
    cdef double a_low = a - a_high
    cdef double b_low = b - b_high
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


cdef inline double number_or_nothing(double x) noexcept nogil:
    """What an infinite product or quotient misses is no number, or an infinite one."""
    return x if x - x == 0 else 0


cdef inline Sum sum_product(Sum a, Sum b) noexcept nogil:
    cdef Sum product
    product.total = a.total * b.total
    product.rest = number_or_nothing(
        product_error(a.total, b.total) + (a.total * b.rest + a.rest * b.total))
    return product


cdef inline Sum quotient_and_sum(double a, double divisor, double b) noexcept nogil:
    """a / divisor + b; of float32 numbers, float64 has all digits that are of use."""
    cdef double quotient = a / divisor
    cdef Sum result = Sum(quotient + b, 0)
    if sizeof(real) == 8:
        result.rest = number_or_nothing(sum_error(quotient, b, result.total) + (1 / divisor) * (
            (a - quotient * divisor) - product_error(quotient, divisor)))
    return result


cdef struct Split:
    # exp(x/T) = (1 + r*p) * power, relative to the reference
    vector power
    vector r
    vector p


cdef inline Split exponential_split(
    vector x, Reference reference, const Scale *scale
) noexcept nogil:
    cdef Split s
    # Rounds to a whole number n, and leaves n less that of the reference in the low bits.
    cdef vector rounder = vector_fnma(
        reference.exponent, vector_set(STEPS), vector_set(POWER_ROUNDER))
    cdef vector z = x, n, r, p
    if scale.shifted:
        z = vector_subtract(z, reference.shift)
    z = vector_maximum(exponential_floor(reference, scale), z)
    n = vector_fma(z, vector_set(scale.log2e), rounder)
    s.power = vector_power_of_two(n)
    r = split(z, vector_subtract(n, rounder), scale, scale.few_digits)
    if scale.tempered:
        r = vector_multiply(r, vector_set(scale.inverse))
    s.r = r
    if STEPS == 4 and scale.few_digits:
        p = vector_fma(vector_set(1.66571918e-1), r, vector_set(5.002593277e-1))
        s.p = vector_fma(p, r, vector_set(1.000000779))
        return s
    if STEPS == 4:
        p = vector_fma(vector_set(4.164173383e-2), r, vector_set(1.667210856e-1))
        p = vector_fma(p, r, vector_set(5.000002042e-1))
    elif sizeof(real) == 4:
        p = vector_fma(vector_set(1.38145352e-3), r, vector_set(8.36874558e-3))
        p = vector_fma(p, r, vector_set(4.16683909e-2))
        p = vector_fma(p, r, vector_set(1.66665204e-1))
        p = vector_fma(p, r, vector_set(4.99999934e-1))
    else:
        p = vector_fma(vector_set(2.50000713445703831e-8), r, vector_set(2.76303090312043173e-7))
        p = vector_fma(p, r, vector_set(2.75575866578449727e-6))
        p = vector_fma(p, r, vector_set(2.48014929412376848e-5))
        p = vector_fma(p, r, vector_set(1.98412695059070863e-4))
        p = vector_fma(p, r, vector_set(1.38888889437687380e-3))
        p = vector_fma(p, r, vector_set(8.33333333349493565e-3))
        p = vector_fma(p, r, vector_set(4.16666666665296921e-2))
        p = vector_fma(p, r, vector_set(1.66666666666664115e-1))
        p = vector_fma(p, r, vector_set(5.00000000000001067e-1))
    s.p = vector_fma(p, r, vector_set(1.0))
    return s


cdef inline vector exponential(vector x, Reference reference, const Scale *scale) noexcept nogil:
    """exp(x/T) relative to the reference; 0 below the smallest normal number, NaN for NaN."""
    cdef Split s = exponential_split(x, reference, scale)
    return vector_fma(vector_multiply(s.power, s.r), s.p, s.power)


cdef inline DoubleDouble exponential_pair(
    vector x, Reference reference, const Scale *scale
) noexcept nogil:
    """exponential(), with what its last addition lost unless few digits will do."""
    cdef Split s = exponential_split(x, reference, scale)
    cdef vector change = vector_multiply(s.power, s.r)
    cdef DoubleDouble result = double_double_from(vector_fma(change, s.p, s.power))
    if not scale.few_digits:
        result.low = vector_fma(change, s.p, vector_subtract(s.power, result.high))
    return result


cdef inline vector split(vector z, vector n, const Scale *scale, bint roughly) noexcept nogil:
    """z - n * ln(2) / STEPS * T, without rounding but the last; `roughly`, within n * ln2_low."""
    cdef vector r = vector_fnma(n, vector_set(scale.ln2_high), z)
    if not HAS_FMA:
        r = vector_fnma(n, vector_set(scale.ln2_middle), r)
    if roughly:
        return r
    return vector_fnma(n, vector_set(scale.ln2_low), r)


cdef inline vector exponential_floor(Reference reference, const Scale *scale) noexcept nogil:
    """The argument for which exponential() first gives 0: that of 2**(exponent - EXPONENT_BIAS).

    In the middle of its step, lest it round to the next one down. With one step, a quarter up.
    """
    cdef vector n = vector_subtract(
        reference.exponent, vector_set(EXPONENT_BIAS - (0.25 if STEPS == 1 else 0.0)))
    return vector_multiply(n, vector_set(scale.ln2_high * STEPS))


cdef inline Reference reference_for(vector maximum, const Scale *scale) noexcept nogil:
    """Choose the reference of rows by their maxima, none of them NaN.

    The exponential of the maximum is then about 2**HEADROOM. So those far below it are still normal
    numbers, even where they make up the whole loss of a confident row.
    """
    cdef Reference reference
    cdef vector zero = vector_set(0.0)
    cdef vector rounder = vector_set(ROUNDER)
    cdef vector finite = vector_select(
        vector_greater(maximum, vector_set(NEGATIVE_INFINITY)), maximum, zero)
    cdef vector n
    reference.shift = vector_select(
        vector_greater(vector_absolute(finite), vector_set(scale.shift_limit)), finite, zero)
    n = vector_fma(
        vector_subtract(finite, reference.shift), vector_set(scale.log2e / STEPS), rounder)
    reference.exponent = vector_subtract(
        vector_subtract(n, rounder), vector_set(scale.headroom))
    return reference


cdef inline Reference reference_at(real exponent) noexcept nogil:
    """2**exponent, for all rows."""
    cdef Reference reference
    reference.shift = vector_set(0.0)
    reference.exponent = vector_set(exponent)
    return reference


cdef inline vector cooled_difference(vector a, vector b, const Scale *scale) noexcept nogil:
    """(a - b) / T, also where only the difference is out of range."""
    cdef vector half = vector_set(0.5)
    if not scale.tempered:
        return vector_subtract(a, b)
    return vector_multiply(
        vector_subtract(vector_multiply(a, half), vector_multiply(b, half)),
        vector_set(2 * scale.inverse))


cdef struct LogParts:
    # The logarithm of a number: k * ln(2) + f - small, of which k and f are exact.
    vector k
    vector f
    vector small


cdef inline LogParts log_parts(vector v, vector correction, vector exponent) noexcept nogil:
    """Those of (v + correction) * 2**exponent for |correction| far below v."""
    cdef LogParts parts
    cdef vector f = vector_add(
        vector_subtract(vector_fraction(v), vector_set(1.0)), vector_subtract(v, v))
    cdef vector s, z, w
    s = vector_divide(f, vector_add(f, vector_set(2.0)))
    z = vector_multiply(s, s)
    if sizeof(real) == 4:
        w = vector_fma(vector_set(2.333161447e-1), z, vector_set(2.855077863e-1))
        w = vector_fma(w, z, vector_set(4.000012221e-1))
        w = vector_fma(w, z, vector_set(6.666666655e-1))
    else:
        w = vector_fma(
            vector_set(0.130880348509275538), z, vector_set(0.132686383692668239))
        w = vector_fma(w, z, vector_set(0.153862447376216666))
        w = vector_fma(w, z, vector_set(0.181817955475211362))
        w = vector_fma(w, z, vector_set(0.222222223925810451))
        w = vector_fma(w, z, vector_set(0.28571428570799785))
        w = vector_fma(w, z, vector_set(0.400000000000008832))
        w = vector_fma(w, z, vector_set(0.666666666666666665))
    # log(1 + f) = f - s*(f - z*w); what is smaller than f is gathered first.
    parts.k = vector_add(vector_exponent(v), exponent)
    parts.f = f
    parts.small = vector_subtract(
        vector_multiply(s, vector_fnma(z, w, f)), vector_divide(correction, v))
    return parts


cdef inline vector logarithm(vector v, vector correction, vector exponent) noexcept nogil:
    """log((v + correction) * 2**exponent); -inf for 0, NaN for NaN and infinity."""
    cdef LogParts parts = log_parts(v, correction, exponent)
    cdef vector small = vector_fnma(parts.k, vector_set(LN2_REST), parts.small)
    return vector_select(
        vector_equal(v, vector_set(0.0)), vector_set(NEGATIVE_INFINITY),
        vector_fma(parts.k, vector_set(LN2), vector_subtract(parts.f, small)))


cdef inline vector log_total(
    DoubleDouble total, Reference reference, const Scale *scale
) noexcept nogil:
    """log(total * exp(reference))."""
    cdef vector down = vector_set(TWO_TO_MINUS_HEADROOM)
    cdef vector exponent = vector_add(reference.exponent, vector_set(HEADROOM))
    cdef vector shift = reference.shift
    if scale.tempered:
        shift = vector_multiply(shift, vector_set(scale.inverse))
    return vector_add(shift, logarithm(
        vector_multiply(total.high, down), vector_multiply(total.low, down), exponent))


cdef inline void log_totals(
    double *to, double *lost, DoubleDouble total, Reference reference, const Scale *scale,
    double temperature,
) noexcept nogil:
    """log_total() with more digits than what is computed in."""
    cdef vector down = vector_set(TWO_TO_MINUS_HEADROOM)
    cdef LogParts parts = log_parts(
        vector_multiply(total.high, down), vector_multiply(total.low, down),
        vector_add(reference.exponent, vector_set(HEADROOM)))
    cdef real[16] shift
    cdef real[16] k
    cdef real[16] f
    cdef real[16] small
    cdef real[16] rounded
    cdef Sum sum_
    cdef bint is_finite
    cdef Py_ssize_t i
    vector_store(rounded, log_total(total, reference, scale))
    vector_store(shift, reference.shift)
    vector_store(k, parts.k)
    vector_store(f, parts.f)
    vector_store(small, parts.small)
    for i in range(LANES):
        sum_ = quotient_and_sum(shift[i], temperature, k[i] * 0.693147180559945286)
        if sizeof(real) == 8:
            sum_.rest += product_error(k[i], 0.693147180559945286) + (
                k[i] * 2.31904681384629956e-17)
            sum_extend(&sum_, f[i])
            sum_extend(&sum_, -small[i])
        else:
            sum_.total += <double>f[i] - <double>small[i]
        is_finite = sum_.total - sum_.total == 0
        to[i] = sum_.total if is_finite else rounded[i]
        lost[i] = sum_.rest if is_finite else 0


cdef struct LogRatio:
    # log(1 + others / own), times 2**HEADROOM where it is tiny: there it would leave the range.
    vector value
    mask tiny


cdef inline DoubleDouble double_double_scaled(DoubleDouble a, vector power) noexcept nogil:
    a.high = vector_multiply(a.high, power)
    a.low = vector_multiply(a.low, power)
    return a


cdef inline DoubleDouble ratio_of(DoubleDouble a, DoubleDouble b) noexcept nogil:
    """a / b, not quite as a double-double number: what is divided by is inverted once."""
    cdef vector inverse = vector_divide(vector_set(1.0), b.high)
    cdef DoubleDouble ratio
    ratio.high = vector_multiply(vector_add(a.high, a.low), inverse)
    ratio.low = vector_multiply(inverse, vector_fnma(
        ratio.high, b.low, vector_add(vector_fnma(ratio.high, b.high, a.high), a.low)))
    # What is missed beside infinity is no number.
    ratio.low = vector_select(
        vector_equal(ratio.low, ratio.low), ratio.low, vector_set(0.0))
    return ratio


cdef inline vector logarithm_of_share(
    DoubleDouble others, DoubleDouble own, vector own_logit, Reference reference,
    const Scale *scale,
) noexcept nogil:
    """log((others + own) / own), where own = exponential(own_logit).

    Where `own` is the larger part this is log1p(others / own), which keeps every digit of a
    confident row; elsewhere log(total) - log(own), where log(own) is known without rounding.
    """
    return logarithm_of_ratio(
        ratio_of(others, own), sum_merge(others, own, scale.few_digits), own_logit, reference,
        scale)


cdef inline vector logarithm_of_ratio(
    DoubleDouble ratio, DoubleDouble total, vector own_logit, Reference reference,
    const Scale *scale,
) noexcept nogil:
    """logarithm_of_share() for others / own, and others + own."""
    cdef vector one = vector_set(1.0)
    cdef vector zero = vector_set(0.0)
    cdef vector down = vector_set(TWO_TO_MINUS_HEADROOM)
    cdef vector sum_ = vector_add(one, ratio.high)
    cdef vector rest = vector_add(
        vector_subtract(ratio.high, vector_subtract(sum_, one)), ratio.low)
    cdef mask close = vector_greater(one, ratio.high)
    # split() is own_logit - exponent*ln(2)*T: the logarithm of own / 2**exponent.
    cdef vector difference = vector_subtract(own_logit, reference.shift)
    cdef vector log_own = split(
        difference,
        vector_multiply(
            vector_add(reference.exponent, vector_set(HEADROOM)), vector_set(STEPS)), scale, False)
    if scale.tempered:
        log_own = vector_select(
            vector_equal(vector_subtract(difference, difference), zero),
            vector_multiply(log_own, vector_set(scale.inverse)),
            cooled_difference(own_logit, reference.shift, scale))
    return vector_subtract(
        logarithm(
            vector_select(close, sum_, vector_multiply(total.high, down)),
            vector_select(close, rest, vector_multiply(total.low, down)), zero),
        vector_select(close, zero, log_own))


cdef inline LogRatio log_ratio(
    DoubleDouble others, DoubleDouble own, vector own_logit, Reference reference,
    const Scale *scale,
) noexcept nogil:
    """logarithm_of_share(), which a tiny one does not leave the range of."""
    cdef LogRatio result
    cdef vector down = vector_set(TWO_TO_MINUS_HEADROOM)
    cdef DoubleDouble lifted = ratio_of(others, double_double_scaled(own, down))
    cdef vector ratio = double_double_rounded(lifted)
    result.tiny = vector_greater(vector_set(TINY_RATIO * TWO_TO_HEADROOM), ratio)
    result.value = vector_select(result.tiny, ratio, logarithm_of_ratio(
        double_double_scaled(lifted, down), sum_merge(others, own, scale.few_digits), own_logit,
        reference, scale))
    return result


# ---- exp and log of any number -------------------------------------------------------------------


cdef inline vector exponential_apart(vector x, vector *unit, const Scale *scale) noexcept nogil:
    """exp(x) / unit, a power of two: far from 0 all digits need other exponents than exp(x) has."""
    cdef vector zero = vector_set(0.0)
    cdef vector limit = vector_set(100.0 if sizeof(real) == 4 else 720.0)
    cdef vector far = vector_set(64 * LN2)
    cdef mask large = vector_greater(x, far)
    cdef mask small = vector_greater(vector_subtract(zero, far), x)
    cdef Reference reference
    reference.shift = zero
    reference.exponent = vector_select(
        large, vector_set(64.0), vector_select(small, vector_set(-64.0), zero))
    unit[0] = vector_select(large, vector_set(TWO_TO_64), vector_select(
        small, vector_set(1 / TWO_TO_64), vector_set(1.0)))
    return exponential(vector_select(vector_greater(x, limit), limit, x), reference, scale)


cdef inline vector exponential_minus_one(vector x, const Scale *scale) noexcept nogil:
    """exp(x) - 1 near 0."""
    cdef Split s = exponential_split(x, reference_at(0), scale)
    return vector_fma(
        vector_multiply(s.power, s.r), s.p, vector_subtract(s.power, vector_set(1.0)))


cdef inline vector plain_logarithm(vector x, vector correction) noexcept nogil:
    """log(x + correction) for |correction| far below x: of any x, also subnormal; NaN below 0."""
    cdef vector zero = vector_set(0.0)
    cdef mask small = vector_greater(vector_set(SMALLEST_NORMAL), x)
    cdef vector scaled = vector_select(small, vector_multiply(x, vector_set(TWO_TO_64)), x)
    cdef vector result = logarithm(
        scaled, correction, vector_select(small, vector_set(-64.0), zero))
    cdef vector infinity = vector_set(-NEGATIVE_INFINITY)
    result = vector_select(vector_equal(x, infinity), x, result)
    return vector_select(vector_greater(zero, x), vector_subtract(infinity, infinity), result)


cdef inline vector logarithm_of_one_plus(vector x) noexcept nogil:
    """log(1 + x), for x of any size above -1."""
    cdef vector one = vector_set(1.0)
    cdef vector zero = vector_set(0.0)
    cdef vector sum_ = vector_add(one, x)
    cdef vector rest = vector_subtract(x, vector_subtract(sum_, one))
    return plain_logarithm(sum_, vector_select(vector_equal(rest, rest), rest, zero))


cdef inline vector product_or_zero(vector coefficient, vector x) noexcept nogil:
    """coefficient * x, but 0 for a coefficient of 0, whatever x is."""
    cdef vector zero = vector_set(0.0)
    return vector_select(
        vector_equal(coefficient, zero), zero, vector_multiply(coefficient, x))


cdef inline vector subnormal_part(vector x) noexcept nogil:
    """|x| / SMALLEST_NORMAL for subnormal numbers, which arithmetic takes for 0."""
    cdef vector one = vector_set(1.0)
    # 1 plus that, or half of it.
    cdef vector fraction = vector_fraction(vector_absolute(x))
    return vector_subtract(vector_select(
        vector_greater(one, fraction), vector_add(fraction, fraction), fraction), one)

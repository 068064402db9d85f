# exp and log on vectors, and the reference point of a row.
#
# Subtracting the maximum of a row and rounding the difference is where a softmax usually loses its
# digits. Here each exponential is split, exp(x/T) = exp(r/T) * 2**(n/STEPS) with
# |r/T| <= ln(2)/(2*STEPS), and a power of two common to the row, 2**exponent, is taken out
# exactly. Only where |maximum| is so large that subtracting it is exact for every element that
# matters is it subtracted: the row's `shift`.
#
# The coefficients come from tools/coefficients.py.


cdef enum:
    # The exponential of a row's maximum is 2**HEADROOM, within a factor of sqrt(2).
    HEADROOM = 48


cdef struct Scale:
    # Constants of exp(x / temperature), in the units of x.
    real inverse         # 1 / temperature
    real log2e           # log2(e) * STEPS / temperature
    real ln2_high        # ln(2) / STEPS * temperature in pieces, so that n * ln2_high is exact or
    real ln2_middle      # fused; the middle one is used without fused multiply-adds only
    real ln2_low
    real shift_limit     # largest |maximum| served without a shift: an element in exp's range of a
    #                      larger one is within a factor of 2 of it, the subtraction is exact
    bint tempered        # temperature != 1
    bint shifted         # references may have a shift


cdef struct Reference:
    # The point that a row's exponentials are relative to: exp(shift / T) * 2**exponent.
    vector shift
    vector exponent


cdef struct Pair:
    # A number in two pieces: high, and low, what high lost by rounding.
    vector high
    vector low


cdef inline Pair pair_from(vector high) noexcept nogil:
    cdef Pair pair
    pair.high = high
    pair.low = vector_set(0.0)
    return pair


cdef inline Pair pair_merge_exactly(Pair a, Pair b) noexcept nogil:
    """a + b by Knuth's two-sum, which is exact in the high parts."""
    cdef Pair result
    cdef vector kept
    result.high = vector_add(a.high, b.high)
    kept = vector_subtract(result.high, a.high)
    result.low = vector_add(vector_add(a.low, b.low), vector_add(
        vector_subtract(a.high, vector_subtract(result.high, kept)),
        vector_subtract(b.high, kept)))
    return result


cdef inline Pair pair_merge(Pair a, Pair b) noexcept nogil:
    """a + b, as exact as the storage type deserves."""
    if DIGITS_TO_SPARE:
        return pair_from(vector_add(a.high, b.high))
    return pair_merge_exactly(a, b)


cdef inline Pair pair_add(Pair a, vector b) noexcept nogil:
    return pair_merge(a, pair_from(b))


cdef inline vector multiply_error(vector a, vector b, vector product) noexcept nogil:
    """a*b - product, where product is a*b rounded."""
    cdef vector a_high, a_low, b_high, b_low, factor
    if HAS_FMA:
        return vector_fma(a, b, vector_subtract(vector_set(0.0), product))
    factor = vector_set(4097.0 if sizeof(real) == 4 else 134217729.0)
    a_high = vector_multiply(factor, a)
    a_high = vector_subtract(a_high, vector_subtract(a_high, a))
    a_low = vector_subtract(a, a_high)
    b_high = vector_multiply(factor, b)
    b_high = vector_subtract(b_high, vector_subtract(b_high, b))
    b_low = vector_subtract(b, b_high)
    return vector_fma(a_low, b_low, vector_add(vector_add(
        vector_subtract(vector_multiply(a_high, b_high), product),
        vector_multiply(a_high, b_low)), vector_multiply(a_low, b_high)))


cdef inline Pair pair_multiply(Pair a, vector b) noexcept nogil:
    cdef Pair result = pair_from(vector_multiply(a.high, b))
    if not DIGITS_TO_SPARE:
        result.low = vector_fma(a.low, b, multiply_error(a.high, b, result.high))
    return result


cdef inline Pair pair_product(Pair a, Pair b) noexcept nogil:
    cdef Pair result = pair_multiply(a, b.high)
    if not DIGITS_TO_SPARE:
        result.low = vector_fma(a.high, b.low, result.low)
    return result


cdef inline Pair pair_quotient(vector a, Pair b) noexcept nogil:
    """a / b: a quotient, and what it misses."""
    cdef vector inverse = vector_divide(vector_set(1.0), b.high)
    cdef Pair result = pair_from(vector_multiply(a, inverse))
    cdef vector product, rest
    if DIGITS_TO_SPARE:
        return result
    product = vector_multiply(result.high, b.high)
    rest = vector_subtract(vector_subtract(a, product), multiply_error(
        result.high, b.high, product))
    rest = vector_fnma(result.high, b.low, rest)
    result.low = vector_multiply(rest, inverse)
    return result


cdef inline Pair pair_select(mask m, Pair a, Pair b) noexcept nogil:
    cdef Pair result
    result.high = vector_select(m, a.high, b.high)
    result.low = vector_select(m, a.low, b.low)
    return result


cdef inline vector output_product(vector a, Pair factor) noexcept nogil:
    """a * factor / OUTPUT_SCALE, rounded once (where multiply-adds are fused).

    The scale keeps a * factor.low from underflowing where the product does not.
    """
    if DIGITS_TO_SPARE:
        return vector_multiply(a, factor.high)
    return vector_multiply(
        vector_fma(a, factor.high, vector_multiply(a, factor.low)),
        vector_set(1.0 / OUTPUT_SCALE))


cdef Scale scale_for(double temperature) noexcept nogil:
    cdef Scale scale
    # ln(2) in 106 bits, so that temperature * ln(2) can be cut anew.
    cdef double step = 0.693147180559945286 / STEPS    # exact: STEPS is a power of two
    cdef double ln2 = step * temperature
    cdef double ln2_rest = (
        product_error(step, temperature) + 2.31904681384629956e-17 / STEPS * temperature)
    cdef double high, low
    scale.tempered = temperature != 1.0
    scale.shifted = True
    scale.inverse = <real>(1.0 / temperature)
    scale.log2e = <real>(1.44269504088896341 * STEPS / temperature)
    if DIGITS_TO_SPARE:
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


cdef inline Scale scale_with(const Scale *scale, bint general) noexcept nogil:
    """A copy for a loop, its flags constants that the compiler sees.

    Unless `general`, the temperature is 1 and no reference has a shift.
    """
    cdef Scale local = scale[0]
    local.tempered = general
    local.shifted = general
    return local


cdef double leading_bits(double x, int count) noexcept nogil:
    """Return x rounded to its first `count` bits."""
    cdef double factor = <double>((<long long>1 << (53 - count)) + 1)
    cdef double product = factor * x
    return product - (product - x)


cdef double product_error(double a, double b) noexcept nogil:
    """Return a*b minus its rounded value (Dekker)."""
    cdef double a_high = leading_bits(a, 26)
    cdef double b_high = leading_bits(b, 26)
    cdef double a_low = a - a_high
    cdef double b_low = b - b_high
    return ((a_high * b_high - a * b) + a_high * b_low + a_low * b_high) + a_low * b_low


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
    r = split(z, vector_subtract(n, rounder), scale, DIGITS_TO_SPARE)
    if scale.tempered:
        r = vector_multiply(r, vector_set(scale.inverse))
    s.r = r
    if STEPS == 4 and DIGITS_TO_SPARE:
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


cdef inline Pair exponential_pair(vector x, Reference reference, const Scale *scale) noexcept nogil:
    """exponential(), with what its last addition lost."""
    cdef Split s = exponential_split(x, reference, scale)
    cdef vector change = vector_multiply(s.power, s.r)
    cdef Pair result = pair_from(vector_fma(change, s.p, s.power))
    if not DIGITS_TO_SPARE:
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
        vector_subtract(n, rounder), vector_set(HEADROOM))
    return reference


cdef inline vector cooled_difference(vector a, vector b, const Scale *scale) noexcept nogil:
    """(a - b) / T, also where only the difference is out of range."""
    cdef vector half = vector_set(0.5)
    if not scale.tempered:
        return vector_subtract(a, b)
    return vector_multiply(
        vector_subtract(vector_multiply(a, half), vector_multiply(b, half)),
        vector_set(2 * scale.inverse))


cdef inline vector logarithm(vector v, vector correction, vector exponent) noexcept nogil:
    """log((v + correction) * 2**exponent) for |correction| far below v.

    -inf for 0, NaN for NaN and infinity.
    """
    cdef vector one = vector_set(1.0)
    cdef vector k = vector_add(vector_exponent(v), exponent)
    cdef vector f = vector_subtract(vector_fraction(v), one)
    cdef vector s, z, w, small
    f = vector_add(f, vector_subtract(v, v))
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
    small = vector_multiply(s, vector_fnma(z, w, f))
    small = vector_subtract(small, vector_divide(correction, v))
    small = vector_fnma(k, vector_set(LN2_REST), small)
    small = vector_fma(k, vector_set(LN2), vector_subtract(f, small))
    return vector_select(
        vector_equal(v, vector_set(0.0)), vector_set(NEGATIVE_INFINITY), small)


cdef inline vector log_total(Pair total, Reference reference, const Scale *scale) noexcept nogil:
    """log(total * exp(reference))."""
    cdef vector down = vector_set(TWO_TO_MINUS_HEADROOM)
    cdef vector exponent = vector_add(reference.exponent, vector_set(HEADROOM))
    cdef vector shift = reference.shift
    if scale.tempered:
        shift = vector_multiply(shift, vector_set(scale.inverse))
    return vector_add(shift, logarithm(
        vector_multiply(total.high, down), vector_multiply(total.low, down), exponent))


cdef extern from *:
    """
    #define TWO_TO_HEADROOM ((real)0x1p48)
    /* log1p of a smaller ratio is that ratio. */
    #define TINY_RATIO ((real)(sizeof(real) == 4 ? 0x1p-26 : 0x1p-55))
    """
    const real TWO_TO_HEADROOM
    const real TINY_RATIO


cdef inline vector lifted_log_share(
    Pair others, Pair own, vector log_share, vector beside, mask *tiny
) noexcept nogil:
    """negative_log_share(), times 2**HEADROOM where it is `tiny`: nothing of it is lost there.

    Not where what is to be added to it, `beside`, is 1 or more: lifted, too, that could overflow.
    """
    cdef vector ratio = vector_divide(
        vector_add(others.high, others.low),
        vector_multiply(own.high, vector_set(TWO_TO_MINUS_HEADROOM)))
    tiny[0] = vector_greater(
        vector_select(
            vector_greater(vector_set(TINY_RATIO * TWO_TO_HEADROOM), ratio), vector_set(1.0),
            vector_set(0.0)),
        beside)
    return vector_select(tiny[0], ratio, log_share)


cdef inline vector negative_log_share(
    Pair others, Pair own, vector own_logit, Reference reference, const Scale *scale
) noexcept nogil:
    """log((others + own) / own), where own = exponential(own_logit).

    Where `own` is the larger part this is log1p(others / own), which keeps every digit of a
    confident row; elsewhere log(total) - log(own), where log(own) is known without rounding.
    """
    cdef vector one = vector_set(1.0)
    cdef vector zero = vector_set(0.0)
    cdef vector down = vector_set(TWO_TO_MINUS_HEADROOM)
    cdef vector ratio = vector_divide(vector_add(others.high, others.low), own.high)
    cdef vector sum_ = vector_add(one, ratio)
    cdef vector rest = vector_subtract(ratio, vector_subtract(sum_, one))
    cdef mask close = vector_greater(one, ratio)
    cdef Pair total = pair_merge(others, own)
    # split() is own_logit - exponent*ln(2)*T: the logarithm of own / 2**exponent.
    cdef vector log_own = split(
        vector_subtract(own_logit, reference.shift),
        vector_multiply(
            vector_add(reference.exponent, vector_set(HEADROOM)), vector_set(STEPS)), scale, False)
    if scale.tempered:
        log_own = vector_multiply(log_own, vector_set(scale.inverse))
    return vector_subtract(
        logarithm(
            vector_select(close, sum_, vector_multiply(total.high, down)),
            vector_select(close, rest, vector_multiply(total.low, down)), zero),
        vector_select(close, zero, log_own))

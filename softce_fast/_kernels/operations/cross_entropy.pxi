# The cross-entropy of a row, and the recipe of its gradient.
#
# With coefficients a_c that sum to K, and z = z_loss * logsumexp:
#     loss = sum_c a_c (logsumexp - x_c / T) + z * logsumexp, times the row's weight;
#     gradient_c = (p_c (K + 2 z) - a_c) / T, times the row's weight and share in the reduced loss.
# A label is a coefficient of 1 (or its class weight); dense targets have one for every class.
# Weights are float64 numbers whose powers of two are taken out, so that none leaves the range of
# what is computed in; coefficients come times 2**-powers.coefficient.
#
# Uses state.pxi, softmax.pxi, numbers.pxd.

cdef inline void finish_total(
    Group *group, const Problem *problem, const Scratch *scratch
) noexcept nogil:
    """Add what was left out of the sum of exponentials: that of the label, or of the maximum."""
    if leaves_out_maximum(problem.operation):
        group.own_logit = group.whole.maximum
    elif not group.own_is_known:
        group.own_logit = label_logits(group, problem, &scratch.softcap)
    group.own = exponential_pair(group.own_logit, group.whole.reference, &scratch.scale)
    group.total = sum_merge(group.whole.others, group.own, scratch.scale.few_digits)


cdef inline void finish_loss(
    Group *group, const Problem *problem, const Scratch *scratch
) noexcept nogil:
    cdef Py_ssize_t k
    if not (
        group.weights.given or is_dense(problem.operation) or problem.options.z_loss != 0
        or fabs(problem.options.divisor) < 1    # what is too small becomes larger
    ):
        numbers_store(group.result, logarithm_of_share(
            group.whole.others, group.own, group.own_logit, group.whole.reference,
            &scratch.scale))
    elif weighs_alike(problem):
        finish_alike_loss(group, problem, scratch)
    else:
        finish_weighted_loss(group, problem, scratch)
    if group.ignored != 0:
        for k in range(LANES):
            group.result[k] = 0 if group.ignored >> k & 1 else group.result[k]
    if has(problem, MASK):
        finish_excluded(group, problem)


cdef void finish_excluded(Group *group, const Problem *problem) noexcept nogil:
    """The loss is infinite where no class is left; it is NaN where all that are left are -inf."""
    cdef unsigned int empty = ~group.ignored & vector_mask_bits(
        vector_equal(group.whole.maximum, vector_set(NEGATIVE_INFINITY)))
    cdef Py_ssize_t k
    for k in range(group.rows):
        if empty >> k & 1 and classes_allowed(group, problem, k) == 0:
            group.result[k] = -NEGATIVE_INFINITY
            if group.weights.given:
                group.result[k] *= group.weights.sample[k]


cdef inline double number_or_zero(double coefficient, double x) noexcept nogil:
    """coefficient * x, but 0 for a coefficient of 0, whatever x is."""
    return 0 if coefficient == 0 else coefficient * x


cdef inline void log_ratio_store(
    double *log_share, double *lowering, LogRatio ratio
) noexcept nogil:
    """A logarithm of each row, and what lowers it where it was lifted."""
    numbers_store(log_share, ratio.value)
    numbers_store(lowering, vector_select(
        ratio.tiny, vector_set(TWO_TO_MINUS_HEADROOM), vector_set(1.0)))


cdef inline double lifted_product(
    double weight, double share, double log_share, double lowering
) noexcept nogil:
    """weight * share * log_share * lowering: times a large factor what is lifted may overflow."""
    cdef bint at_once = log_share > 1
    return number_or_zero(
        weight, number_or_zero(share, log_share * (lowering if at_once else 1))
    ) * (1 if at_once else lowering)


cdef inline int64_t is_within(double x, double least, double most) noexcept nogil:
    """Whether its size is, or is 0; without branches, for the sake of vectors."""
    return (least < fabs(x)) & (fabs(x) < most) | (x == 0)


cdef inline bint parts_are_moderate(
    const double *weight, const double *share, const double *log_share, const double *rest
) noexcept nogil:
    """Whether no product of these leaves the range where the loss does not."""
    cdef double most = two_to(300)
    cdef double least = two_to(-300)
    cdef int64_t moderate = 1
    cdef Py_ssize_t k
    for k in range(LANES):
        moderate &= is_within(weight[k], least, most) & is_within(share[k], least, most)
        # Tiny ones are lifted.
        moderate &= (log_share[k] < two_to(400)) & (fabs(rest[k]) < most)
    return moderate != 0


cdef double sum_of_parts(
    double weight, double share, double log_share, double lowering, double rest, int power
) noexcept nogil:
    """A loss times 2**power, which leaves the range only where that does."""
    cdef int of_weight, of_share, of_logarithm, of_lowering, of_rest, of_product, common
    weight = power_split(weight, &of_weight)
    share = power_split(share, &of_share)
    log_share = power_split(log_share, &of_logarithm)
    power_split(lowering, &of_lowering)
    rest = power_split(rest, &of_rest)
    of_product = of_share + of_logarithm + of_lowering
    share = number_or_zero(share, log_share)
    common = max(of_product, of_rest)
    if share == 0 or rest == 0:
        common = of_rest if share == 0 else of_product
    return power_apply(
        number_or_zero(weight, power_apply(share, of_product - common))
        + number_or_zero(weight, power_apply(rest, of_rest - common)),
        power + of_weight + common)


cdef struct RowNumbers:
    # Of each row of a group, in float64.
    double[16] log_share     # log(total / own), times 2**HEADROOM where it is tiny,
    double[16] lowering      # and what takes that back
    double[16] logsumexp     # where it is asked for,
    double[16] lost          # and what that misses
    double[16] coefficients  # the sum of them,
    double[16] spread        # and that of coefficient * (maximum - x) / T, both without the label's
    double[16] gap           # (maximum - x) / T at the label


cdef inline void row_numbers(
    RowNumbers *numbers, const Group *group, const Problem *problem, const Scratch *scratch,
    bint alike,
) noexcept nogil:
    cdef const RowState *whole = &group.whole
    cdef double temperature = problem.options.temperature
    cdef double[16] own_logit
    cdef double[16] logit
    cdef double[16] lost
    cdef unsigned int confident
    cdef Sum sum_
    cdef Py_ssize_t k
    cdef LogRatio ratio = log_ratio(
        whole.others, group.own, group.own_logit, whole.reference, &scratch.scale)
    log_ratio_store(numbers.log_share, numbers.lowering, ratio)
    numbers_store(own_logit, group.own_logit)
    if not alike and problem.options.z_loss != 0:
        # Near 0 the logsumexp has the digits of what the others add to the largest.
        log_totals(
            numbers.logsumexp, numbers.lost, group.total, whole.reference, &scratch.scale,
            temperature)
        confident = vector_mask_bits(vector_greater(group.own.high, whole.others.high))
        for k in range(LANES):
            sum_ = quotient_and_sum(
                own_logit[k], temperature, numbers.log_share[k] * numbers.lowering[k])
            numbers.logsumexp[k] = sum_.total if confident >> k & 1 else numbers.logsumexp[k]
            numbers.lost[k] = sum_.rest if confident >> k & 1 else numbers.lost[k]
        if leaves_out_label(problem.operation):
            logsumexps_near_zero(numbers, group, problem, scratch)
    if not is_dense(problem.operation):
        return
    if alike and has(problem, LABELS):
        for k in range(LANES):
            numbers.coefficients[k] = scratch.common.even.of_all
    else:
        coefficient_sums(group, numbers.coefficients, lost)
    numbers_store(numbers.spread, group.whole.spread)
    for k in range(LANES):
        numbers.spread[k] /= temperature
    if has(problem, LABELS):
        numbers_store(logit, label_logits(group, problem, &scratch.softcap))
        for k in range(LANES):
            numbers.gap[k] = (own_logit[k] / 2 - logit[k] / 2) / temperature * 2


cdef void logsumexps_near_zero(
    RowNumbers *numbers, const Group *group, const Problem *problem, const Scratch *scratch
) noexcept nogil:
    """Once more, of rows whose label is not the maximum, where z_loss outweighs the label.

    There the digits are those of what all others add to the maximum: these are summed again, but
    for shards, which have their sum.
    """
    cdef const RowState *whole = &group.whole
    cdef DoubleDouble top = exponential_pair(whole.maximum, whole.reference, &scratch.scale)
    cdef unsigned int rows = ~group.ignored & vector_mask_bits(vector_greater(
        top.high, vector_maximum(group.own.high, vector_subtract(group.total.high, top.high))))
    cdef double[16] maximum
    cdef double[16] rest
    cdef real[16] high
    cdef real[16] low
    cdef DoubleDouble others
    cdef LogRatio ratio
    cdef unsigned int tiny
    cdef int64_t position
    cdef Sum sum_
    cdef Py_ssize_t k
    for k in range(LANES):
        high[k] = low[k] = 1
        position = -1
        if (
            k >= group.rows or fabs(numbers.logsumexp[k]) > 1
            or fabs(problem.options.z_loss) < (
                fabs(group.weights.label[k]) if group.weights.given else 1)
        ):
            rows &= ~(<unsigned int>1 << k)
        elif rows >> k & 1 and not problem.shard.given:
            high[k] = row_others(group, problem, k, &position, low + k, scratch)
    if rows == 0:
        return
    others.high = vector_load(high)
    others.low = vector_load(low)
    if problem.shard.given:
        others = whole.rest
    ratio = log_ratio(others, top, whole.maximum, whole.reference, &scratch.scale)
    tiny = vector_mask_bits(ratio.tiny)
    numbers_store(rest, ratio.value)
    numbers_store(maximum, whole.maximum)
    for k in range(LANES):
        if rows >> k & 1:
            sum_ = quotient_and_sum(
                maximum[k], problem.options.temperature,
                rest[k] * TWO_TO_MINUS_HEADROOM if tiny >> k & 1 else rest[k])
            numbers.logsumexp[k] = sum_.total
            numbers.lost[k] = sum_.rest


cdef inline void coefficient_sums(
    const Group *group, double *sums, double *lost
) noexcept nogil:
    """The sum of each row's coefficients, without the label's, and what that misses."""
    cdef double[16] high
    cdef double[16] low
    cdef Py_ssize_t k
    cdef DoubleDouble total = double_double_add(
        group.whole.other_coefficients, group.whole.own_coefficient)
    numbers_store(high, total.high)
    numbers_store(low, total.low)
    for k in range(LANES):
        low[k] = number_or_nothing(low[k])
        sums[k] = high[k] + low[k]
        lost[k] = number_or_nothing(low[k] - (sums[k] - high[k]))


cdef inline void finish_loss_of_parts(
    Group *group, const Problem *problem, const Scratch *scratch, bint alike
) noexcept nogil:
    """The loss, of the sums of its parts; `alike`, a constant here: rows have no weights."""
    cdef double z_loss = problem.options.z_loss
    cdef int power = result_power(problem)
    # The sum of the coefficients, which log_share is multiplied by, and all that is added.
    cdef double[16] share
    cdef double[16] rest
    cdef double[16] weight
    cdef double of_row
    cdef Sum part, logsumexp
    cdef Py_ssize_t k
    cdef RowNumbers numbers
    row_numbers(&numbers, group, problem, scratch, alike)
    for k in range(LANES):
        share[k] = 1 - problem.options.label_smoothing
        weight[k] = 1
        rest[k] = 0
    if not alike and group.weights.given:
        memcpy(share, group.weights.label, sizeof(share))
        memcpy(weight, group.weights.sample, sizeof(weight))
    if is_dense(problem.operation):
        dense_numbers_add(group, problem, &numbers, share, rest)
    if not alike and z_loss != 0:
        for k in range(LANES):
            # The square has each rounding of the logsumexp twice, so there is to be none.
            logsumexp = Sum(numbers.logsumexp[k], numbers.lost[k])
            part = sum_product(Sum(z_loss, 0), logsumexp)
            group.from_z[k] = 2 * part.total
            group.from_z_lost[k] = 2 * part.rest
            part = sum_product(part, logsumexp)
            rest[k] += part.total + part.rest
    if not alike and (
        power != 0 or not parts_are_moderate(weight, share, numbers.log_share, rest)
    ):
        for k in range(LANES):
            group.result[k] = sum_of_parts(
                weight[k], share[k], numbers.log_share[k], numbers.lowering[k], rest[k], power)
        return
    for k in range(LANES):
        of_row = 1 if alike else weight[k]
        group.result[k] = lifted_product(
            of_row, share[k], numbers.log_share[k], numbers.lowering[k]
        ) + number_or_zero(of_row, rest[k])


# A function each, in which the constant is folded.


cdef void finish_alike_loss(
    Group *group, const Problem *problem, const Scratch *scratch
) noexcept nogil:
    finish_loss_of_parts(group, problem, scratch, True)


cdef void finish_weighted_loss(
    Group *group, const Problem *problem, const Scratch *scratch
) noexcept nogil:
    finish_loss_of_parts(group, problem, scratch, False)


cdef inline void dense_numbers_add(
    Group *group, const Problem *problem, RowNumbers *numbers, double *share, double *rest
) noexcept nogil:
    """Add what a dense target has to the sums of the coefficients and of what is added."""
    cdef int power = problem.options.powers.coefficient
    cdef Py_ssize_t k
    lanes_scale(numbers.coefficients, power)
    lanes_scale(numbers.spread, power)
    for k in range(LANES):
        # What the label is given on top of its share in the smoothing.
        rest[k] = number_or_zero(share[k], numbers.gap[k]) if has(problem, LABELS) else 0
        rest[k] += numbers.spread[k]
        share[k] = (share[k] if has(problem, LABELS) else 0) + numbers.coefficients[k]
    if problem.options.z_loss == 0:
        rows_of_nothing(group, share, rest)


cdef inline void rows_of_nothing(
    Group *group, const double *share, const double *rest
) noexcept nogil:
    """Take rows out of whose target nothing is left."""
    cdef int64_t nothing = 0
    cdef Py_ssize_t k
    for k in range(LANES):
        nothing |= (share[k] == 0) & (rest[k] == 0)
    for k in range(LANES if nothing else 0):
        group.ignored |= <unsigned int>(share[k] == 0 and rest[k] == 0) << k


# ---- the gradient --------------------------------------------------------------------------------


cdef inline Scaled scaled_product(Scaled a, double b) noexcept nogil:
    cdef int power
    cdef Scaled result
    b = power_split(b, &power)
    result.number = a.number * b
    result.rest = number_or_nothing(product_error(a.number, b) + a.rest * b)
    result.power = a.power + power
    return result


cdef inline Scaled scaled_quotient(Scaled a, double b) noexcept nogil:
    cdef int power
    cdef Scaled result
    b = power_split(b, &power)
    result.number = a.number / b
    result.rest = number_or_nothing((
        (a.number - result.number * b) - product_error(result.number, b) + a.rest) / b)
    result.power = a.power - power
    return result


cdef inline Scaled scale_of_gradients(const Problem *problem) noexcept nogil:
    """What every row's gradient is multiplied by."""
    cdef Scaled scale
    scale.number = 1
    scale.rest = 0
    scale.power = problem.options.powers.result + problem.options.powers.coefficient
    return scaled_quotient(
        scaled_quotient(scale, problem.options.temperature), problem.options.divisor)


cdef struct Factor:
    # What both parts of a row's entries are multiplied by, once a power of two is out of them.
    double number
    double missing
    double lift        # and totals by this, which makes quotients larger,
    double power       # and what their products are


cdef enum:
    MODERATE = 20    # powers of two up to which rows are taken together


cdef struct RowLanes:
    # What RowFactors are made of, row by row.
    double[16] target
    double[16] lost      # what that misses
    double[16] from_z
    double[16] from_z_lost
    double[16] number
    double[16] missing
    double[16] coefficient
    double[16] lift
    double[16] power


cdef inline int needed_power(double largest, int *left) noexcept nogil:
    """The power of two that is to be taken out of numbers up to that size; what it leaves of it."""
    cdef int power, needed
    power_split(largest, &power)
    # No more than is needed: what is far smaller than it is not to be lost.
    needed = max(power - (EXPONENT_BIAS - 1 - HEADROOM - 24), min(power, 0))
    left[0] = max(0, power - needed)
    return needed


cdef inline Factor factor_for(Scaled scale, int power, int left, bint rounded) noexcept nogil:
    """What multiplies numbers up to 2**left, once that power is out of them."""
    cdef int limit = EXPONENT_BIAS - 1
    cdef int of_number
    cdef double number = power_split(scale.number, &of_number)
    cdef int whole = power + scale.power + of_number - HEADROOM
    cdef int within = max(-limit, min(limit, whole))
    # What the power itself cannot hold, a smaller total does, as far as what the factor misses,
    # times an exponential, is in range; or coefficients times that, where there are any. What this
    # cannot hold, either, is out of range, unless an exponential is next to nothing.
    cdef int most = EXPONENT_BIAS - HEADROOM + min(20 - left, power if rounded else limit)
    cdef int lift = min(whole - within, most)
    cdef Factor factor
    factor.number = power_apply(number, HEADROOM + min(lift, 0))
    factor.missing = factor.number / scale.number * scale.rest
    factor.lift = power_apply(1, -max(lift, 0))
    factor.power = power_apply(1, within)
    return factor


cdef inline void lane_set(RowLanes *lanes, Py_ssize_t k, Factor factor) noexcept nogil:
    lanes.number[k] = factor.number
    lanes.missing[k] = factor.missing
    lanes.coefficient[k] = factor.number / factor.lift
    lanes.lift[k] = factor.lift
    lanes.power[k] = factor.power


cdef inline void lane_shift(RowLanes *lanes, Py_ssize_t k, int shift) noexcept nogil:
    lanes.target[k] = power_apply(lanes.target[k], shift)
    lanes.lost[k] = power_apply(lanes.lost[k], shift)
    lanes.from_z[k] = power_apply(lanes.from_z[k], shift)
    lanes.from_z_lost[k] = power_apply(lanes.from_z_lost[k], shift)
    lanes.coefficient[k] = power_apply(lanes.coefficient[k], shift)


cdef inline DoubleDouble double_double_of(
    const double *numbers, const double *rests
) noexcept nogil:
    """Numbers in float64, each with what it misses, in what is computed in."""
    cdef DoubleDouble pair
    cdef double[16] low
    cdef Py_ssize_t k
    for k in range(LANES):
        low[k] = number_or_nothing(
            (numbers[k] - <real>numbers[k]) + number_or_nothing(rests[k]))
    pair.high = vector_from(numbers)
    pair.low = vector_from(low)
    return pair


cdef RowFactors factors_from(const RowLanes *lanes) noexcept nogil:
    cdef RowFactors factors
    cdef double[16] whole
    cdef double[16] whole_rest
    cdef double[16] target
    cdef double[16] target_rest
    cdef double[16] rest
    cdef double[16] rest_lost
    cdef double total, lost
    cdef Py_ssize_t k
    for k in range(LANES):
        total = lanes.target[k] + lanes.from_z[k]
        lost = sum_error(lanes.target[k], lanes.from_z[k], total) + (
            lanes.lost[k] + lanes.from_z_lost[k])
        whole[k] = lanes.number[k] * total
        whole_rest[k] = product_error(lanes.number[k], total) + (
            lanes.missing[k] * total + lanes.number[k] * lost)
        target[k] = lanes.number[k] * lanes.target[k]
        target_rest[k] = product_error(lanes.number[k], lanes.target[k]) + (
            lanes.missing[k] * lanes.target[k] + lanes.number[k] * lanes.lost[k])
        rest[k] = lanes.number[k] * lanes.from_z[k]
        rest_lost[k] = product_error(lanes.number[k], lanes.from_z[k]) + (
            lanes.missing[k] * lanes.from_z[k] + lanes.number[k] * lanes.from_z_lost[k])
    factors.whole = double_double_of(whole, whole_rest)
    factors.target = double_double_of(target, target_rest)
    factors.rest = double_double_of(rest, rest_lost)
    factors.coefficient = vector_from(lanes.coefficient)
    factors.lift = vector_from(lanes.lift)
    factors.power = vector_from(lanes.power)
    return factors


cdef inline vector vector_from(const double *numbers) noexcept nogil:
    cdef real[16] lane
    cdef Py_ssize_t k
    for k in range(LANES):
        lane[k] = <real>numbers[k]
    return vector_load(lane)


cdef CommonFactors common_factors(
    const Problem *problem, Scaled scale, bint rounded
) noexcept nogil:
    """What rows that weigh alike multiply by: the same for all of a call.

    Sums of class probabilities are not the same; factors_by_sum() multiplies these by them.
    """
    cdef CommonFactors factors
    cdef Factor factor = factor_for(row_scale(scale, 1, rounded), 0, 1, rounded)
    cdef Sum total = even_sum(
        problem, problem.layout.classes, 1 - problem.options.label_smoothing)
    cdef RowLanes lanes
    cdef Py_ssize_t k
    for k in range(LANES):
        lanes.target[k] = 1 if has(problem, SECOND) else total.total
        lanes.lost[k] = 0 if has(problem, SECOND) else total.rest
        lanes.from_z[k] = lanes.from_z_lost[k] = 0
        lane_set(&lanes, k, factor)
    factors.of_all = scale
    factors.alike = factors_from(&lanes)
    return factors


cdef EvenTarget even_target(const Problem *problem) noexcept nogil:
    cdef double label = 1 - problem.options.label_smoothing
    cdef Py_ssize_t classes = problem.layout.classes
    cdef EvenTarget target
    target.of_all = even_sum(problem, classes, 0).total
    target.others = double_double_of_sum(even_sum(problem, classes - 1, 0))
    target.others_and_label = double_double_of_sum(even_sum(problem, classes - 1, label))
    target.at_label = vector_set(<real>(problem.even.total + label))
    return target


cdef inline Sum even_sum(
    const Problem *problem, Py_ssize_t classes, double label
) noexcept nogil:
    """The sum of what label smoothing gives to so many classes, without weights, and of `label`."""
    cdef Sum result
    cdef Sum count = Sum(<double>classes, 0)
    cdef Sum even = sum_product(problem.even, count)
    result.total = even.total + label
    result.rest = even.rest + sum_error(even.total, label, result.total)
    return result


cdef RowFactors factors_by_sum(
    const Group *group, const Problem *problem, const CommonFactors *common, bint rounded
) noexcept nogil:
    """factors_of() rows that have class probabilities and no weights: by the sum of these alone.

    Row by row, so that none depends on its neighbours: where a sum is far from 1, as ever.
    """
    cdef vector zero = vector_set(0.0)
    cdef vector one = vector_set(1.0)
    cdef DoubleDouble sums = double_double_add(
        group.whole.other_coefficients, group.whole.own_coefficient)
    cdef vector size = vector_select(
        vector_equal(sums.high, zero), one, vector_absolute(sums.high))
    cdef mask moderate = vector_equal(one, vector_select(
        vector_greater(size, vector_set(<real>two_to(-MODERATE))),
        vector_select(vector_greater(vector_set(<real>two_to(MODERATE)), size), one, zero),
        zero))
    cdef RowFactors factors = common.alike
    cdef RowFactors others
    factors.whole = double_double_product(sums, factors.whole)
    if vector_mask_bits(moderate) != (<unsigned int>1 << LANES) - 1:
        others = factors_of(group, problem, common.of_all, rounded)
        factors.whole = double_double_select(moderate, factors.whole, others.whole)
        factors.rest = double_double_select(moderate, factors.rest, others.rest)
        factors.coefficient = vector_select(moderate, factors.coefficient, others.coefficient)
        factors.lift = vector_select(moderate, factors.lift, others.lift)
        factors.power = vector_select(moderate, factors.power, others.power)
    factors.target = factors.whole
    return factors


cdef RowFactors factors_of(
    const Group *group, const Problem *problem, Scaled scale, bint rounded
) noexcept nogil:
    """Those of any rows; `rounded`: a single number, which multiplies coefficients as well."""
    cdef RowLanes lanes
    cdef double[16] weight
    cdef double[16] sums
    cdef double label
    cdef bint dense = is_dense(problem.operation)
    cdef unsigned int alone = 0
    cdef Py_ssize_t k
    for k in range(LANES):
        weight[k] = lanes.target[k] = 1
        lanes.lost[k] = lanes.from_z[k] = lanes.from_z_lost[k] = 0
    if group.weights.given:
        memcpy(weight, group.weights.sample, sizeof(weight))
        memcpy(lanes.target, group.weights.label, sizeof(weight))
        coefficients_scale(lanes.target, problem)
    if problem.options.z_loss != 0:
        memcpy(lanes.from_z, group.from_z, sizeof(weight))
        memcpy(lanes.from_z_lost, group.from_z_lost, sizeof(weight))
        coefficients_scale(lanes.from_z, problem)
        coefficients_scale(lanes.from_z_lost, problem)
        alone = rows_of_one_class(group, problem)
    if dense:
        coefficient_sums(group, sums, lanes.lost)
        for k in range(LANES):
            label = lanes.target[k] if has(problem, LABELS) else 0
            lanes.target[k] = sums[k] + label
            lanes.lost[k] = number_or_nothing(
                lanes.lost[k] + sum_error(sums[k], label, lanes.target[k]))
    if alone == 0 and are_moderate(&lanes, weight, scale.power):
        lanes_set(&lanes, weight, scale, rounded)
        return factors_from(&lanes)
    for k in range(LANES):
        if alone >> k & 1:
            lanes.target[k] = lanes.lost[k] = 0
        lane_set_for(
            &lanes, k, row_scale(scale, weight[k], rounded), rounded and not alone >> k & 1)
        if alone >> k & 1:
            lanes.coefficient[k] = 0
    return factors_from(&lanes)


cdef inline unsigned int rows_of_one_class(
    const Group *group, const Problem *problem
) noexcept nogil:
    """Rows, bits, of whose gradient nothing is left but z_loss's part, however small it is.

    All probability is that of one class, and so are all coefficients.
    """
    cdef vector zero = vector_set(0.0)
    cdef unsigned int rows = vector_mask_bits(
        vector_equal(group.whole.others.high, zero)) & (<unsigned int>1 << group.rows) - 1
    cdef double[16] others
    cdef double[16] lost
    cdef Py_ssize_t k
    if rows == 0 or not is_dense(problem.operation):
        return rows
    if not has(problem, LABELS):
        return rows & vector_mask_bits(vector_equal(group.whole.other_coefficients.high, zero))
    shares_of_others(group, problem, others, lost)
    for k in range(group.rows):
        if others[k] != 0 or (
            group.labels[k] != group.recipe.top[k] and group.weights.label[k] != 0
        ):
            rows &= ~(<unsigned int>1 << k)
    return rows


cdef inline void lane_set_for(
    RowLanes *lanes, Py_ssize_t k, Scaled scale, bint rounded
) noexcept nogil:
    """Set what multiplies row k, whatever the size of its numbers."""
    cdef int left
    cdef int power = needed_power(
        max(fabs(lanes.target[k]), max(fabs(lanes.from_z[k]), <double>rounded)), &left)
    lane_set(lanes, k, factor_for(scale, power, left, rounded))
    if power != 0:
        lane_shift(lanes, k, -power)


cdef inline Scaled row_scale(Scaled scale, double weight, bint rounded) noexcept nogil:
    if weight != 1:
        scale = scaled_product(scale, weight)
    if rounded:
        scale.number += number_or_nothing(scale.rest)
        scale.rest = 0
    return scale


cdef inline bint are_moderate(
    const RowLanes *lanes, const double *weight, int power
) noexcept nogil:
    """Whether each row's numbers are so near 1 that what follows from them stays in range."""
    cdef double most = two_to(MODERATE)
    cdef double least = two_to(-MODERATE)
    cdef int64_t moderate = abs(power - HEADROOM) < EXPONENT_BIAS - 2 * (MODERATE + 1)
    cdef Py_ssize_t k
    for k in range(LANES):
        moderate &= is_within(weight[k], least, most) & is_within(
            max(fabs(lanes.target[k]), fabs(lanes.from_z[k])), least, most)
    return moderate != 0


cdef inline void lanes_set(
    RowLanes *lanes, const double *weight, Scaled scale, bint rounded
) noexcept nogil:
    """lane_set() and lane_shift() for all rows at once, where they are moderate."""
    cdef double headroom = power_apply(1, HEADROOM)
    cdef double number, rest, mantissa, shift
    cdef int64_t power, needed
    cdef Py_ssize_t k
    for k in range(LANES):
        power = exponent_of(weight[k])
        mantissa = weight[k] * two_to(-power)
        number = scale.number * mantissa
        rest = product_error(scale.number, mantissa) + scale.rest * mantissa
        number += rest if rounded else 0
        rest = 0 if rounded else rest
        # Which of two factors is the larger one decides on digits: it is to be the same one.
        power += exponent_of(number)
        shift = headroom * two_to(-exponent_of(number))
        lanes.number[k] = number * shift
        lanes.missing[k] = rest * shift
        needed = min(<int64_t>0, exponent_of(max(fabs(lanes.target[k]), fabs(lanes.from_z[k]))))
        needed = 0 if rounded else needed
        shift = two_to(-needed)
        lanes.coefficient[k] = lanes.number[k] * shift
        lanes.lift[k] = 1
        lanes.power[k] = two_to(power + needed + scale.power - HEADROOM)
        lanes.target[k] *= shift
        lanes.lost[k] *= shift
        lanes.from_z[k] *= shift
        lanes.from_z_lost[k] *= shift


cdef inline DoubleDouble exact_total(
    const Group *group, const Problem *problem, const Scratch *scratch
) noexcept nogil:
    if leaves_out_maximum(problem.operation):
        return group.total    # it has been added with all its digits
    return with_exact_maximum(
        group.total, &group.whole, vector_greater(group.whole.maximum, group.own_logit),
        &scratch.scale)


cdef inline void finish_gradient(
    Group *group, const Problem *problem, const Scratch *scratch
) noexcept nogil:
    cdef Recipe *recipe = &group.recipe
    cdef const RowFactors *factors = &scratch.common.factors[0].alike
    cdef RowFactors weighted
    cdef DoubleDouble total = exact_total(group, problem, scratch)
    cdef vector others
    # Where both parts of an entry of a dense target are equal, nothing is to be left.
    cdef bint rounded = is_dense(problem.operation)
    if not weighs_alike(problem):
        weighted = factors_of(group, problem, scratch.common.factors[0].of_all, rounded)
        factors = &weighted
    elif has(problem, SECOND):
        weighted = factors_by_sum(group, problem, &scratch.common.factors[0], rounded)
        factors = &weighted
    total = double_double_scaled(total, factors.lift)
    recipe.factor = sum_quotient(factors.whole, total, scratch.scale.few_digits)
    recipe.unscale = factors.power
    recipe.coefficient_factor = factors.coefficient
    if is_dense(problem.operation):
        finish_dense_gradient(group, problem, factors, total, scratch)
        return
    if problem.options.z_loss != 0:
        recipe.at_label = double_double_rounded(own_gradient(group, problem, factors, total))
    else:
        # Minus the share of the others: subtracting that of one from 1 would lose the digits.
        others = vector_subtract(
            vector_set(0.0), vector_add(group.whole.others.high, group.whole.others.low))
        recipe.at_label = vector_fma(
            others, recipe.factor.high, vector_multiply(others, recipe.factor.low))
    recipe.at_label = vector_multiply(recipe.at_label, factors.power)
    unscale_few_digits(recipe, &scratch.scale)


cdef inline DoubleDouble share_of(
    DoubleDouble a, DoubleDouble b, DoubleDouble total
) noexcept nogil:
    """a * b / total. The larger is divided: the quotient of a tiny one may leave the range."""
    cdef mask m = vector_greater(vector_absolute(a.high), vector_absolute(b.high))
    return double_double_product(
        double_double_quotient(double_double_select(m, a, b), total),
        double_double_select(m, b, a))


cdef inline DoubleDouble own_gradient(
    const Group *group, const Problem *problem, const RowFactors *factors, DoubleDouble total
) noexcept nogil:
    """Of the class that the sum leaves out, what its own coefficient has no part in:

    p times what z_loss adds, less 1 - p, the share of the others, times the sum of coefficients.
    """
    cdef DoubleDouble others = double_double_scaled(
        share_of(group.whole.others, factors.target, total), vector_set(-1.0))
    if problem.options.z_loss == 0:
        return others
    return double_double_merge(share_of(group.own, factors.rest, total), others)


cdef void finish_dense_gradient(
    Group *group, const Problem *problem, const RowFactors *factors, DoubleDouble total,
    const Scratch *scratch,
) noexcept nogil:
    """The label's coefficient, and the one entry that is computed on its own.

    At the maximum, the only class whose probability can exceed 1/2, p * K - k is
    (the sum of the other k) - K * (1 - p); neither part loses digits.
    """
    cdef Recipe *recipe = &group.recipe
    cdef unsigned int confident = vector_mask_bits(vector_greater(
        group.own.high, vector_add(group.whole.others.high, group.whole.others.low)))
    cdef DoubleDouble others = group.whole.other_coefficients
    cdef DoubleDouble own = own_gradient(group, problem, factors, total)
    cdef const EvenTarget *even = &scratch.common.even
    cdef Py_ssize_t k
    for k in range(LANES):
        recipe.top[k] = recipe.top[k] if confident >> k & 1 else -1
    if has(problem, LABELS) and weighs_alike(problem):
        others = double_double_select(label_is_top(group), even.others, even.others_and_label)
        recipe.at_label = even.at_label
    elif has(problem, LABELS):
        others = other_coefficients_of_labels(group, problem)
        recipe.at_label = label_coefficients(group, problem)
    own.high = vector_fma(factors.coefficient, others.high, own.high)
    own.low = vector_fma(factors.coefficient, others.low, own.low)
    recipe.at_top = vector_multiply(double_double_rounded(own), factors.power)


cdef inline vector label_coefficients(const Group *group, const Problem *problem) noexcept nogil:
    """The coefficient of each row's label under smoothing."""
    cdef double even = problem.even.total
    cdef double[16] coefficient
    cdef Py_ssize_t k
    for k in range(LANES):
        coefficient[k] = even
    if shares_by_row(problem):
        memcpy(coefficient, group.weights.even, sizeof(coefficient))
    if problem.options.class_weight != NULL:
        for k in range(LANES):
            if group.labels[k] < problem.layout.classes:
                coefficient[k] *= problem.options.class_weight[group.labels[k]]
    for k in range(LANES):
        coefficient[k] += group.weights.label[k]
    coefficients_scale(coefficient, problem)
    return vector_from(coefficient)


cdef inline void coefficients_scale(double *coefficient, const Problem *problem) noexcept nogil:
    """Take the power of two out of them."""
    lanes_scale(coefficient, -problem.options.powers.coefficient)


cdef inline void lanes_scale(double *numbers, int power) noexcept nogil:
    """power_apply() to a number of each row."""
    cdef int half = power // 2
    cdef double first, second
    cdef Py_ssize_t k
    if power == 0:
        return
    first = two_to(half)
    second = two_to(power - half)
    for k in range(LANES):
        numbers[k] = numbers[k] * first * second


cdef inline DoubleDouble double_double_of_sum(Sum sum_) noexcept nogil:
    """A sum in what is computed in, in every lane."""
    cdef DoubleDouble result
    result.high = vector_set(<real>sum_.total)
    result.low = vector_set(<real>((sum_.total - <real>sum_.total) + sum_.rest))
    return result


cdef inline mask label_is_top(const Group *group) noexcept nogil:
    """Where the label has the maximum."""
    cdef real[16] apart
    cdef Py_ssize_t k
    for k in range(LANES):
        apart[k] = group.labels[k] != group.recipe.top[k]
    return vector_equal(vector_load(apart), vector_set(0.0))


cdef inline int64_t top_of_row(const Group *group, Py_ssize_t k) noexcept nogil:
    """The class of the maximum; any where there is none."""
    return max(<int64_t>0, group.recipe.top[k]) if k < group.rows else 0


cdef inline void shares_of_others(
    const Group *group, const Problem *problem, double *others, double *lost
) noexcept nogil:
    """What smoothing gives to all classes but that of the maximum, and what that misses."""
    cdef Sum sum_ = even_sum(problem, problem.layout.classes - 1, 0)
    cdef unsigned int known = 0 if problem.shard.given else ~<unsigned int>0
    cdef Py_ssize_t k
    if shares_by_row(problem):
        known = group.weights.unmasked
    numbers_store(others, group.whole.other_coefficients.high)
    numbers_store(lost, group.whole.other_coefficients.low)
    for k in range(LANES if known != 0 else 0):
        if problem.options.other_sums != NULL:
            sum_ = sum_product(problem.even, problem.options.other_sums[top_of_row(group, k)])
        others[k] = sum_.total if known >> k & 1 else others[k]
        lost[k] = sum_.rest if known >> k & 1 else lost[k]


cdef inline DoubleDouble other_coefficients_of_labels(
    const Group *group, const Problem *problem
) noexcept nogil:
    """The sum of all coefficients but that of the maximum, under smoothing."""
    cdef double[16] others
    cdef double[16] lost
    cdef double[16] label
    cdef double total
    cdef Py_ssize_t k
    shares_of_others(group, problem, others, lost)
    memcpy(label, group.weights.label, sizeof(label))
    coefficients_scale(label, problem)
    for k in range(LANES):
        label[k] = label[k] if group.labels[k] != top_of_row(group, k) else 0
    for k in range(LANES):
        total = others[k] + label[k]
        lost[k] += sum_error(others[k], label[k], total)
        others[k] = total
    return double_double_of(others, lost)

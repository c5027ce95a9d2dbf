"""What is known of what a cut keeps: the log of its mass, its entropy, and thresholds made of both.

With w = exp(z) the weights: the mass M, the sum of w; the depth D, the sum of w |z|; the squares Q,
the sum of w^2. A figure of a fast or fine tier comes with a bound, and decides only where all that
lies within the bound decides the same.
"""

from libc.float cimport DBL_EPSILON, DBL_MAX
from libc.math cimport INFINITY, NAN, fabs, frexp, ldexp, sqrt
from libc.stdint cimport INT64_MAX, int64_t

from sampler.core.kernels cimport (
    BLOCK, KEEP_ALL, KEEP_NOTHING, LOG_SLACK, NO_MASS, Cut, Mass, Tempering, blocks_in, isa,
    log_canonical, make_tempering, mass_add, mass_value, nearest, whole_words
)
from sampler.core.row cimport (
    ENTROPY_CANDIDATES, ENTROPY_EXACT, ENTROPY_FINE, EPSILON_CUTOFF, ETA_CUTOFF, EXACT, FINE,
    LOG_MASS_CANDIDATES, MIROSTAT, P_LESS, TOP_A, UNKNOWN, Bounded, RowState, are_candidates,
    candidates_from, count_kept, count_settled, depth_of_candidates, depth_of_row, fine_total,
    has_bounds,
    mass_of_candidates, parts_of, read_kept, refine
)


cdef extern from *:
    """
    static const double LN_2 = 0x1.62e42fefa39efp-1;
    /* More than the logs and the quotient of a threshold lose. */
    static const double THRESHOLD_SLACK = 0x1p-40;
    /* Of a sum of |d| or d^2. In float32: each d rounds once, which counts twice in d^2, its square
     * once, and a lane has 8 additions. The rest is in double. Squares that are too small for
     * float32 lose less than the floor. */
    static const double DEVIATIONS_ERROR = 0x1.8p-21;  /* 12 roundings */
    static const double DEVIATIONS_FLOOR = 0x1p-140;
    """
    const double LN_2
    const double THRESHOLD_SLACK
    const double DEVIATIONS_ERROR
    const double DEVIATIONS_FLOOR


cdef inline double log_of_mass(RowState *s) noexcept nogil:
    """The log of the mass of what the stages kept, on the grid: from the first tier that proves
    it."""
    cdef double log
    if s.greedy:
        return 0.0
    if are_candidates(s, s.cut):
        s.scratch.counts[LOG_MASS_CANDIDATES] += 1
        return on_grid(log_canonical(mass_value(mass_of_candidates(s))))
    if s.tier == UNKNOWN:
        refine(s)
    while True:
        log = proven_log(s.total, s.error)
        if log == log:
            count_settled(s, LOG_MASS_CANDIDATES)
            return log
        refine(s)


cdef inline double entropy_of(RowState *s) noexcept nogil:
    """The entropy of what the stages kept, to the nearest multiple of 2**-30, in nats. With M the
    mass and D the depth, ln M + D / M."""
    cdef double entropy
    if s.greedy:
        return 0.0
    if are_candidates(s, s.cut):
        s.scratch.counts[ENTROPY_CANDIDATES] += 1
        return proven_entropy(Bounded(mass_value(mass_of_candidates(s)), 0.0),
                              Bounded(mass_value(depth_of_candidates(s)), 0.0))
    if s.tier == UNKNOWN:
        refine(s)
    entropy = proven_entropy(Bounded(s.total, s.error), s.depth)
    if entropy != entropy:
        while s.tier != EXACT:
            refine(s)
        s.depth = Bounded(mass_value(depth_of_row(s)), 0.0)
        entropy = proven_entropy(Bounded(s.total, 0.0), s.depth)
    s.scratch.counts[ENTROPY_EXACT if s.depth.error == 0.0 else ENTROPY_FINE] += 1
    return entropy


cdef inline double proven_entropy(Bounded mass, Bounded depth) noexcept nogil:
    """The entropy, rounded, if all that lies within the errors has the same; else NaN. Without
    errors it is the exact one."""
    cdef double low, least = mass.sum - mass.error, most = mass.sum + mass.error
    if mass.error == 0.0 and depth.error == 0.0:
        return rounded_entropy(log_canonical(mass.sum) + depth.sum / mass.sum)
    # Twice the slack: there is a quotient and a sum too.
    low = rounded_entropy(log_canonical(least) + (depth.sum - depth.error) / most
                          - 2.0 * LOG_SLACK)
    return low if low == rounded_entropy(log_canonical(most) + (depth.sum + depth.error) / least
                                         + 2.0 * LOG_SLACK) else NAN


cdef inline double rounded_entropy(double entropy) noexcept nogil:
    """The nearest multiple of 2**-30."""
    return nearest(entropy * 1073741824.0) / 1073741824.0


cdef inline double proven_log(double mass, double error) noexcept nogil:
    """The log of the exact mass, on the grid, if all that lies within the error of this mass has
    the same; else NaN. Without an error it is the exact mass."""
    cdef double low
    if error == 0.0:
        return on_grid(log_canonical(mass))
    low = on_grid(log_canonical(mass - error) - LOG_SLACK)
    return low if low == on_grid(log_canonical(mass + error) + LOG_SLACK) else NAN


cdef inline double on_grid(double log_mass) noexcept nogil:
    """The nearest multiple of 2**-32."""
    return nearest(log_mass * 4294967296.0) / 4294967296.0


cdef inline double log_threshold(int stage, double value, double mass, double depth,
                                 double squares) noexcept nogil:
    """The least z that a cut by probability keeps, from the sums over what is kept: where p = w / M
    reaches e, min(e, sqrt(e) exp(-H)), a pmax^2, the sum of p^2 or 2^-mu."""
    cdef double log_mass = log_canonical(mass), log_value
    if stage == MIROSTAT:
        return log_mass - value * LN_2
    log_value = log_canonical(value)
    if stage == EPSILON_CUTOFF:
        return log_value + log_mass
    if stage == ETA_CUTOFF:  # H = ln M + D / M
        return min(log_value + log_mass, 0.5 * log_value - depth / mass)
    if stage == TOP_A:  # the largest weight is 1
        return log_value - log_mass
    return log_canonical(squares) - log_mass  # P_LESS


cdef inline Cut cut_above(const RowState *s, double z) noexcept nogil:
    """The cut that keeps what is tempered to at least z: x >= max + T z."""
    if z > 1e-12:  # the band of promise 1, in which the largest stay
        return KEEP_NOTHING
    if s.tempering.uniform:
        return KEEP_ALL
    return Cut(max(s.max + s.temperature * min(z, 0.0), -DBL_MAX), INT64_MAX)


cdef inline Cut cut_by_probability(RowState *s, int stage, double value) noexcept nogil:
    """The cut of a threshold on p that depends on sums over what is kept: from the first tier whose
    bounds leave no kept token in doubt."""
    cdef double low, high
    # With the mass.
    cdef bint rises = stage == EPSILON_CUTOFF or stage == ETA_CUTOFF or stage == MIROSTAT
    cdef Cut cut
    if not are_candidates(s, s.cut):
        s.asks_depth = stage == ETA_CUTOFF
        s.asks_squares = stage == P_LESS
        if s.tier == UNKNOWN:
            refine(s)
        while s.tier != EXACT:
            if stage == P_LESS and s.tier == FINE:
                s.squares = fine_squares(s)
            low = log_threshold(stage, value, s.total - s.error if rises else s.total + s.error,
                                s.depth.sum + s.depth.error,
                                max(s.squares.sum - s.squares.error, 0.0))
            high = log_threshold(stage, value, s.total + s.error if rises else s.total - s.error,
                                 s.depth.sum - s.depth.error, s.squares.sum + s.squares.error)
            cut = cut_above(s, low - THRESHOLD_SLACK)
            if no_kept_between(s, cut.value, cut_above(s, high + THRESHOLD_SLACK).value):
                break
            refine(s)
        s.asks_depth = s.asks_squares = False
        if s.tier != EXACT:
            return cut
    return cut_above(s, log_threshold(
        stage, value, mass_value(mass_of_candidates(s)) if are_candidates(s, s.cut) else s.total,
        exact_depth(s) if stage == ETA_CUTOFF else 0.0,
        exact_squares(s) if stage == P_LESS else 0.0))


cdef inline bint no_kept_between(RowState *s, double low, double high) noexcept nogil:
    """Whether no kept token has low <= x < high. The candidates may become others."""
    cdef int64_t i
    if not low < high or high <= s.cut.value:
        return True
    if not candidates_from(s, low, True):
        return (s.row.kernels.count(&s.row, Cut(low, INT64_MAX))
                == s.row.kernels.count(&s.row, Cut(high, INT64_MAX)))
    for i in range(s.candidates.n):
        if s.candidates.values[i] < high:
            return False
    return True


cdef inline double exact_depth(RowState *s) noexcept nogil:
    return mass_value(depth_of_candidates(s) if are_candidates(s, s.cut) else depth_of_row(s))


cdef inline Bounded fine_squares(RowState *s) noexcept nogil:
    """The sum of w^2, which is the mass at half the temperature. Block masses are lost."""
    cdef Tempering half = make_tempering(s.max, s.temperature * 0.5)
    cdef double total = 0.0
    cdef int64_t b
    if not has_bounds(s, &half):
        return Bounded(0.0, INFINITY)
    s.row.kernels.fine_masses(&s.row, &half, s.cut, s.scratch.masses)
    for b in range(blocks_in(&s.row)):
        total += s.scratch.masses[b]
    return fine_total(s, total)


cdef inline double exact_squares(RowState *s) noexcept nogil:
    cdef double x[BLOCK]
    cdef double weights[BLOCK]
    cdef const int64_t *ids
    cdef int64_t part, i, count
    cdef Mass squares = NO_MASS
    for part in range(parts_of(s)):
        count = read_kept(s, part, x, weights, &ids)
        for i in range(whole_words(count)):
            weights[i] *= weights[i]
        add_up_part(&squares, weights, count)
    return mass_value(squares)


cdef inline Bounded deviation_about(RowState *s) noexcept nogil:
    """The population deviation of the kept logits, from sums that are not exact, with a bound."""
    cdef double sums[3]
    cdef double mean, square, variance, error
    s.row.kernels.deviations(&s.row, s.cut, sums)
    mean = sums[1] / sums[0]
    square = sums[2] / sums[0]
    variance = square - mean * mean
    error = DEVIATIONS_ERROR * (square + 2.0 * fabs(mean) * sqrt(square)) + DEVIATIONS_FLOOR
    if not error < variance < INFINITY:
        return Bounded(0.0, INFINITY)
    return Bounded(sqrt(variance), sqrt(variance + error) - sqrt(variance - error))


cdef inline double deviation_of(RowState *s) noexcept nogil:
    """The population deviation of the kept logits. The sums of d = (max - x) 2^-e in [0, 1], 2^e
    the range, and of (d - mean)^2 are exact on the two grids, so their order does not matter."""
    cdef double x[BLOCK]
    cdef const int64_t *ids
    cdef int64_t part, i, count, n = count_kept(s)
    cdef double least = s.max, mean = 0.0, half_range, scale, rest
    cdef Mass sum
    cdef int exponent = 0, moment
    for part in range(parts_of(s)):
        count = read_kept(s, part, x, NULL, &ids)
        for i in range(count):
            least = x[i] if -INFINITY < x[i] < least else least
    half_range = s.max * 0.5 - least * 0.5  # the range itself may overflow
    if half_range == 0.0:
        return 0.0
    if frexp(half_range, &exponent) > 0.5:
        exponent += 1
    scale = ldexp(1.0, -exponent // 2)  # twice, since 2^-exponent may overflow
    rest = ldexp(1.0, -exponent - -exponent // 2)
    for moment in range(2):
        sum = NO_MASS
        for part in range(parts_of(s)):
            count = read_kept(s, part, x, NULL, &ids)
            for i in range(whole_words(count)):
                x[i] = (s.max * scale * rest - x[i] * scale * rest - mean if x[i] > -INFINITY
                        else 0.0)
                if moment == 1:
                    x[i] *= x[i]
            add_up_part(&sum, x, count)
        if moment == 0:
            mean = mass_value(sum) / n
    return ldexp(sqrt(mass_value(sum) / n), exponent)


cdef inline void add_up_part(Mass *mass, const double *weights, int64_t count) noexcept nogil:
    cdef Mass part = isa.sum(weights, count)
    mass_add(mass, part.high, part.low)

"""Typical-p: what is nearest to the entropy.

The distance of a token, abs(-ln p - H), is abs(z - c) with c = -D / M the mean of z: so what is
kept is an interval of logits around c. It is looked for among the first tokens of the row, with c
and M from the first tier whose bounds prove it; where these tokens do not hold it, among all.
"""

from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, fabs
from libc.stdint cimport INT64_MAX, int64_t
from libc.string cimport memcpy

from sampler.core.kernels cimport (
    BLOCK, FLOAT64, NO_MASS, WORD, Candidates, Cut, Mass, Row, block_start, blocks_in, isa,
    halfway, mass_add, mass_value, tempered, whole_words
)
from sampler.core.moments cimport add_up_part, exact_depth
from sampler.core.row cimport (
    EXACT, UNKNOWN, Bounded, Hole, RowState, are_candidates, candidates_from, mass_of_candidates,
    refine, remove_from_top, shorten, trim, weigh_candidates
)
from sampler.core.search cimport gather_first
from sampler.core.select cimport Boundary, find_boundary


cdef enum:
    FIRST_TYPICAL = 64     # how many tokens are tried first; then four times as many, and so on
    LAST_TYPICAL = 1024
    MOST_ROUNDS = 12       # of those, and of rounds after them

# What a look among some tokens finds.
cdef enum:
    TOO_FEW
    UNPROVEN
    FOUND


cdef inline void apply_typical_p(RowState *s, double p) noexcept nogil:
    """Keep the tokens of least distance whose mass is a share p, and what is as near as the
    last."""
    cdef double interval[2]
    cdef int found = UNPROVEN
    cdef Hole hole
    if s.tempering.uniform:
        return  # every token is at the same distance
    if not are_candidates(s, s.cut):
        s.asks_depth = True
        if s.tier == UNKNOWN:
            refine(s)
        while s.tier != EXACT and found == UNPROVEN:
            found = among_first(s, p, s.depth, interval)
            if found == UNPROVEN:
                refine(s)
        s.asks_depth = False
        if found != FOUND:
            among_all(s, p, interval)
    else:
        among_candidates(s, p, Bounded(mass_value(mass_of_candidates(s)), 0.0),
                         Bounded(exact_depth(s), 0.0), INFINITY, interval)
    shorten(s, Cut(interval[0], INT64_MAX))
    if s.max > interval[1]:
        hole.gone = Cut(interval[1], -1)
        hole.spared = -1
        hole.n_ids = 0
        remove_from_top(s, &hole)


cdef inline int among_first(RowState *s, double p, Bounded depth, double *interval) noexcept nogil:
    """Look among the first tokens of the row, then among more: all that are not much further from
    the mean, until these are too many."""
    cdef int64_t k = FIRST_TYPICAL
    cdef double mean = -depth.sum / s.total, reach = 0.0
    cdef int found, _round
    for _round in range(MOST_ROUNDS):
        if k <= LAST_TYPICAL and gather_first(s, k):
            trim(s)
            k *= 4
        else:
            k = INT64_MAX
            if not candidates_from(s, s.max + s.temperature * (mean - max(1.4 * reach, 1.0)), True):
                return TOO_FEW
        if are_candidates(s, s.cut):
            return among_candidates(s, p, Bounded(mass_value(mass_of_candidates(s)), 0.0),
                                    Bounded(exact_depth(s), 0.0), INFINITY, interval)
        # Every other token is at least so far below the mean.
        reach = mean - tempered(&s.tempering, s.covered.value)
        if not reach > 0.0:
            continue
        found = among_candidates(s, p, Bounded(s.total, s.error), depth, reach, interval)
        if found != TOO_FEW:
            return found
    return TOO_FEW


cdef inline int among_candidates(RowState *s, double p, Bounded mass, Bounded depth, double reach,
                                 double *interval) noexcept nogil:
    """Look among the candidates; `reach` is how near the mean a token may be that is not one."""
    cdef double *distances = distances_of(s)
    cdef const double *x = s.candidates.values
    cdef double mean = -depth.sum / mass.sum, error = 0.0
    cdef int64_t i, n = s.candidates.n
    cdef Candidates all = s.candidates
    if mass.error > 0.0 or depth.error > 0.0:
        error = (depth.error - mean * mass.error) / (mass.sum - mass.error)
        error = 2.0 * error + (fabs(mean) - tempered(&s.tempering, s.covered.value)) * 1e-15
    weigh_candidates(s)
    isa.temper(&s.tempering, x, whole_words(n), distances)
    for i in range(whole_words(n)):
        distances[i] = -fabs(distances[i] - mean) if i < n else -INFINITY
    all.values = distances
    return nearest_tokens(s, all, &s.scratch.part, x, p, mass, mean, error, reach, interval)


cdef inline void among_all(RowState *s, double p, double *interval) noexcept nogil:
    """Look among all that is kept, by its exact mass and depth."""
    cdef double *distances = distances_of(s)
    cdef double *weights = distances + room_of(s)
    cdef double x[BLOCK]
    cdef double z[BLOCK]
    cdef double w[BLOCK]
    cdef double mean
    cdef int64_t b, i, count, start
    cdef Mass mass = NO_MASS, depth = NO_MASS, sum
    cdef Candidates all, part
    for b in range(blocks_in(&s.row)):
        count = s.row.kernels.read(&s.row, &s.tempering, s.cut, b, x, w)
        start = block_start(&s.row, b)
        isa.temper(&s.tempering, x, whole_words(count), z)
        memcpy(distances + start, z, count * sizeof(double))
        memcpy(weights + start, w, count * sizeof(double))
        add_up_part(&mass, w, count)
        sum = isa.depth(&s.tempering, x, w, count)
        mass_add(&depth, sum.high, sum.low)
    mean = -mass_value(depth) / mass_value(mass)
    for i in range(s.row.n):
        distances[i] = -fabs(distances[i] - mean)
    for i in range(s.row.n, whole_words(s.row.n)):
        distances[i] = -INFINITY
        weights[i] = 0.0
    # The ids do not matter, but are copied with the others.
    all = Candidates(s.row.n, distances, <int64_t *> distances, weights)
    part.values = weights + room_of(s)
    part.ids = <int64_t *> (part.values + room_of(s) // 2)
    part.weights = part.values + room_of(s)
    nearest_tokens(s, all, &part, NULL, p, Bounded(mass_value(mass), 0.0), mean, 0.0, INFINITY,
                   interval)


cdef inline int nearest_tokens(RowState *s, Candidates all, Candidates *part, const double *x,
                               double p, Bounded mass, double mean, double error, double reach,
                               double *interval) noexcept nogil:
    """The interval of logits of the nearest tokens whose mass reaches the share p, by minus their
    distances, which `error` may be wrong by; x are their logits, if it is not 0."""
    cdef Row doubles = s.row
    cdef Boundary found, counted
    cdef double last, ends = INFINITY
    cdef int64_t i, floor = s.chain.min_tokens_to_keep
    doubles.kind = FLOAT64  # the distances are
    found = find_boundary(&doubles, all, part, True, NO_MASS, p * (mass.sum - mass.error), 0.0)
    if reach < INFINITY and mass_value(found.reached) < p * (mass.sum + mass.error):
        return TOO_FEW if mass_value(found.reached) < p * (mass.sum - mass.error) else UNPROVEN
    last = -found.value
    if floor > 1:
        counted = find_boundary(&doubles, all, part, False, NO_MASS, <double> floor, 0.0)
        if reach < INFINITY and mass_value(counted.reached) < floor:
            return TOO_FEW
        last = max(last, -counted.value)
    if not last + error < reach:
        return TOO_FEW
    for i in range(all.n if error > 0.0 else 0):
        if fabs(all.values[i] + last) <= error:
            # Too near the end to say on which side; unless these are equal, and the last.
            if ends < INFINITY and x[i] != ends:
                return UNPROVEN
            ends = x[i]
    interval[0] = end_of(s, mean, last, False)
    interval[1] = end_of(s, mean, last, True)
    return FOUND


cdef inline double end_of(const RowState *s, double mean, double last, bint upper) noexcept nogil:
    """The least logit that is at most `last` below the mean, or the largest that is at most so far
    above it. Found by halves: tempering keeps the order."""
    cdef double low = -INFINITY, high = s.max, x = s.max, z
    cdef bint within
    while low < x <= high:
        z = max(tempered(&s.tempering, x), -DBL_MAX)
        within = z - mean <= last if upper else mean - z <= last
        if within == upper:
            low = x
        else:
            high = x
        x = halfway(&s.row, low, high)
        if x == high:
            break
    return low if upper else high


cdef inline double *distances_of(RowState *s) noexcept nogil:
    """Room for as many numbers as the row has, and as many again, after the row that a stage may
    have written."""
    return s.scratch.rebased + s.row.n


cdef inline int64_t room_of(const RowState *s) noexcept nogil:
    return s.row.n + 2 * WORD

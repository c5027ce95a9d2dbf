"""Where a prefix in rank ends, in a whole row.

`first_in_rank` finds the first k of a row, among candidates if it can. `search_row` is for where no
candidates hold the boundary: it measures the row at two values at a time until so few tokens are
left between two of them that these can be the candidates, for `select` to answer.
"""

from libc.float cimport DBL_EPSILON
from libc.math cimport INFINITY, ceil, sqrt
from libc.stdint cimport INT64_MAX, int64_t

from sampler.core.kernels cimport (
    FLOORS, KEEP_ALL, KEEP_NOTHING, NO_MASS, Candidates, Cut, Kernels, Mass, Split, blocks_in,
    halfway, isa, least_of, mass_value, maxima_in, whole_words
)
from sampler.core.row cimport (
    EXACT, FINE, TOP_P_CANDIDATES, RowState, add_up, candidates_from, count_settled, fine_error,
    forget_candidates, gather_between, mass_of_candidates, pad, refine, room_for, rounding,
    set_fine_errors, trim, weigh_candidates
)
from sampler.core.select cimport Boundary, Prefix, find_boundary, select, ties_needed


cdef enum:
    PICKED = 2048         # tokens that `search_row` looks at to guess where the boundary lies


cdef inline Cut first_in_rank(RowState *s, int64_t k) noexcept nogil:
    """The cut that keeps the first k of the row."""
    if s.hollow:
        if k >= s.candidates.n and k > 1:
            return s.cut
        return select(s, s.candidates, False, NO_MASS, k, s.max).cut
    if k == 1:
        return Cut(s.max, s.row.kernels.find(&s.row, s.max, 1))
    if k >= s.row.n:
        return KEEP_ALL
    if not (s.covered.value < INFINITY and s.candidates.n >= k):
        if s.covered.value == -INFINITY:
            return KEEP_ALL  # all finite logits are candidates, and they are fewer
        if not gather_first(s, k):
            return search_row(s, False, k)
    return select(s, s.candidates, False, NO_MASS, k, s.max).cut


cdef inline bint gather_first(RowState *s, int64_t k) noexcept nogil:
    """Make the candidates hold the first k of the row in rank, and few more, whatever the cut.
    False where that fails."""
    cdef double low
    if k > maxima_in(blocks_in(&s.row)):
        return False
    low = s.row.kernels.bound(&s.row, k, s.scratch.folded)
    return low > -INFINITY and candidates_from(s, low, False)


# What `search_row` knows: the boundary's logit is in [low, high), and the measure of what is at or
# above either, with the error of the latter.
cdef struct Bracket:
    bint by_mass
    double wanted         # a count, or a share of the mass
    double low
    double high
    double at_low
    double at_high
    double error


cdef inline Cut search_row(RowState *s, bint by_mass, double wanted) noexcept nogil:
    """The cut of the shortest prefix in rank that has `wanted` tokens, or that share of the mass of
    what is kept, by measuring the row at a few values at a time. The candidates do not survive it.

    By mass, it has to be known from some tier.
    """
    cdef Bracket b
    cdef int64_t step = (s.row.n + PICKED - 1) // PICKED, few, room = room_for(s.row.n)
    cdef int64_t first = 0, rounds = 0, above = 0, down_to
    cdef double floors[FLOORS]
    b.by_mass = by_mass
    b.wanted = wanted
    b.low = least_of(&s.row, -INFINITY, True)
    if by_mass:
        b.low = max(b.low, least_of(&s.row, s.cut.value, False))
    b.high = least_of(&s.row, s.max, True)
    b.at_low = s.total if by_mass else <double> s.row.kernels.count(&s.row, KEEP_ALL)
    if not by_mass and wanted >= b.at_low:
        return KEEP_ALL
    if s.row.n <= room:
        candidates_from(s, b.low, by_mass)
        return select(s, s.candidates, by_mass, NO_MASS,
                      wanted * mass_value(mass_of_candidates(s)) if by_mass else wanted, s.max).cut
    b.at_high = 0.0
    b.error = 0.0
    if s.covered.value < INFINITY and s.covered.last == INT64_MAX:
        # The measure of candidates that were too few is known.
        above = s.candidates.n
        b.at_high = mass_value(mass_of_candidates(s)) if by_mass else <double> above
        if b.at_high < (wanted * (s.total - s.error) if by_mass else wanted):
            b.high = least_of(&s.row, s.covered.value, False)
        else:
            above = 0
            b.at_high = 0.0
    while True:
        few = s.row.kernels.pick(&s.row, first, step, b.low, b.high, s.scratch.part.values)
        if (few * step <= room - room // 4
                and gather_between(s, b.low, b.high if b.high <= s.max else INFINITY)):
            return finish_on_candidates(s, &b)
        if least_of(&s.row, b.low, True) >= b.high:
            return finish_on_ties(s, &b)
        # Now and then without a guess: that ends, whatever the values.
        rounds += 1
        down_to = guess(s, &b, few if rounds % 4 else 0, floors)
        # More candidates, if they are likely to do, cost less than a measure.
        if (rounds == 1 and 0 < down_to <= few and above + down_to * step <= room // 2
                and candidates_from(s, floors[1], by_mass)):
            if not by_mass and s.candidates.n >= wanted:
                return select(s, s.candidates, False, NO_MASS, wanted, s.max).cut
            if by_mass and mass_value(mass_of_candidates(s)) >= wanted * (s.total + s.error):
                return finish_top_p(s, wanted)
        if by_mass:
            measure_masses(s, &b, floors)
        else:
            measure_counts(s, &b, floors)
        first = (first + 1) % step


cdef inline int64_t guess(RowState *s, const Bracket *b, int64_t few,
                          double *floors) noexcept nogil:
    """Two values in the bracket that are likely to have the boundary between them, as far as the
    `few` tokens tell that were picked into `part`; returns how many of those reach the second.
    Where they cannot tell, the value that halves the bracket by how many numbers are in it: that
    alone would do; returns 0. The memory of the candidates serves as scratch."""
    cdef double share = (target_of(s, b) - b.at_high) / (b.at_low - b.at_high)
    cdef double rank, spread
    cdef Candidates picked = s.scratch.part
    cdef Split split
    cdef Boundary found
    forget_candidates(s)
    floors[0] = halfway(&s.row, b.low, b.high)
    floors[1] = floors[0]
    if few < 16 or not 0.0 < share <= 1.0:
        return 0
    picked.n = few
    pad(&picked)
    rank = ceil(share * few)
    if b.by_mass:
        isa.weigh(&s.tempering, picked.values, whole_words(few), picked.weights)
        found = find_boundary(&s.row, picked, &s.candidates, True, NO_MASS,
                              share * mass_value(isa.sum(picked.weights, few)), b.high)
        isa.split(picked.values, NULL, few, found.value, &split)
        rank = split.count
    # Standard deviations of the place of a quantile in a sample: it is rarely further off.
    spread = 2.5 * sqrt(rank * (few - rank) / few) + 2.0
    found = find_boundary(&s.row, picked, &s.candidates, False, NO_MASS,
                          max(1.0, rank - spread), b.high)
    if b.low < least_of(&s.row, found.value, True) < b.high:
        floors[0] = least_of(&s.row, found.value, True)
    found = find_boundary(&s.row, picked, &s.candidates, False, NO_MASS,
                          min(<double> few, rank + spread), b.high)
    if not b.low < found.value < b.high:
        return 0
    floors[1] = found.value
    return <int64_t> (rank + spread)


cdef inline double target_of(const RowState *s, const Bracket *b) noexcept nogil:
    return b.wanted * s.total if b.by_mass else b.wanted


cdef inline void measure_counts(RowState *s, Bracket *b, const double *floors) noexcept nogil:
    cdef int64_t counts[FLOORS]
    cdef int i
    s.row.kernels.counts(&s.row, floors, counts)
    for i in range(FLOORS):
        narrow_bracket(b, floors[i], counts[i], 0.0, b.wanted, b.wanted)


cdef inline void measure_masses(RowState *s, Bracket *b, const double *floors) noexcept nogil:
    cdef const Kernels *kernels = s.row.kernels
    cdef double masses[FLOORS]
    cdef double error
    cdef bint moved = False
    cdef int i
    if s.tier == EXACT:
        for i in range(FLOORS):
            masses[i] = mass_value(kernels.exact_mass(&s.row, &s.tempering,
                                                      Cut(floors[i], INT64_MAX), NULL))
            narrow_bracket(b, floors[i], masses[i], 0.0, b.wanted * s.total, b.wanted * s.total)
        return
    kernels.fine_masses_above(&s.row, &s.tempering, s.cut, s.scratch.masses, floors, masses)
    s.tier = FINE
    s.broad = True
    set_fine_errors(s)
    add_up(s)
    for i in range(FLOORS):
        error = fine_error(masses[i], s.row.n) + rounding(s, masses[i])
        moved |= narrow_bracket(b, floors[i], masses[i], error, b.wanted * (s.total - s.error),
                                b.wanted * (s.total + s.error))
    if not moved:
        refine(s)


cdef inline bint narrow_bracket(Bracket *b, double value, double measured, double error,
                                double least, double most) noexcept nogil:
    """Let a measure of what is at or above a value narrow the bracket; the target is between least
    and most. Returns whether it did."""
    if measured + error < least and value < b.high:
        b.high = value
        b.at_high = measured
        b.error = error
        return True
    if measured - error >= most and value > b.low:
        b.low = value
        b.at_low = measured
        return True
    return False


cdef inline Cut finish_top_p(RowState *s, double p) noexcept nogil:
    """The cut of top-p, on candidates that hold the boundary and all before it. Where the answer is
    the same for the least and for the largest total that there can be, it is the answer."""
    cdef Prefix found
    while True:
        found = select(s, s.candidates, True, NO_MASS, p * (s.total - s.error), s.max)
        if s.tier == EXACT or found.reached >= p * (s.total + s.error):
            count_settled(s, TOP_P_CANDIDATES)
            return found.cut
        refine(s)


cdef inline Cut finish_on_candidates(RowState *s, const Bracket *b) noexcept nogil:
    """Finish `search_row` on the candidates, which hold the bracket."""
    cdef Prefix found
    cdef Mass above = NO_MASS
    cdef double least, most
    if not b.by_mass:
        above.high = b.at_high
        return select(s, s.candidates, False, above, b.wanted, b.high).cut
    s.covered = Cut(b.low, INT64_MAX)
    trim(s)  # ties at the end of what is kept
    if b.high <= s.max:
        s.covered = KEEP_NOTHING
    weigh_candidates(s)
    while s.tier != EXACT:
        least = b.wanted * (s.total - s.error) - (b.at_high + b.error)
        most = b.wanted * (s.total + s.error) - (b.at_high - b.error)
        # These differences are of the size of the total, and round by that.
        found = select(s, s.candidates, True, NO_MASS, least - 4.0 * DBL_EPSILON * s.total, b.high)
        if found.reached >= most + 4.0 * DBL_EPSILON * s.total:
            count_settled(s, TOP_P_CANDIDATES)
            return found.cut
        refine(s)
    if b.at_high > 0.0:
        above = s.row.kernels.exact_mass(&s.row, &s.tempering, Cut(b.high, INT64_MAX), NULL)
    count_settled(s, TOP_P_CANDIDATES)
    return select(s, s.candidates, True, above, b.wanted * s.total, b.high).cut


cdef inline Cut finish_on_ties(RowState *s, const Bracket *b) noexcept nogil:
    """Finish `search_row` where all that is left in the bracket is one value, and more tokens of it
    than candidates have room for."""
    cdef const Kernels *kernels = s.row.kernels
    cdef Boundary found
    cdef int64_t ties, last = INT64_MAX
    found.value = b.low
    found.before = NO_MASS
    if b.by_mass:
        while s.tier != EXACT:
            refine(s)
        found.before = kernels.exact_mass(&s.row, &s.tempering, Cut(b.low, -1), NULL)
        count_settled(s, TOP_P_CANDIDATES)
    else:
        found.before.high = kernels.count(&s.row, Cut(b.low, -1))
    if b.by_mass and s.cut.value == b.low:
        last = s.cut.last
    ties = kernels.count(&s.row, Cut(b.low, last)) - kernels.count(&s.row, Cut(b.low, -1))
    ties = ties_needed(&s.tempering, b.by_mass, found, ties, target_of(s, b))
    return Cut(b.low, kernels.find(&s.row, b.low, ties))

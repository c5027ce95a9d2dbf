"""The draw: the token at a uniform, from what the stages kept of a row."""

from libc.stdint cimport int64_t

from sampler.core.job cimport WORK_PER_LOOK, Job, begin_row, interrupts, uniform_of
from sampler.core.kernels cimport (
    BLOCK, NO_MASS, WORD, Mass, block_start, blocks_in, high_part, isa, low_part, mass_add,
    mass_value
)
from sampler.core.row cimport (
    DRAWS_CANDIDATES, EXACT, UNKNOWN, RowState, Scratch, are_candidates, count_settled,
    mass_of_candidates, refine, rounding, weigh_candidates
)
from sampler.core.stages cimport apply_stages


cdef inline bint draw_row(Job *job, int64_t row, Scratch *scratch) noexcept nogil:
    """What `draw_tokens` does with a row. False where it is invalid."""
    cdef RowState s
    cdef int64_t i
    if begin_row(&s, job, row, scratch):
        apply_stages(&s)
        draw_all(&s, job, row, job.tokens + row * job.n)
        return True
    for i in range(job.n):
        job.tokens[row * job.n + i] = -1
    return False


cdef inline void draw_all(RowState *s, Job *job, int64_t row, int64_t *tokens) noexcept nogil:
    """tokens[i] = the token of draw i of what the stages kept."""
    cdef double total
    cdef int64_t i, place, n = s.row.n
    cdef double *cumulative = s.scratch.cumulative
    cdef const int64_t *ids = NULL
    if job.n == 1 or s.greedy:
        for i in range(job.n):
            tokens[i] = draw(s, uniform_of(job, row, i))
        return
    total = accumulate(s, cumulative)
    if are_candidates(s, s.cut):
        n = s.candidates.n
        ids = s.candidates.ids
    for i in range(job.n):
        place = position_above(cumulative, n, uniform_of(job, row, i) * total)
        tokens[i] = place if ids == NULL else ids[place]
        if i % WORK_PER_LOOK == WORK_PER_LOOK - 1 and interrupts(job, s.scratch):
            break


cdef inline int64_t draw(RowState *s, double u) noexcept nogil:
    cdef int64_t token
    if s.greedy:
        return s.cut.last
    if are_candidates(s, s.cut):
        s.scratch.counts[DRAWS_CANDIDATES] += 1
        return draw_candidate(s, u)
    if s.tier == UNKNOWN:
        refine(s)
    while s.tier != EXACT:
        token = draw_proven(s, u)
        if token >= 0:
            count_settled(s, DRAWS_CANDIDATES)
            return token
        refine(s)
    count_settled(s, DRAWS_CANDIDATES)
    return draw_exact(s, u)


cdef inline int64_t draw_candidate(RowState *s, double u) noexcept nogil:
    cdef double target = u * mass_value(mass_of_candidates(s))
    return s.candidates.ids[inverse_cdf(s.candidates.weights, s.candidates.n, NO_MASS, target)]


cdef inline int64_t draw_proven(RowState *s, double u) noexcept nogil:
    """The token at u by the masses of the blocks, or -1 where their error leaves it open.

    With P the mass of the blocks before, Q that of the rest, the target within the block is
    u Q - (1 - u) P, hence its error u error(Q) + (1 - u) error(P).
    """
    cdef Scratch *scratch = s.scratch
    cdef double x[BLOCK]
    cdef double weights[BLOCK]
    cdef double passed = 0.0, passed_error = 0.0, target = u * s.total, error
    cdef double before, after = 0.0
    cdef int64_t b, i, count, blocks = blocks_in(&s.row)
    for b in range(blocks):
        if passed + scratch.masses[b] > target:
            break
        passed += scratch.masses[b]
        passed_error += scratch.errors[b]
    else:
        return -1
    target -= passed
    error = (u * (s.error - passed_error) + (1.0 - u) * passed_error + rounding(s, s.total))
    count = s.row.kernels.read(&s.row, &s.tempering, s.cut, b, x, weights)
    for i in range(count):
        before = after
        after += weights[i]
        if after > target:
            if before <= target - error and after > target + error:
                return block_start(&s.row, b) + i
            return -1
    return -1


cdef inline int64_t draw_exact(RowState *s, double u) noexcept nogil:
    """The token at u by the exact masses of the blocks."""
    cdef Mass *blocks = s.scratch.blocks
    cdef double x[BLOCK]
    cdef double weights[BLOCK]
    cdef Mass passed = NO_MASS, upto
    cdef double target = u * s.total
    cdef int64_t b = 0, count
    for b in range(blocks_in(&s.row)):
        upto = passed
        mass_add(&upto, blocks[b].high, blocks[b].low)
        if mass_value(upto) > target:
            break
        passed = upto
    count = s.row.kernels.read(&s.row, &s.tempering, s.cut, b, x, weights)
    return block_start(&s.row, b) + inverse_cdf(weights, count, passed, target)


cdef inline int64_t inverse_cdf(const double *weights, int64_t n, Mass passed,
                                double target) noexcept nogil:
    """The first place at which the exact cumulative mass, on top of passed, exceeds target; -1 if
    there is none. weights are padded with 0 to whole words."""
    cdef int64_t i, word, first = 0
    cdef Mass upto
    cdef double high
    for word in range((n + WORD - 1) // WORD):
        first = word * WORD
        upto = isa.sum(weights + first, min(<int64_t> WORD, n - first))
        mass_add(&upto, passed.high, passed.low)
        if mass_value(upto) > target:
            break
        passed = upto
    else:
        return -1
    for i in range(first, min(first + WORD, n)):
        high = high_part(weights[i])
        # Without a carry: so few lows add exactly as they are, and the value is rounded once.
        passed.high += high
        passed.low += low_part(weights[i], high)
        if passed.high + passed.low > target:
            return i
    return -1


cdef inline double accumulate(RowState *s, double *cumulative) noexcept nogil:
    """cumulative[i] = the mass of what is kept up to place i of the candidates, or of the row where
    they are not all that is kept; returns the total."""
    cdef double x[BLOCK]
    cdef double weights[BLOCK]
    cdef Mass mass = NO_MASS
    cdef int64_t b, count
    if are_candidates(s, s.cut):
        weigh_candidates(s)
        add_on(s.candidates.weights, s.candidates.n, &mass, cumulative)
    else:
        for b in range(blocks_in(&s.row)):
            count = s.row.kernels.read(&s.row, &s.tempering, s.cut, b, x, weights)
            add_on(weights, count, &mass, cumulative + block_start(&s.row, b))
        s.tier = EXACT  # the total is; that of the blocks is not kept
        s.total = mass_value(mass)
        s.error = 0.0
    return mass_value(mass)


cdef inline void add_on(const double *weights, int64_t n, Mass *mass,
                        double *cumulative) noexcept nogil:
    cdef int64_t i
    cdef double high
    for i in range(n):
        high = high_part(weights[i])
        mass_add(mass, high, low_part(weights[i], high))
        cumulative[i] = mass_value(mass[0])


cdef inline int64_t position_above(const double *cumulative, int64_t n,
                                   double target) noexcept nogil:
    """The first position whose cumulative mass exceeds target; the last one has to."""
    cdef int64_t low = 0, high = n - 1, middle
    while low < high:
        middle = low + (high - low) // 2
        if cumulative[middle] > target:
            high = middle
        else:
            low = middle + 1
    return low

"""The stages: `apply_stages` applies a sampler's chain of them to a row, and each is a function.

What a stage keeps is a prefix in rank, so those that remove tokens return a `Cut`. A scale changes
the temperature, or writes a new row: `rebase`. A new stage takes a number, the name of its
setting, a function, a branch in `apply_stage` and, if it is a scale or asks for the mass of a whole
row, a word in `is_scale` or `complete_chain`: all in this file.
"""

from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, ceil
from libc.stdint cimport INT64_MAX, int64_t

from sampler.core.kernels cimport (
    KEEP_ALL, LANES, NO_MASS, Cut, blocks_in, exp_canonical, log_canonical, mass_value, tempered
)
from sampler.core.row cimport (
    FINE, TOP_P_CANDIDATES, UNKNOWN, Chain, RowState, Step, are_candidates, candidates_from,
    forget_sums, longer, mass_of_candidates, rebase, refine, set_temperature, shorter,
    temper_row, trim
)
from sampler.core.search cimport finish_top_p, first_in_rank, gather_first, search_row
from sampler.core.select cimport select


cdef enum:
    TEMPERATURE
    TOP_K
    TOP_P
    MIN_P
    SMOOTHING

cdef extern from *:
    """
    /* The settings of the stages, in the order of their numbers. */
    static const char *const stage_names[] = {"temperature", "top_k", "top_p", "min_p",
                                             "smoothing"};
    #define N_STAGES ((int)(sizeof stage_names / sizeof *stage_names))
    """
    const char *const stage_names[]
    int N_STAGES

cdef enum:
    FIRST_CANDIDATES = 64   # how many top-p tries first; then CANDIDATES_GROWTH times as many,
    LAST_CANDIDATES = 1024  # and so on up to this many
    CANDIDATES_GROWTH = 4


cdef inline void apply_stages(RowState *s) noexcept nogil:
    """Cut the row by every stage of its chain, in order."""
    cdef int i
    for i in range(s.chain.count):
        if s.greedy:
            return
        apply_stage(s, s.chain.steps[i].stage, s.chain.steps[i].values)


cdef inline void apply_scales(RowState *s) noexcept nogil:
    """The same without the cuts."""
    cdef int i
    for i in range(s.chain.count):
        if is_scale(s.chain.steps[i].stage) and not s.greedy:
            apply_stage(s, s.chain.steps[i].stage, s.chain.steps[i].values)


cdef inline bint is_scale(int stage) noexcept nogil:
    return stage == TEMPERATURE or stage == SMOOTHING


cdef inline void apply_stage(RowState *s, int stage, const double *values) noexcept nogil:
    """One stage; its number is one of the above, since Python's `Chain` takes no other."""
    if stage == TEMPERATURE:
        apply_temperature(s, values[0])
    elif stage == TOP_K:
        apply_cut(s, top_k(s, <int64_t> values[0]))
    elif stage == TOP_P:
        apply_cut(s, top_p(s, values[0]))
    elif stage == MIN_P:
        apply_cut(s, min_p(s, values[0]))
    elif stage == SMOOTHING:
        smooth(s, values[0], values[1])


cdef inline void apply_temperature(RowState *s, double temperature) noexcept nogil:
    """Temper what follows; at 0, keep the first in rank alone."""
    if temperature == 0.0:
        s.cut = first_in_rank(s, 1)
        s.greedy = True
        if are_candidates(s, s.cut):
            trim(s)
    else:
        set_temperature(s, product(s.temperature, temperature))


cdef inline void smooth(RowState *s, double factor, double curve) noexcept nogil:
    """Bend the tempered logits d <= 0 to d^2 (-(3 - curve) / 2 + (curve - 1) / 2 d) factor."""
    cdef double *d = temper_row(s)
    cdef double square = bounded(factor * (3.0 - curve) * -0.5)
    cdef double cube = bounded(factor * (curve - 1.0) * 0.5)
    cdef double bent
    cdef int64_t i
    for i in range(s.row.n):
        bent = bounded(d[i] * d[i] * (square + cube * d[i])) + 0.0  # -0.0 is 0.0
        d[i] = bent if d[i] > -INFINITY else -INFINITY
    rebase(s)


cdef inline double bounded(double x) noexcept nogil:
    """The finite number nearest to x; what is kept stays so."""
    return min(max(x, -DBL_MAX), DBL_MAX)


cdef inline Cut top_k(RowState *s, int64_t k) noexcept nogil:
    """The cut that keeps the first k of the row, or all that are not below the k-th."""
    cdef Cut cut = first_in_rank(s, k)
    if s.chain.ties_all:
        cut.last = INT64_MAX
    return cut


cdef inline Cut top_p(RowState *s, double p) noexcept nogil:
    """The cut that keeps the shortest prefix of what is kept whose share of the mass is >= p."""
    # A bound on the k-th logit is close where there are many times k maxima.
    cdef int64_t k = min(<int64_t> FIRST_CANDIDATES, blocks_in(&s.row) * LANES // 4)
    cdef double low, mass, needed
    if p == 0.0:
        return first_in_rank(s, 1)
    if s.tempering.uniform and not are_candidates(s, s.cut):
        # Every token weighs 1.
        k = <int64_t> ceil(p * s.row.kernels.count(&s.row, s.cut))
        return first_in_rank(s, k)
    if not are_candidates(s, s.cut):
        if s.tier == UNKNOWN and not begin_with_whole(s):
            refine(s)
        needed = p * s.total
        while True:
            # What is missing takes at least as many tokens as if each weighed as much as any can.
            while k <= LAST_CANDIDATES and k < needed:
                k *= CANDIDATES_GROWTH
            if k > LAST_CANDIDATES or not gather_first(s, k):
                return search_row(s, True, p)
            low = s.covered.value
            trim(s)
            if are_candidates(s, s.cut):
                break
            mass = mass_value(mass_of_candidates(s))
            if mass >= p * (s.total + s.error):
                return finish_top_p(s, p)
            needed = (s.candidates.n
                      + (p * s.total - mass) / exp_canonical(tempered(&s.tempering, low)))
            k *= CANDIDATES_GROWTH
    s.scratch.counts[TOP_P_CANDIDATES] += 1
    return select(s, s.candidates, True, NO_MASS, p * mass_value(mass_of_candidates(s)),
                  s.max).cut


cdef inline bint begin_with_whole(RowState *s) noexcept nogil:
    """Take the fine mass of the whole row, if it is known and the one to ask for. That of its
    blocks is not known then."""
    if not (s.whole.error < INFINITY and s.cut.value == -INFINITY
            and s.temperature == s.chain.temperature):
        return False
    s.tier = FINE
    s.total = s.whole.sum
    s.error = s.whole.error
    return True


cdef inline Cut min_p(const RowState *s, double m) noexcept nogil:
    """The cut that keeps x >= max + T ln m."""
    if s.tempering.uniform:
        return KEEP_ALL
    return Cut(max(s.max + s.temperature * log_canonical(m), -DBL_MAX), INT64_MAX)


cdef inline void apply_cut(RowState *s, Cut cut) noexcept nogil:
    """Cut what is kept shorter, to `min_tokens_to_keep` at the shortest, and make it the candidates
    if it is not too much."""
    if s.chain.min_tokens_to_keep > 1:
        cut = longer(cut, first_in_rank(s, s.chain.min_tokens_to_keep))
    s.cut = shorter(s.cut, cut)
    forget_sums(s)
    if are_candidates(s, s.cut):
        trim(s)
    elif s.cut.value > -INFINITY:
        candidates_from(s, s.cut.value, True)


cdef inline double product(double a, double b) noexcept nogil:
    """Temperatures multiply; their product must not reach 0, which means greedy."""
    return max(a * b, 5e-324)


cdef inline void add_step(Chain *chain, Step step) noexcept nogil:
    """Append a stage to a chain, unless it is off there: NaN."""
    if step.values[0] == step.values[0]:
        chain.steps[chain.count] = step
        chain.count += 1


cdef inline void complete_chain(Chain *chain) noexcept nogil:
    """Fill in what follows from the stages of a chain."""
    cdef bint greedy = False, cuts = False, cools
    cdef int i, stage
    chain.temperature = 1.0
    chain.weighs = True
    for i in range(chain.count):
        stage = chain.steps[i].stage
        cools = stage == TEMPERATURE and chain.steps[i].values[0] == 0.0
        if stage == TEMPERATURE:
            chain.temperature = product(chain.temperature, chain.steps[i].values[0])
        chain.rebases |= stage == SMOOTHING
        if is_scale(stage) and not cools:
            continue
        # After a cut by count or by value few tokens are left, and are weighed as candidates.
        if not (greedy or cuts):
            chain.weighs = stage == TOP_P
        greedy |= cools
        cuts |= not cools
    chain.truncates = cuts and not greedy

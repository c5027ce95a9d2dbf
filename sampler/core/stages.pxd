"""The stages: `apply_stages` applies a sampler's chain of them to a row, and each is a function.

What most stages keep is a prefix in rank, so those return a `Cut`. What removes tokens from the top
is a `Hole`. A scale changes the temperature, or writes a new row: `rebase`. CONTRIBUTING.md says
what a new stage takes.
"""

from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, NAN, ceil, fabs
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.string cimport memcpy

from sampler.core.kernels cimport (
    BLOCK, KEEP_ALL, LANES, NO_MASS, Cut, Mass, Tempering, block_start, blocks_in, exp_canonical,
    high_part, isa, log_canonical, low_part, make_tempering, mass_add, mass_value, philox_uniform,
    tempered, whole_words
)
from sampler.core.moments cimport (
    LN_2, cut_above, cut_by_probability, deviation_about, deviation_of, entropy_of, log_of_mass,
    no_kept_between
)
from sampler.core.ranks cimport top_items
from sampler.core.row cimport (
    ADAPTIVE_P, DYNAMIC_TEMPERATURE, EPSILON_CUTOFF, FINE, MIN_P, MIROSTAT, ONLY, SMOOTHING,
    TAIL_FREE, TEMPERATURE, TOP_H, TOP_K, TOP_N_SIGMA, TOP_P, TOP_P_CANDIDATES, TYPICAL_P, UNKNOWN,
    XTC, Bounded, Chain, Hole, Item, RowState, Stage, are_candidates, count_kept, fill_row,
    forget_sums, is_removed, longer, mass_of_candidates, parts_of, read_kept, rebase, refine,
    remove_from_top, set_temperature, shorten, temper_row, trim
)
from sampler.core.search cimport finish_top_p, first_in_rank, gather_first, search_row
from sampler.core.select cimport select
from sampler.core.typical cimport apply_typical_p


cdef extern from *:
    """
    /* The settings of the stages, in the order of their numbers. */
    static const char *const stage_names[] = {
        "temperature", "top_k", "top_p", "min_p", "smoothing", "dynamic_temperature",
        "top_n_sigma", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_a", "tail_free",
        "p_less", "xtc", "mirostat", "adaptive_p", "only"};
    #define N_STAGES ((int)(sizeof stage_names / sizeof *stage_names))
    """
    const char *const stage_names[]
    int N_STAGES

cdef enum:
    FIRST_CANDIDATES = 64   # how many top-p tries first; then CANDIDATES_GROWTH times as many,
    LAST_CANDIDATES = 1024  # and so on up to this many
    CANDIDATES_GROWTH = 4
    TOP_H_TOKENS = 100
    MIROSTAT_TOKENS = 100


cdef inline void apply_stages(RowState *s) noexcept nogil:
    """Cut the row by every stage of its chain, in order."""
    cdef int i
    for i in range(s.chain.count):
        if s.greedy:
            return
        apply_stage(s, &s.chain.stages[i])


cdef inline void apply_scales(RowState *s) noexcept nogil:
    """The same without the cuts."""
    cdef int i
    for i in range(s.chain.count):
        if is_scale(&s.chain.stages[i]) and not s.greedy:
            apply_stage(s, &s.chain.stages[i])


cdef inline bint is_scale(const Stage *stage) noexcept nogil:
    return (stage.number == TEMPERATURE or stage.number == DYNAMIC_TEMPERATURE
            or stage.number == SMOOTHING or stage.number == ADAPTIVE_P
            or (stage.number == XTC and is_expected(stage)))


cdef inline void apply_stage(RowState *s, const Stage *stage) noexcept nogil:
    """One stage; its number is one of those in row.pxd, since Python's `Chain` takes no other."""
    cdef int number = stage.number
    cdef double value = stage.values[0]
    if number == TEMPERATURE:
        apply_temperature(s, value)
    elif number == TOP_K:
        apply_cut(s, top_k(s, <int64_t> value))
    elif number == TOP_P:
        apply_cut(s, top_p(s, value))
    elif number == MIN_P:
        apply_cut(s, cut_above(s, log_canonical(value)))
    elif number == SMOOTHING:
        apply_smoothing(s, value, stage.values[1])
    elif number == DYNAMIC_TEMPERATURE:
        apply_dynamic_temperature(s, value, stage.values[1], stage.values[2])
    elif number == TOP_N_SIGMA:
        apply_cut(s, top_n_sigma(s, value))
    elif number == TOP_H:
        apply_cut(s, top_h(s, value))
    elif number == TYPICAL_P:
        apply_typical_p(s, value)
    elif number == TAIL_FREE:
        apply_cut(s, tail_free(s, value))
    elif number == XTC:
        apply_xtc(s, stage)
    elif number == MIROSTAT:
        apply_cut(s, cut_by_probability(s, MIROSTAT, s.memory) if value == 2.0 else mirostat_1(s))
    elif number == ADAPTIVE_P:
        apply_adaptive_p(s)
    elif number == ONLY:
        keep_only(s)
    else:
        apply_cut(s, cut_by_probability(s, number, value))


cdef inline void apply_temperature(RowState *s, double temperature) noexcept nogil:
    """Temper what follows; at 0, keep the first in rank alone."""
    if temperature == 0.0:
        s.cut = first_in_rank(s, 1)
        s.greedy = True
        if are_candidates(s, s.cut):
            trim(s)
    else:
        set_temperature(s, product(s.temperature, temperature))


cdef inline void apply_smoothing(RowState *s, double factor, double curve) noexcept nogil:
    """Bend the tempered logits d <= 0 to d^2 (-(3 - curve) / 2 + (curve - 1) / 2 d) factor."""
    cdef double *d = temper_row(s)
    cdef double square = bounded(factor * (3.0 - curve) * -0.5)
    cdef double cube = bounded(factor * (curve - 1.0) * 0.5)
    cdef double bent
    cdef int64_t i
    for i in range(s.row.n):
        bent = bounded(d[i] * d[i] * (square + cube * d[i])) + 0.0  # -0.0 is 0.0
        d[i] = bent if d[i] > -INFINITY else -INFINITY
    rebase(s, 1.0)


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


cdef inline void apply_cut(RowState *s, Cut cut) noexcept nogil:
    """Cut what is kept shorter, to `min_tokens_to_keep` at the shortest, and make it the candidates
    if there is room for them."""
    if cut.value > s.max:
        cut = first_in_rank(s, 1)
    if s.chain.min_tokens_to_keep > 1:
        cut = longer(cut, first_in_rank(s, s.chain.min_tokens_to_keep))
    shorten(s, cut)


cdef inline void apply_dynamic_temperature(RowState *s, double low, double high,
                                           double exponent) noexcept nogil:
    """Temper by a temperature from low to high that grows with the entropy."""
    cdef double share, power
    cdef int64_t n = count_kept(s)
    cdef bint reports = s.reports
    if n == 1:
        return
    s.reports = True  # so that the depth is found as well
    share = min(entropy_of(s) / log_canonical(<double> n), 1.0)
    s.reports = reports
    power = exp_canonical(exponent * log_canonical(share)) if exponent > 0.0 else 1.0
    apply_temperature(s, low + (high - low) * power)


cdef inline Cut top_n_sigma(RowState *s, double n) noexcept nogil:
    """The cut that keeps x >= max - n sigma."""
    cdef Bounded about
    cdef double deviation, low, high
    if s.tempering.uniform:
        return KEEP_ALL
    if not are_candidates(s, s.cut):
        about = deviation_about(s)
        low = s.max - n * (about.sum + about.error)
        high = s.max - n * (about.sum - about.error)
        # More than the differences lose.
        low = max(low - (fabs(s.max) + fabs(low)) * 1e-15, -DBL_MAX)
        high += (fabs(s.max) + fabs(high)) * 1e-15
        if about.error < INFINITY and no_kept_between(s, low, high):
            return Cut(low, INT64_MAX)
    deviation = deviation_of(s)
    if deviation == 0.0:
        return KEEP_ALL
    return Cut(max(s.max - n * deviation, -DBL_MAX), INT64_MAX)


cdef inline int64_t sort_kept(RowState *s, int64_t most) noexcept nogil:
    """The first of what is kept in rank into the scratch's items; returns how many."""
    return top_items(s, min(most, count_kept(s)), s.scratch.items)


cdef inline double weight_of(const RowState *s, const Item *item) noexcept nogil:
    return exp_canonical(tempered(&s.tempering, item.value))


cdef inline void add_weight(Mass *sum, double weight) noexcept nogil:
    cdef double high = high_part(weight)
    mass_add(sum, high, low_part(weight, high))


cdef inline Cut top_h(RowState *s, double h) noexcept nogil:
    """The cut that keeps, of the first 100, the longest prefix whose part of their entropy is at
    most h of it."""
    cdef double z[TOP_H_TOKENS]
    cdef double part[TOP_H_TOKENS]
    cdef double log_mass, rest = 0.0, largest = 0.0
    cdef Tempering from_second
    cdef bint one_leads = False
    cdef Mass entropy = NO_MASS, reached = NO_MASS
    cdef int64_t i, n = sort_kept(s, TOP_H_TOKENS)
    cdef const Item *items = s.scratch.items
    for i in range(n):
        z[i] = max(tempered(&s.tempering, items[i].value), -DBL_MAX)
    if n > 1 and z[1] < -600.0:
        # The weights of all but the first might underflow, and only shares matter.
        one_leads = True
        from_second = make_tempering(items[1].value, s.temperature)
    for i in range(n - 1, 0, -1):
        part[i] = exp_canonical(tempered(&from_second, items[i].value) if one_leads else z[i])
        rest += part[i]
    # ln(1 + rest), where 1 + rest would lose it.
    log_mass = rest * (1.0 - 0.5 * rest) if rest < 1e-8 else log_canonical(1.0 + rest)
    # q times the mass, which does not matter.
    part[0] = rest if one_leads else log_mass
    for i in range(1, n):
        part[i] = part[i] * ((0.0 if one_leads else log_mass) - z[i]) if part[i] > 0.0 else 0.0
    for i in range(n):
        largest = max(largest, part[i])
    if largest == 0.0 and h < 1.0:
        n = 1  # of no entropy the first has all
    for i in range(n):  # in parts of the largest, so that the grids hold them
        add_weight(&entropy, part[i] / largest if largest > 0.0 else 0.0)
    for i in range(n):
        add_weight(&reached, part[i] / largest if largest > 0.0 else 0.0)
        if mass_value(reached) > h * mass_value(entropy):
            break
    else:
        i = n
    i = max(i, <int64_t> 1) - 1
    return Cut(items[i].value, items[i].id)


cdef inline Cut tail_free(RowState *s, double z) noexcept nogil:
    """The cut that keeps as many tokens as there are bends before their running share exceeds z."""
    cdef double mass, whole = 0.0
    cdef int64_t i, last, n = sort_kept(s, s.row.n)
    cdef const Item *items = s.scratch.items
    cdef Mass sum = NO_MASS
    if n <= 2:
        return KEEP_ALL
    for i in range(n):
        add_weight(&sum, weight_of(s, &items[i]))
    mass = mass_value(sum)
    bends_until(s, items, n, mass, INFINITY, &whole)
    last = bends_until(s, items, n, mass, z * whole if whole > 1e-6 else -z, &whole)
    if last == n - 2:
        return KEEP_ALL
    last = max(last, <int64_t> 1) - 1
    return Cut(items[last].value, items[last].id)


cdef inline int64_t bends_until(const RowState *s, const Item *items, int64_t n, double mass,
                                double limit, double *reached) noexcept nogil:
    """How many of the n - 2 bends of the sorted probabilities there are before their running sum
    exceeds the limit; below 0 the limit is of a share, and each bend counts the same."""
    cdef double first = weight_of(s, items) / mass, second = weight_of(s, items + 1) / mass, third
    cdef int64_t i
    cdef Mass sum = NO_MASS
    for i in range(n - 2):
        third = weight_of(s, items + i + 2) / mass
        add_weight(&sum, fabs((first - second) - (second - third)))
        first = second
        second = third
        if mass_value(sum) > limit if limit >= 0.0 else <double> (i + 1) / (n - 2) > -limit:
            return i
    reached[0] = mass_value(sum)
    return n - 2


cdef inline Cut mirostat_1(RowState *s) noexcept nogil:
    """The cut that keeps the first k in rank: so many that a row as steep as the first 100 tokens
    are, by a Zipf law of their exponent, would have the surprise mu."""
    cdef double slope, sum = 0.0, squares = 0.0, above, below, t, excess, log_vocab, log_k
    cdef int64_t i, n = sort_kept(s, MIROSTAT_TOKENS)
    cdef const Item *items = s.scratch.items
    if n == 1:
        return KEEP_ALL
    above = bounded(tempered(&s.tempering, items[0].value))
    for i in range(1, n):
        below = bounded(tempered(&s.tempering, items[i].value))
        t = log_canonical(<double> (i + 1) / <double> i)
        sum += t * (above - below)
        squares += t * t
        above = below
    slope = bounded(sum / squares)
    if slope <= 0.0:
        return KEEP_ALL
    log_vocab = log_canonical(<double> s.row.n)
    excess = slope - 1.0
    log_k = bounded((s.memory * LN_2 - log_of_zipf(excess, log_vocab)) / slope)
    if log_k >= log_vocab:
        return KEEP_ALL
    return first_in_rank(s, max(<int64_t> 1, <int64_t> exp_canonical(max(log_k, -1.0))))


cdef inline double log_of_zipf(double e, double log_vocab) noexcept nogil:
    """ln((1 - V^-e) / e), for e of either sign, and ln ln V for 0."""
    cdef double x = fabs(e) * log_vocab
    if x < 1e-4:  # (1 - exp(-x)) / x = 1 - x / 2 + x^2 / 6 - ...
        x = e * log_vocab
        return log_canonical(log_vocab * (1.0 - x * (0.5 - x / 6.0)))
    return (log_canonical((1.0 - exp_canonical(-x)) / fabs(e)) + (x if e < 0.0 else 0.0))


cdef inline void apply_adaptive_p(RowState *s) noexcept nogil:
    """Give every kept token a new logit, the larger the nearer its probability is to the target;
    the probabilities themselves stay in scratch, after the row: see `seen_by_memory`."""
    cdef double log_mass = log_of_mass(s), distance
    cdef double *z = temper_row(s)
    cdef double *p = probabilities_after(s)
    cdef Tempering plain = make_tempering(0.0, 1.0)
    cdef int64_t i
    for i in range(s.row.n):
        p[i] = min(z[i] - log_mass, 0.0)
    for i in range(s.row.n, whole_words(s.row.n)):
        p[i] = -INFINITY
    isa.weigh(&plain, p, whole_words(s.row.n), p)
    for i in range(s.row.n):
        if z[i] > -INFINITY:
            distance = fabs(p[i] - s.memory) / 0.3
            z[i] = 5.0 - 10.0 * distance * distance / (1.0 + distance)
    rebase(s, 1.0)


cdef inline double *probabilities_after(const RowState *s) noexcept nogil:
    return s.scratch.rebased + whole_words(s.row.n)


cdef inline double seen_by_memory(const RowState *s, int64_t token, double logprob) noexcept nogil:
    """What the state goes on from: of Mirostat the log-probability of the token, of adaptive-p its
    probability before; NaN where the row is greedy, does not keep it or has no such stage."""
    cdef int number
    if s.greedy or s.chain.count == 0 or logprob == -INFINITY:
        return NAN
    number = s.chain.stages[s.chain.count - 1].number
    if number == MIROSTAT:
        return logprob
    if number == ADAPTIVE_P:
        return probabilities_after(s)[token]
    return NAN


cdef inline void apply_xtc(RowState *s, const Stage *stage) noexcept nogil:
    """Where the coin falls, remove the likely tokens except the last of them in rank."""
    cdef double x[BLOCK]
    cdef const int64_t *ids
    cdef double probability = stage.values[1], least = INFINITY
    cdef Hole hole
    cdef int64_t part, i, id, count, likely = 0, last = -1
    if not is_expected(stage) and not coin(s, stage.lane) < probability:
        return
    hole.gone = cut_by_probability(s, EPSILON_CUTOFF, stage.values[0])
    hole.spared = -1
    hole.ids = stage.ids
    hole.n_ids = stage.n_ids
    for part in range(parts_of(s)):
        count = read_kept(s, part, x, NULL, &ids)
        for i in range(count):
            id = block_start(&s.row, part) + i if ids == NULL else ids[i]
            if x[i] > -INFINITY and is_removed(&hole, x[i], id):
                likely += 1
                if x[i] <= least:  # of equal ones the last, since ids ascend
                    least = x[i]
                    last = id
    hole.spared = last
    if likely < 2:
        return
    if is_expected(stage) and probability < 1.0:
        weigh_down(s, &hole, probability)
    elif count_kept(s) - (likely - 1) >= s.chain.min_tokens_to_keep:
        remove_from_top(s, &hole)


cdef inline void keep_only(RowState *s) noexcept nogil:
    """Make the row of the tokens that the call says were kept: one of them at least is, so far."""
    cdef double x[BLOCK]
    cdef int64_t b, i, start, count, found = 0
    fill_row(s)
    for b in range(blocks_in(&s.row)):
        count = s.row.kernels.read(&s.row, NULL, s.cut, b, x, NULL)
        start = block_start(&s.row, b)
        for i in range(count):
            s.scratch.rebased[start + i] = -INFINITY
            if found < s.n_only and s.only[found] == start + i:
                s.scratch.rebased[start + i] = x[i]
                found += 1
    rebase(s, s.temperature)


cdef inline bint is_expected(const Stage *stage) noexcept nogil:
    return stage.values[2] == 1.0


cdef inline double coin(const RowState *s, uint64_t lane) noexcept nogil:
    return philox_uniform(s.key.seed, s.key.stream, s.key.step, s.key.draw, lane)


cdef inline void weigh_down(RowState *s, const Hole *hole, double q) noexcept nogil:
    """Multiply the weights of what would go, of mass m, by (1 - q) / (1 + q m / (1 - m)). In logs:
    either mass may be so much smaller than the other that it underflows."""
    cdef double x[BLOCK]
    cdef double z[BLOCK]
    cdef double largest[2]
    cdef Mass masses[2]
    cdef double log
    cdef int64_t b, i, start, count
    cdef int goes, look
    fill_row(s)
    largest[0] = largest[1] = -INFINITY
    masses[0] = masses[1] = NO_MASS
    for look in range(2):
        for b in range(blocks_in(&s.row)):
            count = s.row.kernels.read(&s.row, NULL, s.cut, b, x, NULL)
            isa.temper(&s.tempering, x, whole_words(count), z)
            for i in range(count):
                if x[i] > -INFINITY:
                    goes = is_removed(hole, x[i], block_start(&s.row, b) + i)
                    if look == 0:
                        largest[goes] = max(largest[goes], z[i])
                    else:
                        add_weight(&masses[goes], exp_canonical(z[i] - largest[goes]))
    log = (log_canonical(q) + largest[1] + log_canonical(mass_value(masses[1]))
           - largest[0] - log_canonical(mass_value(masses[0])))  # of q m / (1 - m)
    log = (log_canonical(1.0 - q) - max(log, 0.0)
           - log_canonical(1.0 + exp_canonical(-fabs(log))))
    for b in range(blocks_in(&s.row)):
        count = s.row.kernels.read(&s.row, NULL, s.cut, b, x, NULL)
        start = block_start(&s.row, b)
        isa.temper(&s.tempering, x, whole_words(count), z)
        for i in range(count):
            if is_removed(hole, x[i], start + i):
                z[i] = bounded(z[i] + log)
        memcpy(s.scratch.rebased + start, z, count * sizeof(double))
    rebase(s, 1.0)


cdef inline double product(double a, double b) noexcept nogil:
    """Temperatures multiply; their product must not reach 0, which means greedy."""
    return max(a * b, 5e-324) if a == a else a


cdef inline void add_stage(Chain *chain, Stage stage) noexcept nogil:
    """Append a stage to a chain, unless it is off there: NaN."""
    if stage.values[0] == stage.values[0]:
        chain.stages[chain.count] = stage
        chain.count += 1


cdef inline void complete_chain(Chain *chain) noexcept nogil:
    """Fill in what follows from the stages of a chain."""
    cdef bint greedy = False, cuts = False, cools
    cdef int i, number
    chain.temperature = 1.0
    chain.weighs = True
    for i in range(chain.count):
        number = chain.stages[i].number
        cools = number == TEMPERATURE and chain.stages[i].values[0] == 0.0
        if number == TEMPERATURE:
            chain.temperature = product(chain.temperature, chain.stages[i].values[0])
        elif number == DYNAMIC_TEMPERATURE:
            chain.temperature = NAN
        elif number == TYPICAL_P:
            chain.room = 5  # for a row, distances, weights, and some of those
        elif number == SMOOTHING or number == XTC or number == ONLY:
            chain.room = max(chain.room, 1)
        elif number == ADAPTIVE_P:
            chain.room = max(chain.room, 2)  # for a row and its probabilities
        elif number == MIROSTAT:
            chain.sorts = max(chain.sorts, <int64_t> MIROSTAT_TOKENS)
        elif number == TOP_H:
            chain.sorts = max(chain.sorts, <int64_t> TOP_H_TOKENS)
        elif number == TAIL_FREE:
            chain.sorts = INT64_MAX
        chain.has_coins |= number == XTC and not is_expected(&chain.stages[i])
        if is_scale(&chain.stages[i]) and not cools:
            continue
        # After a cut by count or by value few tokens are left, and are weighed as candidates.
        if not (greedy or cuts):
            chain.weighs = not (number == TEMPERATURE or number == TOP_K or number == MIN_P
                                or number == TOP_N_SIGMA or number == TOP_H)
        greedy |= cools
        cuts |= not cools
    chain.truncates = cuts and not greedy

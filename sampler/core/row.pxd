"""The state of a row: its cut, its candidates, and its mass by tiers.

`scan_row` reads the row and begins its `RowState`. The candidates are a few tokens of the row, on
which the stages and the draw work wherever they can; `gather_between` finds them. Where they do
not hold all that is kept, `refine` finds the mass of what is kept from the next tier: fast, fine,
exact.
"""

from libc.float cimport DBL_EPSILON, DBL_MAX
from libc.math cimport INFINITY
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.string cimport memcpy

from sampler.core.kernels cimport (
    BLOCK, FAST_FLOOR_ERROR, FAST_MOMENT_ERROR, FINE_DEPTH_FLOOR_ERROR, FINE_FLOOR_ERROR,
    FINE_WEIGHT_ERROR, FLOAT64, KEEP_ALL, KEEP_NOTHING, LANES, NO_MASS, WORD, Candidates, Cut,
    Kernels, Mass, Row, Tempering, block_start, blocks_in, isa, keeps, make_row, make_tempering,
    mass_add, mass_value, whole_words
)


# The stages, by the numbers that a `Stage` has: in the order of `stage_names`, in stages.pxd.
cdef enum:
    TEMPERATURE
    TOP_K
    TOP_P
    MIN_P
    SMOOTHING
    DYNAMIC_TEMPERATURE
    TOP_N_SIGMA
    TOP_H
    TYPICAL_P
    EPSILON_CUTOFF
    ETA_CUTOFF
    TOP_A
    TAIL_FREE
    P_LESS
    XTC
    MIROSTAT
    ADAPTIVE_P
    ONLY


cdef enum:
    PARAMETERS = 3        # the most numbers that a stage has
    SMALL = 256           # all tokens of a row up to this long are candidates from the start
    MOST_ALLOWED = 2048   # and all that are allowed, where edits leave no more of a longer row
    LEAST_ROOM = 4096     # how many candidates there is room for in a short row
    FAST_FROM = 512       # below this many tokens the exact mass costs less than proving another

# Where a mass comes from, cheapest first.
cdef enum:
    UNKNOWN
    FAST
    FINE
    EXACT

# How questions were settled: see `counts` in _core.pyx. Each kind counts the candidates first, then
# the tiers in order.
cdef enum:
    DRAWS_CANDIDATES
    DRAWS_FAST
    DRAWS_FINE
    DRAWS_EXACT
    TOP_P_CANDIDATES
    TOP_P_FAST
    TOP_P_FINE
    TOP_P_EXACT
    LOG_MASS_CANDIDATES
    LOG_MASS_FAST
    LOG_MASS_FINE
    LOG_MASS_EXACT
    ENTROPY_CANDIDATES
    ENTROPY_FAST
    ENTROPY_FINE
    ENTROPY_EXACT
    COUNTERS


# A token with its place in some array; sorts by rank.
cdef struct Item:
    double value
    int64_t id
    int64_t place


# Everything a thread needs except the result, for rows of up to `vocab` logits.
cdef struct Scratch:
    int64_t vocab
    void *arena            # what the next ones point into
    void *maxima           # of the row
    void *folded           # room for as many
    uint64_t *mask         # of the row, aligned to its blocks
    uint64_t *marks        # a bit per token: see `mark_kept`
    Candidates candidates  # tokens of the row, ids ascending
    Candidates part        # some of those, or of the row
    double *masses         # one per block: the fast or the fine mass, and its error
    double *errors
    Mass *blocks           # one per block: the exact mass
    int64_t cumulative_size
    double *cumulative     # one per token, for several draws from one row only
    int64_t items_size
    Item *items            # for top lists and for ranking draws only
    int64_t rebased_size
    double *rebased        # what stages write: `Chain.room` numbers per token
    int64_t bad_row        # the first invalid row that this thread met
    int64_t counts[COUNTERS]


# A sum over tokens, and a bound on its distance from the exact one: +inf where nothing is known.
cdef struct Bounded:
    double sum
    double error


# A stage of a chain: its number, the values of its parameters, the lane of its coin, and token ids,
# ascending.
cdef struct Stage:
    int number
    double values[PARAMETERS]
    uint64_t lane
    const int64_t *ids
    int64_t n_ids


# The address of a draw: what its uniform and the coins of its stages are made of.
cdef struct Key:
    uint64_t seed
    uint64_t stream
    uint64_t step
    uint64_t draw


# The stages that are on in a row, in order, and what follows from them: see `complete_chain`.
cdef struct Chain:
    int count
    Stage *stages
    bint ties_all
    int64_t min_tokens_to_keep
    int tier               # the first to try
    bint weighs            # whether the mass of the whole row may be asked for
    double temperature     # the product of all; NaN where one depends on the row
    bint truncates         # removes tokens, and is not greedy
    int room               # how many numbers per token its stages want to write, in `rebased`
    int64_t sorts          # how many tokens they sort
    bint has_coins


cdef struct RowState:
    Scratch *scratch
    const Chain *chain
    Row row
    Key key
    bint rebased           # whether the row is not the one that came in
    bint hollow            # whether the candidates are the row: what was removed is still in memory
    bint ranks_any         # whether the ranks of other tokens than the kept ones will be asked for
    double max
    double temperature
    Tempering tempering
    bint greedy            # temperature 0: the first in rank alone
    Cut cut                # what is kept so far
    Candidates candidates  # all of the row that `covered` keeps; within the cut, once the cut is
    Cut covered            # KEEP_NOTHING from before anything else is written to their memory
    bint weighed           # whether the candidates have their weights
    int tier               # where the mass of what the cut keeps is known from
    double total
    double error
    Bounded depth          # the sum of w |z| of what the cut keeps
    Bounded squares        # and that of w^2
    bint broad             # so many tokens share the mass that the fast one proves little
    bint reports           # the log of the mass and the entropy will be asked for
    bint asks_depth        # the depth will be, and a bound may do
    bint asks_squares      # and so with the squares
    double memory          # what the state says to a stage with memory
    const int64_t *only    # the ids that the stage ONLY keeps, ascending
    int64_t n_only
    Bounded raw            # the mass of the whole row at temperature 1
    Bounded whole          # and at the chain's


cdef inline bint scan_row(RowState *s, Scratch *scratch, const Chain *chain,
                          Row row) noexcept nogil:
    """Read the row once, and begin its state. False where it holds NaN, +inf or no finite logit."""
    cdef int64_t allowed
    if row.edits != NULL and row.edits.allowed != NULL:
        isa.align(&row, scratch.mask)
        row.allowed = scratch.mask
    allowed = row.kernels.scan(&row, scratch.maxima)
    row.maxima = scratch.maxima
    s.scratch = scratch
    s.chain = chain
    s.row = row
    s.rebased = False
    s.hollow = False
    s.max = row.kernels.top(&row) + 0.0  # of 0.0 and -0.0 either may be found first
    s.greedy = False
    s.cut = KEEP_ALL
    s.candidates = scratch.candidates
    s.covered = KEEP_NOTHING
    s.broad = False
    s.reports = False
    s.asks_depth = s.asks_squares = False
    s.raw = s.whole = Bounded(0.0, INFINITY)
    if not -INFINITY < s.max < INFINITY:
        return False
    set_temperature(s, 1.0)
    if (allowed <= (SMALL if row.edits == NULL else MOST_ALLOWED)
            and candidates_from(s, -DBL_MAX, False)):
        s.covered = KEEP_ALL
    return True


cdef inline double *temper_row(RowState *s) noexcept nogil:
    """The tempered logits of what is kept, -inf elsewhere, in scratch: for a stage to change, and
    `rebase` to make the row."""
    cdef double x[BLOCK]
    cdef double z[BLOCK]
    cdef int64_t b, count
    fill_row(s)
    for b in range(blocks_in(&s.row)):
        count = s.row.kernels.read(&s.row, NULL, s.cut, b, x, NULL)
        isa.temper(&s.tempering, x, whole_words(count), z)
        memcpy(s.scratch.rebased + block_start(&s.row, b), z, count * sizeof(double))
    return s.scratch.rebased


cdef inline void rebase(RowState *s, double temperature) noexcept nogil:
    """Make what a stage has written to scratch the row, at that temperature: doubles, of which at
    least one is finite and none is NaN or +inf."""
    cdef Row row = make_row(<const char *> s.scratch.rebased, sizeof(double), s.row.n, FLOAT64,
                            False)
    cdef bint reports = s.reports
    scan_row(s, s.scratch, s.chain, row)
    s.reports = reports
    s.rebased = True
    set_temperature(s, temperature)


# What a stage removes from the top: the tokens that `gone` keeps, except some. Ids ascend.
cdef struct Hole:
    Cut gone
    int64_t spared         # -1 for none
    const int64_t *ids
    int64_t n_ids


cdef inline bint is_removed(const Hole *hole, double x, int64_t id) noexcept nogil:
    cdef int64_t low = 0, high = hole.n_ids, middle
    if not keeps(hole.gone, x, id) or id == hole.spared:
        return False
    while low < high:
        middle = low + (high - low) // 2
        if hole.ids[middle] < id:
            low = middle + 1
        else:
            high = middle
    return not (low < hole.n_ids and hole.ids[low] == id)


cdef inline void remove_from_top(RowState *s, const Hole *hole) noexcept nogil:
    """Make what a hole leaves of what is kept the row. Where all of it are candidates, only their
    list changes: `fill_row` writes the row itself where something wants it."""
    cdef double x[BLOCK]
    cdef int64_t b, i, start, count, n = 0
    if are_candidates(s, s.cut) and not s.ranks_any:
        s.max = -INFINITY
        for i in range(s.candidates.n):
            if not is_removed(hole, s.candidates.values[i], s.candidates.ids[i]):
                s.candidates.values[n] = s.candidates.values[i]
                s.candidates.ids[n] = s.candidates.ids[i]
                s.max = max(s.max, s.candidates.values[n])
                n += 1
        s.candidates.n = n
        pad(&s.candidates)
        s.max += 0.0
        s.covered = s.cut
        s.rebased = s.hollow = True
        set_temperature(s, s.temperature)
        return
    for b in range(blocks_in(&s.row)):
        count = s.row.kernels.read(&s.row, NULL, s.cut, b, x, NULL)
        start = block_start(&s.row, b)
        for i in range(count):
            s.scratch.rebased[start + i] = (-INFINITY if is_removed(hole, x[i], start + i)
                                            else x[i])
    rebase(s, s.temperature)


cdef inline void fill_row(RowState *s) noexcept nogil:
    """Write the row that the candidates are, if the one in memory is another."""
    cdef int64_t i
    if not s.hollow:
        return
    for i in range(s.row.n):
        s.scratch.rebased[i] = -INFINITY
    for i in range(s.candidates.n):
        s.scratch.rebased[s.candidates.ids[i]] = s.candidates.values[i]
    rebase(s, s.temperature)


cdef inline int64_t parts_of(const RowState *s) noexcept nogil:
    """In how many parts `read_kept` reads what is kept."""
    if are_candidates(s, s.cut):
        return (s.candidates.n + BLOCK - 1) // BLOCK
    return blocks_in(&s.row)


cdef inline int64_t read_kept(RowState *s, int64_t part, double *x, double *weights,
                              const int64_t **ids) noexcept nogil:
    """A part of what is kept: the logits, -inf where there is nothing, the canonical weights unless
    that is NULL, both padded to whole words, and the ids: NULL where they count up from the start
    of the block. Returns how many, BLOCK at most."""
    cdef int64_t count, start = part * BLOCK
    if not are_candidates(s, s.cut):
        ids[0] = NULL
        return s.row.kernels.read(&s.row, &s.tempering if weights != NULL else NULL, s.cut, part,
                                  x, weights)
    count = min(<int64_t> BLOCK, s.candidates.n - start)
    ids[0] = s.candidates.ids + start
    memcpy(x, s.candidates.values + start, whole_words(count) * sizeof(double))
    if weights != NULL:
        weigh_candidates(s)
        memcpy(weights, s.candidates.weights + start, whole_words(count) * sizeof(double))
    return count


cdef inline void shorten(RowState *s, Cut cut) noexcept nogil:
    """Cut what is kept shorter, and make it the candidates if it is not too much."""
    s.cut = shorter(s.cut, cut)
    forget_sums(s)
    if are_candidates(s, s.cut):
        trim(s)
    elif s.cut.value > -INFINITY:
        candidates_from(s, s.cut.value, True)


cdef inline int64_t count_kept(RowState *s) noexcept nogil:
    return s.candidates.n if are_candidates(s, s.cut) else s.row.kernels.count(&s.row, s.cut)


cdef inline void set_temperature(RowState *s, double temperature) noexcept nogil:
    s.temperature = temperature
    s.tempering = make_tempering(s.max, temperature)
    s.weighed = False
    forget_sums(s)


cdef inline void forget_sums(RowState *s) noexcept nogil:
    """Those over what the cut keeps, before that or its weights change."""
    s.tier = UNKNOWN
    s.depth = s.squares = Bounded(0.0, INFINITY)


cdef inline Cut shorter(Cut a, Cut b) noexcept nogil:
    if a.value != b.value:
        return a if a.value > b.value else b
    return a if a.last < b.last else b


cdef inline Cut longer(Cut a, Cut b) noexcept nogil:
    if a.value != b.value:
        return a if a.value < b.value else b
    return a if a.last > b.last else b


cdef inline bint are_candidates(const RowState *s, Cut cut) noexcept nogil:
    """Whether the candidates hold all that a cut keeps."""
    return cut.value > s.covered.value or (cut.value == s.covered.value
                                           and cut.last <= s.covered.last)


cdef inline bint candidates_from(RowState *s, double low, bint kept) noexcept nogil:
    """Make the candidates hold every token with x >= low, or those of them that are kept. False as
    `gather_between`."""
    if not gather_between(s, low, INFINITY):
        return False
    s.covered = Cut(low, INT64_MAX)
    if kept:
        trim(s)
    return True


cdef inline bint gather_between(RowState *s, double low, double high) noexcept nogil:
    """Make the candidates hold every token with low <= x < high. False where that is too many, or
    looks as if it were."""
    forget_candidates(s)
    s.candidates.n = s.row.kernels.gather(&s.row, low, high, room_for(s.row.n),
                                          s.candidates.values, s.candidates.ids)
    if s.candidates.n < 0:
        return False
    pad(&s.candidates)
    return True


cdef inline int64_t room_for(int64_t vocab) noexcept nogil:
    """How many candidates there is room for."""
    return max(<int64_t> LEAST_ROOM, vocab // 8)


cdef inline void pad(Candidates *candidates) noexcept nogil:
    cdef int64_t i
    for i in range(candidates.n, whole_words(candidates.n)):
        candidates.values[i] = -INFINITY


cdef inline void trim(RowState *s) noexcept nogil:
    """Drop from the candidates what the cut removes."""
    cdef Candidates *candidates = &s.candidates
    cdef int64_t i, id, n = 0
    cdef double x
    if s.covered.value == s.cut.value and s.covered.last == s.cut.last:
        return
    if s.cut.value >= s.covered.value:
        for i in range(candidates.n):
            x = candidates.values[i]
            id = candidates.ids[i]
            candidates.values[n] = x
            candidates.ids[n] = id
            if s.weighed:
                candidates.weights[n] = candidates.weights[i]
            n += keeps(s.cut, x, id)
        candidates.n = n
        pad(candidates)
        if s.weighed:
            for i in range(n, whole_words(n)):
                candidates.weights[i] = 0.0
        if are_candidates(s, s.cut):
            s.covered = s.cut


cdef inline void forget_candidates(RowState *s) noexcept nogil:
    """Before their memory is used for something else."""
    s.covered = KEEP_NOTHING
    s.weighed = False


cdef inline void weigh_candidates(RowState *s) noexcept nogil:
    if not s.weighed:
        isa.weigh(&s.tempering, s.candidates.values, whole_words(s.candidates.n),
                  s.candidates.weights)
        s.weighed = True


cdef inline Mass mass_of_candidates(RowState *s) noexcept nogil:
    weigh_candidates(s)
    return isa.sum(s.candidates.weights, s.candidates.n)


cdef inline Mass depth_of_candidates(RowState *s) noexcept nogil:
    """The exact sum of w |z|."""
    weigh_candidates(s)
    return isa.depth(&s.tempering, s.candidates.values, s.candidates.weights, s.candidates.n)


cdef inline Mass depth_of_row(const RowState *s) noexcept nogil:
    """The same of what the cut keeps of the row."""
    cdef double x[BLOCK]
    cdef double weights[BLOCK]
    cdef Mass depth = NO_MASS, part
    cdef int64_t b, count
    for b in range(blocks_in(&s.row)):
        count = s.row.kernels.read(&s.row, &s.tempering, s.cut, b, x, weights)
        part = isa.depth(&s.tempering, x, weights, count)
        mass_add(&depth, part.high, part.low)
    return depth


cdef inline void refine(RowState *s) noexcept nogil:
    """Find the mass of what is kept of the row, and of its blocks, from the next tier."""
    cdef Scratch *scratch = s.scratch
    cdef const Kernels *kernels = s.row.kernels
    cdef double moment
    if s.tier != UNKNOWN:
        s.tier += 1
    elif not has_bounds(s, &s.tempering):
        s.tier = EXACT
    elif s.broad or s.reports or s.row.kind == FLOAT64:
        s.tier = max(<int> FINE, s.chain.tier)
    else:
        s.tier = max(<int> FAST, s.chain.tier)
    if s.tier == EXACT:
        s.total = mass_value(kernels.exact_mass(&s.row, &s.tempering, s.cut, scratch.blocks))
        s.error = 0.0
        return
    if s.tier == FAST and (s.asks_depth or s.asks_squares):
        moment = kernels.fast_moment(&s.row, &s.tempering, s.cut, s.asks_squares, scratch.masses,
                                     scratch.errors)
        if s.asks_squares:
            s.squares = fast_bounded(s, moment)
        else:
            s.depth = fast_bounded(s, moment)
    elif s.tier == FAST:
        kernels.fast_masses(&s.row, &s.tempering, s.cut, scratch.masses, scratch.errors)
    else:
        if s.reports or s.asks_depth:
            s.depth.sum = kernels.fine_masses_and_depth(&s.row, &s.tempering, s.cut,
                                                        scratch.masses)
            s.depth.error = fine_depth_error(s, s.depth.sum)
        else:
            kernels.fine_masses(&s.row, &s.tempering, s.cut, scratch.masses)
        set_fine_errors(s)
    add_up(s)


cdef inline bint has_bounds(const RowState *s, const Tempering *tempering) noexcept nogil:
    """Whether the fast and the fine mass are used at all."""
    return (s.row.n >= FAST_FROM and not tempering.uniform and tempering.scale == 1.0
            and 1e-30 <= tempering.temperature <= 1e30)


cdef inline Bounded fast_bounded(const RowState *s, double sum) noexcept nogil:
    """A fast sum of w |z| or of w^2, with its bound: what is left out is 45 bits deep or more."""
    return Bounded(sum, FAST_MOMENT_ERROR * sum + 64.0 * FAST_FLOOR_ERROR * s.row.n)


cdef inline void set_fine_errors(RowState *s) noexcept nogil:
    cdef int64_t b
    for b in range(blocks_in(&s.row)):
        s.scratch.errors[b] = fine_error(s.scratch.masses[b], BLOCK)


cdef inline double fine_error(double mass, int64_t n) noexcept nogil:
    return mass * FINE_WEIGHT_ERROR + FINE_FLOOR_ERROR * n


cdef inline double fine_depth_error(const RowState *s, double depth) noexcept nogil:
    return (depth * (1.01 * FINE_WEIGHT_ERROR) + FINE_DEPTH_FLOOR_ERROR * s.row.n
            + rounding_of_blocks(s, depth))


cdef inline double rounding(const RowState *s, double mass) noexcept nogil:
    """A bound on what sums in double over the row, and the grid of the exact mass, lose."""
    return mass * (0.5 * DBL_EPSILON) * (s.row.n // LANES + BLOCK) + FINE_FLOOR_ERROR * s.row.n


cdef inline double rounding_of_blocks(const RowState *s, double mass) noexcept nogil:
    """The same where the masses of blocks were added."""
    return (mass * (0.5 * DBL_EPSILON) * (blocks_in(&s.row) + BLOCK)
            + FINE_FLOOR_ERROR * s.row.n)


cdef inline Bounded fine_total(const RowState *s, double mass) noexcept nogil:
    """A fine mass of the row, added up by blocks, with its bound."""
    return Bounded(mass, fine_error(mass, s.row.n) + rounding_of_blocks(s, mass))


cdef inline void add_up(RowState *s) noexcept nogil:
    cdef int64_t b
    s.total = 0.0
    s.error = 0.0
    for b in range(blocks_in(&s.row)):
        s.total += s.scratch.masses[b]
        s.error += s.scratch.errors[b]
    s.error += rounding_of_blocks(s, s.total)


cdef inline void count_settled(RowState *s, int question) noexcept nogil:
    """Count a question that the current tier has settled; `question` is the first counter of its
    kind."""
    s.scratch.counts[question + s.tier] += 1

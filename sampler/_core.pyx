# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=True, auto_pickle=False, autotestdict=False
"""The core: rows of logits in, tokens out.

A. What comes in. Checked parameters and typed memoryviews only; everything a user can get wrong
   is caught in Python before this file is reached. What is re-checked here is what would be
   unsafe. Logits arrive as words (unsigned integers of their size) with a kind and a byte order,
   so that any dtype, stride and alignment is one case; `loops.h` widens them block by block.

B. A row and its kept set. Rank is (logit descending, id ascending). Every stage here keeps a prefix
   in rank, and a prefix is named by its last token: a `Cut`, a logit value and an id. So stages
   compose by taking the shorter cut, and a floor (`min_tokens_to_keep`) by taking the longer one.

C. One question. Each truncation asks for the shortest prefix in rank whose measure, a count or a
   mass, reaches a target. `select` answers it by a histogram over logit values, then over the one
   bin in which the boundary lies, and so on until 64 tokens are left to sort. It never sorts or
   copies the vocabulary.

D. Candidates. Nearly always the answer lies among a few tokens near the maximum. The read pass
   keeps the maximum of every 512 logits; the k-th largest of these maxima is a lower bound on the
   k-th largest logit, and a span whose maximum is below a bound need not be read again. `gather`
   collects every token above a bound once, and the stages and the draw then work on that list as if
   it were the row.

E. Mass. The canonical mass (`canonical.h`) is exact enough, and the same on every machine and in
   every order of summation. The fast mass is float32 with a computed error bound. Whatever the
   bound does not prove is asked of the canonical mass, so the fast path changes the time and
   never the answer; `Chain(exact=True)` takes the canonical path throughout.

F. The draw. The uniform u is an argument. The token is the first, ids ascending, whose cumulative
   canonical mass exceeds u times the total: since u < 1 and the total is the last of these sums,
   there always is one, and its weight is not zero.

G. Threads and signals. The GIL is released around the rows. Scratch memory belongs to the call: it
   is taken from a free list and put back. Every `WORK_PER_CHUNK` logits signals are looked at.
"""

cimport cython
from cython cimport pymutex
from libc.math cimport INFINITY, NAN, fabs
from libc.stdint cimport INT64_MAX, int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memset


cdef extern from "float.h":
    const double DBL_MAX

cdef extern from *:
    """
    #if defined(__clang__)
    #define SAMPLER_COMPILER __VERSION__
    #elif defined(__GNUC__)
    #define SAMPLER_COMPILER "gcc " __VERSION__
    #elif defined(_MSC_VER)
    #define SAMPLER_TEXT(x) #x
    #define SAMPLER_VALUE(x) SAMPLER_TEXT(x)
    #define SAMPLER_COMPILER "MSVC " SAMPLER_VALUE(_MSC_VER)
    #else
    #define SAMPLER_COMPILER "unknown"
    #endif
    """
    const char *SAMPLER_COMPILER

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1

cdef extern from "philox.h" nogil:
    double philox_uniform(uint64_t seed, uint64_t stream, uint64_t step, uint64_t draw,
                          uint64_t lane)

cdef extern from "canonical.h" nogil:
    const double NEGLIGIBLE_DEPTH
    const int64_t MOST_TOKENS

    ctypedef struct Mass:
        double high
        double low

    ctypedef struct Law:
        double max
        double temperature
        double scale
        bint uniform

    double high_part(double weight)
    double low_part(double weight, double high)
    void mass_add(Mass *mass, double high, double low)
    double mass_value(Mass mass)
    Mass mass_times(double weight, int64_t times)
    double exp_canonical(double z)
    double log_canonical(double x)
    Law make_law(double max, double temperature)
    double tempered(const Law *law, double x)

cdef extern from "kernels.h" nogil:
    enum:
        BLOCK
        GROUP
        GROUPS_PER_BLOCK
        SPANS_PER_BLOCK
        FLOAT16
        BFLOAT16
        FLOAT32
        FLOAT64

    ctypedef struct Row:
        int64_t n
        int kind

    ctypedef struct Cut:
        double value
        int64_t last

    ctypedef struct Source:
        Row row
        const int64_t *ids
        const double *weights
        const double *tops

    ctypedef struct Bin:
        int64_t count
        Mass mass
        double min
        double max

    ctypedef struct Ruler:
        bint by_bits
        int bins
        double max
        double steps_per_unit
        uint64_t top
        int shift

    Row make_row(const char *data, ptrdiff_t stride, int64_t n, int kind, bint swapped)
    int64_t blocks_in(int64_t n)
    int64_t spans_in(int64_t n)
    int64_t groups_in(int64_t n)
    int64_t whole_groups(int64_t n)
    int SAMPLER_LEVELS
    const char *level_name(int level)
    bint level_runs(int level)
    void choose_level(int level)
    const float *load_float(const Row *row, int64_t start, int64_t count, float *buffer)
    const double *load_double(const Row *row, int64_t start, int64_t count, double *buffer)
    bint scan_block(const Row *row, int64_t start, int64_t count, double *tops)
    void group_maxima(const Row *row, int64_t start, int64_t count, double *maxima)
    bint keeps(Cut cut, double x, int64_t id)
    int64_t id_at(const Source *source, int64_t position)
    bint block_reaches(const Source *source, int64_t block, double value)
    void weigh(const Law *law, const double *x, int64_t n, double *weights)
    int64_t read_block(const Source *source, const Law *law, Cut cut, int64_t b,
                       const double **x, double *x_buffer, double *w)
    Mass block_mass(const Source *source, const Law *law, Cut cut, int64_t b)
    int64_t block_count(const Source *source, Cut cut, int64_t b)
    int64_t gather_block(const Source *source, int64_t b, double low, int64_t room, int64_t n,
                         double *values, int64_t *ids)
    uint64_t ordered_bits(double x)
    void histogram_block(const Source *source, Cut cut, int64_t start, const double *x,
                         const double *w, int64_t count, double min, double max,
                         const Ruler *ruler, Bin *bins)
    float floor_of(Cut cut, bint with_ties)
    double fast_mass(const float *x, int64_t n, float max, float log2e_over_t, float floor,
                     double *error)
    void filter_float(const Source *source, const Law *law, Cut cut, int64_t b, double divisor,
                      bint shifted, double limit, float *out)
    void filter_double(const Source *source, const Law *law, Cut cut, int64_t b, double divisor,
                       bint shifted, double limit, double *out)


cdef enum:
    MAX_BINS = 1024
    SMALL = 64            # what `select` stops splitting and sorts instead
    MAX_STAGES = 64
    MAX_FREE = 16         # scratch kept for later calls; more threads than that allocate anew
    CARRY_EVERY = 2       # blocks of 1024 tokens between carries of the bins' masses
    # Logits or draws between looks at signals: 50 ms at the slowest. A row counts BLOCK more than
    # it has, for what it costs however short it is.
    WORK_PER_CHUNK = 1 << 19
    MOST_IDLE_BYTES = 1 << 24  # of the buffers that only some calls need, kept for later ones

# Below this many tokens the canonical mass costs less than proving the fast one.
cdef int64_t FAST_FROM = 4096
# Covers the float64 roundings that the fast mass's own bound leaves out: its running sum over at
# most 2**17 blocks (2**-36 of the total) and those where it is compared with canonical sums.
cdef double CANONICAL_SLACK = 2e-11

cdef Cut KEEP_ALL = Cut(-INFINITY, -1)


# ------------------------------------------------------------------------------------- scratch

# Everything a call needs beside its result, for rows of up to `vocab` logits.
cdef struct Scratch:
    int64_t vocab
    double *tops          # the largest logit of each span of the row
    double *maxima        # of each group, where they were asked for
    double *values        # the candidates' logits, ids and weights
    int64_t *ids
    double *weights
    double *fast          # one a block: the fast mass and its error
    double *fast_error
    Mass *blocks          # one a block: the canonical mass
    Bin *bins
    int64_t cumulative_size
    double *cumulative    # one a token, for several draws from one row only
    int64_t items_size
    Item *items           # for top lists and for ranking draws only


# A token with its place in some list; sorts by rank.
cdef struct Item:
    double value
    int64_t id
    int64_t place


cdef int64_t room_for(int64_t vocab) noexcept nogil:
    """How many candidates a row may have: beyond an eighth of it, a histogram is the faster way."""
    return max(<int64_t> 2048, vocab // 8)


cdef pymutex _lock
cdef Scratch *_free[MAX_FREE]
cdef int _free_count = 0


cdef void release(Scratch *scratch) noexcept:
    global _free_count
    cdef bint kept = False
    if scratch.cumulative_size * sizeof(double) > MOST_IDLE_BYTES:
        scratch.cumulative = <double *> regrow(scratch.cumulative, 0)
        scratch.cumulative_size = 0
    if scratch.items_size * sizeof(Item) > MOST_IDLE_BYTES:
        scratch.items = <Item *> regrow(scratch.items, 0)
        scratch.items_size = 0
    with _lock:
        if _free_count < MAX_FREE:
            _free[_free_count] = scratch
            _free_count += 1
            kept = True
    if not kept:
        destroy(scratch)


cdef void destroy(Scratch *scratch) noexcept:
    free(scratch.maxima)
    free(scratch.tops)
    free(scratch.values)
    free(scratch.ids)
    free(scratch.weights)
    free(scratch.fast)
    free(scratch.fast_error)
    free(scratch.blocks)
    free(scratch.bins)
    free(scratch.cumulative)
    free(scratch.items)
    free(scratch)


cdef Scratch *acquire(int64_t vocab, int64_t cumulative_size, int64_t items_size) except NULL:
    """Scratch for rows of `vocab` logits; the caller gives it back with `release`."""
    global _free_count
    cdef Scratch *s = NULL
    cdef int64_t blocks = blocks_in(vocab) + 1
    with _lock:
        if _free_count > 0:
            _free_count -= 1
            s = _free[_free_count]
    if s == NULL:
        s = <Scratch *> malloc(sizeof(Scratch))
        if s == NULL:
            raise MemoryError()
        memset(s, 0, sizeof(Scratch))
    if s.vocab < vocab:
        s.vocab = 0
        s.maxima = <double *> regrow(s.maxima, blocks * GROUPS_PER_BLOCK * sizeof(double))
        s.tops = <double *> regrow(s.tops, blocks * SPANS_PER_BLOCK * sizeof(double))
        s.values = <double *> regrow(s.values, (room_for(vocab) + 2 * GROUP) * sizeof(double))
        s.ids = <int64_t *> regrow(s.ids, (room_for(vocab) + 2 * GROUP) * sizeof(int64_t))
        s.weights = <double *> regrow(s.weights, (room_for(vocab) + 2 * GROUP) * sizeof(double))
        s.fast = <double *> regrow(s.fast, blocks * sizeof(double))
        s.fast_error = <double *> regrow(s.fast_error, blocks * sizeof(double))
        s.blocks = <Mass *> regrow(s.blocks, blocks * sizeof(Mass))
        s.bins = <Bin *> regrow(s.bins, MAX_BINS * sizeof(Bin))
        if (s.maxima == NULL or s.tops == NULL or s.values == NULL or s.ids == NULL
                or s.weights == NULL or s.fast == NULL or s.fast_error == NULL
                or s.blocks == NULL or s.bins == NULL):
            destroy(s)
            raise MemoryError()
        s.vocab = vocab
    if s.cumulative_size < cumulative_size:
        s.cumulative = <double *> regrow(s.cumulative, cumulative_size * sizeof(double))
        s.cumulative_size = cumulative_size if s.cumulative != NULL else 0
    if s.items_size < items_size:
        s.items = <Item *> regrow(s.items, items_size * sizeof(Item))
        s.items_size = items_size if s.items != NULL else 0
    if s.cumulative_size < cumulative_size or s.items_size < items_size:
        release(s)
        raise MemoryError()
    return s


cdef void *regrow(void *old, size_t size) noexcept:
    # The old contents are of no use: do not let realloc copy them.
    free(old)
    return malloc(size)


# ------------------------------------------------------------------------------ one row at work

cpdef enum:
    TEMPERATURE = 0
    TOP_K = 1
    TOP_P = 2
    MIN_P = 3


# The stages of a chain that do something, in order.
cdef struct Plan:
    int count
    int kinds[MAX_STAGES]
    double values[MAX_STAGES]
    bint ties_all
    int64_t min_tokens_to_keep
    bint exact


cdef struct Work:
    Scratch *scratch
    const Plan *plan
    Source whole          # the whole row
    Source list           # every token of it with x >= list_low, once gathered
    double list_low
    double too_low        # a bound above which candidates were too many
    double max
    double temperature
    Law law
    bint greedy           # temperature 0: the first in rank alone
    Cut cut               # what is kept so far
    bint fast_known
    double fast_total
    double fast_error


# A boundary found by `select`: the cut, and the measure without and with its last token.
cdef struct Boundary:
    Cut cut
    double before
    double reached


cdef Cut shorter(Cut a, Cut b) noexcept nogil:
    if a.value != b.value:
        return a if a.value > b.value else b
    return a if a.last < b.last else b


cdef Cut longer(Cut a, Cut b) noexcept nogil:
    if a.value != b.value:
        return a if a.value < b.value else b
    return a if a.last > b.last else b


cdef bint start(Work *w, Scratch *scratch, const Plan *plan, Row row) noexcept nogil:
    """Read the row once. False where it holds NaN, +inf or no finite logit."""
    cdef int64_t b, first
    cdef double *tops
    cdef bint bad = False
    w.scratch = scratch
    w.plan = plan
    w.whole = Source(row, NULL, NULL, scratch.tops)
    w.list_low = INFINITY
    w.too_low = -INFINITY
    w.greedy = False
    w.cut = KEEP_ALL
    w.max = -INFINITY
    for b in range(blocks_in(row.n)):
        first = b * BLOCK
        tops = scratch.tops + b * SPANS_PER_BLOCK
        bad |= scan_block(&row, first, min(<int64_t> BLOCK, row.n - first), tops)
        w.max = max(w.max, tops[0], tops[1])
    set_temperature(w, 1.0)
    return not bad and w.max > -INFINITY


cdef void set_temperature(Work *w, double temperature) noexcept nogil:
    w.temperature = temperature
    w.law = make_law(w.max, temperature)
    w.fast_known = False
    w.list.weights = NULL


cdef tuple complaint(int64_t index, const Row *row):
    """(row, token, value) of the first NaN or +inf; token -1 where no logit is finite."""
    cdef int64_t i
    cdef double x
    cdef double buffer[GROUP]
    for i in range(row.n):
        x = load_double(row, i, 1, buffer)[0]
        if not x < INFINITY:
            return index, i, x
    return index, -1, -INFINITY


cdef int64_t first_at(const Source *source, double value) noexcept nogil:
    """The first token whose logit is `value`; there has to be one."""
    cdef int64_t b, i, count
    cdef double buffer[BLOCK]
    cdef const double *x
    for b in range(blocks_in(source.row.n)):
        if not block_reaches(source, b, value):
            continue
        count = read_block(source, NULL, KEEP_ALL, b, &x, buffer, NULL)
        for i in range(count):
            if x[i] == value:
                return id_at(source, b * BLOCK + i)
    return -1


# --------------------------------------------------------------------------------- candidates

cdef bint gather(Work *w, double low) noexcept nogil:
    """Make the list hold every token with x >= low. False where that is too many."""
    cdef Scratch *s = w.scratch
    cdef int64_t b, i, n = 0, room = room_for(w.whole.row.n)
    low = max(low, -DBL_MAX)
    if w.list_low <= low:
        return True
    if low <= w.too_low:
        return False
    w.list_low = INFINITY
    for b in range(blocks_in(w.whole.row.n)):
        if block_reaches(&w.whole, b, low):
            n = gather_block(&w.whole, b, low, room, n, s.values, s.ids)
            if n < 0:
                w.too_low = low
                return False
    for i in range(n, whole_groups(n)):
        s.values[i] = -INFINITY
    w.list = Source(make_row(<const char *> s.values, sizeof(double), n, FLOAT64, False),
                    s.ids, NULL, NULL)
    w.list_low = low
    return True


cdef const Source *weighed_list(Work *w) noexcept nogil:
    if w.list.weights == NULL:
        weigh(&w.law, w.scratch.values, whole_groups(w.list.row.n), w.scratch.weights)
        w.list.weights = w.scratch.weights
    return &w.list


cdef const Source *kept_source(Work *w, bint weighed) noexcept nogil:
    """The list where it holds all that is kept, else the row.

    The next `gather`, or `select` over the row, overwrites the list.
    """
    if w.list_low <= w.cut.value:
        return weighed_list(w) if weighed else &w.list
    return &w.whole


# --------------------------------------------------------------------------------------- mass

cdef Mass mass_of(const Source *source, const Law *law, Cut cut) noexcept nogil:
    cdef Mass total = Mass(0.0, 0.0)
    cdef Mass part
    cdef int64_t b
    for b in range(blocks_in(source.row.n)):
        if block_reaches(source, b, cut.value):
            part = block_mass(source, law, cut, b)
            mass_add(&total, part.high, part.low)
    return total


cdef int64_t count_of(const Source *source, Cut cut) noexcept nogil:
    cdef int64_t b, total = 0
    for b in range(blocks_in(source.row.n)):
        if block_reaches(source, b, cut.value):
            total += block_count(source, cut, b)
    return total


cdef bint weigh_fast(Work *w) noexcept nogil:
    """The fast mass of what is kept of every block of the row. False where it has no use or no
    bound."""
    cdef Scratch *s = w.scratch
    cdef Row *row = &w.whole.row
    cdef int64_t b, first, count
    cdef float buffer[BLOCK]
    cdef const float *x
    if (w.plan.exact or row.kind == FLOAT64 or row.n < FAST_FROM
            or not 1e-30 <= w.temperature <= 1e30):
        return False
    if w.fast_known:
        return True
    w.fast_known = True
    w.fast_total = 0.0
    w.fast_error = 0.0
    for b in range(blocks_in(row.n)):
        s.fast[b] = 0.0
        s.fast_error[b] = 0.0
        if not block_reaches(&w.whole, b, w.cut.value):
            continue
        first = b * BLOCK
        count = min(<int64_t> BLOCK, row.n - first)
        if first <= w.cut.last < first + count - 1:
            # The cut ends in this block: ties on both sides of its last token.
            s.fast[b] = mass_value(block_mass(&w.whole, &w.law, w.cut, b))
        else:
            x = load_float(row, first, count, buffer)
            s.fast[b] = fast_mass(x, whole_groups(count), <float> w.max,
                                  <float> (1.4426950408889634 / w.temperature),
                                  floor_of(w.cut, w.cut.last >= first), &s.fast_error[b])
        w.fast_total += s.fast[b]
        w.fast_error += s.fast_error[b]
    return True


# ------------------------------------------------------------------------------------- select

cdef Ruler bit_ruler(double low, double top, int bins) noexcept nogil:
    cdef uint64_t span = ordered_bits(top) - ordered_bits(low)
    cdef int shift = 0
    while (span >> shift) >= <uint64_t> bins:
        shift += 1
    return Ruler(True, bins, 0.0, 0.0, ordered_bits(top), shift)


cdef void fill_bins(const Source *source, const Law *law, Cut cut, bint by_mass, double low,
                    double top, const Ruler *ruler, Bin *bins) noexcept nogil:
    cdef int64_t b, count, pending = 0
    cdef double x_buffer[BLOCK]
    cdef double w_buffer[BLOCK]
    cdef double *weights = w_buffer if by_mass else NULL
    cdef const double *x
    cdef int i
    memset(bins, 0, ruler.bins * sizeof(Bin))
    for b in range(blocks_in(source.row.n)):
        if not block_reaches(source, b, low):
            continue
        count = read_block(source, law, cut, b, &x, x_buffer, weights)
        histogram_block(source, cut, b * BLOCK, x, weights, count, low, top, ruler, bins)
        pending += 1
        if pending == CARRY_EVERY:
            pending = 0
            for i in range(ruler.bins):
                mass_add(&bins[i].mass, 0.0, 0.0)


cdef Ruler first_ruler(double expected_low, double low, double top, int bins) noexcept nogil:
    """Bins of equal width from top to expected_low, where doubles allow that; else by bits."""
    cdef double steps = (bins - 1) / (top - expected_low)
    if 0.0 < steps < 1e300:
        return Ruler(False, bins, top, steps, 0, 0)
    return bit_ruler(low, top, bins)


cdef bint gather_band(Work *w, Cut cut, double low, double top, int64_t count,
                      Source *band) noexcept nogil:
    """Copy the `count` kept tokens of the row in [low, top], in place of the candidates."""
    cdef Scratch *s = w.scratch
    cdef double buffer[BLOCK]
    cdef const double *x
    cdef int64_t b, i, n = 0, size
    if count > room_for(w.whole.row.n):
        return False
    w.list_low = INFINITY
    for b in range(blocks_in(w.whole.row.n)):
        if not block_reaches(&w.whole, b, low):
            continue
        size = read_block(&w.whole, NULL, cut, b, &x, buffer, NULL)
        for i in range(size):
            s.values[n] = x[i]
            s.ids[n] = b * BLOCK + i
            # Most are not in the band: a store that the next one overwrites beats a branch.
            if low <= x[i] <= top and keeps(cut, x[i], b * BLOCK + i):
                n += 1
    for i in range(n, whole_groups(n)):
        s.values[i] = -INFINITY
    band[0] = Source(make_row(<const char *> s.values, sizeof(double), n, FLOAT64, False), s.ids,
                     NULL, NULL)
    return True


cdef Boundary select(Work *w, const Source *source, Cut cut, bint by_mass, double target,
                     bint relative, double low, double expected_low) noexcept nogil:
    """The shortest prefix in rank of source, within cut, whose measure reaches target.

    The measure is the canonical mass or the count of tokens; with relative, target is a share of
    the whole. Tokens below low are left out. expected_low says down to where to bin finely first.
    A target that is not reached gives all there is.
    """
    cdef Bin *bins = w.scratch.bins
    cdef Ruler ruler = first_ruler(expected_low, low, w.max,
                                   MAX_BINS if source.row.n > FAST_FROM else 128)
    cdef Mass above = Mass(0.0, 0.0)
    cdef Mass total = Mass(0.0, 0.0)
    cdef Mass reached
    cdef int64_t count_above = 0
    cdef int i, chosen
    cdef double top = w.max
    cdef Source band
    if source.row.n <= SMALL:
        if relative:
            target *= mass_value(mass_of(source, &w.law, cut))
        return settle(w, source, cut, by_mass, target, low, top, above, 0)
    while True:
        fill_bins(source, &w.law, cut, by_mass, low, top, &ruler, bins)
        if relative:
            for i in range(ruler.bins):
                mass_add(&total, bins[i].mass.high, bins[i].mass.low)
            target *= mass_value(total)
            relative = False
        chosen = -1
        for i in range(ruler.bins):
            if bins[i].count == 0:
                continue
            if chosen >= 0:
                mass_add(&above, bins[chosen].mass.high, bins[chosen].mass.low)
                count_above += bins[chosen].count
            chosen = i
            reached = above
            mass_add(&reached, bins[i].mass.high, bins[i].mass.low)
            if (mass_value(reached) if by_mass else count_above + bins[i].count) >= target:
                break
        if chosen < 0:
            return Boundary(cut, 0.0, 0.0)
        low = bins[chosen].min
        top = bins[chosen].max
        if bins[chosen].count <= SMALL:
            return settle(w, source, cut, by_mass, target, low, top, above, count_above)
        if low == top:
            return settle_ties(w, source, cut, by_mass, target, low, bins[chosen].count, above,
                               count_above)
        if source == &w.whole and gather_band(w, cut, low, top, bins[chosen].count, &band):
            source = &band
        ruler = bit_ruler(low, top, MAX_BINS)


cdef Boundary settle(const Work *w, const Source *source, Cut cut, bint by_mass, double target,
                     double low, double top, Mass above, int64_t count_above) noexcept nogil:
    """Finish `select` among the at most SMALL tokens of [low, top]: sort them, walk down."""
    cdef double values[SMALL]
    cdef double weights[SMALL]
    cdef int64_t ids[SMALL]
    cdef double x_buffer[BLOCK]
    cdef double w_buffer[BLOCK]
    cdef const double *x
    cdef int64_t b, i, count, id, n = 0, place
    cdef double before = 0.0
    cdef double measure = mass_value(above) if by_mass else <double> count_above
    cdef double high
    for b in range(blocks_in(source.row.n)):
        if not block_reaches(source, b, low):
            continue
        count = read_block(source, &w.law, cut, b, &x, x_buffer, w_buffer if by_mass else NULL)
        for i in range(count):
            if not (low <= x[i] <= top):
                continue
            id = id_at(source, b * BLOCK + i)
            if not keeps(cut, x[i], id):
                continue
            place = n
            while place > 0 and values[place - 1] < x[i]:
                values[place] = values[place - 1]
                weights[place] = weights[place - 1]
                ids[place] = ids[place - 1]
                place -= 1
            values[place] = x[i]
            weights[place] = w_buffer[i] if by_mass else 1.0
            ids[place] = id
            n += 1
    if n == 0:
        return Boundary(cut, 0.0, 0.0)
    for i in range(n):
        before = measure
        if by_mass:
            high = high_part(weights[i])
            mass_add(&above, high, low_part(weights[i], high))
            measure = mass_value(above)
        else:
            measure += 1.0
        if measure >= target:
            n = i + 1
            break
    return Boundary(Cut(values[n - 1], ids[n - 1]), before, measure)


cdef double measure_with_ties(bint by_mass, Mass above, int64_t count_above, double weight,
                              int64_t ties) noexcept nogil:
    cdef Mass part
    if not by_mass:
        return <double> (count_above + ties)
    part = mass_times(weight, ties)
    mass_add(&above, part.high, part.low)
    return mass_value(above)


cdef Boundary settle_ties(const Work *w, const Source *source, Cut cut, bint by_mass,
                          double target, double value, int64_t ties, Mass above,
                          int64_t count_above) noexcept nogil:
    """Finish `select` among many equal logits: how many are needed, and the id of the last."""
    cdef double weight = exp_canonical(tempered(&w.law, value))
    cdef double buffer[BLOCK]
    cdef const double *x
    cdef int64_t few = 1, many = ties, middle, b, i, id, left, count
    while few < many:
        middle = few + (many - few) // 2
        if measure_with_ties(by_mass, above, count_above, weight, middle) >= target:
            many = middle
        else:
            few = middle + 1
    left = few
    for b in range(blocks_in(source.row.n)):
        if not block_reaches(source, b, value):
            continue
        count = read_block(source, &w.law, cut, b, &x, buffer, NULL)
        for i in range(count):
            if x[i] == value:
                id = id_at(source, b * BLOCK + i)
                left -= keeps(cut, value, id)
                if left == 0:
                    return Boundary(
                        Cut(value, id),
                        measure_with_ties(by_mass, above, count_above, weight, few - 1),
                        measure_with_ties(by_mass, above, count_above, weight, few))
    return Boundary(cut, 0.0, 0.0)  # not reached: `ties` tokens were counted


# ------------------------------------------------------------------------------------- stages

cdef double low_guess(const Work *w) noexcept nogil:
    """A logit below which few of the row lie, for binning: twice as far below the lowest
    maximum of a span as that is below the largest."""
    cdef double low = w.max
    cdef int64_t i
    for i in range(spans_in(w.whole.row.n)):
        if -INFINITY < w.whole.tops[i] < low:
            low = w.whole.tops[i]
    return low - 2.0 * (w.max - low) - 1.0


cdef Cut first_in_rank(Work *w, int64_t k) noexcept nogil:
    """The cut that keeps the first k of the row."""
    cdef const Row *row = &w.whole.row
    cdef int64_t b, bounds = 0
    cdef Source maxima
    cdef Boundary found
    if k == 1:
        return Cut(w.max, first_at(&w.whole, w.max))
    if k >= w.whole.row.n:
        return KEEP_ALL
    if w.list_low < INFINITY and w.list.row.n >= k:
        return select(w, &w.list, KEEP_ALL, False, k, False, w.list_low, w.list_low).cut
    # The k-th largest of the maxima of any parts of the row is a lower bound on the k-th largest
    # logit: of its spans, or, where those are too few, of its groups.
    if k <= spans_in(row.n):
        bounds = spans_in(row.n)
        maxima = Source(make_row(<const char *> w.whole.tops, sizeof(double), bounds, FLOAT64,
                                 False), NULL, NULL, NULL)
    elif k <= groups_in(row.n):
        for b in range(blocks_in(row.n)):
            group_maxima(row, b * BLOCK, min(<int64_t> BLOCK, row.n - b * BLOCK),
                         w.scratch.maxima + b * GROUPS_PER_BLOCK)
        bounds = groups_in(row.n)
        maxima = Source(make_row(<const char *> w.scratch.maxima, sizeof(double), bounds, FLOAT64,
                                 False), NULL, NULL, NULL)
    if bounds > 0:
        found = select(w, &maxima, KEEP_ALL, False, k, False, -INFINITY, low_guess(w))
        # With fewer than k finite maxima there is no bound; the row itself is asked.
        if found.reached >= k and gather(w, found.cut.value):
            return select(w, &w.list, KEEP_ALL, False, k, False, w.list_low, w.list_low).cut
    return select(w, &w.whole, KEEP_ALL, False, k, False, -INFINITY, low_guess(w)).cut


cdef Cut first_with_mass(Work *w, double p) noexcept nogil:
    """The cut that keeps the shortest prefix of what is kept whose share of the mass is >= p."""
    cdef double least, most, depth, low, mass
    cdef bint proven
    cdef Boundary found
    cdef const Source *source
    if w.list_low <= w.cut.value:
        return select(w, weighed_list(w), w.cut, True, p, True, w.cut.value, w.list_low).cut
    if not w.law.uniform:
        proven = not weigh_fast(w)
        if proven:
            least = mass_value(mass_of(&w.whole, &w.law, w.cut))
            most = least
        else:
            least = (w.fast_total - w.fast_error) * (1.0 - CANONICAL_SLACK)
            most = (w.fast_total + w.fast_error) * (1.0 + CANONICAL_SLACK)
        # No token weighs more than 1: a mass beyond the room for candidates will not fit there.
        depth = 4.0 if p * least < room_for(w.whole.row.n) else INFINITY
        while depth <= 16.0:
            low = max(w.max - depth * w.temperature, w.cut.value)
            depth *= 2.0
            if not gather(w, low):
                break
            source = weighed_list(w)
            mass = mass_value(mass_of(source, &w.law, w.cut))
            if mass < p * most * (1.0 + CANONICAL_SLACK):
                continue
            found = select(w, source, w.cut, True, p * least, False, w.list_low, w.list_low)
            if proven or (found.before < p * least * (1.0 - CANONICAL_SLACK)
                          and found.reached >= p * most * (1.0 + CANONICAL_SLACK)):
                return found.cut
            least = mass_value(mass_of(&w.whole, &w.law, w.cut))
            return select(w, source, w.cut, True, p * least, False, w.list_low, w.list_low).cut
    # The kept set is broad: bins over the row itself. What lies deeper than the low bound weighs
    # nothing; a uniform law has no such bound.
    low = -INFINITY if w.law.uniform else w.max - (NEGLIGIBLE_DEPTH + 2.0) * w.temperature
    return select(w, &w.whole, w.cut, True, p, True, max(low, w.cut.value),
                  max(low, low_guess(w), w.cut.value)).cut


cdef Cut above_share_of_max(const Work *w, double m) noexcept nogil:
    """The cut that keeps x >= max + T ln m."""
    if w.law.uniform:
        return KEEP_ALL
    return Cut(max(w.max + w.temperature * log_canonical(m), -DBL_MAX), INT64_MAX)


cdef void apply_stages(Work *w) noexcept nogil:
    cdef const Plan *plan = w.plan
    cdef int i
    cdef int64_t k
    cdef double value
    cdef Cut cut
    for i in range(plan.count):
        value = plan.values[i]
        if w.greedy:
            return
        if plan.kinds[i] == TEMPERATURE:
            if value == 0.0:
                w.cut = first_in_rank(w, 1)
                w.greedy = True
            else:
                # Temperatures multiply; the product must not reach 0, which means greedy.
                value = w.temperature * value
                set_temperature(w, max(value, 5e-324))
            continue
        if plan.kinds[i] == TOP_K:
            k = <int64_t> value
            cut = first_in_rank(w, k)
            if plan.ties_all:
                cut.last = INT64_MAX
        elif plan.kinds[i] == TOP_P:
            cut = first_with_mass(w, value)
        else:
            cut = above_share_of_max(w, value)
        if plan.min_tokens_to_keep > 1:
            cut = longer(cut, first_in_rank(w, plan.min_tokens_to_keep))
        w.cut = shorter(w.cut, cut)
        w.fast_known = False
        if w.cut.value > -INFINITY:
            gather(w, w.cut.value)


# --------------------------------------------------------------------------------------- draw

cdef int64_t draw_fast(Work *w, double u) noexcept nogil:
    """The token at u from the fast mass of the row, or -1 where the bound does not prove it.

    With P the mass of the blocks before, Q that of the rest, the target within the block is
    u Q - (1 - u) P, hence its error u error(Q) + (1 - u) error(P).
    """
    cdef Scratch *s = w.scratch
    cdef double x_buffer[BLOCK]
    cdef double weights[BLOCK]
    cdef const double *x
    cdef double passed = 0.0, passed_error = 0.0, target = u * w.fast_total, error
    cdef double before, after = 0.0
    cdef int64_t b, i, count, blocks = blocks_in(w.whole.row.n)
    for b in range(blocks):
        if passed + s.fast[b] > target:
            break
        passed += s.fast[b]
        passed_error += s.fast_error[b]
    else:
        return -1
    target -= passed
    error = (u * (w.fast_error - passed_error) + (1.0 - u) * passed_error
             + CANONICAL_SLACK * w.fast_total)
    count = read_block(&w.whole, &w.law, w.cut, b, &x, x_buffer, weights)
    for i in range(count):
        before = after
        after += weights[i]
        if after > target:
            # Nothing lies before the first kept token, whatever the error.
            if ((before <= target - error or (before == 0.0 and passed == 0.0))
                    and after > target + error):
                return b * BLOCK + i
            return -1
    return -1


cdef int64_t draw_exact(Work *w, const Source *source, double u) noexcept nogil:
    cdef Mass *blocks = w.scratch.blocks
    cdef Mass passed = Mass(0.0, 0.0)
    cdef Mass upto
    cdef double x_buffer[BLOCK]
    cdef double weights[BLOCK]
    cdef const double *x
    cdef double target, high
    cdef int64_t b = 0, i, count, block_total = blocks_in(source.row.n)
    for b in range(block_total):
        blocks[b] = Mass(0.0, 0.0)
        if block_reaches(source, b, w.cut.value):
            blocks[b] = block_mass(source, &w.law, w.cut, b)
            mass_add(&passed, blocks[b].high, blocks[b].low)
    target = u * mass_value(passed)
    passed = Mass(0.0, 0.0)
    for b in range(block_total):
        upto = passed
        mass_add(&upto, blocks[b].high, blocks[b].low)
        if mass_value(upto) > target:
            break
        passed = upto
    count = read_block(source, &w.law, w.cut, b, &x, x_buffer, weights)
    for i in range(count):
        high = high_part(weights[i])
        mass_add(&passed, high, low_part(weights[i], high))
        if mass_value(passed) > target:
            return id_at(source, b * BLOCK + i)
    return -1  # not reached: the last sum is the total, and the total exceeds u times itself


cdef int64_t draw(Work *w, double u) noexcept nogil:
    cdef int64_t token
    cdef const Source *source
    if w.greedy:
        return w.cut.last
    source = kept_source(w, True)
    if source == &w.whole and weigh_fast(w):
        token = draw_fast(w, u)
        if token >= 0:
            return token
    return draw_exact(w, source, u)


cdef double accumulate(Work *w, const Source *source, double *cumulative) noexcept nogil:
    """cumulative[i] = the mass of what is kept up to position i of source; returns the total."""
    cdef double x_buffer[BLOCK]
    cdef double weights[BLOCK]
    cdef const double *x
    cdef Mass mass = Mass(0.0, 0.0)
    cdef double high
    cdef int64_t b, i, count
    for b in range(blocks_in(source.row.n)):
        count = read_block(source, &w.law, w.cut, b, &x, x_buffer, weights)
        for i in range(count):
            high = high_part(weights[i])
            mass_add(&mass, high, low_part(weights[i], high))
            cumulative[b * BLOCK + i] = mass_value(mass)
    return mass_value(mass)


cdef int64_t position_above(const double *cumulative, int64_t n, double target) noexcept nogil:
    """The first position whose cumulative mass exceeds target; the last one has to."""
    cdef int64_t low = 0, high = n - 1, middle
    while low < high:
        middle = low + (high - low) // 2
        if cumulative[middle] > target:
            high = middle
        else:
            low = middle + 1
    return low


# ---------------------------------------------------------------------- what there is to report

cdef int by_rank(const void *left, const void *right) noexcept nogil:
    cdef const Item *a = <const Item *> left
    cdef const Item *b = <const Item *> right
    if a.value != b.value:
        return -1 if a.value > b.value else 1
    return -1 if a.id < b.id else a.id > b.id


cdef double log_share(const Work *w, double x, double log_mass) noexcept nogil:
    """log p of a kept token: finite, whatever underflows."""
    if w.greedy:
        return 0.0
    return max(tempered(&w.law, x) - log_mass, -DBL_MAX)


cdef double raw_log_share(const Law *raw, double x, double log_mass) noexcept nogil:
    return max(tempered(raw, x) - log_mass, -DBL_MAX)


cdef void rank_items(const Source *source, Item *items, int64_t n, int64_t *ranks) noexcept nogil:
    """ranks[item.place] = 1 + the tokens of source before the item; sorts the items by rank.

    source has to hold every token before the items. One pass, whatever n.
    """
    cdef double buffer[BLOCK]
    cdef const double *x
    cdef int64_t b, i, count, low, high, middle, before
    cdef Item token
    qsort(items, n, sizeof(Item), by_rank)
    for i in range(n):
        ranks[items[i].place] = 0
    for b in range(blocks_in(source.row.n)):
        if not block_reaches(source, b, items[n - 1].value):
            continue
        count = read_block(source, NULL, KEEP_ALL, b, &x, buffer, NULL)
        for i in range(count):
            if not x[i] >= items[n - 1].value:
                continue
            token = Item(x[i], id_at(source, b * BLOCK + i), 0)
            # The first item not before the token in rank: it and all behind have the token ahead.
            low = 0
            high = n
            while low < high:
                middle = low + (high - low) // 2
                if by_rank(&items[middle], &token) < 0:
                    low = middle + 1
                else:
                    high = middle
            if low < n:
                ranks[items[low].place] += 1
    before = 0
    for i in range(n):
        # An item counts itself; equal draws of one token share the first one's count.
        before += ranks[items[i].place]
        ranks[items[i].place] = before


cdef int64_t list_top(Work *w, int64_t n, Item *items) noexcept nogil:
    """The first n of the row in rank, into items; returns how many there are."""
    cdef Cut cut = first_in_rank(w, n)
    cdef const Source *source = &w.list if w.list_low <= cut.value else &w.whole
    cdef double buffer[BLOCK]
    cdef const double *x
    cdef int64_t b, i, count, id, found = 0
    for b in range(blocks_in(source.row.n)):
        if not block_reaches(source, b, cut.value):
            continue
        count = read_block(source, NULL, KEEP_ALL, b, &x, buffer, NULL)
        for i in range(count):
            id = id_at(source, b * BLOCK + i)
            if keeps(cut, x[i], id) and found < n:
                items[found] = Item(x[i], id, 0)
                found += 1
    qsort(items, found, sizeof(Item), by_rank)
    return found


# ----------------------------------------------------------------------------- the Python face

COMPILER = SAMPLER_COMPILER.decode()


def choose_isa(wanted=None):
    """Run the kernels of the instruction set that is wanted, else of the best the machine has.

    Returns its name, and those of all that the machine has. Not while another thread draws.
    """
    cdef int level, chosen = 0
    runs = []
    for level in range(SAMPLER_LEVELS):
        if level_runs(level):
            name = level_name(level).decode()
            runs.append(name)
            if wanted is None or wanted == name:
                chosen = level
    if wanted is not None and wanted not in runs:
        raise ValueError(
            f"`SAMPLER_ISA` has to be one of {', '.join(runs)} on this machine, but is {wanted!r}"
        )
    choose_level(chosen)
    return level_name(chosen).decode(), tuple(runs)


# The kinds of logits by dtype name.
KINDS = {"float16": FLOAT16, "bfloat16": BFLOAT16, "float32": FLOAT32, "float64": FLOAT64}


@cython.final
cdef class Rows:
    """A batch of rows of logits: words of 16, 32 or 64 bits, their kind and byte order.

    Parameters
    ----------
    words : buffer of shape (batch, vocab), uint16, uint32 or uint64
        The logits' bits. Any strides, read-only or not; never written to.
    kind : {FLOAT16, BFLOAT16, FLOAT32, FLOAT64}
    swapped : bool
        Whether the words are in the other byte order.
    """

    cdef readonly int64_t batch
    cdef readonly int64_t vocab
    cdef int _kind
    cdef bint _swapped
    cdef const char *_data
    cdef ptrdiff_t _row_stride
    cdef ptrdiff_t _stride
    # One of these keeps the buffer alive.
    cdef const uint16_t[:, :] _words16
    cdef const uint32_t[:, :] _words32
    cdef const uint64_t[:, :] _words64

    def __cinit__(self, words, int kind, bint swapped):
        if kind == FLOAT32:
            self._words32 = words
            self._data = <const char *> &self._words32[0, 0]
            self.batch, self.vocab = self._words32.shape[0], self._words32.shape[1]
            self._row_stride, self._stride = self._words32.strides[0], self._words32.strides[1]
        elif kind == FLOAT64:
            self._words64 = words
            self._data = <const char *> &self._words64[0, 0]
            self.batch, self.vocab = self._words64.shape[0], self._words64.shape[1]
            self._row_stride, self._stride = self._words64.strides[0], self._words64.strides[1]
        elif kind == FLOAT16 or kind == BFLOAT16:
            self._words16 = words
            self._data = <const char *> &self._words16[0, 0]
            self.batch, self.vocab = self._words16.shape[0], self._words16.shape[1]
            self._row_stride, self._stride = self._words16.strides[0], self._words16.strides[1]
        else:
            raise ValueError(f"unknown kind {kind}")
        if self.vocab > MOST_TOKENS:
            raise ValueError(f"a row has to have at most 2**27 tokens, but has {self.vocab}")
        self._kind = kind
        self._swapped = swapped

    cdef Row row(self, int64_t index) noexcept nogil:
        return make_row(self._data + index * self._row_stride, self._stride, self.vocab,
                        self._kind, self._swapped)


@cython.final
cdef class Chain:
    """The stages of a sampler, compiled: those that are not off, in order.

    Parameters
    ----------
    stages : sequence of (int, float)
        TEMPERATURE, TOP_K, TOP_P or MIN_P, with its checked value.
    ties_all : bool
        Whether top_k keeps everything equal to the k-th.
    min_tokens_to_keep : int
        At least 1.
    exact : bool
        Take the canonical path throughout. Same answers, slower: for tests.
    """

    cdef Plan plan

    def __cinit__(self, stages, bint ties_all=False, min_tokens_to_keep=1, bint exact=False):
        if len(stages) > MAX_STAGES:
            raise ValueError(f"`stages` have to be at most {MAX_STAGES}, but are {len(stages)}")
        self.plan.count = 0
        for kind, value in stages:
            self.plan.kinds[self.plan.count] = kind
            # A count is exact as a float up to 2**53, and no row is longer than that.
            self.plan.values[self.plan.count] = (min(value, 2**53) if isinstance(value, int)
                                                 else value)
            self.plan.count += 1
        self.plan.ties_all = ties_all
        self.plan.min_tokens_to_keep = min(min_tokens_to_keep, 2**53)
        self.plan.exact = exact


cdef int look_at_signals(int64_t work, int64_t *done) except -1 nogil:
    """Count work; every WORK_PER_CHUNK of it, let Python handle signals."""
    done[0] += work
    if done[0] >= WORK_PER_CHUNK:
        done[0] = 0
        with gil:
            PyErr_CheckSignals()
    return 0


@cython.final
cdef class Steps:
    """Steps given out once each, whatever threads ask.

    Parameters
    ----------
    start : int
        The first to give.
    """

    cdef object _next

    def __cinit__(self, start):
        self._next = start

    @property
    def next(self):
        """The step that `take` will return."""
        with _lock:
            return self._next

    def take(self):
        """Return the next step and move on; at 2**64, which is no step, stay there."""
        with _lock:
            step = self._next
            if step < 1 << 64:
                self._next = step + 1
        return step


def uniforms(double[:, ::1] out, uint64_t seed, uint64_t step=0,
             const uint64_t[::1] streams=None, const uint64_t[::1] steps=None, uint64_t lane=0):
    """out[row, draw] = u(seed, streams[row], steps[row], draw, lane), in [0, 1).

    Without streams, row i has stream i; without steps, every row has the one step.
    """
    cdef int64_t row, draw, done = 0
    cdef uint64_t stream
    if ((streams is not None and streams.shape[0] != out.shape[0])
            or (steps is not None and steps.shape[0] != out.shape[0])):
        raise ValueError("one stream and one step a row")
    with nogil:
        for row in range(out.shape[0]):
            stream = row if streams is None else streams[row]
            if steps is not None:
                step = steps[row]
            for draw in range(out.shape[1]):
                out[row, draw] = philox_uniform(seed, stream, step, draw, lane)
                look_at_signals(1, &done)


cdef int draw_all(Work *w, const double *u, int64_t n, int64_t *tokens,
                  int64_t *done) except -1 nogil:
    """tokens[i] = the token at u[i] of what the stages kept."""
    cdef const Source *source
    cdef double total
    cdef int64_t i
    if n == 1 or w.greedy:
        for i in range(n):
            tokens[i] = draw(w, u[i])
        return 0
    source = kept_source(w, True)
    total = accumulate(w, source, w.scratch.cumulative)
    for i in range(n):
        tokens[i] = id_at(source, position_above(w.scratch.cumulative, source.row.n,
                                                 u[i] * total))
        look_at_signals(1, done)
    return 0


def draw_tokens(Chain chain, Rows rows, const double[:, ::1] u, int64_t[:, ::1] tokens,
                bint flag_invalid):
    """tokens[row, i] = the token at u[row, i], in [0, 1), under the chain.

    Returns None, or (row, token, value) of the first invalid logit: token -1 where no logit is
    finite. With flag_invalid, tokens of an invalid row are -1 and all rows are done.
    """
    cdef int64_t row, i, n = u.shape[1], done = 0, bad_row = -1
    cdef Scratch *scratch
    cdef Work w
    cdef Row logits
    if u.shape[0] != rows.batch or tokens.shape[0] != rows.batch or tokens.shape[1] != n:
        raise ValueError("one uniform and one token a draw")
    if rows.batch == 0 or n == 0:
        return None
    scratch = acquire(rows.vocab, rows.vocab if n > 1 else 0, 0)
    try:
        with nogil:
            for row in range(rows.batch):
                logits = rows.row(row)
                look_at_signals(rows.vocab + BLOCK, &done)
                if start(&w, scratch, &chain.plan, logits):
                    apply_stages(&w)
                    draw_all(&w, &u[row, 0], n, &tokens[row, 0], &done)
                elif flag_invalid:
                    for i in range(n):
                        tokens[row, i] = -1
                else:
                    bad_row = row
                    break
        return None if bad_row < 0 else complaint(bad_row, &logits)
    finally:
        release(scratch)


def sample_tokens(Chain chain, Rows rows, const double[:, ::1] u, int64_t[:, :, ::1] tokens,
                  double[:, :, ::1] logprobs, int64_t[:, :, ::1] top_ids,
                  double[:, :, ::1] top_logprobs, bint flag_invalid):
    """`draw_tokens`, and what `Samples` tells of each token; without u, of the tokens given.

    tokens holds the tokens, their ranks and the kept counts, shape (3, batch, n); logprobs those
    under the law and the raw ones, (2, batch, n); the top arrays the same two, (2, batch, any).
    With flag_invalid, an invalid row has ids -1, log-probabilities NaN, ranks and counts 0.
    Tokens given have to be in [0, vocab); of one that is not kept, the log-probability is -inf.
    """
    cdef int64_t row, i, n = tokens.shape[2], top = top_ids.shape[2], found, kept_count
    cdef bint given = u is None
    cdef int64_t done = 0, bad_row = -1
    cdef Scratch *scratch
    cdef Work w
    cdef Law raw
    cdef const Source *source
    cdef double log_mass, raw_log_mass, x
    cdef double buffer[GROUP]
    cdef Row logits
    if not (tokens.shape[1] == logprobs.shape[1] == top_ids.shape[1] == top_logprobs.shape[1]
            == rows.batch
            and tokens.shape[0] == 3 and logprobs.shape[0] == top_ids.shape[0] == 2
            and top_logprobs.shape[0] == 2 and logprobs.shape[2] == n
            and top_logprobs.shape[2] == top
            and (given or (u.shape[0] == rows.batch and u.shape[1] == n))):
        raise ValueError("the results have to fit the rows and the uniforms")
    if rows.batch == 0:
        return None
    if given:
        for row in range(rows.batch):
            for i in range(n):
                if not 0 <= tokens[0, row, i] < rows.vocab:
                    raise ValueError("the tokens have to be in [0, vocab)")
    scratch = acquire(rows.vocab, rows.vocab if n > 1 and not given else 0,
                      max(n, min(top, rows.vocab)))
    try:
        with nogil:
            for row in range(rows.batch):
                logits = rows.row(row)
                for i in range(top):
                    top_ids[0, row, i] = -1
                    top_ids[1, row, i] = -1
                    top_logprobs[0, row, i] = -INFINITY
                    top_logprobs[1, row, i] = -INFINITY
                look_at_signals(rows.vocab + BLOCK + 4 * n, &done)
                if not start(&w, scratch, &chain.plan, logits):
                    if not flag_invalid:
                        bad_row = row
                        break
                    for i in range(n):
                        tokens[0, row, i] = -1
                        tokens[1, row, i] = 0
                        tokens[2, row, i] = 0
                        logprobs[0, row, i] = NAN
                        logprobs[1, row, i] = NAN
                    for i in range(top):
                        top_logprobs[0, row, i] = NAN
                        top_logprobs[1, row, i] = NAN
                    continue
                raw = w.law
                raw_log_mass = log_canonical(mass_value(mass_of(&w.whole, &raw, KEEP_ALL)))
                apply_stages(&w)
                source = kept_source(&w, True)
                kept_count = count_of(source, w.cut)
                if source == &w.whole and w.cut.value == -INFINITY and w.temperature == 1.0:
                    log_mass = raw_log_mass
                else:
                    log_mass = log_canonical(mass_value(mass_of(source, &w.law, w.cut)))
                if n > 0:
                    if not given:
                        draw_all(&w, &u[row, 0], n, &tokens[0, row, 0], &done)
                    for i in range(n):
                        x = load_double(&logits, tokens[0, row, i], 1, buffer)[0]
                        scratch.items[i] = Item(x, tokens[0, row, i], i)
                        tokens[2, row, i] = kept_count
                        logprobs[0, row, i] = -INFINITY
                        if keeps(w.cut, x, tokens[0, row, i]):
                            logprobs[0, row, i] = log_share(&w, x, log_mass)
                        logprobs[1, row, i] = -INFINITY
                        if x > -INFINITY:
                            logprobs[1, row, i] = raw_log_share(&raw, x, raw_log_mass)
                    if given:
                        # May lie behind all that is kept, and then be outside the list.
                        rank_items(&w.whole, scratch.items, n, &tokens[1, row, 0])
                    else:
                        rank_items(source, scratch.items, n, &tokens[1, row, 0])
                if top > 0:  # the last thing: it may gather anew, over what `source` points at
                    found = list_top(&w, min(top, rows.vocab), scratch.items)
                    for i in range(found):
                        x = scratch.items[i].value
                        top_ids[1, row, i] = scratch.items[i].id
                        top_logprobs[1, row, i] = raw_log_share(&raw, x, raw_log_mass)
                        if keeps(w.cut, x, scratch.items[i].id):
                            top_ids[0, row, i] = scratch.items[i].id
                            top_logprobs[0, row, i] = log_share(&w, x, log_mass)
        return None if bad_row < 0 else complaint(bad_row, &logits)
    finally:
        release(scratch)


def filter_rows(Chain chain, Rows rows, out, double limit, bint flag_invalid):
    """out[row] = the logits over the temperature where kept, -inf elsewhere.

    out is float32 or float64 of shape (batch, vocab), contiguous; it may be the rows themselves.
    No finite value passes limit in size. Returns as `draw_tokens`; with flag_invalid an invalid
    row is -inf throughout.
    """
    cdef int64_t row, b, i, done = 0, bad_row = -1
    cdef Scratch *scratch
    cdef Work w
    cdef Row logits
    cdef float[:, ::1] single
    cdef double[:, ::1] double_
    cdef bint narrow = out.itemsize == 4, shifted
    cdef double divisor
    if narrow:
        single = out
        if single.shape[0] != rows.batch or single.shape[1] != rows.vocab:
            raise ValueError("out has to have the shape of the rows")
    else:
        double_ = out
        if double_.shape[0] != rows.batch or double_.shape[1] != rows.vocab:
            raise ValueError("out has to have the shape of the rows")
    scratch = acquire(rows.vocab, 0, 0)
    try:
        with nogil:
            for row in range(rows.batch):
                logits = rows.row(row)
                look_at_signals(rows.vocab + BLOCK, &done)
                if not start(&w, scratch, &chain.plan, logits):
                    if not flag_invalid:
                        bad_row = row
                        break
                    for i in range(rows.vocab):
                        if narrow:
                            single[row, i] = -INFINITY
                        else:
                            double_[row, i] = -INFINITY
                    continue
                apply_stages(&w)
                divisor = 1.0 if w.greedy else w.temperature
                # Where x / T would pass the dtype's range, shift the row below zero first: the
                # law is the same, and the largest logits, the ones that matter, stay exact.
                shifted = not fabs(w.max) / divisor <= limit
                for b in range(blocks_in(rows.vocab)):
                    if narrow:
                        filter_float(&w.whole, &w.law, w.cut, b, divisor, shifted, limit,
                                     &single[row, b * BLOCK])
                    else:
                        filter_double(&w.whole, &w.law, w.cut, b, divisor, shifted, limit,
                                      &double_[row, b * BLOCK])
        return None if bad_row < 0 else complaint(bad_row, &logits)
    finally:
        release(scratch)


def distribution_row(Chain chain, Rows rows, int64_t[::1] ids, double[::1] logits,
                     double[::1] probs, double[::1] logprobs, double[::1] cumulative):
    """What the chain keeps of the one row, ids ascending; the arrays hold `vocab` entries.

    cumulative is the mass up to each token, the arithmetic of the draw. Returns (count, None), or
    (0, (row, token, value)) as `draw_tokens`.
    """
    cdef int64_t b, i, count, id, n = 0
    cdef Scratch *scratch
    cdef Work w
    cdef const Source *source
    cdef Row row
    cdef double x_buffer[BLOCK]
    cdef double weights[BLOCK]
    cdef const double *x
    cdef double total, log_mass, high
    cdef Mass mass = Mass(0.0, 0.0)
    cdef bint valid
    if not (rows.batch == 1 and ids.shape[0] == rows.vocab and logits.shape[0] == rows.vocab
            and probs.shape[0] == rows.vocab and logprobs.shape[0] == rows.vocab
            and cumulative.shape[0] == rows.vocab):
        raise ValueError("one row, and arrays as long as it")
    scratch = acquire(rows.vocab, 0, 0)
    try:
        with nogil:
            row = rows.row(0)
            valid = start(&w, scratch, &chain.plan, row)
            if valid:
                apply_stages(&w)
                source = kept_source(&w, True)
                for b in range(blocks_in(source.row.n)):
                    if not block_reaches(source, b, w.cut.value):
                        continue
                    count = read_block(source, &w.law, w.cut, b, &x, x_buffer, weights)
                    for i in range(count):
                        id = id_at(source, b * BLOCK + i)
                        if not keeps(w.cut, x[i], id):
                            continue
                        # Greedy keeps one token; its weight is 1 at any temperature.
                        high = high_part(weights[i])
                        mass_add(&mass, high, low_part(weights[i], high))
                        ids[n] = id
                        logits[n] = x[i]
                        probs[n] = weights[i]
                        cumulative[n] = mass_value(mass)
                        n += 1
                total = mass_value(mass)
                log_mass = log_canonical(total)
                for i in range(n):
                    logprobs[i] = log_share(&w, logits[i], log_mass)
                    probs[i] /= total
        return (n, None) if valid else (0, complaint(0, &row))
    finally:
        release(scratch)


# ------------------------------------------------------------------------------ softmax family

cpdef enum:
    SOFTMAX = 0
    LOG_SOFTMAX = 1
    LOGSUMEXP = 2


cdef void store(float *single, double *double_, int64_t i, double value) noexcept nogil:
    if single != NULL:
        single[i] = <float> value
    else:
        double_[i] = value


cdef void softmax_row(Row row, double temperature, int what, float *single,
                      double *double_) noexcept nogil:
    cdef Source source = Source(row, NULL, NULL, NULL)
    cdef double tops[SPANS_PER_BLOCK]
    cdef double x_buffer[BLOCK]
    cdef double weights[BLOCK]
    cdef const double *x
    cdef double top = -INFINITY, total, log_total
    cdef int64_t b, i, first, count
    cdef bint bad = False
    cdef Law law
    cdef Mass mass
    for b in range(blocks_in(row.n)):
        first = b * BLOCK
        count = min(<int64_t> BLOCK, row.n - first)
        bad |= scan_block(&row, first, count, tops)
        top = max(top, tops[0], tops[1])
    if bad or top == -INFINITY:
        # NumPy's answer: NaN, save that the sum over an all -inf row is exp(-inf) = 0.
        for i in range(1 if what == LOGSUMEXP else row.n):
            store(single, double_, i, -INFINITY if what == LOGSUMEXP and not bad else NAN)
        return
    # Temperature 0 is the limit: the maxima share, all else has weight 0. So is the smallest
    # positive temperature, save where logits are subnormal.
    law = make_law(top, temperature if temperature > 0.0 else 5e-324)
    mass = Mass(0.0, 0.0)
    if temperature > 0.0:
        mass = mass_of(&source, &law, KEEP_ALL)
    else:
        mass.high = <double> count_of(&source, Cut(top, INT64_MAX))
    total = mass_value(mass)
    log_total = log_canonical(total)
    if what == LOGSUMEXP:
        if temperature == 0.0:
            total = 0.0 if top == 0.0 else top * INFINITY
        else:
            total = top / temperature
        store(single, double_, 0, total + log_total)
        return
    for b in range(blocks_in(row.n)):
        first = b * BLOCK
        count = read_block(&source, &law, KEEP_ALL, b, &x, x_buffer, weights)
        for i in range(count):
            if temperature == 0.0 and x[i] < top:
                store(single, double_, first + i, 0.0 if what == SOFTMAX else -INFINITY)
            elif what == SOFTMAX:
                store(single, double_, first + i, weights[i] / total)
            elif x[i] == -INFINITY:
                store(single, double_, first + i, -INFINITY)
            else:
                store(single, double_, first + i, tempered(&law, x[i]) - log_total)


def softmax_rows(Rows rows, double temperature, int what, out):
    """SOFTMAX or LOG_SOFTMAX of every row into out of shape (batch, vocab), or LOGSUMEXP into out
    of shape (batch, 1): float32 or float64, contiguous; it may be the rows themselves."""
    cdef int64_t row, done = 0
    cdef int64_t width = 1 if what == LOGSUMEXP else rows.vocab
    cdef float[:, ::1] single
    cdef double[:, ::1] double_
    cdef bint narrow = out.itemsize == 4
    if narrow:
        single = out
        if single.shape[0] != rows.batch or single.shape[1] != width:
            raise ValueError("out has to have the shape of the result")
    else:
        double_ = out
        if double_.shape[0] != rows.batch or double_.shape[1] != width:
            raise ValueError("out has to have the shape of the result")
    with nogil:
        for row in range(rows.batch):
            if narrow:
                softmax_row(rows.row(row), temperature, what, &single[row, 0], NULL)
            else:
                softmax_row(rows.row(row), temperature, what, NULL, &double_[row, 0])
            look_at_signals(rows.vocab + BLOCK, &done)


# --------------------------------------------------------------------------------- for the tests

def masses(Rows rows, double temperature):
    """For each row the fast mass, its error bound, and the canonical mass, as tuples of floats;
    the first two are None where the fast mass does not apply."""
    cdef Scratch *scratch = acquire(rows.vocab, 0, 0)
    cdef Work w
    cdef Plan plan
    cdef int64_t row
    memset(&plan, 0, sizeof(Plan))
    result = []
    try:
        for row in range(rows.batch):
            if not start(&w, scratch, &plan, rows.row(row)):
                raise ValueError(f"row {row} is invalid")
            set_temperature(&w, temperature)
            fast = (w.fast_total, w.fast_error) if weigh_fast(&w) else (None, None)
            result.append((*fast, mass_value(mass_of(&w.whole, &w.law, KEEP_ALL))))
        return result
    finally:
        release(scratch)


def canonical(str function, double x):
    """exp or log in the canonical arithmetic; exp for x <= 0."""
    return exp_canonical(x) if function == "exp" else log_canonical(x)

# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=True, auto_pickle=False, autotestdict=False
"""The core: rows of logits in, tokens out.

A. What comes in. Checked parameters, NumPy arrays and typed memoryviews only; everything a user can
   get wrong is caught in Python before this file is reached. What is re-checked here is what would
   be unsafe. Logits arrive as an array with a kind and a byte order, so that any dtype, stride and
   alignment is one case; `loops.h` widens them block by block.

B. A row and its kept set. Rank is (logit descending, id ascending). Every stage here keeps a prefix
   in rank, and a prefix is named by its last token: a `Cut`, a logit value and an id. So stages
   compose by taking the shorter cut, and a floor (`min_tokens_to_keep`) by taking the longer one.

C. The list. Nearly always what is kept is a few tokens near the maximum. The read pass (`scan`)
   keeps maxima of parts of the row; the k-th largest of them is a lower bound on the k-th largest
   logit, so `gather` finds the tokens above it in the few parts that reach it, and the stages and
   the draw work on that list. Once a cut lies within the list, the list is trimmed to it, and is
   what is kept, no more and no less.

D. One question. Each truncation asks for the shortest prefix in rank whose measure, a count or a
   mass, reaches a target. `select` answers it on a list, halving the range of values in which the
   boundary lies. Where no list holds the boundary, `narrow` measures the row at two values at a
   time until what is left between two of them fits a list. Nothing sorts or copies the vocabulary.

E. Mass. The exact mass (`canonical.h`) is the same on every machine and in every order of
   summation, and decides. The fast mass, float32, and the fine mass, double, are cheaper and come
   with a bound on their error; where the bound proves what the exact mass would say, it is not
   asked. So a tier changes the time and never the answer; `Chain(tier=EXACT)` goes straight to the
   last.

F. The draw. The uniform u is an argument. The token is the first, ids ascending, whose cumulative
   exact mass exceeds u times the total: since u < 1 and the total is the last of these sums, there
   always is one, and its weight is not zero.

G. Threads and signals. A call is a `Job`: rows, and what to do with each. The GIL is released
   around them, the threads of `pool.h` take some where that pays, and every `WORK_PER_LOOK` logits
   the thread that called looks at signals. Scratch memory belongs to a thread while it works: it is
   taken from a free list and put back.
"""

cimport cython
from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cython cimport pymutex
from libc.math cimport INFINITY, NAN, ceil, fabs, sqrt
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memset


cdef extern from "float.h":
    const double DBL_MAX
    const double DBL_EPSILON

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

    /* For `make test-asan`: nobody may read or write this memory. */
    #ifdef __SANITIZE_ADDRESS__
    #include <sanitizer/asan_interface.h>
    #define SAMPLER_FORBID(start, size) ASAN_POISON_MEMORY_REGION(start, size)
    #else
    #define SAMPLER_FORBID(start, size) ((void)0)
    #endif
    """
    const char *SAMPLER_COMPILER
    void SAMPLER_FORBID(void *start, size_t size) noexcept

cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept  # -1 with an exception set
    void PyErr_SetString(object kind, const char *message)

cdef extern from "philox.h" nogil:
    double philox_uniform(uint64_t seed, uint64_t stream, uint64_t step, uint64_t draw,
                          uint64_t lane)

cdef extern from "canonical.h" nogil:
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
    double nearest(double x)
    float fused_emulated(float a, float b, float c)
    Law make_law(double max, double temperature)
    double tempered(const Law *law, double x)

cdef extern from "kernels.h" nogil:
    enum:
        BLOCK
        LANES
        WORD
        FLOORS
        FLOAT16
        BFLOAT16
        FLOAT32
        FLOAT64
        SOFTMAX
        LOG_SOFTMAX
        LOGSUMEXP
    const double FINE_WEIGHT_ERROR
    const double FINE_FLOOR_ERROR

    ctypedef struct Cut:
        double value
        int64_t last

    ctypedef struct List:
        int64_t n
        double *values
        int64_t *ids
        double *weights

    ctypedef struct Split:
        int64_t count
        Mass mass
        double least
        double most

    ctypedef struct Row

    # What each does is told in loops.h.
    ctypedef struct Loops:
        void (*scan)(const Row *, void *) noexcept nogil
        double (*top)(const Row *) noexcept nogil
        double (*bound)(const Row *, int64_t, void *) noexcept nogil
        int64_t (*gather)(const Row *, double, double, int64_t, double *, int64_t *) noexcept nogil
        int64_t (*find)(const Row *, double, int64_t) noexcept nogil
        double (*at)(const Row *, int64_t) noexcept nogil
        int64_t (*pick)(const Row *, int64_t, int64_t, double, double, double *) noexcept nogil
        int64_t (*count)(const Row *, Cut) noexcept nogil
        void (*counts)(const Row *, const double *, int64_t *) noexcept nogil
        void (*fast_masses)(const Row *, const Law *, Cut, double *, double *) noexcept nogil
        void (*fine_masses)(const Row *, const Law *, Cut, double *) noexcept nogil
        void (*fine_masses_above)(const Row *, const Law *, Cut, double *, const double *,
                                  double *) noexcept nogil
        Mass (*exact_mass)(const Row *, const Law *, Cut, Mass *) noexcept nogil
        Mass (*exact_and_fine_masses)(const Row *, const Law *, const Law *,
                                      double *) noexcept nogil
        int64_t (*read)(const Row *, const Law *, Cut, int64_t, double *, double *) noexcept nogil
        void (*filter)(const Row *, const Law *, Cut, double, bint, double, void *) noexcept nogil
        void (*softmax)(const Row *, ptrdiff_t, int64_t, const double *, ptrdiff_t, int, char *,
                        ptrdiff_t) noexcept nogil

    ctypedef struct Row:
        int64_t n
        int kind
        const Loops *loops
        const void *maxima

    ctypedef struct Level:
        void (*weigh)(const Law *, const double *, int64_t, double *) noexcept nogil
        Mass (*sum)(const double *, int64_t) noexcept nogil
        void (*split)(const double *, const double *, int64_t, double, Split *) noexcept nogil

    const Level *kernels
    int SAMPLER_LEVELS
    const char *level_name(int level)
    bint level_runs(int level)
    void choose_level(int level)

    Row make_row(const char *data, ptrdiff_t stride, int64_t n, int kind, bint swapped)
    int64_t blocks_in(const Row *row)
    int64_t block_start(const Row *row, int64_t b)
    int64_t most_blocks(int64_t n)
    int64_t maxima_in(int64_t blocks)
    int64_t whole_words(int64_t n)
    bint keeps(Cut cut, double x, int64_t id)
    double least_of(const Row *row, double value, bint above)
    double halfway(const Row *row, double low, double high)

cdef extern from "pool.h" nogil:
    enum:
        MOST_WORKERS

    void pool_start(int count, void (*task)(void *, int) noexcept, void *job)
    void pool_wait(int count)
    int64_t fetch_add(int64_t *value, int64_t step)

cdef extern from "pool.h":
    int pool_enter(int wanted)
    void pool_leave()
    long getpid()


cdef enum:
    MAX_STAGES = 64
    MAX_FREE = 80         # scratch kept for later calls; more threads than that allocate anew
    SMALL = 256          # a row up to this long is a list from the start
    PICKED = 2048         # tokens that `narrow` looks at to guess where the boundary lies
    FIRST_LIST = 64       # what top-p tries to do with, and LIST_GROWTH times that, and again
    LAST_LIST = 1024
    LEAST_ROOM = 4096     # tokens that the list of a short row holds
    LIST_GROWTH = 4
    FAST_FROM = 512       # below this many tokens the exact mass costs less than proving another
    # Logits and draws between looks at signals: 50 ms at the slowest. A row counts BLOCK more than
    # it has, for what it costs however short it is.
    WORK_PER_LOOK = 1 << 19
    # How rows are shared over threads, by what they take on a fast machine: a thread is worth
    # waking, which takes some 50 us, for a share like this, and claims rows for so long at a time.
    NS_PER_THREAD = 50000
    NS_PER_CLAIM = 25000
    NS_PER_ROW = 500
    NS_PER_DRAW = 40           # after the first; and for each logit, in units of a 16th
    READ_COST = 1
    MASS_COST = 4
    FILTER_COST = 10
    EXACT_COST = 25
    MOST_IDLE_BYTES = 1 << 24  # of the buffers that only some calls need, kept for later ones

cdef double LOG_SLACK = 2.0 ** -44
cdef Cut KEEP_ALL = Cut(-INFINITY, -1)
cdef Cut NOTHING = Cut(INFINITY, -1)
cdef Mass NO_MASS = Mass(0.0, 0.0)


# ------------------------------------------------------------------------------------- scratch

# How questions were settled: see `counts`.
cdef enum:
    DRAWS_LISTED
    DRAWS_FAST
    DRAWS_FINE
    DRAWS_EXACT
    TOP_P_LISTED
    TOP_P_FAST
    TOP_P_FINE
    TOP_P_EXACT
    LOG_MASS_FINE
    LOG_MASS_EXACT
    COUNTERS

# Everything a thread needs beside the result, for rows of up to `vocab` logits.
cdef struct Scratch:
    int64_t vocab
    void *arena           # what the next ones point into
    void *maxima          # of the row
    void *folded          # room for as many
    List list             # tokens of the row, ids ascending
    List part             # some of those, or of the row
    double *masses        # one a block: the fast or the fine mass, and its error
    double *errors
    Mass *blocks          # one a block: the exact mass
    int64_t cumulative_size
    double *cumulative    # one a token, for several draws from one row only
    int64_t items_size
    Item *items           # for top lists and for ranking draws only
    int64_t bad_row       # the first invalid row that this thread met
    int64_t counts[COUNTERS]


# A token with its place in some list; sorts by rank.
cdef struct Item:
    double value
    int64_t id
    int64_t place


cdef int64_t room_for(int64_t vocab) noexcept nogil:
    """How many tokens a list holds at the most."""
    return max(<int64_t> LEAST_ROOM, vocab // 8)


cdef pymutex _lock
cdef Scratch *_free[MAX_FREE]
cdef int _free_count = 0
cdef int64_t _counts[COUNTERS]


cdef void release(Scratch *scratch) noexcept:
    global _free_count
    cdef bint kept = False
    cdef int i
    if scratch.cumulative_size * sizeof(double) > MOST_IDLE_BYTES:
        scratch.cumulative = <double *> regrow(scratch.cumulative, 0)
        scratch.cumulative_size = 0
    if scratch.items_size * sizeof(Item) > MOST_IDLE_BYTES:
        scratch.items = <Item *> regrow(scratch.items, 0)
        scratch.items_size = 0
    with _lock:
        for i in range(COUNTERS):
            _counts[i] += scratch.counts[i]
            scratch.counts[i] = 0
        if _free_count < MAX_FREE:
            _free[_free_count] = scratch
            _free_count += 1
            kept = True
    if not kept:
        destroy(scratch)


cdef void destroy(Scratch *scratch) noexcept:
    free(scratch.arena)
    free(scratch.cumulative)
    free(scratch.items)
    free(scratch)


cdef void *carve(Scratch *s, size_t *used, size_t size) noexcept:
    """The next `size` bytes of the arena; without an arena, only count them.

    Neighbours start at different offsets in a page: a loop that reads one array and writes another
    at the same offset is several times slower.
    """
    cdef size_t start = used[0]
    used[0] += (size + 63) // 64 * 64 + 64 * 11
    if s.arena == NULL:
        return NULL
    SAMPLER_FORBID(<char *> s.arena + start + size, used[0] - start - size)
    return <char *> s.arena + start


cdef size_t lay_out(Scratch *s, int64_t vocab) noexcept:
    """Point the arrays into the arena; returns its size."""
    cdef size_t used = 64 - <size_t> s.arena % 64
    cdef int64_t room = room_for(vocab) + 2 * WORD
    cdef int64_t part = max(<int64_t> PICKED, room // 4) + 2 * WORD
    cdef int64_t blocks = most_blocks(vocab), maxima = maxima_in(blocks) * sizeof(double)
    s.maxima = carve(s, &used, maxima)
    s.folded = carve(s, &used, maxima)
    s.list.values = <double *> carve(s, &used, room * sizeof(double))
    s.list.ids = <int64_t *> carve(s, &used, room * sizeof(int64_t))
    s.list.weights = <double *> carve(s, &used, room * sizeof(double))
    s.part.values = <double *> carve(s, &used, part * sizeof(double))
    s.part.ids = <int64_t *> carve(s, &used, part * sizeof(int64_t))
    s.part.weights = <double *> carve(s, &used, part * sizeof(double))
    s.masses = <double *> carve(s, &used, blocks * sizeof(double))
    s.errors = <double *> carve(s, &used, blocks * sizeof(double))
    s.blocks = <Mass *> carve(s, &used, blocks * sizeof(Mass))
    return used


cdef Scratch *acquire(int64_t vocab, int64_t cumulative_size, int64_t items_size) except NULL:
    """Scratch for rows of `vocab` logits; the caller gives it back with `release`."""
    global _free_count
    cdef Scratch *s = NULL
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
        free(s.arena)
        s.arena = NULL
        s.arena = malloc(lay_out(s, vocab) + 64)
        if s.arena == NULL:
            destroy(s)
            raise MemoryError()
        lay_out(s, vocab)
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

# Where a mass comes from, cheapest first.
cpdef enum:
    UNKNOWN = 0
    FAST = 1
    FINE = 2
    EXACT = 3


# The stages of a chain that do something, in order.
cdef struct Plan:
    int count
    int kinds[MAX_STAGES]
    double values[MAX_STAGES]
    bint ties_all
    int64_t min_tokens_to_keep
    int tier              # the first to try
    bint weighs           # whether the mass of the whole row may be asked for
    double temperature    # the product of all
    bint truncates        # and is not greedy


cdef struct Work:
    Scratch *scratch
    const Plan *plan
    Row row
    double max
    double temperature
    Law law
    bint greedy           # temperature 0: the first in rank alone
    Cut cut               # what is kept so far
    List list             # all of the row that `listed` keeps; within the cut, once the cut is
    Cut listed            # NOTHING from before anything else is written to the list's memory
    bint weighed          # whether the list has its weights
    int tier              # where the mass of what the cut keeps is known from
    double total
    double error
    bint broad            # so many tokens share the mass that the fast one proves little
    double whole          # the fine mass of the whole row at the chain's temperature, if known
    double whole_error    # its bound, +inf if not


cdef Cut shorter(Cut a, Cut b) noexcept nogil:
    if a.value != b.value:
        return a if a.value > b.value else b
    return a if a.last < b.last else b


cdef Cut longer(Cut a, Cut b) noexcept nogil:
    if a.value != b.value:
        return a if a.value < b.value else b
    return a if a.last > b.last else b


cdef bint is_listed(const Work *w, Cut cut) noexcept nogil:
    """Whether the list holds all that a cut keeps."""
    return cut.value > w.listed.value or (cut.value == w.listed.value
                                          and cut.last <= w.listed.last)


cdef bint start(Work *w, Scratch *scratch, const Plan *plan, Row row) noexcept nogil:
    """Read the row once. False where it holds NaN, +inf or no finite logit."""
    row.loops.scan(&row, scratch.maxima)
    row.maxima = scratch.maxima
    w.scratch = scratch
    w.plan = plan
    w.row = row
    w.max = row.loops.top(&row)
    w.greedy = False
    w.cut = KEEP_ALL
    w.list = scratch.list
    w.listed = NOTHING
    w.broad = False
    w.whole_error = INFINITY
    if not -INFINITY < w.max < INFINITY:
        return False
    set_temperature(w, 1.0)
    if row.n <= SMALL:
        list_from(w, -DBL_MAX, False)
        w.listed = KEEP_ALL
    return True


cdef void set_temperature(Work *w, double temperature) noexcept nogil:
    w.temperature = temperature
    w.law = make_law(w.max, temperature)
    w.weighed = False
    w.tier = UNKNOWN


cdef tuple complaint(int64_t index, const Row *row):
    """(row, token, value) of the first NaN or +inf; token -1 where no logit is finite."""
    cdef int64_t i
    cdef double x
    for i in range(row.n):
        x = row.loops.at(row, i)
        if not x < INFINITY:
            return index, i, x
    return index, -1, -INFINITY


# ------------------------------------------------------------------------------------- the list

cdef void pad(List *list) noexcept nogil:
    cdef int64_t i
    for i in range(list.n, whole_words(list.n)):
        list.values[i] = -INFINITY


cdef void forget_list(Work *w) noexcept nogil:
    """Before its memory is used for something else."""
    w.listed = NOTHING
    w.weighed = False


cdef bint gather_between(Work *w, double low, double high) noexcept nogil:
    """Make the list hold every token with low <= x < high. False where that is too many, or looks
    as if it were."""
    forget_list(w)
    w.list.n = w.row.loops.gather(&w.row, low, high, room_for(w.row.n), w.list.values, w.list.ids)
    if w.list.n < 0:
        return False
    pad(&w.list)
    return True


cdef bint list_from(Work *w, double low, bint kept) noexcept nogil:
    """Make the list hold every token with x >= low, or those of them that are kept. False as
    `gather_between`."""
    if not gather_between(w, low, INFINITY):
        return False
    w.listed = Cut(low, INT64_MAX)
    if kept:
        trim(w)
    return True


cdef void trim(Work *w) noexcept nogil:
    """Drop from the list what the cut removes."""
    cdef List *list = &w.list
    cdef int64_t i, id, n = 0
    cdef double x
    if w.listed.value == w.cut.value and w.listed.last == w.cut.last:
        return
    if w.cut.value >= w.listed.value:
        for i in range(list.n):
            x = list.values[i]
            id = list.ids[i]
            list.values[n] = x
            list.ids[n] = id
            if w.weighed:
                list.weights[n] = list.weights[i]
            n += keeps(w.cut, x, id)
        list.n = n
        pad(list)
        if w.weighed:
            for i in range(n, whole_words(n)):
                list.weights[i] = 0.0
        if is_listed(w, w.cut):
            w.listed = w.cut


cdef void weigh_list(Work *w) noexcept nogil:
    if not w.weighed:
        kernels.weigh(&w.law, w.list.values, whole_words(w.list.n), w.list.weights)
        w.weighed = True


cdef Mass mass_of_list(Work *w) noexcept nogil:
    weigh_list(w)
    return kernels.sum(w.list.weights, w.list.n)


# ----------------------------------------------------------------------------------------- mass

cdef void refine(Work *w) noexcept nogil:
    """Find the mass of what is kept of the row, and of its blocks, from the next tier."""
    cdef Scratch *s = w.scratch
    cdef const Loops *loops = w.row.loops
    if w.tier != UNKNOWN:
        w.tier += 1
    elif not has_bounds(w, &w.law):
        w.tier = EXACT
    elif (w.whole_error < INFINITY and w.cut.value == -INFINITY
          and w.temperature == w.plan.temperature):
        w.tier = max(<int> FINE, w.plan.tier)
        if w.tier == FINE:
            w.total = w.whole
            w.error = w.whole_error
            return
    elif w.broad or w.row.kind == FLOAT64:
        w.tier = max(<int> FINE, w.plan.tier)
    else:
        w.tier = max(<int> FAST, w.plan.tier)
    if w.tier == EXACT:
        w.total = mass_value(loops.exact_mass(&w.row, &w.law, w.cut, s.blocks))
        w.error = 0.0
        return
    if w.tier == FAST:
        loops.fast_masses(&w.row, &w.law, w.cut, s.masses, s.errors)
    else:
        loops.fine_masses(&w.row, &w.law, w.cut, s.masses)
        set_fine_errors(w)
    add_up(w)


cdef bint has_bounds(const Work *w, const Law *law) noexcept nogil:
    """Whether the fast and the fine mass are used at all."""
    return (w.row.n >= FAST_FROM and not law.uniform and law.scale == 1.0
            and 1e-30 <= law.temperature <= 1e30)


cdef void set_fine_errors(Work *w) noexcept nogil:
    cdef int64_t b
    for b in range(blocks_in(&w.row)):
        w.scratch.errors[b] = fine_error(w.scratch.masses[b], BLOCK)


cdef double fine_error(double mass, int64_t n) noexcept nogil:
    return mass * FINE_WEIGHT_ERROR + FINE_FLOOR_ERROR * n


cdef double rounding(const Work *w, double mass) noexcept nogil:
    """A bound on what sums in double over the row, and the grid of the exact mass, lose."""
    return mass * (0.5 * DBL_EPSILON) * (w.row.n // LANES + BLOCK) + FINE_FLOOR_ERROR * w.row.n


cdef void add_up(Work *w) noexcept nogil:
    cdef int64_t b
    w.total = 0.0
    w.error = 0.0
    for b in range(blocks_in(&w.row)):
        w.total += w.scratch.masses[b]
        w.error += w.scratch.errors[b]
    w.error += rounding(w, w.total)


cdef void note(Work *w, int listed) noexcept nogil:
    """Count a question that the current tier has settled; `listed` is the counter of its kind."""
    w.scratch.counts[listed + w.tier] += 1


# --------------------------------------------------------------------------------------- select

# The boundary of a prefix: the value of its last token, and the measure without that token and its
# ties, and with all of them.
cdef struct Boundary:
    double value
    Mass before
    Mass reached


# A prefix that reaches a target, and its measure.
cdef struct Prefix:
    Cut cut
    double reached


cdef Boundary find_boundary(const Row *row, List list, List *part, bint by_mass, Mass before,
                            double target, double high) noexcept nogil:
    """Where the shortest prefix in rank of a list ends whose measure, on top of `before`, reaches
    target. The measure is the exact mass, or the count of tokens, held as a mass of 1 each.

    The list's logits are numbers of the row, none above `high`, and not none. A target that is not
    reached gives all there is. With `part`, what is left of a long list is copied there once it has
    shrunk.
    """
    cdef Boundary found
    cdef Split split
    cdef double low, middle, x
    cdef int64_t above = 0, up_to = list.n, i, n
    cdef int rounds = 0
    cdef Mass start = before, reached
    kernels.split(list.values, list.weights if by_mass else NULL, list.n, -DBL_MAX, &split)
    low = split.least
    found.before = before
    found.reached = measure(by_mass, before, &split)
    while low < high:
        # By value, and now and then by the numbers between: that ends, whatever the values.
        rounds += 1
        middle = low * 0.5 + high * 0.5 if rounds % 4 else halfway(row, low, high)
        if not low < middle <= high:
            middle = high
        kernels.split(list.values, list.weights if by_mass else NULL, list.n, middle, &split)
        reached = measure(by_mass, start, &split)
        if mass_value(reached) >= target:
            low = split.least
            found.reached = reached
            up_to = split.count
        else:
            high = split.most
            found.before = reached
            above = split.count
        if part != NULL and list.n > 4 * WORD and up_to - above <= list.n // 4:
            n = 0
            for i in range(list.n):
                x = list.values[i]
                part.values[n] = x
                part.ids[n] = list.ids[i]
                if by_mass:
                    part.weights[n] = list.weights[i]
                # Not a chained comparison: that would branch, and be predicted wrongly.
                n += (<int> (x >= low)) & (<int> (x <= high))
            part.n = n
            pad(part)
            if by_mass:
                for i in range(n, whole_words(n)):
                    part.weights[i] = 0.0
            list = part[0]
            start = found.before
            above = 0
            up_to = n
    found.value = low
    return found


cdef Mass measure(bint by_mass, Mass before, const Split *split) noexcept nogil:
    if by_mass:
        mass_add(&before, split.mass.high, split.mass.low)
    else:
        before.high += split.count
    return before


cdef int64_t ties_needed(const Law *law, bint by_mass, Boundary found, int64_t ties,
                         double target) noexcept nogil:
    """How many of the equal tokens at a boundary its prefix needs: at least 1, at most ties."""
    cdef int64_t few = 1, many = ties, middle
    while few < many:
        middle = few + (many - few) // 2
        if mass_value(with_ties(law, by_mass, found, middle)) >= target:
            many = middle
        else:
            few = middle + 1
    return few


cdef Mass with_ties(const Law *law, bint by_mass, Boundary found, int64_t ties) noexcept nogil:
    cdef double weight = exp_canonical(tempered(law, found.value)) if by_mass else 1.0
    cdef Mass part = mass_times(weight, ties)
    mass_add(&found.before, part.high, part.low)
    return found.before


cdef Prefix select(const Work *w, List list, bint by_mass, Mass before, double target,
                   double high) noexcept nogil:
    """The shortest prefix in rank of a list whose measure reaches target: see `find_boundary`."""
    cdef List part = w.scratch.part
    cdef Boundary found = find_boundary(&w.row, list, &part, by_mass, before, target, high)
    cdef int64_t i, ties = 0, needed, last = -1
    for i in range(list.n):
        if list.values[i] == found.value:
            ties += 1
            last = i
    if ties == 1:
        return Prefix(Cut(found.value, list.ids[last]), mass_value(found.reached))
    needed = ties_needed(&w.law, by_mass, found, ties, target)
    ties = 0
    for i in range(list.n):
        if list.values[i] == found.value:
            ties += 1
            if ties == needed:
                last = i
                break
    return Prefix(Cut(found.value, list.ids[last]),
                  mass_value(with_ties(&w.law, by_mass, found, needed)))


# --------------------------------------------------------------------------------------- narrow

# What `narrow` knows: the boundary's logit is in [low, high), and the measure of what is at or
# above either, with the error of the latter.
cdef struct Bracket:
    bint by_mass
    double wanted         # a count, or a share of the mass
    double low
    double high
    double at_low
    double at_high
    double error


cdef Cut narrow(Work *w, bint by_mass, double wanted) noexcept nogil:
    """The cut of the shortest prefix in rank that has `wanted` tokens, or that share of the mass of
    what is kept, by measuring the row at a few values at a time. The list does not survive it.

    By mass, it has to be known from some tier.
    """
    cdef Bracket b
    cdef int64_t step = (w.row.n + PICKED - 1) // PICKED, few, room = room_for(w.row.n)
    cdef int64_t first = 0, rounds = 0, above = 0, down_to
    cdef double floors[FLOORS]
    b.by_mass = by_mass
    b.wanted = wanted
    b.low = least_of(&w.row, -INFINITY, True)
    if by_mass:
        b.low = max(b.low, least_of(&w.row, w.cut.value, False))
    b.high = least_of(&w.row, w.max, True)
    b.at_low = w.total if by_mass else <double> w.row.loops.count(&w.row, KEEP_ALL)
    if not by_mass and wanted >= b.at_low:
        return KEEP_ALL
    if w.row.n <= room:
        list_from(w, b.low, by_mass)
        return select(w, w.list, by_mass, NO_MASS,
                      wanted * mass_value(mass_of_list(w)) if by_mass else wanted, w.max).cut
    b.at_high = 0.0
    b.error = 0.0
    if w.listed.value < INFINITY and w.listed.last == INT64_MAX:
        # What is listed, and was too little, need not be measured.
        above = w.list.n
        b.at_high = mass_value(mass_of_list(w)) if by_mass else <double> above
        if b.at_high < (wanted * (w.total - w.error) if by_mass else wanted):
            b.high = least_of(&w.row, w.listed.value, False)
        else:
            above = 0
            b.at_high = 0.0
    while True:
        few = w.row.loops.pick(&w.row, first, step, b.low, b.high, w.scratch.part.values)
        if (few * step <= room - room // 4
                and gather_between(w, b.low, b.high if b.high <= w.max else INFINITY)):
            return settle_list(w, &b)
        if least_of(&w.row, b.low, True) >= b.high:
            return settle_ties(w, &b)
        # Now and then without a guess: that ends, whatever the values.
        rounds += 1
        down_to = guess(w, &b, few if rounds % 4 else 0, floors)
        # A longer list, if it is likely to do, costs less than a measure.
        if (rounds == 1 and 0 < down_to <= few and above + down_to * step <= room // 2
                and list_from(w, floors[1], by_mass)):
            if not by_mass and w.list.n >= wanted:
                return select(w, w.list, False, NO_MASS, wanted, w.max).cut
            if by_mass and mass_value(mass_of_list(w)) >= wanted * (w.total + w.error):
                return settle_top(w, wanted)
        if by_mass:
            measure_masses(w, &b, floors)
        else:
            measure_counts(w, &b, floors)
        first = (first + 1) % step


cdef int64_t guess(Work *w, const Bracket *b, int64_t few, double *floors) noexcept nogil:
    """Two values in the bracket that are likely to have the boundary between them, as far as the
    `few` tokens tell that were picked into `part`; returns how many of those reach the second.
    Where they cannot tell, the value that halves the bracket by how many numbers are in it: that
    alone would do; returns 0. The list's memory serves as scratch."""
    cdef double share = (target_of(w, b) - b.at_high) / (b.at_low - b.at_high)
    cdef double rank, spread
    cdef List picked = w.scratch.part
    cdef Split split
    cdef Boundary found
    forget_list(w)
    floors[0] = halfway(&w.row, b.low, b.high)
    floors[1] = floors[0]
    if few < 16 or not 0.0 < share <= 1.0:
        return 0
    picked.n = few
    pad(&picked)
    rank = ceil(share * few)
    if b.by_mass:
        kernels.weigh(&w.law, picked.values, whole_words(few), picked.weights)
        found = find_boundary(&w.row, picked, &w.list, True, NO_MASS,
                              share * mass_value(kernels.sum(picked.weights, few)), b.high)
        kernels.split(picked.values, NULL, few, found.value, &split)
        rank = split.count
    # Standard deviations of the place of a quantile in a sample: it is rarely further off.
    spread = 2.5 * sqrt(rank * (few - rank) / few) + 2.0
    found = find_boundary(&w.row, picked, &w.list, False, NO_MASS, max(1.0, rank - spread), b.high)
    if b.low < least_of(&w.row, found.value, True) < b.high:
        floors[0] = least_of(&w.row, found.value, True)
    found = find_boundary(&w.row, picked, &w.list, False, NO_MASS,
                          min(<double> few, rank + spread), b.high)
    if not b.low < found.value < b.high:
        return 0
    floors[1] = found.value
    return <int64_t> (rank + spread)


cdef double target_of(const Work *w, const Bracket *b) noexcept nogil:
    return b.wanted * w.total if b.by_mass else b.wanted


cdef void measure_counts(Work *w, Bracket *b, const double *floors) noexcept nogil:
    cdef int64_t counts[FLOORS]
    cdef int i
    w.row.loops.counts(&w.row, floors, counts)
    for i in range(FLOORS):
        update(b, floors[i], counts[i], 0.0, b.wanted, b.wanted)


cdef void measure_masses(Work *w, Bracket *b, const double *floors) noexcept nogil:
    cdef const Loops *loops = w.row.loops
    cdef double masses[FLOORS]
    cdef double error
    cdef bint moved = False
    cdef int i
    if w.tier == EXACT:
        for i in range(FLOORS):
            masses[i] = mass_value(loops.exact_mass(&w.row, &w.law, Cut(floors[i], INT64_MAX),
                                                    NULL))
            update(b, floors[i], masses[i], 0.0, b.wanted * w.total, b.wanted * w.total)
        return
    loops.fine_masses_above(&w.row, &w.law, w.cut, w.scratch.masses, floors, masses)
    w.tier = FINE
    w.broad = True
    set_fine_errors(w)
    add_up(w)
    for i in range(FLOORS):
        error = fine_error(masses[i], w.row.n) + rounding(w, masses[i])
        moved |= update(b, floors[i], masses[i], error, b.wanted * (w.total - w.error),
                        b.wanted * (w.total + w.error))
    if not moved:
        refine(w)


cdef bint update(Bracket *b, double value, double measured, double error, double least,
                 double most) noexcept nogil:
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


cdef Cut settle_list(Work *w, const Bracket *b) noexcept nogil:
    """Finish `narrow` on the list, which holds the bracket."""
    cdef Prefix found
    cdef Mass above = NO_MASS
    cdef double least, most
    if not b.by_mass:
        above.high = b.at_high
        return select(w, w.list, False, above, b.wanted, b.high).cut
    w.listed = Cut(b.low, INT64_MAX)
    trim(w)  # ties at the end of what is kept
    if b.high <= w.max:
        w.listed = NOTHING
    weigh_list(w)
    while w.tier != EXACT:
        least = b.wanted * (w.total - w.error) - (b.at_high + b.error)
        most = b.wanted * (w.total + w.error) - (b.at_high - b.error)
        # These differences are of the size of the total, and round by that.
        found = select(w, w.list, True, NO_MASS, least - 4.0 * DBL_EPSILON * w.total, b.high)
        if found.reached >= most + 4.0 * DBL_EPSILON * w.total:
            note(w, TOP_P_LISTED)
            return found.cut
        refine(w)
    if b.at_high > 0.0:
        above = w.row.loops.exact_mass(&w.row, &w.law, Cut(b.high, INT64_MAX), NULL)
    note(w, TOP_P_LISTED)
    return select(w, w.list, True, above, b.wanted * w.total, b.high).cut


cdef Cut settle_ties(Work *w, const Bracket *b) noexcept nogil:
    """Finish `narrow` where all that is left in the bracket is one value, and more tokens of it
    than a list holds."""
    cdef const Loops *loops = w.row.loops
    cdef Boundary found
    cdef int64_t ties, last = INT64_MAX
    found.value = b.low
    found.before = NO_MASS
    if b.by_mass:
        while w.tier != EXACT:
            refine(w)
        found.before = loops.exact_mass(&w.row, &w.law, Cut(b.low, -1), NULL)
        note(w, TOP_P_LISTED)
    else:
        found.before.high = loops.count(&w.row, Cut(b.low, -1))
    if b.by_mass and w.cut.value == b.low:
        last = w.cut.last
    ties = loops.count(&w.row, Cut(b.low, last)) - loops.count(&w.row, Cut(b.low, -1))
    ties = ties_needed(&w.law, b.by_mass, found, ties, target_of(w, b))
    return Cut(b.low, loops.find(&w.row, b.low, ties))


# --------------------------------------------------------------------------------------- stages

cdef Cut first_in_rank(Work *w, int64_t k) noexcept nogil:
    """The cut that keeps the first k of the row."""
    cdef Mass none = NO_MASS
    if k == 1:
        return Cut(w.max, w.row.loops.find(&w.row, w.max, 1))
    if k >= w.row.n:
        return KEEP_ALL
    if not (w.listed.value < INFINITY and w.list.n >= k):
        if w.listed.value == -INFINITY:
            return KEEP_ALL  # all finite logits are listed, and they are fewer
        if not gather_first(w, k):
            return narrow(w, False, k)
    return select(w, w.list, False, none, k, w.max).cut


cdef bint gather_first(Work *w, int64_t k) noexcept nogil:
    """Make the list hold the first k of the row in rank, and few more. False where that fails.

    The cut is of no concern here: what it removes may be needed.
    """
    cdef double low
    if k > maxima_in(blocks_in(&w.row)):
        return False
    low = w.row.loops.bound(&w.row, k, w.scratch.folded)
    return low > -INFINITY and list_from(w, low, False)


cdef Cut first_with_mass(Work *w, double p) noexcept nogil:
    """The cut that keeps the shortest prefix of what is kept whose share of the mass is >= p."""
    # A bound on the k-th logit is close where there are many times k maxima.
    cdef int64_t k = min(<int64_t> FIRST_LIST, blocks_in(&w.row) * LANES // 4)
    cdef double low, mass, needed
    if p == 0.0:
        return first_in_rank(w, 1)
    if w.law.uniform and not is_listed(w, w.cut):
        # Every token weighs 1.
        k = <int64_t> ceil(p * w.row.loops.count(&w.row, w.cut))
        return first_in_rank(w, k)
    if not is_listed(w, w.cut):
        if w.tier == UNKNOWN:
            refine(w)
        needed = p * w.total
        while True:
            # What is missing takes at least as many tokens as if each weighed as much as any can.
            while k <= LAST_LIST and k < needed:
                k *= LIST_GROWTH
            if k > LAST_LIST or not gather_first(w, k):
                return narrow(w, True, p)
            low = w.listed.value
            trim(w)
            if is_listed(w, w.cut):
                break
            mass = mass_value(mass_of_list(w))
            if mass >= p * (w.total + w.error):
                return settle_top(w, p)
            needed = w.list.n + (p * w.total - mass) / exp_canonical(tempered(&w.law, low))
            k *= LIST_GROWTH
    w.scratch.counts[TOP_P_LISTED] += 1
    return select(w, w.list, True, NO_MASS, p * mass_value(mass_of_list(w)), w.max).cut


cdef Cut settle_top(Work *w, double p) noexcept nogil:
    """The cut of `first_with_mass` on the list, which holds the boundary and all before it. Where
    the answer is the same for the least and for the largest total that there can be, it is the
    answer."""
    cdef Prefix found
    while True:
        found = select(w, w.list, True, NO_MASS, p * (w.total - w.error), w.max)
        if w.tier == EXACT or found.reached >= p * (w.total + w.error):
            note(w, TOP_P_LISTED)
            return found.cut
        refine(w)


cdef Cut above_share_of_max(const Work *w, double m) noexcept nogil:
    """The cut that keeps x >= max + T ln m."""
    if w.law.uniform:
        return KEEP_ALL
    return Cut(max(w.max + w.temperature * log_canonical(m), -DBL_MAX), INT64_MAX)


cdef void apply_stages(Work *w) noexcept nogil:
    cdef const Plan *plan = w.plan
    cdef int i
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
                if is_listed(w, w.cut):
                    trim(w)
            else:
                # Temperatures multiply; the product must not reach 0, which means greedy.
                set_temperature(w, max(w.temperature * value, 5e-324))
            continue
        if plan.kinds[i] == TOP_K:
            cut = first_in_rank(w, <int64_t> value)
            if plan.ties_all:
                cut.last = INT64_MAX
        elif plan.kinds[i] == TOP_P:
            cut = first_with_mass(w, value)
        else:
            cut = above_share_of_max(w, value)
        if plan.min_tokens_to_keep > 1:
            cut = longer(cut, first_in_rank(w, plan.min_tokens_to_keep))
        keep(w, cut)


cdef void keep(Work *w, Cut cut) noexcept nogil:
    """Cut what is kept shorter, and list it if it is not too much."""
    w.cut = shorter(w.cut, cut)
    w.tier = UNKNOWN
    if is_listed(w, w.cut):
        trim(w)
    elif w.cut.value > -INFINITY:
        list_from(w, w.cut.value, True)


# ----------------------------------------------------------------------------------------- draw

cdef int64_t walk(const double *weights, int64_t n, Mass passed, double target) noexcept nogil:
    """The first place at which the exact cumulative mass, on top of passed, exceeds target; -1 if
    there is none. weights are padded with 0 to whole words."""
    cdef int64_t i, word, first = 0
    cdef Mass upto
    cdef double high
    for word in range((n + WORD - 1) // WORD):
        first = word * WORD
        upto = kernels.sum(weights + first, min(<int64_t> WORD, n - first))
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


cdef int64_t draw_from_list(Work *w, double u) noexcept nogil:
    cdef double target = u * mass_value(mass_of_list(w))
    return w.list.ids[walk(w.list.weights, w.list.n, NO_MASS, target)]


cdef int64_t draw_proven(Work *w, double u) noexcept nogil:
    """The token at u by the masses of the blocks, or -1 where their error leaves it open.

    With P the mass of the blocks before, Q that of the rest, the target within the block is
    u Q - (1 - u) P, hence its error u error(Q) + (1 - u) error(P).
    """
    cdef Scratch *s = w.scratch
    cdef double x[BLOCK]
    cdef double weights[BLOCK]
    cdef double passed = 0.0, passed_error = 0.0, target = u * w.total, error
    cdef double before, after = 0.0
    cdef int64_t b, i, count, blocks = blocks_in(&w.row)
    for b in range(blocks):
        if passed + s.masses[b] > target:
            break
        passed += s.masses[b]
        passed_error += s.errors[b]
    else:
        return -1
    target -= passed
    error = (u * (w.error - passed_error) + (1.0 - u) * passed_error + rounding(w, w.total))
    count = w.row.loops.read(&w.row, &w.law, w.cut, b, x, weights)
    for i in range(count):
        before = after
        after += weights[i]
        if after > target:
            if before <= target - error and after > target + error:
                return block_start(&w.row, b) + i
            return -1
    return -1


cdef int64_t draw_exact(Work *w, double u) noexcept nogil:
    """The token at u by the exact masses of the blocks."""
    cdef Mass *blocks = w.scratch.blocks
    cdef double x[BLOCK]
    cdef double weights[BLOCK]
    cdef Mass passed = NO_MASS, upto
    cdef double target = u * w.total
    cdef int64_t b, count
    for b in range(blocks_in(&w.row)):
        upto = passed
        mass_add(&upto, blocks[b].high, blocks[b].low)
        if mass_value(upto) > target:
            break
        passed = upto
    count = w.row.loops.read(&w.row, &w.law, w.cut, b, x, weights)
    return block_start(&w.row, b) + walk(weights, count, passed, target)


cdef int64_t draw(Work *w, double u) noexcept nogil:
    cdef int64_t token
    if w.greedy:
        return w.cut.last
    if is_listed(w, w.cut):
        w.scratch.counts[DRAWS_LISTED] += 1
        return draw_from_list(w, u)
    if w.tier == UNKNOWN:
        refine(w)
    while w.tier != EXACT:
        token = draw_proven(w, u)
        if token >= 0:
            note(w, DRAWS_LISTED)
            return token
        refine(w)
    note(w, DRAWS_LISTED)
    return draw_exact(w, u)


cdef double accumulate(Work *w, double *cumulative) noexcept nogil:
    """cumulative[i] = the mass of what is kept up to place i of the list, or of the row, whichever
    is at work; returns the total."""
    cdef double x[BLOCK]
    cdef double weights[BLOCK]
    cdef Mass mass = NO_MASS
    cdef int64_t b, count
    if is_listed(w, w.cut):
        weigh_list(w)
        add_on(w.list.weights, w.list.n, &mass, cumulative)
    else:
        for b in range(blocks_in(&w.row)):
            count = w.row.loops.read(&w.row, &w.law, w.cut, b, x, weights)
            add_on(weights, count, &mass, cumulative + block_start(&w.row, b))
    return mass_value(mass)


cdef void add_on(const double *weights, int64_t n, Mass *mass, double *cumulative) noexcept nogil:
    cdef int64_t i
    cdef double high
    for i in range(n):
        high = high_part(weights[i])
        mass_add(mass, high, low_part(weights[i], high))
        cumulative[i] = mass_value(mass[0])


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


cdef void draw_all(Work *w, Job *job, int64_t row, int64_t *tokens) noexcept nogil:
    """tokens[i] = the token of draw i of what the stages kept."""
    cdef double total
    cdef int64_t i, place, n = w.row.n
    cdef double *cumulative = w.scratch.cumulative
    cdef const int64_t *ids = NULL
    if job.n == 1 or w.greedy:
        for i in range(job.n):
            tokens[i] = draw(w, coin(job, row, i))
        return
    total = accumulate(w, cumulative)
    if is_listed(w, w.cut):
        n = w.list.n
        ids = w.list.ids
    for i in range(job.n):
        place = position_above(cumulative, n, coin(job, row, i) * total)
        tokens[i] = place if ids == NULL else ids[place]
        if i % WORK_PER_LOOK == WORK_PER_LOOK - 1 and interrupts(job, w.scratch):
            break


# ------------------------------------------------------------------------ what there is to report

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


cdef void rank_items(Work *w, bint listed, Item *items, int64_t n, int64_t *ranks) noexcept nogil:
    """ranks[item.place] = 1 + the tokens of the row before the item; sorts the items by rank.

    With `listed`, the list holds every token before the items. One pass, whatever n.
    """
    cdef double x[BLOCK]
    cdef int64_t b, i, count, before = 0
    if n == 1 and not listed and items[0].value > -INFINITY:
        ranks[items[0].place] = w.row.loops.count(&w.row, Cut(items[0].value, items[0].id))
        return
    qsort(items, n, sizeof(Item), by_rank)
    for i in range(n):
        ranks[items[i].place] = 0
    if listed:
        for i in range(w.list.n):
            rank_after(w.list.values[i], w.list.ids[i], items, n, ranks)
    elif items[n - 1].value == -INFINITY:
        for i in range(w.row.n):
            rank_after(w.row.loops.at(&w.row, i), i, items, n, ranks)
    else:
        for b in range(blocks_in(&w.row)):
            count = w.row.loops.read(&w.row, NULL, Cut(items[n - 1].value, INT64_MAX), b, x, NULL)
            for i in range(count):
                if x[i] > -INFINITY:
                    rank_after(x[i], block_start(&w.row, b) + i, items, n, ranks)
    for i in range(n):
        # An item counts itself; equal draws of one token share the first one's count.
        before += ranks[items[i].place]
        ranks[items[i].place] = before


cdef void rank_after(double value, int64_t id, const Item *items, int64_t n,
                     int64_t *ranks) noexcept nogil:
    """Count a token at the first item that is not before it in rank: that and all behind have the
    token ahead."""
    cdef Item token = Item(value, id, 0)
    cdef int64_t low = 0, high = n, middle
    if not value >= items[n - 1].value:
        return
    while low < high:
        middle = low + (high - low) // 2
        if by_rank(&items[middle], &token) < 0:
            low = middle + 1
        else:
            high = middle
    if low < n:
        ranks[items[low].place] += 1


cdef int64_t list_top(Work *w, int64_t n, Item *items) noexcept nogil:
    """The first n of the row in rank, into items; returns how many there are. The last thing to ask
    of a row: the list may become another one."""
    cdef Cut cut = first_in_rank(w, n)
    cdef double x[BLOCK]
    cdef int64_t b, i, count, found = 0
    if is_listed(w, cut):
        for i in range(w.list.n):
            if keeps(cut, w.list.values[i], w.list.ids[i]):
                items[found] = Item(w.list.values[i], w.list.ids[i], 0)
                found += 1
    else:
        for b in range(blocks_in(&w.row)):
            count = w.row.loops.read(&w.row, NULL, cut, b, x, NULL)
            for i in range(count):
                if x[i] > -INFINITY:
                    items[found] = Item(x[i], block_start(&w.row, b) + i, 0)
                    found += 1
    qsort(items, found, sizeof(Item), by_rank)
    return found


# ------------------------------------------------------------------------------------- the job

# A call: rows, what to do with each, and how far it is. Pointers are NULL where they do not matter.
cdef struct Job:
    bint (*do)(Job *, int64_t, Scratch *) noexcept nogil  # False where the row is invalid
    const Plan *plan
    const char *data
    ptrdiff_t row_stride
    ptrdiff_t stride
    int64_t batch
    int64_t vocab
    int kind
    bint swapped
    bint flag_invalid
    # The coins: given, or named by seed, stream and step.
    const double *u
    uint64_t seed
    uint64_t step
    const uint64_t *streams
    const uint64_t *steps
    uint64_t first_draw
    int64_t n
    int64_t top
    # The results.
    int64_t *tokens       # n a row
    int64_t *ranks
    int64_t *kept
    double *logprobs
    double *raw_logprobs
    double *log_mass
    int64_t *top_ids      # top a row
    int64_t *raw_top_ids
    double *top_logprobs
    double *raw_top_logprobs
    bint given            # the tokens are
    char *out             # out_stride bytes a row
    ptrdiff_t out_stride
    double limit
    # Progress: what a logit takes, the next row that nobody has claimed, how many to claim.
    int64_t cost
    int64_t next
    int64_t claim
    int64_t interrupted   # not 0 once an exception is set
    long process          # whose threads help; 0 where none do
    Scratch *scratch[MOST_WORKERS + 1]


cdef Row row_of(const Job *job, int64_t index) noexcept nogil:
    return make_row(job.data + index * job.row_stride, job.stride, job.vocab, job.kind, job.swapped)


cdef double coin(const Job *job, int64_t row, int64_t draw) noexcept nogil:
    cdef uint64_t stream, step
    if job.u != NULL:
        return job.u[row * job.n + draw]
    stream = row if job.streams == NULL else job.streams[row]
    step = job.step if job.steps == NULL else job.steps[row]
    return philox_uniform(job.seed, stream, step, job.first_draw + <uint64_t> draw, 0)


cdef int look_at_signals(int64_t work, int64_t *done) except -1 nogil:
    """Count work; every WORK_PER_LOOK of it, let Python handle signals. For loops of one thread:
    where a handler forks, the child goes on too."""
    done[0] += work
    if done[0] >= WORK_PER_LOOK:
        done[0] = 0
        with gil:
            return PyErr_CheckSignals()
    return 0


cdef bint is_interrupted(Job *job) noexcept nogil:
    return fetch_add(&job.interrupted, 0) != 0


cdef bint interrupts(Job *job, const Scratch *scratch) noexcept nogil:
    """Let Python handle signals, in the thread that called. Whether that ends the call: an
    exception is set, and `do_rows` will pass it on."""
    if scratch == job.scratch[0] and not is_interrupted(job):
        with gil:
            if check_signals(job) != 0:
                fetch_add(&job.interrupted, 1)
                stop(job)
    return is_interrupted(job)


cdef int check_signals(const Job *job) noexcept:
    """-1 with an exception set where a handler has raised, or has forked: the child lacks the
    threads that help, and the rows that they were doing. A call on one thread goes on in both."""
    if PyErr_CheckSignals() != 0:
        return -1
    if job.process != 0 and getpid() != job.process:
        PyErr_SetString(RuntimeError, "a signal handler has forked during a call on several "
                                      "threads: the child lacks them, and the call ends there")
        return -1
    return 0


cdef bint claim_rows(Job *job, Scratch *scratch, int64_t *done) noexcept nogil:
    """Do the next few rows. False where there are none left, or one of them is invalid."""
    cdef int64_t row, first = fetch_add(&job.next, job.claim)
    for row in range(first, min(first + job.claim, job.batch)):
        if not job.do(job, row, scratch) and not job.flag_invalid:
            scratch.bad_row = row
            stop(job)
            return False
        done[0] += job.vocab + BLOCK + job.n
    return first + job.claim < job.batch


cdef void stop(Job *job) noexcept nogil:
    """Let nobody claim another row."""
    fetch_add(&job.next, job.batch)


cdef int do_rows(Job *job) except -1 nogil:
    """What the thread that called does: rows, and a look at signals now and then."""
    cdef int64_t done = 0
    while claim_rows(job, job.scratch[0], &done):
        if done >= WORK_PER_LOOK:
            done = 0
            if interrupts(job, job.scratch[0]):
                break
    return -1 if is_interrupted(job) else 0


cdef void help_out(void *job, int worker) noexcept nogil:
    cdef int64_t done = 0
    while claim_rows(<Job *> job, (<Job *> job).scratch[worker + 1], &done):
        pass


cdef object run(Job *job, int threads, int64_t cumulative_size, int64_t items_size):
    """Do every row. None, or the `complaint` about the first invalid row, where that stops it."""
    cdef int64_t row_ns = (NS_PER_ROW + job.vocab * job.cost // 16
                           + max(<int64_t> 0, job.n - 1) * NS_PER_DRAW), bad_row = INT64_MAX
    cdef int helpers = 0, ready = 0, i
    cdef Row row
    if job.batch == 0:
        return None
    job.next = 0
    job.claim = max(<int64_t> 1, NS_PER_CLAIM // row_ns)
    threads = min(<int64_t> threads, job.batch // job.claim, job.batch * row_ns // NS_PER_THREAD)
    if threads > 1:
        with _lock:  # which a Python without a GIL needs
            helpers = pool_enter(threads - 1)
    try:
        for ready in range(helpers + 1):
            job.scratch[ready] = acquire(job.vocab, cumulative_size, items_size)
            job.scratch[ready].bad_row = INT64_MAX
        ready = helpers + 1
        if helpers == 0:
            with nogil:
                do_rows(job)
        else:
            job.process = getpid()
            pool_start(helpers, help_out, job)
            try:
                with nogil:
                    do_rows(job)
            finally:
                stop(job)
                if getpid() == job.process:
                    with nogil:
                        pool_wait(helpers)
                else:
                    helpers = 0  # the child has none to wait for, or to give back
        for i in range(ready):
            bad_row = min(bad_row, job.scratch[i].bad_row)
    finally:
        for i in range(ready):
            release(job.scratch[i])
        if helpers > 0:
            pool_leave()
    if bad_row == INT64_MAX:
        return None
    row = row_of(job, bad_row)
    return complaint(bad_row, &row)


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


def counts():
    """How often, since import, draws, top-p and the kept mass at a temperature were settled by each
    kind of mass: on a list of few tokens, where it is exact and cheap, or over the row by the fast,
    the fine or the exact one."""
    with _lock:
        return {
            "draws": {"list": _counts[DRAWS_LISTED], "fast": _counts[DRAWS_FAST],
                      "fine": _counts[DRAWS_FINE], "exact": _counts[DRAWS_EXACT]},
            "top_p": {"list": _counts[TOP_P_LISTED], "fast": _counts[TOP_P_FAST],
                      "fine": _counts[TOP_P_FINE], "exact": _counts[TOP_P_EXACT]},
            "log_mass": {"fine": _counts[LOG_MASS_FINE], "exact": _counts[LOG_MASS_EXACT]},
        }


# The kinds of logits by dtype name.
KINDS = {"float16": FLOAT16, "bfloat16": BFLOAT16, "float32": FLOAT32, "float64": FLOAT64}
# The softmax family.
FAMILY = {"softmax": SOFTMAX, "log_softmax": LOG_SOFTMAX, "logsumexp": LOGSUMEXP}


@cython.final
cdef class Rows:
    """A batch of rows of logits: an array, the kind of its floats, and their byte order.

    Parameters
    ----------
    words : buffer of shape (batch, vocab) or (vocab,)
        Of items of 2, 4 or 8 bytes, as the kind wants. Any strides, read-only or not; never
        written to.
    kind : {FLOAT16, BFLOAT16, FLOAT32, FLOAT64}
    swapped : bool
        Whether the items are in the other byte order.
    """

    cdef readonly int64_t batch
    cdef readonly int64_t vocab
    cdef Py_buffer _buffer
    cdef bint _held
    cdef int _kind
    cdef bint _swapped
    cdef ptrdiff_t _row_stride
    cdef ptrdiff_t _stride

    def __cinit__(self, words, int kind, bint swapped):
        cdef int last
        if not FLOAT16 <= kind <= FLOAT64:
            raise ValueError(f"unknown kind {kind}")
        PyObject_GetBuffer(words, &self._buffer, PyBUF_STRIDES)
        self._held = True
        last = self._buffer.ndim - 1
        if not 0 <= last <= 1:
            raise ValueError("rows have to be an array of one or two axes")
        if self._buffer.itemsize != (8 if kind == FLOAT64 else 4 if kind == FLOAT32 else 2):
            raise ValueError("the items have to be of the size of their kind")
        self.batch = self._buffer.shape[0] if last == 1 else 1
        self._row_stride = self._buffer.strides[0]
        self.vocab = self._buffer.shape[last]
        self._stride = self._buffer.strides[last]
        self._kind = kind
        self._swapped = swapped
        if self.vocab > MOST_TOKENS:
            raise ValueError(f"a row has to have at most 2**27 tokens, but has {self.vocab}")
        if self.vocab == 0:
            raise ValueError("a row has to have at least one token")

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._buffer)

    cdef void enter(self, Job *job) noexcept:
        """Begin a job on these rows, in which nothing else is set."""
        memset(job, 0, sizeof(Job))
        job.data = <const char *> self._buffer.buf
        job.row_stride = self._row_stride
        job.stride = self._stride
        job.batch = self.batch
        job.vocab = self.vocab
        job.kind = self._kind
        job.swapped = self._swapped


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
    tier : {UNKNOWN, FAST, FINE, EXACT}
        The first kind of mass to ask. Same answers, slower: for tests.
    """

    cdef Plan plan

    def __cinit__(self, stages, bint ties_all=False, min_tokens_to_keep=1, int tier=UNKNOWN):
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
        self.plan.tier = tier
        # After a cut by count or by value few tokens are left, and weighed on their own.
        self.plan.weighs = True
        for kind, value in stages:
            if kind != TEMPERATURE or value == 0.0:
                self.plan.weighs = kind == TOP_P
                break
        self.plan.temperature = 1.0
        for kind, value in stages:
            if kind == TEMPERATURE:
                self.plan.temperature = max(self.plan.temperature * value, 5e-324)
        self.plan.truncates = (any(kind != TEMPERATURE for kind, _ in stages)
                               and all(value != 0.0 for kind, value in stages
                                       if kind == TEMPERATURE))


@cython.final
cdef class Coins:
    """A seed, and the steps of its draws, given out once each, whatever threads ask.

    Parameters
    ----------
    seed : int, in [0, 2**64)
    step : int, in [0, 2**64]
        The first to give; at 2**64 none is left.
    """

    cdef readonly uint64_t seed
    cdef object _step

    def __cinit__(self, uint64_t seed, step):
        self.seed = seed
        self._step = step

    @property
    def step(self):
        """The step that the next call takes."""
        with _lock:
            return self._step

    cdef uint64_t take(self) except? 0:
        """The next step; moves on."""
        with _lock:
            step = self._step
            if step < 1 << 64:
                self._step = step + 1
        if step >= 1 << 64:
            raise ValueError("`step` has to be an integer in [0, 2**64), but all are used up")
        return step


cdef int toss(Job *job, Coins coins, const uint64_t[::1] streams,
              const uint64_t[::1] steps, uint64_t first_draw) except -1:
    """Let a job draw by keyed uniforms: stream and step of each row, or its place and the next
    step, and the draws from the first on. The last thing that may fail: an error before the core
    runs takes no step."""
    if ((streams is not None and streams.shape[0] != job.batch)
            or (steps is not None and steps.shape[0] != job.batch)):
        raise ValueError("one stream and one step a row")
    job.seed = coins.seed
    job.first_draw = first_draw
    if streams is not None and job.batch > 0:
        job.streams = &streams[0]
    if steps is None:
        job.step = coins.take()
    elif job.batch > 0:
        job.steps = &steps[0]
    return 0


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


cdef bint draw_row(Job *job, int64_t row, Scratch *scratch) noexcept nogil:
    cdef Work w
    cdef int64_t i
    if start(&w, scratch, job.plan, row_of(job, row)):
        apply_stages(&w)
        draw_all(&w, job, row, job.tokens + row * job.n)
        return True
    for i in range(job.n):
        job.tokens[row * job.n + i] = -1
    return False


def draw_token(Chain chain, Rows rows, Coins coins, bint flag_invalid):
    """Draw one token from the one row: its id, or a complaint as of `draw_tokens`."""
    cdef Job job
    cdef int64_t token
    rows.enter(&job)
    job.do = draw_row
    job.plan = &chain.plan
    job.flag_invalid = flag_invalid
    job.n = 1
    job.tokens = &token
    if job.batch != 1:
        raise ValueError("one row, and one token")
    toss(&job, coins, None, None, 0)
    complaint = run(&job, 1, 0, 0)
    return token if complaint is None else complaint


def draw_tokens(Chain chain, Rows rows, Coins coins, int64_t[:, ::1] tokens, bint flag_invalid,
                int threads=1, const uint64_t[::1] streams=None, const uint64_t[::1] steps=None,
                const double[:, ::1] u=None, uint64_t first_draw=0):
    """tokens[row, i] = the token of draw first_draw + i of the row under the chain.

    The uniforms are those of `coins`, or, for tests, given: u[row, i], in [0, 1). Returns None, or
    (row, token, value) of the first invalid logit: token -1 where no logit is finite. With
    flag_invalid, tokens of an invalid row are -1 and all rows are done.
    """
    cdef Job job
    rows.enter(&job)
    job.do = draw_row
    job.plan = &chain.plan
    job.flag_invalid = flag_invalid
    job.n = tokens.shape[1]
    job.cost = MASS_COST if chain.plan.weighs else READ_COST
    if tokens.shape[0] != job.batch or (u is not None and (u.shape[0] != job.batch
                                                           or u.shape[1] != job.n)):
        raise ValueError("one uniform and one token a draw")
    if job.batch > 0 and job.n > 0:
        job.tokens = &tokens[0, 0]
    if u is None:
        toss(&job, coins, streams, steps, first_draw)
    elif job.batch > 0 and job.n > 0:
        job.u = &u[0, 0]
    if job.n == 0:
        return None
    return run(&job, threads, rows.vocab if job.n > 1 else 0, 0)


cdef double log_of_raw_mass(Work *w) noexcept nogil:
    """The log of the whole row's mass at temperature 1, exact. Where that of another temperature
    will be asked for, the fine mass at that one too, which then costs less."""
    cdef Law law = make_law(w.max, w.plan.temperature)
    cdef Mass mass
    if w.plan.truncates and w.plan.temperature != 1.0 and has_bounds(w, &law):
        mass = w.row.loops.exact_and_fine_masses(&w.row, &w.law, &law, w.scratch.masses)
        set_fine_errors(w)
        add_up(w)
        w.whole = w.total
        w.whole_error = w.error
    else:
        mass = w.row.loops.exact_mass(&w.row, &w.law, KEEP_ALL, NULL)
    return log_canonical(mass_value(mass))


cdef double on_grid(double log_mass) noexcept nogil:
    """The nearest multiple of 2**-32."""
    return nearest(log_mass * 4294967296.0) / 4294967296.0


cdef double log_kept_mass(Work *w, double log_mass, double raw_log_mass) noexcept nogil:
    """The log of the share of the row's mass that the chain kept, on a grid, at its temperature:
    from the exact masses, or from a fine one whose bounds prove what these would give."""
    cdef double low, high
    if w.greedy or w.cut.value == -INFINITY:
        return 0.0
    if w.temperature == 1.0:
        return on_grid(log_mass - raw_log_mass)
    if w.whole_error < INFINITY:
        # Two logs below 19, each off by 3 ULP at most, and two differences.
        low = on_grid(log_mass - log_canonical(w.whole + w.whole_error) - LOG_SLACK)
        high = on_grid(log_mass - log_canonical(w.whole - w.whole_error) + LOG_SLACK)
        if low == high:
            w.scratch.counts[LOG_MASS_FINE] += 1
            return low
    w.scratch.counts[LOG_MASS_EXACT] += 1
    return on_grid(log_mass - log_canonical(mass_value(
        w.row.loops.exact_mass(&w.row, &w.law, KEEP_ALL, NULL))))


cdef bint sample_row(Job *job, int64_t row, Scratch *scratch) noexcept nogil:
    cdef Work w
    cdef Law raw
    cdef int64_t i, found, kept, n = job.n, top = job.top
    cdef int64_t *tokens = job.tokens + row * n
    cdef Item *items = scratch.items
    cdef bint listed
    cdef double log_mass, raw_log_mass, kept_log_mass, x
    for i in range(row * top, (row + 1) * top):
        job.top_ids[i] = -1
        job.raw_top_ids[i] = -1
        job.top_logprobs[i] = -INFINITY
        job.raw_top_logprobs[i] = -INFINITY
    if not start(&w, scratch, job.plan, row_of(job, row)):
        for i in range(row * n, (row + 1) * n):
            job.tokens[i] = -1
            job.ranks[i] = 0
            job.kept[i] = 0
            job.logprobs[i] = NAN
            job.raw_logprobs[i] = NAN
            job.log_mass[i] = NAN
        for i in range(row * top, (row + 1) * top):
            job.top_logprobs[i] = NAN
            job.raw_top_logprobs[i] = NAN
        return False
    raw = w.law
    raw_log_mass = log_of_raw_mass(&w)
    apply_stages(&w)
    listed = is_listed(&w, w.cut)
    kept = w.list.n if listed else w.row.loops.count(&w.row, w.cut)
    if listed:
        log_mass = log_canonical(mass_value(mass_of_list(&w)))
    elif w.cut.value == -INFINITY and w.temperature == 1.0:
        log_mass = raw_log_mass
    else:
        log_mass = log_canonical(mass_value(w.row.loops.exact_mass(&w.row, &w.law, w.cut, NULL)))
    kept_log_mass = log_kept_mass(&w, log_mass, raw_log_mass)
    if n > 0:
        if not job.given:
            draw_all(&w, job, row, tokens)
            if is_interrupted(job):
                return True
        for i in range(n):
            x = w.row.loops.at(&w.row, tokens[i])
            items[i] = Item(x, tokens[i], i)
            job.kept[row * n + i] = kept
            job.log_mass[row * n + i] = kept_log_mass
            job.logprobs[row * n + i] = -INFINITY
            if keeps(w.cut, x, tokens[i]):
                job.logprobs[row * n + i] = log_share(&w, x, log_mass)
            job.raw_logprobs[row * n + i] = -INFINITY
            if x > -INFINITY:
                job.raw_logprobs[row * n + i] = raw_log_share(&raw, x, raw_log_mass)
        # Tokens given may lie behind all that is kept, and then outside the list.
        rank_items(&w, listed and not job.given, items, n, job.ranks + row * n)
    if top > 0:
        found = list_top(&w, min(top, w.row.n), items)
        for i in range(found):
            x = items[i].value
            job.raw_top_ids[row * top + i] = items[i].id
            job.raw_top_logprobs[row * top + i] = raw_log_share(&raw, x, raw_log_mass)
            if keeps(w.cut, x, items[i].id):
                job.top_ids[row * top + i] = items[i].id
                job.top_logprobs[row * top + i] = log_share(&w, x, log_mass)
    return True


def sample_tokens(Chain chain, Rows rows, Coins coins, int64_t[:, :, ::1] tokens,
                  double[:, :, ::1] logprobs, int64_t[:, :, ::1] top_ids,
                  double[:, :, ::1] top_logprobs, bint flag_invalid, int threads=1,
                  const uint64_t[::1] streams=None, const uint64_t[::1] steps=None,
                  uint64_t first_draw=0):
    """`draw_tokens`, and what `Samples` tells of each token; without coins, of the tokens given.

    tokens holds the tokens, their ranks and the kept counts, shape (3, batch, n); logprobs those
    under the law, the raw ones and the kept log mass, the same shape; the top arrays the first two
    of these, (2, batch, any).
    With flag_invalid, an invalid row has ids -1, log-probabilities NaN, ranks and counts 0.
    Tokens given have to be in [0, vocab); of one that is not kept, the log-probability is -inf.
    """
    cdef Job job
    cdef int64_t row, i, n = tokens.shape[2], top = top_ids.shape[2]
    rows.enter(&job)
    job.do = sample_row
    job.plan = &chain.plan
    job.flag_invalid = flag_invalid
    job.n = n
    job.top = top
    job.given = coins is None
    job.cost = EXACT_COST
    if not (tokens.shape[1] == logprobs.shape[1] == top_ids.shape[1] == top_logprobs.shape[1]
            == job.batch
            and tokens.shape[0] == logprobs.shape[0] == 3
            and top_ids.shape[0] == top_logprobs.shape[0] == 2 and logprobs.shape[2] == n
            and top_logprobs.shape[2] == top):
        raise ValueError("the results have to fit the rows")
    if job.given:
        for row in range(job.batch):
            for i in range(n):
                if not 0 <= tokens[0, row, i] < job.vocab:
                    raise ValueError("the tokens have to be in [0, vocab)")
    if job.batch > 0 and n > 0:
        job.tokens, job.ranks, job.kept = &tokens[0, 0, 0], &tokens[1, 0, 0], &tokens[2, 0, 0]
        job.logprobs, job.raw_logprobs = &logprobs[0, 0, 0], &logprobs[1, 0, 0]
        job.log_mass = &logprobs[2, 0, 0]
    if job.batch > 0 and top > 0:
        job.top_ids, job.raw_top_ids = &top_ids[0, 0, 0], &top_ids[1, 0, 0]
        job.top_logprobs, job.raw_top_logprobs = &top_logprobs[0, 0, 0], &top_logprobs[1, 0, 0]
    if not job.given:
        toss(&job, coins, streams, steps, first_draw)
    return run(&job, threads, job.vocab if n > 1 and not job.given else 0,
               max(n, min(top, job.vocab)))


cdef bint filter_row(Job *job, int64_t row, Scratch *scratch) noexcept nogil:
    cdef Work w
    cdef double divisor
    cdef bint shifted
    cdef char *out = job.out + row * job.out_stride
    cdef int64_t i
    if not start(&w, scratch, job.plan, row_of(job, row)):
        for i in range(job.vocab):
            if job.kind == FLOAT64:
                (<double *> out)[i] = -INFINITY
            else:
                (<float *> out)[i] = -INFINITY
        return False
    apply_stages(&w)
    divisor = 1.0 if w.greedy else w.temperature
    # Where x / T would pass the dtype's range, shift the row below zero first: the law is the same,
    # and the largest logits, the ones that matter, stay exact.
    shifted = not fabs(w.max) / divisor <= job.limit
    w.row.loops.filter(&w.row, &w.law, w.cut, divisor, shifted, job.limit, out)
    return True


cdef int aim(Job *job, out, int64_t width) except -1:
    """Let a job write rows of `width` to out, of the type that the rows' loops work on."""
    cdef float[:, ::1] single
    cdef double[:, ::1] double_
    if job.kind == FLOAT64:
        double_ = out
        if double_.shape[0] != job.batch or double_.shape[1] != width:
            raise ValueError("out has to have the shape of the result")
        job.out = <char *> &double_[0, 0] if job.batch > 0 else NULL
        job.out_stride = width * sizeof(double)
    else:
        single = out
        if single.shape[0] != job.batch or single.shape[1] != width:
            raise ValueError("out has to have the shape of the result")
        job.out = <char *> &single[0, 0] if job.batch > 0 else NULL
        job.out_stride = width * sizeof(float)
    return 0


def filter_rows(Chain chain, Rows rows, out, double limit, bint flag_invalid, int threads=1):
    """out[row] = the logits over the temperature where kept, -inf elsewhere.

    out is float64 for float64 rows, else float32, of shape (batch, vocab), contiguous; it may be
    the rows themselves. No finite value passes limit in size. Returns as `draw_tokens`; with
    flag_invalid an invalid row is -inf throughout.
    """
    cdef Job job
    rows.enter(&job)
    job.do = filter_row
    job.plan = &chain.plan
    job.flag_invalid = flag_invalid
    job.limit = limit
    job.cost = FILTER_COST
    aim(&job, out, job.vocab)
    return run(&job, threads, 0, 0)


def distribution_row(Chain chain, Rows rows, int64_t[::1] ids, double[::1] logits,
                     double[::1] probs, double[::1] logprobs, double[::1] cumulative):
    """What the chain keeps of the one row, ids ascending; the arrays hold `vocab` entries.

    cumulative is the mass up to each token, the arithmetic of the draw. Returns (count, None), or
    (0, (row, token, value)) as `draw_tokens`.
    """
    cdef Job job
    cdef Work w
    cdef Scratch *scratch
    cdef int64_t b, i, count, n = 0
    cdef double x[BLOCK]
    cdef double weights[BLOCK]
    cdef double total, log_mass
    cdef Mass mass = NO_MASS
    cdef bint valid
    rows.enter(&job)
    if not (job.batch == 1 and ids.shape[0] == job.vocab and logits.shape[0] == job.vocab
            and probs.shape[0] == job.vocab and logprobs.shape[0] == job.vocab
            and cumulative.shape[0] == job.vocab):
        raise ValueError("one row, and arrays as long as it")
    scratch = acquire(job.vocab, 0, 0)
    try:
        with nogil:
            valid = start(&w, scratch, &chain.plan, row_of(&job, 0))
            if valid:
                apply_stages(&w)
                if is_listed(&w, w.cut):
                    weigh_list(&w)
                    for i in range(w.list.n):
                        ids[i] = w.list.ids[i]
                        logits[i] = w.list.values[i]
                        probs[i] = w.list.weights[i]
                    n = w.list.n
                else:
                    for b in range(blocks_in(&w.row)):
                        count = w.row.loops.read(&w.row, &w.law, w.cut, b, x, weights)
                        for i in range(count):
                            if x[i] > -INFINITY:
                                ids[n] = block_start(&w.row, b) + i
                                logits[n] = x[i]
                                probs[n] = weights[i]
                                n += 1
                # Greedy keeps one token; its weight is 1 at any temperature.
                add_on(&probs[0], n, &mass, &cumulative[0])
                total = mass_value(mass)
                log_mass = log_canonical(total)
                for i in range(n):
                    logprobs[i] = log_share(&w, logits[i], log_mass)
                    probs[i] /= total
        return (n, None) if valid else (0, complaint(0, &w.row))
    finally:
        release(scratch)


# ------------------------------------------------------------------------------ softmax family

def softmax_rows(Rows rows, double temperature, const double[::1] temperatures, int what, out):
    """SOFTMAX or LOG_SOFTMAX of every row into out of shape (batch, vocab), or LOGSUMEXP into out
    of shape (batch, 1), at one temperature, or at `temperatures`, one a row.

    out is float64 for float64 rows, else float32, contiguous along a row; it may be the rows
    themselves.
    """
    cdef Job job
    cdef Py_buffer target
    cdef Row row
    cdef int64_t first, count, most, done = 0, width = 1 if what == LOGSUMEXP else rows.vocab
    cdef ptrdiff_t size = sizeof(double) if rows._kind == FLOAT64 else sizeof(float)
    cdef const double *at = &temperature
    cdef ptrdiff_t step = 0
    rows.enter(&job)
    if temperatures is not None:
        if temperatures.shape[0] != job.batch:
            raise ValueError("there has to be one temperature a row")
        at = &temperatures[0]
        step = 1
    PyObject_GetBuffer(out, &target, PyBUF_STRIDES | PyBUF_WRITABLE)
    try:
        if (target.ndim != 2 or target.shape[0] != job.batch or target.shape[1] != width
                or target.itemsize != size or (width > 1 and target.strides[1] != size)):
            raise ValueError("out has to be contiguous rows of the shape and type of the result")
        most = max(<int64_t> 1, WORK_PER_LOOK // (job.vocab + BLOCK))
        for first in range(0, job.batch, most):
            count = min(most, job.batch - first)
            with nogil:
                row = make_row(job.data + first * job.row_stride, job.stride, job.vocab, job.kind,
                               job.swapped)
                row.loops.softmax(&row, job.row_stride, count, at + first * step, step, what,
                                  <char *> target.buf + first * target.strides[0],
                                  target.strides[0])
                look_at_signals(count * (job.vocab + BLOCK), &done)
    finally:
        PyBuffer_Release(&target)


# --------------------------------------------------------------------------------- for the tests

def idle_scratch(bint give_back=False):
    """How many tokens, cumulative masses and items each scratch has room for that waits for later
    calls, the next to be used first. With give_back, its memory goes back to the system."""
    cdef Scratch *idle[MAX_FREE]
    cdef int i, n
    global _free_count
    with _lock:
        n = _free_count
        for i in range(n):
            idle[i] = _free[i]
        _free_count = 0
    sizes = [(idle[i].vocab, idle[i].cumulative_size, idle[i].items_size) for i in range(n)]
    for i in range(n):
        if give_back:
            destroy(idle[i])
        else:
            release(idle[i])
    return sizes[::-1]


def masses(Rows rows, double temperature, double[::1] floors=None):
    """What each tier that applies says of the mass of the one row: {tier: (mass, error)}. With two
    floors, of what is at or above each: {floor: (mass, error)}, from the fine tier."""
    cdef Job job
    cdef Work w
    cdef Plan plan
    cdef double totals[FLOORS]
    cdef int i
    cdef Scratch *scratch
    rows.enter(&job)
    memset(&plan, 0, sizeof(Plan))
    if floors is not None and floors.shape[0] != FLOORS:
        raise ValueError(f"floors have to be {FLOORS}")
    scratch = acquire(job.vocab, 0, 0)
    try:
        if not start(&w, scratch, &plan, row_of(&job, 0)):
            raise ValueError("the row is invalid")
        set_temperature(&w, temperature)
        found = {}
        if floors is not None:
            w.row.loops.fine_masses_above(&w.row, &w.law, KEEP_ALL, scratch.masses, &floors[0],
                                          totals)
            for i in range(FLOORS):
                found[floors[i]] = (totals[i], fine_error(totals[i], w.row.n)
                                    + rounding(&w, totals[i]))
            return found
        while w.tier != EXACT:
            refine(&w)
            found[w.tier] = w.total, w.error
        return found
    finally:
        release(scratch)


def whole_masses(Rows rows, double temperature):
    """What one pass says of the one row: the log of its exact mass at temperature 1, its fine mass
    at another, and the bound of that, +inf where that mass is not used."""
    cdef Job job
    cdef Work w
    cdef Plan plan
    cdef Scratch *scratch
    rows.enter(&job)
    memset(&plan, 0, sizeof(Plan))
    plan.temperature = temperature
    plan.truncates = True
    scratch = acquire(job.vocab, 0, 0)
    try:
        if not start(&w, scratch, &plan, row_of(&job, 0)):
            raise ValueError("the row is invalid")
        return log_of_raw_mass(&w), w.whole, w.whole_error
    finally:
        release(scratch)


def canonical(str function, double x):
    """exp or log in the canonical arithmetic; exp for x <= 0."""
    return exp_canonical(x) if function == "exp" else log_canonical(x)


def fused(float a, float b, float c):
    """a * b + c, rounded once, as the kernels do it where the processor cannot."""
    return fused_emulated(a, b, c)

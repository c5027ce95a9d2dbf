"""What only the tests ask of the core. Part of `_core.pyx`."""

from libc.stdlib cimport free
from libc.string cimport memset

from sampler.core.edits cimport Workspace
from sampler.core.job cimport Job, row_of
from sampler.core.kernels cimport (
    FLOORS, KEEP_ALL, exp_canonical, fused_emulated, log_canonical, mass_value
)
from sampler.core.moments cimport deviation_about, deviation_of, exact_depth, exact_squares
from sampler.core.report cimport find_whole_masses
from sampler.core.row cimport (
    EXACT, FAST, Bounded, Chain as CChain, RowState, Scratch, depth_of_row, fine_error, forget_sums,
    refine, rounding, scan_row, set_temperature
)
from sampler.core.scratch cimport destroy


def idle_scratch(bint give_back=False):
    """How many tokens, cumulative masses and items each scratch has room for that waits for later
    calls, the next to be used first. With give_back, its memory goes back to the system."""
    cdef Scratch *idle[MAX_FREE]
    cdef Workspace w
    cdef int i, n
    global _free_count, _idle_workspace
    if give_back:
        with _lock:
            w = _idle_workspace
            memset(&_idle_workspace, 0, sizeof(Workspace))
        free(w.memory)
    with _lock:
        n = _free_count
        for i in range(n):
            idle[i] = _free[i]
        _free_count = 0
    sizes = [(idle[i].vocab, idle[i].cumulative_size, idle[i].items_size, idle[i].rebased_size)
             for i in range(n)]
    for i in range(n):
        if give_back:
            destroy(idle[i])
        else:
            release(idle[i])
    return sizes[::-1]


cdef Scratch *begin(Rows rows, const CChain *chain, RowState *s) except NULL:
    """Scan the one row, for what follows; the caller gives the scratch back."""
    cdef Job job
    cdef Scratch *scratch
    rows.init_job(&job)
    scratch = acquire(job.vocab)
    if not scan_row(s, scratch, chain, row_of(&job, 0)):
        release(scratch)
        raise ValueError("the row is invalid")
    return scratch


def masses(Rows rows, double temperature, double[::1] floors=None):
    """What each tier that applies says of the mass of the one row: {tier: (mass, error)}. With two
    floors, of what is at or above each: {floor: (mass, error)}, from the fine tier."""
    cdef RowState s
    cdef CChain chain
    cdef double totals[FLOORS]
    cdef int i
    cdef Scratch *scratch
    memset(&chain, 0, sizeof(CChain))
    if floors is not None and floors.shape[0] != FLOORS:
        raise ValueError(f"floors have to be {FLOORS}")
    scratch = begin(rows, &chain, &s)
    set_temperature(&s, temperature)
    found = {}
    if floors is not None:
        s.row.kernels.fine_masses_above(&s.row, &s.tempering, KEEP_ALL, scratch.masses,
                                        &floors[0], totals)
        for i in range(FLOORS):
            found[floors[i]] = (totals[i],
                                fine_error(totals[i], s.row.n) + rounding(&s, totals[i]))
    else:
        while s.tier != EXACT:
            refine(&s)
            found[s.tier] = s.total, s.error
    release(scratch)
    return found


def depths(Rows rows, double temperature):
    """The sum of w |z| of the one row: ((fine, error), exact). Of a row whose fine mass is used."""
    cdef RowState s
    cdef CChain chain
    cdef double exact
    cdef Scratch *scratch
    memset(&chain, 0, sizeof(CChain))
    scratch = begin(rows, &chain, &s)
    set_temperature(&s, temperature)
    s.reports = True
    refine(&s)
    exact = mass_value(depth_of_row(&s))
    release(scratch)
    return (s.depth.sum, s.depth.error), exact


def moments(Rows rows, double temperature):
    """What the fast passes find of the one row of float32 or narrower, and what is exact:
    {name: ((sum, error), exact)} of the sums of w |z| and of w^2, and of the deviation."""
    cdef RowState s
    cdef CChain chain
    cdef Bounded deviation
    cdef Scratch *scratch
    memset(&chain, 0, sizeof(CChain))
    chain.tier = FAST
    scratch = begin(rows, &chain, &s)
    set_temperature(&s, temperature)
    found = {}
    s.asks_depth = True
    refine(&s)
    found["depth"] = (s.depth.sum, s.depth.error), exact_depth(&s)
    forget_sums(&s)
    s.asks_depth, s.asks_squares = False, True
    refine(&s)
    found["squares"] = (s.squares.sum, s.squares.error), exact_squares(&s)
    deviation = deviation_about(&s)
    found["deviation"] = (deviation.sum, deviation.error), deviation_of(&s)
    release(scratch)
    return found


def whole_masses(Rows rows, double temperature):
    """What the raw fields are made of: the fine masses of the one row at temperature 1 and at
    another, ((mass, error), (mass, error)); an error of +inf where that mass is not used."""
    cdef RowState s
    cdef CChain chain
    cdef Scratch *scratch
    memset(&chain, 0, sizeof(CChain))
    chain.temperature = temperature
    chain.truncates = True
    scratch = begin(rows, &chain, &s)
    find_whole_masses(&s, True)
    release(scratch)
    return (s.raw.sum, s.raw.error), (s.whole.sum, s.whole.error)


def canonical(str function, double x):
    """exp or log in the canonical arithmetic; exp for x <= 0."""
    return exp_canonical(x) if function == "exp" else log_canonical(x)


def fused(float a, float b, float c):
    """a * b + c, rounded once, as the kernels do it where the processor cannot."""
    return fused_emulated(a, b, c)

"""Who has which scratch memory, and the threads of a call. Part of `_core.pyx`."""

from cython cimport pymutex
from libc.math cimport INFINITY
from libc.stdint cimport INT64_MAX, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from sampler.core.edits cimport Workspace
from sampler.core.job cimport (
    WORK_PER_LOOK, Job, PyErr_CheckSignals, interrupts, is_interrupted, rebased_room, row_of, stop
)
from sampler.core.kernels cimport (
    BLOCK, Row, edit_row, fetch_add, getpid, pool_enter, pool_leave, pool_start, pool_wait
)
from sampler.core.row cimport COUNTERS, Item, Scratch
from sampler.core.scratch cimport destroy, lay_out, regrow


cdef enum:
    MAX_FREE = 80         # scratch kept for later calls; more threads than that allocate each time
    # How rows are shared over threads, by what they take on a fast machine: a thread is worth
    # waking, which takes some 50 us, for a share like this, and claims rows for so long at a time.
    NS_PER_THREAD = 50000
    NS_PER_CLAIM = 25000
    NS_PER_ROW = 500
    NS_PER_DRAW = 40           # after the first
    MOST_IDLE_BYTES = 1 << 24  # of the buffers that only some calls need, kept for later ones


# ------------------------------------------------------------------------------------- scratch

cdef pymutex _lock
cdef Workspace _idle_workspace  # for the next call with texts
cdef Scratch *_free[MAX_FREE]
cdef int _free_count = 0
cdef int64_t _counts[COUNTERS]


cdef Scratch *acquire(int64_t vocab, int64_t cumulative_size=0, int64_t items_size=0,
                      int64_t rebased_size=0) except NULL:
    """Scratch for rows of `vocab` logits; the caller gives it back with `release`."""
    global _free_count
    cdef Scratch *scratch = NULL
    with _lock:
        if _free_count > 0:
            _free_count -= 1
            scratch = _free[_free_count]
    if scratch == NULL:
        scratch = <Scratch *> malloc(sizeof(Scratch))
        if scratch == NULL:
            raise MemoryError()
        memset(scratch, 0, sizeof(Scratch))
    if scratch.vocab < vocab:
        scratch.vocab = 0
        free(scratch.arena)
        scratch.arena = NULL
        scratch.arena = malloc(lay_out(scratch, vocab) + 64)
        if scratch.arena == NULL:
            destroy(scratch)
            raise MemoryError()
        lay_out(scratch, vocab)
        scratch.vocab = vocab
    if scratch.cumulative_size < cumulative_size:
        scratch.cumulative = <double *> regrow(scratch.cumulative, cumulative_size * sizeof(double))
        scratch.cumulative_size = cumulative_size if scratch.cumulative != NULL else 0
    if scratch.items_size < items_size:
        scratch.items = <Item *> regrow(scratch.items, items_size * sizeof(Item))
        scratch.items_size = items_size if scratch.items != NULL else 0
    if scratch.rebased_size < rebased_size:
        scratch.rebased = <double *> regrow(scratch.rebased, rebased_size * sizeof(double))
        scratch.rebased_size = rebased_size if scratch.rebased != NULL else 0
    if (scratch.cumulative_size < cumulative_size or scratch.items_size < items_size
            or scratch.rebased_size < rebased_size):
        release(scratch)
        raise MemoryError()
    return scratch


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
    if scratch.rebased_size * sizeof(double) > MOST_IDLE_BYTES:
        scratch.rebased = <double *> regrow(scratch.rebased, 0)
        scratch.rebased_size = 0
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


# ------------------------------------------------------------------------------ jobs, threads

cdef object run(Job *job, int threads, int64_t cumulative_size, int64_t items_size):
    """Do every row. Return None, or `first_invalid` of the first invalid row, if that stops the
    call."""
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
            job.scratch[ready] = acquire(job.vocab, cumulative_size,
                                         max(items_size, min(job.sorts, job.vocab)),
                                         rebased_room(job))
            job.scratch[ready].bad_row = INT64_MAX
        ready = helpers + 1
        if helpers == 0:
            with nogil:
                run_caller(job)
        else:
            job.process = getpid()
            pool_start(helpers, run_worker, job)
            try:
                with nogil:
                    run_caller(job)
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
    return first_invalid(bad_row // job.repeat, &row)


cdef tuple first_invalid(int64_t index, const Row *row):
    """(row, token, value) of the first NaN or +inf; token -1 where no logit is finite, and -2 where
    that is so because of the edits."""
    cdef int64_t i
    cdef double x
    cdef Row raw = row[0]
    for i in range(row.n):
        x = row.kernels.at(row, i)
        if not x < INFINITY:
            return index, i, x
    edit_row(&raw, NULL)
    for i in range(row.n):
        if row.kernels.at(&raw, i) != -INFINITY:
            return index, -2, -INFINITY
    return index, -1, -INFINITY


cdef int run_caller(Job *job) except -1 nogil:
    """What the thread that called does: rows, and a look at signals now and then."""
    cdef int64_t done = 0
    while claim_rows(job, job.scratch[0], &done):
        if done >= WORK_PER_LOOK:
            done = 0
            if interrupts(job, job.scratch[0]):
                break
    return -1 if is_interrupted(job) else 0


cdef void run_worker(void *job, int worker) noexcept nogil:
    cdef int64_t done = 0
    while claim_rows(<Job *> job, (<Job *> job).scratch[worker + 1], &done):
        pass


cdef bint claim_rows(Job *job, Scratch *scratch, int64_t *done) noexcept nogil:
    """Do the next few rows. False where there are none left, or one of them is invalid."""
    cdef int64_t row, first = fetch_add(&job.next, job.claim)
    for row in range(first, min(first + job.claim, job.batch)):
        if not job.do_row(job, row, scratch) and not job.flag_invalid:
            scratch.bad_row = row
            stop(job)
            return False
        done[0] += job.vocab + BLOCK + job.n
    return first + job.claim < job.batch


cdef int look_at_signals(int64_t work, int64_t *done) except -1 nogil:
    """Count work; every WORK_PER_LOOK of it, let Python handle signals. For loops of one thread:
    where a handler forks, the child goes on too."""
    done[0] += work
    if done[0] >= WORK_PER_LOOK:
        done[0] = 0
        with gil:
            return PyErr_CheckSignals()
    return 0

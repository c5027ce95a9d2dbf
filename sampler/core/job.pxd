"""A call: its rows, its uniforms, where its results go, how far it is, and signals meanwhile."""

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint64_t

from sampler.core.kernels cimport (
    MOST_WORKERS, WORD, Edits, Row, edit_row, fetch_add, getpid, make_row, philox_uniform
)
from sampler.core.row cimport Chain, Key, RowState, Scratch, scan_row


cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept  # -1 with an exception set
    void PyErr_SetString(object kind, const char *message)


cdef enum:
    # Logits and draws between looks at signals: 50 ms at the slowest. A row counts as BLOCK logits
    # more than it has: what even the shortest one costs.
    WORK_PER_LOOK = 1 << 19


# A call: rows, what to do with each, and how far it is. Pointers are NULL where they do not matter.
cdef struct Job:
    bint (*do_row)(Job *, int64_t, Scratch *) noexcept nogil  # False where the row is invalid
    const Chain *chains   # of row i: chains[i * chain_stride]
    ptrdiff_t chain_stride  # 0 where one serves every row
    int room                # how many numbers per token they want to write, at most
    int64_t sorts           # and how many tokens to sort
    const char *data
    ptrdiff_t row_stride
    ptrdiff_t stride
    int64_t batch
    int64_t vocab
    int kind
    bint swapped
    const Edits *edits    # of the first row; those of the next are edits_step further
    int64_t edits_step
    const double *memory  # what the state of each row says to the last stage
    const int64_t *only_ids  # the ids that the stage ONLY keeps, ascending: those of row i are
    const int64_t *only      # only_ids[only[i]] to only_ids[only[i + 1] - 1]
    bint flag_invalid
    # The uniforms: given, or keyed by seed, stream and step.
    const double *u
    uint64_t seed
    const uint64_t *seeds  # of each row, where they differ
    uint64_t step
    const uint64_t *streams
    const uint64_t *steps
    const uint64_t *draws  # the first of each row
    int64_t n
    int64_t repeat        # rows that are one row of the call, each with a draw of it: see `spread`
    int64_t top
    # The results.
    int64_t *tokens       # n per row
    int64_t *ranks
    int64_t *kept
    double *logprobs
    double *entropy
    double *observed      # one per row: what the last stage, of a chain with memory, saw
    int32_t **kept_ids    # one list per row, in memory that is the caller's to free
    bint raw              # whether these are asked for as well:
    int64_t *raw_ranks
    double *raw_logprobs
    double *log_mass
    int64_t *top_ids      # top per row
    int64_t *raw_top_ids
    double *top_logprobs
    double *raw_top_logprobs
    bint given            # tokens is an input
    char *out             # out_stride bytes per row
    ptrdiff_t out_stride
    double limit
    # Progress: what a logit takes, the next row that nobody has claimed, how many to claim.
    int64_t cost
    int64_t next
    int64_t claim
    int64_t interrupted   # not 0 once an exception is set
    long process          # whose threads help; 0 where none do
    Scratch *scratch[MOST_WORKERS + 1]


cdef inline int64_t rebased_room(const Job *job) noexcept nogil:
    """How many numbers the stages want room for: a row, and padded arrays after it."""
    return job.vocab + (job.room - 1) * (job.vocab + 2 * WORD) if job.room > 0 else 0


cdef inline Row row_of(const Job *job, int64_t index) noexcept nogil:
    cdef Row row = raw_row_of(job, index)
    if job.edits != NULL:
        edit_row(&row, job.edits + index // job.repeat * job.edits_step)
    return row


cdef inline Row raw_row_of(const Job *job, int64_t index) noexcept nogil:
    """The row as it came in."""
    return make_row(job.data + index // job.repeat * job.row_stride, job.stride, job.vocab,
                    job.kind, job.swapped)


cdef inline const Chain *chain_of(const Job *job, int64_t index) noexcept nogil:
    return job.chains + index // job.repeat * job.chain_stride


cdef inline Key key_of(const Job *job, int64_t index) noexcept nogil:
    """The address of the row's first draw."""
    cdef int64_t row = index // job.repeat
    return Key(job.seed if job.seeds == NULL else job.seeds[row],
               row if job.streams == NULL else job.streams[row],
               job.step if job.steps == NULL else job.steps[row],
               (0 if job.draws == NULL else job.draws[row]) + <uint64_t> (index % job.repeat))


cdef inline double uniform_of(const Job *job, int64_t row, int64_t draw) noexcept nogil:
    cdef Key key
    if job.u != NULL:
        return job.u[row * job.n + draw]
    key = key_of(job, row)
    return philox_uniform(key.seed, key.stream, key.step, key.draw + <uint64_t> draw, 0)


cdef inline bint begin_row(RowState *s, Job *job, int64_t row, Scratch *scratch) noexcept nogil:
    """Read a row of a job, for its stages. False where it is invalid."""
    if not scan_row(s, scratch, chain_of(job, row), row_of(job, row)):
        return False
    s.key = key_of(job, row)
    s.ranks_any = job.given
    s.memory = 0.0 if job.memory == NULL else job.memory[row // job.repeat]
    s.n_only = 0
    return job.only == NULL or begin_only(s, job, row)


cdef inline bint begin_only(RowState *s, const Job *job, int64_t row) noexcept nogil:
    """Tell a row what alone it may keep. False where it has nothing of that."""
    cdef const int64_t *bounds = job.only + row // job.repeat
    cdef int64_t i
    s.only = job.only_ids + bounds[0]
    s.n_only = bounds[1] - bounds[0]
    for i in range(s.n_only):
        if s.row.kernels.at(&s.row, s.only[i]) > -INFINITY:
            return True
    return False


cdef inline bint is_interrupted(Job *job) noexcept nogil:
    return fetch_add(&job.interrupted, 0) != 0


cdef inline bint interrupts(Job *job, const Scratch *scratch) noexcept nogil:
    """Let Python handle signals, in the thread that called. Whether that ends the call: an
    exception is set, and `run_caller` will pass it on."""
    if scratch == job.scratch[0] and not is_interrupted(job):
        with gil:
            if check_signals(job) != 0:
                fetch_add(&job.interrupted, 1)
                stop(job)
    return is_interrupted(job)


cdef inline int check_signals(const Job *job) noexcept:
    """-1 with an exception set where a handler has raised, or has forked: the child lacks the
    threads that help, and the rows that they were doing. A call on one thread goes on in both."""
    if PyErr_CheckSignals() != 0:
        return -1
    if job.process != 0 and getpid() != job.process:
        PyErr_SetString(RuntimeError, "a signal handler has forked during a call on several "
                                      "threads: the child lacks them, and the call ends there")
        return -1
    return 0


cdef inline void stop(Job *job) noexcept nogil:
    """Keep the remaining rows from being claimed."""
    fetch_add(&job.next, job.batch)

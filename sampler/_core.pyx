"""The core: rows of logits in, tokens out.

This file has the scratch memory, the threads of a call, and what Python sees. What happens to a row
is in core/, one concern a file, here in the order in which to read them:

    stages.pxd   `apply_stages`, and each stage: what it keeps
    draw.pxd     the token of what is kept, at a uniform
    row.pxd      the state of a row; its candidates; its mass, tier by tier
    select.pxd   where a prefix in rank ends, among candidates
    search.pxd   the same in a whole row, where no candidates will do
    report.pxd   log-probabilities, ranks, the top, the filtered row, the distribution
    job.pxd      a call, as its threads see it
    scratch.pxd  how a thread's scratch memory is laid out
    kernels.pxd  what the C headers define: the loops over logits, the arithmetic, the uniforms

    row -> scan -> candidates ---------> select -> cut -> draw -> token
           |       a few tokens          ^         |      where u times the mass
           |       near the maximum      |         |      of what is kept falls
           |                             |         v
           +-----> search ---------------+         next stage
                   the row measured at
                   two values at a time

    The mass of candidates is exact. That of a row has three tiers, asked in turn until one proves
    what the exact mass says:

    fast (float32, with a bound) -> fine (double, with a bound) -> exact

A. What comes in. Checked parameters, NumPy arrays and typed memoryviews only; everything a user can
   get wrong is caught in Python before this file is reached. What is re-checked here is what would
   be unsafe. Logits arrive as an array with a kind and a byte order, so that any dtype, stride and
   alignment is one case; `load.h` widens them block by block. Edits, which are bans and masks,
   are applied there too.

B. A row and its kept set. Rank is (logit descending, id ascending). Every cut here keeps a prefix
   in rank, and a prefix is named by its last token: a `Cut`, a logit value and an id. So cuts
   compose by taking the shorter one, and a floor (`min_tokens_to_keep`) by taking the longer one.
   A scale that changes the logits otherwise than by a temperature writes those of what is kept to
   scratch, as doubles, and they become the row: `rebase`. All that follows sees a row like any
   other.

C. The candidates. Nearly always what is kept is a few tokens near the maximum. The read pass
   (`scan`) keeps maxima of parts of the row; the k-th largest of them is a lower bound on the k-th
   largest logit, so `gather` finds the tokens above it in the few parts that reach it, and the
   stages and the draw work on these candidates. Once a cut lies within them, they are trimmed to
   it: then they are what is kept, no more and no less.

D. One question. Each truncation asks for the shortest prefix in rank whose measure, a count or a
   mass, reaches a target. `select` answers it on candidates, halving the range of values in which
   the boundary lies. Where no candidates hold the boundary, `search_row` measures the row at two
   values at a time until what is left between two of them has room as candidates. Nothing sorts or
   copies the vocabulary.

E. Mass. The exact mass (`canonical.h`) is the same on every machine and in every order of
   summation, and decides. The fast mass, float32, and the fine mass, double, are cheaper and come
   with a bound on their error; where the bound proves what the exact mass would say, it is not
   asked. So a tier changes the time and never the answer; `Chain(tier=TIERS["exact"])` goes
   straight to the last. A stage that needs the mass takes `mass_of_candidates` where they are all
   that is kept, and elsewhere `refine`s until the bound proves its answer: see `top_p`.

F. The draw. The uniform u is an argument. The token is the first, ids ascending, whose cumulative
   exact mass exceeds u times the total: since u < 1 and the total is the last of these sums, there
   always is one, and its weight is not zero.

G. Threads and signals. A call is a `Job`: rows, and what to do with each. The GIL is released
   around them, the threads of `pool.h` take some where that pays, and every `WORK_PER_LOOK` logits
   the thread that called looks at signals. Scratch memory belongs to a thread while it works: it is
   taken from a free list and put back.

H. Cython. The .pxd files hold inline functions, so that the core is one extension, and one unit for
   the C compiler. Cython's directives are in setup.py: those at the head of a .pyx do not reach a
   .pxd.
"""

cimport cython
from cpython cimport array
from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cython cimport pymutex
from libc.math cimport INFINITY
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from sampler.core.draw cimport draw_row
from sampler.core.edits cimport (
    EDIT_PARAMETERS, N_EDITS, Edit, Text, Workspace, edit_names, find_edits, first_outside,
    index_edits, make_workspace
)
from sampler.core.job cimport (
    WORK_PER_LOOK, Job, PyErr_CheckSignals, begin_row, interrupts, is_interrupted, rebased_room,
    row_of, stop
)
from sampler.core.kernels cimport (
    BFLOAT16, BLOCK, FLOAT16, FLOAT32, FLOAT64, FLOORS, KEEP_ALL, LOG_SOFTMAX, LOGSUMEXP,
    MOST_TOKENS, SAMPLER_COMPILER, SAMPLER_ISAS, SOFTMAX, Edits as CEdits, Row, edit_row,
    exp_canonical, fetch_add, fused_emulated, getpid, isa_name, isa_runs, log_canonical, make_row,
    mass_value, philox_uniform, pool_enter, pool_leave, pool_start, pool_wait, set_isa
)
from sampler.core.moments cimport deviation_about, deviation_of, exact_depth, exact_squares
from sampler.core.report cimport filter_row, find_whole_masses, read_distribution, sample_row
from sampler.core.row cimport (
    COUNTERS, DRAWS_CANDIDATES, DRAWS_EXACT, DRAWS_FAST, DRAWS_FINE, ENTROPY_CANDIDATES,
    ENTROPY_EXACT, ENTROPY_FINE, EXACT, FAST, FINE, LOG_MASS_CANDIDATES, LOG_MASS_EXACT,
    LOG_MASS_FINE, PARAMETERS, TOP_P_CANDIDATES, TOP_P_EXACT, TOP_P_FAST, TOP_P_FINE,
    Bounded, Chain as CChain, Item, RowState, Scratch, Stage, depth_of_row,
    fine_error, forget_sums, refine, rounding, scan_row, set_temperature
)
from sampler.core.scratch cimport destroy, lay_out, regrow
from sampler.core.stages cimport N_STAGES, add_stage, apply_stages, complete_chain, stage_names


cdef enum:
    MAX_FREE = 80         # scratch kept for later calls; more threads than that allocate each time
    # How rows are shared over threads, by what they take on a fast machine: a thread is worth
    # waking, which takes some 50 us, for a share like this, and claims rows for so long at a time.
    NS_PER_THREAD = 50000
    NS_PER_CLAIM = 25000
    NS_PER_ROW = 500
    NS_PER_DRAW = 40           # after the first; and for each logit, in units of a 16th
    READ_COST = 1
    MASS_COST = 4
    FILTER_COST = 10
    REPORT_COST = 10
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


# ----------------------------------------------------------------------------- the Python face

COMPILER = SAMPLER_COMPILER.decode()
# The numbers of the stages, by their settings; of the kinds of logits, by dtype; of the softmax
# family; of the edits of `Changes`; and of the tiers, cheapest first.
STAGES = {stage_names[i].decode(): i for i in range(N_STAGES)}
KINDS = {"float16": FLOAT16, "bfloat16": BFLOAT16, "float32": FLOAT32, "float64": FLOAT64}
FAMILY = {"softmax": SOFTMAX, "log_softmax": LOG_SOFTMAX, "logsumexp": LOGSUMEXP}
EDITS = {edit_names[i].decode(): i for i in range(N_EDITS)}
TIERS = {"fast": FAST, "fine": FINE, "exact": EXACT}


def choose_isa(wanted=None):
    """Run the kernels of the instruction set that is wanted, else of the best the machine has.

    Returns its name, and those of all that the machine has. Not while another thread draws.
    """
    cdef int number, chosen = 0
    runs = []
    for number in range(SAMPLER_ISAS):
        if isa_runs(number):
            name = isa_name(number).decode()
            runs.append(name)
            if wanted is None or wanted == name:
                chosen = number
    if wanted is not None and wanted not in runs:
        raise ValueError(
            f"`SAMPLER_ISA` has to be one of {', '.join(runs)} on this machine, but is {wanted!r}"
        )
    set_isa(chosen)
    return isa_name(chosen).decode(), tuple(runs)


def counts():
    """How often, since import, draws, top-p, the log of a mass and the entropy were settled by
    each kind of mass: that of few candidates, which is exact and cheap, or the fast, the fine or
    the exact one of the row."""
    with _lock:
        return {
            "draws": {"candidates": _counts[DRAWS_CANDIDATES], "fast": _counts[DRAWS_FAST],
                      "fine": _counts[DRAWS_FINE], "exact": _counts[DRAWS_EXACT]},
            "top_p": {"candidates": _counts[TOP_P_CANDIDATES], "fast": _counts[TOP_P_FAST],
                      "fine": _counts[TOP_P_FINE], "exact": _counts[TOP_P_EXACT]},
            "log_mass": {"candidates": _counts[LOG_MASS_CANDIDATES],
                         "fine": _counts[LOG_MASS_FINE], "exact": _counts[LOG_MASS_EXACT]},
            "entropy": {"candidates": _counts[ENTROPY_CANDIDATES],
                        "fine": _counts[ENTROPY_FINE], "exact": _counts[ENTROPY_EXACT]},
        }


@cython.final
cdef class Edits:
    """Logits that have another value, the same in every row.

    Parameters
    ----------
    vocab : int
        How many logits a row has.
    ids, values : buffers of shape (n,), int64 and float64
        Ids ascending, each once, in [0, vocab); the values numbers that the rows' dtype has, or
        -inf.
    """

    cdef CEdits edits
    cdef int64_t _vocab
    cdef int64_t *_first
    cdef const int64_t[::1] _ids
    cdef const double[::1] _values

    def __cinit__(self, int64_t vocab, const int64_t[::1] ids, const double[::1] values):
        cdef int64_t i, n = ids.shape[0]
        self._vocab = vocab
        self._ids, self._values = ids, values
        if values.shape[0] != n:
            raise ValueError("one value for each id")
        for i in range(n):
            if not (ids[i - 1] if i > 0 else -1) < ids[i] < vocab:
                raise ValueError("the ids have to ascend, in [0, vocab)")
        if n == 0:
            return
        self._first = <int64_t *> malloc(((vocab + BLOCK - 1) // BLOCK + 1) * sizeof(int64_t))
        if self._first == NULL:
            raise MemoryError()
        index_edits(&ids[0], n, vocab, self._first)
        self.edits.ids, self.edits.values, self.edits.first = &ids[0], &values[0], self._first

    def __dealloc__(self):
        free(self._first)


@cython.final
cdef class Changes:
    """Edits that look at the text so far or at the logits: see core/edits.pxd.

    Parameters
    ----------
    vocab : int
        How many logits a row has.
    edits : sequence of (int, sequence, ndarray, ndarray, ndarray)
        For each its number, of `EDITS`; its parameters, each a number or a float64 array of one
        per row, the first NaN where the edit is off; its ids, int64, each in [0, vocab), in
        sequences one after another; where each of these ends, int64; a bias for each, float64.
    batch : int
        Of the arrays; 0 without any.
    """

    cdef Edit *edits
    cdef int count
    cdef int64_t vocab
    cdef int64_t batch  # of the arrays; 0 without any
    cdef list _kept  # what the edits point to

    def __cinit__(self, int64_t vocab, edits, int64_t batch=0):
        cdef Edit *edit
        cdef _Values values
        cdef const int64_t[::1] ids, ends
        cdef const double[::1] biases
        cdef int place
        self.vocab, self.batch = vocab, batch
        self._kept = []
        self.edits = <Edit *> calloc(max(len(edits), 1), sizeof(Edit))
        if self.edits == NULL:
            raise MemoryError()
        for kind, parameters, some_ids, some_ends, some_biases in edits:
            edit = &self.edits[self.count]
            self.count += 1
            edit.kind = kind
            for place in range(EDIT_PARAMETERS):
                values = _Values(parameters[place] if place < len(parameters) else 0.0, batch)
                edit.values[place], edit.strides[place] = values.at, values.stride
                self._kept.append(values)
            ids, ends, biases = some_ids, some_ends, some_biases
            self._kept.append((some_ids, some_ends, some_biases))
            edit.n_ids, edit.n_sequences = ids.shape[0], ends.shape[0]
            if ends.shape[0] > 0:
                edit.ends, edit.ids = &ends[0], &ids[0]
            if biases.shape[0] > 0:
                edit.biases = &biases[0]

    def __dealloc__(self):
        free(self.edits)


@cython.final
@cython.no_gc  # its edits refer to nothing else
cdef class Rows:
    """A batch of rows of logits: an array, the kind of its floats, and their byte order.

    Parameters
    ----------
    words : buffer of shape (batch, vocab) or (vocab,)
        Of items of 2, 4 or 8 bytes, as the kind wants. Any strides, read-only or not; never
        written to.
    kind : int
        Of `KINDS`.
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
    cdef Edits _edits
    cdef CEdits *_masked  # the edits of each row, where they differ
    cdef Py_buffer _mask
    cdef bint _is_masked  # whether `_mask` is held
    cdef void **_changed  # the memory of `_masked`, where the rows' edits differ

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
        cdef int64_t row
        if self._held:
            PyBuffer_Release(&self._buffer)
        if self._is_masked:
            PyBuffer_Release(&self._mask)
        if self._changed != NULL:
            for row in range(self.batch):
                free(self._changed[row])
            free(self._changed)
        free(self._masked)

    def edit(self, Edits edits not None, mask=None):
        """Let every call on these rows read them with edits: once.

        mask : buffer of shape (batch, any), int32, contiguous rows of at least one word. Bit j & 31
        of word j >> 5 is whether token j may be drawn; tokens beyond are not, and bits beyond the
        tokens are not looked at. Never written to.
        """
        if self._edits is not None or edits._vocab != self.vocab:
            raise ValueError("the edits have to be of these rows, and the first")
        self._edits = edits
        if mask is not None:
            self._hold(mask)
            self._mask_rows(edits.edits)

    def change(self, Changes changes not None, texts=None, mask=None):
        """Let every call on these rows read them as the changes have them: once.

        texts : sequence of (array.array of int32, int), one for each row: its tokens, of which so
        many are the prompt; None where no change looks at a text. mask : as for `edit`.

        Returns None, or (row, token) for the first id of a text that is not in the vocabulary.
        """
        cdef Text text
        cdef Row raw
        cdef Workspace w
        cdef CEdits none
        cdef int64_t row, place, longest = 0
        cdef array.array tokens
        global _idle_workspace
        if (self._masked != NULL or changes.vocab != self.vocab
                or changes.batch not in (0, self.batch)
                or not (texts is None or len(texts) == self.batch)):
            raise ValueError("the changes have to be of these rows, and the first")
        memset(&none, 0, sizeof(CEdits))
        if mask is not None:
            self._hold(mask)
        self._mask_rows(none)
        self._changed = <void **> calloc(max(<int64_t> 1, self.batch), sizeof(void *))
        if self._changed == NULL:
            raise MemoryError()
        if texts is not None:
            longest = max([len(one[0]) for one in texts], default=0)
        with _lock:
            w = _idle_workspace
            memset(&_idle_workspace, 0, sizeof(Workspace))
        try:
            if not make_workspace(&w, changes.edits, changes.count, self.vocab, longest):
                raise MemoryError()
            for row in range(self.batch):
                text = Text(NULL, 0, 0)
                if texts is not None:
                    tokens, text.n_prompt = texts[row]
                    text.tokens, text.n = <const int32_t *> tokens.data.as_ints, len(tokens)
                place = first_outside(&text, self.vocab)
                if place >= 0:
                    return row, text.tokens[place]
                raw = make_row(<const char *> self._buffer.buf + row * self._row_stride,
                               self._stride, self.vocab, self._kind, self._swapped)
                if not find_edits(&w, changes.edits, changes.count, &text, row, &raw,
                                  &self._masked[row], &self._changed[row]):
                    raise MemoryError()
        finally:
            if 40 * w.longest > MOST_IDLE_BYTES:  # a token takes about that
                free(w.memory)
                memset(&w, 0, sizeof(Workspace))
            with _lock:
                _idle_workspace, w = w, _idle_workspace
            free(w.memory)  # of another thread's call, if there was one

    cdef int _hold(self, mask) except -1:
        cdef int64_t words
        PyObject_GetBuffer(mask, &self._mask, PyBUF_STRIDES)
        self._is_masked = True
        words = self._mask.shape[1] if self._mask.ndim == 2 else 0
        if (words < 1 or self._mask.shape[0] != self.batch or self._mask.itemsize != 4
                or self._mask.strides[1] != 4):
            raise ValueError("the mask has to have words for each of these rows")
        return 0

    cdef int _mask_rows(self, CEdits edits) except -1:
        """Give every row these edits, and its part of the mask, if there is one."""
        cdef int64_t i
        self._masked = <CEdits *> malloc(max(<int64_t> 1, self.batch) * sizeof(CEdits))
        if self._masked == NULL:
            raise MemoryError()
        for i in range(self.batch):
            self._masked[i] = edits
            if not self._is_masked:
                continue
            self._masked[i].allowed = <const int32_t *> (<const char *> self._mask.buf
                                                         + i * self._mask.strides[0])
            self._masked[i].words = min(self._mask.shape[1], (self.vocab + 31) // 32)
        return 0

    cdef void init_job(self, Job *job) noexcept:
        """Begin a job on these rows, in which nothing else is set."""
        memset(job, 0, sizeof(Job))
        job.repeat = 1
        job.data = <const char *> self._buffer.buf
        job.row_stride = self._row_stride
        job.stride = self._stride
        job.batch = self.batch
        job.vocab = self.vocab
        job.kind = self._kind
        job.swapped = self._swapped
        if self._masked != NULL:
            job.edits = self._masked
            job.edits_step = 1
        elif self._edits is not None:
            job.edits = &self._edits.edits


@cython.final
cdef class _Values:
    """A number for every row, or an array of one each, as a pointer and a stride."""

    cdef const double *at
    cdef ptrdiff_t stride
    cdef double _number
    cdef const double[::1] _array

    def __cinit__(self, value, int64_t count):
        if isinstance(value, (int, float)):
            # A count is exact as a float up to 2**53, and no row is longer than that.
            self._number = min(value, 2**53) if isinstance(value, int) else value
            self.at = &self._number
            return
        self._array = value
        if self._array.shape[0] != count:
            raise ValueError("one value per row")
        if count > 0:
            self.at = &self._array[0]
        self.stride = 1


@cython.final
cdef class Chain:
    """The stages of a sampler, compiled: those that are not off, in order.

    One chain serves every row, or, where a value is an array, each row of a batch has its own.

    Parameters
    ----------
    stages : sequence of (int, int, ndarray, ...)
        Numbers of `STAGES`, each with the lane of its coin, token ids, int64 and ascending, and the
        checked values of its parameters: float, or ndarray of shape (batch,), float64, with one per
        row. The first is NaN where the stage is off.
    ties_all : bool
        Whether top_k keeps everything equal to the k-th.
    min_tokens_to_keep : int or ndarray of shape (batch,), float64
        At least 1.
    tier : int
        Of `TIERS`: the first kind of mass to ask. Same answers, slower: for tests.
    per_row : (str, int), optional
        A setting that is an array, for error messages, and the batch that all of them are for.
    """

    cdef CChain *chains
    cdef Stage *stages     # of all of them
    cdef ptrdiff_t stride  # from the chain of a row to that of the next
    cdef bint weighs       # whether the mass of any whole row may be asked for
    cdef int room          # the most that a row wants, in numbers per token
    cdef int64_t sorts     # the most tokens that a row sorts
    cdef bint has_coins    # whether any row has
    cdef object _ids       # keeps alive what the stages point to
    cdef readonly object per_row

    def __cinit__(self, stages, bint ties_all=False, min_tokens_to_keep=1, int tier=FAST,
                  per_row=None):
        cdef int64_t row, i, count = 1 if per_row is None else per_row[1], most = len(stages)
        cdef _Values values
        cdef Stage *one
        cdef const int64_t[::1] protected
        self.per_row = per_row
        self.stride = per_row is not None
        self.chains = <CChain *> calloc(max(count, 1), sizeof(CChain))
        self.stages = <Stage *> calloc(max(count * most, 1), sizeof(Stage))
        if self.chains == NULL or self.stages == NULL:
            raise MemoryError()
        self._ids = [ids for _, _, ids, *_ in stages]
        for i, (stage, lane, ids, *parameters) in enumerate(stages):
            if not (0 <= stage < N_STAGES and len(parameters) <= PARAMETERS):
                raise ValueError(f"unknown stage {stage} of {len(parameters)} parameters")
            protected = ids
            for row in range(count):
                one = &self.stages[row * most + i]
                one.lane = lane
                one.n_ids = protected.shape[0]
                one.ids = &protected[0] if one.n_ids > 0 else NULL
            for place, value in enumerate(parameters):
                values = _Values(value, count)
                for row in range(count):
                    one = &self.stages[row * most + i]
                    one.number = stage
                    one.values[<int> place] = values.at[row * values.stride]
        for row in range(count):
            self.chains[row].stages = self.stages + row * most
            for i in range(most):
                add_stage(&self.chains[row], self.stages[row * most + i])
        values = _Values(min_tokens_to_keep, count)
        for row in range(count):
            self.chains[row].min_tokens_to_keep = <int64_t> values.at[row * values.stride]
            self.chains[row].ties_all = ties_all
            self.chains[row].tier = tier
            complete_chain(&self.chains[row])
            self.weighs |= self.chains[row].weighs
            self.room = max(self.room, self.chains[row].room)
            self.sorts = max(self.sorts, self.chains[row].sorts)
            self.has_coins |= self.chains[row].has_coins

    def __dealloc__(self):
        free(self.chains)
        free(self.stages)


cdef int set_chain(Job *job, Chain chain) except -1:
    """Let a job apply a chain, of which each row may have its own."""
    if chain.per_row is not None and chain.per_row[1] != job.batch:
        raise ValueError("one chain per row")
    job.chains = chain.chains
    job.chain_stride = chain.stride
    job.room = chain.room
    job.sorts = chain.sorts
    return 0


@cython.final
cdef class KeyedUniforms:
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
            raise ValueError(
                "all 2**64 steps of this sampler are used up: make one with another seed"
            )
        return step


cdef int set_uniforms(Job *job, KeyedUniforms keys, const uint64_t[::1] streams,
                      const uint64_t[::1] steps, const uint64_t[::1] draws,
                      bint takes=True) except -1:
    """Let a job draw by keyed uniforms: stream and step of each row, or its place and the next
    step, and the draws from its first one on, 0 by default. The last thing that may fail: an error
    before the core runs takes no step. Without `takes` the next step is looked at, not taken;
    without keys every coin has the seed 0."""
    if ((streams is not None and streams.shape[0] != job.batch)
            or (steps is not None and steps.shape[0] != job.batch)
            or (draws is not None and draws.shape[0] != job.batch)):
        raise ValueError("one stream, one step and one draw per row")
    if keys is None:
        return 0
    job.seed = keys.seed
    if draws is not None and job.batch > 0:
        job.draws = &draws[0]
    if streams is not None and job.batch > 0:
        job.streams = &streams[0]
    if steps is None:
        job.step = keys.take() if takes else min(keys._step, (1 << 64) - 1)
    elif job.batch > 0:
        job.steps = &steps[0]
    return 0


cdef void spread(Job *job, Chain chain) noexcept:
    """Make a row of each draw of a row, where stages have coins: each draw has its own."""
    if chain.has_coins and job.n > 1 and not job.given:
        job.repeat = job.n
        job.batch *= job.n
        job.n = 1


def uniforms(double[:, ::1] out, uint64_t seed, uint64_t step=0,
             const uint64_t[::1] streams=None, const uint64_t[::1] steps=None, uint64_t lane=0):
    """out[row, draw] = u(seed, streams[row], steps[row], draw, lane), in [0, 1).

    Without streams, row i has stream i; without steps, every row has the one step.
    """
    cdef int64_t row, draw, done = 0
    cdef uint64_t stream
    if ((streams is not None and streams.shape[0] != out.shape[0])
            or (steps is not None and steps.shape[0] != out.shape[0])):
        raise ValueError("one stream and one step per row")
    with nogil:
        for row in range(out.shape[0]):
            stream = row if streams is None else streams[row]
            if steps is not None:
                step = steps[row]
            for draw in range(out.shape[1]):
                out[row, draw] = philox_uniform(seed, stream, step, draw, lane)
                look_at_signals(1, &done)


def draw_token(Chain chain, Rows rows, KeyedUniforms keys, bint flag_invalid):
    """Draw one token from the one row: its id, or what `draw_tokens` returns if the row is
    invalid."""
    cdef Job job
    cdef int64_t token
    rows.init_job(&job)
    job.do_row = draw_row
    set_chain(&job, chain)
    job.flag_invalid = flag_invalid
    job.n = 1
    job.tokens = &token
    if job.batch != 1:
        raise ValueError("one row, and one token")
    set_uniforms(&job, keys, None, None, None)
    invalid = run(&job, 1, 0, 0)
    return token if invalid is None else invalid


def draw_tokens(Chain chain, Rows rows, KeyedUniforms keys, int64_t[:, ::1] tokens,
                bint flag_invalid, int threads=1, const uint64_t[::1] streams=None,
                const uint64_t[::1] steps=None, const double[:, ::1] u=None,
                const uint64_t[::1] draws=None):
    """tokens[row, i] = the token of draw draws[row] + i of the row under the chain.

    The uniforms are those of `keys`, or, for tests, given: u[row, i], in [0, 1). Returns None, or
    (row, token, value) of the first invalid logit: token -1 where no logit is finite. With
    flag_invalid, tokens of an invalid row are -1 and all rows are done.
    """
    cdef Job job
    rows.init_job(&job)
    job.do_row = draw_row
    set_chain(&job, chain)
    job.flag_invalid = flag_invalid
    job.n = tokens.shape[1]
    job.cost = MASS_COST if chain.weighs else READ_COST
    if tokens.shape[0] != job.batch or (u is not None and (u.shape[0] != job.batch
                                                           or u.shape[1] != job.n)):
        raise ValueError("one uniform and one token per draw")
    if job.batch > 0 and job.n > 0:
        job.tokens = &tokens[0, 0]
    if u is None:
        set_uniforms(&job, keys, streams, steps, draws)
    elif job.batch > 0 and job.n > 0:
        job.u = &u[0, 0]
    if job.n == 0:
        return None
    spread(&job, chain)
    return run(&job, threads, rows.vocab if job.n > 1 else 0, 0)


def sample_tokens(Chain chain, Rows rows, KeyedUniforms keys, int64_t[:, :, ::1] tokens,
                  double[:, :, ::1] logprobs, int64_t[:, :, ::1] top_ids,
                  double[:, :, ::1] top_logprobs, bint flag_invalid, int threads=1,
                  const uint64_t[::1] streams=None, const uint64_t[::1] steps=None,
                  const uint64_t[::1] draws=None, bint given=False):
    """`draw_tokens`, and what `Samples` has of each token; with `given` or without `keys`, of the
    tokens given.

    tokens holds the tokens, their ranks and the kept counts, shape (3, batch, n); logprobs those
    under the law and the entropy, (2, batch, n); the top arrays the first ones, (1, batch, any). To
    have the raw ones as well, tokens is (4, batch, n), with the raw ranks last; logprobs
    (4, batch, n), with the raw ones and the kept log mass; the top arrays (2, batch, any).
    With flag_invalid, an invalid row has ids -1, log-probabilities NaN, ranks and counts 0.
    Tokens given have to be in [0, vocab); of one that is not kept, the log-probability is -inf.
    """
    cdef Job job
    cdef bint raw = tokens.shape[0] == 4
    cdef int64_t row, i, n = tokens.shape[2], top = top_ids.shape[2]
    rows.init_job(&job)
    job.do_row = sample_row
    set_chain(&job, chain)
    job.flag_invalid = flag_invalid
    job.n = n
    job.top = top
    job.raw = raw
    job.given = given or keys is None
    job.cost = REPORT_COST if raw or chain.weighs else READ_COST
    if not (tokens.shape[1] == logprobs.shape[1] == top_ids.shape[1] == top_logprobs.shape[1]
            == job.batch
            and tokens.shape[0] == 3 + raw and logprobs.shape[0] == 2 + 2 * raw
            and top_ids.shape[0] == top_logprobs.shape[0] == 1 + raw and logprobs.shape[2] == n
            and top_logprobs.shape[2] == top):
        raise ValueError("the results have to fit the rows")
    if job.given:
        for row in range(job.batch):
            for i in range(n):
                if not 0 <= tokens[0, row, i] < job.vocab:
                    raise ValueError("the tokens have to be in [0, vocab)")
    if job.batch > 0 and n > 0:
        job.tokens, job.ranks, job.kept = &tokens[0, 0, 0], &tokens[1, 0, 0], &tokens[2, 0, 0]
        job.logprobs, job.entropy = &logprobs[0, 0, 0], &logprobs[1, 0, 0]
        if raw:
            job.raw_ranks = &tokens[3, 0, 0]
            job.raw_logprobs, job.log_mass = &logprobs[2, 0, 0], &logprobs[3, 0, 0]
    if job.batch > 0 and top > 0:
        job.top_ids, job.top_logprobs = &top_ids[0, 0, 0], &top_logprobs[0, 0, 0]
        if raw:
            job.raw_top_ids, job.raw_top_logprobs = &top_ids[1, 0, 0], &top_logprobs[1, 0, 0]
    set_uniforms(&job, keys, streams, steps, draws, not job.given)
    spread(&job, chain)
    return run(&job, threads, job.vocab if job.n > 1 and not job.given else 0,
               max(n, min(top, job.vocab)))


def filter_rows(Chain chain, Rows rows, out, double limit, bint flag_invalid, int threads=1,
                KeyedUniforms keys=None, const uint64_t[::1] streams=None,
                const uint64_t[::1] steps=None, const uint64_t[::1] draws=None):
    """out[row] = the logits over the temperature where kept, -inf elsewhere.

    out is float64 for float64 rows, else float32, of shape (batch, vocab), contiguous; it may be
    the rows themselves. No finite value passes limit in size. Returns as `draw_tokens`; with
    flag_invalid an invalid row is -inf throughout.
    """
    cdef Job job
    rows.init_job(&job)
    job.do_row = filter_row
    set_chain(&job, chain)
    job.flag_invalid = flag_invalid
    job.limit = limit
    job.cost = FILTER_COST
    set_output(&job, out, job.vocab)
    set_uniforms(&job, keys, streams, steps, draws, False)
    return run(&job, threads, 0, 0)


cdef int set_output(Job *job, out, int64_t width) except -1:
    """Let a job write rows of `width` to out, of the type that the kernels work on."""
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


def distribution_row(Chain chain, Rows rows, int64_t[::1] ids, double[::1] logits,
                     double[::1] probs, double[::1] logprobs, double[::1] cumulative,
                     KeyedUniforms keys=None, const uint64_t[::1] streams=None,
                     const uint64_t[::1] steps=None, const uint64_t[::1] draws=None):
    """What the chain keeps of the one row, ids ascending; the arrays hold `vocab` entries.

    cumulative is the mass up to each token, the arithmetic of the draw. Returns (count, entropy,
    None), or (0, 0, (row, token, value)) as `draw_tokens`.
    """
    cdef Job job
    cdef RowState s
    cdef Scratch *scratch
    cdef int64_t n = 0
    cdef double entropy = 0.0
    cdef bint valid
    rows.init_job(&job)
    set_chain(&job, chain)
    if not (job.batch == 1 and ids.shape[0] == job.vocab and logits.shape[0] == job.vocab
            and probs.shape[0] == job.vocab and logprobs.shape[0] == job.vocab
            and cumulative.shape[0] == job.vocab):
        raise ValueError("one row, and arrays as long as it")
    set_uniforms(&job, keys, streams, steps, draws, False)
    scratch = acquire(job.vocab, 0, min(job.sorts, job.vocab), rebased_room(&job))
    try:
        with nogil:
            valid = begin_row(&s, &job, 0, scratch)
            if valid:
                apply_stages(&s)
                n = read_distribution(&s, &ids[0], &logits[0], &probs[0], &logprobs[0],
                                      &cumulative[0], &entropy)
        return (n, entropy, None) if valid else (0, 0.0, first_invalid(0, &s.row))
    finally:
        release(scratch)


# ------------------------------------------------------------------------------ softmax family

def softmax_rows(Rows rows, double temperature, const double[::1] temperatures, int what, out):
    """SOFTMAX or LOG_SOFTMAX of every row into out of shape (batch, vocab), or LOGSUMEXP into out
    of shape (batch, 1), at one temperature, or at `temperatures`, one per row.

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
    rows.init_job(&job)
    if temperatures is not None:
        if temperatures.shape[0] != job.batch:
            raise ValueError("there has to be one temperature per row")
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
                row.kernels.softmax(&row, job.row_stride, count, at + first * step, step, what,
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

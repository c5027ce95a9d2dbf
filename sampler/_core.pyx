"""The core: rows of logits in, tokens out.

This file has what Python sees. Two parts of it have rooms of their own, and so have the functions
that only the tests call:

    rows.pxi     rows of logits as they come in, their edits and masks
    run.pxi      who has which scratch memory; the threads of a call
    probes.pxi   what only the tests call

What happens to a row is in core/ too, one concern a file, here in the order in which to read them:

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

H. Cython. The .pxd files hold inline functions, and the .pxi files are included here, so that the
   core is one extension, and one unit for the C compiler. Cython's directives are in setup.py:
   those at the head of a .pyx do not reach a .pxd.
"""

cimport cython
from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from sampler.core.draw cimport draw_row
from sampler.core.edits cimport N_EDITS, edit_names
from sampler.core.job cimport WORK_PER_LOOK, Job, begin_row, rebased_room
from sampler.core.kernels cimport (
    BFLOAT16, BLOCK, FLOAT16, FLOAT32, FLOAT64, LOG_SOFTMAX, LOGSUMEXP, SAMPLER_COMPILER,
    SAMPLER_ISAS, SOFTMAX, Row, isa_name, isa_runs, make_row, philox_uniform, set_isa
)
from sampler.core.report cimport filter_row, read_distribution, sample_row
from sampler.core.row cimport (
    DRAWS_CANDIDATES, DRAWS_EXACT, DRAWS_FAST, DRAWS_FINE, ENTROPY_CANDIDATES, ENTROPY_EXACT,
    ENTROPY_FINE, EXACT, FAST, FINE, LOG_MASS_CANDIDATES, LOG_MASS_EXACT, LOG_MASS_FINE,
    PARAMETERS, TOP_P_CANDIDATES, TOP_P_EXACT, TOP_P_FAST, TOP_P_FINE, Chain as CChain, RowState,
    Scratch, Stage
)
from sampler.core.stages cimport (
    N_STAGES, add_stage, apply_stages, complete_chain, seen_by_memory, stage_names
)


cdef enum:
    # What a call takes for each logit, in 16ths of a nanosecond.
    READ_COST = 1
    MASS_COST = 4
    FILTER_COST = 10
    REPORT_COST = 10


include "core/run.pxi"
include "core/rows.pxi"


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


def join(list entries not None, uint64_t[:, ::1] numbers not None):
    """Make one chain of those of several samplers, each for one row, and find their numbers.

    entries : for each row its Chain, seed, stream and draw, its text, as `Rows.change` takes it,
    and what is not for the core. numbers : shape (4, rows), gets seeds, streams, steps, which are
    the lengths of the texts, and draws.
    """
    cdef Chain made = Chain(()), one
    cdef int64_t row, count = len(entries)
    if numbers.shape[0] != 4 or numbers.shape[1] != count:
        raise ValueError("four numbers for each row")
    free(made.chains)
    made.chains = <CChain *> malloc(max(count, 1) * sizeof(CChain))
    if made.chains == NULL:
        raise MemoryError()
    made.stride = 1
    made.weighs = False
    made.per_row = "samplers", count
    made._ids = entries[:]  # the stages that the chains point to are theirs
    for row in range(count):
        one, numbers[0, row], numbers[1, row], numbers[3, row], text, _ = entries[row]
        if one.per_row is not None:
            raise ValueError("each chain has to be for one row")
        numbers[2, row] = len(text[0])
        made.chains[row] = one.chains[0]
        made.weighs |= one.weighs
        made.room = max(made.room, one.room)
        made.sorts = max(made.sorts, one.sorts)
        made.has_coins |= one.has_coins
    return made


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
    seeds : buffer of uint64, optional
        One of each row, in place of the one.
    """

    cdef readonly uint64_t seed
    cdef object _step
    cdef const uint64_t[::1] _seeds

    def __cinit__(self, uint64_t seed, step, const uint64_t[::1] seeds=None):
        self.seed = seed
        self._step = step
        self._seeds = seeds

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
            or (draws is not None and draws.shape[0] != job.batch)
            or (keys is not None and keys._seeds is not None
                and keys._seeds.shape[0] != job.batch)):
        raise ValueError("one seed, one stream, one step and one draw per row")
    if keys is None:
        return 0
    job.seed = keys.seed
    if keys._seeds is not None and job.batch > 0:
        job.seeds = &keys._seeds[0]
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


@cython.final
@cython.no_gc
cdef class Kept:
    """What `sample_tokens` found that each row of so many keeps, or each draw of it."""

    cdef int32_t **_lists
    cdef int64_t _count  # of lists
    cdef int64_t _rows

    def __cinit__(self, int64_t rows):
        self._rows = rows

    cdef int begin(self, Job *job) except -1:
        """Take what a job will find, each list after how many it holds: once."""
        if self._lists != NULL or self._rows * job.repeat != job.batch:
            raise ValueError("the lists have to be of these rows, and the first")
        self._lists = <int32_t **> calloc(max(<int64_t> 1, job.batch), sizeof(int32_t *))
        if self._lists == NULL:
            raise MemoryError()
        self._count = job.batch
        job.kept_ids = self._lists
        return 0

    cdef const int32_t *_list(self, int64_t place, int64_t n) except NULL:
        """How many ids draw `place % n` of row `place // n` keeps, and these."""
        cdef const int32_t *found
        found = self._lists[place if self._count == self._rows * n else place // n]
        if found == NULL:
            raise MemoryError()
        return found

    def bounds(self, int64_t n, const int64_t[:, ::1] n_kept, int64_t[::1] bounds):
        """Write where the ids of each draw begin, n to a row, and the end of all. A row that is
        invalid, whose n_kept is 0, keeps none."""
        cdef int64_t place
        if (self._count not in (self._rows, self._rows * n) or n_kept.shape[0] != self._rows
                or n_kept.shape[1] != n or bounds.shape[0] != self._rows * n + 1):
            raise ValueError("one bound for each draw, and one more")
        bounds[0] = 0
        for place in range(self._rows * n):
            bounds[place + 1] = bounds[place]
            if n_kept[place // n, place % n] > 0:
                bounds[place + 1] += self._list(place, n)[0]

    def copy(self, int64_t n, const int64_t[::1] bounds, int32_t[::1] ids):
        """Write the ids, to where `bounds` has them."""
        cdef int64_t place, count
        cdef const int32_t *found
        if bounds.shape[0] != self._rows * n + 1:
            raise ValueError("one bound for each draw, and one more")
        for place in range(self._rows * n):
            count = bounds[place + 1] - bounds[place]
            if count == 0:
                continue
            found = self._list(place, n)
            if not (count == found[0] and 0 <= bounds[place] <= ids.shape[0] - count):
                raise ValueError("room for the ids")
            memcpy(&ids[bounds[place]], found + 1, count * sizeof(int32_t))

    def __dealloc__(self):
        cdef int64_t i
        for i in range(self._count):
            free(self._lists[i])
        free(self._lists)


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
                  const uint64_t[::1] draws=None, bint given=False, double[::1] observed=None,
                  Kept kept=None):
    """`draw_tokens`, and what `Samples` has of each token; with `given` or without `keys`, of the
    tokens given.

    tokens holds the tokens, their ranks and the kept counts, shape (3, batch, n); logprobs those
    under the law and the entropy, (2, batch, n); the top arrays the first ones, (1, batch, any). To
    have the raw ones as well, tokens is (4, batch, n), with the raw ranks last; logprobs
    (4, batch, n), with the raw ones and the kept log mass; the top arrays (2, batch, any).
    observed, of shape (batch,), gets what a stage with memory goes on from: see `seen_by_memory`;
    kept the ids of what is kept.
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
    if observed is not None:
        if observed.shape[0] != job.batch or n != 1:
            raise ValueError("one number that is observed, of one token per row")
        job.observed = &observed[0] if job.batch > 0 else NULL
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
    if kept is not None:
        kept.begin(&job)
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
                     const uint64_t[::1] steps=None, const uint64_t[::1] draws=None,
                     double[::1] observed=None):
    """What the chain keeps of the one row, ids ascending; the arrays hold `vocab` entries.

    cumulative is the mass up to each token, the arithmetic of the draw; observed what a stage with
    memory would see if that token were drawn. Returns (count, entropy, None), or (0, 0, (row,
    token, value)) as `draw_tokens`.
    """
    cdef Job job
    cdef RowState s
    cdef Scratch *scratch
    cdef int64_t i, n = 0
    cdef double entropy = 0.0
    cdef bint valid
    rows.init_job(&job)
    set_chain(&job, chain)
    if not (job.batch == 1 and ids.shape[0] == job.vocab and logits.shape[0] == job.vocab
            and probs.shape[0] == job.vocab and logprobs.shape[0] == job.vocab
            and cumulative.shape[0] == job.vocab
            and (observed is None or observed.shape[0] == job.vocab)):
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
                if observed is not None:
                    for i in range(n):
                        observed[i] = seen_by_memory(&s, ids[i], logprobs[i])
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


include "core/probes.pxi"

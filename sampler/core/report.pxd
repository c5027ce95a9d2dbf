"""What is reported of a row besides its tokens: log-probabilities, ranks, the top tokens, the kept
mass; the filtered row; the distribution.
"""

from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, NAN, fabs
from libc.stdint cimport INT64_MAX, int64_t
from libc.stdlib cimport qsort

from sampler.core.draw cimport add_on, draw_all
from sampler.core.job cimport Job, is_interrupted, raw_row_of, row_of
from sampler.core.kernels cimport (
    BLOCK, FLOAT64, KEEP_ALL, LOG_SLACK, NO_MASS, Cut, Mass, Tempering, block_start, blocks_in,
    keeps, log_canonical, make_tempering, mass_value, nearest, tempered
)
from sampler.core.row cimport (
    LOG_MASS_EXACT, LOG_MASS_FINE, Item, RowState, Scratch, add_up, are_candidates, has_bounds,
    mass_of_candidates, scan_row, set_fine_errors, weigh_candidates
)
from sampler.core.search cimport first_in_rank
from sampler.core.stages cimport apply_stages


cdef inline bint sample_row(Job *job, int64_t row, Scratch *scratch) noexcept nogil:
    """What `sample_tokens` does with a row. False where it is invalid."""
    cdef RowState s
    cdef Tempering raw
    cdef int64_t i, found, kept, n = job.n, top = job.top
    cdef int64_t *tokens = job.tokens + row * n
    cdef Item *items = scratch.items
    cdef bint among_candidates
    cdef double log_mass, raw_log_mass, kept_log_mass, x
    for i in range(row * top, (row + 1) * top):
        job.top_ids[i] = -1
        job.raw_top_ids[i] = -1
        job.top_logprobs[i] = -INFINITY
        job.raw_top_logprobs[i] = -INFINITY
    if not scan_row(&s, scratch, job.chain, row_of(job, row)):
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
    raw = s.tempering
    raw_log_mass = log_of_raw_mass(&s)
    apply_stages(&s)
    among_candidates = are_candidates(&s, s.cut)
    kept = s.candidates.n if among_candidates else s.row.kernels.count(&s.row, s.cut)
    if among_candidates:
        log_mass = log_canonical(mass_value(mass_of_candidates(&s)))
    elif s.cut.value == -INFINITY and s.temperature == 1.0:
        log_mass = raw_log_mass
    else:
        log_mass = log_canonical(mass_value(
            s.row.kernels.exact_mass(&s.row, &s.tempering, s.cut, NULL)))
    kept_log_mass = log_kept_mass(&s, log_mass, raw_log_mass)
    if n > 0:
        if not job.given:
            draw_all(&s, job, row, tokens)
            if is_interrupted(job):
                return True
        for i in range(n):
            x = s.row.kernels.at(&s.row, tokens[i])
            items[i] = Item(x, tokens[i], i)
            job.kept[row * n + i] = kept
            job.log_mass[row * n + i] = kept_log_mass
            job.logprobs[row * n + i] = -INFINITY
            if keeps(s.cut, x, tokens[i]):
                job.logprobs[row * n + i] = log_share(&s, x, log_mass)
            job.raw_logprobs[row * n + i] = -INFINITY
            if x > -INFINITY:
                job.raw_logprobs[row * n + i] = raw_log_share(&raw, x, raw_log_mass)
        # Tokens given may come after all that is kept in rank, and then are no candidates.
        rank_items(&s, among_candidates and not job.given, items, n, job.ranks + row * n)
    if top > 0:
        found = top_items(&s, min(top, s.row.n), items)
        for i in range(found):
            x = items[i].value
            job.raw_top_ids[row * top + i] = items[i].id
            job.raw_top_logprobs[row * top + i] = raw_log_share(&raw, x, raw_log_mass)
            if keeps(s.cut, x, items[i].id):
                job.top_ids[row * top + i] = items[i].id
                job.top_logprobs[row * top + i] = log_share(&s, x, log_mass)
    if s.row.edits != NULL:
        report_raw(job, row, scratch)
    return True


cdef inline void report_raw(Job *job, int64_t row, Scratch *scratch) noexcept nogil:
    """The raw results of an edited row: those of the row as it came in, NaN where it is invalid.

    Uses the scratch of the edited row, so it is the last thing to do.
    """
    cdef RowState s
    cdef int64_t i, found = 0
    cdef double x, log_mass = NAN
    cdef bint valid = scan_row(&s, scratch, job.chain, raw_row_of(job, row))
    if valid:
        log_mass = log_canonical(mass_value(
            s.row.kernels.exact_mass(&s.row, &s.tempering, KEEP_ALL, NULL)))
    for i in range(row * job.n, (row + 1) * job.n):
        x = s.row.kernels.at(&s.row, job.tokens[i])
        job.raw_logprobs[i] = NAN if not valid else -INFINITY
        if valid and x > -INFINITY:
            job.raw_logprobs[i] = raw_log_share(&s.tempering, x, log_mass)
    if valid and job.top > 0:
        found = top_items(&s, min(job.top, s.row.n), scratch.items)
    for i in range(job.top):
        job.raw_top_ids[row * job.top + i] = -1
        job.raw_top_logprobs[row * job.top + i] = NAN if not valid else -INFINITY
    for i in range(found):
        job.raw_top_ids[row * job.top + i] = scratch.items[i].id
        job.raw_top_logprobs[row * job.top + i] = raw_log_share(
            &s.tempering, scratch.items[i].value, log_mass)


cdef inline bint filter_row(Job *job, int64_t row, Scratch *scratch) noexcept nogil:
    """What `filter_rows` does with a row. False where it is invalid."""
    cdef RowState s
    cdef double divisor
    cdef bint shifted
    cdef char *out = job.out + row * job.out_stride
    cdef int64_t i
    if not scan_row(&s, scratch, job.chain, row_of(job, row)):
        for i in range(job.vocab):
            if job.kind == FLOAT64:
                (<double *> out)[i] = -INFINITY
            else:
                (<float *> out)[i] = -INFINITY
        return False
    apply_stages(&s)
    divisor = 1.0 if s.greedy else s.temperature
    # Where x / T would pass the dtype's range, shift the row below zero first: the law is the same,
    # and the largest logits, the ones that matter, stay exact.
    shifted = not fabs(s.max) / divisor <= job.limit
    s.row.kernels.filter(&s.row, &s.tempering, s.cut, divisor, shifted, job.limit, out)
    return True


cdef inline int64_t read_distribution(RowState *s, int64_t *ids, double *logits, double *probs,
                                      double *logprobs, double *cumulative) noexcept nogil:
    """What is kept of a row, ids ascending; returns how many tokens."""
    cdef double x[BLOCK]
    cdef double weights[BLOCK]
    cdef double total, log_mass
    cdef int64_t b, i, count, n = 0
    cdef Mass mass = NO_MASS
    if are_candidates(s, s.cut):
        weigh_candidates(s)
        for i in range(s.candidates.n):
            ids[i] = s.candidates.ids[i]
            logits[i] = s.candidates.values[i]
            probs[i] = s.candidates.weights[i]
        n = s.candidates.n
    else:
        for b in range(blocks_in(&s.row)):
            count = s.row.kernels.read(&s.row, &s.tempering, s.cut, b, x, weights)
            for i in range(count):
                if x[i] > -INFINITY:
                    ids[n] = block_start(&s.row, b) + i
                    logits[n] = x[i]
                    probs[n] = weights[i]
                    n += 1
    # Greedy keeps one token; its weight is 1 at any temperature.
    add_on(probs, n, &mass, cumulative)
    total = mass_value(mass)
    log_mass = log_canonical(total)
    for i in range(n):
        logprobs[i] = log_share(s, logits[i], log_mass)
        probs[i] /= total
    return n


cdef inline double log_share(const RowState *s, double x, double log_mass) noexcept nogil:
    """log p of a kept token: finite, whatever underflows."""
    if s.greedy:
        return 0.0
    return max(tempered(&s.tempering, x) - log_mass, -DBL_MAX)


cdef inline double raw_log_share(const Tempering *raw, double x, double log_mass) noexcept nogil:
    return max(tempered(raw, x) - log_mass, -DBL_MAX)


cdef inline double log_of_raw_mass(RowState *s) noexcept nogil:
    """The log of the whole row's mass at temperature 1, exact. Where that of another temperature
    will be asked for, the fine mass at that one too, which then costs less."""
    cdef Tempering tempering = make_tempering(s.max, s.chain.temperature)
    cdef Mass mass
    if s.chain.truncates and s.chain.temperature != 1.0 and has_bounds(s, &tempering):
        mass = s.row.kernels.exact_and_fine_masses(&s.row, &s.tempering, &tempering,
                                                   s.scratch.masses)
        set_fine_errors(s)
        add_up(s)
        s.whole = s.total
        s.whole_error = s.error
    else:
        mass = s.row.kernels.exact_mass(&s.row, &s.tempering, KEEP_ALL, NULL)
    return log_canonical(mass_value(mass))


cdef inline double log_kept_mass(RowState *s, double log_mass, double raw_log_mass) noexcept nogil:
    """The log of the share of the row's mass that the chain kept, on a grid, at its temperature:
    from the exact masses, or from a fine one whose bounds prove what these would give."""
    cdef double low, high
    if s.greedy or s.cut.value == -INFINITY:
        return 0.0
    if s.temperature == 1.0:
        return on_grid(log_mass - raw_log_mass)
    if s.whole_error < INFINITY:
        low = on_grid(log_mass - log_canonical(s.whole + s.whole_error) - LOG_SLACK)
        high = on_grid(log_mass - log_canonical(s.whole - s.whole_error) + LOG_SLACK)
        if low == high:
            s.scratch.counts[LOG_MASS_FINE] += 1
            return low
    s.scratch.counts[LOG_MASS_EXACT] += 1
    return on_grid(log_mass - log_canonical(mass_value(
        s.row.kernels.exact_mass(&s.row, &s.tempering, KEEP_ALL, NULL))))


cdef inline double on_grid(double log_mass) noexcept nogil:
    """The nearest multiple of 2**-32."""
    return nearest(log_mass * 4294967296.0) / 4294967296.0


cdef inline int64_t top_items(RowState *s, int64_t n, Item *items) noexcept nogil:
    """The first n of the row in rank, into items; returns how many there are. The last thing to ask
    of a row: the candidates may become others."""
    cdef Cut cut = first_in_rank(s, n)
    cdef double x[BLOCK]
    cdef int64_t b, i, count, found = 0
    if are_candidates(s, cut):
        for i in range(s.candidates.n):
            if keeps(cut, s.candidates.values[i], s.candidates.ids[i]):
                items[found] = Item(s.candidates.values[i], s.candidates.ids[i], 0)
                found += 1
    else:
        for b in range(blocks_in(&s.row)):
            count = s.row.kernels.read(&s.row, NULL, cut, b, x, NULL)
            for i in range(count):
                if x[i] > -INFINITY:
                    items[found] = Item(x[i], block_start(&s.row, b) + i, 0)
                    found += 1
    qsort(items, found, sizeof(Item), by_rank)
    return found


cdef inline void rank_items(RowState *s, bint among_candidates, Item *items, int64_t n,
                            int64_t *ranks) noexcept nogil:
    """ranks[item.place] = 1 + the tokens of the row before the item; sorts the items by rank.

    With `among_candidates`, every token before the items is a candidate. One pass, whatever n.
    """
    cdef double x[BLOCK]
    cdef int64_t b, i, count, before = 0
    if n == 1 and not among_candidates and items[0].value > -INFINITY:
        ranks[items[0].place] = s.row.kernels.count(&s.row, Cut(items[0].value, items[0].id))
        return
    qsort(items, n, sizeof(Item), by_rank)
    for i in range(n):
        ranks[items[i].place] = 0
    if among_candidates:
        for i in range(s.candidates.n):
            rank_after(s.candidates.values[i], s.candidates.ids[i], items, n, ranks)
    elif items[n - 1].value == -INFINITY:
        for i in range(s.row.n):
            rank_after(s.row.kernels.at(&s.row, i), i, items, n, ranks)
    else:
        for b in range(blocks_in(&s.row)):
            count = s.row.kernels.read(&s.row, NULL, Cut(items[n - 1].value, INT64_MAX), b, x, NULL)
            for i in range(count):
                if x[i] > -INFINITY:
                    rank_after(x[i], block_start(&s.row, b) + i, items, n, ranks)
    for i in range(n):
        # An item counts itself; equal draws of one token share the first one's count.
        before += ranks[items[i].place]
        ranks[items[i].place] = before


cdef inline void rank_after(double value, int64_t id, const Item *items, int64_t n,
                            int64_t *ranks) noexcept nogil:
    """Count a token at the first item that is not before it in rank: that and all after it have the
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


cdef inline int by_rank(const void *left, const void *right) noexcept nogil:
    cdef const Item *a = <const Item *> left
    cdef const Item *b = <const Item *> right
    if a.value != b.value:
        return -1 if a.value > b.value else 1
    return -1 if a.id < b.id else a.id > b.id

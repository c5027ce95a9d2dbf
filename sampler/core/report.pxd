"""What is reported of a row with its tokens: log-probabilities, ranks, the top tokens, the kept
mass; the filtered row; the distribution.

Every log of a mass is on the grid: the nearest multiple of 2**-32.
"""

from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, NAN, fabs
from libc.stdint cimport INT64_MAX, int64_t
from libc.stdlib cimport qsort

from sampler.core.draw cimport add_on, draw_all
from sampler.core.job cimport Job, chain_of, is_interrupted, raw_row_of, row_of
from sampler.core.kernels cimport (
    BLOCK, FLOAT64, KEEP_ALL, LOG_SLACK, NO_MASS, Candidates, Cut, Mass, Tempering, block_start,
    blocks_in, keeps, log_canonical, make_tempering, mass_value, nearest, tempered
)
from sampler.core.row cimport (
    ENTROPY_CANDIDATES, ENTROPY_EXACT, ENTROPY_FINE, EXACT, LOG_MASS_CANDIDATES, LOG_MASS_EXACT,
    LOG_MASS_FINE, UNKNOWN, Bounded, Item, RowState, Scratch, add_up, are_candidates,
    count_settled, depth_of_candidates, depth_of_row, fine_total, has_bounds, mass_of_candidates,
    refine, scan_row, set_fine_errors, weigh_candidates
)
from sampler.core.search cimport first_in_rank
from sampler.core.stages cimport apply_scales, apply_stages


cdef inline bint sample_row(Job *job, int64_t row, Scratch *scratch) noexcept nogil:
    """What `sample_tokens` does with a row. False where it is invalid."""
    cdef RowState s
    cdef Tempering raw
    cdef int64_t i, found, kept, n = job.n, top = job.top, start = row * job.n
    cdef int64_t *tokens = job.tokens + start
    cdef Item *items = scratch.items
    cdef bint among_candidates, with_raw
    cdef double log_mass, entropy, raw_log_mass = 0.0, kept_log_mass = 0.0, x
    if not scan_row(&s, scratch, chain_of(job, row), row_of(job, row)):
        blank_row(job, row)
        return False
    raw = s.tempering
    if job.raw and not s.chain.rebases:
        find_whole_masses(&s, s.row.edits == NULL)
    apply_stages(&s)
    s.reports = True
    if n > 0 and not job.given:
        draw_all(&s, job, row, tokens)
        if is_interrupted(job):
            return True
    among_candidates = are_candidates(&s, s.cut)
    log_mass = log_of_mass(&s)
    entropy = entropy_of(&s)
    kept = s.candidates.n if among_candidates else s.row.kernels.count(&s.row, s.cut)
    # Of a row that was edited or rebased, `report_raw` reports the raw figures.
    with_raw = job.raw and not s.rebased and s.row.edits == NULL
    if with_raw:
        raw_log_mass = log_of_raw_mass(&s, &raw, log_mass)
    if job.raw and not s.rebased:
        kept_log_mass = log_of_kept_mass(&s, log_mass, raw_log_mass)
    if n > 0:
        for i in range(n):
            x = s.row.kernels.at(&s.row, tokens[i])
            items[i] = Item(x, tokens[i], i)
            job.kept[start + i] = kept
            job.entropy[start + i] = entropy
            job.logprobs[start + i] = -INFINITY
            if keeps(s.cut, x, tokens[i]):
                job.logprobs[start + i] = log_share(&s, x, log_mass)
            if job.raw:
                job.log_mass[start + i] = kept_log_mass
            if with_raw:
                job.raw_logprobs[start + i] = -INFINITY
                if x > -INFINITY:
                    job.raw_logprobs[start + i] = raw_log_share(&raw, x, raw_log_mass)
        # Tokens given may come after all that is kept in rank, and then are no candidates.
        rank_items(&s, among_candidates and not job.given, items, n, job.ranks + start)
        if with_raw:
            for i in range(n):
                job.raw_ranks[start + i] = job.ranks[start + i]
    if top > 0:
        # Without the raw ones, only what is kept is listed.
        found = top_items(&s, min(top, s.row.n if with_raw else kept), items)
        start = row * top
        for i in range(top):
            job.top_ids[start + i] = -1
            job.top_logprobs[start + i] = -INFINITY
            if i < found and keeps(s.cut, items[i].value, items[i].id):
                job.top_ids[start + i] = items[i].id
                job.top_logprobs[start + i] = log_share(&s, items[i].value, log_mass)
            if with_raw:
                job.raw_top_ids[start + i] = items[i].id if i < found else -1
                job.raw_top_logprobs[start + i] = (
                    raw_log_share(&raw, items[i].value, raw_log_mass) if i < found else -INFINITY
                )
    if job.raw and s.rebased:
        report_log_mass(job, row, scratch, &s, log_mass)
    if job.raw and not with_raw:
        report_raw(job, row, scratch)
    return True


cdef inline void report_log_mass(Job *job, int64_t row, Scratch *scratch, const RowState *kept,
                                 double log_of_kept) noexcept nogil:
    """The kept log mass of a row that was rebased.

    Scales the row once more, without the cuts, so it uses the scratch of the first time.
    """
    cdef RowState s
    cdef double log_mass = 0.0
    cdef int64_t i
    if not kept.greedy:
        scan_row(&s, scratch, chain_of(job, row), row_of(job, row))
        apply_scales(&s)
        # What is kept may lack the largest: the two masses are on two scales.
        log_mass = max(log_of_kept - log_of_mass(&s) + tempered(&s.tempering, kept.max), -DBL_MAX)
    for i in range(row * job.n, (row + 1) * job.n):
        job.log_mass[i] = log_mass


cdef inline void report_raw(Job *job, int64_t row, Scratch *scratch) noexcept nogil:
    """The raw results of an edited or rebased row: those of the row as it came in, NaN where it is
    invalid.

    Uses the scratch of that row, so it is the last thing to do.
    """
    cdef RowState s
    cdef Item *items = scratch.items
    cdef int64_t i, found = 0, n = job.n, top = job.top, start = row * n
    cdef double log_mass = NAN
    cdef bint valid = scan_row(&s, scratch, chain_of(job, row), raw_row_of(job, row))
    if valid:
        if has_bounds(&s, &s.tempering):
            s.raw = fine_whole(&s, &s.tempering)
        log_mass = log_of_whole(&s, &s.tempering, s.raw)
    for i in range(n):
        items[i] = Item(s.row.kernels.at(&s.row, job.tokens[start + i]), job.tokens[start + i], i)
        job.raw_ranks[start + i] = 0
        job.raw_logprobs[start + i] = -INFINITY if valid else NAN
        if valid and items[i].value > -INFINITY:
            job.raw_logprobs[start + i] = raw_log_share(&s.tempering, items[i].value, log_mass)
    if valid and n > 0:
        rank_items(&s, False, items, n, job.raw_ranks + start)
    if valid and top > 0:
        found = top_items(&s, min(top, s.row.n), items)
    start = row * top
    for i in range(top):
        job.raw_top_ids[start + i] = items[i].id if i < found else -1
        job.raw_top_logprobs[start + i] = -INFINITY if valid else NAN
        if i < found:
            job.raw_top_logprobs[start + i] = raw_log_share(&s.tempering, items[i].value, log_mass)


cdef inline void blank_row(Job *job, int64_t row) noexcept nogil:
    """What `sample_row` reports of an invalid row."""
    cdef int64_t i
    for i in range(row * job.n, (row + 1) * job.n):
        job.tokens[i] = -1
        job.ranks[i] = 0
        job.kept[i] = 0
        job.logprobs[i] = NAN
        job.entropy[i] = NAN
        if job.raw:
            job.raw_ranks[i] = 0
            job.raw_logprobs[i] = NAN
            job.log_mass[i] = NAN
    for i in range(row * job.top, (row + 1) * job.top):
        job.top_ids[i] = -1
        job.top_logprobs[i] = NAN
        if job.raw:
            job.raw_top_ids[i] = -1
            job.raw_top_logprobs[i] = NAN


cdef inline bint filter_row(Job *job, int64_t row, Scratch *scratch) noexcept nogil:
    """What `filter_rows` does with a row. False where it is invalid."""
    cdef RowState s
    cdef double divisor
    cdef bint shifted
    cdef char *out = job.out + row * job.out_stride
    cdef int64_t i
    if not scan_row(&s, scratch, chain_of(job, row), row_of(job, row)):
        for i in range(job.vocab):
            if job.kind == FLOAT64:
                (<double *> out)[i] = -INFINITY
            else:
                (<float *> out)[i] = -INFINITY
        return False
    apply_stages(&s)
    if s.rebased:
        filter_rebased(&s, job, out)
        return True
    divisor = 1.0 if s.greedy else s.temperature
    # Where x / T would pass the dtype's range, shift the row below zero first: the law is the same,
    # and the largest logits, the ones that matter, stay exact.
    shifted = not fabs(s.max) / divisor <= job.limit
    s.row.kernels.filter(&s.row, &s.tempering, s.cut, divisor, shifted, job.limit, out)
    return True


cdef inline void filter_rebased(RowState *s, const Job *job, char *out) noexcept nogil:
    """The tempered logits of what is kept, the largest at 0, -inf elsewhere."""
    cdef double x[BLOCK]
    cdef double z
    cdef int64_t b, i, at, count
    for b in range(blocks_in(&s.row)):
        count = s.row.kernels.read(&s.row, NULL, s.cut, b, x, NULL)
        for i in range(count):
            z = -INFINITY
            if x[i] > -INFINITY:
                z = 0.0 if s.greedy else max(tempered(&s.tempering, x[i]), -job.limit)
            at = block_start(&s.row, b) + i
            if job.kind == FLOAT64:
                (<double *> out)[at] = z
            else:
                (<float *> out)[at] = <float> z


cdef inline int64_t read_distribution(RowState *s, int64_t *ids, double *logits, double *probs,
                                      double *logprobs, double *cumulative,
                                      double *entropy) noexcept nogil:
    """What is kept of a row, ids ascending, and its entropy; returns how many tokens."""
    cdef double x[BLOCK]
    cdef double weights[BLOCK]
    cdef double total, log_mass
    cdef int64_t b, i, count, n = 0
    cdef Mass mass = NO_MASS
    s.reports = True
    entropy[0] = entropy_of(s)
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
    log_mass = on_grid(log_canonical(total))
    for i in range(n):
        logprobs[i] = log_share(s, logits[i], log_mass)
        probs[i] /= total
    return n


cdef inline double log_share(const RowState *s, double x, double log_mass) noexcept nogil:
    """log p of a kept token: finite, whatever underflows."""
    if s.greedy:
        return 0.0
    return max(tempered(&s.tempering, x) - log_mass, -DBL_MAX) + 0.0  # -0.0 is 0.0


cdef inline double raw_log_share(const Tempering *raw, double x, double log_mass) noexcept nogil:
    return max(tempered(raw, x) - log_mass, -DBL_MAX) + 0.0


cdef inline void find_whole_masses(RowState *s, bint raw) noexcept nogil:
    """Before the stages: the fine masses that `raw` adds to that of what is kept. The whole
    row's at temperature 1, if `raw`, and, where a share of it is kept, at the chain's."""
    cdef Tempering tempering = make_tempering(s.max, s.chain.temperature)
    cdef bint tempers = s.chain.temperature != 1.0
    cdef double totals[2]
    if s.chain.tier == EXACT or not has_bounds(s, &s.tempering):
        return
    if raw and tempers and s.chain.truncates and has_bounds(s, &tempering):
        s.row.kernels.fine_masses_of_two(&s.row, &s.tempering, &tempering, totals)
        s.raw = fine_total(s, totals[0])
        s.whole = fine_total(s, totals[1])
    elif raw and (tempers or s.chain.truncates):  # else what is kept is the whole row
        s.raw = fine_whole(s, &s.tempering)
    elif s.chain.truncates and has_bounds(s, &tempering):
        s.whole = fine_whole(s, &tempering)
    if raw and not tempers:
        s.whole = s.raw


cdef inline Bounded fine_whole(RowState *s, const Tempering *tempering) noexcept nogil:
    """The fine mass of the whole row."""
    cdef double total = 0.0
    cdef int64_t b
    s.row.kernels.fine_masses(&s.row, tempering, KEEP_ALL, s.scratch.masses)
    for b in range(blocks_in(&s.row)):
        total += s.scratch.masses[b]
    return fine_total(s, total)


cdef inline double log_of_mass(RowState *s) noexcept nogil:
    """The log of the mass of what the stages kept, on the grid: from the first tier that proves
    it."""
    cdef double log
    if s.greedy:
        return 0.0
    if are_candidates(s, s.cut):
        s.scratch.counts[LOG_MASS_CANDIDATES] += 1
        return on_grid(log_canonical(mass_value(mass_of_candidates(s))))
    if s.tier == UNKNOWN:
        refine(s)
    while True:
        log = proven_log(s.total, s.error)
        if log == log:
            count_settled(s, LOG_MASS_CANDIDATES)
            return log
        refine(s)


cdef inline double entropy_of(RowState *s) noexcept nogil:
    """The entropy of what the stages kept, to the nearest multiple of 2**-30, in nats. With M the
    mass and D the depth, ln M + D / M."""
    cdef double entropy
    if s.greedy:
        return 0.0
    if are_candidates(s, s.cut):
        s.scratch.counts[ENTROPY_CANDIDATES] += 1
        return proven_entropy(Bounded(mass_value(mass_of_candidates(s)), 0.0),
                              Bounded(mass_value(depth_of_candidates(s)), 0.0))
    if s.tier == UNKNOWN:
        refine(s)
    entropy = proven_entropy(Bounded(s.total, s.error), s.depth)
    if entropy != entropy:
        while s.tier != EXACT:
            refine(s)
        s.depth = Bounded(mass_value(depth_of_row(s)), 0.0)
        entropy = proven_entropy(Bounded(s.total, 0.0), s.depth)
    s.scratch.counts[ENTROPY_EXACT if s.depth.error == 0.0 else ENTROPY_FINE] += 1
    return entropy


cdef inline double proven_entropy(Bounded mass, Bounded depth) noexcept nogil:
    """The entropy, rounded, if all that lies within the errors has the same; else NaN. Without
    errors it is the exact one."""
    cdef double low, least = mass.sum - mass.error, most = mass.sum + mass.error
    if mass.error == 0.0 and depth.error == 0.0:
        return rounded_entropy(log_canonical(mass.sum) + depth.sum / mass.sum)
    # Twice the slack: there is a quotient and a sum too.
    low = rounded_entropy(log_canonical(least) + (depth.sum - depth.error) / most
                          - 2.0 * LOG_SLACK)
    return low if low == rounded_entropy(log_canonical(most) + (depth.sum + depth.error) / least
                                         + 2.0 * LOG_SLACK) else NAN


cdef inline double rounded_entropy(double entropy) noexcept nogil:
    """The nearest multiple of 2**-30."""
    return nearest(entropy * 1073741824.0) / 1073741824.0


cdef inline double log_of_raw_mass(RowState *s, const Tempering *raw,
                                   double log_mass) noexcept nogil:
    """The log of the whole row's mass at temperature 1, on the grid; log_mass is that of what is
    kept."""
    if s.cut.value == -INFINITY and s.temperature == 1.0:
        return log_mass
    return log_of_whole(s, raw, s.raw)


cdef inline double log_of_kept_mass(RowState *s, double log_mass,
                                    double raw_log_mass) noexcept nogil:
    """The log of the share of the row's mass that the chain kept, at its temperature: a difference
    of two logs on the grid."""
    if s.greedy or s.cut.value == -INFINITY:
        return 0.0
    if s.temperature == 1.0 and s.row.edits == NULL:
        return log_mass - raw_log_mass
    return log_mass - log_of_whole(s, &s.tempering, s.whole)


cdef inline double log_of_whole(RowState *s, const Tempering *tempering,
                                Bounded fine) noexcept nogil:
    """The log of the mass of the whole row, on the grid: from the fine one, if that proves it."""
    cdef double log = proven_log(fine.sum, fine.error)
    if log == log:
        s.scratch.counts[LOG_MASS_FINE] += 1
        return log
    s.scratch.counts[LOG_MASS_EXACT] += 1
    return on_grid(log_canonical(mass_value(
        s.row.kernels.exact_mass(&s.row, tempering, KEEP_ALL, NULL))))


cdef inline double proven_log(double mass, double error) noexcept nogil:
    """The log of the exact mass, on the grid, if all that lies within the error of this mass has
    the same; else NaN. Without an error it is the exact mass."""
    cdef double low
    if error == 0.0:
        return on_grid(log_canonical(mass))
    low = on_grid(log_canonical(mass - error) - LOG_SLACK)
    return low if low == on_grid(log_canonical(mass + error) + LOG_SLACK) else NAN


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
    cdef int64_t b, i, count, start, after = 0, before = 0
    cdef Cut cut
    if n == 1 and items[0].value > -INFINITY:
        cut = Cut(items[0].value, items[0].id)
        ranks[0] = (rank_among_candidates(&s.candidates, cut) if among_candidates
                    else s.row.kernels.count(&s.row, cut))
        return
    if n == 1:  # at -inf: after all that is finite, by id
        ranks[0] = items[0].id + 1
        for b in range(blocks_in(&s.row)):
            count = s.row.kernels.read(&s.row, NULL, KEEP_ALL, b, x, NULL)
            start = block_start(&s.row, b)
            for i in range(max(<int64_t> 0, items[0].id + 1 - start), count):
                after += x[i] > -INFINITY
        ranks[0] += after
        return
    qsort(items, n, sizeof(Item), by_rank)
    for i in range(n):
        ranks[items[i].place] = 0
    if among_candidates:
        for i in range(s.candidates.n):
            rank_after(s.candidates.values[i], s.candidates.ids[i], items, n, ranks)
    else:
        cut = Cut(items[n - 1].value, INT64_MAX)  # at -inf it keeps all that is finite
        for b in range(blocks_in(&s.row)):
            count = s.row.kernels.read(&s.row, NULL, cut, b, x, NULL)
            for i in range(count):
                rank_after(x[i], block_start(&s.row, b) + i, items, n, ranks)
    for i in range(n):
        # An item counts itself; equal draws of one token share the first one's count.
        before += ranks[items[i].place]
        ranks[items[i].place] = before


cdef inline int64_t rank_among_candidates(const Candidates *candidates, Cut cut) noexcept nogil:
    """How many candidates a cut keeps: by values alone, which compilers vectorise, where none is
    tied with the last."""
    cdef int64_t i, above = 0, ties = 0
    for i in range(candidates.n):
        above += candidates.values[i] > cut.value
    for i in range(candidates.n):
        ties += candidates.values[i] == cut.value
    if ties == 1:
        return above + 1
    for i in range(candidates.n):
        above += candidates.values[i] == cut.value and candidates.ids[i] <= cut.last
    return above


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

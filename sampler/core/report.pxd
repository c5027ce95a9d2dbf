"""What is reported of a row with its tokens: log-probabilities, ranks, the top tokens, the kept
mass; the filtered row; the distribution.

Every log of a mass is on the grid: the nearest multiple of 2**-32.
"""

from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, NAN, fabs
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memset

from sampler.core.draw cimport add_on, draw_all
from sampler.core.job cimport Job, begin_row, chain_of, is_interrupted, raw_row_of
from sampler.core.kernels cimport (
    BLOCK, FLOAT64, KEEP_ALL, NO_MASS, WORD, Mass, Tempering, block_start, blocks_in, isa, keeps,
    log_canonical, make_tempering, mass_value, tempered, whole_words
)
from sampler.core.moments cimport add_up_part, entropy_of, log_of_mass, on_grid, proven_log
from sampler.core.ranks cimport rank_items, top_items
from sampler.core.row cimport (
    EXACT, LOG_MASS_EXACT, LOG_MASS_FINE, Bounded, Item, RowState, Scratch, are_candidates,
    count_kept, fill_row, fine_total, has_bounds, parts_of, read_kept, scan_row,
    weigh_candidates
)
from sampler.core.stages cimport apply_scales, apply_stages, seen_by_memory


cdef inline bint sample_row(Job *job, int64_t row, Scratch *scratch) noexcept nogil:
    """What `sample_tokens` does with a row. False where it is invalid."""
    cdef RowState s
    cdef Tempering raw
    cdef int64_t i, found, kept, n = job.n, top = job.top, start = row * job.n
    cdef int64_t *tokens = job.tokens + start
    cdef Item *items = scratch.items
    cdef bint among_candidates, with_raw, apart
    cdef double log_mass, entropy, raw_log_mass = 0.0, kept_log_mass = 0.0, x
    if row % job.repeat > 0:
        top = 0  # draw 0 has the lists
    if not begin_row(&s, job, row, scratch):
        blank_row(job, row)
        return False
    raw = s.tempering
    if job.raw and not scales_apart(&s):
        find_whole_masses(&s, s.row.edits == NULL)
    apply_stages(&s)
    if job.raw and scales_apart(&s):
        mark_kept(&s)
    s.reports = True
    if n > 0 and not job.given:
        draw_all(&s, job, row, tokens)
        if is_interrupted(job):
            return True
    among_candidates = are_candidates(&s, s.cut)
    log_mass = log_of_mass(&s)
    entropy = entropy_of(&s)
    kept = count_kept(&s)
    if job.kept_ids != NULL:
        job.kept_ids[row] = list_kept(&s, kept)
    # Of a row that was edited or rebased, `report_raw` reports the raw figures.
    apart = scales_apart(&s)
    with_raw = job.raw and not apart and s.row.edits == NULL
    if with_raw:
        raw_log_mass = log_of_raw_mass(&s, &raw, log_mass)
    if job.raw and not apart:
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
        if job.observed != NULL:
            job.observed[row] = seen_by_memory(&s, tokens[0], job.logprobs[start])
        # Tokens given may come after all that is kept in rank, and then are not candidates.
        rank_items(&s, among_candidates and not job.given, items, n, job.ranks + start)
        if with_raw:
            for i in range(n):
                job.raw_ranks[start + i] = job.ranks[start + i]
    if top > 0:
        # Without the raw ones, only what is kept is listed.
        found = top_items(&s, min(top, s.row.n if with_raw else kept), items)
        start = row // job.repeat * top
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
    if job.raw and apart:
        report_log_mass(job, row, scratch, s.greedy)
    if job.raw and not with_raw:
        report_raw(job, row, scratch)
    return True


cdef inline int32_t *list_kept(RowState *s, int64_t kept) noexcept nogil:
    """How many ids are kept, and these, ascending, in memory of their own; NULL where there is
    none."""
    cdef double x[BLOCK]
    cdef const int64_t *ids
    cdef int64_t part, i, count, n = 0
    cdef int32_t *found = <int32_t *> malloc((1 + kept) * sizeof(int32_t))
    if found == NULL:
        return NULL
    for part in range(parts_of(s)):
        count = read_kept(s, part, x, NULL, &ids)
        for i in range(count):
            if x[i] > -INFINITY:
                n += 1
                found[n] = <int32_t> (block_start(&s.row, part) + i if ids == NULL else ids[i])
    found[0] = <int32_t> n
    return found


cdef inline void mark_kept(RowState *s) noexcept nogil:
    """Set the bits of the tokens that are kept, and no others."""
    cdef double x[BLOCK]
    cdef const int64_t *ids
    cdef int64_t part, i, id, count
    memset(s.scratch.marks, 0, (s.row.n // WORD + 1) * sizeof(uint64_t))
    for part in range(parts_of(s)):
        count = read_kept(s, part, x, NULL, &ids)
        for i in range(count):
            if x[i] > -INFINITY:
                id = block_start(&s.row, part) + i if ids == NULL else ids[i]
                s.scratch.marks[id // WORD] |= <uint64_t> 1 << (id % WORD)


cdef inline void report_log_mass(Job *job, int64_t row, Scratch *scratch,
                                 bint greedy) noexcept nogil:
    """The log of the probability that the marked tokens have without the cuts.

    Scales the row once more, so it uses the scratch of the first time.
    """
    cdef RowState s
    cdef double z[BLOCK]
    cdef double weights[BLOCK]
    cdef double log_mass = 0.0, largest = -INFINITY
    cdef int64_t b, i, count
    cdef Mass mass = NO_MASS
    cdef Tempering plain = make_tempering(0.0, 1.0)
    if not greedy:
        begin_row(&s, job, row, scratch)
        apply_scales(&s)
    if not greedy and s.greedy:
        if not scratch.marks[s.cut.last // WORD] >> (s.cut.last % WORD) & 1:
            log_mass = -INFINITY
    elif not greedy:
        fill_row(&s)
        for b in range(blocks_in(&s.row)):
            for i in range(read_marked(&s, b, z)):
                largest = max(largest, z[i])
        for b in range(blocks_in(&s.row)):
            count = read_marked(&s, b, z)
            for i in range(whole_words(count)):
                z[i] -= largest
            isa.weigh(&plain, z, whole_words(count), weights)
            add_up_part(&mass, weights, count)
        log_mass = on_grid(log_canonical(mass_value(mass))) - log_of_mass(&s) + largest
        log_mass = max(log_mass, -DBL_MAX)
    for i in range(row * job.n, (row + 1) * job.n):
        job.log_mass[i] = log_mass


cdef inline int64_t read_marked(RowState *s, int64_t b, double *z) noexcept nogil:
    """The tempered logits of the marked tokens of a block, -inf elsewhere; 0 if it has none."""
    cdef double x[BLOCK]
    cdef const uint64_t *marks = s.scratch.marks
    cdef uint64_t some = 0
    cdef int64_t i, count, start = block_start(&s.row, b)
    for i in range(start // WORD, min(start + BLOCK, s.row.n) // WORD + 1):
        some |= marks[i]
    if some == 0:
        return 0
    count = s.row.kernels.read(&s.row, NULL, KEEP_ALL, b, x, NULL)
    isa.temper(&s.tempering, x, whole_words(count), z)
    for i in range(count):
        if not marks[(start + i) // WORD] >> ((start + i) % WORD) & 1:
            z[i] = -INFINITY
    for i in range(count, whole_words(count)):
        z[i] = -INFINITY
    return count


cdef inline void report_raw(Job *job, int64_t row, Scratch *scratch) noexcept nogil:
    """The raw results of an edited or rebased row: those of the row as it came in, NaN where it is
    invalid.

    Uses the scratch of that row, so it is the last thing to do.
    """
    cdef RowState s
    cdef Item *items = scratch.items
    cdef int64_t i, found = 0, n = job.n, start = row * n
    cdef int64_t top = job.top if row % job.repeat == 0 else 0
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
    start = row // job.repeat * top
    for i in range(top):
        job.raw_top_ids[start + i] = items[i].id if i < found else -1
        job.raw_top_logprobs[start + i] = -INFINITY if valid else NAN
        if i < found:
            job.raw_top_logprobs[start + i] = raw_log_share(&s.tempering, items[i].value, log_mass)


cdef inline void blank_row(Job *job, int64_t row) noexcept nogil:
    """What `sample_row` reports of an invalid row."""
    cdef int64_t i
    if job.observed != NULL:
        job.observed[row] = NAN
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
    if row % job.repeat > 0:
        return
    row //= job.repeat
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
    if not begin_row(&s, job, row, scratch):
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
    if s.rebased:
        fill_row(&s)
        filter_rebased(&s, job, divisor, shifted, out)
    else:
        s.row.kernels.filter(&s.row, &s.tempering, s.cut, divisor, shifted, job.limit, out)
    return True


cdef inline void filter_rebased(RowState *s, const Job *job, double divisor, bint shifted,
                                char *out) noexcept nogil:
    """What the kernel `filter` does, of a row of doubles whatever `out` holds."""
    cdef double x[BLOCK]
    cdef double z
    cdef int64_t b, i, at, count
    for b in range(blocks_in(&s.row)):
        count = s.row.kernels.read(&s.row, NULL, s.cut, b, x, NULL)
        for i in range(count):
            z = -INFINITY
            if x[i] > -INFINITY:
                z = max(tempered(&s.tempering, x[i]) if shifted else x[i] / divisor, -job.limit)
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


cdef inline bint scales_apart(const RowState *s) noexcept nogil:
    """Whether the mass without the cuts takes another look at the row: one stage rebases it, or has
    a temperature that depends on it."""
    return s.chain.room > 0 or s.chain.temperature != s.chain.temperature


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

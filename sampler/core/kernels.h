/* The loops that touch the whole vocabulary, for one element type and one instruction set.
 *
 * `isa.h` includes this file once for each type: REAL is float, which serves float16 and bfloat16
 * too, or double; LOWEST its lowest finite number; LEAST(value, above) the smallest of its numbers
 * at or above a double; FN(name) gives the functions names of their own.
 *
 * They get their logits from `load.h`: aligned counts of plain numbers, whatever the row is like. So
 * every loop is plain C that a compiler vectorises: a fixed number of explicit lanes where a sum or
 * a maximum crosses elements, hence the same bits on every instruction set.
 */

/* ----------------------------------------------------------------------- what a row holds */

/* The largest logit of a scanned row; NaN or +inf if any logit is NaN. */
static double FN(top)(const Row *row)
{
    const REAL *m = row->maxima;
    const int64_t n = maxima_in(blocks_in(row));
    REAL largest[LANES], taint[LANES];
    EACH_LANE (l) {
        largest[l] = -(REAL)INFINITY;
        taint[l] = 0;
    }
    for (int64_t i = 0; i < n; i += LANES)
        EACH_LANE (l) {
            largest[l] = LARGER(m[i + l], largest[l]);
            taint[l] += m[i + l] != m[i + l] ? (REAL)NAN : (REAL)0;
        }
    for (int l = 1; l < LANES; l++) {
        largest[0] = LARGER(largest[l], largest[0]);
        taint[0] += taint[l];
    }
    return (double)(largest[0] + taint[0]);
}

/* How many of x[0..n), n a whole number of LANES, are >= t. */
INLINE int64_t FN(count_reaching)(const REAL *x, int64_t n, REAL t)
{
    int32_t counts[LANES] = {0}; /* a row has at most 2**27 / 32 maxima */
    for (int64_t i = 0; i < n; i += LANES)
        EACH_LANE (l)
            counts[l] += x[i + l] >= t;
    int64_t total = 0;
    EACH_LANE (l)
        total += counts[l];
    return total;
}

/* A logit that at least k tokens of a scanned row reach, and few more: k parts of the row have a
 * maximum that large. -inf where fewer than k maxima are finite. `room` holds maxima_in(n)
 * values. */
static double FN(bound)(const Row *row, int64_t k, void *room)
{
    const REAL *m = row->maxima;
    REAL *folded = room;
    int64_t n = maxima_in(blocks_in(row));
    /* Fewer, larger parts serve as well while there are many times k of them. */
    int64_t width = n;
    while (width / 2 >= 8 * k && width % (2 * LANES) == 0)
        width /= 2;
    if (width < n) {
        memcpy(folded, m, (size_t)width * sizeof *m);
        for (int64_t from = width; from < n; from += width)
            for (int64_t i = 0; i < width; i++)
                folded[i] = LARGER(m[from + i], folded[i]);
        m = folded;
        n = width;
    }
    REAL least[LANES], most[LANES];
    EACH_LANE (l) {
        least[l] = (REAL)INFINITY;
        most[l] = -(REAL)INFINITY;
    }
    for (int64_t i = 0; i < n; i += LANES)
        EACH_LANE (l) {
            const REAL finite = m[i + l] > -(REAL)INFINITY ? m[i + l] : (REAL)INFINITY;
            least[l] = SMALLER(finite, least[l]);
            most[l] = LARGER(m[i + l], most[l]);
        }
    for (int l = 1; l < LANES; l++) {
        least[0] = SMALLER(least[l], least[0]);
        most[0] = LARGER(most[l], most[0]);
    }
    REAL low = least[0], high = most[0];
    if (FN(count_reaching)(m, n, low) < k)
        return -INFINITY;
    for (int round = 0; round < 32; round++) {
        const REAL middle = low / 2 + high / 2;
        if (!(low < middle && middle <= high))
            break;
        const int64_t count = FN(count_reaching)(m, n, middle);
        if (count < k) {
            high = middle;
        } else {
            low = middle;
            if (count <= k + k / 8)
                break;
        }
    }
    return (double)low;
}

/* Bit i: whether x[i] >= t, i < WORD. The one loop for which compilers do not find the
 * instruction. */
INLINE uint64_t FN(reaching)(const REAL *x, REAL t)
{
    uint64_t bits = 0;
#if defined(SAMPLER_X86) && ISA == 2 && defined(REAL_IS_FLOAT)
    const __m512 limit = _mm512_set1_ps(t);
    for (int i = 0; i < WORD; i += 16)
        bits |= (uint64_t)_mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), limit, _CMP_GE_OQ) << i;
#elif defined(SAMPLER_X86) && ISA == 2
    const __m512d limit = _mm512_set1_pd(t);
    for (int i = 0; i < WORD; i += 8)
        bits |= (uint64_t)_mm512_cmp_pd_mask(_mm512_loadu_pd(x + i), limit, _CMP_GE_OQ) << i;
#elif defined(SAMPLER_X86) && ISA == 1 && defined(REAL_IS_FLOAT)
    const __m256 limit = _mm256_set1_ps(t);
    for (int i = 0; i < WORD; i += 8)
        bits |= (uint64_t)(unsigned)_mm256_movemask_ps(
                    _mm256_cmp_ps(_mm256_loadu_ps(x + i), limit, _CMP_GE_OQ))
                << i;
#elif defined(SAMPLER_X86) && ISA == 1
    const __m256d limit = _mm256_set1_pd(t);
    for (int i = 0; i < WORD; i += 4)
        bits |= (uint64_t)(unsigned)_mm256_movemask_pd(
                    _mm256_cmp_pd(_mm256_loadu_pd(x + i), limit, _CMP_GE_OQ))
                << i;
#elif defined(SAMPLER_X86) && defined(REAL_IS_FLOAT)
    const __m128 limit = _mm_set1_ps(t);
    for (int i = 0; i < WORD; i += 4)
        bits |= (uint64_t)(unsigned)_mm_movemask_ps(_mm_cmpge_ps(_mm_loadu_ps(x + i), limit)) << i;
#elif defined(SAMPLER_X86)
    const __m128d limit = _mm_set1_pd(t);
    for (int i = 0; i < WORD; i += 2)
        bits |= (uint64_t)(unsigned)_mm_movemask_pd(_mm_cmpge_pd(_mm_loadu_pd(x + i), limit)) << i;
#else
    for (int i = 0; i < WORD; i++)
        bits |= (uint64_t)(x[i] >= t) << i;
#endif
    return bits;
}

/* The same of a block of which few tokens are allowed; -1 where that is not known. */
INLINE int64_t FN(gather_few)(const Row *row, int64_t start, REAL from, double high, double *values,
                              int64_t *ids)
{
    const uint64_t *bits = mask_of(row, start);
    int64_t found = 0;
    if (mask_density(bits) != FEW_ALLOWED)
        return -1;
    for (int64_t j = 0; j < BLOCK / WORD; j++)
        if (bits[j]) {
            const int64_t token = start + j * WORD + first_bit(bits[j]);
            const double x = edited_logit(row->edits, token, FN(stored)(row, token));
            values[found] = x;
            ids[found] = token;
            found += x >= (double)from && x < high;
        }
    return found;
}

/* Every token of a scanned row with low <= x < high, into values and ids, in the order of ids.
 * Returns how many, or -1 if they are more than `room` or seem to be; the arrays hold WORD more
 * than that. low > -inf. */
INLINE int64_t FN(gather_from)(const Row *row, double low, double high, int64_t room,
                               double *values, int64_t *ids, const int masked)
{
    const REAL *m = row->maxima, from = LEAST(low, 0), to = LEAST(high, 0);
    const int64_t n = maxima_in(blocks_in(row));
    int64_t found = 0;
    /* If nearly every 32nd part of the row reaches low, usually more tokens do than fit, and
     * counting them would take long. All allowed tokens together are known to fit. */
    if (row->n > room && low > -DBL_MAX && high == INFINITY &&
        FN(count_reaching)(m, n, from) > blocks_in(row) * LANES * 63 / 64)
        return -1;
    for (int64_t i = 0; i < n; i += WORD) {
        uint64_t parts = FN(reaching)(m + i, from);
        while (parts) {
            REAL buffer[BLOCK];
            const int in_four = first_bit(parts) / LANES;
            const int64_t b = i / LANES + in_four, start = block_start(row, b);
            const int64_t count = block_size(row, b);
            parts &= ~(UINT64_C(0xffff) << in_four * LANES);
            if (masked) {
                const int64_t few =
                    FN(gather_few)(row, start, from, high, values + found, ids + found);
                if (few >= 0) {
                    found += few;
                    if (found > room)
                        return -1;
                    continue;
                }
            }
            const uint64_t *allowed = NULL;
            const REAL *x = masked ? FN(under_mask)(row, start, count, &allowed) : NULL;
            const int hidden = x != NULL;
            if (x == NULL)
                x = FN(load)(row, start, count, buffer);
            for (int64_t j = 0; j < count; j += WORD) {
                uint64_t bits = FN(reaching)(x + j, from);
                if (hidden)
                    bits &= allowed[j / WORD];
                if (bits == 0)
                    continue;
                if (high < INFINITY)
                    bits &= ~FN(reaching)(x + j, to);
                for (; bits; bits &= bits - 1) {
                    const int64_t place = j + first_bit(bits);
                    values[found] = (double)x[place];
                    ids[found++] = start + place;
                }
                if (found > room)
                    return -1;
            }
        }
    }
    return found;
}

static int64_t FN(gather)(const Row *row, double low, double high, int64_t room, double *values,
                          int64_t *ids)
{
    return row->allowed ? FN(gather_from)(row, low, high, room, values, ids, 1)
                        : FN(gather_from)(row, low, high, room, values, ids, 0);
}

/* The id of the nth token of a scanned row, from 1, whose logit is `value`; -1 if there are
 * fewer. */
static int64_t FN(find)(const Row *row, double value, int64_t nth)
{
    const REAL *m = row->maxima, wanted = (REAL)value;
    for (int64_t b = 0; b < blocks_in(row); b++) {
        REAL buffer[BLOCK];
        int reaches = 0;
        EACH_LANE (l)
            reaches |= m[b * LANES + l] >= wanted;
        if (!reaches)
            continue;
        const int64_t count = block_size(row, b);
        const REAL *x = FN(load)(row, block_start(row, b), count, buffer);
        for (int64_t i = 0; i < count; i++)
            if (x[i] == wanted && --nth == 0)
                return block_start(row, b) + i;
    }
    return -1;
}

/* One logit. */
static double FN(at)(const Row *row, int64_t token)
{
    const double x = FN(stored)(row, token);
    return row->edits ? edited_logit(row->edits, token, x) : x;
}

/* x[i] = the logit of token ids[i], of a row without edits. */
static void FN(look_up)(const Row *row, const int64_t *ids, int64_t n, double *x)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = FN(stored)(row, ids[i]);
}

/* Of the logits at first, first + step ..., those with low <= x < high, into values, which holds
 * one more than there can be. Returns how many. */
INLINE int64_t FN(pick_from)(const Row *row, int64_t first, int64_t step, double low, double high,
                             double *values, const int edited)
{
    int64_t found = 0;
    for (int64_t i = first; i < row->n; i += step) {
        const double x = edited ? FN(at)(row, i) : FN(stored)(row, i);
        values[found] = x;
        found += (low <= x) & (x < high);
    }
    return found;
}

static int64_t FN(pick)(const Row *row, int64_t first, int64_t step, double low, double high,
                        double *values)
{
    return row->edits ? FN(pick_from)(row, first, step, low, high, values, 1)
                      : FN(pick_from)(row, first, step, low, high, values, 0);
}

/* ----------------------------------------------------------------------- what a cut leaves */

/* Block b of a scanned row, for a loop that keeps x >= *floor: what the cut removes, -inf, and all
 * below `deep` (finite) is lower than that. Returns the count, 0 where nothing is kept; x is padded
 * to whole groups. With `bits`, these may be a mask that x does not have yet: else they are NULL. */
INLINE int64_t FN(kept_or_masked)(const Row *row, Cut cut, REAL deep, int64_t b, REAL *buffer,
                                  const REAL **x, REAL *floor, const uint64_t **bits)
{
    const REAL *m = (const REAL *)row->maxima + b * LANES;
    const int64_t start = block_start(row, b), count = block_size(row, b);
    /* A cut ends at one token: ties are kept in the blocks before it, not after it. */
    const REAL least = cut.value > -INFINITY ? LEAST(cut.value, cut.last < start) : LOWEST;
    *x = buffer;
    *floor = LARGER(deep, least);
    int reaches = 0;
    EACH_LANE (l)
        reaches |= m[l] >= *floor;
    if (!reaches)
        return 0;
    const int ends_here = start <= cut.last && cut.last < start + count - 1 && cut.value >= deep;
    if (bits) {
        *x = ends_here ? NULL : FN(under_mask)(row, start, count, bits);
        if (*x)
            return count;
        *bits = NULL;
    }
    *x = FN(load)(row, start, count, buffer);
    if (ends_here) {
        if (*x != buffer)
            memcpy(buffer, *x, (size_t)whole_groups(count) * sizeof *buffer);
        for (int64_t i = cut.last - start + 1; i < count; i++)
            if ((double)buffer[i] == cut.value)
                buffer[i] = -(REAL)INFINITY;
        *x = buffer;
    }
    return count;
}

INLINE int64_t FN(kept_block)(const Row *row, Cut cut, REAL deep, int64_t b, REAL *buffer,
                              const REAL **x, REAL *floor)
{
    return FN(kept_or_masked)(row, cut, deep, b, buffer, x, floor, NULL);
}

/* How many tokens of a scanned row the cut keeps. */
static int64_t FN(count)(const Row *row, Cut cut)
{
    int64_t total = 0;
    for (int64_t b = 0; b < blocks_in(row); b++) {
        REAL buffer[BLOCK], floor;
        const REAL *x;
        const int64_t count = FN(kept_block)(row, cut, LOWEST, b, buffer, &x, &floor);
        total += FN(count_reaching)(x, whole_groups(count), floor);
    }
    return total;
}

/* counts[j] = how many tokens are >= floors[j], j < FLOORS. */
static void FN(counts)(const Row *row, const double *floors, int64_t *counts)
{
    REAL limits[FLOORS];
    for (int j = 0; j < FLOORS; j++) {
        limits[j] = LEAST(floors[j], 0);
        counts[j] = 0;
    }
    for (int64_t b = 0; b < blocks_in(row); b++) {
        REAL buffer[BLOCK];
        const int64_t count = block_size(row, b);
        const REAL *x = FN(load)(row, block_start(row, b), count, buffer);
        for (int j = 0; j < FLOORS; j++)
            counts[j] += FN(count_reaching)(x, whole_groups(count), limits[j]);
    }
}

/* ------------------------------------------------------------------------- writing whole rows */

/* out[i] = x / divisor where the cut keeps token i, -inf elsewhere. With `shifted`, the kept
 * logits are (x - max) / temperature under the tempering instead. Neither falls below -limit;
 * the caller ensures that none exceeds limit. */
static void FN(filter)(const Row *row, const Tempering *tempering, Cut cut, double divisor,
                       int shifted, double limit, void *out)
{
    for (int64_t b = 0; b < blocks_in(row); b++) {
        REAL *o = (REAL *)out + block_start(row, b);
        REAL buffer[BLOCK], floor;
        const REAL *x;
        const int64_t count = FN(kept_block)(row, cut, LOWEST, b, buffer, &x, &floor);
        for (int64_t i = 0; i < count; i++) {
            double z = shifted ? tempered(tempering, (double)x[i]) : (double)x[i] / divisor;
            z = z < -limit ? -limit : z;
            o[i] = x[i] >= floor ? (REAL)z : -(REAL)INFINITY;
        }
        for (int64_t i = count; i < block_size(row, b); i++)
            o[i] = -(REAL)INFINITY;
    }
}

/* The loops that touch the whole vocabulary, for one element type and one instruction set.
 *
 * `isa.h` includes this file once for each type: REAL is float, which serves float16 and bfloat16
 * too, or double; LOWEST its lowest finite number; LEAST(value, above) the smallest of its numbers
 * at or above a double; FN(name) gives the functions names of their own.
 *
 * Whatever the dtype, the stride or the byte order, `load` hands the loops a contiguous block,
 * padded with -inf to whole groups; a native contiguous row is handed over in place. Edits of the
 * row are applied there too, and in `at`: nothing else reads a row. So every loop
 * sees aligned counts and is plain C that a compiler vectorises: a fixed number of explicit lanes
 * where a sum or a maximum crosses elements, hence the same bits on every instruction set.
 */

/* Copy `count` <= BLOCK logits from `start` on, as they are in memory, into buffer, padded to whole
 * groups, and return it. */
INLINE const REAL *FN(copy_stored)(const Row *row, int64_t start, int64_t count, REAL *buffer)
{
    const char *p = row->data + start * row->stride;
#ifdef REAL_IS_FLOAT
    if (row->kind == FLOAT32) {
        if (row->direct)
            memcpy(buffer, p, (size_t)count * sizeof *buffer);
        else
            for (int64_t i = 0; i < count; i++)
                buffer[i] = float_of_bits(word32(p + i * row->stride, row->swapped));
    } else {
        const uint16_t *words = (const uint16_t *)p;
        if (row->direct && row->kind == FLOAT16) {
            int64_t i = 0;
#if defined(SAMPLER_X86) && ISA > 0
            for (; i + 8 <= count; i += 8)
                _mm256_storeu_ps(buffer + i,
                                 _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(words + i))));
#endif
            for (; i < count; i++)
                buffer[i] = widen_float16(words[i]);
        } else if (row->direct) {
            for (int64_t i = 0; i < count; i++)
                buffer[i] = widen_bfloat16(words[i]);
        } else
            for (int64_t i = 0; i < count; i++) {
                const uint16_t word = word16(p + i * row->stride, row->swapped);
                buffer[i] = row->kind == FLOAT16 ? widen_float16(word) : widen_bfloat16(word);
            }
    }
#else
    if (row->direct)
        memcpy(buffer, p, (size_t)count * sizeof *buffer);
    else
        for (int64_t i = 0; i < count; i++)
            buffer[i] = double_of_bits(word64(p + i * row->stride, row->swapped));
#endif
    for (int64_t i = count; i < whole_groups(count); i++)
        buffer[i] = -(REAL)INFINITY;
    return buffer;
}

/* x[r * IN_VECTOR ...], r < LANES / IN_VECTOR, where the bits from bit i on allow it, -inf elsewhere:
 * the smaller of it and +inf or -inf, so an allowed NaN is +inf, which is as invalid. `bits` may be
 * read up to 8 bytes from bit i on. */
#if defined(SAMPLER_X86) && ISA == 2 && defined(REAL_IS_FLOAT)
#define VECTOR __m512
#define IN_VECTOR 16
#define MOST_OF _mm512_max_ps
#define STORE _mm512_storeu_ps
#define NONE _mm512_set1_ps(-INFINITY)
INLINE __m512 FN(allowed)(const float *x, const char *bits, int r)
{
    const __mmask16 lanes = _load_mask16((__mmask16 *)(bits + 2 * r));
    return _mm512_mask_min_ps(NONE, lanes, _mm512_loadu_ps(x), _mm512_set1_ps(INFINITY));
}
#elif defined(SAMPLER_X86) && ISA == 2
#define VECTOR __m512d
#define IN_VECTOR 8
#define MOST_OF _mm512_max_pd
#define STORE _mm512_storeu_pd
#define NONE _mm512_set1_pd(-INFINITY)
INLINE __m512d FN(allowed)(const double *x, const char *bits, int r)
{
    const __mmask8 lanes = (__mmask8)bits[r];
    return _mm512_mask_min_pd(NONE, lanes, _mm512_loadu_pd(x), _mm512_set1_pd(INFINITY));
}
#elif defined(SAMPLER_X86) && ISA == 1 && defined(REAL_IS_FLOAT)
#define VECTOR __m256
#define IN_VECTOR 8
#define MOST_OF _mm256_max_ps
#define STORE _mm256_storeu_ps
#define NONE _mm256_set1_ps(-INFINITY)
INLINE __m256 FN(allowed)(const float *x, const char *bits, int r)
{
    /* Shift a lane's bit to the sign, by which blendv chooses. */
    int32_t lanes;
    memcpy(&lanes, bits, sizeof lanes);
    const __m256i by = _mm256_sub_epi32(_mm256_set1_epi32(31 - IN_VECTOR * r),
                                        _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256i sign = _mm256_sllv_epi32(_mm256_set1_epi32(lanes), by);
    return _mm256_min_ps(_mm256_loadu_ps(x), _mm256_blendv_ps(NONE, _mm256_set1_ps(INFINITY),
                                                              _mm256_castsi256_ps(sign)));
}
#elif defined(SAMPLER_X86) && ISA == 1
#define VECTOR __m256d
#define IN_VECTOR 4
#define MOST_OF _mm256_max_pd
#define STORE _mm256_storeu_pd
#define NONE _mm256_set1_pd(-INFINITY)
INLINE __m256d FN(allowed)(const double *x, const char *bits, int r)
{
    int64_t lanes;
    memcpy(&lanes, bits, sizeof lanes);
    const __m256i by = _mm256_sub_epi64(_mm256_set1_epi64x(63 - IN_VECTOR * r),
                                        _mm256_setr_epi64x(0, 1, 2, 3));
    const __m256i sign = _mm256_sllv_epi64(_mm256_set1_epi64x(lanes), by);
    return _mm256_min_pd(_mm256_loadu_pd(x), _mm256_blendv_pd(NONE, _mm256_set1_pd(INFINITY),
                                                              _mm256_castsi256_pd(sign)));
}
#elif defined(SAMPLER_X86) && defined(REAL_IS_FLOAT)
#define VECTOR __m128
#define IN_VECTOR 4
#define MOST_OF _mm_max_ps
#define STORE _mm_storeu_ps
#define NONE _mm_set1_ps(-INFINITY)
INLINE __m128 FN(allowed)(const float *x, const char *bits, int r)
{
    const int lanes = (unsigned char)bits[r / 2] >> r % 2 * IN_VECTOR & 15;
    return _mm_min_ps(_mm_loadu_ps(x), _mm_load_ps(limits_of_four[lanes]));
}
#elif defined(SAMPLER_X86)
#define VECTOR __m128d
#define IN_VECTOR 2
#define MOST_OF _mm_max_pd
#define STORE _mm_storeu_pd
#define NONE _mm_set1_pd(-INFINITY)
INLINE __m128d FN(allowed)(const double *x, const char *bits, int r)
{
    const int lanes = (unsigned char)bits[r / 4] >> r % 4 * IN_VECTOR & 3;
    return _mm_min_pd(_mm_loadu_pd(x), _mm_load_pd(limits_of_two[lanes]));
}
#endif

/* to[i] = x[i] where it is allowed, else -inf; i < n, a whole number of LANES. */
INLINE void FN(hide)(const REAL *x, int64_t n, const uint64_t *bits, REAL *to)
{
    for (int64_t i = 0; i < n; i += LANES) {
#ifdef VECTOR
        for (int r = 0; r < LANES / IN_VECTOR; r++)
            STORE(to + i + r * IN_VECTOR,
                  FN(allowed)(x + i + r * IN_VECTOR, (const char *)bits + i / 8, r));
#else
        const unsigned lanes = bits[i / WORD] >> i % WORD & 0xffff;
        EACH_LANE (l) {
            const REAL value = x[i + l];
            to[i + l] = lanes & 1u << l ? value : -(REAL)INFINITY;
        }
#endif
    }
}

/* A block of a row with edits: one that has none is handed over as any other, and one that is
 * forbidden throughout is not read. The padding stays -inf: no bit is set and no id lies there.
 */
INLINE const REAL *FN(load_edited)(const Row *row, int64_t start, int64_t count, REAL *buffer)
{
    const Edits *edits = row->edits;
    const REAL *x = buffer;
    const uint64_t *bits = row->allowed ? mask_of(row, start) : NULL;
    const int allowed = bits ? how_many(bits) : (int)ALL_ALLOWED;
    if (allowed == NONE_ALLOWED) {
        for (int64_t i = 0; i < whole_groups(count); i++)
            buffer[i] = -(REAL)INFINITY;
        return buffer;
    }
    if (row->direct && row->kind >= FLOAT32 && count % GROUP == 0)
        x = (const REAL *)row->data + start;
    else
        FN(copy_stored)(row, start, count, buffer);
    if (allowed != ALL_ALLOWED) {
        FN(hide)(x, whole_words(count), bits, buffer);
        x = buffer;
    }
    if (!edits->ids)
        return x;
    const int64_t end = edits->first[(start + count - 1) / BLOCK + 1];
    for (int64_t i = first_edit(edits, start); i < end && edits->ids[i] < start + count; i++) {
        const int64_t place = edits->ids[i] - start;
        if (x != buffer)
            memcpy(buffer, x, (size_t)count * sizeof *buffer);
        x = buffer;
        if (allowed == ALL_ALLOWED || bits[place / WORD] >> place % WORD & 1)
            buffer[place] = (REAL)edits->values[i];
    }
    return x;
}

/* What `load` does where a block may not be in place. */
NOINLINE const REAL *FN(load_other)(const Row *row, int64_t start, int64_t count, REAL *buffer)
{
    return row->edits ? FN(load_edited)(row, start, count, buffer)
                      : FN(copy_stored)(row, start, count, buffer);
}

/* `count` <= BLOCK logits from `start` on, padded to whole groups: in place where that can be, else
 * in the buffer. */
INLINE const REAL *FN(load)(const Row *row, int64_t start, int64_t count, REAL *buffer)
{
    if (row->in_place && count % GROUP == 0)
        return (const REAL *)row->data + start;
    return FN(load_other)(row, start, count, buffer);
}

/* ----------------------------------------------------------------------------- the read pass */

#define LARGER(a, b) ((a) > (b) ? (a) : (b))
#define SMALLER(a, b) ((a) < (b) ? (a) : (b))

/* maxima[l] = the largest of x[l], x[l + LANES] ... of x[0..n), n a whole number of groups; NaN
 * where there is a NaN among the block's logits. */
INLINE void FN(scan_block)(const REAL *x, int64_t n, REAL *maxima)
{
    REAL largest[LANES], taint[LANES]; /* 0, or NaN; adding it keeps a NaN */
    EACH_LANE (l) {
        largest[l] = -(REAL)INFINITY;
        taint[l] = 0;
    }
    for (int64_t i = 0; i < n; i += 4 * LANES)
        EACH_LANE (l) {
            const REAL *p = x + i + l;
            const REAL a = p[0], b = p[LANES], c = p[2 * LANES], d = p[3 * LANES];
            const REAL ab = LARGER(a, b), cd = LARGER(c, d), abcd = LARGER(ab, cd);
            const REAL one = isunordered(a, b) ? (REAL)NAN : (REAL)0;
            const REAL both = isunordered(c, d) ? (REAL)NAN : one;
            largest[l] = LARGER(abcd, largest[l]);
            taint[l] += both;
        }
    EACH_LANE (l)
        maxima[l] = largest[l] + taint[l];
}

#ifdef REAL_IS_FLOAT
/* The same for a whole block of bfloat16, on integers in the order of the floats: half the work. */
INLINE void FN(scan_words)(const uint16_t *words, float *maxima)
{
    int16_t most[2 * LANES], least[2 * LANES];
    for (int l = 0; l < 2 * LANES; l++) {
        most[l] = INT16_MIN;
        least[l] = INT16_MAX;
    }
    for (int64_t i = 0; i < BLOCK; i += 2 * LANES)
        for (int l = 0; l < 2 * LANES; l++) {
            const int16_t word = (int16_t)words[i + l];
            const int16_t key = (int16_t)(word ^ (word >> 15 & 0x7fff));
            most[l] = LARGER(key, most[l]);
            least[l] = SMALLER(key, least[l]);
        }
    EACH_LANE (l) {
        const int16_t key = LARGER(most[l], most[l + LANES]);
        const int16_t low = SMALLER(least[l], least[l + LANES]);
        const float largest = widen_bfloat16((uint16_t)(key ^ (key >> 15 & 0x7fff)));
        /* A negative NaN is below -inf; a positive one is the largest, and NaN. */
        maxima[l] = low < (int16_t)0x807f ? (float)NAN : largest;
    }
}
#endif

/* The maxima of those of a block's logits that are allowed: of the others none is looked at. +inf
 * may stand for NaN. */
INLINE void FN(scan_allowed)(const REAL *x, const uint64_t *bits, REAL *maxima)
{
#ifdef VECTOR
    VECTOR largest[2][LANES / IN_VECTOR];
    for (int r = 0; r < LANES / IN_VECTOR; r++)
        largest[0][r] = largest[1][r] = NONE;
    for (int i = 0; i < BLOCK; i += 2 * LANES)
        for (int half = 0; half < 2; half++)
            for (int r = 0; r < LANES / IN_VECTOR; r++)
                largest[half][r] = MOST_OF(
                    FN(allowed)(x + i + half * LANES + r * IN_VECTOR,
                                (const char *)bits + (i + half * LANES) / 8, r),
                    largest[half][r]);
    for (int r = 0; r < LANES / IN_VECTOR; r++)
        STORE(maxima + r * IN_VECTOR, MOST_OF(largest[0][r], largest[1][r]));
#else
    REAL shown[BLOCK];
    FN(hide)(x, BLOCK, bits, shown);
    FN(scan_block)(shown, BLOCK, maxima);
#endif
}

/* One logit, as it is in memory. */
INLINE double FN(stored)(const Row *row, int64_t token)
{
    const char *p = row->data + token * row->stride;
#ifdef REAL_IS_FLOAT
    if (row->kind == FLOAT32)
        return (double)float_of_bits(word32(p, row->swapped));
    const uint16_t word = word16(p, row->swapped);
    return (double)(row->kind == FLOAT16 ? widen_float16(word) : widen_bfloat16(word));
#else
    return double_of_bits(word64(p, row->swapped));
#endif
}

/* The same, where few are, one by one. */
INLINE void FN(scan_few)(const Row *row, int64_t start, const uint64_t *bits, int64_t count,
                         REAL *maxima)
{
    EACH_LANE (l)
        maxima[l] = -(REAL)INFINITY;
    for (int64_t j = 0; j < count; j += WORD)
        for (uint64_t rest = bits[j / WORD]; rest; rest &= rest - 1) {
            const int64_t place = j + first_bit(rest);
            const REAL x = (REAL)FN(stored)(row, start + place);
            REAL *most = maxima + place % LANES;
            *most = x > *most || x != x ? x : *most;
        }
}

/* The maxima of a block of a row with edits, if they can be found without `load`; returns whether.
 * Adds to `allowed` how many tokens are; at most, once they are many. */
NOINLINE int FN(scan_edited)(const Row *row, int64_t start, int64_t count, REAL *maxima,
                             int64_t *allowed)
{
    const Edits *edits = row->edits;
    const uint64_t *bits = row->allowed ? mask_of(row, start) : NULL;
    const int some = bits ? how_many(bits) : (int)ALL_ALLOWED;
    if (some == NONE_ALLOWED) {
        EACH_LANE (l)
            maxima[l] = -(REAL)INFINITY;
        return 1;
    }
    if (some == ALL_ALLOWED || *allowed >= 8 * BLOCK)
        *allowed += count;
    else
        for (int j = 0; j < BLOCK / WORD; j++)
            *allowed += count_bits(bits[j]);
    if (edits->ids && has_edit(edits, start, count))
        return 0;
    if (some == FEW_ALLOWED) {
        FN(scan_few)(row, start, bits, count, maxima);
        return 1;
    }
    if (row->direct && count == BLOCK) {
#ifdef REAL_IS_FLOAT
        if (row->kind == BFLOAT16 && some == ALL_ALLOWED) {
            FN(scan_words)((const uint16_t *)row->data + start, maxima);
            return 1;
        }
#endif
        if (row->kind >= FLOAT32 && some == ALL_ALLOWED) {
            FN(scan_block)((const REAL *)row->data + start, BLOCK, maxima);
            return 1;
        }
        if (row->kind >= FLOAT32) {
            FN(scan_allowed)((const REAL *)row->data + start, bits, maxima);
            return 1;
        }
    }
    return 0;
}

/* The read pass: fills the maxima_in(n) maxima of a row. Returns at most how many tokens are
 * allowed. */
static int64_t FN(scan)(const Row *row, void *maxima)
{
    REAL *m = maxima, buffer[BLOCK];
    const int64_t blocks = blocks_in(row);
    int64_t allowed = row->edits ? 0 : row->n;
#ifdef REAL_IS_FLOAT
    const int words = row->kind == BFLOAT16 && row->direct && !row->edits;
#endif
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t count = block_size(row, b);
        if (!row->in_place) {
#ifdef REAL_IS_FLOAT
            if (words && count == BLOCK) {
                FN(scan_words)((const uint16_t *)row->data + block_start(row, b), m + b * LANES);
                continue;
            }
#endif
            if (row->edits &&
                FN(scan_edited)(row, block_start(row, b), count, m + b * LANES, &allowed))
                continue;
        }
        const REAL *x = FN(load)(row, block_start(row, b), count, buffer);
        /* Compilers do better by a length that they know. */
        if (count == BLOCK)
            FN(scan_block)(x, BLOCK, m + b * LANES);
        else
            FN(scan_block)(x, whole_groups(count), m + b * LANES);
    }
    for (int64_t i = blocks * LANES; i < maxima_in(blocks_in(row)); i++)
        m[i] = -(REAL)INFINITY;
    return allowed;
}

/* The largest logit of a scanned row; NaN if any logit is. */
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
    if (how_many(bits) != FEW_ALLOWED)
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
    /* Where nearly every 32nd part of the row reaches low, so do, as a rule, more tokens than
     * fit; and to find out would take long. */
    if (row->n > room && high == INFINITY &&
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
            const REAL *x = FN(load)(row, start, count, buffer);
            for (int64_t j = 0; j < count; j += WORD) {
                uint64_t bits = FN(reaching)(x + j, from);
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
 * to whole groups. */
INLINE int64_t FN(kept_block)(const Row *row, Cut cut, REAL deep, int64_t b, REAL *buffer,
                              const REAL **x, REAL *floor)
{
    const REAL *m = (const REAL *)row->maxima + b * LANES;
    const int64_t start = block_start(row, b), count = block_size(row, b);
    /* A cut ends at one token: ties are kept in the blocks before it, and removed behind. */
    const REAL least = cut.value > -INFINITY ? LEAST(cut.value, cut.last < start) : LOWEST;
    *x = buffer;
    *floor = LARGER(deep, least);
    int reaches = 0;
    EACH_LANE (l)
        reaches |= m[l] >= *floor;
    if (!reaches)
        return 0;
    *x = FN(load)(row, start, count, buffer);
    if (start <= cut.last && cut.last < start + count - 1 && cut.value >= deep) {
        if (*x != buffer)
            memcpy(buffer, *x, (size_t)whole_groups(count) * sizeof *buffer);
        for (int64_t i = cut.last - start + 1; i < count; i++)
            if ((double)buffer[i] == cut.value)
                buffer[i] = -(REAL)INFINITY;
        *x = buffer;
    }
    return count;
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

/* --------------------------------------------------------------------- masses with an error
 * bound */

#ifdef REAL_IS_FLOAT
/* 2**((x - max) log2e_over_t), in float32; for x so low that this is not a normal float, anything.
 * The polynomial is the one of least relative error for 2**f, |f| <= 1/2. */
INLINE float FN(fast_weight)(float x, float max, float log2e_over_t)
{
    const float to_integer = 0x1.8p23f;
    const float y = (x - max) * log2e_over_t;
    const float shifted = y + to_integer;
    const float f = y - (shifted - to_integer); /* exact */
    float p = 1.32764721678e-3f;
    p = MULADD_FLOAT(p, f, 9.67554133102e-3f);
    p = MULADD_FLOAT(p, f, 5.55071327288e-2f);
    p = MULADD_FLOAT(p, f, 2.4022119724e-1f);
    p = MULADD_FLOAT(p, f, 6.93146967065e-1f);
    p = MULADD_FLOAT(p, f, 1.0f);
    uint32_t bits, n_bits;
    memcpy(&bits, &p, sizeof bits);
    memcpy(&n_bits, &shifted, sizeof n_bits);
    return float_of_bits(bits + (n_bits << 23));
}

/* The sum of the weights of those of x[0..n) that are >= floor, n a whole number of words up to
 * BLOCK. At most 7 + 1 roundings of a sum are in float32, the rest is double. */
INLINE double FN(fast_sum)(const float *x, int64_t n, float max, float log2e_over_t, float floor)
{
    float sums[WORD] = {0};
    double mass[LANES];
    for (int64_t i = 0; i < n; i += WORD)
        for (int l = 0; l < WORD; l++) {
            const float weight = FN(fast_weight)(x[i + l], max, log2e_over_t);
            sums[l] += x[i + l] >= floor ? weight : 0.0f;
        }
    for (int l = 0; l < 2 * LANES; l++)
        sums[l] += sums[l + 2 * LANES];
    EACH_LANE (l)
        mass[l] = (double)sums[l] + (double)sums[l + LANES];
    return add_lanes(mass);
}

/* masses[b] = the mass of what the cut keeps of block b, and errors[b] a bound on its distance from
 * the exact one. log2(e) / T in [1e-30, 1e30], max finite. */
static void FN(fast_masses)(const Row *row, const Tempering *tempering, Cut cut, double *masses,
                            double *errors)
{
    const double slope = 1.4426950408889634 / tempering->temperature;
    const float max = (float)tempering->max, log2e_over_t = (float)slope;
    const float deep = least_float(tempering->max - FAST_DEPTH / slope, 0);
    for (int64_t b = 0; b < blocks_in(row); b++) {
        float buffer[BLOCK], floor;
        const float *x;
        const int64_t count = FN(kept_block)(row, cut, deep, b, buffer, &x, &floor);
        masses[b] = count == BLOCK ? FN(fast_sum)(x, BLOCK, max, log2e_over_t, floor)
                                   : FN(fast_sum)(x, whole_words(count), max, log2e_over_t, floor);
        errors[b] = fast_error(masses[b]);
    }
}
#endif

/* 2**((x - max) log2e_over_t), in double; for x so low that this is not a normal double,
 * anything. */
INLINE double FN(fine_weight)(double x, double max, double log2e_over_t)
{
    const double to_integer = 0x1.8p52;
    const double y = (x - max) * log2e_over_t;
    const double shifted = y + to_integer;
    const double f = y - (shifted - to_integer);
    double p = 0x1.6634882411835p-20;
    p = MULADD_DOUBLE(p, f, 0x1.00ee071ec2439p-16);
    p = MULADD_DOUBLE(p, f, 0x1.4306c11627965p-13);
    p = MULADD_DOUBLE(p, f, 0x1.5d872975c1b66p-10);
    p = MULADD_DOUBLE(p, f, 0x1.3b2ab7f3b32f2p-7);
    p = MULADD_DOUBLE(p, f, 0x1.c6b08defc261dp-5);
    p = MULADD_DOUBLE(p, f, 0x1.ebfbdff7c5a79p-3);
    p = MULADD_DOUBLE(p, f, 0x1.62e42fef7a78bp-1);
    p = MULADD_DOUBLE(p, f, 1.0);
    uint64_t bits, n_bits;
    memcpy(&bits, &p, sizeof bits);
    memcpy(&n_bits, &shifted, sizeof n_bits);
    return double_of_bits(bits + (n_bits << 52));
}

/* masses[b] = the mass of what the cut keeps of block b and, with floors, totals[j] that of the
 * row's tokens >= floors[j], j < FLOORS, all of them within the cut. The error is FINE_WEIGHT_ERROR
 * times the mass plus FINE_FLOOR_ERROR a token. As fast_masses, and the tempering unscaled. */
INLINE void FN(fine)(const Row *row, const Tempering *tempering, Cut cut, double *masses,
                     const double *floors, double *totals, const int with_floors)
{
    const double max = tempering->max, log2e_over_t = 1.4426950408889634 / tempering->temperature;
    const double deep = max - FINE_DEPTH / log2e_over_t;
    double above[FLOORS][LANES] = {{0}};
    for (int64_t b = 0; b < blocks_in(row); b++) {
        REAL buffer[BLOCK], lowest;
        const REAL *x;
        const int64_t count = FN(kept_block)(row, cut, LEAST(deep, 0), b, buffer, &x, &lowest);
        const double floor = (double)lowest;
        double mass[LANES] = {0};
        for (int64_t i = 0; i < whole_groups(count); i += LANES)
            EACH_LANE (l) {
                const double value = (double)x[i + l];
                const double weight = FN(fine_weight)(value, max, log2e_over_t);
                const double w = value >= floor ? weight : 0.0;
                mass[l] += w;
                if (with_floors)
                    for (int j = 0; j < FLOORS; j++)
                        above[j][l] += value >= floors[j] ? w : 0.0;
            }
        masses[b] = add_lanes(mass);
    }
    if (with_floors)
        for (int j = 0; j < FLOORS; j++) {
            totals[j] = 0.0;
            EACH_LANE (l)
                totals[j] += above[j][l];
        }
}

static void FN(fine_masses)(const Row *row, const Tempering *tempering, Cut cut, double *masses)
{
    FN(fine)(row, tempering, cut, masses, NULL, NULL, 0);
}

static void FN(fine_masses_above)(const Row *row, const Tempering *tempering, Cut cut,
                                  double *masses, const double *floors, double *totals)
{
    const double f[FLOORS] = {floors[0], floors[1]}; /* in registers */
    FN(fine)(row, tempering, cut, masses, f, totals, 1);
}

/* totals[0], totals[1] = the fine masses of a whole scanned row under two temperings, both
 * unscaled, in one pass. As fine_masses. */
static void FN(fine_masses_of_two)(const Row *row, const Tempering *first, const Tempering *second,
                                   double *totals)
{
    const Cut all = {-INFINITY, -1};
    const double max = first->max, slope = 1.4426950408889634 / first->temperature,
                 other_slope = 1.4426950408889634 / second->temperature;
    const REAL floor = LARGER(LOWEST, LEAST(max - FINE_DEPTH / slope, 0));
    const REAL other_floor = LARGER(LOWEST, LEAST(max - FINE_DEPTH / other_slope, 0));
    double total = 0.0, other_total = 0.0;
    for (int64_t b = 0; b < blocks_in(row); b++) {
        REAL buffer[BLOCK], lowest;
        const REAL *x;
        const int64_t count =
            FN(kept_block)(row, all, SMALLER(floor, other_floor), b, buffer, &x, &lowest);
        double mass[LANES] = {0}, other[LANES] = {0};
        for (int64_t i = 0; i < whole_groups(count); i += LANES)
            EACH_LANE (l) {
                const double value = (double)x[i + l];
                const double weight = FN(fine_weight)(value, max, slope);
                const double other_weight = FN(fine_weight)(value, max, other_slope);
                mass[l] += value >= (double)floor ? weight : 0.0;
                other[l] += value >= (double)other_floor ? other_weight : 0.0;
            }
        total += add_lanes(mass);
        other_total += add_lanes(other);
    }
    totals[0] = total;
    totals[1] = other_total;
}

/* ------------------------------------------------------------------------------- exact masses */

/* w[0..n) = the canonical weights of those of x[0..n) that are >= floor, 0 for the others; n a
 * whole number of LANES. */
INLINE void FN(weigh_kept)(const Tempering *tempering, const REAL *x, int64_t n, REAL floor,
                           double *w)
{
    const double max = tempering->max, temperature = tempering->temperature;
    const double scale = tempering->scale;
    if (tempering->uniform)
        for (int64_t i = 0; i < n; i++)
            w[i] = x[i] >= floor ? 1.0 : 0.0;
    else if (temperature == 1.0) /* a quotient that is exact costs as much as any */
        for (int64_t i = 0; i < n; i++) {
            const double weight = exp_canonical((double)x[i] * scale - max);
            w[i] = x[i] >= floor ? weight : 0.0;
        }
    else
        for (int64_t i = 0; i < n; i++) {
            const double weight = exp_canonical(((double)x[i] * scale - max) / temperature);
            w[i] = x[i] >= floor ? weight : 0.0;
        }
}

/* The exact mass of what the cut keeps of a scanned row; with `blocks` that of each block too. What
 * is so deep that its weights round to 0 is not weighed. */
static Mass FN(exact_mass)(const Row *row, const Tempering *tempering, Cut cut, Mass *blocks)
{
    Mass total = {0.0, 0.0};
    REAL deep = LOWEST;
    if (!tempering->uniform && tempering->scale == 1.0)
        deep = LARGER(deep,
                      LEAST(tempering->max - (NEGLIGIBLE_DEPTH + 1.0) * tempering->temperature, 0));
    for (int64_t b = 0; b < blocks_in(row); b++) {
        REAL buffer[BLOCK], floor;
        const REAL *x;
        double w[BLOCK];
        const int64_t count = FN(kept_block)(row, cut, deep, b, buffer, &x, &floor);
        FN(weigh_kept)(tempering, x, whole_groups(count), floor, w);
        const Mass mass = CANDIDATES(sum)(w, count);
        mass_add(&total, mass.high, mass.low);
        if (blocks)
            blocks[b] = mass;
    }
    return total;
}

/* Block b of a scanned row as double: x, -inf where the cut removes, and with a tempering the
 * canonical weights, 0 where it does; BLOCK of each, padded so to whole words. Returns the
 * count. */
static int64_t FN(read)(const Row *row, const Tempering *tempering, Cut cut, int64_t b, double *x,
                        double *w)
{
    REAL buffer[BLOCK], floor;
    const REAL *kept;
    const int64_t count = block_size(row, b), padded = whole_words(count);
    if (FN(kept_block)(row, cut, LOWEST, b, buffer, &kept, &floor) == 0) {
        for (int64_t i = 0; i < padded; i++)
            x[i] = -INFINITY;
        if (tempering)
            memset(w, 0, (size_t)padded * sizeof *w);
        return count;
    }
    for (int64_t i = 0; i < padded; i++)
        x[i] = kept[i] >= floor ? (double)kept[i] : -INFINITY;
    if (tempering)
        FN(weigh_kept)(tempering, kept, padded, floor, w);
    return count;
}

/* ------------------------------------------------------------------------- writing whole rows */

/* out[i] = x / divisor where the cut keeps token i, -inf elsewhere. With `shifted`, the kept
 * logits are (x - max) / temperature under the tempering instead. Neither falls below -limit;
 * that none passes limit is the caller's care. */
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

#undef LARGER
#undef SMALLER
#undef VECTOR
#undef IN_VECTOR
#undef MOST_OF
#undef STORE
#undef NONE

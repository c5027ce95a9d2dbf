/* How a row is read, for one element type and one instruction set; `isa.h` includes this file before
 * `kernels.h`, with the same macros.
 *
 * Whatever the dtype, the stride or the byte order, `load` hands the loops a contiguous block,
 * padded with -inf to whole groups; a native contiguous row is handed over in place. Edits of the
 * row are applied there too, and in `at`: nothing else reads a row. `scan` is the read pass.
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
    const __m256i by =
        _mm256_sub_epi64(_mm256_set1_epi64x(63 - IN_VECTOR * r), _mm256_setr_epi64x(0, 1, 2, 3));
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
                largest[half][r] =
                    MOST_OF(FN(allowed)(x + i + half * LANES + r * IN_VECTOR,
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

#undef VECTOR
#undef IN_VECTOR
#undef MOST_OF
#undef STORE
#undef NONE

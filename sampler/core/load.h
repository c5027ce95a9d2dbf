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

/* Vectors of IN_VECTOR logits; and `limits`: +inf where the bits from `place` on are set, else -inf.
 * The smaller of a logit and its limit is the logit where it is allowed; +inf for NaN, as invalid. */
#if defined(SAMPLER_X86) && ISA == 2 && defined(REAL_IS_FLOAT)
#define VECTOR __m512
#define IN_VECTOR 16
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define ALL _mm512_set1_ps
#define LARGEST _mm512_max_ps
#define LEAST_OF _mm512_min_ps
INLINE __m512 FN(limits)(const unsigned char *bits, int place)
{
    return _mm512_mask_mov_ps(ALL(-INFINITY), _load_mask16((__mmask16 *)(bits + place / 8)),
                              ALL(INFINITY));
}
#elif defined(SAMPLER_X86) && ISA == 2
#define VECTOR __m512d
#define IN_VECTOR 8
#define LOAD _mm512_loadu_pd
#define STORE _mm512_storeu_pd
#define ALL _mm512_set1_pd
#define LARGEST _mm512_max_pd
#define LEAST_OF _mm512_min_pd
INLINE __m512d FN(limits)(const unsigned char *bits, int place)
{
    return _mm512_mask_mov_pd(ALL(-INFINITY), bits[place / 8], ALL(INFINITY));
}
#elif defined(SAMPLER_X86) && ISA == 1 && defined(REAL_IS_FLOAT)
#define VECTOR __m256
#define IN_VECTOR 8
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define ALL _mm256_set1_ps
#define LARGEST _mm256_max_ps
#define LEAST_OF _mm256_min_ps
INLINE __m256 FN(limits)(const unsigned char *bits, int place)
{
    /* Shift a lane's bit to the sign, by which blendv chooses. */
    int32_t lanes;
    memcpy(&lanes, bits + place / 32 * 4, sizeof lanes);
    const __m256i by = _mm256_sub_epi32(_mm256_set1_epi32(31 - place % 32),
                                        _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256i sign = _mm256_sllv_epi32(_mm256_set1_epi32(lanes), by);
    return _mm256_blendv_ps(ALL(-INFINITY), ALL(INFINITY), _mm256_castsi256_ps(sign));
}
#elif defined(SAMPLER_X86) && ISA == 1
#define VECTOR __m256d
#define IN_VECTOR 4
#define LOAD _mm256_loadu_pd
#define STORE _mm256_storeu_pd
#define ALL _mm256_set1_pd
#define LARGEST _mm256_max_pd
#define LEAST_OF _mm256_min_pd
INLINE __m256d FN(limits)(const unsigned char *bits, int place)
{
    int64_t lanes;
    memcpy(&lanes, bits + place / 64 * 8, sizeof lanes);
    const __m256i by =
        _mm256_sub_epi64(_mm256_set1_epi64x(63 - place % 64), _mm256_setr_epi64x(0, 1, 2, 3));
    const __m256i sign = _mm256_sllv_epi64(_mm256_set1_epi64x(lanes), by);
    return _mm256_blendv_pd(ALL(-INFINITY), ALL(INFINITY), _mm256_castsi256_pd(sign));
}
#elif defined(SAMPLER_X86) && defined(REAL_IS_FLOAT)
#define VECTOR __m128
#define IN_VECTOR 4
#define LOAD _mm_loadu_ps
#define STORE _mm_storeu_ps
#define ALL _mm_set1_ps
#define LARGEST _mm_max_ps
#define LEAST_OF _mm_min_ps
INLINE __m128 FN(limits)(const unsigned char *bits, int place)
{
    return _mm_load_ps(limits_of_four[bits[place / 8] >> place % 8 & 15]);
}
#elif defined(SAMPLER_X86)
#define VECTOR __m128d
#define IN_VECTOR 2
#define LOAD _mm_loadu_pd
#define STORE _mm_storeu_pd
#define ALL _mm_set1_pd
#define LARGEST _mm_max_pd
#define LEAST_OF _mm_min_pd
INLINE __m128d FN(limits)(const unsigned char *bits, int place)
{
    return _mm_load_pd(limits_of_two[bits[place / 8] >> place % 8 & 3]);
}
#endif

/* to[i] = x[i] where it is allowed, else -inf; i < n, a whole number of words. */
INLINE void FN(hide)(const REAL *x, int64_t n, const uint64_t *bits, REAL *to)
{
    for (int64_t i = 0; i < n; i += WORD) {
#ifdef VECTOR
        const unsigned char *lanes = (const unsigned char *)(bits + i / WORD);
        for (int l = 0; l < WORD; l += IN_VECTOR)
            STORE(to + i + l, LEAST_OF(LOAD(x + i + l), FN(limits)(lanes, l)));
#else
        const uint64_t lanes = bits[i / WORD];
        for (int l = 0; l < WORD; l++) {
            const REAL value = x[i + l];
            to[i + l] = lanes >> l & 1 ? value : -(REAL)INFINITY;
        }
#endif
    }
}

/* A block as it is in memory, if the loops can work on that; else NULL. */
INLINE const REAL *FN(in_memory)(const Row *row, int64_t start, int64_t count)
{
    return row->direct && row->kind >= FLOAT32 && count % GROUP == 0
               ? (const REAL *)row->data + start
               : NULL;
}

/* A block of a row with edits: one that has none is handed over as any other, and one that is
 * forbidden throughout is not read. The padding stays -inf: no bit is set and no id lies there.
 */
INLINE const REAL *FN(load_edited)(const Row *row, int64_t start, int64_t count, REAL *buffer)
{
    const Edits *edits = row->edits;
    const REAL *x = FN(in_memory)(row, start, count);
    const uint64_t *bits = row->allowed ? mask_of(row, start) : NULL;
    const int allowed = bits ? mask_density(bits) : (int)ALL_ALLOWED;
    if (allowed == NONE_ALLOWED) {
        for (int64_t i = 0; i < whole_groups(count); i++)
            buffer[i] = -(REAL)INFINITY;
        return buffer;
    }
    if (x == NULL)
        x = FN(copy_stored)(row, start, count, buffer);
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

/* A block that is in memory as the loops want it, except for a mask, and that mask; NULL if it needs
 * `load`. */
INLINE const REAL *FN(under_mask)(const Row *row, int64_t start, int64_t count,
                                  const uint64_t **bits)
{
    if (row->allowed == NULL || (row->edits->ids && has_edit(row->edits, start, count)))
        return NULL;
    *bits = mask_of(row, start);
    return FN(in_memory)(row, start, count);
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
    prefetch(words, BLOCK * sizeof *words);
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

/* The maxima of a whole block in memory; if masked, of those of its logits that the bits allow.
 * +inf may stand for NaN. */
INLINE void FN(scan_whole)(const REAL *x, const uint64_t *bits, REAL *maxima, const int masked)
{
#ifdef VECTOR
    /* Each logit is loaded once: what compilers make of `scan_block` loads many of them twice. */
    VECTOR largest[LANES / IN_VECTOR];
    for (int r = 0; r < LANES / IN_VECTOR; r++)
        largest[r] = ALL(-(REAL)INFINITY);
    for (int64_t i = 0; i < BLOCK; i += 4 * LANES) {
        const unsigned char *lanes = masked ? (const unsigned char *)bits + i / 8 : NULL;
        prefetch(x + i, 4 * LANES * sizeof *x);
        for (int r = 0; r < LANES; r += IN_VECTOR) {
            VECTOR four[4], *most = largest + r / IN_VECTOR;
            for (int j = 0; j < 4; j++)
                four[j] = LEAST_OF(LOAD(x + i + j * LANES + r),
                                   masked ? FN(limits)(lanes, j * LANES + r) : ALL((REAL)INFINITY));
            *most = LARGEST(LARGEST(LARGEST(four[0], four[1]), LARGEST(four[2], four[3])), *most);
        }
    }
    for (int r = 0; r < LANES / IN_VECTOR; r++)
        STORE(maxima + r * IN_VECTOR, largest[r]);
#else
    REAL shown[BLOCK];
    if (masked)
        FN(hide)(x, BLOCK, bits, shown);
    FN(scan_block)(masked ? shown : x, BLOCK, maxima);
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
    const int some = bits ? mask_density(bits) : (int)ALL_ALLOWED;
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
            FN(scan_whole)((const REAL *)row->data + start, NULL, maxima, 0);
            return 1;
        }
        if (row->kind >= FLOAT32) {
            FN(scan_whole)((const REAL *)row->data + start, bits, maxima, 1);
            return 1;
        }
    }
    return 0;
}

/* The read pass: fills the maxima_in(n) maxima of a row, where +inf may stand for NaN. Returns at
 * most how many tokens are allowed. */
static int64_t FN(scan)(const Row *row, void *maxima)
{
    REAL *m = maxima, buffer[BLOCK];
    const Row copy = *row; /* for the compiler: no call that is passed `row` changes this one */
    const int64_t blocks = blocks_in(&copy);
    int64_t allowed = copy.edits ? 0 : copy.n;
#ifdef REAL_IS_FLOAT
    const int words = copy.kind == BFLOAT16 && copy.direct && !copy.edits;
#endif
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t start = block_start(&copy, b), count = block_size(&copy, b);
#ifdef REAL_IS_FLOAT
        if (words && count == BLOCK) {
            FN(scan_words)((const uint16_t *)copy.data + start, m + b * LANES);
            continue;
        }
#endif
        if (copy.edits && FN(scan_edited)(row, start, count, m + b * LANES, &allowed))
            continue;
        const REAL *x = copy.in_place && count % GROUP == 0
                            ? (const REAL *)copy.data + start
                            : FN(load_other)(row, start, count, buffer);
        /* Compilers do better by a length that they know. */
        if (count == BLOCK)
            FN(scan_whole)(x, NULL, m + b * LANES, 0);
        else
            FN(scan_block)(x, whole_groups(count), m + b * LANES);
    }
    for (int64_t i = blocks * LANES; i < maxima_in(blocks); i++)
        m[i] = -(REAL)INFINITY;
    return allowed;
}

#undef VECTOR
#undef IN_VECTOR
#undef LOAD
#undef STORE
#undef ALL
#undef LARGEST
#undef LEAST_OF

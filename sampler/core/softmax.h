/* The softmax family over whole rows, for one element type and one instruction set: `isa.h`
 * includes this file after `kernels.h`, with the same names defined.
 *
 * For float rows, probabilities come from powers of two in float32 whose exponents are exact to
 * 2**-25, and their sum in double: within 3.4 ULP, in the order of the logits, and the same bits at
 * every instruction set, since what is fused here is fused everywhere (`FUSED`). docs/softmax.md
 * has the derivation. What they cannot do, and double rows, is canonical arithmetic.
 */

/* Where the parts begin that a row is worked on in: at multiples of BLOCK, less `lead`, which
 * lets whole parts be aligned in memory. A lane's sum takes its logits in the order of the row
 * either way, so that nothing depends on it. */
INLINE int64_t FN(part_end)(int64_t n, int64_t start, int64_t lead)
{
    const int64_t end = start == 0 && lead > 0 ? lead : start + BLOCK;
    return end < n ? end : n;
}

INLINE int64_t FN(lead_of)(const void *data, int64_t n)
{
    const uintptr_t past = (uintptr_t)data % 64;
    return n > BLOCK && past % sizeof(REAL) == 0 ? (int64_t)((64 - past) % 64 / sizeof(REAL)) : 0;
}

/* The logits of a row from start to end, padded with -inf to whole LANES; in place where that can
 * be. */
INLINE const REAL *FN(part)(const Row *row, int64_t start, int64_t end, REAL *buffer)
{
    if (row->in_place && (end - start) % LANES == 0)
        return (const REAL *)row->data + start;
    return FN(load_other)(row, start, end - start, buffer);
}

/* The largest logit of a row; NaN if any is. */
INLINE double FN(maximum)(const Row *row, int64_t lead)
{
    REAL largest[LANES], taint[LANES], found[LANES], buffer[BLOCK];
    EACH_LANE (l) {
        largest[l] = -(REAL)INFINITY;
        taint[l] = 0;
    }
    for (int64_t start = 0, end; start < row->n; start = end) {
        end = FN(part_end)(row->n, start, lead);
        const int64_t count = end - start;
        const REAL *x = row->in_place && count % WORD == 0
                            ? (const REAL *)row->data + start
                            : FN(load_other)(row, start, count, buffer);
        if (count == BLOCK)
            FN(scan_block)(x, BLOCK, found);
        else
            FN(scan_block)(x, whole_words(count), found);
        EACH_LANE (l) {
            largest[l] = found[l] > largest[l] ? found[l] : largest[l];
            taint[l] = found[l] != found[l] ? (REAL)NAN : taint[l];
        }
    }
    REAL eight[8], four[4], tainted[8];
    for (int l = 0; l < 8; l++) {
        eight[l] = largest[l] > largest[l + 8] ? largest[l] : largest[l + 8];
        tainted[l] = taint[l] + taint[l + 8];
    }
    for (int l = 0; l < 4; l++) {
        four[l] = eight[l] > eight[l + 4] ? eight[l] : eight[l + 4];
        tainted[l] += tainted[l + 4];
    }
    const REAL even = four[0] > four[2] ? four[0] : four[2];
    const REAL odd = four[1] > four[3] ? four[1] : four[3];
    return (double)((even > odd ? even : odd) + (tainted[0] + tainted[2]) +
                    (tainted[1] + tainted[3]));
}

#ifdef REAL_IS_FLOAT
/* How the logits of a row become powers of two: the exponent of x is x * slope + shift, in units
 * of 2**-24, and POWER_HIGH at the maximum. Where it would be below POWER_LOW the power is 0,
 * and so is the probability when it is rounded. The powers themselves are 2**POWER_SCALE times
 * as large, so that the polynomial's coefficients are normal floats. */
#define POWER_HIGH 26
#define POWER_LOW (-127)
#define POWER_SCALE 31

/* Whether a row can be treated so; if so, how. */
INLINE int FN(powers_of)(double max, double temperature, double *slope, double *shift)
{
    const double log2e_over_t = 1.4426950408889634 / temperature;
    *slope = log2e_over_t * 0x1p24;
    *shift = POWER_HIGH * 0x1p24 - nearest(max * *slope);
    return temperature >= 0x1p-60 && temperature <= 0x1p60 && fabs(max) * log2e_over_t <= 0x1p20;
}

/* powers[0..n) of x[0..n), whole LANES up to BLOCK, added to sums, LANES doubles. */
INLINE void FN(raise)(const float *x, int64_t n, double slope, double shift, float *powers,
                      double *sums)
{
    int32_t exponents[BLOCK];
    const double to_integer = 0x1.8p52 + shift; /* exact */
    const double lowest = 0x1.8p52 + POWER_LOW * 0x1p24;
#if defined(SAMPLER_X86) && ISA == 2
    /* Compilers convert 16 floats at once, and take them apart first. */
    const __m512i evens =
        _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    for (int64_t i = 0; i < n; i += LANES) {
        __m512d y[2];
        for (int half = 0; half < 2; half++) {
            y[half] = _mm512_cvtps_pd(_mm256_loadu_ps(x + i + 8 * half));
            y[half] = _mm512_add_pd(_mm512_mul_pd(y[half], _mm512_set1_pd(slope)),
                                    _mm512_set1_pd(to_integer));
            y[half] = _mm512_max_pd(y[half], _mm512_set1_pd(lowest));
        }
        _mm512_storeu_si512(
            exponents + i,
            _mm512_permutex2var_epi32(_mm512_castpd_si512(y[0]), evens, _mm512_castpd_si512(y[1])));
    }
#else
    for (int64_t i = 0; i < n; i += LANES)
        EACH_LANE (l) {
            const double exact = (double)x[i + l] * slope + to_integer;
            const double y = exact > lowest ? exact : lowest;
            uint64_t bits;
            memcpy(&bits, &y, sizeof bits);
            exponents[i + l] = (int32_t)(uint32_t)bits;
        }
#endif
    for (int64_t i = 0; i < n; i += LANES)
        EACH_LANE (l) {
            /* The nearest whole exponent, and 2**24 times the rest. */
            const int32_t rest = (int32_t)((uint32_t)exponents[i + l] << 8) >> 8;
            const int32_t whole = (exponents[i + l] - rest) >> 1;
            const float f = (float)rest;
            float p = 0x1.416b5ep-126f;
            p = FUSED(p, f, 0x1.5f082ep-99f);
            p = FUSED(p, f, 0x1.3b2de0p-72f);
            p = FUSED(p, f, 0x1.c6af7cp-46f);
            p = FUSED(p, f, 0x1.ebfbdcp-20f);
            p = FUSED(p, f, 0x1.62e430p+6f);
            p = FUSED(p, f, 0x1p+31f);
            uint32_t bits;
            memcpy(&bits, &p, sizeof bits);
            powers[i + l] = float_of_bits(bits + (uint32_t)whole) - 0x1p-96f; /* the lowest power */
        }
#if defined(SAMPLER_X86) && ISA == 2
    __m512d low = _mm512_loadu_pd(sums), high = _mm512_loadu_pd(sums + 8);
    for (int64_t i = 0; i < n; i += LANES) {
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm256_loadu_ps(powers + i)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm256_loadu_ps(powers + i + 8)));
    }
    _mm512_storeu_pd(sums, low);
    _mm512_storeu_pd(sums + 8, high);
#else
    for (int64_t i = 0; i < n; i += LANES)
        EACH_LANE (l)
            sums[l] += (double)powers[i + l];
#endif
}

/* values[i] *= high + low, as if rounded once where that is a normal number. Done at a scale of
 * 2**24, since processors take long over subnormal numbers, as `values[i] * low` would be. */
INLINE void FN(scale)(float *values, int64_t n, float high, float low)
{
    high *= 0x1p24f;
    low *= 0x1p24f;
    for (int64_t i = 0; i < n; i++)
        values[i] = FUSED(values[i], high, values[i] * low) * 0x1p-24f;
}

/* out[i] = x[i] * (slope_high + slope_low) - (shift_high + shift_low), and -inf where x[i] is. */
INLINE void FN(slant)(const float *x, int64_t n, float slope_high, float slope_low,
                      float shift_high, float shift_low, float *out)
{
    for (int64_t i = 0; i < n; i++) {
        const float z = FUSED(x[i], slope_high, -shift_high);
        const float rest = FUSED(x[i], slope_low, -shift_low);
        out[i] = x[i] > -INFINITY ? z + rest : -INFINITY;
    }
}
#endif

/* ------------------------------------------------------------------------------ canonical rows */

/* One row of finite maximum `top` by canonical arithmetic. */
NOINLINE void FN(softmax_canonical)(const Row *row, double top, double temperature, int what,
                                    REAL *out)
{
    /* At temperature 0 the maxima share equally, as all do at inf. */
    const int hard = temperature == 0.0;
    const Tempering tempering = make_tempering(top, hard ? INFINITY : temperature);
    const REAL floor = hard ? (REAL)top : LOWEST;
    Mass mass = {0.0, 0.0};
    REAL buffer[BLOCK];
    double w[BLOCK];
    for (int64_t start = 0, end; start < row->n; start = end) {
        end = FN(part_end)(row->n, start, 0);
        const REAL *x = FN(part)(row, start, end, buffer);
        FN(weigh_kept)(&tempering, x, whole_lanes(end - start), floor, w);
        for (int64_t i = whole_lanes(end - start); i < whole_words(end - start); i++)
            w[i] = 0.0;
        const Mass part = CANDIDATES(sum)(w, end - start);
        mass_add(&mass, part.high, part.low);
#ifndef REAL_IS_FLOAT
        if (what == SOFTMAX)
            memcpy(out + start, w, (size_t)(end - start) * sizeof *out);
#endif
    }
    const double total = mass_value(mass), log_total = log_canonical(total), factor = 1.0 / total;
    if (what == LOGSUMEXP) {
        const double first = !hard ? top / temperature : top == 0.0 ? 0.0 : top * INFINITY;
        out[0] = (REAL)(first + log_total);
        return;
    }
#ifndef REAL_IS_FLOAT
    if (what == SOFTMAX) {
        for (int64_t i = 0; i < row->n; i++)
            out[i] *= factor;
        return;
    }
#endif
    const int plain = tempering.temperature == 1.0 && tempering.scale == 1.0;
    for (int64_t start = 0, end; start < row->n; start = end) {
        end = FN(part_end)(row->n, start, 0);
        const REAL *x = FN(part)(row, start, end, buffer);
        const int64_t count = end - start;
        REAL *o = out + start;
        if (what == SOFTMAX) {
            FN(weigh_kept)(&tempering, x, whole_lanes(count), floor, w);
            for (int64_t i = 0; i < count; i++)
                o[i] = (REAL)(w[i] * factor);
        } else if (plain) {
            for (int64_t i = 0; i < count; i++)
                o[i] = (REAL)(((double)x[i] - tempering.max) - log_total); /* of -inf, -inf */
        } else {
            for (int64_t i = 0; i < count; i++) {
                const REAL kept = (REAL)(tempered(&tempering, (double)x[i]) - log_total);
                o[i] = x[i] >= floor ? kept : -(REAL)INFINITY;
            }
        }
    }
}

/* ------------------------------------------------------------------------------------- all rows */

#define TOGETHER 16 /* rows, so that what each needs once is done for several at a time */

/* What the loops know of a row. */
typedef struct {
    double slope[TOGETHER], shift[TOGETHER], sum[TOGETHER], log_sum[TOGETHER];
    int done[TOGETHER];
} FN(Group);

/* Up to TOGETHER rows: SOFTMAX or LOG_SOFTMAX of each into as many values of out, or its LOGSUMEXP
 * into one; out may be the rows themselves. */
INLINE void FN(softmax_group)(const Row *first, ptrdiff_t row_step, int rows,
                              const double *temperatures, ptrdiff_t temperature_step, int what,
                              char *out, ptrdiff_t out_step)
{
#ifdef REAL_IS_FLOAT
    FN(Group) group;
    float buffer[BLOCK], powers[BLOCK];
    for (int r = 0; r < TOGETHER; r++) { /* also the rows that are missing */
        group.sum[r] = 1.0;
        group.shift[r] = 0.0;
        group.done[r] = 0;
    }
#endif
    for (int r = 0; r < rows; r++) {
        Row row = *first;
        row.data += r * row_step;
        REAL *to = (REAL *)(out + r * out_step);
        const double temperature = temperatures[r * temperature_step];
        const double top = FN(maximum)(&row, FN(lead_of)(row.data, row.n));
#ifdef REAL_IS_FLOAT
        if (top > -INFINITY && top < INFINITY &&
            FN(powers_of)(top, temperature, &group.slope[r], &group.shift[r]))
            continue;
        group.done[r] = 1;
#endif
        if (top > -INFINITY && top < INFINITY)
            FN(softmax_canonical)(&row, top, temperature, what, to);
        else {
            /* NumPy's answer: NaN, except that a sum with exp(inf) is inf, and one over -inf
             * throughout is 0. So at any temperature, and in the limit of any. */
            const REAL bad = what == LOGSUMEXP && top == top ? (REAL)top : (REAL)NAN;
            for (int64_t i = 0; i < (what == LOGSUMEXP ? 1 : row.n); i++)
                to[i] = bad;
        }
    }
#ifdef REAL_IS_FLOAT
    for (int r = 0; r < rows; r++) {
        if (group.done[r])
            continue;
        Row row = *first;
        row.data += r * row_step;
        float *to = (float *)(out + r * out_step);
        const int64_t lead = FN(lead_of)(what == SOFTMAX ? (const char *)to : row.data, row.n);
        double sums[LANES] = {0};
        for (int64_t start = 0, end; start < row.n; start = end) {
            end = FN(part_end)(row.n, start, lead);
            const float *x = FN(part)(&row, start, end, buffer);
            const int direct = what == SOFTMAX && (end - start) % LANES == 0;
            float *p = direct ? to + start : powers;
            if (end - start == BLOCK)
                FN(raise)(x, BLOCK, group.slope[r], group.shift[r], p, sums);
            else
                FN(raise)(x, whole_lanes(end - start), group.slope[r], group.shift[r], p, sums);
            /* The part after the first begins at logit `lead`: so does lane 0, until the end. */
            if (start == 0 && lead > 0)
                turn_lanes(sums, lead);
            if (what == SOFTMAX && !direct)
                memcpy(to + start, powers, (size_t)(end - start) * sizeof *to);
        }
        if (lead > 0)
            turn_lanes(sums, LANES - lead);
        group.sum[r] = add_lanes(sums);
    }
    if (what == SOFTMAX)
        for (int r = 0; r < TOGETHER; r++)
            group.sum[r] = 1.0 / group.sum[r];
    else
        for (int r = 0; r < TOGETHER; r++)
            group.log_sum[r] = log_normal(group.sum[r], 0.0) -
                               (group.shift[r] * 0x1p-24 + POWER_SCALE) * 0.6931471805599453;
    for (int r = 0; r < rows; r++) {
        if (group.done[r])
            continue;
        float *to = (float *)(out + r * out_step);
        if (what == SOFTMAX) {
            const float high = (float)group.sum[r];
            FN(scale)(to, first->n, high, (float)(group.sum[r] - (double)high));
            continue;
        }
        const double log_sum = group.log_sum[r];
        if (what == LOGSUMEXP) {
            to[0] = (float)log_sum;
            continue;
        }
        Row row = *first;
        row.data += r * row_step;
        const double slope = 1.0 / temperatures[r * temperature_step];
        /* Rounded down, so that what is left over is not negative: see docs/softmax.md. */
        const float nearest_slope = (float)slope, sum_high = (float)log_sum;
        const float slope_high =
            (double)nearest_slope > slope ? -next_float(-nearest_slope) : nearest_slope;
        const int64_t lead = FN(lead_of)(to, row.n);
        for (int64_t start = 0, end; start < row.n; start = end) {
            end = FN(part_end)(row.n, start, lead);
            const float *x = FN(part)(&row, start, end, buffer);
            FN(slant)(x, end - start, slope_high, (float)(slope - (double)slope_high), sum_high,
                      (float)(log_sum - (double)sum_high), to + start);
        }
    }
#endif
}

/* The same for any number of rows, row_step bytes apart, to out, out_step bytes apart, at
 * temperatures temperature_step doubles apart. */
static void FN(softmax)(const Row *first, ptrdiff_t row_step, int64_t rows,
                        const double *temperatures, ptrdiff_t temperature_step, int what, char *out,
                        ptrdiff_t out_step)
{
    Row row = *first;
    if (row_step % (ptrdiff_t)sizeof(REAL) != 0)
        row.direct = row.in_place = 0;
    /* As many as stay in the first cache meanwhile. */
    const int64_t most = row.n > 4096 / 2 ? 1 : row.n > 4096 / TOGETHER ? 4096 / row.n : TOGETHER;
    for (int64_t r = 0, count; r < rows; r += count) {
        count = rows - r < most ? rows - r : most;
        if (what == SOFTMAX)
            FN(softmax_group)(&row, row_step, (int)count, temperatures, temperature_step, SOFTMAX,
                              out, out_step);
        else if (what == LOG_SOFTMAX)
            FN(softmax_group)(&row, row_step, (int)count, temperatures, temperature_step,
                              LOG_SOFTMAX, out, out_step);
        else
            FN(softmax_group)(&row, row_step, (int)count, temperatures, temperature_step, LOGSUMEXP,
                              out, out_step);
        row.data += count * row_step;
        temperatures += count * temperature_step;
        out += count * out_step;
    }
}

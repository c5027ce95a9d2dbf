/* The loops that touch the whole vocabulary, for one instruction set.
 *
 * `kernels.h` includes this file once a level, under the compiler's options for it, with FN(name)
 * giving the functions of each their own names. Whatever the dtype, the stride or the byte order, a
 * loader hands the loops a contiguous block of float or double, padded with -inf to a whole number
 * of groups; a native contiguous row is handed over in place. So every loop below sees aligned
 * counts, knows one element type, and is plain C that a compiler vectorises: a fixed number of
 * explicit lanes where a sum or a maximum crosses elements, hence the same bits at every level.
 */

/* `count` <= BLOCK logits from `start` on, as float, padded with -inf to whole groups. Returns the
 * row itself where it can be read in place, else `buffer` (BLOCK floats). Not for FLOAT64. */
static const float *FN(load_float)(const Row *row, int64_t start, int64_t count, float *buffer)
{
    const char *p = row->data + start * row->stride;
    if (row->kind == FLOAT32) {
        if (row->direct && count % GROUP == 0)
            return (const float *)p;
        if (row->direct)
            memcpy(buffer, p, (size_t)count * sizeof *buffer);
        else
            for (int64_t i = 0; i < count; i++)
                buffer[i] = float_of_bits(word32(p + i * row->stride, row->swapped));
    } else {
        const uint16_t *words = (const uint16_t *)p;
        if (row->direct && row->kind == FLOAT16)
            for (int64_t i = 0; i < count; i++)
                buffer[i] = widen_float16(words[i]);
        else if (row->direct)
            for (int64_t i = 0; i < count; i++)
                buffer[i] = widen_bfloat16(words[i]);
        else
            for (int64_t i = 0; i < count; i++) {
                const uint16_t word = word16(p + i * row->stride, row->swapped);
                buffer[i] = row->kind == FLOAT16 ? widen_float16(word) : widen_bfloat16(word);
            }
    }
    for (int64_t i = count; i < whole_groups(count); i++)
        buffer[i] = -INFINITY;
    return buffer;
}

/* The same as double, for every kind: exact, since each narrower float is a double. */
static const double *FN(load_double)(const Row *row, int64_t start, int64_t count,
                                        double *buffer)
{
    if (row->kind != FLOAT64) {
        float narrow[BLOCK];
        const float *x = FN(load_float)(row, start, count, narrow);
        const int64_t padded = whole_groups(count);
        for (int64_t i = 0; i < padded; i++)
            buffer[i] = x[i];
        return buffer;
    }
    const char *p = row->data + start * row->stride;
    if (row->direct && count % GROUP == 0)
        return (const double *)p;
    if (row->direct)
        memcpy(buffer, p, (size_t)count * sizeof *buffer);
    else
        for (int64_t i = 0; i < count; i++)
            buffer[i] = double_of_bits(word64(p + i * row->stride, row->swapped));
    for (int64_t i = count; i < whole_groups(count); i++)
        buffer[i] = -INFINITY;
    return buffer;
}

/* ----------------------------------------------------------------------------- the read pass */

#define LARGER(a, b) ((a) > (b) ? (a) : (b))
#define IS_NAN(a) ((a) != (a))

/* The maximum of x[0..n), n a whole number of groups, through `top`. Returns whether any logit is
 * NaN or +inf; the maximum means nothing then. The NaNs are counted in floating point: that stays
 * in the vector registers that compare. */
#define DEFINE_SCAN(NAME, REAL)                                                                    \
    static int NAME(const REAL *x, int64_t n, double *top)                                         \
    {                                                                                              \
        REAL largest[LANES], nans[LANES];                                                          \
        int bad = 0;                                                                               \
        for (int l = 0; l < LANES; l++) {                                                          \
            largest[l] = -(REAL)INFINITY;                                                          \
            nans[l] = 0;                                                                           \
        }                                                                                          \
        for (int64_t i = 0; i < n; i += GROUP)                                                     \
            for (int l = 0; l < LANES; l++) {                                                      \
                const REAL *p = x + i + l;                                                         \
                const REAL a = p[0], b = p[16], c = p[32], d = p[48];                              \
                const REAL ab = LARGER(a, b), cd = LARGER(c, d), abcd = LARGER(ab, cd);            \
                largest[l] = LARGER(abcd, largest[l]);                                             \
                nans[l] += IS_NAN(a) || IS_NAN(b) || IS_NAN(c) || IS_NAN(d) ? (REAL)1 : (REAL)0;   \
            }                                                                                      \
        for (int l = 0; l < LANES; l++) {                                                          \
            largest[0] = LARGER(largest[l], largest[0]);                                           \
            bad |= nans[l] != 0;                                                                   \
        }                                                                                          \
        *top = largest[0];                                                                         \
        return bad | !(largest[0] < (REAL)INFINITY);                                               \
    }
DEFINE_SCAN(FN(scan_float), float)
DEFINE_SCAN(FN(scan_double), double)
#undef DEFINE_SCAN

/* The maximum of each group of x[0..n), n a whole number of groups, without NaN. */
#define DEFINE_GROUPS(NAME, REAL)                                                                  \
    static void NAME(const REAL *x, int64_t n, double *maxima)                                     \
    {                                                                                              \
        for (int64_t g = 0; g < n / GROUP; g++) {                                                  \
            const REAL *p = x + g * GROUP;                                                         \
            REAL t[LANES];                                                                         \
            for (int l = 0; l < LANES; l++) {                                                      \
                const REAL ab = LARGER(p[l], p[l + 16]), cd = LARGER(p[l + 32], p[l + 48]);        \
                t[l] = LARGER(ab, cd);                                                             \
            }                                                                                      \
            for (int l = 0; l < 8; l++)                                                            \
                t[l] = LARGER(t[l], t[l + 8]);                                                     \
            for (int l = 0; l < 4; l++)                                                            \
                t[l] = LARGER(t[l], t[l + 4]);                                                     \
            const REAL ac = LARGER(t[0], t[2]), bd = LARGER(t[1], t[3]);                           \
            maxima[g] = LARGER(ac, bd);                                                            \
        }                                                                                          \
    }
DEFINE_GROUPS(FN(groups_float), float)
DEFINE_GROUPS(FN(groups_double), double)
#undef DEFINE_GROUPS
#undef IS_NAN
#undef LARGER

/* The largest logit of each span of a block, -inf for a span behind the row's end. Returns whether
 * any is NaN or +inf. */
static int FN(scan_block)(const Row *row, int64_t start, int64_t count, double *tops)
{
    const int64_t n = whole_groups(count), rest = n > SPAN ? n - SPAN : 0;
    if (row->kind == FLOAT64) {
        double buffer[BLOCK];
        const double *x = FN(load_double)(row, start, count, buffer);
        return FN(scan_double)(x, n - rest, tops) | FN(scan_double)(x + SPAN, rest, tops + 1);
    }
    float buffer[BLOCK];
    const float *x = FN(load_float)(row, start, count, buffer);
    return FN(scan_float)(x, n - rest, tops) | FN(scan_float)(x + SPAN, rest, tops + 1);
}

/* The largest logit of each group of `count` <= BLOCK ones. */
static void FN(group_maxima)(const Row *row, int64_t start, int64_t count, double *maxima)
{
    if (row->kind == FLOAT64) {
        double buffer[BLOCK];
        const double *x = FN(load_double)(row, start, count, buffer);
        FN(groups_double)(x, whole_groups(count), maxima);
    } else {
        float buffer[BLOCK];
        const float *x = FN(load_float)(row, start, count, buffer);
        FN(groups_float)(x, whole_groups(count), maxima);
    }
}

/* weights[0..n) of the logits x[0..n): canonical, in [0, 1], 0 for -inf. */
static void FN(weigh)(const Law *law, const double *x, int64_t n, double *weights)
{
    const double max = law->max, temperature = law->temperature, scale = law->scale;
    if (law->uniform)
        for (int64_t i = 0; i < n; i++)
            weights[i] = x[i] > -INFINITY ? 1.0 : 0.0;
    else
        for (int64_t i = 0; i < n; i++)
            weights[i] = exp_canonical((x[i] * scale - max) / temperature);
}

/* weights[i] = 0 where the cut removes the token at position start + i. */
static void FN(mask_weights)(const Source *source, Cut cut, const double *x, int64_t start,
                                int64_t n, double *weights)
{
    const int64_t *ids = source->ids ? source->ids + start : NULL;
    for (int64_t i = 0; i < n; i++)
        if (!(x[i] > cut.value) && !keeps(cut, x[i], ids ? ids[i] : start + i))
            weights[i] = 0.0;
}

/* The exact sum of n <= BLOCK weights, n a whole number of groups. */
static Mass FN(sum_weights)(const double *weights, int64_t n)
{
    double high[LANES] = {0}, low[LANES] = {0};
    Mass mass = {0.0, 0.0};
    for (int64_t i = 0; i < n; i += GROUP)
        for (int l = 0; l < LANES; l++) {
            const double *w = weights + i + l;
            const double a = high_part(w[0]), b = high_part(w[16]);
            const double c = high_part(w[32]), d = high_part(w[48]);
            high[l] += (a + b) + (c + d);
            low[l] += (low_part(w[0], a) + low_part(w[16], b)) +
                      (low_part(w[32], c) + low_part(w[48], d));
        }
    for (int l = 0; l < LANES; l++)
        mass_add(&mass, high[l], low[l]);
    return mass;
}

/* Block b of a source: its logits through x and, where weights are wanted, the kept tokens'
 * weights through w (0 for the others), both padded to whole groups. Returns the count. */
static int64_t FN(read_block)(const Source *source, const Law *law, Cut cut, int64_t b,
                                 const double **x, double *x_buffer, double *w)
{
    const int64_t start = b * BLOCK, rest = source->row.n - start;
    const int64_t count = rest < BLOCK ? rest : BLOCK, padded = whole_groups(count);
    *x = FN(load_double)(&source->row, start, count, x_buffer);
    if (w) {
        if (source->weights) {
            memcpy(w, source->weights + start, (size_t)count * sizeof *w);
            memset(w + count, 0, (size_t)(padded - count) * sizeof *w);
        } else {
            FN(weigh)(law, *x, padded, w);
        }
        if (cut.value > -INFINITY)
            FN(mask_weights)(source, cut, *x, start, count, w);
    }
    return count;
}

/* The exact mass of the kept tokens of one block. */
static Mass FN(block_mass)(const Source *source, const Law *law, Cut cut, int64_t b)
{
    double x_buffer[BLOCK], w[BLOCK];
    const double *x;
    const int64_t count = FN(read_block)(source, law, cut, b, &x, x_buffer, w);
    return FN(sum_weights)(w, whole_groups(count));
}

/* Kept tokens in one block. */
static int64_t FN(block_count)(const Source *source, Cut cut, int64_t b)
{
    double buffer[BLOCK];
    const double *x;
    const Law none = {0};
    const int64_t count = FN(read_block)(source, &none, cut, b, &x, buffer, NULL);
    int64_t above = 0, ties = 0;
    for (int64_t i = 0; i < whole_groups(count); i += GROUP) {
        int more = 0, equal = 0;
        for (int j = 0; j < GROUP; j++) {
            more += x[i + j] > cut.value;
            equal += x[i + j] == cut.value;
        }
        above += more;
        ties += equal;
    }
    if (ties > 0 && cut.value > -INFINITY)
        for (int64_t i = 0; i < count; i++)
            above += x[i] == cut.value && id_at(source, b * BLOCK + i) <= cut.last;
    return above;
}

/* Append every logit >= low of one block of a row to (values, ids), from position n on, in the order of
 * ids. Returns the new n, or -1 once it would pass `room`; the arrays hold GROUP more than that.
 * low > -inf. */
static int64_t FN(gather_block)(const Source *source, int64_t b, double low, int64_t room,
                                   int64_t n, double *values, int64_t *ids)
{
    const int64_t start = b * BLOCK, rest = source->row.n - start;
    const int64_t count = rest < BLOCK ? rest : BLOCK;
    for (int64_t span = 0; span < count; span += SPAN) {
        double maxima[SPAN / GROUP];
        const int64_t end = count - span < SPAN ? count : span + SPAN;
        if (source->tops[(start + span) / SPAN] < low)
            continue;
        FN(group_maxima)(&source->row, start + span, end - span, maxima);
        for (int64_t offset = span; offset < end; offset += GROUP) {
            double buffer[GROUP];
            if (maxima[(offset - span) / GROUP] < low)
                continue;
            const int64_t size = end - offset < GROUP ? end - offset : GROUP;
            const double *x = FN(load_double)(&source->row, start + offset, size, buffer);
            for (int64_t i = 0; i < size; i++) {
                values[n] = x[i];
                ids[n] = start + offset + i;
                n += x[i] >= low;
            }
            if (n > room)
                return -1;
        }
    }
    return n;
}

/* Count the tokens of one block within [min, max] that the cut keeps, and with w their weights,
 * into the ruler's bins. The masses are carried by the caller, at the latest every 3072 tokens. */
static void FN(histogram_block)(const Source *source, Cut cut, int64_t start, const double *x,
                                   const double *w, int64_t count, double min, double max,
                                   const Ruler *ruler, Bin *bins)
{
    for (int64_t i = 0; i < count; i++) {
        if (!(x[i] >= min && x[i] <= max))
            continue;
        if (!(x[i] > cut.value) && !keeps(cut, x[i], id_at(source, start + i)))
            continue;
        Bin *bin = bins + bin_of(ruler, x[i]);
        if (bin->count++ == 0) {
            bin->min = x[i];
            bin->max = x[i];
        } else {
            bin->min = x[i] < bin->min ? x[i] : bin->min;
            bin->max = x[i] > bin->max ? x[i] : bin->max;
        }
        if (w) {
            const double high = high_part(w[i]);
            bin->mass.high += high;
            bin->mass.low += low_part(w[i], high);
        }
    }
}

/* The sum of the weights of those of x[0..n) that are >= floor, in float32, n a whole number of
 * groups up to BLOCK, and through `error` a bound on its distance from the exact sum. log2e_over_t in
 * [1e-30, 1e30], max and floor finite. */
static double FN(fast_mass)(const float *x, int64_t n, float max, float log2e_over_t,
                               float floor, double *error)
{
    /* Two plain loops: compilers vectorise these, and not one that does both. */
    float w[BLOCK];
    double mass[LANES] = {0};
    for (int64_t i = 0; i < n; i++) {
        const float to_integer = 0x1.8p23f;
        float y = (x[i] - max) * log2e_over_t;
        y = y > -125.0f ? y : -125.0f;
        const float shifted = y + to_integer;
        const float f = y - (shifted - to_integer); /* exact, |f| <= 1/2 */
        float p = 1.5403530e-4f;                    /* ln(2)**k / k! */
        p = p * f + 1.3333558e-3f;
        p = p * f + 9.6181291e-3f;
        p = p * f + 5.5504109e-2f;
        p = p * f + 2.4022651e-1f;
        p = p * f + 6.9314718e-1f;
        p = p * f + 1.0f;
        uint32_t bits, n_bits;
        memcpy(&bits, &p, sizeof bits);
        memcpy(&n_bits, &shifted, sizeof n_bits);
        w[i] = x[i] >= floor ? float_of_bits(bits + (n_bits << 23)) : 0.0f;
    }
    for (int64_t i = 0; i < n; i += GROUP)
        for (int l = 0; l < LANES; l++) {
            const float *p = w + i + l;
            mass[l] += (double)((p[0] + p[16]) + (p[32] + p[48]));
        }
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++)
            mass[l] += mass[l + half];
    *error = fast_error(mass[0], n);
    return mass[0];
}

/* ------------------------------------------------------------------------- writing whole rows */

/* out[i] = x / divisor where the cut keeps token i, -inf elsewhere. With `shifted`, the kept logits
 * are (x - max) / temperature under the law instead. Neither falls below -limit; that none passes
 * limit is the caller's care. */
#define DEFINE_FILTER(NAME, REAL)                                                                  \
    static void NAME(const Source *source, const Law *law, Cut cut, int64_t b,              \
                            double divisor, int shifted, double limit, REAL *out)                  \
    {                                                                                              \
        double buffer[BLOCK];                                                                      \
        const double *x;                                                                           \
        const int64_t count = FN(read_block)(source, law, cut, b, &x, buffer, NULL);                   \
        for (int64_t i = 0; i < count; i++) {                                                      \
            double z = shifted ? tempered(law, x[i]) : x[i] / divisor;                             \
            z = z < -limit ? -limit : z;                                                           \
            out[i] = (REAL)(keeps(cut, x[i], b * BLOCK + i) ? z : -INFINITY);                      \
        }                                                                                          \
    }
DEFINE_FILTER(FN(filter_float), float)
DEFINE_FILTER(FN(filter_double), double)
#undef DEFINE_FILTER

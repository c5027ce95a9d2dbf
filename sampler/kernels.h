/* The few loops that touch the whole vocabulary.
 *
 * A row is read in blocks of BLOCK logits, each block as groups of GROUP. Whatever the dtype, the
 * stride or the byte order, a loader hands the loops a contiguous block of float or double, padded
 * with -inf to a whole number of groups; a native contiguous row is handed over in place. So every
 * loop below sees aligned counts, knows one element type, and is plain C that a compiler
 * vectorises: a fixed number of explicit lanes where a sum or a maximum crosses elements.
 * Nothing here knows Python, allocates, or writes to a row.
 */
#ifndef SAMPLER_KERNELS_H
#define SAMPLER_KERNELS_H

#include "canonical.h"

#include <stddef.h>

#define BLOCK 1024
#define GROUP 64
#define GROUPS_PER_BLOCK (BLOCK / GROUP)

/* ------------------------------------------------------------------------------------ the row */

enum { FLOAT16, BFLOAT16, FLOAT32, FLOAT64 };

typedef struct {
    const char *data; /* the first logit */
    ptrdiff_t stride; /* bytes from one logit to the next; any sign, 0 too */
    int64_t n;        /* logits; at least 1 */
    int kind;         /* FLOAT16 ... FLOAT64 */
    int swapped;      /* the other byte order */
    int direct;       /* native, contiguous and aligned: may be read in place */
} Row;

static inline int64_t blocks_in(int64_t n) { return (n + BLOCK - 1) / BLOCK; }
static inline int64_t groups_in(int64_t n) { return (n + GROUP - 1) / GROUP; }

static inline Row make_row(const char *data, ptrdiff_t stride, int64_t n, int kind, int swapped)
{
    Row row = {data, stride, n, kind, swapped, 0};
    const ptrdiff_t size = kind == FLOAT64 ? 8 : kind == FLOAT32 ? 4 : 2;
    row.direct = !swapped && stride == size && (uintptr_t)data % (uintptr_t)size == 0;
    return row;
}

static inline uint16_t word16(const char *p, int swapped)
{
    uint16_t w;
    memcpy(&w, p, sizeof w);
    return swapped ? (uint16_t)(w << 8 | w >> 8) : w;
}

static inline uint32_t word32(const char *p, int swapped)
{
    uint32_t w;
    memcpy(&w, p, sizeof w);
    if (swapped)
        w = w << 24 | (w & 0xff00u) << 8 | (w >> 8 & 0xff00u) | w >> 24;
    return w;
}

static inline uint64_t word64(const char *p, int swapped)
{
    uint64_t w;
    memcpy(&w, p, sizeof w);
    if (swapped)
        w = (uint64_t)word32((const char *)&w, 1) << 32 | word32((const char *)&w + 4, 1);
    return w;
}

static inline float float_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline double double_of_bits(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Shift exponent and mantissa into place and add the difference of the biases; subnormals get
 * their hidden bit from the subtraction. */
static inline float widen_float16(uint16_t half)
{
    const uint32_t magnitude = half & 0x7fffu, shifted = magnitude << 13;
    const uint32_t normal = magnitude >= 0x7c00u ? shifted | 0x7f800000u : shifted + (112u << 23);
    const float subnormal = float_of_bits(shifted + (113u << 23)) - 0x1p-14f;
    uint32_t bits;
    memcpy(&bits, &subnormal, sizeof bits);
    bits = magnitude < 0x0400u ? bits : normal;
    return float_of_bits(bits | (uint32_t)(half & 0x8000u) << 16);
}

static inline float widen_bfloat16(uint16_t word) { return float_of_bits((uint32_t)word << 16); }

static inline int64_t whole_groups(int64_t n) { return (n + GROUP - 1) / GROUP * GROUP; }

/* `count` <= BLOCK logits from `start` on, as float, padded with -inf to whole groups. Returns the
 * row itself where it can be read in place, else `buffer` (BLOCK floats). Not for FLOAT64. */
static inline const float *load_float(const Row *row, int64_t start, int64_t count, float *buffer)
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
static inline const double *load_double(const Row *row, int64_t start, int64_t count,
                                        double *buffer)
{
    if (row->kind != FLOAT64) {
        float narrow[BLOCK];
        const float *x = load_float(row, start, count, narrow);
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

/* ------------------------------------------------------------------ the read pass: group maxima */

/* The maximum of each group of x[0..n), n a whole number of groups. Returns whether any logit is
 * NaN or +inf; the maxima mean nothing then. */
#define LARGER(a, b) ((a) > (b) ? (a) : (b))
#define DEFINE_SCAN(NAME, REAL)                                                                    \
    static inline int NAME(const REAL *x, int64_t n, double *maxima)                               \
    {                                                                                              \
        REAL top[GROUPS_PER_BLOCK][LANES];                                                         \
        int bad[LANES] = {0}, any = 0;                                                             \
        for (int64_t g = 0; g < n / GROUP; g++)                                                    \
            for (int l = 0; l < LANES; l++) {                                                      \
                const REAL *p = x + g * GROUP + l;                                                 \
                const REAL a = p[0], b = p[16], c = p[32], d = p[48];                              \
                const REAL ab = LARGER(a, b), cd = LARGER(c, d);                                   \
                top[g][l] = LARGER(ab, cd);                                                        \
                bad[l] |= !(a < (REAL)INFINITY) | !(b < (REAL)INFINITY) |                          \
                          !(c < (REAL)INFINITY) | !(d < (REAL)INFINITY);                           \
            }                                                                                      \
        for (int64_t g = 0; g < n / GROUP; g++) {                                                  \
            REAL *t = top[g];                                                                      \
            for (int l = 0; l < 8; l++)                                                            \
                t[l] = LARGER(t[l], t[l + 8]);                                                     \
            for (int l = 0; l < 4; l++)                                                            \
                t[l] = LARGER(t[l], t[l + 4]);                                                     \
            const REAL ac = LARGER(t[0], t[2]), bd = LARGER(t[1], t[3]);                           \
            maxima[g] = LARGER(ac, bd);                                                            \
        }                                                                                          \
        for (int l = 0; l < LANES; l++)                                                            \
            any |= bad[l];                                                                         \
        return any;                                                                                \
    }
DEFINE_SCAN(scan_float, float)
DEFINE_SCAN(scan_double, double)
#undef DEFINE_SCAN

static inline int scan_block(const Row *row, int64_t start, int64_t count, double *maxima)
{
    if (row->kind == FLOAT64) {
        double buffer[BLOCK];
        const double *x = load_double(row, start, count, buffer);
        return scan_double(x, whole_groups(count), maxima);
    }
    float buffer[BLOCK];
    const float *x = load_float(row, start, count, buffer);
    return scan_float(x, whole_groups(count), maxima);
}

/* --------------------------------------------------------------------- the cut, and the source */

/* A prefix in rank is named by its last token: kept is every x > value, and x == value up to the
 * id `last`. {-inf, -1} keeps every finite logit. */
typedef struct {
    double value;
    int64_t last;
} Cut;

static inline int keeps(Cut cut, double x, int64_t id)
{
    return x > cut.value || (x == cut.value && id <= cut.last);
}

/* Where a stage reads tokens from: the whole row, or the candidates gathered from it (then `ids`
 * holds their token ids, ascending, and `weights`, where not NULL, their weights). `maxima` of the
 * row's groups let it skip blocks that hold nothing of interest; NULL for candidates. */
typedef struct {
    Row row;
    const int64_t *ids;
    const double *weights;
    const double *maxima;
} Source;

static inline int64_t id_at(const Source *source, int64_t position)
{
    return source->ids ? source->ids[position] : position;
}

/* Whether block b may hold a logit >= value. */
static inline int block_reaches(const Source *source, int64_t block, double value)
{
    if (!source->maxima)
        return 1;
    const int64_t all = groups_in(source->row.n), first = block * GROUPS_PER_BLOCK;
    const int64_t end = first + GROUPS_PER_BLOCK < all ? first + GROUPS_PER_BLOCK : all;
    for (int64_t g = first; g < end; g++)
        if (source->maxima[g] >= value)
            return 1;
    return 0;
}

/* weights[0..n) of the logits x[0..n): canonical, in [0, 1], 0 for -inf. */
static inline void weigh(const Law *law, const double *x, int64_t n, double *weights)
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
static inline void mask_weights(const Source *source, Cut cut, const double *x, int64_t start,
                                int64_t n, double *weights)
{
    const int64_t *ids = source->ids ? source->ids + start : NULL;
    for (int64_t i = 0; i < n; i++)
        if (!(x[i] > cut.value) && !keeps(cut, x[i], ids ? ids[i] : start + i))
            weights[i] = 0.0;
}

/* The exact sum of n <= BLOCK weights, n a whole number of groups. */
static inline Mass sum_weights(const double *weights, int64_t n)
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
static inline int64_t read_block(const Source *source, const Law *law, Cut cut, int64_t b,
                                 const double **x, double *x_buffer, double *w)
{
    const int64_t start = b * BLOCK, rest = source->row.n - start;
    const int64_t count = rest < BLOCK ? rest : BLOCK, padded = whole_groups(count);
    *x = load_double(&source->row, start, count, x_buffer);
    if (w) {
        if (source->weights) {
            memcpy(w, source->weights + start, (size_t)count * sizeof *w);
            memset(w + count, 0, (size_t)(padded - count) * sizeof *w);
        } else {
            weigh(law, *x, padded, w);
        }
        if (cut.value > -INFINITY)
            mask_weights(source, cut, *x, start, count, w);
    }
    return count;
}

/* The exact mass of the kept tokens of one block. */
static inline Mass block_mass(const Source *source, const Law *law, Cut cut, int64_t b)
{
    double x_buffer[BLOCK], w[BLOCK];
    const double *x;
    const int64_t count = read_block(source, law, cut, b, &x, x_buffer, w);
    return sum_weights(w, whole_groups(count));
}

/* Kept tokens in one block. */
static inline int64_t block_count(const Source *source, Cut cut, int64_t b)
{
    double buffer[BLOCK];
    const double *x;
    const Law none = {0};
    const int64_t count = read_block(source, &none, cut, b, &x, buffer, NULL);
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

/* Append every logit >= low of one block to (values, ids), from position n on, in the order of
 * ids; groups whose maximum is below are not read. Returns the new n, or -1 once it would pass
 * `room`; the arrays hold GROUP more than that. low > -inf. */
static inline int64_t gather_block(const Source *source, int64_t b, double low, int64_t room,
                                   int64_t n, double *values, int64_t *ids)
{
    const int64_t start = b * BLOCK, rest = source->row.n - start;
    const int64_t count = rest < BLOCK ? rest : BLOCK;
    for (int64_t offset = 0; offset < count; offset += GROUP) {
        double buffer[GROUP];
        if (source->maxima && source->maxima[(start + offset) / GROUP] < low)
            continue;
        const int64_t size = count - offset < GROUP ? count - offset : GROUP;
        const double *x = load_double(&source->row, start + offset, size, buffer);
        for (int64_t i = 0; i < size; i++) {
            values[n] = x[i];
            ids[n] = start + offset + i;
            n += x[i] >= low;
        }
        if (n > room)
            return -1;
    }
    return n;
}

/* -------------------------------------------------------------------------------- the histogram */

/* What is known of the tokens between two logit values. */
typedef struct {
    int64_t count;
    Mass mass;
    double min;
    double max;
} Bin;

/* How a logit finds its bin, the highest first: by its depth below `max`, in equal steps, the last
 * bin open below (by_bits = 0); or by the distance of its bits, which any range of doubles splits
 * into at most `bins` parts a level (by_bits = 1). Both are monotone, so bins are ranges in rank. */
typedef struct {
    int by_bits;
    int bins;
    double max;
    double steps_per_unit;
    uint64_t top;
    int shift;
} Ruler;

/* An unsigned integer in the order of the doubles; -0.0 and 0.0 are one. */
static inline uint64_t ordered_bits(double x)
{
    x += 0.0;
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 63 ? ~bits : bits | UINT64_C(1) << 63;
}

static inline int bin_of(const Ruler *ruler, double x)
{
    if (ruler->by_bits)
        return (int)((ruler->top - ordered_bits(x)) >> ruler->shift);
    const double step = (ruler->max - x) * ruler->steps_per_unit;
    return step < ruler->bins - 1 ? (int)step : ruler->bins - 1;
}

/* Count the tokens of one block within [min, max] that the cut keeps, and with w their weights,
 * into the ruler's bins. The masses are carried by the caller, at the latest every 3072 tokens. */
static inline void histogram_block(const Source *source, Cut cut, int64_t start, const double *x,
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

/* ------------------------------------------------------------------ the fast mass, with a bound */

/* What the bound is made of (derived in docs/design.md). A float32 weight is computed as
 * 2**y, y = (x - max) * (log2(e) / T): three roundings put a relative error of 3 * 2**-24 on y,
 * hence |z| times that on the weight; the polynomial and its roundings add at most
 * FAST_WEIGHT_ERROR; the clamp of y at -125 adds at most 2**-124 a token. */
#define FAST_DEPTH_ERROR 1.9e-7
#define FAST_WEIGHT_ERROR 5e-7
#define FAST_FLOOR_ERROR 0x1p-124

/* The smallest float that a cut keeps throughout a block whose ids all lie before its last token
 * (with_ties), or all behind it. */
static inline float floor_of(Cut cut, int with_ties)
{
    const float rounded = (float)cut.value;
    const int too_low = with_ties ? (double)rounded < cut.value : (double)rounded <= cut.value;
    return too_low ? nextafterf(rounded, INFINITY) : rounded;
}

/* The sum of the weights of those of x[0..n) that are >= floor, in float32, n a whole number of
 * groups, and through `error` a bound on its distance from the exact sum. log2e_over_t in
 * [1e-30, 1e30], max and floor finite. */
static inline double fast_mass(const float *x, int64_t n, float max, float log2e_over_t,
                               float floor, double *error)
{
    double mass[LANES] = {0}, depth[LANES] = {0};
    for (int64_t i = 0; i < n; i += GROUP) {
        float w[GROUP], wy[GROUP];
        for (int j = 0; j < GROUP; j++) {
            const float to_integer = 0x1.8p23f;
            float y = (x[i + j] - max) * log2e_over_t;
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
            w[j] = x[i + j] >= floor ? float_of_bits(bits + (n_bits << 23)) : 0.0f;
            wy[j] = w[j] * y;
        }
        for (int l = 0; l < LANES; l++) {
            mass[l] += (double)((w[l] + w[l + 16]) + (w[l + 32] + w[l + 48]));
            depth[l] -= (double)((wy[l] + wy[l + 16]) + (wy[l + 32] + wy[l + 48]));
        }
    }
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) {
            mass[l] += mass[l + half];
            depth[l] += depth[l + half];
        }
    *error = FAST_WEIGHT_ERROR * mass[0] + FAST_DEPTH_ERROR * 0.6931472 * depth[0] +
             FAST_FLOOR_ERROR * (double)n;
    return mass[0];
}

/* ------------------------------------------------------------------------- writing whole rows */

/* out[i] = x / divisor where the cut keeps token i, -inf elsewhere. With `shifted`, the kept logits
 * are (x - max) / temperature under the law instead. Neither falls below -limit; that none passes
 * limit is the caller's care. */
#define DEFINE_FILTER(NAME, REAL)                                                                  \
    static inline void NAME(const Source *source, const Law *law, Cut cut, int64_t b,              \
                            double divisor, int shifted, double limit, REAL *out)                  \
    {                                                                                              \
        double buffer[BLOCK];                                                                      \
        const double *x;                                                                           \
        const int64_t count = read_block(source, law, cut, b, &x, buffer, NULL);                   \
        for (int64_t i = 0; i < count; i++) {                                                      \
            double z = shifted ? tempered(law, x[i]) : x[i] / divisor;                             \
            z = z < -limit ? -limit : z;                                                           \
            out[i] = (REAL)(keeps(cut, x[i], b * BLOCK + i) ? z : -INFINITY);                      \
        }                                                                                          \
    }
DEFINE_FILTER(filter_float, float)
DEFINE_FILTER(filter_double, double)
#undef DEFINE_FILTER

#endif

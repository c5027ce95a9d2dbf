/* What the loops work on: rows, blocks, cuts, bins; and what is done to one logit.
 *
 * A row is read in blocks of BLOCK logits, each block as groups of GROUP. Nothing here knows
 * Python, allocates, or writes to a row.
 */
#ifndef SAMPLER_ROWS_H
#define SAMPLER_ROWS_H

#include "canonical.h"

#include <stddef.h>

#define BLOCK 1024
#define LOG2_BLOCK 10
#define GROUP 64
#define GROUPS_PER_BLOCK (BLOCK / GROUP)
#define SPAN 512 /* what the read pass keeps the largest logit of */
#define SPANS_PER_BLOCK (BLOCK / SPAN)

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
static inline int64_t spans_in(int64_t n) { return (n + SPAN - 1) / SPAN; }
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
 * holds their token ids, ascending, and `weights`, where not NULL, their weights). `tops`, the
 * largest logit of each span of the row, lets it skip what holds nothing of interest; NULL for
 * candidates. */
typedef struct {
    Row row;
    const int64_t *ids;
    const double *weights;
    const double *tops;
} Source;

static inline int64_t id_at(const Source *source, int64_t position)
{
    return source->ids ? source->ids[position] : position;
}

/* Whether block b may hold a logit >= value. */
static inline int block_reaches(const Source *source, int64_t block, double value)
{
    if (!source->tops)
        return 1;
    const double *tops = source->tops + block * SPANS_PER_BLOCK;
    return tops[0] >= value || tops[1] >= value;
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

/* ------------------------------------------------------------------ the fast mass, with a bound */

/* What the bound is made of (derived in docs/design.md). A float32 weight is computed as
 * 2**y, y = (x - max) * (log2(e) / T): three roundings put a relative error of 3 * 2**-24 on y,
 * hence |z| times that on the weight; the polynomial and its roundings add at most
 * FAST_WEIGHT_ERROR; the clamp of y at -125 adds at most 2**-124 a token. */
#define FAST_DEPTH_ERROR 1.9e-7
#define FAST_WEIGHT_ERROR 5e-7
#define FAST_FLOOR_ERROR 0x1p-124

/* A bound on the error of the fast mass of n <= BLOCK tokens. The entropy of n weights w = 2**y of
 * sum `mass` is at most log2(n), hence sum(w |y|) <= mass (log2(n) - log2(mass)): tight for equal
 * weights, and no work a token. */
static inline double fast_error(double mass, int64_t n)
{
    uint64_t bits;
    memcpy(&bits, &mass, sizeof bits);
    const int floor_log2 = (int)(bits >> 52) - 1023; /* of a positive, normal mass; -1023 for 0 */
    const double depth = LOG2_BLOCK - floor_log2;
    return mass * (FAST_WEIGHT_ERROR + FAST_DEPTH_ERROR * 0.6931472 * depth) +
           FAST_FLOOR_ERROR * (double)n;
}

/* The smallest float that a cut keeps throughout a block whose ids all lie before its last token
 * (with_ties), or all behind it. */
static inline float floor_of(Cut cut, int with_ties)
{
    const float rounded = (float)cut.value;
    const int too_low = with_ties ? (double)rounded < cut.value : (double)rounded <= cut.value;
    return too_low ? nextafterf(rounded, INFINITY) : rounded;
}

#endif

/* What the kernels work on: rows, blocks, cuts, candidates; and what is known before a loop begins.
 *
 * A row is read in blocks of BLOCK logits. Nothing here knows Python, allocates, or writes to a
 * row.
 */
#ifndef SAMPLER_ROWS_H
#define SAMPLER_ROWS_H

#include "canonical.h"

#include <stddef.h>
#if defined(_MSC_VER)
#include <intrin.h>
#endif

#define BLOCK 512
#define LOG2_BLOCK 9
#define GROUP 128 /* what blocks are padded to */
#define WORD 64   /* what candidates and maxima are padded to: the bits of a comparison */
#define FLOORS 2  /* how many masses or counts a pass can take at once */

/* ------------------------------------------------------------------------------------ the row */

enum { FLOAT16, BFLOAT16, FLOAT32, FLOAT64 };
enum { SOFTMAX, LOG_SOFTMAX, LOGSUMEXP };

typedef struct Kernels Kernels; /* dispatch.h */

/* What is changed of a row before anything looks at it: single logits that have another value, and
 * tokens that are not allowed. Both are -inf where they are forbidden, whatever the logit is: it
 * may be NaN. */
typedef struct {
    const int64_t *ids;     /* of the logits with another value: ascending, each in [0, n) */
    const double *values;   /* the values: -inf, or numbers that the row's loops work on */
    const int64_t *first;   /* first[c] .. first[c + 1] are those in [c BLOCK, (c + 1) BLOCK) */
    const int32_t *allowed; /* bit j & 31 of word j >> 5: whether token j is; NULL: all are */
    int64_t words;          /* the tokens beyond these are not */
} Edits;

typedef struct {
    const char *data;       /* the first logit */
    ptrdiff_t stride;       /* bytes from one logit to the next; any sign, 0 too */
    int64_t n;              /* logits; at least 1 */
    int kind;               /* FLOAT16 ... FLOAT64 */
    int swapped;            /* the other byte order */
    int direct;             /* native, contiguous and aligned words */
    int in_place;           /* and of the type that the loops work on */
    int64_t lead;           /* logits in block 0: see block_start */
    const Kernels *kernels; /* for its element type, on this machine */
    /* What `scan` has written: the largest of every LANES-th logit of each block, LANES values a
     * block, padded with -inf to whole words; double for FLOAT64, else float. */
    const void *maxima;
    const Edits *edits; /* NULL where there are none; a row with some is not `in_place` */
    /* What `align_mask` has written; NULL where there is no mask. */
    const uint64_t *allowed;
} Row;

/* Blocks have BLOCK logits, except the last one, and the first one where that lets all others
 * begin at a multiple of 64 bytes: reading across these is twice as slow. */
static inline int64_t blocks_in(const Row *row)
{
    return row->n <= row->lead ? 1 : 1 + (row->n - row->lead + BLOCK - 1) / BLOCK;
}

static inline int64_t block_start(const Row *row, int64_t b)
{
    return b == 0 ? 0 : row->lead + (b - 1) * BLOCK;
}

static inline int64_t block_size(const Row *row, int64_t b)
{
    const int64_t rest = row->n - block_start(row, b), most = b == 0 ? row->lead : BLOCK;
    return rest < most ? rest : most;
}

/* The most blocks that a row of n logits can have. */
static inline int64_t most_blocks(int64_t n) { return n / BLOCK + 2; }

static inline int64_t whole_groups(int64_t n) { return (n + GROUP - 1) / GROUP * GROUP; }

static inline int64_t whole_lanes(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

static inline int64_t whole_words(int64_t n) { return (n + WORD - 1) / WORD * WORD; }

/* How many maxima a row with so many blocks has, padding included. */
static inline int64_t maxima_in(int64_t blocks) { return whole_words(blocks * LANES); }

/* Ask for the memory that the read pass comes to some blocks after these `size` bytes; it may lie
 * beyond the row. Processors that guess it by themselves do so later, or not across pages. */
#define AHEAD 8192
INLINE void prefetch(const void *from, size_t size)
{
#if defined(__GNUC__)
    const uintptr_t at = (uintptr_t)from + AHEAD;
    for (size_t i = 0; i < size; i += 64)
        __builtin_prefetch((const void *)(at + i));
#else
    (void)from, (void)size;
#endif
}

/* ---------------------------------------------------------------------------------- its edits */

/* 64 bits from bit `shift` < 32 of two words of 64 on. */
INLINE uint64_t shifted_word(uint64_t low, uint64_t high, int shift)
{
    return low >> shift | high << 1 << (63 - shift); /* in two steps: a shift by 64 is undefined */
}

/* Bit i: whether token + i is allowed, i < WORD. Bits of tokens beyond the row are undefined. */
static inline uint64_t allowed_from(const Edits *edits, int64_t token)
{
    const int64_t at = token >> 5;
    uint64_t words[3] = {0, 0, 0};
    for (int64_t i = 0; i < 3 && at + i < edits->words; i++)
        words[i] = (uint32_t)edits->allowed[at + i];
    return shifted_word(words[0] | words[1] << 32, words[2], (int)(token & 31));
}

/* Write the mask of a row with one block by block, BLOCK / WORD words each: bit i of a block is
 * whether its token i is allowed, 0 beyond its tokens. */
INLINE void align_mask(const Row *row, uint64_t *bits)
{
    const Edits *edits = row->edits;
    for (int64_t b = 0; b < blocks_in(row); b++, bits += BLOCK / WORD) {
        const int64_t start = block_start(row, b), count = block_size(row, b), at = start >> 5;
        if (count == BLOCK && at + BLOCK / 32 + 2 <= edits->words) {
            const uint32_t *words = (const uint32_t *)edits->allowed + at;
            uint64_t pairs[BLOCK / WORD + 1];
            for (int j = 0; j <= BLOCK / WORD; j++)
                pairs[j] = words[2 * j] | (uint64_t)words[2 * j + 1] << 32;
            for (int j = 0; j < BLOCK / WORD; j++)
                bits[j] = shifted_word(pairs[j], pairs[j + 1], (int)(start & 31));
        } else
            for (int64_t j = 0; j < BLOCK; j += WORD) {
                const int64_t rest = count - j;
                const uint64_t in_block = rest >= WORD ? UINT64_MAX
                                          : rest > 0   ? (UINT64_C(1) << rest) - 1
                                                       : 0;
                bits[j / WORD] = in_block ? allowed_from(edits, start + j) & in_block : 0;
            }
    }
}

/* What the aligned mask of a block says of it: FEW is at most one token in each word. */
enum { NONE_ALLOWED, FEW_ALLOWED, SOME_ALLOWED, ALL_ALLOWED };
INLINE int mask_density(const uint64_t *bits)
{
    uint64_t any = 0, several = 0, all = UINT64_MAX;
    for (int j = 0; j < BLOCK / WORD; j++) {
        any |= bits[j];
        all &= bits[j];
        several |= bits[j] & (bits[j] - 1);
    }
    return any == 0            ? NONE_ALLOWED
           : several == 0      ? FEW_ALLOWED
           : all == UINT64_MAX ? ALL_ALLOWED
                               : SOME_ALLOWED;
}

/* The aligned mask of the block that begins at `start`. */
static inline const uint64_t *mask_of(const Row *row, int64_t start)
{
    const int64_t b = start == 0 ? 0 : 1 + (start - row->lead) / BLOCK;
    return row->allowed + b * (BLOCK / WORD);
}

/* The first of the logits with another value that is at or after `token`, as a place in `ids`. */
static inline int64_t first_edit(const Edits *edits, int64_t token)
{
    int64_t i = edits->first[token / BLOCK];
    const int64_t end = edits->first[token / BLOCK + 1];
    while (i < end && edits->ids[i] < token)
        i++;
    return i;
}

/* Whether any logit of `count` from `start` on has another value. */
static inline int has_edit(const Edits *edits, int64_t start, int64_t count)
{
    const int64_t i = first_edit(edits, start);
    return i < edits->first[(start + count - 1) / BLOCK + 1] && edits->ids[i] < start + count;
}

/* The logit of a token; `x` is what is in memory. */
static inline double edited_logit(const Edits *edits, int64_t token, double x)
{
    if (edits->allowed && !(allowed_from(edits, token) & 1))
        return -INFINITY;
    if (edits->ids) {
        const int64_t i = first_edit(edits, token);
        if (i < edits->first[token / BLOCK + 1] && edits->ids[i] == token)
            return edits->values[i];
    }
    return x;
}

/* -------------------------------------------------------------------------------- its numbers */

INLINE uint16_t word16(const char *p, int swapped)
{
    uint16_t w;
    memcpy(&w, p, sizeof w);
    return swapped ? (uint16_t)(w << 8 | w >> 8) : w;
}

INLINE uint32_t word32(const char *p, int swapped)
{
    uint32_t w;
    memcpy(&w, p, sizeof w);
    if (swapped)
        w = w << 24 | (w & 0xff00u) << 8 | (w >> 8 & 0xff00u) | w >> 24;
    return w;
}

INLINE uint64_t word64(const char *p, int swapped)
{
    uint64_t w;
    memcpy(&w, p, sizeof w);
    if (swapped)
        w = (uint64_t)word32((const char *)&w, 1) << 32 | word32((const char *)&w + 4, 1);
    return w;
}

INLINE float float_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE double double_of_bits(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Shift exponent and mantissa into place and add the difference of the biases; subnormals get
 * their hidden bit from the subtraction. */
INLINE float widen_float16(uint16_t half)
{
    const uint32_t magnitude = half & 0x7fffu, shifted = magnitude << 13;
    const uint32_t normal = magnitude >= 0x7c00u ? shifted | 0x7f800000u : shifted + (112u << 23);
    const float subnormal = float_of_bits(shifted + (113u << 23)) - 0x1p-14f;
    uint32_t bits;
    memcpy(&bits, &subnormal, sizeof bits);
    bits = magnitude < 0x0400u ? bits : normal;
    return float_of_bits(bits | (uint32_t)(half & 0x8000u) << 16);
}

INLINE float widen_bfloat16(uint16_t word) { return float_of_bits((uint32_t)word << 16); }

/* ------------------------------------------------------------------------------------- the cut */

/* A prefix in rank is named by its last token: kept is every x > value, and x == value up to the
 * id `last`. {-inf, -1} keeps every finite logit. */
typedef struct {
    double value;
    int64_t last;
} Cut;

static const Cut KEEP_ALL = {-INFINITY, -1};
static const Cut KEEP_NOTHING = {INFINITY, -1};

static inline int keeps(Cut cut, double x, int64_t id)
{
    return (x > cut.value) | ((x == cut.value) & (id <= cut.last)); /* without a branch */
}

/* lanes[l] = what was lanes[(l + by) % LANES], 0 <= by <= LANES. */
static inline void turn_lanes(double *lanes, int64_t by)
{
    double twice[2 * LANES];
    memcpy(twice, lanes, LANES * sizeof *lanes);
    memcpy(twice + LANES, lanes, LANES * sizeof *lanes);
    memcpy(lanes, twice + by, LANES * sizeof *lanes);
}

/* The place of the lowest set bit; there has to be one. */
static inline int first_bit(uint64_t bits)
{
#if defined(__GNUC__)
    return __builtin_ctzll(bits);
#elif defined(_MSC_VER) && defined(_WIN64)
    unsigned long place;
    _BitScanForward64(&place, bits);
    return (int)place;
#else
    int place = 0;
    for (; !(bits & 1); bits >>= 1)
        place++;
    return place;
#endif
}

static inline int count_bits(uint64_t bits)
{
#if defined(__GNUC__)
    return __builtin_popcountll(bits);
#else
    int count = 0;
    for (; bits; bits &= bits - 1)
        count++;
    return count;
#endif
}

/* The next larger float, or double, of one that is not NaN or +inf. */
static inline float next_float(float x)
{
    uint32_t bits;
    x += 0.0f; /* -0.0 is 0.0 */
    memcpy(&bits, &x, sizeof bits);
    return float_of_bits(bits >> 31 ? bits - 1 : bits + 1);
}

static inline double next_double(double x)
{
    uint64_t bits;
    x += 0.0;
    memcpy(&bits, &x, sizeof bits);
    return double_of_bits(bits >> 63 ? bits - 1 : bits + 1);
}

/* The smallest float, or double, that is at least `value`, or above it (`value` is not +inf
 * then). */
static inline float least_float(double value, int above)
{
    const float rounded = (float)value;
    const int low = above ? (double)rounded <= value : (double)rounded < value;
    return low ? next_float(rounded) : rounded;
}

static inline double least_double(double value, int above)
{
    return above ? next_double(value) : value;
}

/* The same among the numbers that a row's loops work on. */
static inline double least_of(const Row *row, double value, int above)
{
    return row->kind == FLOAT64 ? least_double(value, above) : (double)least_float(value, above);
}

/* An integer in the order of the doubles, or of the floats; -0.0 and 0.0 are one. */
static inline int64_t order_of(const Row *row, double x)
{
    if (row->kind == FLOAT64) {
        int64_t bits;
        memcpy(&bits, &x, sizeof bits);
        return bits < 0 ? INT64_MIN - bits : bits;
    }
    const float narrow = (float)x;
    int32_t bits;
    memcpy(&bits, &narrow, sizeof bits);
    return bits < 0 ? INT32_MIN - (int64_t)bits : bits;
}

/* Of the numbers that a row's loops work on, the one halfway from low to high, by how many lie
 * between: in (low, high), where there is one. */
static inline double halfway(const Row *row, double low, double high)
{
    const int64_t a = order_of(row, low), b = order_of(row, high);
    int64_t middle = (a >> 1) + (b >> 1) + (a & b & 1);
    if (row->kind == FLOAT64) {
        double x;
        middle = middle < 0 ? INT64_MIN - middle : middle;
        memcpy(&x, &middle, sizeof x);
        return x;
    }
    int32_t bits = (int32_t)(middle < 0 ? INT32_MIN - middle : middle);
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

/* ------------------------------------------------------------------------------ the candidates */

/* Tokens taken from a row, ids ascending. The arrays have room for whole words; what pads the last
 * one is -inf in `values` and 0 in `weights`. */
typedef struct {
    int64_t n;
    double *values;
    int64_t *ids;
    double *weights; /* canonical; only once they were asked for */
} Candidates;

/* What of the candidates is at or above some value, and the values on both sides of that border. */
typedef struct {
    int64_t count;
    Mass mass;    /* of what is above; 0 without weights */
    double least; /* the smallest at or above; +inf if there is none */
    double most;  /* the largest below; -inf if there is none */
} Split;

/* ------------------------------------------------------------------- masses with an error bound */

/* The constants are derived in docs/design.md. Weights are 2**y, y = (x - max) log2(e) / T; those
 * below 2**-DEPTH are left out. */
#define FAST_DEPTH 45.0         /* the fast mass: float32 */
#define FAST_WEIGHT_ERROR 8e-7  /* relative: polynomial, its roundings, float32 part of the sum */
#define FAST_DEPTH_ERROR 1.9e-7 /* relative to |z|: three roundings of y */
#define FAST_FLOOR_ERROR 0x1p-44
/* What the fast sums of w |z| and of w^2 lose, relative: |z| is 31.2 at most. */
#define FAST_MOMENT_ERROR 2e-5
#define FINE_DEPTH 70.0 /* the fine mass: double */
#define FINE_WEIGHT_ERROR 1.3e-12
#define FINE_FLOOR_ERROR 0x1p-69
#define FINE_DEPTH_FLOOR_ERROR 0x1p-64 /* of w |z| */
#define LOG_SLACK 0x1p-45 /* two logs below 19, each off by 3 ULP at most, and a difference */

/* The error of the fast mass of a block. The entropy of weights w = 2**y of sum `mass` is
 * at most log2(BLOCK), hence sum(w |y|) <= mass (log2(BLOCK) - log2(mass)): tight for equal
 * weights, and no work a token. */
static inline double fast_error(double mass)
{
    uint64_t bits;
    memcpy(&bits, &mass, sizeof bits);
    const int floor_log2 = (int)(bits >> 52) - 1023; /* of a positive, normal mass; -1023 for 0 */
    const double depth = LOG2_BLOCK - floor_log2;
    return mass * (FAST_WEIGHT_ERROR + FAST_DEPTH_ERROR * 0.6931472 * depth) +
           FAST_FLOOR_ERROR * BLOCK;
}

#endif

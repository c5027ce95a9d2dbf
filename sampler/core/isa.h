/* The kernels of one instruction set: those over candidates, which are here, and those over rows,
 * `load.h`, `kernels.h`, `masses.h` and `softmax.h`, for both element types. `dispatch.h` includes
 * this file once per instruction set, with ISA its number, CANDIDATES, FN_FLOAT and FN_DOUBLE giving
 * the functions of each their own names, and SAMPLER_FUSED defined where it has a fused
 * multiply-add.
 */

/* weights[0..n), n a whole number of words, of values[0..n): canonical, 0 for -inf. */
static void CANDIDATES(weigh)(const Tempering *tempering, const double *values, int64_t n,
                              double *weights)
{
    const double max = tempering->max, temperature = tempering->temperature;
    const double scale = tempering->scale;
    if (tempering->uniform)
        for (int64_t i = 0; i < n; i++)
            weights[i] = values[i] > -INFINITY ? 1.0 : 0.0;
    else
        for (int64_t i = 0; i < n; i++)
            weights[i] = exp_canonical((values[i] * scale - max) / temperature);
}

/* z[0..n), n a whole number of words, of values[0..n): their tempered logits, finite for what is
 * finite; -inf for -inf. */
static void CANDIDATES(temper)(const Tempering *tempering, const double *values, int64_t n,
                               double *z)
{
    const double max = tempering->max, temperature = tempering->temperature;
    const double scale = tempering->scale;
    const int uniform = tempering->uniform;
    for (int64_t i = 0; i < n; i++) {
        const double deep = (values[i] * scale - max) / temperature;
        const double finite = uniform ? 0.0 : deep < -DBL_MAX ? -DBL_MAX : deep;
        z[i] = values[i] > -INFINITY ? finite : -INFINITY;
    }
}

/* The exact sum of weights[0..n), padded with 0 to a whole number of words. */
static Mass CANDIDATES(sum)(const double *weights, int64_t n)
{
    Mass mass = {0.0, 0.0};
    /* Carried often enough that every addition is exact: see canonical.h. */
    for (int64_t start = 0; start < n; start += BLOCK) {
        const int64_t end = n - start < BLOCK ? whole_words(n) : start + BLOCK;
        uint64_t high[LANES] = {0}, low[LANES] = {0};
        for (int64_t i = start; i < end; i += LANES)
            EACH_LANE (l)
                add_parts(&high[l], &low[l], weights[i + l]);
        mass_add_parts(&mass, high, low, end - start);
    }
    return mass;
}

/* The exact sum of w |z| of values[0..n) with these weights, both padded as for `sum`. No term is
 * above 1/e. What is so deep that exp rounds to 0 adds nothing. */
static Mass CANDIDATES(depth)(const Tempering *tempering, const double *values,
                              const double *weights, int64_t n)
{
    const double max = tempering->max, temperature = tempering->temperature;
    const double scale = tempering->scale;
    Mass depth = {0.0, 0.0};
    if (tempering->uniform)
        return depth;
    for (int64_t start = 0; start < n; start += BLOCK) {
        const int64_t end = n - start < BLOCK ? whole_words(n) : start + BLOCK;
        uint64_t high[LANES] = {0}, low[LANES] = {0};
        for (int64_t i = start; i < end; i += LANES)
            EACH_LANE (l) {
                const double z = (values[i + l] * scale - max) / temperature;
                const double deep = z > -746.0 ? -z : 746.0;
                add_parts(&high[l], &low[l], weights[i + l] * deep);
            }
        mass_add_parts(&depth, high, low, end - start);
    }
    return depth;
}

/* What of values[0..n), padded to whole words, is at or above t; weights may be NULL. */
INLINE void CANDIDATES(split_with)(const double *values, const double *weights, int64_t n, double t,
                                   Split *split, const int weighed)
{
    double least[LANES], most[LANES], count[LANES] = {0};
    split->mass.high = split->mass.low = 0.0;
    EACH_LANE (l) {
        least[l] = INFINITY;
        most[l] = -INFINITY;
    }
    for (int64_t start = 0; start < n; start += BLOCK) {
        const int64_t end = n - start < BLOCK ? whole_words(n) : start + BLOCK;
        double high[LANES] = {0}, low[LANES] = {0};
        for (int64_t i = start; i < end; i += LANES)
            EACH_LANE (l) {
                const double x = values[i + l];
                const double above = x >= t ? x : INFINITY, below = x >= t ? -INFINITY : x;
                least[l] = above < least[l] ? above : least[l];
                most[l] = below > most[l] ? below : most[l];
                count[l] += x >= t ? 1.0 : 0.0;
                if (weighed) {
                    const double w = x >= t ? weights[i + l] : 0.0, part = high_part(w);
                    high[l] += part;
                    low[l] += low_part(w, part);
                }
            }
        if (weighed) {
            mass_add(&split->mass, add_lanes(high), add_lanes(low));
        }
    }
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) {
            least[l] = least[l + half] < least[l] ? least[l + half] : least[l];
            most[l] = most[l + half] > most[l] ? most[l + half] : most[l];
            count[l] += count[l + half];
        }
    split->least = least[0];
    split->most = most[0];
    split->count = (int64_t)count[0];
}

static void CANDIDATES(split)(const double *values, const double *weights, int64_t n, double t,
                              Split *split)
{
    if (weights)
        CANDIDATES(split_with)(values, weights, n, t, split, 1);
    else
        CANDIDATES(split_with)(values, NULL, n, t, split, 0);
}

static void CANDIDATES(align)(const Row *row, uint64_t *bits) { align_mask(row, bits); }

/* ---------------------------------------------------------------------- for both element types */

#define LARGER(a, b) ((a) > (b) ? (a) : (b))
#define SMALLER(a, b) ((a) < (b) ? (a) : (b))

/* a * b + c as fast as can be, for what need not have the same bits everywhere. */
#ifdef SAMPLER_FUSED
#define MULADD_FLOAT(a, b, c) __builtin_fmaf(a, b, c)
#define MULADD_DOUBLE(a, b, c) __builtin_fma(a, b, c)
#else
#define MULADD_FLOAT(a, b, c) ((a) * (b) + (c))
#define MULADD_DOUBLE(a, b, c) ((a) * (b) + (c))
#endif

/* The same with one rounding everywhere. */
#ifdef SAMPLER_FUSED
#define FUSED(a, b, c) __builtin_fmaf(a, b, c)
#else
#define FUSED(a, b, c) fused_emulated(a, b, c)
#endif

#define REAL float
#define WORD_OF_REAL uint32_t
#define REAL_IS_FLOAT
#define LOWEST (-FLT_MAX)
#define LEAST(value, above) least_float(value, above)
#define FN FN_FLOAT
#include "load.h"
#include "kernels.h"
#include "masses.h"
#include "softmax.h"
#undef REAL
#undef WORD_OF_REAL
#undef REAL_IS_FLOAT
#undef LOWEST
#undef LEAST
#undef FN

#define REAL double
#define WORD_OF_REAL uint64_t
#define LOWEST (-DBL_MAX)
#define LEAST(value, above) least_double(value, above)
#define FN FN_DOUBLE
#include "load.h"
#include "kernels.h"
#include "masses.h"
#include "softmax.h"
#undef REAL
#undef WORD_OF_REAL
#undef LOWEST
#undef LEAST
#undef FN

#undef LARGER
#undef SMALLER
#undef MULADD_FLOAT
#undef MULADD_DOUBLE
#undef FUSED
#undef ISA
#undef CANDIDATES
#undef FN_FLOAT
#undef FN_DOUBLE
#undef SAMPLER_FUSED

/* The canonical arithmetic: the exp, the log and the sum that decide whatever the fast path does
 * not prove, and that every reported log-probability is made of.
 *
 * It gives the same bits on every machine: no libm, no fused multiply-add (the build says
 * -ffp-contract=off), IEEE double only. And the same bits for every order of summation: a weight
 * is split onto two fixed grids, on which double addition is exact as long as the sum of the
 * weights stays below 2**27, so the mass of a set of tokens is a function of that set alone. The
 * method is the binned summation of Demmel & Nguyen, "Fast reproducible floating-point
 * summation", ARITH 2013.
 */
#ifndef SAMPLER_CANONICAL_H
#define SAMPLER_CANONICAL_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "sampler promises the same bits everywhere and looks for NaN: no -ffast-math"
#endif
#if FLT_EVAL_METHOD != 0
#error "sampler needs IEEE double arithmetic without excess precision (x86: -msse2 -mfpmath=sse)"
#endif

/* For what has to be part of the loop that calls it, or the loop will not vectorise: compilers
 * tire of inlining where there are many copies. And for what must not, since its copies would crowd
 * the loops. */
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))
#elif defined(_MSC_VER)
#define INLINE static __forceinline
#define NOINLINE static __declspec(noinline)
#else
#define INLINE static inline
#define NOINLINE static
#endif

#define LANES 16

/* A loop over the lanes, which is to become a few vector instructions: gcc would unroll it first,
 * and then find no loop to vectorise. */
#if defined(__GNUC__) && !defined(__clang__)
#define EACH_LANE(l) _Pragma("GCC unroll 1") for (int l = 0; l < LANES; l++)
#else
#define EACH_LANE(l) for (int l = 0; l < LANES; l++)
#endif

/* Fixed-point grids of a mass: `high` holds multiples of 2**-26 and `low` multiples of 2**-68.
 * Adding and subtracting 1.5 * 2**(52 - g) rounds a double to a multiple of 2**-g. */
#define TO_HIGH_GRID 0x1.8p26
#define TO_LOW_GRID 0x1.8p-16

/* A tempered logit below this has a weight that rounds to zero on the low grid (exp < 2**-69). */
#define NEGLIGIBLE_DEPTH 48.0

/* The most tokens whose weights (at most 1 each) can be added without rounding. */
#define MOST_TOKENS (INT64_C(1) << 27)

typedef struct {
    double high;
    double low;
} Mass;

static const Mass NO_MASS = {0.0, 0.0};

INLINE double high_part(double weight) { return (weight + TO_HIGH_GRID) - TO_HIGH_GRID; }

/* The low part of a weight whose high part is known; weight - high is exact. */
INLINE double low_part(double weight, double high)
{
    return ((weight - high) + TO_LOW_GRID) - TO_LOW_GRID;
}

/* The same for many weights, as integers: adding a grid's constant leaves a part in the lowest
 * bits, and the sums of these wrap round. Exact, and less work than adding doubles. */
INLINE uint64_t bits_of(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE void add_parts(uint64_t *high, uint64_t *low, double weight)
{
    const double on_grid = weight + TO_HIGH_GRID;
    *high += bits_of(on_grid);
    *low += bits_of((weight - (on_grid - TO_HIGH_GRID)) + TO_LOW_GRID);
}

/* Add (high, low) and carry, so that |low| stays below one step of the high grid: exact while
 * the incoming |low| is at most 2**-16. */
static inline void mass_add(Mass *mass, double high, double low)
{
    mass->high += high;
    mass->low += low;
    const double carry = high_part(mass->low);
    mass->high += carry;
    mass->low -= carry;
}

/* Add what `add_parts` was given, n <= 512 weights, in LANES of each. */
INLINE void mass_add_parts(Mass *mass, const uint64_t *high, const uint64_t *low, int64_t n)
{
    uint64_t highs = (uint64_t)-n * bits_of(TO_HIGH_GRID),
             lows = (uint64_t)-n * bits_of(TO_LOW_GRID);
    for (int l = 0; l < LANES; l++) {
        highs += high[l];
        lows += low[l];
    }
    mass_add(mass, (double)(int64_t)highs * 0x1p-26, (double)(int64_t)lows * 0x1p-68);
}

/* The sum of LANES values, always in the same order. Written out, since compilers do not unroll a
 * loop over halves, and go through memory. */
INLINE double add_lanes(const double *lanes)
{
    double eight[8], four[4];
    for (int l = 0; l < 8; l++)
        eight[l] = lanes[l] + lanes[l + 8];
    for (int l = 0; l < 4; l++)
        four[l] = eight[l] + eight[l + 4];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* The mass as one double: a single rounding of the exact sum, hence monotone in it. */
static inline double mass_value(Mass mass) { return mass.high + mass.low; }

/* `times` copies of one weight, by doubling: exact, where a product would round. */
static inline Mass mass_times(double weight, int64_t times)
{
    Mass total = {0.0, 0.0}, power = {0.0, 0.0};
    power.high = high_part(weight);
    power.low = low_part(weight, power.high);
    for (; times > 0; times >>= 1) {
        if (times & 1)
            mass_add(&total, power.high, power.low);
        mass_add(&power, power.high, power.low);
    }
    return total;
}

/* The integer nearest to x, |x| < 2**51. */
INLINE double nearest(double x) { return (x + 0x1.8p52) - 0x1.8p52; }

/* a * b + c with one rounding, where the machine has no instruction for it: the product is exact in
 * double, and rounding the sum to odd leaves the rounding to float as it would be of the exact sum
 * (Boldo & Melquiond, "Emulation of FMA and correctly rounded sums", IEEE TC 2008). Finite floats,
 * of exponents so close that no double under- or overflows. */
INLINE float fused_emulated(float a, float b, float c)
{
    const double product = (double)a * (double)b, sum = product + (double)c;
    const double part = sum - product;
    const double error = (product - (sum - part)) + ((double)c - part);
    int64_t bits, error_bits;
    memcpy(&bits, &sum, sizeof bits);
    memcpy(&error_bits, &error, sizeof error_bits);
    /* Toward zero, then the lowest bit set; without a branch. */
    const int64_t inexact = error != 0.0 ? 1 : 0;
    const int64_t beyond = (int64_t)((uint64_t)(bits ^ error_bits) >> 63) & inexact;
    bits = (bits - beyond) | inexact;
    double odd;
    memcpy(&odd, &bits, sizeof odd);
    return (float)odd;
}

/* exp(z) for z <= 0, relative error below 2**-52, plus 2**-1075 in the subnormals; 0 for -inf.
 * z = n ln 2 + r with |r| <= ln(2)/2 and n ln2_high exact; Taylor to r**13 / 13! (its remainder
 * is below 2**-57); times 2**n in two steps, because 2**-1075 is not a double. NaN gives 0. */
INLINE double exp_canonical(double z)
{
    const double to_integer = 0x1.8p52 + 1023.0 + 128.0; /* leaves n + 1151 in the lowest bits */
    z = z > -746.0 ? z : -746.0;
    const double shifted = z * 0x1.71547652b82fep+0 + to_integer;
    const double n = shifted - to_integer;
    const double r = (z - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
    const double r2 = r * r; /* even and odd terms apart: two short chains, not one long one */
    double even = 1.0 / 479001600.0, odd = 1.0 / 6227020800.0;
    even = even * r2 + 1.0 / 3628800.0;
    odd = odd * r2 + 1.0 / 39916800.0;
    even = even * r2 + 1.0 / 40320.0;
    odd = odd * r2 + 1.0 / 362880.0;
    even = even * r2 + 1.0 / 720.0;
    odd = odd * r2 + 1.0 / 5040.0;
    even = even * r2 + 1.0 / 24.0;
    odd = odd * r2 + 1.0 / 120.0;
    even = even * r2 + 0.5;
    odd = odd * r2 + 1.0 / 6.0;
    const uint64_t bits = bits_of(shifted) << 52;
    double power;
    memcpy(&power, &bits, sizeof bits);
    /* The small terms first: 1 + (r + (r2 even + r2 r odd)). */
    return (1.0 + (r + (r2 * even + r2 * r * odd))) * power * 0x1p-128;
}

/* log(2**extra x) for positive, normal x, error below 3 ULP, without a branch: x = 2**k m with m in
 * [sqrt(1/2), sqrt(2)), and log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.1716, by its series
 * to s**21. */
INLINE double log_normal(double x, double extra)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits += UINT64_C(0x00095f619980c433); /* carries into the exponent from sqrt(2) on */
    const uint64_t exponent = (bits >> 52) + UINT64_C(0x4338000000000000); /* as 1.5 * 2**52 + */
    double k, m;
    memcpy(&k, &exponent, sizeof k);
    k = k - (0x1.8p52 + 1023.0) + extra;
    bits = (bits & UINT64_C(0x000fffffffffffff)) + UINT64_C(0x3fe6a09e667f3bcd);
    memcpy(&m, &bits, sizeof m);
    const double s = (m - 1.0) / (m + 1.0), s2 = s * s;
    double p = 1.0 / 21.0;
    p = p * s2 + 1.0 / 19.0;
    p = p * s2 + 1.0 / 17.0;
    p = p * s2 + 1.0 / 15.0;
    p = p * s2 + 1.0 / 13.0;
    p = p * s2 + 1.0 / 11.0;
    p = p * s2 + 1.0 / 9.0;
    p = p * s2 + 1.0 / 7.0;
    p = p * s2 + 1.0 / 5.0;
    p = p * s2 + 1.0 / 3.0;
    p = p * s2 * (2.0 * s) + 2.0 * s;
    return k * 0x1.62e42feep-1 + (k * 0x1.a39ef35793c76p-33 + p);
}

/* log(x) for x >= 0. */
static inline double log_canonical(double x)
{
    if (!(x > 0.0))
        return x == 0.0 ? -INFINITY : NAN;
    if (x > DBL_MAX)
        return x;
    return x >= DBL_MIN ? log_normal(x, 0.0) : log_normal(x * 0x1p54, -54.0);
}

/* How a row is tempered: z = (x - max) / temperature, halved throughout where x - max would
 * overflow (float64 logits near the largest double only). Temperature inf makes all tokens
 * equal: `uniform`. */
typedef struct {
    double max;
    double temperature;
    double scale;
    int uniform;
} Tempering;

static inline Tempering make_tempering(double max, double temperature)
{
    Tempering tempering = {max, temperature, 1.0, temperature > DBL_MAX};
    if (max >= 0x1p969) { /* below this, max - x cannot round past the largest double */
        tempering.scale = 0.5;
        tempering.max = max * 0.5;
        tempering.temperature = temperature * 0.5 > 0.0 ? temperature * 0.5 : temperature;
    }
    return tempering;
}

/* The tempered logit of one finite x. */
INLINE double tempered(const Tempering *tempering, double x)
{
    return tempering->uniform ? 0.0
                              : (x * tempering->scale - tempering->max) / tempering->temperature;
}

#endif

/* The masses of what a cut keeps, and other sums over it: with an error bound, or exact. `isa.h`
 * includes this file after `kernels.h`, with the same names defined.
 */

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

/* The sum of the weights of those of x[0..n) that are >= floor and, with bits, allowed; n a whole
 * number of words up to BLOCK. At most 7 + 1 roundings of a sum are in float32, the rest is
 * double. */
INLINE double FN(fast_sum)(const float *x, int64_t n, float max, float log2e_over_t, float floor,
                           const uint64_t *bits, const int masked)
{
    float sums[WORD] = {0}, shown[WORD];
    double mass[LANES];
    for (int64_t i = 0; i < n; i += WORD) {
        if (masked)
            FN(hide)(x + i, WORD, bits + i / WORD, shown);
        const float *part = masked ? shown : x + i;
        for (int l = 0; l < WORD; l++) {
            const float weight = FN(fast_weight)(part[l], max, log2e_over_t);
            sums[l] += part[l] >= floor ? weight : 0.0f;
        }
    }
    for (int l = 0; l < 2 * LANES; l++)
        sums[l] += sums[l + 2 * LANES];
    EACH_LANE (l)
        mass[l] = (double)sums[l] + (double)sums[l + LANES];
    return add_lanes(mass);
}

/* Adds to *moment the sum of w |z|, or with `squares` of w^2, of those of x[0..n) that are >= floor;
 * returns the sum of their weights. Their bounds: FAST_MOMENT_ERROR. */
INLINE double FN(fast_moment_of)(const float *x, int64_t n, float max, float log2e_over_t,
                                 float floor, double *moment, const int squares)
{
    float masses[WORD] = {0}, moments[WORD] = {0};
    double mass[LANES], other[LANES];
    for (int64_t i = 0; i < n; i += WORD)
        for (int l = 0; l < WORD; l++) {
            const float weight = FN(fast_weight)(x[i + l], max, log2e_over_t);
            const float w = x[i + l] >= floor ? weight : 0.0f;
            const float below = (max - x[i + l]) * log2e_over_t;
            masses[l] += w;
            /* Not by the floor again: that would branch. What is deeper weighs 0. */
            moments[l] += w * (squares ? w : below < 64.0f ? below : 64.0f);
        }
    for (int l = 0; l < 2 * LANES; l++) {
        masses[l] += masses[l + 2 * LANES];
        moments[l] += moments[l + 2 * LANES];
    }
    EACH_LANE (l) {
        mass[l] = (double)masses[l] + (double)masses[l + LANES];
        other[l] = (double)moments[l] + (double)moments[l + LANES];
    }
    *moment += add_lanes(other) * (squares ? 1.0 : 0x1.62e42fefa39efp-1); /* ln 2 */
    return add_lanes(mass);
}

/* fast_masses; returns the sum of w |z|, or with `squares` of w^2, of what the cut keeps. */
static double FN(fast_moment)(const Row *row, const Tempering *tempering, Cut cut, int squares,
                              double *masses, double *errors)
{
    const double slope = 1.4426950408889634 / tempering->temperature;
    const float max = (float)tempering->max, log2e_over_t = (float)slope;
    const float deep = least_float(tempering->max - FAST_DEPTH / slope, 0);
    double moment = 0.0;
    for (int64_t b = 0; b < blocks_in(row); b++) {
        float buffer[BLOCK], floor;
        const float *x;
        const int64_t count = FN(kept_block)(row, cut, deep, b, buffer, &x, &floor);
        const int64_t n = whole_words(count);
        masses[b] = squares ? FN(fast_moment_of)(x, n, max, log2e_over_t, floor, &moment, 1)
                    : n == BLOCK
                        ? FN(fast_moment_of)(x, BLOCK, max, log2e_over_t, floor, &moment, 0)
                        : FN(fast_moment_of)(x, n, max, log2e_over_t, floor, &moment, 0);
        errors[b] = fast_error(masses[b]);
    }
    return moment;
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
        const uint64_t *bits = NULL;
        /* AVX2 has too few registers to hide and weigh at a time. */
        const uint64_t **hidden = row->allowed && ISA != 1 ? &bits : NULL;
        const int64_t count = FN(kept_or_masked)(row, cut, deep, b, buffer, &x, &floor, hidden);
        masses[b] = bits ? FN(fast_sum)(x, whole_words(count), max, log2e_over_t, floor, bits, 1)
                    : count == BLOCK
                        ? FN(fast_sum)(x, BLOCK, max, log2e_over_t, floor, NULL, 0)
                        : FN(fast_sum)(x, whole_words(count), max, log2e_over_t, floor, NULL, 0);
        errors[b] = fast_error(masses[b]);
    }
}
#endif

/* Adds to sums, of those of x[0..n) that are >= floor, all of them if not `guarded`: how many, the
 * sum of d = x - about, and that of d^2. Their bounds: DEVIATIONS_ERROR. */
INLINE void FN(deviations_of)(const REAL *x, int64_t n, REAL about, REAL floor, const int guarded,
                              double *sums)
{
    REAL some[WORD] = {0}, first[WORD] = {0}, second[WORD] = {0};
    double lanes[3][LANES] = {{0}};
    for (int64_t i = 0; i < n; i += WORD)
        for (int l = 0; l < WORD; l++) {
            const REAL value = x[i + l];
            const REAL one = !guarded || value >= floor ? (REAL)1 : (REAL)0;
            /* Not by the floor in the same way again: that would branch. */
            const REAL d =
                guarded ? one * ((value > floor ? value : floor) - about) : value - about;
            if (guarded)
                some[l] += one;
            first[l] += d;
            second[l] += d * d;
        }
    for (int l = 0; l < WORD; l += LANES)
        EACH_LANE (k) {
            lanes[0][k] += (double)some[l + k];
            lanes[1][k] += (double)first[l + k];
            lanes[2][k] += (double)second[l + k];
        }
    sums[0] += guarded ? add_lanes(lanes[0]) : (double)n;
    sums[1] += add_lanes(lanes[1]);
    sums[2] += add_lanes(lanes[2]);
}

/* The sums of `deviations_of` of what the cut keeps, about a number near its mean. */
static void FN(deviations)(const Row *row, Cut cut, double *sums)
{
    REAL about = 0;
    sums[0] = sums[1] = sums[2] = 0.0;
    for (int64_t b = 0; b < blocks_in(row); b++) {
        REAL buffer[BLOCK], floor;
        const REAL *x;
        const int64_t count = FN(kept_block)(row, cut, LOWEST, b, buffer, &x, &floor);
        if (sums[0] ==
            0.0) { /* the first block that has any: what it holds about 0, and the mean */
            double here[3] = {0};
            FN(deviations_of)(x, whole_words(count), 0, floor, 1, here);
            about = here[0] > 0.0 ? (REAL)(here[1] / here[0]) : 0;
        }
        const double before[3] = {sums[0], sums[1], sums[2]};
        if (count == BLOCK)
            FN(deviations_of)(x, BLOCK, about, floor, 0, sums);
        if (count < BLOCK || floor > LOWEST || !(sums[2] < DBL_MAX)) {
            memcpy(sums, before, sizeof before);
            FN(deviations_of)(x, whole_words(count), about, floor, 1, sums);
        }
    }
}

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
 * row's tokens >= floors[j], j < FLOORS, all of them within the cut. With `with_depth`, returns the
 * depth of what the cut keeps: the sum of w |z|. The errors: `fine_error`, `fine_depth_error`. As
 * fast_masses, and the tempering unscaled. */
INLINE double FN(fine)(const Row *row, const Tempering *tempering, Cut cut, double *masses,
                       const double *floors, double *totals, const int with_floors,
                       const int with_depth)
{
    const double max = tempering->max, log2e_over_t = 1.4426950408889634 / tempering->temperature;
    const double deep = max - FINE_DEPTH / log2e_over_t;
    double above[FLOORS][LANES] = {{0}}, depth = 0.0;
    for (int64_t b = 0; b < blocks_in(row); b++) {
        REAL buffer[BLOCK], lowest;
        const REAL *x;
        const int64_t count = FN(kept_block)(row, cut, LEAST(deep, 0), b, buffer, &x, &lowest);
        const double floor = (double)lowest;
        double mass[LANES] = {0}, deep[LANES] = {0};
        for (int64_t i = 0; i < whole_groups(count); i += LANES)
            EACH_LANE (l) {
                const double value = (double)x[i + l];
                const double weight = FN(fine_weight)(value, max, log2e_over_t);
                const double w = value >= floor ? weight : 0.0;
                mass[l] += w;
                if (with_depth) {
                    const double below = value >= floor ? value - max : 0.0;
                    deep[l] = MULADD_DOUBLE(w, below, deep[l]);
                }
                if (with_floors)
                    for (int j = 0; j < FLOORS; j++)
                        above[j][l] += value >= floors[j] ? w : 0.0;
            }
        masses[b] = add_lanes(mass);
        if (with_depth)
            depth += add_lanes(deep);
    }
    if (with_floors)
        for (int j = 0; j < FLOORS; j++) {
            totals[j] = 0.0;
            EACH_LANE (l)
                totals[j] += above[j][l];
        }
    return -depth / tempering->temperature;
}

static void FN(fine_masses)(const Row *row, const Tempering *tempering, Cut cut, double *masses)
{
    FN(fine)(row, tempering, cut, masses, NULL, NULL, 0, 0);
}

/* fine_masses; returns the depth of what the cut keeps. */
static double FN(fine_masses_and_depth)(const Row *row, const Tempering *tempering, Cut cut,
                                        double *masses)
{
    return FN(fine)(row, tempering, cut, masses, NULL, NULL, 0, 1);
}

static void FN(fine_masses_above)(const Row *row, const Tempering *tempering, Cut cut,
                                  double *masses, const double *floors, double *totals)
{
    const double f[FLOORS] = {floors[0], floors[1]}; /* in registers */
    FN(fine)(row, tempering, cut, masses, f, totals, 1, 0);
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

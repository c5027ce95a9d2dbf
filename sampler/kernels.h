/* The loops of `loops.h`, compiled for each instruction set, and the choice between them.
 *
 * The levels are those of the x86-64 ABI, less what the loops have no use for. Elsewhere, and under
 * other compilers, the baseline is the only one. Every level gives the same bits: a lane is a lane
 * in the source, and nothing is fused (-ffp-contract=off).
 */
#ifndef SAMPLER_KERNELS_H
#define SAMPLER_KERNELS_H

#include "rows.h"

typedef struct {
    const char *name;
    const float *(*load_float)(const Row *, int64_t, int64_t, float *);
    const double *(*load_double)(const Row *, int64_t, int64_t, double *);
    int (*scan_block)(const Row *, int64_t, int64_t, double *);
    void (*group_maxima)(const Row *, int64_t, int64_t, double *);
    void (*weigh)(const Law *, const double *, int64_t, double *);
    int64_t (*read_block)(const Source *, const Law *, Cut, int64_t, const double **, double *,
                          double *);
    Mass (*block_mass)(const Source *, const Law *, Cut, int64_t);
    int64_t (*block_count)(const Source *, Cut, int64_t);
    int64_t (*gather_block)(const Source *, int64_t, double, int64_t, int64_t, double *, int64_t *);
    void (*histogram_block)(const Source *, Cut, int64_t, const double *, const double *, int64_t,
                            double, double, const Ruler *, Bin *);
    double (*fast_mass)(const float *, int64_t, float, float, float, double *);
    void (*filter_float)(const Source *, const Law *, Cut, int64_t, double, int, double, float *);
    void (*filter_double)(const Source *, const Law *, Cut, int64_t, double, int, double, double *);
} Kernels;

#define KERNELS_OF(level)                                                                          \
    {                                                                                              \
        #level, load_float_##level, load_double_##level, scan_block_##level,                       \
            group_maxima_##level, weigh_##level, read_block_##level, block_mass_##level, block_count_##level, gather_block_##level,     \
            histogram_block_##level, fast_mass_##level, filter_float_##level,                      \
            filter_double_##level                                                                  \
    }

#define FN(name) name##_baseline
#include "loops.h"
#undef FN

#if defined(__x86_64__) && defined(__GNUC__)
#define SAMPLER_LEVELS 3

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2")
#endif
#define FN(name) name##_v3
#include "loops.h"
#undef FN
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi,bmi2")
#pragma GCC target("prefer-vector-width=512")
#endif
#define FN(name) name##_v4
#include "loops.h"
#undef FN
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static const Kernels levels[SAMPLER_LEVELS] = {KERNELS_OF(baseline), KERNELS_OF(v3),
                                               KERNELS_OF(v4)};

/* Whether the machine, and its operating system, can run a level. */
static inline int level_runs(int level)
{
    __builtin_cpu_init();
    const int v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                   __builtin_cpu_supports("bmi2");
    const int v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl");
    return level == 0 || (level == 1 && v3) || (level == 2 && v4);
}

#else
#define SAMPLER_LEVELS 1
static const Kernels levels[SAMPLER_LEVELS] = {KERNELS_OF(baseline)};
static inline int level_runs(int level) { return level == 0; }
#endif

static inline const char *level_name(int level) { return levels[level].name; }

/* The level that runs: written once, at import. */
static const Kernels *kernels = levels;
static inline void choose_level(int level) { kernels = levels + level; }

/* -------------------------------------------------------------------- as the core calls them */

static inline const float *load_float(const Row *row, int64_t start, int64_t count, float *buffer)
{
    return kernels->load_float(row, start, count, buffer);
}

static inline const double *load_double(const Row *row, int64_t start, int64_t count,
                                        double *buffer)
{
    return kernels->load_double(row, start, count, buffer);
}

static inline int scan_block(const Row *row, int64_t start, int64_t count, double *tops)
{
    return kernels->scan_block(row, start, count, tops);
}

static inline void group_maxima(const Row *row, int64_t start, int64_t count, double *maxima)
{
    kernels->group_maxima(row, start, count, maxima);
}

static inline void weigh(const Law *law, const double *x, int64_t n, double *weights)
{
    kernels->weigh(law, x, n, weights);
}

static inline int64_t read_block(const Source *source, const Law *law, Cut cut, int64_t b,
                                 const double **x, double *x_buffer, double *w)
{
    return kernels->read_block(source, law, cut, b, x, x_buffer, w);
}

static inline Mass block_mass(const Source *source, const Law *law, Cut cut, int64_t b)
{
    return kernels->block_mass(source, law, cut, b);
}

static inline int64_t block_count(const Source *source, Cut cut, int64_t b)
{
    return kernels->block_count(source, cut, b);
}

static inline int64_t gather_block(const Source *source, int64_t b, double low, int64_t room,
                                   int64_t n, double *values, int64_t *ids)
{
    return kernels->gather_block(source, b, low, room, n, values, ids);
}

static inline void histogram_block(const Source *source, Cut cut, int64_t start, const double *x,
                                   const double *w, int64_t count, double min, double max,
                                   const Ruler *ruler, Bin *bins)
{
    kernels->histogram_block(source, cut, start, x, w, count, min, max, ruler, bins);
}

static inline double fast_mass(const float *x, int64_t n, float max, float log2e_over_t,
                               float floor, double *error)
{
    return kernels->fast_mass(x, n, max, log2e_over_t, floor, error);
}

static inline void filter_float(const Source *source, const Law *law, Cut cut, int64_t b,
                                double divisor, int shifted, double limit, float *out)
{
    kernels->filter_float(source, law, cut, b, divisor, shifted, limit, out);
}

static inline void filter_double(const Source *source, const Law *law, Cut cut, int64_t b,
                                 double divisor, int shifted, double limit, double *out)
{
    kernels->filter_double(source, law, cut, b, divisor, shifted, limit, out);
}

#endif

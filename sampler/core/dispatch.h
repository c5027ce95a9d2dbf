/* The kernels, compiled for each element type and instruction set, and the choice between them.
 *
 * The instruction sets are the levels of the x86-64 ABI, without what the loops do not use.
 * Elsewhere, and under other compilers, the baseline is the only one. Every instruction set gives
 * the same answers, bit for bit: a lane is a lane in the source, and nothing that is reported is
 * fused (-ffp-contract=off). The fast and the fine mass may differ between instruction sets, within
 * their bounds, since they only ever prove what the exact mass would say.
 */
#ifndef SAMPLER_DISPATCH_H
#define SAMPLER_DISPATCH_H

#include "rows.h"

#if defined(__x86_64__) || defined(_M_X64)
#define SAMPLER_X86
#include <immintrin.h>
#endif

#ifdef SAMPLER_X86
/* +inf where a bit of the index is set, -inf where not. */
#define LIMITS_OF_TWO(bits)                                                                        \
    (bits) & 1 ? INFINITY : -INFINITY, (bits) >> 1 & 1 ? INFINITY : -INFINITY
#define LIMITS_OF_FOUR(bits) {LIMITS_OF_TWO(bits), LIMITS_OF_TWO((bits) >> 2)}
_Alignas(16) static const float limits_of_four[16][4] = {
    LIMITS_OF_FOUR(0),  LIMITS_OF_FOUR(1),  LIMITS_OF_FOUR(2),  LIMITS_OF_FOUR(3),
    LIMITS_OF_FOUR(4),  LIMITS_OF_FOUR(5),  LIMITS_OF_FOUR(6),  LIMITS_OF_FOUR(7),
    LIMITS_OF_FOUR(8),  LIMITS_OF_FOUR(9),  LIMITS_OF_FOUR(10), LIMITS_OF_FOUR(11),
    LIMITS_OF_FOUR(12), LIMITS_OF_FOUR(13), LIMITS_OF_FOUR(14), LIMITS_OF_FOUR(15),
};
_Alignas(16) static const double limits_of_two[4][2] = {
    {LIMITS_OF_TWO(0)},
    {LIMITS_OF_TWO(1)},
    {LIMITS_OF_TWO(2)},
    {LIMITS_OF_TWO(3)},
};
#endif

/* The kernels for rows of one element type; each is described where it is defined. */
struct Kernels {
    int64_t (*scan)(const Row *, void *);
    double (*top)(const Row *);
    double (*bound)(const Row *, int64_t, void *);
    int64_t (*gather)(const Row *, double, double, int64_t, double *, int64_t *);
    int64_t (*find)(const Row *, double, int64_t);
    double (*at)(const Row *, int64_t);
    void (*look_up)(const Row *, const int64_t *, int64_t, double *);
    int64_t (*pick)(const Row *, int64_t, int64_t, double, double, double *);
    int64_t (*count)(const Row *, Cut);
    void (*counts)(const Row *, const double *, int64_t *);
    void (*fast_masses)(const Row *, const Tempering *, Cut, double *, double *);
    double (*fast_moment)(const Row *, const Tempering *, Cut, int, double *, double *);
    void (*deviations)(const Row *, Cut, double *);
    void (*fine_masses)(const Row *, const Tempering *, Cut, double *);
    double (*fine_masses_and_depth)(const Row *, const Tempering *, Cut, double *);
    void (*fine_masses_above)(const Row *, const Tempering *, Cut, double *, const double *,
                              double *);
    Mass (*exact_mass)(const Row *, const Tempering *, Cut, Mass *);
    void (*fine_masses_of_two)(const Row *, const Tempering *, const Tempering *, double *);
    int64_t (*read)(const Row *, const Tempering *, Cut, int64_t, double *, double *);
    void (*filter)(const Row *, const Tempering *, Cut, double, int, double, void *);
    void (*softmax)(const Row *, ptrdiff_t, int64_t, const double *, ptrdiff_t, int, char *,
                    ptrdiff_t);
};

/* All kernels of one instruction set. */
typedef struct {
    const char *name;
    Kernels of_float;
    Kernels of_double;
    void (*weigh)(const Tempering *, const double *, int64_t, double *);
    void (*temper)(const Tempering *, const double *, int64_t, double *);
    Mass (*sum)(const double *, int64_t);
    Mass (*depth)(const Tempering *, const double *, const double *, int64_t);
    void (*split)(const double *, const double *, int64_t, double, Split *);
    void (*align)(const Row *, uint64_t *);
} Isa;

#define KERNELS(type, fast, moments)                                                               \
    {                                                                                              \
        scan_##type, top_##type, bound_##type, gather_##type, find_##type, at_##type,              \
            look_up_##type, pick_##type, count_##type, counts_##type, fast, moments, deviations_##type, fine_masses_##type,         \
            fine_masses_and_depth_##type, fine_masses_above_##type, exact_mass_##type,             \
            fine_masses_of_two_##type, read_##type, filter_##type, softmax_##type                  \
    }

#define ISA_OF(name)                                                                               \
    {                                                                                              \
        #name, KERNELS(float_##name, fast_masses_float_##name, fast_moment_float_##name),         \
            KERNELS(double_##name, NULL, NULL),                                                    \
            weigh_##name, temper_##name, sum_##name, depth_##name, split_##name, align_##name                     \
    }

/* Both element types of an instruction set: SAMPLER_FUSED where it has a fused multiply-add. */
#define ISA 0
#define CANDIDATES(name) name##_baseline
#if defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF)
#define SAMPLER_FUSED
#endif
#define FN_FLOAT(name) name##_float_baseline
#define FN_DOUBLE(name) name##_double_baseline
#include "isa.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define SAMPLER_ISAS 3

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,f16c,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,f16c,fma")
#endif
#define ISA 1
#define CANDIDATES(name) name##_v3
#define SAMPLER_FUSED
#define FN_FLOAT(name) name##_float_v3
#define FN_DOUBLE(name) name##_double_v3
#include "isa.h"

#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi,bmi2,f16c,fma"))), \
    apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi,bmi2,f16c,fma")
#pragma GCC target("prefer-vector-width=512")
#endif
#define ISA 2
#define CANDIDATES(name) name##_v4
#define SAMPLER_FUSED
#define FN_FLOAT(name) name##_float_v4
#define FN_DOUBLE(name) name##_double_v4
#include "isa.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static const Isa isas[SAMPLER_ISAS] = {ISA_OF(baseline), ISA_OF(v3), ISA_OF(v4)};

/* Whether the machine and its operating system can run instruction set `number`. */
static inline int isa_runs(int number)
{
    __builtin_cpu_init();
    /* F16C has no name in some compilers; whatever has AVX2 has it. */
    const int v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                   __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
    const int v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl");
    return number == 0 || (number == 1 && v3) || (number == 2 && v4);
}

#else
#define SAMPLER_ISAS 1
static const Isa isas[SAMPLER_ISAS] = {ISA_OF(baseline)};
static inline int isa_runs(int number) { return number == 0; }
#endif

static inline const char *isa_name(int number) { return isas[number].name; }

/* The instruction set that runs: written once, at import. */
static const Isa *isa = isas;
static inline void set_isa(int number) { isa = isas + number; }

static inline Row make_row(const char *data, ptrdiff_t stride, int64_t n, int kind, int swapped)
{
    Row row = {data, stride, n, kind, swapped, 0, 0, BLOCK, NULL, NULL, NULL, NULL};
    const ptrdiff_t size = kind == FLOAT64 ? 8 : kind == FLOAT32 ? 4 : 2;
    row.direct = !swapped && stride == size && (uintptr_t)data % (uintptr_t)size == 0;
    row.in_place = row.direct && kind >= FLOAT32;
    row.kernels = kind == FLOAT64 ? &isa->of_double : &isa->of_float;
    if (row.direct && n > 4 * BLOCK && (uintptr_t)data % 64 != 0)
        row.lead = (int64_t)(64 - (uintptr_t)data % 64) / size;
    return row;
}

/* Let a row be read with edits. */
static inline void edit_row(Row *row, const Edits *edits)
{
    row->edits = edits;
    row->in_place = 0;
}

/* The compiler and its version. */
#if defined(__clang__)
#define SAMPLER_COMPILER __VERSION__
#elif defined(__GNUC__)
#define SAMPLER_COMPILER "gcc " __VERSION__
#elif defined(_MSC_VER)
#define SAMPLER_TEXT(x) #x
#define SAMPLER_VALUE(x) SAMPLER_TEXT(x)
#define SAMPLER_COMPILER "MSVC " SAMPLER_VALUE(_MSC_VER)
#else
#define SAMPLER_COMPILER "unknown"
#endif

#endif

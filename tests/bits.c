/* What the kernels make of random rows, as a hash for each instruction set: the same on every
 * machine, by every compiler. test_bits.py compiles this with whatever compilers there are and
 * compares. Where a mass is further from the exact one than its bound says, it prints that, too. */
#include "dispatch.h"

#include <stdio.h>
#include <stdlib.h>

static uint64_t hash, state;

static void add(const void *data, size_t size)
{
    const unsigned char *bytes = data;
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ bytes[i]) * UINT64_C(1099511628211); /* FNV-1a */
}

static double uniform(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double)(state >> 11) * 0x1p-53;
}

/* x in a kind, as bits, rounded toward zero. */
static uint64_t bits_in(int kind, double x)
{
    if (kind == FLOAT64)
        return bits_of(x);
    const float single = (float)x;
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    if (kind != FLOAT16)
        return kind == FLOAT32 ? bits : bits >> 16;
    const int exponent = (int)(bits >> 23 & 255) - 112;
    const uint32_t sign = bits >> 16 & 0x8000;
    if (exponent <= 0 || exponent >= 31)
        return exponent <= 0 ? sign : sign | 0x7c00;
    return sign | (uint32_t)exponent << 10 | (bits >> 13 & 0x3ff);
}

/* Memory for n values of up to 8 bytes and some padding, the same address modulo 64 everywhere. */
static void *room(int64_t n) { return aligned_alloc(64, (size_t)(n * 8 + 4096 + 63) / 64 * 64); }

static void check(const char *what, const double *masses, const double *errors, const Row *row,
                  double exact)
{
    double mass = 0.0, error = 0.0;
    for (int64_t b = 0; b < blocks_in(row); b++) {
        mass += masses[b];
        error += errors ? errors[b] : masses[b] * FINE_WEIGHT_ERROR + BLOCK * FINE_FLOOR_ERROR;
    }
    if (!(fabs(mass - exact) <= error + 1e-12 * mass))
        printf("%s: %.17g is further than %.3g from %.17g\n", what, mass, error, exact);
}

static void work(int kind, int round)
{
    const int64_t n = 1 + (int64_t)(uniform() * (round % 3 ? 3000 : 40000));
    const int size = kind == FLOAT64 ? 8 : kind == FLOAT32 ? 4 : 2;
    const int stride = round % 4 == 1 ? 3 * size : size, swapped = round % 5 == 2;
    char *memory = room(3 * n), *data = memory + (int)(uniform() * 16) * size;
    void *maxima = room(n), *folded = room(n), *out = room(n);
    double *values = room(n), *weights = room(n), *masses = room(n), *errors = room(n);
    int64_t *ids = room(n);
    for (int64_t i = 0; i < n; i++) {
        double x = (uniform() + uniform() + uniform() - 1.5) * 8.0;
        x = uniform() < 0.05 ? -INFINITY : round % 7 == 0 ? floor(x) : x;
        const uint64_t bits = bits_in(kind, x);
        for (int k = 0; k < size; k++)
            data[i * stride + (swapped ? size - 1 - k : k)] = (char)(bits >> (8 * k) & 255);
    }
    Row row = make_row(data, stride, n, kind, swapped);
    row.kernels->scan(&row, maxima);
    row.maxima = maxima;
    const double top = row.kernels->top(&row);
    add(&top, sizeof top);
    if (top > -INFINITY && top < INFINITY) {
        const Tempering tempering = make_tempering(top, 0.3 + 2.0 * uniform());
        const Cut all = {-INFINITY, -1};
        const double bound = row.kernels->bound(&row, 20, folded);
        const double low = bound > -INFINITY ? bound : -DBL_MAX;
        const int64_t found = row.kernels->gather(&row, low, INFINITY, n, values, ids);
        for (int64_t i = found; i < whole_words(found); i++)
            values[i] = -INFINITY;
        isa->weigh(&tempering, values, whole_words(found), weights);
        Split split;
        isa->split(values, weights, found, top - 1.0, &split);
        const Mass sum = isa->sum(weights, found);
        add(&bound, sizeof bound);
        add(values, (size_t)found * sizeof *values);
        add(ids, (size_t)found * sizeof *ids);
        add(weights, (size_t)found * sizeof *weights);
        add(&split, sizeof split);
        add(&sum, sizeof sum);

        const Cut cut = {values[found / 2], ids[found / 2]};
        const int64_t count = row.kernels->count(&row, cut);
        const Mass kept = row.kernels->exact_mass(&row, &tempering, cut, NULL);
        row.kernels->filter(&row, &tempering, cut, tempering.temperature, 0, 3e38, out);
        add(&count, sizeof count);
        add(&kept, sizeof kept);
        add(out, (size_t)n * (kind == FLOAT64 ? 8 : 4));

        for (int what = SOFTMAX; what <= LOGSUMEXP; what++) {
            row.kernels->softmax(&row, 0, 1, &tempering.temperature, 0, what, out, 0);
            add(out, (size_t)(what == LOGSUMEXP ? 1 : n) * (kind == FLOAT64 ? 8 : 4));
        }

        const Mass mass = row.kernels->exact_mass(&row, &tempering, all, NULL);
        add(&mass, sizeof mass);
        if (row.kernels->fast_masses) {
            row.kernels->fast_masses(&row, &tempering, all, masses, errors);
            check("fast", masses, errors, &row, mass_value(mass));
        }
        row.kernels->fine_masses(&row, &tempering, all, masses);
        check("fine", masses, NULL, &row, mass_value(mass));
    }
    void *all[] = {memory, maxima, folded, out, values, weights, masses, errors, ids};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

int main(void)
{
    for (int number = 0; number < SAMPLER_ISAS; number++) {
        if (!isa_runs(number))
            continue;
        set_isa(number);
        hash = UINT64_C(14695981039346656037);
        state = UINT64_C(88172645463325252);
        for (int kind = FLOAT16; kind <= FLOAT64; kind++)
            for (int round = 0; round < 100; round++)
                work(kind, round);
        printf("%s %016llx\n", isa_name(number), (unsigned long long)hash);
    }
    return 0;
}

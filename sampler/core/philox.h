/* Philox4x64-10: one uniform in [0, 1) for every (seed, stream, step, draw, lane).
 *
 * The generator is counter-based (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy
 * as 1, 2, 3", SC 2011): a block of four words is a pure function of a 128-bit key and a 256-bit
 * counter, so a draw can be addressed instead of reached. Bit for bit it is NumPy's
 *
 *     Generator(Philox(key=seed | stream << 64,
 *                      counter=step | draw << 64 | lane << 128)).random()
 *
 * which increments the counter before it produces its first block.
 */
#ifndef SAMPLER_PHILOX_H
#define SAMPLER_PHILOX_H

#include <stdint.h>
#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif

/* High word of a * b; the low word is returned through `low`. */
static inline uint64_t philox_mulhilo(uint64_t a, uint64_t b, uint64_t *low)
{
#if defined(__SIZEOF_INT128__)
    const unsigned __int128 product = (unsigned __int128)a * b;
    *low = (uint64_t)product;
    return (uint64_t)(product >> 64);
#elif defined(_MSC_VER) && defined(_M_X64)
    uint64_t high;
    *low = _umul128(a, b, &high);
    return high;
#else
    const uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    const uint64_t p00 = a0 * b0, p01 = a0 * b1, p10 = a1 * b0, p11 = a1 * b1;
    const uint64_t middle = (p00 >> 32) + (uint32_t)p01 + (uint32_t)p10;
    *low = (middle << 32) | (uint32_t)p00;
    return p11 + (p01 >> 32) + (p10 >> 32) + (middle >> 32);
#endif
}

/* The uniform of one address: the top 53 bits of the first word of block `counter + 1`. */
static inline double philox_uniform(uint64_t seed, uint64_t stream, uint64_t step, uint64_t draw,
                                    uint64_t lane)
{
    uint64_t c0 = step + 1;
    uint64_t c1 = draw + (c0 == 0);
    uint64_t c2 = lane + (c0 == 0 && c1 == 0);
    uint64_t c3 = (c0 == 0 && c1 == 0 && c2 == 0);
    uint64_t k0 = seed, k1 = stream;

    for (int round = 0; round < 10; round++) {
        uint64_t low0, low1;
        const uint64_t high0 = philox_mulhilo(UINT64_C(0xD2E7470EE14C6C93), c0, &low0);
        const uint64_t high1 = philox_mulhilo(UINT64_C(0xCA5A826395121157), c2, &low1);
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += UINT64_C(0x9E3779B97F4A7C15); /* the golden ratio */
        k1 += UINT64_C(0xBB67AE8584CAA73B); /* sqrt(3) - 1 */
    }
    return (double)(c0 >> 11) * 0x1p-53;
}

#endif

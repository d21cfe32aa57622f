/* Counter-based random numbers: value = f(seed, counter), no state to carry (splitmix64's finaliser, Steele et al. 2014). */
#ifndef NB_BASE_RNG_H
#define NB_BASE_RNG_H

#include <stdint.h>

static inline uint64_t nbi_rng(uint64_t seed, uint64_t counter)
{
    uint64_t z = seed * 0xd1342543de82ef95u + (counter + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
/* Uniform in [0, 2^24). */
static inline uint32_t nbi_rng_24(uint64_t seed, uint64_t counter)
{
    return (uint32_t)(nbi_rng(seed, counter) >> 40);
}
/* Uniform in [0, 1), 24 bits: exact in fp32. */
static inline float nbi_rng_uniform(uint64_t seed, uint64_t counter)
{
    return (float)nbi_rng_24(seed, counter) * 0x1p-24f;
}

#endif

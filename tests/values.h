/* Numbers for tests of compute: noise, and comparison of bits. */
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

extern "C" {
#include "base/rng.h"
}

namespace
{

[[maybe_unused]] constexpr double U = 0x1p-24; /* half an ulp of 1: the relative error of one rounding */

/* Roughly normal, with a heavy element now and then, as activations have. */
inline std::vector<float> noise(size_t n, uint64_t seed, float size = 1)
{
    std::vector<float> v(n);
    for (size_t i = 0; i < n; i++) {
        float s = -2;
        for (uint64_t j = 0; j < 4; j++)
            s += nbi_rng_uniform(seed, 4 * i + j);
        v[i] = s * size * (nbi_rng(seed + 1, i) % 97 == 0 ? 20.0f : 1.0f);
    }
    return v;
}

/* Equal bits; two NaNs are equal whatever their payload. */
inline ::testing::AssertionResult same_bits(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, 4) != 0 && !(std::isnan(a[i]) && std::isnan(b[i])))
            return ::testing::AssertionFailure() << "element " << i << " of " << n << ": " << a[i] << " and " << b[i];
    return ::testing::AssertionSuccess();
}

} // namespace

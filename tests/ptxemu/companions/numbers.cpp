#include "companions/numbers.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "isa/softfloat.h"

namespace ptxemu::companions
{
namespace
{

template <class T>
T get(const void *p)
{
    T v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class T, class V>
void put(void *p, V value)
{
    T v = T(value);
    memcpy(p, &v, sizeof v);
}

double clamped(double v, double low, double high)
{
    v = std::nearbyint(v); /* the default rounding mode: ties to even */
    return v != v ? 0 : v < low ? low : v > high ? high : v;
}

} // namespace

size_t number_bytes(Number t)
{
    static const uint8_t bytes[] = {1, 1, 4, 4, 8, 8, 2, 2, 4, 8};
    return bytes[size_t(t)];
}

bool is_integer(Number t)
{
    return t < Number::f16;
}

double load_float(Number t, const void *p)
{
    switch (t) {
    case Number::f16:
        return widen(F16, get<uint16_t>(p));
    case Number::bf16:
        return widen(BF16, get<uint16_t>(p));
    case Number::f32:
        return get<float>(p);
    case Number::f64:
        return get<double>(p);
    case Number::u64:
        return double(get<uint64_t>(p));
    default:
        return double(load_integer(t, p));
    }
}

void store_float(Number t, void *p, double v)
{
    switch (t) {
    case Number::f16:
        return put<uint16_t>(p, narrow(F16, v, Round::rn));
    case Number::bf16:
        return put<uint16_t>(p, narrow(BF16, v, Round::rn));
    case Number::f32:
        return put<float>(p, v);
    case Number::f64:
        return put<double>(p, v);
    case Number::s8:
        return put<int8_t>(p, clamped(v, -128, 127));
    case Number::u8:
        return put<uint8_t>(p, clamped(v, 0, 255));
    case Number::s32:
        return put<int32_t>(p, clamped(v, INT32_MIN, INT32_MAX));
    case Number::u32:
        return put<uint32_t>(p, clamped(v, 0, UINT32_MAX));
    case Number::s64: /* the largest doubles below 2^63 and 2^64 */
        return put<int64_t>(p, clamped(v, -0x1p63, 0x1.fffffffffffffp62));
    case Number::u64:
        return put<uint64_t>(p, clamped(v, 0, 0x1.fffffffffffffp63));
    }
}

int64_t load_integer(Number t, const void *p)
{
    switch (t) {
    case Number::s8:
        return get<int8_t>(p);
    case Number::u8:
        return get<uint8_t>(p);
    case Number::s32:
        return get<int32_t>(p);
    case Number::u32:
        return get<uint32_t>(p);
    default:
        return get<int64_t>(p);
    }
}

void store_integer(Number t, void *p, int64_t v)
{
    memcpy(p, &v, number_bytes(t)); /* little endian: the low bytes */
}

namespace
{

int64_t reduce_integers(Number t, Reduction r, const uint8_t *const *terms, size_t n)
{
    const bool wide_unsigned = t == Number::u64;
    int64_t v = load_integer(t, terms[0]);
    for (size_t i = 1; i < n; i++) {
        int64_t x = load_integer(t, terms[i]);
        bool less = wide_unsigned ? uint64_t(x) < uint64_t(v) : x < v;
        switch (r) {
        case Reduction::sum:
        case Reduction::average:
            v = int64_t(uint64_t(v) + uint64_t(x));
            break;
        case Reduction::product:
            v = int64_t(uint64_t(v) * uint64_t(x));
            break;
        case Reduction::max:
            v = less ? v : x;
            break;
        case Reduction::min:
            v = less ? x : v;
            break;
        }
    }
    if (r == Reduction::average)
        v = wide_unsigned ? int64_t(uint64_t(v) / n) : v / int64_t(n);
    return v;
}

double reduce_floats(Number t, Reduction r, const uint8_t *const *terms, size_t n)
{
    double v = load_float(t, terms[0]);
    for (size_t i = 1; i < n; i++) {
        double x = load_float(t, terms[i]);
        v = r == Reduction::max       ? std::fmax(v, x)
            : r == Reduction::min     ? std::fmin(v, x)
            : r == Reduction::product ? v * x
                                      : v + x;
    }
    return r == Reduction::average ? v / double(n) : v;
}

} // namespace

void reduce(Number t, Reduction r, const uint8_t *const *terms, size_t n, uint8_t *out)
{
    if (is_integer(t))
        store_integer(t, out, reduce_integers(t, r, terms, n));
    else
        store_float(t, out, reduce_floats(t, r, terms, n));
}

} // namespace ptxemu::companions

/* For the tests of floating point: values to try, exact arithmetic to compare with, and a comparison that says what differs.
 *
 * The expected results come from integer arithmetic alone (class Exact and round_to), which has nothing in common with the way
 * in which the emulator computes. */
#ifndef PTXEMU_TEST_FLOAT_VALUES_H
#define PTXEMU_TEST_FLOAT_VALUES_H

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "test/emu.h"

namespace emu
{

template <class To, class From>
inline To as(From from)
{
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

/* A format's widths; `finite` formats (e4m3) have no infinity and one NaN. */
struct Format {
    int exponent_bits, mantissa_bits;
    bool finite = false;
    int bias() const { return (1 << (exponent_bits - 1)) - 1; }
    uint64_t sign() const { return 1ull << (exponent_bits + mantissa_bits); }
    uint64_t infinity() const { return ((1ull << exponent_bits) - 1) << mantissa_bits; }
    uint64_t nan() const { return sign() - 1; }
    uint64_t max() const { return finite ? nan() - 1 : infinity() - 1; }
    bool is_nan(uint64_t b) const { return finite ? (b & nan()) == nan() : (b & nan()) > infinity(); }
    bool is_infinity(uint64_t b) const { return !finite && (b & nan()) == infinity(); }
};
constexpr Format f16{5, 10}, bf16{8, 7}, tf32{8, 10}, f32{8, 23}, f64{11, 52}, e4m3{4, 3, true}, e5m2{5, 2};

/* A number as sign, integer and exponent, exactly.  128 bits hold every product of two f64; sums whose operands lie further apart
 * keep a last bit that says that something follows, which is all that rounding needs. */
struct Exact {
    bool negative = false;
    unsigned __int128 m = 0;
    int e = 0;
};

inline Exact exact(const Format &f, uint64_t bits) /* of a finite number */
{
    Exact x;
    x.negative = bits & f.sign();
    uint64_t magnitude = bits & (f.sign() - 1);
    int field = int(magnitude >> f.mantissa_bits);
    x.m = magnitude & ((1ull << f.mantissa_bits) - 1);
    if (field)
        x.m |= 1ull << f.mantissa_bits;
    x.e = (field ? field : 1) - f.bias() - f.mantissa_bits;
    return x;
}
inline Exact times(Exact a, Exact b)
{
    return {a.negative != b.negative, a.m * b.m, a.e + b.e};
}
inline int width(unsigned __int128 m)
{
    int n = 0;
    for (; m; m >>= 1)
        n++;
    return n;
}
/* Of a zero sum of opposite signs the sign is the rounding mode's business: `zero_negative`. */
inline Exact plus(Exact a, Exact b, bool zero_negative)
{
    if (!a.m || !b.m) {
        Exact r = a.m ? a : b;
        if (!a.m && !b.m)
            r.negative = a.negative == b.negative ? a.negative : zero_negative;
        return r;
    }
    if (a.e + width(a.m) < b.e + width(b.m))
        std::swap(a, b); /* a leads */
    int room = 125 - width(a.m);
    a.m <<= room;
    a.e -= room;
    int down = a.e - b.e;
    if (down <= 0) {
        b.m <<= -down; /* cannot overflow: b does not lead */
    } else {
        bool lost = down > 126 ? b.m != 0 : (b.m >> down) << down != b.m;
        b.m = down > 126 ? 0 : b.m >> down;
        /* Two more bits, so that the mark is below everything that matters. */
        a.m <<= 1, b.m <<= 1, a.e--;
        b.m |= lost;
    }
    Exact r{a.negative, a.m, a.e};
    if (a.negative == b.negative) {
        r.m += b.m;
    } else {
        r.negative = a.m >= b.m ? a.negative : b.negative;
        r.m = a.m >= b.m ? a.m - b.m : b.m - a.m;
    }
    if (!r.m)
        r.negative = zero_negative;
    return r;
}

/* The bits of `x` in a format.  mode: 'n' nearest even, 'z' to zero, 'm' down, 'p' up, 'a' nearest, ties away. */
inline uint64_t round_to(const Format &f, Exact x, char mode, bool satfinite = false)
{
    uint64_t sign = x.negative ? f.sign() : 0;
    if (!x.m)
        return sign;
    int lowest = 1 - f.bias() - f.mantissa_bits; /* exponent of the last bit of the smallest numbers */
    int last = std::max(x.e + width(x.m) - 1 - f.mantissa_bits, lowest);
    unsigned __int128 kept, twice_rest = 0; /* rest in units of half the last bit: 0, 1 (less), 2 (half), 3 (more) */
    int drop = last - x.e;
    if (drop <= 0) {
        kept = x.m << -drop;
    } else if (drop >= 128) {
        kept = 0, twice_rest = 1;
    } else {
        kept = x.m >> drop;
        unsigned __int128 rest = x.m - (kept << drop), half = (unsigned __int128)1 << (drop - 1);
        twice_rest = rest == 0 ? 0 : rest < half ? 1 : rest == half ? 2 : 3;
    }
    bool up = false;
    if (mode == 'n')
        up = twice_rest == 3 || (twice_rest == 2 && (kept & 1));
    else if (mode == 'a')
        up = twice_rest >= 2;
    else if (mode != 'z')
        up = twice_rest && (mode == 'm') == x.negative;
    kept += up;
    if (kept >> (f.mantissa_bits + 1)) {
        kept >>= 1;
        last++;
    }
    bool normal = kept >> f.mantissa_bits & 1;
    int field = normal ? last - lowest + 1 : 0;
    uint64_t bits = field >= (1 << f.exponent_bits)
                        ? ~0ull
                        : uint64_t(field) << f.mantissa_bits | (uint64_t(kept) & ((1ull << f.mantissa_bits) - 1));
    if (bits > f.max()) {
        bool to_infinity = mode == 'n' || mode == 'a' || (mode == 'm' && x.negative) || (mode == 'p' && !x.negative);
        bits = satfinite || !to_infinity ? f.max() : f.finite ? f.nan() : f.infinity();
    }
    return sign | bits;
}

/* Special results of a * b + c by IEEE 754, or -1: none of the operands is special.  NaN: the format's canonical one. */
inline bool special_fma(const Format &f, uint64_t a, uint64_t b, uint64_t c, uint64_t *r)
{
    const uint64_t s = f.sign();
    if (f.is_nan(a) || f.is_nan(b) || f.is_nan(c)) {
        *r = f.nan();
        return true;
    }
    bool a_zero = !(a & ~s), b_zero = !(b & ~s), product_inf = f.is_infinity(a) || f.is_infinity(b);
    uint64_t product_sign = (a ^ b) & s;
    if (product_inf && (a_zero || b_zero || (f.is_infinity(c) && (c & s) != product_sign)))
        *r = f.nan();
    else if (product_inf)
        *r = product_sign | f.infinity();
    else if (f.is_infinity(c))
        *r = c;
    else
        return false;
    return true;
}
inline uint64_t fma_bits(const Format &f, uint64_t a, uint64_t b, uint64_t c, char mode)
{
    uint64_t r;
    if (special_fma(f, a, b, c, &r))
        return r;
    return round_to(f, plus(times(exact(f, a), exact(f, b)), exact(f, c), mode == 'm'), mode);
}
inline uint64_t one(const Format &f)
{
    return uint64_t(f.bias()) << f.mantissa_bits;
}
inline uint64_t add_bits(const Format &f, uint64_t a, uint64_t b, char mode)
{
    return fma_bits(f, a, one(f), b, mode);
}
inline uint64_t mul_bits(const Format &f, uint64_t a, uint64_t b, char mode)
{
    /* A product's zero keeps its sign: the zero that is added has the same. */
    return fma_bits(f, a, b, (a ^ b) & f.sign(), mode);
}

/* .ftz and .sat on bits */
inline uint64_t flushed(const Format &f, uint64_t b)
{
    return (b & f.infinity()) ? b : b & f.sign();
}
inline uint64_t saturated(const Format &f, uint64_t b)
{
    if (f.is_nan(b) || (b & f.sign()))
        return 0;
    return std::min(b, one(f));
}

/* ---- values ---- */
/* Zeros, denormals, powers of two around 1 and the limits, ties, NaNs of several payloads; of both signs. */
template <class U>
std::vector<U> edge_values(const Format &f)
{
    const uint64_t hidden = 1ull << f.mantissa_bits, inf = f.infinity(), one_ = one(f);
    std::vector<uint64_t> v = {0,
                               1,
                               2,
                               3,
                               hidden / 2,
                               hidden - 1,
                               hidden,
                               hidden + 1,
                               2 * hidden,
                               one_ - 1,
                               one_,
                               one_ + 1,
                               one_ + hidden / 2,
                               one_ + hidden,
                               one_ + 2 * hidden,
                               one_ - hidden,
                               inf - 1,
                               inf - 2,
                               inf - hidden,
                               inf - hidden - 1,
                               inf};
    v.insert(v.end(), {inf + 1, inf + hidden / 2, inf + hidden / 2 + 1, f.nan()});
    for (int k = 3; k <= f.mantissa_bits + 2; k += 4) { /* sums with these are ties */
        v.push_back(one_ - uint64_t(k) * hidden);
        v.push_back(one_ + uint64_t(std::min(k, f.bias() - 1)) * hidden + 1);
    }
    std::vector<U> out;
    for (uint64_t b : v) {
        out.push_back(U(b));
        out.push_back(U(b | f.sign()));
    }
    return out;
}

/* Random bits; two out of three have exponents close to each other, so that sums do not just return an operand. */
template <class U>
std::vector<U> random_values(const Format &f, size_t n, unsigned seed)
{
    std::mt19937_64 r(seed);
    std::vector<U> v(n);
    const uint64_t low = (1ull << f.mantissa_bits) - 1;
    for (U &x : v) {
        uint64_t bits = r();
        if (r() % 3)
            bits = (bits & (f.sign() | low)) | uint64_t(f.bias() - 3 + int(r() % 7)) << f.mantissa_bits;
        if (r() % 4 == 0)
            bits &= ~(low >> (r() % 2 ? 3 : f.mantissa_bits / 2)); /* few bits: exact results and ties */
        x = U(bits & (f.sign() | f.nan()));
    }
    return v;
}

/* Every pair of the edge values, then random pairs. */
template <class U>
void pairs(const Format &f, std::vector<U> *a, std::vector<U> *b, size_t random = 4096)
{
    const std::vector<U> edges = edge_values<U>(f);
    for (U x : edges)
        for (U y : edges) {
            a->push_back(x);
            b->push_back(y);
        }
    const std::vector<U> x = random_values<U>(f, random, 1), y = random_values<U>(f, random, 2);
    a->insert(a->end(), x.begin(), x.end());
    b->insert(b->end(), y.begin(), y.end());
}
/* Triples: every pair with a third that often cancels or ties. */
template <class U>
void triples(const Format &f, std::vector<U> *a, std::vector<U> *b, std::vector<U> *c, size_t random = 4096)
{
    pairs<U>(f, a, b, random);
    const std::vector<U> edges = edge_values<U>(f);
    std::mt19937_64 r(3);
    for (size_t i = 0; i < a->size(); i++) {
        uint64_t product = mul_bits(f, (*a)[i], (*b)[i], 'n');
        switch (r() % 4) {
        case 0:
            c->push_back(U(product ^ f.sign())); /* what the product's rounding lost remains */
            break;
        case 1:
            c->push_back(U(product ^ f.sign() ^ (r() % 4)));
            break;
        case 2:
            c->push_back(edges[r() % edges.size()]);
            break;
        default:
            c->push_back(random_values<U>(f, 1, unsigned(r()))[0]);
        }
    }
}

inline std::string format_hex(uint64_t v)
{
    char s[32];
    snprintf(s, sizeof(s), "%#llx", static_cast<unsigned long long>(v));
    return s;
}

/* Compares `got` with expected(i) for each i and reports the first few differences with their operands. */
template <class D, class F, class... In>
void expect_each(const std::string &statement, const std::vector<D> &got, F expected, const std::vector<In> &...in)
{
    const size_t sizes[] = {in.size()...};
    ASSERT_EQ(sizes[0], got.size()) << statement;
    unsigned wrong = 0;
    for (size_t i = 0; i < got.size(); i++) {
        const D want = D(expected(i));
        if (want == got[i] || ++wrong > 5)
            continue;
        std::string operands;
        ((operands += " " + format_hex(uint64_t(in[i]))), ...);
        ADD_FAILURE() << statement << " of" << operands << " gives " << format_hex(got[i]) << ", expected "
                      << format_hex(want);
    }
    EXPECT_EQ(0u, wrong) << statement << ": results that differ, of " << got.size();
}

} // namespace emu

#endif

/* For the tests of matrix instructions: elements as bits, and where the PTX ISA's tables put them in the registers of a
 * warp. */
#ifndef PTXEMU_TEST_MATRICES_H
#define PTXEMU_TEST_MATRICES_H

#include <cmath>
#include <random>

#include "test/emu.h"

namespace matrices
{

constexpr unsigned WARP = 32;

inline unsigned bits_of(const std::string &type)
{
    if (type == "tf32")
        return 32;
    return type == "bf16" ? 16 : type[0] == 'e' ? 8 : unsigned(std::stoi(type.substr(1)));
}

/* ---- numbers and their bits ---- */

/* The bits of x, which the format holds exactly: exponent and mantissa bits as given. */
inline uint64_t small_float(double x, int exponent_bits, int mantissa_bits)
{
    if (x == 0)
        return 0;
    int e;
    double f = std::frexp(std::fabs(x), &e); /* [0.5, 1) */
    uint64_t mantissa = uint64_t(std::ldexp(f, mantissa_bits + 1)) - (uint64_t(1) << mantissa_bits);
    uint64_t exponent = uint64_t(e - 1 + (1 << (exponent_bits - 1)) - 1);
    uint64_t sign = uint64_t(x < 0) << (exponent_bits + mantissa_bits);
    return sign | exponent << mantissa_bits | mantissa;
}

inline uint64_t encode(const std::string &type, double x)
{
    if (type == "f16")
        return small_float(x, 5, 10);
    if (type == "bf16")
        return small_float(x, 8, 7);
    if (type == "f32" || type == "tf32")
        return small_float(x, 8, 23);
    if (type == "f64")
        return small_float(x, 11, 52);
    if (type == "e4m3")
        return small_float(x, 4, 3);
    if (type == "e5m2")
        return small_float(x, 5, 2);
    uint64_t mask = bits_of(type) == 64 ? ~0ull : (1ull << bits_of(type)) - 1;
    return uint64_t(int64_t(x)) & mask;
}

/* A random number that the type holds exactly; of floats, one whose products and sums stay exact too. */
inline double random_element(std::mt19937 &r, const std::string &type)
{
    if (type == "s8" || type == "s4") {
        int half = 1 << (bits_of(type) - 1);
        int x = int(r() % unsigned(2 * half + 4)) - half;
        return x < half ? x : -half; /* the lowest number more often */
    }
    if (type == "u8" || type == "u4" || type == "b1")
        return double(r() % (1u << bits_of(type)));
    return int(r() % 15) - 7;
}

inline void encode_all(const std::vector<double> &x, const std::string &type, std::vector<uint64_t> *bits)
{
    for (double v : x)
        bits->push_back(encode(type, v));
}

/* ---- where elements lie (PTX ISA, "Matrix Fragments for mma") ---- */

struct Place {
    unsigned row, col;
};
/* Element i of thread `lane`.  A register holds e elements of 32 bits together (f64: one). */
inline Place a_place(unsigned m, unsigned e, unsigned lane, unsigned i)
{
    unsigned group = lane >> 2, thread = lane % 4, reg = i / e;
    unsigned row = m == 16 && reg % 2 == 1 ? group + 8 : group;
    unsigned step = m == 16 ? reg / 2 : reg;
    return {row, thread * e + i % e + step * 4 * e};
}
inline Place b_place(unsigned e, unsigned lane, unsigned i)
{
    return {lane % 4 * e + i % e + i / e * 4 * e, lane >> 2};
}
inline Place c_place(unsigned lane, unsigned i)
{
    return {(lane >> 2) + (i < 2 ? 0 : 8), lane % 4 * 2 + (i & 1)};
}

/* A lane's registers of all lanes, one after the other; 32-bit words, f64 as two. */
using Words = std::vector<uint32_t>;

inline void put(Words &words, size_t bit, unsigned bits, uint64_t value)
{
    if (bits == 64) {
        words[bit / 32] = uint32_t(value);
        words[bit / 32 + 1] = uint32_t(value >> 32);
    } else {
        words[bit / 32] |= uint32_t(value) << bit % 32;
    }
}
inline uint64_t get(const Words &words, size_t bit, unsigned bits)
{
    if (bits == 64)
        return words[bit / 32] | uint64_t(words[bit / 32 + 1]) << 32;
    return words[bit / 32] >> bit % 32 & (bits == 32 ? ~0u : (1u << bits) - 1);
}

template <class PlaceOf>
Words spread(const std::vector<uint64_t> &matrix, unsigned columns, unsigned bits, PlaceOf place,
             unsigned threads = WARP)
{
    size_t a_lane = matrix.size() / threads;
    Words words(matrix.size() * bits / 32);
    for (unsigned lane = 0; lane < threads; lane++)
        for (unsigned i = 0; i < a_lane; i++) {
            Place p = place(lane, i);
            put(words, (lane * a_lane + i) * bits, bits, matrix[p.row * columns + p.col]);
        }
    return words;
}

inline std::string names(const std::string &prefix, size_t n)
{
    std::string s = "{";
    for (size_t i = 0; i < n; i++)
        s += (i ? ", %" : "%") + prefix + std::to_string(i);
    return s + "}";
}

struct Registers {
    std::string type;
    size_t n;
    unsigned bytes() const { return type == "f64" ? 8 : 4; }
};
inline Registers registers(const std::string &type, size_t elements)
{
    size_t bits = elements / WARP * bits_of(type);
    if (type == "f64")
        return {"f64", bits / 64};
    return {type == "f32" ? "f32" : "b32", bits / 32};
}

} // namespace matrices

#endif

#include "isa/fragments.h"

namespace ptxemu
{
namespace
{

/* The lower 13 bits of a .tf32 operand are not looked at. */
float tf32_value(uint32_t r)
{
    return bits_as<float>(r & 0xffffe000u);
}

/* No infinity; 0x7f and 0xff are NaN.  Moved to where f32 has exponent and mantissa the bits mean a number too small by
 * 2^(127 - 7). */
float e4m3_value(uint8_t x)
{
    uint32_t magnitude = uint32_t(x & 0x7f) << 20;
    uint32_t scaled = bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p120f);
    return bits_as<float>(((x & 0x7f) == 0x7f ? NAN_F32 : scaled) | uint32_t(x & 0x80) << 24);
}

/* The upper byte of an f16. */
float e5m2_value(uint8_t x)
{
    return f16_to_f32(uint16_t(x << 8));
}

/* Element k of a tile, counted along its rows; COUNT are a row. */
template <Type>
struct Element;

template <>
struct Element<Type::s8> {
    static constexpr unsigned COUNT = 16;
    static float get(const uint8_t *tile, unsigned k) { return int8_t(tile[k]); }
};
template <>
struct Element<Type::u8> {
    static constexpr unsigned COUNT = 16;
    static float get(const uint8_t *tile, unsigned k) { return tile[k]; }
};
template <>
struct Element<Type::e4m3> {
    static constexpr unsigned COUNT = 16;
    static float get(const uint8_t *tile, unsigned k) { return e4m3_value(tile[k]); }
};
template <>
struct Element<Type::e5m2> {
    static constexpr unsigned COUNT = 16;
    static float get(const uint8_t *tile, unsigned k) { return e5m2_value(tile[k]); }
};

template <class T>
T element(const uint8_t *tile, unsigned k)
{
    T x;
    memcpy(&x, tile + k * sizeof x, sizeof x);
    return x;
}
template <>
struct Element<Type::f16> {
    static constexpr unsigned COUNT = 8;
    static float get(const uint8_t *tile, unsigned k) { return f16_to_f32(element<uint16_t>(tile, k)); }
};
template <>
struct Element<Type::bf16> {
    static constexpr unsigned COUNT = 8;
    static float get(const uint8_t *tile, unsigned k) { return bf16_to_f32(element<uint16_t>(tile, k)); }
};
template <>
struct Element<Type::tf32> {
    static constexpr unsigned COUNT = 4;
    static float get(const uint8_t *tile, unsigned k) { return tf32_value(element<uint32_t>(tile, k)); }
};
template <>
struct Element<Type::f64> {
    static constexpr unsigned COUNT = 4;
    static double get(const uint8_t *tile, unsigned k) { return element<double>(tile, k); }
};

/* In one long loop, which the host compiler vectorises, and then to where it belongs. */
template <Type E, class T>
void unpack(const uint8_t *tile, T *out, unsigned stride)
{
    constexpr unsigned COUNT = Element<E>::COUNT;
    T flat[TILE_ROWS * COUNT];
    for (unsigned e = 0; e < TILE_ROWS * COUNT; e++)
        flat[e] = Element<E>::get(tile, e);
    for (unsigned r = 0; r < TILE_ROWS; r++)
        memcpy(out + r * stride, flat + r * COUNT, COUNT * sizeof(T));
}

/* u4, s4: element 0 of a pair lies in the low nibble.  SIGN is the weight of the sign bit, 0 of u4. */
template <int SIGN>
void unpack_nibbles(const uint8_t *tile, float *out, unsigned stride)
{
    constexpr unsigned BYTES = 16;
    float flat[TILE_ROWS * BYTES * 2];
    for (unsigned b = 0; b < TILE_ROWS * BYTES; b++) {
        flat[2 * b] = float(((tile[b] & 15) ^ SIGN) - SIGN);
        flat[2 * b + 1] = float((tile[b] >> 4 ^ SIGN) - SIGN);
    }
    for (unsigned r = 0; r < TILE_ROWS; r++)
        memcpy(out + r * stride, flat + r * BYTES * 2, BYTES * 2 * sizeof *out);
}

} // namespace

Unpack<float> unpack_integer(Type t)
{
    switch (t) {
    case Type::s8:
        return unpack<Type::s8>;
    case Type::u8:
        return unpack<Type::u8>;
    case Type::s4:
        return unpack_nibbles<8>;
    case Type::u4:
        return unpack_nibbles<0>;
    default:
        return nullptr;
    }
}

Unpack<double> unpack_float(Type t)
{
    switch (t) {
    case Type::f16:
        return unpack<Type::f16>;
    case Type::bf16:
        return unpack<Type::bf16>;
    case Type::tf32:
        return unpack<Type::tf32>;
    case Type::e4m3:
        return unpack<Type::e4m3>;
    case Type::e5m2:
        return unpack<Type::e5m2>;
    case Type::f64:
        return unpack<Type::f64>;
    default:
        return nullptr;
    }
}

namespace
{

/* Visits the tiles of an accumulator matrix in the order of its registers: f(matrix of the tile's corner).  One tile is
 * two registers of 4 or 8-byte elements, or one of packed f16; wgmma's m64nN is n/8 pairs of tiles, mma's m16n8 one
 * pair. */
template <class T, class F>
void each_tile(T *matrix, unsigned m, unsigned n, F f)
{
    for (unsigned col = 0; col < n; col += 8)
        for (unsigned row = 0; row < m; row += TILE_ROWS)
            f(matrix + row * n + col);
}

/* Element (g, 2t + j) lies in register j, lane 4g + t. */
template <class Reg, class T, class Convert>
void load_pairs(const Warp &w, const Opnd *regs, T *matrix, unsigned m, unsigned n, Convert convert)
{
    each_tile(matrix, m, n, [&](T *tile) {
        for (unsigned j = 0; j < 2; j++) {
            const Reg *r = w.in<Reg>(*regs++);
            for (unsigned l = 0; l < WARP_SIZE; l++)
                tile[l / 4 * n + l % 4 * 2 + j] = convert(r[l]);
        }
    });
}

template <class Reg, class T, class Convert>
void store_pairs(Warp &w, const Opnd *regs, const T *matrix, unsigned m, unsigned n, Convert convert)
{
    each_tile(matrix, m, n, [&](const T *tile) {
        for (unsigned j = 0; j < 2; j++) {
            Reg *r = w.out<Reg>(*regs++);
            for (unsigned l = 0; l < WARP_SIZE; l++)
                r[l] = convert(tile[l / 4 * n + l % 4 * 2 + j]);
        }
    });
}

template <class T>
T same(T x)
{
    return x;
}

} // namespace

void load_f32(const Warp &w, const Opnd *regs, double *matrix, unsigned m, unsigned n)
{
    load_pairs<float>(w, regs, matrix, m, n, [](float x) { return double(x); });
}
void load_s32(const Warp &w, const Opnd *regs, uint32_t *matrix, unsigned m, unsigned n)
{
    load_pairs<uint32_t>(w, regs, matrix, m, n, same<uint32_t>);
}
void load_f64(const Warp &w, const Opnd *regs, double *matrix, unsigned m, unsigned n)
{
    load_pairs<double>(w, regs, matrix, m, n, same<double>);
}
void store_f32(Warp &w, const Opnd *regs, const double *matrix, unsigned m, unsigned n)
{
    store_pairs<float>(w, regs, matrix, m, n, [](double x) { return canonical(float(x)); });
}
void store_s32(Warp &w, const Opnd *regs, const uint32_t *matrix, unsigned m, unsigned n)
{
    store_pairs<uint32_t>(w, regs, matrix, m, n, same<uint32_t>);
}
void store_f64(Warp &w, const Opnd *regs, const double *matrix, unsigned m, unsigned n)
{
    store_pairs<double>(w, regs, matrix, m, n, same<double>);
}

void load_f16(const Warp &w, const Opnd *regs, double *matrix, unsigned m, unsigned n)
{
    each_tile(matrix, m, n, [&](double *tile) {
        const uint16_t *r = w.in<uint16_t>(*regs++);
        for (unsigned e = 0; e < TILE_ROWS * 8; e++)
            tile[e / 8 * n + e % 8] = f16_to_f32(r[e]);
    });
}
void store_f16(Warp &w, const Opnd *regs, const double *matrix, unsigned m, unsigned n)
{
    each_tile(matrix, m, n, [&](const double *tile) {
        uint16_t *r = w.out<uint16_t>(*regs++);
        for (unsigned e = 0; e < TILE_ROWS * 8; e++)
            r[e] = f32_to_f16(f32_to_odd(tile[e / 8 * n + e % 8]));
    });
}

void fragment(Decode &d, size_t operand, unsigned n, Type t, Opnd::Use use)
{
    const ptx::Operand &o = d.operand(operand);
    bool vector = o.kind == ptx::Operand::vector;
    if ((vector ? o.items.size() : 1) != n)
        d.fail("operand %zu has %zu registers, this shape and type has %u", operand + 1, vector ? o.items.size() : 1,
               n);
    for (unsigned k = 0; k < n; k++) {
        const ptx::Operand &r = vector ? o.items[k] : o;
        if (use == Opnd::write)
            d.out(r, t);
        else
            d.in(r, t, use);
    }
}

void need_whole_warp(const Warp &w)
{
    if (w.active == ALL_LANES || !w.block->grid->launch.options.check)
        return;
    fault(FaultKind::missing_lanes, __builtin_ctz(w.active),
          "this instruction needs all 32 lanes of the warp; lanes 0x%08x %s", ~w.active,
          ~w.active & ~w.exited ? "do not execute it" : "have exited or never existed");
}

} // namespace ptxemu

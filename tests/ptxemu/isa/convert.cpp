/* cvt and cvt.pack.
 *
 * A conversion goes through 32 values of 8 bytes: load() widens the source, which loses nothing (every float format fits into
 * f64), a list of steps rounds, clamps and encodes, and store() writes the low bits in the destination's width.  All lanes are
 * computed and only the active ones stored. */
#include <cmath>
#include <algorithm>

#include "isa/decode.h"
#include "isa/lanes.h"
#include "isa/softfloat.h"
#include "machine/warp.h"

namespace ptxemu
{
namespace
{
union Values {
    int64_t s[WARP_SIZE];
    uint64_t u[WARP_SIZE];
    double f[WARP_SIZE];
};

struct Conversion {
    using Load = void (*)(const Warp &w, const Opnd &o, Values &v);
    using Apply = void (*)(const Conversion &c, Values &v);
    using Store = void (*)(Warp &w, const Opnd &o, const Values &v);
    Load load = nullptr, load_high = nullptr; /* of a pair: the element in the upper half */
    Store store = nullptr;
    Apply steps[6] = {};
    unsigned n_steps = 0;
    unsigned element_bits = 0; /* of a pair's result */
    Type to = Type::none, from = Type::none;
    const FloatFormat *format = nullptr; /* of a float result's elements */
    Round round = Round::rn;
    int integral = -1; /* .rni .rzi .rmi .rpi: 0..3 */
    bool has_round = false, ftz = false, sat = false, relu = false, satfinite = false;

    void then(Apply f) { steps[n_steps++] = f; }
    void apply(Values &v) const
    {
        for (unsigned k = 0; k < n_steps; k++)
            steps[k](*this, v);
    }
};

template <class F>
inline void every(F f)
{
    for (unsigned l = 0; l < WARP_SIZE; l++)
        f(l);
}

/* ---- sources ---- */
template <class Row, class T>
void load_int(const Warp &w, const Opnd &o, Values &v)
{
    const Row *a = w.in<Row>(o);
    every([&](unsigned l) { v.u[l] = uint64_t(int64_t(T(a[l]))); }); /* sign extension if T has one */
}
template <class Row, class T>
void load_unsigned(const Warp &w, const Opnd &o, Values &v)
{
    const Row *a = w.in<Row>(o);
    every([&](unsigned l) { v.u[l] = T(a[l]); });
}
template <class Row, unsigned Shift = 0>
void load_f16(const Warp &w, const Opnd &o, Values &v)
{
    const Row *a = w.in<Row>(o);
    every([&](unsigned l) { v.f[l] = f16_to_f32(uint16_t(a[l] >> Shift)); });
}
template <class Row>
void load_bf16(const Warp &w, const Opnd &o, Values &v)
{
    const Row *a = w.in<Row>(o);
    every([&](unsigned l) { v.f[l] = bf16_to_f32(uint16_t(a[l])); });
}
void load_f32(const Warp &w, const Opnd &o, Values &v)
{
    const float *a = w.in<float>(o);
    every([&](unsigned l) { v.f[l] = a[l]; });
}
void load_f64(const Warp &w, const Opnd &o, Values &v)
{
    memcpy(v.f, w.in<double>(o), sizeof(v.f));
}
template <const FloatFormat &Format, unsigned Shift>
void load_f8(const Warp &w, const Opnd &o, Values &v)
{
    const uint16_t *a = w.in<uint16_t>(o);
    every([&](unsigned l) { v.f[l] = widen(Format, uint8_t(a[l] >> Shift)); });
}

template <class Row>
Conversion::Load loader_from(Type t)
{
    switch (t) {
    case Type::u8:
        return load_unsigned<Row, uint8_t>;
    case Type::s8:
        return load_int<Row, int8_t>;
    case Type::u16:
        return load_unsigned<Row, uint16_t>;
    case Type::s16:
        return load_int<Row, int16_t>;
    case Type::u32:
        return load_unsigned<Row, uint32_t>;
    case Type::s32:
        return load_int<Row, int32_t>;
    case Type::u64:
    case Type::s64:
        return load_unsigned<Row, uint64_t>;
    case Type::f16:
        return load_f16<Row>;
    case Type::bf16:
        return load_bf16<Row>;
    case Type::f32:
        return load_f32;
    case Type::f64:
        return load_f64;
    default:
        return nullptr;
    }
}

/* ---- destinations ---- */
template <class Row, class T>
void store_as(Warp &w, const Opnd &o, const Values &v)
{
    Row *d = w.out<Row>(o);
    for_lanes(w.active, [&](unsigned l) { d[l] = Row(T(v.u[l])); }); /* a wider row: extended as T is */
}
template <class Row>
Conversion::Store storer_to(Type t)
{
    switch (t) {
    case Type::u8:
        return store_as<Row, uint8_t>;
    case Type::s8:
        return store_as<Row, int8_t>;
    case Type::u16:
        return store_as<Row, uint16_t>;
    case Type::s16:
        return store_as<Row, int16_t>;
    case Type::s32:
        return store_as<Row, int32_t>;
    case Type::u32:
        return store_as<Row, uint32_t>;
    default:
        return store_as<Row, Row>;
    }
}

template <class R, class... A>
R by_row_width(unsigned bits, R (*narrow)(A...), R (*middle)(A...), R (*wide)(A...), A... a)
{
    return bits == 16 ? narrow(a...) : bits == 32 ? middle(a...) : wide(a...);
}
Conversion::Load loader(Type t, unsigned row_bits)
{
    return by_row_width(row_bits, loader_from<uint16_t>, loader_from<uint32_t>, loader_from<uint64_t>, t);
}
Conversion::Store storer(Type t, unsigned row_bits)
{
    return by_row_width(row_bits, storer_to<uint16_t>, storer_to<uint32_t>, storer_to<uint64_t>, t);
}

/* ---- steps on integers ---- */
int64_t lowest(Type t)
{
    return is_signed(t) ? -int64_t(uint64_t(1) << (type_bits(t) - 2)) * 2 : 0;
}
uint64_t highest(Type t)
{
    return ~uint64_t(0) >> (64 - type_bits(t) + is_signed(t));
}
void clamp_signed(const Conversion &c, Values &v)
{
    const int64_t low = lowest(c.to), high = int64_t(std::min(highest(c.to), uint64_t(INT64_MAX)));
    every([&](unsigned l) { v.s[l] = std::min(std::max(v.s[l], low), high); });
}
void clamp_unsigned(const Conversion &c, Values &v)
{
    const uint64_t high = highest(c.to);
    every([&](unsigned l) { v.u[l] = std::min(v.u[l], high); });
}

/* ---- integer to float ---- */
template <class T>
void clamp_to_one(const Conversion &, Values &v) /* .sat, for an integer */
{
    every([&](unsigned l) { v.u[l] = T(v.u[l]) > 0; });
}
template <class T>
void int_to_f32(const Conversion &, Values &v)
{
    every([&](unsigned l) { v.u[l] = bits_as<uint32_t>(float(T(v.u[l]))); });
}
template <class T>
void int_to_f64(const Conversion &, Values &v)
{
    every([&](unsigned l) { v.f[l] = double(T(v.u[l])); });
}
template <class T>
void int_to_any(const Conversion &c, Values &v)
{
    every([&](unsigned l) {
        const bool negative = T(v.u[l]) < 0;
        v.u[l] = pack(*c.format, negative, negative ? -v.u[l] : v.u[l], 0, c.round);
    });
}
template <class T>
void from_integer(Conversion &c)
{
    if (c.sat)
        c.then(clamp_to_one<T>);
    if (c.round == Round::rn && c.to == Type::f32)
        c.then(int_to_f32<T>);
    else if (c.round == Round::rn && c.to == Type::f64)
        c.then(int_to_f64<T>);
    else
        c.then(int_to_any<T>);
}

/* ---- steps on float values, before they are encoded: clamping before rounding is the same as after, since the limits are
 * numbers of every format and rounding keeps order ---- */
void flush_f32(const Conversion &, Values &v) /* values that came from an f32 */
{
    every([&](unsigned l) { v.f[l] = std::fabs(v.f[l]) < 0x1p-126 ? std::copysign(0.0, v.f[l]) : v.f[l]; });
}
template <int Mode>
void to_integral(const Conversion &, Values &v)
{
    every([&](unsigned l) {
        const double x = v.f[l];
        v.f[l] = Mode == 0   ? __builtin_rint(x)
                 : Mode == 1 ? __builtin_trunc(x)
                 : Mode == 2 ? __builtin_floor(x)
                             : __builtin_ceil(x);
    });
}
void clamp_to_unit(const Conversion &, Values &v)
{
    every([&](unsigned l) { v.f[l] = saturate(v.f[l]); });
}
void clamp_negative(const Conversion &, Values &v) /* .relu: -0 becomes +0, NaN stays */
{
    every([&](unsigned l) { v.f[l] = v.f[l] <= 0 ? 0 : v.f[l]; });
}
void clamp_to_finite(const Conversion &c, Values &v) /* NaN stays */
{
    const double limit = widen(*c.format, c.format->max);
    every([&](unsigned l) {
        const double x = v.f[l];
        v.f[l] = x > limit ? limit : x < -limit ? -limit : x;
    });
}

/* ---- encoding ---- */
void encode_f32(const Conversion &, Values &v)
{
    every([&](unsigned l) { v.u[l] = bits_as<uint32_t>(canonical(float(v.f[l]))); });
}
void flush_encoded_f32(const Conversion &, Values &v)
{
    every([&](unsigned l) { v.u[l] = (v.u[l] & 0x7f800000) ? v.u[l] : v.u[l] & 0x80000000; });
}
void encode_f16(const Conversion &, Values &v) /* of values that are f32s */
{
    every([&](unsigned l) { v.u[l] = f32_to_f16(float(v.f[l])); });
}
void encode_bf16(const Conversion &, Values &v) /* of values that are f32s */
{
    every([&](unsigned l) { v.u[l] = f32_to_bf16(float(v.f[l])); });
}
void encode_any(const Conversion &c, Values &v)
{
    every([&](unsigned l) { v.u[l] = narrow(*c.format, v.f[l], c.round); });
}
void encode_tf32(const Conversion &c,
                 Values &v) /* the 13 bits that a tf32 does not have are 0, of the canonical NaN 1 */
{
    every([&](unsigned l) { v.u[l] = v.f[l] != v.f[l] ? NAN_F32 : narrow(TF32, v.f[l], c.round) << 13; });
}
Conversion::Apply encoder(const Conversion &c)
{
    const bool fits_f32 = c.from != Type::f64;
    if (c.to == Type::tf32)
        return encode_tf32;
    if (c.to == Type::f64)
        return nullptr;
    if (c.to == Type::f32 && (fits_f32 || c.round == Round::rn))
        return encode_f32;
    if (c.round == Round::rn && fits_f32 && c.format == &F16)
        return encode_f16;
    if (c.round == Round::rn && fits_f32 && c.format == &BF16)
        return encode_bf16;
    return encode_any;
}

/* Clamped, whatever the modifiers say.  NaN gives 0 unless f64 or a 64-bit integer takes part: then the highest bit alone. */
void float_to_int(const Conversion &c, Values &v)
{
    const double low = double(lowest(c.to));
    const double high = double(highest(c.to)); /* of 64-bit types: one more than the highest, 2^63 or 2^64 */
    const double below = std::nextafter(high, 0.0);
    const bool wide = type_bits(c.to) == 64;
    const uint64_t of_nan = wide || c.from == Type::f64 ? uint64_t(1) << (type_bits(c.to) - 1) : 0;
    const bool is_u64 = c.to == Type::u64;
    every([&](unsigned l) {
        const double x = v.f[l];
        double inside = x > low ? x : low;
        inside = inside < high ? inside : wide ? below : high;
        const uint64_t integer = is_u64 ? uint64_t(inside) : uint64_t(int64_t(inside));
        const uint64_t clamped = wide && x >= high ? highest(c.to) : integer;
        v.u[l] = x != x ? of_nan : clamped;
    });
}

/* ---- handlers ---- */
Step convert(Warp &w, const Inst &i)
{
    const Conversion &c = *static_cast<const Conversion *>(i.extra);
    Values v;
    c.load(w, i.op[1], v);
    c.apply(v);
    c.store(w, i.op[0], v);
    return Step::next;
}

/* Two elements a register; the first of two sources, or the upper half of one, gives the upper half. */
Step convert_pair(Warp &w, const Inst &i)
{
    const Conversion &c = *static_cast<const Conversion *>(i.extra);
    Values high, low;
    c.load_high(w, i.op[1], high);
    c.load(w, i.op[i.n_op - 1], low);
    c.apply(high);
    c.apply(low);
    every([&](unsigned l) { low.u[l] |= high.u[l] << c.element_bits; });
    c.store(w, i.op[0], low);
    return Step::next;
}

struct PackLimits {
    int32_t low, high;
    unsigned bits;
};
template <bool Appends>
Step cvt_pack(Warp &w, const Inst &i)
{
    const PackLimits &p = *static_cast<const PackLimits *>(i.extra);
    uint32_t *d = w.out<uint32_t>(i.op[0]);
    const int32_t *a = w.in<int32_t>(i.op[1]), *b = w.in<int32_t>(i.op[2]);
    const uint32_t *c = Appends ? w.in<uint32_t>(i.op[3]) : nullptr;
    const uint32_t mask = (1u << p.bits) - 1;
    for_lanes(w.active, [=](unsigned l) {
        const uint32_t high = uint32_t(std::min(std::max(a[l], p.low), p.high)) & mask;
        const uint32_t low = uint32_t(std::min(std::max(b[l], p.low), p.high)) & mask;
        const uint32_t pair = high << p.bits | low;
        d[l] = Appends ? c[l] << (2 * p.bits) | pair : pair;
    });
    return Step::next;
}

/* ---- builders ---- */
bool is_bf16(Type t)
{
    return t == Type::bf16 || t == Type::bf16x2;
}
bool is_f8(Type t)
{
    return t == Type::e4m3x2 || t == Type::e5m2x2;
}
bool is_pair(Type t)
{
    return t == Type::f16x2 || t == Type::bf16x2 || is_f8(t);
}
bool is_integer(Type t)
{
    return (type_kind(t) == TypeKind::signed_ || type_kind(t) == TypeKind::unsigned_) && type_bits(t) >= 8 &&
           t != Type::u16x2 && t != Type::s16x2;
}

const FloatFormat *format_of(Type t)
{
    switch (t) {
    case Type::f16:
    case Type::f16x2:
        return &F16;
    case Type::bf16:
    case Type::bf16x2:
        return &BF16;
    case Type::tf32:
        return &TF32;
    case Type::f32:
        return &F32;
    case Type::f64:
        return &F64;
    case Type::e4m3x2:
        return &E4M3;
    case Type::e5m2x2:
        return &E5M2;
    default:
        return nullptr;
    }
}

void take_modifiers(Decode &d, Conversion &c)
{
    if (d.has("rs"))
        d.fail("stochastic rounding (.rs) is not in any supported architecture");
    c.integral = d.take_one_of({"rni", "rzi", "rmi", "rpi"});
    const int r = d.take_one_of({"rn", "rz", "rm", "rp", "rna"});
    c.has_round = r >= 0;
    c.round = c.has_round ? Round(r) : Round::rn;
    c.ftz = d.take("ftz");
    c.sat = d.take("sat");
    c.relu = d.take("relu");
    c.satfinite = d.take("satfinite");
    c.to = d.type();
    c.from = d.type();
    c.format = format_of(c.to);
}

/* Which rounding modifier goes with the types. */
void check_rounding(const Decode &d, const Conversion &c)
{
    const bool to_float = c.format, from_float = format_of(c.from);
    const unsigned to_mantissa = to_float ? c.format->mantissa_bits : 0;
    const unsigned from_mantissa = from_float ? format_of(c.from)->mantissa_bits : 0;
    const bool loses = to_float && from_float &&
                       (to_mantissa < from_mantissa || (c.to != c.from && c.to == Type::bf16) ||
                        (c.to == Type::f16 && c.from == Type::bf16));
    const bool needs = (to_float && !from_float) || loses || is_pair(c.to);
    const bool may_be_integral = from_float && (!to_float || c.to == c.from);
    if (needs && !c.has_round)
        d.fail("a rounding modifier (.rn, .rz, .rm, .rp) is missing");
    if (!needs && c.has_round)
        d.fail("takes no .rn, .rz, .rm or .rp: nothing is rounded to a float type");
    if (from_float && !to_float && c.integral < 0)
        d.fail("an integer rounding modifier (.rni, .rzi, .rmi, .rpi) is missing");
    if (c.integral >= 0 && !may_be_integral)
        d.fail("takes no .rni, .rzi, .rmi or .rpi");
    if (c.round == Round::rna && c.to != Type::tf32)
        d.fail(".rna is for .tf32");
    if (is_f8(c.to) && (c.round != Round::rn || !c.satfinite))
        d.fail(".%s takes .rn.satfinite", type_text(c.to));
    if ((is_pair(c.to) || c.to == Type::tf32 || c.relu || c.satfinite) &&
        (c.round == Round::rm || c.round == Round::rp))
        d.fail(".rm and .rp are not possible here");
}

void check_modifiers(const Decode &d, const Conversion &c)
{
    const bool narrow_float =
        c.format && c.to != Type::f32 && c.to != Type::f64 && (c.from == Type::f32 || is_f8(c.to) || is_f8(c.from));
    if ((c.relu || c.satfinite) && !narrow_float)
        d.fail(".relu and .satfinite are for results narrower than their f32 source");
    if (c.satfinite && (is_f8(c.from) || (c.to == Type::tf32 && c.round != Round::rna)))
        d.fail(".satfinite is not possible here");
    if (c.ftz && c.to != Type::f32 && c.from != Type::f32)
        d.fail(".ftz is for f32");
    if (c.sat && (is_bf16(c.to) || is_bf16(c.from) || is_pair(c.to) || c.to == Type::tf32))
        d.fail(".sat is not possible here");
}

void check_architecture(const Decode &d, const Conversion &c)
{
    if (is_f8(c.to) || is_f8(c.from))
        d.need_sm(89);
    if (c.to == Type::tf32)
        d.need_sm(c.round == Round::rna ? 80 : 90);
    if (is_bf16(c.to) || is_bf16(c.from))
        d.need_sm(c.from == Type::f32 || c.to == Type::f32 ? 80 : 90);
    if (is_pair(c.to) || c.relu || c.satfinite)
        d.need_sm(80);
}

/* The steps between load and store. */
void plan(Conversion &c)
{
    const bool from_float = format_of(c.from);
    if (!from_float && !c.format) {
        if (c.sat)
            c.then(is_signed(c.from) ? clamp_signed : clamp_unsigned);
        return;
    }
    if (!from_float) {
        is_signed(c.from) ? from_integer<int64_t>(c) : from_integer<uint64_t>(c);
        return;
    }
    static constexpr Conversion::Apply integral[] = {to_integral<0>, to_integral<1>, to_integral<2>, to_integral<3>};
    if (c.ftz && c.from == Type::f32)
        c.then(flush_f32);
    if (c.integral >= 0)
        c.then(integral[c.integral]);
    if (!c.format) {
        c.then(float_to_int);
        return;
    }
    if (c.relu)
        c.then(clamp_negative);
    if (c.sat)
        c.then(clamp_to_unit);
    if (c.satfinite)
        c.then(clamp_to_finite);
    if (Conversion::Apply f = encoder(c))
        c.then(f);
    if (c.ftz && c.to == Type::f32)
        c.then(flush_encoded_f32);
}

void operand_count(Decode &d, unsigned n)
{
    if (d.n() != n)
        d.fail("takes %u operands, not %zu", n, d.n());
}

void build_pair(Decode &d, Inst &i, Conversion &c)
{
    if (c.from == Type::f32) {
        operand_count(d, 3);
        c.load = c.load_high = load_f32;
    } else if (is_f8(c.to) && c.from == Type::f16x2) {
        operand_count(d, 2);
        c.load = load_f16<uint32_t, 0>;
        c.load_high = load_f16<uint32_t, 16>;
    } else if (c.to == Type::f16x2 && is_f8(c.from)) {
        operand_count(d, 2);
        c.load = c.from == Type::e4m3x2 ? load_f8<E4M3, 0> : load_f8<E5M2, 0>;
        c.load_high = c.from == Type::e4m3x2 ? load_f8<E4M3, 8> : load_f8<E5M2, 8>;
    } else {
        d.fail("there is no conversion from .%s to .%s", type_text(c.from), type_text(c.to));
    }
    c.element_bits = is_f8(c.to) ? 8 : 16;
    c.store = is_f8(c.to) ? storer_to<uint16_t>(c.to) : storer_to<uint32_t>(c.to);
    i.exec = convert_pair;
    d.out(size_t(0), c.to);
    for (size_t k = 1; k < d.n(); k++)
        d.in(k, c.from);
}

void build_cvt(Decode &d, Inst &i)
{
    Conversion &c = *d.extra<Conversion>();
    take_modifiers(d, c);
    check_rounding(d, c);
    check_modifiers(d, c);
    check_architecture(d, c);
    plan(c);
    i.extra = &c;
    i.type = c.to;
    i.type2 = c.from;
    i.cls = Class::convert;
    if (is_pair(c.to)) {
        build_pair(d, i, c);
        return;
    }
    const bool known_to = is_integer(c.to) || c.format, known_from = is_integer(c.from) || format_of(c.from);
    if (!known_to || !known_from || is_pair(c.from) || c.from == Type::tf32 ||
        (c.to == Type::tf32 && c.from != Type::f32))
        d.fail("there is no conversion from .%s to .%s", type_text(c.from), type_text(c.to));
    operand_count(d, 2);
    i.exec = convert;
    /* Registers may be wider than integers, and than an f16 that is read; not where bf16 takes part. */
    const bool wider = !is_bf16(c.to) && !is_bf16(c.from);
    c.store = storer(c.to, d.out(size_t(0), c.to, wider && is_integer(c.to)).bits);
    c.load = loader(c.from, d.in(1, c.from, Opnd::read, wider && (is_integer(c.from) || c.from == Type::f16)).bits);
}

void build_cvt_pack(Decode &d, Inst &i)
{
    struct Packed {
        const char *text;
        unsigned bits;
        bool has_sign;
    };
    static constexpr Packed packed[] = {{"u16", 16, false}, {"s16", 16, true}, {"u8", 8, false}, {"s8", 8, true},
                                        {"u4", 4, false},   {"s4", 4, true},   {"u2", 2, false}, {"s2", 2, true}};
    if (!d.take("sat"))
        d.fail(".sat is missing");
    const int k = d.take_one_of({"u16", "s16", "u8", "s8", "u4", "s4", "u2", "s2"});
    if (k < 0 || !d.take("s32"))
        d.fail("packs .s32 into .u16, .s16, .u8, .s8, .u4, .s4, .u2 or .s2");
    const Packed &to = packed[k];
    const bool appends = to.bits < 16;
    if (appends != d.take("b32"))
        d.fail(appends ? "the type of the third source, .b32, is missing" : "takes no .b32");
    d.need_sm(to.bits < 8 ? 75 : 72);
    operand_count(d, appends ? 4 : 3);
    PackLimits &p = *d.extra<PackLimits>();
    p.bits = to.bits;
    p.low = to.has_sign ? -(1 << (to.bits - 1)) : 0;
    p.high = (1 << (to.bits - to.has_sign)) - 1;
    i.extra = &p;
    i.exec = appends ? cvt_pack<true> : cvt_pack<false>;
    i.cls = Class::convert;
    d.out(size_t(0), Type::b32);
    d.in(1, Type::s32);
    d.in(2, Type::s32);
    if (appends)
        d.in(3, Type::b32);
}

constexpr Opcode opcodes[] = {
    {"cvt", build_cvt},
    {"cvt.pack", build_cvt_pack},
};
} // namespace

const Family convert_family = {opcodes, sizeof(opcodes) / sizeof(*opcodes)};

} // namespace ptxemu

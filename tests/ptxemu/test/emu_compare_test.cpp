/* setp, set and slct of every type and relation.  The host compares long doubles, which hold every integer and every
 * float exactly; floats are taken apart by sign, exponent and fraction. */
#include "test/alu.h"

#include <cmath>

namespace
{

/* ---- values ---- */

struct Format {
    unsigned exponent = 0, fraction = 0; /* bits; 0: not a float */
};
Format format_of(const std::string &type)
{
    if (type.substr(0, 3) == "f16")
        return {5, 10};
    if (type.substr(0, 4) == "bf16")
        return {8, 7};
    if (type == "f32")
        return {8, 23};
    return type == "f64" ? Format{11, 52} : Format{};
}

long double value_of(const std::string &type, uint64_t bits, bool ftz = false)
{
    const Format f = format_of(type);
    if (!f.exponent) {
        switch (type == "s16" ? 16 : type == "s32" ? 32 : type == "s64" ? 64 : 0) {
        case 16:
            return int16_t(bits);
        case 32:
            return int32_t(bits);
        case 64:
            return int64_t(bits);
        default:
            return bits;
        }
    }
    const int top = (1 << f.exponent) - 1, bias = top / 2;
    const uint64_t fraction = bits & ((1ull << f.fraction) - 1);
    const int exponent = int(bits >> f.fraction) & top;
    const bool negative = bits >> (f.fraction + f.exponent) & 1;
    long double v;
    if (exponent == top)
        v = fraction ? NAN : INFINITY;
    else if (exponent == 0)
        v = ftz ? 0 : std::ldexp((long double)(fraction), 1 - bias - int(f.fraction));
    else
        v = std::ldexp((long double)(fraction | 1ull << f.fraction), exponent - bias - int(f.fraction));
    return negative ? -v : v;
}

bool holds(const std::string &relation, long double a, long double b)
{
    const bool unordered = std::isnan(a) || std::isnan(b);
    if (relation == "num" || relation == "nan")
        return unordered == (relation == "nan");
    if (unordered)
        return relation.size() == 3; /* equ, neu, ltu, ... */
    const std::string r = relation.substr(0, 2);
    const int order = a < b ? -1 : a > b ? 1 : 0;
    return (r == "eq" && order == 0) || (r == "ne" && order != 0) || ((r == "lt" || r == "lo") && order < 0) ||
           ((r == "le" || r == "ls") && order <= 0) || ((r == "gt" || r == "hi") && order > 0) ||
           ((r == "ge" || r == "hs") && order >= 0);
}

template <class Raw>
std::vector<Raw> samples_of(const std::string &type)
{
    const Format f = format_of(type);
    if (!f.exponent)
        return alu::edges<Raw>();
    const uint64_t infinity = ((1ull << f.exponent) - 1) << f.fraction, normal = 1ull << f.fraction, one = infinity / 2;
    std::vector<Raw> v;
    for (uint64_t bits :
         {uint64_t(0), uint64_t(1), normal - 1, normal, normal + 1, one & ~(normal - 1), (one & ~(normal - 1)) + 1,
          infinity - 1, infinity, infinity + 1, infinity + normal / 2, infinity + normal - 1})
        for (uint64_t sign : {0, 1})
            v.push_back(Raw(bits | sign << (f.fraction + f.exponent)));
    return v;
}

/* All pairs of sample values, random bits, and equal values. */
template <class Raw>
std::tuple<std::vector<Raw>, std::vector<Raw>> pairs_of(const std::string &type)
{
    std::vector<Raw> a, b;
    for (Raw x : samples_of<Raw>(type))
        for (Raw y : samples_of<Raw>(type))
            a.push_back(x), b.push_back(y);
    uint64_t state = 3;
    for (unsigned k = 0; k < 301; k++) {
        a.push_back(Raw(alu::random_bits(state)));
        b.push_back(k % 4 ? Raw(alu::random_bits(state)) : a.back());
    }
    return {a, b};
}

struct Source {
    const char *type;
    unsigned bits;
    const char *target = "sm_80";
};
const Source integers[] = {{"b16", 16}, {"b32", 32}, {"b64", 64}, {"u16", 16}, {"u32", 32},
                           {"u64", 64}, {"s16", 16}, {"s32", 32}, {"s64", 64}};
const Source floats[] = {{"f32", 32}, {"f64", 64}, {"f16", 16}, {"bf16", 16, "sm_90"}};

std::vector<std::string> relations_of(const std::string &type)
{
    std::vector<std::string> r = {"eq", "ne"};
    if (type[0] != 'b' || type == "bf16" || type == "bf16x2")
        r.insert(r.end(), {"lt", "le", "gt", "ge"});
    if (type[0] == 'u')
        r.insert(r.end(), {"lo", "ls", "hi", "hs"});
    if (format_of(type).exponent)
        r.insert(r.end(), {"equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"});
    return r;
}

/* Calls f(Raw()) for the unsigned type of that many bits. */
template <class F>
void with_bits(unsigned bits, F f)
{
    if (bits == 16)
        f(uint16_t());
    else if (bits == 32)
        f(uint32_t());
    else
        f(uint64_t());
}

bool combined(const std::string &op, bool t, bool c)
{
    return op == "and" ? t && c : op == "or" ? t || c : op == "xor" ? t != c : t;
}

/* ---- setp ---- */

void check_setp(const Source &s, const std::string &relation, bool ftz)
{
    const std::string type = s.type;
    with_bits(s.bits, [&](auto raw) {
        using Raw = decltype(raw);
        const std::function<uint32_t(Raw, Raw)> f = [&](Raw a, Raw b) -> uint32_t {
            return holds(relation, value_of(type, a, ftz), value_of(type, b, ftz));
        };
        alu::expect_statement("{\n.reg .pred %g;\nsetp." + relation + (ftz ? ".ftz." : ".") + type +
                                  " %g, %a, %b;\nselp.u32 %d, 1, 0, %g;\n}",
                              f, pairs_of<Raw>(type), s.target);
    });
}

TEST(Setp, EveryRelationOfTheIntegers)
{
    emu::Device device("8.0");
    for (const Source &s : integers)
        for (const std::string &r : relations_of(s.type))
            check_setp(s, r, false);
}

TEST(Setp, EveryRelationOfTheFloatsWithNaNsAndDenormals)
{
    emu::Device device("9.0");
    for (const Source &s : floats)
        for (const std::string &r : relations_of(s.type))
            check_setp(s, r, false);
}

TEST(Setp, FtzTakesDenormalsForZero)
{
    emu::Device device("8.0");
    for (const Source &s : {floats[0], floats[2]})
        for (const std::string &r : relations_of(s.type))
            check_setp(s, r, true);
}

TEST(Setp, ImmediatesOnEitherSide)
{
    emu::Device device("8.0");
    using F = std::function<uint32_t(uint32_t)>;
    const std::string before = "{\n.reg .pred %g;\n", after = "\nselp.u32 %d, 1, 0, %g;\n}";
    const auto in = std::tuple(std::get<0>(pairs_of<uint32_t>("s32")));
    alu::expect_statement(before + "setp.gt.s32 %g, %a, -2;" + after, F([](uint32_t a) { return int32_t(a) > -2; }), in,
                          "sm_80");
    alu::expect_statement(before + "setp.lt.u32 %g, 0x80000000, %a;" + after,
                          F([](uint32_t a) { return a > 0x80000000; }), in, "sm_80");
    const auto reals = std::tuple(std::get<0>(pairs_of<uint32_t>("f32")));
    alu::expect_statement(before + "setp.geu.f32 %g, %a, 0f3F800000;" + after,
                          F([](uint32_t a) { return holds("geu", value_of("f32", a), 1); }), reals, "sm_80");
    alu::expect_statement(before + "setp.lt.f32 %g, 0f00000000, %a;" + after,
                          F([](uint32_t a) { return value_of("f32", a) > 0; }), reals, "sm_80");
}

/* p|q, {.and, .or, .xor}, {!}c: q combines the opposite of the comparison. */
TEST(Setp, ASecondPredicateAndACombination)
{
    emu::Device device("8.0");
    for (const Source &s : {integers[0], integers[4], integers[8], floats[0], floats[1]})
        for (const std::string boolean : {"", "and", "or", "xor"})
            for (bool negate : {false, true})
                with_bits(s.bits, [&](auto raw) {
                    using Raw = decltype(raw);
                    const std::string type = s.type, relation = relations_of(type).back();
                    const auto in = pairs_of<Raw>(type);
                    const size_t n = std::get<0>(in).size();
                    std::vector<uint32_t> third(n);
                    for (size_t k = 0; k < n; k++)
                        third[k] = k % 3 == 0;
                    const std::function<uint32_t(Raw, Raw, uint32_t)> f = [&](Raw a, Raw b, uint32_t e) -> uint32_t {
                        const bool t = holds(relation, value_of(type, a), value_of(type, b));
                        const bool with = (e != 0) != negate;
                        return combined(boolean, t, with) + 2 * combined(boolean, !t, with);
                    };
                    alu::expect_statement(
                        "{\n.reg .pred %x, %y, %z;\n.reg .b32 %u;\nsetp.ne.b32 %z, %c, 0;\nsetp." + relation +
                            (boolean.empty() ? "" : "." + boolean) + "." + type + " %x|%y, %a, %b" +
                            (boolean.empty() ? ""
                             : negate        ? ", !%z"
                                             : ", %z") +
                            ";\nselp.u32 %d, 1, 0, %x;\nselp.u32 %u, 2, 0, %y;\nadd.u32 %d, %d, %u;\n}",
                        f, std::tuple(std::get<0>(in), std::get<1>(in), third), s.target);
                });
}

TEST(Setp, EitherDestinationMayBeDropped)
{
    emu::Device device("8.0");
    const auto in = pairs_of<uint32_t>("s32");
    using F = std::function<uint32_t(uint32_t, uint32_t)>;
    alu::expect_statement("{\n.reg .pred %x;\nsetp.lt.s32 _|%x, %a, %b;\nselp.u32 %d, 1, 0, %x;\n}",
                          F([](uint32_t a, uint32_t b) { return int32_t(a) >= int32_t(b); }), in, "sm_80");
    alu::expect_statement("{\n.reg .pred %x;\nsetp.lt.s32 %x|_, %a, %b;\nselp.u32 %d, 1, 0, %x;\n}",
                          F([](uint32_t a, uint32_t b) { return int32_t(a) < int32_t(b); }), in, "sm_80");
}

/* Two halves side by side: samples of the 16-bit type in every pairing. */
std::tuple<std::vector<uint32_t>, std::vector<uint32_t>> halves_of(const std::string &type)
{
    const auto in = pairs_of<uint16_t>(type);
    const auto &a = std::get<0>(in), &b = std::get<1>(in);
    const size_t n = a.size();
    std::vector<uint32_t> x, y;
    for (size_t k = 0; k < n; k++) {
        const size_t other = (k * 7 + 3) % n;
        x.push_back(a[k] | uint32_t(a[other]) << 16);
        y.push_back(b[k] | uint32_t(b[other]) << 16);
    }
    return {x, y};
}

TEST(Setp, PairsOfHalvesGiveAPredicateEach)
{
    emu::Device device("9.0");
    for (const std::string type : {"f16x2", "f16x2.ftz", "bf16x2"}) {
        const bool ftz = type == "f16x2.ftz", bf16 = type == "bf16x2";
        const std::string half = bf16 ? "bf16" : "f16";
        for (const std::string &r : relations_of(half)) {
            const std::function<uint32_t(uint32_t, uint32_t)> f = [&](uint32_t a, uint32_t b) -> uint32_t {
                return holds(r, value_of(half, a & 0xffff, ftz), value_of(half, b & 0xffff, ftz)) +
                       2 * holds(r, value_of(half, a >> 16, ftz), value_of(half, b >> 16, ftz));
            };
            alu::expect_statement("{\n.reg .pred %x, %y;\n.reg .b32 %u;\nsetp." + r + (ftz ? ".ftz." : ".") + half +
                                      "x2 %x|%y, %a, %b;\nselp.u32 %d, 1, 0, %x;\nselp.u32 %u, 2, 0, %y;\n"
                                      "add.u32 %d, %d, %u;\n}",
                                  f, halves_of(half), "sm_90");
        }
    }
}

/* ---- set ---- */

uint64_t bits_of_true(const std::string &type)
{
    return type == "f32"                    ? 0x3f800000
           : type.substr(0, 3) == "f16"     ? 0x3c00
           : type.substr(0, 4) == "bf16"    ? 0x3f80
           : type == "u16" || type == "s16" ? 0xffff
                                            : 0xffffffff;
}
unsigned width_of(const std::string &type)
{
    return type == "f16" || type == "bf16" || type == "u16" || type == "s16" ? 16 : 32;
}
bool set_exists(const std::string &to, const Source &s)
{
    const std::string from = s.type;
    const bool half = from == "f16" || from == "bf16";
    if (to == "u32" || to == "s32")
        return true;
    if (to == "u16" || to == "s16")
        return half;
    return to == "f32" ? !half : to == "f16" ? from != "bf16" : from != "f16";
}

void check_set(const std::string &to, const Source &s, const std::string &relation, bool ftz,
               const std::string &boolean)
{
    const std::string type = s.type, target = to == "bf16" ? "sm_90" : s.target;
    const std::string name =
        "set." + relation + (boolean.empty() ? "" : "." + boolean) + (ftz ? ".ftz." : ".") + to + "." + type;
    const std::string statement =
        boolean.empty() ? name + " %d, %a, %b;" /* the predicate: whether b's lowest bit is clear */
                        : "{\n.reg .pred %z;\n.reg .b64 %w;\ncvt.u64.u" + std::to_string(s.bits) +
                              " %w, %b;\nand.b64 %w, %w, 1;\nsetp.ne.b64 %z, %w, 0;\n" + name + " %d, %a, %b, !%z;\n}";
    with_bits(s.bits, [&](auto raw) {
        with_bits(width_of(to), [&](auto result) {
            using Raw = decltype(raw);
            using D = decltype(result);
            const std::function<D(Raw, Raw)> f = [&](Raw a, Raw b) -> D {
                const bool t = holds(relation, value_of(type, a, ftz), value_of(type, b, ftz));
                return combined(boolean, t, !(b & 1)) ? D(bits_of_true(to)) : D(0);
            };
            alu::expect_statement(statement, f, pairs_of<Raw>(type), target);
        });
    });
}

TEST(Set, EveryDestinationOfEverySource)
{
    emu::Device device("9.0");
    std::vector<Source> sources(std::begin(integers), std::end(integers));
    sources.insert(sources.end(), std::begin(floats), std::end(floats));
    for (const std::string to : {"u32", "s32", "u16", "s16", "f32", "f16", "bf16"})
        for (const Source &s : sources)
            if (set_exists(to, s))
                check_set(to, s, relations_of(s.type).back(), false, "");
}

TEST(Set, EveryRelationAndCombination)
{
    emu::Device device("8.0");
    for (const Source &s : {integers[5], integers[7], floats[0], floats[1], floats[2]})
        for (const std::string &r : relations_of(s.type))
            for (const std::string boolean : {"", "and", "or", "xor"})
                check_set("u32", s, r, s.type == std::string("f32"), boolean);
}

TEST(Set, PairsOfHalvesAreWrittenSideBySide)
{
    emu::Device device("9.0");
    for (const std::string half : {"f16", "bf16"})
        for (const std::string &to : {half + "x2", std::string("u32"), std::string("s32")})
            for (const std::string r : {"lt", "neu", "nan"}) {
                const uint32_t yes = bits_of_true(to) & 0xffff;
                const std::function<uint32_t(uint32_t, uint32_t)> f = [&](uint32_t a, uint32_t b) -> uint32_t {
                    const bool low = holds(r, value_of(half, a & 0xffff), value_of(half, b & 0xffff));
                    const bool high = holds(r, value_of(half, a >> 16), value_of(half, b >> 16));
                    return (low ? yes : 0) | (high ? yes << 16 : 0);
                };
                alu::expect_statement("set." + r + "." + to + "." + half + "x2 %d, %a, %b;", f, halves_of(half),
                                      "sm_90");
            }
}

/* ---- slct ---- */

TEST(Slct, ZeroAndAboveChooseTheFirst)
{
    emu::Device device("8.0");
    for (const std::string type : {"b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64"})
        with_bits(unsigned(std::stoi(type.substr(1))), [&](auto raw) {
            using Raw = decltype(raw);
            auto in = alu::inputs<Raw, Raw, uint32_t>();
            const std::function<Raw(Raw, Raw, uint32_t)> by_integer = [](Raw a, Raw b, uint32_t c) -> Raw {
                return int32_t(c) >= 0 ? a : b;
            };
            alu::expect_statement("slct." + type + ".s32 %d, %a, %b, %c;", by_integer, in, "sm_80");
            const auto reals = samples_of<uint32_t>("f32");
            for (size_t k = 0; k < std::get<2>(in).size(); k++)
                std::get<2>(in)[k] = reals[k % reals.size()];
            for (bool ftz : {false, true}) { /* a negative denormal flushed is -0, which is not below 0 */
                const std::function<Raw(Raw, Raw, uint32_t)> by_real = [=](Raw a, Raw b, uint32_t c) -> Raw {
                    return value_of("f32", c, ftz) >= 0 ? a : b;
                };
                alu::expect_statement("slct" + std::string(ftz ? ".ftz." : ".") + type + ".f32 %d, %a, %b, %c;",
                                      by_real, in, "sm_80");
            }
        });
}

TEST(Refused, RelationsThatATypeDoesNotHave)
{
    emu::Device device("8.0");
    for (const char *name : {"setp.lt.b32", "setp.lo.s32", "setp.equ.s32", "setp.lo.f32", "setp.f32", "setp.lt.ftz.s32",
                             "setp.lt.nand.s32", "setp.lt.u16x2", "setp.lt.tf32"}) {
        const std::string statement = std::string("{\n.reg .pred %g;\n") + name + " %g, %a, %b;\nmov.b32 %d, %a;\n}";
        emu::Module m(emu::op_module(statement, "b32", {"b32", "b32"}), false);
        EXPECT_EQ(CUDA_ERROR_INVALID_PTX, m.result) << name;
    }
    for (const char *name : {"set.lt.u16.s32", "set.ltu.u32.s32", "set.lt.f32.f16", "set.lt.u32.b32"}) {
        emu::Module m(emu::op_module(std::string(name) + " %d, %a, %b;", "b32", {"b32", "b32"}), false);
        EXPECT_EQ(CUDA_ERROR_INVALID_PTX, m.result) << name;
    }
}

TEST(Refused, ASecondPredicateOfASingleHalf)
{
    emu::Device device("8.0");
    emu::Module m(
        emu::op_module("{\n.reg .pred %x, %y;\nsetp.lt.f16 %x|%y, %a, %b;\nmov.b16 %d, %a;\n}", "b16", {"b16", "b16"}),
        false);
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, m.result);
}

TEST(Refused, Bf16ComparisonsOnDevicesBeforeSm90)
{
    emu::Device device("8.0");
    emu::Module m(emu::op_module("set.lt.u32.bf16 %d, %a, %b;", "b32", {"b16", "b16"}), false);
    EXPECT_EQ(CUDA_ERROR_INVALID_PTX, m.result);
    if (emu::Driver::get().emulated()) {
        EXPECT_NE(std::string::npos, m.log.find("sm_90")) << m.log;
    }
}

} // namespace

/* Reciprocals, roots, exponentials, logarithms and the like.
 *
 * Where hardware approximates (.approx), the result here is the exact one rounded to nearest, as far as f64 arithmetic and the C
 * library give it; special values are those of the PTX ISA's tables.  Hardware's results differ from these in the last bits. */
#include <cmath>

#include "isa/arithmetic.h"
#include "isa/elementary.h"

namespace ptxemu
{
namespace
{
struct Rcp {
    static constexpr unsigned arity = 1;
    template <class T>
    static T apply(T a)
    {
        return T(1) / a;
    }
};
struct Sqrt {
    static constexpr unsigned arity = 1;
    static float apply(float a) { return __builtin_sqrtf(a); }
    static double apply(double a) { return __builtin_sqrt(a); }
};
struct Rsqrt {
    static constexpr unsigned arity = 1;
    static float apply(float a) { return float(1 / __builtin_sqrt(double(a))); }
    static double apply(double a) { return double(1 / std::sqrt(static_cast<long double>(a))); }
};
struct Ex2 {
    static constexpr unsigned arity = 1;
    static float apply(float a) { return float(exp2_of_f32(a)); }
};
struct Lg2 {
    static constexpr unsigned arity = 1;
    static float apply(float a) { return float(log2_of_f32(a)); }
};
struct Sin {
    static constexpr unsigned arity = 1;
    static float apply(float a) { return float(std::sin(double(a))); }
};
struct Cos {
    static constexpr unsigned arity = 1;
    static float apply(float a) { return float(std::cos(double(a))); }
};
struct Tanh {
    static constexpr unsigned arity = 1;
    static float apply(float a) { return float(std::tanh(double(a))); }
};

/* rcp.approx.ftz.f64 and rsqrt.approx.ftz.f64 see and give only the upper 32 bits of an f64. */
constexpr FloatFormat UPPER_F64{11, 20, 0x7fefffff, 0x7ff00000, 0x7fffffff};
template <class Op>
Step upper_f64(Warp &w, const Inst &i)
{
    double *d = w.out<double>(i.op[0]);
    const uint64_t *a = w.in<uint64_t>(i.op[1]);
    for_lanes(w.active, [=](unsigned l) {
        const double x = flush(bits_as<double>(a[l] & 0xffffffff00000000u));
        const bool nan = (a[l] & ~F64.sign()) > F64.infinity; /* the payload may lie in the lower half */
        const uint64_t upper = nan ? UPPER_F64.nan : narrow(UPPER_F64, Op::apply(x), Round::rn);
        d[l] = flush(bits_as<double>(upper << 32));
    });
    return Step::next;
}

/* rcp and sqrt: .approx for f32, or a rounding mode. */
template <class Op>
void build_rounded(Decode &d, Inst &i)
{
    const bool approximate = d.take("approx");
    const Mode m = Mode::take(d);
    const Type t = d.type();
    if (approximate == m.has_round)
        d.fail("takes .approx or a rounding modifier");
    if (approximate && t != Type::f32)
        d.fail(".approx is for f32");
    build_arithmetic<Op>(d, i, m, t, false);
    i.cls = Class::special_function;
}

template <class Op>
void build_upper_f64(Decode &d, Inst &i)
{
    i.exec = upper_f64<Op>;
    i.type = Type::f64;
    i.cls = Class::special_function;
    same_type_operands(d, Type::f64, 1);
}

void build_rcp(Decode &d, Inst &i)
{
    if (!d.has("approx") || !d.has("f64")) {
        build_rounded<Rcp>(d, i);
        return;
    }
    if (!d.take("approx") || !d.take("ftz") || d.type() != Type::f64)
        d.fail(".approx.f64 takes .ftz");
    build_upper_f64<Rcp>(d, i);
}

void need_approx(Decode &d)
{
    if (!d.take("approx"))
        d.fail(".approx is missing");
}

void build_rsqrt(Decode &d, Inst &i)
{
    need_approx(d);
    Mode m;
    m.ftz = d.take("ftz");
    const Type t = d.type();
    if (t == Type::f64 && m.ftz) {
        build_upper_f64<Rsqrt>(d, i);
        return;
    }
    build_arithmetic<Rsqrt>(d, i, m, t, false);
    i.cls = Class::special_function;
}

template <class Op, bool MayFlush, unsigned Sm>
void build_f32(Decode &d, Inst &i)
{
    need_approx(d);
    Mode m;
    m.ftz = MayFlush && d.take("ftz");
    if (d.type() != Type::f32)
        d.fail("is for f32");
    d.need_sm(Sm);
    i.exec = choose_f32<Op>(m);
    i.type = Type::f32;
    i.cls = Class::special_function;
    same_type_operands(d, Type::f32, 1);
}

constexpr Opcode opcodes[] = {
    {"rcp", build_rcp},
    {"sqrt", build_rounded<Sqrt>},
    {"rsqrt", build_rsqrt},
    {"sin", build_f32<Sin, true, 20>},
    {"cos", build_f32<Cos, true, 20>},
    {"lg2", build_f32<Lg2, true, 20>},
    {"ex2", build_f32<Ex2, true, 20>, Takes::single},
    {"tanh", build_f32<Tanh, false, 75>, Takes::single},
};
} // namespace

const Family approx_family = {opcodes, sizeof(opcodes) / sizeof(*opcodes)};

} // namespace ptxemu

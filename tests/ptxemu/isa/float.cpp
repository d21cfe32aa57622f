/* Instructions on f32 and f64: arithmetic, min and max, signs, classes.  Reciprocals, roots and the like: approx.cpp. */
#include <cmath>

#include "isa/arithmetic.h"

namespace ptxemu
{
namespace
{
struct Add {
    static constexpr unsigned arity = 2;
    template <class T>
    static T apply(T a, T b)
    {
        return a + b;
    }
};
struct Sub {
    static constexpr unsigned arity = 2;
    template <class T>
    static T apply(T a, T b)
    {
        return a - b;
    }
};
struct Mul {
    static constexpr unsigned arity = 2;
    template <class T>
    static T apply(T a, T b)
    {
        return a * b;
    }
};
struct Div {
    static constexpr unsigned arity = 2;
    template <class T>
    static T apply(T a, T b)
    {
        return a / b;
    }
};
/* One rounding: a vector instruction where the host has it, the C library's exact function elsewhere. */
struct Fma {
    static constexpr unsigned arity = 3;
    static float apply(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
    static double apply(double a, double b, double c) { return __builtin_fma(a, b, c); }
};
/* Hardware multiplies with 1/b, which is 0 for the largest b: then a finite a gives 0 and infinity gives NaN. */
struct DivApprox {
    static constexpr unsigned arity = 2;
    static float apply(float a, float b)
    {
        bool huge = std::fabs(b) > 0x1p126f && std::fabs(b) < INFINITY;
        float r = huge ? 0.0f : 1.0f / b;
        return huge ? a * std::copysign(r, b) : a / b;
    }
};
struct Neg {
    static constexpr unsigned arity = 1;
    template <class T>
    static T apply(T a)
    {
        return -a;
    }
};
struct Abs {
    static constexpr unsigned arity = 1;
    static float apply(float a) { return __builtin_fabsf(a); }
    static double apply(double a) { return __builtin_fabs(a); }
};

/* -0 is less than +0.  A NaN loses against a number, unless .NaN.  .xorsign.abs: magnitudes are compared, and the result gets the
 * product's sign. */
template <bool Max, bool Nan, bool XorSign>
struct MinMax {
    static constexpr unsigned arity = 2;
    template <class T>
    static T apply(T a, T b)
    {
        const bool negative = XorSign && std::signbit(a) != std::signbit(b);
        if (XorSign) {
            a = std::fabs(a);
            b = std::fabs(b);
        }
        bool a_less = a < b || (a == b && std::signbit(a));
        T r = a_less != Max ? a : b;
        if (Nan)
            r = a != a ? a : b != b ? b : r;
        else
            r = a != a ? b : b != b ? a : r;
        return negative ? -r : r; /* a NaN becomes canonical */
    }
};

/* Of f64, neg and abs change the sign bit alone, of a NaN too. */
template <class Op>
Step sign_f64(Warp &w, const Inst &i)
{
    double *d = w.out<double>(i.op[0]);
    const double *a = w.in<double>(i.op[1]);
    for_lanes(w.active, [=](unsigned l) { d[l] = Op::apply(a[l]); });
    return Step::next;
}

/* "Copies the sign bit of a into b": nothing else of b changes. */
template <class U>
Step copysign_bits(Warp &w, const Inst &i)
{
    constexpr U sign = U(1) << (8 * sizeof(U) - 1);
    U *d = w.out<U>(i.op[0]);
    const U *a = w.in<U>(i.op[1]), *b = w.in<U>(i.op[2]);
    for_lanes(w.active, [=](unsigned l) { d[l] = (a[l] & sign) | (b[l] & ~sign); });
    return Step::next;
}

/* testp.  Zeros count as normal. */
enum TestClass { finite, infinite, number, notanumber, normal, subnormal };
template <class T>
bool has_class(T x, TestClass c)
{
    switch (c) {
    case finite:
        return std::isfinite(x);
    case infinite:
        return std::isinf(x);
    case number:
        return !std::isnan(x);
    case notanumber:
        return std::isnan(x);
    case normal:
        return std::isnormal(x) || x == 0;
    case subnormal:
        return std::fpclassify(x) == FP_SUBNORMAL;
    }
    return false;
}
template <class T>
Step testp(Warp &w, const Inst &i)
{
    const T *a = w.in<T>(i.op[1]);
    const TestClass c = TestClass(i.flags);
    w.set_pred(i.op[0], lanes_where(w.active, [=](unsigned l) { return has_class(a[l], c); }));
    return Step::next;
}

/* ---- builders ---- */
template <class Op, bool NeedsRounding>
void build(Decode &d, Inst &i)
{
    const Mode m = Mode::take(d);
    if (NeedsRounding && !m.has_round)
        d.fail("a rounding modifier (.rn, .rz, .rm or .rp) is missing");
    build_arithmetic<Op>(d, i, m, d.type(), true);
}

void build_div(Decode &d, Inst &i)
{
    const int approximate = d.take_one_of({"approx", "full"});
    const Mode m = Mode::take(d);
    const Type t = d.type();
    if (approximate < 0 && !m.has_round)
        d.fail("a rounding modifier, .approx or .full is missing");
    if (approximate >= 0 && (m.has_round || t != Type::f32))
        d.fail(".approx and .full are for f32, without a rounding modifier");
    build_arithmetic<Div>(d, i, m, t, false);
    if (approximate == 0)
        i.exec = choose_f32<DivApprox>(m);
}

template <class Op>
void build_sign(Decode &d, Inst &i)
{
    Mode m;
    m.ftz = d.take("ftz");
    build_arithmetic<Op>(d, i, m, d.type(), false);
    if (i.type == Type::f64)
        i.exec = sign_f64<Op>;
}

template <bool Max>
void build_min_max(Decode &d, Inst &i)
{
    Mode m;
    m.ftz = d.take("ftz");
    const bool nan = d.take("NaN"), xorsign = d.take("xorsign");
    if (xorsign && !d.take("abs"))
        d.fail(".xorsign goes with .abs");
    const Type t = d.type();
    if ((nan || xorsign) && t != Type::f32)
        d.fail(".NaN and .xorsign.abs are not for .%s", type_text(t));
    if (nan)
        d.need_sm(80);
    if (xorsign)
        d.need_sm(86);
    build_arithmetic<MinMax<Max, false, false>>(d, i, m, t, false);
    if (nan)
        i.exec = xorsign ? choose_f32<MinMax<Max, true, true>>(m) : choose_f32<MinMax<Max, true, false>>(m);
    else if (xorsign)
        i.exec = choose_f32<MinMax<Max, false, true>>(m);
}

void build_copysign(Decode &d, Inst &i)
{
    const Type t = d.type();
    if (t != Type::f32 && t != Type::f64)
        d.fail("type .%s is not supported here", type_text(t));
    i.exec = t == Type::f32 ? copysign_bits<uint32_t> : copysign_bits<uint64_t>;
    i.cls = Class::floating;
    same_type_operands(d, t, 2);
}

void build_testp(Decode &d, Inst &i)
{
    const int c = d.take_one_of({"finite", "infinite", "number", "notanumber", "normal", "subnormal"});
    const Type t = d.type();
    if (c < 0)
        d.fail("the class to test for is missing");
    if ((t != Type::f32 && t != Type::f64) || d.n() != 2)
        d.fail("takes a predicate and an f32 or f64");
    i.exec = t == Type::f32 ? testp<float> : testp<double>;
    i.flags = uint32_t(c);
    i.cls = Class::floating;
    d.pred_out(d.operand(0));
    d.in(1, t);
}

constexpr Opcode opcodes[] = {
    {"add", build<Add, false>, Takes::single},    {"sub", build<Sub, false>, Takes::single},
    {"mul", build<Mul, false>, Takes::single},    {"fma", build<Fma, true>, Takes::single},
    {"mad", build<Fma, true>, Takes::single},     {"div", build_div, Takes::single},
    {"neg", build_sign<Neg>, Takes::single},      {"abs", build_sign<Abs>, Takes::single},
    {"min", build_min_max<false>, Takes::single}, {"max", build_min_max<true>, Takes::single},
    {"copysign", build_copysign, Takes::single},  {"testp", build_testp, Takes::single},
};
} // namespace

const Family float_family = {opcodes, sizeof(opcodes) / sizeof(*opcodes)};

} // namespace ptxemu

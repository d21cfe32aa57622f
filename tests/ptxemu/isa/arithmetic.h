/* What the instructions on f32 and f64 have in common: rounding modes, .ftz, .sat, NaNs, and the choice of a handler. */
#ifndef PTXEMU_ISA_ARITHMETIC_H
#define PTXEMU_ISA_ARITHMETIC_H

#include <cfenv>
#include <utility>

#include "isa/decode.h"
#include "isa/lanes.h"
#include "isa/softfloat.h"
#include "machine/warp.h"

namespace ptxemu
{

/* The host rounds in another mode while this lives.  The compiler does not know that arithmetic depends on the mode, but it has to
 * keep accesses to memory between the barriers, and so what is computed from loaded and for stored values. */
class HostRounding
{
  public:
    explicit HostRounding(Round r) : before_(std::fegetround())
    {
        static constexpr int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
        std::fesetround(modes[size_t(r)]);
        asm volatile("" ::: "memory");
    }
    ~HostRounding()
    {
        asm volatile("" ::: "memory");
        std::fesetround(before_);
    }
    HostRounding(const HostRounding &) = delete;

  private:
    int before_;
};

/* NaN results of f64: the first NaN among the operands, made quiet, else the one that hardware generates. */
inline double nan_of()
{
    return bits_as<double>(uint64_t(0xfff8000000000000));
}
template <class... A>
inline double nan_of(double a, A... rest)
{
    return a != a ? bits_as<double>(bits_as<uint64_t>(a) | 0x0008000000000000) : nan_of(rest...);
}

template <class Op, bool Ftz, bool Sat, class... A>
inline float evaluate(float a, A... rest)
{
    float r = Ftz ? flush(Op::apply(flush(a), flush(rest)...)) : Op::apply(a, rest...);
    return Sat ? saturate(r) : canonical(r);
}
template <class Op, bool Ftz, bool Sat, class... A>
inline double evaluate(double a, A... rest)
{
    double r = Ftz ? flush(Op::apply(flush(a), flush(rest)...)) : Op::apply(a, rest...);
    return r != r ? nan_of(a, rest...) : r;
}

template <class Op, class T, bool Ftz, bool Sat, size_t... K>
inline void run_lanes(Warp &w, const Inst &i, std::index_sequence<K...>)
{
    T *d = w.out<T>(i.op[0]);
    const T *const a[] = {w.in<T>(i.op[K + 1])...};
    for_lanes(w.active, [=](unsigned l) { d[l] = evaluate<Op, Ftz, Sat>(a[K][l]...); });
}

/* Op has `arity` and `apply`, a template over float and double. */
template <class Op, class T, bool Ftz, bool Sat>
Step arithmetic(Warp &w, const Inst &i)
{
    run_lanes<Op, T, Ftz, Sat>(w, i, std::make_index_sequence<Op::arity>());
    return Step::next;
}

/* The same with the rounding mode in Inst::flags. */
template <Exec Nearest>
Step directed(Warp &w, const Inst &i)
{
    HostRounding mode{Round(i.flags)};
    return Nearest(w, i);
}

/* How an f32 or f64 instruction is to be done; take() consumes the modifiers. */
struct Mode {
    Round round = Round::rn;
    bool has_round = false, ftz = false, sat = false;

    static Mode take(Decode &d)
    {
        Mode m;
        int r = d.take_one_of({"rn", "rz", "rm", "rp"});
        m.has_round = r >= 0;
        m.round = m.has_round ? Round(r) : Round::rn;
        m.ftz = d.take("ftz");
        m.sat = d.take("sat");
        return m;
    }
};

template <class Op, class T, bool Ftz, bool Sat>
Exec choose_rounding(Round r)
{
    constexpr Exec nearest = arithmetic<Op, T, Ftz, Sat>;
    return r == Round::rn ? nearest : directed<nearest>;
}
template <class Op>
Exec choose_f32(const Mode &m)
{
    if (m.ftz)
        return m.sat ? choose_rounding<Op, float, true, true>(m.round)
                     : choose_rounding<Op, float, true, false>(m.round);
    return m.sat ? choose_rounding<Op, float, false, true>(m.round) : choose_rounding<Op, float, false, false>(m.round);
}

/* The destination and `n` sources of one type, and nothing else. */
inline void same_type_operands(Decode &d, Type t, unsigned n)
{
    if (d.n() != n + 1)
        d.fail("takes %u operands, not %zu", n + 1, d.n());
    d.out(size_t(0), t);
    for (unsigned k = 1; k <= n; k++)
        d.in(k, t);
}

/* An instruction that exists for f32 (with .ftz and, if `may_sat`, .sat) and f64 (with neither). */
template <class Op>
void build_arithmetic(Decode &d, Inst &i, const Mode &m, Type t, bool may_sat)
{
    if (t == Type::f32) {
        if (m.sat && !may_sat)
            d.fail(".sat is not for this instruction");
        i.exec = choose_f32<Op>(m);
    } else if (t == Type::f64) {
        if (m.ftz || m.sat)
            d.fail(".ftz and .sat are for f32");
        i.exec = choose_rounding<Op, double, false, false>(m.round);
    } else {
        d.fail("type .%s is not supported here", type_text(t));
    }
    same_type_operands(d, t, Op::arity);
    i.type = t;
    i.cls = Class::floating;
    i.flags = uint32_t(m.round);
}

} // namespace ptxemu

#endif

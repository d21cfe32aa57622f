/* alloca, stacksave, stackrestore: local memory whose size a thread finds out while it runs.
 *
 * It lies behind the frame of the activation and grows upwards, for each lane as far as that lane asked for; the frame of a
 * callee begins behind the furthest of the lanes that call.  An activation that ends gives everything back. */
#include <algorithm>
#include <iterator>

#include "isa/decode.h"
#include "machine/block.h"
#include "memory/access.h"

namespace ptxemu
{
namespace
{
uint64_t dynamic_begin(const Warp &w)
{
    return uint64_t(w.frame->base) + w.frame->fn->frame_bytes;
}

std::vector<uint32_t> &grown(Warp &w)
{
    w.frame->grown.resize(WARP_SIZE);
    return w.frame->grown;
}

/* `size` bytes at a multiple of i.imm, of which nothing has been written. */
uint64_t allocate(Warp &w, const Inst &i, unsigned lane, uint64_t size)
{
    Block &b = *w.block;
    uint32_t &used = grown(w)[lane];
    const uint64_t at = (dynamic_begin(w) + used + i.imm - 1) / i.imm * i.imm;
    if (at > b.stack_bytes || size > b.stack_bytes - at)
        fault(FaultKind::stack_overflow, int(lane),
              "alloca of %llu bytes behind %llu that are in use, a thread has %u bytes of local memory",
              (unsigned long long)size, (unsigned long long)at, b.stack_bytes);
    if (!b.local_written.empty())
        std::fill_n(b.local_written.begin() + ptrdiff_t(uint64_t(w.thread(lane)) * b.stack_bytes + at), size,
                    uint8_t(!b.grid->launch.options.init));
    used = uint32_t(at + size - dynamic_begin(w));
    return at;
}

template <class T>
Step run_alloca(Warp &w, const Inst &i)
{
    const T *size = w.in<T>(i.op[1]);
    T *d = w.out<T>(i.op[0]);
    each_lane(w.active, [&](unsigned l) { d[l] = T(allocate(w, i, l, size[l])); });
    return Step::next;
}

template <class T>
Step run_stacksave(Warp &w, const Inst &i)
{
    T *d = w.out<T>(i.op[0]);
    each_lane(w.active, [&](unsigned l) { d[l] = T(dynamic_begin(w) + grown(w)[l]); });
    return Step::next;
}

template <class T>
Step run_stackrestore(Warp &w, const Inst &i)
{
    const T *to = w.in<T>(i.op[0]);
    each_lane(w.active, [&](unsigned l) {
        uint32_t &used = grown(w)[l];
        if (to[l] < dynamic_begin(w) || to[l] - dynamic_begin(w) > used)
            fault(FaultKind::stack_overflow, int(l),
                  "stackrestore to 0x%llx, which no stacksave of this activation gave", (unsigned long long)to[l]);
        used = uint32_t(to[l] - dynamic_begin(w));
    });
    return Step::next;
}

Type address_type(Decode &d)
{
    const Type t = d.type();
    if (t != Type::u32 && t != Type::u64)
        d.fail("an address of the stack is a .u32 or a .u64");
    return t;
}

void build_alloca(Decode &d, Inst &i)
{
    const Type t = address_type(d);
    i.cls = Class::local;
    d.out(0, t);
    d.in(1, t);
    i.imm = 8;
    if (d.n() > 2) {
        const ptx::Operand &align = d.operand(2);
        if (align.kind != ptx::Operand::integer || !align.bits || align.bits & (align.bits - 1) ||
            align.bits > 1u << 23)
            d.fail("the alignment has to be a power of two");
        i.imm = align.bits;
    }
    i.exec = t == Type::u64 ? run_alloca<uint64_t> : run_alloca<uint32_t>;
}

void build_stacksave(Decode &d, Inst &i)
{
    const Type t = address_type(d);
    i.cls = Class::local;
    d.out(0, t);
    i.exec = t == Type::u64 ? run_stacksave<uint64_t> : run_stacksave<uint32_t>;
}

void build_stackrestore(Decode &d, Inst &i)
{
    const Type t = address_type(d);
    i.cls = Class::local;
    d.in(0, t);
    i.exec = t == Type::u64 ? run_stackrestore<uint64_t> : run_stackrestore<uint32_t>;
}

const Opcode opcodes[] = {
    {"alloca", build_alloca}, {"stacksave", build_stacksave}, {"stackrestore", build_stackrestore}};
} // namespace

const Family alloca_family = {opcodes, std::size(opcodes)};

} // namespace ptxemu

/* Reductions of bulk copies: the operations of red, element by element. */
#include "isa/bulk.h"
#include "isa/rmw.h"

namespace ptxemu
{
namespace
{
using namespace rmw;

template <class Op>
void reduce(uint8_t *to, const uint8_t *from, size_t bytes, bool in_shared)
{
    using T = typename Op::Bits;
    for (size_t at = 0; at < bytes; at += sizeof(T)) {
        T b, old;
        memcpy(&b, from + at, sizeof b);
        swap_in<Op>(to + at, b, T(), Place{in_shared}, &old);
    }
}

struct Entry {
    RedOp op;
    Type type;
    Reduction f;
};
const Entry entries[] = {
    {RedOp::add, Type::u32, reduce<Add<uint32_t>>},
    {RedOp::add, Type::s32, reduce<Add<uint32_t>>},
    {RedOp::add, Type::u64, reduce<Add<uint64_t>>},
    {RedOp::add, Type::s64, reduce<Add<uint64_t>>},
    {RedOp::add, Type::f32, reduce<AddF32>},
    {RedOp::add, Type::f64, reduce<AddF64>},
    {RedOp::add, Type::f16, reduce<Add16<Half>>},
    {RedOp::add, Type::bf16, reduce<Add16<Bfloat>>},
    {RedOp::min, Type::u32, reduce<Min<uint32_t>>},
    {RedOp::min, Type::s32, reduce<Min<int32_t>>},
    {RedOp::min, Type::u64, reduce<Min<uint64_t>>},
    {RedOp::min, Type::s64, reduce<Min<int64_t>>},
    {RedOp::min, Type::f16, reduce<Select16<Half, false>>},
    {RedOp::min, Type::bf16, reduce<Select16<Bfloat, false>>},
    {RedOp::max, Type::u32, reduce<Max<uint32_t>>},
    {RedOp::max, Type::s32, reduce<Max<int32_t>>},
    {RedOp::max, Type::u64, reduce<Max<uint64_t>>},
    {RedOp::max, Type::s64, reduce<Max<int64_t>>},
    {RedOp::max, Type::f16, reduce<Select16<Half, true>>},
    {RedOp::max, Type::bf16, reduce<Select16<Bfloat, true>>},
    {RedOp::inc, Type::u32, reduce<Inc>},
    {RedOp::dec, Type::u32, reduce<Dec>},
    {RedOp::and_, Type::b32, reduce<And<uint32_t>>},
    {RedOp::and_, Type::b64, reduce<And<uint64_t>>},
    {RedOp::or_, Type::b32, reduce<Or<uint32_t>>},
    {RedOp::or_, Type::b64, reduce<Or<uint64_t>>},
    {RedOp::xor_, Type::b32, reduce<Xor<uint32_t>>},
    {RedOp::xor_, Type::b64, reduce<Xor<uint64_t>>},
};
} // namespace

Reduction find_reduction(RedOp op, Type t)
{
    for (const Entry &r : entries)
        if (r.op == op && r.type == t)
            return r.f;
    return nullptr;
}

RedOp take_red_op(Decode &d)
{
    const int k = d.take_one_of({"add", "min", "max", "inc", "dec", "and", "or", "xor"});
    if (k < 0)
        d.fail("the operation is missing");
    return RedOp(k);
}

} // namespace ptxemu

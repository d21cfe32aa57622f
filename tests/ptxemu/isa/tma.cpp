/* Tensor copies (TMA): boxes of a tensor of 1 to 5 dimensions, described by a tensor map, to and from tiles in shared memory.
 *
 * A tile is the box's elements without gaps, dimension 0 running fastest; the swizzle then moves its 16-byte pieces.  A box may stick
 * out of its tensor: loads fill what is outside, stores leave it out. */
#include <algorithm>
#include <cstring>

#include "check/race.h"
#include "isa/bulk.h"
#include "isa/softfloat.h"
#include "isa/tensor_map.h"

namespace ptxemu
{
namespace
{

constexpr uint32_t PIECE = 16;       /* bytes that stay together in every swizzle */
constexpr uint32_t TILE_ALIGN = 128; /* of a tile in shared memory */

/* A box at a place of its tensor. */
struct Box {
    TensorMap map;
    int64_t start[TENSOR_MAX_RANK] = {};
    uint32_t element = 0, row_bytes = 0, rows = 1, bytes = 0;

    /* The part of row `r` that lies inside of the tensor: bytes [from, to) of the row, and where its first byte is. */
    struct Part {
        uint32_t from = 0, to = 0;
        uint64_t address = 0;
    };
    Part part(uint32_t r) const
    {
        Part p;
        uint64_t address = map.address;
        for (unsigned d = 1; d < map.rank; d++) {
            const int64_t at = start[d] + int64_t(r % map.extent(d)) * map.step[d];
            if (at < 0 || uint64_t(at) >= map.size[d])
                return p;
            address += uint64_t(at) * map.stride[d - 1];
            r /= map.extent(d);
        }
        const int64_t first = std::max<int64_t>(0, -start[0]);
        const int64_t last = std::min<int64_t>(map.box[0], int64_t(map.size[0]) - start[0]);
        if (first >= last)
            return p;
        p.from = uint32_t(first) * element;
        p.to = uint32_t(last) * element;
        p.address = address + uint64_t(start[0] + first) * element;
        return p;
    }
    /* Where piece `k` of the tile at shared offset `tile` lies, relative to the tile. */
    uint32_t place(uint32_t tile, uint32_t k) const { return swizzle_address(map.swizzle, tile + k * PIECE) - tile; }
    /* Bytes of shared memory that the tile may touch: a swizzle permutes whole lines of 128 bytes. */
    uint32_t span() const { return map.swizzle == Swizzle::none ? bytes : (bytes + 127) / 128 * 128; }
};

const BulkInst &tensor_of(const Inst &i)
{
    return *static_cast<const BulkInst *>(i.extra);
}

/* A parameter's address in the parameter block, which the host has put anywhere. */
uint64_t in_its_space(const Warp &w, uint64_t address)
{
    const std::vector<uint8_t> &params = w.block->grid->params;
    const uint64_t offset = address - reinterpret_cast<uint64_t>(params.data());
    return offset < params.size() ? offset : address;
}

Box box_of(Warp &w, const Inst &i, const BulkInst &x, unsigned lane)
{
    const uint64_t address = x.map.of(w, i, lane);
    Box b;
    if (in_its_space(w, address) % 64)
        fault_at(FaultKind::invalid_descriptor, int(lane), x.map.space, address,
                 "a tensor map has to be aligned to 64 bytes, but this one is at 0x%llx", (unsigned long long)address);
    memcpy(static_cast<void *>(&b.map), resolve_range(w, x.map.space, Use::read, address, sizeof b.map, 1),
           sizeof b.map);
    if (!b.map.valid())
        fault_at(FaultKind::invalid_descriptor, int(lane), x.map.space, address,
                 "at 0x%llx there is no tensor map: cuTensorMapEncodeTiled makes them, and the kernel gets them as a "
                 "__grid_constant__ parameter or in global or constant memory",
                 (unsigned long long)address);
    if (b.map.rank != x.rank)
        fault_at(FaultKind::invalid_descriptor, int(lane), x.map.space, address,
                 "a copy of %u dimensions with a tensor map of %u", x.rank, b.map.rank);
    for (unsigned d = 0; d < x.rank; d++)
        b.start[d] = w.in<int32_t>(i.op[x.coordinates + d])[lane];
    b.element = tensor_type_bytes(b.map.type);
    b.bytes = b.map.box_bytes();
    b.row_bytes = b.map.box[0] * b.element;
    b.rows = b.bytes / b.row_bytes;
    return b;
}

/* What elements outside of the tensor become. */
void fill(const TensorMap &m, uint8_t *to, uint32_t bytes)
{
    if (!m.nan_fill) {
        memset(to, 0, bytes);
        return;
    }
    for (uint32_t at = 0; at < bytes; at += 2)
        memcpy(to + at, &OOB_NAN_16, 2);
}

/* The tile as the box says, not swizzled yet. */
void gather(Warp &w, const Box &b, uint8_t *tile)
{
    for (uint32_t r = 0; r < b.rows; r++) {
        uint8_t *row = tile + size_t(r) * b.row_bytes;
        const Box::Part p = b.part(r);
        fill(b.map, row, p.from);
        if (p.from < p.to) {
            memcpy(row + p.from, resolve_range(w, Space::global, Use::async_read, p.address, p.to - p.from, b.element),
                   p.to - p.from);
            count_engine_global(w, false, p.address, p.to - p.from);
        }
        fill(b.map, row + p.to, b.row_bytes - p.to);
    }
}

Step load(Warp &w, const Inst &i)
{
    const BulkInst &x = tensor_of(i);
    return one_by_one(w, [&](unsigned l) {
        const Box b = box_of(w, i, x, l);
        std::vector<uint8_t> tile(b.bytes);
        gather(w, b, tile.data());
        each_delivery(w, i, x, l, b.span(), TILE_ALIGN, [&](const Delivery &d) {
            const uint32_t offset = uint32_t(d.to - d.owner->shared);
            for (uint32_t k = 0; k < b.bytes / PIECE; k++)
                memcpy(d.to + b.place(offset, k), &tile[k * PIECE], PIECE);
            delivered(w, d, b.bytes);
        });
    });
}

/* ---------------------------------------------------------------- to global memory */

Type red_type(RedOp op, TensorType t)
{
    static const Type types[] = {Type::none, Type::none, Type::u32, Type::s32, Type::u64,
                                 Type::s64,  Type::f16,  Type::f32, Type::f64, Type::bf16};
    static_assert(sizeof types == size_t(TensorType::count), "a type for each");
    const Type type = types[size_t(t)];
    const bool logic = op == RedOp::and_ || op == RedOp::or_ || op == RedOp::xor_;
    if (logic && !is_float(type))
        return type_bits(type) == 64 ? Type::b64 : type_bits(type) == 32 ? Type::b32 : Type::none;
    return type;
}

/* The row's part inside of the tensor, from shared memory, whose pieces may lie apart. */
void scatter_row(Warp &w, const Box &b, uint32_t r, const uint8_t *tile, uint32_t offset, Reduction reduce)
{
    const Box::Part p = b.part(r);
    if (p.from >= p.to)
        return;
    uint8_t row[256 * 8];
    for (uint32_t k = p.from / PIECE; k * PIECE < p.to; k++) {
        const uint32_t at = b.place(offset, r * (b.row_bytes / PIECE) + k), begin = std::max(p.from, k * PIECE),
                       end = std::min(p.to, (k + 1) * PIECE);
        /* Only what goes to memory has to have been written. */
        resolve_range(w, Space::shared, Use::async_read, offset + at + (begin - k * PIECE), end - begin, 1);
        memcpy(row + begin, tile + at + (begin - k * PIECE), end - begin);
    }
    uint8_t *to =
        resolve_range(w, Space::global, reduce ? Use::atomic : Use::async_write, p.address, p.to - p.from, b.element);
    count_engine_global(w, true, p.address, p.to - p.from);
    if (reduce)
        reduce(to, row + p.from, p.to - p.from, false);
    else
        memcpy(to, row + p.from, p.to - p.from);
}

Step store(Warp &w, const Inst &i)
{
    const BulkInst &x = tensor_of(i);
    return one_by_one(w, [&](unsigned l) {
        const Box b = box_of(w, i, x, l);
        Reduction reduce = nullptr;
        if (x.op != RedOp::none) {
            reduce = find_reduction(x.op, red_type(x.op, b.map.type));
            if (!reduce)
                fault(FaultKind::invalid_descriptor, int(l), "the tensor's type does not go with this reduction");
        }
        /* Bounds and alignment of the whole tile; async_write asks for nothing to be there. */
        const uint64_t from = x.from.of(w, i, l);
        if (from % TILE_ALIGN)
            fault_at(FaultKind::misaligned, int(l), Space::shared, from,
                     "a tile in shared memory has to be aligned to %u bytes, but this one is at offset %llu",
                     TILE_ALIGN, (unsigned long long)from);
        const uint64_t offset = from & 0xffffff;
        if (offset + b.span() > w.block->shared_bytes)
            fault_at(FaultKind::out_of_bounds, int(l), Space::shared, from,
                     "a tile of %u bytes at shared offset %llu: the block has %u bytes of shared memory", b.span(),
                     (unsigned long long)offset, w.block->shared_bytes);
        const uint8_t *tile = w.block->shared + offset;
        reading_for_group(w, l, tile, b.bytes);
        for (uint32_t r = 0; r < b.rows; r++)
            scatter_row(w, b, r, tile, uint32_t(offset), reduce);
        note_progress(w);
    });
}

Step prefetch(Warp &w, const Inst &i) /* there is no cache to fill; the tensor map has to be right */
{
    return one_by_one(w, [&](unsigned l) { box_of(w, i, tensor_of(i), l); });
}

/* ---------------------------------------------------------------- builders */

unsigned take_rank(Decode &d)
{
    const int k = d.take_one_of({"1d", "2d", "3d", "4d", "5d"});
    if (k < 0)
        d.fail("the number of dimensions (.1d to .5d) is missing");
    return unsigned(k) + 1;
}

void take_mode(Decode &d)
{
    for (const std::string &m : d.src().mods)
        if (m.rfind("im2col", 0) == 0)
            d.fail("the emulator copies tensors in .tile mode only, not in .%s mode", m.c_str());
    d.take("tile");
}

/* [map, {c0, c1, ...}]: operand k. */
void take_map(Decode &d, Inst &i, Operands &o, size_t k, BulkInst *x)
{
    const ptx::Operand &both = d.operand(k);
    if (both.kind != ptx::Operand::address || both.items.size() != 2)
        d.fail("an operand is not a tensor map with coordinates in brackets");
    ptx::Operand map = both;
    map.items.pop_back();
    x->map = o.address(map, Space::generic);
    if (both.items[1].items.size() != x->rank)
        d.fail("%zu coordinates for %u dimensions", both.items[1].items.size(), x->rank);
    for (unsigned c = 0; c < x->rank; c++) {
        const uint32_t at = o.in(both.items[1].items[c], Type::s32);
        if (c == 0)
            x->coordinates = at;
    }
    i.extra = x;
    i.cls = Class::async_copy;
}

BulkInst *begin(Decode &d)
{
    d.need_sm(90);
    BulkInst *x = d.extra<BulkInst>();
    x->rank = take_rank(d);
    return x;
}

void build_tensor_store(Decode &d, Inst &i, BulkInst *x)
{
    if (!d.take("shared::cta") || !d.take("bulk_group"))
        d.fail("tensors are stored from .shared::cta, with .bulk_group");
    Operands o(d, i);
    take_map(d, i, o, 0, x);
    x->from = o.address(1, Space::shared);
    take_tail(d, o, 2, x, false);
    i.exec = store;
}

void build_tensor_load(Decode &d, Inst &i, BulkInst *x)
{
    const bool cluster = d.take("shared::cluster");
    if ((!cluster && !d.take("shared::cta")) || !d.take("global") || !d.take("mbarrier::complete_tx::bytes"))
        d.fail(
            "tensors are loaded from .global to .shared::cluster or .shared::cta, with .mbarrier::complete_tx::bytes");
    const Space space = cluster ? Space::shared_cluster : Space::shared;
    const bool multicast = cluster && d.take("multicast::cluster");
    Operands o(d, i);
    x->to = o.address(0, space);
    take_map(d, i, o, 1, x);
    x->bar = o.address(2, space);
    take_tail(d, o, 3, x, multicast);
    i.exec = load;
}

} // namespace

void build_tensor_copy(Decode &d, Inst &i)
{
    const std::vector<std::string> &mods = d.src().mods;
    BulkInst *x = begin(d);
    take_mode(d);
    if (mods.size() > 4 && mods[4] == "global" && d.take("global"))
        build_tensor_store(d, i, x);
    else
        build_tensor_load(d, i, x);
}

void build_tensor_reduce(Decode &d, Inst &i)
{
    BulkInst *x = begin(d);
    take_mode(d);
    x->op = take_red_op(d);
    if (!d.take("global"))
        d.fail("tensors are reduced in .global");
    build_tensor_store(d, i, x);
}

void build_tensor_prefetch(Decode &d, Inst &i)
{
    BulkInst *x = begin(d);
    take_mode(d);
    if (!d.take("L2") || !d.take("global"))
        d.fail("tensors are prefetched to .L2 from .global");
    Operands o(d, i);
    take_map(d, i, o, 0, x);
    take_tail(d, o, 1, x, false);
    i.exec = prefetch;
}

} // namespace ptxemu

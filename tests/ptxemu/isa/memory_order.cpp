#include "isa/memory_order.h"

#include "check/race.h"
#include "memory/access.h"

namespace ptxemu
{

Space take_space(Decode &d)
{
    struct Name {
        const char *text;
        Space space;
        unsigned sm;
    };
    static const Name names[] = {
        {"global", Space::global, 0},      {"shared", Space::shared, 0},
        {"shared::cta", Space::shared, 0}, {"shared::cluster", Space::shared_cluster, 90},
        {"local", Space::local, 0},        {"const", Space::constant, 0},
        {"param", Space::param, 0},        {"param::entry", Space::param, 0},
        {"param::func", Space::param, 0},
    };
    for (const Name &n : names)
        if (d.take(n.text)) {
            if (n.sm)
                d.need_sm(n.sm);
            return n.space;
        }
    return Space::generic;
}

bool take_scope(Decode &d)
{
    int k = d.take_one_of({"cta", "gpu", "sys", "cluster"});
    if (k == 3)
        d.need_sm(90);
    return k >= 0;
}

void take_cache_hints(Decode &d, bool *policy)
{
    *policy = d.take("L2::cache_hint");
    if (*policy)
        d.need_sm(80);
    d.take_one_of({"L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate"});
    d.take_one_of({"L2::evict_normal", "L2::evict_first", "L2::evict_last"});
    d.take_one_of({"L2::64B", "L2::128B", "L2::256B"});
}

void take_address(Decode &d, Inst &i, size_t operand, Space space)
{
    bool frame = false;
    d.address(d.operand(operand), space, &frame);
    if (frame)
        i.flags |= FRAME_RELATIVE;
}

void addresses_of(const Warp &w, const Inst &i, const Opnd &base, uint64_t address[WARP_SIZE])
{
    uint64_t offset = i.imm;
    if (i.flags & FRAME_RELATIVE)
        offset += w.frame_base();
    if (i.space == Space::param &&
        base.kind == Opnd::constant) /* a parameter's name: an offset in the block of parameters */
        offset += reinterpret_cast<uint64_t>(w.block->grid->params.data());
    if (base.bits == 32) {
        const uint32_t *b = w.in<uint32_t>(base);
        for (unsigned l = 0; l < WARP_SIZE; l++)
            address[l] = uint32_t(b[l] + offset);
    } else {
        const uint64_t *b = w.in<uint64_t>(base);
        for (unsigned l = 0; l < WARP_SIZE; l++)
            address[l] = b[l] + offset;
    }
}

namespace
{
/* Flags in the block's shared memory are known to the race check from the access itself; what is left are flags elsewhere, which
 * order the warps of a block among themselves as well. */
template <class F>
void each_object(Warp &w, uint8_t *const p[WARP_SIZE], F f)
{
    const Block &b = *w.block;
    const uint64_t shared = reinterpret_cast<uint64_t>(b.shared);
    const uint8_t *last = nullptr;
    each_lane(w.active, [&](unsigned l) {
        if (p[l] != last && reinterpret_cast<uint64_t>(p[l]) - shared >= b.shared_bytes)
            f(reinterpret_cast<uint64_t>(p[l]));
        last = p[l];
    });
}
} // namespace

void publish(Warp &w, uint8_t *const p[WARP_SIZE])
{
    if (RaceShadow *race = w.block->race.get())
        each_object(w, p, [&](uint64_t object) { race->release(object, w.index); });
}

void take_over(Warp &w, uint8_t *const p[WARP_SIZE])
{
    if (RaceShadow *race = w.block->race.get())
        each_object(w, p, [&](uint64_t object) { race->acquire(object, w.index); });
}

std::mutex &wide_access()
{
    static std::mutex m;
    return m;
}

} // namespace ptxemu

#include "isa/special.h"

#include <chrono>
#include <map>

#include "machine/block.h"

namespace ptxemu
{
namespace
{
const std::map<std::string, Special> &names()
{
    static const std::map<std::string, Special> m = [] {
        using S = Special;
        std::map<std::string, Special> t = {{"laneid", S::laneid},
                                            {"warpid", S::warpid},
                                            {"nwarpid", S::nwarpid},
                                            {"smid", S::smid},
                                            {"nsmid", S::nsmid},
                                            {"gridid", S::gridid},
                                            {"lanemask_eq", S::lanemask_eq},
                                            {"lanemask_le", S::lanemask_le},
                                            {"lanemask_lt", S::lanemask_lt},
                                            {"lanemask_ge", S::lanemask_ge},
                                            {"lanemask_gt", S::lanemask_gt},
                                            {"clock", S::clock},
                                            {"clock_hi", S::clock_hi},
                                            {"clock64", S::clock64},
                                            {"globaltimer", S::globaltimer},
                                            {"globaltimer_lo", S::globaltimer_lo},
                                            {"globaltimer_hi", S::globaltimer_hi},
                                            {"cluster_ctarank", S::cluster_ctarank},
                                            {"cluster_nctarank", S::cluster_nctarank},
                                            {"is_explicit_cluster", S::is_explicit_cluster},
                                            {"dynamic_smem_size", S::dynamic_smem_size},
                                            {"total_smem_size", S::total_smem_size},
                                            {"aggr_smem_size", S::aggr_smem_size},
                                            {"reserved_smem_offset_begin", S::zero},
                                            {"reserved_smem_offset_1", S::group_scratch},
                                            {"reserved_smem_offset_cap", S::reserved_smem},
                                            {"reserved_smem_offset_end", S::reserved_smem}};
        const std::pair<const char *, Special> vectors[] = {{"tid", S::tid_x},
                                                            {"ntid", S::ntid_x},
                                                            {"ctaid", S::ctaid_x},
                                                            {"nctaid", S::nctaid_x},
                                                            {"clusterid", S::clusterid_x},
                                                            {"nclusterid", S::nclusterid_x},
                                                            {"cluster_ctaid", S::cluster_ctaid_x},
                                                            {"cluster_nctaid", S::cluster_nctaid_x}};
        for (auto &v : vectors) {
            for (int c = 0; c < 3; c++)
                t[std::string(v.first) + "." + "xyz"[c]] = Special(int(v.second) + c);
            t[std::string(v.first) + ".w"] = S::zero;
        }
        for (int e = 0; e < 32; e++)
            t["envreg" + std::to_string(e)] = e == 1 ? S::envreg1 : e == 2 ? S::envreg2 : S::zero;
        return t;
    }();
    return m;
}

uint32_t component(const Dim3 &d, int c)
{
    return c == 0 ? d.x : c == 1 ? d.y : d.z;
}

uint64_t now_ns()
{
    auto t = std::chrono::system_clock::now().time_since_epoch();
    return uint64_t(std::chrono::duration_cast<std::chrono::nanoseconds>(t).count());
}

/* Threads are numbered x fastest; lanes behind the end of the block get numbers that nobody sees. */
void thread_index(const Warp &w, int c, uint64_t out[WARP_SIZE])
{
    const Dim3 &n = w.block->grid->launch.block;
    uint32_t t = w.index * WARP_SIZE;
    Dim3 at{t % n.x, t / n.x % n.y, t / n.x / n.y};
    for (unsigned l = 0; l < WARP_SIZE; l++) {
        out[l] = component(at, c);
        if (++at.x == n.x) {
            at.x = 0;
            if (++at.y == n.y) {
                at.y = 0;
                at.z++;
            }
        }
    }
}

Dim3 rank_in_cluster(const Block &b)
{
    const Dim3 &d = b.cluster->dims;
    return {b.id.x % d.x, b.id.y % d.y, b.id.z % d.z};
}

/* Four clocks an instruction, about what a warp scheduler shared by a few warps gives one of them. */
uint64_t clocks(const Warp &w)
{
    return w.instructions * 4;
}

uint64_t lane_mask(Special s, unsigned l)
{
    uint32_t eq = 1u << l, lt = eq - 1;
    switch (s) {
    case Special::lanemask_eq:
        return eq;
    case Special::lanemask_le:
        return lt | eq;
    case Special::lanemask_lt:
        return lt;
    case Special::lanemask_ge:
        return uint32_t(~lt);
    default:
        return uint32_t(~(lt | eq));
    }
}

uint64_t of_the_launch(const Warp &w, Special s)
{
    const Block &b = *w.block;
    const Grid &g = *b.grid;
    auto part = [&](const Dim3 &d, Special x) { return component(d, int(s) - int(x)); };
    switch (s) {
    case Special::ntid_x:
    case Special::ntid_y:
    case Special::ntid_z:
        return part(g.launch.block, Special::ntid_x);
    case Special::ctaid_x:
    case Special::ctaid_y:
    case Special::ctaid_z:
        return part(b.id, Special::ctaid_x);
    case Special::nctaid_x:
    case Special::nctaid_y:
    case Special::nctaid_z:
        return part(g.launch.grid, Special::nctaid_x);
    case Special::clusterid_x:
    case Special::clusterid_y:
    case Special::clusterid_z:
        return part(b.cluster->id, Special::clusterid_x);
    case Special::nclusterid_x:
    case Special::nclusterid_y:
    case Special::nclusterid_z:
        return part(g.cluster_grid, Special::nclusterid_x);
    case Special::cluster_ctaid_x:
    case Special::cluster_ctaid_y:
    case Special::cluster_ctaid_z:
        return part(rank_in_cluster(b), Special::cluster_ctaid_x);
    case Special::cluster_nctaid_x:
    case Special::cluster_nctaid_y:
    case Special::cluster_nctaid_z:
        return part(b.cluster->dims, Special::cluster_nctaid_x);
    case Special::cluster_ctarank:
        return b.cluster_rank;
    case Special::cluster_nctarank:
        return b.cluster->dims.count();
    case Special::
        is_explicit_cluster: /* launched as a cluster, even of one block, only if the kernel or the launch says so */
        return b.cluster->dims.count() > 1 || g.launch.fn->has_required_cluster;
    case Special::warpid:
        return w.index;
    case Special::nwarpid:
        return g.launch.limits->max_threads_per_sm / WARP_SIZE;
    case Special::smid:
        return b.linear % g.launch.limits->sm_count;
    case Special::nsmid:
        return g.launch.limits->sm_count;
    case Special::gridid:
        return g.id;
    case Special::clock:
        return uint32_t(clocks(w));
    case Special::clock_hi:
        return clocks(w) >> 32;
    case Special::clock64:
        return clocks(w);
    case Special::globaltimer:
        return now_ns();
    case Special::globaltimer_lo:
        return uint32_t(now_ns());
    case Special::globaltimer_hi:
        return now_ns() >> 32;
    case Special::envreg1:
        return g.workspace >> 32;
    case Special::envreg2:
        return uint32_t(g.workspace);
    case Special::dynamic_smem_size:
        return g.launch.dynamic_shared;
    case Special::total_smem_size:
    case Special::aggr_smem_size:
        return b.shared_bytes;
    case Special::reserved_smem: /* 1 KiB a block since sm_80 */
        return g.launch.limits->sm >= 80 ? 1024 : 0;
    case Special::group_scratch:
        return b.group_scratch;
    default:
        return 0;
    }
}
} // namespace

bool special_from_name(const std::string &name, Special *s)
{
    auto it = names().find(name);
    if (it == names().end())
        return false;
    *s = it->second;
    return true;
}

Type special_type(Special s)
{
    switch (s) {
    case Special::gridid: /* u64 since PTX 3.0; a mov.u32 of it takes the low half */
    case Special::clock64:
    case Special::globaltimer:
        return Type::u64;
    case Special::is_explicit_cluster:
        return Type::pred;
    default:
        return Type::u32;
    }
}

void read_special(const Warp &w, Special s, uint64_t out[WARP_SIZE])
{
    switch (s) {
    case Special::tid_x:
    case Special::tid_y:
    case Special::tid_z:
        return thread_index(w, int(s) - int(Special::tid_x), out);
    case Special::laneid:
        for (unsigned l = 0; l < WARP_SIZE; l++)
            out[l] = l;
        return;
    case Special::lanemask_eq:
    case Special::lanemask_le:
    case Special::lanemask_lt:
    case Special::lanemask_ge:
    case Special::lanemask_gt:
        for (unsigned l = 0; l < WARP_SIZE; l++)
            out[l] = lane_mask(s, l);
        return;
    default: {
        const uint64_t value = of_the_launch(w, s);
        for (unsigned l = 0; l < WARP_SIZE; l++)
            out[l] = value;
    }
    }
}

} // namespace ptxemu

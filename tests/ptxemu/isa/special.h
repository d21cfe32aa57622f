/* Special registers whose value the machine knows: %tid, %laneid, %clock64, ...
 *
 * A name is resolved once, when an instruction is decoded; reading is then a switch over 32 lanes. */
#ifndef PTXEMU_ISA_SPECIAL_H
#define PTXEMU_ISA_SPECIAL_H

#include <string>

#include "machine/warp.h"

namespace ptxemu
{

enum class Special : uint8_t {
    tid_x,
    tid_y,
    tid_z,
    ntid_x,
    ntid_y,
    ntid_z,
    ctaid_x,
    ctaid_y,
    ctaid_z,
    nctaid_x,
    nctaid_y,
    nctaid_z,
    laneid,
    warpid,
    nwarpid,
    smid,
    nsmid,
    gridid,
    lanemask_eq,
    lanemask_le,
    lanemask_lt,
    lanemask_ge,
    lanemask_gt,
    clock,
    clock_hi,
    clock64,
    globaltimer,
    globaltimer_lo,
    globaltimer_hi,
    clusterid_x,
    clusterid_y,
    clusterid_z,
    nclusterid_x,
    nclusterid_y,
    nclusterid_z,
    cluster_ctaid_x,
    cluster_ctaid_y,
    cluster_ctaid_z,
    cluster_nctaid_x,
    cluster_nctaid_y,
    cluster_nctaid_z,
    cluster_ctarank,
    cluster_nctarank,
    is_explicit_cluster, /* a predicate in PTX: 0 or 1 here */
    dynamic_smem_size,
    total_smem_size,
    aggr_smem_size,
    reserved_smem,
    group_scratch, /* where cooperative groups keep what tiles of several warps share */
    envreg1, /* high and low half of the address of a cooperative grid's workspace, as cooperative groups read it */
    envreg2,
    zero, /* components .w, the other %envreg: they read as zero here */
};

/* The register of a name without its %: "tid.x", "laneid".  False: no special register has this name. */
bool special_from_name(const std::string &name, Special *s);

/* u32, u64, or pred for is_explicit_cluster. */
Type special_type(Special s);

/* The value in every lane of the warp (of the active ones only what is read matters). */
void read_special(const Warp &w, Special s, uint64_t out[WARP_SIZE]);

} // namespace ptxemu

#endif

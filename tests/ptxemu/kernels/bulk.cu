// sm: 90a
// Bulk copies, tensor copies (TMA) and what blocks of a cluster do with each other's shared memory.
#include <cuda.h>

#include <cstdint>

__device__ static uint32_t shared_address(const void *p)
{
    return uint32_t(__cvta_generic_to_shared(p));
}
__device__ static void init(uint64_t *bar, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ static void expect(uint64_t *bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
                 : "memory");
}
__device__ static void arrive(uint64_t *bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}
__device__ static void wait(uint64_t *bar, uint32_t parity)
{
    asm volatile("{ .reg .pred p;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;\n}" ::"r"(shared_address(bar)),
                 "r"(parity)
                 : "memory");
}
__device__ static void load(void *to, const void *from, uint32_t bytes, uint64_t *bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(bar))
                 : "memory");
}
__device__ static void store(void *to, const void *from, uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)),
                 "r"(bytes)
                 : "memory");
}
__device__ static void commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int N>
__device__ static void wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
__device__ static void wait_all()
{
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
__device__ static void fence_async()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ static void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
__device__ static uint32_t cluster_rank()
{
    uint32_t r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
__device__ static uint32_t in_block(uint32_t address, uint32_t rank)
{
    uint32_t a;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(a) : "r"(address), "r"(rank));
    return a;
}

// ---- ranges ----

// in -> shared memory -> out, plus one on the way.
extern "C" __global__ void bulk_there_and_back(const int *in, int *out)
{
    __shared__ alignas(16) int s[128];
    __shared__ uint64_t bar;
    if (threadIdx.x == 0) {
        init(&bar, 1);
        expect(&bar, sizeof s);
        load(s, in, sizeof s, &bar);
    }
    __syncthreads();
    wait(&bar, 0);
    s[threadIdx.x]++;
    fence_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        store(out, s, sizeof s);
        commit();
        wait_all();
    }
}

#define TWINS(name)                                                                                                    \
    extern "C" __global__ void name##_right(const int *in, int *out)                                                   \
    {                                                                                                                  \
        name<true>(in, out);                                                                                           \
    }                                                                                                                  \
    extern "C" __global__ void name##_wrong(const int *in, int *out)                                                   \
    {                                                                                                                  \
        name<false>(in, out);                                                                                          \
    }

template <bool RIGHT>
__device__ static void bulk_read_early(const int *in, int *out)
{
    __shared__ alignas(16) int s[128];
    __shared__ uint64_t bar;
    if (threadIdx.x == 0) {
        init(&bar, 1);
        expect(&bar, sizeof s);
        load(s, in, sizeof s, &bar);
    }
    __syncthreads();
    if (RIGHT)
        wait(&bar, 0);
    out[threadIdx.x] = s[threadIdx.x];
    wait(&bar, 0);
}
TWINS(bulk_read_early)

// Two copies; the wrong one waits for the mbarrier of the other.
template <bool RIGHT>
__device__ static void bulk_other_barrier(const int *in, int *out)
{
    __shared__ alignas(16) int s[2][128];
    __shared__ uint64_t bar[2];
    if (threadIdx.x == 0)
        for (int k = 0; k < 2; k++) {
            init(&bar[k], 1);
            expect(&bar[k], sizeof s[k]);
            load(s[k], in, sizeof s[k], &bar[k]);
        }
    __syncthreads();
    wait(&bar[RIGHT ? 0 : 1], 0);
    out[threadIdx.x] = s[0][threadIdx.x];
}
TWINS(bulk_other_barrier)

template <bool RIGHT>
__device__ static void bulk_source_reused(const int *in, int *out)
{
    __shared__ alignas(16) int s[128];
    s[threadIdx.x] = in[threadIdx.x];
    fence_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        store(out, s, sizeof s);
        commit();
        if (RIGHT)
            wait_read<0>();
    }
    __syncthreads();
    s[threadIdx.x] = 0;
    if (threadIdx.x == 0)
        wait_all();
}
TWINS(bulk_source_reused)

template <bool RIGHT>
__device__ static void bulk_store_unfenced(const int *in, int *out)
{
    __shared__ alignas(16) int s[128];
    s[threadIdx.x] = in[threadIdx.x];
    if (RIGHT)
        fence_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        store(out, s, sizeof s);
        commit();
        wait_all();
    }
}
TWINS(bulk_store_unfenced)

// out[k] = op(out[k], in[k])
#define REDUCE(op, type, T)                                                                                            \
    extern "C" __global__ void reduce_##op##_##type(const T *in, T *out)                                               \
    {                                                                                                                  \
        __shared__ alignas(16) T s[64];                                                                                \
        s[threadIdx.x] = in[threadIdx.x];                                                                              \
        fence_async();                                                                                                 \
        __syncthreads();                                                                                               \
        if (threadIdx.x == 0) {                                                                                        \
            asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group." #op "." #type                           \
                         " [%0], [%1], %2;" ::"l"(out),                                                                \
                         "r"(shared_address(s)), "r"(unsigned(sizeof s))                                               \
                         : "memory");                                                                                  \
            commit();                                                                                                  \
            wait_all();                                                                                                \
        }                                                                                                              \
    }
REDUCE(add, u32, uint32_t)
REDUCE(add, u64, uint64_t)
REDUCE(add, f32, float)
REDUCE(min, s32, int32_t)
REDUCE(max, u32, uint32_t)
REDUCE(max, s64, int64_t)
REDUCE(inc, u32, uint32_t)
REDUCE(dec, u32, uint32_t)
REDUCE(and, b32, uint32_t)
REDUCE(or, b64, uint64_t)
REDUCE(xor, b32, uint32_t)

// ---- tensors ----

extern __shared__ __align__(1024) uint8_t tiles_in_shared[];

struct Place {
    int c[5];
};

__device__ static void load_box(uint32_t to, const CUtensorMap *map, Place p, int rank, uint32_t bar)
{
#define LOAD "cp.async.bulk.tensor."
#define FROM ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
    if (rank == 1)
        asm volatile(LOAD "1d" FROM "{%3}], [%2];" ::"r"(to), "l"(map), "r"(bar), "r"(p.c[0]) : "memory");
    if (rank == 2)
        asm volatile(LOAD "2d" FROM "{%3, %4}], [%2];" ::"r"(to), "l"(map), "r"(bar), "r"(p.c[0]), "r"(p.c[1])
                     : "memory");
    if (rank == 3)
        asm volatile(LOAD "3d" FROM "{%3, %4, %5}], [%2];" ::"r"(to), "l"(map), "r"(bar), "r"(p.c[0]), "r"(p.c[1]),
                     "r"(p.c[2])
                     : "memory");
    if (rank == 4)
        asm volatile(LOAD "4d" FROM "{%3, %4, %5, %6}], [%2];" ::"r"(to), "l"(map), "r"(bar), "r"(p.c[0]), "r"(p.c[1]),
                     "r"(p.c[2]), "r"(p.c[3])
                     : "memory");
    if (rank == 5)
        asm volatile(LOAD "5d" FROM "{%3, %4, %5, %6, %7}], [%2];" ::"r"(to), "l"(map), "r"(bar), "r"(p.c[0]),
                     "r"(p.c[1]), "r"(p.c[2]), "r"(p.c[3]), "r"(p.c[4])
                     : "memory");
}

// Copies a box to shared memory and the bytes, as they lie there, to out.
extern "C" __global__ void tensor_load(const __grid_constant__ CUtensorMap map, uint8_t *out, Place p, int rank,
                                       unsigned bytes)
{
    __shared__ uint64_t bar;
    if (threadIdx.x == 0) {
        init(&bar, 1);
        expect(&bar, bytes);
        asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
        load_box(shared_address(tiles_in_shared), &map, p, rank, shared_address(&bar));
    }
    __syncthreads();
    wait(&bar, 0);
    for (unsigned k = threadIdx.x; k < bytes; k += blockDim.x)
        out[k] = tiles_in_shared[k];
}

// The other way round.
extern "C" __global__ void tensor_store(const __grid_constant__ CUtensorMap map, const uint8_t *in, Place p, int add,
                                        unsigned bytes)
{
    for (unsigned k = threadIdx.x; k < bytes; k += blockDim.x)
        tiles_in_shared[k] = in[k];
    fence_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        if (add)
            asm volatile(
                "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(
                    &map),
                "r"(p.c[0]), "r"(p.c[1]), "r"(shared_address(tiles_in_shared))
                : "memory");
        else
            asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
                         "r"(p.c[0]), "r"(p.c[1]), "r"(shared_address(tiles_in_shared))
                         : "memory");
        commit();
        wait_all();
    }
}

// A pipeline as matrix products have it: a producing warp, three consuming ones, boxes of 16 rows of 128 bytes with swizzle.
// out[t] = sum over all tiles of the word that lies at row t / 6, column t % 6 of the tile.
template <bool RIGHT>
__device__ static void tensor_pipeline(const CUtensorMap &map, uint32_t *out, int tiles)
{
    constexpr int STAGES = 3;
    constexpr uint32_t BYTES = 16 * 128;
    __shared__ uint64_t full[STAGES], empty[STAGES];
    if (threadIdx.x == 0)
        for (int k = 0; k < STAGES; k++) {
            init(&full[k], 1);
            init(&empty[k], 96);
        }
    __syncthreads();
    if (threadIdx.x == 0)
        for (int k = 0; k < tiles; k++) {
            const int stage = k % STAGES;
            wait(&empty[stage], (k / STAGES % 2) ^ 1);
            expect(&full[stage], BYTES);
            Place p = {{0, 16 * k, 0, 0, 0}};
            load_box(shared_address(tiles_in_shared + stage * BYTES), &map, p, 2, shared_address(&full[stage]));
        }
    if (threadIdx.x >= 32) {
        const int t = threadIdx.x - 32, row = t / 6, column = t % 6;
        uint32_t sum = 0;
        for (int k = 0; k < tiles; k++) {
            const int stage = k % STAGES;
            wait(&full[stage], k / STAGES % 2);
            const uint32_t linear = row * 128 + column * 4, place = linear ^ ((linear >> 7 & 7) << 4);
            if (!RIGHT)
                arrive(&empty[stage]); // too early: it has not read yet
            sum += *reinterpret_cast<uint32_t *>(tiles_in_shared + stage * BYTES + place);
            if (RIGHT)
                arrive(&empty[stage]);
        }
        out[t] = sum;
    }
}
extern "C" __global__ void tensor_pipeline_right(const __grid_constant__ CUtensorMap map, uint32_t *out, int tiles)
{
    tensor_pipeline<true>(map, out, tiles);
}
extern "C" __global__ void tensor_pipeline_wrong(const __grid_constant__ CUtensorMap map, uint32_t *out, int tiles)
{
    tensor_pipeline<false>(map, out, tiles);
}

// ---- clusters of two blocks ----

// Each block reads what the other wrote, and asks whose it is.
extern "C" __global__ void __cluster_dims__(2, 1, 1) neighbours(const int *in, int *out)
{
    __shared__ int s[64];
    const uint32_t rank = cluster_rank(), t = threadIdx.x;
    s[t] = in[rank * 64 + t];
    cluster_sync();
    int v;
    uint32_t a = in_block(shared_address(&s[63 - t]), rank ^ 1), owner;
    asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(v) : "r"(a) : "memory");
    asm volatile("getctarank.shared::cluster.u32 %0, %1;" : "=r"(owner) : "r"(a));
    out[rank * 64 + t] = v + int(owner);
    cluster_sync();
}

// The same through generic addresses.
extern "C" __global__ void __cluster_dims__(2, 1, 1) neighbours_generic(const int *in, int *out)
{
    __shared__ int s[64];
    const uint32_t rank = cluster_rank(), t = threadIdx.x;
    s[t] = in[rank * 64 + t];
    cluster_sync();
    const int *there;
    uint32_t owner;
    asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(&s[63 - t]), "r"(rank ^ 1));
    asm volatile("getctarank.u64 %0, %1;" : "=r"(owner) : "l"(there));
    out[rank * 64 + t] = *there + int(owner);
    cluster_sync();
}

// Block 0 loads a box of 8 rows of 64 bytes for both.
extern "C" __global__ void __cluster_dims__(2, 1, 1) multicast(const __grid_constant__ CUtensorMap map, uint8_t *out)
{
    __shared__ alignas(128) uint8_t s[512];
    __shared__ uint64_t bar;
    const uint32_t rank = cluster_rank();
    if (threadIdx.x == 0) {
        init(&bar, 1);
        expect(&bar, sizeof s);
    }
    cluster_sync();
    if (rank == 0 && threadIdx.x == 0)
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::"
                     "cluster [%0], [%1, "
                     "{%3, %3}], [%2], %4;" ::"r"(shared_address(s)),
                     "l"(&map), "r"(shared_address(&bar)), "r"(0), "h"(uint16_t(3))
                     : "memory");
    wait(&bar, 0);
    for (unsigned k = threadIdx.x; k < sizeof s; k += blockDim.x)
        out[rank * sizeof s + k] = s[k];
    cluster_sync();
}

// Values straight into the other block's shared memory: stores, a copy of a range, and remote arrivals.
extern "C" __global__ void __cluster_dims__(2, 1, 1) exchange(const int *in, int *out)
{
    __shared__ alignas(16) int mine[64], got[64], copied[64], counter[4];
    __shared__ uint64_t bar, ready;
    const uint32_t rank = cluster_rank(), t = threadIdx.x, other = rank ^ 1;
    mine[t] = in[rank * 64 + t];
    if (t < 4)
        counter[t] = 100;
    if (t == 0) {
        init(&bar, 1);
        init(&ready, 64);
        expect(&bar, 64 * 4 + 64 * 4 + 64 * 4);
    }
    fence_async();
    cluster_sync();
    const uint32_t there = in_block(shared_address(&bar), other);
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                     in_block(shared_address(&got[t]), other)),
                 "r"(mine[t]), "r"(there)
                 : "memory");
    asm volatile("red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%0], %1, [%2];" ::"r"(
                     in_block(shared_address(&counter[t % 4]), other)),
                 "r"(t), "r"(there)
                 : "memory");
    if (t == 0)
        asm volatile(
            "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                in_block(shared_address(copied), other)),
            "r"(shared_address(mine)), "r"(256), "r"(there)
            : "memory");
    asm volatile(
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(in_block(shared_address(&ready), other))
        : "memory");
    wait(&bar, 0);
    wait(&ready, 0);
    out[rank * 64 + t] = got[t] * 3 + copied[63 - t] * 5 + counter[t % 4];
    cluster_sync();
}

// ---- mistakes ----

extern "C" __global__ void bulk_misaligned(const int *in, int *out)
{
    __shared__ alignas(16) int s[128];
    __shared__ uint64_t bar;
    init(&bar, 1);
    load(s, in + 1, 16, &bar);
    out[0] = s[0];
}
extern "C" __global__ void bulk_odd_size(const int *in, int *out, int bytes)
{
    __shared__ alignas(16) int s[128];
    __shared__ uint64_t bar;
    init(&bar, 1);
    load(s, in, bytes, &bar);
    out[0] = s[0];
}
extern "C" __global__ void not_a_tensor_map(const int *in, int *out)
{
    __shared__ alignas(128) int s[128];
    __shared__ uint64_t bar;
    init(&bar, 1);
    Place p = {};
    load_box(shared_address(s), reinterpret_cast<const CUtensorMap *>(in), p, 1, shared_address(&bar));
    out[0] = s[0];
}

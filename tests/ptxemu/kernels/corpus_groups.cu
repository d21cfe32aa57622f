// sm: 90a
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cooperative_groups/memcpy_async.h>
#include <cuda/barrier>
#include "corpus.cuh"
namespace cg = cooperative_groups;
template <int N>
__device__ void tiles(unsigned *out, const unsigned *in)
{
    auto t = cg::tiled_partition<N>(cg::this_thread_block());
    unsigned b = threadIdx.x / N * N;
    unsigned v = in[threadIdx.x];
    same(out, cg::reduce(t, int(v & 0xffff), cg::plus<int>()), [&] {
        int e = 0;
        for (int i = 0; i < N; i++)
            e += in[b + i] & 0xffff;
        return e;
    }());
    same(out, cg::reduce(t, v, cg::bit_xor<unsigned>()), [&] {
        unsigned e = 0;
        for (int i = 0; i < N; i++)
            e ^= in[b + i];
        return e;
    }());
    same(out, cg::reduce(t, float(v & 255), cg::greater<float>()), [&] {
        float e = 0;
        for (int i = 0; i < N; i++)
            e = fmaxf(e, in[b + i] & 255);
        return e;
    }());
    same(out, cg::inclusive_scan(t, v), [&] {
        unsigned e = 0;
        for (unsigned i = b; i <= threadIdx.x; i++)
            e += in[i];
        return e;
    }());
    same(out, cg::exclusive_scan(t, v), [&] {
        unsigned e = 0;
        for (unsigned i = b; i < threadIdx.x; i++)
            e += in[i];
        return e;
    }());
    same(out, t.shfl(v, N - 1), in[b + N - 1]);
    same(out, t.thread_rank(), threadIdx.x % N);
    same(out, t.meta_group_rank(), threadIdx.x / N);
    t.sync();
    struct S {
        double a;
        int b;
        char c;
    };
    S s{double(v), int(v), char(v)};
    S r = t.shfl_xor(s, N / 2);
    unsigned pv = in[threadIdx.x ^ (N / 2)];
    same(out, r.a, double(pv));
    same(out, r.b, int(pv));
    same(out, r.c, char(pv));
    same(out, t.any(v & 1), [&] {
        bool e = 0;
        for (int i = 0; i < N; i++)
            e |= in[b + i] & 1;
        return e;
    }());
    same(out, t.match_any(int(v & 1)) >> t.thread_rank() & 1, 1u);
}

extern "C" __global__ void t_tiles(unsigned *out, const unsigned *in)
{
    tiles<32>(out, in);
    tiles<16>(out, in);
    tiles<8>(out, in);
    tiles<4>(out, in);
    tiles<2>(out, in);
}

extern "C" __global__ void t_coalesced(unsigned *out, const unsigned *in)
{
    if (in[threadIdx.x] & 1) {
        auto g = cg::coalesced_threads();
        unsigned w = threadIdx.x / 32 * 32;
        unsigned n = 0, rank = 0, sum = 0;
        for (unsigned i = w; i < w + 32; i++)
            if (in[i] & 1) {
                n++;
                rank += i < threadIdx.x;
                sum += in[i];
            }
        same(out, g.size(), n);
        same(out, g.thread_rank(), rank);
        same(out, cg::reduce(g, in[threadIdx.x], cg::plus<unsigned>()), sum);
        same(out, g.shfl(in[threadIdx.x], 0) & 1, 1u);
        auto l = cg::labeled_partition(g, in[threadIdx.x] >> 8 & 3);
        unsigned m = 0;
        for (unsigned i = w; i < w + 32; i++)
            if (in[i] & 1)
                m += (in[i] >> 8 & 3) == (in[threadIdx.x] >> 8 & 3);
        same(out, l.size(), m);
        auto bp = cg::binary_partition(g, bool(in[threadIdx.x] & 2));
        m = 0;
        for (unsigned i = w; i < w + 32; i++)
            if (in[i] & 1)
                m += (in[i] & 2) == (in[threadIdx.x] & 2);
        same(out, bp.size(), m);
        same(out, bp.num_threads(), m);
        auto t4 = cg::tiled_partition(g, 4);
        same(out, t4.thread_rank(), rank % 4);
        g.sync();
        unsigned sc = cg::inclusive_scan(g, in[threadIdx.x]);
        unsigned e = 0;
        for (unsigned i = w; i <= threadIdx.x; i++)
            if (in[i] & 1)
                e += in[i];
        same(out, sc, e);
        unsigned old = 0;
        if (g.thread_rank() == 0)
            old = atomicAdd(out + 900, g.size());
        old = g.shfl(old, 0) + g.thread_rank();
        out[256 + old] = threadIdx.x;
    }
    auto blk = cg::this_thread_block();
    blk.sync();
    if (blk.thread_rank() == 0) {
        unsigned n = 0;
        for (int i = 0; i < 128; i++)
            n += in[i] & 1;
        same(out, out[900], n);
    }
}

extern "C" __global__ void t_opportunistic(unsigned *out, const unsigned *in)
{
    auto g = cg::coalesced_threads();
    atomicAdd(out + 800, 1);
    if (threadIdx.x % 3 == 0) {
        auto h = cg::coalesced_threads();
        same(out, h.size(), [&] {
            unsigned n = 0;
            for (unsigned i = threadIdx.x / 32 * 32; i < threadIdx.x / 32 * 32 + 32; i++)
                n += i % 3 == 0;
            return n;
        }());
    }
    cg::invoke_one(g, [&] { atomicAdd(out + 801, 1); });
    __syncthreads();
    if (threadIdx.x == 0)
        same(out, out[801], 4u);
}

extern "C" __global__ void t_dyn_tile_b64(unsigned *out, const unsigned *in)
{
    auto b = cg::this_thread_block();
    auto t = cg::tiled_partition(b, 32);
    same(out, t.size(), 32u);
    same(out, t.thread_rank(), threadIdx.x % 32);
    t.sync();
    auto tok = b.barrier_arrive();
    b.barrier_wait(std::move(tok));
    same(out, b.size(), 64u);
}
__device__ unsigned counter;

extern "C" __global__ void t_grid_g6_b64_coop(unsigned *out, const unsigned *in)
{
    auto g = cg::this_grid();
    for (int i = 0; i < 5; i++) {
        atomicAdd(&counter, 1u);
        g.sync();
        same(out, *(volatile unsigned *)&counter, (i + 1) * 6 * 64u);
        g.sync();
    }
    same(out, g.thread_rank(), blockIdx.x * 64 + threadIdx.x);
    same(out, g.size(), 384u);
    same(out, g.is_valid(), true);
    auto t = g.barrier_arrive();
    g.barrier_wait(std::move(t));
}

extern "C" __global__ void t_memcpy(unsigned *out, const unsigned *in)
{
    __shared__ unsigned s[512];
    auto b = cg::this_thread_block();
    cg::memcpy_async(b, s, in, sizeof s);
    cg::wait(b);
    for (int i = threadIdx.x; i < 512; i += 128)
        same(out, s[511 - i], in[511 - i]);
    b.sync();
    auto w = cg::tiled_partition<32>(b);
    __shared__ unsigned q[4][64];
    cg::memcpy_async(w, q[w.meta_group_rank()], in + w.meta_group_rank() * 64 + 1, 64 * 4);
    cg::wait(w);
    same(out, q[w.meta_group_rank()][w.thread_rank() * 2], in[w.meta_group_rank() * 64 + 1 + w.thread_rank() * 2]);
    w.sync();
    cg::memcpy_async(b, s, cuda::aligned_size_t<16>(256), in, cuda::aligned_size_t<16>(256));
    cg::memcpy_async(b, s + 256, cuda::aligned_size_t<16>(256), in + 1024, cuda::aligned_size_t<16>(256));
    cg::wait_prior<1>(b);
    same(out, s[threadIdx.x ^ 1], in[threadIdx.x ^ 1]);
    cg::wait(b);
    same(out, s[256 + (threadIdx.x ^ 1)], in[1024 + (threadIdx.x ^ 1)]);
}
#if __CUDA_ARCH__ >= 900

extern "C" __global__ void __cluster_dims__(4, 1, 1) t_cluster_g8_b64(unsigned *out, const unsigned *in)
{
    __shared__ unsigned s[64];
    auto c = cg::this_cluster();
    s[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
    c.sync();
    for (unsigned r = 0; r < 4; r++) {
        unsigned *p = c.map_shared_rank(s, r);
        same(out, p[threadIdx.x], in[(blockIdx.x / 4 * 4 + r) * 64 + threadIdx.x]);
    }
    same(out, c.query_shared_rank(s), c.block_rank());
    same(out, c.num_blocks(), 4u);
    same(out, c.dim_blocks().x, 4u);
    c.sync();
    atomicAdd(c.map_shared_rank(s, (c.block_rank() + 1) % 4) + threadIdx.x, 5u);
    auto t = c.barrier_arrive();
    c.barrier_wait(std::move(t));
    same(out, s[threadIdx.x], in[blockIdx.x * 64 + threadIdx.x] + 5);
    c.sync();
}
#endif

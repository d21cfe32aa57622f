// sm: 75
#if __has_include(<cub/cub.cuh>)
#include <cub/block/block_load.cuh>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/block/block_store.cuh>
#include <cub/block/block_histogram.cuh>
#include <cub/block/block_exchange.cuh>
#include <cub/block/block_discontinuity.cuh>
#include <cub/block/block_adjacent_difference.cuh>
#include <cub/block/block_run_length_decode.cuh>
#include <cub/warp/warp_reduce.cuh>
#include <cub/warp/warp_scan.cuh>
#include <cub/thread/thread_load.cuh>
#include <cub/thread/thread_store.cuh>
#include "corpus.cuh"

extern "C" __global__ void t_block_reduce_b128(unsigned *out, const unsigned *in)
{
    typedef cub::BlockReduce<int, 128> R;
    __shared__ typename R::TempStorage s;
    int v = in[threadIdx.x] & 0xffff;
    int sum = R(s).Sum(v);
    if (threadIdx.x == 0) {
        int w = 0;
        for (int i = 0; i < 128; i++)
            w += in[i] & 0xffff;
        same(out, sum, w);
    }
    __syncthreads();
    int mx = R(s).Reduce(v, [](int a, int b) { return a > b ? a : b; });
    if (threadIdx.x == 0) {
        int w = 0;
        for (int i = 0; i < 128; i++)
            w = max(w, int(in[i] & 0xffff));
        same(out, mx, w);
    }
}

extern "C" __global__ void t_block_reduce_raking_b96(unsigned *out, const unsigned *in)
{
    typedef cub::BlockReduce<double, 96, cub::BLOCK_REDUCE_RAKING> R;
    __shared__ typename R::TempStorage s;
    double v = in[threadIdx.x] & 0xffff;
    double sum = R(s).Sum(v, 77);
    if (threadIdx.x == 0) {
        double w = 0;
        for (int i = 0; i < 77; i++)
            w += in[i] & 0xffff;
        same(out, sum, w);
    }
}

extern "C" __global__ void t_block_scan_b128(unsigned *out, const unsigned *in)
{
    typedef cub::BlockScan<unsigned, 128> R;
    __shared__ typename R::TempStorage s;
    unsigned v[4], r[4];
    for (int i = 0; i < 4; i++)
        v[i] = in[threadIdx.x * 4 + i];
    unsigned agg;
    R(s).ExclusiveSum(v, r, agg);
    unsigned w = 0;
    for (int i = 0; i < (int)threadIdx.x * 4; i++)
        w += in[i];
    for (int i = 0; i < 4; i++) {
        same(out, r[i], w);
        w += v[i];
    }
    __syncthreads();
    R(s).InclusiveScan(v[0], r[0], [](unsigned a, unsigned b) { return a > b ? a : b; });
    w = 0;
    for (int i = 0; i <= (int)threadIdx.x; i++)
        w = max(w, in[4 * i]);
    same(out, r[0], w);
}

extern "C" __global__ void t_block_scan_raking_b64(unsigned *out, const unsigned *in)
{
    typedef cub::BlockScan<float, 64, cub::BLOCK_SCAN_RAKING> R;
    __shared__ typename R::TempStorage s;
    float v = in[threadIdx.x] & 255, r;
    R(s).InclusiveSum(v, r);
    float w = 0;
    for (int i = 0; i <= (int)threadIdx.x; i++)
        w += in[i] & 255;
    same(out, r, w);
}

extern "C" __global__ void t_radix_b128(unsigned *out, const unsigned *in)
{
    typedef cub::BlockRadixSort<unsigned, 128, 4, unsigned> R;
    __shared__ typename R::TempStorage s;
    __shared__ unsigned k[512];
    unsigned key[4], val[4];
    for (int i = 0; i < 4; i++) {
        key[i] = in[threadIdx.x * 4 + i];
        val[i] = threadIdx.x * 4 + i;
    }
    R(s).Sort(key, val);
    for (int i = 0; i < 4; i++) {
        same(out, in[val[i]], key[i]);
        k[threadIdx.x * 4 + i] = key[i];
    }
    __syncthreads();
    for (int i = 0; i < 4; i++) {
        int p = threadIdx.x * 4 + i;
        if (p)
            same(out, k[p - 1] <= k[p], true);
    }
    __syncthreads();
    R(s).SortDescendingBlockedToStriped(key, val, 4, 20);
}

extern "C" __global__ void t_warp_b128(unsigned *out, const unsigned *in)
{
    typedef cub::WarpReduce<float> R;
    __shared__ typename R::TempStorage s[4];
    int w = threadIdx.x / 32;
    float sum = R(s[w]).Sum(float(in[threadIdx.x] & 1023));
    float e = 0;
    for (int i = 0; i < 32; i++)
        e += in[w * 32 + i] & 1023;
    if (threadIdx.x % 32 == 0)
        same(out, sum, e);
    typedef cub::WarpReduce<int, 8> R8;
    __shared__ typename R8::TempStorage s8[16];
    int q = threadIdx.x / 8;
    int m = R8(s8[q]).Reduce(int(in[threadIdx.x]), [](int a, int b) { return a < b ? a : b; });
    int em = in[q * 8];
    for (int i = 0; i < 8; i++)
        em = min(em, (int)in[q * 8 + i]);
    if (threadIdx.x % 8 == 0)
        same(out, m, em);
    typedef cub::WarpScan<int> S;
    __shared__ typename S::TempStorage ss[4];
    int x, tot;
    S(ss[w]).ExclusiveSum(int(in[threadIdx.x] & 255), x, tot);
    int ex = 0;
    for (int i = w * 32; i < (int)threadIdx.x; i++)
        ex += in[i] & 255;
    same(out, x, ex);
    typedef cub::WarpReduce<int> RS;
    __shared__ typename RS::TempStorage rs[4];
    int hs = RS(rs[w]).HeadSegmentedSum(1, (threadIdx.x % 32) % 5 == 0);
    int len = min(5, 32 - int(threadIdx.x % 32));
    if ((threadIdx.x % 32) % 5 == 0)
        same(out, hs, len);
}

extern "C" __global__ void t_loadstore_b128_g2(unsigned *out, const unsigned *in)
{
    __shared__ union U {
        cub::BlockLoad<int, 128, 4, cub::BLOCK_LOAD_TRANSPOSE>::TempStorage l;
        cub::BlockStore<int, 128, 4, cub::BLOCK_STORE_WARP_TRANSPOSE>::TempStorage s;
        cub::BlockLoad<int, 128, 4, cub::BLOCK_LOAD_VECTORIZE>::TempStorage v;
        __device__ U() {}
    } u;
    int v[4];
    cub::BlockLoad<int, 128, 4, cub::BLOCK_LOAD_TRANSPOSE>(u.l).Load((const int *)in + blockIdx.x * 512, v);
    for (int i = 0; i < 4; i++)
        same(out, (unsigned)v[i], in[blockIdx.x * 512 + threadIdx.x * 4 + i]);
    __syncthreads();
    cub::BlockLoad<int, 128, 4, cub::BLOCK_LOAD_TRANSPOSE>(u.l).Load((const int *)in, v, 301, -7);
    for (int i = 0; i < 4; i++)
        same(out, v[i], threadIdx.x * 4 + i < 301 ? (int)in[threadIdx.x * 4 + i] : -7);
    __syncthreads();
    cub::BlockLoad<int, 128, 4, cub::BLOCK_LOAD_VECTORIZE>(u.v).Load((const int *)in, v);
    for (int i = 0; i < 4; i++)
        same(out, (unsigned)v[i], in[threadIdx.x * 4 + i]);
    __syncthreads();
    if (blockIdx.x == 0) {
        cub::BlockStore<int, 128, 4, cub::BLOCK_STORE_WARP_TRANSPOSE>(u.s).Store((int *)out + 256, v);
        __syncthreads();
        for (int i = 0; i < 4; i++)
            same(out, out[256 + threadIdx.x + 128 * i], in[threadIdx.x + 128 * i]);
    }
}

extern "C" __global__ void t_misc_b128(unsigned *out, const unsigned *in)
{
    unsigned char d[4];
    __shared__ unsigned bins[64];
    typedef cub::BlockHistogram<unsigned char, 128, 4, 64, cub::BLOCK_HISTO_ATOMIC> H2;
    __shared__ typename H2::TempStorage h2;
    __syncthreads();
    for (int i = 0; i < 4; i++)
        d[i] = in[threadIdx.x * 4 + i] & 63;
    H2(h2).Histogram(d, bins);
    __syncthreads();
    if (threadIdx.x < 64) {
        unsigned e = 0;
        for (int i = 0; i < 512; i++)
            e += (in[i] & 63) == threadIdx.x;
        same(out, bins[threadIdx.x], e);
    }
    typedef cub::BlockExchange<int, 128, 4> X;
    __shared__ typename X::TempStorage xs;
    int v[4];
    for (int i = 0; i < 4; i++)
        v[i] = threadIdx.x * 4 + i;
    X(xs).BlockedToStriped(v);
    for (int i = 0; i < 4; i++)
        same(out, v[i], threadIdx.x + 128 * i);
    typedef cub::BlockDiscontinuity<int, 128> D;
    __shared__ typename D::TempStorage ds;
    int f[4];
    for (int i = 0; i < 4; i++)
        v[i] = (threadIdx.x * 4 + i) / 3;
    D(ds).FlagHeads(f, v, cuda::std::not_equal_to<>());
    for (int i = 0; i < 4; i++)
        same(out, f[i], (threadIdx.x * 4 + i) % 3 == 0);
    typedef cub::BlockAdjacentDifference<int, 128> A;
    __shared__ typename A::TempStorage as;
    int o[4];
    A(as).SubtractLeft(v, o, cuda::std::minus<>());
    for (int i = 0; i < 4; i++) {
        int p = threadIdx.x * 4 + i;
        if (p)
            same(out, o[i], p / 3 - (p - 1) / 3);
    }

    unsigned m = cub::WarpMask<8>(3);
    same(out, m, 0xff000000u);
    same(out, cub::ThreadLoad<cub::LOAD_CG>(in + threadIdx.x), in[threadIdx.x]);
    same(out, cub::ThreadLoad<cub::LOAD_LDG>(in + threadIdx.x), in[threadIdx.x]);
    same(out, cub::ThreadLoad<cub::LOAD_CV>(in + threadIdx.x), in[threadIdx.x]);
    same(out, cub::ThreadLoad<cub::LOAD_VOLATILE>(in + threadIdx.x), in[threadIdx.x]);
    cub::ThreadStore<cub::STORE_CS>(out + 256 + threadIdx.x, 7u);
    cub::ThreadStore<cub::STORE_WT>(out + 384 + threadIdx.x, 7u);
    same(out, out[256 + threadIdx.x] + out[384 + threadIdx.x], 14u);
}

extern "C" __global__ void t_runlength_b128(unsigned *out, const unsigned *in)
{
    typedef cub::BlockRunLengthDecode<int, 128, 1, 4> R;
    __shared__ typename R::TempStorage s;
    int v[1] = {int(threadIdx.x)}, l[1] = {int(threadIdx.x % 7 + 1)};
    int total;
    R r(s, v, l, total);
    int e = 0;
    for (int i = 0; i < 128; i++)
        e += i % 7 + 1;
    same(out, total, e);
    for (int b = 0; b < total; b += 512) {
        int o[4];
        r.RunLengthDecode(o, b);
        int p = b + threadIdx.x * 4;
        for (int i = 0; i < 4; i++)
            if (p + i < total) {
                int q = 0, j = 0;
                while (q + j % 7 + 1 <= p + i) {
                    q += j % 7 + 1;
                    j++;
                }
                same(out, o[i], j);
            }
    }
}
#endif

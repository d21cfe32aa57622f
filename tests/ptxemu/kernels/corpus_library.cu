// sm: 90a
#if __has_include(<cuda/barrier>)
#include <cuda/barrier>
#include <cuda/pipeline>
#include <cuda/atomic>
#include <cuda/semaphore>
#include <cuda/latch>
#include <cuda/std/complex>
#include <cuda/std/array>
#include <cuda/std/tuple>
#include <cuda/std/optional>
#include <cuda/std/variant>
#include <cuda/std/bit>
#include <cuda/std/limits>
#include <cuda/annotated_ptr>
#include <cuda/std/chrono>
#include <cooperative_groups.h>
#include "corpus.cuh"
namespace cg = cooperative_groups;
#pragma nv_diag_suppress static_var_with_dynamic_init

extern "C" __global__ void t_barrier_b128(unsigned *out, const unsigned *in)
{
    __shared__ cuda::barrier<cuda::thread_scope_block> b;
    __shared__ unsigned s[128];
    if (threadIdx.x == 0)
        init(&b, 128);
    __syncthreads();
    for (int i = 0; i < 4; i++) {
        s[threadIdx.x] = in[threadIdx.x] + i;
        b.arrive_and_wait();
        same(out, s[(threadIdx.x + 33) & 127], in[(threadIdx.x + 33) & 127] + i);
        auto t = b.arrive();
        b.wait(std::move(t));
    }
}

extern "C" __global__ void t_barrier_async_b128(unsigned *out, const unsigned *in)
{
    __shared__ cuda::barrier<cuda::thread_scope_block> b;
    __shared__ alignas(128) unsigned s[512];
    auto g = cg::this_thread_block();
    if (threadIdx.x == 0)
        init(&b, 128);
    g.sync();
    for (int i = 0; i < 3; i++) {
        cuda::memcpy_async(g, s, in + i * 512, cuda::aligned_size_t<16>(2048), b);
        b.arrive_and_wait();
        same(out, s[511 - threadIdx.x], in[i * 512 + 511 - threadIdx.x]);
        g.sync();
    }
    for (int i = 0; i < 3; i++) {
        cuda::memcpy_async(s + threadIdx.x, in + i * 512 + threadIdx.x, 4, b);
        b.arrive_and_wait();
        same(out, s[127 - threadIdx.x], in[i * 512 + 127 - threadIdx.x]);
        g.sync();
    }
}

extern "C" __global__ void t_pipeline_b128(unsigned *out, const unsigned *in)
{
    constexpr int ST = 3;
    __shared__ alignas(16) unsigned s[ST][512];
    __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, ST> st;
    auto g = cg::this_thread_block();
    auto p = cuda::make_pipeline(g, &st);
    int f = 0;
    for (int c = 0; c < 8; c++) {
        for (; f < 8 && f < c + ST; f++) {
            p.producer_acquire();
            cuda::memcpy_async(g, s[f % ST], in + f * 512, cuda::aligned_size_t<16>(2048), p);
            p.producer_commit();
        }
        p.consumer_wait();
        for (int i = 0; i < 4; i++) {
            int q = threadIdx.x * 4 + i ^ 5;
            same(out, s[c % ST][q], in[c * 512 + q]);
        }
        p.consumer_release();
    }
}

extern "C" __global__ void t_pipeline_thread_b64(unsigned *out, const unsigned *in)
{
    __shared__ unsigned s[2][64];
    auto p = cuda::make_pipeline();
    for (int k = 0; k < 2; k++) {
        p.producer_acquire();
        cuda::memcpy_async(&s[k][threadIdx.x], in + threadIdx.x + 64 * k, sizeof(unsigned), p);
        p.producer_commit();
    }
    cuda::pipeline_consumer_wait_prior<1>(p);
    __syncthreads();
    same(out, s[0][63 - threadIdx.x], in[63 - threadIdx.x]);
    cuda::pipeline_consumer_wait_prior<0>(p);
    __syncthreads();
    same(out, s[1][63 - threadIdx.x], in[127 - threadIdx.x]);
    p.consumer_release();
}

extern "C" __global__ void t_pipeline_roles_b128(unsigned *out, const unsigned *in)
{
    constexpr int ST = 2;
    __shared__ alignas(16) unsigned s[ST][256];
    __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, ST> st;
    auto g = cg::this_thread_block();
    bool prod = threadIdx.x < 32;
    auto p = cuda::make_pipeline(g, &st, prod ? cuda::pipeline_role::producer : cuda::pipeline_role::consumer);
    if (prod) {
        auto w = cg::tiled_partition<32>(g);
        for (int c = 0; c < 6; c++) {
            p.producer_acquire();
            for (int i = threadIdx.x; i < 256; i += 32)
                cuda::memcpy_async(&s[c % ST][i], in + c * 256 + i, 4, p);
            p.producer_commit();
        }
    } else
        for (int c = 0; c < 6; c++) {
            p.consumer_wait();
            for (int i = threadIdx.x - 32; i < 256; i += 96)
                same(out, s[c % ST][i], in[c * 256 + i]);
            p.consumer_release();
        }
}
__device__ cuda::atomic<int, cuda::thread_scope_device> da;
__device__ unsigned long long dl;
__device__ double dd;
__device__ float df;

extern "C" __global__ void t_atomic_g4_b96(unsigned *out, const unsigned *in)
{
    da.fetch_add(3);
    int o = da.load(cuda::memory_order_acquire);
    same(out, o >= 3 && o % 3 == 0, true);
    cuda::atomic_ref<unsigned, cuda::thread_scope_device> r(out[500]);
    r.fetch_max(in[threadIdx.x]);
    r.fetch_or(1, cuda::memory_order_relaxed);
    unsigned e = r.load();
    while (!r.compare_exchange_weak(e, e ^ 2))
        ;
    cuda::atomic_ref<double, cuda::thread_scope_device> d(dd);
    d.fetch_add(1.5);
    cuda::atomic_ref<float, cuda::thread_scope_block> f(df);
    f.fetch_add(1.f);
    f.fetch_max(2.f);
    cuda::atomic_ref<unsigned long long> l(dl);
    l.fetch_sub(7);
    l.exchange(l.load());
    same(out, l.is_lock_free(), true);
    __shared__ cuda::atomic<short, cuda::thread_scope_block> h;
    __shared__ cuda::atomic<signed char> c8;
    if (threadIdx.x == 0) {
        h.store(0);
        c8.store(0);
    }
    __syncthreads();
    h.fetch_add(5);
    c8.fetch_add(1);
    c8.fetch_xor(0);
    __syncthreads();
    same(out, h.load(), 96 * 5);
    same(out, int(c8.load()), 96);
    cuda::atomic_thread_fence(cuda::memory_order_seq_cst, cuda::thread_scope_device);
}
struct P {
    int a, b;
};
struct Q16 {
    long long a, b;
};

extern "C" __global__ void t_atomic_struct_b64(unsigned *out, const unsigned *in)
{
    __shared__ cuda::atomic<P, cuda::thread_scope_block> p;
    if (threadIdx.x == 0)
        p.store(P{0, 0});
    __syncthreads();
    P e = p.load(), n;
    do {
        n = P{e.a + 1, e.b + 2};
    } while (!p.compare_exchange_strong(e, n));
    __syncthreads();
    same(out, p.load().a, 64);
    same(out, p.load().b, 128);
    __shared__ cuda::atomic<int> w;
    if (threadIdx.x == 0)
        w.store(0);
    __syncthreads();
    if (threadIdx.x == 40) {
        w.store(1);
        w.notify_all();
    }
    w.wait(0);
    same(out, w.load(), 1);
}

extern "C" __global__ void t_complex(unsigned *out, const unsigned *in)
{
    using C = cuda::std::complex<double>;
    C a(in[threadIdx.x] / 4e9 - .5, in[threadIdx.x + 1] / 4e9 + .1),
        b(in[threadIdx.x + 2] / 4e9 - .5, in[threadIdx.x + 3] / 4e9 + .1);
    C q = a / b * b;
    close(out, q.real(), a.real(), 1e-12);
    close(out, q.imag(), a.imag(), 1e-12);
    C e = exp(log(a));
    close(out, e.real(), a.real(), 1e-12);
    C s = sqrt(a);
    s = s * s;
    close(out, s.imag(), a.imag(), 1e-12);
    close(out, abs(a), sqrt(norm(a)), 1e-12);
    C p = pow(a, C(2));
    close(out, p.real(), (a * a).real(), 1e-9);
    cuda::std::complex<float> f(a);
    f = f * f / f;
    close(out, f.real(), a.real(), 1e-4);
    C t = sin(a);
    C t2 = C(0, -1) * (exp(C(0, 1) * a) - exp(C(0, -1) * a)) / 2.0;
    close(out, t.real(), t2.real(), 1e-9);
    close(out, tan(a).real(), (sin(a) / cos(a)).real(), 1e-9);
}
struct V {
    int k;
    __device__ int operator()(int x) const { return x + k; }
    __device__ int operator()(double x) const { return int(x) * 2 + k; }
    __device__ int operator()(unsigned char x) const { return x * 3 + k; }
};

extern "C" __global__ void t_types(unsigned *out, const unsigned *in)
{
    cuda::std::array<int, 8> a{};
    for (int i = 0; i < 8; i++)
        a[i] = in[threadIdx.x * 8 + i];
    int s = 0;
    for (auto x : a)
        s += x;
    same(out, s, [&] {
        int e = 0;
        for (int i = 0; i < 8; i++)
            e += in[threadIdx.x * 8 + i];
        return e;
    }());
    auto t = cuda::std::make_tuple(1, 2.5, in[threadIdx.x]);
    same(out, cuda::std::get<2>(t), in[threadIdx.x]);
    cuda::std::optional<unsigned> o;
    if (in[threadIdx.x] & 1)
        o = in[threadIdx.x];
    same(out, o.value_or(0), in[threadIdx.x] & 1 ? in[threadIdx.x] : 0u);
    cuda::std::variant<int, double, unsigned char> v;
    switch (in[threadIdx.x] % 3) {
    case 0:
        v = int(in[threadIdx.x] >> 1);
        break;
    case 1:
        v = double(in[threadIdx.x] >> 8);
        break;
    default:
        v = (unsigned char)(in[threadIdx.x]);
    }
    int k = in[threadIdx.x] & 15;
    int r = cuda::std::visit(V{k}, v);
    same(out, r,
         in[threadIdx.x] % 3 == 0   ? int(in[threadIdx.x] >> 1) + k
         : in[threadIdx.x] % 3 == 1 ? int(in[threadIdx.x] >> 8) * 2 + k
                                    : int((unsigned char)in[threadIdx.x]) * 3 + k);
    same(out, cuda::std::popcount(in[threadIdx.x]), __popc(in[threadIdx.x]));
    same(out, cuda::std::countl_zero(in[threadIdx.x]), __clz(in[threadIdx.x]));
    same(out, cuda::std::rotl(in[threadIdx.x], 7), in[threadIdx.x] << 7 | in[threadIdx.x] >> 25);
    same(out, cuda::std::bit_cast<float>(in[threadIdx.x] & 0x3fffffff), __uint_as_float(in[threadIdx.x] & 0x3fffffff));
    auto n = cuda::std::chrono::system_clock::now();
    auto n2 = cuda::std::chrono::high_resolution_clock::now();
    same(out, n2.time_since_epoch() >= n.time_since_epoch(), true);
    cuda::annotated_ptr<const unsigned, cuda::access_property::persisting> ap(in);
    same(out, ap[threadIdx.x], in[threadIdx.x]);
    cuda::annotated_ptr<const unsigned, cuda::access_property> ap2(in, cuda::access_property::streaming{});
    same(out, ap2[threadIdx.x], in[threadIdx.x]);
    cuda::apply_access_property(in, 1024, cuda::access_property::persisting{});
    cuda::discard_memory(out + 256, 512);
}
#if __CUDA_ARCH__ >= 900

extern "C" __global__ void t_tx_b128(unsigned *out, const unsigned *in)
{
    __shared__ alignas(16) unsigned s[1024];
#pragma nv_diag_suppress static_var_with_dynamic_init
    __shared__ cuda::barrier<cuda::thread_scope_block> b;
    if (threadIdx.x == 0) {
        init(&b, 128);
        asm volatile("fence.proxy.async.shared::cta;");
    }
    __syncthreads();
    cuda::barrier<cuda::thread_scope_block>::arrival_token t;
    if (threadIdx.x == 0) {
        cuda::device::memcpy_async_tx(s, in, cuda::aligned_size_t<16>(4096), b);
        t = cuda::device::barrier_arrive_tx(b, 1, 4096);
    } else
        t = b.arrive();
    b.wait(std::move(t));
    for (int i = 0; i < 8; i++)
        same(out, s[i * 128 + (threadIdx.x ^ 1)], in[i * 128 + (threadIdx.x ^ 1)]);
}
#endif
#endif

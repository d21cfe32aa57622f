// sm: 75 80 90a
/* A kernel that is wrong in one way, for every check, and its corrected twin.  The line to blame carries "blame: NAME"; the test looks the
 * line up here and expects it in the report.
 *
 * All have the same signature.  n is a run-time value (32), so that the compiler cannot see what is wrong. */
#include <cassert>

template <bool broken>
static __device__ void global_past_end(int *out, const int *in, int n)
{
    const int i = threadIdx.x + (broken ? 2 * n : 0);
    out[i] = in[threadIdx.x]; // blame: global_past_end
}

template <bool broken>
static __device__ void global_before_start(int *out, const int *in, int n)
{
    const int i = int(threadIdx.x) - (broken ? n : 0);
    out[threadIdx.x] = in[i]; // blame: global_before_start
}

template <bool broken>
static __device__ void global_misaligned(int *out, const int *in, int n)
{
    const char *p = reinterpret_cast<const char *>(in) + (broken ? n - 31 : 0);
    out[threadIdx.x] = reinterpret_cast<const int *>(p)[threadIdx.x & 15]; // blame: global_misaligned
}

template <bool broken>
static __device__ void shared_past_end(int *out, const int *in, int n)
{
    __shared__ int s[32];
    s[threadIdx.x + (broken ? n : 0)] = in[threadIdx.x]; // blame: shared_past_end
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x ^ 1];
}

template <bool broken>
static __device__ void local_past_end(int *out, const int *in, int n)
{
    int a[16];
    for (int i = 0; i < 16; i++)
        a[(i * 7 + n) & 15] = in[i];
    out[threadIdx.x] = a[(threadIdx.x & 15) + (broken ? n << 20 : 0)]; // blame: local_past_end
}

__constant__ int table[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
template <bool broken>
static __device__ void const_past_end(int *out, const int *in, int n)
{
    out[threadIdx.x] = in[threadIdx.x] + table[(threadIdx.x & 15) + (broken ? n << 16 : 0)]; // blame: const_past_end
}

template <bool broken>
static __device__ void global_never_written(int *out, const int *in, int n)
{
    int *own = out + n; /* the second half of out is fresh */
    if (!broken)
        own[threadIdx.x] = 0;
    out[threadIdx.x] = own[threadIdx.x] + in[threadIdx.x]; // blame: global_never_written
}

template <bool broken>
static __device__ void shared_never_written(int *out, const int *in, int n)
{
    __shared__ int s[64];
    s[threadIdx.x] = in[threadIdx.x];
    if (!broken)
        s[threadIdx.x + 32] = n;
    __syncthreads();
    out[threadIdx.x] = s[(threadIdx.x + n) & 63]; // blame: shared_never_written
}

template <bool broken>
static __device__ void local_never_written(int *out, const int *in, int n)
{
    int a[16];
    for (int i = 0; i < n >> 1; i++)
        if (!broken || i != 5)
            a[(i + n) & 15] = in[i];
    out[threadIdx.x] = a[threadIdx.x & 15] + 1; // blame: local_never_written
}

/* blocks of 64 threads: two warps */
template <bool broken>
static __device__ void race_read_after_write(int *out, const int *in, int)
{
    __shared__ int s[64];
    s[threadIdx.x] = 0; /* or else the warp that runs first would meet never-written memory */
    __syncthreads();
    s[threadIdx.x] = in[threadIdx.x & 31];
    if (!broken)
        __syncthreads();
    out[threadIdx.x & 31] = s[63 - threadIdx.x]; // blame: race_read_after_write
}

template <bool broken>
static __device__ void race_write_after_read(int *out, const int *in, int)
{
    __shared__ int s[64];
    s[threadIdx.x] = in[threadIdx.x & 31];
    __syncthreads();
    const int v = s[63 - threadIdx.x];
    if (!broken)
        __syncthreads();
    s[threadIdx.x] = v; // blame: race_write_after_read
    __syncthreads();
    out[threadIdx.x & 31] = s[threadIdx.x & 31];
}

template <bool broken>
static __device__ void race_write_after_write(int *out, const int *in, int)
{
    __shared__ int s[64];
    const int to = broken ? threadIdx.x & 31 : threadIdx.x;
    s[to] = in[threadIdx.x & 31] + int(threadIdx.x); // blame: race_write_after_write
    __syncthreads();
    out[threadIdx.x & 31] = s[threadIdx.x & 31];
}

template <bool broken>
static __device__ void race_within_warp(int *out, const int *in, int)
{
    __shared__ int s[32];
    volatile int *keep = out; /* keeps the compiler from passing the value in a register */
    s[threadIdx.x] = in[threadIdx.x];
    if (!broken)
        __syncwarp();
    keep[threadIdx.x] = s[threadIdx.x ^ 1]; // blame: race_within_warp
}

template <bool broken>
static __device__ void divergent_barrier(int *out, const int *in, int n)
{
    __shared__ int s[32];
    s[threadIdx.x] = in[threadIdx.x];
    if (broken) {
        if (int(threadIdx.x) < n / 2) {
            __syncthreads(); // blame: divergent_barrier
            s[threadIdx.x] = 1;
        }
    }
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];
}

template <bool broken>
static __device__ void mismatched_barrier(int *out, const int *in, int)
{
    out[threadIdx.x & 31] = in[threadIdx.x & 31];
    if (threadIdx.x < 32)
        asm volatile("bar.sync 1, 64;" ::: "memory"); // blame: mismatched_barrier
    else if (broken)
        asm volatile("bar.sync 2, 64;" ::: "memory");
    else
        asm volatile("bar.sync 1, 64;" ::: "memory");
}

template <bool broken>
static __device__ void shfl_lanes_missing(int *out, const int *in, int n)
{
    int v = in[threadIdx.x];
    if (broken) {
        if (int(threadIdx.x) < n - 4)
            v = __shfl_xor_sync(0xffffffffu, v, 1); // blame: shfl_lanes_missing
    } else {
        v = __shfl_xor_sync(0xffffffffu, v, 1);
    }
    __syncthreads(); /* where the other lanes wait: had they ended, the shuffle would go on without them */
    out[threadIdx.x] = v;
}

static __device__ int mma_s8(int a, int b)
{
    int c0 = 0, c1 = 0;
    // clang-format off
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(c0), "+r"(c1) : "r"(a), "r"(b)); // blame: mma_lanes_missing
    // clang-format on
    return c0 + c1;
}
template <bool broken>
static __device__ void mma_lanes_missing(int *out, const int *in, int n)
{
    int v = in[threadIdx.x];
    if (!broken || int(threadIdx.x) < n - 4)
        v = mma_s8(v, v);
    out[threadIdx.x] = v;
}

template <bool broken>
static __device__ void lock_never_released(int *out, const int *in, int)
{
    __shared__ int lock;
    if (threadIdx.x == 0)
        lock = 0;
    __syncthreads();
    for (int turn = 0; turn < 2; turn++)
        if (threadIdx.x == 0) {
            while (atomicCAS(&lock, 0, 1) != 0) // blame: lock_never_released
                ;
            out[turn] = in[turn];
            __threadfence();
            if (!broken)
                atomicExch(&lock, 0);
        }
}

template <bool broken>
static __device__ void asserts(int *out, const int *in, int n)
{
    assert(n < (broken ? 32 : 33)); // blame: asserts
    out[threadIdx.x] = in[threadIdx.x];
}

template <bool broken>
static __device__ void traps(int *out, const int *in, int n)
{
    if (broken && n == 32)
        __trap(); // blame: traps
    out[threadIdx.x] = in[threadIdx.x];
}

#define TWIN(name)                                                                                                     \
    extern "C" __global__ void name##_broken(int *out, const int *in, int n) { name<true>(out, in, n); }               \
    extern "C" __global__ void name##_fixed(int *out, const int *in, int n) { name<false>(out, in, n); }

TWIN(global_past_end)
TWIN(global_before_start)
TWIN(global_misaligned)
TWIN(shared_past_end)
TWIN(local_past_end)
TWIN(const_past_end)
TWIN(global_never_written)
TWIN(shared_never_written)
TWIN(local_never_written)
TWIN(race_read_after_write)
TWIN(race_write_after_read)
TWIN(race_write_after_write)
TWIN(race_within_warp)
TWIN(divergent_barrier)
TWIN(mismatched_barrier)
TWIN(shfl_lanes_missing)
TWIN(mma_lanes_missing)
TWIN(lock_never_released)
TWIN(asserts)
TWIN(traps)

#if __CUDA_ARCH__ >= 800
static __device__ void copy16(void *to, const void *from)
{
    const unsigned s = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(s), "l"(from) : "memory");
}

/* a block of 8 threads, each copies four ints */
template <bool broken>
static __device__ void async_read_before_wait(int *out, const int *in, int)
{
    __shared__ __align__(16) int s[32];
    copy16(&s[4 * threadIdx.x], &in[4 * threadIdx.x]);
    asm volatile("cp.async.commit_group;" ::: "memory");
    if (!broken)
        asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();
    out[threadIdx.x] = s[4 * threadIdx.x]; // blame: async_read_before_wait
}

template <bool broken>
static __device__ void async_wait_without_barrier(int *out, const int *in, int)
{
    __shared__ __align__(16) int s[4 * 64];
    for (int i = threadIdx.x; i < 4 * 64; i += 64)
        s[i] = 0;
    __syncthreads();
    copy16(&s[4 * threadIdx.x], &in[4 * (threadIdx.x & 7)]);
    asm volatile("cp.async.commit_group;\n\tcp.async.wait_group 0;" ::: "memory");
    if (!broken)
        __syncthreads();
    out[threadIdx.x & 31] = s[4 * (63 - threadIdx.x)]; // blame: async_wait_without_barrier
}

/* One group may still be on its way: a pipeline that waits for one too few. */
template <bool broken>
static __device__ void async_waits_for_too_few(int *out, const int *in, int)
{
    __shared__ __align__(16) int s[2][32];
    for (int stage = 0; stage < 2; stage++) {
        copy16(&s[stage][4 * threadIdx.x], &in[4 * threadIdx.x]);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    if (broken)
        asm volatile("cp.async.wait_group 1;" ::: "memory");
    else
        asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();
    out[threadIdx.x] = s[0][4 * threadIdx.x] + s[1][4 * threadIdx.x]; // blame: async_waits_for_too_few
}

TWIN(async_read_before_wait)
TWIN(async_wait_without_barrier)
TWIN(async_waits_for_too_few)
#endif

#if __CUDA_ARCH__ >= 900
/* 128 bytes from global to shared memory by the copy engine */
template <bool broken>
static __device__ void bulk_read_before_wait(int *out, const int *in, int)
{
    __shared__ __align__(128) int s[32];
    __shared__ __align__(8) unsigned long long bar;
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(s)), b = static_cast<unsigned>(__cvta_generic_to_shared(&bar));
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(b) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 128;" ::"r"(b) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 128, [%2];" ::"r"(to), "l"(in), "r"(b)
                     : "memory");
    }
    if (!broken) {
        unsigned done = 0;
        while (!done)
            asm volatile("{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\n\tselp.u32 %0, 1, 0, p;\n\t}"
                         : "=r"(done)
                         : "r"(b)
                         : "memory");
    }
    out[threadIdx.x] = s[threadIdx.x]; // blame: bulk_read_before_wait
}

template <bool broken>
static __device__ void mbarrier_without_init(int *out, const int *in, int)
{
    __shared__ __align__(8) unsigned long long bar;
    const unsigned b = static_cast<unsigned>(__cvta_generic_to_shared(&bar));
    if (threadIdx.x == 0 && !broken)
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 32;" ::"r"(b) : "memory");
    __syncthreads();
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(b) : "memory"); // blame: mbarrier_without_init
    out[threadIdx.x] = in[threadIdx.x];
}

TWIN(bulk_read_before_wait)
TWIN(mbarrier_without_init)
#endif

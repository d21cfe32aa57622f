// sm: 75 80 90a
/* The kernels that every CUDA book has, written for the emulator's tests: each uses what makes its kind hard (shuffles, barriers, conflicts,
 * atomics, locks between blocks). */
#include <cuda_fp16.h>

/* One float a block: sum of a grid-stride share.  Order: lane sums ascending, then xor shuffles, then warps in order. */
extern "C" __global__ void reduce_sum(float *out, const float *in, int n)
{
    __shared__ float part[32];
    float s = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        s += in[i];
    for (int d = 16; d > 0; d >>= 1)
        s += __shfl_xor_sync(0xffffffffu, s, d);
    if ((threadIdx.x & 31) == 0)
        part[threadIdx.x >> 5] = s;
    __syncthreads();
    if (threadIdx.x < 32) {
        s = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.0f;
        for (int d = 16; d > 0; d >>= 1)
            s += __shfl_xor_sync(0xffffffffu, s, d);
        if (threadIdx.x == 0)
            out[blockIdx.x] = s;
    }
}

/* Inclusive prefix sum of one block's 2 * blockDim.x values (Blelloch: up-sweep, down-sweep). */
extern "C" __global__ void scan_blelloch(int *out, const int *in)
{
    extern __shared__ int t[];
    const int n = 2 * blockDim.x, i = threadIdx.x;
    t[2 * i] = in[2 * i];
    t[2 * i + 1] = in[2 * i + 1];
    int step = 1;
    for (int d = n >> 1; d > 0; d >>= 1, step <<= 1) {
        __syncthreads();
        if (i < d)
            t[step * (2 * i + 2) - 1] += t[step * (2 * i + 1) - 1];
    }
    if (i == 0)
        t[n - 1] = 0;
    for (int d = 1; d < n; d <<= 1) {
        step >>= 1;
        __syncthreads();
        if (i < d) {
            const int a = step * (2 * i + 1) - 1, b = step * (2 * i + 2) - 1, v = t[a];
            t[a] = t[b];
            t[b] += v;
        }
    }
    __syncthreads();
    out[2 * i] = t[2 * i] + in[2 * i];
    out[2 * i + 1] = t[2 * i + 1] + in[2 * i + 1];
}

/* 32x32 tiles by blocks of 32x8.  pad 0: every column of the tile lies in one bank, 32-way conflicts; pad 1: none. */
template <int pad>
static __device__ void transpose(float *out, const float *in, int rows, int cols)
{
    __shared__ float tile[32][32 + pad];
    const int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8)
        if (x < cols && y + j < rows)
            tile[threadIdx.y + j][threadIdx.x] = in[(y + j) * cols + x];
    __syncthreads();
    const int tx = blockIdx.y * 32 + threadIdx.x, ty = blockIdx.x * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8)
        if (tx < rows && ty + j < cols)
            out[(ty + j) * rows + tx] = tile[threadIdx.x][threadIdx.y + j];
}
extern "C" __global__ void transpose_conflicts(float *out, const float *in, int rows, int cols) { transpose<0>(out, in, rows, cols); }
extern "C" __global__ void transpose_padded(float *out, const float *in, int rows, int cols) { transpose<1>(out, in, rows, cols); }
/* no shared memory: the writes are a column apart */
extern "C" __global__ void transpose_naive(float *out, const float *in, int rows, int cols)
{
    const int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 8 + threadIdx.y;
    if (x < cols && y < rows)
        out[x * rows + y] = in[y * cols + x];
}

/* 256 bins: counted in shared memory, then added to global memory. */
extern "C" __global__ void histogram(unsigned *bins, const unsigned char *in, int n)
{
    __shared__ unsigned own[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x)
        own[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&own[in[i]], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x)
        if (own[i])
            atomicAdd(&bins[i], own[i]);
}

/* C = A B, row major, 16x16 tiles, fp32 in ascending k. */
extern "C" __global__ void gemm_tiled(float *c, const float *a, const float *b, int m, int n, int k)
{
    __shared__ float as[16][17], bs[16][17];
    const int row = blockIdx.y * 16 + threadIdx.y, col = blockIdx.x * 16 + threadIdx.x;
    float sum = 0;
    for (int t = 0; t < k; t += 16) {
        as[threadIdx.y][threadIdx.x] = row < m && t + threadIdx.x < k ? a[row * k + t + threadIdx.x] : 0.0f;
        bs[threadIdx.y][threadIdx.x] = col < n && t + threadIdx.y < k ? b[(t + threadIdx.y) * n + col] : 0.0f;
        __syncthreads();
        for (int i = 0; i < 16; i++)
            sum = fmaf(as[threadIdx.y][i], bs[i][threadIdx.x], sum);
        __syncthreads();
    }
    if (row < m && col < n)
        c[row * n + col] = sum;
}

/* A warp a row; three passes: maximum, sum of exponentials, division. */
extern "C" __global__ void softmax_rows(float *out, const __half *in, int rows, int cols)
{
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows)
        return;
    const __half *x = in + size_t(row) * cols;
    float top = -INFINITY, sum = 0;
    for (int i = threadIdx.x; i < cols; i += 32)
        top = fmaxf(top, __half2float(x[i]));
    for (int d = 16; d > 0; d >>= 1)
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    for (int i = threadIdx.x; i < cols; i += 32)
        sum += __expf(__half2float(x[i]) - top);
    for (int d = 16; d > 0; d >>= 1)
        sum += __shfl_xor_sync(0xffffffffu, sum, d);
    for (int i = threadIdx.x; i < cols; i += 32)
        out[size_t(row) * cols + i] = __expf(__half2float(x[i]) - top) / sum;
}

/* Stream-K: the products of all output tiles, laid end to end, are cut into equal runs, one a block; blocks that share a tile add
 * their parts through global memory in order of k, one lock word a tile (Osama et al., 2023).  A block of 64 threads owns 8x8 tiles of
 * int32; work item (tile, step) multiplies 8 k's.  Blocks wait for the block before them: all must make progress. */
extern "C" __global__ void stream_k(int *c, const int *a, const int *b, int *locks, int m, int n, int k)
{
    const int tiles_n = n / 8, steps = k / 8, total = (m / 8) * tiles_n * steps;
    const int share = (total + gridDim.x - 1) / gridDim.x;
    int at = blockIdx.x * share;
    const int end = min(at + share, total);
    const int r = threadIdx.x / 8, q = threadIdx.x % 8;
    while (at < end) {
        const int tile = at / steps, first = at % steps, last = min(steps, first + end - at);
        const int row = tile / tiles_n * 8 + r, col = tile % tiles_n * 8 + q;
        int sum = 0;
        for (int i = first * 8; i < last * 8; i++)
            sum += a[row * k + i] * b[i * n + col];
        volatile int *lock = locks + tile;
        if (first > 0) {
            if (threadIdx.x == 0)
                while (*lock != first)
                    ;
            __syncthreads();
            __threadfence();
            sum += *(volatile int *)&c[row * n + col];
        }
        c[row * n + col] = sum;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0)
            *lock = last;
        at += last - first;
    }
}

/* The same work handed out last block first: the block that is started first waits for one that is started later. */
extern "C" __global__ void waits_for_a_later_block(int *flags, int *out)
{
    if (threadIdx.x == 0) {
        volatile int *f = flags;
        if (blockIdx.x + 1 < gridDim.x)
            while (f[blockIdx.x + 1] == 0)
                ;
        __threadfence();
        out[blockIdx.x] = blockIdx.x + 1 < gridDim.x ? ((volatile int *)out)[blockIdx.x + 1] + 1 : 1;
        __threadfence();
        f[blockIdx.x] = 1;
    }
}

// sm: 75
/* C = A * B^T of s8 as sm_75 does it: tiles go through registers into two buffers of shared memory, m8n8k16.
 * A block computes 32 x 32 of C with four warps, 16 x 16 each.  Rows have to begin at multiples of 16 bytes. */
#include "ptx_helpers.cuh"

constexpr int TILE = 32, STEP = 64, CHUNK = 16, THREADS = 128;

struct Buffer {
    int8_t a[TILE][STEP], b[TILE][STEP];
};

__device__ __forceinline__ int8_t *chunk_at(int8_t (&tile)[TILE][STEP], int row, int chunk)
{
    return &tile[row][(chunk ^ ((row >> 1) & 3)) * CHUNK];
}

/* 16 bytes of a row; what lies outside of the matrix is zero. */
__device__ __forceinline__ int4 read_chunk(const int8_t *matrix, int rows, int k_count, int row_bytes, int row, int k)
{
    union {
        int4 whole;
        int8_t bytes[CHUNK];
    } x = {};
    if (row < rows && k < k_count)
        x.whole = *reinterpret_cast<const int4 *>(matrix + long(row) * row_bytes + k);
    for (int i = 0; i < CHUNK; i++)
        if (k + i >= k_count)
            x.bytes[i] = 0;
    return x.whole;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gemm_s8_turing(const int8_t *a, const int8_t *b, int *c, int m, int n, int k, int row_bytes)
{
    __shared__ __align__(128) Buffer buffers[2];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = threadIdx.x / 4, chunk = threadIdx.x % 4;
    int block_row = blockIdx.y * TILE, block_col = blockIdx.x * TILE;
    int warp_row = warp / 2 * 16, warp_col = warp % 2 * 16;
    int acc[2][2][2] = {};
    int4 next_a, next_b;
    auto read = [&](int at) {
        next_a = read_chunk(a, m, k, row_bytes, block_row + row, at + chunk * CHUNK);
        next_b = read_chunk(b, n, k, row_bytes, block_col + row, at + chunk * CHUNK);
    };
    read(0);
    for (int at = 0; at < k; at += STEP) {
        Buffer &now = buffers[at / STEP % 2];
        *reinterpret_cast<int4 *>(chunk_at(now.a, row, chunk)) = next_a;
        *reinterpret_cast<int4 *>(chunk_at(now.b, row, chunk)) = next_b;
        __syncthreads();
        read(at + STEP);
        for (int piece = 0; piece < STEP / CHUNK; piece++) {
            uint32_t fa[2], fb[2];
            ptx::ldmatrix_x2(fa, chunk_at(now.a, warp_row + lane % 16, piece));
            ptx::ldmatrix_x2(fb, chunk_at(now.b, warp_col + lane % 16, piece));
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 2; j++)
                    ptx::mma_m8n8k16_s8(acc[i][j], fa[i], fb[j]);
        }
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++)
            for (int e = 0; e < 2; e++) {
                int r = block_row + warp_row + 8 * i + lane / 4, col = block_col + warp_col + 8 * j + lane % 4 * 2 + e;
                if (r < m && col < n)
                    c[long(r) * n + col] = acc[i][j][e];
            }
}

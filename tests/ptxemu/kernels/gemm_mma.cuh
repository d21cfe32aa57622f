/* One tensor-core GEMM for s8 and f16: C = A * B^T, A [m][k], B [n][k], both with K contiguous; C [m][n].
 *
 * A block computes 64 x 64 of C with four warps, 32 x 32 each.  K goes by in steps of 64 bytes through three buffers
 * that cp.async fills.  Rows of a buffer have 64 bytes; their 16-byte chunks are swizzled so that neither the copies
 * nor ldmatrix meet a bank conflict. What lies outside of the matrices is zero.  Rows have to begin at multiples of 16
 * bytes. */
#ifndef PTXEMU_KERNELS_GEMM_MMA_CUH
#define PTXEMU_KERNELS_GEMM_MMA_CUH

#include "ptx_helpers.cuh"

constexpr int TILE = 64, WARP_TILE = 32, STEP_BYTES = 64, CHUNK = 16, STAGES = 3, THREADS = 128;

struct Buffer {
    uint8_t a[TILE][STEP_BYTES], b[TILE][STEP_BYTES];
};

__device__ __forceinline__ uint8_t *chunk_at(uint8_t (&tile)[TILE][STEP_BYTES], int row, int chunk)
{
    return &tile[row][(chunk ^ ((row >> 1) & 3)) * CHUNK];
}

/* Two chunks a thread; rows [first, first + 64), bytes [at, at + 64) of K. */
__device__ __forceinline__ void fetch(uint8_t (&tile)[TILE][STEP_BYTES], const uint8_t *matrix, int rows,
                                      long row_bytes, long k_bytes, int first, long at)
{
    for (int i = threadIdx.x; i < TILE * STEP_BYTES / CHUNK; i += THREADS) {
        int row = i / 4, chunk = i % 4;
        long k = at + chunk * CHUNK, left = k_bytes - k;
        uint32_t bytes = first + row >= rows || left <= 0 ? 0 : left < CHUNK ? uint32_t(left) : CHUNK;
        const uint8_t *from = matrix + (bytes ? (first + row) * row_bytes + k : 0);
        ptx::cp_async_16(chunk_at(tile, row, chunk), from, bytes);
    }
}

/* MULTIPLY(acc, a, b): one mma of 16 x 8 over 32 bytes of K. */
template <class Acc, void (*MULTIPLY)(Acc (&)[4], const uint32_t (&)[4], const uint32_t (&)[2])>
__device__ __forceinline__ void gemm(Buffer (&buffers)[STAGES], const uint8_t *a, const uint8_t *b, Acc *c, int m,
                                     int n, long k_bytes, long row_bytes)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int block_row = blockIdx.y * TILE, block_col = blockIdx.x * TILE;
    int warp_row = warp / 2 * WARP_TILE, warp_col = warp % 2 * WARP_TILE;
    Acc acc[2][4][4] = {};
    int steps = int((k_bytes + STEP_BYTES - 1) / STEP_BYTES);
    auto start = [&](int step) {
        if (step < steps) {
            Buffer &to = buffers[step % STAGES];
            fetch(to.a, a, m, row_bytes, k_bytes, block_row, long(step) * STEP_BYTES);
            fetch(to.b, b, n, row_bytes, k_bytes, block_col, long(step) * STEP_BYTES);
        }
        ptx::cp_async_commit();
    };
    for (int s = 0; s < STAGES - 1; s++)
        start(s);
    for (int step = 0; step < steps; step++) {
        ptx::cp_async_wait<STAGES - 2>();
        __syncthreads();
        start(step + STAGES - 1);
        Buffer &now = buffers[step % STAGES];
        for (int half = 0; half < 2; half++) {
            uint32_t fa[2][4], fb[4][2];
            for (int i = 0; i < 2; i++)
                ptx::ldmatrix_x4(fa[i], chunk_at(now.a, warp_row + 16 * i + lane % 16, 2 * half + lane / 16));
            for (int j = 0; j < 4; j++)
                ptx::ldmatrix_x2(fb[j], chunk_at(now.b, warp_col + 8 * j + lane % 8, 2 * half + lane / 8 % 2));
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++)
                    MULTIPLY(acc[i][j], fa[i], fb[j]);
        }
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            for (int e = 0; e < 4; e++) {
                int row = block_row + warp_row + 16 * i + lane / 4 + e / 2 * 8;
                int col = block_col + warp_col + 8 * j + lane % 4 * 2 + e % 2;
                if (row < m && col < n)
                    c[long(row) * n + col] = acc[i][j][e];
            }
}

#endif

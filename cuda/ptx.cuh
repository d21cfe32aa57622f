/* The instructions that CUDA C++ has no words for; the only file with inline PTX.  One function an instruction, named as the
 * PTX ISA names it; where an architecture lacks it, what it is made of there.
 *
 * Fragments of mma (lane = 4g + t, g = 0..7, t = 0..3), A 16 x k by rows, B k x 8 by columns, C and D 16 x 8:
 *   m16n8k16 f16, bf16   a0 (row g, k 2t,2t+1) a1 (g+8, same) a2 (g, k+8) a3 (g+8, k+8)   b0 (col g, k 2t,2t+1) b1 (k+8)
 *   m16n8k32 s8          a0 (row g, k 4t..4t+3) a1 (g+8, same) a2 (g, k+16) a3 (g+8, k+16)   b0 (col g, k 4t..4t+3) b1 (k+16)
 *   c0, c1 (row g, cols 2t, 2t+1)   c2, c3 (row g+8, same)
 */
#ifndef NB_CUDA_PTX_CUH
#define NB_CUDA_PTX_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define NB_DEVICE static __device__ __forceinline__

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define NB_HAS_SM80 1 /* cp.async, m16n8k16, bfloat16 */
#else
#define NB_HAS_SM80 0
#endif

NB_DEVICE uint32_t nb_shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- mma ---- */

/* d += a b; fp32 sums.  sm_75 has k8 only: two of them, lower k first. */
NB_DEVICE void nb_mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
#if NB_HAS_SM80
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

NB_DEVICE void nb_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
#if NB_HAS_SM80
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    (void)d, (void)a, (void)b;
    __trap();                   /* kernels.h: bfloat16 kernels ask for sm_80 */
#endif
}

/* d += a b, exact int32.  sm_75: four m8n8k16, which together have the same fragments. */
NB_DEVICE void nb_mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2])
{
#if NB_HAS_SM80
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
    for (int i = 0; i < 4; i++) /* (a0,b0) and (a2,b1) to rows g, (a1,b0) and (a3,b1) to rows g+8 */
        asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                     : "+r"(d[(i & 1) * 2]), "+r"(d[(i & 1) * 2 + 1])
                     : "r"(a[i]), "r"(b[i >> 1]));
#endif
}

/* ---- shared memory to fragments: lane i gives the address of row i % 8 of matrix i / 8; 16 bytes a row ---- */

NB_DEVICE void nb_ldmatrix_x4(uint32_t r[4], uint32_t shared)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}

NB_DEVICE void nb_ldmatrix_x2(uint32_t r[2], uint32_t shared)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared)
                 : "memory");
}

NB_DEVICE void nb_ldmatrix_x4_trans(uint32_t r[4], uint32_t shared)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}

/* ---- global to shared, 16 bytes; `bytes` of them are read (0: none), the rest is zero.  sm_75 copies at once through a
 * register, so the code around it must be right in both cases: wait, then a barrier, then read ---- */

NB_DEVICE void nb_cp_async_16(void *shared, const void *global, uint32_t bytes)
{
#if NB_HAS_SM80
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(nb_shared_address(shared)), "l"(global),
                 "r"(bytes)
                 : "memory");
#else
    *(uint4 *)shared = bytes ? *(const uint4 *)global : make_uint4(0, 0, 0, 0); /* callers pass 0 or 16 */
#endif
}

NB_DEVICE void nb_cp_async_commit()
{
#if NB_HAS_SM80
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/* Until at most `pending` of the newest groups are under way. */
template <int pending>
NB_DEVICE void nb_cp_async_wait()
{
#if NB_HAS_SM80
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

/* ---- weights are read once: they should not push activations out of the second-level cache ---- */

NB_DEVICE uint4 nb_load_stream(const void *global)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(global));
    return v;
}

/* 2^x, relative error at most 2^-22; a result below 2^-126 is 0 */
NB_DEVICE float nb_ex2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* The same if `wanted`; else nothing, and what is returned must not be used. */
NB_DEVICE uint4 nb_load_stream_if(const void *global, bool wanted)
{
    uint4 v;
    asm volatile("{.reg .pred p; setp.ne.b32 p, %5, 0; @p ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];}"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(global), "r"((int)wanted));
    return v;
}

NB_DEVICE void nb_store_shared_2(uint32_t shared, uint32_t a, uint32_t b)
{
    asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(shared), "r"(a), "r"(b) : "memory");
}

NB_DEVICE uint8_t nb_load_shared_u8(uint32_t shared)
{
    uint32_t v;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(shared) : "memory");
    return (uint8_t)v;
}

/* v, of which the compiler knows nothing: what is made of it in a loop is not computed before the loop, and kept in
 * registers that the loop needs. */
NB_DEVICE uint32_t nb_opaque(uint32_t v)
{
    asm volatile("" : "+r"(v));
    return v;
}

/* (a & b) | c and (a & b) ^ c in one instruction */
template <int table>
NB_DEVICE uint32_t nb_lop3(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(table));
    return d;
}
#define NB_AND_OR  0xEA
#define NB_AND_XOR 0x6A

#endif

/* NF4 weights (base/nf4.h) made into A fragments: the table of sixteen numbers, rounded to X, lies in registers, and prmt looks
 * four codes up at once: a code's low three bits choose a byte of eight; bit 3 chooses which of two such results counts.
 * Low and high bytes of the numbers have a table each and are interleaved at the end.
 *
 * Instructions for 8 codes of a lane: 1 shift for the upper half, then for each half 1 shift 2 lop3 8 prmt: 23 (W4: 9). */
#ifndef NB_CUDA_NF4_CUH
#define NB_CUDA_NF4_CUH

#include "weights.cuh"

/* Bytes of the sixteen numbers, [0] the code 0: low bytes, then high bytes. */
template <typename X>
struct nb_nf4_bytes;

template <>
struct nb_nf4_bytes<__half> {
    static const uint32_t l0 = 0x52339200u, l1 = 0x00d4ea8du, l2 = 0x68e02618u, l3 = 0x00c9800du;
    static const uint32_t h0 = 0xb6b8b9bcu, h1 = 0x00adb1b4u, h2 = 0x3533312du, h3 = 0x3c393837u;
};

template <>
struct nb_nf4_bytes<__nv_bfloat16> {
    static const uint32_t l0 = 0xca063280u, l1 = 0x00ba3d92u, l2 = 0xad7c25a3u, l3 = 0x803910e2u;
    static const uint32_t h0 = 0xbebfbfbfu, h1 = 0x00bdbebeu, h2 = 0x3e3e3e3du, h3 = 0x3f3f3f3eu;
};

template <typename X>
struct nb_weight<NB_W_NF4, X> {
    typedef nb_nf4_bytes<X> table;
    static __device__ __forceinline__ nb_zeros zeros(int, int) { return {0, 0}; }
    /* The numbers of the four codes in the lower half of v: two in a, two in b. */
    static __device__ __forceinline__ void four(uint32_t v, uint32_t &a, uint32_t &b)
    {
        const uint32_t at = v & 0x7777u, half = nb_lop3<NB_AND_OR>(v >> 1, 0x4444u, 0x3210u);
        const uint32_t low =
            __byte_perm(__byte_perm(table::l0, table::l1, at), __byte_perm(table::l2, table::l3, at), half);
        const uint32_t high =
            __byte_perm(__byte_perm(table::h0, table::h1, at), __byte_perm(table::h2, table::h3, at), half);
        a = __byte_perm(low, high, 0x5140);
        b = __byte_perm(low, high, 0x7362);
    }
    static __device__ __forceinline__ void fragment(uint32_t a[4], const uint4 *unit, int step, nb_zeros)
    {
        const uint32_t w = nb_word(unit[0], step);
        four(w, a[0], a[1]);
        four(w >> 16, a[2], a[3]);
    }
};

#endif

/* The swizzles of shared memory that TMA writes and wgmma reads.
 *
 * A swizzle exchanges 16-byte pieces within a pattern of 256, 512 or 1024 bytes: the piece's number is xor-ed with the number of
 * the 128-byte line, so that a column of a tile meets all banks.  The formulas work on shared-memory addresses, not on offsets
 * within a tile, which is why tiles have to begin at a multiple of the pattern. */
#ifndef PTXEMU_ISA_SWIZZLE_H
#define PTXEMU_ISA_SWIZZLE_H

#include <cstdint>

namespace ptxemu
{

/* In the order of CUtensorMapSwizzle. */
enum class Swizzle : uint8_t { none, b32, b64, b128 };

/* none 0, 32B 1, 64B 2, 128B 3: how many bits of the address take part. */
constexpr uint32_t swizzle_bits(Swizzle s)
{
    return uint32_t(s);
}

/* Where the byte of linear address `a` lies:
 *   128B: bits 4-6 ^= bits 7-9;  64B: bits 4-5 ^= bits 7-8;  32B: bit 4 ^= bit 7.
 * An involution: the same call leads back. */
constexpr uint32_t swizzle_address(Swizzle s, uint32_t a)
{
    return a ^ ((a >> 7 & ((1u << swizzle_bits(s)) - 1)) << 4);
}

/* Bytes of the widest row that a box of this swizzle may have; 0: no limit. */
constexpr uint32_t swizzle_span(Swizzle s)
{
    return s == Swizzle::none ? 0 : 16u << swizzle_bits(s);
}

/* After so many bytes the pattern repeats; a tile's alignment. */
constexpr uint32_t swizzle_pattern(Swizzle s)
{
    return s == Swizzle::none ? 16 : 128u << swizzle_bits(s);
}

} // namespace ptxemu

#endif

/* The 128 opaque bytes of a CUtensorMap, as the emulator writes (driver/tensor_map.cpp) and reads them (isa/bulk.cpp). */
#ifndef PTXEMU_ISA_TENSOR_MAP_H
#define PTXEMU_ISA_TENSOR_MAP_H

#include <cstdint>

#include "isa/swizzle.h"

namespace ptxemu
{

constexpr unsigned TENSOR_MAX_RANK = 5;

/* In the order of CUtensorMapDataType.  Those that follow there change values on the way (denormals, tf32), or are packed. */
enum class TensorType : uint8_t { u8, u16, u32, s32, u64, s64, f16, f32, f64, bf16, count };

inline uint32_t tensor_type_bytes(TensorType t)
{
    static const uint8_t bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
    static_assert(sizeof bytes == uint32_t(TensorType::count), "a size for every type");
    return bytes[uint32_t(t)];
}

inline bool tensor_type_is_float(TensorType t)
{
    return t >= TensorType::f16;
}

struct TensorMap {
    static constexpr uint32_t MAGIC = 0x50414d54; /* "TMAP" */

    uint32_t magic = MAGIC;
    TensorType type = TensorType::u8;
    uint8_t rank = 1;
    Swizzle swizzle = Swizzle::none;
    uint8_t nan_fill = 0; /* elements outside of the tensor: 0 zeros, 1 NaN */
    uint64_t address = 0;
    uint64_t size[TENSOR_MAX_RANK] = {};       /* elements; dimension 0 is the one without gaps */
    uint64_t stride[TENSOR_MAX_RANK - 1] = {}; /* bytes, of dimensions 1 and up */
    uint16_t box[TENSOR_MAX_RANK] = {};        /* elements that a copy steps over */
    uint8_t step[TENSOR_MAX_RANK] = {};        /* element strides: of these it takes every step-th; 1 in dimension 0 */
    uint8_t reserved[25] = {};

    bool valid() const { return magic == MAGIC && type < TensorType::count && rank >= 1 && rank <= TENSOR_MAX_RANK; }
    /* Elements that arrive in shared memory along a dimension. */
    uint32_t extent(unsigned d) const { return (box[d] + step[d] - 1u) / step[d]; }
    uint32_t box_bytes() const
    {
        uint32_t n = tensor_type_bytes(type);
        for (unsigned d = 0; d < rank; d++)
            n *= extent(d);
        return n;
    }
};
static_assert(sizeof(TensorMap) == 128, "a CUtensorMap has 128 bytes");

} // namespace ptxemu

#endif

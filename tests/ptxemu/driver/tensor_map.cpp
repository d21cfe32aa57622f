/* Tensor maps: the documented rules for their fields, and the encoding that isa/tensor_map.h describes.
 *
 * The documentation also says that each stride is a multiple of the one before.  Drivers take maps of permuted tensors, where it is
 * not, and so do we. */
#include "driver/tensor_map.h"

#include <cstring>

#include "driver/call.h"
#include "isa/tensor_map.h"

namespace ptxemu::driver
{
namespace
{

bool is_aligned(const void *p, uintptr_t to)
{
    return reinterpret_cast<uintptr_t>(p) % to == 0;
}

/* Sizes, strides and box of every dimension. */
bool shape_is_valid(const TensorMap &m, const cuuint64_t *size, const cuuint64_t *stride, const cuuint32_t *box,
                    const cuuint32_t *step)
{
    for (unsigned d = 0; d < m.rank; d++) {
        if (size[d] == 0 || size[d] > 1ull << 32 || box[d] == 0 || box[d] > 256)
            return false;
        if (d && (step[d] == 0 || step[d] > 8))
            return false;
        if (d && (stride[d - 1] % 16 || stride[d - 1] >= 1ull << 40))
            return false;
    }
    const uint32_t inner = box[0] * tensor_type_bytes(m.type);
    return inner % 16 == 0 && (m.swizzle == Swizzle::none || inner <= swizzle_span(m.swizzle));
}

} // namespace

CUresult encode_tiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                      const cuuint64_t *size, const cuuint64_t *stride, const cuuint32_t *box,
                      const cuuint32_t *element_stride, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill)
{
    if (!map || !is_aligned(map, 64) || !size || !box || !element_stride || (rank > 1 && !stride))
        return CUDA_ERROR_INVALID_VALUE;
    if (unsigned(type) > CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ || unsigned(interleave) > CU_TENSOR_MAP_INTERLEAVE_32B ||
        unsigned(swizzle) > CU_TENSOR_MAP_SWIZZLE_128B || unsigned(promotion) > CU_TENSOR_MAP_L2_PROMOTION_L2_256B ||
        unsigned(fill) > CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA)
        return CUDA_ERROR_INVALID_VALUE;
    if (rank == 0 || rank > TENSOR_MAX_RANK || !address || !is_aligned(address, 16))
        return CUDA_ERROR_INVALID_VALUE;
    if (unsigned(type) >= unsigned(TensorType::count))
        return CUDA_ERROR_NOT_SUPPORTED; /* values that change on the way */
    TensorMap m;
    m.type = TensorType(type);
    m.rank = uint8_t(rank);
    m.swizzle = Swizzle(swizzle);
    m.nan_fill = fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA;
    m.address = reinterpret_cast<uint64_t>(address);
    if (m.nan_fill && !tensor_type_is_float(m.type))
        return CUDA_ERROR_INVALID_VALUE;
    if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE) /* layouts of channels in slices, for convolutions */
        return rank < 3 ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_NOT_SUPPORTED;
    if (!shape_is_valid(m, size, stride, box, element_stride))
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned d = 0; d < rank; d++) {
        m.size[d] = size[d];
        m.box[d] = uint16_t(box[d]);
        m.step[d] = uint8_t(d ? element_stride[d] : 1); /* that of dimension 0 is ignored, as documented */
        if (d)
            m.stride[d - 1] = stride[d - 1];
    }
    memcpy(map, &m, sizeof m);
    return CUDA_SUCCESS;
}

CUresult replace_address(CUtensorMap *map, void *address)
{
    TensorMap m;
    if (!map || !is_aligned(map, 64) || !address || !is_aligned(address, 16))
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(static_cast<void *>(&m), map, sizeof m);
    if (!m.valid())
        return CUDA_ERROR_INVALID_VALUE;
    m.address = reinterpret_cast<uint64_t>(address);
    memcpy(map, &m, sizeof m);
    return CUDA_SUCCESS;
}

} // namespace ptxemu::driver

using namespace ptxemu::driver;

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *size, const cuuint64_t *stride, const cuuint32_t *box,
                                const cuuint32_t *element_stride, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                CUtensorMapFloatOOBfill fill)
{
    return call(__func__, INIT, [&](Call &) {
        return encode_tiled(map, type, rank, address, size, stride, box, element_stride, interleave, swizzle, promotion,
                            fill);
    });
}

CUresult cuTensorMapReplaceAddress(CUtensorMap *map, void *address)
{
    return call(__func__, INIT, [&](Call &) { return replace_address(map, address); });
}

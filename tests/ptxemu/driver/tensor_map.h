/* What cuTensorMapEncodeTiled and cuTensorMapReplaceAddress do. */
#ifndef PTXEMU_DRIVER_TENSOR_MAP_H
#define PTXEMU_DRIVER_TENSOR_MAP_H

#include "driver/api.h"

namespace ptxemu::driver
{

CUresult encode_tiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                      const cuuint64_t *size, const cuuint64_t *stride, const cuuint32_t *box,
                      const cuuint32_t *element_stride, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill);
CUresult replace_address(CUtensorMap *map, void *address);

} // namespace ptxemu::driver

#endif

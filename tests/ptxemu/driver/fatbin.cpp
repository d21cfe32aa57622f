#include "driver/fatbin.h"

namespace ptxemu::driver
{
bool is_fatbin(const void *image)
{
    uint32_t magic = *static_cast<const uint32_t *>(image);
    return magic == FATBIN_MAGIC || magic == FATBIN_WRAPPER_MAGIC;
}
CUresult ptx_of_fatbin(const void *, unsigned, std::string *, std::string *)
{
    return CUDA_ERROR_NO_BINARY_FOR_GPU;
}
} // namespace ptxemu::driver

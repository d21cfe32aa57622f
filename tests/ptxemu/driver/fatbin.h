/* The container that nvcc puts PTX and machine code into. */
#ifndef PTXEMU_DRIVER_FATBIN_H
#define PTXEMU_DRIVER_FATBIN_H

#include <cstddef>
#include <cstdint>
#include <string>

#include "driver/api.h"

namespace ptxemu::driver
{

constexpr uint32_t FATBIN_MAGIC = 0xBA55ED50u, FATBIN_WRAPPER_MAGIC = 0x466243B1u;

bool is_fatbin(const void *image); /* the container, or the wrapper that the runtime registers */
/* The best PTX for a device: of sm_90a for a 9.0, else of the highest architecture that is not above it.  On failure
 * *why is a sentence. */
CUresult ptx_of_fatbin(const void *image, unsigned sm, std::string *ptx, std::string *why);
/* What a library copies: the container behind a wrapper, or the text, and how long it is. */
const void *image_start(const void *image);
size_t image_bytes(const void *image);

} // namespace ptxemu::driver

#endif

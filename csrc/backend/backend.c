#include "backend/backend.h"

#include <string.h>

#include "backend/cpu/cpu.h"

nb_status nbi_backend_create(nbi_backend **out, const char *device, int threads)
{
    *out = NULL;
    if (!device || strcmp(device, "auto") == 0 || strcmp(device, "cpu") == 0)
        return nbi_cpu_create(out, threads);
    return nbi_fail(NB_ENODEVICE, "device \"%s\" does not exist here: this build knows \"auto\" and \"cpu\"", device);
}

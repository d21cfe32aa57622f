#include "driver/fatbin.h"

#include <cstring>

#include "types.h"

namespace ptxemu::driver
{
namespace
{
/* The layout, as nvcc 13 writes it; all little-endian. */
struct Wrapper {
    uint32_t magic, version;
    const void *data;
    void *unused;
};
struct Header {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t entries_bytes;
};
struct Entry {
    uint16_t kind, version;
    uint32_t header_bytes;  /* the payload follows, then the next entry */
    uint64_t payload_bytes; /* with its padding */
    uint32_t compressed_bytes;
    uint32_t options_at;
    uint16_t minor, major; /* PTX: the .version */
    uint32_t arch;         /* 80 */
    uint32_t name_at, name_bytes;
    uint64_t flags;
    uint64_t unused;
    uint64_t uncompressed_bytes;
};
static_assert(sizeof(Header) == 16 && sizeof(Entry) == 64, "layout of the file");

enum Kind : uint16_t { PTX = 1, CUBIN = 2 };
enum Flags : uint64_t {
    COMPRESSED = 0x2000 | 0x8000, /* LZ4, Zstandard */
    ARCH_SPECIFIC = 0x100000,     /* sm_90a */
    FAMILY_SPECIFIC = 0x200000,   /* sm_100f */
};

Header header_of(const void *image, const uint8_t **first)
{
    Wrapper w;
    Header h;
    memcpy(&h, image, sizeof h);
    if (h.magic == FATBIN_WRAPPER_MAGIC) {
        memcpy(&w, image, sizeof w);
        image = w.data;
        memcpy(&h, image, sizeof h);
    }
    *first = static_cast<const uint8_t *>(image) + h.header_bytes;
    return h;
}

/* How well an entry suits a device: 0 not at all. */
unsigned fitness(const Entry &e, unsigned sm)
{
    if (e.kind != PTX || e.arch > sm || (e.flags & FAMILY_SPECIFIC))
        return 0;
    if (e.flags & ARCH_SPECIFIC)
        return e.arch == sm ? 2 * sm + 1 : 0;
    return 2 * e.arch;
}

std::string entry_text(const Entry &e)
{
    return format("%s sm_%u%s",
                  e.kind == PTX     ? "PTX"
                  : e.kind == CUBIN ? "machine code"
                                    : "unknown",
                  e.arch,
                  e.flags & ARCH_SPECIFIC     ? "a"
                  : e.flags & FAMILY_SPECIFIC ? "f"
                                              : "");
}
} // namespace

bool is_fatbin(const void *image)
{
    /* Byte by byte: a text may be shorter than a magic number. */
    const char *text = static_cast<const char *>(image);
    return !strncmp(text, "\x50\xED\x55\xBA", 4) || !strncmp(text, "\xB1\x43\x62\x46", 4);
}

CUresult ptx_of_fatbin(const void *image, unsigned sm, std::string *ptx, std::string *why)
{
    const uint8_t *at;
    Header h = header_of(image, &at);
    if (h.magic != FATBIN_MAGIC || h.header_bytes != sizeof h) {
        *why = "the fatbin's header is damaged";
        return CUDA_ERROR_INVALID_IMAGE;
    }
    std::string found;
    Entry best{};
    const uint8_t *best_payload = nullptr;
    for (uint64_t left = h.entries_bytes; left;) {
        Entry e;
        if (left >= sizeof e)
            memcpy(&e, at, sizeof e);
        if (left < sizeof e || e.header_bytes < sizeof e || e.header_bytes > left ||
            e.payload_bytes > left - e.header_bytes) {
            *why = "an entry of the fatbin runs beyond its end";
            return CUDA_ERROR_INVALID_IMAGE;
        }
        if (fitness(e, sm) > fitness(best, sm)) {
            best = e;
            best_payload = at + e.header_bytes;
        }
        found += (found.empty() ? "" : ", ") + entry_text(e);
        at += e.header_bytes + e.payload_bytes;
        left -= e.header_bytes + e.payload_bytes;
    }
    if (!best_payload) {
        *why = format("the fatbin has no PTX for sm_%u: it has %s", sm, found.empty() ? "nothing" : found.c_str());
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    if (best.flags & COMPRESSED) {
        *why = entry_text(best) + " of the fatbin is compressed: build it with nvcc --no-compress";
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    const char *text = reinterpret_cast<const char *>(best_payload);
    ptx->assign(text, strnlen(text, best.payload_bytes));
    return CUDA_SUCCESS;
}

size_t image_bytes(const void *image)
{
    if (is_fatbin(image)) {
        const uint8_t *first;
        Header h = header_of(image, &first);
        return h.magic == FATBIN_MAGIC ? h.header_bytes + h.entries_bytes : sizeof h;
    }
    return strlen(static_cast<const char *>(image)) + 1;
}

const void *image_start(const void *image)
{
    Wrapper w;
    if (strncmp(static_cast<const char *>(image), "\xB1\x43\x62\x46", 4) != 0)
        return image;
    memcpy(&w, image, sizeof w);
    return w.data;
}

} // namespace ptxemu::driver

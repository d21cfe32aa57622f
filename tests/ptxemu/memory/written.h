/* The written bytes: for each byte of memory another one, 1 once the byte was written, 0 before. */
#ifndef PTXEMU_MEMORY_WRITTEN_H
#define PTXEMU_MEMORY_WRITTEN_H

#include <cstring>

#include "memory/access.h"

namespace ptxemu
{

/* Where the written byte of an address lies. */
struct Shadow {
    uint64_t distance = 0; /* of the shadow from the addresses */
    Shadow(const uint8_t *written, uint64_t begin) : distance(reinterpret_cast<uint64_t>(written) - begin) {}
    uint8_t *of(uint64_t address) const { return reinterpret_cast<uint8_t *>(address + distance); }
};

template <class T>
constexpr T EACH_BYTE_1 = T(0x0101010101010101ull);

/* Blocks on several host threads may read and write these bytes at once, as they may the memory that they stand for; that is the
 * only thing a thread sanitizer reports.  A store marks its bytes before it writes: whoever sees the data finds the mark. */
inline bool all_written(const uint8_t *s, size_t n)
{
    uint64_t missing = 0, v = 0;
    for (; n >= 8; n -= 8, s += 8) {
        memcpy(&v, s, 8);
        missing |= v ^ EACH_BYTE_1<uint64_t>;
    }
    for (; n; n--, s++)
        missing |= *s ^ 1u;
    return !missing;
}

/* Lanes of which some byte of sizeof(T), `at` bytes behind their address, was never written. */
template <class T>
Lanes unwritten_at(Shadow s, const uint64_t address[WARP_SIZE], Lanes lanes, unsigned at = 0)
{
    Lanes missing = 0;
    each_lane(lanes, [&](unsigned l) {
        T v;
        memcpy(&v, s.of(address[l]) + at, sizeof v);
        missing |= Lanes(v != EACH_BYTE_1<T>) << l;
    });
    return missing;
}

inline Lanes unwritten(Shadow s, const uint64_t address[WARP_SIZE], Lanes lanes, uint32_t bytes)
{
    Lanes missing = 0;
    switch (bytes) {
    case 1:
        return unwritten_at<uint8_t>(s, address, lanes);
    case 2:
        return unwritten_at<uint16_t>(s, address, lanes);
    case 4:
        return unwritten_at<uint32_t>(s, address, lanes);
    case 8:
        return unwritten_at<uint64_t>(s, address, lanes);
    case 16:
        return unwritten_at<uint64_t>(s, address, lanes) | unwritten_at<uint64_t>(s, address, lanes, 8);
    default:
        each_lane(lanes, [&](unsigned l) { missing |= Lanes(!all_written(s.of(address[l]), bytes)) << l; });
        return missing;
    }
}

template <class T>
void set_written_at(Shadow s, const uint64_t address[WARP_SIZE], Lanes lanes, Lanes undefined, unsigned at = 0)
{
    each_lane(lanes, [&](unsigned l) {
        const T v = undefined >> l & 1 ? 0 : EACH_BYTE_1<T>;
        memcpy(s.of(address[l]) + at, &v, sizeof v);
    });
}

/* Lanes of `undefined` store what was never written: their bytes count as never written from now on. */
inline void set_written(Shadow s, const uint64_t address[WARP_SIZE], Lanes lanes, Lanes undefined, uint32_t bytes)
{
    switch (bytes) {
    case 1:
        return set_written_at<uint8_t>(s, address, lanes, undefined);
    case 2:
        return set_written_at<uint16_t>(s, address, lanes, undefined);
    case 4:
        return set_written_at<uint32_t>(s, address, lanes, undefined);
    case 8:
        return set_written_at<uint64_t>(s, address, lanes, undefined);
    case 16:
        set_written_at<uint64_t>(s, address, lanes, undefined);
        return set_written_at<uint64_t>(s, address, lanes, undefined, 8);
    default:
        each_lane(lanes, [&](unsigned l) { memset(s.of(address[l]), !(undefined >> l & 1), bytes); });
    }
}

} // namespace ptxemu

#endif

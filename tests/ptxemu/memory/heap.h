/* Device global memory: allocations in reserved address ranges with gaps around them, so that a stray access is seen, and a
 * second byte for each byte that says whether it was ever written.
 *
 * Device addresses are host addresses.  A freed range stays poisoned until the address space is needed again.  Thread safe. */
#ifndef PTXEMU_MEMORY_HEAP_H
#define PTXEMU_MEMORY_HEAP_H

#include <cstdint>
#include <string>
#include <vector>

namespace ptxemu
{

enum class AllocKind : uint8_t { device, managed, pinned, registered, module_global, module_const };

struct Allocation {
    uint64_t address = 0;
    size_t bytes = 0;
    AllocKind kind = AllocKind::device;
    unsigned device = 0;
    bool freed = false;
    uint8_t *written =
        nullptr;         /* a byte for each byte: 1 written; nullptr: counts as written (host memory, constants) */
    uint64_t serial = 0; /* the how-manieth allocation, for reports and leaks */
    std::string note;    /* the variable's name, or the function that allocated it */
    uint32_t peers = 0;  /* bit d: device d may access it besides its own */
};

class Heap
{
  public:
    Heap();
    ~Heap();
    /* 0: the device's memory (limit given per device) is exhausted.  Zeroed only where `zero`; else filled with 0xCB so that wrong
     * programs do not work by luck. */
    uint64_t allocate(unsigned device, size_t bytes, size_t align, AllocKind kind, const std::string &note,
                      bool zero = false);
    bool add_host(uint64_t address, size_t bytes, AllocKind kind); /* cuMemHostRegister */
    bool release(uint64_t address);                                /* false: not the start of a live allocation */
    /* The allocation that holds the address, live or freed; else nullptr.  The pointer stays valid until reset(). */
    const Allocation *find(uint64_t address) const;
    /* The live allocation nearest to an address, for reports ("4 bytes after an allocation of 1024 bytes made by ..."). */
    std::string describe(uint64_t address) const;
    void mark_written(uint64_t address, size_t bytes); /* by the host: memcpy, memset */
    void allow_peer(unsigned owner, unsigned peer, bool on);
    void set_limit(unsigned device, size_t bytes);
    size_t free_bytes(unsigned device) const, total_bytes(unsigned device) const;
    std::vector<Allocation> live(unsigned device) const; /* leaks */
    uint64_t version() const; /* changes with every allocate/release: lets callers cache find() */
    void reset();

  private:
    struct Impl;
    Impl *impl_;
};

} // namespace ptxemu

#endif

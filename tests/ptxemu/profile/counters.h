/* What a launch counted.  Blocks count on their own; the grid adds them up. */
#ifndef PTXEMU_PROFILE_COUNTERS_H
#define PTXEMU_PROFILE_COUNTERS_H

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "isa/code.h"
#include "types.h"

namespace ptxemu
{

struct LineCounters { /* of one source line */
    uint64_t global_requests = 0, global_sectors = 0,
             global_ideal_sectors = 0; /* 32-byte sectors; ideal: bytes asked for / 32, rounded up */
    uint64_t shared_requests = 0, shared_wavefronts = 0,
             shared_ideal_wavefronts = 0; /* conflicts: wavefronts beyond the minimum */
    uint64_t instructions = 0;
    void add(const LineCounters &o);
};

struct Counters {
    uint64_t warp_instructions[size_t(Class::count)] = {};
    uint64_t thread_instructions[size_t(Class::count)] = {};
    uint64_t branches = 0, divergent_branches = 0;
    uint64_t global_load_bytes = 0, global_store_bytes = 0; /* asked for */
    uint64_t global_load_sectors = 0, global_store_sectors = 0, global_load_ideal = 0, global_store_ideal = 0;
    uint64_t shared_wavefronts = 0, shared_ideal = 0;
    uint64_t tensor_ops = 0;          /* multiply-accumulates on tensor cores, times two */
    uint64_t barriers = 0;            /* arrivals of warps */
    uint64_t async_bytes = 0;         /* cp.async and bulk */
    uint64_t max_bytes_in_flight = 0; /* of a block: async copies issued and not yet waited for */
    uint64_t bytes_in_flight = 0;     /* now */
    std::unordered_set<uint64_t>
        sectors; /* distinct 32-byte sectors: L2-distinct bytes = 32 * size; only with Options::profile */
    std::unordered_map<uint64_t, LineCounters> lines; /* file << 32 | line; only with Options::profile */
    void add(const Counters &o);
};

/* ---- hooks, called by memory/access.cpp and the families; cheap no-ops without Options::profile ---- */
struct Warp;
void count_global(Warp &w, bool store, const uint64_t address[WARP_SIZE], Lanes lanes, uint32_t bytes);
/* Wavefronts of one shared access: 4-byte banks, 32 of them; 8- and 16-byte accesses in half and quarter warps; the same word is one. */
void count_shared(Warp &w, const uint32_t offset[WARP_SIZE], Lanes lanes, uint32_t bytes);
/* ldmatrix/stmatrix: each phase is eight rows of 16 bytes. */
void count_matrix_rows(Warp &w, const uint32_t *row_offset, unsigned rows);
void count_tensor(Warp &w, uint64_t ops);
unsigned wavefronts(const uint32_t offset[WARP_SIZE], Lanes lanes, uint32_t bytes, unsigned *ideal);

/* The profile file: one JSON document {"kernels": [...]}, rewritten whole when the process ends or the context goes; see README. */
class Profile
{
  public:
    static Profile &get();
    void add(const std::string &kernel, const Module &m, Dim3 grid, Dim3 block, size_t shared, double seconds,
             const Counters &c);
    bool write(const std::string &path) const; /* whole or not at all; false: errno says why */
    void clear();

  private:
    struct Impl;
    Profile();
    Impl *impl_;
};

} // namespace ptxemu

#endif

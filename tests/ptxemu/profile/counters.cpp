/* Sectors of global memory and wavefronts of shared memory, counted as the hardware's memory pipeline makes them. */
#include "profile/counters.h"

#include <algorithm>
#include <cstring>

#include "machine/block.h"

namespace ptxemu
{
namespace
{
constexpr uint64_t SECTOR = 32;
constexpr unsigned BANKS = 32, BANK_BYTES = 4;

LineCounters *line_of(Warp &w)
{
    if (!w.at)
        return nullptr;
    const Loc &loc = w.at->loc;
    return &w.block->counters.lines[uint64_t(loc.file) << 32 | loc.line];
}

bool profiling(const Warp &w)
{
    return w.block->grid->launch.options.profile;
}

/* A few sorted numbers. */
struct Few {
    uint64_t v[WARP_SIZE];
    size_t n = 0;
    void add(uint64_t x)
    {
        if (n == 0 || v[n - 1] != x)
            v[n++] = x;
    }
    void make_distinct()
    {
        std::sort(v, v + n);
        n = size_t(std::unique(v, v + n) - v);
    }
};

/* Bytes that the lanes ask for, each counted once: the same word for all lanes is an ideal access too. */
uint64_t distinct_bytes(const uint64_t address[WARP_SIZE], Lanes lanes, uint32_t bytes)
{
    uint64_t begin[WARP_SIZE], n = 0, sum = 0, end = 0;
    for (Lanes left = lanes; left; left &= left - 1)
        begin[n++] = address[__builtin_ctz(left)];
    std::sort(begin, begin + n);
    for (uint64_t k = 0; k < n; k++) {
        uint64_t from = std::max(begin[k], end);
        end = std::max(end, begin[k] + bytes);
        sum += end - from;
    }
    return sum;
}

/* Wavefronts of the lanes in `group`, which the hardware serves together: in one wavefront every bank gives one word, to all lanes that
 * want it. */
unsigned wavefronts_of_group(const uint32_t offset[WARP_SIZE], Lanes group, uint32_t words)
{
    uint32_t word[WARP_SIZE * 4];
    size_t n = 0;
    for (Lanes left = group; left; left &= left - 1)
        for (uint32_t k = 0; k < words; k++)
            word[n++] = offset[__builtin_ctz(left)] / BANK_BYTES + k;
    std::sort(word, word + n);
    n = size_t(std::unique(word, word + n) - word);
    unsigned per_bank[BANKS] = {}, most = 0;
    for (size_t k = 0; k < n; k++)
        most = std::max(most, ++per_bank[word[k] % BANKS]);
    return most;
}
} // namespace

/* 8-byte accesses are served half a warp at a time, 16-byte accesses a quarter at a time: 128 bytes is what the banks give. */
unsigned wavefronts(const uint32_t offset[WARP_SIZE], Lanes lanes, uint32_t bytes, unsigned *ideal)
{
    const unsigned lanes_at_once = bytes <= 4 ? 32 : bytes <= 8 ? 16 : 8;
    const Lanes group = lanes_at_once == 32 ? ALL_LANES : (1u << lanes_at_once) - 1;
    unsigned sum = 0;
    *ideal = 0;
    for (unsigned at = 0; at < WARP_SIZE; at += lanes_at_once) {
        const Lanes these = lanes & group << at;
        if (!these)
            continue;
        sum += wavefronts_of_group(offset, these, std::max(bytes / BANK_BYTES, 1u));
        ++*ideal;
    }
    return sum;
}

void count_shared(Warp &w, const uint32_t offset[WARP_SIZE], Lanes lanes, uint32_t bytes)
{
    if (!profiling(w) || !lanes)
        return;
    unsigned ideal, n = wavefronts(offset, lanes, bytes, &ideal);
    Counters &c = w.block->counters;
    c.shared_wavefronts += n;
    c.shared_ideal += ideal;
    if (LineCounters *line = line_of(w)) {
        line->shared_requests++;
        line->shared_wavefronts += n;
        line->shared_ideal_wavefronts += ideal;
    }
}

void count_matrix_rows(Warp &w, const uint32_t *row_offset, unsigned rows)
{
    if (!profiling(w))
        return;
    constexpr unsigned PHASE = 8;
    Counters &c = w.block->counters;
    unsigned sum = 0, phases = 0;
    for (unsigned at = 0; at < rows; at += PHASE, phases++) {
        uint32_t offset[WARP_SIZE] = {};
        const unsigned n = std::min(PHASE, rows - at);
        std::copy_n(row_offset + at, n, offset);
        unsigned ideal;
        sum += wavefronts(offset, (1u << n) - 1, 16, &ideal);
    }
    c.shared_wavefronts += sum;
    c.shared_ideal += phases;
    if (LineCounters *line = line_of(w)) {
        line->shared_requests++;
        line->shared_wavefronts += sum;
        line->shared_ideal_wavefronts += phases;
    }
}

void count_global(Warp &w, bool store, const uint64_t address[WARP_SIZE], Lanes lanes, uint32_t bytes)
{
    if (!profiling(w) || !lanes)
        return;
    Few sectors;
    uint64_t asked = 0;
    for (Lanes left = lanes; left; left &= left - 1) {
        const uint64_t at = address[__builtin_ctz(left)];
        sectors.add(at / SECTOR); /* one is enough: accesses are aligned, and no larger than 16 bytes */
        asked += bytes;
    }
    sectors.make_distinct();
    const uint64_t ideal = (distinct_bytes(address, lanes, bytes) + SECTOR - 1) / SECTOR;
    Counters &c = w.block->counters;
    (store ? c.global_store_bytes : c.global_load_bytes) += asked;
    (store ? c.global_store_sectors : c.global_load_sectors) += sectors.n;
    (store ? c.global_store_ideal : c.global_load_ideal) += ideal;
    c.sectors.insert(sectors.v, sectors.v + sectors.n);
    if (LineCounters *line = line_of(w)) {
        line->global_requests++;
        line->global_sectors += sectors.n;
        line->global_ideal_sectors += ideal;
    }
}

void count_tensor(Warp &w, uint64_t ops)
{
    if (profiling(w))
        w.block->counters.tensor_ops += ops;
}

void LineCounters::add(const LineCounters &o)
{
    for (uint64_t LineCounters::*sum :
         {&LineCounters::global_requests, &LineCounters::global_sectors, &LineCounters::global_ideal_sectors,
          &LineCounters::shared_requests, &LineCounters::shared_wavefronts, &LineCounters::shared_ideal_wavefronts,
          &LineCounters::instructions})
        this->*sum += o.*sum;
}

void Counters::add(const Counters &o)
{
    for (size_t k = 0; k < size_t(Class::count); k++) {
        warp_instructions[k] += o.warp_instructions[k];
        thread_instructions[k] += o.thread_instructions[k];
    }
    for (uint64_t Counters::*sum :
         {&Counters::branches, &Counters::divergent_branches, &Counters::global_load_bytes,
          &Counters::global_store_bytes, &Counters::global_load_sectors, &Counters::global_store_sectors,
          &Counters::global_load_ideal, &Counters::global_store_ideal, &Counters::shared_wavefronts,
          &Counters::shared_ideal, &Counters::tensor_ops, &Counters::barriers, &Counters::async_bytes})
        this->*sum += o.*sum;
    max_bytes_in_flight = std::max(max_bytes_in_flight, o.max_bytes_in_flight);
    sectors.insert(o.sectors.begin(), o.sectors.end());
    for (auto &l : o.lines)
        lines[l.first].add(l.second);
}

} // namespace ptxemu

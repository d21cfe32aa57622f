/* The profile file.  Launches of one kernel with one shape are one entry with sums, so that a program that launches all day
 * leaves a file that people can read. */
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <tuple>
#include <unistd.h>
#include <vector>

#include "profile/counters.h"

namespace ptxemu
{
namespace
{
using ull = unsigned long long;

constexpr size_t WORST_LINES = 100;

struct Line {
    std::string file;
    uint32_t line = 0;
    LineCounters c;
    uint64_t excess() const
    {
        return (c.global_sectors - std::min(c.global_sectors, c.global_ideal_sectors)) +
               (c.shared_wavefronts - std::min(c.shared_wavefronts, c.shared_ideal_wavefronts));
    }
};

struct Entry {
    std::string kernel;
    Dim3 grid, block;
    size_t shared = 0;
    uint64_t launches = 0;
    double seconds = 0;
    uint64_t distinct_sectors = 0; /* of each launch, added up */
    Counters sum;                  /* without sectors and lines */
    std::map<std::pair<std::string, uint32_t>, LineCounters> lines;
};

std::string quoted(const std::string &s)
{
    std::string out = "\"";
    for (char c : s) {
        if (c == '"' || c == '\\')
            out += std::string("\\") + c;
        else if (uint8_t(c) < 0x20)
            out += format("\\u%04x", c);
        else
            out += c;
    }
    return out + "\"";
}

/* One JSON object, written member by member. */
class Object
{
  public:
    Object &add(const char *name, const std::string &json)
    {
        text_ += (text_.empty() ? "" : ", ") + quoted(name) + ": " + json;
        return *this;
    }
    Object &add(const char *name, uint64_t v) { return add(name, format("%llu", ull(v))); }
    Object &number(const char *name, double v) { return add(name, format("%.6g", std::isfinite(v) ? v : 0.0)); }
    std::string text() const { return "{" + text_ + "}"; }

  private:
    std::string text_;
};

std::string json(Dim3 d)
{
    return format("[%u, %u, %u]", d.x, d.y, d.z);
}

double ratio(uint64_t a, uint64_t b)
{
    return b ? double(a) / double(b) : 1.0;
}

std::string json(const Line &l)
{
    return Object()
        .add("file", quoted(l.file))
        .add("line", l.line)
        .add("instructions", l.c.instructions)
        .add("global_requests", l.c.global_requests)
        .add("global_sectors", l.c.global_sectors)
        .add("global_ideal_sectors", l.c.global_ideal_sectors)
        .add("shared_requests", l.c.shared_requests)
        .add("shared_wavefronts", l.c.shared_wavefronts)
        .add("shared_ideal_wavefronts", l.c.shared_ideal_wavefronts)
        .text();
}

std::string json_instructions(const Counters &c, uint64_t *warp, uint64_t *thread)
{
    Object all;
    *warp = *thread = 0;
    for (size_t k = 0; k < size_t(Class::count); k++) {
        *warp += c.warp_instructions[k];
        *thread += c.thread_instructions[k];
        if (c.warp_instructions[k])
            all.add(class_text(Class(k)),
                    Object().add("warp", c.warp_instructions[k]).add("thread", c.thread_instructions[k]).text());
    }
    return all.text();
}

std::string json_global(const Entry &e)
{
    const Counters &c = e.sum;
    return Object()
        .add("load_bytes", c.global_load_bytes)
        .add("load_sectors", c.global_load_sectors)
        .add("load_ideal_sectors", c.global_load_ideal)
        .number("load_efficiency", ratio(c.global_load_ideal, c.global_load_sectors))
        .add("store_bytes", c.global_store_bytes)
        .add("store_sectors", c.global_store_sectors)
        .add("store_ideal_sectors", c.global_store_ideal)
        .number("store_efficiency", ratio(c.global_store_ideal, c.global_store_sectors))
        .add("l2_distinct_bytes", e.distinct_sectors * 32)
        .text();
}

/* The lines with the most sectors and wavefronts beyond the ideal come first, then those with the most instructions. */
std::string json_lines(const Entry &e)
{
    std::vector<Line> lines;
    for (auto &l : e.lines)
        lines.push_back({l.first.first, l.first.second, l.second});
    std::stable_sort(lines.begin(), lines.end(), [](const Line &a, const Line &b) {
        return std::make_tuple(a.excess(), a.c.instructions) > std::make_tuple(b.excess(), b.c.instructions);
    });
    if (lines.size() > WORST_LINES)
        lines.resize(WORST_LINES);
    std::string out;
    for (const Line &l : lines)
        out += (out.empty() ? "\n      " : ",\n      ") + json(l);
    return "[" + out + "]";
}

std::string json(const Entry &e)
{
    const Counters &c = e.sum;
    uint64_t warp, thread;
    const std::string instructions = json_instructions(c, &warp, &thread);
    return Object()
        .add("kernel", quoted(e.kernel))
        .add("grid", json(e.grid))
        .add("block", json(e.block))
        .add("shared_bytes", e.shared)
        .add("launches", e.launches)
        .number("seconds", e.seconds)
        .add("warp_instructions", warp)
        .add("thread_instructions", thread)
        .number("lanes_per_instruction", warp ? ratio(thread, warp) : 0)
        .add("branches", c.branches)
        .add("divergent_branches", c.divergent_branches)
        .add("instructions", instructions)
        .add("global", json_global(e))
        .add("shared", Object()
                           .add("wavefronts", c.shared_wavefronts)
                           .add("ideal_wavefronts", c.shared_ideal)
                           .add("conflicts", c.shared_wavefronts - std::min(c.shared_wavefronts, c.shared_ideal))
                           .text())
        .add("tensor_ops", c.tensor_ops)
        .add("barriers", c.barriers)
        .add("async", Object().add("bytes", c.async_bytes).add("max_bytes_in_flight", c.max_bytes_in_flight).text())
        .add("lines", json_lines(e))
        .text();
}

using Key = std::tuple<std::string, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, size_t>;

void add_lines(Entry &e, const Module &m, const Counters &c)
{
    for (auto &l : c.lines) {
        const uint32_t line = uint32_t(l.first);
        auto file = m.files.find(uint32_t(l.first >> 32));
        const std::string name = line == 0 ? "?" : file == m.files.end() ? "?" : file->second;
        e.lines[{name, line}].add(l.second);
    }
}
} // namespace

struct Profile::Impl {
    mutable std::mutex mutex;
    std::map<Key, size_t> index;
    std::vector<Entry> entries; /* in the order of the first launches */
};

Profile::Profile() : impl_(new Impl) {}

/* Never destroyed: it is asked for at the very end of the process. */
Profile &Profile::get()
{
    static Profile *p = new Profile;
    return *p;
}

void Profile::add(const std::string &kernel, const Module &m, Dim3 grid, Dim3 block, size_t shared, double seconds,
                  const Counters &c)
{
    std::lock_guard<std::mutex> lock(impl_->mutex);
    auto found = impl_->index.emplace(Key(kernel, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared),
                                      impl_->entries.size());
    if (found.second) {
        impl_->entries.emplace_back();
        Entry &e = impl_->entries.back();
        e.kernel = kernel;
        e.grid = grid;
        e.block = block;
        e.shared = shared;
    }
    Entry &e = impl_->entries[found.first->second];
    e.launches++;
    e.seconds += seconds;
    e.distinct_sectors += c.sectors.size();
    add_lines(e, m, c);
    e.sum.add(c);
    e.sum.sectors.clear();
    e.sum.lines.clear();
}

bool Profile::write(const std::string &path) const
{
    std::lock_guard<std::mutex> lock(impl_->mutex);
    std::string text;
    for (const Entry &e : impl_->entries)
        text += (text.empty() ? "\n  " : ",\n  ") + json(e);
    text = "{\"kernels\": [" + text + "\n]}\n";
    const std::string aside = path + format(".%ld.tmp", long(getpid()));
    FILE *f = fopen(aside.c_str(), "w");
    if (!f)
        return false;
    const bool whole = fwrite(text.data(), 1, text.size(), f) == text.size();
    if (fclose(f) != 0 || !whole || rename(aside.c_str(), path.c_str()) != 0) {
        const int why = errno;
        remove(aside.c_str());
        errno = why;
        return false;
    }
    return true;
}

void Profile::clear()
{
    std::lock_guard<std::mutex> lock(impl_->mutex);
    impl_->index.clear();
    impl_->entries.clear();
}

} // namespace ptxemu

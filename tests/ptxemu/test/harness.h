/* For tests of the machine's inside (*_unit_test): a module from PTX text, a device of its own, and launches without a driver. */
#ifndef PTXEMU_TEST_HARNESS_H
#define PTXEMU_TEST_HARNESS_H

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "isa/decode.h"
#include "machine/block.h"
#include "memory/heap.h"

namespace inside
{
using namespace ptxemu;

struct Device : GlobalAllocator {
    Heap heap;
    Limits limits;
    Options options;

    explicit Device(unsigned sm = 80, char suffix = 0)
    {
        heap.set_limit(0, size_t(1) << 30);
        limits.sm = sm;
        limits.sm_suffix = suffix;
        limits.sm_count = 4;
        limits.max_shared_per_block = 48 << 10;
        limits.max_shared_optin = sm >= 90 ? 227 << 10 : 163 << 10;
        limits.shared_per_sm = sm >= 90 ? 228 << 10 : 164 << 10;
        limits.max_threads_per_sm = 2048;
        limits.max_blocks_per_sm = 32;
        options.threads = 1;
        options.patience = 2000000;
    }
    uint64_t allocate(const std::string &name, Space space, size_t bytes, size_t align) override
    {
        const AllocKind kind = space == Space::constant ? AllocKind::module_const : AllocKind::module_global;
        return heap.allocate(0, bytes, align, kind, name, true);
    }
};

template <class T>
struct Buffer {
    Device &d;
    uint64_t p;
    size_t n;
    Buffer(Device &device, size_t count, bool zero = true)
        : d(device), p(d.heap.allocate(0, count * sizeof(T), 256, AllocKind::device, "test", zero)), n(count)
    {
        if (zero)
            d.heap.mark_written(p, n * sizeof(T));
    }
    Buffer(Device &device, const std::vector<T> &v) : Buffer(device, v.size())
    {
        memcpy(data(), v.data(), n * sizeof(T));
    }
    ~Buffer() { d.heap.release(p); }
    Buffer(const Buffer &) = delete;
    T *data() { return reinterpret_cast<T *>(p); }
    std::vector<T> get() { return std::vector<T>(data(), data() + n); }
};

struct Result {
    std::optional<Fault> fault;
    Counters counters;
    std::string report() const { return fault ? report_text(*fault) : ""; }
};

/* .version and .target stand before the text, so that tests show what they are about. */
class Program
{
  public:
    Program(Device &d, const std::string &body) : d_(d)
    {
        const std::string text = ".version 8.0\n.target sm_" + std::to_string(d.limits.sm) +
                                 (d.limits.sm_suffix ? std::string(1, d.limits.sm_suffix) : "") +
                                 "\n.address_size 64\n" + body;
        m_ = decode(ptx::parse(text.data(), text.size()), d.limits.sm, d);
    }
    const Function *function(const std::string &name) const { return m_->by_name.at(name); }

    template <class... Args>
    Result launch(Dim3 grid, Dim3 block, Args... args)
    {
        Launch l = prepare(grid, block);
        size_t k = 0;
        (void)std::initializer_list<int>{(put(l, k++, &args, sizeof args), 0)...};
        return run(l);
    }
    Launch prepare(Dim3 grid, Dim3 block)
    {
        Launch l;
        l.module = m_.get();
        for (auto &f : m_->functions)
            if (f->is_entry)
                l.fn = f.get();
        l.grid = grid;
        l.block = block;
        l.params.resize(l.fn->param_bytes);
        l.limits = &d_.limits;
        l.options = d_.options;
        l.heap = &d_.heap;
        return l;
    }
    static void put(Launch &l, size_t k, const void *value, size_t bytes)
    {
        ASSERT_LT(k, l.fn->params.size());
        ASSERT_EQ(l.fn->params[k].bytes, bytes);
        memcpy(l.params.data() + l.fn->params[k].offset, value, bytes);
    }
    Result run(const Launch &l)
    {
        Result r;
        try {
            run_grid(l, &r.counters);
        } catch (const Fault &f) {
            r.fault = f;
        }
        return r;
    }

  private:
    Device &d_;
    std::unique_ptr<Module> m_;
};

inline void expect_ok(const Result &r)
{
    EXPECT_FALSE(r.fault) << r.report();
}

inline void expect_fault(const Result &r, FaultKind kind, const std::string &text = "")
{
    ASSERT_TRUE(r.fault) << "no fault; expected: " << fault_title(kind);
    EXPECT_EQ(fault_title(kind), std::string(fault_title(r.fault->kind))) << r.report();
    EXPECT_NE(std::string::npos, r.report().find(text)) << "expected \"" << text << "\" in\n" << r.report();
}

} // namespace inside

#endif

/* What the tests of the CPU backend share: backends by instruction set, memory that faults, comparison of bits. */
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>

#include "testutil.h"
#include "values.h"

extern "C" {
#include "backend/backend.h"
#include "backend/cpu/cpu.h"
}

namespace
{

/* Memory whose last byte is followed by a page that cannot be touched. */
template <typename T>
class Guarded
{
  public:
    explicit Guarded(size_t n) : n_(n)
    {
        size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (n * sizeof(T) + page) / page * page;
        map_bytes_ = body + page;
        map_ = (char *)mmap(nullptr, map_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map_ == MAP_FAILED || mprotect(map_ + body, page, PROT_NONE) != 0)
            throw std::bad_alloc();
        memset(map_, 0x5a, body);
        data_ = (T *)(map_ + body) - n;
    }
    ~Guarded() { munmap(map_, map_bytes_); }
    Guarded(const Guarded &) = delete;
    Guarded &operator=(const Guarded &) = delete;
    T *data() { return data_; }
    T &operator[](size_t i) { return data_[i]; }
    std::vector<T> copy() const { return std::vector<T>(data_, data_ + n_); }
    bool front_intact() const
    {
        return std::all_of(map_, (char *)data_, [](char c) { return c == 0x5a; });
    }

  private:
    size_t n_, map_bytes_;
    char *map_;
    T *data_;
};

struct Backend {
    nbi_backend *be = nullptr;
    explicit Backend(const char *isa, int threads = 1)
    {
        setenv("NB_CPU_ISA", isa, 1);
        nbi_backend_create(&be, "cpu", threads);
        unsetenv("NB_CPU_ISA");
    }
    ~Backend()
    {
        if (be)
            be->ops->destroy(be);
    }
    Backend(const Backend &) = delete;
    Backend &operator=(const Backend &) = delete;
    const nbi_backend_ops *operator->() const { return be->ops; }
};

/* A step object for up to `rows` rows, and the batch it was begun with. */
struct Step {
    Backend &b;
    nbi_step *s = nullptr;
    nbi_batch batch = {};
    Step(Backend &backend, size_t rows, uint32_t head_dim = 2, const float *inv_freq = nullptr, size_t seqs = 8,
         size_t seq_pages = 64, uint32_t n_heads = 0, uint32_t n_kv_heads = 0)
        : b(backend)
    {
        std::vector<float> zero(head_dim / 2 + 1);
        nbi_step_limits limits = {rows,    seqs,      rows, seq_pages, head_dim, inv_freq ? inv_freq : zero.data(),
                                  n_heads, n_kv_heads};
        EXPECT_NB_OK(b->step_create(b.be, &s, &limits));
    }
    ~Step() { b->step_free(b.be, s); }
    Step(const Step &) = delete;
    nbi_step *begin(const nbi_batch &what)
    {
        batch = what;
        EXPECT_NB_OK(b->step_begin(b.be, s, &batch));
        return s;
    }
};

inline std::vector<std::string> isas()
{
    std::vector<std::string> have;
    for (size_t i = 0; nbi_cpu_isa(i); i++)
        if ((have.empty() || have.back() != nbi_cpu_isa(i)) && Backend(nbi_cpu_isa(i)).be)
            have.push_back(nbi_cpu_isa(i));
    std::reverse(have.begin(), have.end()); /* scalar, what others must equal, comes first */
    return have;
}

} // namespace

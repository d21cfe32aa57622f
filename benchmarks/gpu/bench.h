/* nibble_gpu_bench: how long each operation of the CUDA backend takes, on one device, against what the device can do.
 *
 * A figure is the median over replays of a recorded graph of launches, in which the weights (or the KV cache) rotate among
 * copies that together are larger than the second-level cache: a layer of a model never finds its own weights there.
 * Results are JSON lines on stdout; benchmarks/gpu/report.py makes tables of them. */
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

extern "C" {
#include "backend/cuda/create.h"
#include "backend/cuda/cuda.h"
}

struct Options {
    bool quick = false;         /* tiny shapes: a rehearsal */
    double seconds = 1e9;       /* no new measurement begins after this */
    std::set<std::string> only; /* sections; empty: all */
};

/* Ends the program with nb_last_error() unless st is NB_OK. */
void must(nb_status st, const char *what);

/* What the card can do: measured, and by its data. */
struct Limits {
    double copy_gbs; /* a copy on the device, bytes read and written */
    double dram_gbs; /* memory clock x bus width */
    double f16_tops; /* tensor cores: SMs x clock x the published rate, fp32 sums; 0: unknown */
    double int8_tops;
    size_t l2_bytes;
};

class Bench
{
  public:
    Bench(const Options &o, nbi_backend *be);
    const Options opt;
    nbi_backend *const be;
    nbi_cuda *const c;
    const nbi_backend_ops *const ops;
    Limits limits = {};

    bool wants(const char *section) const { return opt.only.empty() || opt.only.count(section); }
    bool out_of_time() const;
    /* Microseconds of one issue(i); i counts up, for buffers that rotate. */
    double time_us(const std::function<nb_status(size_t)> &issue);
    /* How many copies of `bytes` are needed so that none is found in the cache. */
    size_t copies(size_t bytes) const;
    void measure_limits();
    /* One line: section, fields as they stand ("\"rows\": 8, ..."), then us, gbs, copy_percent, tops, peak_percent. */
    void print(const char *section, const std::string &fields, double us, double bytes, double ops,
               double peak_tops) const;
    void note(const std::string &text) const;

  private:
    double started_;
    double replay_us(CUgraphExec graph);
};

/* Device memory for the life of the object. */
class Memory
{
  public:
    Memory(const Bench &b, size_t bytes) : be_(b.be)
    {
        must(be_->ops->alloc(be_, &p_, bytes, "a benchmark"), "memory");
    }
    ~Memory() { be_->ops->release(be_, p_); }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    template <typename T = void>
    T *ptr(size_t byte = 0) const
    {
        return (T *)((char *)p_ + byte);
    }

  private:
    nbi_backend *be_;
    void *p_ = nullptr;
};

std::string json(const char *key, const std::string &text);
std::string json(const char *key, double number);
float uniform(uint64_t seed, uint64_t i); /* -1 .. 1 */

/* The layers of Llama-3-8B, or of 70B, whose weights take longer to make than to measure. */
void bench_linear(Bench &b, bool large);
void bench_attention(Bench &b);
void bench_rows(Bench &b);

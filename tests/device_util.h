/* What the tests that run on every device share.
 *
 * NB_TEST_DEVICE names a device ("cuda:0"); without it the tests run on the CPU, with each instruction set.  ctest runs
 * device_*_test as it is and once for every emulated GPU (CMakeLists.txt).  A test asks a Device how it rounds, and
 * derives its bounds from that. */
#pragma once

#include "backend_util.h"

extern "C" {
#include "backend/kv.h"
}

namespace
{

/* A backend, and what its arithmetic is as far as a caller can see it. */
struct Device {
    nbi_backend *be = nullptr;
    nbi_dtype act = NBI_F32; /* the type of activations */
    std::string name;

    explicit Device(const std::string &device, const char *isa = nullptr, const char *act_dtype = nullptr)
    {
        nbi_backend_options o = {};
        o.device = device.c_str();
        o.threads = 1;
        o.act_dtype = act_dtype;
        if (isa)
            setenv("NB_CPU_ISA", isa, 1);
        nb_status st = nbi_backend_open(&be, &o);
        unsetenv("NB_CPU_ISA");
        if (st != NB_OK)
            return;
        act = find_act();
        name = be->description + std::string(" ") + nbi_dtype_name(act);
    }
    ~Device()
    {
        if (be)
            be->ops->destroy(be);
    }
    Device(const Device &) = delete;
    Device &operator=(const Device &) = delete;
    const nbi_backend_ops *operator->() const { return be->ops; }

    bool cpu() const { return strcmp(be->name, "cpu") == 0; }
    /* A number as an activation. */
    float round(float x) const
    {
        uint32_t t = 0;
        nbi_from_f32(&t, act, &x, 1);
        nbi_to_f32(&x, &t, act, 1);
        return x;
    }
    std::vector<float> round(std::vector<float> x) const
    {
        for (float &f : x)
            f = round(f);
        return x;
    }
    /* The most that rounding x to an activation moves it. */
    double rounding(double x) const
    {
        const double unit = act == NBI_F32 ? U : act == NBI_F16 ? 0x1p-11 : 0x1p-8;
        return std::max(std::fabs(x) * unit, act == NBI_F16 ? 0x1p-25 : 0x1p-134);
    }
    /* The relative error of a dot product of activations, against the sum of its absolute terms, as docs/numerics.md
     * orders it.  `len`: of a group, in `groups` groups.  The CPU rounds once for each element of a chunk.  A tensor
     * core adds 16 products to a sum; hardware may cut off each of the 17 addends at the last bit of the largest, an
     * ulp.  Then one rounding for each segment, and three for the epilogue and the second order. */
    double dot_error(size_t len, size_t groups) const
    {
        const size_t chunk = std::min<size_t>(len, NBI_K_CHUNK), segments = groups * ((len + 511) / 512);
        return ((double)(cpu() ? chunk : (chunk + 15) / 16 * 17 * 2) + (double)segments + 3) * U;
    }

  private:
    /* 1 + 2^-20 survives in F32 alone, 1 + 2^-9 in F16, too. */
    nbi_dtype find_act() const
    {
        const float in[2] = {1 + 0x1p-20f, 1 + 0x1p-9f};
        float out[2] = {0, 0};
        void *p = nullptr;
        EXPECT_NB_OK(be->ops->alloc(be, &p, be->ops->act_bytes(be, 1, 16), "a test"));
        EXPECT_NB_OK(be->ops->upload_act(be, p, in, 2));
        EXPECT_NB_OK(be->ops->download_act(be, out, p, 2));
        be->ops->release(be, p);
        return out[0] != 1 ? NBI_F32 : out[1] != 1 ? NBI_F16 : NBI_BF16;
    }
};

/* The devices that this process tests; made once, as opening a GPU takes time.  A GPU is one for each type of
 * activations. */
inline const std::vector<Device *> &devices()
{
    static std::vector<std::unique_ptr<Device>> owned;
    static std::vector<Device *> all;
    if (owned.empty()) {
        const char *name = getenv("NB_TEST_DEVICE");
        if (name)
            for (const char *act : {"f16", "bf16"})
                owned.push_back(std::make_unique<Device>(name, nullptr, act));
        else
            for (const std::string &isa : isas())
                owned.push_back(std::make_unique<Device>("cpu", isa.c_str()));
        for (auto &d : owned)
            if (d->be)
                all.push_back(d.get());
        EXPECT_FALSE(all.empty()) << nb_last_error();
    }
    return all;
}

/* Memory of a device. */
class Memory
{
  public:
    Memory(const Device &d, size_t bytes) : d_(d), bytes_(bytes) { EXPECT_NB_OK(d->alloc(d.be, &p_, bytes, "a test")); }
    ~Memory() { d_->release(d_.be, p_); }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    void *get() const { return p_; }
    float *f32() const { return (float *)p_; }
    size_t bytes() const { return bytes_; }
    template <typename T>
    void put(const std::vector<T> &v)
    {
        ASSERT_LE(v.size() * sizeof(T), bytes_);
        EXPECT_NB_OK(d_->upload(d_.be, p_, v.data(), v.size() * sizeof(T)));
    }
    template <typename T>
    std::vector<T> take(size_t n) const
    {
        std::vector<T> v(n);
        EXPECT_NB_OK(d_->download(d_.be, v.data(), p_, n * sizeof(T)));
        return v;
    }

  private:
    const Device &d_;
    void *p_ = nullptr;
    size_t bytes_;
};

/* fp32 rows: residual, logits, norm weights. */
struct Floats : Memory {
    Floats(const Device &d, const std::vector<float> &v) : Memory(d, std::max<size_t>(v.size(), 1) * 4) { put(v); }
};

/* Activations [rows][k], made of fp32 numbers. */
class Acts : public Memory
{
  public:
    Acts(const Device &d, size_t rows, size_t k) : Memory(d, d->act_bytes(d.be, rows, k)), dev_(d), n_(rows * k) {}
    Acts(const Device &d, size_t rows, size_t k, const float *x) : Acts(d, rows, k)
    {
        EXPECT_NB_OK(d->upload_act(d.be, get(), x, rows * k));
    }
    std::vector<float> take() const
    {
        std::vector<float> v(n_);
        EXPECT_NB_OK(dev_->download_act(dev_.be, v.data(), get(), n_));
        return v;
    }

  private:
    const Device &dev_;
    size_t n_;
};

/* Blocks of keys as kv.c writes them.  On the CPU units and tokens are transposed: [units][16]. */
inline std::vector<unsigned char> as_reference(const Device &d, const std::vector<unsigned char> &keys,
                                               nbi_kv_type type, uint32_t D)
{
    struct Part {
        size_t at, units, size;
    };
    const size_t scales = nbi_kv_scales_at(type, D), block = nbi_kv_block_bytes(type, D);
    const Part codes = {0, type == NBI_KV_INT4 ? D / 2 : D,
                        size_t(type == NBI_KV_F32   ? 4
                               : type == NBI_KV_F16 ? 2
                                                    : 1)};
    const Part behind = {scales, type == NBI_KV_INT8 ? 1 : 2 * (size_t)nbi_kv4_runs(D), type == NBI_KV_INT8 ? 4u : 2u};
    std::vector<unsigned char> out = keys;
    for (size_t b = 0; d.cpu() && b < keys.size(); b += block)
        for (const Part &p : {codes, behind})
            for (size_t u = 0; u < p.units && p.at < block; u++)
                for (size_t slot = 0; slot < 16; slot++)
                    std::copy_n(&keys[b + p.at + (u * 16 + slot) * p.size], p.size,
                                &out[b + p.at + (slot * p.units + u) * p.size]);
    return out;
}

/* A step object and the batch that it is set to. */
class DeviceStep
{
  public:
    DeviceStep(const Device &d, size_t rows, size_t seqs, size_t seq_pages, const std::vector<float> &inv_freq,
               uint32_t n_heads = 1, uint32_t n_kv_heads = 1)
        : d_(d)
    {
        const nbi_step_limits limits = {
            rows, seqs, rows, seq_pages, (uint32_t)inv_freq.size() * 2, inv_freq.data(), n_heads, n_kv_heads};
        EXPECT_NB_OK(d->step_create(d.be, &s_, &limits));
    }
    ~DeviceStep() { d_->step_free(d_.be, s_); }
    DeviceStep(const DeviceStep &) = delete;
    DeviceStep &operator=(const DeviceStep &) = delete;
    const nbi_step *get() const { return s_; }
    /* seqs cover the rows; what the batch points at stays here. */
    void begin(std::vector<nbi_seq> seqs, std::vector<int32_t> ids = {}, std::vector<uint32_t> logit_rows = {})
    {
        seqs_ = std::move(seqs);
        batch_ = {};
        for (const nbi_seq &s : seqs_)
            batch_.rows += s.n_rows;
        ids_ = std::move(ids);
        ids_.resize(batch_.rows);
        logit_rows_ = std::move(logit_rows);
        batch_.n_seqs = seqs_.size();
        batch_.n_logits = logit_rows_.size();
        batch_.ids = ids_.data();
        batch_.seqs = seqs_.data();
        batch_.logit_rows = logit_rows_.data();
        EXPECT_NB_OK(d_->step_begin(d_.be, s_, &batch_));
    }

  private:
    const Device &d_;
    nbi_step *s_ = nullptr;
    nbi_batch batch_ = {};
    std::vector<nbi_seq> seqs_;
    std::vector<int32_t> ids_;
    std::vector<uint32_t> logit_rows_;
};

} // namespace

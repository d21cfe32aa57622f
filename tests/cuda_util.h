/* What the tests of the CUDA backend share: a device, memory on it, launches.
 *
 * A program has one device, that of NB_CUDA_DRIVER: the stand-in driver (ctest runs each program for sm_75 and for sm_80) or a
 * real GPU.  Cases that need bfloat16 are made with types(): where the device has none, they do not exist.
 *
 *     Buffer<float> x(host_vector), y(n);                      // y is not initialised: the emulator reports whoever reads it
 *     ASSERT_TRUE(launch(NB_K_nb_gather_rows, {n, 1, 1}, 0, nb_gather_rows_args{x.ptr(), y.ptr(), ...}));
 *     std::vector<float> got = y.get();                        // also looks whether the guards around y are as they were
 */
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <stdexcept>

#include "testutil.h"
#include "values.h"

extern "C" {
#include "backend/cuda/cuda.h"
}

namespace
{

/* ---- the device ---- */

/* The device with activations of type T, opened once; the program ends where there is none. */
inline nbi_cuda *device(nbi_dtype act = NBI_F16)
{
    struct Open {
        nbi_cuda c = {};
        explicit Open(nbi_dtype t)
        {
            if (nbi_cuda_open(&c, 0, t) == NB_OK)
                return;
            fprintf(stderr, "no device to test on: %s\n", nb_last_error());
            exit(1);
        }
        ~Open() { nbi_cuda_close(&c); }
    };
    if (act == NBI_BF16) {
        static Open bf16(NBI_BF16);
        return &bf16.c;
    }
    static Open f16(NBI_F16);
    return &f16.c;
}

inline int sm()
{
    return device()->sm;
}

/* What the types of activations are here: for ::testing::ValuesIn. */
inline std::vector<nbi_dtype> types()
{
    return sm() >= 80 ? std::vector<nbi_dtype>{NBI_F16, NBI_BF16} : std::vector<nbi_dtype>{NBI_F16};
}

/* A function of the stand-in driver (ptxemu.h); NULL on a real one. */
inline void *emulator(const char *name)
{
    return dlsym(device()->cu.so, name);
}

inline bool emulated()
{
    return emulator("ptxemu_last_report") != nullptr;
}

/* Why the last call failed: the sentence, and what the emulator has to say. */
inline std::string trouble()
{
    std::string s = nb_last_error();
    if (auto report = (const char *(*)())emulator("ptxemu_last_report"))
        s += std::string("\n") + report();
    return s;
}

/* ---- memory ---- */

/* n elements on the device, not initialised.  The emulator watches their bounds; on a GPU guard bytes lie around them. */
template <typename T>
class Buffer
{
  public:
    explicit Buffer(size_t n, bool guarded = !emulated()) : n_(n), guard_(guarded ? 256 : 0)
    {
        const size_t bytes = n * sizeof(T) + 2 * guard_;
        CUdeviceptr p = 0;
        if (NBI_CU(device(), cuMemAlloc_v2(&p, bytes ? bytes : 1), "allocating a test's memory") != NB_OK)
            throw std::runtime_error(trouble());
        base_ = (char *)(uintptr_t)p;
        if (guard_)
            copy_in(base_, std::vector<unsigned char>(bytes, 0xa5));
    }
    explicit Buffer(const std::vector<T> &v) : Buffer(v.size()) { set(v); }
    ~Buffer()
    {
        EXPECT_TRUE(intact());
        nbi_cuda_release(&device()->base, base_);
    }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    T *ptr() const { return (T *)(base_ + guard_); }
    size_t size() const { return n_; }
    void set(const std::vector<T> &v)
    {
        if (v.size() != n_)
            throw std::runtime_error("a test fills a buffer with another number of elements");
        copy_in(base_ + guard_, v);
    }
    void fill(unsigned char byte) { copy_in(base_ + guard_, std::vector<unsigned char>(n_ * sizeof(T), byte)); }
    /* Waits for the device. */
    std::vector<T> get() const
    {
        std::vector<T> v(n_);
        EXPECT_EQ(NB_OK, nbi_cuda_download(&device()->base, v.data(), ptr(), n_ * sizeof(T))) << trouble();
        EXPECT_TRUE(intact());
        return v;
    }
    ::testing::AssertionResult intact() const
    {
        std::vector<unsigned char> a(guard_), b(guard_);
        if (!guard_)
            return ::testing::AssertionSuccess();
        if (nbi_cuda_download(&device()->base, a.data(), base_, guard_) != NB_OK ||
            nbi_cuda_download(&device()->base, b.data(), (char *)(ptr() + n_), guard_) != NB_OK)
            return ::testing::AssertionFailure() << trouble();
        auto is_guard = [](unsigned char c) { return c == 0xa5; };
        if (!std::all_of(a.begin(), a.end(), is_guard))
            return ::testing::AssertionFailure() << "something was written before the buffer of " << n_ << " elements";
        if (!std::all_of(b.begin(), b.end(), is_guard))
            return ::testing::AssertionFailure() << "something was written behind the buffer of " << n_ << " elements";
        return ::testing::AssertionSuccess();
    }

  private:
    template <typename V>
    static void copy_in(char *to, const std::vector<V> &v)
    {
        EXPECT_EQ(NB_OK, nbi_cuda_upload(&device()->base, to, v.data(), v.size() * sizeof(V))) << trouble();
    }
    size_t n_, guard_;
    char *base_;
};

/* ---- half and bfloat16 ---- */

inline std::vector<uint16_t> to_t(const std::vector<float> &v, nbi_dtype t)
{
    std::vector<uint16_t> r(v.size());
    nbi_from_f32(r.data(), t, v.data(), v.size());
    return r;
}

inline std::vector<float> from_t(const std::vector<uint16_t> &v, nbi_dtype t)
{
    std::vector<float> r(v.size());
    nbi_to_f32(r.data(), v.data(), t, v.size());
    return r;
}

/* What T makes of the numbers. */
inline std::vector<float> rounded(const std::vector<float> &v, nbi_dtype t)
{
    return from_t(to_t(v, t), t);
}

/* NB_K_name_f16 or NB_K_name_bf16: they stand beside each other in kernels.h. */
inline nb_kernel of_type(nb_kernel f16, nbi_dtype t)
{
    return t == NBI_F16 ? f16 : (nb_kernel)(f16 + 1);
}

/* ---- launches ---- */

/* Launches kernel k and waits for it. */
template <typename Args>
::testing::AssertionResult launch(nb_kernel k, nbi_grid3 grid, size_t shared, const Args &args)
{
    nbi_cuda *c = device();
    if (nbi_cuda_launch(c, k, grid, shared, &args, sizeof args) != NB_OK || nbi_cuda_sync(c) != NB_OK)
        return ::testing::AssertionFailure() << trouble();
    return ::testing::AssertionSuccess();
}

} // namespace

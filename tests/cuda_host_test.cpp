/* The host side of the CUDA backend: the driver, memory, launches, and the sentences of what goes wrong. */
#include "cuda_util.h"

namespace
{

std::vector<unsigned char> bytes(size_t n)
{
    std::vector<unsigned char> v(n);
    for (size_t i = 0; i < n; i++)
        v[i] = (unsigned char)(nbi_rng(7, i / 8) >> (8 * (i % 8)));
    return v;
}

/* ---- memory ---- */

TEST(CudaMemory, bytes_come_back_whatever_their_number)
{
    for (size_t n : {(size_t)0, (size_t)1, (size_t)3, (size_t)4097, NBI_STAGE_BYTES - 1, NBI_STAGE_BYTES,
                     NBI_STAGE_BYTES + 1, 2 * NBI_STAGE_BYTES + 12345}) {
        std::vector<unsigned char> v = bytes(n);
        Buffer<unsigned char> b(v);
        EXPECT_TRUE(b.get() == v) << n << " bytes";
    }
}

TEST(CudaMemory, the_source_of_an_upload_may_be_reused_at_once)
{
    std::vector<unsigned char> v = bytes(100), want = v;
    Buffer<unsigned char> b(100);
    b.set(v);
    v.assign(100, 0);
    EXPECT_EQ(want, b.get());
}

TEST(CudaMemory, allocations_are_zeroed_and_aligned)
{
    nbi_cuda *c = device();
    for (size_t n : {(size_t)1, (size_t)255, (size_t)100000}) {
        void *p;
        ASSERT_NB_OK(nbi_cuda_alloc(&c->base, &p, n, "a test"));
        EXPECT_EQ(0u, (uintptr_t)p % 256);
        std::vector<unsigned char> got(n, 1);
        EXPECT_NB_OK(nbi_cuda_download(&c->base, got.data(), p, n));
        EXPECT_EQ(std::vector<unsigned char>(n, 0), got);
        nbi_cuda_release(&c->base, p);
    }
    nbi_cuda_release(&c->base, nullptr);
}

TEST(CudaMemory, more_than_there_is_is_a_sentence_with_numbers)
{
    void *p;
    EXPECT_FAILS(NB_ENOMEM, "out of memory for a huge thing: 1073741824.0 MiB wanted",
                 nbi_cuda_alloc(&device()->base, &p, (size_t)1 << 50, "a huge thing"));
    EXPECT_EQ(nullptr, p);
    EXPECT_GT(nbi_cuda_free_bytes(&device()->base), (size_t)1 << 20); /* and the device goes on */
}

TEST(CudaMemory, weights_share_one_allocation)
{
    nbi_cuda *c = device();
    void *a, *b, *over;
    ASSERT_NB_OK(nbi_cuda_weights_reserve(c, 1024));
    ASSERT_NB_OK(nbi_cuda_weights_alloc(c, &a, 300)); /* takes 512 */
    ASSERT_NB_OK(nbi_cuda_weights_alloc(c, &b, 512));
    EXPECT_EQ((char *)a + 512, (char *)b);
    ASSERT_NB_OK(nbi_cuda_weights_alloc(c, &over, 1)); /* the arena is full */
    EXPECT_TRUE((char *)over < (char *)a || (char *)over >= (char *)a + 1024);
    EXPECT_FAILS(NB_EINTERNAL, "cannot be reserved again", nbi_cuda_weights_reserve(c, 2048));
    nbi_cuda_weights_free(c, over);
    nbi_cuda_weights_free(c, a);
    nbi_cuda_weights_free(c, b);
    nbi_cuda_weights_free(c, nullptr);
    ASSERT_NB_OK(nbi_cuda_weights_alloc(c, &b, 1024)); /* empty again */
    EXPECT_EQ(a, b);
    nbi_cuda_weights_free(c, b);
    ASSERT_NB_OK(nbi_cuda_weights_reserve(c, 0));
}

TEST(CudaMemory, guards_see_what_is_written_beside_a_buffer)
{
    nbi_cuda *c = device();
    Buffer<int> b(16, true);
    const unsigned char x = 1, guard = 0xa5;
    for (char *p : {(char *)b.ptr() - 1, (char *)(b.ptr() + 16)}) {
        EXPECT_TRUE(b.intact());
        ASSERT_NB_OK(nbi_cuda_upload(&c->base, p, &x, 1));
        EXPECT_FALSE(b.intact());
        ASSERT_NB_OK(nbi_cuda_upload(&c->base, p, &guard, 1));
    }
}

/* ---- launches that are refused ---- */

TEST(CudaLaunch, a_launch_beside_its_contract_is_refused)
{
    nbi_cuda *c = device();
    nb_gather_rows_args a = {};
    EXPECT_FAILS(NB_EINTERNAL, "kernel nb_gather_rows: a grid of 0 x 1 x 1 blocks is empty",
                 nbi_cuda_launch(c, NB_K_nb_gather_rows, {0, 1, 1}, 0, &a, sizeof a));
    EXPECT_FAILS(NB_EUNSUPPORTED, "a grid of 1 x 65536 x 1 blocks",
                 nbi_cuda_launch(c, NB_K_nb_gather_rows, {1, 65536, 1}, 0, &a, sizeof a));
    EXPECT_FAILS(NB_EINTERNAL, "dynamic shared memory is 1, expected 0",
                 nbi_cuda_launch(c, NB_K_nb_gather_rows, {1, 1, 1}, 1, &a, sizeof a));
    EXPECT_FAILS(NB_EINTERNAL, "the size of its arguments",
                 nbi_cuda_launch(c, NB_K_nb_gather_rows, {1, 1, 1}, 0, &a, sizeof a - 1));
    if (c->sm < 80)
        EXPECT_FAILS(NB_EUNSUPPORTED, "kernel nb_convert_bf16 needs compute capability 8.0",
                     nbi_cuda_prepare(c, NB_K_nb_convert_bf16));
}

/* ---- devices that are not there ---- */

/* Opens cuda:`index` with some variables of the environment set. */
nb_status open_with(std::vector<std::pair<const char *, const char *>> env, int index, nbi_dtype act)
{
    nbi_cuda c = {};
    std::vector<std::pair<const char *, std::string>> old;
    for (auto &[name, value] : env) {
        const char *now = getenv(name);
        old.push_back({name, now ? now : ""});
        setenv(name, value, 1);
    }
    nb_status st = nbi_cuda_open(&c, index, act);
    nbi_cuda_close(&c);
    for (auto &[name, value] : old)
        value.empty() ? unsetenv(name) : setenv(name, value.c_str(), 1);
    return st;
}

TEST(CudaDevice, no_driver_and_a_library_that_is_none)
{
    EXPECT_FAILS(NB_ENODEVICE, "there is no CUDA driver on this machine: ",
                 open_with({{"NB_CUDA_DRIVER", "libno-such-driver.so"}}, 0, NBI_F16));
    EXPECT_FAILS(NB_ENODEVICE, "libm.so.6 has no cuInit: the driver is too old",
                 open_with({{"NB_CUDA_DRIVER", "libm.so.6"}}, 0, NBI_F16));
}

TEST(CudaDevice, an_index_that_does_not_exist)
{
    EXPECT_FAILS(NB_ENODEVICE, "device cuda:77 does not exist", open_with({}, 77, NBI_F16));
    EXPECT_FAILS(NB_ENODEVICE, "device cuda:-1 does not exist", open_with({}, -1, NBI_F16));
}

TEST(CudaDevice, bfloat16_where_it_is_missing)
{
    if (sm() < 80)
        EXPECT_FAILS(NB_EUNSUPPORTED, "activations in bf16 need compute capability 8.0", open_with({}, 0, NBI_BF16));
    else
        EXPECT_NB_OK(open_with({}, 0, NBI_BF16));
}

TEST(CudaDevice, says_what_it_is)
{
    nbi_cuda *c = device();
    EXPECT_EQ(std::string("cuda:0 ") + c->name + " (sm_" + std::to_string(c->sm) + "), " + std::to_string(c->n_sm) +
                  " SMs",
              c->base.description);
    EXPECT_GE(c->max_shared, 64 * 1024);
}

/* The context is current during our calls only. */
TEST(CudaDevice, leaves_the_threads_context_alone)
{
    auto current = (CUresult(*)(CUcontext *))dlsym(device()->cu.so, "cuCtxGetCurrent");
    CUcontext now = (CUcontext)1;
    Buffer<int> b(std::vector<int>{1, 2, 3});
    b.get();
    ASSERT_EQ(CUDA_SUCCESS, current(&now));
    EXPECT_EQ(nullptr, now);
}

} // namespace

/* Bulk and tensor copies and clusters, through the driver: kernels/bulk.cu. */
#include "emu.h"

#include <numeric>

namespace
{

const std::string &ptx()
{
    static const std::string text = emu::kernel_ptx("bulk", "90a");
    return text;
}

template <class T>
std::vector<T> numbers(size_t n, uint64_t seed = 1)
{
    std::vector<T> v(n);
    for (T &x : v)
        x = T((seed = seed * 6364136223846793005ull + 1442695040888963407ull) >> 37);
    return v;
}

bool is_hopper(const emu::Device &d)
{
    return d.sm == 90;
}

#define NEEDS_HOPPER                                                                                                   \
    if (!is_hopper(device))                                                                                            \
    GTEST_SKIP() << "the device is no sm_90"

void expect_report(std::initializer_list<const char *> words)
{
    for (const char *w : words)
        EXPECT_NE(std::string::npos, emu::report().find(w)) << "\"" << w << "\" is not in\n" << emu::report();
}

struct Bulk : testing::Test {
    emu::Device device{"9.0"};
    emu::Module module{ptx()};

    std::vector<int> result(const char *name, const std::vector<int> &in, unsigned blocks, unsigned threads)
    {
        emu::Buffer<int> from(in), to(128);
        to.zero();
        EXPECT_CU(emu::launch(module.get(name), blocks, threads, 0, from.p, to.p));
        return to.get();
    }
    void twins(const std::string &name, std::initializer_list<const char *> words)
    {
        std::vector<int> in = numbers<int>(128);
        EXPECT_EQ(in, result((name + "_right").c_str(), in, 1, 128)) << name;
        if (!emu::Driver::get().emulated())
            return;
        emu::Buffer<int> from(in), to(128);
        EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED,
                  emu::launch(module.get((name + "_wrong").c_str()), 1, 128, 0, from.p, to.p));
        expect_report(words);
    }
    template <class T, class F>
    void reduces(const char *name, F f, uint64_t mask = ~0ull)
    {
        std::vector<T> in = numbers<T>(64, 3), out = numbers<T>(64, 9), expected(64);
        for (size_t k = 0; k < 64; k++) {
            in[k] = T(uint64_t(in[k]) & mask);
            out[k] = T(uint64_t(out[k]) & mask);
            expected[k] = f(out[k], in[k]);
        }
        emu::Buffer<T> from(in), to(out);
        EXPECT_CU(emu::launch(module.get(name), 1, 64, 0, from.p, to.p));
        EXPECT_EQ(expected, to.get()) << name;
    }
};

TEST_F(Bulk, ARangeGoesToSharedMemoryAndBack)
{
    NEEDS_HOPPER;
    std::vector<int> in = numbers<int>(128), expected(in);
    for (int &x : expected)
        x++;
    EXPECT_EQ(expected, result("bulk_there_and_back", in, 1, 128));
}

TEST_F(Bulk, TheDestinationIsNotReadBeforeTheMbarrierWasWaitedFor)
{
    NEEDS_HOPPER;
    twins("bulk_read_early",
          {"before its wait", "reads 4 bytes", "the bulk copy that warp 0 issued at bulk.cu:", "mbarrier"});
}
TEST_F(Bulk, TheMbarrierOfAnotherCopySaysNothing)
{
    NEEDS_HOPPER;
    twins("bulk_other_barrier", {"before its wait", "the bulk copy that warp 0 issued at bulk.cu:"});
}
TEST_F(Bulk, TheSourceIsNotReusedBeforeTheGroupWasWaitedFor)
{
    NEEDS_HOPPER;
    twins("bulk_source_reused", {"shared-memory race", "writes 4 bytes", "may still read", "bulk group"});
}

TEST_F(Bulk, StoresBeforeABulkStoreNeedAFenceOfProxies)
{
    NEEDS_HOPPER;
    twins("bulk_store_unfenced",
          {"shared-memory race", "issues a bulk copy that reads 512 bytes", "no fence.proxy.async between"});
}

TEST_F(Bulk, ReductionsDoWhatRedDoes)
{
    NEEDS_HOPPER;
    reduces<uint32_t>("reduce_add_u32", [](uint32_t a, uint32_t b) { return a + b; });
    reduces<uint64_t>("reduce_add_u64", [](uint64_t a, uint64_t b) { return a + b; });
    reduces<float>("reduce_add_f32", [](float a, float b) { return a + b; });
    reduces<int32_t>("reduce_min_s32", [](int32_t a, int32_t b) { return a < b ? a : b; });
    reduces<uint32_t>("reduce_max_u32", [](uint32_t a, uint32_t b) { return a > b ? a : b; });
    reduces<int64_t>("reduce_max_s64", [](int64_t a, int64_t b) { return a > b ? a : b; });
    reduces<uint32_t>(
        "reduce_inc_u32", [](uint32_t a, uint32_t b) { return a >= b ? 0 : a + 1; }, 7);
    reduces<uint32_t>(
        "reduce_dec_u32", [](uint32_t a, uint32_t b) { return a == 0 || a > b ? b : a - 1; }, 7);
    reduces<uint32_t>("reduce_and_b32", [](uint32_t a, uint32_t b) { return a & b; });
    reduces<uint64_t>("reduce_or_b64", [](uint64_t a, uint64_t b) { return a | b; });
    reduces<uint32_t>("reduce_xor_b32", [](uint32_t a, uint32_t b) { return a ^ b; });
}

/* ---------------------------------------------------------------- tensors */

struct Place {
    int c[5];
};

/* A CUtensorMap is aligned to more than an argument of a function can be. */
struct Map {
    uint64_t words[16];
};

struct Tensor {
    std::vector<cuuint64_t> size, stride; /* elements; bytes of dimensions 1 and up */
    std::vector<cuuint32_t> box, step;
    CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
    size_t element = 1;
    CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_NONE;
    CUtensorMapFloatOOBfill fill = CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
    CUtensorMapInterleave interleave = CU_TENSOR_MAP_INTERLEAVE_NONE;
    CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_NONE;

    CUresult encode_at(void *map, CUdeviceptr address) const
    {
        auto f = emu::Driver::get().find<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
        if (!f)
            return CUDA_ERROR_NOT_FOUND;
        return f(static_cast<CUtensorMap *>(map), type, cuuint32_t(size.size()), reinterpret_cast<void *>(address),
                 size.data(), stride.data(), box.data(), step.data(), interleave, swizzle, promotion, fill);
    }
    CUresult encode(Map *map, CUdeviceptr address) const
    {
        alignas(128) char room[128];
        CUresult r = encode_at(room, address);
        memcpy(map, room, sizeof *map);
        return r;
    }
    size_t bytes() const
    {
        size_t n = size[0] * element;
        for (size_t d = 1; d < size.size(); d++)
            n += (size[d] - 1) * stride[d - 1];
        return n;
    }
    std::vector<uint32_t> tile() const /* elements that arrive, a dimension each */
    {
        std::vector<uint32_t> n;
        for (size_t d = 0; d < box.size(); d++)
            n.push_back(d ? (box[d] + step[d] - 1) / step[d] : box[d]);
        return n;
    }
    /* Calls f(offset in the tensor or -1, offset in the tile) for every element of the box. */
    template <class F>
    void each(const Place &p, F f) const
    {
        std::vector<uint32_t> n = tile(), at(n.size(), 0);
        for (size_t linear = 0;; linear += element) {
            int64_t offset = 0;
            for (size_t d = 0; d < n.size(); d++) {
                int64_t x = p.c[d] + int64_t(at[d]) * (d ? step[d] : 1);
                if (x < 0 || x >= int64_t(size[d]))
                    offset = INT64_MIN / 2;
                offset += x * int64_t(d ? stride[d - 1] : element);
            }
            f(offset, swizzled(linear));
            size_t d = 0;
            while (d < n.size() && ++at[d] == n[d])
                at[d++] = 0;
            if (d == n.size())
                return;
        }
    }
    /* Piece c of line r of 128 bytes goes to piece c ^ (r % 8), or with fewer bits; as the CUDA programming guide draws it. */
    size_t swizzled(size_t linear) const
    {
        size_t r = linear / 128, c = linear / 16 % 8;
        if (swizzle == CU_TENSOR_MAP_SWIZZLE_128B)
            c ^= r % 8;
        if (swizzle == CU_TENSOR_MAP_SWIZZLE_64B)
            c ^= r % 4;
        if (swizzle == CU_TENSOR_MAP_SWIZZLE_32B)
            c ^= r % 2;
        return r * 128 + c * 16 + linear % 16;
    }
    size_t tile_bytes() const
    {
        size_t n = element;
        for (uint32_t x : tile())
            n *= x;
        return n;
    }
};

Tensor matrix(cuuint64_t width, cuuint64_t height, cuuint32_t box_x, cuuint32_t box_y, size_t element = 1,
              CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_UINT8)
{
    Tensor t;
    t.size = {width, height};
    t.stride = {(width * element + 15) / 16 * 16};
    t.box = {box_x, box_y};
    t.step = {1, 1};
    t.type = type;
    t.element = element;
    return t;
}

struct TensorCopy : Bulk {
    /* A box through shared memory against the host's model, byte for byte as it lies there. */
    void loads(const Tensor &t, Place p, uint16_t nan = 0)
    {
        std::vector<uint8_t> in = numbers<uint8_t>(t.bytes()), expected(t.tile_bytes());
        t.each(p, [&](int64_t from, size_t to) {
            for (size_t b = 0; b < t.element; b++)
                expected[to + b] = from >= 0 ? in[size_t(from) + b] : uint8_t(nan >> (b % 2 * 8));
        });
        emu::Buffer<uint8_t> tensor(in), out(expected.size());
        Map map;
        ASSERT_CU(t.encode(&map, tensor.p));
        unsigned bytes = unsigned(expected.size());
        EXPECT_CU(emu::launch(module.get("tensor_load"), 1, 64, bytes, map, out.p, p, int(t.size.size()), bytes));
        EXPECT_TRUE(expected == out.get());
    }
    void stores(const Tensor &t, Place p, bool add)
    {
        std::vector<uint8_t> before = numbers<uint8_t>(t.bytes(), 5), tile = numbers<uint8_t>(t.tile_bytes()),
                             expected(before);
        t.each(p, [&](int64_t to, size_t from) {
            if (to < 0)
                return;
            uint32_t sum = 0;
            if (add) {
                uint32_t a, b;
                memcpy(&a, &before[size_t(to)], 4);
                memcpy(&b, &tile[from], 4);
                sum = a + b;
            }
            memcpy(&expected[size_t(to)], add ? reinterpret_cast<uint8_t *>(&sum) : &tile[from], t.element);
        });
        emu::Buffer<uint8_t> tensor(before), in(tile);
        Map map;
        ASSERT_CU(t.encode(&map, tensor.p));
        unsigned bytes = unsigned(tile.size());
        EXPECT_CU(emu::launch(module.get("tensor_store"), 1, 64, bytes, map, in.p, p, int(add), bytes));
        EXPECT_TRUE(expected == tensor.get());
    }
};

TEST_F(TensorCopy, BoxesOfOneToFiveDimensions)
{
    NEEDS_HOPPER;
    Tensor t;
    t.size = {100};
    t.box = {64};
    t.step = {1};
    loads(t, {{16, 0, 0, 0, 0}});
    loads(t, {{5, 0, 0, 0, 0}});
    loads(matrix(96, 20, 32, 8), {{16, 3, 0, 0, 0}});
    t.size = {48, 9, 7, 5, 3};
    t.stride = {64, 640, 5120, 25600};
    t.box = {16, 3, 2, 4, 2};
    t.step = {1, 1, 1, 1, 1};
    Tensor part;
    for (size_t rank = 3; rank <= 5; rank++) {
        part = t;
        part.size.resize(rank);
        part.stride.resize(rank - 1);
        part.box.resize(rank);
        part.step.resize(rank);
        loads(part, {{16, 2, 1, 1, 1}});
        loads(part, {{3, 8, 6, 3, 2}}); /* sticks out */
    }
}

TEST_F(TensorCopy, EveryElementSize)
{
    NEEDS_HOPPER;
    loads(matrix(70, 9, 16, 4, 2, CU_TENSOR_MAP_DATA_TYPE_FLOAT16), {{33, 2, 0, 0, 0}});
    loads(matrix(70, 9, 16, 4, 4, CU_TENSOR_MAP_DATA_TYPE_FLOAT32), {{33, 2, 0, 0, 0}});
    loads(matrix(70, 9, 16, 4, 8, CU_TENSOR_MAP_DATA_TYPE_INT64), {{33, 2, 0, 0, 0}});
}

TEST_F(TensorCopy, Swizzles)
{
    NEEDS_HOPPER;
    const std::pair<CUtensorMapSwizzle, cuuint32_t> all[] = {
        {CU_TENSOR_MAP_SWIZZLE_32B, 32}, {CU_TENSOR_MAP_SWIZZLE_64B, 64}, {CU_TENSOR_MAP_SWIZZLE_128B, 128}};
    for (auto [swizzle, width] : all) {
        Tensor t = matrix(256, 40, width, 32);
        t.swizzle = swizzle;
        loads(t, {{64, 3, 0, 0, 0}});
        loads(t, {{200, 20, 0, 0, 0}}); /* sticks out to the right and below */
        stores(t, {{32, 3, 0, 0, 0}}, false);
        stores(t, {{230, 30, 0, 0, 0}}, false);
    }
}

TEST_F(TensorCopy, OutsideOfTheTensorThereAreZerosOrNans)
{
    NEEDS_HOPPER;
    Tensor t = matrix(40, 10, 32, 8, 2, CU_TENSOR_MAP_DATA_TYPE_FLOAT16);
    for (Place p :
         {Place{{-5, -3, 0, 0, 0}}, Place{{30, 7, 0, 0, 0}}, Place{{100, 0, 0, 0, 0}}, Place{{-32, 0, 0, 0, 0}}})
        loads(t, p);
    t.fill = CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA;
    if (emu::Driver::get().emulated()) /* which NaN is not documented */
        loads(t, {{-5, -3, 0, 0, 0}}, 0x7ff7);
}

TEST_F(TensorCopy, ElementStridesSkip)
{
    NEEDS_HOPPER;
    Tensor t = matrix(96, 40, 32, 15);
    t.step = {1, 4};
    loads(t, {{16, 3, 0, 0, 0}});
    loads(t, {{16, 30, 0, 0, 0}});
}

TEST_F(TensorCopy, StoresLeaveOutWhatLiesOutside)
{
    NEEDS_HOPPER;
    Tensor t = matrix(40, 10, 32, 8, 4, CU_TENSOR_MAP_DATA_TYPE_UINT32);
    for (Place p :
         {Place{{4, 1, 0, 0, 0}}, Place{{-5, -3, 0, 0, 0}}, Place{{30, 7, 0, 0, 0}}, Place{{40, 0, 0, 0, 0}}}) {
        stores(t, p, false);
        stores(t, p, true);
    }
}

TEST_F(TensorCopy, APipelineGivesWhatTheHostComputes)
{
    NEEDS_HOPPER;
    const int tiles = 10;
    Tensor t = matrix(128, 16 * tiles, 128, 16);
    t.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    std::vector<uint8_t> in = numbers<uint8_t>(t.bytes());
    std::vector<uint32_t> expected(96, 0);
    for (int k = 0; k < tiles; k++)
        for (size_t n = 0; n < 96; n++) {
            uint32_t v;
            memcpy(&v, &in[(size_t(k) * 16 + n / 6) * 128 + n % 6 * 4], 4);
            expected[n] += v;
        }
    emu::Buffer<uint8_t> tensor(in);
    emu::Buffer<uint32_t> out(96);
    Map map;
    ASSERT_CU(t.encode(&map, tensor.p));
    EXPECT_CU(emu::launch(module.get("tensor_pipeline_right"), 1, 128, 3 * 2048, map, out.p, tiles));
    EXPECT_EQ(expected, out.get());
    if (!emu::Driver::get().emulated())
        return;
    EXPECT_EQ(CUDA_ERROR_LAUNCH_FAILED,
              emu::launch(module.get("tensor_pipeline_wrong"), 1, 128, 3 * 2048, map, out.p, tiles));
    expect_report({"shared-memory race", "issues a bulk copy that writes 2048 bytes", "read at bulk.cu:"});
}

/* ---------------------------------------------------------------- clusters */

struct Clusters : Bulk {
};

TEST_F(Clusters, BlocksReadEachOthersSharedMemory)
{
    NEEDS_HOPPER;
    std::vector<int> in = numbers<int>(128), expected(128);
    for (size_t t = 0; t < 128; t++)
        expected[t] = int(unsigned(in[127 - t]) + (t < 64 ? 1 : 0)); /* the other block's, mirrored, plus its rank */
    EXPECT_EQ(expected, result("neighbours", in, 2, 64));
    EXPECT_EQ(expected, result("neighbours_generic", in, 2, 64));
}

TEST_F(Clusters, ABoxIsMulticastToAllBlocks)
{
    NEEDS_HOPPER;
    Tensor t = matrix(64, 8, 64, 8);
    std::vector<uint8_t> in = numbers<uint8_t>(512), expected(in);
    expected.insert(expected.end(), in.begin(), in.end());
    emu::Buffer<uint8_t> tensor(in), out(1024);
    Map map;
    ASSERT_CU(t.encode(&map, tensor.p));
    EXPECT_CU(emu::launch(module.get("multicast"), 2, 64, 0, map, out.p));
    EXPECT_TRUE(expected == out.get());
}

TEST_F(Clusters, BlocksSendValuesAndArriveAtEachOthersMbarriers)
{
    NEEDS_HOPPER;
    std::vector<int> in = numbers<int>(128), expected(128);
    for (size_t t = 0; t < 128; t++) {
        unsigned counter = 100;
        for (unsigned k = unsigned(t % 4); k < 64; k += 4)
            counter += k;
        const size_t other = t < 64 ? 64 : 0, me = t % 64;
        expected[t] = int(unsigned(in[other + me]) * 3 + unsigned(in[other + 63 - me]) * 5 + counter);
    }
    EXPECT_EQ(expected, result("exchange", in, 2, 64));
}

/* ---------------------------------------------------------------- mistakes */

struct BulkMistakes : testing::Test {
    template <class... A>
    void stopped(const char *name, CUresult result, const char *words, A... more)
    {
        emu::Device device("9.0");
        if (!emu::Driver::get().emulated())
            return;
        emu::Module module(ptx());
        emu::Buffer<int> in(numbers<int>(64)), out(64);
        EXPECT_EQ(result, emu::launch(module.get(name), 1, 1, 0, in.p, out.p, more...)) << name;
        expect_report({words});
    }
};

TEST_F(BulkMistakes, AreReported)
{
    stopped("bulk_misaligned", CUDA_ERROR_MISALIGNED_ADDRESS, "no multiple of 16");
    stopped("bulk_odd_size", CUDA_ERROR_MISALIGNED_ADDRESS, "the size has to be a multiple of 16", 24);
    stopped("bulk_odd_size", CUDA_ERROR_ILLEGAL_ADDRESS, "past the end", 272);
    stopped("not_a_tensor_map", CUDA_ERROR_LAUNCH_FAILED, "there is no tensor map");
}

TEST(TensorMap, TheDocumentedRulesAreChecked)
{
    emu::Device device("9.0");
    NEEDS_HOPPER;
    Map map;
    emu::Buffer<uint8_t> memory(4096);
    const Tensor good = matrix(64, 8, 64, 8);
    EXPECT_CU(good.encode(&map, memory.p));
    auto refused = [&](const char *what, auto change) {
        Tensor t = good;
        change(t);
        EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, t.encode(&map, memory.p)) << what;
    };
    refused("rank 0", [](Tensor &t) { t.size.clear(); });
    refused("rank 6",
            [](Tensor &t) { t.size.assign(6, 16), t.stride.assign(5, 16), t.box.assign(6, 16), t.step.assign(6, 1); });
    refused("size 0", [](Tensor &t) { t.size[1] = 0; });
    refused("size over 2^32", [](Tensor &t) { t.size[1] = (1ull << 32) + 1; });
    refused("stride of 8", [](Tensor &t) { t.stride[0] = 72; });
    refused("stride of 2^40", [](Tensor &t) { t.stride[0] = 1ull << 40; });
    refused("box 0", [](Tensor &t) { t.box[1] = 0; });
    refused("box 257", [](Tensor &t) { t.box[1] = 257; });
    refused("rows of 24 bytes", [](Tensor &t) { t.box[0] = 24; });
    refused("element stride 0", [](Tensor &t) { t.step[1] = 0; });
    refused("element stride 9", [](Tensor &t) { t.step[1] = 9; });
    refused("rows wider than the swizzle", [](Tensor &t) { t.swizzle = CU_TENSOR_MAP_SWIZZLE_32B; });
    refused("NaN in integers", [](Tensor &t) { t.fill = CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA; });
    refused("interleave of a matrix", [](Tensor &t) { t.interleave = CU_TENSOR_MAP_INTERLEAVE_32B; });
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, good.encode(&map, memory.p + 8));
    alignas(128) char room[256];
    EXPECT_EQ(CUDA_ERROR_INVALID_VALUE, good.encode_at(room + 16, memory.p));
}

TEST(BulkText, WhatIsNotSupportedIsAnErrorAtLoad)
{
    emu::Device device("9.0");
    if (!emu::Driver::get().emulated())
        return;
    auto log = [](const std::string &statement) {
        emu::Module m(
            ".version 8.6\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 p)\n{\n"
            ".shared .align 128 .b8 s[256];\n.reg .b64 %rd;\n.reg .b32 %r;\n.reg .b16 %h;\nld.param.u64 %rd, [p];\n"
            "mov.u32 %r, s;\nmov.u16 %h, 0;\n" +
                statement + "\nret;\n}\n",
            false);
        return m.result == CUDA_SUCCESS ? std::string() : m.log;
    };
    EXPECT_EQ("", log("cp.async.bulk.prefetch.L2.global [%rd], 64;"));
    EXPECT_EQ("", log("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%rd, {%r, %r}];"));
    EXPECT_EQ("", log("cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r], [%rd], 64, [%r+64];"));
    EXPECT_EQ("", log("fence.proxy.tensormap::generic.acquire.gpu [%rd], 128;"));
    EXPECT_EQ("", log("fence.proxy.alias;"));
    EXPECT_NE(std::string::npos,
              log("cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%r], "
                  "[%rd, {%r, %r, %r}], [%r+64], {%h};")
                  .find("im2col"));
    EXPECT_NE(std::string::npos,
              log("tensormap.replace.tile.global_address.global.b1024.b64 [%rd], %rd;").find("cuTensorMapEncodeTiled"));
    EXPECT_NE("", log("cp.async.bulk.global.global.bulk_group [%rd], [%rd], 64;"));
}

} // namespace

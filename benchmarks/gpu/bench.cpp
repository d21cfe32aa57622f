#include "bench.h"

#include <getopt.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <sstream>

extern "C" {
#include "base/log.h"
#include "base/rng.h"
}

void must(nb_status st, const char *what)
{
    if (st == NB_OK)
        return;
    fprintf(stderr, "nibble_gpu_bench: %s: %s\n", what, nb_last_error());
    exit(1);
}

std::string json(const char *key, const std::string &text)
{
    std::string s = std::string("\"") + key + "\": \"";
    for (char ch : text) {
        if (ch == '"' || ch == '\\')
            s += '\\';
        s += (unsigned char)ch < 32 ? ' ' : ch;
    }
    return s + "\"";
}

std::string json(const char *key, double number)
{
    char s[64];
    if (std::isfinite(number))
        snprintf(s, sizeof s, "\"%s\": %.6g", key, number);
    else
        snprintf(s, sizeof s, "\"%s\": null", key); /* JSON has no infinity */
    return s;
}

float uniform(uint64_t seed, uint64_t i)
{
    return 2 * nbi_rng_uniform(seed, i) - 1;
}

Bench::Bench(const Options &o, nbi_backend *backend)
    : opt(o), be(backend), c(nbi_cuda_of(backend)), ops(backend->ops), started_(nbi_now())
{
}

bool Bench::out_of_time() const
{
    return nbi_now() - started_ > opt.seconds;
}

size_t Bench::copies(size_t bytes) const
{
    if (opt.quick)
        return 2;
    return std::min<size_t>(64, std::max<size_t>(2, 3 * limits.l2_bytes / bytes + 1));
}

double Bench::replay_us(CUgraphExec graph)
{
    static CUevent begin, end;
    float ms = 0;
    if (!begin) {
        must(NBI_CU(c, cuEventCreate(&begin, CU_EVENT_DEFAULT), "creating an event"), "timing");
        must(NBI_CU(c, cuEventCreate(&end, CU_EVENT_DEFAULT), "creating an event"), "timing");
    }
    must(NBI_CU(c, cuEventRecord(begin, c->stream), "recording an event"), "timing");
    must(NBI_CU(c, cuGraphLaunch(graph, c->stream), "launching a graph"), "timing");
    must(NBI_CU(c, cuEventRecord(end, c->stream), "recording an event"), "timing");
    must(NBI_CU(c, cuEventSynchronize(end), "waiting"), "timing");
    must(NBI_CU(c, cuEventElapsedTime(&ms, begin, end), "reading a clock"), "timing");
    return ms * 1000.0;
}

double Bench::time_us(const std::function<nb_status(size_t)> &issue)
{
    size_t i = 0;
    /* The first launch loads modules and chooses algorithms; then a graph of a few tells how long one takes. */
    must(issue(i++), "the first launch");
    must(nbi_cuda_sync(c), "the first launch");
    auto record = [&](size_t launches) {
        CUgraph graph = nullptr;
        CUgraphExec exec = nullptr;
        must(NBI_CU(c, cuStreamBeginCapture_v2(c->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "recording"), "timing");
        c->capturing = true;
        for (size_t l = 0; l < launches; l++)
            must(issue(i++), "a recorded launch");
        c->capturing = false;
        must(NBI_CU(c, cuStreamEndCapture(c->stream, &graph), "recording"), "timing");
        must(NBI_CU(c, cuGraphInstantiateWithFlags(&exec, graph, 0), "making a graph"), "timing");
        must(NBI_CU(c, cuGraphDestroy(graph), "freeing a graph"), "timing");
        return exec;
    };
    auto drop = [&](CUgraphExec exec) { must(NBI_CU(c, cuGraphExecDestroy(exec), "freeing a graph"), "timing"); };
    size_t launches = opt.quick ? 2 : 4, replays = 3;
    CUgraphExec exec = record(launches);
    double estimate = (replay_us(exec), replay_us(exec)) / (double)launches;
    if (!opt.quick) {
        /* about half a millisecond a graph, and 20 ms in all, but at least five replays */
        drop(exec);
        launches = (size_t)std::clamp(500 / std::max(estimate, 1.0), 8.0, 256.0);
        replays = (size_t)std::clamp(20000 / std::max(estimate * (double)launches, 1.0), 5.0, 40.0);
        exec = record(launches);
        replay_us(exec);
    }
    std::vector<double> t(replays);
    for (double &x : t)
        x = replay_us(exec) / (double)launches;
    drop(exec);
    std::sort(t.begin(), t.end());
    return t[t.size() / 2];
}

static int attribute(const Bench &b, CUdevice_attribute a)
{
    int v = 0;
    must(nbi_cuda_check(b.c, b.c->cu.cuDeviceGetAttribute(&v, a, b.c->device), "asking the device"), "the device");
    return v;
}

/* Operations (two a multiply-add) of one SM in one clock, dense, fp32 or int32 sums, by the vendor's papers.  GeForce cards
 * with fp32 sums do half of what is said here for sm_75, sm_86 and sm_89. */
static void rates(int sm, double *f16, double *int8)
{
    const struct {
        int sm;
        double f16, int8;
    } known[] = {{75, 1024, 2048}, {80, 2048, 4096}, {86, 1024, 2048}, {89, 1024, 2048}, {90, 4096, 8192}};
    *f16 = *int8 = 0;
    for (const auto &k : known)
        if (k.sm == sm) {
            *f16 = k.f16;
            *int8 = k.int8;
        }
}

void Bench::measure_limits()
{
    double f16, int8;
    rates(c->sm, &f16, &int8);
    const double clock = attribute(*this, CU_DEVICE_ATTRIBUTE_CLOCK_RATE) * 1e3;
    limits.f16_tops = c->n_sm * clock * f16 / 1e12;
    limits.int8_tops = c->n_sm * clock * int8 / 1e12;
    limits.dram_gbs = 2.0 * attribute(*this, CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE) * 1e3 *
                      attribute(*this, CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH) / 8 / 1e9;
    limits.l2_bytes = (size_t)attribute(*this, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
    const size_t bytes = opt.quick ? 1 << 20 : (size_t)1 << 30;
    Memory from(*this, bytes), to(*this, bytes);
    const double us = time_us([&](size_t i) {
        const CUdeviceptr a = (CUdeviceptr)(uintptr_t)from.ptr(), z = (CUdeviceptr)(uintptr_t)to.ptr();
        return NBI_CU(c, cuMemcpyDtoDAsync_v2(i % 2 ? a : z, i % 2 ? z : a, bytes, c->stream), "a copy");
    });
    limits.copy_gbs = 2.0 * (double)bytes / us / 1e3;
    printf("{\"section\": \"device\", %s, %s, %s, %s, %s}\n", json("copy_gbs", limits.copy_gbs).c_str(),
           json("dram_gbs", limits.dram_gbs).c_str(), json("peak_f16_tops", limits.f16_tops).c_str(),
           json("peak_int8_tops", limits.int8_tops).c_str(), json("l2_bytes", (double)limits.l2_bytes).c_str());
    fflush(stdout);
}

void Bench::print(const char *section, const std::string &fields, double us, double bytes, double operations,
                  double peak_tops) const
{
    const double gbs = bytes / us / 1e3, tops = operations / us / 1e6;
    printf("{\"section\": \"%s\", %s, %s, %s, %s, %s", section, fields.c_str(), json("us", us).c_str(),
           json("gbs", gbs).c_str(), json("copy_percent", 100 * gbs / limits.copy_gbs).c_str(),
           json("tops", tops).c_str());
    if (peak_tops > 0)
        printf(", %s}\n", json("peak_percent", 100 * tops / peak_tops).c_str());
    else
        printf(", \"peak_percent\": null}\n");
    fflush(stdout);
}

void Bench::note(const std::string &text) const
{
    printf("{\"section\": \"note\", %s}\n", json("text", text).c_str());
    fflush(stdout);
}

static void about(const nbi_cuda *c)
{
    int driver = 0;
    size_t room = 0, total = 0;
    nbi_cuda *d = (nbi_cuda *)c;
    must(nbi_cuda_check(d, c->cu.cuDriverGetVersion(&driver), "asking for the driver's version"), "the device");
    must(NBI_CU(d, cuMemGetInfo_v2(&room, &total), "asking for the memory"), "the device");
    printf("{%s, \"sm\": %d, \"multiprocessors\": %d, %s, \"driver_cuda\": \"%d.%d\"}\n", json("gpu", c->name).c_str(),
           c->sm, c->n_sm, json("memory_gib", (double)total / 0x1p30).c_str(), driver / 1000, driver % 1000 / 10);
}

static void usage(FILE *f)
{
    fputs("usage: nibble_gpu_bench [--quick] [--seconds S] [--only linear,attention,rows] [--device N] [--bf16]\n"
          "       nibble_gpu_bench --about\n"
          "Times the operations of the CUDA backend and prints JSON lines; ./dev gpu bench makes tables of them.\n"
          "  --quick    tiny shapes, a rehearsal\n"
          "  --seconds  begin no measurement later than this\n"
          "  --about    only say what the device is\n",
          f);
}

int main(int argc, char **argv)
{
    Options o;
    int device = 0, only_about = 0, bf16 = 0, quick = 0, ch;
    const option longs[] = {{"quick", no_argument, &quick, 1},         {"about", no_argument, &only_about, 1},
                            {"bf16", no_argument, &bf16, 1},           {"seconds", required_argument, nullptr, 's'},
                            {"only", required_argument, nullptr, 'o'}, {"device", required_argument, nullptr, 'd'},
                            {"help", no_argument, nullptr, 'h'},       {}};
    while ((ch = getopt_long(argc, argv, "h", longs, nullptr)) != -1) {
        std::stringstream list(optarg ? optarg : "");
        std::string item;
        switch (ch) {
        case 0:
            break;
        case 's':
            o.seconds = atof(optarg);
            break;
        case 'o':
            while (std::getline(list, item, ','))
                o.only.insert(item);
            break;
        case 'd':
            device = atoi(optarg);
            break;
        case 'h':
            usage(stdout);
            return 0;
        default:
            usage(stderr);
            return 2;
        }
    }
    if (optind < argc) {
        usage(stderr);
        return 2;
    }
    o.quick = quick;
    nbi_backend *be = nullptr;
    must(nbi_cuda_create(&be, device, bf16 ? NBI_BF16 : NBI_F16), "opening the device");
    if (only_about) {
        about(nbi_cuda_of(be));
    } else {
        Bench b(o, be);
        b.measure_limits();
        if (b.wants("linear"))
            bench_linear(b, false);
        if (b.wants("attention"))
            bench_attention(b);
        if (b.wants("rows"))
            bench_rows(b);
        if (b.wants("linear") && !quick)
            bench_linear(b, true);
        if (b.out_of_time())
            b.note("the time was up: what is missing was not measured");
    }
    be->ops->destroy(be);
    return 0;
}

/* A stand-in for libnccl.so.2: ranks are threads or processes of one machine.
 *
 * A communicator is a folder in shared memory, named by the unique id.  The n-th collective of a rank publishes what the rank contributes
 * as the file "n.rank" (written beside, then renamed); a rank's operation is done when it has read everybody's n-th file.  That needs
 * no server, works between threads as between processes, and a rank that never comes is a wait that does not end, as with NCCL.
 * Ranks are added in rank order, in double for floats, rounded once at the end: the same bytes on every rank and in every run.
 *
 * Files hold a header that says what the operation is, so that two ranks that call different collectives are told so instead of
 * exchanging nonsense.  Operations run in their stream through ptxemu_enqueue. */
#include <cuda.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "companions/nccl_abi.h"
#include "companions/numbers.h"
#include "ptxemu.h"
#include "types.h"

using ptxemu::format;
using namespace ptxemu::companions;

namespace
{

enum class Op : uint32_t { all_reduce, reduce, reduce_scatter, broadcast, all_gather, all_to_all, send, recv };
const char *const op_names[] = {"AllReduce", "Reduce",   "ReduceScatter", "Broadcast",
                                "AllGather", "AlltoAll", "Send",          "Recv"};

struct Header { /* of a published file */
    Op op;
    uint32_t type, red, root;
    uint64_t count, bytes;
};

const Number numbers[] = {Number::s8,  Number::u8,  Number::s32, Number::u32, Number::s64,
                          Number::u64, Number::f16, Number::f32, Number::f64, Number::bf16};

thread_local std::string last_error;

ncclResult_t refuse(ncclResult_t r, const std::string &why)
{
    last_error = why;
    return r;
}

} // namespace

struct ncclComm {
    std::string folder;
    int ranks = 0, rank = 0, device = 0;
    uint64_t collectives = 0;             /* executed so far */
    std::vector<uint64_t> sent, received; /* point to point, by peer */
    std::atomic<int> error{ncclSuccess};
    std::atomic<bool> aborted{false};
    std::atomic<int> users{1}; /* the handle, and operations that have not been dropped */
};

namespace
{

void let_go(ncclComm *c)
{
    if (c->users.fetch_sub(1) == 1)
        delete c;
}

struct Operation {
    ncclComm *comm;
    Header h;
    const void *send;
    void *recv;
    int peer = 0;
    /* while it runs */
    bool published = false;
    uint64_t serial = 0;
};

std::string root_folder()
{
    struct stat s;
    if (stat("/dev/shm", &s) == 0 && access("/dev/shm", W_OK) == 0)
        return "/dev/shm";
    const char *t = getenv("TMPDIR");
    return t && *t ? t : "/tmp";
}

bool publish(const std::string &path, const Header &h, const void *data)
{
    std::string part = path + ".part";
    FILE *f = fopen(part.c_str(), "wb");
    if (!f)
        return false;
    bool ok = fwrite(&h, sizeof h, 1, f) == 1 && (h.bytes == 0 || fwrite(data, h.bytes, 1, f) == 1);
    ok = fclose(f) == 0 && ok;
    return ok && rename(part.c_str(), path.c_str()) == 0;
}

/* 0: not there yet, 1: read, -1: not readable. */
int take(const std::string &path, Header *h, std::vector<uint8_t> *data)
{
    FILE *f = fopen(path.c_str(), "rb");
    if (!f)
        return errno == ENOENT ? 0 : -1;
    bool ok = fread(h, sizeof *h, 1, f) == 1;
    if (ok) {
        data->resize(h->bytes);
        ok = h->bytes == 0 || fread(data->data(), h->bytes, 1, f) == 1;
    }
    fclose(f);
    return ok ? 1 : -1;
}

int fail(Operation *o, ncclResult_t r, const std::string &why)
{
    last_error = why;
    fprintf(stderr, "ptxemu nccl: rank %d of %d: %s\n", o->comm->rank, o->comm->ranks, why.c_str());
    o->comm->error = r;
    o->published = false;
    return -1;
}

size_t elements(const Operation &o, bool of_send)
{
    size_t all = o.h.count * size_t(o.comm->ranks);
    switch (o.h.op) {
    case Op::reduce_scatter:
        return of_send ? all : o.h.count;
    case Op::all_gather:
        return of_send ? o.h.count : all;
    case Op::all_to_all:
        return all;
    default:
        return o.h.count;
    }
}

bool contributes(const Operation &o)
{
    return o.h.op == Op::broadcast ? o.comm->rank == int(o.h.root) : o.h.op != Op::recv;
}

/* What rank `o.comm->rank` receives, from everybody's contributions. */
std::vector<uint8_t> combine(const Operation &o, const std::vector<std::vector<uint8_t>> &from)
{
    const Number type = numbers[o.h.type];
    const size_t width = number_bytes(type), n = o.h.count, ranks = from.size();
    std::vector<uint8_t> out;
    switch (o.h.op) {
    case Op::broadcast:
        return from[o.h.root];
    case Op::all_gather:
        for (auto &f : from)
            out.insert(out.end(), f.begin(), f.end());
        return out;
    case Op::all_to_all:
        for (auto &f : from)
            out.insert(out.end(), f.begin() + long(width * n) * o.comm->rank,
                       f.begin() + long(width * n) * (o.comm->rank + 1));
        return out;
    default:
        break;
    }
    size_t first = o.h.op == Op::reduce_scatter ? n * size_t(o.comm->rank) : 0;
    out.resize(n * width);
    std::vector<const uint8_t *> terms(ranks);
    for (size_t i = 0; i < n; i++) {
        for (size_t r = 0; r < ranks; r++)
            terms[r] = from[r].data() + (first + i) * width;
        reduce(type, Reduction(o.h.red), terms.data(), ranks, out.data() + i * width);
    }
    return out;
}

/* This rank has read everybody's file of the collective; the last one to do so removes them. */
void forget(const ncclComm &c, uint64_t serial)
{
    const auto read_mark = [&](int r) {
        return format("%s/%llu.%d.read", c.folder.c_str(), (unsigned long long)serial, r);
    };
    if (FILE *f = fopen(read_mark(c.rank).c_str(), "wb"))
        fclose(f);
    for (int r = 0; r < c.ranks; r++)
        if (access(read_mark(r).c_str(), F_OK) != 0)
            return;
    for (int r = 0; r < c.ranks; r++) {
        unlink(format("%s/%llu.%d", c.folder.c_str(), (unsigned long long)serial, r).c_str());
        unlink(read_mark(r).c_str());
    }
}

int attempt_collective(Operation *o)
{
    ncclComm &c = *o->comm;
    if (!o->published) {
        std::vector<uint8_t> data;
        Header h = o->h;
        h.bytes = 0;
        if (contributes(*o)) {
            h.bytes = elements(*o, true) * number_bytes(numbers[h.type]);
            data.resize(h.bytes);
            if (ptxemu_read(data.data(), (unsigned long long)o->send, h.bytes))
                return fail(o, ncclUnhandledCudaError,
                            format("%s: the send buffer cannot be read", op_names[int(h.op)]));
        }
        o->serial = c.collectives++;
        if (!publish(format("%s/%llu.%d", c.folder.c_str(), (unsigned long long)o->serial, c.rank), h, data.data()))
            return fail(o, ncclSystemError, format("%s cannot be written: %s", c.folder.c_str(), strerror(errno)));
        o->published = true;
    }
    std::vector<std::vector<uint8_t>> from(size_t(c.ranks));
    for (int r = 0; r < c.ranks; r++) {
        Header h;
        int got = take(format("%s/%llu.%d", c.folder.c_str(), (unsigned long long)o->serial, r), &h, &from[size_t(r)]);
        if (got == 0)
            return 0;
        if (got < 0)
            return fail(o, ncclSystemError, format("%s: what rank %d sent cannot be read", c.folder.c_str(), r));
        if (h.op != o->h.op || h.count != o->h.count || h.type != o->h.type || h.red != o->h.red || h.root != o->h.root)
            return fail(o, ncclInvalidUsage,
                        format("collective %llu is %s of %llu elements here, but %s of %llu elements (or another type, "
                               "operator or root) on rank %d",
                               (unsigned long long)o->serial, op_names[int(o->h.op)], (unsigned long long)o->h.count,
                               op_names[int(h.op)], (unsigned long long)h.count, r));
    }
    if (o->h.op != Op::reduce || c.rank == int(o->h.root)) {
        std::vector<uint8_t> out = combine(*o, from);
        if (ptxemu_write((unsigned long long)o->recv, out.data(), out.size()))
            return fail(o, ncclUnhandledCudaError,
                        format("%s: the receive buffer cannot be written", op_names[int(o->h.op)]));
    }
    forget(c, o->serial);
    o->published = false;
    return 1;
}

int attempt_pair(Operation *o)
{
    ncclComm &c = *o->comm;
    const size_t peer = size_t(o->peer);
    std::vector<uint8_t> data;
    if (o->h.op == Op::send) {
        Header h = o->h;
        h.bytes = h.count * number_bytes(numbers[h.type]);
        data.resize(h.bytes);
        if (ptxemu_read(data.data(), (unsigned long long)o->send, h.bytes))
            return fail(o, ncclUnhandledCudaError, "Send: the buffer cannot be read");
        std::string path =
            format("%s/p%d.%d.%llu", c.folder.c_str(), c.rank, o->peer, (unsigned long long)c.sent[peer]++);
        return publish(path, h, data.data()) ? 1 : fail(o, ncclSystemError, path + " cannot be written");
    }
    std::string path =
        format("%s/p%d.%d.%llu", c.folder.c_str(), o->peer, c.rank, (unsigned long long)c.received[peer]);
    Header h;
    int got = take(path, &h, &data);
    if (got == 0)
        return 0;
    if (got < 0 || h.count != o->h.count || h.type != o->h.type)
        return fail(o, ncclInvalidUsage,
                    format("Recv of %llu elements from rank %d, which sent %llu (or another type)",
                           (unsigned long long)o->h.count, o->peer, (unsigned long long)h.count));
    c.received[peer]++;
    unlink(path.c_str());
    if (ptxemu_write((unsigned long long)o->recv, data.data(), data.size()))
        return fail(o, ncclUnhandledCudaError, "Recv: the buffer cannot be written");
    return 1;
}

/* The operations of one group on one stream: they progress together, as one NCCL kernel would. */
struct Batch {
    CUstream stream;
    std::vector<Operation> ops;
    std::vector<bool> done;
};

int attempt_batch(void *user)
{
    Batch *b = static_cast<Batch *>(user);
    if (b->ops[0].comm->aborted)
        return -1;
    b->done.resize(b->ops.size());
    bool all = true;
    for (size_t i = 0; i < b->ops.size(); i++) {
        if (b->done[i])
            continue;
        Operation *o = &b->ops[i];
        int r = o->h.op == Op::send || o->h.op == Op::recv ? attempt_pair(o) : attempt_collective(o);
        if (r < 0)
            return -1;
        b->done[i] = r == 1;
        all = all && r == 1;
    }
    if (!all)
        return 0;
    b->done.assign(b->ops.size(), false); /* a captured operation runs again at the next replay */
    return 1;
}

void drop_batch(void *user)
{
    Batch *b = static_cast<Batch *>(user);
    for (Operation &o : b->ops)
        let_go(o.comm);
    delete b;
}

struct Group {
    int depth = 0;
    ncclResult_t error = ncclSuccess;
    std::vector<Batch *> batches;
    std::vector<ncclComm *> joining;
};
thread_local Group group;

ncclResult_t start(Batch *b)
{
    int r = ptxemu_enqueue(b->stream, attempt_batch, b, drop_batch);
    if (r == CUDA_SUCCESS)
        return ncclSuccess;
    drop_batch(b);
    return refuse(ncclUnhandledCudaError, format("the driver refused the operation with error %d", r));
}

ncclResult_t submit(Op op, const void *send, void *recv, size_t count, ncclDataType_t type, int red, int root, int peer,
                    ncclComm_t comm, ncclStream_t stream)
{
    const char *name = op_names[int(op)];
    if (!comm)
        return refuse(ncclInvalidArgument, format("%s: the communicator is NULL", name));
    if (int(type) < 0 || size_t(type) >= sizeof numbers / sizeof *numbers)
        return refuse(ncclInvalidArgument,
                      format("%s: data type %d is not supported by this stand-in", name, int(type)));
    if (red < 0 || red > int(ncclAvg))
        return refuse(ncclInvalidArgument, format("%s: reduction %d, expected 0 to 4", name, red));
    if (root < 0 || root >= comm->ranks || peer < 0 || peer >= comm->ranks)
        return refuse(ncclInvalidArgument,
                      format("%s: rank %d, expected 0 to %d", name, root ? root : peer, comm->ranks - 1));
    if (comm->error != ncclSuccess)
        return refuse(ncclInvalidUsage, format("%s: the communicator has failed before", name));
    comm->users++;
    Operation o{comm, {op, uint32_t(type), uint32_t(red), uint32_t(root), count, 0}, send, recv, peer};
    if (group.depth == 0)
        return start(new Batch{stream, {o}, {}});
    for (Batch *b : group.batches)
        if (b->stream == stream && b->ops[0].comm == comm) {
            b->ops.push_back(o);
            return ncclSuccess;
        }
    group.batches.push_back(new Batch{stream, {o}, {}});
    return ncclSuccess;
}

ncclResult_t wait_for_all(const ncclComm &c)
{
    for (unsigned i = 0; i < 60000; i++) {
        int there = 0;
        for (int r = 0; r < c.ranks; r++)
            there += access(format("%s/rank.%d", c.folder.c_str(), r).c_str(), F_OK) == 0;
        if (there == c.ranks)
            return ncclSuccess;
        usleep(1000);
    }
    return refuse(ncclSystemError, format("not all of the %d ranks have joined within a minute", c.ranks));
}

/* The last rank to leave takes the folder along. */
void leave(ncclComm *c)
{
    FILE *f = fopen(format("%s/left.%d", c->folder.c_str(), c->rank).c_str(), "wb");
    if (f)
        fclose(f);
    for (int r = 0; r < c->ranks; r++)
        if (access(format("%s/left.%d", c->folder.c_str(), r).c_str(), F_OK) != 0)
            return;
    if (DIR *d = opendir(c->folder.c_str())) {
        while (dirent *e = readdir(d))
            if (e->d_name[0] != '.')
                unlink((c->folder + "/" + e->d_name).c_str());
        closedir(d);
    }
    rmdir(c->folder.c_str());
}

} // namespace

ncclResult_t ncclGetVersion(int *version)
{
    if (!version)
        return refuse(ncclInvalidArgument, "ncclGetVersion: version is NULL");
    *version = 22800; /* the interface is that of 2.28 */
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    if (!id)
        return refuse(ncclInvalidArgument, "ncclGetUniqueId: id is NULL");
    memset(id, 0, sizeof *id);
    std::string folder = root_folder() + "/ptxemu-nccl-XXXXXX";
    if (folder.size() >= sizeof id->internal || !mkdtemp(&folder[0]))
        return refuse(ncclSystemError, format("%s cannot be made: %s", folder.c_str(), strerror(errno)));
    memcpy(id->internal, folder.c_str(), folder.size());
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t r)
{
    static const char *const texts[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return size_t(r) < sizeof texts / sizeof *texts ? texts[r] : "unknown result code";
}

const char *ncclGetLastError(ncclComm_t)
{
    return last_error.c_str();
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int nranks, ncclUniqueId id, int rank)
{
    if (!comm || nranks < 1 || rank < 0 || rank >= nranks)
        return refuse(ncclInvalidArgument, format("ncclCommInitRank: rank %d of %d", rank, nranks));
    if (memchr(id.internal, 0, sizeof id.internal) == nullptr || access(id.internal, W_OK) != 0)
        return refuse(ncclInvalidArgument,
                      "ncclCommInitRank: this is not an id that ncclGetUniqueId gave on this machine");
    CUdevice device = 0;
    if (CUresult r = cuCtxGetDevice(&device))
        return refuse(ncclUnhandledCudaError,
                      format("ncclCommInitRank: there is no current context (error %d)", int(r)));
    ncclComm *c = new ncclComm;
    c->folder = id.internal;
    c->ranks = nranks;
    c->rank = rank;
    c->device = device;
    c->sent.resize(size_t(nranks));
    c->received.resize(size_t(nranks));
    int f = open(format("%s/rank.%d", c->folder.c_str(), rank).c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    if (f < 0) {
        delete c;
        return refuse(ncclInvalidUsage, format("ncclCommInitRank: rank %d has joined already", rank));
    }
    close(f);
    *comm = c;
    if (group.depth > 0) {
        group.joining.push_back(c);
        return ncclSuccess;
    }
    return wait_for_all(*c);
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int nranks, ncclUniqueId id, int rank, void *)
{
    return ncclCommInitRank(comm, nranks, id,
                            rank); /* what a configuration tunes (channels, CTAs) does not exist here */
}

ncclResult_t ncclCommInitAll(ncclComm_t *comms, int ndev, const int *devices)
{
    if (!comms || ndev < 1)
        return refuse(ncclInvalidArgument, "ncclCommInitAll: no communicators are asked for");
    ncclUniqueId id;
    ncclResult_t r = ncclGetUniqueId(&id);
    CUcontext before = nullptr;
    cuCtxGetCurrent(&before);
    if (r == ncclSuccess)
        r = ncclGroupStart();
    for (int i = 0; r == ncclSuccess && i < ndev; i++) {
        CUcontext ctx;
        CUresult u = cuDevicePrimaryCtxRetain(&ctx, devices ? devices[i] : i);
        if (u == CUDA_SUCCESS)
            u = cuCtxSetCurrent(ctx);
        r = u == CUDA_SUCCESS ? ncclCommInitRank(&comms[i], ndev, id, i)
                              : refuse(ncclUnhandledCudaError,
                                       format("device %d: driver error %d", devices ? devices[i] : i, int(u)));
        if (u == CUDA_SUCCESS) /* the caller's own context keeps it alive, as with NCCL */
            cuDevicePrimaryCtxRelease(devices ? devices[i] : i);
    }
    cuCtxSetCurrent(before);
    ncclResult_t end = group.depth ? ncclGroupEnd() : ncclSuccess;
    return r != ncclSuccess ? r : end;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    return comm ? ncclSuccess : refuse(ncclInvalidArgument, "ncclCommFinalize: NULL");
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    if (!comm)
        return ncclSuccess;
    leave(comm);
    let_go(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    if (comm)
        comm->aborted = true;
    return ncclCommDestroy(comm);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    if (!comm || !error)
        return refuse(ncclInvalidArgument, "ncclCommGetAsyncError: NULL");
    *error = ncclResult_t(comm->error.load());
    return ncclSuccess;
}

static ncclResult_t give(int *to, ncclComm_t comm, int ncclComm::*what)
{
    if (!comm || !to)
        return refuse(ncclInvalidArgument, "a communicator or result is NULL");
    *to = comm->*what;
    return ncclSuccess;
}
ncclResult_t ncclCommCount(ncclComm_t comm, int *count)
{
    return give(count, comm, &ncclComm::ranks);
}
ncclResult_t ncclCommCuDevice(ncclComm_t comm, int *device)
{
    return give(device, comm, &ncclComm::device);
}
ncclResult_t ncclCommUserRank(ncclComm_t comm, int *rank)
{
    return give(rank, comm, &ncclComm::rank);
}

ncclResult_t ncclGroupStart(void)
{
    group.depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    if (group.depth == 0)
        return refuse(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--group.depth > 0)
        return ncclSuccess;
    Group g;
    std::swap(g, group);
    ncclResult_t r = ncclSuccess;
    for (ncclComm *c : g.joining)
        if (r == ncclSuccess)
            r = wait_for_all(*c);
    for (Batch *b : g.batches) {
        if (r == ncclSuccess)
            r = start(b);
        else
            drop_batch(b);
    }
    return r;
}

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, ncclStream_t stream)
{
    return submit(Op::all_reduce, send, recv, count, type, op, 0, 0, comm, stream);
}
ncclResult_t ncclReduce(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t comm, ncclStream_t stream)
{
    return submit(Op::reduce, send, recv, count, type, op, root, 0, comm, stream);
}
ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, ncclStream_t stream)
{
    return submit(Op::reduce_scatter, send, recv, count, type, op, 0, 0, comm, stream);
}
ncclResult_t ncclBroadcast(const void *send, void *recv, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           ncclStream_t stream)
{
    return submit(Op::broadcast, send, recv, count, type, 0, root, 0, comm, stream);
}
ncclResult_t ncclBcast(void *buffer, size_t count, ncclDataType_t type, int root, ncclComm_t comm, ncclStream_t stream)
{
    return ncclBroadcast(buffer, buffer, count, type, root, comm, stream);
}
ncclResult_t ncclAllGather(const void *send, void *recv, size_t count, ncclDataType_t type, ncclComm_t comm,
                           ncclStream_t stream)
{
    return submit(Op::all_gather, send, recv, count, type, 0, 0, 0, comm, stream);
}
ncclResult_t ncclAlltoAll(const void *send, void *recv, size_t count, ncclDataType_t type, ncclComm_t comm,
                          ncclStream_t stream)
{
    return submit(Op::all_to_all, send, recv, count, type, 0, 0, 0, comm, stream);
}
ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      ncclStream_t stream)
{
    return submit(Op::send, send, nullptr, count, type, 0, 0, peer, comm, stream);
}
ncclResult_t ncclRecv(void *recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, ncclStream_t stream)
{
    return submit(Op::recv, nullptr, recv, count, type, 0, 0, peer, comm, stream);
}

/* wgmma (sm_90a): matrix products of a warpgroup, 64 rows by N columns, asynchronous.
 *
 * Each of the four warps executes the instruction for the 16 rows of D that are its own, at once when it is issued; a
 * warp's part of A and D lies in its registers as in mma.m16n8 (isa/fragments.h).  What the hardware leaves open until
 * wgmma.wait_group is still checked: until then the accumulators count as never-written registers for every other
 * instruction.  Not checked is whether A, B or the registers of A are overwritten in the meantime: they have been read
 * by then.
 *
 * One instruction covers 32 bytes of K.  A matrix in shared memory is found through a 64-bit descriptor; see Matrix.
 * Numbers are treated as by mma. */
#include <algorithm>
#include <cstdio>

#include "isa/fragments.h"
#include "isa/swizzle.h"
#include "memory/access.h"
#include "profile/counters.h"

namespace ptxemu
{
namespace
{

constexpr unsigned WARPS = 4; /* of a warpgroup */
constexpr unsigned WARP_ROWS = 16, MAX_N = 256, MAX_K = 32;
constexpr unsigned CHUNK = 16, CHUNKS = 2; /* bytes; along K in one instruction */
constexpr unsigned TILE_BYTES = TILE_ROWS * CHUNK;

/* ---- what is decoded ---- */

struct Plan {
    unsigned n, k;
    unsigned tile_k; /* elements in 16 bytes */
    unsigned n_d;
    Unpack<float> int_a, int_b;
    Unpack<double> float_a, float_b;
    bool a_in_registers;
    bool f16_accumulators, saturate;
    bool negate_a, negate_b;
    bool mn_major_a, mn_major_b; /* the "transposed" forms: consecutive elements go along M or N */
};

/* Operands: D (n_d), A (four registers or a descriptor), the descriptor of B, scale-d. */
struct Operands {
    const Opnd *d, *a, *b, *scale_d;
    Operands(const Inst &i, const Plan &p)
    {
        d = i.op;
        a = d + p.n_d;
        b = a + (p.a_in_registers ? 4 : 1);
        scale_d = b + 1;
    }
};

const Plan &plan_of(const Inst &i)
{
    return *static_cast<const Plan *>(i.extra);
}

bool checks(const Warp &w)
{
    return w.block->grid->launch.options.check;
}

/* ---- matrices in shared memory ---- */

/* A descriptor: bits 0-13 start address, 16-29 leading byte offset, 32-45 stride byte offset (all in units of 16
 * bytes), 49-51 base offset, 62-63 swizzle (0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes).
 *
 * K-major, row r (of M or N), 16-byte chunk c of K:
 *     no swizzle: start + r%8 * 16 + r/8 * stride + c * leading
 *     span S:     start + r%8 * S  + r/8 * stride + c * 16
 * MN-major, chunk m of 8 elements along M or N, element k of K:
 *     no swizzle: start + m * stride + k%8 * 16 + k/8 * leading
 *     span S:     start + m % (S/16) * 16 + m / (S/16) * leading + k%8 * S + k/8 * stride
 * The swizzle then works on the address, whose pattern begins `base offset` lines of 128 bytes behind a multiple of its
 * size. */
class Matrix
{
  public:
    Matrix(uint64_t descriptor)
        : start_(field(descriptor, 0)), leading_(field(descriptor, 16)), stride_(field(descriptor, 32)),
          base_(uint32_t(descriptor >> 49 & 7) * 128)
    {
        static const Swizzle swizzles[] = {Swizzle::none, Swizzle::b128, Swizzle::b64, Swizzle::b32};
        swizzle_ = swizzles[descriptor >> 62];
    }
    uint32_t k_major(unsigned row, unsigned chunk) const
    {
        uint32_t span = swizzle_span(swizzle_);
        return swizzled(start_ + row % 8 * (span ? span : CHUNK) + row / 8 * stride_ +
                        chunk * (span ? CHUNK : leading_));
    }
    uint32_t mn_major(unsigned m, unsigned k) const
    {
        uint32_t span = swizzle_span(swizzle_), wide = span / CHUNK;
        if (!span)
            return start_ + m * stride_ + k % 8 * CHUNK + k / 8 * leading_;
        return swizzled(start_ + m % wide * CHUNK + m / wide * leading_ + k % 8 * span + k / 8 * stride_);
    }

  private:
    static uint32_t field(uint64_t descriptor, unsigned bit) { return uint32_t(descriptor >> bit & 0x3fff) << 4; }
    uint32_t swizzled(uint32_t address) const { return swizzle_address(swizzle_, address - base_) + base_; }

    uint32_t start_, leading_, stride_, base_;
    Swizzle swizzle_;
};

/* All lanes have to give the same descriptor. */
uint64_t uniform(const Warp &w, const Opnd &o)
{
    const uint64_t *d = w.in<uint64_t>(o);
    for (unsigned l = 1; l < WARP_SIZE && checks(w); l++)
        if (d[l] != d[0])
            fault(FaultKind::invalid_descriptor, int(l), "lane %u gives the descriptor 0x%llx, lane 0 gives 0x%llx", l,
                  (unsigned long long)d[l], (unsigned long long)d[0]);
    return d[0];
}

/* Copies `n` chunks to out[chunk], from the shared addresses that address(chunk) names.  Each batch of 32 chunks goes
 * through the memory checks as if every lane read one. */
template <class F>
void read_chunks(Warp &w, unsigned n, uint8_t *out, F address)
{
    for (unsigned first = 0; first < n; first += WARP_SIZE) {
        unsigned count = std::min(n - first, WARP_SIZE);
        uint64_t from[WARP_SIZE] = {};
        uint8_t *p[WARP_SIZE];
        for (unsigned l = 0; l < count; l++)
            from[l] = address(first + l);
        Access a{Space::shared, Use::read, CHUNK};
        a.count = false;
        resolve(w, a, from, count == WARP_SIZE ? ALL_LANES : (1u << count) - 1, p);
        for (unsigned l = 0; l < count; l++)
            memcpy(out + (first + l) * CHUNK, p[l], CHUNK);
    }
}

/* Tiles of eight rows by 16 bytes of K: tile (row / 8, chunk) at tiles + (row / 8 * CHUNKS + chunk) * TILE_BYTES. */
void read_k_major(Warp &w, const Matrix &m, unsigned first_row, unsigned rows, uint8_t *tiles)
{
    read_chunks(w, rows * CHUNKS, tiles, [&](unsigned x) {
        unsigned tile = x / TILE_ROWS;
        return m.k_major(first_row + tile / CHUNKS * TILE_ROWS + x % TILE_ROWS, tile % CHUNKS);
    });
}

/* 16-bit elements: a chunk is 8 rows of one k; eight of them, transposed, are a tile. */
void read_mn_major(Warp &w, const Matrix &m, unsigned first_row, unsigned rows, uint8_t *tiles)
{
    uint8_t chunks[MAX_N * CHUNKS * CHUNK];
    read_chunks(w, rows * CHUNKS, chunks, [&](unsigned x) {
        unsigned tile = x / 8, k = tile % CHUNKS * 8 + x % 8;
        return m.mn_major(first_row / TILE_ROWS + tile / CHUNKS, k);
    });
    constexpr unsigned SIDE = 8;
    for (unsigned tile = 0; tile < rows / TILE_ROWS * CHUNKS; tile++) {
        uint16_t in[SIDE][SIDE], out[SIDE][SIDE];
        memcpy(in, chunks + tile * TILE_BYTES, sizeof in);
        for (unsigned r = 0; r < SIDE; r++)
            for (unsigned c = 0; c < SIDE; c++)
                out[r][c] = in[c][r];
        memcpy(tiles + tile * TILE_BYTES, out, sizeof out);
    }
}

void read_matrix(Warp &w, const Opnd &descriptor, bool mn_major, unsigned first_row, unsigned rows, uint8_t *tiles)
{
    Matrix m(uniform(w, descriptor));
    (mn_major ? read_mn_major : read_k_major)(w, m, first_row, rows, tiles);
}

/* ---- one instruction ---- */

/* The factors of a warp's part as tiles. */
struct Tiles {
    uint8_t a[WARP_ROWS * CHUNKS * CHUNK], b[MAX_N * CHUNKS * CHUNK];

    Tiles(Warp &w, const Plan &p, const Operands &o)
    {
        if (p.a_in_registers) /* tiles go down the rows first there */
            for (unsigned r = 0; r < 4; r++)
                memcpy(a + (r % 2 * CHUNKS + r / 2) * TILE_BYTES, w.in<uint8_t>(o.a[r]), TILE_BYTES);
        else
            read_matrix(w, *o.a, p.mn_major_a, w.index % WARPS * WARP_ROWS, WARP_ROWS, a);
        read_matrix(w, *o.b, p.mn_major_b, 0, p.n, b);
    }
};

/* Too large for the stack of a handler; one for each host thread. */
template <class T>
struct Workspace {
    T a[WARP_ROWS * MAX_K], columns[MAX_N * MAX_K], b[MAX_K * MAX_N], sum[WARP_ROWS * MAX_N];

    static Workspace &get()
    {
        static thread_local Workspace ws;
        return ws;
    }
    void unpack(const Plan &p, const Tiles &tiles, Unpack<T> unpack_a, Unpack<T> unpack_b)
    {
        unpack_rows(p, tiles.a, WARP_ROWS, unpack_a, p.negate_a, a);
        unpack_rows(p, tiles.b, p.n, unpack_b, p.negate_b, columns);
        transpose(columns, b, p.n, p.k);
    }

  private:
    static void unpack_rows(const Plan &p, const uint8_t *tiles, unsigned rows, Unpack<T> f, bool negate, T *out)
    {
        for (unsigned tile = 0; tile < rows / TILE_ROWS * CHUNKS; tile++)
            f(tiles + tile * TILE_BYTES, out + tile / CHUNKS * TILE_ROWS * p.k + tile % CHUNKS * p.tile_k, p.k);
        for (unsigned e = 0; negate && e < rows * p.k; e++)
            out[e] = -out[e];
    }
};

void finish_integer(Warp &w, const Plan &p, const Operands &o, bool accumulate, const uint32_t *sum)
{
    uint32_t d[WARP_ROWS * MAX_N] = {};
    if (accumulate)
        load_s32(w, o.d, d, WARP_ROWS, p.n);
    for (unsigned e = 0; e < WARP_ROWS * p.n; e++)
        d[e] = p.saturate
                   ? uint32_t(std::clamp<int64_t>(int64_t(int32_t(d[e])) + int32_t(sum[e]), INT32_MIN, INT32_MAX))
                   : d[e] + sum[e];
    store_s32(w, o.d, d, WARP_ROWS, p.n);
}

void run_integer(Warp &w, const Plan &p, const Operands &o, bool accumulate)
{
    Tiles tiles(w, p, o);
    Workspace<float> &ws = Workspace<float>::get();
    ws.unpack(p, tiles, p.int_a, p.int_b);
    std::fill_n(ws.sum, WARP_ROWS * p.n, 0.0f);
    multiply(ws.a, ws.b, ws.sum, WARP_ROWS, p.n, p.k);
    uint32_t sum[WARP_ROWS * MAX_N];
    for (unsigned e = 0; e < WARP_ROWS * p.n; e++)
        sum[e] = uint32_t(int32_t(ws.sum[e]));
    finish_integer(w, p, o, accumulate, sum);
}

void run_bits(Warp &w, const Plan &p, const Operands &o, bool accumulate)
{
    Tiles tiles(w, p, o);
    constexpr unsigned WORDS = CHUNK / 8;
    uint32_t sum[WARP_ROWS * MAX_N] = {};
    for (unsigned row = 0; row < WARP_ROWS; row++)
        for (unsigned col = 0; col < p.n; col++)
            for (unsigned c = 0; c < CHUNKS; c++) {
                uint64_t a[WORDS], b[WORDS];
                memcpy(a, tiles.a + ((row / 8 * CHUNKS + c) * TILE_ROWS + row % 8) * CHUNK, CHUNK);
                memcpy(b, tiles.b + ((col / 8 * CHUNKS + c) * TILE_ROWS + col % 8) * CHUNK, CHUNK);
                for (unsigned x = 0; x < WORDS; x++)
                    sum[row * p.n + col] += uint32_t(__builtin_popcountll(a[x] & b[x]));
            }
    finish_integer(w, p, o, accumulate, sum);
}

void run_float(Warp &w, const Plan &p, const Operands &o, bool accumulate)
{
    Tiles tiles(w, p, o);
    Workspace<double> &ws = Workspace<double>::get();
    ws.unpack(p, tiles, p.float_a, p.float_b);
    if (accumulate)
        (p.f16_accumulators ? load_f16 : load_f32)(w, o.d, ws.sum, WARP_ROWS, p.n);
    else
        std::fill_n(ws.sum, WARP_ROWS * p.n, 0.0);
    multiply(ws.a, ws.b, ws.sum, WARP_ROWS, p.n, p.k);
    (p.f16_accumulators ? store_f16 : store_f32)(w, o.d, ws.sum, WARP_ROWS, p.n);
}

/* ---- asynchrony ---- */

/* What a warp has issued and not yet waited for. */
class Pending
{
  public:
    static Pending &of(Warp &w)
    {
        if (!w.wgmma)
            w.wgmma = std::make_shared<Pending>();
        return *static_cast<Pending *>(w.wgmma.get());
    }
    bool fenced = false; /* a wgmma.fence has been executed */

    bool has(const Frame *f, uint32_t slot) const
    {
        auto issue_has = [&](const Issue &i) {
            return i.frame.get() == f && std::any_of(i.d, i.d + i.n_d, [&](const Opnd &o) { return o.slot == slot; });
        };
        auto group_has = [&](const Group &g) { return std::any_of(g.begin(), g.end(), issue_has); };
        return group_has(open_) || std::any_of(committed_.begin(), committed_.end(), group_has);
    }
    /* Until it is waited for, D counts as never written. */
    void issue(const std::shared_ptr<Frame> &frame, const Opnd *d, unsigned n_d)
    {
        open_.push_back({frame, d, n_d});
        for (unsigned r = 0; r < n_d; r++)
            frame->defined[d[r].slot] = 0;
    }
    void commit()
    {
        committed_.push_back(std::move(open_));
        open_.clear();
    }
    void wait(size_t left)
    {
        while (committed_.size() > left) {
            Group done = std::move(committed_.front());
            committed_.erase(committed_.begin());
            for (const Issue &i : done)
                for (unsigned r = 0; r < i.n_d; r++)
                    if (!has(i.frame.get(), i.d[r].slot)) /* a later group may be writing it still */
                        i.frame->defined[i.d[r].slot] = ALL_LANES;
        }
    }

  private:
    struct Issue {
        std::shared_ptr<Frame> frame;
        const Opnd *d;
        unsigned n_d;
    };
    using Group = std::vector<Issue>;
    Group open_;
    std::vector<Group> committed_;
};

/* The accumulators are read only if scale-d holds.  Those of an earlier wgmma need not have been waited for. */
void need_accumulators(Warp &w, const Plan &p, const Operands &o, const Pending &pending)
{
    for (unsigned r = 0; r < p.n_d; r++)
        if (Lanes undefined = w.undefined(o.d[r]); undefined && !pending.has(w.frame, o.d[r].slot))
            fault(FaultKind::uninitialized_register, __builtin_ctz(undefined),
                  "accumulator %u was never written, but scale-d says that the product is added to it", r);
}

void need_warpgroup(const Warp &w)
{
    need_whole_warp(w);
    if (w.index / WARPS * WARPS + WARPS > w.block->warps.size())
        fault(FaultKind::missing_lanes, 0, "warp %u belongs to no whole warpgroup: the block has %zu warps", w.index,
              w.block->warps.size());
}

bool scale_d(const Warp &w, const Opnd &o)
{
    Lanes set = w.pred(o) & w.active;
    if (set && set != w.active && checks(w))
        fault(FaultKind::missing_lanes, __builtin_ctz(~set), "scale-d differs between the lanes of the warp");
    return set != 0;
}

template <void (*RUN)(Warp &, const Plan &, const Operands &, bool)>
Step mma_async(Warp &w, const Inst &i)
{
    const Plan &p = plan_of(i);
    const Operands o(i, p);
    need_warpgroup(w);
    bool accumulate = scale_d(w, *o.scale_d);
    if (checks(w)) {
        Pending &pending = Pending::of(w);
        if (!pending.fenced)
            fault(FaultKind::missing_fence, 0, "wgmma.fence has to come before the first wgmma.mma_async");
        if (accumulate)
            need_accumulators(w, p, o, pending);
        RUN(w, p, o, accumulate);
        pending.issue(w.paths[w.current].frame, o.d, p.n_d);
    } else {
        RUN(w, p, o, accumulate);
    }
    count_tensor(w, 2ull * WARP_ROWS * p.n * p.k);
    return Step::next;
}

Step fence(Warp &w, const Inst &)
{
    need_warpgroup(w);
    Pending::of(w).fenced = true;
    return Step::next;
}

Step commit_group(Warp &w, const Inst &)
{
    need_warpgroup(w);
    if (checks(w))
        Pending::of(w).commit();
    return Step::next;
}

Step wait_group(Warp &w, const Inst &i)
{
    need_warpgroup(w);
    if (checks(w))
        Pending::of(w).wait(size_t(i.imm));
    return Step::next;
}

/* ---- building ---- */

struct Variant {
    unsigned k;
    Type a[2]; /* what A and B may be, each on its own */
    Type d[2];
    Exec exec;
};
const Variant variants[] = {
    {16, {Type::f16, Type::f16}, {Type::f16, Type::f32}, mma_async<run_float>},
    {16, {Type::bf16, Type::bf16}, {Type::f32, Type::f32}, mma_async<run_float>},
    {8, {Type::tf32, Type::tf32}, {Type::f32, Type::f32}, mma_async<run_float>},
    {32, {Type::e4m3, Type::e5m2}, {Type::f16, Type::f32}, mma_async<run_float>},
    {32, {Type::s8, Type::u8}, {Type::s32, Type::s32}, mma_async<run_integer>},
    {256, {Type::b1, Type::b1}, {Type::s32, Type::s32}, mma_async<run_bits>},
};

bool one_of(const Type (&types)[2], Type t)
{
    return t == types[0] || t == types[1];
}

const Variant &find_variant(Decode &d, unsigned k, Type dt, Type a, Type b)
{
    for (const Variant &v : variants)
        if (v.k == k && one_of(v.a, a) && one_of(v.a, b) && one_of(v.d, dt))
            return v;
    d.fail("wgmma of k%u with .%s.%s.%s does not exist", k, type_text(dt), type_text(a), type_text(b));
}

void take_shape(Decode &d, unsigned *n, unsigned *k)
{
    for (const std::string &mod : d.src().mods) {
        int used = 0;
        if (sscanf(mod.c_str(), "m64n%uk%u%n", n, k, &used) == 2 && size_t(used) == mod.size() && d.take(mod.c_str()))
            return;
    }
    d.fail("wgmma needs a shape m64nNkK");
}

/* N is a multiple of 8; integer products have multiples of 16 only, and 8 and 24. */
void check_n(Decode &d, unsigned n, bool integer)
{
    bool ok = n >= 8 && n <= MAX_N && n % 8 == 0;
    if (integer && n % 16 != 0)
        ok = n == 8 || n == 24;
    if (!ok)
        d.fail("wgmma with n%u does not exist for these types", n);
}

/* The immediate operand k; an error if it is none of the two values. */
bool is_second(Decode &d, size_t k, int64_t first, int64_t second, const char *name)
{
    const ptx::Operand &o = d.operand(k);
    if (o.kind != ptx::Operand::integer || (int64_t(o.bits) != first && int64_t(o.bits) != second))
        d.fail("%s is the number %d or %d", name, int(first), int(second));
    return int64_t(o.bits) == second;
}

void take_immediates(Decode &d, Plan *p, bool is_16_bit)
{
    p->negate_a = is_second(d, 4, 1, -1, "imm-scale-a");
    p->negate_b = is_second(d, 5, 1, -1, "imm-scale-b");
    if (!is_16_bit)
        return;
    size_t next = 6;
    if (!p->a_in_registers)
        p->mn_major_a = is_second(d, next++, 0, 1, "imm-trans-a");
    p->mn_major_b = is_second(d, next, 0, 1, "imm-trans-b");
}

void build_mma_async(Decode &d, Inst &i)
{
    d.need_exactly(90, 'a');
    if (d.take("sp"))
        d.fail("sparse wgmma is not emulated");
    if (!d.take("sync") || !d.take("aligned"))
        d.fail("wgmma needs .sync.aligned");
    Plan *p = d.extra<Plan>();
    *p = Plan();
    take_shape(d, &p->n, &p->k);
    p->saturate = d.take("satfinite");
    Type dt = d.type(), a = d.type(), b = d.type();
    const Variant &v = find_variant(d, p->k, dt, a, b);
    bool integer = dt == Type::s32;
    check_n(d, p->n, integer);
    if (p->saturate && type_bits(a) != 8)
        d.fail(".satfinite is for products of .s8 and .u8");
    if (a == Type::b1 && (!d.take("and") || !d.take("popc")))
        d.fail("wgmma of .b1 needs .and.popc");

    p->a_in_registers = d.operand(1).kind == ptx::Operand::vector;
    p->tile_k = CHUNK * 8 / type_bits(a);
    p->f16_accumulators = dt == Type::f16;
    p->n_d = p->n * WARP_ROWS / WARP_SIZE / (p->f16_accumulators ? 2 : 1);
    p->int_a = unpack_integer(a);
    p->int_b = unpack_integer(b);
    p->float_a = unpack_float(a);
    p->float_b = unpack_float(b);
    if (!integer)
        take_immediates(d, p, type_bits(a) == 16);

    /* D is both read and written, and its mark as never written is this file's own affair */
    fragment(d, 0, p->n_d, p->f16_accumulators ? Type::b32 : dt, Opnd::copy);
    if (p->a_in_registers)
        fragment(d, 1, 4, Type::b32, Opnd::read);
    else
        d.in(1, Type::b64);
    d.in(2, Type::b64);
    d.pred_in(d.operand(3));
    i.extra = p;
    i.exec = v.exec;
    i.cls = Class::tensor;
    i.together = Together::warp;
}

void build_simple(Decode &d, Inst &i, Exec exec)
{
    d.need_exactly(90, 'a');
    if (!d.take("sync") || !d.take("aligned"))
        d.fail("this instruction needs .sync.aligned");
    i.exec = exec;
    i.cls = Class::tensor;
    i.together = Together::warp;
}

void build_fence(Decode &d, Inst &i)
{
    build_simple(d, i, fence);
}

void build_commit_group(Decode &d, Inst &i)
{
    build_simple(d, i, commit_group);
}

void build_wait_group(Decode &d, Inst &i)
{
    build_simple(d, i, wait_group);
    if (d.operand(0).kind != ptx::Operand::integer)
        d.fail("wgmma.wait_group takes a number");
    i.imm = d.operand(0).bits;
}

const Opcode opcodes[] = {
    {"wgmma.mma_async", build_mma_async},
    {"wgmma.fence", build_fence},
    {"wgmma.commit_group", build_commit_group},
    {"wgmma.wait_group", build_wait_group},
};
} // namespace

bool Warp::wgmma_pending(uint32_t slot) const
{
    return wgmma && static_cast<const Pending *>(wgmma.get())->has(frame, slot);
}

extern const Family wgmma_family = {opcodes, sizeof opcodes / sizeof *opcodes};

} // namespace ptxemu

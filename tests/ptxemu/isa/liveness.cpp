#include "isa/liveness.h"

#include <algorithm>
#include <functional>
#include <queue>

namespace ptxemu
{
namespace
{

class Bits
{
  public:
    explicit Bits(size_t n) : words_((n + 63) / 64) {}
    void set(size_t k) { words_[k / 64] |= 1ull << (k % 64); }
    void clear(size_t k) { words_[k / 64] &= ~(1ull << (k % 64)); }
    bool test(size_t k) const { return words_[k / 64] >> (k % 64) & 1; }
    bool merge(const Bits &o) /* whether something was new */
    {
        uint64_t added = 0;
        for (size_t w = 0; w < words_.size(); w++) {
            added |= o.words_[w] & ~words_[w];
            words_[w] |= o.words_[w];
        }
        return added != 0;
    }
    template <class F>
    void each(F f) const
    {
        for (size_t w = 0; w < words_.size(); w++)
            for (uint64_t rest = words_[w]; rest; rest &= rest - 1)
                f(w * 64 + size_t(__builtin_ctzll(rest)));
    }

  private:
    std::vector<uint64_t> words_;
};

struct BasicBlock {
    uint32_t begin = 0, end = 0; /* instructions, end exclusive */
    std::vector<uint32_t> before;
    Bits wanted; /* at its end */
};

class Analysis
{
  public:
    Analysis(const ptx::Function &f, const std::vector<RegisterUse> &uses) : f_(f), uses_(uses) {}

    Liveness run()
    {
        Liveness l;
        l.intervals.resize(f_.regs.size());
        cut();
        connect();
        propagate();
        for (const BasicBlock &b : blocks_)
            measure(b, &l);
        return l;
    }

  private:
    static bool ends_path(const ptx::Instr &i)
    {
        static const char *const opcodes[] = {"bra", "brx", "ret", "exit", "trap"};
        return i.guard < 0 && std::find(std::begin(opcodes), std::end(opcodes), i.opcode) != std::end(opcodes);
    }
    static bool may_jump(const ptx::Instr &i) { return ends_path(i) || i.opcode == "bra" || i.opcode == "brx"; }

    void each_target(const ptx::Instr &i, const std::function<void(uint32_t)> &target) const
    {
        for (const ptx::Operand &o : i.ops) {
            if (o.kind == ptx::Operand::label)
                target(f_.labels[o.index].at);
            for (const ptx::BranchTable &t : f_.tables)
                if (o.kind == ptx::Operand::symbol && t.name == o.name)
                    for (uint32_t l : t.labels)
                        target(f_.labels[l].at);
        }
    }

    void cut()
    {
        size_t n = f_.body.size();
        std::vector<bool> begins(n + 1);
        for (const ptx::Label &l : f_.labels)
            begins[l.at] = true;
        for (size_t k = 0; k < n; k++)
            if (may_jump(f_.body[k]))
                begins[k + 1] = true;
        block_of_.resize(n + 1);
        for (size_t k = 0; k < n; k++) {
            if (k == 0 || begins[k])
                blocks_.push_back(BasicBlock{uint32_t(k), 0, {}, Bits(f_.regs.size())});
            block_of_[k] = uint32_t(blocks_.size() - 1);
            blocks_.back().end = uint32_t(k + 1);
        }
    }

    void connect()
    {
        auto edge = [&](uint32_t from, uint32_t to_instruction) {
            if (to_instruction < f_.body.size())
                blocks_[block_of_[to_instruction]].before.push_back(from);
        };
        for (uint32_t b = 0; b < blocks_.size(); b++) {
            const ptx::Instr &last = f_.body[blocks_[b].end - 1];
            if (!ends_path(last))
                edge(b, blocks_[b].end);
            if (may_jump(last))
                each_target(last, [&](uint32_t at) { edge(b, at); });
        }
    }

    /* What is wanted before instruction k, from what is wanted behind it.  A guarded write may leave the old value. */
    void step_back(uint32_t k, Bits *wanted) const
    {
        if (f_.body[k].guard < 0)
            for (uint32_t r : uses_[k].writes)
                wanted->clear(r);
        for (uint32_t r : uses_[k].reads)
            wanted->set(r);
    }

    void propagate()
    {
        std::vector<uint32_t> waiting(blocks_.size());
        std::vector<bool> queued(blocks_.size(), true);
        for (uint32_t b = 0; b < waiting.size(); b++) /* the last block first: values are wanted backwards */
            waiting[b] = b;
        while (!waiting.empty()) {
            uint32_t b = waiting.back();
            waiting.pop_back();
            queued[b] = false;
            Bits wanted = blocks_[b].wanted;
            for (uint32_t k = blocks_[b].end; k-- > blocks_[b].begin;)
                step_back(k, &wanted);
            for (uint32_t p : blocks_[b].before)
                if (blocks_[p].wanted.merge(wanted) && !queued[p]) {
                    queued[p] = true;
                    waiting.push_back(p);
                }
        }
    }

    uint32_t units(size_t reg) const
    {
        Type t = f_.regs[reg].type;
        return t == Type::pred ? 0 : (std::max(type_bits(t), 32u) + 31) / 32;
    }

    void measure(const BasicBlock &b, Liveness *l) const
    {
        Bits wanted = b.wanted;
        int64_t live = 0;
        wanted.each([&](size_t r) {
            l->intervals[r].include(b.end - 1);
            live += units(r);
        });
        auto most = [&] { l->most_units = std::max(l->most_units, uint32_t(live)); };
        most();
        for (uint32_t k = b.end; k-- > b.begin;) {
            for (uint32_t r : uses_[k].writes) {
                l->intervals[r].include(k);
                if (f_.body[k].guard < 0 && wanted.test(r)) {
                    live -= units(r);
                    wanted.clear(r);
                }
            }
            for (uint32_t r : uses_[k].reads) {
                l->intervals[r].include(k);
                if (!wanted.test(r)) {
                    live += units(r);
                    wanted.set(r);
                }
            }
            most();
        }
        wanted.each([&](size_t r) { l->intervals[r].include(b.begin); });
    }

    const ptx::Function &f_;
    const std::vector<RegisterUse> &uses_;
    std::vector<BasicBlock> blocks_;
    std::vector<uint32_t> block_of_;
};

} // namespace

Liveness find_liveness(const ptx::Function &f, const std::vector<RegisterUse> &uses)
{
    return Analysis(f, uses).run();
}

std::vector<uint32_t> share_rows(const ptx::Function &f, const Liveness &l, uint32_t *n_rows)
{
    std::vector<uint32_t> row(f.regs.size(), UINT32_MAX), order;
    *n_rows = 0;
    for (uint32_t r = 0; r < f.regs.size(); r++)
        if (f.regs[r].type != Type::pred)
            order.push_back(r);
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t a, uint32_t b) { return l.intervals[a].begin < l.intervals[b].begin; });

    struct Occupied {
        uint32_t until, row;
        bool operator<(const Occupied &o) const
        {
            return until > o.until;
        } /* the queue's top: the first to become free */
    };
    std::priority_queue<Occupied> occupied[4]; /* by width: 16, 32, 64, 128 */
    std::vector<uint32_t> unused[4];
    for (uint32_t r : order) {
        const Interval &i = l.intervals[r];
        unsigned bits = std::max(16u, type_bits(f.regs[r].type));
        unsigned width = bits == 16 ? 0 : bits == 32 ? 1 : bits == 64 ? 2 : 3;
        auto &queue = occupied[width];
        for (; !queue.empty() && queue.top().until < i.begin; queue.pop())
            unused[width].push_back(queue.top().row);
        if (unused[width].empty()) {
            unused[width].push_back(*n_rows);
            *n_rows += bits == 128 ? 2 : 1;
        }
        row[r] = unused[width].back();
        unused[width].pop_back();
        queue.push({i.end, row[r]});
    }
    return row;
}

} // namespace ptxemu

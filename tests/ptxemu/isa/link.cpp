#include "isa/link.h"

#include <algorithm>
#include <cstring>
#include <functional>

namespace ptxemu
{
namespace
{

constexpr size_t NOBODY = SIZE_MAX;
constexpr uint32_t ENDLESS_STACK =
    64 * 1024; /* of recursion, calls through pointers and alloca, whose depth nobody knows */
constexpr uint64_t MOST_FRAME = 1u << 19;  /* local memory that a thread can have on any device: 512 KiB */
constexpr uint64_t MOST_SHARED = 1u << 24; /* bits that a shared address has for the offset */
constexpr uint64_t MOST_PARAMS = 32764;
constexpr uint64_t DYNAMIC_ALIGN = 16;

uint64_t align_up(uint64_t x, uint64_t align)
{
    return (x + align - 1) / align * align;
}

void each_operand(const std::vector<ptx::Operand> &ops, const std::function<void(const ptx::Operand &)> &f)
{
    for (const ptx::Operand &o : ops) {
        f(o);
        each_operand(o.items, f);
    }
}

/* Puts variables one behind the other, each at its alignment; gives where the last one ends. */
uint64_t put(const ptx::Variable &v, uint64_t end, Slot *s)
{
    s->name = v.name;
    s->bytes = uint32_t(v.bytes);
    s->align = uint32_t(v.align);
    end = align_up(end, v.align);
    s->offset = uint32_t(end);
    return end + v.bytes;
}

/* A sentence with one name in it. */
[[noreturn]] void error(uint32_t line, const char *sentence, const std::string &name)
{
    throw ptx::Error(format("line %u: ", line) + format(sentence, name.c_str()));
}

} // namespace

Linker::Linker(ptx::Module &&m, unsigned sm, GlobalAllocator &globals, Module &out)
    : m_(std::move(m)), sm_(sm), globals_(globals), out_(out)
{
}

void Linker::run()
{
    check_target();
    out_.files = m_.files;
    out_.sm = m_.sm;
    out_.sm_suffix = m_.sm_suffix;
    make_functions();
    for (auto &f : out_.functions) {
        lay_out_params(*f);
        lay_out_frame(*f);
        read_directives(*f);
    }
    place_globals(m_.variables, "");
    for (auto &f : out_.functions)
        place_globals(f->ast.locals, f->name);
    build_call_graph();
    lay_out_shared();
    for (const ptx::Variable &v : m_.variables)
        initialize(v, "");
    for (auto &f : out_.functions)
        for (const ptx::Variable &v : f->ast.locals)
            initialize(v, f->name);
    std::vector<int> state(out_.functions.size());
    for (size_t f = 0; f < out_.functions.size(); f++) {
        bool endless = false;
        stack(f, &state, &endless);
    }
}

void Linker::check_target() const
{
    bool same = m_.sm_suffix == 'a' ? m_.sm == sm_ : m_.sm_suffix == 'f' ? m_.sm / 10 == sm_ / 10 : true;
    if (m_.sm > sm_ || !same)
        throw ptx::Error(format("line 2: the module is made for sm_%u%.1s, the device is sm_%u", m_.sm,
                                m_.sm_suffix ? &m_.sm_suffix : "", sm_));
}

void Linker::make_functions()
{
    for (ptx::Function &f : m_.functions) {
        if (f.is_declaration)
            continue;
        index_[f.name] = out_.functions.size();
        out_.functions.push_back(std::make_unique<Function>());
        Function &made = *out_.functions.back();
        made.name = f.name;
        made.is_entry = f.is_entry;
        made.ast = std::move(f);
        f.name = made.name; /* the list keeps the names: declared() looks there */
        out_.by_name[made.name] = &made;
        auto names = std::make_shared<FunctionNames>();
        local_[&made] = names.get();
        made.extras.push_back(names);
    }
    for (auto &f : out_.functions) {
        Place p;
        p.kind = Place::function;
        p.fn = f.get();
        names_[f->name] = p;
    }
    for (auto &a : m_.aliases) {
        out_.by_name[a.first] = out_.by_name.at(a.second);
        names_[a.first] = names_[a.second];
    }
}

/* ---- variables ---- */

void Linker::place_globals(const std::vector<ptx::Variable> &variables, const std::string &owner)
{
    for (const ptx::Variable &v : variables) {
        bool lives_on_device = v.space == Space::global || v.space == Space::constant;
        if (!owner.empty() && !lives_on_device)
            continue;
        Place p;
        p.space = v.space;
        if (v.space == Space::shared) {
            p.kind = v.is_extern ? Place::dynamic : Place::memory; /* lay_out_shared knows the address */
        } else if (v.is_extern) {
            p.kind = Place::missing;
        } else {
            std::string name = owner.empty() ? v.name : owner + "." + v.name;
            p.kind = Place::memory;
            p.address = globals_.allocate(name, v.space, v.bytes, v.align);
            if (!p.address)
                error(v.line, "there is no device memory for the variable `%s`", name);
            out_.globals[name] = Global{name, v.space, p.address, v.bytes};
        }
        (owner.empty() ? names_ : local_[out_.by_name[owner]]->names)[v.name] = p;
    }
}

void Linker::initialize(const ptx::Variable &v, const std::string &owner)
{
    if ((v.space != Space::global && v.space != Space::constant) || v.is_extern)
        return;
    const Function *fn = owner.empty() ? nullptr : function(owner);
    uint8_t *to = reinterpret_cast<uint8_t *>((fn ? local_[fn]->names : names_)[v.name].address);
    memset(to, 0, v.bytes);
    std::copy_n(v.init.begin(), std::min(v.init.size(), v.bytes), to);
    for (const ptx::Reloc &r : v.relocs)
        relocate(v, r, fn, to + r.at);
}

void Linker::relocate(const ptx::Variable &v, const ptx::Reloc &r, const Function *fn, uint8_t *to) const
{
    Place p = fn ? find(*fn, r.symbol) : Place{};
    auto it = names_.find(r.symbol);
    if (!fn && it != names_.end())
        p = it->second;
    if (p.kind == Place::dynamic)
        error(r.line, "the initialiser of `%s` holds an address of dynamic shared memory", v.name);
    if (p.kind != Place::memory && p.kind != Place::function)
        error(r.line, "the initialiser of a variable names `%s`, which is not defined", r.symbol);
    uint64_t address = p.kind == Place::function ? reinterpret_cast<uint64_t>(p.fn) : p.address;
    if (r.generic && p.space == Space::shared)
        address += SHARED_WINDOW;
    address += uint64_t(r.addend);
    address = (address & r.mask) >> __builtin_ctzll(r.mask);
    if (r.bytes < 8 && address >> (8 * r.bytes))
        error(r.line, "the initialiser of `%s` holds an address that does not fit into its element", v.name);
    memcpy(to, &address, r.bytes);
}

/* ---- functions ---- */

void Linker::lay_out_params(Function &f)
{
    auto &names = local_[&f]->names;
    uint64_t end = 0;
    auto lay_out = [&](const std::vector<ptx::Variable> &from, std::vector<Slot> *to) {
        to->reserve(from.size()); /* Place points into it */
        for (const ptx::Variable &v : from) {
            to->emplace_back();
            end = put(v, end, &to->back());
            Place p;
            p.kind = f.is_entry ? Place::param : Place::frame;
            p.space = f.is_entry ? Space::param : Space::local;
            p.slot = &to->back();
            names[v.name] = p;
        }
        if (end > MOST_PARAMS)
            error(f.ast.line, "the parameters of `%s` are more than 32764 bytes", f.name);
    };
    lay_out(f.ast.ret, &f.ret);
    lay_out(f.ast.params, &f.params);
    (f.is_entry ? f.param_bytes : f.frame_bytes) = uint32_t(end);
}

void Linker::lay_out_frame(Function &f)
{
    FunctionNames &l = *local_[&f];
    uint64_t end = f.frame_bytes;
    for (const ptx::Variable &v : f.ast.locals) {
        if (v.space != Space::local && v.space != Space::param)
            continue;
        Place p;
        p.kind = Place::frame;
        p.space = Space::local;
        l.slots.emplace_back();
        if (v.bytes > MOST_FRAME)
            error(f.ast.line, "the local variables of `%s` are larger than a thread's local memory", f.name);
        end = put(v, end, &l.slots.back());
        p.slot = &l.slots.back();
        l.names[v.name] = p;
        if (end > MOST_FRAME)
            error(f.ast.line, "the local variables of `%s` are larger than a thread's local memory", f.name);
    }
    f.frame_bytes = uint32_t(align_up(end, 16));
}

void Linker::read_directives(Function &f)
{
    auto dims = [&](const char *name, Dim3 *d) {
        auto it = f.ast.directives.find(name);
        if (it == f.ast.directives.end())
            return false;
        uint32_t *to[] = {&d->x, &d->y, &d->z};
        for (size_t k = 0; k < it->second.size(); k++)
            *to[k] = it->second[k];
        return true;
    };
    Dim3 most;
    f.has_required_block = dims("reqntid", &f.required_block);
    f.has_required_cluster = dims("reqnctapercluster", &f.required_cluster);
    if (f.has_required_block)
        f.max_threads = uint32_t(f.required_block.count());
    else if (dims("maxntid", &most))
        f.max_threads = uint32_t(most.count());
}

Place Linker::find(const Function &fn, const std::string &name) const
{
    const std::map<std::string, Place> &own = local_.at(&fn)->names;
    auto it = own.find(name);
    Place p;
    if (it != own.end())
        p = it->second;
    else if ((it = names_.find(name)) != names_.end())
        p = it->second;
    if (p.kind == Place::dynamic)
        p.address = fn.dynamic_shared_at;
    return p;
}

const Function *Linker::function(const std::string &name) const
{
    auto it = out_.by_name.find(name);
    return it == out_.by_name.end() ? nullptr : it->second;
}

bool Linker::declared(const std::string &name) const
{
    return !function(name) && std::any_of(m_.functions.begin(), m_.functions.end(),
                                          [&](const ptx::Function &f) { return f.name == name; });
}

/* ---- who calls whom ---- */

void Linker::build_call_graph()
{
    size_t n = out_.functions.size();
    callees_.resize(n);
    mentions_.resize(n);
    calls_pointers_.resize(n);
    uses_dynamic_.resize(n);
    address_taken_.assign(n, false);
    auto take_address = [&](const std::string &name) {
        if (const Function *f = function(name))
            address_taken_[index_.at(f->name)] = true;
    };
    for (size_t f = 0; f < n; f++)
        for (const ptx::Instr &i : out_.functions[f]->ast.body) {
            /* `call (r), f, (a)`: the callee is the first operand that is not a list. */
            auto is_callee = [](const ptx::Operand &o) { return o.kind != ptx::Operand::list; };
            auto callee = i.opcode == "call" ? std::find_if(i.ops.begin(), i.ops.end(), is_callee) : i.ops.end();
            if (callee != i.ops.end() && callee->kind == ptx::Operand::reg)
                calls_pointers_[f] = true;
            each_operand(i.ops, [&](const ptx::Operand &o) {
                if (o.kind != ptx::Operand::symbol)
                    return;
                const Function *called = callee != i.ops.end() && &o == &*callee ? function(o.name) : nullptr;
                if (called)
                    callees_[f].push_back(index_.at(called->name));
                else
                    take_address(o.name);
                Place p = find(*out_.functions[f], o.name);
                if (p.space == Space::shared && p.kind == Place::memory)
                    mentions_[f].insert(o.name);
                if (p.kind == Place::dynamic)
                    uses_dynamic_[f] = true;
            });
        }
    for (const ptx::Variable &v : m_.variables)
        for (const ptx::Reloc &r : v.relocs)
            take_address(r.symbol);
    for (size_t f = 0; f < n; f++)
        for (const ptx::Variable &v : out_.functions[f]->ast.locals)
            uses_dynamic_[f] = uses_dynamic_[f] || (v.space == Space::shared && v.is_extern);
}

void Linker::mark_reached(size_t from, Set *seen) const
{
    std::vector<size_t> waiting{from};
    while (!waiting.empty()) {
        size_t f = waiting.back();
        waiting.pop_back();
        if ((*seen)[f])
            continue;
        (*seen)[f] = true;
        waiting.insert(waiting.end(), callees_[f].begin(), callees_[f].end());
        for (size_t g = 0; calls_pointers_[f] && g < address_taken_.size(); g++)
            if (address_taken_[g])
                waiting.push_back(g);
    }
}

/* ---- shared memory ----
 *
 * Code is decoded once, so that a variable that several kernels reach has one address in all of them; variables that no kernel
 * uses together may overlap.  Each goes to the first place that is free in all kernels that reach it. */

void Linker::place_shared(SharedVariable *s, const std::vector<SharedVariable> &placed)
{
    auto meets = [&](const SharedVariable &o) {
        for (size_t r = 0; r < s->roots.size(); r++)
            if (s->roots[r] && o.roots[r])
                return true;
        return false;
    };
    for (bool moved = true; moved;) {
        moved = false;
        for (const SharedVariable &o : placed)
            if (s->at < o.at + o.v->bytes && o.at < s->at + s->v->bytes && meets(o)) {
                s->at = align_up(o.at + o.v->bytes, s->v->align);
                moved = true;
            }
    }
    if (s->at + s->v->bytes > MOST_SHARED)
        error(s->v->line, "shared variable `%s` lies beyond what a shared address can reach", s->v->name);
}

void Linker::lay_out_shared()
{
    size_t n = out_.functions.size();
    std::vector<size_t> roots;
    std::vector<Set> reach;
    Set covered(n);
    for (int entries = 1; entries >= 0; entries--) /* functions that no kernel reaches are laid out like kernels */
        for (size_t f = 0; f < n; f++)
            if (entries ? out_.functions[f]->is_entry : !covered[f]) {
                roots.push_back(f);
                reach.emplace_back(n);
                mark_reached(f, &reach.back());
                for (size_t g = 0; g < n; g++)
                    covered[g] = covered[g] || reach.back()[g];
            }

    std::vector<SharedVariable> placed;
    auto place = [&](const ptx::Variable &v, size_t owner, const Set &users) {
        if (v.space != Space::shared || v.is_extern)
            return;
        SharedVariable s{&v, owner, Set(roots.size()), 0};
        for (size_t r = 0; r < roots.size(); r++)
            for (size_t f = 0; f < n; f++)
                s.roots[r] = s.roots[r] || (users[f] && reach[r][f]);
        place_shared(&s, placed);
        placed.push_back(s);
        Place p;
        p.kind = Place::memory;
        p.space = Space::shared;
        p.address = s.at;
        (owner == NOBODY ? names_ : local_[out_.functions[owner].get()]->names)[v.name] = p;
        for (size_t r = 0; r < roots.size(); r++)
            if (s.roots[r]) {
                Function &f = *out_.functions[roots[r]];
                f.shared_bytes = std::max(f.shared_bytes, uint32_t(s.at + v.bytes));
            }
    };
    for (const ptx::Variable &v : m_.variables) {
        Set users(n);
        for (size_t f = 0; f < n; f++)
            users[f] = mentions_[f].count(v.name) != 0;
        place(v, NOBODY, users);
    }
    for (size_t f = 0; f < n; f++) {
        Set users(n);
        users[f] = true;
        for (const ptx::Variable &v : out_.functions[f]->ast.locals)
            place(v, f, users);
    }
    lay_out_dynamic(roots, reach);
}

/* Dynamic shared memory begins behind the static variables; kernels that share a device function which uses it must agree
 * where, since the function's code has one address in it. */
void Linker::lay_out_dynamic(const std::vector<size_t> &roots, const std::vector<Set> &reach)
{
    uint64_t align = DYNAMIC_ALIGN;
    auto widen = [&](const std::vector<ptx::Variable> &variables) {
        for (const ptx::Variable &v : variables)
            if (v.space == Space::shared && v.is_extern)
                align = std::max<uint64_t>(align, v.align);
    };
    widen(m_.variables);
    for (auto &f : out_.functions)
        widen(f->ast.locals);
    for (size_t r : roots)
        out_.functions[r]->dynamic_shared_at = uint32_t(align_up(out_.functions[r]->shared_bytes, align));
    for (bool changed = true; changed;) {
        changed = false;
        for (size_t f = 0; f < out_.functions.size(); f++) {
            uint32_t &at = out_.functions[f]->dynamic_shared_at;
            for (size_t r = 0; r < roots.size() && uses_dynamic_[f]; r++) {
                uint32_t &root_at = out_.functions[roots[r]]->dynamic_shared_at;
                if (reach[r][f] && at != root_at) {
                    at = root_at = std::max(at, root_at);
                    changed = true;
                }
            }
        }
    }
    for (auto &f : out_.functions) /* extern variables declared inside a function */
        for (const ptx::Variable &v : f->ast.locals)
            if (v.space == Space::shared && v.is_extern) {
                Place p;
                p.kind = Place::dynamic;
                p.space = Space::shared;
                local_[f.get()]->names[v.name] = p;
            }
}

/* ---- local memory ---- */

/* state: 0 not seen, 1 being walked (meeting it again is recursion), 2 done; endless: something below has no known depth. */
void Linker::stack(size_t f, std::vector<int> *state, bool *endless)
{
    Function &fn = *out_.functions[f];
    if ((*state)[f] == 1)
        *endless = true;
    if ((*state)[f])
        return;
    (*state)[f] = 1;
    uint32_t deepest = 0;
    auto is_alloca = [](const ptx::Instr &i) { return i.opcode == "alloca"; };
    bool below_endless = calls_pointers_[f] || std::any_of(fn.ast.body.begin(), fn.ast.body.end(), is_alloca);
    for (size_t g : callees_[f]) {
        stack(g, state, &below_endless);
        deepest = std::max(deepest, out_.functions[g]->stack_bytes);
    }
    if (below_endless) {
        deepest = std::max(deepest, ENDLESS_STACK);
        *endless = true;
    }
    /* No thread gets more than that; a call that goes beyond is a fault. */
    fn.stack_bytes = uint32_t(std::min<uint64_t>(uint64_t(fn.frame_bytes) + deepest, MOST_FRAME));
    (*state)[f] = 2;
}

} // namespace ptxemu

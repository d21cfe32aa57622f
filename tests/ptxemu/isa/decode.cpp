/* From the text of instructions to Inst: the class that builders work with, and the pass over a function's body. */
#include "isa/decode.h"

#include <algorithm>
#include <cstdarg>
#include <cstring>
#include <unordered_map>

#include "isa/link.h"
#include "isa/liveness.h"
#include "isa/rewrite.h"

namespace ptxemu
{
namespace
{

std::string mnemonic(const ptx::Instr &i)
{
    std::string s = i.opcode;
    for (const std::string &m : i.mods)
        s += "." + m;
    return s;
}

constexpr uint32_t REGISTERS_OF_SM = 65536;
constexpr uint32_t MOST_REGISTERS = 255; /* of a thread, on every device */

unsigned rows_of(unsigned bits)
{
    return bits == 128 ? 2 : 1;
}

/* Registers narrower than 16 bits are kept as 16-bit ones. */
unsigned kept_bits(Type t)
{
    return std::max(16u, type_bits(t));
}

} // namespace

/* The function being decoded, and the operands of its present instruction. */
struct Decode::State {
    State(const Linker &l, Function &f) : linker(l), fn(f) {}
    const Linker &linker;
    Function &fn;
    std::vector<Opnd> registers; /* by index in ast.regs */
    std::unordered_map<std::string, uint32_t> pool;
    std::vector<Opnd> ops;
    Inst *inst = nullptr;

    /* Rows as shared, or one for every register; see decode_function. */
    void number_registers(const std::vector<uint32_t> *rows, uint32_t n_rows)
    {
        fn.n_rows = n_rows;
        fn.n_preds = 0;
        fn.register_slots.clear();
        for (size_t r = 0; r < fn.ast.regs.size(); r++) {
            Opnd o;
            if (fn.ast.regs[r].type == Type::pred) {
                o.kind = Opnd::pred;
                o.slot = fn.n_preds++;
            } else {
                o.kind = Opnd::reg;
                o.bits = uint8_t(kept_bits(fn.ast.regs[r].type));
                o.slot = rows ? (*rows)[r] : fn.n_rows;
                fn.n_rows += rows ? 0 : rows_of(o.bits);
            }
            registers.push_back(o);
            fn.register_slots.push_back(o.slot);
        }
    }

    /* A constant of 16 to 128 bits, the same in all lanes. */
    uint32_t pooled(const void *value, unsigned bytes)
    {
        std::string key(static_cast<const char *>(value), bytes);
        auto found = pool.emplace(key, uint32_t(fn.constants.size()));
        if (!found.second)
            return found.first->second;
        uint8_t lanes[WARP_SIZE * 16];
        for (unsigned l = 0; l < WARP_SIZE; l++)
            memcpy(lanes + l * bytes, value, bytes);
        for (unsigned k = 0; k < rows_of(bytes * 8); k++) {
            fn.constants.emplace_back();
            Row &row = fn.constants.back();
            memset(row.bytes, 0, sizeof row.bytes);
            memcpy(row.bytes, lanes + k * sizeof row.bytes, std::min<size_t>(sizeof row.bytes, bytes * WARP_SIZE));
        }
        return found.first->second;
    }

    void begin(const ptx::Instr &src, Inst *i)
    {
        ops.clear();
        inst = i;
        i->source = &src;
        i->loc = src.loc;
        i->guarded = src.guard >= 0;
        i->guard_negate = src.guard_negate;
        if (i->guarded)
            i->guard = registers[size_t(src.guard)].slot;
    }

    void end()
    {
        fn.opnds.push_back(std::make_unique<Opnd[]>(ops.size()));
        std::copy(ops.begin(), ops.end(), fn.opnds.back().get());
        inst->op = fn.opnds.back().get();
        inst->n_op = uint16_t(ops.size());
        inst->touches_undefined = inst->guarded || std::any_of(ops.begin(), ops.end(), [](const Opnd &o) {
                                      return o.kind == Opnd::reg || o.kind == Opnd::pred;
                                  });
    }
};

Decode::Decode(State &s, const ptx::Instr &i) : s_(s), instr_(&i) {}
Decode::~Decode() = default;

/* ---- the instruction's text ---- */

bool Decode::take(const char *mod)
{
    for (size_t k = 0; k < instr_->mods.size(); k++)
        if (!(taken_ >> k & 1) && instr_->mods[k] == mod) {
            taken_ |= 1ull << k;
            return true;
        }
    return false;
}

int Decode::take_one_of(std::initializer_list<const char *> mods)
{
    int k = 0;
    for (const char *m : mods) {
        if (take(m))
            return k;
        k++;
    }
    return -1;
}

bool Decode::take_type(Type *t)
{
    for (size_t k = 0; k < instr_->mods.size(); k++)
        if (!(taken_ >> k & 1) && type_from_text(instr_->mods[k].c_str(), t)) {
            taken_ |= 1ull << k;
            return true;
        }
    return false;
}

Type Decode::type()
{
    Type t = Type::none;
    if (!take_type(&t))
        fail("a type is missing");
    return t;
}

bool Decode::has(const char *mod) const
{
    for (size_t k = 0; k < instr_->mods.size(); k++)
        if (!(taken_ >> k & 1) && instr_->mods[k] == mod)
            return true;
    return false;
}

bool Decode::all_taken() const
{
    return taken_ == (instr_->mods.size() == 64 ? ~0ull : (1ull << instr_->mods.size()) - 1);
}

const ptx::Operand &Decode::operand(size_t k)
{
    if (k >= instr_->ops.size())
        fail("operand %zu is missing", k + 1);
    asked_ = std::max(asked_, k + 1);
    return instr_->ops[k];
}

void Decode::fail(const char *fmt, ...) const
{
    char what[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    throw ptx::Error(format("line %u: `%s`: %s", instr_->loc.ptx_line, mnemonic(*instr_).c_str(), what));
}

void Decode::unknown() const
{
    throw ptx::Error(format("line %u: `%s` is not an instruction this emulator knows", instr_->loc.ptx_line,
                            mnemonic(*instr_).c_str()));
}

void Decode::need_sm(unsigned sm) const
{
    if (s_.linker.source().sm < sm)
        fail("needs .target sm_%u or higher, the module has sm_%u", sm, s_.linker.source().sm);
    if (s_.linker.sm() < sm)
        fail("needs a device of sm_%u or higher, this one is sm_%u", sm, s_.linker.sm());
}

void Decode::need_exactly(unsigned sm, char suffix) const
{
    const ptx::Module &m = s_.linker.source();
    if (m.sm != sm || m.sm_suffix != suffix)
        fail("needs .target sm_%u%c", sm, suffix);
    if (s_.linker.sm() != sm)
        fail("needs a device of sm_%u, this one is sm_%u", sm, s_.linker.sm());
}

/* ---- operands ---- */

void Decode::add(Opnd o)
{
    s_.ops.push_back(o);
}

Opnd Decode::constant(uint64_t bits, Type t)
{
    Opnd o;
    o.kind = Opnd::constant;
    o.bits = uint8_t(kept_bits(t));
    unsigned width = type_bits(t);
    if (width < 64) /* the row of an 8-bit value holds it as its type extends it: handlers read 16 bits */
        bits = is_signed(t) ? uint64_t(int64_t(bits << (64 - width)) >> (64 - width)) : bits & ((1ull << width) - 1);
    uint64_t wide[2] = {bits, t == Type::b128 || !is_signed(t) ? 0 : uint64_t(int64_t(bits) >> 63)};
    o.slot = s_.pooled(wide, o.bits / 8);
    return o;
}

Opnd Decode::temporary(Type t)
{
    Opnd o;
    o.kind = Opnd::reg;
    o.bits = uint8_t(kept_bits(t));
    o.slot = s_.fn.n_rows;
    s_.fn.n_rows += rows_of(o.bits);
    return o;
}

/* The bits of an immediate for an operand of type t. */
uint64_t Decode::immediate(const ptx::Operand &o, Type t) const
{
    unsigned width = type_bits(t);
    TypeKind kind = type_kind(t);
    if (o.kind == ptx::Operand::integer) {
        if (kind == TypeKind::float_ && width >= 32 && t != Type::f16x2 && t != Type::bf16x2 && t != Type::tf32)
            fail("an integer stands where a .%s is needed", type_text(t));
        return o.bits;
    }
    if (kind != TypeKind::float_ && kind != TypeKind::bits)
        fail("a real number stands where a .%s is needed", type_text(t));
    double d;
    memcpy(&d, &o.bits, sizeof d);
    float f = float(d);
    uint32_t single = o.single;
    if (!o.is_single)
        memcpy(&single, &f, sizeof f);
    if (width == 64)
        return o.bits;
    if (width != 32)
        fail("a real number stands where a .%s is needed", type_text(t));
    return single;
}

/* The address of a symbol that does not change from launch to launch. */
uint64_t Decode::symbol_address(const ptx::Operand &o) const
{
    Place p = s_.linker.find(s_.fn, o.name);
    switch (p.kind) {
    case Place::memory:
    case Place::dynamic:
        return p.address + uint64_t(o.offset);
    case Place::function:
        return reinterpret_cast<uint64_t>(p.fn) + uint64_t(o.offset);
    case Place::frame:
    case Place::param:
        fail("the address of `%s` can only be taken with mov", o.name.c_str());
    case Place::missing:
        fail("variable `%s` is declared .extern, but not defined in this module", o.name.c_str());
    case Place::absent:
        break;
    }
    if (s_.linker.declared(o.name))
        fail("function `%s` is declared, but not defined in this module", o.name.c_str());
    fail("`%s` is not declared", o.name.c_str());
}

Opnd Decode::register_operand(const ptx::Operand &o, Type t, bool wider) const
{
    Opnd r = s_.registers[o.index];
    const ptx::Register &named = s_.fn.ast.regs[o.index];
    if (r.kind == Opnd::pred)
        fail("the predicate %s stands where a .%s is needed", named.name.c_str(), type_text(t));
    bool narrow = type_bits(t) < 16; /* 8-bit types live in wider registers */
    if (wider || narrow ? r.bits < kept_bits(t) : r.bits != type_bits(t))
        fail("register %s of type .%s does not fit type .%s", named.name.c_str(), type_text(named.type), type_text(t));
    return r;
}

Opnd Decode::in(const ptx::Operand &o, Type t, Opnd::Use use, bool wider)
{
    Opnd r;
    switch (o.kind) {
    case ptx::Operand::reg:
        if (o.negate)
            fail("`!` stands before something that is not a predicate");
        r = register_operand(o, t, wider);
        break;
    case ptx::Operand::integer:
    case ptx::Operand::real:
        r = constant(immediate(o, t), t);
        break;
    case ptx::Operand::symbol: {
        uint64_t address = symbol_address(o);
        if (type_bits(t) < 64 && address >> type_bits(t))
            fail("the address of `%s` does not fit into a .%s", o.name.c_str(), type_text(t));
        r = constant(address, t);
        break;
    }
    case ptx::Operand::sink:
        fail("`_` stands where a value is needed");
    case ptx::Operand::special:
        fail("the special register %%%s cannot stand here", o.name.c_str());
    default:
        fail("an operand is not a register or a constant");
    }
    r.use = use;
    add(r);
    return r;
}

Opnd Decode::out(const ptx::Operand &o, Type t, bool wider)
{
    Opnd r;
    if (o.kind == ptx::Operand::sink)
        r = temporary(t);
    else if (o.kind == ptx::Operand::reg && !o.negate)
        r = register_operand(o, t, wider);
    else
        fail("a destination is not a register");
    r.use = Opnd::write;
    add(r);
    return r;
}

Opnd Decode::pred_in(const ptx::Operand &o, Opnd::Use use)
{
    Opnd r;
    if (o.kind == ptx::Operand::reg) {
        r = s_.registers[o.index];
        if (r.kind != Opnd::pred)
            fail("register %s stands where a predicate is needed", s_.fn.ast.regs[o.index].name.c_str());
        r.negate = o.negate;
    } else if (o.kind == ptx::Operand::integer) {
        r = constant(o.bits ? ALL_LANES : 0, Type::u32);
    } else {
        fail("an operand is not a predicate");
    }
    r.use = use;
    add(r);
    return r;
}

bool Decode::is_predicate(const ptx::Operand &o) const
{
    return o.kind == ptx::Operand::reg && s_.registers[o.index].kind == Opnd::pred;
}

Opnd Decode::pred_out(const ptx::Operand &o)
{
    Opnd r;
    if (o.kind == ptx::Operand::sink) {
        r.kind = Opnd::pred;
        r.slot = s_.fn.n_preds++;
    } else if (o.kind == ptx::Operand::reg && !o.negate) {
        r = s_.registers[o.index];
        if (r.kind != Opnd::pred)
            fail("register %s stands where a predicate is needed", s_.fn.ast.regs[o.index].name.c_str());
    } else {
        fail("a destination is not a predicate");
    }
    r.use = Opnd::write;
    add(r);
    return r;
}

void Decode::address(const ptx::Operand &o, Space space, bool *frame)
{
    *frame = false;
    if (o.kind != ptx::Operand::address)
        fail("an operand is not an address in brackets");
    const ptx::Operand &base = o.items[0];
    Inst &i = *s_.inst;
    i.imm = uint64_t(o.offset);
    i.space = space;
    if (base.kind == ptx::Operand::symbol)
        return symbol_base(base, space, frame);
    /* In device functions parameters are local memory; in a kernel what is stored to is a parameter of a call. */
    if (space == Space::param && (!s_.fn.is_entry || instr_->opcode == "st"))
        i.space = Space::local;
    if (base.kind == ptx::Operand::integer) {
        add(constant(base.bits, Type::u64));
        return;
    }
    if (base.kind != ptx::Operand::reg)
        fail("an address does not begin with a register, a name or a number");
    Opnd r = s_.registers[base.index];
    if (r.kind != Opnd::reg || (r.bits != 32 && r.bits != 64))
        fail("register %s cannot hold an address", s_.fn.ast.regs[base.index].name.c_str());
    add(r);
}

void Decode::symbol_base(const ptx::Operand &base, Space space, bool *frame)
{
    Inst &i = *s_.inst;
    Place p = s_.linker.find(s_.fn, base.name);
    if (p.kind == Place::function)
        fail("`%s` is a function, not a variable", base.name.c_str());
    if (p.kind == Place::frame || p.kind == Place::param) {
        if (space != Space::generic && space != p.space && !(space == Space::param && p.space == Space::local))
            fail("`%s` lies in .%s, not in .%s", base.name.c_str(), space_text(p.space), space_text(space));
        i.space = p.space;
        *frame = p.kind == Place::frame;
        add(constant(p.slot->offset, Type::u64));
        return;
    }
    uint64_t address = symbol_address(base);
    if (space == Space::generic)
        i.space = p.space;
    else if (space != p.space && !(space == Space::shared_cluster && p.space == Space::shared))
        fail("`%s` lies in .%s, not in .%s", base.name.c_str(), space_text(p.space), space_text(space));
    add(constant(address, Type::u64));
}

bool Decode::is_param_symbol(const ptx::Operand &o, uint64_t *offset)
{
    if (o.kind != ptx::Operand::symbol)
        return false;
    Place p = s_.linker.find(s_.fn, o.name);
    if (p.kind != Place::param)
        return false;
    *offset = p.slot->offset + uint64_t(o.offset);
    return true;
}

bool Decode::vector_width(size_t k, unsigned *n)
{
    const ptx::Operand &o = operand(k);
    *n = o.kind == ptx::Operand::vector ? unsigned(o.items.size()) : 1;
    return o.kind == ptx::Operand::vector;
}

/* ---- names ---- */

uint32_t Decode::label(const ptx::Operand &o)
{
    if (o.kind == ptx::Operand::symbol)
        fail("label `%s` is not declared", o.name.c_str());
    if (o.kind != ptx::Operand::label)
        fail("an operand is not a label");
    return s_.fn.ast.labels[o.index].at;
}

const Function *Decode::function(const std::string &name)
{
    static const char *const built_in[] = {"vprintf", "__assertfail", "malloc", "free"};
    if (std::find(std::begin(built_in), std::end(built_in), name) != std::end(built_in) && !s_.linker.function(name))
        return nullptr;
    if (s_.linker.declared(name))
        fail("function `%s` is declared, but not defined in this module", name.c_str());
    return s_.linker.function(name);
}

const Slot *Decode::frame_slot(const std::string &name)
{
    Place p = s_.linker.find(s_.fn, name);
    return p.kind == Place::frame ? p.slot : nullptr;
}

const ptx::BranchTable *Decode::branch_table(const std::string &name)
{
    for (const ptx::BranchTable &t : s_.fn.ast.tables)
        if (t.name == name)
            return &t;
    return nullptr;
}

uint32_t Decode::branch_target(const ptx::BranchTable &t, size_t k)
{
    if (k >= t.labels.size())
        fail("the branch table `%s` has only %zu targets", t.name.c_str(), t.labels.size());
    return s_.fn.ast.labels[t.labels[k]].at;
}

const ptx::Prototype *Decode::prototype(const std::string &name)
{
    for (const ptx::Prototype &p : s_.fn.ast.prototypes)
        if (p.name == name)
            return &p;
    return nullptr;
}

void Decode::keep(std::shared_ptr<void> p)
{
    s_.fn.extras.push_back(std::move(p));
}

/* ---- functions ---- */

void Decode::build(Inst *i)
{
    size_t consumed = 0;
    if (instr_->mods.size() > 64)
        fail("has too many modifiers");
    Build b = find_opcode(*instr_, &consumed);
    if (!b)
        unknown();
    taken_ = consumed == 64 ? ~0ull : (1ull << consumed) - 1;
    s_.begin(*instr_, i);
    b(*this, *i);
    for (size_t k = 0; k < instr_->mods.size(); k++)
        if (!(taken_ >> k & 1))
            fail("the emulator does not know .%s here", instr_->mods[k].c_str());
    if (!counts_itself_ && asked_ < instr_->ops.size())
        fail("has %zu operands, but takes %zu", instr_->ops.size(), asked_);
    s_.end();
}

static const std::string *name_among(const Function &fn, const std::vector<ptx::Operand> &ops, bool pred, uint32_t slot)
{
    for (const ptx::Operand &o : ops) {
        if (o.kind == ptx::Operand::reg && (fn.ast.regs[o.index].type == Type::pred) == pred &&
            fn.register_slots[o.index] == slot)
            return &fn.ast.regs[o.index].name;
        if (const std::string *inner = name_among(fn, o.items, pred, slot))
            return inner;
    }
    return nullptr;
}

std::string register_name(const Function &fn, const Inst &i, bool pred, uint32_t slot)
{
    if (pred && i.guarded && i.guard == slot)
        return fn.ast.regs[size_t(i.source->guard)].name;
    const std::string *name = name_among(fn, i.source->ops, pred, slot);
    return name ? *name : "a temporary register";
}

static void build_all(const Linker &linker, Function &f, const std::vector<uint32_t> *rows, uint32_t n_rows)
{
    Decode::State s(linker, f);
    s.number_registers(rows, n_rows);
    f.code.assign(f.ast.body.size(), Inst{});
    f.constants.clear();
    f.opnds.clear();
    for (size_t k = 0; k < f.code.size(); k++)
        Decode(s, f.ast.body[k]).build(&f.code[k]);
}

/* What the builders said that instructions read and write, when every register has a row of its own. */
static std::vector<RegisterUse> register_uses(const Function &f)
{
    std::vector<uint32_t> register_of(f.n_rows, UINT32_MAX);
    uint32_t row = 0;
    for (uint32_t r = 0; r < f.ast.regs.size(); r++)
        if (f.ast.regs[r].type != Type::pred) {
            register_of[row] = r;
            row += rows_of(kept_bits(f.ast.regs[r].type));
        }
    std::vector<RegisterUse> uses(f.code.size());
    std::vector<uint32_t> in_flight;
    for (size_t k = 0; k < f.code.size(); k++) {
        const ptx::Instr &source = f.ast.body[k];
        bool is_wgmma = source.opcode == "wgmma"; /* accumulators are read and written */
        for (unsigned n = 0; n < f.code[k].n_op; n++) {
            const Opnd &o = f.code[k].op[n];
            uint32_t r = o.kind == Opnd::reg ? register_of[o.slot] : UINT32_MAX;
            if (r == UINT32_MAX)
                continue;
            (o.use != Opnd::write || is_wgmma ? uses[k].reads : uses[k].writes).push_back(r);
            if (is_wgmma)
                in_flight.push_back(r);
        }
    }
    /* wgmma works on its registers until it has been waited for, in a loop by the wait of the next turn. */
    for (size_t k = 0; k < f.code.size(); k++) {
        const ptx::Instr &source = f.ast.body[k];
        if (source.opcode == "wgmma" && !source.mods.empty() && source.mods[0] == "wait_group")
            uses[k].reads = in_flight;
    }
    return uses;
}

/* Twice: only the builders know which operands an instruction writes, and only then it is known which registers can share a row. */
static void decode_function(const Linker &linker, Function &f)
{
    constexpr uint32_t RESERVED = 8; /* what ptxas needs besides values: addresses, the stack, the call's return */
    size_t extras = f.extras.size();
    build_all(linker, f, nullptr, 0);
    Liveness l = find_liveness(f.ast, register_uses(f));
    uint32_t most = MOST_REGISTERS, n_rows = 0;
    auto limit = f.ast.directives.find("maxnreg");
    if (limit != f.ast.directives.end())
        most = std::min(most, limit->second[0]);
    auto blocks = f.ast.directives.find("minnctapersm");
    uint64_t threads = uint64_t(f.max_threads) * (blocks == f.ast.directives.end() ? 1 : blocks->second[0]);
    if (threads) /* ptxas keeps the promise of the launch bounds */
        most = std::min<uint32_t>(most, uint32_t(std::max<uint64_t>(REGISTERS_OF_SM / threads, RESERVED)));
    f.regs_for_occupancy = std::min(most, l.most_units + RESERVED);
    f.extras.resize(extras);
    std::vector<uint32_t> rows = share_rows(f.ast, l, &n_rows);
    build_all(linker, f, &rows, n_rows);
}

static bool reads_group_scratch(const ptx::Function &f)
{
    for (const ptx::Instr &i : f.body)
        for (const ptx::Operand &o : i.ops)
            if (o.kind == ptx::Operand::special && o.name == "reserved_smem_offset_1")
                return true;
    return false;
}

std::unique_ptr<Module> decode(ptx::Module &&m, unsigned sm, GlobalAllocator &globals)
{
    auto out = std::make_unique<Module>();
    Linker linker(std::move(m), sm, globals, *out);
    linker.run();
    for (auto &f : out->functions) {
        out->group_scratch |= reads_group_scratch(f->ast);
        name_special_registers(&f->ast);
        end_in_return(&f->ast);
        decode_function(linker, *f);
    }
    return out;
}

} // namespace ptxemu

/* The bodies of functions: scopes, declarations, labels, instructions and their operands. */
#include <algorithm>
#include <cctype>

#include "ptx/parser.h"

namespace ptxemu::ptx
{
namespace
{
constexpr uint32_t UNKNOWN = UINT32_MAX; /* index of an operand of kind label whose name is not known yet */
constexpr size_t MOST_REGISTERS = 1u << 20;

std::string one_line(const char *from, const char *to)
{
    std::string s;
    for (; from != to; from++) {
        bool blank = isspace(static_cast<unsigned char>(*from));
        if (!blank)
            s += *from;
        else if (!s.empty() && s.back() != ' ')
            s += ' ';
    }
    return s;
}
} // namespace

/* ---- names ---- */

void Parser::declare(const std::string &name, Entity e)
{
    if (!scopes_.back().names.emplace(name, std::move(e)).second)
        error_at(line(), "`%s` is declared twice", name.c_str());
}

uint32_t Parser::new_register(const std::string &name, Type t)
{
    if (fn_.regs.size() >= MOST_REGISTERS)
        error_at(line(), "function `%s` has too many registers", fn_.name.c_str());
    fn_.regs.push_back({name, t});
    return uint32_t(fn_.regs.size() - 1);
}

std::string Parser::unique_name(const std::string &name)
{
    std::string unique = name;
    /* `@` is no part of a name in PTX, so that what we make up is never a name of the text. */
    for (unsigned k = 2; variable_index_.count(unique) || !used_names_.insert(unique).second; k++)
        unique = name + "@" + std::to_string(k);
    return unique;
}

const Entity *Parser::find_in(Scope &s, const std::string &name)
{
    auto it = s.names.find(name);
    if (it != s.names.end())
        return &it->second;
    size_t digits = name.size();
    while (digits && isdigit(static_cast<unsigned char>(name[digits - 1])))
        digits--;
    /* A register of a range exists from its first use on: most ranges have holes. */
    for (const RegisterRange &r : s.ranges) {
        size_t n = r.prefix.size();
        if (n < digits || n >= name.size() || name.size() - n > 9 || name.compare(0, n, r.prefix) != 0 ||
            (name[n] == '0' && name.size() > n + 1) || std::stoul(name.substr(n)) >= r.count)
            continue;
        Entity e;
        e.kind = Entity::reg;
        e.index = new_register(name, r.type);
        return &s.names.emplace(name, e).first->second;
    }
    return nullptr;
}

const Entity *Parser::find(const std::string &name)
{
    for (size_t k = scopes_.size(); k-- > 0;)
        if (const Entity *e = find_in(scopes_[k], name))
            return e;
    return nullptr;
}

bool Parser::resolve(Operand *o, const Scope &s)
{
    bool all = true;
    for (Operand &item : o->items)
        all &= resolve(&item, s);
    if (o->kind != Operand::label || o->index != UNKNOWN)
        return all;
    auto it = s.names.find(o->name);
    if (it == s.names.end())
        return false;
    if (it->second.kind == Entity::label) {
        o->index = it->second.index;
    } else if (it->second.kind == Entity::other) {
        o->kind = Operand::symbol;
        o->name = it->second.unique;
    } else {
        error_at(loc_.ptx_line, "`%s` is used before its declaration", o->name.c_str());
    }
    return all;
}

/* Labels may be used before they are declared, and an inner scope's label hides an outer one: so names are explained when a scope
 * ends, innermost first, and what remains is the outer scope's to explain. */
void Parser::close_scope()
{
    Scope s = std::move(scopes_.back());
    scopes_.pop_back();
    Scope rest;
    for (uint32_t k : s.unresolved) {
        bool all = true;
        loc_.ptx_line = fn_.body[k].loc.ptx_line;
        for (Operand &o : fn_.body[k].ops)
            all &= resolve(&o, s);
        if (!all)
            rest.unresolved.push_back(k);
    }
    for (uint32_t k : s.unresolved_tables) {
        bool all = true;
        for (size_t i = 0; i < fn_.tables[k].labels.size(); i++) {
            TableName &t = table_names_[k][i];
            auto it = t.known ? s.names.end() : s.names.find(t.name);
            if (it != s.names.end() && it->second.kind == Entity::label) {
                fn_.tables[k].labels[i] = it->second.index;
                t.known = true;
            }
            all &= t.known;
        }
        if (!all)
            rest.unresolved_tables.push_back(k);
    }
    if (scopes_.empty()) {
        unresolved_to_symbols(rest);
        return;
    }
    auto append = [](std::vector<uint32_t> *to, const std::vector<uint32_t> &from) {
        to->insert(to->end(), from.begin(), from.end());
    };
    append(&scopes_.back().unresolved, rest.unresolved);
    append(&scopes_.back().unresolved_tables, rest.unresolved_tables);
}

static void to_symbols(Operand *o)
{
    for (Operand &item : o->items)
        to_symbols(&item);
    if (o->kind == Operand::label && o->index == UNKNOWN) {
        o->kind = Operand::symbol;
        o->index = 0;
    }
}

/* What no scope of the function explains is a name of the module, which the linker knows. */
void Parser::unresolved_to_symbols(const Scope &rest)
{
    for (uint32_t k : rest.unresolved)
        for (Operand &o : fn_.body[k].ops)
            to_symbols(&o);
    for (uint32_t k : rest.unresolved_tables)
        for (const TableName &t : table_names_[k])
            if (!t.known)
                error_at(t.line, "label `%s` of .branchtargets is not declared", t.name.c_str());
}

/* ---- statements ---- */

void Parser::body()
{
    scopes_.emplace_back();
    table_names_.clear();
    register_results_.clear();
    for (std::vector<Variable> *list : {&fn_.ret, &fn_.params})
        for (Variable &v : *list) {
            Entity e;
            if (v.space == Space::generic) {
                e.kind = Entity::reg;
                e.index = new_register(v.name, v.type);
            } else {
                e.kind = Entity::variable;
                e.unique = v.name;
                used_names_.insert(v.name);
            }
            if (v.name != "_")
                declare(v.name, e);
        }
    expect("{", "or `;` behind the head of a function");
    scopes_.emplace_back();
    load_register_formals();
    scope();
    if (!register_results_.empty()) { /* the end of the text is a ret as well */
        Instr ret;
        ret.opcode = ret.text = "ret";
        ret.loc = loc_;
        store_register_results(ret);
        fn_.body.push_back(std::move(ret));
    }
    close_scope();
    close_scope();
}

/* Behind an opening brace, up to and with the closing one. */
void Parser::scope()
{
    Depth depth(*this);
    while (!accept("}")) {
        if (peek().kind == Token::end)
            fail_here("`}` at the end of a function");
        statement();
    }
}

void Parser::statement()
{
    const Token &t = peek();
    if (accept(";"))
        return;
    if (accept("{")) {
        scopes_.emplace_back();
        scope();
        close_scope();
        return;
    }
    if (t.kind == Token::dotted)
        return body_directive();
    if (t.kind == Token::word && peek(1).is(":")) {
        std::string name(take().text);
        take();
        if (accept_dotted("branchtargets"))
            return branch_targets(name);
        if (accept_dotted("callprototype"))
            return call_prototype(name);
        if (accept_dotted("calltargets"))
            return call_targets(name);
        return label(name);
    }
    instruction();
}

void Parser::body_directive()
{
    static const std::pair<const char *, Space> spaces[] = {{"local", Space::local},
                                                            {"param", Space::param},
                                                            {"shared", Space::shared},
                                                            {"global", Space::global},
                                                            {"const", Space::constant}};
    if (accept_dotted("reg"))
        return registers();
    if (accept_dotted("loc"))
        return loc();
    if (accept_dotted("pragma"))
        return pragma();
    Linkage l = linkage();
    for (auto &s : spaces)
        if (accept_dotted(s.first))
            return locals(s.second, l);
    fail_here("an instruction, a label or a declaration");
}

void Parser::pragma()
{
    /* Pragmas are advice to an optimizer and change no result. */
    do {
        if (peek().kind != Token::string)
            fail_here("a string behind .pragma");
        take();
    } while (accept(","));
    expect(";", "behind .pragma");
}

/* .loc file line column [, function_name label [+ offset] , inlined_at file line column]: the first triple is the innermost
 * function's line; the place where that was inlined has had a .loc of its own before, which says where it was inlined in turn. */
void Parser::loc()
{
    auto place = [this](const char *file, const char *line, const char *column) {
        const uint32_t f = uint32_t(unsigned_number(file)), l = uint32_t(unsigned_number(line));
        return std::array<uint32_t, 3>{f, l, uint32_t(unsigned_number(column))};
    };
    const auto at = place("the file of .loc", "the line of .loc", "the column of .loc");
    loc_.file = at[0];
    loc_.line = at[1];
    loc_.outer = 0;
    while (peek().is(",")) {
        take();
        if (peek().is_word("function_name")) {
            take();
            word("the label of a function's name");
            if (accept("+"))
                unsigned_number("an offset");
        } else if (peek().is_word("inlined_at")) {
            take();
            const char *what = "a place behind inlined_at";
            const auto call = place(what, what, what);
            auto outer = outer_of_.find(call);
            Loc site;
            site.file = call[0];
            site.line = call[1];
            site.outer = outer == outer_of_.end() ? 0 : outer->second;
            fn_.inlined.push_back(site);
            loc_.outer = uint32_t(fn_.inlined.size());
        } else {
            fail_here("function_name or inlined_at");
        }
    }
    outer_of_[at] = loc_.outer;
}

void Parser::registers()
{
    for (const char *v : {"v2", "v4"})
        if (peek().is_dotted(v))
            error_at(line(), "the emulator does not know vector registers: declare %s registers instead",
                     *(v + 1) == '2' ? "two" : "four");
    Type t = type_token();
    do {
        uint32_t where = line();
        std::string name = word("the name of a register");
        if (accept("<")) {
            uint64_t count = unsigned_count("the number of registers");
            expect(">", "behind the number of registers");
            if (count > MOST_REGISTERS)
                error_at(where, "function `%s` has too many registers", fn_.name.c_str());
            scopes_.back().ranges.push_back({name, uint32_t(count), t});
        } else {
            Entity e;
            e.kind = Entity::reg;
            e.index = new_register(name, t);
            declare(name, e);
        }
    } while (accept(","));
    expect(";", "behind registers");
}

void Parser::locals(Space space, const Linkage &l)
{
    std::vector<Variable> found;
    variables(space, &found, l);
    for (Variable &v : found) {
        Entity e;
        e.kind = Entity::variable;
        e.unique = unique_name(v.name);
        declare(v.name, e);
        v.name = e.unique;
        fn_.locals.push_back(std::move(v));
    }
}

void Parser::label(const std::string &name)
{
    Entity e;
    e.kind = Entity::label;
    e.index = uint32_t(fn_.labels.size());
    fn_.labels.push_back({name, uint32_t(fn_.body.size())});
    declare(name, e);
}

void Parser::branch_targets(const std::string &name)
{
    Entity e;
    e.unique = unique_name(name);
    declare(name, e);
    BranchTable t;
    t.name = e.unique;
    std::vector<TableName> names;
    do {
        uint32_t where = line();
        names.push_back({word("a label"), where, false});
        t.labels.push_back(UNKNOWN);
    } while (accept(","));
    expect(";", "behind .branchtargets");
    scopes_.back().unresolved_tables.push_back(uint32_t(fn_.tables.size()));
    fn_.tables.push_back(std::move(t));
    table_names_.push_back(std::move(names));
}

void Parser::call_prototype(const std::string &name)
{
    Prototype p;
    p.ret = formals(false);
    if (!peek().is_word("_"))
        fail_here("`_` in .callprototype");
    take();
    p.params = formals(false);
    for (bool more = true; more;) {
        more = accept_dotted("noreturn");
        for (const char *d : {"abi_preserve", "abi_preserve_control"})
            if (accept_dotted(d)) {
                unsigned_number("the number of a directive");
                more = true;
            }
    }
    expect(";", "behind .callprototype");
    Entity e;
    e.unique = p.name = unique_name(name);
    declare(name, e);
    fn_.prototypes.push_back(std::move(p));
}

/* The functions of a list have one signature: the list serves as the prototype of the calls that name it. */
void Parser::call_targets(const std::string &name)
{
    Prototype p;
    bool first = true;
    do {
        uint32_t where = line();
        std::string f = word("the name of a function");
        auto it = function_index_.find(f);
        if (it == function_index_.end())
            error_at(where, "function `%s` of .calltargets is not declared", f.c_str());
        if (first) {
            p.ret = module_.functions[it->second].ret;
            p.params = module_.functions[it->second].params;
        }
        first = false;
    } while (accept(","));
    expect(";", "behind .calltargets");
    Entity e;
    e.unique = p.name = unique_name(name);
    declare(name, e);
    fn_.prototypes.push_back(std::move(p));
}

void Parser::instruction()
{
    Instr i;
    const char *from = peek().text.data();
    names_unresolved_ = false;
    loc_.ptx_line = line();
    if (accept("@")) {
        i.guard_negate = accept("!");
        std::string name = word("a predicate behind @");
        const Entity *e = find(name);
        if (!e || e->kind != Entity::reg || fn_.regs[e->index].type != Type::pred)
            error_at(loc_.ptx_line, "the guard `%s` is not a predicate", name.c_str());
        i.guard = int(e->index);
    }
    i.opcode = word("an instruction");
    while (peek().kind == Token::dotted)
        i.mods.emplace_back(take().text);
    while (!peek().is(";")) {
        if (!i.ops.empty())
            expect(",", "between operands");
        bool list = i.opcode == "call" && peek().is("(");
        i.ops.push_back(list ? group(")", Operand::list) : operand());
    }
    i.text = one_line(from, take().text.data());
    i.loc = loc_;
    std::vector<RegisterResult> results;
    if (i.opcode == "call")
        results = pass_registers(&i);
    else if (i.opcode == "ret")
        store_register_results(i);
    if (names_unresolved_)
        scopes_.back().unresolved.push_back(uint32_t(fn_.body.size()));
    Instr call = results.empty() ? Instr{} : i;
    fn_.body.push_back(std::move(i));
    load_results(results, call);
}

/* ---- operands ---- */

Operand Parser::operand()
{
    Operand o = plain_operand();
    if (!peek().is("|") || (o.kind != Operand::reg && o.kind != Operand::sink))
        return o;
    take();
    Operand pair;
    pair.kind = Operand::pair;
    pair.items.push_back(std::move(o));
    pair.items.push_back(plain_operand());
    return pair;
}

Operand Parser::plain_operand()
{
    Depth depth(*this);
    if (peek().is("["))
        return address();
    if (peek().is("{"))
        return group("}", Operand::vector);
    if (peek().is("!") && peek(1).kind == Token::word) {
        take();
        uint32_t where = line();
        Operand o = name_operand();
        if (o.kind != Operand::reg || fn_.regs[o.index].type != Type::pred)
            error_at(where, "`!` stands before something that is not a predicate");
        o.negate = true;
        return o;
    }
    if (peek().kind == Token::word && !peek().is_word("WARP_SZ"))
        return name_operand();
    return number_operand();
}

Operand Parser::number_operand()
{
    Number n = expression();
    Operand o;
    o.kind = n.is_real ? Operand::real : Operand::integer;
    o.is_single = n.is_single;
    o.single = n.single;
    o.bits = n.bits;
    return o;
}

Operand Parser::name_operand()
{
    Operand o;
    o.name = word("a name");
    if (o.name == "_") {
        o.name.clear();
        return o;
    }
    const Entity *e = find(o.name);
    if (e && e->kind == Entity::reg) {
        o.kind = Operand::reg;
        o.index = e->index;
    } else if (e && e->kind == Entity::variable) {
        o.kind = Operand::symbol;
        o.name = e->unique;
    } else if (o.name[0] == '%') { /* the decoder knows which special registers there are */
        std::string special = o.name.substr(1);
        while (peek().kind == Token::dotted)
            special += "." + std::string(take().text);
        o.kind = Operand::special;
        o.name = special;
        return o;
    } else {
        o.kind = Operand::label;
        o.index = UNKNOWN;
        names_unresolved_ = true;
    }
    if (peek().kind == Token::dotted)
        fail_here("the end of an operand");
    if (o.kind != Operand::reg && (peek().is("+") || peek().is("-"))) {
        o.offset = offset();
    }
    return o;
}

/* The sign of an offset is that of the expression that begins with it: [%rd1+-4], [%rd1-4+2]. */
int64_t Parser::offset()
{
    uint32_t where = line();
    Number n = expression();
    if (n.is_real)
        error_at(where, "an offset is an integer");
    return int64_t(n.bits);
}

/* [base + offset] or [base + offset, {coordinates}] */
Operand Parser::address()
{
    Operand a;
    a.kind = Operand::address;
    expect("[", "before an address");
    Operand base = plain_operand();
    if (base.kind == Operand::vector || base.kind == Operand::address || base.kind == Operand::real ||
        base.kind == Operand::sink || base.negate)
        error_at(line(), "an address begins with a register, a name or a number");
    if (base.kind == Operand::reg && (peek().is("+") || peek().is("-")))
        a.offset = offset();
    a.offset = int64_t(uint64_t(a.offset) + uint64_t(base.offset));
    base.offset = 0;
    a.items.push_back(std::move(base));
    if (accept(",")) {
        a.items.push_back(plain_operand());
        if (a.items.back().kind != Operand::vector)
            error_at(line(), "a vector of coordinates follows the comma of an address");
    }
    expect("]", "behind an address");
    return a;
}

Operand Parser::group(const char *close, Operand::Kind kind)
{
    Operand g;
    g.kind = kind;
    take();
    if (accept(close))
        return g;
    do
        g.items.push_back(operand());
    while (accept(","));
    expect(close, "behind a group of operands");
    return g;
}

} // namespace ptxemu::ptx

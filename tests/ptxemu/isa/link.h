/* Where everything of a module lies: variables, parameters, frames, shared memory.  Between the parser and the decoder. */
#ifndef PTXEMU_ISA_LINK_H
#define PTXEMU_ISA_LINK_H

#include <deque>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "isa/code.h"

namespace ptxemu
{

/* What a name stands for inside a function. */
struct Place {
    enum Kind : uint8_t {
        absent,
        memory,   /* `address` in `space`: global, constant or shared */
        dynamic,  /* extern shared memory: begins at Function::dynamic_shared_at */
        frame,    /* `slot`, in the frame of an activation */
        param,    /* `slot`, in the parameter block of a kernel */
        function, /* the address is Function's own */
        missing,  /* declared .extern, defined nowhere */
    };
    Kind kind = absent;
    Space space = Space::generic;
    uint64_t address = 0;
    const Slot *slot = nullptr;
    const Function *fn = nullptr;
};

class Linker
{
  public:
    Linker(ptx::Module &&m, unsigned sm, GlobalAllocator &globals, Module &out);
    void run();                                                    /* everything but the code */
    Place find(const Function &fn, const std::string &name) const; /* what a name means in fn */
    const Function *function(const std::string &name) const;       /* nullptr: not defined here */
    bool declared(const std::string &name) const; /* a function that is declared, but defined nowhere */

    const ptx::Module &source() const { return m_; }
    unsigned sm() const { return sm_; }

  private:
    using Set = std::vector<bool>; /* of functions, or of roots */
    struct SharedVariable {
        const ptx::Variable *v;
        size_t owner; /* function, or NOBODY for a variable of the module */
        Set roots;    /* who can reach it */
        uint64_t at = 0;
    };

    void check_target() const;
    void make_functions();
    void place_globals(const std::vector<ptx::Variable> &variables, const std::string &owner);
    void initialize(const ptx::Variable &v, const std::string &owner);
    void relocate(const ptx::Variable &v, const ptx::Reloc &r, const Function *fn, uint8_t *to) const;
    void lay_out_params(Function &f);
    void lay_out_frame(Function &f);
    void read_directives(Function &f);
    void build_call_graph();
    void mark_reached(size_t from, Set *seen) const;
    void lay_out_shared();
    void place_shared(SharedVariable *s, const std::vector<SharedVariable> &placed);
    void lay_out_dynamic(const std::vector<size_t> &roots, const std::vector<Set> &reach);
    void stack(size_t f, std::vector<int> *state, bool *endless);

    ptx::Module m_;
    unsigned sm_;
    GlobalAllocator &globals_;
    Module &out_;
    std::map<std::string, Place> names_; /* of the module */
    struct FunctionNames {
        std::map<std::string, Place> names;
        std::deque<Slot> slots;
    };
    std::map<const Function *, FunctionNames *> local_;
    std::map<std::string, size_t> index_; /* of functions in out_.functions */
    std::vector<std::vector<size_t>> callees_;
    std::vector<bool> calls_pointers_, uses_dynamic_;
    std::vector<std::set<std::string>> mentions_; /* shared names of the module that a function's operands have */
    Set address_taken_;
};

} // namespace ptxemu

#endif

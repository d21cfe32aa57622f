/* Short ways to write a kernel in PTX for a test of memory instructions. */
#ifndef PTXEMU_TEST_PTX_TEXT_H
#define PTXEMU_TEST_PTX_TEXT_H

#include <string>

#include "test/emu.h"

namespace emu
{

/* A module with one kernel `k(u64 a, u64 b, u64 c)`: %a, %b and %c hold its parameters, %i the thread; %h0-9, %r0-9, %d0-9, %f0-9,
 * %e0-9, %p0-3 are free registers of 16, 32 and 64 bits, f32, f64 and predicates.  `variables` stand before the kernel, `locals` in it. */
struct Text {
    std::string body, variables = "", locals = "";
    std::string target = "sm_90a";
    std::string str() const
    {
        return ".version 8.3\n.target " + target + "\n.address_size 64\n" + variables +
               "\n.visible .entry k(.param .u64 pa, .param .u64 pb, .param .u64 pc)\n{\n"
               ".reg .pred %p<4>;\n.reg .b16 %h<10>;\n.reg .b32 %r<10>, %i, %x;\n.reg .b64 %d<10>, %a, %b, %c, %t;\n"
               ".reg .f32 %f<10>;\n.reg .f64 %e<10>;\n" +
               locals +
               "\nld.param.u64 %a, [pa];\nld.param.u64 %b, [pb];\nld.param.u64 %c, [pc];\nmov.u32 %i, %tid.x;\n"
               "cvt.u64.u32 %t, %i;\n" +
               body + "\nret;\n}\n";
    }
};

/* Runs the kernel with one block. */
inline CUresult run(const Text &t, unsigned threads, CUdeviceptr a, CUdeviceptr b = 0, CUdeviceptr c = 0,
                    unsigned shared = 0, unsigned blocks = 1)
{
    Module m(t.str());
    return m.m ? launch(m.get("k"), Dim(blocks), Dim(threads), shared, a, b, c) : m.result;
}

} // namespace emu

#endif

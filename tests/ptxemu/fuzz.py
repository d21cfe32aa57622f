#!/usr/bin/env python3
"""Random programs for the emulator, each with the same program for the host.

    fuzz.py emit-cuda SEED...     CUDA text: the kernels fuzz_SEED(out, in)
    fuzz.py emit-host SEED...     C++ text: the same, thread by thread, and the table `fuzz_cases`
    fuzz.py run FIRST COUNT       generates, compiles with nvcc and g++, runs and compares COUNT programs

A program is a list of phases.  Within a phase a thread works for itself: integers of every width, floats with explicit
rounding, branches, loops, switches, a small local array, a helper function.  Between phases all threads of the block exchange
a value: through shared memory behind barriers, by a shuffle, a vote or an atomic.  That makes the host's part simple: it runs each phase
for one thread after the other and does the exchange by its definition.  Everything that C++ leaves undefined (overflow, wide
shifts, division by zero, conversions out of range) is guarded or written with functions that both sides define, so that every
difference, to the last bit, is a bug of one of the two compilers or of the emulator.
"""
import argparse
import os
import pathlib
import random
import subprocess
import sys
import tempfile

BLOCK = 96  # threads of a block: three warps
INPUTS = 8  # words of input a thread

PRELUDE = r"""
#include <stdint.h>
#ifdef __CUDACC__
#define FN __device__
#define FN_CALL __device__ __noinline__
FN float f_add(float a, float b) { return __fadd_rn(a, b); }
FN float f_mul(float a, float b) { return __fmul_rn(a, b); }
FN float f_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
FN float f_div(float a, float b) { return __fdiv_rn(a, b); }
FN float f_sqrt(float a) { return __fsqrt_rn(a); }
FN double d_add(double a, double b) { return __dadd_rn(a, b); }
FN double d_mul(double a, double b) { return __dmul_rn(a, b); }
FN double d_fma(double a, double b, double c) { return __fma_rn(a, b, c); }
FN double d_div(double a, double b) { return __ddiv_rn(a, b); }
FN uint32_t f_bits(float a) { return __float_as_uint(a); }
FN float bits_f(uint32_t a) { return __uint_as_float(a); }
FN uint64_t d_bits(double a) { return (uint64_t)__double_as_longlong(a); }
FN double bits_d(uint64_t a) { return __longlong_as_double((long long)a); }
FN uint32_t mulhi_u(uint32_t a, uint32_t b) { return __umulhi(a, b); }
FN int32_t mulhi_s(int32_t a, int32_t b) { return __mulhi(a, b); }
FN uint64_t mulhi_ull(uint64_t a, uint64_t b) { return __umul64hi(a, b); }
FN uint32_t popc(uint64_t a) { return __popcll(a); }
FN uint32_t clz(uint32_t a) { return __clz(a); }
FN uint32_t brev(uint32_t a) { return __brev(a); }
FN uint32_t perm(uint32_t a, uint32_t b, uint32_t s) { return __byte_perm(a, b, s); }
FN uint32_t funnel(uint32_t a, uint32_t b, uint32_t s) { return __funnelshift_l(a, b, s); }
FN uint32_t funnel_r(uint32_t a, uint32_t b, uint32_t s) { return __funnelshift_rc(a, b, s); }
FN uint32_t sad(int32_t a, int32_t b, uint32_t c) { return __sad(a, b, c); }
FN int32_t dp4a(int32_t a, int32_t b, int32_t c) { return __dp4a(a, b, c); }
FN uint32_t addus4(uint32_t a, uint32_t b) { return __vaddus4(a, b); }
FN uint32_t maxs2(uint32_t a, uint32_t b) { return __vmaxs2(a, b); }
FN uint32_t cmpgtu4(uint32_t a, uint32_t b) { return __vcmpgtu4(a, b); }
#else
#include <math.h>
#include <string.h>
#define FN static inline
#define FN_CALL static
FN float f_add(float a, float b) { return a + b; }
FN float f_mul(float a, float b) { return a * b; }
FN float f_fma(float a, float b, float c) { return fmaf(a, b, c); }
FN float f_div(float a, float b) { return a / b; }
FN float f_sqrt(float a) { return sqrtf(a); }
FN double d_add(double a, double b) { return a + b; }
FN double d_mul(double a, double b) { return a * b; }
FN double d_fma(double a, double b, double c) { return fma(a, b, c); }
FN double d_div(double a, double b) { return a / b; }
FN uint32_t f_bits(float a) { uint32_t r; memcpy(&r, &a, 4); return r; }
FN float bits_f(uint32_t a) { float r; memcpy(&r, &a, 4); return r; }
FN uint64_t d_bits(double a) { uint64_t r; memcpy(&r, &a, 8); return r; }
FN double bits_d(uint64_t a) { double r; memcpy(&r, &a, 8); return r; }
FN uint32_t mulhi_u(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }
FN int32_t mulhi_s(int32_t a, int32_t b) { return int32_t((int64_t(a) * b) >> 32); }
FN uint64_t mulhi_ull(uint64_t a, uint64_t b)
{
    uint64_t al = uint32_t(a), ah = a >> 32, bl = uint32_t(b), bh = b >> 32;
    uint64_t middle = al * bh + ((al * bl) >> 32), other = ah * bl + uint32_t(middle);
    return ah * bh + (middle >> 32) + (other >> 32);
}
FN uint32_t popc(uint64_t a) { uint32_t n = 0; for (; a; a >>= 1) n += a & 1; return n; }
FN uint32_t clz(uint32_t a) { uint32_t n = 0; for (; n < 32 && !(a >> 31); a <<= 1) n++; return n; }
FN uint32_t brev(uint32_t a) { uint32_t r = 0; for (int i = 0; i < 32; i++) r |= ((a >> i) & 1u) << (31 - i); return r; }
FN uint32_t perm(uint32_t a, uint32_t b, uint32_t s)
{
    uint32_t r = 0;
    for (int i = 0; i < 4; i++)
        r |= uint32_t(((uint64_t(b) << 32 | a) >> (8 * ((s >> (4 * i)) & 7))) & 255) << (8 * i);
    return r;
}
FN uint32_t funnel(uint32_t a, uint32_t b, uint32_t s) { return uint32_t(((uint64_t(b) << 32 | a) << (s & 31)) >> 32); }
FN uint32_t funnel_r(uint32_t a, uint32_t b, uint32_t s) { return uint32_t((uint64_t(b) << 32 | a) >> (s < 32 ? s : 32)); }
FN uint32_t sad(int32_t a, int32_t b, uint32_t c) { return uint32_t(a > b ? int64_t(a) - b : int64_t(b) - a) + c; }
FN int32_t dp4a(int32_t a, int32_t b, int32_t c)
{
    uint32_t r = uint32_t(c);
    for (int i = 0; i < 32; i += 8)
        r += uint32_t(int8_t(a >> i) * int8_t(b >> i));
    return int32_t(r);
}
FN uint32_t addus4(uint32_t a, uint32_t b)
{
    uint32_t r = 0;
    for (int i = 0; i < 32; i += 8) {
        uint32_t s = (a >> i & 255) + (b >> i & 255);
        r |= (s > 255 ? 255 : s) << i;
    }
    return r;
}
FN uint32_t maxs2(uint32_t a, uint32_t b)
{
    uint32_t r = 0;
    for (int i = 0; i < 32; i += 16)
        r |= uint32_t(uint16_t(int16_t(a >> i) > int16_t(b >> i) ? a >> i : b >> i)) << i;
    return r;
}
FN uint32_t cmpgtu4(uint32_t a, uint32_t b)
{
    uint32_t r = 0;
    for (int i = 0; i < 32; i += 8)
        r |= ((a >> i & 255) > (b >> i & 255) ? 255u : 0u) << i;
    return r;
}
#endif
/* Signed arithmetic that wraps, divisions and shifts that are defined everywhere, conversions that stay in range. */
FN int32_t as_i32(uint32_t a) { return (int32_t)a; }
FN int64_t as_i64(uint64_t a) { return (int64_t)a; }
FN int32_t div_s(int32_t a, int32_t b) { return b == 0 || (a == INT32_MIN && b == -1) ? 7 : a / b; }
FN int32_t rem_s(int32_t a, int32_t b) { return b == 0 || (a == INT32_MIN && b == -1) ? 5 : a % b; }
FN int64_t div_l(int64_t a, int64_t b) { return b == 0 || (a == INT64_MIN && b == -1) ? 9 : a / b; }
FN int64_t rem_l(int64_t a, int64_t b) { return b == 0 || (a == INT64_MIN && b == -1) ? 3 : a % b; }
FN uint64_t div_u(uint64_t a, uint64_t b) { return b == 0 ? 11 : a / b; }
FN uint64_t rem_u(uint64_t a, uint64_t b) { return b == 0 ? 13 : a % b; }
FN int32_t f_int(float a) { return a > -2e9f && a < 2e9f ? (int32_t)a : 17; }
FN int64_t d_long(double a) { return a > -9e18 && a < 9e18 ? (int64_t)a : 19; }
FN uint32_t f_uint(float a) { return a > 0.0f && a < 4e9f ? (uint32_t)a : 23; }
/* A NaN has no sign or payload that two machines agree on: all of them become one. */
FN float tame(float a) { return a == a ? a : 1.5f; }
FN double tame_d(double a) { return a == a ? a : 2.5; }
"""


class Program:
    """One random program: its text is the same for both sides, but for the exchanges."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.seed = seed
        self.vars = [(t, f"{t}{i}") for t, n in (("u", 4), ("s", 3), ("l", 3), ("h", 2), ("b", 2), ("f", 3), ("d", 2))
                     for i in range(n)]
        self.counter = 0
        self.depth = 0
        self.helpers = [self.helper(i) for i in range(self.rng.randint(1, 2))]
        self.phases = [self.block(self.rng.randint(4, 9), 0) for _ in range(self.rng.randint(2, 4))]
        self.exchanges = [self.exchange() for _ in self.phases]

    C_TYPE = {"u": "uint32_t", "s": "int32_t", "l": "uint64_t", "h": "uint16_t", "b": "int8_t", "f": "float", "d": "double"}

    def pick(self, *choices):
        return self.rng.choice(choices)

    def constant(self, t):
        r = self.rng
        if t in "fd":
            value = self.pick("0.0", "1.0", "-1.0", "0.5", "3.25", "-1024.0", "1e-30", "7e20", f"{r.randint(-999, 999)}.125")
            return value + ("f" if t == "f" else "")
        bits = {"u": 32, "s": 32, "l": 64, "h": 16, "b": 8}[t]
        v = self.pick(0, 1, 2, 3, 7, 255, (1 << (bits - 1)), (1 << bits) - 1, r.getrandbits(bits), r.getrandbits(5))
        v &= (1 << bits) - 1
        if t == "l":
            return f"UINT64_C({v})"
        return f"({self.C_TYPE[t]}){v}u"

    def leaf(self, t):
        if self.rng.random() < 0.3:
            return self.constant(t)
        own = [name for kind, name in self.vars if kind == t]
        return self.pick(*own)

    def expr(self, t, depth=3):
        """An expression of type t, in C that means the same on both sides."""
        if depth == 0 or self.rng.random() < 0.15:
            return self.leaf(t)

        def e(kind):
            return self.expr(kind, depth - 1)

        if t == "u":
            return self.pick(
                lambda: f"({e('u')} {self.pick('+', '-', '*', '&', '|', '^')} {e('u')})",
                lambda: f"({e('u')} {self.pick('<<', '>>')} ({e('u')} & 31))",
                lambda: f"(uint32_t){self.pick('div_u', 'rem_u')}({e('u')}, {e('u')})",
                lambda: f"({e('u')} / {self.rng.randint(1, 1000)}u)",
                lambda: f"({e('u')} % {self.rng.randint(1, 70000)}u)",
                lambda: f"mulhi_u({e('u')}, {e('u')})",
                lambda: f"{self.pick('popc', 'clz', 'brev')}({e('u')})",
                lambda: f"perm({e('u')}, {e('u')}, {e('u')} & 0x7777)",
                lambda: f"{self.pick('funnel', 'funnel_r')}({e('u')}, {e('u')}, {e('u')})",
                lambda: f"sad({e('s')}, {e('s')}, {e('u')})",
                lambda: f"{self.pick('addus4', 'maxs2', 'cmpgtu4')}({e('u')}, {e('u')})",
                lambda: f"({self.condition(depth - 1)} ? {e('u')} : {e('u')})",
                lambda: f"(uint32_t){e(self.pick('s', 'l', 'h', 'b'))}",
                lambda: f"f_bits(tame({e('f')}))",
                lambda: f"f_uint({e('f')})",
                lambda: f"(~{e('u')})",
            )()
        if t == "s":
            return self.pick(
                lambda: f"as_i32({e('u')})",
                lambda: f"as_i32((uint32_t){e('s')} {self.pick('+', '-', '*')} (uint32_t){e('s')})",
                lambda: f"{self.pick('div_s', 'rem_s', 'mulhi_s')}({e('s')}, {e('s')})",
                lambda: f"{self.pick('div_s', 'rem_s')}({e('s')}, {self.rng.randint(-300, 300)})",
                lambda: f"({e('s')} >> ({e('u')} & 31))",
                lambda: f"dp4a({e('s')}, {e('s')}, {e('s')})",
                lambda: f"(int32_t){e(self.pick('h', 'b'))}",
                lambda: f"f_int({e('f')})",
                lambda: f"({e('s')} < {e('s')} ? {e('s')} : {e('s')})",
                lambda: f"(int32_t)(int16_t){e('u')}",
            )()
        if t == "l":
            return self.pick(
                lambda: f"({e('l')} {self.pick('+', '-', '*', '&', '|', '^')} {e('l')})",
                lambda: f"({e('l')} {self.pick('<<', '>>')} ({e('u')} & 63))",
                lambda: f"(uint64_t)(as_i64({e('l')}) >> ({e('u')} & 63))",
                lambda: f"{self.pick('div_u', 'rem_u')}({e('l')}, {e('l')})",
                lambda: f"(uint64_t){self.pick('div_l', 'rem_l')}(as_i64({e('l')}), as_i64({e('l')}))",
                lambda: f"mulhi_ull({e('l')}, {e('l')})",
                lambda: f"(uint64_t){e(self.pick('u', 's', 'h', 'b'))}",
                lambda: f"((uint64_t){e('u')} * {e('u')})",
                lambda: f"(uint64_t)((int64_t){e('s')} * {e('s')})",
                lambda: f"d_bits(tame_d({e('d')}))",
                lambda: f"(uint64_t)d_long({e('d')})",
            )()
        if t == "h":
            return f"(uint16_t)({e('h')} {self.pick('+', '-', '*', '&', '^')} {e(self.pick('h', 'u'))})"
        if t == "b":
            return f"(int8_t)(uint8_t)({e('b')} {self.pick('&', '|', '^')} {e(self.pick('b', 'u'))})"
        if t == "f":
            return self.pick(
                lambda: f"f_add({e('f')}, {e('f')})",
                lambda: f"f_mul({e('f')}, {e('f')})",
                lambda: f"f_fma({e('f')}, {e('f')}, {e('f')})",
                lambda: f"f_div({e('f')}, {e('f')})",
                lambda: f"f_sqrt({e('f')})",
                lambda: f"(float){e(self.pick('u', 's', 'l', 'h', 'b'))}",
                lambda: f"(float)as_i64({e('l')})",
                lambda: f"tame((float){e('d')})",
                lambda: f"({self.condition(depth - 1)} ? {e('f')} : {e('f')})",
                lambda: f"(- {e('f')})",
                lambda: f"tame(bits_f({e('u')}))",
            )()
        return self.pick(
            lambda: f"d_add({e('d')}, {e('d')})",
            lambda: f"d_mul({e('d')}, {e('d')})",
            lambda: f"d_fma({e('d')}, {e('d')}, {e('d')})",
            lambda: f"d_div({e('d')}, {e('d')})",
            lambda: f"(double){e(self.pick('u', 's', 'l'))}",
            lambda: f"(double)tame({e('f')})",
            lambda: f"tame_d(bits_d({e('l')}))",
        )()

    def condition(self, depth):
        t = self.pick("u", "s", "l", "f", "d", "b", "h")
        text = f"({self.expr(t, depth)} {self.pick('<', '<=', '>', '>=', '==', '!=')} {self.expr(t, depth)})"
        if depth > 0 and self.rng.random() < 0.3:
            text = f"({text} {self.pick('&&', '||')} {self.condition(depth - 1)})"
        return text

    def assignment(self):
        t, name = self.pick(*self.vars)
        if t in "fd":
            return f"{name} = {'tame' if t == 'f' else 'tame_d'}({self.expr(t)});"
        return f"{name} = {self.expr(t)};"

    def statement(self, nesting):
        kinds = ["assign"] * 5 + ["array", "helper"]
        if nesting < 3:
            kinds += ["if", "if", "loop", "switch", "while"]
        kind = self.pick(*kinds)
        if kind == "assign":
            return [self.assignment()]
        if kind == "array":
            return [f"a[{self.expr('u', 1)} & 7] = {self.expr('u', 2)};", f"u0 ^= a[{self.expr('u', 1)} & 7];"]
        if kind == "helper":
            return [f"{self.pick('u1', 'u2')} = help_{self.seed}_{self.rng.randrange(len(self.helpers))}"
                    f"({self.expr('u', 1)}, {self.expr('s', 1)}, {self.expr('f', 1)}, {self.rng.randint(0, 5)}u);"]
        if kind == "if":
            text = [f"if ({self.condition(2)}) {{"] + self.block(self.rng.randint(1, 3), nesting + 1) + ["}"]
            if self.rng.random() < 0.6:
                text += ["else {"] + self.block(self.rng.randint(1, 3), nesting + 1) + ["}"]
            return text
        self.counter += 1
        i = f"i{self.counter}"
        if kind == "loop":
            leave = [f"if ({self.condition(1)}) {self.pick('break', 'continue')};"] if self.rng.random() < 0.5 else []
            return ([f"for (uint32_t {i} = 0, n{i} = {self.expr('u', 1)} % {self.rng.randint(1, 6)}u; {i} < n{i}; {i}++) {{",
                     f"u3 += {i} * 3u;"] + leave + self.block(self.rng.randint(1, 2), nesting + 1) + ["}"])
        if kind == "while":
            return ([f"uint32_t {i} = {self.expr('u', 1)} & 7u;", f"do {{"] + self.block(1, nesting + 1) +
                    [f"u2 ^= {i};", f"}} while ({i}-- > 0u);"])
        text = [f"switch ({self.expr('u', 2)} % {self.rng.randint(4, 9)}u) {{"]
        for case in range(self.rng.randint(3, 8)):
            text += [f"case {case}: {{"] + self.block(1, nesting + 1) + ["}"]
            if self.rng.random() < 0.8:
                text.append("break;")
        return text + ["default:", f"u1 += {self.rng.randint(1, 99)}u;", "}"]

    def block(self, n, nesting):
        return [line for _ in range(n) for line in self.statement(nesting)]

    def helper(self, index):
        """A function that is called, with early returns, a loop and (where its number is 0) recursion."""
        saved, self.vars = self.vars, [("u", "x"), ("s", "y"), ("f", "z")]
        known, e = "usf", lambda t: self.expr(t, 2)
        original = self.leaf
        self.leaf = lambda t: original(t) if t in known and self.rng.random() < 0.7 else self.constant(t)
        name = f"help_{self.seed}_{index}"
        lines = [f"FN_CALL uint32_t {name}(uint32_t x, int32_t y, float z, uint32_t depth)", "{",
                 f"if ({self.condition(1)}) return {e('u')};", f"z = tame({e('f')});",
                 f"for (uint32_t k = 0; k < (x & 3u); k++) y = {e('s')};", f"x ^= {e('u')};"]
        if index == 0:
            lines.append(f"if (depth > 0u) x += {name}({e('u')}, {e('s')}, tame({e('f')}), depth - 1u);")
        lines += [f"return x + (uint32_t)y * 5u + f_bits(tame(z)) + {e('u')};", "}"]
        self.vars, self.leaf = saved, original
        return lines

    def exchange(self):
        return self.pick("shared", "rotate", "xor", "down", "ballot", "sum", "max", "atomic64", "none")

    # ---- the two texts ----

    def state(self):
        return " ".join(f"{self.C_TYPE[t]} {name};" for t, name in self.vars) + " uint32_t a[8];"

    def load(self):
        lines = []
        for k, (t, name) in enumerate(self.vars):
            word = f"in[t * {INPUTS}u + {k % INPUTS}u]"
            lines.append(f"{name} = " + {
                "l": f"(uint64_t){word} << 32 | in[t];", "f": f"tame(bits_f({word}));", "d": f"(double)as_i32({word}) * 0.25;",
            }.get(t, f"({self.C_TYPE[t]})({word} >> {k}u);"))
        return lines + ["for (uint32_t k = 0; k < 8u; k++) a[k] = u0 + k;"]

    def result(self):
        words = []
        for t, name in self.vars:
            if t in "ld":
                bits = name if t == "l" else f"d_bits(tame_d({name}))"
                words += [f"(uint32_t){bits}", f"(uint32_t)({bits} >> 32)"]
            else:
                words.append(f"f_bits(tame({name}))" if t == "f" else f"(uint32_t){name}")
        return words + [f"a[{k}]" for k in range(8)]

    def words(self):
        return len(self.result())

    CUDA_EXCHANGE = {
        "none": [],
        "shared": ["s[t] = u0;", "__syncthreads();", f"u1 ^= s[(t * 5u + 7u) % {BLOCK}u];", "__syncthreads();"],
        "rotate": ["u1 += __shfl_sync(0xffffffffu, u0, (t + 5u) & 31u);"],
        "xor": ["l0 ^= __shfl_xor_sync(0xffffffffu, l1, 9);"],
        "down": ["f0 = tame(__shfl_down_sync(0xffffffffu, f1, 3, 8));"],
        "ballot": ["u1 ^= __ballot_sync(0xffffffffu, (u0 & 4u) != 0u);"],
        "sum": ["if (t == 0) s[0] = 0;", "__syncthreads();", "atomicAdd(&s[0], u0);", "__syncthreads();", "u2 += s[0];",
                "__syncthreads();"],
        "max": ["if (t == 0) s[1] = 0;", "__syncthreads();", "atomicMax((int32_t *)&s[1], s0);", "__syncthreads();",
                "u2 += s[1];", "__syncthreads();"],
        "atomic64": ["if (t == 0) w = 0;", "__syncthreads();", "atomicAdd(&w, (unsigned long long)l0);", "__syncthreads();",
                     "l2 ^= w;", "__syncthreads();"],
    }
    # On the host: what is read from the others before any of them changes, then what a thread does with it.
    HOST_EXCHANGE = {
        "none": ("", ""),
        "shared": ("word[t] = all[t].u0;", f"all[t].u1 ^= word[(t * 5u + 7u) % {BLOCK}u];"),
        "rotate": ("word[t] = all[t].u0;", "all[t].u1 += word[(t & ~31u) + ((t + 5u) & 31u)];"),
        "xor": ("wide[t] = all[t].l1;", "all[t].l0 ^= wide[t ^ 9u];"),
        "down": ("real[t] = all[t].f1;", "all[t].f0 = tame(real[(t & 7u) + 3u > 7u ? t : t + 3u]);"),
        "ballot": ("word[t / 32u] = (t % 32u ? word[t / 32u] : 0u) | uint32_t((all[t].u0 & 4u) != 0u) << (t % 32u);",
                   "all[t].u1 ^= word[t / 32u];"),
        "sum": ("word[0] = (t ? word[0] : 0u) + all[t].u0;", "all[t].u2 += word[0];"),
        "max": ("word[0] = t && as_i32(word[0]) > all[t].s0 ? word[0] : !t && all[t].s0 < 0 ? 0u : (uint32_t)all[t].s0;",
                "all[t].u2 += word[0];"),
        "atomic64": ("wide[0] = (t ? wide[0] : 0u) + all[t].l0;", "all[t].l2 ^= wide[0];"),
    }

    def cuda(self):
        text = [line for h in self.helpers for line in h]
        text += [f'extern "C" __global__ void fuzz_{self.seed}(uint32_t *out, const uint32_t *in)', "{",
                 f"__shared__ uint32_t s[{BLOCK}];", "__shared__ unsigned long long w;", "const uint32_t t = threadIdx.x;",
                 "(void)s, (void)w;", self.state()] + self.load()
        for phase, exchange in zip(self.phases, self.exchanges):
            text += ["{"] + phase + ["}"] + self.CUDA_EXCHANGE[exchange]
        text += [f"out[{k}u * {BLOCK}u + t] = {word};" for k, word in enumerate(self.result())]
        return "\n".join(text + ["}"])

    def host(self):
        text = [line for h in self.helpers for line in h]
        struct = f"State_{self.seed}"
        text += [f"struct {struct} {{ {self.state()}"]
        text += ["void load(const uint32_t *in, uint32_t t) {"] + self.load() + ["}"]
        for k, phase in enumerate(self.phases):
            text += [f"void phase{k}(uint32_t t) {{ (void)t;"] + phase + ["}"]
        text += ["void store(uint32_t *out, uint32_t t) {"]
        text += [f"out[{k}u * {BLOCK}u + t] = {word};" for k, word in enumerate(self.result())] + ["} };"]
        every = f"for (uint32_t t = 0; t < {BLOCK}u; t++) "
        text += [f"static void fuzz_{self.seed}(uint32_t *out, const uint32_t *in)", "{", f"static {struct} all[{BLOCK}];",
                 f"static uint32_t word[{BLOCK}]; static uint64_t wide[{BLOCK}]; static float real[{BLOCK}];",
                 "(void)word, (void)wide, (void)real;", every + "all[t].load(in, t);"]
        for k, exchange in enumerate(self.exchanges):
            give, take = self.HOST_EXCHANGE[exchange]
            text.append(every + f"all[t].phase{k}(t);")
            text += [every + "{ " + give + " }", every + "{ " + take + " }"] if give else []
        return "\n".join(text + [every + "all[t].store(out, t);", "}"])


HOST_TABLE = """
struct FuzzCase {{
    const char *name;
    void (*run)(uint32_t *out, const uint32_t *in);
    unsigned words;
}};
static const unsigned FUZZ_BLOCK = {block}, FUZZ_INPUTS = {inputs};
static const FuzzCase fuzz_cases[] = {{
{rows}
}};
"""


def emit_cuda(programs):
    return PRELUDE + "\n".join(p.cuda() for p in programs) + "\n"


def emit_host(programs):
    rows = "\n".join(f'    {{"fuzz_{p.seed}", fuzz_{p.seed}, {p.words()}}},' for p in programs)
    return (PRELUDE + "\n".join(p.host() for p in programs) +
            HOST_TABLE.format(block=BLOCK, inputs=INPUTS, rows=rows))


def run(first, count, arch, options, build, nvcc):
    """Compiles and compares in batches; the comparison is build/emu_fuzz_test's, told by variables where to look."""
    bad = []
    root = pathlib.Path(__file__).resolve().parent
    for start in range(first, first + count, 10):
        seeds = range(start, min(start + 10, first + count))
        programs = [Program(s) for s in seeds]
        with tempfile.TemporaryDirectory(prefix="ptxemu-fuzz-") as folder:
            d = pathlib.Path(folder)
            (d / "fuzz.cu").write_text(emit_cuda(programs))
            (d / "fuzz_host.h").write_text(emit_host(programs))
            subprocess.run([nvcc, "-ptx", "-std=c++17", "-lineinfo", "-w", f"-arch=compute_{arch}", *options, "-o",
                            str(d / "fuzz.ptx"), str(d / "fuzz.cu")], check=True)
            include = pathlib.Path(nvcc).resolve().parent.parent / "include"
            subprocess.run(["g++", "-std=c++17", "-O1", "-w", "-fwrapv", "-ffp-contract=off", "-D_GNU_SOURCE", f"-I{d}", f"-I{root}",
                            f"-isystem{include}", f'-DNIBBLE_BUILD_DIR="{build}"', "-o", str(d / "test"),
                            str(root / "test" / "emu_fuzz_test.cpp"), "-lgtest", "-lgtest_main", "-lpthread", "-ldl", "-lm"],
                           check=True)
            done = subprocess.run([str(d / "test"), "--gtest_brief=1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  env={**os.environ, "PTXEMU_FUZZ_PTX": str(d / "fuzz.ptx")})
            if done.returncode:
                bad.append(start)
                print(f"seeds {seeds.start}..{seeds.stop - 1}:\n{done.stdout[:4000]}", flush=True)
    print(f"{count} programs, {len(bad)} batches with differences")
    return 1 if bad else 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True)
    for name in ("emit-cuda", "emit-host"):
        c = commands.add_parser(name)
        c.add_argument("-o", "--output", default="-")
        c.add_argument("seeds", type=int, nargs="+")
    c = commands.add_parser("run")
    c.add_argument("first", type=int)
    c.add_argument("count", type=int)
    c.add_argument("--arch", default="80", help="75, 80, 90a ...")
    c.add_argument("--nvcc", default="nvcc")
    c.add_argument("--build", default="build", help="the folder of libptxemu.so")
    c.add_argument("--options", default="-O3", help="of nvcc: -G, or '-Xcicc -O1'")
    a = p.parse_args()
    if a.command == "run":
        import shutil
        nvcc = shutil.which(a.nvcc) or sys.exit(f"{a.nvcc} was not found")
        return run(a.first, a.count, a.arch, a.options.split(), os.path.abspath(a.build), nvcc)
    text = (emit_cuda if a.command == "emit-cuda" else emit_host)([Program(s) for s in a.seeds])
    if a.output == "-":
        sys.stdout.write(text)
    else:
        pathlib.Path(a.output).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

/* What every room of the emulator speaks of: PTX types, state spaces, source locations, launch dimensions.
 *
 * Names follow the PTX ISA (9.0). Nothing here depends on another file of the emulator. */
#ifndef PTXEMU_TYPES_H
#define PTXEMU_TYPES_H

#include <cstddef>
#include <cstdint>
#include <string>

namespace ptxemu
{

constexpr unsigned WARP_SIZE = 32;
using Lanes = uint32_t; /* a set of lanes, bit l for lane l */
constexpr Lanes ALL_LANES = 0xffffffffu;

/* The types that can follow an opcode.       name, text, bits, kind */
#define PTXEMU_TYPES(X)                                                                                                \
    X(none, "", 0, none)                                                                                               \
    X(pred, "pred", 1, pred)                                                                                           \
    X(b1, "b1", 1, bits)                                                                                               \
    X(b8, "b8", 8, bits)                                                                                               \
    X(b16, "b16", 16, bits)                                                                                            \
    X(b32, "b32", 32, bits)                                                                                            \
    X(b64, "b64", 64, bits)                                                                                            \
    X(b128, "b128", 128, bits)                                                                                         \
    X(u4, "u4", 4, unsigned_)                                                                                          \
    X(u8, "u8", 8, unsigned_)                                                                                          \
    X(u16, "u16", 16, unsigned_)                                                                                       \
    X(u32, "u32", 32, unsigned_)                                                                                       \
    X(u64, "u64", 64, unsigned_)                                                                                       \
    X(s4, "s4", 4, signed_)                                                                                            \
    X(s8, "s8", 8, signed_)                                                                                            \
    X(s16, "s16", 16, signed_)                                                                                         \
    X(s32, "s32", 32, signed_)                                                                                         \
    X(s64, "s64", 64, signed_)                                                                                         \
    X(u16x2, "u16x2", 32, unsigned_)                                                                                   \
    X(s16x2, "s16x2", 32, signed_)                                                                                     \
    X(f16, "f16", 16, float_)                                                                                          \
    X(f16x2, "f16x2", 32, float_)                                                                                      \
    X(bf16, "bf16", 16, float_)                                                                                        \
    X(bf16x2, "bf16x2", 32, float_)                                                                                    \
    X(tf32, "tf32", 32, float_)                                                                                        \
    X(f32, "f32", 32, float_)                                                                                          \
    X(f32x2, "f32x2", 64, float_)                                                                                      \
    X(f64, "f64", 64, float_)                                                                                          \
    X(e4m3, "e4m3", 8, float_)                                                                                         \
    X(e5m2, "e5m2", 8, float_)                                                                                         \
    X(e4m3x2, "e4m3x2", 16, float_)                                                                                    \
    X(e5m2x2, "e5m2x2", 16, float_)

enum class Type : uint8_t {
#define X(name, text, bits, kind) name,
    PTXEMU_TYPES(X)
#undef X
};
enum class TypeKind : uint8_t { none, pred, bits, unsigned_, signed_, float_ };

unsigned type_bits(Type t);
TypeKind type_kind(Type t);
const char *type_text(Type t);               /* "u32", without the dot */
bool type_from_text(const char *s, Type *t); /* false: not a type */
inline unsigned type_bytes(Type t)
{
    return (type_bits(t) + 7) / 8;
}
inline bool is_float(Type t)
{
    return type_kind(t) == TypeKind::float_;
}
inline bool is_signed(Type t)
{
    return type_kind(t) == TypeKind::signed_;
}

/* State spaces. `shared` is the window of the own CTA, `shared_cluster` any CTA of the cluster; a 32-bit shared address holds
 * the offset in bits 0-23 and, in bits 24-31, 0 for the own CTA or 1 + the rank of another one (made by mapa).
 * `param` is the kernel's parameter block (read only, one for the grid).  Parameters and return values of device functions, and
 * the .param variables of a call, live in the caller's or callee's part of local memory: the decoder turns them into `local`. */
enum class Space : uint8_t { generic, global, shared, shared_cluster, local, constant, param };
const char *space_text(Space s);

/* Where generic addresses of the windows begin.  Global, constant and param addresses are host addresses; these ranges are
 * reserved at start, so that no allocation ever lies in them. */
constexpr uint64_t SHARED_WINDOW = 0x0000200000000000ull; /* + 32-bit shared address */
constexpr uint64_t LOCAL_WINDOW = 0x0000210000000000ull;  /* + offset in the thread's local memory */
constexpr uint64_t WINDOW_BYTES = 1ull << 32;

struct Loc {           /* a line of the source, from -lineinfo; line 0: unknown, then ptx_line speaks */
    uint32_t file = 0; /* index into Module::files */
    uint32_t line = 0;
    uint32_t ptx_line = 0;
    uint32_t outer = 0; /* where that line was inlined: 1 + index into ptx::Function::inlined; 0: nowhere */
};

struct Dim3 {
    uint32_t x = 1, y = 1, z = 1;
    uint64_t count() const { return uint64_t(x) * y * z; }
};

std::string format(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

} // namespace ptxemu

#endif

/* Numbers of the types that NCCL and cuBLASLt move, by value. */
#ifndef PTXEMU_COMPANIONS_NUMBERS_H
#define PTXEMU_COMPANIONS_NUMBERS_H

#include <cstddef>
#include <cstdint>

namespace ptxemu::companions
{

enum class Number : uint8_t { s8, u8, s32, u32, s64, u64, f16, bf16, f32, f64 };
enum class Reduction : uint32_t { sum, product, max, min, average };

size_t number_bytes(Number t);
bool is_integer(Number t);
double load_float(Number t, const void *p);           /* exact, for every type but 64-bit integers */
void store_float(Number t, void *p, double value);    /* rounded once to nearest even; integers: rounded and clamped */
int64_t load_integer(Number t, const void *p);        /* u64 as its bits */
void store_integer(Number t, void *p, int64_t value); /* wraps */

/* out = terms[0] op terms[1] op ..., in that order: integers wrap, floats in double and rounded once; the average divides at the
 * end (integers truncate). */
void reduce(Number t, Reduction r, const uint8_t *const *terms, size_t n, uint8_t *out);

} // namespace ptxemu::companions

#endif

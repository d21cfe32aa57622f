/* bitsandbytes, as Transformers saves and loads it.  The tensors of a module:
 *
 *     4 bits   weight                                  U8 [N*K/2, 1]   row after row, two codes a byte, the first one high
 *              weight.absmax                           F32 [blocks]    or, nested, U8: codes of nested_quant_map
 *              weight.quant_map                        F32 [16]
 *              weight.quant_state.bitsandbytes__nf4    U8 [bytes]      JSON: quant_type, blocksize, dtype, shape ...
 *              weight.nested_absmax, weight.nested_quant_map           F32 [blocks of blocks], F32 [256]
 *     8 bits   weight                                  I8 [N, K]
 *              SCB                                     F32 [N]         w = code * SCB / 127
 *
 * Blocks run over the ends of rows.  Of such a matrix nibble makes groups as long as the longest that divides both.
 *
 * Written: NF4 without nesting, where all of a model is NF4 or dense.  Read: NF4, nested or not, and 8 bits, as weights alone: the
 * INT8 activations of LLM.int8() are a way to compute, which stays out of the file.  FP4 is refused. */
#ifndef NB_FORMAT_BITSANDBYTES_H
#define NB_FORMAT_BITSANDBYTES_H

#include "format/quantized.h"

extern const nbi_quant_format nbi_bnb_format;

#define NBI_BNB_STATE "weight.quant_state.bitsandbytes__nf4"

/* Block sizes that its kernels have. */
static inline bool nbi_bnb_has_block(uint32_t block)
{
    return block >= 64 && block <= 4096 && (block & (block - 1)) == 0;
}

nb_status nbi_bnb_scheme(const void *config, const nbi_checkpoint *c, const char *module, const char *cls,
                         nbi_scheme *out);
nb_status nbi_bnb_read(nbi_weight *w, const void *config, const nbi_checkpoint *c, const char *module);

#endif

/* Which tensors a quantized weight is stored as; declaring, writing, reading and counting bytes all ask this list.
 *
 *     weights only ("pack-quantized")                       weights and activations ("int-quantized")
 *     weight_packed      I32 [N, ceil(K*b/32)]              weight             I8 [N, K], also below 8 bits
 *     weight_scale       float [1] | [N,1] | [N,K/g]        weight_scale       as there
 *     weight_shape       I64 [2]: N, K
 *     weight_zero_point  I32 [ceil(N*b/32), groups]         weight_zero_point  I8, shape of the scale
 *                        (per tensor: I8 [1])
 *                                                           input_scale        float [1]   static activations
 *                                                           input_zero_point   I8 [1]      ... if asymmetric */
#ifndef NB_FORMAT_CT_LAYOUT_H
#define NB_FORMAT_CT_LAYOUT_H

#include "base/weight.h"
#include "format/safetensors.h"

typedef struct nbi_ct_part {
    const char *suffix; /* "weight_scale" */
    nbi_dtype dtype;
    uint32_t n_dims;
    size_t shape[2];
} nbi_ct_part;

typedef struct nbi_ct_layout {
    size_t n_parts;
    nbi_ct_part part[6];
} nbi_ct_layout;

/* Fails (NB_EINVAL, naming `module`) on bits other than 2, 3, 4 and 8, empty shapes, and K that the group does not divide. */
nb_status nbi_ct_layout_of(nbi_ct_layout *l, const char *module, size_t n, size_t k, const nbi_scheme *scheme,
                           nbi_dtype scale_dtype);

bool nbi_ct_part_bytes(const nbi_ct_part *p, size_t *bytes); /* false: overflow */
/* The data of one part, dst zeroed.  NB_EINVAL for codes, scales and zero points that cannot be stored. */
nb_status nbi_ct_put_part(void *dst, const char *module, const nbi_weight *w, const nbi_ct_part *p);

/* Reading parts, for formats that store some in the same way; w has n, k and a scheme.  The first one allocates the weight. */
nb_status nbi_ct_read_packed(nbi_weight *w, const nbi_checkpoint *c, const char *module);
nb_status nbi_ct_check_shape(const nbi_weight *w, const nbi_checkpoint *c, const char *module);
nb_status nbi_ct_read_scales(nbi_weight *w, const nbi_checkpoint *c, const char *module);
nb_status nbi_ct_read_input(nbi_weight *w, const nbi_checkpoint *c, const char *module);

/* The reference's rule: integer weights with integer activations are stored one code a byte. */
static inline bool nbi_ct_is_packed(const nbi_scheme *s)
{
    return s->act == NBI_ACT_NONE;
}

/* ceil(n*b/32) without overflow, b <= 8. */
static inline size_t nbi_ct_words(size_t n, unsigned bits)
{
    return n / 32 * bits + (n % 32 * bits + 31) / 32;
}

static inline bool nbi_ct_has_bits(unsigned bits)
{
    return bits == 2 || bits == 3 || bits == 4 || bits == 8;
}

/* Element i of a stream of b-bit numbers without gaps, low bits first, whose words are `stride` apart.  put: the bits are 0. */
static inline void nbi_ct_put(uint32_t *words, size_t stride, size_t i, unsigned bits, uint32_t u)
{
    const size_t w = i / 32 * bits + i % 32 * bits / 32;
    const unsigned at = (unsigned)(i % 32 * bits % 32);
    words[w * stride] |= u << at;
    if (at + bits > 32)
        words[(w + 1) * stride] |= u >> (32 - at);
}

#endif

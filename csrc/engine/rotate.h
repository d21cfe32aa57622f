/* QuaRot: Ashkboos, Mohtashami, Croci, Li, Cameron, Jaggi, Alistarh, Hoefler, Hensman, "QuaRot: Outlier-Free 4-Bit Inference in
 * Rotated LLMs", arXiv 2404.00456.  A checkpoint is read as another one that computes the same function, but whose activations
 * have no places that stick out.  T is the rotation of base/rotation.h of the order at hand, D random signs, g a norm's weight:
 *
 *   residual stream   x becomes T D x: embedding rows E T-rotated, o_proj and down_proj write T D W; since a rotation keeps lengths,
 *                     RMS norms commute with it once their weights are in the layers behind them:
 *                     q, k, v, gate, up and lm_head read W diag(g) D T, and every norm's weight is 1
 *   values            each head of v_proj is rotated, and o_proj rotates it back: exact, as attention mixes tokens and not places
 *   down_proj         its input is rotated at run time (nbi_weight.in_signs), W D T; only where it is quantized
 *   queries and keys  are rotated at run time behind RoPE (nbi_kv_layer.rotate): scores stay
 *
 * QuaRot's further rotation across heads before o_proj is left out: inputs of o_proj are quantized to 8 bits here. */
#ifndef NB_ENGINE_ROTATE_H
#define NB_ENGINE_ROTATE_H

#include "base/weight.h"
#include "format/safetensors.h"
#include "model/config.h"
#include "quant/inputs.h"

typedef struct nbi_rotation nbi_rotation;

/* Keeps cfg, ckpt and scheme ([n_layers * NBI_N_PROJ]; NULL: all quantized). */
nb_status nbi_rotation_create(nbi_rotation **out, const nbi_config *cfg, const nbi_checkpoint *ckpt,
                              const nbi_scheme *const *scheme, int threads);
void nbi_rotation_free(nbi_rotation *r); /* NULL is fine */

/* w, a dense module as the checkpoint has it, becomes the rotated one in fp32. */
nb_status nbi_rotation_linear(const nbi_rotation *r, const char *module, nbi_weight *w);
/* q, made of such a w, gets its signs. */
nb_status nbi_rotation_sign(nbi_weight *q, const nbi_weight *w);
/* A tensor that stays dense, in fp32, malloc'ed; *out NULL: it stays as it is. */
nb_status nbi_rotation_tensor(const nbi_rotation *r, const nbi_tensor *t, float **out);
/* Tied embeddings come apart, as the weights of the last norm go into lm_head alone: the tensor that it becomes, whose numbers go
 * to *out (NULL: not wanted).  False: it is in the checkpoint already. */
nb_status nbi_rotation_head(const nbi_rotation *r, bool *needed, nbi_tensor *t, float **out);
/* What was seen of an input that a layer with these signs rotates (NULL: none).  Only second moments follow. */
nb_status nbi_rotation_inputs(nbi_inputs *in, const int8_t *signs, int threads);

#endif

/* One sequence with a KV cache of its own: what logits, perplexity and calibration run on. */
#ifndef NB_MODEL_SEQUENCE_H
#define NB_MODEL_SEQUENCE_H

#include "model/model.h"

typedef struct nbi_sequence nbi_sequence;

/* Room for max_tokens positions; computes `chunk` of them at a time. */
nb_status nbi_sequence_create(nbi_sequence **out, const nb_model *m, size_t max_tokens, size_t chunk, nbi_kv_type kv);
void nbi_sequence_free(nbi_sequence *s);

/* Starts again at position 0 and feeds n <= max_tokens ids.  For each chunk, `sink` receives the fp32 logits
 * [rows][vocab] of positions first .. first+rows-1 (valid during the call); sink NULL computes no logits. */
typedef nb_status (*nbi_logits_fn)(void *user, size_t first, size_t rows, const float *logits);
nb_status nbi_sequence_run(nbi_sequence *s, const int32_t *ids, size_t n, nbi_logits_fn sink, void *sink_user,
                           nbi_tap_fn tap, void *tap_user);

#endif

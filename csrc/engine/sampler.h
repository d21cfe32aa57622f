/* Sampling from one row of logits.  A pure function of (logits, parameters, history, position). */
#ifndef NB_ENGINE_SAMPLER_H
#define NB_ENGINE_SAMPLER_H

#include "backend/backend.h"
#include "base/status.h"

typedef struct nbi_sampler nbi_sampler; /* scratch for one vocabulary; one thread at a time */
nb_status nbi_sampler_create(nbi_sampler **out, size_t vocab);
void nbi_sampler_free(nbi_sampler *s);

/* Range checks of the parameters: NB_EINVAL naming the one that is off. */
nb_status nbi_sampling_check(const nb_sampling *p);

/* Picks the next token.  `logits` [vocab] is modified.  `history` = prompt and output so far, the output begins at
 * n_prompt; `position` = n_history is the counter of the random number.  With n_top >= 0, *logprob is the token's
 * and top[0..n_top) the best alternatives (after penalties, before temperature).  A row that holds NaN or +infinity,
 * or no finite value, is NB_EINTERNAL.  top needs room for min(n_top, vocab).  Ids in `history` are the caller's to
 * check. */
nb_status nbi_sample(nbi_sampler *s, float *logits, const nb_sampling *p, const int32_t *history, size_t n_prompt,
                     size_t n_history, int n_top, int32_t *token, float *logprob, nb_logprob *top);

/* The same in two halves, for choices that are made where the logits are (backend.h).  nbi_draw_for() says what to
 * draw; false: the request also has penalties or wants alternatives, which it cannot say.  nbi_draw_result() reads the
 * answer; it leaves *logprob alone where none was wanted. */
bool nbi_draw_for(nbi_draw *out, const nb_sampling *p, size_t n_history, int n_top);
nb_status nbi_draw_result(const nbi_drawn *d, size_t n_history, int32_t *token, float *logprob);
/* What a backend's sample() does for one row: what it draws is this, to the bit. */
void nbi_sampler_draw(nbi_sampler *s, const float *logits, const nbi_draw *how, nbi_drawn *out);

#endif

/* A loaded model one layer at a time: windows of text whose residual stream rests on the host in between. */
#ifndef NB_ENGINE_STREAM_H
#define NB_ENGINE_STREAM_H

#include "model/model.h"

typedef struct nbi_stream nbi_stream;

/* For windows of up to ctx tokens.  The model must outlive it; its layers may be exchanged between calls. */
nb_status nbi_stream_create(nbi_stream **out, const nb_model *m, size_t ctx, nbi_kv_type kv);
void nbi_stream_free(nbi_stream *s);

/* x [rows][hidden] = the embeddings of a window. */
nb_status nbi_stream_embed(nbi_stream *s, const int32_t *ids, size_t rows, float *x);
/* x from before layer `first` to before layer `end`; ids are those of the window.  tap may be NULL. */
nb_status nbi_stream_layers(nbi_stream *s, uint32_t first, uint32_t end, const int32_t *ids, size_t rows, float *x,
                            nbi_tap_fn tap, void *tap_user);
/* logits [rows][vocab] of what the last layer left. */
nb_status nbi_stream_logits(nbi_stream *s, size_t rows, const float *x, float *logits);

/* What a model says of some rows, to tell how far another one is from it. */
typedef struct nbi_verdict {
    size_t rows, vocab;
    float *logits, *p; /* [rows][vocab] */
    double *z;         /* [rows] log of the sum of exp(logits) */
    double *kl;        /* [rows] of the last comparison */
} nbi_verdict;
nb_status nbi_verdict_init(nbi_verdict *v, size_t rows, size_t vocab);
void nbi_verdict_free(nbi_verdict *v);  /* the members */
size_t nbi_verdict_bytes(size_t vocab); /* that a row takes */
void nbi_verdict_set(nbi_verdict *v, size_t first, size_t rows, const float *logits, int threads);
/* The sum over rows first .. first+rows-1 of KL(kept || these) = sum p (log p - log q), in nats.  The same for any number of
 * threads.  NaN where a logit is NaN or infinite. */
double nbi_verdict_kl(nbi_verdict *v, size_t first, size_t rows, const float *logits, int threads);

#endif

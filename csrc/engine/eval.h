/* What nb_eval() and nb_eval_layers() share. */
#ifndef NB_ENGINE_EVAL_H
#define NB_ENGINE_EVAL_H

#include "model/model.h"

typedef struct nbi_eval_text {
    nb_eval_options o;
    bool llama_cpp;
    nbi_kv_type kv; /* of the model that is evaluated */
    int32_t *ids;
    size_t n, ctx, windows; /* windows of ctx tokens, those that max_windows asks for */
    int32_t bos;            /* replaces the first token of each window; -1: stays */
} nbi_eval_text;

/* Checks the options and reads the text; base may be NULL, else it must tokenise the text likewise. */
nb_status nbi_eval_text_read(nbi_eval_text *t, const nb_model *m, const nb_model *base, const nb_eval_options *o);
void nbi_eval_text_free(nbi_eval_text *t); /* the members */

#endif

/* The tokenizer behind nb_tokenizer: text -> ids -> text.  The public functions (nibble.h) are implemented here;
 * this header adds what the engine needs. */
#ifndef NB_TEXT_TOKENIZER_H
#define NB_TEXT_TOKENIZER_H

#include <stdbool.h>
#include "base/status.h"

/* Is `id` an end-of-sequence token (eos, and eot/eom where the vocabulary has them)? */
bool nbi_tokenizer_is_eos(const nb_tokenizer *tok, int32_t id);
/* Adds ids from generation_config.json's eos_token_id to the set; called while loading only. */
nb_status nbi_tokenizer_add_eos(nb_tokenizer *tok, int32_t id);
/* Does encoding with NB_TOKENIZE_SPECIAL put BOS first? */
bool nbi_tokenizer_adds_bos(const nb_tokenizer *tok);
/* Chat template source, NULL when there is none; bos/eos as text for the template. */
const char *nbi_tokenizer_chat_template(const nb_tokenizer *tok);
const char *nbi_tokenizer_token_text(const nb_tokenizer *tok, int32_t id); /* NULL: no such id */

#endif

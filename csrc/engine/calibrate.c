#include "engine/calibrate.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/str.h"
#include "nibble.h"

static nb_status text_of_jsonl(nbi_str *out, const char *data, size_t n, const char *path)
{
    size_t line = 1;
    for (const char *p = data, *end = data + n; p < end; line++) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        size_t len = nl ? (size_t)(nl - p) : (size_t)(end - p);
        if (len && !(len == 1 && *p == '\r')) {
            json_t *j;
            nb_status st = nbi_json_parse(&j, p, len, path);
            if (st != NB_OK)
                return nbi_fail_in(st, "line %zu of ", line);
            const json_t *t = json_object_get(j, "text");
            if (!t)
                t = json_object_get(j, "prompt");
            if (!json_is_string(t)) {
                json_decref(j);
                return nbi_fail(NB_EFORMAT, "line %zu of %s: has no string \"text\" or \"prompt\"", line, path);
            }
            nbi_str_add(out, json_string_value(t), json_string_length(t));
            nbi_str_puts(out, "\n\n");
            json_decref(j);
        }
        p += len + 1;
    }
    return NB_OK;
}

nb_status nbi_load_text(char **out, size_t *bytes, const char *path)
{
    char *data = NULL;
    size_t n = strlen(path);
    nb_status st = nbi_read_file(&data, bytes, path, (size_t)4 << 30);
    *out = data;
    if (st != NB_OK || n < 6 || strcmp(path + n - 6, ".jsonl") != 0)
        return st;
    nbi_str s = {0};
    st = text_of_jsonl(&s, data, *bytes, path);
    free(data);
    *bytes = s.len;
    *out = st == NB_OK ? nbi_str_take(&s) : NULL;
    nbi_str_free(&s);
    return st != NB_OK || *out ? st : nbi_fail_nomem(path, *bytes);
}

static nb_status check_tokens(const int32_t *ids, size_t n, const char *path, const char *model, uint32_t vocab)
{
    const size_t first = 2; /* what a tokenizer puts before any text, and a word that no space precedes */
    size_t same = first;
    if (n < 2)
        return nbi_fail(NB_EFORMAT, "%s: has %zu tokens, expected text to calibrate on", path, n);
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= vocab)
            return nbi_fail(NB_EFORMAT,
                            "%s: its tokenizer gives token %zu of %s the id %d, and the model has ids below %u", model,
                            i, path, ids[i], vocab);
    while (same < n && ids[same] == ids[n - 1])
        same++;
    if (same == n && n > 2 * first)
        return nbi_fail(NB_EFORMAT, "%s: is the token %d again and again, %zu times of %zu: expected running text",
                        path, ids[n - 1], n - first, n);
    return NB_OK;
}

nb_status nbi_calib_tokens(int32_t **ids, size_t *n, const char *path, const char *model, uint32_t vocab, size_t most)
{
    nb_status st;
    nb_tokenizer *tok = NULL;
    char *text = NULL;
    size_t bytes;
    *ids = NULL;
    NB_TRY(nb_tokenizer_load(&tok, model));
    NB_TRY(nbi_load_text(&text, &bytes, path));
    NB_TRY(nb_tokenize(tok, text, bytes, NB_TOKENIZE_SPECIAL, ids, n));
    *n = *n < most ? *n : most;
    NB_TRY(check_tokens(*ids, *n, path, model, vocab));
done:
    if (st != NB_OK) {
        nb_free(*ids);
        *ids = NULL;
    }
    free(text);
    nb_tokenizer_free(tok);
    return st;
}

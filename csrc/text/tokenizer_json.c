/* tokenizer.json of the Hugging Face tokenizers library, model type BPE. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/json.h"
#include "text/impl.h"

/* Ids may have gaps, but a table indexed by id must not be blown up by one hostile number. */
static nb_status highest_id(const json_t *vocab, const json_t *added, size_t *n_ids, const char *where)
{
    const char *key;
    const json_t *v;
    size_t i, n = json_object_size(vocab) + json_array_size(added), limit = 4 * n + 65536;
    int64_t high = -1;
    json_object_foreach((json_t *)vocab, key, v)
    {
        if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) >= limit)
            return nbi_fail(NB_EFORMAT, "%s: the id of the token \"%.60s\" is no number from 0 to %zu", where, key,
                            limit - 1);
        high = json_integer_value(v) > high ? json_integer_value(v) : high;
    }
    json_array_foreach((json_t *)added, i, v)
    {
        const json_t *id = json_object_get(v, "id");
        if (!json_is_integer(id) || json_integer_value(id) < 0 || (uint64_t)json_integer_value(id) >= limit)
            return nbi_fail(NB_EFORMAT, "%s: the id of added token %zu is no number from 0 to %zu", where, i,
                            limit - 1);
        high = json_integer_value(id) > high ? json_integer_value(id) : high;
    }
    *n_ids = (size_t)(high + 1);
    return NB_OK;
}

static nb_status read_vocab(nb_tokenizer *t, const json_t *vocab, const json_t *added, const char *where)
{
    nb_status st;
    size_t n_ids = 0;
    const char *key;
    const json_t *v;
    if (!json_is_object(vocab))
        return nbi_fail(NB_EFORMAT, "%s: model.vocab is missing or no object", where);
    NB_TRY(highest_id(vocab, added, &n_ids, where));
    NB_TRY(nbi_vocab_init(&t->vocab, json_object_size(vocab) + json_array_size(added), n_ids));
    for (void *it = json_object_iter((json_t *)vocab); it; it = json_object_iter_next((json_t *)vocab, it)) {
        key = json_object_iter_key(it);
        v = json_object_iter_value(it);
        NB_TRY(nbi_vocab_add(&t->vocab, key, strlen(key), json_integer_value(v), where));
    }
done:
    return st;
}

static nb_status read_one_added(nb_tokenizer *t, const json_t *j, const char *where)
{
    nb_status st;
    const json_t *content = json_object_get(j, "content");
    nbi_added a = {.normalized = true};
    if (!json_is_string(content) || !json_string_length(content))
        return nbi_fail(NB_EFORMAT, "%s: an added token has no \"content\"", where);
    NB_TRY(nbi_json_bool(j, "single_word", &a.single_word, where));
    NB_TRY(nbi_json_bool(j, "lstrip", &a.lstrip, where));
    NB_TRY(nbi_json_bool(j, "rstrip", &a.rstrip, where));
    NB_TRY(nbi_json_bool(j, "special", &a.special, where));
    a.normalized = !a.special;
    NB_TRY(nbi_json_bool(j, "normalized", &a.normalized, where));
    a.bytes = json_string_length(content);
    a.id = nbi_vocab_find(&t->vocab, json_string_value(content), a.bytes); /* the model's id wins */
    if (a.id < 0) {
        a.id = (int32_t)json_integer_value(json_object_get(j, "id"));
        NB_TRY(nbi_vocab_add(&t->vocab, json_string_value(content), a.bytes, a.id, where));
    }
    if (!(a.text = malloc(a.bytes + 1)))
        return nbi_fail_nomem("an added token", a.bytes);
    memcpy(a.text, json_string_value(content), a.bytes + 1);
    if (a.normalized && t->normalizer) { /* is looked for in normalized text, so its own text is normalized too */
        nbi_str n = {0};
        st = nbi_normalize(t->normalizer, a.text, a.bytes, &n);
        if (st == NB_OK && n.len) {
            free(a.text);
            a.bytes = n.len;
            if (!(a.text = nbi_str_take(&n)))
                return nbi_fail_nomem("an added token", a.bytes);
        }
        nbi_str_free(&n);
        if (st != NB_OK) {
            free(a.text);
            return st;
        }
    }
    return nbi_added_add(&t->added, &a);
done:
    return st;
}

/* "a b" or ["a", "b"]. */
static nb_status read_merge(nb_tokenizer *t, const json_t *m, size_t rank, const char *where)
{
    const char *l, *r;
    size_t nl, nr;
    if (json_is_string(m)) {
        const char *s = json_string_value(m), *space = memchr(s, ' ', json_string_length(m));
        size_t n = json_string_length(m);
        if (!space || memchr(space + 1, ' ', n - (size_t)(space + 1 - s)))
            return nbi_fail(NB_EFORMAT, "%s: merge %zu is \"%.60s\", expected two words", where, rank, s);
        l = s;
        nl = (size_t)(space - s);
        r = space + 1;
        nr = n - nl - 1;
    } else if (json_is_array(m) && json_array_size(m) == 2 && json_is_string(json_array_get(m, 0)) &&
               json_is_string(json_array_get(m, 1))) {
        l = json_string_value(json_array_get(m, 0));
        nl = json_string_length(json_array_get(m, 0));
        r = json_string_value(json_array_get(m, 1));
        nr = json_string_length(json_array_get(m, 1));
    } else
        return nbi_fail(NB_EFORMAT, "%s: merge %zu is neither \"a b\" nor [\"a\", \"b\"]", where, rank);
    return nbi_bpe_add(&t->bpe, &t->vocab, (uint32_t)rank, l, nl, r, nr, where);
}

static nb_status read_affix(char **out, const json_t *model, const char *key, const char *where)
{
    const char *s = NULL;
    nb_status st = nbi_json_string(model, key, &s, where);
    if (st != NB_OK || !s || !*s)
        return st;
    if (strlen(s) > 64)
        return nbi_fail(NB_EFORMAT, "%s: \"%s\" has %zu bytes, expected at most 64", where, key, strlen(s));
    return (*out = strdup(s)) ? NB_OK : nbi_fail_nomem("a tokenizer", 0);
}

static nb_status read_model(nb_tokenizer *t, const json_t *model, const json_t *added, const char *where)
{
    nb_status st;
    const char *type = "BPE", *unk = NULL;
    const json_t *merges = json_object_get(model, "merges"), *m;
    double dropout = 0;
    size_t i;
    NB_TRY(nbi_json_string(model, "type", &type, where));
    if (strcmp(type, "BPE") != 0)
        NB_TRY(nbi_fail(NB_EUNSUPPORTED, "%s: the model is of the type \"%s\", expected BPE", where, type));
    NB_TRY(nbi_json_double(model, "dropout", 0, 1, &dropout, where));
    if (dropout != 0)
        NB_TRY(nbi_fail(NB_EUNSUPPORTED, "%s: \"dropout\" is %g, expected none", where, dropout));
    if (!json_is_array(merges) || json_array_size(merges) > UINT32_MAX)
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: model.merges is missing or no list", where));
    NB_TRY(read_vocab(t, json_object_get(model, "vocab"), added, where));
    NB_TRY(nbi_bpe_init(&t->bpe, json_array_size(merges)));
    NB_TRY(read_affix(&t->bpe.prefix, model, "continuing_subword_prefix", where));
    NB_TRY(read_affix(&t->bpe.suffix, model, "end_of_word_suffix", where));
    NB_TRY(nbi_json_bool(model, "byte_fallback", &t->bpe.byte_fallback, where));
    NB_TRY(nbi_json_bool(model, "fuse_unk", &t->bpe.fuse_unk, where));
    NB_TRY(nbi_json_bool(model, "ignore_merges", &t->bpe.ignore_merges, where));
    NB_TRY(nbi_json_string(model, "unk_token", &unk, where));
    if (unk && (t->bpe.unk = nbi_vocab_find(&t->vocab, unk, strlen(unk))) < 0)
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: \"unk_token\" is \"%s\", which is not in the vocabulary", where, unk));
    nbi_bpe_find_bytes(&t->bpe, &t->vocab);
    json_array_foreach((json_t *)merges, i, m)
    {
        NB_TRY(read_merge(t, m, i, where));
    }
done:
    return st;
}

static nb_status add_token_ids(nbi_ids *ids, const json_t *special, const char *name, const char *where)
{
    const json_t *list = json_object_get(json_object_get(special, name), "ids"), *id;
    size_t i;
    if (!json_is_array(list))
        return nbi_fail(NB_EFORMAT, "%s: the post_processor uses \"%s\", but its special_tokens lack it", where, name);
    json_array_foreach((json_t *)list, i, id) nbi_ids_add(ids, (int32_t)json_integer_value(id));
    return NB_OK;
}

/* TemplateProcessing: what stands before and after the text ("A") in "single". */
static nb_status read_template(nb_tokenizer *t, const json_t *p, const char *where)
{
    const json_t *single = json_object_get(p, "single"), *special = json_object_get(p, "special_tokens"), *one;
    bool after = false;
    size_t i;
    nb_status st = NB_OK;
    if (!json_is_array(single))
        return nbi_fail(NB_EFORMAT, "%s: the template of the post_processor has no list \"single\"", where);
    json_array_foreach((json_t *)single, i, one)
    {
        const char *id = json_string_value(json_object_get(json_object_get(one, "SpecialToken"), "id"));
        if (id)
            NB_TRY(add_token_ids(after ? &t->after : &t->before, special, id, where));
        else
            after = true;
    }
done:
    return st;
}

static nb_status read_post(nb_tokenizer *t, const json_t *p, const char *where, int depth)
{
    if (!p || json_is_null(p))
        return NB_OK;
    const char *type = json_string_value(json_object_get(p, "type"));
    const json_t *list = json_object_get(p, "processors"), *one;
    size_t i;
    nb_status st = NB_OK;
    if (!type || depth > 4)
        return nbi_fail(NB_EFORMAT, "%s: the post_processor has no \"type\" or is nested too deeply", where);
    if (strcmp(type, "ByteLevel") == 0) /* only changes offsets, which nibble does not report */
        return NB_OK;
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(t, p, where);
    if (strcmp(type, "Sequence") == 0 && json_is_array(list)) {
        json_array_foreach((json_t *)list, i, one)
        {
            if ((st = read_post(t, one, where, depth + 1)) != NB_OK)
                return st;
        }
        return NB_OK;
    }
    return nbi_fail(NB_EUNSUPPORTED,
                    "%s: the post_processor is of the type \"%s\", expected TemplateProcessing, "
                    "ByteLevel or Sequence",
                    where, type);
}

nb_status nbi_tokenizer_from_json(nb_tokenizer *t, const char *path)
{
    json_t *j = NULL;
    nb_status st;
    size_t i;
    const json_t *one;
    NB_TRY(nbi_json_load(&j, path));
    const json_t *added = json_object_get(j, "added_tokens"), *model = json_object_get(j, "model");
    if (!json_is_object(model))
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: has no object \"model\"", path));
    NB_TRY(read_model(t, model, added, path));
    NB_TRY(nbi_normalizer_parse(&t->normalizer, json_object_get(j, "normalizer"), path));
    NB_TRY(nbi_pretokenizer_parse(&t->pretokenizer, json_object_get(j, "pre_tokenizer"), path));
    NB_TRY(nbi_decoder_parse(&t->decoder, json_object_get(j, "decoder"), path));
    json_array_foreach((json_t *)added, i, one)
    {
        NB_TRY(read_one_added(t, one, path));
    }
    NB_TRY(read_post(t, json_object_get(j, "post_processor"), path, 0));
    for (i = 0; i < t->before.n + t->after.n; i++) {
        int32_t id = i < t->before.n ? t->before.v[i] : t->after.v[i - t->before.n];
        if (id < 0 || (size_t)id >= t->vocab.n_ids)
            NB_TRY(nbi_fail(NB_EFORMAT, "%s: the post_processor adds the id %d, expected 0 to %zu", path, id,
                            t->vocab.n_ids - 1));
    }
done:
    json_decref(j);
    return st;
}

/* A token as "text" or {"content": "text"}; -1 when there is none. */
static int32_t named_token(const nb_tokenizer *t, const json_t *config, const char *key)
{
    const json_t *v = json_object_get(config, key);
    if (json_is_object(v))
        v = json_object_get(v, "content");
    return json_is_string(v) ? nbi_vocab_find(&t->vocab, json_string_value(v), json_string_length(v)) : -1;
}

/* A template, or the one named "default" of several. */
static const char *template_in(const json_t *config)
{
    const json_t *c = json_object_get(config, "chat_template"), *one;
    size_t i;
    if (json_is_string(c))
        return json_string_value(c);
    json_array_foreach((json_t *)c, i, one)
    {
        const char *name = json_string_value(json_object_get(one, "name"));
        if (name && strcmp(name, "default") == 0)
            return json_string_value(json_object_get(one, "template"));
    }
    return NULL;
}

nb_status nbi_tokenizer_read_config(nb_tokenizer *t, const char *folder)
{
    nb_status st = NB_OK;
    json_t *j = NULL;
    size_t n;
    char *config = nbi_path_join(folder, "tokenizer_config.json"), *file = nbi_path_join(folder, "chat_template.jinja");
    if (!config || !file)
        NB_TRY(nbi_fail_nomem("a path", 0));
    if (nbi_path_exists(config)) {
        NB_TRY(nbi_json_load(&j, config));
        t->bos = named_token(t, j, "bos_token");
        t->eos = named_token(t, j, "eos_token");
        const char *text = template_in(j);
        if (text && !(t->chat_template = strdup(text)))
            NB_TRY(nbi_fail_nomem("the chat template", strlen(text)));
    }
    if (nbi_path_exists(file)) {
        free(t->chat_template);
        t->chat_template = NULL;
        NB_TRY(nbi_read_file(&t->chat_template, &n, file, (size_t)4 << 20));
    }
done:
    json_decref(j);
    free(config);
    free(file);
    return st;
}

/* nb_chat_render: OpenAI messages to a prompt, through the model's chat template.
 *
 * A template sees what Transformers gives it: messages, add_generation_prompt, tools and documents (none), bos_token and
 * eos_token where the tokenizer has them.  OpenAI's messages differ from what templates expect in three points, which are
 * evened out first:
 *   content in parts   stays as it is when the template walks content itself ({% for part in message.content %}); for
 *                      every other template the texts are joined by newlines, as vLLM does
 *   tool arguments     are JSON text in OpenAI's API and an object in templates: parsed where that gives an object
 *   reasoning          comes under three names; templates read reasoning_content or thinking */
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "text/jinja.h"
#include "text/tokenizer.h"

static const char *type_of(const json_t *v)
{
    static const char *const names[] = {"an object", "an array", "a string", "a number",
                                        "a number",  "true",     "false",    "null"};
    return v ? names[json_typeof(v)] : "missing";
}

/* ---- checks ------------------------------------------------------------------------------------------------------ */

static nb_status check_parts(const json_t *parts, size_t i)
{
    size_t k;
    json_t *part;
    json_array_foreach(parts, k, part)
    {
        const char *type = json_string_value(json_object_get(part, "type"));
        if (!json_is_object(part))
            return nbi_fail(NB_EINVAL, "messages[%zu].content[%zu] is %s, expected an object", i, k, type_of(part));
        if (!type || strcmp(type, "text"))
            return nbi_fail(NB_EINVAL, "messages[%zu].content[%zu].type is '%.40s', expected 'text'", i, k,
                            type ? type : type_of(json_object_get(part, "type")));
        if (!json_is_string(json_object_get(part, "text")))
            return nbi_fail(NB_EINVAL, "messages[%zu].content[%zu].text is %s, expected a string", i, k,
                            type_of(json_object_get(part, "text")));
    }
    return NB_OK;
}

static nb_status check_message(const json_t *m, size_t i)
{
    const json_t *role = json_object_get(m, "role"), *content = json_object_get(m, "content");
    if (!json_is_object(m))
        return nbi_fail(NB_EINVAL, "messages[%zu] is %s, expected an object", i, type_of(m));
    if (!json_is_string(role))
        return nbi_fail(NB_EINVAL, "messages[%zu].role is %s, expected a string", i, type_of(role));
    if (json_is_array(content))
        return check_parts(content, i);
    /* A message that only calls tools may leave its content out. */
    if (json_is_string(content) || json_is_null(content) ||
        (!content && json_array_size(json_object_get(m, "tool_calls"))))
        return NB_OK;
    return nbi_fail(NB_EINVAL, "messages[%zu].content is %s, expected a string, null or an array of text parts", i,
                    type_of(content));
}

/* ---- evening out ------------------------------------------------------------------------------------------------- */

static nb_status set(json_t *o, const char *key, json_t *value)
{
    return json_object_set_new(o, key, value) == 0 ? NB_OK : nbi_fail_nomem("chat messages", 64);
}

static nb_status join_parts(json_t *m)
{
    nbi_str text = {0};
    size_t k;
    json_t *part, *content = json_object_get(m, "content");
    if (!json_is_array(content))
        return NB_OK;
    json_array_foreach(content, k, part)
    {
        const json_t *t = json_object_get(part, "text");
        if (k)
            nbi_str_add(&text, "\n", 1);
        nbi_str_add(&text, json_string_value(t), json_string_length(t));
    }
    nbi_str_add(&text, "", 0);
    nb_status st =
        text.failed ? nbi_fail_nomem("chat messages", text.len) : set(m, "content", json_stringn(text.data, text.len));
    nbi_str_free(&text);
    return st;
}

static nb_status parse_arguments(json_t *m)
{
    nb_status st = NB_OK;
    size_t k;
    json_t *call;
    json_array_foreach(json_object_get(m, "tool_calls"), k, call)
    {
        json_t *function = json_object_get(call, "function"), *text = json_object_get(function, "arguments");
        if (!json_is_string(text))
            continue;
        json_t *parsed = json_loadb(json_string_value(text), json_string_length(text), JSON_ALLOW_NUL, NULL);
        if (json_is_object(parsed))
            NB_TRY(set(function, "arguments", parsed));
        else
            json_decref(parsed);
    }
done:
    return st;
}

/* As Transformers: the first of the names that holds something is reasoning_content, and thinking if that is not there. */
static nb_status name_reasoning(json_t *m)
{
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    nb_status st = NB_OK;
    json_t *v = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names && (!v || json_is_null(v)); i++)
        v = json_object_get(m, names[i]);
    if (!v || json_is_null(v))
        return NB_OK;
    json_incref(v); /* its old place may be what is overwritten */
    if (!json_object_get(m, "thinking"))
        NB_TRY(set(m, "thinking", json_incref(v)));
    st = set(m, "reasoning_content", json_incref(v));
done:
    json_decref(v);
    return st;
}

static nb_status prepare(json_t *messages, bool parts)
{
    nb_status st = NB_OK;
    size_t i;
    json_t *m;
    if (!json_is_array(messages))
        return nbi_fail(NB_EINVAL, "messages is %s, expected an array", type_of(messages));
    json_array_foreach(messages, i, m)
    {
        NB_TRY(check_message(m, i));
        if (!parts)
            NB_TRY(join_parts(m));
        NB_TRY(parse_arguments(m));
        NB_TRY(name_reasoning(m));
    }
done:
    return st;
}

/* ---- the call ---------------------------------------------------------------------------------------------------- */

static nb_status add_token(json_t *context, const char *name, const nb_tokenizer *tok, int32_t id)
{
    const char *text = id >= 0 ? nbi_tokenizer_token_text(tok, id) : NULL;
    if (!text)
        return NB_OK; /* undefined in the template, which prints as nothing */
    json_t *v = json_string(text);
    return v ? set(context, name, v) : nbi_fail(NB_EFORMAT, "%s is not UTF-8", name);
}

static nb_status make_context(json_t **out, const nb_tokenizer *tok, json_t *messages, bool prompt)
{
    nb_status st = NB_OK;
    json_t *context = json_object();
    if (!context)
        return nbi_fail_nomem("chat messages", 64);
    NB_TRY(set(context, "messages", json_incref(messages)));
    NB_TRY(set(context, "tools", json_null()));
    NB_TRY(set(context, "documents", json_null()));
    NB_TRY(set(context, "add_generation_prompt", json_boolean(prompt)));
    NB_TRY(add_token(context, "bos_token", tok, nb_tokenizer_bos(tok)));
    NB_TRY(add_token(context, "eos_token", tok, nb_tokenizer_eos(tok)));
    *out = json_incref(context);
done:
    json_decref(context);
    return st;
}

nb_status nb_chat_render(const nb_tokenizer *tok, const char *messages_json, int add_generation_prompt, char **text)
{
    nb_status st = NB_OK;
    nbi_jinja *template = NULL;
    json_t *messages = NULL, *context = NULL;
    if (!tok || !messages_json || !text)
        return nbi_fail(NB_EINVAL, "nb_chat_render: tok, messages_json or text is NULL");
    *text = NULL;
    const char *source = nbi_tokenizer_chat_template(tok);
    if (!source)
        return nbi_fail(NB_EUNSUPPORTED, "the model has no chat template");
    if (nbi_json_parse(&messages, messages_json, strlen(messages_json), "messages") != NB_OK)
        return NB_EINVAL; /* an argument, not a file: the sentence stays */
    if ((st = nbi_jinja_compile(&template, source, strlen(source))) != NB_OK) {
        nbi_fail_in(st, "chat template: ");
        goto done;
    }
    NB_TRY(prepare(messages, nbi_jinja_loops_over(template, "content")));
    NB_TRY(make_context(&context, tok, messages, add_generation_prompt != 0));
    if ((st = nbi_jinja_render(template, context, NULL, text, NULL)) != NB_OK)
        nbi_fail_in(st, "chat template: ");
done:
    nbi_jinja_free(template);
    json_decref(context);
    json_decref(messages);
    return st;
}

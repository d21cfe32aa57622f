/* Rows of OpenAI Batch JSONL: what surrounds the request and the response. */
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "engine/job.h"

json_t *nbi_row_parse(const nbi_line *l, nbi_api_error *err)
{
    unsigned long long number = l->number;
    if (l->too_long) {
        nbi_api_fail(err, 400, "line_too_long", NULL, "line %llu: has more than %zu bytes", number, NBI_JOB_MAX_LINE);
        return NULL;
    }
    size_t valid = nbi_utf8_check(l->text, l->bytes);
    if (valid != l->bytes) {
        nbi_api_fail(err, 400, "invalid_utf8", NULL, "line %llu: not valid UTF-8 at byte %zu", number, valid + 1);
        return NULL;
    }
    json_error_t e;
    json_t *row = json_loadb(l->text, l->bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &e);
    if (!row) {
        nbi_api_fail(err, 400, "invalid_json_line", NULL, "line %llu: not valid JSON at column %d: %s", number,
                     e.column, e.text);
        return NULL;
    }
    if (!json_is_object(row)) {
        nbi_api_fail(err, 400, "invalid_json_line", NULL, "line %llu: is not a JSON object", number);
        json_decref(row);
        return NULL;
    }
    return row;
}

const json_t *nbi_row_custom_id(const json_t *row)
{
    const json_t *id = json_object_get(row, "custom_id");
    return json_is_string(id) ? id : NULL;
}

/* A string member; *out stays NULL where it is missing or null. */
static nb_status get_string(const json_t *row, const char *key, const char **out, nbi_api_error *err)
{
    const json_t *v = json_object_get(row, key);
    *out = NULL;
    if (!v || json_is_null(v))
        return NB_OK;
    if (!json_is_string(v))
        return nbi_api_fail(err, 400, "invalid_type", key, "'%s' is not a string", key);
    *out = json_string_value(v);
    return NB_OK;
}

/* messages mean chat, prompt means completions. */
static nb_status endpoint_of_body(const json_t *body, nbi_endpoint *endpoint, nbi_api_error *err)
{
    bool messages = json_object_get(body, "messages") != NULL, prompt = json_object_get(body, "prompt") != NULL;
    if (messages == prompt)
        return nbi_api_fail(err, 400, "missing_required_parameter", "url",
                            "'url' is missing, and the body has %s 'messages' %s 'prompt' to tell it from",
                            messages ? "both" : "neither", messages ? "and" : "nor");
    *endpoint = messages ? NBI_CHAT : NBI_COMPLETIONS;
    return NB_OK;
}

nb_status nbi_row_envelope(const json_t *row, uint64_t number, const char *default_url, nbi_endpoint *endpoint,
                           const json_t **body, nbi_api_error *err)
{
    const char *method, *url;
    nb_status st;
    if (!nbi_row_custom_id(row))
        return nbi_api_fail(err, 400, "missing_required_parameter", "custom_id",
                            "line %llu: 'custom_id' is missing or not a string", (unsigned long long)number);
    NB_TRY(get_string(row, "method", &method, err));
    NB_TRY(get_string(row, "url", &url, err));
    if (method && strcmp(method, "POST") != 0)
        return nbi_api_fail(err, 400, "invalid_value", "method", "'method' is \"%.40s\", expected \"POST\"", method);
    *body = json_object_get(row, "body");
    if (!json_is_object(*body))
        return nbi_api_fail(err, 400, *body ? "invalid_type" : "missing_required_parameter", "body", "'body' is %s",
                            *body ? "not an object" : "missing");
    if (!url)
        url = default_url;
    if (!url)
        return endpoint_of_body(*body, endpoint, err);
    if (!nbi_endpoint_from_url(url, endpoint))
        return nbi_api_fail(err, 404, "unknown_url", "url", "no such endpoint: POST %.200s; there are %s and %s", url,
                            nbi_endpoint_url(NBI_COMPLETIONS), nbi_endpoint_url(NBI_CHAT));
done:
    return st;
}

static int append(const char *data, size_t n, void *out)
{
    nbi_str_add(out, data, n);
    return 0;
}

nb_status nbi_row_write(nbi_str *out, const char *id, const json_t *custom_id, int http, json_t *body)
{
    json_t *row = json_object(), *response = json_object();
    int bad = json_object_set_new(response, "status_code", json_integer(http));
    bad |= json_object_set_new(response, "request_id", json_sprintf("req_%s", id + strlen("batch_req_")));
    bad |= json_object_set_new(response, "body", body);
    bad |= json_object_set_new(row, "id", json_string(id));
    bad |= json_object_set_new(row, "custom_id", custom_id ? json_incref((json_t *)custom_id) : json_null());
    bad |= json_object_set_new(row, "response", response);
    bad |= json_object_set_new(row, "error", json_null());
    /* 9 digits give every float back. */
    bad |= bad || json_dump_callback(row, append, out, JSON_COMPACT | JSON_REAL_PRECISION(9));
    nbi_str_puts(out, "\n");
    json_decref(row);
    return bad || out->failed ? nbi_fail_nomem("an output row", out->len) : NB_OK;
}

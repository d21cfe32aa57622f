#include "base/json.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"

static const char *type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a real number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    default:
        return "null";
    }
}

/* Transformers writes "model_max_length": 1000000000000000019884624838656, which no 64-bit integer holds: such numbers
 * become real ones.  Where an integer is wanted, they are then refused like any other real number. */
static char *widen_integers(const char *text, size_t n, size_t *out_n)
{
    nbi_str out = {0};
    bool in_string = false;
    for (size_t i = 0; i < n;) {
        size_t len = 1;
        if (in_string) {
            in_string = text[i] != '"';
            if (text[i] == '\\' && i + 1 < n)
                len = 2;
        } else if (text[i] == '"')
            in_string = true;
        else if (text[i] >= '0' && text[i] <= '9') {
            while (i + len < n && strchr("0123456789.eE+-", text[i + len]) && text[i + len])
                len++;
            nbi_str_add(&out, text + i, len);
            if (len >= 19 && !memchr(text + i, '.', len) && !memchr(text + i, 'e', len) && !memchr(text + i, 'E', len))
                nbi_str_puts(&out, ".0");
            i += len;
            continue;
        }
        nbi_str_add(&out, text + i, len);
        i += len;
    }
    *out_n = out.len;
    return nbi_str_take(&out);
}

nb_status nbi_json_parse(json_t **out, const char *text, size_t n, const char *where)
{
    json_error_t e;
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL;
    *out = json_loadb(text, n, flags, &e);
    if (!*out && json_error_code(&e) == json_error_numeric_overflow) {
        size_t wide_n;
        char *wide = widen_integers(text, n, &wide_n);
        if (!wide)
            return nbi_fail_nomem(where, n);
        *out = json_loadb(wide, wide_n, flags, &e);
        free(wide);
    }
    if (!*out)
        return nbi_fail(NB_EFORMAT, "%s: not valid JSON at line %d column %d: %s", where, e.line, e.column, e.text);
    return NB_OK;
}

nb_status nbi_json_load(json_t **out, const char *path)
{
    char *text = NULL;
    size_t n;
    *out = NULL;
    nb_status st = nbi_read_file(&text, &n, path, NBI_JSON_FILE_LIMIT);
    if (st != NB_OK)
        return st;
    st = nbi_json_parse(out, text, n, path);
    free(text);
    if (st == NB_OK && !json_is_object(*out)) {
        st = nbi_fail(NB_EFORMAT, "%s: holds %s, expected a JSON object", path, type_name(*out));
        json_decref(*out);
        *out = NULL;
    }
    return st;
}

static const json_t *get(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return v && !json_is_null(v) ? v : NULL;
}

nb_status nbi_json_int(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t *out, const char *where)
{
    const json_t *v = get(o, key);
    if (!v)
        return NB_OK;
    if (!json_is_integer(v))
        return nbi_fail(NB_EFORMAT, "%s: \"%s\" is %s, expected an integer", where, key, type_name(v));
    json_int_t i = json_integer_value(v);
    if (i < lo || i > hi)
        return nbi_fail(NB_EFORMAT, "%s: \"%s\" is %lld, expected %lld to %lld", where, key, (long long)i,
                        (long long)lo, (long long)hi);
    *out = i;
    return NB_OK;
}

nb_status nbi_json_double(const json_t *o, const char *key, double lo, double hi, double *out, const char *where)
{
    const json_t *v = get(o, key);
    if (!v)
        return NB_OK;
    if (!json_is_number(v))
        return nbi_fail(NB_EFORMAT, "%s: \"%s\" is %s, expected a number", where, key, type_name(v));
    double d = json_number_value(v);
    if (!(d >= lo && d <= hi))
        return nbi_fail(NB_EFORMAT, "%s: \"%s\" is %g, expected %g to %g", where, key, d, lo, hi);
    *out = d;
    return NB_OK;
}

nb_status nbi_json_bool(const json_t *o, const char *key, bool *out, const char *where)
{
    const json_t *v = get(o, key);
    if (!v)
        return NB_OK;
    if (!json_is_boolean(v))
        return nbi_fail(NB_EFORMAT, "%s: \"%s\" is %s, expected true or false", where, key, type_name(v));
    *out = json_is_true(v);
    return NB_OK;
}

nb_status nbi_json_string(const json_t *o, const char *key, const char **out, const char *where)
{
    const json_t *v = get(o, key);
    if (!v)
        return NB_OK;
    if (!json_is_string(v))
        return nbi_fail(NB_EFORMAT, "%s: \"%s\" is %s, expected a string", where, key, type_name(v));
    *out = json_string_value(v);
    return NB_OK;
}

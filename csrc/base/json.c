#include "base/json.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"

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

nb_status nbi_json_parse(json_t **out, const char *text, size_t n, const char *where)
{
    json_error_t e;
    *out = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &e);
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

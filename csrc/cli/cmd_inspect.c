#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

static uint64_t num(const json_t *o, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(o, key));
}

/* "  (f32; f16 3.0 KiB, int8 1.5 KiB ...)": the type that the figures are for, and the others. */
static void print_kv_types(const json_t *m)
{
    const char *type = json_string_value(json_object_get(m, "kv_dtype")), *key, *between = ";";
    json_t *v;
    char b[24];
    printf("  (%s", type);
    json_object_foreach(json_object_get(m, "kv_bytes_per_token_by_dtype"), key, v) if (strcmp(key, type) != 0)
    {
        cli_bytes(b, (uint64_t)json_integer_value(v));
        printf("%s %s %s", between, key, b);
        between = ",";
    }
    if (strcmp(json_string_value(json_object_get(m, "kv_keys")), "channel") == 0)
        printf("; integer keys by channel");
    printf(")");
}

static void print_memory(const json_t *m)
{
    static const char *const rows[][2] = {{"weights", "weights"},
                                          {"kv_bytes_per_token", "KV cache, a token"},
                                          {"kv_bytes_full_context", "KV cache, full context"},
                                          {"workspace", "workspace"},
                                          {"free", "free on this machine"}};
    char b[24];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        cli_bytes(b, num(m, rows[i][0]));
        printf("  %-24s %12s", rows[i][1], b);
        if (i == 1)
            print_kv_types(m);
        printf("\n");
    }
    printf("  %-24s %12llu\n", "full contexts that fit", (unsigned long long)num(m, "full_contexts_that_fit"));
}

static void print_tensors(const json_t *list)
{
    size_t i, d;
    json_t *t, *v;
    printf("tensors\n");
    json_array_foreach((json_t *)list, i, t)
    {
        char shape[64] = "", b[24];
        json_array_foreach(json_object_get(t, "shape"), d, v)
            snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%lld", d ? "x" : "",
                     (long long)json_integer_value(v));
        cli_bytes(b, num(t, "bytes"));
        const char *scheme = json_string_value(json_object_get(t, "scheme"));
        printf("  %-52s %-5s %-16s %12s  %s\n", json_string_value(json_object_get(t, "name")),
               json_string_value(json_object_get(t, "dtype")), shape, b, scheme ? scheme : "");
    }
}

static void print_text(const json_t *j)
{
    const char *key;
    json_t *v;
    char b[24];
    printf("%s: %s\n", json_string_value(json_object_get(j, "path")), json_string_value(json_object_get(j, "format")));
    const json_t *config = json_object_get(j, "config");
    json_object_foreach((json_t *)(config ? config : j), key, v)
    {
        if (json_is_string(v))
            printf("  %-24s %12s\n", key, json_string_value(v));
        else if (json_is_integer(v))
            printf("  %-24s %12lld\n", key, (long long)json_integer_value(v));
        else if (json_is_boolean(v))
            printf("  %-24s %12s\n", key, json_is_true(v) ? "yes" : "no");
    }
    if (!config)
        return;
    cli_bytes(b, num(j, "bytes"));
    printf("  %-24s %12s  (%.3f bits a parameter)\nmemory\n", "size", b,
           json_number_value(json_object_get(j, "bits_per_parameter")));
    print_memory(json_object_get(j, "memory"));
    print_tensors(json_object_get(j, "tensors"));
}

static int run(const cli_command *c, int argc, char **argv)
{
    const char *model[1] = {NULL};
    bool json = false;
    char *out = NULL;
    const cli_flag flags[] = {{"--json", NULL, CLI_BOOL, &json, NULL, "print JSON", 0, 0}, {0}};
    int rc = cli_parse(c, argc, argv, flags, model, 1, 1);
    if (rc >= 0)
        return rc;
    if (nb_inspect(model[0], &out) != NB_OK)
        return cli_failed(c);
    if (json)
        cli_print_json(out);
    else {
        json_t *j = json_loads(out, 0, NULL);
        print_text(j);
        json_decref(j);
    }
    nb_free(out);
    return EXIT_OK;
}

const cli_command cli_inspect = {"inspect", "tensors, schemes, sizes and the memory plan", "MODEL [--json]",
                                 "  nibble inspect llama-3-8b-w4", run};

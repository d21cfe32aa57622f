#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

#define WORST 5 /* layers that are shown */

static void print_json(const nb_eval_result *r, const nb_eval_options *o, const char *model, const char *base,
                       json_t *layers)
{
    json_t *j = json_pack("{s:s, s:s, s:s, s:s, s:i, s:f, s:f, s:I, s:I, s:I, s:f}", "model", model, "text", o->text,
                          "protocol", o->protocol ? o->protocol : "hf", "kv_dtype",
                          o->kv_dtype ? o->kv_dtype : "default", "ctx", (int)(o->ctx ? o->ctx : 512), "perplexity",
                          r->perplexity, "perplexity_error", r->perplexity_error, "tokens", (json_int_t)r->tokens,
                          "scored", (json_int_t)r->scored, "windows", (json_int_t)r->windows, "seconds", r->seconds);
    if (j && base) {
        json_t *b =
            json_pack("{s:s, s:f, s:f, s:f, s:f, s:f}", "base", base, "base_perplexity", r->base_perplexity, "mean_kld",
                      r->mean_kld, "max_kld", r->max_kld, "same_top", r->same_top, "rms_dp", r->rms_dp);
        json_object_update(j, b);
        json_decref(b);
        if (layers)
            json_object_set(j, "by_layer", layers);
    }
    cli_print_value(j);
}

static void print_table(const nb_eval_result *r, const nb_eval_options *o, const char *base)
{
    printf("protocol %s, ctx %u, %llu tokens, %llu windows, %llu scored\n", o->protocol ? o->protocol : "hf",
           o->ctx ? o->ctx : 512, (unsigned long long)r->tokens, (unsigned long long)r->windows,
           (unsigned long long)r->scored);
    printf("perplexity %.4f +/- %.4f   (%.1f tokens/s)\n", r->perplexity, r->perplexity_error,
           (double)r->windows * (o->ctx ? o->ctx : 512) / r->seconds);
    if (base)
        printf("base %.4f (%+.3f %%)\nmean KLD %.6f, max %.4f; same top token %.2f %%; RMS dp %.3f %%\n",
               r->base_perplexity, 100 * (r->perplexity / r->base_perplexity - 1), r->mean_kld, r->max_kld,
               100 * r->same_top, 100 * r->rms_dp);
}

static int by_kl(const void *a, const void *b)
{
    const double x = json_number_value(json_object_get(*(json_t *const *)a, "kl_alone")),
                 y = json_number_value(json_object_get(*(json_t *const *)b, "kl_alone"));
    return (x < y) - (x > y);
}

static void print_layers(const json_t *layers)
{
    const json_t *rows = json_object_get(layers, "layers");
    const char *why = json_string_value(json_object_get(layers, "why"));
    size_t n = json_array_size(rows);
    if (why)
        printf("layers are not compared: %s\n", why);
    json_t **sorted = n ? malloc(n * sizeof *sorted) : NULL;
    if (!sorted)
        return;
    for (size_t i = 0; i < n; i++)
        sorted[i] = json_array_get(rows, i);
    qsort(sorted, n, sizeof *sorted, by_kl);
    printf("layers that hurt most, on %lld tokens:\n  %-24s %20s %22s\n",
           (long long)json_integer_value(json_object_get(layers, "tokens")), "layer", "KLD, it alone",
           "error of the stream");
    for (size_t i = 0; i < n && i < WORST; i++) {
        const json_t *e = json_object_get(sorted[i], "stream_error");
        printf("  %-24s %20.6f ", json_string_value(json_object_get(sorted[i], "layer")),
               json_number_value(json_object_get(sorted[i], "kl_alone")));
        if (json_is_number(e))
            printf("%20.3f %%\n", 100 * json_number_value(e));
        else
            printf("%22s\n", "-");
    }
    free(sorted);
}

/* NULL: there is no base, it was not asked for, or it failed (*failed). */
static json_t *compare_layers(const nb_model *m, const nb_model *base, nb_eval_options o, int64_t windows, bool *failed)
{
    char *text = NULL;
    if (!base || windows == 0)
        return NULL;
    o.max_windows = (uint32_t)windows;
    *failed = nb_eval_layers(m, base, &o, &text) != NB_OK;
    json_t *j = text ? json_loads(text, 0, NULL) : NULL;
    nb_free(text);
    return j;
}

static int run(const cli_command *c, int argc, char **argv)
{
    const char *model[1] = {NULL}, *text = NULL, *base = NULL, *protocol = NULL, *kv = NULL;
    cli_model_flags f = {0};
    int64_t ctx = 0, windows = 0, layer_windows = 4;
    bool json = false, failed = false;
    const cli_flag flags[] = {
        {"--file", "-f", CLI_STRING, &text, "FILE", "the text (UTF-8; .jsonl: its \"text\" fields)", 0, 0},
        {"--ctx", "-c", CLI_INT, &ctx, "N", "window in tokens (default 512)", 2, 1 << 24},
        {"--windows", NULL, CLI_INT, &windows, "N", "use the first N windows only", 1, 1 << 30},
        {"--protocol", NULL, CLI_STRING, &protocol, "P", "hf (default) or llama.cpp", 0, 0},
        {"--base", NULL, CLI_STRING, &base, "MODEL",
         "compare with this model: KL divergence, same top token, worst layers", 0, 0},
        {"--layer-windows", NULL, CLI_INT, &layer_windows, "N",
         "with --base: windows on which layers are exchanged one by one (default 4, 0: none)", 0, 1 << 30},
        CLI_KV_FLAG(kv),
        {"--json", NULL, CLI_BOOL, &json, NULL, "print JSON", 0, 0},
        CLI_MODEL_FLAGS(f),
        {0}};
    int rc = cli_parse(c, argc, argv, flags, model, 1, 1);
    if (rc >= 0)
        return rc;
    if (!text)
        return cli_usage_error(c, "-f FILE is missing: which text?");
    nb_eval_options o;
    nb_eval_options_init(&o);
    o.text = text;
    o.ctx = (uint32_t)ctx;
    o.max_windows = (uint32_t)windows;
    o.protocol = protocol;
    o.kv_dtype = kv;
    o.callbacks = cli_callbacks();
    nb_eval_result r = {.struct_size = sizeof r};
    nb_model *m = cli_load_model(c, model[0], &f), *b = NULL;
    rc = EXIT_WORK;
    if (m && (!base || (b = cli_load_model(c, base, &f)))) {
        json_t *layers = NULL;
        if (nb_eval(m, b, &o, &r) != NB_OK || (!(layers = compare_layers(m, b, o, layer_windows, &failed)) && failed))
            rc = cli_failed(c);
        else {
            rc = EXIT_OK;
            if (json)
                print_json(&r, &o, model[0], base, layers);
            else
                print_table(&r, &o, base);
            if (!json && layers)
                print_layers(layers);
        }
        json_decref(layers);
    }
    nb_model_free(b);
    nb_model_free(m);
    return rc;
}

const cli_command cli_eval = {"eval", "perplexity of a text, and the distance from a base model",
                              "MODEL -f TEXT [flags]",
                              "  nibble eval llama-3-8b-w4 -f wiki.test.raw --ctx 512 --base llama-3-8b", run};

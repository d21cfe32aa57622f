#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

/* ---- what a search found: bits, a row a layer ---- */

#define COLUMNS 7
static const char *const columns[COLUMNS][2] = {
    {"q", "self_attn.q_proj"}, {"k", "self_attn.k_proj"}, {"v", "self_attn.v_proj"}, {"o", "self_attn.o_proj"},
    {"gate", "mlp.gate_proj"}, {"up", "mlp.up_proj"},     {"down", "mlp.down_proj"}};

static int bits_of(const json_t *rows, const char *module)
{
    size_t i;
    json_t *row;
    json_array_foreach((json_t *)rows, i, row) if (strcmp(json_string_value(json_object_get(row, "module")), module) ==
                                                   0) return (int)json_integer_value(json_object_get(row, "bits"));
    return 0;
}

static bool print_layer(const json_t *rows, unsigned layer)
{
    char line[128];
    bool any = false;
    int at = snprintf(line, sizeof line, "  %5u", layer);
    for (int c = 0; c < COLUMNS; c++) {
        char name[128], cell[8] = "-";
        snprintf(name, sizeof name, "model.layers.%u.%s", layer, columns[c][1]);
        const int bits = bits_of(rows, name);
        if (bits)
            snprintf(cell, sizeof cell, "%d", bits);
        any |= bits != 0;
        at += snprintf(line + at, sizeof line - (size_t)at, " %5s", cell);
    }
    if (any)
        puts(line);
    return any;
}

static void print_found(const json_t *search, const char *out, bool dry)
{
    const json_t *rows = json_object_get(search, "modules");
    const size_t n = json_array_size(rows);
    printf("found: %.3f bits a weight on average; measured by %s on %lld tokens of the text\n",
           json_number_value(json_object_get(search, "bits_per_weight")),
           strcmp(json_string_value(json_object_get(search, "by")), "kl") == 0 ? "KL divergence" : "errors of outputs",
           (long long)json_integer_value(json_object_get(search, "kl_tokens")));
    printf("  layer");
    for (int c = 0; c < COLUMNS; c++)
        printf(" %5s", columns[c][0]);
    putchar('\n');
    for (unsigned layer = 0, seen = 0; seen < n && layer < 4096; layer++)
        seen += print_layer(rows, layer);
    if (bits_of(rows, "lm_head"))
        printf("  lm_head: %d bits\n", bits_of(rows, "lm_head"));
    if (!dry)
        printf("to change it: edit %s/recipe.json and give it to --recipe\n", out);
}

static int by_sqnr(const void *a, const void *b)
{
    double x = json_number_value(json_object_get(*(json_t *const *)a, "sqnr_db"));
    double y = json_number_value(json_object_get(*(json_t *const *)b, "sqnr_db"));
    return (x > y) - (x < y);
}

/* The size, and the layers that lost most: what a user looks at first. */
static void print_report(const char *text, const char *out, bool dry)
{
    json_t *r = json_loads(text, 0, NULL), *rows = json_object_get(r, "modules"), *row;
    json_t *sorted[16384];
    size_t i, n = 0;
    char before[24], after[24];
    cli_bytes(before, (uint64_t)json_integer_value(json_object_get(r, "bytes_before")));
    cli_bytes(after, (uint64_t)json_integer_value(json_object_get(r, "bytes_after")));
    printf("%s: %s -> %s (%.2fx smaller), recipe %s\n", dry ? "dry run, nothing written" : out, before, after,
           json_number_value(json_object_get(r, "ratio")), json_string_value(json_object_get(r, "recipe")));
    if (!dry)
        printf("computed on %s\n", json_string_value(json_object_get(r, "device")));
    json_array_foreach(rows, i, row) if (n < 16384) sorted[n++] = row;
    qsort(sorted, n, sizeof *sorted, by_sqnr);
    if (dry)
        n = 0; /* errors are known only afterwards */
    if (n) {
        printf("%zu layers quantized; lowest signal to noise:\n", n);
        printf("  %-36s %-20s %8s %10s\n", "module", "scheme", "SQNR dB", "bits/w");
    }
    const json_t *search = json_object_get(r, "search");
    for (i = 0; i < n && i < 5; i++)
        printf("  %-36s %-20s %8.2f %10.3f\n", json_string_value(json_object_get(sorted[i], "module")),
               json_string_value(json_object_get(sorted[i], "scheme")),
               json_number_value(json_object_get(sorted[i], "sqnr_db")),
               json_number_value(json_object_get(sorted[i], "bits_per_weight")));
    if (search)
        print_found(search, out, dry);
    json_decref(r);
}

static int run(const cli_command *c, int argc, char **argv)
{
    const char *src[1] = {NULL}, *out = NULL, *recipe = NULL, *calib = NULL;
    cli_model_flags m = {0};
    int64_t tokens = 0, ctx = 0, shard = 0;
    bool force = false, dry = false, json = false, sequential = false, dense = false, resume = false;
    const char *stats = NULL;
    uint64_t memory = 0, size = 0;
    double bits = 0;
    char *report = NULL;
    const cli_flag flags[] = {
        {"--output", "-o", CLI_STRING, &out, "DIR", "the folder to write", 0, 0},
        {"--recipe", "-r", CLI_STRING, &recipe, "R", "a recipe file, or a name from configs/recipes", 0, 0},
        {"--calib", NULL, CLI_STRING, &calib, "FILE",
         "text or JSONL: for static activations, methods that need it, --target-*", 0, 0},
        {"--calib-tokens", NULL, CLI_INT, &tokens, "N", "tokens of it to use (default: the recipe's)", 2, 1e9},
        {"--calib-ctx", NULL, CLI_INT, &ctx, "N", "window (default: the recipe's)", 2, 1e7},
        {"--calib-memory", NULL, CLI_SIZE, &memory, "SIZE",
         "memory for it, e.g. 2GiB; what does not fit goes to a file", 0, 0},
        {"--sequential", NULL, CLI_BOOL, &sequential, NULL, "quantized layers feed the next one (default for methods)",
         0, 0},
        {"--no-sequential", NULL, CLI_BOOL, &dense, NULL, "dense layers feed the next one", 0, 0},
        {"--stats", NULL, CLI_STRING, &stats, "FILE",
         "read the dense layers' statistics, or write them where FILE is new", 0, 0},
        {"--resume", NULL, CLI_BOOL, &resume, NULL, "go on behind the layers that a killed run finished", 0, 0},
        {"--target-bits", NULL, CLI_DOUBLE, &bits, "B", "mixed precision: average bits a weight, e.g. 3.5", 1, 16},
        {"--target-size", NULL, CLI_SIZE, &size, "SIZE", "mixed precision: size of the whole model, e.g. 4GiB", 0, 0},
        {"--max-shard-bytes", NULL, CLI_INT, &shard, "N", "split the weights over files (default 5e9)", 1 << 16, 1e15},
        {"--overwrite", NULL, CLI_BOOL, &force, NULL, "replace the folder if it exists", 0, 0},
        {"--dry-run", NULL, CLI_BOOL, &dry, NULL, "only tell the size", 0, 0},
        {"--json", NULL, CLI_BOOL, &json, NULL, "print the whole report as JSON", 0, 0},
        CLI_DEVICE_FLAGS(m),
        {0}};
    int rc = cli_parse(c, argc, argv, flags, src, 1, 1);
    if (rc >= 0)
        return rc;
    if (bits != 0 && size)
        return cli_usage_error(c, "--target-bits and --target-size were given: expected one of them");
    if (!recipe && bits == 0 && !size)
        return cli_usage_error(c, "--recipe is missing; configs/recipes holds ready ones, for example w4a16-g128");
    if (!out && !dry)
        return cli_usage_error(c, "-o DIR is missing: where should the model go?");
    if (sequential && dense)
        return cli_usage_error(c, "--sequential and --no-sequential were given: expected one of them");
    nb_quantize_options o;
    nb_quantize_options_init(&o);
    o.recipe = recipe;
    o.calib = calib;
    o.calib_tokens = (uint32_t)tokens;
    o.calib_ctx = (uint32_t)ctx;
    o.device = m.device;
    o.threads = (int32_t)m.threads;
    o.overwrite = force;
    o.dry_run = dry;
    o.max_shard_bytes = (uint64_t)shard;
    o.target_bits = bits;
    o.target_bytes = size;
    o.calib_memory = memory;
    o.sequential = sequential ? 1 : dense ? -1 : 0;
    o.stats = stats;
    o.resume = resume;
    o.callbacks = cli_callbacks();
    if (nb_quantize(src[0], out ? out : "", &o, &report) != NB_OK)
        return cli_failed(c);
    if (json)
        cli_print_json(report);
    else
        print_report(report, out, dry);
    nb_free(report);
    return EXIT_OK;
}

const cli_command cli_quantize = {
    "quantize", "turn a Hugging Face model into INT8 or INT4", "SRC -o OUT --recipe R [flags]",
    "  nibble quantize llama-3-8b -o llama-3-8b-w4 --recipe w4a16-g128\n"
    "  nibble quantize llama-3-8b -o llama-3-8b-w8 --recipe w8a8-static --calib book.txt\n"
    "  nibble quantize llama-3-8b -o llama-3-8b-m --target-bits 3.5 --calib book.txt",
    run};

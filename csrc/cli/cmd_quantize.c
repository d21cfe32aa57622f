#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/cli.h"

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
    for (i = 0; i < n && i < 5; i++)
        printf("  %-36s %-20s %8.2f %10.3f\n", json_string_value(json_object_get(sorted[i], "module")),
               json_string_value(json_object_get(sorted[i], "scheme")),
               json_number_value(json_object_get(sorted[i], "sqnr_db")),
               json_number_value(json_object_get(sorted[i], "bits_per_weight")));
    json_decref(r);
}

static int run(const cli_command *c, int argc, char **argv)
{
    const char *src[1] = {NULL}, *out = NULL, *recipe = NULL, *calib = NULL;
    cli_model_flags m = {0};
    int64_t tokens = 0, ctx = 0, shard = 0;
    bool force = false, dry = false, json = false, sequential = false, dense = false, resume = false;
    const char *stats = NULL;
    uint64_t memory = 0;
    char *report = NULL;
    const cli_flag flags[] = {
        {"--output", "-o", CLI_STRING, &out, "DIR", "the folder to write", 0, 0},
        {"--recipe", "-r", CLI_STRING, &recipe, "R", "a recipe file, or a name from configs/recipes", 0, 0},
        {"--calib", NULL, CLI_STRING, &calib, "FILE", "text or JSONL, for static activations and methods that need it",
         0, 0},
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
        {"--max-shard-bytes", NULL, CLI_INT, &shard, "N", "split the weights over files (default 5e9)", 1 << 16, 1e15},
        {"--overwrite", NULL, CLI_BOOL, &force, NULL, "replace the folder if it exists", 0, 0},
        {"--dry-run", NULL, CLI_BOOL, &dry, NULL, "only tell the size", 0, 0},
        {"--json", NULL, CLI_BOOL, &json, NULL, "print the whole report as JSON", 0, 0},
        CLI_DEVICE_FLAGS(m),
        {0}};
    int rc = cli_parse(c, argc, argv, flags, src, 1, 1);
    if (rc >= 0)
        return rc;
    if (!recipe)
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

const cli_command cli_quantize = {"quantize", "turn a Hugging Face model into INT8 or INT4",
                                  "SRC -o OUT --recipe R [flags]",
                                  "  nibble quantize llama-3-8b -o llama-3-8b-w4 --recipe w4a16-g128\n"
                                  "  nibble quantize llama-3-8b -o llama-3-8b-w8 --recipe w8a8-static --calib book.txt",
                                  run};

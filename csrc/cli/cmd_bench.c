#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

static const char *str(const json_t *row, const char *key)
{
    return json_string_value(json_object_get(row, key));
}

/* "87 of 45.2 GB/s", or "" where there is no such roof. */
static void share(char out[40], const json_t *row, const char *percent, const char *roof, const char *unit)
{
    const json_t *p = json_object_get(row, percent);
    const double r = json_number_value(json_object_get(row, roof));
    out[0] = 0;
    if (p)
        snprintf(out, 40, r < 100 ? "%.1f of %.1f %s" : "%.1f of %.0f %s", json_number_value(p), r, unit);
}

/* The threads have a column of their own: "cpu (avx2), 2 threads" is "cpu (avx2)" here. */
static void backend_name(char *out, size_t size, const char *description)
{
    const char *comma = strrchr(description, ',');
    const bool threads = comma && strstr(comma, " thread");
    snprintf(out, size, "%.*s", threads ? (int)(comma - description) : (int)strlen(description), description);
}

/* llama-bench's columns, which readers know, the scheme, and where the backend has measured its roofs, percent of them. */
static void print_table(const char *text)
{
    json_t *rows = json_loads(text, 0, NULL), *row;
    const bool roofs = json_object_get(json_array_get(rows, 0), "pct_mem") != NULL;
    size_t i;
    printf("| %-16s | %-16s | %10s | %10s | %-28s | %7s | %12s | %18s |", "model", "scheme", "size", "params",
           "backend", "threads", "test", "t/s");
    if (roofs)
        printf(" %18s | %18s |", "% of memory", "% of INT8");
    printf(
        "\n| ---------------- | ---------------- | ---------: | ---------: | ---------------------------- | ------: | "
        "-----------: | -----------------: |%s\n",
        roofs ? " -----------------: | -----------------: |" : "");
    json_array_foreach(rows, i, row)
    {
        char size[24], params[24], ts[48], backend[96], mem[40], int8[40];
        double n = (double)json_integer_value(json_object_get(row, "model_n_params"));
        cli_bytes(size, (uint64_t)json_integer_value(json_object_get(row, "model_size")));
        snprintf(params, sizeof params, n >= 1e9 ? "%.2f B" : "%.2f M", n >= 1e9 ? n / 1e9 : n / 1e6);
        snprintf(ts, sizeof ts, "%.2f \u00b1 %.2f", json_number_value(json_object_get(row, "avg_ts")),
                 json_number_value(json_object_get(row, "stddev_ts")));
        backend_name(backend, sizeof backend, str(row, "backends"));
        /* one character of t/s takes two bytes */
        printf("| %-16s | %-16s | %10s | %10s | %-28s | %7lld | %12s | %19s |", str(row, "model_type"),
               str(row, "scheme"), size, params, backend,
               (long long)json_integer_value(json_object_get(row, "n_threads")), str(row, "test"), ts);
        share(mem, row, "pct_mem", "mem_gbs", "GB/s");
        share(int8, row, "pct_int8", "int8_gops", "GOPS");
        if (roofs)
            printf(" %18s | %18s |", mem, int8);
        printf("\n");
    }
    json_decref(rows);
}

static int run(const cli_command *c, int argc, char **argv)
{
    const char *model[1] = {NULL}, *shape = NULL, *recipe = NULL, *kv = NULL;
    cli_model_flags f = {0};
    cli_list prompt = {{128}, 1}, gen = {{32}, 1}, batch = {{1}, 1};
    int64_t reps = 0;
    bool json = false;
    char *out = NULL;
    const cli_flag flags[] = {
        {"--shape", NULL, CLI_STRING, &shape, "FILE", "random weights of this config.json instead of a MODEL", 0, 0},
        {"--recipe", "-r", CLI_STRING, &recipe, "R", "with --shape: quantize by this recipe (default: dense)", 0, 0},
        {"--n-prompt", "-p", CLI_LIST, &prompt, "N,..", "prefill lengths, 0: none (default 128)", 0, 1 << 24},
        {"--n-gen", "-n", CLI_LIST, &gen, "N,..", "tokens to generate, 0: none (default 32)", 0, 1 << 24},
        {"--batch", "-b", CLI_LIST, &batch, "B,..", "sequences decoded together (default 1)", 1, 65536},
        {"--repetitions", NULL, CLI_INT, &reps, "N", "after one warm-up (default 5)", 1, 1024},
        CLI_KV_FLAG(kv),
        {"--json", NULL, CLI_BOOL, &json, NULL, "print JSON with llama-bench's keys", 0, 0},
        CLI_MODEL_FLAGS(f),
        {0}};
    int rc = cli_parse(c, argc, argv, flags, model, 0, 1);
    if (rc >= 0)
        return rc;
    if (!model[0] == !shape)
        return cli_usage_error(c, "give it either a MODEL or --shape FILE");
    if (recipe && !shape)
        return cli_usage_error(c, "--recipe goes with --shape; a MODEL has its own scheme");
    nb_model *m = NULL;
    if (shape) {
        nb_model_options o = cli_model_options(&f);
        if (nb_model_random(&m, shape, recipe, &o) != NB_OK)
            cli_failed(c);
    } else
        m = cli_load_model(c, model[0], &f);
    if (!m)
        return EXIT_WORK;
    nb_bench_options o;
    nb_bench_options_init(&o);
    o.prompt = prompt.v;
    o.n_prompt = prompt.n;
    o.gen = gen.v;
    o.n_gen = gen.n;
    o.batch = batch.v;
    o.n_batch = batch.n;
    o.repetitions = (uint32_t)reps;
    o.kv_dtype = kv;
    o.callbacks = cli_callbacks();
    if (nb_bench(m, &o, &out) != NB_OK)
        rc = cli_failed(c);
    else {
        rc = EXIT_OK;
        if (json)
            cli_print_json(out);
        else
            print_table(out);
    }
    nb_free(out);
    nb_model_free(m);
    return rc;
}

const cli_command cli_bench = {
    "bench", "prefill and decode speed", "MODEL | --shape FILE [--recipe R] [flags]",
    "  nibble bench llama-3-8b-w4 -p 128,512 -n 32 --batch 1,8\n"
    "  nibble bench --shape configs/shapes/llama-2-7b.json --recipe w4a16-g128\n\n"
    "On the CPU a test is also held against roofs that are measured before it on the same threads, reading\n"
    "memory and multiplying INT8 numbers in registers:\n"
    "  % of memory = (bytes of weights + keys and values so far, once a step) / seconds / roof\n"
    "  % of INT8   = 2 * weights * tokens / seconds / roof (those of the head: rows of logits)",
    run};

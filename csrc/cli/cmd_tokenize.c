#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

static void print_json(const int32_t *ids, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer(ids[i]));
    json_t *j = json_pack("{s:o}", "tokens", list);
    cli_print_value(j);
}

/* A token a line: id, and its text as a JSON string, so that spaces and line ends can be seen. */
static void print_lines(const nb_tokenizer *t, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char *text = NULL;
        size_t bytes = 0;
        if (nb_detokenize(t, &ids[i], 1, 0, &text, &bytes) != NB_OK)
            bytes = 0;
        json_t *s = json_stringn(text ? text : "", bytes);
        char *quoted = s ? json_dumps(s, JSON_ENCODE_ANY) : NULL;
        printf("%8d  %s\n", ids[i], quoted ? quoted : "");
        free(quoted);
        json_decref(s);
        nb_free(text);
    }
    printf("%zu tokens\n", n);
}

static int run(const cli_command *c, int argc, char **argv)
{
    const char *model[1] = {NULL}, *prompt = NULL;
    bool json = false, plain = false;
    nb_tokenizer *t = NULL;
    int32_t *ids = NULL;
    size_t n = 0;
    const cli_flag flags[] = {{"--prompt", "-p", CLI_STRING, &prompt, "TEXT", "the text", 0, 0},
                              {"--no-special", NULL, CLI_BOOL, &plain, NULL, "do not add BOS and the like", 0, 0},
                              {"--json", NULL, CLI_BOOL, &json, NULL, "print {\"tokens\": [...]}", 0, 0},
                              {0}};
    int rc = cli_parse(c, argc, argv, flags, model, 1, 1);
    if (rc >= 0)
        return rc;
    if (!prompt)
        return cli_usage_error(c, "-p TEXT is missing");
    if (nb_tokenizer_load(&t, model[0]) != NB_OK)
        return cli_failed(c);
    if (nb_tokenize(t, prompt, strlen(prompt), plain ? 0 : NB_TOKENIZE_SPECIAL, &ids, &n) != NB_OK)
        rc = cli_failed(c);
    else {
        rc = EXIT_OK;
        if (json)
            print_json(ids, n);
        else
            print_lines(t, ids, n);
    }
    nb_free(ids);
    nb_tokenizer_free(t);
    return rc;
}

const cli_command cli_tokenize = {"tokenize", "the token ids of a text", "MODEL -p TEXT [flags]",
                                  "  nibble tokenize llama-3-8b -p \"Hello, world\"", run};

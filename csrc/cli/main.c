#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

/* A new command is one file and one line here. */
static const cli_command *const commands[] = {&cli_quantize, &cli_run,     &cli_generate, &cli_eval,
                                              &cli_bench,    &cli_inspect, &cli_tokenize};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void help(FILE *f)
{
    fprintf(f, "nibble %s: quantized LLM inference\n\nusage: nibble COMMAND ...\n\n", nb_version());
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(f, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(f, "\nnibble COMMAND --help shows its flags and an example.\n");
}

/* Between two parallel loops libgomp lets its threads spin for milliseconds by default.  On a machine that does something
 * else too, they then spin while the thread they wait for cannot run.  A short spin serves both: on 2 cores, decoding the
 * shipped model took 0.6 of the time on an idle machine, and it stays usable on a busy one.  libgomp reads its settings
 * before main(), so the program starts itself once more. */
static void spin_less(char **argv)
{
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY") || setenv("GOMP_SPINCOUNT", "20000", 1) != 0)
        return;
    execv("/proc/self/exe", argv); /* where that fails, everything still works */
}

int main(int argc, char **argv)
{
    spin_less(argv);
    if (argc < 2) {
        help(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        help(stdout);
        return EXIT_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("nibble %s\n", nb_version());
        return EXIT_OK;
    }
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(argv[1], commands[i]->name) == 0)
            return commands[i]->run(commands[i], argc - 2, argv + 2);
    fprintf(stderr, "nibble: there is no command \"%s\"; nibble --help lists them\n", argv[1]);
    return EXIT_USAGE;
}

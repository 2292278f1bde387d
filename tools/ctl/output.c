/* What people and scripts see: tables, JSON, progress, errors. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "ctl.h"

struct table {
    size_t columns;
    char **cells;
    size_t count;
};

void table_cell(struct table *table, const char *format, ...)
{
    va_list arguments;

    table->cells = memory_grow(table->cells, (table->count + 1) * sizeof *table->cells);
    va_start(arguments, format);
    if (vasprintf(&table->cells[table->count++], format, arguments) < 0)
        abort(); /* memory */
    va_end(arguments);
}

struct table *table_new(const char *const *heads)
{
    struct table *table = memory_zero(1, sizeof *table);

    for (; heads[table->columns] != NULL; table->columns++)
        table_cell(table, "%s", heads[table->columns]);
    return table;
}

void table_print(struct table *table)
{
    size_t *widths = memory_zero(table->columns, sizeof *widths);

    for (size_t i = 0; i < table->count; i++)
        if (strlen(table->cells[i]) > widths[i % table->columns])
            widths[i % table->columns] = strlen(table->cells[i]);
    for (size_t i = 0; i < table->count; i++) {
        bool last = i % table->columns == table->columns - 1;

        if (last)
            printf("%s\n", table->cells[i]);
        else
            printf("%-*s  ", (int)widths[i % table->columns], table->cells[i]);
        free(table->cells[i]);
    }
    free(widths);
    free(table->cells);
    free(table);
}

void print_json(json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    putchar('\n');
    json_decref(value);
}

static bool shown;

void progress(const char *format, ...)
{
    bool terminal = isatty(STDERR_FILENO) == 1;
    va_list arguments;

    if (terminal)
        fputs("\r\033[K", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    if (!terminal)
        fputc('\n', stderr);
    shown = terminal;
    fflush(stderr);
}

void progress_end(void)
{
    if (shown)
        fputc('\n', stderr);
    shown = false;
}

int complain(const struct ctl *ctl, const struct cairn_error *error)
{
    bool unreachable = error->code == 14 || error->code == 4; /* UNAVAILABLE, DEADLINE_EXCEEDED */

    progress_end();
    if (unreachable && error->reason[0] == '\0')
        fprintf(stderr, "cairnctl: no node answers, the last one asked is %s: %s\n",
                cairn_client_endpoint(ctl->client), error->message);
    else
        fprintf(stderr, "cairnctl: %s%s%s\n", error->reason, error->reason[0] == '\0' ? "" : ": ",
                error->message);
    return unreachable ? EXIT_UNREACHABLE : EXIT_REFUSED;
}

int refused_here(const struct fault *fault)
{
    fprintf(stderr, "cairnctl: %s\n", fault->message);
    return fault->status == STATUS_INVALID ? EXIT_USAGE : EXIT_REFUSED;
}

int usage_error(const char *format, ...)
{
    va_list arguments;

    fputs("cairnctl: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputs("; see cairnctl --help\n", stderr);
    return EXIT_USAGE;
}

/* The log: one line an event to stderr, as text or JSON, UTC with milliseconds. */
#include "base.h"

static struct {
    _Atomic int level;
    bool json;
    char node[NAME_BYTES_MAX + 1];
} settings = {.level = JOURNAL_INFO};

static const char *const level_names[] = {"debug", "info", "warn", "error", "nothing"};

void journal_configure(enum journal_level level, bool json, const char *node)
{
    atomic_store(&settings.level, (int)level);
    settings.json = json;
    snprintf(settings.node, sizeof settings.node, "%s", node);
}

void journal_set_level(enum journal_level level)
{
    atomic_store(&settings.level, (int)level);
}

bool journal_wants(enum journal_level level)
{
    return (int)level >= atomic_load_explicit(&settings.level, memory_order_relaxed);
}

static void json_escape(char *out, size_t room, const char *text)
{
    size_t n = 0;

    for (; *text != '\0' && n + 7 < room; text++) {
        unsigned char c = (unsigned char)*text;

        if (c == '"' || c == '\\')
            n += (size_t)snprintf(out + n, room - n, "\\%c", c);
        else if (c < 0x20)
            n += (size_t)snprintf(out + n, room - n, "\\u%04x", c);
        else
            out[n++] = (char)c;
    }
    out[n] = '\0';
}

void journal(enum journal_level level, const char *event, const char *format, ...)
{
    char text[1024];
    char line[3072];
    char stamp[CLOCK_STAMP_ROOM];
    va_list args;

    if (!journal_wants(level))
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    clock_stamp(clock_wall_ms(), stamp);
    if (settings.json) {
        char escaped[2200];

        json_escape(escaped, sizeof escaped, text);
        snprintf(line, sizeof line,
                 "{\"time\":\"%s\",\"level\":\"%s\",\"node\":\"%s\",\"event\":\"%s\",\"text\":\"%s\"}\n",
                 stamp, level_names[level], settings.node, event, escaped);
    } else {
        snprintf(line, sizeof line, "%s %-5s %s: %s: %s\n", stamp, level_names[level], settings.node, event, text);
    }
    fputs(line, stderr); /* one call, so that lines of threads don't mix */
}

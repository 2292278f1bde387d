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

/* Whoever brings a line feed into a name begins no line of the log by it. */
static void add_plain(struct buffer *line, struct bytes text)
{
    for (size_t i = 0; i < text.len; i++)
        buffer_add(line, text.data[i] < 0x20 || text.data[i] == 0x7F ? (const uint8_t *)" " : &text.data[i], 1);
}

void journal(enum journal_level level, const char *event, const char *format, ...)
{
    struct buffer text = {0};
    struct buffer line = {0};
    char stamp[CLOCK_STAMP_ROOM];
    va_list args;

    if (!journal_wants(level))
        return;
    va_start(args, format);
    buffer_vprintf(&text, format, args);
    va_end(args);
    clock_stamp(clock_wall_ms(), stamp);
    if (settings.json) {
        buffer_printf(&line, "{\"time\":\"%s\",\"level\":\"%s\",\"node\":\"%s\",\"event\":\"%s\",\"text\":\"", stamp,
                      level_names[level], settings.node, event);
        buffer_add_json(&line, buffer_bytes(&text));
        buffer_printf(&line, "\"}\n");
    } else {
        buffer_printf(&line, "%s %-5s %s: %s: ", stamp, level_names[level], settings.node, event);
        add_plain(&line, buffer_bytes(&text));
        buffer_printf(&line, "\n");
    }
    fwrite(line.data, 1, line.len, stderr); /* one call, so that lines of threads don't mix */
    buffer_release(&line);
    buffer_release(&text);
}

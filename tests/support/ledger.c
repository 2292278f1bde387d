/*
 * A module for the tests: a ledger whose events have had an older form (upcasting), and a subscribing
 * processor that writes what it gets into the file that CAIRN_TEST_AUDIT names. At an event "Bad" it fails, at
 * "Slow" it waits until that file with .go behind its name exists.
 */
#include <cairn/module.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct ledger {
    long cents;
};

static void *create(struct cairn_bytes id)
{
    (void)id;
    return calloc(1, sizeof(struct ledger));
}

static int is(struct cairn_bytes text, const char *name)
{
    return text.len == strlen(name) && memcmp(text.data, name, text.len) == 0;
}

static long number_in(struct cairn_payload payload)
{
    char text[64];
    const char *digit = text;

    snprintf(text, sizeof text, "%.*s", (int)payload.content.len, (const char *)payload.content.data);
    while (*digit != '\0' && (*digit < '0' || *digit > '9'))
        digit++;
    return strtol(digit, NULL, 10);
}

static struct cairn_payload json(char *text, size_t room, const char *format, long value)
{
    int len = snprintf(text, room, format, value);

    return (struct cairn_payload){CAIRN_PAYLOAD_JSON, {(const uint8_t *)text, (size_t)len}};
}

static void decide(const void *state, const struct cairn_command *command, struct cairn_decision *decision)
{
    static const struct cairn_metadata made_by[] = {
        {{(const uint8_t *)"module", 6}, {(const uint8_t *)"ledger", 6}}};
    const struct ledger *ledger = state;
    char text[64];
    struct cairn_new_event added = {
        .type = "Added", .revision = 1, .metadata = made_by, .metadata_count = 1, .id = NULL};

    if (is(command->type, "Total")) {
        decision->reply(decision, "Total", json(text, sizeof text, "{\"cents\":%ld}", ledger->cents));
    } else if (is(command->type, "Add")) {
        added.payload = json(text, sizeof text, "{\"cents\":%ld}", number_in(command->payload));
        decision->emit_event(decision, &added);
    } else {
        decision->emit(decision, is(command->type, "Slow") ? "Slow" : "Bad", command->payload);
    }
}

/* Knows revision 1 only. */
static int evolve(void *state, const struct cairn_event *event)
{
    struct ledger *ledger = state;

    if (!is(event->type, "Added"))
        return is(event->type, "Slow") || is(event->type, "Bad") ? 0 : -1;
    if (event->revision != 1)
        return -1;
    ledger->cents += number_in(event->payload);
    return 0;
}

static int from_euros(const struct cairn_event *event, struct cairn_upcast *upcast)
{
    char text[64];

    upcast->become(upcast, "Added", 1, json(text, sizeof text, "{\"cents\":%ld}", number_in(event->payload) * 100));
    return 0;
}

static const struct cairn_upcaster upcasters[] = {
    {"Added", 0, from_euros},
    {"Booked", 0, from_euros},
    {NULL, 0, NULL},
};

static void process(void *state, const struct cairn_event *event, struct cairn_processing *processing)
{
    const char *path = getenv("CAIRN_TEST_AUDIT");
    char go[512];
    struct timespec moment = {0, 5000000};
    FILE *out;

    (void)state;
    if (path == NULL)
        return;
    snprintf(go, sizeof go, "%s.go", path);
    while (is(event->type, "Slow") && access(go, F_OK) != 0)
        nanosleep(&moment, NULL);
    if (is(event->type, "Bad"))
        processing->fail(processing, "it is bad");
    out = fopen(path, "a");
    if (out == NULL)
        return;
    fprintf(out, "%.*s %llu %.*s %u %.*s %.*s %.*s\n", (int)event->aggregate_id.len,
            (const char *)event->aggregate_id.data, (unsigned long long)event->sequence, (int)event->type.len,
            (const char *)event->type.data, event->revision, (int)event->payload.content.len,
            (const char *)event->payload.content.data, (int)event->command_id.len,
            (const char *)event->command_id.data, (int)event->traceparent.len, (const char *)event->traceparent.data);
    fclose(out);
}

const struct cairn_module *cairn_module(void)
{
    static const char *const commands[] = {"Add", "Total", "Slow", "Bad", NULL};
    static const char *const aggregate_types[] = {"ledger", NULL};
    static const struct cairn_aggregate_type type = {.name = "ledger",
                                                     .commands = commands,
                                                     .create = create,
                                                     .destroy = free,
                                                     .decide = decide,
                                                     .evolve = evolve,
                                                     .upcasters = upcasters};
    static const struct cairn_aggregate_type *const types[] = {&type, NULL};
    static const struct cairn_processor audit = {.name = "audit",
                                                 .aggregate_types = aggregate_types,
                                                 .timeout_ms = 1000,
                                                 .report_failure = 1,
                                                 .process = process};
    static const struct cairn_processor *const processors[] = {&audit, NULL};
    static const struct cairn_module module = {
        .version = CAIRN_MODULE_VERSION, .name = "ledger", .types = types, .processors = processors};

    return &module;
}

/*
 * The smallest module: every Put becomes one event with the same payload. For benchmarks, and as
 * the place to start from. Its other commands break the contract on purpose, for tests.
 */
#include <cairn/module.h>
#include <stdlib.h>
#include <string.h>

static void *create(struct cairn_bytes aggregate_id)
{
    (void)aggregate_id;
    return calloc(1, sizeof(uint64_t));
}

static void decide(const void *state, const struct cairn_command *command,
                   struct cairn_decision *decision)
{
    (void)state;
    if (command->type.len == 3) { /* Put */
        decision->emit(decision, "Put", command->payload);
    } else if (memcmp(command->type.data, "BreakHuge", command->type.len) == 0) {
        size_t len = 5U << 20;
        uint8_t *huge = calloc(1, len);

        decision->emit(decision, "Huge",
                       (struct cairn_payload){CAIRN_PAYLOAD_DATA, {huge, huge == NULL ? 0 : len}});
        free(huge);
    } else if (memcmp(command->type.data, "BreakMany", command->type.len) == 0) {
        for (int i = 0; i < 2000; i++)
            decision->emit(decision, "Many", command->payload);
    } else if (memcmp(command->type.data, "BreakType", command->type.len) == 0) {
        decision->emit(decision, "", command->payload);
    }
}

static int evolve(void *state, const struct cairn_event *event)
{
    (void)event;
    ++*(uint64_t *)state;
    return 0;
}

static const struct cairn_aggregate_type echo = {
    .name = "echo",
    .commands = (const char *const[]){"Put", "BreakHuge", "BreakMany", "BreakType", NULL},
    .create = create,
    .destroy = free,
    .decide = decide,
    .evolve = evolve,
};

const struct cairn_module *cairn_module(void)
{
    static const struct cairn_aggregate_type *const types[] = {&echo, NULL};
    static const struct cairn_module module = {.version = CAIRN_MODULE_VERSION, .name = "echo", .types = types};

    return &module;
}

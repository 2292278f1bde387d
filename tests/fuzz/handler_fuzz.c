/*
 * What handlers answer: a module whose decision is made of the input's bytes, and a worker whose result
 * is the input. Whatever they say, every command gets one answer, and what is committed is gapless.
 *
 * Input: a byte for the kind, then for a module [what, length, bytes…]…, for a worker a packed result.
 */
#include "aggregate/aggregate.h"
#include "fuzz.h"

struct target {
    struct store *store;
    struct aggregates *aggregates;
    struct blob *log[64];
    uint64_t submitted;
    uint64_t committed;
    struct applied applied;
    uint64_t execution;
    unsigned answers;
};

static struct bytes script; /* of the module */

static void decide(const void *state, const struct cairn_command *command,
                   struct cairn_decision *decision)
{
    struct bytes left = script;

    (void)state;
    (void)command;
    while (left.len >= 2) {
        uint8_t what = left.data[0];
        size_t len = left.data[1] < left.len - 2 ? left.data[1] : left.len - 2;
        char text[256];
        struct cairn_payload payload = {what >> 4, {left.data + 2, len}};

        memcpy(text, left.data + 2, len);
        text[len] = '\0';
        if (what % 4 == 0)
            decision->reject(decision, text, text);
        else if (what % 4 == 1)
            decision->reply(decision, what & 8 ? NULL : text, payload);
        else
            decision->emit(decision, what & 8 ? "Happened" : text, payload);
        left = (struct bytes){left.data + 2 + len, left.len - 2 - len};
    }
}

static void *create(struct cairn_bytes id)
{
    (void)id;
    return calloc(1, 1);
}

static int evolve(void *state, const struct cairn_event *event)
{
    (void)state;
    return event->type.len % 7 == 6; /* a fault now and then */
}

static const struct cairn_aggregate_type module = {
    .name = "module",
    .commands = (const char *const[]){"Do", NULL},
    .create = create,
    .destroy = free,
    .decide = decide,
    .evolve = evolve,
};

static enum status on_submit(void *context, struct blob *payload, uint64_t *index)
{
    struct target *t = context;

    assert(t->submitted < COUNT_OF(t->log));
    t->log[t->submitted] = payload;
    *index = ++t->submitted;
    return STATUS_OK;
}

static enum status on_barrier(void *context, uint64_t *index)
{
    return on_submit(context, blob_new(0), index);
}

static void on_answer(void *context, struct admitted *command, const struct outcome *outcome,
                      const struct fault *fault)
{
    (void)command;
    assert((outcome == NULL) != (fault == NULL));
    ((struct target *)context)->answers++;
}

static const struct cairn_aggregate_type *on_module_type(void *context, struct bytes name)
{
    (void)context;
    return bytes_equal(name, BYTES_LITERAL("module")) ? &module : NULL;
}

static enum status on_pick(void *context, const struct command *command, uint64_t hint,
                           uint64_t *worker, struct fault *fault)
{
    (void)context;
    (void)command;
    (void)hint;
    (void)fault;
    *worker = 1;
    return STATUS_OK;
}

static void on_execute(void *context, uint64_t worker, uint64_t execution_id, struct bytes packed,
                       uint64_t deadline_ms)
{
    (void)worker;
    (void)packed;
    (void)deadline_ms;
    ((struct target *)context)->execution = execution_id;
}

static bool on_publish(void *context, uint64_t ticket, const struct command_record *record)
{
    (void)context;
    (void)ticket;
    (void)record;
    return false;
}

static void on_forget(void *context, uint64_t ticket)
{
    (void)context;
    (void)ticket;
}

static void on_forgot(void *context)
{
    (void)context;
}

static bool on_damaged(void *context, const struct fault *fault)
{
    (void)context;
    (void)fault;
    abort(); /* what a handler says never damages the store */
}

static uint64_t on_index(void *context)
{
    return ((struct target *)context)->committed;
}

static void commit(struct target *t, struct moment moment)
{
    struct store_batch *batch = store_batch_new(t->store);
    struct fault fault;

    aggregates_flush(t->aggregates, moment);
    while (t->committed < t->submitted) {
        struct blob *payload = t->log[t->committed++];

        if (payload->len > 0 &&
            aggregates_committed(t->aggregates, t->committed,
                                 (struct bytes){payload->data, payload->len}, &t->applied, batch,
                                 &fault) != STATUS_OK)
            abort();
    }
    if (store_write(t->store, batch, true, &fault) != STATUS_OK)
        abort();
    store_batch_free(batch);
    aggregates_stored(t->aggregates, t->committed, moment);
}

static void execute(struct target *t, struct bytes packed, struct moment moment)
{
    struct arena arena = {0};
    struct execution_result result;
    struct fault fault;

    if (wire_result_decode(packed, &arena, &result, &fault) == STATUS_OK)
        aggregates_executed(t->aggregates, t->execution, 1, &result, moment);
    else
        aggregates_executed(t->aggregates, t->execution, 2, NULL, moment); /* not its worker */
    arena_release(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct aggregates_settings settings = {.partition = 1,
                                           .payload_bytes_max = 200,
                                           .snapshot_every = 3,
                                           .cache_bytes = 1 << 16,
                                           .cache_count = 4};
    struct target t = {0};
    struct aggregates_effects effects = {&t,         on_submit,  on_barrier, on_answer, on_module_type,
                                         on_pick,    on_execute, on_publish, on_forget, on_forgot, on_damaged,     on_index,  on_index,
                                         on_index};
    struct moment moment = {1000, 1700000000000};
    struct admitted commands[3] = {0};
    struct bytes rest;
    unsigned kind;

    if (!fuzz_choose(data, size, 2, &kind, &rest))
        return 0;
    if (store_open_memory(&t.store) != STATUS_OK)
        abort();
    t.aggregates = aggregates_new(&settings, &effects, t.store);
    aggregates_own(t.aggregates, &t.applied);
    script = rest;
    for (size_t i = 0; i < COUNT_OF(commands); i++) {
        static const char *const ids[] = {"c1", "c2", "c3"};

        commands[i].deadline_ms = 5000;
        commands[i].command = (struct command){
            .kind = COMMAND_DISPATCH,
            .id = bytes_of(ids[i]),
            .aggregate_type = kind == 0 ? BYTES_LITERAL("module") : BYTES_LITERAL("other"),
            .aggregate_id = BYTES_LITERAL("A"),
            .type = BYTES_LITERAL("Do"),
        };
        aggregates_admit(t.aggregates, &commands[i], moment);
        if (kind == 1)
            execute(&t, rest, moment);
        commit(&t, moment);
    }
    aggregates_disown(t.aggregates);
    assert(t.answers == COUNT_OF(commands));
    aggregates_free(t.aggregates);
    for (uint64_t i = 0; i < t.submitted; i++)
        blob_drop(t.log[i]);
    store_free(t.store);
    return 0;
}

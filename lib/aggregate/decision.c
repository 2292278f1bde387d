/* What a handler says, from a module, a worker or an append, held to the contract. */
#include "parts.h"

static struct bytes copy_text(struct decision *d, const char *text)
{
    return arena_copy(d->arena, bytes_of(text));
}

static struct payload copy_payload(struct decision *d, struct cairn_payload payload)
{
    struct bytes content = {payload.content.data, payload.content.len};

    return (struct payload){(enum payload_kind)payload.kind, arena_copy(d->arena, content)};
}

static void add(struct decision *d, const struct new_event *event)
{
    if (d->count >= DECISION_EVENTS_MAX) {
        (void)fault_set(&d->broken, STATUS_FAILED, "HANDLER_BROKE_CONTRACT",
                        "the handler decided more than %d events for one command",
                        DECISION_EVENTS_MAX);
        return;
    }
    if (d->count == d->room) {
        struct new_event *old = d->events;

        d->room = d->room == 0 ? 4 : d->room * 2;
        d->events = arena_take(d->arena, d->room * sizeof *d->events);
        if (d->count > 0)
            memcpy(d->events, old, d->count * sizeof *d->events);
    }
    d->events[d->count++] = *event;
    d->bytes += event->payload.content.len;
}

static void emit_event(struct cairn_decision *base, const struct cairn_new_event *event)
{
    struct decision *d = CONTAINER_OF(base, struct decision, base);
    struct new_event copy = {.type = copy_text(d, event->type), .revision = event->revision};

    if (event->payload.content.len > DECISION_BYTES_MAX) {
        (void)fault_set(&d->broken, STATUS_FAILED, "HANDLER_BROKE_CONTRACT",
                        "the handler decided an event of %zu bytes", event->payload.content.len);
        return;
    }
    if (event->metadata_count > METADATA_ENTRIES_MAX) {
        (void)fault_set(&d->broken, STATUS_FAILED, "HANDLER_BROKE_CONTRACT",
                        "the handler decided an event with %zu entries of metadata", event->metadata_count);
        return;
    }
    copy.payload = copy_payload(d, event->payload);
    if (event->id != NULL)
        copy.id = copy_text(d, event->id);
    if (event->subject != NULL)
        copy.subject = copy_text(d, event->subject);
    copy.metadata.count = event->metadata_count;
    copy.metadata.entries = arena_take(d->arena, event->metadata_count * sizeof *copy.metadata.entries);
    for (size_t i = 0; i < event->metadata_count; i++) {
        const struct cairn_metadata *m = &event->metadata[i];

        copy.metadata.entries[i].key = arena_copy(d->arena, from_module(m->key));
        copy.metadata.entries[i].value = arena_copy(d->arena, from_module(m->value));
    }
    add(d, &copy);
}

static void emit(struct cairn_decision *base, const char *type, struct cairn_payload payload)
{
    emit_event(base, &(struct cairn_new_event){.type = type, .payload = payload});
}

static void reply(struct cairn_decision *base, const char *type, struct cairn_payload payload)
{
    struct decision *d = CONTAINER_OF(base, struct decision, base);

    d->reply = (struct reply){.present = true, .type = copy_text(d, type), .payload = copy_payload(d, payload)};
}

static void reject(struct cairn_decision *base, const char *reason, const char *message)
{
    struct decision *d = CONTAINER_OF(base, struct decision, base);

    d->rejection = (struct rejection){true, copy_text(d, reason), copy_text(d, message)};
}

void decision_init(struct decision *d, struct arena *arena)
{
    *d = (struct decision){.base = {emit, reply, reject, emit_event, NULL}, .arena = arena};
}

static bool handles(const struct cairn_aggregate_type *type, struct bytes command)
{
    for (const char *const *name = type->commands; *name != NULL; name++)
        if (bytes_equal(bytes_of(*name), command))
            return true;
    return false;
}

void decision_by_module(struct decision *d, const struct aggregate *a,
                        const struct command *command)
{
    struct cairn_command seen = {
        .id = {command->id.data, command->id.len},
        .aggregate_id = {a->id.data, a->id.len},
        .type = {command->type.data, command->type.len},
        .payload = {(enum cairn_payload_kind)command->payload.kind,
                    {command->payload.content.data, command->payload.content.len}},
        .metadata = (const struct cairn_metadata *)(const void *)command->metadata.entries,
        .metadata_count = command->metadata.count,
        .sequence = a->sequence,
        .principal = {command->principal.data, command->principal.len},
        .subject = {command->subject.data, command->subject.len},
    };

    _Static_assert(sizeof(struct cairn_metadata) == sizeof(struct metadata_entry),
                   "the module sees our metadata as it is");
    if (!handles(a->module, command->type)) {
        (void)fault_set(&d->broken, STATUS_NO_HANDLER, "NO_HANDLER",
                        "aggregate type %s has no command %.*s", a->module->name,
                        (int)command->type.len, (const char *)command->type.data);
        return;
    }
    a->module->decide(a->state, &seen, &d->base);
}

void decision_by_worker(struct decision *d, const struct execution_result *result)
{
    if (result->failure.len > 0) {
        (void)fault_set(&d->broken, STATUS_FAILED, "HANDLER_FAILED", "the worker failed: %.*s",
                        (int)(result->failure.len > 300 ? 300 : result->failure.len),
                        (const char *)result->failure.data);
        return;
    }
    d->rejection = result->rejection;
    d->reply = result->reply;
    d->snapshot = result->snapshot;
    for (size_t i = 0; i < result->event_count; i++)
        add(d, &result->events[i]);
}

void decision_by_conflict(struct decision *d, const struct fault *fault)
{
    d->conflict = true;
    d->rejection = (struct rejection){true, copy_text(d, fault->reason), copy_text(d, fault->message)};
}

void decision_by_snapshot(struct decision *d, const struct command *command, uint64_t sequence)
{
    if (sequence == 0)
        (void)fault_set(&d->broken, STATUS_NOT_FOUND, "AGGREGATE_NOT_FOUND", "aggregate %.*s has no events",
                        (int)command->aggregate_id.len, (const char *)command->aggregate_id.data);
    else if (command->kind == COMMAND_WRITE_SNAPSHOT && command->snapshot.sequence > sequence)
        (void)fault_set(&d->broken, STATUS_INVALID, "SNAPSHOT_INVALID",
                        "the snapshot includes %llu events; aggregate %.*s has %llu",
                        (unsigned long long)command->snapshot.sequence, (int)command->aggregate_id.len,
                        (const char *)command->aggregate_id.data, (unsigned long long)sequence);
}

void decision_by_append(struct decision *d, const struct command *command)
{
    for (size_t i = 0; i < command->event_count; i++)
        add(d, &command->events[i]);
}

enum status decision_check(const struct decision *d, uint64_t sequence, uint32_t payload_max,
                           struct fault *fault)
{
    if (d->broken.status != STATUS_OK) {
        *fault = d->broken;
        return fault->status;
    }
    if (d->bytes > DECISION_BYTES_MAX)
        return fault_set(fault, STATUS_FAILED, "HANDLER_BROKE_CONTRACT",
                         "the events of this command have %zu bytes together; at most %u are "
                         "allowed",
                         d->bytes, DECISION_BYTES_MAX);
    if (d->reply.payload.content.len > payload_max)
        return fault_set(fault, STATUS_FAILED, "HANDLER_BROKE_CONTRACT",
                         "the handler's reply has %zu bytes; at most %u are allowed",
                         d->reply.payload.content.len, payload_max);
    for (size_t i = 0; i < d->count; i++)
        if (new_event_check(&d->events[i], payload_max, fault) != STATUS_OK) {
            fault->status = STATUS_FAILED;
            snprintf(fault->reason, sizeof fault->reason, "HANDLER_BROKE_CONTRACT");
            return STATUS_FAILED;
        }
    return snapshot_check(&d->snapshot, sequence + (d->rejection.present ? 0 : d->count),
                          payload_max, fault);
}

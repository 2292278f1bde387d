/* What a command or event must look like before anything is done with it. */
#include "wire.h"

static enum status check_text(struct bytes value, const char *field, size_t max, bool required,
                              struct fault *fault)
{
    if (required && value.len == 0)
        return fault_set(fault, STATUS_INVALID, "FIELD_EMPTY", "%s is empty; it must have 1 to %zu bytes",
                         field, max);
    if (value.len > max)
        return fault_set(fault, STATUS_INVALID, "FIELD_TOO_LONG",
                         "%s has %zu bytes; at most %zu are allowed", field, value.len, max);
    if (!bytes_is_utf8(value))
        return fault_set(fault, STATUS_INVALID, "MALFORMED_TEXT",
                         "%s holds a NUL or is not UTF-8", field);
    return STATUS_OK;
}

static enum status check_payload(const struct payload *payload, const char *what, uint32_t max,
                                 struct fault *fault)
{
    if (payload->content.len > max)
        return fault_set(fault, STATUS_INVALID, "PAYLOAD_TOO_LARGE",
                         "payload of %s has %zu bytes; this cluster takes at most %u", what,
                         payload->content.len, max);
    return STATUS_OK;
}

static enum status check_metadata(const struct metadata *metadata, struct fault *fault)
{
    size_t total = 0;

    if (metadata->count > METADATA_ENTRIES_MAX)
        return fault_set(fault, STATUS_INVALID, "METADATA_TOO_LARGE",
                         "metadata has %zu entries; at most %d are allowed", metadata->count,
                         METADATA_ENTRIES_MAX);
    for (size_t i = 0; i < metadata->count; i++)
        total += metadata->entries[i].key.len + metadata->entries[i].value.len;
    if (total > 65536)
        return fault_set(fault, STATUS_INVALID, "METADATA_TOO_LARGE",
                         "metadata has %zu bytes; at most 65536 are allowed", total);
    return STATUS_OK;
}

enum status new_event_check(const struct new_event *event, uint32_t payload_max,
                            struct fault *fault)
{
    enum status status = check_text(event->type, "event type", TYPE_BYTES_MAX, true, fault);

    if (status == STATUS_OK)
        status = check_text(event->id, "event id", COMMAND_ID_BYTES_MAX, false, fault);
    if (status == STATUS_OK)
        status = check_text(event->subject, "subject", SUBJECT_BYTES_MAX, false, fault);
    if (status == STATUS_OK)
        status = check_payload(&event->payload, "an event", payload_max, fault);
    if (status == STATUS_OK)
        status = check_metadata(&event->metadata, fault);
    return status;
}

static enum status check_origin(const struct origin *origin, struct fault *fault)
{
    enum status status =
        check_text(origin->correlation_id, "origin.correlation_id", COMMAND_ID_BYTES_MAX, false, fault);

    if (status == STATUS_OK)
        status = check_text(origin->causation_id, "origin.causation_id", COMMAND_ID_BYTES_MAX, false, fault);
    if (status == STATUS_OK)
        status = check_text(origin->traceparent, "origin.traceparent", TRACEPARENT_BYTES_MAX, false, fault);
    if (status == STATUS_OK)
        status = check_text(origin->tracestate, "origin.tracestate", TRACESTATE_BYTES_MAX, false, fault);
    return status;
}

static uint64_t mix_number(uint64_t seed, uint64_t number)
{
    return hash_mix(seed, (struct bytes){(uint8_t *)&number, sizeof number});
}

static uint64_t mix_payload(uint64_t seed, struct bytes type, const struct payload *payload)
{
    return hash_mix(hash_mix(mix_number(seed, payload->kind), type), payload->content);
}

/* What makes two requests the same command. Metadata isn't part: a retry has another trace. */
static uint64_t fingerprint(const struct command *command)
{
    uint64_t hash = mix_number(0, command->kind);

    hash = hash_mix(hash, command->aggregate_type);
    hash = hash_mix(hash, command->aggregate_id);
    hash = mix_number(hash, command->expects_sequence ? command->expected_sequence + 1 : 0);
    hash = mix_payload(hash, command->type, &command->payload);
    for (size_t i = 0; i < command->event_count; i++) {
        hash = mix_payload(hash, command->events[i].type, &command->events[i].payload);
        if (command->events[i].revision > 0)
            hash = mix_number(hash, command->events[i].revision);
    }
    if (command->kind == COMMAND_FORGET)
        hash = hash_mix(hash, command->subject);
    if (command->snapshot.present)
        hash = mix_payload(mix_number(hash, command->snapshot.sequence), BYTES_NONE, &command->snapshot.payload);
    return hash == 0 ? 1 : hash;
}

static enum status check_snapshot(const struct snapshot *snapshot, uint32_t payload_max, struct fault *fault)
{
    if (snapshot->sequence == 0)
        return fault_set(fault, STATUS_INVALID, "SNAPSHOT_INVALID",
                         "the snapshot includes no events; sequence says how many it does");
    if (snapshot->payload.kind == PAYLOAD_NONE || snapshot->payload.content.len == 0)
        return fault_set(fault, STATUS_INVALID, "SNAPSHOT_INVALID",
                         "the snapshot has no payload; DeleteSnapshot takes one away");
    return check_payload(&snapshot->payload, "the snapshot", payload_max, fault);
}

enum status command_check(struct command *command, uint32_t payload_max, struct fault *fault)
{
    bool dispatch = command->kind == COMMAND_DISPATCH;
    enum status status = check_text(command->aggregate_id, "aggregate_id", AGGREGATE_ID_BYTES_MAX,
                                    true, fault);

    if (status == STATUS_OK)
        status = check_text(command->aggregate_type, "aggregate_type", TYPE_BYTES_MAX, true, fault);
    if (status == STATUS_OK)
        status = check_text(command->type, "type", TYPE_BYTES_MAX, dispatch, fault);
    if (status == STATUS_OK)
        status = check_text(command->id, "command_id", COMMAND_ID_BYTES_MAX, false, fault);
    if (status == STATUS_OK)
        status = check_text(command->subject, "subject", SUBJECT_BYTES_MAX, command->kind == COMMAND_FORGET, fault);
    if (status == STATUS_OK)
        status = check_payload(&command->payload, "the command", payload_max, fault);
    if (status == STATUS_OK)
        status = check_metadata(&command->metadata, fault);
    if (status == STATUS_OK)
        status = check_origin(&command->origin, fault);
    if (status == STATUS_OK && command->kind == COMMAND_WRITE_SNAPSHOT)
        status = check_snapshot(&command->snapshot, payload_max, fault);
    if (status == STATUS_OK && command->kind == COMMAND_APPEND && command->event_count == 0)
        status = fault_set(fault, STATUS_INVALID, "FIELD_EMPTY", "events is empty; append at least one");
    if (status == STATUS_OK && command->event_count > DECISION_EVENTS_MAX)
        status = fault_set(fault, STATUS_INVALID, "TOO_MANY_EVENTS",
                           "%zu events in one append; at most %d are allowed",
                           command->event_count, DECISION_EVENTS_MAX);
    for (size_t i = 0; status == STATUS_OK && i < command->event_count; i++)
        status = new_event_check(&command->events[i], payload_max, fault);
    if (status == STATUS_OK)
        command->fingerprint = fingerprint(command);
    return status;
}

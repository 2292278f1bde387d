/* Events and their requests: cairn/v1/event.proto. A stored event is the packed Event itself. */
#include "cairn/v1/cluster.pb-c.h"
#include "cairn/v1/event.pb-c.h"
#include "convert.h"

enum status wire_append_decode(struct bytes packed, struct arena *arena, struct command *command,
                               struct fault *fault)
{
    Cairn__V1__AppendRequest *request =
        wire_unpack(&cairn__v1__append_request__descriptor, packed, arena, "request", fault);

    if (request == NULL)
        return STATUS_INVALID;
    *command = (struct command){
        .kind = COMMAND_APPEND,
        .id = from_text(request->command_id),
        .aggregate_type = from_text(request->aggregate_type),
        .aggregate_id = from_text(request->aggregate_id),
        .expects_sequence = request->expectation_case ==
                            CAIRN__V1__APPEND_REQUEST__EXPECTATION_EXPECTED_SEQUENCE,
        .events = new_events_from(arena, request->events, request->n_events),
        .event_count = request->n_events,
        .origin = origin_from(request->origin),
        .packed = packed,
    };
    if (command->expects_sequence)
        command->expected_sequence = request->expected_sequence;
    return STATUS_OK;
}

void wire_append_response(struct buffer *out, const struct outcome *outcome, struct bytes owner)
{
    put_bytes(out, 1, outcome->command_id);
    put_u64(out, 2, outcome->first_sequence);
    put_u64(out, 3, outcome->event_count);
    put_u64(out, 4, outcome->partition);
    put_token(out, 5, outcome);
    put_bytes(out, 6, owner);
    put_failures(out, 7, outcome);
}

enum status check_consistency(Cairn__V1__Consistency consistency, struct fault *fault)
{
    if ((unsigned)consistency > CAIRN__V1__CONSISTENCY__CONSISTENCY_STALE)
        return fault_set(fault, STATUS_INVALID, "UNKNOWN_ENUM",
                         "consistency has a value that this node doesn't know");
    return STATUS_OK;
}

enum status wire_read_decode(struct bytes packed, struct arena *arena,
                             struct read_request *request, struct fault *fault)
{
    Cairn__V1__ReadAggregateRequest *message = wire_unpack(
        &cairn__v1__read_aggregate_request__descriptor, packed, arena, "request", fault);

    if (message == NULL)
        return STATUS_INVALID;
    *request = (struct read_request){
        .aggregate_id = from_text(message->aggregate_id),
        .has_from = message->start_case == CAIRN__V1__READ_AGGREGATE_REQUEST__START_FROM_SEQUENCE,
        .backwards = message->direction == CAIRN__V1__DIRECTION__DIRECTION_BACKWARDS,
        .stale = message->consistency == CAIRN__V1__CONSISTENCY__CONSISTENCY_STALE,
        .limit = message->limit,
    };
    if (request->has_from)
        request->from_sequence = message->from_sequence;
    if ((unsigned)message->direction > CAIRN__V1__DIRECTION__DIRECTION_BACKWARDS ||
        (unsigned)message->consistency > CAIRN__V1__CONSISTENCY__CONSISTENCY_STALE)
        return fault_set(fault, STATUS_INVALID, "UNKNOWN_ENUM",
                         "direction or consistency has a value that this node doesn't know");
    return STATUS_OK;
}

void wire_read_response_add(struct buffer *out, struct bytes packed_event)
{
    put_bytes_always(out, 1, packed_event);
}

struct origin origin_from(const Cairn__V1__Origin *message)
{
    if (message == NULL)
        return (struct origin){.correlation_id = BYTES_NONE};
    return (struct origin){from_text(message->correlation_id), from_text(message->causation_id),
                           from_text(message->traceparent), from_text(message->tracestate)};
}

static void put_origin(struct buffer *out, unsigned field, const struct origin *origin)
{
    size_t begun;

    if (origin->correlation_id.len + origin->causation_id.len + origin->traceparent.len + origin->tracestate.len == 0)
        return;
    begun = put_begin(out, field);
    put_bytes(out, 1, origin->correlation_id);
    put_bytes(out, 2, origin->causation_id);
    put_bytes(out, 3, origin->traceparent);
    put_bytes(out, 4, origin->tracestate);
    put_end(out, begun);
}

void wire_event_pack(struct buffer *out, const struct event *event)
{
    put_fixed64(out, 16, event->sealed_by); /* first: see wire_event_is_sealed() */
    put_bytes(out, 1, event->aggregate_type);
    put_bytes(out, 2, event->aggregate_id);
    put_u64(out, 3, event->sequence);
    put_u64(out, 4, event->partition);
    put_u64(out, 5, event->position);
    put_bytes(out, 6, event->type);
    put_payload(out, 7, 8, &event->payload);
    put_metadata(out, 9, &event->metadata);
    put_time(out, 10, event->time_ms);
    put_bytes(out, 11, event->command_id);
    put_bytes(out, 12, event->id);
    put_u64(out, 13, event->revision);
    put_origin(out, 14, &event->origin);
    put_bytes(out, 15, event->principal);
    put_bytes(out, 17, event->subject);
    put_u64(out, 18, event->forgotten);
}

/* By the tag of field 16, fixed64, which no other packed event begins with. */
bool wire_event_is_sealed(struct bytes packed)
{
    return packed.len > 2 && packed.data[0] == 0x81 && packed.data[1] == 0x01;
}

enum status wire_event_decode(struct bytes packed, struct arena *arena, struct event *event,
                              struct fault *fault)
{
    Cairn__V1__Event *message =
        wire_unpack_trusted(&cairn__v1__event__descriptor, packed, arena, "event", fault);

    if (message == NULL)
        return STATUS_INVALID;
    *event = (struct event){
        .aggregate_type = from_text(message->aggregate_type),
        .aggregate_id = from_text(message->aggregate_id),
        .sequence = message->sequence,
        .partition = message->partition,
        .position = message->position,
        .type = from_text(message->type),
        .metadata = metadata_from(arena, (void **)message->metadata, message->n_metadata),
        .command_id = from_text(message->command_id),
        .id = from_text(message->id),
        .revision = message->revision,
        .origin = origin_from(message->origin),
        .principal = from_text(message->principal),
        .subject = from_text(message->subject),
        .sealed_by = message->sealed_by,
        .forgotten = message->forgotten != 0,
    };
    if (message->payload_case == CAIRN__V1__EVENT__PAYLOAD_JSON)
        event->payload = (struct payload){PAYLOAD_JSON, from_text(message->json)};
    else if (message->payload_case == CAIRN__V1__EVENT__PAYLOAD_DATA)
        event->payload = (struct payload){PAYLOAD_DATA, from_data(message->data)};
    if (message->time != NULL)
        event->time_ms = message->time->seconds * 1000 + message->time->nanos / 1000000;
    return STATUS_OK;
}

struct snapshot snapshot_from(struct arena *arena, const Cairn__V1__Snapshot *message)
{
    struct snapshot snapshot = {.present = message != NULL};

    if (message == NULL)
        return snapshot;
    snapshot.aggregate_type = from_text(message->aggregate_type);
    snapshot.aggregate_id = from_text(message->aggregate_id);
    snapshot.sequence = message->sequence;
    if (message->payload_case == CAIRN__V1__SNAPSHOT__PAYLOAD_JSON)
        snapshot.payload = (struct payload){PAYLOAD_JSON, from_text(message->json)};
    else if (message->payload_case == CAIRN__V1__SNAPSHOT__PAYLOAD_DATA)
        snapshot.payload = (struct payload){PAYLOAD_DATA, from_data(message->data)};
    snapshot.seal_count = message->n_seals;
    snapshot.seals = arena_take(arena, message->n_seals * sizeof *snapshot.seals);
    for (size_t i = 0; i < message->n_seals; i++)
        snapshot.seals[i] = (struct seal){from_text(message->seals[i]->subject), message->seals[i]->sealed_by};
    return snapshot;
}

void wire_snapshot_pack(struct buffer *out, const struct snapshot *snapshot)
{
    put_bytes(out, 1, snapshot->aggregate_type);
    put_bytes(out, 2, snapshot->aggregate_id);
    put_u64(out, 3, snapshot->sequence);
    put_payload(out, 4, 5, &snapshot->payload);
    for (size_t i = 0; i < snapshot->seal_count; i++) {
        size_t begun = put_begin(out, 6);

        put_bytes(out, 1, snapshot->seals[i].subject);
        put_fixed64(out, 2, snapshot->seals[i].sealed_by);
        put_end(out, begun);
    }
}

enum status wire_snapshot_decode(struct bytes packed, struct arena *arena,
                                 struct snapshot *snapshot, struct fault *fault)
{
    Cairn__V1__Snapshot *message =
        wire_unpack_trusted(&cairn__v1__snapshot__descriptor, packed, arena, "snapshot", fault);

    if (message == NULL)
        return STATUS_INVALID;
    *snapshot = snapshot_from(arena, message);
    return STATUS_OK;
}

enum status wire_write_snapshot_decode(struct bytes packed, struct arena *arena, struct command *command,
                                       struct fault *fault)
{
    const Cairn__V1__WriteSnapshotRequest *request =
        wire_unpack(&cairn__v1__write_snapshot_request__descriptor, packed, arena, "request", fault);

    if (request == NULL)
        return STATUS_INVALID;
    if (request->snapshot == NULL)
        return fault_set(fault, STATUS_INVALID, "FIELD_EMPTY", "the request has no snapshot");
    *command = (struct command){.kind = COMMAND_WRITE_SNAPSHOT,
                                .id = from_text(request->command_id),
                                .aggregate_type = from_text(request->snapshot->aggregate_type),
                                .aggregate_id = from_text(request->snapshot->aggregate_id),
                                .snapshot = snapshot_from(arena, request->snapshot),
                                .packed = packed};
    return STATUS_OK;
}

enum status wire_delete_snapshot_decode(struct bytes packed, struct arena *arena, struct command *command,
                                        struct fault *fault)
{
    const Cairn__V1__DeleteSnapshotRequest *request =
        wire_unpack(&cairn__v1__delete_snapshot_request__descriptor, packed, arena, "request", fault);

    if (request == NULL)
        return STATUS_INVALID;
    *command = (struct command){.kind = COMMAND_DELETE_SNAPSHOT,
                                .id = from_text(request->command_id),
                                .aggregate_type = from_text(request->aggregate_type),
                                .aggregate_id = from_text(request->aggregate_id),
                                .packed = packed};
    return STATUS_OK;
}

void wire_forget_request_pack(struct buffer *out, struct bytes command_id, struct bytes subject)
{
    put_bytes(out, 1, command_id);
    put_bytes(out, 2, subject);
}

void wire_forget_response(struct buffer *out, size_t partitions)
{
    put_u64(out, 1, partitions);
}

/* Of no aggregate, and the partition is not the id's: every partition gets one. */
enum status wire_forget_decode(struct bytes packed, struct arena *arena, struct command *command, struct fault *fault)
{
    const Cairn__V1__ForgetSubjectRequest *request =
        wire_unpack(&cairn__v1__forget_subject_request__descriptor, packed, arena, "request", fault);

    if (request == NULL)
        return STATUS_INVALID;
    *command = (struct command){.kind = COMMAND_FORGET,
                                .id = from_text(request->command_id),
                                .aggregate_type = BYTES_LITERAL("subject"),
                                .aggregate_id = BYTES_LITERAL("\x01" "forget"),
                                .subject = from_text(request->subject),
                                .packed = packed};
    return STATUS_OK;
}

void wire_snapshot_response(struct buffer *out, const struct outcome *outcome)
{
    put_bytes(out, 1, outcome->command_id);
}

enum status wire_read_snapshot_decode(struct bytes packed, struct arena *arena, struct read_request *request,
                                      struct fault *fault)
{
    const Cairn__V1__ReadSnapshotRequest *message =
        wire_unpack(&cairn__v1__read_snapshot_request__descriptor, packed, arena, "request", fault);

    if (message == NULL)
        return STATUS_INVALID;
    *request = (struct read_request){.aggregate_id = from_text(message->aggregate_id),
                                     .stale = message->consistency == CAIRN__V1__CONSISTENCY__CONSISTENCY_STALE,
                                     .of_snapshot = true};
    return check_consistency(message->consistency, fault);
}

void wire_read_snapshot_response(struct buffer *out, struct bytes packed_snapshot)
{
    put_bytes_always(out, 1, packed_snapshot);
}

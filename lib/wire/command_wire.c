/* Commands, their results, and what workers say: cairn/v1/command.proto. */
#include "cairn/v1/command.pb-c.h"
#include "convert.h"

#define COPY_METADATA(arena, message) \
    metadata_from(arena, (void **)(message)->metadata, (message)->n_metadata)

/* Every map entry has the same layout, whatever message it belongs to. */
struct metadata metadata_from(struct arena *arena, void **entries, size_t count)
{
    struct metadata metadata = {arena_take(arena, count * sizeof *metadata.entries), count};

    for (size_t i = 0; i < count; i++) {
        const Cairn__V1__Command__MetadataEntry *entry = entries[i];

        metadata.entries[i].key = from_text(entry->key);
        metadata.entries[i].value = from_text(entry->value);
    }
    return metadata;
}

static struct payload payload_from(int json_case, int data_case, int is, const char *json,
                                   ProtobufCBinaryData data)
{
    if (is == json_case)
        return (struct payload){PAYLOAD_JSON, from_text(json)};
    if (is == data_case)
        return (struct payload){PAYLOAD_DATA, from_data(data)};
    return (struct payload){PAYLOAD_NONE, BYTES_NONE};
}

#define PAYLOAD_FROM(PREFIX, message)                                                       \
    payload_from(PREFIX##__PAYLOAD_JSON, PREFIX##__PAYLOAD_DATA,                            \
                 (int)(message)->payload_case,                                              \
                 (message)->payload_case == PREFIX##__PAYLOAD_JSON ? (message)->json : NULL, \
                 (message)->payload_case == PREFIX##__PAYLOAD_DATA                          \
                     ? (message)->data                                                      \
                     : (ProtobufCBinaryData){0})

struct new_event *new_events_from(struct arena *arena, Cairn__V1__NewEvent **messages,
                                  size_t count)
{
    struct new_event *events = arena_take(arena, count * sizeof *events);

    for (size_t i = 0; i < count; i++) {
        events[i].type = from_text(messages[i]->type);
        events[i].payload = PAYLOAD_FROM(CAIRN__V1__NEW_EVENT, messages[i]);
        events[i].metadata = COPY_METADATA(arena, messages[i]);
        events[i].revision = messages[i]->revision;
        events[i].id = from_text(messages[i]->id);
        events[i].subject = from_text(messages[i]->subject);
    }
    return events;
}

struct reply reply_from(const Cairn__V1__Reply *message)
{
    if (message == NULL)
        return (struct reply){.present = false};
    return (struct reply){true, from_text(message->type), PAYLOAD_FROM(CAIRN__V1__REPLY, message),
                          from_text(message->subject), message->sealed_by, message->forgotten != 0};
}

struct rejection rejection_from(const Cairn__V1__Rejection *message)
{
    if (message == NULL)
        return (struct rejection){.present = false};
    return (struct rejection){true, from_text(message->reason), from_text(message->message)};
}

static void command_from(struct command *command, struct arena *arena,
                         const Cairn__V1__Command *message, struct bytes packed)
{
    *command = (struct command){
        .kind = COMMAND_DISPATCH,
        .id = from_text(message->command_id),
        .aggregate_type = from_text(message->aggregate_type),
        .aggregate_id = from_text(message->aggregate_id),
        .type = from_text(message->type),
        .payload = PAYLOAD_FROM(CAIRN__V1__COMMAND, message),
        .metadata = COPY_METADATA(arena, message),
        .origin = origin_from(message->origin),
        .subject = from_text(message->subject),
        .expects_sequence =
            message->expectation_case == CAIRN__V1__COMMAND__EXPECTATION_EXPECTED_SEQUENCE,
        .packed = packed,
    };
    if (command->expects_sequence)
        command->expected_sequence = message->expected_sequence;
}

static enum status no_command(const char *what, struct fault *fault)
{
    return fault_set(fault, STATUS_INVALID, "COMMAND_MISSING",
                     "%s has no command; set the field `command`", what);
}

enum status wire_dispatch_decode(struct bytes packed, struct arena *arena,
                                 struct command *command, struct fault *fault)
{
    Cairn__V1__DispatchRequest *request =
        wire_unpack(&cairn__v1__dispatch_request__descriptor, packed, arena, "request", fault);

    if (request == NULL)
        return STATUS_INVALID;
    if (request->command == NULL)
        return no_command("DispatchRequest", fault);
    command_from(command, arena, request->command, packed);
    return STATUS_OK;
}

enum status wire_dispatch_stream_decode(struct bytes packed, struct arena *arena,
                                        struct command *command, uint64_t *timeout_ms,
                                        struct fault *fault)
{
    Cairn__V1__DispatchStreamRequest *request = wire_unpack(
        &cairn__v1__dispatch_stream_request__descriptor, packed, arena, "request", fault);
    const Google__Protobuf__Duration *timeout;

    if (request == NULL)
        return STATUS_INVALID;
    if (request->command == NULL)
        return no_command("DispatchStreamRequest", fault);
    command_from(command, arena, request->command, packed);
    timeout = request->timeout;
    *timeout_ms = 0;
    if (timeout != NULL) {
        if (timeout->seconds < 0 || timeout->nanos < 0 || timeout->seconds > 86400 * 365)
            return fault_set(fault, STATUS_INVALID, "TIMEOUT_INVALID",
                             "timeout must lie between 0 and a year");
        *timeout_ms = (uint64_t)timeout->seconds * 1000 + (uint64_t)timeout->nanos / 1000000;
        *timeout_ms = *timeout_ms == 0 ? 1 : *timeout_ms;
    }
    return STATUS_OK;
}

struct bytes wire_command_inside(const struct command *command)
{
    /* Field 1 of both requests is the command; it is found by walking the raw fields. */
    struct bytes in = command->packed;
    size_t at = 0;

    while (at < in.len) {
        uint64_t tag = 0;
        uint64_t len = 0;

        for (int shift = 0; at < in.len; shift += 7) {
            tag |= (uint64_t)(in.data[at] & 0x7F) << shift;
            if ((in.data[at++] & 0x80) == 0)
                break;
        }
        for (int shift = 0; at < in.len; shift += 7) {
            len |= (uint64_t)(in.data[at] & 0x7F) << shift;
            if ((in.data[at++] & 0x80) == 0)
                break;
        }
        if (tag == (1 << 3 | 2))
            return (struct bytes){in.data + at, (size_t)len};
        if ((tag & 7) != 2)
            break; /* both requests hold messages only */
        at += (size_t)len;
    }
    return BYTES_NONE;
}

void wire_command_seal(struct command *command, struct arena *arena)
{
    /* All that follows fits: what is there, the id, and four lengths and tags. */
    size_t room = command->packed.len + command->id.len + 40;
    struct buffer sealed = buffer_in(arena_take(arena, room), room);

    /* Of a scalar field that is there twice the last one counts. */
    if (command->kind != COMMAND_DISPATCH) {
        buffer_add(&sealed, command->packed.data, command->packed.len);
        put_bytes(&sealed, 1, command->id);
    } else {
        struct bytes inside = wire_command_inside(command);
        size_t begun = put_begin(&sealed, 1);

        buffer_add(&sealed, inside.data, inside.len);
        put_bytes(&sealed, 1, command->id);
        put_end(&sealed, begun);
    }
    assert(sealed.room == room);
    command->packed = buffer_bytes(&sealed);
}

/* Version, partition and the position behind the command, for clients an opaque text. */
void put_token(struct buffer *out, unsigned field, const struct outcome *outcome)
{
    char token[64] = "1.";
    size_t len = 2;

    len += put_hex(token + len, outcome->partition, 1);
    token[len++] = '.';
    len += put_hex(token + len, outcome->first_position + outcome->event_count, 1);

    put_bytes(out, field, (struct bytes){(uint8_t *)token, len});
}

void put_failures(struct buffer *out, unsigned field, const struct outcome *outcome)
{
    for (size_t i = 0; i < outcome->failure_count; i++) {
        size_t begun = put_begin(out, field);

        put_bytes(out, 1, outcome->failures[i].group);
        put_u64(out, 2, outcome->failures[i].timed_out);
        put_bytes(out, 3, outcome->failures[i].reason);
        put_end(out, begun);
    }
}

static void put_result(struct buffer *out, const struct outcome *outcome, struct bytes owner)
{
    put_bytes(out, 1, outcome->command_id);
    put_reply(out, 2, &outcome->reply);
    put_u64(out, 3, outcome->first_sequence);
    put_u64(out, 4, outcome->event_count);
    put_u64(out, 5, outcome->partition);
    put_token(out, 6, outcome);
    put_bytes(out, 7, owner);
    put_failures(out, 8, outcome);
}

void wire_dispatch_response(struct buffer *out, const struct outcome *outcome, struct bytes owner)
{
    put_result(out, outcome, owner);
}

void wire_dispatch_stream_response(struct buffer *out, struct bytes command_id,
                                   const struct outcome *outcome, struct bytes owner,
                                   const struct fault *fault, int grpc_code)
{
    size_t begun;

    put_bytes(out, 1, command_id);
    if (outcome != NULL) {
        begun = put_begin(out, 2);
        put_result(out, outcome, owner);
    } else {
        begun = put_begin(out, 3);
        wire_fault_pack(out, fault, grpc_code);
    }
    put_end(out, begun);
}

/* ---- workers ---- */

static void result_from(struct execution_result *result, struct arena *arena,
                        const Cairn__V1__ExecutionResult *message)
{
    *result = (struct execution_result){
        .execution_id = message->execution_id,
        .events = new_events_from(arena, message->events, message->n_events),
        .event_count = message->n_events,
        .reply = reply_from(message->reply),
        .rejection = rejection_from(message->rejection),
        .failure = from_text(message->failure),
        .needs_history = message->needs_history,
        .snapshot = snapshot_from(arena, message->snapshot),
    };
    result->reply.sealed_by = 0; /* nobody outside says what is sealed */
    result->reply.subject = BYTES_NONE;
    result->reply.forgotten = false;
}

enum status wire_result_decode(struct bytes packed, struct arena *arena,
                               struct execution_result *result, struct fault *fault)
{
    Cairn__V1__ExecutionResult *message = wire_unpack(
        &cairn__v1__execution_result__descriptor, packed, arena, "worker's answer", fault);

    if (message == NULL)
        return STATUS_INVALID;
    result_from(result, arena, message);
    return STATUS_OK;
}

enum status wire_worker_decode(struct bytes packed, struct arena *arena,
                               struct worker_message *message, struct fault *fault)
{
    Cairn__V1__HandleCommandsRequest *request = wire_unpack(
        &cairn__v1__handle_commands_request__descriptor, packed, arena, "worker's message", fault);

    *message = (struct worker_message){.kind = WORKER_NOTHING};
    if (request == NULL)
        return STATUS_INVALID;
    switch (request->message_case) {
    case CAIRN__V1__HANDLE_COMMANDS_REQUEST__MESSAGE_REGISTER: {
        const Cairn__V1__RegisterWorker *in = request->register_;

        message->kind = WORKER_REGISTER;
        message->registration.name = from_text(in->name);
        message->registration.aggregate_type = from_text(in->aggregate_type);
        message->registration.permits = in->permits;
        message->registration.command_type_count = in->n_command_types;
        message->registration.command_types =
            arena_take(arena, in->n_command_types * sizeof(struct bytes));
        for (size_t i = 0; i < in->n_command_types; i++)
            message->registration.command_types[i] = from_text(in->command_types[i]);
        break;
    }
    case CAIRN__V1__HANDLE_COMMANDS_REQUEST__MESSAGE_RESULT:
        message->kind = WORKER_RESULT;
        result_from(&message->result, arena, request->result);
        break;
    case CAIRN__V1__HANDLE_COMMANDS_REQUEST__MESSAGE_HEARTBEAT:
        message->kind = WORKER_HEARTBEAT;
        break;
    default:
        return fault_set(fault, STATUS_INVALID, "EMPTY_MESSAGE",
                         "a worker's message must be register, result or heartbeat");
    }
    if (message->kind == WORKER_RESULT) { /* the one field of the request, without its head */
        size_t at = 1; /* behind the tag of field 2 */

        while (at < packed.len && (packed.data[at] & 0x80) != 0)
            at++;
        at++;
        message->packed_result = packed.len > 0 && packed.data[0] == (2 << 3 | 2) && at <= packed.len
                                     ? (struct bytes){packed.data + at, packed.len - at}
                                     : BYTES_NONE;
    }
    return STATUS_OK;
}

void wire_worker_registered(struct buffer *out, const char *node, uint32_t heartbeat_ms)
{
    size_t registered = put_begin(out, 1);

    put_bytes(out, 1, bytes_of(node));
    put_time(out, 2, heartbeat_ms);
    put_end(out, registered);
}

void wire_worker_heartbeat(struct buffer *out)
{
    put_end(out, put_begin(out, 3));
}

void wire_execute_pack(struct buffer *out, const struct execute *execute)
{
    put_u64(out, 1, execute->execution_id);
    put_bytes_always(out, 2, execute->packed_command);
    put_u64(out, 3, execute->sequence);
    put_u64(out, 4, execute->events_from);
    for (size_t i = 0; i < execute->event_count; i++)
        put_bytes_always(out, 5, execute->packed_events[i]);
    if (execute->packed_snapshot.len > 0)
        put_bytes_always(out, 6, execute->packed_snapshot);
    put_bytes(out, 7, execute->principal);
}

void wire_execute_response(struct buffer *out, struct bytes packed_execute,
                           uint64_t execution_id)
{
    size_t begun = put_begin(out, 2);

    buffer_add(out, packed_execute.data, packed_execute.len);
    put_u64(out, 1, execution_id); /* the last of a scalar field wins */
    put_end(out, begun);
}

enum status wire_execute_peek(struct bytes packed, struct arena *arena, uint64_t *execution_id,
                              struct bytes *aggregate_type, struct bytes *aggregate_id,
                              struct bytes *command_type, uint64_t *sequence,
                              struct fault *fault)
{
    Cairn__V1__Execute *execute =
        wire_unpack(&cairn__v1__execute__descriptor, packed, arena, "execute", fault);

    if (execute == NULL)
        return STATUS_INVALID;
    if (execute->command == NULL)
        return no_command("Execute", fault);
    *execution_id = execute->execution_id;
    *aggregate_type = from_text(execute->command->aggregate_type);
    *aggregate_id = from_text(execute->command->aggregate_id);
    *command_type = from_text(execute->command->type);
    *sequence = execute->sequence;
    return STATUS_OK;
}

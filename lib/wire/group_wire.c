/* Processor groups: cairn/v1/event.proto, Process and its companions. */
#include "cairn/v1/event.pb-c.h"
#include "convert.h"

static enum status check_name(struct bytes name, const char *what, struct fault *fault)
{
    if (name.len == 0 || name.len > NAME_BYTES_MAX)
        return fault_set(fault, STATUS_INVALID, "NAME_INVALID", "%s has %zu bytes; it must have 1 to %d", what,
                         name.len, NAME_BYTES_MAX);
    return STATUS_OK;
}

static enum status subscribing_from(const Cairn__V1__JoinGroup *join, struct process_request *request,
                                    struct fault *fault)
{
    const Google__Protobuf__Duration *timeout = join->subscribing->timeout;

    request->subscribing = true;
    request->no_wait = join->subscribing->no_wait;
    request->report_failure = join->subscribing->report_failure;
    if (join->from != NULL)
        return fault_set(fault, STATUS_INVALID, "START_INVALID",
                         "a subscribing processor gets what is committed from now on; leave `from` out");
    if (timeout == NULL)
        return STATUS_OK;
    request->wait_ms = (uint64_t)timeout->seconds * 1000 + (uint64_t)timeout->nanos / 1000000;
    if (timeout->seconds < 0 || timeout->seconds > 3600 || timeout->nanos < 0 || request->wait_ms == 0)
        return fault_set(fault, STATUS_INVALID, "TIMEOUT_INVALID",
                         "subscribing.timeout must lie between 1 ms and one hour");
    return STATUS_OK;
}

static enum status join_from(struct arena *arena, const Cairn__V1__JoinGroup *join,
                             struct process_request *request, struct fault *fault)
{
    enum status status;

    *request = (struct process_request){.kind = PROCESS_JOIN,
                                        .group = from_text(join->group),
                                        .member = from_text(join->member),
                                        .window = join->window,
                                        .forwarded = join->forwarded};
    status = check_name(request->group, "group", fault);
    if (status == STATUS_OK)
        status = check_name(request->member, "member", fault);
    if (status == STATUS_OK && join->window > SUBSCRIPTION_CREDITS_MAX)
        status = fault_set(fault, STATUS_INVALID, "WINDOW_INVALID", "window is %u; at most %u are allowed",
                           join->window, SUBSCRIPTION_CREDITS_MAX);
    if (status == STATUS_OK && join->ack_timeout != NULL) {
        if (join->ack_timeout->seconds < 0 || join->ack_timeout->seconds > 86400 || join->ack_timeout->nanos < 0 ||
            (join->ack_timeout->seconds == 0 && join->ack_timeout->nanos < 100000000))
            status = fault_set(fault, STATUS_INVALID, "ACK_TIMEOUT_INVALID",
                               "ack_timeout must lie between 100 ms and one day");
        request->ack_timeout_ms =
            (uint64_t)join->ack_timeout->seconds * 1000 + (uint64_t)join->ack_timeout->nanos / 1000000;
    }
    if (status == STATUS_OK && join->subscribing != NULL)
        status = subscribing_from(join, request, fault);
    if (status == STATUS_OK)
        status = log_start_from(join->from, &request->from, fault);
    if (status == STATUS_OK)
        status = event_filter_from(arena, join->filter, &request->filter, fault);
    if (status == STATUS_OK && request->filter.partition_count > 0)
        status = fault_set(fault, STATUS_INVALID, "FILTER_INVALID",
                           "a group divides all partitions among its members; leave filter.partitions empty");
    return status;
}

enum status wire_process_decode(struct bytes packed, struct arena *arena, struct process_request *request,
                                struct fault *fault)
{
    const Cairn__V1__ProcessRequest *message =
        wire_unpack(&cairn__v1__process_request__descriptor, packed, arena, "request", fault);

    if (message == NULL)
        return STATUS_INVALID;
    switch (message->request_case) {
    case CAIRN__V1__PROCESS_REQUEST__REQUEST_JOIN:
        return join_from(arena, message->join, request, fault);
    case CAIRN__V1__PROCESS_REQUEST__REQUEST_ACKNOWLEDGE:
        *request = (struct process_request){.kind = PROCESS_ACKNOWLEDGE,
                                            .partition = message->acknowledge->partition,
                                            .position = message->acknowledge->position,
                                            .up_to = message->acknowledge->up_to};
        return STATUS_OK;
    case CAIRN__V1__PROCESS_REQUEST__REQUEST_FAIL:
        *request = (struct process_request){.kind = PROCESS_FAIL,
                                            .partition = message->fail->partition,
                                            .position = message->fail->position,
                                            .reason = from_text(message->fail->reason)};
        return STATUS_OK;
    default:
        return fault_set(fault, STATUS_INVALID, "REQUEST_EMPTY",
                         "the request has neither join nor acknowledge nor fail");
    }
}

void wire_join_pack(struct buffer *out, const struct process_request *request)
{
    size_t join = put_begin(out, 1);

    put_bytes(out, 1, request->group);
    put_bytes(out, 2, request->member);
    put_event_filter(out, 3, &request->filter);
    put_log_start(out, 4, &request->from);
    put_u64(out, 5, request->window);
    if (request->ack_timeout_ms != 0)
        put_time(out, 6, (int64_t)request->ack_timeout_ms);
    put_u64(out, 7, request->forwarded);
    put_end(out, join);
}

void wire_join_filter(struct buffer *out, const struct process_request *join)
{
    put_event_filter(out, 3, &join->filter);
}

void wire_assignment_pack(struct buffer *out, const uint32_t *partitions, size_t count)
{
    size_t assignment = put_begin(out, 1);

    for (size_t i = 0; i < count; i++) {
        put_varint(out, 1 << 3);
        put_varint(out, partitions[i]);
    }
    put_end(out, assignment);
}

size_t wire_delivery_begin(struct buffer *out, uint32_t partition, uint64_t replay_until, uint32_t attempt, bool begins)
{
    size_t begun = put_begin(out, 2);

    put_u64(out, 1, partition);
    put_u64(out, 3, replay_until);
    put_u64(out, 4, attempt);
    put_u64(out, 6, begins);
    return begun;
}

void wire_delivery_add(struct buffer *out, struct bytes packed_event)
{
    put_bytes_always(out, 2, packed_event);
}

void wire_delivery_parked(struct buffer *out)
{
    put_u64(out, 5, true);
}

void wire_delivery_end(struct buffer *out, size_t begun)
{
    put_end(out, begun);
}

static void retry_from(struct arena *arena, const Cairn__V1__RetryParkedRequest *message,
                       struct group_request *request)
{
    request->group = from_text(message->group);
    request->forwarded = message->forwarded != 0;
    request->event_count = message->n_events;
    request->events = arena_take(arena, message->n_events * sizeof *request->events);
    for (size_t i = 0; i < message->n_events; i++)
        request->events[i] = (struct parked_position){message->events[i]->partition, message->events[i]->position};
}

static enum status reset_from(const Cairn__V1__ResetGroupRequest *message, struct group_request *request,
                              struct fault *fault)
{
    request->group = from_text(message->group);
    request->forwarded = message->forwarded != 0;
    return log_start_from(message->from, &request->from, fault);
}

enum status wire_group_request_decode(enum group_request_kind kind, struct bytes packed, struct arena *arena,
                                      struct group_request *request, struct fault *fault)
{
    static const ProtobufCMessageDescriptor *const types[] = {
        [GROUP_GET] = &cairn__v1__get_group_request__descriptor,
        [GROUP_RESET] = &cairn__v1__reset_group_request__descriptor,
        [GROUP_RETRY] = &cairn__v1__retry_parked_request__descriptor,
    };
    const void *message = wire_unpack(types[kind], packed, arena, "request", fault);
    const Cairn__V1__GetGroupRequest *get = message;
    enum status status = STATUS_OK;

    if (message == NULL)
        return STATUS_INVALID;
    *request = (struct group_request){.kind = kind};
    if (kind == GROUP_RETRY) {
        retry_from(arena, message, request);
    } else if (kind == GROUP_RESET) {
        status = reset_from(message, request, fault);
    } else {
        request->group = from_text(get->group);
        request->forwarded = get->forwarded != 0;
    }
    return status == STATUS_OK ? check_name(request->group, "group", fault) : status;
}

void wire_group_request_forward(struct buffer *out, struct bytes packed, enum group_request_kind kind)
{
    buffer_add(out, packed.data, packed.len);
    put_u64(out, kind == GROUP_GET ? 2 : 3, true); /* of a field that comes twice the last one counts */
}

void wire_retry_parked_response(struct buffer *out, uint32_t events)
{
    put_u64(out, 1, events);
}

void wire_group_add_member(struct buffer *out, struct bytes member, uint32_t partitions, uint64_t unacknowledged)
{
    size_t begun = put_begin(out, 1);

    put_bytes(out, 1, member);
    put_u64(out, 2, partitions);
    put_u64(out, 3, unacknowledged);
    put_end(out, begun);
}

void wire_group_add_partition(struct buffer *out, uint32_t partition, const struct group_partition *view)
{
    size_t begun = put_begin(out, 2);

    put_u64(out, 1, partition);
    put_u64(out, 2, view->position);
    put_bytes(out, 3, view->member);
    put_u64(out, 4, view->lag);
    if (view->lag > 0)
        put_time(out, 5, (int64_t)view->lag_ms);
    if (view->idle_ms != UINT64_MAX)
        put_time(out, 6, (int64_t)view->idle_ms);
    put_u64(out, 7, view->redelivered);
    put_u64(out, 8, view->parked);
    put_end(out, begun);
}

void wire_group_add_parked(struct buffer *out, uint32_t partition, const struct parked *parked)
{
    size_t begun = put_begin(out, 3);

    put_u64(out, 1, partition);
    put_u64(out, 2, parked->position);
    put_bytes(out, 3, parked->reason);
    put_u64(out, 4, parked->attempts);
    put_end(out, begun);
}

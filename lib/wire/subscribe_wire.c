/* Requests and responses of subscriptions, and the quick look at a stored event: cairn/v1/event.proto. */
#include "cairn/v1/event.pb-c.h"
#include "convert.h"

/* ---- requests ---- */

static enum status texts_from(struct arena *arena, char **texts, size_t count, size_t max, const char *what,
                              const struct bytes **out, struct fault *fault)
{
    struct bytes *list = arena_take(arena, count * sizeof *list);

    if (count > FILTER_ENTRIES_MAX)
        return fault_set(fault, STATUS_INVALID, "FILTER_TOO_LARGE",
                         "filter has %zu %s; at most %d are allowed", count, what, FILTER_ENTRIES_MAX);
    for (size_t i = 0; i < count; i++) {
        list[i] = from_text(texts[i]);
        if (list[i].len == 0 || list[i].len > max)
            return fault_set(fault, STATUS_INVALID, "FILTER_NEVER_MATCHES",
                             "entry %zu of the filter's %s has %zu bytes; it must have 1 to %zu", i + 1, what,
                             list[i].len, max);
    }
    *out = list;
    return STATUS_OK;
}

enum status event_filter_from(struct arena *arena, const Cairn__V1__EventFilter *message,
                               struct event_filter *filter, struct fault *fault)
{
    uint32_t *partitions;
    enum status status;

    *filter = (struct event_filter){0};
    if (message == NULL)
        return STATUS_OK;
    filter->aggregate_type_count = message->n_aggregate_types;
    filter->event_type_count = message->n_event_types;
    filter->id_prefix_count = message->n_aggregate_id_prefixes;
    filter->partition_count = message->n_partitions;
    if (message->n_partitions > PARTITIONS_MAX)
        return fault_set(fault, STATUS_INVALID, "FILTER_TOO_LARGE",
                         "filter has %zu partitions; at most %d are allowed", message->n_partitions,
                         PARTITIONS_MAX);
    partitions = arena_take(arena, message->n_partitions * sizeof *partitions);
    if (message->n_partitions > 0)
        memcpy(partitions, message->partitions, message->n_partitions * sizeof *partitions);
    filter->partitions = partitions;
    status = texts_from(arena, message->aggregate_types, message->n_aggregate_types, TYPE_BYTES_MAX,
                        "aggregate_types", &filter->aggregate_types, fault);
    if (status == STATUS_OK)
        status = texts_from(arena, message->event_types, message->n_event_types, TYPE_BYTES_MAX, "event_types",
                            &filter->event_types, fault);
    if (status == STATUS_OK)
        status = texts_from(arena, message->aggregate_id_prefixes, message->n_aggregate_id_prefixes,
                            AGGREGATE_ID_BYTES_MAX, "aggregate_id_prefixes", &filter->id_prefixes, fault);
    return status;
}

enum status log_start_from(const Cairn__V1__LogStart *message, struct log_start *start,
                              struct fault *fault)
{
    *start = (struct log_start){.kind = START_BEGINNING};
    if (message == NULL)
        return STATUS_OK;
    switch (message->start_case) {
    case CAIRN__V1__LOG_START__START_END:
        start->kind = START_END;
        return STATUS_OK;
    case CAIRN__V1__LOG_START__START_TOKEN:
        start->kind = START_TOKEN;
        start->token = from_text(message->token);
        return STATUS_OK;
    case CAIRN__V1__LOG_START__START_TIME:
        start->kind = START_TIME;
        if (message->time == NULL || message->time->nanos < 0 || message->time->nanos > 999999999 ||
            message->time->seconds < 0 || message->time->seconds > 253402300799)
            return fault_set(fault, STATUS_INVALID, "TIME_INVALID",
                             "from.time isn't a time between 1970 and 9999");
        start->time_ms = message->time->seconds * 1000 + (message->time->nanos + 999999) / 1000000;
        return STATUS_OK;
    default:
        return STATUS_OK;
    }
}

enum status wire_subscribe_decode(struct bytes packed, struct arena *arena,
                                  struct subscribe_request *request, struct fault *fault)
{
    Cairn__V1__SubscribeRequest *message =
        wire_unpack(&cairn__v1__subscribe_request__descriptor, packed, arena, "request", fault);
    const Cairn__V1__StartSubscription *start;
    enum status status;

    if (message == NULL)
        return STATUS_INVALID;
    *request = (struct subscribe_request){0};
    if (message->request_case == CAIRN__V1__SUBSCRIBE_REQUEST__REQUEST_CREDITS) {
        request->credits = message->credits;
        return STATUS_OK;
    }
    if (message->request_case != CAIRN__V1__SUBSCRIBE_REQUEST__REQUEST_START || message->start == NULL)
        return fault_set(fault, STATUS_INVALID, "REQUEST_EMPTY", "the request has neither start nor credits");
    start = message->start;
    request->is_start = true;
    request->credits = start->credits;
    if (start->heartbeat != NULL) {
        if (start->heartbeat->seconds < 0 || start->heartbeat->seconds > 3600 || start->heartbeat->nanos < 0 ||
            (start->heartbeat->seconds == 0 && start->heartbeat->nanos < 10000000))
            return fault_set(fault, STATUS_INVALID, "HEARTBEAT_INVALID",
                             "heartbeat must lie between 10 ms and one hour");
        request->heartbeat_ms =
            (uint64_t)start->heartbeat->seconds * 1000 + (uint64_t)start->heartbeat->nanos / 1000000;
    }
    status = log_start_from(start->from, &request->from, fault);
    return status == STATUS_OK ? event_filter_from(arena, start->filter, &request->filter, fault) : status;
}

enum status wire_list_aggregates_decode(struct bytes packed, struct arena *arena, struct query_request *request,
                                        struct fault *fault)
{
    const Cairn__V1__ListAggregatesRequest *message =
        wire_unpack(&cairn__v1__list_aggregates_request__descriptor, packed, arena, "request", fault);
    enum status status;

    if (message == NULL)
        return STATUS_INVALID;
    *request = (struct query_request){.kind = QUERY_AGGREGATES,
                                      .after = from_text(message->after),
                                      .limit = message->limit,
                                      .stale = message->consistency == CAIRN__V1__CONSISTENCY__CONSISTENCY_STALE};
    status = check_consistency(message->consistency, fault);
    if (status == STATUS_OK && request->after.len > AGGREGATE_ID_BYTES_MAX)
        status = fault_set(fault, STATUS_INVALID, "FIELD_TOO_LONG", "after has %zu bytes; at most %d are allowed",
                           request->after.len, AGGREGATE_ID_BYTES_MAX);
    if (status == STATUS_OK)
        status = event_filter_from(arena, message->filter, &request->filter, fault);
    if (status == STATUS_OK && request->filter.event_type_count > 0)
        status = fault_set(fault, STATUS_INVALID, "FILTER_INVALID",
                           "aggregates have no event type; leave filter.event_types empty");
    return status;
}

enum status wire_count_events_decode(struct bytes packed, struct arena *arena, struct query_request *request,
                                     struct fault *fault)
{
    const Cairn__V1__CountEventsRequest *message =
        wire_unpack(&cairn__v1__count_events_request__descriptor, packed, arena, "request", fault);
    enum status status;

    if (message == NULL)
        return STATUS_INVALID;
    *request = (struct query_request){.kind = QUERY_COUNT,
                                      .stale = message->consistency == CAIRN__V1__CONSISTENCY__CONSISTENCY_STALE};
    status = check_consistency(message->consistency, fault);
    return status == STATUS_OK ? event_filter_from(arena, message->filter, &request->filter, fault) : status;
}

enum status wire_read_all_decode(struct bytes packed, struct arena *arena,
                                 struct read_all_request *request, struct fault *fault)
{
    Cairn__V1__ReadAllRequest *message =
        wire_unpack(&cairn__v1__read_all_request__descriptor, packed, arena, "request", fault);
    enum status status;

    if (message == NULL)
        return STATUS_INVALID;
    *request = (struct read_all_request){
        .limit = message->limit,
        .stale = message->consistency == CAIRN__V1__CONSISTENCY__CONSISTENCY_STALE,
        .backwards = message->direction == CAIRN__V1__DIRECTION__DIRECTION_BACKWARDS};
    status = check_consistency(message->consistency, fault);
    if (status == STATUS_OK && (unsigned)message->direction > CAIRN__V1__DIRECTION__DIRECTION_BACKWARDS)
        status = fault_set(fault, STATUS_INVALID, "UNKNOWN_ENUM", "direction has a value that this node doesn't know");
    if (status == STATUS_OK)
        status = log_start_from(message->from, &request->from, fault);
    if (request->backwards && message->from == NULL)
        request->from.kind = START_END;
    return status == STATUS_OK ? event_filter_from(arena, message->filter, &request->filter, fault) : status;
}

static void put_texts(struct buffer *out, unsigned field, const struct bytes *texts, size_t count)
{
    for (size_t i = 0; i < count; i++)
        put_bytes_always(out, field, texts[i]);
}

void put_log_start(struct buffer *out, unsigned field, const struct log_start *from)
{
    size_t part = put_begin(out, field);

    if (from->kind == START_TOKEN) {
        put_bytes_always(out, 3, from->token);
    } else if (from->kind == START_TIME) {
        put_time(out, 4, from->time_ms);
    } else {
        put_bytes_always(out, from->kind == START_END ? 2 : 1, BYTES_NONE);
    }
    put_end(out, part);
}

void put_event_filter(struct buffer *out, unsigned field, const struct event_filter *filter)
{
    size_t part = put_begin(out, field);

    put_texts(out, 1, filter->aggregate_types, filter->aggregate_type_count);
    put_texts(out, 2, filter->event_types, filter->event_type_count);
    put_texts(out, 3, filter->id_prefixes, filter->id_prefix_count);
    for (size_t i = 0; i < filter->partition_count; i++) {
        put_varint(out, 4 << 3);
        put_varint(out, filter->partitions[i]);
    }
    put_end(out, part);
}

void wire_subscribe_pack(struct buffer *out, const struct subscribe_request *request)
{
    size_t start;

    if (!request->is_start) {
        put_varint(out, 2 << 3);
        put_varint(out, request->credits);
        return;
    }
    start = put_begin(out, 1);
    put_log_start(out, 1, &request->from);
    put_event_filter(out, 2, &request->filter);
    put_u64(out, 3, request->credits);
    if (request->heartbeat_ms != 0)
        put_time(out, 4, (int64_t)request->heartbeat_ms);
    put_end(out, start);
}

void wire_read_all_pack(struct buffer *out, const struct read_all_request *request)
{
    put_log_start(out, 1, &request->from);
    put_event_filter(out, 2, &request->filter);
    put_u64(out, 3, request->limit);
    put_u64(out, 4, request->stale ? CAIRN__V1__CONSISTENCY__CONSISTENCY_STALE : 0);
}

void wire_query_pack(struct buffer *out, const struct query_request *request)
{
    uint64_t consistency = request->stale ? CAIRN__V1__CONSISTENCY__CONSISTENCY_STALE : 0;

    if (request->kind == QUERY_BACKWARDS) {
        struct read_all_request all = {.from = request->from,
                                       .filter = request->filter,
                                       .limit = request->limit,
                                       .stale = request->stale};

        wire_read_all_pack(out, &all);
        put_u64(out, 5, CAIRN__V1__DIRECTION__DIRECTION_BACKWARDS);
        return;
    }
    put_event_filter(out, 1, &request->filter);
    if (request->kind == QUERY_COUNT) {
        put_u64(out, 2, consistency);
        return;
    }
    put_bytes(out, 2, request->after);
    put_u64(out, 3, request->limit);
    put_u64(out, 4, consistency);
}

/* ---- responses ---- */

void wire_aggregate_pack(struct buffer *out, const struct event_head *newest, uint64_t event_count)
{
    put_bytes(out, 1, newest->aggregate_type);
    put_bytes(out, 2, newest->aggregate_id);
    put_u64(out, 3, event_count);
    put_u64(out, 4, newest->partition);
    put_time(out, 10, newest->time_ms);
}

void wire_count_pack(struct buffer *out, struct bytes aggregate_type, struct bytes type, uint64_t count)
{
    put_bytes(out, 1, aggregate_type);
    put_u64(out, 5, count);
    put_bytes(out, 6, type);
}

void wire_subscribe_response_add(struct buffer *out, struct bytes packed_event)
{
    put_bytes_always(out, 1, packed_event);
}

void wire_subscribe_response_token(struct buffer *out, struct bytes token)
{
    put_bytes(out, 2, token);
}

/* ---- a walk over fields, without unpacking ---- */

/* The next field: its number, and its value as a number or as bytes. False at the end, with in->len left
 * when the bytes are malformed. */
static bool take_field(struct bytes *in, unsigned *field, uint64_t *number, struct bytes *bytes)
{
    struct bytes at = *in;
    uint64_t tag;

    if (at.len == 0 || !take_varint(&at, &tag))
        return false;
    *field = (unsigned)(tag >> 3);
    *number = 0;
    *bytes = BYTES_NONE;
    switch (tag & 7) {
    case 0:
        if (!take_varint(&at, number))
            return false;
        break;
    case 1:
    case 5: {
        size_t len = (tag & 7) == 1 ? 8 : 4;

        if (at.len < len)
            return false;
        at = (struct bytes){at.data + len, at.len - len};
        break;
    }
    case 2:
        if (!take_varint(&at, number) || *number > at.len)
            return false;
        *bytes = (struct bytes){at.data, (size_t)*number};
        at = (struct bytes){at.data + *number, at.len - (size_t)*number};
        break;
    default:
        return false;
    }
    *in = at;
    return true;
}

static int64_t time_from(struct bytes packed)
{
    uint64_t seconds = 0, nanos = 0, number;
    struct bytes bytes;
    unsigned field;

    while (take_field(&packed, &field, &number, &bytes)) {
        seconds = field == 1 ? number : seconds;
        nanos = field == 2 ? number : nanos;
    }
    return (int64_t)(seconds * 1000 + nanos / 1000000);
}

enum status wire_event_peek(struct bytes packed, struct event_head *head, struct fault *fault)
{
    uint64_t number;
    struct bytes bytes;
    unsigned field;

    *head = (struct event_head){0};
    while (take_field(&packed, &field, &number, &bytes)) {
        switch (field) {
        case 1:
            head->aggregate_type = bytes;
            break;
        case 2:
            head->aggregate_id = bytes;
            break;
        case 4:
            head->partition = (uint32_t)number;
            break;
        case 5:
            head->position = number;
            break;
        case 6:
            head->type = bytes;
            break;
        case 10:
            head->time_ms = time_from(bytes);
            break;
        default:
            break;
        }
    }
    return packed.len == 0 ? STATUS_OK
                           : fault_set(fault, STATUS_DAMAGED, "DAMAGED_RECORD", "an event is malformed");
}

enum status wire_subscribe_response_decode(struct bytes packed, struct arena *arena,
                                           struct subscribe_response *response, struct fault *fault)
{
    struct bytes left = packed;
    struct bytes *events;
    uint64_t number;
    struct bytes bytes;
    unsigned field;
    size_t count = 0;

    *response = (struct subscribe_response){0};
    while (take_field(&left, &field, &number, &bytes))
        count += field == 1;
    if (left.len > 0)
        return fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE", "a response is malformed");
    events = arena_take(arena, count * sizeof *events);
    response->packed_events = events;
    for (left = packed; take_field(&left, &field, &number, &bytes);) {
        if (field == 1)
            events[response->event_count++] = bytes;
        else if (field == 2)
            response->token = bytes;
    }
    return STATUS_OK;
}

bool wire_has_sealed(struct bytes message)
{
    uint64_t number;
    struct bytes bytes;
    unsigned field;

    while (take_field(&message, &field, &number, &bytes))
        if (field == 1 && wire_event_is_sealed(bytes))
            return true;
    return false;
}

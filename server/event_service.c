/* EventService: the streams of ReadAggregate and ReadSnapshot, which has one message each way. Append is in command_service.c, the reading in reads.c. */
#include "access.h"
#include "faults.h"
#include "node.h"

struct read_stream {
    struct node *node;
    struct reading *reading;
    bool of_snapshot;
};

static void opened(void *context, struct rpc_stream *stream)
{
    struct read_stream *state = memory_zero(1, sizeof *state);

    state->node = context;
    rpc_stream_set_user(stream, state);
}

static void snapshot_opened(void *context, struct rpc_stream *stream)
{
    struct read_stream *state = memory_zero(1, sizeof *state);

    state->node = context;
    state->of_snapshot = true;
    rpc_stream_set_user(stream, state);
}

static void message(void *user, struct rpc_stream *stream, struct bytes packed)
{
    struct read_stream *state = user;
    struct node *node = state->node;
    struct reading *reading;
    struct fault fault;
    enum status status;

    if (state->reading != NULL)
        return; /* gRPC allows one request */
    reading = memory_zero(1, sizeof *reading);
    reading->packed = arena_copy(&reading->arena, packed);
    status = state->of_snapshot
                 ? wire_read_snapshot_decode(reading->packed, &reading->arena, &reading->request, &fault)
                 : wire_read_decode(reading->packed, &reading->arena, &reading->request, &fault);
    if (status == STATUS_OK && (reading->request.aggregate_id.len == 0 ||
                                reading->request.aggregate_id.len > AGGREGATE_ID_BYTES_MAX))
        status = fault_set(&fault, STATUS_INVALID, "FIELD_EMPTY",
                           "aggregate_id has %zu bytes; it must have 1 to %d",
                           reading->request.aggregate_id.len, AGGREGATE_ID_BYTES_MAX);
    if (status == STATUS_OK)
        status = access_read(node, rpc_stream_caller(stream), state->of_snapshot ? "ReadSnapshot" : "ReadAggregate",
                             reading->request.aggregate_id, NULL, &fault);
    if (status == STATUS_OK && atomic_load(&node->founding) == NULL) {
        status = fault_set(&fault, STATUS_UNAVAILABLE, "NOT_READY",
                           "this node is not a member of a cluster yet");
        fault.retry_ms = 200;
    }
    if (status != STATUS_OK) {
        fault_finish_stream(stream, &fault);
        arena_release(&reading->arena);
        free(reading);
        return;
    }
    reading->letter.kind = LETTER_READ;
    reading->more.kind = LETTER_READ_ON;
    reading->stream = rpc_stream_hold(stream);
    reading->partition = node_partition_of(node, reading->request.aggregate_id);
    reading->deadline_ms = rpc_stream_deadline_ms(stream);
    if (reading->deadline_ms == UINT64_MAX)
        reading->deadline_ms = clock_monotonic_ms() + node->config.default_timeout_ms;
    state->reading = reading;
    shard_send(node_shard_of(node, reading->partition), &reading->letter);
}

static void drained(void *user, struct rpc_stream *stream)
{
    struct read_stream *state = user;
    struct reading *reading = state->reading;

    (void)stream;
    if (reading != NULL)
        read_relay_drained(reading);
    if (reading != NULL && !atomic_exchange(&reading->more_sent, true))
        shard_send(node_shard_of(state->node, reading->partition), &reading->more);
}

static void closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct read_stream *state = user;

    (void)code;
    (void)text;
    (void)stream;
    if (state->reading != NULL) {
        read_relay_cancel(state->reading);
        atomic_store(&state->reading->closed, true); /* the shard frees it */
    }
    free(state);
}

const struct rpc_stream_events read_aggregate_events = {.opened = opened,
                                                        .message = message,
                                                        .closed = closed,
                                                        .drained = drained};
const struct rpc_stream_events read_snapshot_events = {
    .opened = snapshot_opened, .message = message, .closed = closed, .drained = drained};

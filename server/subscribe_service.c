/* EventService: the streams of Subscribe and ReadAll. What they are given is feeder.c's. */
#include "access.h"
#include "faults.h"
#include "feed.h"

static void opened(void *context, struct rpc_stream *stream)
{
    rpc_stream_set_user(stream, feed_new(context, stream, false, QUERY_NONE));
}

static void read_all_opened(void *context, struct rpc_stream *stream)
{
    rpc_stream_set_user(stream, feed_new(context, stream, true, QUERY_NONE));
}

static void list_opened(void *context, struct rpc_stream *stream)
{
    rpc_stream_set_user(stream, feed_new(context, stream, true, QUERY_AGGREGATES));
}

static void count_opened(void *context, struct rpc_stream *stream)
{
    rpc_stream_set_user(stream, feed_new(context, stream, true, QUERY_COUNT));
}

static void start(struct feed *feed)
{
    struct fault fault;

    if (atomic_load(&feed->node->founding) == NULL) {
        (void)fault_set(&fault, STATUS_UNAVAILABLE, "NOT_READY",
                        "this node is not a member of a cluster yet");
        fault.retry_ms = 200;
        fault_finish_stream(feed->stream, &fault);
        return;
    }
    feed->started = true;
    feeder_send(feed->node->feeder, &feed->open);
}

static enum status check_credits(uint32_t credits, bool may_be_absent, struct fault *fault)
{
    if (credits > SUBSCRIPTION_CREDITS_MAX || (credits == 0 && !may_be_absent))
        return fault_set(fault, STATUS_INVALID, "CREDITS_INVALID",
                         "%u credits; they must lie between 1 and %u", credits, SUBSCRIPTION_CREDITS_MAX);
    return STATUS_OK;
}

static void message(void *user, struct rpc_stream *stream, struct bytes packed)
{
    struct feed *feed = user;
    struct arena arena = {0};
    struct subscribe_request request;
    struct fault fault;
    struct bytes own = arena_copy(&arena, packed);
    enum status status = wire_subscribe_decode(own, &arena, &request, &fault);

    if (status == STATUS_OK)
        status = check_credits(request.credits, request.is_start, &fault);
    if (status == STATUS_OK && request.is_start && feed->started)
        status = fault_set(&fault, STATUS_INVALID, "ALREADY_STARTED",
                           "this stream has its subscription; open another stream for another one");
    if (status == STATUS_OK && !request.is_start && !feed->started)
        status = fault_set(&fault, STATUS_INVALID, "NOT_STARTED", "the first message must be start");
    if (status == STATUS_OK && request.is_start)
        status = access_read(feed->node, rpc_stream_caller(stream), "Subscribe", BYTES_NONE, &request.filter, &fault);
    if (status != STATUS_OK) {
        fault_finish_stream(stream, &fault);
    } else if (request.is_start) {
        feed->arena = arena;
        feed->request = request;
        start(feed);
        return;
    } else {
        struct feed_note *note = memory_zero(1, sizeof *note);

        note->letter.kind = FEED_CREDIT;
        note->feed = feed;
        note->credits = request.credits;
        feeder_send(feed->node->feeder, &note->letter);
    }
    arena_release(&arena);
}

/* What ends, has one request. */
static enum status decode_request(struct feed *feed, struct bytes packed, struct fault *fault)
{
    struct query_request *question = &feed->question;
    struct read_all_request *all = &feed->read_request;
    enum status status;

    if (question->kind == QUERY_NONE) {
        status = wire_read_all_decode(packed, &feed->arena, all, fault);
        if (status == STATUS_OK && all->backwards)
            *question = (struct query_request){.kind = QUERY_BACKWARDS,
                                               .filter = all->filter,
                                               .from = all->from,
                                               .limit = all->limit,
                                               .stale = all->stale};
        return status;
    }
    status = question->kind == QUERY_COUNT ? wire_count_events_decode(packed, &feed->arena, question, fault)
                                           : wire_list_aggregates_decode(packed, &feed->arena, question, fault);
    *all = (struct read_all_request){.filter = question->filter, .stale = question->stale};
    return status;
}

static void read_all_message(void *user, struct rpc_stream *stream, struct bytes packed)
{
    struct feed *feed = user;
    struct fault fault;

    if (feed->started)
        return; /* gRPC allows one request */
    if (decode_request(feed, arena_copy(&feed->arena, packed), &fault) != STATUS_OK ||
        access_read(feed->node, rpc_stream_caller(stream), "ReadAll", BYTES_NONE, &feed->read_request.filter, &fault) != STATUS_OK) {
        fault_finish_stream(stream, &fault);
        return;
    }
    feed->request = (struct subscribe_request){.from = feed->read_request.from,
                                               .filter = feed->read_request.filter};
    start(feed);
}

static void drained(void *user, struct rpc_stream *stream)
{
    struct feed *feed = user;

    (void)stream;
    if (feed->started && !atomic_exchange(&feed->more_sent, true))
        feeder_send(feed->node->feeder, &feed->more);
}

static void closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct feed *feed = user;

    (void)stream;
    (void)code;
    (void)text;
    if (feed->started) {
        feeder_send(feed->node->feeder, &feed->closed); /* frees it */
        return;
    }
    rpc_stream_drop(feed->stream);
    arena_release(&feed->arena);
    free(feed);
}

const struct rpc_stream_events subscribe_events = {
    .opened = opened, .message = message, .closed = closed, .drained = drained};
const struct rpc_stream_events list_aggregates_events = {
    .opened = list_opened, .message = read_all_message, .closed = closed, .drained = drained};
const struct rpc_stream_events count_events_events = {
    .opened = count_opened, .message = read_all_message, .closed = closed, .drained = drained};
const struct rpc_stream_events read_all_events = {
    .opened = read_all_opened, .message = read_all_message, .closed = closed, .drained = drained};

/*
 * PeerService: what other nodes send us. Every stream says hello first; a stranger, a node of
 * another cluster or one that lost its memory is told why and sent away.
 */
#include "faults.h"
#include "node.h"

struct peer_stream {
    struct node *node;
    uint64_t from; /* 0 before the hello */
};

static void opened(void *context, struct rpc_stream *stream)
{
    struct peer_stream *peer = memory_zero(1, sizeof *peer);

    peer->node = context;
    rpc_stream_set_user(stream, peer);
}

static void closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    (void)stream;
    (void)code;
    (void)text;
    free(user);
}

static void finished(void *user, struct rpc_stream *stream)
{
    (void)user;
    rpc_stream_finish(stream, CODE_OK, "", BYTES_NONE);
}

static void refuse(struct rpc_stream *stream, const struct hello *hello, const char *refusal)
{
    struct buffer out = {0};
    char peer[128];

    if (strcmp(refusal, "this is the node that you are") != 0)
        journal(JOURNAL_WARN, "peer-refused", "%.*s at %s: %s", (int)hello->name.len,
                (const char *)hello->name.data, rpc_stream_peer(stream, peer, sizeof peer),
                refusal);
    wire_welcome_pack(&out, refusal, 0, BYTES_NONE);
    rpc_stream_send(stream, buffer_bytes(&out));
    rpc_stream_finish(stream, CODE_FAILED_PRECONDITION, refusal, BYTES_NONE);
    buffer_release(&out);
}

/* True when the stream may go on. */
static bool welcome(struct peer_stream *peer, struct rpc_stream *stream, const struct hello *hello)
{
    const struct founding *own = atomic_load(&peer->node->founding);
    char text[400];
    const char *refusal = node_refusal(peer->node, hello, text, sizeof text);
    struct buffer out = {0};

    if (refusal != NULL) {
        refuse(stream, hello, refusal);
        return false;
    }
    peer->from = hello->node_id;
    wire_welcome_pack(&out, "", peer->node->id, own == NULL ? BYTES_NONE : own->cluster_id);
    rpc_stream_send(stream, buffer_bytes(&out));
    buffer_release(&out);
    return true;
}

static void malformed(struct peer_stream *peer, struct rpc_stream *stream,
                      const struct fault *fault)
{
    METRIC_ADD(peer->node, frames_refused, 1);
    journal(JOURNAL_WARN, "frame-refused", "from node %016llx: %s",
            (unsigned long long)peer->from, fault->message);
    fault_finish_stream(stream, fault);
}

/* ---- data ---- */

void shared_frame_drop(struct shared_frame *shared)
{
    if (atomic_fetch_sub(&shared->references, 1) != 1)
        return;
    arena_release(&shared->arena);
    free(shared);
}

static void deliver(struct node *node, struct shared_frame *shared)
{
    atomic_init(&shared->references, (int)node->shard_count);
    for (size_t i = 0; i < node->shard_count; i++) {
        struct frame_letter *letter = memory_zero(1, sizeof *letter);

        letter->letter.kind = LETTER_FRAME;
        letter->shared = shared;
        shard_send(node->shards[i], &letter->letter);
    }
}

static void link_message(void *user, struct rpc_stream *stream, struct bytes packed)
{
    struct peer_stream *peer = user;
    struct shared_frame *shared = memory_zero(1, sizeof *shared);
    struct frame *frame = &shared->frame;
    struct fault fault;
    enum status status = frame_decode(packed, &shared->arena, frame, &fault);
    bool keep = false;

    if (status != STATUS_OK) {
        malformed(peer, stream, &fault);
    } else if (peer->from == 0) {
        (void)welcome(peer, stream, &frame->hello);
    } else if (atomic_load(&peer->node->founding) != NULL) {
        for (size_t i = 0; i < frame->execute_count; i++)
            workers_execute_for(peer->node->workers, peer->from, &frame->executes[i]);
        for (size_t i = 0; i < frame->execute_result_count; i++)
            workers_result_from(peer->node->workers, peer->from, &frame->execute_results[i]);
        shared->from = peer->from;
        deliver(peer->node, shared);
        keep = true;
    }
    if (!keep) {
        arena_release(&shared->arena);
        free(shared);
    }
}

const struct rpc_stream_events peer_link_events = {
    .opened = opened, .message = link_message, .finished = finished, .closed = closed};

/* ---- control ---- */

static void gossip_message(void *user, struct rpc_stream *stream, struct bytes packed)
{
    struct peer_stream *peer = user;
    struct arena arena = {0};
    struct gossip_frame frame;
    struct fault fault;

    if (gossip_decode(packed, &arena, &frame, &fault) != STATUS_OK) {
        malformed(peer, stream, &fault);
    } else if (peer->from == 0) {
        (void)welcome(peer, stream, &frame.hello);
    } else {
        frame.hello.node_id = peer->from;
        control_gossip_received(peer->node->control, &arena, &frame);
    }
    arena_release(&arena);
}

const struct rpc_stream_events peer_gossip_events = {
    .opened = opened, .message = gossip_message, .finished = finished, .closed = closed};

/* ---- bulk: send a key range, a page at a time as the receiver takes them ---- */

static const enum store_family range_families[] = {STORE_EVENTS, STORE_POSITIONS, STORE_SNAPSHOTS,
                                                   STORE_OUTCOMES, STORE_CURSORS};

struct range_stream {
    struct peer_stream base; /* first, so that `closed` fits */
    uint32_t partition;
    struct applied applied; /* read before the families: they hold at least this much */
    size_t family;
    struct buffer next; /* key to go on from */
    bool flowing;
};

static void range_opened(void *context, struct rpc_stream *stream)
{
    struct range_stream *range = memory_zero(1, sizeof *range);

    range->base.node = context;
    rpc_stream_set_user(stream, range);
}

static void range_closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct range_stream *range = user;

    buffer_release(&range->next);
    closed(user, stream, code, text);
}

static void range_fail(struct rpc_stream *stream, const char *why)
{
    struct buffer out = {0};

    wire_range_part_refuse(&out, why);
    rpc_stream_send(stream, buffer_bytes(&out));
    rpc_stream_finish(stream, CODE_UNAVAILABLE, why, BYTES_NONE);
    buffer_release(&out);
}

/* Our own copy is no good: the receiver asks another replica, and so do we. */
static void range_damaged(struct range_stream *range, const struct fault *fault)
{
    struct damaged_letter *letter = memory_zero(1, sizeof *letter);

    letter->letter.kind = LETTER_DAMAGED;
    letter->partition = range->partition;
    letter->fault = *fault;
    shard_send(node_shard_of(range->base.node, range->partition), &letter->letter);
}

static bool range_page(struct range_stream *range, struct rpc_stream *stream)
{
    struct store *store = range->base.node->store;
    struct store_key end = key_partition_end((uint16_t)range->partition);
    struct buffer out = {0};
    struct store_cursor *cursor;
    struct bytes key;
    struct bytes value;
    struct fault fault;
    enum status status = STATUS_OK;

    if (range->family == COUNT_OF(range_families)) {
        wire_range_part_last(&out, &range->applied);
        rpc_stream_send(stream, buffer_bytes(&out));
        rpc_stream_finish(stream, CODE_OK, "", BYTES_NONE);
        buffer_release(&out);
        return false;
    }
    wire_range_part_begin(&out, range_families[range->family]);
    cursor = store_cursor_new(store, range_families[range->family], buffer_bytes(&range->next),
                              key_bytes(&end), false);
    while (out.len < READ_PAGE_BYTES) {
        status = store_cursor_next(cursor, &key, &value, &fault);
        if (status != STATUS_OK)
            break;
        wire_range_part_add(&out, key, value);
        range->next.len = 0;
        buffer_add(&range->next, key.data, key.len);
        buffer_add(&range->next, "", 1); /* just behind this key */
    }
    store_cursor_free(cursor);
    if (status == STATUS_OK || status == STATUS_NOT_FOUND)
        rpc_stream_send(stream, buffer_bytes(&out));
    else
        range_fail(stream, fault.message);
    if (status == STATUS_DAMAGED)
        range_damaged(range, &fault);
    buffer_release(&out);
    if (status == STATUS_NOT_FOUND) {
        struct store_key begin = key_partition_begin((uint16_t)range->partition);

        range->family++;
        range->next.len = 0;
        buffer_add(&range->next, begin.data, begin.len);
    }
    return status == STATUS_OK || status == STATUS_NOT_FOUND;
}

static void range_flow(void *user, struct rpc_stream *stream)
{
    struct range_stream *range = user;

    while (range->flowing && rpc_stream_pending(stream) < 2)
        range->flowing = range_page(range, stream);
}

static void range_message(void *user, struct rpc_stream *stream, struct bytes packed)
{
    struct range_stream *range = user;
    struct node *node = range->base.node;
    const struct founding *own = atomic_load(&node->founding);
    struct arena arena = {0};
    struct range_request request;
    struct bytes value;
    struct fault fault;
    struct store_key key;
    struct store_key begin;
    char text[400];
    const char *refusal;

    if (wire_range_request_decode(packed, &arena, &request, &fault) != STATUS_OK) {
        malformed(&range->base, stream, &fault);
        arena_release(&arena);
        return;
    }
    refusal = node_refusal(node, &request.hello, text, sizeof text);
    if (refusal == NULL && (own == NULL || request.partition >= own->set_count))
        refusal = "no such partition here";
    if (refusal == NULL) {
        key = key_partition_meta((uint16_t)request.partition, "applied");
        if (store_get(node->store, STORE_META, key_bytes(&key), &arena, &value, &fault) !=
                STATUS_OK ||
            wire_applied_decode(value, &range->applied, &fault) != STATUS_OK ||
            range->applied.index < request.index)
            refusal = "not applied that far yet; ask again";
    }
    if (refusal != NULL) {
        range_fail(stream, refusal);
    } else {
        range->base.from = request.hello.node_id;
        range->partition = request.partition;
        begin = key_partition_begin((uint16_t)request.partition);
        buffer_add(&range->next, begin.data, begin.len);
        range->flowing = true;
        journal(JOURNAL_INFO, "range-sent", "partition %u to node %016llx", request.partition,
                (unsigned long long)range->base.from);
        range_flow(range, stream);
    }
    arena_release(&arena);
}

const struct rpc_stream_events peer_range_events = {.opened = range_opened,
                                                    .message = range_message,
                                                    .closed = range_closed,
                                                    .drained = range_flow};

/* ---- an operator's order ---- */

static void operate_message(void *user, struct rpc_stream *stream, struct bytes packed)
{
    struct peer_stream *peer = user;
    struct arena arena = {0};
    struct operate_request request;
    struct fault fault;
    char text[400];
    const char *refusal;

    if (wire_operate_decode(packed, &arena, &request, &fault) != STATUS_OK) {
        malformed(peer, stream, &fault);
    } else if ((refusal = node_refusal(peer->node, &request.hello, text, sizeof text)) != NULL) {
        rpc_stream_finish(stream, CODE_FAILED_PRECONDITION, refusal, BYTES_NONE);
    } else {
        peer->from = request.hello.node_id;
        orders_operate(peer->node, stream, request.kind, request.request);
    }
    arena_release(&arena);
}

const struct rpc_stream_events peer_operate_events = {
    .opened = opened, .message = operate_message, .closed = closed};

/*
 * PeerService: what other nodes send us. Every stream says hello first; a stranger, a node of
 * another cluster or one that lost its memory is told why and sent away.
 */
#include "access.h"
#include "faults.h"

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
    struct fault fault;
    const char *refusal = access_peer(peer->node, rpc_stream_caller(stream), hello->name, &fault) != STATUS_OK
                              ? fault.message
                              : node_refusal(peer->node, hello, text, sizeof text);
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

void peer_malformed(struct node *node, uint64_t from, struct rpc_stream *stream, const struct fault *fault)
{
    METRIC_ADD(node, frames_refused, 1);
    journal(JOURNAL_WARN, "frame-refused", "from node %016llx: %s", (unsigned long long)from, fault->message);
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
        peer_malformed(peer->node, peer->from, stream, &fault);
    } else if (peer->from == 0) {
        (void)welcome(peer, stream, &frame->hello);
    } else if (access_peer(peer->node, rpc_stream_caller(stream), BYTES_NONE, &fault) != STATUS_OK) {
        fault_finish_stream(stream, &fault); /* its certificate ended, or was revoked */
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
        peer_malformed(peer->node, peer->from, stream, &fault);
    } else if (peer->from == 0) {
        (void)welcome(peer, stream, &frame.hello);
    } else if (access_peer(peer->node, rpc_stream_caller(stream), BYTES_NONE, &fault) != STATUS_OK) {
        fault_finish_stream(stream, &fault);
    } else {
        frame.hello.node_id = peer->from;
        control_gossip_received(peer->node->control, &arena, &frame);
    }
    arena_release(&arena);
}

const struct rpc_stream_events peer_gossip_events = {
    .opened = opened, .message = gossip_message, .finished = finished, .closed = closed};

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
        peer_malformed(peer->node, peer->from, stream, &fault);
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

/*
 * Data links: one outgoing stream to each member that we want one to. What a peer sends to us
 * comes over its own stream (peer_service.c). A broken link is dialled again; what was in it is
 * lost, and Raft, the router and the readers ask again.
 */
#include "access.h"

enum { RETRY_MS = 150, PENDING_FRAMES_MAX = LINK_QUEUE_BYTES_MAX / FRAME_BYTES_TARGET };

struct link {
    struct links *links;
    struct link *next;
    uint64_t node_id;
    char address[ADDRESS_BYTES_MAX + 1];
    char dialled[ADDRESS_BYTES_MAX + 1]; /* what the channel connects to */
    struct rpc_channel *channel;
    struct rpc_stream *stream;
    bool up;
    bool refusal_told;
    uint64_t retry_ms;
};

struct links {
    struct node *node;
    pthread_mutex_t lock;
    struct link *first;
    bool stopping;
};

struct bytes node_cluster_name(const struct node *node)
{
    const struct founding *founding = atomic_load(&((struct node *)node)->founding);

    return founding == NULL ? bytes_of(node->config.cluster_name) : founding->cluster_name;
}

void node_hello(const struct node *node, struct hello *hello, uint64_t target)
{
    const struct founding *founding = atomic_load(&((struct node *)node)->founding);

    *hello = (struct hello){
        .present = true,
        .cluster_id = founding == NULL ? BYTES_NONE : founding->cluster_id,
        .cluster_name = node_cluster_name(node),
        .node_id = node->id,
        .name = bytes_of(node->config.name),
        .address = bytes_of(node->advertise),
        .protocol_min = PEER_PROTOCOL_MIN,
        .protocol_max = PEER_PROTOCOL_MAX,
        .target_id = target,
        .replaces = bytes_of(node->config.replace),
    };
}

static void tell_shards(struct node *node, uint64_t node_id, bool up)
{
    for (size_t i = 0; i < node->shard_count; i++) {
        struct link_letter *letter = memory_zero(1, sizeof *letter);

        letter->letter.kind = LETTER_LINK;
        letter->node_id = node_id;
        letter->up = up;
        shard_send(node->shards[i], &letter->letter);
    }
}

static void on_message(void *user, struct rpc_stream *stream, struct bytes message)
{
    struct link *link = user;
    struct arena arena = {0};
    struct bytes refusal;
    struct bytes cluster_id;
    uint64_t node_id;
    struct fault fault;

    if (wire_welcome_decode(message, &arena, &refusal, &node_id, &cluster_id, &fault) ==
        STATUS_OK) {
        if (refusal.len > 0) {
            if (!link->refusal_told)
                journal(JOURNAL_ERROR, "link-refused", "node at %s refuses us: %.*s",
                        link->address, (int)refusal.len, (const char *)refusal.data);
            link->refusal_told = true;
            rpc_stream_cancel(stream);
        } else {
            pthread_mutex_lock(&link->links->lock);
            link->up = true;
            link->refusal_told = false;
            pthread_mutex_unlock(&link->links->lock);
            tell_shards(link->links->node, link->node_id, true);
        }
    }
    arena_release(&arena);
}

static void on_closed(void *user, struct rpc_stream *stream, int code, const char *message)
{
    struct link *link = user;
    struct links *links = link->links;
    bool was_up;

    pthread_mutex_lock(&links->lock);
    was_up = link->up;
    link->up = false;
    link->stream = NULL;
    link->retry_ms = clock_monotonic_ms() + RETRY_MS;
    pthread_mutex_unlock(&links->lock);
    rpc_stream_drop(stream);
    if (was_up && !links->stopping) {
        journal(JOURNAL_INFO, "link-lost", "to node %016llx at %s: code %d %s",
                (unsigned long long)link->node_id, link->address, code, message);
        tell_shards(links->node, link->node_id, false);
        control_link_broken(links->node->control, link->node_id);
    }
}

static const struct rpc_stream_events events = {.message = on_message, .closed = on_closed};

/* With the lock held. */
static void dial(struct link *link)
{
    struct node *node = link->links->node;
    struct buffer frame = {0};
    struct hello hello;

    if (link->channel != NULL && strcmp(link->dialled, link->address) != 0) {
        rpc_channel_free(link->channel);
        link->channel = NULL;
    }
    if (link->channel == NULL) {
        link->channel = rpc_channel_new(node->loop, link->address, GRPC_MESSAGE_BYTES_MAX, access_peer_tls(node));
        snprintf(link->dialled, sizeof link->dialled, "%s", link->address);
    }
    link->stream =
        rpc_stream_open(link->channel, "/cairn.peer.v1.PeerService/Link", &events, link, 0);
    node_hello(node, &hello, link->node_id);
    frame_add_hello(&frame, &hello);
    rpc_stream_send(link->stream, buffer_bytes(&frame));
    buffer_release(&frame);
}

static struct link *find(const struct links *links, uint64_t node_id)
{
    struct link *link = links->first;

    while (link != NULL && link->node_id != node_id)
        link = link->next;
    return link;
}

void links_want(struct links *links, uint64_t node_id, const char *address)
{
    struct link *link;

    pthread_mutex_lock(&links->lock);
    link = find(links, node_id);
    if (link == NULL) {
        link = memory_zero(1, sizeof *link);
        link->links = links;
        link->node_id = node_id;
        link->next = links->first;
        links->first = link;
    }
    if (strcmp(link->address, address) != 0) {
        snprintf(link->address, sizeof link->address, "%s", address);
        if (link->stream != NULL)
            rpc_stream_cancel(link->stream);
    }
    pthread_mutex_unlock(&links->lock);
}

void links_tick(struct links *links, uint64_t now_ms)
{
    pthread_mutex_lock(&links->lock);
    for (struct link *link = links->first; link != NULL; link = link->next)
        if (link->stream == NULL && now_ms >= link->retry_ms)
            dial(link);
    pthread_mutex_unlock(&links->lock);
}

void links_send(struct links *links, uint64_t node_id, struct bytes frame)
{
    struct rpc_stream *stream = NULL;
    struct link *link;

    pthread_mutex_lock(&links->lock);
    link = find(links, node_id);
    if (link != NULL && link->up)
        stream = rpc_stream_hold(link->stream);
    pthread_mutex_unlock(&links->lock);
    if (stream == NULL || rpc_stream_pending(stream) > PENDING_FRAMES_MAX) {
        METRIC_ADD(links->node, frames_dropped, 1);
    } else {
        rpc_stream_send(stream, frame);
        METRIC_ADD(links->node, frames_sent, 1);
        METRIC_ADD(links->node, frame_bytes_sent, frame.len);
    }
    rpc_stream_drop(stream);
}

bool links_up(struct links *links, uint64_t node_id)
{
    struct link *link;
    bool up;

    pthread_mutex_lock(&links->lock);
    link = find(links, node_id);
    up = link != NULL && link->up;
    pthread_mutex_unlock(&links->lock);
    return up;
}

struct links *links_new(struct node *node)
{
    struct links *links = memory_zero(1, sizeof *links);

    links->node = node;
    pthread_mutex_init(&links->lock, NULL);
    return links;
}

/* The streams are cancelled first and gone before the channels are: see node_stop(). */
void links_cancel(struct links *links)
{
    pthread_mutex_lock(&links->lock);
    links->stopping = true;
    for (struct link *link = links->first; link != NULL; link = link->next)
        if (link->stream != NULL)
            rpc_stream_cancel(link->stream);
    pthread_mutex_unlock(&links->lock);
}

bool links_idle(struct links *links)
{
    bool idle = true;

    pthread_mutex_lock(&links->lock);
    for (struct link *link = links->first; link != NULL; link = link->next)
        idle = idle && link->stream == NULL;
    pthread_mutex_unlock(&links->lock);
    return idle;
}

void links_free(struct links *links)
{
    if (links == NULL)
        return;
    while (links->first != NULL) {
        struct link *next = links->first->next;

        rpc_channel_free(links->first->channel);
        free(links->first);
        links->first = next;
    }
    pthread_mutex_destroy(&links->lock);
    free(links);
}

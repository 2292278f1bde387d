/*
 * A read that came to a node without a replica of its partition: the same request to a node that
 * has one, and its pages passed on as they come. Nothing is kept: a slow client pauses the source.
 * A source that breaks or hangs before its first page is replaced by another; after that the client
 * hears UNAVAILABLE, because it may have seen a part.
 */
#include "access.h"
#include "faults.h"
#include "node.h"

enum { PENDING_PAGES_MAX = 8 };

/* One connection to each node that we have asked. */
struct relay_channel {
    struct relay_channel *next;
    uint64_t node_id;
    char address[ADDRESS_BYTES_MAX + 1];
    struct rpc_channel *channel;
};

struct relay {
    struct relay *next;
    struct read_relays *all;
    struct reading *reading;
    struct rpc_stream *source;
};

struct read_relays {
    struct node *node;
    pthread_mutex_t lock;
    struct relay_channel *channels;
    struct relay *running;
    bool stopping;
};

static void on_message(void *user, struct rpc_stream *source, struct bytes page)
{
    struct relay *relay = user;
    struct rpc_stream *client = relay->reading->stream;

    atomic_store(&relay->reading->relay_any, true);
    rpc_stream_send(client, page);
    if (rpc_stream_pending(client) >= PENDING_PAGES_MAX)
        rpc_stream_pause(source, true); /* read_relay_drained() goes on; same thread */
}

static void source_broke(struct rpc_stream *client)
{
    struct fault fault;

    (void)fault_set(&fault, STATUS_UNAVAILABLE, "SOURCE_BROKE",
                    "the node that this one asked doesn't answer any more; ask again");
    fault_finish_stream(client, &fault);
}

static void on_closed(void *user, struct rpc_stream *source, int code, const char *text)
{
    struct relay *relay = user;
    struct read_relays *all = relay->all;
    struct reading *reading = relay->reading;
    struct relay **at = &all->running;

    reading->relay_again =
        (code == CODE_UNAVAILABLE || atomic_load(&reading->relay_left)) && !atomic_load(&reading->relay_any);
    if (!reading->relay_again && atomic_load(&reading->relay_left))
        source_broke(reading->stream);
    else if (!reading->relay_again)
        rpc_stream_finish(reading->stream, code, text, rpc_stream_details(source));
    pthread_mutex_lock(&all->lock);
    while (*at != relay)
        at = &(*at)->next;
    *at = relay->next;
    pthread_mutex_unlock(&all->lock);
    atomic_store(&reading->relaying, false); /* the shard's again */
    rpc_stream_drop(source);
    free(relay);
}

static const struct rpc_stream_events events = {.message = on_message, .closed = on_closed};

/* With the lock held. */
static struct rpc_channel *channel_to(struct read_relays *all, uint64_t node_id,
                                      const char *address)
{
    struct relay_channel *c = all->channels;

    while (c != NULL && c->node_id != node_id)
        c = c->next;
    if (c == NULL) {
        c = memory_zero(1, sizeof *c);
        c->node_id = node_id;
        c->next = all->channels;
        all->channels = c;
    }
    if (c->channel == NULL || strcmp(c->address, address) != 0) {
        rpc_channel_free(c->channel);
        snprintf(c->address, sizeof c->address, "%s", address);
        c->channel = rpc_channel_new(all->node->loop, address, GRPC_MESSAGE_BYTES_MAX, access_peer_tls(all->node));
    }
    return c->channel;
}

bool read_relay_start(struct node *node, struct reading *reading, uint64_t target)
{
    struct read_relays *all = node->read_relays;
    uint64_t now = clock_monotonic_ms();
    uint64_t left = reading->deadline_ms > now ? reading->deadline_ms - now : 1;
    struct relay *relay;
    struct rpc_stream *source;
    char address[ADDRESS_BYTES_MAX + 1];

    if (!control_member_address(node->control, target, address, sizeof address))
        return false;
    pthread_mutex_lock(&all->lock);
    if (all->stopping) {
        pthread_mutex_unlock(&all->lock);
        return false;
    }
    relay = memory_zero(1, sizeof *relay);
    *relay = (struct relay){.next = all->running, .all = all, .reading = reading};
    all->running = relay;
    atomic_store(&reading->relay_left, false);
    atomic_store(&reading->relaying, true);
    source = rpc_stream_open(channel_to(all, target, address),
                             reading->request.of_snapshot ? "/cairn.v1.EventService/ReadSnapshot"
                                                          : "/cairn.v1.EventService/ReadAggregate",
                             &events, relay,
                             left > UINT32_MAX ? UINT32_MAX : (uint32_t)left);
    relay->source = source;
    rpc_stream_drop(atomic_exchange(&reading->source, rpc_stream_hold(source)));
    rpc_stream_send(source, reading->packed);
    rpc_stream_finish(source, 0, NULL, BYTES_NONE);
    pthread_mutex_unlock(&all->lock);
    return true;
}

void read_relay_drained(struct reading *reading)
{
    struct rpc_stream *source = atomic_load(&reading->source);

    if (source != NULL)
        rpc_stream_pause(source, false);
}

void read_relay_leave(struct reading *reading)
{
    atomic_store(&reading->relay_left, true);
    read_relay_cancel(reading);
}

void read_relay_cancel(struct reading *reading)
{
    struct rpc_stream *source = atomic_load(&reading->source);

    if (source != NULL)
        rpc_stream_cancel(source);
}

struct read_relays *read_relays_new(struct node *node)
{
    struct read_relays *all = memory_zero(1, sizeof *all);

    all->node = node;
    pthread_mutex_init(&all->lock, NULL);
    return all;
}

bool read_relays_gone(struct read_relays *all)
{
    bool gone;

    pthread_mutex_lock(&all->lock);
    all->stopping = true;
    gone = all->running == NULL;
    for (struct relay *relay = all->running; relay != NULL; relay = relay->next)
        rpc_stream_cancel(relay->source);
    pthread_mutex_unlock(&all->lock);
    return gone;
}

void read_relays_free(struct read_relays *all)
{
    if (all == NULL)
        return;
    while (all->channels != NULL) {
        struct relay_channel *next = all->channels->next;

        rpc_channel_free(all->channels->channel);
        free(all->channels);
        all->channels = next;
    }
    pthread_mutex_destroy(&all->lock);
    free(all);
}

/*
 * One subscription at one node, as server/feeder.c and feed_relay.c run it: over what the node's replicas have
 * stored, and for the rest over subscriptions at other nodes. It breaks when the node dies.
 */
#include "pipe.h"

/* Where a node gets what it holds no replica of. */
struct source {
    struct source *next;
    int node;
    uint32_t life;
    uint32_t partition;
    struct subscription *subscription; /* at that node; NULL while there is none */
    struct foreign *foreign;
};

struct pipe {
    struct pipe *next; /* of the world's */
    struct world *world;
    int node;
    uint32_t life;
    struct subscription *subscription;
    struct source *sources;
    bool held[PARTITIONS]; /* read here */
};

static struct token_of cluster_of(const struct world *w)
{
    return (struct token_of){w->founding.cluster_id, PARTITIONS};
}

bool node_answers(const struct node *n, uint32_t life)
{
    return n->alive && n->life == life && n->paused_until_us <= n->world->now_us;
}

static void held_by(const struct node *n, bool held[PARTITIONS])
{
    for (uint32_t p = 0; p < PARTITIONS; p++)
        held[p] = n->held[p];
}

/* A replica that is found damaged is got anew; the consumer asks elsewhere. */
static void tell_damaged(struct node *n, uint32_t partition, const struct fault *fault)
{
    if (fault->status == STATUS_DAMAGED)
        node_damaged(n, (uint16_t)partition, fault);
}

struct pipe *pipe_open(struct node *n, const struct subscription_settings *settings)
{
    struct world *w = n->world;
    struct pipe *pipe = memory_zero(1, sizeof *pipe);
    struct subscription_settings own = *settings;
    bool held[PARTITIONS];
    struct fault fault;

    own.cluster = cluster_of(w);
    held_by(n, held);
    memcpy(pipe->held, held, sizeof held);
    pipe->world = w;
    pipe->node = n->index;
    pipe->life = n->life;
    if (subscription_new(&pipe->subscription, &own, held, n->store, n->now_ms, &fault) != STATUS_OK) {
        free(pipe);
        if (fault.status == STATUS_INVALID)
            broken(w, 7, "a token that a node gave is refused: %s", fault.message);
        return NULL;
    }
    w->figures.subscriptions++;
    for (uint32_t p = 0; p < PARTITIONS; p++)
        if (!held[p] && subscription_includes(pipe->subscription, p)) {
            struct source *source = memory_zero(1, sizeof *source);

            source->partition = p;
            source->foreign = subscription_foreign(pipe->subscription, &p, 1);
            source->next = pipe->sources;
            pipe->sources = source;
        }
    pipe->next = w->pipes;
    w->pipes = pipe;
    return pipe;
}

void pipe_close(struct pipe *pipe)
{
    struct pipe **at;

    if (pipe == NULL)
        return;
    for (at = &pipe->world->pipes; *at != pipe; at = &(*at)->next)
        continue;
    *at = pipe->next;
    subscription_free(pipe->subscription);
    while (pipe->sources != NULL) {
        struct source *next = pipe->sources->next;

        subscription_free(pipe->sources->subscription);
        free(pipe->sources);
        pipe->sources = next;
    }
    free(pipe);
}

/* ---- other nodes' partitions ---- */

static void dial(struct pipe *pipe, struct source *source)
{
    struct world *w = pipe->world;
    const struct replica_set *set = engine_voters(w->nodes[pipe->node].engine, source->partition);
    uint64_t id = set->replicas[rng_below(&w->subscriber_rng, set->count)];
    struct subscription_settings settings = {.cluster = cluster_of(w), .credits = 16, .heartbeat_ms = 200};
    struct buffer token = {0};
    struct fault fault;
    bool held[PARTITIONS];
    struct node *n = &w->nodes[0];

    while (n->id != id)
        n++;
    if (!node_answers(n, n->life) || !n->held[source->partition] || w->cut[n->index][pipe->node] || w->cut[pipe->node][n->index])
        return;
    subscription_token(pipe->subscription, &token);
    settings.from = (struct log_start){.kind = START_TOKEN, .token = buffer_bytes(&token)};
    settings.filter.partitions = &source->partition;
    settings.filter.partition_count = 1;
    held_by(n, held);
    foreign_reset(source->foreign);
    if (subscription_new(&source->subscription, &settings, held, n->store, n->now_ms, &fault) != STATUS_OK)
        source->subscription = NULL;
    source->node = n->index;
    source->life = n->life;
    buffer_release(&token);
}

static void hang_up(struct source *source)
{
    subscription_free(source->subscription);
    source->subscription = NULL;
}

static void pull(struct pipe *pipe, struct source *source)
{
    struct world *w = pipe->world;
    struct node *n = &w->nodes[source->node];
    struct buffer message = {0};
    struct fault fault;
    uint32_t partition = 0;
    enum status status;

    if (source->subscription == NULL) {
        dial(pipe, source);
        return;
    }
    if (!n->alive || n->life != source->life || !n->held[source->partition] || w->cut[n->index][pipe->node] ||
        rng_chance(&w->subscriber_rng, 10)) {
        hang_up(source);
        return;
    }
    if (!node_answers(n, source->life))
        return;
    subscription_credit(source->subscription, foreign_given(source->foreign));
    status = subscription_next(source->subscription, n->now_ms, &message, &partition, &fault);
    if (status == STATUS_OK && message.len > 0 &&
        foreign_take(source->foreign, buffer_bytes(&message), &fault) != STATUS_OK)
        broken(w, 7, "a node can't read what another gave");
    buffer_release(&message);
    if (status != STATUS_OK) {
        tell_damaged(n, partition, &fault);
        hang_up(source);
    }
}

/* ---- reading ---- */

bool pipe_works(const struct pipe *pipe)
{
    const struct node *n = &pipe->world->nodes[pipe->node];

    return n->alive && n->life == pipe->life;
}

void pipe_credit(struct pipe *pipe, uint64_t events)
{
    subscription_credit(pipe->subscription, events);
}

bool pipe_next(struct pipe *pipe, struct buffer *message)
{
    struct node *n = &pipe->world->nodes[pipe->node];
    struct fault fault;
    uint32_t partition = 0;
    enum status status;

    for (uint32_t p = 0; p < PARTITIONS; p++)
        if (pipe->held[p] && !n->held[p])
            return false; /* its replica moved away */
    for (struct source *source = pipe->sources; source != NULL && pipe->world->broken_promise == 0;
         source = source->next)
        pull(pipe, source);
    if (!subscription_wants(pipe->subscription, n->now_ms))
        return true;
    status = subscription_next(pipe->subscription, n->now_ms, message, &partition, &fault);
    if (status != STATUS_OK)
        tell_damaged(n, partition, &fault);
    return status == STATUS_OK;
}

void pipes_stored(struct node *n, uint32_t partition)
{
    for (struct pipe *pipe = n->world->pipes; pipe != NULL; pipe = pipe->next) {
        if (pipe->node == n->index && pipe->life == n->life)
            subscription_stored(pipe->subscription, partition);
        for (struct source *source = pipe->sources; source != NULL; source = source->next)
            if (source->subscription != NULL && source->node == n->index && source->life == n->life)
                subscription_stored(source->subscription, partition);
    }
}

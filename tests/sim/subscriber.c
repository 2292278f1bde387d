/*
 * Consumers of the log, over the subscriptions that cairnd runs (lib/event). Each is connected to one node,
 * which gives what its own replicas have stored, and asks others for the rest, as server/feeder.c and
 * feed_relay.c do. Connections break, messages on their way are lost, and the consumer goes on at any node
 * from the newest token that it has.
 */
#include "event/event.h"
#include "sim.h"

enum { STEP_US = 20000, PAGES = 3 };

/* Where a node gets what it holds no replica of. */
struct source {
    struct source *next;
    int node;
    uint32_t life;
    uint32_t partitions[PARTITIONS];
    size_t count;
    struct subscription *subscription; /* at that node; NULL while there is none */
    struct foreign *foreign;
};

struct subscriber {
    int node; /* -1: not connected */
    uint32_t life;
    struct subscription *subscription;
    struct source *sources;
    uint64_t next[PARTITIONS]; /* of what it has */
    char token[400];           /* the newest that arrived */
};

static struct token_of cluster_of(const struct world *w)
{
    return (struct token_of){w->founding.cluster_id, PARTITIONS};
}

static bool answers(const struct node *n, uint32_t life)
{
    return n->alive && n->life == life && n->paused_until_us <= n->world->now_us;
}

static void disconnect(struct subscriber *s)
{
    subscription_free(s->subscription);
    s->subscription = NULL;
    while (s->sources != NULL) {
        struct source *next = s->sources->next;

        subscription_free(s->sources->subscription);
        free(s->sources);
        s->sources = next;
    }
    s->node = -1;
}

static void held_by(const struct node *n, bool held[PARTITIONS])
{
    for (uint32_t p = 0; p < PARTITIONS; p++)
        held[p] = engine_replica(n->engine, p) != NULL;
}

/* A replica that is found damaged is got anew (server/feeder.c); the consumer asks elsewhere. */
static void tell_damaged(struct node *n, uint32_t partition, const struct fault *fault)
{
    if (fault->status == STATUS_DAMAGED)
        node_damaged(n, (uint16_t)partition, fault);
}

static void connect(struct world *w, struct subscriber *s)
{
    struct node *n = &w->nodes[rng_below(&w->subscriber_rng, (uint64_t)w->node_count)];
    struct subscription_settings settings = {.cluster = cluster_of(w),
                                             .credits = 1 + rng_below(&w->subscriber_rng, 40),
                                             .heartbeat_ms = 200};
    bool held[PARTITIONS];
    struct fault fault;

    if (!answers(n, n->life))
        return;
    if (s->token[0] != '\0')
        settings.from = (struct log_start){.kind = START_TOKEN, .token = bytes_of(s->token)};
    held_by(n, held);
    if (subscription_new(&s->subscription, &settings, held, n->store, n->now_ms, &fault) != STATUS_OK) {
        s->subscription = NULL;
        if (fault.status == STATUS_INVALID)
            broken(w, 7, "a token that a node gave is refused: %s", fault.message);
        return;
    }
    s->node = n->index;
    s->life = n->life;
    w->figures.subscriptions++;
    for (uint32_t p = 0; p < PARTITIONS; p++)
        if (!held[p]) {
            struct source *source = memory_zero(1, sizeof *source);

            source->count = 1;
            source->partitions[0] = p;
            source->foreign = subscription_foreign(s->subscription, source->partitions, 1);
            source->next = s->sources;
            s->sources = source;
        }
}

/* ---- what arrives ---- */

static void take_event(struct world *w, struct subscriber *s, struct bytes packed)
{
    struct event_head head;
    struct fault fault;
    struct oracle_partition *p;

    if (wire_event_peek(packed, &head, &fault) != STATUS_OK || head.partition >= PARTITIONS) {
        broken(w, 7, "a consumer gets an event that doesn't decode");
        return;
    }
    p = &w->partitions[head.partition];
    if (head.position > s->next[head.partition])
        broken(w, 7, "a consumer gets position %llu of partition %u, expected %llu",
               (unsigned long long)head.position, head.partition,
               (unsigned long long)s->next[head.partition]);
    else if (head.position >= p->next_position)
        broken(w, 7, "a consumer gets position %llu of partition %u, which isn't committed",
               (unsigned long long)head.position, head.partition);
    else if (oracle_event(p, head.position) != hash_bytes(packed))
        broken(w, 7, "a consumer gets another event at position %llu of partition %u than was committed",
               (unsigned long long)head.position, head.partition);
    if (head.position == s->next[head.partition])
        s->next[head.partition]++;
    w->figures.delivered++;
}

/* Within one stream nothing comes twice. */
static void take_message(struct world *w, struct subscriber *s, struct bytes message)
{
    struct arena arena = {0};
    struct subscribe_response response;
    struct fault fault;

    if (wire_subscribe_response_decode(message, &arena, &response, &fault) != STATUS_OK)
        broken(w, 7, "a consumer gets a message that doesn't decode");
    for (size_t i = 0; w->broken_promise == 0 && i < response.event_count; i++)
        take_event(w, s, response.packed_events[i]);
    if (w->broken_promise == 0 && response.token.len > 0)
        snprintf(s->token, sizeof s->token, "%.*s", (int)response.token.len,
                 (const char *)response.token.data);
    arena_release(&arena);
}

/* ---- other nodes' partitions ---- */

static void dial(struct world *w, struct subscriber *s, struct source *source)
{
    const struct replica_set *set = &w->sets[source->partitions[0]];
    uint64_t id = set->replicas[rng_below(&w->subscriber_rng, set->count)];
    struct subscription_settings settings = {.cluster = cluster_of(w), .credits = 16, .heartbeat_ms = 200};
    struct buffer token = {0};
    struct fault fault;
    bool held[PARTITIONS];
    struct node *n = &w->nodes[0];

    while (n->id != id)
        n++;
    if (!answers(n, n->life) || w->cut[n->index][s->node] || w->cut[s->node][n->index])
        return;
    subscription_token(s->subscription, &token);
    settings.from = (struct log_start){.kind = START_TOKEN, .token = buffer_bytes(&token)};
    settings.filter.partitions = source->partitions;
    settings.filter.partition_count = source->count;
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

static void pull(struct world *w, struct subscriber *s, struct source *source)
{
    struct node *n = &w->nodes[source->node];
    struct buffer message = {0};
    struct fault fault;
    uint32_t partition = 0;
    enum status status;

    if (source->subscription == NULL) {
        dial(w, s, source);
        return;
    }
    if (!n->alive || n->life != source->life || w->cut[n->index][s->node] ||
        rng_chance(&w->subscriber_rng, 10)) {
        hang_up(source);
        return;
    }
    if (!answers(n, source->life))
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

/* ---- a step ---- */

static void give(struct world *w, struct subscriber *s)
{
    struct node *n = &w->nodes[s->node];
    struct buffer message = {0};
    struct fault fault;
    uint32_t partition = 0;
    enum status status = subscription_next(s->subscription, n->now_ms, &message, &partition, &fault);
    bool lost = !w->healed && rng_chance(&w->subscriber_rng, 20);

    if (status == STATUS_OK && message.len > 0 && !lost)
        take_message(w, s, buffer_bytes(&message));
    buffer_release(&message);
    if (status != STATUS_OK)
        tell_damaged(n, partition, &fault);
    if (status != STATUS_OK || lost)
        disconnect(s);
}

void subscriber_step(struct world *w, uint64_t number)
{
    struct subscriber *s = w->subscribers[number];
    struct node *n;

    world_at(w, w->now_us + STEP_US + rng_below(&w->subscriber_rng, STEP_US), EVENT_SUBSCRIBER, -1, number, NULL);
    if (s->node < 0) {
        connect(w, s);
        return;
    }
    n = &w->nodes[s->node];
    if (!n->alive || n->life != s->life || (n->paused_until_us > w->now_us && rng_chance(&w->subscriber_rng, 100))) {
        disconnect(s); /* a reset, or a node that is silent for too long */
        return;
    }
    if (!answers(n, s->life))
        return;
    for (struct source *source = s->sources; source != NULL && w->broken_promise == 0; source = source->next)
        pull(w, s, source);
    subscription_credit(s->subscription, rng_below(&w->subscriber_rng, 30));
    for (int i = 0; i < PAGES && s->subscription != NULL && w->broken_promise == 0 &&
                    subscription_wants(s->subscription, n->now_ms);
         i++)
        give(w, s);
}

void subscribers_stored(struct node *n, uint32_t partition)
{
    for (int i = 0; i < SUBSCRIBERS; i++) {
        struct subscriber *s = n->world->subscribers[i];

        if (s->subscription == NULL)
            continue;
        if (s->node == n->index && s->life == n->life)
            subscription_stored(s->subscription, partition);
        for (struct source *source = s->sources; source != NULL; source = source->next)
            if (source->subscription != NULL && source->node == n->index && source->life == n->life)
                subscription_stored(source->subscription, partition);
    }
}

bool subscribers_settled(const struct world *w)
{
    for (int i = 0; i < SUBSCRIBERS; i++)
        for (uint32_t p = 0; p < PARTITIONS; p++)
            if (w->subscribers[i]->next[p] != w->partitions[p].next_position)
                return false;
    return true;
}

void subscribers_final(struct world *w)
{
    for (int i = 0; i < SUBSCRIBERS && w->broken_promise == 0; i++)
        for (uint32_t p = 0; p < PARTITIONS; p++)
            if (w->subscribers[i]->next[p] != w->partitions[p].next_position)
                broken(w, 7, "consumer %d stands at position %llu of partition %u, the log at %llu", i,
                       (unsigned long long)w->subscribers[i]->next[p], p,
                       (unsigned long long)w->partitions[p].next_position);
}

void subscribers_new(struct world *w)
{
    for (uint64_t i = 0; i < SUBSCRIBERS; i++) {
        w->subscribers[i] = memory_zero(1, sizeof *w->subscribers[i]);
        w->subscribers[i]->node = -1;
        world_at(w, 500000 + i * 100000, EVENT_SUBSCRIBER, -1, i, NULL);
    }
}

void subscribers_free(struct world *w)
{
    for (int i = 0; i < SUBSCRIBERS; i++) {
        disconnect(w->subscribers[i]);
        free(w->subscribers[i]);
    }
}

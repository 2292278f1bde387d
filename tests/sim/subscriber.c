/*
 * Consumers of the log. Each is connected to one node; connections break, messages on their way are lost, and
 * the consumer goes on at any node from the newest token that it has.
 */
#include "pipe.h"

enum { STEP_US = 20000, PAGES = 3 };

struct subscriber {
    int node;
    struct pipe *pipe;         /* NULL: not connected */
    uint64_t next[PARTITIONS]; /* of what it has */
    char token[400];           /* the newest that arrived */
};

static void disconnect(struct subscriber *s)
{
    pipe_close(s->pipe);
    s->pipe = NULL;
}

static void connect(struct world *w, struct subscriber *s)
{
    struct node *n = &w->nodes[rng_below(&w->subscriber_rng, (uint64_t)w->node_count)];
    struct subscription_settings settings = {.credits = 1 + rng_below(&w->subscriber_rng, 40),
                                             .heartbeat_ms = 200};

    if (!node_answers(n, n->life))
        return;
    if (s->token[0] != '\0')
        settings.from = (struct log_start){.kind = START_TOKEN, .token = bytes_of(s->token)};
    s->node = n->index;
    s->pipe = pipe_open(n, &settings);
}

/* ---- what arrives ---- */

void oracle_given(struct world *w, struct bytes packed, struct event_head *head)
{
    struct fault fault;
    struct oracle_partition *p;

    if (wire_event_peek(packed, head, &fault) != STATUS_OK || head->partition >= PARTITIONS) {
        broken(w, 7, "a consumer gets an event that doesn't decode");
        return;
    }
    p = &w->partitions[head->partition];
    if (oracle_may_be_forgotten(w, packed))
        return;
    if (head->position >= p->next_position)
        broken(w, 7, "a consumer gets position %llu of partition %u, which isn't committed",
               (unsigned long long)head->position, head->partition);
    else if (oracle_event(p, head->position) != vault_event_hash(packed))
        broken(w, 7, "a consumer gets another event at position %llu of partition %u than was committed",
               (unsigned long long)head->position, head->partition);
    w->figures.delivered++;
}

static void take_event(struct world *w, struct subscriber *s, struct bytes packed)
{
    struct event_head head;

    oracle_given(w, packed, &head);
    if (w->broken_promise != 0)
        return;
    if (head.position > s->next[head.partition])
        broken(w, 7, "a consumer gets position %llu of partition %u, expected %llu",
               (unsigned long long)head.position, head.partition,
               (unsigned long long)s->next[head.partition]);
    if (head.position == s->next[head.partition])
        s->next[head.partition]++;
}

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

static void give(struct world *w, struct subscriber *s)
{
    struct buffer message = {0};
    bool works = pipe_next(s->pipe, &message);
    bool lost = !w->healed && rng_chance(&w->subscriber_rng, 20);

    if (works && message.len > 0 && !lost)
        take_message(w, s, buffer_bytes(&message));
    buffer_release(&message);
    if (!works || lost)
        disconnect(s);
}

void subscriber_step(struct world *w, uint64_t number)
{
    struct subscriber *s = w->subscribers[number];
    struct node *n = &w->nodes[s->node];

    world_at(w, w->now_us + STEP_US + rng_below(&w->subscriber_rng, STEP_US), EVENT_SUBSCRIBER, -1, number, NULL);
    if (s->pipe == NULL) {
        connect(w, s);
        return;
    }
    if (!pipe_works(s->pipe) || (n->paused_until_us > w->now_us && rng_chance(&w->subscriber_rng, 100))) {
        disconnect(s); /* a reset, or a node that is silent for too long */
        return;
    }
    if (n->paused_until_us > w->now_us)
        return;
    pipe_credit(s->pipe, rng_below(&w->subscriber_rng, 30));
    for (int i = 0; i < PAGES && s->pipe != NULL && w->broken_promise == 0; i++)
        give(w, s);
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

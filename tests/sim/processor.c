/*
 * A subscribing processor at each node, on the bus that cairnd runs (lib/event/bus.c): it acknowledges soon, late
 * or never, fails, and sometimes goes and comes back. In three of ten runs; the others do without.
 *
 * Checked: it gets only what is committed, of each partition in order and once, from the node that handled the
 * command; the owner answers only when the processor is done with the events, late, or the ownership is gone.
 */
#include "event/bus.h"
#include "sim.h"

enum { WAIT_MS = 300, ACK_TIMEOUT_MS = 2000 };

struct processor {
    struct node *node;
    struct bus *bus;
    bool joined;
    uint64_t seen[PARTITIONS]; /* one behind the last position that came */
    struct pending {
        struct pending *next;
        uint32_t partition;
        uint64_t ticket;
        uint64_t first_position;
    } *pending; /* published, not done */
};

/* What the processor says of one event, later. */
struct said {
    uint32_t partition;
    uint64_t position;
    bool failed;
};

static void on_deliver(void *context, void *member, uint32_t partition, const struct bytes *events, size_t count)
{
    struct processor *p = context;
    struct world *w = p->node->world;

    (void)member;
    for (size_t i = 0; i < count && w->broken_promise == 0; i++) {
        struct said *said = memory_zero(1, sizeof *said);
        uint64_t luck = w->workers_faulty ? rng_below(&w->processor_rng, 100) : 100;
        uint64_t after_us = 50 + rng_below(&w->processor_rng, 2000);
        struct event_head head;

        oracle_given(w, events[i], &head);
        if (w->broken_promise == 0 && head.position < p->seen[partition])
            broken(w, 7, "the processor at node %d gets position %llu of partition %u again", p->node->index,
                   (unsigned long long)head.position, partition);
        p->seen[partition] = head.position + 1;
        *said = (struct said){partition, head.position, luck < 10};
        if (luck >= 10 && luck < 15) { /* never says anything */
            free(said);
            continue;
        }
        if (luck >= 15 && luck < 25)
            after_us += rng_below(&w->processor_rng, 600000);
        world_at(w, w->now_us + after_us, EVENT_PROCESSED, p->node->index, head.position, said);
    }
}

static void on_dismiss(void *context, void *member, const struct fault *fault)
{
    struct processor *p = context;

    (void)member;
    (void)fault;
    p->joined = false;
}

static void on_done(void *context, void *publisher, uint32_t partition, uint64_t ticket,
                    const struct processing_failure *failures, size_t count)
{
    struct processor *p = context;
    struct pending **at = &p->pending;
    struct pending *pending;
    struct done_here *done = memory_zero(1, sizeof *done);

    (void)publisher;
    (void)failures;
    while (*at != NULL && ((*at)->partition != partition || (*at)->ticket != ticket))
        at = &(*at)->next;
    if (*at == NULL) {
        broken(p->node->world, 9, "a publication at node %d is done twice", p->node->index);
        free(done);
        return;
    }
    pending = *at;
    *at = pending->next;
    free(pending);
    *done = (struct done_here){partition, ticket, count};
    world_at(p->node->world, p->node->world->now_us + 20, EVENT_DONE, p->node->index, ticket, done);
}

static void join(struct processor *p)
{
    struct process_request request = {.kind = PROCESS_JOIN,
                                      .group = BYTES_LITERAL("p"),
                                      .member = BYTES_LITERAL("m"),
                                      .subscribing = true,
                                      .window = 8,
                                      .wait_ms = WAIT_MS,
                                      .ack_timeout_ms = ACK_TIMEOUT_MS,
                                      .report_failure = true};
    struct fault fault;

    if (bus_join(p->bus, p, &request, p->node->now_ms, &fault) != STATUS_OK)
        broken(p->node->world, 7, "a processor can't join: %s", fault.message);
    p->joined = true;
}

/* ---- of a node ---- */

void processor_begin(struct node *n)
{
    struct processor *p;
    struct bus_effects effects = {NULL, on_deliver, on_dismiss, on_done};

    if (!n->world->with_processors)
        return;
    n->processor = p = memory_zero(1, sizeof *p);
    p->node = n;
    effects.context = p;
    p->bus = bus_new(&effects, PARTITIONS);
    join(p);
}

void processor_end(struct node *n)
{
    struct processor *p = n->processor;

    if (p == NULL)
        return;
    if (p->joined)
        bus_leave(p->bus, p, n->now_ms);
    bus_free(p->bus);
    while (p->pending != NULL) {
        struct pending *next = p->pending->next;

        free(p->pending);
        p->pending = next;
    }
    free(p);
    n->processor = NULL;
}

bool processor_publish(struct node *n, uint32_t partition, uint64_t ticket, const struct command_record *record)
{
    struct processor *p = n->processor;
    struct pending *pending;

    if (p == NULL || !p->joined)
        return false;
    pending = memory_zero(1, sizeof *pending);
    *pending = (struct pending){p->pending, partition, ticket, record->outcome.first_position};
    p->pending = pending;
    bus_publish(p->bus, p, partition, ticket, record->packed_events, record->event_count, n->now_ms);
    n->world->figures.published++;
    return true;
}

void processor_forget(struct node *n, uint32_t partition, uint64_t ticket)
{
    struct processor *p = n->processor;

    if (p == NULL)
        return;
    bus_forget(p->bus, p, partition, ticket);
    for (struct pending **at = &p->pending; *at != NULL; at = &(*at)->next)
        if ((*at)->partition == partition && (*at)->ticket == ticket) {
            struct pending *gone = *at;

            *at = gone->next;
            free(gone);
            return;
        }
}

void processor_answered(struct node *n, const struct outcome *outcome)
{
    if (n->processor == NULL || outcome->event_count == 0)
        return;
    for (const struct pending *pending = n->processor->pending; pending != NULL; pending = pending->next)
        if (pending->partition == outcome->partition && pending->first_position == outcome->first_position)
            broken(n->world, 7, "node %d answers before its processor is done with position %llu of partition %u",
                   n->index, (unsigned long long)outcome->first_position, outcome->partition);
}

void processor_said(struct node *n, void *what)
{
    struct processor *p = n->processor;
    struct said *said = what;
    struct process_request request = {.kind = said->failed ? PROCESS_FAIL : PROCESS_ACKNOWLEDGE,
                                      .partition = said->partition,
                                      .position = said->position,
                                      .reason = BYTES_LITERAL("no")};
    struct fault fault = {0};
    enum status status = STATUS_OK;

    if (p != NULL && p->joined)
        status = said->failed ? bus_fail(p->bus, p, &request, n->now_ms, &fault)
                              : bus_acknowledge(p->bus, p, &request, n->now_ms, &fault);
    (void)status; /* of what the one before was given, after it came back */
    free(said);
}

void processor_tick(struct node *n)
{
    struct processor *p = n->processor;
    struct world *w = n->world;

    if (p == NULL)
        return;
    bus_tick(p->bus, n->now_ms);
    if (p->joined && !w->healed && rng_chance(&w->processor_rng, 2)) {
        bus_leave(p->bus, p, n->now_ms);
        p->joined = false;
    } else if (!p->joined && rng_chance(&w->processor_rng, 100)) {
        join(p);
    }
}

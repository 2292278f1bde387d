/* Time: a heap of events, and what each of them sets going. */
#include "sim.h"

uint64_t rng_next(struct rng *rng)
{
    uint64_t z = rng->state += 0x9E3779B97F4A7C15ULL;

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ z >> 27) * 0x94D049BB133111EBULL;
    return z ^ z >> 31;
}

uint64_t rng_below(struct rng *rng, uint64_t n)
{
    return n == 0 ? 0 : rng_next(rng) % n;
}

bool rng_chance(struct rng *rng, unsigned per_mille)
{
    return rng_below(rng, 1000) < per_mille;
}

void world_mix(struct world *w, const void *data, size_t len)
{
    w->trace = hash_mix(w->trace, (struct bytes){data, len});
}

void world_note(struct world *w, const char *format, ...)
{
    char *line = w->recent[w->recent_count++ % COUNT_OF(w->recent)];
    size_t room = sizeof w->recent[0];
    int n = snprintf(line, room, "%9.3f ms  ", (double)w->now_us / 1000);
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(line + n, room - (size_t)n, format, arguments);
    va_end(arguments);
    if (w->verbose)
        puts(line);
}

/* ---- the heap ---- */

static bool sooner(const struct happening *a, const struct happening *b)
{
    return a->at_us != b->at_us ? a->at_us < b->at_us : a->order < b->order;
}

static void push(struct world *w, struct happening event)
{
    size_t at = w->heap_count++;

    if (at == w->heap_room) {
        w->heap_room = at == 0 ? 256 : at * 2;
        w->heap = memory_grow(w->heap, w->heap_room * sizeof *w->heap);
    }
    while (at > 0 && sooner(&event, &w->heap[(at - 1) / 2])) {
        w->heap[at] = w->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    w->heap[at] = event;
}

static struct happening pop(struct world *w)
{
    struct happening first = w->heap[0];
    struct happening last = w->heap[--w->heap_count];
    size_t at = 0;

    for (;;) {
        size_t child = at * 2 + 1;

        if (child >= w->heap_count)
            break;
        if (child + 1 < w->heap_count && sooner(&w->heap[child + 1], &w->heap[child]))
            child++;
        if (!sooner(&w->heap[child], &last))
            break;
        w->heap[at] = w->heap[child];
        at = child;
    }
    w->heap[at] = last;
    return first;
}

void world_at(struct world *w, uint64_t at_us, enum event_kind kind, int node, uint64_t number,
              void *what)
{
    struct happening event = {at_us, w->next_order++, kind, node, 0, number, what};

    /* What a node waits for itself is gone when it dies; what others send it isn't theirs to know. */
    if (node >= 0 && kind != EVENT_RESTART && kind != EVENT_REQUEST)
        event.life = w->nodes[node].life;
    push(w, event);
}

/* ---- what happens ---- */

static void drop(struct happening *event)
{
    if (event->kind == EVENT_PACKET)
        packet_free(event->what);
    else
        free(event->what);
}

static void happen(struct world *w, struct happening *event)
{
    struct node *n = event->node >= 0 ? &w->nodes[event->node] : NULL;

    switch (event->kind) {
    case EVENT_TICK:
        node_tick(n);
        break;
    case EVENT_PACKET:
        network_arrived(w, event->node, event->what);
        break;
    case EVENT_WRITTEN:
        node_written(n, event->number);
        break;
    case EVENT_EXECUTED:
        node_executed(n, event->what);
        break;
    case EVENT_RANGE:
        node_range(n, (uint16_t)event->number);
        break;
    case EVENT_RESTART:
        if (!n->alive && !n->lost)
            node_start(n);
        break;
    case EVENT_LEAVING:
        fault_leaving(w, &w->nodes[event->number]);
        break;
    case EVENT_FORGOT:
        node_forgot(n, (uint16_t)event->number);
        break;
    case EVENT_CLIENT:
        client_step(w, event->number);
        break;
    case EVENT_SUBSCRIBER:
        subscriber_step(w, event->number);
        break;
    case EVENT_GROUP:
        group_step(w, event->number);
        break;
    case EVENT_PROCESSED:
        processor_said(n, event->what);
        break;
    case EVENT_DONE:
        node_processed(n, event->what);
        break;
    case EVENT_REQUEST:
        node_request(n, event->number >> 32, (uint32_t)event->number);
        break;
    case EVENT_ANSWER:
        client_answered(w, event->number, event->what);
        break;
    case EVENT_FAULT:
        fault_begin(w, &w->faults[event->number]);
        break;
    case EVENT_FAULT_ENDS:
        fault_end(w, &w->faults[event->number]);
        break;
    }
}

bool world_step(struct world *w)
{
    struct happening event;
    struct node *n;

    if (w->heap_count == 0 || w->broken_promise != 0)
        return false;
    event = pop(w);
    n = event.node >= 0 ? &w->nodes[event.node] : NULL;
    w->now_us = event.at_us;
    if (n != NULL && event.kind != EVENT_RESTART &&
        (!n->alive || (event.life != 0 && event.life != n->life))) {
        drop(&event);
        return true;
    }
    if (n != NULL && n->paused_until_us > w->now_us) {
        event.at_us = n->paused_until_us;
        event.order = w->next_order++;
        push(w, event);
        return true;
    }
    w->figures.events++;
    world_mix(w, &event.at_us, sizeof event.at_us);
    world_mix(w, &event.kind, sizeof event.kind);
    world_mix(w, &event.node, sizeof event.node);
    world_mix(w, &event.number, sizeof event.number);
    happen(w, &event);
    return true;
}

/* ---- from beginning to end ---- */

enum { FAULTS_UNTIL_MS = 8000, CLIENTS_UNTIL_MS = 9500, HEAL_MS = 10000, LIVENESS_MS = 40000 };

static void make_node(struct world *w, int index, int64_t drift_ppm)
{
    struct node *n = &w->nodes[index];

    n->world = w;
    n->index = index;
    n->id = w->ids[index] = 0x1000 + (uint64_t)index * 0x111;
    n->drift_ppm = drift_ppm;
    n->replaces = -1;
    n->writes_end = &n->writes;
    if (store_open_memory(&n->store) != STATUS_OK)
        abort();
}

struct node *world_add_node(struct world *w, int replaces)
{
    struct node *n = &w->nodes[w->node_count];

    if (w->node_count == NODES_MAX)
        return NULL;
    make_node(w, w->node_count++, (int64_t)rng_below(&w->placement_rng, 2001) - 1000);
    n->replaces = replaces;
    node_start(n);
    return n;
}

void world_init(struct world *w, uint64_t seed, const char *scenario)
{
    world_init_with(w, seed, scenario, 0);
}

void world_init_with(struct world *w, uint64_t seed, const char *scenario, int founders)
{
    struct rng rng = {seed};

    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->scenario = scenario;
    w->moves_at_once = 2;
    w->node_count = rng_chance(&rng, 200) ? 5 : rng_chance(&rng, 50) ? 1 : 3;
    if (founders > 0)
        w->node_count = founders;
    w->network_rng.state = rng_next(&rng);
    w->disk_rng.state = rng_next(&rng);
    w->client_rng.state = rng_next(&rng);
    w->worker_rng.state = rng_next(&rng);
    w->vault_rng.state = rng_next(&rng);
    vault_begin(w);
    w->subscriber_rng.state = seed ^ 0x5B5C1BE5;
    w->processor_rng.state = seed ^ 0x9B0CE550;
    w->placement_rng.state = seed ^ 0x91ACE;
    w->forget_rng.state = seed ^ 0xF02637;
    w->forget_per_mille = rng_chance(&w->forget_rng, 500) ? 60 : 0;
    if (strcmp(scenario, "forgetting") == 0)
        w->forget_per_mille = 500;
    w->zones = (unsigned)rng_below(&w->placement_rng, 4);
    w->founder_count = w->node_count;
    w->with_processors = rng_chance(&w->processor_rng, 300);
    for (int i = 0; i < w->node_count; i++) {
        make_node(w, i, (int64_t)rng_below(&rng, 2001) - 1000);
        w->founders[i] = (struct founder){.node_id = w->ids[i],
                                          .name = bytes_of(node_name(&w->nodes[i])),
                                          .address = bytes_of(node_name(&w->nodes[i]))};
    }
    placement_found(w->founders, (size_t)w->node_count, PARTITIONS, 3, w->sets);
    w->founding = (struct founding){.cluster_id = BYTES_LITERAL("0123456789abcdef"),
                                    .cluster_name = BYTES_LITERAL("sim"),
                                    .proposer = w->ids[0],
                                    .partition_count = PARTITIONS,
                                    .replication_factor = 3,
                                    .founders = w->founders,
                                    .founder_count = (size_t)w->node_count,
                                    .sets = w->sets,
                                    .set_count = PARTITIONS + 1,
                                    .complete = true};
    w->clients_until_ms = CLIENTS_UNTIL_MS;
    w->fault_count = 0;
    faults_plan(w);
}

static void heal(struct world *w)
{
    w->healed = true;
    memset(w->cut, 0, sizeof w->cut);
    w->loss_per_mille = w->duplicate_per_mille = w->delay_ms = 0;
    w->workers_faulty = false;
    for (int i = 0; i < w->node_count; i++) {
        struct node *n = &w->nodes[i];

        n->disk_slow_ms = 0;
        n->disk_bad = n->disk_full = false;
        if (n->paused_until_us > w->now_us)
            n->paused_until_us = w->now_us;
        if (!n->alive && !n->lost)
            node_start(n);
        else if (n->alive)
            node_scrub(n);
    }
    world_note(w, "healed");
}

bool world_run(struct world *w)
{
    subscribers_new(w);
    group_begin(w);
    for (int i = 0; i < w->node_count; i++)
        node_start(&w->nodes[i]);
    for (size_t i = 0; i < w->fault_count; i++)
        if (!w->faults[i].skipped) {
            world_at(w, w->faults[i].at_ms * 1000, EVENT_FAULT, -1, i, NULL);
            world_at(w, (w->faults[i].at_ms + w->faults[i].length_ms) * 1000, EVENT_FAULT_ENDS, -1,
                     i, NULL);
        }
    for (uint64_t c = 0; c < CLIENTS; c++) {
        w->clients[c].op = -1;
        world_at(w, 300000 + c * 1000, EVENT_CLIENT, -1, c, NULL);
    }
    while (w->heap_count > 0 && w->heap[0].at_us < HEAL_MS * 1000 && world_step(w))
        continue;
    if (w->broken_promise == 0) {
        w->now_us = HEAL_MS * 1000;
        heal(w);
    }
    while (w->broken_promise == 0 && w->now_us < LIVENESS_MS * 1000ULL && !oracle_settled(w))
        for (int i = 0; i < 200 && world_step(w); i++)
            continue;
    if (w->broken_promise == 0)
        oracle_final(w);
    return w->broken_promise == 0;
}

void world_release(struct world *w)
{
    group_end(w);
    subscribers_free(w);
    for (int i = 0; i < w->node_count; i++) {
        if (w->nodes[i].alive)
            node_crash(&w->nodes[i], "the end");
        node_release(&w->nodes[i]);
    }
    for (size_t i = 0; i < w->heap_count; i++)
        drop(&w->heap[i]);
    free(w->heap);
    for (int i = 0; i < PARTITIONS; i++)
        free(w->partitions[i].entries);
    for (int i = 0; i < PARTITIONS; i++)
        free(w->partitions[i].events);
    for (int i = 0; i < AGGREGATES; i++)
        free(w->aggregates[i].hashes);
    for (int i = 0; i < AGGREGATES; i++)
        free(w->aggregates[i].numbers);
    for (int i = 0; i < AGGREGATES; i++)
        free(w->aggregates[i].subjects);
}

/*
 * One node: the engine and the membership that cairnd runs, with the world's clock, network and disk.
 * Every call from the world is one turn. What stands here is what server/ does with threads and streams,
 * and nothing that decides.
 */
#include "sim.h"

/* A command inside this node. */
struct command_here {
    struct routed routed;
    struct node *node;
    struct command_here *next;
    struct command_here *previous;
    uint64_t request; /* op << 32 | attempt, of a client's */
};

/* A client's read that waits for its replica. */
struct read_here {
    struct awaited_read awaited;
    struct read_here *next;
    uint64_t op;
    uint32_t attempt;
};

struct execution_here {
    uint16_t partition;
    uint64_t worker;
    uint64_t execution_id;
    bool died;
    size_t len;
    uint8_t packed[];
};

enum {
    DISK_RESERVE_MIB = 16,
    DISK_FREE_MIB = 1000,
    REQUEST_TIMEOUT_MS = 2000,
    /* An answer comes at a tick after the deadline; a node that was stopped may be later. */
    LATE_MS = 4 * GRID_MS,
};

/* ---- clocks ---- */

static uint64_t monotonic_ms(const struct node *n)
{
    int64_t us = (int64_t)n->world->now_us;

    return (uint64_t)(1000 + (us + us / 1000000 * n->drift_ppm) / 1000 + n->jump_ms);
}

/* Monotonic, whatever the drift does. */
static struct moment moment_of(struct node *n)
{
    uint64_t now = monotonic_ms(n);

    if (now > n->now_ms) {
        n->was_away = n->now_ms != 0 && now - n->now_ms > 2 * GRID_MS ? now : n->was_away;
        n->now_ms = now;
    }
    return (struct moment){n->now_ms, 1700000000000 + (int64_t)n->now_ms + n->wall_jump_ms};
}

static void begin_turn(struct node *n)
{
    engine_begin(n->engine, moment_of(n), n->disk_full ? DISK_RESERVE_MIB / 2 : DISK_FREE_MIB);
}

/* ---- links: what a node knows of its connections ---- */

static int index_of(const struct world *w, uint64_t id)
{
    for (int i = 0; i < w->node_count; i++)
        if (w->ids[i] == id)
            return i;
    return -1;
}

static bool effect_reachable(void *context, uint64_t node_id)
{
    struct node *n = context;

    return n->links[index_of(n->world, node_id)].up;
}

static void set_link(struct node *n, int peer, bool up)
{
    struct link *link = &n->links[peer];

    link->up = up;
    link->silent_since_us = 0;
    link->peer_life = n->world->nodes[peer].life;
    if (!up)
        swim_suspect_link(n->swim, n->world->ids[peer], n->now_ms);
    begin_turn(n);
    engine_link(n->engine, n->world->ids[peer], up);
    engine_end(n->engine);
}

/* A dead process resets its connections; a cut is noticed by keepalive, after a second or so. */
static void tick_link(struct node *n, int peer)
{
    struct world *w = n->world;
    struct link *link = &n->links[peer];
    const struct node *other = &w->nodes[peer];
    bool cut = w->cut[n->index][peer] || w->cut[peer][n->index];

    if (!link->up) {
        if (other->alive && !cut && other->paused_until_us <= w->now_us &&
            rng_chance(&w->network_rng, 400))
            set_link(n, peer, true);
        return;
    }
    if (!cut && (!other->alive || link->peer_life != other->life)) {
        set_link(n, peer, false);
        return;
    }
    if (!cut) {
        link->silent_since_us = 0;
        return;
    }
    if (link->silent_since_us == 0)
        link->silent_since_us = w->now_us;
    if (w->now_us > link->silent_since_us + 1000000 && rng_chance(&w->network_rng, 100))
        set_link(n, peer, false);
}

void node_link_reset(struct node *n, int peer)
{
    if (n->alive && n->index != peer && n->links[peer].up && n->paused_until_us <= n->world->now_us)
        set_link(n, peer, false);
}

/* ---- answers ---- */

static void answer_client(struct node *n, uint64_t request, const struct answer *answer)
{
    struct answer *copy = memory_take(sizeof *copy);

    *copy = *answer;
    copy->attempt = (uint32_t)request;
    world_at(n->world, n->world->now_us + 50 + rng_below(&n->world->network_rng, 200), EVENT_ANSWER,
             -1, request >> 32, copy);
}

static void fail_client(struct node *n, uint64_t request, const struct fault *fault)
{
    struct answer answer = {.status = fault->status};

    snprintf(answer.reason, sizeof answer.reason, "%s", fault->reason);
    answer_client(n, request, &answer);
}

static struct command_here *command_new(struct node *n)
{
    struct command_here *c = memory_zero(1, sizeof *c);

    c->node = n;
    c->next = n->commands;
    if (n->commands != NULL)
        n->commands->previous = c;
    n->commands = c;
    return c;
}

static void effect_released(void *context, struct routed *routed)
{
    struct node *n = context;
    struct command_here *c = CONTAINER_OF(routed, struct command_here, routed);

    *(c->previous == NULL ? &n->commands : &c->previous->next) = c->next;
    if (c->next != NULL)
        c->next->previous = c->previous;
    arena_release(&c->routed.arena);
    free(c);
}

static struct routed *effect_arrived(void *context)
{
    return &command_new(context)->routed;
}

static void effect_answered(void *context, struct routed *routed, const struct outcome *outcome,
                            const struct fault *fault)
{
    struct node *n = context;
    struct command_here *c = CONTAINER_OF(routed, struct command_here, routed);
    uint64_t deadline_ms = routed->admitted.deadline_ms;
    struct answer answer = {.status = STATUS_OK};

    if (!n->alive)
        return;
    if (n->now_ms > deadline_ms + LATE_MS && n->was_away <= deadline_ms)
        broken(n->world, 8, "node %d answers %llu ms after the deadline", n->index,
               (unsigned long long)(n->now_ms - deadline_ms));
    if (outcome != NULL && (routed->peer != 0 || routed->target == 0)) {
        oracle_durable(n, outcome); /* the owner says so */
        processor_answered(n, outcome);
    }
    if (routed->peer != 0)
        return;
    if (outcome == NULL) {
        fail_client(n, c->request, fault);
        return;
    }
    answer.first_sequence = outcome->first_sequence;
    answer.event_count = outcome->event_count;
    answer.rejected = outcome->rejection.present;
    answer.conflict = outcome->conflict;
    answer_client(n, c->request, &answer);
}

static enum status events_of(struct node *n, uint16_t partition, int aggregate, uint64_t *count,
                             struct fault *fault)
{
    char name[16];
    struct bytes id = bytes_of(aggregate_name(aggregate, name, sizeof name));
    struct store_key from = key_event(partition, id, 0);
    struct store_key to = key_event_end(partition, id);
    struct store_cursor *cursor =
        store_cursor_new(n->store, STORE_EVENTS, key_bytes(&from), key_bytes(&to), true);
    struct bytes key;
    struct bytes value;
    enum status status = store_cursor_next(cursor, &key, &value, fault);

    *count = status == STATUS_OK ? key_last_number(key) + 1 : 0;
    store_cursor_free(cursor);
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

static void effect_read_ready(void *context, struct awaited_read *awaited, const struct fault *fault)
{
    struct node *n = context;
    struct read_here *r = CONTAINER_OF(awaited, struct read_here, awaited);
    uint64_t request = r->op << 32 | r->attempt;
    struct answer answer = {.status = STATUS_OK, .is_read = true};
    struct fault damage;

    if (n->alive && fault != NULL) {
        fail_client(n, request, fault);
    } else if (n->alive) {
        if (events_of(n, (uint16_t)awaited->partition, n->world->ops[r->op].aggregate,
                      &answer.count, &damage) == STATUS_OK) {
            answer_client(n, request, &answer);
        } else {
            (void)engine_damaged(n->engine, awaited->partition, &damage);
            fail_client(n, request,
                        &(struct fault){.status = STATUS_UNAVAILABLE, .reason = "REPLICA_DAMAGED"});
        }
    }
    free(r);
}

/* ---- disk ---- */

/* The disk takes all that waits and syncs once, as the storage thread does. */
static void start_disk(struct node *n)
{
    struct world *w = n->world;
    uint64_t last = 0;

    for (struct write *write = n->writes; write != NULL; write = write->next)
        last = write->ticket;
    n->disk_busy = last != 0;
    if (n->disk_busy)
        world_at(w,
                 w->now_us + 60 + rng_below(&w->disk_rng, 300) +
                     rng_below(&w->disk_rng, n->disk_slow_ms * 1000 + 1),
                 EVENT_WRITTEN, n->index, last, NULL);
}

static void effect_persist(void *context, struct store_batch *batch, uint64_t ticket)
{
    struct node *n = context;
    struct write *write = memory_take(sizeof *write);

    *write = (struct write){NULL, batch, ticket};
    *n->writes_end = write;
    n->writes_end = &write->next;
    n->world->figures.writes++;
    if (!n->disk_busy)
        start_disk(n);
}

static struct store_batch *effect_empty_batch(void *context)
{
    return store_batch_new(((struct node *)context)->store);
}

/* What the disk was writing is there up to some write, and no further. */
static void lose_writes(struct node *n)
{
    struct fault fault;
    bool torn = false;

    while (n->writes != NULL) {
        struct write *write = n->writes;

        torn = torn || rng_chance(&n->world->disk_rng, 500);
        if (torn)
            n->world->figures.torn++;
        else if (store_write(n->store, write->batch, true, &fault) != STATUS_OK)
            abort();
        n->writes = write->next;
        store_batch_free(write->batch);
        free(write);
    }
    n->writes_end = &n->writes;
}

/* ---- the other effects of the engine ---- */

static void effect_send(void *context, uint64_t to, struct bytes frame)
{
    struct node *n = context;
    int peer = index_of(n->world, to);

    if (n->links[peer].up)
        network_send(n->world, n->index, peer, false, frame);
}

static bool effect_alive(void *context, uint64_t node_id)
{
    const struct member_state *member = swim_member(((struct node *)context)->swim, node_id);

    return member != NULL && member->status == MEMBER_ALIVE;
}

static const struct cairn_aggregate_type *effect_module_type(void *context, struct bytes name)
{
    (void)context;
    return bytes_equal(name, BYTES_LITERAL("counter")) ? &sim_counter : NULL;
}

static enum status effect_pick_worker(void *context, const struct command *command, uint64_t hint,
                                      uint64_t *worker, struct fault *fault)
{
    struct world *w = ((struct node *)context)->world;

    if (!bytes_equal(command->aggregate_type, BYTES_LITERAL("remote")))
        return fault_set(fault, STATUS_NO_HANDLER, "NO_HANDLER", "nobody");
    if (w->workers_faulty && rng_chance(&w->worker_rng, 100))
        return STATUS_UNAVAILABLE;
    *worker = hint != 0 && !rng_chance(&w->worker_rng, 100) ? hint
                                                            : 1 + rng_below(&w->worker_rng, WORKERS);
    return STATUS_OK;
}

static uint64_t effect_clock_us(void *context)
{
    return ((struct node *)context)->world->now_us;
}

static bool effect_publish(void *context, uint32_t partition, uint64_t ticket,
                           const struct command_record *record)
{
    return processor_publish(context, partition, ticket, record);
}

static void effect_forgot(void *context, uint32_t partition)
{
    struct node *n = context;

    world_at(n->world, n->world->now_us + 1000 + rng_below(&n->world->forget_rng, 50000), EVENT_FORGOT, n->index, partition,
             NULL);
}

/* As server/storage.c does, when it has compacted. */
void node_forgot(struct node *n, uint16_t partition)
{
    struct store_batch *batch = store_batch_new(n->store);
    struct fault fault;

    (void)destroyed_settle(n->store, partition, batch);
    if (store_write(n->store, batch, false, &fault) != STATUS_OK)
        broken(n->world, 2, "a mark can't be taken away: %s", fault.message);
    store_batch_free(batch);
}

static void effect_forget(void *context, uint32_t partition, uint64_t ticket)
{
    processor_forget(context, partition, ticket);
}

static void effect_execute(void *context, uint32_t partition, uint64_t worker,
                           uint64_t execution_id, struct bytes packed, uint64_t deadline_ms)
{
    struct node *n = context;
    struct world *w = n->world;
    struct execution_here *e = memory_zero(1, sizeof *e + packed.len);
    uint64_t after_us = 100 + rng_below(&w->worker_rng, 2000);
    uint64_t luck = w->workers_faulty ? rng_below(&w->worker_rng, 100) : 100;

    (void)deadline_ms;
    *e = (struct execution_here){(uint16_t)partition, worker, execution_id, luck < 20, packed.len};
    memcpy(e->packed, packed.data, packed.len);
    w->figures.executions++;
    if (luck >= 20 && luck < 30) { /* hangs: never answers */
        free(e);
        return;
    }
    if (luck >= 30 && luck < 45)
        after_us += rng_below(&w->worker_rng, 4000000); /* late, maybe after the deadline */
    if (luck >= 45 && luck < 60) {                      /* answers twice */
        struct execution_here *again = memory_take(sizeof *e + packed.len);

        memcpy(again, e, sizeof *e + packed.len);
        world_at(w, w->now_us + after_us + 500, EVENT_EXECUTED, n->index, execution_id, again);
    }
    world_at(w, w->now_us + after_us, EVENT_EXECUTED, n->index, execution_id, e);
}

static void effect_need_range(void *context, uint32_t partition, uint64_t leader, uint64_t index,
                              uint64_t term)
{
    struct node *n = context;
    struct world *w = n->world;
    bool under_way = n->range_index[partition] != 0 && !n->stop_range[partition];

    (void)leader;
    (void)term;
    n->range_index[partition] = index;
    n->stop_range[partition] = false;
    if (!under_way)
        world_at(w, w->now_us + 1000 + rng_below(&w->network_rng, 400000), EVENT_RANGE, n->index,
                 partition, NULL);
}

static void effect_stop_range(void *context, uint32_t partition)
{
    ((struct node *)context)->stop_range[partition] = true;
}

static void effect_committed(void *context, uint32_t partition, uint64_t index,
                             struct bytes payload)
{
    oracle_applied(context, (uint16_t)partition, index, payload);
}

static void effect_stored(void *context, uint32_t partition)
{
    struct node *n = context;

    pipes_stored(n, partition);
}

static void effect_route(void *context, const struct owner_note *note)
{
    struct node *n = context;

    if (note->owner == n->id && (n->known[note->partition].owner != n->id ||
                                 n->known[note->partition].epoch != note->epoch))
        world_note(n->world, "node %d owns partition %u in term %llu", n->index, note->partition,
                   (unsigned long long)note->epoch);
    n->known[note->partition] = *note;
}

static void effect_known(void *context, uint32_t partition, struct owner_note *note)
{
    *note = ((struct node *)context)->known[partition];
}

static const struct member_state *effect_members(void *context, struct arena *arena, size_t *count)
{
    const struct member_state *members;

    (void)arena; /* nothing changes them before the turn ends */
    *count = swim_members(((struct node *)context)->swim, &members);
    return members;
}

static void effect_held(void *context, uint32_t partition, bool held)
{
    struct node *n = context;

    n->held[partition] = held;
    world_note(n->world, "node %d %s partition %u", n->index, held ? "holds" : "holds no more", partition);
}

static void effect_placement(void *context, const struct placement *placement)
{
    struct node *n = context;
    uint64_t version = placement->version;

    n->world->figures.placements += version > n->placement_version;
    if (version > n->world->placement_version) {
        n->world->placement_version = version;
        for (size_t p = 0; p <= PARTITIONS; p++) {
            for (size_t i = 0; version > 1 && p < PARTITIONS && i < placement->sets[p].count; i++)
                n->world->moved += !replica_set_holds(&n->world->placed[p], placement->sets[p].replicas[i]);
            n->world->placed[p] = placement->sets[p];
        }
    }
    for (size_t p = 0; n->world->verbose && p < placement->set_count; p++)
        world_note(n->world, "node %d placement %llu partition %zu: %zu replicas %llx %llx %llx", n->index,
                   (unsigned long long)version, p, placement->sets[p].count,
                   (unsigned long long)placement->sets[p].replicas[0],
                   (unsigned long long)(placement->sets[p].count > 1 ? placement->sets[p].replicas[1] : 0),
                   (unsigned long long)(placement->sets[p].count > 2 ? placement->sets[p].replicas[2] : 0));
    if (version < n->placement_version)
        broken(n->world, 3, "node %d goes back to an older placement", n->index);
    n->placement_version = version;
}

static void effect_count(void *context, enum engine_count what)
{
    struct figures *figures = &((struct node *)context)->world->figures;

    figures->ownerships += what == ENGINE_GAINED;
    figures->forwards += what == ENGINE_FORWARDED;
    figures->resends += what == ENGINE_RESENT;
    figures->repairs += what == ENGINE_REPAIRED;
}

static void effect_failed(void *context, const struct fault *fault)
{
    struct node *n = context;

    broken(n->world, 2, "node %d: %s", n->index, fault->message);
}

/* ---- membership ---- */

static void on_gossip_send(void *context, uint64_t node_id, struct bytes address,
                           const struct swim_message *message)
{
    struct node *n = context;
    int to = address.len > 1 && address.data[0] == 'n' ? atoi((const char *)address.data + 1)
                                                       : index_of(n->world, node_id);
    struct buffer frame = {0};

    gossip_add_swim(&frame, message);
    if (to >= 0 && to < n->world->node_count)
        network_send(n->world, n->index, to, true, buffer_bytes(&frame));
    buffer_release(&frame);
}

static void on_member_changed(void *context, const struct member_state *member)
{
    (void)context;
    (void)member;
}

const char *node_name(const struct node *n)
{
    static char names[NODES_MAX][8];

    snprintf(names[n->index], sizeof names[0], "n%d", n->index);
    return names[n->index];
}

static void join(struct node *n)
{
    static const char *const zones[] = {"z0", "z1", "z2", "z3", "z4", "z5", "z6", "z7", "z8", "z9"};
    struct swim_settings settings = {0};
    struct swim_effects effects = {n, on_gossip_send, on_member_changed};

    swim_settings_lan(&settings);
    settings.node_id = n->id;
    settings.name = settings.address = node_name(n);
    settings.zone = n->world->zones == 0 ? "" : zones[(unsigned)n->index % n->world->zones];
    settings.replaces = n->replaces < 0 ? "" : node_name(&n->world->nodes[n->replaces]);
    settings.seed = rng_next(&n->world->network_rng);
    n->swim = swim_new(&settings, &effects, n->now_ms);
    for (int i = 0; i < n->world->node_count; i++)
        if (i != n->index)
            swim_join(n->swim, node_name(&n->world->nodes[i]));
}

void node_gossip(struct node *n, struct bytes packed)
{
    struct arena arena = {0};
    struct gossip_frame frame;
    struct fault fault;

    if (gossip_decode(packed, &arena, &frame, &fault) != STATUS_OK)
        broken(n->world, 1, "gossip between nodes doesn't decode: %s", fault.message);
    for (size_t i = 0; n->world->broken_promise == 0 && i < frame.swim_count; i++)
        swim_receive(n->swim, &frame.swim[i], moment_of(n).now_ms);
    arena_release(&arena);
}

/* ---- life and death ---- */

static const struct engine_effects effects = {
    .send = effect_send,
    .persist = effect_persist,
    .empty_batch = effect_empty_batch,
    .reachable = effect_reachable,
    .alive = effect_alive,
    .arrived = effect_arrived,
    .answered = effect_answered,
    .released = effect_released,
    .read_ready = effect_read_ready,
    .module_type = effect_module_type,
    .pick_worker = effect_pick_worker,
    .execute = effect_execute,
    .clock_us = effect_clock_us,
    .publish = effect_publish,
    .forget = effect_forget,
    .forgot = effect_forgot,
    .need_range = effect_need_range,
    .stop_range = effect_stop_range,
    .committed = effect_committed,
    .stored = effect_stored,
    .route = effect_route,
    .known = effect_known,
    .members = effect_members,
    .held = effect_held,
    .placement = effect_placement,
    .count = effect_count,
    .failed = effect_failed,
};

void node_start(struct node *n)
{
    struct world *w = n->world;
    struct engine_settings settings = {
        .node_id = n->id,
        .count = 1,
        .founding = &w->founding,
        .placement = {.moves_at_once = w->moves_at_once, .grace_ms = 3000},
        .planner = {.settle_ms = 500},
        .election_ms = 300,
        .heartbeat_ms = 100,
        .disk_reserve_mib = DISK_RESERVE_MIB,
        .checkpoint_entries = 24,
        .payload_bytes_max = 1 << 16,
        .snapshot_every = 5,
        .cache_bytes = 1 << 20,
        .cache_count = 2,
        .vault = &w->vault,
        .seed = rng_next(&w->network_rng),
    };
    struct engine_effects here = effects;
    struct fault fault;

    here.context = n;
    n->alive = true;
    n->life++;
    n->disk_busy = false;
    n->placement_version = 0;
    memset(n->known, 0, sizeof n->known);
    memset(n->held, 0, sizeof n->held);
    n->was_away = 0;
    memset(n->links, 0, sizeof n->links);
    memset(n->range_index, 0, sizeof n->range_index);
    memset(n->stop_range, 0, sizeof n->stop_range);
    world_note(w, "node %d starts", n->index);
    join(n);
    processor_begin(n);
    if (engine_new(&n->engine, &settings, &here, n->store, moment_of(n), &fault) != STATUS_OK) {
        broken(w, 2, "node %d can't start: %s", n->index, fault.message);
        return;
    }
    begin_turn(n);
    engine_end(n->engine);
    world_at(w, w->now_us + GRID_MS * 1000, EVENT_TICK, n->index, 0, NULL);
    if (w->healed) /* a repair that was under way is forgotten until somebody reads that again */
        node_scrub(n);
}

void node_crash(struct node *n, const char *why)
{
    world_note(n->world, "node %d stops: %s", n->index, why);
    n->alive = false;
    n->paused_until_us = 0;
    engine_free(n->engine);
    processor_end(n);
    swim_free(n->swim);
    n->engine = NULL;
    n->swim = NULL;
    assert(n->commands == NULL);
    lose_writes(n);
}

void node_release(struct node *n)
{
    store_free(n->store);
}

/* ---- what the world brings ---- */

void node_tick(struct node *n)
{
    swim_tick(n->swim, moment_of(n).now_ms);
    processor_tick(n);
    for (int i = 0; i < n->world->node_count; i++)
        if (i != n->index)
            tick_link(n, i);
    begin_turn(n);
    engine_end(n->engine);
    world_at(n->world, n->world->now_us + GRID_MS * 1000, EVENT_TICK, n->index, 0, NULL);
}

void node_written(struct node *n, uint64_t last)
{
    struct fault fault;

    if (n->disk_bad) {
        n->disk_bad = false;
        node_crash(n, "a write failed");
        world_at(n->world, n->world->now_us + 300000, EVENT_RESTART, n->index, 0, NULL);
        return;
    }
    while (n->writes != NULL && n->writes->ticket <= last) {
        struct write *write = n->writes;

        if (store_write(n->store, write->batch, true, &fault) != STATUS_OK)
            abort(); /* memory */
        n->writes = write->next;
        store_batch_free(write->batch);
        free(write);
    }
    if (n->writes == NULL)
        n->writes_end = &n->writes;
    start_disk(n);
    begin_turn(n);
    engine_written(n->engine, last);
    engine_end(n->engine);
}

/* At a node without a replica another one is asked (server/read_relay.c). */
static void read_here(struct node *n, uint64_t op, uint32_t attempt)
{
    struct world *w = n->world;
    uint16_t partition = w->ops[op].partition;
    const struct replica_set *set = engine_voters(n->engine, partition);
    struct read_here *r;

    if (engine_replica(n->engine, partition) == NULL) {
        world_at(w, w->now_us + 200, EVENT_REQUEST,
                 index_of(w, set->replicas[rng_below(&w->client_rng, set->count)]),
                 op << 32 | attempt, NULL);
        return;
    }
    r = memory_zero(1, sizeof *r);
    r->op = op;
    r->attempt = attempt;
    r->awaited.partition = partition;
    r->awaited.deadline_ms = n->now_ms + REQUEST_TIMEOUT_MS;
    engine_await(n->engine, &r->awaited);
}

static void command_here(struct node *n, uint64_t op, uint32_t attempt)
{
    struct world *w = n->world;
    struct command_here *c = command_new(n);
    struct buffer packed = {0};
    struct bytes copy;
    struct fault fault;

    op_pack(w, op, &packed);
    copy = arena_copy(&c->routed.arena, buffer_bytes(&packed));
    buffer_release(&packed);
    if (routed_decode(&c->routed, copy,
                      w->ops[op].kind == OP_APPEND   ? COMMAND_APPEND
                      : w->ops[op].kind == OP_FORGET ? COMMAND_FORGET
                                                     : COMMAND_DISPATCH,
                      &fault) != STATUS_OK ||
        command_check(&c->routed.admitted.command, 1 << 16, &fault) != STATUS_OK) {
        broken(w, 8, "a sound command is refused: %s", fault.message);
        effect_released(n, &c->routed);
        return;
    }
    c->request = op << 32 | attempt;
    c->routed.partition = w->ops[op].partition;
    c->routed.admitted.deadline_ms = n->now_ms + REQUEST_TIMEOUT_MS;
    engine_take(n->engine, &c->routed);
}

void node_request(struct node *n, uint64_t op, uint32_t attempt)
{
    begin_turn(n);
    if (n->world->ops[op].kind == OP_READ)
        read_here(n, op, attempt);
    else
        command_here(n, op, attempt);
    engine_end(n->engine);
}

static void tell(struct node *n, int from, const struct replica_message *message)
{
    world_note(n->world,
               "%d > %d partition %u type %d term %llu index %llu^%llu commit %llu entries %zu "
               "rejected %llu",
               from, n->index, message->partition, message->type,
               (unsigned long long)message->term, (unsigned long long)message->log_index,
               (unsigned long long)message->log_term,
               (unsigned long long)message->leader_commit, message->entry_count,
               (unsigned long long)message->rejected);
}

void node_frame(struct node *n, int from, const struct frame *frame)
{
    for (size_t i = 0; n->world->verbose && i < frame->replica_message_count; i++)
        tell(n, from, &frame->replica_messages[i]);
    begin_turn(n);
    engine_frame(n->engine, n->world->ids[from], frame);
    engine_end(n->engine);
}

void node_executed(struct node *n, void *what)
{
    struct execution_here *e = what;
    struct execution_result result = {0};
    struct new_event event = {0};
    uint64_t body[3];

    begin_turn(n);
    if (!e->died)
        execution_answer(n->world, n->index, (int)e->worker, (struct bytes){e->packed, e->len},
                         &result, &event, body);
    engine_executed(n->engine, e->partition, e->execution_id, e->worker,
                    e->died ? NULL : &result);
    free(e);
    engine_end(n->engine);
}

/* ---- ranges ---- */

void node_damaged(struct node *n, uint16_t partition, const struct fault *fault)
{
    begin_turn(n);
    (void)engine_damaged(n->engine, partition, fault);
    engine_end(n->engine);
}

/* Copy the partition's range from a replica that has it, as server/range_fetch.c does page by page. */
static bool fetch_range(struct node *n, uint16_t p, uint64_t index, struct applied *applied)
{
    struct world *w = n->world;
    struct store_key meta = key_partition_meta(p, "applied");
    struct store_key from = key_partition_begin(p);
    struct store_key to = key_partition_end(p);
    struct arena arena = {0};
    struct bytes value;
    struct fault fault;
    enum status status = STATUS_NOT_FOUND;
    struct node *source = NULL;

    for (int i = 0; i < w->node_count; i++)
        if (i != n->index && w->nodes[i].alive && !w->cut[i][n->index] &&
            w->nodes[i].paused_until_us <= w->now_us && engine_replica(w->nodes[i].engine, p) != NULL &&
            partition_view(engine_replica(w->nodes[i].engine, p)).stored_index >= index)
            source = &w->nodes[i];
    if (source == NULL ||
        store_get(source->store, STORE_META, key_bytes(&meta), &arena, &value, &fault) !=
            STATUS_OK ||
        wire_applied_decode(value, applied, &fault) != STATUS_OK || applied->index < index) {
        arena_release(&arena);
        return false;
    }
    for (size_t f = 0; f < STORE_RANGE_FAMILIES && status == STATUS_NOT_FOUND; f++) {
        struct store_batch *batch = store_batch_new(n->store);
        struct store_cursor *cursor = store_cursor_new(source->store, store_range_families[f],
                                                       key_bytes(&from), key_bytes(&to), false);
        struct bytes key;

        if (store_range_families[f] == STORE_KEYS) /* some may be destroyed there */
            store_batch_delete_range(batch, STORE_KEYS, key_bytes(&from), key_bytes(&to));
        while ((status = store_cursor_next(cursor, &key, &value, &fault)) == STATUS_OK)
            store_batch_put(batch, store_range_families[f], key, value);
        store_cursor_free(cursor);
        if (store_write(n->store, batch, true, &fault) != STATUS_OK)
            abort(); /* memory */
        store_batch_free(batch);
    }
    arena_release(&arena);
    if (status == STATUS_DAMAGED)
        node_damaged(source, p, &fault);
    return status == STATUS_NOT_FOUND;
}

static void installed(struct node *n, uint16_t partition, const struct applied *applied)
{
    begin_turn(n);
    engine_installed(n->engine, partition, applied);
    engine_end(n->engine);
}

void node_range(struct node *n, uint16_t partition)
{
    struct world *w = n->world;
    struct applied applied;

    if (n->stop_range[partition]) {
        n->range_index[partition] = 0;
        installed(n, partition, NULL);
        return;
    }
    /* Pages go through the disk's queue like every write: behind what was applied before. */
    if (n->writes != NULL || !fetch_range(n, partition, n->range_index[partition], &applied)) {
        world_at(w, w->now_us + (n->writes != NULL ? 500 : 100000), EVENT_RANGE, n->index, partition,
                 NULL);
        return;
    }
    w->figures.ranges++;
    world_note(w, "node %d has the range of partition %u up to %llu", n->index, partition,
               (unsigned long long)applied.index);
    n->range_index[partition] = 0;
    installed(n, partition, &applied);
}

/* ---- bit rot ---- */

/* The first damaged record of the family, or (with `number`) the key of that record. */
static enum status walk(struct node *n, enum store_family family, uint16_t partition,
                        uint64_t number, struct buffer *found, struct fault *fault)
{
    struct store_key from = key_partition_begin(partition);
    struct store_key to = key_partition_end(partition);
    struct store_cursor *cursor =
        store_cursor_new(n->store, family, key_bytes(&from), key_bytes(&to), false);
    struct bytes key;
    struct bytes value;
    enum status status;

    while ((status = store_cursor_next(cursor, &key, &value, fault)) == STATUS_OK && number-- > 0) {
        found->len = 0;
        buffer_add(found, key.data, key.len);
    }
    store_cursor_free(cursor);
    return status;
}

void node_rot(struct node *n, uint16_t partition, uint64_t number)
{
    enum store_family family = store_range_families[number % STORE_RANGE_FAMILIES];
    struct buffer key = {0};
    struct fault fault;

    if (n->lost)
        return;
    (void)!walk(n, family, partition, 1 + number / 8 % 64, &key, &fault);
    if (key.len > 0 && store_memory_rot(n->store, family, buffer_bytes(&key), number >> 9))
        n->world->figures.rotten++;
    buffer_release(&key);
}

void node_scrub(struct node *n)
{
    struct buffer key = {0};
    struct fault fault;

    for (uint16_t p = 0; p <= PARTITIONS; p++)
        for (size_t f = 0; f < STORE_RANGE_FAMILIES; f++)
            if (engine_replica(n->engine, p) != NULL &&
                walk(n, store_range_families[f], p, UINT64_MAX, &key, &fault) == STATUS_DAMAGED)
                node_damaged(n, p, &fault);
    buffer_release(&key);
}

void node_append(struct node *n, uint16_t partition, struct bytes payload)
{
    struct blob *blob = blob_new(payload.len);

    memcpy(blob->data, payload.data, payload.len);
    begin_turn(n);
    (void)!engine_append(n->engine, partition, blob);
    engine_end(n->engine);
}

/* ---- an operator ---- */

static bool can_act(const struct node *n)
{
    return n->alive && n->paused_until_us <= n->world->now_us;
}

void node_transfer(struct node *n, uint16_t partition)
{
    if (!can_act(n))
        return;
    begin_turn(n);
    (void)!engine_transfer(n->engine, partition, 0);
    engine_end(n->engine);
}

bool node_order(struct node *n, const struct placement_order *order)
{
    uint64_t version;
    struct fault fault;
    enum status status;

    if (!can_act(n))
        return false;
    begin_turn(n);
    status = engine_order(n->engine, order, &version, &fault);
    engine_end(n->engine);
    return status == STATUS_OK;
}

void node_drain(struct node *n)
{
    if (!can_act(n))
        return;
    begin_turn(n);
    engine_drain(n->engine);
    engine_end(n->engine);
}

void node_processed(struct node *n, void *what)
{
    struct done_here *done = what;
    struct processing_failure failure = {BYTES_LITERAL("p"), false, BYTES_LITERAL("no")};

    begin_turn(n);
    engine_processed(n->engine, done->partition, done->ticket, &failure, done->failures > 0 ? 1 : 0);
    engine_end(n->engine);
    free(done);
}

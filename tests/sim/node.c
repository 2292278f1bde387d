/*
 * One node: what server/shard.c does around the sans-IO parts, with the world's clock, network and disk.
 * Every call from the world is one turn: feed, flush what was decided, hand one batch to the disk and
 * one frame to each peer.
 */
#include "sim.h"

/* A command at the aggregates of this node. */
struct command_here {
    struct admitted admitted;
    struct arena arena;
    struct command_here *next;
    uint64_t request; /* op << 32 | attempt */
    int from;         /* the node that proxied it, -1 for a client */
};

struct execution_here {
    uint16_t partition;
    uint64_t worker;
    uint64_t execution_id;
    bool died;
    size_t len;
    uint8_t packed[];
};

struct range_here {
    uint16_t partition;
    uint64_t index;
};

/* ---- clocks ---- */

static uint64_t monotonic_ms(const struct node *n)
{
    int64_t us = (int64_t)n->world->now_us;

    return (uint64_t)(1000 + (us + us / 1000000 * n->drift_ppm) / 1000 + n->jump_ms);
}

static void begin_turn(struct node *n)
{
    uint64_t now = monotonic_ms(n);

    if (now > n->turn.now_ms)
        n->turn.now_ms = now; /* monotonic, whatever the drift does */
    n->moment.now_ms = n->turn.now_ms;
    n->moment.wall_ms = 1700000000000 + (int64_t)n->turn.now_ms + n->wall_jump_ms;
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

static void fail_client(struct node *n, uint64_t request, enum status status, const char *reason)
{
    struct answer answer = {.status = status};

    snprintf(answer.reason, sizeof answer.reason, "%s", reason);
    answer_client(n, request, &answer);
}

static void answer_from(struct answer *answer, const struct outcome *outcome,
                        const struct fault *fault)
{
    *answer = (struct answer){.status = STATUS_OK};
    if (outcome != NULL) {
        answer->first_sequence = outcome->first_sequence;
        answer->event_count = outcome->event_count;
        answer->rejected = outcome->rejection.present;
    } else {
        answer->status = fault->status;
        snprintf(answer->reason, sizeof answer->reason, "%s", fault->reason);
    }
}

static void command_free(struct command_here *c)
{
    arena_release(&c->arena);
    free(c);
}

static void effect_answer(void *context, struct admitted *admitted, const struct outcome *outcome,
                          const struct fault *fault)
{
    struct slot *slot = context;
    struct node *n = slot->node;
    struct command_here *c = CONTAINER_OF(admitted, struct command_here, admitted);
    struct command_here **at = &n->commands;

    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    if (n->alive && c->from < 0) {
        struct answer answer;

        answer_from(&answer, outcome, fault);
        answer_client(n, c->request, &answer);
    } else if (n->alive) {
        struct command_result result = {.request_id = c->request};
        struct buffer packed = {0};

        if (outcome != NULL) {
            wire_outcome_pack(&packed, outcome);
            result.outcome = buffer_bytes(&packed);
        } else {
            result.status = fault->status;
            result.reason = bytes_of(fault->reason);
        }
        frame_add_result(&n->outbox[c->from], &result);
        buffer_release(&packed);
    }
    if (n->alive && outcome != NULL)
        oracle_durable(n, &n->world->ops[c->request >> 32], outcome);
    command_free(c);
}

/* ---- effects ---- */

static int index_of(const struct world *w, uint64_t id)
{
    for (int i = 0; i < w->node_count; i++)
        if (w->ids[i] == id)
            return i;
    return -1;
}

static void effect_send(void *context, struct partition *partition, uint64_t to,
                        const struct replica_message *message)
{
    struct node *n = ((struct slot *)context)->node;

    if (n->world->verbose)
        world_note(n->world,
                   "%d > %d partition %u type %d term %llu index %llu^%llu commit %llu entries %zu "
                   "rejected %llu",
                   n->index, index_of(n->world, to), partition_view(partition).id, message->type,
                   (unsigned long long)message->term, (unsigned long long)message->log_index,
                   (unsigned long long)message->log_term,
                   (unsigned long long)message->leader_commit, message->entry_count,
                   (unsigned long long)message->rejected);
    frame_add_replica_message(&n->outbox[index_of(n->world, to)], message);
}

static void effect_apply(void *context, struct partition *partition, uint64_t index,
                         struct bytes payload, struct applied *applied, struct store_batch *batch)
{
    struct slot *slot = context;
    struct fault fault;

    (void)partition;
    oracle_applied(slot->node, slot->id, index, payload);
    if (aggregates_committed(slot->aggregates, index, payload, applied, batch, &fault) != STATUS_OK)
        broken(slot->node->world, 3, "node %d refuses a committed entry: %s", slot->node->index,
               fault.message);
}

static void effect_ownership(void *context, struct partition *partition, bool owner)
{
    struct slot *slot = context;
    struct partition_view view = partition_view(partition);

    world_note(slot->node->world, "node %d %s partition %u in term %llu", slot->node->index,
               owner ? "owns" : "loses", slot->id, (unsigned long long)view.term);
    slot->node->world->figures.ownerships += owner;
    slot->touched = true;
    if (owner)
        aggregates_own(slot->aggregates, &view.applied);
    else
        aggregates_disown(slot->aggregates);
}

static void effect_need_range(void *context, struct partition *partition, uint64_t leader,
                              uint64_t index, uint64_t term)
{
    struct slot *slot = context;
    struct world *w = slot->node->world;
    struct range_here *range = memory_take(sizeof *range);

    (void)partition;
    (void)leader;
    (void)term;
    *range = (struct range_here){slot->id, index};
    slot->stop_range = false;
    world_at(w, w->now_us + 1000 + rng_below(&w->network_rng, 400000), EVENT_RANGE,
             slot->node->index, slot->id, range);
}

static void effect_stop_range(void *context, struct partition *partition)
{
    (void)partition;
    ((struct slot *)context)->stop_range = true;
}

static void effect_failed(void *context, struct partition *partition, const struct fault *fault)
{
    struct slot *slot = context;

    (void)partition;
    broken(slot->node->world, 2, "node %d: %s", slot->node->index, fault->message);
}

static enum status effect_submit(void *context, struct blob *payload, uint64_t *index)
{
    struct slot *slot = context;

    return partition_submit(slot->partition, payload, &slot->node->turn, index);
}

static enum status effect_barrier(void *context, uint64_t *index)
{
    struct slot *slot = context;

    return partition_read_barrier(slot->partition, &slot->node->turn, index);
}

static const struct cairn_aggregate_type *effect_module_type(void *context, struct bytes name)
{
    (void)context;
    return bytes_equal(name, BYTES_LITERAL("counter")) ? &sim_counter : NULL;
}

static enum status effect_pick_worker(void *context, const struct command *command, uint64_t hint,
                                      uint64_t *worker, struct fault *fault)
{
    struct world *w = ((struct slot *)context)->node->world;

    if (!bytes_equal(command->aggregate_type, BYTES_LITERAL("remote")))
        return fault_set(fault, STATUS_NO_HANDLER, "NO_HANDLER", "nobody");
    if (w->workers_faulty && rng_chance(&w->worker_rng, 100))
        return STATUS_UNAVAILABLE;
    *worker = hint != 0 && !rng_chance(&w->worker_rng, 100) ? hint
                                                            : 1 + rng_below(&w->worker_rng, WORKERS);
    return STATUS_OK;
}

static void effect_execute(void *context, uint64_t worker, uint64_t execution_id,
                           struct bytes packed, uint64_t deadline_ms)
{
    struct slot *slot = context;
    struct world *w = slot->node->world;
    struct execution_here *e = memory_zero(1, sizeof *e + packed.len);
    uint64_t after_us = 100 + rng_below(&w->worker_rng, 2000);
    uint64_t luck = w->workers_faulty ? rng_below(&w->worker_rng, 100) : 100;

    (void)deadline_ms;
    *e = (struct execution_here){slot->id, worker, execution_id, luck < 20, packed.len};
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
        world_at(w, w->now_us + after_us + 500, EVENT_EXECUTED, slot->node->index, execution_id,
                 again);
    }
    world_at(w, w->now_us + after_us, EVENT_EXECUTED, slot->node->index, execution_id, e);
}

static uint64_t effect_stored_index(void *context)
{
    return partition_stored_index(((struct slot *)context)->partition);
}

static uint64_t effect_applied_index(void *context)
{
    return partition_view(((struct slot *)context)->partition).applied.index;
}

/* ---- reads ---- */

static uint64_t events_of(struct node *n, uint16_t partition, int aggregate)
{
    char name[16];
    struct bytes id = bytes_of(aggregate_name(aggregate, name, sizeof name));
    struct store_key from = key_event(partition, id, 0);
    struct store_key to = key_event_end(partition, id);
    struct store_cursor *cursor =
        store_cursor_new(n->store, STORE_EVENTS, key_bytes(&from), key_bytes(&to), true);
    struct bytes key;
    struct bytes value;
    struct fault fault;
    uint64_t count = 0;

    if (store_cursor_next(cursor, &key, &value, &fault) == STATUS_OK)
        count = key_last_number(key) + 1;
    store_cursor_free(cursor);
    return count;
}

static void end_read(struct node *n, const struct waiting_read *r, bool good)
{
    if (r->asked_by >= 0) {
        struct read_index result = {.request_id = r->op << 32 | r->attempt,
                                    .index = good ? r->read_index : 0};

        frame_add_read_result(&n->outbox[r->asked_by], &result);
    } else if (good) {
        struct answer answer = {.status = STATUS_OK, .is_read = true};

        answer.count = events_of(n, r->partition, n->world->ops[r->op].aggregate);
        answer_client(n, r->op << 32 | r->attempt, &answer);
    } else {
        fail_client(n, r->op << 32 | r->attempt, STATUS_UNAVAILABLE, "NOT_OWNER");
    }
}

static void go_on_reading(struct node *n)
{
    struct waiting_read **at = &n->reads;

    while (*at != NULL) {
        struct waiting_read *r = *at;
        const struct partition *partition = n->slots[r->partition].partition;
        bool ours = r->term == 0 || (partition_is_owner(partition) &&
                                     partition_view(partition).term == r->term);

        if (ours && partition_stored_index(partition) < r->barrier) {
            at = &r->next;
            continue;
        }
        end_read(n, r, ours);
        *at = r->next;
        free(r);
    }
}

static void wait_to_read(struct node *n, struct waiting_read read)
{
    struct waiting_read *r = memory_take(sizeof *r);

    *r = read;
    r->next = n->reads;
    n->reads = r;
}

static bool begin_read(struct node *n, uint64_t request, uint16_t partition, int asked_by)
{
    struct slot *slot = &n->slots[partition];
    struct waiting_read r = {.op = request >> 32,
                             .attempt = (uint32_t)request,
                             .asked_by = asked_by,
                             .partition = partition};

    if (slot->partition == NULL)
        return false;
    r.read_index = partition_view(slot->partition).commit_index;
    r.term = partition_view(slot->partition).term;
    if (partition_read_barrier(slot->partition, &n->turn, &r.barrier) != STATUS_OK)
        return false;
    wait_to_read(n, r);
    return true;
}

/* ---- the turn ---- */

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

static void write_batch(struct node *n)
{
    struct write *write = memory_take(sizeof *write);

    *write = (struct write){NULL, n->turn.batch, n->turn.ticket};
    *n->writes_end = write;
    n->writes_end = &write->next;
    n->turn.batch = store_batch_new(n->store);
    n->turn.ticket++;
    n->world->figures.writes++;
    if (!n->disk_busy)
        start_disk(n);
}

static void end_turn(struct node *n)
{
    for (int i = 0; i < PARTITIONS; i++)
        if (n->slots[i].aggregates != NULL && n->slots[i].touched) {
            n->slots[i].touched = false;
            aggregates_flush(n->slots[i].aggregates, n->moment);
        }
    go_on_reading(n);
    if (store_batch_count(n->turn.batch) > 0)
        write_batch(n);
    for (int i = 0; i < n->world->node_count; i++)
        if (n->outbox[i].len > 0) {
            network_send(n->world, n->index, i, buffer_bytes(&n->outbox[i]));
            n->outbox[i].len = 0;
        }
}

/* ---- life and death ---- */

void node_start(struct node *n)
{
    struct world *w = n->world;

    n->alive = true;
    n->life++;
    n->disk_busy = false;
    n->turn.batch = store_batch_new(n->store);
    n->turn.ticket = 1;
    world_note(w, "node %d starts", n->index);
    begin_turn(n);
    for (uint16_t p = 0; p < PARTITIONS; p++) {
        struct slot *slot = &n->slots[p];
        struct partition_settings settings = {.id = p,
                                              .node_id = n->id,
                                              .replicas = w->sets[p].replicas,
                                              .replica_count = w->sets[p].count,
                                              .election_ms = 300,
                                              .heartbeat_ms = 100,
                                              .checkpoint_entries = 24,
                                              .seed = (uint32_t)rng_next(&w->network_rng)};
        struct partition_effects effects = {slot,
                                            effect_send,
                                            effect_apply,
                                            effect_ownership,
                                            effect_need_range,
                                            effect_stop_range,
                                            effect_failed};
        struct aggregates_settings aggregate_settings = {.partition = p,
                                                         .payload_bytes_max = 1 << 16,
                                                         .snapshot_every = 5,
                                                         .cache_bytes = 1 << 20,
                                                         .cache_count = 2};
        struct aggregates_effects aggregate_effects = {
            slot,
            effect_submit,
            effect_barrier,
            effect_answer,
            effect_module_type,
            effect_pick_worker,
            effect_execute,
            effect_stored_index,
            effect_applied_index,
        };
        struct fault fault;
        bool here = false;

        *slot = (struct slot){.node = n, .id = p};
        for (size_t i = 0; i < w->sets[p].count; i++)
            here = here || w->sets[p].replicas[i] == n->id;
        if (!here)
            continue;
        slot->aggregates = aggregates_new(&aggregate_settings, &aggregate_effects, n->store);
        if (partition_new(&slot->partition, &settings, &effects, n->store, &n->turn, &fault) !=
            STATUS_OK)
            broken(w, 2, "node %d can't start: %s", n->index, fault.message);
    }
    if (w->broken_promise != 0)
        return;
    end_turn(n);
    world_at(w, w->now_us + GRID_MS * 1000, EVENT_TICK, n->index, 0, NULL);
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

void node_crash(struct node *n, const char *why)
{
    world_note(n->world, "node %d stops: %s", n->index, why);
    n->alive = false;
    n->paused_until_us = 0;
    for (int i = 0; i < PARTITIONS; i++) {
        aggregates_free(n->slots[i].aggregates);
        if (n->slots[i].partition != NULL)
            partition_free(n->slots[i].partition);
        n->slots[i] = (struct slot){.node = n, .id = (uint16_t)i};
    }
    assert(n->commands == NULL);
    while (n->reads != NULL) {
        struct waiting_read *next = n->reads->next;

        free(n->reads);
        n->reads = next;
    }
    for (int i = 0; i < NODES_MAX; i++)
        n->outbox[i].len = 0;
    store_batch_free(n->turn.batch);
    n->turn.batch = NULL;
    lose_writes(n);
}

void node_release(struct node *n)
{
    for (int i = 0; i < NODES_MAX; i++)
        buffer_release(&n->outbox[i]);
    store_free(n->store);
}

/* ---- what the world brings ---- */

void node_tick(struct node *n)
{
    begin_turn(n);
    for (int i = 0; i < PARTITIONS; i++) {
        struct slot *slot = &n->slots[i];

        if (slot->partition == NULL)
            continue;
        partition_tick(slot->partition, &n->turn);
        aggregates_tick(slot->aggregates, n->moment);
        slot->touched = true;
    }
    end_turn(n);
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
    for (int i = 0; i < PARTITIONS; i++) {
        struct slot *slot = &n->slots[i];

        if (slot->partition == NULL)
            continue;
        partition_written(slot->partition, last, &n->turn);
        aggregates_stored(slot->aggregates, partition_stored_index(slot->partition), n->moment);
        slot->touched = true;
    }
    end_turn(n);
}

static uint64_t leader_of(struct slot *slot)
{
    return slot->partition == NULL ? 0 : partition_view(slot->partition).leader;
}

static void admit(struct node *n, uint64_t request, int from, uint16_t partition,
                  enum command_kind kind, struct bytes packed, uint64_t timeout_ms)
{
    struct command_here *c = memory_zero(1, sizeof *c);
    struct bytes copy = arena_copy(&c->arena, packed);
    struct fault fault;
    enum status status =
        kind == COMMAND_APPEND
            ? wire_append_decode(copy, &c->arena, &c->admitted.command, &fault)
            : wire_dispatch_decode(copy, &c->arena, &c->admitted.command, &fault);

    if (status != STATUS_OK ||
        command_check(&c->admitted.command, 1 << 16, &fault) != STATUS_OK) {
        broken(n->world, 8, "a sound command is refused: %s", fault.message);
        command_free(c);
        return;
    }
    c->request = request;
    c->from = from;
    c->admitted.deadline_ms = n->turn.now_ms + timeout_ms;
    c->next = n->commands;
    n->commands = c;
    n->slots[partition].touched = true;
    aggregates_admit(n->slots[partition].aggregates, &c->admitted, n->moment);
}

void node_request(struct node *n, uint64_t op_index, uint32_t attempt)
{
    struct world *w = n->world;
    const struct op *op = &w->ops[op_index];
    uint64_t request = op_index << 32 | attempt;
    struct slot *slot = &n->slots[op->partition];
    uint64_t leader;
    struct buffer packed = {0};
    int to;

    begin_turn(n);
    leader = leader_of(slot);
    if (leader == 0 && slot->partition == NULL) /* no replica here: any that has one knows more */
        leader = w->sets[op->partition].replicas[rng_below(&w->client_rng,
                                                           w->sets[op->partition].count)];
    to = index_of(w, leader);
    op_pack(w, op_index, &packed);
    if (slot->partition != NULL && partition_is_owner(slot->partition)) {
        if (op->kind != OP_READ)
            admit(n, request, -1, op->partition,
                  op->kind == OP_APPEND ? COMMAND_APPEND : COMMAND_DISPATCH, buffer_bytes(&packed),
                  2000);
        else if (!begin_read(n, request, op->partition, -1))
            fail_client(n, request, STATUS_UNAVAILABLE, "NOT_OWNER");
    } else if (to < 0 || to == n->index) {
        fail_client(n, request, STATUS_UNAVAILABLE, "NO_OWNER");
    } else if (op->kind == OP_READ && slot->partition != NULL) {
        struct read_index ask = {.request_id = request, .partition = op->partition};

        frame_add_read_request(&n->outbox[to], &ask);
    } else if (op->kind == OP_READ) {
        fail_client(n, request, STATUS_UNAVAILABLE, "NO_REPLICA");
    } else {
        struct forwarded_command forward = {
            .request_id = request,
            .partition = op->partition,
            .hops = 1,
            .timeout_ms = 2000,
            .kind = op->kind == OP_APPEND ? COMMAND_APPEND : COMMAND_DISPATCH,
            .request = buffer_bytes(&packed),
        };

        frame_add_command(&n->outbox[to], &forward);
    }
    buffer_release(&packed);
    end_turn(n);
}

static void take_result(struct node *n, const struct command_result *in)
{
    struct arena arena = {0};
    struct outcome outcome;
    struct fault fault = {.status = (enum status)in->status};
    struct answer answer;

    if (in->outcome.len > 0 &&
        wire_outcome_decode(in->outcome, &arena, &outcome, &fault) != STATUS_OK) {
        broken(n->world, 4, "an outcome doesn't decode: %s", fault.message);
        return;
    }
    snprintf(fault.reason, sizeof fault.reason, "%.*s", (int)in->reason.len,
             (const char *)in->reason.data);
    answer_from(&answer, in->outcome.len > 0 ? &outcome : NULL, &fault);
    answer_client(n, in->request_id, &answer);
    arena_release(&arena);
}

void node_frame(struct node *n, int from, const struct frame *frame)
{
    struct world *w = n->world;

    begin_turn(n);
    for (size_t i = 0; i < frame->replica_message_count; i++) {
        struct slot *slot = &n->slots[frame->replica_messages[i].partition];

        if (slot->partition != NULL) {
            partition_receive(slot->partition, w->ids[from], &frame->replica_messages[i], &n->turn);
            slot->touched = true;
        }
    }
    for (size_t i = 0; i < frame->command_count; i++) {
        const struct forwarded_command *c = &frame->commands[i];
        struct slot *slot = &n->slots[c->partition];

        if (slot->partition != NULL && partition_is_owner(slot->partition)) {
            admit(n, c->request_id, from, (uint16_t)c->partition, c->kind, c->request,
                  c->timeout_ms);
        } else {
            struct command_result result = {.request_id = c->request_id,
                                            .status = STATUS_NOT_OWNER,
                                            .reason = BYTES_LITERAL("NOT_OWNER")};

            frame_add_result(&n->outbox[from], &result);
        }
    }
    for (size_t i = 0; i < frame->result_count; i++)
        take_result(n, &frame->results[i]);
    for (size_t i = 0; i < frame->read_request_count; i++) {
        const struct read_index *ask = &frame->read_requests[i];

        if (!begin_read(n, ask->request_id, (uint16_t)ask->partition, from)) {
            struct read_index none = {.request_id = ask->request_id};

            frame_add_read_result(&n->outbox[from], &none);
        }
    }
    for (size_t i = 0; i < frame->read_result_count; i++) {
        const struct read_index *result = &frame->read_results[i];
        uint64_t op = result->request_id >> 32;

        if (result->index == 0)
            fail_client(n, result->request_id, STATUS_UNAVAILABLE, "NOT_OWNER");
        else
            wait_to_read(n, (struct waiting_read){.op = op,
                                                  .attempt = (uint32_t)result->request_id,
                                                  .asked_by = -1,
                                                  .partition = w->ops[op].partition,
                                                  .barrier = result->index});
    }
    end_turn(n);
}

void node_executed(struct node *n, uint64_t number, void *what)
{
    struct execution_here *e = what;
    struct aggregates *aggregates = n->slots[e->partition].aggregates;
    struct execution_result result = {0};
    struct new_event event = {0};
    uint64_t body[3];

    (void)number;
    begin_turn(n);
    if (aggregates != NULL) {
        if (!e->died)
            execution_answer(n->world, n->index, (int)e->worker,
                             (struct bytes){e->packed, e->len}, &result, &event, body);
        aggregates_executed(aggregates, e->execution_id, e->worker, e->died ? NULL : &result,
                            n->moment);
        n->slots[e->partition].touched = true;
    }
    free(e);
    end_turn(n);
}

/* Copy the partition's range from a replica that has it, as server/range_fetch.c does page by page. */
static bool fetch_range(struct node *n, uint16_t p, uint64_t index, struct applied *applied)
{
    static const enum store_family families[] = {STORE_EVENTS, STORE_POSITIONS, STORE_SNAPSHOTS,
                                                 STORE_OUTCOMES, STORE_CURSORS};
    struct world *w = n->world;
    struct store_key meta = key_partition_meta(p, "applied");
    struct store_key from = key_partition_begin(p);
    struct store_key to = key_partition_end(p);
    struct arena arena = {0};
    struct bytes value;
    struct fault fault;
    struct node *source = NULL;

    for (int i = 0; i < w->node_count; i++)
        if (i != n->index && w->nodes[i].alive && !w->cut[i][n->index] &&
            w->nodes[i].paused_until_us <= w->now_us && w->nodes[i].slots[p].partition != NULL &&
            partition_view(w->nodes[i].slots[p].partition).stored_index >= index)
            source = &w->nodes[i];
    if (source == NULL ||
        store_get(source->store, STORE_META, key_bytes(&meta), &arena, &value, &fault) !=
            STATUS_OK ||
        wire_applied_decode(value, applied, &fault) != STATUS_OK || applied->index < index) {
        arena_release(&arena);
        return false;
    }
    for (size_t f = 0; f < COUNT_OF(families); f++) {
        struct store_batch *batch = store_batch_new(n->store);
        struct store_cursor *cursor = store_cursor_new(source->store, families[f],
                                                       key_bytes(&from), key_bytes(&to), false);
        struct bytes key;

        while (store_cursor_next(cursor, &key, &value, &fault) == STATUS_OK)
            store_batch_put(batch, families[f], key, value);
        store_cursor_free(cursor);
        if (store_write(n->store, batch, true, &fault) != STATUS_OK)
            abort(); /* memory */
        store_batch_free(batch);
    }
    arena_release(&arena);
    return true;
}

void node_range(struct node *n, void *what)
{
    struct range_here *range = what;
    struct slot *slot = &n->slots[range->partition];
    struct applied applied;

    if (slot->partition == NULL || !partition_view(slot->partition).installing) {
        free(range);
        return;
    }
    if (slot->stop_range) {
        free(range);
        begin_turn(n);
        partition_installed(slot->partition, NULL, &n->turn);
        slot->touched = true;
        end_turn(n);
        return;
    }
    /* Pages go through the disk's queue like every write: behind what was applied before. */
    if (n->writes != NULL || !fetch_range(n, range->partition, range->index, &applied)) {
        world_at(n->world, n->world->now_us + (n->writes != NULL ? 500 : 100000), EVENT_RANGE, n->index, range->partition,
                 range);
        return;
    }
    n->world->figures.ranges++;
    world_note(n->world, "node %d has the range of partition %u up to %llu", n->index,
               range->partition, (unsigned long long)applied.index);
    begin_turn(n);
    partition_installed(slot->partition, &applied, &n->turn);
    slot->touched = true;
    free(range);
    end_turn(n);
}

void node_transfer(struct node *n, uint16_t partition)
{
    struct slot *slot = &n->slots[partition];

    if (!n->alive || slot->partition == NULL || n->paused_until_us > n->world->now_us)
        return;
    begin_turn(n);
    (void)!partition_transfer(slot->partition, 0, &n->turn);
    slot->touched = true;
    end_turn(n);
}

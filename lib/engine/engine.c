/* The turn: letters in, one batch and one frame for each peer out; timers of all partitions on a grid. */
#include "parts.h"

enum {
    GRID_MS = 25, /* timers fire together, so that heartbeats of all partitions share frames */
    BALANCE_MS = 250,
    ANNOUNCE_MS = 2000,
    BALANCE_RETRY_MS = 5000,
    BALANCE_MOVES = 4,
    /* A disk that gives damaged records back after so many repairs isn't one to go on with. */
    REPAIRS_MAX = 8,
};

uint32_t engine_partitions(const struct engine *engine)
{
    return engine->settings.founding->partition_count;
}

uint32_t engine_partition_of(const struct founding *founding, struct bytes aggregate_id)
{
    return (uint32_t)(hash_bytes(aggregate_id) % founding->partition_count);
}

static bool is_ours(const struct engine *engine, uint32_t partition)
{
    return partition < engine->slot_count &&
           partition % engine->settings.count == engine->settings.index;
}

/* ---- frames ---- */

struct buffer *engine_outbox(struct engine *engine, uint64_t to)
{
    for (size_t i = 0; i < engine->outbox_count; i++)
        if (engine->outboxes[i].node_id == to)
            return &engine->outboxes[i].frame;
    engine->outboxes =
        memory_grow(engine->outboxes, (engine->outbox_count + 1) * sizeof *engine->outboxes);
    engine->outboxes[engine->outbox_count] = (struct outbox){.node_id = to};
    return &engine->outboxes[engine->outbox_count++].frame;
}

static bool result_is_ours(const struct engine *engine, uint64_t request_id)
{
    return (request_id & 0xFF) == engine->settings.index;
}

static bool from_leader(const struct replica_message *message)
{
    return message->type == REPLICA_APPEND_ENTRIES || message->type == REPLICA_INSTALL_SNAPSHOT;
}

/* True when there is a replica here for the message: a leader that has this node in its configuration brings
 * one into being. */
static bool joined(struct slot *slot, const struct replica_message *message)
{
    struct fault fault;

    if (slot->partition != NULL)
        return true;
    if (!from_leader(message))
        return false;
    journal(JOURNAL_INFO, "replica-joins", "partition %u", slot->id);
    if (slot_open(slot, SLOT_JOINS, &fault) == STATUS_OK)
        return true;
    slot_close(slot);
    slot->engine->effects.failed(slot->engine->effects.context, &fault);
    return false;
}

void engine_frame(struct engine *engine, uint64_t from, const struct frame *frame)
{
    for (size_t i = 0; i < frame->replica_message_count; i++) {
        const struct replica_message *message = &frame->replica_messages[i];
        struct slot *slot = slot_of(engine, message->partition);

        if (slot == NULL || !is_ours(engine, message->partition) || !joined(slot, message))
            continue;
        if (from_leader(message))
            slot->unwanted_since = 0;
        partition_receive(slot->partition, from, message, &engine->turn);
    }
    for (size_t i = 0; i < frame->owner_count; i++) {
        const struct owner_note *note = &frame->owners[i];

        if (!is_ours(engine, note->partition))
            continue;
        if (slot_route(slot_of(engine, note->partition), note))
            engine->rescan = true;
        placed_heard(slot_of(engine, note->partition), note);
    }
    placed_frame(engine, from, frame);
    for (size_t i = 0; i < frame->command_count; i++)
        if (is_ours(engine, frame->commands[i].partition))
            router_take_forwarded(engine, from, &frame->commands[i]);
    for (size_t i = 0; i < frame->result_count; i++)
        if (result_is_ours(engine, frame->results[i].request_id))
            router_take_result(engine, from, &frame->results[i]);
    for (size_t i = 0; i < frame->read_request_count; i++)
        if (is_ours(engine, frame->read_requests[i].partition))
            read_index_serve(engine, from, &frame->read_requests[i]);
    for (size_t i = 0; i < frame->read_result_count; i++)
        if (result_is_ours(engine, frame->read_results[i].request_id))
            read_index_take(engine, &frame->read_results[i]);
}

void tell_owned(struct engine *engine, const struct slot *slot, uint64_t node_id)
{
    struct owner_note note;

    slot_note(slot, &note);
    frame_add_owner(engine_outbox(engine, node_id), &note);
}

/* A peer is reachable (again): tell it what we own, so that it needs not ask. */
static void greet(struct engine *engine, uint64_t node_id)
{
    for (size_t i = 0; i < engine->slot_count; i++) {
        struct slot *slot = &engine->slots[i];

        if (slot->partition != NULL && partition_is_owner(slot->partition))
            tell_owned(engine, slot, node_id);
    }
    placed_greet(engine, node_id);
    engine->rescan = true;
}

/* Who holds no replica learns of an owner only by its notes, and one may be lost: the peer's engine may not have
 * begun yet, or its queue was full. Without a word from it again the peer would never know. */
static void announce_again(struct engine *engine)
{
    if (engine->moment.now_ms < engine->next_announce)
        return;
    engine->next_announce = engine->moment.now_ms + ANNOUNCE_MS;
    for (size_t i = 0; i < engine->slot_count; i++) {
        struct slot *slot = &engine->slots[i];

        if (slot->partition == NULL || !partition_is_owner(slot->partition))
            continue;
        for (size_t j = 0; j < engine->peer_count; j++)
            if (slot->system != NULL || !replica_set_holds(&slot->known.voters, engine->peers[j]))
                tell_owned(engine, slot, engine->peers[j]);
    }
}

void engine_link(struct engine *engine, uint64_t node_id, bool up)
{
    size_t i = 0;

    while (i < engine->peer_count && engine->peers[i] != node_id)
        i++;
    if (up && i == engine->peer_count) {
        engine->peers = memory_grow(engine->peers, (i + 1) * sizeof *engine->peers);
        engine->peers[engine->peer_count++] = node_id;
    } else if (!up && i < engine->peer_count) {
        engine->peers[i] = engine->peers[--engine->peer_count];
    }
    if (up)
        greet(engine, node_id);
    else
        router_link_lost(engine, node_id);
}

/* ---- what else comes ---- */

void engine_written(struct engine *engine, uint64_t ticket)
{
    for (size_t i = 0; i < engine->slot_count; i++) {
        struct slot *slot = &engine->slots[i];
        uint64_t before;

        if (slot->partition == NULL)
            continue;
        before = partition_stored_index(slot->partition);
        if (!partition_written(slot->partition, ticket, &engine->turn))
            continue;
        aggregates_stored(slot->aggregates, partition_stored_index(slot->partition),
                          engine->moment);
        if (partition_stored_index(slot->partition) > before)
            engine->effects.stored(engine->effects.context, slot->id);
        slot->touched = true;
    }
    engine->stored_moved = true;
}

void engine_executed(struct engine *engine, uint32_t partition, uint64_t execution_id,
                     uint64_t worker, const struct execution_result *result)
{
    struct slot *slot = slot_of(engine, partition);

    if (slot == NULL || slot->aggregates == NULL)
        return;
    aggregates_executed(slot->aggregates, execution_id, worker, result, engine->moment);
    slot->touched = true;
}

void engine_processed(struct engine *engine, uint32_t partition, uint64_t ticket,
                      const struct processing_failure *failures, size_t failure_count)
{
    struct slot *slot = slot_of(engine, partition);

    if (slot != NULL && slot->aggregates != NULL)
        aggregates_processed(slot->aggregates, ticket, failures, failure_count);
}

void engine_workers_changed(struct engine *engine)
{
    for (size_t i = 0; i < engine->slot_count; i++)
        if (engine->slots[i].aggregates != NULL) {
            aggregates_workers_changed(engine->slots[i].aggregates, engine->moment);
            engine->slots[i].touched = true;
        }
}

void engine_installed(struct engine *engine, uint32_t partition, const struct applied *applied)
{
    struct slot *slot = slot_of(engine, partition);
    struct fault fault;

    if (slot->partition == NULL)
        return;
    if (slot->system != NULL && slot_open_system(slot, &fault) != STATUS_OK) {
        engine->effects.failed(engine->effects.context, &fault);
        return;
    }
    partition_installed(slot->partition, applied, &engine->turn);
    engine->effects.stored(engine->effects.context, partition);
    slot->touched = true;
}

enum status engine_append(struct engine *engine, uint32_t partition, struct blob *payload)
{
    struct slot *slot = slot_of(engine, partition);
    uint64_t index;

    if (slot == NULL || slot->partition == NULL) {
        blob_drop(payload);
        return STATUS_NOT_OWNER;
    }
    aggregates_flush(slot->aggregates, engine->moment); /* its entries are in the order of its decisions */
    return partition_submit(slot->partition, payload, &engine->turn, &index);
}

enum status engine_transfer(struct engine *engine, uint32_t partition, uint64_t to)
{
    struct slot *slot = slot_of(engine, partition);

    if (slot == NULL || slot->partition == NULL)
        return STATUS_NOT_OWNER;
    slot->touched = true;
    return partition_transfer(slot->partition, to, &engine->turn);
}

void engine_drain(struct engine *engine)
{
    engine->draining = true;
    for (uint32_t i = 0; i < engine->slot_count; i++)
        if (engine->slots[i].partition != NULL && slot_voters(&engine->slots[i])->count > 1)
            (void)!engine_transfer(engine, i, 0);
}

/* ---- damage ---- */

bool engine_damaged(struct engine *engine, uint32_t partition, const struct fault *fault)
{
    struct slot *slot = slot_of(engine, partition);

    size_t voters;

    if (slot == NULL || slot->partition == NULL)
        return false;
    voters = slot_voters(slot)->count;
    if (voters > 1 && !slot->damaged && !partition_view(slot->partition).repairing) {
        journal(JOURNAL_ERROR, "record-damaged",
                "%s; getting partition %u anew from its other replicas", fault->message, partition);
    } else if (voters == 1 && engine->moment.now_ms >= engine->next_complaint) {
        engine->next_complaint = engine->moment.now_ms + 1000;
        journal(JOURNAL_ERROR, "record-damaged",
                "%s; no other node has it: restore it from a backup", fault->message);
    }
    slot->damaged = voters > 1;
    return slot->damaged;
}

/* At the end of the turn: nothing of the partition is at work then. */
static void repair(struct engine *engine, struct slot *slot)
{
    struct fault fault;

    slot->damaged = false;
    if (partition_view(slot->partition).repairing)
        return;
    if (++slot->repairs > REPAIRS_MAX) {
        (void)fault_set(&fault, STATUS_DAMAGED, "DISK_DAMAGED",
                        "partition %u was repaired %d times and is damaged again; check the disk, "
                        "then replace this node's data directory",
                        slot->id, REPAIRS_MAX);
        engine->effects.failed(engine->effects.context, &fault);
        return;
    }
    engine->effects.count(engine->effects.context, ENGINE_REPAIRED);
    (void)!partition_repair(slot->partition, &engine->turn);
    slot->touched = true;
}

static void repair_damaged(struct engine *engine)
{
    for (size_t i = 0; i < engine->slot_count; i++)
        if (engine->slots[i].damaged)
            repair(engine, &engine->slots[i]);
}

/* ---- time ---- */

/* Hand a partition back to its preferred owner once both are settled. */
static void balance(struct engine *engine)
{
    const struct engine_effects *effects = &engine->effects;
    uint64_t now = engine->moment.now_ms;
    int moves = 0;

    if (now < engine->next_balance || engine->draining)
        return;
    engine->next_balance = now + BALANCE_MS;
    for (size_t i = 0; i < engine->slot_count && moves < BALANCE_MOVES; i++) {
        struct slot *slot = &engine->slots[i];
        uint64_t home = slot->target.replicas[0];

        if (slot->partition == NULL || home == engine->settings.node_id ||
            now < slot->transfer_after || !partition_is_owner(slot->partition) ||
            !replica_set_holds(&slot->known.voters, home) ||
            !effects->reachable(effects->context, home) ||
            !effects->alive(effects->context, home) ||
            !partition_replica_current(slot->partition, home))
            continue;
        slot->transfer_after = now + BALANCE_RETRY_MS;
        if (partition_transfer(slot->partition, home, &engine->turn) == STATUS_OK)
            moves++;
    }
}

/* On the grid; an idle engine sleeps until a partition wants something. */
static uint64_t next_tick(const struct engine *engine)
{
    uint64_t now = engine->moment.now_ms;
    uint64_t next = now + engine->settings.heartbeat_ms;

    if (engine->routed_count > 0 || engine->reads != NULL || engine->index_waits != NULL)
        next = now + 1;
    for (size_t i = 0; i < engine->slot_count; i++)
        if (engine->slots[i].partition != NULL &&
            partition_deadline(engine->slots[i].partition) < next)
            next = partition_deadline(engine->slots[i].partition);
    if (next <= now)
        next = now + 1;
    return (next + GRID_MS - 1) / GRID_MS * GRID_MS;
}

static void tick_slot(struct engine *engine, struct slot *slot)
{
    struct partition_view view;
    struct aggregates_view aggregates = aggregates_view(slot->aggregates);

    partition_tick(slot->partition, &engine->turn);
    if (slot->system != NULL)
        system_tick(slot->system, engine->moment.now_ms);
    view = partition_view(slot->partition);
    if (view.leader != 0 && view.leader != engine->settings.node_id) {
        struct owner_note note;

        slot_note(slot, &note);
        if (slot_route(slot, &note))
            engine->rescan = true;
    }
    if (aggregates.waiting > 0 || aggregates.executing > 0 || aggregates.rewrapping) {
        aggregates_tick(slot->aggregates, engine->moment);
        slot->touched = true;
    }
}

static void tick(struct engine *engine)
{
    if (engine->moment.now_ms < engine->next_tick)
        return;
    for (size_t i = 0; i < engine->slot_count; i++)
        if (engine->slots[i].partition != NULL)
            tick_slot(engine, &engine->slots[i]);
    placed_tick(engine);
    balance(engine);
    announce_again(engine);
    router_tick(engine, false);
    read_index_tick(engine);
    engine->next_tick = next_tick(engine);
}

uint64_t engine_deadline(const struct engine *engine)
{
    return engine->next_tick;
}

/* ---- the turn ---- */

void engine_begin(struct engine *engine, struct moment moment, uint16_t disk_free_mib)
{
    engine->moment = moment;
    engine->turn.now_ms = moment.now_ms;
    engine->turn.disk_free_mib = disk_free_mib;
}

static void flush_touched(struct engine *engine)
{
    for (size_t i = 0; i < engine->slot_count; i++) {
        struct slot *slot = &engine->slots[i];

        if (slot->touched && slot->aggregates != NULL)
            aggregates_flush(slot->aggregates, engine->moment);
        slot->touched = false;
    }
}

static void hand_over(struct engine *engine)
{
    const struct engine_effects *effects = &engine->effects;

    if (store_batch_count(engine->turn.batch) > 0) {
        effects->persist(effects->context, engine->turn.batch, engine->turn.ticket);
        engine->turn.batch = effects->empty_batch(effects->context);
        engine->turn.ticket++;
    }
    for (size_t i = 0; i < engine->outbox_count; i++)
        if (engine->outboxes[i].frame.len > 0) {
            effects->send(effects->context, engine->outboxes[i].node_id,
                          buffer_bytes(&engine->outboxes[i].frame));
            engine->outboxes[i].frame.len = 0;
        }
    router_release(engine);
}

void engine_end(struct engine *engine)
{
    uint64_t soon = (engine->moment.now_ms / GRID_MS + 1) * GRID_MS;

    tick(engine);
    if ((engine->routed_count > 0 || engine->reads != NULL || engine->index_waits != NULL) &&
        soon < engine->next_tick)
        engine->next_tick = soon;
    flush_touched(engine);
    repair_damaged(engine);
    if (engine->rescan) {
        engine->rescan = false;
        router_tick(engine, true);
        flush_touched(engine);
    }
    if (engine->stored_moved) {
        engine->stored_moved = false;
        read_index_tick(engine);
    }
    hand_over(engine);
}

/* ---- what it knows ---- */

struct engine_view engine_view(const struct engine *engine)
{
    struct engine_view view = {.requests = engine->routed_count};

    for (size_t i = 0; i < engine->slot_count; i++) {
        const struct slot *slot = &engine->slots[i];
        struct aggregates_view aggregates;
        struct partition_view raft;

        if (slot->partition == NULL)
            continue;
        aggregates = aggregates_view(slot->aggregates);
        raft = partition_view(slot->partition);
        view.replicas++;
        view.owned += raft.owner && slot->id < engine_partitions(engine);
        view.leading += raft.leading;
        view.movable += slot_voters(slot)->count > 1 && raft.leading;
        view.lagging += raft.installing;
        view.uncommitted +=
            raft.last_index > raft.commit_index ? raft.last_index - raft.commit_index : 0;
        view.unstored +=
            raft.commit_index > raft.stored_index ? raft.commit_index - raft.stored_index : 0;
        if (raft.term > view.highest_term)
            view.highest_term = raft.term;
        view.waiting += aggregates.waiting;
        view.in_flight += aggregates.in_flight;
        view.executing += aggregates.executing;
        view.processing += aggregates.processing;
        view.cached += aggregates.cached;
    }
    return view;
}

uint64_t engine_owner(const struct engine *engine, uint32_t partition, uint64_t *epoch)
{
    return slot_owner(slot_of(engine, partition), epoch);
}

const struct partition *engine_replica(const struct engine *engine, uint32_t partition)
{
    return slot_of(engine, partition)->partition;
}

struct aggregates_view engine_aggregates_view(const struct engine *engine, uint32_t partition)
{
    return aggregates_view(slot_of(engine, partition)->aggregates);
}

const struct replica_set *engine_voters(const struct engine *engine, uint32_t partition)
{
    return slot_voters(slot_of(engine, partition));
}

const struct placement *engine_placement(const struct engine *engine)
{
    return engine->placement.version == 0 ? NULL : &engine->placement;
}

/* ---- birth and death ---- */

/* What the store holds, and what this node founds. Where it was to join, the leader comes again. */
static enum status begin_slot(struct slot *slot, struct fault *fault)
{
    struct engine *engine = slot->engine;
    enum partition_trace trace;

    if (partition_trace(engine->store, (uint16_t)slot->id, &trace, fault) != STATUS_OK)
        return fault->status;
    if (trace == PARTITION_HELD)
        return slot_open(slot, SLOT_RESTARTS, fault);
    if (trace == PARTITION_UNKNOWN && replica_set_holds(&slot->target, engine->settings.node_id))
        return slot_open(slot, SLOT_FOUNDS, fault);
    if (destroyed_settle(engine->store, (uint16_t)slot->id, NULL) > 0)
        engine->effects.forgot(engine->effects.context, slot->id);
    return STATUS_OK;
}

enum status engine_new(struct engine **out, const struct engine_settings *settings,
                       const struct engine_effects *effects, struct store *store,
                       struct moment moment, struct fault *fault)
{
    struct engine *engine = memory_zero(1, sizeof *engine);

    engine->settings = *settings;
    engine->effects = *effects;
    engine->store = store;
    engine->turn.batch = effects->empty_batch(effects->context);
    engine->turn.ticket = 1;
    /* Of this life alone: a late answer to what the life before asked must find nobody. */
    engine->next_id = PLANTED(REQUEST_ID_REUSED)
                          ? 0
                          : hash_mix(settings->seed, BYTES_LITERAL("requests")) >> 16;
    engine->slots = memory_zero(settings->founding->set_count, sizeof *engine->slots);
    engine->slot_count = settings->founding->set_count;
    engine_begin(engine, moment, 0);
    for (uint32_t p = 0; p < engine->slot_count; p++)
        engine->slots[p] = (struct slot){.engine = engine,
                                         .id = p,
                                         .target = settings->founding->sets[p],
                                         .known = {.partition = p}};
    for (uint32_t p = 0; p < engine->slot_count; p++)
        if (is_ours(engine, p) && begin_slot(&engine->slots[p], fault) != STATUS_OK) {
            enum status status = fault->status;

            engine_free(engine);
            return status;
        }
    *out = engine;
    return STATUS_OK;
}

void engine_set_vault(struct engine *engine, const struct vault *vault)
{
    engine->settings.vault = vault;
    for (size_t i = 0; i < engine->slot_count; i++)
        if (engine->slots[i].aggregates != NULL)
            aggregates_set_vault(engine->slots[i].aggregates, vault);
}

void engine_stop(struct engine *engine)
{
    engine->stopping = true;
    for (size_t i = 0; i < engine->slot_count; i++)
        if (engine->slots[i].aggregates != NULL)
            aggregates_disown(engine->slots[i].aggregates);
    router_abandon(engine);
    read_index_abandon(engine);
}

void engine_free(struct engine *engine)
{
    if (engine == NULL)
        return;
    engine_stop(engine);
    router_release(engine);
    for (size_t i = 0; i < engine->slot_count; i++)
        slot_close(&engine->slots[i]);
    for (size_t i = 0; i < engine->outbox_count; i++)
        buffer_release(&engine->outboxes[i].frame);
    free(engine->outboxes);
    free(engine->slots);
    free(engine->peers);
    arena_release(&engine->placement_arena);
    store_batch_free(engine->turn.batch);
    free(engine);
}

/*
 * An engine shard: one thread that owns a set of partitions with all that belongs to them.
 *
 * Each turn takes all letters, feeds the state machines, submits what was decided, hands one batch
 * to storage and one frame to each peer's link. Time is looked at once a turn; timers of all
 * partitions fire together on a grid, so that their heartbeats share frames.
 */
#include "engine.h"
#include "faults.h"

enum {
    GRID_MS = 25,
    BALANCE_MS = 250,
    BALANCE_SETTLE_MS = 3000, /* how long an owner keeps a partition before it hands it home */
    BALANCE_RETRY_MS = 5000,
    BALANCE_MOVES = 4,
};

/* ---- small things ---- */

struct slot *slot_of(struct shard *shard, uint32_t partition)
{
    return partition < shard->slot_count ? &shard->slots[partition] : NULL;
}

uint64_t slot_owner(const struct slot *slot, uint64_t *epoch)
{
    struct node *node = slot->shard->node;
    uint64_t owner = routes_owner(node->routes, slot->id, epoch);

    if (slot->partition != NULL) {
        struct partition_view view = partition_view(slot->partition);

        if (view.leader != 0 && view.term > *epoch) {
            *epoch = view.term;
            return view.leader;
        }
        if (owner == node->id && !view.leading)
            return 0;
    }
    return owner;
}

struct buffer *outbox_for(struct shard *shard, uint64_t node_id)
{
    for (size_t i = 0; i < shard->outbox_count; i++)
        if (shard->outboxes[i].node_id == node_id)
            return &shard->outboxes[i].frame;
    shard->outboxes =
        memory_grow(shard->outboxes, (shard->outbox_count + 1) * sizeof *shard->outboxes);
    shard->outboxes[shard->outbox_count] = (struct outbox){.node_id = node_id};
    return &shard->outboxes[shard->outbox_count++].frame;
}

static void send_frame(struct shard *shard, struct outbox *outbox)
{
    if (outbox->frame.len == 0)
        return;
    links_send(shard->node->links, outbox->node_id, buffer_bytes(&outbox->frame));
    outbox->frame.len = 0;
}

/* ---- effects of partitions ---- */

static void effect_send(void *context, struct partition *partition, uint64_t to,
                        const struct replica_message *message)
{
    struct slot *slot = context;
    struct shard *shard = slot->shard;
    struct buffer *frame = outbox_for(shard, to);

    (void)partition;
    frame_add_replica_message(frame, message);
    if (frame->len >= FRAME_BYTES_TARGET)
        send_frame(shard, CONTAINER_OF(frame, struct outbox, frame));
}

static void effect_apply(void *context, struct partition *partition, uint64_t index,
                         struct bytes payload, struct applied *applied, struct store_batch *batch)
{
    struct slot *slot = context;
    struct fault fault;

    (void)partition;
    if (slot->system != NULL) {
        if (system_committed(slot->system, payload, batch, &fault) != STATUS_OK)
            node_fail(slot->shard->node, &fault);
        atomic_store(&slot->shard->node->metrics.placement_version, system_version(slot->system));
        return;
    }
    if (aggregates_committed(slot->aggregates, index, payload, applied, batch, &fault) !=
        STATUS_OK)
        node_fail(slot->shard->node, &fault);
}

static void effect_ownership(void *context, struct partition *partition, bool owner)
{
    struct slot *slot = context;
    struct shard *shard = slot->shard;
    struct partition_view view = partition_view(partition);

    if (slot->system != NULL)
        system_ownership(slot->system, owner);
    if (owner) {
        METRIC_ADD(shard->node, ownership_gained, 1);
        slot->owned_since = shard->moment.now_ms;
        slot->transfer_after = shard->moment.now_ms + BALANCE_SETTLE_MS;
        aggregates_own(slot->aggregates, &view.applied);
        journal(JOURNAL_DEBUG, "owner-gained", "partition %u epoch %llu", slot->id,
                (unsigned long long)view.term);
        if (slot->id < node_partition_count(shard->node)) {
            const struct founding *founding = atomic_load(&shard->node->founding);
            struct owner_note note = {slot->id, shard->node->id, view.term};

            (void)routes_set(shard->node->routes, slot->id, shard->node->id, view.term);
            for (size_t i = 0; i < founding->founder_count; i++)
                if (founding->founders[i].node_id != shard->node->id)
                    frame_add_owner(outbox_for(shard, founding->founders[i].node_id), &note);
        }
        shard->rescan = true;
    } else {
        METRIC_ADD(shard->node, ownership_lost, 1);
        journal(JOURNAL_DEBUG, "owner-lost", "partition %u epoch %llu", slot->id,
                (unsigned long long)view.term);
        routes_clear(shard->node->routes, slot->id, shard->node->id);
        aggregates_disown(slot->aggregates);
    }
}

static void effect_need_range(void *context, struct partition *partition, uint64_t leader,
                              uint64_t index, uint64_t term)
{
    struct slot *slot = context;

    (void)partition;
    journal(JOURNAL_INFO, "range-wanted", "partition %u is behind its log; getting its range "
            "up to index %llu from node %016llx",
            slot->id, (unsigned long long)index, (unsigned long long)leader);
    range_fetch_start(slot->shard->node, slot->id, leader, index, term);
}

static void effect_stop_range(void *context, struct partition *partition)
{
    struct slot *slot = context;

    (void)partition;
    range_fetch_stop(slot->shard->node, slot->id);
}

static void effect_failed(void *context, struct partition *partition, const struct fault *fault)
{
    struct slot *slot = context;

    (void)partition;
    node_fail(slot->shard->node, fault);
}

/* ---- effects of aggregates ---- */

static enum status effect_submit(void *context, struct blob *payload, uint64_t *index)
{
    struct slot *slot = context;

    return partition_submit(slot->partition, payload, &slot->shard->turn, index);
}

static enum status effect_barrier(void *context, uint64_t *index)
{
    struct slot *slot = context;

    return partition_read_barrier(slot->partition, &slot->shard->turn, index);
}

static enum status effect_submit_placement(void *context, struct blob *payload)
{
    uint64_t index;

    return effect_submit(context, payload, &index);
}

static void effect_answer(void *context, struct admitted *command, const struct outcome *outcome,
                          const struct fault *fault)
{
    struct slot *slot = context;

    router_answered(slot->shard, command, outcome, fault);
}

static const struct cairn_aggregate_type *effect_module_type(void *context, struct bytes name)
{
    struct slot *slot = context;

    return modules_type(slot->shard->node->modules, name);
}

static enum status effect_pick_worker(void *context, const struct command *command, uint64_t hint,
                                      uint64_t *worker, struct fault *fault)
{
    struct slot *slot = context;

    return workers_pick(slot->shard->node->workers, command, hint, worker, fault);
}

static void effect_execute(void *context, uint64_t worker, uint64_t execution_id,
                           struct bytes packed, uint64_t deadline_ms)
{
    struct slot *slot = context;

    workers_execute(slot->shard->node->workers, slot->shard, slot->id, worker, execution_id,
                    packed, deadline_ms);
}

static uint64_t effect_stored_index(void *context)
{
    struct slot *slot = context;

    return partition_stored_index(slot->partition);
}

static uint64_t effect_applied_index(void *context)
{
    struct slot *slot = context;

    return partition_view(slot->partition).applied.index;
}

/* ---- start ---- */

static bool holds(const struct replica_set *set, uint64_t node_id)
{
    for (size_t i = 0; i < set->count; i++)
        if (set->replicas[i] == node_id)
            return true;
    return false;
}

/* From what the store holds: at the start, and when its range came from another replica. */
static enum status open_system(struct slot *slot, struct fault *fault)
{
    struct node *node = slot->shard->node;
    struct system_settings settings = {(uint16_t)slot->id, atomic_load(&node->founding)};
    struct system_effects effects = {slot, effect_submit_placement};
    enum status status;

    system_free(slot->system);
    slot->system = NULL;
    status = system_new(&slot->system, &settings, &effects, node->store, fault);
    if (status == STATUS_OK)
        atomic_store(&node->metrics.placement_version, system_version(slot->system));
    return status;
}

static enum status open_slot(struct shard *shard, struct slot *slot, struct fault *fault)
{
    struct node *node = shard->node;
    struct partition_settings settings = {
        .id = (uint16_t)slot->id,
        .node_id = node->id,
        .replicas = slot->set->replicas,
        .replica_count = slot->set->count,
        .election_ms = (unsigned)node->config.election_timeout_ms,
        .heartbeat_ms = (unsigned)node->config.heartbeat_interval_ms,
        .disk_reserve_mib = (uint16_t)(node->config.disk_reserve_bytes >> 20),
        .seed = (uint32_t)random_u64(),
    };
    struct partition_effects effects = {slot,
                                        effect_send,
                                        effect_apply,
                                        effect_ownership,
                                        effect_need_range,
                                        effect_stop_range,
                                        effect_failed};
    struct aggregates_settings aggregate_settings = {
        .partition = (uint16_t)slot->id,
        .payload_bytes_max = (uint32_t)node->config.payload_bytes_max,
        .outcome_retention_ms = node->config.outcome_retention_ms,
        .snapshot_every = node->config.snapshot_every,
        .cache_bytes = AGGREGATE_CACHE_BYTES / (node_partition_count(node) / 4 + 1),
        .cache_count = AGGREGATE_CACHE_COUNT / (node_partition_count(node) / 4 + 1),
    };
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

    if (slot->id == node_partition_count(node) && open_system(slot, fault) != STATUS_OK)
        return fault->status;
    slot->aggregates = aggregates_new(&aggregate_settings, &aggregate_effects, node->store);
    return partition_new(&slot->partition, &settings, &effects, node->store, &shard->turn, fault);
}

static void open_partitions(struct shard *shard)
{
    struct node *node = shard->node;
    const struct founding *founding = atomic_load(&node->founding);

    shard->slots = memory_zero(founding->set_count, sizeof *shard->slots);
    shard->slot_count = founding->set_count;
    for (uint32_t p = 0; p < founding->set_count; p++) {
        struct slot *slot = &shard->slots[p];
        struct fault fault;

        slot->shard = shard;
        slot->id = p;
        slot->set = &founding->sets[p];
        if (p % node->shard_count != shard->index || !holds(slot->set, node->id))
            continue;
        if (open_slot(shard, slot, &fault) != STATUS_OK) {
            node_fail(node, &fault);
            return;
        }
        atomic_fetch_add(&shard->view.replicas, 1);
    }
    shard->next_tick = 0;
}

/* ---- letters ---- */

static void take_frame(struct shard *shard, struct shared_frame *shared)
{
    const struct frame *frame = &shared->frame;
    uint64_t from = shared->from;

    for (size_t i = 0; i < frame->replica_message_count; i++) {
        struct slot *slot = slot_of(shard, frame->replica_messages[i].partition);

        if (slot != NULL && slot->partition != NULL && holds(slot->set, from))
            partition_receive(slot->partition, from, &frame->replica_messages[i], &shard->turn);
    }
    for (size_t i = 0; i < frame->owner_count; i++) {
        const struct owner_note *note = &frame->owners[i];

        if (note->partition % shard->node->shard_count == shard->index &&
            routes_set(shard->node->routes, note->partition, note->owner, note->epoch))
            shard->rescan = true;
    }
    for (size_t i = 0; i < frame->command_count; i++)
        if (frame->commands[i].partition < shard->slot_count &&
            frame->commands[i].partition % shard->node->shard_count == shard->index)
            router_take_forwarded(shard, from, &frame->commands[i]);
    for (size_t i = 0; i < frame->result_count; i++)
        if ((frame->results[i].request_id & 0xFF) == shard->index)
            router_take_result(shard, from, &frame->results[i]);
    for (size_t i = 0; i < frame->read_request_count; i++)
        if (frame->read_requests[i].partition % shard->node->shard_count == shard->index)
            reads_serve_index(shard, from, &frame->read_requests[i]);
    for (size_t i = 0; i < frame->read_result_count; i++)
        if ((frame->read_results[i].request_id & 0xFF) == shard->index)
            reads_take_index(shard, &frame->read_results[i]);
}

static void take_written(struct shard *shard, uint64_t ticket)
{
    for (size_t i = 0; i < shard->slot_count; i++) {
        struct slot *slot = &shard->slots[i];

        if (slot->partition == NULL)
            continue;
        partition_written(slot->partition, ticket, &shard->turn);
        aggregates_stored(slot->aggregates, partition_stored_index(slot->partition),
                          shard->moment);
        slot->touched = true;
    }
    shard->stored_moved = true;
}

static void take_executed(struct shard *shard, struct executed_letter *letter)
{
    struct slot *slot = slot_of(shard, letter->partition);

    if (slot != NULL && slot->aggregates != NULL) {
        aggregates_executed(slot->aggregates, letter->execution_id, letter->worker,
                            letter->died ? NULL : &letter->result, shard->moment);
        slot->touched = true;
    }
    arena_release(&letter->arena);
    free(letter);
}

static void workers_moved(struct shard *shard)
{
    for (size_t i = 0; i < shard->slot_count; i++)
        if (shard->slots[i].aggregates != NULL) {
            aggregates_workers_changed(shard->slots[i].aggregates, shard->moment);
            shard->slots[i].touched = true;
        }
}

/* A peer is reachable (again): tell it what we own, so that it needs not ask. */
static void greet(struct shard *shard, uint64_t node_id)
{
    for (size_t i = 0; i < shard->slot_count && i < node_partition_count(shard->node); i++) {
        struct slot *slot = &shard->slots[i];

        if (slot->partition != NULL && partition_is_owner(slot->partition)) {
            struct owner_note note = {slot->id, shard->node->id,
                                      partition_view(slot->partition).term};

            frame_add_owner(outbox_for(shard, node_id), &note);
        }
    }
    shard->rescan = true;
}

static void transfer_all(struct shard *shard)
{
    for (size_t i = 0; i < shard->slot_count; i++)
        if (shard->slots[i].partition != NULL && shard->slots[i].set->count > 1)
            (void)!partition_transfer(shard->slots[i].partition, 0, &shard->turn);
}

static void take_letter(struct shard *shard, struct letter *letter)
{
    switch (letter->kind) {
    case LETTER_REQUEST:
        router_take(shard, CONTAINER_OF(letter, struct request, letter));
        return;
    case LETTER_READ:
        reads_take(shard, CONTAINER_OF(letter, struct reading, letter));
        return;
    case LETTER_READ_ON:
        reads_go_on(shard, CONTAINER_OF(letter, struct reading, more));
        return;
    case LETTER_FRAME:
        take_frame(shard, ((struct frame_letter *)letter)->shared);
        shared_frame_drop(((struct frame_letter *)letter)->shared);
        break;
    case LETTER_WRITTEN:
        take_written(shard, ((struct written_letter *)letter)->ticket);
        break;
    case LETTER_EXECUTED:
        take_executed(shard, (struct executed_letter *)letter);
        return;
    case LETTER_WORKERS_CHANGED:
        workers_moved(shard);
        break;
    case LETTER_LINK: {
        const struct link_letter *link = (struct link_letter *)letter;

        if (link->up)
            greet(shard, link->node_id);
        else
            router_link_lost(shard, link->node_id);
        break;
    }
    case LETTER_START:
        open_partitions(shard);
        break;
    case LETTER_INSTALLED: {
        const struct installed_letter *installed = (struct installed_letter *)letter;
        struct slot *slot = slot_of(shard, installed->partition);

        struct fault fault;

        METRIC_ADD(shard->node, ranges_installed, 1);
        if (slot->system != NULL && open_system(slot, &fault) != STATUS_OK) {
            node_fail(shard->node, &fault);
            break;
        }
        partition_installed(slot->partition, installed->stopped ? NULL : &installed->applied,
                            &shard->turn);
        slot->touched = true;
        break;
    }
    case LETTER_SEND: {
        struct send_letter *send = (struct send_letter *)letter;

        buffer_add(outbox_for(shard, send->to), send->part.data, send->part.len);
        buffer_release(&send->part);
        break;
    }
    case LETTER_TRANSFER:
        transfer_all(shard);
        break;
    case LETTER_STOP:
        shard->stopping = true;
        break;
    }
    free(letter);
}

/* ---- time ---- */

/* Hand a partition back to its preferred owner once both are settled. */
static void balance(struct shard *shard)
{
    struct node *node = shard->node;
    uint64_t now = shard->moment.now_ms;
    int moves = 0;

    if (now < shard->next_balance || atomic_load(&node->draining))
        return;
    shard->next_balance = now + BALANCE_MS;
    for (size_t i = 0; i < shard->slot_count && moves < BALANCE_MOVES; i++) {
        struct slot *slot = &shard->slots[i];
        uint64_t home = slot->set == NULL ? 0 : slot->set->replicas[0];

        if (slot->partition == NULL || home == node->id || now < slot->transfer_after ||
            !partition_is_owner(slot->partition) || !links_up(node->links, home) ||
            control_member_status(node->control, home) != MEMBER_ALIVE ||
            !partition_replica_current(slot->partition, home))
            continue;
        slot->transfer_after = now + BALANCE_RETRY_MS;
        if (partition_transfer(slot->partition, home, &shard->turn) == STATUS_OK)
            moves++;
    }
}

static void note_leaders(struct shard *shard, struct slot *slot)
{
    struct partition_view view = partition_view(slot->partition);

    if (view.leader != 0 && view.leader != shard->node->id &&
        slot->id < node_partition_count(shard->node) &&
        routes_set(shard->node->routes, slot->id, view.leader, view.term))
        shard->rescan = true;
}

static void measure(struct shard *shard)
{
    size_t owned = 0, waiting = 0, in_flight = 0, executing = 0, cached = 0, lagging = 0;
    size_t movable = 0, leading = 0, uncommitted = 0, unstored = 0, term = 0;

    for (size_t i = 0; i < shard->slot_count; i++) {
        const struct slot *slot = &shard->slots[i];
        struct aggregates_view view;
        struct partition_view raft;

        if (slot->partition == NULL)
            continue;
        view = aggregates_view(slot->aggregates);
        owned += partition_is_owner(slot->partition) &&
                 slot->id < node_partition_count(shard->node);
        raft = partition_view(slot->partition);
        leading += raft.leading;
        uncommitted += raft.last_index > raft.commit_index ? raft.last_index - raft.commit_index : 0;
        unstored += raft.commit_index > raft.stored_index ? raft.commit_index - raft.stored_index : 0;
        term = raft.term > term ? raft.term : term;
        movable += slot->set->count > 1 && raft.leading;
        lagging += raft.installing;
        waiting += view.waiting;
        in_flight += view.in_flight;
        executing += view.executing;
        cached += view.cached;
    }
    atomic_store(&shard->view.owned, owned);
    atomic_store(&shard->view.movable, movable);
    atomic_store(&shard->view.leading, leading);
    atomic_store(&shard->view.uncommitted, uncommitted);
    atomic_store(&shard->view.unstored, unstored);
    atomic_store(&shard->view.highest_term, term);
    atomic_store(&shard->view.waiting, waiting);
    atomic_store(&shard->view.in_flight, in_flight);
    atomic_store(&shard->view.executing, executing);
    atomic_store(&shard->view.cached, cached);
    atomic_store(&shard->view.lagging, lagging);
    atomic_store(&shard->view.requests, shard->request_count);
}

/* On the grid; an idle shard sleeps until a partition wants something. */
static uint64_t next_tick(const struct shard *shard)
{
    uint64_t now = shard->moment.now_ms;
    uint64_t next = now + shard->node->config.heartbeat_interval_ms;

    if (shard->request_count > 0 || shard->readings != NULL || shard->index_waits != NULL)
        next = now + 1;
    for (size_t i = 0; i < shard->slot_count; i++)
        if (shard->slots[i].partition != NULL &&
            partition_deadline(shard->slots[i].partition) < next)
            next = partition_deadline(shard->slots[i].partition);
    if (next <= now)
        next = now + 1;
    return (next + GRID_MS - 1) / GRID_MS * GRID_MS;
}

static void tick(struct shard *shard)
{
    if (shard->moment.now_ms < shard->next_tick)
        return;
    for (size_t i = 0; i < shard->slot_count; i++) {
        struct slot *slot = &shard->slots[i];

        if (slot->partition == NULL)
            continue;
        partition_tick(slot->partition, &shard->turn);
        if (slot->system != NULL)
            system_tick(slot->system);
        note_leaders(shard, slot);
        if (aggregates_view(slot->aggregates).waiting > 0 ||
            aggregates_view(slot->aggregates).executing > 0) {
            aggregates_tick(slot->aggregates, shard->moment);
            slot->touched = true;
        }
    }
    balance(shard);
    router_tick(shard, false);
    reads_tick(shard);
    measure(shard);
    shard->next_tick = next_tick(shard);
}

/* ---- the turn ---- */

static uint16_t disk_free_mib(const struct node *node)
{
    uint64_t bytes = atomic_load_explicit(&((struct node *)node)->disk_free_bytes,
                                          memory_order_relaxed);
    uint64_t mib = bytes >> 20;

    return bytes == 0 ? 0 : mib >= UINT16_MAX ? UINT16_MAX : mib == 0 ? 1 : (uint16_t)mib;
}

static void begin_turn(struct shard *shard)
{
    shard->moment = (struct moment){clock_monotonic_ms(), clock_wall_ms()};
    shard->turn.now_ms = shard->moment.now_ms;
    shard->turn.disk_free_mib = disk_free_mib(shard->node);
}

static void flush_touched(struct shard *shard)
{
    for (size_t i = 0; i < shard->slot_count; i++)
        if (shard->slots[i].touched) {
            shard->slots[i].touched = false;
            aggregates_flush(shard->slots[i].aggregates, shard->moment);
        }
}

static void end_turn(struct shard *shard)
{
    uint64_t soon = (shard->moment.now_ms / GRID_MS + 1) * GRID_MS;

    if ((shard->request_count > 0 || shard->readings != NULL || shard->index_waits != NULL) &&
        soon < shard->next_tick)
        shard->next_tick = soon;
    flush_touched(shard);
    if (shard->rescan) {
        shard->rescan = false;
        router_tick(shard, true);
        flush_touched(shard);
    }
    if (shard->stored_moved) {
        shard->stored_moved = false;
        reads_tick(shard);
    }
    if (store_batch_count(shard->turn.batch) > 0) {
        storage_write(shard->node->storage, shard, shard->turn.batch, shard->turn.ticket);
        shard->turn.batch = storage_take_batch(shard->node->storage);
        shard->turn.ticket++;
    }
    for (size_t i = 0; i < shard->outbox_count; i++)
        send_frame(shard, &shard->outboxes[i]);
}

static void *run(void *context)
{
    struct shard *shard = context;

    while (!shard->stopping) {
        uint64_t now = clock_monotonic_ms();
        int wait = shard->slot_count == 0          ? -1
                   : shard->next_tick <= now ? 0
                                                   : (int)(shard->next_tick - now);
        struct mail *mail = mailbox_receive(&shard->box, wait);

        begin_turn(shard);
        while (mail != NULL) {
            struct mail *next = mail->next;

            take_letter(shard, CONTAINER_OF(mail, struct letter, mail));
            mail = next;
        }
        if (shard->slot_count > 0)
            tick(shard);
        end_turn(shard);
    }
    for (size_t i = 0; i < shard->slot_count; i++)
        if (shard->slots[i].aggregates != NULL)
            aggregates_disown(shard->slots[i].aggregates);
    router_abandon(shard);
    reads_abandon(shard);
    end_turn(shard);
    return NULL;
}

struct shard *shard_new(struct node *node, size_t index)
{
    struct shard *shard = memory_zero(1, sizeof *shard);

    shard->node = node;
    shard->index = index;
    shard->turn.batch = storage_take_batch(node->storage);
    shard->turn.ticket = 1;
    if (mailbox_init(&shard->box) != STATUS_OK ||
        pthread_create(&shard->thread, NULL, run, shard) != 0)
        abort(); /* no thread at start-up: nothing can work */
    pthread_setname_np(shard->thread, "shard");
    return shard;
}

void shard_send(struct shard *shard, struct letter *letter)
{
    mailbox_send(&shard->box, &letter->mail);
}

const struct shard_view *shard_view(const struct shard *shard)
{
    return &shard->view;
}

void shard_stop(struct shard *shard)
{
    struct letter *letter = memory_zero(1, sizeof *letter);

    letter->kind = LETTER_STOP;
    shard_send(shard, letter);
    pthread_join(shard->thread, NULL);
}

/* Letters that came after the end: requests still want an answer. */
void shard_drop_letters(struct shard *shard)
{
    struct mail *mail = mailbox_receive(&shard->box, 0);

    shard->stopping = true;
    while (mail != NULL) {
        struct mail *next = mail->next;
        struct letter *letter = CONTAINER_OF(mail, struct letter, mail);

        switch (letter->kind) {
        case LETTER_REQUEST: {
            struct request *r = CONTAINER_OF(letter, struct request, letter);
            struct fault fault;

            (void)fault_set(&fault, STATUS_UNAVAILABLE, "NODE_STOPPING",
                            "this node stops; ask another one with the same command id");
            r->finish(r, NULL, &fault);
            request_free(r);
            break;
        }
        case LETTER_READ: {
            struct reading *r = CONTAINER_OF(letter, struct reading, letter);

            r->next_reading = shard->readings;
            shard->readings = r;
            reads_abandon(shard);
            break;
        }
        case LETTER_READ_ON:
            break;
        case LETTER_FRAME:
            shared_frame_drop(((struct frame_letter *)letter)->shared);
            free(letter);
            break;
        case LETTER_EXECUTED:
            arena_release(&((struct executed_letter *)letter)->arena);
            free(letter);
            break;
        case LETTER_SEND:
            buffer_release(&((struct send_letter *)letter)->part);
            free(letter);
            break;
        default:
            free(letter);
        }
        mail = next;
    }
}

void shard_free(struct shard *shard)
{
    if (shard == NULL)
        return;
    shard_drop_letters(shard);
    for (size_t i = 0; i < shard->slot_count; i++) {
        aggregates_free(shard->slots[i].aggregates);
        system_free(shard->slots[i].system);
        partition_free(shard->slots[i].partition);
    }
    reads_release(shard);
    for (size_t i = 0; i < shard->outbox_count; i++)
        buffer_release(&shard->outboxes[i].frame);
    free(shard->outboxes);
    free(shard->slots);
    store_batch_free(shard->turn.batch);
    mailbox_release(&shard->box);
    free(shard);
}

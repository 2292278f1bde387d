/* One partition in its engine: opened from the store, its effects, and who owns it as far as is known. */
#include "parts.h"

enum { BALANCE_SETTLE_MS = 3000 }; /* how long an owner keeps a partition before it hands it home */

struct slot *slot_of(const struct engine *engine, uint32_t partition)
{
    return partition < engine->slot_count ? &engine->slots[partition] : NULL;
}

/* ---- who holds it ---- */

void slot_note(const struct slot *slot, struct owner_note *note)
{
    struct partition_view view = partition_view(slot->partition);
    struct partition_configuration configuration;

    partition_configuration(slot->partition, &configuration);
    *note = (struct owner_note){.partition = slot->id,
                                .owner = view.leader,
                                .epoch = view.term,
                                .voters = configuration.voters,
                                .standbys = configuration.standbys,
                                .configuration_index = configuration.index};
    if (slot->system != NULL && system_placement(slot->system) != NULL)
        note->placement_version = system_placement(slot->system)->version;
}

const struct replica_set *slot_voters(const struct slot *slot)
{
    return slot->known.voters.count > 0 ? &slot->known.voters : &slot->target;
}

/* ---- who owns it ---- */

/* Configurations that are committed follow each other in the log, whoever tells of them. */
bool slot_route(struct slot *slot, const struct owner_note *note)
{
    struct owner_note *known = &slot->known;
    bool newer = note->epoch > known->epoch ||
                 (note->epoch == known->epoch && known->owner == 0 && note->owner != 0);
    bool newer_voters = note->voters.count > 0 && note->configuration_index > known->configuration_index;

    if (newer) {
        known->owner = note->owner;
        known->epoch = note->epoch;
    }
    if (newer_voters) {
        known->voters = note->voters;
        known->standbys = note->standbys;
        known->configuration_index = note->configuration_index;
    }
    if (newer || newer_voters)
        slot->engine->effects.route(slot->engine->effects.context, known);
    return newer;
}

/* This node owns it no more; who does isn't known. */
static void clear_route(struct slot *slot)
{
    if (slot->known.owner != slot->engine->settings.node_id)
        return;
    slot->known.owner = 0;
    slot->engine->effects.route(slot->engine->effects.context, &slot->known);
}

uint64_t slot_owner(const struct slot *slot, uint64_t *epoch)
{
    *epoch = slot->known.epoch;
    if (slot->partition != NULL) {
        struct partition_view view = partition_view(slot->partition);

        if (view.leader != 0 && view.term > *epoch) {
            *epoch = view.term;
            return view.leader;
        }
        if (slot->known.owner == slot->engine->settings.node_id && !view.leading)
            return 0;
    }
    return slot->known.owner;
}

/* ---- effects of the partition ---- */

static void effect_send(void *context, struct partition *partition, uint64_t to,
                        const struct replica_message *message)
{
    struct engine *engine = ((struct slot *)context)->engine;
    struct buffer *frame = engine_outbox(engine, to);

    (void)partition;
    frame_add_replica_message(frame, message);
    if (frame->len >= FRAME_BYTES_TARGET) {
        engine->effects.send(engine->effects.context, to, buffer_bytes(frame));
        frame->len = 0;
    }
}

static void effect_log_damaged(void *context, struct partition *partition,
                               const struct fault *fault)
{
    struct slot *slot = context;

    (void)partition;
    journal(JOURNAL_ERROR, "record-damaged",
            "%s; partition %u trims its log behind it", fault->message, slot->id);
}

static void effect_failed(void *context, struct partition *partition, const struct fault *fault)
{
    struct engine *engine = ((struct slot *)context)->engine;

    (void)partition;
    engine->effects.failed(engine->effects.context, fault);
}

static void effect_apply(void *context, struct partition *partition, uint64_t index,
                         struct bytes payload, struct applied *applied, struct store_batch *batch)
{
    struct slot *slot = context;
    const struct engine_effects *effects = &slot->engine->effects;
    struct fault fault;
    enum status status;

    if (slot->system != NULL) {
        status = system_committed(slot->system, payload, batch, &fault);
    } else {
        effects->committed(effects->context, slot->id, index, payload);
        status = aggregates_committed(slot->aggregates, index, payload, applied, batch, &fault);
    }
    if (slot->forgot) /* not by slot->partition: that begins with applying what a crash left */
        partition_trim(partition, &slot->engine->turn);
    slot->forgot = false;
    if (status != STATUS_OK)
        effect_failed(slot, partition, &fault);
}

/* Tell those who most likely get commands for it. */
void slot_announce(struct slot *slot)
{
    struct engine *engine = slot->engine;
    struct owner_note note;

    slot_note(slot, &note);
    (void)slot_route(slot, &note);
    slot->announced_index = note.configuration_index;
    for (size_t i = 0; i < engine->peer_count; i++)
        tell_owned(engine, slot, engine->peers[i]);
}

static void effect_ownership(void *context, struct partition *partition, bool owner)
{
    struct slot *slot = context;
    struct engine *engine = slot->engine;
    struct partition_view view = partition_view(partition);

    journal(JOURNAL_DEBUG, owner ? "owner-gained" : "owner-lost", "partition %u epoch %llu",
            slot->id, (unsigned long long)view.term);
    engine->effects.count(engine->effects.context, owner ? ENGINE_GAINED : ENGINE_LOST);
    slot->touched = true;
    if (slot->system != NULL)
        system_ownership(slot->system, owner);
    if (owner) {
        slot->transfer_after = engine->moment.now_ms + BALANCE_SETTLE_MS;
        aggregates_own(slot->aggregates, &view.applied);
        slot_announce(slot);
        engine->rescan = true;
    } else {
        clear_route(slot);
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
    slot->engine->effects.need_range(slot->engine->effects.context, slot->id, leader, index, term);
}

static void effect_stop_range(void *context, struct partition *partition)
{
    struct slot *slot = context;

    (void)partition;
    slot->engine->effects.stop_range(slot->engine->effects.context, slot->id);
}

/* ---- effects of its aggregates ---- */

static enum status effect_submit(void *context, struct blob *payload, uint64_t *index)
{
    struct slot *slot = context;

    return partition_submit(slot->partition, payload, &slot->engine->turn, index);
}

static enum status effect_barrier(void *context, uint64_t *index)
{
    struct slot *slot = context;

    return partition_read_barrier(slot->partition, &slot->engine->turn, index);
}

static enum status effect_submit_placement(void *context, struct blob *payload)
{
    uint64_t index;

    return effect_submit(context, payload, &index);
}

static void effect_look(void *context, struct arena *arena, struct plan_view *view)
{
    struct slot *slot = context;
    struct engine *engine = slot->engine;
    struct owner_note *notes = arena_take(arena, engine->slot_count * sizeof *notes);

    for (uint32_t p = 0; p < engine->slot_count; p++) {
        if (engine->slots[p].partition != NULL && partition_is_owner(engine->slots[p].partition))
            slot_note(&engine->slots[p], &notes[p]);
        else
            engine->effects.known(engine->effects.context, p, &notes[p]);
        if (notes[p].owner == 0)
            notes[p].voters.count = 0;
    }
    view->notes = notes;
    view->members = engine->effects.members(engine->effects.context, arena, &view->member_count);
}

static void effect_placed(void *context, const struct placement *placement)
{
    struct engine *engine = ((struct slot *)context)->engine;

    engine_placed(engine, placement);
}

static void effect_answer(void *context, struct admitted *command, const struct outcome *outcome,
                          const struct fault *fault)
{
    router_answered(((struct slot *)context)->engine, command, outcome, fault);
}

static const struct cairn_aggregate_type *effect_module_type(void *context, struct bytes name)
{
    const struct engine_effects *effects = &((struct slot *)context)->engine->effects;

    return effects->module_type(effects->context, name);
}

static enum status effect_pick_worker(void *context, const struct command *command, uint64_t hint,
                                      uint64_t *worker, struct fault *fault)
{
    const struct engine_effects *effects = &((struct slot *)context)->engine->effects;

    return effects->pick_worker(effects->context, command, hint, worker, fault);
}

static void effect_execute(void *context, uint64_t worker, uint64_t execution_id,
                           struct bytes packed, uint64_t deadline_ms)
{
    struct slot *slot = context;
    const struct engine_effects *effects = &slot->engine->effects;

    effects->execute(effects->context, slot->id, worker, execution_id, packed, deadline_ms);
}

static bool effect_publish(void *context, uint64_t ticket, const struct command_record *record)
{
    struct slot *slot = context;
    const struct engine_effects *effects = &slot->engine->effects;

    return effects->publish(effects->context, slot->id, ticket, record);
}

static void effect_forget(void *context, uint64_t ticket)
{
    struct slot *slot = context;
    const struct engine_effects *effects = &slot->engine->effects;

    effects->forget(effects->context, slot->id, ticket);
}

static void effect_forgot(void *context)
{
    ((struct slot *)context)->forgot = true;
}

static void effect_trimmed(void *context, struct partition *partition)
{
    struct slot *slot = context;
    const struct engine_effects *effects = &slot->engine->effects;

    (void)partition;
    effects->forgot(effects->context, slot->id);
}

static bool effect_damaged(void *context, const struct fault *fault)
{
    struct slot *slot = context;

    return engine_damaged(slot->engine, slot->id, fault);
}

static uint64_t effect_clock_us(void *context)
{
    const struct engine_effects *effects = &((struct slot *)context)->engine->effects;

    return effects->clock_us(effects->context);
}

static uint64_t effect_stored_index(void *context)
{
    return partition_stored_index(((struct slot *)context)->partition);
}

static uint64_t effect_applied_index(void *context)
{
    return partition_view(((struct slot *)context)->partition).applied.index;
}

/* ---- birth and death ---- */

/* From what the store holds: at the start, and when its range came from another replica. */
enum status slot_open_system(struct slot *slot, struct fault *fault)
{
    struct engine *engine = slot->engine;
    struct system_settings settings = {(uint16_t)slot->id, engine->settings.founding,
                                       engine->settings.placement, engine->settings.planner};
    struct system_effects effects = {slot, effect_submit_placement, effect_look, effect_placed};

    system_free(slot->system);
    slot->system = NULL;
    return system_new(&slot->system, &settings, &effects, engine->store, fault);
}

enum status slot_open(struct slot *slot, enum slot_origin origin, struct fault *fault)
{
    struct engine *engine = slot->engine;
    const struct engine_settings *given = &engine->settings;
    struct partition_settings settings = {
        .id = (uint16_t)slot->id,
        .node_id = given->node_id,
        .founders = origin == SLOT_JOINS ? NULL : &slot->target,
        .election_ms = given->election_ms,
        .heartbeat_ms = given->heartbeat_ms,
        .disk_reserve_mib = given->disk_reserve_mib,
        .checkpoint_entries = given->checkpoint_entries,
        .seed = (uint32_t)hash_mix(given->seed, (struct bytes){(const uint8_t *)&slot->id,
                                                               sizeof slot->id}),
    };
    struct partition_effects effects = {slot,
                                        effect_send,
                                        effect_apply,
                                        effect_ownership,
                                        effect_need_range,
                                        effect_stop_range,
                                        effect_log_damaged,
                                        effect_failed,
                                        effect_trimmed};
    struct aggregates_settings aggregate_settings = {
        .partition = (uint16_t)slot->id,
        .payload_bytes_max = given->payload_bytes_max,
        .outcome_retention_ms = given->outcome_retention_ms,
        .snapshot_every = given->snapshot_every,
        .snapshot_after_us = given->snapshot_after_us,
        .cache_bytes = given->cache_bytes,
        .cache_count = given->cache_count,
        .vault = given->vault,
    };
    struct aggregates_effects aggregate_effects = {
        slot,
        effect_submit,
        effect_barrier,
        effect_answer,
        effect_module_type,
        effect_pick_worker,
        effect_execute,
        effect_publish,
        effect_forget,
        effect_forgot,
        effect_damaged,
        effect_clock_us,
        effect_stored_index,
        effect_applied_index,
    };

    if (slot->id == engine_partitions(engine) && slot_open_system(slot, fault) != STATUS_OK)
        return fault->status;
    slot->aggregates = aggregates_new(&aggregate_settings, &aggregate_effects, engine->store);
    return partition_new(&slot->partition, &settings, &effects, engine->store, &engine->turn,
                         fault);
}

void slot_close(struct slot *slot)
{
    aggregates_free(slot->aggregates);
    system_free(slot->system);
    partition_free(slot->partition);
    slot->aggregates = NULL;
    slot->system = NULL;
    slot->partition = NULL;
}

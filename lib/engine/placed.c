/*
 * From the placement, which says who should hold what, to who does.
 *
 *   placement (of the system partition's owner) ──▶ every node's engines ──▶ targets of the slots
 *
 * The owner of each partition compares its target with its configuration and makes one change at a time:
 *
 *   add a standby ─▶ it catches up ─▶ promote it ─▶ (hand ownership over) ─▶ remove who should not hold it
 *
 * Nothing is remembered between two steps, so whoever owns the partition next goes on. A leader's first
 * message brings a replica into being; one that the owner's notes don't name any more is deleted.
 */
#include "parts.h"

enum {
    RECONCILE_MS = 50,
    RETRY_MS = 1,
    /* A replica is deleted when its owner has said for so long that it is none, and no leader was heard since. */
    DROP_AFTER_MS = 5000,
};

/* ---- the placement comes ---- */

void engine_placed(struct engine *engine, const struct placement *placement)
{
    struct arena arena = {0};
    struct placement copy;

    if (placement->version <= engine->placement.version || placement->set_count != engine->slot_count)
        return;
    if (wire_placement_copy(placement, &arena, &copy)) {
        arena_release(&engine->placement_arena);
        engine->placement_arena = arena;
        engine->placement = copy;
        for (size_t p = 0; p < engine->slot_count; p++)
            engine->slots[p].target = copy.sets[p];
        engine->next_reconcile = 0;
        engine->effects.placement(engine->effects.context, &engine->placement);
    } else {
        arena_release(&arena);
    }
}

static struct slot *system_slot(const struct engine *engine)
{
    return &engine->slots[engine->slot_count - 1];
}

static bool owns_system(const struct engine *engine)
{
    const struct slot *slot = system_slot(engine);

    return slot->partition != NULL && partition_is_owner(slot->partition);
}

static void send_placement(struct engine *engine, uint64_t to)
{
    const struct placement *placement = system_placement(system_slot(engine)->system);

    if (placement != NULL)
        frame_add_placement(engine_outbox(engine, to), placement);
}

void placed_greet(struct engine *engine, uint64_t node_id)
{
    if (owns_system(engine))
        send_placement(engine, node_id);
}

void placed_frame(struct engine *engine, uint64_t from, const struct frame *frame)
{
    if (frame->has_placement)
        engine_placed(engine, &frame->placement);
    if (frame->placement_wanted > 0 && owns_system(engine))
        send_placement(engine, from);
    for (size_t i = 0; i < frame->owner_count; i++)
        if (frame->owners[i].placement_version > engine->placement.version)
            frame_add_placement_wanted(engine_outbox(engine, from), engine->placement.version);
}

enum status engine_order(struct engine *engine, const struct placement_order *order, uint64_t *version,
                         struct fault *fault)
{
    struct slot *slot = system_slot(engine);

    if (!owns_system(engine)) {
        (void)fault_set(fault, STATUS_UNAVAILABLE, "NOT_OWNER", "this node doesn't own the system partition");
        fault->retry_ms = 100;
        return fault->status;
    }
    slot->touched = true;
    return system_order(slot->system, order, version, fault);
}

/* ---- a replica that is none any more ---- */

static void drop(struct slot *slot)
{
    struct engine *engine = slot->engine;

    journal(JOURNAL_INFO, "replica-dropped", "partition %u", slot->id);
    partition_drop(slot->partition, &engine->turn);
    engine->effects.forgot(engine->effects.context, slot->id); /* if it held keys, they are on the disk */
    slot_close(slot);
    slot->unwanted_since = 0;
    slot->damaged = false;
    read_index_dropped(engine, slot->id);
    engine->rescan = true;
}

/* The newer of the two configurations, ours and the owner's, decides; the term does not: a removed replica
 * that asked for votes in vain has a higher one than everybody else. */
void placed_heard(struct slot *slot, const struct owner_note *note)
{
    struct engine *engine = slot->engine;
    struct partition_configuration ours;
    struct partition_view view;
    bool named;

    if (slot->partition == NULL || note->voters.count == 0)
        return;
    view = partition_view(slot->partition);
    partition_configuration(slot->partition, &ours);
    if (note->configuration_index >= ours.index)
        named = replica_set_holds(&note->voters, engine->settings.node_id) ||
                replica_set_holds(&note->standbys, engine->settings.node_id);
    else
        named = replica_set_holds(&ours.voters, engine->settings.node_id) ||
                replica_set_holds(&ours.standbys, engine->settings.node_id);
    if (named || view.leading || note->owner == engine->settings.node_id)
        return;
    if (slot->unwanted_since == 0)
        slot->unwanted_since = engine->moment.now_ms;
    else if (engine->moment.now_ms - slot->unwanted_since >= DROP_AFTER_MS && !view.installing)
        drop(slot);
}

/* Readers use a replica only while it is a voter that nobody disowns. */
static void tell_held(struct slot *slot)
{
    struct engine *engine = slot->engine;
    struct partition_configuration configuration;
    bool held = false;

    if (slot->partition != NULL && slot->unwanted_since == 0) {
        partition_configuration(slot->partition, &configuration);
        held = replica_set_holds(&configuration.voters, engine->settings.node_id);
    }
    if (held == slot->held)
        return;
    slot->held = held;
    engine->effects.held(engine->effects.context, slot->id, held);
}

/* ---- one change ---- */

static bool reachable(const struct engine *engine, uint64_t node_id)
{
    const struct engine_effects *effects = &engine->effects;

    return node_id == engine->settings.node_id ||
           (effects->reachable(effects->context, node_id) && effects->alive(effects->context, node_id));
}

static bool is_current(const struct slot *slot, uint64_t node_id)
{
    return node_id == slot->engine->settings.node_id ||
           (reachable(slot->engine, node_id) && partition_replica_current(slot->partition, node_id));
}

static void change(struct slot *slot, enum replica_change what, uint64_t node_id)
{
    static const char *const words[] = {"gets a standby", "gets a voter", "loses a replica"};
    enum status status = partition_change(slot->partition, what, node_id, &slot->engine->turn);

    if (status == STATUS_OK)
        journal(JOURNAL_INFO, "replica-change", "partition %u %s: node %016llx", slot->id, words[what],
                (unsigned long long)node_id);
    else if (status == STATUS_UNAVAILABLE)
        slot->engine->next_reconcile = slot->engine->moment.now_ms + RETRY_MS; /* a moment without load will come */
    slot->touched = true;
}

/* A majority of those who are left has all. */
static bool can_do_without(const struct slot *slot, const struct replica_set *voters, uint64_t node_id)
{
    size_t current = 0;

    for (size_t i = 0; i < voters->count; i++)
        current += voters->replicas[i] != node_id && is_current(slot, voters->replicas[i]);
    return current > (voters->count - 1) / 2;
}

static void hand_over(struct slot *slot, const struct replica_set *voters)
{
    struct engine *engine = slot->engine;

    if (engine->moment.now_ms < slot->transfer_after)
        return;
    for (size_t i = 0; i < slot->target.count; i++) {
        uint64_t to = slot->target.replicas[i];

        if (to == engine->settings.node_id || !replica_set_holds(voters, to) || !is_current(slot, to))
            continue;
        slot->transfer_after = engine->moment.now_ms + 500;
        (void)!partition_transfer(slot->partition, to, &engine->turn);
        return;
    }
}

static void remove_surplus(struct slot *slot, const struct replica_set *voters)
{
    bool self = false;

    for (size_t i = 0; i < slot->target.count; i++)
        if (!replica_set_holds(voters, slot->target.replicas[i]))
            return; /* those who should hold it come first */
    for (size_t i = 0; i < voters->count; i++) {
        uint64_t node_id = voters->replicas[i];

        if (replica_set_holds(&slot->target, node_id))
            continue;
        if (node_id == slot->engine->settings.node_id) {
            self = true;
        } else if (can_do_without(slot, voters, node_id)) {
            change(slot, REPLICA_REMOVE, node_id);
            return;
        }
    }
    if (self)
        hand_over(slot, voters);
}

static void reconcile(struct slot *slot)
{
    struct engine *engine = slot->engine;
    struct partition_configuration now;

    partition_configuration(slot->partition, &now);
    if (now.changing || engine->draining)
        return;
    for (size_t i = 0; i < now.standbys.count; i++) {
        uint64_t node_id = now.standbys.replicas[i];

        if (!replica_set_holds(&slot->target, node_id)) {
            change(slot, REPLICA_REMOVE, node_id);
            return;
        }
        if (is_current(slot, node_id)) {
            change(slot, REPLICA_PROMOTE, node_id);
            return;
        }
    }
    for (size_t i = 0; i < slot->target.count && now.voters.count + now.standbys.count < REPLICAS_MAX; i++) {
        uint64_t node_id = slot->target.replicas[i];

        if (!replica_set_holds(&now.voters, node_id) && !replica_set_holds(&now.standbys, node_id) &&
            reachable(engine, node_id)) {
            change(slot, REPLICA_ADD, node_id);
            return;
        }
    }
    remove_surplus(slot, &now.voters);
}

/* All others hear of a new configuration from its owner. */
static void announce_change(struct slot *slot)
{
    struct partition_configuration configuration;

    partition_configuration(slot->partition, &configuration);
    if (configuration.index != slot->announced_index)
        slot_announce(slot);
}

static void announce_placement(struct engine *engine)
{
    struct slot *slot = system_slot(engine);
    const struct placement *placement = owns_system(engine) ? system_placement(slot->system) : NULL;

    if (placement == NULL || placement->version == engine->told_version)
        return;
    engine->told_version = placement->version;
    for (size_t i = 0; i < engine->peer_count; i++)
        send_placement(engine, engine->peers[i]);
}

void placed_tick(struct engine *engine)
{
    if (engine->moment.now_ms < engine->next_reconcile)
        return;
    engine->next_reconcile = engine->moment.now_ms + RECONCILE_MS;
    announce_placement(engine);
    for (size_t i = 0; i < engine->slot_count; i++) {
        struct slot *slot = &engine->slots[i];

        tell_held(slot);
        if (slot->partition == NULL || !partition_is_owner(slot->partition))
            continue;
        announce_change(slot);
        reconcile(slot);
    }
}

/*
 * The state machine of the system partition: who should hold what, as a record that grows by versions.
 * Version 1 is how the cluster was founded; the partition's owner writes it and all later ones, one after the
 * other: a version is decided on the one before it, or it doesn't count. Every replica keeps the newest record
 * in the store, in the partition's own key range, so that it travels with a range like everything else.
 */
#include "cluster.h"

enum { PLAN_MS = 200, RESUBMIT_MS = 2000 };

struct system_state {
    struct system_settings settings;
    struct system_effects effects;
    struct store *store;
    struct planner *planner;
    struct arena arena; /* of the placement */
    struct placement placement;
    bool owned;
    uint64_t submitted; /* the version that is on its way under this ownership */
    uint64_t submitted_ms;
    uint64_t next_plan_ms;
    uint64_t now_ms;
};

static struct store_key placement_key(uint16_t partition)
{
    return key_snapshot(partition, BYTES_LITERAL("placement"));
}

static enum status belongs(const struct system_state *s, const struct placement *placement,
                           struct fault *fault)
{
    if (bytes_equal(placement->cluster_id, s->settings.founding->cluster_id) &&
        placement->partition_count == s->settings.founding->partition_count)
        return STATUS_OK;
    return fault_set(fault, STATUS_DAMAGED, "FOREIGN_PLACEMENT",
                     "the system partition holds the placement of cluster %.*s with %u partitions, "
                     "but this node belongs to %.*s with %u; restore the data folder or remove it "
                     "and add the node anew",
                     (int)placement->cluster_id.len, (const char *)placement->cluster_id.data,
                     placement->partition_count, (int)s->settings.founding->cluster_id.len,
                     (const char *)s->settings.founding->cluster_id.data,
                     s->settings.founding->partition_count);
}

/* Takes a decoded record with its memory. */
static void adopt(struct system_state *s, struct arena *arena, const struct placement *placement)
{
    arena_release(&s->arena);
    s->arena = *arena;
    *arena = (struct arena){0};
    s->placement = *placement;
    s->effects.placed(s->effects.context, &s->placement);
}

enum status system_new(struct system_state **out, const struct system_settings *settings,
                       const struct system_effects *effects, struct store *store,
                       struct fault *fault)
{
    struct system_state *s = memory_zero(1, sizeof *s);
    struct store_key key = placement_key(settings->partition);
    struct arena arena = {0};
    struct placement placement;
    struct bytes value;
    enum status status;

    s->settings = *settings;
    s->effects = *effects;
    s->store = store;
    s->planner = planner_new(&settings->planner);
    status = store_get(store, STORE_SNAPSHOTS, key_bytes(&key), &arena, &value, fault);
    if (status == STATUS_OK)
        status = wire_placement_decode(value, &arena, &placement, fault);
    if (status == STATUS_OK)
        status = belongs(s, &placement, fault);
    if (status == STATUS_OK)
        adopt(s, &arena, &placement);
    arena_release(&arena);
    if (status != STATUS_OK && status != STATUS_NOT_FOUND) {
        system_free(s);
        return status;
    }
    *out = s;
    return STATUS_OK;
}

void system_free(struct system_state *s)
{
    if (s == NULL)
        return;
    planner_free(s->planner);
    arena_release(&s->arena);
    free(s);
}

void system_ownership(struct system_state *s, bool owned)
{
    s->owned = owned;
    s->submitted = 0;
    planner_forget(s->planner);
}

static enum status submit(struct system_state *s, const struct placement *placement)
{
    struct buffer packed = {0};
    struct blob *payload;
    enum status status;

    wire_placement_pack(&packed, placement);
    payload = blob_new(packed.len);
    memcpy(payload->data, packed.data, packed.len);
    buffer_release(&packed);
    status = s->effects.submit(s->effects.context, payload);
    if (status == STATUS_OK) {
        s->submitted = placement->version;
        s->submitted_ms = s->now_ms;
    }
    return status;
}

/* An order that was given before needs no new version. */
static bool differs(const struct placement *a, const struct placement *b)
{
    struct placement same = *b;
    struct buffer packed[2] = {{0}, {0}};
    bool different;

    same.version = a->version;
    wire_placement_pack(&packed[0], a);
    wire_placement_pack(&packed[1], &same);
    different = !bytes_equal(buffer_bytes(&packed[0]), buffer_bytes(&packed[1]));
    buffer_release(&packed[0]);
    buffer_release(&packed[1]);
    return different;
}

static void submit_first(struct system_state *s, struct arena *arena)
{
    const struct founding *founding = s->settings.founding;
    struct placement first = {
        .version = 1,
        .cluster_id = founding->cluster_id,
        .cluster_name = founding->cluster_name,
        .partition_count = founding->partition_count,
        .replication_factor = founding->replication_factor,
        .members = arena_take(arena, founding->founder_count * sizeof *first.members),
        .member_count = founding->founder_count,
        .sets = founding->sets,
        .set_count = founding->set_count,
        .moves_at_once = s->settings.defaults.moves_at_once,
        .transfer_bytes = s->settings.defaults.transfer_bytes,
        .grace_ms = s->settings.defaults.grace_ms,
        .release = PEER_PROTOCOL_MIN,
    };

    for (size_t i = 0; i < founding->founder_count; i++)
        first.members[i] = (struct placed_member){.node_id = founding->founders[i].node_id,
                                                  .name = founding->founders[i].name,
                                                  .capacity = 100,
                                                  .state = PLACED_MEMBER};
    (void)!submit(s, &first); /* a failed one is tried again at the next tick, or by the next owner */
}

/* One version after the other. What was lost with a leadership is noticed by its end; what is refused now is
 * decided anew later. */
static bool is_waiting(const struct system_state *s)
{
    return s->submitted > s->placement.version && s->now_ms < s->submitted_ms + RESUBMIT_MS;
}

void system_tick(struct system_state *s, uint64_t now_ms)
{
    struct arena arena = {0};
    struct plan_view view = {0};
    struct placement next;

    s->now_ms = now_ms;
    if (!s->owned || is_waiting(s) || now_ms < s->next_plan_ms)
        return;
    if (s->placement.version == 0) {
        submit_first(s, &arena);
    } else {
        s->next_plan_ms = now_ms + PLAN_MS;
        s->effects.look(s->effects.context, &arena, &view);
        view.now_ms = now_ms;
        if (planner_plan(s->planner, &s->placement, &view, &arena, &next))
            (void)!submit(s, &next);
    }
    arena_release(&arena);
}

enum status system_order(struct system_state *s, const struct placement_order *order, uint64_t *version,
                         struct fault *fault)
{
    struct arena arena = {0};
    struct plan_view view = {0};
    struct placement next;
    enum status status;

    if (!s->owned || s->placement.version == 0 || is_waiting(s)) {
        (void)fault_set(fault, STATUS_UNAVAILABLE, s->owned ? "PLACEMENT_BUSY" : "NOT_OWNER",
                        s->owned ? "another change of the placement is being written"
                                 : "this node doesn't own the system partition any more");
        fault->retry_ms = 20;
        return fault->status;
    }
    s->effects.look(s->effects.context, &arena, &view);
    view.now_ms = s->now_ms;
    status = planner_order(&s->placement, &view, order, &arena, &next, fault);
    *version = s->placement.version;
    if (status == STATUS_OK && differs(&s->placement, &next)) {
        *version = next.version;
        status = submit(s, &next);
    }
    if (status == STATUS_NOT_OWNER || status == STATUS_EXHAUSTED) {
        status = fault_set(fault, STATUS_UNAVAILABLE, "NOT_OWNER", "ownership of the system partition is moving");
        fault->retry_ms = 100;
    }
    arena_release(&arena);
    return status;
}

enum status system_committed(struct system_state *s, struct bytes payload,
                             struct store_batch *batch, struct fault *fault)
{
    struct store_key key = placement_key(s->settings.partition);
    struct arena arena = {0};
    struct placement placement;
    enum status status = wire_placement_decode(payload, &arena, &placement, fault);

    if (status == STATUS_OK)
        status = belongs(s, &placement, fault);
    /* Two owners may both have decided on the same version: the first counts. */
    if (status == STATUS_OK && placement.version == s->placement.version + 1) {
        store_batch_put(batch, STORE_SNAPSHOTS, key_bytes(&key), payload);
        adopt(s, &arena, &placement);
    }
    arena_release(&arena);
    return status;
}

const struct placement *system_placement(const struct system_state *s)
{
    return s->placement.version == 0 ? NULL : &s->placement;
}

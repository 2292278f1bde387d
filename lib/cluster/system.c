/*
 * The state machine of the system partition: who holds what, as a record that grows by versions.
 * Version 1 is how the cluster was founded; the partition's first owner writes it. Every replica
 * keeps the newest record in the store, in the partition's own key range, so that it travels with
 * a range like everything else.
 */
#include "cluster.h"

struct system_state {
    struct system_settings settings;
    struct system_effects effects;
    struct store *store;
    uint64_t version;
    bool owned;
    bool submitted; /* under this ownership */
};

static struct store_key placement_key(uint16_t partition)
{
    return key_snapshot(partition, BYTES_LITERAL("placement"));
}

static enum status belongs(const struct system_state *s, const struct placement *placement,
                           struct fault *fault)
{
    if (bytes_equal(placement->record.cluster_id, s->settings.founding->cluster_id) &&
        placement->record.partition_count == s->settings.founding->partition_count)
        return STATUS_OK;
    return fault_set(fault, STATUS_DAMAGED, "FOREIGN_PLACEMENT",
                     "the system partition holds the placement of cluster %.*s with %u partitions, "
                     "but this node belongs to %.*s with %u; restore the data folder or remove it "
                     "and add the node anew",
                     (int)placement->record.cluster_id.len,
                     (const char *)placement->record.cluster_id.data,
                     placement->record.partition_count,
                     (int)s->settings.founding->cluster_id.len,
                     (const char *)s->settings.founding->cluster_id.data,
                     s->settings.founding->partition_count);
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
    status = store_get(store, STORE_SNAPSHOTS, key_bytes(&key), &arena, &value, fault);
    if (status == STATUS_OK)
        status = wire_placement_decode(value, &arena, &placement, fault);
    if (status == STATUS_OK)
        status = belongs(s, &placement, fault);
    if (status == STATUS_OK)
        s->version = placement.version;
    arena_release(&arena);
    if (status != STATUS_OK && status != STATUS_NOT_FOUND) {
        free(s);
        return status;
    }
    *out = s;
    return STATUS_OK;
}

void system_free(struct system_state *s)
{
    free(s);
}

void system_ownership(struct system_state *s, bool owned)
{
    s->owned = owned;
    s->submitted = false;
}

void system_tick(struct system_state *s)
{
    struct placement first = {.version = 1};
    struct buffer packed = {0};
    struct blob *payload;

    if (!s->owned || s->submitted || s->version > 0)
        return;
    first.record = *s->settings.founding;
    wire_placement_pack(&packed, &first);
    payload = blob_new(packed.len);
    memcpy(payload->data, packed.data, packed.len);
    buffer_release(&packed);
    /* A failed submit is tried again at the next tick, or by the next owner. */
    s->submitted = s->effects.submit(s->effects.context, payload) == STATUS_OK;
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
    /* Two owners may both have written version 1: the first counts. */
    if (status == STATUS_OK && placement.version == s->version + 1) {
        s->version = placement.version;
        store_batch_put(batch, STORE_SNAPSHOTS, key_bytes(&key), payload);
    }
    arena_release(&arena);
    return status;
}

uint64_t system_version(const struct system_state *s)
{
    return s->version;
}

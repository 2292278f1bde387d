/*
 * Snapshots: the saved state of an aggregate, so that loading it takes what the snapshot and the
 * events behind it take. They travel in the log behind the events that they include, so every
 * replica has the same ones. An aggregate has one: the next takes its place.
 */
#include "parts.h"

/* The open entry carries it: it is thrown away with the events that it includes. */
static void add_to_entry(struct aggregates *all, struct aggregate *a, uint64_t sequence,
                         struct payload payload)
{
    struct snapshot snapshot = {
        .aggregate_type = a->type,
        .aggregate_id = a->id,
        .sequence = sequence + PLANTED(SNAPSHOT_AHEAD),
        .payload = payload,
    };

    struct arena arena = {0};

    if (seal_snapshot(all, a, &snapshot, &arena)) {
        wire_log_batch_add_snapshot(&all->open, &snapshot);
        a->snapshot_sequence = sequence;
    }
    arena_release(&arena);
}

void snapshot_by_module(struct aggregates *all, struct aggregate *a)
{
    const struct cairn_aggregate_type *module = a->module;
    uint64_t every = all->settings.snapshot_every;
    uint8_t *bytes;
    size_t len;

    bool due = a->snapshot_due || (every > 0 && a->sequence >= a->snapshot_tried + every);

    if (a->state == NULL || module->encode == NULL || module->decode == NULL || !due)
        return;
    a->snapshot_due = false;
    a->snapshot_tried = a->sequence;
    len = module->encode(a->state, NULL, 0);
    if (len == 0 || len > all->settings.payload_bytes_max)
        return; /* too big to be worth it: the next try is as far away as a good one */
    bytes = memory_take(len);
    if (module->encode(a->state, bytes, len) == len)
        add_to_entry(all, a, a->sequence, (struct payload){PAYLOAD_DATA, {bytes, len}});
    free(bytes);
}

void snapshot_by_worker(struct aggregates *all, struct aggregate *a,
                        const struct snapshot *snapshot)
{
    if (snapshot->present && snapshot->sequence > a->snapshot_sequence)
        add_to_entry(all, a, snapshot->sequence, snapshot->payload);
}

void snapshot_by_command(struct aggregates *all, struct aggregate *a, const struct command *command)
{
    /* Without a payload it takes the last one away: see snapshot_put(). */
    add_to_entry(all, a, command->snapshot.sequence, command->snapshot.payload);
    a->snapshot_tried = command->snapshot.sequence;
}

enum status snapshot_check(const struct snapshot *snapshot, uint64_t sequence,
                           uint32_t payload_max, struct fault *fault)
{
    if (!snapshot->present)
        return STATUS_OK;
    if (snapshot->sequence == 0 || snapshot->sequence > sequence)
        return fault_set(fault, STATUS_FAILED, "HANDLER_BROKE_CONTRACT",
                         "the handler's snapshot is at sequence %llu; the aggregate has %llu "
                         "events",
                         (unsigned long long)snapshot->sequence, (unsigned long long)sequence);
    if (snapshot->payload.kind == PAYLOAD_NONE || snapshot->payload.content.len > payload_max)
        return fault_set(fault, STATUS_FAILED, "HANDLER_BROKE_CONTRACT",
                         "the handler's snapshot has %zu bytes; 1 to %u are allowed",
                         snapshot->payload.content.len, payload_max);
    return STATUS_OK;
}

enum status snapshot_find(struct aggregates *all, const struct aggregate *a, struct arena *arena,
                          struct bytes *packed, struct snapshot *snapshot, struct fault *fault)
{
    struct store_key key = key_snapshot(all->settings.partition, a->id);
    enum status status =
        store_get(all->store, STORE_SNAPSHOTS, key_bytes(&key), arena, packed, fault);

    *snapshot = (struct snapshot){.present = false};
    if (status == STATUS_OK)
        status = snapshot_reveal(all->settings.vault, all->store, all->settings.partition, packed, snapshot, arena,
                                 fault);
    else
        *packed = BYTES_NONE;
    if (status == STATUS_OK && snapshot->sequence > a->sequence)
        return fault_set(fault, STATUS_DAMAGED, "EVENT_MISSING",
                         "aggregate %.*s has a snapshot of %llu events, but %llu events",
                         (int)a->id.len, (const char *)a->id.data,
                         (unsigned long long)snapshot->sequence, (unsigned long long)a->sequence);
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

void snapshot_put(struct aggregates *all, const struct snapshot_record *record,
                  struct store_batch *batch)
{
    struct store_key key = key_snapshot(all->settings.partition, record->snapshot.aggregate_id);

    if (record->snapshot.payload.kind == PAYLOAD_NONE)
        store_batch_delete(batch, STORE_SNAPSHOTS, key_bytes(&key));
    else
        store_batch_put(batch, STORE_SNAPSHOTS, key_bytes(&key), record->packed);
}

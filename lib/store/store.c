/*
 * What both backends share: the envelope around every value, and reads that verify it.
 *
 *   value at rest:  version u8 | zero u8 x3 | checksum u32 LE over key and payload | payload
 *
 * The key is part of the checksum, so that a record at the wrong place is found as well.
 */
#include "backend.h"

struct store_batch {
    struct store *store;
    void *batch;
    size_t count;
    struct buffer scratch;
};

struct store_cursor {
    struct store *store;
    enum store_family family;
    void *cursor;
};

static uint32_t checksum(struct bytes key, struct bytes payload)
{
    return (uint32_t)hash_mix(hash_bytes(key), payload);
}

static enum status damaged_envelope(enum store_family family, struct bytes key, struct bytes raw,
                                    struct fault *fault)
{
    char name[200];

    key_describe(key, name, sizeof name);
    if (raw.len < ENVELOPE_BYTES)
        return fault_set(fault, STATUS_DAMAGED, "DAMAGED_RECORD",
                         "record %s of family %s is truncated to %zu bytes",
                         name, store_family_name(family), raw.len);
    if (raw.data[0] != STORE_FORMAT_VERSION)
        return fault_set(fault, STATUS_DAMAGED, "UNKNOWN_FORMAT",
                         "record %s of family %s has format %u, this build reads format %u",
                         name, store_family_name(family), raw.data[0], STORE_FORMAT_VERSION);
    return fault_set(fault, STATUS_DAMAGED, "DAMAGED_RECORD",
                     "record %s of family %s fails its checksum",
                     name, store_family_name(family));
}

static enum status open_envelope(enum store_family family, struct bytes key, struct bytes raw,
                                 struct bytes *payload, struct fault *fault)
{
    uint32_t stored;

    if (raw.len < ENVELOPE_BYTES || raw.data[0] != STORE_FORMAT_VERSION)
        return damaged_envelope(family, key, raw, fault);
    memcpy(&stored, raw.data + 4, sizeof stored);
    *payload = (struct bytes){raw.data + ENVELOPE_BYTES, raw.len - ENVELOPE_BYTES};
    if (stored != checksum(key, *payload) && !PLANTED(DAMAGE_IGNORED))
        return damaged_envelope(family, key, raw, fault);
    return STATUS_OK;
}

void store_free(struct store *store)
{
    if (store == NULL)
        return;
    store->functions->close(store->backend);
    free(store);
}

struct store_batch *store_batch_new(struct store *store)
{
    struct store_batch *batch = memory_zero(1, sizeof *batch);

    batch->store = store;
    batch->batch = store->functions->batch_new(store->backend);
    return batch;
}

void store_batch_free(struct store_batch *batch)
{
    if (batch == NULL)
        return;
    batch->store->functions->batch_free(batch->batch);
    buffer_release(&batch->scratch);
    free(batch);
}

static void add(struct store_batch *batch, const struct batch_operation *operation)
{
    batch->store->functions->batch_add(batch->batch, operation);
    batch->count++;
}

void store_batch_put(struct store_batch *batch, enum store_family family, struct bytes key,
                     struct bytes value)
{
    uint32_t sum = checksum(key, value);
    uint8_t *raw;

    batch->scratch.len = 0;
    raw = buffer_extend(&batch->scratch, ENVELOPE_BYTES + value.len);
    memset(raw, 0, ENVELOPE_BYTES);
    raw[0] = STORE_FORMAT_VERSION;
    memcpy(raw + 4, &sum, sizeof sum);
    if (value.len > 0)
        memcpy(raw + ENVELOPE_BYTES, value.data, value.len);
    add(batch, &(struct batch_operation){BATCH_PUT, family, key, buffer_bytes(&batch->scratch)});
}

void store_batch_delete(struct store_batch *batch, enum store_family family, struct bytes key)
{
    add(batch, &(struct batch_operation){BATCH_DELETE, family, key, BYTES_NONE});
}

void store_batch_delete_range(struct store_batch *batch, enum store_family family,
                              struct bytes from, struct bytes to)
{
    add(batch, &(struct batch_operation){BATCH_DELETE_RANGE, family, from, to});
}

size_t store_batch_count(const struct store_batch *batch)
{
    return batch->count;
}

static enum status write_as(struct store *store, struct store_batch *batch, enum durability durability,
                            struct fault *fault)
{
    enum status status = store->functions->write(store->backend, batch->batch, durability, fault);

    if (status == STATUS_OK)
        batch->count = 0;
    return status;
}

enum status store_write(struct store *store, struct store_batch *batch, bool sync,
                        struct fault *fault)
{
    return write_as(store, batch, sync ? DURABLE_NOW : DURABLE_WITH_NEXT_SYNC, fault);
}

enum status store_write_unlogged(struct store *store, struct store_batch *batch, struct fault *fault)
{
    return write_as(store, batch, DURABLE_WITH_FLUSH, fault);
}

enum status store_compact(struct store *store, enum store_family family, struct bytes from, struct bytes to,
                          struct fault *fault)
{
    return store->functions->compact(store->backend, family, from, to, fault);
}

enum status store_flush(struct store *store, enum store_family family, struct fault *fault)
{
    return store->functions->flush(store->backend, family, fault);
}

enum status store_get(struct store *store, enum store_family family, struct bytes key,
                      struct arena *arena, struct bytes *value, struct fault *fault)
{
    struct bytes raw;
    struct bytes payload;
    void *owner = NULL;
    enum status status =
        store->functions->get(store->backend, family, key, &raw, &owner, fault);

    if (status != STATUS_OK)
        return status;
    status = open_envelope(family, key, raw, &payload, fault);
    if (status == STATUS_OK)
        *value = arena_copy(arena, payload);
    store->functions->get_release(owner);
    return status;
}

enum status store_get_many(struct store *store, enum store_family family, const struct bytes *keys, size_t count,
                           struct arena *arena, struct bytes *values, struct fault *fault)
{
    struct bytes raw[STORE_GET_MANY_MAX];
    void *owners[STORE_GET_MANY_MAX];
    enum status status;

    assert(count <= STORE_GET_MANY_MAX);
    status = store->functions->get_many(store->backend, family, keys, count, raw, owners, fault);
    for (size_t i = 0; i < count; i++) {
        struct bytes payload;

        values[i] = BYTES_NONE;
        if (owners[i] == NULL)
            continue;
        if (status == STATUS_OK)
            status = open_envelope(family, keys[i], raw[i], &payload, fault);
        if (status == STATUS_OK)
            values[i] = arena_copy(arena, payload);
        store->functions->get_release(owners[i]);
    }
    return status;
}

struct store_cursor *store_cursor_new(struct store *store, enum store_family family,
                                      struct bytes from, struct bytes to, bool reverse)
{
    struct store_cursor *cursor = memory_zero(1, sizeof *cursor);

    cursor->store = store;
    cursor->family = family;
    cursor->cursor = store->functions->cursor_new(store->backend, family, from, to, reverse);
    return cursor;
}

void store_cursor_free(struct store_cursor *cursor)
{
    if (cursor == NULL)
        return;
    cursor->store->functions->cursor_free(cursor->cursor);
    free(cursor);
}

enum status store_cursor_next(struct store_cursor *cursor, struct bytes *key, struct bytes *value,
                              struct fault *fault)
{
    struct bytes raw;
    enum status status =
        cursor->store->functions->cursor_next(cursor->cursor, key, &raw, fault);

    return status == STATUS_OK ? open_envelope(cursor->family, *key, raw, value, fault) : status;
}

void store_usage(struct store *store, uint64_t *memory_bytes, uint64_t *disk_bytes)
{
    store->functions->usage(store->backend, memory_bytes, disk_bytes);
}

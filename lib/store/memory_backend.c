/*
 * The store in memory: one sorted array per family. For tests and the simulator, which want the
 * same results as the disk gives, not its speed.
 */
#include <stdlib.h>

#include "backend.h"

struct record {
    struct bytes key;
    struct bytes value;
};

struct memory_store {
    struct {
        struct record *records;
        size_t count;
        size_t room;
    } families[STORE_FAMILIES];
    uint64_t fail_in; /* operations until one fails; 0 for never */
};

struct memory_batch {
    struct arena arena;
    struct batch_operation *operations;
    size_t count;
    size_t room;
};

struct memory_cursor {
    struct memory_store *store;
    enum store_family family;
    struct store_key_copy {
        uint8_t *data;
        size_t len;
    } from, to;
    bool reverse;
    bool started;
    struct buffer last; /* key given last; the array may have moved since */
    struct buffer value;
};

static int compare(struct bytes a, struct bytes b)
{
    size_t shorter = a.len < b.len ? a.len : b.len;
    int order = shorter == 0 ? 0 : memcmp(a.data, b.data, shorter);

    return order != 0 ? order : a.len < b.len ? -1 : a.len > b.len;
}

/* First record that isn't before the key. */
static size_t lower_bound(const struct memory_store *store, enum store_family family,
                          struct bytes key)
{
    size_t low = 0;
    size_t high = store->families[family].count;

    while (low < high) {
        size_t middle = (low + high) / 2;

        if (compare(store->families[family].records[middle].key, key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct bytes own(struct bytes b)
{
    uint8_t *copy = memory_take(b.len);

    if (b.len > 0)
        memcpy(copy, b.data, b.len);
    return (struct bytes){copy, b.len};
}

static void remove_between(struct memory_store *store, enum store_family family, size_t from,
                           size_t to)
{
    struct record *records = store->families[family].records;

    for (size_t i = from; i < to; i++) {
        free((void *)records[i].key.data);
        free((void *)records[i].value.data);
    }
    if (to > from)
        memmove(records + from, records + to,
                (store->families[family].count - to) * sizeof *records);
    store->families[family].count -= to - from;
}

static void apply(struct memory_store *store, const struct batch_operation *op)
{
    size_t at = lower_bound(store, op->family, op->key);
    size_t count = store->families[op->family].count;
    struct record *records = store->families[op->family].records;
    bool found = at < count && compare(records[at].key, op->key) == 0;

    if (op->kind == BATCH_DELETE_RANGE) {
        size_t end = lower_bound(store, op->family, op->value);

        remove_between(store, op->family, at, end > at ? end : at);
        return;
    }
    if (found)
        remove_between(store, op->family, at, at + 1);
    if (op->kind == BATCH_DELETE)
        return;
    count = store->families[op->family].count;
    if (count == store->families[op->family].room) {
        store->families[op->family].room = count == 0 ? 64 : count * 2;
        store->families[op->family].records =
            memory_grow(records, store->families[op->family].room * sizeof *records);
        records = store->families[op->family].records;
    }
    memmove(records + at + 1, records + at, (count - at) * sizeof *records);
    records[at] = (struct record){own(op->key), own(op->value)};
    store->families[op->family].count++;
}

static enum status fail_now(struct memory_store *store, struct fault *fault)
{
    if (store->fail_in == 0 || --store->fail_in > 0)
        return STATUS_OK;
    return fault_set(fault, STATUS_FAILED, "DISK_FAILED", "the store was told to fail here");
}

static void *batch_new(void *backend)
{
    (void)backend;
    return memory_zero(1, sizeof(struct memory_batch));
}

static void batch_free(void *pointer)
{
    struct memory_batch *batch = pointer;

    arena_release(&batch->arena);
    free(batch->operations);
    free(batch);
}

static void batch_add(void *pointer, const struct batch_operation *operation)
{
    struct memory_batch *batch = pointer;

    if (batch->count == batch->room) {
        batch->room = batch->room == 0 ? 16 : batch->room * 2;
        batch->operations =
            memory_grow(batch->operations, batch->room * sizeof *batch->operations);
    }
    batch->operations[batch->count] = *operation;
    batch->operations[batch->count].key = arena_copy(&batch->arena, operation->key);
    batch->operations[batch->count].value = arena_copy(&batch->arena, operation->value);
    batch->count++;
}

static enum status write_batch(void *backend, void *pointer, enum durability durability, struct fault *fault)
{
    struct memory_batch *batch = pointer;
    enum status status = fail_now(backend, fault);

    (void)durability;
    if (status != STATUS_OK)
        return status;
    for (size_t i = 0; i < batch->count; i++)
        apply(backend, &batch->operations[i]);
    batch->count = 0;
    arena_reset(&batch->arena);
    return STATUS_OK;
}

static enum status compact(void *backend, enum store_family family, struct bytes from, struct bytes to,
                           struct fault *fault)
{
    (void)backend;
    (void)family;
    (void)from;
    (void)to;
    (void)fault;
    return STATUS_OK; /* what is deleted is gone */
}

static enum status flush(void *backend, enum store_family family, struct fault *fault)
{
    (void)family;
    return fail_now(backend, fault);
}

static enum status get(void *backend, enum store_family family, struct bytes key,
                       struct bytes *raw, void **owner, struct fault *fault)
{
    struct memory_store *store = backend;
    size_t at = lower_bound(store, family, key);
    enum status status = fail_now(store, fault);

    if (status != STATUS_OK)
        return status;
    if (at == store->families[family].count ||
        compare(store->families[family].records[at].key, key) != 0)
        return STATUS_NOT_FOUND;
    *raw = store->families[family].records[at].value;
    *owner = NULL;
    return STATUS_OK;
}

static enum status get_many(void *backend, enum store_family family, const struct bytes *keys, size_t count,
                            struct bytes *raw, void **owners, struct fault *fault)
{
    enum status status = STATUS_OK;

    for (size_t i = 0; i < count; i++) {
        enum status one = status == STATUS_OK ? get(backend, family, keys[i], &raw[i], &owners[i], fault)
                                              : STATUS_NOT_FOUND;

        owners[i] = one == STATUS_OK ? backend : NULL; /* nothing is released */
        if (one != STATUS_OK && one != STATUS_NOT_FOUND)
            status = one;
    }
    return status;
}

static void get_release(void *owner)
{
    (void)owner;
}

static void *cursor_new(void *backend, enum store_family family, struct bytes from,
                        struct bytes to, bool reverse)
{
    struct memory_cursor *cursor = memory_zero(1, sizeof *cursor);
    struct bytes a = own(from);
    struct bytes b = own(to);

    cursor->store = backend;
    cursor->family = family;
    cursor->from = (struct store_key_copy){(uint8_t *)a.data, a.len};
    cursor->to = (struct store_key_copy){(uint8_t *)b.data, b.len};
    cursor->reverse = reverse;
    return cursor;
}

static void cursor_free(void *pointer)
{
    struct memory_cursor *cursor = pointer;

    free(cursor->from.data);
    free(cursor->to.data);
    buffer_release(&cursor->last);
    buffer_release(&cursor->value);
    free(cursor);
}

static enum status cursor_next(void *pointer, struct bytes *key, struct bytes *raw,
                               struct fault *fault)
{
    struct memory_cursor *cursor = pointer;
    struct record *records = cursor->store->families[cursor->family].records;
    size_t count = cursor->store->families[cursor->family].count;
    struct bytes from = {cursor->from.data, cursor->from.len};
    struct bytes to = {cursor->to.data, cursor->to.len};
    struct bytes last = buffer_bytes(&cursor->last);
    enum status status = fail_now(cursor->store, fault);
    size_t at;

    if (status != STATUS_OK)
        return status;
    if (cursor->reverse) {
        at = lower_bound(cursor->store, cursor->family, cursor->started ? last : to);
        if (at == 0 || compare(records[at - 1].key, from) < 0)
            return STATUS_NOT_FOUND;
        at--;
    } else {
        at = lower_bound(cursor->store, cursor->family, cursor->started ? last : from);
        if (cursor->started && at < count && compare(records[at].key, last) == 0)
            at++;
        if (at >= count || compare(records[at].key, to) >= 0)
            return STATUS_NOT_FOUND;
    }
    cursor->started = true;
    cursor->last.len = 0;
    cursor->value.len = 0;
    buffer_add(&cursor->last, records[at].key.data, records[at].key.len);
    buffer_add(&cursor->value, records[at].value.data, records[at].value.len);
    *key = buffer_bytes(&cursor->last);
    *raw = buffer_bytes(&cursor->value);
    return STATUS_OK;
}

static void usage(void *backend, uint64_t *memory_bytes, uint64_t *disk_bytes)
{
    (void)backend;
    *memory_bytes = 0;
    *disk_bytes = 0;
}

static void close_memory(void *backend)
{
    struct memory_store *store = backend;

    for (int family = 0; family < STORE_FAMILIES; family++) {
        remove_between(store, (enum store_family)family, 0, store->families[family].count);
        free(store->families[family].records);
    }
    free(store);
}

bool store_memory_rot(struct store *store, enum store_family family, struct bytes key, size_t bit)
{
    struct memory_store *memory = store->backend;
    size_t at = lower_bound(memory, family, key);
    struct record *record = &memory->families[family].records[at];

    if (at == memory->families[family].count || compare(record->key, key) != 0)
        return false;
    bit %= record->value.len * 8;
    ((uint8_t *)record->value.data)[bit / 8] ^= (uint8_t)(1U << bit % 8);
    return true;
}

uint64_t store_memory_fail(struct store *store, uint64_t n)
{
    struct memory_store *memory = store->backend;
    uint64_t left = memory->fail_in;

    memory->fail_in = n;
    return left;
}

static const struct backend functions = {
    .batch_new = batch_new,
    .batch_free = batch_free,
    .batch_add = batch_add,
    .write = write_batch,
    .flush = flush,
    .compact = compact,
    .get = get,
    .get_many = get_many,
    .get_release = get_release,
    .cursor_new = cursor_new,
    .cursor_free = cursor_free,
    .cursor_next = cursor_next,
    .usage = usage,
    .close = close_memory,
};

enum status store_open_memory(struct store **out)
{
    struct store *store = memory_zero(1, sizeof *store);

    store->functions = &functions;
    store->backend = memory_zero(1, sizeof(struct memory_store));
    *out = store;
    return STATUS_OK;
}

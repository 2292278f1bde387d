/*
 * What was destroyed must not lie on below the deletion, in older files: a mark says so until the driver has
 * compacted the partition's keys and log, over restarts too.
 *
 *   META  part/PARTITION destroyed HOW NUMBER   in the batch that deletes; deleted by who has compacted
 *
 * Each has a name of its own, so that who has compacted takes away those that were there before only.
 */
#include "store.h"

static struct store_key mark(uint16_t partition, char how, uint64_t number)
{
    char name[40];

    snprintf(name, sizeof name, "destroyed %c %016llx", how, (unsigned long long)number);
    return key_partition_meta(partition, name);
}

void destroyed_mark(struct store_batch *batch, uint16_t partition, enum destroyed_how how, uint64_t number)
{
    struct store_key key = mark(partition, (char)how, number);

    store_batch_put(batch, STORE_META, key_bytes(&key), BYTES_NONE);
}

size_t destroyed_settle(struct store *store, uint16_t partition, struct store_batch *batch)
{
    struct store_key from = mark(partition, 'a', 0);
    struct store_key to = mark(partition, 'z', 0);
    struct store_cursor *cursor;
    struct bytes key, value;
    struct fault fault;
    size_t count = 0;

    cursor = store_cursor_new(store, STORE_META, key_bytes(&from), key_bytes(&to), false);
    for (; store_cursor_next(cursor, &key, &value, &fault) == STATUS_OK; count++)
        if (batch != NULL)
            store_batch_delete(batch, STORE_META, key);
    store_cursor_free(cursor);
    return count;
}

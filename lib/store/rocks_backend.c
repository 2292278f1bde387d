/*
 * The store on disk: one RocksDB with a column family for each family. The only file that knows
 * RocksDB. All its options are set here and nowhere else.
 */
#include <errno.h>
#include <rocksdb/c.h>
#include <sys/stat.h>

#include "backend.h"

struct rocks {
    rocksdb_t *db;
    rocksdb_options_t *options;
    rocksdb_options_t *family_options[STORE_FAMILIES];
    rocksdb_block_based_table_options_t *table_options;
    rocksdb_cache_t *cache;
    rocksdb_column_family_handle_t *families[STORE_FAMILIES + 1]; /* last: "default" */
    rocksdb_writeoptions_t *write_sync;
    rocksdb_env_t *env;
    rocksdb_writeoptions_t *write_plain;
    rocksdb_writeoptions_t *write_unlogged;
    rocksdb_readoptions_t *read;
    rocksdb_compactionfilter_t *age_filter; /* the options only borrow it */
    uint64_t retention_ms;
};

struct rocks_batch {
    struct rocks *rocks;
    rocksdb_writebatch_t *batch;
};

struct rocks_cursor {
    rocksdb_iterator_t *iterator;
    rocksdb_readoptions_t *read;
    uint8_t *bounds;
    struct bytes from;
    struct bytes to;
    bool reverse;
    bool started;
};

enum {
    DEFAULT_MEMORY_BYTES = 48 << 20,
    ZSTD_FAST = 1,       /* its level: merging is much of what a command costs */
    LOG_TABLES_MAX = 24, /* before they are merged: most of what is in them is trimmed by then */
};

static enum status world_fault(struct fault *fault, const char *doing, char *error)
{
    enum status status = strstr(error, "No space") != NULL ? STATUS_EXHAUSTED : STATUS_FAILED;

    if (strstr(error, "Corruption") != NULL)
        status = STATUS_DAMAGED;
    fault_set(fault, status, status == STATUS_EXHAUSTED ? "DISK_FULL"
              : status == STATUS_DAMAGED                ? "DAMAGED_STORE"
                                                        : "DISK_FAILED",
              "%s: %s", doing, error);
    rocksdb_free(error);
    return status;
}

static void *batch_new(void *backend)
{
    struct rocks_batch *batch = memory_zero(1, sizeof *batch);

    batch->rocks = backend;
    batch->batch = rocksdb_writebatch_create();
    return batch;
}

static void batch_free(void *pointer)
{
    struct rocks_batch *batch = pointer;

    rocksdb_writebatch_destroy(batch->batch);
    free(batch);
}

static void batch_add(void *pointer, const struct batch_operation *op)
{
    struct rocks_batch *batch = pointer;
    rocksdb_column_family_handle_t *family = batch->rocks->families[op->family];

    switch (op->kind) {
    case BATCH_PUT:
        rocksdb_writebatch_put_cf(batch->batch, family, (const char *)op->key.data, op->key.len,
                                  (const char *)op->value.data, op->value.len);
        break;
    case BATCH_DELETE:
        rocksdb_writebatch_delete_cf(batch->batch, family, (const char *)op->key.data,
                                     op->key.len);
        break;
    case BATCH_DELETE_RANGE:
        rocksdb_writebatch_delete_range_cf(batch->batch, family, (const char *)op->key.data,
                                           op->key.len, (const char *)op->value.data,
                                           op->value.len);
        break;
    }
}

static enum status write_batch(void *backend, void *pointer, enum durability durability, struct fault *fault)
{
    struct rocks *rocks = backend;
    struct rocks_batch *batch = pointer;
    const rocksdb_writeoptions_t *how = durability == DURABLE_NOW          ? rocks->write_sync
                                        : durability == DURABLE_WITH_FLUSH ? rocks->write_unlogged
                                                                           : rocks->write_plain;
    char *error = NULL;

    rocksdb_write(rocks->db, how, batch->batch, &error);
    if (error != NULL)
        return world_fault(fault, "cannot write to the data directory", error);
    rocksdb_writebatch_clear(batch->batch);
    return STATUS_OK;
}

static enum status compact(void *backend, enum store_family family, struct bytes from, struct bytes to,
                           struct fault *fault)
{
    struct rocks *rocks = backend;
    rocksdb_compactoptions_t *options = rocksdb_compactoptions_create();

    (void)fault; /* it has no way to fail but the one that ends the next write */
    rocksdb_compactoptions_set_bottommost_level_compaction(options, 1);
    rocksdb_compact_range_cf_opt(rocks->db, rocks->families[family], options, (const char *)from.data, from.len,
                                 (const char *)to.data, to.len);
    rocksdb_compactoptions_destroy(options);
    return STATUS_OK;
}

static enum status flush(void *backend, enum store_family family, struct fault *fault)
{
    struct rocks *rocks = backend;
    rocksdb_flushoptions_t *options = rocksdb_flushoptions_create();
    char *error = NULL;

    rocksdb_flushoptions_set_wait(options, 1);
    rocksdb_flush_cf(rocks->db, options, rocks->families[family], &error);
    rocksdb_flushoptions_destroy(options);
    return error == NULL ? STATUS_OK : world_fault(fault, "cannot write to the data directory", error);
}

static enum status get(void *backend, enum store_family family, struct bytes key,
                       struct bytes *raw, void **owner, struct fault *fault)
{
    struct rocks *rocks = backend;
    char *error = NULL;
    rocksdb_pinnableslice_t *slice =
        rocksdb_get_pinned_cf(rocks->db, rocks->read, rocks->families[family],
                              (const char *)key.data, key.len, &error);

    if (error != NULL)
        return world_fault(fault, "cannot read from the data directory", error);
    if (slice == NULL)
        return STATUS_NOT_FOUND;
    raw->data = (const uint8_t *)rocksdb_pinnableslice_value(slice, &raw->len);
    *owner = slice;
    return STATUS_OK;
}

static enum status get_many(void *backend, enum store_family family, const struct bytes *keys, size_t count,
                            struct bytes *raw, void **owners, struct fault *fault)
{
    struct rocks *rocks = backend;
    const char *names[STORE_GET_MANY_MAX] = {NULL};
    size_t lengths[STORE_GET_MANY_MAX] = {0};
    rocksdb_pinnableslice_t *values[STORE_GET_MANY_MAX];
    char *errors[STORE_GET_MANY_MAX];
    enum status status = STATUS_OK;

    if (count == 0)
        return STATUS_OK;
    for (size_t i = 0; i < count; i++) {
        names[i] = (const char *)keys[i].data;
        lengths[i] = keys[i].len;
    }
    rocksdb_batched_multi_get_cf(rocks->db, rocks->read, rocks->families[family], count, names, lengths, values,
                                 errors, false);
    for (size_t i = 0; i < count; i++) {
        owners[i] = values[i];
        if (values[i] != NULL)
            raw[i].data = (const uint8_t *)rocksdb_pinnableslice_value(values[i], &raw[i].len);
        if (errors[i] != NULL && status == STATUS_OK)
            status = world_fault(fault, "cannot read from the data directory", errors[i]);
        else if (errors[i] != NULL)
            rocksdb_free(errors[i]);
    }
    return status;
}

static void get_release(void *owner)
{
    rocksdb_pinnableslice_destroy(owner);
}

static void *cursor_new(void *backend, enum store_family family, struct bytes from,
                        struct bytes to, bool reverse)
{
    struct rocks *rocks = backend;
    struct rocks_cursor *cursor = memory_zero(1, sizeof *cursor);

    cursor->bounds = memory_take(from.len + to.len);
    memcpy(cursor->bounds, from.data, from.len);
    memcpy(cursor->bounds + from.len, to.data, to.len);
    cursor->from = (struct bytes){cursor->bounds, from.len};
    cursor->to = (struct bytes){cursor->bounds + from.len, to.len};
    cursor->reverse = reverse;
    cursor->read = rocksdb_readoptions_create();
    rocksdb_readoptions_set_iterate_lower_bound(cursor->read, (const char *)cursor->from.data,
                                                from.len);
    rocksdb_readoptions_set_iterate_upper_bound(cursor->read, (const char *)cursor->to.data,
                                                to.len);
    cursor->iterator =
        rocksdb_create_iterator_cf(rocks->db, cursor->read, rocks->families[family]);
    return cursor;
}

static void cursor_free(void *pointer)
{
    struct rocks_cursor *cursor = pointer;

    rocksdb_iter_destroy(cursor->iterator);
    rocksdb_readoptions_destroy(cursor->read);
    free(cursor->bounds);
    free(cursor);
}

static enum status cursor_next(void *pointer, struct bytes *key, struct bytes *raw,
                               struct fault *fault)
{
    struct rocks_cursor *cursor = pointer;
    char *error = NULL;

    if (!cursor->started && cursor->reverse)
        rocksdb_iter_seek_to_last(cursor->iterator);
    else if (!cursor->started)
        rocksdb_iter_seek_to_first(cursor->iterator);
    else if (cursor->reverse)
        rocksdb_iter_prev(cursor->iterator);
    else
        rocksdb_iter_next(cursor->iterator);
    cursor->started = true;
    if (!rocksdb_iter_valid(cursor->iterator)) {
        rocksdb_iter_get_error(cursor->iterator, &error);
        return error == NULL ? STATUS_NOT_FOUND
                             : world_fault(fault, "cannot read from the data directory", error);
    }
    key->data = (const uint8_t *)rocksdb_iter_key(cursor->iterator, &key->len);
    raw->data = (const uint8_t *)rocksdb_iter_value(cursor->iterator, &raw->len);
    return STATUS_OK;
}

static void usage(void *backend, uint64_t *memory_bytes, uint64_t *disk_bytes)
{
    struct rocks *rocks = backend;
    uint64_t value = 0;

    *memory_bytes = rocksdb_cache_get_usage(rocks->cache);
    *disk_bytes = 0;
    for (int i = 0; i < STORE_FAMILIES; i++) {
        if (rocksdb_property_int_cf(rocks->db, rocks->families[i],
                                    "rocksdb.cur-size-all-mem-tables", &value) == 0)
            *memory_bytes += value;
        if (rocksdb_property_int_cf(rocks->db, rocks->families[i], "rocksdb.total-sst-files-size",
                                    &value) == 0)
            *disk_bytes += value;
    }
}

/* Outcomes carry their time as the first eight bytes of the payload; old ones go at compaction. */
static unsigned char outcome_expired(void *state, int level, const char *key, size_t key_len,
                                     const char *value, size_t value_len, char **new_value,
                                     size_t *new_len, unsigned char *changed)
{
    const struct rocks *rocks = state;
    int64_t time_ms;

    (void)level;
    (void)key;
    (void)key_len;
    (void)new_value;
    (void)new_len;
    *changed = 0;
    if (rocks->retention_ms == 0 || value_len < ENVELOPE_BYTES + sizeof time_ms)
        return 0;
    memcpy(&time_ms, value + ENVELOPE_BYTES, sizeof time_ms);
    return time_ms > 0 && clock_wall_ms() - time_ms > (int64_t)rocks->retention_ms;
}

static const char *filter_name(void *state)
{
    (void)state;
    return "cairn.outcome-age";
}

static void filter_free(void *state)
{
    (void)state;
}

static void rocks_close(void *backend)
{
    struct rocks *rocks = backend;

    for (int i = 0; i <= STORE_FAMILIES; i++)
        if (rocks->families[i] != NULL)
            rocksdb_column_family_handle_destroy(rocks->families[i]);
    if (rocks->db != NULL)
        rocksdb_close(rocks->db);
    for (int i = 0; i < STORE_FAMILIES; i++)
        if (rocks->family_options[i] != NULL)
            rocksdb_options_destroy(rocks->family_options[i]);
    if (rocks->age_filter != NULL)
        rocksdb_compactionfilter_destroy(rocks->age_filter);
    if (rocks->options != NULL)
        rocksdb_options_destroy(rocks->options);
    if (rocks->env != NULL)
        rocksdb_env_destroy(rocks->env);
    if (rocks->table_options != NULL)
        rocksdb_block_based_options_destroy(rocks->table_options);
    if (rocks->cache != NULL)
        rocksdb_cache_destroy(rocks->cache);
    if (rocks->write_sync != NULL)
        rocksdb_writeoptions_destroy(rocks->write_sync);
    if (rocks->write_plain != NULL)
        rocksdb_writeoptions_destroy(rocks->write_plain);
    if (rocks->write_unlogged != NULL)
        rocksdb_writeoptions_destroy(rocks->write_unlogged);
    if (rocks->read != NULL)
        rocksdb_readoptions_destroy(rocks->read);
    free(rocks);
}

static rocksdb_options_t *family_options(struct rocks *rocks, enum store_family family,
                                         size_t memory)
{
    rocksdb_options_t *options = rocksdb_options_create_copy(rocks->options);
    size_t buffer = family == STORE_EVENTS || family == STORE_LOG ? memory / 6 : memory / 16;

    rocksdb_options_set_block_based_table_factory(options, rocks->table_options);
    rocksdb_options_set_write_buffer_size(options, buffer);
    /* New tables are merged with all of the first level: four memory tables with as much. With the default's 256 MiB
     * merging took a whole core, and writes waited for it. */
    rocksdb_options_set_max_bytes_for_level_base(options, 4 * buffer);
    rocksdb_options_set_target_file_size_base(options, buffer);
    rocksdb_options_set_target_file_size_multiplier(options, 2);
    if (family == STORE_LOG) {
        /* Written once, deleted soon: no use in compressing, nor in compacting what will be gone. */
        rocksdb_options_set_compression(options, rocksdb_no_compression);
        rocksdb_options_set_level0_file_num_compaction_trigger(options, LOG_TABLES_MAX);
        rocksdb_options_set_level0_slowdown_writes_trigger(options, 4 * LOG_TABLES_MAX);
        rocksdb_options_set_level0_stop_writes_trigger(options, 8 * LOG_TABLES_MAX);
    } else {
        rocksdb_options_set_compression(options, rocksdb_lz4_compression);
        rocksdb_options_set_bottommost_compression(options, rocksdb_zstd_compression);
        rocksdb_options_set_bottommost_compression_options(options, -14, ZSTD_FAST, 0, 0, 1);
    }
    if (family == STORE_OUTCOMES) {
        /* Asked for each command, and nearly always in vain; their keys come in no order at all. */
        rocksdb_options_set_memtable_whole_key_filtering(options, 1);
        rocksdb_options_set_memtable_prefix_bloom_size_ratio(options, 0.05);
        rocksdb_options_set_compaction_style(options, rocksdb_universal_compaction);
        rocks->age_filter =
            rocksdb_compactionfilter_create(rocks, filter_free, outcome_expired, filter_name);
        rocksdb_options_set_compaction_filter(options, rocks->age_filter);
    }
    return options;
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
    .close = rocks_close,
};

enum status store_open(struct store **out, const struct store_settings *settings,
                       struct fault *fault)
{
    size_t memory = settings->memory_bytes == 0 ? DEFAULT_MEMORY_BYTES : settings->memory_bytes;
    struct rocks *rocks = memory_zero(1, sizeof *rocks);
    const char *names[STORE_FAMILIES + 1];
    const rocksdb_options_t *options[STORE_FAMILIES + 1];
    char *error = NULL;
    char doing[512];
    struct store *store;

    rocks->retention_ms = settings->outcome_retention_ms;
    rocks->cache = rocksdb_cache_create_lru(memory / 3);
    rocks->table_options = rocksdb_block_based_options_create();
    rocksdb_block_based_options_set_block_cache(rocks->table_options, rocks->cache);
    rocksdb_block_based_options_set_filter_policy(rocks->table_options,
                                                  rocksdb_filterpolicy_create_bloom(10));
    /* Indexes and filters live in the cache, in parts: whole ones of big, well compressed tables don't fit
     * together, and each read would load megabytes of index (seen: 1,400 events/s out of the log). */
    rocksdb_block_based_options_set_cache_index_and_filter_blocks(rocks->table_options, 1);
    rocksdb_block_based_options_set_index_type(
        rocks->table_options, rocksdb_block_based_table_index_type_two_level_index_search);
    rocksdb_block_based_options_set_partition_filters(rocks->table_options, 1);
    rocksdb_block_based_options_set_pin_top_level_index_and_filter(rocks->table_options, 1);
    rocksdb_block_based_options_set_cache_index_and_filter_blocks_with_high_priority(rocks->table_options, 1);
    rocks->options = rocksdb_options_create();
    rocks->env = rocksdb_create_default_env();
    rocksdb_env_lower_thread_pool_cpu_priority(rocks->env); /* compaction; nobody waits for it */
    rocksdb_options_set_env(rocks->options, rocks->env);
    rocksdb_options_set_create_if_missing(rocks->options, 1);
    rocksdb_options_set_create_missing_column_families(rocks->options, 1);
    rocksdb_options_set_paranoid_checks(rocks->options, 1);
    rocksdb_options_set_max_background_jobs(rocks->options, 2);
    rocksdb_options_set_max_open_files(rocks->options, 512);
    rocksdb_options_set_keep_log_file_num(rocks->options, 2);
    rocksdb_options_set_max_total_wal_size(rocks->options, 64 << 20);
    rocksdb_options_set_recycle_log_file_num(rocks->options, 0);
    /* Tables go to the disk bit by bit: all at once they hold up the syncs of commands. */
    rocksdb_options_set_bytes_per_sync(rocks->options, 1 << 20);
    /* A torn tail of the WAL is a crash, anything else in it is damage. */
    rocksdb_options_set_wal_recovery_mode(rocks->options,
                                          rocksdb_tolerate_corrupted_tail_records_recovery);
    for (int i = 0; i < STORE_FAMILIES; i++) {
        rocks->family_options[i] = family_options(rocks, (enum store_family)i, memory);
        names[i] = store_family_name((enum store_family)i);
        options[i] = rocks->family_options[i];
    }
    names[STORE_FAMILIES] = "default";
    options[STORE_FAMILIES] = rocks->options;
    rocks->write_sync = rocksdb_writeoptions_create();
    rocksdb_writeoptions_set_sync(rocks->write_sync, 1);
    rocks->write_plain = rocksdb_writeoptions_create();
    rocks->write_unlogged = rocksdb_writeoptions_create();
    rocksdb_writeoptions_disable_WAL(rocks->write_unlogged, 1);
    rocks->read = rocksdb_readoptions_create();
    rocks->db = rocksdb_open_column_families(rocks->options, settings->path, STORE_FAMILIES + 1,
                                             names, options, rocks->families, &error);
    if (error != NULL) {
        snprintf(doing, sizeof doing, "cannot open the store in %s", settings->path);
        rocks_close(rocks);
        return world_fault(fault, doing, error);
    }
    store = memory_zero(1, sizeof *store);
    store->functions = &functions;
    store->backend = rocks;
    *out = store;
    return STATUS_OK;
}

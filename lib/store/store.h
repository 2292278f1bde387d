/*
 * The store of one node: eight column families of ordered keys, written in atomic batches. Every
 * value carries a format version and a checksum over key and value, which each read verifies: a
 * damaged record is reported with its key and never served or skipped.
 *
 * Two backends fill the same functions: RocksDB, and memory for the simulator and tests.
 * Thread rule: writes from one thread at a time; reads from any thread.
 */
#ifndef CAIRN_STORE_H
#define CAIRN_STORE_H

#include "base/base.h"

enum store_family {
    STORE_EVENTS,
    STORE_POSITIONS,
    STORE_SNAPSHOTS,
    STORE_OUTCOMES,
    STORE_LOG,
    STORE_CURSORS,
    STORE_KEYS,
    STORE_META,
    STORE_FAMILIES,
};

#define STORE_FORMAT_VERSION 1

struct store;

/* ---- opening ---- */

struct store_settings {
    const char *path;
    size_t memory_bytes;          /* write buffers and block cache together; 0 for the default */
    uint64_t outcome_retention_ms;
};

/* Open or create. Faults name the path and the way out. */
MUST_USE enum status store_open(struct store **out, const struct store_settings *settings,
                                struct fault *fault);
MUST_USE enum status store_open_memory(struct store **out);
void store_free(struct store *store);
/* Of a store in memory: the n-th read or write from now on fails, once; 0 takes that back. Gives how many
 * were still to come before the one told of last; 0 when that has failed. */
uint64_t store_memory_fail(struct store *store, uint64_t n);
/* Of a store in memory: flip one bit of the value at rest, as a disk may. False when the key isn't there. */
bool store_memory_rot(struct store *store, enum store_family family, struct bytes key, size_t bit);

/* ---- batches: all or nothing ---- */

struct store_batch;

struct store_batch *store_batch_new(struct store *store);
void store_batch_free(struct store_batch *batch);
void store_batch_put(struct store_batch *batch, enum store_family family, struct bytes key,
                     struct bytes value);
void store_batch_delete(struct store_batch *batch, enum store_family family, struct bytes key);
/* Deletes [from, to). */
void store_batch_delete_range(struct store_batch *batch, enum store_family family,
                              struct bytes from, struct bytes to);
size_t store_batch_count(const struct store_batch *batch);

/* Apply the batch and empty it. With `sync` it is on disk before this returns, together with
 * everything written before it. */
MUST_USE enum status store_write(struct store *store, struct store_batch *batch, bool sync,
                                 struct fault *fault);
/* For bulk: apply the batch and empty it, past the write-ahead log. After a crash some of it may be there and some
 * not, unless store_flush() of its families came back; that waits for the disk, for as long as it takes. */
MUST_USE enum status store_write_unlogged(struct store *store, struct store_batch *batch, struct fault *fault);
MUST_USE enum status store_flush(struct store *store, enum store_family family, struct fault *fault);

/* Nothing that was deleted or replaced in [from, to) stays on disk. Takes as long as rewriting what is there. */
MUST_USE enum status store_compact(struct store *store, enum store_family family, struct bytes from, struct bytes to,
                                   struct fault *fault);

/* ---- reads ---- */

/* The value is copied into the arena. STATUS_NOT_FOUND when there is none. */
MUST_USE enum status store_get(struct store *store, enum store_family family, struct bytes key,
                               struct arena *arena, struct bytes *value, struct fault *fault);

/* The same for many keys at once, which is faster than one by one; `values` has room for as many. A value is empty
 * when there is none: no record of ours is. */
enum { STORE_GET_MANY_MAX = 128 };
MUST_USE enum status store_get_many(struct store *store, enum store_family family, const struct bytes *keys,
                                    size_t count, struct arena *arena, struct bytes *values,
                                    struct fault *fault);

struct store_cursor;

/* Walk the keys in [from, to), backwards when `reverse`. */
struct store_cursor *store_cursor_new(struct store *store, enum store_family family,
                                      struct bytes from, struct bytes to, bool reverse);
void store_cursor_free(struct store_cursor *cursor);
/* STATUS_NOT_FOUND at the end. Key and value are valid until the next call. */
MUST_USE enum status store_cursor_next(struct store_cursor *cursor, struct bytes *key,
                                       struct bytes *value, struct fault *fault);

/* Approximate bytes of memory and disk, for metrics. */
void store_usage(struct store *store, uint64_t *memory_bytes, uint64_t *disk_bytes);

/* ---- keys: big-endian numbers, so that order of bytes is order of things ---- */

struct store_key {
    uint8_t data[2 + 1 + AGGREGATE_ID_BYTES_MAX + 1 + SUBJECT_BYTES_MAX + 1];
    size_t len;
};

struct store_key key_event(uint16_t partition, struct bytes aggregate_id, uint64_t sequence);
/* Just behind the last possible event of the aggregate. */
struct store_key key_event_end(uint16_t partition, struct bytes aggregate_id);
/* An aggregate has one snapshot; its sequence is in the value. */
struct store_key key_snapshot(uint16_t partition, struct bytes aggregate_id);
struct store_key key_position(uint16_t partition, uint64_t position);
struct store_key key_outcome(uint16_t partition, struct bytes command_id);
/* Of a processor group, in its home partition. */
struct store_key key_cursor(uint16_t home, struct bytes group, uint16_t partition);
struct store_key key_cursor_end(uint16_t home, struct bytes group); /* just behind its last one */
/* Keys of a subject, and just behind the last one. */
struct store_key key_subject(uint16_t partition, struct bytes subject, uint64_t key_id);
struct store_key key_subject_end(uint16_t partition, struct bytes subject);
struct store_key key_subjects(uint16_t partition);     /* before the keys of all subjects */
struct store_key key_subjects_end(uint16_t partition); /* and behind them */
/* That an aggregate has events of a subject; and just behind the last of its subjects. */
struct store_key key_use(uint16_t partition, struct bytes aggregate_id, struct bytes subject);
struct store_key key_use_end(uint16_t partition, struct bytes aggregate_id);
struct store_key key_log(uint16_t partition, uint64_t index);
struct store_key key_meta(const char *name);
struct store_key key_partition_meta(uint16_t partition, const char *name);
/* First key of a partition, and the first behind it, in any family keyed by partition. */
struct store_key key_partition_begin(uint16_t partition);
struct store_key key_partition_end(uint16_t partition);

/* What a replica is made of besides its log: these are shipped to who gets one, and go with it. */
enum { STORE_RANGE_FAMILIES = 6 };
extern const enum store_family store_range_families[STORE_RANGE_FAMILIES];
bool store_family_is_shipped(uint32_t family);

struct bytes key_bytes(const struct store_key *key);
uint64_t key_last_number(struct bytes key); /* the u64 at the end of a key */
const char *store_family_name(enum store_family family);
/* A key for people: printable text as it is, other bytes in hexadecimal. */
void key_describe(struct bytes key, char *out, size_t room);

/* ---- what was destroyed (destroyed.c) ---- */

enum destroyed_how {
    DESTROYED_BY_ORDER = 'o',
    DESTROYED_BY_RANGE = 'r', /* its sender hasn't it any more */
    DESTROYED_BY_DROP = 'd',  /* with the whole replica */
};
/* The batch destroys some of the partition's keys. The number tells it from others of the same kind. */
void destroyed_mark(struct store_batch *batch, uint16_t partition, enum destroyed_how how, uint64_t number);
/* How many marks there are; the batch, unless NULL, deletes them: to be written when all that was destroyed
 * before is off the disk. */
size_t destroyed_settle(struct store *store, uint16_t partition, struct store_batch *batch);

#endif

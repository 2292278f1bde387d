/* The layout of keys (see design: one RocksDB per node). Numbers are big-endian. */
#include "store.h"

static void add_number(struct store_key *key, uint64_t value, int bytes)
{
    for (int i = bytes - 1; i >= 0; i--)
        key->data[key->len++] = (uint8_t)(value >> (8 * i));
}

static void add_bytes(struct store_key *key, struct bytes b)
{
    assert(key->len + b.len <= sizeof key->data);
    if (b.len > 0)
        memcpy(key->data + key->len, b.data, b.len);
    key->len += b.len;
}

static struct store_key with_partition(uint16_t partition)
{
    struct store_key key = {.len = 0};

    add_number(&key, partition, 2);
    return key;
}

struct store_key key_event(uint16_t partition, struct bytes aggregate_id, uint64_t sequence)
{
    struct store_key key = with_partition(partition);

    add_bytes(&key, aggregate_id);
    add_number(&key, 0, 1);
    add_number(&key, sequence, 8);
    return key;
}

struct store_key key_event_end(uint16_t partition, struct bytes aggregate_id)
{
    struct store_key key = with_partition(partition);

    add_bytes(&key, aggregate_id);
    add_number(&key, 1, 1); /* ids hold no NUL, so nothing lies between 0x00 and 0x01 but events */
    return key;
}

struct store_key key_snapshot(uint16_t partition, struct bytes aggregate_id)
{
    struct store_key key = with_partition(partition);

    add_bytes(&key, aggregate_id);
    return key;
}

struct store_key key_position(uint16_t partition, uint64_t position)
{
    struct store_key key = with_partition(partition);

    add_number(&key, position, 8);
    return key;
}

struct store_key key_outcome(uint16_t partition, struct bytes command_id)
{
    struct store_key key = with_partition(partition);

    add_bytes(&key, command_id);
    return key;
}

struct store_key key_cursor(uint16_t home, struct bytes group, uint16_t partition)
{
    struct store_key key = with_partition(home);

    add_bytes(&key, group);
    add_number(&key, 0, 1);
    add_number(&key, partition, 2);
    return key;
}

struct store_key key_cursor_end(uint16_t home, struct bytes group)
{
    struct store_key key = with_partition(home);

    add_bytes(&key, group);
    add_number(&key, 1, 1);
    return key;
}

/* What a record of the keys' family is of. */
enum { OF_SUBJECT = 'k', OF_USE = 'u' };

static struct store_key of_text(uint16_t partition, char kind, struct bytes text, uint64_t end)
{
    struct store_key key = with_partition(partition);

    add_number(&key, (uint64_t)kind, 1);
    add_bytes(&key, text);
    add_number(&key, end, 1);
    return key;
}

struct store_key key_subject(uint16_t partition, struct bytes subject, uint64_t key_id)
{
    struct store_key key = of_text(partition, OF_SUBJECT, subject, 0);

    add_number(&key, key_id, 8);
    return key;
}

struct store_key key_subject_end(uint16_t partition, struct bytes subject)
{
    return of_text(partition, OF_SUBJECT, subject, 1);
}

struct store_key key_subjects(uint16_t partition)
{
    return of_text(partition, OF_SUBJECT, BYTES_NONE, 0);
}

struct store_key key_subjects_end(uint16_t partition)
{
    return of_text(partition, OF_SUBJECT + 1, BYTES_NONE, 0);
}

struct store_key key_use(uint16_t partition, struct bytes aggregate_id, struct bytes subject)
{
    struct store_key key = of_text(partition, OF_USE, aggregate_id, 0);

    add_bytes(&key, subject);
    return key;
}

struct store_key key_use_end(uint16_t partition, struct bytes aggregate_id)
{
    return of_text(partition, OF_USE, aggregate_id, 1);
}

struct store_key key_log(uint16_t partition, uint64_t index)
{
    return key_position(partition, index);
}

struct store_key key_meta(const char *name)
{
    struct store_key key = {.len = 0};

    add_bytes(&key, BYTES_LITERAL("node/"));
    add_bytes(&key, bytes_of(name));
    return key;
}

struct store_key key_partition_meta(uint16_t partition, const char *name)
{
    struct store_key key = {.len = 0};

    add_bytes(&key, BYTES_LITERAL("part/"));
    add_number(&key, partition, 2);
    add_bytes(&key, bytes_of(name));
    return key;
}

struct store_key key_partition_begin(uint16_t partition)
{
    return with_partition(partition);
}

struct store_key key_partition_end(uint16_t partition)
{
    struct store_key key = {.len = 0};

    add_number(&key, (uint64_t)partition + 1, 2);
    if (partition == UINT16_MAX) { /* nothing sorts behind 0xFFFF but longer keys */
        key.len = 0;
        add_number(&key, UINT64_MAX, 8);
        add_number(&key, UINT64_MAX, 8);
    }
    return key;
}

struct bytes key_bytes(const struct store_key *key)
{
    return (struct bytes){key->data, key->len};
}

uint64_t key_last_number(struct bytes key)
{
    uint64_t value = 0;

    assert(key.len >= 8);
    for (size_t i = key.len - 8; i < key.len; i++)
        value = value << 8 | key.data[i];
    return value;
}

const enum store_family store_range_families[STORE_RANGE_FAMILIES] = {STORE_EVENTS, STORE_POSITIONS, STORE_SNAPSHOTS,
                                                                      STORE_OUTCOMES, STORE_CURSORS, STORE_KEYS};

bool store_family_is_shipped(uint32_t family)
{
    for (size_t i = 0; i < STORE_RANGE_FAMILIES; i++)
        if (store_range_families[i] == family)
            return true;
    return false;
}

const char *store_family_name(enum store_family family)
{
    static const char *const names[STORE_FAMILIES] = {
        "events", "positions", "snapshots", "outcomes", "log", "cursors", "keys", "meta",
    };

    return names[family];
}

void key_describe(struct bytes key, char *out, size_t room)
{
    size_t n = 0;

    for (size_t i = 0; i < key.len && n + 5 < room; i++) {
        bool plain = key.data[i] > 0x20 && key.data[i] < 0x7F && key.data[i] != '\\';

        n += (size_t)snprintf(out + n, room - n, plain ? "%c" : "\\x%02x", key.data[i]);
    }
    out[n] = '\0';
}

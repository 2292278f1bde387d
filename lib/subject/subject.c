/* Making, finding and using subjects' keys: see subject.h. */
#include "subject.h"

/* ---- what a sealed thing is bound to ---- */

static void bind_to(struct buffer *out, const struct seal_place *place)
{
    buffer_add(out, &place->kind, 1);
    buffer_add(out, &place->partition, sizeof place->partition);
    buffer_add(out, &place->sequence, sizeof place->sequence);
    buffer_add(out, place->id.data, place->id.len);
}

static void bind_key_to(struct buffer *out, uint16_t partition, struct bytes subject, uint64_t id)
{
    bind_to(out, &(struct seal_place){'K', partition, subject, id});
}

/* ---- keys ---- */

static enum status no_master(struct fault *fault)
{
    return fault_set(fault, STATUS_PRECONDITION, "MASTER_KEY_MISSING",
                     "this node has no master key: what names a subject can't be sealed; see --master-key");
}

static void wrap(const struct vault *vault, uint16_t partition, const struct subject_key *key, struct bytes subject,
                 struct arena *arena, struct key_record *record)
{
    const struct master_key *master = &vault->masters[0];
    struct buffer bound = {0};
    struct buffer wrapped = {0};

    bind_key_to(&bound, partition, subject, key->id);
    vault->cipher.seal(vault->cipher.context, master->key, buffer_bytes(&bound),
                       (struct bytes){key->key, sizeof key->key}, &wrapped);
    *record = (struct key_record){.subject = arena_copy(arena, subject),
                                  .key_id = key->id,
                                  .master = arena_copy(arena, bytes_of(master->id)),
                                  .wrapped = arena_copy(arena, buffer_bytes(&wrapped)),
                                  .made_under = arena_copy(arena, bytes_of(key->made_under))};
    buffer_release(&bound);
    buffer_release(&wrapped);
}

static const struct master_key *master_of(const struct vault *vault, struct bytes id)
{
    for (size_t i = 0; i < vault->master_count; i++)
        if (bytes_equal(bytes_of(vault->masters[i].id), id))
            return &vault->masters[i];
    return NULL;
}

static enum status unwrap(const struct vault *vault, uint16_t partition, const struct key_record *record,
                          struct subject_key *key, struct fault *fault)
{
    const struct master_key *master = master_of(vault, record->master);
    struct buffer bound = {0};
    struct buffer plain = {0};
    bool good;

    if (master == NULL)
        return fault_set(fault, STATUS_PRECONDITION, "MASTER_KEY_MISSING",
                         "a subject's key is wrapped by the master key %.*s, which this node doesn't have; see "
                         "--master-key",
                         (int)record->master.len, (const char *)record->master.data);
    bind_key_to(&bound, partition, record->subject, record->key_id);
    good = vault->cipher.unseal(vault->cipher.context, master->key, buffer_bytes(&bound), record->wrapped, &plain) &&
           plain.len == sizeof key->key;
    if (good) {
        key->id = record->key_id;
        memcpy(key->key, plain.data, plain.len);
        snprintf(key->made_under, sizeof key->made_under, "%.*s", (int)record->made_under.len,
                 (const char *)record->made_under.data);
        explicit_bzero(plain.data, plain.len);
    }
    buffer_release(&bound);
    buffer_release(&plain);
    return good ? STATUS_OK
                : fault_set(fault, STATUS_PRECONDITION, "MASTER_KEY_WRONG",
                            "the master key %s of this node isn't the one that wrapped a subject's key", master->id);
}

/* Drawn, so that what a destroyed key sealed isn't taken for another's: of 63 bits the first, a later one up to 2^32
 * higher, for which there is room two thousand million times. */
static uint64_t draw_id(const struct vault *vault, const struct subject_key *before)
{
    uint64_t drawn;

    do
        vault->cipher.draw(vault->cipher.context, (uint8_t *)&drawn, sizeof drawn);
    while (drawn >> 32 == 0);
    return before == NULL ? drawn >> 1 : before->id + (drawn >> 32);
}

static bool has_room_behind(const struct subject_key *key)
{
    return key->id < UINT64_MAX - UINT32_MAX;
}

bool subject_key_is_retired(const struct vault *vault, const struct subject_key *key)
{
    return vault->master_count > 0 && strcmp(key->made_under, vault->masters[0].id) != 0 && has_room_behind(key);
}

enum status subject_key_make(const struct vault *vault, uint16_t partition, struct bytes subject,
                             const struct subject_key *before, struct arena *arena, struct subject_key *key,
                             struct key_record *record, struct fault *fault)
{
    if (vault == NULL || vault->master_count == 0)
        return no_master(fault);
    key->id = draw_id(vault, before);
    snprintf(key->made_under, sizeof key->made_under, "%s", vault->masters[0].id);
    vault->cipher.draw(vault->cipher.context, key->key, sizeof key->key);
    wrap(vault, partition, key, subject, arena, record);
    return STATUS_OK;
}

enum status subject_key_wrap_again(const struct vault *vault, uint16_t partition, const struct key_record *old,
                                   struct arena *arena, struct key_record *record, struct fault *fault)
{
    struct subject_key key;
    enum status status = vault == NULL ? no_master(fault) : unwrap(vault, partition, old, &key, fault);

    if (status != STATUS_OK)
        return status;
    wrap(vault, partition, &key, old->subject, arena, record);
    explicit_bzero(&key, sizeof key);
    return STATUS_OK;
}

enum status subject_key_newest(const struct vault *vault, struct store *store, uint16_t partition,
                               struct bytes subject, struct subject_key *key, struct fault *fault)
{
    struct store_key from = key_subject(partition, subject, 0);
    struct store_key to = key_subject_end(partition, subject);
    struct store_cursor *cursor = store_cursor_new(store, STORE_KEYS, key_bytes(&from), key_bytes(&to), true);
    struct arena arena = {0};
    struct key_record record;
    struct bytes where, value;
    enum status status = vault == NULL ? no_master(fault) : store_cursor_next(cursor, &where, &value, fault);

    if (status == STATUS_OK)
        status = wire_key_record_decode(value, &arena, &record, fault);
    if (status == STATUS_OK)
        status = unwrap(vault, partition, &record, key, fault);
    store_cursor_free(cursor);
    arena_release(&arena);
    return status;
}

static enum status find_key(const struct vault *vault, struct store *store, uint16_t partition, struct bytes subject,
                            uint64_t id, struct subject_key *key, struct fault *fault)
{
    struct store_key where = key_subject(partition, subject, id);
    struct arena arena = {0};
    struct key_record record;
    struct bytes value;
    enum status status = store_get(store, STORE_KEYS, key_bytes(&where), &arena, &value, fault);

    if (status == STATUS_OK && vault == NULL)
        status = no_master(fault);
    if (status == STATUS_OK)
        status = wire_key_record_decode(value, &arena, &record, fault);
    if (status == STATUS_OK)
        status = unwrap(vault, partition, &record, key, fault);
    arena_release(&arena);
    return status;
}

/* ---- payloads ---- */

struct payload payload_seal(const struct vault *vault, const struct subject_key *key, const struct seal_place *place,
                            const struct payload *payload, struct arena *arena)
{
    struct buffer bound = {0};
    struct buffer plain = {0};
    struct buffer sealed = {0};
    uint8_t kind = (uint8_t)payload->kind;
    struct payload out;

    bind_to(&bound, place);
    buffer_add(&plain, &kind, 1);
    buffer_add(&plain, payload->content.data, payload->content.len);
    vault->cipher.seal(vault->cipher.context, key->key, buffer_bytes(&bound), buffer_bytes(&plain), &sealed);
    out = (struct payload){PAYLOAD_DATA, arena_copy(arena, buffer_bytes(&sealed))};
    buffer_release(&bound);
    buffer_release(&plain);
    buffer_release(&sealed);
    return out;
}

enum status payload_open_with(const struct vault *vault, const struct subject_key *key,
                              const struct seal_place *place, struct payload *payload, struct arena *arena,
                              struct fault *fault)
{
    struct buffer bound = {0};
    struct buffer plain = {0};
    bool good;

    bind_to(&bound, place);
    good = vault->cipher.unseal(vault->cipher.context, key->key, buffer_bytes(&bound), payload->content, &plain) &&
           plain.len > 0 && plain.data[0] <= PAYLOAD_DATA;
    if (good) {
        struct bytes all = arena_copy(arena, buffer_bytes(&plain));

        *payload = (struct payload){(enum payload_kind)all.data[0], {all.data + 1, all.len - 1}};
    }
    buffer_release(&bound);
    buffer_release(&plain);
    return good ? STATUS_OK
                : fault_set(fault, STATUS_DAMAGED, "DAMAGED_RECORD",
                            "a sealed payload of %.*s, sequence %llu, doesn't open with its key", (int)place->id.len,
                            (const char *)place->id.data, (unsigned long long)place->sequence);
}

enum status payload_open(const struct vault *vault, struct store *store, const struct seal_place *place,
                         struct bytes subject, uint64_t key_id, struct payload *payload, bool *forgotten,
                         struct arena *arena, struct fault *fault)
{
    struct subject_key key;
    enum status status = find_key(vault, store, place->partition, subject, key_id, &key, fault);

    *forgotten = status == STATUS_NOT_FOUND;
    if (*forgotten) {
        *payload = (struct payload){PAYLOAD_NONE, BYTES_NONE};
        return STATUS_OK;
    }
    if (status == STATUS_OK)
        status = payload_open_with(vault, &key, place, payload, arena, fault);
    explicit_bzero(&key, sizeof key);
    return status;
}

/* ---- snapshots ---- */

enum status snapshot_open(const struct vault *vault, struct store *store, uint16_t partition,
                          struct snapshot *snapshot, struct arena *arena, struct fault *fault)
{
    struct seal_place place = {'S', partition, snapshot->aggregate_id, snapshot->sequence};

    while (snapshot->seal_count > 0) {
        const struct seal *seal = &snapshot->seals[--snapshot->seal_count];
        bool forgotten;
        enum status status = payload_open(vault, store, &place, seal->subject, seal->sealed_by, &snapshot->payload,
                                          &forgotten, arena, fault);

        if (status != STATUS_OK)
            return status;
        if (forgotten) {
            *snapshot = (struct snapshot){.present = false};
            return STATUS_OK;
        }
    }
    return STATUS_OK;
}

enum status snapshot_reveal(const struct vault *vault, struct store *store, uint16_t partition, struct bytes *packed,
                            struct snapshot *snapshot, struct arena *arena, struct fault *fault)
{
    struct buffer again = {0};
    enum status status = wire_snapshot_decode(*packed, arena, snapshot, fault);

    if (status != STATUS_OK || snapshot->seal_count == 0)
        return status;
    *packed = BYTES_NONE;
    status = snapshot_open(vault, store, partition, snapshot, arena, fault);
    if (status != STATUS_OK || !snapshot->present)
        return status;
    wire_snapshot_pack(&again, snapshot);
    *packed = arena_copy(arena, buffer_bytes(&again));
    buffer_release(&again);
    return STATUS_OK;
}

/* ---- events ---- */

enum status event_open(const struct vault *vault, struct store *store, struct event *event, struct arena *arena,
                       struct fault *fault)
{
    struct seal_place place = {'E', (uint16_t)event->partition, event->aggregate_id, event->sequence};
    enum status status;

    if (event->sealed_by == 0)
        return STATUS_OK;
    status = payload_open(vault, store, &place, event->subject, event->sealed_by, &event->payload, &event->forgotten,
                          arena, fault);
    if (status == STATUS_OK)
        event->sealed_by = 0;
    return status;
}

enum status event_reveal(const struct vault *vault, struct store *store, struct bytes packed, struct arena *arena,
                         struct bytes *out, struct fault *fault)
{
    struct buffer again = {0};
    struct event event;
    enum status status;

    *out = packed;
    if (!wire_event_is_sealed(packed))
        return STATUS_OK;
    status = wire_event_decode(packed, arena, &event, fault);
    if (status == STATUS_OK)
        status = event_open(vault, store, &event, arena, fault);
    if (status != STATUS_OK)
        return status;
    wire_event_pack(&again, &event);
    *out = arena_copy(arena, buffer_bytes(&again));
    buffer_release(&again);
    return STATUS_OK;
}

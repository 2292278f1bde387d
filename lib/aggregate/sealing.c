/*
 * What is about a subject is sealed on its way into the log, and opened on its way to whoever decides or asks.
 *
 * The owner knows keys that no store has yet: those in the open entry and in entries on their way. A key that was
 * destroyed stays known as such for as long, so that nothing is sealed by it any more.
 */
#include "parts.h"

enum { KNOWN_KEYS_MAX = 4096 };

struct known_key {
    UT_hash_handle hh;
    struct bytes subject; /* behind this */
    bool forgotten;
    bool open;              /* in the open entry */
    uint64_t changed_index; /* of the last entry that made or destroyed it */
    struct subject_key key;
};

/* ---- keys that are known ---- */

static struct known_key *find_known(struct aggregates *all, struct bytes subject)
{
    struct known_key *known = NULL;

    HASH_FIND(hh, all->known_keys, subject.data, subject.len, known);
    return known;
}

/* The key that is known to open what `id` sealed; NULL: ask the store. */
static const struct subject_key *known_to_open(struct aggregates *all, struct bytes subject, uint64_t id)
{
    const struct known_key *known = find_known(all, subject);

    return known != NULL && !known->forgotten && known->key.id == id ? &known->key : NULL;
}

static void drop_known(struct aggregates *all, struct known_key *known)
{
    HASH_DEL(all->known_keys, known);
    explicit_bzero(&known->key, sizeof known->key);
    free(known);
}

static void trim_known(struct aggregates *all)
{
    if (HASH_COUNT(all->known_keys) >= KNOWN_KEYS_MAX && all->open.len == 0 && all->sent == NULL &&
        all->unstored == NULL)
        sealing_disown(all); /* all of it is in the store */
}

static struct known_key *know(struct aggregates *all, struct bytes subject)
{
    struct known_key *known = find_known(all, subject);

    if (known != NULL)
        return known;
    trim_known(all);
    known = memory_zero(1, sizeof *known + subject.len);
    known->subject = (struct bytes){(uint8_t *)(known + 1), subject.len};
    memcpy(known + 1, subject.data, subject.len);
    HASH_ADD_KEYPTR(hh, all->known_keys, known->subject.data, known->subject.len, known);
    return known;
}

void sealing_submitted(struct aggregates *all, uint64_t index)
{
    struct known_key *known, *next;

    rewrap_submitted(all, index);
    if (!all->open_has_keys)
        return;
    all->open_has_keys = false;
    HASH_ITER(hh, all->known_keys, known, next)
    {
        if (known->open)
            known->changed_index = index;
        known->open = false;
    }
    if (!all->open_forgets)
        return;
    all->open_forgets = false;
    all->forget_index = index;
    /* States that know what is forgotten are built anew, behind it. */
    for (struct aggregate *a = all->oldest; a != NULL && !PLANTED(FORGOTTEN_STATE_KEPT); a = a->newer) {
        cache_unload(all, a);
        a->reload_index = index;
    }
}

void sealing_discarded(struct aggregates *all)
{
    struct known_key *known, *next;

    all->open_forgets = all->open_has_keys = all->open_rewraps = false;
    if (PLANTED(KEY_KEPT_AFTER_LOSS))
        return;
    HASH_ITER(hh, all->known_keys, known, next)
    if (known->open)
        drop_known(all, known);
}

void sealing_disown(struct aggregates *all)
{
    struct known_key *known, *next;

    all->open_forgets = all->open_has_keys = all->open_rewraps = false;
    all->rewrapping = all->rewrapping && all->owned;
    if (PLANTED(KEY_KEPT_AFTER_LOSS))
        return;
    HASH_ITER(hh, all->known_keys, known, next)
    drop_known(all, known);
}

static enum status make_key(struct aggregates *all, struct bytes subject, const struct subject_key *before,
                            struct subject_key *key, struct fault *fault)
{
    struct arena arena = {0};
    struct key_record record;
    enum status status = subject_key_make(all->settings.vault, all->settings.partition, subject, before, &arena, key,
                                          &record, fault);

    if (status == STATUS_OK) {
        struct known_key *known = know(all, subject);

        wire_log_batch_add_key(&all->open, &record);
        known->key = *key;
        known->forgotten = false;
        known->open = all->open_has_keys = true;
    }
    arena_release(&arena);
    return status;
}

/* One key of a subject is known: that takes the place of another only when the store has the other one. */
static bool is_stored(struct aggregates *all, const struct known_key *known)
{
    return !known->open && known->changed_index <= all->effects.stored_index(all->effects.context);
}

/* The key that seals for the subject now; `make`: one is made when there is none that may. */
static enum status key_of(struct aggregates *all, struct bytes subject, bool make, struct subject_key *key,
                          struct fault *fault)
{
    struct known_key *known = find_known(all, subject);
    struct subject_key before;

    if (known == NULL) {
        enum status status =
            subject_key_newest(all->settings.vault, all->store, all->settings.partition, subject, key, fault);

        if (status != STATUS_OK && status != STATUS_NOT_FOUND)
            return status;
        if (status == STATUS_OK) {
            known = know(all, subject);
            known->key = *key;
        }
    }
    if (known == NULL || known->forgotten)
        return make ? make_key(all, subject, NULL, key, fault) : STATUS_NOT_FOUND;
    *key = known->key;
    if (!make || !subject_key_is_retired(all->settings.vault, key) || !is_stored(all, known))
        return STATUS_OK;
    before = *key;
    return make_key(all, subject, &before, key, fault);
}

/* ---- what rewrap.c has to know ---- */

bool sealing_is_destroying(struct aggregates *all, struct bytes subject)
{
    const struct known_key *known = find_known(all, subject);

    return known != NULL && known->forgotten;
}

bool sealing_awaits_retired(struct aggregates *all)
{
    struct known_key *known, *next;

    HASH_ITER(hh, all->known_keys, known, next)
    if (!known->forgotten && !is_stored(all, known) && subject_key_is_retired(all->settings.vault, &known->key))
        return true;
    return false;
}

/* ---- whose events an aggregate has ---- */

static bool has_subject(const struct aggregate *a, struct bytes subject)
{
    for (size_t i = 0; i < a->subject_count; i++)
        if (bytes_equal(a->subjects[i], subject))
            return true;
    return false;
}

static void add_subject(struct aggregate *a, struct bytes subject)
{
    struct bytes copy = {memory_take(subject.len), subject.len};

    memcpy((void *)copy.data, subject.data, subject.len);
    a->subjects = memory_grow(a->subjects, (a->subject_count + 1) * sizeof *a->subjects);
    a->subjects[a->subject_count++] = copy;
}

void sealing_unload(struct aggregate *a)
{
    for (size_t i = 0; i < a->subject_count; i++)
        free((void *)a->subjects[i].data);
    free(a->subjects);
    a->subjects = NULL;
    a->subject_count = 0;
}

enum status sealing_load(struct aggregates *all, struct aggregate *a, struct fault *fault)
{
    struct store_key from = key_use(all->settings.partition, a->id, BYTES_NONE);
    struct store_key to = key_use_end(all->settings.partition, a->id);
    struct store_cursor *cursor;
    struct bytes key, value;
    enum status status;

    sealing_unload(a);
    if (all->settings.vault == NULL)
        return STATUS_OK; /* nothing can be sealed, nor can what is be opened */
    cursor = store_cursor_new(all->store, STORE_KEYS, key_bytes(&from), key_bytes(&to), false);
    while ((status = store_cursor_next(cursor, &key, &value, fault)) == STATUS_OK)
        add_subject(a, (struct bytes){key.data + from.len, key.len - from.len});
    store_cursor_free(cursor);
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

/* ---- sealing ---- */

enum status seal_event(struct aggregates *all, struct aggregate *a, struct event *event, struct arena *arena,
                       struct fault *fault)
{
    struct seal_place place = {'E', all->settings.partition, a->id, event->sequence};
    struct subject_key key;
    enum status status;

    if (event->subject.len == 0)
        return STATUS_OK;
    status = key_of(all, event->subject, true, &key, fault);
    if (status != STATUS_OK)
        return status;
    event->payload = payload_seal(all->settings.vault, &key, &place, &event->payload, arena);
    event->sealed_by = key.id;
    if (!has_subject(a, event->subject)) {
        wire_log_batch_add_use(&all->open, &(struct subject_use){a->id, event->subject});
        add_subject(a, event->subject);
    }
    return STATUS_OK;
}

enum status seal_reply(struct aggregates *all, const struct command *command, struct reply *reply,
                       struct arena *arena, struct fault *fault)
{
    struct seal_place place = {'R', all->settings.partition, command->id, 0};
    struct subject_key key;
    enum status status;

    if (command->subject.len == 0 || !reply->present || reply->payload.kind == PAYLOAD_NONE)
        return STATUS_OK;
    status = key_of(all, command->subject, true, &key, fault);
    if (status != STATUS_OK)
        return status;
    reply->payload = payload_seal(all->settings.vault, &key, &place, &reply->payload, arena);
    reply->subject = command->subject;
    reply->sealed_by = key.id;
    return STATUS_OK;
}

bool seal_snapshot(struct aggregates *all, struct aggregate *a, struct snapshot *snapshot, struct arena *arena)
{
    struct seal_place place = {'S', all->settings.partition, a->id, snapshot->sequence};
    struct fault fault;

    snapshot->seals = NULL;
    snapshot->seal_count = 0;
    if (snapshot->payload.kind == PAYLOAD_NONE || a->subject_count == 0)
        return true;
    if (a->subject_count > SNAPSHOT_SEALS_MAX)
        return false;
    snapshot->seals = arena_take(arena, a->subject_count * sizeof *snapshot->seals);
    for (size_t i = 0; i < a->subject_count; i++) {
        struct subject_key key;
        enum status status = key_of(all, a->subjects[i], false, &key, &fault);

        if (status == STATUS_NOT_FOUND) /* forgotten: nothing of it is in the state */
            continue;
        if (status != STATUS_OK)
            return false;
        snapshot->payload = payload_seal(all->settings.vault, &key, &place, &snapshot->payload, arena);
        snapshot->seals[snapshot->seal_count++] = (struct seal){a->subjects[i], key.id};
    }
    return true;
}

/* ---- opening ---- */

/* Its key may be known here, and in no store yet. */
static bool opens_with_known(struct aggregates *all, struct event *event, struct arena *arena)
{
    struct seal_place place = {'E', all->settings.partition, event->aggregate_id, event->sequence};
    const struct subject_key *key = known_to_open(all, event->subject, event->sealed_by);
    struct fault fault;

    if (key == NULL ||
        payload_open_with(all->settings.vault, key, &place, &event->payload, arena, &fault) != STATUS_OK)
        return false;
    event->sealed_by = 0;
    return true;
}

static struct bytes opened_event(struct aggregates *all, struct bytes packed, struct arena *arena)
{
    struct buffer again = {0};
    struct event event;
    struct fault fault;
    struct bytes out;

    if (wire_event_decode(packed, arena, &event, &fault) != STATUS_OK)
        return packed;
    if (!opens_with_known(all, &event, arena) &&
        event_open(all->settings.vault, all->store, &event, arena, &fault) != STATUS_OK) {
        event.payload = (struct payload){PAYLOAD_NONE, BYTES_NONE};
        event.sealed_by = 0;
        event.forgotten = true;
    }
    wire_event_pack(&again, &event);
    out = arena_copy(arena, buffer_bytes(&again));
    buffer_release(&again);
    return out;
}

struct bytes *open_events(struct aggregates *all, const struct command_record *record, struct arena *arena)
{
    struct bytes *events = record->packed_events;

    for (size_t i = 0; i < record->event_count; i++) {
        if (!wire_event_is_sealed(record->packed_events[i]))
            continue;
        if (events == record->packed_events) {
            events = arena_take(arena, record->event_count * sizeof *events);
            memcpy(events, record->packed_events, record->event_count * sizeof *events);
        }
        events[i] = opened_event(all, record->packed_events[i], arena);
    }
    return events;
}

/* What can't be opened for want of a master key is told without it. */
void open_reply(struct aggregates *all, struct outcome *outcome, struct arena *arena)
{
    struct seal_place place = {'R', all->settings.partition, outcome->command_id, 0};
    struct reply *reply = &outcome->reply;
    const struct subject_key *key;
    struct fault fault;

    if (reply->sealed_by == 0)
        return;
    key = known_to_open(all, reply->subject, reply->sealed_by);
    if ((key == NULL ||
         payload_open_with(all->settings.vault, key, &place, &reply->payload, arena, &fault) != STATUS_OK) &&
        payload_open(all->settings.vault, all->store, &place, reply->subject, reply->sealed_by, &reply->payload,
                     &reply->forgotten, arena, &fault) != STATUS_OK) {
        reply->payload = (struct payload){PAYLOAD_NONE, BYTES_NONE};
        reply->forgotten = true;
    }
    reply->sealed_by = 0;
}

/* ---- forgetting, and what is committed ---- */

/* Until its key is in the store, events on their way open with nothing but the key that is known here. */
bool may_forget(struct aggregates *all, struct bytes subject)
{
    const struct known_key *known = find_known(all, subject);

    return known == NULL || is_stored(all, known);
}

/* From here on nothing is decided until the order is in the store (forget_index): no new key is made meanwhile. */

void forget_subject(struct aggregates *all, struct bytes subject)
{
    struct known_key *known = know(all, subject);

    known->forgotten = true;
    known->open = all->open_has_keys = all->open_forgets = true;
    explicit_bzero(&known->key, sizeof known->key);
    wire_log_batch_add_key(&all->open, &(struct key_record){.subject = subject});
}

void put_keys(struct aggregates *all, const struct log_batch *entry, struct store_batch *batch)
{
    struct buffer packed = {0};
    bool forgot = false;

    for (size_t i = 0; i < entry->key_count; i++) {
        const struct key_record *record = &entry->keys[i];
        struct store_key key = key_subject(all->settings.partition, record->subject, record->key_id);
        struct store_key end = key_subject_end(all->settings.partition, record->subject);

        packed.len = 0;
        wire_key_record_pack(&packed, record);
        if (record->wrapped.len > 0)
            store_batch_put(batch, STORE_KEYS, key_bytes(&key), buffer_bytes(&packed));
        else
            store_batch_delete_range(batch, STORE_KEYS, key_bytes(&key), key_bytes(&end));
        forgot = forgot || record->wrapped.len == 0;
    }
    for (size_t i = 0; i < entry->use_count; i++) {
        struct store_key key = key_use(all->settings.partition, entry->uses[i].aggregate_id, entry->uses[i].subject);

        store_batch_put(batch, STORE_KEYS, key_bytes(&key), BYTES_LITERAL("u"));
    }
    buffer_release(&packed);
    if (forgot)
        all->effects.forgot(all->effects.context);
}

void aggregates_set_vault(struct aggregates *all, const struct vault *vault)
{
    all->settings.vault = vault;
    rewrap_begin(all);
}

/*
 * Another master key is the first one: all subjects' keys of the partition are wrapped anew, so that the old one may be
 * taken away.
 *
 * Keys are looked through as they are stored, some with each tick, and what is wrapped anew has to be stored before the
 * next ones are looked at. It is over, and told, once all were looked through and none had to be: whatever was lost on
 * the way, to a full disk for example, is found again.
 */
#include "parts.h"

enum { REWRAP_AT_ONCE = 64 };

void rewrap_begin(struct aggregates *all)
{
    all->rewrapping = all->owned && all->settings.vault != NULL && all->settings.vault->master_count > 0;
    all->rewrap_from = key_subjects(all->settings.partition);
    all->rewrap_index = all->effects.applied_index(all->effects.context);
    all->rewrap_again = false;
    all->rewrapped = 0;
}

void rewrap_submitted(struct aggregates *all, uint64_t index)
{
    if (all->open_rewraps)
        all->rewrap_index = index;
    all->open_rewraps = false;
}

static void rewrap(struct aggregates *all, const struct key_record *old)
{
    struct arena arena = {0};
    struct key_record record;
    struct fault fault;

    if (subject_key_wrap_again(all->settings.vault, all->settings.partition, old, &arena, &record, &fault) ==
        STATUS_OK) {
        wire_log_batch_add_key(&all->open, &record);
        all->open_rewraps = all->rewrap_again = true;
        all->rewrapped++;
    } else {
        journal(JOURNAL_ERROR, "key-not-wrapped-again", "partition %u: %s", all->settings.partition, fault.message);
    }
    arena_release(&arena);
}

static void look_at(struct aggregates *all, const struct key_record *record)
{
    if (bytes_equal(record->master, bytes_of(all->settings.vault->masters[0].id)))
        return;
    if (sealing_is_destroying(all, record->subject))
        all->rewrap_again = true; /* wrapped now, it would come back; and the order may be lost */
    else
        rewrap(all, record);
}

static void ended(struct aggregates *all)
{
    all->rewrap_from = key_subjects(all->settings.partition);
    all->rewrapping = all->rewrap_again && !PLANTED(REWRAP_LOST);
    all->rewrap_again = false;
    if (!all->rewrapping && all->rewrapped > 0)
        journal(JOURNAL_INFO, "keys-wrapped-again", "%zu keys of partition %u, by the master key %s", all->rewrapped,
                all->settings.partition, all->settings.vault->masters[0].id);
}

void rewrap_some(struct aggregates *all)
{
    struct store_key to = key_subjects_end(all->settings.partition);
    struct store_cursor *cursor;
    struct arena arena = {0};
    struct bytes key, value;
    struct fault fault;
    enum status status = STATUS_OK;

    if (!all->rewrapping || all->open_rewraps ||
        all->effects.stored_index(all->effects.context) < all->rewrap_index || sealing_awaits_retired(all))
        return;
    cursor = store_cursor_new(all->store, STORE_KEYS, key_bytes(&all->rewrap_from), key_bytes(&to), false);
    for (int i = 0; i < REWRAP_AT_ONCE && status == STATUS_OK; i++) {
        struct key_record record;

        status = store_cursor_next(cursor, &key, &value, &fault);
        if (status != STATUS_OK)
            break;
        all->rewrap_from = (struct store_key){.len = key.len + 1}; /* just behind it */
        memcpy(all->rewrap_from.data, key.data, key.len);
        all->rewrap_from.data[key.len] = 0;
        if (wire_key_record_decode(value, &arena, &record, &fault) == STATUS_OK)
            look_at(all, &record);
        arena_reset(&arena);
    }
    store_cursor_free(cursor);
    arena_release(&arena);
    if (status != STATUS_OK)
        ended(all);
}

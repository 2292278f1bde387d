/* From stored events to an aggregate in memory. */
#include "parts.h"

enum status aggregate_evolve(struct aggregate *a, const struct event *event, struct fault *fault)
{
    struct arena arena = {0};
    struct cairn_event seen;
    enum status status = event_for_module(a->module, event, &arena, &seen, fault);
    int taken = status == STATUS_OK ? a->module->evolve(a->state, &seen) : 0;

    arena_release(&arena);
    if (status != STATUS_OK || taken == 0)
        return status;
    return fault_set(fault, STATUS_FAILED, "HANDLER_FAILED",
                     "module type %s can't take event %llu of type %.*s of aggregate %.*s",
                     a->module->name, (unsigned long long)event->sequence, (int)event->type.len,
                     (const char *)event->type.data, (int)a->id.len, (const char *)a->id.data);
}

static struct store_cursor *events_from(struct aggregates *all, const struct aggregate *a,
                                        uint64_t from, bool reverse)
{
    struct store_key first = key_event(all->settings.partition, a->id, from);
    struct store_key end = key_event_end(all->settings.partition, a->id);

    return store_cursor_new(all->store, STORE_EVENTS, key_bytes(&first), key_bytes(&end), reverse);
}

/* The newest event tells how many there are, and the type. */
static enum status load_head(struct aggregates *all, struct aggregate *a, struct arena *arena,
                             struct fault *fault)
{
    struct store_cursor *cursor = events_from(all, a, 0, true);
    struct bytes key;
    struct bytes value;
    struct event event;
    enum status status = store_cursor_next(cursor, &key, &value, fault);

    a->sequence = 0;
    if (status == STATUS_OK)
        status = wire_event_decode(value, arena, &event, fault);
    if (status == STATUS_OK) {
        a->sequence = event.sequence + 1;
        if (a->type.data == NULL) {
            a->type = (struct bytes){memory_take(event.aggregate_type.len),
                                     event.aggregate_type.len};
            memcpy((void *)a->type.data, event.aggregate_type.data, event.aggregate_type.len);
        }
    }
    store_cursor_free(cursor);
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

/* A snapshot that this module can't read (another version wrote it) costs time, not truth. */
static uint64_t begin_state(struct aggregate *a, const struct snapshot *snapshot)
{
    a->state = NULL;
    if (snapshot->present && a->module->decode != NULL)
        a->state = a->module->decode(to_module(a->id), to_module(snapshot->payload.content));
    if (a->state != NULL)
        return snapshot->sequence +
               (PLANTED(SNAPSHOT_SKIPS_EVENT) && snapshot->sequence < a->sequence);
    a->state = a->module->create(to_module(a->id));
    return 0;
}

static enum status load_state(struct aggregates *all, struct aggregate *a,
                              const struct snapshot *snapshot, struct arena *arena,
                              struct fault *fault)
{
    struct store_cursor *cursor;
    struct bytes key;
    struct bytes value;
    uint64_t next = begin_state(a, snapshot);
    enum status status = STATUS_OK;

    if (a->state == NULL)
        return fault_set(fault, STATUS_FAILED, "HANDLER_FAILED",
                         "module type %s can't create an aggregate", a->module->name);
    if (a->sequence == next)
        return STATUS_OK;
    cursor = events_from(all, a, next, false);
    while (status == STATUS_OK && next < a->sequence) {
        struct event event;

        status = store_cursor_next(cursor, &key, &value, fault);
        if (status == STATUS_OK)
            status = wire_event_decode(value, arena, &event, fault);
        if (status == STATUS_OK)
            status = event_open(all->settings.vault, all->store, &event, arena, fault);
        if (status == STATUS_OK && event.sequence != next)
            status = fault_set(fault, STATUS_DAMAGED, "EVENT_MISSING",
                               "event %llu of aggregate %.*s is missing",
                               (unsigned long long)next, (int)a->id.len,
                               (const char *)a->id.data);
        if (status == STATUS_OK)
            status = aggregate_evolve(a, &event, fault);
        next++;
        arena_reset(arena);
    }
    store_cursor_free(cursor);
    if (status == STATUS_NOT_FOUND)
        status = fault_set(fault, STATUS_DAMAGED, "EVENT_MISSING",
                           "events of aggregate %.*s end early", (int)a->id.len,
                           (const char *)a->id.data);
    return status;
}

enum status aggregate_load(struct aggregates *all, struct aggregate *a, struct bytes type,
                           struct fault *fault)
{
    struct arena arena = {0};
    struct arena kept = {0};
    struct snapshot snapshot = {.present = false};
    struct bytes packed;
    uint64_t begun_us = all->effects.clock_us(all->effects.context);
    enum status status = load_head(all, a, &arena, fault);

    if (status == STATUS_OK && a->sequence > 0)
        status = sealing_load(all, a, fault);
    if (status == STATUS_OK && a->sequence > 0)
        status = snapshot_find(all, a, &kept, &packed, &snapshot, fault);
    a->snapshot_sequence = a->snapshot_tried = snapshot.sequence;
    if (status == STATUS_OK) {
        struct bytes known = a->type.data == NULL ? type : a->type;

        a->module = all->effects.module_type(all->effects.context, known);
        if (a->module != NULL)
            status = load_state(all, a, &snapshot, &arena, fault);
    }
    a->snapshot_due = all->settings.snapshot_after_us > 0 && a->sequence > a->snapshot_sequence &&
                      all->effects.clock_us(all->effects.context) - begun_us >= all->settings.snapshot_after_us;
    arena_release(&arena);
    arena_release(&kept);
    a->loaded = true;
    if (status != STATUS_OK)
        cache_unload(all, a);
    else
        cache_resize(all, a, a->state == NULL           ? 0
                             : a->module->size == NULL ? 256
                                                       : a->module->size(a->state));
    return status;
}

enum status aggregate_history(struct aggregates *all, struct aggregate *a, uint64_t from,
                              size_t bytes_max, struct arena *arena, struct bytes **packed,
                              size_t *count, struct fault *fault)
{
    uint64_t missing = a->sequence - from;
    struct store_cursor *cursor;
    struct bytes key;
    struct bytes value;
    size_t bytes = 0;
    enum status status = STATUS_OK;

    *count = 0;
    if (missing == 0)
        return STATUS_OK;
    if (missing > 65536)
        missing = 65536;
    *packed = arena_take(arena, (size_t)missing * sizeof **packed);
    cursor = events_from(all, a, from, false);
    while (*count < missing && bytes < bytes_max) {
        status = store_cursor_next(cursor, &key, &value, fault);
        if (status != STATUS_OK)
            break;
        status = event_reveal(all->settings.vault, all->store, arena_copy(arena, value), arena, &(*packed)[*count],
                              fault);
        if (status != STATUS_OK)
            break;
        (*count)++;
        bytes += value.len;
    }
    store_cursor_free(cursor);
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

/* A ring of counted entries. */
#include "tail.h"

static struct tail_entry *slot(const struct tail *tail, uint64_t index)
{
    return &tail->ring[index & (tail->room - 1)];
}

void tail_release(struct tail *tail)
{
    tail_truncate(tail, tail->first);
    free(tail->ring);
    *tail = (struct tail){0};
}

void tail_restart(struct tail *tail, uint64_t first)
{
    tail_truncate(tail, tail->first);
    tail->first = first;
}

static void grow(struct tail *tail)
{
    struct tail old = *tail;

    tail->room = old.room == 0 ? 16 : old.room * 2;
    tail->ring = memory_take(tail->room * sizeof *tail->ring);
    for (uint64_t i = old.first; i < old.first + old.count; i++)
        *slot(tail, i) = *slot(&old, i);
    free(old.ring);
}

void tail_append(struct tail *tail, const struct log_entry *entry, struct blob *blob)
{
    if (tail->count == tail->room)
        grow(tail);
    *slot(tail, tail->first + tail->count) =
        (struct tail_entry){*entry, blob == NULL ? NULL : blob_keep(blob)};
    tail->count++;
    tail->bytes += entry->payload.len;
}

void tail_truncate(struct tail *tail, uint64_t index)
{
    while (tail->count > 0 && tail->first + tail->count > index) {
        struct tail_entry *last = slot(tail, tail->first + tail->count - 1);

        tail->bytes -= last->entry.payload.len;
        blob_drop(last->blob);
        tail->count--;
    }
    if (index < tail->first)
        tail->first = index;
}

void tail_trim(struct tail *tail, uint64_t keep_from)
{
    while (tail->count > 0 && tail->first < keep_from &&
           (tail->count > LOG_TAIL_ENTRIES || tail->bytes > LOG_TAIL_BYTES)) {
        struct tail_entry *oldest = slot(tail, tail->first);

        tail->bytes -= oldest->entry.payload.len;
        blob_drop(oldest->blob);
        tail->first++;
        tail->count--;
    }
}

const struct log_entry *tail_at(const struct tail *tail, uint64_t index)
{
    if (index < tail->first || index >= tail->first + tail->count)
        return NULL;
    return &slot(tail, index)->entry;
}

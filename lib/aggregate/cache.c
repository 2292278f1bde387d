/* Aggregates in memory: found by id, the least recently used go first, never one at work. */
#include "parts.h"

static void list_remove(struct aggregates *all, struct aggregate *a)
{
    *(a->older == NULL ? &all->oldest : &a->older->newer) = a->newer;
    *(a->newer == NULL ? &all->newest : &a->newer->older) = a->older;
    a->older = a->newer = NULL;
}

static void list_append(struct aggregates *all, struct aggregate *a)
{
    a->older = all->newest;
    a->newer = NULL;
    *(all->newest == NULL ? &all->oldest : &all->newest->newer) = a;
    all->newest = a;
}

static struct bytes own(struct bytes b)
{
    uint8_t *copy = memory_take(b.len);

    if (b.len > 0)
        memcpy(copy, b.data, b.len);
    return (struct bytes){copy, b.len};
}

struct aggregate *cache_find_or_add(struct aggregates *all, struct bytes id)
{
    struct aggregate *a = NULL;

    HASH_FIND(hh, all->table, id.data, id.len, a);
    if (a != NULL) {
        list_remove(all, a);
        list_append(all, a);
        return a;
    }
    a = memory_zero(1, sizeof *a);
    a->id = own(id);
    HASH_ADD_KEYPTR(hh, all->table, a->id.data, a->id.len, a);
    list_append(all, a);
    all->cache_bytes += sizeof *a + id.len;
    cache_trim(all);
    return a;
}

void cache_resize(struct aggregates *all, struct aggregate *a, size_t state_bytes)
{
    all->cache_bytes += state_bytes;
    all->cache_bytes -= a->state_bytes;
    a->state_bytes = state_bytes;
}

void cache_unload(struct aggregates *all, struct aggregate *a)
{
    if (a->state != NULL)
        a->module->destroy(a->state);
    a->state = NULL;
    a->loaded = false;
    a->worker = 0;
    sealing_unload(a);
    cache_resize(all, a, 0);
}

static void drop(struct aggregates *all, struct aggregate *a)
{
    cache_unload(all, a);
    HASH_DEL(all->table, a);
    list_remove(all, a);
    all->cache_bytes -= sizeof *a + a->id.len;
    free((void *)a->id.data);
    free((void *)a->type.data);
    free(a);
}

static bool idle(const struct aggregate *a)
{
    return a->in_flight == 0 && a->first == NULL && a->executing == NULL && !a->parked;
}

void cache_trim(struct aggregates *all)
{
    struct aggregate *a = all->oldest;

    while (a != NULL && a != all->newest &&
           (all->cache_bytes > all->settings.cache_bytes ||
            HASH_COUNT(all->table) > all->settings.cache_count)) {
        struct aggregate *newer = a->newer;

        if (idle(a))
            drop(all, a);
        a = newer;
    }
}

void cache_clear(struct aggregates *all)
{
    while (all->oldest != NULL)
        drop(all, all->oldest);
}

void mailbox_push(struct aggregates *all, struct aggregate *a, struct inflight *command)
{
    command->next = NULL;
    *(a->last == NULL ? &a->first : &a->last->next) = command;
    a->last = command;
    a->waiting++;
    all->waiting++;
}

struct inflight *mailbox_pop(struct aggregates *all, struct aggregate *a)
{
    struct inflight *command = a->first;

    a->first = command->next;
    if (a->first == NULL)
        a->last = NULL;
    command->next = NULL;
    a->waiting--;
    all->waiting--;
    return command;
}

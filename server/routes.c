/* Who owns and who holds which partition, as the engines tell it, for all other threads. The row behind the last
 * partition is the system partition's. */
#include "node.h"

struct routes {
    pthread_mutex_t lock;
    struct owner_note *rows;
    atomic_bool *held; /* readers may use this node's replica */
    uint32_t count;
    uint64_t version;
};

struct routes *routes_new(const struct founding *founding)
{
    struct routes *routes = memory_zero(1, sizeof *routes);

    pthread_mutex_init(&routes->lock, NULL);
    routes->count = founding->partition_count + 1;
    routes->rows = memory_zero(routes->count, sizeof *routes->rows);
    routes->held = memory_zero(routes->count, sizeof *routes->held);
    for (uint32_t p = 0; p < routes->count; p++)
        routes->rows[p] = (struct owner_note){.partition = p, .voters = founding->sets[p]};
    return routes;
}

void routes_free(struct routes *routes)
{
    if (routes == NULL)
        return;
    pthread_mutex_destroy(&routes->lock);
    free(routes->rows);
    free(routes->held);
    free(routes);
}

bool routes_set(struct routes *routes, const struct owner_note *note)
{
    struct owner_note *row;
    bool moved;

    if (note->partition >= routes->count)
        return false;
    row = &routes->rows[note->partition];
    pthread_mutex_lock(&routes->lock);
    moved = row->owner != note->owner;
    row->owner = note->owner;
    row->epoch = note->epoch;
    if (note->voters.count > 0) {
        row->voters = note->voters;
        row->standbys = note->standbys;
        row->configuration_index = note->configuration_index;
    }
    routes->version++;
    pthread_mutex_unlock(&routes->lock);
    return moved;
}

void routes_get(struct routes *routes, uint32_t partition, struct owner_note *note)
{
    *note = (struct owner_note){.partition = partition};
    if (partition >= routes->count)
        return;
    pthread_mutex_lock(&routes->lock);
    *note = routes->rows[partition];
    pthread_mutex_unlock(&routes->lock);
}

uint64_t routes_owner(struct routes *routes, uint32_t partition, uint64_t *epoch)
{
    struct owner_note note;

    routes_get(routes, partition, &note);
    *epoch = note.epoch;
    return note.owner;
}

void routes_hold(struct routes *routes, uint32_t partition, bool held)
{
    atomic_store(&routes->held[partition], held);
}

bool routes_holds(struct routes *routes, uint32_t partition)
{
    return atomic_load(&routes->held[partition]);
}

uint64_t routes_version(struct routes *routes)
{
    uint64_t version;

    pthread_mutex_lock(&routes->lock);
    version = routes->version;
    pthread_mutex_unlock(&routes->lock);
    return version;
}

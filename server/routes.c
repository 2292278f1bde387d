/* Who owns which partition under which epoch, as the engines tell it, for all other threads. */
#include "node.h"

struct routes {
    pthread_mutex_t lock;
    struct {
        uint64_t owner;
        uint64_t epoch;
    } *rows;
    uint32_t count;
    uint64_t version;
};

struct routes *routes_new(uint32_t partition_count)
{
    struct routes *routes = memory_zero(1, sizeof *routes);

    pthread_mutex_init(&routes->lock, NULL);
    routes->rows = memory_zero(partition_count, sizeof *routes->rows);
    routes->count = partition_count;
    return routes;
}

void routes_free(struct routes *routes)
{
    if (routes == NULL)
        return;
    pthread_mutex_destroy(&routes->lock);
    free(routes->rows);
    free(routes);
}

void routes_set(struct routes *routes, uint32_t partition, uint64_t owner, uint64_t epoch)
{
    if (partition >= routes->count)
        return;
    pthread_mutex_lock(&routes->lock);
    routes->rows[partition].owner = owner;
    routes->rows[partition].epoch = epoch;
    routes->version++;
    pthread_mutex_unlock(&routes->lock);
}

uint64_t routes_owner(struct routes *routes, uint32_t partition, uint64_t *epoch)
{
    uint64_t owner = 0;

    *epoch = 0;
    if (partition >= routes->count)
        return 0;
    pthread_mutex_lock(&routes->lock);
    owner = routes->rows[partition].owner;
    *epoch = routes->rows[partition].epoch;
    pthread_mutex_unlock(&routes->lock);
    return owner;
}

uint64_t routes_version(struct routes *routes)
{
    uint64_t version;

    pthread_mutex_lock(&routes->lock);
    version = routes->version;
    pthread_mutex_unlock(&routes->lock);
    return version;
}

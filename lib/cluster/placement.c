/*
 * Who should hold what. Rendezvous hashing (Thaler and Ravishankar 1998): every node gets a score
 * for every partition, the highest hold it; a node that is full is passed over.
 */
#include "cluster.h"

static uint64_t score(uint64_t node_id, uint32_t partition)
{
    uint64_t both[2] = {node_id, partition};

    return hash_bytes((struct bytes){(const uint8_t *)both, sizeof both});
}

struct load {
    uint32_t replicas;
    uint32_t owned;
};

static size_t index_of(const struct founder *founders, size_t count, uint64_t node_id)
{
    size_t i = 0;

    while (i < count && founders[i].node_id != node_id)
        i++;
    return i;
}

static bool holds(const struct replica_set *set, uint64_t node_id)
{
    for (size_t i = 0; i < set->count; i++)
        if (set->replicas[i] == node_id)
            return true;
    return false;
}

/* The best node that isn't in the set and isn't full; when all are full, the best of them. */
static size_t choose(const struct founder *founders, size_t count, const struct load *loads,
                     uint32_t bound, uint32_t partition, const struct replica_set *set)
{
    size_t best = count;
    bool best_full = true;

    for (size_t i = 0; i < count; i++) {
        bool full = loads[i].replicas >= bound;

        if (holds(set, founders[i].node_id))
            continue;
        if (best == count || (best_full && !full) ||
            (best_full == full &&
             score(founders[i].node_id, partition) > score(founders[best].node_id, partition))) {
            best = i;
            best_full = full;
        }
    }
    return best;
}

void placement_found(const struct founder *founders, size_t founder_count,
                     uint32_t partition_count, uint32_t replication_factor,
                     struct replica_set *sets)
{
    struct load loads[FOUNDERS_MAX] = {0};
    size_t width = replication_factor < founder_count ? replication_factor : founder_count;
    uint32_t bound;

    assert(founder_count > 0 && founder_count <= FOUNDERS_MAX);
    if (width > REPLICAS_MAX)
        width = REPLICAS_MAX;
    bound = (uint32_t)((partition_count * width + founder_count - 1) / founder_count);
    for (uint32_t p = 0; p < partition_count; p++) {
        struct replica_set *set = &sets[p];
        size_t preferred = 0;

        set->count = 0;
        while (set->count < width) {
            size_t chosen = choose(founders, founder_count, loads, bound, p, set);

            loads[chosen].replicas++;
            set->replicas[set->count++] = founders[chosen].node_id;
        }
        for (size_t i = 1; i < set->count; i++)
            if (loads[index_of(founders, founder_count, set->replicas[i])].owned <
                loads[index_of(founders, founder_count, set->replicas[preferred])].owned)
                preferred = i;
        loads[index_of(founders, founder_count, set->replicas[preferred])].owned++;
        {
            uint64_t first = set->replicas[preferred];

            set->replicas[preferred] = set->replicas[0];
            set->replicas[0] = first;
        }
    }
    sets[partition_count].count = 0;
    for (size_t i = 0; i < founder_count && i < SYSTEM_VOTERS_MAX; i++)
        sets[partition_count].replicas[sets[partition_count].count++] = founders[i].node_id;
}

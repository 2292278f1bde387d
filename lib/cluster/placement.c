/*
 * Who should hold what. Rendezvous hashing (Thaler and Ravishankar 1998): every node gets a score
 * for every partition, the highest hold it, within quotas that make all shares equal.
 */
#include "cluster.h"

static uint64_t score(uint64_t node_id, uint32_t partition)
{
    uint64_t both[2] = {node_id, partition};

    return hash_bytes((struct bytes){(const uint8_t *)both, sizeof both});
}

struct load {
    uint32_t quota; /* replicas that it may still get */
    uint32_t owned;
};

static size_t index_of(const struct founder *founders, size_t count, uint64_t node_id)
{
    size_t i = 0;

    while (i < count && founders[i].node_id != node_id)
        i++;
    return i;
}

/*
 * The best node that isn't in the set and may hold more. A node whose remaining quota equals the
 * partitions that are left must be in every one of them, or the quotas can't be met.
 */
static size_t choose(const struct founder *founders, size_t count, const struct load *loads,
                     uint32_t partition, uint32_t partitions_left, const struct replica_set *set)
{
    size_t best = count;

    for (size_t i = 0; i < count; i++) {
        bool must = loads[i].quota == partitions_left;
        bool best_must = best < count && loads[best].quota == partitions_left;

        if (loads[i].quota == 0 || replica_set_holds(set, founders[i].node_id))
            continue;
        if (best == count || (must && !best_must) ||
            (must == best_must &&
             score(founders[i].node_id, partition) > score(founders[best].node_id, partition)))
            best = i;
    }
    return best;
}

void placement_found(const struct founder *founders, size_t founder_count,
                     uint32_t partition_count, uint32_t replication_factor,
                     struct replica_set *sets)
{
    struct load loads[FOUNDERS_MAX] = {0};
    size_t width = replication_factor < founder_count ? replication_factor : founder_count;
    uint32_t total;

    assert(founder_count > 0 && founder_count <= FOUNDERS_MAX);
    if (width > REPLICAS_MAX)
        width = REPLICAS_MAX;
    total = (uint32_t)(partition_count * width);
    for (size_t i = 0; i < founder_count; i++)
        loads[i].quota = total / (uint32_t)founder_count + (i < total % founder_count);
    for (uint32_t p = 0; p < partition_count; p++) {
        struct replica_set *set = &sets[p];
        size_t preferred = 0;

        set->count = 0;
        while (set->count < width) {
            size_t chosen =
                choose(founders, founder_count, loads, p, partition_count - p, set);

            assert(chosen < founder_count);
            loads[chosen].quota--;
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

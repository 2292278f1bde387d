/* Who holds a partition: what everybody asks of such a set. */
#include "wire.h"

bool replica_set_holds(const struct replica_set *set, uint64_t node_id)
{
    for (size_t i = 0; i < set->count; i++)
        if (set->replicas[i] == node_id)
            return true;
    return false;
}

bool replica_set_same(const struct replica_set *a, const struct replica_set *b)
{
    for (size_t i = 0; i < a->count; i++)
        if (!replica_set_holds(b, a->replicas[i]))
            return false;
    return a->count == b->count;
}

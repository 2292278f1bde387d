/* grpc.health.v1.Health. SERVING only while this node can reach an owner of every partition. */
#include "faults.h"
#include "node.h"

enum { SERVING = 1, NOT_SERVING = 2 };

/* A node that lost its ownerships and hears nobody has a wrong idea of who owns what: an owner
 * counts only while its link is up and it isn't believed dead. */
bool node_is_serving(struct node *node)
{
    uint64_t reachable = node->id; /* the last one that was looked at */

    if (atomic_load(&node->founding) == NULL || atomic_load(&node->draining) ||
        placements_draining(node->placements, node->id))
        return false;
    for (uint32_t i = 0; i < node_partition_count(node); i++) {
        uint64_t epoch;
        uint64_t owner = routes_owner(node->routes, i, &epoch);

        if (owner == 0)
            return false;
        if (owner != node->id && owner != reachable &&
            (!links_up(node->links, owner) ||
             control_member_status(node->control, owner) > MEMBER_SUSPECT))
            return false;
        if (owner != node->id)
            reachable = owner;
    }
    return true;
}

static bool known(struct bytes service)
{
    static const char *const services[] = {"", "cairn.v1.CommandService", "cairn.v1.EventService",
                                           "cairn.v1.ClusterService"};

    for (size_t i = 0; i < COUNT_OF(services); i++)
        if (bytes_equal(bytes_of(services[i]), service))
            return true;
    return false;
}

void health_check_call(void *context, struct rpc_call *call, struct bytes request)
{
    struct node *node = context;
    struct arena arena = {0};
    struct buffer out = {0};
    struct bytes service;
    struct fault fault;

    if (wire_health_decode(request, &arena, &service, &fault) != STATUS_OK) {
        fault_fail_call(call, &fault);
    } else if (!known(service)) {
        (void)fault_set(&fault, STATUS_NOT_FOUND, "SERVICE_UNKNOWN", "this node has no service %.*s",
                        (int)service.len, (const char *)service.data);
        fault_fail_call(call, &fault);
    } else {
        wire_health_pack(&out, node_is_serving(node) ? SERVING : NOT_SERVING);
        rpc_call_reply(call, buffer_bytes(&out));
    }
    buffer_release(&out);
    arena_release(&arena);
}

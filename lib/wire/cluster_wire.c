/* The cluster's topology, and orders to change it: cairn/v1/cluster.proto. */
#include "cairn/peer/v1/peer.pb-c.h"
#include "cairn/v1/cluster.pb-c.h"
#include "convert.h"

static void put_ids(struct buffer *out, unsigned field, const struct replica_set *set)
{
    size_t packed;

    if (set->count == 0)
        return;
    packed = put_begin(out, field);
    for (size_t i = 0; i < set->count; i++)
        put_varint(out, set->replicas[i]);
    put_end(out, packed);
}

static void put_partition(struct buffer *out, unsigned field, const struct topology *topology, size_t id)
{
    const struct owner_note *partition = &topology->partitions[id];
    size_t begun = put_begin(out, field);

    put_u64(out, 1, id);
    put_u64(out, 2, partition->owner);
    put_u64(out, 3, partition->epoch);
    put_ids(out, 4, &partition->voters);
    put_ids(out, 5, &partition->standbys);
    if (topology->targets != NULL)
        put_ids(out, 6, &topology->targets[id]);
    put_end(out, begun);
}

static void put_member(struct buffer *out, const struct topology_member *member)
{
    size_t begun = put_begin(out, 6);

    put_u64(out, 1, member->node_id);
    put_bytes(out, 2, member->name);
    put_bytes(out, 3, member->address);
    put_u64(out, 4, (uint64_t)member->status);
    put_u64(out, 5, member->incarnation);
    for (size_t i = 0; i < member->handler_count; i++)
        put_bytes_always(out, 6, member->handlers[i]);
    put_bytes(out, 7, member->zone);
    put_u64(out, 8, member->capacity);
    put_u64(out, 9, (uint64_t)member->placed);
    put_u64(out, 10, member->replicas);
    put_u64(out, 11, member->owned);
    put_end(out, begun);
}

void wire_topology_pack(struct buffer *out, const struct topology *topology)
{
    size_t begun = put_begin(out, 1);
    size_t settings;

    put_bytes(out, 1, topology->cluster_id);
    put_bytes(out, 2, topology->cluster_name);
    put_bytes(out, 3, BYTES_LITERAL("XXH3_64bits"));
    put_u64(out, 4, topology->partition_count);
    put_u64(out, 5, topology->replication_factor);
    for (size_t i = 0; i < topology->member_count; i++)
        put_member(out, &topology->members[i]);
    for (size_t i = 0; i < topology->partition_count; i++)
        put_partition(out, 7, topology, i);
    put_u64(out, 8, topology->node_id);
    if (topology->partitions != NULL)
        put_partition(out, 9, topology, topology->partition_count);
    put_u64(out, 10, topology->placement_version);
    settings = put_begin(out, 11);
    put_u64(out, 1, topology->moves_at_once);
    put_u64(out, 2, topology->transfer_bytes);
    put_u64(out, 3, topology->grace_ms);
    put_end(out, settings);
    put_u64(out, 12, topology->release);
    put_end(out, begun);
}

/* ---- orders ---- */

static enum status bad_node(struct bytes name, struct fault *fault)
{
    return fault_set(fault, STATUS_INVALID, "NODE_INVALID", name.len == 0
                         ? "node is empty; it must be a member's name or id"
                         : "node has %zu bytes; a name has at most %d", name.len, NAME_BYTES_MAX);
}

enum status wire_order_decode(uint32_t kind, struct bytes packed, struct arena *arena,
                              struct placement_order *order, struct fault *fault)
{
    Cairn__V1__DrainNodeRequest *drain;
    Cairn__V1__RemoveNodeRequest *remove;
    Cairn__V1__TransferOwnershipRequest *transfer;
    Cairn__V1__UpdateSettingsRequest *settings;

    *order = (struct placement_order){.kind = (int)kind};
    switch (kind) {
    case ORDER_DRAIN:
        drain = wire_unpack(&cairn__v1__drain_node_request__descriptor, packed, arena, "request", fault);
        if (drain == NULL)
            return STATUS_INVALID;
        order->kind = drain->cancel ? ORDER_UNDRAIN : ORDER_DRAIN;
        order->name = from_text(drain->node);
        order->force = drain->force;
        break;
    case ORDER_REMOVE:
        remove = wire_unpack(&cairn__v1__remove_node_request__descriptor, packed, arena, "request", fault);
        if (remove == NULL)
            return STATUS_INVALID;
        order->name = from_text(remove->node);
        break;
    case ORDER_PREFER:
        transfer =
            wire_unpack(&cairn__v1__transfer_ownership_request__descriptor, packed, arena, "request", fault);
        if (transfer == NULL)
            return STATUS_INVALID;
        order->name = from_text(transfer->node);
        order->partition = transfer->partition;
        break;
    case ORDER_SETTINGS:
        settings = wire_unpack(&cairn__v1__update_settings_request__descriptor, packed, arena, "request", fault);
        if (settings == NULL)
            return STATUS_INVALID;
        order->set_replication_factor =
            settings->set_replication_factor_case == CAIRN__V1__UPDATE_SETTINGS_REQUEST__SET_REPLICATION_FACTOR_REPLICATION_FACTOR;
        order->set_moves_at_once =
            settings->set_moves_at_once_case == CAIRN__V1__UPDATE_SETTINGS_REQUEST__SET_MOVES_AT_ONCE_MOVES_AT_ONCE;
        order->set_transfer_bytes =
            settings->set_transfer_bytes_case == CAIRN__V1__UPDATE_SETTINGS_REQUEST__SET_TRANSFER_BYTES_TRANSFER_BYTES;
        order->set_grace_ms =
            settings->set_grace_ms_case == CAIRN__V1__UPDATE_SETTINGS_REQUEST__SET_GRACE_MS_GRACE_MS;
        order->replication_factor = order->set_replication_factor ? settings->replication_factor : 0;
        order->moves_at_once = order->set_moves_at_once ? settings->moves_at_once : 0;
        order->transfer_bytes = order->set_transfer_bytes ? settings->transfer_bytes : 0;
        order->grace_ms = order->set_grace_ms ? settings->grace_ms : 0;
        return STATUS_OK;
    default:
        return fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE", "an order of kind %u is unknown", kind);
    }
    return order->name.len == 0 || order->name.len > NAME_BYTES_MAX ? bad_node(order->name, fault) : STATUS_OK;
}

void wire_order_answer_pack(struct buffer *out, uint64_t version)
{
    put_u64(out, 1, version);
}

void wire_operate_pack(struct buffer *out, const struct operate_request *request)
{
    put_hello(out, 1, &request->hello);
    put_u64(out, 2, request->kind);
    put_bytes(out, 3, request->request);
}

enum status wire_operate_decode(struct bytes packed, struct arena *arena, struct operate_request *request,
                                struct fault *fault)
{
    Cairn__Peer__V1__OperateRequest *message =
        wire_unpack(&cairn__peer__v1__operate_request__descriptor, packed, arena, "request", fault);

    if (message == NULL)
        return STATUS_INVALID;
    *request = (struct operate_request){hello_from(message->hello), message->kind, from_data(message->request)};
    return STATUS_OK;
}

/* Node to node: cairn/peer/v1/peer.proto. */
#include "cairn/peer/v1/peer.pb-c.h"
#include "convert.h"

void put_hello(struct buffer *out, unsigned field, const struct hello *hello)
{
    size_t begun = put_begin(out, field);

    put_bytes(out, 1, hello->cluster_id);
    put_bytes(out, 2, hello->cluster_name);
    put_fixed64(out, 3, hello->node_id);
    put_bytes(out, 4, hello->name);
    put_bytes(out, 5, hello->address);
    put_u64(out, 6, hello->protocol_min);
    put_u64(out, 7, hello->protocol_max);
    put_fixed64(out, 8, hello->target_id);
    put_bytes(out, 9, hello->replaces);
    put_end(out, begun);
}

struct hello hello_from(const Cairn__Peer__V1__Hello *message)
{
    if (message == NULL)
        return (struct hello){.present = false};
    return (struct hello){
        .present = true,
        .cluster_id = from_text(message->cluster_id),
        .cluster_name = from_text(message->cluster_name),
        .node_id = message->node_id,
        .name = from_text(message->name),
        .address = from_text(message->address),
        .protocol_min = message->protocol_min,
        .protocol_max = message->protocol_max,
        .target_id = message->target_id,
        .replaces = from_text(message->replaces),
    };
}

void frame_add_hello(struct buffer *out, const struct hello *hello)
{
    put_hello(out, 1, hello);
}

void frame_add_replica_message(struct buffer *out, const struct replica_message *message)
{
    size_t begun = put_begin(out, 2);

    put_u64(out, 1, message->partition);
    put_u64(out, 2, message->type);
    put_u64(out, 3, message->version);
    put_u64(out, 4, message->term);
    put_u64(out, 5, message->log_index);
    put_u64(out, 6, message->log_term);
    put_u64(out, 7, message->leader_commit);
    put_u64(out, 8, message->rejected);
    put_u64(out, 9, message->flag);
    put_u64(out, 10, message->pre_vote);
    put_u64(out, 11, message->features);
    put_u64(out, 12, message->capacity);
    for (size_t i = 0; i < message->entry_count; i++) {
        size_t entry = put_begin(out, 13);

        put_u64(out, 1, message->entries[i].term);
        put_u64(out, 2, message->entries[i].type);
        put_bytes(out, 3, message->entries[i].payload);
        put_end(out, entry);
    }
    put_u64(out, 14, message->configuration_index);
    put_bytes(out, 15, message->configuration);
    put_end(out, begun);
}

void frame_add_command(struct buffer *out, const struct forwarded_command *command)
{
    size_t begun = put_begin(out, 3);

    put_u64(out, 1, command->request_id);
    put_u64(out, 2, command->partition);
    put_u64(out, 3, command->hops);
    put_u64(out, 4, command->timeout_ms);
    put_u64(out, 5, command->kind);
    put_bytes(out, 6, command->request);
    put_bytes(out, 7, command->principal);
    put_end(out, begun);
}

void frame_add_result(struct buffer *out, const struct command_result *result)
{
    size_t begun = put_begin(out, 4);

    put_u64(out, 1, result->request_id);
    put_bytes(out, 2, result->outcome);
    put_u64(out, 3, result->status);
    put_bytes(out, 4, result->reason);
    put_bytes(out, 5, result->message);
    put_fixed64(out, 6, result->owner);
    put_u64(out, 7, result->epoch);
    put_u64(out, 8, result->retry_ms);
    put_end(out, begun);
}

void frame_add_owner(struct buffer *out, const struct owner_note *note)
{
    size_t begun = put_begin(out, 5);

    put_u64(out, 1, note->partition);
    put_fixed64(out, 2, note->owner);
    put_u64(out, 3, note->epoch);
    put_replicas(out, 4, &note->voters);
    put_replicas(out, 5, &note->standbys);
    put_u64(out, 6, note->configuration_index);
    put_u64(out, 7, note->placement_version);
    put_end(out, begun);
}

void frame_add_read_request(struct buffer *out, const struct read_index *request)
{
    size_t begun = put_begin(out, 6);

    put_u64(out, 1, request->request_id);
    put_u64(out, 2, request->partition);
    put_end(out, begun);
}

void frame_add_read_result(struct buffer *out, const struct read_index *result)
{
    size_t begun = put_begin(out, 7);

    put_u64(out, 1, result->request_id);
    put_u64(out, 2, result->index);
    put_fixed64(out, 3, result->owner);
    put_u64(out, 4, result->epoch);
    put_end(out, begun);
}

void frame_add_execute(struct buffer *out, const struct remote_execute *execute)
{
    size_t begun = put_begin(out, 8);

    put_u64(out, 1, execute->request_id);
    put_u64(out, 2, execute->timeout_ms);
    put_bytes(out, 3, execute->body);
    put_end(out, begun);
}

void frame_add_execute_result(struct buffer *out, const struct remote_execute *result)
{
    size_t begun = put_begin(out, 9);

    put_u64(out, 1, result->request_id);
    put_bytes(out, 2, result->body);
    put_end(out, begun);
}

void frame_add_placement(struct buffer *out, const struct placement *placement)
{
    size_t begun = put_begin(out, 10);

    wire_placement_pack(out, placement);
    put_end(out, begun);
}

void frame_add_placement_wanted(struct buffer *out, uint64_t version)
{
    put_u64(out, 11, version + 1);
}

#define TAKE(arena, array, count) ((array) = arena_take(arena, (count) * sizeof *(array)))

static bool replicas_from(struct replica_set *to, const uint64_t *ids, size_t count)
{
    to->count = count;
    if (count > REPLICAS_MAX)
        return false;
    if (count > 0)
        memcpy(to->replicas, ids, count * sizeof *ids);
    return true;
}

static enum status replica_message_from(struct replica_message *to, struct arena *arena,
                                        const Cairn__Peer__V1__ReplicaMessage *from,
                                        struct fault *fault)
{
    struct log_entry *entries;

    if ((int)from->type < REPLICA_APPEND_ENTRIES || (int)from->type > REPLICA_TIMEOUT_NOW ||
        from->partition > PARTITIONS_MAX)
        return fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE",
                         "a replica message has type %d for partition %u", (int)from->type,
                         from->partition);
    *to = (struct replica_message){
        .partition = from->partition,
        .type = (enum replica_message_type)from->type,
        .version = from->version,
        .term = from->term,
        .log_index = from->log_index,
        .log_term = from->log_term,
        .leader_commit = from->leader_commit,
        .rejected = from->rejected,
        .flag = from->flag,
        .pre_vote = from->pre_vote,
        .features = from->features,
        .capacity = from->capacity,
        .entry_count = from->n_entries,
        .configuration_index = from->configuration_index,
        .configuration = from_data(from->configuration),
    };
    TAKE(arena, entries, from->n_entries);
    for (size_t i = 0; i < from->n_entries; i++)
        entries[i] = (struct log_entry){from->entries[i]->term, from->entries[i]->type,
                                        from_data(from->entries[i]->payload)};
    to->entries = entries;
    return STATUS_OK;
}

enum status frame_decode(struct bytes packed, struct arena *arena, struct frame *frame,
                         struct fault *fault)
{
    Cairn__Peer__V1__LinkRequest *in = wire_unpack(
        &cairn__peer__v1__link_request__descriptor, packed, arena, "peer frame", fault);

    *frame = (struct frame){0};
    if (in == NULL)
        return STATUS_INVALID;
    frame->hello = hello_from(in->hello);
    TAKE(arena, frame->replica_messages, in->n_replica_messages);
    frame->replica_message_count = in->n_replica_messages;
    for (size_t i = 0; i < in->n_replica_messages; i++) {
        enum status status = replica_message_from(&frame->replica_messages[i], arena,
                                                  in->replica_messages[i], fault);

        if (status != STATUS_OK)
            return status;
    }
    TAKE(arena, frame->commands, in->n_commands);
    frame->command_count = in->n_commands;
    for (size_t i = 0; i < in->n_commands; i++) {
        const Cairn__Peer__V1__ForwardedCommand *c = in->commands[i];

        frame->commands[i] = (struct forwarded_command){
            c->request_id, c->partition, c->hops, c->timeout_ms, (enum command_kind)c->kind,
            from_data(c->request), from_text(c->principal)};
    }
    TAKE(arena, frame->results, in->n_results);
    frame->result_count = in->n_results;
    for (size_t i = 0; i < in->n_results; i++) {
        const Cairn__Peer__V1__CommandResult *r = in->results[i];

        frame->results[i] = (struct command_result){
            r->request_id, from_data(r->outcome), r->code, from_text(r->reason),
            from_text(r->message), r->owner, r->epoch, r->retry_ms};
    }
    TAKE(arena, frame->owners, in->n_owners);
    frame->owner_count = in->n_owners;
    for (size_t i = 0; i < in->n_owners; i++) {
        const Cairn__Peer__V1__OwnerNote *o = in->owners[i];

        frame->owners[i] = (struct owner_note){.partition = o->partition,
                                               .owner = o->owner,
                                               .epoch = o->epoch,
                                               .configuration_index = o->configuration_index,
                                               .placement_version = o->placement_version};
        if (!replicas_from(&frame->owners[i].voters, o->voters, o->n_voters) ||
            !replicas_from(&frame->owners[i].standbys, o->standbys, o->n_standbys))
            return fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE",
                             "an owner's note names %zu voters and %zu standbys", o->n_voters,
                             o->n_standbys);
    }
    TAKE(arena, frame->read_requests, in->n_read_index_requests);
    frame->read_request_count = in->n_read_index_requests;
    for (size_t i = 0; i < in->n_read_index_requests; i++)
        frame->read_requests[i] =
            (struct read_index){.request_id = in->read_index_requests[i]->request_id,
                                .partition = in->read_index_requests[i]->partition};
    TAKE(arena, frame->read_results, in->n_read_index_results);
    frame->read_result_count = in->n_read_index_results;
    for (size_t i = 0; i < in->n_read_index_results; i++) {
        const Cairn__Peer__V1__ReadIndexResult *r = in->read_index_results[i];

        frame->read_results[i] = (struct read_index){.request_id = r->request_id,
                                                     .index = r->index,
                                                     .owner = r->owner,
                                                     .epoch = r->epoch};
    }
    TAKE(arena, frame->executes, in->n_executes);
    frame->execute_count = in->n_executes;
    for (size_t i = 0; i < in->n_executes; i++)
        frame->executes[i] =
            (struct remote_execute){in->executes[i]->request_id, in->executes[i]->timeout_ms,
                                    from_data(in->executes[i]->execute)};
    TAKE(arena, frame->execute_results, in->n_execute_results);
    frame->execute_result_count = in->n_execute_results;
    for (size_t i = 0; i < in->n_execute_results; i++)
        frame->execute_results[i] =
            (struct remote_execute){in->execute_results[i]->request_id, 0,
                                    from_data(in->execute_results[i]->result)};
    frame->placement_wanted = in->placement_wanted;
    frame->has_placement = in->n_placements > 0;
    return in->n_placements == 0
               ? STATUS_OK
               : placement_from(&frame->placement, arena, in->placements[in->n_placements - 1], fault);
}

void wire_welcome_pack(struct buffer *out, const char *refusal, uint64_t node_id,
                       struct bytes cluster_id)
{
    put_bytes(out, 1, bytes_of(refusal));
    put_fixed64(out, 2, node_id);
    put_bytes(out, 3, cluster_id);
}

enum status wire_welcome_decode(struct bytes packed, struct arena *arena, struct bytes *refusal,
                                uint64_t *node_id, struct bytes *cluster_id, struct fault *fault)
{
    /* LinkResponse and GossipResponse have the same fields. */
    Cairn__Peer__V1__LinkResponse *message = wire_unpack(
        &cairn__peer__v1__link_response__descriptor, packed, arena, "peer's answer", fault);

    if (message == NULL)
        return STATUS_INVALID;
    *refusal = from_text(message->refusal);
    *node_id = message->node_id;
    *cluster_id = from_text(message->cluster_id);
    return STATUS_OK;
}

/* ---- control ---- */

void gossip_add_hello(struct buffer *out, const struct hello *hello)
{
    put_hello(out, 1, hello);
}

void gossip_add_swim(struct buffer *out, const struct swim_message *message)
{
    size_t begun = put_begin(out, 2);

    put_u64(out, 1, message->type);
    put_u64(out, 2, message->number);
    put_fixed64(out, 3, message->from);
    put_fixed64(out, 4, message->target);
    put_bytes(out, 5, message->target_address);
    for (size_t i = 0; i < message->update_count; i++) {
        const struct member_state *state = &message->updates[i];
        size_t update = put_begin(out, 6);

        put_fixed64(out, 1, state->node_id);
        put_bytes(out, 2, state->name);
        put_bytes(out, 3, state->address);
        put_u64(out, 4, state->incarnation);
        put_u64(out, 5, state->status);
        for (size_t j = 0; j < state->handler_count; j++)
            put_bytes_always(out, 6, state->handlers[j]);
        put_u64(out, 7, state->unfounded);
        put_fixed64(out, 8, state->accuser);
        put_bytes(out, 9, state->zone);
        put_u64(out, 10, state->capacity);
        put_u64(out, 11, state->protocol_min);
        put_u64(out, 12, state->protocol_max);
        put_bytes(out, 13, state->replaces);
        put_end(out, update);
    }
    put_end(out, begun);
}

void gossip_add_founding(struct buffer *out, enum founding_message_type type,
                         const struct founding *founding)
{
    size_t begun = put_begin(out, 3);
    size_t record;

    put_u64(out, 1, type);
    record = put_begin(out, 2);
    wire_founding_pack(out, founding);
    put_end(out, record);
    put_end(out, begun);
}

static enum status member_state_from(struct member_state *to, struct arena *arena,
                                     const Cairn__Peer__V1__MemberState *from,
                                     struct fault *fault)
{
    struct bytes *handlers;

    if (from->status < MEMBER_ALIVE || from->status > MEMBER_LEFT || from->node_id == 0 ||
        strlen(from->name) > NAME_BYTES_MAX || strlen(from->address) > ADDRESS_BYTES_MAX ||
        from->n_handlers > HANDLER_TYPES_MAX || strlen(from->zone) > ZONE_BYTES_MAX ||
        from->capacity > CAPACITY_MAX || strlen(from->replaces) > NAME_BYTES_MAX)
        return fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE",
                         "gossip about member %016llx is out of bounds",
                         (unsigned long long)from->node_id);
    TAKE(arena, handlers, from->n_handlers);
    for (size_t i = 0; i < from->n_handlers; i++)
        handlers[i] = from_text(from->handlers[i]);
    *to = (struct member_state){
        .node_id = from->node_id,
        .name = from_text(from->name),
        .address = from_text(from->address),
        .incarnation = from->incarnation,
        .status = (enum member_status)from->status,
        .handlers = handlers,
        .handler_count = from->n_handlers,
        .unfounded = from->unfounded,
        .accuser = from->accuser,
        .zone = from_text(from->zone),
        .capacity = from->capacity,
        .protocol_min = from->protocol_min,
        .protocol_max = from->protocol_max,
        .replaces = from_text(from->replaces),
    };
    return STATUS_OK;
}

enum status gossip_decode(struct bytes packed, struct arena *arena, struct gossip_frame *frame,
                          struct fault *fault)
{
    Cairn__Peer__V1__GossipRequest *in = wire_unpack(
        &cairn__peer__v1__gossip_request__descriptor, packed, arena, "gossip", fault);

    *frame = (struct gossip_frame){0};
    if (in == NULL)
        return STATUS_INVALID;
    frame->hello = hello_from(in->hello);
    TAKE(arena, frame->swim, in->n_swim);
    frame->swim_count = in->n_swim;
    for (size_t i = 0; i < in->n_swim; i++) {
        const Cairn__Peer__V1__SwimMessage *from = in->swim[i];
        struct member_state *updates;

        if (from->n_updates > MEMBERS_MAX || (int)from->type < SWIM_PING ||
            (int)from->type > SWIM_PULL)
            return fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE",
                             "a membership message has type %d and %zu updates",
                             (int)from->type, from->n_updates);
        TAKE(arena, updates, from->n_updates);
        for (size_t j = 0; j < from->n_updates; j++) {
            enum status status = member_state_from(&updates[j], arena, from->updates[j], fault);

            if (status != STATUS_OK)
                return status;
        }
        frame->swim[i] = (struct swim_message){
            (enum swim_message_type)from->type, from->number, from->from, from->target,
            from_text(from->target_address), updates, from->n_updates};
    }
    if (in->founding != NULL && in->founding->record != NULL) {
        frame->founding_type = in->founding->type;
        return founding_from(&frame->founding, arena, in->founding->record, fault);
    }
    return STATUS_OK;
}

/* ---- discovery ---- */

void wire_announcement_pack(struct buffer *out, const struct announcement *announcement)
{
    put_bytes(out, 1, announcement->cluster_name);
    put_fixed64(out, 2, announcement->node_id);
    put_bytes(out, 3, announcement->address);
}

enum status wire_announcement_decode(struct bytes packed, struct arena *arena,
                                     struct announcement *announcement, struct fault *fault)
{
    Cairn__Peer__V1__Announcement *message = wire_unpack(
        &cairn__peer__v1__announcement__descriptor, packed, arena, "announcement", fault);

    if (message == NULL)
        return STATUS_INVALID;
    if (message->node_id == 0 || strlen(message->cluster_name) > NAME_BYTES_MAX || message->address[0] == '\0' ||
        strlen(message->address) > ADDRESS_BYTES_MAX)
        return fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE", "an announcement is out of bounds");
    *announcement = (struct announcement){from_text(message->cluster_name), message->node_id,
                                          from_text(message->address)};
    return STATUS_OK;
}

/* ---- bulk ---- */

void wire_range_request_pack(struct buffer *out, const struct range_request *request)
{
    put_hello(out, 1, &request->hello);
    put_u64(out, 2, request->partition);
    put_u64(out, 3, request->index);
    put_u64(out, 4, request->term);
}

enum status wire_range_request_decode(struct bytes packed, struct arena *arena,
                                      struct range_request *request, struct fault *fault)
{
    Cairn__Peer__V1__FetchRangeRequest *message = wire_unpack(
        &cairn__peer__v1__fetch_range_request__descriptor, packed, arena, "request", fault);

    if (message == NULL)
        return STATUS_INVALID;
    *request = (struct range_request){hello_from(message->hello), message->partition,
                                      message->index, message->term};
    return STATUS_OK;
}

void wire_range_part_begin(struct buffer *out, uint32_t family)
{
    put_u64(out, 1, family);
}

void wire_range_part_add(struct buffer *out, struct bytes key, struct bytes value)
{
    size_t begun = put_begin(out, 2);

    put_bytes(out, 1, key);
    put_bytes(out, 2, value);
    put_end(out, begun);
}

void wire_range_part_last(struct buffer *out, const struct applied *applied)
{
    size_t begun;

    put_u64(out, 3, 1);
    begun = put_begin(out, 4);
    put_applied(out, applied);
    put_end(out, begun);
}

void wire_range_part_refuse(struct buffer *out, const char *refusal)
{
    put_bytes(out, 5, bytes_of(refusal));
}

enum status wire_range_part_decode(struct bytes packed, struct arena *arena,
                                   struct range_part *part, struct fault *fault)
{
    Cairn__Peer__V1__FetchRangeResponse *message = wire_unpack(
        &cairn__peer__v1__fetch_range_response__descriptor, packed, arena, "range", fault);

    if (message == NULL)
        return STATUS_INVALID;
    *part = (struct range_part){.family = message->family,
                                .pair_count = message->n_pairs,
                                .last = message->last,
                                .refusal = from_text(message->refusal)};
    TAKE(arena, part->pairs, message->n_pairs);
    for (size_t i = 0; i < message->n_pairs; i++)
        part->pairs[i] = (struct key_value){from_data(message->pairs[i]->key),
                                            from_data(message->pairs[i]->value)};
    if (message->applied != NULL)
        part->applied = (struct applied){message->applied->index, message->applied->term,
                                         message->applied->next_position,
                                         message->applied->last_time_ms};
    return STATUS_OK;
}

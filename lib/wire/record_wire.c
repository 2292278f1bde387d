/* What is at rest and in the log: cairn/store/v1/record.proto. */
#include "cairn/store/v1/record.pb-c.h"
#include "convert.h"

static void outcome_from(struct outcome *outcome, struct arena *arena, const Cairn__Store__V1__Outcome *message)
{
    struct processing_failure *failures = arena_take(arena, message->n_processing_failures * sizeof *failures);

    *outcome = (struct outcome){
        .command_id = from_text(message->command_id),
        .aggregate_type = from_text(message->aggregate_type),
        .aggregate_id = from_text(message->aggregate_id),
        .fingerprint = message->fingerprint,
        .first_sequence = message->first_sequence,
        .event_count = message->event_count,
        .first_position = message->first_position,
        .partition = message->partition,
        .time_ms = message->time_ms,
        .reply = reply_from(message->reply),
        .rejection = rejection_from(message->rejection),
        .conflict = message->conflict != 0,
        .failures = failures,
        .failure_count = message->n_processing_failures,
    };
    for (size_t i = 0; i < message->n_processing_failures; i++)
        failures[i] = (struct processing_failure){from_text(message->processing_failures[i]->group),
                                                  message->processing_failures[i]->timed_out != 0,
                                                  from_text(message->processing_failures[i]->reason)};
}

static void put_outcome(struct buffer *out, const struct outcome *outcome)
{
    put_bytes(out, 1, outcome->command_id);
    put_bytes(out, 2, outcome->aggregate_type);
    put_bytes(out, 3, outcome->aggregate_id);
    put_fixed64(out, 4, outcome->fingerprint);
    put_u64(out, 5, outcome->first_sequence);
    put_u64(out, 6, outcome->event_count);
    put_u64(out, 7, outcome->first_position);
    put_u64(out, 8, outcome->partition);
    put_u64(out, 9, (uint64_t)outcome->time_ms);
    put_reply(out, 10, &outcome->reply);
    if (outcome->rejection.present) {
        size_t begun = put_begin(out, 11);

        put_bytes(out, 1, outcome->rejection.reason);
        put_bytes(out, 2, outcome->rejection.message);
        put_end(out, begun);
    }
    put_u64(out, 12, outcome->conflict);
    put_failures(out, 13, outcome);
}

void wire_outcome_pack(struct buffer *out, const struct outcome *outcome)
{
    buffer_add(out, &outcome->time_ms, sizeof outcome->time_ms);
    put_outcome(out, outcome);
}

enum status wire_outcome_decode(struct bytes packed, struct arena *arena, struct outcome *outcome,
                                struct fault *fault)
{
    Cairn__Store__V1__Outcome *message;

    if (packed.len < sizeof outcome->time_ms)
        return fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE", "an outcome is truncated");
    packed.data += sizeof outcome->time_ms;
    packed.len -= sizeof outcome->time_ms;
    message = wire_unpack_trusted(&cairn__store__v1__outcome__descriptor, packed, arena,
                                  "outcome", fault);
    if (message == NULL)
        return STATUS_INVALID;
    outcome_from(outcome, arena, message);
    return STATUS_OK;
}

void wire_log_batch_add(struct buffer *out, const struct outcome *outcome,
                        const struct bytes *packed_events, size_t event_count)
{
    size_t record = put_begin(out, 1);
    size_t inner = put_begin(out, 1);

    put_outcome(out, outcome);
    put_end(out, inner);
    for (size_t i = 0; i < event_count; i++)
        put_bytes_always(out, 2, packed_events[i]);
    put_end(out, record);
}

void wire_log_batch_add_snapshot(struct buffer *out, const struct snapshot *snapshot)
{
    size_t begun = put_begin(out, 2);

    wire_snapshot_pack(out, snapshot);
    put_end(out, begun);
}

static struct key_record key_record_from(const Cairn__Store__V1__KeyRecord *message)
{
    return (struct key_record){from_text(message->subject), message->key_id, from_text(message->master),
                               from_data(message->wrapped), from_text(message->made_under)};
}

void wire_key_record_pack(struct buffer *out, const struct key_record *record)
{
    put_bytes(out, 1, record->subject);
    put_fixed64(out, 2, record->key_id);
    put_bytes(out, 3, record->master);
    put_bytes(out, 4, record->wrapped);
    put_bytes(out, 5, record->made_under);
}

enum status wire_key_record_decode(struct bytes packed, struct arena *arena, struct key_record *record,
                                   struct fault *fault)
{
    const Cairn__Store__V1__KeyRecord *message =
        wire_unpack_trusted(&cairn__store__v1__key_record__descriptor, packed, arena, "key of a subject", fault);

    if (message == NULL)
        return STATUS_INVALID;
    *record = key_record_from(message);
    return STATUS_OK;
}

void wire_log_batch_add_key(struct buffer *out, const struct key_record *record)
{
    size_t begun = put_begin(out, 4);

    wire_key_record_pack(out, record);
    put_end(out, begun);
}

void wire_log_batch_add_use(struct buffer *out, const struct subject_use *use)
{
    size_t begun = put_begin(out, 5);

    put_bytes(out, 1, use->aggregate_id);
    put_bytes(out, 2, use->subject);
    put_end(out, begun);
}

static enum status command_record_from(struct command_record *record, struct arena *arena,
                                       const Cairn__Store__V1__CommandRecord *message,
                                       struct fault *fault)
{
    if (message->outcome == NULL)
        return fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE",
                         "a log entry holds a command without its outcome");
    outcome_from(&record->outcome, arena, message->outcome);
    record->event_count = message->n_events;
    record->packed_events = arena_take(arena, message->n_events * sizeof(struct bytes));
    for (size_t i = 0; i < message->n_events; i++)
        record->packed_events[i] = from_data(message->events[i]);
    return STATUS_OK;
}

static void put_cursor(struct buffer *out, const struct group_cursor *cursor)
{
    put_bytes(out, 1, cursor->group);
    put_u64(out, 2, cursor->partition);
    put_u64(out, 3, cursor->position);
    put_u64(out, 4, cursor->replay_until);
    for (size_t i = 0; i < cursor->parked_count; i++) {
        size_t begun = put_begin(out, 5);

        put_u64(out, 1, cursor->parked[i].position);
        put_bytes(out, 2, cursor->parked[i].reason);
        put_u64(out, 3, cursor->parked[i].attempts);
        put_end(out, begun);
    }
    if (cursor->unknown)
        put_log_start(out, 6, &cursor->start);
    put_u64(out, 7, cursor->resets);
}

void wire_log_batch_add_cursor(struct buffer *out, const struct group_cursor *cursor)
{
    size_t begun = put_begin(out, 3);

    put_cursor(out, cursor);
    put_end(out, begun);
}

static struct group_cursor cursor_from(struct arena *arena, const Cairn__Store__V1__Cursor *message)
{
    struct group_cursor cursor = {.group = from_text(message->group),
                                  .partition = message->partition,
                                  .position = message->position,
                                  .replay_until = message->replay_until,
                                  .parked = arena_take(arena, message->n_parked * sizeof *cursor.parked),
                                  .parked_count = message->n_parked,
                                  .unknown = message->start != NULL,
                                  .resets = message->resets};
    struct fault fault;

    if (message->start != NULL && log_start_from(message->start, &cursor.start, &fault) != STATUS_OK)
        cursor.start = (struct log_start){.kind = START_END}; /* it was checked before it was written */

    for (size_t i = 0; i < message->n_parked; i++)
        cursor.parked[i] = (struct parked){message->parked[i]->position, from_text(message->parked[i]->reason),
                                           message->parked[i]->attempts};
    return cursor;
}

enum status wire_cursor_decode(struct bytes packed, struct arena *arena, struct group_cursor *cursor,
                               struct fault *fault)
{
    const Cairn__Store__V1__Cursor *message =
        wire_unpack_trusted(&cairn__store__v1__cursor__descriptor, packed, arena, "cursor", fault);

    if (message == NULL)
        return STATUS_INVALID;
    *cursor = cursor_from(arena, message);
    return STATUS_OK;
}

enum status wire_log_batch_decode(struct bytes packed, struct arena *arena,
                                  struct log_batch *out, struct fault *fault)
{
    Cairn__Store__V1__LogBatch *batch = wire_unpack_trusted(
        &cairn__store__v1__log_batch__descriptor, packed, arena, "log entry", fault);
    enum status status = STATUS_OK;

    *out = (struct log_batch){0};
    if (batch == NULL)
        return STATUS_INVALID;
    out->commands = arena_take(arena, batch->n_commands * sizeof *out->commands);
    out->command_count = batch->n_commands;
    for (size_t i = 0; i < batch->n_commands && status == STATUS_OK; i++)
        status = command_record_from(&out->commands[i], arena, batch->commands[i], fault);
    out->snapshots = arena_take(arena, batch->n_snapshots * sizeof *out->snapshots);
    out->snapshot_count = batch->n_snapshots;
    for (size_t i = 0; i < batch->n_snapshots && status == STATUS_OK; i++) {
        struct snapshot_record *record = &out->snapshots[i];

        record->packed = from_data(batch->snapshots[i]);
        status = wire_snapshot_decode(record->packed, arena, &record->snapshot, fault);
    }
    out->cursors = arena_take(arena, batch->n_cursors * sizeof *out->cursors);
    out->cursor_count = batch->n_cursors;
    for (size_t i = 0; i < batch->n_cursors && status == STATUS_OK; i++) {
        struct buffer again = {0};

        out->cursors[i].cursor = cursor_from(arena, batch->cursors[i]);
        put_cursor(&again, &out->cursors[i].cursor);
        out->cursors[i].packed = arena_copy(arena, buffer_bytes(&again));
        buffer_release(&again);
    }
    out->keys = arena_take(arena, batch->n_keys * sizeof *out->keys);
    out->key_count = batch->n_keys;
    for (size_t i = 0; i < batch->n_keys && status == STATUS_OK; i++)
        out->keys[i] = key_record_from(batch->keys[i]);
    out->uses = arena_take(arena, batch->n_uses * sizeof *out->uses);
    out->use_count = batch->n_uses;
    for (size_t i = 0; i < batch->n_uses && status == STATUS_OK; i++)
        out->uses[i] = (struct subject_use){from_text(batch->uses[i]->aggregate_id), from_text(batch->uses[i]->subject)};
    return status;
}

/* term u64 LE | type u8 | payload */
void wire_log_entry_pack(struct buffer *out, const struct log_entry *entry)
{
    uint8_t type = (uint8_t)entry->type;

    buffer_add(out, &entry->term, sizeof entry->term);
    buffer_add(out, &type, sizeof type);
    buffer_add(out, entry->payload.data, entry->payload.len);
}

enum status wire_log_entry_decode(struct bytes packed, struct log_entry *entry,
                                  struct fault *fault)
{
    if (packed.len < 9)
        return fault_set(fault, STATUS_DAMAGED, "DAMAGED_RECORD",
                         "a log entry is truncated to %zu bytes", packed.len);
    memcpy(&entry->term, packed.data, sizeof entry->term);
    entry->type = packed.data[8];
    entry->payload = (struct bytes){packed.data + 9, packed.len - 9};
    return STATUS_OK;
}

void put_applied(struct buffer *out, const struct applied *applied)
{
    put_u64(out, 1, applied->index);
    put_u64(out, 2, applied->term);
    put_u64(out, 3, applied->next_position);
    put_u64(out, 4, (uint64_t)applied->last_time_ms);
}

void wire_applied_pack(struct buffer *out, const struct applied *applied)
{
    put_applied(out, applied);
}

enum status wire_applied_decode(struct bytes packed, struct applied *applied, struct fault *fault)
{
    struct arena arena = {0};
    Cairn__Store__V1__Applied *message = wire_unpack_trusted(
        &cairn__store__v1__applied__descriptor, packed, &arena, "applied index", fault);

    if (message != NULL)
        *applied = (struct applied){message->index, message->term, message->next_position,
                                    message->last_time_ms};
    arena_release(&arena);
    return message == NULL ? STATUS_INVALID : STATUS_OK;
}

void wire_checkpoint_pack(struct buffer *out, const struct checkpoint *checkpoint)
{
    put_u64(out, 1, checkpoint->index);
    put_u64(out, 2, checkpoint->term);
    put_u64(out, 3, checkpoint->configuration_index);
    put_bytes(out, 4, checkpoint->configuration);
}

enum status wire_checkpoint_decode(struct bytes packed, struct arena *arena,
                                   struct checkpoint *checkpoint, struct fault *fault)
{
    Cairn__Store__V1__Checkpoint *message = wire_unpack_trusted(
        &cairn__store__v1__checkpoint__descriptor, packed, arena, "checkpoint", fault);

    if (message == NULL)
        return STATUS_INVALID;
    *checkpoint = (struct checkpoint){message->index, message->term, message->configuration_index,
                                      from_data(message->configuration)};
    return STATUS_OK;
}

void wire_vote_pack(struct buffer *out, uint64_t term, uint64_t voted_for)
{
    put_u64(out, 1, term);
    put_u64(out, 2, voted_for);
}

enum status wire_vote_decode(struct bytes packed, uint64_t *term, uint64_t *voted_for,
                             struct fault *fault)
{
    struct arena arena = {0};
    Cairn__Store__V1__Vote *message = wire_unpack_trusted(
        &cairn__store__v1__vote__descriptor, packed, &arena, "vote", fault);

    if (message != NULL) {
        *term = message->term;
        *voted_for = message->voted_for;
    }
    arena_release(&arena);
    return message == NULL ? STATUS_INVALID : STATUS_OK;
}

void wire_identity_pack(struct buffer *out, const struct identity *identity)
{
    put_fixed64(out, 1, identity->node_id);
    put_bytes(out, 2, identity->name);
}

enum status wire_identity_decode(struct bytes packed, struct arena *arena,
                                 struct identity *identity, struct fault *fault)
{
    Cairn__Store__V1__Identity *message = wire_unpack_trusted(
        &cairn__store__v1__identity__descriptor, packed, arena, "identity", fault);

    if (message == NULL)
        return STATUS_INVALID;
    *identity = (struct identity){message->node_id, from_text(message->name)};
    return STATUS_OK;
}

void put_replicas(struct buffer *out, unsigned field, const struct replica_set *set)
{
    size_t packed;

    if (set->count == 0)
        return;
    packed = put_begin(out, field);
    for (size_t i = 0; i < set->count; i++)
        buffer_add(out, &set->replicas[i], 8); /* fixed64 is little-endian */
    put_end(out, packed);
}

static void put_sets(struct buffer *out, unsigned field, const struct replica_set *sets, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        size_t begun = put_begin(out, field);

        put_replicas(out, 1, &sets[i]);
        put_end(out, begun);
    }
}

static enum status sets_from(struct replica_set **sets, size_t *set_count, struct arena *arena,
                             Cairn__Store__V1__ReplicaSet **from, size_t count, struct fault *fault)
{
    *sets = arena_take(arena, count * sizeof **sets);
    *set_count = count;
    for (size_t i = 0; i < count; i++) {
        size_t replicas = from[i]->n_replicas;

        if (replicas == 0 || replicas > REPLICAS_MAX)
            return fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE",
                             "partition %zu has a replica set of %zu", i, replicas);
        (*sets)[i].count = replicas;
        memcpy((*sets)[i].replicas, from[i]->replicas, replicas * 8);
    }
    return STATUS_OK;
}

void wire_founding_pack(struct buffer *out, const struct founding *founding)
{
    put_bytes(out, 1, founding->cluster_id);
    put_bytes(out, 2, founding->cluster_name);
    put_fixed64(out, 3, founding->proposer);
    put_u64(out, 4, founding->partition_count);
    put_u64(out, 5, founding->replication_factor);
    for (size_t i = 0; i < founding->founder_count; i++) {
        size_t begun = put_begin(out, 6);

        put_fixed64(out, 1, founding->founders[i].node_id);
        put_bytes(out, 2, founding->founders[i].name);
        put_bytes(out, 3, founding->founders[i].address);
        put_end(out, begun);
    }
    put_sets(out, 7, founding->sets, founding->set_count);
    put_u64(out, 8, founding->complete);
}

enum status founding_from(struct founding *founding, struct arena *arena,
                          const Cairn__Store__V1__Founding *message, struct fault *fault)
{
    if (message->n_founders > FOUNDERS_MAX || message->partition_count > PARTITIONS_MAX ||
        message->n_replica_sets != (size_t)message->partition_count + 1)
        return fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE",
                         "a founding record has %zu founders and %zu replica sets for %u "
                         "partitions",
                         message->n_founders, message->n_replica_sets, message->partition_count);
    *founding = (struct founding){
        .cluster_id = from_text(message->cluster_id),
        .cluster_name = from_text(message->cluster_name),
        .proposer = message->proposer,
        .partition_count = message->partition_count,
        .replication_factor = message->replication_factor,
        .founders = arena_take(arena, message->n_founders * sizeof(struct founder)),
        .founder_count = message->n_founders,
        .complete = message->complete,
    };
    for (size_t i = 0; i < message->n_founders; i++)
        founding->founders[i] = (struct founder){message->founders[i]->node_id,
                                                 from_text(message->founders[i]->name),
                                                 from_text(message->founders[i]->address)};
    return sets_from(&founding->sets, &founding->set_count, arena, message->replica_sets,
                     message->n_replica_sets, fault);
}

enum status wire_founding_decode(struct bytes packed, struct arena *arena,
                                 struct founding *founding, struct fault *fault)
{
    Cairn__Store__V1__Founding *message = wire_unpack(
        &cairn__store__v1__founding__descriptor, packed, arena, "founding record", fault);

    return message == NULL ? STATUS_INVALID : founding_from(founding, arena, message, fault);
}

void wire_placement_pack(struct buffer *out, const struct placement *placement)
{
    put_u64(out, 1, placement->version);
    put_bytes(out, 2, placement->cluster_id);
    put_bytes(out, 3, placement->cluster_name);
    put_u64(out, 4, placement->partition_count);
    put_u64(out, 5, placement->replication_factor);
    for (size_t i = 0; i < placement->member_count; i++) {
        const struct placed_member *member = &placement->members[i];
        size_t begun = put_begin(out, 6);

        put_fixed64(out, 1, member->node_id);
        put_bytes(out, 2, member->name);
        put_bytes(out, 3, member->zone);
        put_u64(out, 4, member->capacity);
        put_u64(out, 5, member->state);
        put_end(out, begun);
    }
    put_sets(out, 7, placement->sets, placement->set_count);
    put_u64(out, 8, placement->moves_at_once);
    put_u64(out, 9, placement->transfer_bytes);
    put_u64(out, 10, placement->grace_ms);
    put_u64(out, 11, placement->release);
}

enum status placement_from(struct placement *placement, struct arena *arena,
                           const Cairn__Store__V1__Placement *message, struct fault *fault)
{
    if (message->version == 0 || message->n_members > MEMBERS_MAX ||
        message->partition_count > PARTITIONS_MAX ||
        message->n_replica_sets != (size_t)message->partition_count + 1)
        return fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE",
                         "a placement of version %llu has %zu members and %zu replica sets for %u partitions",
                         (unsigned long long)message->version, message->n_members,
                         message->n_replica_sets, message->partition_count);
    *placement = (struct placement){
        .version = message->version,
        .cluster_id = from_text(message->cluster_id),
        .cluster_name = from_text(message->cluster_name),
        .partition_count = message->partition_count,
        .replication_factor = message->replication_factor,
        .members = arena_take(arena, message->n_members * sizeof(struct placed_member)),
        .member_count = message->n_members,
        .moves_at_once = message->moves_at_once,
        .transfer_bytes = message->transfer_bytes,
        .grace_ms = message->grace_ms,
        .release = message->release,
    };
    for (size_t i = 0; i < message->n_members; i++) {
        const Cairn__Store__V1__PlacedMember *from = message->members[i];

        if (from->node_id == 0 || from->state < PLACED_MEMBER || from->state > PLACED_REMOVED ||
            strlen(from->name) > NAME_BYTES_MAX || strlen(from->zone) > ZONE_BYTES_MAX ||
            from->capacity == 0 || from->capacity > CAPACITY_MAX)
            return fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE",
                             "member %016llx of a placement is out of bounds",
                             (unsigned long long)from->node_id);
        placement->members[i] = (struct placed_member){from->node_id, from_text(from->name),
                                                       from_text(from->zone), from->capacity,
                                                       (enum placed_state)from->state};
    }
    return sets_from(&placement->sets, &placement->set_count, arena, message->replica_sets,
                     message->n_replica_sets, fault);
}

enum status wire_placement_decode(struct bytes packed, struct arena *arena,
                                  struct placement *placement, struct fault *fault)
{
    Cairn__Store__V1__Placement *message = wire_unpack(
        &cairn__store__v1__placement__descriptor, packed, arena, "placement", fault);

    return message == NULL ? STATUS_INVALID : placement_from(placement, arena, message, fault);
}

bool wire_placement_copy(const struct placement *from, struct arena *arena, struct placement *to)
{
    struct buffer packed = {0};
    struct fault fault;
    bool sound;

    wire_placement_pack(&packed, from);
    sound = wire_placement_decode(buffer_bytes(&packed), arena, to, &fault) == STATUS_OK;
    buffer_release(&packed);
    return sound;
}

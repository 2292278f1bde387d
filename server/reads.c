/*
 * ReadAggregate. A linearizable read waits in the engine until this node's replica has what it must
 * see; a stale one reads at once. Pages are read as the client takes them. Where this node has no
 * replica, one that has is asked for all of it (read_relay.c).
 */
#include "faults.h"
#include "shard.h"

static void end(struct reading *reading, const struct fault *fault)
{
    if (reading->state == READING_DONE)
        return;
    reading->state = READING_DONE;
    if (fault != NULL)
        fault_finish_stream(reading->stream, fault);
    else
        rpc_stream_finish(reading->stream, CODE_OK, "", BYTES_NONE);
}

static void free_reading(struct reading *reading)
{
    rpc_stream_drop(reading->stream);
    rpc_stream_drop(atomic_load(&reading->source));
    arena_release(&reading->arena);
    free(reading);
}

static enum status first_sequence(struct shard *shard, struct reading *r, struct fault *fault)
{
    struct store_key from = key_event((uint16_t)r->partition, r->request.aggregate_id, 0);
    struct store_key to = key_event_end((uint16_t)r->partition, r->request.aggregate_id);
    struct store_cursor *cursor = store_cursor_new(shard->node->store, STORE_EVENTS,
                                                   key_bytes(&from), key_bytes(&to), true);
    struct bytes key;
    struct bytes value;
    enum status status = store_cursor_next(cursor, &key, &value, fault);

    if (status == STATUS_NOT_FOUND)
        (void)fault_set(fault, STATUS_NOT_FOUND, "AGGREGATE_NOT_FOUND",
                        "aggregate %.*s has no events", (int)r->request.aggregate_id.len,
                        (const char *)r->request.aggregate_id.data);
    if (status == STATUS_OK) {
        uint64_t last = key_last_number(key);

        r->next = r->request.has_from ? r->request.from_sequence
                                      : (r->request.backwards ? last : 0);
        if (r->request.backwards && r->next > last)
            r->next = last;
        r->left = r->request.limit == 0 ? UINT64_MAX : r->request.limit;
        r->started = true;
    }
    store_cursor_free(cursor);
    return status;
}

/* One page; false when that was the end. */
static bool page(struct shard *shard, struct reading *r, struct fault *fault)
{
    bool back = r->request.backwards;
    struct bytes id = r->request.aggregate_id;
    uint16_t partition = (uint16_t)r->partition;
    struct store_key from = key_event(partition, id, back ? 0 : r->next);
    struct store_key to = back && r->next < UINT64_MAX ? key_event(partition, id, r->next + 1)
                                                       : key_event_end(partition, id);
    struct store_cursor *cursor = store_cursor_new(shard->node->store, STORE_EVENTS,
                                                   key_bytes(&from), key_bytes(&to), back);
    struct buffer message = {0};
    size_t count = 0;
    enum status status = STATUS_OK;
    bool more = true;

    while (more && count < READ_PAGE_EVENTS && message.len < READ_PAGE_BYTES) {
        struct bytes key;
        struct bytes value;

        status = store_cursor_next(cursor, &key, &value, fault);
        if (status != STATUS_OK)
            break;
        wire_read_response_add(&message, value);
        count++;
        more = --r->left > 0 && !(back && key_last_number(key) == 0);
        r->next = back ? key_last_number(key) - 1 : key_last_number(key) + 1;
    }
    store_cursor_free(cursor);
    if (count > 0) {
        enum status revealed = subjects_reveal(shard->node, &message, fault);

        if (revealed != STATUS_OK) {
            buffer_release(&message);
            return false;
        }
        rpc_stream_send(r->stream, buffer_bytes(&message));
        r->any = true;
    }
    buffer_release(&message);
    if (status == STATUS_NOT_FOUND)
        return false;
    if (status != STATUS_OK) {
        fault->status = status;
        return false;
    }
    return more;
}

static enum status give_snapshot(struct shard *shard, struct reading *r, struct fault *fault)
{
    struct store_key key = key_snapshot((uint16_t)r->partition, r->request.aggregate_id);
    struct buffer message = {0};
    struct snapshot snapshot;
    struct bytes packed;
    enum status status =
        store_get(shard->node->store, STORE_SNAPSHOTS, key_bytes(&key), &r->arena, &packed, fault);

    if (status == STATUS_NOT_FOUND)
        return fault_set(fault, STATUS_NOT_FOUND, "SNAPSHOT_NOT_FOUND", "aggregate %.*s has no snapshot",
                         (int)r->request.aggregate_id.len, (const char *)r->request.aggregate_id.data);
    if (status != STATUS_OK)
        return status;
    status = snapshot_reveal(subjects_vault(shard->node), shard->node->store, (uint16_t)r->partition, &packed, &snapshot,
                             &r->arena, fault);
    if (status == STATUS_OK && !snapshot.present)
        return fault_set(fault, STATUS_NOT_FOUND, "SNAPSHOT_NOT_FOUND",
                         "the snapshot of aggregate %.*s has somebody in it who was forgotten",
                         (int)r->request.aggregate_id.len, (const char *)r->request.aggregate_id.data);
    if (status != STATUS_OK)
        return status;
    wire_read_snapshot_response(&message, packed);
    rpc_stream_send(r->stream, buffer_bytes(&message));
    buffer_release(&message);
    return STATUS_OK;
}

static void relay(struct shard *shard, struct reading *r);

/* A damaged record of ours: another replica has a sound one. */
static void fall_back(struct shard *shard, struct reading *r, struct fault *fault)
{
    bool elsewhere = fault->status == STATUS_DAMAGED &&
                     engine_damaged(shard->engine, r->partition, fault);

    if (elsewhere && !r->any) {
        relay(shard, r);
        return;
    }
    if (elsewhere)
        (void)fault_set(fault, STATUS_UNAVAILABLE, "REPLICA_DAMAGED",
                        "this node's copy of aggregate %.*s is damaged at sequence %llu and is "
                        "got anew; read on from there, here or at another node",
                        (int)r->request.aggregate_id.len,
                        (const char *)r->request.aggregate_id.data, (unsigned long long)r->next);
    end(r, fault);
}

static void flow(struct shard *shard, struct reading *r)
{
    struct fault fault = {0};

    r->state = READING_FLOWS;
    if (r->request.of_snapshot) {
        if (give_snapshot(shard, r, &fault) == STATUS_OK)
            end(r, NULL);
        else
            fall_back(shard, r, &fault);
        return;
    }
    if (!r->started && first_sequence(shard, r, &fault) != STATUS_OK) {
        fall_back(shard, r, &fault);
        return;
    }
    while (rpc_stream_pending(r->stream) < 4)
        if (!page(shard, r, &fault)) {
            if (fault.status == STATUS_OK)
                end(r, NULL);
            else
                fall_back(shard, r, &fault);
            return;
        }
    /* `drained` brings us back. */
}

static bool answers(const struct shard *shard, uint64_t node_id)
{
    return links_up(shard->node->links, node_id) && control_member_answers(shard->node->control, node_id);
}

/* The owner, who needs ask nobody else; not the one that just failed if another can be reached, and who is suspected
 * if need be. */
static uint64_t replica_to_ask(const struct shard *shard, const struct reading *r)
{
    struct links *links = shard->node->links;
    const struct replica_set *set = engine_voters(shard->engine, r->partition);
    uint64_t failed = r->last_target;
    uint64_t suspected = 0;
    uint64_t epoch;
    uint64_t owner = engine_owner(shard->engine, r->partition, &epoch);

    if (owner != 0 && owner != failed && answers(shard, owner))
        return owner;
    for (size_t i = 0; i < set->count; i++) {
        if (set->replicas[i] == failed || !links_up(links, set->replicas[i]))
            continue;
        if (control_member_answers(shard->node->control, set->replicas[i]))
            return set->replicas[i];
        suspected = set->replicas[i];
    }
    if (failed != 0 && (answers(shard, failed) || (suspected == 0 && links_up(links, failed))))
        return failed;
    return suspected;
}

static void relay(struct shard *shard, struct reading *r)
{
    uint64_t target = replica_to_ask(shard, r);

    r->state = READING_NEW; /* again at the next tick when nobody can be asked now */
    if (target != 0 && read_relay_start(shard->node, r, target)) {
        r->last_target = target;
        r->state = READING_RELAYED;
    }
}

/* The engine says that the replica may be read, or why it may not. */
static void ready(struct awaiting *awaiting, const struct fault *fault)
{
    struct reading *reading = CONTAINER_OF(awaiting, struct reading, awaited);

    if (fault != NULL)
        end(reading, fault);
    else
        flow(reading->shard, reading);
}

void reads_take(struct shard *shard, struct reading *reading)
{
    METRIC_ADD(shard->node, reads, 1);
    reading->shard = shard;
    reading->next_reading = shard->readings;
    shard->readings = reading;
    if (engine_replica(shard->engine, reading->partition) == NULL) {
        relay(shard, reading);
    } else if (reading->request.stale) {
        flow(shard, reading);
    } else {
        reading->state = READING_AWAITED;
        reading->awaited.ready = ready;
        reading->awaited.read.partition = reading->partition;
        reading->awaited.read.deadline_ms = reading->deadline_ms;
        engine_await(shard->engine, &reading->awaited.read);
    }
}

void reads_go_on(struct shard *shard, struct reading *reading)
{
    atomic_store(&reading->more_sent, false);
    if (reading->state == READING_FLOWS)
        flow(shard, reading);
}

/* Its source hangs: before a page came another may be asked, if there is one; after that, once the source is dead. */
static bool source_hangs(const struct shard *shard, const struct reading *r)
{
    struct control *control = shard->node->control;

    if (control_member_answers(control, r->last_target))
        return false;
    if (atomic_load(&r->relay_any))
        return control_member_status(control, r->last_target) != MEMBER_SUSPECT;
    return control_member_answers(control, replica_to_ask(shard, r));
}

/* Relayed, or about to be. True while it goes on. */
static bool tick_relayed(struct shard *shard, struct reading *r)
{
    struct fault fault;

    if (r->state == READING_RELAYED && atomic_load(&r->relaying)) {
        if (atomic_load(&r->closed))
            read_relay_cancel(r);
        else if (source_hangs(shard, r))
            read_relay_leave(r);
        return true;
    }
    if (r->state == READING_RELAYED && !r->relay_again) {
        r->state = READING_DONE; /* the relay has finished the stream */
    } else if (r->deadline_ms <= clock_monotonic_ms()) {
        (void)fault_set(&fault, STATUS_DEADLINE, "DEADLINE_EXCEEDED",
                        "no node with a replica of partition %u answered in time", r->partition);
        end(r, &fault);
    } else if (!atomic_load(&r->closed)) {
        relay(shard, r);
    }
    return r->state == READING_RELAYED;
}

void reads_tick(struct shard *shard)
{
    struct reading **at = &shard->readings;

    while (*at != NULL) {
        struct reading *r = *at;

        if ((r->state == READING_NEW || r->state == READING_RELAYED) && tick_relayed(shard, r)) {
            at = &r->next_reading;
            continue;
        }
        if (atomic_load(&r->closed)) {
            engine_forget(shard->engine, &r->awaited.read);
            r->state = READING_DONE;
            if (!atomic_load(&r->more_sent)) {
                *at = r->next_reading;
                free_reading(r);
                continue;
            }
        }
        at = &r->next_reading;
    }
}

void reads_refuse(struct shard *shard, struct reading *reading)
{
    struct fault fault;

    (void)fault_set(&fault, STATUS_UNAVAILABLE, "NODE_STOPPING", "this node stops; ask another");
    reading->next_reading = shard->readings;
    shard->readings = reading;
    end(reading, &fault);
}

void reads_abandon(struct shard *shard)
{
    struct fault fault;

    (void)fault_set(&fault, STATUS_UNAVAILABLE, "NODE_STOPPING", "this node stops; ask another");
    for (struct reading *r = shard->readings; r != NULL; r = r->next_reading)
        if (r->state != READING_RELAYED || !atomic_load(&r->relaying)) {
            engine_forget(shard->engine, &r->awaited.read);
            end(r, &fault);
        }
}

void reads_release(struct shard *shard)
{
    while (shard->readings != NULL) {
        struct reading *next = shard->readings->next_reading;

        free_reading(shard->readings);
        shard->readings = next;
    }
}

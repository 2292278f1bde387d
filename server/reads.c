/*
 * ReadAggregate. A linearizable read asks the owner for an index that covers all that was
 * acknowledged before, waits until this replica has stored it, and then reads here; a stale one
 * reads at once. Pages are read as the client takes them. Where this node has no replica, one that
 * has is asked for all of it (read_relay.c).
 */
#include "engine.h"
#include "faults.h"

enum { ASK_AGAIN_MS = 300 };

static void end(struct shard *shard, struct reading *reading, const struct fault *fault)
{
    if (reading->state == READING_DONE)
        return;
    reading->state = READING_DONE;
    if (fault != NULL)
        fault_finish_stream(reading->stream, fault);
    else
        rpc_stream_finish(reading->stream, CODE_OK, "", BYTES_NONE);
    (void)shard;
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

static void flow(struct shard *shard, struct reading *r)
{
    struct fault fault = {0};

    r->state = READING_FLOWS;
    if (!r->started && first_sequence(shard, r, &fault) != STATUS_OK) {
        end(shard, r, &fault);
        return;
    }
    while (rpc_stream_pending(r->stream) < 4)
        if (!page(shard, r, &fault)) {
            end(shard, r, fault.status == STATUS_OK ? NULL : &fault);
            return;
        }
    /* `drained` brings us back. */
}

/* The owner, who needs ask nobody else; not the one that just failed if another can be reached. */
static uint64_t replica_to_ask(const struct slot *slot, uint64_t failed)
{
    struct links *links = slot->shard->node->links;
    uint64_t epoch;
    uint64_t owner = slot_owner(slot, &epoch);

    if (owner != 0 && owner != failed && links_up(links, owner))
        return owner;
    for (size_t i = 0; i < slot->set->count; i++)
        if (slot->set->replicas[i] != failed && links_up(links, slot->set->replicas[i]))
            return slot->set->replicas[i];
    return failed != 0 && links_up(links, failed) ? failed : 0;
}

static void ask(struct shard *shard, struct reading *r)
{
    struct slot *slot = slot_of(shard, r->partition);
    uint64_t epoch;
    uint64_t owner;

    r->state = READING_NEW;
    if (slot->partition == NULL) {
        uint64_t target = replica_to_ask(slot, r->last_target);

        if (target != 0 && read_relay_start(shard->node, r, target)) {
            r->last_target = target;
            r->state = READING_RELAYED;
        }
        return; /* otherwise at the next tick */
    }
    if (r->request.stale) {
        flow(shard, r);
        return;
    }
    r->asked_at = shard->moment.now_ms;
    if (partition_is_owner(slot->partition)) {
        if (partition_read_barrier(slot->partition, &shard->turn, &r->need_index) == STATUS_OK) {
            r->need_term = partition_view(slot->partition).term;
            r->state = READING_WAITS;
        }
        return;
    }
    owner = slot_owner(slot, &epoch);
    if (owner != 0 && owner != shard->node->id && links_up(shard->node->links, owner)) {
        struct read_index request = {.partition = r->partition};

        r->id = request.request_id = ++shard->next_id << 8 | shard->index;
        r->state = READING_ASKED;
        frame_add_read_request(outbox_for(shard, owner), &request);
    }
}

void reads_take(struct shard *shard, struct reading *reading)
{
    METRIC_ADD(shard->node, reads, 1);
    reading->next_reading = shard->readings;
    shard->readings = reading;
    ask(shard, reading);
}

void reads_go_on(struct shard *shard, struct reading *reading)
{
    atomic_store(&reading->more_sent, false);
    if (reading->state == READING_FLOWS)
        flow(shard, reading);
}

static void answer_index(struct shard *shard, const struct index_wait *wait, uint64_t index)
{
    struct read_index result = {.request_id = wait->request_id, .index = index};

    result.owner = slot_owner(slot_of(shard, wait->partition), &result.epoch);
    frame_add_read_result(outbox_for(shard, wait->from), &result);
}

/*
 * What was committed when the read came is what it must see; that is good only once our barrier is
 * committed, because a deposed owner's never is. The barrier itself needs not be waited for where the
 * read goes on: that replica heard of the commit with the barrier's own message, not a heartbeat later.
 */
void reads_serve_index(struct shard *shard, uint64_t from, const struct read_index *request)
{
    struct slot *slot = slot_of(shard, request->partition);
    struct index_wait *wait = memory_take(sizeof *wait);

    *wait = (struct index_wait){.from = from,
                                .request_id = request->request_id,
                                .partition = request->partition};
    if (slot == NULL) {
        free(wait);
        return;
    }
    if (slot->partition != NULL)
        wait->read_index = partition_view(slot->partition).commit_index;
    if (slot->partition == NULL ||
        partition_read_barrier(slot->partition, &shard->turn, &wait->barrier) != STATUS_OK) {
        answer_index(shard, wait, 0);
        free(wait);
        return;
    }
    wait->term = partition_view(slot->partition).term;
    wait->next = shard->index_waits;
    shard->index_waits = wait;
}

static void tick_index_waits(struct shard *shard)
{
    struct index_wait **at = &shard->index_waits;

    while (*at != NULL) {
        struct index_wait *wait = *at;
        struct partition *partition = slot_of(shard, wait->partition)->partition;
        bool ours = partition_is_owner(partition) && partition_view(partition).term == wait->term;

        if (ours && partition_stored_index(partition) < wait->barrier) {
            at = &wait->next;
            continue;
        }
        answer_index(shard, wait, ours ? wait->read_index : 0);
        *at = wait->next;
        free(wait);
    }
}

void reads_take_index(struct shard *shard, const struct read_index *result)
{
    for (struct reading *r = shard->readings; r != NULL; r = r->next_reading)
        if (r->state == READING_ASKED && r->id == result->request_id) {
            if (result->index == 0) {
                r->state = READING_NEW; /* asked again at the next tick */
                return;
            }
            r->need_index = result->index;
            r->need_term = 0; /* committed already */
            r->state = READING_WAITS;
            if (partition_stored_index(slot_of(shard, r->partition)->partition) >= r->need_index)
                flow(shard, r);
            return;
        }
}

void reads_tick(struct shard *shard)
{
    struct reading **at = &shard->readings;

    tick_index_waits(shard);
    while (*at != NULL) {
        struct reading *r = *at;
        struct slot *slot = slot_of(shard, r->partition);
        uint64_t now = shard->moment.now_ms;

        if (r->state == READING_RELAYED) {
            if (atomic_load(&r->relaying)) {
                if (atomic_load(&r->closed))
                    read_relay_cancel(r);
                at = &r->next_reading;
                continue;
            }
            r->state = r->relay_again ? READING_NEW : READING_DONE;
        } else if (r->state != READING_DONE && r->state != READING_FLOWS &&
                   r->deadline_ms <= now) {
            struct fault fault;

            (void)fault_set(&fault, STATUS_DEADLINE, "DEADLINE_EXCEEDED",
                            "the owner of partition %u didn't confirm the read in time",
                            r->partition);
            end(shard, r, &fault);
        } else if (r->state == READING_WAITS && r->need_term != 0 &&
                   (!partition_is_owner(slot->partition) ||
                    partition_view(slot->partition).term != r->need_term)) {
            ask(shard, r); /* our barrier may never be committed */
        } else if (r->state == READING_WAITS &&
                   partition_stored_index(slot->partition) >= r->need_index) {
            flow(shard, r);
        } else if (r->state == READING_NEW ||
                   (r->state == READING_ASKED && now >= r->asked_at + ASK_AGAIN_MS)) {
            ask(shard, r);
        }
        if (r->state == READING_DONE && atomic_load(&r->closed) && !atomic_load(&r->more_sent)) {
            *at = r->next_reading;
            free_reading(r);
            continue;
        }
        if (atomic_load(&r->closed))
            r->state = READING_DONE;
        at = &r->next_reading;
    }
}

void reads_abandon(struct shard *shard)
{
    struct fault fault;

    (void)fault_set(&fault, STATUS_UNAVAILABLE, "NODE_STOPPING", "this node stops; ask another");
    for (struct reading *r = shard->readings; r != NULL; r = r->next_reading)
        if (r->state != READING_RELAYED || !atomic_load(&r->relaying))
            end(shard, r, &fault);
}

void reads_release(struct shard *shard)
{
    while (shard->index_waits != NULL) {
        struct index_wait *next = shard->index_waits->next;

        free(shard->index_waits);
        shard->index_waits = next;
    }
    while (shard->readings != NULL) {
        struct reading *next = shard->readings->next_reading;

        free_reading(shard->readings);
        shard->readings = next;
    }
}

/*
 * Linearizable reads: which index must be stored here before a read may look. The owner says what was
 * committed when the read came, once a barrier has shown that it was the owner then; any replica that
 * has that index may serve the read.
 */
#include "parts.h"

enum {
    ASK_AGAIN_MS = 300,
    /* After so long this node is more likely cut off than the owner changing: another may know more. */
    PATIENCE_MS = 2000,
};

/* ---- reads of this node ---- */

static void end(struct engine *engine, struct awaited_read *read, const struct fault *fault)
{
    engine_forget(engine, read);
    engine->effects.read_ready(engine->effects.context, read, fault);
}

static void ask(struct engine *engine, struct awaited_read *read)
{
    struct slot *slot = slot_of(engine, read->partition);
    uint64_t epoch;
    uint64_t owner;

    read->state = AWAITED_NEW; /* asked again at the next tick when nobody can be asked now */
    read->asked_at = engine->moment.now_ms;
    if (partition_is_owner(slot->partition)) {
        if (partition_read_barrier(slot->partition, &engine->turn, &read->need_index) ==
            STATUS_OK) {
            read->need_term = partition_view(slot->partition).term;
            read->state = AWAITED_STORED;
        }
        return;
    }
    owner = slot_owner(slot, &epoch);
    if (owner != 0 && owner != engine->settings.node_id &&
        engine->effects.reachable(engine->effects.context, owner)) {
        struct read_index request = {.partition = read->partition};

        read->id = request.request_id = ++engine->next_id << 8 | engine->settings.index;
        read->state = AWAITED_ASKED;
        frame_add_read_request(engine_outbox(engine, owner), &request);
    }
}

void engine_await(struct engine *engine, struct awaited_read *read)
{
    read->began_at = engine->moment.now_ms;
    read->previous = NULL;
    read->next = engine->reads;
    if (engine->reads != NULL)
        engine->reads->previous = read;
    engine->reads = read;
    ask(engine, read);
}

void engine_forget(struct engine *engine, struct awaited_read *read)
{
    if (read->state == AWAITED_NOT)
        return;
    *(read->previous == NULL ? &engine->reads : &read->previous->next) = read->next;
    if (read->next != NULL)
        read->next->previous = read->previous;
    read->state = AWAITED_NOT;
}

void read_index_take(struct engine *engine, const struct read_index *result)
{
    struct awaited_read *read = engine->reads;

    while (read != NULL && (read->state != AWAITED_ASKED || read->id != result->request_id))
        read = read->next;
    if (read == NULL)
        return; /* asked again since, or given up */
    if (result->index == 0) {
        read->state = AWAITED_NEW;
        return;
    }
    read->need_index = result->index;
    read->need_term = 0; /* committed already */
    read->state = AWAITED_STORED;
    if (partition_stored_index(slot_of(engine, read->partition)->partition) >= read->need_index)
        end(engine, read, NULL);
}

static void tick_read(struct engine *engine, struct awaited_read *read)
{
    const struct partition *partition = slot_of(engine, read->partition)->partition;
    uint64_t now = engine->moment.now_ms;

    if (read->deadline_ms <= now) {
        struct fault fault;

        (void)fault_set(&fault, STATUS_DEADLINE, "DEADLINE_EXCEEDED",
                        "the owner of partition %u didn't confirm the read in time",
                        read->partition);
        end(engine, read, &fault);
    } else if (now >= read->began_at + PATIENCE_MS) {
        struct fault fault;

        (void)fault_set(&fault, STATUS_UNAVAILABLE, "OWNER_SILENT",
                        "the owner of partition %u can't be reached from here; ask another node",
                        read->partition);
        fault.retry_ms = 10;
        end(engine, read, &fault);
    } else if (read->state == AWAITED_STORED && read->need_term != 0 &&
               (!partition_is_owner(partition) ||
                partition_view(partition).term != read->need_term)) {
        ask(engine, read); /* our barrier may never be committed */
    } else if (read->state == AWAITED_STORED &&
               partition_stored_index(partition) >= read->need_index) {
        end(engine, read, NULL);
    } else if (read->state == AWAITED_NEW ||
               (read->state == AWAITED_ASKED && now >= read->asked_at + ASK_AGAIN_MS)) {
        ask(engine, read);
    }
}

/* ---- reads of peers ---- */

static void answer_index(struct engine *engine, const struct index_wait *wait, uint64_t index)
{
    struct read_index result = {.request_id = wait->request_id, .index = index};

    result.owner = slot_owner(slot_of(engine, wait->partition), &result.epoch);
    frame_add_read_result(engine_outbox(engine, wait->from), &result);
}

/*
 * What was committed when the read came is what it must see; that is good only once our barrier is
 * committed, because a deposed owner's never is. The barrier itself needs not be waited for where the
 * read goes on: that replica heard of the commit with the barrier's own message, not a heartbeat later.
 */
void read_index_serve(struct engine *engine, uint64_t from, const struct read_index *request)
{
    struct slot *slot = slot_of(engine, request->partition);
    struct index_wait wait = {.from = from,
                              .request_id = request->request_id,
                              .partition = request->partition};
    struct index_wait *kept;

    if (slot == NULL)
        return;
    if (slot->partition != NULL)
        wait.read_index = partition_view(slot->partition).commit_index;
    if (slot->partition == NULL ||
        partition_read_barrier(slot->partition, &engine->turn, &wait.barrier) != STATUS_OK) {
        answer_index(engine, &wait, 0);
        return;
    }
    wait.term = partition_view(slot->partition).term;
    wait.next = engine->index_waits;
    kept = memory_take(sizeof *kept);
    *kept = wait;
    engine->index_waits = kept;
}

static void tick_index_waits(struct engine *engine)
{
    struct index_wait **at = &engine->index_waits;

    while (*at != NULL) {
        struct index_wait *wait = *at;
        struct partition *partition = slot_of(engine, wait->partition)->partition;
        bool ours = partition_is_owner(partition) && partition_view(partition).term == wait->term;

        if (ours && partition_stored_index(partition) < wait->barrier) {
            at = &wait->next;
            continue;
        }
        answer_index(engine, wait, ours ? wait->read_index : 0);
        *at = wait->next;
        free(wait);
    }
}

void read_index_tick(struct engine *engine)
{
    struct awaited_read *next;

    tick_index_waits(engine);
    for (struct awaited_read *read = engine->reads; read != NULL; read = next) {
        next = read->next;
        tick_read(engine, read);
    }
}

void read_index_dropped(struct engine *engine, uint32_t partition)
{
    struct awaited_read *next;
    struct fault fault;

    (void)fault_set(&fault, STATUS_UNAVAILABLE, "REPLICA_MOVED",
                    "partition %u isn't held by this node any more; ask another", partition);
    fault.retry_ms = 10;
    tick_index_waits(engine);
    for (struct awaited_read *read = engine->reads; read != NULL; read = next) {
        next = read->next;
        if (read->partition == partition)
            end(engine, read, &fault);
    }
}

void read_index_abandon(struct engine *engine)
{
    struct fault fault;

    (void)fault_set(&fault, STATUS_UNAVAILABLE, "NODE_STOPPING", "this node stops; ask another");
    while (engine->reads != NULL)
        end(engine, engine->reads, &fault);
    while (engine->index_waits != NULL) {
        struct index_wait *next = engine->index_waits->next;

        free(engine->index_waits);
        engine->index_waits = next;
    }
}

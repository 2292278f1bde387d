/*
 * The way of a command through its owner, top to bottom:
 *
 *   admit ──▶ dedupe ──▶ mailbox ──▶ run ──▶ prepare (load, expected sequence)
 *                                     ├─ module, append: decide at once
 *                                     └─ worker: execute, later executed
 *             decided ──▶ open log entry ──▶ flush ──▶ committed ──▶ answer ──▶ stored
 *
 * The next command of an aggregate is decided on the result of the one before as soon as that is
 * decided. When a submit fails or ownership goes, everything decided and not committed is thrown
 * away together and its callers hear NOT_OWNER: the router sends those commands again.
 */
#include "parts.h"

/* What most commands need for a decision and its record is on the stack. */
enum { SCRATCH_BYTES_KEPT = 16 << 10, COMMAND_ROOM_BYTES = 2048 };

static void run(struct aggregates *all, struct aggregate *a, struct moment moment);

/* Forget a command that has no recorded outcome; it and its repeats get the fault. */
static void refuse(struct aggregates *all, struct inflight *command, const struct fault *fault)
{
    struct admitted *waiters = command->waiters;

    command->waiters = NULL;
    inflight_free(all, command);
    refusal_add(all, waiters, fault);
}

/* ---- waiting for the store or for workers ---- */

static void park(struct aggregates *all, struct aggregate *a)
{
    if (a->parked)
        return;
    a->parked = true;
    a->next_parked = all->parked;
    all->parked = a;
}

static void run_parked(struct aggregates *all, struct moment moment)
{
    struct aggregate *a = all->parked;

    all->parked = NULL;
    while (a != NULL) {
        struct aggregate *next = a->next_parked;

        a->parked = false;
        run(all, a, moment);
        a = next;
    }
}

/* ---- deciding ---- */

static void track_state_size(struct aggregates *all, struct aggregate *a)
{
    if (a->state != NULL && a->module->size != NULL)
        cache_resize(all, a, a->module->size(a->state));
}

/* Give the events their places, move the aggregate on, and add the command to the open entry. */
/* The event's own entries, and those of its command that it hasn't. */
static struct metadata merged(struct arena *arena, const struct metadata *own, const struct metadata *of_command)
{
    struct metadata all = {own->entries, own->count};

    if (of_command->count == 0)
        return all;
    all.entries = arena_take(arena, (own->count + of_command->count) * sizeof *all.entries);
    if (own->count > 0)
        memcpy(all.entries, own->entries, own->count * sizeof *all.entries);
    for (size_t i = 0; i < of_command->count; i++) {
        size_t j = 0;

        while (j < own->count && !bytes_equal(own->entries[j].key, of_command->entries[i].key))
            j++;
        if (j == own->count)
            all.entries[all.count++] = of_command->entries[i];
    }
    return all;
}

/* A big command's room isn't kept. */
static void shrink(struct buffer *scratch)
{
    if (scratch->room > SCRATCH_BYTES_KEPT)
        buffer_release(scratch);
}

/* "partition.position", in hexadecimal: nobody else's. */
static struct bytes make_event_id(char room[40], uint16_t partition, uint64_t position)
{
    size_t len = put_hex(room, partition, 1);

    room[len++] = '.';
    len += put_hex(room + len, position, 1);
    return (struct bytes){(uint8_t *)room, len};
}

static enum status record(struct aggregates *all, struct aggregate *a, struct inflight *command,
                          const struct decision *d, struct moment moment, struct fault *fault)
{
    const struct command *asked = &command->waiters->command;
    size_t count = d->rejection.present ? 0 : d->count;
    ARENA_ROOM(room, COMMAND_ROOM_BYTES);
    struct arena arena = arena_in(room, sizeof room);
    struct buffer *scratch = &all->deciding;
    struct bytes *packed = arena_take(&arena, count * sizeof *packed);
    int64_t time_ms = moment.wall_ms > all->last_time_ms ? moment.wall_ms : all->last_time_ms;
    struct outcome outcome = {
        .command_id = asked->id,
        .aggregate_type = asked->aggregate_type,
        .aggregate_id = asked->aggregate_id,
        .fingerprint = asked->fingerprint,
        .first_sequence = a->sequence,
        .event_count = (uint32_t)count,
        .first_position = all->next_position,
        .partition = all->settings.partition,
        .time_ms = time_ms,
        .reply = d->rejection.present ? (struct reply){.present = false} : d->reply,
        .rejection = d->rejection,
        .conflict = d->conflict,
    };
    enum status status = STATUS_OK;

    for (size_t i = 0; i < count && status == STATUS_OK; i++) {
        char made_id[40];
        struct event event = {
            .aggregate_type = asked->aggregate_type,
            .aggregate_id = asked->aggregate_id,
            .sequence = a->sequence + i,
            .partition = all->settings.partition,
            .position = all->next_position + i,
            .type = d->events[i].type,
            .payload = d->events[i].payload,
            .metadata = merged(&arena, &d->events[i].metadata, &asked->metadata),
            .time_ms = time_ms,
            .command_id = asked->id,
            .id = d->events[i].id.len > 0 ? d->events[i].id
                                          : make_event_id(made_id, all->settings.partition, all->next_position + i),
            .revision = d->events[i].revision,
            .origin = asked->origin,
            .principal = asked->principal,
            .subject = d->events[i].subject.len > 0 ? d->events[i].subject : asked->subject,
        };

        if (a->state != NULL)
            status = aggregate_evolve(a, &event, fault);
        if (status == STATUS_OK)
            status = seal_event(all, a, &event, &arena, fault);
        scratch->len = 0;
        wire_event_pack(scratch, &event);
        packed[i] = arena_copy(&arena, buffer_bytes(scratch));
    }
    if (status == STATUS_OK)
        status = seal_reply(all, asked, &outcome.reply, &arena, fault);
    if (status == STATUS_OK) {
        a->sequence += count;
        a->in_flight++;
        all->next_position += count - (PLANTED(POSITION_REUSED) && count > 1);
        all->last_time_ms = time_ms;
        command->aggregate = a;
        wire_log_batch_add(&all->open, &outcome, packed, count);
        *all->open_end = command;
        command->next = NULL;
        all->open_end = &command->next;
        track_state_size(all, a);
        if (a->type.data == NULL && count > 0) {
            a->type = (struct bytes){memory_take(asked->aggregate_type.len),
                                     asked->aggregate_type.len};
            memcpy((void *)a->type.data, asked->aggregate_type.data, asked->aggregate_type.len);
        }
        snapshot_by_module(all, a);
        if (asked->kind == COMMAND_FORGET)
            forget_subject(all, asked->subject);
        if (asked->kind == COMMAND_WRITE_SNAPSHOT || asked->kind == COMMAND_DELETE_SNAPSHOT)
            snapshot_by_command(all, a, asked);
        else
            snapshot_by_worker(all, a, &d->snapshot);
    } else {
        /* The state may have taken some of the events: build it anew, behind what is on its way. */
        aggregates_flush(all, moment);
        cache_unload(all, a);
    }
    shrink(scratch);
    arena_release(&arena);
    return status;
}

static void decided(struct aggregates *all, struct aggregate *a, struct inflight *command,
                    const struct decision *d, struct moment moment)
{
    struct fault fault;
    enum status status = decision_check(d, a->sequence, all->settings.payload_bytes_max, &fault);

    if (status == STATUS_OK)
        status = record(all, a, command, d, moment, &fault);
    if (status != STATUS_OK)
        refuse(all, command, &fault);
    if (all->open.len >= LOG_ENTRY_BYTES_TARGET || all->open_forgets)
        aggregates_flush(all, moment); /* nothing more is decided on what is forgotten */
}

/* ---- workers ---- */

enum { HISTORY_BYTES_MAX = 2 << 20 }; /* a worker reads what is beyond this by itself */

static enum status start_execution(struct aggregates *all, struct aggregate *a,
                                   struct inflight *command, struct moment moment,
                                   struct fault *fault)
{
    const struct admitted *asked = command->waiters;
    struct execution *execution;
    struct arena arena = {0};
    struct buffer packed = {0};
    struct execute execute = {.packed_command = wire_command_inside(&asked->command),
                              .sequence = a->sequence,
                              .principal = asked->command.principal};
    struct bytes *history = NULL;
    struct snapshot snapshot;
    uint64_t worker = 0;
    enum status status =
        all->effects.pick_worker(all->effects.context, &asked->command, a->worker, &worker, fault);

    if (status != STATUS_OK)
        return status;
    execute.events_from = worker == a->worker ? a->sequence : 0;
    if (execute.events_from < a->sequence && all->open_commands != NULL) {
        aggregates_flush(all, moment); /* so that reload_index covers all of it */
        if (!a->loaded)
            return STATUS_UNAVAILABLE;
    }
    if (execute.events_from < a->sequence &&
        all->effects.stored_index(all->effects.context) < a->reload_index)
        return STATUS_UNAVAILABLE; /* its history isn't readable yet */
    if (execute.events_from < a->sequence) {
        status = snapshot_find(all, a, &arena, &execute.packed_snapshot, &snapshot, fault);
        if (snapshot.present)
            execute.events_from = snapshot.sequence;
    }
    if (status == STATUS_OK)
        status = aggregate_history(all, a, execute.events_from, HISTORY_BYTES_MAX, &arena,
                                   &history, &execute.event_count, fault);
    if (status == STATUS_OK) {
        execution = memory_zero(1, sizeof *execution);
        execution->id = execute.execution_id = ++all->next_execution;
        execution->worker = worker;
        execution->aggregate = a;
        execution->inflight = command;
        HASH_ADD(hh, all->executions, id, sizeof execution->id, execution);
        a->executing = execution;
        a->worker = worker;
        execute.packed_events = history;
        wire_execute_pack(&packed, &execute);
        all->effects.execute(all->effects.context, worker, execution->id, buffer_bytes(&packed),
                             asked->deadline_ms);
    }
    buffer_release(&packed);
    arena_release(&arena);
    return status;
}

static struct inflight *end_execution(struct aggregates *all, struct execution *execution)
{
    struct inflight *command = execution->inflight;

    execution->aggregate->executing = NULL;
    HASH_DEL(all->executions, execution);
    free(execution);
    return command;
}

/* Back to the head of its mailbox, to run again. */
static void push_front(struct aggregates *all, struct aggregate *a, struct inflight *command)
{
    command->next = a->first;
    a->first = command;
    if (a->last == NULL)
        a->last = command;
    a->waiting++;
    all->waiting++;
}

void aggregates_executed(struct aggregates *all, uint64_t execution_id, uint64_t worker,
                         const struct execution_result *result, struct moment moment)
{
    struct execution *execution = NULL;
    struct aggregate *a;
    struct inflight *command;

    HASH_FIND(hh, all->executions, &execution_id, sizeof execution_id, execution);
    if (execution == NULL || execution->worker != worker)
        return; /* too late: the command went elsewhere or was given up */
    a = execution->aggregate;
    command = end_execution(all, execution);
    /* Unloaded: what the worker decided on is void, a submit before it failed (seed 1192). */
    if (result == NULL || result->needs_history || (!a->loaded && !PLANTED(VOID_STATE_DECIDED_ON))) {
        a->worker = 0;
        push_front(all, a, command);
    } else {
        struct arena arena = {0};
        struct decision d;
        uint64_t before = a->sequence;

        decision_init(&d, &arena);
        decision_by_worker(&d, result);
        decided(all, a, command, &d, moment);
        /* A worker whose answer was refused may have moved its copy on; don't trust it. */
        if (a->sequence == before && d.count > 0 && !d.rejection.present)
            a->worker = 0;
        arena_release(&arena);
    }
    run(all, a, moment);
}

void aggregates_workers_changed(struct aggregates *all, struct moment moment)
{
    run_parked(all, moment);
}

void aggregates_tick(struct aggregates *all, struct moment moment)
{
    struct execution *execution;
    struct execution *next;

    HASH_ITER(hh, all->executions, execution, next)
    {
        if (execution->inflight->waiters->deadline_ms <= moment.now_ms) {
            struct aggregate *a = execution->aggregate;
            struct inflight *command = end_execution(all, execution);
            struct fault fault;

            a->worker = 0;
            (void)fault_set(&fault, STATUS_DEADLINE, "WORKER_TIMEOUT",
                            "the worker gave no answer before the command's deadline");
            refuse(all, command, &fault);
            run(all, a, moment);
        }
    }
    run_parked(all, moment);
    rewrap_some(all);
}

/* ---- running a mailbox ---- */

/* The aggregate in memory and the command allowed on it. UNAVAILABLE: not now, wait. */
static enum status prepare(struct aggregates *all, struct aggregate *a,
                           const struct command *command, struct fault *fault)
{
    if (command->kind == COMMAND_FORGET) /* of no aggregate */
        return may_forget(all, command->subject) ? STATUS_OK : STATUS_UNAVAILABLE;
    if (!a->loaded) {
        enum status status;

        if (all->effects.stored_index(all->effects.context) < a->reload_index)
            return STATUS_UNAVAILABLE;
        status = aggregate_load(all, a, command->aggregate_type, fault);
        if (status != STATUS_OK)
            return status == STATUS_UNAVAILABLE ? STATUS_FAILED : status;
    }
    if (a->type.data != NULL && !bytes_equal(a->type, command->aggregate_type))
        return fault_set(fault, STATUS_INVALID, "AGGREGATE_TYPE_MISMATCH",
                         "aggregate %.*s has type %.*s, not %.*s", (int)a->id.len,
                         (const char *)a->id.data, (int)a->type.len, (const char *)a->type.data,
                         (int)command->aggregate_type.len,
                         (const char *)command->aggregate_type.data);
    if (a->type.data == NULL && a->module == NULL && a->sequence == 0) {
        /* Still without events: another type may have been tried before. */
        const struct cairn_aggregate_type *module =
            all->effects.module_type(all->effects.context, command->aggregate_type);

        if (module != NULL)
            return aggregate_load(all, a, command->aggregate_type, fault);
    } else if (a->type.data == NULL && a->module != NULL &&
               !bytes_equal(bytes_of(a->module->name), command->aggregate_type)) {
        cache_unload(all, a);
        return aggregate_load(all, a, command->aggregate_type, fault);
    }
    if (command->expects_sequence && command->expected_sequence != a->sequence &&
        !PLANTED(EXPECTATION_IGNORED))
        return fault_set(fault, STATUS_CONFLICT, "SEQUENCE_CONFLICT",
                         "aggregate %.*s has %llu events, the command expected %llu; read it "
                         "again and decide anew",
                         (int)a->id.len, (const char *)a->id.data,
                         (unsigned long long)a->sequence,
                         (unsigned long long)command->expected_sequence);
    return STATUS_OK;
}

static void decide_here(struct aggregates *all, struct aggregate *a, struct inflight *command,
                        struct moment moment)
{
    ARENA_ROOM(room, COMMAND_ROOM_BYTES);
    struct arena arena = arena_in(room, sizeof room);
    struct decision d;

    decision_init(&d, &arena);
    if (command->waiters->command.kind == COMMAND_APPEND)
        decision_by_append(&d, &command->waiters->command);
    else if (command->waiters->command.kind == COMMAND_DISPATCH)
        decision_by_module(&d, a, &command->waiters->command);
    else if (command->waiters->command.kind != COMMAND_FORGET) /* there nothing is decided */
        decision_by_snapshot(&d, &command->waiters->command, a->sequence);
    decided(all, a, command, &d, moment);
    arena_release(&arena);
}

/*
 * Expecting more events than there are is refused for good, so it is recorded like a rejection: another copy
 * of the same command, sent before and still on its way, would find that many events later and take effect
 * after its caller was told that it had none. Expecting fewer stays wrong by itself.
 */
static void decide_conflict(struct aggregates *all, struct aggregate *a, struct inflight *command,
                            const struct fault *fault, struct moment moment)
{
    struct arena arena = {0};
    struct decision d;

    decision_init(&d, &arena);
    decision_by_conflict(&d, fault);
    decided(all, a, command, &d, moment);
    arena_release(&arena);
}

static void run(struct aggregates *all, struct aggregate *a, struct moment moment)
{
    while (all->owned && a->first != NULL && a->executing == NULL) {
        struct inflight *command = mailbox_pop(all, a);
        const struct admitted *asked = command->waiters;
        struct fault fault = {0};
        enum status status;

        if (asked->deadline_ms <= moment.now_ms) {
            (void)fault_set(&fault, STATUS_DEADLINE, "DEADLINE_EXCEEDED",
                            "the command's deadline passed while it waited for its turn");
            refuse(all, command, &fault);
            continue;
        }
        status = prepare(all, a, &asked->command, &fault);
        if (status == STATUS_OK && (asked->command.kind != COMMAND_DISPATCH || a->module != NULL)) {
            decide_here(all, a, command, moment);
            continue;
        }
        if (status == STATUS_CONFLICT && asked->command.expected_sequence > a->sequence) {
            decide_conflict(all, a, command, &fault, moment);
            continue;
        }
        if (status == STATUS_OK)
            status = start_execution(all, a, command, moment, &fault);
        if (status == STATUS_UNAVAILABLE) {
            push_front(all, a, command);
            park(all, a);
            return;
        }
        if (status != STATUS_OK)
            refuse(all, command, &fault);
    }
}

void aggregates_admit(struct aggregates *all, struct admitted *command, struct moment moment)
{
    struct inflight *inflight;
    struct aggregate *a;
    struct fault fault;

    if (!all->owned) {
        not_owner(&fault);
        all->effects.answer(all->effects.context, command, NULL, &fault);
        return;
    }
    if (dedupe(all, command, moment, &inflight) != STATUS_OK)
        return;
    a = cache_find_or_add(all, command->command.aggregate_id);
    if (a->waiting >= MAILBOX_COMMANDS_MAX) {
        (void)fault_set(&fault, STATUS_EXHAUSTED, "AGGREGATE_BUSY",
                        "%d commands wait for aggregate %.*s already", MAILBOX_COMMANDS_MAX,
                        (int)a->id.len, (const char *)a->id.data);
        fault.retry_ms = 100;
        refuse(all, inflight, &fault);
        return;
    }
    if (!a->loaded && a->reload_index == 0)
        a->reload_index = all->effects.applied_index(all->effects.context);
    if (!a->loaded && a->reload_index < all->forget_index)
        a->reload_index = all->forget_index;
    mailbox_push(all, a, inflight);
    if (!a->parked)
        run(all, a, moment);
}

/* ---- from decision to answer ---- */

/* A submit failed: what was decided on it is void. */
static void discard_open(struct aggregates *all, enum status status)
{
    struct inflight *command = all->open_commands;
    struct fault fault;

    if (status == STATUS_EXHAUSTED) {
        (void)fault_set(&fault, STATUS_EXHAUSTED, "DISK_FULL",
                        "the disks of this partition's replicas are full");
        fault.retry_ms = 1000;
    } else {
        not_owner(&fault);
    }
    sealing_discarded(all);
    refusals_void(all, &fault); /* a conflict with events that won't be isn't one (seed 202726) */
    all->open_commands = NULL;
    all->open_end = &all->open_commands;
    all->open.len = 0;
    while (command != NULL) {
        struct inflight *next = command->next;
        struct aggregate *a = command->aggregate;

        a->in_flight--;
        if (!PLANTED(STATE_KEPT_AFTER_LOSS))
            cache_unload(all, a);
        refuse(all, command, &fault);
        command = next;
    }
}

static void submit_open(struct aggregates *all)
{
    struct blob *payload;
    struct sent_entry *entry;
    uint64_t first_position;
    uint64_t index = 0;
    enum status status;

    if (all->open.len == 0)
        return;
    payload = blob_new(all->open.len);
    memcpy(payload->data, all->open.data, all->open.len);
    first_position = all->open_position;
    status = all->effects.submit(all->effects.context, payload, &index);
    if (status != STATUS_OK) {
        discard_open(all, status);
        all->next_position = first_position;
        return;
    }
    entry = all->spare_sent != NULL ? all->spare_sent : memory_take(sizeof *entry);
    all->spare_sent = NULL;
    *entry = (struct sent_entry){NULL, index, all->open_commands};
    for (struct inflight *c = entry->commands; c != NULL; c = c->next) {
        c->index = index;
        c->aggregate->reload_index = index;
    }
    sealing_submitted(all, index);
    *all->sent_end = entry;
    all->sent_end = &entry->next;
    all->open_commands = NULL;
    all->open_end = &all->open_commands;
    all->open.len = 0;
    all->open_position = all->next_position;
}

void aggregates_flush(struct aggregates *all, struct moment moment)
{
    (void)moment;
    submit_open(all);
    refusals_flush(all);
}

static void put_record(struct aggregates *all, const struct command_record *record,
                       struct buffer *scratch, struct store_batch *batch)
{
    const struct outcome *outcome = &record->outcome;
    uint16_t partition = all->settings.partition;
    struct store_key key;

    for (size_t i = 0; i < record->event_count; i++) {
        uint64_t sequence = outcome->first_sequence + i;

        if (PLANTED(LAST_EVENT_LOST) && i > 0 && i + 1 == record->event_count)
            continue;
        key = key_event(partition, outcome->aggregate_id, sequence);
        store_batch_put(batch, STORE_EVENTS, key_bytes(&key), record->packed_events[i]);
        scratch->len = 0;
        buffer_add(scratch, &sequence, sizeof sequence);
        buffer_add(scratch, outcome->aggregate_id.data, outcome->aggregate_id.len);
        key = key_position(partition, outcome->first_position + i);
        store_batch_put(batch, STORE_POSITIONS, key_bytes(&key), buffer_bytes(scratch));
    }
    if (PLANTED(REJECTION_NOT_RECORDED) && outcome->rejection.present)
        return;
    scratch->len = 0;
    wire_outcome_pack(scratch, outcome);
    key = key_outcome(partition, outcome->command_id);
    store_batch_put(batch, STORE_OUTCOMES, key_bytes(&key), buffer_bytes(scratch));
}

/* Where a processor group stands that has its home here. */
static void put_cursor(struct aggregates *all, const struct cursor_record *record, struct store_batch *batch)
{
    struct store_key key = key_cursor(all->settings.partition, record->cursor.group,
                                      (uint16_t)record->cursor.partition);

    store_batch_put(batch, STORE_CURSORS, key_bytes(&key), record->packed);
}

/* Answer the next command of our own entry; it stays known until it is stored. */
static void answer_next(struct aggregates *all, struct sent_entry *entry,
                        const struct command_record *record)
{
    struct inflight *command = entry->commands;

    assert(command != NULL);
    assert(bytes_equal(command->id, record->outcome.command_id));
    entry->commands = command->next;
    command->next = NULL;
    wire_outcome_pack(&command->outcome, &record->outcome);
    *all->unstored_end = command;
    all->unstored_end = &command->next;
    publish_or_answer(all, command, record);
}

enum status aggregates_committed(struct aggregates *all, uint64_t index, struct bytes payload,
                                 struct applied *applied, struct store_batch *batch,
                                 struct fault *fault)
{
    ARENA_ROOM(room, COMMAND_ROOM_BYTES);
    struct arena arena = arena_in(room, sizeof room);
    struct log_batch entry;
    struct sent_entry *mine =
        all->sent != NULL && all->sent->index == index ? all->sent : NULL;
    enum status status = wire_log_batch_decode(payload, &arena, &entry, fault);

    for (size_t i = 0; i < entry.command_count && status == STATUS_OK; i++) {
        const struct outcome *outcome = &entry.commands[i].outcome;

        if (outcome->first_position != applied->next_position ||
            outcome->event_count != entry.commands[i].event_count ||
            outcome->aggregate_id.len == 0 ||
            outcome->aggregate_id.len > AGGREGATE_ID_BYTES_MAX ||
            outcome->command_id.len > COMMAND_ID_BYTES_MAX) {
            status = fault_set(fault, STATUS_DAMAGED, "DAMAGED_LOG",
                               "log entry %llu of partition %u starts at position %llu, expected "
                               "%llu",
                               (unsigned long long)index, all->settings.partition,
                               (unsigned long long)outcome->first_position,
                               (unsigned long long)applied->next_position);
            break;
        }
        put_record(all, &entry.commands[i], &all->applying, batch);
        applied->next_position += entry.commands[i].event_count;
        applied->last_time_ms = outcome->time_ms;
        if (mine != NULL)
            answer_next(all, mine, &entry.commands[i]);
    }
    for (size_t i = 0; i < entry.snapshot_count && status == STATUS_OK; i++)
        snapshot_put(all, &entry.snapshots[i], batch);
    if (status == STATUS_OK)
        put_keys(all, &entry, batch);
    for (size_t i = 0; i < entry.cursor_count && status == STATUS_OK; i++)
        put_cursor(all, &entry.cursors[i], batch);
    if (mine != NULL && status == STATUS_OK) {
        assert(mine->commands == NULL);
        all->sent = mine->next;
        if (all->sent == NULL)
            all->sent_end = &all->sent;
        free(all->spare_sent);
        all->spare_sent = mine;
    }
    shrink(&all->applying);
    arena_release(&arena);
    return status;
}

void aggregates_stored(struct aggregates *all, uint64_t index, struct moment moment)
{
    while (all->unstored != NULL && all->unstored->index <= index) {
        struct inflight *command = all->unstored;

        all->unstored = command->next;
        if (all->unstored == NULL)
            all->unstored_end = &all->unstored;
        command->aggregate->in_flight--;
        command->stored = true;
        if (command->processing == 0)
            inflight_free(all, command);
    }
    refusals_stored(all, index);
    run_parked(all, moment);
    cache_trim(all);
}

/* ---- ownership ---- */

void aggregates_own(struct aggregates *all, const struct applied *applied)
{
    assert(!all->owned);
    all->owned = true;
    all->next_position = applied->next_position;
    all->open_position = applied->next_position;
    all->last_time_ms = applied->last_time_ms;
    rewrap_begin(all);
}

static void disown_list(struct aggregates *all, struct inflight *command)
{
    struct fault fault;

    not_owner(&fault);
    while (command != NULL) {
        struct inflight *next = command->next;

        refuse(all, command, &fault);
        command = next;
    }
}

void aggregates_disown(struct aggregates *all)
{
    struct execution *execution;
    struct execution *next_execution;

    all->owned = false;
    publish_disown(all);
    HASH_ITER(hh, all->executions, execution, next_execution)
    {
        struct inflight *command = end_execution(all, execution);

        command->next = NULL;
        disown_list(all, command);
    }
    for (struct aggregate *a = all->oldest; a != NULL; a = a->newer) {
        struct inflight *first = a->first;

        all->waiting -= a->waiting;
        a->first = a->last = NULL;
        a->waiting = 0;
        disown_list(all, first);
    }
    disown_list(all, all->open_commands);
    all->open_commands = NULL;
    all->open_end = &all->open_commands;
    all->open.len = 0;
    while (all->sent != NULL) {
        struct sent_entry *entry = all->sent;

        all->sent = entry->next;
        disown_list(all, entry->commands);
        free(entry);
    }
    all->sent_end = &all->sent;
    disown_list(all, all->unstored);
    all->unstored = NULL;
    all->unstored_end = &all->unstored;
    refusals_disown(all);
    sealing_disown(all);
    all->parked = NULL;
    assert(all->known == NULL);
    cache_clear(all);
}

/* ---- birth and death ---- */

struct aggregates *aggregates_new(const struct aggregates_settings *settings,
                                  const struct aggregates_effects *effects, struct store *store)
{
    struct aggregates *all = memory_zero(1, sizeof *all);

    all->settings = *settings;
    all->effects = *effects;
    all->store = store;
    all->open_end = &all->open_commands;
    all->sent_end = &all->sent;
    all->unstored_end = &all->unstored;
    all->refused_end = &all->refused;
    all->confirming_end = &all->confirming;
    return all;
}

void aggregates_free(struct aggregates *all)
{
    if (all == NULL)
        return;
    aggregates_disown(all);
    buffer_release(&all->open);
    buffer_release(&all->deciding);
    buffer_release(&all->applying);
    free(all->spare_sent);
    inflight_free_spare(all);
    free(all);
}

struct aggregates_view aggregates_view(const struct aggregates *all)
{
    return (struct aggregates_view){
        .cached = HASH_COUNT(all->table),
        .waiting = all->waiting,
        .in_flight = HASH_COUNT(all->known),
        .executing = HASH_COUNT(all->executions),
        .processing = HASH_CNT(by_ticket, all->processing),
        .rewrapping = all->rewrapping,
    };
}

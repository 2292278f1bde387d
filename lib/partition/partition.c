/*
 * Drives libraft's step engine: feeds events, and turns each update into writes of this turn's
 * batch, messages, applied entries and changes of ownership.
 *
 *   event ──▶ raft_step ──▶ update: term, vote ─▶ batch (messages wait for it)
 *                                   entries ────▶ batch, tail; PERSISTED after the ticket
 *                                   messages ───▶ send, entries filled in
 *                                   snapshot ───▶ need_range
 *                                   commit ─────▶ apply, in the same batch as the applied index
 *                                   state ──────▶ barrier, ownership
 */
#include "partition.h"

#include "raft_message.h"
#include "tail.h"

enum {
    ENGINE_HEARTBEAT_MS = 2, /* see partition_deadline() */
    JOIN_LOG_BYTES = 256 << 10,
    JOIN_TRAILING = 256,
    /* How long a leader waits for a snapshot to be taken before it tries its log again (libraft: 30 s).
     * Asking again costs nothing: a range that is on its way isn't begun anew. */
    SNAPSHOT_RETRY_MS = 3000,
    /* How far the applied index on disk may stay behind. Applying an entry again puts the same records. */
    APPLIED_BEHIND_ENTRIES = 64,
    APPLIED_BEHIND_MS = 1000,
};

/* One turn's writes that somebody waits for. */
struct pending_write {
    uint64_t ticket;
    uint64_t last_index;    /* entries persisted up to here; 0 for none */
    uint64_t applied_index; /* applied up to here; 0 for none */
};

/* A message that waits for a vote or term to be on disk. Never has entries. */
struct held_message {
    struct held_message *next;
    uint64_t ticket;
    uint64_t to;
    struct replica_message message;
};

struct partition {
    struct raft raft;
    struct partition_settings settings;
    struct partition_effects effects;
    struct store *store;
    struct tail tail;
    uint64_t last_index;
    struct applied applied;
    uint64_t stored_index;   /* applied, and what that put is on disk */
    uint64_t recorded_index; /* the applied index as it is in the store: a restart goes on from there */
    uint64_t recorded_ms;

    struct pending_write *writes; /* oldest first */
    size_t write_count;
    size_t write_room;
    uint64_t vote_ticket; /* newest ticket with a term or vote in it */
    uint64_t written_ticket;
    struct held_message *held;
    struct held_message **held_end;

    bool empty; /* no log yet, by right: marked so in the store */
    struct checkpoint checkpoint;
    struct buffer configuration; /* the committed one, packed */
    uint64_t configuration_index;
    size_t bytes_since_checkpoint;
    bool trim;

    uint64_t leader; /* who sent entries of leader_term: libraft remembers older leaders as well */
    uint64_t leader_term;
    bool owner;
    uint64_t leading_term;   /* the term in which this replica leads, 0 when it doesn't */
    uint64_t barrier_index;  /* ours of this term, 0 while there is none */
    bool raising_barrier;
    uint64_t ticked_ms;
    uint64_t read_barrier_index;
    uint64_t read_barrier_ticket;
    /* The leader's newest InstallSnapshot waits for its range; libraft hears of it only when the range
     * is in the store. Until then this replica votes and follows with the log that it has, but applies
     * nothing: what comes from another replica must not be older than what is here. */
    bool fetching;
    bool stopping_fetch;
    bool repairing;   /* the range that comes replaces damaged records: wanted to its end */
    bool log_damaged; /* somewhere up to the applied index: to be trimmed away */
    uint64_t asked_index; /* what the range must have applied at least */
    uint64_t wanted_from;
    struct replica_message wanted;
    struct buffer wanted_configuration;
    struct applied fetched; /* what the range in the store holds, while libraft is told of it */
    bool restoring;         /* libraft asked for it in this step */
    bool answering_old_term;
    struct raft_snapshot_metadata install;
    bool failed;
    struct buffer scratch;
};

static void step(struct partition *p, struct raft_event *event, const struct turn *turn);

static void fail(struct partition *p, const char *doing, const char *why)
{
    struct fault fault;

    if (p->failed)
        return;
    p->failed = true;
    (void)fault_set(&fault, STATUS_FAILED, "PARTITION_FAILED", "partition %u: %s: %s",
                    p->settings.id, doing, why);
    p->effects.failed(p->effects.context, p, &fault);
}

/* ---- writes ---- */

static struct pending_write *write_of(struct partition *p, const struct turn *turn)
{
    if (p->write_count > 0 && p->writes[p->write_count - 1].ticket == turn->ticket)
        return &p->writes[p->write_count - 1];
    if (p->write_count == p->write_room) {
        p->write_room = p->write_room == 0 ? 8 : p->write_room * 2;
        p->writes = memory_grow(p->writes, p->write_room * sizeof *p->writes);
    }
    p->writes[p->write_count] = (struct pending_write){.ticket = turn->ticket};
    return &p->writes[p->write_count++];
}

static void put_meta(struct partition *p, const char *name, const struct turn *turn)
{
    struct store_key key = key_partition_meta(p->settings.id, name);

    store_batch_put(turn->batch, STORE_META, key_bytes(&key), buffer_bytes(&p->scratch));
}

static void put_vote(struct partition *p, uint64_t term, uint64_t voted_for, const struct turn *turn)
{
    p->scratch.len = 0;
    wire_vote_pack(&p->scratch, term, voted_for);
    put_meta(p, "vote", turn);
    (void)write_of(p, turn);
    p->vote_ticket = turn->ticket;
}

static void write_vote(struct partition *p, const struct turn *turn)
{
    if (PLANTED(VOTE_NOT_WRITTEN)) {
        (void)write_of(p, turn);
        p->vote_ticket = turn->ticket;
        return;
    }
    put_vote(p, raft_current_term(&p->raft), raft_voted_for(&p->raft), turn);
}

static void delete_log(struct partition *p, uint64_t from, uint64_t to, const struct turn *turn)
{
    struct store_key first = key_log(p->settings.id, from);
    struct store_key end = key_log(p->settings.id, to);

    if (from < to)
        store_batch_delete_range(turn->batch, STORE_LOG, key_bytes(&first), key_bytes(&end));
}

/* Entries from index on are replaced: nothing reported later may claim them. */
static void forget_from(struct partition *p, uint64_t index, const struct turn *turn)
{
    delete_log(p, index, p->last_index + 1, turn);
    tail_truncate(&p->tail, index);
    for (size_t i = 0; i < p->write_count; i++)
        if (p->writes[i].last_index >= index)
            p->writes[i].last_index = index - 1;
    p->last_index = index - 1;
}

static void mark_empty(struct partition *p, bool empty, const struct turn *turn)
{
    struct store_key key = key_partition_meta(p->settings.id, "empty");

    if (empty)
        store_batch_put(turn->batch, STORE_META, key_bytes(&key), BYTES_LITERAL("1"));
    else
        store_batch_delete(turn->batch, STORE_META, key_bytes(&key));
    p->empty = empty;
}

static void write_entries(struct partition *p, uint64_t index, struct raft_entry *entries,
                          unsigned count, const struct turn *turn)
{
    struct blob *blob = NULL;

    if (p->empty)
        mark_empty(p, false, turn);
    if (index <= p->last_index)
        forget_from(p, index, turn);
    assert(index == p->last_index + 1);
    for (unsigned i = 0; i < count; i++) {
        bool engines_own = entries[i].batch == entries[i].buf.base; /* libraft's barrier */
        struct log_entry entry = {
            .term = entries[i].term,
            .type = entries[i].type,
            .payload = engines_own ? BYTES_NONE
                                   : (struct bytes){entries[i].buf.base, entries[i].buf.len},
        };
        struct store_key key = key_log(p->settings.id, index + i);

        p->scratch.len = 0;
        wire_log_entry_pack(&p->scratch, &entry);
        store_batch_put(turn->batch, STORE_LOG, key_bytes(&key), buffer_bytes(&p->scratch));
        if (engines_own)
            raft_free(entries[i].batch);
        else
            blob = entries[i].batch;
        tail_append(&p->tail, &entry, engines_own ? NULL : blob);
        p->bytes_since_checkpoint += entry.payload.len;
    }
    blob_drop(blob); /* the tail holds its own references */
    p->last_index = index + count - 1;
    write_of(p, turn)->last_index = p->last_index;
}

/* ---- messages ---- */

static void send_or_hold(struct partition *p, uint64_t to, const struct replica_message *message)
{
    struct held_message *held;

    if (p->vote_ticket <= p->written_ticket) {
        p->effects.send(p->effects.context, p, to, message);
        return;
    }
    if (message->entry_count > 0 || message->configuration.len > 0)
        return; /* Raft sends it again */
    held = memory_take(sizeof *held);
    *held = (struct held_message){NULL, p->vote_ticket, to, *message};
    *p->held_end = held;
    p->held_end = &held->next;
}

static void release_held(struct partition *p)
{
    while (p->held != NULL && p->held->ticket <= p->written_ticket) {
        struct held_message *held = p->held;

        p->held = held->next;
        if (p->held == NULL)
            p->held_end = &p->held;
        p->effects.send(p->effects.context, p, held->to, &held->message);
        free(held);
    }
}

/* The cursor's next entry; false when it isn't on disk yet, or damaged. */
static bool read_entry(struct partition *p, struct store_cursor *cursor, uint64_t index,
                       struct arena *arena, struct log_entry *entry)
{
    struct bytes key;
    struct bytes value;
    struct fault fault;
    enum status status =
        cursor == NULL ? STATUS_NOT_FOUND : store_cursor_next(cursor, &key, &value, &fault);

    if (status == STATUS_OK && key_last_number(key) != index)
        return false;
    if (status == STATUS_OK)
        status = wire_log_entry_decode(arena_copy(arena, value), entry, &fault);
    if (status != STATUS_OK && status != STATUS_NOT_FOUND && !p->log_damaged) {
        p->log_damaged = true;
        p->effects.damaged(p->effects.context, p, &fault);
    }
    return status == STATUS_OK;
}

/* Entries [from, from+count) as one or more messages of bounded size. Older ones than the tail
 * are read from the log. */
static void send_entries(struct partition *p, uint64_t to, struct replica_message *message,
                         unsigned count)
{
    uint64_t from = message->log_index + 1;
    uint64_t end = from + count;
    struct log_entry piece[256];
    struct arena arena = {0};
    struct store_cursor *cursor = NULL;

    if (tail_at(&p->tail, from) == NULL) {
        struct store_key first = key_log(p->settings.id, from);
        struct store_key last = key_log(p->settings.id, end);

        cursor = store_cursor_new(p->store, STORE_LOG, key_bytes(&first), key_bytes(&last), false);
    }
    while (from < end) {
        size_t n = 0;
        size_t bytes = 0;

        while (from + n < end && n < COUNT_OF(piece) && bytes < FRAME_BYTES_TARGET) {
            const struct log_entry *entry = tail_at(&p->tail, from + n);

            if (entry != NULL) {
                piece[n] = *entry;
            } else if (read_entry(p, cursor, from + n, &arena, &piece[n])) {
                /* from the disk */
            } else {
                end = from + n; /* not on disk yet: Raft asks again */
                break;
            }
            bytes += piece[n].payload.len;
            n++;
        }
        if (n == 0)
            break;
        message->entries = piece;
        message->entry_count = n;
        send_or_hold(p, to, message);
        message->log_index = from + n - 1;
        message->log_term = piece[n - 1].term;
        from += n;
        arena_reset(&arena);
    }
    store_cursor_free(cursor);
    arena_release(&arena);
}

/*
 * libraft's answer to an AppendEntries or InstallSnapshot of an older term has a last index that was never
 * set, and for a snapshot it says "success": a sender that leads again by then takes that for what is on
 * our disk, and commits. Only the answer's term matters; the rest is said here, and success isn't.
 * (Found by cairn-sim: seed 1000298, scenario ownership.)
 */
static bool mend_answer_to_old_term(const struct partition *p, struct replica_message *answer)
{
    if (!p->answering_old_term || answer->type != REPLICA_APPEND_ENTRIES_RESULT)
        return true;
    if (answer->rejected == 0)
        return false;
    answer->log_index =
        p->last_index < answer->rejected ? p->last_index : answer->rejected - 1;
    return true;
}

static void send_message(struct partition *p, const struct raft_message *in)
{
    struct replica_message message;

    replica_message_from_raft(&message, in, p->settings.id);
    if (in->type == RAFT_APPEND_ENTRIES && in->append_entries.n_entries > 0) {
        send_entries(p, in->server_id, &message, in->append_entries.n_entries);
        return;
    }
    if (!mend_answer_to_old_term(p, &message))
        return;
    /* libraft refuses a pre-vote of an older term in that older term, so the asker never learns of ours;
     * when it has the longer log, nobody can be elected. (Found by cairn-sim: seed 1001784.) */
    if (in->type == RAFT_REQUEST_VOTE_RESULT && message.pre_vote && !message.flag &&
        message.term < raft_current_term(&p->raft))
        message.term = raft_current_term(&p->raft);
    if (in->type == RAFT_INSTALL_SNAPSHOT) {
        message.configuration = buffer_bytes(&p->configuration);
        message.configuration_index = p->configuration_index;
    }
    send_or_hold(p, in->server_id, &message);
}

/* ---- applying ---- */

static enum status entry_at(struct partition *p, uint64_t index, struct arena *arena,
                            struct log_entry *entry, struct fault *fault)
{
    const struct log_entry *found = tail_at(&p->tail, index);
    struct store_key key = key_log(p->settings.id, index);
    struct bytes value;
    enum status status;

    if (found != NULL) {
        *entry = *found;
        return STATUS_OK;
    }
    status = store_get(p->store, STORE_LOG, key_bytes(&key), arena, &value, fault);
    return status == STATUS_OK ? wire_log_entry_decode(value, entry, fault) : status;
}

static void apply_change(struct partition *p, uint64_t index, struct bytes payload,
                         const struct turn *turn)
{
    struct raft_event event = {.type = RAFT_CONFIGURATION};
    struct raft_buffer packed = {(void *)payload.data, payload.len};

    p->configuration.len = 0;
    buffer_add(&p->configuration, payload.data, payload.len);
    p->configuration_index = index;
    event.configuration.index = index;
    raft_configuration_init(&event.configuration.conf);
    if (raft_configuration_decode(&packed, &event.configuration.conf) != 0) {
        fail(p, "cannot apply a configuration", "malformed");
        return;
    }
    step(p, &event, turn);
}

/*
 * libraft hears of a committed configuration when its entry is applied; one that came with a range, or was
 * applied in an earlier life, is applied already when its entry is (again) in the log. Without this a leader
 * could never change the configuration again.
 */
static void settle_configuration(struct partition *p, const struct turn *turn)
{
    uint64_t index = p->raft.configuration_uncommitted_index;
    struct raft_buffer packed;
    struct blob *copy;

    if (index == 0 || PLANTED(CONFIGURATION_FORGOTTEN) || index > p->applied.index || index > raft_commit_index(&p->raft) || p->restoring ||
        raft_configuration_encode(&p->raft.configuration, &packed) != 0)
        return;
    copy = blob_new(packed.len);
    memcpy(copy->data, packed.base, packed.len);
    raft_free(packed.base);
    apply_change(p, index, (struct bytes){copy->data, copy->len}, turn);
    blob_drop(copy);
}

static void record_applied(struct partition *p, const struct turn *turn)
{
    p->applied.index += PLANTED(APPLIED_AHEAD);
    p->scratch.len = 0;
    wire_applied_pack(&p->scratch, &p->applied);
    put_meta(p, "applied", turn);
    p->applied.index -= PLANTED(APPLIED_AHEAD);
    p->recorded_index = p->applied.index;
    p->recorded_ms = turn->now_ms;
}

static void apply_committed(struct partition *p, const struct turn *turn)
{
    uint64_t commit = raft_commit_index(&p->raft);
    struct arena arena = {0};
    bool any = false;

    if (p->restoring || p->fetching)
        return;
    while (p->applied.index < commit && !p->failed) {
        uint64_t index = p->applied.index + 1;
        struct log_entry entry;
        struct fault fault = {.message = "missing"};

        if (entry_at(p, index, &arena, &entry, &fault) != STATUS_OK) {
            fail(p, "cannot read a committed log entry", fault.message);
            break;
        }
        p->applied.index = index;
        p->applied.term = entry.term;
        if (entry.type == RAFT_COMMAND)
            p->effects.apply(p->effects.context, p, index, entry.payload, &p->applied,
                             turn->batch);
        else if (entry.type == RAFT_CHANGE)
            apply_change(p, index, entry.payload, turn);
        any = true;
    }
    arena_release(&arena);
    if (!any)
        return;
    /* At once with an order to forget, since what comes before it would bring keys back; and when nothing else
     * would make this turn's batch, which is waited for. */
    if (p->trim || p->applied.index - p->recorded_index >= APPLIED_BEHIND_ENTRIES ||
        store_batch_count(turn->batch) == 0)
        record_applied(p, turn);
    write_of(p, turn)->applied_index = p->applied.index;
}

/* ---- ownership ---- */

static void set_owner(struct partition *p, bool owner)
{
    if (p->owner == owner)
        return;
    p->owner = owner;
    p->effects.ownership(p->effects.context, p, owner);
}

static enum status submit(struct partition *p, enum raft_entry_type type, struct blob *payload,
                          const struct turn *turn, uint64_t *index)
{
    struct raft_entry entry = {
        .term = raft_current_term(&p->raft),
        .type = type,
        .buf = {payload->data, payload->len},
        .batch = payload,
    };
    struct raft_event event = {.type = RAFT_SUBMIT, .submit = {&entry, 1}};
    uint64_t before = p->last_index;

    if (p->failed || raft_state(&p->raft) != RAFT_LEADER || raft_transferee(&p->raft) != 0) {
        blob_drop(payload);
        return STATUS_NOT_OWNER;
    }
    *index = before + 1;
    /* Reads go on when the disks are full, and a barrier takes no room to speak of. */
    raft_set_capacity_threshold(&p->raft, type == RAFT_COMMAND ? p->settings.disk_reserve_mib : 0);
    step(p, &event, turn);
    if (p->last_index == before) { /* refused: the majority's disks are full */
        blob_drop(payload);
        return STATUS_EXHAUSTED;
    }
    return STATUS_OK;
}

/* Our barrier of this term: owner once it is applied and stored. Not while leadership is being handed over;
 * when nobody takes it, later. (Found by cairn-sim: seed 500585, scenario rot.) */
static void raise_barrier(struct partition *p, const struct turn *turn)
{
    uint64_t index;

    if (p->raising_barrier) /* submitting leads here again */
        return;
    p->raising_barrier = true;
    if (submit(p, RAFT_BARRIER, blob_new(0), turn, &index) == STATUS_OK)
        p->barrier_index = index;
    p->raising_barrier = false;
}

static void begin_leading(struct partition *p)
{
    p->leading_term = raft_current_term(&p->raft);
    p->read_barrier_ticket = 0;
    p->barrier_index = 0;
}

/* Before anything else of the step: what another leader committed must not meet our own decisions.
 * (Found by cairn-sim: seed 931.) */
static void follow_loss(struct partition *p)
{
    if (p->leading_term != 0 && (raft_state(&p->raft) != RAFT_LEADER ||
                                 p->leading_term != raft_current_term(&p->raft))) {
        p->leading_term = 0;
        set_owner(p, false);
    }
}

/* That very entry: one of the same index from an older term is about to be cut off (seed 3035). */
static bool has_wanted(const struct partition *p)
{
    const struct log_entry *entry = tail_at(&p->tail, p->wanted.log_index);

    return p->applied.index >= p->wanted.log_index ||
           (entry != NULL && entry->term == p->wanted.log_term);
}

static void follow_state(struct partition *p, const struct turn *turn)
{
    follow_loss(p);
    if (raft_state(&p->raft) == RAFT_LEADER && p->leading_term == 0)
        begin_leading(p);
    if (p->leading_term != 0 && p->barrier_index == 0)
        raise_barrier(p, turn);
    /* Whoever leads has all in its log, and so has a follower that got the entries after all. */
    if (p->fetching && !p->repairing && !p->stopping_fetch &&
        (p->leading_term != 0 || has_wanted(p))) {
        p->stopping_fetch = true;
        p->effects.stop_range(p->effects.context, p);
    }
    if (p->leading_term != 0 && p->barrier_index != 0 && !p->repairing &&
        (p->stored_index >= p->barrier_index || PLANTED(OWNER_WITHOUT_BARRIER)))
        set_owner(p, true);
}

/* ---- the step ---- */

static void begin_install(struct partition *p, const struct raft_update *update)
{
    p->restoring = true;
    p->install = update->snapshot.metadata;
    raft_free(update->snapshot.chunk.base);
    tail_restart(&p->tail, update->snapshot.metadata.index + 1);
    for (size_t i = 0; i < p->write_count; i++)
        p->writes[i].last_index = 0;
}

static void step(struct partition *p, struct raft_event *event, const struct turn *turn)
{
    struct raft_update update = {0};
    int code;

    if (p->failed)
        return;
    event->time = turn->now_ms;
    event->capacity = turn->disk_free_mib == 0 ? UINT16_MAX : turn->disk_free_mib;
    code = raft_step(&p->raft, event, &update);
    if (code == RAFT_NOTLEADER || code == RAFT_NOSPACE || code == RAFT_CANTCHANGE ||
        code == RAFT_BADID || code == RAFT_NOTFOUND)
        return; /* refusals; the caller sees that nothing moved */
    if (code != 0) {
        fail(p, "the consensus engine stopped", raft_strerror(code));
        return;
    }
    if (!PLANTED(LOSS_NOTICED_LATE))
        follow_loss(p);
    if (update.flags & (RAFT_UPDATE_CURRENT_TERM | RAFT_UPDATE_VOTED_FOR))
        write_vote(p, turn);
    if (update.flags & RAFT_UPDATE_ENTRIES) /* the array is the event's, the payloads are ours */
        write_entries(p, update.entries.index, update.entries.batch, update.entries.n, turn);
    if (update.flags & RAFT_UPDATE_SNAPSHOT)
        begin_install(p, &update);
    if (update.flags & RAFT_UPDATE_MESSAGES)
        for (unsigned i = 0; i < update.messages.n; i++)
            send_message(p, &update.messages.batch[i]);
    if (update.flags & RAFT_UPDATE_COMMIT_INDEX)
        apply_committed(p, turn);
    settle_configuration(p, turn);
    follow_state(p, turn);
    if (PLANTED(ACK_BEFORE_FSYNC) && (update.flags & RAFT_UPDATE_ENTRIES) != 0) {
        struct raft_event early = {.type = RAFT_PERSISTED_ENTRIES};

        early.persisted_entries.index = p->last_index;
        step(p, &early, turn);
    }
}

/*
 * A leader that lost our acknowledgements starts from an entry that we have trimmed; libraft refuses
 * that one as missing, for ever, because a snapshot older than our commit doesn't help either. What is
 * committed here every leader has, so such a message goes on from there. (Found by cairn-sim: seed 311.)
 *
 * The same with entries that the sender itself made in its term: it has them. Without that, a leader that
 * moved its next index below what it knows we have (libraft does, after a snapshot) sends no entry any
 * more, because our answers tell it nothing new. (Seed 7004920.)
 */
static void skip_committed(const struct partition *p, struct replica_message *message)
{
    const struct log_entry *last = tail_at(&p->tail, p->last_index);
    bool applied_in_log = p->applied.index <= p->last_index;
    uint64_t index = applied_in_log ? p->applied.index : p->checkpoint.index;
    uint64_t term = applied_in_log ? p->applied.term : p->checkpoint.term;
    uint64_t skipped;

    if (last != NULL && last->term == message->term) {
        index = p->last_index;
        term = last->term;
    }
    if (message->type != REPLICA_APPEND_ENTRIES || message->log_index >= index)
        return;
    skipped = index - message->log_index;
    if (skipped > message->entry_count)
        skipped = message->entry_count;
    message->entries += skipped;
    message->entry_count -= skipped;
    message->log_index = index;
    message->log_term = term;
}

/*
 * A refusal that comes behind a later answer, which said that the entry is there. libraft heeds it while it probes,
 * falls behind what it knows to be there, and sends that replica no entry any more. (Found by cairn-sim:
 * seed 31000629, scenario placement.)
 */
static bool refuses_what_it_has(struct partition *p, uint64_t from, const struct replica_message *message)
{
    raft_index match;

    return message->type == REPLICA_APPEND_ENTRIES_RESULT && message->rejected > 0 &&
           raft_state(&p->raft) == RAFT_LEADER && message->term == raft_current_term(&p->raft) &&
           raft_match_index(&p->raft, from, &match) == 0 && message->rejected <= match;
}

static void ask_for_range(struct partition *p, uint64_t from, uint64_t index, uint64_t term)
{
    if (!p->fetching)
        p->stopping_fetch = false;
    p->fetching = true;
    p->asked_index = index;
    p->effects.need_range(p->effects.context, p, from, index, term);
}

/* False when the message has to wait for the range of keys that it stands for. */
static bool range_is_here(struct partition *p, uint64_t from, const struct replica_message *message)
{
    if (message->type != REPLICA_INSTALL_SNAPSHOT ||
        message->term < raft_current_term(&p->raft) || message->log_index <= p->applied.index ||
        message->log_index <= p->fetched.index)
        return true;
    p->wanted = *message;
    p->wanted_from = from;
    p->wanted_configuration.len = 0;
    buffer_add(&p->wanted_configuration, message->configuration.data, message->configuration.len);
    p->wanted.configuration = buffer_bytes(&p->wanted_configuration);
    /* Another leader may do with less than the one before, who took what only it had applied along: nobody
     * might ever have that again. (Found by cairn-sim: seed 50010.) */
    if (!p->fetching || (!p->stopping_fetch && message->log_index < p->asked_index))
        ask_for_range(p, from, message->log_index, message->log_term);
    return false;
}

static void finish_install(struct partition *p, const struct turn *turn);
static void maybe_checkpoint(struct partition *p, const struct turn *turn);
static void mend_log(struct partition *p, const struct turn *turn);

/*
 * This replica in the configuration, when it is a standby there. Raft lets everybody vote whatever they believe
 * to be: who asks knows the configuration that counts. libraft doesn't, and a voter that died before it learned
 * that it is one could never help to elect anybody. (Found by cairn-sim: seed 1239, scenario placement.)
 */
static struct raft_server *as_standby(struct partition *p)
{
    for (unsigned i = 0; i < p->raft.configuration.n; i++)
        if (p->raft.configuration.servers[i].id == p->settings.node_id &&
            p->raft.configuration.servers[i].role == RAFT_STANDBY)
            return &p->raft.configuration.servers[i];
    return NULL;
}

/* False when it is malformed. */
static bool receive(struct partition *p, uint64_t from, const struct replica_message *message,
                    const struct turn *turn)
{
    struct raft_message in;
    struct raft_entry *entries =
        message->entry_count == 0 ? NULL : memory_take(message->entry_count * sizeof *entries);
    char address[32];
    struct raft_event event = {.type = RAFT_RECEIVE};
    bool sound = replica_message_to_raft(&in, entries, message, from, address, sizeof address) == STATUS_OK;

    if (sound) {
        struct raft_server *standby =
            message->type == REPLICA_REQUEST_VOTE ? as_standby(p) : NULL;

        event.receive.message = &in;
        if (standby != NULL)
            standby->role = RAFT_VOTER;
        step(p, &event, turn);
        if (standby != NULL)
            standby->role = RAFT_STANDBY;
        if ((message->type == REPLICA_APPEND_ENTRIES || message->type == REPLICA_INSTALL_SNAPSHOT) &&
            message->term == raft_current_term(&p->raft)) {
            p->leader = from;
            p->leader_term = message->term;
        }
        if (p->restoring && !p->failed)
            finish_install(p, turn);
    }
    free(entries);
    return sound;
}

/* How many of the entries to give to libraft at once: it takes a configuration for one of the first index in
 * the message, so each begins a message of its own. */
static size_t next_piece(const struct replica_message *message)
{
    size_t n = message->entry_count > 0;

    while (n < message->entry_count && message->entries[n].type != RAFT_CHANGE)
        n++;
    return n;
}

/*
 * A configuration is proposed only when the one before is committed, so whoever takes one knows that. libraft
 * forgets the one before instead, and would fall back behind it when the new one is cut off again.
 */
static void remember_configuration(struct partition *p, uint64_t before, struct raft_buffer *packed)
{
    struct raft *raft = &p->raft;
    struct raft_configuration configuration;

    raft_configuration_init(&configuration);
    if (raft->configuration_uncommitted_index > before &&
        raft->configuration_committed_index < before &&
        raft_configuration_decode(packed, &configuration) == 0) {
        raft_configuration_close(&raft->configuration_committed);
        raft->configuration_committed = configuration;
        raft->configuration_committed_index = before;
    }
}

static bool receive_piece(struct partition *p, uint64_t from, const struct replica_message *message,
                          const struct turn *turn)
{
    uint64_t before = p->raft.configuration_uncommitted_index;
    struct raft_buffer packed = {NULL, 0};
    bool sound;

    if (before != 0 && message->entry_count > 0 && message->entries[0].type == RAFT_CHANGE &&
        raft_configuration_encode(&p->raft.configuration, &packed) != 0)
        return false;
    sound = receive(p, from, message, turn);
    if (packed.base != NULL) {
        remember_configuration(p, before, &packed);
        raft_free(packed.base);
    }
    return sound;
}

void partition_receive(struct partition *p, uint64_t from, const struct replica_message *received,
                       const struct turn *turn)
{
    struct replica_message message = *received;
    size_t left;
    bool sound;

    if (refuses_what_it_has(p, from, &message) || !range_is_here(p, from, &message))
        return;
    p->answering_old_term = message.term < raft_current_term(&p->raft);
    skip_committed(p, &message);
    left = message.entry_count;
    do {
        message.entry_count = left;
        message.entry_count = next_piece(&message);
        sound = receive_piece(p, from, &message, turn);
        left -= message.entry_count;
        if (message.entry_count == 0 || left == 0)
            break;
        message.log_index += message.entry_count;
        message.log_term = message.entries[message.entry_count - 1].term;
        message.entries += message.entry_count;
    } while (sound && message.term >= raft_current_term(&p->raft));
    p->answering_old_term = false;
    if (p->trim)
        maybe_checkpoint(p, turn);
}

/* A voter forgets a silent leader when it becomes a candidate; libraft's standbys never do, and refuse every
 * candidate for its sake. (Found by cairn-sim: seed 1472, scenario placement.) */
static void forget_silent_leader(struct partition *p, const struct turn *turn)
{
    if (raft_state(&p->raft) == RAFT_FOLLOWER && turn->now_ms >= raft_timeout(&p->raft) && as_standby(p) != NULL)
        p->raft.follower_state.current_leader.id = 0;
}

/*
 * libraft demotes every follower that it hasn't heard from between two of a leader's timeouts, and
 * then sends it new entries with heartbeats only. So a leader's timeouts come about a whole heartbeat
 * apart, and each sends to all followers, because for libraft (see partition_new) the interval is
 * short. They fall on multiples of the interval, so that the heartbeats of all partitions that this
 * node leads share frames.
 */
static uint64_t next_heartbeat(const struct partition *p)
{
    uint64_t interval = p->settings.heartbeat_ms;
    uint64_t due = (p->ticked_ms / interval + 1) * interval;

    return due - p->ticked_ms < interval * 2 / 3 ? due + interval : due;
}

static uint64_t raft_deadline(const struct partition *p)
{
    uint64_t due = raft_timeout(&p->raft);

    if (p->failed)
        return UINT64_MAX;
    return p->leading_term != 0 && due < next_heartbeat(p) ? next_heartbeat(p) : due;
}

static uint64_t record_deadline(const struct partition *p)
{
    return p->failed || p->fetching || p->applied.index <= p->recorded_index ? UINT64_MAX
                                                                             : p->recorded_ms + APPLIED_BEHIND_MS;
}

uint64_t partition_deadline(const struct partition *p)
{
    return record_deadline(p) < raft_deadline(p) ? record_deadline(p) : raft_deadline(p);
}

void partition_tick(struct partition *p, const struct turn *turn)
{
    struct raft_event event = {.type = RAFT_TIMEOUT};

    if (turn->now_ms >= record_deadline(p)) {
        record_applied(p, turn);
        (void)write_of(p, turn);
    }
    if (turn->now_ms < raft_deadline(p))
        return;
    p->ticked_ms = turn->now_ms;
    forget_silent_leader(p, turn);
    step(p, &event, turn);
    if (p->repairing) /* until then nobody owns it */
        (void)!partition_transfer(p, 0, turn);
    mend_log(p, turn);
    if (p->trim)
        maybe_checkpoint(p, turn);
}

/* ---- checkpoints ---- */

static void take_checkpoint(struct partition *p, uint64_t trailing, const struct turn *turn)
{
    struct raft_event event = {.type = RAFT_SNAPSHOT};
    struct raft_buffer packed = {p->configuration.data, p->configuration.len};
    uint64_t index = p->applied.index;

    event.snapshot.metadata.index = index;
    event.snapshot.metadata.term = p->applied.term;
    event.snapshot.metadata.configuration_index = p->configuration_index;
    event.snapshot.trailing = (unsigned)trailing;
    raft_configuration_init(&event.snapshot.metadata.configuration);
    if (raft_configuration_decode(&packed, &event.snapshot.metadata.configuration) != 0)
        return;
    p->checkpoint = (struct checkpoint){index, p->applied.term, p->configuration_index,
                                        buffer_bytes(&p->configuration)};
    p->scratch.len = 0;
    wire_checkpoint_pack(&p->scratch, &p->checkpoint);
    put_meta(p, "checkpoint", turn);
    record_applied(p, turn); /* not all that it would apply again is left in the log */
    if (index > trailing)
        delete_log(p, 0, index - trailing + 1, turn);
    p->bytes_since_checkpoint = 0;
    (void)write_of(p, turn);
    step(p, &event, turn);
}

/* The effects up to the applied index are in this or an earlier batch, and batches reach the disk in order: the
 * checkpoint can't be there without them. What an earlier life has applied libraft must know as committed first: of a
 * configuration whose entry is trimmed it would never hear. (Found by cairn-sim: seed 155175242916032, scenario all.) */
static bool may_checkpoint(const struct partition *p)
{
    return p->applied.index <= p->last_index && p->applied.index <= raft_commit_index(&p->raft);
}

static void maybe_checkpoint(struct partition *p, const struct turn *turn)
{
    uint64_t since = p->applied.index - p->checkpoint.index;

    if (p->trim && !p->fetching && p->applied.index == p->checkpoint.index) {
        p->trim = false; /* it is: in an earlier life, or a range came instead */
        p->effects.trimmed(p->effects.context, p);
    }
    if (p->applied.index <= p->checkpoint.index || !may_checkpoint(p))
        return;
    if (p->trim && !p->fetching) {
        p->trim = false;
        take_checkpoint(p, 0, turn);
        p->effects.trimmed(p->effects.context, p);
    } else if (since >= p->settings.checkpoint_entries)
        take_checkpoint(p, p->settings.checkpoint_entries / 4, turn);
    else if (p->bytes_since_checkpoint >= LOG_CHECKPOINT_BYTES)
        take_checkpoint(p, since / 2 < LOG_TRAILING_ENTRIES ? since / 2 : LOG_TRAILING_ENTRIES,
                        turn); /* few but long entries: keep about half of the bytes */
}

void partition_trim(struct partition *p, const struct turn *turn)
{
    destroyed_mark(turn->batch, p->settings.id, DESTROYED_BY_ORDER, p->applied.index);
    p->trim = true;
}

/* What is applied needs no log; a follower that lacks it gets the range instead. */
static void mend_log(struct partition *p, const struct turn *turn)
{
    uint64_t index;

    if (!p->log_damaged || p->fetching || !may_checkpoint(p))
        return;
    if (p->applied.index > p->checkpoint.index) {
        p->log_damaged = false;
        take_checkpoint(p, 0, turn);
    } else if (p->owner) {
        (void)!submit(p, RAFT_BARRIER, blob_new(0), turn, &index);
    }
}

bool partition_written(struct partition *p, uint64_t ticket, const struct turn *turn)
{
    uint64_t persisted = 0;
    size_t done = 0;

    p->written_ticket = ticket;
    while (done < p->write_count && p->writes[done].ticket <= ticket) {
        if (p->writes[done].last_index > persisted)
            persisted = p->writes[done].last_index;
        if (p->writes[done].applied_index > p->stored_index)
            p->stored_index = p->writes[done].applied_index;
        done++;
    }
    if (done == 0)
        return false;
    p->write_count -= done;
    memmove(p->writes, p->writes + done, p->write_count * sizeof *p->writes);
    release_held(p);
    if (persisted > p->raft.last_stored) {
        struct raft_event event = {.type = RAFT_PERSISTED_ENTRIES};

        event.persisted_entries.index = persisted;
        step(p, &event, turn);
    }
    follow_state(p, turn);
    tail_trim(&p->tail, p->stored_index < p->raft.last_stored ? p->stored_index + 1
                                                              : p->raft.last_stored + 1);
    maybe_checkpoint(p, turn);
    return true;
}

/* The store holds the range, libraft has taken the snapshot: from here on this is our state. */
static void finish_install(struct partition *p, const struct turn *turn)
{
    struct raft_event event = {.type = RAFT_PERSISTED_SNAPSHOT};
    struct raft_buffer packed;
    uint64_t index = p->install.index;

    assert(p->fetched.index >= index || p->applied.index >= index);
    if (p->empty)
        mark_empty(p, false, turn);
    delete_log(p, 0, UINT64_MAX, turn);
    if (p->fetched.index > p->applied.index)
        p->applied = p->fetched;
    p->fetched.index = 0;
    p->stored_index = p->applied.index;
    p->last_index = index;
    p->configuration.len = 0;
    if (raft_configuration_encode(&p->install.configuration, &packed) == 0) {
        buffer_add(&p->configuration, packed.base, packed.len);
        raft_free(packed.base);
    }
    p->configuration_index = p->install.configuration_index;
    p->checkpoint = (struct checkpoint){index, p->install.term, p->configuration_index,
                                        buffer_bytes(&p->configuration)};
    p->scratch.len = 0;
    wire_checkpoint_pack(&p->scratch, &p->checkpoint);
    put_meta(p, "checkpoint", turn);
    record_applied(p, turn);
    (void)write_of(p, turn);
    p->bytes_since_checkpoint = 0;
    p->restoring = false;
    event.persisted_snapshot.metadata = p->install;
    event.persisted_snapshot.last = true;
    p->vote_ticket = turn->ticket; /* the answer waits for this batch */
    step(p, &event, turn);
}

static void fetch_repair(struct partition *p);

void partition_installed(struct partition *p, const struct applied *applied,
                         const struct turn *turn)
{
    struct replica_message wanted = p->wanted;

    if (!p->fetching)
        return;
    p->fetching = false;
    if (applied == NULL && p->repairing) { /* it was stopped before the damage was found */
        fetch_repair(p);
        return;
    }
    p->repairing = false;
    if (applied != NULL && wanted.log_index > p->applied.index) {
        p->fetched = *applied;
        partition_receive(p, p->wanted_from, &wanted, turn);
        p->fetched.index = 0;
    }
    apply_committed(p, turn);
    follow_state(p, turn);
}

/* ---- repair ---- */

/* Entries that the range has already are applied once more, which puts the same records. */
static void fetch_repair(struct partition *p)
{
    uint64_t from = p->leader;

    for (unsigned i = 0; (from == 0 || from == p->settings.node_id) && i < p->raft.configuration.n; i++)
        from = p->raft.configuration.servers[i].id;
    p->wanted.log_index = 0;
    ask_for_range(p, from, p->applied.index, p->applied.term);
}

enum status partition_repair(struct partition *p, const struct turn *turn)
{
    if (p->raft.configuration.n < 2)
        return STATUS_UNAVAILABLE;
    if (p->repairing || p->failed)
        return STATUS_OK;
    p->repairing = true;
    set_owner(p, false);
    p->leading_term = 0; /* whoever still leads afterwards needs another barrier */
    if (!p->fetching)
        fetch_repair(p);
    follow_state(p, turn);
    (void)!partition_transfer(p, 0, turn);
    return STATUS_OK;
}

/* ---- what the owner may ask ---- */

enum status partition_submit(struct partition *p, struct blob *payload, const struct turn *turn,
                             uint64_t *index)
{
    if (!p->owner) {
        blob_drop(payload);
        return STATUS_NOT_OWNER;
    }
    return submit(p, RAFT_COMMAND, payload, turn, index);
}

enum status partition_read_barrier(struct partition *p, const struct turn *turn, uint64_t *index)
{
    enum status status = STATUS_OK;

    if (!p->owner)
        return STATUS_NOT_OWNER;
    if (PLANTED(READ_WITHOUT_BARRIER)) {
        *index = p->stored_index;
        return STATUS_OK;
    }
    if (p->read_barrier_ticket != turn->ticket || p->read_barrier_index != p->last_index) {
        status = submit(p, RAFT_BARRIER, blob_new(0), turn, &p->read_barrier_index);
        if (status == STATUS_OK)
            p->read_barrier_ticket = turn->ticket;
    }
    *index = p->read_barrier_index;
    return status;
}

enum status partition_transfer(struct partition *p, uint64_t to, const struct turn *turn)
{
    struct raft_event event = {.type = RAFT_TRANSFER, .transfer = {to}};

    if (raft_state(&p->raft) != RAFT_LEADER || raft_transferee(&p->raft) != 0)
        return STATUS_NOT_OWNER;
    step(p, &event, turn);
    return raft_state(&p->raft) == RAFT_LEADER && raft_transferee(&p->raft) == 0
               ? STATUS_UNAVAILABLE
               : STATUS_OK;
}

/* ---- who holds it ---- */

/* The newest configuration with one replica changed; false when there is nothing to change. */
static bool changed_configuration(const struct raft_configuration *from, enum replica_change change,
                                  uint64_t node_id, struct raft_configuration *to)
{
    char address[32];
    bool known = false;
    int code = 0;

    raft_configuration_init(to);
    for (unsigned i = 0; i < from->n && code == 0; i++) {
        const struct raft_server *server = &from->servers[i];
        bool it = server->id == node_id;

        known = known || it;
        if (it && change == REPLICA_REMOVE)
            continue;
        code = raft_configuration_add(to, server->id, server->address,
                                      it && change == REPLICA_PROMOTE ? RAFT_VOTER : server->role);
    }
    replica_address(address, sizeof address, node_id);
    if (code == 0 && change == REPLICA_ADD && !known)
        code = raft_configuration_add(to, node_id, address, RAFT_STANDBY);
    return code == 0 && known == (change != REPLICA_ADD) && to->n > 0 && to->n <= REPLICAS_MAX;
}

/* A majority of the voters that stay has all that is committed. Otherwise what only the one who goes and a
 * minority hold could, by one more fault, be where nobody can get it from. (Found by cairn-sim: seed 51005185, scenario all.) */
static bool majority_has_all_without(const struct partition *p, uint64_t node_id)
{
    const struct raft_configuration *now = &p->raft.configuration;
    size_t voters = 0;
    size_t have_all = 0;

    for (unsigned i = 0; i < now->n; i++) {
        raft_index match = 0;

        if (now->servers[i].role != RAFT_VOTER || now->servers[i].id == node_id)
            continue;
        voters++;
        have_all += raft_match_index(&p->raft, now->servers[i].id, &match) == 0 &&
                    match >= raft_commit_index(&p->raft);
    }
    return have_all > voters / 2;
}

/* Entries that the other followers may still need: about as many bytes as may go without a range. */
static uint64_t join_trailing(const struct partition *p)
{
    uint64_t since = p->applied.index - p->checkpoint.index;
    uint64_t fit = since * JOIN_LOG_BYTES / p->bytes_since_checkpoint;

    return fit < JOIN_TRAILING ? fit : JOIN_TRAILING;
}

enum status partition_change(struct partition *p, enum replica_change change, uint64_t node_id,
                             const struct turn *turn)
{
    struct raft_configuration configuration;
    struct raft_buffer packed;
    struct blob *payload;
    uint64_t index;
    bool sound;

    if (!p->owner)
        return STATUS_NOT_OWNER;
    if (p->raft.configuration_uncommitted_index != 0 ||
        (change == REPLICA_REMOVE && !majority_has_all_without(p, node_id)))
        return STATUS_UNAVAILABLE;
    sound = changed_configuration(&p->raft.configuration, change, node_id, &configuration) &&
            raft_configuration_encode(&configuration, &packed) == 0;
    raft_configuration_close(&configuration);
    if (!sound)
        return STATUS_INVALID;
    payload = blob_new(packed.len);
    memcpy(payload->data, packed.base, packed.len);
    raft_free(packed.base);
    /* Who joins gets the range, at the pace that is set for that, and not a long log at any. */
    if (change == REPLICA_ADD && p->bytes_since_checkpoint > JOIN_LOG_BYTES &&
        p->applied.index > p->checkpoint.index && p->applied.index <= p->last_index)
        take_checkpoint(p, join_trailing(p), turn);
    return submit(p, RAFT_CHANGE, payload, turn, &index);
}

void partition_configuration(const struct partition *p, struct partition_configuration *out)
{
    const struct raft *raft = &p->raft;
    bool changing = raft->configuration_uncommitted_index != 0;
    const struct raft_configuration *known = changing ? &raft->configuration_committed : &raft->configuration;

    *out = (struct partition_configuration){.index = raft->configuration_committed_index, .changing = changing};
    for (unsigned i = 0; i < known->n && i < REPLICAS_MAX; i++) {
        struct replica_set *set = known->servers[i].role == RAFT_VOTER ? &out->voters : &out->standbys;

        set->replicas[set->count++] = known->servers[i].id;
    }
    for (unsigned i = 0; i < raft->configuration.n && i < REPLICAS_MAX; i++)
        if (raft->configuration.servers[i].role == RAFT_VOTER)
            out->newest_voters.replicas[out->newest_voters.count++] = raft->configuration.servers[i].id;
}

static bool has_keys(const struct partition *p)
{
    struct store_key from = key_partition_begin(p->settings.id);
    struct store_key to = key_partition_end(p->settings.id);
    struct store_cursor *cursor = store_cursor_new(p->store, STORE_KEYS, key_bytes(&from), key_bytes(&to), false);
    struct bytes key, value;
    struct fault fault;
    bool some = store_cursor_next(cursor, &key, &value, &fault) != STATUS_NOT_FOUND;

    store_cursor_free(cursor);
    return some;
}

void partition_drop(struct partition *p, const struct turn *turn)
{
    static const char *const names[] = {"applied", "checkpoint"};
    struct store_key begin = key_partition_begin(p->settings.id);
    struct store_key end = key_partition_end(p->settings.id);

    for (size_t i = 0; i < STORE_RANGE_FAMILIES; i++)
        store_batch_delete_range(turn->batch, store_range_families[i], key_bytes(&begin), key_bytes(&end));
    store_batch_delete_range(turn->batch, STORE_LOG, key_bytes(&begin), key_bytes(&end));
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        struct store_key key = key_partition_meta(p->settings.id, names[i]);

        store_batch_delete(turn->batch, STORE_META, key_bytes(&key));
    }
    if (has_keys(p))
        destroyed_mark(turn->batch, p->settings.id, DESTROYED_BY_DROP, p->applied.index);
    mark_empty(p, true, turn);
    p->failed = true;
}

/* ---- what it knows ---- */

struct partition_view partition_view(const struct partition *partition)
{
    struct partition *p = (struct partition *)partition; /* libraft's readers aren't const */
    struct partition_view view = {
        .id = p->settings.id,
        .owner = p->owner,
        .leading = raft_state(&p->raft) == RAFT_LEADER,
        .term = raft_current_term(&p->raft),
        .commit_index = raft_commit_index(&p->raft),
        .stored_index = p->stored_index,
        .last_index = p->last_index,
        .applied = p->applied,
        .installing = p->fetching,
        .repairing = p->repairing,
        .transferring = raft_state(&p->raft) == RAFT_LEADER && raft_transferee(&p->raft) != 0,
    };

    view.leader = view.leading                     ? p->settings.node_id
                  : p->leader_term == view.term ? p->leader
                                                    : 0;
    return view;
}

uint64_t partition_stored_index(const struct partition *p)
{
    return p->stored_index;
}

bool partition_is_owner(const struct partition *p)
{
    return p->owner;
}

bool partition_replica_current(const struct partition *p, uint64_t replica)
{
    raft_index match = 0;

    return raft_match_index(&p->raft, replica, &match) == 0 && match > 0 &&
           match >= p->raft.configuration_committed_index && match + 64 >= p->last_index;
}

/* ---- memory of the engine ---- */

/*
 * As everywhere here, running out of memory ends the process: libraft's own ways out of that free what isn't
 * theirs (an entry's batch, when it can't start), and go on half done.
 */
static void *heap_take(void *data, size_t size)
{
    return memory_take(size);
}

static void *heap_zero(void *data, size_t count, size_t size)
{
    return memory_zero(count, size);
}

static void *heap_grow(void *data, void *old, size_t size)
{
    return memory_grow(old, size);
}

static void *heap_aligned(void *data, size_t alignment, size_t size)
{
    return memory_aligned(alignment, size);
}

static void heap_give(void *data, void *p)
{
    free(p);
}

static void heap_give_aligned(void *data, size_t alignment, void *p)
{
    free(p);
}

/* Before any thread: libraft has one heap for all. */
__attribute__((constructor)) static void heap_set(void)
{
    static struct raft_heap heap = {NULL,      heap_take,    heap_give,        heap_zero,
                                    heap_grow, heap_aligned, heap_give_aligned};

    raft_heap_set(&heap);
}

/* ---- birth and death ---- */

static enum status load_meta(struct partition *p, const char *name, struct arena *arena,
                             struct bytes *value, struct fault *fault)
{
    struct store_key key = key_partition_meta(p->settings.id, name);

    return store_get(p->store, STORE_META, key_bytes(&key), arena, value, fault);
}

static enum status make_configuration(struct partition *p)
{
    struct raft_configuration configuration;
    struct raft_buffer packed;
    char address[32];

    raft_configuration_init(&configuration);
    for (size_t i = 0; i < p->settings.founders->count; i++) {
        replica_address(address, sizeof address, p->settings.founders->replicas[i]);
        if (raft_configuration_add(&configuration, p->settings.founders->replicas[i], address, RAFT_VOTER) !=
            0) {
            raft_configuration_close(&configuration);
            return STATUS_INVALID;
        }
    }
    if (raft_configuration_encode(&configuration, &packed) != 0) {
        raft_configuration_close(&configuration);
        return STATUS_FAILED;
    }
    buffer_add(&p->configuration, packed.base, packed.len);
    raft_free(packed.base);
    raft_configuration_close(&configuration);
    p->configuration_index = 1;
    return STATUS_OK;
}

/* The first entry of every replica's log: the founding configuration, in term 1. */
static void found(struct partition *p, const struct turn *turn)
{
    struct log_entry entry = {1, RAFT_CHANGE, buffer_bytes(&p->configuration)};
    struct store_key key = key_log(p->settings.id, 1);

    p->scratch.len = 0;
    wire_log_entry_pack(&p->scratch, &entry);
    store_batch_put(turn->batch, STORE_LOG, key_bytes(&key), buffer_bytes(&p->scratch));
    put_vote(p, 1, 0, turn);
}

struct loaded_log {
    struct raft_entry *entries;
    size_t count;
    size_t room;
    uint64_t first;
};

/* All entries' terms and types; payloads only of configurations, and of those still to apply. */
static enum status load_log(struct partition *p, struct loaded_log *log, struct arena *arena,
                            struct fault *fault)
{
    struct store_key from = key_partition_begin(p->settings.id);
    struct store_key to = key_partition_end(p->settings.id);
    struct store_cursor *cursor =
        store_cursor_new(p->store, STORE_LOG, key_bytes(&from), key_bytes(&to), false);
    struct bytes key;
    struct bytes value;
    enum status status;

    while ((status = store_cursor_next(cursor, &key, &value, fault)) == STATUS_OK) {
        struct log_entry entry;
        uint64_t index = key_last_number(key);

        status = wire_log_entry_decode(value, &entry, fault);
        if (status != STATUS_OK)
            break;
        if (log->count == 0)
            log->first = index;
        if (index != log->first + log->count) {
            status = fault_set(fault, STATUS_DAMAGED, "DAMAGED_LOG",
                               "the log of partition %u has a gap before index %llu",
                               p->settings.id, (unsigned long long)index);
            break;
        }
        if (log->count == log->room) {
            log->room = log->room == 0 ? 64 : log->room * 2;
            log->entries = memory_grow(log->entries, log->room * sizeof *log->entries);
        }
        log->entries[log->count] = (struct raft_entry){
            .term = entry.term, .type = (enum raft_entry_type)entry.type, .batch = arena};
        if (entry.type == RAFT_CHANGE) {
            struct bytes copy = arena_copy(arena, entry.payload);

            log->entries[log->count].buf = (struct raft_buffer){(void *)copy.data, copy.len};
        }
        log->count++;
    }
    store_cursor_free(cursor);
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

enum status partition_trace(struct store *store, uint16_t id, enum partition_trace *trace, struct fault *fault)
{
    struct store_key empty = key_partition_meta(id, "empty");
    struct store_key vote = key_partition_meta(id, "vote");
    struct arena arena = {0};
    struct bytes value;
    enum status status = store_get(store, STORE_META, key_bytes(&empty), &arena, &value, fault);

    *trace = PARTITION_EMPTY;
    if (status == STATUS_NOT_FOUND) {
        status = store_get(store, STORE_META, key_bytes(&vote), &arena, &value, fault);
        *trace = status == STATUS_OK ? PARTITION_HELD : PARTITION_UNKNOWN;
    }
    arena_release(&arena);
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

/* By the newest configuration that is known here, which libraft goes by as well. */
static bool is_only_voter(const struct partition *p, const struct loaded_log *log)
{
    struct raft_buffer packed = {(void *)p->checkpoint.configuration.data, p->checkpoint.configuration.len};
    struct raft_configuration configuration;
    size_t voters = 0;
    bool self = false;

    for (size_t i = log->count; i > 0; i--)
        if (log->entries[i - 1].type == RAFT_CHANGE) {
            packed = log->entries[i - 1].buf;
            break;
        }
    raft_configuration_init(&configuration);
    if (packed.len == 0 || raft_configuration_decode(&packed, &configuration) != 0)
        return false;
    for (unsigned i = 0; i < configuration.n; i++)
        if (configuration.servers[i].role == RAFT_VOTER) {
            voters++;
            self = self || configuration.servers[i].id == p->settings.node_id;
        }
    raft_configuration_close(&configuration);
    return voters == 1 && self;
}

/*
 * libraft makes the only voter leader at once, in the term that it finds. But in that term this replica may have
 * sent entries to a standby that were lost here before they were on disk, and would now make others of the same
 * index and term (seed 7004815 of all: the standby kept the lost ones). So it elects itself properly: in a new term.
 */
static void elect_itself(struct partition *p, uint64_t *term, uint64_t *voted_for, const struct turn *turn)
{
    *term += 1;
    *voted_for = p->settings.node_id;
    put_vote(p, *term, *voted_for, turn);
}

static enum status start(struct partition *p, const struct turn *turn, struct fault *fault)
{
    struct arena arena = {0};
    struct loaded_log log = {0};
    struct raft_event event = {.type = RAFT_START};
    struct raft_snapshot_metadata metadata = {0};
    struct bytes value;
    uint64_t term = 0;
    uint64_t voted_for = 0;
    enum status status = load_meta(p, "vote", &arena, &value, fault);
    bool joins = p->settings.founders == NULL;
    bool is_new = status == STATUS_NOT_FOUND && !joins;

    if (joins && status == STATUS_NOT_FOUND)
        status = STATUS_OK; /* no vote yet */
    else if (joins && status == STATUS_OK)
        status = wire_vote_decode(value, &term, &voted_for, fault);
    if (joins && status == STATUS_OK) {
        mark_empty(p, true, turn);
    } else if (joins) {
        goto out;
    } else if (is_new) {
        if (make_configuration(p) != STATUS_OK) {
            status = fault_set(fault, STATUS_FAILED, "PARTITION_FAILED",
                               "cannot make the founding configuration of partition %u",
                               p->settings.id);
            goto out;
        }
        found(p, turn);
        log.entries = memory_zero(1, sizeof *log.entries);
        log.entries[0] = (struct raft_entry){.term = 1,
                                             .type = RAFT_CHANGE,
                                             .buf = {p->configuration.data, p->configuration.len},
                                             .batch = p};
        log.count = 1;
        log.first = 1;
        term = 1;
    } else {
        if (status == STATUS_OK)
            status = wire_vote_decode(value, &term, &voted_for, fault);
        if (status == STATUS_OK) {
            status = load_meta(p, "applied", &arena, &value, fault);
            status = status == STATUS_NOT_FOUND ? STATUS_OK
                     : status == STATUS_OK      ? wire_applied_decode(value, &p->applied, fault)
                                                : status;
        }
        if (status == STATUS_OK) {
            status = load_meta(p, "checkpoint", &arena, &value, fault);
            if (status == STATUS_OK)
                status = wire_checkpoint_decode(value, &arena, &p->checkpoint, fault);
            else if (status == STATUS_NOT_FOUND)
                status = STATUS_OK;
        }
        if (status == STATUS_OK)
            status = load_log(p, &log, &arena, fault);
        if (status != STATUS_OK)
            goto out;
        if (is_only_voter(p, &log))
            elect_itself(p, &term, &voted_for, turn);
    }
    event.start.term = term;
    event.start.voted_for = voted_for;
    if (p->checkpoint.index > 0) {
        struct raft_buffer packed = {(void *)p->checkpoint.configuration.data,
                                     p->checkpoint.configuration.len};

        metadata.index = p->checkpoint.index;
        metadata.term = p->checkpoint.term;
        metadata.configuration_index = p->checkpoint.configuration_index;
        raft_configuration_init(&metadata.configuration);
        if (raft_configuration_decode(&packed, &metadata.configuration) != 0) {
            status = fault_set(fault, STATUS_DAMAGED, "DAMAGED_RECORD",
                               "the checkpoint of partition %u is malformed", p->settings.id);
            goto out;
        }
        buffer_add(&p->configuration, packed.base, packed.len);
        p->configuration_index = p->checkpoint.configuration_index;
        p->checkpoint.configuration = buffer_bytes(&p->configuration);
        event.start.metadata = &metadata;
    } else if (!is_new && !joins) {
        if (log.count == 0 || log.first != 1 || log.entries[0].type != RAFT_CHANGE) {
            status = fault_set(fault, STATUS_DAMAGED, "DAMAGED_LOG",
                               "the log of partition %u has lost its beginning", p->settings.id);
            goto out;
        }
        buffer_add(&p->configuration, log.entries[0].buf.base, log.entries[0].buf.len);
        p->configuration_index = 1;
    }
    event.start.start_index = log.count > 0 ? log.first : p->checkpoint.index + 1;
    event.start.entries = log.entries;
    event.start.n_entries = (unsigned)log.count;
    p->last_index = event.start.start_index + log.count - 1;
    if (p->applied.index > p->last_index && p->checkpoint.index == 0) {
        status = fault_set(fault, STATUS_DAMAGED, "DAMAGED_LOG",
                           "partition %u has applied index %llu but its log ends at %llu",
                           p->settings.id, (unsigned long long)p->applied.index,
                           (unsigned long long)p->last_index);
        goto out;
    }
    p->stored_index = p->recorded_index = p->applied.index;
    p->recorded_ms = turn->now_ms;
    p->trim = destroyed_settle(p->store, p->settings.id, NULL) > 0;
    tail_restart(&p->tail, is_new ? 1 : p->last_index + 1);
    if (is_new) { /* its first entry is applied before it can be read from the store */
        struct blob *blob = blob_new(p->configuration.len);
        struct log_entry first = {1, RAFT_CHANGE, {blob->data, blob->len}};

        memcpy(blob->data, p->configuration.data, blob->len);
        tail_append(&p->tail, &first, blob);
        blob_drop(blob);
    }
    step(p, &event, turn);
    status = p->failed ? fault_set(fault, STATUS_FAILED, "PARTITION_FAILED",
                                   "partition %u cannot start from its log", p->settings.id)
                       : STATUS_OK;
out:
    free(log.entries);
    arena_release(&arena);
    return status;
}

enum status partition_new(struct partition **out, const struct partition_settings *settings,
                          const struct partition_effects *effects, struct store *store,
                          const struct turn *turn, struct fault *fault)
{
    struct partition *p = memory_zero(1, sizeof *p);
    char address[32];
    enum status status;

    p->settings = *settings;
    if (p->settings.checkpoint_entries == 0)
        p->settings.checkpoint_entries = LOG_CHECKPOINT_ENTRIES;
    p->effects = *effects;
    p->store = store;
    p->held_end = &p->held;
    replica_address(address, sizeof address, settings->node_id);
    if (raft_init(&p->raft, NULL, NULL, settings->node_id, address) != 0) {
        free(p);
        return fault_set(fault, STATUS_FAILED, "PARTITION_FAILED",
                         "cannot start the consensus engine");
    }
    p->raft.tracer = NULL; /* it would format a line for every step, into one static buffer */
    raft_seed(&p->raft, settings->seed);
    raft_set_pre_vote(&p->raft, true);
    raft_set_install_snapshot_timeout(&p->raft, SNAPSHOT_RETRY_MS);
    raft_set_election_timeout(&p->raft, settings->election_ms);
    raft_set_heartbeat_timeout(&p->raft, ENGINE_HEARTBEAT_MS);
    raft_set_max_inflight_entries(&p->raft, LOG_INFLIGHT_MAX);
    status = start(p, turn, fault);
    if (status != STATUS_OK) {
        partition_free(p);
        return status;
    }
    *out = p;
    return STATUS_OK;
}

void partition_free(struct partition *p)
{
    if (p == NULL)
        return;
    while (p->held != NULL) {
        struct held_message *next = p->held->next;

        free(p->held);
        p->held = next;
    }
    buffer_release(&p->wanted_configuration);
    raft_close(&p->raft, NULL);
    tail_release(&p->tail);
    buffer_release(&p->configuration);
    buffer_release(&p->scratch);
    free(p->writes);
    free(p);
}

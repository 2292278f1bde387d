/* The way of a command on its owner, with a log that commits when the test says so. */
#include "aggregate/aggregate.h"
#include "check.h"
#include "test_cipher.h"

enum { ENTRIES_MAX = 256, ANSWERS_MAX = 256 };

struct answer {
    struct admitted *command;
    enum status status;
    uint64_t first_sequence;
    uint32_t events;
    size_t failures;
    bool rejected;
    char reason[64];
};

struct fixture {
    struct store *store;
    struct aggregates *aggregates;
    struct moment moment;
    struct blob *log[ENTRIES_MAX]; /* submitted, from index 1 */
    uint64_t submitted;
    uint64_t committed;
    uint64_t stored;
    struct applied applied;
    enum status submit_status;
    struct answer answers[ANSWERS_MAX];
    size_t answer_count;
    struct admitted *commands[ANSWERS_MAX];
    size_t command_count;
    bool no_module;
    unsigned damaged;     /* how often a damaged record was met */
    bool others_have_it;  /* and another replica takes over */
    uint64_t worker;
    uint64_t execution;
    struct buffer executed; /* the packed Execute */
    bool listens;           /* a subscribing processor */
    uint64_t ticket;        /* of what was published last */
    unsigned forgotten;
    uint64_t clock_us;
    struct vault vault;
    uint64_t drawn;
};

/* ---- a counter: Add makes one event, Fail is refused, Limit refuses past three ---- */

static void *create(struct cairn_bytes id)
{
    (void)id;
    return calloc(1, sizeof(int));
}

static void decide(const void *state, const struct cairn_command *command,
                   struct cairn_decision *decision)
{
    if (command->type.data[0] == 'F')
        decision->reject(decision, "NO_WAY", "refused");
    else if (*(const int *)state >= 3)
        decision->reject(decision, "FULL", "three are enough");
    else
        decision->emit(decision, "Added", command->payload);
}

static int evolve(void *state, const struct cairn_event *event)
{
    (void)event;
    ++*(int *)state;
    return 0;
}

static const struct cairn_aggregate_type counter = {
    .name = "counter",
    .commands = (const char *const[]){"Add", "Fail", NULL},
    .create = create,
    .destroy = free,
    .decide = decide,
    .evolve = evolve,
};

/* ---- a tally: counts without a limit, and saves its state ---- */

static int evolved;
static bool unreadable;

static void tally_decide(const void *state, const struct cairn_command *command,
                         struct cairn_decision *decision)
{
    (void)state;
    decision->emit(decision, "Added", command->payload);
}

static int tally_evolve(void *state, const struct cairn_event *event)
{
    evolved++;
    return *(int *)state == (int)event->sequence ? evolve(state, event) : -1;
}

static size_t tally_encode(const void *state, uint8_t *out, size_t room)
{
    if (room >= sizeof(int))
        memcpy(out, state, sizeof(int));
    return sizeof(int);
}

static void *tally_decode(struct cairn_bytes id, struct cairn_bytes snapshot)
{
    int *state = unreadable || snapshot.len != sizeof(int) ? NULL : create(id);

    if (state != NULL)
        memcpy(state, snapshot.data, sizeof(int));
    return state;
}

static const struct cairn_aggregate_type tally = {
    .name = "tally",
    .commands = (const char *const[]){"Add", NULL},
    .create = create,
    .destroy = free,
    .decide = tally_decide,
    .evolve = tally_evolve,
    .encode = tally_encode,
    .decode = tally_decode,
};

/* ---- effects ---- */

static enum status on_submit(void *context, struct blob *payload, uint64_t *index)
{
    struct fixture *f = context;

    if (f->submit_status != STATUS_OK) {
        blob_drop(payload);
        return f->submit_status;
    }
    f->log[f->submitted] = payload;
    *index = ++f->submitted;
    return STATUS_OK;
}

static enum status on_barrier(void *context, uint64_t *index)
{
    struct fixture *f = context;

    if (f->submit_status != STATUS_OK && f->submit_status != STATUS_EXHAUSTED) /* a full disk takes barriers */
        return f->submit_status;
    f->log[f->submitted] = blob_new(0);
    *index = ++f->submitted;
    return STATUS_OK;
}

static void on_answer(void *context, struct admitted *command, const struct outcome *outcome,
                      const struct fault *fault)
{
    struct fixture *f = context;
    struct answer *a = &f->answers[f->answer_count++];

    *a = (struct answer){.command = command};
    if (outcome != NULL) {
        a->first_sequence = outcome->first_sequence;
        a->events = outcome->event_count;
        a->failures = outcome->failure_count;
        a->rejected = outcome->rejection.present;
        if (outcome->conflict)
            a->status = STATUS_CONFLICT;
    } else {
        a->status = fault->status;
        snprintf(a->reason, sizeof a->reason, "%s", fault->reason);
    }
}

static const struct cairn_aggregate_type *on_module_type(void *context, struct bytes name)
{
    struct fixture *f = context;

    if (f->no_module)
        return NULL;
    return bytes_equal(name, BYTES_LITERAL("counter")) ? &counter
           : bytes_equal(name, BYTES_LITERAL("tally")) ? &tally
                                                       : NULL;
}

static enum status on_pick(void *context, const struct command *command, uint64_t hint,
                           uint64_t *worker, struct fault *fault)
{
    struct fixture *f = context;

    (void)command;
    (void)hint;
    *worker = f->worker;
    return f->worker != 0 ? STATUS_OK
                          : fault_set(fault, STATUS_NO_HANDLER, "NO_HANDLER", "nobody");
}

static void on_execute(void *context, uint64_t worker, uint64_t execution_id, struct bytes packed,
                       uint64_t deadline_ms)
{
    struct fixture *f = context;

    (void)worker;
    (void)deadline_ms;
    f->executed.len = 0;
    buffer_add(&f->executed, packed.data, packed.len);
    f->execution = execution_id;
}

static bool on_publish(void *context, uint64_t ticket, const struct command_record *record)
{
    struct fixture *f = context;

    assert_true(record->event_count > 0);
    f->ticket = ticket;
    return f->listens;
}

static void on_forget(void *context, uint64_t ticket)
{
    struct fixture *f = context;

    assert_int_equal(ticket, f->ticket);
    f->forgotten++;
}

static void on_forgot(void *context)
{
    ((struct fixture *)context)->forgotten++;
}

static bool on_damaged(void *context, const struct fault *fault)
{
    struct fixture *f = context;

    (void)fault;
    f->damaged++;
    return f->others_have_it;
}

/* Every look at it takes a tenth of a second. */
static uint64_t on_clock(void *context)
{
    return ((struct fixture *)context)->clock_us += 100000;
}

static uint64_t on_stored(void *context)
{
    return ((struct fixture *)context)->stored;
}

static uint64_t on_applied(void *context)
{
    return ((struct fixture *)context)->committed;
}

/* ---- given, when, then ---- */

/* Anew, on the same store. */
static void set_up_aggregates(struct fixture *f, uint64_t snapshot_after_us)
{
    struct aggregates_settings settings = {.partition = 3,
                                           .payload_bytes_max = 1000,
                                           .snapshot_every = 10,
                                           .snapshot_after_us = snapshot_after_us,
                                           .vault = f->vault.master_count > 0 ? &f->vault : NULL,
                                           .cache_bytes = 1 << 20,
                                           .cache_count = 1000};
    struct aggregates_effects effects = {f,          on_submit,  on_barrier, on_answer,  on_module_type, on_pick,
                                         on_execute, on_publish, on_forget, on_forgot, on_damaged, on_clock,       on_stored,
                                         on_applied};

    aggregates_free(f->aggregates);
    f->aggregates = aggregates_new(&settings, &effects, f->store);
    aggregates_own(f->aggregates, &f->applied);
}

static int set_up(void **state)
{
    struct fixture *f = memory_zero(1, sizeof *f);

    f->moment = (struct moment){1000, 1700000000000};
    assert_ok(store_open_memory(&f->store));
    set_up_aggregates(f, 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    aggregates_free(f->aggregates);
    for (uint64_t i = 0; i < f->submitted; i++)
        blob_drop(f->log[i]);
    for (size_t i = 0; i < f->command_count; i++)
        free(f->commands[i]);
    buffer_release(&f->executed);
    store_free(f->store);
    free(f);
    return 0;
}

static struct admitted *send_typed(struct fixture *f, const char *kind, const char *id,
                                   const char *aggregate, const char *type)
{
    struct admitted *c = memory_zero(1, sizeof *c);
    struct fault fault;

    c->command = (struct command){
        .kind = COMMAND_DISPATCH,
        .id = bytes_of(id),
        .aggregate_type = bytes_of(kind),
        .aggregate_id = bytes_of(aggregate),
        .type = bytes_of(type),
        .payload = {PAYLOAD_JSON, BYTES_LITERAL("1")},
    };
    c->deadline_ms = f->moment.now_ms + 5000;
    assert_ok(command_check(&c->command, 1000, &fault));
    f->commands[f->command_count++] = c;
    aggregates_admit(f->aggregates, c, f->moment);
    return c;
}

static struct admitted *send_command(struct fixture *f, const char *id, const char *aggregate,
                                     const char *type)
{
    return send_typed(f, "counter", id, aggregate, type);
}

static void flush(struct fixture *f)
{
    aggregates_flush(f->aggregates, f->moment);
}

static void commit_all(struct fixture *f)
{
    struct store_batch *batch = store_batch_new(f->store);
    struct fault fault;

    flush(f);
    while (f->committed < f->submitted) {
        struct blob *payload = f->log[f->committed++];

        if (payload->len == 0)
            continue; /* a barrier */
        assert_ok(aggregates_committed(f->aggregates, f->committed,
                                       (struct bytes){payload->data, payload->len}, &f->applied,
                                       batch, &fault));
    }
    assert_ok(store_write(f->store, batch, true, &fault));
    store_batch_free(batch);
}

static void store_all(struct fixture *f)
{
    f->stored = f->committed;
    aggregates_stored(f->aggregates, f->stored, f->moment);
}

static const struct answer *answer_to(const struct fixture *f, const struct admitted *c)
{
    for (size_t i = 0; i < f->answer_count; i++)
        if (f->answers[i].command == c)
            return &f->answers[i];
    return NULL;
}

/* ---- subscribing processors ---- */

static void the_answer_waits_for_the_processors(void **state)
{
    struct fixture *f = *state;
    const struct processing_failure failure = {BYTES_LITERAL("mail"), true, BYTES_LITERAL("late")};
    struct admitted *c, *repeat, *after;

    f->listens = true;
    c = send_command(f, "c1", "A", "Add");
    commit_all(f);
    assert_null(answer_to(f, c));
    repeat = send_command(f, "c1", "A", "Add"); /* waits for the same */
    assert_null(answer_to(f, repeat));
    store_all(f); /* and outlasts the way through the store */
    assert_null(answer_to(f, c));
    assert_int_equal(aggregates_view(f->aggregates).processing, 1);
    aggregates_processed(f->aggregates, f->ticket, &failure, 1);
    assert_int_equal(answer_to(f, c)->failures, 1);
    assert_int_equal(answer_to(f, repeat)->events, 1);
    aggregates_processed(f->aggregates, f->ticket, &failure, 1); /* late: nobody is there */
    after = send_command(f, "c1", "A", "Add");
    assert_int_equal(answer_to(f, after)->failures, 0);
    assert_int_equal(answer_to(f, after)->events, 1);
}

static void a_rejection_has_nothing_to_process(void **state)
{
    struct fixture *f = *state;
    struct admitted *c;

    f->listens = true;
    c = send_command(f, "c1", "A", "Fail");
    commit_all(f);
    assert_true(answer_to(f, c)->rejected);
    assert_int_equal(f->ticket, 0);
}

static void what_is_committed_is_answered_when_ownership_is_lost(void **state)
{
    struct fixture *f = *state;
    struct admitted *c;

    f->listens = true;
    c = send_command(f, "c1", "A", "Add");
    commit_all(f);
    aggregates_disown(f->aggregates);
    assert_int_equal(answer_to(f, c)->status, STATUS_OK);
    assert_int_equal(answer_to(f, c)->events, 1);
    assert_int_equal(f->forgotten, 1);
    aggregates_own(f->aggregates, &f->applied);
    aggregates_processed(f->aggregates, f->ticket, NULL, 0);
    assert_int_equal(f->answer_count, 1);
}

/* ---- subjects ---- */

static void keep_subjects(struct fixture *f)
{
    f->vault = (struct vault){
        .cipher = TEST_CIPHER(&f->drawn), .master_count = 1, .masters = {{.id = "m1", .key = {1}}}};
    set_up_aggregates(f, 0);
}

static struct admitted *send_about(struct fixture *f, const char *id, const char *subject, enum command_kind kind)
{
    struct admitted *c = memory_zero(1, sizeof *c);

    c->command = (struct command){
        .kind = kind,
        .id = bytes_of(id),
        .aggregate_type = kind == COMMAND_FORGET ? BYTES_LITERAL("subject") : BYTES_LITERAL("tally"),
        .aggregate_id = kind == COMMAND_FORGET ? BYTES_LITERAL("\x01" "forget") : BYTES_LITERAL("A"),
        .type = kind == COMMAND_FORGET ? BYTES_NONE : BYTES_LITERAL("Add"),
        .payload = {kind == COMMAND_FORGET ? PAYLOAD_NONE : PAYLOAD_JSON, BYTES_LITERAL("1")},
        .subject = bytes_of(subject),
        .fingerprint = 1,
    };
    c->deadline_ms = f->moment.now_ms + 5000;
    f->commands[f->command_count++] = c;
    aggregates_admit(f->aggregates, c, f->moment);
    flush(f);
    return c;
}

/* The sealed event of aggregate A, as it is stored. */
static struct event stored_event(struct fixture *f, uint64_t sequence, struct arena *arena)
{
    struct store_key key = key_event(3, BYTES_LITERAL("A"), sequence);
    struct event event;
    struct bytes value;
    struct fault fault;

    assert_ok(store_get(f->store, STORE_EVENTS, key_bytes(&key), arena, &value, &fault));
    assert_ok(wire_event_decode(value, arena, &event, &fault));
    assert_true(event.sealed_by != 0);
    return event;
}

/* The same as a reader gets it. */
static struct event event_of_a(struct fixture *f, uint64_t sequence, struct arena *arena)
{
    struct event event = stored_event(f, sequence, arena);
    struct fault fault;

    assert_ok(event_open(&f->vault, f->store, &event, arena, &fault));
    return event;
}

/* ---- the tests ---- */

static void nothing_is_answered_before_the_commit(void **state)
{
    struct fixture *f = *state;
    struct admitted *c = send_command(f, "c1", "A", "Add");

    flush(f);
    assert_null(answer_to(f, c));
    commit_all(f);
    assert_non_null(answer_to(f, c));
    assert_int_equal(answer_to(f, c)->events, 1);
}

static void commands_of_one_aggregate_see_each_other_before_the_commit(void **state)
{
    struct fixture *f = *state;
    struct admitted *c[5];
    const char *ids[] = {"c1", "c2", "c3", "c4", "c5"};

    for (int i = 0; i < 5; i++)
        c[i] = send_command(f, ids[i], "A", "Add");
    commit_all(f);
    for (uint64_t i = 0; i < 3; i++)
        assert_int_equal(answer_to(f, c[i])->first_sequence, i);
    assert_true(answer_to(f, c[3])->rejected); /* three are enough */
    assert_true(answer_to(f, c[4])->rejected);
}

static void a_turns_commands_share_one_log_entry(void **state)
{
    struct fixture *f = *state;

    (void)send_command(f, "c1", "A", "Add");
    (void)send_command(f, "c2", "B", "Add");
    (void)send_command(f, "c3", "C", "Add");
    flush(f);
    assert_int_equal(f->submitted, 1);
}

static void a_repeat_gets_the_recorded_outcome(void **state)
{
    struct fixture *f = *state;
    struct admitted *first = send_command(f, "c1", "A", "Add");
    struct admitted *during = send_command(f, "c1", "A", "Add");
    struct admitted *committed, *stored;

    commit_all(f);
    committed = send_command(f, "c1", "A", "Add");
    store_all(f);
    stored = send_command(f, "c1", "A", "Add");
    commit_all(f);
    assert_int_equal(f->applied.next_position, 1); /* took effect once */
    assert_int_equal(answer_to(f, first)->events, 1);
    assert_int_equal(answer_to(f, during)->events, 1);
    assert_int_equal(answer_to(f, committed)->events, 1);
    assert_int_equal(answer_to(f, stored)->events, 1);
}

static void rot(struct fixture *f, enum store_family family, struct store_key key)
{
    assert_true(store_memory_rot(f->store, family, key_bytes(&key), 200));
}

static void a_damaged_outcome_is_never_taken_for_a_new_command(void **state)
{
    struct fixture *f = *state;
    struct admitted *again;

    (void)send_command(f, "c1", "A", "Add");
    commit_all(f);
    store_all(f);
    rot(f, STORE_OUTCOMES, key_outcome(3, BYTES_LITERAL("c1")));
    again = send_command(f, "c1", "A", "Add");
    commit_all(f);
    store_all(f);
    assert_int_equal(f->damaged, 1);
    assert_int_equal(answer_to(f, again)->status, STATUS_DAMAGED);
    assert_int_equal(f->applied.next_position, 1);
}

static void a_damaged_event_moves_the_command_to_a_sound_replica(void **state)
{
    struct fixture *f = *state;
    struct admitted *next;

    f->others_have_it = true;
    (void)send_command(f, "c1", "A", "Add");
    commit_all(f);
    store_all(f);
    aggregates_disown(f->aggregates); /* forget what is in memory */
    aggregates_own(f->aggregates, &f->applied);
    rot(f, STORE_EVENTS, key_event(3, BYTES_LITERAL("A"), 0));
    next = send_command(f, "c2", "A", "Add");
    assert_int_equal(f->damaged, 1);
    assert_int_equal(answer_to(f, next)->status, STATUS_NOT_OWNER); /* the router sends it on */
}

static void a_repeat_of_a_rejection_is_rejected_again(void **state)
{
    struct fixture *f = *state;
    struct admitted *again;

    (void)send_command(f, "c1", "A", "Fail");
    commit_all(f);
    store_all(f);
    again = send_command(f, "c1", "A", "Fail");
    assert_true(answer_to(f, again)->rejected);
}

static void an_id_used_for_another_command_is_refused(void **state)
{
    struct fixture *f = *state;
    struct admitted *during, *after;

    (void)send_command(f, "c1", "A", "Add");
    during = send_command(f, "c1", "B", "Add");
    commit_all(f);
    store_all(f);
    assert_status(answer_to(f, during)->status, STATUS_INVALID);
    after = send_command(f, "c1", "A", "Fail");
    commit_all(f);
    store_all(f);
    assert_status(answer_to(f, after)->status, STATUS_INVALID);
    assert_string_equal(answer_to(f, after)->reason, "COMMAND_ID_REUSED");
}

static struct admitted *send_expecting(struct fixture *f, const char *id, uint64_t sequence)
{
    struct admitted *c = memory_zero(1, sizeof *c);
    struct fault fault;

    c->command = (struct command){
        .kind = COMMAND_DISPATCH,
        .id = bytes_of(id),
        .aggregate_type = BYTES_LITERAL("counter"),
        .aggregate_id = BYTES_LITERAL("A"),
        .type = BYTES_LITERAL("Add"),
        .payload = {PAYLOAD_JSON, BYTES_LITERAL("1")},
        .expects_sequence = true,
        .expected_sequence = sequence,
    };
    c->deadline_ms = f->moment.now_ms + 5000;
    assert_ok(command_check(&c->command, 1000, &fault));
    f->commands[f->command_count++] = c;
    aggregates_admit(f->aggregates, c, f->moment);
    return c;
}

static void an_expected_sequence_holds_or_nothing_happens(void **state)
{
    struct fixture *f = *state;
    struct admitted *c;

    (void)send_command(f, "c1", "A", "Add");
    c = send_expecting(f, "c2", 0);
    flush(f);
    assert_null(answer_to(f, c)); /* another owner may have taken it */
    commit_all(f);
    store_all(f);
    assert_status(answer_to(f, c)->status, STATUS_CONFLICT);
    assert_int_equal(f->applied.next_position, 1);
}

static void a_conflict_with_what_a_full_disk_voids_is_none(void **state)
{
    struct fixture *f = *state;
    struct admitted *c;

    f->submit_status = STATUS_EXHAUSTED;
    (void)send_command(f, "c1", "A", "Add");
    c = send_expecting(f, "c2", 0); /* on an event that won't be */
    commit_all(f);
    store_all(f);
    assert_status(answer_to(f, c)->status, STATUS_EXHAUSTED);
}

/* A copy of the command, sent before and late, must not find the number of events right by then. */
static void expecting_too_many_is_refused_for_good(void **state)
{
    struct fixture *f = *state;
    struct admitted *first, *late;

    (void)send_command(f, "c1", "A", "Add");
    first = send_expecting(f, "c2", 2);
    commit_all(f);
    assert_status(answer_to(f, first)->status, STATUS_CONFLICT);
    (void)send_command(f, "c3", "A", "Add");
    commit_all(f);
    store_all(f);
    late = send_expecting(f, "c2", 2);
    commit_all(f);
    assert_status(answer_to(f, late)->status, STATUS_CONFLICT);
    assert_int_equal(f->applied.next_position, 2);
}

static void a_deposed_owner_refuses_nothing(void **state)
{
    struct fixture *f = *state;
    struct admitted *confirming, *open;

    f->no_module = true;
    confirming = send_command(f, "c1", "A", "Add"); /* nobody decides it */
    flush(f);
    open = send_command(f, "c2", "A", "Add");
    aggregates_disown(f->aggregates);
    assert_status(answer_to(f, confirming)->status, STATUS_NOT_OWNER);
    assert_status(answer_to(f, open)->status, STATUS_NOT_OWNER);
}

static void when_ownership_goes_everything_is_given_back(void **state)
{
    struct fixture *f = *state;
    struct admitted *sent = send_command(f, "c1", "A", "Add");
    struct admitted *open;

    flush(f);
    open = send_command(f, "c2", "A", "Add");
    aggregates_disown(f->aggregates);
    assert_status(answer_to(f, sent)->status, STATUS_NOT_OWNER);
    assert_status(answer_to(f, open)->status, STATUS_NOT_OWNER);
    assert_int_equal(f->answer_count, 2);
}

static void a_failed_submit_voids_what_was_decided_on_it(void **state)
{
    struct fixture *f = *state;
    struct admitted *lost, *next;

    (void)send_command(f, "c1", "A", "Add");
    commit_all(f);
    store_all(f);
    f->submit_status = STATUS_NOT_OWNER;
    lost = send_command(f, "c2", "A", "Add");
    flush(f);
    assert_status(answer_to(f, lost)->status, STATUS_NOT_OWNER);
    f->submit_status = STATUS_OK;
    next = send_command(f, "c3", "A", "Add");
    commit_all(f);
    assert_int_equal(answer_to(f, next)->first_sequence, 1); /* no hole where c2 was */
    assert_int_equal(f->applied.next_position, 2);
}

static void a_key_that_is_in_no_store_yet_is_forgotten_later(void **state)
{
    struct fixture *f = *state;
    struct admitted *order;
    struct arena arena = {0};

    keep_subjects(f);
    (void)send_about(f, "c1", "s", COMMAND_DISPATCH);
    order = send_about(f, "f1", "s", COMMAND_FORGET);
    assert_int_equal(f->submitted, 1); /* so that who processes c1's event can read it */
    commit_all(f);
    store_all(f);
    commit_all(f);
    store_all(f);
    assert_status(answer_to(f, order)->status, STATUS_OK);
    assert_true(event_of_a(f, 0, &arena).forgotten);
    arena_release(&arena);
}

static void nothing_is_decided_while_an_order_to_forget_is_on_its_way(void **state)
{
    struct fixture *f = *state;
    struct admitted *next;
    struct arena arena = {0};

    keep_subjects(f);
    (void)send_about(f, "c1", "s", COMMAND_DISPATCH);
    commit_all(f);
    store_all(f);
    (void)send_about(f, "f1", "s", COMMAND_FORGET);
    next = send_about(f, "c2", "s", COMMAND_DISPATCH);
    commit_all(f);
    assert_null(answer_to(f, next));
    store_all(f);
    commit_all(f);
    store_all(f);
    assert_status(answer_to(f, next)->status, STATUS_OK);
    assert_int_equal(f->forgotten, 1);
    assert_true(event_of_a(f, 0, &arena).forgotten);
    assert_false(event_of_a(f, 1, &arena).forgotten); /* by a new key */
    arena_release(&arena);
}

static uint64_t sealed_by(struct fixture *f, uint64_t sequence)
{
    struct arena arena = {0};
    uint64_t id = stored_event(f, sequence, &arena).sealed_by;

    arena_release(&arena);
    return id;
}

static void new_master(struct fixture *f)
{
    put_second_master(&f->vault);
    aggregates_set_vault(f->aggregates, &f->vault);
}

static void behind_a_new_master_key_payloads_are_sealed_by_a_new_key(void **state)
{
    struct fixture *f = *state;
    struct arena arena = {0};

    keep_subjects(f);
    (void)send_about(f, "c1", "s", COMMAND_DISPATCH);
    commit_all(f);
    new_master(f);
    (void)send_about(f, "c2", "s", COMMAND_DISPATCH); /* the store doesn't have the first one yet, that has to open c1's */
    commit_all(f);
    store_all(f);
    (void)send_about(f, "c3", "s", COMMAND_DISPATCH);
    (void)send_about(f, "c4", "s", COMMAND_DISPATCH);
    commit_all(f);
    store_all(f);
    assert_int_equal(sealed_by(f, 1), sealed_by(f, 0));
    assert_true(sealed_by(f, 2) > sealed_by(f, 1));
    assert_int_equal(sealed_by(f, 3), sealed_by(f, 2));
    aggregates_disown(f->aggregates); /* nothing is known any more but what is stored */
    aggregates_own(f->aggregates, &f->applied);
    (void)send_about(f, "c5", "s", COMMAND_DISPATCH);
    commit_all(f);
    store_all(f);
    assert_int_equal(sealed_by(f, 4), sealed_by(f, 2));
    for (uint64_t sequence = 0; sequence < 5; sequence++)
        assert_false(event_of_a(f, sequence, &arena).forgotten);
    (void)send_about(f, "f1", "s", COMMAND_FORGET);
    commit_all(f);
    store_all(f);
    for (uint64_t sequence = 0; sequence < 5; sequence++)
        assert_true(event_of_a(f, sequence, &arena).forgotten);
    arena_release(&arena);
}

/* The only key of the partition, as it is stored. */
static bool is_wrapped_by(struct fixture *f, const char *master)
{
    struct store_key from = key_subjects(3), to = key_subjects_end(3);
    struct store_cursor *cursor = store_cursor_new(f->store, STORE_KEYS, key_bytes(&from), key_bytes(&to), false);
    struct arena arena = {0};
    struct key_record record;
    struct bytes key, value;
    struct fault fault;
    bool found;

    assert_ok(store_cursor_next(cursor, &key, &value, &fault));
    assert_ok(wire_key_record_decode(value, &arena, &record, &fault));
    found = bytes_equal(record.master, bytes_of(master));
    assert_status(store_cursor_next(cursor, &key, &value, &fault), STATUS_NOT_FOUND);
    store_cursor_free(cursor);
    arena_release(&arena);
    return found;
}

static void tick_and_store(struct fixture *f)
{
    aggregates_tick(f->aggregates, f->moment);
    commit_all(f);
    store_all(f);
}

static void a_key_on_its_way_is_wrapped_anew_too(void **state)
{
    struct fixture *f = *state;

    keep_subjects(f);
    (void)send_about(f, "c1", "s", COMMAND_DISPATCH);
    new_master(f); /* before the first key is in the store */
    aggregates_tick(f->aggregates, f->moment);
    assert_true(aggregates_view(f->aggregates).rewrapping);
    commit_all(f);
    store_all(f);
    assert_true(is_wrapped_by(f, "m1"));
    tick_and_store(f);
    assert_true(is_wrapped_by(f, "m2"));
    assert_true(aggregates_view(f->aggregates).rewrapping); /* it looks whether that was all */
    tick_and_store(f);
    assert_false(aggregates_view(f->aggregates).rewrapping);
}

static void a_new_wrapping_that_is_lost_is_made_again(void **state)
{
    struct fixture *f = *state;

    keep_subjects(f);
    (void)send_about(f, "c1", "s", COMMAND_DISPATCH);
    commit_all(f);
    store_all(f);
    new_master(f);
    f->submit_status = STATUS_EXHAUSTED; /* a full disk */
    for (int i = 0; i < 3; i++)
        tick_and_store(f);
    assert_true(is_wrapped_by(f, "m1"));
    assert_true(aggregates_view(f->aggregates).rewrapping);
    f->submit_status = STATUS_OK;
    for (int i = 0; i < 3; i++)
        tick_and_store(f);
    assert_true(is_wrapped_by(f, "m2"));
    assert_false(aggregates_view(f->aggregates).rewrapping);
}

static void a_new_owner_continues_from_the_store(void **state)
{
    struct fixture *f = *state;
    struct admitted *c;

    (void)send_command(f, "c1", "A", "Add");
    (void)send_command(f, "c2", "A", "Add");
    commit_all(f);
    store_all(f);
    aggregates_disown(f->aggregates);
    aggregates_own(f->aggregates, &f->applied);
    c = send_command(f, "c3", "A", "Add");
    commit_all(f);
    assert_int_equal(answer_to(f, c)->first_sequence, 2);
}

static void a_dead_workers_command_runs_again_elsewhere(void **state)
{
    struct fixture *f = *state;
    struct new_event added = {.type = BYTES_LITERAL("Added")};
    struct execution_result result = {.events = &added, .event_count = 1};
    struct admitted *c;
    uint64_t first;

    f->no_module = true;
    f->worker = 11;
    c = send_command(f, "c1", "A", "Add");
    first = f->execution;
    assert_true(first != 0);
    f->worker = 12;
    aggregates_executed(f->aggregates, first, 11, NULL, f->moment); /* it died */
    assert_true(f->execution != first);
    aggregates_executed(f->aggregates, first, 11, &result, f->moment); /* too late */
    commit_all(f);
    assert_null(answer_to(f, c));
    aggregates_executed(f->aggregates, f->execution, 12, &result, f->moment);
    commit_all(f);
    assert_int_equal(answer_to(f, c)->events, 1);
    assert_int_equal(f->applied.next_position, 1);
}

static void a_silent_worker_costs_one_command_its_deadline(void **state)
{
    struct fixture *f = *state;
    struct admitted *c;

    f->no_module = true;
    f->worker = 11;
    c = send_command(f, "c1", "A", "Add");
    f->moment.now_ms += 6000;
    aggregates_tick(f->aggregates, f->moment);
    assert_status(answer_to(f, c)->status, STATUS_DEADLINE);
}

static void without_a_handler_the_command_fails_at_once(void **state)
{
    struct fixture *f = *state;
    struct admitted *c;

    f->no_module = true;
    c = send_command(f, "c1", "A", "Add");
    commit_all(f);
    store_all(f);
    assert_status(answer_to(f, c)->status, STATUS_NO_HANDLER);
}

static void tally_up(struct fixture *f, int from, int to)
{
    static char ids[64][16];

    for (int i = from; i < to; i++) {
        snprintf(ids[i], sizeof ids[i], "c%d", i);
        (void)send_typed(f, "tally", ids[i], "T", "Add");
    }
    commit_all(f);
    store_all(f);
}

static size_t snapshots_stored(struct fixture *f, uint64_t *newest)
{
    struct store_key from = key_partition_begin(3);
    struct store_key to = key_partition_end(3);
    struct store_cursor *cursor =
        store_cursor_new(f->store, STORE_SNAPSHOTS, key_bytes(&from), key_bytes(&to), false);
    struct bytes key, value;
    struct fault fault;
    size_t count = 0;

    while (store_cursor_next(cursor, &key, &value, &fault) == STATUS_OK) {
        struct arena arena = {0};
        struct snapshot snapshot;

        assert_ok(wire_snapshot_decode(value, &arena, &snapshot, &fault));
        *newest = snapshot.sequence;
        arena_release(&arena);
        count++;
    }
    store_cursor_free(cursor);
    return count;
}

static void a_modules_snapshot_spares_the_next_owner_the_events_before_it(void **state)
{
    struct fixture *f = *state;
    uint64_t newest = 0;

    unreadable = false;
    tally_up(f, 0, 25);
    assert_int_equal(snapshots_stored(f, &newest), 1); /* the one at 10 was replaced */
    assert_int_equal(newest, 20);
    aggregates_disown(f->aggregates);
    aggregates_own(f->aggregates, &f->applied);
    evolved = 0;
    tally_up(f, 25, 26);
    assert_int_equal(evolved, 5 + 1); /* 20 to 24 on load, then its own */
    assert_int_equal(answer_to(f, f->commands[25])->first_sequence, 25);
}

static void a_snapshot_that_cant_be_read_costs_only_time(void **state)
{
    struct fixture *f = *state;

    tally_up(f, 0, 12);
    aggregates_disown(f->aggregates);
    aggregates_own(f->aggregates, &f->applied);
    unreadable = true;
    evolved = 0;
    tally_up(f, 12, 13);
    unreadable = false;
    assert_int_equal(evolved, 12 + 1);
    assert_int_equal(answer_to(f, f->commands[12])->first_sequence, 12);
}

static void a_snapshot_goes_with_the_events_it_includes(void **state)
{
    struct fixture *f = *state;
    uint64_t newest = 0;

    unreadable = false;
    tally_up(f, 0, 8);
    f->submit_status = STATUS_NOT_OWNER;
    for (int i = 0; i < 4; i++)
        (void)send_typed(f, "tally", i == 0 ? "x0" : i == 1 ? "x1" : i == 2 ? "x2" : "x3", "T",
                         "Add");
    flush(f); /* 12 events and a snapshot at 10: void */
    f->submit_status = STATUS_OK;
    tally_up(f, 8, 9);
    assert_int_equal(snapshots_stored(f, &newest), 0);
    assert_int_equal(answer_to(f, f->commands[f->command_count - 1])->first_sequence, 8);
    tally_up(f, 9, 11);
    assert_int_equal(snapshots_stored(f, &newest), 1);
    assert_int_equal(newest, 10);
}

static void a_state_that_took_long_to_build_gets_a_snapshot(void **state)
{
    struct fixture *f = *state;
    uint64_t newest = 0;

    unreadable = false;
    set_up_aggregates(f, 150000); /* loading takes one look at the clock, of a tenth of a second */
    tally_up(f, 0, 3);
    aggregates_disown(f->aggregates);
    aggregates_own(f->aggregates, &f->applied);
    tally_up(f, 3, 4);
    assert_int_equal(snapshots_stored(f, &newest), 0);
    set_up_aggregates(f, 100000);
    tally_up(f, 4, 5);
    assert_int_equal(snapshots_stored(f, &newest), 1);
    assert_int_equal(newest, 5);
    set_up_aggregates(f, 100000);
    evolved = 0;
    tally_up(f, 5, 6);
    assert_int_equal(evolved, 1); /* nothing lay behind the snapshot, and none is due */
    assert_int_equal(snapshots_stored(f, &newest), 1);
    assert_int_equal(newest, 5);
}

static struct admitted *send_snapshot(struct fixture *f, const char *id, enum command_kind kind, uint64_t sequence)
{
    struct admitted *c = memory_zero(1, sizeof *c);
    struct fault fault;
    static const int four = 4;

    c->command = (struct command){.kind = kind,
                                  .id = bytes_of(id),
                                  .aggregate_type = BYTES_LITERAL("tally"),
                                  .aggregate_id = BYTES_LITERAL("T")};
    if (kind == COMMAND_WRITE_SNAPSHOT)
        c->command.snapshot = (struct snapshot){.present = true,
                                                .sequence = sequence,
                                                .payload = {PAYLOAD_DATA, {(const uint8_t *)&four, sizeof four}}};
    c->deadline_ms = f->moment.now_ms + 5000;
    assert_ok(command_check(&c->command, 1000, &fault));
    f->commands[f->command_count++] = c;
    aggregates_admit(f->aggregates, c, f->moment);
    commit_all(f);
    store_all(f);
    return c;
}

static void a_snapshot_is_written_and_deleted_by_command(void **state)
{
    struct fixture *f = *state;
    uint64_t newest = 0;
    struct admitted *c;

    unreadable = false;
    assert_string_equal(answer_to(f, send_snapshot(f, "s0", COMMAND_WRITE_SNAPSHOT, 4))->reason,
                        "AGGREGATE_NOT_FOUND");
    tally_up(f, 1, 7);
    assert_string_equal(answer_to(f, send_snapshot(f, "s1", COMMAND_WRITE_SNAPSHOT, 7))->reason, "SNAPSHOT_INVALID");
    assert_int_equal(snapshots_stored(f, &newest), 0);
    c = send_snapshot(f, "s2", COMMAND_WRITE_SNAPSHOT, 4);
    assert_int_equal(answer_to(f, c)->status, STATUS_OK);
    assert_int_equal(answer_to(f, c)->events, 0);
    assert_int_equal(snapshots_stored(f, &newest), 1);
    assert_int_equal(newest, 4);
    aggregates_disown(f->aggregates);
    aggregates_own(f->aggregates, &f->applied);
    evolved = 0;
    tally_up(f, 7, 8);
    assert_int_equal(evolved, 2 + 1);
    (void)send_snapshot(f, "s3", COMMAND_DELETE_SNAPSHOT, 0);
    assert_int_equal(snapshots_stored(f, &newest), 0);
    (void)send_snapshot(f, "s2", COMMAND_WRITE_SNAPSHOT, 4); /* a repeat changes nothing */
    assert_int_equal(snapshots_stored(f, &newest), 0);
}

static void a_workers_snapshot_reaches_the_next_worker(void **state)
{
    struct fixture *f = *state;
    struct new_event added = {.type = BYTES_LITERAL("Added")};
    struct execution_result result = {
        .events = &added,
        .event_count = 1,
        .snapshot = {true, BYTES_NONE, BYTES_NONE, 1, {PAYLOAD_JSON, BYTES_LITERAL("saved-1")}},
    };
    uint64_t newest = 0;

    f->no_module = true;
    f->worker = 11;
    (void)send_command(f, "c1", "A", "Add");
    aggregates_executed(f->aggregates, f->execution, 11, &result, f->moment);
    commit_all(f);
    store_all(f);
    assert_int_equal(snapshots_stored(f, &newest), 1);
    f->worker = 12; /* another one, that has nothing */
    (void)send_command(f, "c2", "A", "Add");
    assert_non_null(memmem(f->executed.data, f->executed.len, "saved-1", 7));
    assert_null(memmem(f->executed.data, f->executed.len, "Added", 5));
}

static void a_snapshot_of_events_that_arent_there_breaks_the_contract(void **state)
{
    struct fixture *f = *state;
    struct new_event added = {.type = BYTES_LITERAL("Added")};
    struct execution_result result = {
        .events = &added,
        .event_count = 1,
        .snapshot = {true, BYTES_NONE, BYTES_NONE, 2, {PAYLOAD_JSON, BYTES_LITERAL("saved-2")}},
    };
    struct admitted *c;
    uint64_t newest;

    f->no_module = true;
    f->worker = 11;
    c = send_command(f, "c1", "A", "Add");
    aggregates_executed(f->aggregates, f->execution, 11, &result, f->moment);
    commit_all(f);
    store_all(f);
    assert_string_equal(answer_to(f, c)->reason, "HANDLER_BROKE_CONTRACT");
    assert_int_equal(snapshots_stored(f, &newest), 0);
    assert_int_equal(f->applied.next_position, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_answer_waits_for_the_processors),
        TEST(a_rejection_has_nothing_to_process),
        TEST(what_is_committed_is_answered_when_ownership_is_lost),
        TEST(nothing_is_answered_before_the_commit),
        TEST(commands_of_one_aggregate_see_each_other_before_the_commit),
        TEST(a_turns_commands_share_one_log_entry),
        TEST(a_repeat_gets_the_recorded_outcome),
        TEST(a_damaged_outcome_is_never_taken_for_a_new_command),
        TEST(a_damaged_event_moves_the_command_to_a_sound_replica),
        TEST(a_repeat_of_a_rejection_is_rejected_again),
        TEST(an_id_used_for_another_command_is_refused),
        TEST(an_expected_sequence_holds_or_nothing_happens),
        TEST(a_conflict_with_what_a_full_disk_voids_is_none),
        TEST(expecting_too_many_is_refused_for_good),
        TEST(a_deposed_owner_refuses_nothing),
        TEST(when_ownership_goes_everything_is_given_back),
        TEST(a_key_that_is_in_no_store_yet_is_forgotten_later),
        TEST(behind_a_new_master_key_payloads_are_sealed_by_a_new_key),
        TEST(a_key_on_its_way_is_wrapped_anew_too),
        TEST(a_new_wrapping_that_is_lost_is_made_again),
        TEST(nothing_is_decided_while_an_order_to_forget_is_on_its_way),
        TEST(a_failed_submit_voids_what_was_decided_on_it),
        TEST(a_new_owner_continues_from_the_store),
        TEST(a_dead_workers_command_runs_again_elsewhere),
        TEST(a_silent_worker_costs_one_command_its_deadline),
        TEST(without_a_handler_the_command_fails_at_once),
        TEST(a_modules_snapshot_spares_the_next_owner_the_events_before_it),
        TEST(a_snapshot_that_cant_be_read_costs_only_time),
        TEST(a_snapshot_goes_with_the_events_it_includes),
        TEST(a_state_that_took_long_to_build_gets_a_snapshot),
        TEST(a_snapshot_is_written_and_deleted_by_command),
        TEST(a_workers_snapshot_reaches_the_next_worker),
        TEST(a_snapshot_of_events_that_arent_there_breaks_the_contract),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

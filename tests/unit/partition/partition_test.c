/* Three replicas over a network and disks that the test holds in its hands. */
#include "check.h"
#include "packets.h"
#include "partition/partition.h"

enum { NODES = 3, APPLIED_MAX = 20000 };

struct replica {
    struct world *world;
    uint64_t id;
    struct store *store;
    struct partition *partition;
    struct turn turn;
    uint64_t applied[APPLIED_MAX]; /* payload numbers, in order */
    size_t applied_count;
    bool owner;
    bool cut_off;
    bool wants_range;
    bool stops_range;
    bool log_damaged;
    unsigned trimmed;
    uint64_t range_index;
    bool disk_stalls; /* batches are kept, not written */
    bool puts;        /* what is applied is put into the store */
};

struct world {
    uint64_t now;
    struct replica replicas[NODES];
    struct packets packets;
};

static const uint64_t ids[NODES] = {1, 2, 3};
static const struct replica_set all = {{1, 2, 3}, NODES};
static const struct replica_set alone = {{1}, 1};

/* ---- effects ---- */

static void on_send(void *context, struct partition *partition, uint64_t to,
                    const struct replica_message *message)
{
    struct replica *r = context;

    (void)partition;
    packets_add(&r->world->packets, r->id, to, message);
}

static void on_apply(void *context, struct partition *partition, uint64_t index,
                     struct bytes payload, struct applied *applied, struct store_batch *batch)
{
    struct replica *r = context;
    uint64_t number;

    (void)partition;
    (void)index;
    assert_int_equal(payload.len, sizeof number);
    memcpy(&number, payload.data, sizeof number);
    if (r->puts)
        store_batch_put(batch, STORE_EVENTS, payload, payload);
    assert_true(r->applied_count < APPLIED_MAX);
    r->applied[r->applied_count++] = number;
    applied->next_position++;
}

static void on_ownership(void *context, struct partition *partition, bool owner)
{
    (void)partition;
    ((struct replica *)context)->owner = owner;
}

static void on_need_range(void *context, struct partition *partition, uint64_t leader,
                          uint64_t index, uint64_t term)
{
    struct replica *r = context;

    (void)partition;
    (void)leader;
    (void)term;
    r->wants_range = true;
    r->range_index = index;
}

static void on_stop_range(void *context, struct partition *partition)
{
    (void)partition;
    ((struct replica *)context)->stops_range = true;
}

static void on_damaged(void *context, struct partition *partition, const struct fault *fault)
{
    (void)partition;
    assert_int_equal(fault->status, STATUS_DAMAGED);
    ((struct replica *)context)->log_damaged = true;
}

static void on_trimmed(void *context, struct partition *partition)
{
    (void)partition;
    ((struct replica *)context)->trimmed++;
}

static void on_failed(void *context, struct partition *partition, const struct fault *fault)
{
    (void)context;
    (void)partition;
    fail_msg("%s", fault->message);
}

/* ---- the world ---- */

static void start_replica(struct world *w, size_t i)
{
    struct replica *r = &w->replicas[i];
    struct partition_settings settings = {.id = 5,
                                          .node_id = ids[i],
                                          .founders = &all,
                                          .election_ms = 300,
                                          .heartbeat_ms = 75,
                                          .disk_reserve_mib = 100,
                                          .seed = 42 + (uint32_t)i};
    struct partition_effects effects = {
        r, on_send, on_apply, on_ownership, on_need_range, on_stop_range, on_damaged, on_failed, on_trimmed};
    struct fault fault;

    r->turn.now_ms = w->now;
    r->turn.batch = store_batch_new(r->store);
    r->turn.ticket = 1;
    r->owner = false;
    assert_ok(partition_new(&r->partition, &settings, &effects, r->store, &r->turn, &fault));
}

static void start_single(struct replica *r, struct store *store)
{
    struct partition_settings settings = {.id = 5,
                                          .node_id = 1,
                                          .founders = &alone,
                                          .election_ms = 300,
                                          .heartbeat_ms = 75};
    struct partition_effects effects = {
        r, on_send, on_apply, on_ownership, on_need_range, on_stop_range, on_damaged, on_failed, on_trimmed};
    struct fault fault;

    r->store = store;
    r->turn = (struct turn){1000, store_batch_new(store), 1, 0};
    assert_ok(partition_new(&r->partition, &settings, &effects, store, &r->turn, &fault));
}

static void stop_replica(struct replica *r)
{
    partition_free(r->partition);
    store_batch_free(r->turn.batch); /* what was not written is lost */
    r->partition = NULL;
}

static int set_up(void **state)
{
    struct world *w = memory_zero(1, sizeof *w);

    w->now = 1000;
    packets_init(&w->packets);
    for (size_t i = 0; i < NODES; i++) {
        w->replicas[i].world = w;
        w->replicas[i].id = ids[i];
        assert_ok(store_open_memory(&w->replicas[i].store));
        start_replica(w, i);
    }
    *state = w;
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;

    packets_drop(&w->packets);
    for (size_t i = 0; i < NODES; i++) {
        if (w->replicas[i].partition != NULL)
            stop_replica(&w->replicas[i]);
        store_free(w->replicas[i].store);
    }
    free(w);
    return 0;
}

static void write_turn(struct replica *r)
{
    struct fault fault;
    uint64_t ticket = r->turn.ticket;

    if (r->disk_stalls || store_batch_count(r->turn.batch) == 0)
        return;
    assert_ok(store_write(r->store, r->turn.batch, true, &fault));
    r->turn.ticket++;
    (void)partition_written(r->partition, ticket, &r->turn);
}

/* Everything that is under way arrives, and time passes a little. */
static void turn(struct world *w)
{
    struct packet *packet = packets_take(&w->packets);

    w->now += 5;
    while (packet != NULL) {
        struct replica *from = &w->replicas[packet->from - 1];
        struct replica *to = &w->replicas[packet->to - 1];

        if (to->partition != NULL && from->partition != NULL && !from->cut_off && !to->cut_off) {
            to->turn.now_ms = w->now;
            partition_receive(to->partition, packet->from, &packet->message, &to->turn);
        }
        packet = packet_free(packet);
    }
    for (size_t i = 0; i < NODES; i++) {
        struct replica *r = &w->replicas[i];

        if (r->partition == NULL)
            continue;
        r->turn.now_ms = w->now;
        partition_tick(r->partition, &r->turn);
        write_turn(r);
    }
}

static struct replica *owner(struct world *w)
{
    for (size_t i = 0; i < NODES; i++)
        if (w->replicas[i].partition != NULL && w->replicas[i].owner && !w->replicas[i].cut_off)
            return &w->replicas[i];
    return NULL;
}

static struct replica *wait_for_owner(struct world *w)
{
    for (int i = 0; i < 2000; i++) {
        turn(w);
        if (owner(w) != NULL)
            return owner(w);
    }
    fail_msg("no owner after ten seconds");
    return NULL;
}

static uint64_t submit(struct replica *r, uint64_t number)
{
    struct blob *payload = blob_new(sizeof number);
    uint64_t index = 0;

    memcpy(payload->data, &number, sizeof number);
    assert_ok(partition_submit(r->partition, payload, &r->turn, &index));
    return index;
}

static void turns(struct world *w, int count)
{
    while (count-- > 0)
        turn(w);
}

static void assert_applied(const struct replica *r, uint64_t from, uint64_t to)
{
    assert_int_equal(r->applied_count, to - from);
    for (uint64_t i = from; i < to; i++)
        assert_int_equal(r->applied[i - from], i);
}

/* ---- the tests ---- */

static void what_the_owner_appends_all_apply_once_in_order(void **state)
{
    struct world *w = *state;
    struct replica *o = wait_for_owner(w);

    for (uint64_t i = 0; i < 500; i++) {
        (void)submit(o, i);
        if (i % 7 == 0)
            turn(w);
    }
    turns(w, 100);
    for (size_t i = 0; i < NODES; i++)
        assert_applied(&w->replicas[i], 0, 500);
}

static void nobody_commits_alone(void **state)
{
    struct world *w = *state;
    struct replica *o = wait_for_owner(w);
    size_t before;

    turns(w, 20);
    before = o->applied_count;
    o->cut_off = true;
    (void)submit(o, 1);
    turns(w, 40);
    assert_int_equal(o->applied_count, before);
}

static void with_most_disks_full_nothing_is_submitted_but_reads_go_on(void **state)
{
    struct world *w = *state;
    struct replica *o = wait_for_owner(w);
    uint64_t index;

    (void)submit(o, 0);
    turns(w, 50);
    o->turn.disk_free_mib = 5; /* one full disk of three hinders nobody */
    turns(w, 50);
    (void)submit(o, 1);
    for (size_t i = 0; i < NODES; i++)
        w->replicas[i].turn.disk_free_mib = 5;
    turns(w, 50);
    assert_status(partition_submit(o->partition, blob_new(8), &o->turn, &index), STATUS_EXHAUSTED);
    assert_ok(partition_read_barrier(o->partition, &o->turn, &index));
    turns(w, 50);
    assert_true(partition_stored_index(o->partition) >= index);
    for (size_t i = 0; i < NODES; i++)
        w->replicas[i].turn.disk_free_mib = 500;
    turns(w, 50);
    (void)submit(o, 2);
    turns(w, 50);
    for (size_t i = 0; i < NODES; i++)
        assert_applied(&w->replicas[i], 0, 3);
}

static void a_deposed_owners_work_is_thrown_away(void **state)
{
    struct world *w = *state;
    struct replica *old = wait_for_owner(w);
    struct replica *new;

    (void)submit(old, 0);
    turns(w, 20);
    old->cut_off = true;
    (void)submit(old, 666); /* never committed */
    new = wait_for_owner(w);
    assert_ptr_not_equal(new, old);
    (void)submit(new, 1);
    turns(w, 50);
    old->cut_off = false;
    turns(w, 200);
    assert_false(old->owner);
    for (size_t i = 0; i < NODES; i++)
        assert_applied(&w->replicas[i], 0, 2);
}

static void a_follower_acknowledges_only_what_its_disk_has(void **state)
{
    struct world *w = *state;
    struct replica *o = wait_for_owner(w);
    size_t before;

    turns(w, 20);
    before = o->applied_count;
    for (size_t i = 0; i < NODES; i++)
        w->replicas[i].disk_stalls = &w->replicas[i] != o;
    (void)submit(o, 7);
    turns(w, 30); /* both followers have it in memory, none on disk */
    assert_int_equal(o->applied_count, before);
    for (size_t i = 0; i < NODES; i++)
        w->replicas[i].disk_stalls = false;
    turns(w, 300);
    assert_int_equal(w->replicas[0].applied[w->replicas[0].applied_count - 1], 7);
}

static void a_restarted_replica_goes_on_where_it_was(void **state)
{
    struct world *w = *state;
    struct replica *o = wait_for_owner(w);
    struct replica *other = &w->replicas[o->id % NODES];

    for (uint64_t i = 0; i < 100; i++)
        (void)submit(o, i);
    turns(w, 50);
    stop_replica(other);
    for (uint64_t i = 100; i < 200; i++)
        (void)submit(o, i);
    turns(w, 50);
    start_replica(w, (size_t)(other->id - 1));
    turns(w, 200);
    assert_applied(other, 0, 200); /* nothing applied twice over the restart */
}

static void all_restart_and_nothing_is_lost(void **state)
{
    struct world *w = *state;
    struct replica *o = wait_for_owner(w);

    for (uint64_t i = 0; i < 50; i++)
        (void)submit(o, i);
    turns(w, 50);
    for (size_t i = 0; i < NODES; i++)
        stop_replica(&w->replicas[i]);
    packets_drop(&w->packets);
    for (size_t i = 0; i < NODES; i++)
        start_replica(w, i);
    o = wait_for_owner(w);
    (void)submit(o, 50);
    turns(w, 50);
    for (size_t i = 0; i < NODES; i++)
        assert_applied(&w->replicas[i], 0, 51);
}

static void a_replica_behind_the_trimmed_log_asks_for_the_range(void **state)
{
    struct world *w = *state;
    struct replica *o = wait_for_owner(w);
    struct replica *late = &w->replicas[o->id % NODES];
    uint64_t total = LOG_CHECKPOINT_ENTRIES + LOG_TRAILING_ENTRIES + 500;
    struct applied applied;

    turns(w, 20);
    late->cut_off = true;
    for (uint64_t i = 0; i < total; i++) {
        o = owner(w);
        (void)submit(o, i);
        if (i % 50 == 0)
            turn(w);
    }
    turns(w, 50);
    late->cut_off = false;
    for (int i = 0; i < 1000 && !late->wants_range; i++)
        turn(w);
    assert_true(late->wants_range);
    turns(w, 100); /* heartbeats tell of commits that it can't have yet */
    /* The driver would copy the key range now; what was applied comes with it. */
    applied = partition_view(owner(w)->partition).applied;
    assert_true(applied.index >= late->range_index);
    late->applied_count = 0;
    partition_installed(late->partition, &applied, &late->turn);
    (void)submit(owner(w), total);
    turns(w, 400);
    assert_int_equal(late->applied_count, 1); /* only what came after the range */
    assert_int_equal(late->applied[0], total);
    assert_false(partition_view(late->partition).installing);
}

static void a_damaged_owner_hands_over_and_comes_back_with_the_range(void **state)
{
    struct world *w = *state;
    struct replica *damaged = wait_for_owner(w);
    struct applied applied;

    turns(w, 20);
    assert_ok(partition_repair(damaged->partition, &damaged->turn));
    assert_false(damaged->owner); /* at once, not when another leads */
    assert_true(damaged->wants_range);
    damaged->wants_range = false;
    assert_ok(partition_repair(damaged->partition, &damaged->turn)); /* again: nothing */
    assert_false(damaged->wants_range);
    for (int i = 0; i < 200 && owner(w) == NULL; i++)
        turn(w);
    assert_non_null(owner(w));
    assert_ptr_not_equal(owner(w), damaged);
    for (uint64_t i = 0; i < 10; i++)
        (void)submit(owner(w), i);
    turns(w, 50);
    assert_int_equal(damaged->applied_count, 0); /* the range must not be older than what is here */
    applied = partition_view(owner(w)->partition).applied;
    partition_installed(damaged->partition, &applied, &damaged->turn);
    turns(w, 50);
    assert_false(partition_view(damaged->partition).repairing);
    assert_applied(damaged, 0, 10); /* once more over what came with the range: the same records */
}

static uint64_t recorded_index(const struct replica *r)
{
    struct store_key key = key_partition_meta(5, "applied");
    struct arena arena = {0};
    struct bytes value;
    struct applied applied = {0};
    struct fault fault;

    assert_ok(store_get(r->store, STORE_META, key_bytes(&key), &arena, &value, &fault));
    assert_ok(wire_applied_decode(value, &applied, &fault));
    arena_release(&arena);
    return applied.index;
}

static void submit_and_write(struct replica *r, uint64_t from, uint64_t to)
{
    for (uint64_t i = from; i < to; i++) {
        (void)submit(r, i);
        write_turn(r);
        write_turn(r);
    }
}

static void the_applied_index_stays_behind_a_little(void **state)
{
    struct store *store;
    struct world w = {.now = 1000};
    struct replica r = {.world = &w, .id = 1, .puts = true};
    uint64_t last;

    (void)state;
    assert_ok(store_open_memory(&store));
    start_single(&r, store);
    for (int i = 0; i < 3; i++)
        write_turn(&r);
    submit_and_write(&r, 0, 10);
    last = partition_view(r.partition).applied.index;
    assert_int_equal(partition_view(r.partition).stored_index, last); /* nobody waits for it */
    assert_int_equal(recorded_index(&r), last - 10);
    stop_replica(&r);

    /* What it doesn't tell of is applied again. */
    r = (struct replica){.world = &w, .id = 1, .puts = true};
    start_single(&r, store);
    for (int i = 0; i < 3; i++)
        write_turn(&r);
    assert_applied(&r, 0, 10);
    submit_and_write(&r, 10, 200);
    last = partition_view(r.partition).applied.index;
    assert_true(recorded_index(&r) < last && last - recorded_index(&r) < 64);

    /* After a second of quiet it is exact, and then nothing more is written. */
    assert_true(partition_deadline(r.partition) <= r.turn.now_ms + 1000);
    r.turn.now_ms += 1000;
    partition_tick(r.partition, &r.turn);
    write_turn(&r);
    assert_int_equal(recorded_index(&r), last);
    r.turn.now_ms += 5000;
    partition_tick(r.partition, &r.turn);
    assert_int_equal(store_batch_count(r.turn.batch), 0);

    /* An order to forget is recorded with what it does. */
    submit_and_write(&r, 200, 201);
    partition_trim(r.partition, &r.turn);
    submit_and_write(&r, 201, 202);
    assert_true(recorded_index(&r) >= last + 2);
    stop_replica(&r);
    store_free(store);
}

static void a_single_replica_can_not_be_repaired(void **state)
{
    struct store *store;
    struct world w = {.now = 1000};
    struct replica r = {.world = &w, .id = 1};

    (void)state;
    assert_ok(store_open_memory(&store));
    start_single(&r, store);
    assert_int_equal(partition_repair(r.partition, &r.turn), STATUS_UNAVAILABLE);
    stop_replica(&r);
    store_free(store);
}

static void a_damaged_log_is_trimmed_and_followers_get_the_range(void **state)
{
    struct world *w = *state;
    struct replica *o = wait_for_owner(w);
    struct replica *late = &w->replicas[o->id % NODES];
    struct store_key key;

    turns(w, 20);
    late->cut_off = true;
    for (uint64_t i = 0; i < LOG_TAIL_ENTRIES * 2; i++) {
        (void)submit(o, i);
        if (i % 50 == 0)
            turn(w);
    }
    turns(w, 50);
    key = key_log(5, 40); /* fell out of the tail, not yet trimmed */
    assert_true(store_memory_rot(o->store, STORE_LOG, key_bytes(&key), 77));
    late->cut_off = false;
    for (int i = 0; i < 4000 && !late->wants_range; i++)
        turn(w);
    assert_true(o->log_damaged);
    assert_true(late->wants_range);
}

static void ownership_moves_when_asked(void **state)
{
    struct world *w = *state;
    struct replica *o = wait_for_owner(w);
    struct replica *next = &w->replicas[o->id % NODES];

    turns(w, 20);
    assert_ok(partition_transfer(o->partition, next->id, &o->turn));
    for (int i = 0; i < 100 && owner(w) != next; i++)
        turn(w);
    assert_ptr_equal(owner(w), next);
    assert_false(o->owner);
}

static void a_single_replica_owns_after_its_barrier(void **state)
{
    struct store *store;
    struct world w = {.now = 1000};
    struct replica r = {.world = &w, .id = 1};

    (void)state;
    assert_ok(store_open_memory(&store));
    start_single(&r, store);
    assert_false(r.owner); /* its barrier is not on disk yet */
    for (int i = 0; i < 3; i++)
        write_turn(&r);
    assert_true(r.owner);
    stop_replica(&r);
    store_free(store);
}

static size_t log_length(struct replica *r)
{
    struct store_key from = key_log(5, 0);
    struct store_key to = key_partition_end(5);
    struct store_cursor *cursor = store_cursor_new(r->store, STORE_LOG, key_bytes(&from), key_bytes(&to), false);
    struct bytes key, value;
    struct fault fault;
    size_t count = 0;

    while (store_cursor_next(cursor, &key, &value, &fault) == STATUS_OK)
        count++;
    store_cursor_free(cursor);
    return count;
}

static void what_is_destroyed_leaves_the_log_although_all_restart_first(void **state)
{
    struct world *w = *state;
    struct replica *o = wait_for_owner(w);

    for (uint64_t i = 0; i < 10; i++)
        (void)submit(o, i);
    turns(w, 50);
    for (size_t i = 0; i < NODES; i++) {
        struct replica *r = &w->replicas[i];
        struct fault fault;

        partition_trim(r->partition, &r->turn);
        assert_ok(store_write(r->store, r->turn.batch, true, &fault));
        stop_replica(r);
        assert_true(log_length(r) > 10);
    }
    packets_drop(&w->packets);
    for (size_t i = 0; i < NODES; i++)
        start_replica(w, i);
    turns(w, 400); /* nobody submits anything */
    for (size_t i = 0; i < NODES; i++) {
        struct store_batch *batch = store_batch_new(w->replicas[i].store);

        assert_true(w->replicas[i].trimmed > 0);
        assert_true(log_length(&w->replicas[i]) < 5);
        assert_int_equal(destroyed_settle(w->replicas[i].store, 5, batch), 1); /* until the disk is compacted */
        store_batch_free(batch);
    }
}

static void a_voter_goes_when_those_who_stay_have_all(void **state)
{
    struct world *w = *state;
    struct replica *o = wait_for_owner(w);
    struct replica *late = &w->replicas[o->id % NODES];
    struct replica *goes = &w->replicas[late->id % NODES];
    struct partition_configuration now;

    turns(w, 20);
    late->cut_off = true;
    (void)submit(o, 0);
    turns(w, 20);
    assert_int_equal(partition_view(o->partition).commit_index, partition_view(o->partition).last_index);
    assert_status(partition_change(o->partition, REPLICA_REMOVE, goes->id, &o->turn), STATUS_UNAVAILABLE);
    assert_ok(partition_change(o->partition, REPLICA_REMOVE, late->id, &o->turn)); /* that one has nothing */
    turns(w, 20);
    assert_ok(partition_change(o->partition, REPLICA_ADD, late->id, &o->turn));
    late->cut_off = false;
    turns(w, 400);
    assert_ok(partition_change(o->partition, REPLICA_PROMOTE, late->id, &o->turn));
    turns(w, 50);
    assert_ok(partition_change(o->partition, REPLICA_REMOVE, goes->id, &o->turn));
    turns(w, 50);
    partition_configuration(o->partition, &now);
    assert_int_equal(now.voters.count, 2);
    assert_false(replica_set_holds(&now.voters, goes->id));
}

/* It says that an entry is missing that a later answer said is there; the replica gets all that follows all the same. */
static void a_refusal_that_comes_late_stops_nothing(void **state)
{
    struct world *w = *state;
    struct replica *o = wait_for_owner(w);
    struct replica *other = &w->replicas[o->id % NODES];
    struct replica_message late;
    uint64_t match;

    (void)submit(o, 0);
    turns(w, 50);
    match = submit(o, 1);
    while (partition_view(o->partition).commit_index < match)
        turn(w);
    other->cut_off = true; /* it doesn't know yet that this is committed */
    assert_int_equal(partition_view(other->partition).last_index, match);
    assert_true(partition_view(other->partition).commit_index < match);
    turns(w, 150); /* the owner takes it for away, and probes */
    late = (struct replica_message){.type = REPLICA_APPEND_ENTRIES_RESULT,
                                    .term = partition_view(o->partition).term,
                                    .log_index = match - 1,
                                    .rejected = match};
    partition_receive(o->partition, other->id, &late, &o->turn);
    stop_replica(other);
    other->cut_off = false;
    other->applied_count = 0;
    start_replica(w, other->id - 1);
    for (uint64_t i = 2; i < 20; i++)
        (void)submit(o, i);
    turns(w, 200);
    assert_int_equal(partition_view(other->partition).last_index, match + 18);
}

/* In the old term it may have sent a standby what its own disk never got. */
static void a_single_replica_that_restarts_leads_in_a_new_term(void **state)
{
    struct store *store;
    struct world w = {.now = 1000};
    struct replica r = {.world = &w, .id = 1};
    uint64_t term;

    (void)state;
    assert_ok(store_open_memory(&store));
    start_single(&r, store);
    for (int i = 0; i < 3; i++)
        write_turn(&r);
    term = partition_view(r.partition).term;
    stop_replica(&r);
    r = (struct replica){.world = &w, .id = 1};
    start_single(&r, store);
    assert_int_equal(partition_view(r.partition).term, term + 1);
    stop_replica(&r); /* before it is on disk: nobody heard of it */
    r = (struct replica){.world = &w, .id = 1};
    start_single(&r, store);
    for (int i = 0; i < 3; i++)
        write_turn(&r);
    assert_true(r.owner);
    assert_int_equal(partition_view(r.partition).term, term + 1);
    stop_replica(&r);
    store_free(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_the_owner_appends_all_apply_once_in_order, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(nobody_commits_alone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(
            with_most_disks_full_nothing_is_submitted_but_reads_go_on, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_deposed_owners_work_is_thrown_away, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_follower_acknowledges_only_what_its_disk_has, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_restarted_replica_goes_on_where_it_was, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(all_restart_and_nothing_is_lost, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_replica_behind_the_trimmed_log_asks_for_the_range,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(ownership_moves_when_asked, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_damaged_owner_hands_over_and_comes_back_with_the_range,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_damaged_log_is_trimmed_and_followers_get_the_range,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_destroyed_leaves_the_log_although_all_restart_first, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_voter_goes_when_those_who_stay_have_all, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_refusal_that_comes_late_stops_nothing, set_up, tear_down),
        cmocka_unit_test(a_single_replica_owns_after_its_barrier),
        cmocka_unit_test(the_applied_index_stays_behind_a_little),
        cmocka_unit_test(a_single_replica_can_not_be_repaired),
        cmocka_unit_test(a_single_replica_that_restarts_leads_in_a_new_term),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * Every failure once: the first read or write of a replica's store fails, then the second, and so on until a
 * whole life has none left. A replica that can't go on stops, and starts again from what its store holds; in
 * the end all have applied the same, once, in order. (An allocation that fails ends the process: tests/fault.)
 */
#include "check.h"
#include "packets.h"
#include "partition/partition.h"

enum { NODES = 3, TARGET = 140, APPLIED_MAX = 4096 };

struct replica {
    struct world *world;
    uint64_t id;
    struct store *store;
    struct partition *partition; /* NULL while it is down */
    struct turn turn;
    uint64_t applied[APPLIED_MAX];
    size_t applied_count;
    bool failed;
    bool wants_range;
    bool stops_range;
};

struct world {
    uint64_t now;
    uint64_t next;
    struct replica replicas[NODES];
    struct packets packets;
};

static const uint64_t ids[NODES] = {1, 2, 3};
static const struct replica_set all = {{1, 2, 3}, NODES};

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

    (void)partition;
    (void)index;
    (void)batch;
    assert_true(r->applied_count < APPLIED_MAX);
    memcpy(&r->applied[r->applied_count++], payload.data, sizeof r->applied[0]);
    applied->next_position++;
    assert_int_equal(applied->next_position, r->applied_count);
}

static void on_ownership(void *context, struct partition *partition, bool owner)
{
    (void)context;
    (void)partition;
    (void)owner;
}

static void on_need_range(void *context, struct partition *partition, uint64_t leader,
                          uint64_t index, uint64_t term)
{
    (void)partition;
    (void)leader;
    (void)index;
    (void)term;
    ((struct replica *)context)->wants_range = true;
}

static void on_stop_range(void *context, struct partition *partition)
{
    (void)partition;
    ((struct replica *)context)->stops_range = true;
}

static void on_damaged(void *context, struct partition *partition, const struct fault *fault)
{
    (void)context;
    (void)partition;
    (void)fault;
}

static void on_trimmed(void *context, struct partition *partition)
{
    (void)context;
    (void)partition;
}

static void on_failed(void *context, struct partition *partition, const struct fault *fault)
{
    (void)partition;
    assert_true(fault->message[0] != '\0');
    ((struct replica *)context)->failed = true;
}

/* ---- the world ---- */

static void stop(struct replica *r)
{
    partition_free(r->partition);
    store_batch_free(r->turn.batch);
    r->partition = NULL;
}

static void start(struct replica *r)
{
    struct partition_settings settings = {.id = 5,
                                          .node_id = r->id,
                                          .founders = &all,
                                          .election_ms = 300,
                                          .heartbeat_ms = 75,
                                          .checkpoint_entries = 16,
                                          .seed = 42 + (uint32_t)r->id};
    struct partition_effects effects = {r,             on_send,       on_apply,   on_ownership,
                                        on_need_range, on_stop_range, on_damaged, on_failed, on_trimmed};
    struct fault fault = {0};

    r->turn = (struct turn){r->world->now, store_batch_new(r->store), 1, 0};
    r->failed = r->wants_range = r->stops_range = false;
    if (partition_new(&r->partition, &settings, &effects, r->store, &r->turn, &fault) != STATUS_OK) {
        assert_true(fault.message[0] != '\0');
        store_batch_free(r->turn.batch);
        r->partition = NULL;
            return;
    }
    r->applied_count = partition_view(r->partition).applied.next_position;
}

static void write_turn(struct replica *r)
{
    struct fault fault;
    uint64_t ticket = r->turn.ticket;

    if (store_batch_count(r->turn.batch) == 0)
        return;
    if (store_write(r->store, r->turn.batch, true, &fault) != STATUS_OK) {
        r->failed = true; /* as the storage thread: the node stops */
        return;
    }
    r->turn.ticket++;
    (void)partition_written(r->partition, ticket, &r->turn);
}

/* The whole range is what was applied: here, numbers. */
static void give_range(struct world *w, struct replica *r)
{
    for (size_t i = 0; i < NODES; i++) {
        struct replica *other = &w->replicas[i];
        struct applied applied;

        if (other == r || other->partition == NULL)
            continue;
        applied = partition_view(other->partition).applied;
        if (applied.index != partition_view(other->partition).stored_index ||
            applied.next_position < r->applied_count)
            continue;
        memcpy(r->applied, other->applied, sizeof r->applied);
        r->applied_count = applied.next_position;
        r->wants_range = false;
        partition_installed(r->partition, &applied, &r->turn);
        return;
    }
}

static void turn(struct world *w)
{
    struct packet *packet = packets_take(&w->packets);

    w->now += 5;
    while (packet != NULL) {
        struct replica *to = &w->replicas[packet->to - 1];

        if (to->partition != NULL && !to->failed) {
            to->turn.now_ms = w->now;
            partition_receive(to->partition, packet->from, &packet->message, &to->turn);
        }
        packet = packet_free(packet);
    }
    for (size_t i = 0; i < NODES; i++) {
        struct replica *r = &w->replicas[i];

        if (r->partition == NULL) {
            start(r);
            continue;
        }
        r->turn.now_ms = w->now;
        if (!r->failed)
            partition_tick(r->partition, &r->turn);
        if (!r->failed && r->stops_range) {
            r->stops_range = r->wants_range = false;
            partition_installed(r->partition, NULL, &r->turn);
        } else if (!r->failed && r->wants_range) {
            give_range(w, r);
        }
        if (!r->failed)
            write_turn(r);
        if (r->failed)
            stop(r);
    }
}

static void submit(struct world *w)
{
    for (size_t i = 0; i < NODES; i++) {
        struct replica *r = &w->replicas[i];
        struct blob *payload;
        uint64_t index;

        if (r->partition == NULL || r->failed || !partition_is_owner(r->partition))
            continue;
        payload = blob_new(sizeof w->next);
        memcpy(payload->data, &w->next, sizeof w->next);
        w->next += partition_submit(r->partition, payload, &r->turn, &index) == STATUS_OK;
    }
}

static bool all_have(const struct world *w, size_t count)
{
    for (size_t i = 0; i < NODES; i++)
        if (w->replicas[i].partition == NULL || w->replicas[i].applied_count < count)
            return false;
    return true;
}

static bool all_agree(const struct world *w)
{
    for (size_t i = 0; i < NODES; i++)
        if (w->replicas[i].partition == NULL ||
            w->replicas[i].applied_count != w->replicas[0].applied_count ||
            memcmp(w->replicas[i].applied, w->replicas[0].applied,
                   w->replicas[0].applied_count * sizeof w->replicas[0].applied[0]) != 0)
            return false;
    return true;
}

/* A life with elections, entries, checkpoints and a restart. Gives whether the failure came. */
static bool live(uint64_t failing_io)
{
    struct world *w = memory_zero(1, sizeof *w);
    bool agree = false;
    bool failed;

    w->now = 1000;
    packets_init(&w->packets);
    for (size_t i = 0; i < NODES; i++) {
        w->replicas[i].world = w;
        w->replicas[i].id = ids[i];
        assert_ok(store_open_memory(&w->replicas[i].store));
        if (i == 0)
            (void)store_memory_fail(w->replicas[i].store, failing_io);
        start(&w->replicas[i]);
    }
    for (int t = 0; t < 6000 && !all_have(w, TARGET); t++) {
        if (t == 150 && w->replicas[0].partition != NULL) /* it loads all that there is */
            stop(&w->replicas[0]);
        if (t % 3 == 0 && w->next < TARGET * 4)
            submit(w);
        turn(w);
    }
    failed = store_memory_fail(w->replicas[0].store, 0) == 0 && failing_io != 0;
    for (int t = 0; t < 2000 && !(agree = t > 100 && all_agree(w)); t++)
        turn(w);
    if (!agree || !all_have(w, TARGET))
        fail_msg("read or write %llu: applied %zu, %zu, %zu", (unsigned long long)failing_io,
                 w->replicas[0].applied_count, w->replicas[1].applied_count,
                 w->replicas[2].applied_count);
    for (size_t i = 1; i < w->replicas[0].applied_count; i++)
        assert_true(w->replicas[0].applied[i] > w->replicas[0].applied[i - 1]); /* once, in order */
    packets_drop(&w->packets);
    for (size_t i = 0; i < NODES; i++) {
        stop(&w->replicas[i]);
        store_free(w->replicas[i].store);
    }
    free(w);
    return failed;
}

static void every_read_and_write_may_fail(void **state)
{
    unsigned failures = 0;

    (void)state;
    assert_false(live(0));
    while (live(failures + 1))
        failures++;
    assert_true(failures > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_read_and_write_may_fail),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

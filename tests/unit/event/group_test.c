/* A processor group with members and readers that the test plays. */
#include "check.h"
#include "event/group.h"

enum { PARTITIONS = 6, LOG = 2000, MEMBERS = 4 };

static const struct token_of cluster = {BYTES_LITERAL("0123456789abcdef"), PARTITIONS};

/* What one member's stream was told. */
struct player {
    char name;
    bool here;
    bool has[PARTITIONS];
    uint64_t got[PARTITIONS][LOG];
    size_t got_count[PARTITIONS];
    uint32_t attempt;
    bool parked;
    bool goes_on[PARTITIONS]; /* else what comes has to say that it begins */
    uint64_t replay_until;
    char dismissed[64];
};

struct fixture {
    struct store *store;
    struct group *group;
    uint64_t now;
    struct player players[MEMBERS];
    uint64_t log_end[PARTITIONS]; /* events there are */
    bool reading[PARTITIONS];
    bool anew[PARTITIONS]; /* nothing came of this reading yet */
    uint64_t next[PARTITIONS];
    uint64_t credits[PARTITIONS];
    unsigned kept;
};

/* ---- effects ---- */

static uint64_t varint(const uint8_t **at)
{
    uint64_t value = 0;

    for (unsigned shift = 0;; shift += 7) {
        uint8_t byte = *(*at)++;

        value |= (uint64_t)(byte & 0x7F) << shift;
        if ((byte & 0x80) == 0)
            return value;
    }
}

static void take_delivery(struct fixture *f, struct player *m, const uint8_t *at, const uint8_t *end)
{
    uint64_t partition = 0;
    bool begins = false;

    m->attempt = 0;
    m->parked = false;
    while (at < end) {
        uint64_t tag = varint(&at);

        if (tag >> 3 == 2) {
            size_t len = (size_t)varint(&at);
            struct event_head head;
            struct fault fault;

            assert_ok(wire_event_peek((struct bytes){at, len}, &head, &fault));
            assert_int_equal(head.partition, partition);
            m->got[partition][m->got_count[partition]++] = head.position;
            at += len;
        } else if (tag >> 3 == 1) {
            partition = varint(&at);
        } else if (tag >> 3 == 3) {
            m->replay_until = varint(&at);
        } else if (tag >> 3 == 4) {
            m->attempt = (uint32_t)varint(&at);
        } else if (tag >> 3 == 5) {
            m->parked = varint(&at) != 0;
        } else {
            assert_int_equal(tag >> 3, 6);
            begins = varint(&at) != 0;
        }
    }
    assert_true(begins || m->parked || m->goes_on[partition]);
    assert_true(!begins || f->anew[partition]);
    m->goes_on[partition] = m->goes_on[partition] || begins;
    f->anew[partition] = f->anew[partition] && !begins;
}

static void on_send(void *context, void *member, struct bytes message)
{
    struct player *m = member;
    const uint8_t *at = message.data;
    const uint8_t *end = message.data + message.len;
    uint64_t tag = varint(&at);

    (void)varint(&at); /* the length */
    if (tag >> 3 == 2) {
        take_delivery(context, m, at, end);
        return;
    }
    memset(m->has, 0, sizeof m->has);
    while (at < end) {
        (void)varint(&at);
        m->has[varint(&at)] = true;
    }
    for (uint32_t p = 0; p < PARTITIONS; p++)
        m->goes_on[p] = m->goes_on[p] && m->has[p];
}

static void on_dismiss(void *context, void *member, const struct fault *fault)
{
    struct player *m = member;

    (void)context;
    m->here = false;
    memset(m->has, 0, sizeof m->has);
    snprintf(m->dismissed, sizeof m->dismissed, "%s", fault->reason);
}

static void on_read(void *context, uint32_t partition, const struct log_start *from, uint32_t credits)
{
    struct fixture *f = context;
    uint64_t positions[PARTITIONS];
    int64_t only;
    struct fault fault;

    f->reading[partition] = true;
    f->anew[partition] = true;
    f->credits[partition] = credits;
    if (from->kind == START_TOKEN) {
        assert_ok(token_read(from->token, &cluster, positions, &only, &fault));
        assert_int_equal(only, partition);
        f->next[partition] = positions[partition];
    } else {
        f->next[partition] = from->kind == START_END ? f->log_end[partition] : 0;
    }
}

static void on_credit(void *context, uint32_t partition, uint32_t credits)
{
    ((struct fixture *)context)->credits[partition] += credits;
}

static void on_stop(void *context, uint32_t partition)
{
    ((struct fixture *)context)->reading[partition] = false;
}

static void on_keep(void *context, struct bytes payload)
{
    struct fixture *f = context;
    struct store_batch *batch = store_batch_new(f->store);
    struct arena arena = {0};
    struct log_batch entry;
    struct fault fault;

    assert_ok(wire_log_batch_decode(payload, &arena, &entry, &fault));
    for (size_t i = 0; i < entry.cursor_count; i++) {
        struct store_key key =
            key_cursor(3, entry.cursors[i].cursor.group, (uint16_t)entry.cursors[i].cursor.partition);

        store_batch_put(batch, STORE_CURSORS, key_bytes(&key), entry.cursors[i].packed);
    }
    assert_ok(store_write(f->store, batch, true, &fault));
    store_batch_free(batch);
    arena_release(&arena);
    f->kept++;
}

/* ---- given, when, then ---- */

static struct process_request join_of(const struct player *m)
{
    return (struct process_request){.kind = PROCESS_JOIN,
                                    .group = BYTES_LITERAL("g"),
                                    .member = {(const uint8_t *)&m->name, 1},
                                    .window = 60,
                                    .ack_timeout_ms = 5000};
}

static void make_group(struct fixture *f, const struct process_request *first)
{
    struct group_settings settings = {cluster, BYTES_LITERAL("g"), 3, first};
    struct group_effects effects = {f, on_send, on_dismiss, on_read, on_credit, on_stop, on_keep};
    struct fault fault;

    assert_ok(group_new(&f->group, &settings, &effects, f->store, &fault));
}

static struct player *join(struct fixture *f, int which)
{
    struct player *m = &f->players[which];
    struct process_request request = join_of(m);
    struct fault fault;

    if (f->group == NULL)
        make_group(f, &request);
    m->here = true;
    m->dismissed[0] = '\0';
    memset(m->goes_on, 0, sizeof m->goes_on);
    assert_ok(group_join(f->group, m, &request, f->now, &fault));
    return m;
}

static void leave(struct fixture *f, struct player *m)
{
    m->here = false;
    memset(m->has, 0, sizeof m->has);
    group_leave(f->group, m, f->now);
}

/* The readers give what they may. */
static void read_on(struct fixture *f)
{
    for (uint32_t p = 0; p < PARTITIONS; p++) {
        struct buffer message = {0}, packed = {0};
        struct fault fault;
        bool any = false;

        while (f->reading[p] && f->credits[p] > 0 && f->next[p] < f->log_end[p]) {
            struct event event = {.aggregate_id = BYTES_LITERAL("a"),
                                  .type = BYTES_LITERAL("E"),
                                  .partition = p,
                                  .position = f->next[p]++};

            packed.len = 0;
            wire_event_pack(&packed, &event);
            wire_subscribe_response_add(&message, buffer_bytes(&packed));
            f->credits[p]--;
            any = true;
        }
        if (any)
            assert_ok(group_events(f->group, p, buffer_bytes(&message), f->now, &fault));
        buffer_release(&message);
        buffer_release(&packed);
    }
}

static enum status acknowledge(struct fixture *f, struct player *m, uint32_t partition, uint64_t position,
                               bool up_to, struct fault *fault)
{
    struct process_request request = {
        .kind = PROCESS_ACKNOWLEDGE, .partition = partition, .position = position, .up_to = up_to};

    return group_acknowledge(f->group, m, &request, f->now, fault);
}

/* Everything that it got of what it has. */
static void acknowledge_all(struct fixture *f, struct player *m)
{
    struct fault fault;

    for (uint32_t p = 0; p < PARTITIONS; p++)
        if (m->has[p] && m->got_count[p] > 0)
            assert_ok(acknowledge(f, m, p, m->got[p][m->got_count[p] - 1], true, &fault));
}

static void fail_event(struct fixture *f, struct player *m, uint32_t partition, uint64_t position)
{
    struct process_request request = {.kind = PROCESS_FAIL,
                                      .partition = partition,
                                      .position = position,
                                      .reason = BYTES_LITERAL("it hurts")};
    struct fault fault;

    m->goes_on[partition] = m->parked && m->goes_on[partition]; /* before the next delivery, which may come at once */
    assert_ok(group_fail(f->group, m, &request, f->now, &fault));
}

static void pass(struct fixture *f, uint64_t ms)
{
    f->now += ms;
    group_tick(f->group, f->now);
    read_on(f);
}

static size_t share(const struct player *m)
{
    size_t n = 0;

    for (uint32_t p = 0; p < PARTITIONS; p++)
        n += m->has[p];
    return n;
}

static int set_up(void **state)
{
    struct fixture *f = memory_zero(1, sizeof *f);

    f->now = 100000;
    for (int i = 0; i < MEMBERS; i++)
        f->players[i].name = (char)('a' + i);
    assert_ok(store_open_memory(&f->store));
    *state = f;
    return 0;
}

static void end_group(struct fixture *f)
{
    struct fault fault;

    (void)fault_set(&fault, STATUS_UNAVAILABLE, "END", "the end");
    if (f->group != NULL)
        group_dismiss_all(f->group, &fault);
    group_free(f->group);
    f->group = NULL;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    end_group(f);
    store_free(f->store);
    free(f);
    return 0;
}

/* ---- the tests ---- */

static void partitions_are_divided_evenly_and_a_leaver_s_go_to_the_rest(void **state)
{
    struct fixture *f = *state;
    struct player *a = join(f, 0);
    struct player *b, *c;

    assert_int_equal(share(a), 6);
    b = join(f, 1);
    c = join(f, 2);
    assert_int_equal(share(a), 2);
    assert_int_equal(share(b), 2);
    assert_int_equal(share(c), 2);
    for (uint32_t p = 0; p < PARTITIONS; p++)
        assert_int_equal(a->has[p] + b->has[p] + c->has[p], 1);
    leave(f, b);
    assert_int_equal(share(a), 3);
    assert_int_equal(share(c), 3);
}

static void no_more_than_the_window_is_unacknowledged(void **state)
{
    struct fixture *f = *state;
    struct player *a = join(f, 0);

    for (uint32_t p = 0; p < PARTITIONS; p++)
        f->log_end[p] = 100;
    read_on(f);
    for (uint32_t p = 0; p < PARTITIONS; p++)
        assert_int_equal(a->got_count[p], 10); /* 60 over six */
    acknowledge_all(f, a);
    read_on(f);
    assert_int_equal(a->got_count[2], 20);
    assert_int_equal(a->got[2][19], 19);
}

static void the_cursor_passes_only_what_is_acknowledged(void **state)
{
    struct fixture *f = *state;
    struct player *a = join(f, 0);
    struct fault fault;

    f->log_end[1] = 10;
    read_on(f);
    assert_ok(acknowledge(f, a, 1, 2, false, &fault));
    assert_ok(acknowledge(f, a, 1, 1, false, &fault));
    assert_int_equal(group_position(f->group, 1), 0);
    assert_ok(acknowledge(f, a, 1, 0, false, &fault));
    assert_int_equal(group_position(f->group, 1), 3);
    assert_ok(acknowledge(f, a, 1, 0, false, &fault)); /* twice: nothing */
    assert_int_equal(group_position(f->group, 1), 3);
}

static void acknowledging_what_wasn_t_given_is_refused(void **state)
{
    struct fixture *f = *state;
    struct player *a = join(f, 0);
    struct fault fault;

    f->log_end[1] = 5;
    read_on(f);
    assert_status(acknowledge(f, a, 1, 5, false, &fault), STATUS_INVALID);
    assert_string_equal(fault.reason, "NOT_DELIVERED");
    assert_status(acknowledge(f, a, PARTITIONS, 0, false, &fault), STATUS_INVALID);
    assert_int_equal(group_position(f->group, 1), 0);
}

static void a_dead_member_s_events_come_again_to_another_in_order(void **state)
{
    struct fixture *f = *state;
    struct player *a = join(f, 0);
    struct player *b;
    struct fault fault;

    f->log_end[4] = 8;
    read_on(f);
    assert_ok(acknowledge(f, a, 4, 2, true, &fault));
    leave(f, a);
    b = join(f, 1);
    read_on(f);
    assert_int_equal(b->got_count[4], 5);
    for (int i = 0; i < 5; i++)
        assert_int_equal(b->got[4][i], 3 + i);
}

static void a_partition_moves_only_when_nothing_of_it_is_held(void **state)
{
    struct fixture *f = *state;
    struct player *a = join(f, 0);
    struct player *b;

    for (uint32_t p = 0; p < PARTITIONS; p++)
        f->log_end[p] = 4;
    read_on(f);
    b = join(f, 1);
    assert_int_equal(share(a), 6); /* it holds events of all */
    assert_int_equal(share(b), 0);
    for (uint32_t p = 0; p < PARTITIONS; p++)
        f->log_end[p] = 20;
    read_on(f);
    acknowledge_all(f, a);
    read_on(f);
    assert_int_equal(share(a), 3);
    assert_int_equal(share(b), 3);
    for (uint32_t p = 0; p < PARTITIONS; p++)
        if (b->has[p]) {
            assert_int_equal(a->got_count[p], 4); /* nothing more of it once it was to move */
            assert_int_equal(b->got[p][0], 4);
        }
}

/* Found by the simulator: what came twice is acknowledged twice, the second time when the partition was another's. */
static void a_late_acknowledgement_does_no_harm_after_a_partition_went_and_came_back(void **state)
{
    struct fixture *f = *state;
    struct player *a = join(f, 0);
    struct player *b;
    struct fault fault;

    for (uint32_t p = 0; p < PARTITIONS; p++)
        f->log_end[p] = 4;
    read_on(f);
    acknowledge_all(f, a);
    b = join(f, 1);
    assert_int_equal(share(b), 3);
    leave(f, b);
    assert_int_equal(share(a), PARTITIONS);
    for (uint32_t p = 0; p < PARTITIONS; p++) {
        assert_ok(acknowledge(f, a, p, 3, false, &fault));
        assert_status(acknowledge(f, a, p, 4, false, &fault), STATUS_INVALID);
        assert_int_equal(group_position(f->group, p), 4);
    }
}

static void a_member_that_never_acknowledges_loses_its_partitions(void **state)
{
    struct fixture *f = *state;
    struct player *a = join(f, 0);
    struct player *b = join(f, 1);

    for (uint32_t p = 0; p < PARTITIONS; p++)
        f->log_end[p] = 3;
    read_on(f);
    acknowledge_all(f, b);
    pass(f, 4999);
    assert_true(a->here);
    pass(f, 2);
    assert_string_equal(a->dismissed, "ACK_TIMEOUT");
    assert_int_equal(share(b), 6);
}

static void a_failed_event_comes_again_later_then_is_parked(void **state)
{
    struct fixture *f = *state;
    struct player *a = join(f, 0);
    struct fault fault;

    f->log_end[0] = 5;
    read_on(f);
    assert_ok(acknowledge(f, a, 0, 0, false, &fault));
    for (uint32_t attempt = 1; attempt < 5; attempt++) {
        size_t before = a->got_count[0];

        fail_event(f, a, 0, 1);
        pass(f, 50);
        assert_int_equal(a->got_count[0], before); /* not at once */
        pass(f, 5000);
        assert_true(a->got_count[0] > before);
        assert_int_equal(a->got[0][before], 1); /* from itself on, in order */
        assert_int_equal(a->got[0][before + 1], 2);
        assert_int_equal(a->attempt, attempt);
    }
    fail_event(f, a, 0, 1);
    assert_int_equal(group_counts(f->group).parked, 1);
    assert_int_equal(group_position(f->group, 0), 2);
    pass(f, 6000);
    assert_int_equal(a->got[0][a->got_count[0] - 3], 2); /* behind it */
    assert_ok(acknowledge(f, a, 0, 4, true, &fault));
    assert_int_equal(group_position(f->group, 0), 5);
}

/* The member was told of it in an earlier reading, and drops what it has behind it. */
static void a_failure_that_comes_too_late_lets_the_partition_begin_anew(void **state)
{
    struct fixture *f = *state;
    struct player *a = join(f, 0);
    struct fault fault;
    size_t before;

    f->log_end[0] = 5;
    read_on(f);
    assert_ok(acknowledge(f, a, 0, 2, true, &fault));
    before = a->got_count[0];
    fail_event(f, a, 0, 1);
    f->log_end[0] = 7;
    pass(f, 6000);
    assert_int_equal(a->got_count[0], before + 4);
    assert_int_equal(a->got[0][before], 3);
    assert_int_equal(a->attempt, 0);
    assert_int_equal(group_counts(f->group).parked, 0);
}

static enum status retry(struct fixture *f, uint32_t partition, uint64_t position, struct fault *fault)
{
    struct event event = {.aggregate_type = BYTES_LITERAL("t"),
                          .aggregate_id = BYTES_LITERAL("A"),
                          .partition = partition,
                          .position = position,
                          .type = BYTES_LITERAL("Happened")};
    struct buffer packed = {0};
    enum status status;

    wire_event_pack(&packed, &event);
    status = group_retry(f->group, partition, buffer_bytes(&packed), f->now, fault);
    buffer_release(&packed);
    return status;
}

static void a_parked_event_is_tried_once_more(void **state)
{
    struct fixture *f = *state;
    struct player *a = join(f, 0);
    struct fault fault;
    size_t count;

    f->log_end[0] = 3;
    read_on(f);
    for (int i = 0; i < 5; i++) {
        fail_event(f, a, 0, 0);
        pass(f, 6000);
    }
    assert_ok(acknowledge(f, a, 0, 2, true, &fault));
    assert_int_equal(group_parked(f->group, 0, &count)->position, 0);
    assert_int_equal(count, 1);
    assert_int_equal(retry(f, 0, 1, &fault), STATUS_NOT_FOUND);
    assert_ok(retry(f, 0, 0, &fault));
    assert_ok(retry(f, 0, 0, &fault)); /* it is there already */
    assert_int_equal(a->got[0][a->got_count[0] - 1], 0);
    assert_int_equal(a->attempt, 5);
    assert_true(a->parked);
    fail_event(f, a, 0, 0);
    assert_int_equal(group_parked(f->group, 0, &count)->attempts, 6);
    assert_int_equal(count, 1);
    assert_ok(retry(f, 0, 0, &fault));
    assert_ok(acknowledge(f, a, 0, 0, false, &fault));
    (void)group_parked(f->group, 0, &count);
    assert_int_equal(count, 0);
    assert_int_equal(group_position(f->group, 0), 3); /* never moved by that */
    leave(f, a);
    assert_int_equal(retry(f, 0, 0, &fault), STATUS_NOT_FOUND);
}

static void a_new_coordinator_goes_on_from_the_kept_cursors(void **state)
{
    struct fixture *f = *state;
    struct player *a = join(f, 0);

    for (uint32_t p = 0; p < PARTITIONS; p++)
        f->log_end[p] = 30;
    read_on(f);
    acknowledge_all(f, a);
    pass(f, 300); /* kept */
    read_on(f);
    acknowledge_all(f, a); /* not kept any more */
    end_group(f);
    memset(a->got_count, 0, sizeof a->got_count);
    a = join(f, 0);
    read_on(f);
    for (uint32_t p = 0; p < PARTITIONS; p++)
        assert_int_equal(a->got[p][0], 10);
}

static void a_reset_replays_and_says_so(void **state)
{
    struct fixture *f = *state;
    struct player *a = join(f, 0);
    struct log_start beginning = {.kind = START_BEGINNING};

    f->log_end[0] = 10;
    read_on(f);
    acknowledge_all(f, a);
    group_reset(f->group, &beginning, f->store, NULL, f->now);
    assert_string_equal(a->dismissed, "GROUP_RESET");
    assert_true(f->kept > 0);
    memset(a->got_count, 0, sizeof a->got_count);
    a = join(f, 0);
    read_on(f);
    assert_int_equal(a->got[0][0], 0);
    assert_int_equal(a->replay_until, 10);
}

static void a_reset_to_the_end_outlives_its_coordinator(void **state)
{
    struct fixture *f = *state;
    struct player *a = join(f, 0);
    const bool held[PARTITIONS] = {true};
    struct log_start at_end = {.kind = START_END};
    struct fault fault;
    uint64_t resets = 0;

    f->log_end[0] = f->log_end[1] = 10;
    read_on(f);
    acknowledge_all(f, a);
    group_reset(f->group, &at_end, f->store, held, f->now); /* the store is empty: partition 0 ends at 0 */
    assert_ok(group_resets_kept(f->store, 3, BYTES_LITERAL("g"), &resets, &fault));
    assert_int_equal(resets, 1);
    end_group(f);
    f->log_end[1] = 12;
    a = join(f, 0);
    assert_int_equal(group_resets(f->group), 1);
    assert_int_equal(group_position(f->group, 0), 0);
    assert_int_equal(f->next[1], 12); /* not known yet: what the first reader finds */
    assert_int_equal(group_position(f->group, 1), UINT64_MAX);
}

static void a_name_that_joins_again_takes_its_own_place(void **state)
{
    struct fixture *f = *state;
    struct player *old = join(f, 0);
    struct player *again = &f->players[1];

    again->name = old->name;
    again = join(f, 1);
    assert_string_equal(old->dismissed, "MEMBER_REPLACED");
    assert_int_equal(share(again), 6);
    assert_int_equal(group_members(f->group), 1);
}

static void another_filter_is_refused(void **state)
{
    struct fixture *f = *state;
    struct process_request request;
    struct bytes type = BYTES_LITERAL("x");
    struct fault fault;

    (void)join(f, 0);
    request = join_of(&f->players[1]);
    request.filter = (struct event_filter){.event_types = &type, .event_type_count = 1};
    assert_status(group_join(f->group, &f->players[1], &request, f->now, &fault), STATUS_INVALID);
    assert_string_equal(fault.reason, "FILTER_DIFFERS");
}

static void a_broken_reader_is_read_again_without_a_gap(void **state)
{
    struct fixture *f = *state;
    struct player *a = join(f, 0);

    f->log_end[3] = 6;
    read_on(f);
    f->reading[3] = false;
    group_reader_broke(f->group, 3, f->now);
    f->log_end[3] = 12;
    pass(f, 1000);
    assert_int_equal(a->got_count[3], 6); /* it holds six of them */
    acknowledge_all(f, a);
    pass(f, 1000);
    assert_int_equal(a->got_count[3], 12);
    for (int i = 0; i < 12; i++)
        assert_int_equal(a->got[3][i], i);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(partitions_are_divided_evenly_and_a_leaver_s_go_to_the_rest),
        TEST(no_more_than_the_window_is_unacknowledged),
        TEST(the_cursor_passes_only_what_is_acknowledged),
        TEST(acknowledging_what_wasn_t_given_is_refused),
        TEST(a_late_acknowledgement_does_no_harm_after_a_partition_went_and_came_back),
        TEST(a_dead_member_s_events_come_again_to_another_in_order),
        TEST(a_partition_moves_only_when_nothing_of_it_is_held),
        TEST(a_member_that_never_acknowledges_loses_its_partitions),
        TEST(a_failed_event_comes_again_later_then_is_parked),
        TEST(a_failure_that_comes_too_late_lets_the_partition_begin_anew),
        TEST(a_parked_event_is_tried_once_more),
        TEST(a_reset_to_the_end_outlives_its_coordinator),
        TEST(a_new_coordinator_goes_on_from_the_kept_cursors),
        TEST(a_reset_replays_and_says_so),
        TEST(a_name_that_joins_again_takes_its_own_place),
        TEST(another_filter_is_refused),
        TEST(a_broken_reader_is_read_again_without_a_gap),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

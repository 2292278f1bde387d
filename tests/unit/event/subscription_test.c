/* Subscriptions over a store that the test fills, and the tokens that say where they stand. */
#include "check.h"
#include "event/event.h"

enum { PARTITIONS = 3, IDS = 5 };

static const struct token_of cluster = {BYTES_LITERAL("0123456789abcdef"), PARTITIONS};

struct fixture {
    struct store *store;
    uint64_t stored[PARTITIONS]; /* positions */
    uint64_t sequences[PARTITIONS][IDS];
    bool held[PARTITIONS];
    struct subscription *s;
    struct buffer out;
    uint64_t now;
    /* What was given, by partition. */
    uint64_t given[PARTITIONS][5000];
    size_t given_count[PARTITIONS];
    char token[2000];
};

/* ---- given, when, then ---- */

static void store_events(struct fixture *f, uint32_t partition, int count)
{
    struct store_batch *batch = store_batch_new(f->store);
    struct buffer scratch = {0};
    struct fault fault;

    for (int i = 0; i < count; i++) {
        uint64_t position = f->stored[partition]++;
        int which = (int)(position % IDS);
        char id[16];
        uint64_t sequence = f->sequences[partition][which]++;
        struct event event = {
            .aggregate_type = which == 0 ? BYTES_LITERAL("rare") : BYTES_LITERAL("common"),
            .aggregate_id = {(uint8_t *)id, (size_t)snprintf(id, sizeof id, "%c-%u", 'a' + which, partition)},
            .sequence = sequence,
            .partition = partition,
            .position = position,
            .type = position % 2 == 0 ? BYTES_LITERAL("Even") : BYTES_LITERAL("Odd"),
            .payload = {PAYLOAD_JSON, BYTES_LITERAL("{}")},
            .time_ms = 1000 + (int64_t)position * 10,
            .command_id = BYTES_LITERAL("c"),
        };
        struct store_key key = key_event((uint16_t)partition, event.aggregate_id, sequence);

        scratch.len = 0;
        wire_event_pack(&scratch, &event);
        store_batch_put(batch, STORE_EVENTS, key_bytes(&key), buffer_bytes(&scratch));
        scratch.len = 0;
        buffer_add(&scratch, &sequence, sizeof sequence);
        buffer_add(&scratch, event.aggregate_id.data, event.aggregate_id.len);
        key = key_position((uint16_t)partition, position);
        store_batch_put(batch, STORE_POSITIONS, key_bytes(&key), buffer_bytes(&scratch));
    }
    assert_ok(store_write(f->store, batch, true, &fault));
    store_batch_free(batch);
    buffer_release(&scratch);
    if (f->s != NULL)
        subscription_stored(f->s, partition);
}

static int set_up(void **state)
{
    struct fixture *f = memory_zero(1, sizeof *f);

    f->now = 1000;
    memset(f->held, true, sizeof f->held);
    assert_ok(store_open_memory(&f->store));
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    subscription_free(f->s);
    store_free(f->store);
    buffer_release(&f->out);
    free(f);
    return 0;
}

static struct subscription_settings from_beginning(void)
{
    return (struct subscription_settings){.cluster = cluster, .credits = 100000, .heartbeat_ms = 10000};
}

static void subscribe(struct fixture *f, const struct subscription_settings *settings)
{
    struct fault fault;

    subscription_free(f->s);
    f->s = NULL;
    memset(f->given_count, 0, sizeof f->given_count);
    assert_ok(subscription_new(&f->s, settings, f->held, f->store, f->now, &fault));
}

static void take(struct fixture *f, struct bytes message)
{
    struct arena arena = {0};
    struct subscribe_response response;
    struct fault fault;

    assert_ok(wire_subscribe_response_decode(message, &arena, &response, &fault));
    for (size_t i = 0; i < response.event_count; i++) {
        struct event_head head;

        assert_ok(wire_event_peek(response.packed_events[i], &head, &fault));
        f->given[head.partition][f->given_count[head.partition]++] = head.position;
    }
    if (response.token.len > 0)
        snprintf(f->token, sizeof f->token, "%.*s", (int)response.token.len, (const char *)response.token.data);
    arena_release(&arena);
}

/* Until it wants nothing; gives the last status. */
static enum status run(struct fixture *f)
{
    enum status status = STATUS_OK;
    uint32_t partition;
    struct fault fault;

    while (status == STATUS_OK && subscription_wants(f->s, f->now)) {
        f->out.len = 0;
        status = subscription_next(f->s, f->now, &f->out, &partition, &fault);
        take(f, buffer_bytes(&f->out));
    }
    return status;
}

static void assert_all_given(struct fixture *f, uint32_t partition, uint64_t from, uint64_t to)
{
    assert_int_equal(f->given_count[partition], to - from);
    for (uint64_t p = from; p < to; p++)
        assert_int_equal(f->given[partition][p - from], p);
}

static void refused(struct fixture *f, const struct subscription_settings *settings, const char *reason)
{
    struct subscription *s;
    struct fault fault;

    assert_status(subscription_new(&s, settings, f->held, f->store, f->now, &fault), STATUS_INVALID);
    assert_string_equal(fault.reason, reason);
}

/* ---- the tests ---- */

static void catching_up_passes_into_live_without_gap_or_double(void **state)
{
    struct fixture *f = *state;
    struct subscription_settings settings = from_beginning();

    store_events(f, 0, 1200);
    store_events(f, 2, 7);
    subscribe(f, &settings);
    assert_ok(run(f));
    for (int i = 0; i < 300; i++) {
        store_events(f, (uint32_t)i % PARTITIONS, 1 + i % 4);
        if (i % 3 == 0)
            assert_ok(run(f));
    }
    assert_ok(run(f));
    for (uint32_t p = 0; p < PARTITIONS; p++)
        assert_all_given(f, p, 0, f->stored[p]);
}

static void never_more_events_than_credits(void **state)
{
    struct fixture *f = *state;
    struct subscription_settings settings = from_beginning();

    settings.credits = 10;
    store_events(f, 1, 100);
    subscribe(f, &settings);
    assert_ok(run(f));
    assert_all_given(f, 1, 0, 10);
    subscription_credit(f->s, 5);
    assert_ok(run(f));
    assert_all_given(f, 1, 0, 15);
    subscription_credit(f->s, 1000);
    assert_ok(run(f));
    assert_all_given(f, 1, 0, 100);
}

static void a_token_goes_on_exactly_behind_what_was_given(void **state)
{
    struct fixture *f = *state;
    struct subscription_settings settings = from_beginning();
    struct buffer token = {0};

    settings.credits = 37;
    store_events(f, 0, 50);
    store_events(f, 1, 50);
    subscribe(f, &settings);
    assert_ok(run(f));
    subscription_token(f->s, &token);
    for (uint32_t p = 0; p < PARTITIONS; p++) {
        settings.credits = 1000;
        settings.from = (struct log_start){.kind = START_TOKEN, .token = buffer_bytes(&token)};
    }
    {
        size_t before[PARTITIONS];

        memcpy(before, f->given_count, sizeof before);
        subscribe(f, &settings);
        assert_ok(run(f));
        for (uint32_t p = 0; p < 2; p++)
            assert_all_given(f, p, before[p], 50);
    }
    buffer_release(&token);
}

static void a_filter_leaves_out_and_the_token_moves_all_the_same(void **state)
{
    struct fixture *f = *state;
    struct subscription_settings settings = from_beginning();
    struct bytes type = BYTES_LITERAL("rare");
    struct bytes prefix = BYTES_LITERAL("zzz");

    store_events(f, 0, 5000);
    settings.filter = (struct event_filter){.aggregate_types = &type, .aggregate_type_count = 1};
    subscribe(f, &settings);
    assert_ok(run(f));
    assert_int_equal(f->given_count[0], 1000);
    assert_int_equal(f->given[0][1], 5);
    settings.filter = (struct event_filter){.id_prefixes = &prefix, .id_prefix_count = 1};
    subscribe(f, &settings);
    assert_ok(run(f));
    f->now += 10001;
    assert_ok(run(f)); /* the heartbeat */
    assert_int_equal(f->given_count[0], 0);
    assert_non_null(strstr(f->token, ".1388-0-0."));
}

static void one_partition_alone(void **state)
{
    struct fixture *f = *state;
    struct subscription_settings settings = from_beginning();
    uint32_t partition = 1;

    for (uint32_t p = 0; p < PARTITIONS; p++)
        store_events(f, p, 20);
    settings.filter = (struct event_filter){.partitions = &partition, .partition_count = 1};
    settings.from = (struct log_start){.kind = START_TOKEN, .token = BYTES_LITERAL("1.1.5")};
    subscribe(f, &settings);
    assert_ok(run(f));
    assert_int_equal(f->given_count[0] + f->given_count[2], 0);
    assert_all_given(f, 1, 5, 20);
}

static void from_the_end_and_from_a_time(void **state)
{
    struct fixture *f = *state;
    struct subscription_settings settings = from_beginning();

    store_events(f, 0, 100);
    settings.from.kind = START_END;
    subscribe(f, &settings);
    assert_ok(run(f));
    store_events(f, 0, 3);
    assert_ok(run(f));
    assert_all_given(f, 0, 100, 103);
    settings.from = (struct log_start){.kind = START_TIME, .time_ms = 1000 + 415};
    subscribe(f, &settings);
    assert_ok(run(f));
    assert_all_given(f, 0, 42, 103);
}

static void silence_is_broken_by_a_token(void **state)
{
    struct fixture *f = *state;
    struct subscription_settings settings = from_beginning();

    settings.heartbeat_ms = 500;
    subscribe(f, &settings);
    assert_ok(run(f)); /* the first message */
    assert_int_equal(strncmp(f->token, "2.", 2), 0);
    assert_false(subscription_wants(f->s, f->now + 499));
    assert_true(subscription_wants(f->s, f->now + 500));
}

static void until_the_end_then_it_is_over(void **state)
{
    struct fixture *f = *state;
    struct subscription_settings settings = from_beginning();

    settings.until_end = true;
    store_events(f, 0, 700);
    store_events(f, 1, 1);
    subscribe(f, &settings);
    store_events(f, 0, 10); /* later: not part of it */
    assert_status(run(f), STATUS_NOT_FOUND);
    assert_all_given(f, 0, 0, 700);
    assert_all_given(f, 1, 0, 1);
    settings.limit = 5;
    subscribe(f, &settings);
    assert_status(run(f), STATUS_NOT_FOUND);
    assert_int_equal(f->given_count[0] + f->given_count[1], 5);
}

static void a_damaged_record_ends_it_and_is_never_passed_over(void **state)
{
    struct fixture *f = *state;
    struct subscription_settings settings = from_beginning();
    struct store_key key = key_event(0, BYTES_LITERAL("b-0"), 3);
    struct fault fault;
    uint32_t partition = 9;
    enum status status = STATUS_OK;

    store_events(f, 0, 40);
    subscribe(f, &settings);
    assert_true(store_memory_rot(f->store, STORE_EVENTS, key_bytes(&key), 300));
    while (status == STATUS_OK && subscription_wants(f->s, f->now))
        status = subscription_next(f->s, f->now, &f->out, &partition, &fault);
    assert_status(status, STATUS_DAMAGED);
    assert_int_equal(partition, 0);
}

static void a_hole_in_the_positions_is_damage(void **state)
{
    struct fixture *f = *state;
    struct subscription_settings settings = from_beginning();
    struct store_key key = key_position(0, 20);
    struct store_batch *batch = store_batch_new(f->store);
    struct fault fault;

    store_events(f, 0, 40);
    store_batch_delete(batch, STORE_POSITIONS, key_bytes(&key));
    assert_ok(store_write(f->store, batch, true, &fault));
    store_batch_free(batch);
    subscribe(f, &settings);
    assert_status(run(f), STATUS_DAMAGED);
}

static void a_token_ahead_of_the_store_is_told(void **state)
{
    struct fixture *f = *state;
    struct subscription_settings settings = from_beginning();
    struct buffer token = {0};
    uint64_t positions[PARTITIONS] = {5, 30, 0};

    store_events(f, 0, 10);
    store_events(f, 1, 10);
    token_write(&token, &cluster, positions);
    settings.from = (struct log_start){.kind = START_TOKEN, .token = buffer_bytes(&token)};
    subscribe(f, &settings);
    assert_int_equal(subscription_ahead(f->s, 0), 1);
    store_events(f, 1, 25); /* it only lagged */
    assert_int_equal(subscription_ahead(f->s, 0), -1);
    assert_ok(run(f));
    assert_all_given(f, 1, 30, 35);
    buffer_release(&token);
}

static void tokens_that_nobody_gave_are_refused(void **state)
{
    struct fixture *f = *state;
    struct subscription_settings settings = from_beginning();
    struct token_of other = {BYTES_LITERAL("another cluster!"), PARTITIONS};
    uint64_t positions[PARTITIONS] = {1, 2, 3};
    struct buffer token = {0};

    settings.from.kind = START_TOKEN;
    token_write(&token, &cluster, positions);
    for (size_t len = 0; len < token.len; len++) { /* cut short anywhere */
        settings.from.token = (struct bytes){token.data, len};
        refused(f, &settings, "TOKEN_INVALID");
    }
    token.data[token.len - 12] ^= 1; /* a position forged */
    settings.from.token = buffer_bytes(&token);
    refused(f, &settings, "TOKEN_INVALID");
    token.len = 0;
    token_write(&token, &other, positions);
    settings.from.token = buffer_bytes(&token);
    refused(f, &settings, "TOKEN_OF_ANOTHER_CLUSTER");
    settings.from.token = BYTES_LITERAL("7.1234");
    refused(f, &settings, "TOKEN_VERSION");
    settings.from.token = BYTES_LITERAL("1.3.0");
    refused(f, &settings, "TOKEN_OF_ANOTHER_CLUSTER");
    settings.from.token = BYTES_LITERAL("1.0.5");
    refused(f, &settings, "TOKEN_OF_ONE_PARTITION");
    buffer_release(&token);
}

static void a_filter_for_a_partition_that_isnt_is_refused(void **state)
{
    struct fixture *f = *state;
    struct subscription_settings settings = from_beginning();
    uint32_t partition = PARTITIONS;

    settings.filter = (struct event_filter){.partitions = &partition, .partition_count = 1};
    refused(f, &settings, "FILTER_NEVER_MATCHES");
}

/* Another subscription plays the node that has partition 2. */
static void foreign_partitions_come_from_a_source_in_order(void **state)
{
    struct fixture *f = *state;
    struct subscription_settings settings = from_beginning();
    struct subscription *source;
    struct foreign *foreign;
    struct buffer page = {0};
    uint32_t two = 2, partition;
    struct fault fault;
    bool all[PARTITIONS] = {true, true, true};

    for (uint32_t p = 0; p < PARTITIONS; p++)
        store_events(f, p, 60);
    f->held[2] = false;
    settings.credits = 150;
    subscribe(f, &settings);
    foreign = subscription_foreign(f->s, &two, 1);
    settings.filter = (struct event_filter){.partitions = &two, .partition_count = 1};
    settings.credits = 1000;
    assert_ok(subscription_new(&source, &settings, all, f->store, f->now, &fault));
    assert_ok(subscription_next(source, f->now, &page, &partition, &fault));
    assert_ok(foreign_take(foreign, buffer_bytes(&page), &fault));
    assert_ok(foreign_take(foreign, buffer_bytes(&page), &fault)); /* a source that repeats itself */
    assert_ok(run(f));
    subscription_credit(f->s, 1000);
    assert_ok(run(f));
    for (uint32_t p = 0; p < PARTITIONS; p++)
        assert_all_given(f, p, 0, 60);
    assert_int_equal(foreign_given(foreign), 120);
    assert_int_equal(foreign_waiting(foreign), 0);
    buffer_release(&page);
    subscription_free(source);
}

static void no_token_before_every_source_has_said_where_the_end_is(void **state)
{
    struct fixture *f = *state;
    struct subscription_settings settings = from_beginning();
    uint32_t two = 2;
    uint64_t positions[PARTITIONS] = {0, 0, 55};
    struct buffer token = {0}, message = {0};
    struct foreign *foreign;
    struct fault fault;

    store_events(f, 0, 10);
    f->held[2] = false;
    settings.from.kind = START_END;
    subscribe(f, &settings);
    foreign = subscription_foreign(f->s, &two, 1);
    assert_ok(run(f));
    assert_string_equal(f->token, "");
    token_write(&token, &cluster, positions);
    wire_subscribe_response_token(&message, buffer_bytes(&token));
    assert_ok(foreign_take(foreign, buffer_bytes(&message), &fault));
    assert_ok(run(f));
    assert_non_null(strstr(f->token, ".a-0-37."));
    buffer_release(&token);
    buffer_release(&message);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(catching_up_passes_into_live_without_gap_or_double),
        TEST(never_more_events_than_credits),
        TEST(a_token_goes_on_exactly_behind_what_was_given),
        TEST(a_filter_leaves_out_and_the_token_moves_all_the_same),
        TEST(one_partition_alone),
        TEST(from_the_end_and_from_a_time),
        TEST(silence_is_broken_by_a_token),
        TEST(until_the_end_then_it_is_over),
        TEST(a_damaged_record_ends_it_and_is_never_passed_over),
        TEST(a_hole_in_the_positions_is_damage),
        TEST(a_token_ahead_of_the_store_is_told),
        TEST(tokens_that_nobody_gave_are_refused),
        TEST(a_filter_for_a_partition_that_isnt_is_refused),
        TEST(foreign_partitions_come_from_a_source_in_order),
        TEST(no_token_before_every_source_has_said_where_the_end_is),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

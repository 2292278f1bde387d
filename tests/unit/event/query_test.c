/* Questions over a store that the test fills, and another node that the test plays. */
#include "check.h"
#include "event/query.h"

enum { PARTITIONS = 3 };

static const struct token_of cluster = {BYTES_LITERAL("0123456789abcdef"), PARTITIONS};

struct fixture {
    struct store *store;
    struct store_batch *batch;
    uint64_t next[PARTITIONS];
    int64_t time_ms;
};

static int set_up(void **state)
{
    struct fixture *f = memory_zero(1, sizeof *f);

    assert_ok(store_open_memory(&f->store));
    f->batch = store_batch_new(f->store);
    f->time_ms = 1000;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    store_batch_free(f->batch);
    store_free(f->store);
    free(f);
    return 0;
}

static void pack(struct fixture *f, struct buffer *out, uint32_t partition, const char *id, uint64_t sequence,
                 const char *type, uint64_t position)
{
    struct event event = {.aggregate_type = BYTES_LITERAL("tree"),
                          .aggregate_id = bytes_of(id),
                          .sequence = sequence,
                          .partition = partition,
                          .position = position,
                          .type = bytes_of(type),
                          .time_ms = f->time_ms++};

    wire_event_pack(out, &event);
}

static void put(struct fixture *f, uint32_t partition, const char *id, uint64_t sequence, const char *type)
{
    struct store_key key = key_event((uint16_t)partition, bytes_of(id), sequence);
    struct buffer out = {0};
    struct fault fault;

    pack(f, &out, partition, id, sequence, type, f->next[partition]);
    store_batch_put(f->batch, STORE_EVENTS, key_bytes(&key), buffer_bytes(&out));
    out.len = 0;
    buffer_add(&out, &sequence, sizeof sequence);
    buffer_add(&out, id, strlen(id));
    key = key_position((uint16_t)partition, f->next[partition]++);
    store_batch_put(f->batch, STORE_POSITIONS, key_bytes(&key), buffer_bytes(&out));
    assert_ok(store_write(f->store, f->batch, true, &fault));
    buffer_release(&out);
}

static struct query *ask(struct fixture *f, const struct query_request *request, const bool *held)
{
    static const bool all[PARTITIONS] = {true, true, true};
    struct query *query;
    struct fault fault;

    assert_ok(query_new(&query, request, &cluster, held == NULL ? all : held, f->store, &fault));
    return query;
}

/* What is given, as "id " or "type=count ", until the end or until it waits. True at the end. */
static bool gather(struct query *query, struct buffer *text)
{
    enum status status = STATUS_OK;

    while (status == STATUS_OK && query_wants(query)) {
        struct buffer out = {0};
        struct arena arena = {0};
        struct subscribe_response response;
        struct fault fault;
        uint32_t partition;

        status = query_next(query, &out, &partition, &fault);
        assert_true(status == STATUS_OK || status == STATUS_NOT_FOUND);
        assert_ok(wire_subscribe_response_decode(buffer_bytes(&out), &arena, &response, &fault));
        for (size_t i = 0; i < response.event_count; i++) {
            struct event_head head;

            assert_ok(wire_event_peek(response.packed_events[i], &head, &fault));
            if (head.aggregate_id.len > 0)
                buffer_printf(text, "%.*s ", (int)head.aggregate_id.len, (const char *)head.aggregate_id.data);
            else
                buffer_printf(text, "%.*s=%llu ", (int)head.type.len, (const char *)head.type.data,
                              (unsigned long long)head.position);
        }
        arena_release(&arena);
        buffer_release(&out);
    }
    return status == STATUS_NOT_FOUND;
}

static void check(struct query *query, const char *expected)
{
    struct buffer text = {0};

    assert_true(gather(query, &text));
    buffer_printf(&text, "%s", "");
    assert_int_equal(text.len, strlen(expected));
    assert_memory_equal(text.len == 0 ? (const void *)"" : text.data, expected, text.len);
    buffer_release(&text);
    query_free(query);
}

static void fill(struct fixture *f)
{
    put(f, 0, "a", 0, "Grew");
    put(f, 1, "d", 0, "Grew");
    put(f, 2, "c", 0, "Bloomed");
    put(f, 0, "b", 0, "Grew");
    put(f, 0, "a", 1, "Bloomed");
    put(f, 2, "ca", 0, "Grew");
}

/* ---- the tests ---- */

static void the_newest_come_first_across_partitions(void **state)
{
    struct fixture *f = *state;
    struct query_request request = {.kind = QUERY_BACKWARDS, .from = {.kind = START_END}};
    struct bytes grew = BYTES_LITERAL("Grew");

    fill(f);
    check(ask(f, &request, NULL), "ca a b c d a ");
    request.limit = 2;
    check(ask(f, &request, NULL), "ca a ");
    request.limit = 0;
    request.filter.event_types = &grew;
    request.filter.event_type_count = 1;
    check(ask(f, &request, NULL), "ca b d a ");
    request.from = (struct log_start){.kind = START_TIME, .time_ms = 1003};
    check(ask(f, &request, NULL), "d a ");
    request.from = (struct log_start){.kind = START_BEGINNING};
    check(ask(f, &request, NULL), "");
}

static void aggregates_come_in_order_and_once(void **state)
{
    struct fixture *f = *state;
    struct query_request request = {.kind = QUERY_AGGREGATES};
    struct bytes prefix = BYTES_LITERAL("c");
    struct bytes two[] = {BYTES_LITERAL("a"), BYTES_LITERAL("d")};

    fill(f);
    check(ask(f, &request, NULL), "a b c ca d ");
    request.after = BYTES_LITERAL("b");
    request.limit = 2;
    check(ask(f, &request, NULL), "c ca ");
    request = (struct query_request){.kind = QUERY_AGGREGATES, .filter = {.id_prefixes = &prefix, .id_prefix_count = 1}};
    check(ask(f, &request, NULL), "c ca ");
    request.after = BYTES_LITERAL("a"); /* before the prefix */
    check(ask(f, &request, NULL), "c ca ");
    request.after = BYTES_LITERAL("c");
    check(ask(f, &request, NULL), "ca ");
    request = (struct query_request){.kind = QUERY_AGGREGATES, .filter = {.id_prefixes = two, .id_prefix_count = 2}};
    check(ask(f, &request, NULL), "a d ");
}

static void events_are_counted_by_type(void **state)
{
    struct fixture *f = *state;
    struct query_request request = {.kind = QUERY_COUNT};
    struct bytes prefix = BYTES_LITERAL("c");

    check(ask(f, &request, NULL), "");
    fill(f);
    check(ask(f, &request, NULL), "Bloomed=2 Grew=4 ");
    request.filter = (struct event_filter){.id_prefixes = &prefix, .id_prefix_count = 1};
    check(ask(f, &request, NULL), "Bloomed=1 Grew=1 ");
}

static void a_prefix_of_the_highest_bytes_ends_with_its_partition(void **state)
{
    struct fixture *f = *state;
    struct query_request request = {.kind = QUERY_AGGREGATES};
    struct bytes prefix = BYTES_LITERAL("\xF4\x8F\xBF\xBF");

    fill(f);
    put(f, 1, "\xF4\x8F\xBF\xBF", 0, "Grew");
    request.filter = (struct event_filter){.id_prefixes = &prefix, .id_prefix_count = 1};
    check(ask(f, &request, NULL), "\xF4\x8F\xBF\xBF ");
}

/* Partition 2 is another node's. */
static void another_node_is_waited_for_and_merged(void **state)
{
    static const bool held[PARTITIONS] = {true, true, false};
    struct fixture *f = *state;
    struct query_request request = {.kind = QUERY_BACKWARDS, .from = {.kind = START_END}};
    struct query *query;
    struct query_source *source;
    struct buffer text = {0}, message = {0}, event = {0};
    struct fault fault;

    fill(f);
    query = ask(f, &request, held);
    assert_false(query_includes(query, PARTITIONS - 1) && held[PARTITIONS - 1]);
    source = query_foreign(query);
    assert_false(gather(query, &text));
    assert_int_equal(text.len, 0);
    f->time_ms = 1003; /* between what is here */
    pack(f, &event, 2, "x", 0, "Grew", 5);
    wire_subscribe_response_add(&message, buffer_bytes(&event));
    assert_ok(query_take(source, buffer_bytes(&message), &fault));
    assert_false(gather(query, &text)); /* as far as x, behind which it may say more */
    query_source_ended(source);
    assert_true(gather(query, &text));
    buffer_printf(&text, "%s", "");
    assert_int_equal(text.len, strlen("a x b d a "));
    assert_memory_equal(text.data, "a x b d a ", text.len);
    query_free(query);
    buffer_release(&text);
    buffer_release(&message);
    buffer_release(&event);
}

static void a_long_log_is_looked_at_in_parts(void **state)
{
    struct fixture *f = *state;
    struct query_request request = {.kind = QUERY_BACKWARDS, .from = {.kind = START_END}};
    struct bytes rare = BYTES_LITERAL("Rare");
    struct buffer out = {0};
    struct fault fault;
    struct query *query;
    uint32_t partition;

    put(f, 0, "a", 0, "Rare");
    for (uint64_t i = 1; i < SUBSCRIPTION_SCAN_EVENTS + 10; i++)
        put(f, 0, "a", i, "Grew");
    request.filter = (struct event_filter){.event_types = &rare, .event_type_count = 1};
    query = ask(f, &request, NULL);
    assert_ok(query_next(query, &out, &partition, &fault));
    assert_int_equal(out.len, 0);
    assert_true(query_wants(query));
    check(query, "a ");
    buffer_release(&out);
}

static void damage_is_told_with_its_partition(void **state)
{
    struct fixture *f = *state;
    struct query_request request = {.kind = QUERY_BACKWARDS, .from = {.kind = START_END}};
    struct store_key key = key_event(1, BYTES_LITERAL("d"), 0);
    struct buffer out = {0};
    struct fault fault;
    struct query *query;
    uint32_t partition = 9;

    fill(f);
    assert_true(store_memory_rot(f->store, STORE_EVENTS, key_bytes(&key), 100));
    query = ask(f, &request, NULL);
    assert_int_equal(query_next(query, &out, &partition, &fault), STATUS_DAMAGED);
    assert_int_equal(partition, 1);
    query_free(query);
    buffer_release(&out);
}

static void what_cannot_match_is_refused(void **state)
{
    struct fixture *f = *state;
    const uint32_t none = PARTITIONS;
    static const bool held[PARTITIONS] = {true, true, true};
    struct query_request request = {.kind = QUERY_COUNT, .filter = {.partitions = &none, .partition_count = 1}};
    struct query *query;
    struct fault fault;

    assert_int_equal(query_new(&query, &request, &cluster, held, f->store, &fault), STATUS_INVALID);
    assert_string_equal(fault.reason, "FILTER_NEVER_MATCHES");
    request = (struct query_request){.kind = QUERY_BACKWARDS,
                                     .from = {.kind = START_TOKEN, .token = BYTES_LITERAL("2.x.y")}};
    assert_int_equal(query_new(&query, &request, &cluster, held, f->store, &fault), STATUS_INVALID);
    request.from.token = BYTES_LITERAL("1.1.5");
    assert_int_equal(query_new(&query, &request, &cluster, held, f->store, &fault), STATUS_INVALID);
    assert_string_equal(fault.reason, "TOKEN_OF_ONE_PARTITION");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_newest_come_first_across_partitions),
        TEST(aggregates_come_in_order_and_once),
        TEST(events_are_counted_by_type),
        TEST(a_prefix_of_the_highest_bytes_ends_with_its_partition),
        TEST(another_node_is_waited_for_and_merged),
        TEST(a_long_log_is_looked_at_in_parts),
        TEST(damage_is_told_with_its_partition),
        TEST(what_cannot_match_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Subscribing processors on the local bus: a publication is done once, in order, within bounds. */
#include "check.h"
#include "event/bus.h"

enum { PARTITIONS = 4, EVENTS = 4096, MEMBERS = 3, DONE = 4096 };

struct player {
    uint64_t got[PARTITIONS][EVENTS];
    size_t count[PARTITIONS];
    char dismissed[64];
};

struct fixture {
    struct bus *bus;
    uint64_t now;
    struct player players[MEMBERS];
    uint64_t position[PARTITIONS];
    unsigned done[DONE]; /* by ticket */
    size_t failures[DONE];
    char reason[128];
    bool timed_out;
};

static void on_deliver(void *context, void *member, uint32_t partition, const struct bytes *events, size_t count)
{
    struct player *p = member;

    (void)context;
    for (size_t i = 0; i < count; i++) {
        struct event_head head;
        struct fault fault;

        assert_ok(wire_event_peek(events[i], &head, &fault));
        assert_int_equal(head.partition, partition);
        p->got[partition][p->count[partition]++] = head.position;
    }
}

static void on_dismiss(void *context, void *member, const struct fault *fault)
{
    struct player *p = member;

    (void)context;
    snprintf(p->dismissed, sizeof p->dismissed, "%s", fault->reason);
}

static void on_done(void *context, void *publisher, uint32_t partition, uint64_t ticket,
                    const struct processing_failure *failures, size_t count)
{
    struct fixture *f = context;

    assert_ptr_equal(publisher, f);
    (void)partition;
    f->done[ticket]++;
    f->failures[ticket] = count;
    if (count > 0) {
        snprintf(f->reason, sizeof f->reason, "%.*s", (int)failures[0].reason.len,
                 (const char *)failures[0].reason.data);
        f->timed_out = failures[0].timed_out;
    }
}

static int set_up(void **state)
{
    struct fixture *f = memory_zero(1, sizeof *f);
    struct bus_effects effects = {f, on_deliver, on_dismiss, on_done};

    f->now = 1000;
    f->bus = bus_new(&effects, PARTITIONS);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    struct fault fault;

    (void)fault_set(&fault, STATUS_UNAVAILABLE, "END", "the end");
    bus_dismiss_all(f->bus, &fault);
    bus_free(f->bus);
    free(f);
    return 0;
}

static struct process_request joining(const char *group, const char *member)
{
    return (struct process_request){.kind = PROCESS_JOIN,
                                    .group = bytes_of(group),
                                    .member = bytes_of(member),
                                    .subscribing = true,
                                    .report_failure = true};
}

static void join(struct fixture *f, int player, const struct process_request *request)
{
    struct fault fault;

    assert_ok(bus_join(f->bus, &f->players[player], request, f->now, &fault));
}

static void publish_bytes(struct fixture *f, uint64_t ticket, uint32_t partition, size_t events, const char *type,
                          struct bytes data)
{
    struct bytes packed[16];
    struct buffer buffers[16] = {0};

    for (size_t i = 0; i < events; i++) {
        struct event event = {.aggregate_type = BYTES_LITERAL("order"),
                              .aggregate_id = BYTES_LITERAL("A"),
                              .partition = partition,
                              .position = f->position[partition]++,
                              .type = bytes_of(type),
                              .payload = {PAYLOAD_DATA, data}};

        wire_event_pack(&buffers[i], &event);
        packed[i] = buffer_bytes(&buffers[i]);
    }
    bus_publish(f->bus, f, partition, ticket, packed, events, f->now);
    for (size_t i = 0; i < events; i++)
        buffer_release(&buffers[i]);
}

static void publish(struct fixture *f, uint64_t ticket, uint32_t partition, size_t events)
{
    publish_bytes(f, ticket, partition, events, "Placed", BYTES_LITERAL("x"));
}

static enum status acknowledge(struct fixture *f, int player, uint32_t partition, uint64_t position, bool up_to)
{
    struct process_request request = {
        .kind = PROCESS_ACKNOWLEDGE, .partition = partition, .position = position, .up_to = up_to};
    struct fault fault;

    return bus_acknowledge(f->bus, &f->players[player], &request, f->now, &fault);
}

/* ---- the tests ---- */

static void nobody_listens(void **state)
{
    struct fixture *f = *state;

    publish(f, 1, 0, 2);
    assert_int_equal(f->done[1], 1);
}

static void done_when_all_groups_have_acknowledged(void **state)
{
    struct fixture *f = *state;
    struct process_request mail = joining("mail", "m");
    struct process_request audit = joining("audit", "m");

    join(f, 0, &mail);
    join(f, 1, &audit);
    publish(f, 1, 0, 2);
    assert_int_equal(f->players[0].count[0], 2);
    assert_ok(acknowledge(f, 0, 0, 1, true));
    assert_int_equal(f->done[1], 0);
    assert_ok(acknowledge(f, 1, 0, 1, false)); /* out of order, one by one */
    assert_int_equal(f->done[1], 0);
    assert_ok(acknowledge(f, 1, 0, 0, false));
    assert_int_equal(f->done[1], 1);
    assert_int_equal(f->failures[1], 0);
    assert_ok(acknowledge(f, 1, 0, 0, false)); /* twice */
    assert_int_equal(f->done[1], 1);
    assert_int_equal(bus_counts(f->bus).waiting, 0);
}

static void a_filter_that_does_not_fit_is_not_waited_for(void **state)
{
    struct fixture *f = *state;
    struct process_request mail = joining("mail", "m");
    struct bytes types[] = {BYTES_LITERAL("Paid")};

    mail.filter.event_types = types;
    mail.filter.event_type_count = 1;
    join(f, 0, &mail);
    publish(f, 1, 0, 1);
    assert_int_equal(f->done[1], 1);
    publish_bytes(f, 2, 0, 1, "Paid", BYTES_LITERAL("x"));
    assert_int_equal(f->done[2], 0);
    assert_ok(acknowledge(f, 0, 0, 1, true));
    assert_int_equal(f->done[2], 1);
}

static void a_group_that_is_not_waited_for(void **state)
{
    struct fixture *f = *state;
    struct process_request mail = joining("mail", "m");

    mail.no_wait = true;
    join(f, 0, &mail);
    publish(f, 1, 0, 1);
    assert_int_equal(f->done[1], 1);
    assert_int_equal(f->players[0].count[0], 1);
    assert_ok(acknowledge(f, 0, 0, 0, true));
    assert_int_equal(f->done[1], 1);
}

static void lateness_is_reported_once(void **state)
{
    struct fixture *f = *state;
    struct process_request mail = joining("mail", "m");

    mail.wait_ms = 200;
    join(f, 0, &mail);
    publish(f, 1, 0, 2);
    f->now += 199;
    bus_tick(f->bus, f->now);
    assert_int_equal(f->done[1], 0);
    f->now += 60;
    bus_tick(f->bus, f->now);
    assert_int_equal(f->done[1], 1);
    assert_int_equal(f->failures[1], 1);
    assert_true(f->timed_out);
    assert_ok(acknowledge(f, 0, 0, 1, true)); /* late, and fine */
    assert_int_equal(f->done[1], 1);
    assert_int_equal(bus_counts(f->bus).late, 2);
}

static void a_failure_is_reported_when_the_group_says_so(void **state)
{
    struct fixture *f = *state;
    struct process_request mail = joining("mail", "m");
    struct process_request quiet = joining("quiet", "m");
    struct process_request fail = {.kind = PROCESS_FAIL, .reason = BYTES_LITERAL("no smtp")};
    struct fault fault;

    quiet.report_failure = false;
    join(f, 0, &mail);
    join(f, 1, &quiet);
    publish(f, 1, 0, 1);
    assert_ok(bus_fail(f->bus, &f->players[1], &fail, f->now, &fault));
    assert_int_equal(f->done[1], 0);
    assert_ok(bus_fail(f->bus, &f->players[0], &fail, f->now, &fault));
    assert_int_equal(f->done[1], 1);
    assert_int_equal(f->failures[1], 1);
    assert_string_equal(f->reason, "no smtp");
    assert_false(f->timed_out);
}

static void another_member_takes_over_in_order(void **state)
{
    struct fixture *f = *state;
    struct process_request first = joining("mail", "a");
    struct process_request second = joining("mail", "b");

    first.window = second.window = 2;
    join(f, 0, &first);
    publish(f, 1, 1, 3); /* two given, one waits */
    join(f, 1, &second);
    publish(f, 2, 1, 1); /* behind the others, at whoever has them */
    assert_int_equal(f->players[0].count[1], 2);
    assert_int_equal(f->players[1].count[1], 0);
    assert_ok(acknowledge(f, 0, 1, 0, true));
    assert_int_equal(f->players[0].count[1], 3);
    bus_leave(f->bus, &f->players[0], f->now);
    assert_int_equal(f->players[1].count[1], 2);
    assert_int_equal(f->players[1].got[1][0], 1); /* what the other held, again */
    assert_ok(acknowledge(f, 1, 1, 2, true));
    assert_int_equal(f->done[1], 1);
    assert_int_equal(f->failures[1], 0);
    assert_ok(acknowledge(f, 1, 1, 3, true));
    assert_int_equal(f->done[2], 1);
    assert_int_equal(bus_counts(f->bus).redelivered, 2);
}

static void the_last_member_takes_the_events_with_it(void **state)
{
    struct fixture *f = *state;
    struct process_request mail = joining("mail", "a");

    join(f, 0, &mail);
    publish(f, 1, 1, 3);
    bus_leave(f->bus, &f->players[0], f->now);
    assert_int_equal(f->done[1], 1);
    assert_int_equal(f->failures[1], 1);
    publish(f, 2, 1, 3);
    assert_int_equal(f->done[2], 1);
    assert_int_equal(f->failures[2], 0);
}

static void a_slow_member_is_dismissed(void **state)
{
    struct fixture *f = *state;
    struct process_request mail = joining("mail", "a");
    uint8_t *big = memory_zero(1, 1 << 20);

    mail.no_wait = true;
    mail.window = 1;
    join(f, 0, &mail);
    for (uint64_t i = 1; i <= 17; i++)
        publish_bytes(f, i, 0, 1, "Placed", (struct bytes){big, 1 << 20});
    assert_string_equal(f->players[0].dismissed, "TOO_SLOW");
    assert_int_equal(bus_counts(f->bus).members, 0);
    free(big);
}

static void a_stuck_member_is_dismissed(void **state)
{
    struct fixture *f = *state;
    struct process_request mail = joining("mail", "a");

    mail.ack_timeout_ms = 1000;
    join(f, 0, &mail);
    publish(f, 1, 0, 1);
    f->now += 1001;
    bus_tick(f->bus, f->now);
    assert_string_equal(f->players[0].dismissed, "ACK_TIMEOUT");
    assert_int_equal(f->done[1], 1);
}

static void a_member_of_the_same_name_takes_the_place(void **state)
{
    struct fixture *f = *state;
    struct process_request mail = joining("mail", "a");

    join(f, 0, &mail);
    publish(f, 1, 0, 1);
    join(f, 1, &mail);
    assert_string_equal(f->players[0].dismissed, "MEMBER_REPLACED");
    assert_int_equal(f->players[1].count[0], 1);
    assert_int_not_equal(acknowledge(f, 0, 0, 0, true), STATUS_OK);
    assert_ok(acknowledge(f, 1, 0, 0, true));
    assert_int_equal(f->done[1], 1);
    assert_int_equal(f->failures[1], 0);
}

static void what_was_never_given_is_refused(void **state)
{
    struct fixture *f = *state;
    struct process_request mail = joining("mail", "a");
    struct process_request other = joining("mail", "b");
    struct fault fault;

    join(f, 0, &mail);
    publish(f, 1, 0, 1);
    assert_int_equal(acknowledge(f, 0, 0, 1, true), STATUS_INVALID);
    assert_int_equal(acknowledge(f, 0, PARTITIONS, 0, true), STATUS_INVALID);
    other.report_failure = false;
    assert_int_equal(bus_join(f->bus, &f->players[1], &other, f->now, &fault), STATUS_INVALID);
    assert_string_equal(fault.reason, "SETTINGS_DIFFER");
    assert_int_equal(f->done[1], 0);
}

static void what_is_forgotten_is_not_told(void **state)
{
    struct fixture *f = *state;
    struct process_request mail = joining("mail", "a");

    join(f, 0, &mail);
    publish(f, 1, 0, 1);
    bus_forget(f->bus, f, 0, 1);
    assert_ok(acknowledge(f, 0, 0, 0, true));
    assert_int_equal(f->done[1], 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(nobody_listens),
        TEST(done_when_all_groups_have_acknowledged),
        TEST(a_filter_that_does_not_fit_is_not_waited_for),
        TEST(a_group_that_is_not_waited_for),
        TEST(lateness_is_reported_once),
        TEST(a_failure_is_reported_when_the_group_says_so),
        TEST(another_member_takes_over_in_order),
        TEST(the_last_member_takes_the_events_with_it),
        TEST(a_slow_member_is_dismissed),
        TEST(a_stuck_member_is_dismissed),
        TEST(a_member_of_the_same_name_takes_the_place),
        TEST(what_was_never_given_is_refused),
        TEST(what_is_forgotten_is_not_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

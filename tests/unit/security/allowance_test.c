/* What one identity may have under way, and how often it may ask. */
#include "check.h"
#include "security/security.h"

static void what_is_over_makes_room(void **state)
{
    struct allowance *a = allowance_new("cn:a");
    struct limits limits = {.under_way = {[USE_CALL] = 2, [USE_STREAM] = 1}};
    struct fault fault;

    (void)state;
    assert_ok(allowance_begin(a, USE_CALL, &limits, 1, &fault));
    assert_ok(allowance_begin(a, USE_CALL, &limits, 1, &fault));
    assert_status(allowance_begin(a, USE_CALL, &limits, 1, &fault), STATUS_EXHAUSTED);
    assert_string_equal(fault.reason, "IN_FLIGHT_LIMITED");
    assert_non_null(strstr(fault.message, "cn:a has 2 calls in flight"));
    assert_ok(allowance_begin(a, USE_STREAM, &limits, 1, &fault)); /* counted apart */
    assert_status(allowance_begin(a, USE_STREAM, &limits, 1, &fault), STATUS_EXHAUSTED);
    assert_string_equal(fault.reason, "STREAMS_LIMITED");
    allowance_end(a, USE_CALL);
    assert_ok(allowance_begin(a, USE_CALL, &limits, 1, &fault));
    assert_status(allowance_begin(a, USE_CALL, &limits, 1, &fault), STATUS_EXHAUSTED);
    allowance_drop(a);
}

static void no_more_than_the_rate_in_any_second(void **state)
{
    struct allowance *a = allowance_new("cn:a");
    struct limits limits = {.rate = 100};
    struct fault fault;
    uint64_t taken = 0;

    (void)state;
    for (uint64_t now = 1000; now < 11000; now++) /* ten times as often as it may */
        taken += allowance_begin(a, USE_CALL, &limits, now, &fault) == STATUS_OK;
    assert_in_range(taken, 1090, 1100); /* ten seconds, and what was in the bucket */
    assert_string_equal(fault.reason, "RATE_LIMITED");
    assert_in_range(fault.retry_ms, 1, 10);
    taken = 0;
    for (int i = 0; i < 1000; i++) /* after a pause as much as in a second, at once */
        taken += allowance_begin(a, USE_CALL, &limits, 100000, &fault) == STATUS_OK;
    assert_int_equal(taken, 100);
    assert_status(allowance_begin(a, USE_CALL, &limits, 100000, &fault), STATUS_EXHAUSTED);
    assert_status(allowance_begin(a, USE_CALL, &limits, 99999, &fault), STATUS_EXHAUSTED); /* read before, came later */
    assert_ok(allowance_begin(a, USE_CALL, &limits, 100000 + fault.retry_ms, &fault)); /* as it was told */
    allowance_drop(a);
}

static void without_limits_all_is_taken(void **state)
{
    struct allowance *a = allowance_new("cn:a");
    struct limits none = {0};
    struct fault fault;

    (void)state;
    for (int i = 0; i < 100000; i++)
        assert_ok(allowance_begin(a, i % 2 == 0 ? USE_CALL : USE_STREAM, &none, 1, &fault));
    allowance_drop(a);
}

static void one_is_freed_by_who_drops_it_last(void **state)
{
    struct allowance *a = allowance_new("cn:a");

    (void)state;
    assert_true(allowance_is_unused(a));
    assert_false(allowance_is_unused(allowance_hold(a)));
    allowance_drop(a);
    assert_true(allowance_is_unused(a));
    allowance_drop(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_over_makes_room),
        cmocka_unit_test(no_more_than_the_rate_in_any_second),
        cmocka_unit_test(without_limits_all_is_taken),
        cmocka_unit_test(one_is_freed_by_who_drops_it_last),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

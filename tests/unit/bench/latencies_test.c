/* Buckets are as fine as they promise, and percentiles are those of the values. */
#include "check.h"
#include "latencies.h"

static void a_latency_is_known_to_within_a_part_in_128(void **state)
{
    (void)state;
    for (uint64_t us = 0; us < 1ULL << 40; us += 1 + us / 97) {
        struct latencies all = {0};
        uint64_t said;

        latencies_add(&all, us);
        latencies_add(&all, UINT64_MAX / 4); /* so that the longest doesn't hide the bucket's end */
        said = latencies_at(&all, 500);
        assert_true(said >= us);
        assert_true(said - us <= us / 128);
    }
}

static void buckets_follow_each_other_without_a_gap(void **state)
{
    uint64_t before = latency_bucket_end(0);

    (void)state;
    assert_int_equal(before, 0);
    for (size_t i = 1; i < LATENCY_BUCKETS; i++) {
        struct latencies all = {0};

        latencies_add(&all, before + 1);
        assert_int_equal(all.buckets[i], 1);
        assert_true(latency_bucket_end(i) > before);
        before = latency_bucket_end(i);
        latencies_add(&all, before);
        assert_int_equal(all.buckets[i], 2);
    }
}

static void percentiles_are_those_of_the_values(void **state)
{
    struct latencies all = {0};

    (void)state;
    assert_int_equal(latencies_at(&all, 500), 0);
    for (uint64_t us = 1; us <= 100; us++)
        latencies_add(&all, us);
    assert_int_equal(latencies_at(&all, 0), 1);
    assert_int_equal(latencies_at(&all, 500), 50);
    assert_int_equal(latencies_at(&all, 990), 99);
    assert_int_equal(latencies_at(&all, 1000), 100);
    latencies_add(&all, 1000000);
    assert_int_equal(latencies_at(&all, 1000), 1000000);
    assert_int_equal(all.longest_us, 1000000);
    assert_int_equal(all.sum_us, 5050 + 1000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_latency_is_known_to_within_a_part_in_128),
        cmocka_unit_test(buckets_follow_each_other_without_a_gap),
        cmocka_unit_test(percentiles_are_those_of_the_values),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

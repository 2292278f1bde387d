/*
 * Latencies by the way of HdrHistogram: log-linear buckets, so that each is known to within 1/128 of itself, however
 * long the tail, in a fixed 35 KiB.
 */
#ifndef CAIRN_BENCH_LATENCIES_H
#define CAIRN_BENCH_LATENCIES_H

#include <stddef.h>
#include <stdint.h>

enum { LATENCY_BUCKETS = 35 * 128 }; /* up to 2^41 microseconds */

struct latencies {
    uint64_t buckets[LATENCY_BUCKETS];
    uint64_t count;
    uint64_t longest_us; /* exact */
    uint64_t sum_us;
};

void latencies_add(struct latencies *all, uint64_t us);
/* The latency that so many thousandths of all don't exceed; 0 of none. */
uint64_t latencies_at(const struct latencies *all, double per_mille);
/* The largest value that goes into the bucket. */
uint64_t latency_bucket_end(size_t bucket);

#endif

/* Buckets 0 to 127 are one microsecond wide, each following 128 twice as wide as those before. */
#include "latencies.h"

enum { LINEAR = 128, LINEAR_BITS = 7 };

static size_t bucket_of(uint64_t us)
{
    size_t bits, bucket;

    if (us < LINEAR)
        return (size_t)us;
    bits = 63 - (size_t)__builtin_clzll(us);
    bucket = (bits - LINEAR_BITS + 1) * LINEAR + (size_t)(us >> (bits - LINEAR_BITS)) - LINEAR;
    return bucket < LATENCY_BUCKETS ? bucket : LATENCY_BUCKETS - 1;
}

uint64_t latency_bucket_end(size_t bucket)
{
    size_t shift = bucket < LINEAR ? 0 : bucket / LINEAR - 1;

    return bucket < LINEAR ? bucket : (((uint64_t)(bucket % LINEAR + LINEAR) + 1) << shift) - 1;
}

void latencies_add(struct latencies *all, uint64_t us)
{
    all->buckets[bucket_of(us)]++;
    all->count++;
    all->sum_us += us;
    if (us > all->longest_us)
        all->longest_us = us;
}

uint64_t latencies_at(const struct latencies *all, double per_mille)
{
    uint64_t wanted = (uint64_t)((double)all->count * per_mille / 1000.0 + 0.5);
    uint64_t seen = 0;

    if (wanted == 0)
        wanted = 1;
    for (size_t i = 0; all->count > 0 && i < LATENCY_BUCKETS; i++) {
        seen += all->buckets[i];
        if (seen >= wanted)
            return latency_bucket_end(i) < all->longest_us ? latency_bucket_end(i) : all->longest_us;
    }
    return all->longest_us;
}

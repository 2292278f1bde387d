/* Clocks, kernel randomness and the hash. */
#include <sys/random.h>
#include <time.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base.h"

static uint64_t monotonic_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000U + (uint64_t)t.tv_nsec;
}

uint64_t clock_monotonic_ms(void)
{
    return monotonic_ns() / 1000000;
}

uint64_t clock_monotonic_us(void)
{
    return monotonic_ns() / 1000;
}

int64_t clock_wall_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void clock_stamp(int64_t wall_ms, char out[CLOCK_STAMP_ROOM])
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm when;
    size_t len;

    gmtime_r(&seconds, &when);
    len = strftime(out, CLOCK_STAMP_ROOM, "%Y-%m-%dT%H:%M:%S", &when);
    snprintf(out + len, CLOCK_STAMP_ROOM - len, ".%03dZ", (int)(wall_ms % 1000));
}

uint64_t random_u64(void)
{
    uint64_t value = 0;

    while (getrandom(&value, sizeof value, 0) != sizeof value)
        continue;
    return value;
}

uint64_t hash_bytes(struct bytes b)
{
    return XXH3_64bits(b.data, b.len);
}

uint64_t hash_mix(uint64_t seed, struct bytes b)
{
    return XXH3_64bits_withSeed(b.data, b.len, seed);
}

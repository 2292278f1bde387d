/*
 * What one identity may have under way at once, and how often it may ask, so that a flood by one leaves others
 * served. Kept by the identity and not by certificate: a new one brings no new allowance.
 *
 * Always true: what was begun and not refused is ended once, and counts in between. Never reads a clock.
 */
#include "security.h"

struct allowance {
    char identity[IDENTITY_BYTES_MAX + 1];
    atomic_int references;
    atomic_uint under_way[USES];
    /* With the lock of whoever keeps it held: a bucket of one second's worth. */
    double tokens;
    uint64_t filled_ms;
};

struct allowance *allowance_new(const char *identity)
{
    struct allowance *a = memory_zero(1, sizeof *a);

    snprintf(a->identity, sizeof a->identity, "%s", identity);
    atomic_init(&a->references, 1);
    return a;
}

struct allowance *allowance_hold(struct allowance *a)
{
    atomic_fetch_add(&a->references, 1);
    return a;
}

void allowance_drop(struct allowance *a)
{
    if (a != NULL && atomic_fetch_sub(&a->references, 1) == 1)
        free(a);
}

const char *allowance_identity(const struct allowance *a)
{
    return a->identity;
}

bool allowance_is_unused(const struct allowance *a)
{
    return atomic_load(&a->references) == 1;
}

static enum status take_token(struct allowance *a, const struct limits *limits, uint64_t now_ms, struct fault *fault)
{
    double most = limits->rate;

    if (limits->rate == 0)
        return STATUS_OK;
    if (a->filled_ms == 0)
        a->tokens = most;
    else if (now_ms > a->filled_ms) /* two threads may come in another order than their clocks were read in */
        a->tokens += (double)(now_ms - a->filled_ms) * most / 1000;
    a->tokens = a->tokens > most ? most : a->tokens;
    a->filled_ms = now_ms > a->filled_ms ? now_ms : a->filled_ms;
    if (a->tokens < 1) {
        (void)fault_set(fault, STATUS_EXHAUSTED, "RATE_LIMITED", "%s asked more than %u times in a second", a->identity,
                        limits->rate);
        fault->retry_ms = (uint32_t)((1 - a->tokens) * 1000 / most) + 1;
        return STATUS_EXHAUSTED;
    }
    a->tokens -= 1;
    return STATUS_OK;
}

enum status allowance_begin(struct allowance *a, enum use use, const struct limits *limits, uint64_t now_ms,
                            struct fault *fault)
{
    static const char *const reasons[USES] = {[USE_CALL] = "IN_FLIGHT_LIMITED", [USE_STREAM] = "STREAMS_LIMITED"};
    static const char *const names[USES] = {[USE_CALL] = "calls in flight", [USE_STREAM] = "open streams"};
    enum status status = take_token(a, limits, now_ms, fault);

    if (status != STATUS_OK)
        return status;
    if (atomic_fetch_add(&a->under_way[use], 1) >= limits->under_way[use] && limits->under_way[use] > 0) {
        atomic_fetch_sub(&a->under_way[use], 1);
        (void)fault_set(fault, STATUS_EXHAUSTED, reasons[use], "%s has %u %s already", a->identity,
                        limits->under_way[use], names[use]);
        fault->retry_ms = 50;
        return STATUS_EXHAUSTED;
    }
    return STATUS_OK;
}

void allowance_end(struct allowance *a, enum use use)
{
    atomic_fetch_sub(&a->under_way[use], 1);
}

/*
 * The load: N slots, each with one operation in flight. Closed loop: a slot begins its next operation when the one
 * before is done. Open loop: operations are due at a rate, whatever the cluster does, and are timed from when they
 * were due, so that a stall counts for all that it held up (no coordinated omission).
 *
 * Thread rule: load_run() from one thread; answers come from the poller of its loop.
 */
#ifndef CAIRN_BENCH_LOAD_H
#define CAIRN_BENCH_LOAD_H

#include "latencies.h"
#include "rpc/rpc.h"

enum { LANES_MAX = 16, SLOTS_MAX = 8192 };

enum workload { LOAD_DISPATCH, LOAD_DISPATCH_UNARY, LOAD_APPEND, LOAD_READ, LOAD_MIXED, LOAD_ECHO, LOAD_ECHO_UNARY };
enum route { ROUTE_ANY, ROUTE_OWNER, ROUTE_OTHER };

struct load_settings {
    enum workload workload;
    enum route route;
    const char *type;       /* of aggregates: echo, or that of a worker */
    unsigned in_flight;
    unsigned seconds;       /* that count, behind the first, which doesn't */
    unsigned bytes;         /* of a payload */
    unsigned aggregates;
    unsigned rate;          /* operations in a second; 0: closed loop */
    unsigned retry_ms;      /* ask again, another node and under the same id; 0: never */
    unsigned read_percent;  /* of LOAD_MIXED */
    unsigned events;        /* of one LOAD_APPEND */
    const char *endpoints[LANES_MAX];
    size_t endpoint_count;
    const struct rpc_tls_settings *tls; /* NULL: none */
};

struct load_result {
    struct latencies latencies;
    uint64_t failed;
    uint64_t retried;
    uint64_t bytes;   /* of answers */
    double seconds;
    char first_failure[300];
};

/* INVALID, with a fault, when the load can't be what is asked for. */
MUST_USE enum status load_run(const struct load_settings *settings, struct load_result *result, struct fault *fault);

#endif

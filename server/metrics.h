/* Counters and histograms of this node, for /metrics. Any thread. */
#ifndef CAIRN_SERVER_METRICS_H
#define CAIRN_SERVER_METRICS_H

#include "base/base.h"

/* Latency in powers of two of a microsecond, from 16 µs to some 34 s. */
enum { HISTOGRAM_BUCKETS = 22, HISTOGRAM_FIRST_US = 16 };

struct histogram {
    atomic_ullong buckets[HISTOGRAM_BUCKETS + 1];
    atomic_ullong sum_us;
    atomic_ullong count;
};

struct metrics {
    atomic_ullong commands_accepted;
    atomic_ullong commands_rejected;
    atomic_ullong commands_failed;
    atomic_ullong calls_refused; /* by who calls */
    atomic_ullong calls_limited; /* commands in streams too */
    atomic_ullong connections_refused;
    atomic_ullong commands_forwarded;
    atomic_ullong commands_resent;
    atomic_ullong reads;
    atomic_ullong syncs;
    atomic_ullong batches;
    atomic_ullong frames_sent;
    atomic_ullong frame_bytes_sent;
    atomic_ullong frames_dropped;
    atomic_ullong frames_refused;
    atomic_ullong ownership_gained;
    atomic_ullong ownership_lost;
    atomic_ullong ranges_installed;
    atomic_ullong range_bytes; /* of ranges that came */
    atomic_ullong repairs;
    atomic_ullong events_given; /* to subscriptions and ReadAll */
    atomic_ullong group_events, group_redelivered, group_parked, group_count, group_member_count;
    atomic_ullong bus_events, bus_redelivered, bus_failed, bus_late, bus_members, bus_waiting;
    atomic_ullong placement_version; /* of the system partition's newest record here; a gauge */
    struct histogram command_latency;
    struct histogram sync_latency;
};

void histogram_add(struct histogram *histogram, uint64_t us);
void histogram_print(const struct histogram *histogram, const char *name, const char *help,
                     struct buffer *out);

#define METRIC_ADD(node, name, n) \
    atomic_fetch_add_explicit(&(node)->metrics.name, (n), memory_order_relaxed)

#endif

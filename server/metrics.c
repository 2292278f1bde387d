/* Histograms in the Prometheus text format. */
#include "metrics.h"

void histogram_add(struct histogram *histogram, uint64_t us)
{
    int bucket = 0;

    while (bucket < HISTOGRAM_BUCKETS && us > (uint64_t)HISTOGRAM_FIRST_US << bucket)
        bucket++;
    atomic_fetch_add_explicit(&histogram->buckets[bucket], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&histogram->sum_us, us, memory_order_relaxed);
    atomic_fetch_add_explicit(&histogram->count, 1, memory_order_relaxed);
}

void histogram_print(const struct histogram *histogram, const char *name, const char *help,
                     struct buffer *out)
{
    unsigned long long below = 0;

    buffer_printf(out, "# HELP %s %s\n# TYPE %s histogram\n", name, help, name);
    for (int i = 0; i < HISTOGRAM_BUCKETS; i++) {
        below += atomic_load(&histogram->buckets[i]);
        buffer_printf(out, "%s_bucket{le=\"%.6f\"} %llu\n", name,
                      (double)((uint64_t)HISTOGRAM_FIRST_US << i) / 1e6, below);
    }
    below += atomic_load(&histogram->buckets[HISTOGRAM_BUCKETS]);
    buffer_printf(out, "%s_bucket{le=\"+Inf\"} %llu\n%s_sum %.6f\n%s_count %llu\n", name, below,
                  name, (double)atomic_load(&histogram->sum_us) / 1e6, name, below);
}

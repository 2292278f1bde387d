/*
 * cairn-bench-read: how fast one partition's events come out of the store, in this process, through the same
 * subscription that serves consumers. Fills a store with events first, then reads them all, and again from the
 * warm cache.
 *
 *   cairn-bench-read [EVENTS [AGGREGATES]]
 */
#include <unistd.h>

#include "event/event.h"
#include "store/store.h"

enum { PAYLOAD = 256, BATCH = 1000 };

static void fill(struct store *store, uint64_t events, uint64_t aggregates)
{
    struct store_batch *batch = store_batch_new(store);
    uint8_t payload[PAYLOAD];
    struct buffer out = {0};
    struct fault fault;
    uint64_t state = 1;

    for (uint64_t i = 0; i < events; i++) {
        char id[32], command[32];
        uint64_t sequence = i / aggregates;
        struct event event = {.aggregate_type = BYTES_LITERAL("echo"),
                              .sequence = sequence,
                              .position = i,
                              .type = BYTES_LITERAL("Put"),
                              .payload = {PAYLOAD_DATA, {payload, sizeof payload}},
                              .time_ms = 1700000000000 + (int64_t)(i / 5)};
        struct store_key key;

        for (size_t b = 0; b < sizeof payload; b++) {
            state = state * 6364136223846793005ULL + 1442695040888963407ULL;
            payload[b] = (uint8_t)("0123456789abcdef"[state >> 60]);
        }
        snprintf(id, sizeof id, "aggregate-%06llu", (unsigned long long)(i % aggregates));
        snprintf(command, sizeof command, "command-%010llu", (unsigned long long)i);
        event.aggregate_id = bytes_of(id);
        event.command_id = bytes_of(command);
        out.len = 0;
        wire_event_pack(&out, &event);
        key = key_event(0, event.aggregate_id, sequence);
        store_batch_put(batch, STORE_EVENTS, key_bytes(&key), buffer_bytes(&out));
        out.len = 0;
        buffer_add(&out, &sequence, sizeof sequence);
        buffer_add(&out, id, strlen(id));
        key = key_position(0, i);
        store_batch_put(batch, STORE_POSITIONS, key_bytes(&key), buffer_bytes(&out));
        if ((i + 1) % BATCH == 0 && store_write(store, batch, false, &fault) != STATUS_OK) {
            fprintf(stderr, "cairn-bench-read: %s\n", fault.message);
            exit(1);
        }
    }
    if (store_write(store, batch, true, &fault) != STATUS_OK)
        exit(1);
    store_batch_free(batch);
    buffer_release(&out);
}

static void read_all(struct store *store, const char *what)
{
    static const bool held[1] = {true};
    struct subscription_settings settings = {.cluster = {BYTES_LITERAL("0123456789abcdef"), 1},
                                             .from = {.kind = START_BEGINNING},
                                             .credits = SUBSCRIPTION_CREDITS_MAX,
                                             .until_end = true};
    struct subscription *subscription;
    struct buffer out = {0};
    struct fault fault;
    uint32_t partition;
    uint64_t began = clock_monotonic_us();
    uint64_t bytes = 0;
    double seconds;
    enum status status = subscription_new(&subscription, &settings, held, store, 0, &fault);

    while (status == STATUS_OK) {
        out.len = 0;
        status = subscription_next(subscription, 0, &out, &partition, &fault);
        bytes += out.len;
        subscription_credit(subscription, SUBSCRIPTION_CREDITS_MAX);
    }
    if (status != STATUS_NOT_FOUND) {
        fprintf(stderr, "cairn-bench-read: %s\n", fault.message);
        exit(1);
    }
    seconds = (double)(clock_monotonic_us() - began) / 1e6;
    printf("%s: %llu events, %.1f MiB in %.3f s: %.0f events/s\n", what,
           (unsigned long long)subscription_given(subscription), (double)bytes / (1 << 20), seconds,
           (double)subscription_given(subscription) / seconds);
    subscription_free(subscription);
    buffer_release(&out);
}

int main(int argc, char **argv)
{
    uint64_t events = argc > 1 ? strtoull(argv[1], NULL, 10) : 200000;
    uint64_t aggregates = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000;
    char folder[] = "/tmp/cairn-bench-read-XXXXXX";
    char command[64];
    struct store_settings settings = {.path = folder, .memory_bytes = 512U << 20};
    struct store *store;
    struct fault fault;

    if (events == 0 || aggregates == 0 || mkdtemp(folder) == NULL ||
        store_open(&store, &settings, &fault) != STATUS_OK) {
        fprintf(stderr, "usage: cairn-bench-read [EVENTS [AGGREGATES]]\n");
        return 2;
    }
    fill(store, events, aggregates);
    store_free(store); /* what is read comes from tables, as after a restart */
    if (store_open(&store, &settings, &fault) != STATUS_OK)
        return 1;
    read_all(store, "cold cache");
    for (int i = 0; i < 3; i++)
        read_all(store, "warm cache");
    store_free(store);
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command) == 0 ? 0 : 1;
}

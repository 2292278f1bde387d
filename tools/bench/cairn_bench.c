/*
 * cairn-bench: a closed loop of N commands in flight over DispatchStream, spread over the given
 * nodes, each command one event of the echo module. Prints one line: rate and latency. With --rate
 * so many commands are sent each second, as far as N in flight allow.
 *
 * With --ca, --cert and --key it talks TLS.
 *
 *   cairn-bench --in-flight 64 --seconds 10 --bytes 256 --aggregates 1000 HOST:PORT...
 */
#include <getopt.h>
#include <pthread.h>
#include <time.h>

#include "rpc/rpc.h"

enum { NODES_MAX = 16, IN_FLIGHT_MAX = 4096, LATENCIES_MAX = 1 << 24 };

struct lane {
    struct bench *bench;
    struct rpc_stream *stream;
    struct rpc_channel *channel;
};

struct bench {
    unsigned in_flight;
    unsigned seconds;
    unsigned bytes;
    unsigned aggregates;
    unsigned rate; /* 0: as fast as it goes */
    unsigned free_slots[IN_FLIGHT_MAX];
    size_t free_count;
    uint64_t until_us;
    uint64_t counted_from_us;
    struct lane lanes[NODES_MAX];
    size_t lane_count;
    uint64_t started[IN_FLIGHT_MAX]; /* by slot */
    uint32_t *latencies_us;
    size_t done;
    size_t failed;
    size_t open;
    uint64_t sent;
    uint64_t prefix;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

static void put_field(struct buffer *out, unsigned field, const void *text, size_t len)
{
    uint8_t head[8];
    size_t n = 0;
    size_t left = len;

    head[n++] = (uint8_t)(field << 3 | 2);
    for (; left >= 0x80; left >>= 7)
        head[n++] = (uint8_t)(left | 0x80);
    head[n++] = (uint8_t)left;
    buffer_add(out, head, n);
    buffer_add(out, text, len);
}

/* The command id is "prefix.number.slot": the answer tells the slot. */
static void send_next(struct bench *b, unsigned slot)
{
    struct lane *lane = &b->lanes[slot % b->lane_count];
    struct buffer command = {0};
    struct buffer request = {0};
    char id[64];
    char aggregate[32];
    char *payload = memory_take(b->bytes);
    int len = snprintf(id, sizeof id, "%llx.%llx.%04x", (unsigned long long)b->prefix,
                       (unsigned long long)b->sent, slot);

    put_field(&command, 1, id, (size_t)len);
    put_field(&command, 2, "echo", 4);
    len = snprintf(aggregate, sizeof aggregate, "bench-%u", (unsigned)(b->sent % b->aggregates));
    put_field(&command, 3, aggregate, (size_t)len);
    put_field(&command, 4, "Put", 3);
    memset(payload, 'x', b->bytes);
    put_field(&command, 6, payload, b->bytes);
    put_field(&request, 1, command.data, command.len);
    b->sent++;
    b->started[slot] = clock_monotonic_us();
    rpc_stream_send(lane->stream, buffer_bytes(&request));
    buffer_release(&command);
    buffer_release(&request);
    free(payload);
}

static void on_message(void *user, struct rpc_stream *stream, struct bytes message)
{
    struct lane *lane = user;
    struct bench *b = lane->bench;
    uint64_t now = clock_monotonic_us();
    unsigned slot = 0;
    size_t id_len = message.len > 2 ? message.data[1] : 0;

    (void)stream;
    /* DispatchStreamResponse: field 1 is the id, then field 2 (response) or 3 (error). */
    if (id_len < 4 || id_len + 2 > message.len)
        return;
    for (size_t i = id_len - 2; i < id_len + 2; i++) {
        uint8_t c = message.data[i];

        slot = slot << 4 | (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    pthread_mutex_lock(&b->lock);
    if (message.len <= id_len + 2 || message.data[id_len + 2] != (2 << 3 | 2))
        b->failed++;
    else if (now >= b->counted_from_us && now < b->until_us && b->done < LATENCIES_MAX)
        b->latencies_us[b->done++] = (uint32_t)(now - b->started[slot]);
    if (now < b->until_us && b->rate > 0)
        b->free_slots[b->free_count++] = slot;
    else if (now < b->until_us)
        send_next(b, slot);
    else if (--b->open == 0)
        pthread_cond_signal(&b->changed);
    pthread_mutex_unlock(&b->lock);
}

static void on_closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct lane *lane = user;
    struct bench *b = lane->bench;

    if (code != 0 && code != 1)
        fprintf(stderr, "cairn-bench: a stream ended with code %d: %s\n", code, text);
    pthread_mutex_lock(&b->lock);
    lane->stream = NULL;
    b->open = 0;
    pthread_cond_signal(&b->changed);
    pthread_mutex_unlock(&b->lock);
    rpc_stream_drop(stream);
}

static const struct rpc_stream_events events = {.message = on_message, .closed = on_closed};

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a;
    uint32_t y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

/* With the lock held. Sends what is due each millisecond, until the end. */
static void pace(struct bench *b)
{
    uint64_t began_us = clock_monotonic_us();
    const struct timespec moment = {0, 1000000};

    while (clock_monotonic_us() < b->until_us && b->open > 0) {
        uint64_t due = (clock_monotonic_us() - began_us) * b->rate / 1000000;

        while (b->free_count > 0 && b->sent < due)
            send_next(b, b->free_slots[--b->free_count]);
        pthread_mutex_unlock(&b->lock);
        nanosleep(&moment, NULL);
        pthread_mutex_lock(&b->lock);
    }
    b->open = b->open > b->free_count ? b->open - b->free_count : 0;
}

static int usage(void)
{
    fprintf(stderr, "usage: cairn-bench [--in-flight N] [--seconds N] [--bytes N] "
                    "[--aggregates N] [--rate N] HOST:PORT...\n");
    return 2;
}

int main(int argc, char **argv)
{
    static struct bench b = {.in_flight = 64, .seconds = 10, .bytes = 256, .aggregates = 1000};
    static const struct option options[] = {{"in-flight", required_argument, NULL, 'n'},
                                            {"seconds", required_argument, NULL, 's'},
                                            {"bytes", required_argument, NULL, 'b'},
                                            {"aggregates", required_argument, NULL, 'a'},
                                            {"rate", required_argument, NULL, 'r'},
                                            {"ca", required_argument, NULL, 'C'},
                                            {"cert", required_argument, NULL, 'E'},
                                            {"key", required_argument, NULL, 'K'},
                                            {NULL, 0, NULL, 0}};
    struct rpc_loop *loop;
    struct rpc_tls_settings files = {0};
    struct rpc_tls *tls = NULL;
    int flag;

    while ((flag = getopt_long(argc, argv, "", options, NULL)) != -1) {
        unsigned value = optarg == NULL ? 0 : (unsigned)strtoul(optarg, NULL, 10);

        if (flag == 'C' || flag == 'E' || flag == 'K') {
            *(flag == 'C' ? &files.roots : flag == 'E' ? &files.certificate : &files.key) = optarg;
            continue;
        }
        if (flag == '?' || value == 0)
            return usage();
        *(flag == 'n' ? &b.in_flight : flag == 's' ? &b.seconds : flag == 'b' ? &b.bytes
          : flag == 'r'                                              ? &b.rate
                                                                     : &b.aggregates) = value;
    }
    if (optind == argc || argc - optind > NODES_MAX || b.in_flight > IN_FLIGHT_MAX ||
        b.bytes > 1 << 20)
        return usage();
    b.latencies_us = memory_take(LATENCIES_MAX * sizeof *b.latencies_us);
    b.prefix = random_u64();
    pthread_mutex_init(&b.lock, NULL);
    pthread_cond_init(&b.changed, NULL);
    rpc_begin();
    if (rpc_loop_new(&loop) != STATUS_OK)
        return 1;
    if (files.roots != NULL)
        tls = rpc_tls_new(&files);
    b.counted_from_us = clock_monotonic_us() + 1000000;
    b.until_us = b.counted_from_us + (uint64_t)b.seconds * 1000000;
    for (int i = optind; i < argc; i++) {
        struct lane *lane = &b.lanes[b.lane_count++];

        lane->bench = &b;
        lane->channel = rpc_channel_new(loop, argv[i], 8 << 20, tls);
        lane->stream = rpc_stream_open(lane->channel, "/cairn.v1.CommandService/DispatchStream",
                                       &events, lane, 0);
    }
    pthread_mutex_lock(&b.lock);
    b.open = b.in_flight;
    for (unsigned slot = 0; slot < b.in_flight; slot++)
        if (b.rate > 0)
            b.free_slots[b.free_count++] = slot;
        else
            send_next(&b, slot);
    if (b.rate > 0)
        pace(&b);
    while (b.open > 0)
        pthread_cond_wait(&b.changed, &b.lock);
    pthread_mutex_unlock(&b.lock);
    qsort(b.latencies_us, b.done, sizeof *b.latencies_us, ascending);
    if (b.done > 0)
        printf("in flight %u: %.0f commands/s, p50 %.2f ms, p99 %.2f ms, longest %.2f ms, %zu "
               "failed\n",
               b.in_flight, (double)b.done / b.seconds, b.latencies_us[b.done / 2] / 1e3,
               b.latencies_us[b.done * 99 / 100] / 1e3, b.latencies_us[b.done - 1] / 1e3, b.failed);
    for (size_t i = 0; i < b.lane_count; i++) {
        pthread_mutex_lock(&b.lock);
        if (b.lanes[i].stream != NULL)
            rpc_stream_cancel(b.lanes[i].stream);
        while (b.lanes[i].stream != NULL)
            pthread_cond_wait(&b.changed, &b.lock);
        pthread_mutex_unlock(&b.lock);
        rpc_channel_free(b.lanes[i].channel);
    }
    rpc_loop_free(loop);
    rpc_tls_free(tls);
    rpc_end();
    return b.done > 0 && b.failed == 0 ? 0 : 1;
}

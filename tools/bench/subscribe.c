/*
 * cairn-bench subscribe: reads the whole log once over Subscribe, and says at what rate. Ends at the first
 * message that brings a token and no events. With --live it follows the log from its end for so many seconds, and
 * says how long events took from their decision at the owner (whose clock must be this machine's) to here.
 *
 *   cairn-bench subscribe [--live SECONDS] HOST:PORT
 */
#include <pthread.h>

#include "commands.h"
#include "rpc/rpc.h"
#include "wire/wire.h"

enum { CREDITS = 1 << 16, DELAYS_MAX = 1 << 22 };

struct reading {
    uint64_t events;
    uint64_t bytes;
    uint64_t used; /* credits */
    uint64_t live_until_ms; /* 0: not */
    uint32_t *delays_ms;
    size_t delay_count;
    bool done;
    int code;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

static void ask(struct rpc_stream *stream, const struct subscribe_request *request)
{
    struct buffer out = {0};

    wire_subscribe_pack(&out, request);
    rpc_stream_send(stream, buffer_bytes(&out));
    buffer_release(&out);
}

static void on_message(void *user, struct rpc_stream *stream, struct bytes message)
{
    struct reading *r = user;
    struct arena arena = {0};
    struct subscribe_response response;
    struct fault fault;

    if (wire_subscribe_response_decode(message, &arena, &response, &fault) != STATUS_OK) {
        fprintf(stderr, "cairn-bench subscribe: %s\n", fault.message);
        rpc_stream_cancel(stream);
    }
    r->events += response.event_count;
    r->bytes += message.len;
    r->used += response.event_count;
    if (r->used >= CREDITS / 2) {
        ask(stream, &(struct subscribe_request){.credits = (uint32_t)r->used});
        r->used = 0;
    }
    for (size_t i = 0; r->live_until_ms > 0 && i < response.event_count && r->delay_count < DELAYS_MAX; i++) {
        struct event_head head;
        int64_t now = clock_wall_ms();

        if (wire_event_peek(response.packed_events[i], &head, &fault) == STATUS_OK)
            r->delays_ms[r->delay_count++] = now > head.time_ms ? (uint32_t)(now - head.time_ms) : 0;
    }
    if (r->live_until_ms > 0 ? clock_monotonic_ms() >= r->live_until_ms
                             : response.event_count == 0 && r->events > 0)
        rpc_stream_cancel(stream);
    arena_release(&arena);
}

static void on_closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct reading *r = user;

    (void)stream;
    if (code != 1)
        fprintf(stderr, "cairn-bench subscribe: the stream ended with code %d: %s\n", code, text);
    pthread_mutex_lock(&r->lock);
    r->done = true;
    r->code = code;
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static const struct rpc_stream_events events = {.message = on_message, .closed = on_closed};

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a;
    uint32_t y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

int subscribe_main(int argc, char **argv)
{
    static struct reading r;
    struct subscribe_request start = {.is_start = true, .credits = CREDITS, .heartbeat_ms = 500};
    struct rpc_loop *loop;
    struct rpc_channel *channel;
    struct rpc_stream *stream;
    uint64_t began;
    double seconds;

    if (argc == 4 && strcmp(argv[1], "--live") == 0 && strtoul(argv[2], NULL, 10) > 0) {
        r.live_until_ms = clock_monotonic_ms() + strtoul(argv[2], NULL, 10) * 1000;
        r.delays_ms = memory_take(DELAYS_MAX * sizeof *r.delays_ms);
        start.from.kind = START_END;
    } else if (argc != 2) {
        fprintf(stderr, "usage: cairn-bench subscribe [--live SECONDS] HOST:PORT\n");
        return 2;
    }
    pthread_mutex_init(&r.lock, NULL);
    pthread_cond_init(&r.changed, NULL);
    rpc_begin();
    if (rpc_loop_new(&loop) != STATUS_OK)
        return 1;
    channel = rpc_channel_new(loop, argv[argc - 1], 8 << 20, NULL);
    began = clock_monotonic_us();
    stream = rpc_stream_open(channel, "/cairn.v1.EventService/Subscribe", &events, &r, 0);
    ask(stream, &start);
    pthread_mutex_lock(&r.lock);
    while (!r.done)
        pthread_cond_wait(&r.changed, &r.lock);
    pthread_mutex_unlock(&r.lock);
    if (r.live_until_ms > 0 && r.delay_count > 0) {
        qsort(r.delays_ms, r.delay_count, sizeof *r.delays_ms, ascending);
        printf("%zu events, p50 %u ms, p99 %u ms, longest %u ms\n", r.delay_count, r.delays_ms[r.delay_count / 2],
               r.delays_ms[r.delay_count * 99 / 100], r.delays_ms[r.delay_count - 1]);
        rpc_stream_drop(stream);
        rpc_channel_free(channel);
        rpc_loop_free(loop);
        rpc_end();
        return 0;
    }
    seconds = (double)(clock_monotonic_us() - began) / 1e6 - 0.5; /* the silence at the end */
    printf("%llu events, %.1f MiB in %.2f s: %.0f events/s\n", (unsigned long long)r.events,
           (double)r.bytes / (1 << 20), seconds, (double)r.events / seconds);
    rpc_stream_drop(stream);
    rpc_channel_free(channel);
    rpc_loop_free(loop);
    rpc_end();
    return r.code == 1 && r.events > 0 ? 0 : 1;
}

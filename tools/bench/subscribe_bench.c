/*
 * cairn-bench-subscribe: reads the whole log once over Subscribe, and says at what rate. Ends at the first
 * message that brings a token and no events.
 *
 *   cairn-bench-subscribe HOST:PORT
 */
#include <pthread.h>

#include "rpc/rpc.h"
#include "wire/wire.h"

enum { CREDITS = 1 << 16 };

struct reading {
    uint64_t events;
    uint64_t bytes;
    uint64_t used; /* credits */
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
        fprintf(stderr, "cairn-bench-subscribe: %s\n", fault.message);
        rpc_stream_cancel(stream);
    }
    r->events += response.event_count;
    r->bytes += message.len;
    r->used += response.event_count;
    if (r->used >= CREDITS / 2) {
        ask(stream, &(struct subscribe_request){.credits = (uint32_t)r->used});
        r->used = 0;
    }
    if (response.event_count == 0 && r->events > 0)
        rpc_stream_cancel(stream);
    arena_release(&arena);
}

static void on_closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct reading *r = user;

    (void)stream;
    if (code != 1)
        fprintf(stderr, "cairn-bench-subscribe: the stream ended with code %d: %s\n", code, text);
    pthread_mutex_lock(&r->lock);
    r->done = true;
    r->code = code;
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static const struct rpc_stream_events events = {.message = on_message, .closed = on_closed};

int main(int argc, char **argv)
{
    static struct reading r;
    struct subscribe_request start = {.is_start = true, .credits = CREDITS, .heartbeat_ms = 500};
    struct rpc_loop *loop;
    struct rpc_channel *channel;
    struct rpc_stream *stream;
    uint64_t began;
    double seconds;

    if (argc != 2) {
        fprintf(stderr, "usage: cairn-bench-subscribe HOST:PORT\n");
        return 2;
    }
    pthread_mutex_init(&r.lock, NULL);
    pthread_cond_init(&r.changed, NULL);
    rpc_begin();
    if (rpc_loop_new(&loop) != STATUS_OK)
        return 1;
    channel = rpc_channel_new(loop, argv[1], 8 << 20);
    began = clock_monotonic_us();
    stream = rpc_stream_open(channel, "/cairn.v1.EventService/Subscribe", &events, &r, 0);
    ask(stream, &start);
    pthread_mutex_lock(&r.lock);
    while (!r.done)
        pthread_cond_wait(&r.changed, &r.lock);
    pthread_mutex_unlock(&r.lock);
    seconds = (double)(clock_monotonic_us() - began) / 1e6 - 0.5; /* the silence at the end */
    printf("%llu events, %.1f MiB in %.2f s: %.0f events/s\n", (unsigned long long)r.events,
           (double)r.bytes / (1 << 20), seconds, (double)r.events / seconds);
    rpc_stream_drop(stream);
    rpc_channel_free(channel);
    rpc_loop_free(loop);
    rpc_end();
    return r.code == 1 && r.events > 0 ? 0 : 1;
}

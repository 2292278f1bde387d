/*
 * cairn-bench worker: decides commands of one aggregate type as the echo module does, one event with the command's
 * payload, for all nodes that are named, until it is ended. Tells "ready" when each has taken it.
 */
#include <pthread.h>
#include <time.h>

#include "cairn/v1/command.pb-c.h"
#include "commands.h"
#include "rpc/rpc.h"
#include "wire/unpack.h"

enum { NODES_MAX = 16, PERMITS = 512, MESSAGE_MAX = 8 << 20, HEARTBEAT_S = 1 };

struct worker {
    struct rpc_stream *streams[NODES_MAX];
    size_t count;
    size_t registered;
    pthread_mutex_t lock;
};

static void answer(struct rpc_stream *stream, const Cairn__V1__Execute *execute)
{
    struct buffer out = {0};
    size_t result = put_begin(&out, 2);
    size_t event;

    put_varint(&out, 1 << 3);
    put_varint(&out, execute->execution_id);
    event = put_begin(&out, 2);
    put_bytes(&out, 1, BYTES_LITERAL("Put"));
    if (execute->command->payload_case == CAIRN__V1__COMMAND__PAYLOAD_DATA)
        put_bytes(&out, 3, (struct bytes){execute->command->data.data, execute->command->data.len});
    put_end(&out, event);
    put_end(&out, result);
    rpc_stream_send(stream, buffer_bytes(&out));
    buffer_release(&out);
}

static void on_message(void *user, struct rpc_stream *stream, struct bytes message)
{
    struct worker *worker = user;
    Cairn__V1__HandleCommandsResponse *response =
        cairn__v1__handle_commands_response__unpack(NULL, message.len, message.data);

    if (response != NULL && response->message_case == CAIRN__V1__HANDLE_COMMANDS_RESPONSE__MESSAGE_EXECUTE)
        answer(stream, response->execute);
    if (response != NULL && response->message_case == CAIRN__V1__HANDLE_COMMANDS_RESPONSE__MESSAGE_REGISTERED) {
        pthread_mutex_lock(&worker->lock);
        if (++worker->registered == worker->count) {
            printf("ready\n");
            fflush(stdout);
        }
        pthread_mutex_unlock(&worker->lock);
    }
    cairn__v1__handle_commands_response__free_unpacked(response, NULL);
}

static void on_closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    (void)user;
    (void)stream;
    if (code > 1)
        fprintf(stderr, "cairn-bench worker: a node lets it go, code %d: %s\n", code, text);
}

static const struct rpc_stream_events events = {.message = on_message, .closed = on_closed};

static void enlist(struct rpc_stream *stream, const char *type)
{
    struct buffer out = {0};
    size_t begun = put_begin(&out, 1);

    put_bytes(&out, 1, BYTES_LITERAL("bench"));
    put_bytes(&out, 2, bytes_of(type));
    put_bytes(&out, 3, BYTES_LITERAL("Put"));
    put_varint(&out, 4 << 3);
    put_varint(&out, PERMITS);
    put_end(&out, begun);
    rpc_stream_send(stream, buffer_bytes(&out));
    buffer_release(&out);
}

static void beat(struct worker *worker)
{
    struct buffer out = {0};

    put_end(&out, put_begin(&out, 3));
    for (size_t i = 0; i < worker->count; i++)
        rpc_stream_send(worker->streams[i], buffer_bytes(&out));
    buffer_release(&out);
}

int worker_main(int argc, char **argv)
{
    static struct worker worker = {.lock = PTHREAD_MUTEX_INITIALIZER};
    const struct timespec second = {HEARTBEAT_S, 0};
    struct rpc_channel *channels[NODES_MAX];
    struct rpc_loop *loop;
    sigset_t ends;

    if (argc < 3 || argc - 2 > NODES_MAX) {
        fprintf(stderr, "usage: cairn-bench worker AGGREGATE_TYPE HOST:PORT...\n");
        return 2;
    }
    ends = await_end();
    rpc_begin();
    if (rpc_loop_new(&loop) != STATUS_OK)
        return 1;
    worker.count = (size_t)argc - 2;
    for (size_t i = 0; i < worker.count; i++) {
        channels[i] = rpc_channel_new(loop, argv[i + 2], MESSAGE_MAX, NULL);
        worker.streams[i] =
            rpc_stream_open(channels[i], "/cairn.v1.CommandService/HandleCommands", &events, &worker, 0);
        enlist(worker.streams[i], argv[1]);
    }
    while (sigtimedwait(&ends, NULL, &second) < 0)
        beat(&worker);
    for (size_t i = 0; i < worker.count; i++) {
        rpc_stream_cancel(worker.streams[i]);
        rpc_stream_drop(worker.streams[i]);
        rpc_channel_free(channels[i]);
    }
    rpc_loop_free(loop);
    rpc_end();
    return 0;
}

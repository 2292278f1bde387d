/*
 * cairn-bench echo: the ceiling. A server that answers each message with itself, unary and in a stream, on the same
 * layer over gRPC C core that cairnd uses, and does nothing else.
 */
#include "commands.h"
#include "rpc/rpc.h"

enum { MESSAGE_MAX = 8 << 20 };

static void on_unary(void *context, struct rpc_call *call, struct bytes request)
{
    (void)context;
    rpc_call_reply(call, request);
}

static void on_opened(void *context, struct rpc_stream *stream)
{
    (void)context;
    rpc_stream_set_user(stream, rpc_stream_hold(stream));
}

static void on_message(void *user, struct rpc_stream *stream, struct bytes message)
{
    (void)user;
    rpc_stream_send(stream, message);
}

static void on_finished(void *user, struct rpc_stream *stream)
{
    (void)user;
    rpc_stream_finish(stream, 0, "", BYTES_NONE);
}

static void on_closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    (void)user;
    (void)code;
    (void)text;
    rpc_stream_drop(stream);
}

int echo_main(int argc, char **argv)
{
    static const struct rpc_stream_events events = {
        .opened = on_opened, .message = on_message, .finished = on_finished, .closed = on_closed};
    static const struct rpc_method methods[] = {{.path = "/echo.Echo/Unary", .unary = on_unary},
                                                {.path = "/echo.Echo/Stream", .stream = &events}};
    struct rpc_server_settings settings = {
        .methods = methods, .method_count = COUNT_OF(methods), .message_bytes_max = MESSAGE_MAX, .memory_bytes = 1 << 30};
    struct rpc_server *server;
    struct rpc_loop *loop;
    struct fault fault;
    sigset_t ends;
    int which;

    if (argc != 2) {
        fprintf(stderr, "usage: cairn-bench echo HOST:PORT\n");
        return 2;
    }
    settings.listen = argv[1];
    ends = await_end();
    rpc_begin();
    if (rpc_loop_new(&loop) != STATUS_OK)
        return 1;
    if (rpc_server_new(&server, loop, &settings, &fault) != STATUS_OK) {
        fprintf(stderr, "cairn-bench echo: %s\n", fault.message);
        return 1;
    }
    printf("ready\n");
    fflush(stdout);
    sigwait(&ends, &which);
    rpc_server_stop(server, 1000);
    rpc_server_free(server);
    rpc_loop_free(loop);
    rpc_end();
    return 0;
}

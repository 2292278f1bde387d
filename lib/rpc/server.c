/* The server: keeps requests for calls posted with gRPC, and turns accepted ones into calls or
 * streams. Unknown methods are answered UNIMPLEMENTED. */
#include <limits.h>

#include "internal.h"

enum { UNARY_WAITING = 128, STREAM_WAITING = 8, UNKNOWN_WAITING = 2 };

struct method {
    struct rpc_method public;
    struct rpc_server *server;
    void *registered;
};

struct rpc_server {
    struct rpc_loop *loop;
    grpc_server *server;
    struct method *methods;
    size_t method_count;
    struct rpc_server_settings settings; /* of its pointers only those to functions */
    struct tag stopped_tag;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stopped;
    bool closing; /* no new calls */
    struct rpc_call *free_calls;
};

struct rpc_call {
    struct tag tag;
    struct rpc_server *server;
    struct method *method; /* NULL for unknown methods */
    grpc_call *call;
    grpc_metadata_array metadata;
    grpc_call_details details;
    gpr_timespec deadline;
    grpc_byte_buffer *payload;
    grpc_slice request;
    grpc_byte_buffer *answer;
    grpc_slice text;
    grpc_slice error_details;
    grpc_metadata details_entry;
    int cancelled;
    void *caller;
    struct rpc_call *next_free;
};

static void accepted(struct tag *tag, bool ok);

/* Calls are used again: none is allocated in steady state. */
static struct rpc_call *call_take(struct rpc_server *server)
{
    struct rpc_call *call;

    pthread_mutex_lock(&server->lock);
    call = server->free_calls;
    if (call != NULL)
        server->free_calls = call->next_free;
    pthread_mutex_unlock(&server->lock);
    if (call == NULL)
        call = memory_take(sizeof *call);
    memset(call, 0, sizeof *call);
    call->server = server;
    call->request = grpc_empty_slice();
    call->text = grpc_empty_slice();
    call->error_details = grpc_empty_slice();
    return call;
}

static void call_give_back(struct rpc_call *call)
{
    struct rpc_server *server = call->server;

    grpc_slice_unref(call->request);
    grpc_slice_unref(call->text);
    grpc_slice_unref(call->error_details);
    if (call->payload != NULL)
        grpc_byte_buffer_destroy(call->payload);
    if (call->answer != NULL)
        grpc_byte_buffer_destroy(call->answer);
    grpc_metadata_array_destroy(&call->metadata);
    if (call->method == NULL)
        grpc_call_details_destroy(&call->details);
    if (call->call != NULL)
        grpc_call_unref(call->call);
    if (call->caller != NULL)
        server->settings.forget(call->caller, false);
    pthread_mutex_lock(&server->lock);
    call->next_free = server->free_calls;
    server->free_calls = call;
    pthread_mutex_unlock(&server->lock);
}

static void post(struct rpc_server *server, struct method *method)
{
    struct rpc_call *call = call_take(server);
    grpc_completion_queue *queue = server->loop->queue;

    call->tag.done = accepted;
    call->method = method;
    grpc_metadata_array_init(&call->metadata);
    if (method == NULL)
        grpc_call_details_init(&call->details);
    TAG_GIVEN(&call->tag);
    if (method == NULL) {
        (void)grpc_server_request_call(server->server, &call->call, &call->details,
                                       &call->metadata, queue, queue, &call->tag);
    } else {
        (void)grpc_server_request_registered_call(
            server->server, method->registered, &call->call, &call->deadline, &call->metadata,
            method->public.unary != NULL ? &call->payload : NULL, queue, queue, &call->tag);
    }
}

static void accept_stream(struct rpc_call *call)
{
    struct method *method = call->method;
    grpc_call *inner = call->call;
    uint64_t deadline = rpc_deadline_ms(call->deadline);
    void *caller = call->caller;
    void (*forget)(void *, bool) = call->server->settings.forget;

    call->call = NULL;
    call->caller = NULL;
    call_give_back(call);
    rpc_stream_accept(inner, method->public.stream, method->public.context, deadline, caller, forget);
}

/* False: it was answered. */
static bool admit(struct rpc_call *call)
{
    const struct rpc_server_settings *settings = &call->server->settings;
    struct rpc_refusal refusal = {0};
    struct rpc_shown shown;
    grpc_auth_context *context;
    bool may;

    if (settings->admit == NULL)
        return true;
    context = rpc_tls_shown(call->call, &call->metadata, &shown);
    may = settings->admit(settings->context, &call->method->public, &shown, &call->caller, &refusal);
    if (context != NULL)
        grpc_auth_context_release(context);
    if (!may)
        rpc_call_fail(call, refusal.code, refusal.message, buffer_bytes(&refusal.details));
    buffer_release(&refusal.details);
    return may;
}

static void accepted(struct tag *tag, bool ok)
{
    struct rpc_call *call = CONTAINER_OF(tag, struct rpc_call, tag);

    if (!ok) { /* the server stops */
        call_give_back(call);
        return;
    }
    post(call->server, call->method);
    rpc_progress(rpc_port_of(call->call));
    if (call->method == NULL) {
        char text[300];

        snprintf(text, sizeof text, "this node has no method %.*s",
                 (int)GRPC_SLICE_LENGTH(call->details.method),
                 (const char *)GRPC_SLICE_START_PTR(call->details.method));
        rpc_call_fail(call, GRPC_STATUS_UNIMPLEMENTED, text, BYTES_NONE);
        return;
    }
    if (!admit(call))
        return;
    if (call->method->public.unary == NULL) {
        accept_stream(call);
        return;
    }
    if (call->payload == NULL) {
        rpc_call_fail(call, GRPC_STATUS_INVALID_ARGUMENT, "the call has no request", BYTES_NONE);
        return;
    }
    grpc_slice_unref(call->request);
    call->request = rpc_contiguous(call->payload);
    call->method->public.unary(
        call->method->public.context, call,
        (struct bytes){GRPC_SLICE_START_PTR(call->request), GRPC_SLICE_LENGTH(call->request)});
}

uint64_t rpc_call_deadline_ms(const struct rpc_call *call)
{
    return rpc_deadline_ms(call->deadline);
}

void *rpc_call_caller(const struct rpc_call *call)
{
    return call->caller;
}

const char *rpc_call_peer(struct rpc_call *call, char *out, size_t room)
{
    return rpc_peer_of(call->call, out, room);
}

static void answered(struct tag *tag, bool ok)
{
    (void)ok;
    call_give_back(CONTAINER_OF(tag, struct rpc_call, tag));
}

static void send_answer(struct rpc_call *call, grpc_op *ops, size_t n, int code)
{
    grpc_op *status = &ops[n++];
    grpc_op *close = &ops[n++];
    grpc_call *inner = call->call;

    status->op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    status->data.send_status_from_server.status = (grpc_status_code)code;
    status->data.send_status_from_server.status_details = &call->text;
    if (GRPC_SLICE_LENGTH(call->error_details) > 0) {
        call->details_entry.key = grpc_slice_from_static_string("grpc-status-details-bin");
        call->details_entry.value = call->error_details;
        status->data.send_status_from_server.trailing_metadata_count = 1;
        status->data.send_status_from_server.trailing_metadata = &call->details_entry;
    }
    close->op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    close->data.recv_close_on_server.cancelled = &call->cancelled;
    call->tag.done = answered;
    TAG_GIVEN(&call->tag);
    if (grpc_call_start_batch(inner, ops, n, &call->tag, NULL) != GRPC_CALL_OK)
        call_give_back(call);
}

void rpc_call_reply(struct rpc_call *call, struct bytes message)
{
    grpc_op ops[4] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}, {.op = GRPC_OP_SEND_MESSAGE}};

    call->answer = rpc_message(message);
    ops[1].data.send_message.send_message = call->answer;
    send_answer(call, ops, 2, GRPC_STATUS_OK);
}

void rpc_call_fail(struct rpc_call *call, int code, const char *message, struct bytes details)
{
    grpc_op ops[3] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}};

    call->text = grpc_slice_from_copied_string(message);
    call->error_details = grpc_slice_from_copied_buffer((const char *)details.data, details.len);
    send_answer(call, ops, 1, code);
}

/* ---- life ---- */

static void stopped(struct tag *tag, bool ok)
{
    struct rpc_server *server = CONTAINER_OF(tag, struct rpc_server, stopped_tag);

    (void)ok;
    pthread_mutex_lock(&server->lock);
    server->stopped = true;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

static void register_methods(struct rpc_server *server, const struct rpc_server_settings *settings)
{
    server->methods = memory_zero(settings->method_count, sizeof *server->methods);
    server->method_count = settings->method_count;
    for (size_t i = 0; i < settings->method_count; i++) {
        struct method *method = &server->methods[i];

        method->public = settings->methods[i];
        method->server = server;
        method->registered = grpc_server_register_method(
            server->server, method->public.path, NULL,
            method->public.unary != NULL ? GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER
                                         : GRPC_SRM_PAYLOAD_NONE,
            0);
        assert(method->registered != NULL);
    }
}

enum status rpc_server_new(struct rpc_server **out, struct rpc_loop *loop,
                           const struct rpc_server_settings *settings, struct fault *fault)
{
    struct rpc_server *server = memory_zero(1, sizeof *server);
    grpc_server_credentials *credentials = rpc_tls_server(settings->tls);
    int most = settings->calls_per_connection == 0 ? INT_MAX : (int)settings->calls_per_connection;
    int idle = settings->connection_idle_ms == 0 ? INT_MAX : (int)settings->connection_idle_ms;
    grpc_resource_quota *quota = grpc_resource_quota_create("server");
    grpc_arg args[] = {
        {.type = GRPC_ARG_POINTER,
         .key = GRPC_ARG_RESOURCE_QUOTA,
         .value.pointer = {quota, grpc_resource_quota_arg_vtable()}},
        {.type = GRPC_ARG_INTEGER,
         .key = GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
         .value.integer = (int)settings->message_bytes_max},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, .value.integer = -1},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_ALLOW_REUSEPORT, .value.integer = 0},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_KEEPALIVE_TIME_MS, .value.integer = 20000},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_KEEPALIVE_TIMEOUT_MS, .value.integer = 5000},
        {.type = GRPC_ARG_INTEGER,
         .key = GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
         .value.integer = 5000},
        {.type = GRPC_ARG_INTEGER,
         .key = GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS,
         .value.integer = 1},
        /* Who doesn't finish its handshake, or sends endless headers, is let go. */
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, .value.integer = 10000},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_MAX_METADATA_SIZE, .value.integer = 16 << 10},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_MAX_CONCURRENT_STREAMS, .value.integer = most},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_MAX_CONNECTION_IDLE_MS, .value.integer = idle},
    };
    grpc_channel_args all = {COUNT_OF(args), args};
    int port;

    server->loop = loop;
    server->settings = *settings;
    server->stopped_tag.done = stopped;
    pthread_mutex_init(&server->lock, NULL);
    pthread_cond_init(&server->changed, NULL);
    if (settings->memory_bytes > 0)
        grpc_resource_quota_resize(quota, settings->memory_bytes);
    server->server = grpc_server_create(&all, NULL);
    grpc_resource_quota_unref(quota);
    grpc_server_register_completion_queue(server->server, loop->queue, NULL);
    register_methods(server, settings);
    port = grpc_server_add_http2_port(server->server, settings->listen, credentials);
    grpc_server_credentials_release(credentials);
    if (port == 0) {
        (void)fault_set(fault, STATUS_FAILED, "PORT_TAKEN",
                        "cannot listen on %s: the address is taken or not of this machine; "
                        "choose another with --listen",
                        settings->listen);
        rpc_server_stop(server, 0);
        rpc_server_free(server);
        return STATUS_FAILED;
    }
    grpc_server_start(server->server);
    for (size_t i = 0; i < server->method_count; i++)
        for (int n = 0;
             n < (server->methods[i].public.unary != NULL ? UNARY_WAITING : STREAM_WAITING); n++)
            post(server, &server->methods[i]);
    for (int n = 0; n < UNKNOWN_WAITING; n++)
        post(server, NULL);
    *out = server;
    return STATUS_OK;
}

void rpc_server_close(struct rpc_server *server, uint32_t grace_ms)
{
    struct timespec until;
    int code = 0;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += grace_ms / 1000;
    until.tv_nsec += (long)(grace_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    if (!server->closing) {
        server->closing = true;
        TAG_GIVEN(&server->stopped_tag);
        grpc_server_shutdown_and_notify(server->server, server->loop->queue, &server->stopped_tag);
    }
    pthread_mutex_lock(&server->lock);
    while (!server->stopped && code == 0)
        code = pthread_cond_clockwait(&server->changed, &server->lock, CLOCK_MONOTONIC,
                                      &until);
    pthread_mutex_unlock(&server->lock);
}

void rpc_server_stop(struct rpc_server *server, uint32_t grace_ms)
{
    rpc_server_close(server, grace_ms);
    pthread_mutex_lock(&server->lock);
    if (!server->stopped) {
        pthread_mutex_unlock(&server->lock);
        grpc_server_cancel_all_calls(server->server);
        pthread_mutex_lock(&server->lock);
        while (!server->stopped)
            pthread_cond_wait(&server->changed, &server->lock);
    }
    pthread_mutex_unlock(&server->lock);
}

void rpc_server_free(struct rpc_server *server)
{
    if (server == NULL)
        return;
    grpc_server_destroy(server->server);
    while (server->free_calls != NULL) {
        struct rpc_call *next = server->free_calls->next_free;

        free(server->free_calls);
        server->free_calls = next;
    }
    free(server->methods);
    pthread_mutex_destroy(&server->lock);
    pthread_cond_destroy(&server->changed);
    free(server);
}

/*
 * Streams of both sides. One read and one write are under way at most; what is sent meanwhile
 * waits in a queue, and is given to the transport with a hint that more follows.
 *
 * The call lives until all its operations came back. `closed` is told once, after the final
 * operation (RECV_STATUS or RECV_CLOSE) AND the last read are back, so that no message follows it.
 */
#include "internal.h"

enum { CONNECT_MS = 1000 }; /* for a connection and its handshake, which a busy machine may take long over */

enum { QUEUE_FIRST = 8 }; /* messages that there is room for at first: a power of two */

struct operation {
    struct tag tag;
    struct rpc_stream *stream;
};

/* The streams that this thread has sent on since rpc_together_begin(). */
static _Thread_local struct {
    bool begun;
    struct rpc_stream *first;
} together;

struct rpc_stream {
    struct rpc_stream *next_together;
    bool together; /* some thread's: it starts the write */
    atomic_int references;
    pthread_mutex_t lock;
    grpc_call *call;
    const struct rpc_stream_events *events;
    void *user;
    bool server;
    uint16_t port; /* server: the caller's */
    uint64_t deadline_ms;

    struct operation begin, read, write, final, end;
    grpc_byte_buffer *incoming;
    grpc_byte_buffer **queue; /* a ring */
    size_t queue_room;        /* a power of two */
    size_t queue_first;
    size_t queued;
    size_t pending; /* with the one that is being written */
    bool reading;
    bool paused;
    bool read_ended;
    bool writing;
    bool finishing; /* finish asked for; sent after the queue */
    bool end_sent;
    bool final_done;
    bool told;

    int code; /* server: to send; client: received */
    grpc_slice text;
    grpc_slice details;
    grpc_metadata_array initial;
    grpc_metadata_array trailing;
    grpc_metadata details_entry;
    grpc_metadata authorization; /* client: to send */
    int cancelled;
    void *caller;
    void (*forget)(void *caller, bool stream);
};

/* ---- the queue; with the lock held ---- */

static void queue_push(struct rpc_stream *s, grpc_byte_buffer *message)
{
    if (s->queued == s->queue_room) {
        size_t room = s->queue_room == 0 ? QUEUE_FIRST : s->queue_room * 2;
        grpc_byte_buffer **queue = memory_take(room * sizeof(grpc_byte_buffer *));

        for (size_t i = 0; i < s->queued; i++)
            queue[i] = s->queue[(s->queue_first + i) & (s->queue_room - 1)];
        free(s->queue);
        s->queue = queue;
        s->queue_room = room;
        s->queue_first = 0;
    }
    s->queue[(s->queue_first + s->queued++) & (s->queue_room - 1)] = message;
    s->pending++;
}

/* NULL when nothing waits. */
static grpc_byte_buffer *queue_pop(struct rpc_stream *s)
{
    grpc_byte_buffer *message;

    if (s->queued == 0)
        return NULL;
    message = s->queue[s->queue_first];
    s->queue_first = (s->queue_first + 1) & (s->queue_room - 1);
    s->queued--;
    return message;
}

static void queue_drop(struct rpc_stream *s)
{
    grpc_byte_buffer *message;

    while ((message = queue_pop(s)) != NULL)
        grpc_byte_buffer_destroy(message);
    s->pending = 0;
}

/* ---- references ---- */

struct rpc_stream *rpc_stream_hold(struct rpc_stream *s)
{
    atomic_fetch_add(&s->references, 1);
    return s;
}

void rpc_stream_drop(struct rpc_stream *s)
{
    if (s == NULL || atomic_fetch_sub(&s->references, 1) != 1)
        return;
    queue_drop(s);
    free(s->queue);
    if (s->caller != NULL)
        s->forget(s->caller, true);
    grpc_slice_unref(s->text);
    grpc_slice_unref(s->details);
    grpc_metadata_array_destroy(&s->initial);
    grpc_metadata_array_destroy(&s->trailing);
    grpc_call_unref(s->call);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static void start(struct rpc_stream *s, struct operation *operation, const grpc_op *ops, size_t n)
{
    grpc_call *inner = s->call;
    grpc_call_error code;

    rpc_stream_hold(s);
    TAG_GIVEN(&operation->tag);
    code = grpc_call_start_batch(inner, ops, n, &operation->tag, NULL);
    assert(code == GRPC_CALL_OK); /* anything else is wrong use of the API */
    (void)code;
}

/* ---- with the lock held ---- */

static void start_read(struct rpc_stream *s)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};

    if (s->reading || s->paused || s->read_ended)
        return;
    s->reading = true;
    op.data.recv_message.recv_message = &s->incoming;
    start(s, &s->read, &op, 1);
}

static void start_end(struct rpc_stream *s)
{
    grpc_op op = {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};

    s->end_sent = true;
    if (s->server) {
        op.op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        op.data.send_status_from_server.status = (grpc_status_code)s->code;
        op.data.send_status_from_server.status_details = &s->text;
        if (GRPC_SLICE_LENGTH(s->details) > 0) {
            s->details_entry.key = grpc_slice_from_static_string("grpc-status-details-bin");
            s->details_entry.value = s->details;
            op.data.send_status_from_server.trailing_metadata_count = 1;
            op.data.send_status_from_server.trailing_metadata = &s->details_entry;
        }
    }
    start(s, &s->end, &op, 1);
}

static void start_write(struct rpc_stream *s)
{
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE};
    grpc_byte_buffer *message;

    if (s->writing || s->end_sent)
        return;
    if (!s->server && s->final_done) { /* the call is over, and `closed` told: its queue may be gone */
        queue_drop(s);
        return;
    }
    message = queue_pop(s);
    if (message == NULL) {
        if (s->finishing)
            start_end(s);
        return;
    }
    if (s->queued > 0)
        op.flags = GRPC_WRITE_BUFFER_HINT;
    s->writing = true;
    op.data.send_message.send_message = message;
    start(s, &s->write, &op, 1);
    grpc_byte_buffer_destroy(message); /* the operation has its own reference */
}

/* ---- completions ---- */

static struct rpc_stream *stream_of(struct tag *tag)
{
    return CONTAINER_OF(tag, struct operation, tag)->stream;
}

static void maybe_tell_closed(struct rpc_stream *s)
{
    bool tell;
    char text[512];

    pthread_mutex_lock(&s->lock);
    tell = s->final_done && !s->reading && !s->told;
    s->told = s->told || tell;
    if (tell) {
        size_t len = GRPC_SLICE_LENGTH(s->text);

        if (len >= sizeof text)
            len = sizeof text - 1;
        if (!s->server && len > 0)
            memcpy(text, GRPC_SLICE_START_PTR(s->text), len);
        text[s->server ? 0 : len] = '\0';
    }
    pthread_mutex_unlock(&s->lock);
    if (!tell)
        return;
    s->events->closed(s->user, s, s->server ? s->cancelled != 0 : s->code, text);
    rpc_stream_drop(s); /* the opener's */
}

static void begun(struct tag *tag, bool ok)
{
    (void)ok;
    rpc_stream_drop(stream_of(tag));
}

static void read_done(struct tag *tag, bool ok)
{
    struct rpc_stream *s = stream_of(tag);
    grpc_byte_buffer *message = s->incoming;

    s->incoming = NULL;
    if (ok && s->port != 0)
        rpc_progress(s->port);
    if (ok && message != NULL) {
        grpc_slice slice = rpc_contiguous(message);

        s->events->message(s->user, s, (struct bytes){GRPC_SLICE_START_PTR(slice),
                                                      GRPC_SLICE_LENGTH(slice)});
        grpc_slice_unref(slice);
        grpc_byte_buffer_destroy(message);
        pthread_mutex_lock(&s->lock);
        s->reading = false;
        start_read(s);
        pthread_mutex_unlock(&s->lock);
    } else {
        pthread_mutex_lock(&s->lock);
        s->reading = false;
        s->read_ended = true;
        pthread_mutex_unlock(&s->lock);
        if (s->events->finished != NULL)
            s->events->finished(s->user, s);
    }
    maybe_tell_closed(s);
    rpc_stream_drop(s);
}

static void write_done(struct tag *tag, bool ok)
{
    struct rpc_stream *s = stream_of(tag);
    bool drained;

    if (ok && s->port != 0)
        rpc_progress(s->port);
    pthread_mutex_lock(&s->lock);
    s->writing = false;
    if (s->pending > 0)
        s->pending--;
    if (ok) {
        start_write(s);
    } else {
        queue_drop(s);
        if (s->server && s->final_done && !s->end_sent)
            start_end(s);
    }
    drained = ok && s->pending == 0 && !s->told;
    pthread_mutex_unlock(&s->lock);
    if (drained && s->events->drained != NULL)
        s->events->drained(s->user, s);
    rpc_stream_drop(s);
}

static void end_done(struct tag *tag, bool ok)
{
    (void)ok;
    rpc_stream_drop(stream_of(tag));
}

static void final_done(struct tag *tag, bool ok)
{
    struct rpc_stream *s = stream_of(tag);

    (void)ok;
    pthread_mutex_lock(&s->lock);
    s->final_done = true;
    s->read_ended = true; /* no read is started any more */
    if (s->server && !s->end_sent) {
        s->finishing = true;
        queue_drop(s);
        if (!s->writing)
            start_end(s); /* every call ends with a status */
    }
    pthread_mutex_unlock(&s->lock);
    maybe_tell_closed(s);
    rpc_stream_drop(s);
}

/* ---- birth ---- */

static struct rpc_stream *new_stream(grpc_call *call, const struct rpc_stream_events *events,
                                     bool server)
{
    struct rpc_stream *s = memory_zero(1, sizeof *s);

    atomic_init(&s->references, 1);
    pthread_mutex_init(&s->lock, NULL);
    s->call = call;
    s->events = events;
    s->server = server;
    s->begin = (struct operation){{begun}, s};
    s->read = (struct operation){{read_done}, s};
    s->write = (struct operation){{write_done}, s};
    s->final = (struct operation){{final_done}, s};
    s->end = (struct operation){{end_done}, s};
    s->text = grpc_empty_slice();
    s->details = grpc_empty_slice();
    grpc_metadata_array_init(&s->initial);
    grpc_metadata_array_init(&s->trailing);
    return s;
}

void rpc_stream_accept(grpc_call *call, const struct rpc_stream_events *events, void *context,
                       uint64_t deadline_ms, void *caller, void (*forget)(void *caller, bool stream))
{
    struct rpc_stream *s = new_stream(call, events, true);
    grpc_op begin = {.op = GRPC_OP_SEND_INITIAL_METADATA};
    grpc_op final = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};

    s->port = rpc_port_of(call);
    s->deadline_ms = deadline_ms;
    s->caller = caller;
    s->forget = forget;
    final.data.recv_close_on_server.cancelled = &s->cancelled;
    rpc_stream_hold(s); /* until this function is done with it */
    events->opened(context, s);
    pthread_mutex_lock(&s->lock);
    start(s, &s->final, &final, 1);
    start(s, &s->begin, &begin, 1);
    start_read(s);
    pthread_mutex_unlock(&s->lock);
    rpc_stream_drop(s);
}

struct rpc_stream *rpc_stream_open(struct rpc_channel *channel, const char *path,
                                   const struct rpc_stream_events *events, void *user,
                                   uint32_t timeout_ms)
{
    grpc_slice method = grpc_slice_from_copied_string(path);
    grpc_call *call =
        grpc_channel_create_call(channel->channel, NULL, GRPC_PROPAGATE_DEFAULTS,
                                 channel->loop->queue, method, NULL, rpc_deadline_in(timeout_ms), NULL);
    struct rpc_stream *s = new_stream(call, events, false);
    grpc_op begin[2] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
                        {.op = GRPC_OP_RECV_INITIAL_METADATA}};
    grpc_op final = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};

    grpc_slice_unref(method);
    rpc_authorize(&begin[0], channel, &s->authorization);
    s->user = user;
    s->deadline_ms = timeout_ms == 0 ? UINT64_MAX : clock_monotonic_ms() + timeout_ms;
    begin[1].data.recv_initial_metadata.recv_initial_metadata = &s->initial;
    final.data.recv_status_on_client.trailing_metadata = &s->trailing;
    final.data.recv_status_on_client.status = (grpc_status_code *)&s->code;
    final.data.recv_status_on_client.status_details = &s->text;
    /* The caller's reference: `closed` drops the first one, and may come before this returns. */
    rpc_stream_hold(s);
    pthread_mutex_lock(&s->lock);
    start(s, &s->final, &final, 1);
    start(s, &s->begin, begin, 2);
    start_read(s);
    pthread_mutex_unlock(&s->lock);
    return s;
}

/* ---- use ---- */

void rpc_stream_set_user(struct rpc_stream *s, void *user)
{
    s->user = user;
}

void *rpc_stream_caller(const struct rpc_stream *s)
{
    return s->caller;
}

uint64_t rpc_stream_deadline_ms(const struct rpc_stream *s)
{
    return s->deadline_ms;
}

const char *rpc_stream_peer(struct rpc_stream *s, char *out, size_t room)
{
    return rpc_peer_of(s->call, out, room);
}

void rpc_stream_send(struct rpc_stream *s, struct bytes message)
{
    grpc_byte_buffer *copy = rpc_message(message);

    pthread_mutex_lock(&s->lock);
    if (s->final_done || s->finishing) {
        pthread_mutex_unlock(&s->lock);
        grpc_byte_buffer_destroy(copy);
        return;
    }
    queue_push(s, copy);
    if (!together.begun) {
        start_write(s);
    } else if (!s->together) {
        s->together = true;
        s->next_together = together.first;
        together.first = rpc_stream_hold(s);
    }
    pthread_mutex_unlock(&s->lock);
}

void rpc_together_begin(void)
{
    together.begun = true;
}

void rpc_together_end(void)
{
    together.begun = false;
    while (together.first != NULL) {
        struct rpc_stream *s = together.first;

        together.first = s->next_together;
        pthread_mutex_lock(&s->lock);
        s->together = false;
        start_write(s);
        pthread_mutex_unlock(&s->lock);
        rpc_stream_drop(s);
    }
}

size_t rpc_stream_pending(struct rpc_stream *s)
{
    size_t pending;

    pthread_mutex_lock(&s->lock);
    pending = s->pending;
    pthread_mutex_unlock(&s->lock);
    return pending;
}

void rpc_stream_pause(struct rpc_stream *s, bool paused)
{
    pthread_mutex_lock(&s->lock);
    s->paused = paused;
    if (!s->final_done)
        start_read(s);
    pthread_mutex_unlock(&s->lock);
}

struct bytes rpc_stream_details(struct rpc_stream *s)
{
    for (size_t i = 0; i < s->trailing.count; i++) {
        const grpc_slice *value = &s->trailing.metadata[i].value;

        if (grpc_slice_str_cmp(s->trailing.metadata[i].key, "grpc-status-details-bin") == 0)
            return (struct bytes){GRPC_SLICE_START_PTR(*value), GRPC_SLICE_LENGTH(*value)};
    }
    return BYTES_NONE;
}

void rpc_stream_finish(struct rpc_stream *s, int code, const char *message, struct bytes details)
{
    pthread_mutex_lock(&s->lock);
    if (!s->finishing && !s->final_done) {
        s->finishing = true;
        if (s->server) {
            s->code = code;
            s->text = grpc_slice_from_copied_string(message == NULL ? "" : message);
            s->details = grpc_slice_from_copied_buffer((const char *)details.data, details.len);
        }
        start_write(s);
    }
    pthread_mutex_unlock(&s->lock);
}

void rpc_stream_cancel(struct rpc_stream *s)
{
    grpc_call_cancel(s->call, NULL);
}

/* ---- channels ---- */

struct rpc_channel *rpc_channel_new(struct rpc_loop *loop, const char *address, uint32_t message_bytes_max,
                                    const struct rpc_tls *tls)
{
    struct rpc_channel *channel = memory_zero(1, sizeof *channel);
    grpc_channel_credentials *credentials = rpc_tls_channel(tls);
    grpc_arg args[] = {
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, .value.integer = 1},
        {.type = GRPC_ARG_INTEGER,
         .key = GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
         .value.integer = (int)message_bytes_max},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, .value.integer = -1},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_KEEPALIVE_TIME_MS, .value.integer = 10000},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_KEEPALIVE_TIMEOUT_MS, .value.integer = 3000},
        {.type = GRPC_ARG_INTEGER,
         .key = GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS,
         .value.integer = 100},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, .value.integer = CONNECT_MS},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, .value.integer = 1000},
        {.type = GRPC_ARG_INTEGER, .key = GRPC_ARG_ENABLE_HTTP_PROXY, .value.integer = 0},
    };
    grpc_channel_args all = {COUNT_OF(args), args};

    channel->loop = loop;
    channel->tls = tls;
    channel->channel = grpc_channel_create(address, credentials, &all);
    grpc_channel_credentials_release(credentials);
    return channel;
}

void rpc_channel_free(struct rpc_channel *channel)
{
    if (channel == NULL)
        return;
    grpc_channel_destroy(channel->channel);
    free(channel);
}

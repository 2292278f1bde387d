/*
 * A small asynchronous layer on gRPC C core: unary calls and streams, served and made, driven by
 * poller threads over completion queues. The only folder that knows gRPC.
 *
 * Thread rule: callbacks come from poller threads and must not wait; everything that answers,
 * sends or closes may be called from any thread.
 */
#ifndef CAIRN_RPC_H
#define CAIRN_RPC_H

#include "base/base.h"

/* ---- the loop: one completion queue and its thread ---- */

struct rpc_loop;

MUST_USE enum status rpc_loop_new(struct rpc_loop **out);
/* Runs until everything that uses the loop is gone. Call after servers and channels are stopped. */
void rpc_loop_free(struct rpc_loop *loop);

/* ---- TLS ---- */

struct rpc_tls;

struct rpc_tls_settings {
    const char *certificate; /* path; NULL for a client without one */
    const char *key;
    const char *roots; /* path of the bundle that the other side's chain must end in */
    bool demand;       /* server: nobody without a certificate; otherwise it is the user's to decide */
    const char *token; /* client: shown with each call; NULL for none */
    /* Client: is that the right server? NULL: its certificate must name the address. From any thread. */
    bool (*accept)(void *context, struct bytes certificate, struct bytes chain, char *why, size_t room);
    void *context;
};

/* The files are read again when they change. Outlives all that use it. */
struct rpc_tls *rpc_tls_new(const struct rpc_tls_settings *settings);
void rpc_tls_free(struct rpc_tls *tls);

/* What a caller has shown. Borrowed. */
struct rpc_shown {
    struct bytes certificate; /* PEM; empty for none */
    struct bytes chain;       /* the same with what came with it */
    struct bytes token;       /* bearer, of the metadata */
};

/* ---- serving ---- */

struct rpc_server;
struct rpc_call;
struct rpc_stream;

/* What a stream tells its user. `user` is what rpc_stream_set_user() was given. */
struct rpc_stream_events {
    /* Server side only: a client opened it. */
    void (*opened)(void *context, struct rpc_stream *stream);
    /* The bytes are borrowed. The next message comes after this returns and reading isn't paused. */
    void (*message)(void *user, struct rpc_stream *stream, struct bytes message);
    /* The other side finished sending (client half-closed). */
    void (*finished)(void *user, struct rpc_stream *stream);
    /* Last callback. Client side: the status that the server gave; server side: code 1
     * (cancelled) when the client went away, 0 otherwise. Then drop what is held of the stream: whoever opened it has
     * one, `opened` takes one by rpc_stream_hold(). */
    void (*closed)(void *user, struct rpc_stream *stream, int code, const char *message);
    /* Everything sent so far went to the transport. May be NULL. */
    void (*drained)(void *user, struct rpc_stream *stream);
};

struct rpc_method {
    const char *path; /* "/package.Service/Method" */
    void *context;
    unsigned access; /* the user's own, for `admit` */
    /* One of the two. The request stays valid until the call is answered. */
    void (*unary)(void *context, struct rpc_call *call, struct bytes request);
    const struct rpc_stream_events *stream;
};

/* What a caller is told that isn't admitted. */
struct rpc_refusal {
    int code;
    char message[400];
    struct buffer details;
};

struct rpc_server_settings {
    const char *listen; /* host:port */
    const struct rpc_method *methods;
    size_t method_count;
    uint32_t message_bytes_max;
    uint32_t calls_per_connection; /* more wait at the caller; 0: no limit */
    uint64_t memory_bytes;         /* buffers of all connections; who needs more is let go */
    uint32_t connection_idle_ms;   /* without a call it is closed then; 0: never */
    const struct rpc_tls *tls;     /* NULL for none */
    /* Before anybody else sees the call: who calls, which `forget` takes back when the call or stream is
     * over. NULL: nobody is asked. */
    bool (*admit)(void *context, const struct rpc_method *method, const struct rpc_shown *shown, void **caller,
                  struct rpc_refusal *refusal);
    void (*forget)(void *caller, bool stream);
    void *context;
};

/* Starts to serve. A taken port is a fault that names it. */
MUST_USE enum status rpc_server_new(struct rpc_server **out, struct rpc_loop *loop,
                                    const struct rpc_server_settings *settings,
                                    struct fault *fault);
/* No new calls; waits up to grace_ms for the running ones. */
void rpc_server_close(struct rpc_server *server, uint32_t grace_ms);
/* The same, then cancels those that are left. */
void rpc_server_stop(struct rpc_server *server, uint32_t grace_ms);
void rpc_server_free(struct rpc_server *server);

/* For the whole process, and before the first server: how many connections may be open, in all (0: no limit) and from
 * one address (0: as many). Who is too many is let go at once; who has sent `idle_bytes` (0: no limit) that came to
 * no call and no message, and got none, as well. Raises the limit of open files to the hard one. */
void rpc_limit_connections(size_t most, size_t most_of_address, size_t idle_bytes);
uint64_t rpc_connections_refused(void);

/* Monotonic milliseconds; UINT64_MAX when the caller gave no deadline. */
uint64_t rpc_call_deadline_ms(const struct rpc_call *call);
/* Who calls, as `admit` said; borrowed. */
void *rpc_call_caller(const struct rpc_call *call);
const char *rpc_call_peer(struct rpc_call *call, char *out, size_t room);
/* Exactly one of these for each call. */
void rpc_call_reply(struct rpc_call *call, struct bytes message);
void rpc_call_fail(struct rpc_call *call, int code, const char *message, struct bytes details);

/* ---- streams ---- */

void rpc_stream_set_user(struct rpc_stream *stream, void *user);
/* Server: who opened it, as `admit` said; borrowed. */
void *rpc_stream_caller(const struct rpc_stream *stream);
uint64_t rpc_stream_deadline_ms(const struct rpc_stream *stream);
/* Client, in `closed`: the error's packed google.rpc.Status, empty when it came without. */
struct bytes rpc_stream_details(struct rpc_stream *stream);
const char *rpc_stream_peer(struct rpc_stream *stream, char *out, size_t room);
/* Copies the bytes. Nothing happens once the stream is closed. */
void rpc_stream_send(struct rpc_stream *stream, struct bytes message);
/* What this thread sends in between waits for the end, so that the messages of one stream leave together. */
void rpc_together_begin(void);
void rpc_together_end(void);
/* Messages queued and not yet given to the transport. */
size_t rpc_stream_pending(struct rpc_stream *stream);
/* No more messages are read until resumed: the sender's flow control does the rest. */
void rpc_stream_pause(struct rpc_stream *stream, bool paused);
/* Server: end with a status after what is queued. Client: half-close (code is ignored). */
void rpc_stream_finish(struct rpc_stream *stream, int code, const char *message,
                       struct bytes details);
/* End now; `closed` still comes. */
void rpc_stream_cancel(struct rpc_stream *stream);
/* Whoever keeps a stream across threads holds it. The opener holds one from the beginning. */
struct rpc_stream *rpc_stream_hold(struct rpc_stream *stream);
void rpc_stream_drop(struct rpc_stream *stream);

/* ---- calling ---- */

struct rpc_channel;

/* A channel has its own connection, shared with no other channel. Connects when first used. `tls` NULL: without. */
struct rpc_channel *rpc_channel_new(struct rpc_loop *loop, const char *address, uint32_t message_bytes_max,
                                    const struct rpc_tls *tls);
void rpc_channel_free(struct rpc_channel *channel);
struct rpc_stream *rpc_stream_open(struct rpc_channel *channel, const char *path,
                                   const struct rpc_stream_events *events, void *user,
                                   uint32_t timeout_ms);

/* A call with one request and at most one answer, which is borrowed. The path lives as long as the process. `done`
 * comes once, from the poller, maybe before this returns. */
typedef void rpc_unary_done(void *user, int code, const char *text, struct bytes message);
void rpc_unary_call(struct rpc_channel *channel, const char *path, struct bytes request, uint32_t timeout_ms,
                    rpc_unary_done *done, void *user);

/* Once per process, around everything else. */
void rpc_begin(void);
void rpc_end(void);

#endif

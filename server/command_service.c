/* CommandService: Dispatch and DispatchStream. Workers' HandleCommands is in workers.c. */
#include "faults.h"
#include "node.h"

enum { ANSWER_ROOM_BYTES = 1024 }; /* what most answers need is on the stack */

/* Where the command was decided, when that wasn't here. */
static struct bytes owner_hint(struct request *r, char *out, size_t room)
{
    if (r->routed.target == 0 || !control_member_address(r->node->control, r->routed.target, out, room))
        return BYTES_NONE;
    return bytes_of(out);
}

/* ---- unary: Dispatch and Append ---- */

static void finish_call(struct request *r, const struct outcome *outcome,
                        const struct fault *fault)
{
    struct fault rejected;
    uint8_t room[ANSWER_ROOM_BYTES];
    struct buffer out = buffer_in(room, sizeof room);
    char owner[ADDRESS_BYTES_MAX + 1];

    if (outcome != NULL && outcome->rejection.present) {
        fault_from_rejection(&rejected, outcome);
        fault = &rejected;
    }
    if (fault != NULL) {
        fault_fail_call(r->call, fault);
        return;
    }
    if (r->routed.admitted.command.kind >= COMMAND_WRITE_SNAPSHOT)
        wire_snapshot_response(&out, outcome);
    else if (r->routed.admitted.command.kind == COMMAND_APPEND)
        wire_append_response(&out, outcome, owner_hint(r, owner, sizeof owner));
    else
        wire_dispatch_response(&out, outcome, owner_hint(r, owner, sizeof owner));
    rpc_call_reply(r->call, buffer_bytes(&out));
    buffer_release(&out);
}

static void start_call(struct node *node, struct rpc_call *call, struct bytes packed,
                       enum command_kind kind)
{
    struct request *r = request_new(node);
    struct fault fault;

    r->call = call;
    r->caller = rpc_call_caller(call);
    r->finish = finish_call;
    if (request_start(r, packed, kind, rpc_call_deadline_ms(call), &fault) != STATUS_OK)
        fault_fail_call(call, &fault);
}

void dispatch_call(void *context, struct rpc_call *call, struct bytes request)
{
    start_call(context, call, request, COMMAND_DISPATCH);
}

void append_call(void *context, struct rpc_call *call, struct bytes request)
{
    start_call(context, call, request, COMMAND_APPEND);
}

void write_snapshot_call(void *context, struct rpc_call *call, struct bytes request)
{
    start_call(context, call, request, COMMAND_WRITE_SNAPSHOT);
}

void delete_snapshot_call(void *context, struct rpc_call *call, struct bytes request)
{
    start_call(context, call, request, COMMAND_DELETE_SNAPSHOT);
}

/* ---- DispatchStream ---- */

enum { OUTSTANDING_MAX = 4096 };

/* Lives until the stream is closed and its last command is answered. */
struct dispatch_session {
    struct node *node;
    struct rpc_stream *stream;
    atomic_int references;
    atomic_int outstanding;
    atomic_bool full;    /* of commands without an answer */
    atomic_bool limited; /* one was refused for now: in the node's list */
    struct dispatch_session *next_limited;
    pthread_mutex_t lock;
    int holds; /* reasons not to read; with the lock held */
    atomic_bool half_closed;
};

/* Nothing is read while there is a reason for that. */
static void hold_back(struct dispatch_session *session)
{
    pthread_mutex_lock(&session->lock);
    if (session->holds++ == 0)
        rpc_stream_pause(session->stream, true);
    pthread_mutex_unlock(&session->lock);
}

static void let_go_on(struct dispatch_session *session)
{
    pthread_mutex_lock(&session->lock);
    if (--session->holds == 0)
        rpc_stream_pause(session->stream, false);
    pthread_mutex_unlock(&session->lock);
}

static void session_drop(struct dispatch_session *session)
{
    if (atomic_fetch_sub(&session->references, 1) != 1)
        return;
    rpc_stream_drop(session->stream);
    pthread_mutex_destroy(&session->lock);
    free(session);
}

/* Who is told to come back later, and goes on all the same, isn't heard until then: to refuse costs time too. */
static void limit(struct dispatch_session *session)
{
    struct node *node = session->node;

    if (atomic_exchange(&session->limited, true))
        return;
    atomic_fetch_add(&session->references, 1);
    hold_back(session);
    pthread_mutex_lock(&node->limited_lock);
    session->next_limited = node->limited;
    node->limited = session;
    pthread_mutex_unlock(&node->limited_lock);
}

void dispatch_hear_again(struct node *node)
{
    struct dispatch_session *session;

    pthread_mutex_lock(&node->limited_lock);
    session = node->limited;
    node->limited = NULL;
    pthread_mutex_unlock(&node->limited_lock);
    while (session != NULL) {
        struct dispatch_session *next = session->next_limited;

        atomic_store(&session->limited, false);
        let_go_on(session);
        session_drop(session);
        session = next;
    }
}

static void opened(void *context, struct rpc_stream *stream)
{
    struct dispatch_session *session = memory_zero(1, sizeof *session);

    session->node = context;
    session->stream = rpc_stream_hold(stream);
    atomic_init(&session->references, 1);
    pthread_mutex_init(&session->lock, NULL);
    rpc_stream_set_user(stream, session);
}

static void send_result(struct dispatch_session *session, struct bytes command_id,
                        const struct outcome *outcome, struct bytes owner,
                        const struct fault *fault)
{
    uint8_t room[ANSWER_ROOM_BYTES];
    struct buffer out = buffer_in(room, sizeof room);
    struct fault rejected;

    if (outcome != NULL && outcome->rejection.present) {
        fault_from_rejection(&rejected, outcome);
        fault = &rejected;
        outcome = NULL;
    }
    wire_dispatch_stream_response(&out, command_id, outcome, owner, fault,
                                  fault == NULL ? 0 : fault_code(fault));
    rpc_stream_send(session->stream, buffer_bytes(&out));
    buffer_release(&out);
}

static void maybe_finish(struct dispatch_session *session)
{
    if (atomic_load(&session->half_closed) && atomic_load(&session->outstanding) == 0)
        rpc_stream_finish(session->stream, CODE_OK, "", BYTES_NONE);
}

static void finish_in_stream(struct request *r, const struct outcome *outcome,
                             const struct fault *fault)
{
    struct dispatch_session *session = r->session;
    char owner[ADDRESS_BYTES_MAX + 1];

    send_result(session, r->routed.admitted.command.id, outcome, owner_hint(r, owner, sizeof owner),
                fault);
    if (atomic_fetch_sub(&session->outstanding, 1) == OUTSTANDING_MAX / 2 &&
        atomic_exchange(&session->full, false))
        let_go_on(session);
    maybe_finish(session);
    session_drop(session);
}

static void message(void *user, struct rpc_stream *stream, struct bytes packed)
{
    struct dispatch_session *session = user;
    struct request *r = request_new(session->node);
    uint64_t deadline = rpc_stream_deadline_ms(stream);
    uint64_t timeout_ms = 0;
    struct fault fault;
    struct bytes copy = arena_copy(&r->routed.arena, packed);
    enum status status = wire_dispatch_stream_decode(copy, &r->routed.arena, &r->routed.admitted.command,
                                                     &timeout_ms, &fault);

    if (status == STATUS_OK) {
        uint8_t id_room[COMMAND_ID_BYTES_MAX]; /* the request is gone when it isn't started */
        struct buffer id = buffer_in(id_room, sizeof id_room);

        buffer_add(&id, r->routed.admitted.command.id.data, r->routed.admitted.command.id.len);
        if (timeout_ms > 0 && clock_monotonic_ms() + timeout_ms < deadline)
            deadline = clock_monotonic_ms() + timeout_ms;
        r->session = session;
        r->caller = rpc_stream_caller(stream);
        r->finish = finish_in_stream;
        atomic_fetch_add(&session->references, 1);
        if (atomic_fetch_add(&session->outstanding, 1) + 1 >= OUTSTANDING_MAX &&
            !atomic_exchange(&session->full, true)) {
            hold_back(session);
            /* Everything may have been answered in between. */
            if (atomic_load(&session->outstanding) < OUTSTANDING_MAX / 2 &&
                atomic_exchange(&session->full, false))
                let_go_on(session);
        }
        status = request_start(r, BYTES_NONE, COMMAND_DISPATCH, deadline, &fault);
        if (status != STATUS_OK) {
            send_result(session, buffer_bytes(&id), NULL, BYTES_NONE, &fault);
            if (status == STATUS_EXHAUSTED)
                limit(session);
            atomic_fetch_sub(&session->outstanding, 1);
            session_drop(session);
        }
        buffer_release(&id);
    } else {
        send_result(session, BYTES_NONE, NULL, BYTES_NONE, &fault);
        request_free(r);
    }
}

static void finished(void *user, struct rpc_stream *stream)
{
    struct dispatch_session *session = user;

    (void)stream;
    atomic_store(&session->half_closed, true);
    maybe_finish(session);
}

static void closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    (void)stream;
    (void)code;
    (void)text;
    session_drop(user);
}

const struct rpc_stream_events dispatch_stream_events = {
    .opened = opened, .message = message, .finished = finished, .closed = closed};

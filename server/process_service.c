/*
 * EventService.Process, GetGroup and ResetGroup. A group has one coordinator, the owner of its home partition:
 * when that is this node the feeder has the member, else the stream is put through to it, and a call passed on.
 */
#include "access.h"
#include "event/group.h"
#include "faults.h"
#include "feed.h"

enum { PENDING_MAX = 8, CALL_TIMEOUT_MS = 10000 };

/* The streams that are put through. A coordinator that hangs doesn't end them, and its successor knows of no member
 * before those join again. */
struct through_streams {
    pthread_mutex_t lock; /* of the list, and of `source` and `moved` of what is in it */
    struct process_stream *first;
};

static enum status know_owner(struct node *node, struct bytes group, bool forwarded, uint64_t *owner,
                              char *address, size_t room, struct fault *fault)
{
    uint32_t home;

    *owner = 0;
    if (atomic_load(&node->founding) == NULL) {
        (void)fault_set(fault, STATUS_UNAVAILABLE, "NOT_READY", "this node is not a member of a cluster yet");
        fault->retry_ms = 200;
        return STATUS_UNAVAILABLE;
    }
    *owner = group_owner(node, group, &home);
    if (*owner == node->id)
        return STATUS_OK;
    if (*owner == 0 || forwarded || !control_member_address(node->control, *owner, address, room)) {
        (void)fault_set(fault, STATUS_UNAVAILABLE, "COORDINATOR_UNKNOWN",
                        "who owns partition %u, the home of group %.*s, isn't known here now", home,
                        (int)group.len, (const char *)group.data);
        fault->retry_ms = 100;
        return STATUS_UNAVAILABLE;
    }
    return STATUS_OK;
}

/* ---- a stream that is put through ---- */

/* When both sides are closed. */
static void put_down(struct process_stream *member)
{
    struct through_streams *all = member->node->through_streams;
    struct process_stream **at = &all->first;

    pthread_mutex_lock(&all->lock);
    while (*at != NULL && *at != member)
        at = &(*at)->next;
    if (*at != NULL)
        *at = member->next;
    pthread_mutex_unlock(&all->lock);
    rpc_channel_free(member->channel);
    rpc_stream_drop(member->stream);
    arena_release(&member->arena);
    free(member);
}

static void source_message(void *user, struct rpc_stream *source, struct bytes message)
{
    struct process_stream *member = user;

    rpc_stream_send(member->stream, message);
    if (rpc_stream_pending(member->stream) >= PENDING_MAX)
        rpc_stream_pause(source, true); /* drained() goes on; same thread */
}

static void source_closed(void *user, struct rpc_stream *source, int code, const char *text)
{
    struct process_stream *member = user;
    struct through_streams *all = member->node->through_streams;
    struct fault fault;
    bool moved;

    pthread_mutex_lock(&all->lock);
    member->source = NULL;
    moved = member->moved;
    pthread_mutex_unlock(&all->lock);
    if (moved) {
        coordinator_changed(&fault);
        fault_finish_stream(member->stream, &fault);
    } else {
        rpc_stream_finish(member->stream, code, text, rpc_stream_details(source));
    }
    rpc_stream_drop(source);
    if (member->client_closed)
        put_down(member);
}

static const struct rpc_stream_events source_events = {.message = source_message, .closed = source_closed};

/* With the lock held. */
static void leave_if_moved(struct process_stream *member)
{
    uint64_t epoch;
    uint64_t owner = routes_owner(member->node->routes, member->home, &epoch);

    if (owner == 0 || owner == member->coordinator || member->source == NULL || member->moved)
        return;
    member->moved = true;
    rpc_stream_cancel(member->source);
}

void through_streams_moved(struct through_streams *all, uint32_t partition)
{
    pthread_mutex_lock(&all->lock);
    for (struct process_stream *member = all->first; member != NULL; member = member->next)
        if (member->home == partition)
            leave_if_moved(member);
    pthread_mutex_unlock(&all->lock);
}

struct through_streams *through_streams_new(void)
{
    struct through_streams *all = memory_zero(1, sizeof *all);

    pthread_mutex_init(&all->lock, NULL);
    return all;
}

void through_streams_free(struct through_streams *all)
{
    if (all == NULL)
        return;
    pthread_mutex_destroy(&all->lock);
    free(all);
}

static void put_through(struct process_stream *member, uint64_t coordinator, const char *address)
{
    struct through_streams *all = member->node->through_streams;
    struct buffer out = {0};

    member->request.forwarded = true;
    wire_join_pack(&out, &member->request);
    member->channel = rpc_channel_new(member->node->loop, address, GRPC_MESSAGE_BYTES_MAX, access_peer_tls(member->node));
    member->source = rpc_stream_open(member->channel, "/cairn.v1.EventService/Process", &source_events, member, 0);
    rpc_stream_send(member->source, buffer_bytes(&out));
    buffer_release(&out);
    pthread_mutex_lock(&all->lock);
    member->home = group_home(member->request.group, node_partition_count(member->node));
    member->coordinator = coordinator;
    member->next = all->first;
    all->first = member;
    leave_if_moved(member); /* meanwhile */
    pthread_mutex_unlock(&all->lock);
}

/* ---- a member's stream ---- */

static void opened(void *context, struct rpc_stream *stream)
{
    struct process_stream *member = memory_zero(1, sizeof *member);

    member->node = context;
    member->stream = rpc_stream_hold(stream);
    member->join.kind = FEED_JOIN;
    member->left.kind = FEED_LEFT;
    rpc_stream_set_user(stream, member);
}

/* A subscribing processor belongs to the node of its stream. */
static enum status subscribe_here(struct process_stream *member, struct fault *fault)
{
    if (atomic_load(&member->node->founding) == NULL) {
        (void)fault_set(fault, STATUS_UNAVAILABLE, "NOT_READY", "this node is not a member of a cluster yet");
        fault->retry_ms = 200;
        return STATUS_UNAVAILABLE;
    }
    member->joined = member->subscribing = true;
    local_bus_send(member->node->local_bus, &member->join);
    return STATUS_OK;
}

static void first_message(struct process_stream *member, struct bytes packed)
{
    struct fault fault;
    uint64_t owner;
    char address[ADDRESS_BYTES_MAX + 1];
    enum status status = wire_process_decode(arena_copy(&member->arena, packed), &member->arena,
                                             &member->request, &fault);

    if (status == STATUS_OK && member->request.kind != PROCESS_JOIN)
        status = fault_set(&fault, STATUS_INVALID, "NOT_JOINED", "the first message must be join");
    if (status == STATUS_OK)
        status = access_read(member->node, rpc_stream_caller(member->stream), "Process", member->request.group,
                             &member->request.filter, &fault);
    if (status == STATUS_OK && member->request.subscribing) {
        if (subscribe_here(member, &fault) != STATUS_OK)
            fault_finish_stream(member->stream, &fault);
        return;
    }
    if (status == STATUS_OK)
        status = know_owner(member->node, member->request.group, member->request.forwarded, &owner, address,
                            sizeof address, &fault);
    if (status != STATUS_OK) {
        fault_finish_stream(member->stream, &fault);
        return;
    }
    member->joined = true;
    if (owner == member->node->id)
        feeder_send(member->node->feeder, &member->join);
    else
        put_through(member, owner, address);
}

static void message(void *user, struct rpc_stream *stream, struct bytes packed)
{
    struct process_stream *member = user;
    struct said_note *note;

    (void)stream;
    if (!member->joined) {
        first_message(member, packed);
    } else if (member->channel != NULL) {
        if (member->source != NULL)
            rpc_stream_send(member->source, packed);
    } else {
        note = memory_zero(1, sizeof *note + packed.len);
        note->letter.kind = FEED_SAID;
        note->member = member;
        note->len = packed.len;
        if (packed.len > 0)
            memcpy(note->bytes, packed.data, packed.len);
        if (member->subscribing)
            local_bus_send(member->node->local_bus, &note->letter);
        else
            feeder_send(member->node->feeder, &note->letter);
    }
}

static void drained(void *user, struct rpc_stream *stream)
{
    struct process_stream *member = user;

    (void)stream;
    if (member->source != NULL)
        rpc_stream_pause(member->source, false);
}

/* A member that says that it is done leaves, behind all that it said before. */
static void finished(void *user, struct rpc_stream *stream)
{
    struct process_stream *member = user;

    if (member->source != NULL)
        rpc_stream_finish(member->source, 0, NULL, BYTES_NONE); /* source_closed() ends ours */
    else
        rpc_stream_finish(stream, CODE_OK, "", BYTES_NONE);
}

static void closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct process_stream *member = user;

    (void)stream;
    (void)code;
    (void)text;
    member->client_closed = true;
    if (member->subscribing)
        local_bus_send(member->node->local_bus, &member->left); /* frees it */
    else if (member->joined && member->channel == NULL)
        feeder_send(member->node->feeder, &member->left); /* frees it */
    else if (member->source != NULL)
        rpc_stream_cancel(member->source);
    else
        put_down(member);
}

const struct rpc_stream_events process_events = {
    .opened = opened, .message = message, .finished = finished, .closed = closed, .drained = drained};

/* ---- calls ---- */

struct passed_call {
    struct rpc_call *call;
    struct rpc_channel *channel;
    bool answered;
};

static void passed_message(void *user, struct rpc_stream *source, struct bytes message)
{
    struct passed_call *passed = user;

    (void)source;
    if (!passed->answered)
        rpc_call_reply(passed->call, message);
    passed->answered = true;
}

static void passed_closed(void *user, struct rpc_stream *source, int code, const char *text)
{
    struct passed_call *passed = user;

    if (!passed->answered)
        rpc_call_fail(passed->call, code == CODE_OK ? CODE_UNAVAILABLE : code, text, rpc_stream_details(source));
    rpc_stream_drop(source);
    rpc_channel_free(passed->channel);
    free(passed);
}

static const struct rpc_stream_events passed_events = {.message = passed_message, .closed = passed_closed};

static void pass_on(struct node *node, struct rpc_call *call, struct bytes packed, enum group_request_kind kind,
                    const char *address)
{
    static const char *const methods[] = {[GROUP_GET] = "/cairn.v1.EventService/GetGroup",
                                          [GROUP_RESET] = "/cairn.v1.EventService/ResetGroup",
                                          [GROUP_RETRY] = "/cairn.v1.EventService/RetryParked"};
    struct passed_call *passed = memory_zero(1, sizeof *passed);
    struct buffer out = {0};
    struct rpc_stream *stream;

    passed->call = call;
    passed->channel = rpc_channel_new(node->loop, address, GRPC_MESSAGE_BYTES_MAX, access_peer_tls(node));
    wire_group_request_forward(&out, packed, kind);
    stream = rpc_stream_open(passed->channel, methods[kind], &passed_events, passed, CALL_TIMEOUT_MS);
    rpc_stream_send(stream, buffer_bytes(&out));
    rpc_stream_finish(stream, 0, NULL, BYTES_NONE);
    buffer_release(&out);
}

static void ask(struct node *node, struct rpc_call *call, struct bytes packed, enum group_request_kind kind)
{
    struct group_question *question = memory_zero(1, sizeof *question);
    struct bytes own = arena_copy(&question->arena, packed);
    struct fault fault;
    uint64_t owner;
    char address[ADDRESS_BYTES_MAX + 1];
    enum status status = wire_group_request_decode(kind, own, &question->arena, &question->request, &fault);

    if (status == STATUS_OK)
        status = know_owner(node, question->request.group, question->request.forwarded, &owner, address,
                            sizeof address, &fault);
    if (status == STATUS_OK && owner == node->id) {
        question->letter.kind = FEED_ASKED;
        question->call = call;
        question->node = node;
        feeder_send(node->feeder, &question->letter);
        return;
    }
    if (status == STATUS_OK)
        pass_on(node, call, packed, kind, address);
    else
        fault_fail_call(call, &fault);
    arena_release(&question->arena);
    free(question);
}

void get_group_call(void *context, struct rpc_call *call, struct bytes request)
{
    ask(context, call, request, GROUP_GET);
}

void reset_group_call(void *context, struct rpc_call *call, struct bytes request)
{
    ask(context, call, request, GROUP_RESET);
}

void retry_parked_call(void *context, struct rpc_call *call, struct bytes request)
{
    ask(context, call, request, GROUP_RETRY);
}

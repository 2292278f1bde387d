/*
 * An operator's orders (drain, remove, transfer, settings) on their way to the placement:
 *
 *   call ─▶ NEW ─▶ this node owns the system partition ─▶ DECIDING (its shard) ─▶ AWAITED ─▶ answered
 *                ─▶ another does ─▶ RELAYED (PeerService.Operate) ─▶ its answer
 *
 * Answered once the placement is in force here, so what was ordered isn't lost with any one node. An order is
 * safe to give again: it says what should be.
 */
#include "access.h"
#include "audit.h"
#include "faults.h"
#include "node.h"

enum { ORDER_TIMEOUT_MS = 10000, ORDER_RETRY_MS = 100, ORDERS_MAX = 256 };

struct order_job {
    struct order_job *next;
    struct orders *all;
    enum { ORDER_NEW, ORDER_DECIDING, ORDER_AWAITED, ORDER_RELAYED, ORDER_DONE } state;
    struct rpc_call *call;     /* a client's, or */
    struct rpc_stream *client; /* a peer's; held */
    struct arena arena;
    uint32_t kind;
    const char *who; /* in the arena; of a client */
    const char *from;
    struct bytes packed;
    struct placement_order order;
    uint64_t deadline_ms;
    uint64_t retry_ms;
    uint64_t version;
    struct rpc_channel *channel;
    struct rpc_stream *source;
    struct buffer answer; /* of the source */
};

struct orders {
    struct node *node;
    pthread_mutex_t lock;
    struct order_job *first;
    size_t count;
    bool stopping;
};

/* ---- answers; with the lock held ---- */

static void note(const struct order_job *job, struct bytes outcome)
{
    static const char *const names[] = {[ORDER_DRAIN] = "DrainNode",
                                        [ORDER_UNDRAIN] = "DrainNode",
                                        [ORDER_REMOVE] = "RemoveNode",
                                        [ORDER_PREFER] = "TransferOwnership",
                                        [ORDER_SETTINGS] = "UpdateSettings"};

    if (job->call != NULL)
        audit(job->all->node, &(struct audit_entry){.who = job->who,
                                                    .from = job->from,
                                                    .what = names[job->kind],
                                                    .target = job->order.name,
                                                    .outcome = outcome});
}

static void answer(struct order_job *job, struct bytes packed)
{
    if (job->state == ORDER_DONE)
        return;
    job->state = ORDER_DONE;
    note(job, BYTES_LITERAL("ok"));
    if (job->call != NULL) {
        rpc_call_reply(job->call, packed);
    } else {
        rpc_stream_send(job->client, packed);
        rpc_stream_finish(job->client, CODE_OK, "", BYTES_NONE);
    }
}

static void refuse(struct order_job *job, const struct fault *fault)
{
    if (job->state == ORDER_DONE)
        return;
    job->state = ORDER_DONE;
    note(job, bytes_of(fault->reason));
    if (job->call != NULL)
        fault_fail_call(job->call, fault);
    else
        fault_finish_stream(job->client, fault);
}

static void refuse_unavailable(struct order_job *job, const char *reason, const char *why)
{
    struct fault fault;

    (void)fault_set(&fault, STATUS_UNAVAILABLE, reason, "%s; give the order again", why);
    fault.retry_ms = 200;
    refuse(job, &fault);
}

/* ---- the shard's word ---- */

void orders_decided(struct order_job *job, uint64_t version, const struct fault *fault)
{
    pthread_mutex_lock(&job->all->lock);
    if (fault == NULL) {
        job->version = version;
        job->state = ORDER_AWAITED;
    } else if (fault->status == STATUS_UNAVAILABLE && !job->all->stopping) {
        job->state = ORDER_NEW;
        job->retry_ms = clock_monotonic_ms() + ORDER_RETRY_MS;
    } else {
        refuse(job, fault);
    }
    pthread_mutex_unlock(&job->all->lock);
    control_wake(job->all->node->control);
}

const struct placement_order *orders_order(const struct order_job *job)
{
    return &job->order;
}

static void decide_here(struct order_job *job)
{
    struct node *node = job->all->node;
    struct order_letter *letter = memory_zero(1, sizeof *letter);

    job->state = ORDER_DECIDING;
    letter->letter.kind = LETTER_ORDER;
    letter->job = job;
    shard_send(node_shard_of(node, node_partition_count(node)), &letter->letter);
}

/* ---- another node's word ---- */

static void on_message(void *user, struct rpc_stream *stream, struct bytes message)
{
    struct order_job *job = user;

    (void)stream;
    pthread_mutex_lock(&job->all->lock);
    job->answer.len = 0;
    buffer_add(&job->answer, message.data, message.len);
    pthread_mutex_unlock(&job->all->lock);
}

static void on_closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct order_job *job = user;

    pthread_mutex_lock(&job->all->lock);
    job->source = NULL;
    if (job->state != ORDER_RELAYED) {
        /* answered already */
    } else if (code == CODE_OK) {
        answer(job, buffer_bytes(&job->answer));
    } else if (code == CODE_UNAVAILABLE && !job->all->stopping) {
        job->state = ORDER_NEW;
        job->retry_ms = clock_monotonic_ms() + ORDER_RETRY_MS;
    } else if (code == CODE_DEADLINE_EXCEEDED || job->all->stopping) {
        refuse_unavailable(job, "OWNER_SILENT", "the owner of the system partition didn't answer");
    } else { /* its refusal, word for word */
        struct bytes reason = wire_fault_reason(rpc_stream_details(stream), &job->arena);

        job->state = ORDER_DONE;
        note(job, reason.len > 0 ? reason : bytes_of(text));
        rpc_call_fail(job->call, code, text, rpc_stream_details(stream));
    }
    pthread_mutex_unlock(&job->all->lock);
    rpc_stream_drop(stream);
}

static const struct rpc_stream_events events = {.message = on_message, .closed = on_closed};

static void relay(struct order_job *job, uint64_t owner, uint64_t now_ms)
{
    struct node *node = job->all->node;
    struct operate_request request = {.kind = job->kind, .request = job->packed};
    struct buffer out = {0};
    char address[ADDRESS_BYTES_MAX + 1];

    if (!control_member_address(node->control, owner, address, sizeof address)) {
        job->retry_ms = now_ms + ORDER_RETRY_MS;
        return;
    }
    node_hello(node, &request.hello, owner);
    wire_operate_pack(&out, &request);
    rpc_channel_free(job->channel);
    job->channel = rpc_channel_new(node->loop, address, GRPC_MESSAGE_BYTES_MAX, access_peer_tls(node));
    job->source = rpc_stream_open(job->channel, "/cairn.peer.v1.PeerService/Operate", &events, job,
                                  (uint32_t)(job->deadline_ms - now_ms));
    rpc_stream_send(job->source, buffer_bytes(&out));
    rpc_stream_finish(job->source, 0, NULL, BYTES_NONE);
    job->state = ORDER_RELAYED;
    buffer_release(&out);
}

/* ---- the control thread ---- */

static void go_on(struct order_job *job, uint64_t now_ms)
{
    struct node *node = job->all->node;
    uint64_t epoch;
    uint64_t owner;

    if (atomic_load(&node->founding) == NULL) {
        refuse_unavailable(job, "NOT_FOUNDED", "this node belongs to no cluster yet");
        return;
    }
    owner = routes_owner(node->routes, node_partition_count(node), &epoch);
    if (now_ms >= job->deadline_ms)
        refuse_unavailable(job, "NO_OWNER", "nobody took the order in time: the system partition has no owner");
    else if (owner == node->id)
        decide_here(job);
    else if (job->client != NULL)
        refuse_unavailable(job, "NOT_OWNER", "this node doesn't own the system partition any more");
    else if (owner == 0)
        job->retry_ms = now_ms + ORDER_RETRY_MS;
    else
        relay(job, owner, now_ms);
}

static void look_after(struct order_job *job, uint64_t now_ms)
{
    struct buffer out = {0};

    if (job->state == ORDER_NEW && now_ms >= job->retry_ms) {
        go_on(job, now_ms);
    } else if (job->state == ORDER_AWAITED && placements_version(job->all->node->placements) >= job->version) {
        wire_order_answer_pack(&out, job->version);
        answer(job, buffer_bytes(&out));
        buffer_release(&out);
    } else if (job->state == ORDER_AWAITED && now_ms >= job->deadline_ms) {
        refuse_unavailable(job, "OUTCOME_UNKNOWN", "the order was taken, but isn't known to be written");
    }
}

static void free_done(struct orders *all)
{
    struct order_job **at = &all->first;

    while (*at != NULL) {
        struct order_job *job = *at;

        if (job->state != ORDER_DONE || job->source != NULL) {
            at = &job->next;
            continue;
        }
        *at = job->next;
        all->count--;
        rpc_channel_free(job->channel);
        rpc_stream_drop(job->client);
        buffer_release(&job->answer);
        arena_release(&job->arena);
        free(job);
    }
}

void orders_tick(struct orders *all, uint64_t now_ms)
{
    pthread_mutex_lock(&all->lock);
    for (struct order_job *job = all->first; job != NULL; job = job->next)
        look_after(job, now_ms);
    free_done(all);
    pthread_mutex_unlock(&all->lock);
}

/* ---- where they come from ---- */

/* Takes the fault's answer upon itself. */
static void take(struct orders *all, struct rpc_call *call, struct rpc_stream *client, uint32_t kind,
                 struct bytes packed)
{
    struct order_job *job = memory_zero(1, sizeof *job);
    uint64_t now = clock_monotonic_ms();
    uint64_t deadline = call != NULL ? rpc_call_deadline_ms(call) : rpc_stream_deadline_ms(client);
    struct fault fault;
    enum status status;

    *job = (struct order_job){.all = all,
                              .call = call,
                              .client = client == NULL ? NULL : rpc_stream_hold(client),
                              .kind = kind,
                              .deadline_ms = deadline < now + ORDER_TIMEOUT_MS ? deadline
                                                                               : now + ORDER_TIMEOUT_MS};
    job->packed = arena_copy(&job->arena, packed);
    if (call != NULL) {
        char from[128];

        job->who = arena_printf(&job->arena, "%s", principal_identity(rpc_call_caller(call)));
        job->from = arena_printf(&job->arena, "%s", rpc_call_peer(call, from, sizeof from));
    }
    status = wire_order_decode(kind, job->packed, &job->arena, &job->order, &fault);
    pthread_mutex_lock(&all->lock);
    job->next = all->first;
    all->first = job;
    all->count++;
    if (status != STATUS_OK) {
        refuse(job, &fault);
    } else if (all->stopping) {
        refuse_unavailable(job, "NODE_STOPPING", "this node stops");
    } else if (all->count > ORDERS_MAX) {
        (void)fault_set(&fault, STATUS_EXHAUSTED, "TOO_MANY_ORDERS", "%d orders wait here already", ORDERS_MAX);
        fault.retry_ms = 1000;
        refuse(job, &fault);
    }
    pthread_mutex_unlock(&all->lock);
    control_wake(all->node->control);
}

void drain_node_call(void *context, struct rpc_call *call, struct bytes request)
{
    take(((struct node *)context)->orders, call, NULL, ORDER_DRAIN, request);
}

void remove_node_call(void *context, struct rpc_call *call, struct bytes request)
{
    take(((struct node *)context)->orders, call, NULL, ORDER_REMOVE, request);
}

void transfer_ownership_call(void *context, struct rpc_call *call, struct bytes request)
{
    take(((struct node *)context)->orders, call, NULL, ORDER_PREFER, request);
}

void update_settings_call(void *context, struct rpc_call *call, struct bytes request)
{
    take(((struct node *)context)->orders, call, NULL, ORDER_SETTINGS, request);
}

void orders_operate(struct node *node, struct rpc_stream *stream, uint32_t kind, struct bytes request)
{
    take(node->orders, NULL, stream, kind, request);
}

/* ---- birth and death ---- */

struct orders *orders_new(struct node *node)
{
    struct orders *orders = memory_zero(1, sizeof *orders);

    orders->node = node;
    pthread_mutex_init(&orders->lock, NULL);
    return orders;
}

bool orders_gone(struct orders *all)
{
    bool gone;

    pthread_mutex_lock(&all->lock);
    all->stopping = true;
    for (struct order_job *job = all->first; job != NULL; job = job->next) {
        if (job->state == ORDER_NEW || job->state == ORDER_AWAITED)
            refuse_unavailable(job, "NODE_STOPPING", "this node stops");
        if (job->source != NULL)
            rpc_stream_cancel(job->source);
    }
    free_done(all);
    gone = all->first == NULL;
    pthread_mutex_unlock(&all->lock);
    return gone;
}

void orders_free(struct orders *all)
{
    if (all == NULL)
        return;
    pthread_mutex_destroy(&all->lock);
    free(all);
}

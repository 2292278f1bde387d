/*
 * Where each command of this shard's partitions goes, and its way back.
 *
 *   arrived ─▶ owner here ─▶ ADMITTED to the aggregates ─▶ answered
 *           ─▶ owner known ─▶ FORWARDED over its link ──▶ result
 *           ─▶ no owner now ─▶ WAITING, until the routes change or the deadline
 *
 * The node that took a command from a client keeps it until the answer: when the owner changes,
 * its link breaks or it stays silent, the same command goes to the next owner. The recorded outcome
 * makes that safe. A command that came from a peer is never forwarded again: its node hears who
 * the owner is and sends it there.
 */
#include "engine.h"
#include "faults.h"

enum { RETRY_MS = 20, RESEND_MS = 2000 };

static void finish_for_peer(struct request *r, const struct outcome *outcome,
                            const struct fault *fault)
{
    struct shard *shard = node_shard_of(r->node, r->partition);
    struct command_result result = {.request_id = r->peer_request};
    struct buffer packed = {0};

    if (outcome != NULL) {
        wire_outcome_pack(&packed, outcome);
        result.outcome = buffer_bytes(&packed);
    } else {
        result.status = fault->status;
        result.reason = bytes_of(fault->reason);
        result.message = bytes_of(fault->message);
        result.retry_ms = fault->retry_ms;
        if (fault->status == STATUS_NOT_OWNER)
            result.owner = slot_owner(slot_of(shard, r->partition), &result.epoch);
    }
    frame_add_result(outbox_for(shard, r->peer), &result);
    buffer_release(&packed);
}

/* ---- the active list ---- */

static void list_add(struct shard *shard, struct request *r)
{
    r->older = shard->newest;
    r->newer = NULL;
    *(shard->newest == NULL ? &shard->oldest : &shard->newest->newer) = r;
    shard->newest = r;
    shard->request_count++;
}

static void list_remove(struct shard *shard, struct request *r)
{
    *(r->older == NULL ? &shard->oldest : &r->older->newer) = r->newer;
    *(r->newer == NULL ? &shard->newest : &r->newer->older) = r->older;
    shard->request_count--;
}

static void unforward(struct shard *shard, struct request *r)
{
    if (r->state == REQUEST_FORWARDED) {
        HASH_DEL(shard->forwards, r);
        r->state = REQUEST_WAITING;
    }
}

/* The one answer. The request goes with it, unless the aggregates still have it. */
static void finish(struct shard *shard, struct request *r, const struct outcome *outcome,
                   const struct fault *fault)
{
    struct node *node = shard->node;
    bool held = r->state == REQUEST_ADMITTED;

    if (!r->finished) {
        if (r->peer == 0) {
            if (outcome != NULL && outcome->rejection.present)
                METRIC_ADD(node, commands_rejected, 1);
            else if (outcome != NULL)
                METRIC_ADD(node, commands_accepted, 1);
            else
                METRIC_ADD(node, commands_failed, 1);
            histogram_add(&node->metrics.command_latency, clock_monotonic_us() - r->started_us);
        }
        r->finish(r, outcome, fault);
        r->finished = true;
    }
    if (held)
        return;
    unforward(shard, r);
    list_remove(shard, r);
    request_free(r);
}

static void wait_until(struct request *r, uint64_t retry_ms)
{
    r->state = REQUEST_WAITING;
    r->retry_ms = retry_ms;
}

static void forward(struct shard *shard, struct request *r, uint64_t owner)
{
    uint64_t left = r->admitted.deadline_ms - shard->moment.now_ms;
    struct forwarded_command out = {
        .partition = r->partition,
        .hops = 1,
        .timeout_ms = left > UINT32_MAX ? UINT32_MAX : (uint32_t)left,
        .kind = r->admitted.command.kind,
        .request = r->admitted.command.packed,
    };

    if (r->started_us != 0 && r->target != 0)
        METRIC_ADD(shard->node, commands_resent, 1);
    METRIC_ADD(shard->node, commands_forwarded, 1);
    r->id = ++shard->next_id << 8 | shard->index;
    r->target = owner;
    r->state = REQUEST_FORWARDED;
    r->retry_ms = shard->moment.now_ms + RESEND_MS;
    HASH_ADD(hh, shard->forwards, id, sizeof r->id, r);
    out.request_id = r->id;
    frame_add_command(outbox_for(shard, owner), &out);
}

static void route(struct shard *shard, struct request *r)
{
    struct slot *slot = slot_of(shard, r->partition);
    uint64_t epoch;
    uint64_t owner;

    if (slot->partition != NULL && partition_is_owner(slot->partition)) {
        r->state = REQUEST_ADMITTED;
        r->target = 0;
        slot->touched = true;
        aggregates_admit(slot->aggregates, &r->admitted, shard->moment);
        return;
    }
    owner = slot_owner(slot, &epoch);
    if (r->peer != 0) {
        struct fault fault;

        if (slot->partition != NULL && partition_view(slot->partition).leading) {
            wait_until(r, shard->moment.now_ms + RETRY_MS); /* about to be the owner */
            return;
        }
        (void)fault_set(&fault, STATUS_NOT_OWNER, "NOT_OWNER", "another node owns the partition");
        finish(shard, r, NULL, &fault);
        return;
    }
    if (owner != 0 && owner != shard->node->id && links_up(shard->node->links, owner))
        forward(shard, r, owner);
    else
        wait_until(r, shard->moment.now_ms + RETRY_MS);
}

/* The packed request must carry the id, so that a resend is known. */
static void seal_id(struct request *r)
{
    struct command *command = &r->admitted.command;
    struct buffer with_id = {0};

    if (command->kind == COMMAND_APPEND) {
        buffer_add(&with_id, command->packed.data, command->packed.len);
        buffer_add(&with_id, "\x0a", 1); /* field 1: of a scalar the last one wins */
        buffer_add(&with_id, &(uint8_t){(uint8_t)command->id.len}, 1);
        buffer_add(&with_id, command->id.data, command->id.len);
    } else {
        struct bytes inner = wire_command_inside(command);
        size_t len = inner.len + 2 + command->id.len + (command->id.len > 127);
        uint8_t head[12];
        size_t n = 0;

        head[n++] = 0x0a;
        for (; len >= 0x80; len >>= 7)
            head[n++] = (uint8_t)(len | 0x80);
        head[n++] = (uint8_t)len;
        buffer_add(&with_id, head, n);
        buffer_add(&with_id, inner.data, inner.len);
        buffer_add(&with_id, "\x0a", 1);
        n = 0;
        if (command->id.len > 127) {
            head[n++] = (uint8_t)(command->id.len | 0x80);
            head[n++] = (uint8_t)(command->id.len >> 7);
        } else {
            head[n++] = (uint8_t)command->id.len;
        }
        buffer_add(&with_id, head, n);
        buffer_add(&with_id, command->id.data, command->id.len);
    }
    command->packed = arena_copy(&r->arena, buffer_bytes(&with_id));
    buffer_release(&with_id);
}

void router_take(struct shard *shard, struct request *r)
{
    if (r->peer == 0)
        seal_id(r);
    list_add(shard, r);
    route(shard, r);
}

void router_take_forwarded(struct shard *shard, uint64_t from, const struct forwarded_command *in)
{
    struct request *r = request_new(shard->node);
    struct bytes packed = arena_copy(&r->arena, in->request);
    struct command *command = &r->admitted.command;
    struct fault fault;
    enum status status;

    r->peer = from;
    r->peer_request = in->request_id;
    r->partition = in->partition;
    r->finish = finish_for_peer;
    r->admitted.deadline_ms = shard->moment.now_ms + in->timeout_ms;
    status = request_decode(r, packed, in->kind, &fault);
    if (status == STATUS_OK)
        status = command_check(command, (uint32_t)shard->node->config.payload_bytes_max, &fault);
    if (status == STATUS_OK &&
        (command->id.len == 0 ||
         node_partition_of(shard->node, command->aggregate_id) != in->partition))
        status = fault_set(&fault, STATUS_INVALID, "MALFORMED_MESSAGE",
                           "a proxied command has no id or the wrong partition");
    if (status != STATUS_OK) {
        finish_for_peer(r, NULL, &fault);
        request_free(r);
        return;
    }
    router_take(shard, r);
}

void router_take_result(struct shard *shard, uint64_t from, const struct command_result *in)
{
    struct request *r = NULL;
    struct fault fault = {0};
    struct outcome outcome;

    HASH_FIND(hh, shard->forwards, &in->request_id, sizeof in->request_id, r);
    if (r == NULL || r->target != from)
        return; /* answered by another, or given up */
    unforward(shard, r);
    if (in->outcome.len > 0) {
        struct arena arena = {0};

        if (wire_outcome_decode(in->outcome, &arena, &outcome, &fault) == STATUS_OK)
            finish(shard, r, &outcome, NULL);
        else
            finish(shard, r, NULL, &fault);
        arena_release(&arena);
        return;
    }
    if (in->status == STATUS_NOT_OWNER) {
        if (in->owner != 0 && in->owner != from)
            (void)routes_set(shard->node->routes, r->partition, in->owner, in->epoch);
        wait_until(r, shard->moment.now_ms + RETRY_MS);
        return;
    }
    (void)fault_set(&fault, (enum status)in->status, "", "%.*s", (int)in->message.len,
                    (const char *)in->message.data);
    snprintf(fault.reason, sizeof fault.reason, "%.*s", (int)in->reason.len,
             (const char *)in->reason.data);
    fault.retry_ms = in->retry_ms;
    if (fault.status == STATUS_OK || fault.status > STATUS_PRECONDITION)
        fault.status = STATUS_FAILED;
    finish(shard, r, NULL, &fault);
}

void router_answered(struct shard *shard, struct admitted *command, const struct outcome *outcome,
                     const struct fault *fault)
{
    struct request *r = CONTAINER_OF(command, struct request, admitted);

    r->state = REQUEST_WAITING; /* the aggregates have let it go */
    if (!r->finished && fault != NULL && fault->status == STATUS_NOT_OWNER && r->peer == 0 &&
        !shard->stopping) {
        wait_until(r, shard->moment.now_ms + 5);
        return;
    }
    finish(shard, r, outcome, fault);
}

/* Once a second at most: why commands of a partition wait. */
static void tell_why(struct shard *shard, const struct request *r)
{
    struct slot *slot = slot_of(shard, r->partition);
    uint64_t epoch;
    uint64_t owner = slot_owner(slot, &epoch);
    struct partition_view view = {0};

    if (shard->moment.now_ms < shard->next_complaint)
        return;
    shard->next_complaint = shard->moment.now_ms + 1000;
    if (slot->partition != NULL)
        view = partition_view(slot->partition);
    journal(JOURNAL_WARN, "command-expired",
            "partition %u, %s; owner %016llx epoch %llu; here: %s, leader %016llx term %llu, log "
            "%llu, commit %llu, stored %llu%s%s",
            r->partition,
            r->state == REQUEST_WAITING     ? "waiting for an owner"
            : r->state == REQUEST_FORWARDED ? "forwarded"
                                            : "at its aggregate",
            (unsigned long long)owner, (unsigned long long)epoch,
            view.owner ? "owner" : view.leading ? "leading" : "not owner",
            (unsigned long long)view.leader, (unsigned long long)view.term,
            (unsigned long long)view.last_index, (unsigned long long)view.commit_index,
            (unsigned long long)view.stored_index, view.transferring ? ", transferring" : "",
            view.installing ? ", installing" : "");
}

static void expire(struct shard *shard, struct request *r)
{
    struct fault fault;

    tell_why(shard, r);
    (void)fault_set(&fault, STATUS_DEADLINE, "DEADLINE_EXCEEDED",
                    "no outcome before the deadline (%s); ask again with the same command id",
                    r->state == REQUEST_WAITING     ? "the partition has no owner now"
                    : r->state == REQUEST_FORWARDED ? "its owner didn't answer"
                                                    : "it was still at work");
    finish(shard, r, NULL, &fault);
}

void router_tick(struct shard *shard, bool all)
{
    uint64_t now = shard->moment.now_ms;
    struct request *r = shard->oldest;

    while (r != NULL) {
        struct request *newer = r->newer;

        if (!r->finished && r->admitted.deadline_ms <= now) {
            expire(shard, r);
        } else if (r->state == REQUEST_WAITING && (all || r->retry_ms <= now)) {
            route(shard, r);
        } else if (r->state == REQUEST_FORWARDED) {
            uint64_t epoch;
            uint64_t owner = slot_owner(slot_of(shard, r->partition), &epoch);

            if ((owner != 0 && owner != r->target) || r->retry_ms <= now) {
                unforward(shard, r);
                route(shard, r);
            }
        }
        r = newer;
    }
}

void router_link_lost(struct shard *shard, uint64_t node_id)
{
    for (struct request *r = shard->oldest; r != NULL; r = r->newer)
        if (r->state == REQUEST_FORWARDED && r->target == node_id) {
            unforward(shard, r);
            wait_until(r, shard->moment.now_ms + RETRY_MS);
        }
}

void router_abandon(struct shard *shard)
{
    struct request *r = shard->oldest;
    struct fault fault;

    (void)fault_set(&fault, STATUS_UNAVAILABLE, "NODE_STOPPING",
                    "this node stops; ask another one with the same command id");
    while (r != NULL) {
        struct request *newer = r->newer;

        if (r->state != REQUEST_ADMITTED || !r->finished)
            finish(shard, r, NULL, &fault);
        r = newer;
    }
}

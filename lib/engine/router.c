/*
 * Where each command of this engine's partitions goes, and its way back.
 *
 *   arrived ─▶ owner here ─▶ ADMITTED to the aggregates ─▶ answered
 *           ─▶ owner known ─▶ FORWARDED to that node ──▶ result
 *           ─▶ no owner now ─▶ WAITING, until the routes change or the deadline
 *
 * The node that took a command from a client keeps it until the answer: when the owner changes,
 * its link breaks or it stays silent, the same command goes to the next owner. The recorded outcome
 * makes that safe. A command that came from a peer is never forwarded again: its node hears who
 * the owner is and sends it there.
 */
#include "parts.h"

enum { RETRY_MS = 20, RESEND_MS = 2000, NOT_OWNER_RETRY_MS = 5 };

static void answer_peer(struct engine *engine, struct routed *r, const struct outcome *outcome,
                        const struct fault *fault)
{
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
            result.owner = slot_owner(slot_of(engine, r->partition), &result.epoch);
    }
    frame_add_result(engine_outbox(engine, r->peer), &result);
    buffer_release(&packed);
}

/* ---- the active list ---- */

static void list_add(struct engine *engine, struct routed *r)
{
    r->older = engine->newest;
    r->newer = NULL;
    *(engine->newest == NULL ? &engine->oldest : &engine->newest->newer) = r;
    engine->newest = r;
    engine->routed_count++;
}

static void list_remove(struct engine *engine, struct routed *r)
{
    *(r->older == NULL ? &engine->oldest : &r->older->newer) = r->newer;
    *(r->newer == NULL ? &engine->newest : &r->newer->older) = r->older;
    engine->routed_count--;
}

static void unforward(struct engine *engine, struct routed *r)
{
    if (r->state == ROUTED_FORWARDED) {
        HASH_DEL(engine->forwards, r);
        r->state = ROUTED_WAITING;
    }
}

/* The one answer. The command goes with it, unless the aggregates still have it. */
static void finish(struct engine *engine, struct routed *r, const struct outcome *outcome,
                   const struct fault *fault)
{
    bool held = r->state == ROUTED_ADMITTED;

    if (!r->finished) {
        if (r->peer != 0)
            answer_peer(engine, r, outcome, fault);
        engine->effects.answered(engine->effects.context, r, outcome, fault);
        r->finished = true;
    }
    if (held)
        return;
    unforward(engine, r);
    list_remove(engine, r);
    r->state = ROUTED_DONE;
    r->older = engine->done;
    engine->done = r;
}

void router_release(struct engine *engine)
{
    while (engine->done != NULL) {
        struct routed *r = engine->done;

        engine->done = r->older;
        engine->effects.released(engine->effects.context, r);
    }
}

static void wait_until(struct routed *r, uint64_t retry_ms)
{
    r->state = ROUTED_WAITING;
    r->retry_ms = retry_ms;
}

static void forward(struct engine *engine, struct routed *r, uint64_t owner)
{
    const struct engine_effects *effects = &engine->effects;
    uint64_t now = engine->moment.now_ms;
    uint64_t left = r->admitted.deadline_ms > now ? r->admitted.deadline_ms - now : 0;
    struct forwarded_command out = {
        .partition = r->partition,
        .hops = 1,
        .timeout_ms = left > UINT32_MAX ? UINT32_MAX : (uint32_t)left,
        .kind = r->admitted.command.kind,
        .request = r->admitted.command.packed,
        .principal = r->admitted.command.principal,
    };

    if (r->target != 0)
        effects->count(effects->context, ENGINE_RESENT);
    effects->count(effects->context, ENGINE_FORWARDED);
    r->id = ++engine->next_id << 8 | engine->settings.index;
    r->target = owner;
    r->state = ROUTED_FORWARDED;
    r->retry_ms = now + RESEND_MS;
    HASH_ADD(hh, engine->forwards, id, sizeof r->id, r);
    out.request_id = r->id;
    frame_add_command(engine_outbox(engine, owner), &out);
}

static void route(struct engine *engine, struct routed *r)
{
    struct slot *slot = slot_of(engine, r->partition);
    uint64_t epoch;
    uint64_t owner;

    if (slot->partition != NULL && partition_is_owner(slot->partition)) {
        r->state = ROUTED_ADMITTED;
        r->target = 0;
        slot->touched = true;
        aggregates_admit(slot->aggregates, &r->admitted, engine->moment);
        return;
    }
    owner = slot_owner(slot, &epoch);
    if (r->peer != 0) {
        struct fault fault;

        if (slot->partition != NULL && partition_view(slot->partition).leading) {
            wait_until(r, engine->moment.now_ms + RETRY_MS); /* about to be the owner */
            return;
        }
        (void)fault_set(&fault, STATUS_NOT_OWNER, "NOT_OWNER", "another node owns the partition");
        finish(engine, r, NULL, &fault);
        return;
    }
    if (owner != 0 && owner != engine->settings.node_id &&
        engine->effects.reachable(engine->effects.context, owner))
        forward(engine, r, owner);
    else
        wait_until(r, engine->moment.now_ms + RETRY_MS);
}

enum status routed_decode(struct routed *r, struct bytes packed, enum command_kind kind,
                          struct fault *fault)
{
    struct command *command = &r->admitted.command;

    if (kind == COMMAND_APPEND)
        return wire_append_decode(packed, &r->arena, command, fault);
    if (kind == COMMAND_DISPATCH)
        return wire_dispatch_decode(packed, &r->arena, command, fault);
    if (kind == COMMAND_WRITE_SNAPSHOT)
        return wire_write_snapshot_decode(packed, &r->arena, command, fault);
    if (kind == COMMAND_FORGET)
        return wire_forget_decode(packed, &r->arena, command, fault);
    if (kind == COMMAND_DELETE_SNAPSHOT)
        return wire_delete_snapshot_decode(packed, &r->arena, command, fault);
    return fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE", "unknown kind of request %d",
                     (int)kind);
}

void engine_take(struct engine *engine, struct routed *r)
{
    if (r->peer == 0)
        wire_command_seal(&r->admitted.command, &r->arena);
    list_add(engine, r);
    route(engine, r);
}

void router_take_forwarded(struct engine *engine, uint64_t from,
                           const struct forwarded_command *in)
{
    struct routed *r = engine->effects.arrived(engine->effects.context);
    struct bytes packed = arena_copy(&r->arena, in->request);
    struct command *command = &r->admitted.command;
    struct fault fault;
    enum status status;

    r->peer = from;
    r->peer_request = in->request_id;
    r->partition = in->partition;
    r->admitted.deadline_ms = engine->moment.now_ms + in->timeout_ms;
    status = routed_decode(r, packed, in->kind, &fault);
    command->principal = arena_copy(&r->arena, in->principal);
    if (status == STATUS_OK)
        status = command_check(command, engine->settings.payload_bytes_max, &fault);
    if (status == STATUS_OK &&
        (command->id.len == 0 || in->partition >= engine_partitions(engine) ||
         (command->kind != COMMAND_FORGET &&
          engine_partition_of(engine->settings.founding, command->aggregate_id) != in->partition)))
        status = fault_set(&fault, STATUS_INVALID, "MALFORMED_MESSAGE",
                           "a proxied command has no id or the wrong partition");
    if (status != STATUS_OK) {
        answer_peer(engine, r, NULL, &fault);
        engine->effects.released(engine->effects.context, r);
        return;
    }
    engine_take(engine, r);
}

void router_take_result(struct engine *engine, uint64_t from, const struct command_result *in)
{
    struct routed *r = NULL;
    struct fault fault = {0};
    struct outcome outcome;

    HASH_FIND(hh, engine->forwards, &in->request_id, sizeof in->request_id, r);
    if (r == NULL || r->target != from)
        return; /* answered by another, or given up */
    unforward(engine, r);
    if (in->outcome.len > 0) {
        struct arena arena = {0};

        if (wire_outcome_decode(in->outcome, &arena, &outcome, &fault) == STATUS_OK)
            finish(engine, r, &outcome, NULL);
        else
            finish(engine, r, NULL, &fault);
        arena_release(&arena);
        return;
    }
    if (in->status == STATUS_NOT_OWNER) {
        if (in->owner != 0 && in->owner != from)
            (void)slot_route(slot_of(engine, r->partition),
                             &(struct owner_note){
                                 .partition = r->partition, .owner = in->owner, .epoch = in->epoch});
        wait_until(r, engine->moment.now_ms + RETRY_MS);
        return;
    }
    (void)fault_set(&fault, (enum status)in->status, "", "%.*s", (int)in->message.len,
                    (const char *)in->message.data);
    snprintf(fault.reason, sizeof fault.reason, "%.*s", (int)in->reason.len,
             (const char *)in->reason.data);
    fault.retry_ms = in->retry_ms;
    if (fault.status == STATUS_OK || fault.status > STATUS_PRECONDITION)
        fault.status = STATUS_FAILED;
    finish(engine, r, NULL, &fault);
}

void router_answered(struct engine *engine, struct admitted *command,
                     const struct outcome *outcome, const struct fault *fault)
{
    struct routed *r = CONTAINER_OF(command, struct routed, admitted);

    r->state = ROUTED_WAITING; /* the aggregates have let it go */
    if (!r->finished && fault != NULL && fault->status == STATUS_NOT_OWNER && r->peer == 0 &&
        !engine->stopping) {
        wait_until(r, engine->moment.now_ms + NOT_OWNER_RETRY_MS);
        return;
    }
    finish(engine, r, outcome, fault);
}

/* Once a second at most: why commands of a partition wait. */
static void tell_why(struct engine *engine, const struct routed *r)
{
    struct slot *slot = slot_of(engine, r->partition);
    uint64_t epoch;
    uint64_t owner = slot_owner(slot, &epoch);
    struct partition_view view = {0};

    if (engine->moment.now_ms < engine->next_complaint)
        return;
    engine->next_complaint = engine->moment.now_ms + 1000;
    if (slot->partition != NULL)
        view = partition_view(slot->partition);
    journal(JOURNAL_WARN, "command-expired",
            "partition %u, %s; owner %016llx epoch %llu; here: %s, leader %016llx term %llu, log "
            "%llu, commit %llu, stored %llu%s%s",
            r->partition,
            r->state == ROUTED_WAITING     ? "waiting for an owner"
            : r->state == ROUTED_FORWARDED ? "forwarded"
                                           : "at its aggregate",
            (unsigned long long)owner, (unsigned long long)epoch,
            view.owner ? "owner" : view.leading ? "leading" : "not owner",
            (unsigned long long)view.leader, (unsigned long long)view.term,
            (unsigned long long)view.last_index, (unsigned long long)view.commit_index,
            (unsigned long long)view.stored_index, view.transferring ? ", transferring" : "",
            view.installing ? ", installing" : "");
}

static void expire(struct engine *engine, struct routed *r)
{
    struct fault fault;

    tell_why(engine, r);
    (void)fault_set(&fault, STATUS_DEADLINE, "DEADLINE_EXCEEDED",
                    "no outcome before the deadline (%s); ask again with the same command id",
                    r->state == ROUTED_WAITING     ? "the partition has no owner now"
                    : r->state == ROUTED_FORWARDED ? "its owner didn't answer"
                                                   : "it was still at work");
    finish(engine, r, NULL, &fault);
}

void router_tick(struct engine *engine, bool all)
{
    uint64_t now = engine->moment.now_ms;
    struct routed *r = engine->oldest;

    while (r != NULL) {
        struct routed *newer = r->newer;

        /* Done since by what was done for another: it is off the list, its memory lasts for the turn. */
        if (r->state == ROUTED_DONE) {
            r = newer;
            continue;
        }
        if (!r->finished && r->admitted.deadline_ms <= now) {
            expire(engine, r);
        } else if (r->state == ROUTED_WAITING && (all || r->retry_ms <= now)) {
            route(engine, r);
        } else if (r->state == ROUTED_FORWARDED) {
            uint64_t epoch;
            uint64_t owner = slot_owner(slot_of(engine, r->partition), &epoch);

            if ((owner != 0 && owner != r->target) || r->retry_ms <= now) {
                unforward(engine, r);
                route(engine, r);
            }
        }
        r = newer;
    }
}

void router_link_lost(struct engine *engine, uint64_t node_id)
{
    for (struct routed *r = engine->oldest; r != NULL; r = r->newer)
        if (r->state == ROUTED_FORWARDED && r->target == node_id) {
            unforward(engine, r);
            wait_until(r, engine->moment.now_ms + RETRY_MS);
        }
}

void router_abandon(struct engine *engine)
{
    struct routed *r = engine->oldest;
    struct fault fault;

    (void)fault_set(&fault, STATUS_UNAVAILABLE, "NODE_STOPPING",
                    "this node stops; ask another one with the same command id");
    while (r != NULL) {
        struct routed *newer = r->newer;

        if (r->state != ROUTED_DONE && (r->state != ROUTED_ADMITTED || !r->finished))
            finish(engine, r, NULL, &fault);
        r = newer;
    }
}

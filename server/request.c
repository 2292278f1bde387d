/* A command from its bytes to its shard. */
#include "access.h"
#include "audit.h"

struct request *request_new(struct node *node)
{
    struct request *request = memory_take(sizeof *request);

    memset(request, 0, offsetof(struct request, room));
    request->routed.arena = arena_in(request->room, sizeof request->room);
    request->letter.kind = LETTER_REQUEST;
    request->node = node;
    request->started_us = clock_monotonic_us();
    atomic_fetch_add(&node->commands, 1);
    return request;
}

void request_free(struct request *request)
{
    atomic_fetch_sub(&request->node->commands, 1);
    access_command_over(request->counted);
    arena_release(&request->routed.arena);
    free(request);
}

/* Without an id the node makes one: a resend inside the cluster must not act twice. */
static void make_id(struct request *request)
{
    struct command *command = &request->routed.admitted.command;

    if (command->id.len == 0)
        command->id = bytes_of(arena_printf(&request->routed.arena, "%016llx%016llx",
                                            (unsigned long long)random_u64(),
                                            (unsigned long long)random_u64()));
}

static void note(const struct request *r, const struct outcome *outcome, const struct fault *fault)
{
    static const char *const names[] = {[COMMAND_DISPATCH] = "Dispatch",
                                        [COMMAND_APPEND] = "Append",
                                        [COMMAND_WRITE_SNAPSHOT] = "WriteSnapshot",
                                        [COMMAND_DELETE_SNAPSHOT] = "DeleteSnapshot"};
    const struct command *command = &r->routed.admitted.command;
    char who[IDENTITY_BYTES_MAX + 1];

    if (r->node->audit == NULL || command->kind == COMMAND_FORGET) /* that is one order to all partitions */
        return;
    snprintf(who, sizeof who, "%.*s", (int)command->principal.len, (const char *)command->principal.data);
    audit(r->node, &(struct audit_entry){
                       .who = who,
                       .what = command->kind == 0 ? "Dispatch" : names[command->kind],
                       .aggregate_type = command->aggregate_type,
                       .aggregate_id = command->aggregate_id,
                       .type = command->type,
                       .command_id = command->id,
                       .outcome = fault != NULL                                      ? bytes_of(fault->reason)
                                  : outcome != NULL && outcome->rejection.present ? outcome->rejection.reason
                                                                                  : BYTES_LITERAL("ok")});
}

void request_answer(struct request *r, const struct outcome *outcome, const struct fault *fault)
{
    note(r, outcome, fault);
    r->finish(r, outcome, fault);
}

enum status request_start(struct request *request, struct bytes packed, enum command_kind kind,
                          uint64_t deadline_ms, struct fault *fault)
{
    struct node *node = request->node;
    struct command *command = &request->routed.admitted.command;
    uint64_t now = clock_monotonic_ms();
    enum status status = STATUS_OK;

    if (command->kind == 0)
        status = routed_decode(&request->routed, packed, kind, fault);
    if (status == STATUS_OK)
        status = command_check(command, (uint32_t)node->config.payload_bytes_max, fault);
    if (status == STATUS_OK && request->session != NULL)
        status = access_command_begins(node, request->caller, &request->counted, fault);
    if (status == STATUS_OK)
        status = access_command(node, request->caller, command, fault);
    if (request->caller != NULL)
        command->principal = arena_copy(&request->routed.arena, bytes_of(principal_identity(request->caller)));
    if (status == STATUS_OK && atomic_load(&node->founding) == NULL) {
        status = fault_set(fault, STATUS_UNAVAILABLE, "NOT_READY",
                           "this node is not a member of a cluster yet");
        fault->retry_ms = 200;
    }
    if (status == STATUS_OK && atomic_load(&node->commands) > COMMANDS_IN_NODE_MAX) {
        status = fault_set(fault, STATUS_EXHAUSTED, "NODE_BUSY",
                           "%d commands are inside this node already", COMMANDS_IN_NODE_MAX);
        fault->retry_ms = 50;
    }
    if (deadline_ms == UINT64_MAX)
        deadline_ms = now + node->config.default_timeout_ms;
    if (status == STATUS_OK && deadline_ms <= now)
        status = fault_set(fault, STATUS_DEADLINE, "DEADLINE_EXCEEDED",
                           "the deadline passed before the command arrived");
    if (status != STATUS_OK) {
        METRIC_ADD(node, commands_failed, 1);
        note(request, NULL, fault);
        request_free(request);
        return status;
    }
    make_id(request);
    request->routed.admitted.deadline_ms = deadline_ms;
    if (!request->fixed_partition)
        request->routed.partition = node_partition_of(node, command->aggregate_id);
    shard_send(node_shard_of(node, request->routed.partition), &request->letter);
    return STATUS_OK;
}

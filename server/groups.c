/*
 * The processor groups that this node coordinates: lib/event's group with real members, readers and log.
 * A group is here while it has members and this node owns its home partition; its cursors are in the log.
 */
#include "event/group.h"
#include "faults.h"
#include "feed.h"

enum { TICK_MS = 100, READER_HEARTBEAT_MS = 1000 };

struct group_here {
    struct group_here *next;
    struct groups *all;
    struct group *group;
    uint32_t home;
    struct feed **readers; /* by partition, NULL for none */
    struct group_counts counted;
};

struct groups {
    struct feeder *feeder;
    struct node *node;
    struct group_here *first;
    uint64_t next_tick_ms;
    bool ending;
};

uint64_t group_owner(struct node *node, struct bytes group, uint32_t *home)
{
    uint64_t epoch;

    *home = group_home(group, node_partition_count(node));
    return routes_owner(node->routes, *home, &epoch);
}

static void not_here(struct fault *fault)
{
    (void)fault_set(fault, STATUS_UNAVAILABLE, "COORDINATOR_CHANGED",
                    "this node doesn't coordinate the group; join again at any node");
    fault->retry_ms = 100;
}

/* ---- effects ---- */

static void effect_send(void *context, void *member, struct bytes message)
{
    (void)context;
    rpc_stream_send(((struct process_stream *)member)->stream, message);
}

static void effect_dismiss(void *context, void *member, const struct fault *fault)
{
    struct process_stream *stream = member;

    (void)context;
    stream->here = NULL;
    fault_finish_stream(stream->stream, fault);
}

static uint32_t partition_of(const struct group_here *here, const struct feed *reader)
{
    uint32_t p = 0;

    while (here->readers[p] != reader)
        p++;
    return p;
}

static void on_read(struct feed *reader, struct bytes message)
{
    struct group_here *here = reader->user;
    struct fault fault;

    if (group_events(here->group, partition_of(here, reader), message, clock_monotonic_ms(), &fault) != STATUS_OK)
        journal(JOURNAL_ERROR, "group-event-damaged", "group %.*s: %s", (int)group_name(here->group).len,
                (const char *)group_name(here->group).data, fault.message);
}

static void on_broke(struct feed *reader, const struct fault *fault)
{
    struct group_here *here = reader->user;
    uint32_t partition = partition_of(here, reader);

    journal(JOURNAL_WARN, "group-reader-broke", "group %.*s, partition %u: %s", (int)group_name(here->group).len,
            (const char *)group_name(here->group).data, partition, fault == NULL ? "it ended" : fault->message);
    here->readers[partition] = NULL;
    reader->is_closed = true;
    group_reader_broke(here->group, partition, clock_monotonic_ms());
}

static void effect_stop(void *context, uint32_t partition)
{
    struct group_here *here = context;

    if (here->readers[partition] != NULL)
        feed_close(here->readers[partition]);
    here->readers[partition] = NULL;
}

static void effect_read(void *context, uint32_t partition, const struct log_start *from, uint32_t credits)
{
    struct group_here *here = context;
    struct subscribe_request request = {.is_start = true,
                                        .credits = credits,
                                        .from = *from,
                                        .filter = *group_filter(here->group),
                                        .heartbeat_ms = READER_HEARTBEAT_MS};

    effect_stop(here, partition);
    request.filter.partitions = &partition;
    request.filter.partition_count = 1;
    here->readers[partition] = feed_read(here->all->feeder, &request, on_read, on_broke, here);
}

static void effect_credit(void *context, uint32_t partition, uint32_t credits)
{
    struct group_here *here = context;

    if (here->readers[partition] != NULL)
        feed_credit(here->readers[partition], credits);
}

static void effect_keep(void *context, struct bytes payload)
{
    struct group_here *here = context;
    struct append_letter *letter = memory_zero(1, sizeof *letter);

    letter->letter.kind = LETTER_APPEND;
    letter->partition = here->home;
    letter->payload = blob_new(payload.len);
    memcpy(letter->payload->data, payload.data, payload.len);
    shard_send(node_shard_of(here->all->node, here->home), &letter->letter);
}

/* ---- groups ---- */

static struct group_here *find(struct groups *all, struct bytes name)
{
    struct group_here *here = all->first;

    while (here != NULL && !bytes_equal(group_name(here->group), name))
        here = here->next;
    return here;
}

static enum status make(struct groups *all, const struct process_request *join, struct group_here **out,
                        struct fault *fault)
{
    const struct founding *founding = atomic_load(&all->node->founding);
    struct group_here *here = memory_zero(1, sizeof *here);
    struct group_effects effects = {here,         effect_send, effect_dismiss, effect_read,
                                    effect_credit, effect_stop, effect_keep};
    struct group_settings settings = {.cluster = {founding->cluster_id, founding->partition_count},
                                      .name = join->group,
                                      .first = join};
    enum status status;

    here->all = all;
    here->home = group_home(join->group, founding->partition_count);
    settings.home = (uint16_t)here->home;
    here->readers = memory_zero(founding->partition_count, sizeof(struct feed *));
    status = group_new(&here->group, &settings, &effects, all->node->store, fault);
    if (status != STATUS_OK) {
        free(here->readers);
        free(here);
        if (status == STATUS_DAMAGED)
            (void)fault_set(fault, STATUS_UNAVAILABLE, "REPLICA_DAMAGED",
                            "this node's cursors of the group are damaged; join again at another node");
        return status;
    }
    here->next = all->first;
    all->first = here;
    *out = here;
    return STATUS_OK;
}

static void measure(struct group_here *here)
{
    struct group_counts now = group_counts(here->group);
    struct node *node = here->all->node;

    METRIC_ADD(node, group_events, now.delivered - here->counted.delivered);
    METRIC_ADD(node, group_redelivered, now.redelivered - here->counted.redelivered);
    METRIC_ADD(node, group_parked, now.parked - here->counted.parked);
    here->counted = now;
}

/* Nobody is a member any more. */
static void end(struct group_here *here)
{
    struct group_here **at = &here->all->first;

    group_keep(here->group, clock_monotonic_ms());
    measure(here);
    for (uint32_t p = 0; p < node_partition_count(here->all->node); p++)
        effect_stop(here, p);
    while (*at != here)
        at = &(*at)->next;
    *at = here->next;
    group_free(here->group);
    free(here->readers);
    free(here);
}

static void end_with(struct group_here *here, const struct fault *fault)
{
    group_dismiss_all(here->group, fault);
    end(here);
}

/* ---- members ---- */

void groups_join(struct groups *all, struct process_stream *member)
{
    struct group_here *here = find(all, member->request.group);
    struct fault fault;
    uint32_t home;
    enum status status = STATUS_OK;

    if (all->ending || group_owner(all->node, member->request.group, &home) != all->node->id) {
        not_here(&fault);
        fault_finish_stream(member->stream, &fault);
        return;
    }
    if (here == NULL)
        status = make(all, &member->request, &here, &fault);
    if (status == STATUS_OK) {
        member->here = here;
        status = group_join(here->group, member, &member->request, clock_monotonic_ms(), &fault);
    }
    if (status != STATUS_OK) {
        member->here = NULL;
        fault_finish_stream(member->stream, &fault);
        if (here != NULL && group_members(here->group) == 0)
            end(here);
    }
    all->next_tick_ms = 0;
}

void groups_said(struct groups *all, struct said_note *note)
{
    struct process_stream *member = note->member;
    struct arena arena = {0};
    struct process_request request;
    struct fault fault;
    enum status status;

    (void)all;
    if (member->here == NULL)
        return; /* dismissed meanwhile */
    status = wire_process_decode((struct bytes){note->bytes, note->len}, &arena, &request, &fault);
    if (status == STATUS_OK && request.kind == PROCESS_JOIN)
        status = fault_set(&fault, STATUS_INVALID, "ALREADY_JOINED",
                           "this stream has its member; open another stream for another one");
    else if (status == STATUS_OK && request.kind == PROCESS_ACKNOWLEDGE)
        status = group_acknowledge(member->here->group, member, &request, clock_monotonic_ms(), &fault);
    else if (status == STATUS_OK)
        status = group_fail(member->here->group, member, &request, clock_monotonic_ms(), &fault);
    arena_release(&arena);
    if (status != STATUS_OK) {
        struct group_here *here = member->here;

        group_leave(here->group, member, clock_monotonic_ms());
        member->here = NULL;
        fault_finish_stream(member->stream, &fault);
        if (group_members(here->group) == 0)
            end(here);
    }
}

void groups_left(struct groups *all, struct process_stream *member)
{
    struct group_here *here = member->here;

    (void)all;
    if (here != NULL) {
        group_leave(here->group, member, clock_monotonic_ms());
        if (group_members(here->group) == 0)
            end(here);
    }
    rpc_stream_drop(member->stream);
    arena_release(&member->arena);
    free(member);
}

/* ---- questions ---- */

void groups_asked(struct groups *all, struct group_question *question)
{
    struct group_here *here = find(all, question->request.group);
    struct process_request unknown = {.group = question->request.group};
    struct buffer out = {0};
    struct fault fault;
    uint32_t home;
    bool temporary = here == NULL;
    enum status status = STATUS_OK;

    if (all->ending || group_owner(all->node, question->request.group, &home) != all->node->id) {
        not_here(&fault);
        status = fault.status;
    } else if (here == NULL) {
        status = make(all, &unknown, &here, &fault);
    }
    if (status == STATUS_OK && question->reset)
        group_reset(here->group, &question->request.from, clock_monotonic_ms());
    else if (status == STATUS_OK)
        group_describe(here->group, all->node->store, &out);
    if (status == STATUS_OK)
        rpc_call_reply(question->call, buffer_bytes(&out));
    else
        fault_fail_call(question->call, &fault);
    if (status == STATUS_OK && (temporary || group_members(here->group) == 0))
        end(here);
    buffer_release(&out);
    arena_release(&question->arena);
    free(question);
}

/* ---- time ---- */

uint64_t groups_tick(struct groups *all, uint64_t now_ms)
{
    struct group_here *here = all->first;
    size_t groups = 0;
    size_t members = 0;

    if (now_ms < all->next_tick_ms)
        return all->first == NULL ? UINT64_MAX : all->next_tick_ms;
    while (here != NULL) {
        struct group_here *next = here->next;
        uint32_t home;

        if (group_owner(all->node, group_name(here->group), &home) != all->node->id) {
            struct fault fault;

            not_here(&fault);
            end_with(here, &fault);
        } else {
            group_tick(here->group, now_ms);
            measure(here);
            groups++;
            members += group_members(here->group);
            if (group_members(here->group) == 0) /* all were dismissed */
                end(here);
        }
        here = next;
    }
    atomic_store(&all->node->metrics.group_count, groups);
    atomic_store(&all->node->metrics.group_member_count, members);
    all->next_tick_ms = now_ms + TICK_MS;
    return all->first == NULL ? UINT64_MAX : all->next_tick_ms;
}

void groups_end(struct groups *all)
{
    struct fault fault;

    all->ending = true;
    not_here(&fault);
    while (all->first != NULL)
        end_with(all->first, &fault);
}

struct groups *groups_new(struct feeder *feeder)
{
    struct groups *all = memory_zero(1, sizeof *all);

    all->feeder = feeder;
    all->node = feeder_node(feeder);
    return all;
}

void groups_free(struct groups *all)
{
    groups_end(all);
    free(all);
}

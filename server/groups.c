/*
 * The processor groups that this node coordinates: lib/event's group with real members, readers and log.
 * A group is here while it has members and this node owns its home partition; its cursors are in the log.
 */
#include "event/group.h"
#include "faults.h"
#include "feed.h"

enum { TICK_MS = 100, READER_HEARTBEAT_MS = 1000, METRICS_MS = 1000, RETRIES_MAX = 100, AWAIT_MS = 10000 };

struct group_here {
    struct group_here *next;
    struct groups *all;
    struct group *group;
    uint32_t home;
    struct feed **readers; /* by partition, NULL for none */
    struct retry_read *retries;
    struct group_counts counted;
};

/* A parked event that is read, to be given once more. */
struct retry_read {
    struct retry_read *next;
    struct group_here *here;
    uint32_t partition;
    struct feed *feed;
};

struct groups {
    struct feeder *feeder;
    struct node *node;
    struct group_here *first;
    uint64_t next_tick_ms;
    bool ending;
    pthread_mutex_t lock; /* of what follows */
    struct buffer metrics;
    uint64_t next_metrics_ms;
};

uint64_t group_owner(struct node *node, struct bytes group, uint32_t *home)
{
    uint64_t epoch;

    *home = group_home(group, node_partition_count(node));
    return routes_owner(node->routes, *home, &epoch);
}

void coordinator_changed(struct fault *fault)
{
    (void)fault_set(fault, STATUS_UNAVAILABLE, "COORDINATOR_CHANGED",
                    "another node coordinates the group now; join again at any node");
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

static struct moment_now now(void)
{
    return (struct moment_now){clock_monotonic_ms(), clock_wall_ms()};
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

/* ---- parked events once more ---- */

static void retry_end(struct retry_read *retry)
{
    struct retry_read **at = &retry->here->retries;

    while (*at != retry)
        at = &(*at)->next;
    *at = retry->next;
    feed_close(retry->feed);
    free(retry);
}

static void on_retry_read(struct feed *reader, struct bytes message)
{
    struct retry_read *retry = reader->user;
    struct arena arena = {0};
    struct subscribe_response response;
    struct fault fault = {0};
    enum status status = wire_subscribe_response_decode(message, &arena, &response, &fault);

    if (status == STATUS_OK && response.event_count == 0) {
        arena_release(&arena);
        return; /* a token; the event follows */
    }
    if (status == STATUS_OK)
        status = group_retry(retry->here->group, retry->partition, response.packed_events[0],
                             clock_monotonic_ms(), &fault);
    if (status != STATUS_OK)
        journal(JOURNAL_WARN, "retry-failed", "%s", fault.message);
    arena_release(&arena);
    retry_end(retry);
}

static void on_retry_broke(struct feed *reader, const struct fault *fault)
{
    struct retry_read *retry = reader->user;

    journal(JOURNAL_WARN, "retry-failed", "a parked event of partition %u can't be read: %s", retry->partition,
            fault == NULL ? "it ended" : fault->message);
    retry_end(retry);
}

static void retry_one(struct group_here *here, uint32_t partition, uint64_t position)
{
    struct retry_read *retry = memory_zero(1, sizeof *retry);
    char token[64];
    int len = snprintf(token, sizeof token, "1.%x.%llx", partition, (unsigned long long)position);
    struct subscribe_request request = {
        .is_start = true,
        .credits = 1,
        .from = {.kind = START_TOKEN, .token = {(uint8_t *)token, (size_t)len}},
        .filter = {.partitions = &partition, .partition_count = 1},
        .heartbeat_ms = READER_HEARTBEAT_MS};

    retry->here = here;
    retry->partition = partition;
    retry->next = here->retries;
    here->retries = retry;
    retry->feed = feed_read(here->all->feeder, &request, on_retry_read, on_retry_broke, retry);
}

static bool is_wanted(const struct group_request *request, uint32_t partition, uint64_t position)
{
    for (size_t i = 0; i < request->event_count; i++)
        if (request->events[i].partition == partition && request->events[i].position == position)
            return true;
    return request->event_count == 0;
}

/* NOT_FOUND when one that is named isn't parked. */
static enum status retry_parked(struct group_here *here, const struct group_request *request, struct buffer *out,
                                struct fault *fault)
{
    struct parked_position chosen[RETRIES_MAX];
    uint32_t found = 0;

    if (group_members(here->group) == 0)
        return fault_set(fault, STATUS_PRECONDITION, "NO_MEMBERS",
                         "group %.*s has no members that could process its parked events",
                         (int)request->group.len, (const char *)request->group.data);
    for (uint32_t p = 0; p < node_partition_count(here->all->node); p++) {
        size_t count;
        const struct parked *parked = group_parked(here->group, p, &count);

        for (size_t i = 0; i < count && found < RETRIES_MAX; i++)
            if (is_wanted(request, p, parked[i].position))
                chosen[found++] = (struct parked_position){p, parked[i].position};
    }
    if (found < request->event_count && found < RETRIES_MAX)
        return fault_set(fault, STATUS_NOT_FOUND, "NOT_PARKED",
                         "of the %zu events %u are parked in group %.*s; GetGroup lists them", request->event_count,
                         found, (int)request->group.len, (const char *)request->group.data);
    for (uint32_t i = 0; i < found; i++)
        retry_one(here, chosen[i].partition, chosen[i].position);
    wire_retry_parked_response(out, found);
    return STATUS_OK;
}

/* Nobody is a member any more. */
static void end(struct group_here *here)
{
    struct group_here **at = &here->all->first;

    group_keep(here->group, clock_monotonic_ms());
    measure(here);
    for (uint32_t p = 0; p < node_partition_count(here->all->node); p++)
        effect_stop(here, p);
    while (here->retries != NULL)
        retry_end(here->retries);
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
        coordinator_changed(&fault);
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

static void reset(struct group_here *here, const struct log_start *from)
{
    struct node *node = here->all->node;
    bool *held = memory_take(node_partition_count(node));

    for (uint32_t p = 0; p < node_partition_count(node); p++)
        held[p] = node_holds(node, p);
    group_reset(here->group, from, node->store, held, clock_monotonic_ms());
    free(held);
}

static void question_free(struct group_question *question)
{
    arena_release(&question->arena);
    free(question);
}

/* From the shard: what was appended before is on disk, or ownership is gone. */
static void reset_awaited(struct awaiting *awaiting, const struct fault *fault)
{
    struct group_question *question = CONTAINER_OF(awaiting, struct group_question, awaiting);

    question->awaited = true;
    question->failed = fault != NULL;
    feeder_send(question->node->feeder, &question->letter);
}

static void await_reset(struct groups *all, struct group_question *question)
{
    uint32_t home = group_home(question->request.group, node_partition_count(all->node));

    question->awaiting.letter.kind = LETTER_AWAIT;
    question->awaiting.ready = reset_awaited;
    question->awaiting.read.partition = home;
    question->awaiting.read.deadline_ms = clock_monotonic_ms() + AWAIT_MS;
    shard_send(node_shard_of(all->node, home), &question->awaiting.letter);
}

/* The reset is told only when the log has it: the next coordinator begins there too. */
static void reset_kept(struct groups *all, struct group_question *question)
{
    uint32_t home = group_home(question->request.group, node_partition_count(all->node));
    uint64_t resets = 0;
    struct fault fault = {0};

    if (!question->failed && group_resets_kept(all->node->store, (uint16_t)home, question->request.group, &resets,
                                               &fault) == STATUS_OK && resets >= question->resets) {
        rpc_call_reply(question->call, BYTES_NONE);
    } else {
        (void)fault_set(&fault, STATUS_UNAVAILABLE, "RESET_UNKNOWN",
                        "the group's coordinator changed before the reset was on disk; ask again");
        fault.retry_ms = 100;
        fault_fail_call(question->call, &fault);
    }
    question_free(question);
}

void groups_asked(struct groups *all, struct group_question *question)
{
    struct group_here *here = find(all, question->request.group);
    struct process_request unknown = {.group = question->request.group};
    struct buffer out = {0};
    struct fault fault;
    uint32_t home;
    bool temporary = here == NULL;
    enum status status = STATUS_OK;

    if (question->awaited) {
        reset_kept(all, question);
        return;
    }
    if (all->ending || group_owner(all->node, question->request.group, &home) != all->node->id) {
        coordinator_changed(&fault);
        status = fault.status;
    } else if (here == NULL) {
        status = make(all, &unknown, &here, &fault);
    }
    if (status == STATUS_OK && question->request.kind == GROUP_RESET) {
        reset(here, &question->request.from);
        question->resets = group_resets(here->group);
        end(here); /* nobody is a member now */
        await_reset(all, question);
        return;
    }
    if (status == STATUS_OK && question->request.kind == GROUP_RETRY)
        status = retry_parked(here, &question->request, &out, &fault);
    else if (status == STATUS_OK)
        group_describe(here->group, all->node->store, now(), &out);
    if (status == STATUS_OK)
        rpc_call_reply(question->call, buffer_bytes(&out));
    else
        fault_fail_call(question->call, &fault);
    if (here != NULL && (temporary || group_members(here->group) == 0))
        end(here);
    buffer_release(&out);
    question_free(question);
}

/* ---- time ---- */

static void add_lines(const struct group_here *here, struct buffer *out)
{
    struct bytes name = group_name(here->group);

    for (uint32_t p = 0; p < node_partition_count(here->all->node); p++) {
        struct group_partition view;
        char labels[128];

        group_view(here->group, p, here->all->node->store, now(), &view);
        snprintf(labels, sizeof labels, "{group=\"%.*s\",partition=\"%u\"}", (int)name.len,
                 (const char *)name.data, p);
        buffer_printf(out, "cairn_group_lag_events%s %llu\ncairn_group_lag_seconds%s %.3f\n", labels,
                      (unsigned long long)view.lag, labels, (double)view.lag_ms / 1000);
        if (view.idle_ms != UINT64_MAX)
            buffer_printf(out, "cairn_group_idle_seconds%s %.3f\n", labels, (double)view.idle_ms / 1000);
        buffer_printf(out, "cairn_group_parked%s %u\ncairn_group_redelivered_total%s %llu\n", labels, view.parked,
                      labels, (unsigned long long)view.redelivered);
    }
}

static bool plain(struct bytes name)
{
    for (size_t i = 0; i < name.len; i++)
        if (name.data[i] < 0x20 || name.data[i] == '"' || name.data[i] == '\\')
            return false;
    return true;
}

static void render(struct groups *all)
{
    struct buffer lines = {0};

    for (const struct group_here *here = all->first; here != NULL; here = here->next)
        if (plain(group_name(here->group))) /* a label that needs no quoting */
            add_lines(here, &lines);
    pthread_mutex_lock(&all->lock);
    buffer_release(&all->metrics);
    all->metrics = lines;
    pthread_mutex_unlock(&all->lock);
}

void groups_metrics(struct groups *all, struct buffer *out)
{
    buffer_printf(out, "# HELP cairn_group_lag_events Events of a processor group's partition that aren't "
                       "acknowledged, at its coordinator\n"
                       "# TYPE cairn_group_lag_events gauge\n"
                       "# HELP cairn_group_lag_seconds Age of the oldest of them\n"
                       "# TYPE cairn_group_lag_seconds gauge\n"
                       "# HELP cairn_group_idle_seconds Since the position last moved\n"
                       "# TYPE cairn_group_idle_seconds gauge\n"
                       "# HELP cairn_group_parked Parked events\n"
                       "# TYPE cairn_group_parked gauge\n"
                       "# HELP cairn_group_redelivered_total Events given more than once\n"
                       "# TYPE cairn_group_redelivered_total counter\n");
    pthread_mutex_lock(&all->lock);
    buffer_add(out, all->metrics.data, all->metrics.len);
    pthread_mutex_unlock(&all->lock);
}

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

            coordinator_changed(&fault);
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
    if (now_ms >= all->next_metrics_ms) {
        render(all);
        all->next_metrics_ms = now_ms + METRICS_MS;
    }
    all->next_tick_ms = now_ms + TICK_MS;
    return all->first == NULL ? UINT64_MAX : all->next_tick_ms;
}

void groups_end(struct groups *all)
{
    struct fault fault;

    all->ending = true;
    coordinator_changed(&fault);
    while (all->first != NULL)
        end_with(all->first, &fault);
}

struct groups *groups_new(struct feeder *feeder)
{
    struct groups *all = memory_zero(1, sizeof *all);

    pthread_mutex_init(&all->lock, NULL);
    all->feeder = feeder;
    all->node = feeder_node(feeder);
    return all;
}

void groups_free(struct groups *all)
{
    groups_end(all);
    buffer_release(&all->metrics);
    pthread_mutex_destroy(&all->lock);
    free(all);
}

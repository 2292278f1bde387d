/* Members, their partitions, and what each of them holds. */
#include "group.h"

enum {
    MEMBERS_MAX_IN_GROUP = 1024,
    WINDOW_DEFAULT = 256,
    ACK_TIMEOUT_MS = 30000,
    HEARTBEAT_MS = 2000,
    KEEP_MS = 200, /* cursors go to the log at most so often */
    ATTEMPTS_MAX = 5,
    RETRY_FIRST_MS = 100,
    RETRY_MAX_MS = 5000,
    READER_RETRY_MS = 200,
    PARKED_MAX = 1000, /* of one partition; the oldest are forgotten */
    REASON_BYTES_MAX = 500,
};

#define POSITION_UNKNOWN UINT64_MAX

/* An event that a member holds. */
struct held {
    uint64_t position;
    uint64_t given_ms;
    bool done;
};

struct member {
    struct member *next;
    void *stream;
    char name[NAME_BYTES_MAX + 1];
    uint32_t window;
    uint64_t ack_timeout_ms;
    uint64_t told_ms;
    uint32_t partitions;
    bool changed; /* its partitions; to be told */
};

struct share {
    uint64_t position; /* everything below is acknowledged or parked */
    uint64_t replay_until;
    struct log_start start; /* while the position isn't known */
    bool dirty;             /* the log doesn't know yet */
    struct member *member;  /* who has it */
    struct member *heir;    /* who gets it once nothing is held */
    bool reading;
    bool begins; /* nothing was delivered of this reading yet */
    uint64_t read_again_ms; /* when it is to be read again; 0 for not */
    struct held *held;      /* oldest first */
    size_t held_count;
    size_t held_room;
    uint64_t given; /* one behind the last position that any member got */
    uint64_t failing; /* the position that failed last, while it is tried again */
    uint32_t attempts;
    struct parked *parked; /* reasons are ours */
    size_t parked_count;
    struct held *retried; /* parked events that the member has once more */
    size_t retried_count;
    uint64_t moved_ms; /* 0: not since this coordinator took over */
    uint64_t redelivered;
};

struct group {
    struct group_settings settings;
    struct group_effects effects;
    struct arena arena;
    struct buffer filter_packed;
    struct event_filter filter;
    struct log_start start;
    struct share *shares;
    uint32_t partitions;
    struct member *members;
    size_t member_count;
    uint64_t kept_ms;
    bool any_dirty;
    uint64_t resets;
    uint64_t now_ms; /* of the last that happened */
    struct group_counts counts;
};

uint32_t group_home(struct bytes name, uint32_t partitions)
{
    return (uint32_t)(hash_bytes(name) % partitions);
}

/* ---- cursors ---- */

static void park(struct share *share, uint64_t position, struct bytes reason, uint32_t attempts)
{
    uint8_t *copy;

    if (share->parked_count == PARKED_MAX) {
        free((void *)share->parked[0].reason.data);
        memmove(share->parked, share->parked + 1, --share->parked_count * sizeof *share->parked);
    }
    if (reason.len > REASON_BYTES_MAX)
        reason.len = REASON_BYTES_MAX;
    copy = memory_take(reason.len);
    if (reason.len > 0)
        memcpy(copy, reason.data, reason.len);
    share->parked = memory_grow(share->parked, (share->parked_count + 1) * sizeof *share->parked);
    share->parked[share->parked_count++] = (struct parked){position, {copy, reason.len}, attempts};
}

static void moved(struct group *g, struct share *share)
{
    share->dirty = true;
    g->any_dirty = true;
}

void group_keep(struct group *g, uint64_t now_ms)
{
    struct buffer payload = {0};

    g->kept_ms = now_ms;
    if (!g->any_dirty)
        return;
    for (uint32_t p = 0; p < g->partitions; p++) {
        struct share *share = &g->shares[p];
        struct group_cursor cursor = {.group = g->settings.name,
                                      .partition = p,
                                      .position = share->position,
                                      .replay_until = share->replay_until,
                                      .parked = share->parked,
                                      .parked_count = share->parked_count,
                                      .resets = g->resets};

        if (share->position == POSITION_UNKNOWN) {
            cursor.position = 0;
            cursor.unknown = true;
            cursor.start = share->start;
        }
        if (PLANTED(CURSOR_AHEAD) && share->given > cursor.position)
            cursor.position = share->given;
        if (share->dirty)
            wire_log_batch_add_cursor(&payload, &cursor);
        share->dirty = false;
    }
    g->any_dirty = false;
    if (payload.len > 0)
        g->effects.keep(g->effects.context, buffer_bytes(&payload));
    buffer_release(&payload);
}

static enum status load(struct group *g, struct store *store, struct fault *fault)
{
    struct store_key from = key_cursor(g->settings.home, g->settings.name, 0);
    struct store_key to = key_cursor_end(g->settings.home, g->settings.name);
    struct store_cursor *cursor = store_cursor_new(store, STORE_CURSORS, key_bytes(&from), key_bytes(&to), false);
    struct bytes key, value;
    enum status status;

    while ((status = store_cursor_next(cursor, &key, &value, fault)) == STATUS_OK) {
        struct arena arena = {0};
        struct group_cursor found;

        status = wire_cursor_decode(value, &arena, &found, fault);
        if (status == STATUS_OK && found.partition < g->partitions) {
            struct share *share = &g->shares[found.partition];

            share->position = found.unknown ? POSITION_UNKNOWN : found.position;
            if (found.unknown) {
                share->start = found.start;
                share->start.token = arena_copy(&g->arena, found.start.token);
            }
            g->resets = found.resets > g->resets ? found.resets : g->resets;
            share->replay_until = found.replay_until;
            for (size_t i = 0; i < found.parked_count; i++)
                park(share, found.parked[i].position, found.parked[i].reason, found.parked[i].attempts);
        }
        arena_release(&arena);
        if (status != STATUS_OK)
            break;
    }
    store_cursor_free(cursor);
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

/* ---- reading one partition ---- */

static void forget_held(struct share *share)
{
    share->held_count = 0;
}

/* What the member has, and will have once it was handed over. */
static uint32_t fortune(const struct group *g, const struct member *member)
{
    uint32_t has = 0;

    for (uint32_t p = 0; p < g->partitions; p++) {
        const struct share *share = &g->shares[p];

        has += share->heir != NULL ? share->heir == member : share->member == member;
    }
    return has;
}

static uint32_t credits_of(const struct group *g, const struct share *share)
{
    uint32_t has = fortune(g, share->member);
    uint32_t each = has == 0 ? share->member->window : share->member->window / has;

    return each == 0 ? 1 : each;
}

/* From what is acknowledged on. */
static void read_share(struct group *g, uint32_t partition)
{
    struct share *share = &g->shares[partition];
    struct log_start from = share->start;
    char token[64];

    forget_held(share);
    share->read_again_ms = 0;
    share->reading = true;
    share->begins = !PLANTED(BEGIN_NOT_TOLD);
    if (share->position != POSITION_UNKNOWN) {
        int len = snprintf(token, sizeof token, "1.%x.%llx", partition, (unsigned long long)share->position);

        from = (struct log_start){.kind = START_TOKEN, .token = {(uint8_t *)token, (size_t)len}};
    }
    g->effects.follow(g->effects.context, partition, &from, credits_of(g, share));
}

static void stop_share(struct group *g, uint32_t partition)
{
    struct share *share = &g->shares[partition];

    if (share->reading)
        g->effects.stop(g->effects.context, partition);
    share->reading = false;
    share->read_again_ms = 0;
    forget_held(share);
}

/* ---- who has what ---- */

static void give_to(struct group *g, uint32_t partition, struct member *member)
{
    struct share *share = &g->shares[partition];

    share->heir = NULL;
    share->member = member;
    member->partitions++;
    member->changed = true;
    share->read_again_ms = 1; /* as soon as all are given: then its part of the window is known */
}

static void take_from(struct group *g, uint32_t partition)
{
    struct share *share = &g->shares[partition];

    if (share->member != NULL) {
        share->member->partitions--;
        share->member->changed = true;
    }
    stop_share(g, partition);
    share->retried_count = 0; /* they stay parked */
    share->member = NULL;
}

static struct member *extreme(const struct group *g, bool most, uint32_t *has)
{
    struct member *found = NULL;

    for (struct member *m = g->members; m != NULL; m = m->next) {
        uint32_t n = fortune(g, m);

        if (found == NULL || (most ? n > *has : n < *has)) {
            found = m;
            *has = n;
        }
    }
    return found;
}

static void hand_over_if_idle(struct group *g, uint32_t partition)
{
    struct share *share = &g->shares[partition];
    struct member *heir = share->heir;

    if (heir == NULL || share->held_count > 0 || share->retried_count > 0)
        return;
    take_from(g, partition);
    give_to(g, partition, heir);
    read_share(g, partition);
}

static void read_due(struct group *g, uint64_t now_ms)
{
    for (uint32_t p = 0; p < g->partitions; p++)
        if (g->shares[p].member != NULL && g->shares[p].read_again_ms != 0 && now_ms >= g->shares[p].read_again_ms)
            read_share(g, p);
}

/* As even as it gets, with the fewest moves; from a live member only what is idle, or once it is. */
static void share_out(struct group *g)
{
    for (uint32_t p = 0; p < g->partitions && g->members != NULL; p++)
        if (g->shares[p].member == NULL) {
            uint32_t has;

            give_to(g, p, extreme(g, false, &has));
        }
    while (g->members != NULL) {
        uint32_t least, most;
        struct member *poor = extreme(g, false, &least);
        struct member *rich = extreme(g, true, &most);
        uint32_t p = 0;

        if (most <= least + 1)
            break;
        while (g->shares[p].heir != NULL || g->shares[p].member != rich)
            if (++p == g->partitions)
                return; /* what it has is on its way already */
        g->shares[p].heir = poor;
        if (g->shares[p].held_count > 0)
            g->effects.stop(g->effects.context, p); /* no more of it until it is idle */
        g->shares[p].reading = g->shares[p].held_count == 0 && g->shares[p].reading;
        hand_over_if_idle(g, p);
    }
}

static void balance(struct group *g, uint64_t now_ms)
{
    share_out(g);
    read_due(g, now_ms);
}

static void tell(struct group *g, struct member *member, uint64_t now_ms)
{
    struct buffer message = {0};
    uint32_t *partitions = memory_take(g->partitions * sizeof *partitions);
    size_t n = 0;

    for (uint32_t p = 0; p < g->partitions; p++)
        if (g->shares[p].member == member)
            partitions[n++] = p;
    wire_assignment_pack(&message, partitions, n);
    g->effects.send(g->effects.context, member->stream, buffer_bytes(&message));
    member->told_ms = now_ms;
    member->changed = false;
    buffer_release(&message);
    free(partitions);
}

static void tell_changes(struct group *g, uint64_t now_ms)
{
    for (struct member *m = g->members; m != NULL; m = m->next)
        if (m->changed)
            tell(g, m, now_ms);
}

static struct member *member_of(const struct group *g, const void *stream)
{
    struct member *m = g->members;

    while (m != NULL && m->stream != stream)
        m = m->next;
    return m;
}

static void remove_member(struct group *g, struct member *member)
{
    struct member **at = &g->members;

    while (*at != member)
        at = &(*at)->next;
    *at = member->next;
    g->member_count--;
    for (uint32_t p = 0; p < g->partitions; p++) {
        struct share *share = &g->shares[p];

        if (share->heir == member)
            share->heir = NULL;
        if (share->member == member) {
            struct member *heir = share->heir;

            take_from(g, p);
            if (heir != NULL)
                give_to(g, p, heir);
        } else if (share->member != NULL && !share->reading && share->read_again_ms == 0) {
            read_share(g, p); /* it was stopped for an heir that is no more */
        }
    }
    free(member);
}

static void dismiss(struct group *g, struct member *member, const struct fault *fault)
{
    void *stream = member->stream;

    remove_member(g, member);
    g->effects.dismiss(g->effects.context, stream, fault);
}

/* ---- members ---- */

enum status group_join(struct group *g, void *stream, const struct process_request *join, uint64_t now_ms,
                       struct fault *fault)
{
    struct buffer filter = {0};
    struct member *member;
    bool same;

    wire_join_filter(&filter, join);
    same = bytes_equal(buffer_bytes(&filter), buffer_bytes(&g->filter_packed));
    buffer_release(&filter);
    if (!same)
        return fault_set(fault, STATUS_INVALID, "FILTER_DIFFERS",
                         "the members of group %.*s have another filter; give the same one, or another group's "
                         "name",
                         (int)g->settings.name.len, (const char *)g->settings.name.data);
    for (member = g->members; member != NULL; member = member->next)
        if (bytes_equal(bytes_of(member->name), join->member))
            break;
    if (member != NULL) {
        struct fault replaced;

        (void)fault_set(&replaced, STATUS_CONFLICT, "MEMBER_REPLACED",
                        "another stream joined group %.*s as member %s", (int)g->settings.name.len,
                        (const char *)g->settings.name.data, member->name);
        dismiss(g, member, &replaced);
    }
    if (g->member_count >= MEMBERS_MAX_IN_GROUP)
        return fault_set(fault, STATUS_EXHAUSTED, "GROUP_FULL", "a group has at most %d members",
                         MEMBERS_MAX_IN_GROUP);
    member = memory_zero(1, sizeof *member);
    member->stream = stream;
    snprintf(member->name, sizeof member->name, "%.*s", (int)join->member.len, (const char *)join->member.data);
    member->window = join->window == 0 ? WINDOW_DEFAULT : join->window;
    member->ack_timeout_ms = join->ack_timeout_ms == 0 ? ACK_TIMEOUT_MS : join->ack_timeout_ms;
    member->changed = true;
    member->next = g->members;
    g->members = member;
    g->member_count++;
    balance(g, now_ms);
    tell_changes(g, now_ms);
    return STATUS_OK;
}

void group_leave(struct group *g, void *stream, uint64_t now_ms)
{
    struct member *member = member_of(g, stream);

    if (member == NULL)
        return;
    remove_member(g, member);
    balance(g, now_ms);
    tell_changes(g, now_ms);
}

void group_dismiss_all(struct group *g, const struct fault *fault)
{
    for (uint32_t p = 0; p < g->partitions; p++) { /* nobody inherits */
        g->shares[p].heir = NULL;
        take_from(g, p);
    }
    while (g->members != NULL)
        dismiss(g, g->members, fault);
}

/* ---- deliveries ---- */

static void hold(struct share *share, uint64_t position, uint64_t now_ms)
{
    if (share->held_count == share->held_room) {
        share->held_room = share->held_room == 0 ? 16 : share->held_room * 2;
        share->held = memory_grow(share->held, share->held_room * sizeof *share->held);
    }
    share->held[share->held_count++] = (struct held){position, now_ms, false};
    if (position >= share->given)
        share->given = position + 1;
}

/* NULL when the position isn't parked. The newest are asked for most. */
static struct parked *find_parked(const struct share *share, uint64_t position)
{
    for (size_t i = share->parked_count; i > 0; i--)
        if (share->parked[i - 1].position == position)
            return &share->parked[i - 1];
    return NULL;
}

static void advance(struct group *g, uint32_t partition);

/* The first token of a reader tells where "the end" or a time lies; later ones, that nothing else fits. */
static enum status take_token(struct group *g, uint32_t partition, struct bytes token, struct fault *fault)
{
    struct share *share = &g->shares[partition];
    uint64_t *positions = memory_take(g->partitions * sizeof *positions);
    int64_t only;
    enum status status = token_read(token, &g->settings.cluster, positions, &only, fault);

    if (status == STATUS_OK && share->held_count == 0 &&
        (share->position == POSITION_UNKNOWN || positions[partition] > share->position)) {
        share->position = positions[partition];
        moved(g, share);
    }
    free(positions);
    return status;
}

enum status group_events(struct group *g, uint32_t partition, struct bytes message, uint64_t now_ms,
                         struct fault *fault)
{
    struct share *share = &g->shares[partition];
    struct arena arena = {0};
    struct subscribe_response response;
    struct buffer out = {0};
    size_t given = 0;
    size_t begun = 0;
    enum status status = wire_subscribe_response_decode(message, &arena, &response, fault);

    for (size_t i = 0; status == STATUS_OK && share->reading && i < response.event_count; i++) {
        struct event_head head;

        status = wire_event_peek(response.packed_events[i], &head, fault);
        if (status != STATUS_OK || head.partition != partition)
            continue;
        if (find_parked(share, head.position) != NULL) {
            hold(share, head.position, now_ms);
            share->held[share->held_count - 1].done = true;
            continue;
        }
        if (given++ == 0) {
            begun = wire_delivery_begin(&out, partition, share->replay_until,
                                        head.position == share->failing ? share->attempts : 0, share->begins);
            share->begins = false;
        }
        wire_delivery_add(&out, response.packed_events[i]);
        if (share->position == POSITION_UNKNOWN) {
            share->position = head.position;
            moved(g, share);
        }
        hold(share, head.position, now_ms);
    }
    if (given > 0) {
        wire_delivery_end(&out, begun);
        g->effects.send(g->effects.context, share->member->stream, buffer_bytes(&out));
        g->counts.delivered += given;
        if (share->attempts > 0 && share->held[0].position == share->failing) {
            g->counts.redelivered++;
            share->redelivered++;
        }
    }
    advance(g, partition);
    if (status == STATUS_OK && share->reading && response.token.len > 0)
        status = take_token(g, partition, response.token, fault);
    buffer_release(&out);
    arena_release(&arena);
    return status;
}

/* ---- acknowledgements ---- */

static void advance(struct group *g, uint32_t partition)
{
    struct share *share = &g->shares[partition];
    size_t done = 0;

    while (done < share->held_count && share->held[done].done)
        done++;
    if (done == 0)
        return;
    share->position = share->held[done - 1].position + 1;
    share->held_count -= done;
    memmove(share->held, share->held + done, share->held_count * sizeof *share->held);
    share->moved_ms = g->now_ms;
    moved(g, share);
    if (share->reading)
        g->effects.credit(g->effects.context, partition, (uint32_t)done);
    hand_over_if_idle(g, partition);
}

/* The share of a request, NULL when there is nothing to do: the partition went to somebody else meanwhile. */
static enum status share_of(struct group *g, void *stream, const struct process_request *request,
                            struct share **out, struct fault *fault)
{
    struct member *member = member_of(g, stream);
    struct share *share;

    *out = NULL;
    if (request->partition >= g->partitions)
        return fault_set(fault, STATUS_INVALID, "NOT_DELIVERED", "there is no partition %u; this cluster has %u",
                         request->partition, g->partitions);
    share = &g->shares[request->partition];
    if (member == NULL || share->member != member)
        return STATUS_OK;
    if (request->position >= share->given)
        return fault_set(fault, STATUS_INVALID, "NOT_DELIVERED",
                         "position %llu of partition %u wasn't given to member %s",
                         (unsigned long long)request->position, request->partition, member->name);
    *out = share;
    return STATUS_OK;
}

/* What a member says of a parked event that it has once more; false when it is about something else. */
static bool take_retried(struct group *g, void *stream, const struct process_request *request, bool failed,
                         uint64_t now_ms)
{
    struct share *share = request->partition < g->partitions ? &g->shares[request->partition] : NULL;
    struct member *member = member_of(g, stream);
    struct parked *parked;
    size_t at = 0;

    if (share == NULL || member == NULL || share->member != member)
        return false;
    while (at < share->retried_count && share->retried[at].position != request->position)
        at++;
    if (at == share->retried_count)
        return false;
    memmove(&share->retried[at], &share->retried[at + 1], (--share->retried_count - at) * sizeof *share->retried);
    parked = find_parked(share, request->position);
    if (parked != NULL) {
        struct parked entry = *parked;
        size_t behind = (size_t)(&share->parked[--share->parked_count] - parked);

        memmove(parked, parked + 1, behind * sizeof *parked);
        if (failed)
            park(share, entry.position, request->reason, entry.attempts + 1);
        free((void *)entry.reason.data);
        moved(g, share);
        group_keep(g, now_ms);
    }
    hand_over_if_idle(g, request->partition);
    tell_changes(g, now_ms);
    return true;
}

enum status group_retry(struct group *g, uint32_t partition, struct bytes packed, uint64_t now_ms,
                        struct fault *fault)
{
    struct share *share = &g->shares[partition];
    struct buffer out = {0};
    struct event_head head;
    const struct parked *parked;
    size_t begun;
    enum status status = wire_event_peek(packed, &head, fault);

    if (status != STATUS_OK)
        return status;
    parked = find_parked(share, head.position);
    if (parked == NULL)
        return fault_set(fault, STATUS_NOT_FOUND, "NOT_PARKED", "position %llu of partition %u isn't parked",
                         (unsigned long long)head.position, partition);
    if (share->member == NULL)
        return fault_set(fault, STATUS_PRECONDITION, "NO_MEMBERS", "group %.*s has no members",
                         (int)g->settings.name.len, (const char *)g->settings.name.data);
    for (size_t i = 0; i < share->retried_count; i++)
        if (share->retried[i].position == head.position)
            return STATUS_OK; /* it is there already */
    share->retried = memory_grow(share->retried, (share->retried_count + 1) * sizeof *share->retried);
    share->retried[share->retried_count++] = (struct held){head.position, now_ms, false};
    begun = wire_delivery_begin(&out, partition, share->replay_until, parked->attempts, false);
    wire_delivery_add(&out, packed);
    wire_delivery_parked(&out);
    wire_delivery_end(&out, begun);
    g->effects.send(g->effects.context, share->member->stream, buffer_bytes(&out));
    g->counts.redelivered++;
    share->redelivered++;
    buffer_release(&out);
    return STATUS_OK;
}

enum status group_acknowledge(struct group *g, void *stream, const struct process_request *request,
                              uint64_t now_ms, struct fault *fault)
{
    struct share *share;
    enum status status;

    g->now_ms = now_ms;
    if (take_retried(g, stream, request, false, now_ms))
        return STATUS_OK;
    status = share_of(g, stream, request, &share, fault);
    if (status != STATUS_OK || share == NULL)
        return status;
    for (size_t i = 0; i < share->held_count && share->held[i].position <= request->position; i++)
        if (request->up_to || share->held[i].position == request->position)
            share->held[i].done = true;
    if (request->position >= share->failing && (request->up_to || request->position == share->failing))
        share->attempts = 0;
    advance(g, request->partition);
    tell_changes(g, now_ms);
    return STATUS_OK;
}

static uint64_t pause_after(uint32_t attempts)
{
    uint64_t pause = RETRY_FIRST_MS;

    for (uint32_t i = 1; i < attempts && pause < RETRY_MAX_MS; i++)
        pause *= 2;
    return pause < RETRY_MAX_MS ? pause : RETRY_MAX_MS;
}

static void count_failure(struct group *g, struct share *share, struct held *held, struct bytes reason,
                          uint64_t now_ms)
{
    share->attempts = share->failing == held->position ? share->attempts + 1 : 1;
    share->failing = held->position;
    if (share->attempts < ATTEMPTS_MAX)
        return;
    park(share, held->position, reason, share->attempts);
    held->done = true;
    share->attempts = 0;
    g->counts.parked++;
    moved(g, share);
    group_keep(g, now_ms); /* at once: the next coordinator shouldn't try it five times again */
}

enum status group_fail(struct group *g, void *stream, const struct process_request *request, uint64_t now_ms,
                       struct fault *fault)
{
    struct share *share;
    enum status status;
    size_t at = 0;

    g->now_ms = now_ms;
    if (take_retried(g, stream, request, true, now_ms))
        return STATUS_OK;
    status = share_of(g, stream, request, &share, fault);
    if (status != STATUS_OK || share == NULL)
        return status;
    while (at < share->held_count && share->held[at].position != request->position)
        at++;
    if (at < share->held_count && !share->held[at].done)
        count_failure(g, share, &share->held[at], request->reason, now_ms);
    /* It comes again with all that isn't acknowledged, in order. The member waits for that also when the event is of
     * an earlier reading: it drops what it has behind it. */
    advance(g, request->partition);
    if (share->member != NULL && share->member->stream == stream) {
        stop_share(g, request->partition);
        share->read_again_ms = now_ms + pause_after(share->attempts);
        hand_over_if_idle(g, request->partition);
    }
    tell_changes(g, now_ms);
    return STATUS_OK;
}

/* ---- time ---- */

void group_reader_broke(struct group *g, uint32_t partition, uint64_t now_ms)
{
    struct share *share = &g->shares[partition];

    if (!share->reading)
        return;
    share->reading = false;
    if (share->held_count == 0 && share->member != NULL)
        share->read_again_ms = now_ms + READER_RETRY_MS;
    /* Else the member acknowledges first: read_share() would give it the same once more. */
}

static void dismiss_stuck(struct group *g, uint64_t now_ms)
{
    for (uint32_t p = 0; p < g->partitions; p++) {
        struct share *share = &g->shares[p];
        const struct held *oldest = share->held_count > 0      ? &share->held[0]
                                    : share->retried_count > 0 ? &share->retried[0]
                                                               : NULL;
        struct fault fault;

        if (share->member == NULL || oldest == NULL ||
            now_ms - oldest->given_ms < share->member->ack_timeout_ms)
            continue;
        (void)fault_set(&fault, STATUS_CONFLICT, "ACK_TIMEOUT",
                        "member %s hasn't acknowledged position %llu of partition %u for %llu ms; its partitions "
                        "go to others",
                        share->member->name, (unsigned long long)oldest->position, p,
                        (unsigned long long)share->member->ack_timeout_ms);
        dismiss(g, share->member, &fault);
        balance(g, now_ms);
    }
}

void group_tick(struct group *g, uint64_t now_ms)
{
    dismiss_stuck(g, now_ms);
    for (uint32_t p = 0; p < g->partitions; p++) {
        struct share *share = &g->shares[p];

        if (share->member != NULL && !share->reading && share->read_again_ms == 0 && share->held_count == 0 &&
            share->heir == NULL)
            share->read_again_ms = 1; /* its reader broke while something was held */
    }
    read_due(g, now_ms);
    for (struct member *m = g->members; m != NULL; m = m->next)
        if (m->changed || now_ms - m->told_ms >= HEARTBEAT_MS)
            tell(g, m, now_ms);
    if (now_ms - g->kept_ms >= KEEP_MS)
        group_keep(g, now_ms);
}

void group_reset(struct group *g, const struct log_start *from, struct store *store, const bool *held,
                 uint64_t now_ms)
{
    struct fault fault;

    (void)fault_set(&fault, STATUS_UNAVAILABLE, "GROUP_RESET", "the group begins elsewhere; join again");
    fault.retry_ms = 100;
    group_dismiss_all(g, &fault);
    g->resets++;
    g->start = *from;
    g->start.token = arena_copy(&g->arena, from->token);
    for (uint32_t p = 0; p < g->partitions; p++) {
        struct share *share = &g->shares[p];
        struct fault damaged;

        if (share->position != POSITION_UNKNOWN && share->position > share->replay_until)
            share->replay_until = share->position;
        share->position = from->kind == START_BEGINNING ? 0 : POSITION_UNKNOWN;
        if (from->kind == START_END && held != NULL && held[p] &&
            log_end(store, p, &share->position, &damaged) != STATUS_OK)
            share->position = POSITION_UNKNOWN;
        share->start = g->start;
        share->attempts = 0;
        while (share->parked_count > 0) /* they come again with the rest */
            free((void *)share->parked[--share->parked_count].reason.data);
        moved(g, share);
    }
    group_keep(g, now_ms);
}

/* ---- birth and death ---- */

enum status group_new(struct group **out, const struct group_settings *settings,
                      const struct group_effects *effects, struct store *store, struct fault *fault)
{
    struct group *g = memory_zero(1, sizeof *g);
    enum status status;

    g->settings = *settings;
    g->effects = *effects;
    g->partitions = settings->cluster.partitions;
    g->settings.cluster.cluster_id = arena_copy(&g->arena, settings->cluster.cluster_id);
    g->settings.name = arena_copy(&g->arena, settings->name);
    g->settings.first = NULL;
    g->shares = memory_zero(g->partitions, sizeof *g->shares);
    g->start = settings->first->from;
    g->start.token = arena_copy(&g->arena, settings->first->from.token);
    wire_join_filter(&g->filter_packed, settings->first);
    g->filter = event_filter_copy(&g->arena, &settings->first->filter);
    for (uint32_t p = 0; p < g->partitions; p++) {
        g->shares[p].position = g->start.kind == START_BEGINNING ? 0 : POSITION_UNKNOWN;
        g->shares[p].start = g->start;
    }
    status = load(g, store, fault);
    if (status != STATUS_OK) {
        group_free(g);
        return status;
    }
    *out = g;
    return STATUS_OK;
}

void group_free(struct group *g)
{
    if (g == NULL)
        return;
    assert(g->members == NULL);
    for (uint32_t p = 0; p < g->partitions; p++) {
        for (size_t i = 0; i < g->shares[p].parked_count; i++)
            free((void *)g->shares[p].parked[i].reason.data);
        free(g->shares[p].parked);
        free(g->shares[p].held);
        free(g->shares[p].retried);
    }
    free(g->shares);
    buffer_release(&g->filter_packed);
    arena_release(&g->arena);
    free(g);
}

/* ---- what it knows ---- */

struct bytes group_name(const struct group *g)
{
    return g->settings.name;
}

size_t group_members(const struct group *g)
{
    return g->member_count;
}

const struct event_filter *group_filter(const struct group *g)
{
    return &g->filter;
}

uint64_t group_position(const struct group *g, uint32_t partition)
{
    return g->shares[partition].position;
}

struct group_counts group_counts(const struct group *g)
{
    return g->counts;
}

const struct parked *group_parked(const struct group *g, uint32_t partition, size_t *count)
{
    *count = g->shares[partition].parked_count;
    return g->shares[partition].parked;
}

uint64_t group_resets(const struct group *g)
{
    return g->resets;
}

enum status group_resets_kept(struct store *store, uint16_t home, struct bytes name, uint64_t *resets,
                              struct fault *fault)
{
    struct store_key key = key_cursor(home, name, 0);
    struct arena arena = {0};
    struct group_cursor cursor = {.resets = 0};
    struct bytes value;
    enum status status = store_get(store, STORE_CURSORS, key_bytes(&key), &arena, &value, fault);

    if (status == STATUS_OK)
        status = wire_cursor_decode(value, &arena, &cursor, fault);
    *resets = cursor.resets;
    arena_release(&arena);
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

/* How old the first event behind the position is; 0 when it can't be read here. */
static uint64_t age_of(struct store *store, uint32_t partition, uint64_t position, int64_t wall_ms)
{
    struct arena arena = {0};
    struct bytes packed;
    struct event_head head = {.time_ms = wall_ms};
    struct fault fault;

    if (event_at(store, partition, position, &arena, &packed, &fault) == STATUS_OK)
        (void)!wire_event_peek(packed, &head, &fault);
    arena_release(&arena);
    return head.time_ms < wall_ms ? (uint64_t)(wall_ms - head.time_ms) : 0;
}

void group_view(const struct group *g, uint32_t partition, struct store *store, struct moment_now now,
                struct group_partition *view)
{
    const struct share *share = &g->shares[partition];
    uint64_t end = 0;
    struct fault fault;

    *view = (struct group_partition){
        .position = share->position == POSITION_UNKNOWN ? 0 : share->position,
        .member = share->member == NULL ? BYTES_NONE : bytes_of(share->member->name),
        .idle_ms = share->moved_ms == 0 ? UINT64_MAX : now.now_ms - share->moved_ms,
        .redelivered = share->redelivered,
        .parked = (uint32_t)share->parked_count,
    };
    if (log_end(store, partition, &end, &fault) != STATUS_OK || end <= view->position)
        return;
    view->lag = end - view->position;
    view->lag_ms = age_of(store, partition, view->position, now.wall_ms);
}

void group_describe(const struct group *g, struct store *store, struct moment_now now, struct buffer *out)
{
    for (const struct member *m = g->members; m != NULL; m = m->next) {
        uint64_t unacknowledged = 0;

        for (uint32_t p = 0; p < g->partitions; p++)
            unacknowledged +=
                g->shares[p].member == m ? g->shares[p].held_count + g->shares[p].retried_count : 0;
        wire_group_add_member(out, bytes_of(m->name), m->partitions, unacknowledged);
    }
    for (uint32_t p = 0; p < g->partitions; p++) {
        struct group_partition view;

        group_view(g, p, store, now, &view);
        wire_group_add_partition(out, p, &view);
        for (size_t i = 0; i < g->shares[p].parked_count; i++)
            wire_group_add_parked(out, p, &g->shares[p].parked[i]);
    }
}

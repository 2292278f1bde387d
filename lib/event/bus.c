/* Groups, their lanes (one for each partition), and the publications that wait for them. */
#include "bus.h"

enum {
    BUS_GROUPS_MAX = 256,
    BUS_MEMBERS_MAX = 256, /* of one group */
    WINDOW_DEFAULT = 1024,
    WAIT_MS_DEFAULT = 5000,
    ACK_TIMEOUT_MS = 30000,
    TICK_MS = 50,
    DELIVERY_EVENTS_MAX = 64,
    REASON_BYTES_MAX = 500,
};

/* A command's events, and who waits for them. Lives while deliveries of it do. */
struct publication {
    struct publication *previous;
    struct publication *next;
    void *publisher; /* NULL: done or forgotten */
    uint32_t partition;
    uint64_t ticket;
    size_t open;    /* deliveries, of any kind */
    size_t awaited; /* those that it waits for */
    struct arena arena;
    struct processing_failure *failures;
    size_t failure_count;
    size_t failure_room;
};

/* One event for one group. */
struct delivery {
    struct delivery *next; /* in its lane */
    struct publication *publication;
    struct bytes packed; /* the publication's */
    uint64_t position;
    uint64_t given_ms;
    uint64_t late_ms; /* until when the publication waits; 0: it doesn't */
};

struct bus_member {
    struct bus_member *next;
    void *stream;
    char name[NAME_BYTES_MAX + 1];
    uint32_t window;
    uint64_t ack_timeout_ms;
    size_t held;
};

/* What a group has of one partition: the first `given` of the list are at the member. */
struct lane {
    struct delivery *first;
    struct delivery **end;
    struct delivery *ungiven;
    struct bus_member *member;
    uint64_t given_to; /* one behind the last position that was given to a member */
};

struct bus_group {
    struct bus_group *next;
    struct arena arena;
    char name[NAME_BYTES_MAX + 1];
    struct event_filter filter;
    struct buffer filter_packed;
    bool no_wait;
    uint64_t wait_ms;
    bool report_failure;
    struct bus_member *members; /* in order of joining */
    size_t member_count;
    struct lane *lanes;
    size_t bytes; /* of what waits */
    size_t waiting;
    size_t ungiven; /* of these, those that no member holds */
};

struct bus {
    struct bus_effects effects;
    uint32_t partitions;
    struct bus_group *groups;
    struct publication *publications;
    uint64_t next_tick_ms;
    struct bus_counts counts;
};

/* ---- publications ---- */

static void publication_done(struct bus *bus, struct publication *p)
{
    void *publisher = p->publisher;

    p->publisher = NULL;
    if (publisher != NULL)
        bus->effects.done(bus->effects.context, publisher, p->partition, p->ticket, p->failures,
                          p->failure_count);
}

static void publication_free(struct bus *bus, struct publication *p)
{
    *(p->previous == NULL ? &bus->publications : &p->previous->next) = p->next;
    if (p->next != NULL)
        p->next->previous = p->previous;
    arena_release(&p->arena);
    free(p);
}

static void publication_settle(struct bus *bus, struct publication *p)
{
    if (p->awaited == 0)
        publication_done(bus, p);
    if (p->open == 0)
        publication_free(bus, p);
}

static void report(struct publication *p, const struct bus_group *g, bool timed_out, struct bytes reason)
{
    struct bytes name = bytes_of(g->name);

    if (!g->report_failure || p->publisher == NULL)
        return;
    for (size_t i = 0; i < p->failure_count; i++)
        if (bytes_equal(p->failures[i].group, name))
            return; /* one for each group says enough */
    if (p->failure_count == p->failure_room) {
        struct processing_failure *old = p->failures;

        p->failure_room = p->failure_room == 0 ? 2 : p->failure_room * 2;
        p->failures = arena_take(&p->arena, p->failure_room * sizeof *old);
        if (p->failure_count > 0)
            memcpy(p->failures, old, p->failure_count * sizeof *old);
    }
    if (reason.len > REASON_BYTES_MAX)
        reason.len = REASON_BYTES_MAX;
    p->failures[p->failure_count++] =
        (struct processing_failure){arena_copy(&p->arena, name), timed_out, arena_copy(&p->arena, reason)};
}

/* The publication waits for this delivery no more. */
static void release(struct bus *bus, struct delivery *d)
{
    if (d->late_ms == 0)
        return;
    d->late_ms = 0;
    if (--d->publication->awaited == 0)
        publication_done(bus, d->publication);
}

/* The event is done with, well or not. */
static void delivery_end(struct bus *bus, struct bus_group *g, struct delivery *d)
{
    struct publication *p = d->publication;

    if (d->late_ms != 0)
        p->awaited--;
    g->bytes -= d->packed.len;
    g->waiting--;
    p->open--;
    free(d);
    publication_settle(bus, p);
}

/* ---- lanes ---- */

static struct bus_member *choose_member(const struct bus_group *g, uint32_t partition)
{
    struct bus_member *m = g->members;

    for (size_t i = partition % g->member_count; i > 0; i--)
        m = m->next;
    return m;
}

/* Give the lane's member what waits, as far as its window goes. */
static void give(struct bus *bus, struct bus_group *g, uint32_t partition, uint64_t now_ms)
{
    struct lane *lane = &g->lanes[partition];
    struct bytes events[DELIVERY_EVENTS_MAX];

    while (lane->ungiven != NULL && g->member_count > 0) {
        size_t count = 0;

        if (lane->ungiven == lane->first) /* nothing is held: it may go to whoever is its now */
            lane->member = choose_member(g, partition);
        while (lane->ungiven != NULL && lane->member->held < lane->member->window && count < COUNT_OF(events)) {
            struct delivery *d = lane->ungiven;

            if (d->position < lane->given_to)
                bus->counts.redelivered++;
            else
                lane->given_to = d->position + 1;
            d->given_ms = now_ms;
            events[count++] = d->packed;
            lane->member->held++;
            lane->ungiven = d->next;
            g->ungiven--;
        }
        if (count == 0)
            return;
        bus->counts.delivered += count;
        bus->effects.deliver(bus->effects.context, lane->member->stream, partition, events, count);
    }
}

static void give_all(struct bus *bus, struct bus_group *g, uint64_t now_ms)
{
    for (uint32_t p = 0; g->ungiven > 0 && p < bus->partitions; p++)
        give(bus, g, p, now_ms);
}

static void lane_add(struct lane *lane, struct delivery *d)
{
    if (lane->first == NULL)
        lane->end = &lane->first;
    *lane->end = d;
    lane->end = &d->next;
    if (lane->ungiven == NULL)
        lane->ungiven = d;
}

/* Its member is gone. */
static void lane_take_back(struct bus_group *g, struct lane *lane)
{
    for (struct delivery *d = lane->first; d != lane->ungiven; d = d->next)
        g->ungiven++;
    lane->ungiven = lane->first;
    lane->member = NULL;
}

/* Take the delivery at `at` out of the lane. */
static struct delivery *lane_take(struct lane *lane, struct delivery **at)
{
    struct delivery *d = *at;

    *at = d->next;
    if (lane->end == &d->next)
        lane->end = at;
    if (lane->ungiven == d)
        lane->ungiven = d->next;
    return d;
}

/* ---- members ---- */

static struct bus_group *find_group(const struct bus *bus, struct bytes name)
{
    struct bus_group *g = bus->groups;

    while (g != NULL && !bytes_equal(bytes_of(g->name), name))
        g = g->next;
    return g;
}

static struct bus_member *find_member(const struct bus *bus, const void *stream, struct bus_group **group)
{
    for (*group = bus->groups; *group != NULL; *group = (*group)->next)
        for (struct bus_member *m = (*group)->members; m != NULL; m = m->next)
            if (m->stream == stream)
                return m;
    return NULL;
}

static void group_free_here(struct bus *bus, struct bus_group *g)
{
    struct bus_group **at = &bus->groups;

    for (uint32_t p = 0; p < bus->partitions; p++)
        while (g->lanes[p].first != NULL) {
            struct delivery *d = lane_take(&g->lanes[p], &g->lanes[p].first);

            bus->counts.failed++;
            report(d->publication, g, false, BYTES_LITERAL("its last member at this node is gone"));
            delivery_end(bus, g, d);
        }
    while (*at != g)
        at = &(*at)->next;
    *at = g->next;
    arena_release(&g->arena);
    buffer_release(&g->filter_packed);
    free(g->lanes);
    free(g);
}

/* What it holds goes to the others; without others it has failed. */
static void member_remove(struct bus *bus, struct bus_group *g, struct bus_member *m, uint64_t now_ms)
{
    struct bus_member **at = &g->members;

    while (*at != m)
        at = &(*at)->next;
    *at = m->next;
    g->member_count--;
    for (uint32_t p = 0; p < bus->partitions; p++)
        if (g->lanes[p].member == m)
            lane_take_back(g, &g->lanes[p]);
    free(m);
    if (g->member_count == 0)
        group_free_here(bus, g);
    else
        give_all(bus, g, now_ms);
}

static enum status group_make(struct bus *bus, const struct process_request *join, struct bus_group **out,
                              struct fault *fault)
{
    struct bus_group *g;
    size_t count = 0;

    for (g = bus->groups; g != NULL; g = g->next)
        count++;
    if (count >= BUS_GROUPS_MAX)
        return fault_set(fault, STATUS_EXHAUSTED, "TOO_MANY_GROUPS",
                         "this node has %d groups of subscribing processors already", BUS_GROUPS_MAX);
    g = memory_zero(1, sizeof *g);
    snprintf(g->name, sizeof g->name, "%.*s", (int)join->group.len, (const char *)join->group.data);
    g->filter = event_filter_copy(&g->arena, &join->filter);
    wire_join_filter(&g->filter_packed, join);
    g->no_wait = join->no_wait;
    g->wait_ms = join->wait_ms == 0 ? WAIT_MS_DEFAULT : join->wait_ms;
    g->report_failure = join->report_failure;
    g->lanes = memory_zero(bus->partitions, sizeof *g->lanes);
    g->next = bus->groups;
    bus->groups = g;
    *out = g;
    return STATUS_OK;
}

static enum status check_same(const struct bus_group *g, const struct process_request *join, struct fault *fault)
{
    struct buffer packed = {0};
    uint64_t wait_ms = join->wait_ms == 0 ? WAIT_MS_DEFAULT : join->wait_ms;
    bool same;

    wire_join_filter(&packed, join);
    same = bytes_equal(buffer_bytes(&packed), buffer_bytes(&g->filter_packed));
    buffer_release(&packed);
    if (!same)
        return fault_set(fault, STATUS_INVALID, "FILTER_DIFFERS",
                         "group %s has another filter; all its members at this node give the same one", g->name);
    if (join->no_wait != g->no_wait || wait_ms != g->wait_ms || join->report_failure != g->report_failure)
        return fault_set(fault, STATUS_INVALID, "SETTINGS_DIFFER",
                         "group %s %s, times out after %llu ms and %s failures; all its members at this node "
                         "say the same",
                         g->name, g->no_wait ? "isn't waited for" : "is waited for", (unsigned long long)g->wait_ms,
                         g->report_failure ? "reports" : "doesn't report");
    return STATUS_OK;
}

enum status bus_join(struct bus *bus, void *stream, const struct process_request *join, uint64_t now_ms,
                     struct fault *fault)
{
    struct bus_group *g = find_group(bus, join->group);
    struct bus_member *old = NULL;
    struct bus_member *m;
    struct bus_member **end;
    enum status status = g == NULL ? group_make(bus, join, &g, fault) : check_same(g, join, fault);

    if (status == STATUS_OK && g->member_count >= BUS_MEMBERS_MAX)
        status = fault_set(fault, STATUS_EXHAUSTED, "TOO_MANY_MEMBERS", "group %s has %d members at this node",
                           g->name, BUS_MEMBERS_MAX);
    if (status != STATUS_OK)
        return status;
    m = memory_zero(1, sizeof *m);
    m->stream = stream;
    snprintf(m->name, sizeof m->name, "%.*s", (int)join->member.len, (const char *)join->member.data);
    m->window = join->window == 0 ? WINDOW_DEFAULT : join->window;
    m->ack_timeout_ms = join->ack_timeout_ms == 0 ? ACK_TIMEOUT_MS : join->ack_timeout_ms;
    for (end = &g->members; *end != NULL; end = &(*end)->next)
        if (strcmp((*end)->name, m->name) == 0)
            old = *end;
    *end = m;
    g->member_count++;
    if (old != NULL) {
        struct fault replaced;
        void *old_stream = old->stream;

        (void)fault_set(&replaced, STATUS_PRECONDITION, "MEMBER_REPLACED",
                        "another stream joined group %s as member %s", g->name, m->name);
        member_remove(bus, g, old, now_ms);
        bus->effects.dismiss(bus->effects.context, old_stream, &replaced);
    }
    bus->next_tick_ms = 0;
    return STATUS_OK;
}

void bus_leave(struct bus *bus, void *stream, uint64_t now_ms)
{
    struct bus_group *g;
    struct bus_member *m = find_member(bus, stream, &g);

    if (m != NULL)
        member_remove(bus, g, m, now_ms);
}

void bus_dismiss_all(struct bus *bus, const struct fault *fault)
{
    while (bus->groups != NULL) {
        struct bus_group *g = bus->groups;
        struct bus_member *m = g->members;
        void *stream = m->stream;

        member_remove(bus, g, m, 0);
        bus->effects.dismiss(bus->effects.context, stream, fault);
    }
}

/* ---- what members say ---- */

static enum status lane_of(struct bus *bus, void *stream, const struct process_request *request,
                           struct bus_group **g, struct bus_member **m, struct lane **lane, struct fault *fault)
{
    *m = find_member(bus, stream, g);
    if (*m == NULL)
        return fault_set(fault, STATUS_UNAVAILABLE, "NOT_A_MEMBER", "this stream isn't a member any more");
    if (request->partition >= bus->partitions)
        return fault_set(fault, STATUS_INVALID, "NOT_DELIVERED", "there is no partition %u; this cluster has %u",
                         request->partition, bus->partitions);
    *lane = &(*g)->lanes[request->partition];
    if (request->position >= (*lane)->given_to)
        return fault_set(fault, STATUS_INVALID, "NOT_DELIVERED",
                         "position %llu of partition %u was never given to this group here",
                         (unsigned long long)request->position, request->partition);
    return STATUS_OK;
}

enum status bus_acknowledge(struct bus *bus, void *stream, const struct process_request *request,
                            uint64_t now_ms, struct fault *fault)
{
    struct bus_group *g;
    struct bus_member *m;
    struct lane *lane;
    struct delivery **at;
    enum status status = lane_of(bus, stream, request, &g, &m, &lane, fault);

    if (status != STATUS_OK || lane->member != m)
        return status; /* it was taken from this member: another has it now */
    at = &lane->first;
    while (*at != lane->ungiven && (*at)->position <= request->position) {
        if (request->up_to || (*at)->position == request->position) {
            m->held--;
            delivery_end(bus, g, lane_take(lane, at));
        } else {
            at = &(*at)->next;
        }
    }
    give_all(bus, g, now_ms);
    return STATUS_OK;
}

enum status bus_fail(struct bus *bus, void *stream, const struct process_request *request, uint64_t now_ms,
                     struct fault *fault)
{
    struct bus_group *g;
    struct bus_member *m;
    struct lane *lane;
    struct delivery **at;
    enum status status = lane_of(bus, stream, request, &g, &m, &lane, fault);

    if (status != STATUS_OK || lane->member != m)
        return status;
    at = &lane->first;
    while (*at != lane->ungiven && (*at)->position < request->position)
        at = &(*at)->next;
    if (*at != lane->ungiven && (*at)->position == request->position) {
        m->held--;
        bus->counts.failed++;
        report((*at)->publication, g, false, request->reason);
        delivery_end(bus, g, lane_take(lane, at));
        give_all(bus, g, now_ms);
    }
    return STATUS_OK;
}

/* ---- publishing ---- */

static void deliver_to(struct bus *bus, struct bus_group *g, struct publication *p, struct bytes packed,
                       const struct event_head *head, uint64_t now_ms)
{
    struct delivery *d;

    if (!event_filter_fits(&g->filter, head))
        return;
    d = memory_zero(1, sizeof *d);
    d->publication = p;
    d->packed = packed;
    d->position = head->position;
    d->late_ms = g->no_wait ? 0 : now_ms + g->wait_ms;
    p->open++;
    p->awaited += d->late_ms != 0;
    g->bytes += packed.len;
    g->waiting++;
    g->ungiven++;
    lane_add(&g->lanes[p->partition], d);
}

/* The member that holds the oldest events, when too much waits. */
static void drop_slowest(struct bus *bus, struct bus_group *g, uint64_t now_ms)
{
    struct bus_member *slowest = g->members;
    struct fault fault;
    void *stream;

    for (struct bus_member *m = g->members; m != NULL; m = m->next)
        if (m->held > slowest->held)
            slowest = m;
    (void)fault_set(&fault, STATUS_EXHAUSTED, "TOO_SLOW",
                    "%zu events of %zu bytes wait for group %s at this node, member %s holds %zu; it is dismissed",
                    g->waiting, g->bytes, g->name, slowest->name, slowest->held);
    journal(JOURNAL_WARN, "subscriber-slow", "%s", fault.message);
    stream = slowest->stream;
    member_remove(bus, g, slowest, now_ms);
    bus->effects.dismiss(bus->effects.context, stream, &fault);
}

void bus_publish(struct bus *bus, void *publisher, uint32_t partition, uint64_t ticket,
                 const struct bytes *packed_events, size_t count, uint64_t now_ms)
{
    struct publication *p = memory_zero(1, sizeof *p);

    p->publisher = publisher;
    p->partition = partition;
    p->ticket = ticket;
    p->open = 1; /* ours, until the end of this function */
    p->next = bus->publications;
    if (p->next != NULL)
        p->next->previous = p;
    bus->publications = p;
    for (size_t i = 0; i < count; i++) {
        struct bytes packed = arena_copy(&p->arena, packed_events[i]);
        struct event_head head;
        struct fault fault;

        if (wire_event_peek(packed, &head, &fault) != STATUS_OK)
            continue; /* it was made here a moment ago */
        for (struct bus_group *g = bus->groups; g != NULL; g = g->next)
            deliver_to(bus, g, p, packed, &head, now_ms);
    }
    for (struct bus_group *g = bus->groups, *next; g != NULL; g = next) {
        next = g->next;
        give(bus, g, partition, now_ms);
        if (g->bytes > BUS_QUEUE_BYTES_MAX)
            drop_slowest(bus, g, now_ms);
    }
    p->open--;
    publication_settle(bus, p);
}

void bus_forget(struct bus *bus, const void *publisher, uint32_t partition, uint64_t ticket)
{
    for (struct publication *p = bus->publications; p != NULL; p = p->next)
        if (p->publisher == publisher && p->partition == partition && p->ticket == ticket)
            p->publisher = NULL;
}

/* ---- time ---- */

static void group_late(struct bus *bus, struct bus_group *g, uint64_t now_ms)
{
    for (uint32_t i = 0; i < bus->partitions; i++)
        for (struct delivery *d = g->lanes[i].first; d != NULL; d = d->next)
            if (d->late_ms != 0 && d->late_ms <= now_ms) {
                bus->counts.late++;
                report(d->publication, g, true, BYTES_LITERAL("it didn't acknowledge in time"));
                release(bus, d);
            }
}

/* One member that holds an event for too long; NULL for none. */
static struct bus_member *stuck_member(const struct bus *bus, const struct bus_group *g, uint64_t now_ms)
{
    for (uint32_t i = 0; i < bus->partitions; i++) {
        const struct lane *lane = &g->lanes[i];

        if (lane->first != lane->ungiven && lane->first->given_ms + lane->member->ack_timeout_ms <= now_ms)
            return lane->member;
    }
    return NULL;
}

void bus_tick(struct bus *bus, uint64_t now_ms)
{
    struct bus_group *next;

    if (now_ms < bus->next_tick_ms)
        return;
    for (struct bus_group *g = bus->groups; g != NULL; g = next) {
        struct bus_member *stuck;

        next = g->next;
        if (g->waiting == 0)
            continue;
        group_late(bus, g, now_ms);
        stuck = stuck_member(bus, g, now_ms);
        if (stuck != NULL) {
            struct fault fault;
            void *stream = stuck->stream;

            (void)fault_set(&fault, STATUS_DEADLINE, "ACK_TIMEOUT",
                            "member %s of group %s acknowledged nothing for %llu ms", stuck->name, g->name,
                            (unsigned long long)stuck->ack_timeout_ms);
            member_remove(bus, g, stuck, now_ms);
            bus->effects.dismiss(bus->effects.context, stream, &fault);
        }
    }
    bus->next_tick_ms = now_ms + TICK_MS;
}

uint64_t bus_deadline(const struct bus *bus)
{
    for (const struct bus_group *g = bus->groups; g != NULL; g = g->next)
        if (g->waiting > 0)
            return bus->next_tick_ms;
    return UINT64_MAX;
}

struct bus_counts bus_counts(const struct bus *bus)
{
    struct bus_counts counts = bus->counts;

    for (const struct bus_group *g = bus->groups; g != NULL; g = g->next) {
        counts.groups++;
        counts.members += g->member_count;
        counts.waiting += g->waiting;
    }
    return counts;
}

/* ---- birth and death ---- */

struct bus *bus_new(const struct bus_effects *effects, uint32_t partitions)
{
    struct bus *bus = memory_zero(1, sizeof *bus);

    bus->effects = *effects;
    bus->partitions = partitions;
    return bus;
}

void bus_free(struct bus *bus)
{
    if (bus == NULL)
        return;
    assert(bus->groups == NULL);
    while (bus->publications != NULL)
        publication_free(bus, bus->publications);
    free(bus);
}

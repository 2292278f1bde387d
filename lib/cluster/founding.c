/* How a cluster comes to be, once. */
#include "cluster.h"

enum { RETRY_MS = 300 };

struct founding_process {
    struct founding_settings settings;
    struct founding_effects effects;
    struct arena arena; /* the record's memory */
    struct founding record;
    bool held;     /* record is accepted, by us too */
    bool told;     /* `founded` was called */
    bool accepted[FOUNDERS_MAX];
    bool confirmed[FOUNDERS_MAX];
    uint64_t next_ms;
    uint64_t draws;
};

static bool is_proposer(const struct founding_process *f)
{
    return f->held && f->record.proposer == f->settings.node_id;
}

static size_t founder_index(const struct founding *record, uint64_t node_id)
{
    size_t i = 0;

    while (i < record->founder_count && record->founders[i].node_id != node_id)
        i++;
    return i;
}

static void hold(struct founding_process *f, const struct founding *record)
{
    struct buffer packed = {0};
    struct fault fault;
    struct arena fresh = {0};
    enum status status;

    wire_founding_pack(&packed, record);
    status = wire_founding_decode(buffer_bytes(&packed), &fresh, &f->record, &fault);
    assert(status == STATUS_OK); /* it was decoded or built with the same rules */
    (void)status;
    buffer_release(&packed);
    arena_release(&f->arena);
    f->arena = fresh;
    f->held = true;
    f->effects.persist(f->effects.context, &f->record);
}

static void tell_founded(struct founding_process *f)
{
    if (f->held && f->record.complete && !f->told) {
        f->told = true;
        f->effects.founded(f->effects.context, &f->record);
    }
}

static void complete(struct founding_process *f)
{
    f->record.complete = true;
    f->effects.persist(f->effects.context, &f->record);
    tell_founded(f);
}

static void spread(struct founding_process *f)
{
    for (size_t i = 0; i < f->record.founder_count; i++) {
        uint64_t to = f->record.founders[i].node_id;
        bool done = f->record.complete ? f->confirmed[i] : f->accepted[i];

        if (to != f->settings.node_id && !done)
            f->effects.send(f->effects.context, to, FOUNDING_PROPOSE, &f->record);
    }
}

static uint64_t draw(struct founding_process *f)
{
    uint64_t both[2] = {f->settings.seed, ++f->draws};

    return hash_bytes((struct bytes){(const uint8_t *)both, sizeof both});
}

static void propose(struct founding_process *f, const struct founder *founders, size_t count)
{
    struct arena arena = {0};
    struct founding record = {
        .cluster_id = bytes_of(arena_printf(&arena, "%016llx%016llx",
                                            (unsigned long long)draw(f),
                                            (unsigned long long)draw(f))),
        .cluster_name = f->settings.cluster_name,
        .proposer = f->settings.node_id,
        .partition_count = f->settings.partition_count,
        .replication_factor = f->settings.replication_factor,
        .founders = (struct founder *)founders,
        .founder_count = count,
        .sets = arena_take(&arena, (f->settings.partition_count + 1) * sizeof(struct replica_set)),
        .set_count = f->settings.partition_count + 1,
    };

    placement_found(founders, count, record.partition_count, record.replication_factor,
                    record.sets);
    memset(f->accepted, 0, sizeof f->accepted);
    memset(f->confirmed, 0, sizeof f->confirmed);
    hold(f, &record);
    arena_release(&arena);
    f->accepted[founder_index(&f->record, f->settings.node_id)] = true;
    if (f->record.founder_count == 1)
        complete(f);
    else
        spread(f);
}

static int by_id(const void *a, const void *b)
{
    uint64_t x = ((const struct founder *)a)->node_id;
    uint64_t y = ((const struct founder *)b)->node_id;

    return x < y ? -1 : x > y;
}

static void look_for_founders(struct founding_process *f, const struct member_state *members,
                              size_t count)
{
    struct founder founders[FOUNDERS_MAX];
    size_t n = 0;

    for (size_t i = 0; i < count && n < FOUNDERS_MAX; i++) {
        if (members[i].status != MEMBER_ALIVE)
            continue;
        if (!members[i].unfounded)
            return; /* there is a cluster already: it will take us in */
        founders[n++] = (struct founder){members[i].node_id, members[i].name, members[i].address};
    }
    if (n < f->settings.expect)
        return;
    qsort(founders, n, sizeof *founders, by_id);
    if (founders[0].node_id == f->settings.node_id)
        propose(f, founders, f->settings.expect > 1 && n > f->settings.expect ? f->settings.expect : n);
}

/* A member that has no cluster yet gets our complete record. */
static void take_in(struct founding_process *f, const struct member_state *members, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (members[i].unfounded && members[i].status == MEMBER_ALIVE &&
            members[i].node_id != f->settings.node_id)
            f->effects.send(f->effects.context, members[i].node_id, FOUNDING_PROPOSE, &f->record);
}

void founding_tick(struct founding_process *f, const struct member_state *members, size_t count,
                   uint64_t now_ms)
{
    if (now_ms < f->next_ms)
        return;
    f->next_ms = now_ms + RETRY_MS;
    if (!f->held && f->settings.expect > 0)
        look_for_founders(f, members, count);
    else if (f->held && f->record.complete)
        take_in(f, members, count);
    else if (is_proposer(f))
        spread(f);
}

static void on_propose(struct founding_process *f, uint64_t from, const struct founding *record)
{
    bool same = f->held && bytes_equal(f->record.cluster_id, record->cluster_id);

    if (f->held && f->record.complete) {
        /* Founded: confirm our own record, refuse any other. */
        f->effects.send(f->effects.context, from, same ? FOUNDING_ACCEPTED : FOUNDING_REFUSED,
                        &f->record);
        return;
    }
    if (record->complete) {
        hold(f, record);
        f->effects.send(f->effects.context, from, FOUNDING_ACCEPTED, &f->record);
        tell_founded(f);
        return;
    }
    if (f->held && !same) {
        f->effects.send(f->effects.context, from, FOUNDING_REFUSED, &f->record);
        return;
    }
    if (!f->held) {
        if (record->proposer != from ||
            founder_index(record, f->settings.node_id) == record->founder_count)
            return;
        hold(f, record);
    }
    f->effects.send(f->effects.context, from, FOUNDING_ACCEPTED, &f->record);
}

static void on_accepted(struct founding_process *f, uint64_t from, const struct founding *record)
{
    size_t at;

    if (!is_proposer(f) || !bytes_equal(f->record.cluster_id, record->cluster_id))
        return;
    at = founder_index(&f->record, from);
    if (at == f->record.founder_count)
        return;
    f->accepted[at] = true;
    f->confirmed[at] = f->confirmed[at] || record->complete;
    if (f->record.complete)
        return;
    for (size_t i = 0; i < f->record.founder_count; i++)
        if (!f->accepted[i])
            return;
    complete(f);
    spread(f);
}

static void forget(struct founding_process *f)
{
    f->held = false;
    f->effects.persist(f->effects.context, NULL);
}

/* Ours can't gather everybody while the refuser keeps another one. The higher proposer yields;
 * nobody else can complete what its proposer has forgotten. */
static void on_refused(struct founding_process *f, const struct founding *theirs)
{
    if (!is_proposer(f) || f->record.complete)
        return;
    if (!theirs->complete && theirs->proposer > f->settings.node_id)
        return;
    for (size_t i = 0; i < f->record.founder_count; i++)
        if (f->record.founders[i].node_id != f->settings.node_id)
            f->effects.send(f->effects.context, f->record.founders[i].node_id, FOUNDING_ABANDONED,
                            &f->record);
    forget(f);
}

void founding_receive(struct founding_process *f, uint64_t from, enum founding_message_type type,
                      const struct founding *record, uint64_t now_ms)
{
    (void)now_ms;
    switch (type) {
    case FOUNDING_PROPOSE:
        on_propose(f, from, record);
        break;
    case FOUNDING_ACCEPTED:
        on_accepted(f, from, record);
        break;
    case FOUNDING_REFUSED:
        on_refused(f, record);
        break;
    case FOUNDING_ABANDONED:
        if (f->held && !f->record.complete && f->record.proposer == from &&
            bytes_equal(f->record.cluster_id, record->cluster_id))
            forget(f);
        break;
    }
}

struct founding_process *founding_new(const struct founding_settings *settings,
                                      const struct founding_effects *effects,
                                      const struct founding *stored, uint64_t now_ms)
{
    struct founding_process *f = memory_zero(1, sizeof *f);

    f->settings = *settings;
    f->effects = *effects;
    f->next_ms = now_ms;
    if (stored != NULL) {
        hold(f, stored);
        if (is_proposer(f))
            f->accepted[founder_index(&f->record, settings->node_id)] = true;
        tell_founded(f);
    }
    return f;
}

void founding_free(struct founding_process *f)
{
    if (f == NULL)
        return;
    arena_release(&f->arena);
    free(f);
}

static const char *identity_lost(const struct hello *hello, char *text, size_t room)
{
    snprintf(text, room,
             "IDENTITY_LOST: node %.*s is a member of this cluster under another id: its data directory "
             "was emptied or exchanged, and it forgot its votes; restore the directory, start it with "
             "--replace %.*s to take the old one's place, or choose another --name",
             (int)hello->name.len, (const char *)hello->name.data, (int)hello->name.len,
             (const char *)hello->name.data);
    return text;
}

/* A name belongs to one id, until another takes its place because it is dead. */
static const char *placed_refusal(const struct hello *hello, const struct hello_view *view, char *text,
                                  size_t room)
{
    const struct placement *placement = view->placement;

    for (size_t i = 0; i < placement->member_count; i++) {
        const struct placed_member *member = &placement->members[i];
        bool replaced = hello->replaces.len > 0 && bytes_equal(member->name, hello->replaces);

        if (member->node_id == hello->node_id && member->state == PLACED_REMOVED) {
            snprintf(text, room,
                     "REMOVED: node %.*s was removed from this cluster; give it an empty data directory to "
                     "join anew",
                     (int)hello->name.len, (const char *)hello->name.data);
            return text;
        }
        if (member->node_id == hello->node_id || member->state == PLACED_REMOVED)
            continue;
        if (replaced && view->alive(view->context, member->node_id)) {
            snprintf(text, room, "MEMBER_ALIVE: node %.*s is alive and can't be replaced; drain it instead",
                     (int)member->name.len, (const char *)member->name.data);
            return text;
        }
        if (!replaced && bytes_equal(member->name, hello->name))
            return identity_lost(hello, text, room);
    }
    return NULL;
}

const char *hello_refusal(const struct hello *hello, const struct hello_view *view, char *text, size_t room)
{
    const struct founding *own = view->own;

    if (!hello->present || hello->node_id == 0) {
        snprintf(text, room, "the first message must say hello");
        return text;
    }
    if (hello->node_id == view->own_node_id) {
        snprintf(text, room, "this is the node that you are");
        return text;
    }
    if (hello->target_id != 0 && hello->target_id != view->own_node_id) {
        snprintf(text, room, "another node lives at this address now");
        return text;
    }
    if (hello->protocol_min > PEER_PROTOCOL_MAX || hello->protocol_max < PEER_PROTOCOL_MIN) {
        snprintf(text, room,
                 "peer protocol %u to %u is not spoken here (%d to %d); upgrade one release at a "
                 "time",
                 hello->protocol_min, hello->protocol_max, PEER_PROTOCOL_MIN, PEER_PROTOCOL_MAX);
        return text;
    }
    if (view->cluster_name.len > 0 && hello->cluster_name.len > 0 &&
        !bytes_equal(hello->cluster_name, view->cluster_name)) {
        snprintf(text, room, "node %.*s is of the cluster named %.*s, this is %.*s", (int)hello->name.len,
                 (const char *)hello->name.data, (int)hello->cluster_name.len,
                 (const char *)hello->cluster_name.data, (int)view->cluster_name.len,
                 (const char *)view->cluster_name.data);
        return text;
    }
    if (own == NULL)
        return NULL;
    if (hello->cluster_id.len > 0 && !bytes_equal(hello->cluster_id, own->cluster_id)) {
        snprintf(text, room,
                 "node %.*s belongs to cluster %.*s, this is cluster %.*s; point it at its own "
                 "cluster, or give it an empty data directory to join this one",
                 (int)hello->name.len, (const char *)hello->name.data,
                 (int)hello->cluster_id.len, (const char *)hello->cluster_id.data,
                 (int)own->cluster_id.len, (const char *)own->cluster_id.data);
        return text;
    }
    if (view->placement != NULL && hello->protocol_max < view->placement->release) {
        snprintf(text, room,
                 "RELEASE_OLD: this cluster uses what is new with release %u, node %.*s has release %u; start it "
                 "with the newer release",
                 view->placement->release, (int)hello->name.len, (const char *)hello->name.data,
                 hello->protocol_max);
        return text;
    }
    if (view->placement != NULL)
        return placed_refusal(hello, view, text, room);
    for (size_t i = 0; i < own->founder_count; i++)
        if (bytes_equal(own->founders[i].name, hello->name) &&
            own->founders[i].node_id != hello->node_id)
            return identity_lost(hello, text, room);
    return NULL;
}

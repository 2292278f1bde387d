/*
 * A processor group in the world: at each node that owns its home partition the coordinator that cairnd runs
 * (lib/event/group.c), and members that come, go, hang, fail at events and acknowledge in any order.
 *
 * Checked: a member gets only what is committed; within one stream each partition goes on without a gap; what a
 * new stream begins with isn't behind anything that was never acknowledged; at the end all is acknowledged.
 */
#include "event/group.h"
#include "pipe.h"

enum { STEP_US = 20000, GROUP_MEMBERS = 3, ACKS_MAX = 4096, POSITIONS = 8192 };

struct sim_member {
    int index;
    int node; /* of its coordinator */
    struct coordinator *at; /* NULL: not joined */
    uint64_t silent_until_us;
    uint64_t expected[PARTITIONS]; /* within this stream; UINT64_MAX: nothing came yet */
    uint64_t had[PARTITIONS];      /* one behind the last that came */
    bool goes_on[PARTITIONS];      /* else what comes has to say that it begins */
    struct {
        uint32_t partition;
        uint64_t position;
    } todo[ACKS_MAX];
    size_t todo_count;
};

struct coordinator {
    struct coordinator *next;
    struct world *world;
    int node;
    uint32_t life;
    struct group *group;
    struct pipe *readers[PARTITIONS];
};

struct group_world {
    struct coordinator *first;
    struct sim_member members[GROUP_MEMBERS];
    uint8_t acknowledged[PARTITIONS][POSITIONS / 8];
    uint64_t prefix[PARTITIONS]; /* everything below is acknowledged */
};

static const struct bytes group_text = BYTES_LITERAL("g");

static uint32_t home(void)
{
    return group_home(group_text, PARTITIONS);
}

/* ---- what members do ---- */

static void acknowledged(struct world *w, uint32_t partition, uint64_t position)
{
    struct group_world *g = w->group;

    if (position >= POSITIONS)
        return;
    g->acknowledged[partition][position / 8] |= (uint8_t)(1U << position % 8);
    while (g->prefix[partition] < POSITIONS &&
           (g->acknowledged[partition][g->prefix[partition] / 8] >> g->prefix[partition] % 8 & 1) != 0)
        g->prefix[partition]++;
}

static void take_event(struct world *w, struct sim_member *m, struct bytes packed)
{
    struct event_head head;
    uint64_t *expected;

    oracle_given(w, packed, &head);
    if (w->broken_promise != 0)
        return;
    expected = &m->expected[head.partition];
    if (*expected == UINT64_MAX) {
        /* A new stream: nothing that was never acknowledged may lie before. */
        if (head.position > w->group->prefix[head.partition])
            broken(w, 7, "a member of a group begins at position %llu of partition %u, but %llu was never "
                         "acknowledged",
                   (unsigned long long)head.position, head.partition,
                   (unsigned long long)w->group->prefix[head.partition]);
    } else if (head.position > *expected && head.position > w->group->prefix[head.partition]) {
        /* Again after a failure is fine, and so is a partition that was somebody else's meanwhile. */
        broken(w, 7, "a member of a group gets position %llu of partition %u, expected %llu",
               (unsigned long long)head.position, head.partition, (unsigned long long)*expected);
    }
    *expected = head.position + 1;
    if (head.position >= m->had[head.partition])
        m->had[head.partition] = head.position + 1;
    if (m->todo_count < ACKS_MAX) {
        m->todo[m->todo_count].partition = head.partition;
        m->todo[m->todo_count++].position = head.position;
    }
    w->figures.processed++;
}

static uint64_t varint(const uint8_t **at)
{
    uint64_t value = 0;

    for (unsigned shift = 0;; shift += 7) {
        uint8_t byte = *(*at)++;

        value |= (uint64_t)(byte & 0x7F) << shift;
        if ((byte & 0x80) == 0)
            return value;
    }
}

/* A member on a network drops what comes behind a failure until it is told that the partition begins anew. */
static void check_begin(struct world *w, struct sim_member *m, uint32_t partition, bool begins)
{
    if (!begins && !m->goes_on[partition])
        broken(w, 7, "a member of a group gets events of partition %u behind a failure, and can't know that they are "
                     "given anew", partition);
    m->goes_on[partition] = true;
}

static void take_delivery(struct world *w, struct sim_member *m, const uint8_t *at, const uint8_t *end)
{
    uint32_t partition = 0;
    bool begins = false;

    while (at < end && w->broken_promise == 0) {
        uint64_t tag = varint(&at);
        uint64_t value = varint(&at);

        if (tag >> 3 == 1)
            partition = (uint32_t)value;
        if (tag >> 3 == 6)
            begins = value != 0;
        if (tag >> 3 == 2) {
            check_begin(w, m, partition, begins);
            take_event(w, m, (struct bytes){at, (size_t)value});
            at += value;
        }
    }
}

/* ---- effects of a coordinator ---- */

static void effect_send(void *context, void *member, struct bytes message)
{
    struct coordinator *c = context;
    const uint8_t *at = message.data;
    uint64_t tag = varint(&at);
    uint64_t len = varint(&at);

    if (tag >> 3 == 2)
        take_delivery(c->world, member, at, at + len);
}

static void forget(struct sim_member *m)
{
    m->at = NULL;
    m->todo_count = 0;
    for (uint32_t p = 0; p < PARTITIONS; p++) {
        m->expected[p] = UINT64_MAX;
        m->had[p] = 0;
        m->goes_on[p] = false;
    }
}

static void effect_dismiss(void *context, void *member, const struct fault *fault)
{
    (void)context;
    (void)fault;
    forget(member);
}

static void effect_stop(void *context, uint32_t partition)
{
    struct coordinator *c = context;

    pipe_close(c->readers[partition]);
    c->readers[partition] = NULL;
}

static void effect_read(void *context, uint32_t partition, const struct log_start *from, uint32_t credits)
{
    struct coordinator *c = context;
    struct subscription_settings settings = {.from = *from, .credits = credits, .heartbeat_ms = 200};

    effect_stop(c, partition);
    settings.filter.partitions = &partition;
    settings.filter.partition_count = 1;
    c->readers[partition] = pipe_open(&c->world->nodes[c->node], &settings);
    /* When it couldn't be opened the next step says so. */
}

static void effect_credit(void *context, uint32_t partition, uint32_t credits)
{
    struct coordinator *c = context;

    if (c->readers[partition] != NULL)
        pipe_credit(c->readers[partition], credits);
}

static void effect_keep(void *context, struct bytes payload)
{
    struct coordinator *c = context;

    node_append(&c->world->nodes[c->node], (uint16_t)home(), payload);
}

/* ---- coordinators ---- */

static bool coordinates(struct world *w, const struct node *n)
{
    uint64_t epoch;

    (void)w;
    return n->alive && engine_owner(n->engine, home(), &epoch) == n->id;
}

static void end(struct coordinator *c, bool keep)
{
    struct coordinator **at = &c->world->group->first;
    struct fault fault;

    (void)fault_set(&fault, STATUS_UNAVAILABLE, "COORDINATOR_CHANGED", "join elsewhere");
    if (keep)
        group_keep(c->group, c->world->nodes[c->node].now_ms);
    group_dismiss_all(c->group, &fault);
    for (uint32_t p = 0; p < PARTITIONS; p++)
        effect_stop(c, p);
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    group_free(c->group);
    free(c);
}

static struct coordinator *coordinator_at(struct world *w, struct node *n, const struct process_request *join)
{
    struct coordinator *c = w->group->first;
    struct fault fault;

    while (c != NULL && (c->node != n->index || c->life != n->life))
        c = c->next;
    if (c == NULL) {
        struct group_effects effects;
        struct group_settings settings = {.cluster = {w->founding.cluster_id, PARTITIONS},
                                          .name = group_text,
                                          .home = (uint16_t)home(),
                                          .first = join};

        c = memory_zero(1, sizeof *c);
        c->world = w;
        c->node = n->index;
        c->life = n->life;
        effects = (struct group_effects){c,           effect_send,   effect_dismiss, effect_read,
                                         effect_credit, effect_stop, effect_keep};
        if (engine_replica(n->engine, home()) == NULL ||
            group_new(&c->group, &settings, &effects, n->store, &fault) != STATUS_OK) {
            free(c);
            return NULL;
        }
        c->next = w->group->first;
        w->group->first = c;
    }
    return c;
}

/* Its readers give; what broke is told. */
static void run_readers(struct coordinator *c)
{
    struct world *w = c->world;
    struct node *n = &w->nodes[c->node];

    for (uint32_t p = 0; p < PARTITIONS && w->broken_promise == 0; p++) {
        struct buffer message = {0};
        struct fault fault;
        bool works;

        if (c->readers[p] == NULL) {
            group_reader_broke(c->group, p, n->now_ms);
            continue;
        }
        works = pipe_next(c->readers[p], &message);
        if (works && message.len > 0 &&
            group_events(c->group, p, buffer_bytes(&message), n->now_ms, &fault) != STATUS_OK)
            broken(w, 7, "a group can't read what its reader gave: %s", fault.message);
        buffer_release(&message);
        if (!works) {
            effect_stop(c, p);
            group_reader_broke(c->group, p, n->now_ms);
        }
    }
}

static void run_coordinators(struct world *w)
{
    struct coordinator *c = w->group->first;

    while (c != NULL && w->broken_promise == 0) {
        struct coordinator *next = c->next;
        struct node *n = &w->nodes[c->node];

        if (!n->alive || n->life != c->life) {
            end(c, false);
        } else if (n->paused_until_us <= w->now_us) {
            if (!coordinates(w, n) || group_members(c->group) == 0) {
                end(c, coordinates(w, n));
            } else {
                group_tick(c->group, n->now_ms);
                run_readers(c);
            }
        }
        c = next;
    }
}

/* ---- members ---- */

static void join(struct world *w, struct sim_member *m)
{
    struct node *n = &w->nodes[rng_below(&w->group_rng, (uint64_t)w->node_count)];
    char name = (char)('a' + m->index);
    struct process_request request = {.kind = PROCESS_JOIN,
                                      .group = group_text,
                                      .member = {(const uint8_t *)&name, 1},
                                      .window = 40 + (uint32_t)rng_below(&w->group_rng, 80),
                                      .ack_timeout_ms = 1500};
    struct coordinator *c;
    struct fault fault;

    if (!node_answers(n, n->life) || !coordinates(w, n))
        return;
    c = coordinator_at(w, n, &request);
    if (c == NULL)
        return;
    forget(m);
    m->at = c;
    m->node = n->index;
    if (group_join(c->group, m, &request, n->now_ms, &fault) != STATUS_OK)
        broken(w, 7, "a member may not join: %s", fault.message);
}

static void leave(struct sim_member *m)
{
    struct coordinator *c = m->at;

    group_leave(c->group, m, c->world->nodes[c->node].now_ms);
    forget(m);
}

static void say_one(struct world *w, struct sim_member *m)
{
    struct coordinator *c = m->at;
    size_t at = rng_chance(&w->group_rng, 800) ? 0 : rng_below(&w->group_rng, m->todo_count);
    struct process_request request = {.kind = PROCESS_ACKNOWLEDGE,
                                      .partition = m->todo[at].partition,
                                      .position = m->todo[at].position};
    uint64_t now = w->nodes[c->node].now_ms;
    struct fault fault;
    enum status status;

    if (!w->healed && rng_chance(&w->group_rng, 15)) {
        request.kind = PROCESS_FAIL;
        request.reason = BYTES_LITERAL("no luck");
        for (size_t i = 0; i < m->todo_count;) /* it comes again with what follows */
            if (m->todo[i].partition == request.partition)
                m->todo[i] = m->todo[--m->todo_count];
            else
                i++;
        m->goes_on[request.partition] = false;
        status = group_fail(c->group, m, &request, now, &fault);
    } else {
        memmove(&m->todo[at], &m->todo[at + 1], (--m->todo_count - at) * sizeof m->todo[0]);
        acknowledged(w, request.partition, request.position);
        status = group_acknowledge(c->group, m, &request, now, &fault);
    }
    if (status != STATUS_OK)
        broken(w, 7, "what a member was given is refused: %s", fault.message);
}

void group_step(struct world *w, uint64_t number)
{
    struct sim_member *m = &w->group->members[number];
    struct node *n = &w->nodes[m->node];
    int count = (int)rng_below(&w->group_rng, 12);

    world_at(w, w->now_us + STEP_US + rng_below(&w->group_rng, STEP_US), EVENT_GROUP, -1, number, NULL);
    if (number == 0)
        run_coordinators(w);
    if (w->now_us < m->silent_until_us || w->broken_promise != 0)
        return;
    if (m->at == NULL) {
        join(w, m);
        return;
    }
    if (!node_answers(n, m->at->life))
        return;
    if (!w->healed && rng_chance(&w->group_rng, 5)) {
        leave(m);
        m->silent_until_us = w->now_us + rng_below(&w->group_rng, 1000000);
        return;
    }
    if (!w->healed && rng_chance(&w->group_rng, 3))
        m->silent_until_us = w->now_us + rng_below(&w->group_rng, 4000000); /* it hangs */
    while (count-- > 0 && m->at != NULL && m->todo_count > 0 && w->broken_promise == 0)
        say_one(w, m);
}

bool group_settled(const struct world *w)
{
    for (uint32_t p = 0; p < PARTITIONS; p++)
        if (w->group->prefix[p] < w->partitions[p].next_position && w->group->prefix[p] < POSITIONS)
            return false;
    return true;
}

void group_final(struct world *w)
{
    for (uint32_t p = 0; p < PARTITIONS && w->broken_promise == 0; p++)
        if (w->group->prefix[p] < w->partitions[p].next_position && w->group->prefix[p] < POSITIONS)
            broken(w, 7, "a group never acknowledged position %llu of partition %u; the log is at %llu",
                   (unsigned long long)w->group->prefix[p], p,
                   (unsigned long long)w->partitions[p].next_position);
}

void group_begin(struct world *w)
{
    w->group = memory_zero(1, sizeof *w->group);
    w->group_rng.state = w->seed ^ 0x6E0B9ULL;
    for (int i = 0; i < GROUP_MEMBERS; i++) {
        w->group->members[i].index = i;
        forget(&w->group->members[i]);
        world_at(w, 700000 + (uint64_t)i * 300000, EVENT_GROUP, -1, (uint64_t)i, NULL);
    }
}

void group_end(struct world *w)
{
    while (w->group->first != NULL)
        end(w->group->first, false);
    free(w->group);
}

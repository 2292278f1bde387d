/*
 * SWIM membership with the Lifeguard refinements.
 *
 * Sources: Das, Gupta, Motivala, "SWIM" (DSN 2002); Dadgar, Phillips, Currey, "Lifeguard" (2017);
 * constants of memberlist's LAN profile.
 *
 *           probe fails                    timer runs out
 *   alive ──────────────▶ suspect ───────────────────────▶ dead
 *     ▲                      │ refuted: higher incarnation    │ comes back: higher incarnation
 *     └──────────────────────┴────────────────────────────────┘        left: by its own will
 */
#include <math.h>

#include "cluster.h"

enum { UPDATES_PER_MESSAGE = 12, HEALTH_MAX = 8, JOIN_RETRY_MS = 500, SEEDS_MAX = 64 };

/* What we know of one member. state is what is told to others. */
struct peer {
    struct member_state state;
    struct bytes *handlers; /* ours */
    uint64_t suspect_since;
    uint64_t suspect_until;
    uint64_t accusers[8];
    unsigned accuser_count;
    unsigned accuser_next; /* to be told of */
    unsigned sends_left; /* how often the newest fact is still to be told */
};

struct seed {
    char address[ADDRESS_BYTES_MAX + 1];
};

struct swim {
    struct swim_settings settings;
    struct swim_effects effects;
    struct peer *peers; /* the first is this node */
    size_t count;
    size_t room;
    struct member_state *view; /* for swim_members() */
    struct seed seeds[SEEDS_MAX];
    size_t seed_count;
    struct seed discovered[DISCOVERED_MAX];
    size_t discovered_count;
    uint64_t random;

    uint32_t *order; /* shuffled round of probe targets */
    size_t order_count;
    size_t order_at;
    uint64_t target; /* of the probe under way, 0 for none */
    uint64_t number;
    uint64_t probe_started;
    uint64_t probe_until;
    uint64_t next_probe;
    bool indirect_sent;
    unsigned nacks_expected;
    unsigned nacks;
    bool acked;
    uint64_t hinted; /* probe this one next */
    unsigned health;

    /* Probes made for others: who asked, under which number. */
    struct relay {
        uint64_t number;
        uint64_t asker;
        uint64_t asker_number;
        uint64_t until;
    } relays[64];

    uint64_t next_gossip;
    uint64_t next_push;
    uint32_t push_wait_ms; /* short while young: many that start at once miss each other's gossip */
    uint64_t next_join;
    uint64_t next_reconnect;
    uint64_t now;
};

void swim_settings_lan(struct swim_settings *s)
{
    s->probe_interval_ms = 1000;
    s->probe_timeout_ms = 500;
    s->indirect_probes = 3;
    s->retransmit_multiplier = 4;
    s->suspicion_multiplier = 4;
    s->suspicion_max_multiple = 6;
    s->gossip_interval_ms = 200;
    s->gossip_fanout = 3;
    s->push_pull_interval_ms = 30000;
    s->reconnect_interval_ms = 2000;
}

/* ---- small things ---- */

static uint64_t draw(struct swim *s)
{
    s->random ^= s->random << 13; /* xorshift64 */
    s->random ^= s->random >> 7;
    s->random ^= s->random << 17;
    return s->random;
}

static struct peer *find(const struct swim *s, uint64_t node_id)
{
    for (size_t i = 0; i < s->count; i++)
        if (s->peers[i].state.node_id == node_id)
            return &s->peers[i];
    return NULL;
}

static size_t alive_count(const struct swim *s)
{
    size_t n = 0;

    for (size_t i = 0; i < s->count; i++)
        n += s->peers[i].state.status == MEMBER_ALIVE || s->peers[i].state.status == MEMBER_SUSPECT;
    return n;
}

static unsigned retransmits(const struct swim *s)
{
    return s->settings.retransmit_multiplier *
           (unsigned)ceil(log10((double)alive_count(s) + 1));
}

static struct bytes own(struct bytes b)
{
    uint8_t *copy = memory_take(b.len + 1);

    if (b.len > 0)
        memcpy(copy, b.data, b.len);
    copy[b.len] = 0;
    return (struct bytes){copy, b.len};
}

static void release_texts(struct peer *p)
{
    free((void *)p->state.name.data);
    free((void *)p->state.address.data);
    free((void *)p->state.zone.data);
    free((void *)p->state.replaces.data);
    for (size_t i = 0; i < p->state.handler_count; i++)
        free((void *)p->handlers[i].data);
    free(p->handlers);
}

static void copy_state(struct peer *p, const struct member_state *state)
{
    struct bytes name = own(state->name);
    struct bytes address = own(state->address);
    struct bytes zone = own(state->zone);
    struct bytes replaces = own(state->replaces);
    struct bytes *handlers = memory_take(state->handler_count * sizeof *handlers);

    for (size_t i = 0; i < state->handler_count; i++)
        handlers[i] = own(state->handlers[i]);
    release_texts(p);
    p->state = *state;
    p->state.name = name;
    p->state.address = address;
    p->state.zone = zone;
    p->state.replaces = replaces;
    p->state.handlers = handlers;
    p->handlers = handlers;
}

static struct peer *add_peer(struct swim *s, const struct member_state *state)
{
    struct peer *p;

    if (s->count == MEMBERS_MAX)
        return NULL;
    if (s->count == s->room) {
        s->room = s->room == 0 ? 8 : s->room * 2;
        s->peers = memory_grow(s->peers, s->room * sizeof *s->peers);
        s->view = memory_grow(s->view, s->room * sizeof *s->view);
        s->order = memory_grow(s->order, s->room * sizeof *s->order);
    }
    p = &s->peers[s->count++];
    *p = (struct peer){0};
    copy_state(p, state);
    return p;
}

/* ---- sending ---- */

/* What is told of a member. Of its accusers each in turn: they are counted by whoever hears of them. */
static struct member_state told_of(struct peer *p)
{
    struct member_state state = p->state;

    if (state.status == MEMBER_SUSPECT && p->accuser_count > 0)
        state.accuser = p->accusers[p->accuser_next++ % p->accuser_count];
    return state;
}

/* The least told facts first, at most UPDATES_PER_MESSAGE; always the target's suspicion. */
static size_t pick_updates(struct swim *s, struct member_state *out, uint64_t about)
{
    size_t n = 0;
    struct peer *suspect = find(s, about);

    if (suspect != NULL && suspect->state.status == MEMBER_SUSPECT)
        out[n++] = told_of(suspect);
    while (n < UPDATES_PER_MESSAGE) {
        struct peer *best = NULL;

        for (size_t i = 0; i < s->count; i++) {
            struct peer *p = &s->peers[i];
            bool taken = false;

            for (size_t j = 0; j < n; j++)
                taken = taken || out[j].node_id == p->state.node_id;
            if (p->sends_left > 0 && !taken &&
                (best == NULL || p->sends_left > best->sends_left))
                best = p;
        }
        if (best == NULL)
            break;
        best->sends_left--;
        out[n++] = told_of(best);
    }
    return n;
}

static void send(struct swim *s, const struct peer *to, struct swim_message *message)
{
    struct member_state updates[UPDATES_PER_MESSAGE + 1];

    message->from = s->settings.node_id;
    message->updates = updates;
    message->update_count = pick_updates(s, updates, to->state.node_id);
    s->effects.send(s->effects.context, to->state.node_id, to->state.address, message);
}

static void send_all(struct swim *s, enum swim_message_type type, uint64_t to,
                     struct bytes address)
{
    struct member_state *all = memory_take(s->count * sizeof *all);
    struct swim_message message = {.type = type, .from = s->settings.node_id};

    for (size_t i = 0; i < s->count; i++)
        all[i] = told_of(&s->peers[i]);
    message.updates = all;
    message.update_count = s->count;
    s->effects.send(s->effects.context, to, address, &message);
    free(all);
}

/* A random member other than this one, of the given status; NULL when there is none. */
static struct peer *random_peer(struct swim *s, bool dead, uint64_t but)
{
    size_t start = s->count > 1 ? 1 + draw(s) % (s->count - 1) : 1;

    for (size_t i = 0; i + 1 < s->count; i++) {
        struct peer *p = &s->peers[1 + (start - 1 + i) % (s->count - 1)];
        bool is_dead = p->state.status == MEMBER_DEAD;
        bool is_live = p->state.status == MEMBER_ALIVE || p->state.status == MEMBER_SUSPECT;

        if ((dead ? is_dead : is_live) && p->state.node_id != but)
            return p;
    }
    return NULL;
}

/* ---- facts ---- */

static void spread(struct swim *s, struct peer *p)
{
    p->sends_left = retransmits(s);
    s->effects.changed(s->effects.context, &p->state);
}

static void worsen(struct swim *s)
{
    if (s->health < HEALTH_MAX)
        s->health++;
}

static uint64_t suspicion_min(const struct swim *s)
{
    double n = log10((double)alive_count(s));

    return (uint64_t)(s->settings.suspicion_multiplier * (n < 1 ? 1 : n) *
                      s->settings.probe_interval_ms);
}

/* Further accusers that are waited for; none where there are too few members. */
static unsigned confirmations_expected(const struct swim *s)
{
    unsigned k = s->settings.suspicion_multiplier - 2;

    return alive_count(s) < k + 2 ? 0 : k;
}

/* Lifeguard: the timeout shrinks with each independent accuser. */
static void set_suspicion_timer(struct swim *s, struct peer *p)
{
    double min = (double)suspicion_min(s);
    double max = min * s->settings.suspicion_max_multiple;
    unsigned k = confirmations_expected(s);
    unsigned confirmations = p->accuser_count > 0 ? p->accuser_count - 1 : 0;
    double timeout;

    timeout = k == 0 ? min : max - (max - min) * log(confirmations + 1.0) / log(k + 1.0);
    p->suspect_until = p->suspect_since + (uint64_t)(timeout < min ? min : timeout);
}

static void accuse(struct swim *s, struct peer *p, uint64_t accuser)
{
    for (unsigned i = 0; i < p->accuser_count; i++)
        if (p->accusers[i] == accuser)
            return;
    if (p->accuser_count < COUNT_OF(p->accusers) && p->accuser_count <= confirmations_expected(s)) {
        p->accusers[p->accuser_count++] = accuser;
        if (p->accuser_count > 1)
            p->sends_left = retransmits(s);
    }
    set_suspicion_timer(s, p);
}

static void suspect(struct swim *s, struct peer *p, uint64_t incarnation, uint64_t accuser)
{
    if (p->state.status == MEMBER_ALIVE || incarnation > p->state.incarnation) {
        p->state.status = MEMBER_SUSPECT;
        p->state.incarnation = incarnation;
        p->state.accuser = accuser;
        p->suspect_since = s->now;
        p->accuser_count = 0;
        accuse(s, p, accuser);
        spread(s, p);
    } else if (p->state.status == MEMBER_SUSPECT) {
        accuse(s, p, accuser);
    }
}

/* Somebody says that we are gone, or tells an older story of us. */
static void refute(struct swim *s, uint64_t incarnation)
{
    struct peer *self = &s->peers[0];

    self->state.incarnation = incarnation + 1;
    worsen(s);
    spread(s, self);
}

static void merge(struct swim *s, const struct member_state *told)
{
    struct peer *p = find(s, told->node_id);

    if (p == &s->peers[0]) {
        bool accused = told->status != MEMBER_ALIVE && told->incarnation >= p->state.incarnation;
        bool older_life = told->incarnation > p->state.incarnation;

        if (p->state.status != MEMBER_LEFT && (accused || older_life))
            refute(s, told->incarnation);
        return;
    }
    if (p == NULL) {
        p = add_peer(s, told);
        if (p == NULL)
            return;
        if (told->status == MEMBER_SUSPECT) {
            p->suspect_since = s->now;
            accuse(s, p, told->accuser);
        }
        spread(s, p);
        return;
    }
    switch (told->status) {
    case MEMBER_ALIVE:
        if (told->incarnation > p->state.incarnation) {
            copy_state(p, told);
            p->accuser_count = 0;
            spread(s, p);
        }
        break;
    case MEMBER_SUSPECT:
        if (told->incarnation >= p->state.incarnation &&
            (p->state.status == MEMBER_ALIVE || p->state.status == MEMBER_SUSPECT))
            suspect(s, p, told->incarnation, told->accuser);
        break;
    case MEMBER_DEAD:
    case MEMBER_LEFT:
        if (told->incarnation >= p->state.incarnation && p->state.status != MEMBER_LEFT &&
            p->state.status != told->status) {
            p->state.status = told->status;
            p->state.incarnation = told->incarnation;
            spread(s, p);
        }
        break;
    }
}

/* ---- probing ---- */

static void shuffle_order(struct swim *s)
{
    s->order_count = 0;
    s->order_at = 0;
    for (size_t i = 1; i < s->count; i++)
        if (s->peers[i].state.status == MEMBER_ALIVE || s->peers[i].state.status == MEMBER_SUSPECT)
            s->order[s->order_count++] = (uint32_t)i;
    for (size_t i = s->order_count; i > 1; i--) {
        size_t j = draw(s) % i;
        uint32_t swap = s->order[i - 1];

        s->order[i - 1] = s->order[j];
        s->order[j] = swap;
    }
}

static struct peer *next_target(struct swim *s)
{
    struct peer *p = s->hinted == 0 ? NULL : find(s, s->hinted);

    s->hinted = 0;
    if (p != NULL && p->state.status != MEMBER_DEAD && p->state.status != MEMBER_LEFT)
        return p;
    for (size_t tries = 0; tries < 2; tries++) {
        while (s->order_at < s->order_count) {
            p = &s->peers[s->order[s->order_at++]];
            if (p->state.status == MEMBER_ALIVE || p->state.status == MEMBER_SUSPECT)
                return p;
        }
        shuffle_order(s);
    }
    return NULL;
}

static void start_probe(struct swim *s)
{
    struct peer *p = next_target(s);
    struct swim_message ping = {.type = SWIM_PING};
    uint32_t scale = s->health + 1;

    s->probe_started = s->now;
    s->next_probe = s->now + (uint64_t)s->settings.probe_interval_ms * scale;
    s->target = 0;
    if (p == NULL)
        return;
    s->target = p->state.node_id;
    s->probe_until = s->now + (uint64_t)s->settings.probe_timeout_ms * scale;
    s->indirect_sent = false;
    s->acked = false;
    s->nacks = 0;
    s->nacks_expected = 0;
    ping.number = ++s->number;
    ping.target = p->state.node_id;
    send(s, p, &ping);
}

static void ask_others(struct swim *s)
{
    struct peer *target = find(s, s->target);
    struct swim_message request = {.type = SWIM_PING_REQ, .number = s->number};

    s->indirect_sent = true;
    if (target == NULL)
        return;
    request.target = s->target;
    request.target_address = target->state.address;
    for (uint32_t i = 0, asked = 0; i < s->count * 2 && asked < s->settings.indirect_probes; i++) {
        struct peer *helper = random_peer(s, false, s->target);

        if (helper == NULL || asked + 2 > alive_count(s))
            break;
        send(s, helper, &request);
        s->nacks_expected++;
        asked++;
    }
}

static void end_probe(struct swim *s)
{
    struct peer *p = s->target == 0 ? NULL : find(s, s->target);

    if (p == NULL)
        return;
    if (s->acked) {
        if (s->health > 0)
            s->health--;
        return;
    }
    if (s->nacks < s->nacks_expected)
        worsen(s); /* our own helpers are silent as well: perhaps it is us */
    suspect(s, p, p->state.incarnation, s->settings.node_id);
}

static void relay_probe(struct swim *s, const struct swim_message *request)
{
    struct peer *target = find(s, request->target);
    struct swim_message ping = {.type = SWIM_PING, .target = request->target};
    size_t slot = 0;

    if (target == NULL)
        return;
    for (size_t i = 1; i < COUNT_OF(s->relays); i++)
        if (s->relays[i].until < s->relays[slot].until)
            slot = i;
    ping.number = ++s->number;
    s->relays[slot] = (struct relay){ping.number, request->from, request->number,
                                     s->now + s->settings.probe_timeout_ms};
    send(s, target, &ping);
}

static void answer(struct swim *s, uint64_t to, enum swim_message_type type, uint64_t number,
                   uint64_t about)
{
    const struct peer *p = find(s, to);
    struct swim_message message = {.type = type, .number = number, .target = about};

    if (p != NULL)
        send(s, p, &message);
}

static void on_ack(struct swim *s, const struct swim_message *ack)
{
    if (ack->number == s->number && s->target != 0 && ack->target == s->target)
        s->acked = true;
    for (size_t i = 0; i < COUNT_OF(s->relays); i++) {
        struct relay *relay = &s->relays[i];

        if (relay->asker != 0 && relay->number == ack->number) {
            answer(s, relay->asker, SWIM_ACK, relay->asker_number, ack->target);
            relay->asker = 0;
        }
    }
    if (s->target != 0 && ack->target == s->target && !s->acked && s->indirect_sent)
        s->acked = true; /* a late direct answer to this target is as good */
}

void swim_receive(struct swim *s, const struct swim_message *message, uint64_t now_ms)
{
    s->now = now_ms;
    if (message->from == s->settings.node_id)
        return;
    for (size_t i = 0; i < message->update_count; i++)
        merge(s, &message->updates[i]);
    switch (message->type) {
    case SWIM_PING:
        if (message->target == s->settings.node_id || message->target == 0)
            answer(s, message->from, SWIM_ACK, message->number, s->settings.node_id);
        break;
    case SWIM_ACK:
        on_ack(s, message);
        break;
    case SWIM_PING_REQ:
        relay_probe(s, message);
        break;
    case SWIM_NACK:
        if (message->number == s->number)
            s->nacks++;
        break;
    case SWIM_GOSSIP:
    case SWIM_PULL:
        break;
    case SWIM_PUSH: {
        const struct peer *p = find(s, message->from);

        if (p != NULL)
            send_all(s, SWIM_PULL, message->from, p->state.address);
        break;
    }
    }
}

/* ---- time ---- */

static void tick_relays(struct swim *s)
{
    for (size_t i = 0; i < COUNT_OF(s->relays); i++)
        if (s->relays[i].asker != 0 && s->relays[i].until <= s->now) {
            answer(s, s->relays[i].asker, SWIM_NACK, s->relays[i].asker_number, 0);
            s->relays[i].asker = 0;
        }
}

static void tick_suspicions(struct swim *s)
{
    for (size_t i = 1; i < s->count; i++) {
        struct peer *p = &s->peers[i];

        if (p->state.status == MEMBER_SUSPECT && p->suspect_until <= s->now) {
            p->state.status = MEMBER_DEAD;
            spread(s, p);
        }
    }
}

static void tick_gossip(struct swim *s)
{
    bool any = false;

    s->next_gossip = s->now + s->settings.gossip_interval_ms;
    for (size_t i = 0; i < s->count; i++)
        any = any || s->peers[i].sends_left > 0;
    for (uint32_t i = 0; any && i < s->settings.gossip_fanout; i++) {
        struct peer *p = random_peer(s, false, 0);
        struct swim_message gossip = {.type = SWIM_GOSSIP};

        if (p == NULL)
            return;
        send(s, p, &gossip);
    }
}

static bool seed_is_member(const struct swim *s, const struct seed *seed)
{
    for (size_t i = 0; i < s->count; i++)
        if (bytes_equal(s->peers[i].state.address, bytes_of(seed->address)) &&
            s->peers[i].state.status != MEMBER_DEAD)
            return true;
    return false;
}

static void tick_join(struct swim *s)
{
    s->next_join = s->now + JOIN_RETRY_MS;
    for (size_t i = 0; i < s->seed_count; i++)
        if (!seed_is_member(s, &s->seeds[i]))
            send_all(s, SWIM_PUSH, 0, bytes_of(s->seeds[i].address));
    for (size_t i = 0; i < s->discovered_count; i++)
        if (!seed_is_member(s, &s->discovered[i]))
            send_all(s, SWIM_PUSH, 0, bytes_of(s->discovered[i].address));
}

static void push_to(struct swim *s, bool dead)
{
    struct peer *p = random_peer(s, dead, 0);

    if (p != NULL)
        send_all(s, SWIM_PUSH, p->state.node_id, p->state.address);
}

void swim_tick(struct swim *s, uint64_t now_ms)
{
    s->now = now_ms;
    tick_relays(s);
    if (s->target != 0 && !s->acked && !s->indirect_sent && s->now >= s->probe_until)
        ask_others(s);
    if (s->now >= s->next_probe) {
        end_probe(s);
        start_probe(s);
    }
    tick_suspicions(s);
    if (s->now >= s->next_gossip)
        tick_gossip(s);
    if (s->now >= s->next_join)
        tick_join(s);
    if (s->now >= s->next_push) {
        s->push_wait_ms = s->push_wait_ms * 2 < s->settings.push_pull_interval_ms
                              ? s->push_wait_ms * 2
                              : s->settings.push_pull_interval_ms;
        s->next_push = s->now + s->push_wait_ms;
        push_to(s, false);
    }
    if (s->now >= s->next_reconnect) {
        s->next_reconnect = s->now + s->settings.reconnect_interval_ms;
        push_to(s, true);
    }
}

uint64_t swim_deadline(const struct swim *s)
{
    uint64_t next = s->next_probe;

    if (s->target != 0 && !s->acked && !s->indirect_sent && s->probe_until < next)
        next = s->probe_until;
    if (s->next_gossip < next)
        for (size_t i = 0; i < s->count; i++)
            if (s->peers[i].sends_left > 0 && s->count > 1)
                next = s->next_gossip;
    for (size_t i = 0; i < s->seed_count; i++)
        if (!seed_is_member(s, &s->seeds[i]) && s->next_join < next)
            next = s->next_join;
    for (size_t i = 0; i < s->discovered_count; i++)
        if (!seed_is_member(s, &s->discovered[i]) && s->next_join < next)
            next = s->next_join;
    for (size_t i = 1; i < s->count; i++)
        if (s->peers[i].state.status == MEMBER_SUSPECT && s->peers[i].suspect_until < next)
            next = s->peers[i].suspect_until;
    return next;
}

void swim_suspect_link(struct swim *s, uint64_t node_id, uint64_t now_ms)
{
    s->now = now_ms;
    s->hinted = node_id;
    if (s->target == 0 || s->acked)
        s->next_probe = now_ms; /* the probe under way may end first */
}

/* ---- this node ---- */

void swim_set_handlers(struct swim *s, const struct bytes *handlers, size_t count)
{
    struct peer *self = &s->peers[0];
    struct member_state state = self->state;

    state.handlers = handlers;
    state.handler_count = count < HANDLER_TYPES_MAX ? count : HANDLER_TYPES_MAX;
    state.incarnation++;
    copy_state(self, &state);
    spread(s, self);
}

void swim_set_founded(struct swim *s)
{
    struct peer *self = &s->peers[0];

    self->state.unfounded = false;
    self->state.incarnation++;
    spread(s, self);
}

void swim_leave(struct swim *s)
{
    struct peer *self = &s->peers[0];

    self->state.status = MEMBER_LEFT;
    self->sends_left = retransmits(s);
    for (int i = 0; i < 3; i++)
        tick_gossip(s);
}

void swim_join(struct swim *s, const char *address)
{
    if (s->seed_count == SEEDS_MAX ||
        bytes_equal(bytes_of(address), s->peers[0].state.address))
        return;
    snprintf(s->seeds[s->seed_count++].address, ADDRESS_BYTES_MAX + 1, "%s", address);
    s->next_join = s->now;
}

void swim_discovered(struct swim *s, const char (*addresses)[ADDRESS_BYTES_MAX + 1], size_t count)
{
    s->discovered_count = 0;
    for (size_t i = 0; i < count && s->discovered_count < DISCOVERED_MAX; i++)
        if (!bytes_equal(bytes_of(addresses[i]), s->peers[0].state.address))
            snprintf(s->discovered[s->discovered_count++].address, ADDRESS_BYTES_MAX + 1, "%s", addresses[i]);
    s->next_join = s->now; /* the next ones may come before they would have had their turn */
}

size_t swim_members(const struct swim *s, const struct member_state **members)
{
    for (size_t i = 0; i < s->count; i++)
        s->view[i] = s->peers[i].state;
    *members = s->view;
    return s->count;
}

const struct member_state *swim_member(const struct swim *s, uint64_t node_id)
{
    const struct peer *p = find(s, node_id);

    return p == NULL ? NULL : &p->state;
}

struct swim *swim_new(const struct swim_settings *settings, const struct swim_effects *effects,
                      uint64_t now_ms)
{
    struct swim *s = memory_zero(1, sizeof *s);
    struct member_state self = {
        .node_id = settings->node_id,
        .name = bytes_of(settings->name),
        .address = bytes_of(settings->address),
        .status = MEMBER_ALIVE,
        .unfounded = settings->unfounded,
        .zone = bytes_of(settings->zone == NULL ? "" : settings->zone),
        .replaces = bytes_of(settings->replaces == NULL ? "" : settings->replaces),
        .capacity = settings->capacity,
        .protocol_min = PEER_PROTOCOL_MIN,
        .protocol_max = PEER_PROTOCOL_MAX,
    };

    s->settings = *settings;
    s->effects = *effects;
    s->random = settings->seed == 0 ? 88172645463325252ULL : settings->seed;
    s->now = now_ms;
    s->push_wait_ms = settings->push_pull_interval_ms / 32 + 1;
    s->next_push = now_ms + s->push_wait_ms;
    s->next_probe = now_ms + draw(s) % settings->probe_interval_ms;
    s->settings.name = NULL; /* the copies are in peers[0] */
    s->settings.address = NULL;
    s->settings.zone = NULL;
    s->settings.replaces = NULL;
    (void)add_peer(s, &self);
    return s;
}

void swim_free(struct swim *s)
{
    if (s == NULL)
        return;
    for (size_t i = 0; i < s->count; i++)
        release_texts(&s->peers[i]);
    free(s->peers);
    free(s->view);
    free(s->order);
    free(s);
}

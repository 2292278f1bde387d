/*
 * Membership at scale: many swim objects over a network of the same seed, and the figures that tell
 * whether they do what SWIM and Lifeguard promise.
 */
#include "members.h"

enum { NAME_BYTES = 24 };

struct letter {
    struct letter *next;
    size_t from;
    uint64_t at_ms;
    struct buffer frame;
};

struct inbox {
    struct letter *first;
    struct letter **last;
};

struct member {
    struct town *town;
    size_t index;
    struct swim *swim;
    char address[NAME_BYTES];
    struct inbox inbox;
    bool alive;
    uint64_t busy_until_ms; /* starved of CPU: does nothing until then */
    uint64_t dead_seen;     /* declarations of death that reached it */
    uint64_t knows_dead_ms; /* when it heard of the death of `victim` */
};

struct town {
    struct member *members;
    size_t count;
    uint64_t now_ms;
    struct rng rng;
    unsigned loss_per_mille;
    size_t slow;     /* the first so many are starved now and then */
    size_t cut_half; /* members below can't be heard by those above, 0 for no cut */
    bool cut_both;
    size_t victim;
    uint64_t messages, bytes;
    uint64_t false_deaths; /* declarations about members that live, one for each accused and time */
    uint64_t last_false_ms;
};

static bool cut(const struct town *t, size_t from, size_t to)
{
    bool below = from < t->cut_half, above = to < t->cut_half;

    return t->cut_half > 0 && below != above && (t->cut_both || below);
}

static void on_send(void *context, uint64_t node_id, struct bytes address,
                    const struct swim_message *message)
{
    struct member *m = context;
    struct town *t = m->town;
    size_t to = (size_t)atoi((const char *)address.data + 1);
    struct letter *letter;

    (void)node_id;
    t->messages++;
    letter = memory_zero(1, sizeof *letter);
    gossip_add_swim(&letter->frame, message);
    t->bytes += letter->frame.len;
    if (to >= t->count || !t->members[to].alive || cut(t, m->index, to) ||
        rng_chance(&t->rng, t->loss_per_mille)) {
        buffer_release(&letter->frame);
        free(letter);
        return;
    }
    letter->from = m->index;
    letter->at_ms = t->now_ms + 1 + rng_below(&t->rng, 3);
    *t->members[to].inbox.last = letter;
    t->members[to].inbox.last = &letter->next;
}

static void on_changed(void *context, const struct member_state *state)
{
    struct member *m = context;
    struct town *t = m->town;
    size_t about = (size_t)(state->node_id - 1);

    if (state->status != MEMBER_DEAD || about >= t->count)
        return;
    if (about == t->victim && !t->members[about].alive) {
        if (m->knows_dead_ms == 0)
            m->knows_dead_ms = t->now_ms;
    } else if (t->members[about].alive && t->now_ms > t->last_false_ms + 1000) {
        t->false_deaths++;
        t->last_false_ms = t->now_ms;
    }
}

static struct town *town_new(size_t count, uint64_t seed)
{
    struct town *t = memory_zero(1, sizeof *t);

    t->members = memory_zero(count, sizeof *t->members);
    t->count = count;
    t->rng.state = seed;
    t->victim = count;
    t->now_ms = 1000;
    for (size_t i = 0; i < count; i++) {
        struct member *m = &t->members[i];
        struct swim_settings settings = {0};
        struct swim_effects effects = {m, on_send, on_changed};

        m->town = t;
        m->index = i;
        m->alive = true;
        m->inbox.last = &m->inbox.first;
        snprintf(m->address, sizeof m->address, "m%zu", i);
        swim_settings_lan(&settings);
        settings.node_id = i + 1;
        settings.name = m->address;
        settings.address = m->address;
        settings.seed = rng_next(&t->rng);
        m->swim = swim_new(&settings, &effects, t->now_ms);
        if (i > 0)
            swim_join(m->swim, t->members[rng_below(&t->rng, i < 3 ? 1 : 3)].address);
    }
    return t;
}

static void drop(struct letter *letter)
{
    buffer_release(&letter->frame);
    free(letter);
}

static void town_free(struct town *t)
{
    for (size_t i = 0; i < t->count; i++) {
        swim_free(t->members[i].swim);
        while (t->members[i].inbox.first != NULL) {
            struct letter *next = t->members[i].inbox.first->next;

            drop(t->members[i].inbox.first);
            t->members[i].inbox.first = next;
        }
    }
    free(t->members);
    free(t);
}

static void read_letters(struct member *m)
{
    while (m->inbox.first != NULL && m->inbox.first->at_ms <= m->town->now_ms) {
        struct letter *letter = m->inbox.first;
        struct arena arena = {0};
        struct gossip_frame frame;
        struct fault fault;

        m->inbox.first = letter->next;
        if (m->inbox.first == NULL)
            m->inbox.last = &m->inbox.first;
        if (gossip_decode(buffer_bytes(&letter->frame), &arena, &frame, &fault) == STATUS_OK)
            for (size_t i = 0; i < frame.swim_count; i++)
                swim_receive(m->swim, &frame.swim[i], m->town->now_ms);
        arena_release(&arena);
        drop(letter);
    }
}

static void pass(struct town *t, uint64_t ms)
{
    uint64_t until = t->now_ms + ms;
    uint64_t step_ms = t->count >= 1000 ? 20 : 5;

    while (t->now_ms < until) {
        t->now_ms += step_ms;
        for (size_t i = 0; i < t->count; i++) {
            struct member *m = &t->members[i];

            if (i < t->slow && m->busy_until_ms + 2000 < t->now_ms &&
                rng_below(&t->rng, 1000) < step_ms)
                m->busy_until_ms = t->now_ms + 1000 + rng_below(&t->rng, 4000);
            if (!m->alive || m->busy_until_ms > t->now_ms)
                continue;
            read_letters(m);
            if (swim_deadline(m->swim) <= t->now_ms)
                swim_tick(m->swim, t->now_ms);
        }
    }
}

static size_t alive_seen_by(const struct member *m)
{
    const struct member_state *states;
    size_t count = swim_members(m->swim, &states);
    size_t alive = 0;

    for (size_t i = 0; i < count; i++)
        alive += states[i].status == MEMBER_ALIVE || states[i].status == MEMBER_SUSPECT;
    return alive;
}

static bool all_see_all(const struct town *t)
{
    size_t living = 0;

    for (size_t i = 0; i < t->count; i++)
        living += t->members[i].alive;
    for (size_t i = 0; i < t->count; i++)
        if (t->members[i].alive && alive_seen_by(&t->members[i]) != living)
            return false;
    return true;
}

/* Milliseconds until everybody sees everybody, or the limit. */
static uint64_t gather(struct town *t, uint64_t limit_ms)
{
    uint64_t start = t->now_ms;

    while (!all_see_all(t) && t->now_ms - start < limit_ms)
        pass(t, t->count >= 1000 ? 1000 : 100);
    return t->now_ms - start;
}

static double false_per_hour(size_t count, uint64_t seed, unsigned loss, size_t slow, size_t cut_half,
                             uint64_t minutes)
{
    struct town *t = town_new(count, seed);
    double result;

    (void)gather(t, 60000);
    t->loss_per_mille = loss;
    t->slow = slow;
    t->cut_half = cut_half;
    t->false_deaths = 0;
    pass(t, minutes * 60000);
    result = (double)t->false_deaths * 60 / (double)minutes;
    town_free(t);
    return result;
}

static void row(size_t count, uint64_t seed)
{
    struct town *t = town_new(count, seed);
    uint64_t joined = gather(t, 120000);
    uint64_t messages = t->messages, bytes = t->bytes;
    uint64_t first = 0, last = 0, healed, minutes = count >= 1000 ? 0 : count >= 100 ? 2 : 10;
    double per_second, bytes_per_second;

    pass(t, 20000);
    per_second = (double)(t->messages - messages) / 20 / (double)count;
    bytes_per_second = (double)(t->bytes - bytes) / 20 / (double)count;
    t->victim = count / 2;
    t->members[t->victim].alive = false;
    messages = t->now_ms;
    for (int i = 0; i < 600 && last == 0; i++) {
        size_t know = 0;

        pass(t, 100);
        for (size_t j = 0; j < count; j++)
            know += t->members[j].knows_dead_ms != 0;
        if (know > 0 && first == 0)
            first = t->now_ms - messages;
        if (know == count - 1)
            last = t->now_ms - messages;
    }
    town_free(t);
    t = town_new(count, seed + 1);
    (void)gather(t, 120000);
    t->cut_half = count / 2;
    t->cut_both = true;
    pass(t, 30000);
    t->cut_half = 0;
    healed = gather(t, 300000);
    town_free(t);
    printf("| %zu | %.1f | %.1f | %.1f | %.1f | %.0f |", count, (double)joined / 1000,
           (double)first / 1000, (double)last / 1000, per_second, bytes_per_second);
    if (minutes > 0)
        printf(" %.0f | %.0f | %.0f | %.0f | %.0f |", false_per_hour(count, seed + 2, 10, 0, 0, minutes),
               false_per_hour(count, seed + 3, 50, 0, 0, minutes),
               false_per_hour(count, seed + 4, 200, 0, 0, minutes),
               false_per_hour(count, seed + 5, 0, count / 10 + 1, 0, minutes),
               false_per_hour(count, seed + 6, 0, 0, 1, minutes));
    else
        printf(" | | | | |"); /* would take hours */
    printf(" %.1f |\n", (double)healed / 1000);
    fflush(stdout);
}

void members_table(uint64_t seed)
{
    static const size_t counts[] = {3, 10, 100, 1000};

    fputs("| members | all joined, s | crash to first knowing, s | to all knowing, s | messages per member "
           "and s | bytes per member and s | false deaths/h, 1% loss | 5% loss | 20% loss | a tenth "
           "starved | one can't be heard | 30 s cut healed, s |\n|---|---|---|---|---|---|---|---|---|---|"
           "---|---|\n",
          stdout);
    for (size_t i = 0; i < COUNT_OF(counts); i++)
        row(counts[i], seed + i * 100);
}

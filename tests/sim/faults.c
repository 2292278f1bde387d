/* Which faults happen when: a list made from the seed, so that --minimize can leave some out. */
#include "sim.h"

const char *const fault_names[FAULT_KINDS] = {
    "crash",    "power-cut", "pause",     "cut",        "one-way-cut", "loss",     "duplicates", "delay",
    "slow-disk", "bad-disk",  "lost-disk", "clock-jump", "workers",     "transfer", "reset",
    "drain",    "full-disk", "bit-rot",   "join",       "replace",     "leave",
    "master-key",
};

static const struct {
    const char *name;
    uint32_t kinds; /* a bit for each */
} scenarios[] = {
    {"all", (1U << FAULT_KINDS) - 1},
    {"calm", 0},
    {"crashes", 1U << FAULT_CRASH | 1U << FAULT_POWER | 1U << FAULT_PAUSE | 1U << FAULT_LOST_DISK},
    {"network", 1U << FAULT_CUT | 1U << FAULT_ONE_WAY | 1U << FAULT_LOSS | 1U << FAULT_DUPLICATES |
                    1U << FAULT_DELAY | 1U << FAULT_RESET},
    {"disks", 1U << FAULT_SLOW_DISK | 1U << FAULT_BAD_DISK | 1U << FAULT_CRASH | 1U << FAULT_LOST_DISK |
                  1U << FAULT_FULL_DISK},
    {"clocks", 1U << FAULT_CLOCK_JUMP | 1U << FAULT_PAUSE},
    {"workers", 1U << FAULT_WORKERS | 1U << FAULT_TRANSFER},
    {"elections", 1U << FAULT_CRASH | 1U << FAULT_CUT | 1U << FAULT_RESET | 1U << FAULT_POWER},
    {"ownership", 1U << FAULT_TRANSFER | 1U << FAULT_CUT | 1U << FAULT_PAUSE | 1U << FAULT_CRASH},
    {"rot", 1U << FAULT_BIT_ROT | 1U << FAULT_CRASH | 1U << FAULT_TRANSFER | 1U << FAULT_PAUSE |
                1U << FAULT_CUT},
    {"placement", 1U << FAULT_JOIN | 1U << FAULT_REPLACE | 1U << FAULT_LEAVE | 1U << FAULT_CRASH |
                      1U << FAULT_PAUSE | 1U << FAULT_CUT | 1U << FAULT_TRANSFER | 1U << FAULT_RESET |
                      1U << FAULT_DELAY},
    {"forgetting", 1U << FAULT_SLOW_DISK | 1U << FAULT_FULL_DISK | 1U << FAULT_CRASH | 1U << FAULT_POWER |
                       1U << FAULT_CUT | 1U << FAULT_TRANSFER | 1U << FAULT_MASTER_KEY}, /* half of what would be reads orders it */
    {"rolling", 1U << FAULT_DRAIN | 1U << FAULT_TRANSFER | 1U << FAULT_WORKERS | 1U << FAULT_SLOW_DISK |
                    1U << FAULT_FULL_DISK},
};

bool scenario_known(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(scenarios); i++)
        if (strcmp(scenarios[i].name, name) == 0)
            return true;
    return false;
}

static uint64_t amount_of(enum fault_kind kind, struct rng *rng)
{
    switch (kind) {
    case FAULT_LOSS:
        return 10 + rng_below(rng, 300);
    case FAULT_DUPLICATES:
        return 10 + rng_below(rng, 500);
    case FAULT_DELAY:
        return 1 + rng_below(rng, rng_chance(rng, 300) ? 500 : 30);
    case FAULT_SLOW_DISK:
        return 1 + rng_below(rng, rng_chance(rng, 300) ? 400 : 20);
    case FAULT_CLOCK_JUMP:
        return 1 + rng_below(rng, 5000);
    case FAULT_BIT_ROT:
        return rng_next(rng) >> 16;
    default:
        return 0;
    }
}

void faults_plan(struct world *w)
{
    struct rng rng = {w->seed ^ 0xFA0175};
    uint32_t kinds = 0;
    size_t count;
    int lost = 0;
    int rotten = -1;
    int left = 0;
    bool many;

    for (size_t i = 0; i < COUNT_OF(scenarios); i++)
        if (strcmp(scenarios[i].name, w->scenario) == 0)
            kinds = scenarios[i].kinds;
    if (kinds == 0)
        return;
    many = strcmp(w->scenario, "elections") == 0; /* and short: restarts in the middle of votes */
    count = many ? FAULTS_MAX : 1 + rng_below(&rng, FAULTS_MAX / 2);
    while (w->fault_count < count) {
        struct planned_fault *f = &w->faults[w->fault_count];

        do
            f->kind = (enum fault_kind)rng_below(&rng, FAULT_KINDS);
        while ((kinds & 1U << f->kind) == 0);
        f->at_ms = 400 + rng_below(&rng, 7600);
        f->length_ms = 1 + rng_below(&rng, rng_chance(&rng, 300) ? (many ? 900 : 4000)
                                                                 : (many ? 20 : 700));
        f->node = (int)rng_below(&rng, (uint64_t)w->node_count);
        f->other = (int)rng_below(&rng, (uint64_t)w->node_count);
        f->amount = amount_of(f->kind, &rng);
        if (f->kind == FAULT_LOST_DISK && (lost >= (w->node_count - 1) / 2 || !rng_chance(&rng, 200)))
            continue; /* rare, and never a majority of any replica set */
        if (f->kind == FAULT_BIT_ROT) {
            if (lost > 0 || w->node_count < 3)
                continue; /* a sound copy is left */
            rotten = f->node = rotten >= 0 ? rotten : f->node;
        }
        if ((f->kind == FAULT_LOST_DISK || f->kind == FAULT_REPLACE) && rotten >= 0)
            continue;
        if ((f->kind == FAULT_REPLACE && (w->node_count < 3 || lost > 0)) ||
            (f->kind == FAULT_LEAVE && (left > 0 || w->node_count < 3)))
            continue; /* one disk at a time, and nobody leaves when too few stay */
        if (w->node_count < 5 && ((f->kind == FAULT_LEAVE && lost > 0) ||
                                  ((f->kind == FAULT_LOST_DISK || f->kind == FAULT_REPLACE) && left > 0)))
            continue;
        left += f->kind == FAULT_LEAVE;
        lost = f->kind == FAULT_LOST_DISK || f->kind == FAULT_REPLACE ? w->node_count : lost;
        w->fault_count++;
    }
}

void fault_describe(const struct planned_fault *f, char *out, size_t room)
{
    snprintf(out, room, "%s at %llu ms for %llu ms, node %d, other %d, amount %llu",
             fault_names[f->kind], (unsigned long long)f->at_ms, (unsigned long long)f->length_ms,
             f->node, f->other, (unsigned long long)f->amount);
}

static void cut_off(struct world *w, int node, bool cut)
{
    for (int i = 0; i < w->node_count; i++)
        w->cut[i][node] = w->cut[node][i] = cut && i != node;
}

static void crash_for(struct node *n, uint64_t length_ms, const char *why)
{
    if (!n->alive)
        return;
    node_crash(n, why);
    world_at(n->world, n->world->now_us + length_ms * 1000, EVENT_RESTART, n->index, 0, NULL);
}

static void lose(struct node *n)
{
    if (n->alive)
        node_crash(n, "its disk is lost");
    n->lost = true;
}

/* Whoever owns the system partition takes it. */
static bool order(struct world *w, const struct placement_order *what)
{
    for (int i = 0; i < w->node_count; i++)
        if (node_order(&w->nodes[i], what))
            return true;
    return false;
}

static bool holds_nothing(const struct node *n)
{
    for (uint32_t p = 0; p <= PARTITIONS; p++)
        if (engine_replica(n->engine, p) != NULL)
            return false;
    return true;
}

/* The next step of a node that leaves: drain, wait, stop, remove; or of one whose place another takes. */
void fault_leaving(struct world *w, struct node *n)
{
    struct placement_order what = {.kind = ORDER_DRAIN, .name = bytes_of(node_name(n)), .force = true};

    if (n->lost && !n->leaving) {
        for (int i = w->founder_count; i < w->node_count; i++)
            if (w->nodes[i].replaces == n->index)
                return;
        (void)world_add_node(w, n->index);
        return;
    }
    if (n->lost)
        what.kind = ORDER_REMOVE;
    if (order(w, &what) && n->lost)
        return;
    if (n->alive && n->placement_version > 0 && holds_nothing(n)) {
        node_crash(n, "drained for good");
        n->lost = true;
    }
    world_at(w, w->now_us + 300000, EVENT_LEAVING, -1, (uint64_t)n->index, NULL);
}

void fault_begin(struct world *w, struct planned_fault *f)
{
    struct node *n = &w->nodes[f->node];
    char text[120];

    if (w->healed)
        return;
    fault_describe(f, text, sizeof text);
    world_note(w, "fault: %s", text);
    w->figures.faults[f->kind]++;
    switch (f->kind) {
    case FAULT_CRASH:
        crash_for(n, f->length_ms, "kill -9");
        break;
    case FAULT_POWER:
        for (int i = 0; i < w->node_count; i++)
            crash_for(&w->nodes[i], f->length_ms + (uint64_t)i * 7, "power cut");
        break;
    case FAULT_PAUSE:
        n->paused_until_us = w->now_us + f->length_ms * 1000;
        break;
    case FAULT_CUT:
        cut_off(w, f->node, true);
        break;
    case FAULT_ONE_WAY:
        w->cut[f->node][f->other] = f->node != f->other;
        break;
    case FAULT_LOSS:
        w->loss_per_mille = (unsigned)f->amount;
        break;
    case FAULT_DUPLICATES:
        w->duplicate_per_mille = (unsigned)f->amount;
        break;
    case FAULT_DELAY:
        w->delay_ms = (unsigned)f->amount;
        break;
    case FAULT_SLOW_DISK:
        n->disk_slow_ms = f->amount;
        break;
    case FAULT_BAD_DISK:
        n->disk_bad = true;
        break;
    case FAULT_LOST_DISK:
        lose(n);
        break;
    case FAULT_CLOCK_JUMP:
        n->wall_jump_ms += f->node % 2 == 0 ? (int64_t)f->amount : -(int64_t)f->amount;
        n->jump_ms += (int64_t)f->amount / 20;
        break;
    case FAULT_WORKERS:
        w->workers_faulty = true;
        break;
    case FAULT_TRANSFER:
        node_transfer(n, (uint16_t)(f->other % PARTITIONS));
        break;
    case FAULT_RESET:
        network_reset(w, f->node, f->other);
        break;
    case FAULT_DRAIN:
        node_drain(n);
        break;
    case FAULT_FULL_DISK:
        for (int i = 0; i < w->node_count; i++)
            w->nodes[i].disk_full = w->nodes[i].disk_full || i == f->node || f->other % 2 == 0;
        break;
    case FAULT_BIT_ROT:
        node_rot(n, (uint16_t)(f->other % PARTITIONS), f->amount);
        break;
    case FAULT_JOIN:
        (void)world_add_node(w, -1);
        break;
    case FAULT_REPLACE:
        lose(n);
        world_at(w, w->now_us + f->length_ms * 1000, EVENT_LEAVING, -1, (uint64_t)f->node, NULL);
        break;
    case FAULT_LEAVE:
        if (!n->lost) {
            n->leaving = true;
            world_at(w, w->now_us + 1000, EVENT_LEAVING, -1, (uint64_t)f->node, NULL);
        }
        break;
    case FAULT_MASTER_KEY:
        vault_renew(w);
        break;
    case FAULT_KINDS:
        break;
    }
}

void fault_end(struct world *w, struct planned_fault *f)
{
    struct node *n = &w->nodes[f->node];

    switch (f->kind) {
    case FAULT_CUT:
        cut_off(w, f->node, false);
        break;
    case FAULT_ONE_WAY:
        w->cut[f->node][f->other] = false;
        break;
    case FAULT_LOSS:
        w->loss_per_mille = 0;
        break;
    case FAULT_DUPLICATES:
        w->duplicate_per_mille = 0;
        break;
    case FAULT_DELAY:
        w->delay_ms = 0;
        break;
    case FAULT_SLOW_DISK:
        n->disk_slow_ms = 0;
        break;
    case FAULT_WORKERS:
        w->workers_faulty = false;
        break;
    case FAULT_DRAIN: /* what it had is with others, or not: then it stops */
        if (n->alive) {
            node_crash(n, "drained");
            world_at(w, w->now_us + 200000, EVENT_RESTART, n->index, 0, NULL);
        }
        break;
    case FAULT_FULL_DISK:
        for (int i = 0; i < w->node_count; i++)
            w->nodes[i].disk_full = false;
        break;
    default: /* the others end by themselves */
        break;
    }
}

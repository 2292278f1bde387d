/*
 * cairn-sim-large: a hundred members and a thousand partitions, with everything that a small run has. Members join at
 * once, then nothing happens, then ten die at once; it prints what that takes.
 */
#ifdef SIM_LARGE
#include "sim.h"

enum { FOUNDERS = 60, JOINERS = 40, ZONES = 10, STEP_US = 250000 };

static double seconds(uint64_t us)
{
    return (double)us / 1e6;
}

static void run_until(struct world *w, uint64_t until_us)
{
    while (w->heap_count > 0 && w->heap[0].at_us < until_us && world_step(w))
        continue;
    if (w->broken_promise != 0) {
        printf("PROMISE %d BROKEN: %s\n", w->broken_promise, w->broken_text);
        exit(1);
    }
    w->now_us = until_us;
}

/* Replicas that are still with those who died. */
static size_t lost_held(const struct world *w)
{
    size_t held = 0;

    for (int i = 0; i < w->node_count; i++)
        for (size_t p = 0; w->nodes[i].lost && p < PARTITIONS; p++)
            held += replica_set_holds(&w->placed[p], w->ids[i]);
    return held;
}

/* Until all is as the placement says and no newer one came for two seconds; when the last one came. */
static uint64_t settle(struct world *w, uint64_t least_version, uint64_t limit_us)
{
    uint64_t began = w->now_us;
    uint64_t version = w->placement_version;
    uint64_t last = w->now_us;
    char why[100] = "";

    while (w->now_us < began + limit_us) {
        run_until(w, w->now_us + STEP_US);
        if (w->placement_version > version) {
            version = w->placement_version;
            last = w->now_us;
        }
        if (w->placement_version >= least_version && lost_held(w) == 0 && w->now_us >= last + 2000000 && oracle_placed(w, why, sizeof why))
            return last;
    }
    printf("not settled after %.0f s: %s\n", seconds(limit_us), why);
    exit(1);
}

/* Counts of the replicas that live nodes should hold. */
static void tell_shares(const struct world *w, const char *what)
{
    size_t most = 0, least = SIZE_MAX, most_owned = 0, total = 0, live = 0;

    for (int i = 0; i < w->node_count; i++) {
        size_t held = 0, owned = 0;

        if (!w->nodes[i].alive)
            continue;
        for (size_t p = 0; p < PARTITIONS; p++)
            for (size_t k = 0; k < w->placed[p].count; k++) {
                held += w->placed[p].replicas[k] == w->ids[i];
                owned += k == 0 && w->placed[p].replicas[k] == w->ids[i];
            }
        live++;
        total += held;
        most = held > most ? held : most;
        least = held < least ? held : least;
        most_owned = owned > most_owned ? owned : most_owned;
    }
    printf("%s: %zu nodes hold %zu to %zu replicas (%.3f of the average at most), own %zu at most (%.3f)\n", what, live,
           least, most, (double)most * (double)live / (double)total, most_owned,
           (double)most_owned * (double)live / PARTITIONS);
}

static void idle(struct world *w, uint64_t length_us)
{
    struct figures before = w->figures;
    double members = 0;

    for (int i = 0; i < w->node_count; i++)
        members += w->nodes[i].alive;
    run_until(w, w->now_us + length_us);
    printf("idle: %.1f frames and %.1f gossip messages for each member and second, %.1f KiB/s\n",
           (double)(w->figures.packets - before.packets - (w->figures.gossip - before.gossip)) / members / seconds(length_us),
           (double)(w->figures.gossip - before.gossip) / members / seconds(length_us),
           (double)(w->figures.bytes - before.bytes) / members / seconds(length_us) / 1024);
}

int main(int count, char **arguments)
{
    struct world *w = memory_zero(1, sizeof *w);
    uint64_t began, version, moved, done;

    setvbuf(stdout, NULL, _IOLBF, 0);
    journal_configure(JOURNAL_NOTHING, false, "sim");
    world_init_with(w, count > 1 ? strtoull(arguments[1], NULL, 10) : 1, "calm", FOUNDERS);
    w->moves_at_once = 64;
    w->zones = ZONES;
    for (int i = 0; i < w->node_count; i++)
        node_start(&w->nodes[i]);
    done = settle(w, 1, 120000000);
    printf("%d founders, %d partitions: settled %.1f s after the start\n", FOUNDERS, PARTITIONS, seconds(done));
    tell_shares(w, "founded");

    began = w->now_us;
    version = w->placement_version;
    moved = w->moved;
    for (int i = 0; i < JOINERS; i++)
        (void)world_add_node(w, -1);
    done = settle(w, version + 2, 600000000);
    tell_shares(w, "grown");
    printf("%d join at once: even after %.1f s, %llu placements, %llu replicas moved, %d would be the least\n", JOINERS,
           seconds(done - began), (unsigned long long)(w->placement_version - version),
           (unsigned long long)(w->moved - moved), PARTITIONS * 3 / (FOUNDERS + JOINERS) * JOINERS);
    run_until(w, w->now_us + 10000000);
    idle(w, 10000000);

    began = w->now_us;
    version = w->placement_version;
    moved = w->moved;
    /* A whole zone: any ten would take the majority of some partitions along. */
    for (int i = 5; i < w->node_count; i += ZONES) {
        node_crash(&w->nodes[i], "dies for good");
        w->nodes[i].lost = true;
    }
    done = settle(w, version + 2, 600000000);
    tell_shares(w, "healed");
    printf("%d die at once: healed after %.1f s with a grace of 3 s, %llu placements, %llu replicas made anew\n",
           w->node_count / ZONES,
           seconds(done - began), (unsigned long long)(w->placement_version - version),
           (unsigned long long)(w->moved - moved));
    return 0;
}
#endif

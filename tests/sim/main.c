/* cairn-sim: one seed, many seeds, or the smallest list of faults that still breaks a promise. */
#include <getopt.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "members.h"

#ifdef CAIRN_PLANT
enum plant planted;

static const struct {
    const char *name;
    const char *text;
} plants[] = {
#define PLANT_NAME(name, text) {#name, text},
    {"NONE", "no bug"}, PLANTS(PLANT_NAME)
};
#endif

struct settings {
    uint64_t seed;
    uint64_t runs;
    const char *scenario;
    bool minimize;
    bool verbose;
    bool members;
    long jobs;
};

/* Shared by the processes of --runs. */
struct totals {
    struct figures figures[64];
    uint64_t runs[64];
    uint64_t simulated_us[64];
    volatile bool failed;
};

static uint64_t running_seed;
static const char *running_scenario;

/* An assertion of the product failed: say with which seed. */
static void on_abort(int number)
{
    char line[200];
    int len = snprintf(line, sizeof line, "\naborted; replay with: cairn-sim --seed %llu --scenario %s\n",
                       (unsigned long long)running_seed, running_scenario);

    (void)!write(STDERR_FILENO, line, (size_t)len);
    signal(number, SIG_DFL);
    raise(number);
}

static struct world *run(uint64_t seed, const char *scenario, bool verbose,
                         const struct world *like, bool *held)
{
    struct world *w = memory_zero(1, sizeof *w);

    running_seed = seed;
    running_scenario = scenario;
    world_init(w, seed, scenario);
    w->verbose = verbose;
    memset(w->copies, 0xFF, sizeof w->copies);
    for (size_t i = 0; like != NULL && i < w->fault_count; i++)
        w->faults[i].skipped = like->faults[i].skipped;
    *held = world_run(w);
    return w;
}

static void end(struct world *w)
{
    world_release(w);
    free(w);
}

static void tell(const struct world *w)
{
    char text[120];

    printf("seed %llu, scenario %s, %d nodes, %zu operations, %.1f s simulated, trace %016llx\n",
           (unsigned long long)w->seed, w->scenario, w->node_count, w->op_count,
           (double)w->now_us / 1e6, (unsigned long long)w->trace);
    for (size_t i = 0; i < w->fault_count; i++) {
        fault_describe(&w->faults[i], text, sizeof text);
        if (!w->faults[i].skipped)
            printf("  %s\n", text);
    }
    if (w->broken_promise == 0)
        return;
    printf("PROMISE %d BROKEN at %.3f ms: %s\nlast events of note:\n", w->broken_promise,
           (double)w->broken_at_us / 1000, w->broken_text);
    for (size_t i = w->recent_count > 24 ? w->recent_count - 24 : 0; i < w->recent_count; i++)
        printf("  %s\n", w->recent[i % COUNT_OF(w->recent)]);
    printf("replay with: cairn-sim --seed %llu --scenario %s\n", (unsigned long long)w->seed,
           w->scenario);
}

/* Leave out one fault after the other, as long as the same promise breaks. */
static struct world *minimize(struct world *w)
{
    bool smaller = true;

    while (smaller) {
        smaller = false;
        for (size_t i = 0; i < w->fault_count; i++) {
            struct world *next;
            bool held;

            if (w->faults[i].skipped)
                continue;
            w->faults[i].skipped = true;
            next = run(w->seed, w->scenario, false, w, &held);
            if (!held && next->broken_promise == w->broken_promise) {
                end(w);
                w = next;
                smaller = true;
            } else {
                end(next);
                w->faults[i].skipped = false;
            }
        }
    }
    return w;
}

static void add(struct figures *sum, const struct figures *part)
{
    uint64_t *to = (uint64_t *)sum;
    const uint64_t *from = (const uint64_t *)part;

    for (size_t i = 0; i < sizeof *sum / sizeof *to; i++)
        to[i] += from[i];
}

static void run_share(const struct settings *s, struct totals *totals, long job)
{
    for (uint64_t i = (uint64_t)job; i < s->runs && !totals->failed; i += (uint64_t)s->jobs) {
        bool held;
        struct world *w = run(s->seed + i, s->scenario, false, NULL, &held);

        add(&totals->figures[job], &w->figures);
        totals->runs[job]++;
        totals->simulated_us[job] += w->now_us;
        if (!held) {
            totals->failed = true;
            tell(w);
        }
        end(w);
    }
}

static int run_many(const struct settings *s)
{
    struct totals *totals = mmap(NULL, sizeof *totals, PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct figures sum = {0};
    uint64_t runs = 0, us = 0;
    int status, code = 0;

    if (totals == MAP_FAILED)
        return 1;
    fflush(stdout);
    for (long job = 0; job < s->jobs; job++)
        if (fork() == 0) {
            run_share(s, totals, job);
            exit(totals->failed);
        }
    while (wait(&status) > 0)
        code |= !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    for (long job = 0; job < s->jobs; job++) {
        add(&sum, &totals->figures[job]);
        runs += totals->runs[job];
        us += totals->simulated_us[job];
    }
    printf("%llu seeds from %llu, scenario %s: %s; %.1f hours simulated\n",
           (unsigned long long)runs, (unsigned long long)s->seed, s->scenario,
           code == 0 ? "all promises held" : "FAILED", (double)us / 3.6e9);
    printf("events %llu, packets %llu (lost %llu, twice %llu), writes %llu (torn %llu), answers %llu, reads "
           "%llu, retries %llu, repeats %llu, rejections %llu, refusals %llu, ownerships %llu, "
           "ranges %llu, executions %llu, snapshots %llu, forwarded %llu, resent %llu, disk full %llu, "
           "rotten %llu, repairs %llu, forgotten %llu, subscriptions %llu, delivered %llu, processed %llu, published %llu, placements %llu\n"
           "faults:",
           (unsigned long long)sum.events, (unsigned long long)sum.packets,
           (unsigned long long)sum.lost, (unsigned long long)sum.duplicated,
           (unsigned long long)sum.writes, (unsigned long long)sum.torn,
           (unsigned long long)sum.answers, (unsigned long long)sum.reads,
           (unsigned long long)sum.retries, (unsigned long long)sum.repeats,
           (unsigned long long)sum.rejected, (unsigned long long)sum.refusals,
           (unsigned long long)sum.ownerships, (unsigned long long)sum.ranges,
           (unsigned long long)sum.executions, (unsigned long long)sum.snapshots,
           (unsigned long long)sum.forwards, (unsigned long long)sum.resends,
           (unsigned long long)sum.full, (unsigned long long)sum.rotten,
           (unsigned long long)sum.repairs, (unsigned long long)sum.forgotten, (unsigned long long)sum.subscriptions,
           (unsigned long long)sum.delivered, (unsigned long long)sum.processed,
           (unsigned long long)sum.published, (unsigned long long)sum.placements);
    for (int i = 0; i < FAULT_KINDS; i++)
        printf(" %s %llu", fault_names[i], (unsigned long long)sum.faults[i]);
    printf("\n");
    return code;
}

static int run_one(const struct settings *s)
{
    bool held;
    struct world *w = run(s->seed, s->scenario, s->verbose, NULL, &held);

    if (!held && s->minimize)
        w = minimize(w);
    tell(w);
    end(w);
    return held ? 0 : 1;
}

static void usage(FILE *out)
{
    fputs("cairn-sim: a cluster in one thread, from one seed\n\n"
          "  --seed S        the seed, or the first of them (default 1)\n"
          "  --scenario NAME all, calm, crashes, network, disks, clocks, workers,\n"
          "                  elections, ownership, rolling, rot, placement, forgetting\n"
          "  --runs N        N seeds, on all cores; stops at the first that breaks a promise\n"
          "  --jobs N        processes for --runs (default: the cores)\n"
          "  --minimize      leave out the faults that aren't needed to break it\n"
          "  --members       the table of membership figures for README.md\n"
          "  --verbose       tell what happens\n",
          out);
#ifdef CAIRN_PLANT
    fputs("  --plant NAME    with a known bug:\n", out);
    for (size_t i = 1; i < COUNT_OF(plants); i++)
        fprintf(out, "      %-24s %s\n", plants[i].name, plants[i].text);
#endif
}

static bool plant(const char *name)
{
#ifdef CAIRN_PLANT
    for (size_t i = 0; i < COUNT_OF(plants); i++)
        if (strcmp(plants[i].name, name) == 0) {
            planted = (enum plant)i;
            return true;
        }
#endif
    (void)name;
    return false;
}

int main(int count, char **arguments)
{
    static const struct option options[] = {
        {"seed", required_argument, NULL, 's'},    {"scenario", required_argument, NULL, 'c'},
        {"runs", required_argument, NULL, 'r'},    {"jobs", required_argument, NULL, 'j'},
        {"minimize", no_argument, NULL, 'm'},      {"verbose", no_argument, NULL, 'v'},
        {"members", no_argument, NULL, 't'},       {"plant", required_argument, NULL, 'p'},   {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0},
    };
    struct settings s = {.seed = 1, .scenario = "all", .jobs = sysconf(_SC_NPROCESSORS_ONLN)};
    int option;

    journal_configure(JOURNAL_NOTHING, false, "sim");
    while ((option = getopt_long(count, arguments, "", options, NULL)) != -1) {
        switch (option) {
        case 's':
            s.seed = strtoull(optarg, NULL, 10);
            break;
        case 'c':
            s.scenario = optarg;
            break;
        case 'r':
            s.runs = strtoull(optarg, NULL, 10);
            break;
        case 'j':
            s.jobs = atol(optarg);
            break;
        case 'm':
            s.minimize = true;
            break;
        case 'v':
            s.verbose = true;
            journal_configure(JOURNAL_ERROR, false, "sim");
            break;
        case 't':
            s.members = true;
            break;
        case 'p':
            if (!plant(optarg)) {
                usage(stderr);
                return 2;
            }
            break;
        case 'h':
            usage(stdout);
            return 0;
        default:
            usage(stderr);
            return 2;
        }
    }
    if (!scenario_known(s.scenario) || s.jobs < 1 || s.jobs > 64) {
        usage(stderr);
        return 2;
    }
    signal(SIGABRT, on_abort);
    signal(SIGSEGV, on_abort);
    if (s.members) {
        members_table(s.seed);
        return 0;
    }
    return s.runs > 0 ? run_many(&s) : run_one(&s);
}

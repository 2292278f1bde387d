/*
 * cairn-bench: loads a cluster, or a bare gRPC server, and says how fast it was and how long operations took. This
 * file is its command line and what it prints; load.c makes the load.
 */
#include <getopt.h>
#include <jansson.h>

#include "commands.h"
#include "load.h"

static const struct named {
    const char *name;
    int value;
    const char *help;
} workloads[] = {
    {"dispatch", LOAD_DISPATCH, "commands over DispatchStream, one stream to each node (also: no name)"},
    {"dispatch-unary", LOAD_DISPATCH_UNARY, "commands, each a call of its own"},
    {"append", LOAD_APPEND, "events appended, so many by a call"},
    {"read", LOAD_READ, "the newest event of an aggregate, linearizably"},
    {"mixed", LOAD_MIXED, "commands and reads, aggregates by a zipf distribution (0.99)"},
    {"echo-stream", LOAD_ECHO, "messages to `cairn-bench echo`, in a stream"},
    {"echo-unary", LOAD_ECHO_UNARY, "the same, each a call of its own"},
    {NULL, 0, NULL},
}, routes[] = {
    {"any", ROUTE_ANY, NULL},
    {"owner", ROUTE_OWNER, NULL},
    {"other", ROUTE_OTHER, NULL},
    {NULL, 0, NULL},
};

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"subscribe", subscribe_main, "[--live SECONDS] HOST:PORT: the whole log once, or what comes new"},
    {"worker", worker_main, "AGGREGATE_TYPE HOST:PORT...: decide commands, as the echo module does"},
    {"echo", echo_main, "HOST:PORT: a bare gRPC server, the ceiling to compare with"},
    {NULL, NULL, NULL},
};

enum { NUMBER_MAX = 1000000000 };

/* Numbers that are set by flags. */
struct numbers {
    unsigned in_flight, seconds, bytes, aggregates, rate, retry, reads, events;
};

static const struct flag {
    const char *name;
    char letter;
    size_t offset; /* of a number; SIZE_MAX: something else */
    const char *value;
    const char *help;
} flags[] = {
    {"in-flight", 'n', offsetof(struct numbers, in_flight), "N", "operations at once (64)"},
    {"seconds", 's', offsetof(struct numbers, seconds), "N", "how long, behind one second that doesn't count (10)"},
    {"rate", 'r', offsetof(struct numbers, rate), "N", "open loop: so many due each second, timed from then"},
    {"bytes", 'b', offsetof(struct numbers, bytes), "N", "of a payload (256)"},
    {"aggregates", 'a', offsetof(struct numbers, aggregates), "N", "over how many (1000)"},
    {"reads", 'p', offsetof(struct numbers, reads), "N", "per cent of `mixed` that are reads (50)"},
    {"events", 'e', offsetof(struct numbers, events), "N", "of one append (1)"},
    {"retry-after", 'y', offsetof(struct numbers, retry), "MS", "ask another node under the same id; else a failure counts"},
    {"to", 't', SIZE_MAX, "any|owner|other", "always the aggregate's owner, or never (any)"},
    {"type", 'T', SIZE_MAX, "NAME", "of the aggregates: a module's or a worker's (echo)"},
    {"json", 'j', SIZE_MAX, NULL, "for scripts"},
    {"ca", 'C', SIZE_MAX, "FILE", "CAs of the nodes: turns TLS on"},
    {"cert", 'E', SIZE_MAX, "FILE", "your certificate"},
    {"key", 'K', SIZE_MAX, "FILE", "its private key"},
    {"help", 'h', SIZE_MAX, NULL, "this text"},
};

sigset_t await_end(void)
{
    sigset_t ends;

    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ends, NULL);
    return ends;
}

static void help(FILE *out)
{
    fputs("usage: cairn-bench [WORKLOAD] [FLAGS] HOST:PORT...\n       cairn-bench COMMAND ...\n\n"
          "A load of N operations in flight (closed loop) or at a rate (open loop), and what it took.\n\nworkloads:\n",
          out);
    for (const struct named *w = workloads; w->name != NULL; w++)
        fprintf(out, "  %-16s %s\n", w->name, w->help);
    fputs("\nflags:\n", out);
    for (size_t i = 0; i < COUNT_OF(flags); i++)
        fprintf(out, "  --%-12s %-16s %s\n", flags[i].name, flags[i].value == NULL ? "" : flags[i].value, flags[i].help);
    fputs("\ncommands:\n", out);
    for (const struct command *c = commands; c->name != NULL; c++)
        fprintf(out, "  %-10s %s\n", c->name, c->help);
}

static int usage(const char *what, const char *text)
{
    fprintf(stderr, "cairn-bench: %s: %s; see cairn-bench --help\n", text, what);
    return 2;
}

static bool find(const struct named *all, const char *name, int *value)
{
    for (; all->name != NULL; all++)
        if (strcmp(all->name, name) == 0) {
            *value = all->value;
            return true;
        }
    return false;
}

static const char *name_of(const struct named *all, int value)
{
    while (all->value != value)
        all++;
    return all->name;
}

/* ---- what it prints ---- */

static double ms(uint64_t us)
{
    return (double)us / 1e3;
}

static void print_text(const struct load_settings *s, const struct load_result *r)
{
    const struct latencies *l = &r->latencies;

    if (s->rate > 0)
        printf("%u/s due: ", s->rate);
    else
        printf("in flight %u: ", s->in_flight);
    printf("%.0f commands/s, p50 %.2f ms, p99 %.2f ms, p99.9 %.2f ms, longest %.2f ms, %llu failed", /* or reads */
           (double)l->count / r->seconds, ms(latencies_at(l, 500)), ms(latencies_at(l, 990)), ms(latencies_at(l, 999)),
           ms(l->longest_us), (unsigned long long)r->failed);
    if (s->retry_ms > 0)
        printf(", %llu asked again", (unsigned long long)r->retried);
    printf("\n");
}

static void print_json(const struct load_settings *s, const struct load_result *r)
{
    const struct latencies *l = &r->latencies;
    json_t *histogram = json_array();
    json_t *all;

    for (size_t i = 0; i < LATENCY_BUCKETS; i++)
        if (l->buckets[i] > 0)
            json_array_append_new(histogram, json_pack("[I, I]", (json_int_t)latency_bucket_end(i),
                                                       (json_int_t)l->buckets[i]));
    all = json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:f, s:I, s:I, s:I, s:f, s:I, s:I, s:I, s:I, s:I, s:f, s:o}", "workload",
                    name_of(workloads, (int)s->workload), "to", name_of(routes, (int)s->route), "in_flight",
                    (int)s->in_flight, "rate", (int)s->rate, "bytes", (int)s->bytes, "aggregates", (int)s->aggregates,
                    "seconds", r->seconds, "done", (json_int_t)l->count, "failed", (json_int_t)r->failed, "retried",
                    (json_int_t)r->retried, "per_second", (double)l->count / r->seconds, "p50_us",
                    (json_int_t)latencies_at(l, 500), "p90_us", (json_int_t)latencies_at(l, 900), "p99_us",
                    (json_int_t)latencies_at(l, 990), "p999_us", (json_int_t)latencies_at(l, 999), "longest_us",
                    (json_int_t)l->longest_us, "mean_us", l->count == 0 ? 0.0 : (double)l->sum_us / (double)l->count,
                    "histogram", histogram);
    json_dumpf(all, stdout, JSON_COMPACT | JSON_REAL_PRECISION(6));
    printf("\n");
    json_decref(all);
}

/* ---- the command line ---- */

struct asked {
    struct numbers numbers;
    struct load_settings load;
    struct rpc_tls_settings tls;
    bool json;
};

static int take_text(struct asked *asked, const struct flag *flag, const char *text)
{
    int value = 0;

    switch (flag->letter) {
    case 't':
        if (!find(routes, text, &value))
            return usage("--to takes any, owner or other", text);
        asked->load.route = (enum route)value;
        break;
    case 'T':
        asked->load.type = text;
        break;
    case 'j':
        asked->json = true;
        break;
    case 'C':
        asked->tls.roots = text;
        break;
    case 'E':
        asked->tls.certificate = text;
        break;
    default:
        asked->tls.key = text;
    }
    return 0;
}

static int take_number(struct asked *asked, const struct flag *flag, const char *text)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    if (*text < '0' || *text > '9' || *end != '\0' || value > NUMBER_MAX ||
        (value == 0 && flag->letter != 'b' && flag->letter != 'p'))
        return usage("is no number that this can be", text);
    *(unsigned *)((char *)&asked->numbers + flag->offset) = (unsigned)value;
    return 0;
}

/* -1: go on; else the exit code. */
static int parse(struct asked *asked, int argc, char **argv)
{
    struct option options[COUNT_OF(flags) + 1] = {0};
    int at, code = 0;

    for (size_t i = 0; i < COUNT_OF(flags); i++)
        options[i] = (struct option){flags[i].name, flags[i].value == NULL ? no_argument : required_argument, NULL, 'x'};
    while ((code = getopt_long(argc, argv, "", options, &at)) != -1) {
        if (code == '?')
            return 2;
        if (flags[at].letter == 'h') {
            help(stdout);
            return 0;
        }
        code = flags[at].offset == SIZE_MAX ? take_text(asked, &flags[at], optarg == NULL ? "" : optarg)
                                            : take_number(asked, &flags[at], optarg);
        if (code != 0)
            return code;
    }
    for (; optind < argc; optind++) {
        if (asked->load.endpoint_count == LANES_MAX)
            return usage("is one endpoint too many", argv[optind]);
        asked->load.endpoints[asked->load.endpoint_count++] = argv[optind];
    }
    return -1;
}

static int check(struct asked *asked)
{
    const struct numbers *n = &asked->numbers;
    struct load_settings *l = &asked->load;

    if (l->endpoint_count == 0)
        return usage("which nodes", "HOST:PORT...");
    if (n->in_flight > SLOTS_MAX)
        return usage("are more operations at once than it can have", "--in-flight");
    if (n->bytes > 1 << 20 || n->reads > 100 || n->events > 1024)
        return usage("is too much", n->reads > 100 ? "--reads" : n->events > 1024 ? "--events" : "--bytes");
    /* An open loop has as many at once as it needs. */
    l->in_flight = n->in_flight > 0 ? n->in_flight : n->rate > 0 ? SLOTS_MAX : 64;
    l->seconds = n->seconds;
    l->bytes = n->bytes;
    l->aggregates = n->aggregates;
    l->rate = n->rate;
    l->retry_ms = n->retry;
    l->read_percent = n->reads;
    l->events = n->events;
    l->tls = asked->tls.roots == NULL ? NULL : &asked->tls;
    return -1;
}

int main(int argc, char **argv)
{
    static struct load_result result;
    struct asked asked = {.numbers = {.seconds = 10, .bytes = 256, .aggregates = 1000, .reads = 50, .events = 1},
                          .load = {.workload = LOAD_DISPATCH, .type = "echo"}};
    struct fault fault;
    int code, workload = 0;

    for (const struct command *c = commands; argc > 1 && c->name != NULL; c++)
        if (strcmp(argv[1], c->name) == 0)
            return c->run(argc - 1, argv + 1);
    if (argc > 1 && find(workloads, argv[1], &workload)) {
        asked.load.workload = (enum workload)workload;
        argv++;
        argc--;
    }
    if ((code = parse(&asked, argc, argv)) >= 0 || (code = check(&asked)) >= 0)
        return code;
    rpc_begin();
    if (load_run(&asked.load, &result, &fault) != STATUS_OK) {
        rpc_end();
        return usage(fault.message, "cannot begin");
    }
    rpc_end();
    (asked.json ? print_json : print_text)(&asked.load, &result);
    if (result.failed > 0)
        fprintf(stderr, "cairn-bench: the first failure: %s\n", result.first_failure);
    return result.latencies.count > 0 && result.failed == 0 ? 0 : 1;
}

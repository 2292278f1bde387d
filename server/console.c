/* What the console page shows: the cluster as this node knows it, and its own rates over the last minutes. */
#include <jansson.h>

#include "node.h"

enum { SAMPLE_MS = 5000, SAMPLES = 60 };

struct sample {
    double rate;
    double p50_ms, p99_ms;
};

struct console {
    struct node *node;
    pthread_mutex_t lock;
    struct sample samples[SAMPLES]; /* oldest first */
    size_t count;
    uint64_t next_ms;
    uint64_t last_ms;
    uint64_t answered;
    uint64_t buckets[HISTOGRAM_BUCKETS + 1];
};

/* ---- rates ---- */

/* Upper end of the bucket that the share of all falls into. */
static double quantile_ms(const uint64_t *counts, uint64_t total, double share)
{
    uint64_t seen = 0;

    for (size_t i = 0; total > 0 && i <= HISTOGRAM_BUCKETS; i++) {
        seen += counts[i];
        if ((double)seen >= share * (double)total)
            return (double)((uint64_t)HISTOGRAM_FIRST_US << i) / 1000;
    }
    return 0;
}

void console_tick(struct console *console, uint64_t now_ms)
{
    struct metrics *m = &console->node->metrics;
    uint64_t fresh[HISTOGRAM_BUCKETS + 1];
    uint64_t total = 0;
    uint64_t answered;
    struct sample sample;

    if (now_ms < console->next_ms)
        return;
    answered = atomic_load(&m->commands_accepted) + atomic_load(&m->commands_rejected);
    for (size_t i = 0; i <= HISTOGRAM_BUCKETS; i++) {
        uint64_t count = atomic_load(&m->command_latency.buckets[i]);

        fresh[i] = count - console->buckets[i];
        total += fresh[i];
        console->buckets[i] = count;
    }
    sample = (struct sample){console->last_ms == 0 ? 0
                                                   : (double)(answered - console->answered) * 1000 /
                                                         (double)(now_ms - console->last_ms),
                             quantile_ms(fresh, total, 0.5), quantile_ms(fresh, total, 0.99)};
    console->answered = answered;
    console->last_ms = now_ms;
    console->next_ms = now_ms + SAMPLE_MS;
    pthread_mutex_lock(&console->lock);
    if (console->count == SAMPLES)
        memmove(console->samples, console->samples + 1, (SAMPLES - 1) * sizeof *console->samples);
    else
        console->count++;
    console->samples[console->count - 1] = sample;
    pthread_mutex_unlock(&console->lock);
}

/* ---- the cluster ---- */

static json_t *id_json(uint64_t id)
{
    char text[17];

    snprintf(text, sizeof text, "%016llx", (unsigned long long)id);
    return json_string(id == 0 ? "" : text);
}

static json_t *set_json(const struct replica_set *set)
{
    json_t *list = json_array();

    for (size_t i = 0; i < set->count; i++)
        json_array_append_new(list, id_json(set->replicas[i]));
    return list;
}

/* Names come from other nodes: what isn't UTF-8 isn't shown. */
static json_t *text_json(struct bytes text)
{
    json_t *value = json_stringn((const char *)text.data, text.len);

    return value != NULL ? value : json_string("?");
}

static json_t *partitions_json(const struct topology *topology)
{
    json_t *list = json_array();

    for (size_t p = 0; p < topology->partition_count; p++) {
        const struct owner_note *note = &topology->partitions[p];
        const struct replica_set *target = topology->targets == NULL ? &note->voters : &topology->targets[p];

        json_array_append_new(list, json_pack("{s:I, s:o, s:I, s:o, s:o, s:o, s:b}", "id", (json_int_t)p, "owner",
                                              id_json(note->owner), "epoch", (json_int_t)note->epoch, "replicas",
                                              set_json(&note->voters), "standbys", set_json(&note->standbys),
                                              "target", set_json(target), "moving",
                                              note->standbys.count > 0 || !replica_set_same(&note->voters, target)));
    }
    return list;
}

static json_t *members_json(const struct topology *topology)
{
    static const char *const statuses[] = {"?", "alive", "suspect", "dead", "left"};
    static const char *const placements[] = {"joining", "member", "draining", "removed"};
    json_t *list = json_array();

    for (size_t i = 0; i < topology->member_count; i++) {
        const struct topology_member *m = &topology->members[i];

        json_array_append_new(
            list, json_pack("{s:o, s:o, s:o, s:s, s:s, s:o, s:i, s:i, s:i, s:b}", "id", id_json(m->node_id), "name",
                            text_json(m->name), "address", text_json(m->address), "status",
                            m->status < (int)COUNT_OF(statuses) ? statuses[m->status] : "?", "placement",
                            m->placed < (int)COUNT_OF(placements) ? placements[m->placed] : "?", "zone",
                            text_json(m->zone), "capacity", (int)m->capacity, "replicas", (int)m->replicas, "owned",
                            (int)m->owned, "self", m->node_id == topology->node_id));
    }
    return list;
}

static json_t *samples_json(struct console *console)
{
    json_t *list = json_array();

    pthread_mutex_lock(&console->lock);
    for (size_t i = 0; i < console->count; i++)
        json_array_append_new(list, json_pack("{s:f, s:f, s:f}", "rate", console->samples[i].rate, "p50_ms",
                                              console->samples[i].p50_ms, "p99_ms", console->samples[i].p99_ms));
    pthread_mutex_unlock(&console->lock);
    return list;
}

static int add_text(const char *text, size_t len, void *context)
{
    buffer_add(context, text, len);
    return 0;
}

void console_json(struct console *console, struct buffer *out)
{
    struct arena arena = {0};
    struct topology topology;
    json_t *value;

    control_look(console->node->control, &arena, &topology);
    value = json_pack("{s:o, s:o, s:I, s:I, s:b, s:o, s:o, s:o}", "cluster_id", text_json(topology.cluster_id),
                      "cluster_name", text_json(topology.cluster_name), "placement_version",
                      (json_int_t)topology.placement_version, "release", (json_int_t)topology.release, "ready",
                      node_is_serving(console->node), "members", members_json(&topology), "partitions",
                      partitions_json(&topology), "samples", samples_json(console));
    (void)json_dump_callback(value, add_text, out, JSON_COMPACT);
    json_decref(value);
    arena_release(&arena);
}

struct console *console_new(struct node *node)
{
    struct console *console = memory_zero(1, sizeof *console);

    console->node = node;
    pthread_mutex_init(&console->lock, NULL);
    return console;
}

void console_free(struct console *console)
{
    if (console == NULL)
        return;
    pthread_mutex_destroy(&console->lock);
    free(console);
}

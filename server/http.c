/* HTTP over libmicrohttpd: /healthz, /readyz, /metrics. */
#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>

#include "access.h"

struct http {
    struct node *node;
    struct MHD_Daemon *daemon;
};

static void counter(struct buffer *out, const char *name, const char *help,
                    unsigned long long value)
{
    buffer_printf(out, "# HELP %s %s\n# TYPE %s counter\n%s %llu\n", name, help, name, name,
                  value);
}

static void gauge(struct buffer *out, const char *name, const char *help, unsigned long long value)
{
    buffer_printf(out, "# HELP %s %s\n# TYPE %s gauge\n%s %llu\n", name, help, name, name, value);
}

static size_t sum(const struct node *node, size_t offset)
{
    size_t total = 0;

    for (size_t i = 0; i < node->shard_count; i++)
        total += atomic_load(
            (const atomic_size_t *)((const char *)shard_view(node->shards[i]) + offset));
    return total;
}

#define VIEW(field) sum(node, offsetof(struct shard_view, field))

static void print_metrics(struct node *node, struct buffer *out)
{
    struct metrics *m = &node->metrics;
    uint64_t memory = 0;
    uint64_t disk = 0;
    size_t members[MEMBER_LEFT + 1];
    double days;

    store_usage(node->store, &memory, &disk);
    if (access_certificate_days(node, &days))
        buffer_printf(out, "# HELP cairn_certificate_days Until the first of this node's certificates expires\n"
                           "# TYPE cairn_certificate_days gauge\ncairn_certificate_days %.3f\n", days);
    buffer_printf(out, "# HELP cairn_commands_total Commands answered to callers of this node\n"
                       "# TYPE cairn_commands_total counter\n"
                       "cairn_commands_total{result=\"accepted\"} %llu\n"
                       "cairn_commands_total{result=\"rejected\"} %llu\n"
                       "cairn_commands_total{result=\"failed\"} %llu\n",
                  atomic_load(&m->commands_accepted), atomic_load(&m->commands_rejected),
                  atomic_load(&m->commands_failed));
    counter(out, "cairn_router_forwarded_total", "Commands sent to another owner",
            atomic_load(&m->commands_forwarded));
    counter(out, "cairn_router_resent_total", "Commands sent again to an owner",
            atomic_load(&m->commands_resent));
    counter(out, "cairn_calls_refused_total", "Calls of somebody unknown, or without the role",
            atomic_load(&m->calls_refused));
    counter(out, "cairn_calls_limited_total", "Calls and commands of an identity that had its limit of them",
            atomic_load(&m->calls_limited));
    counter(out, "cairn_connections_refused_total", "Connections let go at once because there were too many",
            atomic_load(&m->connections_refused));
    counter(out, "cairn_reads_total", "ReadAggregate calls", atomic_load(&m->reads));
    counter(out, "cairn_store_syncs_total", "Synced writes", atomic_load(&m->syncs));
    counter(out, "cairn_store_batches_total", "Write batches", atomic_load(&m->batches));
    counter(out, "cairn_link_frames_sent_total", "Frames sent to peers",
            atomic_load(&m->frames_sent));
    counter(out, "cairn_link_bytes_sent_total", "Bytes of frames sent to peers",
            atomic_load(&m->frame_bytes_sent));
    counter(out, "cairn_link_frames_dropped_total", "Frames not sent: no link or a full queue",
            atomic_load(&m->frames_dropped));
    counter(out, "cairn_link_frames_refused_total", "Malformed frames from peers",
            atomic_load(&m->frames_refused));
    counter(out, "cairn_partition_ownership_gained_total", "Ownerships begun",
            atomic_load(&m->ownership_gained));
    counter(out, "cairn_partition_ownership_lost_total", "Ownerships ended",
            atomic_load(&m->ownership_lost));
    counter(out, "cairn_partition_range_bytes_total", "Bytes of key ranges got from peers",
            atomic_load(&m->range_bytes));
    counter(out, "cairn_partition_ranges_installed_total", "Key ranges got from peers",
            atomic_load(&m->ranges_installed));
    counter(out, "cairn_partition_repairs_total", "Damaged partitions got anew from peers",
            atomic_load(&m->repairs));
    counter(out, "cairn_events_given_total", "Events given to subscriptions and ReadAll",
            atomic_load(&m->events_given));
    counter(out, "cairn_groups_delivered_total", "Events given to members of processor groups",
            atomic_load(&m->group_events));
    counter(out, "cairn_groups_redelivered_total", "Events given again after a failure",
            atomic_load(&m->group_redelivered));
    counter(out, "cairn_groups_parked_total", "Events that were parked", atomic_load(&m->group_parked));
    counter(out, "cairn_subscribing_delivered_total", "Events given to subscribing processors",
            atomic_load(&m->bus_events));
    counter(out, "cairn_subscribing_redelivered_total", "Events given again because a member left",
            atomic_load(&m->bus_redelivered));
    counter(out, "cairn_subscribing_failed_total", "Events that subscribing processors failed at",
            atomic_load(&m->bus_failed));
    counter(out, "cairn_subscribing_late_total", "Events that weren't acknowledged in time",
            atomic_load(&m->bus_late));
    gauge(out, "cairn_groups_coordinated", "Processor groups with members that this node coordinates",
          atomic_load(&m->group_count));
    gauge(out, "cairn_groups_members", "Members of those", atomic_load(&m->group_member_count));
    feeder_group_metrics(node->feeder, out);
    gauge(out, "cairn_subscriptions", "Open subscriptions and ReadAll calls", feeder_count(node->feeder));
    gauge(out, "cairn_partitions_owned", "Partitions owned by this node", VIEW(owned));
    gauge(out, "cairn_partitions_held", "Replicas on this node", VIEW(replicas));
    gauge(out, "cairn_partitions_lagging", "Replicas getting their range", VIEW(lagging));
    gauge(out, "cairn_raft_leading", "Replicas that lead, owners or about to be", VIEW(leading));
    gauge(out, "cairn_raft_entries_uncommitted", "Log entries that wait for a majority",
          VIEW(uncommitted));
    gauge(out, "cairn_raft_entries_unstored", "Committed log entries that aren't applied and stored",
          VIEW(unstored));
    gauge(out, "cairn_raft_term_sum", "Sum over the shards of their highest term; grows with elections",
          VIEW(highest_term));
    control_member_counts(node->control, members);
    gauge(out, "cairn_members_alive", "Members that this node believes alive", members[MEMBER_ALIVE]);
    gauge(out, "cairn_members_suspect", "Members that are suspected", members[MEMBER_SUSPECT]);
    gauge(out, "cairn_members_dead", "Members that are dead or left",
          members[MEMBER_DEAD] + members[MEMBER_LEFT]);
    gauge(out, "cairn_commands_inside", "Commands inside this node",
          (unsigned long long)atomic_load(&node->commands));
    gauge(out, "cairn_aggregate_waiting", "Commands waiting in mailboxes", VIEW(waiting));
    gauge(out, "cairn_aggregate_in_flight", "Commands decided and not yet stored",
          VIEW(in_flight));
    gauge(out, "cairn_aggregate_executing", "Commands at workers", VIEW(executing));
    gauge(out, "cairn_aggregate_processing", "Commands committed, waiting for subscribing processors",
          VIEW(processing));
    gauge(out, "cairn_subscribing_members", "Subscribing processors at this node", atomic_load(&m->bus_members));
    gauge(out, "cairn_subscribing_waiting", "Events that they have not acknowledged", atomic_load(&m->bus_waiting));
    gauge(out, "cairn_aggregate_cached", "Aggregates in memory", VIEW(cached));
    gauge(out, "cairn_workers_connected", "Workers connected to this node",
          workers_count(node->workers));
    gauge(out, "cairn_store_memory_bytes", "Write buffers and cache", memory);
    gauge(out, "cairn_store_disk_bytes", "Table files", disk);
    gauge(out, "cairn_disk_free_bytes", "Free space where the data lives",
          atomic_load(&node->disk_free_bytes));
    gauge(out, "cairn_placement_version", "Newest placement that this node's system replica holds",
          atomic_load(&m->placement_version));
    gauge(out, "cairn_node_serving", "1 while owners of all partitions are known",
          node_is_serving(node));
    histogram_print(&m->command_latency, "cairn_command_latency_seconds",
                    "From arrival of a command to its answer", out);
    histogram_print(&m->sync_latency, "cairn_store_sync_latency_seconds",
                    "One group of synced writes", out);
}

static enum MHD_Result answer(void *context, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *upload,
                              size_t *upload_size, void **state)
{
    struct http *http = context;
    struct buffer out = {0};
    const char *type = "text/plain; charset=utf-8";
    unsigned code = MHD_HTTP_OK;
    struct MHD_Response *response;
    enum MHD_Result result;

    (void)version;
    (void)upload;
    (void)upload_size;
    (void)state;
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0) {
        code = MHD_HTTP_METHOD_NOT_ALLOWED;
        buffer_printf(&out, "only GET\n");
    } else if (strcmp(url, "/healthz") == 0) {
        buffer_printf(&out, "ok\n");
    } else if (strcmp(url, "/readyz") == 0) {
        bool ready = node_is_serving(http->node);

        code = ready ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE;
        buffer_printf(&out, "%s\n",
                      ready                                     ? "ready"
                      : atomic_load(&http->node->draining) ||
                              placements_draining(http->node->placements, http->node->id)
                          ? "draining"
                      : atomic_load(&http->node->founding) == NULL
                          ? "not a member of a cluster yet"
                          : "some partitions have no known owner");
    } else if (strcmp(url, "/metrics") == 0) {
        type = "text/plain; version=0.0.4";
        print_metrics(http->node, &out);
    } else if (strcmp(url, "/") == 0) {
        type = "text/html; charset=utf-8";
        buffer_add(&out, cairn_console_page, cairn_console_page_len);
    } else if (strcmp(url, "/console.json") == 0 && http->node->control != NULL) {
        type = "application/json";
        console_json(http->node->console, &out);
    } else {
        code = MHD_HTTP_NOT_FOUND;
        buffer_printf(&out, "try /, /healthz, /readyz or /metrics\n");
    }
    response = MHD_create_response_from_buffer(out.len, out.data, MHD_RESPMEM_MUST_FREE);
    MHD_add_response_header(response, "Content-Type", type);
    /* The page needs nothing from elsewhere, and nothing from elsewhere may use it. */
    MHD_add_response_header(response, "Content-Security-Policy",
                            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                            "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'");
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(response, "Cache-Control", "no-store");
    result = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    return result;
}

enum status http_new(struct http **out, struct node *node, struct fault *fault)
{
    struct http *http;
    struct sockaddr_in address = {.sin_family = AF_INET};
    char host[ADDRESS_BYTES_MAX + 1];
    char *colon;

    *out = NULL;
    if (node->config.http[0] == '\0')
        return STATUS_OK;
    snprintf(host, sizeof host, "%s", node->config.http);
    colon = strrchr(host, ':');
    *colon = '\0';
    address.sin_port = htons((uint16_t)atoi(colon + 1));
    if (inet_pton(AF_INET, strcmp(host, "localhost") == 0 ? "127.0.0.1" : host,
                  &address.sin_addr) != 1)
        return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                         "http is `%s`; it must be an IPv4 address and a port",
                         node->config.http);
    http = memory_zero(1, sizeof *http);
    http->node = node;
    http->daemon = MHD_start_daemon(
        MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_EPOLL, 0, NULL, NULL, answer, http,
        MHD_OPTION_SOCK_ADDR, &address, MHD_OPTION_CONNECTION_LIMIT, 64u,
        MHD_OPTION_CONNECTION_TIMEOUT, 10u, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)16384,
        MHD_OPTION_END);
    if (http->daemon == NULL) {
        free(http);
        return fault_set(fault, STATUS_FAILED, "PORT_TAKEN",
                         "cannot listen on %s for HTTP: %s; choose another with --http",
                         node->config.http, strerror(errno));
    }
    *out = http;
    return STATUS_OK;
}

void http_free(struct http *http)
{
    if (http == NULL)
        return;
    MHD_stop_daemon(http->daemon);
    free(http);
}

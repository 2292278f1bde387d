/*
 * cairnd: sets up the node, waits for a signal, and takes it down again in the order that loses
 * nothing: hand ownerships over, stop taking calls, stop the engine, flush, close.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "access.h"
#include "audit.h"

enum { EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_DATA = 3, DRAIN_STALL_MS = 2000, CLOSE_MS = 200 };

/* ---- what node.h promises ---- */

uint32_t node_partition_count(const struct node *node)
{
    return atomic_load(&((struct node *)node)->founding)->partition_count;
}

uint32_t node_partition_of(const struct node *node, struct bytes aggregate_id)
{
    return engine_partition_of(atomic_load(&node->founding), aggregate_id);
}

struct shard *node_shard_of(const struct node *node, uint32_t partition)
{
    return node->shards[partition % node->shard_count];
}

void node_fail(struct node *node, const struct fault *fault)
{
    int expected = 0;

    if (atomic_exchange(&node->failed, true))
        return;
    journal(JOURNAL_ERROR, "node-failed", "%s: %s", fault->reason, fault->message);
    (void)atomic_compare_exchange_strong(&node->exit_code, &expected,
                                         fault->status == STATUS_DAMAGED ||
                                                 fault->status == STATUS_EXHAUSTED
                                             ? EXIT_DATA
                                             : EXIT_FAILED);
    kill(getpid(), SIGTERM);
}

/* ---- the data directory ---- */

static enum status make_directories(const char *path, struct fault *fault)
{
    char part[512];

    for (size_t i = 1; path[i - 1] != '\0'; i++)
        if (path[i] == '/' || path[i] == '\0') {
            snprintf(part, sizeof part, "%.*s", (int)i, path);
            if (mkdir(part, 0700) != 0 && errno != EEXIST)
                return fault_set(fault, STATUS_FAILED, "DATA_DIR",
                                 "cannot make the data directory %s: %s", part, strerror(errno));
        }
    return STATUS_OK;
}

/* The lock lasts as long as the process; nobody closes the file. */
static enum status lock_directory(const char *path, struct fault *fault)
{
    char file[600];
    char owner[32] = "";
    int fd;

    snprintf(file, sizeof file, "%s/lock", path);
    fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return fault_set(fault, STATUS_FAILED, "DATA_DIR", "cannot open %s: %s", file,
                         strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (read(fd, owner, sizeof owner - 1) < 0)
            owner[0] = '\0';
        return fault_set(fault, STATUS_FAILED, "DATA_DIR_HELD",
                         "cannot open data directory %s: held by process %s; stop it or choose "
                         "another with --data-dir",
                         path, owner);
    }
    snprintf(owner, sizeof owner, "%d", (int)getpid());
    if (ftruncate(fd, 0) != 0 || write(fd, owner, strlen(owner)) < 0)
        return fault_set(fault, STATUS_FAILED, "DATA_DIR", "cannot write %s: %s", file,
                         strerror(errno));
    return STATUS_OK;
}

static enum status write_identity(struct node *node, struct fault *fault)
{
    struct store_batch *batch = store_batch_new(node->store);
    struct store_key key = key_meta("identity");
    struct buffer packed = {0};
    struct identity identity = {.name = bytes_of(node->config.name)};
    enum status status;

    /* The top bit tells a node from a worker's session. */
    node->id = random_u64() | 1ULL << 63;
    identity.node_id = node->id;
    wire_identity_pack(&packed, &identity);
    store_batch_put(batch, STORE_META, key_bytes(&key), buffer_bytes(&packed));
    status = store_write(node->store, batch, true, fault);
    buffer_release(&packed);
    store_batch_free(batch);
    return status;
}

static enum status load_identity(struct node *node, struct fault *fault)
{
    struct arena arena = {0};
    struct store_key key = key_meta("identity");
    struct identity identity;
    struct bytes value;
    enum status status =
        store_get(node->store, STORE_META, key_bytes(&key), &arena, &value, fault);

    if (status == STATUS_NOT_FOUND) {
        arena_release(&arena);
        return write_identity(node, fault);
    }
    if (status == STATUS_OK)
        status = wire_identity_decode(value, &arena, &identity, fault);
    if (status == STATUS_OK && !bytes_equal(identity.name, bytes_of(node->config.name)))
        status = fault_set(fault, STATUS_PRECONDITION, "WRONG_NODE",
                           "data directory %s belongs to node %.*s, this is node %s; give it "
                           "--name %.*s or another --data-dir",
                           node->config.data_dir, (int)identity.name.len,
                           (const char *)identity.name.data, node->config.name,
                           (int)identity.name.len, (const char *)identity.name.data);
    if (status == STATUS_OK)
        node->id = identity.node_id;
    arena_release(&arena);
    return status;
}

/* ---- the store's form ---- */

/* None is told: the first. */
static enum status check_release(struct node *node, struct fault *fault)
{
    struct store_key key = key_meta("release");
    struct arena arena = {0};
    struct bytes value;
    enum status status = store_get(node->store, STORE_META, key_bytes(&key), &arena, &value, fault);
    uint32_t release = 1;

    if (status == STATUS_OK && value.len == sizeof release)
        memcpy(&release, value.data, sizeof release);
    arena_release(&arena);
    if (status != STATUS_OK && status != STATUS_NOT_FOUND)
        return status;
    if (release > PEER_PROTOCOL_MAX || release < PEER_PROTOCOL_MIN)
        return fault_set(fault, STATUS_PRECONDITION, "DATA_DIR_RELEASE",
                         "data directory %s has the form of release %u, this node reads releases %d to %d; upgrade "
                         "one release at a time",
                         node->config.data_dir, release, PEER_PROTOCOL_MIN, PEER_PROTOCOL_MAX);
    atomic_store(&node->store_release, release);
    return STATUS_OK;
}

static void release_written(void *context, bool written)
{
    struct node *node = context;

    if (written)
        journal(JOURNAL_INFO, "release-raised", "all members have release %u; older ones don't open this data any more",
                atomic_load(&node->store_release));
}

void node_release_raised(struct node *node, uint32_t release)
{
    struct store_key key = key_meta("release");
    struct store_batch *batch;

    if (release <= atomic_load(&node->store_release) || release > PEER_PROTOCOL_MAX)
        return;
    atomic_store(&node->store_release, release);
    batch = storage_take_batch(node->storage);
    store_batch_put(batch, STORE_META, key_bytes(&key), (struct bytes){(const uint8_t *)&release, sizeof release});
    storage_write_for(node->storage, batch, release_written, node);
}

static enum status open_data(struct node *node, struct fault *fault)
{
    struct store_settings settings = {
        .path = node->config.data_dir,
        .memory_bytes = node->config.memory_bytes,
        .outcome_retention_ms = node->config.outcome_retention_ms,
    };
    char path[600];
    enum status status = make_directories(node->config.data_dir, fault);

    if (status == STATUS_OK)
        status = lock_directory(node->config.data_dir, fault);
    snprintf(path, sizeof path, "%s/store", node->config.data_dir);
    settings.path = path;
    if (status == STATUS_OK)
        status = store_open(&node->store, &settings, fault);
    if (status == STATUS_OK)
        status = check_release(node, fault);
    if (status == STATUS_OK)
        status = load_identity(node, fault);
    return status;
}

/* ---- services ---- */

static enum status serve(struct node *node, struct fault *fault)
{
    const struct rpc_method methods[] = {
        {"/cairn.v1.CommandService/Dispatch", node, ACCESS_DISPATCH, dispatch_call, NULL},
        {"/cairn.v1.CommandService/DispatchStream", node, ACCESS_DISPATCH, NULL, &dispatch_stream_events},
        {"/cairn.v1.CommandService/HandleCommands", node, ACCESS_WORK, NULL, &handle_commands_events},
        {"/cairn.v1.EventService/Append", node, ACCESS_WORK, append_call, NULL},
        {"/cairn.v1.EventService/ReadSnapshot", node, ACCESS_READ, NULL, &read_snapshot_events},
        {"/cairn.v1.EventService/WriteSnapshot", node, ACCESS_WORK, write_snapshot_call, NULL},
        {"/cairn.v1.EventService/DeleteSnapshot", node, ACCESS_WORK, delete_snapshot_call, NULL},
        {"/cairn.v1.EventService/ReadAggregate", node, ACCESS_READ, NULL, &read_aggregate_events},
        {"/cairn.v1.EventService/Subscribe", node, ACCESS_READ, NULL, &subscribe_events},
        {"/cairn.v1.EventService/ReadAll", node, ACCESS_READ, NULL, &read_all_events},
        {"/cairn.v1.EventService/ListAggregates", node, ACCESS_READ, NULL, &list_aggregates_events},
        {"/cairn.v1.EventService/CountEvents", node, ACCESS_READ, NULL, &count_events_events},
        {"/cairn.v1.EventService/Process", node, ACCESS_READ, NULL, &process_events},
        {"/cairn.v1.EventService/GetGroup", node, ACCESS_READ, get_group_call, NULL},
        {"/cairn.v1.EventService/ResetGroup", node, ACCESS_READ, reset_group_call, NULL},
        {"/cairn.v1.EventService/RetryParked", node, ACCESS_READ, retry_parked_call, NULL},
        {"/cairn.v1.ClusterService/GetTopology", node, ACCESS_KNOWN, get_topology_call, NULL},
        {"/cairn.v1.ClusterService/WatchTopology", node, ACCESS_KNOWN, NULL, &watch_topology_events},
        {"/cairn.v1.ClusterService/DrainNode", node, ACCESS_OPERATE, drain_node_call, NULL},
        {"/cairn.v1.ClusterService/RemoveNode", node, ACCESS_OPERATE, remove_node_call, NULL},
        {"/cairn.v1.ClusterService/TransferOwnership", node, ACCESS_OPERATE, transfer_ownership_call, NULL},
        {"/cairn.v1.ClusterService/ForgetSubject", node, ACCESS_OPERATE, forget_subject_call, NULL},
        {"/cairn.v1.ClusterService/UpdateSettings", node, ACCESS_OPERATE, update_settings_call, NULL},
        {"/cairn.peer.v1.PeerService/Link", node, ACCESS_NODE, NULL, &peer_link_events},
        {"/cairn.peer.v1.PeerService/Gossip", node, ACCESS_NODE, NULL, &peer_gossip_events},
        {"/cairn.peer.v1.PeerService/FetchRange", node, ACCESS_NODE, NULL, &peer_range_events},
        {"/cairn.peer.v1.PeerService/Operate", node, ACCESS_NODE, NULL, &peer_operate_events},
        {"/grpc.health.v1.Health/Check", node, ACCESS_OPEN, health_check_call, NULL},
        {"/grpc.health.v1.Health/Watch", node, ACCESS_OPEN, NULL, &health_watch_events},
        {"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", node, ACCESS_KNOWN, NULL,
         &reflection_events},
        {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", node, ACCESS_KNOWN, NULL,
         &reflection_events},
    };
    struct rpc_server_settings settings = {
        .listen = node->config.listen,
        .methods = methods,
        .method_count = COUNT_OF(methods) - (node->config.reflection ? 0 : 2),
        .message_bytes_max = GRPC_MESSAGE_BYTES_MAX,
        .calls_per_connection = node->config.identity_in_flight == 0 || node->config.identity_streams == 0
                                    ? 0
                                    : (uint32_t)(node->config.identity_in_flight + node->config.identity_streams),
        .memory_bytes = node->config.connection_memory_bytes,
        .connection_idle_ms = (uint32_t)node->config.connection_idle_ms,
        .tls = access_server_tls(node),
        .admit = node->access == NULL ? NULL : access_admit,
        .forget = access_forget,
        .context = node,
    };

    rpc_limit_connections(node->config.connections, node->config.connections_per_address,
                          CONNECTION_IDLE_BYTES_MAX);
    return rpc_server_new(&node->server, node->loop, &settings, fault);
}

/* ---- up and down ---- */

static size_t shards_for_this_machine(void)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);

    return cores < 4 ? 1 : cores >= 32 ? 8 : (size_t)cores / 4;
}

static struct founding *load_founding(struct node *node, struct arena *arena,
                                      struct founding *founding, enum status *status,
                                      struct fault *fault)
{
    struct store_key key = key_meta("founding");
    struct bytes value;

    *status = store_get(node->store, STORE_META, key_bytes(&key), arena, &value, fault);
    if (*status == STATUS_NOT_FOUND) {
        *status = STATUS_OK;
        return NULL;
    }
    if (*status == STATUS_OK)
        *status = wire_founding_decode(value, arena, founding, fault);
    return *status == STATUS_OK ? founding : NULL;
}

static enum status start(struct node *node, struct http **http, struct fault *fault)
{
    struct arena arena = {0};
    struct founding founding;
    const struct founding *stored;
    enum status status;

    pthread_mutex_init(&node->limited_lock, NULL);
    status = modules_load(&node->modules, &node->config, fault);

    if (status == STATUS_OK)
        status = open_data(node, fault);
    if (status == STATUS_OK)
        status = access_new(node, fault);
    if (status == STATUS_OK)
        status = subjects_new(node, fault);
    if (status == STATUS_OK)
        status = audit_new(node, fault);
    if (status != STATUS_OK)
        return status;
    stored = load_founding(node, &arena, &founding, &status, fault);
    if (status == STATUS_OK && rpc_loop_new(&node->loop) != STATUS_OK)
        status = fault_set(fault, STATUS_FAILED, "THREADS", "cannot start threads");
    if (status == STATUS_OK) {
        node->workers = workers_new(node);
        node->placements = placements_new();
        node->orders = orders_new(node);
        node->console = console_new(node);
        node->links = links_new(node);
        node->range_fetches = range_fetches_new(node);
        node->range_sends = range_sends_new(node);
        node->read_relays = read_relays_new(node);
        node->through_streams = through_streams_new();
        node->feeder = feeder_new(node);
        node->local_bus = local_bus_new(node);
        node->storage = storage_new(node);
        node->shard_count = shards_for_this_machine();
        node->shards = memory_zero(node->shard_count, sizeof *node->shards);
        for (size_t i = 0; i < node->shard_count; i++)
            node->shards[i] = shard_new(node, i);
        watchers_start();
        status = http_new(http, node, fault);
    }
    if (status == STATUS_OK)
        (void)control_new(node, stored);
    if (status == STATUS_OK)
        status = discovery_new(&node->discovery, node, fault);
    if (status == STATUS_OK)
        status = serve(node, fault);
    arena_release(&arena);
    return status;
}

/* Hand everything over while others take it, up to the limit. */
static void drain(struct node *node, const sigset_t *signals)
{
    uint64_t until = clock_monotonic_ms() + node->config.drain_timeout_ms;
    uint64_t progress_ms = clock_monotonic_ms();
    size_t least = SIZE_MAX;

    atomic_store(&node->draining, true);
    (void)sd_notify(0, "STOPPING=1\nSTATUS=handing ownerships over");
    journal(JOURNAL_INFO, "drain-begun", "handing ownerships over");
    while (clock_monotonic_ms() < until) {
        struct timespec moment = {0, 50000000};
        size_t movable = 0;

        for (size_t i = 0; i < node->shard_count; i++) {
            struct letter *letter = memory_zero(1, sizeof *letter);

            letter->kind = LETTER_TRANSFER;
            shard_send(node->shards[i], letter);
            movable += atomic_load(&shard_view(node->shards[i])->movable);
        }
        if (movable < least) {
            least = movable;
            progress_ms = clock_monotonic_ms();
        }
        /* When nobody takes them (the others stop as well) waiting longer helps nobody. */
        if (movable == 0 || clock_monotonic_ms() - progress_ms > DRAIN_STALL_MS)
            break;
        if (sigtimedwait(signals, NULL, &moment) > 0)
            break; /* a second signal: stop at once */
    }
    /* Let what is inside finish. */
    while (atomic_load(&node->commands) > 0 && clock_monotonic_ms() < until) {
        struct timespec moment = {0, 10000000};

        if (sigtimedwait(signals, NULL, &moment) > 0)
            break;
    }
}

static void stop(struct node *node, struct http *http)
{
    struct timespec moment = {0, 5000000};

    discovery_free(node->discovery);
    if (node->control != NULL)
        control_stop(node->control);
    watchers_stop();
    if (node->range_fetches != NULL)
        while (!range_fetches_gone(node->range_fetches))
            nanosleep(&moment, NULL);
    if (node->orders != NULL)
        while (!orders_gone(node->orders))
            nanosleep(&moment, NULL);
    if (node->read_relays != NULL)
        while (!read_relays_gone(node->read_relays))
            nanosleep(&moment, NULL);
    if (node->feeder != NULL)
        while (!feeder_gone(node->feeder))
            nanosleep(&moment, NULL);
    if (node->local_bus != NULL)
        local_bus_end(node->local_bus);
    /* A call that came a moment ago is still answered: were the shards stopped first, it would wait for
     * its caller's patience (seen: half a second of stall in a drain). */
    if (node->server != NULL)
        rpc_server_close(node->server, CLOSE_MS);
    for (size_t i = 0; i < node->shard_count; i++)
        shard_stop(node->shards[i]);
    for (size_t i = 0; i < node->shard_count; i++)
        shard_drop_letters(node->shards[i]);
    if (node->server != NULL)
        rpc_server_stop(node->server, 0);
    dispatch_hear_again(node);
    if (node->range_sends != NULL)
        range_sends_stop(node->range_sends);
    for (size_t i = 0; i < node->shard_count; i++)
        shard_drop_letters(node->shards[i]);
    if (node->links != NULL) {
        links_cancel(node->links);
        while (!links_idle(node->links))
            nanosleep(&moment, NULL);
    }
    if (node->control != NULL)
        while (!control_streams_gone(node->control, true))
            nanosleep(&moment, NULL);
    http_free(http);
    rpc_server_free(node->server);
    control_free(node->control);
    links_free(node->links);
    range_fetches_free(node->range_fetches);
    read_relays_free(node->read_relays);
    rpc_loop_free(node->loop);
    range_sends_free(node->range_sends);
    access_free(node);
    through_streams_free(node->through_streams);
    feeder_free(node->feeder);
    if (node->local_bus != NULL)
        local_bus_stop(node->local_bus);
    for (size_t i = 0; i < node->shard_count; i++)
        shard_drop_letters(node->shards[i]);
    local_bus_free(node->local_bus);
    storage_free(node->storage);
    audit_free(node);
    for (size_t i = 0; i < node->shard_count; i++)
        shard_free(node->shards[i]);
    free(node->shards);
    workers_free(node->workers);
    routes_free(node->routes);
    placements_free(node->placements);
    orders_free(node->orders);
    console_free(node->console);
    subjects_free(node);
    store_free(node->store);
    modules_free(node->modules);
}

static int fail_start(const struct fault *fault)
{
    fprintf(stderr, "cairnd: %s%s\n", fault->message,
            fault->status == STATUS_DAMAGED
                ? "; restore the data directory from a backup, or replace this node" : "");
    if (strncmp(fault->reason, "DATA_DIR", 8) == 0 || strcmp(fault->reason, "WRONG_NODE") == 0 ||
        fault->status == STATUS_DAMAGED || fault->status == STATUS_EXHAUSTED)
        return EXIT_DATA;
    return fault->status == STATUS_INVALID ? EXIT_USAGE : EXIT_FAILED;
}

static enum journal_level level_of(const struct config *config)
{
    return strcmp(config->log_level, "debug") == 0   ? JOURNAL_DEBUG
           : strcmp(config->log_level, "warn") == 0  ? JOURNAL_WARN
           : strcmp(config->log_level, "error") == 0 ? JOURNAL_ERROR
                                                     : JOURNAL_INFO;
}

/* SIGHUP: what may change while the node runs. Files of security are looked at by themselves; this is at once. */
static void reload(struct node *node, int argc, char **argv)
{
    static struct config fresh;
    struct fault fault;

    if (config_load(&fresh, argc, argv, &fault) == STATUS_OK)
        journal_set_level(level_of(&fresh));
    else
        journal(JOURNAL_ERROR, "settings-refused", "%s; nothing is changed", fault.message);
    journal(JOURNAL_INFO, "reloaded", "log level, certificates, policy, revoked certificates, token keys");
    atomic_store(&node->reload, true);
    control_wake(node->control);
}

int main(int argc, char **argv)
{
    static struct node node;
    struct fault fault = {0};
    struct http *http = NULL;
    sigset_t signals;
    sigset_t with_reload;
    enum status status = config_load(&node.config, argc, argv, &fault);
    int signal_number = 0;

    if (status == STATUS_NOT_FOUND)
        return 0;
    if (status != STATUS_OK)
        return fail_start(&fault);
    journal_configure(level_of(&node.config), strcmp(node.config.log_format, "json") == 0, node.config.name);
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    with_reload = signals;
    sigaddset(&with_reload, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &with_reload, NULL); /* before any thread */
    rpc_begin();
    snprintf(node.advertise, sizeof node.advertise, "%s", node.config.advertise);
    status = start(&node, &http, &fault);
    if (status != STATUS_OK) {
        int code = fail_start(&fault);

        if (node.store == NULL || node.control == NULL)
            _exit(code); /* nothing was begun that needs an end */
        stop(&node, http);
        rpc_end();
        return code;
    }
    fprintf(stderr, "cairnd %s, node %s (%016llx), data in %s\n", CAIRN_VERSION, node.config.name,
            (unsigned long long)node.id, node.config.data_dir);
    fprintf(stderr, "gRPC on %s, HTTP on %s\n", node.config.listen,
            node.config.http[0] == '\0' ? "nothing" : node.config.http);
    fprintf(stderr, "try: grpcurl %s %s list\n", node.access == NULL ? "-plaintext" : "-cacert CA -cert CERTIFICATE -key KEY",
            node.config.listen);
    (void)sd_notify(0, "READY=1");
    while (sigwait(&with_reload, &signal_number) != 0 || signal_number == SIGHUP)
        if (signal_number == SIGHUP)
            reload(&node, argc, argv);
    if (!atomic_load(&node.failed) && atomic_load(&node.founding) != NULL)
        drain(&node, &signals);
    stop(&node, http);
    rpc_end();
    journal(JOURNAL_INFO, "stopped", "exit code %d", atomic_load(&node.exit_code));
    return atomic_load(&node.exit_code);
}

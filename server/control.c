/*
 * The control thread: membership and founding over gossip streams on connections of their own,
 * and what follows from them: which links to keep, what the topology is.
 */
#include <sys/statvfs.h>
#include <systemd/sd-daemon.h>

#include "access.h"

enum { TICK_MS = 50, TICK_FOUNDED_MS = 150, IDLE_MS = 60000, REFUSAL_MUTE_MS = 5000 };

/* A gossip stream that we have dialled. */
struct gossip_link {
    struct control *control;
    struct gossip_link *next;
    char address[ADDRESS_BYTES_MAX + 1];
    struct rpc_channel *channel;
    struct rpc_stream *stream;
    uint64_t last_used;
    uint64_t muted_until; /* after a refusal */
    uint64_t node_id;     /* who it was last dialled for, 0 when unknown */
};

enum control_letter_kind { CONTROL_GOSSIP, CONTROL_LINK, CONTROL_HANDLERS, CONTROL_DISCOVERED, CONTROL_WAKE, CONTROL_STOP };

struct control_letter {
    struct mail mail;
    enum control_letter_kind kind;
    struct arena arena;
    struct gossip_frame frame;
    uint64_t node_id;
    char (*addresses)[ADDRESS_BYTES_MAX + 1];
    size_t address_count;
};

struct control {
    struct node *node;
    struct mailbox box;
    pthread_t thread;
    struct swim *swim;
    struct founding_process *founding;
    bool stopping;
    uint64_t next_look;
    uint64_t next_notify;

    pthread_mutex_t links_lock;
    struct gossip_link *links;
    bool links_stopping;

    pthread_mutex_t lock; /* of the published members */
    struct arena published_arena;
    struct member_state *published;
    size_t published_count;
    uint64_t version;
    bool changed;
};

/* ---- gossip streams ---- */

static void on_message(void *user, struct rpc_stream *stream, struct bytes message)
{
    struct gossip_link *link = user;
    struct node *node = link->control->node;
    struct arena arena = {0};
    struct bytes refusal;
    struct bytes cluster_id;
    uint64_t node_id;
    struct fault fault;

    if (wire_welcome_decode(message, &arena, &refusal, &node_id, &cluster_id, &fault) ==
            STATUS_OK &&
        refusal.len > 0) {
        bool self = bytes_equal(refusal, BYTES_LITERAL("this is the node that you are"));

        if (!self)
            journal(JOURNAL_ERROR, "gossip-refused", "node at %s refuses us: %.*s",
                    link->address, (int)refusal.len, (const char *)refusal.data);
        pthread_mutex_lock(&link->control->links_lock);
        link->muted_until = clock_monotonic_ms() + REFUSAL_MUTE_MS;
        pthread_mutex_unlock(&link->control->links_lock);
        rpc_stream_cancel(stream);
        if (refusal.len > 13 && memcmp(refusal.data, "IDENTITY_LOST", 13) == 0 &&
            atomic_load(&node->founding) == NULL) {
            (void)fault_set(&fault, STATUS_PRECONDITION, "IDENTITY_LOST", "%.*s",
                            (int)refusal.len, (const char *)refusal.data);
            atomic_store(&node->exit_code, 3);
            node_fail(node, &fault);
        }
    }
    arena_release(&arena);
}

static void on_closed(void *user, struct rpc_stream *stream, int code, const char *message)
{
    struct gossip_link *link = user;

    (void)code;
    (void)message;
    pthread_mutex_lock(&link->control->links_lock);
    link->stream = NULL;
    pthread_mutex_unlock(&link->control->links_lock);
    rpc_stream_drop(stream);
}

static const struct rpc_stream_events events = {.message = on_message, .closed = on_closed};

/* With the lock held. */
static void dial(struct gossip_link *link)
{
    struct node *node = link->control->node;
    struct buffer frame = {0};
    struct hello hello;

    if (link->channel == NULL)
        link->channel = rpc_channel_new(node->loop, link->address, GRPC_MESSAGE_BYTES_MAX, access_peer_tls(node));
    link->stream =
        rpc_stream_open(link->channel, "/cairn.peer.v1.PeerService/Gossip", &events, link, 0);
    node_hello(node, &hello, 0);
    gossip_add_hello(&frame, &hello);
    rpc_stream_send(link->stream, buffer_bytes(&frame));
    buffer_release(&frame);
}

static void send_gossip(struct control *control, struct bytes address, struct bytes frame)
{
    struct gossip_link *link;
    uint64_t now = clock_monotonic_ms();

    if (address.len == 0 || address.len > ADDRESS_BYTES_MAX)
        return;
    pthread_mutex_lock(&control->links_lock);
    for (link = control->links; link != NULL; link = link->next)
        if (bytes_equal(bytes_of(link->address), address))
            break;
    if (link == NULL) {
        link = memory_zero(1, sizeof *link);
        link->control = control;
        memcpy(link->address, address.data, address.len);
        link->next = control->links;
        control->links = link;
    }
    if (now >= link->muted_until && !control->links_stopping) {
        if (link->stream == NULL)
            dial(link);
        link->last_used = now;
        if (rpc_stream_pending(link->stream) < 64)
            rpc_stream_send(link->stream, frame);
    }
    pthread_mutex_unlock(&control->links_lock);
}

/* `now` may lie before what this turn has used already: a difference would be huge, and cut off everybody who was
 * written to in a turn of more than a millisecond. */
static void close_idle(struct control *control, uint64_t now)
{
    struct gossip_link **at = &control->links;

    pthread_mutex_lock(&control->links_lock);
    while (*at != NULL) {
        struct gossip_link *link = *at;
        bool idle = link->last_used + IDLE_MS < now;

        if (idle && now >= link->muted_until && link->stream == NULL) {
            *at = link->next; /* addresses come and go: they must not pile up */
            rpc_channel_free(link->channel);
            free(link);
            continue;
        }
        if (link->stream != NULL && idle)
            rpc_stream_cancel(link->stream);
        at = &link->next;
    }
    pthread_mutex_unlock(&control->links_lock);
}

/* ---- effects of membership ---- */

static void effect_send(void *context, uint64_t node_id, struct bytes address,
                        const struct swim_message *message)
{
    struct buffer frame = {0};

    (void)node_id;
    gossip_add_swim(&frame, message);
    send_gossip(context, address, buffer_bytes(&frame));
    buffer_release(&frame);
}

static const char *const status_names[] = {"?", "alive", "suspect", "dead", "left"};

static void effect_changed(void *context, const struct member_state *member)
{
    struct control *control = context;
    struct node *node = control->node;

    control->changed = true;
    if (member->node_id == node->id)
        return;
    journal(member->status == MEMBER_DEAD ? JOURNAL_WARN : JOURNAL_INFO, "member-changed",
            "%.*s (%016llx) at %.*s is %s, incarnation %llu", (int)member->name.len,
            (const char *)member->name.data, (unsigned long long)member->node_id,
            (int)member->address.len, (const char *)member->address.data,
            status_names[member->status], (unsigned long long)member->incarnation);
    if (member->status == MEMBER_DEAD || member->status == MEMBER_LEFT)
        workers_peer_gone(node->workers, member->node_id);
}

/* ---- effects of founding ---- */

static void effect_persist(void *context, const struct founding *record)
{
    struct control *control = context;
    struct store *store = control->node->store;
    struct store_batch *batch = store_batch_new(store);
    struct store_key key = key_meta("founding");
    struct buffer packed = {0};
    struct fault fault;

    if (record == NULL) {
        store_batch_delete(batch, STORE_META, key_bytes(&key));
    } else {
        wire_founding_pack(&packed, record);
        store_batch_put(batch, STORE_META, key_bytes(&key), buffer_bytes(&packed));
    }
    if (store_write(store, batch, true, &fault) != STATUS_OK)
        node_fail(control->node, &fault);
    buffer_release(&packed);
    store_batch_free(batch);
}

static void effect_send_founding(void *context, uint64_t to, enum founding_message_type type,
                                 const struct founding *record)
{
    struct control *control = context;
    const struct member_state *member = swim_member(control->swim, to);
    struct buffer frame = {0};

    if (member == NULL)
        return;
    gossip_add_founding(&frame, type, record);
    send_gossip(control, member->address, buffer_bytes(&frame));
    buffer_release(&frame);
}

static void effect_founded(void *context, const struct founding *record)
{
    struct control *control = context;
    struct node *node = control->node;

    journal(JOURNAL_INFO, "cluster-joined",
            "cluster %.*s: %zu founders, %u partitions, replication factor %u",
            (int)record->cluster_id.len, (const char *)record->cluster_id.data,
            record->founder_count, record->partition_count, record->replication_factor);
    if (node->config.partitions != record->partition_count && node->config.partitions != PARTITIONS_DEFAULT)
        journal(JOURNAL_WARN, "setting-ignored",
                "partitions is %llu here, but this cluster was founded with %u, which is fixed for its life",
                (unsigned long long)node->config.partitions, record->partition_count);
    node->routes = routes_new(record);
    atomic_store(&node->founding, record);
    for (size_t i = 0; i < record->founder_count; i++)
        if (record->founders[i].node_id != node->id) {
            char address[ADDRESS_BYTES_MAX + 1];

            snprintf(address, sizeof address, "%.*s", (int)record->founders[i].address.len,
                     (const char *)record->founders[i].address.data);
            links_want(node->links, record->founders[i].node_id, address);
            if (control->swim != NULL)
                swim_join(control->swim, address);
        }
    if (control->swim != NULL)
        swim_set_founded(control->swim);
    for (size_t i = 0; i < node->shard_count; i++) {
        struct letter *letter = memory_zero(1, sizeof *letter);

        letter->kind = LETTER_START;
        shard_send(node->shards[i], letter);
    }
    control->changed = true;
}

/* ---- what others ask ---- */

/* Deep, into the arena. */
static struct member_state *copy_members(struct arena *arena, const struct member_state *members, size_t count)
{
    struct member_state *copies = arena_take(arena, count * sizeof *copies);

    for (size_t i = 0; i < count; i++) {
        struct bytes *handlers = arena_take(arena, members[i].handler_count * sizeof *handlers);

        copies[i] = members[i];
        copies[i].name = arena_copy(arena, members[i].name);
        copies[i].address = arena_copy(arena, members[i].address);
        copies[i].zone = arena_copy(arena, members[i].zone);
        copies[i].replaces = arena_copy(arena, members[i].replaces);
        for (size_t j = 0; j < members[i].handler_count; j++)
            handlers[j] = arena_copy(arena, members[i].handlers[j]);
        copies[i].handlers = handlers;
    }
    return copies;
}

const struct member_state *control_members(struct control *control, struct arena *arena, size_t *count)
{
    struct member_state *copies;

    pthread_mutex_lock(&control->lock);
    *count = control->published_count;
    copies = copy_members(arena, control->published, *count);
    pthread_mutex_unlock(&control->lock);
    return copies;
}

static void publish(struct control *control)
{
    const struct member_state *members;
    size_t count = swim_members(control->swim, &members);
    bool founded = atomic_load(&control->node->founding) != NULL;

    pthread_mutex_lock(&control->lock);
    arena_release(&control->published_arena);
    control->published = copy_members(&control->published_arena, members, count);
    control->published_count = count;
    control->version++;
    pthread_mutex_unlock(&control->lock);
    for (size_t i = 0; founded && i < count; i++)
        if (members[i].node_id != control->node->id && members[i].status == MEMBER_ALIVE) {
            char address[ADDRESS_BYTES_MAX + 1];

            snprintf(address, sizeof address, "%.*s", (int)members[i].address.len,
                     (const char *)members[i].address.data);
            links_want(control->node->links, members[i].node_id, address);
        }
}

/* What each member holds and owns. */
static void count_shares(struct topology *topology, struct topology_member *members)
{
    for (size_t p = 0; p < topology->partition_count; p++)
        for (size_t m = 0; m < topology->member_count; m++) {
            const struct owner_note *note = &topology->partitions[p];

            members[m].owned += note->owner == members[m].node_id;
            members[m].replicas += replica_set_holds(&note->voters, members[m].node_id);
        }
}

static void add_placement(struct topology *topology, struct topology_member *members,
                          const struct placement *placement)
{
    for (size_t m = 0; m < topology->member_count; m++)
        for (size_t i = 0; i < placement->member_count; i++)
            if (placement->members[i].node_id == members[m].node_id)
                members[m].placed = (int)placement->members[i].state;
    topology->targets = placement->sets;
    topology->replication_factor = placement->replication_factor;
    topology->placement_version = placement->version;
    topology->moves_at_once = placement->moves_at_once;
    topology->transfer_bytes = placement->transfer_bytes;
    topology->grace_ms = placement->grace_ms;
    topology->release = placement->release;
}

void control_look(struct control *control, struct arena *arena, struct topology *topology)
{
    struct node *node = control->node;
    const struct founding *founding = atomic_load(&node->founding);
    struct topology_member *members;
    struct placement placement;
    size_t count;
    const struct member_state *known = control_members(control, arena, &count);

    *topology = (struct topology){.node_id = node->id};
    members = arena_take(arena, count * sizeof *members);
    for (size_t i = 0; i < count; i++)
        members[i] = (struct topology_member){.node_id = known[i].node_id,
                                              .name = known[i].name,
                                              .address = known[i].address,
                                              .status = (int)known[i].status,
                                              .incarnation = known[i].incarnation,
                                              .handlers = known[i].handlers,
                                              .handler_count = known[i].handler_count,
                                              .zone = known[i].zone,
                                              .capacity = known[i].capacity};
    topology->members = members;
    topology->member_count = count;
    if (founding != NULL) {
        struct owner_note *partitions = arena_take(arena, founding->set_count * sizeof *partitions);

        for (uint32_t p = 0; p < founding->set_count; p++)
            routes_get(node->routes, p, &partitions[p]);
        topology->cluster_id = founding->cluster_id;
        topology->cluster_name = founding->cluster_name;
        topology->replication_factor = founding->replication_factor;
        topology->partitions = partitions;
        topology->partition_count = founding->partition_count;
        count_shares(topology, members);
        if (placements_get(node->placements, arena, &placement))
            add_placement(topology, members, &placement);
    }
}

void control_topology(struct control *control, struct buffer *out)
{
    struct arena arena = {0};
    struct topology topology;

    control_look(control, &arena, &topology);
    wire_topology_pack(out, &topology);
    arena_release(&arena);
}

uint64_t control_topology_version(struct control *control)
{
    uint64_t version;

    pthread_mutex_lock(&control->lock);
    version = control->version;
    pthread_mutex_unlock(&control->lock);
    if (atomic_load(&control->node->founding) != NULL)
        version += routes_version(control->node->routes) + placements_version(control->node->placements);
    return version;
}

uint64_t control_member_with_handler(struct control *control, struct bytes aggregate_type,
                                     uint64_t hint)
{
    uint64_t found = 0;

    pthread_mutex_lock(&control->lock);
    for (size_t i = 0; i < control->published_count; i++) {
        const struct member_state *m = &control->published[i];

        if (m->node_id == control->node->id || m->status != MEMBER_ALIVE)
            continue;
        for (size_t j = 0; j < m->handler_count; j++)
            if (bytes_equal(m->handlers[j], aggregate_type) &&
                (found == 0 || m->node_id == hint) && links_up(control->node->links, m->node_id))
                found = m->node_id;
    }
    pthread_mutex_unlock(&control->lock);
    return found;
}

enum member_status control_member_status(struct control *control, uint64_t node_id)
{
    enum member_status status = MEMBER_DEAD;

    pthread_mutex_lock(&control->lock);
    for (size_t i = 0; i < control->published_count; i++)
        if (control->published[i].node_id == node_id)
            status = control->published[i].status;
    pthread_mutex_unlock(&control->lock);
    return status;
}

bool control_member_answers(struct control *control, uint64_t node_id)
{
    return control_member_status(control, node_id) == MEMBER_ALIVE;
}

void control_member_counts(struct control *control, size_t counts[MEMBER_LEFT + 1])
{
    memset(counts, 0, (MEMBER_LEFT + 1) * sizeof *counts);
    pthread_mutex_lock(&control->lock);
    for (size_t i = 0; i < control->published_count; i++)
        counts[control->published[i].status]++;
    pthread_mutex_unlock(&control->lock);
}

bool control_member_address(struct control *control, uint64_t node_id, char *out, size_t room)
{
    bool found = false;

    pthread_mutex_lock(&control->lock);
    for (size_t i = 0; i < control->published_count; i++)
        if (control->published[i].node_id == node_id) {
            snprintf(out, room, "%.*s", (int)control->published[i].address.len,
                     (const char *)control->published[i].address.data);
            found = true;
        }
    pthread_mutex_unlock(&control->lock);
    return found;
}

/* ---- the thread ---- */

static void announce_handlers(struct control *control)
{
    char workers[HANDLER_TYPES_MAX][TYPE_BYTES_MAX + 1];
    struct bytes names[HANDLER_TYPES_MAX];
    size_t n = workers_types(control->node->workers, workers, HANDLER_TYPES_MAX);

    for (size_t i = 0; i < n; i++)
        names[i] = bytes_of(workers[i]);
    swim_set_handlers(control->swim, names, n);
}

static void take_letter(struct control *control, struct control_letter *letter)
{
    uint64_t now = clock_monotonic_ms();

    switch (letter->kind) {
    case CONTROL_GOSSIP:
        for (size_t i = 0; i < letter->frame.swim_count; i++)
            swim_receive(control->swim, &letter->frame.swim[i], now);
        if (letter->frame.founding_type != 0)
            founding_receive(control->founding, letter->node_id,
                             (enum founding_message_type)letter->frame.founding_type,
                             &letter->frame.founding, now);
        break;
    case CONTROL_LINK:
        swim_suspect_link(control->swim, letter->node_id, now);
        break;
    case CONTROL_HANDLERS:
        announce_handlers(control);
        break;
    case CONTROL_DISCOVERED:
        swim_discovered(control->swim, (const char (*)[ADDRESS_BYTES_MAX + 1])letter->addresses,
                        letter->address_count);
        break;
    case CONTROL_WAKE:
        break;
    case CONTROL_STOP:
        swim_leave(control->swim);
        control->stopping = true;
        break;
    }
    arena_release(&letter->arena);
    free(letter->addresses);
    free(letter);
}

/* How much room is left where the data lives. */
static void look_at_disk(struct node *node)
{
    struct statvfs disk;
    uint64_t before = atomic_load(&node->disk_free_bytes);
    uint64_t reserve = node->config.disk_reserve_bytes;

    if (statvfs(node->config.data_dir, &disk) != 0)
        return;
    atomic_store(&node->disk_free_bytes, (uint64_t)disk.f_bavail * disk.f_frsize + 1);
    if ((before == 0 || before >= reserve) && atomic_load(&node->disk_free_bytes) < reserve)
        journal(JOURNAL_WARN, "disk-full",
                "%s has %llu MiB left, less than --disk-reserve; commands are refused while this is so "
                "on most replicas",
                node->config.data_dir,
                (unsigned long long)(atomic_load(&node->disk_free_bytes) >> 20));
}

static void tell_refused_connections(struct control *control)
{
    uint64_t refused = rpc_connections_refused();
    uint64_t before = atomic_exchange(&control->node->metrics.connections_refused, refused);

    if (refused != before)
        journal(JOURNAL_WARN, "connections-refused",
                "%llu connections were let go in the last second: more than --connections, or than "
                "--connections-per-address of their address, were open, or too many files",
                (unsigned long long)(refused - before));
}

/* Once a second, and when the operator says so. */
static void look_around(struct control *control, uint64_t now)
{
    if (now < control->next_look && !atomic_exchange(&control->node->reload, false))
        return;
    control->next_look = now + 1000;
    access_tick(control->node);
    subjects_tick(control->node);
    look_at_disk(control->node);
    tell_refused_connections(control);
}

/* For the service manager: the process isn't stuck, and what it is at. */
static void tell_manager(struct control *control, uint64_t now)
{
    uint64_t interval_us = 0;
    const char *state = atomic_load(&control->node->founding) == NULL ? "STATUS=looking for the cluster"
                        : node_is_serving(control->node)                ? "STATUS=serving"
                                                                        : "STATUS=waiting for owners";

    if (now < control->next_notify)
        return;
    (void)sd_notify(0, state);
    control->next_notify = now + 5000;
    if (sd_watchdog_enabled(0, &interval_us) > 0) {
        (void)sd_notify(0, "WATCHDOG=1");
        control->next_notify = now + (interval_us / 3000 < 5000 ? interval_us / 3000 : 5000);
    }
}

static void *run(void *context)
{
    struct control *control = context;
    struct node *node = control->node;

    while (!control->stopping) {
        struct mail *mail = mailbox_receive(
            &control->box, atomic_load(&node->founding) == NULL ? TICK_MS : TICK_FOUNDED_MS);
        const struct member_state *members;
        uint64_t now = clock_monotonic_ms();
        size_t count;

        while (mail != NULL) {
            struct mail *next = mail->next;

            take_letter(control, CONTAINER_OF(mail, struct control_letter, mail));
            mail = next;
        }
        if (now >= swim_deadline(control->swim))
            swim_tick(control->swim, now);
        count = swim_members(control->swim, &members);
        founding_tick(control->founding, members, count, now);
        if (control->changed) {
            control->changed = false;
            publish(control);
        }
        links_tick(node->links, now);
        range_fetches_tick(node->range_fetches, now);
        orders_tick(node->orders, now);
        console_tick(node->console, now);
        look_around(control, now);
        tell_manager(control, now);
        workers_tick(node->workers, now);
        dispatch_hear_again(node);
        close_idle(control, now);
    }
    return NULL;
}

static struct control_letter *new_letter(enum control_letter_kind kind)
{
    struct control_letter *letter = memory_zero(1, sizeof *letter);

    letter->kind = kind;
    return letter;
}

void control_gossip_received(struct control *control, struct arena *arena,
                             const struct gossip_frame *frame)
{
    struct control_letter *letter = new_letter(CONTROL_GOSSIP);

    letter->arena = *arena;
    letter->frame = *frame;
    letter->node_id = frame->hello.node_id;
    *arena = (struct arena){0};
    mailbox_send(&control->box, &letter->mail);
}

void control_link_broken(struct control *control, uint64_t node_id)
{
    struct control_letter *letter = new_letter(CONTROL_LINK);

    letter->node_id = node_id;
    mailbox_send(&control->box, &letter->mail);
}

void control_handlers_changed(struct control *control)
{
    mailbox_send(&control->box, &new_letter(CONTROL_HANDLERS)->mail);
}

void control_discovered(struct control *control, char (*addresses)[ADDRESS_BYTES_MAX + 1], size_t count)
{
    struct control_letter *letter = new_letter(CONTROL_DISCOVERED);

    letter->addresses = addresses;
    letter->address_count = count;
    mailbox_send(&control->box, &letter->mail);
}

void control_wake(struct control *control)
{
    mailbox_send(&control->box, &new_letter(CONTROL_WAKE)->mail);
}

struct control *control_new(struct node *node, const struct founding *stored)
{
    struct control *control = memory_zero(1, sizeof *control);
    struct swim_settings swim = {
        .node_id = node->id,
        .name = node->config.name,
        .address = node->advertise,
        .seed = random_u64(),
        .zone = node->config.zone,
        .replaces = node->config.replace,
        .capacity = (uint32_t)node->config.capacity,
        .unfounded = stored == NULL || !stored->complete,
    };
    struct swim_effects swim_effects = {control, effect_send, effect_changed};
    struct founding_settings founding = {
        .node_id = node->id,
        .expect = (uint32_t)node->config.bootstrap_expect,
        .cluster_name = bytes_of(node->config.cluster_name),
        .partition_count = (uint32_t)node->config.partitions,
        .replication_factor = (uint32_t)node->config.replication_factor,
        .seed = random_u64(),
    };
    struct founding_effects founding_effects = {control, effect_persist, effect_send_founding,
                                                effect_founded};

    control->node = node;
    node->control = control;
    pthread_mutex_init(&control->links_lock, NULL);
    pthread_mutex_init(&control->lock, NULL);
    if (mailbox_init(&control->box) != STATUS_OK)
        abort(); /* no descriptor at start-up: nothing can work */
    swim_settings_lan(&swim);
    control->swim = swim_new(&swim, &swim_effects, clock_monotonic_ms());
    for (size_t i = 0; i < node->config.join_count; i++)
        swim_join(control->swim, node->config.join[i]);
    for (size_t i = 0; i < node->config.discover_count; i++)
        if (strncmp(node->config.discover[i], "static:", 7) == 0)
            swim_join(control->swim, node->config.discover[i] + 7);
        else if (strncmp(node->config.discover[i], "dns:", 4) != 0 &&
                 strncmp(node->config.discover[i], "multicast", 9) != 0)
            swim_join(control->swim, node->config.discover[i]);
    publish(control);
    control->founding =
        founding_new(&founding, &founding_effects, stored, clock_monotonic_ms());
    if (pthread_create(&control->thread, NULL, run, control) != 0)
        abort(); /* no thread at start-up: nothing can work */
    pthread_setname_np(control->thread, "control");
    return control;
}

void control_stop(struct control *control)
{
    mailbox_send(&control->box, &new_letter(CONTROL_STOP)->mail);
    pthread_join(control->thread, NULL);
    pthread_mutex_lock(&control->links_lock);
    control->links_stopping = true;
    for (struct gossip_link *link = control->links; link != NULL; link = link->next)
        if (link->stream != NULL)
            rpc_stream_finish(link->stream, 0, NULL, BYTES_NONE);
    pthread_mutex_unlock(&control->links_lock);
}

/* Cancel what is left; true once no stream is. */
bool control_streams_gone(struct control *control, bool cancel)
{
    bool gone = true;

    pthread_mutex_lock(&control->links_lock);
    for (struct gossip_link *link = control->links; link != NULL; link = link->next) {
        if (link->stream != NULL && cancel)
            rpc_stream_cancel(link->stream);
        gone = gone && link->stream == NULL;
    }
    pthread_mutex_unlock(&control->links_lock);
    return gone;
}

void control_free(struct control *control)
{
    struct mail *mail;

    if (control == NULL)
        return;
    mail = mailbox_receive(&control->box, 0);
    while (mail != NULL) {
        struct mail *next = mail->next;

        arena_release(&CONTAINER_OF(mail, struct control_letter, mail)->arena);
        free(CONTAINER_OF(mail, struct control_letter, mail)->addresses);
        free(CONTAINER_OF(mail, struct control_letter, mail));
        mail = next;
    }
    while (control->links != NULL) {
        struct gossip_link *next = control->links->next;

        rpc_channel_free(control->links->channel);
        free(control->links);
        control->links = next;
    }
    swim_free(control->swim);
    founding_free(control->founding);
    arena_release(&control->published_arena);
    mailbox_release(&control->box);
    pthread_mutex_destroy(&control->links_lock);
    pthread_mutex_destroy(&control->lock);
    free(control);
}

/*
 * One running node: what its threads share, and the letters that they send each other.
 *
 *   poller (gRPC) ──letters──▶ shard (engine) ──batches──▶ storage
 *        ▲                        │   ▲                       │
 *        └── answers, frames ─────┘   └───── tickets ─────────┘
 *   control (membership, founding, links) ──letters──▶ shard
 *
 * Set up by main.c before any thread runs, and constant afterwards but for what says otherwise.
 */
#ifndef CAIRN_SERVER_NODE_H
#define CAIRN_SERVER_NODE_H

#include <pthread.h>
#include <uthash.h>

#include "base/base.h"
#include "cluster/cluster.h"
#include "config.h"
#include "engine/engine.h"
#include "metrics.h"
#include "rpc/rpc.h"
#include "store/store.h"
#include "wire/wire.h"

struct shard;
struct storage;
struct links;
struct control;
struct workers;
struct modules;
struct routes;
struct placements;
struct orders;
struct discovery;
struct console;
struct range_fetches;
struct range_sends;
struct access;
struct audit;
struct read_relays;
struct through_streams;
struct feeder;
struct local_bus;

struct node {
    struct config config;
    uint64_t id;
    struct store *store;
    /* One poller for everything, on connections of their own: gRPC's pollers share one epoll set and
     * would hand each other their events (measured: a third more latency at one command in flight). */
    struct rpc_loop *loop;
    struct rpc_server *server;
    struct storage *storage;
    struct shard **shards;
    size_t shard_count;
    struct links *links;
    struct control *control;
    struct workers *workers;
    struct modules *modules;
    struct routes *routes;
    struct placements *placements;
    struct orders *orders;
    struct console *console;
    struct discovery *discovery; /* NULL: none is wanted */
    struct range_fetches *range_fetches;
    struct range_sends *range_sends;
    struct access *access; /* NULL without TLS */
    struct subjects *subjects;
    struct audit *audit;   /* NULL without an audit log */
    struct read_relays *read_relays;
    struct through_streams *through_streams;
    struct feeder *feeder;
    struct local_bus *local_bus;
    struct metrics metrics;
    _Atomic(const struct founding *) founding; /* set once, when the cluster is known */
    atomic_int commands;                       /* inside this node now */
    pthread_mutex_t limited_lock;
    struct dispatch_session *limited; /* see dispatch_hear_again() */
    atomic_ullong disk_free_bytes;             /* looked at once a second; 0 for not yet */
    atomic_bool draining;
    atomic_bool reload; /* SIGHUP: look at the files now */
    atomic_bool failed; /* the node must stop, with this exit code */
    atomic_int exit_code;
    atomic_uint store_release; /* of the form that the store has */
    char advertise[ADDRESS_BYTES_MAX + 1];
};

/* Number of data partitions; the cluster must be founded. */
uint32_t node_partition_count(const struct node *node);
uint32_t node_partition_of(const struct node *node, struct bytes aggregate_id);
struct shard *node_shard_of(const struct node *node, uint32_t partition);
/* All members have this release: the store takes its form, and older releases don't open it any more. */
void node_release_raised(struct node *node, uint32_t release);
/* Something that can't be survived happened: say it and begin to stop. Any thread. */
void node_fail(struct node *node, const struct fault *fault);

/* ---- letters to a shard ---- */

enum letter_kind {
    LETTER_REQUEST,         /* struct request */
    LETTER_READ,            /* struct reading: start */
    LETTER_READ_ON,         /* struct reading: its stream has room again */
    LETTER_AWAIT,           /* struct awaiting: of anybody who isn't the shard */
    LETTER_APPEND,          /* struct append_letter */
    LETTER_FRAME,           /* struct frame_letter */
    LETTER_WRITTEN,         /* struct written_letter */
    LETTER_EXECUTED,        /* struct executed_letter */
    LETTER_PROCESSED,       /* struct processed_letter */
    LETTER_WORKERS_CHANGED, /* struct letter */
    LETTER_LINK,            /* struct link_letter */
    LETTER_START,           /* struct letter: the cluster is founded */
    LETTER_INSTALLED,       /* struct installed_letter */
    LETTER_DAMAGED,         /* struct damaged_letter */
    LETTER_SEND,            /* struct send_letter: something for a peer's next frame */
    LETTER_VAULT,           /* struct letter: other master keys */
    LETTER_PLACED,          /* struct letter: another shard learned a newer placement */
    LETTER_ORDER,           /* struct order_letter */
    LETTER_TRANSFER,        /* struct letter: hand all ownerships over */
    LETTER_STOP,            /* struct letter */
};

struct letter {
    struct mail mail;
    enum letter_kind kind;
};

enum { REQUEST_ROOM_BYTES = 2048 };

/* A command inside this node, and who waits for its answer: a call, a stream, or (neither) a peer. */
struct request {
    struct letter letter;
    struct routed routed;
    uint64_t started_us;
    /* Sends the answer to a client; called once, from the shard. */
    void (*finish)(struct request *request, const struct outcome *outcome,
                   const struct fault *fault);
    struct node *node;
    struct rpc_call *call;
    struct dispatch_session *session;
    void *caller; /* of the call or stream; borrowed until the request is started */
    void *user;    /* of whoever isn't a client's call or stream */
    bool fixed_partition; /* not that of the aggregate's id */
    void *counted; /* of a command in a stream: see access_command_begins() */
    ARENA_ROOM(room, REQUEST_ROOM_BYTES); /* of the arena of `routed`: most commands need no more */
};

/* Somebody who waits until a replica here has what a linearizable read must see. */
struct awaiting {
    struct letter letter;
    struct awaited_read read;
    /* From the shard's thread, once for each engine_await(). */
    void (*ready)(struct awaiting *awaiting, const struct fault *fault);
};

/* One ReadAggregate. */
struct reading {
    struct letter letter;  /* to start */
    struct letter more;    /* to go on */
    atomic_bool more_sent;
    atomic_bool closed; /* the client is gone */
    struct rpc_stream *stream;
    struct arena arena;
    struct read_request request;
    struct bytes packed; /* the request as it came */
    uint32_t partition;
    uint64_t deadline_ms;
    enum {
        READING_NEW,     /* to be relayed */
        READING_AWAITED, /* the engine's */
        READING_FLOWS,
        READING_RELAYED, /* read_relay.c's, while `relaying` */
        READING_DONE
    } state;
    struct shard *shard;
    struct awaiting awaited;
    atomic_bool relaying;
    atomic_bool relay_any;  /* a page came */
    atomic_bool relay_left; /* the source doesn't answer any more, but another might */
    uint64_t last_target;
    bool relay_again;                    /* the source broke before its first page */
    _Atomic(struct rpc_stream *) source; /* held until the reading goes */
    bool any;
    bool started; /* `next` is known */
    uint64_t next;
    uint64_t left;
    struct reading *next_reading;
};

/* A decoded frame of a peer. Shared by the shards that it concerns. */
struct shared_frame {
    atomic_int references;
    struct arena arena;
    struct frame frame;
    uint64_t from;
};
void shared_frame_drop(struct shared_frame *shared);

struct frame_letter {
    struct letter letter;
    struct shared_frame *shared;
};

struct written_letter {
    struct letter letter;
    uint64_t ticket;
};

struct executed_letter {
    struct letter letter;
    uint32_t partition;
    uint64_t execution_id;
    uint64_t worker;
    bool died;
    struct arena arena;
    struct execution_result result;
};

/* Subscribing processors are done with what was published. */
struct processed_letter {
    struct letter letter;
    uint32_t partition;
    uint64_t ticket;
    struct arena arena;
    const struct processing_failure *failures;
    size_t failure_count;
};

struct link_letter {
    struct letter letter;
    uint64_t node_id;
    bool up;
};

struct installed_letter {
    struct letter letter;
    uint32_t partition;
    bool stopped; /* no range, and none will come */
    struct applied applied;
};

struct damaged_letter {
    struct letter letter;
    uint32_t partition;
    struct fault fault;
};

/* A payload for a partition's log that nobody waits for; lost when this node doesn't own it. */
struct append_letter {
    struct letter letter;
    uint32_t partition;
    struct blob *payload;
};

/* An order for the placement; orders_decided() is called once. */
struct order_letter {
    struct letter letter;
    struct order_job *job;
};

/* Part of a frame, ready to be added. */
struct send_letter {
    struct letter letter;
    uint64_t to;
    struct buffer part;
};

/* ---- storage.c ---- */

struct storage *storage_new(struct node *node);
/* The batch is the storage's until it comes back with storage_recycle(). */
void storage_write(struct storage *storage, struct shard *shard, struct store_batch *batch,
                   uint64_t ticket);
/* The same for somebody who isn't a shard: `done` is called from the storage thread when the batch is on
 * disk, or won't be because the node fails. */
void storage_write_for(struct storage *storage, struct store_batch *batch,
                       void (*done)(void *context, bool written), void *context);
/* The same past the log: lasting once storage_flush() of its families is done. */
void storage_write_bulk(struct storage *storage, struct store_batch *batch,
                        void (*done)(void *context, bool written), void *context);
/* Behind what was sent to be written: nothing that it deleted of the partition's keys and log stays on the disk. */
void storage_forget(struct storage *storage, uint32_t partition);
/* `families` has a bit for each. `done` is called from the flush thread. */
void storage_flush(struct storage *storage, uint32_t families, void (*done)(void *context, bool written),
                   void *context);
struct store_batch *storage_take_batch(struct storage *storage);
void storage_free(struct storage *storage); /* after the shards have stopped */

/* ---- shard.c ---- */

struct shard *shard_new(struct node *node, size_t index);
void shard_send(struct shard *shard, struct letter *letter);
void shard_stop(struct shard *shard);
/* Answer what came after the stop. */
void shard_drop_letters(struct shard *shard);
void shard_free(struct shard *shard);
/* Numbers for metrics; any thread. */
struct shard_view {
    atomic_size_t owned;
    atomic_size_t movable; /* led by this node, and others could */
    atomic_size_t waiting, in_flight, executing, processing, cached, requests, replicas, lagging;
    atomic_size_t leading, uncommitted, unstored; /* of Raft: entries in the log */
    atomic_size_t highest_term;
};
const struct shard_view *shard_view(const struct shard *shard);

/* ---- request.c ---- */

/* Decode, check and send to its shard; on a fault nothing was sent and the request is freed. */
MUST_USE enum status request_start(struct request *request, struct bytes packed,
                                   enum command_kind kind, uint64_t deadline_ms,
                                   struct fault *fault);
struct request *request_new(struct node *node);
/* The answer, to who asked: once. From the shard. */
void request_answer(struct request *request, const struct outcome *outcome, const struct fault *fault);
void request_free(struct request *request);

/* ---- routes.c: who owns what, as this node knows it; any thread ---- */

struct routes *routes_new(const struct founding *founding);
void routes_free(struct routes *routes);
/* By the shard of the partition, whose engine knows what is newest; owner 0 when nobody owns it. True: another owner. */
bool routes_set(struct routes *routes, const struct owner_note *note);
/* Who holds it is known from the founding on. */
void routes_get(struct routes *routes, uint32_t partition, struct owner_note *note);
/* Whether readers may use this node's replica. */
void routes_hold(struct routes *routes, uint32_t partition, bool held);
bool routes_holds(struct routes *routes, uint32_t partition);
uint64_t routes_owner(struct routes *routes, uint32_t partition, uint64_t *epoch);
uint64_t routes_version(struct routes *routes);

/* ---- placements.c: any thread ---- */

struct placements *placements_new(void);
void placements_free(struct placements *placements);
/* False when a newer one was known. */
bool placements_set(struct placements *placements, const struct placement *placement);
/* A copy; false before the first. */
bool placements_get(struct placements *placements, struct arena *arena, struct placement *placement);
uint64_t placements_version(struct placements *placements);
bool placements_draining(struct placements *placements, uint64_t node_id);
/* What this node may take of ranges in a second; 0 for no limit. */
uint64_t placements_transfer_bytes(struct placements *placements);
/* May this peer talk to us? NULL, or what to tell it. */
const char *node_refusal(struct node *node, const struct hello *hello, char *text, size_t room);

/* ---- console.c ---- */

struct console *console_new(struct node *node);
void console_free(struct console *console);
void console_tick(struct console *console, uint64_t now_ms); /* control thread */
void console_json(struct console *console, struct buffer *out); /* any thread */
extern const uint8_t cairn_console_page[];
extern const size_t cairn_console_page_len;

/* ---- discovery.c ---- */

/* *out is NULL when the settings want none. */
MUST_USE enum status discovery_new(struct discovery **out, struct node *node, struct fault *fault);
void discovery_free(struct discovery *discovery); /* while the control thread runs */

/* ---- orders.c ---- */

struct orders *orders_new(struct node *node);
void orders_free(struct orders *orders);
/* On the way down, while the shards still run: true once none is left. */
bool orders_gone(struct orders *orders);
void orders_tick(struct orders *orders, uint64_t now_ms); /* control thread */
const struct placement_order *orders_order(const struct order_job *job);
/* From the shard: it is decided, in force with that version, or refused. */
void orders_decided(struct order_job *job, uint64_t version, const struct fault *fault);
/* A peer's. */
void orders_operate(struct node *node, struct rpc_stream *stream, uint32_t kind, struct bytes request);
void drain_node_call(void *context, struct rpc_call *call, struct bytes request);
void remove_node_call(void *context, struct rpc_call *call, struct bytes request);
void transfer_ownership_call(void *context, struct rpc_call *call, struct bytes request);
void update_settings_call(void *context, struct rpc_call *call, struct bytes request);

/* ---- links.c: data links to peers ---- */

struct links *links_new(struct node *node);
void links_free(struct links *links);
/* On the way down: cancel all streams, then wait until none is left. */
void links_cancel(struct links *links);
bool links_idle(struct links *links);
/* Keep a link to this member. Control thread. */
void links_want(struct links *links, uint64_t node_id, const char *address);
void links_tick(struct links *links, uint64_t now_ms);
/* A frame for a peer; dropped when there is no link or its queue is full. Any thread. */
void links_send(struct links *links, uint64_t node_id, struct bytes frame);
bool links_up(struct links *links, uint64_t node_id);
/* Of the cluster that it belongs to, or wants to. */
struct bytes node_cluster_name(const struct node *node);
void node_hello(const struct node *node, struct hello *hello, uint64_t target);

/* ---- control.c ---- */

struct control *control_new(struct node *node, const struct founding *stored);
void control_stop(struct control *control);
void control_free(struct control *control);
/* On the way down: true once no gossip stream is left. */
bool control_streams_gone(struct control *control, bool cancel);
void control_gossip_received(struct control *control, struct arena *arena,
                             const struct gossip_frame *frame);
void control_link_broken(struct control *control, uint64_t node_id);
void control_handlers_changed(struct control *control);
/* What discovery found now. Takes the addresses. */
void control_discovered(struct control *control, char (*addresses)[ADDRESS_BYTES_MAX + 1], size_t count);
void control_wake(struct control *control); /* look after everything now */
/* The cluster as this node knows it, in the arena. Any thread. */
void control_look(struct control *control, struct arena *arena, struct topology *topology);
/* A packed GetTopologyResponse. Any thread. */
void control_topology(struct control *control, struct buffer *out);
uint64_t control_topology_version(struct control *control);
/* A live member that handles the type, other than this node; 0 for none. Any thread. */
uint64_t control_member_with_handler(struct control *control, struct bytes aggregate_type,
                                     uint64_t hint);
/* MEMBER_DEAD when it is unknown. Any thread. */
enum member_status control_member_status(struct control *control, uint64_t node_id);
/* It answers, as far as the members know. Any thread. */
bool control_member_answers(struct control *control, uint64_t node_id);
/* How many members have each status. Any thread. */
void control_member_counts(struct control *control, size_t counts[MEMBER_LEFT + 1]);
/* All members, in the arena. Any thread. */
const struct member_state *control_members(struct control *control, struct arena *arena, size_t *count);
/* False when the member is unknown. Any thread. */
bool control_member_address(struct control *control, uint64_t node_id, char *out, size_t room);

/* ---- modules.c ---- */

MUST_USE enum status modules_load(struct modules **out, const struct config *config,
                                  struct fault *fault);
void modules_free(struct modules *modules);
const struct cairn_aggregate_type *modules_type(const struct modules *modules, struct bytes name);
/* The processor of that number; NULL behind the last. */
const struct cairn_processor *modules_processor(const struct modules *modules, size_t number);

/* ---- workers.c ---- */

struct workers *workers_new(struct node *node);
void workers_free(struct workers *workers);
enum status workers_pick(struct workers *workers, const struct command *command, uint64_t hint,
                         uint64_t *worker, struct fault *fault);
void workers_execute(struct workers *workers, struct shard *shard, uint32_t partition,
                     uint64_t worker, uint64_t execution_id, struct bytes packed,
                     uint64_t deadline_ms);
/* For a peer whose worker is here. */
void workers_execute_for(struct workers *workers, uint64_t peer, const struct remote_execute *in);
void workers_result_from(struct workers *workers, uint64_t peer,
                         const struct remote_execute *result);
void workers_peer_gone(struct workers *workers, uint64_t peer);
size_t workers_types(struct workers *workers, char out[][TYPE_BYTES_MAX + 1], size_t room);
size_t workers_count(struct workers *workers);
void workers_tick(struct workers *workers, uint64_t now_ms);

/* ---- range_send.c: the key range of a partition, for a peer that fell behind ---- */

struct range_sends *range_sends_new(struct node *node);
void range_sends_stop(struct range_sends *sends); /* its thread, when no call is left */
void range_sends_free(struct range_sends *sends); /* after the loop is gone */

/* ---- peer_service.c ---- */

void peer_malformed(struct node *node, uint64_t from, struct rpc_stream *stream, const struct fault *fault);

/* ---- range_fetch.c: the key range of a partition that fell behind ---- */

struct range_fetches *range_fetches_new(struct node *node);
/* On the way down: cancel; true once no stream is left. */
bool range_fetches_gone(struct range_fetches *fetches);
void range_fetches_free(struct range_fetches *fetches);
void range_fetch_start(struct node *node, uint32_t partition, uint64_t leader, uint64_t index,
                       uint64_t term);
/* An installed_letter comes when the last page is written. */
void range_fetch_stop(struct node *node, uint32_t partition);
void range_fetches_tick(struct range_fetches *fetches, uint64_t now_ms); /* control thread */

/* ---- read_relay.c: reads of partitions that have no replica here ---- */

struct read_relays *read_relays_new(struct node *node);
/* False when the target can't be asked. */
bool read_relay_start(struct node *node, struct reading *reading, uint64_t target);
void read_relay_drained(struct reading *reading); /* poller thread */
void read_relay_cancel(struct reading *reading);  /* any thread that has the reading */
/* Its source doesn't answer: another, or UNAVAILABLE when something came. The shard. */
void read_relay_leave(struct reading *reading);
/* On the way down: cancel; true once none is left. */
bool read_relays_gone(struct read_relays *relays);
void read_relays_free(struct read_relays *relays);

/* ---- feeder.c: subscriptions ---- */

struct feeder *feeder_new(struct node *node);
/* More of the partition can be read here. Any thread. */
void feeder_notify(struct feeder *feeder, uint32_t partition);
/* A replica of this node may not be read any more: who reads it goes on elsewhere. Any thread. */
void feeder_moved(struct feeder *feeder);
size_t feeder_count(const struct feeder *feeder);
/* On the way down: ends all; true once no stream to a peer is left. */
bool feeder_gone(struct feeder *feeder);
/* Lines for /metrics, by group and partition; any thread. */
void feeder_group_metrics(struct feeder *feeder, struct buffer *out);
void feeder_free(struct feeder *feeder); /* after the loop is gone */

/* ---- process_service.c: members of processor groups that other nodes coordinate ---- */

struct through_streams *through_streams_new(void);
/* Another node owns the partition: the groups whose home it is are coordinated there. Any thread. */
void through_streams_moved(struct through_streams *all, uint32_t partition);
void through_streams_free(struct through_streams *all); /* after the loop is gone */

/* ---- local_bus.c: subscribing processors ---- */

struct local_bus *local_bus_new(struct node *node);
void local_bus_begin(struct local_bus *bus); /* the cluster is founded: modules' processors start */
/* From a shard: the events of a command that it handled. False: nobody listens. */
bool local_bus_publish(struct local_bus *bus, struct shard *shard, uint32_t partition, uint64_t ticket,
                       const struct command_record *record);
void local_bus_forget(struct local_bus *bus, struct shard *shard, uint32_t partition, uint64_t ticket);
void local_bus_end(struct local_bus *bus);  /* on the way down: members are dismissed */
void local_bus_stop(struct local_bus *bus); /* after the loop is gone; letters to shards may come from it */
void local_bus_free(struct local_bus *bus);

/* ---- services: their methods, for main.c ---- */

/* ---- subjects.c ---- */

MUST_USE enum status subjects_new(struct node *node, struct fault *fault);
void subjects_free(struct node *node); /* after all threads */
void subjects_tick(struct node *node); /* once a second; control thread */
const struct vault *subjects_vault(const struct node *node); /* NULL without master keys; lives as long as the node */
/* A message of events, as SubscribeResponse has them: what is sealed in it becomes what it was. Any thread. */
MUST_USE enum status subjects_reveal(struct node *node, struct buffer *message, struct fault *fault);
void forget_subject_call(void *context, struct rpc_call *call, struct bytes request);

extern const struct rpc_stream_events dispatch_stream_events;
/* Those whose commands were refused for now; from the control thread, again and again. */
void dispatch_hear_again(struct node *node);
extern const struct rpc_stream_events handle_commands_events;
extern const struct rpc_stream_events read_aggregate_events;
extern const struct rpc_stream_events subscribe_events;
extern const struct rpc_stream_events read_snapshot_events;
extern const struct rpc_stream_events read_all_events;
extern const struct rpc_stream_events list_aggregates_events;
extern const struct rpc_stream_events count_events_events;
extern const struct rpc_stream_events process_events;
void get_group_call(void *context, struct rpc_call *call, struct bytes request);
void retry_parked_call(void *context, struct rpc_call *call, struct bytes request);
void reset_group_call(void *context, struct rpc_call *call, struct bytes request);
extern const struct rpc_stream_events watch_topology_events;
extern const struct rpc_stream_events health_watch_events;
extern const struct rpc_stream_events reflection_events;
extern const struct rpc_stream_events peer_link_events;
extern const struct rpc_stream_events peer_gossip_events;
extern const struct rpc_stream_events peer_range_events;
extern const struct rpc_stream_events peer_operate_events;
void dispatch_call(void *context, struct rpc_call *call, struct bytes request);
void write_snapshot_call(void *context, struct rpc_call *call, struct bytes request);
void delete_snapshot_call(void *context, struct rpc_call *call, struct bytes request);
void append_call(void *context, struct rpc_call *call, struct bytes request);
void get_topology_call(void *context, struct rpc_call *call, struct bytes request);
void health_check_call(void *context, struct rpc_call *call, struct bytes request);
bool node_is_serving(struct node *node);
void watchers_start(void);
void watchers_stop(void);

/* ---- http.c ---- */

struct http;
MUST_USE enum status http_new(struct http **out, struct node *node, struct fault *fault);
void http_free(struct http *http);

#endif

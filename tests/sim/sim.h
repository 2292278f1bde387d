/*
 * A whole cluster in one thread: the engine and the membership that cairnd runs, over a network, disks
 * and clocks that obey one seed. The same seed gives the same run to the byte.
 *
 *   faults ─┐
 *   clients ├─▶ world (time) ──▶ node ──▶ engine, swim ──▶ network, disk ──▶ world
 *   workers ┘                                    │
 *                                                └──▶ oracle: the promises, by number
 */
#ifndef CAIRN_SIM_H
#define CAIRN_SIM_H

#include "base/base.h"
#include "cluster/cluster.h"
#include "engine/engine.h"
#include "store/store.h"
#include "wire/wire.h"

/* large.c is built with others. */
#ifndef SIM_NODES
#define SIM_NODES 9
#define SIM_PARTITIONS 3
#endif

enum {
    NODES_MAX = SIM_NODES,
    PARTITIONS = SIM_PARTITIONS,
    AGGREGATES = 9,
    CLIENTS = 6,
    OPS_MAX = 4096,
    FAULTS_MAX = 48,
    WORKERS = 2,
    SUBSCRIBERS = 2,
    SUBJECTS = 3,
    GRID_MS = 25, /* as the daemon's shard */
};

/* ---- chance ---- */

struct rng {
    uint64_t state;
};
uint64_t rng_next(struct rng *rng); /* splitmix64 */
uint64_t rng_below(struct rng *rng, uint64_t n);
bool rng_chance(struct rng *rng, unsigned per_mille);

/* ---- faults ---- */

enum fault_kind {
    FAULT_CRASH,      /* kill -9, restart after `length` */
    FAULT_POWER,      /* all at once */
    FAULT_PAUSE,      /* SIGSTOP */
    FAULT_CUT,        /* one node from all others, both ways */
    FAULT_ONE_WAY,    /* from one node to another */
    FAULT_LOSS,       /* per mille of all packets: `amount` */
    FAULT_DUPLICATES, /* the same */
    FAULT_DELAY,      /* up to `amount` ms more, so that packets overtake each other */
    FAULT_SLOW_DISK,  /* writes take up to `amount` ms */
    FAULT_BAD_DISK,   /* the next write fails: the node stops, and starts again after `length` */
    FAULT_LOST_DISK,  /* the node never comes back; a minority only */
    FAULT_CLOCK_JUMP, /* the wall clock, either way; the monotonic one forwards */
    FAULT_WORKERS,    /* they die, hang, answer late and twice */
    FAULT_TRANSFER,   /* hand a partition over, as a drain does */
    FAULT_RESET,      /* what is under way between two nodes is lost */
    FAULT_DRAIN,      /* hand all over, then stop; restart */
    FAULT_FULL_DISK,  /* of one node or of all: below the reserve */
    FAULT_BIT_ROT,    /* one bit of one record at rest; all of a run on one node */
    FAULT_JOIN,       /* a new node */
    FAULT_REPLACE,    /* a node's disk is lost for ever, and a new node takes its place */
    FAULT_LEAVE,      /* a node is drained for good, removed and stopped */
    FAULT_MASTER_KEY, /* all nodes get another first master key, which is no fault */
    FAULT_KINDS
};
extern const char *const fault_names[FAULT_KINDS];

struct planned_fault {
    enum fault_kind kind;
    uint64_t at_ms;
    uint64_t length_ms;
    uint64_t amount;
    int node;
    int other;
    bool skipped; /* by --minimize */
};

/* ---- world ---- */

enum event_kind {
    EVENT_TICK,
    EVENT_PACKET,
    EVENT_WRITTEN,
    EVENT_EXECUTED,
    EVENT_RANGE,
    EVENT_RESTART,
    EVENT_CLIENT,  /* a client's next step */
    EVENT_SUBSCRIBER,
    EVENT_GROUP,   /* a member of the group does something */
    EVENT_PROCESSED, /* a subscribing processor says something */
    EVENT_DONE,      /* the node's bus is done with a publication */
    EVENT_REQUEST, /* a client's request reaches a node */
    EVENT_ANSWER,  /* a node's answer reaches a client */
    EVENT_FAULT,
    EVENT_FAULT_ENDS,
    EVENT_LEAVING, /* a node that is drained for good */
    EVENT_FORGOT,  /* a disk has none of what was destroyed any more */
};

struct happening {
    uint64_t at_us;
    uint64_t order;
    enum event_kind kind;
    int node;      /* -1 for none */
    uint32_t life; /* of the node; 0 for any */
    uint64_t number;
    void *what; /* malloc'd or NULL; whoever handles the event frees it */
};

struct world;
struct node;

/* A store write on its way to the disk. */
struct write {
    struct write *next;
    struct store_batch *batch;
    uint64_t ticket;
};

/* A connection to a peer, as this node knows it. */
struct link {
    bool up;
    uint32_t peer_life;
    uint64_t silent_since_us;
};

struct node {
    struct world *world;
    int index;
    uint64_t id;
    bool alive;
    bool lost; /* for good */
    uint32_t life;
    uint64_t paused_until_us;
    int64_t drift_ppm;
    int64_t jump_ms;      /* monotonic */
    int64_t wall_jump_ms;
    bool disk_bad;
    uint64_t disk_slow_ms;
    struct store *store;
    struct write *writes;
    struct write **writes_end;
    bool disk_busy;
    bool disk_full;
    struct engine *engine;
    struct swim *swim;
    struct link links[NODES_MAX];
    uint64_t range_index[PARTITIONS + 1]; /* asked for; 0 for none */
    bool stop_range[PARTITIONS + 1];
    uint64_t now_ms;   /* of its own monotonic clock */
    uint64_t was_away; /* when it last came back from a pause or a jump */
    uint64_t placement_version;
    struct owner_note known[PARTITIONS + 1];
    bool held[PARTITIONS + 1];
    int replaces; /* the node whose place it takes; -1 for none */
    bool leaving;
    struct command_here *commands; /* inside it */
    struct processor *processor;   /* NULL: none */
};

enum op_kind { OP_ADD, OP_THREE, OP_ODD, OP_APPEND, OP_READ, OP_REUSE, OP_EXPECT, OP_FORGET };
enum op_state { OP_OPEN, OP_DONE, OP_REFUSED };

/* One operation of one client, from its first sending to its end. */
struct op {
    enum op_kind kind;
    enum op_state state;
    int client;
    int aggregate;
    uint64_t payload;  /* unique, but for OP_REUSE */
    int reused;        /* OP_REUSE: whose id */
    uint64_t expected;
    uint64_t floor;    /* events acknowledged when it was first sent */
    uint32_t attempt;
    uint64_t began_us;
    /* the oracle's, once committed */
    bool committed;
    uint16_t partition;
    uint64_t index;
    uint64_t first_sequence;
    uint32_t event_count;
    bool rejected;
    bool conflict;
};

struct client {
    int op; /* -1 when idle */
    bool finished;
};

struct oracle_partition {
    uint64_t *entries; /* hash of the payload by log index, 0 for none */
    size_t room;
    uint64_t last_index;
    uint64_t next_position;
    uint64_t *events; /* hash of the packed event by position */
    size_t event_room;
    uint64_t forgotten[SUBJECTS];    /* events before this position are */
    uint64_t forgotten_at[SUBJECTS]; /* index of the order */
};

struct oracle_aggregate {
    uint64_t count;
    uint64_t hash;     /* of all its events, as the module's state */
    uint64_t *hashes;  /* after each number of events */
    size_t room;
    uint64_t *numbers; /* that the events are about, 0 when it is forgotten */
    size_t number_room;
    uint64_t *subjects; /* of the events, 0 for nobody */
    size_t subject_room;
    uint64_t floor;    /* events that somebody was told of */
};

struct figures {
    uint64_t events, packets, gossip, bytes, lost, duplicated, writes, torn, ranges, answers, reads, retries;
    uint64_t refusals, ownerships, rejected, repeats, executions, snapshots, placements;
    uint64_t forwards, resends, full, rotten, repairs, sealed, subscriptions, delivered, processed, published, forgotten;
    uint64_t faults[FAULT_KINDS];
};

struct world {
    uint64_t seed;
    const char *scenario;
    int founder_count;
    int node_count; /* with those that joined */
    uint64_t now_us;
    uint64_t trace; /* hash of everything that happened */
    bool verbose;

    struct happening *heap;
    size_t heap_count, heap_room;
    uint64_t next_order;

    struct rng network_rng, disk_rng, client_rng, worker_rng, subscriber_rng, group_rng, processor_rng, vault_rng,
        forget_rng;
    struct vault vault;
    struct rng placement_rng;
    unsigned zones; /* that the nodes are spread over; 0: they say none */
    struct node nodes[NODES_MAX];
    uint64_t ids[NODES_MAX];
    struct founder founders[NODES_MAX];
    struct replica_set sets[PARTITIONS + 1];
    struct founding founding;

    struct planned_fault faults[FAULTS_MAX];
    size_t fault_count;
    bool cut[NODES_MAX][NODES_MAX]; /* [from][to] */
    unsigned loss_per_mille, duplicate_per_mille, delay_ms;
    bool workers_faulty;
    bool healed;
    bool with_processors;
    unsigned forget_per_mille; /* of reads that are orders to forget instead */
    /* Events that a worker's copy has, by node's stream; -1 for no copy. */
    int64_t copies[WORKERS + 1][NODES_MAX][AGGREGATES];

    struct op ops[OPS_MAX];
    size_t op_count;
    size_t open_ops;
    struct client clients[CLIENTS];
    uint64_t clients_until_ms;
    struct subscriber *subscribers[SUBSCRIBERS];
    struct pipe *pipes;
    struct group_world *group;

    uint32_t moves_at_once;
    uint64_t placement_version; /* the newest that anybody has */
    struct replica_set placed[PARTITIONS + 1];
    uint64_t moved;  /* replicas that a placement gave to another node */

    struct oracle_partition partitions[PARTITIONS];
    struct oracle_aggregate aggregates[AGGREGATES];

    int broken_promise; /* 0 while all hold */
    char broken_text[400];
    uint64_t broken_at_us;
    char recent[64][120]; /* the last things of note */
    size_t recent_count;

    struct figures figures;
};

void world_init(struct world *w, uint64_t seed, const char *scenario);
void world_release(struct world *w);
void world_init_with(struct world *w, uint64_t seed, const char *scenario, int founders);
/* Run to the end; false when a promise was broken. */
bool world_run(struct world *w);
/* One event; false when there is none, or a promise is broken. */
bool world_step(struct world *w);
void world_at(struct world *w, uint64_t at_us, enum event_kind kind, int node, uint64_t number,
              void *what);
void world_note(struct world *w, const char *format, ...) PRINTF_LIKE(2, 3);
void world_mix(struct world *w, const void *data, size_t len);
/* A new node with an empty disk; NULL when there is no room for more. */
struct node *world_add_node(struct world *w, int replaces);

/* ---- faults.c ---- */

bool scenario_known(const char *name);
void faults_plan(struct world *w);
void fault_begin(struct world *w, struct planned_fault *fault);
void fault_end(struct world *w, struct planned_fault *fault);
void fault_leaving(struct world *w, struct node *n);
void fault_describe(const struct planned_fault *fault, char *out, size_t room);

/* ---- network.c ---- */

void network_send(struct world *w, int from, int to, bool gossip, struct bytes frame);
void network_arrived(struct world *w, int to, void *packet);
void packet_free(void *packet);
void network_reset(struct world *w, int a, int b);

/* ---- node.c ---- */

void node_start(struct node *n);
void node_crash(struct node *n, const char *why);
void node_tick(struct node *n);
void node_written(struct node *n, uint64_t last_ticket);
void node_frame(struct node *n, int from, const struct frame *frame);
void node_gossip(struct node *n, struct bytes packed);
void node_link_reset(struct node *n, int peer);
void node_executed(struct node *n, void *what);
void node_processed(struct node *n, void *what);
void node_range(struct node *n, uint16_t partition);
void node_request(struct node *n, uint64_t op, uint32_t attempt);
void node_transfer(struct node *n, uint16_t partition);
/* An order for the placement; false when this node can't take it now. */
bool node_order(struct node *n, const struct placement_order *order);
const char *node_name(const struct node *n);
void node_drain(struct node *n);
void node_forgot(struct node *n, uint16_t partition);
/* The record with that number, in some order, among those of the partition. */
void node_rot(struct node *n, uint16_t partition, uint64_t number);
void node_append(struct node *n, uint16_t partition, struct bytes payload);
void node_damaged(struct node *n, uint16_t partition, const struct fault *fault);
/* Read everything once, so that damage is noticed. */
void node_scrub(struct node *n);

/* ---- vault.c ---- */

void vault_begin(struct world *w);
void vault_renew(struct world *w);
/* What the payload was, without its key. */
struct bytes vault_peel(struct bytes sealed, struct arena *arena);
/* The same of a sealed event and of what it was. */
uint64_t vault_event_hash(struct bytes packed);
struct bytes op_subject(const struct op *op);
int op_subject_number(const struct op *op); /* from 1; 0 for nobody */
bool vault_is_forgotten(const struct world *w, const struct event *event);
void vault_check(struct world *w, struct node *n, uint16_t partition);
void node_release(struct node *n);

/* ---- subscriber.c ---- */

void subscribers_new(struct world *w);
void subscriber_step(struct world *w, uint64_t number);
/* Checks an event that a consumer was given; *head is what it is. */
void oracle_given(struct world *w, struct bytes packed, struct event_head *head);
bool subscribers_settled(const struct world *w);
void subscribers_final(struct world *w);
void subscribers_free(struct world *w);

/* ---- pipe.c ---- */

void pipes_stored(struct node *n, uint32_t partition);

/* ---- group.c ---- */

void group_begin(struct world *w);
void group_step(struct world *w, uint64_t member);
bool group_settled(const struct world *w);
void group_final(struct world *w);
void group_end(struct world *w);

/* ---- processor.c ---- */

struct done_here {
    uint32_t partition;
    uint64_t ticket;
    size_t failures;
};
void processor_begin(struct node *n);
void processor_end(struct node *n);
bool processor_publish(struct node *n, uint32_t partition, uint64_t ticket, const struct command_record *record);
void processor_forget(struct node *n, uint32_t partition, uint64_t ticket);
/* The owner answers. */
void processor_answered(struct node *n, const struct outcome *outcome);
void processor_said(struct node *n, void *what);
void processor_tick(struct node *n);

/* ---- client.c ---- */

struct answer {
    uint32_t attempt;
    enum status status; /* OK: an outcome or a read */
    char reason[64];
    bool is_read;
    uint64_t count; /* of a read */
    uint64_t first_sequence;
    uint32_t event_count;
    bool rejected;
    bool conflict;
};
void client_step(struct world *w, uint64_t client);
void client_answered(struct world *w, uint64_t op, struct answer *answer);
/* The request of an op as a client packs it. */
void op_pack(const struct world *w, uint64_t op, struct buffer *out);
const char *aggregate_name(int aggregate, char *out, size_t room);
enum { MODULE_TYPE, WORKER_TYPE, PLAIN_TYPE };
int aggregate_kind(int aggregate);
extern const struct cairn_aggregate_type sim_counter;
uint64_t counter_next(uint64_t hash, uint64_t payload);
/* What a worker says to an Execute of that node; the result borrows from the last two. */
void execution_answer(struct world *w, int node, int worker, struct bytes packed_execute,
                      struct execution_result *result, struct new_event *event, uint64_t body[3]);

/* ---- oracle.c ---- */

void broken(struct world *w, int promise, const char *format, ...) PRINTF_LIKE(3, 4);
void oracle_applied(struct node *n, uint16_t partition, uint64_t index, struct bytes payload);
/* The owner answers: a majority must have it on disk at this moment. */
void oracle_durable(struct node *n, const struct outcome *outcome);
void oracle_answered(struct world *w, struct op *op, const struct answer *answer);
bool oracle_may_be_forgotten(struct world *w, struct bytes packed);
uint64_t oracle_event(const struct oracle_partition *partition, uint64_t position);
/* Who should hold each partition does, and nobody else; else why not. */
bool oracle_placed(const struct world *w, char *why, size_t room);
bool oracle_settled(struct world *w);
void oracle_final(struct world *w);

#endif

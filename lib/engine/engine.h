/*
 * A set of partitions with everything that belongs to them: what one thread of a node drives. Takes what
 * came (commands, frames of peers, written batches, workers' results, time), and answers with effects.
 * Sans-IO; the daemon's shard and the simulator drive the same object.
 *
 *   engine_begin ─▶ engine_take, engine_frame, engine_written, … ─▶ engine_end
 *                                                                     │
 *                       one batch for the disk, one frame for each peer ◀┘
 *
 * Always true: a command from a client is answered exactly once, with an outcome, a fault or DEADLINE;
 * while it has no answer it goes to one owner after the other under the same id, which the recorded
 * outcome makes safe; a read is ready only on an index that covers what was acknowledged before it came.
 *
 * Thread rule: one thread for each engine.
 */
#ifndef CAIRN_ENGINE_H
#define CAIRN_ENGINE_H

#include <uthash.h>

#include "aggregate/aggregate.h"
#include "base/base.h"
#include "cluster/cluster.h"
#include "partition/partition.h"
#include "store/store.h"
#include "wire/wire.h"

struct engine;

/* A command inside this node, from its arrival to its answer. The caller's memory; `partition`, the
 * decoded command and the deadline are set before engine_take(). */
struct routed {
    struct admitted admitted;
    struct arena arena;
    uint32_t partition;
    uint64_t peer; /* who sent it, 0 for a client of this node */
    uint64_t peer_request;
    uint64_t target; /* where it was forwarded to last, 0 for nowhere */
    /* The engine's. */
    enum { ROUTED_WAITING, ROUTED_ADMITTED, ROUTED_FORWARDED, ROUTED_DONE } state;
    bool finished; /* answered already; only waits to be given back */
    uint64_t id;   /* while forwarded */
    uint64_t retry_ms;
    struct routed *older;
    struct routed *newer;
    UT_hash_handle hh;
};

/* A read that waits until this node's replica has what it must see. The caller's memory. */
struct awaited_read {
    uint32_t partition;
    uint64_t deadline_ms;
    /* The engine's. */
    enum { AWAITED_NOT, AWAITED_NEW, AWAITED_ASKED, AWAITED_STORED } state;
    uint64_t id;
    uint64_t began_at;
    uint64_t asked_at;
    uint64_t need_index;
    uint64_t need_term; /* of our own barrier, 0 when it is committed */
    struct awaited_read *previous;
    struct awaited_read *next;
};

enum engine_count { ENGINE_FORWARDED, ENGINE_RESENT, ENGINE_GAINED, ENGINE_LOST, ENGINE_REPAIRED };

struct engine_settings {
    uint64_t node_id;
    size_t index; /* among `count` engines of this node: it has the partitions p % count == index */
    size_t count;
    const struct founding *founding; /* outlives the engine */
    struct placement_defaults placement;
    struct planner_settings planner;
    unsigned election_ms;
    unsigned heartbeat_ms;
    uint16_t disk_reserve_mib;
    uint64_t checkpoint_entries; /* 0 for limits.h */
    uint32_t payload_bytes_max;
    uint64_t outcome_retention_ms;
    uint64_t snapshot_every;
    uint64_t snapshot_after_us;
    size_t cache_bytes; /* of one partition */
    size_t cache_count;
    const struct vault *vault; /* see lib/subject; outlives the engine */
    uint64_t seed;
};

/* None of these calls back into the engine, but for what says so. */
struct engine_effects {
    void *context;
    void (*send)(void *context, uint64_t to, struct bytes frame); /* may be lost */
    /* Takes the batch, which is to be written as a whole; engine_written() follows. */
    void (*persist)(void *context, struct store_batch *batch, uint64_t ticket);
    struct store_batch *(*empty_batch)(void *context);
    bool (*reachable)(void *context, uint64_t node_id); /* a frame would get there, as far as is known */
    bool (*alive)(void *context, uint64_t node_id);     /* a member in good health */
    /* Memory for a command that a peer sends; given back by `released`. */
    struct routed *(*arrived)(void *context);
    /* The one answer: to a client, or (already in the peer's frame) to a peer. */
    void (*answered)(void *context, struct routed *command, const struct outcome *outcome,
                     const struct fault *fault);
    void (*released)(void *context, struct routed *command); /* the caller's again */
    /* No fault: this replica may be read now. Not awaited any more. */
    void (*read_ready)(void *context, struct awaited_read *read, const struct fault *fault);
    const struct cairn_aggregate_type *(*module_type)(void *context, struct bytes name);
    enum status (*pick_worker)(void *context, const struct command *command, uint64_t hint,
                               uint64_t *worker, struct fault *fault);
    void (*execute)(void *context, uint32_t partition, uint64_t worker, uint64_t execution_id,
                    struct bytes packed, uint64_t deadline_ms);
    uint64_t (*clock_us)(void *context); /* monotonic */
    /* See aggregate.h; engine_processed() follows when this says true, until it is forgotten. */
    bool (*publish)(void *context, uint32_t partition, uint64_t ticket, const struct command_record *record);
    void (*forget)(void *context, uint32_t partition, uint64_t ticket);
    /* A subject's keys go, or have gone, with this turn's batch, and the log is trimmed: make the disk forget them
     * as well if it must (destroyed_settle). */
    void (*forgot)(void *context, uint32_t partition);
    /* See partition.h; engine_installed() follows. */
    void (*need_range)(void *context, uint32_t partition, uint64_t leader, uint64_t index,
                       uint64_t term);
    void (*stop_range)(void *context, uint32_t partition);
    /* A committed payload of a data partition is being applied here. */
    void (*committed)(void *context, uint32_t partition, uint64_t index, struct bytes payload);
    /* More of the partition's committed effects can be read from the store. */
    void (*stored)(void *context, uint32_t partition);
    /* The best known owner (0 for none) and who holds it, of a partition or the system's: for the node's other
     * threads, and for the engine that owns the system partition, which asks for it with `known`. */
    void (*route)(void *context, const struct owner_note *note);
    void (*known)(void *context, uint32_t partition, struct owner_note *note);
    /* All members that this node knows, in the arena. */
    const struct member_state *(*members)(void *context, struct arena *arena, size_t *count);
    /* Readers may use this node's replica of the partition, or not any more. */
    void (*held)(void *context, uint32_t partition, bool held);
    /* A newer one is known here, for the node and its other engines (engine_placed()). Borrowed. */
    void (*placement)(void *context, const struct placement *placement);
    void (*count)(void *context, enum engine_count what);
    void (*failed)(void *context, const struct fault *fault); /* the node can't go on */
};

/* Load the partitions that this node holds. Inside the first turn of the given moment. */
MUST_USE enum status engine_new(struct engine **out, const struct engine_settings *settings,
                                const struct engine_effects *effects, struct store *store,
                                struct moment moment, struct fault *fault);
/* After engine_stop(), or when the node dies. */
void engine_free(struct engine *engine);

/* Other master keys, from now on. */
void engine_set_vault(struct engine *engine, const struct vault *vault);

/* ---- the turn ---- */

void engine_begin(struct engine *engine, struct moment moment, uint16_t disk_free_mib);
void engine_end(struct engine *engine);
uint64_t engine_deadline(const struct engine *engine); /* when the next turn must be, on a grid */

/* ---- what came; inside a turn ---- */

/* Decode and check a packed request; what is decoded borrows from the bytes. */
MUST_USE enum status routed_decode(struct routed *command, struct bytes packed,
                                   enum command_kind kind, struct fault *fault);
uint32_t engine_partition_of(const struct founding *founding, struct bytes aggregate_id);
void engine_take(struct engine *engine, struct routed *command);
void engine_frame(struct engine *engine, uint64_t from, const struct frame *frame);
void engine_written(struct engine *engine, uint64_t ticket);
void engine_executed(struct engine *engine, uint32_t partition, uint64_t execution_id,
                     uint64_t worker, const struct execution_result *result);
void engine_processed(struct engine *engine, uint32_t partition, uint64_t ticket,
                      const struct processing_failure *failures, size_t failure_count);
void engine_workers_changed(struct engine *engine);
void engine_link(struct engine *engine, uint64_t node_id, bool up);
/* Another engine of this node learned a placement. */
void engine_placed(struct engine *engine, const struct placement *placement);
/* An order for the placement, where the system partition is owned; see system_order(). */
MUST_USE enum status engine_order(struct engine *engine, const struct placement_order *order,
                                  uint64_t *version, struct fault *fault);
/* NULL when no range came and none will. */
void engine_installed(struct engine *engine, uint32_t partition, const struct applied *applied);
/* A record of the partition is damaged on this node's disk: other replicas take over, and it is got anew
 * from them. False when this is the only replica, or the node holds none. */
bool engine_damaged(struct engine *engine, uint32_t partition, const struct fault *fault);
/* Append a payload that aggregates_committed() understands and nobody waits for. Takes the blob. NOT_OWNER or
 * EXHAUSTED when it can't be; it may be lost with the ownership after that too. */
MUST_USE enum status engine_append(struct engine *engine, uint32_t partition, struct blob *payload);
/* Hand one partition over; NOT_OWNER when this node doesn't lead it. */
MUST_USE enum status engine_transfer(struct engine *engine, uint32_t partition, uint64_t to);
/* The node drains: hand everything over that others hold too. Again until nothing is left. */
void engine_drain(struct engine *engine);
/* Await what a linearizable read must see. The node holds the partition. */
void engine_await(struct engine *engine, struct awaited_read *read);
void engine_forget(struct engine *engine, struct awaited_read *read);
/* Part of a frame for a peer, to go with this turn's. */
struct buffer *engine_outbox(struct engine *engine, uint64_t to);
/* Answer everything; the last turn. */
void engine_stop(struct engine *engine);

/* ---- what it knows ---- */

struct engine_view {
    size_t replicas, owned, movable, leading, lagging;
    size_t waiting, in_flight, executing, processing, cached, requests;
    size_t uncommitted, unstored; /* of Raft: entries in the log */
    uint64_t highest_term;
};
struct engine_view engine_view(const struct engine *engine);
/* The best known owner, 0 for none. */
uint64_t engine_owner(const struct engine *engine, uint32_t partition, uint64_t *epoch);
/* NULL when this node has no replica. */
const struct partition *engine_replica(const struct engine *engine, uint32_t partition);
struct aggregates_view engine_aggregates_view(const struct engine *engine, uint32_t partition);
/* Who holds it, as far as is known here. */
const struct replica_set *engine_voters(const struct engine *engine, uint32_t partition);
/* The newest placement that is known here; NULL before the first. */
const struct placement *engine_placement(const struct engine *engine);

#endif

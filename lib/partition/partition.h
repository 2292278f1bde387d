/*
 * One replica of one partition: a Raft server (libraft's step engine), its log in the store, and
 * the rule of ownership. Sans-IO: every call gets a turn (the time and the batch that this turn's
 * writes go into) and answers with effects, which only record what is to be done.
 *
 * Always true: a message that depends on a write leaves after that write was reported done; what
 * was committed is applied once, in order, in the same batch as the applied index; this replica
 * is the owner only while it leads AND everything committed before its term is applied and stored.
 *
 * Thread rule: one thread per replica.
 */
#ifndef CAIRN_PARTITION_H
#define CAIRN_PARTITION_H

#include "base/base.h"
#include "store/store.h"
#include "wire/wire.h"

struct partition;

/* One turn of the driver. Its batch is written as a whole and then reported with its ticket. */
struct turn {
    uint64_t now_ms;
    struct store_batch *batch;
    uint64_t ticket;        /* grows from turn to turn */
    uint16_t disk_free_mib; /* clipped; 0 when it isn't known */
};

struct partition_settings {
    uint16_t id;
    uint64_t node_id;
    /* Who founds it; NULL: it joins, and its leader brings the log or the range. */
    const struct replica_set *founders;
    unsigned election_ms;
    unsigned heartbeat_ms;
    uint16_t disk_reserve_mib;   /* with less on most replicas nothing is submitted; 0 for no limit */
    uint64_t checkpoint_entries; /* the log is trimmed after so many; 0 for limits.h */
    uint32_t seed;
};

/* What a partition asks its driver to do. None of these calls back into the partition. */
struct partition_effects {
    void *context;
    void (*send)(void *context, struct partition *partition, uint64_t to,
                 const struct replica_message *message);
    /* Put the effects of one committed payload into the batch and advance next_position and
     * last_time_ms. Called on every replica, in log order. */
    void (*apply)(void *context, struct partition *partition, uint64_t index, struct bytes payload,
                  struct applied *applied, struct store_batch *batch);
    /* Ownership by this replica began or ended. */
    void (*ownership)(void *context, struct partition *partition, bool owner);
    /* This replica fell behind the leader's log: get the key range from any replica that has applied
     * that index, then partition_installed(). Asked again before that only to do with a lower index. */
    void (*need_range)(void *context, struct partition *partition, uint64_t leader,
                       uint64_t index, uint64_t term);
    /* The range isn't needed any more: partition_installed() without one when no more of it comes. */
    void (*stop_range)(void *context, struct partition *partition);
    /* A record of the log on disk is damaged; the replica helps itself. */
    void (*damaged)(void *context, struct partition *partition, const struct fault *fault);
    /* The replica can't go on; the fault says why. */
    void (*failed)(void *context, struct partition *partition, const struct fault *fault);
    /* What partition_trim() asked for goes with this turn's batch, or has gone: the disk may have old copies
     * of it (destroyed_settle). */
    void (*trimmed)(void *context, struct partition *partition);
};

/* What this node's store holds of a partition. */
enum partition_trace {
    PARTITION_UNKNOWN, /* nothing ever */
    PARTITION_EMPTY,   /* a replica that was to join, or was dropped; what it may have voted is kept */
    PARTITION_HELD,
};
MUST_USE enum status partition_trace(struct store *store, uint16_t id, enum partition_trace *trace,
                                     struct fault *fault);

/* Load the replica from the store, or found it there, or begin to join. */
MUST_USE enum status partition_new(struct partition **out,
                                   const struct partition_settings *settings,
                                   const struct partition_effects *effects, struct store *store,
                                   const struct turn *turn, struct fault *fault);
void partition_free(struct partition *partition);

/* ---- what happened ---- */

void partition_receive(struct partition *partition, uint64_t from,
                       const struct replica_message *message, const struct turn *turn);
/* Time passed: call when partition_deadline() is reached. */
void partition_tick(struct partition *partition, const struct turn *turn);
uint64_t partition_deadline(const struct partition *partition);
/* All batches up to the ticket are on disk. False: none of them had anything of this partition. */
bool partition_written(struct partition *partition, uint64_t ticket, const struct turn *turn);
/* The range asked for by need_range is in the store, with everything up to the applied index as
 * given; NULL when it was stopped. The last writes go into this turn's batch. */
void partition_installed(struct partition *partition, const struct applied *applied,
                         const struct turn *turn);

/* ---- what the owner may ask ---- */

/* Append one payload. Takes the blob. On success *index is where it will be committed, or lost
 * when ownership ends first. NOT_OWNER or EXHAUSTED otherwise. */
MUST_USE enum status partition_submit(struct partition *partition, struct blob *payload,
                                      const struct turn *turn, uint64_t *index);
/* A read that starts now must wait until stored_index reaches *index, which is behind everything
 * submitted before. Shared by the reads of one turn. */
MUST_USE enum status partition_read_barrier(struct partition *partition, const struct turn *turn,
                                            uint64_t *index);
/* What this replica holds is damaged: give ownership up, apply nothing, and get the whole range anew from
 * another replica (need_range). UNAVAILABLE when there is no other. Again while it is repaired: nothing. */
MUST_USE enum status partition_repair(struct partition *partition, const struct turn *turn);
/* Hand leadership to another replica (0: the best one). */
MUST_USE enum status partition_transfer(struct partition *partition, uint64_t to,
                                        const struct turn *turn);
enum replica_change {
    REPLICA_ADD,     /* as a standby: it gets the log, and counts in no majority */
    REPLICA_PROMOTE, /* a standby becomes a voter */
    REPLICA_REMOVE,
};
/* Change who holds the partition by one replica; partition_configuration() tells when it is done.
 * UNAVAILABLE while another change is under way, and while too few of those who would stay have all that
 * is committed for a voter to go. */
MUST_USE enum status partition_change(struct partition *partition, enum replica_change change,
                                      uint64_t node_id, const struct turn *turn);
/* Delete all that this replica holds but its vote; the object is of no use afterwards. Not while it
 * installs a range. Others must hold the partition: the caller knows that this node's replica is removed. */
void partition_drop(struct partition *partition, const struct turn *turn);

/* ---- what it knows ---- */

/* The batch destroys keys: nothing that is applied stays in the log, the next checkpoint is now, and trims all
 * of it. A restart doesn't forget it. */
void partition_trim(struct partition *partition, const struct turn *turn);

struct partition_view {
    uint16_t id;
    bool owner;
    bool leading;   /* leads, maybe not yet as the owner */
    uint64_t leader; /* 0 when unknown */
    uint64_t term;
    uint64_t commit_index;
    uint64_t stored_index; /* applied, and in the store for readers */
    uint64_t last_index;
    struct applied applied;
    bool installing;
    bool repairing;
    bool transferring;
};
struct partition_view partition_view(const struct partition *partition);
uint64_t partition_stored_index(const struct partition *partition);
bool partition_is_owner(const struct partition *partition);
struct partition_configuration {
    uint64_t index; /* of its log entry; 0: none is known yet */
    struct replica_set voters;
    struct replica_set standbys;
    bool changing; /* a newer one isn't committed yet */
    struct replica_set newest_voters; /* of that one: their majority counts already */
};
/* Who holds the partition, as far as this replica knows it to be committed. */
void partition_configuration(const struct partition *partition,
                             struct partition_configuration *configuration);
/* True when the other replica has (nearly) all of this leader's log and answers. */
bool partition_replica_current(const struct partition *partition, uint64_t replica);

#endif

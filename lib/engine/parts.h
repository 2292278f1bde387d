/* What the files of the engine share: engine.c (the turn), slot.c, router.c (commands), read_index.c. */
#ifndef CAIRN_ENGINE_PARTS_H
#define CAIRN_ENGINE_PARTS_H

#include "cluster/cluster.h"
#include "engine.h"

/* One partition as this engine sees it. Without a replica here, partition and aggregates are NULL. */
struct slot {
    struct engine *engine;
    uint32_t id;
    const struct replica_set *set;
    struct partition *partition;
    struct aggregates *aggregates;
    struct system_state *system; /* of the system partition's slot only */
    /* What others told, or this node when it owns it; the higher epoch wins. */
    uint64_t route_owner;
    uint64_t route_epoch;
    uint64_t transfer_after;
    unsigned repairs; /* in this life */
    bool damaged;     /* in this turn: to be repaired */
    bool touched; /* in this turn: flush its aggregates */
};

/* A peer's read that waits for our barrier. */
struct index_wait {
    struct index_wait *next;
    uint64_t from;
    uint64_t request_id;
    uint32_t partition;
    uint64_t barrier;    /* shows that we still own it, once it is stored */
    uint64_t read_index; /* what was committed when the read came */
    uint64_t term;
};

struct outbox {
    uint64_t node_id;
    struct buffer frame;
};

struct engine {
    struct engine_settings settings;
    struct engine_effects effects;
    struct store *store;

    struct slot *slots; /* all partitions and the system's; those of other engines stay empty */
    size_t slot_count;
    struct outbox *outboxes;
    size_t outbox_count;

    struct turn turn;
    struct moment moment;
    uint64_t next_tick;
    uint64_t next_balance;
    uint64_t next_announce;
    uint64_t next_complaint;
    bool stored_moved; /* reads may go on */
    bool rescan;       /* routes changed: waiting commands may go on */
    bool draining;
    bool stopping;

    struct routed *oldest;
    struct routed *newest;
    size_t routed_count;
    struct routed *forwards; /* hash by id */
    struct routed *done;     /* answered; given back at the end of the turn */
    uint64_t next_id;
    struct awaited_read *reads;
    struct index_wait *index_waits;
};

/* NULL for a number that no partition has. */
struct slot *slot_of(const struct engine *engine, uint32_t partition);
MUST_USE enum status slot_open(struct slot *slot, struct fault *fault);
MUST_USE enum status slot_open_system(struct slot *slot, struct fault *fault);
void slot_close(struct slot *slot);
uint64_t slot_owner(const struct slot *slot, uint64_t *epoch);
bool slot_holds(const struct slot *slot, uint64_t node_id);
/* False when something newer is known. */
bool slot_route(struct slot *slot, uint64_t owner, uint64_t epoch);
/* Number of data partitions. */
uint32_t engine_partitions(const struct engine *engine);

/* ---- router.c ---- */

void router_take_forwarded(struct engine *engine, uint64_t from,
                           const struct forwarded_command *in);
void router_take_result(struct engine *engine, uint64_t from, const struct command_result *in);
void router_answered(struct engine *engine, struct admitted *command,
                     const struct outcome *outcome, const struct fault *fault);
/* Time passed, or routes changed. */
void router_tick(struct engine *engine, bool all);
void router_link_lost(struct engine *engine, uint64_t node_id);
/* Give back what was answered in this turn. */
void router_release(struct engine *engine);
void router_abandon(struct engine *engine); /* the node stops: answer UNAVAILABLE */

/* ---- read_index.c ---- */

void read_index_serve(struct engine *engine, uint64_t from, const struct read_index *request);
void read_index_take(struct engine *engine, const struct read_index *result);
void read_index_tick(struct engine *engine);
void read_index_abandon(struct engine *engine);

#endif

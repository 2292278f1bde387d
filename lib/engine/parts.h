/* What the files of the engine share: engine.c (the turn), slot.c, router.c (commands), read_index.c. */
#ifndef CAIRN_ENGINE_PARTS_H
#define CAIRN_ENGINE_PARTS_H

#include "cluster/cluster.h"
#include "engine.h"

/* One partition as this engine sees it. Without a replica here, partition and aggregates are NULL. */
struct slot {
    struct engine *engine;
    uint32_t id;
    struct replica_set target; /* who should hold it; the first is the preferred owner */
    struct partition *partition;
    struct aggregates *aggregates;
    struct system_state *system; /* of the system partition's slot only */
    /* What others told, or this node's replica knows: the owner of the highest epoch, the newest voters. */
    struct owner_note known;
    uint64_t announced_index; /* the configuration that others were told of */
    bool held;                /* readers were told that they may use it */
    uint64_t unwanted_since;  /* the owner says that we don't hold it; 0: it doesn't */
    uint64_t transfer_after;
    unsigned repairs; /* in this life */
    bool damaged;     /* in this turn: to be repaired */
    bool touched; /* in this turn: flush its aggregates */
    bool forgot;  /* what is just applied destroys keys */
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

    uint64_t *peers; /* that a link reaches */
    size_t peer_count;
    struct arena placement_arena;
    struct placement placement; /* the newest known; version 0: none */
    uint64_t told_version;      /* that we told all of, as the system partition's owner */
    uint64_t next_reconcile;

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
enum slot_origin { SLOT_FOUNDS, SLOT_RESTARTS, SLOT_JOINS };
MUST_USE enum status slot_open(struct slot *slot, enum slot_origin origin, struct fault *fault);
MUST_USE enum status slot_open_system(struct slot *slot, struct fault *fault);
void slot_close(struct slot *slot);
uint64_t slot_owner(const struct slot *slot, uint64_t *epoch);
/* False when nothing in it is newer than what is known of the owner. */
bool slot_route(struct slot *slot, const struct owner_note *note);
const struct replica_set *slot_voters(const struct slot *slot);
/* This node owns it: all that a link reaches hear so, and who holds it. */
void slot_announce(struct slot *slot);
/* What this node's replica of it knows. */
void slot_note(const struct slot *slot, struct owner_note *note);
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

/* ---- placed.c: from the placement to who holds what ---- */

void placed_frame(struct engine *engine, uint64_t from, const struct frame *frame);
/* The peer is reachable: it may lack the placement. */
void placed_greet(struct engine *engine, uint64_t node_id);
/* An owner's note of a partition that has a replica here. */
void placed_heard(struct slot *slot, const struct owner_note *note);
/* Towards the placement: one change of each partition that this node owns. */
void placed_tick(struct engine *engine);
void tell_owned(struct engine *engine, const struct slot *slot, uint64_t node_id);

/* ---- read_index.c ---- */

/* No replica of the partition is here any more. */
void read_index_dropped(struct engine *engine, uint32_t partition);

void read_index_serve(struct engine *engine, uint64_t from, const struct read_index *request);
void read_index_take(struct engine *engine, const struct read_index *result);
void read_index_tick(struct engine *engine);
void read_index_abandon(struct engine *engine);

#endif

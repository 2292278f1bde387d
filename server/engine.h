/* What the files of the shard share: shard.c (the turn), router.c (commands), reads.c. */
#ifndef CAIRN_SERVER_ENGINE_H
#define CAIRN_SERVER_ENGINE_H

#include "node.h"

/* One partition as this shard sees it. Without a replica here, partition and aggregates are NULL. */
struct slot {
    struct shard *shard;
    uint32_t id;
    const struct replica_set *set;
    struct partition *partition;
    struct aggregates *aggregates;
    struct system_state *system; /* of the system partition's slot only */
    uint64_t owned_since;
    uint64_t transfer_after;
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

struct shard {
    struct node *node;
    size_t index;
    pthread_t thread;
    bool joined;
    struct mailbox box;
    struct shard_view view;

    struct slot *slots; /* all partitions and the system's; those of other shards stay empty */
    size_t slot_count;
    struct outbox *outboxes;
    size_t outbox_count;

    struct turn turn;
    struct moment moment;
    uint64_t next_tick;
    uint64_t next_balance;
    uint64_t next_complaint;
    bool stored_moved;  /* reads may go on */
    bool rescan;        /* routes changed: waiting requests may go on */
    bool stopping;

    struct request *oldest;
    struct request *newest;
    size_t request_count;
    struct request *forwards; /* hash by id */
    uint64_t next_id;
    struct reading *readings;
    struct index_wait *index_waits;
};

struct buffer *outbox_for(struct shard *shard, uint64_t node_id);
struct slot *slot_of(struct shard *shard, uint32_t partition);
/* The best known owner, 0 for none. */
uint64_t slot_owner(const struct slot *slot, uint64_t *epoch);

/* ---- router.c ---- */

void router_take(struct shard *shard, struct request *request);
void router_take_forwarded(struct shard *shard, uint64_t from, const struct forwarded_command *in);
void router_take_result(struct shard *shard, uint64_t from, const struct command_result *in);
void router_answered(struct shard *shard, struct admitted *command, const struct outcome *outcome,
                     const struct fault *fault);
/* Time passed, or routes changed. */
void router_tick(struct shard *shard, bool all);
void router_link_lost(struct shard *shard, uint64_t node_id);
void router_abandon(struct shard *shard); /* the node stops: answer UNAVAILABLE */

/* ---- reads.c ---- */

void reads_take(struct shard *shard, struct reading *reading);
void reads_go_on(struct shard *shard, struct reading *reading);
void reads_serve_index(struct shard *shard, uint64_t from, const struct read_index *request);
void reads_take_index(struct shard *shard, const struct read_index *result);
void reads_tick(struct shard *shard);
void reads_abandon(struct shard *shard);
void reads_release(struct shard *shard); /* after the server has closed all streams */

#endif

/* What the files of the shard share: shard.c (the thread), reads.c (pages). */
#ifndef CAIRN_SERVER_SHARD_H
#define CAIRN_SERVER_SHARD_H

#include "node.h"

struct shard {
    struct node *node;
    size_t index;
    pthread_t thread;
    struct mailbox box;
    struct shard_view view;
    struct engine *engine; /* NULL until the cluster is founded */
    bool stopping;
    uint64_t forgot[PARTITIONS_MAX / 64 + 1]; /* in this turn: a bit for each partition */
    bool any_forgot;
    struct reading *readings;
};

/* ---- reads.c ---- */

void reads_take(struct shard *shard, struct reading *reading);
void reads_go_on(struct shard *shard, struct reading *reading);
/* Look after relayed reads and those whose client is gone. */
void reads_tick(struct shard *shard);
/* Too late or too early. */
void reads_refuse(struct shard *shard, struct reading *reading);
void reads_abandon(struct shard *shard);
void reads_release(struct shard *shard); /* after the server has closed all streams */

#endif

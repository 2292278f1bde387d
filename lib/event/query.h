/*
 * Questions about the log that end: the newest events first, which aggregates there are, how many events of each
 * type. Sans-IO; local partitions are read through the store, others come from the same question to other nodes.
 *
 *   partitions here ─┐
 *                    ├─▶ merged by time (events), by id (aggregates), summed up (counts) ─▶ pages
 *   other nodes ─────┘
 *
 * Always true: events come newest first, within a partition strictly; aggregates in the order of their ids, each
 * once; what is committed while the question is answered may be missing.
 *
 * Thread rule: one thread at a time.
 */
#ifndef CAIRN_EVENT_QUERY_H
#define CAIRN_EVENT_QUERY_H

#include "event.h"

struct query;

/* `held` tells for each partition whether this node has a replica. INVALID names what is wrong. */
MUST_USE enum status query_new(struct query **out, const struct query_request *request,
                               const struct token_of *cluster, const bool *held, struct store *store,
                               struct fault *fault);
void query_free(struct query *query);
bool query_includes(const struct query *query, uint32_t partition);

/* Another node that is asked the same. Its answers must come before anything behind them is given. */
struct query_source;
struct query_source *query_foreign(struct query *query);
/* One of its messages. INVALID when it can't be one. */
MUST_USE enum status query_take(struct query_source *source, struct bytes packed, struct fault *fault);
void query_source_ended(struct query_source *source);
size_t query_waiting(const struct query_source *source); /* bytes taken and not yet given */

/*
 * The next message, added to `out`; nothing when it waits for others. NOT_FOUND: that was the last one. DAMAGED:
 * *partition says whose record. Looks at a bounded number of records: ask again while query_wants().
 */
MUST_USE enum status query_next(struct query *query, struct buffer *out, uint32_t *partition, struct fault *fault);
bool query_wants(const struct query *query);

#endif

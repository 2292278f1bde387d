/*
 * What comes out of the log: subscriptions, and the tokens that say where one stands. Sans-IO; reads go
 * through the store.
 *
 * A subscription walks every partition's positions, from where its token stands, as far as this node's
 * replica has stored them: what is stored is committed, so catching up and being live are the same walk.
 * What no replica here has comes from another node's subscription (foreign).
 *
 * Always true: of each partition the events that fit the filter are given in order of positions, none
 * twice and none left out; never more events than credits; a token covers exactly what was given before it.
 *
 * Thread rule: one thread at a time for each object.
 */
#ifndef CAIRN_EVENT_H
#define CAIRN_EVENT_H

#include "base/base.h"
#include "store/store.h"
#include "wire/wire.h"

/* ---- tokens ---- */

/*
 *   2.<cluster>.<partitions>.<position-position-…>.<check>      all partitions, in their order
 *   1.<partition>.<position>                                    where one command ended; see wire
 *
 * Numbers are hexadecimal; the check covers what stands before it and the cluster's id. Opaque to clients.
 */
struct token_of {
    struct bytes cluster_id;
    uint32_t partitions;
};
void token_write(struct buffer *out, const struct token_of *cluster, const uint64_t *positions);
/* Fills positions[partitions]. `only` is the partition that a command's token names, else -1. INVALID with
 * what is wrong with it. */
MUST_USE enum status token_read(struct bytes token, const struct token_of *cluster, uint64_t *positions,
                                int64_t *only, struct fault *fault);

/* ---- subscriptions ---- */

/* The packed event at a position, in the arena; DAMAGED when the position has no record or no event. */
MUST_USE enum status event_at(struct store *store, uint32_t partition, uint64_t position, struct arena *arena,
                              struct bytes *packed, struct fault *fault);

/* One behind the last position that is stored here. */
MUST_USE enum status log_end(struct store *store, uint32_t partition, uint64_t *end, struct fault *fault);
/* All of it in the arena. */
struct event_filter event_filter_copy(struct arena *arena, const struct event_filter *filter);

/* Which partitions a filter means; INVALID when it names one that isn't. */
MUST_USE enum status event_filter_include(const struct event_filter *filter, uint32_t partitions, bool *included,
                                          struct fault *fault);
/* token_read() for a walk over these partitions: the token of a command fits its own partition alone. */
MUST_USE enum status token_read_for(struct bytes token, const struct token_of *cluster, const bool *included,
                                    uint64_t *positions, struct fault *fault);
/* The first position below `end` whose event is of this time or later; `end` when there is none. */
MUST_USE enum status log_find_time(struct store *store, uint32_t partition, uint64_t end, int64_t time_ms,
                                   uint64_t *position, struct fault *fault);
/* But for the partitions, which aren't looked at. */
bool event_filter_fits(const struct event_filter *filter, const struct event_head *head);

struct subscription;

struct subscription_settings {
    struct token_of cluster;
    struct log_start from;
    struct event_filter filter; /* copied */
    uint64_t credits;
    uint64_t heartbeat_ms; /* a token after so much silence; 0 for never */
    uint64_t limit;        /* events until it ends; 0 for none */
    bool until_end;        /* ends with what was stored when it was opened for reading */
};

/* `held` tells for each partition whether this node has a replica. Where the start lies is found in the
 * store for those; INVALID names what is wrong with the request. */
MUST_USE enum status subscription_new(struct subscription **out, const struct subscription_settings *settings,
                                      const bool *held, struct store *store, uint64_t now_ms,
                                      struct fault *fault);
void subscription_free(struct subscription *subscription);

/* ---- what happened ---- */

void subscription_credit(struct subscription *subscription, uint64_t events);
/* A held partition has stored more. */
void subscription_stored(struct subscription *subscription, uint32_t partition);
/*
 * The next message to send, as fields of a SubscribeResponse, added to `out`; nothing is added when there
 * is none now. NOT_FOUND: that was the last one. DAMAGED: *partition says whose record. Looks at a bounded
 * number of events: ask again while subscription_wants().
 */
MUST_USE enum status subscription_next(struct subscription *subscription, uint64_t now_ms, struct buffer *out,
                                       uint32_t *partition, struct fault *fault);
/* True when subscription_next() has something to do now. */
bool subscription_wants(const struct subscription *subscription, uint64_t now_ms);
uint64_t subscription_deadline(const struct subscription *subscription); /* of the next heartbeat */

/* ---- partitions of which this node has no replica ---- */

/* One source gives these; the caller asks it with the positions of subscription_token(). */
struct foreign;
struct foreign *subscription_foreign(struct subscription *subscription, const uint32_t *partitions,
                                     size_t count);
/* A SubscribeResponse of the source. INVALID when it can't be one. */
MUST_USE enum status foreign_take(struct foreign *foreign, struct bytes packed, struct fault *fault);
/* The subscription's token covers its partitions; before, a new source must begin as the first did. */
bool foreign_begun(const struct foreign *foreign);
void foreign_begin(struct foreign *foreign); /* it takes over from one that had */
size_t foreign_waiting(const struct foreign *foreign); /* bytes taken and not yet given */
/* Events of it given on since the last call: credits for the source. */
uint32_t foreign_given(struct foreign *foreign);
/* The source has given all that it will give (of until_end). */
void foreign_end(struct foreign *foreign);
/* The source is gone; another will ask anew from the token. */
void foreign_reset(struct foreign *foreign);

/* ---- what it knows ---- */

void subscription_token(const struct subscription *subscription, struct buffer *out);
/* Positions of the token it began with that lie behind what this node's replica has stored: it may lag, or
 * they were never given. -1 when there is none at or behind `after`. */
int64_t subscription_ahead(const struct subscription *subscription, uint32_t after);
bool subscription_includes(const struct subscription *subscription, uint32_t partition);
uint64_t subscription_given(const struct subscription *subscription); /* events so far */

#endif

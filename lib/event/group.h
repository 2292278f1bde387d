/*
 * A processor group at its coordinator, the owner of its home partition: which member has which partition, what
 * was given to it, and what is acknowledged. Sans-IO.
 *
 *   reader (a subscription of one partition) ──events──▶ group ──deliveries──▶ the partition's member
 *   member ──acknowledgements──▶ group ──cursors──▶ the home partition's log
 *
 * Always true: a partition's events are at one member at a time, in order of positions, none left out; what
 * isn't acknowledged is given again, to whoever has the partition then; a partition moves from a live member
 * only when that has acknowledged all that it was given; the cursor never passes what isn't acknowledged or
 * parked. The cursor is kept lazily: a new coordinator gives again what came in between. One that hung and doesn't
 * know of its successor gives what others have had, until it hears.
 *
 * Thread rule: one thread at a time.
 */
#ifndef CAIRN_EVENT_GROUP_H
#define CAIRN_EVENT_GROUP_H

#include "event.h"

struct group;

/* The time, as the driver gives it. */
struct moment_now {
    uint64_t now_ms;
    int64_t wall_ms;
};

/* None of these calls back into the group. `member` is what group_join() was given. */
struct group_effects {
    void *context;
    void (*send)(void *context, void *member, struct bytes message); /* a ProcessResponse */
    /* The member is forgotten; its stream is to end with the fault. */
    void (*dismiss)(void *context, void *member, const struct fault *fault);
    /* Read one partition from there on, instead of what was read of it before. */
    void (*follow)(void *context, uint32_t partition, const struct log_start *from, uint32_t credits);
    void (*credit)(void *context, uint32_t partition, uint32_t credits);
    void (*stop)(void *context, uint32_t partition);
    /* A payload for the home partition's log. */
    void (*keep)(void *context, struct bytes payload);
};

struct group_settings {
    struct token_of cluster;
    struct bytes name;   /* copied */
    uint16_t home;
    const struct process_request *first; /* the join that makes it: filter, start */
};

/* The home partition of a group; its owner is the coordinator. */
uint32_t group_home(struct bytes name, uint32_t partitions);
/* With the cursors that the store holds. DAMAGED when they can't be read. */
MUST_USE enum status group_new(struct group **out, const struct group_settings *settings,
                               const struct group_effects *effects, struct store *store, struct fault *fault);
/* Members must have left or been dismissed. */
void group_free(struct group *group);

/* ---- what happened ---- */

/* INVALID: it doesn't fit the group. */
MUST_USE enum status group_join(struct group *group, void *member, const struct process_request *join,
                                uint64_t now_ms, struct fault *fault);
void group_leave(struct group *group, void *member, uint64_t now_ms);
/* What a member says. INVALID: it was never given that. */
MUST_USE enum status group_acknowledge(struct group *group, void *member, const struct process_request *request,
                                       uint64_t now_ms, struct fault *fault);
MUST_USE enum status group_fail(struct group *group, void *member, const struct process_request *request,
                                uint64_t now_ms, struct fault *fault);
/* A SubscribeResponse of the partition's reader. */
MUST_USE enum status group_events(struct group *group, uint32_t partition, struct bytes message, uint64_t now_ms,
                                  struct fault *fault);
/* The reader broke; it is asked for again after a moment. */
void group_reader_broke(struct group *group, uint32_t partition, uint64_t now_ms);
void group_tick(struct group *group, uint64_t now_ms); /* a few times a second */
void group_keep(struct group *group, uint64_t now_ms); /* what is acknowledged, now */
/* A parked event comes to its partition's member once more. NOT_FOUND: it isn't parked; PRECONDITION: the group has
 * no members. */
MUST_USE enum status group_retry(struct group *group, uint32_t partition, struct bytes packed_event, uint64_t now_ms,
                                 struct fault *fault);
/* To another start; all members are dismissed. What is kept of it has group_resets(). */
/* Where "the end" is, is found out now for the partitions that the store has (`held`, by partition; NULL for none), by
 * the first reader for the others. */
void group_reset(struct group *group, const struct log_start *from, struct store *store, const bool *held,
                 uint64_t now_ms);
void group_dismiss_all(struct group *group, const struct fault *fault);

/* ---- what it knows ---- */

struct bytes group_name(const struct group *group);
size_t group_members(const struct group *group);
const struct event_filter *group_filter(const struct group *group);
/* A GetGroupResponse; the lag by what the store has. */
void group_describe(const struct group *group, struct store *store, struct moment_now now, struct buffer *out);
void group_view(const struct group *group, uint32_t partition, struct store *store, struct moment_now now,
                struct group_partition *view);
/* What of the partition is parked. */
const struct parked *group_parked(const struct group *group, uint32_t partition, size_t *count);
uint64_t group_resets(const struct group *group);
/* Of the newest cursor in the store. */
MUST_USE enum status group_resets_kept(struct store *store, uint16_t home, struct bytes name, uint64_t *resets,
                                       struct fault *fault);
uint64_t group_position(const struct group *group, uint32_t partition); /* UINT64_MAX: not known yet */

struct group_counts {
    uint64_t delivered, redelivered, parked;
};
struct group_counts group_counts(const struct group *group);

#endif

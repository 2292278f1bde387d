/* What the files of this folder share. */
#ifndef CAIRN_AGGREGATE_PARTS_H
#define CAIRN_AGGREGATE_PARTS_H

#include <uthash.h>

#include "aggregate.h"

/* One aggregate in memory. */
struct aggregate {
    UT_hash_handle hh;
    struct aggregate *older; /* least recently used first */
    struct aggregate *newer;
    struct bytes id;   /* ours */
    struct bytes type; /* ours; empty until known */
    bool loaded;
    uint64_t sequence; /* number of events, with the uncommitted ones */
    uint64_t snapshot_sequence; /* of the newest snapshot, with the uncommitted one; 0 for none */
    uint64_t snapshot_tried;    /* where the last one was due */
    bool snapshot_due;          /* building the state took too long */
    const struct cairn_aggregate_type *module;
    void *state; /* the module's */
    size_t state_bytes;
    uint64_t worker; /* who holds a copy that is at `sequence`; 0 for nobody */
    uint64_t reload_index; /* loading must wait until this index is stored */
    size_t in_flight;      /* decided, not yet stored */
    struct inflight *first; /* the mailbox */
    struct inflight *last;
    size_t waiting;
    struct execution *executing;
    struct aggregate *next_parked;
    bool parked;
    struct bytes *subjects; /* who it has events of, with the uncommitted ones */
    size_t subject_count;
};

/* A command that waits, is being decided, or is decided: what dedupe looks at first. */
struct inflight {
    UT_hash_handle hh; /* by command id */
    struct bytes id;   /* in id_room */
    uint8_t id_room[COMMAND_ID_BYTES_MAX];
    uint64_t fingerprint;
    struct admitted *waiters; /* the command, then its repeats */
    struct aggregate *aggregate;
    uint64_t index; /* log index, 0 before it is submitted */
    struct buffer outcome; /* packed, once committed */
    uint64_t processing;   /* the ticket of what it waits for at the bus; 0 for nothing */
    bool stored;           /* the store has it; only the bus keeps it here */
    UT_hash_handle by_ticket;
    struct inflight *next; /* in the mailbox, then its log entry, then the unstored */
};

/* A log entry of ours on its way. */
struct sent_entry {
    struct sent_entry *next;
    uint64_t index;
    struct inflight *commands; /* in order of the payload */
};

/* Commands that get a fault once the barrier behind it is stored. */
struct refusal {
    struct refusal *next;
    struct admitted *commands;
    struct fault fault;
    uint64_t index;
};

struct execution {
    UT_hash_handle hh; /* by id */
    uint64_t id;
    uint64_t worker;
    struct aggregate *aggregate;
    struct inflight *inflight;
};

struct aggregates {
    struct aggregates_settings settings;
    struct aggregates_effects effects;
    struct store *store;
    bool owned;

    struct aggregate *table;
    struct aggregate *oldest;
    struct aggregate *newest;
    size_t cache_bytes;
    struct aggregate *parked; /* have a mailbox that waits for the store or for workers */

    struct inflight *known;
    struct inflight *spare; /* for the next commands, so that not each makes its own */
    size_t spare_count;
    struct inflight *unstored; /* committed, oldest first */
    struct inflight **unstored_end;
    struct sent_entry *sent; /* oldest first */
    struct sent_entry **sent_end;
    struct sent_entry *spare_sent; /* for the next one */

    struct buffer open; /* the log entry under construction */
    struct buffer deciding, applying; /* scratch, kept so that not each command makes its own */
    struct inflight *open_commands;
    struct inflight **open_end;

    struct refusal *refused; /* in this turn, oldest first */
    struct refusal **refused_end;
    struct refusal *confirming; /* wait for their barrier, oldest first */
    struct refusal **confirming_end;

    struct execution *executions;
    uint64_t next_execution;

    struct inflight *processing; /* hash by ticket */
    uint64_t next_ticket;

    struct known_key *known_keys;
    bool open_has_keys; /* the open entry makes or destroys some */
    bool open_forgets;
    uint64_t forget_index; /* of the last entry of ours that destroys keys */
    bool rewrapping;       /* keys may be wrapped by a master key that isn't the first any more */
    bool rewrap_again;     /* from the first key on: not all of this round is known to be done */
    bool open_rewraps;     /* the open entry has some */
    uint64_t rewrap_index; /* not before this is stored */
    struct store_key rewrap_from;
    size_t rewrapped;

    uint64_t next_position; /* with the uncommitted events */
    uint64_t open_position; /* where the open entry begins */
    int64_t last_time_ms;
    size_t waiting;
};

/* ---- rewrap.c ---- */

/* Look through all keys of the partition, from the next tick on. */
void rewrap_begin(struct aggregates *all);
/* Some of them; what is to be wrapped again goes into the open entry. */
void rewrap_some(struct aggregates *all);
/* The open entry went into the log. */
void rewrap_submitted(struct aggregates *all, uint64_t index);

/* ---- cache.c ---- */

struct aggregate *cache_find_or_add(struct aggregates *all, struct bytes id);
/* Forget the state but not the mailbox; the next command loads it again. */
void cache_unload(struct aggregates *all, struct aggregate *aggregate);
void cache_resize(struct aggregates *all, struct aggregate *aggregate, size_t state_bytes);
/* Drop idle aggregates while over the bounds. */
void cache_trim(struct aggregates *all);
void cache_clear(struct aggregates *all);
void mailbox_push(struct aggregates *all, struct aggregate *aggregate, struct inflight *command);
struct inflight *mailbox_pop(struct aggregates *all, struct aggregate *aggregate);

static inline struct cairn_bytes to_module(struct bytes b)
{
    return (struct cairn_bytes){b.data, b.len};
}

static inline struct bytes from_module(struct cairn_bytes b)
{
    return (struct bytes){b.data, b.len};
}

/* ---- load.c ---- */

/* Sequence and type, and the state when a module decides. */
MUST_USE enum status aggregate_load(struct aggregates *all, struct aggregate *aggregate,
                                    struct bytes type, struct fault *fault);
MUST_USE enum status aggregate_evolve(struct aggregate *aggregate, const struct event *event,
                                      struct fault *fault);
/* Packed events [from, to), at most bytes_max of them, in the arena. */
MUST_USE enum status aggregate_history(struct aggregates *all, struct aggregate *aggregate,
                                       uint64_t from, size_t bytes_max, struct arena *arena,
                                       struct bytes **packed, size_t *count,
                                       struct fault *fault);

/* ---- decision.c ---- */

/* What a handler decided, in an arena. */
struct decision {
    struct cairn_decision base;
    struct arena *arena;
    struct new_event *events;
    size_t count;
    size_t room;
    size_t bytes;
    struct reply reply;
    struct rejection rejection;
    bool conflict;
    struct snapshot snapshot;
    struct fault broken; /* the handler broke the contract */
};

void decision_init(struct decision *decision, struct arena *arena);
void decision_by_module(struct decision *decision, const struct aggregate *aggregate,
                        const struct command *command);
void decision_by_worker(struct decision *decision, const struct execution_result *result);
/* The aggregate has fewer events than the command expects. */
void decision_by_conflict(struct decision *decision, const struct fault *fault);
/* Of an aggregate that has `sequence` events. */
void decision_by_snapshot(struct decision *decision, const struct command *command,
                          uint64_t sequence);
void decision_by_append(struct decision *decision, const struct command *command);
/* Of an aggregate that has `sequence` events before it. */
MUST_USE enum status decision_check(const struct decision *decision, uint64_t sequence,
                                    uint32_t payload_max, struct fault *fault);

/* ---- snapshot.c ---- */

/* One may be due after what was just recorded. */
void snapshot_by_module(struct aggregates *all, struct aggregate *aggregate);
void snapshot_by_worker(struct aggregates *all, struct aggregate *aggregate,
                        const struct snapshot *snapshot);
/* WriteSnapshot or DeleteSnapshot. */
void snapshot_by_command(struct aggregates *all, struct aggregate *aggregate,
                         const struct command *command);
/* Of an aggregate that has this many events. */
MUST_USE enum status snapshot_check(const struct snapshot *snapshot, uint64_t sequence,
                                    uint32_t payload_max, struct fault *fault);
/* The newest stored one, if any, in the arena. */
MUST_USE enum status snapshot_find(struct aggregates *all, const struct aggregate *aggregate,
                                   struct arena *arena, struct bytes *packed,
                                   struct snapshot *snapshot, struct fault *fault);
void snapshot_put(struct aggregates *all, const struct snapshot_record *record,
                  struct store_batch *batch);

/* ---- sealing.c ---- */

enum { SNAPSHOT_SEALS_MAX = 8 };

/* Whose events the aggregate has. */
MUST_USE enum status sealing_load(struct aggregates *all, struct aggregate *aggregate, struct fault *fault);
void sealing_unload(struct aggregate *aggregate);
/* The open entry went into the log; it didn't; ownership is gone. */
void sealing_submitted(struct aggregates *all, uint64_t index);
void sealing_discarded(struct aggregates *all);
void sealing_disown(struct aggregates *all);
/* An order that destroys its keys is on its way. */
bool sealing_is_destroying(struct aggregates *all, struct bytes subject);
/* A key is on its way that was made under another master key than the first one now. */
bool sealing_awaits_retired(struct aggregates *all);
/* What names a subject, sealed; keys that are made for it go into the open entry. */
MUST_USE enum status seal_event(struct aggregates *all, struct aggregate *aggregate, struct event *event,
                                struct arena *arena, struct fault *fault);
MUST_USE enum status seal_reply(struct aggregates *all, const struct command *command, struct reply *reply,
                                struct arena *arena, struct fault *fault);
/* False: of too many subjects to be worth it. */
bool seal_snapshot(struct aggregates *all, struct aggregate *aggregate, struct snapshot *snapshot,
                   struct arena *arena);
/* As processors see them: the same array when none is sealed. */
struct bytes *open_events(struct aggregates *all, const struct command_record *record, struct arena *arena);
void open_reply(struct aggregates *all, struct outcome *outcome, struct arena *arena);
bool may_forget(struct aggregates *all, struct bytes subject);
void forget_subject(struct aggregates *all, struct bytes subject);
void put_keys(struct aggregates *all, const struct log_batch *entry, struct store_batch *batch);

/* ---- refusal.c ---- */

/* These commands get the fault: at once when it means "outcome unknown", else when it is sure. */
void refusal_add(struct aggregates *all, struct admitted *commands, const struct fault *fault);
/* What this turn decided is void: so is what was refused on it, and gets this fault instead. */
void refusals_void(struct aggregates *all, const struct fault *fault);
/* All submits of the turn are made: ask for the barrier. */
void refusals_flush(struct aggregates *all);
void refusals_stored(struct aggregates *all, uint64_t index);
void refusals_disown(struct aggregates *all);
void not_owner(struct fault *fault);
void answer_all(struct aggregates *all, struct admitted *commands, const struct outcome *outcome,
                const struct fault *fault);

/* ---- publish.c ---- */

/* Committed: answer, or let the subscribing processors have the events first. */
void publish_or_answer(struct aggregates *all, struct inflight *command,
                       const struct command_record *record);
/* Ownership is lost: what is committed is answered at once. */
void publish_disown(struct aggregates *all);

/* ---- dedupe.c ---- */

/* OK when the id is new: then *inflight is registered with the command as its waiter. NOT_FOUND
 * when the command was answered or waits for another with its id. */
MUST_USE enum status dedupe(struct aggregates *all, struct admitted *command,
                            struct moment moment, struct inflight **inflight);
void inflight_answer(struct aggregates *all, struct inflight *inflight,
                     const struct outcome *outcome, const struct fault *fault);
void inflight_free(struct aggregates *all, struct inflight *inflight);
void inflight_free_spare(struct aggregates *all);

#endif

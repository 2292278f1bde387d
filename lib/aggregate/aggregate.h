/*
 * The aggregates of one partition on its owner: mailboxes, dedupe, deciding, and the way from
 * decision through commit to the answer. Sans-IO; reads go through the store, the rest are effects.
 *
 *   admit ─▶ known id? ─▶ mailbox ─▶ load ─▶ decide ─▶ open entry ─▶ flush: submit ─▶ committed:
 *   answer ─▶ stored: forgotten here, found in the store
 *
 * Always true: every admitted command is answered exactly once; an aggregate's commands are
 * decided one after the other, each on the result of the one before, committed or not; when
 * ownership or a submit is lost, everything decided on it is thrown away together; a refusal is
 * told only once it is sure that this node was the owner when it refused, because another owner
 * may have accepted the same command.
 *
 * Thread rule: the thread of the partition.
 */
#ifndef CAIRN_AGGREGATE_H
#define CAIRN_AGGREGATE_H

#include <cairn/module.h>

#include "base/base.h"
#include "store/store.h"
#include "subject/subject.h"
#include "wire/wire.h"

struct aggregates;

/* The time, as the driver gives it. */
struct moment {
    uint64_t now_ms;  /* monotonic: deadlines */
    int64_t wall_ms;  /* for the events' time and the outcomes' age */
};

/* A command inside the node. The caller's, who keeps it until it is answered. */
struct admitted {
    struct command command;
    uint64_t deadline_ms;
    struct admitted *next; /* for whoever holds it */
};

struct aggregates_settings {
    uint16_t partition;
    uint32_t payload_bytes_max;
    uint64_t outcome_retention_ms;
    uint64_t snapshot_every; /* events between two snapshots by a module; 0 for none */
    uint64_t snapshot_after_us; /* building a state that takes so long is worth one; 0 for none */
    size_t cache_bytes;
    size_t cache_count;
    const struct vault *vault; /* NULL: nothing is sealed here */
};

struct aggregates_effects {
    void *context;
    /* Append to the partition's log. Takes the blob. */
    enum status (*submit)(void *context, struct blob *payload, uint64_t *index);
    /* Something that is stored only if this node still owns the partition, behind all submits. */
    enum status (*barrier)(void *context, uint64_t *index);
    /* Exactly one of outcome and fault is there. The command is the caller's again. */
    void (*answer)(void *context, struct admitted *command, const struct outcome *outcome,
                   const struct fault *fault);
    /* The module's type of that name, NULL when no module has it. */
    const struct cairn_aggregate_type *(*module_type)(void *context, struct bytes name);
    /*
     * A worker for the command, `hint` if it still can. OK with *worker, NO_HANDLER when nobody
     * handles it, UNAVAILABLE when one is expected (busy, or gone for a moment).
     */
    enum status (*pick_worker)(void *context, const struct command *command, uint64_t hint,
                               uint64_t *worker, struct fault *fault);
    /* Send a packed Execute to the worker picked before. The answer, or its death, comes back
     * with the execution id. */
    void (*execute)(void *context, uint64_t worker, uint64_t execution_id, struct bytes packed,
                    uint64_t deadline_ms);
    /* Events of a command of ours are committed: give them to the subscribing processors here. True: the
     * answer waits for aggregates_processed() with that ticket. */
    bool (*publish)(void *context, uint64_t ticket, const struct command_record *record);
    /* What is published isn't waited for any more. */
    void (*forget)(void *context, uint64_t ticket);
    /* Keys are destroyed with the batch of a committed entry: what the log has of them must go. On every replica. */
    void (*forgot)(void *context);
    /* A record is damaged. True: another replica takes over, and has it. */
    bool (*damaged)(void *context, const struct fault *fault);
    uint64_t (*clock_us)(void *context); /* monotonic, for how long loading takes */
    uint64_t (*stored_index)(void *context);
    uint64_t (*applied_index)(void *context);
};

struct aggregates *aggregates_new(const struct aggregates_settings *settings,
                                  const struct aggregates_effects *effects, struct store *store);
void aggregates_free(struct aggregates *aggregates); /* commands must be answered before */

/* ---- ownership ---- */

/* From here on commands may be admitted. */
void aggregates_own(struct aggregates *aggregates, const struct applied *applied);
/* Answers everything with NOT_OWNER and forgets all state. */
void aggregates_disown(struct aggregates *aggregates);

/* ---- the way of a command ---- */

/* NOT_OWNER by answer when this node doesn't own the partition. */
void aggregates_admit(struct aggregates *aggregates, struct admitted *command,
                      struct moment moment);
/* A worker's result; NULL when the worker died or can't be reached: the command runs again. */
void aggregates_executed(struct aggregates *aggregates, uint64_t execution_id, uint64_t worker,
                         const struct execution_result *result, struct moment moment);
/* The subscribing processors are done with what was published; the failures to report. */
void aggregates_processed(struct aggregates *aggregates, uint64_t ticket,
                          const struct processing_failure *failures, size_t failure_count);
/* Workers came or have room again. */
void aggregates_workers_changed(struct aggregates *aggregates, struct moment moment);
/* End of turn: submit what was decided as one log entry. */
void aggregates_flush(struct aggregates *aggregates, struct moment moment);
/* A payload is committed: put its effects into the batch, and answer if it is ours. On every
 * replica. DAMAGED when it can't belong where it is. */
MUST_USE enum status aggregates_committed(struct aggregates *aggregates, uint64_t index,
                                          struct bytes payload, struct applied *applied,
                                          struct store_batch *batch, struct fault *fault);
/* Everything up to the index is in the store for readers. */
void aggregates_stored(struct aggregates *aggregates, uint64_t index, struct moment moment);
/* Deadlines of what waits for workers. */
void aggregates_tick(struct aggregates *aggregates, struct moment moment);

/* An event as modules see it; by the type's upcasters, if it has any (`type` may be NULL). Borrows from the
 * event and the arena. FAILED when an upcaster can't take it. */
MUST_USE enum status event_for_module(const struct cairn_aggregate_type *type, const struct event *event,
                                      struct arena *arena, struct cairn_event *seen, struct fault *fault);

/* Other master keys, from now on. */
void aggregates_set_vault(struct aggregates *aggregates, const struct vault *vault);

struct aggregates_view {
    size_t cached;
    size_t waiting;   /* commands in mailboxes */
    size_t in_flight; /* decided, not yet stored */
    size_t executing; /* at workers */
    size_t processing; /* committed, waiting for subscribing processors */
    bool rewrapping;   /* keys are looked through: see aggregates_set_vault() */
};
struct aggregates_view aggregates_view(const struct aggregates *aggregates);

#endif

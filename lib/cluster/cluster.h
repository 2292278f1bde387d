/*
 * Who is in the cluster, how a cluster is founded, and who should hold which partition. Sans-IO:
 * membership (SWIM with Lifeguard) and founding get messages and the time and answer with effects;
 * placement is a pure function.
 *
 * Membership says who is probably there. It never decides ownership: that is Raft's.
 * Thread rule: one thread for each object.
 */
#ifndef CAIRN_CLUSTER_H
#define CAIRN_CLUSTER_H

#include "base/base.h"
#include "store/store.h"
#include "wire/wire.h"

/* ---- membership ---- */

struct swim;

/* Constants of memberlist's LAN profile; see swim_settings_lan(). */
struct swim_settings {
    uint64_t node_id;
    const char *name;
    const char *address; /* what this node advertises */
    const char *zone;     /* failure domain; NULL or empty for none */
    const char *replaces; /* see member_state */
    uint32_t capacity;    /* 0 for the usual */
    uint64_t seed;
    uint32_t probe_interval_ms;
    uint32_t probe_timeout_ms;
    uint32_t indirect_probes;
    uint32_t retransmit_multiplier;
    uint32_t suspicion_multiplier;
    uint32_t suspicion_max_multiple;
    uint32_t gossip_interval_ms;
    uint32_t gossip_fanout;
    uint32_t push_pull_interval_ms;
    uint32_t reconnect_interval_ms; /* how often a dead member is asked again */
    bool unfounded;
};
void swim_settings_lan(struct swim_settings *settings);

struct swim_effects {
    void *context;
    /* node_id is 0 when only the address is known. The message is borrowed. */
    void (*send)(void *context, uint64_t node_id, struct bytes address,
                 const struct swim_message *message);
    /* A member came, changed its status or its facts. */
    void (*changed)(void *context, const struct member_state *member);
};

struct swim *swim_new(const struct swim_settings *settings, const struct swim_effects *effects,
                      uint64_t now_ms);
void swim_free(struct swim *swim);
/* Ask this address for the cluster, now and again until it is a known member's. */
void swim_join(struct swim *swim, const char *address);
/* What discovery found now, in place of what it found before: asked as those of swim_join() are. */
void swim_discovered(struct swim *swim, const char (*addresses)[ADDRESS_BYTES_MAX + 1], size_t count);
void swim_receive(struct swim *swim, const struct swim_message *message, uint64_t now_ms);
void swim_tick(struct swim *swim, uint64_t now_ms);
uint64_t swim_deadline(const struct swim *swim);
/* A broken stream is a hint: probe that member next. */
void swim_suspect_link(struct swim *swim, uint64_t node_id, uint64_t now_ms);
/* Facts about this node changed: spread them. */
void swim_set_handlers(struct swim *swim, const struct bytes *handlers, size_t count);
void swim_set_founded(struct swim *swim);
/* Tell some members that this node leaves of its own will. */
void swim_leave(struct swim *swim);

/* Members with this node first; valid until the next call. */
size_t swim_members(const struct swim *swim, const struct member_state **members);
const struct member_state *swim_member(const struct swim *swim, uint64_t node_id);

/* ---- founding ---- */

struct founding_process;

struct founding_settings {
    uint64_t node_id;
    uint32_t expect; /* founders to wait for; 0 waits to be taken in */
    struct bytes cluster_name; /* outlives the process */
    uint32_t partition_count;
    uint32_t replication_factor;
    uint64_t seed;
};

struct founding_effects {
    void *context;
    /* On disk before it returns: what is sent afterwards relies on it. NULL forgets the record. */
    void (*persist)(void *context, const struct founding *record);
    void (*send)(void *context, uint64_t to, enum founding_message_type type,
                 const struct founding *record);
    /* This node belongs to the cluster of the record. Once. */
    void (*founded)(void *context, const struct founding *record);
};

/*
 * A cluster is founded once: the lowest id among `expect` visible members proposes a record, each
 * founder accepts one record and keeps it, and when all have, the proposer calls it complete.
 * Two proposals can't both gather everybody: the one with the higher proposer's id is withdrawn.
 */
struct founding_process *founding_new(const struct founding_settings *settings,
                                      const struct founding_effects *effects,
                                      const struct founding *stored, uint64_t now_ms);
void founding_free(struct founding_process *process);
void founding_receive(struct founding_process *process, uint64_t from,
                      enum founding_message_type type, const struct founding *record,
                      uint64_t now_ms);
void founding_tick(struct founding_process *process, const struct member_state *members,
                   size_t count, uint64_t now_ms);

/* What decides whether a peer may talk to us. */
struct hello_view {
    const struct founding *own; /* NULL: we belong to no cluster yet */
    const struct placement *placement; /* NULL: not known yet */
    uint64_t own_node_id;
    struct bytes cluster_name; /* that we want to belong to; empty for any */
    bool (*alive)(void *context, uint64_t node_id); /* as far as we know */
    void *context;
};
/* NULL, or what to tell it. */
const char *hello_refusal(const struct hello *hello, const struct hello_view *view, char *text, size_t room);

/* ---- placement ---- */

/*
 * Replica sets for the founders: rendezvous hashing with a bound on replicas per node, the first
 * of each set chosen so that ownership is even. The last set is the system partition's.
 */
void placement_found(const struct founder *founders, size_t founder_count,
                     uint32_t partition_count, uint32_t replication_factor,
                     struct replica_set *sets);

/* What the one who plans sees. */
struct plan_view {
    uint64_t now_ms;
    const struct member_state *members; /* of the membership */
    size_t member_count;
    const struct owner_note *notes; /* of each partition and the system's; no voters: nobody owns it now */
};

struct planner_settings {
    uint64_t settle_ms; /* all members must have been alive for so long before anything is balanced */
};

struct planner;
struct planner *planner_new(const struct planner_settings *settings);
void planner_free(struct planner *planner);
/* Another planned meanwhile: what was seen of the members counts no more. */
void planner_forget(struct planner *planner);
/* True when there is something to change: `next` is the next version. Borrows from all three. */
bool planner_plan(struct planner *planner, const struct placement *current, const struct plan_view *view,
                  struct arena *arena, struct placement *next);

/* What an operator wants; refused when it would lose what can't be got back. */
MUST_USE enum status planner_order(const struct placement *current, const struct plan_view *view,
                                   const struct placement_order *order, struct arena *arena,
                                   struct placement *next, struct fault *fault);

/* ---- the system partition ---- */

struct system_state;

struct system_settings {
    uint16_t partition;
    const struct founding *founding; /* outlives the state */
    struct placement_defaults {
        uint32_t moves_at_once;
        uint64_t transfer_bytes;
        uint64_t grace_ms;
    } defaults; /* of a cluster that is being founded */
    struct planner_settings planner;
};

struct system_effects {
    void *context;
    /* Append to the system partition's log. Takes the blob. */
    enum status (*submit)(void *context, struct blob *payload);
    /* Who is there and who holds what, now. In the arena. */
    void (*look)(void *context, struct arena *arena, struct plan_view *view);
    /* A newer placement is in force; borrowed until the next one. */
    void (*placed)(void *context, const struct placement *placement);
};

/* DAMAGED when the stored placement is of another cluster. */
MUST_USE enum status system_new(struct system_state **out, const struct system_settings *settings,
                                const struct system_effects *effects, struct store *store,
                                struct fault *fault);
void system_free(struct system_state *state);
void system_ownership(struct system_state *state, bool owned);
/* What the owner has to do now. */
void system_tick(struct system_state *state, uint64_t now_ms);
/* An operator's order, on the owner: in force once the placement has `version`. */
MUST_USE enum status system_order(struct system_state *state, const struct placement_order *order,
                                  uint64_t *version, struct fault *fault);
/* On every replica, in log order. */
MUST_USE enum status system_committed(struct system_state *state, struct bytes payload,
                                      struct store_batch *batch, struct fault *fault);
/* The newest one that is applied here; NULL before the first. */
const struct placement *system_placement(const struct system_state *state);

#endif

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

/*
 * May this peer talk to us? NULL, or what to tell it. `expected` is who it should be when we have
 * dialled it ourselves, 0 otherwise.
 */
const char *hello_refusal(const struct hello *hello, const struct founding *own,
                          uint64_t own_node_id, char *text, size_t room);

/* ---- the system partition ---- */

struct system_state;

struct system_settings {
    uint16_t partition;
    const struct founding *founding; /* outlives the state */
};

struct system_effects {
    void *context;
    /* Append to the system partition's log. Takes the blob. */
    enum status (*submit)(void *context, struct blob *payload);
};

/* DAMAGED when the stored placement is of another cluster. */
MUST_USE enum status system_new(struct system_state **out, const struct system_settings *settings,
                                const struct system_effects *effects, struct store *store,
                                struct fault *fault);
void system_free(struct system_state *state);
void system_ownership(struct system_state *state, bool owned);
/* What the owner has to do now. */
void system_tick(struct system_state *state);
/* On every replica, in log order. */
MUST_USE enum status system_committed(struct system_state *state, struct bytes payload,
                                      struct store_batch *batch, struct fault *fault);
/* Of the newest placement applied here; 0 before the first. */
uint64_t system_version(const struct system_state *state);

/* ---- placement ---- */

/*
 * Replica sets for the founders: rendezvous hashing with a bound on replicas per node, the first
 * of each set chosen so that ownership is even. The last set is the system partition's.
 */
void placement_found(const struct founder *founders, size_t founder_count,
                     uint32_t partition_count, uint32_t replication_factor,
                     struct replica_set *sets);

#endif

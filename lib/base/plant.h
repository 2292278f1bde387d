/*
 * Known bugs, to be planted one at a time in the build that checks the simulator's checkers (preset
 * `plant`). In every other build PLANTED() is false and nothing of this is left.
 */
#ifndef CAIRN_BASE_PLANT_H
#define CAIRN_BASE_PLANT_H

#ifdef CAIRN_PLANT

/* What is wrong in each, in a few words. */
#define PLANTS(X)                                                                        \
    X(ACK_BEFORE_FSYNC, "entries count as persisted before they are")                    \
    X(VOTE_NOT_WRITTEN, "term and vote are not written")                                 \
    X(OWNER_WITHOUT_BARRIER, "an owner serves before its barrier is applied")            \
    X(DEDUPE_IN_MEMORY, "recorded outcomes are forgotten on failover")                   \
    X(REFUSAL_WITHOUT_BARRIER, "a deposed owner still refuses")                          \
    X(READ_WITHOUT_BARRIER, "a deposed owner still serves reads")                        \
    X(POSITION_REUSED, "a position is given twice")                                      \
    X(SNAPSHOT_SKIPS_EVENT, "loading from a snapshot leaves out the event behind it")    \
    X(FORGOTTEN_STATE_KEPT, "commands are decided on what was forgotten")                  \
    X(KEY_KEPT_AFTER_LOSS, "a subject's key that never was committed seals on")           \
    X(REWRAP_LOST, "keys whose new wrapping was lost on its way aren't wrapped again")     \
    X(STATE_KEPT_AFTER_LOSS, "a failed submit leaves its decisions in memory")           \
    X(REJECTION_NOT_RECORDED, "a rejection's outcome is not stored")                     \
    X(APPLIED_AHEAD, "the stored applied index is one too high")                         \
    X(FINGERPRINT_IGNORED, "a reused id gets the old outcome")                           \
    X(EXPECTATION_IGNORED, "expected sequences are not compared")                        \
    X(LAST_EVENT_LOST, "the last of several events is not stored")                       \
    X(LOSS_NOTICED_LATE, "ownership is lost only after the new owner's entries applied") \
    X(SNAPSHOT_AHEAD, "a snapshot claims an event that it doesn't include")                \
    X(VOID_STATE_DECIDED_ON, "a worker's decision counts although what it was based on is void")   \
    X(REFUSED_ON_VOID_STATE, "what was refused on decisions that a full disk voids stays refused") \
    X(CURSOR_AHEAD, "a group keeps what it has given, not what was acknowledged")               \
    X(EVENT_SKIPPED, "a subscription goes on one event too far where a page ends")                \
    X(BEGIN_NOT_TOLD, "a member isn't told that a partition begins anew behind a failure")        \
    X(DAMAGE_IGNORED, "a record's checksum is not compared")                                      \
    X(PROCESSOR_NOT_AWAITED, "a repeat is answered while processors are at work")                 \
    X(CONFIGURATION_FORGOTTEN, "a configuration that came with a range isn't told as committed")  \
    X(REQUEST_ID_REUSED, "after a restart requests to peers have the ids of the life before")

#define PLANT_ENUM(name, text) PLANT_##name,
enum plant { PLANT_NONE, PLANTS(PLANT_ENUM) };
#undef PLANT_ENUM
extern enum plant planted; /* set once, before anything runs */
#define PLANTED(name) (planted == PLANT_##name)

#else
#define PLANTED(name) false
#endif

#endif

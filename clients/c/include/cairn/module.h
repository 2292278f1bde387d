/*
 * The interface of a Cairn module: a shared object with aggregate types that a node loads with
 * --module. It needs no library of Cairn's; the node hands it what it may call.
 *
 * An aggregate type decides commands from state and builds state from events. All of it must be
 * pure: no clock, no randomness, no I/O, nothing outside the arguments. The node calls a type from
 * several threads at once, but one aggregate from one thread at a time.
 */
#ifndef CAIRN_MODULE_H
#define CAIRN_MODULE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CAIRN_MODULE_VERSION 3

/* Borrowed for the call; not NUL-terminated. */
struct cairn_bytes {
    const uint8_t *data;
    size_t len;
};

enum cairn_payload_kind {
    CAIRN_PAYLOAD_NONE = 0,
    CAIRN_PAYLOAD_JSON = 1, /* UTF-8 text */
    CAIRN_PAYLOAD_DATA = 2
};

struct cairn_payload {
    enum cairn_payload_kind kind;
    struct cairn_bytes content;
};

struct cairn_metadata {
    struct cairn_bytes key;
    struct cairn_bytes value;
};

struct cairn_command {
    struct cairn_bytes id;
    struct cairn_bytes aggregate_id;
    struct cairn_bytes type;
    struct cairn_payload payload;
    const struct cairn_metadata *metadata;
    size_t metadata_count;
    uint64_t sequence; /* how many events the aggregate has */
    struct cairn_bytes principal; /* who sent it, as shown by certificate or token; empty without TLS */
    struct cairn_bytes subject;   /* whom it is about */
};

struct cairn_event {
    struct cairn_bytes aggregate_type;
    struct cairn_bytes aggregate_id;
    uint64_t sequence;
    uint32_t partition;
    uint64_t position; /* within the partition */
    struct cairn_bytes id;
    struct cairn_bytes type;
    uint32_t revision;
    struct cairn_payload payload;
    const struct cairn_metadata *metadata;
    size_t metadata_count;
    int64_t time_ms; /* since 1970, UTC, by the owner's clock */
    struct cairn_bytes command_id;
    struct cairn_bytes correlation_id; /* empty: the command's id */
    struct cairn_bytes causation_id;
    struct cairn_bytes traceparent;
    struct cairn_bytes principal; /* who sent the command */
    struct cairn_bytes subject;   /* whom it is about */
    int forgotten;                /* its subject was forgotten: there is no payload any more */
};

/* An event to decide, with everything it may have; zero what it hasn't. */
struct cairn_new_event {
    const char *type;
    uint32_t revision;
    struct cairn_payload payload;
    const struct cairn_metadata *metadata;
    size_t metadata_count;
    const char *id; /* NULL: the node makes one */
    const char *subject; /* whom the payload is about; NULL: the command's */
};

/* What decide() says goes through these; each copies what it is given. */
struct cairn_decision {
    void (*emit)(struct cairn_decision *decision, const char *type, struct cairn_payload payload);
    /* At most once. */
    void (*reply)(struct cairn_decision *decision, const char *type,
                  struct cairn_payload payload);
    /* A business rule says no: nothing emitted counts. The reason is UPPER_SNAKE_CASE. */
    void (*reject)(struct cairn_decision *decision, const char *reason, const char *message);
    void (*emit_event)(struct cairn_decision *decision, const struct cairn_new_event *event);
    void *node; /* the node's own */
};

/* What an upcaster makes of an event; copies what it is given. */
struct cairn_upcast {
    void (*become)(struct cairn_upcast *upcast, const char *type, uint32_t revision,
                   struct cairn_payload payload);
};

/*
 * Turns the events of one type and revision into a later revision, whenever they are read for this
 * module: for evolve and for its processors. Chained until none fits. What is stored stays as it is.
 */
struct cairn_upcaster {
    const char *event_type; /* NULL ends the list */
    uint32_t revision;      /* of the events that it takes */
    /* Calls become() once, with a higher revision. 0, or anything else when it can't be done. */
    int (*upcast)(const struct cairn_event *event, struct cairn_upcast *upcast);
};

struct cairn_aggregate_type {
    const char *name;
    const char *const *commands; /* what it decides, NULL at the end */
    /* The state of an aggregate without events. NULL fails the command. */
    void *(*create)(struct cairn_bytes aggregate_id);
    void (*destroy)(void *state);
    void (*decide)(const void *state, const struct cairn_command *command,
                   struct cairn_decision *decision);
    /* 0, or anything else when the event can't belong to this aggregate. */
    int (*evolve)(void *state, const struct cairn_event *event);
    /* About how many bytes the state takes, for the cache's bound. NULL: 256. */
    size_t (*size)(const void *state);
    /* Snapshots. encode gives the length it needs and writes it when there is room; decode gives
     * NULL when it can't read. Both NULL: no snapshots. */
    size_t (*encode)(const void *state, uint8_t *out, size_t room);
    void *(*decode)(struct cairn_bytes aggregate_id, struct cairn_bytes snapshot);
    const struct cairn_upcaster *upcasters; /* NULL for none */
};

/* Why a processor failed; copied. */
struct cairn_processing {
    void (*fail)(struct cairn_processing *processing, const char *reason);
};

/*
 * A subscribing processor: gets the events of the commands that this node has handled, right after they
 * are committed, in the order of their partition. It runs on a thread of its own and may do I/O. What was
 * committed while no node ran it isn't given later: follow the log for what must not be missed.
 */
struct cairn_processor {
    const char *name;
    const char *const *aggregate_types; /* NULL at the end; NULL: all */
    const char *const *event_types;     /* the same */
    int no_wait;             /* the reply to the command doesn't wait for it */
    unsigned timeout_ms;     /* how long it waits; 0: 5000 */
    int report_failure;      /* failures and timeouts are told with the reply; else only counted and logged */
    void *(*start)(void);    /* on its thread, before the first event; NULL: no state */
    void (*process)(void *state, const struct cairn_event *event, struct cairn_processing *processing);
    void (*stop)(void *state);
};

struct cairn_module {
    unsigned version; /* CAIRN_MODULE_VERSION */
    const char *name;
    const struct cairn_aggregate_type *const *types; /* NULL at the end */
    const struct cairn_processor *const *processors; /* the same; NULL for none */
};

/* Every module defines this. */
const struct cairn_module *cairn_module(void);

#ifdef __cplusplus
}
#endif

#endif

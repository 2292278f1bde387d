/* What the files of the feeder share: feeder.c (the thread), feed_relay.c (partitions that other nodes hold),
 * subscribe_service.c (the streams of clients). */
#ifndef CAIRN_SERVER_FEED_H
#define CAIRN_SERVER_FEED_H

#include "event/event.h"
#include "event/query.h"
#include "node.h"

enum feed_letter_kind {
    FEED_OPEN,   /* the feed itself: its request is complete */
    FEED_MORE,   /* its stream has room again */
    FEED_CREDIT, /* struct feed_note */
    FEED_CLOSED, /* its stream is closed; the last from there */
    FEED_AWAITED,
    FEED_RELAYED,      /* struct feed_note: a message of a source */
    FEED_RELAY_CLOSED, /* struct feed_note */
    FEED_JOIN,   /* struct process_stream: its first message */
    FEED_SAID,   /* struct said_note */
    FEED_LEFT,   /* struct process_stream: closed */
    FEED_ASKED,  /* struct group_question */
    FEED_WAKE,
    FEED_STOP,
    /* To the local bus, with join, said and left of its members, too. */
    FEED_FOUNDED,
    FEED_PUBLISH,
    FEED_FORGET,
    FEED_MODULE_SAID,
};

struct feed_letter {
    struct mail mail;
    enum feed_letter_kind kind;
};

/* Partitions that one other node gives. */
struct feed_relay {
    struct feed_relay *next;
    struct feed *feed;
    struct foreign *foreign;
    struct query_source *source; /* of a query */
    bool begun;                  /* it has said something */
    uint32_t *partitions;
    size_t count;
    uint64_t last_target;
    struct rpc_channel *channel;
    struct rpc_stream *stream;
    uint64_t retry_ms;
    bool ended;
};

/* One Subscribe or ReadAll, from its stream's opening to its end. */
struct feed {
    struct node *node;
    struct rpc_stream *stream; /* held */
    struct arena arena;        /* of the request, for life */
    bool read_all; /* it ends */
    struct query_request question; /* of kind QUERY_NONE: a subscription or a walk forwards */
    bool started; /* the request came; the poller's */
    struct subscribe_request request;
    struct read_all_request read_request;

    struct feed_letter open, more, closed, awaited;
    atomic_bool more_sent;

    /* The feeder's. */
    struct feed *next;
    struct subscription *subscription; /* one of these two */
    struct query *query;
    struct awaiting_many *awaits;
    bool finished;  /* its status is sent */
    bool is_closed; /* nothing of its stream comes any more */
    bool *held;     /* the partitions that it reads here; NULL: none yet */
    struct feed_relay *relays;
    /* Of a reader, which has no stream: what it reads, and that it can't go on. It is closed by its user. */
    void (*sink)(struct feed *reader, struct bytes message);
    void (*broke)(struct feed *reader, const struct fault *fault);
    void *user;
};

/* Barriers on several partitions at once. */
struct awaiting_many {
    struct feed *feed;
    atomic_uint left;
    atomic_bool failed;
    struct fault fault; /* of the first that failed */
    struct awaiting_one {
        struct awaiting awaiting;
        struct awaiting_many *many;
    } each[];
};

struct feed_note {
    struct feed_letter letter;
    struct feed *feed;
    uint32_t credits;
    struct feed_relay *relay;
    int code;
    char text[200];
    size_t len;
    uint8_t bytes[];
};

/* One member of a processor group, from its stream's opening to its end. Its stream comes to this node; when
 * another is the coordinator, a stream of ours to that one is put through. */
struct process_stream {
    struct node *node;
    struct rpc_stream *stream; /* held */
    bool joined;               /* the first message came; the poller's */
    /* Put through; the poller's. */
    struct rpc_channel *channel;
    struct rpc_stream *source;
    bool client_closed;
    struct process_stream *next; /* of those that are put through: see there */
    uint32_t home;
    uint64_t coordinator;
    bool moved; /* the home has another owner */
    /* Here; the feeder's. */
    struct feed_letter join, left;
    struct arena arena;
    struct process_request request;
    struct group_here *here; /* NULL: not (any more) a member */
    /* Of a subscribing processor: the local bus's. */
    bool subscribing; /* the poller's */
    struct here *bus; /* NULL: not (any more) a member */
};

struct said_note {
    struct feed_letter letter;
    struct process_stream *member;
    size_t len;
    uint8_t bytes[];
};

struct group_question {
    struct feed_letter letter;
    struct node *node;
    struct rpc_call *call;
    struct awaiting awaiting; /* of a reset: until it is on disk */
    bool awaited;
    bool failed;
    uint64_t resets;
    struct arena arena;
    struct group_request request;
};

void feeder_send(struct feeder *feeder, struct feed_letter *letter);
struct feed *feed_new(struct node *node, struct rpc_stream *stream, bool read_all, enum query_kind question);
void feed_finish(struct feed *feed, const struct fault *fault);

/* A reader of the feeder's own; from its thread. The request is copied. */
struct feed *feed_read(struct feeder *feeder, const struct subscribe_request *request,
                       void (*sink)(struct feed *reader, struct bytes message),
                       void (*broke)(struct feed *reader, const struct fault *fault), void *user);
void feed_credit(struct feed *feed, uint32_t credits);
void feed_close(struct feed *feed);
/* Has it a replica? */
bool node_holds(const struct node *node, uint32_t partition);
struct node *feeder_node(const struct feeder *feeder);

/* ---- local_bus.c ---- */

void local_bus_send(struct local_bus *bus, struct feed_letter *letter);

/* ---- groups.c: the processor groups that this node coordinates; the feeder's thread ---- */

struct groups;
struct groups *groups_new(struct feeder *feeder);
void groups_free(struct groups *groups);
void groups_join(struct groups *groups, struct process_stream *member);
void groups_said(struct groups *groups, struct said_note *note);
void groups_left(struct groups *groups, struct process_stream *member); /* frees it */
void groups_asked(struct groups *groups, struct group_question *question);
/* When to tick again; UINT64_MAX for not. */
uint64_t groups_tick(struct groups *groups, uint64_t now_ms);
void groups_end(struct groups *groups); /* the node stops */
void groups_metrics(struct groups *groups, struct buffer *out); /* any thread */
void coordinator_changed(struct fault *fault);
/* The home of a group and its owner, as this node knows it; 0 for nobody. */
uint64_t group_owner(struct node *node, struct bytes group, uint32_t *home);

/* ---- feed_relay.c ---- */

/* Relays for what this node doesn't hold. */
void feed_relays_make(struct feed *feed, const bool *held);
/* Dial again what broke. */
void feed_relays_tick(struct feed *feed, uint64_t now_ms);
/* Give sources credits for what was given on. */
void feed_relays_credit(struct feed *feed);
void feed_relay_took(struct feed_note *note);
void feed_relay_closed(struct feed_note *note, uint64_t now_ms);
void feed_relays_cancel(struct feed *feed);
bool feed_relays_open(const struct feed *feed);
void feed_relays_free(struct feed *feed);

#endif

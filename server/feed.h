/* What the files of the feeder share: feeder.c (the thread), feed_relay.c (partitions that other nodes hold),
 * subscribe_service.c (the streams of clients). */
#ifndef CAIRN_SERVER_FEED_H
#define CAIRN_SERVER_FEED_H

#include "event/event.h"
#include "node.h"

enum feed_letter_kind {
    FEED_OPEN,   /* the feed itself: its request is complete */
    FEED_MORE,   /* its stream has room again */
    FEED_CREDIT, /* struct feed_note */
    FEED_CLOSED, /* its stream is closed; the last from there */
    FEED_AWAITED,
    FEED_RELAYED,      /* struct feed_note: a message of a source */
    FEED_RELAY_CLOSED, /* struct feed_note */
    FEED_WAKE,
    FEED_STOP,
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
    bool read_all;
    bool started; /* the request came; the poller's */
    struct subscribe_request request;
    struct read_all_request read_request;

    struct feed_letter open, more, closed, awaited;
    atomic_bool more_sent;

    /* The feeder's. */
    struct feed *next;
    struct subscription *subscription;
    struct awaiting_many *awaits;
    bool finished;  /* its status is sent */
    bool is_closed; /* nothing of its stream comes any more */
    struct feed_relay *relays;
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

void feeder_send(struct feeder *feeder, struct feed_letter *letter);
struct feed *feed_new(struct node *node, struct rpc_stream *stream, bool read_all);
void feed_finish(struct feed *feed, const struct fault *fault);

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

/*
 * The local event bus of a node: subscribing processors and the events of the commands that this node has
 * handled. Sans-IO.
 *
 *   owner ──committed──▶ publish ──▶ each group whose filter fits ──▶ one member ──acknowledges──▶ done
 *
 * Always true: a group's events of one partition are at one member at a time and come in commit order, each
 * once unless its member goes away; every publication is done exactly once: when all that it waits for is
 * acknowledged, has failed or is late. A slow member costs bounded memory: one that lets too much wait is
 * dismissed. Nothing is kept: who isn't here misses what is published.
 *
 * Thread rule: one thread at a time.
 */
#ifndef CAIRN_EVENT_BUS_H
#define CAIRN_EVENT_BUS_H

#include "event.h"

struct bus;

/* None of these calls back into the bus. */
struct bus_effects {
    void *context;
    /* Events of one partition in commit order. `member` is what bus_join() was given. */
    void (*deliver)(void *context, void *member, uint32_t partition, const struct bytes *packed_events,
                    size_t count);
    /* The member is forgotten; its stream is to end with the fault. */
    void (*dismiss)(void *context, void *member, const struct fault *fault);
    /* A publication is done; of the failures only those that are to be reported. */
    void (*done)(void *context, void *publisher, uint32_t partition, uint64_t ticket,
                 const struct processing_failure *failures, size_t count);
};

struct bus *bus_new(const struct bus_effects *effects, uint32_t partitions);
/* Members must have left or been dismissed; what is published is forgotten. */
void bus_free(struct bus *bus);

/* INVALID: it doesn't fit its group. A member of the same name is dismissed. */
MUST_USE enum status bus_join(struct bus *bus, void *member, const struct process_request *join,
                              uint64_t now_ms, struct fault *fault);
void bus_leave(struct bus *bus, void *member, uint64_t now_ms);
/* INVALID: it was never given that. */
MUST_USE enum status bus_acknowledge(struct bus *bus, void *member, const struct process_request *request,
                                     uint64_t now_ms, struct fault *fault);
MUST_USE enum status bus_fail(struct bus *bus, void *member, const struct process_request *request,
                              uint64_t now_ms, struct fault *fault);
/* The events of one command, as they are stored. Done may come before this returns. */
void bus_publish(struct bus *bus, void *publisher, uint32_t partition, uint64_t ticket,
                 const struct bytes *packed_events, size_t count, uint64_t now_ms);
/* The publisher doesn't wait any more; `done` doesn't come. */
void bus_forget(struct bus *bus, const void *publisher, uint32_t partition, uint64_t ticket);
void bus_tick(struct bus *bus, uint64_t now_ms);
uint64_t bus_deadline(const struct bus *bus); /* when to tick; UINT64_MAX for not */
void bus_dismiss_all(struct bus *bus, const struct fault *fault);

struct bus_counts {
    uint64_t delivered, redelivered, failed, late;
    size_t groups, members, waiting; /* events not acknowledged yet */
};
struct bus_counts bus_counts(const struct bus *bus);

#endif

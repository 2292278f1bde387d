/* Conversions that more than one wire file needs. */
#ifndef CAIRN_WIRE_CONVERT_H
#define CAIRN_WIRE_CONVERT_H

#include "cairn/peer/v1/peer.pb-c.h"
#include "cairn/store/v1/record.pb-c.h"
#include "cairn/v1/command.pb-c.h"
#include "unpack.h"

struct metadata metadata_from(struct arena *arena, void **entries, size_t count);
struct new_event *new_events_from(struct arena *arena, Cairn__V1__NewEvent **messages,
                                  size_t count);
struct reply reply_from(const Cairn__V1__Reply *message);
struct rejection rejection_from(const Cairn__V1__Rejection *message);
enum status check_consistency(Cairn__V1__Consistency consistency, struct fault *fault);
struct origin origin_from(const Cairn__V1__Origin *message);
struct snapshot snapshot_from(struct arena *arena, const Cairn__V1__Snapshot *message);

enum status founding_from(struct founding *founding, struct arena *arena,
                          const Cairn__Store__V1__Founding *message, struct fault *fault);
enum status placement_from(struct placement *placement, struct arena *arena,
                           const Cairn__Store__V1__Placement *message, struct fault *fault);
void put_hello(struct buffer *out, unsigned field, const struct hello *hello);
struct hello hello_from(const Cairn__Peer__V1__Hello *message);
void put_replicas(struct buffer *out, unsigned field, const struct replica_set *set);
enum status log_start_from(const Cairn__V1__LogStart *message, struct log_start *start, struct fault *fault);
enum status event_filter_from(struct arena *arena, const Cairn__V1__EventFilter *message,
                              struct event_filter *filter, struct fault *fault);
void put_log_start(struct buffer *out, unsigned field, const struct log_start *from);
void put_event_filter(struct buffer *out, unsigned field, const struct event_filter *filter);
void put_failures(struct buffer *out, unsigned field, const struct outcome *outcome);
void put_token(struct buffer *out, unsigned field, const struct outcome *outcome);
void put_applied(struct buffer *out, const struct applied *applied);

#endif

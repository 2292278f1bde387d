/*
 * Every bound in the node, with the reason for its size. Settings may lower some of them.
 */
#ifndef CAIRN_BASE_LIMITS_H
#define CAIRN_BASE_LIMITS_H

/* Part of a RocksDB key, so that keys stay short. */
#define AGGREGATE_ID_BYTES_MAX 255
#define TYPE_BYTES_MAX 255
/* Room for two UUIDs and a prefix. */
#define COMMAND_ID_BYTES_MAX 128
/* One command or event payload. Bigger things belong in an object store, with their address here. */
#define PAYLOAD_BYTES_MAX (1U << 20)
/* All events of one command: they travel in one log entry. */
#define DECISION_BYTES_MAX (4U << 20)
#define DECISION_EVENTS_MAX 1024
#define METADATA_ENTRIES_MAX 64
#define SUBJECT_BYTES_MAX 128
/* W3C Trace Context: version 00 has 55; 512 of a list must be carried. */
#define TRACEPARENT_BYTES_MAX 128
#define TRACESTATE_BYTES_MAX 512
/* What gRPC takes before it refuses the call: one largest decision and its envelope. */
#define GRPC_MESSAGE_BYTES_MAX (8U << 20)
/* What a connection may send that comes to no call and no message: some of the largest, in several streams at once. */
#define CONNECTION_IDLE_BYTES_MAX (4U * GRPC_MESSAGE_BYTES_MAX)

/* Commands that wait in the mailbox of one aggregate; more means a hot spot that must push back. */
#define MAILBOX_COMMANDS_MAX 4096
/* Commands inside one node, waiting or running. At some 2 KiB each this is 128 MiB at worst. */
#define COMMANDS_IN_NODE_MAX 65536
/* Decided state of aggregates kept in memory, per node. */
#define AGGREGATE_CACHE_BYTES (64U << 20)
#define AGGREGATE_CACHE_COUNT 100000

/* A log entry of many commands stops growing here, so that one frame can carry it. */
#define LOG_ENTRY_BYTES_TARGET (128U << 10)
/* Frames on a peer link: a heartbeat waits at most for one of these. */
#define FRAME_BYTES_TARGET (256U << 10)
/* Bytes queued for one peer before replication messages to it are dropped (Raft sends them again). */
#define LINK_QUEUE_BYTES_MAX (32U << 20)
/* Log entries of one partition kept in memory for slow followers. */
#define LOG_TAIL_BYTES (512U << 10)
#define LOG_TAIL_ENTRIES 1024
/* The log is trimmed once this much of it has been applied since the last checkpoint. */
#define LOG_CHECKPOINT_ENTRIES 8192
#define LOG_CHECKPOINT_BYTES (8U << 20)
/* What a trimmed log keeps, so that a follower that was away for a moment needs no range. */
#define LOG_TRAILING_ENTRIES 2048
/* Unacknowledged entries per follower. */
#define LOG_INFLIGHT_MAX 4096

#define PARTITIONS_MAX 4096
#define REPLICAS_MAX 7
#define FOUNDERS_MAX 64
#define MEMBERS_MAX 1024
#define SYSTEM_VOTERS_MAX 5
/* Addresses that discovery proposes at a time. */
#define DISCOVERED_MAX 64
#define NAME_BYTES_MAX 63
#define ZONE_BYTES_MAX 63
#define CAPACITY_MAX 10000
/* Room for one more while a replica moves. */
#define REPLICATION_FACTOR_MAX (REPLICAS_MAX - 2)
#define ADDRESS_BYTES_MAX 255
#define HANDLER_TYPES_MAX 64

/* One page of a read: bounded memory for any length of history. */
#define READ_PAGE_EVENTS 512
#define READ_PAGE_BYTES (512U << 10)
#define RANGE_PAGE_BYTES (128U << 10) /* small: commands share the threads that pass it on */
/* One page of a subscription, and how many of them may wait for a slow consumer: with its own buffers that
 * is about 1 MiB for each. */
#define SUBSCRIPTION_PAGE_EVENTS 512
#define SUBSCRIPTION_PAGE_BYTES (256U << 10)
#define SUBSCRIPTION_PENDING_MAX 3
/* Events looked at for one consumer before it's the next one's turn. */
#define SUBSCRIPTION_SCAN_EVENTS 2048
#define SUBSCRIPTION_CREDITS_MAX (1U << 20)
/* Events that wait for one group of subscribing processors, before its slowest member is dismissed. */
#define BUS_QUEUE_BYTES_MAX (16U << 20)
#define FILTER_ENTRIES_MAX 256
#define SUBSCRIPTIONS_IN_NODE_MAX 10000
/* Messages that wait on one stream before its reader is paused. */
#define STREAM_PENDING_MAX 1024

#endif

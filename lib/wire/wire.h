/*
 * Our structs to and from bytes: client messages, peer frames, log entries and stored records.
 * The only folder that knows protobuf. Decoders check every string field for well-formed UTF-8
 * without NUL and name the field that isn't; decoded structs borrow from the arena.
 */
#ifndef CAIRN_WIRE_H
#define CAIRN_WIRE_H

#include "base/base.h"

/* ---- what commands and events are made of ---- */

struct payload {
    enum payload_kind { PAYLOAD_NONE, PAYLOAD_JSON, PAYLOAD_DATA } kind;
    struct bytes content;
};

struct metadata_entry {
    struct bytes key;
    struct bytes value;
};

struct metadata {
    struct metadata_entry *entries;
    size_t count;
};

struct new_event {
    struct bytes id; /* empty when the node is to make one */
    struct bytes subject; /* whom the payload is about; empty for nobody */
    struct bytes type;
    uint32_t revision;
    struct payload payload;
    struct metadata metadata;
};

/* What a command is part of; carried on to its events. */
struct origin {
    struct bytes correlation_id;
    struct bytes causation_id;
    struct bytes traceparent;
    struct bytes tracestate;
};

struct event {
    struct bytes aggregate_type;
    struct bytes aggregate_id;
    uint64_t sequence;
    uint32_t partition;
    uint64_t position;
    struct bytes type;
    struct payload payload;
    struct metadata metadata;
    int64_t time_ms;
    struct bytes command_id;
    struct bytes id;
    uint32_t revision;
    struct origin origin;
    struct bytes principal; /* who sent the command; empty without TLS */
    struct bytes subject;
    uint64_t sealed_by; /* the subject's key; 0: the payload is as it was given */
    bool forgotten;
};

/* The saved state of an aggregate. */
struct snapshot {
    bool present;
    struct bytes aggregate_type;
    struct bytes aggregate_id;
    uint64_t sequence; /* how many events it includes */
    struct payload payload;
    struct seal {
        struct bytes subject;
        uint64_t sealed_by;
    } *seals; /* innermost first */
    size_t seal_count;
};

struct reply {
    bool present;
    struct bytes type;
    struct payload payload;
    struct bytes subject;
    uint64_t sealed_by;
    bool forgotten;
};

struct rejection {
    bool present;
    struct bytes reason;
    struct bytes message;
};

enum command_kind {
    COMMAND_DISPATCH = 1,
    COMMAND_APPEND = 2,
    COMMAND_WRITE_SNAPSHOT = 3,
    COMMAND_DELETE_SNAPSHOT = 4,
    COMMAND_FORGET = 5, /* a subject, in one partition */
};

struct command {
    enum command_kind kind;
    struct bytes id;
    struct bytes aggregate_type;
    struct bytes aggregate_id;
    struct bytes type; /* COMMAND_DISPATCH only */
    struct payload payload;
    struct metadata metadata;
    struct origin origin;
    struct bytes subject;   /* whom it is about */
    struct bytes principal; /* who sent it; never from the request */
    bool expects_sequence;
    uint64_t expected_sequence;
    struct new_event *events; /* COMMAND_APPEND only */
    size_t event_count;
    struct snapshot snapshot; /* COMMAND_WRITE_SNAPSHOT only */
    uint64_t fingerprint; /* tells a retry from a reused id */
    struct bytes packed;  /* the request as it came, for forwarding */
};

/* What a subscribing processor made of a command's events, when it isn't good. */
struct processing_failure {
    struct bytes group;
    bool timed_out;
    struct bytes reason;
};

/* The recorded result of a command. */
struct outcome {
    struct bytes command_id;
    struct bytes aggregate_type;
    struct bytes aggregate_id;
    uint64_t fingerprint;
    uint64_t first_sequence;
    uint32_t event_count;
    uint64_t first_position;
    uint32_t partition;
    int64_t time_ms;
    struct reply reply;
    struct rejection rejection;
    bool conflict; /* the rejection says that more events were expected than there were */
    /* Not recorded. */
    const struct processing_failure *failures;
    size_t failure_count;
};

/* ---- client messages ---- */

MUST_USE enum status wire_dispatch_decode(struct bytes packed, struct arena *arena,
                                          struct command *command, struct fault *fault);
MUST_USE enum status wire_append_decode(struct bytes packed, struct arena *arena,
                                        struct command *command, struct fault *fault);
MUST_USE enum status wire_write_snapshot_decode(struct bytes packed, struct arena *arena,
                                                struct command *command, struct fault *fault);
MUST_USE enum status wire_delete_snapshot_decode(struct bytes packed, struct arena *arena,
                                                 struct command *command, struct fault *fault);
/* Of either. */
void wire_snapshot_response(struct buffer *out, const struct outcome *outcome);
/* DispatchStreamRequest; timeout_ms is 0 when the message has none. */
MUST_USE enum status wire_dispatch_stream_decode(struct bytes packed, struct arena *arena,
                                                 struct command *command, uint64_t *timeout_ms,
                                                 struct fault *fault);
/* Check ids, types and sizes against limits.h, and work out the fingerprint. */
MUST_USE enum status command_check(struct command *command, uint32_t payload_max,
                                   struct fault *fault);
MUST_USE enum status new_event_check(const struct new_event *event, uint32_t payload_max,
                                     struct fault *fault);
/* `owner` is the hint, empty when the asked node is the owner. */
void wire_dispatch_response(struct buffer *out, const struct outcome *outcome, struct bytes owner);
/* A ForgetSubjectRequest, as a command to each partition. */
void wire_forget_request_pack(struct buffer *out, struct bytes command_id, struct bytes subject);
void wire_forget_response(struct buffer *out, size_t partitions);
MUST_USE enum status wire_forget_decode(struct bytes packed, struct arena *arena, struct command *command,
                                        struct fault *fault);
void wire_append_response(struct buffer *out, const struct outcome *outcome, struct bytes owner);
void wire_dispatch_stream_response(struct buffer *out, struct bytes command_id,
                                   const struct outcome *outcome, struct bytes owner,
                                   const struct fault *fault, int grpc_code);

struct read_request {
    struct bytes aggregate_id;
    bool has_from;
    uint64_t from_sequence;
    bool backwards;
    bool stale;
    uint64_t limit;
    bool of_snapshot; /* ReadSnapshot */
};
MUST_USE enum status wire_read_snapshot_decode(struct bytes packed, struct arena *arena,
                                               struct read_request *request, struct fault *fault);
void wire_read_snapshot_response(struct buffer *out, struct bytes packed_snapshot);
MUST_USE enum status wire_read_decode(struct bytes packed, struct arena *arena,
                                      struct read_request *request, struct fault *fault);
/* Where in the log to begin. */
struct log_start {
    enum { START_BEGINNING, START_END, START_TOKEN, START_TIME } kind;
    struct bytes token;
    int64_t time_ms;
};

/* Each list empty for "all". */
struct event_filter {
    const struct bytes *aggregate_types;
    size_t aggregate_type_count;
    const struct bytes *event_types;
    size_t event_type_count;
    const struct bytes *id_prefixes;
    size_t id_prefix_count;
    const uint32_t *partitions;
    size_t partition_count;
};

struct subscribe_request {
    bool is_start;
    uint32_t credits; /* as it came */
    struct log_start from;
    struct event_filter filter;
    uint64_t heartbeat_ms; /* 0 when it came without */
};
MUST_USE enum status wire_subscribe_decode(struct bytes packed, struct arena *arena,
                                           struct subscribe_request *request, struct fault *fault);
/* A request to a peer: a start when `is_start`, else credits. */
void wire_subscribe_pack(struct buffer *out, const struct subscribe_request *request);

/* A question to the log that isn't a walk forwards: see event/query.h. */
struct query_request {
    enum query_kind { QUERY_NONE, QUERY_BACKWARDS, QUERY_AGGREGATES, QUERY_COUNT } kind;
    struct event_filter filter;
    struct log_start from; /* backwards; the end when it came without */
    struct bytes after;    /* aggregates */
    uint64_t limit;
    bool stale;
};
MUST_USE enum status wire_list_aggregates_decode(struct bytes packed, struct arena *arena,
                                                 struct query_request *request, struct fault *fault);
MUST_USE enum status wire_count_events_decode(struct bytes packed, struct arena *arena,
                                              struct query_request *request, struct fault *fault);
/* The same question, for another node. */
void wire_query_pack(struct buffer *out, const struct query_request *request);
struct event_head;
/* An Aggregate, of its newest event. */
void wire_aggregate_pack(struct buffer *out, const struct event_head *newest, uint64_t event_count);
/* An EventCount. */
void wire_count_pack(struct buffer *out, struct bytes aggregate_type, struct bytes type, uint64_t count);

struct read_all_request {
    struct log_start from;
    struct event_filter filter;
    uint64_t limit;
    bool stale;
    bool backwards;
};
MUST_USE enum status wire_read_all_decode(struct bytes packed, struct arena *arena,
                                          struct read_all_request *request, struct fault *fault);
void wire_read_all_pack(struct buffer *out, const struct read_all_request *request);
/* Both responses have the same form: events, each packed, then maybe a token. */
bool wire_event_is_sealed(struct bytes packed);
/* Is any of the message's events sealed? See lib/subject. */
bool wire_has_sealed(struct bytes message);
void wire_subscribe_response_add(struct buffer *out, struct bytes packed_event);
void wire_subscribe_response_token(struct buffer *out, struct bytes token);
struct subscribe_response {
    const struct bytes *packed_events;
    size_t event_count;
    struct bytes token;
};
MUST_USE enum status wire_subscribe_response_decode(struct bytes packed, struct arena *arena,
                                                    struct subscribe_response *response,
                                                    struct fault *fault);

/* ---- processor groups ---- */

enum process_kind { PROCESS_JOIN = 1, PROCESS_ACKNOWLEDGE, PROCESS_FAIL };

struct process_request {
    enum process_kind kind;
    /* Join. */
    struct bytes group;
    struct bytes member;
    struct event_filter filter;
    struct log_start from;
    uint32_t window;
    uint64_t ack_timeout_ms;
    bool forwarded;
    bool subscribing;
    bool no_wait;
    uint64_t wait_ms; /* 0 when it came without */
    bool report_failure;
    /* The others. */
    uint32_t partition;
    uint64_t position;
    bool up_to;
    struct bytes reason;
};
MUST_USE enum status wire_process_decode(struct bytes packed, struct arena *arena,
                                         struct process_request *request, struct fault *fault);
/* A join, for another node. */
void wire_join_pack(struct buffer *out, const struct process_request *request);
/* Its filter alone, to compare. */
void wire_join_filter(struct buffer *out, const struct process_request *join);
void wire_assignment_pack(struct buffer *out, const uint32_t *partitions, size_t count);
/* Begin, add events as of a SubscribeResponse, end with what begin gave. */
size_t wire_delivery_begin(struct buffer *out, uint32_t partition, uint64_t replay_until, uint32_t attempt, bool begins);
void wire_delivery_add(struct buffer *out, struct bytes packed_event);
void wire_delivery_end(struct buffer *out, size_t begun);

/* Also says that the delivery is of one parked event. */
void wire_delivery_parked(struct buffer *out);

struct group_request {
    enum group_request_kind { GROUP_GET, GROUP_RESET, GROUP_RETRY } kind;
    struct bytes group;
    struct parked_position {
        uint32_t partition;
        uint64_t position;
    } *events; /* of a retry; none for all */
    size_t event_count;
    struct log_start from; /* of a reset */
    bool forwarded;
};
MUST_USE enum status wire_group_request_decode(enum group_request_kind kind, struct bytes packed,
                                               struct arena *arena, struct group_request *request,
                                               struct fault *fault);
struct parked;
/* The same request, for another node. */
void wire_group_request_forward(struct buffer *out, struct bytes packed, enum group_request_kind kind);
void wire_retry_parked_response(struct buffer *out, uint32_t events);
/* Parts of a GetGroupResponse. */
void wire_group_add_member(struct buffer *out, struct bytes member, uint32_t partitions, uint64_t unacknowledged);
struct group_partition {
    uint64_t position;
    struct bytes member;
    uint64_t lag;
    uint64_t lag_ms;  /* when there is a lag */
    uint64_t idle_ms; /* since it moved; UINT64_MAX: never yet */
    uint64_t redelivered;
    uint32_t parked;
};
void wire_group_add_partition(struct buffer *out, uint32_t partition, const struct group_partition *view);
void wire_group_add_parked(struct buffer *out, uint32_t partition, const struct parked *parked);

/* Add one packed event to a ReadAggregateResponse under construction. */
void wire_read_response_add(struct buffer *out, struct bytes packed_event);

/* ---- workers ---- */

struct worker_message {
    enum { WORKER_NOTHING, WORKER_REGISTER, WORKER_RESULT, WORKER_HEARTBEAT } kind;
    struct {
        struct bytes name;
        struct bytes aggregate_type;
        struct bytes *command_types;
        size_t command_type_count;
        uint32_t permits;
    } registration;
    struct execution_result {
        uint64_t execution_id;
        struct new_event *events;
        size_t event_count;
        struct reply reply;
        struct rejection rejection;
        struct bytes failure;
        bool needs_history;
        struct snapshot snapshot;
    } result;
    struct bytes packed_result; /* the result alone, for sending on to the owner */
};
MUST_USE enum status wire_worker_decode(struct bytes packed, struct arena *arena,
                                        struct worker_message *message, struct fault *fault);
MUST_USE enum status wire_result_decode(struct bytes packed, struct arena *arena,
                                        struct execution_result *result, struct fault *fault);
void wire_worker_registered(struct buffer *out, const char *node, uint32_t heartbeat_ms);
void wire_worker_heartbeat(struct buffer *out);

struct execute {
    uint64_t execution_id;
    struct bytes packed_command; /* the Command message inside the request */
    uint64_t sequence;
    uint64_t events_from;
    const struct bytes *packed_events;
    size_t event_count;
    struct bytes packed_snapshot; /* empty for none */
    struct bytes principal;
};
void wire_execute_pack(struct buffer *out, const struct execute *execute);
/* Wrap a packed Execute, with another execution id, as a HandleCommandsResponse. */
void wire_execute_response(struct buffer *out, struct bytes packed_execute,
                           uint64_t execution_id);
/* What of an execute is needed to choose a worker. */
MUST_USE enum status wire_execute_peek(struct bytes packed, struct arena *arena,
                                       uint64_t *execution_id, struct bytes *aggregate_type,
                                       struct bytes *aggregate_id, struct bytes *command_type,
                                       uint64_t *sequence, struct fault *fault);
/* The Command message inside a packed request. */
struct bytes wire_command_inside(const struct command *command);
/* The packed request carries the command's id from now on, so that a resend is known. */
void wire_command_seal(struct command *command, struct arena *arena);

/* ---- stored records ---- */

void wire_event_pack(struct buffer *out, const struct event *event);
/* What a filter or a reader looks at, without unpacking the rest; borrowed from the bytes. */
struct event_head {
    struct bytes aggregate_type;
    struct bytes aggregate_id;
    struct bytes type;
    uint32_t partition;
    uint64_t position;
    int64_t time_ms;
};
MUST_USE enum status wire_event_peek(struct bytes packed, struct event_head *head,
                                     struct fault *fault);
MUST_USE enum status wire_event_decode(struct bytes packed, struct arena *arena,
                                       struct event *event, struct fault *fault);

void wire_snapshot_pack(struct buffer *out, const struct snapshot *snapshot);
MUST_USE enum status wire_snapshot_decode(struct bytes packed, struct arena *arena,
                                          struct snapshot *snapshot, struct fault *fault);

/* An outcome at rest: time as i64 first, so that the age filter needs no decoding. */
void wire_outcome_pack(struct buffer *out, const struct outcome *outcome);
MUST_USE enum status wire_outcome_decode(struct bytes packed, struct arena *arena,
                                         struct outcome *outcome, struct fault *fault);

/* Add one decided command to a log entry under construction. */
void wire_log_batch_add(struct buffer *out, const struct outcome *outcome,
                        const struct bytes *packed_events, size_t event_count);

/* The same for a snapshot. */
void wire_log_batch_add_snapshot(struct buffer *out, const struct snapshot *snapshot);

/* Where a processor group stands in one partition. */
struct group_cursor {
    struct bytes group;
    uint32_t partition;
    uint64_t position;
    uint64_t replay_until;
    struct parked {
        uint64_t position;
        struct bytes reason;
        uint32_t attempts;
    } *parked;
    size_t parked_count;
    bool unknown; /* the position, so far: `start` tells */
    struct log_start start;
    uint64_t resets;
};
/* As a log entry of its own, with others of the same. */
void wire_log_batch_add_cursor(struct buffer *out, const struct group_cursor *cursor);
MUST_USE enum status wire_cursor_decode(struct bytes packed, struct arena *arena,
                                        struct group_cursor *cursor, struct fault *fault);

/* An aggregate has events of a subject. */
struct subject_use {
    struct bytes aggregate_id;
    struct bytes subject;
};

/* A subject's key at rest; without `wrapped` all keys of the subject are destroyed. */
struct key_record {
    struct bytes subject;
    uint64_t key_id;
    struct bytes master;
    struct bytes wrapped;
    struct bytes made_under; /* the id of the master key that was the first then */
};
void wire_key_record_pack(struct buffer *out, const struct key_record *record);
MUST_USE enum status wire_key_record_decode(struct bytes packed, struct arena *arena, struct key_record *record,
                                            struct fault *fault);

void wire_log_batch_add_key(struct buffer *out, const struct key_record *record);
void wire_log_batch_add_use(struct buffer *out, const struct subject_use *use);

struct log_batch {
    struct command_record {
        struct outcome outcome;
        struct bytes *packed_events;
        size_t event_count;
    } *commands;
    size_t command_count;
    struct snapshot_record {
        struct snapshot snapshot;
        struct bytes packed;
    } *snapshots;
    size_t snapshot_count;
    struct cursor_record {
        struct group_cursor cursor;
        struct bytes packed;
    } *cursors;
    size_t cursor_count;
    struct key_record *keys;
    size_t key_count;
    struct subject_use *uses;
    size_t use_count;
};
MUST_USE enum status wire_log_batch_decode(struct bytes packed, struct arena *arena,
                                           struct log_batch *batch, struct fault *fault);

struct log_entry {
    uint64_t term;
    uint32_t type; /* of libraft; only lib/partition cares */
    struct bytes payload;
};
/* A log entry at rest. */
void wire_log_entry_pack(struct buffer *out, const struct log_entry *entry);
MUST_USE enum status wire_log_entry_decode(struct bytes packed, struct log_entry *entry,
                                           struct fault *fault);

struct applied {
    uint64_t index;
    uint64_t term;
    uint64_t next_position;
    int64_t last_time_ms;
};
void wire_applied_pack(struct buffer *out, const struct applied *applied);
MUST_USE enum status wire_applied_decode(struct bytes packed, struct applied *applied,
                                         struct fault *fault);

struct checkpoint {
    uint64_t index;
    uint64_t term;
    uint64_t configuration_index;
    struct bytes configuration;
};
void wire_checkpoint_pack(struct buffer *out, const struct checkpoint *checkpoint);
MUST_USE enum status wire_checkpoint_decode(struct bytes packed, struct arena *arena,
                                            struct checkpoint *checkpoint, struct fault *fault);

void wire_vote_pack(struct buffer *out, uint64_t term, uint64_t voted_for);
MUST_USE enum status wire_vote_decode(struct bytes packed, uint64_t *term, uint64_t *voted_for,
                                      struct fault *fault);

struct identity {
    uint64_t node_id;
    struct bytes name;
};
void wire_identity_pack(struct buffer *out, const struct identity *identity);
MUST_USE enum status wire_identity_decode(struct bytes packed, struct arena *arena,
                                          struct identity *identity, struct fault *fault);

struct founder {
    uint64_t node_id;
    struct bytes name;
    struct bytes address;
};

struct replica_set {
    uint64_t replicas[REPLICAS_MAX]; /* the first is the preferred owner */
    size_t count;
};

bool replica_set_holds(const struct replica_set *set, uint64_t node_id);
/* The same nodes, in whatever order. */
bool replica_set_same(const struct replica_set *a, const struct replica_set *b);

/* How a cluster was created. */
struct founding {
    struct bytes cluster_id;
    struct bytes cluster_name;
    uint64_t proposer;
    uint32_t partition_count;
    uint32_t replication_factor;
    struct founder *founders;
    size_t founder_count;
    struct replica_set *sets; /* partition_count of them, then the system partition's */
    size_t set_count;
    bool complete;
};
void wire_founding_pack(struct buffer *out, const struct founding *founding);
MUST_USE enum status wire_founding_decode(struct bytes packed, struct arena *arena,
                                          struct founding *founding, struct fault *fault);

enum placed_state { PLACED_MEMBER = 1, PLACED_DRAINING, PLACED_REMOVED };

struct placed_member {
    uint64_t node_id;
    struct bytes name;
    struct bytes zone;
    uint32_t capacity;
    enum placed_state state;
};

/* One version of who should hold what. */
struct placement {
    uint64_t version;
    struct bytes cluster_id;
    struct bytes cluster_name;
    uint32_t partition_count;
    uint32_t replication_factor;
    struct placed_member *members;
    size_t member_count;
    struct replica_set *sets; /* partition_count of them, then the system partition's */
    size_t set_count;
    uint32_t moves_at_once;
    uint64_t transfer_bytes;
    uint64_t grace_ms;
    uint32_t release; /* that every member has: what is new with it may be used */
};
void wire_placement_pack(struct buffer *out, const struct placement *placement);
/* A copy that shares nothing; false when it wouldn't be taken from the wire either. */
bool wire_placement_copy(const struct placement *from, struct arena *arena, struct placement *to);
MUST_USE enum status wire_placement_decode(struct bytes packed, struct arena *arena,
                                           struct placement *placement, struct fault *fault);

/* ---- topology ---- */

struct placement_order {
    enum order_kind { ORDER_DRAIN = 1, ORDER_UNDRAIN, ORDER_REMOVE, ORDER_PREFER, ORDER_SETTINGS } kind;
    struct bytes name; /* of a member, or its id in 16 hexadecimal digits */
    bool force;
    uint32_t partition; /* to be owned by that member */
    bool set_replication_factor, set_moves_at_once, set_transfer_bytes, set_grace_ms;
    uint32_t replication_factor;
    uint32_t moves_at_once;
    uint64_t transfer_bytes;
    uint64_t grace_ms;
};
/* From the request of DrainNode (also for an undrain), RemoveNode, TransferOwnership or UpdateSettings. */
MUST_USE enum status wire_order_decode(uint32_t kind, struct bytes packed, struct arena *arena,
                                       struct placement_order *order, struct fault *fault);
/* Their answers all have this form. */
void wire_order_answer_pack(struct buffer *out, uint64_t version);

struct topology_member {
    uint64_t node_id;
    struct bytes name;
    struct bytes address;
    int status; /* enum member_status */
    uint64_t incarnation;
    const struct bytes *handlers;
    size_t handler_count;
    struct bytes zone;
    uint32_t capacity;
    int placed; /* enum placed_state; 0: not yet */
    uint32_t replicas;
    uint32_t owned;
};

struct owner_note;

struct topology {
    struct bytes cluster_id;
    struct bytes cluster_name;
    uint32_t replication_factor;
    const struct topology_member *members;
    size_t member_count;
    const struct owner_note *partitions; /* and the system partition's */
    size_t partition_count;
    uint64_t node_id;
    const struct replica_set *targets; /* NULL: not known */
    uint64_t placement_version;
    uint32_t moves_at_once;
    uint64_t transfer_bytes;
    uint64_t grace_ms;
    uint32_t release;
};
/* A GetTopologyResponse; WatchTopologyResponse has the same form. */
void wire_topology_pack(struct buffer *out, const struct topology *topology);

/* ---- peer frames ---- */

/* A node speaks its own release's protocol and the one before; so does its store. What is new with a release is
 * used once the placement says that all members have it. Tests build a node of the next release. */
#ifndef CAIRN_RELEASE
#define CAIRN_RELEASE 1
#endif
enum { PEER_PROTOCOL_MAX = CAIRN_RELEASE, PEER_PROTOCOL_MIN = CAIRN_RELEASE > 1 ? CAIRN_RELEASE - 1 : 1 };

struct hello {
    bool present;
    struct bytes cluster_id;
    struct bytes cluster_name;
    uint64_t node_id;
    struct bytes name;
    struct bytes address;
    uint32_t protocol_min;
    uint32_t protocol_max;
    uint64_t target_id;
    struct bytes replaces;
};

enum replica_message_type {
    REPLICA_APPEND_ENTRIES = 1,
    REPLICA_APPEND_ENTRIES_RESULT,
    REPLICA_REQUEST_VOTE,
    REPLICA_REQUEST_VOTE_RESULT,
    REPLICA_INSTALL_SNAPSHOT,
    REPLICA_TIMEOUT_NOW,
};

/* See peer.proto for which field means what in which type. */
struct replica_message {
    uint32_t partition;
    enum replica_message_type type;
    uint32_t version;
    uint64_t term;
    uint64_t log_index;
    uint64_t log_term;
    uint64_t leader_commit;
    uint64_t rejected;
    bool flag;
    bool pre_vote;
    uint32_t features;
    uint32_t capacity;
    const struct log_entry *entries;
    size_t entry_count;
    uint64_t configuration_index;
    struct bytes configuration;
};

struct forwarded_command {
    uint64_t request_id;
    uint32_t partition;
    uint32_t hops;
    uint32_t timeout_ms;
    enum command_kind kind;
    struct bytes request;
    struct bytes principal;
};

struct command_result {
    uint64_t request_id;
    struct bytes outcome; /* packed, empty when there is a fault */
    uint32_t status;      /* enum status when outcome is empty */
    struct bytes reason;
    struct bytes message;
    uint64_t owner;
    uint64_t epoch;
    uint32_t retry_ms;
};

struct owner_note {
    uint32_t partition;
    uint64_t owner;
    uint64_t epoch;
    struct replica_set voters; /* none: the sender doesn't know */
    struct replica_set standbys;
    uint64_t configuration_index;
    uint64_t placement_version; /* the system partition's only */
};

struct read_index {
    uint64_t request_id;
    uint32_t partition; /* requests only */
    uint64_t index;     /* results only, 0 when not the owner */
    uint64_t owner;
    uint64_t epoch;
};

struct remote_execute {
    uint64_t request_id;
    uint32_t timeout_ms; /* executes only */
    struct bytes body;
};

/* Everything one LinkRequest can hold, decoded. */
struct frame {
    struct hello hello;
    struct replica_message *replica_messages;
    size_t replica_message_count;
    struct forwarded_command *commands;
    size_t command_count;
    struct command_result *results;
    size_t result_count;
    struct owner_note *owners;
    size_t owner_count;
    struct read_index *read_requests;
    size_t read_request_count;
    struct read_index *read_results;
    size_t read_result_count;
    struct remote_execute *executes;
    size_t execute_count;
    struct remote_execute *execute_results;
    size_t execute_result_count;
    bool has_placement;
    struct placement placement;
    uint64_t placement_wanted; /* plus one; 0 for not */
};

/* A frame is built by adding parts to a buffer, in any order. */
void frame_add_hello(struct buffer *out, const struct hello *hello);
void frame_add_replica_message(struct buffer *out, const struct replica_message *message);
void frame_add_command(struct buffer *out, const struct forwarded_command *command);
void frame_add_result(struct buffer *out, const struct command_result *result);
void frame_add_owner(struct buffer *out, const struct owner_note *note);
void frame_add_read_request(struct buffer *out, const struct read_index *request);
void frame_add_read_result(struct buffer *out, const struct read_index *result);
void frame_add_execute(struct buffer *out, const struct remote_execute *execute);
void frame_add_execute_result(struct buffer *out, const struct remote_execute *result);
void frame_add_placement(struct buffer *out, const struct placement *placement);
void frame_add_placement_wanted(struct buffer *out, uint64_t version);
MUST_USE enum status frame_decode(struct bytes packed, struct arena *arena, struct frame *frame,
                                  struct fault *fault);

/* An order on its way to the owner of the system partition: see wire_order_decode(). */
struct operate_request {
    struct hello hello;
    uint32_t kind;
    struct bytes request;
};
void wire_operate_pack(struct buffer *out, const struct operate_request *request);
MUST_USE enum status wire_operate_decode(struct bytes packed, struct arena *arena,
                                         struct operate_request *request, struct fault *fault);

/* LinkResponse and GossipResponse: the answer to a hello. */
void wire_welcome_pack(struct buffer *out, const char *refusal, uint64_t node_id,
                       struct bytes cluster_id);
MUST_USE enum status wire_welcome_decode(struct bytes packed, struct arena *arena,
                                         struct bytes *refusal, uint64_t *node_id,
                                         struct bytes *cluster_id, struct fault *fault);

/* ---- control frames ---- */

enum member_status { MEMBER_ALIVE = 1, MEMBER_SUSPECT, MEMBER_DEAD, MEMBER_LEFT };

struct member_state {
    uint64_t node_id;
    struct bytes name;
    struct bytes address;
    uint64_t incarnation;
    enum member_status status;
    const struct bytes *handlers;
    size_t handler_count;
    bool unfounded;
    uint64_t accuser; /* who suspects it */
    struct bytes zone;
    uint32_t capacity;
    uint32_t protocol_min;
    uint32_t protocol_max;
    struct bytes replaces; /* the name of the dead member whose place it takes */
};

enum swim_message_type {
    SWIM_PING = 1,
    SWIM_ACK,
    SWIM_PING_REQ,
    SWIM_NACK,
    SWIM_GOSSIP,
    SWIM_PUSH, /* full state, and asks for one */
    SWIM_PULL, /* full state in answer */
};

struct swim_message {
    enum swim_message_type type;
    uint64_t number;
    uint64_t from;
    uint64_t target;
    struct bytes target_address;
    const struct member_state *updates;
    size_t update_count;
};

enum founding_message_type {
    FOUNDING_PROPOSE = 1,
    FOUNDING_ACCEPTED,
    FOUNDING_REFUSED,
    FOUNDING_ABANDONED,
};

struct gossip_frame {
    struct hello hello;
    struct swim_message *swim;
    size_t swim_count;
    uint32_t founding_type; /* 0 for none */
    struct founding founding;
};

void gossip_add_hello(struct buffer *out, const struct hello *hello);
void gossip_add_swim(struct buffer *out, const struct swim_message *message);
void gossip_add_founding(struct buffer *out, enum founding_message_type type,
                         const struct founding *founding);
MUST_USE enum status gossip_decode(struct bytes packed, struct arena *arena,
                                   struct gossip_frame *frame, struct fault *fault);

/* ---- discovery ---- */

struct announcement {
    struct bytes cluster_name;
    uint64_t node_id;
    struct bytes address;
};
void wire_announcement_pack(struct buffer *out, const struct announcement *announcement);
MUST_USE enum status wire_announcement_decode(struct bytes packed, struct arena *arena,
                                              struct announcement *announcement, struct fault *fault);

/* ---- bulk: the key range of a partition ---- */

struct key_value {
    struct bytes key;
    struct bytes value;
};

struct range_request {
    struct hello hello;
    uint32_t partition;
    uint64_t index;
    uint64_t term;
};

struct range_part {
    uint32_t family;
    struct key_value *pairs;
    size_t pair_count;
    bool last;
    struct applied applied; /* with the last part */
    struct bytes refusal;
};
void wire_range_request_pack(struct buffer *out, const struct range_request *request);
MUST_USE enum status wire_range_request_decode(struct bytes packed, struct arena *arena,
                                               struct range_request *request,
                                               struct fault *fault);
void wire_range_part_begin(struct buffer *out, uint32_t family);
void wire_range_part_add(struct buffer *out, struct bytes key, struct bytes value);
void wire_range_part_last(struct buffer *out, const struct applied *applied);
void wire_range_part_refuse(struct buffer *out, const char *refusal);
MUST_USE enum status wire_range_part_decode(struct bytes packed, struct arena *arena,
                                            struct range_part *part, struct fault *fault);

/* ---- errors, health, reflection ---- */

/* A packed google.rpc.Status with ErrorInfo and, when the fault has a delay, RetryInfo. */
void wire_fault_pack(struct buffer *out, const struct fault *fault, int grpc_code);
/* The ErrorInfo's reason of another node's google.rpc.Status, in the arena; empty when it has none. */
struct bytes wire_fault_reason(struct bytes packed, struct arena *arena);

MUST_USE enum status wire_health_decode(struct bytes packed, struct arena *arena,
                                        struct bytes *service, struct fault *fault);
void wire_health_pack(struct buffer *out, int serving_status);

/* Answer one ServerReflectionRequest from an embedded FileDescriptorSet. Both published versions
 * of the service have the same wire form. */
MUST_USE enum status wire_reflection_answer(struct buffer *out, struct bytes request,
                                            struct bytes descriptor_set, struct fault *fault);

#endif

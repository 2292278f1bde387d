/*
 * Partitions of a subscription that this node holds no replica of: the same request, for those partitions, to
 * a node that does. A source that breaks or hangs is replaced by another, from where the subscription stands.
 */
#include "access.h"
#include "faults.h"
#include "feed.h"

enum { RETRY_MS = 200, SOURCE_CREDITS = 1024, SOURCE_HEARTBEAT_MS = 1000, WAITING_BYTES_MAX = 1 << 20 };

/* ---- what a source says; the poller's thread ---- */

static struct feed_note *note_new(struct feed_relay *relay, enum feed_letter_kind kind, struct bytes bytes)
{
    struct feed_note *note = memory_zero(1, sizeof *note + bytes.len);

    note->letter.kind = kind;
    note->feed = relay->feed;
    note->relay = relay;
    note->len = bytes.len;
    if (bytes.len > 0)
        memcpy(note->bytes, bytes.data, bytes.len);
    return note;
}

static void on_message(void *user, struct rpc_stream *source, struct bytes message)
{
    struct feed_relay *relay = user;

    (void)source;
    feeder_send(relay->feed->node->feeder, &note_new(relay, FEED_RELAYED, message)->letter);
}

static void on_closed(void *user, struct rpc_stream *source, int code, const char *text)
{
    struct feed_relay *relay = user;
    struct feed_note *note = note_new(relay, FEED_RELAY_CLOSED, BYTES_NONE);

    (void)source;
    note->code = code;
    snprintf(note->text, sizeof note->text, "%s", text);
    feeder_send(relay->feed->node->feeder, &note->letter);
}

static const struct rpc_stream_events events = {.message = on_message, .closed = on_closed};

/* ---- the feeder's thread ---- */

static bool holds(struct node *node, uint32_t partition, uint64_t node_id)
{
    struct owner_note note;

    routes_get(node->routes, partition, &note);
    return replica_set_holds(&note.voters, node_id);
}

/* All that the first holder of a partition has goes to it, so that there are few sources. */
void feed_relays_make(struct feed *feed, const bool *held)
{
    uint32_t all = node_partition_count(feed->node);
    uint32_t *partitions = arena_take(&feed->arena, all * sizeof *partitions);
    bool *wanted = arena_take(&feed->arena, all);

    for (uint32_t p = 0; p < all; p++)
        wanted[p] = !held[p] && (feed->query != NULL ? query_includes(feed->query, p)
                                                     : subscription_includes(feed->subscription, p));
    for (uint32_t first = 0; first < all; first++) {
        struct feed_relay *relay;
        struct owner_note note;
        size_t count = 0;

        if (!wanted[first])
            continue;
        routes_get(feed->node->routes, first, &note);
        for (uint32_t p = first; p < all; p++)
            if (wanted[p] && (p == first || holds(feed->node, p, note.voters.replicas[0]))) {
                wanted[p] = false;
                partitions[count++] = p;
            }
        relay = memory_zero(1, sizeof *relay);
        relay->feed = feed;
        relay->count = count;
        relay->partitions = memory_take(count * sizeof *partitions);
        memcpy(relay->partitions, partitions, count * sizeof *partitions);
        if (feed->query != NULL)
            relay->source = query_foreign(feed->query);
        else
            relay->foreign = subscription_foreign(feed->subscription, partitions, count);
        relay->next = feed->relays;
        feed->relays = relay;
    }
}

/* Who holds all of the relay's partitions and answers, another than the last time where there is one; 0 for nobody
 * now. A single partition, which can't be divided, is asked of who is suspected if need be. */
static uint64_t choose(const struct feed_relay *relay)
{
    struct node *node = relay->feed->node;
    struct owner_note note;
    uint64_t again = 0;
    uint64_t suspected = 0;

    routes_get(node->routes, relay->partitions[0], &note);
    for (size_t i = 0; i < note.voters.count; i++) {
        uint64_t candidate = note.voters.replicas[i];
        bool all = links_up(node->links, candidate);

        for (size_t n = 1; all && n < relay->count; n++)
            all = holds(node, relay->partitions[n], candidate);
        if (!all)
            continue;
        if (!control_member_answers(node->control, candidate))
            suspected = candidate;
        else if (candidate == relay->last_target)
            again = candidate;
        else
            return candidate;
    }
    return again != 0 || relay->count > 1 ? again : suspected;
}

static void open_source(struct feed_relay *relay, uint64_t target, const char *address, const char *method,
                        const struct buffer *request)
{
    relay->last_target = target;
    rpc_channel_free(relay->channel);
    relay->channel = rpc_channel_new(relay->feed->node->loop, address, GRPC_MESSAGE_BYTES_MAX, access_peer_tls(relay->feed->node));
    relay->stream = rpc_stream_open(relay->channel, method, &events, relay, 0);
    rpc_stream_send(relay->stream, buffer_bytes(request));
    if (relay->feed->read_all)
        rpc_stream_finish(relay->stream, 0, NULL, BYTES_NONE);
}

static void ask_source(struct feed_relay *relay, uint64_t target, const char *address)
{
    static const char *const methods[] = {[QUERY_BACKWARDS] = "/cairn.v1.EventService/ReadAll",
                                          [QUERY_AGGREGATES] = "/cairn.v1.EventService/ListAggregates",
                                          [QUERY_COUNT] = "/cairn.v1.EventService/CountEvents"};
    struct query_request question = relay->feed->question;
    struct buffer out = {0};

    question.filter.partitions = relay->partitions;
    question.filter.partition_count = relay->count;
    wire_query_pack(&out, &question);
    open_source(relay, target, address, methods[question.kind], &out);
    buffer_release(&out);
}

static void dial(struct feed_relay *relay, uint64_t target, const char *address)
{
    struct feed *feed = relay->feed;
    struct buffer token = {0};
    struct buffer out = {0};
    const char *method = "/cairn.v1.EventService/Subscribe";
    struct subscribe_request request = {
        .is_start = true,
        .credits = SOURCE_CREDITS,
        .from = feed->request.from,
        .filter = feed->request.filter,
        .heartbeat_ms = SOURCE_HEARTBEAT_MS,
    };

    request.filter.partitions = relay->partitions;
    request.filter.partition_count = relay->count;
    if (foreign_begun(relay->foreign)) {
        subscription_token(feed->subscription, &token);
        request.from = (struct log_start){.kind = START_TOKEN, .token = buffer_bytes(&token)};
    }
    foreign_reset(relay->foreign);
    if (feed->read_all) {
        struct read_all_request all = {
            .from = request.from, .filter = request.filter, .stale = feed->read_request.stale};

        method = "/cairn.v1.EventService/ReadAll";
        wire_read_all_pack(&out, &all);
    } else {
        wire_subscribe_pack(&out, &request);
    }
    open_source(relay, target, address, method, &out);
    buffer_release(&out);
    buffer_release(&token);
}

/* Its source doesn't answer any more, and others can be asked; what can't be asked of them has to be lost first. */
static bool hangs(const struct feed_relay *relay)
{
    struct control *control = relay->feed->node->control;
    uint64_t next;

    if (control_member_answers(control, relay->last_target))
        return false;
    if (relay->source != NULL && relay->begun)
        return control_member_status(control, relay->last_target) != MEMBER_SUSPECT;
    next = choose(relay);
    return next == 0 ? relay->count > 1 : control_member_answers(control, next);
}

void feed_relays_tick(struct feed *feed, uint64_t now_ms)
{
    for (struct feed_relay *relay = feed->relays; relay != NULL; relay = relay->next) {
        char address[ADDRESS_BYTES_MAX + 1];
        uint64_t target;

        if (relay->stream != NULL && hangs(relay))
            rpc_stream_cancel(relay->stream);
        if (relay->stream != NULL || relay->ended || now_ms < relay->retry_ms)
            continue;
        relay->retry_ms = now_ms + RETRY_MS;
        target = choose(relay);
        if (target == 0 && relay->count > 1) { /* nobody holds all of them and can be asked: one by one */
            struct feed_relay *rest = memory_zero(1, sizeof *rest);

            *rest = (struct feed_relay){.next = relay->next, .feed = feed, .count = relay->count / 2};
            rest->partitions = memory_take(rest->count * sizeof *rest->partitions);
            relay->count -= rest->count;
            memcpy(rest->partitions, relay->partitions + relay->count, rest->count * sizeof *rest->partitions);
            if (feed->query != NULL)
                rest->source = query_foreign(feed->query);
            else
                rest->foreign = subscription_foreign(feed->subscription, rest->partitions, rest->count);
            if (rest->foreign != NULL && foreign_begun(relay->foreign))
                foreign_begin(rest->foreign);
            relay->next = rest;
            relay->retry_ms = now_ms;
        } else if (target != 0 &&
                   control_member_address(feed->node->control, target, address, sizeof address)) {
            (feed->query != NULL ? ask_source : dial)(relay, target, address);
        }
    }
}

static size_t waiting(const struct feed_relay *relay)
{
    return relay->source != NULL ? query_waiting(relay->source) : foreign_waiting(relay->foreign);
}

void feed_relays_credit(struct feed *feed)
{
    for (struct feed_relay *relay = feed->relays; relay != NULL; relay = relay->next) {
        struct subscribe_request more = {.credits = relay->foreign == NULL ? 0 : foreign_given(relay->foreign)};
        struct buffer out = {0};

        if (relay->stream != NULL && waiting(relay) < WAITING_BYTES_MAX)
            rpc_stream_pause(relay->stream, false);
        if (more.credits == 0 || relay->stream == NULL || feed->read_all)
            continue;
        wire_subscribe_pack(&out, &more);
        rpc_stream_send(relay->stream, buffer_bytes(&out));
        buffer_release(&out);
    }
}

void feed_relay_took(struct feed_note *note)
{
    struct bytes message = {note->bytes, note->len};
    struct fault fault;

    if (note->feed->finished || note->relay->stream == NULL)
        return;
    note->relay->begun = true;
    if ((note->relay->source != NULL ? query_take(note->relay->source, message, &fault)
                                     : foreign_take(note->relay->foreign, message, &fault)) != STATUS_OK)
        rpc_stream_cancel(note->relay->stream);
    if (waiting(note->relay) >= WAITING_BYTES_MAX)
        rpc_stream_pause(note->relay->stream, true); /* feed_relays_credit() goes on */
}

void feed_relay_closed(struct feed_note *note, uint64_t now_ms)
{
    struct feed_relay *relay = note->relay;
    struct fault fault;

    rpc_stream_drop(relay->stream);
    relay->stream = NULL;
    relay->retry_ms = now_ms + RETRY_MS;
    if (relay->feed->read_all && note->code == CODE_OK) {
        relay->ended = true;
        if (relay->source != NULL)
            query_source_ended(relay->source);
        else
            foreign_end(relay->foreign);
    } else if (relay->source != NULL && relay->begun) { /* what it gave is given: nobody can go on there */
        (void)fault_set(&fault, STATUS_UNAVAILABLE, "SOURCE_BROKE",
                        "a node that this one asked broke off (%s); ask again", note->text);
        feed_finish(relay->feed, &fault);
    }
    if (note->code == CODE_INVALID_ARGUMENT) { /* it knows better: the token is none */
        (void)fault_set(&fault, STATUS_INVALID, "TOKEN_INVALID", "%s", note->text);
        feed_finish(relay->feed, &fault);
    }
}

void feed_relays_cancel(struct feed *feed)
{
    for (struct feed_relay *relay = feed->relays; relay != NULL; relay = relay->next)
        if (relay->stream != NULL)
            rpc_stream_cancel(relay->stream);
}

bool feed_relays_open(const struct feed *feed)
{
    for (const struct feed_relay *relay = feed->relays; relay != NULL; relay = relay->next)
        if (relay->stream != NULL)
            return true;
    return false;
}

void feed_relays_free(struct feed *feed)
{
    while (feed->relays != NULL) {
        struct feed_relay *next = feed->relays->next;

        rpc_channel_free(feed->relays->channel);
        free(feed->relays->partitions);
        free(feed->relays);
        feed->relays = next;
    }
}

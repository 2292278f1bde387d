/*
 * Sends the key range of a partition to a peer whose replica fell behind, a page at a time as the receiver takes
 * them. The pages are read by a thread of its own: a page is half a megabyte off the disk, and read by the poller it
 * held up every command of the node (p99 20 ms instead of 2 while another node joined).
 *
 * Thread rule: `flowing` and what follows it belong to the reader thread once a request was taken.
 */
#include "faults.h"
#include "node.h"

enum { PAGES_AHEAD = 2 };

struct range_sends {
    struct node *node;
    struct mailbox box;
    pthread_t thread;
    struct mail stop;
};

/* Lives until its stream is closed and the reader is done with it. */
struct range_stream {
    struct mail mail;
    struct node *node;
    struct rpc_stream *stream;
    atomic_int references;
    atomic_bool queued; /* the mail is under way */
    atomic_bool closed;
    atomic_bool begun;
    uint64_t from;
    uint32_t partition;
    struct applied applied; /* read before the families: they hold at least this much */
    bool flowing;
    size_t family;
    struct buffer next; /* key to go on from */
};

static void drop(struct range_stream *range)
{
    if (atomic_fetch_sub(&range->references, 1) != 1)
        return;
    rpc_stream_drop(range->stream);
    buffer_release(&range->next);
    free(range);
}

static void read_on(struct range_stream *range)
{
    if (!atomic_load(&range->begun) || atomic_exchange(&range->queued, true))
        return;
    atomic_fetch_add(&range->references, 1);
    mailbox_send(&range->node->range_sends->box, &range->mail);
}

/* ---- the reader thread ---- */

static void fail(struct rpc_stream *stream, const char *why)
{
    struct buffer out = {0};

    wire_range_part_refuse(&out, why);
    rpc_stream_send(stream, buffer_bytes(&out));
    rpc_stream_finish(stream, CODE_UNAVAILABLE, why, BYTES_NONE);
    buffer_release(&out);
}

/* Our own copy is no good: the receiver asks another replica, and so do we. */
static void tell_damage(struct range_stream *range, const struct fault *fault)
{
    struct damaged_letter *letter = memory_zero(1, sizeof *letter);

    letter->letter.kind = LETTER_DAMAGED;
    letter->partition = range->partition;
    letter->fault = *fault;
    shard_send(node_shard_of(range->node, range->partition), &letter->letter);
}

static void send_last(struct range_stream *range)
{
    struct buffer out = {0};

    wire_range_part_last(&out, &range->applied);
    rpc_stream_send(range->stream, buffer_bytes(&out));
    rpc_stream_finish(range->stream, CODE_OK, "", BYTES_NONE);
    buffer_release(&out);
}

/* OK: there is more of the family; NOT_FOUND: that was its last page. */
static enum status read_page(struct range_stream *range, struct buffer *out, struct fault *fault)
{
    struct store_key end = key_partition_end((uint16_t)range->partition);
    struct store_cursor *cursor = store_cursor_new(range->node->store, store_range_families[range->family],
                                                   buffer_bytes(&range->next), key_bytes(&end), false);
    enum status status = STATUS_OK;
    struct bytes key;
    struct bytes value;

    wire_range_part_begin(out, store_range_families[range->family]);
    while (out->len < RANGE_PAGE_BYTES) {
        status = store_cursor_next(cursor, &key, &value, fault);
        if (status != STATUS_OK)
            break;
        wire_range_part_add(out, key, value);
        range->next.len = 0;
        buffer_add(&range->next, key.data, key.len);
        buffer_add(&range->next, "", 1); /* just behind this key */
    }
    store_cursor_free(cursor);
    return status;
}

static void next_family(struct range_stream *range)
{
    struct store_key begin = key_partition_begin((uint16_t)range->partition);

    range->family++;
    range->next.len = 0;
    buffer_add(&range->next, begin.data, begin.len);
}

/* False when that was all, or it can't go on. */
static bool send_page(struct range_stream *range)
{
    struct buffer out = {0};
    struct fault fault;
    enum status status;

    if (range->family == STORE_RANGE_FAMILIES) {
        send_last(range);
        return false;
    }
    status = read_page(range, &out, &fault);
    if (status == STATUS_OK || status == STATUS_NOT_FOUND)
        rpc_stream_send(range->stream, buffer_bytes(&out));
    else
        fail(range->stream, fault.message);
    if (status == STATUS_DAMAGED)
        tell_damage(range, &fault);
    if (status == STATUS_NOT_FOUND)
        next_family(range);
    buffer_release(&out);
    return status == STATUS_OK || status == STATUS_NOT_FOUND;
}

/* What is drained from here on sends the mail again. */
static void flow(struct range_stream *range)
{
    atomic_store(&range->queued, false);
    while (range->flowing && !atomic_load(&range->closed) && rpc_stream_pending(range->stream) < PAGES_AHEAD)
        range->flowing = send_page(range);
    drop(range);
}

static void *run(void *context)
{
    struct range_sends *sends = context;
    bool go_on = true;

    while (go_on) {
        struct mail *mail = mailbox_receive(&sends->box, -1);

        while (mail != NULL) {
            struct mail *next = mail->next;

            if (mail == &sends->stop)
                go_on = false;
            else
                flow(CONTAINER_OF(mail, struct range_stream, mail));
            mail = next;
        }
    }
    return NULL;
}

/* ---- the stream, on the poller ---- */

static void opened(void *context, struct rpc_stream *stream)
{
    struct range_stream *range = memory_zero(1, sizeof *range);

    range->node = context;
    range->stream = rpc_stream_hold(stream);
    atomic_init(&range->references, 1);
    rpc_stream_set_user(stream, range);
}

static void closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct range_stream *range = user;

    (void)stream;
    (void)code;
    (void)text;
    atomic_store(&range->closed, true);
    drop(range);
}

static void drained(void *user, struct rpc_stream *stream)
{
    (void)stream;
    read_on(user);
}

/* NULL when the range may be sent. */
static const char *refusal_of(struct range_stream *range, const struct range_request *request, struct arena *arena,
                              char *text, size_t room)
{
    struct node *node = range->node;
    const struct founding *own = atomic_load(&node->founding);
    const char *refusal = node_refusal(node, &request->hello, text, room);
    struct store_key key = key_partition_meta((uint16_t)request->partition, "applied");
    struct bytes value;
    struct fault fault;

    if (refusal != NULL)
        return refusal;
    if (own == NULL || request->partition >= own->set_count)
        return "no such partition here";
    if (store_get(node->store, STORE_META, key_bytes(&key), arena, &value, &fault) != STATUS_OK ||
        wire_applied_decode(value, &range->applied, &fault) != STATUS_OK || range->applied.index < request->index)
        return "not applied that far yet; ask again";
    return NULL;
}

static void begin(struct range_stream *range, const struct range_request *request)
{
    struct store_key first = key_partition_begin((uint16_t)request->partition);

    range->from = request->hello.node_id;
    range->partition = request->partition;
    buffer_add(&range->next, first.data, first.len);
    range->flowing = true;
    journal(JOURNAL_INFO, "range-sent", "partition %u to node %016llx", range->partition,
            (unsigned long long)range->from);
    atomic_store(&range->begun, true);
    read_on(range);
}

static void message(void *user, struct rpc_stream *stream, struct bytes packed)
{
    struct range_stream *range = user;
    struct arena arena = {0};
    struct range_request request;
    struct fault fault;
    char text[400];
    const char *refusal;

    if (atomic_load(&range->begun)) {
        (void)fault_set(&fault, STATUS_INVALID, "MALFORMED_MESSAGE", "a stream asks for one range");
        peer_malformed(range->node, range->from, stream, &fault);
    } else if (wire_range_request_decode(packed, &arena, &request, &fault) != STATUS_OK) {
        peer_malformed(range->node, range->from, stream, &fault);
    } else if ((refusal = refusal_of(range, &request, &arena, text, sizeof text)) != NULL) {
        fail(stream, refusal);
    } else {
        begin(range, &request);
    }
    arena_release(&arena);
}

const struct rpc_stream_events peer_range_events = {
    .opened = opened, .message = message, .closed = closed, .drained = drained};

/* ---- life ---- */

struct range_sends *range_sends_new(struct node *node)
{
    struct range_sends *sends = memory_zero(1, sizeof *sends);

    sends->node = node;
    if (mailbox_init(&sends->box) != STATUS_OK || pthread_create(&sends->thread, NULL, run, sends) != 0)
        abort(); /* no thread at start-up: nothing can work */
    pthread_setname_np(sends->thread, "ranges");
    return sends;
}

void range_sends_stop(struct range_sends *sends)
{
    mailbox_send(&sends->box, &sends->stop);
    pthread_join(sends->thread, NULL);
}

void range_sends_free(struct range_sends *sends)
{
    struct mail *mail;

    if (sends == NULL)
        return;
    for (mail = mailbox_receive(&sends->box, 0); mail != NULL;) {
        struct mail *next = mail->next;

        drop(CONTAINER_OF(mail, struct range_stream, mail));
        mail = next;
    }
    mailbox_release(&sends->box);
    free(sends);
}

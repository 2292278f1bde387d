/*
 * Fetches the key range of a partition whose replica fell behind the leader's log. What arrives is
 * written page by page, so that memory stays bounded for any size; the replica goes on from the
 * range only once the last page and the applied index are there. A fetch that breaks starts anew:
 * writing the same records twice changes nothing.
 */
#include "access.h"

enum {
    RETRY_MS = 500,
    BURST_MS = 300, /* what the limit allows in this time may come at once */
    BULK_BYTES = 64 << 10, /* a page from this size on goes past the log */
};

struct range_fetch {
    struct range_fetch *next;
    struct range_fetches *all;
    uint32_t partition;
    uint64_t leader;
    atomic_ullong index; /* lowered while the range comes */
    uint64_t term;
    struct rpc_channel *channel;
    struct rpc_stream *stream;
    uint64_t retry_ms;
    atomic_int writing; /* pages at the storage thread, and the flush */
    uint32_t unlogged;  /* families with pages that went past the log: a bit each */
    struct applied applied; /* of the whole range, once it is complete */
    size_t attempts;
    struct rpc_stream *throttled; /* held; goes on when the limit allows more */
    struct buffer keys; /* hashes of the subjects' keys that came, a u64 each */
    bool complete;
    bool unwanted; /* stop, and say so */
    bool done;
};

struct range_fetches {
    struct node *node;
    pthread_mutex_t lock;
    struct range_fetch *first;
    bool stopping;
    /* The limit (of the placement) for all of them: bytes that may still come, below 0 after a large page. */
    int64_t allowance;
    uint64_t refilled_us;
};

/* A page at the storage thread. Meanwhile its stream reads no further one. */
struct page_write {
    struct range_fetch *fetch;
    struct rpc_stream *stream;
};

/* With the lock held. */
static void refill(struct range_fetches *all)
{
    uint64_t limit = placements_transfer_bytes(all->node->placements);
    uint64_t now = clock_monotonic_us();
    uint64_t passed = now - all->refilled_us;

    if (limit == 0) {
        all->allowance = INT64_MAX;
        all->refilled_us = now;
        return;
    }
    if (passed > 1000000)
        passed = 1000000;
    if (limit * passed / 1000000 == 0)
        return; /* too little time for one byte */
    all->refilled_us = now;
    if (all->allowance > (int64_t)(limit * BURST_MS / 1000))
        all->allowance = 0; /* the limit is new */
    all->allowance += (int64_t)(limit * passed / 1000000);
    if (all->allowance > (int64_t)(limit * BURST_MS / 1000))
        all->allowance = (int64_t)(limit * BURST_MS / 1000);
}

/* The next page comes now, or when the limit allows it. */
static void go_on(struct range_fetch *fetch, struct rpc_stream *stream)
{
    struct range_fetches *all = fetch->all;

    pthread_mutex_lock(&all->lock);
    refill(all);
    if (all->allowance > 0)
        rpc_stream_pause(stream, false);
    else if (fetch->throttled == NULL)
        fetch->throttled = rpc_stream_hold(stream);
    pthread_mutex_unlock(&all->lock);
}

static void page_written(void *context, bool written)
{
    struct page_write *page = context;

    if (written)
        go_on(page->fetch, page->stream);
    else
        rpc_stream_cancel(page->stream);
    rpc_stream_drop(page->stream);
    atomic_fetch_sub(&page->fetch->writing, 1); /* the fetch may go from here on */
    free(page);
}

static enum status write_pairs(struct range_fetch *fetch, struct rpc_stream *stream,
                               const struct range_part *part, size_t bytes, struct fault *fault)
{
    struct node *node = fetch->all->node;
    struct store_key begin = key_partition_begin((uint16_t)fetch->partition);
    struct store_batch *batch;
    struct page_write *page;

    for (size_t i = 0; i < part->pair_count; i++)
        if (part->pairs[i].key.len < begin.len ||
            memcmp(part->pairs[i].key.data, begin.data, begin.len) != 0)
            return fault_set(fault, STATUS_INVALID, "MALFORMED_MESSAGE",
                             "a key of another partition");
    if (part->pair_count == 0)
        return STATUS_OK;
    batch = storage_take_batch(node->storage);
    for (size_t i = 0; i < part->pair_count && part->family == STORE_KEYS; i++) {
        uint64_t hash = hash_bytes(part->pairs[i].key);

        buffer_add(&fetch->keys, &hash, sizeof hash);
    }
    for (size_t i = 0; i < part->pair_count; i++)
        store_batch_put(batch, (enum store_family)part->family, part->pairs[i].key,
                        part->pairs[i].value);
    page = memory_take(sizeof *page);
    *page = (struct page_write){fetch, rpc_stream_hold(stream)};
    atomic_fetch_add(&fetch->writing, 1);
    rpc_stream_pause(stream, true);
    if (bytes >= BULK_BYTES) {
        fetch->unlogged |= 1U << part->family;
        storage_write_bulk(node->storage, batch, page_written, page);
    } else {
        storage_write_for(node->storage, batch, page_written, page);
    }
    return STATUS_OK;
}

/* NULL: no range after all. */
static void report(struct range_fetch *fetch, const struct applied *applied)
{
    struct installed_letter *letter = memory_zero(1, sizeof *letter);

    letter->letter.kind = LETTER_INSTALLED;
    letter->partition = fetch->partition;
    letter->stopped = applied == NULL;
    if (applied != NULL)
        letter->applied = *applied;
    shard_send(node_shard_of(fetch->all->node, fetch->partition), &letter->letter);
}

/* The fetch may go from here on. */
static void installed(void *context, bool written)
{
    struct range_fetch *fetch = context;

    if (written) {
        journal(JOURNAL_INFO, "range-installed", "partition %u up to index %llu", fetch->partition,
                (unsigned long long)fetch->applied.index);
        report(fetch, &fetch->applied);
    }
    atomic_fetch_sub(&fetch->writing, 1);
}

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* Keys that this replica had and the sender hasn't: their subjects were forgotten while it was away. NULL for none. */
static struct store_batch *destroyed_meanwhile(struct range_fetch *fetch)
{
    struct node *node = fetch->all->node;
    struct store_key from = key_partition_begin((uint16_t)fetch->partition);
    struct store_key to = key_partition_end((uint16_t)fetch->partition);
    struct store_cursor *cursor =
        store_cursor_new(node->store, STORE_KEYS, key_bytes(&from), key_bytes(&to), false);
    size_t count = fetch->keys.len / sizeof(uint64_t);
    struct store_batch *batch = NULL;
    struct bytes key, value;
    struct fault fault;

    if (count > 0)
        qsort(fetch->keys.data, count, sizeof(uint64_t), by_number);
    while (store_cursor_next(cursor, &key, &value, &fault) == STATUS_OK) {
        uint64_t hash = hash_bytes(key);

        if (count > 0 && bsearch(&hash, fetch->keys.data, count, sizeof hash, by_number) != NULL)
            continue;
        if (batch == NULL)
            batch = storage_take_batch(node->storage);
        store_batch_delete(batch, STORE_KEYS, key);
    }
    store_cursor_free(cursor);
    if (batch != NULL)
        destroyed_mark(batch, (uint16_t)fetch->partition, DESTROYED_BY_RANGE, fetch->applied.index);
    return batch;
}

/* All pages are written; those past the log must be on disk before anybody relies on them. */
static void settled(void *context, bool written)
{
    struct range_fetch *fetch = context;

    if (fetch->unlogged == 0 || !written)
        installed(fetch, written);
    else
        storage_flush(fetch->all->node->storage, fetch->unlogged, installed, fetch);
}

static void install(struct range_fetch *fetch, const struct applied *applied)
{
    struct store_batch *destroyed;

    fetch->complete = true;
    fetch->applied = *applied;
    destroyed = destroyed_meanwhile(fetch);
    atomic_fetch_add(&fetch->writing, 1);
    if (destroyed == NULL) {
        settled(fetch, true);
    } else {
        storage_write_for(fetch->all->node->storage, destroyed, settled, fetch);
        storage_forget(fetch->all->node->storage, fetch->partition);
    }
}

static void on_message(void *user, struct rpc_stream *stream, struct bytes message)
{
    struct range_fetch *fetch = user;
    struct arena arena = {0};
    struct range_part part;
    struct fault fault;
    enum status status = wire_range_part_decode(message, &arena, &part, &fault);

    METRIC_ADD(fetch->all->node, range_bytes, message.len);
    pthread_mutex_lock(&fetch->all->lock);
    fetch->all->allowance -= (int64_t)message.len;
    pthread_mutex_unlock(&fetch->all->lock);

    if (status == STATUS_OK && part.pair_count > 0 && !store_family_is_shipped(part.family))
        status = fault_set(&fault, STATUS_INVALID, "MALFORMED_MESSAGE", "family %u isn't shipped",
                           part.family);
    if (status == STATUS_OK && part.refusal.len == 0)
        status = write_pairs(fetch, stream, &part, message.len, &fault);
    if (status != STATUS_OK) {
        journal(JOURNAL_WARN, "range-failed", "partition %u: %s", fetch->partition, fault.message);
        rpc_stream_cancel(stream);
    } else if (part.last && part.applied.index >= atomic_load(&fetch->index) && !fetch->complete) {
        install(fetch, &part.applied);
    }
    arena_release(&arena);
}

static void on_closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct range_fetch *fetch = user;

    (void)code;
    (void)text;
    pthread_mutex_lock(&fetch->all->lock);
    fetch->stream = NULL;
    rpc_stream_drop(fetch->throttled);
    fetch->throttled = NULL;
    fetch->done = fetch->complete;
    fetch->retry_ms = clock_monotonic_ms() + RETRY_MS;
    pthread_mutex_unlock(&fetch->all->lock);
    rpc_stream_drop(stream);
}

static const struct rpc_stream_events events = {.message = on_message, .closed = on_closed};

/* The owner first, then whoever asked us to; then any replica: the leader may have died, and what one
 * has applied all have. */
static uint64_t next_source(struct range_fetch *fetch)
{
    struct node *node = fetch->all->node;
    struct owner_note note;
    uint64_t source = fetch->leader;

    routes_get(node->routes, fetch->partition, &note);
    if (fetch->attempts == 0)
        source = note.owner;
    else if (fetch->attempts > 1 && note.voters.count > 0)
        source = note.voters.replicas[fetch->attempts % note.voters.count];
    fetch->attempts++;
    return source == 0 || source == node->id ? fetch->leader : source;
}

static void dial(struct range_fetch *fetch)
{
    struct node *node = fetch->all->node;
    struct range_request request = {
        .partition = fetch->partition, .index = atomic_load(&fetch->index), .term = fetch->term};
    struct buffer out = {0};
    uint64_t source = next_source(fetch);
    char address[ADDRESS_BYTES_MAX + 1];

    if (!control_member_address(node->control, source, address, sizeof address)) {
        fetch->retry_ms = clock_monotonic_ms() + RETRY_MS;
        return;
    }
    fetch->keys.len = 0;
    rpc_channel_free(fetch->channel);
    fetch->channel = rpc_channel_new(node->loop, address, GRPC_MESSAGE_BYTES_MAX, access_peer_tls(node));
    fetch->stream = rpc_stream_open(fetch->channel, "/cairn.peer.v1.PeerService/FetchRange",
                                    &events, fetch, 0);
    node_hello(node, &request.hello, source);
    wire_range_request_pack(&out, &request);
    rpc_stream_send(fetch->stream, buffer_bytes(&out));
    rpc_stream_finish(fetch->stream, 0, NULL, BYTES_NONE);
    buffer_release(&out);
}

void range_fetch_start(struct node *node, uint32_t partition, uint64_t leader, uint64_t index,
                       uint64_t term)
{
    struct range_fetches *all = node->range_fetches;
    struct range_fetch *fetch;

    pthread_mutex_lock(&all->lock);
    for (fetch = all->first; fetch != NULL; fetch = fetch->next)
        if (fetch->partition == partition && !fetch->complete && !fetch->unwanted)
            break;
    if (fetch == NULL) {
        fetch = memory_zero(1, sizeof *fetch);
        fetch->all = all;
        fetch->partition = partition;
        fetch->next = all->first;
        all->first = fetch;
    }
    fetch->leader = leader;
    fetch->term = term;
    atomic_store(&fetch->index, index);
    pthread_mutex_unlock(&all->lock);
}

void range_fetch_stop(struct node *node, uint32_t partition)
{
    struct range_fetches *all = node->range_fetches;

    pthread_mutex_lock(&all->lock);
    for (struct range_fetch *fetch = all->first; fetch != NULL; fetch = fetch->next)
        if (fetch->partition == partition && !fetch->complete) {
            fetch->unwanted = true;
            if (fetch->stream != NULL)
                rpc_stream_cancel(fetch->stream);
        }
    pthread_mutex_unlock(&all->lock);
}

/* A few at a time: each takes part of the disk and of the network. */
enum { FETCHES_AT_ONCE = 2 };

void range_fetches_tick(struct range_fetches *all, uint64_t now_ms)
{
    struct range_fetch **at = &all->first;
    int running = 0;

    pthread_mutex_lock(&all->lock);
    refill(all);
    for (struct range_fetch *fetch = all->first; fetch != NULL && all->allowance > 0; fetch = fetch->next)
        if (fetch->throttled != NULL) {
            rpc_stream_pause(fetch->throttled, false);
            rpc_stream_drop(fetch->throttled);
            fetch->throttled = NULL;
        }
    while (*at != NULL) {
        struct range_fetch *fetch = *at;

        if (fetch->unwanted && !fetch->complete && fetch->stream == NULL &&
            atomic_load(&fetch->writing) == 0) {
            report(fetch, NULL);
            fetch->done = true;
        }
        if (fetch->done && atomic_load(&fetch->writing) == 0) {
            *at = fetch->next;
            rpc_channel_free(fetch->channel);
            buffer_release(&fetch->keys);
            free(fetch);
            continue;
        }
        running += fetch->stream != NULL;
        at = &fetch->next;
    }
    for (struct range_fetch *fetch = all->first; fetch != NULL && !all->stopping;
         fetch = fetch->next)
        if (fetch->stream == NULL && !fetch->done && !fetch->unwanted && now_ms >= fetch->retry_ms && running < FETCHES_AT_ONCE) {
            dial(fetch);
            running++;
        }
    pthread_mutex_unlock(&all->lock);
}

struct range_fetches *range_fetches_new(struct node *node)
{
    struct range_fetches *all = memory_zero(1, sizeof *all);

    all->node = node;
    pthread_mutex_init(&all->lock, NULL);
    return all;
}

bool range_fetches_gone(struct range_fetches *all)
{
    bool gone = true;

    pthread_mutex_lock(&all->lock);
    all->stopping = true;
    for (struct range_fetch *fetch = all->first; fetch != NULL; fetch = fetch->next) {
        if (fetch->stream != NULL)
            rpc_stream_cancel(fetch->stream);
        gone = gone && fetch->stream == NULL && atomic_load(&fetch->writing) == 0;
    }
    pthread_mutex_unlock(&all->lock);
    return gone;
}

void range_fetches_free(struct range_fetches *all)
{
    if (all == NULL)
        return;
    while (all->first != NULL) {
        struct range_fetch *next = all->first->next;

        rpc_channel_free(all->first->channel);
        free(all->first);
        all->first = next;
    }
    pthread_mutex_destroy(&all->lock);
    free(all);
}

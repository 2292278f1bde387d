/* Sources with a head each, merged; or summed up. */
#include "query.h"

#include <uthash.h>

struct query_source {
    struct query_source *next;
    bool foreign;
    bool ended;
    /* Its next item, packed as it is given; empty while it isn't known. */
    struct buffer head;
    struct event_head seen; /* of the head; borrows from it */
    /* Of a partition here. */
    uint32_t partition;
    uint64_t left;        /* events below this position are not yet given (newest first) */
    struct store_key at;  /* the next key to look at (aggregates, counts) */
    struct store_key end;
    /* Of another node: [length u32 | bytes]… */
    struct buffer inbox;
    size_t taken;
};

struct count {
    UT_hash_handle hh;
    uint64_t events;
    struct bytes aggregate_type;
    struct bytes type;
    size_t len;
    uint8_t key[]; /* aggregate type, NUL, event type */
};

struct query {
    struct query_request request;
    struct store *store;
    struct arena arena;
    bool *included;
    uint32_t partitions;
    struct query_source *sources;
    struct count *counts;
    uint64_t left;
    size_t looked_at;
    bool waits; /* for another node */
    struct arena scratch;
};

/* ---- where a partition begins ---- */

/* One behind everything that begins with the key; the partition's end when there is no such key. */
static struct store_key behind_prefix(uint32_t partition, struct store_key key)
{
    while (key.len > 2 && key.data[key.len - 1] == 0xFF)
        key.len--;
    if (key.len <= 2)
        return key_partition_end((uint16_t)partition);
    key.data[key.len - 1]++;
    return key;
}

static void begin_keys(struct query *q, struct query_source *s)
{
    const struct event_filter *filter = &q->request.filter;

    s->at = key_partition_begin((uint16_t)s->partition);
    s->end = key_partition_end((uint16_t)s->partition);
    if (filter->id_prefix_count == 1) {
        s->at = key_snapshot((uint16_t)s->partition, filter->id_prefixes[0]); /* partition, id, nothing behind */
        s->end = behind_prefix(s->partition, s->at);
    }
    if (q->request.after.len > 0) {
        struct store_key after = key_event_end((uint16_t)s->partition, q->request.after);

        if (after.len > s->at.len ? memcmp(after.data, s->at.data, s->at.len) >= 0
                                  : memcmp(after.data, s->at.data, after.len) > 0)
            s->at = after;
    }
}

static enum status begin_source(struct query *q, struct query_source *s, const uint64_t *positions,
                                struct fault *fault)
{
    enum status status;

    if (q->request.kind != QUERY_BACKWARDS) {
        begin_keys(q, s);
        return STATUS_OK;
    }
    status = log_end(q->store, s->partition, &s->left, fault);
    if (status != STATUS_OK || q->request.from.kind == START_END)
        return status;
    if (q->request.from.kind == START_TIME)
        return log_find_time(q->store, s->partition, s->left, q->request.from.time_ms, &s->left, fault);
    if (q->request.from.kind == START_BEGINNING)
        s->left = 0;
    else if (positions[s->partition] < s->left)
        s->left = positions[s->partition];
    return STATUS_OK;
}

/* ---- life ---- */

enum status query_new(struct query **out, const struct query_request *request, const struct token_of *cluster,
                      const bool *held, struct store *store, struct fault *fault)
{
    struct query *q = memory_zero(1, sizeof *q);
    uint64_t *positions = arena_take(&q->arena, cluster->partitions * sizeof *positions);
    enum status status;

    q->request = *request;
    q->request.filter = event_filter_copy(&q->arena, &request->filter);
    q->request.after = arena_copy(&q->arena, request->after);
    q->store = store;
    q->partitions = cluster->partitions;
    q->included = arena_take(&q->arena, q->partitions);
    q->left = request->limit == 0 ? UINT64_MAX : request->limit;
    status = event_filter_include(&q->request.filter, q->partitions, q->included, fault);
    if (status == STATUS_OK && request->kind == QUERY_BACKWARDS && request->from.kind == START_TOKEN)
        status = token_read_for(request->from.token, cluster, q->included, positions, fault);
    for (uint32_t p = 0; p < q->partitions && status == STATUS_OK; p++) {
        struct query_source *s;

        if (!held[p] || !q->included[p])
            continue;
        s = memory_zero(1, sizeof *s);
        s->partition = p;
        s->next = q->sources;
        q->sources = s;
        status = begin_source(q, s, positions, fault);
    }
    if (status != STATUS_OK) {
        query_free(q);
        return status;
    }
    *out = q;
    return STATUS_OK;
}

void query_free(struct query *q)
{
    struct count *count, *next;

    if (q == NULL)
        return;
    while (q->sources != NULL) {
        struct query_source *s = q->sources;

        q->sources = s->next;
        buffer_release(&s->head);
        buffer_release(&s->inbox);
        free(s);
    }
    HASH_ITER(hh, q->counts, count, next)
    {
        HASH_DEL(q->counts, count);
        free(count);
    }
    arena_release(&q->scratch);
    arena_release(&q->arena);
    free(q);
}

bool query_includes(const struct query *q, uint32_t partition)
{
    return q->included[partition];
}

/* ---- other nodes ---- */

struct query_source *query_foreign(struct query *q)
{
    struct query_source *s = memory_zero(1, sizeof *s);

    s->foreign = true;
    s->next = q->sources;
    q->sources = s;
    q->waits = true;
    return s;
}

enum status query_take(struct query_source *s, struct bytes packed, struct fault *fault)
{
    struct arena arena = {0};
    struct subscribe_response response; /* all these answers have the same form */
    enum status status = wire_subscribe_response_decode(packed, &arena, &response, fault);

    for (size_t i = 0; status == STATUS_OK && i < response.event_count; i++) {
        uint32_t len = (uint32_t)response.packed_events[i].len;

        buffer_add(&s->inbox, &len, sizeof len);
        buffer_add(&s->inbox, response.packed_events[i].data, len);
    }
    arena_release(&arena);
    return status;
}

void query_source_ended(struct query_source *s)
{
    s->ended = true;
}

size_t query_waiting(const struct query_source *s)
{
    return s->inbox.len - s->taken;
}

static bool take_foreign(struct query_source *s, struct bytes *item)
{
    uint32_t len;

    if (s->taken == s->inbox.len) {
        s->taken = s->inbox.len = 0;
        return false;
    }
    memcpy(&len, s->inbox.data + s->taken, sizeof len);
    *item = (struct bytes){s->inbox.data + s->taken + sizeof len, len};
    s->taken += sizeof len + len;
    return true;
}

/* ---- the heads of partitions here ---- */

static void set_head(struct query_source *s, struct bytes packed)
{
    s->head.len = 0;
    buffer_add(&s->head, packed.data, packed.len);
}

/* The newest event below `left` that fits. */
static enum status load_event(struct query *q, struct query_source *s, struct fault *fault)
{
    while (s->left > 0 && q->looked_at < SUBSCRIPTION_SCAN_EVENTS) {
        struct bytes packed;
        struct event_head head;
        enum status status = event_at(q->store, s->partition, s->left - 1, &q->scratch, &packed, fault);

        if (status == STATUS_OK)
            status = wire_event_peek(packed, &head, fault);
        if (status != STATUS_OK)
            return status;
        s->left--;
        q->looked_at++;
        if (event_filter_fits(&q->request.filter, &head))
            set_head(s, packed);
        arena_reset(&q->scratch);
        if (s->head.len > 0)
            return STATUS_OK;
    }
    s->ended = s->left == 0 && s->head.len == 0;
    return STATUS_OK;
}

static enum status newest_of(struct query *q, uint32_t partition, struct bytes id, struct event_head *head,
                             uint64_t *sequence, struct fault *fault)
{
    struct store_key from = key_event((uint16_t)partition, id, 0);
    struct store_key to = key_event_end((uint16_t)partition, id);
    struct store_cursor *cursor = store_cursor_new(q->store, STORE_EVENTS, key_bytes(&from), key_bytes(&to), true);
    struct bytes key, value;
    enum status status = store_cursor_next(cursor, &key, &value, fault);

    if (status == STATUS_OK) {
        *sequence = key_last_number(key);
        status = wire_event_peek(arena_copy(&q->scratch, value), head, fault);
    }
    store_cursor_free(cursor);
    return status;
}

/* The id in the key of an event: partition, id, NUL, sequence. */
static struct bytes id_in(struct bytes key)
{
    return key.len > 11 ? (struct bytes){key.data + 2, key.len - 11} : BYTES_NONE;
}

/* The next aggregate that fits. */
static enum status load_aggregate(struct query *q, struct query_source *s, struct fault *fault)
{
    while (q->looked_at < SUBSCRIPTION_SCAN_EVENTS) {
        struct store_cursor *cursor =
            store_cursor_new(q->store, STORE_EVENTS, key_bytes(&s->at), key_bytes(&s->end), false);
        struct event_head head;
        struct bytes key, value, id = BYTES_NONE;
        uint64_t sequence = 0;
        enum status status = store_cursor_next(cursor, &key, &value, fault);

        if (status == STATUS_OK)
            id = arena_copy(&q->scratch, id_in(key));
        store_cursor_free(cursor);
        if (status == STATUS_NOT_FOUND) {
            s->ended = true;
            return STATUS_OK;
        }
        if (status == STATUS_OK)
            status = newest_of(q, s->partition, id, &head, &sequence, fault);
        if (status != STATUS_OK)
            return status;
        s->at = key_event_end((uint16_t)s->partition, id);
        q->looked_at++;
        if (event_filter_fits(&q->request.filter, &head)) {
            s->head.len = 0;
            wire_aggregate_pack(&s->head, &head, sequence + 1);
        }
        arena_reset(&q->scratch);
        if (s->head.len > 0)
            return STATUS_OK;
    }
    return STATUS_OK;
}

/* ---- merging ---- */

static enum status load(struct query *q, struct query_source *s, struct fault *fault)
{
    struct bytes item;
    enum status status = STATUS_OK;

    if (s->head.len > 0)
        return STATUS_OK;
    if (s->foreign) {
        if (take_foreign(s, &item))
            set_head(s, item);
    } else if (!s->ended) {
        status = q->request.kind == QUERY_BACKWARDS ? load_event(q, s, fault) : load_aggregate(q, s, fault);
    }
    if (status == STATUS_OK && s->head.len > 0)
        status = wire_event_peek(buffer_bytes(&s->head), &s->seen, fault);
    return status;
}

static int compare_ids(struct bytes a, struct bytes b)
{
    int order = memcmp(a.data, b.data, a.len < b.len ? a.len : b.len);

    return order != 0 ? order : (a.len > b.len) - (a.len < b.len);
}

/* True when a's head comes before b's. */
static bool first(const struct query *q, const struct query_source *a, const struct query_source *b)
{
    if (q->request.kind == QUERY_AGGREGATES)
        return compare_ids(a->seen.aggregate_id, b->seen.aggregate_id) < 0;
    if (a->seen.time_ms != b->seen.time_ms)
        return a->seen.time_ms > b->seen.time_ms;
    return a->seen.partition > b->seen.partition;
}

static enum status merge(struct query *q, struct buffer *out, uint32_t *partition, struct fault *fault)
{
    size_t begun = out->len;

    for (size_t given = 0; q->left > 0 && given < SUBSCRIPTION_PAGE_EVENTS &&
                           out->len - begun < SUBSCRIPTION_PAGE_BYTES; given++) {
        struct query_source *best = NULL;

        for (struct query_source *s = q->sources; s != NULL; s = s->next) {
            enum status status = load(q, s, fault);

            if (status != STATUS_OK) {
                *partition = s->partition;
                return status;
            }
            if (s->head.len == 0 && !s->ended) {
                q->waits = s->foreign;
                return STATUS_OK; /* enough was looked at, or another node has to say */
            }
            if (s->head.len > 0 && (best == NULL || first(q, s, best)))
                best = s;
        }
        if (best == NULL)
            return STATUS_NOT_FOUND;
        wire_subscribe_response_add(out, buffer_bytes(&best->head));
        best->head.len = 0;
        q->left--;
    }
    return q->left == 0 ? STATUS_NOT_FOUND : STATUS_OK;
}

/* ---- counting ---- */

static void add(struct query *q, struct bytes aggregate_type, struct bytes type, uint64_t events)
{
    size_t len = aggregate_type.len + 1 + type.len;
    uint8_t *key = arena_take(&q->scratch, len);
    struct count *found = NULL;

    if (aggregate_type.len > 0)
        memcpy(key, aggregate_type.data, aggregate_type.len);
    key[aggregate_type.len] = 0;
    if (type.len > 0)
        memcpy(key + aggregate_type.len + 1, type.data, type.len);
    HASH_FIND(hh, q->counts, key, len, found);
    if (found == NULL) {
        found = memory_zero(1, sizeof *found + len);
        memcpy(found->key, key, len);
        found->len = len;
        found->aggregate_type = (struct bytes){found->key, aggregate_type.len};
        found->type = (struct bytes){found->key + aggregate_type.len + 1, type.len};
        HASH_ADD(hh, q->counts, key, len, found);
    }
    found->events += events;
}

static enum status count_here(struct query *q, struct query_source *s, struct fault *fault)
{
    struct store_cursor *cursor =
        store_cursor_new(q->store, STORE_EVENTS, key_bytes(&s->at), key_bytes(&s->end), false);
    enum status status = STATUS_OK;

    while (status == STATUS_OK && q->looked_at < SUBSCRIPTION_SCAN_EVENTS) {
        struct event_head head;
        struct bytes key, value;

        status = store_cursor_next(cursor, &key, &value, fault);
        if (status == STATUS_OK)
            status = wire_event_peek(value, &head, fault);
        if (status != STATUS_OK)
            break;
        q->looked_at++;
        if (event_filter_fits(&q->request.filter, &head))
            add(q, head.aggregate_type, head.type, 1);
        s->at = key_event((uint16_t)s->partition, id_in(key), key_last_number(key) + 1);
        arena_reset(&q->scratch);
    }
    store_cursor_free(cursor);
    s->ended = status == STATUS_NOT_FOUND;
    return s->ended ? STATUS_OK : status;
}

static enum status count_foreign(struct query *q, struct query_source *s, struct fault *fault)
{
    struct bytes item;
    enum status status = STATUS_OK;

    while (status == STATUS_OK && take_foreign(s, &item)) {
        struct event_head head; /* an EventCount has the same numbers */

        status = wire_event_peek(item, &head, fault);
        if (status == STATUS_OK)
            add(q, head.aggregate_type, head.type, head.position);
        arena_reset(&q->scratch);
    }
    return status;
}

static int by_key(const struct count *a, const struct count *b)
{
    return compare_ids((struct bytes){a->key, a->len}, (struct bytes){b->key, b->len});
}

static enum status count(struct query *q, struct buffer *out, uint32_t *partition, struct fault *fault)
{
    for (struct query_source *s = q->sources; s != NULL; s = s->next) {
        enum status status = STATUS_OK;

        if (s->foreign)
            status = count_foreign(q, s, fault);
        else if (!s->ended)
            status = count_here(q, s, fault);
        if (status != STATUS_OK) {
            *partition = s->partition;
            return status;
        }
        if (!s->ended) {
            q->waits = s->foreign;
            return STATUS_OK;
        }
    }
    HASH_SORT(q->counts, by_key);
    for (const struct count *c = q->counts; c != NULL; c = c->hh.next) {
        struct buffer item = {0};

        wire_count_pack(&item, c->aggregate_type, c->type, c->events);
        wire_subscribe_response_add(out, buffer_bytes(&item));
        buffer_release(&item);
    }
    return STATUS_NOT_FOUND;
}

enum status query_next(struct query *q, struct buffer *out, uint32_t *partition, struct fault *fault)
{
    q->looked_at = 0;
    q->waits = false;
    return q->request.kind == QUERY_COUNT ? count(q, out, partition, fault) : merge(q, out, partition, fault);
}

bool query_wants(const struct query *q)
{
    if (!q->waits)
        return true;
    for (const struct query_source *s = q->sources; s != NULL; s = s->next)
        if (s->foreign && s->head.len == 0 && !s->ended && query_waiting(s) == 0)
            return false;
    return true;
}

/* One subscription: a walk over the positions of many partitions, a page at a time. */
#include "event.h"

enum { TOKEN_EVERY_MS = 1000 };

struct foreign {
    struct foreign *next;
    struct subscription *subscription;
    struct buffer inbox; /* [length u32 | is token u8 | bytes]… as they came */
    size_t taken;        /* of the inbox */
    uint32_t given;
    bool begun; /* it has said where it stands */
    bool ended; /* nothing more will come */
};

struct subscription {
    struct subscription_settings settings;
    struct store *store;
    struct arena arena; /* of the filter */
    uint32_t partitions;
    uint64_t *next;  /* position of the next event, by partition */
    uint64_t *until; /* of until_end: where it ends */
    bool *included;
    bool *held;
    bool *more;      /* maybe more is stored */
    uint32_t more_count;
    uint32_t turn;   /* the partition that is looked at next */
    uint64_t credits;
    uint64_t left; /* of the limit */
    uint64_t given;
    uint64_t sent_ms;
    uint64_t token_ms; /* when a token was last sent */
    bool token_due;    /* something was given or passed over since */
    bool begun;        /* the first message was made */
    struct foreign *foreign;
    struct arena scratch;
};

/* ---- the filter ---- */

static const struct bytes *copy_texts(struct arena *arena, const struct bytes *texts, size_t count)
{
    struct bytes *copy = arena_take(arena, count * sizeof *copy);

    for (size_t i = 0; i < count; i++)
        copy[i] = arena_copy(arena, texts[i]);
    return copy;
}

struct event_filter event_filter_copy(struct arena *arena, const struct event_filter *filter)
{
    struct event_filter copy = *filter;
    uint32_t *partitions = arena_take(arena, filter->partition_count * sizeof *partitions);

    if (filter->partition_count > 0)
        memcpy(partitions, filter->partitions, filter->partition_count * sizeof *partitions);
    copy.partitions = partitions;
    copy.aggregate_types = copy_texts(arena, filter->aggregate_types, filter->aggregate_type_count);
    copy.event_types = copy_texts(arena, filter->event_types, filter->event_type_count);
    copy.id_prefixes = copy_texts(arena, filter->id_prefixes, filter->id_prefix_count);
    return copy;
}

static bool one_of(struct bytes value, const struct bytes *list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (bytes_equal(value, list[i]))
            return true;
    return count == 0;
}

static bool begins_with_one_of(struct bytes value, const struct bytes *list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (value.len >= list[i].len && memcmp(value.data, list[i].data, list[i].len) == 0)
            return true;
    return count == 0;
}

static bool looks_inside(const struct event_filter *filter)
{
    return filter->aggregate_type_count > 0 || filter->event_type_count > 0;
}

static bool fits(const struct event_filter *filter, const struct event_head *head)
{
    return one_of(head->aggregate_type, filter->aggregate_types, filter->aggregate_type_count) &&
           one_of(head->type, filter->event_types, filter->event_type_count);
}

bool event_filter_fits(const struct event_filter *filter, const struct event_head *head)
{
    return fits(filter, head) && begins_with_one_of(head->aggregate_id, filter->id_prefixes, filter->id_prefix_count);
}

/* ---- the start ---- */

enum status log_end(struct store *store, uint32_t partition, uint64_t *end, struct fault *fault)
{
    struct store_key from = key_partition_begin((uint16_t)partition);
    struct store_key to = key_partition_end((uint16_t)partition);
    struct store_cursor *cursor =
        store_cursor_new(store, STORE_POSITIONS, key_bytes(&from), key_bytes(&to), true);
    struct bytes key;
    struct bytes value;
    enum status status = store_cursor_next(cursor, &key, &value, fault);

    *end = status == STATUS_OK ? key_last_number(key) + 1 : 0;
    store_cursor_free(cursor);
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

/* The key of the event that a position's record names. */
static enum status key_of_event(uint32_t partition, struct bytes position_value, struct store_key *key,
                                struct fault *fault)
{
    uint64_t sequence;
    struct bytes id;

    if (position_value.len <= sizeof sequence || position_value.len > sizeof sequence + AGGREGATE_ID_BYTES_MAX)
        return fault_set(fault, STATUS_DAMAGED, "DAMAGED_RECORD", "a position of partition %u is malformed",
                         partition);
    memcpy(&sequence, position_value.data, sizeof sequence);
    id = (struct bytes){position_value.data + sizeof sequence, position_value.len - sizeof sequence};
    *key = key_event((uint16_t)partition, id, sequence);
    return STATUS_OK;
}

enum status event_at(struct store *store, uint32_t partition, uint64_t position, struct arena *arena,
                     struct bytes *packed, struct fault *fault)
{
    struct store_key key = key_position((uint16_t)partition, position);
    struct bytes value;
    enum status status = store_get(store, STORE_POSITIONS, key_bytes(&key), arena, &value, fault);

    if (status == STATUS_NOT_FOUND)
        return fault_set(fault, STATUS_DAMAGED, "DAMAGED_RECORD", "partition %u has no record of position %llu",
                         partition, (unsigned long long)position);
    if (status == STATUS_OK)
        status = key_of_event(partition, value, &key, fault);
    if (status == STATUS_OK)
        status = store_get(store, STORE_EVENTS, key_bytes(&key), arena, packed, fault);
    if (status == STATUS_NOT_FOUND)
        status = fault_set(fault, STATUS_DAMAGED, "DAMAGED_RECORD", "partition %u has position %llu without its event",
                           partition, (unsigned long long)position);
    return status;
}

static enum status time_at(struct store *store, uint32_t partition, uint64_t position, int64_t *time_ms,
                           struct fault *fault)
{
    struct arena arena = {0};
    struct event_head head;
    struct bytes packed;
    enum status status = event_at(store, partition, position, &arena, &packed, fault);

    if (status == STATUS_OK)
        status = wire_event_peek(packed, &head, fault);
    if (status == STATUS_OK)
        *time_ms = head.time_ms;
    arena_release(&arena);
    return status;
}

/* Times never run backwards within a partition. */
enum status log_find_time(struct store *store, uint32_t partition, uint64_t end, int64_t time_ms,
                          uint64_t *position, struct fault *fault)
{
    uint64_t low = 0;
    uint64_t high = end;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        int64_t found = 0;
        enum status status = time_at(store, partition, middle, &found, fault);

        if (status != STATUS_OK)
            return status;
        if (found < time_ms)
            low = middle + 1;
        else
            high = middle;
    }
    *position = low;
    return STATUS_OK;
}

enum status event_filter_include(const struct event_filter *filter, uint32_t partitions, bool *included,
                                 struct fault *fault)
{
    for (uint32_t p = 0; p < partitions; p++)
        included[p] = filter->partition_count == 0;
    for (size_t i = 0; i < filter->partition_count; i++) {
        if (filter->partitions[i] >= partitions)
            return fault_set(fault, STATUS_INVALID, "FILTER_NEVER_MATCHES",
                             "the filter names partition %u; this cluster has %u", filter->partitions[i],
                             partitions);
        included[filter->partitions[i]] = true;
    }
    return STATUS_OK;
}

enum status token_read_for(struct bytes token, const struct token_of *cluster, const bool *included,
                           uint64_t *positions, struct fault *fault)
{
    int64_t only;
    enum status status = token_read(token, cluster, positions, &only, fault);

    for (uint32_t p = 0; status == STATUS_OK && only >= 0 && p < cluster->partitions; p++)
        if (included[p] && p != (uint32_t)only)
            status = fault_set(fault, STATUS_INVALID, "TOKEN_OF_ONE_PARTITION",
                               "the token of a command names partition %lld alone; put that into "
                               "filter.partitions, or begin from a subscription's token",
                               (long long)only);
    return status;
}

static enum status find_start(struct subscription *s, const struct log_start *from, struct fault *fault)
{
    enum status status = STATUS_OK;

    if (from->kind == START_TOKEN)
        status = token_read_for(from->token, &s->settings.cluster, s->included, s->next, fault);
    for (uint32_t p = 0; p < s->partitions && status == STATUS_OK; p++) {
        uint64_t end;

        if (!s->included[p] || !s->held[p])
            continue;
        status = log_end(s->store, p, &end, fault);
        s->until[p] = end;
        if (status == STATUS_OK && from->kind == START_END)
            s->next[p] = end;
        else if (status == STATUS_OK && from->kind == START_TIME)
            status = log_find_time(s->store, p, end, from->time_ms, &s->next[p], fault);
        subscription_stored(s, p);
    }
    return status;
}

/* ---- life ---- */

enum status subscription_new(struct subscription **out, const struct subscription_settings *settings,
                             const bool *held, struct store *store, uint64_t now_ms, struct fault *fault)
{
    struct subscription *s = memory_zero(1, sizeof *s);
    enum status status;

    s->settings = *settings;
    s->store = store;
    s->partitions = settings->cluster.partitions;
    s->settings.cluster.cluster_id = arena_copy(&s->arena, settings->cluster.cluster_id);
    s->settings.filter = event_filter_copy(&s->arena, &settings->filter);
    s->next = arena_take(&s->arena, s->partitions * sizeof *s->next);
    s->until = arena_take(&s->arena, s->partitions * sizeof *s->until);
    s->included = arena_take(&s->arena, s->partitions);
    s->held = arena_take(&s->arena, s->partitions);
    s->more = arena_take(&s->arena, s->partitions);
    memset(s->next, 0, s->partitions * sizeof *s->next);
    memset(s->until, 0, s->partitions * sizeof *s->until);
    memset(s->more, 0, s->partitions);
    memcpy(s->held, held, s->partitions);
    s->credits = settings->credits;
    s->left = settings->limit == 0 ? UINT64_MAX : settings->limit;
    s->sent_ms = s->token_ms = now_ms;
    status = event_filter_include(&settings->filter, s->partitions, s->included, fault);
    if (status == STATUS_OK)
        status = find_start(s, &settings->from, fault);
    s->settings.from = (struct log_start){.kind = settings->from.kind, .time_ms = settings->from.time_ms};
    if (status != STATUS_OK) {
        subscription_free(s);
        return status;
    }
    *out = s;
    return STATUS_OK;
}

void subscription_free(struct subscription *s)
{
    if (s == NULL)
        return;
    while (s->foreign != NULL) {
        struct foreign *next = s->foreign->next;

        buffer_release(&s->foreign->inbox);
        free(s->foreign);
        s->foreign = next;
    }
    arena_release(&s->scratch);
    arena_release(&s->arena);
    free(s);
}

void subscription_credit(struct subscription *s, uint64_t events)
{
    s->credits = s->credits + events > SUBSCRIPTION_CREDITS_MAX ? SUBSCRIPTION_CREDITS_MAX
                                                                 : s->credits + events;
}

void subscription_stored(struct subscription *s, uint32_t partition)
{
    if (partition >= s->partitions || !s->included[partition] || !s->held[partition] || s->more[partition])
        return;
    s->more[partition] = true;
    s->more_count++;
}

/* ---- a page ---- */

struct page {
    struct buffer *out;
    size_t begun; /* where it starts in `out` */
    size_t events;
    size_t looked_at;
};

static bool page_is_full(const struct subscription *s, const struct page *page)
{
    return s->credits == 0 || s->left == 0 || page->events >= SUBSCRIPTION_PAGE_EVENTS ||
           page->out->len - page->begun >= SUBSCRIPTION_PAGE_BYTES ||
           page->looked_at >= SUBSCRIPTION_SCAN_EVENTS;
}

static void give(struct subscription *s, struct page *page, struct bytes packed)
{
    wire_subscribe_response_add(page->out, packed);
    page->events++;
    s->credits--;
    s->left--;
    s->given++;
}

static void nothing_more(struct subscription *s, uint32_t partition)
{
    s->more_count -= s->more[partition];
    s->more[partition] = false;
}

/* Positions of one partition in order, and the events that they name where the ids fit. */
struct stretch {
    size_t count;
    bool at_end; /* nothing more is stored */
    struct {
        uint64_t position;
        bool passed_over;
    } of[STORE_GET_MANY_MAX];
    size_t key_count;
    struct store_key keys[STORE_GET_MANY_MAX];
};

/* No more than the page can take. An error that comes behind something is met again the next time. */
static enum status look_ahead(struct subscription *s, uint32_t partition, const struct page *page,
                              struct stretch *stretch, struct fault *fault)
{
    const struct event_filter *filter = &s->settings.filter;
    struct store_key from = key_position((uint16_t)partition, s->next[partition]);
    struct store_key to = s->settings.until_end ? key_position((uint16_t)partition, s->until[partition])
                                                : key_partition_end((uint16_t)partition);
    struct store_cursor *cursor =
        store_cursor_new(s->store, STORE_POSITIONS, key_bytes(&from), key_bytes(&to), false);
    enum status status = STATUS_OK;
    uint64_t room = SUBSCRIPTION_PAGE_EVENTS - page->events;

    room = s->credits < room ? s->credits : room;
    room = s->left < room ? s->left : room;
    stretch->count = stretch->key_count = 0;
    stretch->at_end = false;
    while (status == STATUS_OK && stretch->count < COUNT_OF(stretch->of) && stretch->key_count < room) {
        struct bytes key, value;
        struct bytes id = BYTES_NONE;
        uint64_t position;

        status = store_cursor_next(cursor, &key, &value, fault);
        stretch->at_end = status == STATUS_NOT_FOUND;
        if (status != STATUS_OK)
            break;
        position = key_last_number(key);
        if (position != s->next[partition] + stretch->count) {
            status = fault_set(fault, STATUS_DAMAGED, "DAMAGED_RECORD",
                               "partition %u has no record of position %llu", partition,
                               (unsigned long long)(s->next[partition] + stretch->count));
            break;
        }
        if (value.len > 8)
            id = (struct bytes){value.data + 8, value.len - 8};
        stretch->of[stretch->count].position = position;
        stretch->of[stretch->count].passed_over =
            id.len > 0 && !begins_with_one_of(id, filter->id_prefixes, filter->id_prefix_count);
        if (!stretch->of[stretch->count].passed_over)
            status = key_of_event(partition, value, &stretch->keys[stretch->key_count], fault);
        if (status == STATUS_OK)
            stretch->key_count += !stretch->of[stretch->count++].passed_over;
    }
    store_cursor_free(cursor);
    return stretch->count > 0 || stretch->at_end ? STATUS_OK : status;
}

static enum status give_stretch(struct subscription *s, uint32_t partition, const struct stretch *stretch,
                                const struct bytes *packed, struct page *page, struct fault *fault)
{
    const struct event_filter *filter = &s->settings.filter;
    size_t at = 0;

    for (size_t i = 0; i < stretch->count && !page_is_full(s, page); i++) {
        page->looked_at++;
        if (!stretch->of[i].passed_over) {
            struct event_head head = {0};

            if (packed[at].len == 0)
                return fault_set(fault, STATUS_DAMAGED, "DAMAGED_RECORD",
                                 "partition %u has position %llu without its event", partition,
                                 (unsigned long long)stretch->of[i].position);
            if (looks_inside(filter) && wire_event_peek(packed[at], &head, fault) != STATUS_OK)
                return fault->status;
            if (!looks_inside(filter) || fits(filter, &head))
                give(s, page, packed[at]);
            at++;
        }
        s->next[partition] = stretch->of[i].position + 1;
        s->token_due = true;
        if (PLANTED(EVENT_SKIPPED) && page_is_full(s, page))
            s->next[partition]++;
    }
    return STATUS_OK;
}

static enum status walk(struct subscription *s, uint32_t partition, struct page *page, struct fault *fault)
{
    struct stretch stretch;
    enum status status = STATUS_OK;

    while (status == STATUS_OK && !page_is_full(s, page)) {
        struct bytes keys[STORE_GET_MANY_MAX];
        struct bytes packed[STORE_GET_MANY_MAX];

        if (s->settings.until_end && s->next[partition] >= s->until[partition]) {
            nothing_more(s, partition);
            break;
        }
        status = look_ahead(s, partition, page, &stretch, fault);
        for (size_t i = 0; i < stretch.key_count; i++)
            keys[i] = key_bytes(&stretch.keys[i]);
        if (status == STATUS_OK)
            status = store_get_many(s->store, STORE_EVENTS, keys, stretch.key_count, &s->scratch, packed, fault);
        if (status == STATUS_OK)
            status = give_stretch(s, partition, &stretch, packed, page, fault);
        arena_reset(&s->scratch);
        if (status == STATUS_OK && stretch.at_end && (stretch.count == 0 || s->next[partition] > stretch.of[stretch.count - 1].position)) {
            nothing_more(s, partition);
            break;
        }
    }
    return status;
}

/* What another node's subscription has given. */
static enum status drain(struct foreign *foreign, struct page *page, struct fault *fault)
{
    struct subscription *s = foreign->subscription;
    struct arena arena = {0};
    enum status status = STATUS_OK;

    while (status == STATUS_OK && foreign->taken < foreign->inbox.len && !page_is_full(s, page)) {
        const uint8_t *at = foreign->inbox.data + foreign->taken;
        struct event_head head;
        struct bytes bytes;
        uint32_t len;

        memcpy(&len, at, sizeof len);
        bytes = (struct bytes){at + 5, len};
        foreign->taken += 5 + len;
        if (at[4] != 0) {
            uint64_t *positions = arena_take(&arena, s->partitions * sizeof *positions);
            int64_t only;

            status = token_read(bytes, &s->settings.cluster, positions, &only, fault);
            for (uint32_t p = 0; status == STATUS_OK && p < s->partitions; p++)
                if (s->included[p] && !s->held[p] && positions[p] > s->next[p])
                    s->next[p] = positions[p];
            foreign->begun = true;
            s->token_due = true;
            continue;
        }
        foreign->given++;
        page->looked_at++;
        status = wire_event_peek(bytes, &head, fault);
        if (status == STATUS_OK && head.partition < s->partitions && s->included[head.partition] &&
            !s->held[head.partition] && head.position >= s->next[head.partition]) {
            give(s, page, bytes);
            s->next[head.partition] = head.position + 1;
            s->token_due = true;
        }
    }
    if (foreign->taken == foreign->inbox.len)
        foreign->taken = foreign->inbox.len = 0;
    arena_release(&arena);
    return status;
}

static bool foreign_waits(const struct subscription *s)
{
    for (const struct foreign *f = s->foreign; f != NULL; f = f->next)
        if (f->taken < f->inbox.len)
            return true;
    return false;
}

/* A token that is given before a source has said where "the end" is would lead back to the beginning. */
static bool stands(const struct subscription *s)
{
    bool known = s->settings.from.kind == START_BEGINNING || s->settings.from.kind == START_TOKEN;

    for (const struct foreign *f = s->foreign; f != NULL; f = f->next)
        if (!known && !f->begun)
            return false;
    return true;
}

static void add_token(struct subscription *s, uint64_t now_ms, struct buffer *out)
{
    struct buffer token = {0};

    subscription_token(s, &token);
    wire_subscribe_response_token(out, buffer_bytes(&token));
    buffer_release(&token);
    s->token_ms = now_ms;
    s->token_due = false;
}

static bool foreign_ended(const struct subscription *s)
{
    for (const struct foreign *f = s->foreign; f != NULL; f = f->next)
        if (!f->ended || f->taken < f->inbox.len)
            return false;
    return true;
}

static bool has_ended(const struct subscription *s)
{
    return s->left == 0 || (s->settings.until_end && s->more_count == 0 && foreign_ended(s));
}

enum status subscription_next(struct subscription *s, uint64_t now_ms, struct buffer *out, uint32_t *partition,
                              struct fault *fault)
{
    struct page page = {.out = out, .begun = out->len};
    enum status status = STATUS_OK;

    for (struct foreign *f = s->foreign; f != NULL && status == STATUS_OK; f = f->next)
        status = drain(f, &page, fault);
    if (status == STATUS_OK && !stands(s))
        return STATUS_OK;
    for (uint32_t n = 0; n < s->partitions && s->more_count > 0 && status == STATUS_OK && !page_is_full(s, &page);
         n++) {
        *partition = s->turn;
        if (s->more[s->turn])
            status = walk(s, s->turn, &page, fault);
        if (!page_is_full(s, &page) || page.looked_at >= SUBSCRIPTION_SCAN_EVENTS)
            s->turn = (s->turn + 1) % s->partitions;
    }
    if (status != STATUS_OK) {
        out->len = page.begun; /* what was read stays unsent; the reader goes on from its token */
        return status;
    }
    if (has_ended(s)) {
        add_token(s, now_ms, out);
        return STATUS_NOT_FOUND;
    }
    if (!s->begun || now_ms >= subscription_deadline(s) ||
        (s->token_due && page.events > 0 && now_ms - s->token_ms >= TOKEN_EVERY_MS))
        add_token(s, now_ms, out);
    if (out->len > page.begun)
        s->sent_ms = now_ms;
    s->begun = true;
    return STATUS_OK;
}

bool subscription_wants(const struct subscription *s, uint64_t now_ms)
{
    if (!stands(s))
        return foreign_waits(s);
    return !s->begun || has_ended(s) || now_ms >= subscription_deadline(s) ||
           (s->credits > 0 && (s->more_count > 0 || foreign_waits(s)));
}

uint64_t subscription_deadline(const struct subscription *s)
{
    return s->settings.heartbeat_ms == 0 ? UINT64_MAX : s->sent_ms + s->settings.heartbeat_ms;
}

/* ---- foreign partitions ---- */

struct foreign *subscription_foreign(struct subscription *s, const uint32_t *partitions, size_t count)
{
    struct foreign *foreign = memory_zero(1, sizeof *foreign);

    for (size_t i = 0; i < count; i++)
        assert(!s->held[partitions[i]]);
    foreign->subscription = s;
    foreign->next = s->foreign;
    s->foreign = foreign;
    return foreign;
}

enum status foreign_take(struct foreign *foreign, struct bytes packed, struct fault *fault)
{
    struct arena arena = {0};
    struct subscribe_response response;
    enum status status = wire_subscribe_response_decode(packed, &arena, &response, fault);

    for (size_t i = 0; status == STATUS_OK && i <= response.event_count; i++) {
        bool is_token = i == response.event_count;
        struct bytes bytes = is_token ? response.token : response.packed_events[i];
        uint32_t len = (uint32_t)bytes.len;
        uint8_t kind = is_token;

        if (is_token && bytes.len == 0)
            continue;
        buffer_add(&foreign->inbox, &len, sizeof len);
        buffer_add(&foreign->inbox, &kind, sizeof kind);
        buffer_add(&foreign->inbox, bytes.data, bytes.len);
    }
    arena_release(&arena);
    return status;
}

size_t foreign_waiting(const struct foreign *foreign)
{
    return foreign->inbox.len - foreign->taken;
}

void foreign_begin(struct foreign *foreign)
{
    foreign->begun = true;
}

bool foreign_begun(const struct foreign *foreign)
{
    return foreign->begun;
}

uint32_t foreign_given(struct foreign *foreign)
{
    uint32_t given = foreign->given;

    foreign->given = 0;
    return given;
}

void foreign_end(struct foreign *foreign)
{
    foreign->ended = true;
}

void foreign_reset(struct foreign *foreign)
{
    foreign->taken = foreign->inbox.len = 0;
    foreign->given = 0;
}

/* ---- what it knows ---- */

void subscription_token(const struct subscription *s, struct buffer *out)
{
    token_write(out, &s->settings.cluster, s->next);
}

int64_t subscription_ahead(const struct subscription *s, uint32_t after)
{
    struct fault fault;
    uint64_t end;

    for (uint32_t p = after; p < s->partitions; p++)
        if (s->included[p] && s->held[p] && s->next[p] > s->until[p] &&
            log_end(s->store, p, &end, &fault) == STATUS_OK && s->next[p] > end)
            return p;
    return -1;
}

bool subscription_includes(const struct subscription *s, uint32_t partition)
{
    return partition < s->partitions && s->included[partition];
}

uint64_t subscription_given(const struct subscription *s)
{
    return s->given;
}

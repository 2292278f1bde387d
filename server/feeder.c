/*
 * The feeder: one thread that drives all subscriptions of this node (lib/event). It reads the store as far
 * as the shards have told that it grew, a page for each consumer in turn, and never waits for any: a slow
 * one has a few pages in its stream and no turn until they are gone. No command waits for it.
 */
#include "faults.h"
#include "feed.h"

enum { AWAIT_MS = 10000, HEARTBEAT_MS = 10000, CREDITS_DEFAULT = 1000, TICK_MS = 250 };

struct feeder {
    struct node *node;
    struct mailbox box;
    pthread_t thread;
    atomic_size_t count;
    atomic_ullong grown[PARTITIONS_MAX / 64]; /* partitions, a bit each */
    atomic_bool wake_sent;
    struct feed_letter wake;
    struct feed_letter stop;
    struct feed *feeds;
    struct groups *groups;
    bool ending;
    atomic_bool end_asked;
    atomic_bool any_moved;
    atomic_bool relays_gone;
    bool stopped;
};

void feeder_send(struct feeder *feeder, struct feed_letter *letter)
{
    mailbox_send(&feeder->box, &letter->mail);
}

static void wake(struct feeder *feeder)
{
    if (!atomic_exchange(&feeder->wake_sent, true))
        feeder_send(feeder, &feeder->wake);
}

void feeder_moved(struct feeder *feeder)
{
    atomic_store(&feeder->any_moved, true);
    wake(feeder);
}

void feeder_notify(struct feeder *feeder, uint32_t partition)
{
    if (atomic_load(&feeder->count) == 0 || partition >= PARTITIONS_MAX)
        return; /* who opens later reads what is there */
    atomic_fetch_or(&feeder->grown[partition / 64], 1ULL << partition % 64);
    wake(feeder);
}

size_t feeder_count(const struct feeder *feeder)
{
    return atomic_load(&feeder->count);
}

/* ---- one feed ---- */

struct feed *feed_new(struct node *node, struct rpc_stream *stream, bool read_all, enum query_kind question)
{
    struct feed *feed = memory_zero(1, sizeof *feed);

    feed->node = node;
    feed->stream = rpc_stream_hold(stream);
    feed->read_all = read_all;
    feed->question.kind = question;
    feed->open.kind = FEED_OPEN;
    feed->more.kind = FEED_MORE;
    feed->closed.kind = FEED_CLOSED;
    feed->awaited.kind = FEED_AWAITED;
    return feed;
}

struct node *feeder_node(const struct feeder *feeder)
{
    return feeder->node;
}

void feed_finish(struct feed *feed, const struct fault *fault)
{
    if (feed->finished)
        return;
    feed->finished = true;
    if (feed->stream == NULL)
        feed->broke(feed, fault);
    else if (fault != NULL)
        fault_finish_stream(feed->stream, fault);
    else
        rpc_stream_finish(feed->stream, CODE_OK, "", BYTES_NONE);
    feed_relays_cancel(feed);
}

bool node_holds(const struct node *node, uint32_t partition)
{
    return routes_holds(node->routes, partition);
}

static void damaged(struct feed *feed, uint32_t partition, struct fault *fault)
{
    struct damaged_letter *letter = memory_zero(1, sizeof *letter);

    letter->letter.kind = LETTER_DAMAGED;
    letter->partition = partition;
    letter->fault = *fault;
    shard_send(node_shard_of(feed->node, partition), &letter->letter);
    (void)fault_set(fault, STATUS_UNAVAILABLE, "REPLICA_DAMAGED",
                    "this node's copy of partition %u is damaged and is got anew; go on at another node "
                    "from the newest token",
                    partition);
}

/* ---- barriers ---- */

static void one_ready(struct awaiting *awaiting, const struct fault *fault)
{
    struct awaiting_many *many = CONTAINER_OF(awaiting, struct awaiting_one, awaiting)->many;
    struct feed *feed = many->feed;

    if (fault != NULL && !atomic_exchange(&many->failed, true))
        many->fault = *fault;
    if (atomic_fetch_sub(&many->left, 1) == 1)
        feeder_send(feed->node->feeder, &feed->awaited);
}

static void await(struct feed *feed, const uint32_t *partitions, size_t count)
{
    struct awaiting_many *many = memory_zero(1, sizeof *many + count * sizeof many->each[0]);

    feed->awaits = many;
    many->feed = feed;
    atomic_init(&many->left, (unsigned)count);
    for (size_t i = 0; i < count; i++) {
        many->each[i].many = many;
        many->each[i].awaiting.letter.kind = LETTER_AWAIT;
        many->each[i].awaiting.ready = one_ready;
        many->each[i].awaiting.read.partition = partitions[i];
        many->each[i].awaiting.read.deadline_ms = clock_monotonic_ms() + AWAIT_MS;
    }
    for (size_t i = 0; i < count; i++) /* the last may bring the answer before this returns */
        shard_send(node_shard_of(feed->node, partitions[i]), &many->each[i].awaiting.letter);
}

/* ---- from the request to the subscription ---- */

static bool *held_here(struct feed *feed)
{
    uint32_t count = node_partition_count(feed->node);

    if (feed->held == NULL)
        feed->held = arena_take(&feed->arena, count * sizeof *feed->held);
    for (uint32_t p = 0; p < count; p++)
        feed->held[p] = node_holds(feed->node, p);
    return feed->held;
}

static enum status make_subscription(struct feed *feed, struct fault *fault)
{
    const struct founding *founding = atomic_load(&feed->node->founding);
    const struct subscribe_request *r = &feed->request;
    struct subscription_settings settings = {
        .cluster = {founding->cluster_id, founding->partition_count},
        .from = feed->read_all ? feed->read_request.from : r->from,
        .filter = feed->read_all ? feed->read_request.filter : r->filter,
        .credits = feed->read_all ? SUBSCRIPTION_CREDITS_MAX : r->credits == 0 ? CREDITS_DEFAULT : r->credits,
        .heartbeat_ms = feed->read_all ? 0 : r->heartbeat_ms == 0 ? HEARTBEAT_MS : r->heartbeat_ms,
        .limit = feed->read_all ? feed->read_request.limit : 0,
        .until_end = feed->read_all,
    };
    bool *held = held_here(feed);
    enum status status = subscription_new(&feed->subscription, &settings, held, feed->node->store,
                                          clock_monotonic_ms(), fault);

    if (status == STATUS_OK)
        feed_relays_make(feed, held);
    return status;
}

/* A token that is ahead of this replica's store: the replica lags, or nobody gave that token. */
static bool check_ahead(struct feed *feed)
{
    struct arena arena = {0};
    uint32_t *partitions = arena_take(&arena, node_partition_count(feed->node) * sizeof *partitions);
    size_t count = 0;

    for (int64_t p = subscription_ahead(feed->subscription, 0); p >= 0;
         p = subscription_ahead(feed->subscription, (uint32_t)p + 1))
        partitions[count++] = (uint32_t)p;
    if (count > 0)
        await(feed, partitions, count);
    arena_release(&arena);
    return count > 0;
}

static enum status make_query(struct feed *feed, struct fault *fault)
{
    const struct founding *founding = atomic_load(&feed->node->founding);
    struct token_of cluster = {founding->cluster_id, founding->partition_count};
    bool *held = held_here(feed);
    enum status status = query_new(&feed->query, &feed->question, &cluster, held, feed->node->store, fault);

    if (status == STATUS_OK)
        feed_relays_make(feed, held);
    return status;
}

static void open_subscription(struct feed *feed)
{
    struct fault fault;
    bool asks = feed->question.kind != QUERY_NONE;

    if ((asks ? make_query(feed, &fault) : make_subscription(feed, &fault)) != STATUS_OK) {
        if (fault.status == STATUS_DAMAGED)
            (void)fault_set(&fault, STATUS_UNAVAILABLE, "REPLICA_DAMAGED",
                            "this node's store has a damaged record; ask another node");
        feed_finish(feed, &fault);
        return;
    }
    if (!asks)
        (void)check_ahead(feed);
}

/* A linearizable ReadAll waits for what was acknowledged before it came. */
static bool await_all(struct feed *feed)
{
    uint32_t count = node_partition_count(feed->node);
    struct arena arena = {0};
    uint32_t *partitions = arena_take(&arena, count * sizeof *partitions);
    const struct event_filter *filter = &feed->read_request.filter;
    size_t n = 0;

    for (uint32_t p = 0; p < count; p++) {
        bool wanted = filter->partition_count == 0;

        for (size_t i = 0; i < filter->partition_count; i++)
            wanted = wanted || filter->partitions[i] == p;
        if (wanted && node_holds(feed->node, p))
            partitions[n++] = p;
    }
    if (n > 0)
        await(feed, partitions, n);
    arena_release(&arena);
    return n > 0;
}

struct feed *feed_read(struct feeder *feeder, const struct subscribe_request *request,
                       void (*sink)(struct feed *reader, struct bytes message),
                       void (*broke)(struct feed *reader, const struct fault *fault), void *user)
{
    struct feed *feed = memory_zero(1, sizeof *feed);

    feed->node = feeder->node;
    feed->awaited.kind = FEED_AWAITED;
    feed->sink = sink;
    feed->broke = broke;
    feed->user = user;
    feed->request = *request;
    feed->request.from.token = arena_copy(&feed->arena, request->from.token);
    feed->request.filter = event_filter_copy(&feed->arena, &request->filter);
    feed->next = feeder->feeds;
    feeder->feeds = feed;
    atomic_fetch_add(&feeder->count, 1);
    return feed;
}

void feed_credit(struct feed *feed, uint32_t credits)
{
    if (feed->subscription != NULL)
        subscription_credit(feed->subscription, credits);
    else
        feed->request.credits += credits;
}

void feed_close(struct feed *feed)
{
    feed->finished = feed->is_closed = true;
    feed_relays_cancel(feed);
}

static void opened(struct feeder *feeder, struct feed *feed)
{
    struct fault fault;

    feed->next = feeder->feeds;
    feeder->feeds = feed;
    if (feeder->ending || atomic_load(&feeder->count) >= SUBSCRIPTIONS_IN_NODE_MAX) {
        if (feeder->ending)
            (void)fault_set(&fault, STATUS_UNAVAILABLE, "NODE_STOPPING", "this node stops; ask another");
        else
            (void)fault_set(&fault, STATUS_EXHAUSTED, "TOO_MANY_SUBSCRIPTIONS",
                            "this node has %d subscriptions already; ask another", SUBSCRIPTIONS_IN_NODE_MAX);
        fault.retry_ms = 1000;
        atomic_fetch_add(&feeder->count, 1);
        feed_finish(feed, &fault);
        return;
    }
    atomic_fetch_add(&feeder->count, 1); /* before the store is read: see feeder_notify() */
    if (feed->read_all && !feed->read_request.stale && await_all(feed))
        return;
    open_subscription(feed);
}

static void awaited(struct feed *feed)
{
    struct awaiting_many *many = feed->awaits;
    bool failed = atomic_load(&many->failed);
    struct fault fault = many->fault;
    int64_t ahead;

    feed->awaits = NULL;
    free(many);
    if (feed->finished)
        return;
    if (failed) {
        fault.status = STATUS_UNAVAILABLE;
        feed_finish(feed, &fault);
        return;
    }
    if (feed->subscription == NULL && feed->query == NULL) {
        open_subscription(feed);
        return;
    }
    ahead = subscription_ahead(feed->subscription, 0);
    if (ahead < 0)
        return;
    (void)fault_set(&fault, STATUS_INVALID, "TOKEN_OF_THE_FUTURE",
                    "the token stands behind the end of partition %lld: this cluster never gave it, or has been "
                    "restored from an older backup",
                    (long long)ahead);
    feed_finish(feed, &fault);
}

/* ---- giving ---- */

static bool can_give(const struct feed *feed)
{
    return (feed->subscription != NULL || feed->query != NULL) && feed->awaits == NULL && !feed->finished &&
           !feed->is_closed;
}

static bool wants(const struct feed *feed, uint64_t now_ms)
{
    return feed->query != NULL ? query_wants(feed->query) : subscription_wants(feed->subscription, now_ms);
}

/* One message; true when there may be another. */
static bool give(struct feed *feed)
{
    struct buffer message = {0};
    uint32_t partition = 0;
    struct fault fault;
    enum status status;

    if (feed->query != NULL) {
        status = query_next(feed->query, &message, &partition, &fault);
    } else {
        uint64_t before = subscription_given(feed->subscription);

        status = subscription_next(feed->subscription, clock_monotonic_ms(), &message, &partition, &fault);
        METRIC_ADD(feed->node, events_given, subscription_given(feed->subscription) - before);
    }
    if (message.len > 0 && (status == STATUS_OK || status == STATUS_NOT_FOUND)) {
        enum status revealed = subjects_reveal(feed->node, &message, &fault);

        if (revealed != STATUS_OK) {
            buffer_release(&message);
            message = (struct buffer){0};
            status = revealed == STATUS_DAMAGED ? STATUS_FAILED : revealed;
        }
    }
    if (message.len > 0 && feed->stream == NULL)
        feed->sink(feed, buffer_bytes(&message));
    else if (message.len > 0 || (status == STATUS_NOT_FOUND && feed->question.kind == QUERY_COUNT))
        rpc_stream_send(feed->stream, buffer_bytes(&message)); /* a count is one message, also of nothing */
    buffer_release(&message);
    feed_relays_credit(feed);
    if (feed->read_all && feed->subscription != NULL)
        subscription_credit(feed->subscription, SUBSCRIPTION_CREDITS_MAX);
    if (status == STATUS_OK)
        return true;
    if (status == STATUS_NOT_FOUND) {
        feed_finish(feed, NULL);
        return false;
    }
    if (status == STATUS_DAMAGED)
        damaged(feed, partition, &fault);
    feed_finish(feed, &fault);
    return false;
}

/* A page for everybody who takes one; true when somebody may take another. */
static bool serve_all(struct feeder *feeder)
{
    uint64_t now = clock_monotonic_ms();
    bool more = false;

    for (struct feed *feed = feeder->feeds; feed != NULL; feed = feed->next)
        if (feed->stream == NULL && feed->subscription == NULL && !feed->finished && feed->awaits == NULL)
            open_subscription(feed);
    for (struct feed *feed = feeder->feeds; feed != NULL; feed = feed->next)
        if (can_give(feed) && wants(feed, now) &&
            (feed->stream == NULL || rpc_stream_pending(feed->stream) < SUBSCRIPTION_PENDING_MAX) && give(feed))
            more = true;
    return more;
}

/* ---- letters ---- */

static void take_growth(struct feeder *feeder)
{
    for (size_t word = 0; word < COUNT_OF(feeder->grown); word++) {
        unsigned long long bits =
            atomic_load(&feeder->grown[word]) == 0 ? 0 : atomic_exchange(&feeder->grown[word], 0);

        for (unsigned bit = 0; bits != 0; bit++, bits >>= 1)
            for (struct feed *feed = (bits & 1) != 0 ? feeder->feeds : NULL; feed != NULL; feed = feed->next)
                if (feed->subscription != NULL)
                    subscription_stored(feed->subscription, (uint32_t)(word * 64 + bit));
    }
}

/* Who reads a replica that isn't one any more goes on elsewhere. */
static void take_moves(struct feeder *feeder)
{
    struct fault fault;

    if (!atomic_exchange(&feeder->any_moved, false))
        return;
    for (struct feed *feed = feeder->feeds; feed != NULL; feed = feed->next)
        for (uint32_t p = 0; feed->held != NULL && !feed->finished && p < node_partition_count(feed->node); p++)
            if (feed->held[p] && !node_holds(feed->node, p)) {
                (void)fault_set(&fault, STATUS_UNAVAILABLE, "REPLICA_MOVED",
                                "partition %u moved to another node; go on there from the newest token", p);
                feed_finish(feed, &fault);
            }
}

static void end_all(struct feeder *feeder)
{
    struct fault fault;

    feeder->ending = true;
    groups_end(feeder->groups);
    (void)fault_set(&fault, STATUS_UNAVAILABLE, "NODE_STOPPING",
                    "this node stops; go on at another from the newest token");
    for (struct feed *feed = feeder->feeds; feed != NULL; feed = feed->next)
        feed_finish(feed, &fault);
}

static void take(struct feeder *feeder, struct feed_letter *letter)
{
    struct feed_note *note = (struct feed_note *)letter;

    switch (letter->kind) {
    case FEED_OPEN:
        opened(feeder, CONTAINER_OF(letter, struct feed, open));
        return;
    case FEED_MORE:
        atomic_store(&CONTAINER_OF(letter, struct feed, more)->more_sent, false);
        return;
    case FEED_CLOSED: {
        struct feed *feed = CONTAINER_OF(letter, struct feed, closed);

        feed->is_closed = true;
        feed_relays_cancel(feed);
        return;
    }
    case FEED_AWAITED:
        awaited(CONTAINER_OF(letter, struct feed, awaited));
        return;
    case FEED_CREDIT:
        feed_credit(note->feed, note->credits);
        break;
    case FEED_RELAYED:
        feed_relay_took(note);
        break;
    case FEED_RELAY_CLOSED:
        feed_relay_closed(note, clock_monotonic_ms());
        break;
    case FEED_JOIN:
        groups_join(feeder->groups, CONTAINER_OF(letter, struct process_stream, join));
        return;
    case FEED_SAID:
        groups_said(feeder->groups, (struct said_note *)letter);
        break;
    case FEED_LEFT:
        groups_left(feeder->groups, CONTAINER_OF(letter, struct process_stream, left));
        return;
    case FEED_ASKED:
        groups_asked(feeder->groups, (struct group_question *)letter);
        return;
    case FEED_WAKE:
        atomic_store(&feeder->wake_sent, false);
        if (atomic_load(&feeder->end_asked))
            end_all(feeder);
        return;
    case FEED_STOP:
        feeder->stopped = true;
        return;
    case FEED_FOUNDED: /* the local bus's */
    case FEED_PUBLISH:
    case FEED_FORGET:
    case FEED_MODULE_SAID:
        break;
    }
    free(note);
}

static void feed_free(struct feed *feed)
{
    feed_relays_free(feed);
    subscription_free(feed->subscription);
    query_free(feed->query);
    rpc_stream_drop(feed->stream);
    arena_release(&feed->arena);
    free(feed->awaits);
    free(feed);
}

/* Free what is over, dial what broke; gives when to look again. */
static uint64_t look_after(struct feeder *feeder)
{
    struct feed **at = &feeder->feeds;
    uint64_t now = clock_monotonic_ms();
    uint64_t next = UINT64_MAX;
    bool relays = false;

    while (*at != NULL) {
        struct feed *feed = *at;

        if (feed->is_closed && feed->awaits == NULL && !feed_relays_open(feed) &&
            !atomic_load(&feed->more_sent)) {
            *at = feed->next;
            feed_free(feed);
            atomic_fetch_sub(&feeder->count, 1);
            continue;
        }
        relays = relays || feed_relays_open(feed);
        if (can_give(feed)) {
            if (feed->subscription != NULL && subscription_deadline(feed->subscription) < next)
                next = subscription_deadline(feed->subscription);
            if (feed->relays != NULL) {
                feed_relays_tick(feed, now);
                next = next < now + TICK_MS ? next : now + TICK_MS;
            }
        }
        at = &feed->next;
    }
    atomic_store(&feeder->relays_gone, feeder->ending && !relays);
    return next;
}

static void *run(void *context)
{
    struct feeder *feeder = context;
    int wait_ms = -1;

    while (!feeder->stopped) {
        struct mail *mail = mailbox_receive(&feeder->box, wait_ms);
        uint64_t next, now, group_tick_ms;
        bool more;

        while (mail != NULL) {
            struct mail *following = mail->next;

            take(feeder, CONTAINER_OF(mail, struct feed_letter, mail));
            mail = following;
        }
        take_moves(feeder);
        take_growth(feeder);
        more = serve_all(feeder);
        now = clock_monotonic_ms();
        group_tick_ms = groups_tick(feeder->groups, now);
        next = look_after(feeder);
        next = group_tick_ms < next ? group_tick_ms : next;
        wait_ms = more || next <= now ? 0 : next == UINT64_MAX ? -1 : (int)(next - now);
    }
    return NULL;
}

/* ---- birth and death ---- */

struct feeder *feeder_new(struct node *node)
{
    struct feeder *feeder = memory_zero(1, sizeof *feeder);

    feeder->node = node;
    feeder->groups = groups_new(feeder);
    feeder->wake.kind = FEED_WAKE;
    feeder->stop.kind = FEED_STOP;
    if (mailbox_init(&feeder->box) != STATUS_OK || pthread_create(&feeder->thread, NULL, run, feeder) != 0)
        abort(); /* no thread at start-up: nothing can work */
    pthread_setname_np(feeder->thread, "feeder");
    return feeder;
}

bool feeder_gone(struct feeder *feeder)
{
    atomic_store(&feeder->end_asked, true);
    wake(feeder);
    return atomic_load(&feeder->relays_gone);
}

void feeder_free(struct feeder *feeder)
{
    if (feeder == NULL)
        return;
    feeder_send(feeder, &feeder->stop);
    pthread_join(feeder->thread, NULL);
    groups_free(feeder->groups);
    while (feeder->feeds != NULL) {
        struct feed *next = feeder->feeds->next;

        feed_free(feeder->feeds);
        feeder->feeds = next;
    }
    mailbox_release(&feeder->box);
    free(feeder);
}

void feeder_group_metrics(struct feeder *feeder, struct buffer *out)
{
    groups_metrics(feeder->groups, out);
}

#include "load.h"

#include <math.h>
#include <pthread.h>
#include <time.h>

#include "cairn/v1/command.pb-c.h"
#include "cairn/v1/event.pb-c.h"
#include "client.h"
#include "wire/unpack.h"

enum { TICK_MS = 10, REOPEN_MS = 200, MESSAGE_MAX = 8 << 20, CALL_TIMEOUT_MS = 30000, WARM_US = 1000000,
       NAME_ROOM = 96 };

struct load;

/* A node. */
struct lane {
    struct load *load;
    struct rpc_channel *channel;
    struct rpc_stream *stream; /* of those workloads that have one; NULL: it broke */
    uint64_t reopen_us;
};

struct slot {
    struct load *load;
    unsigned index;
    bool busy;
    bool waits;       /* to be asked again */
    bool reads;
    uint64_t number;
    uint64_t due_us;
    uint64_t sent_us;
    unsigned lane;
    unsigned tries; /* of this operation, by calls of its own */
};

/* One call for an operation; another may have been made since. */
struct try {
    struct slot *slot;
    uint64_t number;
    unsigned which;
};

struct load {
    const struct load_settings *settings;
    struct load_result *result;
    struct lane lanes[LANES_MAX];
    struct slot slots[SLOTS_MAX];
    unsigned free_slots[SLOTS_MAX];
    size_t free_count;
    size_t busy_count;
    size_t calls; /* without an answer yet */
    uint64_t next_number;
    uint64_t prefix;
    uint64_t began_us, counted_us, until_us;
    uint8_t *owner_lanes; /* by aggregate */
    double zipf_zeta, zipf_eta, zipf_half;
    struct buffer payload, request;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

static void begin(struct load *l, struct slot *slot, uint64_t due_us);

/* ---- which aggregate, and where ---- */

static const double ZIPF_THETA = 0.99; /* as YCSB has it */

static void zipf_prepare(struct load *l)
{
    double n = l->settings->aggregates;

    for (unsigned i = 1; i <= l->settings->aggregates; i++)
        l->zipf_zeta += 1 / pow(i, ZIPF_THETA);
    l->zipf_half = 1 + pow(0.5, ZIPF_THETA);
    l->zipf_eta = (1 - pow(2 / n, 1 - ZIPF_THETA)) / (1 - l->zipf_half / l->zipf_zeta);
}

/* Gray et al., "Quickly generating billion-record synthetic databases" (1994). */
static unsigned zipf(const struct load *l, double chance)
{
    double at = chance * l->zipf_zeta;

    if (at < 1)
        return 0;
    if (at < l->zipf_half)
        return 1 % l->settings->aggregates;
    return (unsigned)(l->settings->aggregates * pow(l->zipf_eta * chance - l->zipf_eta + 1, 1 / (1 - ZIPF_THETA))) %
           l->settings->aggregates;
}

static uint64_t scattered(const struct load *l, uint64_t number)
{
    return hash_mix(l->prefix ^ number, BYTES_LITERAL("op"));
}

static unsigned aggregate_of(const struct load *l, uint64_t number)
{
    if (l->settings->workload == LOAD_MIXED)
        return zipf(l, (double)(scattered(l, number) >> 11) / (double)(1ULL << 53));
    return (unsigned)(number % l->settings->aggregates);
}

/* Those of another type are others. */
static void name_aggregate(const struct load *l, unsigned number, char *out, size_t room)
{
    snprintf(out, room, "bench-%.64s-%u", l->settings->type, number);
}

static unsigned lane_of(const struct load *l, const struct slot *slot)
{
    size_t count = l->settings->endpoint_count;
    unsigned owner = l->owner_lanes == NULL ? 0 : l->owner_lanes[aggregate_of(l, slot->number)];

    if (l->settings->route == ROUTE_OWNER)
        return owner;
    if (l->settings->route == ROUTE_OTHER)
        return (unsigned)((owner + 1 + slot->index % (count - 1)) % count);
    return (unsigned)(slot->index % count);
}

/* ---- sending; with the lock held ---- */

static void add_command(struct load *l, const struct slot *slot, const char *aggregate, struct buffer *out)
{
    char id[64];

    snprintf(id, sizeof id, "%llx.%llx.%x", (unsigned long long)l->prefix, (unsigned long long)slot->number, slot->index);
    put_bytes(out, 1, bytes_of(id));
    put_bytes(out, 2, bytes_of(l->settings->type));
    put_bytes(out, 3, bytes_of(aggregate));
}

static const char *pack(struct load *l, const struct slot *slot)
{
    struct buffer *out = &l->request;
    enum workload workload = l->settings->workload;
    char aggregate[NAME_ROOM];
    size_t begun;

    out->len = 0;
    name_aggregate(l, aggregate_of(l, slot->number), aggregate, sizeof aggregate);
    if (workload == LOAD_ECHO || workload == LOAD_ECHO_UNARY) {
        char id[64];

        snprintf(id, sizeof id, "%llx.%llx.%x", (unsigned long long)l->prefix, (unsigned long long)slot->number,
                 slot->index);
        put_bytes(out, 1, bytes_of(id));
        put_bytes(out, 2, buffer_bytes(&l->payload));
        return "/echo.Echo/Unary";
    }
    if (slot->reads) {
        put_bytes(out, 1, bytes_of(aggregate));
        put_varint(out, 3 << 3);
        put_varint(out, CAIRN__V1__DIRECTION__DIRECTION_BACKWARDS);
        put_varint(out, 5 << 3); /* limit */
        put_varint(out, 1);
        return "/cairn.v1.EventService/ReadAggregate";
    }
    if (workload == LOAD_APPEND) {
        add_command(l, slot, aggregate, out);
        for (unsigned i = 0; i < l->settings->events; i++) {
            begun = put_begin(out, 4);
            put_bytes(out, 1, BYTES_LITERAL("Put"));
            put_bytes(out, 3, buffer_bytes(&l->payload));
            put_end(out, begun);
        }
        return "/cairn.v1.EventService/Append";
    }
    begun = put_begin(out, 1);
    add_command(l, slot, aggregate, out);
    put_bytes(out, 4, BYTES_LITERAL("Put"));
    put_bytes(out, 6, buffer_bytes(&l->payload));
    put_end(out, begun);
    return "/cairn.v1.CommandService/Dispatch";
}

static void on_answer(void *user, int code, const char *text, struct bytes message);
static void on_message(void *user, struct rpc_stream *stream, struct bytes message);
static void on_lane_closed(void *user, struct rpc_stream *stream, int code, const char *text);
static const struct rpc_stream_events lane_events = {.message = on_message, .closed = on_lane_closed};

static bool by_stream(const struct load *l, const struct slot *slot)
{
    enum workload workload = l->settings->workload;

    return !slot->reads && (workload == LOAD_DISPATCH || workload == LOAD_MIXED || workload == LOAD_ECHO);
}

static void transmit(struct load *l, struct slot *slot)
{
    const char *path = pack(l, slot);
    struct lane *lane = &l->lanes[slot->lane];

    slot->waits = false;
    slot->sent_us = clock_monotonic_us();
    if (!by_stream(l, slot)) {
        struct try *try = memory_take(sizeof *try);

        l->calls++;
        *try = (struct try){slot, slot->number, ++slot->tries};
        rpc_unary_call(lane->channel, path, buffer_bytes(&l->request), CALL_TIMEOUT_MS, on_answer, try);
    } else if (lane->stream != NULL) {
        rpc_stream_send(lane->stream, buffer_bytes(&l->request));
    } else {
        slot->waits = true;
    }
}

static void begin(struct load *l, struct slot *slot, uint64_t due_us)
{
    slot->busy = true;
    slot->number = l->next_number++;
    slot->due_us = due_us;
    slot->reads = l->settings->workload == LOAD_READ ||
                  (l->settings->workload == LOAD_MIXED &&
                   scattered(l, slot->number ^ 0x5EED) % 100 < l->settings->read_percent);
    slot->lane = lane_of(l, slot);
    slot->tries = 0;
    l->busy_count++;
    transmit(l, slot);
}

/* ---- what comes back ---- */

static void fail(struct load *l, struct slot *slot, int code, const char *text)
{
    if (l->settings->retry_ms > 0) {
        slot->waits = true;
        return;
    }
    if (l->result->failed++ == 0)
        snprintf(l->result->first_failure, sizeof l->result->first_failure, "code %d: %s", code, text);
}

static void fail_by_message(struct load *l, struct slot *slot, struct bytes message)
{
    Cairn__V1__DispatchStreamResponse *response =
        cairn__v1__dispatch_stream_response__unpack(NULL, message.len, message.data);

    if (response != NULL && response->result_case == CAIRN__V1__DISPATCH_STREAM_RESPONSE__RESULT_ERROR)
        fail(l, slot, response->error->code, response->error->message);
    else
        fail(l, slot, -1, "an answer that doesn't decode");
    cairn__v1__dispatch_stream_response__free_unpacked(response, NULL);
}

/* The operation has its end: on to the next. What failed has no latency. */
static void end(struct load *l, struct slot *slot, bool good)
{
    uint64_t now = clock_monotonic_us();

    if (good && now >= l->counted_us && now < l->until_us)
        latencies_add(&l->result->latencies, now - slot->due_us);
    slot->busy = false;
    l->busy_count--;
    if (now < l->until_us && l->settings->rate == 0) {
        begin(l, slot, now);
        return;
    }
    l->free_slots[l->free_count++] = slot->index;
    pthread_cond_signal(&l->changed);
}

static void on_answer(void *user, int code, const char *text, struct bytes message)
{
    struct try *try = user;
    struct slot *slot = try->slot;
    struct load *l = slot->load;

    pthread_mutex_lock(&l->lock);
    l->calls--;
    l->result->bytes += message.len;
    if (slot->busy && slot->number == try->number && slot->tries == try->which && !slot->waits) {
        if (code != 0)
            fail(l, slot, code, text);
        if (!slot->waits)
            end(l, slot, code == 0);
    }
    if (l->calls == 0)
        pthread_cond_signal(&l->changed);
    pthread_mutex_unlock(&l->lock);
    free(try);
}

static bool read_hex(struct bytes text, size_t *at, uint64_t *out)
{
    size_t from = *at;

    for (*out = 0; *at < text.len && text.data[*at] != '.'; ++*at)
        *out = *out << 4 | (uint64_t)(text.data[*at] <= '9' ? text.data[*at] - '0' : text.data[*at] - 'a' + 10);
    ++*at;
    return *at > from + 1;
}

/* Field 1 is the id, "prefix.number.slot"; then field 2 (answer) or 3 (error). */
static void on_message(void *user, struct rpc_stream *stream, struct bytes message)
{
    struct load *l = ((struct lane *)user)->load;
    size_t id_len = message.len > 2 ? message.data[1] : 0;
    struct bytes id = {message.data + 2, id_len};
    uint64_t prefix, number, index;
    size_t at = 0;
    struct slot *slot;

    (void)stream;
    if (id_len + 2 > message.len || !read_hex(id, &at, &prefix) || !read_hex(id, &at, &number) ||
        !read_hex(id, &at, &index) || index >= l->settings->in_flight)
        return;
    pthread_mutex_lock(&l->lock);
    slot = &l->slots[index];
    l->result->bytes += message.len;
    if (slot->busy && slot->number == number && !slot->waits) { /* else: it was asked again, and has its answer */
        bool good = message.len > id_len + 2 && message.data[id_len + 2] == (2 << 3 | 2);

        if (!good)
            fail_by_message(l, slot, message);
        if (!slot->waits)
            end(l, slot, good);
    }
    pthread_mutex_unlock(&l->lock);
}

static void on_lane_closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct lane *lane = user;
    struct load *l = lane->load;

    rpc_stream_drop(stream);
    pthread_mutex_lock(&l->lock);
    lane->stream = NULL;
    lane->reopen_us = clock_monotonic_us() + REOPEN_MS * 1000;
    for (unsigned i = 0; i < l->settings->in_flight; i++) {
        struct slot *slot = &l->slots[i];

        if (!slot->busy || slot->waits || !by_stream(l, slot) || &l->lanes[slot->lane] != lane)
            continue;
        fail(l, slot, code, text);
        if (!slot->waits)
            end(l, slot, false);
    }
    pthread_cond_signal(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

/* ---- from the caller's thread ---- */

static void open_stream(struct lane *lane)
{
    bool echo = lane->load->settings->workload == LOAD_ECHO;

    lane->stream = rpc_stream_open(lane->channel, echo ? "/echo.Echo/Stream" : "/cairn.v1.CommandService/DispatchStream",
                                   &lane_events, lane, 0);
}

/* Lanes that broke, and operations that wait to be asked again or have no answer for too long. */
static void mend(struct load *l)
{
    uint64_t now = clock_monotonic_us();
    uint64_t patience = l->settings->retry_ms * 1000ULL;

    for (size_t i = 0; i < l->settings->endpoint_count; i++)
        if (l->lanes[i].reopen_us != 0 && l->lanes[i].stream == NULL && now >= l->lanes[i].reopen_us) {
            l->lanes[i].reopen_us = 0;
            open_stream(&l->lanes[i]);
        }
    for (unsigned i = 0; patience > 0 && i < l->settings->in_flight; i++) {
        struct slot *slot = &l->slots[i];

        if (!slot->busy || (!slot->waits && now < slot->sent_us + patience))
            continue;
        l->result->retried++;
        slot->lane = (unsigned)((slot->lane + 1) % l->settings->endpoint_count);
        transmit(l, slot);
    }
}

static struct timespec moment_at(uint64_t us)
{
    return (struct timespec){(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
}

/* With the lock held, until the end. */
static void run(struct load *l)
{
    uint64_t next_tick = 0;
    uint64_t due_count = 0;

    for (;;) {
        uint64_t now = clock_monotonic_us();
        uint64_t wake = now + TICK_MS * 1000;
        struct timespec until;

        if (now >= l->until_us && (l->busy_count + l->calls == 0 || now >= l->until_us + CALL_TIMEOUT_MS * 2000ULL))
            return;
        if (now >= next_tick) {
            mend(l);
            next_tick = now + TICK_MS * 1000;
        }
        while (l->settings->rate > 0 && now < l->until_us && l->free_count > 0) {
            uint64_t due = l->began_us + due_count * 1000000 / l->settings->rate;

            if (due > now) {
                wake = due < wake ? due : wake;
                break;
            }
            due_count++;
            begin(l, &l->slots[l->free_slots[--l->free_count]], due);
        }
        until = moment_at(wake);
        (void)pthread_cond_timedwait(&l->changed, &l->lock, &until);
    }
}

/* ---- who owns what ---- */

static enum status find_owners(struct load *l, struct fault *fault)
{
    const struct load_settings *s = l->settings;
    char all[LANES_MAX * 256] = "";
    struct cairn_client *client;
    enum status status = STATUS_OK;
    const struct timespec moment = {0, 10000000};

    if (s->endpoint_count < 2)
        return fault_set(fault, STATUS_INVALID, "ENDPOINTS", "all nodes must be named when commands go to owners, or to others");
    for (size_t i = 0; i < s->endpoint_count; i++)
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i == 0 ? "" : ",", s->endpoints[i]);
    client = cairn_client_new(all, s->tls == NULL ? NULL
                                                  : &(struct cairn_client_tls){.ca = s->tls->roots,
                                                                               .certificate = s->tls->certificate,
                                                                               .key = s->tls->key});
    if (client == NULL)
        return fault_set(fault, STATUS_INVALID, "ENDPOINTS", "%s isn't a list of endpoints", all);
    cairn_client_route(client);
    for (int i = 0; i < 1000 && !cairn_client_is_routing(client); i++)
        nanosleep(&moment, NULL);
    l->owner_lanes = memory_zero(1, s->aggregates);
    for (unsigned a = 0; a < s->aggregates && status == STATUS_OK; a++) {
        char name[NAME_ROOM], owner[256];
        size_t lane = 0;

        name_aggregate(l, a, name, sizeof name);
        if (!cairn_client_owner(client, name, owner, sizeof owner))
            snprintf(owner, sizeof owner, "nobody");
        while (lane < s->endpoint_count && strcmp(s->endpoints[lane], owner) != 0)
            lane++;
        if (lane == s->endpoint_count)
            status = fault_set(fault, STATUS_INVALID, "ENDPOINTS", "%s belongs to %s, which isn't among the endpoints", name,
                               owner);
        else
            l->owner_lanes[a] = (uint8_t)lane;
    }
    cairn_client_free(client);
    return status;
}

static void stop(struct load *l)
{
    for (size_t i = 0; i < l->settings->endpoint_count; i++) {
        pthread_mutex_lock(&l->lock);
        if (l->lanes[i].stream != NULL)
            rpc_stream_cancel(l->lanes[i].stream);
        while (l->lanes[i].stream != NULL)
            pthread_cond_wait(&l->changed, &l->lock);
        pthread_mutex_unlock(&l->lock);
        rpc_channel_free(l->lanes[i].channel);
    }
}

enum status load_run(const struct load_settings *settings, struct load_result *result, struct fault *fault)
{
    struct load *l = memory_zero(1, sizeof *l);
    enum workload workload = settings->workload;
    struct rpc_tls *tls = settings->tls == NULL ? NULL : rpc_tls_new(settings->tls);
    struct rpc_loop *loop = NULL;
    pthread_condattr_t monotonic;
    enum status status = STATUS_OK;

    l->settings = settings;
    l->result = result;
    l->prefix = random_u64();
    memset(buffer_extend(&l->payload, settings->bytes), 'x', settings->bytes);
    zipf_prepare(l);
    pthread_mutex_init(&l->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&l->changed, &monotonic);
    if (settings->route != ROUTE_ANY)
        status = find_owners(l, fault);
    if (status == STATUS_OK && rpc_loop_new(&loop) != STATUS_OK)
        status = fault_set(fault, STATUS_FAILED, "NO_LOOP", "cannot start a thread");
    if (status == STATUS_OK) {
        pthread_mutex_lock(&l->lock);
        for (size_t i = 0; i < settings->endpoint_count; i++) {
            l->lanes[i].load = l;
            l->lanes[i].channel = rpc_channel_new(loop, settings->endpoints[i], MESSAGE_MAX, tls);
            if (workload == LOAD_DISPATCH || workload == LOAD_MIXED || workload == LOAD_ECHO)
                open_stream(&l->lanes[i]);
        }
        l->began_us = clock_monotonic_us();
        l->counted_us = l->began_us + WARM_US;
        l->until_us = l->counted_us + settings->seconds * 1000000ULL;
        for (unsigned i = 0; i < settings->in_flight; i++) {
            l->slots[i].load = l;
            l->slots[i].index = i;
            if (settings->rate == 0)
                begin(l, &l->slots[i], l->began_us);
            else
                l->free_slots[l->free_count++] = i;
        }
        run(l);
        pthread_mutex_unlock(&l->lock);
        stop(l);
        rpc_loop_free(loop);
        result->seconds = settings->seconds;
    }
    rpc_tls_free(tls);
    buffer_release(&l->payload);
    buffer_release(&l->request);
    free(l->owner_lanes);
    free(l);
    return status;
}

/* One gRPC stream for each call, over lib/rpc; the caller's thread waits for what the poller brings. */
#include "client.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/base.h"
#include "cairn/v1/cluster.pb-c.h"
#include "google/rpc/error_details.pb-c.h"
#include "google/rpc/status.pb-c.h"
#include "rpc/rpc.h"

enum { ENDPOINTS_MAX = 32, OWNERS_MAX = 1024, MESSAGE_BYTES_MAX = 16 << 20, PAUSE_MS = 200, TRY_MS = 5000,
       AVOID_MS = 5000, CODE_UNAVAILABLE = 14, CODE_DEADLINE_EXCEEDED = 4 };

struct answer {
    struct answer *next;
    size_t len;
    uint8_t bytes[];
};

/* A node that owns something, or did. */
struct owner {
    char address[256];
    struct rpc_channel *channel;
    uint64_t avoid_until_ms; /* it couldn't be reached */
};

struct cairn_client {
    struct rpc_loop *loop;
    struct rpc_tls *tls; /* NULL for none */
    bool routing;
    struct rpc_stream *watch; /* NULL: none is open */
    struct owner owners[OWNERS_MAX];
    size_t owner_count;
    uint16_t *table; /* by partition: index of its owner, plus one; 0 for none */
    size_t table_count;
    char endpoints[ENDPOINTS_MAX][256];
    struct rpc_channel *channels[ENDPOINTS_MAX];
    size_t count;
    size_t at; /* the endpoint that is asked */
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

/* One try at one endpoint. */
struct call {
    struct cairn_client *client;
    struct answer *first;
    struct answer **last;
    size_t waiting;
    bool closed;
    struct cairn_error error;
};

/* ---- from the poller ---- */

static void on_message(void *user, struct rpc_stream *stream, struct bytes message)
{
    struct call *call = user;
    struct answer *answer = memory_take(sizeof *answer + message.len);

    answer->next = NULL;
    answer->len = message.len;
    memcpy(answer->bytes, message.data, message.len);
    pthread_mutex_lock(&call->client->lock);
    *call->last = answer;
    call->last = &answer->next;
    if (++call->waiting > 8)
        rpc_stream_pause(stream, true); /* the caller takes them at its own pace */
    pthread_cond_signal(&call->client->changed);
    pthread_mutex_unlock(&call->client->lock);
}

static void take_reason(struct cairn_error *error, struct bytes details)
{
    Google__Rpc__Status *status = google__rpc__status__unpack(NULL, details.len, details.data);

    for (size_t i = 0; status != NULL && i < status->n_details; i++) {
        Google__Rpc__ErrorInfo *info;

        if (strstr(status->details[i]->type_url, "google.rpc.ErrorInfo") == NULL)
            continue;
        info = google__rpc__error_info__unpack(NULL, status->details[i]->value.len, status->details[i]->value.data);
        if (info != NULL)
            snprintf(error->reason, sizeof error->reason, "%s", info->reason);
        google__rpc__error_info__free_unpacked(info, NULL);
    }
    google__rpc__status__free_unpacked(status, NULL);
}

static void on_closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct call *call = user;

    pthread_mutex_lock(&call->client->lock);
    call->error.code = code;
    snprintf(call->error.message, sizeof call->error.message, "%s", text);
    if (code != 0)
        take_reason(&call->error, rpc_stream_details(stream));
    call->closed = true;
    pthread_cond_signal(&call->client->changed);
    pthread_mutex_unlock(&call->client->lock);
}

static const struct rpc_stream_events events = {.message = on_message, .closed = on_closed};

/* ---- who owns what; with the lock held ---- */

static uint16_t owner_at(struct cairn_client *client, const char *address)
{
    size_t i = 0;

    while (i < client->owner_count && strcmp(client->owners[i].address, address) != 0)
        i++;
    if (i == client->owner_count) {
        if (client->owner_count == OWNERS_MAX || strlen(address) >= sizeof client->owners[0].address)
            return 0;
        snprintf(client->owners[client->owner_count++].address, sizeof client->owners[0].address, "%s", address);
    }
    return (uint16_t)(i + 1);
}

static void take_topology(struct cairn_client *client, const Cairn__V1__Topology *view)
{
    if (strcmp(view->hash, "XXH3_64bits") != 0)
        return; /* of a later release: any node will do */
    client->table = memory_grow(client->table, (view->n_partitions + 1) * sizeof *client->table);
    client->table_count = view->n_partitions;
    for (size_t p = 0; p < view->n_partitions; p++) {
        client->table[p] = 0;
        for (size_t m = 0; m < view->n_members; m++)
            if (view->members[m]->node_id == view->partitions[p]->owner &&
                view->members[m]->status == CAIRN__V1__MEMBER_STATUS__MEMBER_STATUS_ALIVE)
                client->table[p] = owner_at(client, view->members[m]->address);
    }
}

static void on_topology(void *user, struct rpc_stream *stream, struct bytes message)
{
    struct cairn_client *client = user;
    Cairn__V1__WatchTopologyResponse *response =
        cairn__v1__watch_topology_response__unpack(NULL, message.len, message.data);

    (void)stream;
    pthread_mutex_lock(&client->lock);
    if (response != NULL && response->topology != NULL)
        take_topology(client, response->topology);
    pthread_mutex_unlock(&client->lock);
    cairn__v1__watch_topology_response__free_unpacked(response, NULL);
}

static void on_watch_closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct cairn_client *client = user;

    (void)code;
    (void)text;
    pthread_mutex_lock(&client->lock);
    client->watch = NULL;
    pthread_cond_signal(&client->changed);
    pthread_mutex_unlock(&client->lock);
    rpc_stream_drop(stream);
}

static const struct rpc_stream_events watch_events = {.message = on_topology, .closed = on_watch_closed};

static struct rpc_channel *endpoint_channel(struct cairn_client *client)
{
    if (client->channels[client->at] == NULL)
        client->channels[client->at] =
            rpc_channel_new(client->loop, client->endpoints[client->at], MESSAGE_BYTES_MAX, client->tls);
    return client->channels[client->at];
}

/* Opened anew by the next call when it broke: the table that is there is good enough for a while. */
static void watch(struct cairn_client *client)
{
    if (!client->routing || client->watch != NULL)
        return;
    client->watch = rpc_stream_open(endpoint_channel(client), "/cairn.v1.ClusterService/WatchTopology", &watch_events,
                                    client, 0);
    rpc_stream_send(client->watch, BYTES_NONE);
    rpc_stream_finish(client->watch, 0, NULL, BYTES_NONE);
}

/* NULL: not known, or not to be reached now. */
static struct owner *owner_of(struct cairn_client *client, const char *aggregate_id)
{
    struct owner *owner;
    uint16_t at;

    if (aggregate_id == NULL || client->table_count == 0)
        return NULL;
    at = client->table[hash_bytes(bytes_of(aggregate_id)) % client->table_count];
    if (at == 0)
        return NULL;
    owner = &client->owners[at - 1];
    if (clock_monotonic_ms() < owner->avoid_until_ms)
        return NULL;
    if (owner->channel == NULL)
        owner->channel = rpc_channel_new(client->loop, owner->address, MESSAGE_BYTES_MAX, client->tls);
    return owner;
}

void cairn_client_route(struct cairn_client *client)
{
    pthread_mutex_lock(&client->lock);
    client->routing = true;
    watch(client);
    pthread_mutex_unlock(&client->lock);
}

bool cairn_client_owner(struct cairn_client *client, const char *aggregate_id, char *out, size_t room)
{
    uint16_t at = 0;

    pthread_mutex_lock(&client->lock);
    if (client->table_count > 0)
        at = client->table[hash_bytes(bytes_of(aggregate_id)) % client->table_count];
    if (at > 0)
        snprintf(out, room, "%s", client->owners[at - 1].address);
    pthread_mutex_unlock(&client->lock);
    return at > 0;
}

bool cairn_client_is_routing(struct cairn_client *client)
{
    bool known;

    pthread_mutex_lock(&client->lock);
    known = client->table_count > 0;
    pthread_mutex_unlock(&client->lock);
    return known;
}

/* ---- the caller's thread ---- */

static struct answer *next_answer(struct call *call, struct rpc_stream *stream)
{
    struct answer *answer;

    pthread_mutex_lock(&call->client->lock);
    while (call->first == NULL && !call->closed)
        pthread_cond_wait(&call->client->changed, &call->client->lock);
    answer = call->first;
    if (answer != NULL) {
        call->first = answer->next;
        if (call->first == NULL)
            call->last = &call->first;
        if (--call->waiting == 4)
            rpc_stream_pause(stream, false);
    }
    pthread_mutex_unlock(&call->client->lock);
    return answer;
}

static void wait_closed(struct call *call)
{
    pthread_mutex_lock(&call->client->lock);
    while (!call->closed)
        pthread_cond_wait(&call->client->changed, &call->client->lock);
    pthread_mutex_unlock(&call->client->lock);
    while (call->first != NULL) {
        struct answer *next = call->first->next;

        free(call->first);
        call->first = next;
    }
}

/* True when messages came. */
static bool try_once(struct cairn_client *client, struct rpc_channel *channel, const char *method,
                     struct bytes request, uint32_t timeout_ms, cairn_client_message *message, void *user,
                     struct cairn_error *error)
{
    struct call call = {.client = client};
    struct rpc_stream *stream;
    struct answer *answer;
    bool any = false;
    bool enough = false;

    call.last = &call.first;
    stream = rpc_stream_open(channel, method, &events, &call, timeout_ms);
    rpc_stream_send(stream, request);
    rpc_stream_finish(stream, 0, NULL, BYTES_NONE);
    while (!enough && (answer = next_answer(&call, stream)) != NULL) {
        any = true;
        enough = message != NULL && !message(user, answer->bytes, answer->len);
        free(answer);
    }
    if (enough)
        rpc_stream_cancel(stream);
    wait_closed(&call);
    rpc_stream_drop(stream);
    *error = enough ? (struct cairn_error){0} : call.error;
    return any;
}

int cairn_client_call(struct cairn_client *client, const char *aggregate_id, const char *method,
                      const uint8_t *packed, size_t len, uint32_t timeout_ms, cairn_client_message *message,
                      void *user, struct cairn_error *error)
{
    uint64_t until = timeout_ms == 0 ? UINT64_MAX : clock_monotonic_ms() + timeout_ms;
    struct timespec pause = {0, PAUSE_MS * 1000000};
    size_t tries = 0;

    for (;;) {
        uint64_t now = clock_monotonic_ms();
        uint64_t left = until == UINT64_MAX ? 0 : until > now ? until - now : 1;
        /* One that is silent isn't waited for to the end while there are others. */
        bool last = client->count == 1 || left == 0;
        uint32_t limit = last || left < TRY_MS ? (uint32_t)left : TRY_MS;
        struct rpc_channel *channel;
        struct owner *owner;
        bool any, again;

        pthread_mutex_lock(&client->lock);
        watch(client);
        owner = owner_of(client, aggregate_id);
        channel = owner != NULL ? owner->channel : endpoint_channel(client);
        pthread_mutex_unlock(&client->lock);
        any = try_once(client, channel, method, (struct bytes){packed, len}, limit, message, user, error);
        again = error->code == CODE_UNAVAILABLE || (error->code == CODE_DEADLINE_EXCEEDED && !last);
        now = clock_monotonic_ms();
        if (owner != NULL && again && !any && now + PAUSE_MS < until) { /* any other passes it on */
            owner->avoid_until_ms = now + AVOID_MS;
            continue;
        }
        if (!again || any || now + PAUSE_MS >= until || (until == UINT64_MAX && tries >= client->count))
            return error->code;
        client->at = (client->at + 1) % client->count;
        if (++tries % client->count == 0)
            nanosleep(&pause, NULL);
    }
}

const char *cairn_client_endpoint(const struct cairn_client *client)
{
    return client->endpoints[client->at];
}

struct cairn_client *cairn_client_new(const char *endpoints, const struct cairn_client_tls *tls)
{
    struct cairn_client *client = memory_zero(1, sizeof *client);

    while (*endpoints != '\0') {
        size_t len = strcspn(endpoints, ",");

        if (len >= sizeof client->endpoints[0] || memchr(endpoints, ':', len) == NULL ||
            client->count == ENDPOINTS_MAX) {
            free(client);
            return NULL;
        }
        memcpy(client->endpoints[client->count++], endpoints, len);
        endpoints += len + (endpoints[len] == ',');
    }
    rpc_begin();
    if (client->count == 0 || rpc_loop_new(&client->loop) != STATUS_OK) {
        rpc_end();
        free(client);
        return NULL;
    }
    if (tls != NULL)
        client->tls = rpc_tls_new(&(struct rpc_tls_settings){
            .certificate = tls->certificate, .key = tls->key, .roots = tls->ca, .token = tls->token});
    pthread_mutex_init(&client->lock, NULL);
    pthread_cond_init(&client->changed, NULL);
    return client;
}

void cairn_client_free(struct cairn_client *client)
{
    if (client == NULL)
        return;
    pthread_mutex_lock(&client->lock);
    client->routing = false;
    if (client->watch != NULL)
        rpc_stream_cancel(client->watch);
    while (client->watch != NULL)
        pthread_cond_wait(&client->changed, &client->lock);
    pthread_mutex_unlock(&client->lock);
    for (size_t i = 0; i < client->count; i++)
        rpc_channel_free(client->channels[i]);
    for (size_t i = 0; i < client->owner_count; i++)
        rpc_channel_free(client->owners[i].channel);
    free(client->table);
    rpc_loop_free(client->loop);
    rpc_tls_free(client->tls);
    rpc_end();
    pthread_mutex_destroy(&client->lock);
    pthread_cond_destroy(&client->changed);
    free(client);
}

/* ClusterService: the topology, once or on every change. */
#include "faults.h"
#include "node.h"

void get_topology_call(void *context, struct rpc_call *call, struct bytes request)
{
    struct node *node = context;
    struct buffer out = {0};

    (void)request;
    control_topology(node->control, &out);
    rpc_call_reply(call, buffer_bytes(&out));
    buffer_release(&out);
}

/* Watchers are looked at by one thread of their own: they are few and changes are rare. */
enum { LOOK_MS = 100 };

struct watcher {
    struct watcher *next;
    struct node *node;
    struct rpc_stream *stream;
    enum { WATCH_TOPOLOGY, WATCH_HEALTH } kind;
    bool asked;
    uint64_t version; /* last told, plus one */
};

static struct {
    pthread_mutex_t lock;
    struct watcher *first;
    pthread_t thread;
    bool running;
    bool stopping;
    pthread_cond_t changed;
} watch = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void tell(struct watcher *w)
{
    struct buffer out = {0};
    uint64_t version = w->kind == WATCH_HEALTH ? (uint64_t)node_is_serving(w->node)
                                               : control_topology_version(w->node->control);

    if (!w->asked || w->version == version + 1 || rpc_stream_pending(w->stream) > 2)
        return;
    w->version = version + 1;
    if (w->kind == WATCH_HEALTH)
        wire_health_pack(&out, version != 0 ? 1 : 2);
    else
        control_topology(w->node->control, &out);
    rpc_stream_send(w->stream, buffer_bytes(&out));
    buffer_release(&out);
}

static void *look(void *context)
{
    (void)context;
    pthread_mutex_lock(&watch.lock);
    while (!watch.stopping) {
        struct timespec until;

        for (struct watcher *w = watch.first; w != NULL; w = w->next)
            tell(w);
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += LOOK_MS * 1000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        if (watch.first == NULL)
            pthread_cond_wait(&watch.changed, &watch.lock);
        else
            pthread_cond_clockwait(&watch.changed, &watch.lock, CLOCK_MONOTONIC, &until);
    }
    pthread_mutex_unlock(&watch.lock);
    return NULL;
}

void watchers_start(void)
{
    watch.running = pthread_create(&watch.thread, NULL, look, NULL) == 0;
}

void watchers_stop(void)
{
    pthread_mutex_lock(&watch.lock);
    watch.stopping = true;
    for (struct watcher *w = watch.first; w != NULL; w = w->next)
        rpc_stream_finish(w->stream, CODE_UNAVAILABLE, "this node stops", BYTES_NONE);
    pthread_cond_broadcast(&watch.changed);
    pthread_mutex_unlock(&watch.lock);
    if (watch.running)
        pthread_join(watch.thread, NULL);
}

static void add_watcher(void *context, struct rpc_stream *stream, int kind)
{
    struct watcher *w = memory_zero(1, sizeof *w);

    w->node = context;
    w->stream = rpc_stream_hold(stream);
    w->kind = kind == WATCH_HEALTH ? WATCH_HEALTH : WATCH_TOPOLOGY;
    rpc_stream_set_user(stream, w);
    pthread_mutex_lock(&watch.lock);
    w->next = watch.first;
    watch.first = w;
    pthread_mutex_unlock(&watch.lock);
}

static void topology_opened(void *context, struct rpc_stream *stream)
{
    add_watcher(context, stream, WATCH_TOPOLOGY);
}

static void health_opened(void *context, struct rpc_stream *stream)
{
    add_watcher(context, stream, WATCH_HEALTH);
}

static void asked(void *user, struct rpc_stream *stream, struct bytes packed)
{
    struct watcher *w = user;

    (void)stream;
    (void)packed;
    pthread_mutex_lock(&watch.lock);
    w->asked = true;
    pthread_cond_broadcast(&watch.changed);
    pthread_mutex_unlock(&watch.lock);
}

static void closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct watcher *w = user;
    struct watcher **at;

    (void)code;
    (void)text;
    pthread_mutex_lock(&watch.lock);
    for (at = &watch.first; *at != w; at = &(*at)->next)
        continue;
    *at = w->next;
    pthread_mutex_unlock(&watch.lock);
    rpc_stream_drop(stream);
    free(w);
}

const struct rpc_stream_events watch_topology_events = {
    .opened = topology_opened, .message = asked, .closed = closed};
const struct rpc_stream_events health_watch_events = {
    .opened = health_opened, .message = asked, .closed = closed};

/*
 * Workers: streams of HandleCommands, what each can decide, and the executions open at them. One
 * table for the whole node under a lock; nothing waits while it is held.
 *
 * A worker's id is its session's number; a node's id (always with the top bit set) stands for
 * "some worker at that node". A registration lives as long as its stream speaks.
 */
#include "access.h"
#include "faults.h"
#include "node.h"

enum {
    HEARTBEAT_MS = 5000,
    SILENCE_MS = 15000,
    PERMITS_DEFAULT = 64,
    PERMITS_MAX = 65536,
    EXPECT_BACK_MS = 60000, /* a type that was here is waited for this long */
    COMMAND_TYPES_MAX = 256,
};

struct session {
    struct session *next;
    struct workers *workers;
    struct rpc_stream *stream;
    uint64_t id;
    bool registered;
    char name[NAME_BYTES_MAX + 1];
    char type[TYPE_BYTES_MAX + 1];
    char (*commands)[TYPE_BYTES_MAX + 1];
    size_t command_count;
    uint32_t permits;
    uint32_t open;
    uint64_t last_heard;
};

/* An execution at one of our workers, or at a peer's. */
struct open_execution {
    UT_hash_handle hh;
    uint64_t id;     /* as the worker or peer sees it */
    uint64_t worker; /* session or node */
    struct shard *shard; /* whose it is; NULL when it is for a peer */
    uint32_t partition;
    uint64_t execution_id; /* of the aggregates */
    uint64_t peer;
    uint64_t peer_request;
};

struct known_type {
    struct known_type *next;
    uint64_t until_ms;
    char type[TYPE_BYTES_MAX + 1];
};

struct workers {
    struct node *node;
    pthread_mutex_t lock;
    struct session *sessions;
    struct open_execution *open;
    struct known_type *known;
    uint64_t next_session;
    uint64_t next_execution;
    bool starved; /* somebody waits for a worker */
};

static bool is_node(uint64_t worker)
{
    return worker >> 63 != 0;
}

/* ---- with the lock held ---- */

static struct session *find_session(struct workers *workers, uint64_t id)
{
    struct session *s = workers->sessions;

    while (s != NULL && s->id != id)
        s = s->next;
    return s;
}

static bool decides(const struct session *s, struct bytes command)
{
    if (s->command_count == 0)
        return true;
    for (size_t i = 0; i < s->command_count; i++)
        if (bytes_equal(bytes_of(s->commands[i]), command))
            return true;
    return false;
}

static void remember_type(struct workers *workers, const char *type)
{
    struct known_type *known = workers->known;

    while (known != NULL && strcmp(known->type, type) != 0)
        known = known->next;
    if (known == NULL) {
        known = memory_zero(1, sizeof *known);
        snprintf(known->type, sizeof known->type, "%s", type);
        known->next = workers->known;
        workers->known = known;
    }
    known->until_ms = clock_monotonic_ms() + EXPECT_BACK_MS;
}

static bool expected_back(const struct workers *workers, struct bytes type)
{
    for (const struct known_type *known = workers->known; known != NULL; known = known->next)
        if (bytes_equal(bytes_of(known->type), type) && known->until_ms > clock_monotonic_ms())
            return true;
    return false;
}

static struct open_execution *open_execution(struct workers *workers, uint64_t worker)
{
    struct open_execution *open = memory_zero(1, sizeof *open);

    open->id = ++workers->next_execution;
    open->worker = worker;
    HASH_ADD(hh, workers->open, id, sizeof open->id, open);
    return open;
}

/* Take an execution back from the worker that has it. NULL when it isn't its. */
static struct open_execution *close_execution(struct workers *workers, uint64_t id,
                                              uint64_t worker)
{
    struct open_execution *open = NULL;
    struct session *session;

    HASH_FIND(hh, workers->open, &id, sizeof id, open);
    if (open == NULL || open->worker != worker)
        return NULL;
    HASH_DEL(workers->open, open);
    session = find_session(workers, worker);
    if (session != NULL)
        session->open--;
    return open;
}

/* ---- telling others ---- */

static void tell_shards(struct node *node)
{
    for (size_t i = 0; i < node->shard_count; i++) {
        struct letter *letter = memory_zero(1, sizeof *letter);

        letter->kind = LETTER_WORKERS_CHANGED;
        shard_send(node->shards[i], letter);
    }
}

static void send_part(struct node *node, uint64_t to, struct buffer *part)
{
    struct send_letter *letter = memory_zero(1, sizeof *letter);

    letter->letter.kind = LETTER_SEND;
    letter->to = to;
    letter->part = *part;
    shard_send(node->shards[0], &letter->letter);
}

/* The end of an execution: a packed result, or none when the worker is gone. Frees it. */
static void deliver(struct workers *workers, struct open_execution *open, struct bytes packed)
{
    struct node *node = workers->node;

    if (open->shard == NULL) {
        struct remote_execute result = {.request_id = open->peer_request, .body = packed};
        struct buffer part = {0};

        frame_add_execute_result(&part, &result);
        send_part(node, open->peer, &part);
    } else {
        struct executed_letter *letter = memory_zero(1, sizeof *letter);
        struct fault fault;

        letter->letter.kind = LETTER_EXECUTED;
        letter->partition = open->partition;
        letter->execution_id = open->execution_id;
        letter->worker = open->worker;
        letter->died = packed.len == 0;
        if (!letter->died &&
            wire_result_decode(arena_copy(&letter->arena, packed), &letter->arena,
                               &letter->result, &fault) != STATUS_OK) {
            letter->result = (struct execution_result){0};
            letter->result.failure = BYTES_LITERAL("its answer was malformed");
        }
        shard_send(open->shard, &letter->letter);
    }
    free(open);
}

/* Everything open at this worker comes back without a result. */
static void fail_all(struct workers *workers, uint64_t worker)
{
    struct open_execution *open;
    struct open_execution *next;
    struct open_execution *failed = NULL;

    pthread_mutex_lock(&workers->lock);
    HASH_ITER(hh, workers->open, open, next)
    {
        if (open->worker == worker) {
            HASH_DEL(workers->open, open);
            open->hh.next = failed;
            failed = open;
        }
    }
    pthread_mutex_unlock(&workers->lock);
    while (failed != NULL) {
        struct open_execution *after = failed->hh.next;

        deliver(workers, failed, BYTES_NONE);
        failed = after;
    }
}

static void wake_starved(struct workers *workers, bool always)
{
    bool starved;

    pthread_mutex_lock(&workers->lock);
    starved = workers->starved;
    workers->starved = false;
    pthread_mutex_unlock(&workers->lock);
    if (starved || always)
        tell_shards(workers->node);
}

/* ---- choosing and sending ---- */

/* With the lock held: the least busy session that decides the command, `hint` first. */
static struct session *choose(struct workers *workers, struct bytes type, struct bytes command,
                              uint64_t hint, bool *any)
{
    struct session *best = NULL;

    *any = false;
    for (struct session *s = workers->sessions; s != NULL; s = s->next) {
        if (!s->registered || !bytes_equal(bytes_of(s->type), type) || !decides(s, command))
            continue;
        *any = true;
        if (s->open >= s->permits)
            continue;
        if (s->id == hint)
            return s;
        if (best == NULL || s->open < best->open)
            best = s;
    }
    return best;
}

enum status workers_pick(struct workers *workers, const struct command *command, uint64_t hint,
                         uint64_t *worker, struct fault *fault)
{
    struct session *session;
    bool any;
    bool wait;

    pthread_mutex_lock(&workers->lock);
    session = choose(workers, command->aggregate_type, command->type, hint, &any);
    if (session != NULL)
        *worker = session->id;
    wait = any || expected_back(workers, command->aggregate_type);
    pthread_mutex_unlock(&workers->lock);
    if (session != NULL)
        return STATUS_OK;
    if (!any) {
        *worker = control_member_with_handler(workers->node->control, command->aggregate_type, hint);
        if (*worker != 0)
            return STATUS_OK;
    }
    if (wait) {
        pthread_mutex_lock(&workers->lock);
        workers->starved = true;
        pthread_mutex_unlock(&workers->lock);
        return STATUS_UNAVAILABLE;
    }
    return fault_set(fault, STATUS_NO_HANDLER, "NO_HANDLER",
                     "no module or worker decides command %.*s of aggregate type %.*s; load a "
                     "module or connect a worker",
                     (int)command->type.len, (const char *)command->type.data,
                     (int)command->aggregate_type.len,
                     (const char *)command->aggregate_type.data);
}

void workers_execute(struct workers *workers, struct shard *shard, uint32_t partition,
                     uint64_t worker, uint64_t execution_id, struct bytes packed,
                     uint64_t deadline_ms)
{
    struct open_execution *open;
    struct rpc_stream *stream = NULL;
    struct session *session;
    uint64_t now = clock_monotonic_ms();
    uint64_t id;

    pthread_mutex_lock(&workers->lock);
    session = find_session(workers, worker);
    open = open_execution(workers, worker);
    id = open->id;
    open->shard = shard;
    open->partition = partition;
    open->execution_id = execution_id;
    if (session != NULL) {
        session->open++;
        stream = rpc_stream_hold(session->stream);
    } else if (!is_node(worker)) {
        HASH_DEL(workers->open, open);
    }
    pthread_mutex_unlock(&workers->lock);
    if (stream != NULL) {
        struct buffer message = {0};

        wire_execute_response(&message, packed, id);
        rpc_stream_send(stream, buffer_bytes(&message));
        rpc_stream_drop(stream);
        buffer_release(&message);
    } else if (is_node(worker)) {
        struct remote_execute out = {.request_id = id, .body = packed};
        struct buffer part = {0};

        out.timeout_ms = deadline_ms > now ? (uint32_t)(deadline_ms - now) : 1;
        frame_add_execute(&part, &out);
        send_part(workers->node, worker, &part);
    } else {
        deliver(workers, open, BYTES_NONE); /* it died in between */
    }
}

void workers_execute_for(struct workers *workers, uint64_t peer, const struct remote_execute *in)
{
    struct arena arena = {0};
    struct bytes type, id, command;
    uint64_t ignored, sequence;
    struct fault fault;
    struct session *session = NULL;
    struct rpc_stream *stream = NULL;
    uint64_t execution = 0;
    bool any;

    if (wire_execute_peek(in->body, &arena, &ignored, &type, &id, &command, &sequence, &fault) ==
        STATUS_OK) {
        pthread_mutex_lock(&workers->lock);
        session = choose(workers, type, command, 0, &any);
        if (session != NULL) {
            struct open_execution *open = open_execution(workers, session->id);

            open->peer = peer;
            open->peer_request = in->request_id;
            execution = open->id;
            session->open++;
            stream = rpc_stream_hold(session->stream);
        }
        pthread_mutex_unlock(&workers->lock);
    }
    if (stream != NULL) {
        struct buffer message = {0};

        wire_execute_response(&message, in->body, execution);
        rpc_stream_send(stream, buffer_bytes(&message));
        rpc_stream_drop(stream);
        buffer_release(&message);
    } else {
        struct remote_execute none = {.request_id = in->request_id};
        struct buffer part = {0};

        frame_add_execute_result(&part, &none);
        send_part(workers->node, peer, &part);
    }
    arena_release(&arena);
}

void workers_result_from(struct workers *workers, uint64_t peer,
                         const struct remote_execute *result)
{
    struct open_execution *open = NULL;

    pthread_mutex_lock(&workers->lock);
    HASH_FIND(hh, workers->open, &result->request_id, sizeof result->request_id, open);
    if (open != NULL && open->worker == peer)
        HASH_DEL(workers->open, open);
    else
        open = NULL;
    pthread_mutex_unlock(&workers->lock);
    if (open != NULL)
        deliver(workers, open, result->body);
}

void workers_peer_gone(struct workers *workers, uint64_t peer)
{
    fail_all(workers, peer);
}

/* ---- the streams ---- */

static void opened(void *context, struct rpc_stream *stream)
{
    struct node *node = context;
    struct workers *workers = node->workers;
    struct session *s = memory_zero(1, sizeof *s);

    s->workers = workers;
    s->stream = rpc_stream_hold(stream);
    s->last_heard = clock_monotonic_ms();
    rpc_stream_set_user(stream, s);
    pthread_mutex_lock(&workers->lock);
    s->id = ++workers->next_session;
    s->next = workers->sessions;
    workers->sessions = s;
    pthread_mutex_unlock(&workers->lock);
}

static enum status register_worker(struct session *s, const struct worker_message *m,
                                   struct fault *fault)
{
    struct workers *workers = s->workers;

    if (s->registered)
        return fault_set(fault, STATUS_INVALID, "REGISTERED_TWICE",
                         "this stream has registered already; open another one");
    if (m->registration.aggregate_type.len == 0 ||
        m->registration.aggregate_type.len > TYPE_BYTES_MAX ||
        m->registration.name.len > NAME_BYTES_MAX ||
        m->registration.command_type_count > COMMAND_TYPES_MAX ||
        m->registration.permits > PERMITS_MAX)
        return fault_set(fault, STATUS_INVALID, "REGISTRATION_INVALID",
                         "a worker names its aggregate type (1 to %d bytes), at most %d command "
                         "types and at most %d permits",
                         TYPE_BYTES_MAX, COMMAND_TYPES_MAX, PERMITS_MAX);
    for (size_t i = 0; i < m->registration.command_type_count; i++)
        if (m->registration.command_types[i].len > TYPE_BYTES_MAX)
            return fault_set(fault, STATUS_INVALID, "REGISTRATION_INVALID",
                             "a command type is longer than %d bytes", TYPE_BYTES_MAX);
    if (access_work(workers->node, rpc_stream_caller(s->stream), m->registration.aggregate_type, fault) != STATUS_OK)
        return fault->status;
    if (modules_type(workers->node->modules, m->registration.aggregate_type) != NULL)
        return fault_set(fault, STATUS_PRECONDITION, "TYPE_HAS_MODULE",
                         "aggregate type %.*s is decided by a module of this node",
                         (int)m->registration.aggregate_type.len,
                         (const char *)m->registration.aggregate_type.data);
    pthread_mutex_lock(&workers->lock);
    snprintf(s->name, sizeof s->name, "%.*s", (int)m->registration.name.len,
             (const char *)m->registration.name.data);
    snprintf(s->type, sizeof s->type, "%.*s", (int)m->registration.aggregate_type.len,
             (const char *)m->registration.aggregate_type.data);
    s->command_count = m->registration.command_type_count;
    s->commands = memory_zero(s->command_count, sizeof *s->commands);
    for (size_t i = 0; i < s->command_count; i++)
        snprintf(s->commands[i], sizeof s->commands[i], "%.*s",
                 (int)m->registration.command_types[i].len,
                 (const char *)m->registration.command_types[i].data);
    s->permits = m->registration.permits == 0 ? PERMITS_DEFAULT : m->registration.permits;
    s->registered = true;
    remember_type(workers, s->type);
    pthread_mutex_unlock(&workers->lock);
    return STATUS_OK;
}

static void on_result(struct session *s, const struct worker_message *m)
{
    struct open_execution *open;

    pthread_mutex_lock(&s->workers->lock);
    open = close_execution(s->workers, m->result.execution_id, s->id);
    pthread_mutex_unlock(&s->workers->lock);
    if (open == NULL)
        return; /* answered twice, or given up */
    deliver(s->workers, open, m->packed_result);
    wake_starved(s->workers, false);
}

static void message(void *user, struct rpc_stream *stream, struct bytes packed)
{
    struct session *s = user;
    struct workers *workers = s->workers;
    struct arena arena = {0};
    struct worker_message m;
    struct fault fault;
    struct buffer out = {0};
    enum status status = wire_worker_decode(packed, &arena, &m, &fault);

    pthread_mutex_lock(&workers->lock);
    s->last_heard = clock_monotonic_ms();
    pthread_mutex_unlock(&workers->lock);
    if (status == STATUS_OK && m.kind == WORKER_REGISTER)
        status = register_worker(s, &m, &fault);
    else if (status == STATUS_OK && !s->registered)
        status = fault_set(&fault, STATUS_PRECONDITION, "NOT_REGISTERED",
                           "a worker's first message must be register");
    if (status != STATUS_OK) {
        fault_finish_stream(stream, &fault);
    } else if (m.kind == WORKER_REGISTER) {
        journal(JOURNAL_INFO, "worker-joined", "%s for %s, %u permits", s->name, s->type,
                s->permits);
        wire_worker_registered(&out, workers->node->config.name, HEARTBEAT_MS);
        rpc_stream_send(stream, buffer_bytes(&out));
        control_handlers_changed(workers->node->control);
        wake_starved(workers, true);
    } else if (m.kind == WORKER_RESULT) {
        on_result(s, &m);
    } else if (m.kind == WORKER_HEARTBEAT) {
        wire_worker_heartbeat(&out);
        rpc_stream_send(stream, buffer_bytes(&out));
    }
    buffer_release(&out);
    arena_release(&arena);
}

static void finished(void *user, struct rpc_stream *stream)
{
    (void)user;
    rpc_stream_finish(stream, CODE_OK, "", BYTES_NONE);
}

static void closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    struct session *s = user;
    struct workers *workers = s->workers;
    struct session **at;

    (void)code;
    (void)text;
    pthread_mutex_lock(&workers->lock);
    for (at = &workers->sessions; *at != s; at = &(*at)->next)
        continue;
    *at = s->next;
    if (s->registered)
        remember_type(workers, s->type);
    pthread_mutex_unlock(&workers->lock);
    if (s->registered) {
        journal(JOURNAL_INFO, "worker-left", "%s for %s", s->name, s->type);
        fail_all(workers, s->id);
        control_handlers_changed(workers->node->control);
    }
    rpc_stream_drop(stream);
    free(s->commands);
    free(s);
}

const struct rpc_stream_events handle_commands_events = {
    .opened = opened, .message = message, .finished = finished, .closed = closed};

/* ---- the rest ---- */

void workers_tick(struct workers *workers, uint64_t now_ms)
{
    pthread_mutex_lock(&workers->lock);
    for (struct session *s = workers->sessions; s != NULL; s = s->next)
        if (now_ms > s->last_heard + SILENCE_MS)
            rpc_stream_cancel(s->stream);
    pthread_mutex_unlock(&workers->lock);
}

size_t workers_types(struct workers *workers, char out[][TYPE_BYTES_MAX + 1], size_t room)
{
    size_t n = 0;

    pthread_mutex_lock(&workers->lock);
    for (struct session *s = workers->sessions; s != NULL && n < room; s = s->next) {
        bool known = !s->registered;

        for (size_t i = 0; i < n; i++)
            known = known || strcmp(out[i], s->type) == 0;
        if (!known)
            snprintf(out[n++], TYPE_BYTES_MAX + 1, "%s", s->type);
    }
    pthread_mutex_unlock(&workers->lock);
    return n;
}

size_t workers_count(struct workers *workers)
{
    size_t n = 0;

    pthread_mutex_lock(&workers->lock);
    for (struct session *s = workers->sessions; s != NULL; s = s->next)
        n += s->registered;
    pthread_mutex_unlock(&workers->lock);
    return n;
}

struct workers *workers_new(struct node *node)
{
    struct workers *workers = memory_zero(1, sizeof *workers);

    workers->node = node;
    /* Of this life alone: a peer's worker may still answer what the life before asked. */
    workers->next_execution = random_u64() >> 8;
    pthread_mutex_init(&workers->lock, NULL);
    return workers;
}

void workers_free(struct workers *workers)
{
    struct open_execution *open;
    struct open_execution *next;

    if (workers == NULL)
        return;
    HASH_ITER(hh, workers->open, open, next)
    {
        HASH_DEL(workers->open, open);
        free(open);
    }
    while (workers->known != NULL) {
        struct known_type *after = workers->known->next;

        free(workers->known);
        workers->known = after;
    }
    pthread_mutex_destroy(&workers->lock);
    free(workers);
}

/*
 * Subjects that can be forgotten, on a node: its master keys, what readers see of sealed payloads, and the order to
 * forget. The master keys' file is followed; one that is no good is told loudly, and the keys before stay.
 *
 *   ForgetSubject ─▶ a command to each partition's owner ─▶ all have committed it ─▶ answered
 *
 * A vault that was replaced lives until the node ends: threads read it without a lock.
 */
#include "access.h"
#include "audit.h"
#include "faults.h"
#include "subject/subject.h"

enum { FORGET_TIMEOUT_MS = 30000 };

struct held_vault {
    struct held_vault *older;
    struct vault vault;
};

struct subjects {
    struct node *node;
    struct held_vault *_Atomic newest; /* NULL without master keys */
    uint64_t mark;
    /* A token may take its time: the file is read anew by a thread of its own, one at a time. */
    pthread_t reader;
    bool reading;
    atomic_bool read;
    enum status status; /* of what was read */
    struct fault fault;
};

/* ---- the cipher ---- */

static void cipher_random(void *context, uint8_t *out, size_t len)
{
    (void)context;
    secret_random(out, len);
}

static void cipher_seal(void *context, const uint8_t key[CIPHER_KEY_BYTES], struct bytes bound_to, struct bytes plain,
                        struct buffer *out)
{
    (void)context;
    secret_seal(key, bound_to, plain, out);
}

static bool cipher_open(void *context, const uint8_t key[CIPHER_KEY_BYTES], struct bytes bound_to,
                        struct bytes sealed, struct buffer *out)
{
    (void)context;
    return secret_open(key, bound_to, sealed, out);
}

/* ---- master keys ---- */

static bool add_master(void *context, const char *id, const uint8_t key[SECRET_BYTES])
{
    struct vault *vault = context;
    struct master_key *master = &vault->masters[vault->master_count];

    _Static_assert((int)SECRET_BYTES == (int)CIPHER_KEY_BYTES, "one kind of key");
    for (size_t i = 0; i < vault->master_count; i++)
        if (strcmp(vault->masters[i].id, id) == 0)
            return false;
    if (vault->master_count == MASTER_KEYS_MAX)
        return false;
    snprintf(master->id, sizeof master->id, "%s", id);
    memcpy(master->key, key, sizeof master->key);
    vault->master_count++;
    return true;
}

static void free_vault(struct held_vault *held)
{
    explicit_bzero(held, sizeof *held);
    free(held);
}

static enum status load(struct subjects *subjects, struct fault *fault)
{
    const char *path = subjects->node->config.master_key;
    struct held_vault *held = memory_zero(1, sizeof *held);
    enum status status;

    held->vault.cipher = (struct cipher){NULL, cipher_random, cipher_seal, cipher_open};
    subjects->mark = file_mark(path);
    status = master_keys_read(path, &held->vault, add_master, fault);
    if (status != STATUS_OK) {
        free_vault(held);
        return status;
    }
    held->older = atomic_load(&subjects->newest);
    atomic_store(&subjects->newest, held);
    return STATUS_OK;
}

enum status subjects_new(struct node *node, struct fault *fault)
{
    struct subjects *subjects = memory_zero(1, sizeof *subjects);

    atomic_init(&subjects->read, false);
    subjects->node = node;
    node->subjects = subjects;
    return node->config.master_key[0] == '\0' ? STATUS_OK : load(subjects, fault);
}

void subjects_free(struct node *node)
{
    struct held_vault *held;

    if (node->subjects == NULL)
        return;
    if (node->subjects->reading)
        pthread_join(node->subjects->reader, NULL);
    held = atomic_load(&node->subjects->newest);
    while (held != NULL) {
        struct held_vault *older = held->older;

        free_vault(held);
        held = older;
    }
    free(node->subjects);
    node->subjects = NULL;
}

const struct vault *subjects_vault(const struct node *node)
{
    const struct held_vault *held = atomic_load(&node->subjects->newest);

    return held == NULL ? NULL : &held->vault;
}

static void *read_again(void *context)
{
    struct subjects *subjects = context;

    subjects->status = load(subjects, &subjects->fault);
    atomic_store(&subjects->read, true);
    return NULL;
}

void subjects_tick(struct node *node)
{
    struct subjects *subjects = node->subjects;

    if (!subjects->reading) {
        if (node->config.master_key[0] != '\0' && file_mark(node->config.master_key) != subjects->mark)
            subjects->reading = pthread_create(&subjects->reader, NULL, read_again, subjects) == 0;
        return;
    }
    if (!atomic_load(&subjects->read))
        return;
    pthread_join(subjects->reader, NULL);
    subjects->reading = false;
    atomic_store(&subjects->read, false);
    if (subjects->status != STATUS_OK) {
        journal(JOURNAL_ERROR, "security-file-refused", "%s; the master keys that were good before stay in force",
                subjects->fault.message);
        return;
    }
    journal(JOURNAL_INFO, "master-keys-taken", "%zu keys, new ones are wrapped by %s",
            subjects_vault(node)->master_count, subjects_vault(node)->masters[0].id);
    for (size_t i = 0; i < node->shard_count; i++) {
        struct letter *letter = memory_zero(1, sizeof *letter);

        letter->kind = LETTER_VAULT;
        shard_send(node->shards[i], letter);
    }
}

/* ---- what readers see ---- */

enum status subjects_reveal(struct node *node, struct buffer *message, struct fault *fault)
{
    struct subscribe_response response;
    struct arena arena = {0};
    struct buffer out = {0};
    enum status status;

    if (!wire_has_sealed(buffer_bytes(message)))
        return STATUS_OK;
    status = wire_subscribe_response_decode(buffer_bytes(message), &arena, &response, fault);
    for (size_t i = 0; i < response.event_count && status == STATUS_OK; i++) {
        struct bytes event;

        status = event_reveal(subjects_vault(node), node->store, response.packed_events[i], &arena, &event, fault);
        if (status == STATUS_OK)
            wire_subscribe_response_add(&out, event);
    }
    if (status == STATUS_OK) {
        if (response.token.len > 0)
            wire_subscribe_response_token(&out, response.token);
        buffer_release(message);
        *message = out;
    } else {
        buffer_release(&out);
    }
    arena_release(&arena);
    return status;
}

/* ---- forgetting ---- */

/* Waits for all partitions. */
struct forgetting {
    struct node *node;
    struct rpc_call *call;
    void *caller; /* held by the call */
    struct bytes subject;
    size_t partitions;
    atomic_size_t left;
    pthread_mutex_t lock;
    struct fault fault; /* the first one */
    struct arena arena;
};

static void end(struct forgetting *f)
{
    const struct fault *fault = f->fault.status == STATUS_OK ? NULL : &f->fault;
    struct buffer out = {0};

    audit_fault(f->node,
                (struct audit_entry){.who = principal_identity(f->caller), .what = "ForgetSubject", .target = f->subject},
                fault);
    if (fault != NULL) {
        fault_fail_call(f->call, fault);
    } else {
        wire_forget_response(&out, f->partitions);
        rpc_call_reply(f->call, buffer_bytes(&out));
    }
    buffer_release(&out);
    arena_release(&f->arena);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

static void one_is_done(struct forgetting *f, const struct fault *fault)
{
    if (fault != NULL) {
        pthread_mutex_lock(&f->lock);
        if (f->fault.status == STATUS_OK)
            f->fault = *fault;
        pthread_mutex_unlock(&f->lock);
    }
    if (atomic_fetch_sub(&f->left, 1) == 1)
        end(f);
}

static void partition_is_done(struct request *r, const struct outcome *outcome, const struct fault *fault)
{
    (void)outcome;
    one_is_done(r->user, fault);
}

static void forget_in(struct forgetting *f, uint32_t partition, struct bytes id, uint64_t deadline_ms)
{
    struct request *r = request_new(f->node);
    struct buffer packed = {0};
    struct fault fault;

    wire_forget_request_pack(&packed,
                             bytes_of(arena_printf(&r->routed.arena, "%.*s.%x", (int)id.len, (const char *)id.data,
                                                   partition)),
                             f->subject);
    r->user = f;
    r->finish = partition_is_done;
    r->fixed_partition = true;
    r->routed.partition = partition;
    if (request_start(r, arena_copy(&r->routed.arena, buffer_bytes(&packed)), COMMAND_FORGET, deadline_ms, &fault) !=
        STATUS_OK)
        one_is_done(f, &fault);
    buffer_release(&packed);
}

void forget_subject_call(void *context, struct rpc_call *call, struct bytes request)
{
    struct node *node = context;
    struct forgetting *f = memory_zero(1, sizeof *f);
    uint64_t deadline_ms = rpc_call_deadline_ms(call);
    struct command asked;
    struct fault fault;
    struct bytes id;
    enum status status = wire_forget_decode(request, &f->arena, &asked, &fault);

    if (status == STATUS_OK)
        status = command_check(&asked, (uint32_t)node->config.payload_bytes_max, &fault);
    if (status == STATUS_OK && asked.id.len > COMMAND_ID_BYTES_MAX - 8)
        status = fault_set(&fault, STATUS_INVALID, "FIELD_TOO_LONG", "command_id has %zu bytes; at most %d are allowed here",
                           asked.id.len, COMMAND_ID_BYTES_MAX - 8);
    if (status == STATUS_OK && atomic_load(&node->founding) == NULL)
        status = fault_set(&fault, STATUS_UNAVAILABLE, "NOT_READY", "this node is not a member of a cluster yet");
    if (status != STATUS_OK) {
        fault_fail_call(call, &fault);
        arena_release(&f->arena);
        free(f);
        return;
    }
    id = asked.id.len > 0 ? asked.id
                          : bytes_of(arena_printf(&f->arena, "forget-%016llx", (unsigned long long)random_u64()));
    if (deadline_ms == UINT64_MAX)
        deadline_ms = clock_monotonic_ms() + FORGET_TIMEOUT_MS;
    f->node = node;
    f->call = call;
    f->caller = rpc_call_caller(call);
    f->subject = arena_copy(&f->arena, asked.subject);
    f->partitions = node_partition_count(node);
    pthread_mutex_init(&f->lock, NULL);
    atomic_init(&f->left, f->partitions + 1);
    for (uint32_t p = 0; p < f->partitions; p++)
        forget_in(f, p, id, deadline_ms);
    one_is_done(f, NULL);
}

/*
 * Principals and decisions. A certificate or token is read once and remembered by its bytes; what the policy grants
 * is worked out once for each principal and policy. Files are looked at once a second: new ones that are no good
 * are told loudly, and the ones before stay.
 *
 * Owns: the policy, the keys of tokens, the list of revoked certificates, the table of principals.
 */
#include <pthread.h>
#include <uthash.h>

#include "security.h"

enum { PRINCIPALS_MAX = 8192, GRANTS_OF_ONE_MAX = 64 };

struct principal {
    uint64_t key;       /* a hash of the bytes that showed it */
    struct buffer shown; /* these; a hash alone is no proof */
    atomic_int references; /* the table's is one */
    char identity[IDENTITY_BYTES_MAX + 1];
    char node_name[NAME_BYTES_MAX + 1];
    struct certificate certificate; /* of a token without issuer */
    struct allowance *allowance;    /* shared by all of this identity */
    int64_t expires_s;
    bool chained; /* to the roots of nodes */
    /* With the lock held: */
    const char *barred; /* why it may nothing any more; NULL */
    uint64_t resolved;  /* the policy's version */
    uint32_t roles;     /* for everything of the kind */
    uint16_t grants[GRANTS_OF_ONE_MAX];
    size_t grant_count;
    UT_hash_handle hh;
};

/* A file that is looked at. */
struct watched {
    const char *path;
    uint64_t (*look)(const char *path);
    uint64_t mark;
};

/* By identity. */
struct counted {
    struct allowance *allowance;
    UT_hash_handle hh;
};

struct security {
    pthread_mutex_t lock;
    struct security_settings settings;
    struct policy *policy; /* NULL: none is wanted */
    struct token_keys *keys;
    struct revocations *revoked;
    struct watched policy_file, keys_file, revoked_folder;
    uint64_t version; /* of the policy */
    uint64_t seed;    /* of the table's hash: nobody can make two things of one key */
    struct principal *principals;
    struct counted *counted;
};

/* ---- principals ---- */

struct principal *principal_hold(struct principal *p)
{
    if (p != NULL)
        atomic_fetch_add(&p->references, 1);
    return p;
}

void principal_drop(struct principal *p)
{
    if (p == NULL || atomic_fetch_sub(&p->references, 1) != 1)
        return;
    buffer_release(&p->shown);
    allowance_drop(p->allowance);
    free(p);
}

const char *principal_identity(const struct principal *p)
{
    return p == NULL ? "" : p->identity;
}

const char *principal_node_name(const struct principal *p)
{
    return p == NULL ? "" : p->node_name;
}

bool principal_is_node(const struct principal *p)
{
    return p != NULL && p->node_name[0] != '\0';
}

/* ---- with the lock held ---- */

static void forget_counted(struct security *s, struct counted *c)
{
    HASH_DEL(s->counted, c);
    allowance_drop(c->allowance);
    free(c);
}

static struct allowance *allowance_of(struct security *s, const char *identity)
{
    struct counted *c = NULL;

    HASH_FIND_STR(s->counted, identity, c);
    if (c == NULL) {
        c = memory_zero(1, sizeof *c);
        c->allowance = allowance_new(identity);
        HASH_ADD_KEYPTR(hh, s->counted, allowance_identity(c->allowance), strlen(identity), c);
    }
    return allowance_hold(c->allowance);
}

/* Whoever uses a principal keeps it alive. */
static void make_room(struct security *s)
{
    struct principal *p, *next;
    struct counted *c, *next_counted;

    if (HASH_COUNT(s->principals) < PRINCIPALS_MAX)
        return;
    HASH_ITER(hh, s->principals, p, next)
    if (atomic_load(&p->references) == 1) {
        HASH_DEL(s->principals, p);
        principal_drop(p);
    }
    HASH_ITER(hh, s->counted, c, next_counted)
    if (allowance_is_unused(c->allowance))
        forget_counted(s, c);
}

static void bar_if_over(const struct security *s, struct principal *p, int64_t now_s)
{
    p->barred = NULL;
    if (p->expires_s != 0 && now_s >= p->expires_s)
        p->barred = "its certificate or token is expired";
    else if (s->revoked != NULL && p->certificate.issuer[0] != '\0' && revocations_has(s->revoked, &p->certificate))
        p->barred = "its certificate is revoked";
}

static void roles_of_cluster(const struct security *s, struct principal *p)
{
    char kind[16], name[NAME_BYTES_MAX + 1];

    if (!identity_of_cluster(p->identity, s->settings.cluster_name, kind, sizeof kind, name, sizeof name))
        return;
    if (strcmp(kind, "node") == 0 && p->chained)
        p->roles = ROLE_NODE;
    if (strcmp(kind, "operator") == 0)
        p->roles = ROLE_OPERATOR | ROLE_CLIENTS;
    else if (strcmp(kind, "client") == 0 && s->policy == NULL)
        p->roles = ROLE_CLIENTS;
}

/* Which grants name it. */
static void resolve(struct security *s, struct principal *p)
{
    if (p->resolved == s->version)
        return;
    p->resolved = s->version;
    p->roles = 0;
    p->grant_count = 0;
    roles_of_cluster(s, p);
    for (size_t i = 0; s->policy != NULL && i < policy_grants(s->policy) && p->grant_count < GRANTS_OF_ONE_MAX; i++) {
        if (!policy_names(s->policy, i, p->identity))
            continue;
        p->grants[p->grant_count++] = (uint16_t)i;
        p->roles |= policy_roles(s->policy, i) & (ROLE_OPERATOR | (p->chained ? (uint32_t)ROLE_NODE : 0));
    }
}

static enum status new_of_certificate(struct security *s, struct bytes pem, struct bytes chain, struct principal **out,
                                      struct fault *fault)
{
    struct principal *p = memory_zero(1, sizeof *p);
    struct fault untrusted;
    char kind[16];
    enum status status = certificate_read(pem, &p->certificate, fault);

    if (status != STATUS_OK) {
        free(p);
        fault->status = STATUS_UNAUTHENTICATED;
        return fault->status;
    }
    snprintf(p->identity, sizeof p->identity, "%s", p->certificate.identity);
    p->expires_s = p->certificate.not_after_s;
    if (!identity_of_cluster(p->identity, s->settings.cluster_name, kind, sizeof kind, p->node_name,
                             sizeof p->node_name) ||
        strcmp(kind, "node") != 0)
        p->node_name[0] = '\0';
    /* The handshake knows one bundle for all who call; nodes must come from theirs. */
    p->chained = certificate_verify(pem, chain, s->settings.peer_roots, &untrusted) == STATUS_OK;
    *out = p;
    return STATUS_OK;
}

static enum status new_of_token(struct security *s, struct bytes token, int64_t now_s, struct principal **out,
                                struct fault *fault)
{
    struct token_claims claims;
    struct principal *p;
    enum status status;

    if (s->keys == NULL)
        return fault_set(fault, STATUS_UNAUTHENTICATED, "TOKEN_REFUSED",
                         "this node takes no bearer tokens; show a client certificate");
    status = token_verify(s->keys, token, s->settings.token_audience, now_s, &claims, fault);
    if (status != STATUS_OK)
        return status;
    p = memory_zero(1, sizeof *p);
    snprintf(p->identity, sizeof p->identity, "token:%.*s", IDENTITY_BYTES_MAX - 6, claims.subject);
    p->expires_s = claims.expires_s;
    *out = p;
    return STATUS_OK;
}

/* The principal of these bytes, which is made when it isn't known. */
static enum status find(struct security *s, struct bytes pem, struct bytes chain, struct bytes token, int64_t now_s,
                        struct principal **out, struct fault *fault)
{
    struct bytes shown = pem.len > 0 ? pem : token;
    uint64_t key = hash_mix(s->seed ^ (pem.len > 0), shown);
    struct principal *p = NULL;
    enum status status = STATUS_OK;

    HASH_FIND(hh, s->principals, &key, sizeof key, p);
    if (p != NULL && !bytes_equal(buffer_bytes(&p->shown), shown))
        return fault_set(fault, STATUS_UNAVAILABLE, "IDENTITY_BUSY", "another identity has the same hash; ask again later");
    if (p == NULL) {
        status = pem.len > 0 ? new_of_certificate(s, pem, chain, &p, fault) : new_of_token(s, token, now_s, &p, fault);
        if (status != STATUS_OK)
            return status;
        p->key = key;
        buffer_add(&p->shown, shown.data, shown.len);
        atomic_init(&p->references, 1);
        make_room(s);
        p->allowance = allowance_of(s, p->identity);
        HASH_ADD(hh, s->principals, key, sizeof p->key, p);
    }
    bar_if_over(s, p, now_s);
    *out = p;
    return STATUS_OK;
}

static enum status not_barred(const struct principal *p, struct fault *fault)
{
    if (p->barred == NULL)
        return STATUS_OK;
    return fault_set(fault, STATUS_UNAUTHENTICATED, "IDENTITY_BARRED", "%s: %s", p->identity, p->barred);
}

enum status security_identify(struct security *s, struct bytes pem, struct bytes chain, struct bytes token,
                              int64_t now_s, struct principal **out, struct fault *fault)
{
    struct principal *p = NULL;
    enum status status;

    if (pem.len == 0 && token.len == 0)
        return fault_set(fault, STATUS_UNAUTHENTICATED, "NO_IDENTITY",
                         "show a client certificate, or a bearer token in the metadata `authorization`");
    pthread_mutex_lock(&s->lock);
    status = find(s, pem, chain, token, now_s, &p, fault);
    if (status == STATUS_OK)
        status = not_barred(p, fault);
    if (status == STATUS_OK)
        *out = principal_hold(p);
    pthread_mutex_unlock(&s->lock);
    return status;
}

/* ---- decisions ---- */

static const char *role_name(uint32_t role)
{
    return (role & ROLE_NODE) != 0         ? "node"
           : (role & ROLE_OPERATOR) != 0   ? "operator"
           : (role & ROLE_DISPATCHER) != 0 ? "dispatcher"
           : (role & ROLE_WORKER) != 0     ? "worker"
                                           : "reader";
}

/* What is asked for: a role, and for some roles of which types. NULL types: any of them will do. */
struct wish {
    uint32_t role;
    const struct bytes *aggregate_type;
    const struct bytes *command_type;
    const struct bytes *event_type;
    bool all_event_types;
};

static bool fits(const struct policy *policy, size_t grant, const struct bytes *type,
                 bool (*granted)(const struct policy *policy, size_t grant, const char *type))
{
    char text[TYPE_BYTES_MAX + 1];

    if (type == NULL)
        return true;
    snprintf(text, sizeof text, "%.*s", (int)type->len, (const char *)type->data);
    return granted(policy, grant, text);
}

static bool grants(const struct policy *policy, size_t grant, const struct wish *wish)
{
    return (policy_roles(policy, grant) & wish->role) != 0 &&
           fits(policy, grant, wish->aggregate_type, policy_aggregate_type) &&
           fits(policy, grant, wish->command_type, policy_command_type) &&
           fits(policy, grant, wish->event_type, policy_event_type) &&
           (!wish->all_event_types || policy_event_type(policy, grant, NULL));
}

/* " for KIND TYPE", or nothing. */
static void add_type(struct buffer *out, const char *kind, const struct bytes *type)
{
    if (type != NULL)
        buffer_printf(out, "%s%.*s", kind, (int)type->len, (const char *)type->data);
}

static enum status deny(const struct principal *p, const struct wish *wish, struct fault *fault)
{
    struct buffer types = {0};

    add_type(&types, " for aggregates of type ", wish->aggregate_type);
    add_type(&types, ", commands of type ", wish->command_type);
    add_type(&types, " for events of type ", wish->event_type);
    if (wish->all_event_types)
        buffer_printf(&types, " for events of all types; name those that it may read");
    (void)fault_set(fault, STATUS_DENIED, "DENIED", "%s lacks the role %s%.*s", p->identity, role_name(wish->role),
                    (int)types.len, types.data == NULL ? "" : (const char *)types.data);
    buffer_release(&types);
    return STATUS_DENIED;
}

static enum status decide(struct security *s, struct principal *p, const struct wish *wish, struct fault *fault)
{
    enum status status;
    bool may;

    if (p == NULL)
        return STATUS_OK;
    pthread_mutex_lock(&s->lock);
    status = not_barred(p, fault);
    resolve(s, p);
    /* A node has asked its own caller already. */
    may = (p->roles & (wish->role | ROLE_NODE)) != 0;
    for (size_t i = 0; i < p->grant_count && !may; i++)
        may = grants(s->policy, p->grants[i], wish);
    pthread_mutex_unlock(&s->lock);
    if (status != STATUS_OK || may)
        return status;
    return deny(p, wish, fault);
}

enum status security_may(struct security *s, struct principal *p, uint32_t roles, struct fault *fault)
{
    struct wish wish = {.role = roles};

    return decide(s, p, &wish, fault);
}

enum status security_may_dispatch(struct security *s, struct principal *p, struct bytes aggregate_type,
                                  struct bytes command_type, struct fault *fault)
{
    struct wish wish = {.role = ROLE_DISPATCHER, .aggregate_type = &aggregate_type, .command_type = &command_type};

    return decide(s, p, &wish, fault);
}

enum status security_may_work(struct security *s, struct principal *p, struct bytes aggregate_type,
                              struct fault *fault)
{
    struct wish wish = {.role = ROLE_WORKER, .aggregate_type = &aggregate_type};

    return decide(s, p, &wish, fault);
}

enum status security_may_read(struct security *s, struct principal *p, const struct bytes *event_types, size_t count,
                              struct fault *fault)
{
    enum status status = STATUS_OK;

    if (count == 0)
        return decide(s, p, &(struct wish){.role = ROLE_READER, .all_event_types = true}, fault);
    for (size_t i = 0; i < count && status == STATUS_OK; i++)
        status = decide(s, p, &(struct wish){.role = ROLE_READER, .event_type = &event_types[i]}, fault);
    return status;
}

/* ---- limits ---- */

enum status security_begin(struct security *s, struct principal *p, enum use use, uint64_t now_ms,
                           struct fault *fault)
{
    static const struct limits none = {0};
    enum status status;

    if (p == NULL)
        return STATUS_OK;
    pthread_mutex_lock(&s->lock);
    resolve(s, p);
    status = allowance_begin(p->allowance, use, (p->roles & ROLE_NODE) != 0 ? &none : &s->settings.limits, now_ms,
                             fault);
    pthread_mutex_unlock(&s->lock);
    return status;
}

void security_end(struct principal *p, enum use use)
{
    if (p != NULL)
        allowance_end(p->allowance, use);
}

/* ---- files ---- */

static bool is_new(struct watched *file)
{
    uint64_t mark = file->path[0] == '\0' ? file->mark : file->look(file->path);
    bool changed = mark != file->mark;

    file->mark = mark;
    return changed;
}

static void stays(const char *what, const struct fault *fault)
{
    journal(JOURNAL_ERROR, "security-file-refused", "%s; the %s that was good before stays in force", fault->message,
            what);
}

static void take_policy(struct security *s)
{
    struct policy *policy;
    struct fault fault;

    if (policy_load(&policy, s->policy_file.path, &fault) != STATUS_OK) {
        stays("policy", &fault);
        return;
    }
    pthread_mutex_lock(&s->lock);
    policy_free(s->policy);
    s->policy = policy;
    s->version++;
    pthread_mutex_unlock(&s->lock);
    journal(JOURNAL_INFO, "policy-taken", "%zu grants from %s", policy_grants(policy), s->policy_file.path);
}

static void take_keys(struct security *s)
{
    struct token_keys *keys;
    struct fault fault;
    struct principal *p, *next;

    if (token_keys_load(&keys, s->keys_file.path, &fault) != STATUS_OK) {
        stays("set of token keys", &fault);
        return;
    }
    pthread_mutex_lock(&s->lock);
    token_keys_free(s->keys);
    s->keys = keys;
    HASH_ITER(hh, s->principals, p, next)
    if (p->certificate.issuer[0] == '\0') { /* a token of a key that is gone is shown again in vain */
        HASH_DEL(s->principals, p);
        p->barred = "the keys for tokens have changed; show the token again";
        p->expires_s = 1;
        principal_drop(p);
    }
    pthread_mutex_unlock(&s->lock);
    journal(JOURNAL_INFO, "token-keys-taken", "from %s", s->keys_file.path);
}

static void take_revocations(struct security *s)
{
    struct revocations *revoked;
    struct fault fault;

    if (revocations_load(&revoked, s->revoked_folder.path, &fault) != STATUS_OK) {
        stays("list of revoked certificates", &fault);
        return;
    }
    pthread_mutex_lock(&s->lock);
    revocations_free(s->revoked);
    s->revoked = revoked;
    pthread_mutex_unlock(&s->lock);
    journal(JOURNAL_INFO, "revocations-taken", "from %s", s->revoked_folder.path);
}

void security_tick(struct security *s, int64_t now_s)
{
    struct principal *p, *next;

    if (s == NULL)
        return;
    if (is_new(&s->policy_file))
        take_policy(s);
    if (is_new(&s->keys_file))
        take_keys(s);
    if (is_new(&s->revoked_folder))
        take_revocations(s);
    pthread_mutex_lock(&s->lock);
    HASH_ITER(hh, s->principals, p, next)
    bar_if_over(s, p, now_s);
    pthread_mutex_unlock(&s->lock);
}

enum status security_new(struct security **out, const struct security_settings *settings, struct fault *fault)
{
    struct security *s = memory_zero(1, sizeof *s);
    enum status status = STATUS_OK;

    pthread_mutex_init(&s->lock, NULL);
    s->settings = *settings;
    s->version = 1;
    s->seed = random_u64();
    s->policy_file = (struct watched){settings->policy, file_mark, 0};
    s->keys_file = (struct watched){settings->token_keys, file_mark, 0};
    s->revoked_folder = (struct watched){settings->revoked, folder_mark, 0};
    (void)is_new(&s->policy_file);
    (void)is_new(&s->keys_file);
    (void)is_new(&s->revoked_folder);
    if (settings->policy[0] != '\0')
        status = policy_load(&s->policy, settings->policy, fault);
    if (status == STATUS_OK && settings->token_keys[0] != '\0')
        status = token_keys_load(&s->keys, settings->token_keys, fault);
    if (status == STATUS_OK && settings->revoked[0] != '\0')
        status = revocations_load(&s->revoked, settings->revoked, fault);
    if (status != STATUS_OK) {
        security_free(s);
        return status;
    }
    *out = s;
    return STATUS_OK;
}

void security_free(struct security *s)
{
    struct principal *p, *next;
    struct counted *c, *next_counted;

    if (s == NULL)
        return;
    HASH_ITER(hh, s->principals, p, next)
    {
        HASH_DEL(s->principals, p);
        principal_drop(p);
    }
    HASH_ITER(hh, s->counted, c, next_counted)
    forget_counted(s, c);
    policy_free(s->policy);
    token_keys_free(s->keys);
    revocations_free(s->revoked);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

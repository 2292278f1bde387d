/*
 * Who may come in: certificates and tokens of those who call, what each method wants of them, and whom this node
 * calls itself. Without TLS there is none of this, and everybody on the loopback address may everything.
 *
 *   handshake ─▶ principal ─▶ may it call that method? ─▶ (in the handler) for these types?
 *
 * Never decides by what a caller says of itself: only by what its certificate or token shows.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "access.h"
#include "audit.h"
#include "faults.h"

enum { WARN_BEFORE_S = 30 * 86400, WARN_EVERY_S = 86400, BUNDLE_BYTES_MAX = 1 << 20, TELL_EVERY_MS = 100 };

struct access {
    struct node *node;
    struct security *security;
    struct rpc_tls *clients; /* as a server */
    struct rpc_tls *peers;   /* as a client of peers */
    char roots[600];         /* all that a caller's chain may end in */
    uint64_t marks[2];       /* of the two bundles that it is made of */
    atomic_llong not_after_s; /* of the certificate that expires first; 0: unknown */
    uint64_t certificate_marks[2];
    int64_t warned_s;
    atomic_ullong told_ms; /* when a refusal was told last */
};

/* ---- the bundles ---- */

static bool has_own_peer_roots(const struct config *config)
{
    return strcmp(config->tls_ca, config->peer_tls_ca) != 0;
}

/* Clients and peers come to one port, and a handshake knows one bundle: both in one file. */
static enum status join_bundles(struct access *access, struct fault *fault)
{
    const struct config *config = &access->node->config;
    const char *const paths[] = {config->tls_ca, config->peer_tls_ca};
    struct arena arena = {0};
    struct buffer text = {0};
    enum status status = STATUS_OK;

    for (size_t i = 0; i < COUNT_OF(paths) && status == STATUS_OK; i++) {
        struct bytes part;

        access->marks[i] = file_mark(paths[i]);
        status = file_read(paths[i], BUNDLE_BYTES_MAX, &arena, &part, fault);
        if (status == STATUS_OK) {
            buffer_add(&text, part.data, part.len);
            buffer_add(&text, "\n", 1);
        }
    }
    if (status == STATUS_OK)
        status = file_replace(access->roots, buffer_bytes(&text), fault);
    buffer_release(&text);
    arena_release(&arena);
    return status;
}

static enum status set_roots(struct access *access, struct fault *fault)
{
    const struct config *config = &access->node->config;

    if (!has_own_peer_roots(config)) {
        snprintf(access->roots, sizeof access->roots, "%s", config->tls_ca);
        return STATUS_OK;
    }
    snprintf(access->roots, sizeof access->roots, "%s/tls-roots.pem", config->data_dir);
    return join_bundles(access, fault);
}

static void follow_bundles(struct access *access)
{
    const struct config *config = &access->node->config;
    struct fault fault;

    if (has_own_peer_roots(config) && (access->marks[0] != file_mark(config->tls_ca) ||
                                       access->marks[1] != file_mark(config->peer_tls_ca)) &&
        join_bundles(access, &fault) != STATUS_OK)
        journal(JOURNAL_ERROR, "security-file-refused", "%s; the bundle before stays in force", fault.message);
}

/* ---- who calls ---- */

static int64_t now_s(void)
{
    return clock_wall_ms() / 1000;
}

static uint32_t role_for(enum access_need need)
{
    static const uint32_t roles[] = {[ACCESS_OPEN] = 0,
                                     [ACCESS_KNOWN] = 0,
                                     [ACCESS_NODE] = ROLE_NODE,
                                     [ACCESS_OPERATE] = ROLE_OPERATOR,
                                     [ACCESS_DISPATCH] = ROLE_DISPATCHER,
                                     [ACCESS_WORK] = ROLE_WORKER,
                                     [ACCESS_READ] = ROLE_READER};

    return roles[need];
}

/* A flood fills neither log: of those who ask too often one in TELL_EVERY_MS is noted. */
static bool refuse(struct node *node, const struct rpc_method *method, const char *who, const struct fault *fault,
                   struct rpc_refusal *refusal)
{
    uint64_t now_ms = clock_monotonic_ms();
    bool tell = now_ms - atomic_load(&node->access->told_ms) >= TELL_EVERY_MS;

    if (tell || fault->status != STATUS_EXHAUSTED)
        audit_fault(node, (struct audit_entry){.who = who, .what = strrchr(method->path, '/') + 1}, fault);
    refusal->code = fault_code(fault);
    snprintf(refusal->message, sizeof refusal->message, "%s", fault->message);
    wire_fault_pack(&refusal->details, fault, refusal->code);
    if (tell) {
        atomic_store(&node->access->told_ms, now_ms);
        journal(JOURNAL_WARN, "call-refused", "%s: %s", method->path, fault->message);
    }
    return false;
}

bool access_admit(void *context, const struct rpc_method *method, const struct rpc_shown *shown, void **caller,
                  struct rpc_refusal *refusal)
{
    struct access *access = ((struct node *)context)->access;
    struct principal *principal = NULL;
    uint32_t role = role_for((enum access_need)method->access);
    enum use use = method->stream != NULL ? USE_STREAM : USE_CALL;
    struct fault fault;
    enum status status;
    bool begun;

    if (method->access == ACCESS_OPEN)
        return true;
    status = security_identify(access->security, shown->certificate, shown->chain, shown->token, now_s(), &principal,
                               &fault);
    /* The limits first: who asks in vain, and often, costs as much as others. */
    if (status == STATUS_OK)
        status = security_begin(access->security, principal, use, clock_monotonic_ms(), &fault);
    begun = status == STATUS_OK;
    if (begun && role != 0)
        status = security_may(access->security, principal, role, &fault);
    if (status != STATUS_OK) {
        if (begun)
            security_end(principal, use);
        if (status == STATUS_EXHAUSTED)
            METRIC_ADD((struct node *)context, calls_limited, 1);
        else
            METRIC_ADD((struct node *)context, calls_refused, 1);
        (void)refuse(context, method, principal_identity(principal), &fault, refusal);
        principal_drop(principal);
        return false;
    }
    *caller = principal;
    return true;
}

void access_forget(void *caller, bool stream)
{
    security_end(caller, stream ? USE_STREAM : USE_CALL);
    principal_drop(caller);
}

enum status access_command_begins(struct node *node, void *caller, void **counted, struct fault *fault)
{
    enum status status =
        caller == NULL ? STATUS_OK
                       : security_begin(node->access->security, caller, USE_CALL, clock_monotonic_ms(), fault);

    if (status == STATUS_OK)
        *counted = principal_hold(caller);
    else
        METRIC_ADD(node, calls_limited, 1);
    return status;
}

void access_command_over(void *counted)
{
    security_end(counted, USE_CALL);
    principal_drop(counted);
}

/* A server that we call: a node of this cluster, or nobody. */
static bool accept_peer(void *context, struct bytes certificate, struct bytes chain, char *why, size_t room)
{
    struct access *access = context;
    struct principal *principal = NULL;
    struct fault fault;
    enum status status =
        security_identify(access->security, certificate, chain, BYTES_NONE, now_s(), &principal, &fault);

    if (status == STATUS_OK)
        status = security_may(access->security, principal, ROLE_NODE, &fault);
    principal_drop(principal);
    if (status != STATUS_OK) {
        snprintf(why, room, "%s", fault.message);
        journal(JOURNAL_WARN, "peer-refused", "the node that we call: %s", fault.message);
    }
    return status == STATUS_OK;
}

/* ---- what handlers ask ---- */

static struct security *security_of(struct node *node)
{
    return node->access == NULL ? NULL : node->access->security;
}

enum status access_command(struct node *node, void *caller, const struct command *command, struct fault *fault)
{
    return command->kind == COMMAND_DISPATCH
               ? security_may_dispatch(security_of(node), caller, command->aggregate_type, command->type, fault)
               : security_may_work(security_of(node), caller, command->aggregate_type, fault);
}

enum status access_work(struct node *node, void *caller, struct bytes aggregate_type, struct fault *fault)
{
    enum status status = security_may_work(security_of(node), caller, aggregate_type, fault);

    audit_fault(node,
                (struct audit_entry){.who = principal_identity(caller), .what = "HandleCommands",
                                     .aggregate_type = aggregate_type},
                status == STATUS_OK ? NULL : fault);
    return status;
}

enum status access_read(struct node *node, void *caller, const char *what, struct bytes aggregate_id,
                        const struct event_filter *filter, struct fault *fault)
{
    enum status status = security_may_read(security_of(node), caller, filter == NULL ? NULL : filter->event_types,
                                           filter == NULL ? 0 : filter->event_type_count, fault);

    if (!principal_is_node(caller)) /* it was noted where its own caller asked */
        audit_fault(node,
                    (struct audit_entry){.who = principal_identity(caller), .what = what, .aggregate_id = aggregate_id},
                    status == STATUS_OK ? NULL : fault);
    return status;
}

enum status access_peer(struct node *node, void *caller, struct bytes name, struct fault *fault)
{
    const char *certified = principal_node_name(caller);

    if (security_may(security_of(node), caller, ROLE_NODE, fault) != STATUS_OK)
        return fault->status;
    if (name.len > 0 && certified[0] != '\0' && !bytes_equal(name, bytes_of(certified)))
        return fault_set(fault, STATUS_DENIED, "WRONG_NAME", "the certificate is that of node %s, not of %.*s", certified,
                         (int)name.len, (const char *)name.data);
    return STATUS_OK;
}

const struct rpc_tls *access_peer_tls(const struct node *node)
{
    return node->access == NULL ? NULL : node->access->peers;
}

const struct rpc_tls *access_server_tls(const struct node *node)
{
    return node->access == NULL ? NULL : node->access->clients;
}

/* ---- certificates that end ---- */

static int64_t first_end(const char *const *paths, size_t count)
{
    int64_t first = 0;

    for (size_t i = 0; i < count; i++) {
        struct certificate facts;
        struct fault fault;

        if (certificate_load(paths[i], &facts, &fault) == STATUS_OK && (first == 0 || facts.not_after_s < first))
            first = facts.not_after_s;
    }
    return first;
}

static void look_at_certificates(struct access *access)
{
    const char *const paths[] = {access->node->config.tls_certificate, access->node->config.peer_tls_certificate};
    int64_t now = now_s();
    int64_t first = atomic_load(&access->not_after_s);
    uint64_t marks[COUNT_OF(paths)];

    for (size_t i = 0; i < COUNT_OF(paths); i++)
        marks[i] = file_mark(paths[i]);
    if (memcmp(marks, access->certificate_marks, sizeof marks) != 0) {
        memcpy(access->certificate_marks, marks, sizeof marks);
        first = first_end(paths, COUNT_OF(paths));
        atomic_store(&access->not_after_s, first);
    }
    if (first != 0 && first - now < WARN_BEFORE_S && now - access->warned_s >= WARN_EVERY_S) {
        access->warned_s = now;
        journal(first <= now ? JOURNAL_ERROR : JOURNAL_WARN, "certificate-ends",
                "this node's certificate %s %lld days", first <= now ? "has been expired for" : "expires in",
                (long long)((first > now ? first - now : now - first) / 86400));
    }
}

bool access_certificate_days(const struct node *node, double *days)
{
    int64_t end = node->access == NULL ? 0 : atomic_load(&node->access->not_after_s);

    *days = (double)(end - now_s()) / 86400;
    return end != 0;
}

void access_tick(struct node *node)
{
    struct access *access = node->access;

    if (access == NULL)
        return;
    follow_bundles(access);
    security_tick(access->security, now_s());
    look_at_certificates(access);
}

/* ---- life ---- */

static enum status check_pair(const char *certificate, const char *key, struct fault *fault)
{
    struct certificate facts;

    if (key_file_check(key, fault) != STATUS_OK || certificate_load(certificate, &facts, fault) != STATUS_OK)
        return fault->status;
    if (facts.not_after_s <= now_s())
        return fault_set(fault, STATUS_INVALID, "CERTIFICATE_EXPIRED", "the certificate %s is expired", certificate);
    return STATUS_OK;
}

/* Peers would refuse this node, one after the other: better said here, once. */
static enum status check_as_peer(const struct config *config, const char *path, struct fault *fault)
{
    struct arena arena = {0};
    struct certificate facts;
    struct bytes pem;
    char kind[16], name[NAME_BYTES_MAX + 1];
    enum status status = certificate_load(path, &facts, fault);

    if (status == STATUS_OK &&
        identity_of_cluster(facts.identity, config->cluster_name, kind, sizeof kind, name, sizeof name) &&
        strcmp(kind, "node") == 0 && strcmp(name, config->name) != 0)
        status = fault_set(fault, STATUS_INVALID, "WRONG_NAME",
                           "the certificate %s is that of node %s, this is node %s", path, name, config->name);
    if (status == STATUS_OK)
        status = file_read(path, BUNDLE_BYTES_MAX, &arena, &pem, fault);
    if (status == STATUS_OK && certificate_verify(pem, pem, config->peer_tls_ca, fault) != STATUS_OK)
        status = fault_set(fault, STATUS_INVALID, "CERTIFICATE_UNTRUSTED",
                           "the certificate %s is not of the CAs of nodes in %s: peers would refuse it", path,
                           config->peer_tls_ca);
    arena_release(&arena);
    return status;
}

static void make_credentials(struct access *access)
{
    const struct config *config = &access->node->config;

    access->clients = rpc_tls_new(&(struct rpc_tls_settings){.certificate = config->tls_certificate,
                                                             .key = config->tls_key,
                                                             .roots = access->roots,
                                                             .demand = config->token_keys[0] == '\0'});
    access->peers = rpc_tls_new(&(struct rpc_tls_settings){.certificate = config->peer_tls_certificate,
                                                           .key = config->peer_tls_key,
                                                           .roots = config->peer_tls_ca,
                                                           .accept = accept_peer,
                                                           .context = access});
}

enum status access_new(struct node *node, struct fault *fault)
{
    const struct config *config = &node->config;
    struct security_settings settings = {.cluster_name = config->cluster_name,
                                         .policy = config->policy,
                                         .peer_roots = config->peer_tls_ca,
                                         .revoked = config->tls_revoked,
                                         .token_keys = config->token_keys,
                                         .token_audience = config->token_audience,
                                         .limits = {(uint32_t)config->identity_rate,
                                                    {[USE_CALL] = (uint32_t)config->identity_in_flight,
                                                     [USE_STREAM] = (uint32_t)config->identity_streams}}};
    struct access *access;
    enum status status;

    if (config->tls_certificate[0] == '\0')
        return STATUS_OK;
    access = memory_zero(1, sizeof *access);
    access->node = node;
    status = check_pair(config->tls_certificate, config->tls_key, fault);
    if (status == STATUS_OK)
        status = check_pair(config->peer_tls_certificate, config->peer_tls_key, fault);
    if (status == STATUS_OK)
        status = check_as_peer(config, config->tls_certificate, fault);
    if (status == STATUS_OK)
        status = check_as_peer(config, config->peer_tls_certificate, fault);
    if (status == STATUS_OK)
        status = set_roots(access, fault);
    if (status == STATUS_OK)
        status = security_new(&access->security, &settings, fault);
    if (status != STATUS_OK) {
        free(access);
        return status;
    }
    make_credentials(access);
    node->access = access;
    look_at_certificates(access);
    return STATUS_OK;
}

void access_free(struct node *node)
{
    struct access *access = node->access;

    if (access == NULL)
        return;
    rpc_tls_free(access->clients);
    rpc_tls_free(access->peers);
    security_free(access->security);
    free(access);
    node->access = NULL;
}

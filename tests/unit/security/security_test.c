/* Identities, roles, and files that are no good: with certificates made here. */
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "security/security.h"

struct fixture {
    char folder[64];
    char ca[96], ca_key[96];
    char policy[96], revoked[96];
    struct security *security;
    struct arena arena;
    int64_t now_s;
};

static char *path(struct fixture *f, const char *name)
{
    return arena_printf(&f->arena, "%s/%s", f->folder, name);
}

static void write_file(const char *where, const char *text, mode_t mode)
{
    FILE *file = fopen(where, "w");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    fclose(file);
    assert_int_equal(chmod(where, mode), 0);
}

static enum status issue(struct fixture *f, const char *kind, const char *cluster, const char *name, const char *stem,
                         struct fault *fault)
{
    static const char *const hosts[] = {"localhost", "127.0.0.1"};
    struct issue asked = {.kind = kind,
                          .cluster = cluster,
                          .name = name,
                          .hosts = hosts,
                          .host_count = strcmp(kind, "node") == 0 ? 2 : 0,
                          .days = 30,
                          .ca_certificate = f->ca,
                          .ca_key = f->ca_key,
                          .certificate = path(f, arena_printf(&f->arena, "%s.crt", stem)),
                          .key = path(f, arena_printf(&f->arena, "%s.key", stem))};

    return certificate_issue(&asked, fault);
}

static struct bytes pem_of(struct fixture *f, const char *stem)
{
    struct bytes pem;
    struct fault fault;

    assert_ok(file_read(path(f, arena_printf(&f->arena, "%s.crt", stem)), 1 << 16, &f->arena, &pem, &fault));
    return pem;
}

static int set_up(void **state)
{
    struct fixture *f = memory_zero(1, sizeof *f);
    struct fault fault;

    *state = f;
    strcpy(f->folder, "/tmp/cairn-security-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(f->ca, sizeof f->ca, "%s/ca.crt", f->folder);
    snprintf(f->ca_key, sizeof f->ca_key, "%s/ca.key", f->folder);
    snprintf(f->policy, sizeof f->policy, "%s/policy.yaml", f->folder);
    snprintf(f->revoked, sizeof f->revoked, "%s/revoked", f->folder);
    assert_int_equal(mkdir(f->revoked, 0755), 0);
    f->now_s = clock_wall_ms() / 1000;
    assert_ok(issue(f, "ca", "c", "Test CA", "ca", &fault));
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    char command[128];

    security_free(f->security);
    arena_release(&f->arena);
    snprintf(command, sizeof command, "rm -rf '%s'", f->folder);
    assert_int_equal(system(command), 0);
    free(f);
    return 0;
}

static enum status begin(struct fixture *f, const char *policy, struct fault *fault)
{
    struct security_settings settings = {.cluster_name = "c",
                                         .policy = policy == NULL ? "" : f->policy,
                                         .peer_roots = f->ca,
                                         .revoked = f->revoked,
                                         .token_keys = "",
                                         .token_audience = "cairn"};

    if (policy != NULL)
        write_file(f->policy, policy, 0644);
    return security_new(&f->security, &settings, fault);
}

static struct principal *who(struct fixture *f, const char *kind, const char *cluster, const char *name)
{
    char *stem = arena_printf(&f->arena, "%s-%s-%s", kind, cluster, name);
    struct principal *principal = NULL;
    struct fault fault;

    assert_ok(issue(f, kind, cluster, name, stem, &fault));
    assert_ok(security_identify(f->security, pem_of(f, stem), BYTES_NONE, BYTES_NONE, f->now_s, &principal, &fault));
    return principal;
}

static bool may(struct fixture *f, struct principal *principal, uint32_t role)
{
    struct fault fault;
    enum status status = security_may(f->security, principal, role, &fault);

    assert_true(status == STATUS_OK || status == STATUS_DENIED);
    return status == STATUS_OK;
}

/* ---- names ---- */

static void what_can_be_an_identity(void **state)
{
    static const char *const good[] = {"cairn://c/node/n1", "dns:a.b", "Cairn CA", "spiffe://x/y"};
    static const char *const bad[] = {"", "a..b", "cairn://c/client/../operator/x", "a\nb", "a*", "\xC3\xA4", "a\x7F"};
    char kind[8], name[8];

    (void)state;
    for (size_t i = 0; i < COUNT_OF(good); i++)
        assert_null(identity_problem(bytes_of(good[i])));
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_non_null(identity_problem(bytes_of(bad[i])));
    assert_non_null(identity_problem((struct bytes){(const uint8_t *)"a\0b", 3}));
    assert_true(identity_of_cluster("cairn://c/node/n1", "c", kind, sizeof kind, name, sizeof name));
    assert_string_equal(kind, "node");
    assert_string_equal(name, "n1");
    assert_false(identity_of_cluster("cairn://cc/node/n1", "c", kind, sizeof kind, name, sizeof name));
    assert_false(identity_of_cluster("cairn://c/node/n1/x", "c", kind, sizeof kind, name, sizeof name));
    assert_false(identity_of_cluster("cairn://c/node/", "c", kind, sizeof kind, name, sizeof name));
    assert_false(identity_of_cluster("cairn://c//n1", "c", kind, sizeof kind, name, sizeof name));
    assert_false(identity_of_cluster("cairn://c/node/n12345678", "c", kind, sizeof kind, name, sizeof name));
    assert_false(identity_of_cluster("https://c/node/n1", "c", kind, sizeof kind, name, sizeof name));
}

static void certificates_are_made_once_and_keys_are_private(void **state)
{
    struct fixture *f = *state;
    struct certificate facts;
    struct stat key;
    struct fault fault;

    assert_ok(issue(f, "node", "c", "n1", "n1", &fault));
    assert_ok(certificate_load(path(f, "n1.crt"), &facts, &fault));
    assert_string_equal(facts.identity, "cairn://c/node/n1");
    assert_true(facts.not_after_s > f->now_s + 29 * 86400 && facts.not_before_s <= f->now_s);
    assert_int_equal(stat(path(f, "n1.key"), &key), 0);
    assert_int_equal(key.st_mode & 0777, 0600);
    assert_ok(key_file_check(path(f, "n1.key"), &fault));
    assert_status(issue(f, "node", "c", "n1", "n1", &fault), STATUS_PRECONDITION);
    assert_status(issue(f, "node", "c", "../x", "x", &fault), STATUS_INVALID);
    assert_status(issue(f, "node", "c/d", "x", "x", &fault), STATUS_INVALID);
    assert_status(issue(f, "node", "c", "a,URI:cairn://c/operator/x", "x", &fault), STATUS_INVALID);
    assert_int_equal(chmod(path(f, "n1.key"), 0644), 0);
    assert_status(key_file_check(path(f, "n1.key"), &fault), STATUS_INVALID);
    assert_string_equal(fault.reason, "FILE_EXPOSED");
    assert_status(certificate_load(path(f, "n1.key"), &facts, &fault), STATUS_INVALID);
}

/* ---- roles ---- */

static void without_a_policy_the_kind_says_what_one_may(void **state)
{
    struct fixture *f = *state;
    struct fault fault;
    struct principal *node, *operator, *client, *stranger;

    assert_ok(begin(f, NULL, &fault));
    node = who(f, "node", "c", "n1");
    operator = who(f, "operator", "c", "o");
    client = who(f, "client", "c", "a");
    stranger = who(f, "node", "other", "n1");
    assert_string_equal(principal_node_name(node), "n1");
    assert_string_equal(principal_node_name(client), "");
    assert_true(may(f, node, ROLE_NODE) && may(f, node, ROLE_READER)); /* it has asked its own caller */
    assert_true(may(f, operator, ROLE_OPERATOR) && may(f, operator, ROLE_DISPATCHER) && !may(f, operator, ROLE_NODE));
    assert_true(may(f, client, ROLE_DISPATCHER) && may(f, client, ROLE_WORKER) && may(f, client, ROLE_READER));
    assert_false(may(f, client, ROLE_OPERATOR) || may(f, client, ROLE_NODE));
    assert_false(may(f, stranger, ROLE_NODE) || may(f, stranger, ROLE_READER));
    assert_true(may(f, NULL, ROLE_NODE)); /* no TLS at all */
    principal_drop(node);
    principal_drop(operator);
    principal_drop(client);
    principal_drop(stranger);
}

static void a_policy_says_it_by_types(void **state)
{
    struct fixture *f = *state;
    struct fault fault;
    struct principal *client;
    struct bytes both[] = {BYTES_LITERAL("Paid"), BYTES_LITERAL("Secret")};

    assert_ok(begin(f, "grants:\n"
                       "  - {identities: ['cairn://c/client/*'], roles: [dispatcher], aggregate_types: ['order'],"
                       " command_types: ['Pay*']}\n"
                       "  - {identities: ['cairn://c/client/a'], roles: [reader], event_types: ['Paid']}\n"
                       "  - {identities: ['cairn://c/*'], roles: [operator]}\n", &fault));
    client = who(f, "client", "c", "a");
    assert_ok(security_may_dispatch(f->security, client, BYTES_LITERAL("order"), BYTES_LITERAL("PayNow"), &fault));
    assert_status(security_may_dispatch(f->security, client, BYTES_LITERAL("order"), BYTES_LITERAL("Drop"), &fault),
                  STATUS_DENIED);
    assert_status(security_may_dispatch(f->security, client, BYTES_LITERAL("orders"), BYTES_LITERAL("Pay"), &fault),
                  STATUS_DENIED);
    assert_status(security_may_work(f->security, client, BYTES_LITERAL("order"), &fault), STATUS_DENIED);
    assert_ok(security_may_read(f->security, client, both, 1, &fault));
    assert_status(security_may_read(f->security, client, both, 2, &fault), STATUS_DENIED);
    assert_status(security_may_read(f->security, client, NULL, 0, &fault), STATUS_DENIED);
    assert_false(may(f, client, ROLE_OPERATOR)); /* * passes no slash */
    /* A new one counts at once; one that is broken changes nothing. */
    write_file(f->policy, "grants: [{identities: ['cairn://c/client/a'], roles: [worker]}]", 0644);
    security_tick(f->security, f->now_s);
    assert_ok(security_may_work(f->security, client, BYTES_LITERAL("order"), &fault));
    write_file(f->policy, "grants: [{", 0644);
    security_tick(f->security, f->now_s);
    assert_ok(security_may_work(f->security, client, BYTES_LITERAL("order"), &fault));
    principal_drop(client);
}

static void a_broken_policy_is_refused_and_says_why(void **state)
{
    static const struct {
        const char *text, *said;
    } cases[] = {{"", "policy.yaml"},
                 {"grants: [{identities: [a], roles: [king]}]", "king"},
                 {"grants: [{identities: [a], rules: [reader]}]", "rules"},
                 {"grants: [{identities: ['a..b'], roles: [reader]}]", "two dots"},
                 {"grants: [{identities: ['a\\b'], roles: [reader]}]", "backslash"},
                 {"grants: [{identities: [], roles: [reader]}]", "policy.yaml"},
                 {"grants: [{identities: [a], roles: [worker], event_types: [b]}]", "readers only"}};
    struct fixture *f = *state;
    struct fault fault;

    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        assert_status(begin(f, cases[i].text, &fault), STATUS_INVALID);
        assert_non_null(strstr(fault.message, cases[i].said));
    }
    write_file(f->policy, "grants: []", 0666);
    assert_status(security_new(&f->security, &(struct security_settings){.cluster_name = "c", .policy = f->policy,
                                                                        .peer_roots = f->ca, .revoked = "",
                                                                        .token_keys = "", .token_audience = ""},
                               &fault),
                  STATUS_INVALID);
    assert_string_equal(fault.reason, "FILE_EXPOSED");
}

/* ---- an end ---- */

static void who_is_revoked_or_expired_is_out_at_once(void **state)
{
    struct fixture *f = *state;
    struct fault fault;
    struct principal *thief, *other, *again;

    assert_ok(begin(f, NULL, &fault));
    thief = who(f, "client", "c", "thief");
    other = who(f, "client", "c", "other");
    assert_ok(certificate_revoke(path(f, "client-c-thief.crt"), f->ca, f->ca_key, path(f, "revoked/ca.crl"), &fault));
    security_tick(f->security, f->now_s);
    assert_status(security_may(f->security, thief, ROLE_READER, &fault), STATUS_UNAUTHENTICATED);
    assert_non_null(strstr(fault.message, "revoked"));
    assert_status(security_identify(f->security, pem_of(f, "client-c-thief"), BYTES_NONE, BYTES_NONE, f->now_s, &again,
                                    &fault),
                  STATUS_UNAUTHENTICATED);
    assert_true(may(f, other, ROLE_READER));
    assert_ok(certificate_revoke(path(f, "client-c-other.crt"), f->ca, f->ca_key, path(f, "revoked/ca.crl"), &fault));
    security_tick(f->security, f->now_s); /* both are on the list now */
    assert_status(security_may(f->security, thief, ROLE_READER, &fault), STATUS_UNAUTHENTICATED);
    assert_status(security_may(f->security, other, ROLE_READER, &fault), STATUS_UNAUTHENTICATED);
    principal_drop(thief);
    principal_drop(other);
    other = who(f, "client", "c", "third");
    security_tick(f->security, f->now_s + 31 * 86400);
    assert_status(security_may(f->security, other, ROLE_READER, &fault), STATUS_UNAUTHENTICATED);
    assert_non_null(strstr(fault.message, "expired"));
    principal_drop(other);
}

static void nobody_is_nobody(void **state)
{
    struct fixture *f = *state;
    struct fault fault;
    struct principal *principal = NULL;

    assert_ok(begin(f, NULL, &fault));
    assert_status(security_identify(f->security, BYTES_NONE, BYTES_NONE, BYTES_NONE, f->now_s, &principal, &fault),
                  STATUS_UNAUTHENTICATED);
    assert_string_equal(fault.reason, "NO_IDENTITY");
    assert_status(security_identify(f->security, BYTES_LITERAL("no certificate"), BYTES_NONE, BYTES_NONE, f->now_s,
                                    &principal, &fault),
                  STATUS_UNAUTHENTICATED);
    assert_status(security_identify(f->security, BYTES_NONE, BYTES_NONE, BYTES_LITERAL("a.b.c"), f->now_s, &principal,
                                    &fault),
                  STATUS_UNAUTHENTICATED);
    assert_string_equal(fault.reason, "TOKEN_REFUSED");
}

int main(void)
{
    journal_configure(JOURNAL_NOTHING, false, "test");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_can_be_an_identity),
        cmocka_unit_test_setup_teardown(certificates_are_made_once_and_keys_are_private, set_up, tear_down),
        cmocka_unit_test_setup_teardown(without_a_policy_the_kind_says_what_one_may, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_policy_says_it_by_types, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_broken_policy_is_refused_and_says_why, set_up, tear_down),
        cmocka_unit_test_setup_teardown(who_is_revoked_or_expired_is_out_at_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(nobody_is_nobody, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

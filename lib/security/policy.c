/*
 * The policy file: grants, each for some identities. All that name somebody count together.
 *
 *   grants:
 *     - identities: ["cairn://shop/client/web-*", "dns:*.shop.example", "token:batch"]
 *       roles: [dispatcher, reader]
 *       aggregate_types: ["order", "cart-*"]     # dispatcher, worker; default: all
 *       command_types: ["*"]                     # dispatcher; default: all
 *       event_types: ["Order*"]                  # reader; default: all
 *
 * Patterns are the shell's; * doesn't pass a slash in an identity.
 */
#include <cyaml/cyaml.h>
#include <fnmatch.h>

#include "security.h"

enum { GRANTS_MAX = 1024, PATTERNS_MAX = 256, PATTERN_BYTES_MAX = 255 };

struct grant {
    char **identities;
    unsigned identities_count;
    char **roles;
    unsigned roles_count;
    char **aggregate_types;
    unsigned aggregate_types_count;
    char **command_types;
    unsigned command_types_count;
    char **event_types;
    unsigned event_types_count;
};

struct file {
    struct grant *grants;
    unsigned grants_count;
};

struct policy {
    struct file *file;
    uint32_t *roles; /* of each grant */
};

static const cyaml_schema_value_t text_schema = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, 1, PATTERN_BYTES_MAX)};

#define TEXTS(name, flags) \
    CYAML_FIELD_SEQUENCE(#name, CYAML_FLAG_POINTER | (flags), struct grant, name, &text_schema, 1, PATTERNS_MAX)

static const cyaml_schema_field_t grant_fields[] = {
    TEXTS(identities, 0),
    TEXTS(roles, 0),
    TEXTS(aggregate_types, CYAML_FLAG_OPTIONAL),
    TEXTS(command_types, CYAML_FLAG_OPTIONAL),
    TEXTS(event_types, CYAML_FLAG_OPTIONAL),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t grant_schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, struct grant, grant_fields)};
static const cyaml_schema_field_t file_fields[] = {
    CYAML_FIELD_SEQUENCE("grants", CYAML_FLAG_POINTER, struct file, grants, &grant_schema, 0, GRANTS_MAX),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t file_schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct file, file_fields)};

static void keep_first_error(cyaml_log_t level, void *context, const char *format, va_list args)
{
    char *text = context;

    if (level >= CYAML_LOG_ERROR && text[0] == '\0')
        vsnprintf(text, 256, format, args);
    text[strcspn(text, "\n")] = '\0';
}

static void config_of(cyaml_config_t *config, char *text)
{
    *config = (cyaml_config_t){.log_fn = keep_first_error,
                               .log_ctx = text,
                               .mem_fn = cyaml_mem,
                               .log_level = CYAML_LOG_ERROR,
                               .flags = CYAML_CFG_DEFAULT};
}

static uint32_t role_of(const char *text)
{
    static const struct {
        const char *name;
        uint32_t role;
    } roles[] = {{"node", ROLE_NODE},
                 {"operator", ROLE_OPERATOR},
                 {"dispatcher", ROLE_DISPATCHER},
                 {"worker", ROLE_WORKER},
                 {"reader", ROLE_READER}};

    for (size_t i = 0; i < COUNT_OF(roles); i++)
        if (strcmp(text, roles[i].name) == 0)
            return roles[i].role;
    return 0;
}

/* NULL when the pattern is one. */
static const char *pattern_problem(const char *pattern)
{
    if (strstr(pattern, "..") != NULL)
        return "it has two dots in a row";
    for (const char *at = pattern; *at != '\0'; at++)
        if (*at < ' ' || *at == 0x7F || *at == '\\')
            return "it has a control character or a backslash";
    return NULL;
}

static enum status check_patterns(const char *path, unsigned grant, const char *what, char *const *patterns,
                                  unsigned count, struct fault *fault)
{
    for (unsigned i = 0; i < count; i++) {
        const char *problem = pattern_problem(patterns[i]);

        if (problem != NULL)
            return fault_set(fault, STATUS_INVALID, "POLICY_INVALID", "%s: grant %u, %s: `%s` is no pattern: %s", path,
                             grant + 1, what, patterns[i], problem);
    }
    return STATUS_OK;
}

static enum status check_grant(struct policy *policy, const char *path, unsigned i, struct fault *fault)
{
    const struct grant *g = &policy->file->grants[i];

    for (unsigned r = 0; r < g->roles_count; r++) {
        uint32_t role = role_of(g->roles[r]);

        if (role == 0)
            return fault_set(fault, STATUS_INVALID, "POLICY_INVALID",
                             "%s: grant %u has the role `%s`; there are node, operator, dispatcher, worker and reader",
                             path, i + 1, g->roles[r]);
        policy->roles[i] |= role;
    }
    if (g->command_types_count > 0 && (policy->roles[i] & ROLE_DISPATCHER) == 0)
        return fault_set(fault, STATUS_INVALID, "POLICY_INVALID",
                         "%s: grant %u has command_types, which are for dispatchers only", path, i + 1);
    if (g->event_types_count > 0 && (policy->roles[i] & ROLE_READER) == 0)
        return fault_set(fault, STATUS_INVALID, "POLICY_INVALID",
                         "%s: grant %u has event_types, which are for readers only", path, i + 1);
    if (g->aggregate_types_count > 0 && (policy->roles[i] & (ROLE_DISPATCHER | ROLE_WORKER)) == 0)
        return fault_set(fault, STATUS_INVALID, "POLICY_INVALID",
                         "%s: grant %u has aggregate_types, which are for dispatchers and workers", path, i + 1);
    if (check_patterns(path, i, "identities", g->identities, g->identities_count, fault) != STATUS_OK ||
        check_patterns(path, i, "aggregate_types", g->aggregate_types, g->aggregate_types_count, fault) != STATUS_OK ||
        check_patterns(path, i, "command_types", g->command_types, g->command_types_count, fault) != STATUS_OK ||
        check_patterns(path, i, "event_types", g->event_types, g->event_types_count, fault) != STATUS_OK)
        return fault->status;
    return STATUS_OK;
}

enum status policy_load(struct policy **out, const char *path, struct fault *fault)
{
    struct policy *policy;
    char text[256] = "";
    cyaml_config_t config;
    cyaml_err_t code;
    enum status status = policy_file_check(path, fault);

    if (status != STATUS_OK)
        return status;
    policy = memory_zero(1, sizeof *policy);
    config_of(&config, text);
    code = cyaml_load_file(path, &config, &file_schema, (cyaml_data_t **)&policy->file, NULL);
    if (code != CYAML_OK) {
        status = fault_set(fault, STATUS_INVALID, "POLICY_INVALID", "%s: %s%s%s", path, cyaml_strerror(code),
                           text[0] == '\0' ? "" : ": ", text);
        policy->file = NULL;
    } else if (policy->file == NULL) {
        status = fault_set(fault, STATUS_INVALID, "POLICY_INVALID", "%s is empty; to grant nothing say `grants: []`", path);
    } else {
        policy->roles = memory_zero(policy->file->grants_count + 1, sizeof *policy->roles);
        for (unsigned i = 0; i < policy->file->grants_count && status == STATUS_OK; i++)
            status = check_grant(policy, path, i, fault);
    }
    if (status != STATUS_OK) {
        policy_free(policy);
        return status;
    }
    *out = policy;
    return STATUS_OK;
}

void policy_free(struct policy *policy)
{
    char text[256] = "";
    cyaml_config_t config;

    if (policy == NULL)
        return;
    config_of(&config, text);
    if (policy->file != NULL)
        (void)cyaml_free(&config, &file_schema, policy->file, 0);
    free(policy->roles);
    free(policy);
}

size_t policy_grants(const struct policy *policy)
{
    return policy->file->grants_count;
}

static bool any_matches(char *const *patterns, unsigned count, const char *text, int flags)
{
    for (unsigned i = 0; i < count; i++)
        if (fnmatch(patterns[i], text, flags | FNM_NOESCAPE) == 0)
            return true;
    return false;
}

bool policy_names(const struct policy *policy, size_t grant, const char *identity)
{
    const struct grant *g = &policy->file->grants[grant];

    return any_matches(g->identities, g->identities_count, identity, FNM_PATHNAME);
}

uint32_t policy_roles(const struct policy *policy, size_t grant)
{
    return policy->roles[grant];
}

bool policy_aggregate_type(const struct policy *policy, size_t grant, const char *type)
{
    const struct grant *g = &policy->file->grants[grant];

    return g->aggregate_types_count == 0 || any_matches(g->aggregate_types, g->aggregate_types_count, type, 0);
}

bool policy_command_type(const struct policy *policy, size_t grant, const char *type)
{
    const struct grant *g = &policy->file->grants[grant];

    return g->command_types_count == 0 || any_matches(g->command_types, g->command_types_count, type, 0);
}

/* All types are granted by no list, or by the pattern * in it. */
bool policy_event_type(const struct policy *policy, size_t grant, const char *type)
{
    const struct grant *g = &policy->file->grants[grant];

    if (g->event_types_count == 0)
        return true;
    if (type != NULL)
        return any_matches(g->event_types, g->event_types_count, type, 0);
    for (unsigned i = 0; i < g->event_types_count; i++)
        if (strcmp(g->event_types[i], "*") == 0)
            return true;
    return false;
}

/* One table of settings, three sources. */
#include "config.h"

#include <cyaml/cyaml.h>
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <sys/stat.h>
#include <unistd.h>

enum kind { TEXT, NUMBER, SIZE, DURATION, SWITCH, LIST };

struct setting {
    const char *name;
    enum kind kind;
    size_t offset;
    size_t room;         /* of text, or of each list element */
    size_t count_offset; /* of a list's count */
    uint64_t min, max;
    const char *fallback;
    const char *help;
};

#define AT(field) offsetof(struct config, field), sizeof(((struct config *)0)->field)
#define LIST_AT(field, count) \
    offsetof(struct config, field), sizeof(((struct config *)0)->field[0]), \
        offsetof(struct config, count)

static const struct setting settings[] = {
    {"name", TEXT, AT(name), 0, 0, 0, "", "name of this node in the cluster (default: the host's)"},
    {"data-dir", TEXT, AT(data_dir), 0, 0, 0, "",
     "where the data lives (default: $XDG_STATE_HOME/cairn)"},
    {"listen", TEXT, AT(listen), 0, 0, 0, "127.0.0.1:7411", "address for gRPC, host:port"},
    {"advertise", TEXT, AT(advertise), 0, 0, 0, "",
     "address that other nodes use to reach this one (default: --listen)"},
    {"http", TEXT, AT(http), 0, 0, 0, "127.0.0.1:7412",
     "address for /healthz, /readyz and /metrics; empty for none"},
    {"join", LIST, LIST_AT(join, join_count), 0, 0, "",
     "addresses of other nodes, comma-separated or repeated"},
    {"discover", LIST, LIST_AT(discover, discover_count), 0, 0, "",
     "how to find other nodes: static:A,B,C, dns:NAME[:PORT] (A, AAAA; SRV when NAME begins with _), "
     "multicast[:GROUP:PORT]; repeatable"},
    {"dns-server", TEXT, AT(dns_server), 0, 0, 0, "",
     "whom dns: asks, address[:port] (default: /etc/resolv.conf)"},
    {"cluster-name", TEXT, AT(cluster_name), 0, 0, 0, "cairn",
     "nodes of another cluster name are refused"},
    {"bootstrap-expect", NUMBER, AT(bootstrap_expect), 0, 0, FOUNDERS_MAX, "0",
     "found a cluster once this many nodes see each other (default: 1 without --join and --discover)"},
    {"partitions", NUMBER, AT(partitions), 0, 1, PARTITIONS_MAX, "64",
     "partitions of a new cluster; fixed for its life"},
    {"replication-factor", NUMBER, AT(replication_factor), 0, 1, REPLICATION_FACTOR_MAX, "3",
     "copies of each partition in a new cluster"},
    {"zone", TEXT, AT(zone), 0, 0, 0, "",
     "failure domain of this node: replicas of a partition are spread over zones"},
    {"capacity", NUMBER, AT(capacity), 0, 1, CAPACITY_MAX, "100",
     "this node's share of replicas and ownerships, compared with others"},
    {"replace", TEXT, AT(replace), 0, 0, 0, "",
     "take the place of this dead member; needs an empty data directory"},
    {"member-grace", DURATION, AT(member_grace_ms), 0, 0, 86400000, "30s",
     "how long a member may be dead before its replicas are made anew (a new cluster's)"},
    {"moves-at-once", NUMBER, AT(moves_at_once), 0, 1, PARTITIONS_MAX, "8",
     "partitions that get another replica at the same time (a new cluster's)"},
    {"transfer-limit", SIZE, AT(transfer_bytes), 0, 0, UINT64_MAX, "64MiB",
     "what a node takes of moving partitions in a second; 0 for no limit (a new cluster's)"},
    {"balance-after", DURATION, AT(balance_after_ms), 0, 0, 86400000, "5s",
     "all members must have been alive for so long before anything is balanced"},
    {"module", LIST, LIST_AT(modules, module_count), 0, 0, "",
     "shared object with aggregate types; repeatable"},
    {"election-timeout", DURATION, AT(election_timeout_ms), 0, 50, 60000, "300ms",
     "silence of an owner after which its replicas elect another"},
    {"heartbeat-interval", DURATION, AT(heartbeat_interval_ms), 0, 10, 10000, "100ms",
     "how often an owner shows its replicas that it lives"},
    {"payload-max", SIZE, AT(payload_bytes_max), 0, 1024, DECISION_BYTES_MAX, "1MiB",
     "largest payload of one command or event"},
    {"memory", SIZE, AT(memory_bytes), 0, 8 << 20, UINT64_MAX, "48MiB",
     "write buffers and cache of the store"},
    {"disk-reserve", SIZE, AT(disk_reserve_bytes), 0, 0, 60ULL << 30, "256MiB",
     "with less free disk on most replicas commands get RESOURCE_EXHAUSTED; 0 for no limit"},
    {"outcome-retention", DURATION, AT(outcome_retention_ms), 0, 60000, UINT64_MAX, "24h",
     "how long a repeated command id gets the recorded outcome"},
    {"snapshot-every", NUMBER, AT(snapshot_every), 0, 0, UINT32_MAX, "500",
     "events of an aggregate between two snapshots by its module; 0 for none"},
    {"snapshot-after", DURATION, AT(snapshot_after_ms), 0, 0, 3600000, "100ms",
     "an aggregate that a module takes so long to build gets a snapshot; 0 for none"},
    {"default-timeout", DURATION, AT(default_timeout_ms), 0, 100, 3600000, "30s",
     "deadline of a command that came without one"},
    {"drain-timeout", DURATION, AT(drain_timeout_ms), 0, 0, 3600000, "10s",
     "longest time between SIGTERM and exit"},
    {"log-format", TEXT, AT(log_format), 0, 0, 0, "text", "text or json"},
    {"log-level", TEXT, AT(log_level), 0, 0, 0, "info", "debug, info, warn or error"},
    {"reflection", SWITCH, AT(reflection), 0, 0, 1, "true", "serve gRPC reflection"},
    {"insecure", SWITCH, AT(insecure), 0, 0, 1, "false",
     "allow addresses other than loopback without TLS"},
    {"tls-certificate", TEXT, AT(tls_certificate), 0, 0, 0, "",
     "file with this node's certificate and what it chains through (PEM); turns TLS on"},
    {"tls-key", TEXT, AT(tls_key), 0, 0, 0, "", "file with its private key, which nobody else may read"},
    {"tls-ca", TEXT, AT(tls_ca), 0, 0, 0, "", "file with the CAs of callers; the old and the new one while you change it"},
    {"tls-revoked", TEXT, AT(tls_revoked), 0, 0, 0, "", "folder with revocation lists (*.crl, *.pem)"},
    {"peer-tls-certificate", TEXT, AT(peer_tls_certificate), 0, 0, 0, "",
     "certificate that this node shows when it calls peers (default: --tls-certificate)"},
    {"peer-tls-key", TEXT, AT(peer_tls_key), 0, 0, 0, "", "its private key (default: --tls-key)"},
    {"peer-tls-ca", TEXT, AT(peer_tls_ca), 0, 0, 0, "", "file with the CAs of nodes (default: --tls-ca)"},
    {"policy", TEXT, AT(policy), 0, 0, 0, "",
     "file (YAML) that says who has which role; without it every client certificate is dispatcher, worker and reader"},
    {"token-keys", TEXT, AT(token_keys), 0, 0, 0, "",
     "file (JWKS) with public keys of bearer tokens, for clients without a certificate"},
    {"audit-log", TEXT, AT(audit_log), 0, 0, 0, "",
     "file that says who did what with which outcome, a JSON object a line; it may be moved away for rotation"},
    {"identity-rate", NUMBER, AT(identity_rate), 0, 0, 10000000, "0",
     "calls and commands that one identity may send in a second; 0 for no limit"},
    {"identity-in-flight", NUMBER, AT(identity_in_flight), 0, 0, 1 << 20, "8192",
     "calls and commands of one identity that may be under way; 0 for no limit"},
    {"identity-streams", NUMBER, AT(identity_streams), 0, 0, 1 << 20, "1024",
     "open streams of one identity; 0 for no limit"},
    {"connections", NUMBER, AT(connections), 0, 0, 1 << 20, "8192",
     "open connections in all; who is too many is let go at once; 0 for no limit"},
    {"connections-per-address", NUMBER, AT(connections_per_address), 0, 0, 1 << 20, "2048",
     "open connections from one address; 0 for as many as in all"},
    {"connection-idle", DURATION, AT(connection_idle_ms), 0, 1000, 86400000, "10m",
     "a connection without a call for so long is closed"},
    {"connection-memory", SIZE, AT(connection_memory_bytes), 0, 16 << 20, UINT64_MAX, "256MiB",
     "buffers of all connections; who needs more, as by endless headers, is let go"},
    {"master-key", TEXT, AT(master_key), 0, 0, 0, "",
     "file with the keys that wrap those of subjects, the same on all nodes (cairnctl key master makes one), or the "
     "PKCS #11 URI of a key that derives one"},
    {"token-audience", TEXT, AT(token_audience), 0, 0, 0, "cairn", "audience that such tokens must be for"},
};

enum { SETTINGS = COUNT_OF(settings) };

static const char *sources[SETTINGS];

/* ---- values ---- */

static bool parse_number(const char *text, const char *const *units, const uint64_t *factors,
                         uint64_t *out)
{
    char *end;
    unsigned long long value;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (end == text || errno != 0 || text[0] == '-')
        return false;
    for (size_t i = 0; units[i] != NULL; i++)
        if (strcmp(end, units[i]) == 0) {
            if (factors[i] != 0 && value > UINT64_MAX / factors[i])
                return false;
            *out = value * factors[i];
            return true;
        }
    return false;
}

static bool parse_by_kind(enum kind kind, const char *text, uint64_t *out)
{
    static const char *const none[] = {"", NULL};
    static const uint64_t one[] = {1};
    static const char *const sizes[] = {"", "B", "KiB", "MiB", "GiB", NULL};
    static const uint64_t size_factors[] = {1, 1, 1 << 10, 1 << 20, 1 << 30};
    static const char *const durations[] = {"ms", "s", "m", "h", NULL};
    static const uint64_t duration_factors[] = {1, 1000, 60000, 3600000};

    switch (kind) {
    case SIZE:
        return parse_number(text, sizes, size_factors, out);
    case DURATION:
        return parse_number(text, durations, duration_factors, out);
    default:
        return parse_number(text, none, one, out);
    }
}

static const char *expected(enum kind kind)
{
    return kind == SIZE       ? "a size such as 64MiB"
           : kind == DURATION ? "a duration such as 300ms or 10s"
                              : "a whole number";
}

static enum status set_list(struct config *config, const struct setting *s, const char *value,
                            struct fault *fault)
{
    char *list = (char *)config + s->offset;
    size_t *count = (size_t *)(void *)((char *)config + s->count_offset);
    size_t max = s->offset == offsetof(struct config, join)       ? JOIN_MAX
                 : s->offset == offsetof(struct config, discover) ? DISCOVER_MAX
                                                                  : MODULES_MAX;

    while (*value != '\0') {
        size_t len = strcspn(value, ",");

        if (len >= s->room || *count == max)
            return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                             "%s: at most %zu elements of %zu bytes", s->name, max, s->room - 1);
        if (len > 0) {
            memcpy(list + *count * s->room, value, len);
            list[*count * s->room + len] = '\0';
            (*count)++;
        }
        value += len + (value[len] == ',');
    }
    return STATUS_OK;
}

static enum status set(struct config *config, size_t i, const char *value, const char *source,
                       struct fault *fault)
{
    const struct setting *s = &settings[i];
    void *at = (char *)config + s->offset;

    if (s->kind == LIST && sources[i] != source && sources[i] != NULL)
        *(size_t *)(void *)((char *)config + s->count_offset) = 0; /* a stronger source replaces */
    sources[i] = source;
    if (s->kind == LIST)
        return set_list(config, s, value, fault);
    if (s->kind == TEXT) {
        if (strlen(value) >= s->room)
            return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                             "%s (from %s) is longer than %zu bytes", s->name, source,
                             s->room - 1);
        snprintf(at, s->room, "%s", value);
        return STATUS_OK;
    }
    if (s->kind == SWITCH) {
        if (strcmp(value, "true") != 0 && strcmp(value, "false") != 0)
            return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                             "%s (from %s) is `%s`; it must be true or false", s->name, source,
                             value);
        *(bool *)at = value[0] == 't';
        return STATUS_OK;
    }
    if (!parse_by_kind(s->kind, value, at))
        return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                         "%s (from %s) is `%s`; it must be %s", s->name, source, value,
                         expected(s->kind));
    if (*(uint64_t *)at < s->min || *(uint64_t *)at > s->max)
        return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                         "%s (from %s) is `%s`; it must lie between %llu and %llu", s->name,
                         source, value, (unsigned long long)s->min, (unsigned long long)s->max);
    return STATUS_OK;
}

/* ---- sources ---- */

static enum status from_defaults(struct config *config, struct fault *fault)
{
    enum status status = STATUS_OK;

    for (size_t i = 0; i < SETTINGS && status == STATUS_OK; i++) {
        status = settings[i].kind == LIST
                     ? STATUS_OK
                     : set(config, i, settings[i].fallback, "default", fault);
        sources[i] = "default";
    }
    return status;
}

static void environment_name(const char *name, char *out, size_t room)
{
    size_t n = (size_t)snprintf(out, room, "CAIRN_");

    for (; *name != '\0' && n + 1 < room; name++)
        out[n++] = *name == '-' ? '_' : (char)toupper((unsigned char)*name);
    out[n] = '\0';
}

static enum status from_environment(struct config *config, struct fault *fault)
{
    enum status status = STATUS_OK;

    for (size_t i = 0; i < SETTINGS && status == STATUS_OK; i++) {
        char name[64];
        const char *value;

        environment_name(settings[i].name, name, sizeof name);
        value = getenv(name);
        if (value != NULL)
            status = set(config, i, value, "environment", fault);
    }
    return status;
}

/* Edit distance, for the nearest known name. */
static size_t distance(const char *a, const char *b)
{
    size_t row[64];
    size_t n = strlen(b);

    if (n >= COUNT_OF(row))
        return SIZE_MAX;
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 1; a[i - 1] != '\0'; i++) {
        size_t diagonal = row[0];

        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);

            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n];
}

static const char *nearest(const char *name)
{
    const char *best = settings[0].name;

    for (size_t i = 1; i < SETTINGS; i++)
        if (distance(name, settings[i].name) < distance(name, best))
            best = settings[i].name;
    return best;
}

static void file_name(const char *name, char *out, size_t room)
{
    size_t n = 0;

    for (; *name != '\0' && n + 1 < room; name++)
        out[n++] = *name == '-' ? '_' : *name;
    out[n] = '\0';
}

static size_t known(const char *name, bool in_file)
{
    char other[64];

    for (size_t i = 0; i < SETTINGS; i++) {
        file_name(settings[i].name, other, sizeof other);
        if (strcmp(name, in_file ? other : settings[i].name) == 0)
            return i;
    }
    return SETTINGS;
}

static void keep_first_error(cyaml_log_t level, void *context, const char *format, va_list args)
{
    char *text = context;

    if (level >= CYAML_LOG_ERROR && text[0] == '\0')
        vsnprintf(text, 256, format, args);
}

/* Every key is a scalar or a list of scalars, so the file is one flat mapping. */
static enum status from_file(struct config *config, const char *path, struct fault *fault)
{
    static const cyaml_schema_value_t scalar = {
        CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, 0, 4096)};
    char names[SETTINGS][64];
    cyaml_schema_field_t fields[SETTINGS + 1];
    cyaml_schema_value_t top = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, char, NULL)};
    size_t size = 0;
    char error[256] = "";
    cyaml_config_t yaml = {.log_fn = keep_first_error,
                           .log_ctx = error,
                           .log_level = CYAML_LOG_WARNING,
                           .mem_fn = cyaml_mem,
                           .flags = CYAML_CFG_DEFAULT};
    char *loaded = NULL;
    cyaml_err_t code;
    enum status status = STATUS_OK;

    for (size_t i = 0; i < SETTINGS; i++) {
        bool list = settings[i].kind == LIST;

        file_name(settings[i].name, names[i], sizeof names[i]);
        fields[i] = (cyaml_schema_field_t){
            .key = names[i],
            .data_offset = (uint32_t)size,
            .count_offset = (uint32_t)(size + sizeof(char *)),
            .count_size = list ? sizeof(size_t) : 0,
        };
        if (list)
            fields[i].value = (cyaml_schema_value_t){
                CYAML_VALUE_SEQUENCE(CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, char *, &scalar, 0,
                                     JOIN_MAX)};
        else
            fields[i].value = (cyaml_schema_value_t){
                CYAML_VALUE_STRING(CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, char, 0, 4096)};
        size += sizeof(char *) + sizeof(size_t);
    }
    fields[SETTINGS] = (cyaml_schema_field_t){.key = NULL};
    top.mapping.fields = fields;
    top.data_size = (uint32_t)size;
    code = cyaml_load_file(path, &yaml, &top, (cyaml_data_t **)&loaded, NULL);
    if (code != CYAML_OK) {
        const char *unexpected = strstr(error, "Unexpected key: ");
        char key[64] = "";

        error[strcspn(error, "\n")] = '\0';
        if (unexpected != NULL) {
            snprintf(key, sizeof key, "%s", unexpected + strlen("Unexpected key: "));
            return fault_set(fault, STATUS_INVALID, "SETTING_UNKNOWN",
                             "%s: unknown key `%s`; did you mean `%s`?", path, key,
                             nearest(key));
        }
        return fault_set(fault, STATUS_INVALID, "FILE_INVALID",
                         "cannot read the configuration file %s: %s %s", path,
                         cyaml_strerror(code), error);
    }
    for (size_t i = 0; loaded != NULL && i < SETTINGS && status == STATUS_OK; i++) {
        void *at = loaded + fields[i].data_offset;
        char *text = NULL;

        if (settings[i].kind == LIST) {
            char **list = *(char ***)at;
            size_t count = *(size_t *)(void *)(loaded + fields[i].count_offset);

            for (size_t j = 0; list != NULL && j < count && status == STATUS_OK; j++)
                status = set(config, i, list[j], "file", fault);
            continue;
        }
        text = *(char **)at;
        if (text != NULL)
            status = set(config, i, text, "file", fault);
    }
    (void)cyaml_free(&yaml, &top, loaded, 0);
    return status;
}

/* ---- flags ---- */

static void print_help(void)
{
    printf("cairnd %s: clustered command dispatcher and event store\n\n"
           "Usage: cairnd [--SETTING VALUE]...\n\n"
           "Without arguments it starts a one-node cluster on 127.0.0.1.\n"
           "Each setting is also CAIRN_SETTING in the environment and `setting:` in the file\n"
           "(- becomes _). Flags win over the environment, that over the file.\n\n",
           CAIRN_VERSION);
    for (size_t i = 0; i < SETTINGS; i++)
        printf("  --%-20s %s%s%s%s\n", settings[i].name, settings[i].help,
               settings[i].fallback[0] == '\0' ? "" : " [",
               settings[i].fallback, settings[i].fallback[0] == '\0' ? "" : "]");
    printf("  --%-20s configuration file (YAML)\n"
           "  --%-20s check the settings, print them with their sources, and exit\n"
           "  --help, --version\n\n"
           "Exit codes: 0 fine, 1 failed while running, 2 wrong usage or settings,\n"
           "3 trouble with the data directory.\n",
           "config", "check-config");
}

/* Of the same table as the help. */
static void print_man(void)
{
    printf(".TH CAIRND 8 \"\" \"Cairn %s\"\n.SH NAME\ncairnd \\- clustered command dispatcher and event store\n"
           ".SH SYNOPSIS\n.B cairnd\n[\\-\\-SETTING VALUE]...\n.SH DESCRIPTION\n"
           "Without arguments it starts a one-node cluster on 127.0.0.1. Each setting is also CAIRN_SETTING in the\n"
           "environment and setting: in the file (- becomes _). Flags win over the environment, that over the file.\n"
           ".SH SETTINGS\n",
           CAIRN_VERSION);
    for (size_t i = 0; i < SETTINGS; i++)
        printf(".TP\n.B \\-\\-%s\n%s%s%s%s\n", settings[i].name, settings[i].help,
               settings[i].fallback[0] == '\0' ? "" : " [", settings[i].fallback,
               settings[i].fallback[0] == '\0' ? "" : "]");
    printf(".SH SIGNALS\nSIGHUP takes the log level and changed certificates and policies at once. SIGTERM hands ownerships over and stops; a second one stops at once.\n"
           ".SH EXIT STATUS\n0 fine, 1 failed while running, 2 wrong usage or settings, 3 trouble with the data\n"
           "directory.\n.SH SEE ALSO\n.BR cairnctl (1)\n");
}

enum { FLAG_MAN = 999, FLAG_CONFIG, FLAG_CHECK, FLAG_HELP, FLAG_VERSION };

static void make_options(struct option *options)
{
    for (size_t i = 0; i < SETTINGS; i++)
        options[i] = (struct option){
            settings[i].name, settings[i].kind == SWITCH ? optional_argument : required_argument,
            NULL, (int)i + 1};
    options[SETTINGS] = (struct option){"config", required_argument, NULL, FLAG_CONFIG};
    options[SETTINGS + 1] = (struct option){"check-config", no_argument, NULL, FLAG_CHECK};
    options[SETTINGS + 2] = (struct option){"help", no_argument, NULL, FLAG_HELP};
    options[SETTINGS + 3] = (struct option){"version", no_argument, NULL, FLAG_VERSION};
    options[SETTINGS + 4] = (struct option){"man", no_argument, NULL, FLAG_MAN};
    options[SETTINGS + 5] = (struct option){NULL, 0, NULL, 0};
}

static enum status bad_flag(char **argv, struct fault *fault)
{
    const char *flag = argv[optind - 1];

    if (strncmp(flag, "--", 2) == 0 && known(flag + 2, false) == SETTINGS)
        return fault_set(fault, STATUS_INVALID, "SETTING_UNKNOWN",
                         "unknown flag %s; did you mean --%s? See cairnd --help", flag,
                         nearest(flag + 2));
    return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                     "flag %s needs a value; see cairnd --help", flag);
}

/* First pass: find --config; second pass: set. */
static enum status from_flags(struct config *config, int argc, char **argv, const char **file,
                              struct fault *fault)
{
    struct option options[SETTINGS + 6];
    bool setting = config != NULL;
    int flag;

    make_options(options);
    optind = 0; /* glibc: begin anew, also in the middle of an argument */
    opterr = 0;
    while ((flag = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        enum status status = STATUS_OK;

        if (flag == FLAG_HELP) {
            print_help();
            return STATUS_NOT_FOUND;
        }
        if (flag == FLAG_MAN) {
            print_man();
            return STATUS_NOT_FOUND;
        }
        if (flag == FLAG_VERSION) {
            printf("cairnd %s\n", CAIRN_VERSION);
            return STATUS_NOT_FOUND;
        }
        if (flag == '?' || flag == ':')
            return bad_flag(argv, fault);
        if (flag == FLAG_CONFIG)
            *file = optarg;
        else if (flag == FLAG_CHECK && setting)
            config->check_config = true;
        else if (flag <= (int)SETTINGS && setting)
            status = set(config, (size_t)flag - 1, optarg == NULL ? "true" : optarg, "flag", fault);
        if (status != STATUS_OK)
            return status;
    }
    if (optind < argc)
        return fault_set(fault, STATUS_INVALID, "SETTING_UNKNOWN",
                         "unexpected argument `%s`; see cairnd --help", argv[optind]);
    return STATUS_OK;
}

/* ---- the whole ---- */

static bool is_loopback(const char *address)
{
    return strncmp(address, "127.", 4) == 0 || strncmp(address, "localhost:", 10) == 0 ||
           strncmp(address, "[::1]:", 6) == 0;
}

static void fill_derived(struct config *config)
{
    const char *state = getenv("XDG_STATE_HOME");
    const char *home = getenv("HOME");

    if (config->name[0] == '\0' && gethostname(config->name, sizeof config->name - 1) != 0)
        snprintf(config->name, sizeof config->name, "node");
    if (config->data_dir[0] == '\0') {
        if (state != NULL && state[0] != '\0')
            snprintf(config->data_dir, sizeof config->data_dir, "%s/cairn", state);
        else if (home != NULL && home[0] != '\0')
            snprintf(config->data_dir, sizeof config->data_dir, "%s/.local/state/cairn", home);
        else
            snprintf(config->data_dir, sizeof config->data_dir, "/var/lib/cairn");
    }
    if (config->advertise[0] == '\0')
        snprintf(config->advertise, sizeof config->advertise, "%s", config->listen);
    if (config->peer_tls_certificate[0] == '\0' && config->peer_tls_key[0] == '\0') {
        snprintf(config->peer_tls_certificate, sizeof config->peer_tls_certificate, "%s", config->tls_certificate);
        snprintf(config->peer_tls_key, sizeof config->peer_tls_key, "%s", config->tls_key);
    }
    if (config->peer_tls_ca[0] == '\0')
        snprintf(config->peer_tls_ca, sizeof config->peer_tls_ca, "%s", config->tls_ca);
    if (config->bootstrap_expect == 0 && config->join_count == 0 && config->discover_count == 0)
        config->bootstrap_expect = 1;
}

static bool is_address(const char *text)
{
    const char *colon = strrchr(text, ':');

    return colon != NULL && colon != text && atoi(colon + 1) > 0 && atoi(colon + 1) <= 65535 &&
           strspn(colon + 1, "0123456789") == strlen(colon + 1);
}

/* What isn't said to be something else is one of static's addresses: the list was cut at its commas. */
static enum status check_discover(const struct config *config, struct fault *fault)
{
    for (size_t i = 0; i < config->discover_count; i++) {
        const char *text = config->discover[i];

        if (strncmp(text, "dns:", 4) == 0 || strcmp(text, "multicast") == 0 ||
            strncmp(text, "multicast:", 10) == 0)
            continue;
        if (!is_address(strncmp(text, "static:", 7) == 0 ? text + 7 : text))
            return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                             "discover has `%s`; it must be static:HOST:PORT,..., dns:NAME[:PORT] or "
                             "multicast[:GROUP:PORT]",
                             text);
    }
    return STATUS_OK;
}

/* All of it or nothing: half of TLS is none. */
static enum status check_tls(const struct config *config, struct fault *fault)
{
    bool on = config->tls_certificate[0] != '\0';

    if (on && (config->tls_key[0] == '\0' || config->tls_ca[0] == '\0'))
        return fault_set(fault, STATUS_INVALID, "SETTING_INVALID", "tls-certificate needs tls-key and tls-ca beside it");
    if (on && (config->peer_tls_certificate[0] == '\0' || config->peer_tls_key[0] == '\0'))
        return fault_set(fault, STATUS_INVALID, "SETTING_INVALID", "peer-tls-certificate needs peer-tls-key, and the reverse");
    if (!on && (config->tls_key[0] != '\0' || config->tls_ca[0] != '\0' || config->tls_revoked[0] != '\0' ||
                config->peer_tls_certificate[0] != '\0' || config->peer_tls_ca[0] != '\0' ||
                config->policy[0] != '\0' || config->token_keys[0] != '\0'))
        return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                         "without tls-certificate there is no TLS, and what else is said of TLS, roles and tokens would "
                         "protect nobody");
    if (!on && !config->insecure && !is_loopback(config->listen))
        return fault_set(fault, STATUS_INVALID, "INSECURE",
                         "listen is %s, which others can reach, and there is no TLS; give it --tls-certificate, --tls-key "
                         "and --tls-ca (cairnctl cert makes them), use a loopback address, or say --insecure",
                         config->listen);
    return STATUS_OK;
}

static enum status check(const struct config *config, struct fault *fault)
{
    if (check_tls(config, fault) != STATUS_OK)
        return fault->status;
    if (check_discover(config, fault) != STATUS_OK)
        return fault->status;
    if (config->cluster_name[0] == '\0')
        return fault_set(fault, STATUS_INVALID, "SETTING_INVALID", "cluster-name is empty");
    if (strrchr(config->listen, ':') == NULL)
        return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                         "listen is `%s`; it must be host:port", config->listen);
    if (config->http[0] != '\0' && strrchr(config->http, ':') == NULL)
        return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                         "http is `%s`; it must be host:port", config->http);
    if (config->heartbeat_interval_ms * 2 > config->election_timeout_ms)
        return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                         "election-timeout must be at least twice heartbeat-interval");
    if (strcmp(config->log_format, "text") != 0 && strcmp(config->log_format, "json") != 0)
        return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                         "log-format is `%s`; it must be text or json", config->log_format);
    if (strcmp(config->log_level, "debug") != 0 && strcmp(config->log_level, "info") != 0 &&
        strcmp(config->log_level, "warn") != 0 && strcmp(config->log_level, "error") != 0)
        return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                         "log-level is `%s`; it must be debug, info, warn or error",
                         config->log_level);
    return STATUS_OK;
}

static void print_settings(const struct config *config)
{
    for (size_t i = 0; i < SETTINGS; i++) {
        const struct setting *s = &settings[i];
        const void *at = (const char *)config + s->offset;
        char name[64];

        file_name(s->name, name, sizeof name);
        printf("%s: ", name);
        if (s->kind == TEXT) {
            printf("%s", (const char *)at);
        } else if (s->kind == SWITCH) {
            printf("%s", *(const bool *)at ? "true" : "false");
        } else if (s->kind == LIST) {
            size_t count = *(const size_t *)(const void *)((const char *)config + s->count_offset);

            printf("[");
            for (size_t j = 0; j < count; j++)
                printf("%s%s", j == 0 ? "" : ", ", (const char *)at + j * s->room);
            printf("]");
        } else {
            printf("%llu%s", (unsigned long long)*(const uint64_t *)at,
                   s->kind == DURATION ? "ms" : "");
        }
        printf("  # %s\n", sources[i]);
    }
}

enum status config_load(struct config *config, int argc, char **argv, struct fault *fault)
{
    const char *file = getenv("CAIRN_CONFIG");
    enum status status;

    *config = (struct config){0};
    status = from_flags(NULL, argc, argv, &file, fault);
    if (status == STATUS_OK)
        status = from_defaults(config, fault);
    if (status == STATUS_OK && file != NULL)
        status = from_file(config, file, fault);
    if (status == STATUS_OK)
        status = from_environment(config, fault);
    if (status == STATUS_OK)
        status = from_flags(config, argc, argv, &file, fault);
    if (status != STATUS_OK)
        return status;
    fill_derived(config);
    status = check(config, fault);
    if (status == STATUS_OK && config->check_config) {
        print_settings(config);
        return STATUS_NOT_FOUND;
    }
    return status;
}

/* The table of commands, and all that is made of it: parsing, help, completion, the man page. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "ctl.h"

#define READ_FLAGS (FLAG_LIMIT | FLAG_BACKWARDS | FLAG_STALE)
#define MAKE_FLAGS (FLAG_CLUSTER | FLAG_DAYS | FLAG_FOLDER)

const struct ctl_command ctl_commands[] = {
    {"cluster", "status", "", 0, 0, "sum up: members, owners, moves; exit 1 while a partition has no owner", FLAG_WATCH,
     cluster_status},
    {"cluster", "members", "", 0, 0, "members with their state, zone, shares", FLAG_WATCH, cluster_members},
    {"cluster", "partitions", "", 0, 0, "who owns, holds and should hold each partition", FLAG_WATCH,
     cluster_partitions},
    {"cluster", "transfer", "PARTITION NODE", 2, 2, "let a node that holds the partition own it", 0, cluster_transfer},
    {"cluster", "drain", "NODE", 1, 1, "move everything away from a node, and wait until it holds nothing",
     FLAG_FORCE | FLAG_CANCEL | FLAG_NO_WAIT, cluster_drain},
    {"cluster", "remove", "NODE", 1, 1, "a node that is drained, or dead for good, is no member any more", 0,
     cluster_remove},
    {"cluster", "settings", "[NAME=VALUE]...", 0, 8, "show or change what may change while the cluster runs", 0,
     cluster_settings},
    {"aggregate", "show", "ID", 1, 1, "how many events, and the last one", FLAG_STALE, aggregate_show},
    {"aggregate", "history", "ID", 1, 1, "its events", READ_FLAGS, aggregate_history},
    {"command", "send", "AGGREGATE_TYPE AGGREGATE_ID TYPE [JSON]", 3, 4, "send a command and print its outcome",
     FLAG_ID | FLAG_METADATA | FLAG_EXPECT | FLAG_SUBJECT, command_send},
    {"event", "read", "[ID_PREFIX]", 0, 1, "the log of all aggregates, or of those whose id begins so",
     READ_FLAGS | FLAG_TYPE, event_read},
    {"subject", "forget", "SUBJECT", 1, 1, "destroy the subject's keys on all nodes: payloads about it are gone for good",
     FLAG_FORCE, subject_forget},
    {"key", "master", "FILE [PKCS11_URI]", 1, 2,
     "add a new master key, the first one, to the file for --master-key of the nodes; with a URI, one that the key in "
     "that token derives",
     0, key_master},
    {"key", "check", "FILE|PKCS11_URI", 1, 1,
     "read master keys as a node would; the check value of each is the same wherever the key is", 0, key_check},
    {"cert", "ca", "", 0, 0, "make a CA: ca.crt and ca.key; keep the key away from the nodes", MAKE_FLAGS, cert_ca},
    {"cert", "node", "NAME", 1, 1, "make a node's certificate, for its name and hosts", MAKE_FLAGS | FLAG_HOST, cert_node},
    {"cert", "operator", "NAME", 1, 1, "make the certificate of somebody who may change the cluster", MAKE_FLAGS,
     cert_operator},
    {"cert", "client", "NAME", 1, 1, "make the certificate of an application", MAKE_FLAGS, cert_client},
    {"cert", "revoke", "FILE", 1, 1, "add a certificate to revoked/ca.crl, for --tls-revoked of the nodes", FLAG_FOLDER,
     cert_revoke},
    {"cert", "list", "[FILE]...", 0, 64, "who they are for and how long they last; exit 1 when one ends within 30 days",
     FLAG_FOLDER, cert_list},
};
const size_t ctl_command_count = COUNT_OF(ctl_commands);

/* ---- flags ---- */

static const struct flag {
    const char *name;
    char letter;
    const char *value; /* NULL: none */
    unsigned bit;      /* 0: of every command */
    const char *help;
} flags[] = {
    {"endpoint", 'e', "HOST:PORT,...", 0, "nodes to ask, one after the other (CAIRN_ENDPOINT; localhost:7411)"},
    {"ca", 'C', "FILE", 0, "CAs of the nodes: turns TLS on (CAIRN_CA)"},
    {"cert", 'R', "FILE", 0, "your certificate (CAIRN_CERT)"},
    {"key", 'K', "FILE", 0, "its private key (CAIRN_KEY)"},
    {"token", 'T', "FILE", 0, "a bearer token instead (CAIRN_TOKEN)"},
    {"output", 'o', "table|json", 0, "for people or for scripts (table)"},
    {"timeout", 't', "SECONDS", 0, "how long to wait for an answer (30)"},
    {"help", 'h', NULL, 0, "this text, or a command's"},
    {"version", 'V', NULL, 0, "the version"},
    {"watch", 'w', NULL, FLAG_WATCH, "again twice a second, until you end it"},
    {"force", 'f', NULL, FLAG_FORCE, "also when it costs something: replicas, or data for good"},
    {"cancel", 'c', NULL, FLAG_CANCEL, "take a drain back"},
    {"no-wait", 'n', NULL, FLAG_NO_WAIT, "don't wait until it is done"},
    {"id", 'i', "ID", FLAG_ID, "the command's id: a repeat gets the recorded outcome (made when absent)"},
    {"metadata", 'm', "KEY=VALUE", FLAG_METADATA, "repeatable"},
    {"expect", 'x', "SEQUENCE", FLAG_EXPECT, "only while the aggregate has exactly so many events"},
    {"subject", 'S', "SUBJECT", FLAG_SUBJECT, "whom the payload is about: sealed by a key that can be destroyed"},
    {"limit", 'l', "N", FLAG_LIMIT, "at most so many events"},
    {"backwards", 'b', NULL, FLAG_BACKWARDS, "the newest first"},
    {"stale", 's', NULL, FLAG_STALE, "what the node that is asked has, without asking the owner"},
    {"type", 'y', "TYPE", FLAG_TYPE, "events of this type only"},
    {"cluster", 'N', "NAME", FLAG_CLUSTER, "the cluster's name, as in --cluster-name of the nodes (cairn)"},
    {"days", 'd', "N", FLAG_DAYS, "how long it lasts (a CA 3650, a node or client 365, an operator 90)"},
    {"host", 'H', "NAME|ADDRESS", FLAG_HOST, "repeatable (the node's name, localhost, 127.0.0.1, ::1)"},
    {"dir", 'D', "FOLDER", FLAG_FOLDER, "where the files are and go (.)"},
};

static void print_flags(FILE *out, unsigned bits)
{
    for (size_t i = 0; i < COUNT_OF(flags); i++)
        if (flags[i].bit == 0 ? bits == 0 : (flags[i].bit & bits) != 0) {
            char text[64];

            snprintf(text, sizeof text, "-%c, --%s%s%s", flags[i].letter, flags[i].name,
                     flags[i].value == NULL ? "" : " ", flags[i].value == NULL ? "" : flags[i].value);
            fprintf(out, "  %-34s %s\n", text, flags[i].help);
        }
}

static void print_help(FILE *out)
{
    fputs("cairnctl: look at a Cairn cluster and give it orders\n\nUsage: cairnctl [FLAGS] NOUN VERB [ARGUMENTS]\n\n",
          out);
    for (size_t i = 0; i < ctl_command_count; i++) {
        const struct ctl_command *c = &ctl_commands[i];
        char text[80];

        snprintf(text, sizeof text, "%s %s %s", c->noun, c->verb, c->arguments);
        fprintf(out, strlen(text) > 34 ? "  %s\n  %36s" : "  %-35s", text, "");
        if (strlen(text) <= 34)
            fputs(" ", out);
        fprintf(out, "%s\n", c->help);
    }
    fputs("  completion bash                     a script for bash: source <(cairnctl completion bash)\n\nFlags:\n", out);
    print_flags(out, 0);
    fputs("\nExit codes: 0 fine, 1 refused or not as it should be, 2 wrong usage, 3 nobody answers.\n", out);
}

static void print_command_help(const struct ctl_command *c)
{
    printf("Usage: cairnctl %s %s %s\n\n%s\n", c->noun, c->verb, c->arguments, c->help);
    if (c->flags != 0) {
        puts("");
        print_flags(stdout, c->flags);
    }
}

/* ---- made of the table ---- */

static void print_completion(void)
{
    puts("_cairnctl() {\n  local cur=${COMP_WORDS[COMP_CWORD]} words=() w\n"
         "  for w in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do [[ $w == -* ]] || words+=(\"$w\"); done\n"
         "  case \"${words[*]}\" in");
    for (size_t i = 0; i < ctl_command_count; i++) {
        const struct ctl_command *c = &ctl_commands[i];

        printf("    \"%s %s\"*) COMPREPLY=($(compgen -W \"", c->noun, c->verb);
        for (size_t k = 0; k < COUNT_OF(flags); k++)
            if (flags[k].bit == 0 || (flags[k].bit & c->flags) != 0)
                printf("--%s ", flags[k].name);
        puts("\" -- \"$cur\")) ;;");
    }
    for (size_t i = 0; i < ctl_command_count; i++) {
        if (i > 0 && strcmp(ctl_commands[i].noun, ctl_commands[i - 1].noun) == 0)
            continue;
        printf("    \"%s\") COMPREPLY=($(compgen -W \"", ctl_commands[i].noun);
        for (size_t k = 0; k < ctl_command_count; k++)
            if (strcmp(ctl_commands[k].noun, ctl_commands[i].noun) == 0)
                printf("%s ", ctl_commands[k].verb);
        puts("\" -- \"$cur\")) ;;");
    }
    printf("    \"\") COMPREPLY=($(compgen -W \"");
    for (size_t i = 0; i < ctl_command_count; i++)
        if (i == 0 || strcmp(ctl_commands[i].noun, ctl_commands[i - 1].noun) != 0)
            printf("%s ", ctl_commands[i].noun);
    puts("completion --help --endpoint --output\" -- \"$cur\")) ;;\n  esac\n}\ncomplete -F _cairnctl cairnctl");
}

static void print_man(void)
{
    puts(".TH CAIRNCTL 1 \"\" \"Cairn " CAIRN_VERSION "\"\n.SH NAME\ncairnctl \\- look at a Cairn cluster and give it orders\n"
         ".SH SYNOPSIS\n.B cairnctl\n[FLAGS] NOUN VERB [ARGUMENTS]\n.SH COMMANDS");
    for (size_t i = 0; i < ctl_command_count; i++)
        printf(".TP\n.B %s %s %s\n%s\n", ctl_commands[i].noun, ctl_commands[i].verb, ctl_commands[i].arguments,
               ctl_commands[i].help);
    puts(".SH FLAGS");
    for (size_t i = 0; i < COUNT_OF(flags); i++)
        printf(".TP\n.B \\-%c, \\-\\-%s %s\n%s\n", flags[i].letter, flags[i].name,
               flags[i].value == NULL ? "" : flags[i].value, flags[i].help);
    puts(".SH EXIT STATUS\n0 fine, 1 refused or not as it should be, 2 wrong usage, 3 nobody answers.\n"
         ".SH ENVIRONMENT\nCAIRN_ENDPOINT, CAIRN_CA, CAIRN_CERT, CAIRN_KEY and CAIRN_TOKEN stand for the flags of these "
         "names.\n.SH SEE ALSO\n.BR cairnd (8)");
}

/* ---- parsing ---- */

static bool number(const char *text, uint64_t *out)
{
    char *end;

    *out = strtoull(text, &end, 10);
    return end != text && *end == '\0' && text[0] != '-';
}

static int take_flag(struct ctl *ctl, char letter, const char *value, const char **endpoint)
{
    uint64_t seconds;

    switch (letter) {
    case 'e':
        *endpoint = value;
        break;
    case 'o':
        if (strcmp(value, "json") != 0 && strcmp(value, "table") != 0)
            return usage_error("output is `%s`; it must be table or json", value);
        ctl->json = strcmp(value, "json") == 0;
        break;
    case 't':
        if (!number(value, &seconds) || seconds == 0 || seconds > 86400)
            return usage_error("timeout is `%s`; it must be 1 to 86400 seconds", value);
        ctl->timeout_ms = (uint32_t)seconds * 1000;
        break;
    case 'w':
        ctl->watch = true;
        break;
    case 'f':
        ctl->force = true;
        break;
    case 'c':
        ctl->cancel = true;
        break;
    case 'n':
        ctl->no_wait = true;
        break;
    case 'i':
        ctl->id = value;
        break;
    case 'm':
        if (ctl->metadata_count == METADATA_MAX)
            return usage_error("there are more than %d entries of metadata", METADATA_MAX);
        ctl->metadata[ctl->metadata_count++] = value;
        break;
    case 'x':
        if (!number(value, &ctl->expect))
            return usage_error("expect is `%s`; it must be a whole number", value);
        ctl->has_expect = true;
        break;
    case 'S':
        ctl->subject = value;
        break;
    case 'l':
        if (!number(value, &ctl->limit))
            return usage_error("limit is `%s`; it must be a whole number", value);
        break;
    case 'b':
        ctl->backwards = true;
        break;
    case 's':
        ctl->stale = true;
        break;
    case 'y':
        ctl->type = value;
        break;
    case 'N':
        ctl->cluster = value;
        break;
    case 'D':
        ctl->folder = value;
        break;
    case 'd':
        if (!number(value, &ctl->days) || ctl->days == 0 || ctl->days > 7305)
            return usage_error("days is `%s`; it must be 1 to 7305", value);
        break;
    case 'H':
        if (ctl->host_count == HOSTS_MAX)
            return usage_error("there are more than %d hosts", HOSTS_MAX);
        ctl->hosts[ctl->host_count++] = value;
        break;
    case 'C':
        ctl->ca = value;
        break;
    case 'R':
        ctl->certificate = value;
        break;
    case 'K':
        ctl->key = value;
        break;
    case 'T':
        ctl->token = value;
        break;
    }
    return EXIT_FINE;
}

static const struct ctl_command *find(const char *noun, const char *verb)
{
    for (size_t i = 0; i < ctl_command_count; i++)
        if (strcmp(ctl_commands[i].noun, noun) == 0 && (verb == NULL || strcmp(ctl_commands[i].verb, verb) == 0))
            return &ctl_commands[i];
    return NULL;
}

static int unknown(const char *noun, const char *verb)
{
    if (find(noun, NULL) == NULL)
        return usage_error("there is no command `%s`", noun);
    return verb == NULL ? usage_error("`%s` needs a verb", noun) : usage_error("`%s` can't `%s`", noun, verb);
}

static int read_token(const char *path, char *out, size_t room)
{
    FILE *file = fopen(path, "re");
    size_t len = file == NULL ? 0 : fread(out, 1, room - 1, file);

    if (file != NULL)
        fclose(file);
    out[len] = '\0';
    out[strcspn(out, " \t\r\n")] = '\0';
    return out[0] != '\0' ? EXIT_FINE : usage_error("there is no token in %s", path);
}

/* A file that isn't there would only show as a handshake that fails. */
static int check_readable(const char *ca, const char *certificate, const char *key)
{
    const char *const paths[] = {ca, certificate, key};

    for (size_t i = 0; i < COUNT_OF(paths); i++)
        if (paths[i] != NULL && access(paths[i], R_OK) != 0)
            return usage_error("cannot read %s", paths[i]);
    return EXIT_FINE;
}

static int run(struct ctl *ctl, const struct ctl_command *command, const char *endpoint)
{
    struct cairn_client_tls tls = {ctl->ca, ctl->certificate, ctl->key, NULL};
    char token[9000];
    int code = EXIT_FINE;

    if (strcmp(command->noun, "cert") == 0 || strcmp(command->noun, "key") == 0)
        return command->run(ctl);
    if (ctl->ca == NULL && (ctl->certificate != NULL || ctl->token != NULL))
        return usage_error("--cert and --token need --ca: without TLS they would go to whoever listens");
    if ((ctl->certificate == NULL) != (ctl->key == NULL))
        return usage_error("--cert and --key go together");
    if (ctl->token != NULL) {
        code = read_token(ctl->token, token, sizeof token);
        tls.token = token;
    }
    if (code == EXIT_FINE)
        code = check_readable(ctl->ca, ctl->certificate, ctl->key);
    if (code != EXIT_FINE)
        return code;
    ctl->client = cairn_client_new(endpoint, ctl->ca == NULL ? NULL : &tls);
    if (ctl->client == NULL)
        return usage_error("endpoint is `%s`; it must be HOST:PORT, comma-separated", endpoint);
    code = command->run(ctl);
    cairn_client_free(ctl->client);
    return code;
}

static const char *from_environment(const char *name)
{
    const char *value = getenv(name);

    return value == NULL || value[0] == '\0' ? NULL : value;
}

int main(int argc, char **argv)
{
    struct option options[COUNT_OF(flags) + 2] = {{0}};
    char letters[COUNT_OF(flags) * 2 + 2] = ":";
    struct ctl ctl = {.timeout_ms = 30000,
                      .ca = from_environment("CAIRN_CA"),
                      .certificate = from_environment("CAIRN_CERT"),
                      .key = from_environment("CAIRN_KEY"),
                      .token = from_environment("CAIRN_TOKEN")};
    const struct ctl_command *command;
    const char *endpoint = getenv("CAIRN_ENDPOINT");
    unsigned given = 0;
    bool help = false;
    int letter;

    for (size_t i = 0; i < COUNT_OF(flags); i++) {
        options[i] = (struct option){flags[i].name, flags[i].value == NULL ? no_argument : required_argument, NULL,
                                     flags[i].letter};
        snprintf(letters + strlen(letters), 3, flags[i].value == NULL ? "%c" : "%c:", flags[i].letter);
    }
    options[COUNT_OF(flags)] = (struct option){"man", no_argument, NULL, 'M'};
    opterr = 0;
    while ((letter = getopt_long(argc, argv, letters, options, NULL)) != -1) {
        int code;

        if (letter == '?' || letter == ':')
            return usage_error(letter == ':' ? "flag %s needs a value" : "there is no flag %s", argv[optind - 1]);
        if (letter == 'M') {
            print_man();
            return EXIT_FINE;
        }
        if (letter == 'V') {
            puts("cairnctl " CAIRN_VERSION);
            return EXIT_FINE;
        }
        help = help || letter == 'h';
        for (size_t i = 0; i < COUNT_OF(flags); i++)
            if (flags[i].letter == letter)
                given |= flags[i].bit;
        code = take_flag(&ctl, (char)letter, optarg, &endpoint);
        if (code != EXIT_FINE)
            return code;
    }
    if (argc - optind == 2 && strcmp(argv[optind], "completion") == 0 && strcmp(argv[optind + 1], "bash") == 0) {
        print_completion();
        return EXIT_FINE;
    }
    if (optind == argc) {
        print_help(help ? stdout : stderr);
        return help ? EXIT_FINE : EXIT_USAGE;
    }
    command = argc - optind < 2 ? NULL : find(argv[optind], argv[optind + 1]);
    if (command == NULL)
        return unknown(argv[optind], argc - optind < 2 ? NULL : argv[optind + 1]);
    if (help) {
        print_command_help(command);
        return EXIT_FINE;
    }
    ctl.count = argc - optind - 2;
    ctl.arguments = argv + optind + 2;
    if (ctl.count < command->least || ctl.count > command->most)
        return usage_error("usage: cairnctl %s %s %s", command->noun, command->verb, command->arguments);
    if ((given & ~command->flags) != 0)
        for (size_t i = 0; i < COUNT_OF(flags); i++)
            if ((flags[i].bit & given & ~command->flags) != 0)
                return usage_error("--%s isn't for `%s %s`", flags[i].name, command->noun, command->verb);
    return run(&ctl, command, endpoint == NULL || endpoint[0] == '\0' ? "localhost:7411" : endpoint);
}

/*
 * cairnctl: an operator's view of a cluster and orders to it. One table (main.c) drives parsing, help, completion and the
 * man page; each noun has a file of its own.
 */
#ifndef CAIRN_CTL_H
#define CAIRN_CTL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "client.h"

struct fault;

enum { EXIT_FINE, EXIT_REFUSED, EXIT_USAGE, EXIT_UNREACHABLE };

/* Flags of a command, as bits. */
enum {
    FLAG_WATCH = 1 << 0,
    FLAG_FORCE = 1 << 1,
    FLAG_CANCEL = 1 << 2,
    FLAG_NO_WAIT = 1 << 3,
    FLAG_ID = 1 << 4,
    FLAG_METADATA = 1 << 5,
    FLAG_EXPECT = 1 << 6,
    FLAG_LIMIT = 1 << 7,
    FLAG_BACKWARDS = 1 << 8,
    FLAG_STALE = 1 << 9,
    FLAG_TYPE = 1 << 10,
    FLAG_CLUSTER = 1 << 11,
    FLAG_DAYS = 1 << 12,
    FLAG_HOST = 1 << 13,
    FLAG_FOLDER = 1 << 14,
    FLAG_SUBJECT = 1 << 15,
};

enum { METADATA_MAX = 32, HOSTS_MAX = 32 };

struct ctl {
    struct cairn_client *client;
    const char *ca, *certificate, *key, *token; /* paths; NULL for none */
    bool json;
    bool watch, force, cancel, no_wait, backwards, stale;
    uint32_t timeout_ms;
    const char *id;
    const char *subject;
    const char *metadata[METADATA_MAX];
    size_t metadata_count;
    bool has_expect;
    uint64_t expect;
    uint64_t limit;
    const char *type;
    const char *cluster;
    const char *folder;
    const char *hosts[HOSTS_MAX];
    size_t host_count;
    uint64_t days;
    int count; /* of arguments behind the command's words */
    char **arguments;
};

struct ctl_command {
    const char *noun;
    const char *verb;
    const char *arguments; /* as the usage shows them */
    int least, most;       /* how many */
    const char *help;
    unsigned flags;
    int (*run)(struct ctl *ctl);
};

extern const struct ctl_command ctl_commands[];
extern const size_t ctl_command_count;

/* ---- cluster.c ---- */
int cluster_status(struct ctl *ctl);
int cluster_members(struct ctl *ctl);
int cluster_partitions(struct ctl *ctl);
int cluster_transfer(struct ctl *ctl);
int cluster_drain(struct ctl *ctl);
int cluster_remove(struct ctl *ctl);
int cluster_settings(struct ctl *ctl);

/* ---- data.c ---- */
int aggregate_show(struct ctl *ctl);
int aggregate_history(struct ctl *ctl);
int command_send(struct ctl *ctl);
int event_read(struct ctl *ctl);

/* ---- cert.c: these ask nobody, and have no client ---- */
int cert_ca(struct ctl *ctl);
int cert_node(struct ctl *ctl);
int cert_operator(struct ctl *ctl);
int cert_client(struct ctl *ctl);
int cert_revoke(struct ctl *ctl);
int cert_list(struct ctl *ctl);
int key_master(struct ctl *ctl);
int key_check(struct ctl *ctl);
int subject_forget(struct ctl *ctl);

/* ---- output.c ---- */

/* A table: cells row by row below the heads, which NULL ends. */
struct table;
struct table *table_new(const char *const *heads);
void table_cell(struct table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Prints and frees it. */
void table_print(struct table *table);
/* Prints and frees it, with a newline. */
void print_json(json_t *value);
/* One line that replaces itself on a terminal. */
void progress(const char *format, ...) __attribute__((format(printf, 1, 2)));
void progress_end(void);
/* Says why on stderr, and gives the exit code. */
int complain(const struct ctl *ctl, const struct cairn_error *error);
/* The same of what is done here, without a node. */
int refused_here(const struct fault *fault);
int usage_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif

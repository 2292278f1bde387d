/*
 * The daemon's settings: one table gives each its name in flag, environment and file, its default
 * and its help. Precedence: flag, environment, file, default.
 */
#ifndef CAIRN_SERVER_CONFIG_H
#define CAIRN_SERVER_CONFIG_H

#include "base/base.h"

enum { JOIN_MAX = 32, MODULES_MAX = 16, DISCOVER_MAX = 16, PARTITIONS_DEFAULT = 64 };

struct config {
    char name[NAME_BYTES_MAX + 1];
    char data_dir[512];
    char listen[ADDRESS_BYTES_MAX + 1];
    char advertise[ADDRESS_BYTES_MAX + 1];
    char http[ADDRESS_BYTES_MAX + 1];
    char join[JOIN_MAX][ADDRESS_BYTES_MAX + 1];
    size_t join_count;
    char discover[DISCOVER_MAX][ADDRESS_BYTES_MAX + 1];
    size_t discover_count;
    char dns_server[ADDRESS_BYTES_MAX + 1];
    char cluster_name[NAME_BYTES_MAX + 1];
    uint64_t bootstrap_expect;
    uint64_t partitions;
    uint64_t replication_factor;
    char zone[ZONE_BYTES_MAX + 1];
    char replace[NAME_BYTES_MAX + 1];
    uint64_t capacity;
    uint64_t member_grace_ms;
    uint64_t moves_at_once;
    uint64_t transfer_bytes;
    uint64_t balance_after_ms;
    char modules[MODULES_MAX][512];
    size_t module_count;
    char log_format[8];
    char log_level[8];
    uint64_t election_timeout_ms;
    uint64_t heartbeat_interval_ms;
    uint64_t payload_bytes_max;
    uint64_t memory_bytes;
    uint64_t disk_reserve_bytes;
    uint64_t outcome_retention_ms;
    uint64_t snapshot_every;
    uint64_t snapshot_after_ms;
    uint64_t default_timeout_ms;
    uint64_t drain_timeout_ms;
    char tls_certificate[512];
    char tls_key[512];
    char tls_ca[512];
    char tls_revoked[512];
    char peer_tls_certificate[512];
    char peer_tls_key[512];
    char peer_tls_ca[512];
    char policy[512];
    char token_keys[512];
    char token_audience[128];
    char audit_log[512];
    char master_key[512];
    uint64_t identity_rate;
    uint64_t identity_in_flight;
    uint64_t identity_streams;
    uint64_t connections;
    uint64_t connections_per_address;
    uint64_t connection_idle_ms;
    uint64_t connection_memory_bytes;
    bool insecure;
    bool reflection;
    bool check_config;
};

/* Reads everything and checks it. OK: start; NOT_FOUND: said what was asked (help, version,
 * check), exit 0; INVALID: the fault says what is wrong, exit 2. */
MUST_USE enum status config_load(struct config *config, int argc, char **argv,
                                 struct fault *fault);

#define CAIRN_VERSION "0.1.0"

#endif

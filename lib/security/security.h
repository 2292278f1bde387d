/*
 * Who calls, and what they may. Identities come from certificates and bearer tokens, roles from the policy.
 *
 *   certificate or token ─▶ principal ─▶ grants of the policy ─▶ yes, or a fault that says what is missing
 *
 * An identity is what the certificate's subject alternative name says: a URI as it is, else "dns:NAME", else
 * "cn:NAME" of the subject; of a token "token:SUBJECT". Of the cluster's own kind are
 *
 *   cairn://CLUSTER/node/NAME        a node: peer links
 *   cairn://CLUSTER/operator/NAME    everything that is for operators, and all that clients may
 *   cairn://CLUSTER/client/NAME      without a policy all that clients may; with one, what it grants
 *
 * Never does this folder take a byte from a socket: who calls it has them from a finished handshake.
 *
 * Thread rule: any thread.
 */
#ifndef CAIRN_SECURITY_H
#define CAIRN_SECURITY_H

#include "base/base.h"

#define IDENTITY_BYTES_MAX 255

enum role {
    ROLE_NODE = 1,        /* peer links: gossip, votes, the log */
    ROLE_OPERATOR = 2,    /* changes of the cluster */
    ROLE_DISPATCHER = 4,  /* commands */
    ROLE_WORKER = 8,      /* decides for aggregate types: also appends and snapshots */
    ROLE_READER = 16,     /* events */
};
enum { ROLE_CLIENTS = ROLE_DISPATCHER | ROLE_WORKER | ROLE_READER };

/* ---- certificates (certificate.c): facts, nothing is trusted here ---- */

struct certificate {
    char identity[IDENTITY_BYTES_MAX + 1];
    char issuer[256];
    char serial[64]; /* hexadecimal */
    int64_t not_before_s;
    int64_t not_after_s; /* of the epoch */
};

/* The first certificate of the PEM text. INVALID when it is none, or its name can't be an identity. */
MUST_USE enum status certificate_read(struct bytes pem, struct certificate *out, struct fault *fault);
/* The same of a file; one that can't be read is a fault that names it. */
MUST_USE enum status certificate_load(const char *path, struct certificate *out, struct fault *fault);
/* Is the chain good up to one of the bundle's, for this purpose? */
MUST_USE enum status certificate_verify(struct bytes pem, struct bytes chain, const char *roots_path, struct fault *fault);
/* KIND and NAME of cairn://CLUSTER/KIND/NAME; false when it isn't of this cluster. */
bool identity_of_cluster(const char *identity, const char *cluster, char *kind, size_t kind_room, char *name,
                         size_t name_room);
/* NULL when the text can be an identity, or why it can't: no control characters, no "..", no asterisk. */
const char *identity_problem(struct bytes text);

/* ---- files that must not be anybody's (files.c) ---- */

/* INVALID when others can read the key, or it isn't one. */
MUST_USE enum status key_file_check(const char *path, struct fault *fault);
/* INVALID when anybody but its owner can read it; `what` it is, in messages. */
MUST_USE enum status secret_file_check(const char *path, const char *what, struct fault *fault);
/* INVALID when others can write it, or it isn't a file. */
MUST_USE enum status policy_file_check(const char *path, struct fault *fault);
/* Changes whenever the file does; 0 when there is none. */
uint64_t file_mark(const char *path);
uint64_t folder_mark(const char *path); /* the same for all files in it */
/* The whole file in the arena, up to `limit` bytes. */
MUST_USE enum status file_read(const char *path, size_t limit, struct arena *arena, struct bytes *out,
                               struct fault *fault);

/* The whole file at once, or as it was; for its owner alone. */
MUST_USE enum status file_replace(const char *path, struct bytes text, struct fault *fault);

/* ---- making certificates (issue.c) ---- */

struct issue {
    const char *kind; /* "ca", "node", "operator" or "client" */
    const char *cluster;
    const char *name;
    const char *const *hosts; /* names and addresses for a node's certificate */
    size_t host_count;
    uint32_t days;
    const char *ca_certificate; /* paths; not of a CA */
    const char *ca_key;
    const char *certificate; /* paths to write: an existing key is never overwritten */
    const char *key;
};

/* Elliptic-curve keys (P-256), files 0600 and 0644. */
MUST_USE enum status certificate_issue(const struct issue *issue, struct fault *fault);
/* Adds the certificate to the CA's revocation list at `crl`, which is made when there is none. */
MUST_USE enum status certificate_revoke(const char *certificate, const char *ca_certificate, const char *ca_key,
                                        const char *crl, struct fault *fault);

/* ---- the policy (policy.c) ---- */

struct policy;

MUST_USE enum status policy_load(struct policy **out, const char *path, struct fault *fault);
void policy_free(struct policy *policy);
size_t policy_grants(const struct policy *policy);
/* Does the grant name the identity? */
bool policy_names(const struct policy *policy, size_t grant, const char *identity);
uint32_t policy_roles(const struct policy *policy, size_t grant);
bool policy_aggregate_type(const struct policy *policy, size_t grant, const char *type);
bool policy_command_type(const struct policy *policy, size_t grant, const char *type);
/* NULL: all of them. */
bool policy_event_type(const struct policy *policy, size_t grant, const char *type);

/* ---- revoked certificates (revocation.c) ---- */

struct revocations;

/* Reads all lists (PEM) of the folder. */
MUST_USE enum status revocations_load(struct revocations **out, const char *folder, struct fault *fault);
void revocations_free(struct revocations *revocations);
bool revocations_has(const struct revocations *revocations, const struct certificate *certificate);

/* ---- bearer tokens (token.c) ---- */

struct token_keys;

struct token_claims {
    char subject[IDENTITY_BYTES_MAX + 1];
    int64_t expires_s;
};

/* A JWKS file with public keys: RSA or EC. */
MUST_USE enum status token_keys_load(struct token_keys **out, const char *path, struct fault *fault);
void token_keys_free(struct token_keys *keys);
/* RS256 and ES256 only; `audience` must be among the token's. */
MUST_USE enum status token_verify(const struct token_keys *keys, struct bytes token, const char *audience,
                                  int64_t now_s, struct token_claims *out, struct fault *fault);

/* ---- ciphers and master keys (cipher.c) ---- */

enum { SECRET_BYTES = 32 };

void secret_random(uint8_t *out, size_t len);
/* AES-256-GCM: adds nonce, ciphertext and tag to `out`. */
void secret_seal(const uint8_t key[SECRET_BYTES], struct bytes bound_to, struct bytes plain, struct buffer *out);
/* False, and nothing is added, when it isn't what was sealed so. */
bool secret_open(const uint8_t key[SECRET_BYTES], struct bytes bound_to, struct bytes sealed, struct buffer *out);
/* A text that tells keys apart, and says nothing about them. */
enum { SECRET_CHECK_TEXT = 9 };
void secret_check_value(const uint8_t key[SECRET_BYTES], char out[SECRET_CHECK_TEXT]);

/*
 * A file of master keys, one a line: an id, a space, and 32 bytes in base64 or the PKCS #11 URI of what derives them.
 * The first is the one that is used; the others still open what they have wrapped. INVALID names the line; others
 * may not read the file. Or, instead of the file, such a URI: one key, whose id is the object's name. May wait for a
 * token as long as that takes.
 */
MUST_USE enum status master_keys_read(const char *source, void *context,
                                      bool (*each)(void *context, const char *id, const uint8_t key[SECRET_BYTES]),
                                      struct fault *fault);
/* A new first line, in a file that is made when there is none: a random key, or the one that the URI derives. */
MUST_USE enum status master_key_add(const char *path, const char *id, const char *uri, struct fault *fault);

/* ---- keys that stay in their token (hsm.c) ---- */

bool is_pkcs11(const char *source);
/* The name of the object that the URI is about. */
MUST_USE enum status pkcs11_object(const char *uri, char *out, size_t room, struct fault *fault);
/* The master key `id` that the token's key gives. INVALID says what is wrong with the URI, token, PIN or key. */
MUST_USE enum status pkcs11_derive(const char *uri, const char *id, uint8_t out[SECRET_BYTES], struct fault *fault);

/* ---- what one identity may use (allowance.c) ---- */

enum use { USE_CALL, USE_STREAM, USES };

/* 0: no limit. */
struct limits {
    uint32_t rate; /* calls, streams and commands in streams, in a second */
    uint32_t under_way[USES];
};

struct allowance;

struct allowance *allowance_new(const char *identity);
struct allowance *allowance_hold(struct allowance *allowance);
void allowance_drop(struct allowance *allowance); /* NULL is fine */
const char *allowance_identity(const struct allowance *allowance);
bool allowance_is_unused(const struct allowance *allowance); /* held once only */
/* EXHAUSTED with the time to wait, and nothing counts. Not from two threads at once. */
MUST_USE enum status allowance_begin(struct allowance *allowance, enum use use, const struct limits *limits,
                                     uint64_t now_ms, struct fault *fault);
void allowance_end(struct allowance *allowance, enum use use); /* any thread */

/* ---- the whole (security.c) ---- */

struct security;
struct principal;

struct security_settings {
    const char *cluster_name;
    const char *policy;         /* path; empty for none */
    const char *peer_roots;     /* bundle that nodes' certificates must chain to */
    const char *revoked;        /* folder; empty for none */
    const char *token_keys;     /* path; empty for none */
    const char *token_audience;
    struct limits limits; /* of each identity but nodes */
};

/* A file that is no good is a fault that names it. */
MUST_USE enum status security_new(struct security **out, const struct security_settings *settings,
                                  struct fault *fault);
void security_free(struct security *security);
/* Once a second: takes changed files, keeping what was good when the new ones aren't, and bars who is expired. */
void security_tick(struct security *security, int64_t now_s);

/* Of a finished handshake: the certificate, empty for none; and the token, empty for none. *out is held. */
MUST_USE enum status security_identify(struct security *security, struct bytes pem, struct bytes chain,
                                       struct bytes token, int64_t now_s, struct principal **out,
                                       struct fault *fault);
struct principal *principal_hold(struct principal *principal);
void principal_drop(struct principal *principal); /* NULL is fine */
const char *principal_identity(const struct principal *principal);
bool principal_is_node(const struct principal *principal); /* by its certificate's name */
/* The name that the certificate gives a node; empty when it gives none. */
const char *principal_node_name(const struct principal *principal);

/* A NULL principal may everything: there is no TLS. The fault says which role is missing for what. */
MUST_USE enum status security_may(struct security *security, struct principal *principal, uint32_t roles,
                                  struct fault *fault);
MUST_USE enum status security_may_dispatch(struct security *security, struct principal *principal,
                                           struct bytes aggregate_type, struct bytes command_type,
                                           struct fault *fault);
MUST_USE enum status security_may_work(struct security *security, struct principal *principal,
                                       struct bytes aggregate_type, struct fault *fault);
/* No types: all of them. */
MUST_USE enum status security_may_read(struct security *security, struct principal *principal,
                                       const struct bytes *event_types, size_t count, struct fault *fault);

/* A call, a stream, or a command in a stream begins. Refused ones are EXHAUSTED, and aren't ended. NULL: no limits. */
MUST_USE enum status security_begin(struct security *security, struct principal *principal, enum use use,
                                    uint64_t now_ms, struct fault *fault);
void security_end(struct principal *principal, enum use use);

#endif

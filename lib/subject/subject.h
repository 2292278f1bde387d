/*
 * Payloads that can be made unreadable: sealed under a key of the subject that they are about, which lies apart from
 * the log, wrapped by a master key. When the subject is forgotten its keys are destroyed on every replica; events
 * stay where they are, without their payload.
 *
 *   payload ── sealed by ──▶ subject key (of one partition) ── wrapped by ──▶ master key (a file of the operator's)
 *
 * Always true: what is sealed for a partition, an aggregate and a sequence opens nowhere else; a key that isn't there
 * means forgotten, a master key that isn't there is a fault.
 *
 * Thread rule: a vault is the caller's to guard; all else is without state.
 */
#ifndef CAIRN_SUBJECT_H
#define CAIRN_SUBJECT_H

#include "base/base.h"
#include "store/store.h"
#include "wire/wire.h"

enum { CIPHER_KEY_BYTES = 32, MASTER_KEYS_MAX = 16, MASTER_ID_BYTES_MAX = 63, SEALED_OVERHEAD = 12 + 16 };

/* What the driver brings: an authenticated cipher, AES-256-GCM outside of tests. */
struct cipher {
    void *context;
    void (*draw)(void *context, uint8_t *out, size_t len);
    /* Adds nonce, ciphertext and tag to `out`. */
    void (*seal)(void *context, const uint8_t key[CIPHER_KEY_BYTES], struct bytes bound_to, struct bytes plain,
                 struct buffer *out);
    /* False, and nothing is added, when it is another key, bound to something else, or changed. */
    bool (*unseal)(void *context, const uint8_t key[CIPHER_KEY_BYTES], struct bytes bound_to, struct bytes sealed,
                 struct buffer *out);
};

struct master_key {
    char id[MASTER_ID_BYTES_MAX + 1];
    uint8_t key[CIPHER_KEY_BYTES];
};

/* The first one wraps; all unwrap. */
struct vault {
    struct cipher cipher;
    struct master_key masters[MASTER_KEYS_MAX];
    size_t master_count;
};

/* A subject's key, out of its wrapping. */
struct subject_key {
    uint64_t id; /* the later it was made the higher, among those of a subject */
    uint8_t key[CIPHER_KEY_BYTES];
    char made_under[MASTER_ID_BYTES_MAX + 1]; /* the id of the master key that was the first then */
};

/* A new key, and its record in the arena. `before`: the newest key that the subject has, NULL for none. PRECONDITION
 * without a master key. */
MUST_USE enum status subject_key_make(const struct vault *vault, uint16_t partition, struct bytes subject,
                                      const struct subject_key *before, struct arena *arena, struct subject_key *key,
                                      struct key_record *record, struct fault *fault);
/* Another master key is the first now than when it was made: it opens what it sealed, and should seal nothing new. */
bool subject_key_is_retired(const struct vault *vault, const struct subject_key *key);
/* The same key, wrapped by the master key that is the first now. */
MUST_USE enum status subject_key_wrap_again(const struct vault *vault, uint16_t partition,
                                            const struct key_record *old, struct arena *arena,
                                            struct key_record *record, struct fault *fault);
/* The newest key of the subject; NOT_FOUND when it has none. */
MUST_USE enum status subject_key_newest(const struct vault *vault, struct store *store, uint16_t partition,
                                        struct bytes subject, struct subject_key *key, struct fault *fault);

/* What a payload belongs to. */
struct seal_place {
    char kind; /* 'E' an event, 'R' a reply, 'S' a snapshot */
    uint16_t partition;
    struct bytes id;   /* of the aggregate; of the command for a reply */
    uint64_t sequence; /* of events and snapshots */
};

/* In the arena. */
struct payload payload_seal(const struct vault *vault, const struct subject_key *key, const struct seal_place *place,
                            const struct payload *payload, struct arena *arena);
/* *payload becomes what it was, in the arena, or *forgotten is true and it becomes nothing. */
MUST_USE enum status payload_open(const struct vault *vault, struct store *store, const struct seal_place *place,
                                  struct bytes subject, uint64_t key_id, struct payload *payload, bool *forgotten,
                                  struct arena *arena, struct fault *fault);

/* With a key that is at hand. */
MUST_USE enum status payload_open_with(const struct vault *vault, const struct subject_key *key,
                                       const struct seal_place *place, struct payload *payload, struct arena *arena,
                                       struct fault *fault);
/* Through all its seals; it isn't present any more when one of their subjects is forgotten. */
MUST_USE enum status snapshot_open(const struct vault *vault, struct store *store, uint16_t partition,
                                   struct snapshot *snapshot, struct arena *arena, struct fault *fault);
/* A stored snapshot as its readers see it, decoded and packed: *packed stays when it isn't sealed, else is in the arena,
 * and empty when there is nothing to see any more. */
MUST_USE enum status snapshot_reveal(const struct vault *vault, struct store *store, uint16_t partition,
                                     struct bytes *packed, struct snapshot *snapshot, struct arena *arena,
                                     struct fault *fault);

/* A stored event as its readers see it: the same bytes when it isn't sealed, else new ones in the arena. */
MUST_USE enum status event_reveal(const struct vault *vault, struct store *store, struct bytes packed,
                                  struct arena *arena, struct bytes *out, struct fault *fault);
/* The same in place. */
MUST_USE enum status event_open(const struct vault *vault, struct store *store, struct event *event,
                                struct arena *arena, struct fault *fault);

#endif

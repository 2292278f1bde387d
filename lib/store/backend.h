/* What a backend gives: plain ordered bytes. Envelopes and faults' wording are added above it. */
#ifndef CAIRN_STORE_BACKEND_H
#define CAIRN_STORE_BACKEND_H

#include "store.h"

/* A batch as a list of operations, in order. */
struct batch_operation {
    enum { BATCH_PUT, BATCH_DELETE, BATCH_DELETE_RANGE } kind;
    enum store_family family;
    struct bytes key;
    struct bytes value; /* end of the range for BATCH_DELETE_RANGE */
};

/* What makes a write outlast a crash: the next synced write, this one's own sync, or a flush of its families. */
enum durability { DURABLE_WITH_NEXT_SYNC, DURABLE_NOW, DURABLE_WITH_FLUSH };

struct backend {
    void *(*batch_new)(void *backend);
    void (*batch_free)(void *batch);
    void (*batch_add)(void *batch, const struct batch_operation *operation);
    enum status (*write)(void *backend, void *batch, enum durability durability, struct fault *fault);
    enum status (*flush)(void *backend, enum store_family family, struct fault *fault);
    enum status (*compact)(void *backend, enum store_family family, struct bytes from, struct bytes to,
                           struct fault *fault);
    /* Gives the raw value in *raw, to be freed by the caller; NOT_FOUND when absent. */
    enum status (*get)(void *backend, enum store_family family, struct bytes key,
                       struct bytes *raw, void **owner, struct fault *fault);
    /* The same for each key; an owner is NULL when there is no value. On a fault some owners may be there. */
    enum status (*get_many)(void *backend, enum store_family family, const struct bytes *keys,
                            size_t count, struct bytes *raw, void **owners, struct fault *fault);
    void (*get_release)(void *owner);
    void *(*cursor_new)(void *backend, enum store_family family, struct bytes from,
                        struct bytes to, bool reverse);
    void (*cursor_free)(void *cursor);
    enum status (*cursor_next)(void *cursor, struct bytes *key, struct bytes *raw,
                               struct fault *fault);
    void (*usage)(void *backend, uint64_t *memory_bytes, uint64_t *disk_bytes);
    void (*close)(void *backend);
};

struct store {
    const struct backend *functions;
    void *backend;
};

/* Every value: version u8, three zero bytes, checksum u32 (little-endian), payload. */
enum { ENVELOPE_BYTES = 8 };

#endif

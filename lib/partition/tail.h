/* The newest entries of one log, in memory, for followers and for applying. */
#ifndef CAIRN_PARTITION_TAIL_H
#define CAIRN_PARTITION_TAIL_H

#include "base/base.h"
#include "wire/wire.h"

struct tail_entry {
    struct log_entry entry;
    struct blob *blob; /* what the payload points into; NULL for none */
};

/* Entries first .. first+count-1, without a gap. */
struct tail {
    struct tail_entry *ring;
    size_t room; /* a power of two */
    uint64_t first;
    size_t count;
    size_t bytes;
};

void tail_release(struct tail *tail);
/* Forget everything; the next entry will be `first`. */
void tail_restart(struct tail *tail, uint64_t first);
/* Keeps the blob. */
void tail_append(struct tail *tail, const struct log_entry *entry, struct blob *blob);
/* Forget entries from index on. */
void tail_truncate(struct tail *tail, uint64_t index);
/* Forget old entries while over the limits, but none above `keep_from`. */
void tail_trim(struct tail *tail, uint64_t keep_from);
/* NULL when not in memory. */
const struct log_entry *tail_at(const struct tail *tail, uint64_t index);

#endif

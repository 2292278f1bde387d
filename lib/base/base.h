/*
 * What every part of Cairn stands on: bytes, arenas, statuses and faults, shared blobs, a bounded
 * many-to-one mailbox, clocks and the log. Knows nothing of commands or clusters.
 */
#ifndef CAIRN_BASE_H
#define CAIRN_BASE_H

#include <assert.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "limits.h"
#include "plant.h"

#define MUST_USE __attribute__((warn_unused_result))
#define PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define CONTAINER_OF(pointer, type, field) \
    ((type *)(void *)((char *)(pointer)-offsetof(type, field)))

/* ---- bytes: a borrowed run of memory ---- */

struct bytes {
    const uint8_t *data;
    size_t len;
};

#define BYTES_NONE ((struct bytes){0})
#define BYTES_LITERAL(text) ((struct bytes){(const uint8_t *)(text), sizeof(text) - 1})

struct bytes bytes_of(const char *text); /* NULL gives no bytes */
bool bytes_equal(struct bytes a, struct bytes b);
bool bytes_is_utf8(struct bytes b); /* well-formed UTF-8 without NUL */

/* ---- arena: memory that dies together ---- */

struct arena_chunk;
struct arena {
    struct arena_chunk *chunk;
    size_t used;   /* in the current chunk */
    size_t total;  /* bytes of all chunks */
};

/* An arena whose first bytes are the caller's, aligned to 16: on its stack, or in what it allocates anyway. It is
 * released before those are gone, and isn't copied to where it would outlive them. */
struct arena arena_in(void *room, size_t size);
#define ARENA_ROOM(name, size) _Alignas(16) uint8_t name[size]
void arena_release(struct arena *arena);
/* Forget all but the first chunk, for use again. */
void arena_reset(struct arena *arena);
/* Never NULL: running out of memory ends the process with a message, as every allocation here. */
void *arena_take(struct arena *arena, size_t size);
struct bytes arena_copy(struct arena *arena, struct bytes b);
char *arena_text(struct arena *arena, struct bytes b); /* NUL-terminated copy */
char *arena_printf(struct arena *arena, const char *format, ...) PRINTF_LIKE(2, 3);

/* malloc and friends that end the process when memory runs out: the node is better restarted. */
void *memory_take(size_t size);
void *memory_zero(size_t count, size_t size);
void *memory_grow(void *old, size_t size);
void *memory_aligned(size_t alignment, size_t size);

/* ---- buffer: bytes that grow ---- */

struct buffer {
    uint8_t *data;
    size_t len;
    size_t room;
    bool borrowed; /* see buffer_in() */
};

/* A buffer whose first bytes are the caller's: nothing is allocated before they are full. */
struct buffer buffer_in(void *room, size_t size);
void buffer_release(struct buffer *buffer);
void buffer_add(struct buffer *buffer, const void *data, size_t len);
void *buffer_extend(struct buffer *buffer, size_t len); /* room for len more, counted as used */
void buffer_printf(struct buffer *buffer, const char *format, ...) PRINTF_LIKE(2, 3);
void buffer_vprintf(struct buffer *buffer, const char *format, va_list args) PRINTF_LIKE(2, 0);
/* Text as it stands between the quotation marks of a JSON string (RFC 8259 §7). */
void buffer_add_json(struct buffer *buffer, struct bytes text);
struct bytes buffer_bytes(const struct buffer *buffer);
/* Lower-case hexadecimal, of so many digits at least, without a zero at its end; gives the length, 16 at most. */
size_t put_hex(char *out, uint64_t value, size_t digits);

/* ---- blob: counted, immutable bytes shared between threads ---- */

struct blob {
    atomic_int references;
    size_t len;
    uint8_t data[];
};

struct blob *blob_new(size_t len);
struct blob *blob_keep(struct blob *blob);
void blob_drop(struct blob *blob); /* NULL is fine */

/* ---- outcomes of calls ---- */

/* One for each outcome that a caller acts on. server/faults.c maps them to gRPC codes. */
enum status {
    STATUS_OK = 0,
    STATUS_INVALID,          /* the input is wrong; nothing happened */
    STATUS_NOT_FOUND,
    STATUS_NO_HANDLER,       /* nobody decides this command */
    STATUS_REJECTED,         /* refused by a business rule */
    STATUS_CONFLICT,         /* expected sequence */
    STATUS_EXHAUSTED,        /* a bound is reached; try later */
    STATUS_UNAVAILABLE,      /* outcome unknown, ask again with the same id */
    STATUS_DEADLINE,         /* outcome unknown, ask again with the same id */
    STATUS_NOT_OWNER,        /* somebody else owns it; inside the cluster only */
    STATUS_DAMAGED,          /* stored bytes fail their check */
    STATUS_FAILED,           /* a fault of the world or of a handler, told in the message */
    STATUS_DENIED,
    STATUS_UNAUTHENTICATED,
    STATUS_PRECONDITION,     /* the node's state forbids it */
};

const char *status_name(enum status status);

/* What went wrong, told where it was seen and passed up unchanged. */
struct fault {
    enum status status;
    uint32_t retry_ms;
    char reason[64]; /* UPPER_SNAKE for programs */
    char message[400];
};

/* Fill in and return the status, so that `return fault_set(...)` reads well. */
enum status fault_set(struct fault *fault, enum status status, const char *reason,
                      const char *format, ...) PRINTF_LIKE(4, 5);

/* ---- mailbox: many threads send, one receives ---- */

struct mail {
    struct mail *next;
};

/*
 * Senders never block. The receiver sleeps on `wake_fd` and takes everything at once, oldest
 * first. Bounds are the senders' business: each kind of mail is counted where it is made.
 */
struct mailbox {
    _Atomic(struct mail *) head;
    atomic_bool sleeping;
    int wake_fd;
};

MUST_USE enum status mailbox_init(struct mailbox *box);
void mailbox_release(struct mailbox *box);
void mailbox_send(struct mailbox *box, struct mail *mail);
/* Everything sent so far, in order; waits up to timeout_ms when there is nothing (0: no wait; -1:
 * for ever). NULL may come early: the wake-up of mail that was taken already isn't called back. */
struct mail *mailbox_receive(struct mailbox *box, int timeout_ms);

/* ---- clocks: for drivers and tools, never for the sans-IO parts ---- */

uint64_t clock_monotonic_ms(void);
uint64_t clock_monotonic_us(void);
int64_t clock_wall_ms(void);
/* ISO 8601, UTC, with milliseconds and Z. */
enum { CLOCK_STAMP_ROOM = 48 };
void clock_stamp(int64_t wall_ms, char out[CLOCK_STAMP_ROOM]);
uint64_t random_u64(void); /* from the kernel */

/* ---- log ---- */

enum journal_level { JOURNAL_DEBUG, JOURNAL_INFO, JOURNAL_WARN, JOURNAL_ERROR, JOURNAL_NOTHING };

void journal_configure(enum journal_level level, bool json, const char *node);
void journal_set_level(enum journal_level level); /* any thread, any time */
/* `event` is a stable name such as "owner-changed"; the rest is for people. One line each. */
void journal(enum journal_level level, const char *event, const char *format, ...)
    PRINTF_LIKE(3, 4);
bool journal_wants(enum journal_level level);

/* ---- hash ---- */

/* XXH3_64bits: the hash that decides ownership. Changing it moves every aggregate. */
uint64_t hash_bytes(struct bytes b);
uint64_t hash_mix(uint64_t seed, struct bytes b);

#endif

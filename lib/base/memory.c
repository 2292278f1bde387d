/* Bytes, arenas, buffers and blobs. */
#include <stdlib.h>

#include "base.h"

struct arena_chunk {
    struct arena_chunk *next;
    size_t size;
    bool borrowed; /* the caller's */
    _Alignas(16) uint8_t data[];
};

enum { ARENA_CHUNK_BYTES = 4096 - sizeof(struct arena_chunk) - 16 };

static void out_of_memory(size_t size)
{
    fprintf(stderr, "cairn: out of memory asking for %zu bytes; give the process more\n", size);
    abort();
}

void *memory_take(size_t size)
{
    void *p = malloc(size == 0 ? 1 : size);

    if (p == NULL)
        out_of_memory(size);
    return p;
}

void *memory_zero(size_t count, size_t size)
{
    void *p = calloc(count == 0 ? 1 : count, size == 0 ? 1 : size);

    if (p == NULL)
        out_of_memory(count * size);
    return p;
}

void *memory_grow(void *old, size_t size)
{
    void *p = realloc(old, size == 0 ? 1 : size);

    if (p == NULL)
        out_of_memory(size);
    return p;
}

void *memory_aligned(size_t alignment, size_t size)
{
    void *p = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);

    if (p == NULL)
        out_of_memory(size);
    return p;
}

struct bytes bytes_of(const char *text)
{
    return text == NULL ? BYTES_NONE : (struct bytes){(const uint8_t *)text, strlen(text)};
}

bool bytes_equal(struct bytes a, struct bytes b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

/* Length of the well-formed sequence at p, 0 when there is none (RFC 3629). */
static size_t utf8_step(const uint8_t *p, size_t left)
{
    size_t len = p[0] < 0x80 ? 1 : p[0] < 0xC2 ? 0 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : p[0] < 0xF5 ? 4 : 0;

    if (len == 0 || len > left)
        return 0;
    for (size_t i = 1; i < len; i++)
        if ((p[i] & 0xC0) != 0x80)
            return 0;
    if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] > 0x9F) ||
        (p[0] == 0xF0 && p[1] < 0x90) || (p[0] == 0xF4 && p[1] > 0x8F))
        return 0;
    return len;
}

bool bytes_is_utf8(struct bytes b)
{
    for (size_t i = 0; i < b.len;) {
        size_t step = b.data[i] == 0 ? 0 : utf8_step(b.data + i, b.len - i);

        if (step == 0)
            return false;
        i += step;
    }
    return true;
}

struct arena arena_in(void *room, size_t size)
{
    struct arena_chunk *chunk = room;

    assert((uintptr_t)room % _Alignof(struct arena_chunk) == 0 && size > sizeof *chunk);
    *chunk = (struct arena_chunk){.size = size - sizeof *chunk, .borrowed = true};
    return (struct arena){.chunk = chunk, .total = chunk->size};
}

void arena_release(struct arena *arena)
{
    struct arena_chunk *chunk = arena->chunk;

    while (chunk != NULL) {
        struct arena_chunk *next = chunk->next;

        if (!chunk->borrowed)
            free(chunk);
        chunk = next;
    }
    *arena = (struct arena){0};
}

void arena_reset(struct arena *arena)
{
    struct arena_chunk *first = arena->chunk;

    if (first == NULL)
        return;
    while (first->next != NULL) {
        struct arena_chunk *next = first->next;

        free(first);
        first = next;
    }
    *arena = (struct arena){.chunk = first, .total = first->size};
}

void *arena_take(struct arena *arena, size_t size)
{
    struct arena_chunk *chunk = arena->chunk;

    size = (size + 15) & ~(size_t)15;
    if (chunk == NULL || chunk->size - arena->used < size) {
        size_t room = size > ARENA_CHUNK_BYTES ? size : ARENA_CHUNK_BYTES;

        chunk = memory_take(sizeof *chunk + room);
        *chunk = (struct arena_chunk){.next = arena->chunk, .size = room};
        arena->chunk = chunk;
        arena->used = 0;
        arena->total += room;
    }
    arena->used += size;
    return chunk->data + arena->used - size;
}

struct bytes arena_copy(struct arena *arena, struct bytes b)
{
    uint8_t *copy = arena_take(arena, b.len);

    if (b.len > 0)
        memcpy(copy, b.data, b.len);
    return (struct bytes){copy, b.len};
}

char *arena_text(struct arena *arena, struct bytes b)
{
    char *copy = arena_take(arena, b.len + 1);

    if (b.len > 0)
        memcpy(copy, b.data, b.len);
    copy[b.len] = '\0';
    return copy;
}

char *arena_printf(struct arena *arena, const char *format, ...)
{
    va_list args;
    int len;
    char *text;

    va_start(args, format);
    len = vsnprintf(NULL, 0, format, args);
    va_end(args);
    text = arena_take(arena, (size_t)len + 1);
    va_start(args, format);
    vsnprintf(text, (size_t)len + 1, format, args);
    va_end(args);
    return text;
}

struct buffer buffer_in(void *room, size_t size)
{
    return (struct buffer){.data = room, .room = size, .borrowed = true};
}

void buffer_release(struct buffer *buffer)
{
    if (!buffer->borrowed)
        free(buffer->data);
    *buffer = (struct buffer){0};
}

void *buffer_extend(struct buffer *buffer, size_t len)
{
    if (buffer->room - buffer->len < len) {
        size_t room = buffer->room * 2;

        if (room < buffer->len + len)
            room = buffer->len + len;
        if (room < 256)
            room = 256;
        if (buffer->borrowed) {
            uint8_t *own = memory_take(room);

            memcpy(own, buffer->data, buffer->len);
            buffer->data = own;
            buffer->borrowed = false;
        } else {
            buffer->data = memory_grow(buffer->data, room);
        }
        buffer->room = room;
    }
    buffer->len += len;
    return buffer->data + buffer->len - len;
}

void buffer_add(struct buffer *buffer, const void *data, size_t len)
{
    if (len > 0)
        memcpy(buffer_extend(buffer, len), data, len);
}

void buffer_vprintf(struct buffer *buffer, const char *format, va_list args)
{
    va_list again;
    int len;

    va_copy(again, args);
    len = vsnprintf(NULL, 0, format, again);
    va_end(again);
    vsnprintf(buffer_extend(buffer, (size_t)len + 1), (size_t)len + 1, format, args);
    buffer->len--; /* the NUL is not part of it */
}

void buffer_printf(struct buffer *buffer, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    buffer_vprintf(buffer, format, args);
    va_end(args);
}

void buffer_add_json(struct buffer *buffer, struct bytes text)
{
    for (size_t i = 0; i < text.len; i++) {
        uint8_t c = text.data[i];

        if (c == '"' || c == '\\')
            buffer_printf(buffer, "\\%c", c);
        else if (c < 0x20 || c == 0x7F)
            buffer_printf(buffer, "\\u%04x", c);
        else
            buffer_add(buffer, &c, 1);
    }
}

struct bytes buffer_bytes(const struct buffer *buffer)
{
    return (struct bytes){buffer->data, buffer->len};
}

struct blob *blob_new(size_t len)
{
    struct blob *blob = memory_take(sizeof *blob + len);

    atomic_init(&blob->references, 1);
    blob->len = len;
    return blob;
}

struct blob *blob_keep(struct blob *blob)
{
    atomic_fetch_add_explicit(&blob->references, 1, memory_order_relaxed);
    return blob;
}

void blob_drop(struct blob *blob)
{
    if (blob != NULL &&
        atomic_fetch_sub_explicit(&blob->references, 1, memory_order_acq_rel) == 1)
        free(blob);
}

size_t put_hex(char *out, uint64_t value, size_t digits)
{
    while (digits < 16 && value >> 4 * digits != 0)
        digits++;
    for (size_t i = 0; i < digits; i++)
        out[i] = "0123456789abcdef"[value >> 4 * (digits - 1 - i) & 15];
    return digits;
}

/* A cipher for unit tests: it hides nothing, opens only with the key and the place that sealed, and any byte upsets it.
 * Its context is a uint64_t, which chance goes on from. */
#ifndef CAIRN_TEST_CIPHER_H
#define CAIRN_TEST_CIPHER_H

#include "subject/subject.h"

static inline void draw(void *context, uint8_t *out, size_t len)
{
    uint64_t *drawn = context;

    for (size_t i = 0; i < len; i++)
        out[i] = (uint8_t)(hash_mix(++*drawn, BYTES_LITERAL("draw")) >> 8);
}

static inline uint64_t tag_of(const uint8_t *key, struct bytes bound_to, struct bytes plain)
{
    return hash_mix(hash_mix(hash_bytes((struct bytes){key, CIPHER_KEY_BYTES}), bound_to), plain);
}

static inline void seal(void *context, const uint8_t key[CIPHER_KEY_BYTES], struct bytes bound_to, struct bytes plain,
                 struct buffer *out)
{
    uint64_t tag = tag_of(key, bound_to, plain);

    (void)context;
    buffer_add(out, plain.data, plain.len);
    buffer_add(out, &tag, sizeof tag);
}

static inline bool unseal(void *context, const uint8_t key[CIPHER_KEY_BYTES], struct bytes bound_to, struct bytes sealed,
                   struct buffer *out)
{
    struct bytes plain = {sealed.data, sealed.len - sizeof(uint64_t)};
    uint64_t tag;

    (void)context;
    if (sealed.len < sizeof tag)
        return false;
    memcpy(&tag, sealed.data + plain.len, sizeof tag);
    if (tag != tag_of(key, bound_to, plain))
        return false;
    buffer_add(out, plain.data, plain.len);
    return true;
}

#define TEST_CIPHER(drawn) ((struct cipher){(drawn), draw, seal, unseal})

/* "m2" comes before the master key that there is. */
static inline void put_second_master(struct vault *vault)
{
    vault->masters[1] = vault->masters[0];
    vault->masters[0] = (struct master_key){.id = "m2", .key = {2}};
    vault->master_count = 2;
}

#endif

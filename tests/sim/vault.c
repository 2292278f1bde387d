/*
 * Subjects' keys in the simulator: a cipher that hides nothing, so that the oracle sees what a payload was, but opens
 * only with the right key, for the right place.
 */
#include "sim.h"

enum { NONCE = 12, TAG = 16, MASK = 0xA5 };

static void draw(void *context, uint8_t *out, size_t len)
{
    struct world *w = context;

    for (size_t i = 0; i < len; i++)
        out[i] = (uint8_t)rng_next(&w->vault_rng);
}

static uint64_t tag_of(const uint8_t *key, struct bytes bound_to, struct bytes masked)
{
    return hash_mix(hash_mix(hash_bytes((struct bytes){key, CIPHER_KEY_BYTES}), bound_to), masked);
}

static void seal(void *context, const uint8_t key[CIPHER_KEY_BYTES], struct bytes bound_to, struct bytes plain,
                 struct buffer *out)
{
    uint8_t nonce[NONCE];
    uint8_t tag[TAG] = {0};
    uint64_t check;
    uint8_t *masked;

    draw(context, nonce, sizeof nonce);
    buffer_add(out, nonce, sizeof nonce);
    masked = buffer_extend(out, plain.len);
    for (size_t i = 0; i < plain.len; i++)
        masked[i] = plain.data[i] ^ MASK;
    check = tag_of(key, bound_to, (struct bytes){masked, plain.len});
    memcpy(tag, &check, sizeof check);
    buffer_add(out, tag, sizeof tag);
}

static bool unseal(void *context, const uint8_t key[CIPHER_KEY_BYTES], struct bytes bound_to, struct bytes sealed,
                   struct buffer *out)
{
    struct bytes masked = {sealed.data + NONCE, sealed.len - NONCE - TAG};
    uint64_t check;
    uint8_t *plain;

    (void)context;
    if (sealed.len < NONCE + TAG)
        return false;
    memcpy(&check, masked.data + masked.len, sizeof check);
    if (check != tag_of(key, bound_to, masked))
        return false;
    plain = buffer_extend(out, masked.len);
    for (size_t i = 0; i < masked.len; i++)
        plain[i] = masked.data[i] ^ MASK;
    return true;
}

void vault_begin(struct world *w)
{
    w->vault = (struct vault){.cipher = {w, draw, seal, unseal}, .master_count = 1};
    snprintf(w->vault.masters[0].id, sizeof w->vault.masters[0].id, "master");
    draw(w, w->vault.masters[0].key, sizeof w->vault.masters[0].key);
}

struct bytes vault_peel(struct bytes sealed, struct arena *arena)
{
    uint8_t *plain;
    size_t len = sealed.len - NONCE - TAG;

    if (sealed.len < NONCE + TAG + 1)
        return BYTES_NONE;
    plain = arena_take(arena, len);
    for (size_t i = 0; i < len; i++)
        plain[i] = sealed.data[NONCE + i] ^ MASK;
    return (struct bytes){plain + 1, len - 1}; /* behind the payload's kind */
}

uint64_t vault_event_hash(struct bytes packed)
{
    struct arena arena = {0};
    struct buffer opened = {0};
    struct event event;
    struct fault fault;
    uint64_t hash = hash_bytes(packed);

    if (wire_event_is_sealed(packed) && wire_event_decode(packed, &arena, &event, &fault) == STATUS_OK) {
        struct bytes content = vault_peel(event.payload.content, &arena);

        event.payload = (struct payload){content.data == NULL ? PAYLOAD_NONE : (enum payload_kind)content.data[-1], content};
        event.sealed_by = 0;
        wire_event_pack(&opened, &event);
        hash = hash_bytes(buffer_bytes(&opened));
    }
    buffer_release(&opened);
    arena_release(&arena);
    return hash;
}

/* Whose it is, of the ops that are about somebody; empty for the others. */
struct bytes op_subject(const struct op *op)
{
    static const char *const names[] = {"s0", "s1", "s2"};

    return op->payload % 4 == 0 ? bytes_of(names[op->payload / 4 % COUNT_OF(names)]) : BYTES_NONE;
}

/* Every sealed event of the replica opens. */
void vault_check(struct world *w, struct node *n, uint16_t partition)
{
    struct store_key from = key_partition_begin(partition);
    struct store_key to = key_partition_end(partition);
    struct store_cursor *cursor =
        store_cursor_new(n->store, STORE_EVENTS, key_bytes(&from), key_bytes(&to), false);
    struct arena arena = {0};
    struct bytes key, value;
    struct fault fault;

    while (store_cursor_next(cursor, &key, &value, &fault) == STATUS_OK) {
        struct event event;

        if (!wire_event_is_sealed(value))
            continue;
        w->figures.sealed++;
        if (wire_event_decode(value, &arena, &event, &fault) != STATUS_OK ||
            event_open(&w->vault, n->store, &event, &arena, &fault) != STATUS_OK)
            broken(w, 2, "node %d can't open an event of partition %u: %s", n->index, partition, fault.message);
        else if (event.forgotten)
            broken(w, 2, "node %d lacks the key of %.*s in partition %u", n->index, (int)event.subject.len,
                   (const char *)event.subject.data, partition);
        arena_reset(&arena);
    }
    store_cursor_free(cursor);
    arena_release(&arena);
}

/*
 * Subjects' keys in the simulator: a cipher that hides nothing, so that the oracle sees what a payload was, but opens
 * only with the right key, for the right place.
 */
#include "sim.h"

enum { NONCE = 12, TAG = 16, MASK = 0xA5, COMMAND_ENTRY = 1 /* of libraft */ };

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

static void add_master(struct world *w)
{
    struct master_key *first = &w->vault.masters[0];

    memmove(first + 1, first, w->vault.master_count * sizeof *first);
    w->vault.master_count++;
    snprintf(first->id, sizeof first->id, "master-%zu", w->vault.master_count);
    draw(w, first->key, sizeof first->key);
}

void vault_begin(struct world *w)
{
    w->vault = (struct vault){.cipher = {w, draw, seal, unseal}};
    add_master(w);
}

void vault_renew(struct world *w)
{
    if (w->vault.master_count == MASTER_KEYS_MAX)
        return;
    add_master(w);
    for (int i = 0; i < w->node_count; i++)
        if (w->nodes[i].alive)
            engine_set_vault(w->nodes[i].engine, &w->vault);
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

/* Whose it is, of the ops that are about somebody. */
int op_subject_number(const struct op *op)
{
    return op->payload % 4 == 0 || op->kind == OP_FORGET ? (int)(op->payload / 4 % SUBJECTS) + 1 : 0;
}

struct bytes op_subject(const struct op *op)
{
    static const char *const names[SUBJECTS + 1] = {"", "s0", "s1", "s2"};

    return bytes_of(names[op_subject_number(op)]);
}

static size_t subject_index(struct bytes subject)
{
    return subject.len == 2 && subject.data[1] - '0' < SUBJECTS ? (size_t)(subject.data[1] - '0') : 0;
}

bool vault_is_forgotten(const struct world *w, const struct event *event)
{
    return event->position < w->partitions[event->partition].forgotten[subject_index(event->subject)];
}

/* What of an entry may not be in a log any more: keys that were destroyed later. */
static void check_log_entry(struct world *w, struct node *n, uint16_t partition, uint64_t index, struct bytes payload)
{
    struct arena arena = {0};
    struct log_batch batch;
    struct fault fault;

    if (wire_log_batch_decode(payload, &arena, &batch, &fault) == STATUS_OK)
        for (size_t i = 0; i < batch.key_count; i++)
            if (batch.keys[i].wrapped.len > 0 &&
                index < w->partitions[partition].forgotten_at[subject_index(batch.keys[i].subject)])
                broken(w, 2, "node %d keeps a destroyed key of %.*s in entry %llu of partition %u", n->index,
                       (int)batch.keys[i].subject.len, (const char *)batch.keys[i].subject.data,
                       (unsigned long long)index, partition);
    arena_release(&arena);
}

static void check_log(struct world *w, struct node *n, uint16_t partition)
{
    struct store_key from = key_log(partition, 0);
    struct store_key to = key_partition_end(partition);
    struct store_cursor *cursor = store_cursor_new(n->store, STORE_LOG, key_bytes(&from), key_bytes(&to), false);
    struct bytes key, value;
    struct fault fault;
    struct log_entry entry;

    while (store_cursor_next(cursor, &key, &value, &fault) == STATUS_OK)
        if (wire_log_entry_decode(value, &entry, &fault) == STATUS_OK && entry.type == COMMAND_ENTRY)
            check_log_entry(w, n, partition, key_last_number(key), entry.payload);
    store_cursor_free(cursor);
}

/* The operator may take the old master keys away once all have the new one. */
static void check_wrapping(struct world *w, struct node *n, uint16_t partition)
{
    struct store_key from = key_subjects(partition);
    struct store_key to = key_subjects_end(partition);
    struct store_cursor *cursor = store_cursor_new(n->store, STORE_KEYS, key_bytes(&from), key_bytes(&to), false);
    struct arena arena = {0};
    struct bytes key, value;
    struct fault fault;

    while (store_cursor_next(cursor, &key, &value, &fault) == STATUS_OK) {
        struct key_record record;

        if (wire_key_record_decode(value, &arena, &record, &fault) != STATUS_OK ||
            !bytes_equal(record.master, bytes_of(w->vault.masters[0].id)))
            broken(w, 2, "node %d has a key of %.*s in partition %u that %.*s wraps, not %s", n->index,
                   (int)record.subject.len, (const char *)record.subject.data, partition, (int)record.master.len,
                   (const char *)record.master.data, w->vault.masters[0].id);
    }
    store_cursor_free(cursor);
    arena_release(&arena);
}

/* Every sealed event of the replica opens, but those whose subject was forgotten later; and no log has a key of it. */
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
        else if (vault_is_forgotten(w, &event) && !event.forgotten)
            broken(w, 2, "node %d opens event %llu of partition %u, whose subject was forgotten", n->index,
                   (unsigned long long)event.position, partition);
        else if (event.forgotten && !vault_is_forgotten(w, &event))
            broken(w, 2, "node %d lacks the key of %.*s in partition %u", n->index, (int)event.subject.len,
                   (const char *)event.subject.data, partition);
        arena_reset(&arena);
    }
    store_cursor_free(cursor);
    arena_release(&arena);
    check_log(w, n, partition);
    check_wrapping(w, n, partition);
}

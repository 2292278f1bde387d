/* Sealing, finding keys, forgetting: over a store in memory, with a cipher that any byte upsets. */
#include "check.h"
#include "test_cipher.h"

struct fixture {
    struct vault vault;
    struct store *store;
    struct arena arena;
    uint64_t drawn;
};

static int set_up(void **state)
{
    struct fixture *f = memory_zero(1, sizeof *f);

    f->vault = (struct vault){.cipher = TEST_CIPHER(&f->drawn), .master_count = 1, .masters = {{.id = "m1", .key = {1}}}};
    assert_ok(store_open_memory(&f->store));
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    store_free(f->store);
    arena_release(&f->arena);
    free(f);
    return 0;
}

static void write_record(struct fixture *f, uint16_t partition, const struct key_record *record)
{
    struct store_batch *batch = store_batch_new(f->store);
    struct store_key key = key_subject(partition, record->subject, record->key_id);
    struct buffer packed = {0};
    struct fault fault;

    wire_key_record_pack(&packed, record);
    store_batch_put(batch, STORE_KEYS, key_bytes(&key), buffer_bytes(&packed));
    assert_ok(store_write(f->store, batch, true, &fault));
    buffer_release(&packed);
    store_batch_free(batch);
}

static struct subject_key make(struct fixture *f, uint16_t partition, const char *subject)
{
    struct key_record record;
    struct subject_key key;
    struct fault fault;

    assert_ok(subject_key_make(&f->vault, partition, bytes_of(subject), NULL, &f->arena, &key, &record, &fault));
    write_record(f, partition, &record);
    return key;
}

static void destroy(struct fixture *f, uint16_t partition, const char *subject)
{
    struct store_batch *batch = store_batch_new(f->store);
    struct store_key from = key_subject(partition, bytes_of(subject), 0);
    struct store_key to = key_subject_end(partition, bytes_of(subject));
    struct fault fault;

    store_batch_delete_range(batch, STORE_KEYS, key_bytes(&from), key_bytes(&to));
    assert_ok(store_write(f->store, batch, true, &fault));
    store_batch_free(batch);
}

static struct event event_of(const char *subject)
{
    return (struct event){.aggregate_type = BYTES_LITERAL("order"),
                          .aggregate_id = BYTES_LITERAL("o1"),
                          .sequence = 7,
                          .partition = 3,
                          .position = 11,
                          .type = BYTES_LITERAL("Paid"),
                          .payload = {PAYLOAD_JSON, BYTES_LITERAL("{\"card\":4711}")},
                          .subject = bytes_of(subject)};
}

/* As it would be stored. */
static struct bytes sealed_event(struct fixture *f, const struct subject_key *key, struct event event)
{
    struct seal_place place = {'E', 3, event.aggregate_id, event.sequence};
    struct buffer packed = {0};
    struct bytes out;

    event.payload = payload_seal(&f->vault, key, &place, &event.payload, &f->arena);
    event.sealed_by = key->id;
    wire_event_pack(&packed, &event);
    out = arena_copy(&f->arena, buffer_bytes(&packed));
    buffer_release(&packed);
    return out;
}

static struct event reveal(struct fixture *f, struct bytes packed)
{
    struct event event;
    struct bytes out;
    struct fault fault;

    assert_ok(event_reveal(&f->vault, f->store, packed, &f->arena, &out, &fault));
    assert_false(wire_event_is_sealed(out));
    assert_ok(wire_event_decode(out, &f->arena, &event, &fault));
    return event;
}

/* ---- the tests ---- */

static void what_is_sealed_opens_until_its_subject_is_forgotten(void **state)
{
    struct fixture *f = *state;
    struct subject_key anna = make(f, 3, "anna");
    struct bytes packed = sealed_event(f, &anna, event_of("anna"));
    struct event event = reveal(f, packed);

    assert_true(wire_event_is_sealed(packed));
    assert_int_equal(event.payload.kind, PAYLOAD_JSON);
    assert_true(bytes_equal(event.payload.content, BYTES_LITERAL("{\"card\":4711}")));
    assert_true(bytes_equal(event.subject, BYTES_LITERAL("anna")));
    assert_false(event.forgotten);
    destroy(f, 3, "ann"); /* somebody else */
    assert_false(reveal(f, packed).forgotten);
    destroy(f, 3, "anna");
    event = reveal(f, packed);
    assert_true(event.forgotten);
    assert_int_equal(event.payload.kind, PAYLOAD_NONE);
    assert_int_equal(event.sequence, 7); /* all else is as it was */
    assert_true(bytes_equal(event.type, BYTES_LITERAL("Paid")));
    (void)make(f, 3, "anna"); /* a new key opens nothing old */
    assert_true(reveal(f, packed).forgotten);
}

static void what_names_nobody_passes_as_it_is(void **state)
{
    struct fixture *f = *state;
    struct event event = event_of("");
    struct buffer packed = {0};
    struct bytes out;
    struct fault fault;

    wire_event_pack(&packed, &event);
    assert_false(wire_event_is_sealed(buffer_bytes(&packed)));
    assert_ok(event_reveal(NULL, f->store, buffer_bytes(&packed), &f->arena, &out, &fault));
    assert_ptr_equal(out.data, packed.data);
    buffer_release(&packed);
}

static void it_opens_nowhere_else(void **state)
{
    struct fixture *f = *state;
    struct subject_key anna = make(f, 3, "anna");
    struct seal_place places[] = {{'E', 3, BYTES_LITERAL("o1"), 7}, {'E', 3, BYTES_LITERAL("o1"), 8},
                                  {'E', 3, BYTES_LITERAL("o2"), 7}, {'S', 3, BYTES_LITERAL("o1"), 7}};
    struct payload plain = {PAYLOAD_DATA, BYTES_LITERAL("x")};
    struct payload sealed = payload_seal(&f->vault, &anna, &places[0], &plain, &f->arena);
    bool forgotten;
    struct fault fault;

    for (size_t i = 0; i < COUNT_OF(places); i++) {
        struct payload opened = sealed;

        assert_status(payload_open(&f->vault, f->store, &places[i], BYTES_LITERAL("anna"), anna.id, &opened, &forgotten,
                                   &f->arena, &fault),
                      i == 0 ? STATUS_OK : STATUS_DAMAGED);
    }
}

static void master_keys_change(void **state)
{
    struct fixture *f = *state;
    struct subject_key anna = make(f, 3, "anna"), found;
    struct key_record record, again;
    struct arena arena = {0};
    struct bytes value;
    struct store_key key = key_subject(3, BYTES_LITERAL("anna"), anna.id);
    struct fault fault;

    put_second_master(&f->vault);
    assert_ok(subject_key_newest(&f->vault, f->store, 3, BYTES_LITERAL("anna"), &found, &fault));
    assert_memory_equal(found.key, anna.key, sizeof anna.key);
    assert_ok(store_get(f->store, STORE_KEYS, key_bytes(&key), &arena, &value, &fault));
    assert_ok(wire_key_record_decode(value, &arena, &record, &fault));
    assert_ok(subject_key_wrap_again(&f->vault, 3, &record, &arena, &again, &fault));
    assert_true(bytes_equal(again.master, BYTES_LITERAL("m2")));
    f->vault.master_count = 1; /* the old one is gone */
    assert_status(subject_key_newest(&f->vault, f->store, 3, BYTES_LITERAL("anna"), &found, &fault),
                  STATUS_PRECONDITION);
    assert_string_equal(fault.reason, "MASTER_KEY_MISSING");
    write_record(f, 3, &again);
    assert_ok(subject_key_newest(&f->vault, f->store, 3, BYTES_LITERAL("anna"), &found, &fault));
    assert_memory_equal(found.key, anna.key, sizeof anna.key);
    f->vault.masters[0].key[0] = 9; /* another key of that name */
    assert_status(subject_key_newest(&f->vault, f->store, 3, BYTES_LITERAL("anna"), &found, &fault),
                  STATUS_PRECONDITION);
    assert_string_equal(fault.reason, "MASTER_KEY_WRONG");
    arena_release(&arena);
}

/* What is new is sealed by a key that the old master key never wrapped. */
static void another_master_key_retires_the_keys_before(void **state)
{
    struct fixture *f = *state;
    struct subject_key anna = make(f, 3, "anna"), later, found;
    struct bytes old = sealed_event(f, &anna, event_of("anna"));
    struct key_record record, again;
    struct fault fault;

    assert_false(subject_key_is_retired(&f->vault, &anna));
    put_second_master(&f->vault);
    assert_true(subject_key_is_retired(&f->vault, &anna));
    for (int i = 0; i < 50; i++) {
        assert_ok(subject_key_make(&f->vault, 3, BYTES_LITERAL("anna"), &anna, &f->arena, &later, &record, &fault));
        assert_true(later.id > anna.id && memcmp(later.key, anna.key, sizeof later.key) != 0);
    }
    write_record(f, 3, &record);
    assert_ok(subject_key_newest(&f->vault, f->store, 3, BYTES_LITERAL("anna"), &found, &fault));
    assert_int_equal(found.id, later.id);
    assert_false(subject_key_is_retired(&f->vault, &found));
    assert_false(reveal(f, old).forgotten);
    assert_false(reveal(f, sealed_event(f, &later, event_of("anna"))).forgotten);
    assert_ok(subject_key_wrap_again(&f->vault, 3, &record, &f->arena, &again, &fault));
    assert_true(bytes_equal(again.made_under, BYTES_LITERAL("m2")));
    f->vault.masters[0] = f->vault.masters[1]; /* taken back: the later one is the newest all the same */
    assert_true(subject_key_is_retired(&f->vault, &later));
    later.id = UINT64_MAX - 5; /* it stays: nothing could come behind it */
    assert_false(subject_key_is_retired(&f->vault, &later));
    destroy(f, 3, "anna");
    assert_true(reveal(f, old).forgotten); /* all keys of a subject go */
}

static void without_a_master_key_nothing_is_sealed_and_what_is_isnt_taken_for_forgotten(void **state)
{
    struct fixture *f = *state;
    struct subject_key anna = make(f, 3, "anna");
    struct bytes packed = sealed_event(f, &anna, event_of("anna")), out;
    struct key_record record;
    struct fault fault;

    assert_status(subject_key_make(NULL, 3, BYTES_LITERAL("bert"), NULL, &f->arena, &anna, &record, &fault),
                  STATUS_PRECONDITION);
    assert_status(event_reveal(NULL, f->store, packed, &f->arena, &out, &fault), STATUS_PRECONDITION);
    assert_string_equal(fault.reason, "MASTER_KEY_MISSING");
}

static void a_snapshot_of_two_opens_while_both_are_known(void **state)
{
    struct fixture *f = *state;
    struct subject_key keys[2] = {make(f, 3, "anna"), make(f, 3, "bert")};
    struct seal seals[2] = {{BYTES_LITERAL("anna"), keys[0].id}, {BYTES_LITERAL("bert"), keys[1].id}};
    struct seal_place place = {'S', 3, BYTES_LITERAL("o1"), 9};
    struct snapshot snapshot = {.present = true,
                                .aggregate_id = BYTES_LITERAL("o1"),
                                .sequence = 9,
                                .payload = {PAYLOAD_DATA, BYTES_LITERAL("state")},
                                .seals = seals,
                                .seal_count = 2};
    struct snapshot opened;
    struct fault fault;

    for (size_t i = 0; i < 2; i++)
        snapshot.payload = payload_seal(&f->vault, &keys[i], &place, &snapshot.payload, &f->arena);
    opened = snapshot;
    assert_ok(snapshot_open(&f->vault, f->store, 3, &opened, &f->arena, &fault));
    assert_true(opened.present && bytes_equal(opened.payload.content, BYTES_LITERAL("state")));
    destroy(f, 3, "anna");
    opened = snapshot;
    assert_ok(snapshot_open(&f->vault, f->store, 3, &opened, &f->arena, &fault));
    assert_false(opened.present);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_sealed_opens_until_its_subject_is_forgotten),
        TEST(what_names_nobody_passes_as_it_is),
        TEST(it_opens_nowhere_else),
        TEST(master_keys_change),
        TEST(another_master_key_retires_the_keys_before),
        TEST(without_a_master_key_nothing_is_sealed_and_what_is_isnt_taken_for_forgotten),
        TEST(a_snapshot_of_two_opens_while_both_are_known),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Hand-written encoding against protobuf-c's decoding, and what outside bytes can't do. */
#include "check.h"
#include "wire/wire.h"

static void an_event_comes_back_as_it_was(void **state)
{
    struct metadata_entry entries[] = {{BYTES_LITERAL("traceparent"), BYTES_LITERAL("00-ab")}};
    struct event in = {
        .aggregate_type = BYTES_LITERAL("aircraft"),
        .aggregate_id = BYTES_LITERAL("N14228"),
        .sequence = 300,
        .partition = 63,
        .position = 1ULL << 40,
        .type = BYTES_LITERAL("FlightDeparted"),
        .payload = {PAYLOAD_JSON, BYTES_LITERAL("{\"flight\":\"UA1545\"}")},
        .metadata = {entries, 1},
        .time_ms = 1357035300123,
        .command_id = BYTES_LITERAL("c-1"),
    };
    struct event out;
    struct buffer packed = {0};
    struct arena arena = {0};
    struct fault fault;

    (void)state;
    wire_event_pack(&packed, &in);
    assert_ok(wire_event_decode(buffer_bytes(&packed), &arena, &out, &fault));
    assert_bytes(out.aggregate_id, in.aggregate_id);
    assert_int_equal(out.sequence, 300);
    assert_true(out.position == in.position);
    assert_int_equal(out.payload.kind, PAYLOAD_JSON);
    assert_bytes(out.payload.content, in.payload.content);
    assert_bytes(out.metadata.entries[0].value, entries[0].value);
    assert_true(out.time_ms == in.time_ms);
    assert_bytes(out.command_id, in.command_id);
    buffer_release(&packed);
    arena_release(&arena);
}

static void a_log_batch_with_a_long_event_comes_back_as_it_was(void **state)
{
    static uint8_t big[70000];
    struct bytes events[] = {{big, sizeof big}, BYTES_LITERAL("x")};
    struct outcome outcome = {
        .command_id = BYTES_LITERAL("c-1"),
        .aggregate_id = BYTES_LITERAL("N1"),
        .fingerprint = 0x8000000000000001ULL,
        .first_sequence = 5,
        .event_count = 2,
        .reply = {.present = true, .type = BYTES_LITERAL("Flights"), .payload = {PAYLOAD_DATA, BYTES_LITERAL("\0\1")}},
    };
    struct buffer packed = {0};
    struct arena arena = {0};
    struct snapshot snapshot = {.present = true,
                                .aggregate_type = BYTES_LITERAL("aircraft"),
                                .aggregate_id = BYTES_LITERAL("N1"),
                                .sequence = 7,
                                .payload = {PAYLOAD_DATA, BYTES_LITERAL("\0s")}};
    struct log_batch batch;
    struct fault fault;

    (void)state;
    memset(big, 0xAB, sizeof big);
    for (int i = 0; i < 3; i++)
        wire_log_batch_add(&packed, &outcome, events, 2);
    wire_log_batch_add_snapshot(&packed, &snapshot);
    assert_ok(wire_log_batch_decode(buffer_bytes(&packed), &arena, &batch, &fault));
    assert_int_equal(batch.command_count, 3);
    assert_int_equal(batch.snapshot_count, 1);
    assert_int_equal(batch.snapshots[0].snapshot.sequence, 7);
    assert_bytes(batch.snapshots[0].snapshot.aggregate_id, snapshot.aggregate_id);
    assert_bytes(batch.snapshots[0].snapshot.payload.content, snapshot.payload.content);
    assert_bytes(batch.commands[2].packed_events[0], events[0]);
    assert_bytes(batch.commands[2].packed_events[1], events[1]);
    assert_true(batch.commands[2].outcome.fingerprint == outcome.fingerprint);
    assert_bytes(batch.commands[2].outcome.reply.payload.content, BYTES_LITERAL("\0\1"));
    buffer_release(&packed);
    arena_release(&arena);
}

static void a_frame_carries_all_its_parts(void **state)
{
    struct log_entry entries[] = {{3, 1, BYTES_LITERAL("payload")}, {3, 2, BYTES_NONE}};
    struct replica_message message = {.partition = 63,
                                      .type = REPLICA_APPEND_ENTRIES,
                                      .term = 3,
                                      .log_index = 9,
                                      .log_term = 2,
                                      .entries = entries,
                                      .entry_count = 2};
    struct forwarded_command command = {7, 5, 1, 900, COMMAND_DISPATCH, BYTES_LITERAL("packed"), BYTES_LITERAL("cairn://c/client/a")};
    struct owner_note note = {.partition = 5, .owner = 1ULL << 63 | 12, .epoch = 4,
                              .voters = {{7, 1ULL << 63 | 12}, 2}, .standbys = {{9}, 1},
                              .configuration_index = 77, .placement_version = 3};
    struct buffer packed = {0};
    struct arena arena = {0};
    struct frame frame;
    struct fault fault;

    (void)state;
    frame_add_owner(&packed, &note);
    frame_add_replica_message(&packed, &message);
    frame_add_command(&packed, &command);
    frame_add_replica_message(&packed, &message);
    assert_ok(frame_decode(buffer_bytes(&packed), &arena, &frame, &fault));
    assert_int_equal(frame.replica_message_count, 2);
    assert_bytes(frame.replica_messages[1].entries[0].payload, BYTES_LITERAL("payload"));
    assert_int_equal(frame.replica_messages[1].entries[1].type, 2);
    assert_int_equal(frame.commands[0].timeout_ms, 900);
    assert_true(frame.owners[0].owner == note.owner);
    buffer_release(&packed);
    arena_release(&arena);
}

static void bytes_cut_anywhere_are_refused_or_read_never_worse(void **state)
{
    struct log_entry entry = {3, 1, BYTES_LITERAL("payload")};
    struct replica_message message = {
        .type = REPLICA_APPEND_ENTRIES, .term = 3, .entries = &entry, .entry_count = 1};
    struct buffer packed = {0};
    struct frame frame;
    struct fault fault;
    int refused = 0;

    (void)state;
    frame_add_replica_message(&packed, &message);
    for (size_t len = 0; len < packed.len; len++) {
        struct arena arena = {0};
        struct buffer cut = {0};

        buffer_add(&cut, packed.data, len);
        refused += frame_decode(buffer_bytes(&cut), &arena, &frame, &fault) != STATUS_OK;
        buffer_release(&cut);
        arena_release(&arena);
    }
    for (size_t i = 0; i < packed.len * 8; i++) {
        struct arena arena = {0};

        packed.data[i / 8] ^= (uint8_t)(1 << i % 8);
        (void)!frame_decode(buffer_bytes(&packed), &arena, &frame, &fault);
        packed.data[i / 8] ^= (uint8_t)(1 << i % 8);
        arena_release(&arena);
    }
    assert_true(refused > 0);
    buffer_release(&packed);
}

static void an_id_with_nul_is_named_in_the_fault(void **state)
{
    /* DispatchRequest{command{aggregate_id: "a\0b"}} */
    static const uint8_t packed[] = {0x0a, 5, 0x1a, 3, 'a', 0, 'b'};
    struct arena arena = {0};
    struct command command;
    struct fault fault;

    (void)state;
    assert_status(wire_dispatch_decode((struct bytes){packed, sizeof packed}, &arena, &command,
                                       &fault),
                  STATUS_INVALID);
    assert_non_null(strstr(fault.message, "aggregate_id"));
    arena_release(&arena);
}

static void a_command_without_its_names_is_refused(void **state)
{
    struct command good = {.kind = COMMAND_DISPATCH,
                           .aggregate_type = BYTES_LITERAL("t"),
                           .aggregate_id = BYTES_LITERAL("id"),
                           .type = BYTES_LITERAL("Do")};
    struct command c = good;
    static uint8_t long_id[256];
    struct fault fault;

    (void)state;
    memset(long_id, 'x', sizeof long_id);
    assert_ok(command_check(&c, 1024, &fault));
    c.aggregate_id = BYTES_NONE;
    assert_status(command_check(&c, 1024, &fault), STATUS_INVALID);
    c.aggregate_id = (struct bytes){long_id, 256};
    assert_status(command_check(&c, 1024, &fault), STATUS_INVALID);
    c.aggregate_id = (struct bytes){long_id, 255};
    assert_ok(command_check(&c, 1024, &fault));
    c.payload = (struct payload){PAYLOAD_DATA, {long_id, 256}};
    assert_status(command_check(&c, 255, &fault), STATUS_INVALID);
}

static void another_payload_has_another_fingerprint(void **state)
{
    struct command a = {.kind = COMMAND_DISPATCH,
                        .aggregate_type = BYTES_LITERAL("t"),
                        .aggregate_id = BYTES_LITERAL("id"),
                        .type = BYTES_LITERAL("Do"),
                        .payload = {PAYLOAD_JSON, BYTES_LITERAL("1")}};
    struct command b = a;
    struct fault fault;

    (void)state;
    b.payload.content = BYTES_LITERAL("2");
    assert_ok(command_check(&a, 1024, &fault));
    assert_ok(command_check(&b, 1024, &fault));
    assert_true(a.fingerprint != b.fingerprint);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_event_comes_back_as_it_was),
        cmocka_unit_test(a_log_batch_with_a_long_event_comes_back_as_it_was),
        cmocka_unit_test(a_frame_carries_all_its_parts),
        cmocka_unit_test(bytes_cut_anywhere_are_refused_or_read_never_worse),
        cmocka_unit_test(an_id_with_nul_is_named_in_the_fault),
        cmocka_unit_test(a_command_without_its_names_is_refused),
        cmocka_unit_test(another_payload_has_another_fingerprint),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

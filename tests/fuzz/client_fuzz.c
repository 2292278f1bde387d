/* Everything that clients and workers send, as it enters a node. */
#include "event/event.h"
#include "event/query.h"
#include "fuzz.h"

/* A request that decodes is checked, and its command found inside, as on the way to a peer. */
static void use(struct command *command)
{
    struct fault fault;

    if (command_check(command, PAYLOAD_BYTES_MAX, &fault) == STATUS_OK &&
        command->kind == COMMAND_DISPATCH) {
        struct bytes inside = wire_command_inside(command);

        assert(inside.len <= command->packed.len);
        if (inside.len > 0)
            assert(inside.data >= command->packed.data &&
                   inside.data + inside.len <= command->packed.data + command->packed.len);
    }
}

/* A token that is taken says the same when it is written again. */
static void use_token(struct bytes token)
{
    static const struct token_of cluster = {BYTES_LITERAL("0123456789abcdef"), 4};
    struct buffer again = {0};
    uint64_t positions[4], same[4];
    int64_t only;
    struct fault fault;

    if (token_read(token, &cluster, positions, &only, &fault) != STATUS_OK)
        return;
    token_write(&again, &cluster, positions);
    assert(token_read(buffer_bytes(&again), &cluster, same, &only, &fault) == STATUS_OK);
    assert(memcmp(positions, same, sizeof same) == 0);
    buffer_release(&again);
}

/* A subscription over an empty store, as far as it opens. */
static void use_subscription(const struct subscribe_request *request)
{
    static struct store *store;
    static const bool held[4] = {true, true, true, true};
    struct subscription_settings settings = {.cluster = {BYTES_LITERAL("0123456789abcdef"), 4},
                                             .from = request->from,
                                             .filter = request->filter,
                                             .credits = request->credits,
                                             .heartbeat_ms = request->heartbeat_ms};
    struct subscription *subscription;
    struct buffer out = {0};
    struct fault fault;
    uint32_t partition;

    if (store == NULL && store_open_memory(&store) != STATUS_OK)
        abort();
    wire_subscribe_pack(&out, request);
    if (request->is_start &&
        subscription_new(&subscription, &settings, held, store, 1000, &fault) == STATUS_OK) {
        assert(subscription_next(subscription, 1000, &out, &partition, &fault) == STATUS_OK);
        subscription_free(subscription);
    }
    buffer_release(&out);
}

/* What is put through to another node is the same join. */
static void rejoin(const struct process_request *join)
{
    struct arena arena = {0};
    struct buffer out = {0};
    struct process_request again;
    struct fault fault;

    wire_join_pack(&out, join);
    assert(wire_process_decode(buffer_bytes(&out), &arena, &again, &fault) == STATUS_OK);
    assert(again.kind == PROCESS_JOIN && bytes_equal(again.group, join->group) &&
           bytes_equal(again.member, join->member) && again.window == join->window &&
           again.from.kind == join->from.kind &&
           again.filter.event_type_count == join->filter.event_type_count);
    buffer_release(&out);
    arena_release(&arena);
}

static void put_event(struct store_batch *batch, const char *id, uint64_t sequence, uint64_t position)
{
    struct event event = {.aggregate_type = BYTES_LITERAL("t"),
                          .aggregate_id = bytes_of(id),
                          .sequence = sequence,
                          .position = position,
                          .type = BYTES_LITERAL("Happened"),
                          .time_ms = 1700000000000 + (int64_t)position};
    struct store_key key = key_event(0, event.aggregate_id, sequence);
    struct buffer out = {0};

    wire_event_pack(&out, &event);
    store_batch_put(batch, STORE_EVENTS, key_bytes(&key), buffer_bytes(&out));
    out.len = 0;
    buffer_add(&out, &sequence, sizeof sequence);
    buffer_add(&out, id, strlen(id));
    key = key_position(0, position);
    store_batch_put(batch, STORE_POSITIONS, key_bytes(&key), buffer_bytes(&out));
    buffer_release(&out);
}

/* A question to a store of four events, and the same to another node. */
static void ask(const struct query_request *request)
{
    static struct store *store;
    static const bool held[4] = {true, true, false, true};
    static const struct token_of cluster = {BYTES_LITERAL("0123456789abcdef"), 4};
    struct query *query;
    struct buffer out = {0};
    struct fault fault;
    uint32_t partition;
    int turns = 0;

    if (store == NULL) {
        struct store_batch *batch;

        if (store_open_memory(&store) != STATUS_OK)
            abort();
        batch = store_batch_new(store);
        for (uint64_t i = 0; i < 4; i++)
            put_event(batch, i < 2 ? "a" : "\xC3\xBF", i % 2, i);
        assert(store_write(store, batch, true, &fault) == STATUS_OK);
        store_batch_free(batch);
    }
    wire_query_pack(&out, request);
    if (query_new(&query, request, &cluster, held, store, &fault) == STATUS_OK) {
        while (query_next(query, &out, &partition, &fault) == STATUS_OK)
            assert(++turns < 10);
        query_free(query);
    }
    buffer_release(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena arena = {0};
    struct buffer out = {0};
    struct command command;
    struct read_request read;
    struct worker_message worker;
    struct execution_result result;
    struct subscribe_request subscribe;
    struct read_all_request read_all;
    struct process_request process;
    struct group_request group;
    struct query_request question;
    struct bytes rest, text;
    struct fault fault;
    uint64_t number;
    unsigned choice;

    if (!fuzz_choose(data, size, 20, &choice, &rest))
        return 0;
    switch (choice) {
    case 0:
        if (wire_dispatch_decode(rest, &arena, &command, &fault) == STATUS_OK)
            use(&command);
        break;
    case 1:
        if (wire_append_decode(rest, &arena, &command, &fault) == STATUS_OK)
            use(&command);
        break;
    case 2:
        if (wire_dispatch_stream_decode(rest, &arena, &command, &number, &fault) == STATUS_OK)
            use(&command);
        break;
    case 3:
        (void)!wire_read_decode(rest, &arena, &read, &fault);
        break;
    case 4:
        if (wire_worker_decode(rest, &arena, &worker, &fault) == STATUS_OK &&
            worker.kind == WORKER_RESULT)
            (void)!wire_result_decode(worker.packed_result, &arena, &result, &fault);
        break;
    case 5:
        (void)!wire_result_decode(rest, &arena, &result, &fault);
        break;
    case 6:
        (void)!wire_health_decode(rest, &arena, &text, &fault);
        break;
    case 7:
        if (wire_subscribe_decode(rest, &arena, &subscribe, &fault) == STATUS_OK)
            use_subscription(&subscribe);
        break;
    case 8:
        if (wire_read_all_decode(rest, &arena, &read_all, &fault) == STATUS_OK && read_all.backwards) {
            question = (struct query_request){
                .kind = QUERY_BACKWARDS, .filter = read_all.filter, .from = read_all.from, .limit = read_all.limit};
            ask(&question);
        }
        break;
    case 9:
        use_token(rest);
        break;
    case 11:
        if (wire_process_decode(rest, &arena, &process, &fault) == STATUS_OK && process.kind == PROCESS_JOIN &&
            !process.subscribing)
            rejoin(&process);
        break;
    case 12:
        (void)!wire_group_request_decode(GROUP_GET, rest, &arena, &group, &fault);
        break;
    case 13:
        (void)!wire_group_request_decode(GROUP_RESET, rest, &arena, &group, &fault);
        break;
    case 14:
        (void)!wire_group_request_decode(GROUP_RETRY, rest, &arena, &group, &fault);
        break;
    case 15:
        if (wire_list_aggregates_decode(rest, &arena, &question, &fault) == STATUS_OK)
            ask(&question);
        break;
    case 16:
        if (wire_count_events_decode(rest, &arena, &question, &fault) == STATUS_OK)
            ask(&question);
        break;
    case 17:
        if (wire_write_snapshot_decode(rest, &arena, &command, &fault) == STATUS_OK)
            (void)!command_check(&command, 1 << 20, &fault);
        break;
    case 18:
        if (wire_delete_snapshot_decode(rest, &arena, &command, &fault) == STATUS_OK)
            (void)!command_check(&command, 1 << 20, &fault);
        break;
    case 19:
        (void)!wire_read_snapshot_decode(rest, &arena, &read, &fault);
        break;
    default:
        (void)!wire_reflection_answer(&out, rest, BYTES_NONE, &fault);
        break;
    }
    buffer_release(&out);
    arena_release(&arena);
    return 0;
}

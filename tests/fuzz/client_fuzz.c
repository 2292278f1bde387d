/* Everything that clients and workers send, as it enters a node. */
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena arena = {0};
    struct buffer out = {0};
    struct command command;
    struct read_request read;
    struct worker_message worker;
    struct execution_result result;
    struct bytes rest, text;
    struct fault fault;
    uint64_t number;
    unsigned choice;

    if (!fuzz_choose(data, size, 8, &choice, &rest))
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
    default:
        (void)!wire_reflection_answer(&out, rest, BYTES_NONE, &fault);
        break;
    }
    buffer_release(&out);
    arena_release(&arena);
    return 0;
}

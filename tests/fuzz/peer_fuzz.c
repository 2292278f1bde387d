/* Everything that another node sends, as it enters this one. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena arena = {0};
    struct frame frame;
    struct range_request request;
    struct range_part part;
    struct bytes rest, refusal, cluster, type, id, command;
    struct outcome outcome;
    struct fault fault;
    uint64_t node, sequence;
    unsigned choice;

    if (!fuzz_choose(data, size, 5, &choice, &rest))
        return 0;
    switch (choice) {
    case 0:
        if (frame_decode(rest, &arena, &frame, &fault) == STATUS_OK)
            for (size_t i = 0; i < frame.result_count; i++)
                (void)!wire_outcome_decode(frame.results[i].outcome, &arena, &outcome, &fault);
        break;
    case 1:
        (void)!wire_welcome_decode(rest, &arena, &refusal, &node, &cluster, &fault);
        break;
    case 2:
        (void)!wire_range_request_decode(rest, &arena, &request, &fault);
        break;
    case 3:
        (void)!wire_range_part_decode(rest, &arena, &part, &fault);
        break;
    default:
        (void)!wire_execute_peek(rest, &arena, &node, &type, &id, &command, &sequence, &fault);
        break;
    }
    arena_release(&arena);
    return 0;
}

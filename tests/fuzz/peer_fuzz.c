/* Everything that another node sends, as it enters this one. */
#include "fuzz.h"

/* The quick look at an event sees what unpacking sees. */
static void peek_as_unpacked(struct bytes packed, struct arena *arena)
{
    struct event_head head;
    struct event event;
    struct fault fault;

    if (wire_event_decode(packed, arena, &event, &fault) != STATUS_OK ||
        wire_event_peek(packed, &head, &fault) != STATUS_OK)
        return;
    assert(head.position == event.position);
    assert(head.partition == event.partition);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena arena = {0};
    struct frame frame;
    struct range_request request;
    struct range_part part;
    struct bytes rest, refusal, cluster, type, id, command;
    struct outcome outcome;
    struct subscribe_response response;
    struct event_head head;
    struct fault fault;
    uint64_t node, sequence;
    unsigned choice;

    if (!fuzz_choose(data, size, 7, &choice, &rest))
        return 0;
    switch (choice) {
    case 0:
        if (frame_decode(rest, &arena, &frame, &fault) == STATUS_OK)
            for (size_t i = 0; i < frame.result_count; i++)
                (void)!wire_outcome_decode(frame.results[i].outcome, &arena, &outcome, &fault);
        break;
    case 1:
        (void)!wire_welcome_decode(rest, &arena, &refusal, &node, &cluster, &fault);
        (void)wire_fault_reason(rest, &arena); /* what a stream of a peer ends with */
        break;
    case 2:
        (void)!wire_range_request_decode(rest, &arena, &request, &fault);
        break;
    case 3:
        (void)!wire_range_part_decode(rest, &arena, &part, &fault);
        break;
    case 4:
        if (wire_subscribe_response_decode(rest, &arena, &response, &fault) == STATUS_OK)
            for (size_t i = 0; i < response.event_count; i++)
                (void)!wire_event_peek(response.packed_events[i], &head, &fault);
        break;
    case 5:
        peek_as_unpacked(rest, &arena);
        break;
    default:
        (void)!wire_execute_peek(rest, &arena, &node, &type, &id, &command, &sequence, &fault);
        break;
    }
    arena_release(&arena);
    return 0;
}

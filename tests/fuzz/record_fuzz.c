/* Everything that is read from the store: a disk may give anything back. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena arena = {0};
    struct event event;
    struct outcome outcome;
    struct snapshot snapshot;
    struct log_batch batch;
    struct log_entry entry;
    struct applied applied;
    struct checkpoint checkpoint;
    struct identity identity;
    struct founding founding;
    struct placement placement;
    struct group_cursor cursor;
    struct bytes rest;
    struct fault fault;
    uint64_t term, vote;
    unsigned choice;

    if (!fuzz_choose(data, size, 11, &choice, &rest))
        return 0;
    switch (choice) {
    case 0:
        (void)!wire_event_decode(rest, &arena, &event, &fault);
        break;
    case 1:
        (void)!wire_outcome_decode(rest, &arena, &outcome, &fault);
        break;
    case 2:
        (void)!wire_snapshot_decode(rest, &arena, &snapshot, &fault);
        break;
    case 3:
        if (wire_log_entry_decode(rest, &entry, &fault) == STATUS_OK)
            (void)!wire_log_batch_decode(entry.payload, &arena, &batch, &fault);
        break;
    case 4:
        (void)!wire_applied_decode(rest, &applied, &fault);
        break;
    case 5:
        (void)!wire_checkpoint_decode(rest, &arena, &checkpoint, &fault);
        break;
    case 6:
        (void)!wire_vote_decode(rest, &term, &vote, &fault);
        break;
    case 7:
        (void)!wire_identity_decode(rest, &arena, &identity, &fault);
        break;
    case 8:
        (void)!wire_founding_decode(rest, &arena, &founding, &fault);
        break;
    case 9:
        (void)!wire_cursor_decode(rest, &arena, &cursor, &fault);
        break;
    default:
        (void)!wire_placement_decode(rest, &arena, &placement, &fault);
        break;
    }
    arena_release(&arena);
    return 0;
}

/*
 * Between commit and answer: the subscribing processors of this node get the events, and the caller hears
 * when they are done. What they make of it changes nothing: the events are committed.
 */
#include "parts.h"

void publish_or_answer(struct aggregates *all, struct inflight *command, const struct command_record *record)
{
    uint64_t ticket = all->next_ticket + 1;
    struct arena arena = {0};
    struct command_record opened = *record;
    bool published;

    if (record->event_count > 0)
        opened.packed_events = open_events(all, record, &arena);
    published = record->event_count > 0 && command->waiters != NULL &&
                all->effects.publish(all->effects.context, ticket, &opened);
    arena_release(&arena);
    if (!published) {
        inflight_answer(all, command, &record->outcome, NULL);
        return;
    }
    all->next_ticket = ticket;
    command->processing = ticket;
    HASH_ADD(by_ticket, all->processing, processing, sizeof command->processing, command);
}

/* With the recorded outcome and what the processors say. */
static void answer(struct aggregates *all, struct inflight *command, const struct processing_failure *failures,
                   size_t failure_count)
{
    struct arena arena = {0};
    struct outcome outcome;
    struct fault fault;

    HASH_DELETE(by_ticket, all->processing, command);
    command->processing = 0;
    if (wire_outcome_decode(buffer_bytes(&command->outcome), &arena, &outcome, &fault) == STATUS_OK) {
        outcome.failures = failures;
        outcome.failure_count = failure_count;
        inflight_answer(all, command, &outcome, NULL);
    } else {
        inflight_answer(all, command, NULL, &fault);
    }
    arena_release(&arena);
    if (command->stored)
        inflight_free(all, command);
}

void aggregates_processed(struct aggregates *all, uint64_t ticket, const struct processing_failure *failures,
                          size_t failure_count)
{
    struct inflight *command = NULL;

    HASH_FIND(by_ticket, all->processing, &ticket, sizeof ticket, command);
    if (command != NULL)
        answer(all, command, failures, failure_count);
}

void publish_disown(struct aggregates *all)
{
    struct inflight *command;
    struct inflight *next;

    HASH_ITER(by_ticket, all->processing, command, next)
    {
        all->effects.forget(all->effects.context, command->processing);
        answer(all, command, NULL, 0);
    }
}

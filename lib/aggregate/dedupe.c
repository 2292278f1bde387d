/*
 * A command id takes effect once. What is decided but not yet readable in the store is known here;
 * what is older is in the store's outcomes until it ages out.
 */
#include "parts.h"

/* Of a partition, and there are many; the room of a large outcome isn't kept. */
enum { SPARE_MAX = 16, OUTCOME_BYTES_KEPT = 4096 };

static struct inflight *inflight_new(struct aggregates *all, struct bytes id)
{
    struct inflight *inflight = all->spare;
    struct buffer outcome = {0};

    assert(id.len <= COMMAND_ID_BYTES_MAX); /* command_check() */
    if (inflight != NULL) {
        all->spare = inflight->next;
        all->spare_count--;
        outcome = inflight->outcome;
        outcome.len = 0;
    } else {
        inflight = memory_take(sizeof *inflight);
    }
    *inflight = (struct inflight){.outcome = outcome};
    memcpy(inflight->id_room, id.data, id.len);
    inflight->id = (struct bytes){inflight->id_room, id.len};
    return inflight;
}

static void refuse_reuse(struct aggregates *all, struct admitted *command)
{
    struct fault fault;

    (void)fault_set(&fault, STATUS_INVALID, "COMMAND_ID_REUSED",
                    "command id %.*s was used before with another aggregate, type or payload; "
                    "give every command its own id",
                    (int)command->command.id.len, (const char *)command->command.id.data);
    command->next = NULL;
    refusal_add(all, command, &fault);
}

static void answer_packed(struct aggregates *all, struct admitted *command, struct bytes packed)
{
    struct arena arena = {0};
    struct outcome outcome;
    struct fault fault;

    command->next = NULL;
    if (wire_outcome_decode(packed, &arena, &outcome, &fault) != STATUS_OK) {
        refusal_add(all, command, &fault);
    } else if (outcome.fingerprint != command->command.fingerprint && !PLANTED(FINGERPRINT_IGNORED)) {
        refuse_reuse(all, command);
    } else {
        open_reply(all, &outcome, &arena);
        all->effects.answer(all->effects.context, command, &outcome, NULL);
    }
    arena_release(&arena);
}

static bool fresh(const struct aggregates *all, struct bytes packed, struct moment moment)
{
    int64_t time_ms = 0;

    if (packed.len >= sizeof time_ms)
        memcpy(&time_ms, packed.data, sizeof time_ms);
    return all->settings.outcome_retention_ms == 0 ||
           moment.wall_ms - time_ms <= (int64_t)all->settings.outcome_retention_ms;
}

enum status dedupe(struct aggregates *all, struct admitted *command, struct moment moment,
                   struct inflight **out)
{
    struct bytes id = command->command.id;
    struct inflight *found = NULL;
    struct store_key key = key_outcome(all->settings.partition, id);
    struct arena arena = {0};
    struct bytes packed;
    struct fault fault;
    enum status status;

    HASH_FIND(hh, all->known, id.data, id.len, found);
    if (found != NULL) {
        if (found->fingerprint != command->command.fingerprint && !PLANTED(FINGERPRINT_IGNORED)) {
            refuse_reuse(all, command);
        } else if (found->outcome.len > 0 && (found->processing == 0 || PLANTED(PROCESSOR_NOT_AWAITED))) {
            answer_packed(all, command, buffer_bytes(&found->outcome));
        } else {
            command->next = found->waiters->next; /* behind the one that is being decided */
            found->waiters->next = command;
        }
        return STATUS_NOT_FOUND;
    }
    status = PLANTED(DEDUPE_IN_MEMORY)
                 ? STATUS_NOT_FOUND
                 : store_get(all->store, STORE_OUTCOMES, key_bytes(&key), &arena, &packed, &fault);
    if (status == STATUS_OK && fresh(all, packed, moment)) {
        answer_packed(all, command, packed);
        arena_release(&arena);
        return STATUS_NOT_FOUND;
    }
    arena_release(&arena);
    if (status != STATUS_OK && status != STATUS_NOT_FOUND) {
        command->next = NULL;
        refusal_add(all, command, &fault);
        return STATUS_NOT_FOUND;
    }
    found = inflight_new(all, id);
    found->fingerprint = command->command.fingerprint;
    found->waiters = command;
    command->next = NULL;
    HASH_ADD_KEYPTR(hh, all->known, found->id.data, found->id.len, found);
    *out = found;
    return STATUS_OK;
}

void inflight_answer(struct aggregates *all, struct inflight *inflight,
                     const struct outcome *outcome, const struct fault *fault)
{
    struct admitted *commands = inflight->waiters;
    struct arena arena = {0};
    struct outcome opened;

    inflight->waiters = NULL;
    if (outcome != NULL && outcome->reply.sealed_by != 0) {
        opened = *outcome;
        open_reply(all, &opened, &arena);
        outcome = &opened;
    }
    answer_all(all, commands, outcome, fault);
    arena_release(&arena);
}

void inflight_free(struct aggregates *all, struct inflight *inflight)
{
    assert(inflight->waiters == NULL);
    HASH_DEL(all->known, inflight);
    if (all->spare_count < SPARE_MAX && inflight->outcome.room <= OUTCOME_BYTES_KEPT) {
        inflight->next = all->spare;
        all->spare = inflight;
        all->spare_count++;
        return;
    }
    buffer_release(&inflight->outcome);
    free(inflight);
}

void inflight_free_spare(struct aggregates *all)
{
    while (all->spare != NULL) {
        struct inflight *next = all->spare->next;

        buffer_release(&all->spare->outcome);
        free(all->spare);
        all->spare = next;
    }
}

/*
 * Refusals that mean "no effect". A deposed owner that doesn't know it yet must not give them: the new
 * owner may have accepted the same command, sent again, meanwhile. So a refusal waits for a barrier,
 * one for all of a turn, as a linearizable read does; without it the caller hears NOT_OWNER and the
 * command goes to who owns the aggregate now. (Found by cairn-sim: seed 10.)
 */
#include "parts.h"

void not_owner(struct fault *fault)
{
    (void)fault_set(fault, STATUS_NOT_OWNER, "NOT_OWNER", "this node doesn't own the aggregate");
}

void answer_all(struct aggregates *all, struct admitted *commands, const struct outcome *outcome,
                const struct fault *fault)
{
    while (commands != NULL) {
        struct admitted *next = commands->next;

        commands->next = NULL;
        all->effects.answer(all->effects.context, commands, outcome, fault);
        commands = next;
    }
}

static bool outcome_unknown(enum status status)
{
    return status == STATUS_NOT_OWNER || status == STATUS_UNAVAILABLE || status == STATUS_DEADLINE;
}

void refusal_add(struct aggregates *all, struct admitted *commands, const struct fault *fault)
{
    struct refusal *refusal;
    struct fault elsewhere;

    if (fault->status == STATUS_DAMAGED && all->effects.damaged(all->effects.context, fault)) {
        not_owner(&elsewhere); /* who owns it next has a sound copy */
        fault = &elsewhere;
    }
    if (outcome_unknown(fault->status) || PLANTED(REFUSAL_WITHOUT_BARRIER)) {
        answer_all(all, commands, NULL, fault);
        return;
    }
    refusal = memory_take(sizeof *refusal);
    *refusal = (struct refusal){.commands = commands, .fault = *fault};
    *all->refused_end = refusal;
    all->refused_end = &refusal->next;
}

static void give_back(struct aggregates *all, struct refusal *refusal)
{
    struct fault fault;

    not_owner(&fault);
    while (refusal != NULL) {
        struct refusal *next = refusal->next;

        answer_all(all, refusal->commands, NULL, &fault);
        free(refusal);
        refusal = next;
    }
}

void refusals_void(struct aggregates *all, const struct fault *fault)
{
    for (struct refusal *refusal = all->refused; refusal != NULL && !PLANTED(REFUSED_ON_VOID_STATE);
         refusal = refusal->next)
        refusal->fault = *fault;
}

void refusals_flush(struct aggregates *all)
{
    struct refusal *refused = all->refused;
    uint64_t index;

    if (refused == NULL)
        return;
    if (all->effects.barrier(all->effects.context, &index) == STATUS_OK) {
        for (struct refusal *refusal = refused; refusal != NULL; refusal = refusal->next)
            refusal->index = index;
        *all->confirming_end = refused;
        all->confirming_end = all->refused_end;
        refused = NULL;
    }
    all->refused = NULL;
    all->refused_end = &all->refused;
    give_back(all, refused);
}

void refusals_stored(struct aggregates *all, uint64_t index)
{
    while (all->confirming != NULL && all->confirming->index <= index) {
        struct refusal *refusal = all->confirming;

        all->confirming = refusal->next;
        if (all->confirming == NULL)
            all->confirming_end = &all->confirming;
        answer_all(all, refusal->commands, NULL, &refusal->fault);
        free(refusal);
    }
}

void refusals_disown(struct aggregates *all)
{
    struct refusal *refused = all->refused;
    struct refusal *confirming = all->confirming;

    all->refused = all->confirming = NULL;
    all->refused_end = &all->refused;
    all->confirming_end = &all->confirming;
    give_back(all, refused);
    give_back(all, confirming);
}

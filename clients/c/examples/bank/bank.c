/*
 * An account as a Cairn module: Deposit and Withdraw {"amount": 5}, never below zero. Each answers with
 * the balance, so that a history of commands can be checked against what a bank must say.
 */
#include <cairn/module.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct account {
    int64_t balance;
};

static void *create(struct cairn_bytes aggregate_id)
{
    (void)aggregate_id;
    return calloc(1, sizeof(struct account));
}

static bool is(struct cairn_bytes name, const char *text)
{
    return name.len == strlen(text) && memcmp(name.data, text, name.len) == 0;
}

/* 0 when there is no such amount. */
static int64_t amount_in(struct cairn_payload payload)
{
    json_t *object = payload.kind == CAIRN_PAYLOAD_JSON
                         ? json_loadb((const char *)payload.content.data, payload.content.len, 0,
                                      NULL)
                         : NULL;
    int64_t amount = json_integer_value(json_object_get(object, "amount"));

    json_decref(object);
    return amount > 0 && amount <= 1000000000 ? amount : 0;
}

static void decide(const void *state, const struct cairn_command *command,
                   struct cairn_decision *decision)
{
    const struct account *account = state;
    int64_t amount = amount_in(command->payload);
    bool withdraws = is(command->type, "Withdraw");
    char text[64];
    int len = snprintf(text, sizeof text, "{\"balance\":%" PRId64 "}",
                       account->balance + (withdraws ? -amount : amount));
    struct cairn_payload balance = {CAIRN_PAYLOAD_JSON, {(const uint8_t *)text, (size_t)len}};

    if (amount == 0) {
        decision->reject(decision, "AMOUNT_INVALID", "the amount must lie between 1 and 1000000000");
    } else if (withdraws && amount > account->balance) {
        decision->reject(decision, "INSUFFICIENT_FUNDS", "the balance is smaller than the amount");
    } else {
        decision->emit(decision, withdraws ? "Withdrawn" : "Deposited", command->payload);
        decision->reply(decision, "Balance", balance);
    }
}

static int evolve(void *state, const struct cairn_event *event)
{
    struct account *account = state;
    int64_t amount = amount_in(event->payload);

    account->balance += is(event->type, "Withdrawn") ? -amount : amount;
    return amount > 0 && account->balance >= 0 ? 0 : -1;
}

static size_t encode(const void *state, uint8_t *out, size_t room)
{
    if (room >= sizeof(struct account))
        memcpy(out, state, sizeof(struct account));
    return sizeof(struct account);
}

static void *decode(struct cairn_bytes aggregate_id, struct cairn_bytes snapshot)
{
    struct account *account = snapshot.len == sizeof *account ? create(aggregate_id) : NULL;

    if (account != NULL)
        memcpy(account, snapshot.data, sizeof *account);
    return account;
}

static const struct cairn_aggregate_type account_type = {
    .name = "account",
    .commands = (const char *const[]){"Deposit", "Withdraw", NULL},
    .create = create,
    .destroy = free,
    .decide = decide,
    .evolve = evolve,
    .encode = encode,
    .decode = decode,
};

const struct cairn_module *cairn_module(void)
{
    static const struct cairn_aggregate_type *const types[] = {&account_type, NULL};
    static const struct cairn_module module = {.version = CAIRN_MODULE_VERSION, .name = "bank", .types = types};

    return &module;
}

/*
 * Clients that retry, ask twice and reuse ids, and the two kinds of handlers: a module whose events carry
 * the state that they were decided on, and workers that keep copies.
 */
#include "cairn/v1/command.pb-c.h"
#include "sim.h"
#include "wire/unpack.h"

const char *aggregate_name(int aggregate, char *out, size_t room)
{
    snprintf(out, room, "a%d", aggregate);
    return out;
}

int aggregate_kind(int aggregate)
{
    static const int kinds[] = {MODULE_TYPE, MODULE_TYPE, WORKER_TYPE, PLAIN_TYPE, MODULE_TYPE};

    return kinds[aggregate % (int)COUNT_OF(kinds)];
}

static const char *type_name(int aggregate)
{
    static const char *const names[] = {"counter", "remote", "plain"};

    return names[aggregate_kind(aggregate)];
}

/* ---- the module: a chain of everything that happened ---- */

struct counter {
    uint64_t count;
    uint64_t hash;
};

uint64_t counter_next(uint64_t hash, uint64_t payload)
{
    return hash_mix(hash, (struct bytes){(const uint8_t *)&payload, sizeof payload});
}

static uint64_t number_of(struct cairn_bytes text)
{
    uint64_t number = 0;

    for (size_t i = 0; i < text.len && text.data[i] >= '0' && text.data[i] <= '9'; i++)
        number = number * 10 + (uint64_t)(text.data[i] - '0');
    return number;
}

static void *counter_create(struct cairn_bytes id)
{
    (void)id;
    return memory_zero(1, sizeof(struct counter));
}

static void counter_decide(const void *state, const struct cairn_command *command,
                           struct cairn_decision *decision)
{
    struct counter c = *(const struct counter *)state;
    uint64_t number = number_of(command->payload.content);
    int events = command->type.data[0] == 'T' ? 3 : 1;

    if (command->type.data[0] == 'O' && c.count % 2 == 1) {
        decision->reject(decision, "ODD", "the count is odd");
        return;
    }
    for (int i = 0; i < events; i++) {
        uint64_t body[3] = {number * 4 + (uint64_t)i, c.count, c.hash};
        struct cairn_payload payload = {CAIRN_PAYLOAD_DATA, {(uint8_t *)body, sizeof body}};

        decision->emit(decision, "Counted", payload);
        c.count++;
        c.hash = counter_next(c.hash, body[0]);
    }
}

static int counter_evolve(void *state, const struct cairn_event *event)
{
    struct counter *c = state;
    uint64_t body[3];

    if (event->forgotten)
        body[0] = 0;
    else if (event->payload.content.len == sizeof body)
        memcpy(body, event->payload.content.data, sizeof body);
    else
        return -1;
    c->count++;
    c->hash = counter_next(c->hash, body[0]);
    return 0;
}

static size_t counter_encode(const void *state, uint8_t *out, size_t room)
{
    if (room >= sizeof(struct counter))
        memcpy(out, state, sizeof(struct counter));
    return sizeof(struct counter);
}

static void *counter_decode(struct cairn_bytes id, struct cairn_bytes snapshot)
{
    struct counter *c = counter_create(id);

    memcpy(c, snapshot.data, sizeof *c);
    return c;
}

const struct cairn_aggregate_type sim_counter = {
    .name = "counter",
    .commands = (const char *const[]){"Add", "Three", "Odd", NULL},
    .create = counter_create,
    .destroy = free,
    .decide = counter_decide,
    .evolve = counter_evolve,
    .encode = counter_encode,
    .decode = counter_decode,
};

/* ---- the workers ---- */

/* How many events the worker has after taking what came; -1 when it needs all of them. */
static int64_t bring_up(struct world *w, const Cairn__V1__Execute *execute, int64_t copy)
{
    if (execute->snapshot != NULL) {
        copy = (int64_t)number_of((struct cairn_bytes){(const uint8_t *)execute->snapshot->json,
                                                       strlen(execute->snapshot->json)});
        if ((uint64_t)copy != execute->snapshot->sequence)
            broken(w, 6, "a worker's snapshot of %lld events came back as of %llu", (long long)copy,
                   (unsigned long long)execute->snapshot->sequence);
    } else if (execute->events_from == 0) {
        copy = 0;
    }
    if (copy != (int64_t)execute->events_from)
        return -1;
    for (size_t i = 0; i < execute->n_events; i++)
        if ((int64_t)execute->events[i]->sequence != copy++)
            broken(w, 3, "a worker gets event %llu, expected %lld",
                   (unsigned long long)execute->events[i]->sequence, (long long)copy - 1);
    return copy;
}

void execution_answer(struct world *w, int node, int worker, struct bytes packed_execute,
                      struct execution_result *result, struct new_event *event, uint64_t body[3])
{
    Cairn__V1__Execute *execute =
        cairn__v1__execute__unpack(NULL, packed_execute.len, packed_execute.data);
    static char saved[24];
    int64_t *copy;
    int aggregate;

    if (execute == NULL) {
        broken(w, 8, "an execute doesn't decode");
        return;
    }
    aggregate = atoi(execute->command->aggregate_id + 1);
    copy = &w->copies[worker][node][aggregate];
    if (w->workers_faulty && rng_chance(&w->worker_rng, 50))
        *copy = -1; /* it started anew and has nothing */
    *copy = bring_up(w, execute, *copy);
    if (*copy != (int64_t)execute->sequence) {
        *copy = -1;
        result->needs_history = true;
    } else {
        body[0] = strtoull(execute->command->json, NULL, 10) * 4;
        body[1] = execute->sequence;
        body[2] = 0;
        *event = (struct new_event){
            .type = BYTES_LITERAL("Counted"),
            .payload = {PAYLOAD_DATA, {(const uint8_t *)body, 3 * sizeof *body}}};
        result->events = event;
        result->event_count = 1;
        ++*copy;
        if (*copy % 6 == 0) {
            snprintf(saved, sizeof saved, "%lld", (long long)*copy);
            result->snapshot = (struct snapshot){.present = true,
                                                 .sequence = (uint64_t)*copy,
                                                 .payload = {PAYLOAD_JSON, bytes_of(saved)}};
        }
    }
    cairn__v1__execute__free_unpacked(execute, NULL);
}

/* ---- requests ---- */

static void put_expected(struct buffer *out, unsigned field, uint64_t expected)
{
    put_varint(out, field << 3);
    put_varint(out, expected);
}

void op_pack(const struct world *w, uint64_t index, struct buffer *out)
{
    const struct op *op = &w->ops[index];
    char id[24], aggregate[16], payload[24];
    size_t begun;

    snprintf(id, sizeof id, "c%llu",
             op->kind == OP_REUSE ? (unsigned long long)op->reused : (unsigned long long)index);
    snprintf(payload, sizeof payload, "%llu", (unsigned long long)op->payload);
    aggregate_name(op->aggregate, aggregate, sizeof aggregate);
    if (op->kind == OP_FORGET) {
        wire_forget_request_pack(out, bytes_of(id), op_subject(op));
        return;
    }
    if (op->kind == OP_APPEND) {
        put_bytes(out, 1, bytes_of(id));
        put_bytes(out, 2, bytes_of(type_name(op->aggregate)));
        put_bytes(out, 3, bytes_of(aggregate));
        begun = put_begin(out, 4);
        put_bytes(out, 1, BYTES_LITERAL("Appended"));
        put_bytes(out, 2, bytes_of(payload));
        put_bytes(out, 7, op_subject(op));
        put_end(out, begun);
        if (op->expected != UINT64_MAX)
            put_expected(out, 5, op->expected);
        return;
    }
    begun = put_begin(out, 1);
    put_bytes(out, 1, bytes_of(id));
    put_bytes(out, 2, bytes_of(type_name(op->aggregate)));
    put_bytes(out, 3, bytes_of(aggregate));
    put_bytes(out, 4, bytes_of(op->kind == OP_THREE ? "Three" : op->kind == OP_ODD ? "Odd" : "Add"));
    put_bytes(out, 5, bytes_of(payload));
    if (op->expected != UINT64_MAX)
        put_expected(out, 8, op->expected);
    put_bytes(out, 10, op_subject(op));
    put_end(out, begun);
}

/* ---- clients ---- */

static void next_step(struct world *w, uint64_t after_us, int client, uint64_t op_plus_one,
                      uint32_t attempt)
{
    world_at(w, w->now_us + after_us, EVENT_CLIENT, -1,
             op_plus_one << 32 | (uint64_t)attempt << 8 | (uint64_t)client, NULL);
}

static void send(struct world *w, uint64_t index)
{
    struct op *op = &w->ops[index];
    int copies = rng_chance(&w->client_rng, 100) ? 2 : 1;

    op->attempt++;
    w->figures.retries += op->attempt > 1;
    for (int i = 0; i < copies; i++)
        world_at(w, w->now_us + 50 + rng_below(&w->client_rng, 200), EVENT_REQUEST,
                 (int)rng_below(&w->client_rng, (uint64_t)w->node_count), index << 32 | op->attempt,
                 NULL);
    next_step(w, 300000 + rng_below(&w->client_rng, 300000), op->client, index + 1, op->attempt);
}

/* An op that was done, of the same aggregate: its id will be used again. */
static int to_reuse(struct world *w, int aggregate)
{
    for (int i = 0; i < 8 && w->op_count > 0; i++) {
        size_t index = rng_below(&w->client_rng, w->op_count);
        const struct op *op = &w->ops[index];

        if (op->aggregate == aggregate && op->state == OP_DONE && op->kind == OP_ADD)
            return (int)index;
    }
    return -1;
}

static void choose(struct world *w, struct op *op)
{
    uint64_t luck = rng_below(&w->client_rng, 100);

    op->aggregate = rng_chance(&w->client_rng, 300) ? 0 /* a hot one */
                                                    : (int)rng_below(&w->client_rng, AGGREGATES);
    op->expected = UINT64_MAX;
    op->kind = luck < 20 ? OP_READ : OP_ADD;
    if (op->kind == OP_ADD && aggregate_kind(op->aggregate) == PLAIN_TYPE) {
        op->kind = OP_APPEND;
    } else if (op->kind == OP_ADD && aggregate_kind(op->aggregate) == MODULE_TYPE) {
        op->reused = luck < 25 ? to_reuse(w, op->aggregate) : -1;
        op->kind = op->reused >= 0 ? OP_REUSE
                   : luck < 40     ? OP_THREE
                   : luck < 60     ? OP_ODD
                   : luck < 75     ? OP_EXPECT
                                   : OP_ADD;
    }
    if (op->kind == OP_READ && rng_chance(&w->forget_rng, w->forget_per_mille))
        op->kind = OP_FORGET;
    if (op->kind == OP_EXPECT || (op->kind == OP_APPEND && luck < 60))
        op->expected = w->aggregates[op->aggregate].floor;
}

void client_step(struct world *w, uint64_t number)
{
    int client = (int)(number & 0xFF);
    uint32_t attempt = (uint32_t)(number >> 8 & 0xFFFFFF);
    uint64_t index = number >> 32;
    char name[16];
    struct op *op;

    if (index > 0) { /* no answer, or one that says ask again */
        op = &w->ops[index - 1];
        if (op->state == OP_OPEN && op->attempt == attempt)
            send(w, index - 1);
        return;
    }
    if (w->now_us >= w->clients_until_ms * 1000 || w->op_count == OPS_MAX) {
        w->clients[client].finished = true;
        return;
    }
    index = w->op_count++;
    op = &w->ops[index];
    op->client = client;
    choose(w, op);
    op->payload = index + 1;
    op->floor = w->aggregates[op->aggregate].floor;
    op->began_us = w->now_us;
    op->partition = (uint16_t)(hash_bytes(bytes_of(aggregate_name(op->aggregate, name, sizeof name))) %
                               PARTITIONS);
    if (op->kind == OP_FORGET) {
        op->partition = (uint16_t)rng_below(&w->forget_rng, PARTITIONS);
        op->floor = 0; /* of no aggregate */
    }
    w->clients[client].op = (int)index;
    w->open_ops++;
    send(w, index);
}

static void end_op(struct world *w, struct op *op, enum op_state state)
{
    op->state = state;
    w->open_ops--;
    w->clients[op->client].op = -1;
    next_step(w, rng_below(&w->client_rng, 30000), op->client, 0, 0);
}

static bool outcome_unknown(enum status status)
{
    return status == STATUS_UNAVAILABLE || status == STATUS_DEADLINE ||
           status == STATUS_NOT_OWNER || status == STATUS_EXHAUSTED;
}

void client_answered(struct world *w, uint64_t index, struct answer *answer)
{
    struct op *op = &w->ops[index];

    w->figures.answers++;
    if (answer->status == STATUS_OK) {
        w->figures.refusals += answer->conflict;
        w->figures.repeats += op->state != OP_OPEN;
        oracle_answered(w, op, answer);
        if (op->state == OP_OPEN)
            end_op(w, op, OP_DONE);
    } else if (outcome_unknown(answer->status)) {
        w->figures.full += answer->status == STATUS_EXHAUSTED;
        if (op->state == OP_OPEN && answer->attempt == op->attempt)
            next_step(w, 10000 + rng_below(&w->client_rng, 40000), op->client, index + 1,
                      op->attempt);
    } else if (answer->status == STATUS_CONFLICT && op->expected != UINT64_MAX) {
        w->figures.refusals++;
        if (op->state == OP_DONE || op->committed)
            broken(w, 8, "c%llu is refused with a conflict but took effect",
                   (unsigned long long)index);
        if (op->state == OP_OPEN)
            end_op(w, op, OP_REFUSED);
    } else if (answer->status == STATUS_INVALID && op->kind == OP_REUSE) {
        w->figures.refusals++;
        if (op->state == OP_OPEN)
            end_op(w, op, OP_REFUSED);
    } else {
        broken(w, 8, "c%llu gets %s, which nothing explains", (unsigned long long)index,
               answer->reason);
    }
    free(answer);
}

/*
 * The promises, checked while it happens and at the end. Numbers as in the design: 1 one owner, 2 durable,
 * 3 gapless, 4 once, 5 all or nothing, 6 linearizable per aggregate, 7 in order to consumers, 8 honest errors and an end for
 * every command.
 *
 * The order of the log is the order of the history, so linearizability is that no answer is older than
 * what somebody was told before it was asked for.
 */
#include "sim.h"

void broken(struct world *w, int promise, const char *format, ...)
{
    va_list arguments;

    if (w->broken_promise != 0)
        return;
    w->broken_promise = promise;
    w->broken_at_us = w->now_us;
    va_start(arguments, format);
    vsnprintf(w->broken_text, sizeof w->broken_text, format, arguments);
    va_end(arguments);
}

static uint64_t entry_hash(struct bytes payload)
{
    return hash_bytes(payload) | 1; /* 0 is for no entry */
}

/* Element `index` of an array that grows with zeros. */
static uint64_t *element(uint64_t **array, size_t *room, uint64_t index)
{
    if (index >= *room) {
        size_t more = index * 2 + 64;

        *array = memory_grow(*array, more * sizeof **array);
        memset(*array + *room, 0, (more - *room) * sizeof **array);
        *room = more;
    }
    return &(*array)[index];
}

static uint64_t *entry_at(struct oracle_partition *p, uint64_t index)
{
    return element(&p->entries, &p->room, index);
}

uint64_t oracle_event(const struct oracle_partition *partition, uint64_t position)
{
    return position < partition->event_room ? partition->events[position] : 0;
}

static uint64_t *hash_at(struct oracle_aggregate *a, uint64_t events)
{
    return element(&a->hashes, &a->room, events);
}

static int number_behind(struct bytes name)
{
    int number = 0;

    for (size_t i = 1; i < name.len; i++)
        number = number * 10 + (name.data[i] - '0');
    return number;
}

/* ---- a new entry of the log ---- */

static void check_event(struct world *w, const struct op *op, int aggregate, struct bytes packed,
                        uint64_t sequence, uint64_t position, unsigned which)
{
    struct oracle_aggregate *a = &w->aggregates[aggregate];
    struct arena arena = {0};
    struct event event;
    struct fault fault;
    uint64_t body[3] = {0};
    struct oracle_partition *p = &w->partitions[op->partition];

    *element(&p->events, &p->event_room, position) = vault_event_hash(packed);
    *element(&a->subjects, &a->subject_room, sequence) = (uint64_t)op_subject_number(op);
    if (wire_event_decode(packed, &arena, &event, &fault) != STATUS_OK) {
        broken(w, 5, "a committed event doesn't decode: %s", fault.message);
        return;
    }
    if (event.sequence != sequence || event.position != position)
        broken(w, 3, "event of a%d has sequence %llu and position %llu, expected %llu and %llu",
               aggregate, (unsigned long long)event.sequence, (unsigned long long)event.position,
               (unsigned long long)sequence, (unsigned long long)position);
    if ((event.sealed_by != 0) != (op_subject(op).len > 0))
        broken(w, 5, "event %llu of a%d is %s", (unsigned long long)sequence, aggregate,
               event.sealed_by != 0 ? "sealed for nobody" : "not sealed");
    if (event.sealed_by != 0)
        event.payload.content = vault_peel(event.payload.content, &arena);
    if (event.payload.content.len == sizeof body)
        memcpy(body, event.payload.content.data, sizeof body);
    if (aggregate_kind(aggregate) != PLAIN_TYPE &&
        (body[0] != op->payload * 4 + which || body[1] != sequence))
        broken(w, 6, "event %llu of a%d was decided on %llu events", (unsigned long long)sequence,
               aggregate, (unsigned long long)body[1]);
    if (aggregate_kind(aggregate) == MODULE_TYPE) {
        if (body[2] != *hash_at(a, sequence))
            broken(w, 6, "event %llu of a%d was decided on a state that never was",
                   (unsigned long long)sequence, aggregate);
        *element(&a->numbers, &a->number_room, sequence) = body[0];
        *hash_at(a, sequence + 1) = counter_next(*hash_at(a, sequence), body[0]);
    }
    arena_release(&arena);
}

/* What is told of an event of somebody who was forgotten meanwhile: that it is forgotten, and nothing else. */
bool oracle_may_be_forgotten(struct world *w, struct bytes packed)
{
    struct arena arena = {0};
    struct event event;
    struct fault fault;
    bool forgotten = wire_event_decode(packed, &arena, &event, &fault) == STATUS_OK && event.forgotten;

    if (forgotten && !vault_is_forgotten(w, &event))
        broken(w, 7, "position %llu of partition %u is given as forgotten, and isn't", (unsigned long long)event.position,
               event.partition);
    if (forgotten && event.payload.kind != PAYLOAD_NONE)
        broken(w, 7, "position %llu of partition %u is given as forgotten, with a payload",
               (unsigned long long)event.position, event.partition);
    arena_release(&arena);
    return forgotten;
}

/* States are from now on as if the events of the subject had been about nothing. */
static void forget(struct world *w, const struct op *op)
{
    int subject = op_subject_number(op);

    w->partitions[op->partition].forgotten[subject - 1] = w->partitions[op->partition].next_position;
    w->partitions[op->partition].forgotten_at[subject - 1] = op->index;
    w->figures.forgotten++;
    for (int i = 0; i < AGGREGATES; i++) {
        struct oracle_aggregate *a = &w->aggregates[i];
        char name[16];

        if (aggregate_kind(i) != MODULE_TYPE ||
            hash_bytes(bytes_of(aggregate_name(i, name, sizeof name))) % PARTITIONS != op->partition)
            continue;
        for (uint64_t k = 0; k < a->count; k++) {
            if (*element(&a->subjects, &a->subject_room, k) == (uint64_t)subject)
                *element(&a->numbers, &a->number_room, k) = 0;
            *hash_at(a, k + 1) = counter_next(*hash_at(a, k), *element(&a->numbers, &a->number_room, k));
        }
    }
}

static void check_forget(struct world *w, uint16_t partition, uint64_t index, const struct command_record *record)
{
    const struct outcome *outcome = &record->outcome;
    size_t id = (size_t)number_behind(outcome->command_id);
    struct op *op = &w->ops[id];

    if (id >= w->op_count || op->kind != OP_FORGET || op->partition != partition) {
        broken(w, 4, "an order to forget is committed that nobody gave");
        return;
    }
    if (op->committed)
        broken(w, 4, "c%zu took effect twice, at %llu and %llu", id, (unsigned long long)op->index,
               (unsigned long long)index);
    if (outcome->rejection.present || record->event_count > 0 || outcome->first_sequence > 0 ||
        outcome->first_position != w->partitions[partition].next_position)
        broken(w, 5, "c%zu, an order to forget, has an outcome that isn't one", id);
    op->committed = true;
    op->index = index;
}

static void check_command(struct world *w, uint16_t partition, uint64_t index,
                          const struct command_record *record)
{
    const struct outcome *outcome = &record->outcome;
    size_t id = (size_t)number_behind(outcome->command_id);
    int aggregate = number_behind(outcome->aggregate_id);
    struct op *op = &w->ops[id];
    struct oracle_aggregate *a = &w->aggregates[aggregate];
    struct oracle_partition *p = &w->partitions[partition];
    bool conflict = op->expected != UINT64_MAX && op->expected > a->count;
    bool rejects = conflict || (op->kind == OP_ODD && a->count % 2 == 1);
    size_t events = rejects ? 0 : op->kind == OP_THREE ? 3 : 1;

    if (id >= w->op_count || op->kind == OP_READ || aggregate != op->aggregate) {
        broken(w, 4, "a command is committed that nobody sent");
        return;
    }
    if (op->committed)
        broken(w, 4, "c%zu took effect twice, at %llu and %llu", id, (unsigned long long)op->index,
               (unsigned long long)index);
    if (op->state == OP_REFUSED)
        broken(w, 8, "c%zu was refused and takes effect after all", id);
    if (outcome->conflict != conflict)
        broken(w, 6, "c%zu expected %llu events, has an outcome at %llu that %s a conflict", id,
               (unsigned long long)op->expected, (unsigned long long)a->count, conflict ? "isn't" : "is");
    if (op->expected != UINT64_MAX && op->expected < a->count)
        broken(w, 6, "c%zu expected %llu events and was accepted at %llu", id,
               (unsigned long long)op->expected, (unsigned long long)a->count);
    if (outcome->first_position != p->next_position || outcome->first_sequence != a->count)
        broken(w, 3, "c%zu starts at position %llu and sequence %llu, expected %llu and %llu", id,
               (unsigned long long)outcome->first_position,
               (unsigned long long)outcome->first_sequence, (unsigned long long)p->next_position,
               (unsigned long long)a->count);
    if (outcome->rejection.present != rejects)
        broken(w, 6, "c%zu at %llu events is %s", id, (unsigned long long)a->count,
               rejects ? "accepted but had to be rejected" : "rejected for no reason");
    if (record->event_count != events || outcome->event_count != events)
        broken(w, 5, "c%zu has %zu events, expected %zu", id, record->event_count, events);
    for (size_t i = 0; i < record->event_count; i++)
        check_event(w, op, aggregate, record->packed_events[i], a->count + i, p->next_position + i,
                    (unsigned)i);
    op->committed = true;
    op->index = index;
    op->first_sequence = a->count;
    op->event_count = (uint32_t)events;
    op->rejected = rejects;
    op->conflict = conflict;
    a->count += events;
    p->next_position += events;
    w->figures.rejected += rejects;
}

static void check_snapshot(struct world *w, const struct snapshot_record *record)
{
    int aggregate = number_behind(record->snapshot.aggregate_id);
    struct bytes content = record->snapshot.payload.content;
    struct arena arena = {0};
    uint64_t state[2] = {0};

    w->figures.snapshots++;
    if (record->snapshot.sequence > w->aggregates[aggregate].count)
        broken(w, 6, "a snapshot of a%d includes events that aren't there", aggregate);
    for (size_t i = 0; i < record->snapshot.seal_count; i++)
        content = vault_peel(content, &arena);
    if (content.len == sizeof state)
        memcpy(state, content.data, sizeof state);
    arena_release(&arena);
    if (aggregate_kind(aggregate) != MODULE_TYPE || content.len != sizeof state)
        return;
    if (state[0] != record->snapshot.sequence ||
        state[1] != *hash_at(&w->aggregates[aggregate], record->snapshot.sequence))
        broken(w, 6, "a snapshot of a%d at %llu events isn't its state", aggregate,
               (unsigned long long)record->snapshot.sequence);
}

static bool is_forget(const struct command_record *record)
{
    return record->outcome.aggregate_id.len > 0 && record->outcome.aggregate_id.data[0] == 1;
}

void oracle_applied(struct node *n, uint16_t partition, uint64_t index, struct bytes payload)
{
    struct world *w = n->world;
    struct oracle_partition *p = &w->partitions[partition];
    uint64_t *entry = entry_at(p, index);
    struct arena arena = {0};
    const struct command_record *forgets = NULL;
    struct log_batch batch;
    struct fault fault;

    world_mix(w, payload.data, payload.len);
    if (*entry != 0 && *entry != entry_hash(payload))
        broken(w, 1, "node %d applies another entry %llu of partition %u than others", n->index,
               (unsigned long long)index, partition);
    if (*entry == 0 && index < p->last_index)
        broken(w, 1, "node %d applies an entry %llu of partition %u where others had none",
               n->index, (unsigned long long)index, partition);
    if (*entry != 0 || w->broken_promise != 0)
        return;
    *entry = entry_hash(payload);
    p->last_index = index;
    if (wire_log_batch_decode(payload, &arena, &batch, &fault) != STATUS_OK) {
        broken(w, 5, "a committed entry doesn't decode: %s", fault.message);
    } else {
        for (size_t i = 0; i < batch.command_count && w->broken_promise == 0; i++) {
            if (forgets != NULL) /* what is decided behind it must know */
                broken(w, 6, "commands were decided on what is forgotten before them");
            if (is_forget(&batch.commands[i])) {
                forgets = &batch.commands[i];
                check_forget(w, partition, index, forgets);
            } else {
                check_command(w, partition, index, &batch.commands[i]);
            }
        }
        for (size_t i = 0; i < batch.snapshot_count && w->broken_promise == 0; i++)
            check_snapshot(w, &batch.snapshots[i]);
        if (forgets != NULL && w->broken_promise == 0)
            forget(w, &w->ops[number_behind(forgets->outcome.command_id)]);
    }
    arena_release(&arena);
}

/* ---- answers ---- */

static bool on_disk(struct node *n, uint16_t partition, uint64_t index, uint64_t hash)
{
    struct store_key log = key_log(partition, index);
    struct store_key meta = key_partition_meta(partition, "applied");
    struct arena arena = {0};
    struct bytes value;
    struct log_entry entry;
    struct applied applied;
    struct fault fault;
    bool there =
        (store_get(n->store, STORE_LOG, key_bytes(&log), &arena, &value, &fault) == STATUS_OK &&
         wire_log_entry_decode(value, &entry, &fault) == STATUS_OK &&
         entry_hash(entry.payload) == hash) ||
        (store_get(n->store, STORE_META, key_bytes(&meta), &arena, &value, &fault) == STATUS_OK &&
         wire_applied_decode(value, &applied, &fault) == STATUS_OK && applied.index >= index);

    arena_release(&arena);
    return there;
}

static size_t disks_with(struct world *w, const struct replica_set *set, const struct op *op)
{
    size_t have = 0;

    for (size_t i = 0; i < set->count; i++)
        for (int j = 0; j < w->node_count; j++)
            if (w->ids[j] == set->replicas[i])
                have += on_disk(&w->nodes[j], op->partition, op->index,
                                *entry_at(&w->partitions[op->partition], op->index));
    return have;
}

/* While a configuration is new, the majority of either counts: each two of them overlap. */
void oracle_durable(struct node *n, const struct outcome *outcome)
{
    struct world *w = n->world;
    size_t id = (size_t)number_behind(outcome->command_id);
    const struct op *op = &w->ops[id];
    struct partition_configuration configuration;
    size_t have;

    if (id >= w->op_count) {
        broken(w, 4, "node %d answers a command that nobody sent", n->index);
        return;
    }
    if (!op->committed) {
        broken(w, 2, "node %d answers c%zd, which isn't committed",
               n->index, op - w->ops);
        return;
    }
    partition_configuration(engine_replica(n->engine, op->partition), &configuration);
    have = disks_with(w, &configuration.voters, op);
    if (have * 2 <= configuration.voters.count &&
        disks_with(w, &configuration.newest_voters, op) * 2 <= configuration.newest_voters.count)
        broken(w, 2, "node %d answers c%zd at index %llu of partition %u when %zu of %zu disks have it (configuration %llu)",
               n->index, op - w->ops, (unsigned long long)op->index, op->partition, have, configuration.voters.count,
               (unsigned long long)configuration.index);
}

void oracle_answered(struct world *w, struct op *op, const struct answer *answer)
{
    struct oracle_aggregate *a = &w->aggregates[op->aggregate];
    uint64_t seen = answer->is_read ? answer->count : answer->first_sequence + answer->event_count;

    if (answer->is_read) {
        w->figures.reads++;
        if (op->state == OP_OPEN && answer->count < op->floor)
            broken(w, 6, "a read of a%d sees %llu events, but %llu had been acknowledged",
                   op->aggregate, (unsigned long long)answer->count,
                   (unsigned long long)op->floor);
        if (answer->count > a->count)
            broken(w, 6, "a read of a%d sees %llu events, but %llu are committed", op->aggregate,
                   (unsigned long long)answer->count, (unsigned long long)a->count);
    } else {
        if (op->kind == OP_REUSE)
            broken(w, 4, "the id of c%d is used again for something else and gets an outcome",
                   op->reused);
        if (!op->committed || answer->first_sequence != op->first_sequence ||
            answer->event_count != op->event_count || answer->rejected != op->rejected ||
            answer->conflict != op->conflict)
            broken(w, 4, "c%zd is answered with another outcome than the recorded one",
                   op - w->ops);
        if (op->state == OP_OPEN && answer->first_sequence < op->floor)
            broken(w, 6, "c%zd was decided at %llu events, but %llu had been acknowledged before",
                   op - w->ops, (unsigned long long)answer->first_sequence,
                   (unsigned long long)op->floor);
    }
    if (seen > a->floor)
        a->floor = seen;
}

/* ---- the end ---- */

static const struct partition *replica(const struct world *w, int node, uint16_t p)
{
    return w->nodes[node].alive ? engine_replica(w->nodes[node].engine, p) : NULL;
}

static bool replicas_agree(struct world *w, uint16_t p)
{
    uint64_t index = 0;

    for (int i = 0; i < w->node_count; i++) {
        struct partition_view view;

        if (replica(w, i, p) == NULL)
            continue;
        view = partition_view(replica(w, i, p));
        if (view.installing || view.stored_index != view.applied.index ||
            view.commit_index != view.last_index || (index != 0 && view.applied.index != index))
            return false;
        index = view.applied.index;
    }
    return true;
}

bool oracle_placed(const struct world *w, char *why, size_t room)
{
    const struct placement *newest = NULL;

    for (int i = 0; i < w->node_count; i++) {
        const struct placement *one = w->nodes[i].alive ? engine_placement(w->nodes[i].engine) : NULL;

        if (one != NULL && (newest == NULL || one->version > newest->version))
            newest = one;
    }
    for (uint16_t p = 0; newest != NULL && p <= PARTITIONS; p++)
        for (int i = 0; i < w->node_count; i++) {
            bool should = replica_set_holds(&newest->sets[p], w->ids[i]);
            bool removed = false;

            for (size_t k = 0; k < newest->member_count; k++)
                removed = removed || (newest->members[k].node_id == w->ids[i] &&
                                      newest->members[k].state == PLACED_REMOVED);
            if (should && removed) {
                snprintf(why, room, "node %d is removed and should still hold partition %u", i, p);
                return false;
            }
            if (w->nodes[i].alive && should != (replica(w, i, p) != NULL)) {
                snprintf(why, room, "node %d %s partition %u", i, should ? "lacks" : "still holds", p);
                return false;
            }
            if (w->nodes[i].alive && should) {
                struct partition_configuration c;
                partition_configuration(replica(w, i, p), &c);
                if (c.voters.count != newest->sets[p].count || c.standbys.count > 0) {
                    snprintf(why, room, "node %d knows %zu voters and %zu standbys of partition %u", i,
                             c.voters.count, c.standbys.count, p);
                    return false;
                }
            }
        }
    for (int i = 0; i < w->node_count; i++)
        if (w->nodes[i].leaving && !w->nodes[i].lost) {
            snprintf(why, room, "node %d should be gone", i);
            return false;
        }
    return newest != NULL;
}

/* Every node that is alive knows who owns each partition; else *who doesn't. */
static bool owners_known(struct world *w, int *who)
{
    for (uint16_t p = 0; p < PARTITIONS; p++)
        for (int i = 0; i < w->node_count; i++) {
            uint64_t epoch;
            uint64_t owner = w->nodes[i].alive ? engine_owner(w->nodes[i].engine, p, &epoch) : 0;
            bool right = false;

            for (int j = 0; j < w->node_count && owner != 0; j++)
                right = right || (w->ids[j] == owner && replica(w, j, p) != NULL &&
                                  partition_is_owner(replica(w, j, p)));
            if (w->nodes[i].alive && !right) {
                if (who != NULL)
                    *who = i;
                return false;
            }
        }
    return true;
}

static bool keys_are_wrapped(struct world *w)
{
    for (uint16_t p = 0; p < PARTITIONS; p++)
        for (int i = 0; i < w->node_count; i++)
            if (replica(w, i, p) != NULL && engine_aggregates_view(w->nodes[i].engine, p).rewrapping)
                return false;
    return true;
}

bool oracle_settled(struct world *w)
{
    char why[100];

    if (!w->healed || w->open_ops > 0)
        return false;
    for (int i = 0; i < CLIENTS; i++)
        if (!w->clients[i].finished)
            return false;
    for (uint16_t p = 0; p < PARTITIONS; p++)
        if (!replicas_agree(w, p))
            return false;
    return owners_known(w, NULL) && oracle_placed(w, why, sizeof why) && subscribers_settled(w) && group_settled(w) &&
           keys_are_wrapped(w);
}

static void compare_stores(struct world *w, struct node *a, struct node *b, uint16_t p)
{
    struct store_key from = key_partition_begin(p);
    struct store_key to = key_partition_end(p);

    for (int family = STORE_EVENTS; family < STORE_LOG; family++) {
        struct store_cursor *one = store_cursor_new(a->store, (enum store_family)family,
                                                    key_bytes(&from), key_bytes(&to), false);
        struct store_cursor *two = store_cursor_new(b->store, (enum store_family)family,
                                                    key_bytes(&from), key_bytes(&to), false);
        struct bytes key[2], value[2];
        struct fault fault;
        enum status first, second;

        do {
            first = store_cursor_next(one, &key[0], &value[0], &fault);
            second = store_cursor_next(two, &key[1], &value[1], &fault);
            if (first != second || (first == STATUS_OK && (!bytes_equal(key[0], key[1]) ||
                                                           !bytes_equal(value[0], value[1])))) {
                char name[200] = "(end)";

                if (first == STATUS_OK)
                    key_describe(key[0], name, sizeof name);
                broken(w, 2, "partition %u: %s of nodes %d and %d differ at %s", p,
                       store_family_name((enum store_family)family), a->index, b->index, name);
            }
        } while (first == STATUS_OK && second == STATUS_OK && w->broken_promise == 0);
        store_cursor_free(one);
        store_cursor_free(two);
    }
}

static uint64_t stored_records(struct node *n, enum store_family family, uint16_t p)
{
    struct store_key from = key_partition_begin(p);
    struct store_key to = key_partition_end(p);
    struct store_cursor *cursor =
        store_cursor_new(n->store, family, key_bytes(&from), key_bytes(&to), false);
    struct bytes key, value;
    struct fault fault;
    uint64_t count = 0;

    while (store_cursor_next(cursor, &key, &value, &fault) == STATUS_OK)
        count++;
    store_cursor_free(cursor);
    return count;
}

static void check_stored(struct world *w, struct node *n, uint16_t p)
{
    uint64_t commands = 0;

    for (size_t i = 0; i < w->op_count; i++)
        commands += w->ops[i].committed && w->ops[i].partition == p;
    if (stored_records(n, STORE_EVENTS, p) != w->partitions[p].next_position ||
        stored_records(n, STORE_POSITIONS, p) != w->partitions[p].next_position)
        broken(w, 2, "node %d has %llu events and %llu positions of partition %u, committed: %llu",
               n->index, (unsigned long long)stored_records(n, STORE_EVENTS, p),
               (unsigned long long)stored_records(n, STORE_POSITIONS, p), p,
               (unsigned long long)w->partitions[p].next_position);
    vault_check(w, n, p);
    if (stored_records(n, STORE_OUTCOMES, p) != commands)
        broken(w, 4, "node %d has %llu outcomes of partition %u, committed: %llu", n->index,
               (unsigned long long)stored_records(n, STORE_OUTCOMES, p), p,
               (unsigned long long)commands);
}

void oracle_final(struct world *w)
{
    int unknowing = 0;
    char why[100] = "";

    for (int i = 0; i < CLIENTS; i++)
        if (w->clients[i].op >= 0)
            broken(w, 8, "c%d has no end %llu s after the faults ended", w->clients[i].op,
                   (unsigned long long)(w->now_us / 1000000 - 10));
    if (!owners_known(w, &unknowing))
        broken(w, 9, "node %d doesn't know an owner %llu s after the faults ended", unknowing,
               (unsigned long long)(w->now_us / 1000000 - 10));
    if (!oracle_placed(w, why, sizeof why))
        broken(w, 9, "%s %llu s after the faults ended", why, (unsigned long long)(w->now_us / 1000000 - 10));
    subscribers_final(w);
    group_final(w);
    for (uint16_t p = 0; p < PARTITIONS && w->broken_promise == 0; p++) {
        struct node *first = NULL;

        for (int i = 0; i < w->node_count && !replicas_agree(w, p); i++)
            if (replica(w, i, p) != NULL) {
                struct partition_view view = partition_view(replica(w, i, p));

                world_note(w,
                           "node %d: %s, term %llu, leader %llx, last %llu, commit %llu, applied %llu, "
                           "stored %llu%s",
                           i, view.owner ? "owner" : "replica", (unsigned long long)view.term,
                           (unsigned long long)view.leader, (unsigned long long)view.last_index,
                           (unsigned long long)view.commit_index,
                           (unsigned long long)view.applied.index,
                           (unsigned long long)view.stored_index,
                           view.installing ? ", installing" : "");
            }
        if (!replicas_agree(w, p))
            broken(w, 2, "the replicas of partition %u don't come together", p);
        for (int i = 0; i < w->node_count && w->broken_promise == 0; i++) {
            struct node *n = &w->nodes[i];
            struct aggregates_view view;

            if (replica(w, i, p) == NULL)
                continue;
            view = engine_aggregates_view(n->engine, p);
            if (view.waiting != 0 || view.executing != 0 || view.processing != 0)
                broken(w, 9, "node %d still holds commands of partition %u", i, p);
            check_stored(w, n, p);
            if (first != NULL)
                compare_stores(w, first, n, p);
            else
                first = n;
        }
    }
}

/*
 * A shard: the thread that drives one engine (lib/engine). Each turn it takes all letters, gives them to
 * the engine with the time, and carries its effects to storage, links, workers and callers.
 */
#include "shard.h"

static uint16_t disk_free_mib(struct node *node)
{
    uint64_t bytes = atomic_load_explicit(&node->disk_free_bytes, memory_order_relaxed);
    uint64_t mib = bytes >> 20;

    return bytes == 0 ? 0 : mib >= UINT16_MAX ? UINT16_MAX : mib == 0 ? 1 : (uint16_t)mib;
}

static struct moment now(void)
{
    return (struct moment){clock_monotonic_ms(), clock_wall_ms()};
}

/* ---- effects of the engine ---- */

static void effect_send(void *context, uint64_t to, struct bytes frame)
{
    struct shard *shard = context;

    links_send(shard->node->links, to, frame);
}

static void effect_persist(void *context, struct store_batch *batch, uint64_t ticket)
{
    struct shard *shard = context;

    storage_write(shard->node->storage, shard, batch, ticket);
    for (uint32_t p = 0; shard->any_forgot && p <= PARTITIONS_MAX; p++)
        if ((shard->forgot[p / 64] >> p % 64 & 1) != 0)
            storage_forget(shard->node->storage, p);
    if (shard->any_forgot)
        memset(shard->forgot, 0, sizeof shard->forgot);
    shard->any_forgot = false;
}

static struct store_batch *effect_empty_batch(void *context)
{
    struct shard *shard = context;

    return storage_take_batch(shard->node->storage);
}

static bool effect_reachable(void *context, uint64_t node_id)
{
    struct shard *shard = context;

    return links_up(shard->node->links, node_id);
}

static bool effect_alive(void *context, uint64_t node_id)
{
    struct shard *shard = context;

    return control_member_status(shard->node->control, node_id) == MEMBER_ALIVE;
}

static struct routed *effect_arrived(void *context)
{
    struct shard *shard = context;

    return &request_new(shard->node)->routed;
}

static void effect_answered(void *context, struct routed *routed, const struct outcome *outcome,
                            const struct fault *fault)
{
    struct node *node = ((struct shard *)context)->node;
    struct request *r = CONTAINER_OF(routed, struct request, routed);

    if (routed->peer != 0)
        return;
    if (outcome != NULL && outcome->rejection.present)
        METRIC_ADD(node, commands_rejected, 1);
    else if (outcome != NULL)
        METRIC_ADD(node, commands_accepted, 1);
    else
        METRIC_ADD(node, commands_failed, 1);
    histogram_add(&node->metrics.command_latency, clock_monotonic_us() - r->started_us);
    request_answer(r, outcome, fault);
}

static void effect_released(void *context, struct routed *routed)
{
    (void)context;
    request_free(CONTAINER_OF(routed, struct request, routed));
}

static void effect_read_ready(void *context, struct awaited_read *read, const struct fault *fault)
{
    struct awaiting *awaiting = CONTAINER_OF(read, struct awaiting, read);

    (void)context;
    awaiting->ready(awaiting, fault);
}

static const struct cairn_aggregate_type *effect_module_type(void *context, struct bytes name)
{
    struct shard *shard = context;

    return modules_type(shard->node->modules, name);
}

static enum status effect_pick_worker(void *context, const struct command *command, uint64_t hint,
                                      uint64_t *worker, struct fault *fault)
{
    struct shard *shard = context;

    return workers_pick(shard->node->workers, command, hint, worker, fault);
}

static void effect_execute(void *context, uint32_t partition, uint64_t worker,
                           uint64_t execution_id, struct bytes packed, uint64_t deadline_ms)
{
    struct shard *shard = context;

    workers_execute(shard->node->workers, shard, partition, worker, execution_id, packed,
                    deadline_ms);
}

static void effect_need_range(void *context, uint32_t partition, uint64_t leader, uint64_t index,
                              uint64_t term)
{
    range_fetch_start(((struct shard *)context)->node, partition, leader, index, term);
}

static void effect_stop_range(void *context, uint32_t partition)
{
    range_fetch_stop(((struct shard *)context)->node, partition);
}

static void effect_committed(void *context, uint32_t partition, uint64_t index,
                             struct bytes payload)
{
    (void)context;
    (void)partition;
    (void)index;
    (void)payload;
}

static uint64_t effect_clock_us(void *context)
{
    (void)context;
    return clock_monotonic_us();
}

static bool effect_publish(void *context, uint32_t partition, uint64_t ticket,
                           const struct command_record *record)
{
    struct shard *shard = context;

    return local_bus_publish(shard->node->local_bus, shard, partition, ticket, record);
}

static void effect_forget(void *context, uint32_t partition, uint64_t ticket)
{
    struct shard *shard = context;

    local_bus_forget(shard->node->local_bus, shard, partition, ticket);
}

static void effect_forgot(void *context, uint32_t partition)
{
    struct shard *shard = context;

    shard->forgot[partition / 64] |= 1ULL << partition % 64;
    shard->any_forgot = true;
}

static void effect_stored(void *context, uint32_t partition)
{
    feeder_notify(((struct shard *)context)->node->feeder, partition);
}

static void effect_route(void *context, const struct owner_note *note)
{
    struct node *node = ((struct shard *)context)->node;

    if (routes_set(node->routes, note))
        through_streams_moved(node->through_streams, note->partition);
}

static void effect_known(void *context, uint32_t partition, struct owner_note *note)
{
    routes_get(((struct shard *)context)->node->routes, partition, note);
}

static const struct member_state *effect_members(void *context, struct arena *arena, size_t *count)
{
    return control_members(((struct shard *)context)->node->control, arena, count);
}

static void effect_held(void *context, uint32_t partition, bool held)
{
    struct node *node = ((struct shard *)context)->node;

    if (partition >= node_partition_count(node))
        return;
    routes_hold(node->routes, partition, held);
    if (!held)
        feeder_moved(node->feeder);
}

static void effect_placement(void *context, const struct placement *placement)
{
    struct shard *shard = context;
    struct node *node = shard->node;

    if (!placements_set(node->placements, placement))
        return;
    atomic_store(&node->metrics.placement_version, placement->version);
    node_release_raised(node, placement->release);
    for (size_t i = 0; i < node->shard_count; i++)
        if (node->shards[i] != shard) {
            struct letter *letter = memory_zero(1, sizeof *letter);

            letter->kind = LETTER_PLACED;
            shard_send(node->shards[i], letter);
        }
}

/* Another shard's engine learned a newer one. */
static void take_placement(struct shard *shard)
{
    struct arena arena = {0};
    struct placement placement;

    if (placements_get(shard->node->placements, &arena, &placement))
        engine_placed(shard->engine, &placement);
    arena_release(&arena);
}

static void effect_count(void *context, enum engine_count what)
{
    struct metrics *metrics = &((struct shard *)context)->node->metrics;
    atomic_ullong *const counters[] = {
        [ENGINE_FORWARDED] = &metrics->commands_forwarded,
        [ENGINE_RESENT] = &metrics->commands_resent,
        [ENGINE_GAINED] = &metrics->ownership_gained,
        [ENGINE_LOST] = &metrics->ownership_lost,
        [ENGINE_REPAIRED] = &metrics->repairs,
    };

    atomic_fetch_add_explicit(counters[what], 1, memory_order_relaxed);
}

static void effect_failed(void *context, const struct fault *fault)
{
    node_fail(((struct shard *)context)->node, fault);
}

static const struct engine_effects effects = {
    .send = effect_send,
    .persist = effect_persist,
    .empty_batch = effect_empty_batch,
    .reachable = effect_reachable,
    .alive = effect_alive,
    .arrived = effect_arrived,
    .answered = effect_answered,
    .released = effect_released,
    .read_ready = effect_read_ready,
    .module_type = effect_module_type,
    .pick_worker = effect_pick_worker,
    .execute = effect_execute,
    .clock_us = effect_clock_us,
    .publish = effect_publish,
    .forget = effect_forget,
    .forgot = effect_forgot,
    .need_range = effect_need_range,
    .stop_range = effect_stop_range,
    .committed = effect_committed,
    .stored = effect_stored,
    .route = effect_route,
    .known = effect_known,
    .members = effect_members,
    .held = effect_held,
    .placement = effect_placement,
    .count = effect_count,
    .failed = effect_failed,
};

/* ---- letters ---- */

/* Done with a letter, or it comes too late or too early: commands and reads still want an answer. */
static void letter_drop(struct shard *shard, struct letter *letter)
{
    struct fault fault;

    switch (letter->kind) {
    case LETTER_REQUEST: {
        struct request *r = CONTAINER_OF(letter, struct request, letter);

        (void)fault_set(&fault, STATUS_UNAVAILABLE, "NODE_STOPPING",
                        "this node stops; ask another one with the same command id");
        request_answer(r, NULL, &fault);
        request_free(r);
        return;
    }
    case LETTER_READ:
        reads_refuse(shard, CONTAINER_OF(letter, struct reading, letter));
        return;
    case LETTER_READ_ON: /* part of its reading */
        return;
    case LETTER_AWAIT: {
        struct awaiting *awaiting = CONTAINER_OF(letter, struct awaiting, letter);

        (void)fault_set(&fault, STATUS_UNAVAILABLE, "NODE_STOPPING", "this node stops; ask another");
        awaiting->ready(awaiting, &fault);
        return;
    }
    case LETTER_APPEND:
        blob_drop(((struct append_letter *)letter)->payload);
        break;
    case LETTER_FRAME:
        shared_frame_drop(((struct frame_letter *)letter)->shared);
        break;
    case LETTER_EXECUTED:
        arena_release(&((struct executed_letter *)letter)->arena);
        break;
    case LETTER_PROCESSED:
        arena_release(&((struct processed_letter *)letter)->arena);
        break;
    case LETTER_ORDER:
        (void)fault_set(&fault, STATUS_UNAVAILABLE, "NODE_STOPPING", "this node stops; ask another");
        orders_decided(((struct order_letter *)letter)->job, 0, &fault);
        break;
    case LETTER_SEND:
        buffer_release(&((struct send_letter *)letter)->part);
        break;
    default:
        break;
    }
    free(letter);
}

static void start(struct shard *shard)
{
    struct node *node = shard->node;
    const struct config *config = &node->config;
    size_t share = node_partition_count(node) / 4 + 1;
    struct engine_settings settings = {
        .node_id = node->id,
        .index = shard->index,
        .count = node->shard_count,
        .founding = atomic_load(&node->founding),
        .placement = {.moves_at_once = (uint32_t)config->moves_at_once,
                      .transfer_bytes = config->transfer_bytes,
                      .grace_ms = config->member_grace_ms},
        .planner = {.settle_ms = config->balance_after_ms},
        .election_ms = (unsigned)config->election_timeout_ms,
        .heartbeat_ms = (unsigned)config->heartbeat_interval_ms,
        .disk_reserve_mib = (uint16_t)(config->disk_reserve_bytes >> 20),
        .payload_bytes_max = (uint32_t)config->payload_bytes_max,
        .outcome_retention_ms = config->outcome_retention_ms,
        .snapshot_every = config->snapshot_every,
        .snapshot_after_us = config->snapshot_after_ms * 1000,
        .cache_bytes = AGGREGATE_CACHE_BYTES / share,
        .cache_count = AGGREGATE_CACHE_COUNT / share,
        .vault = subjects_vault(node),
        .seed = random_u64(),
    };
    struct engine_effects here = effects;
    struct fault fault;

    here.context = shard;
    if (engine_new(&shard->engine, &settings, &here, node->store, now(), &fault) != STATUS_OK) {
        node_fail(node, &fault);
        return;
    }
    engine_begin(shard->engine, now(), disk_free_mib(node));
    if (shard->index == 0)
        local_bus_begin(node->local_bus);
}

/* Without an engine there is no cluster: who sent it asks again. */
static void refuse_early(struct shard *shard, struct letter *letter)
{
    shard->stopping = shard->stopping || letter->kind == LETTER_STOP;
    if (letter->kind == LETTER_START)
        start(shard);
    letter_drop(shard, letter);
}

static void take_letter(struct shard *shard, struct letter *letter)
{
    struct engine *engine = shard->engine;

    switch (letter->kind) {
    case LETTER_REQUEST:
        engine_take(engine, &CONTAINER_OF(letter, struct request, letter)->routed);
        return;
    case LETTER_READ:
        reads_take(shard, CONTAINER_OF(letter, struct reading, letter));
        return;
    case LETTER_READ_ON:
        reads_go_on(shard, CONTAINER_OF(letter, struct reading, more));
        return;
    case LETTER_AWAIT:
        engine_await(engine, &CONTAINER_OF(letter, struct awaiting, letter)->read);
        return;
    case LETTER_APPEND: {
        struct append_letter *append = (struct append_letter *)letter;

        (void)!engine_append(engine, append->partition, append->payload);
        append->payload = NULL;
        break;
    }
    case LETTER_FRAME: {
        struct shared_frame *shared = ((struct frame_letter *)letter)->shared;

        engine_frame(engine, shared->from, &shared->frame);
        break;
    }
    case LETTER_WRITTEN:
        engine_written(engine, ((struct written_letter *)letter)->ticket);
        break;
    case LETTER_EXECUTED: {
        struct executed_letter *executed = (struct executed_letter *)letter;

        engine_executed(engine, executed->partition, executed->execution_id, executed->worker,
                        executed->died ? NULL : &executed->result);
        break;
    }
    case LETTER_PROCESSED: {
        struct processed_letter *processed = (struct processed_letter *)letter;

        engine_processed(engine, processed->partition, processed->ticket, processed->failures,
                         processed->failure_count);
        break;
    }
    case LETTER_WORKERS_CHANGED:
        engine_workers_changed(engine);
        break;
    case LETTER_LINK:
        engine_link(engine, ((struct link_letter *)letter)->node_id,
                    ((struct link_letter *)letter)->up);
        break;
    case LETTER_START:
        break;
    case LETTER_INSTALLED: {
        struct installed_letter *installed = (struct installed_letter *)letter;

        METRIC_ADD(shard->node, ranges_installed, 1);
        engine_installed(engine, installed->partition,
                         installed->stopped ? NULL : &installed->applied);
        break;
    }
    case LETTER_DAMAGED:
        (void)engine_damaged(engine, ((struct damaged_letter *)letter)->partition,
                             &((struct damaged_letter *)letter)->fault);
        break;
    case LETTER_SEND: {
        struct send_letter *send = (struct send_letter *)letter;

        buffer_add(engine_outbox(engine, send->to), send->part.data, send->part.len);
        break;
    }
    case LETTER_VAULT:
        engine_set_vault(engine, subjects_vault(shard->node));
        break;
    case LETTER_PLACED:
        take_placement(shard);
        break;
    case LETTER_ORDER: {
        struct order_job *job = ((struct order_letter *)letter)->job;
        struct fault fault;
        uint64_t version = 0;
        bool ok = engine_order(engine, orders_order(job), &version, &fault) == STATUS_OK;

        orders_decided(job, version, ok ? NULL : &fault);
        free(letter);
        return;
    }
    case LETTER_TRANSFER:
        engine_drain(engine);
        break;
    case LETTER_STOP:
        shard->stopping = true;
        break;
    }
    letter_drop(shard, letter);
}

/* ---- the turn ---- */

static void measure(struct shard *shard)
{
    struct engine_view view = engine_view(shard->engine);

    atomic_store(&shard->view.replicas, view.replicas);
    atomic_store(&shard->view.owned, view.owned);
    atomic_store(&shard->view.movable, view.movable);
    atomic_store(&shard->view.leading, view.leading);
    atomic_store(&shard->view.lagging, view.lagging);
    atomic_store(&shard->view.uncommitted, view.uncommitted);
    atomic_store(&shard->view.unstored, view.unstored);
    atomic_store(&shard->view.highest_term, view.highest_term);
    atomic_store(&shard->view.waiting, view.waiting);
    atomic_store(&shard->view.in_flight, view.in_flight);
    atomic_store(&shard->view.executing, view.executing);
    atomic_store(&shard->view.processing, view.processing);
    atomic_store(&shard->view.cached, view.cached);
    atomic_store(&shard->view.requests, view.requests);
}

static void turn(struct shard *shard, struct mail *mail)
{
    uint64_t due = 0;

    if (shard->engine != NULL) {
        engine_begin(shard->engine, now(), disk_free_mib(shard->node));
        due = engine_deadline(shard->engine);
    }
    while (mail != NULL) {
        struct mail *next = mail->next;
        struct letter *letter = CONTAINER_OF(mail, struct letter, mail);

        if (shard->engine == NULL)
            refuse_early(shard, letter);
        else
            take_letter(shard, letter);
        mail = next;
    }
    if (shard->engine == NULL)
        return;
    engine_end(shard->engine);
    if (clock_monotonic_ms() >= due) {
        reads_tick(shard);
        measure(shard);
    }
}

/* -1 for as long as it takes. */
static int wait_ms(const struct shard *shard)
{
    uint64_t moment = clock_monotonic_ms();
    uint64_t next;

    if (shard->engine == NULL)
        return -1;
    next = engine_deadline(shard->engine);
    return next <= moment ? 0 : (int)(next - moment);
}

static void *run(void *context)
{
    struct shard *shard = context;

    while (!shard->stopping) {
        struct mail *mail = mailbox_receive(&shard->box, wait_ms(shard));

        rpc_together_begin();
        turn(shard, mail);
        rpc_together_end();
    }
    reads_abandon(shard);
    if (shard->engine != NULL) {
        engine_begin(shard->engine, now(), disk_free_mib(shard->node));
        engine_stop(shard->engine);
        engine_end(shard->engine);
    }
    return NULL;
}

/* ---- birth and death ---- */

struct shard *shard_new(struct node *node, size_t index)
{
    struct shard *shard = memory_zero(1, sizeof *shard);

    shard->node = node;
    shard->index = index;
    if (mailbox_init(&shard->box) != STATUS_OK ||
        pthread_create(&shard->thread, NULL, run, shard) != 0)
        abort(); /* no thread at start-up: nothing can work */
    pthread_setname_np(shard->thread, "shard");
    return shard;
}

void shard_send(struct shard *shard, struct letter *letter)
{
    mailbox_send(&shard->box, &letter->mail);
}

const struct shard_view *shard_view(const struct shard *shard)
{
    return &shard->view;
}

void shard_stop(struct shard *shard)
{
    struct letter *letter = memory_zero(1, sizeof *letter);

    letter->kind = LETTER_STOP;
    shard_send(shard, letter);
    pthread_join(shard->thread, NULL);
}

void shard_drop_letters(struct shard *shard)
{
    struct mail *mail = mailbox_receive(&shard->box, 0);

    while (mail != NULL) {
        struct mail *next = mail->next;

        letter_drop(shard, CONTAINER_OF(mail, struct letter, mail));
        mail = next;
    }
}

void shard_free(struct shard *shard)
{
    if (shard == NULL)
        return;
    shard_drop_letters(shard);
    engine_free(shard->engine);
    reads_release(shard);
    mailbox_release(&shard->box);
    free(shard);
}

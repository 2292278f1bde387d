/*
 * The local event bus: lib/event's bus on a thread of its own, between this node's shards and its subscribing
 * processors, which are streams of clients (EventService.Process) and modules. Nothing is copied and no letter
 * sent while there is no processor.
 */
#include "event/bus.h"
#include "faults.h"
#include "feed.h"

enum { HEARTBEAT_MS = 2000, MODULE_WINDOW = 1024, MODULE_ACK_TIMEOUT_MS = 86400000, REASON_BYTES_MAX = 500 };

/* A processor of a module, and its thread. */
struct module_member {
    struct module_member *next;
    struct local_bus *all;
    const struct cairn_processor *processor;
    struct process_request join;
    struct arena arena;
    struct mailbox box;
    pthread_t thread;
    bool rejoin; /* it was dismissed */
};

/* What a member of either kind is for the bus. */
struct here {
    struct here *next;
    struct process_stream *stream;
    struct module_member *module;
};

struct local_bus {
    struct node *node;
    struct mailbox box;
    pthread_t thread;
    struct feed_letter founded, end, stop;
    struct bus *bus;
    struct here *members;
    struct module_member *modules;
    struct bus_counts counted;
    atomic_bool active; /* somebody listens */
    uint64_t heartbeat_ms;
    bool ending;
    bool stopped;
};

/* The events of a command, from a shard. */
struct publish_letter {
    struct feed_letter letter;
    struct shard *shard;
    uint32_t partition;
    uint64_t ticket;
    size_t count;
    struct bytes events[]; /* their bytes are behind */
};

/* Events for a module's thread. */
struct module_mail {
    struct mail mail;
    uint32_t partition;
    bool stop;
    size_t count;
    struct bytes events[];
};

/* What a module's thread says of one event. */
struct module_said {
    struct feed_letter letter;
    struct module_member *module;
    uint32_t partition;
    uint64_t position;
    bool failed;
    char reason[REASON_BYTES_MAX];
};

void local_bus_send(struct local_bus *all, struct feed_letter *letter)
{
    mailbox_send(&all->box, &letter->mail);
}

/* Memory for a head and the events behind it; `at` is the array of events in it. */
static void copy_events(struct bytes *at, const struct bytes *events, size_t count)
{
    uint8_t *to = (uint8_t *)(at + count);

    for (size_t i = 0; i < count; i++) {
        memcpy(to, events[i].data, events[i].len);
        at[i] = (struct bytes){to, events[i].len};
        to += events[i].len;
    }
}

static size_t events_size(const struct bytes *events, size_t count)
{
    size_t size = count * sizeof *events;

    for (size_t i = 0; i < count; i++)
        size += events[i].len;
    return size;
}

/* ---- for the shards ---- */

bool local_bus_publish(struct local_bus *all, struct shard *shard, uint32_t partition, uint64_t ticket,
                       const struct command_record *record)
{
    struct publish_letter *letter;

    if (!atomic_load_explicit(&all->active, memory_order_acquire))
        return false;
    letter = memory_take(sizeof *letter + events_size(record->packed_events, record->event_count));
    letter->letter.kind = FEED_PUBLISH;
    letter->shard = shard;
    letter->partition = partition;
    letter->ticket = ticket;
    letter->count = record->event_count;
    copy_events(letter->events, record->packed_events, record->event_count);
    local_bus_send(all, &letter->letter);
    return true;
}

void local_bus_forget(struct local_bus *all, struct shard *shard, uint32_t partition, uint64_t ticket)
{
    struct publish_letter *letter = memory_zero(1, sizeof *letter);

    letter->letter.kind = FEED_FORGET;
    letter->shard = shard;
    letter->partition = partition;
    letter->ticket = ticket;
    local_bus_send(all, &letter->letter);
}

/* ---- effects of the bus ---- */

static void deliver_to_stream(struct process_stream *stream, uint32_t partition, const struct bytes *events,
                              size_t count)
{
    struct buffer message = {0};
    size_t begun = wire_delivery_begin(&message, partition, 0, 0, false);

    for (size_t i = 0; i < count; i++)
        wire_delivery_add(&message, events[i]);
    wire_delivery_end(&message, begun);
    rpc_stream_send(stream->stream, buffer_bytes(&message));
    buffer_release(&message);
}

static void effect_deliver(void *context, void *member, uint32_t partition, const struct bytes *events,
                           size_t count)
{
    struct here *here = member;
    struct module_mail *mail;

    (void)context;
    if (here->stream != NULL) {
        deliver_to_stream(here->stream, partition, events, count);
        return;
    }
    mail = memory_take(sizeof *mail + events_size(events, count));
    mail->partition = partition;
    mail->stop = false;
    mail->count = count;
    copy_events(mail->events, events, count);
    mailbox_send(&here->module->box, &mail->mail);
}

static void forget_member(struct local_bus *all, struct here *here)
{
    struct here **at = &all->members;

    while (*at != here)
        at = &(*at)->next;
    *at = here->next;
    if (here->stream != NULL)
        here->stream->bus = NULL;
    free(here);
}

static void effect_dismiss(void *context, void *member, const struct fault *fault)
{
    struct here *here = member;

    if (here->stream != NULL)
        fault_finish_stream(here->stream->stream, fault);
    else
        here->module->rejoin = true;
    forget_member(context, here);
}

static void effect_done(void *context, void *publisher, uint32_t partition, uint64_t ticket,
                        const struct processing_failure *failures, size_t count)
{
    struct processed_letter *letter = memory_zero(1, sizeof *letter);
    struct processing_failure *copies = arena_take(&letter->arena, count * sizeof *copies);

    (void)context;
    letter->letter.kind = LETTER_PROCESSED;
    letter->partition = partition;
    letter->ticket = ticket;
    for (size_t i = 0; i < count; i++)
        copies[i] = (struct processing_failure){arena_copy(&letter->arena, failures[i].group),
                                                failures[i].timed_out,
                                                arena_copy(&letter->arena, failures[i].reason)};
    letter->failures = copies;
    letter->failure_count = count;
    shard_send(publisher, &letter->letter);
}

static struct bus *the_bus(struct local_bus *all)
{
    struct bus_effects effects = {all, effect_deliver, effect_dismiss, effect_done};

    if (all->bus == NULL)
        all->bus = bus_new(&effects, node_partition_count(all->node));
    return all->bus;
}

/* ---- members ---- */

static enum status join(struct local_bus *all, struct process_stream *stream, struct module_member *module,
                        const struct process_request *request, struct fault *fault)
{
    struct here *here = memory_zero(1, sizeof *here);
    enum status status;

    here->stream = stream;
    here->module = module;
    here->next = all->members;
    all->members = here;
    status = bus_join(the_bus(all), here, request, clock_monotonic_ms(), fault);
    if (status != STATUS_OK) {
        all->members = here->next;
        free(here);
        return status;
    }
    if (stream != NULL)
        stream->bus = here;
    atomic_store_explicit(&all->active, true, memory_order_release);
    return STATUS_OK;
}

/* An assignment without partitions: it has what this node owns. */
static void say_alive(struct process_stream *stream)
{
    struct buffer message = {0};

    wire_assignment_pack(&message, NULL, 0);
    rpc_stream_send(stream->stream, buffer_bytes(&message));
    buffer_release(&message);
}

/* When to do it again. */
static uint64_t say_all_alive(struct local_bus *all, uint64_t now_ms)
{
    if (all->members == NULL)
        return UINT64_MAX;
    if (now_ms < all->heartbeat_ms)
        return all->heartbeat_ms;
    for (struct here *here = all->members; here != NULL; here = here->next)
        if (here->stream != NULL)
            say_alive(here->stream);
    return all->heartbeat_ms = now_ms + HEARTBEAT_MS;
}

static void stream_joins(struct local_bus *all, struct process_stream *stream)
{
    struct fault fault;
    enum status status = STATUS_OK;

    if (all->ending)
        status = fault_set(&fault, STATUS_UNAVAILABLE, "NODE_STOPPING", "this node stops");
    if (status == STATUS_OK)
        status = join(all, stream, NULL, &stream->request, &fault);
    if (status != STATUS_OK) {
        fault_finish_stream(stream->stream, &fault);
        return;
    }
    say_alive(stream); /* from now on it gets what is committed here */
}

static void stream_said(struct local_bus *all, struct said_note *note)
{
    struct process_stream *stream = note->member;
    struct arena arena = {0};
    struct process_request request;
    struct fault fault;
    uint64_t now = clock_monotonic_ms();
    enum status status;

    if (stream->bus == NULL)
        return; /* dismissed meanwhile */
    status = wire_process_decode((struct bytes){note->bytes, note->len}, &arena, &request, &fault);
    if (status == STATUS_OK && request.kind == PROCESS_JOIN)
        status = fault_set(&fault, STATUS_INVALID, "ALREADY_JOINED",
                           "this stream has its member; open another stream for another one");
    else if (status == STATUS_OK && request.kind == PROCESS_ACKNOWLEDGE)
        status = bus_acknowledge(all->bus, stream->bus, &request, now, &fault);
    else if (status == STATUS_OK)
        status = bus_fail(all->bus, stream->bus, &request, now, &fault);
    arena_release(&arena);
    if (status == STATUS_OK)
        return;
    bus_leave(all->bus, stream->bus, now);
    forget_member(all, stream->bus);
    fault_finish_stream(stream->stream, &fault);
}

static void stream_left(struct local_bus *all, struct process_stream *stream)
{
    if (stream->bus != NULL) {
        bus_leave(all->bus, stream->bus, clock_monotonic_ms());
        forget_member(all, stream->bus);
    }
    rpc_stream_drop(stream->stream);
    arena_release(&stream->arena);
    free(stream);
}

/* ---- processors of modules ---- */

struct processing {
    struct cairn_processing base;
    struct module_said *said;
};

static void processing_failed(struct cairn_processing *base, const char *reason)
{
    struct module_said *said = CONTAINER_OF(base, struct processing, base)->said;

    said->failed = true;
    snprintf(said->reason, sizeof said->reason, "%s", reason == NULL || reason[0] == '\0' ? "it failed" : reason);
}

static void process_one(struct module_member *m, void *state, struct bytes packed, uint32_t partition)
{
    struct module_said *said = memory_zero(1, sizeof *said);
    struct processing processing = {{processing_failed}, said};
    struct arena arena = {0};
    struct cairn_event seen;
    struct event event;
    struct fault fault;
    enum status status = wire_event_decode(packed, &arena, &event, &fault);

    said->letter.kind = FEED_MODULE_SAID;
    said->module = m;
    said->partition = partition;
    if (status == STATUS_OK) {
        said->position = event.position;
        status = event_for_module(modules_type(m->all->node->modules, event.aggregate_type), &event, &arena,
                                  &seen, &fault);
    }
    if (status == STATUS_OK)
        m->processor->process(state, &seen, &processing.base);
    else
        processing_failed(&processing.base, fault.message);
    arena_release(&arena);
    local_bus_send(m->all, &said->letter);
}

static void *run_module(void *context)
{
    struct module_member *m = context;
    void *state = m->processor->start == NULL ? NULL : m->processor->start();
    bool stop = false;

    while (!stop) {
        struct mail *mail = mailbox_receive(&m->box, -1);

        while (mail != NULL) {
            struct module_mail *item = CONTAINER_OF(mail, struct module_mail, mail);

            mail = mail->next;
            stop = stop || item->stop;
            for (size_t i = 0; !stop && i < item->count; i++)
                process_one(m, state, item->events[i], item->partition);
            free(item);
        }
    }
    if (m->processor->stop != NULL)
        m->processor->stop(state);
    return NULL;
}

static void module_said(struct local_bus *all, const struct module_said *said)
{
    struct process_request request = {.kind = said->failed ? PROCESS_FAIL : PROCESS_ACKNOWLEDGE,
                                      .partition = said->partition,
                                      .position = said->position,
                                      .reason = bytes_of(said->reason)};
    struct here *here = all->members;
    struct fault ignored; /* it was dismissed in between */

    while (here != NULL && here->module != said->module)
        here = here->next;
    if (said->failed)
        journal(JOURNAL_WARN, "processor-failed", "%s at position %llu of partition %u: %s",
                said->module->processor->name, (unsigned long long)said->position, said->partition, said->reason);
    if (here != NULL && said->failed)
        (void)!bus_fail(all->bus, here, &request, clock_monotonic_ms(), &ignored);
    else if (here != NULL)
        (void)!bus_acknowledge(all->bus, here, &request, clock_monotonic_ms(), &ignored);
}

static const struct bytes *names(struct arena *arena, const char *const *list, size_t *count)
{
    struct bytes *out;

    for (*count = 0; list != NULL && list[*count] != NULL;)
        ++*count;
    out = arena_take(arena, *count * sizeof *out);
    for (size_t i = 0; i < *count; i++)
        out[i] = bytes_of(list[i]);
    return out;
}

static void module_joins(struct local_bus *all, struct module_member *m)
{
    struct fault fault;

    m->rejoin = false;
    if (join(all, NULL, m, &m->join, &fault) != STATUS_OK)
        journal(JOURNAL_ERROR, "processor-refused", "module processor %s: %s", m->processor->name, fault.message);
}

static void start_module(struct local_bus *all, const struct cairn_processor *processor)
{
    struct module_member *m = memory_zero(1, sizeof *m);
    struct process_request *request = &m->join;

    m->all = all;
    m->processor = processor;
    *request = (struct process_request){.kind = PROCESS_JOIN,
                                        .group = bytes_of(processor->name),
                                        .member = BYTES_LITERAL("module"),
                                        .window = MODULE_WINDOW,
                                        .ack_timeout_ms = MODULE_ACK_TIMEOUT_MS,
                                        .subscribing = true,
                                        .no_wait = processor->no_wait != 0,
                                        .wait_ms = processor->timeout_ms,
                                        .report_failure = processor->report_failure != 0};
    request->filter.aggregate_types =
        names(&m->arena, processor->aggregate_types, &request->filter.aggregate_type_count);
    request->filter.event_types = names(&m->arena, processor->event_types, &request->filter.event_type_count);
    m->next = all->modules;
    all->modules = m;
    if (mailbox_init(&m->box) != STATUS_OK || pthread_create(&m->thread, NULL, run_module, m) != 0)
        abort(); /* no thread at start-up: nothing can work */
    pthread_setname_np(m->thread, "processor");
    module_joins(all, m);
}

static void founded(struct local_bus *all)
{
    const struct cairn_processor *processor;

    for (size_t i = 0; (processor = modules_processor(all->node->modules, i)) != NULL; i++)
        start_module(all, processor);
}

static void rejoin_modules(struct local_bus *all)
{
    for (struct module_member *m = all->modules; m != NULL && !all->ending; m = m->next)
        if (m->rejoin)
            module_joins(all, m);
}

static void stop_modules(struct local_bus *all)
{
    for (struct module_member *m = all->modules; m != NULL; m = m->next) {
        struct module_mail *mail = memory_zero(1, sizeof *mail);

        mail->stop = true;
        mailbox_send(&m->box, &mail->mail);
    }
    for (struct module_member *m = all->modules; m != NULL; m = m->next)
        pthread_join(m->thread, NULL);
}

static void free_modules(struct local_bus *all)
{
    while (all->modules != NULL) {
        struct module_member *m = all->modules;

        all->modules = m->next;
        for (struct mail *mail = mailbox_receive(&m->box, 0); mail != NULL;) {
            struct module_mail *item = CONTAINER_OF(mail, struct module_mail, mail);

            mail = mail->next;
            free(item);
        }
        mailbox_release(&m->box);
        arena_release(&m->arena);
        free(m);
    }
}

/* ---- the thread ---- */

static void end(struct local_bus *all)
{
    struct fault fault;

    all->ending = true;
    atomic_store(&all->active, false);
    (void)fault_set(&fault, STATUS_UNAVAILABLE, "NODE_STOPPING", "this node stops");
    if (all->bus != NULL)
        bus_dismiss_all(all->bus, &fault);
}

static void take(struct local_bus *all, struct feed_letter *letter)
{
    struct publish_letter *publish = (struct publish_letter *)letter;

    switch (letter->kind) {
    case FEED_FOUNDED:
        founded(all);
        return;
    case FEED_JOIN:
        stream_joins(all, CONTAINER_OF(letter, struct process_stream, join));
        return;
    case FEED_LEFT:
        stream_left(all, CONTAINER_OF(letter, struct process_stream, left));
        return;
    case FEED_WAKE:
        end(all);
        return;
    case FEED_STOP:
        all->stopped = true;
        return;
    case FEED_SAID:
        stream_said(all, (struct said_note *)letter);
        break;
    case FEED_MODULE_SAID:
        module_said(all, (struct module_said *)letter);
        break;
    case FEED_PUBLISH:
        bus_publish(the_bus(all), publish->shard, publish->partition, publish->ticket, publish->events,
                    publish->count, clock_monotonic_ms());
        break;
    case FEED_FORGET:
        if (all->bus != NULL)
            bus_forget(all->bus, publish->shard, publish->partition, publish->ticket);
        break;
    default:
        break;
    }
    free(letter);
}

static void measure(struct local_bus *all)
{
    struct bus_counts now = bus_counts(all->bus);
    struct node *node = all->node;

    METRIC_ADD(node, bus_events, now.delivered - all->counted.delivered);
    METRIC_ADD(node, bus_redelivered, now.redelivered - all->counted.redelivered);
    METRIC_ADD(node, bus_failed, now.failed - all->counted.failed);
    METRIC_ADD(node, bus_late, now.late - all->counted.late);
    atomic_store(&node->metrics.bus_members, now.members);
    atomic_store(&node->metrics.bus_waiting, now.waiting);
    atomic_store_explicit(&all->active, now.members > 0 && !all->ending, memory_order_release);
    all->counted = now;
}

static void *run(void *context)
{
    struct local_bus *all = context;
    int wait_ms = -1;

    while (!all->stopped) {
        struct mail *mail = mailbox_receive(&all->box, wait_ms);
        uint64_t now, next, heartbeat;

        while (mail != NULL) {
            struct mail *following = mail->next;

            take(all, CONTAINER_OF(mail, struct feed_letter, mail));
            mail = following;
        }
        if (all->bus == NULL)
            continue;
        now = clock_monotonic_ms();
        bus_tick(all->bus, now);
        rejoin_modules(all);
        measure(all);
        next = bus_deadline(all->bus);
        heartbeat = say_all_alive(all, now);
        next = heartbeat < next ? heartbeat : next;
        wait_ms = next == UINT64_MAX ? -1 : next <= now ? 0 : (int)(next - now);
    }
    return NULL;
}

/* ---- birth and death ---- */

struct local_bus *local_bus_new(struct node *node)
{
    struct local_bus *all = memory_zero(1, sizeof *all);

    all->node = node;
    all->founded.kind = FEED_FOUNDED;
    all->end.kind = FEED_WAKE;
    all->stop.kind = FEED_STOP;
    if (mailbox_init(&all->box) != STATUS_OK || pthread_create(&all->thread, NULL, run, all) != 0)
        abort(); /* no thread at start-up: nothing can work */
    pthread_setname_np(all->thread, "bus");
    return all;
}

void local_bus_begin(struct local_bus *all)
{
    local_bus_send(all, &all->founded);
}

void local_bus_end(struct local_bus *all)
{
    local_bus_send(all, &all->end);
}

void local_bus_stop(struct local_bus *all)
{
    local_bus_send(all, &all->stop);
    pthread_join(all->thread, NULL);
    stop_modules(all);
    for (struct mail *mail = mailbox_receive(&all->box, 0); mail != NULL;) {
        struct mail *next = mail->next;

        take(all, CONTAINER_OF(mail, struct feed_letter, mail));
        mail = next;
    }
    free_modules(all);
}

void local_bus_free(struct local_bus *all)
{
    if (all == NULL)
        return;
    bus_free(all->bus);
    mailbox_release(&all->box);
    free(all);
}

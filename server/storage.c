/*
 * The storage thread: takes what all shards have sent, writes the batches in order and syncs once.
 * RocksDB's log is sequential, so that the sync of the last write covers the ones before it. Bulk goes past the
 * log, in its turn among the others, and lasts once a second thread has flushed its families: megabytes in the log
 * would make every command's sync wait for them (p99 of commands 20 ms instead of 2 while a node takes 28 MiB/s).
 *
 * A write that fails ends the node: what the disk has after a failed sync is unknown, and a
 * restart finds out.
 */
#include "node.h"

struct write_order {
    struct mail mail;
    struct shard *shard;
    struct store_batch *batch;
    uint64_t ticket;
    void (*done)(void *context, bool written); /* instead of the shard */
    void *context;
    bool bulk;
    bool stop;
};

struct flush_order {
    struct mail mail;
    uint32_t families; /* one bit each; 0: stop */
    struct storage *storage;
    bool forget;       /* instead: nothing that was deleted of the partition's keys and log stays on disk */
    uint32_t partition;
    void (*done)(void *context, bool written);
    void *context;
};

struct storage {
    struct node *node;
    struct mailbox box;
    pthread_t thread;
    struct mailbox flush_box;
    pthread_t flush_thread;
    pthread_mutex_t lock; /* of the free batches */
    struct store_batch *free_batches[16];
    size_t free_count;
};

struct store_batch *storage_take_batch(struct storage *storage)
{
    struct store_batch *batch = NULL;

    pthread_mutex_lock(&storage->lock);
    if (storage->free_count > 0)
        batch = storage->free_batches[--storage->free_count];
    pthread_mutex_unlock(&storage->lock);
    return batch == NULL ? store_batch_new(storage->node->store) : batch;
}

static void give_back(struct storage *storage, struct store_batch *batch)
{
    pthread_mutex_lock(&storage->lock);
    if (storage->free_count < COUNT_OF(storage->free_batches)) {
        storage->free_batches[storage->free_count++] = batch;
        batch = NULL;
    }
    pthread_mutex_unlock(&storage->lock);
    store_batch_free(batch);
}

static void report(const struct write_order *order)
{
    struct written_letter *letter = memory_take(sizeof *letter);

    letter->letter.kind = LETTER_WRITTEN;
    letter->ticket = order->ticket;
    shard_send(order->shard, &letter->letter);
}

/* The sync of this one covers all: the last that goes through the log. NULL: nothing is to be synced. */
static const struct mail *last_logged(const struct mail *first)
{
    const struct mail *last = NULL;

    for (const struct mail *mail = first; mail != NULL; mail = mail->next) {
        const struct write_order *order = CONTAINER_OF(mail, const struct write_order, mail);

        if (!order->stop && !order->bulk)
            last = mail;
    }
    return last;
}

static enum status write_order(struct storage *storage, struct write_order *order, bool sync, struct fault *fault)
{
    struct store *store = storage->node->store;

    METRIC_ADD(storage->node, batches, 1);
    if (sync)
        METRIC_ADD(storage->node, syncs, 1);
    return order->bulk ? store_write_unlogged(store, order->batch, fault)
                       : store_write(store, order->batch, sync, fault);
}

/* Write all orders, sync once; then report each. */
static bool write_orders(struct storage *storage, struct mail *first)
{
    struct node *node = storage->node;
    uint64_t started = clock_monotonic_us();
    const struct mail *last = last_logged(first);
    bool go_on = true;

    for (struct mail *mail = first; mail != NULL; mail = mail->next) {
        struct write_order *order = CONTAINER_OF(mail, struct write_order, mail);
        struct fault fault;

        if (order->stop) {
            go_on = false;
            continue;
        }
        if (atomic_load(&node->failed))
            continue;
        if (write_order(storage, order, mail == last, &fault) != STATUS_OK)
            node_fail(node, &fault);
    }
    if (last != NULL)
        histogram_add(&node->metrics.sync_latency, clock_monotonic_us() - started);
    while (first != NULL) {
        struct write_order *order = CONTAINER_OF(first, struct write_order, mail);

        first = first->next;
        if (order->done != NULL)
            order->done(order->context, !atomic_load(&node->failed));
        if (!order->stop && !atomic_load(&node->failed)) {
            if (order->done == NULL)
                report(order);
            give_back(storage, order->batch);
        } else if (!order->stop) {
            store_batch_free(order->batch);
        }
        free(order);
    }
    return go_on;
}

static void *run(void *context)
{
    struct storage *storage = context;
    bool go_on = true;

    while (go_on) {
        struct mail *mail = mailbox_receive(&storage->box, -1);

        if (mail != NULL)
            go_on = write_orders(storage, mail);
    }
    return NULL;
}

static void flush(struct storage *storage, const struct flush_order *order)
{
    struct node *node = storage->node;
    struct fault fault;

    for (int family = 0; family < STORE_FAMILIES && !atomic_load(&node->failed); family++)
        if ((order->families >> family & 1) != 0 &&
            store_flush(node->store, (enum store_family)family, &fault) != STATUS_OK)
            node_fail(node, &fault);
    order->done(order->context, !atomic_load(&node->failed));
}

/* The write that deleted them is among those before: it was sent to storage before this order. Memory tables first,
 * so that the write-ahead log goes as well; then what lies below the deletions. */
static void make_disk_forget(struct storage *storage, uint32_t partition, struct store_batch *done)
{
    static const enum store_family families[] = {STORE_KEYS, STORE_LOG};
    struct store_key from = key_partition_begin((uint16_t)partition);
    struct store_key to = key_partition_end((uint16_t)partition);
    struct fault fault;
    enum status status = STATUS_OK;

    for (int family = 0; family < STORE_FAMILIES && status == STATUS_OK; family++)
        status = store_flush(storage->node->store, (enum store_family)family, &fault);
    for (size_t i = 0; i < COUNT_OF(families) && status == STATUS_OK; i++)
        status = store_compact(storage->node->store, families[i], key_bytes(&from), key_bytes(&to), &fault);
    if (status == STATUS_OK)
        status = store_write(storage->node->store, done, false, &fault);
    if (status != STATUS_OK)
        journal(JOURNAL_ERROR, "forget-incomplete",
                "keys that were destroyed may still lie on the disk: %s; tried again when this node starts", fault.message);
}

static void forget(struct storage *storage, uint32_t partition)
{
    struct store_batch *done = store_batch_new(storage->node->store);

    if (destroyed_settle(storage->node->store, (uint16_t)partition, done) > 0)
        make_disk_forget(storage, partition, done);
    store_batch_free(done);
}

static void *run_flushes(void *context)
{
    struct storage *storage = context;
    bool go_on = true;

    while (go_on) {
        struct mail *mail = mailbox_receive(&storage->flush_box, -1);

        while (mail != NULL) {
            struct flush_order *order = CONTAINER_OF(mail, struct flush_order, mail);

            mail = mail->next;
            if (order->forget)
                forget(storage, order->partition);
            else if (order->families == 0)
                go_on = false;
            else
                flush(storage, order);
            free(order);
        }
    }
    return NULL;
}

struct storage *storage_new(struct node *node)
{
    struct storage *storage = memory_zero(1, sizeof *storage);

    storage->node = node;
    pthread_mutex_init(&storage->lock, NULL);
    if (mailbox_init(&storage->box) != STATUS_OK || mailbox_init(&storage->flush_box) != STATUS_OK ||
        pthread_create(&storage->thread, NULL, run, storage) != 0 ||
        pthread_create(&storage->flush_thread, NULL, run_flushes, storage) != 0)
        abort(); /* no thread at start-up: nothing can work */
    pthread_setname_np(storage->thread, "storage");
    pthread_setname_np(storage->flush_thread, "flush");
    return storage;
}

void storage_write(struct storage *storage, struct shard *shard, struct store_batch *batch,
                   uint64_t ticket)
{
    struct write_order *order = memory_take(sizeof *order);

    *order = (struct write_order){.shard = shard, .batch = batch, .ticket = ticket};
    mailbox_send(&storage->box, &order->mail);
}

void storage_write_for(struct storage *storage, struct store_batch *batch,
                       void (*done)(void *context, bool written), void *context)
{
    struct write_order *order = memory_take(sizeof *order);

    *order = (struct write_order){.batch = batch, .done = done, .context = context};
    mailbox_send(&storage->box, &order->mail);
}

void storage_write_bulk(struct storage *storage, struct store_batch *batch,
                        void (*done)(void *context, bool written), void *context)
{
    struct write_order *order = memory_take(sizeof *order);

    *order = (struct write_order){.batch = batch, .done = done, .context = context, .bulk = true};
    mailbox_send(&storage->box, &order->mail);
}

void storage_flush(struct storage *storage, uint32_t families, void (*done)(void *context, bool written),
                   void *context)
{
    struct flush_order *order = memory_take(sizeof *order);

    *order = (struct flush_order){.families = families, .done = done, .context = context};
    mailbox_send(&storage->flush_box, &order->mail);
}

static void pass_on(void *context, bool written)
{
    struct flush_order *order = context;

    if (written)
        mailbox_send(&order->storage->flush_box, &order->mail);
    else
        free(order);
}

void storage_forget(struct storage *storage, uint32_t partition)
{
    struct flush_order *order = memory_zero(1, sizeof *order);

    order->storage = storage;
    order->forget = true;
    order->partition = partition;
    storage_write_bulk(storage, storage_take_batch(storage), pass_on, order);
}

static void stop_flushes(struct storage *storage)
{
    struct flush_order *order = memory_zero(1, sizeof *order);

    mailbox_send(&storage->flush_box, &order->mail);
    pthread_join(storage->flush_thread, NULL);
    mailbox_release(&storage->flush_box);
}

void storage_free(struct storage *storage)
{
    struct write_order *order;

    if (storage == NULL)
        return;
    order = memory_zero(1, sizeof *order);
    order->stop = true;
    mailbox_send(&storage->box, &order->mail);
    pthread_join(storage->thread, NULL);
    stop_flushes(storage);
    while (storage->free_count > 0)
        store_batch_free(storage->free_batches[--storage->free_count]);
    mailbox_release(&storage->box);
    pthread_mutex_destroy(&storage->lock);
    free(storage);
}

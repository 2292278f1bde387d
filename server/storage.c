/*
 * The storage thread: takes what all shards have sent, writes the batches in order and syncs once.
 * RocksDB's log is sequential, so that the sync of the last write covers the ones before it.
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
    bool stop;
};

struct storage {
    struct node *node;
    struct mailbox box;
    pthread_t thread;
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

/* Write all orders, sync with the last; then report each. */
static bool write_orders(struct storage *storage, struct mail *first)
{
    struct node *node = storage->node;
    uint64_t started = clock_monotonic_us();
    bool go_on = true;

    for (struct mail *mail = first; mail != NULL; mail = mail->next) {
        struct write_order *order = CONTAINER_OF(mail, struct write_order, mail);
        bool last = mail->next == NULL || CONTAINER_OF(mail->next, struct write_order, mail)->stop;
        struct fault fault;

        if (order->stop) {
            go_on = false;
            continue;
        }
        if (atomic_load(&node->failed))
            continue;
        if (store_write(node->store, order->batch, last, &fault) != STATUS_OK)
            node_fail(node, &fault);
        METRIC_ADD(node, batches, 1);
        if (last)
            METRIC_ADD(node, syncs, 1);
    }
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

struct storage *storage_new(struct node *node)
{
    struct storage *storage = memory_zero(1, sizeof *storage);

    storage->node = node;
    pthread_mutex_init(&storage->lock, NULL);
    if (mailbox_init(&storage->box) != STATUS_OK ||
        pthread_create(&storage->thread, NULL, run, storage) != 0)
        abort(); /* no thread at start-up: nothing can work */
    pthread_setname_np(storage->thread, "storage");
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

void storage_free(struct storage *storage)
{
    struct write_order *order;

    if (storage == NULL)
        return;
    order = memory_zero(1, sizeof *order);
    order->stop = true;
    mailbox_send(&storage->box, &order->mail);
    pthread_join(storage->thread, NULL);
    while (storage->free_count > 0)
        store_batch_free(storage->free_batches[--storage->free_count]);
    mailbox_release(&storage->box);
    pthread_mutex_destroy(&storage->lock);
    free(storage);
}

/*
 * A many-to-one mailbox: a lock-free stack that the receiver takes whole and turns around. One
 * eventfd write per sleep, none while the receiver is busy.
 */
#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base.h"

enum status mailbox_init(struct mailbox *box)
{
    atomic_init(&box->head, NULL);
    atomic_init(&box->sleeping, false);
    box->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return box->wake_fd < 0 ? STATUS_FAILED : STATUS_OK;
}

void mailbox_release(struct mailbox *box)
{
    if (box->wake_fd > 0)
        close(box->wake_fd);
    box->wake_fd = -1;
}

void mailbox_send(struct mailbox *box, struct mail *mail)
{
    struct mail *head = atomic_load_explicit(&box->head, memory_order_relaxed);

    do {
        mail->next = head;
    } while (!atomic_compare_exchange_weak_explicit(&box->head, &head, mail, memory_order_seq_cst,
                                                    memory_order_relaxed));
    /* Pairs with the receiver's store before its last look: one of the two sees the other. */
    if (atomic_exchange_explicit(&box->sleeping, false, memory_order_seq_cst)) {
        uint64_t one = 1;

        while (write(box->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
            continue;
    }
}

static struct mail *take_all(struct mailbox *box)
{
    struct mail *mail = atomic_exchange_explicit(&box->head, NULL, memory_order_seq_cst);
    struct mail *oldest = NULL;

    while (mail != NULL) {
        struct mail *next = mail->next;

        mail->next = oldest;
        oldest = mail;
        mail = next;
    }
    return oldest;
}

struct mail *mailbox_receive(struct mailbox *box, int timeout_ms)
{
    struct mail *mail = take_all(box);
    struct pollfd poller = {.fd = box->wake_fd, .events = POLLIN};
    uint64_t ignored;

    if (mail != NULL || timeout_ms == 0)
        return mail;
    atomic_store_explicit(&box->sleeping, true, memory_order_seq_cst);
    if (atomic_load_explicit(&box->head, memory_order_seq_cst) == NULL)
        (void)poll(&poller, 1, timeout_ms);
    atomic_store_explicit(&box->sleeping, false, memory_order_seq_cst);
    (void)!read(box->wake_fd, &ignored, sizeof ignored); /* all of its count at once */
    return take_all(box);
}

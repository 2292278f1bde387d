/*
 * The audit log: who did what, with which outcome, a JSON object a line. Lines are only ever added; when the file
 * is moved away or removed (by rotation) a new one is begun within a second. No payloads, no metadata.
 *
 * A thread of its own writes, in batches, so that nobody waits for the disk. Lines that can't be written are kept
 * and tried again, up to a bound; what goes beyond it is counted, and told in the log of the node.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "audit.h"

enum { WAITING_BYTES_MAX = 16 << 20, LOOK_EVERY_MS = 1000 };

struct audit_line {
    struct mail mail;
    bool stop;
    size_t len;
    char text[];
};

struct audit {
    struct node *node;
    const char *path;
    struct mailbox box;
    pthread_t thread;
    int fd;
    ino_t inode;
    struct buffer waiting; /* whole lines that aren't in the file yet */
    unsigned long long lost;
    bool failed; /* told already */
};

/* ---- a line ---- */

static void add_text(struct buffer *out, const char *name, struct bytes value)
{
    if (value.len == 0)
        return;
    buffer_printf(out, ",\"%s\":\"", name);
    buffer_add_json(out, value);
    buffer_add(out, "\"", 1);
}

void audit(struct node *node, const struct audit_entry *entry)
{
    struct buffer text = {0};
    char stamp[CLOCK_STAMP_ROOM];
    struct audit_line *line;

    if (node->audit == NULL)
        return;
    clock_stamp(clock_wall_ms(), stamp);
    buffer_printf(&text, "{\"time\":\"%s\"", stamp);
    add_text(&text, "node", bytes_of(node->config.name));
    add_text(&text, "who", bytes_of(entry->who));
    add_text(&text, "from", bytes_of(entry->from));
    add_text(&text, "what", bytes_of(entry->what));
    add_text(&text, "aggregate_type", entry->aggregate_type);
    add_text(&text, "aggregate_id", entry->aggregate_id);
    add_text(&text, "type", entry->type);
    add_text(&text, "command_id", entry->command_id);
    add_text(&text, "target", entry->target);
    add_text(&text, "outcome", entry->outcome);
    buffer_printf(&text, "}\n");
    line = memory_take(sizeof *line + text.len);
    *line = (struct audit_line){.len = text.len};
    memcpy(line->text, text.data, text.len);
    buffer_release(&text);
    mailbox_send(&node->audit->box, &line->mail);
}

void audit_fault(struct node *node, struct audit_entry entry, const struct fault *fault)
{
    entry.outcome = fault == NULL ? BYTES_LITERAL("ok") : bytes_of(fault->reason);
    audit(node, &entry);
}

/* ---- the file ---- */

static bool open_file(struct audit *a)
{
    struct stat facts;
    int fd = open(a->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    if (fd < 0 || fstat(fd, &facts) != 0) {
        if (fd >= 0)
            (void)close(fd);
        return false;
    }
    if (a->fd >= 0)
        (void)close(a->fd);
    a->fd = fd;
    a->inode = facts.st_ino;
    return true;
}

/* Rotation moves the file away. */
static void follow_rotation(struct audit *a)
{
    struct stat facts;

    if (a->fd < 0 || stat(a->path, &facts) != 0 || facts.st_ino != a->inode)
        (void)open_file(a);
}

static void tell_failure(struct audit *a, bool failed)
{
    if (failed && !a->failed)
        journal(JOURNAL_ERROR, "audit-failed", "cannot write %s: %s; lines wait, up to %d MiB of them", a->path,
                strerror(errno), WAITING_BYTES_MAX >> 20);
    else if (!failed && a->failed)
        journal(JOURNAL_WARN, "audit-recovered", "%s is written again; %llu lines were lost", a->path, a->lost);
    a->failed = failed;
}

static void write_waiting(struct audit *a)
{
    ssize_t n = 0;
    size_t done = 0;

    while (done < a->waiting.len && n >= 0) {
        n = a->fd < 0 ? -1 : write(a->fd, a->waiting.data + done, a->waiting.len - done);
        done += n > 0 ? (size_t)n : 0;
    }
    tell_failure(a, done < a->waiting.len);
    memmove(a->waiting.data, a->waiting.data + done, a->waiting.len - done);
    a->waiting.len -= done;
}

static void keep(struct audit *a, const struct audit_line *line)
{
    if (a->waiting.len + line->len > WAITING_BYTES_MAX)
        a->lost++;
    else
        buffer_add(&a->waiting, line->text, line->len);
}

static void *run(void *context)
{
    struct audit *a = context;
    uint64_t looked_ms = 0;
    bool go_on = true;

    while (go_on) {
        struct mail *mail = mailbox_receive(&a->box, a->waiting.len > 0 ? LOOK_EVERY_MS : -1);

        while (mail != NULL) {
            struct audit_line *line = CONTAINER_OF(mail, struct audit_line, mail);

            mail = mail->next;
            if (line->stop)
                go_on = false;
            else
                keep(a, line);
            free(line);
        }
        if (clock_monotonic_ms() - looked_ms >= LOOK_EVERY_MS) {
            looked_ms = clock_monotonic_ms();
            follow_rotation(a);
        }
        if (a->waiting.len > 0)
            write_waiting(a);
    }
    return NULL;
}

/* ---- life ---- */

enum status audit_new(struct node *node, struct fault *fault)
{
    struct audit *a;

    if (node->config.audit_log[0] == '\0')
        return STATUS_OK;
    a = memory_zero(1, sizeof *a);
    a->node = node;
    a->path = node->config.audit_log;
    a->fd = -1;
    if (!open_file(a)) {
        free(a);
        return fault_set(fault, STATUS_INVALID, "AUDIT_LOG", "cannot open the audit log %s: %s", node->config.audit_log,
                         strerror(errno));
    }
    if (mailbox_init(&a->box) != STATUS_OK || pthread_create(&a->thread, NULL, run, a) != 0)
        abort(); /* no thread at start-up: nothing can work */
    pthread_setname_np(a->thread, "audit");
    node->audit = a;
    return STATUS_OK;
}

void audit_free(struct node *node)
{
    struct audit *a = node->audit;
    struct audit_line *line;

    if (a == NULL)
        return;
    line = memory_zero(1, sizeof *line);
    line->stop = true;
    mailbox_send(&a->box, &line->mail);
    pthread_join(a->thread, NULL);
    mailbox_release(&a->box);
    if (a->fd >= 0)
        (void)close(a->fd);
    buffer_release(&a->waiting);
    free(a);
    node->audit = NULL;
}

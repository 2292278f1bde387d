/*
 * How many connections there may be. gRPC has no such limit, and worse: when accept4() fails because the process
 * has no file descriptor left, its server never accepts again (seen with 1.51; anybody could bring that about who
 * reaches the port). So this file defines accept4() itself, which libraries find before libc's.
 *
 * And how much a connection may send that comes to nothing: the headers of one call are bounded only once they have
 * all come, and gRPC keeps what came (its memory quota doesn't count it; it lets go whoever does it as long as it is
 * lucky in its threads). Here recvmsg() counts, and what gRPC brings up, or sends, sets the count back.
 *
 * Always true: a listener never sees an error that is about one connection or about the number of open files;
 * who is too many is accepted and closed at once. Never waits. Any thread.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

enum {
    FILES_RESERVED = 256, /* of what the process may open, for all that isn't a caller's connection */
    LOOK_EVERY_MS = 20,   /* when full: who has gone meanwhile? */
    INFLOWS_MAX = 1 << 20,
};

struct connection {
    int fd;
    ino_t inode; /* another one: this fd was closed, and is something else now */
    uint64_t address;
};

/* Of an accepted connection, by its fd; only who reads from it changes it, which is one thread after the other. */
struct inflow {
    atomic_ullong inode; /* 0: none */
    atomic_uint port;
    atomic_uint progress; /* of the port, when `bytes` were none */
    atomic_size_t bytes;
};

/* By the caller's port: what came or went, once more. Callers from several hosts may share one, and are then only
 * bounded less well. */
static atomic_uint progress[1 << 16];

static struct {
    struct inflow *_Atomic inflows; /* NULL: without limits */
    size_t inflow_count;
    atomic_size_t inflow_most;
    pthread_mutex_t lock;
    struct connection *connections; /* room for `most`; NULL: without limits */
    size_t count;
    size_t most, most_of_address;
    size_t files; /* a file descriptor from here on is too many */
    uint64_t looked_ms;
    int spare; /* closed to take in, and let go, a connection when there is no other */
    atomic_ullong refused;
} guard = {.lock = PTHREAD_MUTEX_INITIALIZER, .spare = -1};

void rpc_limit_connections(size_t most, size_t most_of_address, size_t idle_bytes)
{
    struct rlimit files;

    pthread_mutex_lock(&guard.lock);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    free(guard.connections);
    guard.connections = most == 0 ? NULL : memory_zero(most, sizeof *guard.connections);
    guard.count = 0;
    guard.most = most;
    guard.most_of_address = most_of_address;
    guard.files = getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur > FILES_RESERVED
                      ? (size_t)files.rlim_cur - FILES_RESERVED
                      : SIZE_MAX;
    if (guard.inflows == NULL && idle_bytes > 0) { /* only what is used is ever touched */
        guard.inflow_count = guard.files < INFLOWS_MAX ? guard.files : INFLOWS_MAX;
        guard.inflows = memory_zero(guard.inflow_count, sizeof *guard.inflows);
    }
    guard.inflow_most = idle_bytes == 0 ? SIZE_MAX : idle_bytes;
    if (guard.spare < 0)
        guard.spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    pthread_mutex_unlock(&guard.lock);
}

void rpc_progress(uint16_t port)
{
    atomic_fetch_add_explicit(&progress[port], 1, memory_order_relaxed);
}

uint64_t rpc_connections_refused(void)
{
    return atomic_load(&guard.refused);
}

/* ---- with the lock held ---- */

static bool is_gone(const struct connection *connection)
{
    struct stat facts;

    return fstat(connection->fd, &facts) != 0 || facts.st_ino != connection->inode;
}

static void forget_gone(void)
{
    uint64_t now = clock_monotonic_ms();

    if (now - guard.looked_ms < LOOK_EVERY_MS)
        return;
    guard.looked_ms = now;
    for (size_t i = 0; i < guard.count;)
        if (is_gone(&guard.connections[i]))
            guard.connections[i] = guard.connections[--guard.count];
        else
            i++;
}

static size_t count_of(uint64_t address)
{
    size_t count = 0;

    for (size_t i = 0; i < guard.count; i++)
        count += guard.connections[i].address == address;
    return count;
}

static bool is_too_many(uint64_t address)
{
    return guard.count >= guard.most || (guard.most_of_address > 0 && count_of(address) >= guard.most_of_address);
}

static uint64_t address_of(int fd, uint16_t *port)
{
    struct sockaddr_storage from = {0};
    socklen_t len = sizeof from;

    *port = 0;
    if (getpeername(fd, (struct sockaddr *)&from, &len) != 0)
        return 0;
    if (from.ss_family == AF_INET || from.ss_family == AF_INET6) /* at the same place in both */
        *port = ntohs(((struct sockaddr_in *)(void *)&from)->sin_port);
    if (from.ss_family == AF_INET)
        return hash_bytes((struct bytes){(uint8_t *)&((struct sockaddr_in *)(void *)&from)->sin_addr, 4});
    if (from.ss_family == AF_INET6)
        return hash_bytes((struct bytes){(uint8_t *)&((struct sockaddr_in6 *)(void *)&from)->sin6_addr, 16});
    return 0;
}

static void watch(struct inflow *inflow, ino_t inode, uint16_t port)
{
    atomic_store(&inflow->port, port);
    atomic_store(&inflow->progress, atomic_load(&progress[port]));
    atomic_store(&inflow->bytes, 0);
    atomic_store(&inflow->inode, inode);
}

/* False: this one has no place. */
static bool admit(int fd)
{
    uint16_t port;
    uint64_t address = address_of(fd, &port);
    struct stat facts;

    if ((guard.connections != NULL || guard.inflows != NULL) && ((size_t)fd >= guard.files || fstat(fd, &facts) != 0))
        return false;
    if (guard.inflows != NULL && (size_t)fd < guard.inflow_count)
        watch(&guard.inflows[fd], facts.st_ino, port);
    if (guard.connections == NULL)
        return true;
    if (is_too_many(address))
        forget_gone();
    if (is_too_many(address))
        return false;
    guard.connections[guard.count++] = (struct connection){fd, facts.st_ino, address};
    return true;
}

/* No file descriptor is left: with the spare one the connection is taken, and let go. False: none to take. */
static bool let_one_go(int listener)
{
    int fd;

    if (guard.spare < 0)
        return false;
    (void)close(guard.spare);
    fd = (int)syscall(SYS_accept4, listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0)
        (void)close(fd);
    guard.spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return fd >= 0;
}

/* ---- in place of libc's ---- */

/* Of a connection that ended before it was accepted, not of the listener. */
static bool is_of_connection(int code)
{
    return code == ECONNABORTED || code == EPROTO || code == ENETDOWN || code == EHOSTDOWN || code == EHOSTUNREACH ||
           code == ENETUNREACH || code == ENONET;
}

static bool is_of_process(int code)
{
    return code == EMFILE || code == ENFILE || code == ENOBUFS || code == ENOMEM;
}

/* Handles what an accept gave: true when the caller must have it as it is. */
static bool is_for_caller(int listener, int fd, int code)
{
    bool place = false;
    bool taken = true;

    if (code != 0 && !is_of_process(code))
        return !is_of_connection(code);
    pthread_mutex_lock(&guard.lock);
    if (code == 0)
        place = admit(fd);
    else
        taken = let_one_go(listener);
    pthread_mutex_unlock(&guard.lock);
    if (code == 0 && !place)
        (void)close(fd);
    atomic_fetch_add(&guard.refused, !place && taken);
    return place || !taken;
}

/* It has sent too much that came to nothing. An fd that is another file by now was closed without us. */
static bool is_idle_talk(int fd, size_t more)
{
    struct inflow *inflow =
        guard.inflows != NULL && fd >= 0 && (size_t)fd < guard.inflow_count ? &guard.inflows[fd] : NULL;
    unsigned now;
    size_t bytes;
    struct stat facts;

    if (inflow == NULL || atomic_load_explicit(&inflow->inode, memory_order_relaxed) == 0)
        return false;
    now = atomic_load_explicit(&progress[atomic_load_explicit(&inflow->port, memory_order_relaxed)], memory_order_relaxed);
    if (now != atomic_load_explicit(&inflow->progress, memory_order_relaxed)) {
        atomic_store_explicit(&inflow->progress, now, memory_order_relaxed);
        atomic_store_explicit(&inflow->bytes, 0, memory_order_relaxed);
    }
    bytes = atomic_fetch_add_explicit(&inflow->bytes, more, memory_order_relaxed) + more;
    if (bytes <= atomic_load_explicit(&guard.inflow_most, memory_order_relaxed))
        return false;
    if (fstat(fd, &facts) == 0 && facts.st_ino == atomic_load(&inflow->inode))
        return true;
    atomic_store(&inflow->inode, 0);
    return false;
}

typedef ssize_t receive_function(int fd, struct msghdr *message, int flags);

/* libc's, or that of whoever else stands before it (a sanitizer, a test that lets it fail). */
static receive_function *next_recvmsg(void)
{
    static void *_Atomic known;
    void *found = atomic_load_explicit(&known, memory_order_acquire);

    if (found == NULL) {
        found = dlsym(RTLD_NEXT, "recvmsg");
        atomic_store_explicit(&known, found, memory_order_release);
    }
    return (receive_function *)found;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    ssize_t len = next_recvmsg()(fd, message, flags);

    if (len <= 0 || !is_idle_talk(fd, (size_t)len))
        return len;
    atomic_fetch_add(&guard.refused, 1);
    errno = ECONNRESET;
    return -1;
}

int accept4(int listener, struct sockaddr *address, socklen_t *len, int flags)
{
    socklen_t room = len == NULL ? 0 : *len;

    for (;;) {
        int fd = (int)syscall(SYS_accept4, listener, address, len, flags);
        int code = fd < 0 ? errno : 0;

        if (is_for_caller(listener, fd, code)) {
            errno = is_of_process(code) ? EAGAIN : code;
            return fd;
        }
        if ((fcntl(listener, F_GETFL) & O_NONBLOCK) == 0) { /* whoever waits in it may have to look around */
            errno = EAGAIN;
            return -1;
        }
        if (len != NULL)
            *len = room;
    }
}

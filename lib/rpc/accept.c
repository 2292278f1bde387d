/*
 * How many connections there may be. gRPC has no such limit, and worse: when accept4() fails because the process
 * has no file descriptor left, its server never accepts again (seen with 1.51; anybody could bring that about who
 * reaches the port). So this file defines accept4() itself, which libraries find before libc's.
 *
 * Always true: a listener never sees an error that is about one connection or about the number of open files;
 * who is too many is accepted and closed at once. Never waits. Any thread.
 */
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
};

struct connection {
    int fd;
    ino_t inode; /* another one: this fd was closed, and is something else now */
    uint64_t address;
};

static struct {
    pthread_mutex_t lock;
    struct connection *connections; /* room for `most`; NULL: without limits */
    size_t count;
    size_t most, most_of_address;
    size_t files; /* a file descriptor from here on is too many */
    uint64_t looked_ms;
    int spare; /* closed to take in, and let go, a connection when there is no other */
    atomic_ullong refused;
} guard = {.lock = PTHREAD_MUTEX_INITIALIZER, .spare = -1};

void rpc_limit_connections(size_t most, size_t most_of_address)
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
    if (guard.spare < 0)
        guard.spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    pthread_mutex_unlock(&guard.lock);
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

static uint64_t address_of(int fd)
{
    struct sockaddr_storage from = {0};
    socklen_t len = sizeof from;

    if (getpeername(fd, (struct sockaddr *)&from, &len) != 0)
        return 0;
    if (from.ss_family == AF_INET)
        return hash_bytes((struct bytes){(uint8_t *)&((struct sockaddr_in *)(void *)&from)->sin_addr, 4});
    if (from.ss_family == AF_INET6)
        return hash_bytes((struct bytes){(uint8_t *)&((struct sockaddr_in6 *)(void *)&from)->sin6_addr, 16});
    return 0;
}

/* False: this one has no place. */
static bool admit(int fd)
{
    uint64_t address = address_of(fd);
    struct stat facts;

    if (guard.connections == NULL)
        return true;
    if ((size_t)fd >= guard.files || fstat(fd, &facts) != 0)
        return false;
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

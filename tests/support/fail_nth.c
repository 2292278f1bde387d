/*
 * To be preloaded: the N-th call of one function fails, once, counted from the start of the process.
 * FAIL_CALL is malloc, sendmsg, recvmsg, write (to files), fdatasync, pread or openat; FAIL_AT is N.
 * One line on stderr tells that it came. malloc stands for every allocation.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static const char *failing = "";
static atomic_long left;

__attribute__((constructor)) static void configure(void)
{
    const char *call = getenv("FAIL_CALL");
    const char *at = getenv("FAIL_AT");

    if (call == NULL || at == NULL)
        return;
    failing = call;
    atomic_store(&left, atol(at));
}

static bool fails(const char *call)
{
    static const char told[] = "fail-nth: it fails here\n";

    if (failing[0] != call[0] || strcmp(failing, call) != 0 || atomic_load(&left) <= 0 ||
        atomic_fetch_sub(&left, 1) != 1)
        return false;
    (void)!syscall(SYS_write, 2, told, sizeof told - 1);
    return true;
}

void *malloc(size_t size)
{
    return fails("malloc") ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return fails("malloc") ? NULL : __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
    return fails("malloc") ? NULL : __libc_realloc(old, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return fails("malloc") ? NULL : __libc_memalign(alignment, size);
}

static long failed(int code)
{
    errno = code;
    return -1;
}

static long result(long code)
{
    return code; /* syscall() has set errno */
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    return fails("sendmsg") ? failed(ECONNRESET) : result(syscall(SYS_sendmsg, fd, message, flags));
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    return fails("recvmsg") ? failed(ECONNRESET) : result(syscall(SYS_recvmsg, fd, message, flags));
}

ssize_t pread64(int fd, void *data, size_t len, off64_t at)
{
    return fails("pread") ? failed(EIO) : result(syscall(SYS_pread64, fd, data, len, at));
}

ssize_t pread(int fd, void *data, size_t len, off_t at)
{
    return pread64(fd, data, len, at);
}

static bool is_file(int fd)
{
    struct stat about;

    return fd > 2 && fstat(fd, &about) == 0 && S_ISREG(about.st_mode);
}

ssize_t write(int fd, const void *data, size_t len)
{
    if (failing[0] == 'w' && is_file(fd) && fails("write"))
        return failed(EIO);
    return result(syscall(SYS_write, fd, data, len));
}

int fdatasync(int fd)
{
    return (int)(fails("fdatasync") ? failed(EIO) : result(syscall(SYS_fdatasync, fd)));
}

static int open_file(const char *path, int flags, int mode)
{
    return (int)(fails("openat") ? failed(EIO)
                                 : result(syscall(SYS_openat, AT_FDCWD, path, flags, mode)));
}

#define OPEN(name)                                 \
    int name(const char *path, int flags, ...)     \
    {                                              \
        va_list arguments;                         \
        int mode;                                  \
                                                   \
        va_start(arguments, flags);                \
        mode = va_arg(arguments, int);             \
        va_end(arguments);                         \
        return open_file(path, flags, mode);       \
    }
OPEN(open)
OPEN(open64)

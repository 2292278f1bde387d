/* Files with secrets or rights in them: whose they are, whether they changed, what is in them. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "security.h"

static enum status look(const char *path, const char *what, struct stat *out, struct fault *fault)
{
    if (stat(path, out) != 0)
        return fault_set(fault, STATUS_INVALID, "FILE_UNREADABLE", "cannot read the %s %s: %s", what, path,
                         strerror(errno));
    if (!S_ISREG(out->st_mode))
        return fault_set(fault, STATUS_INVALID, "FILE_UNREADABLE", "the %s %s is not a file", what, path);
    if (out->st_uid != 0 && out->st_uid != geteuid())
        return fault_set(fault, STATUS_INVALID, "FILE_EXPOSED",
                         "the %s %s belongs to user %u; it must be root's or that of the user who runs this", what,
                         path, (unsigned)out->st_uid);
    return STATUS_OK;
}

/* The group may read it: that is how Kubernetes gives secrets. */
enum status key_file_check(const char *path, struct fault *fault)
{
    struct stat facts;

    if (look(path, "private key", &facts, fault) != STATUS_OK)
        return fault->status;
    if ((facts.st_mode & 0027) != 0)
        return fault_set(fault, STATUS_INVALID, "FILE_EXPOSED",
                         "others may read or write the private key %s (mode %03o); chmod 600 it, and replace it if "
                         "strangers were on this machine",
                         path, facts.st_mode & 0777);
    return STATUS_OK;
}

enum status secret_file_check(const char *path, const char *what, struct fault *fault)
{
    struct stat facts;

    if (look(path, what, &facts, fault) != STATUS_OK)
        return fault->status;
    if ((facts.st_mode & 0077) != 0)
        return fault_set(fault, STATUS_INVALID, "FILE_EXPOSED",
                         "the %s %s must be a file that only its owner can read (mode %03o): chmod 600 it", what, path,
                         facts.st_mode & 0777);
    return STATUS_OK;
}

enum status policy_file_check(const char *path, struct fault *fault)
{
    struct stat facts;

    if (look(path, "policy", &facts, fault) != STATUS_OK)
        return fault->status;
    if ((facts.st_mode & 0022) != 0)
        return fault_set(fault, STATUS_INVALID, "FILE_EXPOSED",
                         "others may write the policy %s (mode %03o), and so give themselves any right; chmod 644 it",
                         path, facts.st_mode & 0777);
    return STATUS_OK;
}

uint64_t file_mark(const char *path)
{
    struct stat facts;
    uint64_t marks[5];

    if (stat(path, &facts) != 0)
        return 0;
    marks[0] = (uint64_t)facts.st_ino;
    marks[1] = (uint64_t)facts.st_size;
    marks[2] = (uint64_t)facts.st_mtim.tv_sec;
    marks[3] = (uint64_t)facts.st_mtim.tv_nsec;
    marks[4] = facts.st_mode;
    return hash_bytes((struct bytes){(const uint8_t *)marks, sizeof marks}) | 1;
}

/* In any order: a folder's order may change without a reason. */
uint64_t folder_mark(const char *path)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    uint64_t mark = 1;
    char file[1024];

    if (directory == NULL)
        return 0;
    while ((entry = readdir(directory)) != NULL) {
        snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.')
            mark += file_mark(file);
    }
    closedir(directory);
    return mark | 1;
}

enum status file_read(const char *path, size_t limit, struct arena *arena, struct bytes *out, struct fault *fault)
{
    FILE *file = fopen(path, "re");
    uint8_t *data = arena_take(arena, limit + 1);
    size_t len;

    if (file == NULL)
        return fault_set(fault, STATUS_INVALID, "FILE_UNREADABLE", "cannot read %s: %s", path, strerror(errno));
    len = fread(data, 1, limit + 1, file);
    fclose(file);
    if (len > limit)
        return fault_set(fault, STATUS_INVALID, "FILE_UNREADABLE", "%s is larger than %zu bytes", path, limit);
    data[len] = '\0';
    *out = (struct bytes){data, len};
    return STATUS_OK;
}

enum status file_replace(const char *path, struct bytes text, struct fault *fault)
{
    char draft[1024];
    int fd;
    bool good;

    snprintf(draft, sizeof draft, "%s.new", path);
    (void)unlink(draft); /* of a try that was cut short */
    fd = open(draft, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    good = fd >= 0 && write(fd, text.data, text.len) == (ssize_t)text.len && fsync(fd) == 0;
    if (fd >= 0)
        (void)close(fd);
    if (!good || rename(draft, path) != 0)
        return fault_set(fault, STATUS_FAILED, "FILE_UNWRITABLE", "cannot write %s: %s", path, strerror(errno));
    return STATUS_OK;
}

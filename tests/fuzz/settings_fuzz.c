/* The configuration file, then flags: the bytes up to the first NUL are the file, each further run up to a
 * NUL is an argument. Settings that are refused say why; those that are taken lie within their bounds. */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../server/config.h"
#include "fuzz.h"

enum { ARGUMENTS_MAX = 16 };

/* --config may name any file of this machine; --help, --man and --version print. */
static bool leads_away(const char *argument)
{
    return strncmp(argument, "--co", 4) == 0 || strncmp(argument, "--ch", 4) == 0 ||
           strncmp(argument, "--he", 4) == 0 || strncmp(argument, "--ma", 4) == 0 ||
           strncmp(argument, "--v", 3) == 0;
}

static int file_with(struct bytes text)
{
    int fd = memfd_create("settings", 0);
    char path[64];

    if (fd < 0 || write(fd, text.data, text.len) != (ssize_t)text.len)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    setenv("CAIRN_CONFIG", path, 1);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *arguments[ARGUMENTS_MAX + 2] = {"cairnd"};
    struct arena arena = {0};
    char *text = arena_text(&arena, (struct bytes){data, size});
    size_t file_len = strlen(text);
    int count = 1;
    int fd = file_with((struct bytes){data, file_len});
    struct config config;
    struct fault fault = {0};
    enum status status;

    for (char *at = text + file_len + 1; at < text + size && count <= ARGUMENTS_MAX;
         at += strlen(at) + 1)
        if (!leads_away(at))
            arguments[count++] = at;
    status = config_load(&config, count, arguments, &fault);
    if (status == STATUS_OK) {
        assert(config.partitions >= 1 && config.partitions <= PARTITIONS_MAX);
        assert(config.join_count <= JOIN_MAX && config.module_count <= MODULES_MAX);
        assert(strchr(config.listen, ':') != NULL);
    } else {
        assert(status == STATUS_INVALID && fault.message[0] != '\0');
    }
    close(fd);
    arena_release(&arena);
    return 0;
}

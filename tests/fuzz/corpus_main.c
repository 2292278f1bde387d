/* Runs a fuzz target over the files of a folder, with any compiler: what fuzzing learned stays a test. */
#include <dirent.h>

#include "fuzz.h"

static bool run_file(const char *folder, const char *name)
{
    char path[1024];
    uint8_t *data = memory_take(1 << 20);
    FILE *file;
    size_t len;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    file = fopen(path, "rb");
    if (file == NULL)
        return false;
    len = fread(data, 1, 1 << 20, file);
    fclose(file);
    data = memory_grow(data, len); /* so that a read behind the end is seen by ASan */
    (void)LLVMFuzzerTestOneInput(data, len);
    free(data);
    return true;
}

int main(int count, char **arguments)
{
    DIR *folder = count == 2 ? opendir(arguments[1]) : NULL;
    struct dirent *entry;
    int files = 0;

    if (folder == NULL) {
        fprintf(stderr, "usage: %s FOLDER\n", arguments[0]);
        return 2;
    }
    while ((entry = readdir(folder)) != NULL)
        if (entry->d_name[0] != '.')
            files += run_file(arguments[1], entry->d_name);
    closedir(folder);
    printf("%d inputs\n", files);
    return files > 0 ? 0 : 1;
}

/* cairnctl cert: a CA and what it certifies, made and looked at here; nobody is asked. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "ctl.h"
#include "security/security.h"

enum { CA_DAYS = 3650, OPERATOR_DAYS = 90, OTHER_DAYS = 365, SOON_S = 30 * 86400, PATH_ROOM = 700 };

static const char *folder_of(const struct ctl *ctl)
{
    return ctl->folder == NULL ? "." : ctl->folder;
}

static void path_of(const struct ctl *ctl, const char *stem, const char *ending, char *out)
{
    snprintf(out, PATH_ROOM, "%s/%s.%s", folder_of(ctl), stem, ending);
}

static int make(struct ctl *ctl, const char *kind, const char *name, uint32_t days)
{
    bool ca = strcmp(kind, "ca") == 0;
    const char *const own_hosts[] = {name, "localhost", "127.0.0.1", "::1"};
    char stem[300], certificate[PATH_ROOM], key[PATH_ROOM], ca_certificate[PATH_ROOM], ca_key[PATH_ROOM];
    struct issue issue = {.kind = kind,
                          .cluster = ctl->cluster == NULL ? "cairn" : ctl->cluster,
                          .name = name,
                          .days = ctl->days == 0 ? days : (uint32_t)ctl->days,
                          .ca_certificate = ca_certificate,
                          .ca_key = ca_key,
                          .certificate = certificate,
                          .key = key};
    struct fault fault;

    if (strcmp(kind, "node") == 0) {
        issue.hosts = ctl->host_count > 0 ? ctl->hosts : own_hosts;
        issue.host_count = ctl->host_count > 0 ? ctl->host_count : COUNT_OF(own_hosts);
    }
    snprintf(stem, sizeof stem, ca ? "ca" : "%s-%s", kind, name);
    path_of(ctl, stem, "crt", certificate);
    path_of(ctl, stem, "key", key);
    path_of(ctl, "ca", "crt", ca_certificate);
    path_of(ctl, "ca", "key", ca_key);
    if (mkdir(folder_of(ctl), 0700) != 0 && errno != EEXIST)
        return usage_error("cannot make the folder %s: %s", folder_of(ctl), strerror(errno));
    if (certificate_issue(&issue, &fault) != STATUS_OK)
        return refused_here(&fault);
    printf("%s\n%s\n", certificate, key);
    return EXIT_FINE;
}

int cert_ca(struct ctl *ctl)
{
    return make(ctl, "ca", "Cairn CA", CA_DAYS);
}

int cert_node(struct ctl *ctl)
{
    return make(ctl, "node", ctl->arguments[0], OTHER_DAYS);
}

int cert_operator(struct ctl *ctl)
{
    return make(ctl, "operator", ctl->arguments[0], OPERATOR_DAYS);
}

int cert_client(struct ctl *ctl)
{
    return make(ctl, "client", ctl->arguments[0], OTHER_DAYS);
}

int cert_revoke(struct ctl *ctl)
{
    char certificate[PATH_ROOM], key[PATH_ROOM], list[PATH_ROOM];
    struct fault fault;

    path_of(ctl, "ca", "crt", certificate);
    path_of(ctl, "ca", "key", key);
    snprintf(list, sizeof list, "%s/revoked", folder_of(ctl));
    if (mkdir(list, 0755) != 0 && errno != EEXIST)
        return usage_error("cannot make the folder %s: %s", list, strerror(errno));
    path_of(ctl, "revoked/ca", "crl", list);
    if (certificate_revoke(ctl->arguments[0], certificate, key, list, &fault) != STATUS_OK)
        return refused_here(&fault);
    printf("%s\n", list);
    return EXIT_FINE;
}

/* ---- list ---- */

static bool ends_soon(const struct certificate *facts)
{
    return facts->not_after_s - (int64_t)time(NULL) < SOON_S;
}

static void show(struct table *table, json_t *list, const char *path, const struct certificate *facts)
{
    time_t end = (time_t)facts->not_after_s;
    long long days = ((long long)facts->not_after_s - (long long)time(NULL)) / 86400;
    char text[32];
    struct tm parts;

    strftime(text, sizeof text, "%Y-%m-%d", gmtime_r(&end, &parts));
    if (list != NULL) {
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:I}", "file", path, "identity", facts->identity, "expires",
                                              text, "days", (json_int_t)days));
        return;
    }
    table_cell(table, "%s", path);
    table_cell(table, "%s", facts->identity);
    table_cell(table, "%s", text);
    table_cell(table, "%lld%s", days, facts->not_after_s <= (int64_t)time(NULL) ? " (expired)" : "");
}

static int show_file(struct table *table, json_t *list, const char *path, bool *soon)
{
    struct certificate facts;
    struct fault fault;

    if (certificate_load(path, &facts, &fault) != STATUS_OK)
        return refused_here(&fault);
    *soon = *soon || ends_soon(&facts);
    show(table, list, path, &facts);
    return EXIT_FINE;
}

static int is_certificate(const struct dirent *entry)
{
    size_t len = strlen(entry->d_name);

    return len > 4 && strcmp(entry->d_name + len - 4, ".crt") == 0;
}

static int show_folder(const struct ctl *ctl, struct table *table, json_t *list, bool *soon)
{
    struct dirent **entries;
    int n = scandir(folder_of(ctl), &entries, is_certificate, alphasort);
    int code = EXIT_FINE;

    if (n < 0)
        return usage_error("cannot read the folder %s: %s", folder_of(ctl), strerror(errno));
    for (int i = 0; i < n; i++) {
        char path[PATH_ROOM];

        snprintf(path, sizeof path, "%s/%s", folder_of(ctl), entries[i]->d_name);
        if (code == EXIT_FINE)
            code = show_file(table, list, path, soon);
        free(entries[i]);
    }
    free(entries);
    return code;
}

int cert_list(struct ctl *ctl)
{
    static const char *const heads[] = {"FILE", "IDENTITY", "EXPIRES", "DAYS", NULL};
    struct table *table = ctl->json ? NULL : table_new(heads);
    json_t *list = ctl->json ? json_array() : NULL;
    bool soon = false;
    int code = EXIT_FINE;

    if (ctl->count == 0)
        code = show_folder(ctl, table, list, &soon);
    for (int i = 0; i < ctl->count && code == EXIT_FINE; i++)
        code = show_file(table, list, ctl->arguments[i], &soon);
    if (ctl->json)
        print_json(list);
    else
        table_print(table);
    return code != EXIT_FINE ? code : soon ? EXIT_REFUSED : EXIT_FINE;
}

/* cairnctl key: master keys for --master-key of the nodes, made and looked at here; nobody is asked. */
#include <stdio.h>
#include <time.h>

#include "ctl.h"
#include "security/security.h"

int key_master(struct ctl *ctl)
{
    const char *uri = ctl->count > 1 ? ctl->arguments[1] : NULL;
    char id[40];
    struct fault fault;
    time_t now = time(NULL);
    struct tm parts;

    if (uri != NULL && !is_pkcs11(uri))
        return usage_error("`%s` is no PKCS #11 URI: it must begin with pkcs11:", uri);
    /* One that says when it was made; two in a second are none. */
    strftime(id, sizeof id, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &parts));
    if (master_key_add(ctl->arguments[0], id, uri, &fault) != STATUS_OK)
        return refused_here(&fault);
    printf("%s: the key %s is the first now; give the file to all nodes\n", ctl->arguments[0], id);
    return EXIT_FINE;
}

/* What was found until all of it is known to be sound. */
enum { KEYS_SHOWN_MAX = 64, ID_ROOM = 64 };

struct found {
    size_t count;
    char ids[KEYS_SHOWN_MAX][ID_ROOM];
    char checks[KEYS_SHOWN_MAX][SECRET_CHECK_TEXT];
};

static bool take(void *context, const char *id, const uint8_t key[SECRET_BYTES])
{
    struct found *found = context;

    if (found->count == KEYS_SHOWN_MAX)
        return false;
    snprintf(found->ids[found->count], ID_ROOM, "%s", id);
    secret_check_value(key, found->checks[found->count++]);
    return true;
}

int key_check(struct ctl *ctl)
{
    static const char *const heads[] = {"ID", "CHECK", NULL};
    struct found found = {0};
    struct table *table;
    struct fault fault;
    json_t *list;

    if (master_keys_read(ctl->arguments[0], &found, take, &fault) != STATUS_OK)
        return refused_here(&fault);
    table = ctl->json ? NULL : table_new(heads);
    list = ctl->json ? json_array() : NULL;
    for (size_t i = 0; i < found.count; i++) {
        if (ctl->json) {
            json_array_append_new(list, json_pack("{s:s, s:s}", "id", found.ids[i], "check", found.checks[i]));
            continue;
        }
        table_cell(table, "%s", found.ids[i]);
        table_cell(table, "%s", found.checks[i]);
    }
    if (ctl->json)
        print_json(list);
    else
        table_print(table);
    return EXIT_FINE;
}

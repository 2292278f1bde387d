/* cairnctl cluster: what the topology says, and orders that change it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/base.h"
#include "cairn/v1/cluster.pb-c.h"
#include "ctl.h"

enum { LOOK_MS = 500 };

static const char *const statuses[] = {"?", "alive", "suspect", "dead", "left"};
static const char *const placements[] = {"joining", "member", "draining", "removed"};

/* ---- the topology ---- */

struct look {
    Cairn__V1__GetTopologyResponse *response;
};

static bool on_topology(void *user, const uint8_t *packed, size_t len)
{
    struct look *look = user;

    look->response = cairn__v1__get_topology_response__unpack(NULL, len, packed);
    return true;
}

/* NULL: said why. */
static Cairn__V1__GetTopologyResponse *topology(struct ctl *ctl, int *code)
{
    struct look look = {0};
    struct cairn_error error;

    if (cairn_client_call(ctl->client, NULL, "/cairn.v1.ClusterService/GetTopology", NULL, 0, ctl->timeout_ms, on_topology,
                          &look, &error) != 0) {
        *code = complain(ctl, &error);
        return NULL;
    }
    if (look.response == NULL || look.response->topology == NULL) {
        fprintf(stderr, "cairnctl: %s gave a topology that can't be read\n", cairn_client_endpoint(ctl->client));
        *code = EXIT_REFUSED;
        return NULL;
    }
    return look.response;
}

static const Cairn__V1__Member *member_by_id(const Cairn__V1__Topology *view, uint64_t id)
{
    for (size_t i = 0; i < view->n_members; i++)
        if (view->members[i]->node_id == id)
            return view->members[i];
    return NULL;
}

static const char *name_of(const Cairn__V1__Topology *view, uint64_t id, char *room, size_t size)
{
    const Cairn__V1__Member *member = member_by_id(view, id);

    if (id == 0)
        return "-";
    if (member != NULL)
        return member->name;
    snprintf(room, size, "%016llx", (unsigned long long)id);
    return room;
}

static bool holds(const uint64_t *ids, size_t count, uint64_t id)
{
    for (size_t i = 0; i < count; i++)
        if (ids[i] == id)
            return true;
    return false;
}

/* Held by other than who should hold it. */
static bool is_moving(const Cairn__V1__Partition *p)
{
    if (p->n_standbys > 0 || p->n_replicas != p->n_target)
        return true;
    for (size_t i = 0; i < p->n_target; i++)
        if (!holds(p->replicas, p->n_replicas, p->target[i]))
            return true;
    return false;
}

struct summary {
    size_t unowned, moving, degraded, alive;
};

static struct summary sum_up(const Cairn__V1__Topology *view)
{
    struct summary sum = {0};

    for (size_t i = 0; i < view->n_partitions; i++) {
        const Cairn__V1__Partition *p = view->partitions[i];
        size_t live = 0;

        for (size_t k = 0; k < p->n_replicas; k++) {
            const Cairn__V1__Member *member = member_by_id(view, p->replicas[k]);

            live += member != NULL && member->status == CAIRN__V1__MEMBER_STATUS__MEMBER_STATUS_ALIVE;
        }
        sum.unowned += p->owner == 0;
        sum.moving += is_moving(p);
        sum.degraded += live < view->replication_factor;
    }
    for (size_t i = 0; i < view->n_members; i++)
        sum.alive += view->members[i]->status == CAIRN__V1__MEMBER_STATUS__MEMBER_STATUS_ALIVE;
    return sum;
}

static json_t *ids_json(const Cairn__V1__Topology *view, const uint64_t *ids, size_t count)
{
    json_t *list = json_array();
    char room[17];

    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, json_string(name_of(view, ids[i], room, sizeof room)));
    return list;
}

/* Again and again with --watch, until the user ends it. */
static int watch(struct ctl *ctl, int (*show)(struct ctl *ctl, const Cairn__V1__Topology *view))
{
    int code = EXIT_FINE;

    for (;;) {
        Cairn__V1__GetTopologyResponse *response = topology(ctl, &code);
        struct timespec pause = {LOOK_MS / 1000, LOOK_MS % 1000 * 1000000L};

        if (response == NULL)
            return code;
        if (ctl->watch && !ctl->json)
            fputs("\033[H\033[2J", stdout);
        code = show(ctl, response->topology);
        cairn__v1__get_topology_response__free_unpacked(response, NULL);
        fflush(stdout);
        if (!ctl->watch)
            return code;
        nanosleep(&pause, NULL);
    }
}

/* ---- status ---- */

static int show_status(struct ctl *ctl, const Cairn__V1__Topology *view)
{
    struct summary sum = sum_up(view);
    char room[17];
    const char *planner = name_of(view, view->system_partition == NULL ? 0 : view->system_partition->owner, room,
                                  sizeof room);

    if (ctl->json) {
        print_json(json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:I, s:s}", "cluster", view->cluster_name,
                             "cluster_id", view->cluster_id, "members", (int)view->n_members, "alive",
                             (int)sum.alive, "partitions", (int)view->n_partitions, "unowned", (int)sum.unowned,
                             "moving", (int)sum.moving, "degraded", (int)sum.degraded, "replication_factor",
                             (int)view->replication_factor, "placement_version",
                             (json_int_t)view->placement_version, "planner", planner));
    } else {
        printf("cluster %s (%s), as %s knows it\n", view->cluster_name, view->cluster_id,
               cairn_client_endpoint(ctl->client));
        printf("members      %zu of %zu alive\n", sum.alive, view->n_members);
        printf("partitions   %zu, replication factor %u\n", view->n_partitions, view->replication_factor);
        printf("without an owner     %zu\n", sum.unowned);
        printf("moving               %zu\n", sum.moving);
        printf("short of replicas    %zu%s\n", sum.degraded,
               sum.degraded > 0 && sum.alive < view->replication_factor
                   ? "  (fewer live members than the replication factor)" : "");
        printf("placement    version %llu, planned by %s\n", (unsigned long long)view->placement_version, planner);
    }
    return sum.unowned > 0 ? EXIT_REFUSED : EXIT_FINE;
}

int cluster_status(struct ctl *ctl)
{
    return watch(ctl, show_status);
}

/* ---- members ---- */

static const char *word(const char *const *words, size_t count, int value)
{
    return value >= 0 && (size_t)value < count ? words[value] : "?";
}

static int show_members(struct ctl *ctl, const Cairn__V1__Topology *view)
{
    static const char *const heads[] = {"NAME",     "ID",       "ADDRESS", "STATUS", "PLACEMENT", "ZONE",
                                        "CAPACITY", "REPLICAS", "OWNED",   NULL};
    struct table *table = ctl->json ? NULL : table_new(heads);
    json_t *list = json_array();

    for (size_t i = 0; i < view->n_members; i++) {
        const Cairn__V1__Member *m = view->members[i];
        const char *status = word(statuses, COUNT_OF(statuses), m->status);
        const char *placement = word(placements, COUNT_OF(placements), m->placement);
        char id[17];

        snprintf(id, sizeof id, "%016llx", (unsigned long long)m->node_id);
        if (table == NULL) {
            json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:i}", "name", m->name,
                                                  "id", id, "address", m->address, "status", status, "placement",
                                                  placement, "zone", m->zone, "capacity", (int)m->capacity,
                                                  "replicas", (int)m->replicas, "owned", (int)m->owned));
            continue;
        }
        table_cell(table, "%s%s", m->name, m->node_id == view->node_id ? "*" : "");
        table_cell(table, "%s", id);
        table_cell(table, "%s", m->address);
        table_cell(table, "%s", status);
        table_cell(table, "%s", placement);
        table_cell(table, "%s", m->zone[0] == '\0' ? "-" : m->zone);
        table_cell(table, "%u", m->capacity);
        table_cell(table, "%u", m->replicas);
        table_cell(table, "%u", m->owned);
    }
    if (table != NULL)
        table_print(table);
    if (table == NULL)
        print_json(list);
    else
        json_decref(list);
    return EXIT_FINE;
}

int cluster_members(struct ctl *ctl)
{
    return watch(ctl, show_members);
}

/* ---- partitions ---- */

static void cell_of_ids(struct table *table, const Cairn__V1__Topology *view, const uint64_t *ids, size_t count)
{
    char text[256] = "";
    size_t len = 0;

    for (size_t i = 0; i < count && len < sizeof text; i++) {
        char room[17];

        len += (size_t)snprintf(text + len, sizeof text - len, "%s%s", i == 0 ? "" : " ",
                                name_of(view, ids[i], room, sizeof room));
    }
    table_cell(table, "%s", count == 0 ? "-" : text);
}

static int show_partitions(struct ctl *ctl, const Cairn__V1__Topology *view)
{
    static const char *const heads[] = {"PARTITION", "OWNER", "EPOCH", "REPLICAS", "STANDBYS", "MOVES TO", NULL};
    struct table *table = ctl->json ? NULL : table_new(heads);
    json_t *list = json_array();

    for (size_t i = 0; i <= view->n_partitions; i++) {
        const Cairn__V1__Partition *p = i < view->n_partitions ? view->partitions[i] : view->system_partition;
        char room[17];
        const char *owner;

        if (p == NULL)
            continue;
        owner = name_of(view, p->owner, room, sizeof room);
        if (table == NULL) {
            json_array_append_new(
                list, json_pack("{s:i, s:b, s:s, s:I, s:o, s:o, s:o, s:b}", "partition", (int)p->id, "system",
                                i == view->n_partitions, "owner", p->owner == 0 ? "" : owner, "epoch",
                                (json_int_t)p->epoch, "replicas", ids_json(view, p->replicas, p->n_replicas),
                                "standbys", ids_json(view, p->standbys, p->n_standbys), "target",
                                ids_json(view, p->target, p->n_target), "moving", is_moving(p)));
            continue;
        }
        if (i < view->n_partitions)
            table_cell(table, "%u", p->id);
        else
            table_cell(table, "system");
        table_cell(table, "%s", owner);
        table_cell(table, "%llu", (unsigned long long)p->epoch);
        cell_of_ids(table, view, p->replicas, p->n_replicas);
        cell_of_ids(table, view, p->standbys, p->n_standbys);
        cell_of_ids(table, view, p->target, is_moving(p) ? p->n_target : 0);
    }
    if (table != NULL)
        table_print(table);
    if (table == NULL)
        print_json(list);
    else
        json_decref(list);
    return EXIT_FINE;
}

int cluster_partitions(struct ctl *ctl)
{
    return watch(ctl, show_partitions);
}

/* ---- orders ---- */

/* All answers have the form of this one. */
static bool on_version(void *user, const uint8_t *packed, size_t len)
{
    Cairn__V1__DrainNodeResponse *response = cairn__v1__drain_node_response__unpack(NULL, len, packed);

    if (response != NULL)
        *(uint64_t *)user = response->placement_version;
    cairn__v1__drain_node_response__free_unpacked(response, NULL);
    return true;
}

static int order(struct ctl *ctl, const char *method, const ProtobufCMessage *request)
{
    size_t len = protobuf_c_message_get_packed_size(request);
    uint8_t *packed = memory_take(len + 1);
    struct cairn_error error;
    uint64_t version = 0;
    int code;

    protobuf_c_message_pack(request, packed);
    code = cairn_client_call(ctl->client, NULL, method, packed, len, ctl->timeout_ms, on_version, &version, &error);
    free(packed);
    if (code != 0)
        return complain(ctl, &error);
    if (ctl->json)
        print_json(json_pack("{s:I}", "placement_version", (json_int_t)version));
    return EXIT_FINE;
}

/* Until the node holds nothing, or nothing moves for a while. */
static int await_drained(struct ctl *ctl, const char *node)
{
    int code = EXIT_FINE;

    for (;;) {
        Cairn__V1__GetTopologyResponse *response = topology(ctl, &code);
        const Cairn__V1__Member *member = NULL;
        struct timespec pause = {LOOK_MS / 1000, LOOK_MS % 1000 * 1000000L};
        bool done = false;

        if (response == NULL)
            return code;
        for (size_t i = 0; i < response->topology->n_members; i++) {
            const Cairn__V1__Member *m = response->topology->members[i];
            char id[17];

            snprintf(id, sizeof id, "%016llx", (unsigned long long)m->node_id);
            if ((strcmp(m->name, node) == 0 || strcmp(id, node) == 0) && m->placement != CAIRN__V1__PLACEMENT_STATE__PLACEMENT_STATE_REMOVED)
                member = m;
        }
        if (member != NULL) {
            const Cairn__V1__Partition *system = response->topology->system_partition;

            done = member->replicas == 0 && member->owned == 0 &&
                   (system == NULL || !holds(system->replicas, system->n_replicas, member->node_id));
            if (!ctl->json)
                progress("%s owns %u and holds %u partitions", member->name, member->owned, member->replicas);
        }
        cairn__v1__get_topology_response__free_unpacked(response, NULL);
        if (member == NULL || done)
            break;
        nanosleep(&pause, NULL);
    }
    progress_end();
    if (!ctl->json)
        printf("%s holds nothing any more; it is safe to stop and to remove\n", node);
    return EXIT_FINE;
}

int cluster_drain(struct ctl *ctl)
{
    Cairn__V1__DrainNodeRequest request = CAIRN__V1__DRAIN_NODE_REQUEST__INIT;
    int code;

    request.node = ctl->arguments[0];
    request.force = ctl->force;
    request.cancel = ctl->cancel;
    code = order(ctl, "/cairn.v1.ClusterService/DrainNode", &request.base);
    if (code != EXIT_FINE || ctl->no_wait)
        return code;
    if (!ctl->cancel)
        return await_drained(ctl, request.node);
    if (!ctl->json)
        printf("%s is a full member again\n", request.node);
    return EXIT_FINE;
}

int cluster_remove(struct ctl *ctl)
{
    Cairn__V1__RemoveNodeRequest request = CAIRN__V1__REMOVE_NODE_REQUEST__INIT;
    int code;

    request.node = ctl->arguments[0];
    code = order(ctl, "/cairn.v1.ClusterService/RemoveNode", &request.base);
    if (code == EXIT_FINE && !ctl->json)
        printf("%s is removed\n", request.node);
    return code;
}

int cluster_transfer(struct ctl *ctl)
{
    Cairn__V1__TransferOwnershipRequest request = CAIRN__V1__TRANSFER_OWNERSHIP_REQUEST__INIT;
    char *end;
    int code;

    request.partition = (uint32_t)strtoul(ctl->arguments[0], &end, 10);
    if (end == ctl->arguments[0] || *end != '\0')
        return usage_error("`%s` is no partition's number", ctl->arguments[0]);
    request.node = ctl->arguments[1];
    code = order(ctl, "/cairn.v1.ClusterService/TransferOwnership", &request.base);
    if (code == EXIT_FINE && !ctl->json)
        printf("partition %u will be owned by %s\n", request.partition, request.node);
    return code;
}

static int show_settings(struct ctl *ctl, const Cairn__V1__Topology *view)
{
    const Cairn__V1__ClusterSettings *s = view->settings;

    if (ctl->json) {
        print_json(json_pack("{s:i, s:i, s:I, s:I}", "replication_factor", (int)view->replication_factor,
                             "moves_at_once", s == NULL ? 0 : (int)s->moves_at_once, "transfer_bytes",
                             s == NULL ? (json_int_t)0 : (json_int_t)s->transfer_bytes, "grace_ms",
                             s == NULL ? (json_int_t)0 : (json_int_t)s->grace_ms));
        return EXIT_FINE;
    }
    printf("replication_factor=%u\n", view->replication_factor);
    if (s != NULL)
        printf("moves_at_once=%u\ntransfer_bytes=%llu\ngrace_ms=%llu\n", s->moves_at_once,
               (unsigned long long)s->transfer_bytes, (unsigned long long)s->grace_ms);
    return EXIT_FINE;
}

static int set_one(Cairn__V1__UpdateSettingsRequest *request, const char *text)
{
    static const char *const names = "replication_factor, moves_at_once, transfer_bytes or grace_ms";
    const char *equals = strchr(text, '=');
    size_t len = equals == NULL ? 0 : (size_t)(equals - text);
    unsigned long long value;
    char *end;

    if (equals == NULL)
        return usage_error("`%s` is no NAME=VALUE; names are %s", text, names);
    value = strtoull(equals + 1, &end, 10);
    if (end == equals + 1 || *end != '\0' || equals[1] == '-')
        return usage_error("`%s` isn't a whole number", equals + 1);
    if (len == 18 && strncmp(text, "replication_factor", len) == 0) {
        request->set_replication_factor_case =
            CAIRN__V1__UPDATE_SETTINGS_REQUEST__SET_REPLICATION_FACTOR_REPLICATION_FACTOR;
        request->replication_factor = value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
    } else if (len == 13 && strncmp(text, "moves_at_once", len) == 0) {
        request->set_moves_at_once_case = CAIRN__V1__UPDATE_SETTINGS_REQUEST__SET_MOVES_AT_ONCE_MOVES_AT_ONCE;
        request->moves_at_once = value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
    } else if (len == 14 && strncmp(text, "transfer_bytes", len) == 0) {
        request->set_transfer_bytes_case = CAIRN__V1__UPDATE_SETTINGS_REQUEST__SET_TRANSFER_BYTES_TRANSFER_BYTES;
        request->transfer_bytes = value;
    } else if (len == 8 && strncmp(text, "grace_ms", len) == 0) {
        request->set_grace_ms_case = CAIRN__V1__UPDATE_SETTINGS_REQUEST__SET_GRACE_MS_GRACE_MS;
        request->grace_ms = value;
    } else {
        return usage_error("there is no setting `%.*s`; names are %s", (int)len, text, names);
    }
    return EXIT_FINE;
}

int cluster_settings(struct ctl *ctl)
{
    Cairn__V1__UpdateSettingsRequest request = CAIRN__V1__UPDATE_SETTINGS_REQUEST__INIT;

    if (ctl->count == 0)
        return watch(ctl, show_settings);
    for (int i = 0; i < ctl->count; i++) {
        int code = set_one(&request, ctl->arguments[i]);

        if (code != EXIT_FINE)
            return code;
    }
    return order(ctl, "/cairn.v1.ClusterService/UpdateSettings", &request.base);
}

static bool on_forgotten(void *user, const uint8_t *packed, size_t len)
{
    Cairn__V1__ForgetSubjectResponse *response = cairn__v1__forget_subject_response__unpack(NULL, len, packed);

    if (response != NULL)
        *(uint32_t *)user = response->partitions;
    cairn__v1__forget_subject_response__free_unpacked(response, NULL);
    return true;
}

int subject_forget(struct ctl *ctl)
{
    Cairn__V1__ForgetSubjectRequest request = CAIRN__V1__FORGET_SUBJECT_REQUEST__INIT;
    struct cairn_error error;
    uint32_t partitions = 0;
    uint8_t packed[512];
    int code;

    if (!ctl->force)
        return usage_error("this can't be taken back: say --force to forget the subject for good");
    if (strlen(ctl->arguments[0]) > SUBJECT_BYTES_MAX)
        return usage_error("the subject has %zu bytes; at most %d are allowed", strlen(ctl->arguments[0]),
                           SUBJECT_BYTES_MAX);
    request.subject = (char *)ctl->arguments[0];
    protobuf_c_message_pack(&request.base, packed);
    code = cairn_client_call(ctl->client, NULL, "/cairn.v1.ClusterService/ForgetSubject", packed,
                             protobuf_c_message_get_packed_size(&request.base), ctl->timeout_ms, on_forgotten, &partitions,
                             &error);
    if (code != 0)
        return complain(ctl, &error);
    if (ctl->json)
        print_json(json_pack("{s:I}", "partitions", (json_int_t)partitions));
    else
        printf("%s is forgotten in %u partitions\n", ctl->arguments[0], partitions);
    return EXIT_FINE;
}

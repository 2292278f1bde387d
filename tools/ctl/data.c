/* cairnctl aggregate, command and event: what aggregates went through, and commands to them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/base.h"
#include "cairn/v1/command.pb-c.h"
#include "cairn/v1/event.pb-c.h"
#include "ctl.h"

/* ---- events ---- */

static void time_text(const Google__Protobuf__Timestamp *time, char *out, size_t room)
{
    time_t seconds = time == NULL ? 0 : (time_t)time->seconds;
    struct tm parts;
    size_t len;

    gmtime_r(&seconds, &parts);
    len = strftime(out, room, "%Y-%m-%dT%H:%M:%S", &parts);
    snprintf(out + len, room - len, ".%03dZ", time == NULL ? 0 : time->nanos / 1000000);
}

/* Bytes that aren't text are shown in base 16. */
static json_t *data_json(const ProtobufCBinaryData *data)
{
    json_t *text = json_stringn((const char *)data->data, data->len);
    char *hex;

    if (text != NULL)
        return text;
    hex = memory_take(data->len * 2 + 1);
    for (size_t i = 0; i < data->len; i++)
        snprintf(hex + i * 2, 3, "%02x", data->data[i]);
    text = json_pack("{s:s}", "hex", hex);
    free(hex);
    return text;
}

static json_t *text_json(const char *text)
{
    json_t *value = json_loads(text, JSON_DECODE_ANY, NULL);

    return value != NULL ? value : json_string(text);
}

static json_t *payload_json(const Cairn__V1__Event *event)
{
    if (event->payload_case == CAIRN__V1__EVENT__PAYLOAD_JSON)
        return text_json(event->json);
    return event->payload_case == CAIRN__V1__EVENT__PAYLOAD_DATA ? data_json(&event->data) : json_null();
}

static json_t *event_json(const Cairn__V1__Event *event)
{
    json_t *metadata = json_object();
    char time[40];

    time_text(event->time, time, sizeof time);
    for (size_t i = 0; i < event->n_metadata; i++)
        json_object_set_new(metadata, event->metadata[i]->key, json_string(event->metadata[i]->value));
    return json_pack("{s:s, s:s, s:I, s:s, s:o, s:s, s:i, s:I, s:s, s:s, s:i, s:s, s:s, s:b, s:o}", "aggregate_type",
                     event->aggregate_type, "aggregate_id", event->aggregate_id, "sequence",
                     (json_int_t)event->sequence, "type", event->type, "payload", payload_json(event), "time", time,
                     "partition", (int)event->partition, "position", (json_int_t)event->position, "id", event->id,
                     "command_id", event->command_id, "revision", (int)event->revision, "principal", event->principal,
                     "subject", event->subject, "forgotten", (int)event->forgotten, "metadata", metadata);
}

/* One line for each event: JSON for scripts as it comes, a table at the end for people. */
struct listing {
    struct ctl *ctl;
    struct table *table;
    bool of_one; /* aggregate: its id isn't repeated */
    uint64_t count;
    json_t *last;
};

static void list_event(struct listing *listing, const Cairn__V1__Event *event)
{
    static const char *const heads[] = {"AGGREGATE", "PARTITION", "SEQUENCE", "TIME", "TYPE", "PAYLOAD", NULL};
    char time[40];
    char *payload;
    json_t *body;

    listing->count++;
    if (listing->ctl->json) {
        json_t *value = event_json(event);

        json_dumpf(value, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER);
        putchar('\n');
        json_decref(value);
        return;
    }
    if (listing->table == NULL)
        listing->table = table_new(heads + (listing->of_one ? 2 : 0));
    time_text(event->time, time, sizeof time);
    body = payload_json(event);
    payload = json_dumps(body, JSON_COMPACT | JSON_ENCODE_ANY | JSON_PRESERVE_ORDER);
    if (!listing->of_one) {
        table_cell(listing->table, "%s/%s", event->aggregate_type, event->aggregate_id);
        table_cell(listing->table, "%u:%llu", event->partition, (unsigned long long)event->position);
    }
    table_cell(listing->table, "%llu", (unsigned long long)event->sequence);
    table_cell(listing->table, "%s", time);
    table_cell(listing->table, "%s", event->type);
    table_cell(listing->table, "%s", event->forgotten ? "(forgotten)" : payload == NULL ? "" : payload);
    free(payload);
    json_decref(body);
}

static bool on_aggregate(void *user, const uint8_t *packed, size_t len)
{
    Cairn__V1__ReadAggregateResponse *page = cairn__v1__read_aggregate_response__unpack(NULL, len, packed);

    for (size_t i = 0; page != NULL && i < page->n_events; i++)
        list_event(user, page->events[i]);
    cairn__v1__read_aggregate_response__free_unpacked(page, NULL);
    return page != NULL;
}

static bool on_all(void *user, const uint8_t *packed, size_t len)
{
    Cairn__V1__ReadAllResponse *page = cairn__v1__read_all_response__unpack(NULL, len, packed);

    for (size_t i = 0; page != NULL && i < page->n_events; i++)
        list_event(user, page->events[i]);
    cairn__v1__read_all_response__free_unpacked(page, NULL);
    return page != NULL;
}

static int call(struct ctl *ctl, const char *method, const ProtobufCMessage *request, cairn_client_message *message,
                void *user)
{
    size_t len = protobuf_c_message_get_packed_size(request);
    uint8_t *packed = memory_take(len + 1);
    struct cairn_error error;
    int code;

    protobuf_c_message_pack(request, packed);
    code = cairn_client_call(ctl->client, NULL, method, packed, len, ctl->timeout_ms, message, user, &error);
    free(packed);
    return code == 0 ? EXIT_FINE : complain(ctl, &error);
}

/* ---- aggregates ---- */

static int read_one(struct ctl *ctl, struct listing *listing, cairn_client_message *message, bool backwards,
                    uint64_t limit)
{
    Cairn__V1__ReadAggregateRequest request = CAIRN__V1__READ_AGGREGATE_REQUEST__INIT;

    request.aggregate_id = ctl->arguments[0];
    request.limit = limit;
    if (backwards)
        request.direction = CAIRN__V1__DIRECTION__DIRECTION_BACKWARDS;
    if (ctl->stale)
        request.consistency = CAIRN__V1__CONSISTENCY__CONSISTENCY_STALE;
    return call(ctl, "/cairn.v1.EventService/ReadAggregate", &request.base, message, listing);
}

int aggregate_history(struct ctl *ctl)
{
    struct listing listing = {.ctl = ctl, .of_one = true};
    int code = read_one(ctl, &listing, on_aggregate, ctl->backwards, ctl->limit);

    if (listing.table != NULL)
        table_print(listing.table);
    return code;
}

static bool on_last(void *user, const uint8_t *packed, size_t len)
{
    Cairn__V1__ReadAggregateResponse *page = cairn__v1__read_aggregate_response__unpack(NULL, len, packed);
    struct listing *listing = user;

    if (page != NULL && page->n_events > 0 && listing->last == NULL)
        listing->last = event_json(page->events[0]);
    cairn__v1__read_aggregate_response__free_unpacked(page, NULL);
    return page != NULL;
}

int aggregate_show(struct ctl *ctl)
{
    struct listing listing = {.ctl = ctl};
    int code = read_one(ctl, &listing, on_last, true, 1);
    json_t *last = listing.last;

    if (code != EXIT_FINE || last == NULL) {
        if (code == EXIT_FINE) {
            fprintf(stderr, "cairnctl: the aggregate %s has no events\n", ctl->arguments[0]);
            code = EXIT_REFUSED;
        }
        return code;
    }
    if (ctl->json) {
        print_json(json_pack("{s:O, s:O, s:I, s:O, s:o}", "aggregate_type", json_object_get(last, "aggregate_type"),
                             "aggregate_id", json_object_get(last, "aggregate_id"), "events",
                             json_integer_value(json_object_get(last, "sequence")) + 1, "partition",
                             json_object_get(last, "partition"), "last", last));
        return EXIT_FINE;
    }
    printf("%s/%s\n", json_string_value(json_object_get(last, "aggregate_type")),
           json_string_value(json_object_get(last, "aggregate_id")));
    printf("events       %lld\n", (long long)json_integer_value(json_object_get(last, "sequence")) + 1);
    printf("partition    %lld\n", (long long)json_integer_value(json_object_get(last, "partition")));
    printf("last event   %s at %s\n", json_string_value(json_object_get(last, "type")),
           json_string_value(json_object_get(last, "time")));
    json_decref(last);
    return EXIT_FINE;
}

/* ---- the log ---- */

int event_read(struct ctl *ctl)
{
    Cairn__V1__ReadAllRequest request = CAIRN__V1__READ_ALL_REQUEST__INIT;
    Cairn__V1__EventFilter filter = CAIRN__V1__EVENT_FILTER__INIT;
    struct listing listing = {.ctl = ctl};
    char *types[1];
    char *prefixes[1];
    int code;

    if (ctl->type != NULL) {
        types[0] = (char *)ctl->type;
        filter.event_types = types;
        filter.n_event_types = 1;
    }
    if (ctl->count > 0) {
        prefixes[0] = ctl->arguments[0];
        filter.aggregate_id_prefixes = prefixes;
        filter.n_aggregate_id_prefixes = 1;
    }
    request.filter = &filter;
    request.limit = ctl->limit;
    if (ctl->backwards)
        request.direction = CAIRN__V1__DIRECTION__DIRECTION_BACKWARDS;
    if (ctl->stale)
        request.consistency = CAIRN__V1__CONSISTENCY__CONSISTENCY_STALE;
    code = call(ctl, "/cairn.v1.EventService/ReadAll", &request.base, on_all, &listing);
    if (listing.table != NULL)
        table_print(listing.table);
    return code;
}

/* ---- commands ---- */

static bool on_outcome(void *user, const uint8_t *packed, size_t len)
{
    Cairn__V1__DispatchResponse *r = cairn__v1__dispatch_response__unpack(NULL, len, packed);
    struct ctl *ctl = user;
    json_t *reply = json_null();
    bool forgotten;

    if (r == NULL)
        return false;
    forgotten = r->reply != NULL && r->reply->forgotten;
    if (r->reply != NULL && r->reply->payload_case == CAIRN__V1__REPLY__PAYLOAD_JSON)
        reply = text_json(r->reply->json);
    else if (r->reply != NULL && r->reply->payload_case == CAIRN__V1__REPLY__PAYLOAD_DATA)
        reply = data_json(&r->reply->data);
    if (ctl->json) {
        print_json(json_pack("{s:s, s:I, s:i, s:i, s:o, s:b}", "command_id", r->command_id, "first_sequence",
                             (json_int_t)r->first_sequence, "event_count", (int)r->event_count, "partition",
                             (int)r->partition, "reply", reply, "reply_forgotten", (int)forgotten));
    } else {
        char *text = json_is_null(reply) ? NULL : json_dumps(reply, JSON_COMPACT | JSON_ENCODE_ANY);
        const char *said = forgotten ? "(forgotten)" : text;

        printf("%u event%s from sequence %llu, command id %s%s%s\n", r->event_count, r->event_count == 1 ? "" : "s",
               (unsigned long long)r->first_sequence, r->command_id, said == NULL ? "" : "\n", said == NULL ? "" : said);
        free(text);
        json_decref(reply);
    }
    cairn__v1__dispatch_response__free_unpacked(r, NULL);
    return true;
}

/* The id is made here when none is given: a try at the next node must be the same command. */
int command_send(struct ctl *ctl)
{
    Cairn__V1__DispatchRequest request = CAIRN__V1__DISPATCH_REQUEST__INIT;
    Cairn__V1__Command command = CAIRN__V1__COMMAND__INIT;
    Cairn__V1__Command__MetadataEntry entries[METADATA_MAX];
    Cairn__V1__Command__MetadataEntry *list[METADATA_MAX];
    char id[40];

    snprintf(id, sizeof id, "ctl-%016llx", (unsigned long long)random_u64());
    command.command_id = ctl->id != NULL ? (char *)ctl->id : id;
    command.aggregate_type = ctl->arguments[0];
    command.aggregate_id = ctl->arguments[1];
    command.type = ctl->arguments[2];
    if (ctl->count > 3) {
        json_error_t error;
        json_t *value = json_loads(ctl->arguments[3], JSON_DECODE_ANY, &error);

        if (value == NULL)
            return usage_error("the payload isn't JSON: %s at character %d", error.text, error.position);
        json_decref(value);
        command.payload_case = CAIRN__V1__COMMAND__PAYLOAD_JSON;
        command.json = ctl->arguments[3];
    }
    if (ctl->subject != NULL)
        command.subject = (char *)ctl->subject;
    for (size_t i = 0; i < ctl->metadata_count; i++) {
        char *equals = strchr(ctl->metadata[i], '=');

        if (equals == NULL)
            return usage_error("`%s` is no KEY=VALUE", ctl->metadata[i]);
        *equals = '\0';
        cairn__v1__command__metadata_entry__init(&entries[i]);
        entries[i].key = (char *)ctl->metadata[i];
        entries[i].value = equals + 1;
        list[i] = &entries[i];
    }
    command.metadata = list;
    command.n_metadata = ctl->metadata_count;
    if (ctl->has_expect) {
        command.expectation_case = CAIRN__V1__COMMAND__EXPECTATION_EXPECTED_SEQUENCE;
        command.expected_sequence = ctl->expect;
    }
    request.command = &command;
    return call(ctl, "/cairn.v1.CommandService/Dispatch", &request.base, on_outcome, ctl);
}

/*
 * An aircraft as a Cairn module: what happens to it must be possible. It can't depart while in
 * the air, arrive without having departed, or go back in time. Each accepted command becomes one
 * event with the command's own payload: {"flight": "UA1545", "at": "2013-01-01T10:15:00Z", ...}.
 *
 * clients/python/examples/aircraft.py decides the same.
 */
#include <cairn/module.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FLIGHT_BYTES = 31, MOMENT_BYTES = 20 };

struct aircraft {
    bool in_the_air;
    char flight[FLIGHT_BYTES + 1];    /* the one it flies */
    char last_at[MOMENT_BYTES + 1];   /* latest accepted moment; sorts as text */
    unsigned long flights;            /* arrived */
};

struct happening {
    char flight[FLIGHT_BYTES + 1];
    char at[MOMENT_BYTES + 1];
};

static void *create(struct cairn_bytes aggregate_id)
{
    (void)aggregate_id;
    return calloc(1, sizeof(struct aircraft));
}

static bool is(struct cairn_bytes name, const char *text)
{
    return name.len == strlen(text) && memcmp(name.data, text, name.len) == 0;
}

static bool take_text(json_t *object, const char *key, char *out, size_t room)
{
    const char *text = json_string_value(json_object_get(object, key));

    if (text == NULL || text[0] == '\0' || strlen(text) >= room)
        return false;
    strcpy(out, text);
    return true;
}

static bool parse(struct cairn_payload payload, struct happening *out)
{
    json_t *object = payload.kind == CAIRN_PAYLOAD_JSON
                         ? json_loadb((const char *)payload.content.data, payload.content.len, 0,
                                      NULL)
                         : NULL;
    bool sound = json_is_object(object) &&
                 take_text(object, "flight", out->flight, sizeof out->flight) &&
                 take_text(object, "at", out->at, sizeof out->at) &&
                 strlen(out->at) == MOMENT_BYTES;

    json_decref(object);
    return sound;
}

static void decide(const void *state, const struct cairn_command *command,
                   struct cairn_decision *decision)
{
    const struct aircraft *a = state;
    struct happening h;
    char text[160];

    if (!parse(command->payload, &h)) {
        decision->reject(decision, "INVALID_COMMAND",
                         "the payload must be JSON with `flight` and `at` (YYYY-MM-DDThh:mm:ssZ)");
        return;
    }
    if (strcmp(h.at, a->last_at) < 0) {
        snprintf(text, sizeof text, "the aircraft has been at %s already", a->last_at);
        decision->reject(decision, "BACK_IN_TIME", text);
        return;
    }
    if (is(command->type, "Schedule")) {
        decision->emit(decision, "FlightScheduled", command->payload);
    } else if (is(command->type, "Depart")) {
        if (a->in_the_air) {
            snprintf(text, sizeof text, "the aircraft is in the air with flight %s", a->flight);
            decision->reject(decision, "ALREADY_IN_THE_AIR", text);
            return;
        }
        decision->emit(decision, "FlightDeparted", command->payload);
    } else if (is(command->type, "Arrive")) {
        int len;

        if (!a->in_the_air || strcmp(a->flight, h.flight) != 0) {
            snprintf(text, sizeof text, "flight %s has not departed", h.flight);
            decision->reject(decision, "NOT_DEPARTED", text);
            return;
        }
        decision->emit(decision, "FlightArrived", command->payload);
        len = snprintf(text, sizeof text, "{\"flights\":%lu}", a->flights + 1);
        decision->reply(decision, "Flights",
                        (struct cairn_payload){CAIRN_PAYLOAD_JSON,
                                               {(const uint8_t *)text, (size_t)len}});
    } else {
        if (a->in_the_air && strcmp(a->flight, h.flight) == 0) {
            decision->reject(decision, "ALREADY_IN_THE_AIR",
                             "a flight in the air can't be cancelled");
            return;
        }
        decision->emit(decision, "FlightCancelled", command->payload);
    }
}

static int evolve(void *state, const struct cairn_event *event)
{
    struct aircraft *a = state;
    struct happening h;

    if (!parse(event->payload, &h))
        return -1;
    strcpy(a->last_at, h.at);
    if (is(event->type, "FlightDeparted")) {
        a->in_the_air = true;
        strcpy(a->flight, h.flight);
    } else if (is(event->type, "FlightArrived")) {
        a->in_the_air = false;
        a->flights++;
    } else if (!is(event->type, "FlightScheduled") && !is(event->type, "FlightCancelled")) {
        return -1;
    }
    return 0;
}

static size_t size(const void *state)
{
    (void)state;
    return sizeof(struct aircraft);
}

/* The same text as the Python worker's, so that either goes on from the other's. */
static size_t encode(const void *state, uint8_t *out, size_t room)
{
    const struct aircraft *a = state;
    json_t *object = json_pack("{s:b, s:s, s:s, s:I}", "in_the_air", a->in_the_air, "flight",
                               a->flight, "last_at", a->last_at, "flights",
                               (json_int_t)a->flights);
    size_t len = object == NULL ? 0 : json_dumpb(object, (char *)out, room, JSON_COMPACT);

    json_decref(object);
    return len;
}

static void *decode(struct cairn_bytes aggregate_id, struct cairn_bytes snapshot)
{
    json_t *object = json_loadb((const char *)snapshot.data, snapshot.len, 0, NULL);
    struct aircraft *a = create(aggregate_id);
    int in_the_air;
    json_int_t flights;
    const char *flight;
    const char *last_at;
    bool sound = a != NULL && object != NULL &&
                 json_unpack(object, "{s:b, s:s, s:s, s:I}", "in_the_air", &in_the_air, "flight",
                             &flight, "last_at", &last_at, "flights", &flights) == 0 &&
                 strlen(flight) < sizeof a->flight && strlen(last_at) < sizeof a->last_at;

    if (sound) {
        a->in_the_air = in_the_air != 0;
        a->flights = (unsigned long)flights;
        strcpy(a->flight, flight);
        strcpy(a->last_at, last_at);
    } else {
        free(a);
    }
    json_decref(object);
    return sound ? a : NULL;
}

static const struct cairn_aggregate_type aircraft = {
    .name = "aircraft",
    .commands = (const char *const[]){"Schedule", "Depart", "Arrive", "Cancel", NULL},
    .create = create,
    .destroy = free,
    .decide = decide,
    .evolve = evolve,
    .size = size,
    .encode = encode,
    .decode = decode,
};

const struct cairn_module *cairn_module(void)
{
    static const struct cairn_aggregate_type *const types[] = {&aircraft, NULL};
    static const struct cairn_module module = {.version = CAIRN_MODULE_VERSION, .name = "aircraft", .types = types};

    return &module;
}

/*
 * Calls a Cairn cluster from C: one call at a time, tried at one endpoint after the other while the answer is
 * "unavailable" and nothing came yet. Messages go in and out packed; the headers of cairn/v1 made by protobuf-c pack them.
 *
 * Thread rule: one thread at a time.
 */
#ifndef CAIRN_CLIENT_H
#define CAIRN_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cairn_client;

/* Why a call failed. */
struct cairn_error {
    int code;         /* of gRPC; 0 when it didn't fail */
    char reason[64];  /* of google.rpc.ErrorInfo, such as NOT_A_REPLICA; empty when there is none */
    char message[512];
};

/* Paths of PEM files, and who calls: a certificate with its key, or a bearer token. NULL for what there is not. */
struct cairn_client_tls {
    const char *ca;
    const char *certificate;
    const char *key;
    const char *token;
};

/* `endpoints` is HOST:PORT, comma-separated. NULL when none of them is one. Nothing is dialled yet. `tls` NULL: none. */
struct cairn_client *cairn_client_new(const char *endpoints, const struct cairn_client_tls *tls);
void cairn_client_free(struct cairn_client *client);

/* What came: called for each message, from the thread that calls. False ends the call, as done. */
typedef bool cairn_client_message(void *user, const uint8_t *packed, size_t len);

/*
 * From now on what names an aggregate goes straight to its owner, which the cluster pushes with every change; and
 * to any endpoint while the owner isn't known or can't be reached.
 */
void cairn_client_route(struct cairn_client *client);
/* The address of the aggregate's owner, as the cluster last said. False while it isn't known. */
bool cairn_client_owner(struct cairn_client *client, const char *aggregate_id, char *out, size_t room);
/* Who owns what is known here: before that calls go to any endpoint. */
bool cairn_client_is_routing(struct cairn_client *client);

/*
 * One call of "/package.Service/Method": unary, or one whose answers stream. Waits for its end, at most
 * timeout_ms (0: for ever, for a stream that goes on). 0, or the gRPC code, then *error says why. `aggregate_id`
 * is the one that it is about; NULL for none.
 */
int cairn_client_call(struct cairn_client *client, const char *aggregate_id, const char *method,
                      const uint8_t *packed, size_t len, uint32_t timeout_ms, cairn_client_message *message,
                      void *user, struct cairn_error *error);

/* The endpoint that answered last. */
const char *cairn_client_endpoint(const struct cairn_client *client);

#endif

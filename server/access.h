/* Who may come in: see access.c. */
#ifndef CAIRN_SERVER_ACCESS_H
#define CAIRN_SERVER_ACCESS_H

#include "node.h"
#include "security/security.h"

/* What a method wants of who calls it; for some the types are asked for in its handler. */
enum access_need {
    ACCESS_OPEN,  /* nothing: health */
    ACCESS_KNOWN, /* an identity, whatever it may */
    ACCESS_NODE,
    ACCESS_OPERATE,
    ACCESS_DISPATCH,
    ACCESS_WORK,
    ACCESS_READ,
};

/* Nothing is made when the settings want no TLS. Files that are no good are a fault that names them. */
MUST_USE enum status access_new(struct node *node, struct fault *fault);
void access_free(struct node *node); /* after the loop is gone */
void access_tick(struct node *node); /* once a second; control thread */

/* For the server: see rpc_server_settings. The caller is a struct principal. */
bool access_admit(void *context, const struct rpc_method *method, const struct rpc_shown *shown, void **caller,
                  struct rpc_refusal *refusal);
void access_forget(void *caller, bool stream);
const struct rpc_tls *access_server_tls(const struct node *node);
/* For channels to peers; NULL without TLS. */
const struct rpc_tls *access_peer_tls(const struct node *node);

/* A command in a stream counts as a call does; EXHAUSTED when it isn't to be taken. Then *counted is to be given to
 * access_command_over(). */
MUST_USE enum status access_command_begins(struct node *node, void *caller, void **counted, struct fault *fault);
void access_command_over(void *counted);
/* `caller` is that of a call or stream; NULL without TLS, and then may everything. */
MUST_USE enum status access_command(struct node *node, void *caller, const struct command *command,
                                    struct fault *fault);
MUST_USE enum status access_work(struct node *node, void *caller, struct bytes aggregate_type, struct fault *fault);
/* NULL filter: events of all types. `what` and `aggregate_id` are for the audit log. */
MUST_USE enum status access_read(struct node *node, void *caller, const char *what, struct bytes aggregate_id,
                                 const struct event_filter *filter, struct fault *fault);
/* Is it still a node, and of that name? No name: whatever it is. */
MUST_USE enum status access_peer(struct node *node, void *caller, struct bytes name, struct fault *fault);

/* Until the first of this node's certificates ends; false without TLS. */
bool access_certificate_days(const struct node *node, double *days);

#endif

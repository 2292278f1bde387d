/* The audit log: see audit.c. */
#ifndef CAIRN_SERVER_AUDIT_H
#define CAIRN_SERVER_AUDIT_H

#include "node.h"

/* Everything is copied; what is empty is left out. */
struct audit_entry {
    const char *who;  /* the identity; empty without TLS */
    const char *from; /* the address */
    const char *what; /* the method */
    struct bytes aggregate_type;
    struct bytes aggregate_id;
    struct bytes type;
    struct bytes command_id;
    struct bytes target; /* of an order */
    struct bytes outcome; /* "ok", or the reason of the fault or rejection */
};

/* Nothing happens when there is no audit log. Any thread. */
void audit(struct node *node, const struct audit_entry *entry);
/* With the fault's reason as outcome; NULL: ok. */
void audit_fault(struct node *node, struct audit_entry entry, const struct fault *fault);

MUST_USE enum status audit_new(struct node *node, struct fault *fault);
void audit_free(struct node *node); /* after everything that may write */

#endif

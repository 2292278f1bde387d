/* A subscription at one node of the world; see pipe.c. Consumers and group readers use it. */
#ifndef CAIRN_SIM_PIPE_H
#define CAIRN_SIM_PIPE_H

#include "event/event.h"
#include "sim.h"

struct pipe;

/* NULL when it can't be now. */
struct pipe *pipe_open(struct node *n, const struct subscription_settings *settings);
void pipe_close(struct pipe *pipe); /* NULL is fine */
bool pipe_works(const struct pipe *pipe); /* its node lives on */
void pipe_credit(struct pipe *pipe, uint64_t events);
/* Its next message, if there is one now; false when it is broken. */
bool pipe_next(struct pipe *pipe, struct buffer *message);
bool node_answers(const struct node *n, uint32_t life);

#endif

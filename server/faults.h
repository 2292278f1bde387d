/* The one place that turns a status into a gRPC code. */
#ifndef CAIRN_SERVER_FAULTS_H
#define CAIRN_SERVER_FAULTS_H

#include "base/base.h"
#include "rpc/rpc.h"
#include "wire/wire.h"

enum {
    CODE_OK = 0,
    CODE_CANCELLED = 1,
    CODE_INVALID_ARGUMENT = 3,
    CODE_DEADLINE_EXCEEDED = 4,
    CODE_NOT_FOUND = 5,
    CODE_PERMISSION_DENIED = 7,
    CODE_RESOURCE_EXHAUSTED = 8,
    CODE_FAILED_PRECONDITION = 9,
    CODE_ABORTED = 10,
    CODE_UNIMPLEMENTED = 12,
    CODE_INTERNAL = 13,
    CODE_UNAVAILABLE = 14,
    CODE_DATA_LOSS = 15,
    CODE_UNAUTHENTICATED = 16,
};

int fault_code(const struct fault *fault);
void fault_fail_call(struct rpc_call *call, const struct fault *fault);
void fault_finish_stream(struct rpc_stream *stream, const struct fault *fault);
/* What a rejection looks like to the caller. */
void fault_from_rejection(struct fault *fault, const struct outcome *outcome);

#endif

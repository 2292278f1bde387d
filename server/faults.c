/* Statuses to gRPC codes, faults to trailers. */
#include "faults.h"

int fault_code(const struct fault *fault)
{
    static const int codes[] = {
        [STATUS_OK] = CODE_OK,
        [STATUS_INVALID] = CODE_INVALID_ARGUMENT,
        [STATUS_NOT_FOUND] = CODE_NOT_FOUND,
        [STATUS_NO_HANDLER] = CODE_UNIMPLEMENTED,
        [STATUS_REJECTED] = CODE_FAILED_PRECONDITION,
        [STATUS_CONFLICT] = CODE_ABORTED,
        [STATUS_EXHAUSTED] = CODE_RESOURCE_EXHAUSTED,
        [STATUS_UNAVAILABLE] = CODE_UNAVAILABLE,
        [STATUS_DEADLINE] = CODE_DEADLINE_EXCEEDED,
        [STATUS_NOT_OWNER] = CODE_UNAVAILABLE,
        [STATUS_DAMAGED] = CODE_DATA_LOSS,
        [STATUS_FAILED] = CODE_INTERNAL,
        [STATUS_DENIED] = CODE_PERMISSION_DENIED,
        [STATUS_UNAUTHENTICATED] = CODE_UNAUTHENTICATED,
        [STATUS_PRECONDITION] = CODE_FAILED_PRECONDITION,
    };

    return (size_t)fault->status < COUNT_OF(codes) ? codes[fault->status] : CODE_INTERNAL;
}

void fault_fail_call(struct rpc_call *call, const struct fault *fault)
{
    struct buffer details = {0};

    wire_fault_pack(&details, fault, fault_code(fault));
    rpc_call_fail(call, fault_code(fault), fault->message, buffer_bytes(&details));
    buffer_release(&details);
}

void fault_finish_stream(struct rpc_stream *stream, const struct fault *fault)
{
    struct buffer details = {0};

    wire_fault_pack(&details, fault, fault_code(fault));
    rpc_stream_finish(stream, fault_code(fault), fault->message, buffer_bytes(&details));
    buffer_release(&details);
}

void fault_from_rejection(struct fault *fault, const struct outcome *outcome)
{
    const struct rejection *rejection = &outcome->rejection;

    (void)fault_set(fault, outcome->conflict ? STATUS_CONFLICT : STATUS_REJECTED, "", "%.*s", (int)rejection->message.len,
                    (const char *)rejection->message.data);
    snprintf(fault->reason, sizeof fault->reason, "%.*s", (int)rejection->reason.len,
             (const char *)rejection->reason.data);
}

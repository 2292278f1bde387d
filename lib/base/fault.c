/* Names of statuses, and how a fault is told. */
#include "base.h"

const char *status_name(enum status status)
{
    static const char *const names[] = {
        [STATUS_OK] = "ok",
        [STATUS_INVALID] = "invalid",
        [STATUS_NOT_FOUND] = "not found",
        [STATUS_NO_HANDLER] = "no handler",
        [STATUS_REJECTED] = "rejected",
        [STATUS_CONFLICT] = "conflict",
        [STATUS_EXHAUSTED] = "exhausted",
        [STATUS_UNAVAILABLE] = "unavailable",
        [STATUS_DEADLINE] = "deadline",
        [STATUS_NOT_OWNER] = "not owner",
        [STATUS_DAMAGED] = "damaged",
        [STATUS_FAILED] = "failed",
        [STATUS_DENIED] = "denied",
        [STATUS_UNAUTHENTICATED] = "unauthenticated",
        [STATUS_PRECONDITION] = "precondition",
    };

    return (size_t)status < COUNT_OF(names) ? names[status] : "unknown";
}

enum status fault_set(struct fault *fault, enum status status, const char *reason,
                      const char *format, ...)
{
    va_list args;

    if (fault == NULL)
        return status;
    fault->status = status;
    fault->retry_ms = 0;
    snprintf(fault->reason, sizeof fault->reason, "%s", reason);
    va_start(args, format);
    vsnprintf(fault->message, sizeof fault->message, format, args);
    va_end(args);
    return status;
}

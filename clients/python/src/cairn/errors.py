"""What can go wrong, by what a caller would do about it."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2


class CairnError(Exception):
    """`reason` is for programs and never changes; `code` is the gRPC status."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str, retry_after: float = 0.0):
        super().__init__(f"{reason or code.name}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class Rejected(CairnError):
    """The aggregate refused by a business rule. Nothing happened."""


class InvalidCommand(CairnError):
    """The command itself is wrong. Nothing happened."""


class Conflict(CairnError):
    """The aggregate doesn't have the expected number of events. Nothing happened."""


class NotFound(CairnError):
    """The aggregate has no events."""


class Exhausted(CairnError):
    """The cluster is at a limit; nothing happened, try later."""


class Denied(CairnError):
    """Who calls isn't known, or lacks the role. Nothing happened."""


class Unavailable(CairnError):
    """The outcome is unknown. Ask again with the same command id."""


_BY_CODE = {
    grpc.StatusCode.FAILED_PRECONDITION: Rejected,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidCommand,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.PERMISSION_DENIED: Denied,
    grpc.StatusCode.UNAUTHENTICATED: Denied,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def from_status(status: status_pb2.Status) -> CairnError:
    """An error from a google.rpc.Status, as streams carry it."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    reason, retry_after = "", 0.0
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if _unpack(detail, info):
            reason = info.reason
        elif _unpack(detail, retry):
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return _BY_CODE.get(code, CairnError)(code, reason, status.message, retry_after)


def _unpack(detail: any_pb2.Any, into) -> bool:
    return detail.Is(into.DESCRIPTOR) and detail.Unpack(into)


def from_rpc(error: grpc.RpcError) -> CairnError:
    """An error from a failed call, with the details of its trailers."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return from_status(status_pb2.Status.FromString(value))
    code = error.code()
    return _BY_CODE.get(code, CairnError)(code, "", error.details() or "")


def is_retryable(error: CairnError) -> bool:
    """True when the same command id may be sent again."""
    return isinstance(error, (Unavailable, Exhausted))

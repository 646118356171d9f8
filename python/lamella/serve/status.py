"""How errors reach a client: gRPC's status codes, as containerd gives them (its errgrpc package has the same table).

A LamellaError is told as it is, with its hint. Anything else is a defect: the client learns that much, and the log the rest.
"""

from __future__ import annotations

import enum

from lamella import errors
from lamella.logs import Log

_log = Log("lamella.serve")


class Code(enum.IntEnum):
    """Status codes (grpc/doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Refused(Exception):
    """A call ends with this status."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class OutOfRange(errors.InvalidArgument):
    """An offset beyond the end: a code of its own, for which containerd's clients look."""


_CODES: tuple[tuple[type[errors.LamellaError], Code], ...] = (
    (OutOfRange, Code.OUT_OF_RANGE),
    (errors.NotFound, Code.NOT_FOUND),
    (errors.AlreadyExists, Code.ALREADY_EXISTS),
    (errors.InvalidArgument, Code.INVALID_ARGUMENT),
    (errors.FailedPrecondition, Code.FAILED_PRECONDITION),
    (errors.Unavailable, Code.UNAVAILABLE),
    (errors.Unauthenticated, Code.UNAUTHENTICATED),
    (errors.PermissionDenied, Code.PERMISSION_DENIED),
    (errors.DataLoss, Code.DATA_LOSS),
    (errors.Cancelled, Code.CANCELLED),
    (errors.DeadlineExceeded, Code.DEADLINE_EXCEEDED),
    (errors.ResourceExhausted, Code.RESOURCE_EXHAUSTED),
    (errors.Unsupported, Code.UNIMPLEMENTED),
    (errors.Aborted, Code.ABORTED),
    (errors.Internal, Code.INTERNAL),
    (errors.LamellaError, Code.UNKNOWN),
)
"""The first that fits holds."""


def unimplemented(path: str) -> Refused:
    """Give the status for an RPC that is not there, which it names."""
    service, _, method = path.removeprefix("/").rpartition("/")
    return Refused(Code.UNIMPLEMENTED, f"unknown method {method} for service {service}")


def refusal(error: Exception, method: str) -> Refused:
    """Give the status for what a service raised in ``method``; a defect is logged with its traceback."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, errors.LamellaError):
        code = next(code for kind, code in _CODES if isinstance(error, kind))
        return Refused(code, f"{error.message}. {error.hint}" if error.hint else error.message)
    import traceback

    _log.warning(
        "%(method)s failed: %(traceback)s",
        method=method,
        traceback="".join(traceback.format_exception(error)),
    )
    return Refused(Code.INTERNAL, f"{method} failed: internal error, see the log of lamella serve")

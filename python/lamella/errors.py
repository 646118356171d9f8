"""Every error that lamella raises, in one hierarchy.

The classes carry gRPC's status names, as containerd's errdefs do, so that a client of either finds the same word
for the same failure. Where Python has a builtin for the case the class is also that builtin: ``except KeyError``
catches NotFound. The Rust core raises the same classes; ``tests/unit/test_errors.py`` holds the two lists together.

An error names the thing, what was tried, and, in ``hint``, what the reader can do about it. Secrets never appear in one.
"""

from __future__ import annotations

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Cancelled",
    "CommandFailed",
    "CommandNotExecutable",
    "CommandNotFound",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "LamellaError",
    "NetworkFailed",
    "NotFound",
    "PermissionDenied",
    "PolicyRefused",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
]


class LamellaError(Exception):
    """The root of the hierarchy.

    ``hint`` is one sentence that says what the reader can do, or None.
    """

    hint: str | None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Give the message alone: KeyError would show its repr."""
        return self.message

    @property
    def kind(self) -> str:
        """Give the name of the status, such as ``NotFound``."""
        return type(self).__name__


class NotFound(LamellaError, KeyError):
    """The named image, blob, snapshot, container or lease is not there."""


class AlreadyExists(LamellaError, FileExistsError):
    """The name is taken."""


class InvalidArgument(LamellaError, ValueError):
    """What was passed, or what an image contains, breaks a rule; another try gives the same answer."""


class FailedPrecondition(LamellaError):
    """The thing is not in a state that allows the operation, such as removing a snapshot that has children."""


class Unavailable(LamellaError, ConnectionError):
    """A resource is busy or a server does not answer; another try may succeed."""


class Unauthenticated(LamellaError, PermissionError):
    """The registry wants credentials, or refused those it was given."""


class PermissionDenied(LamellaError, PermissionError):
    """The kernel, the file system or the registry refused access."""


class PolicyRefused(PermissionDenied):
    """A policy does not let the image in (:mod:`lamella.policy`); nothing of it was kept."""


class DataLoss(LamellaError):
    """Bytes are damaged: a digest does not match, an archive ends early."""


class Cancelled(LamellaError):
    """The work was stopped by its caller or by the failure of a sibling."""


class DeadlineExceeded(LamellaError, TimeoutError):
    """The time-out passed."""


class ResourceExhausted(LamellaError, OSError):
    """The disk is full, or a cap on size, count, depth or ratio was exceeded."""


class Unsupported(LamellaError, NotImplementedError):
    """A feature, media type or spec field that lamella does not handle; it is named, never dropped."""


class Aborted(LamellaError):
    """The operation lost a race with another one; start again from the top."""


class Internal(LamellaError, RuntimeError):
    """A defect of lamella; please report it."""


class CommandFailed(LamellaError):
    """A command that was run with ``check=True`` ended with another status than 0.

    ``exit_code``, ``stdout`` and ``stderr`` are what it left.
    """

    def __init__(
        self, message: str, *, exit_code: int, stdout: bytes, stderr: bytes, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr


class NetworkFailed(LamellaError):
    """A program that makes networks, a CNI plugin or pasta, failed; what it had made was taken away again.

    ``plugin`` is its name; ``code`` and ``details`` are what a plugin says of itself (CNI spec, "Error"): 0 and "" for none.
    """

    def __init__(
        self, message: str, *, plugin: str, code: int = 0, details: str = "", hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.plugin = plugin
        self.code = code
        self.details = details


class CommandNotFound(NotFound):
    """The program is not in the image (exit status 127, as a shell gives it)."""

    exit_code = 127


class CommandNotExecutable(PermissionDenied):
    """The program is there and cannot be run (exit status 126, as a shell gives it)."""

    exit_code = 126

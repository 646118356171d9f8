"""What one request carries besides its message: namespace, lease, deadline, whether its client still waits.

Headers are those of containerd: ``containerd-namespace`` and ``containerd-lease``. Nothing here knows of the transport.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from lamella.errors import Internal
from lamella.transfer.cancellation import Cancellation

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from lamella._core import Appender
    from lamella.client import Client
    from lamella.ingest import Ingest

NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"

Request = TypeVar("Request")
Response = TypeVar("Response")
Conversation = Generator[list[Response], Request | None, None]
"""What a bidirectional RPC returns: a generator that is sent one request after the other and yields the responses to each::

    def Write(self, call: Call) -> Conversation[WriteContentResponse, WriteContentRequest]:
        responses: list[WriteContentResponse] = []  # those before the first request
        try:
            while (request := (yield responses)) is not None:
                responses = [self._answer(request)]
        finally:
            ...  # also where the client went away (GeneratorExit)

It is sent None once the client has said that it sends nothing more. Returning ends the stream; a generator that yields on after
None keeps it open, for :meth:`Call.send` from elsewhere, until :meth:`Call.finish` or the client ends it. An error that it raises
is the stream's status. It runs on one thread at a time, on whichever, and holds none while it waits.
"""


class FileRange(NamedTuple):
    """Bytes of a file, which an RPC that streams responses may yield in the place of them; the server closes the file.

    They are sent as messages whose field 1 is the offset of the piece in the file and whose field 2 are its bytes, as in
    ReadContentResponse; ``size`` bytes from ``offset``. DataLoss where the file is shorter.
    """

    descriptor: int
    offset: int
    size: int


class Call:
    """One request under way. Safe to use from several threads."""

    def __init__(
        self,
        headers: Mapping[str, str],
        client_of: Callable[[str | None], Client],
        *,
        deadline: float | None = None,
        send: Callable[[Message], None] | None = None,
        finish: Callable[[], None] | None = None,
        expect: Callable[[bytes, int, int, Appender], None] | None = None,
    ) -> None:
        self.headers = headers
        self.deadline = deadline
        """When the client gives up, by time.monotonic(); None: never."""
        self.cancellation = Cancellation()
        """Cancelled when the client has gone or the deadline has passed. It is the one of the thread that handles the call
        (``lamella.transfer.cancellation.current``), so that transfers end with it."""
        self._client_of = client_of
        self._send = send
        self._finish = finish
        self._expect = expect

    @property
    def namespace(self) -> str:
        """The name of the namespace. Errors as for :attr:`client`."""
        return self.client.config.namespace

    @property
    def lease(self) -> str | None:
        """The lease that what is made belongs to; None: no lease."""
        return self.headers.get(LEASE_HEADER) or None

    @property
    def client(self) -> Client:
        """The store, seen from the namespace. FailedPrecondition without one, InvalidArgument for a malformed one."""
        return self._client_of(self.headers.get(NAMESPACE_HEADER) or None)

    def remaining(self) -> float | None:
        """Give the seconds until the deadline, 0.0 after it; None: there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def on_cancel(self, action: Callable[[], None]) -> None:
        """Have this called, once, when the client goes or the deadline passes; at once after that."""
        self.cancellation.add(action)

    def check(self) -> None:
        """Raise Cancelled if nobody waits for the answer any more."""
        self.cancellation.check()

    def send(self, response: Any) -> None:
        """Send a response of a bidirectional RPC that is not the answer to a request; from any thread.

        It waits while the client reads slowly. Cancelled once the stream has ended.
        """
        if self._send is None:
            raise Internal("this RPC has no stream to send on")
        self._send(response)

    def expect(self, request: Message, field: str, ingest: Ingest) -> None:
        """Have the bytes of the next request appended to an ingest as they come, without their being in memory as a whole.

        It has to be this request with ``field``, its last one, besides, which the request that the generator is then sent lacks;
        ``ingest.poured()`` tells how many there were. What is small, or another request, comes as ever. Holds for one request.
        """
        if self._expect is None:
            raise Internal("this RPC has no stream to receive from")
        number = request.DESCRIPTOR.fields_by_name[field].number
        self._expect(request.SerializeToString(), number, ingest.room, ingest.appender)

    def finish(self) -> None:
        """End a bidirectional RPC, from any thread, after what was sent. Harmless twice."""
        if self._finish is None:
            raise Internal("this RPC has no stream to end")
        self._finish()

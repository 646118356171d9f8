"""``containerd.services.streaming.v1.Streaming``: streams that the client opens, and that a transfer then refers to by their ids.

A client opens a stream, names it by its first message and waits for the answer. The transfer that it asks for next takes the
stream, once, and ends it. What goes over it is the transfer's matter: progress, questions for credentials and their answers, or
bytes. Bytes are sent as far as the receiver has opened a window for them, so that what waits here is bounded; a client that sends
more loses its stream.

Streams are connections: nothing of them outlives the server.
"""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from lamella.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from lamella.serve.api import streaming_pb2, transfer_types_pb2
from lamella.serve.call import Call, Conversation
from lamella.serve.messages import any_as, any_of
from lamella.serve.server import Server
from lamella.serve.service import Service

WINDOW = 1024 * 1024
"""Bytes that a client may have under way to us. containerd's 64 KiB are waited for at every second piece."""
PIECE = 32 * 1024
"""Bytes of a message of data, as containerd sends them."""
LAST = 64 * 1024
"""Bytes of the last message: below these a client of containerd's opens its window again, so that it does after the last, too."""
TAKEN_SECONDS = 5.0
"""How long a client may take over the last bytes before the transfer ends without its word that it has them."""
WAITING_MAX = 4 * WINDOW
"""Bytes of messages that wait to be received from one stream."""
ID_MAX = 1024
STREAMS_MAX = 10_000
UNCLAIMED_SECONDS = 600.0
"""How long a stream is kept that no transfer takes."""


class OpenStream:
    """One stream, from its opening to its end. Safe to use from several threads."""

    def __init__(self, call: Call, free: Callable[[OpenStream], None]) -> None:
        """``free`` is called, at least once, before the client can hear of the end: its id is free for another one then."""
        self.opened = time.monotonic()
        self._call = call
        self._free = free
        self._changed = threading.Condition()
        self._waiting: deque[Any] = deque()
        self._bytes = 0
        self._said_all = False
        self._over: Exception | None = None
        self._gone = threading.Event()

    # For the transfer

    def send(self, message: Message) -> None:
        """Send a message. Cancelled once the client has gone; it waits while the client reads slowly."""
        self._call.send(any_of(message))

    def receive(self, timeout: float | None = None) -> Any | None:
        """Wait for the client's next message; None when it has said everything.

        Errors: DeadlineExceeded after ``timeout`` seconds, Unavailable when the client broke off, Cancelled after :meth:`close`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting or self._said_all or self._over, timeout):
                raise DeadlineExceeded(f"the client's stream was silent for {timeout:g} seconds")
            if self._waiting:
                message = self._waiting.popleft()
                self._bytes -= len(message.value)
                return message
            if self._over is not None:
                raise self._over
            return None

    def close(self, *, wait: float = 0.0) -> None:
        """End it; wait at most so many seconds until what was sent is on its way. Harmless twice."""
        self._end(Cancelled("the stream was closed"))
        self._free(self)
        self._call.finish()
        if wait:
            self._gone.wait(wait)

    # For the RPC

    def put(self, message: Any) -> None:
        """Take a message of the client's. ResourceExhausted for one too many."""
        with self._changed:
            if self._waiting and self._bytes + len(message.value) > WAITING_MAX:
                raise ResourceExhausted(f"more than {WAITING_MAX} bytes wait in the stream")
            self._waiting.append(message)
            self._bytes += len(message.value)
            self._changed.notify_all()

    def said_all(self) -> None:
        """Note that the client sends nothing more."""
        with self._changed:
            self._said_all = True
            self._changed.notify_all()

    def gone(self) -> None:
        """Note that there is no client any more. Harmless twice, and after the end."""
        self._free(self)
        self._end(Unavailable("the client's stream broke off"))
        self._gone.set()

    def _end(self, why: Exception) -> None:
        with self._changed:
            self._over = self._over or why
            self._changed.notify_all()


class Streaming(Service):
    """Streams that other calls refer to by an id."""

    descriptor = streaming_pb2.DESCRIPTOR.services_by_name["Streaming"]

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._lock = threading.Lock()
        self._unclaimed: dict[tuple[str, str], OpenStream] = {}
        self._open: dict[tuple[str, str], OpenStream] = {}

    def Stream(self, call: Call) -> Conversation[Any, Any]:
        """Open a stream under the id that the first message gives; the answer, an Empty, says that it can be referred to.

        InvalidArgument for another first message, AlreadyExists for an id that is open in the namespace, ResourceExhausted for
        one stream too many, and for more bytes than its receiver has asked for.
        """
        message = yield []
        if message is None:
            return
        opened = any_as(message, streaming_pb2.StreamInit)
        if opened is None or not 0 < len(opened.id) <= ID_MAX:
            raise InvalidArgument("the first message of a stream has to give its id")
        key = (call.client.config.namespace, opened.id)
        stream = OpenStream(call, lambda each: self._free(key, each))
        self._add(key, stream)
        try:
            message = yield [any_of(Empty())]
            while message is not None:
                stream.put(message)
                message = yield []
            call.check()  # a client that has gone has not said everything
            stream.said_all()
            while True:  # for what is sent, until that is all
                yield []
        finally:
            stream.gone()

    def claim(self, call: Call, id: str) -> OpenStream:
        """Give the stream of that id in a call's namespace, which nobody else gets then. NotFound.

        It ends when that call's client goes.
        """
        key = (call.client.config.namespace, id)
        with self._lock:
            stream = self._unclaimed.pop(key, None)
        if stream is None:
            raise NotFound(f"no stream {id[:200]!r} is open")
        call.on_cancel(stream.close)
        return stream

    def _add(self, key: tuple[str, str], stream: OpenStream) -> None:
        oldest = time.monotonic() - UNCLAIMED_SECONDS
        with self._lock:
            forgotten = [other for other in self._unclaimed.values() if other.opened < oldest]
            if key in self._open:
                raise AlreadyExists(f"the stream {key[1][:200]!r} is open already")
            if len(self._open) >= STREAMS_MAX:
                raise ResourceExhausted(f"{STREAMS_MAX} streams are open")
            self._open[key] = self._unclaimed[key] = stream
        for other in forgotten:
            other.close()

    def _free(self, key: tuple[str, str], stream: OpenStream) -> None:
        """Let the id of a stream be another's, unless it is already."""
        with self._lock:
            for streams in (self._open, self._unclaimed):
                if streams.get(key) is stream:
                    del streams[key]


class StreamReader(io.RawIOBase):
    """The bytes that a client sends over a stream, as a file that is read once.

    Errors of reading: as :meth:`OpenStream.receive`; InvalidArgument for messages that are no data.
    """

    def __init__(self, stream: OpenStream) -> None:
        super().__init__()
        self._stream = stream
        self._rest = memoryview(b"")
        self._window = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Fill some of the buffer and give the count of bytes, 0 at the end."""
        while not self._rest:
            if self._window <= WINDOW // 2:
                self._stream.send(transfer_types_pb2.WindowUpdate(update=WINDOW - self._window))
                self._window = WINDOW
            message = self._stream.receive()
            if message is None:
                return 0
            data = any_as(message, transfer_types_pb2.Data)
            if data is None:
                raise InvalidArgument(f"{message.type_url[:200]!r} came where data was expected")
            self._window -= len(data.data)
            self._rest = memoryview(data.data)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class StreamWriter(io.RawIOBase):
    """Bytes that go to a client over a stream, as fast as it opens windows for them.

    Errors of writing: as :meth:`OpenStream.receive`; Unavailable when the client takes no more; InvalidArgument for its messages
    that are no windows.
    """

    def __init__(self, stream: OpenStream) -> None:
        super().__init__()
        self._stream = stream
        self._window = 0
        self._held = bytearray()

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Take all of it, send whole pieces, and give the count of bytes."""
        self._held += data
        while len(self._held) >= LAST + PIECE:
            self._send(PIECE)
        return len(memoryview(data).cast("B"))

    def flush(self) -> None:
        """Send what there is, with no wait for more."""
        while self._held:
            self._send(len(self._held))

    def finish(self) -> None:
        """Send the rest, and wait until the client has taken it, as far as it says so: it opens the window anew."""
        if not self._held:
            return
        while len(self._held) > LAST:
            self._send(len(self._held) - LAST)
        self._await_window(len(self._held))  # so that they go as one
        while self._held:
            self._send(len(self._held))
        self._await_window(LAST)

    def _await_window(self, size: int) -> None:
        """Wait until the window is that wide; not for ever, since other clients have smaller ones."""
        with suppress(DeadlineExceeded, Unavailable):
            while self._window < size:
                self._open_window(TAKEN_SECONDS)

    def _send(self, size: int) -> None:
        while self._window <= 0:
            self._open_window()
        data = bytes(memoryview(self._held)[: min(size, self._window)])
        self._stream.send(transfer_types_pb2.Data(data=data))
        self._window -= len(data)
        del self._held[: len(data)]

    def _open_window(self, timeout: float | None = None) -> None:
        message = self._stream.receive(timeout)
        if message is None:
            raise Unavailable("the client takes no more of the stream")
        update = any_as(message, transfer_types_pb2.WindowUpdate)
        if update is None or update.update < 0:
            raise InvalidArgument(f"{message.type_url[:200]!r} came where a window was expected")
        self._window += update.update

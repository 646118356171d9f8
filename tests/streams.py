"""A client's end of containerd's streams: what is sent when, and what came."""

from __future__ import annotations

import queue
from typing import Any

from google.protobuf.any_pb2 import Any as Packed

from lamella.serve.api import streaming_pb2
from lamella.serve.messages import any_of

_END = object()


class ClientStream:
    """A stream that is open under an id when this is made; ``namespace`` as for a stub's calls."""

    def __init__(self, served: Any, id: str, **options: Any) -> None:
        self._sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stub = served.stub(streaming_pb2, "Streaming")
        self.call = stub.Stream(iter(self._sent.get, _END), **options)
        self.id = id
        self.send(streaming_pb2.StreamInit(id=id))
        self.acknowledgement: Packed = next(self.call)

    def send(self, message: Any) -> None:
        """Send a message, packed unless it is already."""
        self._sent.put(message if isinstance(message, Packed) else any_of(message))

    def say_all(self) -> None:
        """Say that nothing more comes."""
        self._sent.put(_END)

    def receive(self, kind: type[Any]) -> Any:
        """Give the next message, which is of that type."""
        packed = next(self.call)
        assert packed.type_url == kind.DESCRIPTOR.full_name
        return kind.FromString(packed.value)

    def rest(self, kind: type[Any]) -> list[Any]:
        """Give all that comes until the server ends the stream."""
        return [kind.FromString(packed.value) for packed in self.call]

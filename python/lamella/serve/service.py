"""A service: a plain class with a method per RPC; and the table of methods that all of them make.

An RPC that the class has no method for is answered Unimplemented, by name. What a method looks like follows from its kind::

    def Info(self, request: InfoRequest, call: Call) -> InfoResponse                                    # unary
    def List(self, request: ListContentRequest, call: Call) -> Iterator[ListContentResponse]            # streams responses
    def Write(self, call: Call) -> Conversation[WriteContentResponse, WriteContentRequest]              # bidirectional

It raises ``lamella.errors``, which :mod:`lamella.serve.status` turns into status codes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message

from lamella.serve.call import Call, FileRange
from lamella.serve.services import SERVICES
from lamella.serve.status import Code, Refused, refusal
from lamella.transfer.cancellation import current

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor

    from lamella.serve.server import Server


class Service:
    """What all services have. ``server`` is the one that serves it; state that outlives a call is in its store alone."""

    descriptor: ClassVar[ServiceDescriptor]
    """Of the generated module: ``version_pb2.DESCRIPTOR.services_by_name["Version"]``."""
    waits: ClassVar[frozenset[str]] = frozenset()
    """RPCs with one response that wait for what may never come: they end, Unavailable, when the server begins to."""

    def __init__(self, server: Server) -> None:
        self.server = server


class Method(NamedTuple):
    """One RPC. ``path`` is what HTTP/2 calls it: ``/containerd.services.version.v1.Version/Version``."""

    path: str
    request: type[Message]
    streams_requests: bool
    streams_responses: bool
    waits: bool
    function: Callable[..., Any]

    def decode(self, body: bytes) -> Message:
        """Parse a request. Refused with Internal, as Go's gRPC has it, for what is none."""
        try:
            return self.request.FromString(body)
        except DecodeError:
            raise Refused(
                Code.INTERNAL,
                f"grpc: error unmarshalling request: it is no {self.request.DESCRIPTOR.full_name}",
            ) from None

    def answer(self, body: bytes, call: Call) -> bytes:
        """Do a unary RPC. Refused."""
        try:
            with _handling(call):
                response: Message = self.function(self.decode(body), call)
                return response.SerializeToString()
        except Exception as error:
            raise refusal(error, self.path) from error

    def responses(self, body: bytes, call: Call) -> Iterator[bytes | FileRange]:
        """Do an RPC that streams responses. Refused."""
        try:
            with _handling(call):
                for response in self.function(self.decode(body), call):
                    if isinstance(response, FileRange):
                        try:
                            yield response
                        finally:
                            os.close(response.descriptor)
                    else:
                        yield response.SerializeToString()
        except Exception as error:
            raise refusal(error, self.path) from error


class Talk:
    """A bidirectional RPC under way: drives its generator. For one thread at a time."""

    def __init__(self, method: Method, call: Call) -> None:
        self._method = method
        self._call = call
        self._generator = method.function(call)
        self.ended = False

    def begin(self) -> list[bytes]:
        """Give the responses before the first request. Refused."""
        return self._step(lambda: next(self._generator))

    def receive(self, body: bytes) -> list[bytes]:
        """Give the responses to a request. Refused."""
        return self._step(lambda: self._generator.send(self._method.decode(body)))

    def half_close(self) -> list[bytes]:
        """Give the responses to the client's having said everything. Refused."""
        return self._step(lambda: self._generator.send(None))

    def close(self) -> None:
        """End it: the client has gone, or the stream was finished. Harmless twice."""
        self.ended = True
        try:
            with _handling(self._call):
                self._generator.close()
        except Exception as error:
            refusal(error, self._method.path)

    def _step(self, step: Callable[[], list[Message]]) -> list[bytes]:
        try:
            with _handling(self._call):
                return [response.SerializeToString() for response in step()]
        except StopIteration:
            self.ended = True
            return []
        except Exception as error:
            refused = refusal(error, self._method.path)
            self.close()
            raise refused from error


class _handling:  # noqa: N801 (reads as a word: ``with _handling(call):``)
    """Makes a call's cancellation that of the thread."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __enter__(self) -> None:
        self._token = current.set(self._call.cancellation)

    def __exit__(self, *_: object) -> None:
        current.set(None)


def services(server: Server) -> list[Service]:
    """Make every service that is served."""
    made = []
    for place in SERVICES:
        module, _, name = place.partition(":")
        service = getattr(import_module(module), name)(server)
        assert isinstance(service, Service)
        made.append(service)
    return made


def methods(served: list[Service]) -> dict[str, Method]:
    """Give every RPC of these services that has a method, by path."""
    return {
        method.path: method
        for service in served
        for method in _methods_of(service)
        if method.function is not None
    }


def _methods_of(service: Service) -> Iterator[Method]:
    for rpc in service.descriptor.methods:
        yield Method(
            path=f"/{service.descriptor.full_name}/{rpc.name}",
            request=message_factory.GetMessageClass(rpc.input_type),
            streams_requests=rpc.client_streaming,
            streams_responses=rpc.server_streaming,
            waits=rpc.name in service.waits,
            function=getattr(service, rpc.name, None),  # type: ignore[arg-type]
        )

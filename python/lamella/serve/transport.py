"""gRPC over HTTP/2, by grpcio: bodies of messages in, bodies out. It knows nothing of what they say."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from lamella.errors import Cancelled
from lamella.serve.call import Call, FileRange
from lamella.serve.service import Method, Talk
from lamella.serve.status import Code, Refused, unimplemented

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from lamella.client import Client

MESSAGE_MAX = 16 * 1024 * 1024
PIECE = 1024 * 1024
THREADS = 4096
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_END = object()


class Transport:
    """Serves methods on one socket, from :meth:`start` to :meth:`stop`."""

    def __init__(self, methods: Mapping[str, Method], client_of: Callable[[str | None], Client]) -> None:
        self._server = grpc.server(
            ThreadPoolExecutor(THREADS, thread_name_prefix="serve"),
            handlers=[_Handlers(methods, client_of)],
            options=[
                ("grpc.max_receive_message_length", MESSAGE_MAX),
                ("grpc.max_send_message_length", MESSAGE_MAX),
                ("grpc.so_reuseport", 0),
            ],
        )

    def start(self, path: str) -> None:
        """Listen on a path."""
        self._server.add_insecure_port(f"unix:{path}")
        self._server.start()

    def stop(self, grace: float) -> None:
        """Take no more calls; those under way have ``grace`` seconds."""
        self._server.stop(grace).wait()


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, methods: Mapping[str, Method], client_of: Callable[[str | None], Client]) -> None:
        self._methods = methods
        self._client_of = client_of

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = self._methods.get(details.method)
        if method is None:
            return grpc.stream_stream_rpc_method_handler(
                lambda _, context: _refuse(context, unimplemented(details.method))
            )
        if method.streams_requests:
            return grpc.stream_stream_rpc_method_handler(
                lambda bodies, context: self._talk(method, bodies, context)
            )
        if method.streams_responses:
            return grpc.unary_stream_rpc_method_handler(
                lambda body, context: self._stream(method, body, context)
            )
        return grpc.unary_unary_rpc_method_handler(lambda body, context: self._unary(method, body, context))

    def _call(self, context: grpc.ServicerContext, **more: Any) -> Call:
        headers = {
            pair[0]: value.decode("latin-1") if isinstance(value := pair[1], bytes) else value
            for pair in context.invocation_metadata()
        }
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        call = Call(headers, self._client_of, deadline=deadline, **more)
        if not context.add_callback(call.cancellation.cancel):
            call.cancellation.cancel()
        return call

    def _unary(self, method: Method, body: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return method.answer(body, self._call(context))
        except Refused as refused:
            _refuse(context, refused)

    def _stream(self, method: Method, body: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            for response in method.responses(body, self._call(context)):
                if isinstance(response, FileRange):
                    yield from _pieces(response)
                else:
                    yield response
        except Refused as refused:
            _refuse(context, refused)

    def _talk(
        self, method: Method, bodies: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        responses: queue.SimpleQueue[Any] = queue.SimpleQueue()
        ended = threading.Event()

        def send(response: Message) -> None:
            if ended.is_set():
                raise Cancelled("the stream has ended")
            responses.put(response.SerializeToString())

        def finish() -> None:
            responses.put(_END)

        call = self._call(context, send=send, finish=finish)
        call.on_cancel(finish)
        talk = Talk(method, call)
        turn = threading.Lock()

        def drive() -> None:
            try:
                self._drive(talk, bodies, responses, turn)
            except Refused as refused:
                responses.put(refused)
            except Exception:
                responses.put(_END)

        threading.Thread(target=drive, name="serve-talk", daemon=True).start()
        try:
            while (response := responses.get()) is not _END:
                if isinstance(response, Refused):
                    _refuse(context, response)
                yield response
        finally:
            ended.set()
            with turn:
                talk.close()

    def _drive(
        self, talk: Talk, bodies: Iterator[bytes], responses: queue.SimpleQueue[Any], turn: threading.Lock
    ) -> None:
        def step(act: Callable[[], list[bytes]]) -> bool:
            with turn:
                if not talk.ended:
                    for response in act():
                        responses.put(response)
                    if talk.ended:
                        responses.put(_END)
                return not talk.ended

        if not step(talk.begin):
            return
        for body in bodies:
            if not step(lambda body=body: talk.receive(body)):  # type: ignore[misc]
                return
        step(talk.half_close)


def _refuse(context: grpc.ServicerContext, refused: Refused) -> NoReturn:
    context.abort(_CODES[refused.code], refused.message)
    raise AssertionError


def _pieces(part: FileRange) -> Iterator[bytes]:
    from lamella.serve.api.content_pb2 import ReadContentResponse

    with contextlib.ExitStack() as stack:
        stack.callback(os.close, part.descriptor)
        offset, end = part.offset, part.offset + part.size
        while offset < end:
            data = os.pread(part.descriptor, min(PIECE, end - offset), offset)
            if not data:
                raise Refused(Code.DATA_LOSS, "the file ended early")
            yield ReadContentResponse(offset=offset, data=data).SerializeToString()
            offset += len(data)

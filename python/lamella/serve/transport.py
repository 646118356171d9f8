"""From the transport (``lamella._core.Transport``: gRPC over HTTP/2, which knows nothing of messages) to methods and calls."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from lamella import _core
from lamella.errors import Cancelled
from lamella.logs import DEBUG, Log
from lamella.metrics.table import CALL_SECONDS, CALLS, CODES
from lamella.serve.call import Call
from lamella.serve.service import Method, Talk

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from lamella.client import Client
    from lamella.metrics import Recorder

_log = Log("lamella.serve")
_Kind = Literal["unary", "waiting", "responses", "talk"]
MESSAGE_MAX = 16 * 1024 * 1024
"""Bytes of a message, as containerd limits them."""
THREADS = 4096
"""RPCs that may do something at the same time; more wait. A bidirectional one does while it answers a message."""


class Transport:
    """Serves methods on one socket, from :meth:`start` to :meth:`stop`."""

    def __init__(
        self, methods: Mapping[str, Method], client_of: Callable[[str | None], Client], metrics: Recorder
    ) -> None:
        self._client_of = client_of
        names = [path.removeprefix("/") for path in methods]
        cells = [(CALLS.cell(name, CODES[0]), CALL_SECONDS.series(name).first) for name in names]
        self._core = _core.Transport(
            [self._entry(path, method) for path, method in methods.items()],
            threads=THREADS,
            message_max=MESSAGE_MAX,
            counts=(metrics.counters, CALL_SECONDS.bounds, cells),
            log=_tell if _log.listened(DEBUG) else None,
        )

    def start(self, listener: socket.socket, *, uids: Sequence[int], gids: Sequence[int]) -> None:
        """Serve those users and groups, and root, that connect to a listening socket, which may be closed then. Once."""
        self._core.start(listener.fileno(), uids=uids, gids=gids)

    def stop(self, grace: float) -> None:
        """Take no more calls; end streams, and after ``grace`` seconds the other calls. Harmless twice."""
        self._core.stop(grace)

    def _entry(self, path: str, method: Method) -> tuple[str, _Kind, Callable[..., object]]:
        if method.streams_requests:
            return path, "talk", lambda stream: Talk(method, self._call(stream, talks=True))
        if method.streams_responses:
            return path, "responses", lambda body, stream: method.responses(body, self._call(stream))
        return (
            path,
            "waiting" if method.waits else "unary",
            lambda body, stream: method.answer(body, self._call(stream)),
        )

    def _call(self, stream: _core.Stream, *, talks: bool = False) -> Call:
        remaining = stream.remaining
        call = Call(
            stream.headers,
            self._client_of,
            deadline=None if remaining is None else time.monotonic() + remaining,
            send=_sender(stream) if talks else None,
            finish=stream.finish if talks else None,
            expect=stream.expect if talks else None,
        )
        stream.on_cancel(call.cancellation.cancel)
        return call


def _tell(path: str, namespace: str | None, code: int, seconds: float) -> None:
    """Log how an RPC ended."""
    _log.debug(
        f"%(path)s, namespace %(namespace)s: %(result)s after {seconds * 1000:.1f} ms",
        path=path,
        namespace=namespace or "-",
        result=CODES[code] if code < len(CODES) else str(code),
        seconds=seconds,
    )


def _sender(stream: _core.Stream) -> Callable[[Message], None]:
    def send(message: Message) -> None:
        if not stream.send(message.SerializeToString()):
            raise Cancelled("the stream has ended")

    return send

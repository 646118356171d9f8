"""One connection of the registry server: HTTP/1.1 (RFC 9112) with bounds on everything that a client decides.

Python's ``http.server`` reads heads and writes status lines. The rest is here because it has none of it, or is too
lenient: a time for a whole head and a rate for bodies, where it has one time-out for each read (:class:`Wire`); bodies,
chunked ones too (:class:`Body`); a limit on connections, and an end that lets answers finish (:class:`Server`); the
rules of RFC 9112 (:func:`check_head`).

A head has at most HEAD_MAX bytes and HEAD_SECONDS from its first byte to its last, and what two readers could understand
differently (both lengths, a length twice, folded lines) is an error, so that no proxy in front can be made to see other
requests than this server. A connection may be silent for IDLE_SECONDS; while a body goes over it, at least RATE_MIN bytes a
second have to, or a few clients that send or read a byte now and then would hold all the threads there are. One thread a
connection, CONNECTIONS_MAX of them, or as many as the process may have descriptors for.

Files go to the socket by sendfile, and piece by piece where there is TLS, whose handshake is made in the connection's thread.
"""

from __future__ import annotations

import errno
import io
import os
import re
import resource
import select
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any, BinaryIO

from lamella.registry.server.storage import PIECE

CONNECTIONS_MAX = 512
_DESCRIPTORS_KEPT = 64
_NO_MORE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
HEAD_MAX = 64 * 1024
HEAD_SECONDS = 20.0
IDLE_SECONDS = 60.0
RATE_MIN = 1024.0
"""Bytes a second."""
LINGER_SECONDS = 2.0
LINGER_MAX = 16 * 1024 * 1024
_DRAIN_MAX = 64 * 1024
_LINE_MAX = 4096
_TRAILERS_MAX = 64
_SENDFILE_MAX = 8 * 1024 * 1024
_REQUEST_LINE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [!-~]+ HTTP/1\.[01]")
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)


class Refusal(Exception):
    """An answer that is an error (distribution spec, "Error Codes")."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})


class Wire(io.RawIOBase):
    """A connection's socket, which waits for its client only so long."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = 0.0
        self._head_left: int | None = None
        self.wait()

    def wait(self) -> None:
        """Allow a silence: for the next request, or before an answer."""
        self._deadline = time.monotonic() + IDLE_SECONDS
        self._head_left = None

    def begin_head(self) -> None:
        """Expect the rest of a head."""
        self._deadline = time.monotonic() + HEAD_SECONDS
        self._head_left = HEAD_MAX

    def readable(self) -> bool:
        """Say yes."""
        return True

    def writable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive; 0 at the end. TimeoutError, ConnectionError."""
        self._connection.settimeout(self._left())
        count = self._connection.recv_into(buffer)
        if self._head_left is None:
            self._moved(count)
        else:
            self._head_left -= count
            if self._head_left < 0:
                raise ConnectionResetError("the head of a request is too long")
        return count

    def write(self, data: Any) -> int:
        """Send some of it; say how much. TimeoutError, ConnectionError."""
        self._connection.settimeout(self._left())
        count = self._connection.send(data)
        self._moved(count)
        return count

    def send_file(self, file: BinaryIO, start: int, count: int) -> None:
        """Send a part of a file. ConnectionError when it is shorter by now."""
        stop = start + count
        if isinstance(self._connection, ssl.SSLSocket):
            while start < stop:
                piece = os.pread(file.fileno(), min(stop - start, PIECE), start)
                if not piece:
                    raise ConnectionAbortedError("the file was cut short")
                start += len(piece)
                view = memoryview(piece)
                while view:
                    view = view[self.write(view) :]
            return
        self._connection.settimeout(self._left())  # which makes it non-blocking
        writable = select.poll()
        writable.register(self._connection, select.POLLOUT)
        while start < stop:
            try:
                sent = os.sendfile(
                    self._connection.fileno(), file.fileno(), start, min(stop - start, _SENDFILE_MAX)
                )
            except BlockingIOError:
                writable.poll(self._left() * 1000)
                continue
            if not sent:
                raise ConnectionAbortedError("the file was cut short")
            start += sent
            self._moved(sent)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the client is too slow")
        return left

    def _moved(self, count: int) -> None:
        """Give time for what went over: what comes slower than RATE_MIN uses up what was there at first."""
        self._deadline = min(self._deadline + count / RATE_MIN, time.monotonic() + IDLE_SECONDS)


class Reader(io.BufferedReader):
    """Reads lines and notes whether one had another end than CR LF, or a CR in it: ``http.server`` takes all of them for ends."""

    stray = False

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read a line."""
        line = super().readline(size)
        self.stray = self.stray or not line.endswith(b"\r\n") or b"\r" in line[:-2]
        return line


class Body:
    """A request's body, by Content-Length or chunked (RFC 9112, 6 and 7.1)."""

    def __init__(self, connection: Connection) -> None:
        headers = connection.headers
        self._connection = connection
        self._file = connection.rfile
        self.chunked = "Transfer-Encoding" in headers
        self.left = 0 if self.chunked else int(headers.get("Content-Length", "0"))
        self.length = None if self.chunked else self.left
        self.done = not self.chunked and not self.left
        self._first = True

    def read(self, size: int) -> bytes:
        """Read at most ``size`` bytes; none at the end. ConnectionError when the sender breaks off or breaks a rule."""
        self._connection.send_continue()
        if self.chunked and not self.left and not self.done:
            self._next_chunk()
        if self.done:
            return b""
        data = self._file.read1(min(size, self.left))
        self.left -= len(data)
        if not self.left and not self.chunked:
            self.done = True
        if not data:
            raise ConnectionResetError("the request ended early")
        return data

    def read_all(self, limit: int) -> bytes:
        """Read the whole; 413 if it is over ``limit`` bytes."""
        too_long = Refusal(413, "SIZE_INVALID", f"the body has over {limit} bytes")
        parts, size = [], 0
        if self.left > limit:
            raise too_long
        while data := self.read(PIECE):
            parts.append(data)
            size += len(data)
            if size > limit:
                raise too_long
        return b"".join(parts)

    def drain(self) -> bool:
        """Read a small rest, so that the connection can be used again; False if there is more."""
        with suppress(OSError):
            left = _DRAIN_MAX
            while left > 0 and not self.done and self.left <= left and not self._connection.expects_continue:
                left -= max(len(self.read(left)), 1)
        return self.done

    def _next_chunk(self) -> None:
        if not self._first and self._line() != b"":
            raise ConnectionResetError("a chunk is longer than it says")
        self._first = False
        size = self._line().partition(b";")[0].strip(b" \t")
        if not re.fullmatch(rb"[0-9a-fA-F]{1,15}", size):
            raise ConnectionResetError("a malformed chunk")
        self.left = int(size, 16)
        if self.left:
            return
        self.done = True
        for _ in range(_TRAILERS_MAX):
            if not self._line():
                return
        raise ConnectionResetError("too many trailers")

    def _line(self) -> bytes:
        line = self._file.readline(_LINE_MAX)
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("a malformed chunk")
        return line[:-2]


class Server(socketserver.ThreadingTCPServer):
    """Accepts connections and knows which are open, and which of them are between two requests."""

    allow_reuse_address = True
    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[Connection],
        *,
        tls: ssl.SSLContext | None = None,
        connections: int = CONNECTIONS_MAX,
    ) -> None:
        self._tls = tls
        self._connections = _affordable(connections)
        self._idle: dict[socket.socket, bool] = {}
        self._changed = threading.Condition()
        self.ending = False
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection."""
        try:
            connection, address = super().get_request()
        except OSError as error:
            if error.errno in _NO_MORE:
                time.sleep(0.05)  # it goes on waiting, and would be tried again at once
            raise
        if self._tls is not None:
            try:
                connection = self._tls.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
            except BaseException:
                connection.close()
                raise
        with self._changed:
            self._idle[connection] = False
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Say whether there is room for one more."""
        with self._changed:
            if len(self._idle) <= self._connections:
                return True
        if self._tls is None:
            with suppress(OSError):
                request.setblocking(False)
                request.send(_BUSY)
        return False

    def close_request(self, request: Any) -> None:
        """Close a connection."""
        with self._changed:
            self._idle.pop(request, None)
            self._changed.notify_all()
        super().close_request(request)

    def note(self, connection: socket.socket, *, idle: bool) -> None:
        """Note whether a connection waits for a request. ConnectionError when no more are taken."""
        with self._changed:
            if idle and self.ending:
                raise ConnectionAbortedError("the server ends")
            self._idle[connection] = idle

    def end(self, grace: float) -> None:
        """End the connections: those that are idle at once, the others after their answer, or after ``grace`` seconds."""
        with self._changed:
            self.ending = True
            for connection, idle in self._idle.items():
                if idle:
                    cut(connection)
            self._changed.wait_for(lambda: not self._idle, grace)
            for connection in self._idle:
                cut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away; a defect is not hidden by that: it answers 500 and is logged."""


def _affordable(connections: int) -> int:
    """Say how many of them may be open, each with a file that goes over it, with the descriptors that this process may have."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return connections
    return max(min(connections, (allowed - _DESCRIPTORS_KEPT) // 2), 1)


def cut(connection: socket.socket) -> None:
    """End a connection: whoever reads it or writes to it sees that. Harmless twice, and after its close."""
    with suppress(OSError):
        # That of SSLSocket would let the connection's own thread go on without TLS for a moment.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class Connection(BaseHTTPRequestHandler):
    """Reads requests and hands those that are sound to :meth:`serve`."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        """Shake hands, and get ready to read."""
        self.connection = self.request
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        if isinstance(self.connection, ssl.SSLSocket):
            self.connection.settimeout(HEAD_SECONDS)
            self.connection.do_handshake()
        self.wire = Wire(self.connection)
        self.rfile: Reader = Reader(self.wire, 64 * 1024)
        self.wfile = io.BufferedWriter(self.wire, 64 * 1024)
        self.expects_continue = False
        self.lingers = False

    def handle(self) -> None:
        """Answer requests until one of both ends."""
        # A client that goes away, or a server that closes, ends the connection and is nobody's error.
        with suppress(OSError):
            super().handle()

    def finish(self) -> None:
        """Send what is buffered."""
        with suppress(OSError, ValueError):
            self.wfile.flush()
            if self.lingers:
                self._linger()

    def _linger(self) -> None:
        """Let the client read a refusal of what it still sends: closing before that would reset the connection."""
        socket.socket.shutdown(self.connection, socket.SHUT_WR)
        deadline, left = time.monotonic() + LINGER_SECONDS, LINGER_MAX
        while left > 0 and (seconds := deadline - time.monotonic()) > 0:
            self.connection.settimeout(seconds)
            count = len(socket.socket.recv(self.connection, 64 * 1024))
            left -= count or left

    def handle_one_request(self) -> None:
        """Wait for a request and answer it."""
        self.wire.wait()
        self.server.note(self.connection, idle=True)
        self.close_connection = True
        if not self.rfile.peek(1):
            return
        self.server.note(self.connection, idle=False)
        self.expects_continue = self.rfile.stray = False
        self.wire.begin_head()
        super().handle_one_request()

    def parse_request(self) -> bool:
        """Read a head; False for one that was refused."""
        if not super().parse_request():
            return False
        try:
            check_head(self)
        except Refusal as refusal:
            self.send_error(refusal.status, refusal.message)
            return False
        self.wire.wait()
        return True

    def handle_expect_100(self) -> bool:
        """Wait until somebody reads the body: what is refused need not be sent."""
        self.expects_continue = True
        return True

    def send_continue(self) -> None:
        """Ask for the body, if the client waits for that."""
        if self.expects_continue:
            self.expects_continue = False
            self.send_response_only(100)
            self.end_headers()
            self.wfile.flush()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that could not be read, and end the connection."""
        self.request_version = self.protocol_version
        self.close_connection = True
        self.refuse_unread(Refusal(int(code), "UNSUPPORTED", message or "the request is malformed"))

    def refuse_unread(self, refusal: Refusal) -> None:
        """Answer a request whose head is malformed."""
        raise NotImplementedError

    def serve(self) -> None:
        """Answer a request."""
        raise NotImplementedError

    def version_string(self) -> str:
        """Name the program, for the Server header."""
        return "lamella-registry"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: answers are logged where they are known."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.serve
        raise AttributeError(name)


def check_head(request: Connection) -> None:
    """Refuse what two readers of a request could understand differently (RFC 9112, 2.2, 3, 5.1, 5.2 and 6.3)."""
    headers = request.headers
    if request.request_version not in ("HTTP/1.0", "HTTP/1.1"):
        raise Refusal(505, "UNSUPPORTED", "the version of HTTP is not supported")
    if not _REQUEST_LINE.fullmatch(request.requestline):
        raise Refusal(400, "UNSUPPORTED", "the request line is malformed")
    if headers.defects or headers.get_payload() or headers.get_unixfrom():
        raise Refusal(400, "UNSUPPORTED", "a header line is malformed")
    if request.rfile.stray or any(character in value for value in headers.values() for character in "\r\n\0"):
        raise Refusal(400, "UNSUPPORTED", "a line is folded, ends without CR LF, or has a CR or NUL in it")
    for name in ("Content-Length", "Transfer-Encoding", "Host"):
        if len(headers.get_all(name, [])) > 1:
            raise Refusal(400, "UNSUPPORTED", f"{name} is there twice")
    if request.request_version == "HTTP/1.1" and "Host" not in headers:
        raise Refusal(400, "UNSUPPORTED", "the Host is missing")
    length, encoding = headers.get("Content-Length"), headers.get("Transfer-Encoding")
    if length is not None and not re.fullmatch(r"[0-9]{1,18}", length):
        raise Refusal(400, "UNSUPPORTED", "the Content-Length is malformed")
    if encoding is None:
        return
    if length is not None or request.request_version == "HTTP/1.0":
        raise Refusal(400, "UNSUPPORTED", "Transfer-Encoding is beside Content-Length, or in HTTP/1.0")
    if encoding.lower() != "chunked":
        raise Refusal(501, "UNSUPPORTED", "the only Transfer-Encoding is chunked")

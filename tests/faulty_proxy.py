"""A proxy in front of a registry that breaks what passes, in all the ways of networks, by a seed; or only slows it down.

Which fault a request meets depends on the seed, on what it asks for, and on how often that was asked for: not on time, nor
on what other connections do. Nothing is kept from one request to the next but these counts, so that any client, any
server and both directions may be tested. The Host header passes unchanged: what the server says of itself leads here again.
"""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BEFORE = ("closed", "reset", "429", "503", "page", "headers")
"""No answer, or one of another server; nothing was passed on."""
WITHIN = ("truncated", "cut", "stalled", "dripping")
"""Something in the middle of a body, of the answer or of the request."""
WRONG = ("range", "length", "whole")
"""An answer about other bytes than were asked for, which says so; ``whole`` ignores the range, and breaks off later on."""
LYING = ("moved", "garbage")
"""Wrong bytes, and nothing says so."""
LOST = ("lost",)
"""What was asked for is done, but the answer is a broken connection."""
HONEST = BEFORE + WITHIN + WRONG
PIECE = 64 * 1024
_HOP = {"connection", "keep-alive", "te", "transfer-encoding", "upgrade", "content-length"}
_PAGE = b"<!DOCTYPE html><html><body>Please log in to this network.</body></html>"


class Passed(NamedTuple):
    """One request: its Range header or None, what went wrong with it ("" for nothing), the bytes of its answer's body."""

    method: str
    path: str
    range: str | None
    fault: str
    sent: int


class FaultyProxy:
    """Listens on loopback while it is entered, and passes on to ``upstream`` (host:port, plain HTTP).

    Of all requests the share ``rate`` meets one of ``faults``; one that is named twice is met twice as often. Those within a
    body come after ``stretch[0]`` to ``stretch[1]`` bytes, or not at all if it ends before. Each connection carries at most
    ``bandwidth`` bytes a second, and each answer comes ``latency`` seconds later.
    """

    def __init__(
        self,
        upstream: str,
        *,
        seed: object = 0,
        faults: Sequence[str] = (),
        rate: float = 0.9,
        stretch: tuple[int, int] = (PIECE, 1 << 20),
        bandwidth: float | None = None,
        latency: float = 0.0,
    ) -> None:
        self.upstream = upstream
        self.seed, self.faults, self.rate, self.stretch = seed, tuple(faults), rate, stretch
        self.bandwidth, self.latency = bandwidth, latency
        self.log: list[Passed] = []
        self.closing = threading.Event()
        self.open_connections = self.most_connections = 0
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        class Server(ThreadingHTTPServer):
            daemon_threads = False
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def settle(self) -> None:
        """Wait until all who were connected are gone: then the log has all that they asked for."""
        while self.open_connections:
            time.sleep(0.005)

    @property
    def met(self) -> Counter[str]:
        """How often each fault was met."""
        return Counter(passed.fault for passed in self.log if passed.fault)

    def plan(self, method: str, path: str, asked_range: str | None, body: int) -> tuple[str, random.Random]:
        """Choose what goes wrong with a request, and the source of all further choices about it."""
        key = f"{method} {path} {asked_range}"
        with self._lock:
            self._counts[key] += 1
            source = random.Random(f"{self.seed} {key} {self._counts[key]}")
        possible = [fault for fault in self.faults if _fits(fault, method, asked_range, body)]
        within = [fault for fault in possible if fault in WITHIN]
        if within and source.random() < 0.75:  # most of them, since those get further each time
            possible = within
        rate = self.rate if within else min(self.rate, 0.7)  # what has no body would never get through
        return (source.choice(possible) if possible and source.random() < rate else ""), source

    def count(self, more: int) -> None:
        """Count connections, to know the most at once."""
        with self._lock:
            self.open_connections += more
            self.most_connections = max(self.most_connections, self.open_connections)


def _fits(fault: str, method: str, asked_range: str | None, body: int) -> bool:
    if fault in WITHIN:
        return method == "GET" or body > 0
    if fault in {"range", "whole", "moved"}:
        return method == "GET" and asked_range is not None
    return method == "GET" or fault not in WRONG + LYING


class _Broken(Exception):
    """The client's connection was ended on purpose."""


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30

    def log_message(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._pass
        raise AttributeError(name)

    def handle(self) -> None:
        self.owner.count(1)
        try:
            with suppress(OSError, _Broken):
                super().handle()
        finally:
            self.owner.count(-1)

    def _pass(self) -> None:
        owner, length = self.owner, int(self.headers.get("Content-Length") or 0)
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        asked_range = self.headers.get("Range")
        size = length or int(chunked)
        self._fault, self._source = owner.plan(self.command, self.path, asked_range, size)
        self._until = self._source.randint(*owner.stretch)
        self._met, self._sent, self._began = "", 0, time.monotonic()
        owner.closing.wait(owner.latency)
        try:
            if self._fault in BEFORE:
                self._refuse()
            else:
                self._forward(length, chunked)
        finally:
            owner.log.append(Passed(self.command, self.path, asked_range, self._met, self._sent))

    def _refuse(self) -> None:
        fault = self._met = self._fault
        self.close_connection = True
        if fault == "closed":
            return
        if fault == "reset":
            self._reset()
        if fault == "headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: applic")
            return
        status, body = (200, _PAGE) if fault == "page" else (int(fault), b"")
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        if fault == "429":
            self.send_header("Retry-After", "0")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _forward(self, length: int, chunked: bool) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        if self._fault in {"range", "whole", "length", "moved", "lost"}:
            self._met = self._fault
        if self._fault == "whole":
            self._until += int(headers.pop("Range").removeprefix("bytes=").partition("-")[0])
        if self._fault in {"range", "moved"}:
            start, _, end = headers["Range"].removeprefix("bytes=").partition("-")
            by = 1000 if int(start) < 1000 else -1000
            headers["Range"] = f"bytes={int(start) + by}-{int(end) + by if end else ''}"
        upstream = http.client.HTTPConnection(self.owner.upstream, timeout=30)
        try:
            body = self._request_body(length, chunked) if length or chunked else None
            if length:
                headers["Content-Length"] = str(length)
            upstream.request(
                self.command, self.path, body=body, headers=headers, encode_chunked=bool(chunked)
            )
            with upstream.getresponse() as answer:
                if self._fault == "lost":
                    answer.read()
                    self._reset()
                self._answer(answer)
        finally:
            upstream.close()

    def _request_body(self, length: int, chunked: bool) -> Iterator[bytes]:
        def pieces() -> Iterator[bytes]:
            left = length
            while left:
                piece = self.rfile.read1(min(left, PIECE))
                if not piece:
                    raise _Broken
                left -= len(piece)
                yield piece
            while chunked and (size := int(self.rfile.readline().partition(b";")[0], 16)):
                yield self.rfile.read(size)
                self.rfile.readline()
            if chunked:
                self.rfile.readline()

        for piece in pieces():
            self._pay(len(piece))
            yield from self._disturb(piece)

    def _answer(self, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status)
        length = answer.getheader("Content-Length")
        for name, value in answer.getheaders():
            if name.lower() not in _HOP and not (name.lower() == "content-range" and self._fault == "moved"):
                self.send_header(name, value)
        if self._fault == "moved" and answer.status == 206:
            start, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
            total = int((answer.getheader("Content-Range") or "").rpartition("/")[2])
            end = end or str(total - 1)
            length = str(int(end) + 1 - int(start))
            self.send_header("Content-Range", f"bytes {start}-{end}/{total}")
        if length is not None and self._fault == "length":
            length = str(int(length) + self._source.choice((-1, 1, 1000)))
        if length is not None:
            self.send_header("Content-Length", length)
        elif answer.status != 204:
            self.close_connection = True
        if self._fault in WITHIN + WRONG + LYING:
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        while piece := answer.read1(PIECE):
            self._pay(len(piece))
            for part in self._disturb(piece):
                self._sent += len(part)
                self.wfile.write(part)

    def _disturb(self, piece: bytes) -> Iterator[bytes]:
        """Give what is passed on of a piece; what does not go on after it ends the connection."""
        if self._fault not in (*WITHIN, "whole", "garbage"):
            yield piece
            return
        self._until -= len(piece)
        if self._until > 0:
            yield piece
            return
        cut = len(piece) + self._until
        self._met = self._fault
        if self._fault == "garbage":
            self._until = 1 << 62  # once
            yield piece[:cut] + bytes(byte ^ 0x55 for byte in piece[cut : cut + 3]) + piece[cut + 3 :]
            return
        yield piece[:cut]
        self.close_connection = True
        if self._fault == "cut":
            self._reset()
        if self._fault == "stalled":
            self._wait_until_it_gives_up()
        if self._fault == "dripping":
            for byte in piece[cut:]:
                yield bytes([byte])
                self.owner.closing.wait(0.02)
            self._wait_until_it_gives_up()
        raise _Broken

    def _wait_until_it_gives_up(self) -> None:
        self.connection.settimeout(0.05)
        while not self.owner.closing.is_set():
            with suppress(TimeoutError):
                if not self.connection.recv(PIECE):
                    return

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.connection.close()
        raise _Broken

    def _pay(self, count: int) -> None:
        """Wait as long as so many bytes take on this connection."""
        if self.owner.bandwidth is not None:
            self._began = max(self._began, time.monotonic() - 0.1) + count / self.owner.bandwidth
            self.owner.closing.wait(max(self._began - time.monotonic(), 0))

"""How a request's body goes out: in pieces, as often as it takes, to a server that may answer before it has read it all.

A registry refuses an upload (401, 413) without reading the body to its end. Who only sends then waits for ever, or learns of
a broken pipe in place of the answer. So between two pieces the connection is looked at: once the answer is there, or the
sending fails, it is read, and what is left of the body is not sent. Over TLS what can be read may be something else
than an answer (session tickets), so that there only a failure or silence ends the sending.

What is in a file goes out by sendfile(2), where nothing is between the file and the socket.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

from urllib3.connection import HTTPConnection
from urllib3.response import HTTPResponse
from urllib3.util.wait import wait_for_read, wait_for_socket

TLS_PIECE = 64 * 1024
"""Bytes given to TLS at once: it sends all of them or none within the time-out."""
_NO_SENDFILE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


class FilePart:
    """Some bytes of a file as a piece of a body. They need not come here: a push of 240 MB takes 0.07 s of CPU, not 0.12."""

    def __init__(self, file: BinaryIO, start: int, count: int) -> None:
        self._file = file
        self._start = start
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rest: slice) -> FilePart:
        """Give what is left from ``rest.start`` on."""
        return FilePart(self._file, self._start + rest.start, self._count - rest.start)

    def send(self, sock: socket.socket) -> int:
        """Send some of it; 0 when there is something to read meanwhile. Errors: OSError; EOFError where the file is shorter."""
        if type(sock) is not socket.socket:  # what TLS, or a proxy, makes of it
            return sock.send(self._read(TLS_PIECE))
        try:
            count = os.sendfile(sock.fileno(), self._file.fileno(), self._start, self._count)
        except BlockingIOError:
            if not wait_for_socket(sock, read=True, write=True, timeout=sock.gettimeout()):
                raise TimeoutError from None
            return 0
        except OSError as error:
            if error.errno not in _NO_SENDFILE:
                raise
            return sock.send(self._read(self._count))
        if not count:
            raise EOFError
        return count

    def _read(self, most: int) -> bytes:
        data = os.pread(self._file.fileno(), min(most, self._count), self._start)
        if not data:
            raise EOFError
        return data


class Body(Protocol):
    """A body of ``len()`` bytes, over zero. It is opened anew each time it is iterated over, so that it can be sent again."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[memoryview | FilePart]:
        """Give the pieces. Each is used before the next one is asked for. What fails is raised as :class:`SourceFailed`."""


class SourceFailed(Exception):
    """Carries what a body's source raised past those who would take it for a failure of the connection."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class Stale(ConnectionAbortedError):
    """A connection that was used before is closed, and nothing of the body went out: on a new one it will."""


class SendingConnection(HTTPConnection):
    """Sends the pieces of a :class:`Body` as the module describes."""

    silence: float
    """Seconds in which some bytes have to go out."""
    _cut = False
    _answered = False
    _began = False

    def send(self, data: Any) -> None:
        """Send a piece. BrokenPipeError, after which urllib3 reads the answer, when nobody wants the rest of the body.

        Errors: Stale.
        """
        if not isinstance(data, memoryview | FilePart) or self.sock is None:
            self._began = False
            try:
                super().send(data)
            except ssl.SSLEOFError:
                # Closed at the other end, which may have said why: by an alert (it wants a certificate), which is read then.
                raise BrokenPipeError from None
            return
        self.sock.settimeout(self.silence)
        secure = isinstance(self.sock, ssl.SSLSocket)
        while data:
            if not secure and wait_for_read(self.sock, timeout=0):
                self._cut = True
                if self._answered and not self._began and not self.sock.recv(1, socket.MSG_PEEK):
                    raise Stale
                raise BrokenPipeError
            try:
                if isinstance(data, FilePart):
                    count = data.send(self.sock)
                else:
                    count = self.sock.send(data[:TLS_PIECE] if secure else data)
            except (OSError, EOFError):
                self._cut = True
                raise BrokenPipeError from None
            self._began = self._began or count > 0
            data = data[count:]

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # urllib3's own, as in its class
        """Read an answer; one to half a body is there at once, or does not come."""
        if self._cut:
            self.timeout = self.silence
        response = super().getresponse()
        self._answered = True
        return response

    def connect(self) -> None:
        """Connect anew, for whole requests again."""
        super().connect()
        self._cut = self._answered = False

    @property
    def is_connected(self) -> bool:
        """Say whether it can be used again; not after half a request."""
        return not self._cut and super().is_connected

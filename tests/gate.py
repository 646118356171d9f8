"""A TCP proxy on loopback that lets so many bytes of answers through a connection and holds back the rest until it is opened."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest

from lamella.registry import ahead

ONE_CONNECTION = 'from lamella.registry import ahead; ahead.WINDOW = float("inf")'
"""What makes a program of its own do what the fixture does for this process."""


@pytest.fixture
def one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let blobs come on one connection, however slow it is: each further one would bring as much through a gate."""
    monkeypatch.setattr(ahead, "WINDOW", float("inf"))


class Gate:
    def __init__(self, upstream: str, limit: int) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._limit = limit
        self._open = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Gate:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for connection in self._sockets:
            connection.close()

    @property
    def is_open(self) -> bool:
        return self._open.is_set()

    def open(self) -> None:
        self._open.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._upstream)
            except OSError:
                client.close()
                continue
            self._sockets += [client, server]
            for source, target, counted in ((client, server, False), (server, client, True)):
                thread = threading.Thread(target=self._forward, args=(source, target, counted))
                self._threads.append(thread)
                thread.start()

    def _forward(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        left = self._limit
        with suppress(OSError):
            while data := source.recv(65536):
                if counted and not self._open.is_set():
                    target.sendall(data[:left])
                    data, left = data[left:], max(0, left - len(data))
                    if data:
                        self._open.wait()
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

"""The connections of a transport: each is looked at once it is there, its answers come at a pace, and all can be ended at once.

A connection that is there ends by the shutdown of its socket. What leads to one (looking up a name, the handshakes of TCP, of a
proxy, of TLS) nothing can end: it is done in a thread of its own, which is left behind.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from lamella.errors import Cancelled, FailedPrecondition
from lamella.registry.limits import TURN
from lamella.registry.pace import PacedResponse
from lamella.registry.sending import SendingConnection

CONNECTIONS_KEPT = 64
"""Idle connections to one host that are kept for the next requests; more than are ever used at once."""

Look = Callable[[HTTPConnection], None]


class Connections:
    """All connections of a transport. Safe to use from several threads, of one process."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._known: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()

    def check(self) -> None:
        """Raise Cancelled after :meth:`stop`, FailedPrecondition in a process that was forked off: sockets are shared with it."""
        if self.stopped.is_set():
            raise Cancelled("the transfer was stopped")
        if self._pid != os.getpid():
            raise FailedPrecondition(
                "what talks to registries was opened in the process that forked this one",
                hint="Open a client after the fork.",
            )

    def stop(self) -> None:
        """End whatever is done with any of them, for good. Harmless twice, and in a forked process, where it does nothing."""
        self.stopped.set()
        if self._pid != os.getpid():
            return
        with self._lock:
            known = list(self._known)
        for connection in known:
            sock = connection.sock
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def watch(self, connection: HTTPConnection) -> None:
        """Take note of a connection that is there now."""
        with self._lock:
            self._known.add(connection)
        self.check()

    def make(self, connect: Callable[[], None], close: Callable[[], None]) -> None:
        """Do ``connect`` and raise what it raises, or Cancelled after :meth:`stop`: then ``close`` follows when it has ended."""
        ended, left = threading.Event(), threading.Event()
        failures: list[BaseException] = []

        def work() -> None:
            try:
                connect()
            except BaseException as error:
                failures.append(error)
            ended.set()
            if left.is_set():
                close()

        thread = threading.Thread(target=work, name="lamella-connect", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread can be had
            connect()
            return
        try:
            while not ended.wait(TURN):
                self.check()
        except BaseException:
            left.set()
            raise
        if failures:
            raise failures.pop()


class Adapter(HTTPAdapter):
    """Requests' adapter with a look at every new connection, and with the system's certificates."""

    def __init__(
        self,
        connections: Connections,
        seconds: float,
        check: Look,
    ) -> None:
        self._connections = connections
        self._seconds = seconds
        self._check = check
        super().__init__(pool_connections=16, pool_maxsize=CONNECTIONS_KEPT, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pool of direct connections."""
        super().init_poolmanager(*args, **kwargs)
        pools = self.poolmanager.pool_classes_by_scheme
        self.poolmanager.pool_classes_by_scheme = self._watched(pools, self._check)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """Give the pool of connections to a proxy; where these lead is not checked, as their peer is the proxy."""
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not known:
            pools = manager.pool_classes_by_scheme
            manager.pool_classes_by_scheme = self._watched(pools)
        return manager

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        """Take the context for TLS from ``verify``; connections of another context are others."""
        host, pool = super().build_connection_pool_key_attributes(request, True, cert)
        if verify is not None:
            pool.update({"ssl_context": verify, "cert_reqs": verify.verify_mode})
        return host, pool

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Leave certifi's bundle out: the context has what is believed."""

    def _watched(
        self, pools: Mapping[str, type[HTTPConnectionPool]], *checks: Look
    ) -> dict[str, type[HTTPConnectionPool]]:
        """Make urllib3's pools anew, of connections each of which is looked at once it is there."""
        looks = (self._connections.watch, *checks)
        return {
            scheme: _watched_pool(pool, self._connections, self._seconds, looks)
            for scheme, pool in pools.items()
        }


def _watched_pool(
    base: Any, connections: Connections, seconds: float, looks: Sequence[Look]
) -> type[HTTPConnectionPool]:
    class Connection(SendingConnection, base.ConnectionCls):  # type: ignore[misc]
        response_class = PacedResponse
        silence = seconds

        def _new_conn(self) -> socket.socket:
            sock: socket.socket = super()._new_conn()
            self.sock = sock
            try:
                for look in looks:
                    look(self)
            except BaseException:
                self.close()
                raise
            return sock

        def connect(self) -> None:
            connections.make(super().connect, self.close)
            self.is_verified = True  # as far as was asked for: urllib3 would warn, which is done already

    class Pool(base):  # type: ignore[misc]
        ConnectionCls = Connection

    return Pool

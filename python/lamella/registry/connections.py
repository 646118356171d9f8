"""The connections of a transport: each is looked at once it is there, and its answers come at a pace."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from lamella.registry.pace import PacedResponse
from lamella.registry.sending import SendingConnection

CONNECTIONS_KEPT = 64
"""Idle connections to one host that are kept for the next requests; more than are ever used at once."""


class Adapter(HTTPAdapter):
    """Requests' adapter with a look at every new connection, and with the system's certificates."""

    def __init__(
        self,
        seconds: float,
        watch: Callable[[HTTPConnection], None],
        check: Callable[[HTTPConnection], None],
    ) -> None:
        self._seconds = seconds
        self._watch = watch
        self._check = check
        super().__init__(pool_connections=16, pool_maxsize=CONNECTIONS_KEPT, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pool of direct connections."""
        super().init_poolmanager(*args, **kwargs)
        pools = self.poolmanager.pool_classes_by_scheme
        self.poolmanager.pool_classes_by_scheme = _watched(pools, self._seconds, self._watch, self._check)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """Give the pool of connections to a proxy; where these lead is not checked, as their peer is the proxy."""
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not known:
            pools = manager.pool_classes_by_scheme
            manager.pool_classes_by_scheme = _watched(pools, self._seconds, self._watch)
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
    pools: Mapping[str, type[HTTPConnectionPool]], seconds: float, *looks: Callable[[HTTPConnection], None]
) -> dict[str, type[HTTPConnectionPool]]:
    """Make urllib3's pools anew, of connections each of which is looked at once it is there."""
    return {scheme: _watched_pool(pool, seconds, looks) for scheme, pool in pools.items()}


def _watched_pool(
    base: Any, seconds: float, looks: Sequence[Callable[[HTTPConnection], None]]
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
            super().connect()
            self.is_verified = True  # as far as was asked for: urllib3 would warn, which is done already

    class Pool(base):  # type: ignore[misc]
        ConnectionCls = Connection

    return Pool

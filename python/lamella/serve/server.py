"""The server: a socket, and the services behind it.

On disk::

    <address>         the socket, 0660, or 0600 of a user who names no group; by default <state>/containerd.sock
    <address>.lock    flock: held by the one server that listens there

The socket appears by rename when it listens, over one that a killed server left. Its folder is made, if it has to be, for others
to pass through (0711). Its owner, its group and root may connect: the mode says so, and each connection is asked for its
credentials besides. A listening socket that another program made, such as systemd, stays where it is.
"""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from lamella.client import Client
from lamella.disk import make_state_folder, translated
from lamella.errors import FailedPrecondition, InvalidArgument, Unavailable
from lamella.locks import FileLock
from lamella.serve import service
from lamella.serve.resumption import Resumption
from lamella.serve.transport import Transport

SOCKET_NAME = "containerd.sock"
PATH_MAX = 107
"""Bytes of a socket's path (unix(7))."""
BACKLOG = 1024


class Server:
    """Serve a store from :meth:`start` to :meth:`stop`; as a context manager, while the block lasts.

    ``root``, ``state`` and ``snapshotter`` are those of :class:`lamella.Client`; ``client``: one to use instead,
    which stays open. ``address``: the path of the socket. ``uid``, ``gid``: whose it is; None: the caller's,
    and of a user who is not root it is not the group's then.
    ``backend``: for a containerd that has this as its snapshotter and content store, and itself decides what is kept: blobs,
    views and committed snapshots that are made over the socket are roots of garbage collection (``containerd.io/gc.root``),
    all in the client's namespace. Its name for the snapshotter is any: what is not one of ours means the client's.
    ``listener``: a listening Unix socket to use instead, which is closed at the end.

    Errors of starting: InvalidArgument for an address that is no path, Unavailable when another server listens there.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
        *,
        address: str | os.PathLike[str] | None = None,
        uid: int | None = None,
        gid: int | None = None,
        listener: socket.socket | None = None,
        snapshotter: str | None = None,
        backend: bool = False,
        client: Client | None = None,
    ) -> None:
        self.backend = backend
        if listener is not None:
            address = os.fsdecode(listener.getsockname())
        given = _path(address) if address else None
        self._owned = client is None
        self.client = client or Client(root, state, snapshotter=snapshotter)
        self.address = given or self.client.config.state / SOCKET_NAME
        self._owner = (-1 if uid is None else uid, -1 if gid is None else gid)
        self._has_group = gid is not None or os.geteuid() == 0
        self._clients: dict[str, Client] = {}
        self._lock: FileLock | None = None
        self._listener = listener
        self._transport: Transport | None = None
        self._resumption: Resumption | None = None
        self._stopped = threading.Event()
        self.services = service.services(self)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def client_of(self, namespace: str | None) -> Client:
        """Give the store as that namespace sees it. FailedPrecondition without one, InvalidArgument for a malformed one.

        A backend has one namespace, its client's: the containerd before it keeps namespaces itself, and names none when it
        collects what no longer belongs to any of them.
        """
        if self.backend:
            return self.client
        if not namespace:
            raise FailedPrecondition("namespace is required")
        client = self._clients.get(namespace)
        if client is None:
            client = self.client.using(namespace=namespace)
            if len(self._clients) < 1000:  # names that nobody uses are not kept for ever
                client = self._clients.setdefault(namespace, client)
        return client

    def start(self) -> None:
        """Listen. Once."""
        try:
            listener = self._listener or self._listen()
            with translated(f"serve {self.address}"), listener:
                owner = self.address.stat()
                transport = Transport(
                    service.methods(self.services), self.client_of, self.client.database.metrics
                )
                groups = [owner.st_gid] if owner.st_mode & stat.S_IWGRP else []
                transport.start(listener, uids=[owner.st_uid], gids=groups)
            self._transport = transport
            if not self.backend:
                self._resumption = Resumption(self.client, self.client_of)
        except BaseException:
            self.stop(0.0)
            raise

    def _listen(self) -> socket.socket:
        if not self.address.parent.is_dir():
            make_state_folder(self.address.parent)
        lock = FileLock(Path(f"{self.address}.lock"), what=f"the address {self.address}", transient=True)
        if not lock.try_acquire():
            raise Unavailable(
                f"another server listens on {self.address}",
                hint="Choose another --address: several servers may use one store.",
            )
        self._lock = lock
        listener = socket.socket(socket.AF_UNIX)
        with (
            translated(f"listen on {self.address}"),
            tempfile.TemporaryDirectory(prefix=".", dir=self.address.parent) as folder,
        ):
            fresh = Path(folder, "s")
            with _descriptor_of(folder) as place:  # whose path is short, whatever the folder's is
                listener.bind(f"/proc/self/fd/{place}/s")
            os.chown(fresh, *self._owner)
            # The group of an ordinary user may be that of all users of a machine.
            fresh.chmod(0o660 if self._has_group else 0o600)
            listener.listen(BACKLOG)
            fresh.rename(self.address)
        return listener

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it was stopped, at most ``timeout`` seconds; tell whether it was."""
        return self._stopped.wait(timeout)

    def stop(self, grace: float = 5.0) -> None:
        """Take no more calls, and give those under way ``grace`` seconds; containers go on. Harmless twice."""
        transport, self._transport = self._transport, None
        if transport is not None:
            if self._lock is not None:
                self.address.unlink(missing_ok=True)
            transport.stop(grace)
        if self._resumption is not None:
            self._resumption.stop()
        if self._lock is not None:
            self._lock.release()
        if self._owned:
            self.client.close()
        self._stopped.set()


@contextmanager
def _descriptor_of(folder: str) -> Iterator[int]:
    """Open a folder to go through it."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _path(address: str | os.PathLike[str]) -> Path:
    text = os.fspath(address)
    path = text.removeprefix("unix://")
    if not path or path.startswith("@") or "\0" in path or "://" in path:
        raise InvalidArgument(
            f"the address {text!r} is not the path of a socket",
            hint="An abstract one has no owner and no mode, so that anybody could connect.",
        )
    whole = Path(path).absolute()
    if len(os.fsencode(whole)) > PATH_MAX:
        raise InvalidArgument(f"the address {str(whole)!r} has more than {PATH_MAX} bytes")
    return whole

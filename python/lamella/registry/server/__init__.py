"""A registry in this process: the OCI distribution spec 1.1, pull and push, over HTTP and HTTPS.

For demos, tests and embedders, on a folder of its own::

    with RegistryServer() as server:
        layer = server.push_blob("team/app", data)
        ...
        client.images.pull(f"{server.address}/team/app:latest")

and over the content store, so that one machine serves its images to the next (``lamella registry serve``)::

    with RegistryServer(client=client, host="0.0.0.0", port=5000, read_only=True) as server:
        ...

:mod:`~lamella.registry.server.http` reads requests, :mod:`~lamella.registry.server.api` answers them out of a storage
(:mod:`~lamella.registry.server.storage`), :mod:`~lamella.registry.server.access` says who may.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import tempfile
import threading
from collections import deque
from pathlib import Path

import msgspec

from lamella import oci
from lamella.registry.server.access import Access, Guard, basic_auth, htpasswd
from lamella.registry.server.api import ApiServer, Handler, Recorded
from lamella.registry.server.folder import FolderStorage
from lamella.registry.server.http import CONNECTIONS_MAX
from lamella.registry.server.storage import Storage, put_blob
from lamella.structs import to_builtins
from lamella.typings import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.client import Client

__all__ = ["Access", "Guard", "Recorded", "RegistryServer", "basic_auth", "htpasswd"]

REQUESTS_KEPT = 10_000
_HOST = r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?"


class RegistryServer:
    """Serves one storage; a context manager.

    ``client``: serve the images of its namespace; ``name`` is the registry in their names, ``HOST:PORT``, the address by
    default, or this machine's name if it listens on all addresses (:mod:`lamella.registry.server.store`). Else ``root``:
    where to keep the content, a temporary folder that :meth:`close` removes for None. ``port`` 0: any free one, see
    :attr:`address`. ``auth``: who may do what, everybody everything for None. ``read_only``: refuse pushes. ``sparse``:
    take manifests whose config or layers are not here, as a registry may (distribution spec, "Pushing Manifests").
    ``tls``: speak HTTPS alone. ``connections``: how many at a time.

    Errors: OSError when the address cannot be listened on, InvalidArgument for a ``name`` that no registry has.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        client: Client | None = None,
        name: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        auth: Guard | None = None,
        read_only: bool = False,
        sparse: bool = False,
        tls: ssl.SSLContext | None = None,
        connections: int = CONNECTIONS_MAX,
    ) -> None:
        self.auth = auth
        self.read_only = read_only
        self.requests: deque[Recorded] = deque(maxlen=REQUESTS_KEPT)
        self.metrics = client.database.metrics if client is not None else None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._server = ApiServer((host, port), Handler, tls=tls, connections=connections)
        self._server.registry = self
        self.name = name or self._public_name()
        try:
            self.storage = self._open_storage(root, client, sparse)
        except BaseException:
            self._server.server_close()
            self._clean()
            raise
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="lamella-registry"
        )
        self._thread.start()

    def _open_storage(self, root: Path | None, client: Client | None, sparse: bool) -> Storage:
        if client is not None:
            from lamella.registry.server.store import StoreStorage

            return StoreStorage(client, self.name, sparse=sparse)
        if root is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="lamella-registry-")
            root = Path(self._temporary.name)
        return FolderStorage(root, sparse=sparse)

    def __enter__(self) -> RegistryServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RegistryServer({self.address})"

    @property
    def address(self) -> str:
        """Give host and port as a reference names them."""
        host, port = self._server.server_address[:2]
        shown = str(host)
        return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"

    def _public_name(self) -> str:
        host, port = self._server.server_address[:2]
        if not ipaddress.ip_address(str(host)).is_unspecified:
            return self.address
        name = socket.gethostname().lower()
        return f"{name if re.fullmatch(_HOST, name) else 'localhost'}:{port}"

    def close(self, grace: float = 0.0) -> None:
        """Stop: end the connections, wait for their threads, remove a temporary root. Harmless twice.

        What is being answered may go on for ``grace`` seconds.
        """
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.socket.close()
        self._server.end(grace)
        self._server.server_close()
        self._clean()

    def _clean(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def push_blob(
        self, repository: str, data: bytes, media_type: str = "application/octet-stream"
    ) -> oci.Descriptor:
        """Store bytes as a blob of a repository and describe it. Harmless twice."""
        digest = put_blob(self.storage.repository(repository), data)
        return oci.Descriptor(media_type=media_type, digest=digest, size=len(data))

    def push_manifest(
        self,
        repository: str,
        tag: str | None,
        manifest: oci.Manifest | oci.Index | bytes,
        media_type: str | None = None,
    ) -> oci.Descriptor:
        """Store a manifest or an index, point ``tag`` at it and describe it. Harmless twice.

        ``media_type`` is taken from the document if it says it. Errors as those of a push.
        """
        if isinstance(manifest, bytes):
            data = manifest
        else:
            known = oci.OCI_INDEX if isinstance(manifest, oci.Index) else oci.OCI_MANIFEST
            media_type = media_type or manifest.media_type or known
            document = {"schemaVersion": 2, "mediaType": media_type, **to_builtins(manifest)}
            document["mediaType"] = media_type
            data = msgspec.json.encode({key: value for key, value in document.items() if value is not None})
        stored = (
            self.storage.repository(repository)
            .put_manifest(data, media_type, tags=[tag] if tag else [])
            .manifest
        )
        return oci.Descriptor(media_type=stored.media_type, digest=stored.digest, size=len(data))

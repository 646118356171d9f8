"""A running server of a fresh store, and calls to it by grpcio."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import daemons
import grpc
import pytest
from google.protobuf import message_factory

from lamella.serve import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lamella import Client

TIMEOUT = 30.0
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


class Stub:
    """One service as grpcio calls it: ``stub.Get(request, namespace="default", lease=None, timeout=30)``; ``later``: a future."""

    def __init__(self, channel: grpc.Channel, service: Any, namespace: str | None) -> None:
        self._channel, self._service, self._namespace = channel, service, namespace

    def __getattr__(self, name: str) -> Any:
        rpc = self._service.methods_by_name[name]
        kind = ("stream" if rpc.client_streaming else "unary", "stream" if rpc.server_streaming else "unary")
        invoke = getattr(self._channel, "_".join(kind))(
            f"/{self._service.full_name}/{name}",
            request_serializer=lambda each: each if isinstance(each, bytes) else each.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(rpc.output_type).FromString,
        )

        def call(
            request: Any,
            *,
            namespace: str | None = None,
            lease: str | None = None,
            timeout: float = TIMEOUT,
            later: bool = False,
        ) -> Any:
            headers = {"containerd-namespace": namespace or self._namespace, "containerd-lease": lease}
            metadata = [(key, value) for key, value in headers.items() if value]
            return (invoke.future if later else invoke)(request, metadata=metadata, timeout=timeout)

        return call


class Served:
    """A server, its store as the library sees it, and a channel to it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.address = str(server.address)
        self.channel = grpc.insecure_channel(f"unix:{self.address}", options=OPTIONS)

    @property
    def client(self) -> Client:
        """The store, from namespace ``default``."""
        return self.server.client_of("default")

    def stub(self, module: ModuleType, service: str, *, namespace: str | None = "default") -> Stub:
        """Give a service: ``served.stub(content_pb2, "Content").Info(request)``; None: without a namespace."""
        return Stub(self.channel, module.DESCRIPTOR.services_by_name[service], namespace)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A running server of a fresh store."""
    with (
        # Not in tmp_path, whose length may be too much for a socket's.
        tempfile.TemporaryDirectory(prefix="lamella-serve-") as folder,
        Server(root=tmp_path / "root", state=tmp_path / "state", address=Path(folder, "c.sock")) as server,
    ):
        made = Served(server)
        try:
            yield made
        finally:
            made.channel.close()


@pytest.fixture(scope="session")
def lamella_daemon(require_root: Callable[[], None]) -> Iterator[daemons.Daemon]:
    """``lamella serve`` as a process, for all tests that leave nothing in it."""
    require_root()
    with daemons.lamella_serve() as daemon:
        yield daemon


@pytest.fixture(scope="session")
def containerd_daemon(
    require_root: Callable[[], None], require_program: Callable[[str], str]
) -> Iterator[daemons.Daemon]:
    """The same of containerd 2.4."""
    require_root()
    require_program("runc")
    import new_containerd

    if not new_containerd.folder().is_dir():
        pytest.skip(f"needs containerd {new_containerd.VERSION}: tools/new_containerd.py builds it")
    with daemons.containerd() as daemon:
        yield daemon


@pytest.fixture(scope="session")
def daemon(request: pytest.FixtureRequest) -> daemons.Daemon:
    """One of the two, whose name is the parameter."""
    found: daemons.Daemon = request.getfixturevalue(f"{request.param}_daemon")
    return found


@pytest.fixture(scope="session")
def ctr_program(require_program: Callable[[str], str]) -> Callable[[str], Path]:
    """Give where containerd's client of a version is: 1.6, which is Debian's, or 2.4."""
    import new_containerd

    def find(version: str) -> Path:
        if version == "1.6":
            return Path(require_program("ctr"))
        program = new_containerd.folder() / "ctr"
        if not program.exists():
            pytest.skip(f"needs containerd {new_containerd.VERSION}: tools/new_containerd.py builds it")
        return program

    return find


@pytest.fixture(scope="session")
def nerdctl_program(require_program: Callable[[str], str]) -> Path:
    """Where nerdctl is; it is built where it is missing."""
    import containerd_contract

    program = containerd_contract.nerdctl()
    if not program.exists():
        require_program("go")
        containerd_contract.ensure_nerdctl()
    return program

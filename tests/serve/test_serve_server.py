"""The socket: whose it is, who else listens there, systemd, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf import descriptor_pb2

from lamella.errors import InvalidArgument, Unavailable
from lamella.metrics import table
from lamella.serve import Server
from lamella.serve.api import content_pb2, health_pb2, reflection_pb2, reflection_v1alpha_pb2
from lamella.serve.service import methods
from lamella.serve.status import Code
from rpc import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = "/containerd.services.version.v1.Version/Version"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder whose path is short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="lamella-serve-") as folder:
        yield Path(folder)


def version(address: Path) -> bytes:
    with grpc.insecure_channel(f"unix:{address}") as channel:
        return channel.unary_unary(VERSION)(b"", timeout=30, wait_for_ready=True)


def test_the_socket_is_for_its_owner_and_group(tmp_path, place) -> None:
    address = place / "new/c.sock"
    with Server(root=tmp_path / "root", state=tmp_path / "state", address=address, gid=os.getegid()):
        assert stat.S_IMODE(address.stat().st_mode) == 0o660
        assert stat.S_IMODE(address.parent.stat().st_mode) == 0o711
        assert b"lamella" in version(address)
    assert os.listdir(address.parent) == []


def test_the_socket_of_an_ordinary_user_is_not_for_the_group(tmp_path, place, monkeypatch) -> None:
    """Whose primary group may be that of all users of the machine."""
    address = place / "c.sock"
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() or 1000)
        server = Server(root=tmp_path / "root", state=tmp_path / "state", address=address)
    with server:
        assert stat.S_IMODE(address.stat().st_mode) == 0o600
        assert version(address)


@pytest.mark.needs_root
def test_the_socket_can_be_somebody_elses(tmp_path, place) -> None:
    address = place / "c.sock"
    with Server(root=tmp_path / "root", state=tmp_path / "state", address=address, uid=4001, gid=4002):
        assert (address.stat().st_uid, address.stat().st_gid) == (4001, 4002)


def test_a_socket_that_a_killed_server_left_is_replaced(tmp_path, place) -> None:
    address = place / "c.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(address))
    with Server(root=tmp_path / "root", state=tmp_path / "state", address=address):
        assert version(address)


def test_a_second_server_needs_an_address_of_its_own(tmp_path, place) -> None:
    where = {"root": tmp_path / "root", "state": tmp_path / "state"}
    with Server(**where, address=place / "a.sock") as first:
        with (
            pytest.raises(Unavailable, match="another server listens"),
            Server(**where, address=place / "a.sock"),
        ):
            pass
        assert version(first.address), "the refusal leaves the first alone"
        with Server(**where, address=place / "b.sock") as second:
            first.client.namespaces.create("n")
            assert [each.name for each in second.client.namespaces.list()] == ["n"]
    with Server(**where, address=place / "a.sock") as again:
        assert version(again.address)


@pytest.mark.parametrize(
    "address", ["@abstract", "unix://@abstract", "tcp://0.0.0.0:1", "a\0b", "/" + "x" * 200]
)
def test_an_address_that_is_no_path_is_refused(tmp_path, address) -> None:
    with pytest.raises(InvalidArgument, match="address"):
        Server(root=tmp_path / "root", state=tmp_path / "state", address=address)


def command(tmp_path: Path, *words: str) -> list[str]:
    where = ["--root", str(tmp_path / "root"), "--state", str(tmp_path / "state"), "--json"]
    return [sys.executable, "-m", "lamella", *where, "serve", *words]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_and_takes_the_socket_away(tmp_path, place, number) -> None:
    address = place / "c.sock"
    with subprocess.Popen(command(tmp_path, "--address", str(address)), stdout=subprocess.PIPE) as server:
        try:
            text = b"".join(iter(server.stdout.readline, b"}\n"))
            assert json.loads(text + b"}") == {"address": str(address)}
            assert version(address)
            server.send_signal(number)
            assert server.wait(30) == 0
        finally:
            server.kill()
    assert not address.exists()


def test_systemd_passes_a_socket_and_is_told(tmp_path, place) -> None:
    address = place / "c.sock"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        manager.bind(str(place / "notify"))
        manager.settimeout(30)
        listener.bind(str(address))
        listener.listen()
        words = command(tmp_path)
        # As systemd does it: the socket is descriptor 3, and the variable names the process.
        script = (
            f"import os; os.dup2({listener.fileno()}, 3); os.environ['LISTEN_PID'] = str(os.getpid()); "
            f"os.execv({words[0]!r}, {words!r})"
        )
        environment = os.environ | {"LISTEN_FDS": "1", "NOTIFY_SOCKET": str(place / "notify")}
        with subprocess.Popen(
            [sys.executable, "-c", script],
            pass_fds=[listener.fileno()],
            env=environment,
            stdout=subprocess.DEVNULL,
        ) as server:
            try:
                assert manager.recv(100) == b"READY=1"
                assert version(address)
                server.terminate()
                assert manager.recv(100) == b"STOPPING=1"
                assert server.wait(30) == 0
            finally:
                server.kill()
        assert address.exists(), "the socket is systemd's"


def test_health_is_told(served) -> None:
    health = served.stub(health_pb2, "Health", namespace=None)
    for name in ("", "containerd.services.version.v1.Version"):
        assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == 1
    assert "grpc.health.v1.Health" in health.List(health_pb2.HealthListRequest()).statuses
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="nothing"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
    assert next(watch).status == 1
    watch.cancel()


@pytest.mark.parametrize("messages", [reflection_pb2, reflection_v1alpha_pb2], ids=["v1", "v1alpha"])
def test_reflection_tells_services_and_their_files(served, messages) -> None:
    reflection = served.stub(messages, "ServerReflection", namespace=None)
    request = messages.ServerReflectionRequest
    asked = [
        request(list_services=""),
        request(file_containing_symbol="containerd.services.namespaces.v1.Namespaces"),
        request(file_containing_symbol="no.such.Thing"),
        request(),
        request(file_by_filename="google/protobuf/empty.proto"),
    ]
    services, file, missing, nothing, empty = reflection.ServerReflectionInfo(iter(asked))
    names = [each.name for each in services.list_services_response.service]
    assert "containerd.services.version.v1.Version" in names
    files = file.file_descriptor_response.file_descriptor_proto
    found = [descriptor_pb2.FileDescriptorProto.FromString(each).name for each in files]
    assert {"lamella/serve/api/namespaces.proto", "google/protobuf/empty.proto"} <= set(found)
    assert missing.error_response.error_code == 5
    assert nothing.error_response.error_code == 3
    assert len(empty.file_descriptor_response.file_descriptor_proto) == 1


def test_calls_are_counted_by_method_and_code(served) -> None:
    digest = f"sha256:{'0' * 64}"
    content = served.stub(content_pb2, "Content")
    for _ in range(2):
        assert refusal(content.Info, content_pb2.InfoRequest(digest=digest)) is grpc.StatusCode.NOT_FOUND
    assert list(content.List(content_pb2.ListContentRequest())) == []
    with pytest.raises(grpc.RpcError):
        served.channel.unary_unary("/containerd.services.version.v1.Version/Nothing")(b"", timeout=30)
    metrics = {metric.name: metric.samples for metric in served.client.metrics()}
    counts = {tuple(each.labels.values()): each.value for each in metrics["lamella_serve_requests_total"]}
    service = "containerd.services.content.v1.Content"
    assert counts == {(f"{service}/Info", "NOT_FOUND"): 2, (f"{service}/List", "OK"): 1}
    durations = {each.labels["method"]: each for each in metrics["lamella_serve_request_duration_seconds"]}
    assert {name: each.count for name, each in durations.items()} == {
        f"{service}/Info": 2,
        f"{service}/List": 1,
    }
    assert all(each.sum > 0 and each.buckets[-1].count == each.count for each in durations.values())


def test_what_waits_for_the_end_of_a_process_is_not_waited_for(served) -> None:
    waiting = [path for path, method in methods(served.server.services).items() if method.waits]
    assert waiting == ["/containerd.services.tasks.v1.Tasks/Wait"]


def test_the_table_of_metrics_has_every_method_and_code(served) -> None:
    assert {path.removeprefix("/") for path in methods(served.server.services)} == set(table.RPCS)
    assert [code.name for code in Code] == list(table.CODES)
    assert [code.value for code in Code] == list(range(len(table.CODES)))


@pytest.mark.parametrize("verbose", [[], ["-v"], ["-vv"]])
def test_debug_logs_a_line_a_call(tmp_path, place, verbose) -> None:
    address = place / "c.sock"
    words = command(tmp_path, *(["--debug"] if len(verbose) < 2 else []), "--address", str(address))
    at = words.index("serve")
    with subprocess.Popen(
        [*words[:at], *verbose, *words[at:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout.readline()
            version(address)
            with grpc.insecure_channel(f"unix:{address}") as channel, pytest.raises(grpc.RpcError):
                channel.unary_unary("/no.such/Call")(
                    b"", metadata=[("containerd-namespace", "one")], timeout=30
                )
            server.send_signal(signal.SIGTERM)
            _, logged = server.communicate(timeout=30)
        finally:
            server.kill()
    lines = [
        line.partition("lamella.serve: ")[2] for line in logged.splitlines() if " lamella.serve: " in line
    ]
    assert [re.sub(r"\d+\.\d ms", "0.0 ms", line) for line in lines] == [
        f"{VERSION}, namespace -: OK after 0.0 ms",
        "/no.such/Call, namespace one: UNIMPLEMENTED after 0.0 ms",
    ]

"""The transport alone: functions in Python behind HTTP/2, called by grpcio."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from inventory import thread_names
from lamella import _core
from lamella.serve.api.content_pb2 import ReadContentResponse
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

CODES = grpc.StatusCode
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


class Refused(Exception):
    code = 5
    message = "there is no ä in 100%\n"


class Echo:
    """A talk that answers with what it is sent."""

    def __init__(self, stream: Any, log: list[str]) -> None:
        self.stream, self.log, self.ended = stream, log, False

    def begin(self) -> list[bytes]:
        return [b"hello"]

    def receive(self, body: bytes) -> list[bytes]:
        if body == b"raise":
            raise Refused
        if body == b"push":
            assert self.stream.send(b"pushed")
            return []
        if body == b"finish":
            self.stream.finish()
            return []
        return [body]

    def half_close(self) -> list[bytes]:
        self.log.append("half-closed")
        self.ended = True
        return [b"goodbye"]

    def close(self) -> None:
        self.log.append("closed")


class Pour(Echo):
    """A talk that expects ``head`` and then bytes as field 6, which go to a file; it answers with what it got, and the digest."""

    def __init__(self, stream: Any, log: list[str], path: Path) -> None:
        super().__init__(stream, log)
        self.appender = _core.Appender(str(path))

    def begin(self) -> list[bytes]:
        self.stream.expect(HEAD, 6, 900_000, self.appender)
        return []

    def receive(self, body: bytes) -> list[bytes]:
        poured = self.appender.poured()
        self.begin()
        return [f"{len(body)} {poured} {self.appender.offset} {self.appender.digest()}".encode()]

    def close(self) -> None:
        self.appender.close()
        super().close()


HEAD = b"\x08\x01\x28\x07"


def bulky(data: bytes, head: bytes = HEAD, after: bytes = b"") -> bytes:
    """Give an encoded message of ``head``, field 6, and what comes after it."""
    size, digits = len(data), b""
    while size >= 0x80:
        digits, size = digits + bytes([size & 0x7F | 0x80]), size >> 7
    return head + b"\x32" + digits + bytes([size]) + data + after


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """Give a frame of HTTP/2."""
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def opening(path: str, **pseudo: str) -> bytes:
    """Give how a client opens a connection, with the headers of one call: without Huffman codes, as gRPC's C core does it."""
    fields = {"method": "POST", "scheme": "http", "path": path} | pseudo
    named = {f":{name}": value for name, value in fields.items()} | {"content-type": "application/grpc"}
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in named.items()
    )
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, block)


class Bench:
    """A transport with functions to try, and a channel to it."""

    def __init__(self, folder: Path, **access: list[int]) -> None:
        self.log: list[str] = []
        self.wait = threading.Event()
        self.waiting = threading.Event()
        self.path = str(folder / "s")
        self.transport = _core.Transport(
            [
                ("/t.T/Echo", "unary", lambda body, stream: body),
                ("/t.T/Raise", "unary", self._raise),
                ("/t.T/Defect", "unary", lambda body, stream: 1 / 0),
                ("/t.T/Headers", "unary", lambda body, stream: repr((stream.headers, stream.peer)).encode()),
                ("/t.T/Wait", "unary", self._wait),
                ("/t.T/WaitLong", "waiting", self._wait),
                ("/t.T/Pour", "talk", lambda stream: Pour(stream, self.log, folder / "poured")),
                ("/t.T/Count", "responses", self._count),
                ("/t.T/File", "responses", self._file),
                ("/t.T/Talk", "talk", lambda stream: Echo(stream, self.log)),
            ],
            threads=64,
            message_max=1 << 20,
        )
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen()
            self.transport.start(
                listener.fileno(), uids=access.get("uids", [os.getuid()]), gids=access.get("gids", [])
            )
        self.channel = grpc.insecure_channel(f"unix:{self.path}", options=OPTIONS)

    def unary(self, name: str, body: bytes = b"", timeout: float | None = 30.0) -> bytes:
        return self.channel.unary_unary(f"/t.T/{name}")(body, timeout=timeout)

    def code(self, name: str, body: bytes = b"", timeout: float | None = 30.0) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as caught:
            self.unary(name, body, timeout)
        return caught.value.code()

    def talk(self, requests: Iterator[bytes]) -> Any:
        return self.channel.stream_stream("/t.T/Talk")(requests, timeout=60)

    def _raise(self, body: bytes, stream: Any) -> bytes:
        raise Refused

    def _wait(self, body: bytes, stream: Any) -> bytes:
        stream.on_cancel(lambda: (self.log.append("cancelled"), self.wait.set()))
        self.waiting.set()
        assert self.wait.wait(30)
        return body

    def _count(self, body: bytes, stream: Any) -> Iterator[bytes]:
        try:
            for number in range(int(body)):
                yield b"%d" % number + bytes(1000)
        finally:
            self.log.append("closed")

    def _file(self, body: bytes, stream: Any) -> Iterator[tuple[int, int, int]]:
        path, offset, size = body.decode().split()
        with Path(path).open("rb") as file:
            yield file.fileno(), int(offset), int(size)


@contextmanager
def running(**access: list[int]) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="lamella-serve-") as folder:
        bench = Bench(Path(folder), **access)
        try:
            yield bench
        finally:
            bench.wait.set()
            bench.channel.close()
            bench.transport.stop(10.0)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with running() as made:
        yield made


@pytest.mark.parametrize("size", [0, 1, 16384, 1 << 20])
def test_a_body_comes_back_whole(bench, size) -> None:
    body = os.urandom(size)
    assert bench.unary("Echo", body) == body


def test_a_message_beyond_the_limit_is_refused(bench) -> None:
    assert bench.code("Echo", bytes((1 << 20) + 1)) is CODES.RESOURCE_EXHAUSTED
    assert bench.unary("Echo", b"next") == b"next"


def test_an_error_is_told_with_its_code_and_text(bench) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        bench.unary("Raise")
    assert (caught.value.code(), caught.value.details()) == (CODES.NOT_FOUND, Refused.message)
    assert bench.code("Defect") is CODES.INTERNAL


def test_an_unknown_method_is_named(bench) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        bench.unary("Nothing")
    assert caught.value.code() is CODES.UNIMPLEMENTED
    assert caught.value.details() == "unknown method Nothing for service t.T"


def test_headers_and_the_peer_are_known(bench) -> None:
    call = bench.channel.unary_unary("/t.T/Headers")
    text = call(b"", metadata=[("containerd-namespace", "first"), ("containerd-namespace", "second")])
    headers, peer = eval(text)
    assert headers["containerd-namespace"] == "first"
    assert peer == (os.getpid(), os.getuid(), os.getgid())


def test_a_deadline_ends_the_call_and_tells_its_function(bench) -> None:
    assert bench.unary("Echo", b"here") == b"here"
    for timeout in (0.3, 3.0, 30.0):  # a short one may pass before the call leaves its client
        assert bench.code("Wait", timeout=timeout) is CODES.DEADLINE_EXCEEDED
        if bench.wait.wait(20):
            break
    assert bench.log == ["cancelled"]


def test_a_call_that_its_client_gives_up_tells_its_function(bench) -> None:
    future = bench.channel.unary_unary("/t.T/Wait").future(b"")
    assert bench.waiting.wait(60)
    future.cancel()
    assert bench.wait.wait(60)


def test_a_client_that_goes_without_a_word_is_noticed(bench) -> None:
    script = f"import grpc; grpc.insecure_channel('unix:{bench.path}', options={OPTIONS!r}).unary_unary('/t.T/Wait')(b'')"
    with subprocess.Popen([sys.executable, "-c", script]) as client:
        assert bench.waiting.wait(30)
        client.kill()
    assert bench.wait.wait(60)


def test_responses_are_streamed_as_they_are_read(bench) -> None:
    received = list(bench.channel.unary_stream("/t.T/Count")(b"1000"))
    assert [int(each.rstrip(b"\0")) for each in received] == list(range(1000))
    assert bench.log == ["closed"]


def test_a_stream_whose_reader_goes_is_closed(bench) -> None:
    stream = bench.channel.unary_stream("/t.T/Count")(b"1000000000")
    next(stream)
    stream.cancel()
    until(lambda: bench.log == ["closed"])


def test_bytes_of_a_file_come_with_their_offsets(bench, tmp_path) -> None:
    content = os.urandom((5 << 20) + 17)
    file = tmp_path / "blob"
    file.write_bytes(content)
    for offset, size in ((0, len(content)), (3, 4 << 20), (len(content) - 1, 1), (7, 0)):
        pieces = [
            ReadContentResponse.FromString(each)
            for each in bench.channel.unary_stream("/t.T/File")(f"{file} {offset} {size}".encode())
        ]
        assert b"".join(piece.data for piece in pieces) == content[offset : offset + size]
        at = offset
        for piece in pieces:
            assert piece.offset == at
            at += len(piece.data)
    with pytest.raises(grpc.RpcError) as caught:
        list(bench.channel.unary_stream("/t.T/File")(f"{file} 0 {len(content) + 1}".encode()))
    assert caught.value.code() is CODES.DATA_LOSS


def test_a_talk_answers_each_message_and_the_last_word(bench) -> None:
    stream = bench.talk(iter([b"one", b"two", b"push"]))
    assert list(stream) == [b"hello", b"one", b"two", b"pushed", b"goodbye"]
    until(lambda: bench.log == ["half-closed", "closed"])


def test_a_talk_is_ended_by_an_error_and_by_finish(bench) -> None:
    more = threading.Event()

    def requests(last: bytes) -> Iterator[bytes]:
        yield last
        more.wait(30)  # the client has not said its last word

    stream = bench.talk(requests(b"raise"))
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    assert caught.value.code() is CODES.NOT_FOUND
    assert list(bench.talk(requests(b"finish"))) == [b"hello"]
    more.set()
    until(lambda: bench.log == ["closed", "closed"])


def test_expected_bytes_go_to_a_file_and_all_else_comes_as_a_message(bench) -> None:
    def answers(*messages: bytes) -> list[str]:
        talk = bench.channel.stream_stream("/t.T/Pour")(iter(messages), timeout=60)
        return [each.decode() for each in talk][:-1]

    first, second = os.urandom(700_000), os.urandom(40_000)

    def digest(data: bytes) -> str:
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    # The message that is poured comes without its bytes; small and large ones may follow each other in one stream.
    assert answers(bulky(first), b"x", bulky(second), bulky(b"small")) == [
        f"4 700000 700000 {digest(first)}",
        f"1 0 700000 {digest(first)}",
        f"4 40000 740000 {digest(first + second)}",
        f"11 0 740000 {digest(first + second)}",
    ]
    for other in (
        bulky(second, b"\x08\x02\x28\x07"),
        bulky(second, after=b"\x3a\x00"),
        bulky(second, b""),
        bulky(bytes(900_001)),
    ):
        (answer,) = answers(other)
        assert answer.startswith(f"{len(other)} 0 740000 ")


def test_bytes_that_a_client_does_not_finish_are_kept_as_far_as_they_came(bench) -> None:
    message = bulky(bytes(600_000))
    said = len(message).to_bytes(5, "big") + message[:300_000]
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(bench.path)
        peer.sendall(opening("/t.T/Pour"))
        assert peer.recv(9)[3] == 4
        peer.sendall(frame(4, 1, 0, b""))  # its settings hold: windows of more than 64 KiB
        for at in range(0, len(said), 16384):
            peer.sendall(frame(0, 0, 1, said[at : at + 16384]))
        poured = Path(bench.path).parent / "poured"
        until(lambda: poured.exists() and poured.stat().st_size >= 200_000)
    until(lambda: bench.log == ["closed"])
    assert poured.read_bytes() == bytes(poured.stat().st_size)
    assert bench.unary("Echo", b"next") == b"next"


@pytest.mark.parametrize(
    "authority", ["localhost", "run%2Flamella%2Fc.sock", "/run/lamella/c.sock", "[::1]:80"]
)
def test_a_request_may_name_the_socket_as_its_host(bench, authority) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(30)
        peer.connect(bench.path)
        peer.sendall(opening("/t.T/Echo", authority=authority))
        for part in (b"\0\0\0\0\5", b"hello"):
            peer.sendall(frame(0, part == b"hello", 1, part))
        answer = b""
        while b"grpc-status" not in answer and b"hello" not in answer:
            received = peer.recv(1000)
            assert received
            answer += received
        assert b"\0\0\0\0\5hello" in answer


def test_thousands_of_silent_talks_take_no_threads(bench) -> None:
    done = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"x"
        done.wait(60)

    # Channels with connections of their own.
    channels = [
        grpc.insecure_channel(f"unix:{bench.path}", options=[*OPTIONS, ("grpc.use_local_subchannel_pool", 1)])
        for _ in range(2)
    ]
    # grpcio's client has a thread for each stream it writes; a hundred of those say enough here, and Go's client does thousands.
    streams = [channels[i % 2].stream_stream("/t.T/Talk")(requests()) for i in range(200)]
    for stream in streams:
        assert next(stream) == b"hello"
        assert next(stream) == b"x"
    # Up to the 64 of the pool while they all began; one that was held would be missing from the 65th on.
    assert thread_names().count("serve") <= 64
    done.set()
    for stream in streams:
        assert list(stream) == [b"goodbye"]
    for channel in channels:
        channel.close()


def test_stopping_ends_streams_and_lets_calls_finish(bench) -> None:
    release = threading.Event()

    def requests() -> Iterator[bytes]:
        release.wait(60)
        yield b"never"

    talk = bench.talk(requests())
    assert next(talk) == b"hello"
    call = bench.channel.unary_unary("/t.T/Wait").future(b"answer")
    assert bench.waiting.wait(60)
    stopping = threading.Thread(target=bench.transport.stop, args=(30.0,))
    stopping.start()
    with pytest.raises(grpc.RpcError) as caught:
        list(talk)
    assert caught.value.code() is CODES.UNAVAILABLE
    bench.wait.set()
    assert call.result(30) == b"answer"
    release.set()
    stopping.join(30)
    assert not stopping.is_alive()
    assert bench.log == ["closed"]


def test_stopping_ends_calls_that_wait_at_once(bench) -> None:
    call = bench.channel.unary_unary("/t.T/WaitLong").future(b"answer")
    assert bench.waiting.wait(60)
    begun = threading.Thread(target=bench.transport.stop, args=(3600.0,))
    begun.start()
    assert call.exception(30).code() is CODES.UNAVAILABLE
    begun.join(30)
    assert not begun.is_alive()
    assert bench.wait.wait(60)  # its handler was told


def test_stopping_cancels_calls_that_take_too_long(bench) -> None:
    call = bench.channel.unary_unary("/t.T/Wait").future(b"answer")
    assert bench.waiting.wait(60)
    bench.transport.stop(0.1)
    assert bench.wait.wait(60)
    assert call.exception(60).code() is CODES.UNAVAILABLE
    bench.transport.stop(0.1)


@pytest.mark.needs_root
def test_only_those_who_may_are_served() -> None:
    # A connection that is served is greeted with settings.
    script = (
        "import os, socket, sys\n"
        "os.setgroups([int(sys.argv[4])] if sys.argv[4] else [])\n"
        "os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[2]))\n"
        "peer = socket.socket(socket.AF_UNIX); peer.settimeout(30); peer.connect(sys.argv[1])\n"
        "try:\n"
        "    peer.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))\n"
        "    print('served' if peer.recv(9) else '')\n"
        "except ConnectionError:\n"
        "    pass\n"
    )
    with running(uids=[4001], gids=[4002]) as bench:
        Path(bench.path).chmod(0o666)  # so that the mode does not keep them out
        Path(bench.path).parent.chmod(0o711)

        def served(uid: int, gid: int, group: str = "") -> bool:
            ran = subprocess.run(
                [sys.executable, "-c", script, bench.path, str(uid), str(gid), group],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            return ran.stdout.strip() == "served"

        assert served(4001, 9)
        assert served(9, 4002)
        assert served(9, 9, "4002")
        assert served(0, 0)
        assert not served(9, 9, "9")


def test_garbage_ends_the_connection_and_nothing_else(bench) -> None:
    for garbage in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100),
        os.urandom(4096),
    ):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(bench.path)
            peer.sendall(garbage)
            time.sleep(0.05)
    assert bench.unary("Echo", b"still here") == b"still here"

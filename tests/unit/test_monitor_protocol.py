"""The caller's side of the monitor's socket, against a scripted monitor."""

import _thread
import os
import socket
import threading
import time

import pytest

from lamella.containers.monitor import (
    CONTROL,
    FRAME_MAX,
    STDERR,
    STDIN,
    STDOUT,
    Attached,
    Connection,
    OutputTimeout,
    encode_frame,
)
from lamella.errors import CommandNotFound, DeadlineExceeded, FailedPrecondition, Internal, NotFound
from lamella.structs import encode

EXIT = encode_frame(
    CONTROL, b'{"exit":{"exit_code":3,"signal":null,"exited_at":"2026-01-01T00:00:00Z","oom_killed":false}}'
)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Connection(ours), theirs


def test_output_comes_in_order_and_ends_with_the_exit(pair):
    connection, monitor = pair
    monitor.sendall(
        encode_frame(STDOUT, b"a") + encode_frame(STDERR, b"b") + encode_frame(STDOUT, b"c") + EXIT
    )
    attached = Attached(connection)
    assert list(attached) == [("stdout", b"a"), ("stderr", b"b"), ("stdout", b"c")]
    assert attached.exit.exit_code == 3


def test_frames_may_arrive_in_any_pieces(pair):
    connection, monitor = pair
    data = encode_frame(STDOUT, b"x" * 1000) + EXIT

    def drip():
        for byte in range(0, len(data), 7):
            monitor.sendall(data[byte : byte + 7])

    thread = threading.Thread(target=drip)
    thread.start()
    assert Attached(connection).communicate() == (b"x" * 1000, b"")
    thread.join()


def test_a_monitor_that_dies_is_an_error_not_an_exit_status(pair):
    connection, monitor = pair
    monitor.sendall(encode_frame(STDOUT, b"a"))
    monitor.close()
    with pytest.raises(FailedPrecondition, match="without an exit status"):
        Attached(connection).communicate()


def test_a_time_out_keeps_what_was_written(pair):
    connection, monitor = pair
    monitor.sendall(encode_frame(STDOUT, b"so far") + encode_frame(STDERR, b"oops"))
    with pytest.raises(OutputTimeout) as caught:
        Attached(connection).communicate(deadline=time.monotonic() + 0.05)
    assert (caught.value.stdout, caught.value.stderr) == (b"so far", b"oops")
    assert isinstance(caught.value, TimeoutError)


def test_stdin_is_fed_while_output_is_read(pair):
    connection, monitor = pair
    data = bytes(range(256)) * 20_000
    received = bytearray()

    def cat():
        peer = Connection(monitor)
        while (frame := peer.receive()) is not None:
            kind, payload = frame
            assert kind == STDIN
            if not payload:
                break
            received.extend(payload)
            peer.send(STDOUT, payload)
        monitor.sendall(EXIT)

    thread = threading.Thread(target=cat)
    thread.start()
    stdout, _ = Attached(connection).communicate(data)
    thread.join()
    assert bytes(received) == data == stdout


def test_a_container_that_reads_no_stdin_ends_all_the_same(pair):
    connection, monitor = pair
    monitor.sendall(EXIT)
    monitor.close()
    attached = Attached(connection)
    attached.communicate(b"x" * 10_000_000)
    assert attached.exit.exit_code == 3


def test_stdin_can_be_closed_when_the_container_has_ended(pair):
    connection, monitor = pair
    monitor.sendall(EXIT)
    monitor.close()
    attached = Attached(connection)
    attached.close_stdin()
    assert list(attached) == []
    assert attached.exit.exit_code == 3


def test_a_frame_beyond_the_protocols_limit_is_refused(pair):
    connection, monitor = pair
    monitor.sendall(bytes([STDOUT]) + (FRAME_MAX + 1).to_bytes(4, "little"))
    with pytest.raises(Internal):
        connection.receive()


def test_a_reported_failure_is_raised_as_its_own_class(pair):
    connection, monitor = pair
    monitor.sendall(
        encode_frame(
            CONTROL,
            encode({"error": {"kind": "CommandNotFound", "message": "no x", "hint": "h"}}),
        )
    )
    with pytest.raises(CommandNotFound, match="no x") as caught:
        connection.reply()
    assert caught.value.hint == "h"


@pytest.mark.parametrize("kind", ["Nonsense", "LamellaError.__init__", "annotations", "Exception"])
def test_a_failure_of_unknown_kind_is_internal(pair, kind):
    connection, monitor = pair
    monitor.sendall(encode_frame(CONTROL, encode({"error": {"kind": kind, "message": "m"}})))
    with pytest.raises(Internal):
        connection.reply()


def test_waiting_for_a_reply_keeps_its_deadline(pair):
    connection, _ = pair
    with pytest.raises(DeadlineExceeded):
        connection.reply(time.monotonic() + 0.02)


@pytest.mark.parametrize("wait", [lambda attached: next(iter(attached)), Attached.communicate])
def test_a_signal_that_comes_right_before_the_wait_is_noticed(pair, monkeypatch, wait):
    connection, monitor = pair
    monkeypatch.setattr("lamella.containers.monitor.LOOK", 0.05)
    noticed = threading.Event()
    in_time = []

    def interrupt():
        _thread.interrupt_main()  # which interrupts no system call
        in_time.append(noticed.wait(60))
        monitor.close()

    timer = threading.Timer(0.2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        wait(Attached(connection))
    noticed.set()
    timer.join()
    assert in_time == [True]


def test_connecting_to_no_task_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        Connection.open(tmp_path)
    with pytest.raises(NotFound):
        Connection.open(tmp_path / "absent")


def test_a_socket_in_a_deep_folder_is_reached(tmp_path):
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    server = socket.socket(socket.AF_UNIX)

    descriptor = os.open(folder, os.O_PATH)
    server.bind(f"/proc/self/fd/{descriptor}/control.sock")
    os.close(descriptor)
    server.listen()
    with server:
        Connection.open(folder).close()

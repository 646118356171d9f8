"""Streams are found by their ids, once, within their namespace."""

from __future__ import annotations

import threading
import time
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.empty_pb2 import Empty

from lamella.errors import Cancelled, DeadlineExceeded, InvalidArgument, NotFound, Unavailable
from lamella.serve.api import streaming_pb2, transfer_types_pb2
from lamella.serve.call import Call
from lamella.serve.messages import any_of
from lamella.serve.services import streaming
from rpc import refusal
from streams import ClientStream
from waiting import until

CODES = grpc.StatusCode
DATA = transfer_types_pb2.Data
WINDOW = transfer_types_pb2.WindowUpdate


def call_of(served: Any, namespace: str = "default") -> Call:
    return Call({"containerd-namespace": namespace}, served.server.client_of)


def service_of(served: Any) -> streaming.Streaming:
    return next(each for each in served.server.services if isinstance(each, streaming.Streaming))


def claim(served: Any, id: str, namespace: str = "default") -> streaming.OpenStream:
    return service_of(served).claim(call_of(served, namespace), id)


def test_a_stream_is_acknowledged_and_claimed_once(served: Any) -> None:
    stream = ClientStream(served, "one")
    assert stream.acknowledgement == any_of(Empty())
    claimed = claim(served, "one")
    stream.send(DATA(data=b"up"))
    assert claimed.receive(30) == any_of(DATA(data=b"up"))
    claimed.send(DATA(data=b"down"))
    assert stream.receive(DATA).data == b"down"
    with pytest.raises(NotFound):
        claim(served, "one")
    claimed.close()
    assert stream.rest(DATA) == []


def test_a_stream_belongs_to_its_namespace(served: Any) -> None:
    other = ClientStream(served, "one", namespace="other")
    with pytest.raises(NotFound):
        claim(served, "one")
    own = ClientStream(served, "one")
    claim(served, "one", "other").send(DATA(data=b"other"))
    claim(served, "one").send(DATA(data=b"own"))
    assert (own.receive(DATA).data, other.receive(DATA).data) == (b"own", b"other")


def test_an_id_is_open_once_and_free_after_the_end(served: Any) -> None:
    stream = ClientStream(served, "one")
    stub = served.stub(streaming_pb2, "Streaming")
    again = iter([any_of(streaming_pb2.StreamInit(id="one"))])
    assert refusal(stub.Stream, again) is CODES.ALREADY_EXISTS
    claim(served, "one").close()
    assert stream.rest(DATA) == []
    assert ClientStream(served, "one").acknowledgement == any_of(Empty())


def test_what_was_said_is_received_before_its_end_is(served: Any) -> None:
    stream = ClientStream(served, "one")
    claimed = claim(served, "one")
    stream.send(DATA(data=b"last"))
    stream.say_all()
    assert claimed.receive(30) is not None
    assert claimed.receive(30) is None
    claimed.send(DATA(data=b"still"))  # the client still listens
    assert stream.receive(DATA).data == b"still"


def test_a_client_that_goes_is_noticed(served: Any) -> None:
    stream = ClientStream(served, "one")
    claimed = claim(served, "one")
    stream.call.cancel()
    until(lambda: not service_of(served)._open)
    with pytest.raises(Unavailable):
        claimed.receive(30)
    with pytest.raises(Cancelled):
        claimed.send(DATA())


def test_a_silent_client_is_waited_for_no_longer_than_said(served: Any) -> None:
    stream = ClientStream(served, "one")
    claimed = claim(served, stream.id)
    with pytest.raises(DeadlineExceeded):
        claimed.receive(0.01)


def test_a_stream_ends_with_the_call_that_claimed_it(served: Any) -> None:
    stream = ClientStream(served, "one")
    call = call_of(served)
    claimed = service_of(served).claim(call, "one")
    call.cancellation.cancel()
    with pytest.raises(Cancelled):
        claimed.receive(30)
    assert stream.rest(DATA) == []


@pytest.mark.parametrize(
    "first",
    [
        Packed(),
        any_of(streaming_pb2.StreamInit()),
        any_of(streaming_pb2.StreamInit(id="x" * (streaming.ID_MAX + 1))),
        any_of(DATA(data=b"one")),
        Packed(type_url="containerd.services.streaming.v1.StreamInit", value=b"\xff"),
    ],
)
def test_a_stream_begins_with_its_id(served: Any, first: Packed) -> None:
    assert refusal(served.stub(streaming_pb2, "Streaming").Stream, iter([first])) is CODES.INVALID_ARGUMENT


def test_a_stream_needs_a_namespace(served: Any) -> None:
    stub = served.stub(streaming_pb2, "Streaming", namespace=None)
    first = iter([any_of(streaming_pb2.StreamInit(id="one"))])
    assert refusal(stub.Stream, first) is CODES.FAILED_PRECONDITION


def test_what_waits_in_a_stream_is_bounded(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "WAITING_MAX", 1000)
    stream = ClientStream(served, "one")
    for _ in range(3):
        stream.send(DATA(data=bytes(600)))
    with pytest.raises(grpc.RpcError) as caught:
        list(stream.call)
    assert caught.value.code() is CODES.RESOURCE_EXHAUSTED


def test_the_count_of_streams_is_bounded(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "STREAMS_MAX", 1)
    stream = ClientStream(served, "one")
    first = iter([any_of(streaming_pb2.StreamInit(id="two"))])
    assert refusal(served.stub(streaming_pb2, "Streaming").Stream, first) is CODES.RESOURCE_EXHAUSTED
    claim(served, stream.id).close()


def test_a_stream_that_nobody_takes_is_given_up(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = ClientStream(served, "one")
    monkeypatch.setattr(streaming, "UNCLAIMED_SECONDS", -time.monotonic())
    later = ClientStream(served, "two")
    assert forgotten.rest(DATA) == []
    claim(served, later.id).close()


def test_bytes_come_as_far_as_the_window_is_open(served: Any) -> None:
    stream = ClientStream(served, "one")
    reader = streaming.StreamReader(claim(served, "one"))
    for piece in (b"some ", b"", b"bytes"):
        stream.send(DATA(data=piece))
    stream.say_all()
    assert reader.read(3) + reader.readall() == b"some bytes"
    assert stream.receive(WINDOW).update == streaming.WINDOW
    assert reader.read(1) == b""


def test_the_window_opens_again_as_bytes_are_taken(served: Any) -> None:
    stream = ClientStream(served, "one")
    reader = streaming.StreamReader(claim(served, "one"))
    piece = bytes(streaming.WINDOW // 2)
    for _ in range(3):
        stream.send(DATA(data=piece))
    stream.say_all()
    assert len(reader.readall()) == 3 * len(piece)
    assert sum(stream.receive(WINDOW).update for _ in range(3)) >= 3 * len(piece)


def test_bytes_that_are_none_are_refused(served: Any) -> None:
    stream = ClientStream(served, "one")
    reader = streaming.StreamReader(claim(served, "one"))
    stream.send(Empty())
    with pytest.raises(InvalidArgument):
        reader.read(1)


def test_bytes_go_as_far_as_the_client_opens_the_window(served: Any) -> None:
    stream = ClientStream(served, "one")
    writer = streaming.StreamWriter(claim(served, "one"))
    size = streaming.LAST + streaming.PIECE + 5
    stream.send(WINDOW(update=streaming.PIECE - 1))
    stream.send(WINDOW(update=2 * streaming.LAST))
    assert writer.write(bytes(size)) == size
    stream.send(WINDOW(update=streaming.LAST))
    writer.finish()
    parts = [len(stream.receive(DATA).data) for _ in range(3)]
    assert parts == [streaming.PIECE - 1, 6, streaming.LAST]


def test_a_client_with_a_small_window_gets_everything_too(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "TAKEN_SECONDS", 0.01)
    stream = ClientStream(served, "one")
    writer = streaming.StreamWriter(claim(served, "one"))
    writer.write(bytes(25))
    thread = threading.Thread(target=writer.finish)
    thread.start()
    received = 0
    while received < 25:
        stream.send(WINDOW(update=10))
        received += len(stream.receive(DATA).data)
    thread.join()


def test_a_client_that_takes_no_more_stops_the_writer(served: Any) -> None:
    stream = ClientStream(served, "one")
    writer = streaming.StreamWriter(claim(served, "one"))
    stream.say_all()
    writer.write(b"x")
    with pytest.raises(Unavailable):
        writer.finish()


def test_the_writer_waits_until_the_last_bytes_are_taken(served: Any) -> None:
    stream = ClientStream(served, "one")
    writer = streaming.StreamWriter(claim(served, "one"))
    stream.send(WINDOW(update=10))
    writer.write(b"x")
    thread = threading.Thread(target=writer.finish)
    thread.start()
    assert stream.receive(DATA).data == b"x"
    assert thread.is_alive()
    stream.send(WINDOW(update=streaming.LAST))
    thread.join()


def test_a_client_that_does_not_say_that_it_took_the_last_bytes_is_not_waited_for_for_ever(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "TAKEN_SECONDS", 0.01)
    stream = ClientStream(served, "one")
    writer = streaming.StreamWriter(claim(served, "one"))
    stream.send(WINDOW(update=10))
    writer.write(b"x")
    writer.finish()
    assert stream.receive(DATA).data == b"x"

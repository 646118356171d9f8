"""Events over the socket: the store's own, whoever caused them, and those that clients publish."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.timestamp_pb2 import Timestamp

import lamella
from lamella.serve.api import event_types_pb2, events_pb2, types_pb2
from lamella.serve.messages import any_of

READY = "/ready/now"


@pytest.fixture
def events(served):
    return served.stub(events_pb2, "Events")


class Follower:
    """A subscription that is known to have begun: it hears of a topic of its own, which tests pass over."""

    def __init__(self, events, *filters: str) -> None:
        self.stream = events.Subscribe(events_pb2.SubscribeRequest(filters=filters))
        begun = threading.Event()

        def publish() -> None:
            while not begun.wait(0.02):
                events.Publish(events_pb2.PublishRequest(topic=READY, event=Any(type_url="x")))

        with ThreadPoolExecutor(1) as pool:
            publishing = pool.submit(publish)
            try:
                next(self.stream)
            finally:
                begun.set()
            publishing.result()

    def take(self, count: int) -> list[types_pb2.Envelope]:
        found: list[types_pb2.Envelope] = []
        while len(found) < count:
            envelope = next(self.stream)
            if envelope.topic != READY:
                found.append(envelope)
        return found


def test_what_the_library_does_elsewhere_is_told_with_containerds_types(served, events, tmp_path) -> None:
    follower = Follower(events)
    with lamella.Client(root=tmp_path / "root", state=tmp_path / "state", namespace="other") as client:
        client.namespaces.create("made", labels={"a": "b"})
        client.snapshots.prepare("work")
        client.snapshots.update("work", {"c": "d"})  # containerd has no word for it
        client.snapshots.remove("work")
    told = follower.take(4)
    assert [each.topic for each in told] == [
        "/namespaces/create", "/namespaces/create", "/snapshot/prepare", "/snapshot/remove",
    ]  # fmt: skip
    made, _, prepared, _ = told
    assert made.namespace == "made" and prepared.namespace == "other"
    assert made.event.type_url == "containerd.events.NamespaceCreate"
    body = event_types_pb2.NamespaceCreate.FromString(made.event.value)
    assert (body.name, dict(body.labels)) == ("made", {"a": "b"})
    assert event_types_pb2.SnapshotPrepare.FromString(prepared.event.value).key == "work"
    assert made.timestamp.seconds > 1_700_000_000


def test_filters_choose_by_topic_namespace_and_fields(served, events) -> None:
    follower = Follower(
        events, f"topic=={READY}", "topic==/snapshot/prepare,event.key~=^a", "namespace==other,topic~=remove"
    )
    for namespace in ("default", "other"):
        client = served.server.client_of(namespace)
        for key in ("a", "b"):
            client.snapshots.prepare(key)
            client.snapshots.remove(key)
    told = [(each.namespace, each.topic) for each in follower.take(4)]
    assert told == [
        ("default", "/snapshot/prepare"),
        ("other", "/snapshot/prepare"),
        ("other", "/snapshot/remove"),
        ("other", "/snapshot/remove"),
    ]


def test_what_a_client_publishes_or_forwards_is_told_as_it_came(served, events) -> None:
    follower = Follower(events)
    own = Any(type_url="example.com/own", value=b"\0\xff")
    events.Publish(events_pb2.PublishRequest(topic="/own/topic", event=own))
    oom = any_of(event_types_pb2.TaskOOM(container_id="box"))
    envelope = types_pb2.Envelope(
        timestamp=Timestamp(seconds=1_500_000_000), namespace="far", topic="/tasks/oom", event=oom
    )
    events.Forward(events_pb2.ForwardRequest(envelope=envelope))
    published, forwarded = follower.take(2)
    assert (published.topic, published.namespace, published.event) == ("/own/topic", "default", own)
    assert forwarded == envelope
    with served.client.events(follow=False, since=0, all_namespaces=True) as stored:
        assert [each.topic for each in stored if each.topic != READY] == ["/own/topic", "/tasks/oom"]


def test_a_published_event_of_a_known_type_is_chosen_by_its_fields(events) -> None:
    follower = Follower(events, f"topic=={READY}", "event.container_id==box")
    for name in ("other", "box"):
        body = any_of(event_types_pb2.TaskOOM(container_id=name))
        events.Publish(events_pb2.PublishRequest(topic="/tasks/oom", event=body))
    (told,) = follower.take(1)
    assert event_types_pb2.TaskOOM.FromString(told.event.value).container_id == "box"


def test_refusals_are_those_of_containerd(events) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT

    def code(call, request, **headers) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as caught:
            answer = call(request, **headers)
            next(answer)
        return caught.value.code()

    for topic in ("", "a", "/", "/a//b", "/a/../b", "/" + "a" * 77):
        assert code(events.Publish, events_pb2.PublishRequest(topic=topic)) is invalid, topic
    moment = Timestamp(seconds=1)
    for envelope in (
        types_pb2.Envelope(topic="/a", timestamp=moment),
        types_pb2.Envelope(topic="a", namespace="n", timestamp=moment),
        types_pb2.Envelope(topic="/a", namespace="../n", timestamp=moment),
    ):
        assert code(events.Forward, events_pb2.ForwardRequest(envelope=envelope)) is invalid, envelope
    assert code(events.Subscribe, events_pb2.SubscribeRequest(filters=["topic=="])) is invalid
    huge = Any(type_url="x", value=b"x" * 100_000)
    assert code(events.Publish, events_pb2.PublishRequest(topic="/a", event=huge)) is (
        grpc.StatusCode.RESOURCE_EXHAUSTED
    )


def test_a_subscriber_that_goes_leaves_nothing_behind(served, events) -> None:
    before = set(threading.enumerate())  # another server's may be on its way out
    followers = [Follower(events) for _ in range(3)]
    (made,) = (thread for thread in set(threading.enumerate()) - before if thread.name == "serve-events")
    for follower in followers:
        follower.stream.cancel()
    made.join(60)
    assert not made.is_alive()

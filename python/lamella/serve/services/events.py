"""``containerd.services.events.v1.Events``: the store's events, whoever caused them, to those who subscribe.

The events are the rows of the library (:mod:`lamella.events`), so that a subscriber hears of what the library does in other
processes, too. One thread follows them for all subscribers, and only while there are some.
"""

from __future__ import annotations

import queue
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from lamella.config import check_identifier
from lamella.errors import DataLoss, InvalidArgument, LamellaError, ResourceExhausted
from lamella.events import spool
from lamella.events.stream import Event, EventStream, flat
from lamella.filters import Filter, compile_filters
from lamella.logs import Log
from lamella.metadata import timestamp
from lamella.serve.api import event_types_pb2, events_pb2, image_event_types_pb2, types_pb2
from lamella.serve.call import Call
from lamella.serve.messages import any_of, from_timestamp, to_timestamp
from lamella.serve.service import Service

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from lamella.client import Client
    from lamella.serve.server import Server

BODY_MAX = 64 * 1024
"""Bytes of an event that a client publishes."""
BACKLOG_MAX = 65_536
"""Events that one subscriber may have to get still."""
_TYPES: dict[str, type[Message]] = {
    "/containers/create": event_types_pb2.ContainerCreate,
    "/containers/update": event_types_pb2.ContainerUpdate,
    "/containers/delete": event_types_pb2.ContainerDelete,
    "/content/create": event_types_pb2.ContentCreate,
    "/content/delete": event_types_pb2.ContentDelete,
    "/images/create": image_event_types_pb2.ImageCreate,
    "/images/update": image_event_types_pb2.ImageUpdate,
    "/images/delete": image_event_types_pb2.ImageDelete,
    "/namespaces/create": event_types_pb2.NamespaceCreate,
    "/namespaces/update": event_types_pb2.NamespaceUpdate,
    "/namespaces/delete": event_types_pb2.NamespaceDelete,
    "/snapshot/prepare": event_types_pb2.SnapshotPrepare,
    "/snapshot/commit": event_types_pb2.SnapshotCommit,
    "/snapshot/remove": event_types_pb2.SnapshotRemove,
    "/tasks/create": event_types_pb2.TaskCreate,
    "/tasks/start": event_types_pb2.TaskStart,
    "/tasks/exec-added": event_types_pb2.TaskExecAdded,
    "/tasks/exec-started": event_types_pb2.TaskExecStarted,
    "/tasks/paused": event_types_pb2.TaskPaused,
    "/tasks/resumed": event_types_pb2.TaskResumed,
    "/tasks/oom": event_types_pb2.TaskOOM,
    "/tasks/exit": event_types_pb2.TaskExit,
    "/tasks/delete": event_types_pb2.TaskDelete,
}
"""What the library's own topics are called in containerd's API; what has no name there is not told."""
_BY_NAME = {kind.DESCRIPTOR.full_name: kind for kind in _TYPES.values()}
_log = Log("lamella.serve")


class Events(Service):
    """The store's events."""

    descriptor = events_pb2.DESCRIPTOR.services_by_name["Events"]

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._hub = _Hub(server.client)

    def Publish(self, request: events_pb2.PublishRequest, call: Call) -> Empty:
        """Tell an event of the client's own. InvalidArgument for a malformed topic."""
        check_identifier(call.namespace, "namespace")
        _record(call.client, timestamp(), call.namespace, request.topic, request.event)
        return Empty()

    def Forward(self, request: events_pb2.ForwardRequest, call: Call) -> Empty:
        """Tell an event that happened elsewhere, with its own time (1970 without one) and namespace. InvalidArgument."""
        envelope = request.envelope
        check_identifier(envelope.namespace, "namespace")
        at = from_timestamp(envelope.timestamp)
        _record(self.server.client, at, envelope.namespace, envelope.topic, envelope.event)
        return Empty()

    def Subscribe(self, request: events_pb2.SubscribeRequest, call: Call) -> Iterator[types_pb2.Envelope]:
        """Give the events of all namespaces that match the filters, from now on.

        InvalidArgument; DataLoss when the client reads so slowly that there is no room for what it has to get.
        """
        subscriber = _Subscriber(compile_filters(request.filters) if request.filters else None)
        call.on_cancel(subscriber.end)
        with self._hub.joined(subscriber):
            yield from subscriber


class _Told:
    """An event on its way to subscribers: its message is made once."""

    def __init__(self, event: Event) -> None:
        self.event = event

    @cached_property
    def envelope(self) -> types_pb2.Envelope | None:
        """The message; None for what containerd has no word for."""
        body = _body(self.event)
        if body is None:
            return None
        return types_pb2.Envelope(
            timestamp=to_timestamp(self.event.timestamp),
            namespace=self.event.namespace,
            topic=self.event.topic,
            event=body,
        )

    @cached_property
    def fields(self) -> dict[str, Any]:
        """What filters see."""
        return {
            "namespace": self.event.namespace,
            "topic": self.event.topic,
            "event": dict(flat(_shown(self.event))),
        }


class _Subscriber:
    """One stream of events."""

    def __init__(self, match: Filter | None) -> None:
        self._match = match
        self._events: queue.SimpleQueue[types_pb2.Envelope | LamellaError | None] = queue.SimpleQueue()
        self.since = 0
        """The number of the last event before it came."""

    def tell(self, told: _Told) -> None:
        if (
            told.event.number > self.since
            and (self._match is None or self._match(told.fields))
            and told.envelope is not None
        ):
            if self._events.qsize() >= BACKLOG_MAX:
                self.fail(DataLoss(f"{BACKLOG_MAX} events wait for a client that does not read them"))
                self.since = 2**63  # it gets no more
                return
            self._events.put(told.envelope)

    def fail(self, error: LamellaError) -> None:
        self._events.put(error)

    def end(self) -> None:
        self._events.put(None)

    def __iter__(self) -> Iterator[types_pb2.Envelope]:
        while (item := self._events.get()) is not None:
            if isinstance(item, LamellaError):
                raise item
            yield item


class _Hub:
    """Follows the events for all subscribers of a server."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._subscribers: frozenset[_Subscriber] = frozenset()
        self._stream: EventStream | None = None

    def joined(self, subscriber: _Subscriber) -> _Joined:
        """Have it told, for the length of a block, what happens from now on."""
        return _Joined(self, subscriber)

    def join(self, subscriber: _Subscriber) -> None:
        spool.drain(self._client.database, self._client.config)
        with self._lock:
            if self._stream is None:
                self._stream = EventStream(self._client.config, all_namespaces=True)
                threading.Thread(
                    target=self._follow, args=(self._stream,), name="serve-events", daemon=True
                ).start()
            with self._client.database.read() as db:
                subscriber.since = db.execute("SELECT coalesce(max(number), 0) FROM events").fetchone()[0]
            self._subscribers |= {subscriber}

    def leave(self, subscriber: _Subscriber) -> None:
        with self._lock:
            self._subscribers -= {subscriber}
            if not self._subscribers and self._stream is not None:
                self._stream.close()
                self._stream = None

    def _follow(self, stream: EventStream) -> None:
        while True:
            try:
                for event in stream:
                    told = _Told(event)
                    for subscriber in self._subscribers:
                        subscriber.tell(told)
                return
            except DataLoss as error:
                _log.warning("%(reason)s", reason=str(error))
            except LamellaError as error:
                with self._lock:
                    for subscriber in self._subscribers:
                        subscriber.fail(error)
                    if self._stream is stream:
                        self._stream = None
                return


class _Joined:
    def __init__(self, hub: _Hub, subscriber: _Subscriber) -> None:
        self._hub, self._subscriber = hub, subscriber

    def __enter__(self) -> None:
        self._hub.join(self._subscriber)

    def __exit__(self, *_: object) -> None:
        self._hub.leave(self._subscriber)


def _record(client: Client, at: str, namespace: str, topic: str, event: AnyMessage) -> None:
    _check_topic(topic)
    if len(event.value) > BODY_MAX or len(event.type_url) > BODY_MAX:
        raise ResourceExhausted(f"the event of {topic[:80]!r} has more than {BODY_MAX} bytes")
    body = {"type_url": event.type_url, "value": b64encode(event.value).decode()}
    with client.database.write() as db:
        spool.record(db, at, namespace, topic, body)


def _check_topic(topic: str) -> None:
    """Raise InvalidArgument for what containerd takes for no topic: ``/a/b``, of identifiers."""
    if not topic.startswith("/"):
        raise InvalidArgument(f"topic {topic[:80]!r} must start with '/'")
    for part in topic[1:].split("/"):
        check_identifier(part, f"component of topic {topic[:80]!r}")


def _body(event: Event) -> AnyMessage | None:
    published = _published(event.event)
    if published is not None:
        return published
    kind = _TYPES.get(event.topic)
    if kind is None:
        return None
    fields = {name: value for name, value in event.event.items() if value is not None}
    try:
        return any_of(json_format.ParseDict(fields, kind(), ignore_unknown_fields=True))
    except json_format.ParseError as error:
        _log.warning("event %(number)s is malformed: %(reason)s", number=event.number, reason=str(error))
        return None


def _published(fields: Mapping[str, Any]) -> AnyMessage | None:
    """Give what a client published; None for an event of the store's own."""
    if fields.keys() != {"type_url", "value"}:
        return None
    try:
        return AnyMessage(type_url=fields["type_url"], value=b64decode(fields["value"]))
    except (TypeError, ValueError):
        return None


def _shown(event: Event) -> dict[str, Any]:
    """Give the fields that filters see; of a published event those of a type that is known."""
    published = _published(event.event)
    if published is None:
        return event.event
    kind = _BY_NAME.get(published.type_url.rpartition("/")[2])
    if kind is None:
        return {}
    try:
        return json_format.MessageToDict(kind.FromString(published.value), preserving_proto_field_name=True)
    except DecodeError:
        return {}

"""Bad requests for every RPC of containerd's API: made from good ones, by their descriptors.

``BASES`` has a good request of each RPC, and what has to be there for it. Each of its fields is given every value in turn that a
field of its kind can be spoiled with; bytes on the wire and headers are spoiled besides, and of the RPCs that take a stream of
requests the order. An RPC that a descriptor has and ``BASES`` has not is an error.
"""

from __future__ import annotations

import json
import pkgutil
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import grpc
from google.protobuf import message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from spoiling import ABSENT, ESCAPED, FOREIGN, FOREIGN_WORDS, HUGE, SPEC, changes, wire

import lamella.serve.api
from lamella.digest import digest_of
from lamella.serve.api import (
    containers_pb2,
    content_pb2,
    diff_pb2,
    events_pb2,
    health_pb2,
    images_pb2,
    introspection_pb2,
    leases_pb2,
    namespaces_pb2,
    reflection_pb2,
    reflection_v1alpha_pb2,
    runc_options_pb2,
    sandbox_pb2,
    snapshots_pb2,
    streaming_pb2,
    tasks_pb2,
    transfer_pb2,
    transfer_types_pb2,
    types_pb2,
)

NAMESPACE, ELSEWHERE = "bad-input", "elsewhere"
WORDS = b"words"
TAR = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MESSAGE_MAX = 16 * 1024 * 1024
SECONDS = 30.0
"""Nothing takes that long."""
OPEN_SECONDS = 0.2
"""How long something may go on before it is taken for what does not end by itself."""


HERE = digest_of(WORDS)


# Requests


class Base(NamedTuple):
    """A good request, or for an RPC that takes a stream of them all of its requests, and what it needs."""

    requests: Sequence[Message]
    needs: Sequence[str] = ()
    """Which of the things of :class:`World` have to be there."""
    undo: Sequence[str] = ()
    """Which may not."""


class Case(NamedTuple):
    """One bad request. ``field`` and ``word`` say what is bad about it."""

    field: str
    word: str
    requests: Sequence[bytes]
    headers: Sequence[tuple[str, str]] = (("containerd-namespace", NAMESPACE),)


def cases(base: Base, orders: Mapping[str, Sequence[Message]]) -> Iterator[Case]:
    """Give all bad requests that come of a good one."""
    good = [wire(each) for each in base.requests]
    yield Case("-", "good", good)
    yield from _bad_bytes(good)
    for headers in _bad_headers():
        yield headers._replace(requests=good)
    for place, request in enumerate(base.requests):
        prefix = f"[{place}]." if len(base.requests) > 1 else ""
        for path, word, change in changes(request):
            spoiled = type(request)()
            spoiled.CopyFrom(request)
            change(spoiled)
            yield Case(f"{prefix}{path}", word, [*good[:place], wire(spoiled), *good[place + 1 :]])
    for word, requests in orders.items():
        yield Case("order", word, [wire(each) for each in requests])


def _bad_bytes(good: Sequence[bytes]) -> Iterator[Case]:
    yield Case("wire", "empty", [b""])
    yield Case("wire", "garbage", [b"\xff" * 64])
    yield Case("wire", "cut", [good[-1] + b"\x0a\x7fx"])
    yield Case("wire", "unknown-field", [*good[:-1], good[-1] + b"\xfa\x7f\x01x"])
    yield Case("wire", "wrong-kind", [b"\x08\x01"])
    yield Case("wire", "group", [b"\x0b" * 200])
    yield Case("wire", "too-big", [b"\xfa\x7f" + _varint(MESSAGE_MAX) + b"x" * MESSAGE_MAX])


def _varint(number: int) -> bytes:
    pieces = bytearray()
    while number >= 0x80:
        pieces.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*pieces, number])


def _bad_headers() -> Iterator[Case]:
    namespace, lease = "containerd-namespace", "containerd-lease"
    for word, value in (
        ("empty", ""),
        ("up", f"../{ESCAPED}"),
        ("absolute", f"/{ESCAPED}"),
        ("spaces", "a b"),
        ("upper", "UPPER"),
        ("long", "n" * 77),
        ("huge", "n" * HUGE),
    ):
        yield Case("namespace", word, (), [(namespace, value)])
    yield Case("namespace", "none", (), [])
    yield Case("namespace", "two", (), [(namespace, NAMESPACE), (namespace, ELSEWHERE)])
    for word, value in (
        ("empty", ""),
        ("absent", "absent"),
        ("foreign", "foreign"),
        ("up", f"../{ESCAPED}"),
        ("huge", "n" * HUGE),
    ):
        yield Case("lease", word, (), [(namespace, NAMESPACE), (lease, value)])
    yield Case("lease", "two", (), [(namespace, NAMESPACE), (lease, "here"), (lease, "absent")])


# What is there


class Peer:
    """A server, and what the requests need of it.

    ``registry``: the address of one that has the image ``machine:latest``; ``rootfs``: a folder with a root file system.
    """

    def __init__(self, address: str, registry: str, rootfs: str) -> None:
        self.channel = grpc.insecure_channel(
            f"unix:{address}",
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", 4 * HUGE),
                ("grpc.default_authority", "localhost"),
            ],
        )
        self.registry, self.rootfs = registry, rootfs

    def call(self, rpc: MethodDescriptor, case: Case, *, patient: bool = False) -> str:
        """Send a request; give how it ended: OK, a status code, or OPEN for what did not end and need not."""
        kind = (
            "stream" if rpc.client_streaming else "unary",
            "stream" if rpc.server_streaming else "unary",
        )
        invoke = getattr(self.channel, "_".join(kind))(
            f"/{rpc.containing_service.full_name}/{rpc.name}",
            request_serializer=None,
            response_deserializer=None,
        )
        requests = iter(case.requests) if rpc.client_streaming else case.requests[-1]
        stays = rpc.full_name in ENDLESS and not patient
        began = time.monotonic()
        try:
            answer = invoke(requests, metadata=case.headers, timeout=OPEN_SECONDS if stays else SECONDS)
            if rpc.server_streaming:
                for _ in answer:
                    pass
            code = "OK"
        except grpc.RpcError as error:
            code = str(error.code().name)  # type: ignore[attr-defined]
        if stays and time.monotonic() - began > OPEN_SECONDS * 0.9:
            return "OPEN"
        return code

    def ask(self, rpc: MethodDescriptor, *requests: Message, namespace: str = NAMESPACE) -> str:
        """The same for a good request, in a namespace."""
        case = Case("", "", [wire(each) for each in requests], [("containerd-namespace", namespace)])
        return self.call(rpc, case, patient=True)

    def have(self, thing: str, namespace: str = NAMESPACE) -> None:
        """Have something there. Harmless when it is."""
        name = "here" if namespace == NAMESPACE else "foreign"
        for rpc, requests in self._makes(thing, name, WORDS if namespace == NAMESPACE else FOREIGN_WORDS):
            self.ask(rpc, *requests, namespace=namespace)

    def lack(self, thing: str) -> None:
        """Have something not there. Harmless when it is not."""
        for rpc, requests in _UNDO[thing]:
            self.ask(rpc, *requests)

    def _makes(
        self, thing: str, name: str, words: bytes
    ) -> Iterator[tuple[MethodDescriptor, Sequence[Message]]]:
        match thing:
            case "blob":
                yield CONTENT["Write"], _write("making", words, {"containerd.io/gc.root": "1"})
            case "ingest":
                yield CONTENT["Write"], _write(name, b"abc")[:1]
            case "image":
                yield IMAGES["Create"], [images_pb2.CreateImageRequest(image=_image(name, words))]
            case "snapshot":
                yield SNAPSHOTS["Prepare"], [_prepare("making", "")]
                yield (
                    SNAPSHOTS["Commit"],
                    [
                        snapshots_pb2.CommitSnapshotRequest(
                            snapshotter="overlayfs", name=name, key="making", labels=_ROOT
                        )
                    ],
                )
            case "active":
                yield SNAPSHOTS["Prepare"], [_prepare(f"{name}-active", "")]
            case "lease":
                yield LEASES["Create"], [leases_pb2.CreateRequest(id=name, labels=_ROOT)]
            case "container":
                container = container_of(name)
                yield CONTAINERS["Create"], [containers_pb2.CreateContainerRequest(container=container)]
            case "task":
                yield TASKS["Create"], [self.task(name)]
                yield TASKS["Start"], [tasks_pb2.StartRequest(container_id=name)]
            case "resumed":
                yield TASKS["Resume"], [tasks_pb2.ResumeTaskRequest(container_id=name)]
            case "paused":
                yield TASKS["Pause"], [tasks_pb2.PauseTaskRequest(container_id=name)]
            case "process":
                yield TASKS["Exec"], [_exec("added")]
            case "namespace":
                made = namespaces_pb2.Namespace(name="bad-input-namespace")
                yield NAMESPACES["Create"], [namespaces_pb2.CreateNamespaceRequest(namespace=made)]
            case "pulled":
                yield TRANSFER["Transfer"], [_transfer(_registry(self.registry), _store("pulled"))]
            case _:
                raise AssertionError(thing)

    def task(self, name: str) -> tasks_pb2.CreateTaskRequest:
        """A request for a task."""
        mount = types_pb2.Mount(type="bind", source=self.rootfs, options=["rbind", "rw"])
        return tasks_pb2.CreateTaskRequest(container_id=name, rootfs=[mount])


_ROOT = {"containerd.io/gc.root": "1", "slow": "a" * 40 + "b"}


def _write(ref: str, data: bytes, labels: Mapping[str, str] = _ROOT) -> list[Message]:
    request = content_pb2.WriteContentRequest
    return [
        request(action=content_pb2.WRITE, ref=ref, data=data, total=len(data), expected=digest_of(data)),
        request(
            action=content_pb2.COMMIT,
            ref=ref,
            offset=len(data),
            total=len(data),
            expected=digest_of(data),
            labels=labels,
        ),
    ]


def _descriptor(data: bytes = WORDS, media_type: str = MANIFEST) -> types_pb2.Descriptor:
    return types_pb2.Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))


def _image(name: str, data: bytes = WORDS) -> images_pb2.Image:
    return images_pb2.Image(name=name, target=_descriptor(data))


def _prepare(key: str, parent: str) -> snapshots_pb2.PrepareSnapshotRequest:
    return snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key=key, parent=parent, labels=_ROOT)


def _process() -> dict[str, object]:
    words = ["/bin/sleep", "1000"]
    return {"user": {"uid": 0, "gid": 0}, "args": words, "env": ["PATH=/bin"], "cwd": "/"}


def container_of(name: str) -> containers_pb2.Container:
    """The record of a container that sleeps."""
    spec = {
        "ociVersion": "1.0.2-dev",
        "process": _process(),
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": f"/{NAMESPACE}/{name}",
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
        },
    }
    return containers_pb2.Container(
        id=name,
        image="image",
        runtime=containers_pb2.Container.Runtime(
            name="io.containerd.runc.v2",
            options=_any(runc_options_pb2.Options()),
        ),
        spec=AnyMessage(type_url=f"{SPEC}Spec", value=json.dumps(spec).encode()),
        labels=_ROOT,
        extensions={"x": AnyMessage(type_url="x", value=b"y")},
    )


def _exec(name: str) -> tasks_pb2.ExecProcessRequest:
    return tasks_pb2.ExecProcessRequest(
        container_id="here",
        exec_id=name,
        spec=AnyMessage(type_url=f"{SPEC}Process", value=json.dumps(_process()).encode()),
    )


def _any(message: Message) -> AnyMessage:
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def _transfer(source: Message, destination: Message) -> transfer_pb2.TransferRequest:
    return transfer_pb2.TransferRequest(
        source=_any(source), destination=_any(destination), options=transfer_pb2.TransferOptions()
    )


def _registry(address: str, name: str = "machine:latest") -> transfer_types_pb2.OCIRegistry:
    return transfer_types_pb2.OCIRegistry(
        reference=f"{address}/{name}", resolver=transfer_types_pb2.RegistryResolver(default_scheme="http")
    )


def _store(name: str, **more: Any) -> transfer_types_pb2.ImageStore:
    return transfer_types_pb2.ImageStore(name=name, **more)


def rpcs() -> dict[str, MethodDescriptor]:
    """Give every RPC of every service that the protocol files have, by its full name."""
    found = {}
    for module in pkgutil.iter_modules(lamella.serve.api.__path__):
        file = import_module(f"lamella.serve.api.{module.name}").DESCRIPTOR
        for service in file.services_by_name.values():
            for rpc in service.methods:
                found[rpc.full_name] = rpc
    return found


def _of(module: Any, service: str) -> dict[str, MethodDescriptor]:
    return dict(module.DESCRIPTOR.services_by_name[service].methods_by_name)


CONTAINERS, CONTENT = _of(containers_pb2, "Containers"), _of(content_pb2, "Content")
IMAGES, LEASES = _of(images_pb2, "Images"), _of(leases_pb2, "Leases")
NAMESPACES, SNAPSHOTS = _of(namespaces_pb2, "Namespaces"), _of(snapshots_pb2, "Snapshots")
TASKS, TRANSFER = _of(tasks_pb2, "Tasks"), _of(transfer_pb2, "Transfer")
THINGS = ("blob", "ingest", "image", "snapshot", "active", "lease", "container")
"""What both namespaces have."""
_UNDO: dict[str, list[tuple[MethodDescriptor, list[Message]]]] = {
    "container": [(CONTAINERS["Delete"], [containers_pb2.DeleteContainerRequest(id="new")])],
    "image": [(IMAGES["Delete"], [images_pb2.DeleteImageRequest(name="new")])],
    "lease": [(LEASES["Delete"], [leases_pb2.DeleteRequest(id="new")])],
    "snapshot": [
        (SNAPSHOTS["Remove"], [snapshots_pb2.RemoveSnapshotRequest(snapshotter="overlayfs", key="new")])
    ],
    "blob": [
        (CONTENT["Delete"], [content_pb2.DeleteContentRequest(digest=digest_of(b"new"))]),
        (CONTENT["Abort"], [content_pb2.AbortRequest(ref="new")]),
        (LEASES["Create"], [leases_pb2.CreateRequest(id="collecting")]),
        (LEASES["Delete"], [leases_pb2.DeleteRequest(id="collecting", sync=True)]),
    ],
    "namespace": [
        (NAMESPACES["Delete"], [namespaces_pb2.DeleteNamespaceRequest(name="bad-input-new")]),
    ],
    "task": [
        (TASKS["Kill"], [tasks_pb2.KillRequest(container_id="here", signal=9)]),
        (TASKS["Wait"], [tasks_pb2.WaitRequest(container_id="here")]),
        (TASKS["Delete"], [tasks_pb2.DeleteTaskRequest(container_id="here")]),
    ],
    "process": [
        (TASKS["DeleteProcess"], [tasks_pb2.DeleteProcessRequest(container_id="here", exec_id="new")])
    ],
}
ENDLESS = {
    "containerd.services.events.v1.Events.Subscribe",
    "containerd.services.streaming.v1.Streaming.Stream",
    "containerd.services.tasks.v1.Tasks.Wait",
    "grpc.health.v1.Health.Watch",
}
"""What does not end by itself."""


def bases(peer: Peer) -> dict[str, Mapping[str, Base]]:
    """Give good requests of every RPC, by its full name; several of one have names."""
    overlay = {"snapshotter": "overlayfs"}
    mask = FieldMask(paths=["labels"])
    mount = types_pb2.Mount(type="bind", source=peer.rootfs, options=["rbind", "ro"])
    one: dict[str, dict[str, Base]] = {
        "containerd.services.containers.v1.Containers": {
            "Get": Base([containers_pb2.GetContainerRequest(id="here")], ["container"]),
            "List": Base([containers_pb2.ListContainersRequest()], ["container"]),
            "ListStream": Base([containers_pb2.ListContainersRequest()], ["container"]),
            "Create": Base(
                [containers_pb2.CreateContainerRequest(container=container_of("new"))], undo=["container"]
            ),
            "Update": Base(
                [containers_pb2.UpdateContainerRequest(container=container_of("here"), update_mask=mask)],
                ["container"],
            ),
            "Delete": Base([containers_pb2.DeleteContainerRequest(id="here")], ["container"]),
        },
        "containerd.services.content.v1.Content": {
            "Info": Base([content_pb2.InfoRequest(digest=HERE)], ["blob"]),
            "Update": Base(
                [
                    content_pb2.UpdateRequest(
                        info=content_pb2.Info(digest=HERE, labels=_ROOT), update_mask=mask
                    )
                ],
                ["blob"],
            ),
            "List": Base([content_pb2.ListContentRequest()], ["blob"]),
            "Delete": Base([content_pb2.DeleteContentRequest(digest=HERE)], ["blob"]),
            "Read": Base([content_pb2.ReadContentRequest(digest=HERE)], ["blob"]),
            "Status": Base([content_pb2.StatusRequest(ref="here")], ["ingest"]),
            "ListStatuses": Base([content_pb2.ListStatusesRequest()], ["ingest"]),
            "Write": Base(_write("new", b"new"), undo=["blob"]),
            "Abort": Base([content_pb2.AbortRequest(ref="here")], ["ingest"]),
        },
        "containerd.services.diff.v1.Diff": {
            "Apply": Base(
                [diff_pb2.ApplyRequest(diff=_descriptor(media_type=TAR), mounts=[mount])], ["blob"]
            ),
            "Diff": Base(
                [diff_pb2.DiffRequest(left=[mount], right=[mount], media_type=TAR, ref="diff", labels=_ROOT)]
            ),
        },
        "containerd.services.events.v1.Events": {
            "Publish": Base([events_pb2.PublishRequest(topic="/test/event", event=AnyMessage(type_url="x"))]),
            "Forward": Base(
                [
                    events_pb2.ForwardRequest(
                        envelope=types_pb2.Envelope(
                            namespace=NAMESPACE, topic="/test/event", event=AnyMessage(type_url="x")
                        )
                    )
                ]
            ),
            "Subscribe": Base([events_pb2.SubscribeRequest()]),
        },
        "containerd.services.images.v1.Images": {
            "Get": Base([images_pb2.GetImageRequest(name="here")], ["blob", "image"]),
            "List": Base([images_pb2.ListImagesRequest()], ["blob", "image"]),
            "Create": Base([images_pb2.CreateImageRequest(image=_image("new"))], ["blob"], undo=["image"]),
            "Update": Base(
                [images_pb2.UpdateImageRequest(image=_image("here"), update_mask=mask)], ["blob", "image"]
            ),
            "Delete": Base(
                [images_pb2.DeleteImageRequest(name="here", target=_descriptor())], ["blob", "image"]
            ),
        },
        "containerd.services.introspection.v1.Introspection": {
            "Plugins": Base([introspection_pb2.PluginsRequest()]),
            "Server": Base([Empty()]),
            "PluginInfo": Base(
                [
                    introspection_pb2.PluginInfoRequest(
                        type="io.containerd.runtime.v2",
                        id="task",
                        options=_any(types_pb2.RuntimeRequest(runtime_path="io.containerd.runc.v2")),
                    )
                ]
            ),
        },
        "containerd.services.leases.v1.Leases": {
            "Create": Base([leases_pb2.CreateRequest(id="new")], undo=["lease"]),
            "Delete": Base([leases_pb2.DeleteRequest(id="here")], ["lease"]),
            "List": Base([leases_pb2.ListRequest()], ["lease"]),
            "AddResource": Base(
                [
                    leases_pb2.AddResourceRequest(
                        id="here", resource=leases_pb2.Resource(type="content", id=HERE)
                    )
                ],
                ["lease"],
            ),
            "DeleteResource": Base(
                [
                    leases_pb2.DeleteResourceRequest(
                        id="here", resource=leases_pb2.Resource(type="content", id=HERE)
                    )
                ],
                ["lease"],
            ),
            "ListResources": Base([leases_pb2.ListResourcesRequest(id="here")], ["lease"]),
        },
        "containerd.services.namespaces.v1.Namespaces": {
            "Get": Base([namespaces_pb2.GetNamespaceRequest(name="bad-input-namespace")], ["namespace"]),
            "List": Base([namespaces_pb2.ListNamespacesRequest()]),
            "Create": Base(
                [
                    namespaces_pb2.CreateNamespaceRequest(
                        namespace=namespaces_pb2.Namespace(name="bad-input-new")
                    )
                ],
                undo=["namespace"],
            ),
            "Update": Base(
                [
                    namespaces_pb2.UpdateNamespaceRequest(
                        namespace=namespaces_pb2.Namespace(
                            name="bad-input-namespace", labels={"color": "red"}
                        ),
                        update_mask=FieldMask(paths=["labels.color"]),
                    )
                ],
                ["namespace"],
            ),
            "Delete": Base(
                [namespaces_pb2.DeleteNamespaceRequest(name="bad-input-namespace")], ["namespace"]
            ),
        },
        "containerd.services.sandbox.v1.Store": {
            "Create": Base(
                [
                    sandbox_pb2.StoreCreateRequest(
                        sandbox=types_pb2.Sandbox(
                            sandbox_id="new",
                            runtime=types_pb2.Sandbox.Runtime(name="io.containerd.runc.v2"),
                            sandboxer="shim",
                        )
                    )
                ]
            ),
            "Update": Base(
                [
                    sandbox_pb2.StoreUpdateRequest(
                        sandbox=types_pb2.Sandbox(sandbox_id="absent"), fields=["labels"]
                    )
                ]
            ),
            "Delete": Base([sandbox_pb2.StoreDeleteRequest(sandbox_id="absent")]),
            "List": Base([sandbox_pb2.StoreListRequest()]),
            "Get": Base([sandbox_pb2.StoreGetRequest(sandbox_id="absent")]),
        },
        "containerd.services.snapshots.v1.Snapshots": {
            "Prepare": Base([_prepare("new", "here")], ["snapshot"], undo=["snapshot"]),
            "View": Base(
                [snapshots_pb2.ViewSnapshotRequest(key="new", parent="here", labels=_ROOT, **overlay)],
                ["snapshot"],
                undo=["snapshot"],
            ),
            "Mounts": Base([snapshots_pb2.MountsRequest(key="here-active", **overlay)], ["active"]),
            "Commit": Base(
                [snapshots_pb2.CommitSnapshotRequest(name="new", key="here-active", labels=_ROOT, **overlay)],
                ["active"],
                undo=["snapshot"],
            ),
            "Remove": Base([snapshots_pb2.RemoveSnapshotRequest(key="here-active", **overlay)], ["active"]),
            "Stat": Base([snapshots_pb2.StatSnapshotRequest(key="here", **overlay)], ["snapshot"]),
            "Update": Base(
                [
                    snapshots_pb2.UpdateSnapshotRequest(
                        info=snapshots_pb2.Info(name="here", labels=_ROOT), update_mask=mask, **overlay
                    )
                ],
                ["snapshot"],
            ),
            "List": Base([snapshots_pb2.ListSnapshotsRequest(**overlay)], ["snapshot"]),
            "Usage": Base([snapshots_pb2.UsageRequest(key="here", **overlay)], ["snapshot"]),
            "Cleanup": Base([snapshots_pb2.CleanupRequest(**overlay)]),
        },
        "containerd.services.streaming.v1.Streaming": {
            "Stream": Base([_any(streaming_pb2.StreamInit(id="stream")), _any(transfer_types_pb2.Data())])
        },
        "containerd.services.version.v1.Version": {"Version": Base([Empty()])},
        "grpc.health.v1.Health": {
            "Check": Base([health_pb2.HealthCheckRequest()]),
            "List": Base([health_pb2.HealthListRequest()]),
            "Watch": Base([health_pb2.HealthCheckRequest()]),
        },
        "grpc.reflection.v1.ServerReflection": {
            "ServerReflectionInfo": Base([reflection_pb2.ServerReflectionRequest(list_services="*")])
        },
        "grpc.reflection.v1alpha.ServerReflection": {
            "ServerReflectionInfo": Base([reflection_v1alpha_pb2.ServerReflectionRequest(list_services="*")])
        },
        "containerd.services.tasks.v1.Tasks": _task_bases(peer),
        "containerd.services.sandbox.v1.Controller": {
            rpc.name: Base([message_factory.GetMessageClass(rpc.input_type)()])
            for rpc in sandbox_pb2.DESCRIPTOR.services_by_name["Controller"].methods
        },
    }
    found: dict[str, Mapping[str, Base]] = {
        f"{service}.{name}": {"": base} for service, named in one.items() for name, base in named.items()
    }
    found["containerd.services.transfer.v1.Transfer.Transfer"] = _transfer_bases(peer)
    return found


def _task_bases(peer: Peer) -> dict[str, Base]:
    task = ["container", "task"]
    here = {"container_id": "here"}
    resources = AnyMessage(type_url=f"{SPEC}LinuxResources", value=b'{"pids": {"limit": 100}}')
    return {
        "Create": Base([peer.task("here")], ["container"], undo=["task"]),
        "Start": Base([tasks_pb2.StartRequest(**here)], task),
        "Delete": Base([tasks_pb2.DeleteTaskRequest(**here)], task),
        "DeleteProcess": Base([tasks_pb2.DeleteProcessRequest(exec_id="added", **here)], [*task, "process"]),
        "Get": Base([tasks_pb2.GetRequest(**here)], task),
        "List": Base([tasks_pb2.ListTasksRequest()], task),
        "Kill": Base([tasks_pb2.KillRequest(signal=18, **here)], task),
        "Exec": Base([_exec("new")], task, undo=["process"]),
        "ResizePty": Base([tasks_pb2.ResizePtyRequest(**here)], task),
        "CloseIO": Base([tasks_pb2.CloseIORequest(stdin=True, **here)], task),
        "Pause": Base([tasks_pb2.PauseTaskRequest(**here)], [*task, "resumed"]),
        "Resume": Base([tasks_pb2.ResumeTaskRequest(**here)], [*task, "paused"]),
        "ListPids": Base([tasks_pb2.ListPidsRequest(**here)], task),
        "Checkpoint": Base([tasks_pb2.CheckpointTaskRequest(container_id="absent")]),
        "Update": Base([tasks_pb2.UpdateTaskRequest(resources=resources, **here)], task),
        "Metrics": Base([tasks_pb2.MetricsRequest()], task),
        "Wait": Base([tasks_pb2.WaitRequest(**here)], task),
    }


def _transfer_bases(peer: Peer) -> dict[str, Base]:
    amd64 = types_pb2.Platform(os="linux", architecture="amd64")
    reference = transfer_types_pb2.ImageReference(name="further", is_prefix=True)
    unpack = transfer_types_pb2.UnpackConfiguration(platform=amd64, snapshotter="overlayfs")
    whole = {"labels": {"a": "b"}, "platforms": [amd64], "extra_references": [reference]}
    pushed = _registry(peer.registry, "pushed:latest")
    return {
        "tag": Base([_transfer(_store("here"), _store("new", **whole))], ["blob", "image"], ["image"]),
        "pull": Base(
            [_transfer(_registry(peer.registry), _store("new", unpacks=[unpack], **whole))], undo=["image"]
        ),
        "push": Base([_transfer(_store("pulled"), pushed)], ["pulled"]),
        "export": Base(
            [
                _transfer(
                    _store("here", extra_references=[reference]),
                    transfer_types_pb2.ImageExportStream(stream="absent", platforms=[amd64]),
                )
            ],
            ["blob", "image"],
        ),
        "import": Base(
            [
                _transfer(
                    transfer_types_pb2.ImageImportStream(stream="absent"),
                    _store("new", unpacks=[unpack], **whole),
                )
            ]
        ),
    }


def orders(name: str, peer: Peer) -> Mapping[str, Sequence[Message]]:
    """Give streams of requests whose order is wrong, of an RPC that takes them."""
    if name.endswith("Content.Write"):
        return _write_orders()
    if name.endswith("Streaming.Stream"):
        init, data = _any(streaming_pb2.StreamInit(id="order")), _any(transfer_types_pb2.Data(data=b"x"))
        return {
            "nothing": [],
            "data-first": [data],
            "init-twice": [init, init],
            "many": [init] + [data] * 500,
        }
    if name.endswith("ServerReflectionInfo"):
        return {"nothing": []}
    if name.endswith("Transfer.Transfer"):
        kinds: dict[str, Message] = {
            "registry": _registry(peer.registry),
            "store": _store("new"),
            "import": transfer_types_pb2.ImageImportStream(stream="absent"),
            "export": transfer_types_pb2.ImageExportStream(stream="absent"),
            "read": transfer_types_pb2.ReadStream(stream="absent"),
            "write": transfer_types_pb2.WriteStream(stream="absent"),
            "path": transfer_types_pb2.ContainerPath(container_id="absent", path=f"/../{ESCAPED}"),
        }
        return {
            f"{one}-{other}": [_transfer(kinds[one], kinds[other])]
            for one in kinds
            for other in kinds
            if (one, other) != ("registry", "store")
        }
    return {}


def _write_orders() -> dict[str, list[Message]]:
    def message(action: int, **more: Any) -> Message:
        return content_pb2.WriteContentRequest(action=action, **({"ref": "new"} | more))  # type: ignore[arg-type]

    stat, write, commit = content_pb2.STAT, content_pb2.WRITE, content_pb2.COMMIT
    data = {"data": b"new"}
    return {
        "nothing": [],
        "stat": [message(stat)],
        "stat-no-ref": [message(stat, ref="")],
        "commit-first": [message(commit)],
        "commit-first-of-nothing": [message(commit, expected=digest_of(b""))],
        "commit-twice": [message(write, **data), message(commit, offset=3), message(commit, offset=3)],
        "write-after-commit": [message(write, **data), message(commit, offset=3), message(write, **data)],
        "other-ref": [message(write, **data), message(write, ref="other", offset=3, **data)],
        "gap": [message(write, **data), message(write, offset=10, **data)],
        "back": [message(write, **data), message(write, offset=1, **data)],
        "over": [message(write, **data), message(write, offset=0, **data)],
        "negative": [message(write, offset=-1, **data)],
        "beyond-total": [message(write, total=2, **data)],
        "negative-total": [message(write, total=-5, **data), message(commit, offset=3)],
        "most-total": [message(write, total=2**63 - 1, **data)],
        "total-changes": [message(write, total=3, **data), message(write, total=9, offset=3, data=b"x")],
        "wrong-total": [message(write, **data), message(commit, offset=3, total=9)],
        "wrong-digest": [message(write, **data), message(commit, offset=3, expected=ABSENT)],
        "expected-changes": [
            message(write, expected=ABSENT, **data),
            message(commit, offset=3, expected=digest_of(b"new")),
        ],
        "foreign-ref": [message(stat, ref="foreign")],
        "foreign-digest": [message(stat, expected=FOREIGN)],
        "unknown-action": [message(7, **data)],  # type: ignore[arg-type]
        "stat-with-data": [message(stat, **data), message(stat)],
        "empty-second": [message(write, **data), content_pb2.WriteContentRequest()],
    }

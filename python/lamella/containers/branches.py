"""Branches: the frozen writable layers of containers, on which others stand.

A *branch* is a committed snapshot that a container has left behind (:meth:`Container.commit`). What is special about it is in its
labels, so that it is one write that makes it, and garbage collection keeps what belongs to it:

``lamella.dev/branch.image``              the name of the image beneath it all; what has this label is a branch
``lamella.dev/branch.container``          the id of the container that it was frozen from
``containerd.io/gc.root``                 when that was: a branch stays until it is removed
``containerd.io/gc.ref.content.manifest`` the image's manifest, and so its config and layers, whatever becomes of the image's name

How it is frozen. Nobody may write to a folder that overlayfs mounts as a lower one: what the mounts show then is not defined
(kernel, filesystems/overlayfs.rst, "Changes to underlying filesystems"), and an upper folder cannot be exchanged beneath open
files. So a container at rest gives its layer away as it is, and gets a new one on top (one transaction, whatever the size); its
task's lock keeps it from being started meanwhile. One that runs goes on with its own layer: it is paused, and the branch is a
copy, a sibling. Memory and processes are no part of a branch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

from lamella import oci
from lamella.config import check_identifier
from lamella.digest import Digest
from lamella.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from lamella.filters import Fields, compile_filters
from lamella.images import Image
from lamella.labels import GC_PREFIX, GC_REF_CONTENT, GC_ROOT
from lamella.lazy import cached_property
from lamella.logs import Log
from lamella.metadata import timestamp
from lamella.snapshots import SnapshotInfo
from lamella.structs import replace
from lamella.typings import TYPE_CHECKING, Any, Unpack

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.containers.collection import Command
    from lamella.containers.container import Container
    from lamella.containers.networks import Settings
    from lamella.containers.options import CreateOptions
    from lamella.reference import Reference
    from lamella.transfer.commit import LayerCompression

_IMAGE = "lamella.dev/branch.image"
_CONTAINER = "lamella.dev/branch.container"
_MANIFEST = f"{GC_REF_CONTENT}.manifest"
_NAME_MAX = 60
_log = Log("lamella.containers")


class Branch:
    """What a container had written when it was frozen, on all that was beneath; as it was when it was read."""

    def __init__(self, client: Client, info: SnapshotInfo) -> None:
        self._client = client
        self._info = info

    def __repr__(self) -> str:
        return f"<lamella.Branch {self.name} {self.image_name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Branch) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def name(self) -> str:
        """The name, unique among the snapshots of the namespace."""
        return self._info.name

    @property
    def parent(self) -> Branch | None:
        """The branch beneath; None for one that stands on the image."""
        below = self._client.snapshots.stat(self._info.parent)
        return Branch(self._client, below) if _IMAGE in below.labels else None

    @property
    def children(self) -> list[Branch]:
        """The branches that stand on it, oldest first."""
        walk = self._client.snapshots.walk(kind="committed", parent=self.name)
        return [Branch(self._client, info) for info in walk if _IMAGE in info.labels]

    @property
    def containers(self) -> list[Container]:
        """The containers that stand on it, oldest first, also that which goes on after it was frozen."""
        walk = self._client.snapshots.walk(kind="active", parent=self.name)
        ids = [row[0] for info in walk for row in _containers(self._client, info.name)]
        return [self._client.containers.get(container_id) for container_id in ids]

    @property
    def snapshotter(self) -> str:
        """The snapshotter that has it."""
        return self._client.config.snapshotter

    @property
    def image_name(self) -> str:
        """The canonical name that the image beneath had."""
        return self._info.labels[_IMAGE]

    @property
    def container_id(self) -> str:
        """The identifier of the container that it was frozen from, which may be gone."""
        return self._info.labels[_CONTAINER]

    @property
    def created_at(self) -> str:
        """When it was frozen (RFC 3339, UTC)."""
        return self._info.labels[GC_ROOT]

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels that it was given."""
        own = (_IMAGE, _CONTAINER)
        return {k: v for k, v in self._info.labels.items() if k not in own and not k.startswith(GC_PREFIX)}

    @property
    def size(self) -> int:
        """Bytes on disk, without what is beneath. The first look measures, which takes as long as there are files."""
        return self._client.snapshots.usage(self.name).size

    @cached_property
    def image(self) -> Image:
        """The image beneath, also where its name has gone or means another by now. NotFound when its manifest is not here."""
        digest = self._info.labels.get(_MANIFEST)
        if digest is None:
            return self._client.images.get(self.image_name)
        return image_of(self._client, self.image_name, digest)

    def create(self, command: Command = None, **options: Unpack[CreateOptions]) -> Container:
        """Make a container on it, with a writable layer of its own; see :meth:`Containers.create`."""
        return self._client.containers.create(self, command, **options)

    def branch(self, count: int = 1) -> list[Container]:
        """Make ``count`` containers like the one that it was frozen from, each with a writable layer of its own on this branch.

        They have its command and all its options, but for the name, published ports, and addresses in a network; its volumes
        they share. They are not started. Errors: NotFound when that container is gone (:meth:`create` takes options instead);
        where one cannot be made none is.
        """
        if count < 0:
            raise InvalidArgument(f"{count} containers cannot be made")
        origin = self._client.containers.get(self.container_id)
        made: list[Container] = []
        try:
            while len(made) < count:
                made.append(_like(self._client, origin, self.name))
        except BaseException:
            for container in made:
                container.remove()
            raise
        return made

    def commit(
        self,
        image: str | Reference,
        *,
        message: str = "",
        author: str = "",
        changes: Sequence[str] = (),
        compression: LayerCompression = "gzip",
        squash: bool = False,
    ) -> Image:
        """Make an image of it: the image beneath, and a layer for each branch up to this one, or one for all with ``squash``.

        Options and errors as :meth:`Container.commit`. Twice gives the same image.
        """
        from lamella.transfer.commit import commit_image

        return commit_image(
            self._client,
            self.name,
            self.image,
            image,
            message=message,
            author=author,
            changes=changes,
            compression=compression,
            squash=squash,
        )

    def remove(self, *, recursive: bool = False) -> None:
        """Remove it, with ``recursive`` those that stand on it too; all or none.

        FailedPrecondition when branches stand on it, or containers, which are never removed by this. NotFound when it is gone.
        """
        snapshots = self._client.snapshots
        with self._client.database.write():
            Branches(self._client).get(self.name)
            doomed = [self.name]
            for name in doomed:  # which grows
                for child in snapshots.walk(parent=name):
                    if child.kind != "committed" or _IMAGE not in child.labels:
                        raise self._in_use(name, child)
                    if not recursive:
                        raise FailedPrecondition(
                            f"the branch {child.name} stands on the branch {name}",
                            hint="Remove it first, or all of them: recursive=True (lamella branches rm --recursive).",
                        )
                    doomed.append(child.name)
            for name in reversed(doomed):
                snapshots.remove(name)
        _log.info("removed the branch %(branch)s", branch=self.name)

    def _in_use(self, name: str, child: SnapshotInfo) -> FailedPrecondition:
        boxes = [f"container {container}" for _, container in _containers(self._client, child.name)]
        what = next(iter(boxes), f"snapshot {child.name}")
        return FailedPrecondition(f"the {what} stands on the branch {name}", hint="Remove that first.")

    def inspect(self) -> dict[str, Any]:
        """Everything known about it as plain data (the fields of ``lamella branches inspect``)."""
        parent = self.parent
        return {
            "name": self.name,
            "parent": parent.name if parent else None,
            "children": [child.name for child in self.children],
            "containers": [container.name for container in self.containers],
            "image": self.image_name,
            "container_id": self.container_id,
            "snapshotter": self.snapshotter,
            "labels": dict(self.labels),
            "size": self.size,
            "created_at": self.created_at,
        }


class Branches:
    """The branches of one namespace and snapshotter."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, name: str) -> Branch:
        """Return a branch. NotFound."""
        try:
            info = self._client.snapshots.stat(name)
        except NotFound:
            raise _missing(self._client, name) from None
        if _IMAGE not in info.labels or info.kind != "committed":
            raise _missing(self._client, name)
        return Branch(self._client, info)

    def list(self, *, filters: Sequence[str] = ()) -> list[Branch]:
        """Return the branches, parents before their children.

        With ``filters`` those that match one of them (:mod:`lamella.filters`): by name, parent, image, labels.
        """
        match = compile_filters(filters)
        return [branch for branch in _walk(self._client) if not filters or match(_fields(branch))]

    def remove(self, name: str, *, recursive: bool = False) -> None:
        """Remove a branch; see :meth:`Branch.remove`."""
        self.get(name).remove(recursive=recursive)


def _walk(client: Client) -> Iterator[Branch]:
    for info in client.snapshots.walk(kind="committed"):
        if _IMAGE in info.labels:
            yield Branch(client, info)


def _fields(branch: Branch) -> Fields:
    return {
        "name": branch.name,
        "parent": branch._info.parent,
        "image": branch.image_name,
        "labels": branch.labels,
    }


def _containers(client: Client, key: str) -> list[tuple[str, str]]:
    """Give id and name of the container that has an active snapshot."""
    scope = (client.config.namespace, client.config.snapshotter, key)
    with client.database.read() as db:
        return db.execute(
            "SELECT id, name FROM containers WHERE namespace = ? AND snapshotter = ? AND snapshot_key = ?",
            scope,
        ).fetchall()


def _missing(client: Client, name: str) -> NotFound:
    return NotFound(
        f"there is no branch {name!r} in namespace {client.config.namespace}",
        hint="lamella branches ls shows those there are.",
    )


def image_of(client: Client, name: str, digest: str) -> Image:
    """Give the image of a manifest that is in the content store, whatever its name means by now. NotFound."""
    try:
        data = client.content.read(digest)
    except NotFound:
        raise NotFound(
            f"the manifest {digest} of the image {name} is not here any more",
            hint=f"Fetch it: lamella pull {name.rpartition(':')[0] or name}@{digest}",
        ) from None
    media_type = oci.document_type(data, None)
    target = oci.Descriptor(media_type=media_type, digest=Digest(digest), size=len(data))
    now = timestamp()
    return Image(client, name=name, target=target, labels={}, created_at=now, updated_at=now)


def base_image(client: Client, container: Container) -> Image:
    """Give the image that a container stands on, directly or with branches between. NotFound."""
    record = container.record
    if not record.extra.manifest:
        return client.images.get(record.image)
    return image_of(client, record.image, record.extra.manifest)


def freeze(
    client: Client,
    container: Container,
    name: str | None,
    *,
    labels: Mapping[str, str] | None,
    pause: bool,
) -> Branch:
    """Make a branch of what a container has written; see :meth:`Container.commit`."""
    record = container.record
    prefix = record.name[:_NAME_MAX].rstrip("._-")
    name = check_identifier(name, "branch name") if name is not None else f"{prefix}-{os.urandom(6).hex()}"
    for label in labels or {}:
        if label.startswith(GC_PREFIX) or label in (_IMAGE, _CONTAINER):
            raise InvalidArgument(f"the label {label} is lamella's own")
    marks = {**(labels or {}), _IMAGE: record.image, _CONTAINER: record.id, GC_ROOT: timestamp()}
    if record.extra.manifest:
        marks[_MANIFEST] = record.extra.manifest
    try:
        _freeze(client, container, name, marks, pause=pause)
    except AlreadyExists:
        raise AlreadyExists(
            f"there is a branch or snapshot {name!r} already", hint="Remove it, or take another name."
        ) from None
    _log.info(
        "froze the container %(container_name)s as the branch %(branch)s",
        container=record.id,
        container_name=record.name,
        branch=name,
    )
    return Branch(client, client.snapshots.stat(name))


def _freeze(
    client: Client, container: Container, name: str, labels: Mapping[str, str], *, pause: bool
) -> None:
    key = container.record.snapshot_key
    while True:
        with container.task.at_rest(lambda: client.containers.get(container.id)) as resting:
            if resting:
                client.snapshots.freeze(name, key, labels)
                return
        with ExitStack() as stack:
            if pause:
                try:
                    stack.enter_context(container.task.frozen())
                except NotFound:  # it has ended meanwhile
                    continue
            client.snapshots.copy(name, key, labels)
            return


def _without_own(settings: Settings | None) -> Settings | None:
    """Leave out of a network's settings what only one container can have."""
    return settings and replace(settings, ip="", mac_address="", ports=())


def _like(client: Client, origin: Container, parent: str) -> Container:
    """Make a container that differs from another in its id, its name and its snapshot alone."""
    from lamella.containers.container import Container
    from lamella.containers.record import insert

    old = origin.record
    new_id = os.urandom(32).hex()

    def renamed(text: str) -> str:
        # 48 bits at random or more: what has them means the container (cgroup, files, host name).
        return text.replace(old.id, new_id).replace(old.id[:12], new_id[:12])

    now = timestamp()
    record = replace(
        old,
        id=new_id,
        name=new_id[:12],
        snapshotter=client.config.snapshotter,
        snapshot_key=new_id,
        spec=renamed(old.spec),
        extra=replace(
            old.extra,
            auto_remove=False,
            hostname=renamed(old.extra.hostname),
            network_settings=_without_own(old.extra.network_settings),
        ),
        created_at=now,
        updated_at=now,
    )
    maps = old.extra.id_maps
    labels = maps.labels if maps is not None else None
    with client.snapshots.preparing(new_id, parent, labels) as prepare, client.database.write() as db:
        prepare()
        if old.extra.sources:
            from lamella.containers.mount_sources import copy_views

            sources = copy_views(client, old.extra.sources, new_id)
            record = replace(record, extra=replace(record.extra, sources=sources))
        insert(db, client.config.namespace, record)
    return Container(client, record)

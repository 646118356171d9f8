"""Volumes: folders of the store that outlive the containers which mount them.

On disk::

    <root>/volumes/<namespace>/<name>/    0700
        volume.json                       labels, when it was made, whether it is anonymous
        data/                             what containers mount
    <root>/volumes/<namespace>/.new-*/    0700  being filled; flock: while somebody does
    <root>/volumes/<namespace>/.trash-*/  being removed

A volume is there when its folder has its name, which one rename does; no name of a volume begins with a dot. Which containers use
it is in their records (``Extra.volumes``). The database's write lock guards both together: a container is recorded in the
transaction that sees, or makes, its volumes, and a volume goes in one that sees that no container has it. What a killed process
leaves has a dot in front, and garbage collection takes it.

At its first use a volume takes the content of the image where it is mounted, with owners, modes and extended attributes, as in
docker: if it is empty, and no other container has it. The copy is made in a draft before the transaction and takes the place of
the empty ``data`` by a rename, which the kernel refuses when something is in there: it is all there or not at all.

The path in the image is walked inside the mounted image, symlinks and ``..`` included, so that neither an image's config nor its
symlinks lead the copy to files of the host (CVE-2022-23648). Nothing changes a committed snapshot meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from lamella import _core
from lamella.config import Config, check_identifier
from lamella.containers.mounts import AnyMount, VolumeMount, check_driver
from lamella.disk import TRASH, make_private_folder, names_in, translated
from lamella.docker_filters import Filters, docker_filters, has_label, matching
from lamella.errors import FailedPrecondition, InvalidArgument, NotFound
from lamella.filters import Fields, compile_filters
from lamella.labels import check_labels
from lamella.locks import FolderLock, is_locked
from lamella.logs import Log
from lamella.metadata import Transaction, timestamp
from lamella.namespaces import volumes_of
from lamella.reserve import frees_space
from lamella.structs import Malformed, Struct, decode, encode
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.client import Client

_NEW = ".new-"
_GONE = f".{TRASH}"
_LINKS_MAX = 40
"""As many symlinks in a row as the kernel follows."""
_log = Log("lamella.volumes")


class VolumeRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What volume.json says."""

    labels: dict[str, str] = {}
    created_at: str = ""
    anonymous: bool = False


class Volume(Struct, frozen=True, kw_only=True):
    """A volume as it was when it was read. ``path``: where its files are on this machine; times are RFC 3339."""

    name: str
    path: Path
    labels: dict[str, str]
    created_at: str
    anonymous: bool

    @property
    def size(self) -> int:
        """Bytes that its files take (512-byte blocks, as du counts); looked at now."""
        return _core.disk_usage(str(self.path))[0]


class PruneReport(Struct, frozen=True):
    """What was removed: names, and bytes on disk."""

    volumes: list[str]
    bytes_freed: int


class Volumes:
    """The volumes of one namespace."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._folders = _Folders(client.config)

    def create(
        self,
        name: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        driver: str | None = None,
        driver_opts: Mapping[str, str] | None = None,
    ) -> Volume:
        """Make an empty volume and return it; one without a name is anonymous.

        Twice is harmless: the volume of that name that is there is returned as it is. InvalidArgument for a malformed name,
        Unsupported for another driver than docker's ``local``, and for options of it.
        """
        check_driver(driver, driver_opts)
        chosen = check_identifier(name, "volume name") if name is not None else os.urandom(32).hex()
        checked = check_labels(labels or {})
        with (
            self._folders.draft(chosen, anonymous=name is None, labels=checked) as draft,
            self._client.database.write() as db,
        ):
            _note_namespace(db, self._client.config.namespace)
            self._folders.place(draft, chosen)
        return self.get(chosen)

    def get(self, name: str) -> Volume:
        """Return a volume. NotFound."""
        found = self._folders.read(check_identifier(name, "volume name"))
        if found is None:
            raise _missing(name, self._client.config.namespace)
        return found

    def inspect(self, name: str) -> dict[str, Any]:
        """Return everything known about a volume as plain data, its size on disk too (``lamella volumes inspect``). NotFound."""
        volume = self.get(name)
        return inspect(volume, self.users(volume.name)) | {"size": volume.size}

    def users(self, name: str) -> list[str]:
        """Return the names of the containers that have a volume, sorted."""
        with self._client.database.read() as db:
            return _users(db, self._client.config.namespace, name)

    @frees_space
    def remove(self, name: str, *, missing_ok: bool = False) -> None:
        """Remove a volume with all that is in it. FailedPrecondition while a container has it, running or not.

        NotFound where it is not there, unless ``missing_ok``.
        """
        trash = self._discard(check_identifier(name, "volume name"))
        if trash is None:
            if missing_ok:
                return
            raise _missing(name, self._client.config.namespace)
        _core.remove_tree(str(trash))
        _log.info("removed the volume %(volume)s", volume=name)

    @frees_space
    def prune(self, *, all: bool = False, filters: Filters = ()) -> PruneReport:
        """Remove the anonymous volumes that no container has, with ``all`` those with a name too; only those that match.

        Filters are those of :meth:`list`. Twice is harmless.
        """
        removed, freed = [], 0
        for volume in self.list(filters=filters):
            if not (all or volume.anonymous):
                continue
            with suppress(FailedPrecondition):
                if (trash := self._discard(volume.name)) is not None:
                    freed += _core.disk_usage(str(trash / "data"))[0]
                    _core.remove_tree(str(trash))
                    removed.append(volume.name)
        return PruneReport(volumes=removed, bytes_freed=freed)

    def _discard(self, name: str) -> Path | None:
        namespace = self._client.config.namespace
        with self._client.database.write() as db:
            if users := _users(db, namespace, name):
                raise FailedPrecondition(
                    f"volume {name} is in use by {', '.join(users)}",
                    hint="Remove the container first (lamella containers rm).",
                )
            return self._folders.discard(name)

    def list(self, *, filters: Filters = ()) -> list[Volume]:
        """Return the volumes, sorted by name; with ``filters`` those that match.

        Filters are docker's (``dangling=true``, ``label=job=7``, ``name=cache``, ``driver=local``, or docker-py's mapping of
        them; values of one word are alternatives, but labels are all to be there), or containerd's (:mod:`lamella.filters`, of
        which one has to match). Fields of these: ``name``, ``labels``, ``anonymous`` and ``dangling`` (no container has it), both
        ``true`` or ``false``. InvalidArgument.
        """
        match = _selection(filters)
        volumes = [volume for name in self._folders.names() if (volume := self._folders.read(name))]
        if not filters:
            return volumes
        with self._client.database.read() as db:
            used = _all_used(db, self._client.config.namespace)
        return [
            volume
            for volume in volumes
            if match(
                {
                    "name": volume.name,
                    "labels": volume.labels,
                    "anonymous": str(volume.anonymous).lower(),
                    "dangling": str(volume.name not in used).lower(),
                }
            )
        ]


def _selection(filters: Filters) -> Callable[[Fields], bool]:
    words = docker_filters(filters)
    if words is None:
        assert not isinstance(filters, Mapping)
        return compile_filters(filters)
    return matching(
        words,
        {
            "name": lambda value: lambda volume: value in volume["name"],
            "label": lambda value: lambda volume: has_label(volume["labels"], value),
            "dangling": lambda value: (
                lambda volume: volume["dangling"] == str(value in ("true", "1")).lower()
            ),
            "driver": lambda value: lambda volume: value == "local",
        },
    )


class _Draft(Struct):
    """A volume that is being filled. ``copied``: it holds something of an image."""

    folder: Path
    copied: bool = False


class _Folders:
    """The volumes' folders of one namespace on disk."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.top = config.root / "volumes" / config.namespace

    def names(self) -> list[str]:
        return volumes_of(self._config.root, self._config.namespace)

    def data(self, name: str) -> Path:
        return self.top / name / "data"

    def read(self, name: str) -> Volume | None:
        """Read a volume; None when it is not there.

        A file that a power cut spoiled counts as one that says nothing: the volume has a name then, and is nobody's to prune.
        """
        data = self.data(name)
        try:
            made = data.stat().st_mtime if data.is_dir() else None
        except FileNotFoundError:
            made = None
        if made is None:
            return None
        record = VolumeRecord()
        with suppress(OSError, Malformed):
            record = decode((data.parent / "volume.json").read_bytes(), VolumeRecord)
        return Volume(
            name=name,
            path=data,
            labels=record.labels,
            created_at=record.created_at,
            anonymous=record.anonymous,
        )

    def is_filled(self, name: str) -> bool:
        """Tell whether a volume is there and has something in it."""
        with translated(f"look into the volume {name}"):
            try:
                with os.scandir(self.data(name)) as entries:
                    return next(entries, None) is not None
            except FileNotFoundError:
                return False

    @contextmanager
    def draft(
        self, name: str, *, anonymous: bool, labels: Mapping[str, str] | None = None
    ) -> Iterator[_Draft]:
        """Make an empty volume that nobody sees yet; what is left of it at the end of the block is removed."""
        with translated(f"make the volume {name}"):
            while True:
                folder = self.top / f"{_NEW}{os.urandom(8).hex()}"
                make_private_folder(folder)
                lock = FolderLock(folder, what=f"the volume {name}")
                if lock.try_acquire():
                    break
                # Garbage collection found it before it was held.
        try:
            with translated(f"make the volume {name}"):
                record = VolumeRecord(labels=dict(labels or {}), created_at=timestamp(), anonymous=anonymous)
                (folder / "volume.json").write_bytes(encode(record))
                (folder / "data").mkdir()
                (folder / "data").chmod(0o755)  # whatever the umask is
            yield _Draft(folder=folder)
        finally:
            lock.release()
            _core.remove_tree(str(folder))

    def place(self, draft: _Draft, name: str, *, fill: bool = False) -> bool:
        """Make a draft the volume; tell whether it became it. If there is one already, ``fill`` it if it is empty."""
        with translated(f"make the volume {name}"):
            if _renamed(draft.folder, self.top / name):
                return True
            if fill and draft.copied:
                _renamed(draft.folder / "data", self.data(name))
        return False

    def discard(self, name: str) -> Path | None:
        """Rename a volume away; where it is then, None when it is not there."""
        trash = self.top / f"{_GONE}{os.urandom(8).hex()}"
        with translated(f"remove the volume {name}"):
            try:
                (self.top / name).rename(trash)
            except FileNotFoundError:
                return None
        return trash


def _renamed(source: Path, target: Path) -> bool:
    """Rename a folder, onto an empty one at most."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


@contextmanager
def filling(client: Client, parent: str, mounts: Sequence[VolumeMount]) -> Iterator[Callable[[], list[str]]]:
    """Give a container its volumes in two steps: what takes long before the block, the rest by the function it gets.

    ``parent`` is the image's committed snapshot. The function is to be called once, in the transaction that records the
    container; it gives the volumes' names. When the block fails anonymous volumes go again; those with a name stay, as in docker.
    """
    folders = _Folders(client.config)
    namespace = client.config.namespace
    placed: list[str] = []
    with ExitStack() as drafts:
        wanted = [(mount, mount.name or os.urandom(32).hex()) for mount in mounts]
        made: dict[int, _Draft] = {}
        with ExitStack() as mounted:
            image: Path | _core.Files | None = None
            for at, (mount, name) in enumerate(wanted):
                if folders.is_filled(name):
                    continue
                labels = check_labels(mount.labels)
                draft = drafts.enter_context(folders.draft(name, anonymous=not mount.name, labels=labels))
                made[at] = draft
                if mount.copy and parent:
                    image = image or mounted.enter_context(_image(client, parent))
                    _copy_up(image, mount.destination, draft)

        def place() -> list[str]:
            with client.database.write() as db:
                _note_namespace(db, namespace)
                for at, (mount, name) in enumerate(wanted):
                    draft = made.get(at)
                    if draft is None:
                        if folders.read(name) is None:  # it was removed since
                            raise NotFound(f"volume {name} was removed meanwhile", hint="Try again.")
                    elif folders.place(draft, name, fill=not _users(db, namespace, name)) and not mount.name:
                        placed.append(name)
            return [name for _, name in wanted]

        try:
            yield place
        except BaseException:
            for name in placed:
                if (trash := folders.discard(name)) is not None:
                    _core.remove_tree(str(trash))
            raise


def _image(client: Client, parent: str) -> AbstractContextManager[Path | _core.Files]:
    """Show an image, or open its files where this process can mount nothing."""
    if os.geteuid() == 0:
        return client.snapshots.mounted(parent)
    from lamella.snapshots.mounting import opened

    return opened(client.snapshots, client.config, parent)


def _copy_up(image: Path | _core.Files, destination: str, draft: _Draft) -> None:
    """Copy what an image has where a volume will be mounted, if that is a folder."""
    if isinstance(image, _core.Files):
        from lamella.containers.files import copy_folder

        draft.copied = copy_folder(image, destination, draft.folder / "data")
        return
    source = path_in_image(image, destination)
    if source is None:
        return
    for note in _core.copy_tree(str(source), str(draft.folder / "data")):
        _log.warning("the volume at %(path)s: %(reason)s", path=destination, reason=note)
    draft.copied = True


def path_in_image(root: Path, path: str) -> Path | None:
    """Walk to a folder of a mounted image as a process in it would, symlinks and ``..`` inside the root; None without one.

    Nobody may be changing the image meanwhile.
    """
    parts = path.split("/")[::-1]
    found: list[str] = []
    links = 0
    while parts:
        part = parts.pop()
        if part in ("", "."):
            continue
        if part == "..":
            found = found[:-1]
            continue
        at = root.joinpath(*found, part)
        try:
            mode = at.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(mode):
            links += 1
            if links > _LINKS_MAX:
                return None
            target = os.readlink(at)  # noqa: PTH115 (a Path would lose what its text says)
            if target.startswith("/"):
                found = []
            parts += target.split("/")[::-1]
        elif stat.S_ISDIR(mode):
            found.append(part)
        else:
            return None
    return root.joinpath(*found)


def image_volumes(
    declared: Iterable[str], mounts: Sequence[AnyMount], defaults: Iterable[str]
) -> list[VolumeMount]:
    """Give the anonymous volumes that an image's config asks for, but for where something else is mounted.

    InvalidArgument for one at the root, or in what every container has of its own (``defaults``: /proc, /sys, /dev).
    """
    taken = {os.path.normpath(mount.destination) for mount in mounts}
    result = []
    for text in sorted(declared):
        path = os.path.normpath(f"/{text.lstrip('/')}")
        own = next((top for top in defaults if path == top or path.startswith(f"{top}/")), None)
        if path == "/" or "\0" in path or own is not None:
            raise InvalidArgument(
                f"the image asks for a volume at {text!r}, which would hide {own or 'its root filesystem'}"
            )
        if path not in taken:
            taken.add(path)
            result.append(VolumeMount(name="", destination=path, options=[]))
    return result


def discard_anonymous(client: Client, db: Transaction, names: Iterable[str]) -> list[Path]:
    """Take away, in the transaction that forgets a container, its anonymous volumes that no other container has.

    Gives the folders to be removed after it.
    """
    folders, namespace = _Folders(client.config), client.config.namespace
    trash = []
    for name in names:
        volume = folders.read(name)
        if volume is not None and volume.anonymous and not _users(db, namespace, name):
            path = folders.discard(name)
            if path is not None:
                trash.append(path)
    return trash


def leftovers(config: Config) -> Iterator[Path]:
    """Give what killed processes left of volumes, in all namespaces."""
    for namespace in names_in(config.root / "volumes"):
        top = config.root / "volumes" / namespace
        for name in sorted(names_in(top)):
            if name.startswith((_NEW, _GONE)) and not is_locked(top / name):
                yield top / name


def remove_leftovers(config: Config, *, dry_run: bool) -> int:
    """Remove them; return how many there were."""
    count = 0
    for folder in leftovers(config):
        count += 1
        if not dry_run:
            _core.remove_tree(str(folder))
    return count


def inspect(volume: Volume, users: list[str]) -> dict[str, Any]:
    """Give everything known about a volume as plain data (the fields of ``lamella volumes inspect``)."""
    return {
        "name": volume.name,
        "driver": "local",
        "path": str(volume.path),
        "labels": volume.labels,
        "created_at": volume.created_at,
        "anonymous": volume.anonymous,
        "containers": users,
    }


def _users(db: Transaction, namespace: str, name: str) -> list[str]:
    rows = db.execute(
        "SELECT name FROM containers k WHERE namespace = ? AND instr(extra, ?) AND EXISTS "
        "(SELECT 1 FROM json_each(k.extra, '$.volumes') WHERE value = ?) ORDER BY name",
        (namespace, f'"{name}"', name),
    )
    return [row[0] for row in rows]


def _all_used(db: Transaction, namespace: str) -> set[str]:
    rows = db.execute(
        "SELECT value FROM containers k, json_each(k.extra, '$.volumes') WHERE namespace = ?", (namespace,)
    )
    return {row[0] for row in rows}


def _note_namespace(db: Transaction, namespace: str) -> None:
    now = timestamp()
    db.execute("INSERT INTO namespaces VALUES (?, '{}', ?, ?) ON CONFLICT DO NOTHING", (namespace, now, now))


def _missing(name: str, namespace: str) -> NotFound:
    return NotFound(f"there is no volume {name!r} in namespace {namespace}", hint="See: lamella volumes ls")

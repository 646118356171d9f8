"""Files of a container, copied in and out as docker does, while it runs, is paused, or does not run.

A running container is looked into by its own root, with everything that is mounted there (volumes and tmpfs too); one that does
not run by its snapshot, which is mounted meanwhile: read-only to copy out, else nobody can start or remove it until that is over.
A path that lies in a volume or bind mount of such a one leads to what is mounted there; symlinks in there stay in there then.

How a path is walked, so that a container that changes it at the same moment gains nothing by it, is the core's business
(rust/core/src/files). Archives go through a pipe from one thread to another, so that memory does not grow with them.

What goes to this machine is confined once more: below the target no symlink is followed, device nodes are left out, and what gets
another owner loses its set-user-ID and set-group-ID bits.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lamella import _core
from lamella.containers.id_maps import maps_of
from lamella.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, LamellaError, NotFound
from lamella.logs import Log
from lamella.snapshots.mounting import opened
from lamella.structs import Struct

if TYPE_CHECKING:
    from lamella.containers.container import Container

_PIECE = 1 << 18
Producer = Callable[[int], object]
ArchiveData = bytes | bytearray | memoryview | IO[bytes] | Iterable[bytes]
_log = Log("lamella.containers")


class PathStat(Struct, frozen=True):
    """What is at a path: ``mode`` with the type's bits, ``size`` in bytes, ``mtime`` in nanoseconds since 1970."""

    name: str
    mode: int
    size: int
    mtime: int
    uid: int
    gid: int
    link_target: str

    @property
    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)


class Archive:
    """A tar archive that is made while it is read: an iterator over bytes, and a context that ends it.

    An error of the copy is raised where the iterator ends.
    """

    def __init__(self, produce: Producer, resources: ExitStack) -> None:
        self._resources = resources
        self._failures: list[BaseException] = []
        self._reading, writing = os.pipe()
        # The thread does not know this object, which ends when nobody has it any more.
        self._thread = threading.Thread(target=_produce, args=(produce, writing, self._failures), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data = os.read(self._reading, _PIECE) if self._reading >= 0 else b""
        if data:
            return data
        self.close()
        self.raise_failure()
        raise StopIteration

    def raise_failure(self) -> None:
        """Raise what ended it before its end, once."""
        if self._failures:
            raise self._failures.pop()

    def fileno(self) -> int:
        """Give the descriptor that the archive comes from."""
        return self._reading

    def close(self, *, wait: float | None = None) -> None:
        """End it. ``wait``: seconds to give the producer, who may wait for somebody else. Harmless twice."""
        reading, self._reading = self._reading, -1
        if reading >= 0:
            os.close(reading)
            self._thread.join(wait)
            self._resources.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_reading", -1) >= 0:
            self.close()


def _produce(produce: Producer, writing: int, failures: list[BaseException]) -> None:
    try:
        produce(writing)
    except BaseException as error:
        failures.append(error.with_traceback(None))  # which would keep what the copy held
    finally:
        os.close(writing)


class _Patience:
    """How long a copy may still take, in seconds; None for ever."""

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and not 0 < timeout < float("inf"):
            raise InvalidArgument(f"timeout {timeout!r} is not a number of seconds")
        self._end = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())


class _Place(Struct, frozen=True):
    """A path and the tree that it is in. ``refused``: why nothing can be written there."""

    files: _core.Files
    path: str
    refused: str = ""


class _Tree:
    """The files of a container."""

    def __init__(
        self,
        files: _core.Files,
        mounts: list[dict[str, object]],
        sources: Callable[[int], tuple[_core.Files, str]] | None = None,
        ids: tuple[str, str] | None = None,
    ) -> None:
        """``sources`` opens what the spec calls ``sources/N``: the files, and which part of them is mounted.

        ``ids``: the maps of the container's users and groups, where it has ids of its own.
        """
        self._ids = ids
        self._files = files
        self._mounts = sorted(mounts, key=lambda mount: -len(str(mount["destination"])))
        self._sources = sources

    def find(self, path: str, *, follow: bool = True) -> _Place:
        """Say where a path is; it need not be there itself."""
        path = f"/{path}"
        for mount in self._mounts:
            inside = self._inside(path, str(mount["destination"]), follow=follow)
            if inside is not None:
                return self._mounted(mount, path, inside)
        return _Place(self._files, path)

    def _inside(self, path: str, destination: str, *, follow: bool) -> str | None:
        """Give the rest of a path that lies at or beneath a mount point, None for another."""
        point, place = self._real(destination, follow=True), self._real(path, follow=follow)
        return place[len(point) :] if f"{place}/".startswith(f"{point}/") else None

    def _real(self, path: str, *, follow: bool) -> str:
        """Give a path of the root without symlinks and ``..``, as far as there is something."""
        rest = ""
        while True:
            try:
                return f"{_describe(self._files, path or '/', follow=follow)[1].rstrip('/')}{rest}"
            except LamellaError:
                head, _, last = path.rstrip("/").rpartition("/")
                if not last:
                    return rest
                path, rest, follow = head, f"/{last}{rest}", True

    def _mounted(self, mount: dict[str, object], path: str, inside: str) -> _Place:
        options = mount.get("options") or []
        assert isinstance(options, list)
        if mount.get("type") != "bind" and "bind" not in options and "rbind" not in options:
            raise FailedPrecondition(
                f"{path} lies in {mount['destination']}, which is there only while the container runs",
                hint="Start it first.",
            )
        refused = f"{mount['destination']} is mounted read-only" if {"ro", "rro"} & set(options) else ""
        name, file_refused = (
            str(mount["source"]),
            refused or f"{mount['destination']} is a file that is mounted; it cannot be replaced",
        )
        if self._sources is not None and name.startswith("sources/"):
            files, subpath = self._sources(int(name.partition("/")[2]))
            if not subpath or _describe(files, subpath, follow=True)[0].is_dir:
                return _Place(files.beneath(subpath) if subpath else files, inside or "/", refused)
            return _Place(files, subpath, file_refused)
        source = Path(name)
        # What is mounted with mapped ids has those of the container where it is stored.
        ids = None if any(str(option).startswith("uidmap=") for option in options) else self._ids
        if source.is_dir():
            return _Place(_core.Files(str(source), ids=ids, theirs=True), inside or "/", refused)
        return _Place(_core.Files(str(source.parent), ids=ids, theirs=True), source.name, file_refused)


@contextmanager
def _tree(container: Container, *, write: bool) -> Iterator[_Tree]:
    client, task = container._client, container.task
    while True:
        with task.at_rest(lambda: client.containers.get(container.id)) as resting:
            if resting and write:
                with _snapshot(container, read_only=bool(container.spec["root"].get("readonly"))) as tree:
                    yield tree
                return
        if resting:
            with _snapshot(container, read_only=True) as tree:
                yield tree
            return
        # Nobody starts it meanwhile, so that the pid is that of a process that has its own root by now.
        with task.held(lambda: client.containers.get(container.id)):
            root = _root_of(container)
        if root is not None:
            with closing(root):
                yield _Tree(root, [])
            return
        time.sleep(0.001)


@contextmanager
def _snapshot(container: Container, *, read_only: bool) -> Iterator[_Tree]:
    client, record = container._client, container.record
    with ExitStack() as stack:
        ids = _ids_of(container)

        def look(key: str, *, read_only: bool = True, ids: tuple[str, str] | None = None) -> _core.Files:
            return stack.enter_context(
                opened(client.snapshots, client.config, key, read_only=read_only, ids=ids)
            )

        def source(number: int) -> tuple[_core.Files, str]:
            found = record.extra.sources[number]
            files = (
                look(found.snapshot)
                if found.snapshot
                else _core.Files(str(client.volumes.get(found.volume).path), theirs=True)
            )
            return files, found.subpath

        # What is mounted to be read alone shows ids as they are stored: as the container knows them.
        root = look(record.snapshot_key, read_only=read_only, ids=None if read_only else ids)
        yield _Tree(root, container.spec.get("mounts", []), source, ids)


def _ids_of(container: Container) -> tuple[str, str] | None:
    """Give the maps of a container's users and groups; None where it has the machine's ids."""
    maps = maps_of(container.spec["linux"])
    return None if maps is None else (maps.users, maps.groups)


def _root_of(container: Container) -> _core.Files | None:
    """Open the root of a running container; None when it has ended."""
    pid = container.task.pid()
    if pid is None:
        return None
    root = Path(f"/proc/{pid}/root")
    try:
        if root.samefile("/"):
            return None  # a process that does not have its own root yet, in a run by the restart policy; or another's number
        files = _core.Files(str(root), ids=_ids_of(container), theirs=True)
    except (LamellaError, FileNotFoundError, ProcessLookupError):
        if container.task.pid() == pid:
            raise
        return None
    return files if container.task.pid() == pid else None  # the number was not another's by then


def _describe(files: _core.Files, path: str, *, follow: bool) -> tuple[PathStat, str]:
    """Give what is at a path, and where that is without symlinks."""
    mode, uid, gid, size, mtime, _, target, place = files.stat(path, follow=follow)
    name = posixpath.basename(posixpath.normpath(path))
    return PathStat(name, mode, size, mtime, uid, gid, os.fsdecode(target)), os.fsdecode(place)


def get_archive(
    container: Container, path: str, *, follow_link: bool = False, timeout: float | None = None
) -> tuple[Archive, PathStat]:
    """See :meth:`lamella.containers.container.Container.get_archive`."""
    patience = _Patience(timeout)
    with ExitStack() as stack:
        place = stack.enter_context(_tree(container, write=False)).find(path, follow=follow_link)
        follow = follow_link or _ends_as_folder(path)
        found, _ = _describe(place.files, place.path, follow=follow)
        name = "" if _is_contents(path) else _name_of(path)
        produce = _packing(place.files, place.path, name, patience, follow=follow)
        return Archive(produce, stack.pop_all()), found


def put_archive(
    container: Container,
    path: str,
    data: ArchiveData,
    *,
    owner: tuple[int, int] | None = None,
    timeout: float | None = None,
) -> None:
    """See :meth:`lamella.containers.container.Container.put_archive`."""
    patience = _Patience(timeout)
    with _tree(container, write=True) as tree:
        place = _writable(tree.find(path))
        _into(place.files, place.path, lambda writing: _feed(data, writing), patience, owner=owner)


def put_archive_from(
    container: Container,
    path: str,
    descriptor: int,
    *,
    owner: tuple[int, int] | None = None,
    timeout: float | None = None,
) -> None:
    """Take an archive from an open descriptor, to its end."""
    patience = _Patience(timeout)
    with _tree(container, write=True) as tree:
        place = _writable(tree.find(path))
        _note(place.files.unpack(place.path, descriptor, owner=owner, timeout=patience.left()))


def copy_in(
    container: Container,
    source: str | os.PathLike[str],
    target: str,
    *,
    archive: bool,
    follow_link: bool,
    timeout: float | None,
) -> None:
    """See :meth:`lamella.containers.container.Container.copy_in`."""
    patience = _Patience(timeout)
    text = os.fspath(source)
    local = _core.Files("/")
    path = _absolute(text)
    follow = follow_link or _ends_as_folder(text)
    found, _ = _describe(local, path, follow=follow)
    with _tree(container, write=True) as tree:
        place = tree.find(target)
        folder, name = _target(found, text, place.files, _with_end_of(place.path, target), shown=target)
        _writable(place)
        owner = None if archive else (0, 0)
        _into(
            place.files, folder, _packing(local, path, name, patience, follow=follow), patience, owner=owner
        )


def copy_out(
    container: Container,
    source: str,
    target: str | os.PathLike[str],
    *,
    archive: bool,
    follow_link: bool,
    timeout: float | None,
) -> None:
    """See :meth:`lamella.containers.container.Container.copy_out`."""
    patience = _Patience(timeout)
    text = os.fspath(target)
    with _tree(container, write=False) as tree:
        place = tree.find(source, follow=follow_link)
        follow = follow_link or _ends_as_folder(source)
        found, _ = _describe(place.files, place.path, follow=follow)
        folder, name = _target(found, source, _core.Files("/"), _absolute(text), shown=text)
        if not Path(folder).is_dir():
            raise NotFound(f"the folder {folder} is not there", hint="Create it first.")
        inside = _core.Files(folder, symlinks=False)
        owner = None if archive else (os.geteuid(), os.getegid())
        produce = _packing(place.files, place.path, name, patience, follow=follow)
        _into(inside, ".", produce, patience, owner=owner, devices=False)


def export(container: Container, *, timeout: float | None = None) -> Archive:
    """See :meth:`lamella.containers.container.Container.export`."""
    with ExitStack() as stack:
        client = container._client
        key = container.record.snapshot_key
        files = stack.enter_context(opened(client.snapshots, client.config, key, read_only=True))
        return Archive(_packing(files, "/", "", _Patience(timeout), follow=False), stack.pop_all())


def copy_folder(source: _core.Files, path: str, target: Path) -> bool:
    """Copy a folder, owners and all, onto an empty one; False where there is none at ``path``, symlinks followed."""
    try:
        found, place = _describe(source, path, follow=True)
    except NotFound:
        return False
    if not found.is_dir:
        return False
    inside = _core.Files(str(target.parent), symlinks=False, theirs=True)
    patience = _Patience(None)
    _into(inside, ".", _packing(source, place, target.name, patience, follow=False), patience, owner=None)
    return True


def one_file(name: str, data: bytes, *, mode: int, owner: tuple[int, int]) -> bytes:
    """Make an archive of one file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.mtime = len(data), mode, int(time.time())
        entry.uid, entry.gid = owner
        archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def _target(found: PathStat, source: str, files: _core.Files, path: str, *, shown: str) -> tuple[str, str]:
    """Say into which folder something is copied and how it is called there ('': its content alone), by docker's table.

    =================  ====================  ===================================================
    source             target                result
    =================  ====================  ===================================================
    file               missing               a file of that name; NotFound for a name with a slash at its end
    file               file                  replaced
    file               folder                in it, by its own name
    folder             missing               a folder of that name, with the content
    folder             file                  FailedPrecondition
    folder             folder                in it, by its own name; with ``/.`` behind the source its content
    =================  ====================  ===================================================
    """
    try:
        there, place = _describe(files, path, follow=True)
    except NotFound:
        if _ends_as_folder(shown) and not found.is_dir:
            raise NotFound(f"the folder {shown} is not there", hint="Create it first.") from None
        return _split(path)
    if there.is_dir:
        return place, "" if found.is_dir and _is_contents(source) else _name_of(source)
    if found.is_dir:
        raise FailedPrecondition(f"{shown} is no folder, and a folder cannot be copied to it")
    return _split(place)


def _split(path: str) -> tuple[str, str]:
    folder, name = posixpath.split(path.rstrip("/"))
    if name in ("", ".", ".."):
        raise InvalidArgument(f"{path!r} names nothing that could be made")
    return folder or "/", name


def _name_of(path: str) -> str:
    return posixpath.basename(posixpath.normpath(_absolute(path) if not path.startswith("/") else path))


def _is_contents(path: str) -> bool:
    """Tell whether a path means what is in a folder, not the folder: ``/.`` at its end, or the root."""
    return path in (".", "") or path.endswith("/.") or not _name_of(path)


def _ends_as_folder(path: str) -> bool:
    return path.endswith(("/", "/."))


def _with_end_of(path: str, text: str) -> str:
    return f"{path.rstrip('/')}/" if _ends_as_folder(text) and path != "/" else path


def _absolute(path: str) -> str:
    """Make a path of this machine absolute, and leave it as it is otherwise: ``..`` behind a symlink is not the text before."""
    return path if path.startswith("/") else f"{Path.cwd()}/{path}"


def _writable(place: _Place) -> _Place:
    if place.refused:
        raise FailedPrecondition(place.refused)
    return place


def _packing(files: _core.Files, path: str, name: str, patience: _Patience, *, follow: bool) -> Producer:
    return lambda writing: _note(files.pack(path, writing, name=name, follow=follow, timeout=patience.left()))


def _into(
    files: _core.Files,
    folder: str,
    produce: Producer,
    patience: _Patience,
    *,
    owner: tuple[int, int] | None,
    devices: bool = True,
) -> None:
    """Apply what another thread produces."""
    with Archive(produce, ExitStack()) as archive:
        try:
            notes = files.unpack(
                folder, archive.fileno(), owner=owner, devices=devices, timeout=patience.left()
            )
            _note(notes)
        except DeadlineExceeded:
            archive.close(wait=0.2)
            raise
        except LamellaError:
            archive.raise_failure()  # it came before the end of the archive, which the other error is about
            raise
        for _ in archive:  # nothing is left but the producer's error
            pass


def _feed(data: ArchiveData, writing: int) -> None:
    if isinstance(data, bytes | bytearray | memoryview):
        pieces: Iterable[bytes] = [bytes(data)]
    elif hasattr(data, "read"):
        pieces = iter(lambda: data.read(_PIECE), b"")
    else:
        pieces = data
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[os.write(writing, view) :]


def _note(notes: list[str]) -> None:
    for note in notes:
        _log.warning("copying: %(reason)s", reason=note)

"""The record of a container's network: how it is plugged in, and what it takes to unplug it, whoever is left to do it.

The part ``release`` is read by the container's monitor too (``rust/launcher/src/network.rs``), which does the same as
:func:`release` here. Unplugging twice is harmless (CNI spec, DEL), so that it is simply done again where a record is found.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from lamella import _core
from lamella.config import Config
from lamella.containers.networks import record_path, unfinished_path
from lamella.containers.networks.execution import ID_VARIABLE, Program, run_program
from lamella.containers.networks.ports import Port
from lamella.disk import make_private_folder, make_state_folder, names_in, translated
from lamella.errors import LamellaError
from lamella.logs import Log

_log = Log("lamella.containers")
_SUFFIX = ".json"
STRAY_SECONDS = 10.0
COMPANION_SECONDS = 2.0
"""How long pasta may live on without its namespace: it watches the file, and needs milliseconds."""


class Release(msgspec.Struct, kw_only=True):
    """What takes the network away: programs, in this order, then the pin, with which ``process`` ends."""

    namespace: str
    programs: list[Program] = []
    process: int | None = None


class Attachment(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A container's network while it is plugged in, whole or in part."""

    container: str
    network: str
    release: Release
    interface: str = ""
    addresses: list[str] = []
    """With their prefix lengths: ``10.89.0.2/24``."""
    gateways: list[str] = []
    mac_address: str = ""
    ports: list[Port] = []
    result: dict[str, Any] | None = None
    """What the last plugin answered."""

    def write(self, config: Config) -> Path:
        """Put it on disk, whole or not at all."""
        path = record_path(config, self.container)
        fresh = unfinished_path(path)
        with translated(f"write {path}"):
            make_private_folder(path.parent)
            descriptor = os.open(
                fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(self))
            fresh.replace(path)
        return path

    def pin(self, config: Config) -> None:
        """Make the namespace, in the place of one that a killed start has left."""
        _pin_folder(config)
        _core.unpin_network(self.release.namespace)
        _core.pin_network(self.release.namespace)

    def take(self, config: Config, source: str) -> None:
        """Keep a namespace that is there (a file of /proc/PID/ns) as one's own."""
        _pin_folder(config)
        target = Path(self.release.namespace)
        _core.unpin_network(str(target))
        with translated(f"keep the network namespace {source}"):
            target.touch(0o600)
        _core.mount([("bind", source, ["bind"])], str(target))


def pin_path(config: Config, container: str) -> str:
    """Say where a container's network namespace is kept."""
    return str(config.state / "networks" / container)


def _pin_folder(config: Config) -> None:
    with translated("make the folder of network namespaces"):
        make_state_folder(config.state)
        make_private_folder(config.state / "networks")


def read(path: Path) -> Attachment | None:
    """Read a record; None when there is none, or when what is there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Attachment)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.MsgspecError:
        _log.warning("%(path)s is damaged; what it was to take away stays", path=str(path))
        return None


def attached(config: Config) -> Iterator[tuple[str, str, Path]]:
    """Give namespace, container and path of every record of the store, also of one that was never finished."""
    folder = config.root / "networks" / "attached"
    for stem in sorted({Path(name).stem for name in names_in(folder)}):
        namespace, dot, container = stem.rpartition(".")
        if dot:
            yield namespace, container, folder / f"{stem}{_SUFFIX}"


def release(config: Config, path: Path) -> None:
    """Unplug what a record says, and remove it. Harmless twice; whoever calls knows that the container does not run.

    All is tried; the first failure is raised, and the record stays then.
    """
    attachment = read(path)
    if attachment is None:
        _remove(path)
        return
    _await_strays(attachment.container)
    failure: LamellaError | None = None
    pinned = _is_namespace(attachment.release.namespace)
    for program in attachment.release.programs:
        try:
            # A namespace that is gone, as after a restart of the machine, is named by nothing (CNI spec, DEL).
            run_program(program if pinned else program.without_namespace())
        except LamellaError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    namespace, process = attachment.release.namespace, attachment.release.process
    # Before the pin goes: of a process that is ending nobody can tell any more what it was.
    companion = _companion(process, namespace) if process is not None else -1
    try:
        _core.unpin_network(namespace)
        if companion >= 0:
            _await_end(companion)
    finally:
        if companion >= 0:
            os.close(companion)
    with suppress(OSError):
        Path(f"{namespace}.pid").unlink()  # of a pasta whose start was killed
    _remove(path)


def _remove(path: Path) -> None:
    with translated(f"remove {path}"):
        unfinished_path(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _is_namespace(path: str) -> bool:
    """Tell whether something is pinned there: then it lies on another file system than its folder."""
    try:
        return os.lstat(path).st_dev != os.stat(os.path.dirname(path)).st_dev  # noqa: PTH116, PTH120
    except OSError:
        return False


def _await_strays(container: str) -> None:
    """Wait for plugins that go on without the process that had started them: what they do would come after its undoing.

    Halfway through a DEL they may have taken away what tells the next one what else there is; so they are killed only when they
    do not end.
    """
    mark = f"{ID_VARIABLE}={container}".encode()
    deadline = time.monotonic() + STRAY_SECONDS
    while strays := [
        pid for pid in map(int, filter(str.isdigit, names_in(Path("/proc")))) if _has_variable(pid, mark)
    ]:
        if time.monotonic() > deadline:
            for pid in strays:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _has_variable(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 (hundreds of them)
            return mark in file.read().split(b"\0")
    except OSError:
        return False


def _companion(pid: int, namespace: str) -> int:
    """Give a descriptor of the process that serves a namespace, by its arguments; -1 when it is not there any more."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return -1
    with suppress(OSError):
        if namespace.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return descriptor
    os.close(descriptor)
    return -1


def _await_end(process: int) -> None:
    """Wait for the end of a process, and kill it when it does not come."""
    import select

    waiter = select.poll()
    waiter.register(process, select.POLLIN)
    if not waiter.poll(COMPANION_SECONDS * 1000):
        with suppress(OSError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        waiter.poll(COMPANION_SECONDS * 1000)

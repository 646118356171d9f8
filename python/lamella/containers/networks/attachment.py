"""The record of a container's networks: how it is plugged in, and what it takes to unplug it, whoever is left to do it.

``release`` is what the core does (``rust/launcher/src/network``), called by the container's monitor at its end, or by
:func:`release` here. Unplugging twice is harmless (CNI spec, DEL), so that it is simply done again where a record is found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from lamella import _core
from lamella.config import Config
from lamella.containers.networks import record_path, unfinished_path
from lamella.containers.networks.execution import INTERFACE_VARIABLE, Program, release_recorded
from lamella.containers.networks.ports import Port
from lamella.disk import make_private_folder, make_state_folder, names_in, translated
from lamella.logs import Log
from lamella.structs import Malformed, Struct, decode, encode
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.containers.id_maps import IdMaps

_log = Log("lamella.containers")
_SUFFIX = ".json"
_EVERYWHERE = ("0.0.0.0/0", "::/0")


class Release(Struct, kw_only=True):
    """What takes the networks away: programs, in this order, then the pin, with which ``process`` ends."""

    namespace: str
    programs: list[Program] = []
    process: int | None = None

    def of(self, interface: str) -> list[Program]:
        """Give the programs for one interface alone."""
        mark = f"{INTERFACE_VARIABLE}={interface}"
        return [program for program in self.programs if mark in program.env]


class Attachment(Struct, kw_only=True, omit_defaults=True):
    """One network that a container is plugged into, whole or in part."""

    network: str
    interface: str = ""
    addresses: list[str] = []
    """With their prefix lengths: ``10.89.0.2/24``."""
    gateways: list[str] = []
    mac_address: str = ""
    aliases: list[str] = []
    publishes: bool = False
    """The container's ports are published here."""
    metric: int = 0
    """That of its default routes, where they come after another network's."""
    result: dict[str, Any] | None = None
    """What the last plugin answered."""

    @property
    def default_gateways(self) -> list[str]:
        """The gateways of the default routes that it made."""
        found: list[str] = []
        for route in (self.result or {}).get("routes") or []:
            target = route.get("dst") if isinstance(route, dict) else None
            if target in _EVERYWHERE:
                same = [each for each in self.gateways if (":" in each) == (target == "::/0")]
                found += [gateway for gateway in [route.get("gw"), *same] if isinstance(gateway, str)][:1]
        return list(dict.fromkeys(found))

    @property
    def plain_addresses(self) -> list[str]:
        """The addresses without their prefix lengths."""
        return [address.partition("/")[0] for address in self.addresses]


class Record(Struct, kw_only=True, omit_defaults=True):
    """A container's networks while it is plugged in."""

    container: str
    release: Release
    attachments: list[Attachment] = []
    ports: list[Port] = []
    names: str = ""
    """The file that says what others call it (``rust/launcher/src/network/names.rs``)."""
    unfinished: str = ""
    """The interface that is being plugged in or out."""

    def free_interface(self) -> str:
        """Choose the name of the next interface."""
        taken = {attachment.interface for attachment in self.attachments}
        return next(name for name in (f"eth{number}" for number in count()) if name not in taken)

    def find(self, network: str) -> Attachment | None:
        """Give how it is plugged into a network."""
        return next((each for each in self.attachments if each.network == network), None)

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
                file.write(encode(self))
            fresh.replace(path)
        return path

    def pin(self, config: Config, maps: IdMaps | None) -> None:
        """Make the namespace, in the place of one that a killed start has left; with maps in a user namespace that has them."""
        _pin_folder(config)
        _core.unpin_network(self.release.namespace)
        _core.pin_network(self.release.namespace, (maps.users, maps.groups) if maps is not None else None)

    def mark(self, config: Config) -> None:
        """Make the file that the namespace would be kept on, for who is not root: it lasts as long as the network."""
        _pin_folder(config)
        with translated(f"make {self.release.namespace}"):
            Path(self.release.namespace).touch(0o600)

    def take(self, config: Config, process: int, *, with_owner: bool) -> None:
        """Keep the namespace of a process as one's own, and its user namespace."""
        _pin_folder(config)
        namespace = self.release.namespace
        _core.unpin_network(namespace)
        kept = {"net": namespace}
        if with_owner:
            kept["user"] = _core.network_owner(namespace)
        for name, target in kept.items():
            source = f"/proc/{process}/ns/{name}"
            with translated(f"keep the namespace {source}"):
                Path(target).touch(0o600)
            _core.mount([("bind", source, ["bind"])], target)


class _Earlier(Attachment, kw_only=True):
    """A record as it was when a container could have one network alone."""

    container: str
    release: Release
    ports: list[Port] = []

    def renewed(self) -> Record:
        fields = {name: getattr(self, name) for name in Attachment.__struct_fields__}
        attachment = Attachment(**{**fields, "publishes": bool(self.ports)})
        return Record(
            container=self.container, release=self.release, attachments=[attachment], ports=self.ports
        )


def describe_record(plugged: Record) -> dict[str, Any]:
    """Give what ``inspect`` says of a container that is plugged in; ``networks`` are those of CNI, by name."""
    told: dict[str, Any] = {"namespace": plugged.release.namespace}
    if plugged.attachments:
        told |= _describe_attachment(plugged.attachments[0])
    told["ports"] = [
        {
            "container_port": port.container_port,
            "protocol": port.protocol,
            "host_ip": port.host_ip,
            "host_port": port.host_port,
        }
        for port in plugged.ports
    ]
    if plugged.release.process is not None:
        told["connected"] = _core.serves_network(plugged.release.process, plugged.release.namespace)
    told["networks"] = {
        each.network: {**_describe_attachment(each), "aliases": each.aliases}
        for each in plugged.attachments
        if each.interface
    }
    return told


def _describe_attachment(attachment: Attachment) -> dict[str, Any]:
    return {
        "interface": attachment.interface,
        "addresses": attachment.addresses,
        "gateways": attachment.gateways,
        "mac_address": attachment.mac_address,
    }


def pin_path(config: Config, container: str) -> str:
    """Say where a container's network namespace is kept."""
    return str(config.state / "networks" / container)


def is_pinned(path: str) -> bool:
    """Tell whether something is kept there: then it lies on another file system than its folder."""
    try:
        return os.lstat(path).st_dev != os.stat(os.path.dirname(path)).st_dev  # noqa: PTH116, PTH120
    except OSError:
        return False


def _pin_folder(config: Config) -> None:
    with translated("make the folder of network namespaces"):
        make_state_folder(config.state)
        make_private_folder(config.state / "networks")


def read(path: Path) -> Record | None:
    """Read a record; None when there is none, or when what is there is none."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if decode(data, _Form).network:
            return decode(data, _Earlier).renewed()
        return decode(data, Record)
    except Malformed:
        _log.warning("%(path)s is damaged; what it was to take away stays", path=str(path))
        return None


class _Form(Struct):
    network: str = ""


def attached(config: Config) -> Iterator[tuple[str, str, Path]]:
    """Give namespace, container and path of every record of the store, also of one that was never finished."""
    folder = config.root / "networks" / "attached"
    for stem in sorted({Path(name).stem for name in names_in(folder)}):
        namespace, dot, container = stem.rpartition(".")
        if dot:
            yield namespace, container, folder / f"{stem}{_SUFFIX}"


def release(path: Path) -> None:
    """Unplug what a record says, and remove it. Harmless twice; whoever calls knows that the container does not run.

    All is tried; the first failure is raised, and the record stays then.
    """
    if read(path) is None:
        with translated(f"remove {path}"):
            unfinished_path(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        return
    release_recorded(str(path))

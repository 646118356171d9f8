"""User namespaces of containers: which ids of this machine stand for those inside (``userns``, ``uid_maps``, ``gid_maps``).

A map has podman's form, ``CONTAINER:HOST:SIZE``. ``auto`` takes a range that no other container of the store has, of those that
systemd sets apart for containers (524288 to 1878982655; its UIDS-GIDS.md). What is in a snapshot or a volume keeps the ids that
it has for everybody: mounts show them mapped, so that nothing is copied and the next container may have other ids.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from lamella.config import DEFAULT_RUNTIME
from lamella.containers.runtime_spec import IdMapping, Mount
from lamella.errors import InvalidArgument, ResourceExhausted, Unsupported
from lamella.labels import GID_MAPPING, UID_MAPPING

if TYPE_CHECKING:
    from lamella.containers.options import Options
    from lamella.metadata import Transaction

SIZE = 65_536
_FIRST, _LAST = 524_288, 1_878_982_655
_FORMS = "Use host, auto, auto:size=4096, or maps of ids: uid_maps=['0:100000:65536'] (--uidmap)."


class IdMaps(msgspec.Struct, frozen=True, kw_only=True):
    """The maps of a container's users and groups, in containerd's form: ``0:100000:65536``, several with commas between them."""

    users: str
    groups: str

    @property
    def labels(self) -> dict[str, str]:
        """The labels of a snapshot that is mounted so."""
        return {UID_MAPPING: self.users, GID_MAPPING: self.groups}

    def show(self, mount: Mount) -> Mount:
        """Give a bind mount that shows its files so."""
        return Mount(
            destination=mount.destination,
            type=mount.type,
            source=mount.source,
            options=[*mount.options, f"uidmap={self.users}", f"gidmap={self.groups}"],
        )


def spec_mappings(text: str) -> list[IdMapping]:
    """Give a map as the runtime spec has it."""
    return [IdMapping(*map(int, part.split(":"))) for part in text.split(",")]


def maps_of(linux: Mapping[str, Any]) -> IdMaps | None:
    """Give the maps that the runtime spec's Linux part has; None where the container has the machine's ids."""
    if "uidMappings" not in linux:
        return None
    users, groups = (
        ",".join(f"{each['containerID']}:{each['hostID']}:{each['size']}" for each in linux[name])
        for name in ("uidMappings", "gidMappings")
    )
    return IdMaps(users=users, groups=groups)


def wanted_maps(options: Options, used: Iterable[IdMaps]) -> IdMaps | None:
    """Return the maps that the options ask for, None for none. ``used`` are those that other containers have.

    InvalidArgument, Unsupported, ResourceExhausted when no range is free.
    """
    mode, _, rest = (options.userns or "").partition(":")
    if options.uid_maps or options.gid_maps:
        if mode not in ("", "private"):
            raise InvalidArgument(f"userns {options.userns!r} and maps of ids exclude each other")
        users = _text(options.uid_maps or options.gid_maps or ())
        return IdMaps(users=users, groups=_text(options.gid_maps or options.uid_maps or ()))
    if mode in ("", "host") and not rest:
        return None
    if mode != "auto":
        raise Unsupported(f"userns {options.userns!r} is not supported", hint=_FORMS)
    size = SIZE
    if rest:
        name, _, number = rest.partition("=")
        if name != "size" or not number.isdecimal() or not 0 < int(number) <= SIZE:
            raise InvalidArgument(f"userns {options.userns!r} is malformed", hint=_FORMS)
        size = int(number)
    text = f"0:{_free_range(used)}:{size}"
    return IdMaps(users=text, groups=text)


def used_maps(db: Transaction) -> list[IdMaps]:
    """Give the maps of all containers of the store."""
    rows = db.execute("SELECT json_extract(extra, '$.id_maps') FROM containers WHERE extra LIKE '%id_maps%'")
    return [msgspec.json.decode(text, type=IdMaps) for (text,) in rows.fetchall() if text]


def check_other_options(options: Options, network: str, mounts: Iterable[object], runtime: str) -> None:
    """Refuse what a container in a user namespace of its own cannot have. Unsupported."""
    from lamella.containers.mounts import ImageMount, VolumeMount

    refused = {
        f"network {network!r}": network != "none",
        f"runtime {runtime!r}": runtime != DEFAULT_RUNTIME,
        "privileged": options.privileged,
        "a namespace of the machine": bool(
            {"host"} & {options.pid_mode, options.ipc_mode, options.uts_mode, options.cgroupns}
        ),
        "a mounted image": any(isinstance(mount, ImageMount) for mount in mounts),
        "a part of a volume": any(isinstance(mount, VolumeMount) and mount.subpath for mount in mounts),
    }
    for what, given in refused.items():
        if given:
            raise Unsupported(
                f"{what} is not supported in a user namespace of the container's own",
                hint="Leave it out, or leave out userns and maps of ids.",
            )


def _text(maps: Iterable[str]) -> str:
    from lamella import _core
    from lamella.containers.options import several

    text = ",".join(several(maps))
    _core.check_mount_options([f"uidmap={text}", f"gidmap={text}"])
    return text


def _free_range(used: Iterable[IdMaps]) -> int:
    """Choose at random, so that two who choose at once do not choose the same."""
    taken = {
        number // SIZE
        for maps in used
        for mapping in [*spec_mappings(maps.users), *spec_mappings(maps.groups)]
        for number in range(mapping.host_id, mapping.host_id + mapping.size + SIZE - 1, SIZE)
    }
    free = [slot for slot in range(_FIRST // SIZE, (_LAST + 1) // SIZE) if slot not in taken]
    if not free:
        raise ResourceExhausted("no range of ids is free for a container", hint="Remove containers.")
    return free[int.from_bytes(os.urandom(4), "little") % len(free)] * SIZE

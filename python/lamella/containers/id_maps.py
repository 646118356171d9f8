"""User namespaces of containers: which ids of this machine stand for those inside (``userns``, ``uid_maps``, ``gid_maps``).

A map has podman's form, ``CONTAINER:HOST:SIZE``. ``auto`` takes a range that no other container of the store has, of those that
systemd sets apart for containers (524288 to 1878982655; its UIDS-GIDS.md). What is in a snapshot or a volume keeps the ids that
it has for everybody: mounts show them mapped, so that nothing is copied and the next container may have other ids.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from lamella.containers.runtime_spec import IdMapping, Mount
from lamella.errors import InvalidArgument, ResourceExhausted, Unsupported
from lamella.labels import GID_MAPPING, UID_MAPPING
from lamella.structs import Struct, decode
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.containers.options import Options
    from lamella.metadata import Transaction

SIZE = 65_536
_FIRST, _LAST = 524_288, 1_878_982_655
_FORMS = (
    "Use host, auto, auto:size=4096, container:NAME, or maps of ids: uid_maps=['0:100000:65536'] (--uidmap)."
)


class IdMaps(Struct, frozen=True, kw_only=True):
    """The maps of a container's users and groups, in containerd's form: ``0:100000:65536``, several with commas between them."""

    users: str
    groups: str

    @property
    def labels(self) -> dict[str, str]:
        """The labels of a snapshot that is mounted so."""
        return {UID_MAPPING: self.users, GID_MAPPING: self.groups}

    @property
    def options(self) -> list[str]:
        """The options of a mount that shows its files so."""
        return [f"uidmap={self.users}", f"gidmap={self.groups}"]

    def show(self, mount: Mount) -> Mount:
        """Give a bind mount that shows its files so."""
        return Mount(
            destination=mount.destination,
            type=mount.type,
            source=mount.source,
            options=[*mount.options, *self.options],
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


def wanted_maps(options: Options, used: Iterable[IdMaps], shared: IdMaps | None = None) -> IdMaps | None:
    """Return the maps that the options ask for, None for none. ``used`` are those that other containers have.

    ``shared`` are those of the container whose network is shared. InvalidArgument, Unsupported, ResourceExhausted when no range
    is free.
    """
    mode, _, rest = (options.userns or "").partition(":")
    if options.uid_maps or options.gid_maps:
        if mode not in ("", "private"):
            raise InvalidArgument(f"userns {options.userns!r} and maps of ids exclude each other")
        users = _text(options.uid_maps or options.gid_maps or ())
        return IdMaps(users=users, groups=_text(options.gid_maps or options.uid_maps or ()))
    if mode in ("", "host") and not rest:
        return None
    if mode == "container" and rest:
        if options.userns != options.network:
            raise Unsupported(
                f"userns {options.userns!r} is not supported without the same container's network",
                hint=f"Give network={options.userns!r}, too.",
            )
        return shared
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


def check_sharing(network: str, maps: IdMaps | None, others: IdMaps | None) -> None:
    """Refuse the network of a container with other ids than one's own. Unsupported.

    It belongs to one user namespace: nobody of another is anybody there, but whoever has the uid that made it, the machine's
    root, has every capability, also those that he was not given (user_namespaces(7)).
    """
    if maps != others:
        raise Unsupported(
            f"network {network!r} belongs to another user namespace than the container's",
            hint=f"Give userns={network!r}, too."
            if others is not None
            else "Leave out userns and maps of ids.",
        )


def _maps_of_container(db: Transaction, namespace: str, container: str) -> IdMaps | None:
    row = db.execute(
        "SELECT json_extract(extra, '$.id_maps') FROM containers WHERE namespace = ? AND id = ?",
        (namespace, container),
    ).fetchone()
    return decode(row[0], IdMaps) if row is not None and row[0] else None


def used_maps(db: Transaction) -> list[IdMaps]:
    """Give the maps of all containers of the store."""
    rows = db.execute("SELECT json_extract(extra, '$.id_maps') FROM containers WHERE extra LIKE '%id_maps%'")
    return [decode(text, IdMaps) for (text,) in rows.fetchall() if text]


def settle_maps(db: Transaction, namespace: str, options: Options, shared: str) -> IdMaps | None:
    """Return the maps of a container that is to be made, None where it has the machine's ids.

    ``shared`` is the identifier of the container whose network it has, '' for none. Errors: those of :func:`wanted_maps` and
    :func:`check_sharing`; Unsupported for other options that do not go together with maps.
    """
    others = _maps_of_container(db, namespace, shared) if shared else None
    maps = wanted_maps(options, used_maps(db), others) if options.asks_for_maps else None
    if shared:
        check_sharing(options.network, maps, others)
    if maps is None:
        return None
    if os.geteuid() != 0:
        raise Unsupported(
            "a user namespace of the container's own takes root, who alone may show an image's files with other ids",
            hint="Leave out userns and maps of ids: an ordinary user's containers have his own id for root, and his ranges.",
        )
    refused = {
        "privileged": options.privileged,
        "a namespace of the machine": "host"
        in (options.pid_mode, options.ipc_mode, options.uts_mode, options.cgroupns),
    }
    for what, given in refused.items():
        if given:
            raise Unsupported(
                f"{what} is not supported in a user namespace of the container's own",
                hint="Leave it out, or leave out userns and maps of ids.",
            )
    return maps


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

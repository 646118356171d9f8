"""The addresses that networks of the store have given, as the plugin host-local keeps them.

::

    <state>/networks/leases/<network>/lock         flock: host-local's, while it gives an address or takes one back
    <state>/networks/leases/<network>/<address>    container and interface, a line each

A host-local that is killed between making such a file and writing it leaves one that no DEL takes away.
"""

from __future__ import annotations

from pathlib import Path

from lamella.config import Config
from lamella.containers.networks.attachment import attached
from lamella.disk import names_in, translated
from lamella.locks import FileLock

_OTHER_FILES = ("lock", "last_reserved_ip")


def leases_folder(config: Config) -> Path:
    """Say where they are."""
    return config.state / "networks" / "leases"


def drop_orphaned_leases(config: Config) -> None:
    """Take back the addresses that belong to no container which is plugged in. Harmless twice.

    A container's record is there before a plugin runs for it, and goes after the last one.
    """
    for network in names_in(leases_folder(config)):
        folder = leases_folder(config) / network
        with (
            translated(f"look at the addresses of network {network}"),
            FileLock(folder / "lock", what="the addresses"),
        ):
            known = {container for _, container, _ in attached(config)}
            for name in names_in(folder):
                if not name.startswith(_OTHER_FILES):
                    owner = (folder / name).read_text(errors="replace").partition("\n")[0].strip()
                    if owner not in known:
                        (folder / name).unlink()

"""What containers of the same networks call each other: lines of their hosts files.

Each that is plugged into CNI networks tells its names in a file of the state folder; who tells something, or takes it back at
its end, brings the hosts files of all that share a network with it up to date (``rust/launcher/src/network/names.rs``). A
container is found by its name, its aliases in that network, and the first twelve characters of its identifier, by those of
its own namespace.
"""

from __future__ import annotations

from lamella import _core
from lamella.config import Config
from lamella.containers.networks import Endpoint, endpoints_of
from lamella.containers.networks.attachment import Record
from lamella.containers.networks.files import own_lines
from lamella.structs import Struct, encode
from lamella.typings import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.containers.record import ContainerRecord


class Told(Struct, kw_only=True):
    """What one container tells: its hosts file, its own lines there, and what others of each network see."""

    hosts: str
    own: list[str]
    networks: dict[str, list[str]]


def names_path(config: Config, container: str) -> str:
    """Say where it is told."""
    return str(config.state / "networks" / "names" / config.namespace / container)


def tell(config: Config, record: ContainerRecord, plugged: Record) -> None:
    """Tell what a container is called in the networks that it is plugged into. Harmless twice."""
    extra = record.extra
    endpoints = {endpoint.network: endpoint for endpoint in endpoints_of(extra)}
    own: list[str] = []
    networks: dict[str, list[str]] = {}
    for attachment in plugged.attachments:
        aliases = endpoints.get(attachment.network, Endpoint(network="")).aliases
        names = list(dict.fromkeys([record.name, *(aliases or attachment.aliases), record.id[:12]]))
        known = [name for name in names if name != record.id[:12]]
        own += own_lines(attachment.plain_addresses, extra.hostname, extra.domainname, known)
        networks[attachment.network] = [
            f"{address}\t{' '.join(names)}" for address in attachment.plain_addresses
        ]
    told = Told(
        hosts=str(config.root / "containers" / config.namespace / record.id / "hosts"),
        own=own or own_lines(["127.0.1.1"], extra.hostname, extra.domainname),
        networks=networks,
    )
    _core.tell_names(names_path(config, record.id), encode(told).decode())

"""Whether containers are still connected as they were: plugins say so (CNI spec, CHECK), and pasta's processes by living."""

from __future__ import annotations

from lamella import _core
from lamella.containers.networks import Settings, record_path
from lamella.containers.networks.attachment import Attachment, Record, is_pinned, read
from lamella.containers.networks.cni import check_attachment
from lamella.errors import LamellaError
from lamella.structs import Struct
from lamella.typings import TYPE_CHECKING

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.config import Config


class Problem(Struct, frozen=True, kw_only=True):
    """What is wrong with one network of a container that runs."""

    container: str
    network: str
    interface: str
    reason: str


def check_networks(client: Client) -> list[Problem]:
    """See :meth:`lamella.containers.networks.collection.Networks.check`."""
    found = []
    for container in client.containers.list():
        plugged = read(record_path(client.config, container.id))
        if plugged is None:
            continue
        settings = container.record.extra.network_settings or Settings()
        for attachment in plugged.attachments:
            reason = _problem(client.config, plugged, attachment, settings)
            if reason and container.task.running():
                found.append(
                    Problem(
                        container=container.id,
                        network=attachment.network,
                        interface=attachment.interface,
                        reason=reason,
                    )
                )
    return found


def _problem(config: Config, plugged: Record, attachment: Attachment, settings: Settings) -> str:
    if plugged.release.process is not None:
        alive = _core.serves_network(plugged.release.process, plugged.release.namespace)
        return "" if alive else "pasta has ended, and nothing gets in or out"
    if not is_pinned(plugged.release.namespace):
        return "its network namespace is not kept any more"
    if not attachment.interface or plugged.unfinished == attachment.interface:
        return ""
    try:
        check_attachment(config, plugged, attachment, settings)
    except LamellaError as error:
        return str(error)
    return ""

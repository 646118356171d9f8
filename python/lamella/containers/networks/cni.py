"""CNI networks: running the plugins of a network for a container.

The spec is at github.com/containernetworking/cni, SPEC.md (1.1). Each plugin is a program that reads its configuration, knows
from its environment what it is to do with which container, and writes a result that the next one gets. What takes it all
away again (DEL, in reverse order) is written down before the first plugin runs, and again with each result, which DEL is
given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from lamella.config import Config
from lamella.containers.networks import Connection, Settings
from lamella.containers.networks.attachment import Attachment, Release, attached, pin_path, read, release
from lamella.containers.networks.configuration import (
    NetworkConfiguration,
    Plugin,
    configurations,
    find,
    plugin_folders,
    plugin_path,
)
from lamella.containers.networks.execution import ID_VARIABLE, NETNS_VARIABLE, Program, run_program
from lamella.containers.networks.files import Resolvers, connected_files
from lamella.containers.networks.joining import join
from lamella.containers.networks.publishing import choose_ports
from lamella.errors import (
    InvalidArgument,
    LamellaError,
    NetworkFailed,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from lamella.logs import Log

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.containers.container import ContainerRecord

INTERFACE = "eth0"
_log = Log("lamella.containers")


def connect_cni(client: Client, record: ContainerRecord, settings: Settings) -> Connection:
    """Plug a container into a CNI network; see :func:`lamella.containers.networks.connect`."""
    import os

    if os.geteuid() != 0:
        raise PermissionDenied(
            f"network {record.extra.network!r}: only root can plug a container into a CNI network",
            hint="Run as root.",
        )
    config = client.config
    network = find(config, record.extra.network)
    _check_capabilities(network, settings)
    paths = {plugin.type: plugin_path(plugin.type) for plugin in network.plugins}
    attachment = Attachment(
        container=record.id,
        network=network.name,
        interface=INTERFACE,
        release=Release(namespace=pin_path(config, record.id)),
    )
    with choose_ports(config, record.id, settings.ports) as ports:
        attachment.ports = list(ports)
        call = _Call(network, paths, attachment, settings)
        attachment.release.programs = call.undo(None)
        path = attachment.write(config)
    try:
        spec = join(record.spec, attachment.release.namespace)
        attachment.pin(config)
        result: dict[str, Any] = {}
        for result in call.add():
            # After each: a later plugin that is killed halfway undoes nothing unless DEL is told of the addresses.
            _take_result(attachment, result)
            attachment.release.programs = call.undo(result)
            attachment.write(config)
        _check_result(attachment, settings)
        files = connected_files(
            record.extra.hostname,
            settings,
            addresses=[address.partition("/")[0] for address in attachment.addresses],
            aliases=[*([record.name] if record.name != record.extra.hostname else []), *settings.aliases],
            gateway=next(iter(attachment.gateways), ""),
            network=_resolvers(result),
        )
    except BaseException:
        try:
            release(config, path)
        except LamellaError as error:  # the first one says more
            _log.warning(
                "the network of the container %(container_name)s is left half made: %(reason)s",
                container=record.id,
                container_name=record.name,
                reason=str(error),
            )
        raise
    return Connection(spec, files, path)


class _Call:
    """What the plugins of a network are told about one container."""

    def __init__(
        self, network: NetworkConfiguration, paths: dict[str, str], attachment: Attachment, settings: Settings
    ) -> None:
        self._network = network
        self._paths = paths
        self._attachment = attachment
        self._runtime = _runtime_configuration(attachment, settings)
        capabilities = network.capabilities
        arguments = ["IgnoreUnknown=1"]
        # What no plugin takes as a capability is told in the older way, which the reference plugins still read.
        if settings.ip and "ips" not in capabilities:
            arguments.append(f"IP={settings.ip}")
        if settings.mac_address and "mac" not in capabilities:
            arguments.append(f"MAC={settings.mac_address}")
        self._arguments = ";".join(arguments)

    def _program(self, command: str, plugin: Plugin, result: dict[str, Any] | None) -> Program:
        attachment = self._attachment
        return Program(
            args=[self._paths[plugin.type]],
            env=[
                f"CNI_COMMAND={command}",
                f"{ID_VARIABLE}={attachment.container}",
                f"{NETNS_VARIABLE}={attachment.release.namespace}",
                f"CNI_IFNAME={attachment.interface}",
                f"CNI_ARGS={self._arguments}",
                f"CNI_PATH={':'.join(plugin_folders())}",
            ],
            input=execution_document(self._network, plugin, self._runtime, result),
        )

    def add(self) -> Iterator[dict[str, Any]]:
        """Run every plugin's ADD; give the result of each, which the next one is told."""
        if self._network.at_least("1.1.0"):
            self._ask_status()
        result: dict[str, Any] | None = None
        for plugin in self._network.plugins:
            answer = run_program(self._program("ADD", plugin, result))
            try:
                result = msgspec.json.decode(answer, type=dict[str, Any])
            except msgspec.MsgspecError:
                raise NetworkFailed(
                    f"{plugin.type}: its answer is no result of a CNI plugin", plugin=plugin.type
                ) from None
            yield result

    def _ask_status(self) -> None:
        for plugin in self._network.plugins:
            try:
                run_program(self._program("STATUS", plugin, None))
            except NetworkFailed as error:
                if error.code in (50, 51):  # CNI spec, STATUS: it cannot do ADD now
                    raise Unavailable(f"network {self._network.name} is not ready: {error}") from None
                if error.code != 4:  # a plugin of before that does not know the command
                    raise

    def undo(self, result: dict[str, Any] | None) -> list[Program]:
        """Give what runs every plugin's DEL, the last one first; ``result`` is what ADD came to, if it did."""
        known = result if self._network.at_least("0.4.0") else None
        return [self._program("DEL", plugin, known) for plugin in reversed(self._network.plugins)]


def execution_document(
    network: NetworkConfiguration,
    plugin: Plugin,
    runtime: dict[str, Any],
    result: dict[str, Any] | None,
    **more: Any,
) -> str:
    """Derive what a plugin reads from its configuration (CNI spec, "Deriving execution configuration")."""
    document = {key: value for key, value in plugin.document.items() if not key.startswith("cni.dev/")}
    document.pop("capabilities", None)
    document.pop("cniVersions", None)
    told = {name: runtime[name] for name in sorted(plugin.capabilities) if name in runtime}
    if told:
        document["runtimeConfig"] = told
    if result is not None:
        document["prevResult"] = result
    document.update(name=network.name, cniVersion=network.version, **more)
    return msgspec.json.encode(document).decode()


def _runtime_configuration(attachment: Attachment, settings: Settings) -> dict[str, Any]:
    """Give what a plugin may ask for by a capability (CNI's CONVENTIONS.md)."""
    told: dict[str, Any] = {}
    if attachment.ports:
        told["portMappings"] = [
            {
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol,
                **({"hostIP": port.host_ip} if port.host_ip else {}),
            }
            for port in attachment.ports
        ]
    if settings.ip:
        told["ips"] = [settings.ip]
    if settings.mac_address:
        told["mac"] = settings.mac_address
    if settings.aliases:
        told["aliases"] = list(settings.aliases)
    if settings.dns or settings.dns_search or settings.dns_options:
        told["dns"] = {
            "servers": list(settings.dns),
            "searches": list(settings.dns_search),
            "options": list(settings.dns_options),
        }
    return told


def _check_capabilities(network: NetworkConfiguration, settings: Settings) -> None:
    """Refuse what no plugin of the network would do."""
    for wanted, capability, what in (
        (settings.ports, "portMappings", "ports cannot be published"),
        (settings.aliases, "aliases", "there are no aliases"),
    ):
        if wanted and capability not in network.capabilities:
            raise Unsupported(
                f"{what} in network {network.name}: none of its plugins has the capability {capability!r}",
                hint="The plugin for ports is portmap." if capability == "portMappings" else None,
            )


def _take_result(attachment: Attachment, result: dict[str, Any]) -> None:
    """Note what a result says (CNI spec, "ADD Success"; before 0.3.0 there are ip4 and ip6)."""
    attachment.result = result
    given = _objects(result.get("ips")) + [
        {"address": entry.get("ip"), "gateway": entry.get("gateway")}
        for key in ("ip4", "ip6")
        for entry in _objects([result.get(key)])
    ]
    attachment.addresses = [entry["address"] for entry in given if isinstance(entry.get("address"), str)]
    attachment.gateways = [
        entry["gateway"] for entry in given if isinstance(entry.get("gateway"), str) and entry["gateway"]
    ]
    for interface in _objects(result.get("interfaces")):
        if interface.get("sandbox") and interface.get("name") == attachment.interface:
            attachment.mac_address = str(interface.get("mac", ""))


def _objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _check_result(attachment: Attachment, settings: Settings) -> None:
    """See that what was asked for was given; addresses become lines of a file that the container reads."""
    import ipaddress

    for address in [*attachment.addresses, *attachment.gateways]:
        try:
            ipaddress.ip_interface(address)
        except ValueError:
            raise NetworkFailed(
                f"network {attachment.network}: {address!r} is no address", plugin=attachment.network
            ) from None
    plain = [address.partition("/")[0] for address in attachment.addresses]
    for asked, given, what in (
        (settings.ip, plain, "address"),
        (settings.mac_address, [attachment.mac_address], "MAC"),
    ):
        if asked and asked not in [entry.lower() for entry in given]:
            raise InvalidArgument(
                f"network {attachment.network} did not give the {what} {asked}, but {', '.join(given) or 'none'}",
                hint="Its plugins do not take one that is asked for.",
            )


def _resolvers(result: dict[str, Any]) -> Resolvers:
    """Read the resolvers that a network has of its own; what is malformed is left out."""
    dns = result.get("dns")
    if not isinstance(dns, dict):
        return Resolvers()

    def words(key: str) -> tuple[str, ...]:
        value = dns.get(key)
        return (
            tuple(
                word
                for word in value
                if isinstance(word, str) and word.isprintable() and word and " " not in word
            )
            if isinstance(value, list)
            else ()
        )

    search = words("search")
    domain = dns.get("domain")
    if not search and isinstance(domain, str) and domain.isprintable() and domain and " " not in domain:
        search = (domain,)
    return Resolvers(nameservers=words("nameservers"), search=search, options=words("options"))


def collect(config: Config) -> None:
    """Let the plugins of the store's own networks drop what belongs to no container (CNI spec, GC, from 1.1 on).

    Only those: of a network that others use, too, nobody knows all containers. What fails is logged.
    """
    current: dict[str, list[dict[str, str]]] = {}
    for _, _, path in attached(config):
        attachment = read(path)
        if attachment is not None:
            current.setdefault(attachment.network, []).append(
                {"containerID": attachment.container, "ifname": attachment.interface}
            )
    for network in configurations(config):
        if not network.own or network.disable_gc or not network.at_least("1.1.0"):
            continue
        for plugin in network.plugins:
            more = {"cni.dev/valid-attachments": current.get(network.name, [])}
            try:
                program = Program(
                    args=[plugin_path(plugin.type)],
                    env=["CNI_COMMAND=GC", f"CNI_PATH={':'.join(plugin_folders())}"],
                    input=execution_document(network, plugin, {}, None, **more),
                )
                with suppress(Unsupported):
                    run_program(program)
            except LamellaError as error:
                _log.warning("network %(network)s: %(reason)s", network=network.name, reason=str(error))

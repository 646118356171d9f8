"""CNI networks: running the plugins of a network for a container.

The spec is at github.com/containernetworking/cni, SPEC.md (1.1). Each plugin is a program that reads its configuration, knows
from its environment what it is to do with which container, and writes a result that the next one gets. What takes it all
away again (DEL, in reverse order) is written down before the first plugin runs, and again with each result, which DEL is
given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from lamella.config import Config
from lamella.containers.networks import Connection, Endpoint, Settings, endpoints_of
from lamella.containers.networks.attachment import (
    Attachment,
    Record,
    Release,
    attached,
    pin_path,
    read,
    release,
)
from lamella.containers.networks.configuration import (
    NetworkConfiguration,
    Plugin,
    configurations,
    find,
    plugin_folders,
    plugin_path,
)
from lamella.containers.networks.execution import (
    ID_VARIABLE,
    INTERFACE_VARIABLE,
    NETNS_VARIABLE,
    Program,
    run_program,
)
from lamella.containers.networks.files import Resolvers, connected_files, kept_lines
from lamella.containers.networks.joining import join, own_maps
from lamella.containers.networks.naming import names_path, tell
from lamella.containers.networks.ports import Port
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
from lamella.structs import Malformed, Struct, decode, encode
from lamella.typings import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.containers.record import ContainerRecord

METRIC = 2048
"""Above that of any default route that plugins make; 1024 is usual for IPv6."""
_log = Log("lamella.containers")


class Plug(Struct, frozen=True):
    """A network that a container is to be plugged into: all that can be wrong beforehand was looked at."""

    network: NetworkConfiguration
    endpoint: Endpoint
    paths: dict[str, str]
    """The plugins' programs, by type."""


def prepare(config: Config, endpoint: Endpoint) -> Plug:
    """Look at a network before anything is made. Errors: NotFound (the network, a plugin), PermissionDenied."""
    import os

    if os.geteuid() != 0:
        raise PermissionDenied(
            f"network {endpoint.network!r}: only root can plug a container into a CNI network",
            hint="Run as root, or choose another: pasta, host, none or container:NAME.",
        )
    network = find(config, endpoint.network)
    return Plug(network, endpoint, {plugin.type: plugin_path(plugin.type) for plugin in network.plugins})


def connect_cni(client: Client, record: ContainerRecord, settings: Settings) -> Connection:
    """Plug a container into its CNI networks; see :func:`lamella.containers.networks.connect`."""
    config = client.config
    plugs = [prepare(config, endpoint) for endpoint in endpoints_of(record.extra)]
    publisher = _publisher(plugs) if settings.ports else None
    if any(plug.endpoint.ip or plug.endpoint.ip6 for plug in plugs):
        from lamella.containers.orphans import release_stale_networks

        release_stale_networks(client.database, config)  # one of them may have the address
    plugged = Record(
        container=record.id,
        release=Release(namespace=pin_path(config, record.id)),
        names=names_path(config, record.id),
    )
    with choose_ports(config, record.id, settings.ports) as ports:
        plugged.ports = list(ports)
        path = plugged.write(config)
    with undone_after_error(record, lambda: release(path)):
        spec = join(record.spec, plugged.release.namespace)
        plugged.pin(config, own_maps(record.spec))
        for plug in plugs:
            plug_in(config, plugged, plug, settings, publishes=plug is publisher)
        _check_published(plugged)
        files = files_of(record, plugged, settings)
    return Connection(spec, files, lambda: tell(config, record, plugged))


@contextmanager
def undone_after_error(record: ContainerRecord, undo: Callable[[], object]) -> Iterator[None]:
    """Undo what a block has made of a container's networks when it fails. If that fails, too, the record says what is left."""
    try:
        yield
    except BaseException:
        try:
            undo()
        except LamellaError as error:  # the first one says more
            _log.warning(
                "the network of the container %(container_name)s is left half made: %(reason)s",
                container=record.id,
                container_name=record.name,
                reason=str(error),
            )
        raise


def files_of(record: ContainerRecord, plugged: Record, settings: Settings) -> dict[str, bytes]:
    """Give the files of /etc of a container that is plugged in; its hosts file is completed by its names."""
    resolvers = [_resolvers(attachment.result or {}) for attachment in plugged.attachments]
    gateways = [gateway for attachment in plugged.attachments for gateway in attachment.gateways]
    return connected_files(
        record.extra.hostname,
        settings,
        kept_lines(),
        gateway=next(iter(gateways), ""),
        network=Resolvers(
            nameservers=_all(found.nameservers for found in resolvers),
            search=_all(found.search for found in resolvers),
            options=_all(found.options for found in resolvers),
        ),
    )


def _all(lists: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for words in lists for word in words))


def _check_published(plugged: Record) -> None:
    """See that each port leads to an address of the kind that it is published at: portmap leaves out silently what does not."""
    for attachment in plugged.attachments:
        kinds = {":" in address for address in attachment.addresses}
        for port in plugged.ports if attachment.publishes and kinds else ():
            if port.host_ip and (is_ipv6 := ":" in port.host_ip) not in kinds:
                raise Unsupported(
                    f"port {port.name} cannot be published at {port.host_ip}: the container has no address of "
                    f"IPv{6 if is_ipv6 else 4} in network {attachment.network}",
                    hint="Leave the host's address out, or give the network a subnet of each.",
                )


def _publisher(plugs: Sequence[Plug]) -> Plug:
    """Give the network that publishes the ports: the first one that can. Unsupported for none."""
    for plug in plugs:
        if "portMappings" in plug.network.capabilities:
            return plug
    raise Unsupported(
        f"ports cannot be published in network {plugs[0].network.name}: none of its plugins has the capability "
        "'portMappings'",
        hint="The plugin for ports is portmap.",
    )


def plug_in(
    config: Config, plugged: Record, plug: Plug, settings: Settings, *, publishes: bool
) -> Attachment:
    """Plug a namespace into one more network. After an error the record says what is half made, and how it is taken away.

    What undoes it is on disk before the first plugin runs, and again after each: a later plugin that is killed halfway
    undoes nothing unless DEL is told of the addresses.
    """
    attachment = Attachment(
        network=plug.network.name,
        interface=plugged.free_interface(),
        aliases=list(plug.endpoint.aliases),
        publishes=publishes,
    )
    call = _Call(plug, plugged, attachment, settings)
    others = plugged.release.programs
    plugged.attachments.append(attachment)
    plugged.release.programs = [*call.undo(None), *others]
    plugged.write(config)
    for result in call.add():
        _take_result(attachment, result)
        plugged.release.programs = [*call.undo(result), *others]
        plugged.write(config)
    _check_result(attachment, plug.endpoint)
    if len(plugged.attachments) > 1 and attachment.default_gateways:
        _come_after(config, plugged, attachment)
    return attachment


def _come_after(config: Config, plugged: Record, attachment: Attachment) -> None:
    """Leave the way out with the network that had it first: plugins would take it over. Without that one it is the next one's."""
    others = [each for each in plugged.attachments if each is not attachment and each.default_gateways]
    if not others:
        return
    from lamella.containers.networks.links import make_route_secondary

    attachment.metric = max(METRIC, *(each.metric for each in others)) + 1
    for gateway in attachment.default_gateways:
        make_route_secondary(plugged.release.namespace, attachment.interface, gateway, attachment.metric)
    plugged.write(config)


def unplug(config: Config, plugged: Record, interface: str, *, force: bool = False) -> None:
    """Take a namespace out of one network. Harmless twice.

    All is tried; the first failure is raised, and the record stays, unless ``force`` gives it up nevertheless.
    """
    failure: LamellaError | None = None
    for program in plugged.release.of(interface):
        try:
            run_program(program)
        except LamellaError as error:
            failure = failure or error
    if failure is not None:
        if not force:
            raise failure
        _log.warning("%(interface)s is given up: %(reason)s", interface=interface, reason=str(failure))
    gone = plugged.release.of(interface)
    plugged.release.programs = [program for program in plugged.release.programs if program not in gone]
    left = [each for each in plugged.attachments if each.interface != interface]
    if not any(each.publishes for each in left):
        plugged.ports = []
    plugged.attachments = left
    plugged.write(config)


def check_attachment(config: Config, plugged: Record, attachment: Attachment, settings: Settings) -> None:
    """Have plugins check one network of a container. NotFound (the network, a plugin), NetworkFailed."""
    endpoint = Endpoint(network=attachment.network, aliases=tuple(attachment.aliases))
    plug = prepare(config, endpoint)
    if plug.network.at_least("0.4.0") and not plug.network.disable_check and attachment.result is not None:
        _Call(plug, plugged, attachment, settings).check(_with_present_bridges(attachment.result))


def _with_present_bridges(result: dict[str, Any]) -> dict[str, Any]:
    """Give a result with the MACs that bridges have by now: it is that of one of their ports, which come and go.

    The bridge plugin compares it with what it was, and would find every bridge wrong that another container has joined.
    """
    from lamella.containers.networks.links import present_mac

    interfaces = [
        interface if interface.get("sandbox") else interface | present_mac(str(interface.get("name")))
        for interface in _objects(result.get("interfaces"))
    ]
    return result | {"interfaces": interfaces}


class _Call:
    """What the plugins of a network are told about one container."""

    def __init__(self, plug: Plug, plugged: Record, attachment: Attachment, settings: Settings) -> None:
        self._network = plug.network
        self._paths = plug.paths
        self._container = plugged.container
        self._namespace = plugged.release.namespace
        self._interface = attachment.interface
        endpoint = plug.endpoint
        self._runtime = _runtime_configuration(
            plugged.ports if attachment.publishes else [], endpoint, settings
        )
        capabilities = plug.network.capabilities
        arguments = ["IgnoreUnknown=1"]
        # What no plugin takes as a capability is told in the older way, which the reference plugins still read.
        if "ips" not in capabilities:
            arguments += [f"IP={address}" for address in (endpoint.ip, endpoint.ip6) if address][:1]
        if endpoint.mac_address and "mac" not in capabilities:
            arguments.append(f"MAC={endpoint.mac_address}")
        self._arguments = ";".join(arguments)

    def _program(self, command: str, plugin: Plugin, result: dict[str, Any] | None) -> Program:
        return Program(
            args=[self._paths[plugin.type]],
            env=[
                f"CNI_COMMAND={command}",
                f"{ID_VARIABLE}={self._container}",
                f"{NETNS_VARIABLE}={self._namespace}",
                f"{INTERFACE_VARIABLE}={self._interface}",
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
                result = decode(answer, dict[str, Any])
            except Malformed:
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

    def check(self, result: dict[str, Any]) -> None:
        """Run every plugin's CHECK, with what ADD came to. NetworkFailed for what is not as it was."""
        for plugin in self._network.plugins:
            run_program(self._program("CHECK", plugin, result))

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
    return encode(document).decode()


def _runtime_configuration(ports: list[Port], endpoint: Endpoint, settings: Settings) -> dict[str, Any]:
    """Give what a plugin may ask for by a capability (CNI's CONVENTIONS.md)."""
    told: dict[str, Any] = {}
    if ports:
        told["portMappings"] = [
            {
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol,
                **({"hostIP": port.host_ip} if port.host_ip else {}),
            }
            for port in ports
        ]
    if endpoint.ip or endpoint.ip6:
        told["ips"] = [address for address in (endpoint.ip, endpoint.ip6) if address]
    if endpoint.mac_address:
        told["mac"] = endpoint.mac_address
    if endpoint.aliases:
        told["aliases"] = list(endpoint.aliases)
    if settings.dns or settings.dns_search or settings.dns_options:
        told["dns"] = {
            "servers": list(settings.dns),
            "searches": list(settings.dns_search),
            "options": list(settings.dns_options),
        }
    return told


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


def _check_result(attachment: Attachment, endpoint: Endpoint) -> None:
    """See that what was asked for was given; addresses become lines of a file that the container reads."""
    import ipaddress

    for address in [*attachment.addresses, *attachment.gateways]:
        try:
            ipaddress.ip_interface(address)
        except ValueError:
            raise NetworkFailed(
                f"network {attachment.network}: {address!r} is no address", plugin=attachment.network
            ) from None
    plain = attachment.plain_addresses
    for asked, given, what in (
        (endpoint.ip, plain, "address"),
        (endpoint.ip6, plain, "address"),
        (endpoint.mac_address, [attachment.mac_address], "MAC"),
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
        plugged = read(path)
        for attachment in plugged.attachments if plugged is not None else []:
            current.setdefault(attachment.network, []).append(
                {"containerID": path.stem.rpartition(".")[2], "ifname": attachment.interface}
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

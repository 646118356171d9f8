"""CNI network configurations: the files that say which plugins make a network.

Sources, the first that has the name wins: ``<root>/networks`` (made here), and the folder that NETCONFPATH names, else
/etc/cni/net.d; files are read in the order of their names, as libcni does. A ``.conflist`` names several plugins; a ``.conf``
or ``.json`` is one. Only the names of plugins and what is said for the runtime is understood here; the rest is the plugins'.
CNI spec 1.1, "Section 1: Network configuration format".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from lamella.config import Config
from lamella.disk import names_in
from lamella.errors import InvalidArgument, NotFound, Unsupported
from lamella.structs import Malformed, Struct, read_json
from lamella.typings import Any

CONFIGURATION_FOLDER = "/etc/cni/net.d"
PLUGIN_FOLDERS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
FILE_MAX = 1 << 20
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


class Plugin(Struct, frozen=True):
    """One plugin of a network: its type, which is its program's name, and its whole configuration."""

    type: str
    document: dict[str, Any]

    @property
    def capabilities(self) -> set[str]:
        """What it wants to be told by the runtime, such as ``portMappings``."""
        declared = self.document.get("capabilities")
        return (
            {name for name, wanted in declared.items() if wanted is True}
            if isinstance(declared, dict)
            else set()
        )


class NetworkConfiguration(Struct, frozen=True, kw_only=True):
    """A network: the plugins that make it, in order."""

    name: str
    version: str
    plugins: tuple[Plugin, ...]
    path: Path
    own: bool
    """It lies in the store, and nobody else uses it."""
    disable_gc: bool = False
    disable_check: bool = False

    @property
    def capabilities(self) -> set[str]:
        """What any of its plugins wants to be told."""
        return set().union(*(plugin.capabilities for plugin in self.plugins))

    def at_least(self, version: str) -> bool:
        """Compare its version of the CNI spec."""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)


def parse(path: Path, text: bytes, *, own: bool) -> NetworkConfiguration:
    """Parse a file. InvalidArgument for what is malformed, Unsupported for a version of the spec that is not known."""
    try:
        document = read_json(text)
    except Malformed as error:
        raise InvalidArgument(f"{path}: {error}") from None
    if not isinstance(document, dict):
        raise InvalidArgument(f"{path}: it is no JSON object")
    plugins = document.get("plugins") if path.suffix == ".conflist" else [document]
    name = document.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 200:
        raise InvalidArgument(f"{path}: the network's name {name!r} is not valid")
    if not isinstance(plugins, list) or not plugins:
        raise InvalidArgument(f"{path}: the network {name} has no plugins")
    return NetworkConfiguration(
        name=name,
        version=_version(path, document),
        plugins=tuple(_plugin(path, plugin) for plugin in plugins),
        path=path,
        own=own,
        disable_gc=document.get("disableGC") in (True, "true"),
        disable_check=document.get("disableCheck") in (True, "true"),
    )


def _version(path: Path, document: dict[str, Any]) -> str:
    offered = document.get("cniVersions")
    candidates = [*(offered if isinstance(offered, list) else []), document.get("cniVersion", "0.1.0")]
    known = [version for version in VERSIONS if version in candidates]
    if not known:
        raise Unsupported(
            f"{path}: version {document.get('cniVersion')!r} of the CNI spec is not known",
            hint=f"Known: {', '.join(VERSIONS)}.",
        )
    return known[-1]


def _plugin(path: Path, document: Any) -> Plugin:
    kind = document.get("type") if isinstance(document, dict) else None
    # It becomes a path.
    if not isinstance(kind, str) or not kind or "/" in kind or "\0" in kind or kind in (".", ".."):
        raise InvalidArgument(f"{path}: the plugin's type {kind!r} is not the name of a program")
    return Plugin(type=kind, document=document)


def own_folder(config: Config) -> Path:
    """Say where networks that are made here lie."""
    return config.root / "networks"


def files(config: Config) -> Iterator[tuple[Path, bool]]:
    """Give the files of both sources, and whether they are the store's own."""
    shared = Path(os.environ.get("NETCONFPATH") or CONFIGURATION_FOLDER)
    for folder, own in ((own_folder(config), True), (shared, False)):
        for name in sorted(names_in(folder)):
            if name.endswith((".conflist", ".conf", ".json")):
                yield folder / name, own


def configurations(config: Config) -> list[NetworkConfiguration]:
    """Give all networks that can be read, by name; of two with one name the first."""
    found: dict[str, NetworkConfiguration] = {}
    for path, own in files(config):
        try:
            network = load(path, own=own)
        except (InvalidArgument, Unsupported, OSError):
            continue  # whoever asks for it by name is told
        found.setdefault(network.name, network)
    return sorted(found.values(), key=lambda network: network.name)


def load(path: Path, *, own: bool) -> NetworkConfiguration:
    """Read a file."""
    with path.open("rb") as file:
        text = file.read(FILE_MAX + 1)
    if len(text) > FILE_MAX:
        raise InvalidArgument(f"{path} is longer than {FILE_MAX} bytes")
    return parse(path, text, own=own)


def find(config: Config, name: str) -> NetworkConfiguration:
    """Give a network by its name. ``bridge`` is made when it is not there, as docker and nerdctl have it from the beginning.

    Errors: NotFound, and of its file if that alone has the name: InvalidArgument, Unsupported.
    """
    broken: list[Exception] = []
    names = []
    for path, own in files(config):
        try:
            network = load(path, own=own)
        except (InvalidArgument, Unsupported) as error:
            broken.append(error)
            continue
        except OSError:
            continue
        if network.name == name:
            return network
        names.append(network.name)
    if name == "bridge":
        from lamella.containers.networks.collection import create

        return create(config, name, exist_ok=True)
    for reason in broken:
        if f"network {name} " in str(reason) or f"/{name}." in str(reason):
            raise reason
    raise NotFound(
        f"there is no network {name!r}",
        hint=f"There are: {', '.join(['none', 'host', 'bridge', 'pasta', *sorted(set(names) - {'bridge'})])}."
        " Make one: lamella networks create NAME.",
    )


def plugin_path(kind: str) -> str:
    """Find a plugin's program in the folders of CNI_PATH and the usual ones. NotFound."""
    for folder in plugin_folders():
        path = os.path.join(folder, kind)  # noqa: PTH118
        if os.access(path, os.X_OK) and os.path.isfile(path):  # noqa: PTH113
            return path
    raise NotFound(
        f"the CNI plugin {kind!r} is in none of {', '.join(plugin_folders())}",
        hint="Install the plugins (Debian: containernetworking-plugins), or name their folder in CNI_PATH.",
    )


def plugin_folders() -> list[str]:
    """Say where plugins are looked for."""
    named = [folder for folder in os.environ.get("CNI_PATH", "").split(":") if folder.startswith("/")]
    return list(dict.fromkeys([*named, *PLUGIN_FOLDERS]))

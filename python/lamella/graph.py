"""What belongs together: images, content, snapshots and containers as a graph, and the graph as a drawing.

``build`` reads a client (its public API alone) and gives a :class:`Graph`, a plain value; ``render_mermaid`` and
``render_dot`` turn one into text, and ``to_dict`` into data. The order of nodes and edges depends on names and
digests alone, so that two drawings of the same store are equal.

Edges point from what refers to what is referred to: an image at its index or manifest, a manifest at its config and
layers, a layer at the committed snapshot that it was unpacked into, a snapshot at its parent, a container at its
active snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from lamella import oci
from lamella.errors import LamellaError, NotFound
from lamella.sizes import format_size

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.containers.container import Container
    from lamella.images import Image
    from lamella.snapshots import SnapshotInfo

Kind = Literal[
    "image", "index", "manifest", "config", "layer", "blob", "committed", "view", "active", "container"
]


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One thing. ``size`` is bytes: of a blob as it is stored, of a snapshot what it holds itself without its parents."""

    id: str
    kind: Kind
    label: str
    size: int | None = None
    detail: str = ""


class Edge(msgspec.Struct, frozen=True):
    """``source`` refers to ``target`` (ids of nodes)."""

    source: str
    target: str
    label: str


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes and edges in a fixed order; every edge's ends are nodes."""

    nodes: list[Node]
    edges: list[Edge]


def build(client: Client, reference: str | None = None) -> Graph:
    """Collect what belongs to an image, or everything in the client's namespace.

    Of an image's index only the manifests that are here are followed. To an image belong its committed snapshots, the
    views and active snapshots on them, what was committed on top of the whole image, and the containers that use any
    of these. NotFound when there is no such image.
    """
    builder = _Builder(client)
    images = client.images.list() if reference is None else [client.images.get(reference)]
    for image in sorted(images, key=lambda image: image.name):
        builder.add_image(image)
    if reference is None:
        builder.add_blobs()
        builder.add_snapshots(builder.infos)
    else:
        builder.add_snapshots(builder.family(builder.chains))
    builder.add_containers({image.name for image in images}, everything=reference is None)
    return builder.graph()


class _Builder:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._nodes: dict[str, Node] = {}
        self._edges: dict[tuple[str, str, str], Edge] = {}
        self.infos: dict[str, SnapshotInfo] = {
            info.name: info for info in sorted(client.snapshots.walk(), key=lambda info: info.name)
        }
        self.chains: list[list[str]] = []
        """The names of the committed snapshots of each image, bottom first."""

    def graph(self) -> Graph:
        """Give what was collected."""
        edges = [
            edge for edge in self._edges.values() if edge.source in self._nodes and edge.target in self._nodes
        ]
        return Graph(nodes=list(self._nodes.values()), edges=edges)

    def add_image(self, image: Image) -> None:
        """Add a name and the documents and layers behind it."""
        name = f"image:{image.name}"
        self._nodes[name] = Node(id=name, kind="image", label=image.name)
        self._link(name, f"content:{image.target.digest}", "target")
        self._add_document(image.target)

    def add_blobs(self) -> None:
        """Add the blobs of the namespace that no image led to."""
        for info in sorted(self._client.content.walk(), key=lambda info: info.digest):
            key = f"content:{info.digest}"
            if key not in self._nodes:
                self._nodes[key] = Node(id=key, kind="blob", label=_short(info.digest), size=info.size)

    def family(self, chains: Iterable[list[str]]) -> list[str]:
        """Give the names of the snapshots of these chains, and of those that stand on them, sorted."""
        own = {name for chain in chains for name in chain if name in self.infos}
        tops = {chain[-1] for chain in chains if chain}
        children: dict[str, list[str]] = {}
        for info in self.infos.values():
            if info.parent:
                children.setdefault(info.parent, []).append(info.name)
        found, waiting = set(own), [(name, name in tops) for name in own]
        while waiting:
            parent, whole = waiting.pop()
            for name in children.get(parent, ()):
                # A committed child of a lower layer belongs to another image that shares the layer.
                if name not in found and (whole or self.infos[name].kind != "committed"):
                    found.add(name)
                    waiting.append((name, True))
        return sorted(found)

    def add_snapshots(self, names: Iterable[str]) -> None:
        """Add snapshots and whose children they are."""
        for name in sorted(names):
            info = self.infos[name]
            key = f"snapshot:{name}"
            size = None
            if info.kind != "view":
                try:
                    size = self._client.snapshots.usage(name).size
                except NotFound:
                    continue  # removed since it was listed
            self._nodes[key] = Node(id=key, kind=info.kind, label=_short(name), size=size)
            if info.parent:
                self._link(key, f"snapshot:{info.parent}", "parent")

    def add_containers(self, images: set[str], *, everything: bool) -> None:
        """Add the containers that use a snapshot or an image of the graph."""
        for container in sorted(self._client.containers.list(all=True), key=lambda c: (c.name, c.id)):
            snapshot = f"snapshot:{container.snapshot_key}"
            if everything or snapshot in self._nodes or container.image in images:
                key = f"container:{container.id}"
                self._nodes[key] = Node(
                    id=key, kind="container", label=container.name, detail=_status(container)
                )
                if container.record.snapshotter == self._client.config.snapshotter:
                    self._link(key, snapshot, "snapshot")
                self._link(key, f"image:{container.image}", "image")

    def _add_document(self, descriptor: oci.Descriptor) -> None:
        """Add an index or manifest and what it names; a blob that is missing or malformed is a node and no more."""
        key = f"content:{descriptor.digest}"
        if key in self._nodes:
            return
        try:
            data = self._client.content.read(descriptor.digest)
            media_type = oci.document_type(data, descriptor.media_type)
        except NotFound:
            kind: Kind = "index" if descriptor.media_type in oci.INDEX_TYPES else "manifest"
            self._nodes[key] = self._blob(descriptor, kind, "not here")
            return
        except LamellaError:
            self._nodes[key] = self._blob(descriptor, "blob", descriptor.media_type)
            return
        if media_type in oci.INDEX_TYPES:
            self._add_index(key, descriptor, oci.parse_index(data))
        else:
            self._add_manifest(key, descriptor, oci.parse_manifest(data))

    def _add_index(self, key: str, descriptor: oci.Descriptor, index: oci.Index) -> None:
        present = [entry for entry in index.manifests if self._here(entry)]
        self._nodes[key] = self._blob(
            descriptor, "index", f"{len(present)} of {len(index.manifests)} manifests here"
        )
        for entry in present:
            self._link(key, f"content:{entry.digest}", str(entry.platform or "") or "manifest")
            self._add_document(entry)

    def _add_manifest(self, key: str, descriptor: oci.Descriptor, manifest: oci.Manifest) -> None:
        self._nodes[key] = self._blob(descriptor, "manifest")
        config = f"content:{manifest.config.digest}"
        self._link(key, config, "config")
        platform, chain = self._read_config(manifest.config)
        self._nodes.setdefault(config, self._blob(manifest.config, "config", platform))
        for number, layer in enumerate(manifest.layers, 1):
            blob = f"content:{layer.digest}"
            self._nodes.setdefault(blob, self._blob(layer, "layer", "" if self._here(layer) else "not here"))
            self._link(key, blob, f"layer {number}")
            if number <= len(chain):
                self._link(blob, f"snapshot:{chain[number - 1]}", "unpacked")

    def _read_config(self, descriptor: oci.Descriptor) -> tuple[str, list[str]]:
        """Give the platform and the chainIDs of an image config, nothing where it can't be read."""
        try:
            config = oci.parse_config(self._client.content.read(descriptor.digest))
        except NotFound:
            return "not here", []
        except LamellaError:
            return descriptor.media_type, []
        chain: list[str] = [str(digest) for digest in oci.chain_ids(config.rootfs.diff_ids)]
        self.chains.append(chain)
        return str(config.platform), chain

    def _here(self, descriptor: oci.Descriptor) -> bool:
        try:
            self._client.content.info(descriptor.digest)
        except NotFound:
            return False
        return True

    @staticmethod
    def _blob(descriptor: oci.Descriptor, kind: Kind, detail: str = "") -> Node:
        return Node(
            id=f"content:{descriptor.digest}",
            kind=kind,
            label=_short(descriptor.digest),
            size=descriptor.size,
            detail=detail,
        )

    def _link(self, source: str, target: str, label: str) -> None:
        self._edges.setdefault((source, target, label), Edge(source, target, label))


def _status(container: Container) -> str:
    status, code = container.status, container.exit_code
    return f"{status} ({code})" if status == "stopped" and code is not None else status


def _short(name: str) -> str:
    """Cut the hex digits of a digest to twelve; other names stay."""
    algorithm, colon, encoded = name.partition(":")
    return (
        f"{algorithm}:{encoded[:12]}"
        if colon and algorithm.startswith("sha") and len(encoded) >= 64
        else name
    )


def to_dict(graph: Graph) -> dict[str, Any]:
    """Give the graph as plain data: ``nodes`` and ``edges``."""
    document: dict[str, Any] = msgspec.to_builtins(graph)
    return document


_ROOMS: tuple[tuple[str, str, frozenset[str]], ...] = (
    ("images", "images", frozenset({"image"})),
    ("content", "content store", frozenset({"index", "manifest", "config", "layer", "blob"})),
    ("snapshots", "snapshotter", frozenset({"committed", "view", "active"})),
    ("containers", "containers", frozenset({"container"})),
)
"""The boxes that nodes stand in: a name, a title, kinds."""

_COLOURS: dict[str, str] = {
    "image": "#dbeafe",
    "index": "#f1f5f9",
    "manifest": "#f1f5f9",
    "config": "#f1f5f9",
    "layer": "#e2e8f0",
    "blob": "#ffffff",
    "committed": "#dcfce7",
    "view": "#fef9c3",
    "active": "#ffedd5",
    "container": "#fce7f3",
}


def _rooms(graph: Graph) -> Iterator[tuple[str, str, list[tuple[str, Node]]]]:
    """Give each box that isn't empty, its nodes with the names that they have in a drawing."""
    names = {node.id: f"n{number}" for number, node in enumerate(graph.nodes)}
    for name, title, kinds in _ROOMS:
        members = [(names[node.id], node) for node in graph.nodes if node.kind in kinds]
        if members:
            yield name, title, members


def _links(graph: Graph) -> Iterator[tuple[str, str, str]]:
    names = {node.id: f"n{number}" for number, node in enumerate(graph.nodes)}
    for edge in graph.edges:
        yield names[edge.source], names[edge.target], edge.label


def _lines(node: Node) -> list[str]:
    """Give the text inside a node: what it is and how big, its name, the rest."""
    head = node.kind if node.size is None else f"{node.kind}, {format_size(node.size)}"
    return [line for line in (head, node.label, node.detail) if line]


_MERMAID_SHAPES: dict[str, tuple[str, str]] = {
    "image": ("([", "])"),
    "layer": ("[(", ")]"),
    "committed": ("[[", "]]"),
    "view": ("[/", "/]"),
    "active": ("(", ")"),
    "container": ("{{", "}}"),
}


def render_mermaid(graph: Graph) -> str:
    """Draw as a Mermaid flowchart."""
    lines = ["flowchart TD"]
    for name, title, members in _rooms(graph):
        lines.append(f'  subgraph {name}["{_mermaid(title)}"]')
        for key, node in members:
            left, right = _MERMAID_SHAPES.get(node.kind, ("[", "]"))
            text = "<br/>".join(_mermaid(line) for line in _lines(node))
            lines.append(f'    {key}{left}"{text}"{right}:::{node.kind}')
        lines.append("  end")
    lines += [f'  {source} -->|"{_mermaid(label)}"| {target}' for source, target, label in _links(graph)]
    for kind in dict.fromkeys(node.kind for node in graph.nodes):
        lines.append(f"  classDef {kind} fill:{_COLOURS[kind]},stroke:#475569,color:#0f172a")
    return "\n".join(lines) + "\n"


def _mermaid(text: str) -> str:
    """Write what Mermaid or Markdown could take for syntax as entity codes (Mermaid, flowchart syntax, "Entity codes")."""
    return "".join(
        char if char.isalnum() or char in " .,:/_@+=()-" else f"#{ord(char)};" for char in _printable(text)
    )


def _printable(text: str) -> str:
    """Put spaces in the place of line ends and other characters that have no shape."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def render_dot(graph: Graph) -> str:
    """Draw in Graphviz' DOT language."""
    lines = [
        "digraph lamella {",
        "  rankdir=TB;",
        '  node [shape=box, style="filled,rounded", fontname="sans-serif", fontsize=10];',
        '  edge [fontname="sans-serif", fontsize=9];',
    ]
    for name, title, members in _rooms(graph):
        lines += [f"  subgraph cluster_{name} {{", f"    label={_dot(title)};"]
        for key, node in members:
            text = "\\n".join(_dot(line)[1:-1] for line in _lines(node))
            lines.append(f'    {key} [label="{text}", fillcolor="{_COLOURS[node.kind]}"];')
        lines.append("  }")
    lines += [f"  {source} -> {target} [label={_dot(label)}];" for source, target, label in _links(graph)]
    return "\n".join([*lines, "}"]) + "\n"


def _dot(text: str) -> str:
    """Quote a string (Graphviz, "The DOT Language"): a quote and a backslash are escaped, the rest is literal."""
    return '"' + _printable(text).replace("\\", "\\\\").replace('"', '\\"') + '"'

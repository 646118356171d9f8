"""The graph of images, content, snapshots and containers, and its drawings."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from lamella import graph
from lamella.graph import Edge, Graph, Node

if TYPE_CHECKING:
    from lamella.client import Client

EVIL = 'a"b\\c]<script>|x#;`%{}\n\u202ey'
DRAWING = Graph(
    nodes=[
        Node(id="image:a", kind="image", label=EVIL),
        Node(id="content:1", kind="manifest", label="sha256:111111111111", size=1234),
        Node(id="snapshot:s", kind="committed", label="base", size=71_234_567, detail="detail"),
        Node(id="container:c", kind="container", label="box", detail="stopped (0)"),
    ],
    edges=[
        Edge("image:a", "content:1", "target"),
        Edge("content:1", "snapshot:s", EVIL),
        Edge("container:c", "snapshot:s", "snapshot"),
    ],
)


def test_a_mermaid_drawing_has_every_node_and_edge() -> None:
    assert graph.render_mermaid(DRAWING) == (
        "flowchart TD\n"
        '  subgraph images["images"]\n'
        '    n0(["image<br/>a#34;b#92;c#93;#60;script#62;#124;x#35;#59;#96;#37;#123;#125; y"]):::image\n'
        "  end\n"
        '  subgraph content["content store"]\n'
        '    n1["manifest, 1.23 kB<br/>sha256:111111111111"]:::manifest\n'
        "  end\n"
        '  subgraph snapshots["snapshotter"]\n'
        '    n2[["committed, 71.2 MB<br/>base<br/>detail"]]:::committed\n'
        "  end\n"
        '  subgraph containers["containers"]\n'
        '    n3{{"container<br/>box<br/>stopped (0)"}}:::container\n'
        "  end\n"
        '  n0 -->|"target"| n1\n'
        '  n1 -->|"a#34;b#92;c#93;#60;script#62;#124;x#35;#59;#96;#37;#123;#125; y"| n2\n'
        '  n3 -->|"snapshot"| n2\n'
        "  classDef image fill:#dbeafe,stroke:#475569,color:#0f172a\n"
        "  classDef manifest fill:#f1f5f9,stroke:#475569,color:#0f172a\n"
        "  classDef committed fill:#dcfce7,stroke:#475569,color:#0f172a\n"
        "  classDef container fill:#fce7f3,stroke:#475569,color:#0f172a\n"
    )


@pytest.mark.needs_program("dot")
def test_graphviz_reads_the_dot_drawing_and_finds_the_labels_as_they_were() -> None:
    text = graph.render_dot(DRAWING)
    plain = subprocess.run(
        ["dot", "-Tsvg"], input=text, capture_output=True, text=True, check=True, timeout=60
    )
    assert plain.stderr == ""
    shown = re.findall(r"<text [^>]*>([^<]*)</text>", plain.stdout)
    assert "a&quot;b\\c]&lt;script&gt;|x#;`%{} y" in [line.replace("&#45;", "-") for line in shown]
    assert {"manifest, 1.23 kB", "committed, 71.2 MB", "stopped (0)", "content store"} <= set(shown)
    assert plain.stdout.count('class="edge"') == len(DRAWING.edges)


def test_an_empty_graph_draws() -> None:
    empty = Graph(nodes=[], edges=[])
    assert graph.render_mermaid(empty) == "flowchart TD\n"
    assert graph.render_dot(empty).startswith("digraph lamella {")
    assert graph.to_dict(empty) == {"nodes": [], "edges": []}


@pytest.mark.privileged
def test_an_image_leads_to_everything_that_belongs_to_it(client: Client, small_image: str) -> None:
    image = client.images.pull(small_image)
    client.snapshots.view("nginx-readonly-snapshot", image.chain_id)
    client.snapshots.prepare("lower-view", image.chain_ids[0])
    client.containers.create(image, ["true"], name="nginx-container-abc123")
    client.snapshots.prepare("work", image.chain_id)
    client.snapshots.commit("branch", "work")
    client.snapshots.prepare("on-branch", "branch")
    client.snapshots.prepare("unrelated", "")
    found = graph.build(client, small_image)
    nodes = {node.id: node for node in found.nodes}
    kinds = [node.kind for node in found.nodes]
    assert kinds.count("image") == kinds.count("manifest") == kinds.count("config") == 1
    assert kinds.count("layer") == len(image.layers)
    assert kinds.count("committed") == len(image.layers) + 1
    assert {node.id for node in found.nodes if node.kind in ("view", "active")} == {
        "snapshot:nginx-readonly-snapshot",
        "snapshot:lower-view",
        "snapshot:nginx-container-abc123",
        "snapshot:on-branch",
    }
    top = f"snapshot:{image.chain_id}"
    edges = {(edge.source, edge.target): edge.label for edge in found.edges}
    container = next(node.id for node in found.nodes if node.kind == "container")
    assert edges[f"image:{image.name}", f"content:{image.digest}"] == "target"
    assert edges[f"content:{image.digest}", f"content:{image.layers[0].digest}"] == "layer 1"
    assert edges[f"content:{image.layers[-1].digest}", top] == "unpacked"
    assert edges[top, f"snapshot:{image.chain_ids[-2]}"] == "parent"
    assert edges["snapshot:nginx-readonly-snapshot", top] == "parent"
    assert edges[container, "snapshot:nginx-container-abc123"] == "snapshot"
    assert edges[container, f"image:{image.name}"] == "image"
    assert nodes[f"content:{image.layers[0].digest}"].size == image.layers[0].size
    assert nodes[top].size == client.snapshots.usage(image.chain_id).size
    assert nodes[container].detail == "created"
    assert all(edge.source in nodes and edge.target in nodes for edge in found.edges)


@pytest.mark.privileged
def test_the_whole_namespace_has_what_no_image_leads_to(client: Client, small_image: str) -> None:
    image = client.images.pull(small_image)
    client.snapshots.prepare("unrelated", "")
    client.images.remove(image.name)
    found = graph.build(client)
    ids = {node.id: node.kind for node in found.nodes}
    assert ids["snapshot:unrelated"] == "active"
    assert ids[f"content:{image.digest}"] == "blob"
    assert ids[f"snapshot:{image.chain_id}"] == "committed"
    assert "image" not in ids.values()


@pytest.mark.privileged
def test_two_drawings_of_a_store_are_equal(client: Client, small_image: str) -> None:
    client.images.pull(small_image)
    assert graph.render_mermaid(graph.build(client)) == graph.render_mermaid(graph.build(client))


def test_the_graph_of_an_image_that_is_not_here_is_an_error(client: Client) -> None:
    from lamella.errors import NotFound

    with pytest.raises(NotFound):
        graph.build(client, "nginx:latest")


def test_missing_and_malformed_content_is_drawn_and_stops_nothing(client: Any) -> None:
    from lamella import oci
    from lamella.digest import digest_of

    absent = oci.Descriptor(media_type=oci.OCI_MANIFEST, digest=digest_of(b"absent"), size=6)
    broken = oci.Descriptor(media_type=oci.OCI_MANIFEST, digest=digest_of(b"{}{"), size=3)
    client.content.write("broken", b"{}{", digest=broken.digest, size=3)
    client.images.put("docker.io/library/absent:latest", absent)
    client.images.put("docker.io/library/broken:latest", broken)
    found = graph.build(client)
    assert {(node.kind, node.detail) for node in found.nodes if node.kind != "image"} == {
        ("manifest", "not here"),
        ("blob", oci.OCI_MANIFEST),
    }

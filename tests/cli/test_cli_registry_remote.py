"""``lamella registry inspect|tags|catalog|tag|delete``: what they print, and with which status they end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from lamella import oci
from lamella.registry.server import RegistryServer

if TYPE_CHECKING:
    from program import Program


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    """Give a registry with one image under the tags 1 and 2."""
    with RegistryServer() as opened:
        config = opened.push_blob("team/app", b'{"os":"linux","architecture":"amd64"}', oci.OCI_CONFIG)
        layer = opened.push_blob("team/app", b"layer", oci.OCI_LAYER_GZIP)
        for tag in ("1", "2"):
            opened.push_manifest("team/app", tag, oci.Manifest(config=config, layers=[layer]))
        yield opened


def test_inspect_prints_a_document_or_one_thing_as_it_is(lamella: Program, server: RegistryServer) -> None:
    name = f"{server.address}/team/app:1"
    stored = server.storage.repository("team/app").manifest("1")
    assert lamella("registry", "inspect", name).ok().document["digest"] == stored.digest
    assert lamella("registry", "inspect", "--digest", name).ok().out == f"{stored.digest}\n"
    assert lamella("registry", "inspect", "--digest", "--json", name).ok().document == stored.digest
    assert lamella("registry", "inspect", "--manifest", name).ok().out.encode() == stored.data
    assert lamella("registry", "inspect", "--config", name).ok().document["architecture"] == "amd64"
    assert lamella("registry", "inspect", "--config", "--digest", name).status == 2
    missing = lamella("registry", "inspect", f"{server.address}/team/app:3")
    assert (missing.status, missing.out) == (1, "")
    assert "hint:" in missing.err


def test_tags_and_repositories_are_one_a_line(lamella: Program, server: RegistryServer) -> None:
    assert lamella("registry", "tags", f"{server.address}/team/app").ok().out == "1\n2\n"
    assert lamella("registry", "ls", "--json", f"{server.address}/team/app").ok().document == ["1", "2"]
    assert lamella("registry", "catalog", server.address).ok().out == "team/app\n"


def test_tag_prints_what_push_prints(lamella: Program, server: RegistryServer) -> None:
    name, digest = f"{server.address}/team/app", server.storage.repository("team/app").manifest("1").digest
    assert (
        lamella("registry", "tag", f"{name}:1", "a", "b").ok().out
        == f"{name}:a  {digest}\n{name}:b  {digest}\n"
    )
    assert lamella("-q", "registry", "tag", f"{name}:1", "a").ok().out == f"{name}:a\n"
    document = lamella("registry", "tag", "--json", f"{name}:1", "c").ok().document
    assert (document["names"], document["digest"]) == ([f"{name}:c"], digest)
    assert lamella("registry", "tag", f"{name}:1").status == 2


def test_delete_goes_on_after_an_error(lamella: Program, server: RegistryServer) -> None:
    name = f"{server.address}/team/app"
    done = lamella("registry", "delete", name, f"{name}:9", f"{name}:2")
    assert (done.status, done.out) == (1, f"{name}:2\n")
    assert done.err.count("hint:") == 2
    assert (
        lamella("registry", "rm", "--manifest", "--json", f"{name}:1").ok().out
        == json.dumps([f"{name}:1"], indent=2) + "\n"
    )
    assert server.storage.repository("team/app").tags() == []

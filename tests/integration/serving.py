"""A registry server of either kind for tests, and one connection to ask it on."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import lamella
from lamella.digest import digest_of
from lamella.registry.server import RegistryServer

BLOB = bytes(range(256)) * 1000
DIGEST = digest_of(BLOB)
EMPTY_INDEX = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["errors"][0]["code"])


Ask = Callable[..., Answer]


Serve = Callable[..., contextlib.AbstractContextManager[RegistryServer]]


@pytest.fixture(params=["folder", "store"])
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Serve:
    """Give a function that serves a storage of either kind; every test that uses it is one of the contract of storages."""

    @contextlib.contextmanager
    def opened(**options: Any) -> Iterator[RegistryServer]:
        if request.param == "folder":
            with RegistryServer(tmp_path / "registry", **options) as server:
                yield server
            return
        with (
            lamella.Client(root=tmp_path / "root", state=tmp_path / "state") as client,
            RegistryServer(client=client, **options) as server,
        ):
            yield server

    return opened


@contextlib.contextmanager
def asking(server: RegistryServer) -> Iterator[Ask]:
    connection = http.client.HTTPConnection(server.address, timeout=60)

    def ask(method: str, path: str, body: Any = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named, encode_chunked="Transfer-Encoding" in named)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    yield ask
    connection.close()


def start(ask: Ask, name: str = "team/app", query: str = "") -> str:
    answer = ask("POST", f"/v2/{name}/blobs/uploads/{query}", b"")
    assert answer.status == 202
    return answer.headers["location"]

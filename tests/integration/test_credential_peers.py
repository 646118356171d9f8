"""Whose credentials a file gives: what lamella sends beside what crane, by docker's own reading of the file, and skopeo send."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from registries import Asked, Reply, ScriptedServer

from lamella import oci
from lamella.digest import digest_of
from lamella.errors import LamellaError
from lamella.reference import Reference
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig

pytestmark = [pytest.mark.integration, pytest.mark.needs_program("skopeo", "crane")]

CONFIG = oci.Descriptor(oci.OCI_CONFIG, digest_of(b"{}"), 2)
MANIFEST = oci.encode(oci.Manifest(media_type=oci.OCI_MANIFEST, config=CONFIG, layers=[]))


def auth(name: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:secret".encode()).decode()}


# What docker's file says of the registry at ADDRESS, where the helper "some" knows "helped" for it and "none" knows nobody:
# the document, and who is sent by lamella, crane and skopeo for ADDRESS/team/app. Where docker's kin and podman's differ, lamella
# does what serves users of both.
CASES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "by its name": ({"auths": {"ADDRESS": auth("ann")}}, "ann", "ann", "ann"),
    "by an address": ({"auths": {"https://ADDRESS": auth("ann")}}, "ann", "ann", "ann"),
    "by an address of the first protocol": (
        {"auths": {"https://ADDRESS/v1/": auth("ann")}},
        "ann",
        "ann",
        "ann",
    ),
    "by an address without TLS": ({"auths": {"http://ADDRESS/v2": auth("ann")}}, "ann", "ann", "ann"),
    "of another registry": (
        {"auths": {"evil-ADDRESS": auth("ann"), "ADDRESS.evil.net": auth("ann")}},
        "",
        "",
        "",
    ),
    "in the clear": ({"auths": {"ADDRESS": {"username": "ann", "password": "secret"}}}, "ann", "ann", ""),
    "empty": ({"auths": {"ADDRESS": {}}}, "", "", ""),
    "with a zero at the end": (
        {"auths": {"ADDRESS": {"auth": base64.b64encode(b"ann:secret\0").decode()}}},
        "ann",
        "ann",
        "ann",
    ),
    "of a namespace": (
        {"auths": {"ADDRESS": auth("all"), "ADDRESS/team": auth("team")}},
        "team",
        "all",
        "team",
    ),
    "of the repository": (
        {"auths": {"ADDRESS/team": auth("team"), "ADDRESS/team/app": auth("app")}},
        "app",
        "app",
        "app",
    ),
    # docker knows no namespaces: such a key is the registry's
    "of a shorter namespace": ({"auths": {"ADDRESS/tea": auth("tea")}}, "", "tea", ""),
    "of a longer namespace": ({"auths": {"ADDRESS/teams": auth("teams")}}, "", "teams", ""),
    "a helper for all": ({"credsStore": "some"}, "helped", "helped", ""),
    "a helper for all beside an entry": (
        {"credsStore": "some", "auths": {"ADDRESS": auth("ann")}},
        "helped",
        "helped",
        "ann",
    ),
    "a helper for the registry": ({"credHelpers": {"ADDRESS": "some"}}, "helped", "helped", "helped"),
    "a helper for the registry beside an entry": (
        {"credHelpers": {"ADDRESS": "some"}, "auths": {"ADDRESS": auth("ann")}},
        "helped",
        "helped",
        "helped",
    ),
    "a helper for another registry": (
        {"credHelpers": {"h.io": "some"}, "auths": {"ADDRESS": auth("ann")}},
        "ann",
        "ann",
        "ann",
    ),
    "a helper for the registry before the one for all": (
        {"credHelpers": {"ADDRESS": "some"}, "credsStore": "none"},
        "helped",
        "helped",
        "helped",
    ),
    "no helper for this registry": (
        {"credHelpers": {"ADDRESS": ""}, "credsStore": "some", "auths": {"ADDRESS": auth("ann")}},
        "ann",
        "ann",
        "",  # for skopeo that is a helper without a name
    ),
    "a helper that knows nobody beside an entry": (
        {"credsStore": "none", "auths": {"ADDRESS": auth("ann")}},
        "ann",
        "",
        "ann",
    ),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ScriptedServer]:
    def script(asked: Asked) -> Reply:
        if asked.authorization is None:
            return Reply(401, {"WWW-Authenticate": 'Basic realm="x"'})
        return Reply(200, {"Content-Type": oci.OCI_MANIFEST}, MANIFEST)

    with ScriptedServer(script) as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a user his file, and two helpers."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, answer in (
        (
            "some",
            f'[ "$server" = {server.address} ] && echo \'{{"Username":"helped","Secret":"secret"}}\' && exit',
        ),
        ("none", ""),
    ):
        program = programs / f"docker-credential-{name}"
        program.write_text(
            f"#!/bin/sh\nread -r server\n{answer}\necho 'credentials not found in native keychain'\nexit 1\n"
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / ".docker").mkdir()
    return tmp_path / ".docker" / "config.json"


def lamella(address: str) -> None:
    with RegistryClient(RegistryConfig(attempts=1)) as client:
        try:
            client.resolve(Reference.parse(f"{address}/team/app"))
        except LamellaError:
            return


def crane(address: str) -> None:
    run("crane", "manifest", "--insecure", f"{address}/team/app")


def skopeo(address: str) -> None:
    run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{address}/team/app")


def run(*command: str) -> None:
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)


def sent(server: ScriptedServer) -> str:
    """Give the user of the last request; none was sent by a program that could not read the file."""
    authorization = (server.asked[-1].authorization if server.asked else None) or "Basic "
    return base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("program", [lamella, crane, skopeo])
def test_the_file_gives_each_what_it_gives_the_others(
    case: str, program: Callable[[str], None], server: ScriptedServer, file: Path
) -> None:
    document, *expected = CASES[case]
    file.write_text(json.dumps(document).replace("ADDRESS", server.address))
    program(server.address)
    assert sent(server) == expected[[lamella, crane, skopeo].index(program)]

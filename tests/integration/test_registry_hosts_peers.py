"""The same hosts.toml and registries.conf for containerd, skopeo and lamella: the same hosts are asked, in the same order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from registries import Asked, Reply, ScriptedServer, read_all

import new_containerd
import systems
from lamella import oci
from lamella.digest import digest_of
from lamella.errors import LamellaError
from lamella.reference import Reference
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.outages import Outages
from ports import silent_port

pytestmark = pytest.mark.integration

Order = dict[str, list[str]]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(Outages, "_recent", {})


class Image:
    """An image that nobody has seen yet: containerd fetches nothing twice."""

    def __init__(self) -> None:
        layer, config = (
            os.urandom(100),
            json.dumps({"architecture": "amd64", "os": "linux", "x": os.urandom(9).hex()}),
        )
        self.layer = oci.Descriptor(oci.OCI_LAYER_GZIP, digest_of(layer), len(layer))
        self.config = oci.Descriptor(oci.OCI_CONFIG, digest_of(config.encode()), len(config))
        manifest = oci.encode(
            oci.Manifest(media_type=oci.OCI_MANIFEST, config=self.config, layers=[self.layer])
        )
        self.manifest = oci.Descriptor(oci.OCI_MANIFEST, digest_of(manifest), len(manifest))
        self.parts = {
            "manifests/v1": ("tag", manifest, oci.OCI_MANIFEST),
            f"manifests/{self.manifest.digest}": ("manifest", manifest, oci.OCI_MANIFEST),
            f"blobs/{self.config.digest}": ("config", config.encode(), "application/octet-stream"),
            f"blobs/{self.layer.digest}": ("layer", layer, "application/octet-stream"),
        }

    def serve(self, asked: Asked) -> Reply:
        """Answer as a registry that has it, wherever."""
        place = _place(asked)
        if place not in self.parts:
            return Reply(404)
        _, body, media_type = self.parts[place]
        return Reply(200, {"Content-Type": media_type, "Docker-Content-Digest": digest_of(body)}, body)

    def pull(self, reference: str, **settings: Any) -> None:
        """Fetch everything with lamella."""
        usual: dict[str, Any] = {
            "credentials": {},
            "attempts": 2,
            "backoff": 0.01,
            "timeouts": Timeouts(5, 5),
        }
        with RegistryClient(RegistryConfig(**usual, **settings)) as client:
            ref = Reference.parse(reference)
            try:
                client.resolve(ref)
                client.fetch_document(ref, self.manifest)
                client.fetch_document(ref, self.config)
                with client.open_blob(ref, self.layer) as stream:
                    read_all(stream)
            except LamellaError:
                return  # containerd and skopeo fail then, too; who was asked is what is compared


def _place(asked: Asked) -> str:
    return re.sub(r".*/(manifests|blobs)/", r"\1/", asked.path.partition("?")[0])


class Servers:
    """``has`` has the image, as ``origin`` does, ``lacks`` has not; ``sick`` answers 503, ``locked`` 401; ``dead`` is none."""

    def __init__(self) -> None:
        self.image = Image()
        self.asked: list[tuple[str, str]] = []
        scripts: dict[str, Callable[[Asked], Reply]] = {
            "has": self.image.serve,
            "lacks": lambda _: Reply(404),
            "sick": lambda _: Reply(503),
            "locked": lambda _: Reply(401),
            "origin": self.image.serve,
        }
        self.image.servers = {
            name: ScriptedServer(self._noted(name, script)) for name, script in scripts.items()
        }
        self.addresses = {name: server.address for name, server in self.image.servers.items()}
        self._held = ExitStack()
        self.addresses["dead"] = self._held.enter_context(silent_port())

    def close(self) -> None:
        self._held.close()
        for server in self.image.servers.values():
            server.__exit__()

    def order(self) -> Order:
        """Say of each part of the image which servers were asked for it, in which order, and start anew."""
        found: Order = {}
        for name, asked in self.asked:
            servers = found.setdefault(asked, [])
            if name not in servers:
                servers.append(name)
        self.asked.clear()
        return found

    def _noted(self, name: str, script: Callable[[Asked], Reply]) -> Callable[[Asked], Reply]:
        def answer(asked: Asked) -> Reply:
            path, _, query = asked.path.partition("?")
            place = _place(asked)
            if place in self.image.parts:
                # Below which path, and with which namespace, is part of what is compared.
                where = path.removesuffix(place).removesuffix("/")
                self.asked.append((f"{name}{where}?{query}".removesuffix("?"), self.image.parts[place][0]))
            elif path.rstrip("/") == "/v2":
                return Reply(200)
            return script(asked)

        return answer


@pytest.fixture
def servers() -> Iterator[Servers]:
    running = Servers()
    yield running
    running.close()


# containerd and hosts.toml


@pytest.fixture(scope="module", params=["of the machine", "newer"])
def ctr(
    request: pytest.FixtureRequest, require_root: Callable[[], None]
) -> Iterator[Callable[[Path, str], bool]]:
    """Give what lets a containerd of its own fetch an image by a hosts folder, and says whether it is the newer one."""
    require_root()
    with tempfile.TemporaryDirectory() as folder:
        for program in systems.Containerd.programs:
            request.getfixturevalue("require_program")(program)

        class Newer(systems.Containerd):
            folder = new_containerd.folder()

        if request.param == "newer" and not Newer.folder.is_dir():
            pytest.skip(f"needs containerd {new_containerd.VERSION}: tools/new_containerd.py builds it")
        system = Newer if request.param == "newer" else systems.Containerd
        with system(Path(folder), "", Path()) as running:

            def fetch(hosts: Path, reference: str) -> bool:
                command = running.ctr("content", "fetch", "--hosts-dir", str(hosts), reference)
                subprocess.run(command, capture_output=True, timeout=60, check=False)
                return bool(request.param == "newer")

            yield fetch


HOSTS_FILES = {
    "all that is needed": '[host."http://{has}"]\n',
    "the next one for what one lacks": '[host."http://{lacks}"]\n[host."http://{has}"]\n',
    "the registry after all": '[host."http://{lacks}"]\n[host."http://{sick}"]\n[host."http://{locked}"]\n',
    "tags elsewhere": '[host."http://{has}"]\ncapabilities = ["pull"]\n',
    "tags alone": '[host."http://{lacks}"]\ncapabilities = ["resolve"]\n[host."http://{has}"]\n',
    "a dead one": '[host."http://{dead}"]\n[host."http://{has}"]\n',
    "in the order of the file": '[host."http://{sick}"]\n[host."http://{lacks}"]\n[host."http://{has}"]\n',
    "a path": '[host."http://{has}/cache"]\n',
    "a path that ends with v2": '[host."http://{has}/cache/v2"]\n',
    "a path of its own": '[host."http://{has}/cache"]\noverride_path = true\n',
    "another server": 'server = "http://{has}"\n',
    "another server after a mirror": 'server = "http://{has}"\n[host."http://{lacks}"]\n',
    "the registry first": '[host."http://{origin}"]\n[host."http://{has}"]\n',
    "nobody for tags": 'server = "http://{origin}"\ncapabilities = ["pull"]\n',
}
OLDER_IGNORES = {"another server", "nobody for tags"}
"""containerd 1.6 does not read what stands at the top of a file."""
IN_VAIN = {"tags alone": "lacks"}
"""containerd asks for content of hosts without "pull", too."""


@pytest.mark.parametrize("case", HOSTS_FILES)
@pytest.mark.parametrize("name", ["HOST:PORT", "HOST_PORT_", "_default"])
def test_containerd_asks_the_same_hosts_in_the_same_order(
    ctr: Callable[[Path, str], bool], servers: Servers, tmp_path: Path, case: str, name: str
) -> None:
    host, _, port = servers.addresses["origin"].partition(":")
    folder = name.replace("HOST", host).replace("PORT", port)
    text = HOSTS_FILES[case]
    if "server =" not in text:
        text = 'server = "http://{origin}"\n' + text
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "hosts.toml").write_text(text.format(**servers.addresses))
    reference = f"{servers.addresses['origin']}/team/app:v1"
    newer = ctr(tmp_path, reference)
    theirs = {
        part: [one for one in asked if part == "tag" or not one.startswith(IN_VAIN.get(case, "-"))]
        for part, asked in servers.order().items()
    }
    servers.image.pull(reference, hosts_dir=tmp_path, registries_conf=os.devnull)
    ours = servers.order()
    assert ours == theirs or (case in OLDER_IGNORES and not newer)


# skopeo (containers/image, which podman and buildah are made of, too) and registries.conf


REGISTRIES_FILES = {
    "a mirror": '[[registry]]\nlocation = "{origin}"\ninsecure = true\n'
    '[[registry.mirror]]\nlocation = "{has}"\ninsecure = true\n',
    "the next one": '[[registry]]\nlocation = "{origin}"\ninsecure = true\n'
    '[[registry.mirror]]\nlocation = "{lacks}"\ninsecure = true\n'
    '[[registry.mirror]]\nlocation = "{has}"\ninsecure = true\n',
    "the registry after all": '[[registry]]\nlocation = "{origin}"\ninsecure = true\n'
    '[[registry.mirror]]\nlocation = "{lacks}"\ninsecure = true\n',
    "other places": '[[registry]]\nprefix = "{origin}/team"\nlocation = "{has}/there"\ninsecure = true\n'
    '[[registry.mirror]]\nlocation = "{lacks}/deep/down"\ninsecure = true\n',
    "the longest prefix": '[[registry]]\nlocation = "{origin}"\ninsecure = true\n'
    '[[registry]]\nprefix = "{origin}/team/app"\nlocation = "{has}/one"\ninsecure = true\n',
    "digests alone": '[[registry]]\nlocation = "{origin}"\ninsecure = true\nmirror-by-digest-only = true\n'
    '[[registry.mirror]]\nlocation = "{lacks}"\ninsecure = true\n',
    "tags alone": '[[registry]]\nlocation = "{origin}"\ninsecure = true\n'
    '[[registry.mirror]]\nlocation = "{has}"\ninsecure = true\npull-from-mirror = "tag-only"\n',
    "a dead one": '[[registry]]\nlocation = "{origin}"\ninsecure = true\n'
    '[[registry.mirror]]\nlocation = "{dead}"\ninsecure = true\n',
    "blocked": '[[registry]]\nlocation = "{origin}"\ninsecure = true\nblocked = true\n',
}


@pytest.mark.parametrize("text", REGISTRIES_FILES.values(), ids=REGISTRIES_FILES.keys())
@pytest.mark.parametrize("by_tag", [True, False])
def test_skopeo_asks_the_same_hosts_in_the_same_order(
    servers: Servers, tmp_path: Path, text: str, by_tag: bool, require_program: Callable[[str], str]
) -> None:
    conf = tmp_path / "registries.conf"
    conf.write_text(text.format(**servers.addresses))
    suffix = ":v1" if by_tag else f"@{servers.image.manifest.digest}"
    reference = f"{servers.addresses['origin']}/team/app{suffix}"
    command = [require_program("skopeo"), "--registries-conf", str(conf), "copy", f"docker://{reference}"]
    subprocess.run([*command, f"dir:{tmp_path}/out"], capture_output=True, timeout=60, check=False)
    theirs = servers.order()
    empty = tmp_path / "empty"
    empty.mkdir()
    servers.image.pull(reference, hosts_dir=empty, registries_conf=conf)
    ours = servers.order()
    # The first host that has the manifest is all that skopeo asks afterwards.
    first = "tag" if by_tag else "manifest"
    assert ours.get(first) == theirs.get(first)
    for part in ("config", "layer"):
        assert ours.get(part, [])[-1:] == theirs.get(part, [])[-1:]

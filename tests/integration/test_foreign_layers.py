"""Foreign layers: refused where they were not allowed, and where they come from, and go to, where they were."""

from __future__ import annotations

import itertools
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from registries import Asked, Reply, hosts_folder, read_all
from test_registry_auth import internet  # noqa: F401 (a fixture)

import lamella
from docker_registry import docker_registry_process
from lamella import oci
from lamella.digest import digest_of
from lamella.errors import (
    DataLoss,
    FailedPrecondition,
    LamellaError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from lamella.reference import Reference
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.credentials import Credential
from lamella.registry.server import RegistryServer, basic_auth
from lamella.structs import read_json, replace
from layers import Built, file, tar

pytestmark = [pytest.mark.integration, pytest.mark.privileged]

LOWER = tar(file("lower", b"from the registry"))
FOREIGN = tar(file("foreign", b"from elsewhere" * 1000))


@pytest.fixture
def server() -> Iterator[Any]:
    with RegistryServer() as running:
        yield running


@pytest.fixture
def other_client(tmp_path: Path) -> Iterator[Any]:
    with lamella.Client(tmp_path / "other-root", tmp_path / "other-state") as opened:
        yield opened


def image(*urls: str, media_type: str = oci.OCI_NONDISTRIBUTABLE_GZIP, compression: str = "gzip") -> Built:
    """An image of two layers, the upper one foreign."""
    made = Built(LOWER, FOREIGN, compression=compression)
    made.descriptors[1] = replace(made.descriptors[1], media_type=media_type, urls=[*urls])
    return made


def push(made: Built, server: Any, *, whole: bool = False) -> str:
    """Push it, without the foreign layer unless ``whole``; give its name."""
    for blob in [*(made.layers if whole else made.layers[:1]), made.config]:
        server.push_blob("made", blob)
    server.push_manifest("made", "latest", made.manifest)
    return f"{server.address}/made:latest"


def serving(blob: bytes) -> Callable[[Asked], Reply]:
    """Serve a blob, by ranges too."""

    def answer(asked: Asked) -> Reply:
        matched = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("range", ""))
        if not matched:
            return Reply(200, {}, blob)
        start, end = int(matched[1]), int(matched[2] or len(blob) - 1)
        return Reply(206, {"Content-Range": f"bytes {start}-{end}/{len(blob)}"}, blob[start : end + 1])

    return answer


def blob_of(made: Built) -> bytes:
    return made.layers[1]


def nothing_came(client: Any) -> bool:
    return not client.images.list() and not list(client.content.walk()) and not client.content.ingests()


# Pull


@pytest.mark.parametrize("unpack", [True, False])
def test_an_image_that_needs_some_is_refused_before_anything_of_it_comes_and_the_option_is_named(
    client: Any, server: Any, scripted: Any, unpack: bool
) -> None:
    elsewhere = scripted(lambda _: Reply(500))
    for whole in (False, True):  # whether the registry has it makes no difference
        name = push(image(f"http://{elsewhere.address}/layer"), server, whole=whole)
        server.requests.clear()
        with pytest.raises(PermissionDenied, match="foreign layer") as caught:
            client.images.pull(name, unpack=unpack)
        assert "--foreign-layers" in caught.value.hint and elsewhere.address in str(caught.value)
        assert [request.path.split("/")[3] for request in server.requests] == ["manifests"] * len(
            server.requests
        )
        assert nothing_came(client)
    assert not elsewhere.asked


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        (oci.OCI_NONDISTRIBUTABLE, "none"),
        (oci.OCI_NONDISTRIBUTABLE_GZIP, "gzip"),
        (oci.OCI_NONDISTRIBUTABLE_ZSTD, "zstd"),
        (oci.DOCKER_FOREIGN_LAYER, "none"),
        (oci.DOCKER_FOREIGN_LAYER_GZIP, "gzip"),
    ],
)
def test_it_comes_from_the_address_where_the_registry_does_not_have_it(
    client: Any, server: Any, scripted: Any, media_type: str, compression: str
) -> None:
    made = image(media_type=media_type, compression=compression)
    elsewhere = scripted(serving(blob_of(made)))
    made.descriptors[1] = replace(
        made.descriptors[1], urls=[f"http://{elsewhere.address}/layers/1?key=secret"]
    )
    name = push(made, server)
    pulled = client.images.pull(name, foreign_layers=True)
    assert [asked.path for asked in elsewhere.asked] == ["/layers/1?key=secret"]
    assert pulled.diff_ids == made.diff_ids and client.content.exists(digest_of(blob_of(made)))
    assert client.fsck(verify_layers=True).findings == []
    elsewhere.asked.clear()
    assert client.images.pull(name) == pulled  # what is here is not fetched, and needs no permission
    client.images.unpack(name)
    assert not elsewhere.asked


def test_the_registry_is_asked_first(client: Any, server: Any, scripted: Any) -> None:
    elsewhere = scripted(lambda _: Reply(500))
    name = push(image(f"http://{elsewhere.address}/layer"), server, whole=True)
    assert client.images.pull(name, foreign_layers=True).diff_ids
    assert not elsewhere.asked


def test_what_is_no_foreign_layer_comes_from_the_registry_alone(
    client: Any, server: Any, scripted: Any
) -> None:
    made = image(media_type=oci.OCI_LAYER_GZIP)
    elsewhere = scripted(serving(blob_of(made)))
    made.descriptors[1] = replace(made.descriptors[1], urls=[f"http://{elsewhere.address}/"])
    name = push(made, server)
    with pytest.raises(NotFound):
        client.images.pull(name, foreign_layers=True)
    assert not elsewhere.asked
    assert not oci.is_foreign(oci.Descriptor("application/vnd.example.foreign-aid+json", digest_of(b""), 0))


def test_without_an_address_it_is_not_found(client: Any, server: Any) -> None:
    with pytest.raises(NotFound):
        client.images.pull(push(image(), server), foreign_layers=True)


def test_no_credentials_and_headers_of_the_registry_go_there(tmp_path: Path, scripted: Any) -> None:
    made = image()
    answer = serving(blob_of(made))

    def curious(asked: Asked) -> Reply:
        challenge = {"WWW-Authenticate": f'Bearer realm="http://{elsewhere.address}/token",service="x"'}
        return Reply(401, challenge) if asked.path == "/asks" else answer(asked)

    elsewhere = scripted(curious)
    with RegistryServer(auth=basic_auth({"ann": "secret"})) as server:
        config = RegistryConfig(
            credentials={
                address: Credential(username="ann", password="secret")
                for address in (server.address, elsewhere.address)
            },
            hosts_dir=hosts_folder(
                tmp_path / "hosts",
                server.address,
                f'server = "http://{server.address}"\n[header]\n  x-secret = "told"\n',
            ),
        )
        urls = [f"http://{elsewhere.address}/{path}" for path in ("asks", "gives")]
        made.descriptors[1] = replace(made.descriptors[1], urls=urls)
        name = push(made, server)
        with lamella.Client(tmp_path / "root", tmp_path / "state", registry=config) as client:
            client.images.pull(name, foreign_layers=True)
            assert [asked.path for asked in elsewhere.asked] == ["/asks", "/gives"]
            for asked in elsewhere.asked:
                assert asked.authorization is None and "x-secret" not in asked.headers
            client.images.remove(name, sync=True)
            made.descriptors[1] = replace(made.descriptors[1], urls=urls[:1])
            server.push_manifest("made", "latest", made.manifest)
            with pytest.raises(Unauthenticated) as caught:
                client.images.pull(name, foreign_layers=True)
            assert "no credentials" in caught.value.hint
        assert {asked.path for asked in elsewhere.asked} == {"/asks", "/gives"}


def test_the_registrys_own_headers_do_not_go_to_an_address_that_is_the_registrys(
    scripted: Any, tmp_path: Path
) -> None:
    own = scripted(serving(BLOB))
    settings = f'server = "http://{own.address}"\n[header]\n  x-secret = "told"\n'
    hosts = hosts_folder(tmp_path, own.address, settings)
    assert fetch(f"{own.address}/a", layer(f"http://{own.address}/v2/private"), hosts_dir=hosts) == BLOB
    assert "x-secret" not in own.asked[0].headers


# From an address: the rules, and what goes wrong


BLOB = bytes(range(256)) * 1000


def layer(*urls: str, blob: bytes = BLOB) -> oci.Descriptor:
    return oci.Descriptor(oci.OCI_NONDISTRIBUTABLE_GZIP, digest_of(blob), len(blob), urls=[*urls])


def fetch(reference: str | None, descriptor: oci.Descriptor, offset: int = 0, **settings: Any) -> bytes:
    config = RegistryConfig(
        **{"credentials": {}, "attempts": 2, "backoff": 0.001, "timeouts": Timeouts(60, 60), **settings}
    )
    with RegistryClient(config) as client:
        parsed = Reference.parse(reference) if reference else None
        with client.open_foreign(parsed, descriptor, offset=offset) as stream:
            return read_all(stream)


def test_one_address_after_the_other_is_tried(scripted: Any) -> None:
    good = scripted(serving(BLOB))
    bad = [scripted(lambda _, status=status: Reply(status)) for status in (404, 403, 503)]
    bad.append(scripted(lambda _: Reply(200, {}, BLOB + b"more")))
    bad.append(scripted(lambda _: Reply(307, {"Location": "file:///etc/passwd"})))
    urls = [
        "ftp://example.com/a",
        "no url",
        *(f"http://{one.address}/" for one in bad),
        f"http://{good.address}/",
    ]
    assert fetch(f"{good.address}/a", layer(*urls)) == BLOB
    assert [len(one.asked) for one in bad] == [1] * len(bad)
    with pytest.raises(LamellaError, match=r"asked before: .*answers 404"):
        fetch(f"{good.address}/a", layer(*urls[2:-1]))


def test_where_it_breaks_off_it_goes_on_there_or_at_the_next_address(scripted: Any) -> None:
    whole = serving(BLOB)
    counter = itertools.count()

    def breaking(asked: Asked) -> Reply:
        reply = whole(asked)
        if next(counter):
            return reply
        return Reply(200, {"Content-Length": str(len(BLOB))}, BLOB[:100_000])

    first = scripted(breaking)
    assert fetch(f"{first.address}/a", layer(f"http://{first.address}/")) == BLOB
    assert [asked.headers.get("range") for asked in first.asked] == [None, "bytes=100000-"]
    counter = itertools.count()
    second = scripted(whole)
    assert fetch(f"{first.address}/a", layer(*(f"http://{one.address}/" for one in (first, second)))) == BLOB
    assert second.asked[0].headers["range"] == "bytes=100000-"
    assert fetch(f"{first.address}/a", layer(f"http://{second.address}/"), offset=5) == BLOB[5:]


def test_one_that_comes_back_is_waited_for(scripted: Any) -> None:
    counter = itertools.count()
    flaky = scripted(lambda asked: serving(BLOB)(asked) if next(counter) else Reply(503))
    assert fetch(f"{flaky.address}/a", layer(f"http://{flaky.address}/")) == BLOB


def test_other_bytes_than_its_digest_are_not_kept(client: Any, server: Any, scripted: Any) -> None:
    made = image()
    evil = bytearray(blob_of(made))
    evil[-1] ^= 1
    elsewhere = scripted(serving(bytes(evil)))
    made.descriptors[1] = replace(made.descriptors[1], urls=[f"http://{elsewhere.address}/"])
    with pytest.raises((DataLoss, FailedPrecondition)):
        client.images.pull(push(made, server), foreign_layers=True)
    assert not client.images.list() and not client.content.exists(digest_of(blob_of(made)))


@pytest.mark.parametrize("size", [len(BLOB) - 1, len(BLOB) + 1, 10**12])
def test_another_size_than_its_descriptor_says_is_refused(scripted: Any, size: int) -> None:
    def endless() -> Iterator[bytes]:
        yield from itertools.repeat(bytes(65536))

    elsewhere = scripted(lambda _: Reply(200, {"Content-Length": str(size)}, endless()))
    with pytest.raises(DataLoss):
        fetch(f"{elsewhere.address}/a", layer(f"http://{elsewhere.address}/"))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "storage.example.com", "[::ffff:127.0.0.1]", "10.1.2.3", "169.254.169.254", "[fe80::1]"],
)  # fmt: skip
@pytest.mark.parametrize("registry", ["registry.example.com", None])
@pytest.mark.parametrize("by", ["url", "redirect"])
@pytest.mark.usefixtures("internet")
def test_an_image_of_a_public_registry_leads_to_no_private_address(
    host: str,
    registry: str | None,
    by: str,
    scripted: Any,
) -> None:
    inside = scripted(serving(BLOB))
    private = f"http://{host}:{inside.port}/"
    public = scripted(lambda _: Reply(307, {"Location": private}), host="127.0.0.2")
    url = private if by == "url" else f"http://registry.example.com:{public.port}/layer"
    with pytest.raises(PermissionDenied, match="private network"):
        fetch(f"{registry}:{public.port}/a" if registry else None, layer(url), plain_http=True)
    assert not inside.asked
    if host.startswith(("10.", "169.", "[fe80")):
        return
    assert fetch(None, layer(url), plain_http=True, allow_private=True) == BLOB


@pytest.mark.usefixtures("internet")
def test_one_of_a_private_registry_leads_into_its_network_but_to_no_link_local_address(
    scripted: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lamella.registry import transport

    inside = scripted(serving(BLOB))
    url = f"http://storage.example.com:{inside.port}/"
    assert fetch(f"127.0.0.1:{inside.port}/a", layer(url), plain_http=True) == BLOB
    for literal in ("169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]"):
        with pytest.raises(PermissionDenied, match="private network"):
            fetch(f"127.0.0.1:{inside.port}/a", layer(f"http://{literal}/latest"), plain_http=True)
    real = transport._peer

    def peer(connection: Any) -> Any:
        metadata = connection.host == "metadata.example.com"
        return transport.parse_address("169.254.169.254") if metadata else real(connection)

    monkeypatch.setattr(transport, "_peer", peer)
    inside.asked.clear()
    with pytest.raises(PermissionDenied, match="private network"):
        fetch(
            f"127.0.0.1:{inside.port}/a",
            layer(f"http://metadata.example.com:{inside.port}/"),
            plain_http=True,
        )
    assert not inside.asked


@pytest.mark.usefixtures("internet")
def test_plain_http_to_another_machine_is_used_only_where_asked_for(scripted: Any) -> None:
    public = scripted(serving(BLOB), host="127.0.0.2")
    url = f"http://registry.example.com:{public.port}/"
    for name in (f"registry.example.com:{public.port}/a", f"127.0.0.1:{public.port}/a", None):
        with pytest.raises(PermissionDenied, match="TLS") as caught:
            fetch(name, layer(url))
        assert "--plain-http" in str(caught.value.hint)
        assert not public.asked
    assert fetch(f"registry.example.com:{public.port}/a", layer(url), plain_http=True) == BLOB


def test_https_is_checked_and_does_not_lead_down_to_http(scripted: Any, tls: Any, authority: Path) -> None:
    plain = scripted(serving(BLOB))
    secure = scripted(
        lambda asked: Reply(307, {"Location": f"http://{plain.address}/"}) if asked.path == "/down" else serving(BLOB)(asked),
        tls=tls,
    )  # fmt: skip
    name = f"{plain.address}/a"
    with pytest.raises(Unavailable, match="certificate"):
        fetch(name, layer(f"https://{secure.address}/"))
    assert fetch(name, layer(f"https://{secure.address}/"), ca=authority / "cert.pem") == BLOB
    with pytest.raises(PermissionDenied, match="plain HTTP"):
        fetch(name, layer(f"https://{secure.address}/down"), ca=authority / "cert.pem")
    assert not plain.asked


# All platforms, copies, archives, conversions


def index_of(server: Any, made: Built) -> tuple[str, Built]:
    """Push an index: an image of this machine's, and ``made``, for Windows, without its foreign layer."""
    own = Built(LOWER)
    own.push(server)
    made.platform = {"os": "windows", "architecture": "amd64", "os.version": "10.0.17763.1"}
    push(made, server)
    entries = [
        oci.Descriptor(oci.OCI_MANIFEST, digest_of(each.manifest), len(each.manifest), platform=platform)
        for each, platform in (
            (own, oci.Platform(**own.platform)),
            (made, oci.Platform("windows", "amd64", os_version="10.0.17763.1")),
        )
    ]
    document = oci.encode({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries})
    server.push_manifest("made", "all", document)
    return f"{server.address}/made:all", own


def test_other_platforms_come_without_theirs_until_they_are_allowed(
    client: Any, server: Any, scripted: Any
) -> None:
    made = image("http://127.0.0.1:1/")
    elsewhere = scripted(serving(blob_of(made)))
    made.descriptors[1] = replace(made.descriptors[1], urls=[f"http://{elsewhere.address}/"])
    name, own = index_of(server, made)
    for _ in range(2):
        assert client.images.pull(name, all_platforms=True).diff_ids == own.diff_ids
        assert not client.content.exists(digest_of(blob_of(made)))
        assert client.images.get(name).platforms[1:] == ["windows/amd64"]
    assert client.fsck().findings == []
    with pytest.raises(PermissionDenied, match="foreign"):
        client.images.pull(name, platform="windows(10.0.17763.99)/amd64", unpack=False)
    assert not elsewhere.asked
    client.images.pull(name, all_platforms=True, foreign_layers=True)
    assert len(elsewhere.asked) == 1
    client.gc()
    assert client.content.exists(digest_of(blob_of(made)))
    with pytest.raises(NotFound, match="no manifest for windows"):
        client.images.pull(name, platform="windows(10.0.14393)/amd64", unpack=False)


def test_a_copy_leaves_them_where_they_are_or_brings_them_from_their_addresses(
    client: Any, server: Any, scripted: Any
) -> None:
    made = image()
    elsewhere = scripted(serving(blob_of(made)))
    made.descriptors[1] = replace(made.descriptors[1], urls=[f"http://{elsewhere.address}/"])
    name = push(made, server)
    with RegistryServer() as other:
        copied = client.images.copy(name, f"{other.address}/without:1")
        assert copied.digest == digest_of(made.manifest) and not elsewhere.asked
        assert not other.storage.repository("without").has_blob(digest_of(blob_of(made)))
        client.images.copy(name, f"{other.address}/with:1", foreign_layers=True)
        assert other.storage.repository("with").has_blob(digest_of(blob_of(made)))
        evil = scripted(serving(b"x" * len(blob_of(made))))
        made.descriptors[1] = replace(made.descriptors[1], urls=[f"http://{evil.address}/"])
        server.push_manifest("made", "latest", made.manifest)
        with pytest.raises(DataLoss):
            client.images.copy(name, f"{other.address}/damaged:1", foreign_layers=True)
        assert not list(client.content.walk())


def names_of_files(archive: Path) -> int:
    """Count the layers that the archive's manifest.json names."""
    with tarfile.open(archive) as opened:
        file = opened.extractfile("manifest.json")
        assert file
        return sum(len(entry["Layers"]) for entry in read_json(file.read()))


@pytest.mark.parametrize("format", ["oci", "oci-dir"])
def test_archives_leave_them_out_until_they_are_allowed_and_take_what_is_there(
    client: Any, other_client: Any, server: Any, scripted: Any, tmp_path: Path, format: Any
) -> None:
    made = image()
    elsewhere = scripted(serving(blob_of(made)))
    made.descriptors[1] = replace(made.descriptors[1], urls=[f"http://{elsewhere.address}/"])
    name = push(made, server)
    client.images.pull(name, foreign_layers=True)
    elsewhere.asked.clear()
    digest = digest_of(blob_of(made))
    without, whole = tmp_path / "without", tmp_path / "whole"
    client.images.export(name, without, format=format)
    client.images.export(name, whole, format=format, foreign_layers=True)
    if format == "oci":  # which docker reads, too: it is told of no image whose files are not all there
        assert [names_of_files(each) for each in (without, whole)] == [0, 2]
    (imported,) = other_client.images.import_(without)
    assert imported.digest == digest_of(made.manifest) and not list(other_client.snapshots.walk())
    assert not other_client.content.exists(digest)
    with pytest.raises(PermissionDenied, match="foreign") as caught:
        other_client.images.import_(without, platform=f"linux/{made.platform['architecture']}")
    assert "import --foreign-layers" in caught.value.hint
    other_client.images.remove(name, sync=True)
    with pytest.raises(PermissionDenied, match="private network"):  # no registry is next to the address
        other_client.images.import_(without, foreign_layers=True)
    assert not elsewhere.asked
    other_client.registry = RegistryConfig(credentials={}, allow_private=True)
    (imported,) = other_client.images.import_(without, foreign_layers=True)
    assert len(elsewhere.asked) == 1 and other_client.snapshots.stat(imported.chain_id)
    other_client.images.remove(name, sync=True)
    other_client.images.import_(whole, unpack=False)
    assert other_client.content.exists(digest)
    (imported,) = other_client.images.import_(whole)
    assert other_client.content.exists(digest) and other_client.snapshots.stat(imported.chain_id)
    assert len(elsewhere.asked) == 1


def test_a_docker_archive_has_them_all_or_there_is_none(
    client: Any, other_client: Any, server: Any, tmp_path: Path
) -> None:
    made = image("https://example.com/layer")
    name = push(made, server, whole=True)
    client.images.pull(name, foreign_layers=True)
    with pytest.raises(PermissionDenied, match="foreign") as caught:
        client.images.export(name, tmp_path / "archive.tar", format="docker")
    assert "--foreign-layers" in caught.value.hint and not (tmp_path / "archive.tar").exists()
    client.images.export(name, tmp_path / "archive.tar", format="docker", foreign_layers=True)
    (imported,) = other_client.images.import_(tmp_path / "archive.tar")
    assert imported.diff_ids == made.diff_ids and other_client.snapshots.stat(imported.chain_id)


def test_a_conversion_keeps_them_or_makes_them_layers_like_others(client: Any, server: Any) -> None:
    made = image("https://example.com/layer")
    name = push(made, server, whole=True)
    pulled = client.images.pull(name, foreign_layers=True)
    zstd = client.images.convert(name, "zstd", compression="zstd")
    assert [each.media_type for each in zstd.layers] == [oci.OCI_LAYER_ZSTD, oci.OCI_NONDISTRIBUTABLE_GZIP]
    assert zstd.layers[1] == pulled.layers[1]
    docker = client.images.convert(name, "docker", format="docker")
    assert docker.layers[1].media_type == oci.DOCKER_FOREIGN_LAYER_GZIP
    assert docker.layers[1].urls == ["https://example.com/layer"]
    assert client.images.convert("docker", "back", format="oci").layers == pulled.layers
    plain = client.images.convert(name, "plain", foreign_layers=True)
    assert [each.media_type for each in plain.layers] == [oci.OCI_LAYER_GZIP] * 2
    assert plain.layers[1].urls is None and plain.layers[1].digest == pulled.layers[1].digest
    packed = client.images.convert(name, "packed", foreign_layers=True, compression="zstd")
    assert [each.media_type for each in packed.layers] == [oci.OCI_LAYER_ZSTD] * 2
    assert {each.chain_id for each in (zstd, docker, plain, packed)} == {pulled.chain_id}


# Against other programs


@pytest.mark.needs_program("docker-registry", "skopeo")
def test_docker_registry_and_skopeo_agree(client: Any, scripted: Any, tmp_path: Path) -> None:
    made = image(media_type=oci.DOCKER_FOREIGN_LAYER_GZIP)
    elsewhere = scripted(serving(blob_of(made)))
    made.descriptors[1] = replace(made.descriptors[1], urls=[f"http://{elsewhere.address}/layer"])
    allowed = "validation: {manifests: {urls: {allow: ['^http://127[.]0[.]0[.]1:']}}}\n"
    with docker_registry_process(tmp_path / "registry", allowed) as address, RegistryServer() as server:
        client.images.copy(push(made, server), f"{address}/made:1")
        with pytest.raises(PermissionDenied, match="foreign"):
            client.images.pull(f"{address}/made:1")
        pulled = client.images.pull(f"{address}/made:1", foreign_layers=True)
        assert pulled.diff_ids == made.diff_ids
        client.images.push(f"{address}/made:1", f"{address}/again:1")
        command = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{address}/again:1"]
        subprocess.run([*command, f"dir:{tmp_path}/dir"], check=True, capture_output=True)
        assert (tmp_path / "dir" / digest_of(blob_of(made))[7:]).read_bytes() == blob_of(made)

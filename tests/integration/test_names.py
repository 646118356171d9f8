"""What a name means, by what others ask registries for: crane and skopeo, which read names as docker does.

A proxy takes every connection, to whichever host, and answers with TLS in its place, so that the host and the path that a
program asks for are seen without the internet.
"""

from __future__ import annotations

import ipaddress
import os
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple

import pytest

from lamella import oci
from lamella.digest import digest_of
from lamella.errors import LamellaError
from lamella.reference import Reference
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig

pytestmark = pytest.mark.integration

MANIFEST = oci.encode(
    oci.Manifest(
        media_type=oci.OCI_MANIFEST,
        config=oci.Descriptor(oci.OCI_CONFIG, digest_of(b"{}"), 2),
        layers=[],
    )
)
DIGEST = digest_of(MANIFEST)
SHA512 = digest_of(MANIFEST, "sha512")


class Manifest(NamedTuple):
    """A manifest that was asked for."""

    host: str
    path: str


class Internet:
    """Every host there is, behind a proxy on this machine; a context manager."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self.asked: list[Manifest] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20

            def log_message(self, *_: object) -> None:
                pass

            def finish(self) -> None:
                with suppress(OSError):
                    super().finish()
                self.connection.close()

            def do_CONNECT(self) -> None:
                self.send_response(200)
                self.end_headers()
                try:
                    self.connection = tls.wrap_socket(self.connection, server_side=True)
                except OSError:  # a name that the certificate does not have
                    self.close_connection = True
                    return
                self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
                self.target = self.path
                self.close_connection = False

            def do_GET(self) -> None:
                _, _, path = self.path.partition("/v2/")
                if path:
                    host = self.target.lower().replace(
                        "index.docker.io", "registry-1.docker.io"
                    )  # crane's name for it
                    outer.asked.append(Manifest(host, f"/v2/{path}"))
                self.send_response(200)
                self.send_header("Content-Type", oci.OCI_MANIFEST)
                self.send_header("Content-Length", str(len(MANIFEST)))
                self.end_headers()
                self.wfile.write(MANIFEST)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Internet:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


# name, host and port that is asked, path
NAMES = [
    ("nginx", "registry-1.docker.io:443", "library/nginx/manifests/latest"),
    ("nginx:1.25", "registry-1.docker.io:443", "library/nginx/manifests/1.25"),
    ("library/nginx", "registry-1.docker.io:443", "library/nginx/manifests/latest"),
    ("docker.io/nginx", "registry-1.docker.io:443", "library/nginx/manifests/latest"),
    ("docker.io/library/nginx", "registry-1.docker.io:443", "library/nginx/manifests/latest"),
    ("index.docker.io/nginx", "registry-1.docker.io:443", "library/nginx/manifests/latest"),
    ("index.docker.io/team/app", "registry-1.docker.io:443", "team/app/manifests/latest"),
    ("team/app", "registry-1.docker.io:443", "team/app/manifests/latest"),
    ("a/b/c/d", "registry-1.docker.io:443", "a/b/c/d/manifests/latest"),
    ("host/a", "registry-1.docker.io:443", "host/a/manifests/latest"),
    ("localhost", "registry-1.docker.io:443", "library/localhost/manifests/latest"),
    ("localhost:5000", "registry-1.docker.io:443", "library/localhost/manifests/5000"),
    ("a.b", "registry-1.docker.io:443", "library/a.b/manifests/latest"),
    ("192.168.1.1", "registry-1.docker.io:443", "library/192.168.1.1/manifests/latest"),
    ("192.168.1.1:5000", "registry-1.docker.io:443", "library/192.168.1.1/manifests/5000"),
    ("library/a/b", "registry-1.docker.io:443", "library/a/b/manifests/latest"),
    ("xn--n3h/a", "registry-1.docker.io:443", "xn--n3h/a/manifests/latest"),
    ("example.com/a", "example.com:443", "a/manifests/latest"),
    ("example.com/a:b", "example.com:443", "a/manifests/b"),
    ("example.com:443/a", "example.com:443", "a/manifests/latest"),
    ("example.com:5000/a/b/c", "example.com:5000", "a/b/c/manifests/latest"),
    ("example.com:5000/a:5050", "example.com:5000", "a/manifests/5050"),
    (
        "b.gcr.io/test.example.com/my-app:test.example.com",
        "b.gcr.io:443",
        "test.example.com/my-app/manifests/test.example.com",
    ),
    ("host:5000/a", "host:5000", "a/manifests/latest"),
    ("xn--n3h.com/a:xn--n3h.com", "xn--n3h.com:443", "a/manifests/xn--n3h.com"),
    ("192.168.1.1/a", "192.168.1.1:443", "a/manifests/latest"),
    ("192.168.1.1:5000/a:5050", "192.168.1.1:5000", "a/manifests/5050"),
    ("[2001:db8::1]/a", "[2001:db8::1]:443", "a/manifests/latest"),
    ("[2001:db8::1]:5000/a", "[2001:db8::1]:5000", "a/manifests/latest"),
    ("[2001:db8:1:2:3:4:5:6]/a:t", "[2001:db8:1:2:3:4:5:6]:443", "a/manifests/t"),
    ("example.com/a-b/c_d/e__f/g.h/i---j", "example.com:443", "a-b/c_d/e__f/g.h/i---j/manifests/latest"),
    ("example.com/0", "example.com:443", "0/manifests/latest"),
    ("example.com/library/nginx", "example.com:443", "library/nginx/manifests/latest"),
    ("example.com/" + "a" * 200, "example.com:443", "a" * 200 + "/manifests/latest"),
    ("example.com/a:" + "t" * 128, "example.com:443", "a/manifests/" + "t" * 128),
    ("example.com/a:_x.Y-Z", "example.com:443", "a/manifests/_x.Y-Z"),
    (f"nginx@{DIGEST}", "registry-1.docker.io:443", f"library/nginx/manifests/{DIGEST}"),
    (f"example.com/a@{DIGEST}", "example.com:443", f"a/manifests/{DIGEST}"),
    (f"example.com/a@{SHA512}", "example.com:443", f"a/manifests/{SHA512}"),
    ("EXAMPLE.com/a", "EXAMPLE.com:443", "a/manifests/latest"),
    ("HOST/a", "HOST:443", "a/manifests/latest"),
]

# These no program asks anybody for.
REFUSED = [
    "",
    "Nginx",
    "example.com/App",
    "nginx:",
    "nginx:.a",
    "nginx:-a",
    "nginx:" + "t" * 129,
    "a//b",
    "a/",
    "/a",
    "a..b",
    "a___b",
    "-a/b",
    "a-",
    "a/_b",
    "example.com/../x",
    "example.com/%2e%2e",
    "example.com/é",
    "https://example.com/a",
    "example.com/a b",
    "nginx@sha256:abc",
    "nginx@",
    "nginx@md5:" + "0" * 32,
    "nginx@sha256:" + "A" * 64,
    "[2001:db8::1/a",
    "[2001:db8::1]",
    "[fe80::1%eth0]/a",
    "[fe80::1%25eth0]/a",
    "[::ffff:1.2.3.4]/a",
    "2001:db8::1/a",
    "h_o.io/a",
    "example.com:port/a",
    "example.com/" + "a" * 256,
    "0123456789abcdef" * 4,
]

# What came into the grammar after these programs: IPv6, and a host by its upper-case letters.
UNKNOWN = {
    "skopeo": {"[2001:db8::1]/a", "[2001:db8::1]:5000/a", "[2001:db8:1:2:3:4:5:6]/a:t", "HOST/a"},
    "crane": {"HOST/a"},
}


def _host(target: str) -> str:
    return target.rpartition(":")[0].strip("[]")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]) -> Path:
    """Make a certificate for all hosts of the table; give the folder of cert.pem and key.pem."""
    folder = tmp_path_factory.mktemp("names")
    hosts = {_host(host).lower() for _, host, _ in NAMES} | {"index.docker.io"}

    def entry(host: str) -> str:
        try:
            return f"IP:{ipaddress.ip_address(host)}"
        except ValueError:
            return f"DNS:{host}"

    subprocess.run(
        [
            *(
                require_program("openssl"),
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ),
            *("-nodes", "-days", "2", "-subj", "/CN=names", "-keyout", "key.pem", "-out", "cert.pem"),
            *("-addext", f"subjectAltName={','.join(entry(host) for host in sorted(hosts))}"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def internet(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Internet]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with Internet(context) as opened:
        for name in list(os.environ):
            if name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)
        empty = tmp_path / "registries.conf"
        empty.write_text("")
        monkeypatch.setenv("HTTPS_PROXY", opened.address)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(empty))
        monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
        monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
        yield opened


def lamella(name: str) -> bool:
    with RegistryClient(RegistryConfig(credentials={}, attempts=1)) as client:
        try:
            client.resolve(Reference.parse(name))
        except LamellaError:
            return False
    return True


def skopeo(name: str) -> bool:
    return run("skopeo", "inspect", "--raw", f"docker://{name}")


def crane(name: str) -> bool:
    return run("crane", "manifest", name)


def run(*command: str) -> bool:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    return done.returncode == 0


@pytest.mark.needs_program("skopeo", "crane")
@pytest.mark.parametrize(("name", "host", "path"), NAMES)
def test_a_name_leads_where_skopeo_and_crane_are_led(
    name: str, host: str, path: str, internet: Internet
) -> None:
    for program in (lamella, skopeo, crane):
        if program is lamella or name not in UNKNOWN.get(program.__name__, ()):
            assert program(name), program.__name__
            assert internet.asked == [Manifest(host.lower(), f"/v2/{path}")], program.__name__
            internet.asked.clear()


@pytest.mark.needs_program("skopeo")
@pytest.mark.parametrize("name", REFUSED)
def test_a_malformed_name_leads_nowhere(name: str, internet: Internet) -> None:
    """As for skopeo, which takes docker's grammar; crane asks for most of these."""
    assert not lamella(name)
    assert not skopeo(name)
    assert not internet.asked


@pytest.mark.needs_program("skopeo", "crane")
def test_tag_and_digest_are_asked_for_by_the_tag_which_crane_ignores(internet: Internet) -> None:
    both = f"example.com/a:t@{DIGEST}"
    assert lamella(both)
    assert crane(both)
    assert [asked.path for asked in internet.asked] == ["/v2/a/manifests/t", f"/v2/a/manifests/{DIGEST}"]

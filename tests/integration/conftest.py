"""Fixtures of the integration tests: the command as typed, one store that holds the real image, a certificate."""

from __future__ import annotations

import ssl
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from registries import scripted
from serving import serve

from traces import spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["lamella", "pulled", "scripted", "serve", "spans"]


class Pulled(NamedTuple):
    """A client on a store of its own, with the real image in it."""

    client: Any
    image: Any
    reference: str
    root: Path
    state: Path


@pytest.fixture(scope="session")
def pulled(real_image_ref: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulled]:
    """Pull the real image once a session. Tests that use it leave the store as they found it."""
    import lamella

    folder = tmp_path_factory.mktemp("pulled")
    root, state = folder / "root", folder / "state"
    with lamella.Client(root=root, state=state) as client:
        yield Pulled(client, client.images.pull(real_image_ref), real_image_ref, root, state)


@pytest.fixture(autouse=True)
def answers_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test at whose end an answer of a registry is still open: its connection would be, until it is collected."""
    from lamella.registry.transport import Transport

    answers: list[Any] = []
    request = Transport.request

    def noted(*args: Any, **options: Any) -> Any:
        answers.append(request(*args, **options))
        return answers[-1]

    monkeypatch.setattr(Transport, "request", noted)
    yield
    left = [answer for answer in answers if not answer.raw._fp.isclosed()]
    told = [f"{answer.request.method} {answer.url}: {answer.status_code}" for answer in left]
    for answer in left:
        answer.close()
    assert not told, f"not closed: {told}"


@pytest.fixture
def lamella(pulled: Pulled) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the installed command on the store that holds the real image."""
    program = Path(sys.executable).with_name("lamella")
    if not program.exists():
        pytest.skip("the command is not installed beside this interpreter (make build)")

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(program), "--root", str(pulled.root), "--state", str(pulled.state), *arguments]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(arguments)} exited with {done.returncode}:\n{done.stderr}")
        return done

    return run


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]) -> Path:
    """Make a self-signed certificate for loopback and registry.example.com; give its folder."""
    folder = tmp_path_factory.mktemp("tls")
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
            *("-nodes", "-days", "2", "-subj", "/CN=lamella test", "-keyout", "key.pem", "-out", "cert.pem"),
            *("-addext", "subjectAltName=DNS:localhost,DNS:registry.example.com,IP:127.0.0.1"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def tls(authority: Path) -> ssl.SSLContext:
    """Give what a server with that certificate takes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "cert.pem", authority / "key.pem")
    return context

"""``lamella registry hosts`` shows what would be asked, and no secret."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from program import Program

SECRET = "hunter2-very-secret"


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a hosts folder with mirrors of docker.io, beside a login at one of them."""
    auth = base64.b64encode(f"ann:{SECRET}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"mirror.example": {"auth": auth}}}))
    (tmp_path / "registries.conf").write_text('[[registry]]\nlocation = "blocked.example"\nblocked = true\n')
    folder = tmp_path / "certs.d/docker.io"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(
        f'[host."https://mirror.example"]\ncapabilities = ["pull"]\nca = "ca.pem"\n'
        f'proxy = "http://user:{SECRET}@proxy:3128"\ndial_timeout = "1s"\nheader = {{ x-token = "{SECRET}" }}\n'
        '[host."http://10.0.0.5:5000"]\n'
    )
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "registries.conf"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    return tmp_path / "certs.d"


def test_each_host_is_a_line_in_the_order_of_asking(lamella: Program, hosts: Path) -> None:
    shown = lamella("registry", "hosts", "--hosts-dir", str(hosts), "nginx").ok().out
    lines = [line.split() for line in shown.splitlines()]
    assert [line[0] for line in lines] == [
        "HOST",
        "https://mirror.example/v2",
        "http://10.0.0.5:5000/v2",
        "https://registry-1.docker.io/v2",
    ]
    assert lines[1][1] == "pull"
    assert lines[2][1:3] == ["pull,resolve,push,referrers", "none"]
    assert str(hosts.parent / "config.json") in shown
    assert SECRET not in shown


def test_json_tells_all_but_secrets(lamella: Program, hosts: Path) -> None:
    shown = lamella("registry", "hosts", "--json", "--hosts-dir", str(hosts), "docker.io").ok().out
    mirror, plain, hub = json.loads(shown)
    assert mirror == {
        "url": "https://mirror.example/v2",
        "scheme_guessed": False,
        "repository": None,
        "capabilities": ["pull"],
        "namespace": "docker.io",
        "ca": [str(hosts / "docker.io/ca.pem")],
        "client": [],
        "skip_verify": False,
        "headers": ["x-token"],
        "proxy": "http://proxy:3128",
        "connect_timeout": 1.0,
        "credentials": str(hosts.parent / "config.json"),
        "file": str(hosts / "docker.io/hosts.toml"),
    }
    assert (plain["credentials"], plain["connect_timeout"]) == (None, 3.0)
    assert (hub["namespace"], hub["connect_timeout"]) == (None, 10.0)
    assert SECRET not in shown


def test_a_name_with_a_port_is_a_registry_and_one_with_a_tag_an_image(lamella: Program, hosts: Path) -> None:
    def first(name: str) -> tuple[str, str | None]:
        shown = lamella("registry", "hosts", "--json", "--hosts-dir", str(hosts), name).ok().out
        row = json.loads(shown)[-1]
        return row["url"], row["repository"]

    assert first("host:5000") == ("https://host:5000/v2", None)
    assert first("[::1]:5000") == ("http://[::1]:5000/v2", None)
    assert first("example.com/team/app:v1") == ("https://example.com/v2", "team/app")
    assert first("nginx:latest") == ("https://registry-1.docker.io/v2", "library/nginx")


def test_a_blocked_registry_is_an_error_that_names_the_file(lamella: Program, hosts: Path) -> None:
    done = lamella("registry", "hosts", "--hosts-dir", str(hosts), "blocked.example")
    assert done.status == 1
    assert f"blocked by {hosts.parent}/registries.conf" in done.err

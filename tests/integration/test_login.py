"""Logging in and out: against real registries, and with docker's, podman's, skopeo's and crane's files both ways."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from registries import Reply, ScriptedServer, TokenServer, push_image

import machine_image
import systems
from docker_registry import docker_registry_process
from lamella.errors import FailedPrecondition, InvalidArgument, NotFound, Unauthenticated, Unavailable
from lamella.reference import Reference
from lamella.registry import helpers
from lamella.registry.client import RegistryClient
from lamella.registry.config import RegistryConfig
from lamella.registry.credentials import CredentialStore
from lamella.registry.login import current, login, logout, logout_all, parse_server
from lamella.registry.server import RegistryServer, basic_auth

pytestmark = pytest.mark.integration

PASSWORD = "hunter2"
AUTH = base64.b64encode(b"ann:hunter2").decode()
# What `htpasswd -B` makes of ann's password.
HTPASSWD = "ann:$2y$05$GjowGl.EJeQMGxoYeAu/vuMXAVNeg5hW/.OC52ps.yQhTOcjqROyC\n"
ONCE = RegistryConfig(attempts=1)

# Keeps what it is told in a file of JSON, as the helpers of a desktop's key ring do in there.
HELPER = """#!{python}
import json, sys
from pathlib import Path
file, word, given = Path({file!r}), sys.argv[1], sys.stdin.read()
kept = json.loads(file.read_text()) if file.exists() else {{}}
with Path({file!r} + ".asked").open("a") as asked:
    print(word, json.loads(given)["ServerURL"] if word == "store" else given, file=asked)
if word == "store":
    document = json.loads(given)
    kept[document["ServerURL"]] = document
    file.write_text(json.dumps(kept))
elif word == "list":
    print(json.dumps({{server: document["Username"] for server, document in kept.items()}}))
elif given not in kept:
    print("credentials not found in native keychain")
    sys.exit(1)
elif word == "get":
    print(json.dumps(kept[given]))
elif word == "erase":
    del kept[given]
    file.write_text(json.dumps(kept))
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give every program a home of its own, without credentials."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    yield folder
    systems.end_pause(tmp_path / "run/libpod/tmp")


@pytest.fixture
def docker_file(home: Path) -> Path:
    return home / ".docker" / "config.json"


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer(auth=basic_auth({"ann": PASSWORD})) as opened:
        push_image(opened)
        yield opened


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put docker-credential-NAME on PATH; give the file that it keeps everything in."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def make(name: str) -> Path:
        file = tmp_path / f"kept-by-{name}.json"
        program = folder / f"docker-credential-{name}"
        program.write_text(HELPER.format(python=sys.executable, file=str(file)))
        program.chmod(0o755)
        return file

    return make


def written(file: Path) -> Any:
    return json.loads(file.read_bytes())


def configure(file: Path, **document: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))


def resolve(address: str, repository: str = "team/app") -> None:
    with RegistryClient(ONCE) as client:
        client.resolve(Reference.parse(f"{address}/{repository}"))


def run(*command: str, input: str = "") -> str:
    done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


# The library


def test_a_login_is_kept_in_dockers_file_and_used_by_the_next_pull(
    server: RegistryServer, docker_file: Path
) -> None:
    with pytest.raises(Unauthenticated):
        resolve(server.address)
    done = login(server.address, username="ann", password=PASSWORD)
    assert (done.registry, done.username, done.stored_in) == (server.address, "ann", str(docker_file))
    assert (done.checked, done.encrypted, done.identity_token) == (True, False, False)
    assert written(docker_file) == {"auths": {server.address: {"auth": AUTH}}}
    resolve(server.address)
    assert logout(server.address) == [str(docker_file)]
    assert written(docker_file) == {"auths": {}}
    with pytest.raises(Unauthenticated):
        resolve(server.address)
    with pytest.raises(NotFound):
        logout(server.address)


def test_what_a_registry_refuses_is_not_kept(server: RegistryServer, docker_file: Path) -> None:
    with pytest.raises(Unauthenticated, match="refuses the user name or the password") as caught:
        login(server.address, username="ann", password="wrong-password")
    assert "wrong-password" not in str(caught.value)
    assert not docker_file.exists()
    with (
        TokenServer({"ann": PASSWORD}) as tokens,
        RegistryServer(auth=tokens.guard) as other,
        pytest.raises(Unauthenticated, match="refuses the user name or the password"),
    ):
        login(other.address, username="ann", password="wrong-password")
    with pytest.raises(Unavailable):
        login("127.0.0.1:1", username="ann", password=PASSWORD, config=ONCE)
    assert not docker_file.exists()


@pytest.mark.parametrize(
    ("reply", "kind", "why"),
    [
        (Reply(404, {}, b"not found"), Unavailable, "has no /v2/"),
        (Reply(200, {"Content-Type": "text/html"}, b"<html>log in"), Unavailable, "a web page"),
        (Reply(403, {}, b'{"errors":[{"code":"DENIED","message":"no"}]}'), Unauthenticated, "DENIED: no"),
        (Reply(401, {"WWW-Authenticate": "Negotiate"}), Unauthenticated, "answers 401"),
        (Reply(500), Unavailable, "answers 500"),
    ],
)
def test_what_is_no_login_is_not_kept(
    reply: Reply, kind: type[Exception], why: str, docker_file: Path
) -> None:
    with ScriptedServer(lambda _: reply) as server, pytest.raises(kind, match=why) as caught:
        login(server.address, username="ann", password=PASSWORD, config=ONCE)
    assert server.address in str(caught.value)
    assert "image" not in str(caught.value)
    assert not docker_file.exists()


def test_a_namespace_of_docker_hub_is_not_in_library(docker_file: Path) -> None:
    configure(
        docker_file, auths={"docker.io/team": {"auth": AUTH}, "index.docker.io/team/app": {"auth": AUTH}}
    )
    found = CredentialStore([docker_file])
    assert found.find("docker.io", "team/app")
    assert found.find("docker.io", "library/app") is None
    assert logout("docker.io/team") == [str(docker_file)]
    assert logout("docker.io/team/app") == [str(docker_file)]
    assert written(docker_file) == {"auths": {}}


def test_the_login_asks_for_no_repository(docker_file: Path) -> None:
    """Some registries name an example in the challenge to a login."""
    with TokenServer({"ann": PASSWORD}) as tokens:
        wanted = f'Bearer realm="{tokens.realm}",service="s",scope="repository:user/image:pull"'
        script = lambda asked: Reply() if asked.authorization else Reply(401, {"WWW-Authenticate": wanted})  # noqa: E731
        with ScriptedServer(script) as scripted:
            assert login(scripted.address, username="ann", password=PASSWORD).checked
            assert [asked.path for asked in scripted.asked] == ["/v2/", "/v2/"]
        (asked,) = tokens.asked
        assert asked.path == "/token?service=s&account=ann&client_id=lamella&offline_token=true"


def test_an_identity_token_is_kept_in_the_place_of_the_password(docker_file: Path) -> None:
    with TokenServer({"ann": PASSWORD}, offline=True) as tokens, RegistryServer(auth=tokens.guard) as server:
        push_image(server)
        done = login(server.address, username="ann", password=PASSWORD)
        assert done.identity_token
        entry = written(docker_file)["auths"][server.address]
        assert entry == {"auth": base64.b64encode(b"ann:").decode(), "identitytoken": "identity-1"}
        resolve(server.address)
        assert (tokens.asked[-1].method, tokens.asked[-1].authorization) == ("POST", None)
        # One that somebody has already is tried and kept as it is.
        done = login(server.address, username="", identity_token="identity-1")
        assert done.identity_token
        with pytest.raises(Unauthenticated, match="refuses the identity token"):
            login(server.address, identity_token="identity-of-nobody")
        resolve(server.address)


def test_a_registry_that_lets_everybody_in_is_told_apart(docker_file: Path) -> None:
    with RegistryServer() as server:
        assert not login(server.address, username="ann", password="anything").checked
    assert docker_file.exists()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"username": "", "password": "x"}, "user name is empty"),
        ({"username": "ann", "password": ""}, "password is empty"),
        ({"username": "a:b", "password": "x"}, "colon"),
        ({"username": "a", "password": "x", "identity_token": "y"}, "one is enough"),
    ],
)
def test_what_cannot_be_sent_is_refused_before(given: dict[str, str], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        login("h.io", **given)


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("docker.io", ("docker.io", "")),
        ("https://index.docker.io/v1/", ("docker.io", "")),
        ("registry-1.docker.io", ("docker.io", "")),
        ("ghcr.io", ("ghcr.io", "")),
        ("ghcr.io/", ("ghcr.io", "")),
        ("https://ghcr.io/v2/", ("ghcr.io", "")),
        ("http://host:5000", ("host:5000", "")),
        ("[::1]:5000", ("[::1]:5000", "")),
        ("quay.io/team", ("quay.io", "team")),
        ("quay.io/team/app/", ("quay.io", "team/app")),
        ("docker.io/team", ("docker.io", "team")),
        ("index.docker.io/team/app", ("docker.io", "team/app")),
        ("localhost", ("localhost", "")),
    ],
)
def test_a_server_is_named_as_docker_and_podman_name_it(server: str, expected: tuple[str, str]) -> None:
    assert parse_server(server) == expected


@pytest.mark.parametrize(
    "server", ["", "/", "a b", "https://ann:hunter2@h.io", "h.io/Team", "ftp://h.io", "-h"]
)
def test_what_names_no_server_is_refused_without_repeating_it(server: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_server(server)
    assert PASSWORD not in f"{caught.value}{caught.value.hint}"


def test_a_login_for_a_namespace_is_for_that_alone(server: RegistryServer, docker_file: Path) -> None:
    push_image(server, "other/app")
    login(f"{server.address}/team", username="ann", password=PASSWORD)
    assert list(written(docker_file)["auths"]) == [f"{server.address}/team"]
    resolve(server.address)
    with pytest.raises(Unauthenticated):
        resolve(server.address, "other/app")
    with pytest.raises(NotFound):
        logout(server.address)
    assert logout(f"{server.address}/team") == [str(docker_file)]


def test_the_file_is_the_one_that_the_environment_names(
    server: RegistryServer, docker_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    assert (
        login(server.address, username="ann", password=PASSWORD).stored_in == f"{tmp_path}/docker/config.json"
    )
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    assert login(server.address, username="ann", password=PASSWORD).stored_in == f"{tmp_path}/auth.json"
    named = tmp_path / "named.json"
    assert login(server.address, username="ann", password=PASSWORD, file=named).stored_in == str(named)
    assert not docker_file.exists()
    assert logout(server.address) == [f"{tmp_path}/auth.json", f"{tmp_path}/docker/config.json"]
    assert logout(server.address, files=[named]) == [str(named)]


# Helpers


@pytest.mark.parametrize("setting", ["credsStore", "credHelpers"])
def test_a_configured_helper_keeps_the_secret_and_the_file_does_not(
    setting: str, server: RegistryServer, docker_file: Path, helper: Any
) -> None:
    kept = helper("test")
    value = "test" if setting == "credsStore" else {server.address: "test"}
    configure(docker_file, auths={server.address: {"auth": "b2xkOm9sZA=="}}, **{setting: value})
    done = login(server.address, username="ann", password=PASSWORD)
    assert (done.stored_in, done.encrypted) == ("docker-credential-test", True)
    assert written(docker_file) == {"auths": {server.address: {}}, setting: value}
    assert written(kept)[server.address] == {
        "ServerURL": server.address,
        "Username": "ann",
        "Secret": PASSWORD,
    }
    resolve(server.address)
    assert logout(server.address) == ["docker-credential-test", str(docker_file)]
    assert written(kept) == {}
    assert written(docker_file) == {"auths": {}, setting: value}


def test_a_helper_for_one_registry_is_not_told_of_another(
    server: RegistryServer, docker_file: Path, helper: Any
) -> None:
    kept = helper("test")
    configure(docker_file, credHelpers={"h.io": "test", server.address: ""}, credsStore="missing")
    assert login(server.address, username="ann", password=PASSWORD).stored_in == str(docker_file)
    resolve(server.address)
    logout(server.address)
    assert not kept.exists()
    assert not Path(f"{kept}.asked").exists()


def test_a_helper_keeps_identity_tokens_as_dockers_do(docker_file: Path, helper: Any) -> None:
    kept = helper("test")
    configure(docker_file, credsStore="test")
    with TokenServer({"ann": PASSWORD}, offline=True) as tokens, RegistryServer(auth=tokens.guard) as server:
        push_image(server)
        login(server.address, username="ann", password=PASSWORD)
        assert written(kept)[server.address]["Username"] == "<token>"
        resolve(server.address)
        assert tokens.asked[-1].method == "POST"


def test_a_helper_that_fails_to_keep_says_why_without_the_secret(
    server: RegistryServer, docker_file: Path, helper: Any, tmp_path: Path
) -> None:
    helper("test")
    (tmp_path / "bin/docker-credential-test").write_text(
        '#!/bin/sh\nread -r secret\necho "no key ring for $secret"\nexit 1\n'
    )
    configure(docker_file, credsStore="test")
    with pytest.raises(Unavailable, match=r"exit status 1: no key ring for .*\*\*\*") as caught:
        login(server.address, username="ann", password=PASSWORD)
    assert PASSWORD not in str(caught.value)
    assert written(docker_file) == {"credsStore": "test"}
    configure(docker_file, credsStore="not-there")
    with pytest.raises(FailedPrecondition, match="not on PATH"):
        login(server.address, username="ann", password=PASSWORD)


def test_logging_out_of_all_empties_files_and_helpers(
    server: RegistryServer, docker_file: Path, helper: Any, tmp_path: Path
) -> None:
    kept, other = helper("test"), helper("other")
    for name in ("x.io", "y.io"):
        helpers.store("test", name, helpers.Kept("ann", PASSWORD))
        helpers.store("other", name, helpers.Kept("ann", PASSWORD))
    configure(docker_file, credsStore="test", credHelpers={"x.io": "other"}, auths={"z.io": {"auth": AUTH}})
    podman = tmp_path / "run/containers/auth.json"
    configure(podman, auths={"h.io/team": {"auth": AUTH}})
    assert logout_all() == [
        "docker-credential-other",
        "docker-credential-test",
        str(docker_file),
        str(podman),
    ]
    assert written(kept) == {}
    assert list(written(other)) == ["y.io"]
    assert written(podman) == {"auths": {}}
    assert logout_all() == []


def test_logging_out_goes_on_where_one_place_fails(docker_file: Path, tmp_path: Path) -> None:
    configure(docker_file, credsStore="not-there", auths={"h.io": {"auth": AUTH}})
    podman = tmp_path / "run/containers/auth.json"
    configure(podman, auths={"h.io": {"auth": AUTH}})
    with pytest.raises(FailedPrecondition, match="not on PATH"):
        logout("h.io")
    assert (written(docker_file)["auths"], written(podman)["auths"]) == ({}, {})


def test_several_logins_at_once_lose_nothing(docker_file: Path) -> None:
    servers = [RegistryServer(auth=basic_auth({"ann": PASSWORD})) for _ in range(6)]
    try:
        threads = [
            threading.Thread(
                target=login, args=(server.address,), kwargs={"username": "ann", "password": PASSWORD}
            )
            for server in servers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for server in servers:
            server.close()
    assert set(written(docker_file)["auths"]) == {server.address for server in servers}


# Peers


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[str]:
    """Serve team/app, an image of this machine's programs, from docker-registry with a password; give the address."""
    password_file = tmp_path / "htpasswd"
    password_file.write_text(HTPASSWD)
    settings = f"auth: {{htpasswd: {{realm: test, path: {password_file}}}}}\n"
    with docker_registry_process(tmp_path, settings) as address, RegistryServer() as source:
        machine_image.build().push(source.address, "team/app", "latest")
        run(
            *("skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"),
            f"--dest-creds=ann:{PASSWORD}",
            *(f"docker://{source.address}/team/app:latest", f"docker://{address}/team/app:latest"),
        )
        yield address


def skopeo_reads(address: str, *options: str) -> None:
    run("skopeo", "inspect", "--tls-verify=false", *options, f"docker://{address}/team/app:latest")


def crane_reads(address: str) -> None:
    run("crane", "manifest", "--insecure", f"{address}/team/app:latest")


def podman_reads(address: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = ("--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "vfs")
        run("podman", *store, "pull", "--quiet", "--tls-verify=false", f"{address}/team/app:latest")


@pytest.mark.needs_program("skopeo", "crane", "podman", "docker-registry")
def test_where_lamella_logged_in_the_others_are_logged_in(peer: str, docker_file: Path) -> None:
    login(peer, username="ann", password=PASSWORD)
    skopeo_reads(peer)
    crane_reads(peer)
    podman_reads(peer)
    logout(peer)
    for read in (skopeo_reads, crane_reads, podman_reads):
        with pytest.raises(pytest.fail.Exception):
            read(peer)


@pytest.mark.needs_program("skopeo", "podman", "docker-registry")
def test_where_lamella_logged_in_to_a_namespace_podmans_kin_are(peer: str, docker_file: Path) -> None:
    login(f"{peer}/team", username="ann", password=PASSWORD)
    skopeo_reads(peer)
    with pytest.raises(pytest.fail.Exception):
        run("skopeo", "inspect", "--tls-verify=false", f"docker://{peer}/other/app:latest")


@pytest.mark.needs_program("skopeo", "crane", "docker-registry")
def test_the_others_find_what_a_helper_keeps(peer: str, docker_file: Path, helper: Any) -> None:
    helper("test")
    configure(docker_file, credHelpers={peer: "test"})
    login(peer, username="ann", password=PASSWORD)
    assert AUTH not in docker_file.read_text()
    skopeo_reads(peer)
    crane_reads(peer)


@pytest.mark.needs_program("skopeo", "crane", "podman", "docker-registry")
@pytest.mark.parametrize("program", ["skopeo", "podman", "crane"])
def test_where_another_logged_in_lamella_is_logged_in(program: str, peer: str) -> None:
    with pytest.raises(Unauthenticated):
        resolve(peer)
    if program == "crane":
        run("crane", "auth", "login", "-u", "ann", "--password-stdin", peer, input=PASSWORD)
    else:
        run(program, "login", "--tls-verify=false", "-u", "ann", "--password-stdin", peer, input=PASSWORD)
    resolve(peer)
    kept = current(peer)
    assert kept is not None
    assert (kept.username, kept.checked) == ("ann", True)
    logout(peer)
    assert current(peer) is None
    with pytest.raises(Unauthenticated):
        resolve(peer)


@pytest.mark.needs_program("skopeo", "podman", "docker-registry")
@pytest.mark.parametrize("program", ["skopeo", "podman"])
def test_where_another_logged_in_to_a_namespace_lamella_is(program: str, peer: str) -> None:
    run(
        program,
        "login",
        "--tls-verify=false",
        "-u",
        "ann",
        "--password-stdin",
        f"{peer}/team",
        input=PASSWORD,
    )
    resolve(peer)
    with pytest.raises(Unauthenticated):
        resolve(peer, "other/app")
    assert current(peer) is None
    assert logout(f"{peer}/team")
    with pytest.raises(Unauthenticated):
        resolve(peer)


@pytest.mark.needs_program("skopeo", "podman", "docker-registry")
def test_the_others_log_out_of_what_lamella_logged_in_to(peer: str, docker_file: Path) -> None:
    login(peer, username="ann", password=PASSWORD)
    run("skopeo", "logout", f"--authfile={docker_file}", peer)
    with pytest.raises(Unauthenticated):
        resolve(peer)

"""Credentials: docker's and podman's files, and credential helpers."""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from lamella.registry.authfile import default_files
from lamella.registry.credentials import Credential, CredentialStore

SECRET = "hunter2-very-secret"


def auth(username: str, password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


def store(tmp_path: Path, document: Any, name: str = "config.json", **options: Any) -> CredentialStore:
    file = tmp_path / name
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return CredentialStore([file], **options)


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a program docker-credential-NAME on PATH; it notes what it was asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def make(name: str, script: str) -> Path:
        asked = tmp_path / f"asked-{name}"
        program = folder / f"docker-credential-{name}"
        program.write_text(f'#!/bin/sh\nread -r server\necho "$1 $server" >> {asked}\n{script}\n')
        program.chmod(0o755)
        return asked

    return make


@pytest.mark.parametrize(
    ("key", "domain"),
    [
        ("example.com", "example.com"),
        ("example.com/", "example.com"),
        ("https://example.com", "example.com"),
        ("https://example.com/v1/", "example.com"),
        ("http://example.com/v2", "example.com"),
        ("example.com:5000", "example.com:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
    ],
)
def test_a_registry_is_found_under_the_keys_that_docker_and_podman_write(
    key: str, domain: str, tmp_path: Path
) -> None:
    found = store(tmp_path, {"auths": {key: auth("ann")}}).find(domain, "team/app")
    assert found is not None
    assert (found.username, found.password) == ("ann", SECRET)
    assert found.basic == "Basic " + base64.b64encode(f"ann:{SECRET}".encode()).decode()


@pytest.mark.parametrize(
    ("key", "domain"),
    [
        ("example.com", "example.com:5000"),
        ("example.com:5000", "example.com"),
        ("example.com", "evil-example.com"),
        ("example.com", "example.com.evil.net"),
        ("example.com/other", "example.com"),
        ("https://index.docker.io/v1/", "index.docker.io.evil.net"),
    ],
)
def test_credentials_of_one_registry_are_not_given_to_another(key: str, domain: str, tmp_path: Path) -> None:
    assert store(tmp_path, {"auths": {key: auth("ann")}}).find(domain, "team/app") is None


def test_the_most_specific_key_wins(tmp_path: Path) -> None:
    auths = {"h.io": auth("all"), "h.io/team": auth("team"), "h.io/team/app": auth("app")}
    found = store(tmp_path, {"auths": auths})
    users = [
        (found.find("h.io", path) or Credential()).username
        for path in ("team/app", "team/b", "other", "teams")
    ]
    assert users == ["app", "team", "all", "all"]


def test_the_first_file_that_knows_the_registry_wins(tmp_path: Path) -> None:
    first = store(tmp_path, {"auths": {"a.io": auth("one")}}, "1.json").files
    second = store(tmp_path, {"auths": {"a.io": auth("two"), "b.io": auth("two")}}, "2.json").files
    both = CredentialStore([tmp_path / "missing.json", *first, *second])
    assert [(both.find(d) or Credential()).username for d in ("a.io", "b.io", "c.io")] == ["one", "two", ""]
    assert both.problems == []


def test_username_and_password_and_identity_tokens_are_read(tmp_path: Path) -> None:
    auths = {
        "plain.io": {"username": "ann", "password": SECRET},
        "token.io": {"identitytoken": SECRET, **auth("00000000-0000-0000-0000-000000000000", "")},
        "helper-token.io": auth("<token>"),
        "colon.io": auth("ann", "a:b:c"),
        "empty.io": {},
        "null.io": {"auth": ""},
    }
    found = store(tmp_path, {"auths": auths})
    assert (found.find("plain.io") or Credential()).password == SECRET
    assert (found.find("token.io") or Credential()).identity_token == SECRET
    assert (found.find("helper-token.io") or Credential()).identity_token == SECRET
    assert (found.find("colon.io") or Credential()).password == "a:b:c"
    assert found.find("empty.io") is None
    assert found.find("null.io") is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"auths": 5}',
        '{"auths": {"h.io": {"auth": 7}}}',
        '{"auths": {"h.io": {"auth": "' + SECRET + '!"}}}',
    ],
)
def test_a_damaged_file_is_noted_without_its_content_and_stops_nothing(text: str, tmp_path: Path) -> None:
    found = store(tmp_path, text)
    assert found.find("h.io") is None
    assert len(found.problems) == 1
    assert str(tmp_path) in found.problems[0]
    assert SECRET not in found.problems[0]


def test_an_empty_file_is_no_problem(tmp_path: Path) -> None:
    found = store(tmp_path, "")
    assert found.find("h.io") is None
    assert found.problems == []


def test_a_folder_in_the_place_of_the_file_is_noted(tmp_path: Path) -> None:
    found = CredentialStore([tmp_path])
    assert found.find("h.io") is None
    assert "cannot be read" in found.problems[0]


def test_nothing_secret_is_in_a_repr() -> None:
    credential = Credential(
        username="ann", password=SECRET, identity_token="token-" + SECRET, source="a file"
    )
    for text in (
        repr(credential),
        str(credential),
        f"{credential}",
        repr([credential]),
        repr(credential.__rich_repr__()),
    ):
        assert SECRET not in text
        assert "ann" not in text
    assert set(credential.secrets) >= {SECRET, "token-" + SECRET}


def test_a_helper_of_one_registry_is_asked_by_its_name(tmp_path: Path, helper: Any) -> None:
    asked = helper("one", f'echo \'{{"ServerURL":"x","Username":"ann","Secret":"{SECRET}"}}\'')
    found = store(tmp_path, {"credHelpers": {"h.io": "one"}, "credsStore": "missing"})
    credential = found.find("h.io", "a")
    assert credential is not None
    assert (credential.username, credential.password, credential.source) == (
        "ann",
        SECRET,
        "docker-credential-one",
    )
    assert asked.read_text() == "get h.io\n"


def test_the_store_helper_is_asked_for_docker_hub_by_its_old_address(tmp_path: Path, helper: Any) -> None:
    asked = helper("all", f'echo \'{{"Username":"<token>","Secret":"{SECRET}"}}\'')
    credential = store(tmp_path, {"credsStore": "all"}).find("docker.io", "library/nginx")
    assert credential is not None
    assert (credential.identity_token, credential.password) == (SECRET, "")
    assert asked.read_text() == "get https://index.docker.io/v1/\n"


def test_a_helper_goes_before_the_file_and_the_file_counts_where_it_has_nothing(
    tmp_path: Path, helper: Any
) -> None:
    """As docker asks; a file that another program wrote in beside it is not lost."""
    asked = helper(
        "some",
        f'case $server in h.io) echo \'{{"Username":"helped","Secret":"{SECRET}"}}\';; '
        '*) echo "credentials not found in native keychain"; exit 1;; esac',
    )
    auths = {"h.io": auth("ann"), "h.io/team": auth("team"), "x.io": auth("ann")}
    found = store(tmp_path, {"auths": auths, "credsStore": "some"})
    users = [
        (found.find(domain, path) or Credential()).username
        for domain, path in (("h.io", "a"), ("h.io", "team/a"), ("x.io", "a"), ("y.io", "a"))
    ]
    assert users == ["helped", "team", "ann", ""]
    assert asked.read_text() == "get h.io\nget x.io\nget y.io\n"
    assert found.problems == []


def test_a_registry_may_be_left_out_of_the_helper_for_all(tmp_path: Path, helper: Any) -> None:
    asked = helper("all", "exit 3")
    document = {"auths": {"h.io": auth("ann")}, "credsStore": "all", "credHelpers": {"h.io": ""}}
    found = store(tmp_path, document).find("h.io")
    assert (found or Credential()).username == "ann"
    assert not asked.exists()


def test_a_registry_token_and_an_entry_that_is_written_as_asked_for(tmp_path: Path) -> None:
    auths = {"h.io": {"registrytoken": SECRET}, "x.io": auth("ann"), "https://x.io/v1/": auth("old")}
    found = store(tmp_path, {"auths": auths, "HttpHeaders": {"Authorization": SECRET}})
    token = found.find("h.io")
    assert token is not None
    assert (token.registry_token, token.basic, token.secrets) == (SECRET, None, (SECRET,))
    assert SECRET not in repr(token)
    assert (found.find("x.io") or Credential()).username == "ann"


def test_a_file_with_nulls_is_read_as_docker_reads_it(tmp_path: Path) -> None:
    found = store(tmp_path, {"auths": {"h.io": None}, "credHelpers": None, "credsStore": None})
    assert found.find("h.io") is None
    assert store(tmp_path, {"auths": None}).find("h.io") is None
    assert found.problems == []
    nulls = dict.fromkeys(["username", "password", "identitytoken", "registrytoken"])
    written = store(tmp_path, {"auths": {"h.io": auth("ann") | nulls, "i.io": {"auth": None}}})
    assert [written.find(domain) is not None for domain in ("h.io", "i.io")] == [True, False]
    assert written.problems == []


def test_an_identity_token_is_no_password(tmp_path: Path) -> None:
    entry = auth("ann", "") | {"identitytoken": SECRET}
    found = store(tmp_path, {"auths": {"h.io": entry}}).find("h.io")
    assert found is not None
    assert (found.username, found.identity_token, found.basic) == ("ann", SECRET, None)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ('echo "credentials not found in native keychain"; exit 1', None),
        (f'echo "{SECRET}"; echo "{SECRET}" >&2; exit 3', "exit status 3"),
        (f'echo "{SECRET} is no json"', "not credentials"),
        ('echo \'{"Username":"a","Secret":""}\'', None),
        ("exec sleep 60", "no answer within"),
        ("exec yes", "exit status"),
        ("yes; exit 0", "not credentials"),
        ("", "not credentials"),
        ("echo '[1]'", "not credentials"),
        ('echo \'{"Username":1,"Secret":"x"}\'', "not credentials"),
        (r"printf '{\xff\x00'", "not credentials"),
        ("kill -9 $$", "exit status -9"),
    ],
)
def test_a_helper_that_fails_is_noted_without_its_output_and_stops_nothing(
    script: str, problem: str | None, tmp_path: Path, helper: Any
) -> None:
    helper("bad", script)
    found = store(tmp_path, {"credsStore": "bad"}, helper_timeout=0.3 if "sleep" in script else 30)
    assert found.find("h.io") is None
    assert SECRET not in str(found.problems)
    if problem is None:
        assert found.problems == []
    else:
        assert problem in found.problems[0]


def test_the_output_of_a_helper_is_bounded_while_it_comes(tmp_path: Path, helper: Any) -> None:
    """One that sends without end fails; it does not fill the memory until its time is over."""
    helper("flood", f"yes 2>/dev/null; echo $? >{tmp_path}/status; exit 1")
    assert store(tmp_path, {"credsStore": "flood"}).find("h.io") is None
    assert (tmp_path / "status").read_text() == "1\n"


def test_what_a_helper_leaves_running_is_not_waited_for(tmp_path: Path, helper: Any) -> None:
    answer = f'{{"Username":"ann","Secret":"{SECRET}"}}'
    helper("agent", f"sleep 1000 & echo $! >{tmp_path}/agent; echo '{answer}'")
    found = store(tmp_path, {"credsStore": "agent"}, helper_timeout=20).find("h.io")
    os.kill(int((tmp_path / "agent").read_text()), signal.SIGKILL)
    assert found is not None
    assert found.password == SECRET


def test_a_helper_that_is_missing_or_has_a_path_for_a_name_is_noted(tmp_path: Path) -> None:
    found = store(
        tmp_path, {"credHelpers": {"a.io": "no-such-helper", "b.io": "../../bin/sh", "c.io": "x;y"}}
    )
    assert [found.find(domain) for domain in ("a.io", "b.io", "c.io")] == [None, None, None]
    assert "not on PATH" in found.problems[0]
    assert "malformed name" in found.problems[1]


def test_files_are_looked_for_where_docker_and_podman_keep_them() -> None:
    plain = default_files({"HOME": "/home/ann"})
    assert [str(file) for file in plain] == [
        "/home/ann/.docker/config.json",
        f"/run/containers/{os.getuid()}/auth.json",
        "/home/ann/.config/containers/auth.json",
    ]
    everything = default_files(
        {
            "HOME": "/home/ann",
            "REGISTRY_AUTH_FILE": "/r/auth.json",
            "DOCKER_CONFIG": "/d",
            "XDG_RUNTIME_DIR": "/run/user/1",
            "XDG_CONFIG_HOME": "/c",
        }
    )
    assert [str(file) for file in everything] == [
        "/r/auth.json",
        "/d/config.json",
        "/run/user/1/containers/auth.json",
        "/c/containers/auth.json",
    ]


def test_several_threads_find_the_same(tmp_path: Path) -> None:
    found = store(tmp_path, {"auths": {"h.io": auth("ann")}})
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(found.find("h.io", "a/b"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(credential.username == "ann" for credential in results)

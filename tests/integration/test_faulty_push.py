"""The real image pushed and copied through a proxy that breaks connections, killed and stopped in the middle of it.

It ends right or in one clear error; what has a name at the registry is whole, which crane says. ``LAMELLA_NIGHTLY=1`` takes more
seeds.
"""

from __future__ import annotations

import http.client
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest

import lamella
from chance import seeds
from faulty_proxy import BEFORE, LOST, FaultyProxy
from lamella.registry.config import RegistryConfig, Timeouts

pytestmark = [
    pytest.mark.integration,
    pytest.mark.real_image,
    pytest.mark.needs_program("docker-registry", "crane"),
]

FAULTS = BEFORE + ("truncated", "cut") * 4 + LOST
"""Silence and drips, which cost time until they are noticed, are for the small blobs of test_uploads."""
QUICK: dict[str, Any] = {"backoff": 0.002, "timeouts": Timeouts(5, 10)}
FAR = (1 << 20, 60 << 20)
"""Bytes of a body that pass before something happens to it: beyond the end of the small ones."""
PUSH = """
import sys, lamella
from lamella.registry.config import RegistryConfig, Timeouts
root, state, how, source, target = sys.argv[1:]
settings = RegistryConfig(credentials={}, attempts=3, backoff=0.002, timeouts=Timeouts(5, 10))
with lamella.Client(root, state, registry=settings) as client:
    try:
        getattr(client.images, how)(source, target)
    except lamella.errors.LamellaError as error:
        print(f"{error.kind}: {error}", file=sys.stderr)
        sys.exit(1)
"""


class Store(NamedTuple):
    """A store with the real image in it, not unpacked."""

    root: Path
    state: Path
    name: str
    digest: str
    blobs: list[str]

    def open(self, **settings: Any) -> lamella.Client:
        return lamella.Client(self.root, self.state, registry=RegistryConfig(credentials={}, **settings))


@pytest.fixture(scope="module")
def store(real_image_ref: str, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    with lamella.Client(folder / "root", folder / "state") as client:
        image = client.images.pull(real_image_ref, unpack=False)
        blobs = [image.manifest.config.digest, *(layer.digest for layer in image.layers)]
    return Store(folder / "root", folder / "state", image.name, image.digest, blobs)


@pytest.fixture
def repository() -> str:
    """The path of a repository of docker-registry that nothing was pushed to."""
    return f"faulty/{random.randrange(1 << 40):x}"


def crane(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["crane", words[0], "--insecure", *words[1:]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_whole(name: str, digest: str) -> None:
    """Every blob and document is there and is its digest."""
    validated = crane("validate", "--remote", name)
    assert validated.returncode == 0, validated.stderr
    assert crane("digest", name).stdout.strip() == digest


def assert_nameless_or_whole(name: str, digest: str) -> None:
    if crane("digest", name).returncode == 0:
        assert_whole(name, digest)


@pytest.mark.parametrize("seed", seeds(1, nightly=8))
def test_a_push_through_faults_ends_right_where_the_registry_keeps_nothing_of_half_a_request(
    seed: int, store: Store, docker_registry: str, repository: str
) -> None:
    """docker-registry gives a session up whose last request broke off: a blob is there once a request got through whole."""
    with (
        FaultyProxy(docker_registry, seed=seed, faults=FAULTS, rate=0.5, stretch=FAR) as proxy,
        store.open(attempts=40, **QUICK) as client,
    ):
        pushed = client.images.push(store.name, f"{proxy.address}/{repository}:1", tags=["2"])
        assert pushed.digest == store.digest
        assert proxy.met  # which and how many the registry's names of uploads decide, too
    assert_whole(f"{docker_registry}/{repository}:1", store.digest)
    assert crane("digest", f"{docker_registry}/{repository}:2").stdout.strip() == store.digest


@pytest.mark.parametrize("seed", seeds(1, nightly=8))
def test_a_copy_through_faults_on_both_sides_ends_right_and_keeps_nothing(
    seed: int, store: Store, docker_registry: str, repository: str, real_image_ref: str, tmp_path: Path
) -> None:
    settings = RegistryConfig(credentials={}, attempts=40, **QUICK)
    with (
        FaultyProxy(docker_registry, seed=seed, faults=FAULTS, rate=0.4, stretch=FAR) as here,
        FaultyProxy(docker_registry, seed=-seed, faults=FAULTS, rate=0.3, stretch=FAR) as there,
        lamella.Client(tmp_path / "root", tmp_path / "state", registry=settings) as client,
    ):
        source = f"{here.address}/{real_image_ref.partition('/')[2]}"
        copied = client.images.copy(source, f"{there.address}/{repository}:1")
        assert copied.digest == store.digest
        assert here.met or there.met  # the repository's name is another each time, and with it the faults
        assert not [*client.content.walk(), *client.content.ingests(), *client.images.list()]
    assert_whole(f"{docker_registry}/{repository}:1", store.digest)


@pytest.mark.parametrize("how", ["push", "copy"])
@pytest.mark.parametrize("seed", seeds(1, nightly=6))
def test_with_little_patience_each_try_ends_in_one_error_and_the_next_goes_on(
    how: str, seed: int, store: Store, docker_registry: str, repository: str
) -> None:
    """Each try is a process of its own. Blobs that are there are not sent again.

    What comes through at the first try meets the next faults on its way to another repository.
    """
    failures: list[str] = []
    whole = 0
    with FaultyProxy(
        docker_registry, seed=seed, faults=FAULTS, rate=0.5, stretch=(1 << 16, 12 << 20)
    ) as proxy:
        for _ in range(300):  # about one in ten gets through
            place = f"{repository}-{whole}:1"
            name, target = f"{docker_registry}/{place}", f"{proxy.address}/{place}"
            done = subprocess.run(
                [sys.executable, "-c", PUSH, store.root, store.state, how, store.name, target],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            if not done.returncode:
                if failures:
                    break
                assert_whole(name, store.digest)
                whole += 1
                continue
            assert done.returncode == 1, done.stderr
            assert done.stderr.count("\n") == 1, done.stderr
            failures.append(done.stderr)
            assert_nameless_or_whole(name, store.digest)
        else:
            pytest.fail(f"no try came to its end: {failures[-3:]}")
    assert_whole(name, store.digest)


@pytest.mark.parametrize("how", ["push", "copy"])
def test_a_transfer_that_is_killed_leaves_no_name_and_the_next_sends_what_is_missing(
    how: str, store: Store, docker_registry: str, repository: str
) -> None:
    name = f"{docker_registry}/{repository}:1"
    # Slow, so that the moment of the kill is within the blobs.
    with FaultyProxy(docker_registry, bandwidth=30e6) as proxy:
        target = f"{proxy.address}/{repository}:1"
        for _ in range(3):
            seen = len(proxy.log)
            process = subprocess.Popen(
                [sys.executable, "-c", PUSH, store.root, store.state, how, store.name, target],
                stdin=subprocess.DEVNULL,
            )
            try:
                wait_for_blob(proxy, seen)
            finally:
                process.kill()
                process.wait(20)
            assert crane("digest", name).returncode != 0
        seen, there = len(proxy.log), blobs_at(docker_registry, repository, store)
        assert 0 < len(there) < len(store.blobs)
        with store.open() as client:
            assert getattr(client.images, how)(store.name, target).digest == store.digest
            assert client.content.ingests() == []
        again = [unquote(one.path) for one in proxy.log[seen:] if one.method == "PUT"]
        assert not [path for path in again for digest in there if digest in path]
    assert_whole(name, store.digest)


def blobs_at(registry: str, repository: str, store: Store) -> set[str]:
    """Say which blobs of the image a repository has."""
    there = set()
    connection = http.client.HTTPConnection(registry, timeout=20)
    for digest in store.blobs:
        connection.request("HEAD", f"/v2/{repository}/blobs/{digest}")
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200:
            there.add(digest)
    connection.close()
    return there


def wait_for_blob(proxy: FaultyProxy, seen: int) -> None:
    """Wait until one blob more is whole at the registry, and others are on their way."""
    deadline = time.monotonic() + 60
    while not any(one.method == "PUT" for one in proxy.log[seen:]):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("how", ["push", "copy"])
def test_a_signal_ends_the_command_at_once_and_leaves_no_name(
    how: str, number: signal.Signals, store: Store, docker_registry: str, repository: str
) -> None:
    name = f"{docker_registry}/{repository}:1"
    program = Path(sys.executable).with_name("lamella")
    # So slow that it ends by the signal alone, within the time-out of the test.
    with FaultyProxy(docker_registry, bandwidth=1e6) as proxy:
        process = subprocess.Popen(
            [
                *(program, "--root", store.root, "--state", store.state, "-q", how),
                *(store.name, f"{proxy.address}/{repository}:1"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_for_blob(proxy, 0)  # the smallest ones
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait(20)
    assert process.returncode in {128 + number, -number}
    assert out == ""
    assert "Traceback" not in err
    assert crane("digest", name).returncode != 0

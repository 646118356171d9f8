"""The real image through a proxy that breaks connections: a pull ends right or in one clear error, and keeps no wrong byte.

``LAMELLA_NIGHTLY=1`` takes more seeds.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chance import seeds
from faulty_proxy import HONEST, LYING, WITHIN, FaultyProxy
from lamella.digest import digest_of
from lamella.registry import ahead
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.limits import Limits

pytestmark = [pytest.mark.integration, pytest.mark.real_image, pytest.mark.privileged]

OFTEN = HONEST + ("truncated", "cut") * 4
"""Silence and drips cost time until they are noticed."""
PULL = """
import sys, lamella
from lamella.registry import ahead
from lamella.registry.config import RegistryConfig, Timeouts
from lamella.registry.limits import Limits
root, state, reference = sys.argv[1:]
settings = RegistryConfig(attempts=2, backoff=0.002, timeouts=Timeouts(5, 0.3))
with lamella.Client(root, state, registry=settings) as client:
    try:
        client.images.pull(reference)
    except lamella.errors.LamellaError as error:
        print(f"{error.kind}: {error}", file=sys.stderr)
        sys.exit(1)
"""


def tried_often(**changes: Any) -> RegistryConfig:
    # A second, though each stall costs it: on a busy machine the registry itself may take a good part of that.
    return RegistryConfig(attempts=12, backoff=0.002, timeouts=Timeouts(5, 1), **changes)


def through(proxy: FaultyProxy, reference: str) -> str:
    return f"{proxy.address}/{reference.partition('/')[2]}"


def blobs_of(root: Path) -> dict[str, Path]:
    """What stands in the store under the name of a digest."""
    return {f"sha256:{path.name}": path for path in (root / "blobs" / "sha256").glob("*")}


def assert_nothing_wrong(client: Any) -> None:
    """Every blob is its digest, nothing is visible that is not whole, and fsck says the same."""
    for digest, path in blobs_of(client.config.root).items():
        assert digest_of(path.read_bytes()) == digest
    for image in client.images.list():
        assert image.chain_ids
    assert client.fsck().findings == []


def assert_runs(client: Any, image: Any) -> None:
    result = client.containers.run(image, ["python3", "-c", "import numpy; print(40 + 2)"], remove=True)
    assert (result.exit_code, result.stdout) == (0, b"42\n")


@pytest.mark.parametrize("seed", seeds(1, nightly=8))
def test_a_pull_through_hundreds_of_faults_ends_right(
    seed: int, real_image_ref: str, pulled: Any, tmp_path: Path
) -> None:
    import lamella

    with (
        FaultyProxy(real_image_ref.partition("/")[0], seed=seed, faults=OFTEN, rate=1) as proxy,
        lamella.Client(tmp_path / "root", tmp_path / "state", registry=tried_often()) as client,
    ):
        image = client.images.pull(through(proxy, real_image_ref))
        assert proxy.met.total() >= 200, proxy.met
        assert set(proxy.met) >= set(WITHIN)
        assert len(proxy.met) >= 8
        assert image.digest == pulled.image.digest
        assert image.chain_id == pulled.image.chain_id
        assert_nothing_wrong(client)
        assert client.content.ingests() == []
        assert_runs(client, image)


@pytest.mark.parametrize("seed", seeds(2, nightly=12))
def test_pulls_through_lies_too_end_right_or_in_one_error_and_take_up_what_was_whole(
    seed: int, real_image_ref: str, pulled: Any, tmp_path: Path
) -> None:
    """Each try is a process of its own, with little patience. Where the first comes through, another store meets other faults."""
    import lamella

    for number in range(20):
        root, state = tmp_path / f"root-{number}", tmp_path / f"state-{number}"
        with FaultyProxy(
            real_image_ref.partition("/")[0],
            seed=f"{seed} {number}",
            faults=OFTEN + LYING * 2,
            stretch=(1 << 16, 12 << 20),
        ) as proxy:
            reference = through(proxy, real_image_ref)
            failures = pull_until_it_ends_right(proxy, reference, root, state)
            with lamella.Client(root, state) as client:
                image = client.images.get(reference)
                assert (image.digest, image.chain_id) == (pulled.image.digest, pulled.image.chain_id)
                assert_runs(client, image)
        if failures:
            return
    pytest.fail("no fault was worse than what a pull goes on after")


def pull_until_it_ends_right(proxy: FaultyProxy, reference: str, root: Path, state: Path) -> list[str]:
    """Give what the pulls before it said."""
    import lamella

    failures: list[str] = []
    for _ in range(80):
        whole, seen = set(blobs_of(root)), len(proxy.log)
        done = subprocess.run(
            [sys.executable, "-c", PULL, root, state, reference],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        proxy.settle()
        fetched = {passed.path.rpartition("/")[2] for passed in proxy.log[seen:] if "/blobs/" in passed.path}
        assert not fetched & whole
        with lamella.Client(root, state) as client:
            assert_nothing_wrong(client)
            if not done.returncode:
                return failures
            assert done.returncode == 1, done.stderr
            assert done.stderr.count("\n") == 1, done.stderr
            failures.append(done.stderr)
            assert client.images.list() == []
    pytest.fail(f"no pull came to its end: {failures[-3:]}")


@pytest.mark.parametrize("seed", seeds(1, nightly=8))
def test_a_pull_on_several_connections_through_faults_ends_right(
    seed: int, real_image_ref: str, pulled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every layer comes in parts, of which most break off, and helpers come and go."""
    import lamella

    monkeypatch.setattr(ahead, "WINDOW", 0.1)
    monkeypatch.setattr(ahead, "WORTH", 0.1)
    monkeypatch.setattr(ahead, "GAIN", 0.5)
    limits = Limits()
    with (
        FaultyProxy(
            real_image_ref.partition("/")[0],
            seed=seed,
            faults=OFTEN,
            rate=0.9,
            stretch=(1 << 16, 8 << 20),
            bandwidth=8e6,
        ) as proxy,
        lamella.Client(tmp_path / "root", tmp_path / "state", registry=tried_often(limits=limits)) as client,
    ):
        image = client.images.pull(through(proxy, real_image_ref))
        parts = [passed for passed in proxy.log if passed.range and not passed.range.endswith("-")]
        assert len(parts) > 20
        assert {passed.fault for passed in parts} >= {"truncated", "cut"}
        assert (image.digest, image.chain_id) == (pulled.image.digest, pulled.image.chain_id)
        assert_nothing_wrong(client)
        assert client.content.ingests() == []
    assert (limits._used, limits._shares, limits._ahead) == (0, 0, 0)

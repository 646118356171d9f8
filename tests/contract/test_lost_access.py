"""Access that is lost in the middle: folders that are taken away from a user, a root that is removed or replaced while open."""

from __future__ import annotations

import codecs
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella.digest import digest_of
from lamella.errors import FailedPrecondition, LamellaError, NotFound, PermissionDenied
from stores import Store

pytestmark = pytest.mark.privileged
USER = 65534


def as_user(action: Callable[[Callable[[], None]], None], meanwhile: Callable[[], None]) -> None:
    """Do something in a child process that is not root, with a function that has root do ``meanwhile``.

    The child's failure is this process's.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()

        def ask() -> None:
            theirs.send(b"?")
            theirs.recv(1)

        problem = "no failure"
        try:
            os.setgroups([])
            os.setgid(USER)
            os.setuid(USER)
            action(ask)
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"
        finally:
            theirs.send(problem.encode()[:4000])
            os._exit(0)
    theirs.close()
    with ours:
        said = ours.recv(4096).decode()
        if said == "?":
            meanwhile()
            ours.send(b"!")
            said = ours.recv(4096).decode()
    os.waitpid(pid, 0)
    assert said == "no failure"


def denied(action: Callable[[], object]) -> None:
    with pytest.raises(PermissionDenied) as caught:
        action()
    assert caught.value.hint, caught.value


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of the user's. What Python imports late is imported here: the user cannot read it everywhere."""
    warm = Store(tmp_path / "warm")
    warm.put(b"x")
    warm.layer({"a": "1"})
    warm.gc()
    warm.close()
    codecs.lookup("ascii")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o111 != 0o111 and "pytest" in str(folder):
            folder.chmod(0o711)
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", USER, USER)
    return tmp_path / "home"


@pytest.mark.parametrize(
    "place", ["blobs", "blobs/sha256", "ingest", "snapshots", "snapshots/overlayfs", "locks", "."]
)
def test_a_folder_that_is_taken_away_is_permission_denied_until_it_is_back(home: Path, place: str) -> None:
    def work(_: Callable[[], None]) -> None:
        store = Store(home / "root")
        digest = store.put(b"x", {"containerd.io/gc.root": "1"})
        store.snapshots.prepare("before")
        (home / "root" / place).chmod(0)
        outcomes = [
            fails(lambda: store.content.read(digest)),
            fails(lambda: store.put(b"y")),
            fails(lambda: store.snapshots.prepare("next")),
            fails(lambda: store.layer({"a": "1"})),
            fails(store.gc),
            fails(lambda: Store(home / "root").close()),
        ]
        assert True in outcomes
        (home / "root" / place).chmod(0o700)
        assert not store.content.exists(digest_of(b"y")) or not outcomes[1]
        store.put(b"y")
        if outcomes[2]:
            with pytest.raises(NotFound):
                store.snapshots.stat("next")
            store.snapshots.prepare("next")
        store.layer({"a": "2"})
        store.gc(ingest_seconds=0)
        store.check()
        assert store.content.read(digest) == b"x"
        store.close()

    as_user(work, lambda: None)


def fails(action: Callable[[], object]) -> bool:
    """Tell whether something fails; then it has to be a denial that says what to do."""
    try:
        action()
    except PermissionDenied as error:
        assert error.hint, error
        return True
    return False


def test_a_store_that_is_given_to_somebody_else_is_permission_denied(home: Path) -> None:
    def work(ask: Callable[[], None]) -> None:
        store = Store(home / "root")
        store.put(b"x")
        ask()
        denied(lambda: store.snapshots.prepare("next"))
        denied(lambda: store.put(b"y"))
        denied(lambda: Store(home / "root"))

    as_user(work, lambda: os.chown(home / "root", 0, 0))


@pytest.mark.parametrize("other", [False, True], ids=["removed", "replaced"])
def test_a_root_that_went_away_is_said_and_nothing_is_written_beside_it(tmp_path: Path, other: bool) -> None:
    store = Store(tmp_path / "root")
    digest = store.put(b"x")
    base = store.stack("base", {"a": "1"})
    shutil.rmtree(tmp_path / "root")
    if other:
        Store(tmp_path / "root").close()
    for write in (
        lambda: store.snapshots.prepare("next", base),
        lambda: store.snapshots.commit("name", "next"),
        lambda: store.leases.create("lease"),
        lambda: store.content.update_labels(digest, {"a": "b"}),
    ):
        with pytest.raises(LamellaError) as caught:
            write()
        assert isinstance(caught.value, FailedPrecondition | NotFound)
    with pytest.raises(FailedPrecondition, match="removed or replaced") as caught:
        store.put(b"y")
    assert "new client" in caught.value.hint
    with pytest.raises(LamellaError):
        store.content.read(digest)
    store.close()
    with_new = Store(tmp_path / "root")
    assert list(with_new.snapshots.walk()) == []
    with_new.put(b"x")
    with_new.check()
    with_new.close()


def test_a_damaged_database_is_data_loss(tmp_path: Path) -> None:
    Store(tmp_path / "root").close()
    for name in ("metadata.db", "metadata.db-wal"):
        path = tmp_path / "root" / name
        path.write_bytes(b"\x5a" * max(4096, path.stat().st_size))
    with pytest.raises(LamellaError) as caught:
        Store(tmp_path / "root").put(b"x")
    assert caught.value.hint

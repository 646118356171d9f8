"""The content store on disk: the contract, and what it owes to transactions, crashes and damage."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from content_contract import ABSENT, DATA, DIGEST, SIZE, ContentContract

from lamella.digest import digest_of
from lamella.errors import AlreadyExists, DataLoss, FailedPrecondition
from stores import Store


class TestContentStore(ContentContract):
    @pytest.fixture
    def content(self, store: Store):
        return store.content

    @pytest.fixture
    def reopen(self, open_store: Callable[..., Store]):
        return lambda **arguments: open_store(**arguments).content


def test_blobs_are_laid_out_as_in_an_oci_image_layout(store):
    digest = store.put(DATA)
    assert store.content.path(digest) == store.root / "blobs" / "sha256" / digest.removeprefix("sha256:")


def test_a_blob_row_says_under_which_boot_it_was_written(store):
    store.put(DATA)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with store.database.read() as db:
        assert db.execute("SELECT boot_id, synced FROM blobs").fetchall() == [(boot_id, 0)]


def test_a_commit_inside_a_transaction_becomes_visible_with_it(store, open_store):
    other = open_store()
    with store.content.writer("ref") as ingest:
        ingest.write(DATA)
        with store.database.write():
            ingest.commit(digest=DIGEST)
            assert store.content.read(DIGEST) == DATA
            assert not other.content.exists(DIGEST)
            with pytest.raises(FailedPrecondition):
                ingest.write(b"more")
    assert other.content.read(DIGEST) == DATA
    store.check(clean=True)


@pytest.mark.parametrize("left", [False, True], ids=["open", "left"])
def test_an_ingest_whose_transaction_is_rolled_back_goes_on(store, left):
    ingest = store.content.writer("ref", size=SIZE, digest=DIGEST)
    ingest.write(DATA)
    with pytest.raises(ZeroDivisionError), store.database.write():
        ingest.commit()
        if left:
            ingest.close()
        raise ZeroDivisionError
    assert not store.content.exists(DIGEST)
    store.check()
    assert store.blob_files() == set()
    if left:
        ingest = store.content.writer("ref", size=SIZE, digest=DIGEST)
    assert ingest.offset == SIZE
    ingest.commit()
    ingest.close()
    assert store.content.read(DIGEST) == DATA
    store.check(clean=True)


def test_a_delete_inside_a_transaction_that_is_rolled_back_deletes_nothing(store):
    digest = store.put(DATA)
    with pytest.raises(ZeroDivisionError), store.database.write():
        store.content.delete(digest)
        raise ZeroDivisionError
    assert store.content.read(digest) == DATA


def test_a_blob_that_is_added_again_in_the_transaction_that_deleted_it_stays(store):
    digest = store.put(DATA)
    with store.database.write():
        store.content.delete(digest)
        store.put(DATA)
    assert store.content.read(digest) == DATA
    store.check(clean=True)


@pytest.mark.parametrize("damage", ["gone", "short", "empty"])
def test_a_blob_whose_file_is_damaged_does_not_exist_and_can_be_stored_again(store, damage):
    digest = store.put(DATA, {"a": "b"})
    path = store.content.path(digest)
    if damage == "gone":
        path.unlink()
        with pytest.raises(DataLoss):
            store.content.open(digest)
    else:
        path.chmod(0o600)
        path.write_bytes(DATA[: 100 if damage == "short" else 0])
    assert not store.content.exists(digest)
    with pytest.raises(DataLoss, match=digest):
        store.content.read(digest)
    with store.content.writer("ref", size=SIZE, digest=digest) as ingest:
        ingest.write(DATA)
        ingest.commit()
    assert store.content.read(digest) == DATA
    assert store.content.info(digest).labels == {"a": "b"}
    store.check(clean=True)


@pytest.mark.parametrize("record", [None, b"", b"{", b"[]", json.dumps({"ref": "ref"}).encode()])
def test_an_ingest_whose_record_is_not_whole_starts_over(store, record):
    with store.content.writer("ref", size=SIZE) as ingest:
        ingest.write(DATA[:100])
        folder = ingest.data_path.parent
    (folder / "ref.json").unlink()
    if record is not None:
        (folder / "ref.json").write_bytes(record)
    assert store.content.ingests() == []
    with store.content.writer("ref", size=SIZE) as ingest:
        assert ingest.offset == 0
        ingest.write(DATA)
        ingest.commit(digest=DIGEST)
    store.check(clean=True)


def test_strange_files_among_the_ingests_are_passed_over(store):
    with store.content.writer("ref"):
        pass
    (store.root / "ingest" / "a file").write_text("x")
    (store.root / "ingest" / "a folder").mkdir()
    assert [status.ref for status in store.content.ingests()] == ["ref"]


def test_a_blob_is_not_written_through_a_symbolic_link(store, tmp_path):
    with store.content.writer("ref") as ingest:
        path = ingest.data_path
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="ingest"):
        store.content.writer("ref")
    assert not (tmp_path / "elsewhere").exists()


def test_digests_of_two_namespaces_are_committed_once_each(store, open_store):
    other = open_store("other")
    with store.content.writer("ref") as one, other.content.writer("ref") as two:
        one.write(DATA)
        two.write(DATA)
        one.commit(labels={"a": "1"})
        two.commit(labels={"a": "2"})
    assert store.content.info(DIGEST).labels == {"a": "1"}
    assert other.content.info(DIGEST).labels == {"a": "2"}
    store.check(clean=True)


def test_a_writer_that_waited_in_vain_leaves_no_folder(store):
    first = store.content.writer("ref", digest=DIGEST)
    first.write(DATA)
    refused = []

    def second() -> None:
        with pytest.raises(AlreadyExists) as caught:
            store.content.writer("ref", digest=DIGEST, wait=True)
        refused.append(caught.value)

    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.02)
    first.commit()
    thread.join()
    assert len(refused) == 1
    store.check(clean=True)


def test_a_missing_digest_raises_no_error_where_only_existence_is_asked(store):
    assert not store.content.exists(ABSENT)
    with pytest.raises(AlreadyExists):
        store.put(b"x")
        store.content.writer("ref", digest=digest_of(b"x"))

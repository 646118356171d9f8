"""What a content store promises (lamella.content), as tests that a subclass runs with its own factory."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable

import pytest

from lamella.content import ContentStore
from lamella.digest import digest_of
from lamella.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unsupported,
)
from lamella.metadata import timestamp

DATA = bytes(range(256)) * 40
DIGEST = digest_of(DATA)
SIZE = len(DATA)
ABSENT = digest_of(b"absent")


class Stopped(Exception):
    """What a test has somebody raise."""


def stop_if(stopped: bool) -> None:
    if stopped:
        raise Stopped


class ContentContract:
    # Fixtures of the implementation

    @pytest.fixture
    def content(self) -> ContentStore:
        raise NotImplementedError

    @pytest.fixture
    def reopen(self) -> Callable[..., ContentStore]:
        """Give a function that opens the same store again, perhaps in another namespace."""
        raise NotImplementedError

    # What is here

    def test_what_was_written_can_be_read(self, content):
        content.write("ref", DATA, digest=DIGEST, size=SIZE, labels={"a": "b"})
        info = content.info(DIGEST)
        assert (info.digest, info.size, info.labels) == (DIGEST, SIZE, {"a": "b"})
        assert info.created_at == info.updated_at
        assert content.exists(DIGEST)
        assert content.read(DIGEST) == DATA
        assert content.path(DIGEST).read_bytes() == DATA
        with content.open(DIGEST) as file:
            assert file.read() == DATA
        assert content.ingests() == []

    @pytest.mark.parametrize(
        ("offset", "size"),
        [(0, 10), (0, None), (100, 100), (SIZE - 5, 100), (SIZE, None), (SIZE + 9, 5), (3, 0)],
    )
    def test_a_part_can_be_read(self, content, offset, size):
        content.write("ref", DATA, digest=DIGEST, size=SIZE)
        end = None if size is None else offset + size
        assert content.read(DIGEST, offset=offset, size=size) == DATA[offset:end]

    @pytest.mark.parametrize(("offset", "size"), [(-1, None), (0, -1)])
    def test_a_negative_offset_or_size_is_an_invalid_argument(self, content, offset, size):
        content.write("ref", DATA, digest=DIGEST, size=SIZE)
        with pytest.raises(InvalidArgument):
            content.read(DIGEST, offset=offset, size=size)

    def test_an_empty_blob_can_be_stored(self, content):
        digest = digest_of(b"")
        content.write("ref", b"", digest=digest, size=0)
        assert content.read(digest) == b""
        assert content.info(digest).size == 0

    @pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
    def test_all_algorithms_of_digests_are_checked(self, content, algorithm):
        digest = digest_of(DATA, algorithm)
        content.write("ref", DATA, digest=digest, size=SIZE)
        assert content.read(digest) == DATA
        with pytest.raises(FailedPrecondition):
            content.write("ref", b"other", digest=digest_of(b"x", algorithm), size=5)

    @pytest.mark.parametrize("method", ["info", "read", "open", "path", "delete", "adopt"])
    def test_what_is_not_here_is_not_found(self, content, method):
        with pytest.raises(NotFound, match=ABSENT):
            getattr(content, method)(ABSENT)
        with pytest.raises(NotFound, match=ABSENT):
            content.update_labels(ABSENT, {})
        assert not content.exists(ABSENT)

    @pytest.mark.parametrize(
        "digest",
        [
            "",
            "sha256",
            "sha256:",
            "sha256:../../etc/passwd",
            "sha256:" + "A" * 64,
            DIGEST + "0",
            f"sha256:{'/' * 64}",
        ],
    )
    def test_a_digest_is_validated_before_it_becomes_a_path(self, content, digest):
        for method in ("info", "read", "open", "path", "delete", "adopt", "exists"):
            with pytest.raises(InvalidArgument):
                getattr(content, method)(digest)
        if digest:
            with pytest.raises(InvalidArgument):
                content.writer("ref", digest=digest)
            with content.writer("ref") as ingest, pytest.raises(InvalidArgument):
                ingest.commit(digest=digest)

    def test_an_unknown_algorithm_is_unsupported(self, content):
        with pytest.raises(Unsupported):
            content.info("md5:" + "0" * 32)

    def test_walk_gives_everything_sorted_and_filtered(self, content):
        digests = []
        for number in range(5):
            data = bytes([number]) * (number + 1)
            digests.append(digest_of(data))
            labels = {"number": str(number), "a.b/c": "x"} if number else {}
            content.write("ref", data, digest=digests[-1], size=len(data), labels=labels)
        assert [info.digest for info in content.walk()] == sorted(digests)
        assert [info.digest for info in content.walk(filters=['labels."number"==3'])] == [digests[3]]
        assert {
            i.size for i in content.walk(filters=["size==1", 'labels."a.b/c"==x,labels.number~=[12]'])
        } == {1, 2, 3}
        assert list(content.walk(filters=[f"digest=={digests[2]}"])) == [content.info(digests[2])]
        with pytest.raises(InvalidArgument):
            list(content.walk(filters=["=="]))

    def test_walk_goes_on_while_content_is_deleted(self, content):
        for number in range(5):
            data = bytes([number])
            content.write("ref", data, digest=digest_of(data), size=1)
        for info in content.walk():
            content.delete(info.digest)
        assert list(content.walk()) == []

    # Labels

    def test_labels_are_set_and_removed(self, content):
        content.write("ref", DATA, digest=DIGEST, size=SIZE, labels={"a": "1", "b": "2", "empty": ""})
        assert content.info(DIGEST).labels == {"a": "1", "b": "2"}
        info = content.update_labels(DIGEST, {"a": "", "c": "3", "never": ""})
        assert info == content.info(DIGEST)
        assert info.labels == {"b": "2", "c": "3"}
        assert info.updated_at >= info.created_at

    def test_a_label_has_at_most_4096_bytes(self, content):
        content.write("ref", DATA, digest=DIGEST, size=SIZE, labels={"ü": "v" * 4094})
        with pytest.raises(InvalidArgument):
            content.update_labels(DIGEST, {"ü": "v" * 4095})
        with pytest.raises(InvalidArgument):
            content.write("other", b"x", digest=digest_of(b"x"), size=1, labels={"k": "v" * 4096})
        assert not content.exists(digest_of(b"x"))
        assert content.info(DIGEST).labels == {"ü": "v" * 4094}

    # Namespaces

    def test_namespaces_have_labels_and_views_of_their_own(self, content, reopen):
        other = reopen(namespace="other")
        content.write("ref", DATA, digest=DIGEST, size=SIZE, labels={"a": "1"})
        with pytest.raises(NotFound):
            other.info(DIGEST)
        assert list(other.walk()) == []
        assert other.exists(DIGEST)
        other.adopt(DIGEST, {"b": "2"})
        assert other.adopt(DIGEST).labels == {"b": "2"}
        assert content.info(DIGEST).labels == {"a": "1"}
        assert other.path(DIGEST) == content.path(DIGEST)

    def test_a_writer_for_what_only_others_see_adopts_it(self, content, reopen):
        content.write("ref", DATA, digest=DIGEST, size=SIZE)
        other = reopen(namespace="other")
        with pytest.raises(AlreadyExists):
            other.writer("ref", digest=DIGEST)
        assert other.read(DIGEST) == DATA

    def test_deleting_in_one_namespace_leaves_it_to_the_others(self, content, reopen):
        other = reopen(namespace="other")
        content.write("ref", DATA, digest=DIGEST, size=SIZE)
        other.adopt(DIGEST)
        path = content.path(DIGEST)
        content.delete(DIGEST)
        with pytest.raises(NotFound):
            content.info(DIGEST)
        assert other.read(DIGEST) == DATA
        other.delete(DIGEST)
        assert not path.exists()
        assert not content.exists(DIGEST)

    def test_an_open_blob_stays_readable_when_it_is_deleted(self, content):
        content.write("ref", DATA, digest=DIGEST, size=SIZE)
        with content.open(DIGEST) as file:
            content.delete(DIGEST)
            assert file.read() == DATA

    # Ingests

    @pytest.mark.parametrize("ref", ["", "a\0b", "x" * 4097, "\ud800"])
    def test_a_ref_that_cannot_be_kept_is_an_invalid_argument(self, content, ref):
        with pytest.raises(InvalidArgument):
            content.writer(ref)
        with pytest.raises(InvalidArgument):
            content.abort(ref)

    @pytest.mark.parametrize("ref", ["..", "a/b", "ü", " ", "x" * 4096])
    def test_a_ref_may_be_any_text_without_nul(self, content, ref):
        with content.writer(ref) as ingest:
            ingest.write(DATA)
        assert [status.ref for status in content.ingests()] == [ref]
        with content.writer(ref) as ingest:
            ingest.commit(digest=DIGEST)
        assert content.read(DIGEST) == DATA

    def test_a_negative_size_is_an_invalid_argument(self, content):
        with pytest.raises(InvalidArgument):
            content.writer("ref", size=-1)

    def test_a_ref_in_use_is_unavailable(self, content, reopen):
        with content.writer("ref") as ingest:
            ingest.write(b"abc")
            for store in (content, reopen()):
                with pytest.raises(Unavailable, match="'ref'"):
                    store.writer("ref")
                with pytest.raises(Unavailable):
                    store.abort("ref")
            ingest.write(b"def")
            assert reopen().status("ref").offset == 6
            reopen(namespace="other").writer("ref").discard()

    def test_a_waiting_writer_goes_on_where_the_first_one_stopped(self, content):
        first = content.writer("ref", size=SIZE)
        first.write(DATA[:100])
        offsets = []

        def second() -> None:
            with content.writer("ref", size=SIZE, wait=True) as ingest:
                offsets.append(ingest.offset)

        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.05)
        assert offsets == []
        first.close()
        thread.join()
        assert offsets == [100]

    def test_a_waiting_writer_finds_what_the_first_one_committed(self, content):
        first = content.writer("ref", digest=DIGEST)
        errors = []

        def second() -> None:
            try:
                content.writer("ref", digest=DIGEST, wait=True)
            except AlreadyExists as error:
                errors.append(error)

        thread = threading.Thread(target=second)
        thread.start()
        first.write(DATA)
        first.commit()
        thread.join()
        assert len(errors) == 1
        assert content.ingests() == []

    def test_waiting_ends_with_what_its_callback_raises(self, content):
        with content.writer("ref"):
            looks = iter([False, False, True])
            with pytest.raises(Stopped):
                content.writer("ref", wait=True, waiting=lambda: stop_if(next(looks)))

    def test_a_shared_ingest_is_one_for_all_namespaces(self, content, reopen):
        other = reopen(namespace="other")
        with content.writer("ref", size=SIZE, digest=DIGEST, shared=True) as ingest:
            ingest.write(DATA[:1000])
            with pytest.raises(Unavailable):
                other.writer("another ref", size=SIZE, digest=DIGEST, shared=True)
            assert (content.received(DIGEST), other.received(DIGEST)) == (1000, 1000)
            assert [status.ref for status in content.ingests()] == ["ref"]
            assert other.ingests() == []
        with other.writer("another ref", size=SIZE, digest=DIGEST, shared=True) as ingest:
            assert ingest.offset == 1000
            assert content.ingests() == []
            assert other.status("another ref").offset == 1000
            ingest.write(DATA[1000:])
            ingest.commit()
        assert other.received(DIGEST) == SIZE
        assert other.ingests() == []
        assert other.read(DIGEST) == DATA
        with pytest.raises(NotFound):
            content.info(DIGEST)
        with pytest.raises(AlreadyExists):
            content.writer("ref", size=SIZE, digest=DIGEST, shared=True)
        assert content.read(DIGEST) == DATA

    def test_a_shared_ingest_can_be_aborted_by_its_ref_and_needs_a_digest(self, content, reopen):
        with content.writer("ref", digest=DIGEST, shared=True) as ingest:
            ingest.write(DATA[:1000])
        with pytest.raises(NotFound):
            reopen(namespace="other").abort("ref")
        content.abort("ref")
        assert content.ingests() == []
        assert content.received(DIGEST) == 0
        with pytest.raises(InvalidArgument, match="digest"):
            content.writer("ref", shared=True)

    def test_a_writer_for_what_is_here_already_exists_and_leaves_no_ingest(self, content):
        content.write("ref", DATA, digest=DIGEST, size=SIZE)
        for wait in (False, True):
            with pytest.raises(AlreadyExists, match=DIGEST):
                content.writer("ref", digest=DIGEST, wait=wait)
        assert content.ingests() == []

    def test_an_ingest_that_was_left_can_be_resumed(self, content, reopen):
        with content.writer("ref", size=SIZE, digest=DIGEST) as ingest:
            ingest.write(DATA[:1000])
        status = content.status("ref")
        assert (status.ref, status.offset, status.total, status.expected) == ("ref", 1000, SIZE, DIGEST)
        assert content.ingests() == [status]
        with reopen().writer("ref", size=SIZE, digest=DIGEST) as ingest:
            assert ingest.offset == 1000
            assert ingest.status().started_at == status.started_at
            ingest.write(DATA[1000:])
            ingest.commit(size=SIZE, digest=DIGEST)
        assert content.read(DIGEST) == DATA

    def test_resuming_hashes_again_what_is_there(self, content):
        with content.writer("ref", size=SIZE) as ingest:
            ingest.write(DATA[:1000])
            path = ingest.data_path
        path.write_bytes(b"\xff" * 1000)
        with content.writer("ref", size=SIZE) as ingest:
            ingest.write(DATA[1000:])
            with pytest.raises(FailedPrecondition):
                ingest.commit(digest=DIGEST)
        assert not content.exists(DIGEST)

    def test_when_it_was_written_to_last_is_known_to_the_microsecond(self, content):
        for number in range(20):  # a file's own time is that of the kernel's last tick
            with content.writer(f"left-{number}") as ingest:
                ingest.write(b"some")
                before = timestamp()
                ingest.write(b"more")
                after = timestamp()
                assert before <= ingest.status().updated_at <= after
            assert before <= content.status(f"left-{number}").updated_at <= after

    def test_what_the_first_try_did_not_know_is_taken_from_the_second(self, content):
        with content.writer("ref") as ingest:
            ingest.write(DATA[:1000])
        with content.writer("ref", size=SIZE, digest=DIGEST) as ingest:
            assert ingest.offset == 1000
        status = content.status("ref")
        assert (status.total, status.expected) == (SIZE, DIGEST)
        with content.writer("ref") as ingest:
            assert ingest.offset == 1000

    @pytest.mark.parametrize(
        "changed",
        [{"size": SIZE + 1}, {"digest": digest_of(b"other")}, {"size": 10}],
        ids=["size", "digest", "short"],
    )
    def test_another_size_or_digest_starts_over(self, content, changed):
        with content.writer("ref", size=SIZE, digest=DIGEST) as ingest:
            ingest.write(DATA[:1000])
        with content.writer("ref", **{"size": SIZE, "digest": DIGEST, **changed}) as ingest:
            assert ingest.offset == 0
            assert ingest.status().total == {"size": SIZE, **changed}["size"]

    def test_more_bytes_than_expected_are_a_failed_precondition(self, content):
        with content.writer("ref", size=10) as ingest:
            ingest.write(b"x" * 10)
            with pytest.raises(FailedPrecondition):
                ingest.write(b"x")
            assert ingest.offset == 10

    def test_truncate_cuts_back_to_any_offset(self, content):
        with content.writer("ref") as ingest:
            ingest.write(DATA + b"garbage")
            ingest.truncate(SIZE + 3)
            for wrong in (-1, SIZE + 4):
                with pytest.raises(InvalidArgument):
                    ingest.truncate(wrong)
            ingest.truncate(SIZE)
            ingest.commit(size=SIZE, digest=DIGEST)
        assert content.read(DIGEST) == DATA

    def test_truncate_to_nothing_starts_over(self, content):
        with content.writer("ref") as ingest:
            ingest.write(b"garbage")
            ingest.truncate()
            assert ingest.offset == 0
            ingest.write(DATA)
            ingest.commit(digest=DIGEST)

    def test_commit_of_a_wrong_size_fails_and_the_ingest_goes_on(self, content):
        with content.writer("ref") as ingest:
            ingest.write(DATA[:1000])
            with pytest.raises(FailedPrecondition, match="1000 bytes"):
                ingest.commit(size=SIZE)
            assert not content.exists(DIGEST)
            ingest.write(DATA[1000:])
            ingest.commit(size=SIZE, digest=DIGEST)
        assert content.exists(DIGEST)

    def test_commit_of_a_wrong_digest_fails_and_the_ingest_stays_resumable(self, content):
        with content.writer("ref") as ingest:
            ingest.write(DATA[:-1])
            with pytest.raises(FailedPrecondition, match=DIGEST):
                ingest.commit(digest=DIGEST)
        assert content.status("ref").offset == SIZE - 1
        with content.writer("ref") as ingest:
            ingest.write(DATA[-1:])
            ingest.commit(digest=DIGEST)
        assert content.read(DIGEST) == DATA

    def test_commit_checks_what_the_writer_was_told(self, content):
        with content.writer("ref", size=SIZE, digest=DIGEST) as ingest:
            ingest.write(DATA[:-1])
            with pytest.raises(FailedPrecondition):
                ingest.commit()
            with pytest.raises(FailedPrecondition):
                ingest.commit(digest=ABSENT)
            ingest.write(DATA[-1:])
            ingest.commit()
        assert content.exists(DIGEST)

    def test_commit_without_any_expectation_finds_the_digest(self, content):
        with content.writer("ref") as ingest:
            ingest.write(DATA)
            ingest.commit()
        assert content.read(DIGEST) == DATA

    def test_commit_of_what_another_ref_brought_already_exists(self, content):
        with content.writer("one") as one, content.writer("two") as two:
            one.write(DATA)
            two.write(DATA)
            one.commit(labels={"a": "1"})
            with pytest.raises(AlreadyExists, match=DIGEST):
                two.commit(labels={"a": "2"})
        assert content.ingests() == []
        assert content.info(DIGEST).labels == {"a": "1"}

    def test_commit_believes_a_verified_digest_of_a_file_that_others_wrote(self, content):
        with content.writer("ref", size=SIZE, digest=DIGEST) as ingest:
            ingest.data_path.write_bytes(DATA)
            assert ingest.status().offset == SIZE
            with pytest.raises(FailedPrecondition):
                ingest.commit(verified=ABSENT)
            ingest.commit(verified=DIGEST)
        assert content.read(DIGEST) == DATA

    def test_commit_hashes_a_file_that_others_wrote(self, content):
        with content.writer("ref", digest=DIGEST) as ingest:
            ingest.data_path.write_bytes(DATA)
            ingest.commit()
        with content.writer("ref") as ingest:
            ingest.write(b"xy")
            with ingest.data_path.open("ab") as file:
                file.write(b"z")
            ingest.commit(digest=digest_of(b"xyz"))

    def test_commit_refuses_labels_over_the_limit_and_stays_open(self, content):
        with content.writer("ref") as ingest:
            ingest.write(DATA)
            with pytest.raises(InvalidArgument):
                ingest.commit(labels={"k": "v" * 4096})
            ingest.commit(labels={"k": "v"})

    def test_nothing_is_visible_before_commit(self, content):
        with content.writer("ref", digest=DIGEST) as ingest:
            ingest.write(DATA)
            assert not content.exists(DIGEST)
            assert list(content.walk()) == []

    def test_after_commit_discard_or_close_it_is_closed(self, content):
        for end in ("commit", "discard", "close"):
            ingest = content.writer("ref")
            ingest.write(end.encode())
            getattr(ingest, end)()
            for attempt in (lambda: ingest.write(b"x"), ingest.commit, ingest.status, ingest.truncate):  # noqa: B023
                with pytest.raises(FailedPrecondition):
                    attempt()
            ingest.close()
            ingest.discard()
        assert [status.offset for status in content.ingests()] == [5]

    def test_discard_and_abort_leave_nothing(self, content):
        ingest = content.writer("one")
        ingest.write(DATA)
        ingest.discard()
        with content.writer("two") as ingest:
            ingest.write(DATA)
        content.abort("two")
        assert content.ingests() == []
        for method in (content.abort, content.status):
            with pytest.raises(NotFound, match="'two'"):
                method("two")

    def test_ingests_are_listed_by_ref_and_filtered(self, content, reopen):
        for ref in ("b", "a", "c"):
            with content.writer(ref, size=7) as ingest:
                ingest.write(ref.encode())
        reopen(namespace="other").writer("other").close()
        assert [(status.ref, status.offset, status.total) for status in content.ingests()] == [
            ("a", 1, 7),
            ("b", 1, 7),
            ("c", 1, 7),
        ]
        assert [status.ref for status in content.ingests(filters=["ref==b"])] == ["b"]

    def test_a_blob_cannot_be_changed_by_accident(self, content):
        content.write("ref", DATA, digest=DIGEST, size=SIZE)
        assert content.path(DIGEST).stat().st_mode & 0o777 == 0o444

    def test_large_pieces_and_buffers_of_any_kind_can_be_written(self, content):
        piece = b"0123456789abcdef" * 65536
        hasher = hashlib.sha256()
        with content.writer("ref") as ingest:
            for kind in (bytes, bytearray, memoryview):
                assert ingest.write(kind(piece)) == len(piece)
                hasher.update(piece)
            ingest.commit(digest=f"sha256:{hasher.hexdigest()}", size=3 * len(piece))

    # write

    def test_write_is_harmless_twice_and_adds_labels(self, content):
        content.write("ref", DATA, digest=DIGEST, size=SIZE, labels={"a": "1"})
        content.write("ref", DATA, digest=DIGEST, size=SIZE, labels={"b": "2"})
        assert content.info(DIGEST).labels == {"a": "1", "b": "2"}

    @pytest.mark.parametrize(("digest", "size"), [(ABSENT, SIZE), (DIGEST, SIZE + 1), (DIGEST, SIZE - 1)])
    def test_write_of_something_else_than_promised_fails_and_leaves_nothing(self, content, digest, size):
        with pytest.raises(FailedPrecondition):
            content.write("ref", DATA, digest=digest, size=size)
        assert content.ingests() == []
        assert list(content.walk()) == []

"""Events: which change causes which, their order, following them, and what monitors leave in the spool."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import hypothesis
import hypothesis.strategies as st
import msgspec
import pytest

from lamella.digest import digest_of
from lamella.errors import DataLoss, DeadlineExceeded, FailedPrecondition, InvalidArgument
from lamella.events import Event, EventStream, spool
from lamella.events.stream import POLL_SECONDS
from lamella.metadata import Database, timestamp
from stores import Store

DATA = b"data"
DIGEST = digest_of(DATA)
KEPT = 32_768
FIXTURE = hypothesis.HealthCheck.function_scoped_fixture
ROOT = {"containerd.io/gc.root": "x"}


def follow(store: Store, **options: Any) -> EventStream:
    return EventStream(store.config, **{"timeout": 20, **options})


def seen(store: Store, **options: Any) -> list[Event]:
    with EventStream(store.config, follow=False, **{"all_namespaces": True, **options}) as stream:
        return list(stream)


def caused_by(store: Store, action: Callable[[], object]) -> list[tuple[str, dict[str, Any]]]:
    """Give topic and fields of what an action causes."""
    before = seen(store)
    action()
    return [(event.topic, event.event) for event in seen(store, since=before[-1].number if before else None)]


@pytest.fixture
def store(open_store) -> Store:
    opened: Store = open_store()
    with opened.database.write() as db:  # so that the namespace is no news
        db.execute("INSERT INTO namespaces (name, created_at, updated_at) VALUES ('default', '', '')")
    return opened


class TestTopics:
    def test_of_namespaces(self, store):
        namespaces = store.namespaces
        assert caused_by(store, lambda: namespaces.create("ns", labels={"a": "b"})) == [
            ("/namespaces/create", {"name": "ns", "labels": {"a": "b"}})
        ]
        assert caused_by(store, lambda: namespaces.update_labels("ns", {"c": "d"})) == [
            ("/namespaces/update", {"name": "ns", "labels": {"a": "b", "c": "d"}})
        ]
        assert caused_by(store, lambda: namespaces.delete("ns")) == [("/namespaces/delete", {"name": "ns"})]
        assert {event.namespace for event in seen(store)} == {"default", "ns"}

    def test_a_namespace_that_comes_with_its_first_object_precedes_it(self, store, open_store):
        other = open_store("other")
        assert caused_by(store, lambda: other.snapshots.prepare("key")) == [
            ("/namespaces/create", {"name": "other", "labels": {}}),
            ("/snapshot/prepare", {"key": "key", "parent": "", "snapshotter": "overlayfs"}),
        ]

    def test_of_content(self, store):
        assert caused_by(store, lambda: store.put(DATA)) == [
            ("/content/create", {"digest": DIGEST, "size": len(DATA)})
        ]
        assert caused_by(store, lambda: store.content.update_labels(DIGEST, {"a": "b"})) == [
            ("/content/update", {"digest": DIGEST, "labels": {"a": "b"}})
        ]
        assert caused_by(store, lambda: store.content.delete(DIGEST)) == [
            ("/content/delete", {"digest": DIGEST})
        ]

    def test_of_images(self, store):
        def point_elsewhere() -> None:
            with store.database.write() as db:
                db.execute("UPDATE images SET digest = 'sha256:y' WHERE name = 'image'")

        assert caused_by(store, lambda: store.image("image", DIGEST, '{"a":"b"}')) == [
            ("/images/create", {"name": "image", "labels": {"a": "b"}})
        ]
        assert caused_by(store, point_elsewhere) == [
            ("/images/update", {"name": "image", "labels": {"a": "b"}})
        ]
        assert caused_by(store, lambda: store.remove_image("image")) == [
            ("/images/delete", {"name": "image"})
        ]

    def test_of_snapshots(self, store):
        overlayfs = {"snapshotter": "overlayfs"}
        snapshots = store.snapshots
        assert caused_by(store, lambda: store.stack("base", {"a": "1"})) == [
            ("/snapshot/commit", {"key": "", "name": "base-0", **overlayfs})
        ]
        assert caused_by(store, lambda: snapshots.prepare("key", "base-0")) == [
            ("/snapshot/prepare", {"key": "key", "parent": "base-0", **overlayfs})
        ]
        assert caused_by(store, lambda: snapshots.update("key", {"a": "b"})) == [
            ("/snapshot/update", {"key": "key", "labels": {"a": "b"}, **overlayfs})
        ]
        assert caused_by(store, lambda: snapshots.commit("name", "key", {"c": "d"})) == [
            ("/snapshot/commit", {"key": "key", "name": "name", **overlayfs})
        ]
        assert caused_by(store, lambda: snapshots.view("view", "name")) == [
            ("/snapshot/prepare", {"key": "view", "parent": "name", **overlayfs})
        ]
        assert caused_by(store, lambda: snapshots.remove("view")) == [
            ("/snapshot/remove", {"key": "view", **overlayfs})
        ]

    def test_of_containers(self, store):
        def change(statement: str) -> Callable[[], None]:
            def run() -> None:
                with store.database.write() as db:
                    db.execute(statement)

            return run

        insert = (
            "INSERT INTO containers (namespace, id, name, image, runtime, snapshot_key, created_at, updated_at) "
            "VALUES ('default', 'id', 'name', 'image', 'lamella', 'key', '', '')"
        )
        assert caused_by(store, change(insert)) == [
            (
                "/containers/create",
                {"id": "id", "image": "image", "runtime": {"name": "lamella"}, "name": "name"},
            )
        ]
        assert caused_by(store, change("""UPDATE containers SET labels = '{"a":"b"}'""")) == [
            (
                "/containers/update",
                {"id": "id", "image": "image", "labels": {"a": "b"}, "snapshot_key": "key", "name": "name"},
            )
        ]
        assert caused_by(store, change("DELETE FROM containers")) == [
            ("/containers/delete", {"id": "id", "name": "name"})
        ]

    def test_of_what_gc_removes(self, store):
        store.put(DATA)
        store.stack("chain", {"a": "1"}, {"b": "2"})
        assert caused_by(store, store.gc) == [
            ("/content/delete", {"digest": DIGEST}),
            ("/snapshot/remove", {"key": "chain-1", "snapshotter": "overlayfs"}),
            ("/snapshot/remove", {"key": "chain-0", "snapshotter": "overlayfs"}),
        ]

    def test_what_was_rolled_back_did_not_happen(self, store):
        def fail() -> None:
            with pytest.raises(ZeroDivisionError), store.database.write():
                store.image("image", DIGEST)
                raise ZeroDivisionError

        assert caused_by(store, fail) == []
        assert [number for number, _ in enumerate(seen(store), 1)] == [each.number for each in seen(store)]

    def test_an_update_that_changes_nothing_is_none(self, store):
        store.namespaces.create("ns", labels={"a": "b"})
        store.put(DATA, {"a": "b"})
        store.snapshots.prepare("key", labels={"a": "b"})
        store.image("image", DIGEST)
        store.container("box", "key")

        def update() -> None:
            store.namespaces.update_labels("ns", {"a": "b"})
            store.content.update_labels(DIGEST, {"a": "b"})
            store.snapshots.update("key", {"a": "b"})
            with store.database.write() as db:
                for table in ("namespaces", "images", "content", "snapshots", "containers"):
                    db.execute(f"UPDATE {table} SET labels = labels, updated_at = 'x'")
                db.execute("UPDATE snapshots SET layer = NULL")

        assert caused_by(store, update) == []


class TestFollowing:
    def test_begins_with_what_comes_after_the_call(self, store):
        store.image("before", DIGEST)
        with follow(store) as stream:
            store.image("after", DIGEST)
            assert next(stream).event["name"] == "after"

    def test_an_event_says_number_time_namespace_topic_and_fields(self, store):
        began = timestamp()
        with follow(store) as stream:
            store.image("image", DIGEST)
            event = next(stream)
        assert event == Event(
            number=2,
            timestamp=event.timestamp,
            namespace="default",
            topic="/images/create",
            event={"name": "image", "labels": {}},
        )
        assert began[:23] <= event.timestamp[:23] <= timestamp()[:23]

    def test_shows_its_own_namespace_or_all(self, store, open_store):
        with follow(store) as own, follow(store, all_namespaces=True) as all_of_them:
            open_store("other").image("theirs", DIGEST)
            store.image("ours", DIGEST)
            assert next(own).event["name"] == "ours"
            assert [next(all_of_them).event["name"] for _ in range(3)] == ["other", "theirs", "ours"]

    @pytest.mark.parametrize(
        ("filters", "names"),
        [
            (["topic==/images/create"], ["a", "b"]),
            (["topic~=^/images/"], ["a", "b", "a"]),
            (["event.name==a"], ["a", "a"]),
            (['event.labels."x.y"==z'], ["b"]),
            (["event.size==4"], [DIGEST]),
            (["topic==/images/delete", "event.name==b"], ["b", "a"]),
            (["namespace==default,topic!=/content/create"], ["a", "b", "a"]),
            (["namespace==other"], []),
            ([""], ["a", DIGEST, "b", "a"]),
        ],
    )
    def test_filters_are_containerds(self, store, filters, names):
        start = seen(store)[-1].number
        store.image("a", DIGEST)
        store.put(DATA)
        store.image("b", DIGEST, '{"x.y":"z"}')
        store.remove_image("a")
        found = seen(store, since=start, filters=filters)
        assert [event.event.get("name") or event.event["digest"] for event in found] == names

    def test_goes_on_after_the_last_one_seen(self, store):
        for name in "abc":
            store.image(name, DIGEST)
        all_of_them = seen(store)
        with follow(store, since=all_of_them[1].number) as stream:
            assert next(stream) == all_of_them[2]
            assert stream.position == all_of_them[2].number
            assert next(stream) == all_of_them[3]

    def test_position_passes_what_is_not_shown(self, store, open_store):
        with follow(store, filters=["topic==/none"], timeout=0) as stream:
            for name in "abc":
                store.image(name, DIGEST)
            open_store("other").image("theirs", DIGEST)
            with pytest.raises(DeadlineExceeded):
                next(stream)
            assert stream.position == 6

    def test_since_and_until_a_time(self, store):
        store.image("a", DIGEST)
        time.sleep(0.002)
        middle = timestamp()
        time.sleep(0.002)
        store.image("b", DIGEST)
        assert [event.event["name"] for event in seen(store, since=middle)] == ["b"]
        assert [event.event["name"] for event in seen(store, until=middle)] == ["default", "a"]
        with EventStream(store.config, since="1970-01-01T00:00:00Z", until=timestamp()) as stream:
            assert [event.event["name"] for event in stream] == ["default", "a", "b"]

    def test_waits_for_the_time_it_ends_at(self, store):
        for number, seconds in enumerate((0.3, 3, 30)):
            name, end = f"in time {number}", timestamp(seconds)
            with EventStream(store.config, until=end) as stream:
                store.image(name, DIGEST)
                if timestamp() < end:  # else the machine was too slow for it
                    assert [event.event["name"] for event in stream] == [name]
                    assert timestamp() > end
                    return
        pytest.fail("a record takes longer than that")

    def test_without_following_it_ends_with_the_newest_at_the_call(self, store):
        with EventStream(store.config, follow=False) as stream:
            store.image("later", DIGEST)
            assert [event.event["name"] for event in stream] == ["default"]
        assert list(stream) == []

    def test_the_timeout_is_that_of_one_event_and_ends_nothing(self, store):
        with follow(store, timeout=0.01) as stream:
            with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s"):
                next(stream)
            store.image("image", DIGEST)
            assert next(stream).event["name"] == "image"

    @pytest.mark.parametrize(
        "options",
        [
            {"since": -1},
            {"since": True},
            {"since": "yesterday"},
            {"until": "2026-01-01T00:00:00"},
            {"filters": ["topic="]},
        ],
    )
    def test_what_cannot_be_meant_is_an_invalid_argument(self, store, options):
        with pytest.raises(InvalidArgument):
            EventStream(store.config, **options)

    def test_a_number_that_was_not_given_yet_is_data_loss(self, store):
        with pytest.raises(DataLoss, match="no event 2 yet, the newest is 1") as caught:
            EventStream(store.config, since=2)
        assert caught.value.hint

    def test_closing_from_another_thread_ends_the_iteration(self, store):
        found: list[Event] = []
        stream = follow(store)
        thread = threading.Thread(target=lambda: found.extend(stream))
        thread.start()
        store.image("image", DIGEST)
        while not found:
            time.sleep(0.001)
        stream.close()
        thread.join(60)
        assert not thread.is_alive()
        stream.close()
        assert list(stream) == []

    def test_goes_on_when_the_client_is_closed(self, store, open_store):
        stream = follow(store)
        store.close()
        open_store().image("image", DIGEST)
        assert next(stream).event["name"] == "image"
        stream.close()

    def test_holds_no_transaction_while_it_waits(self, store):
        with follow(store) as stream:
            store.image("image", DIGEST)
            next(stream)
            raw = apsw.Connection(str(store.database.path))
            busy, in_log, copied = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            assert (busy, in_log, copied) == (0, 0, 0)
            raw.close()

    def test_a_store_that_is_not_there_yet_is_followed_from_its_first_event(self, tmp_path):
        new = Store(tmp_path / "new" / "root")
        new.close()
        with EventStream(new.config, timeout=20, all_namespaces=True) as stream:
            again = Store(tmp_path / "new" / "root")
            again.image("image", DIGEST)
            assert [next(stream).number for _ in range(2)] == [1, 2]
            again.close()

    def test_a_closed_store_says_so_only_when_it_was_not_meant(self, store):
        stream = follow(store)
        stream._database.close()
        with pytest.raises(FailedPrecondition):
            next(stream)
        stream.close()

    def test_ten_processes_write_and_two_followers_see_each_event_once_in_order(self, store, tmp_path):
        code = (
            "import sys; from pathlib import Path; from stores import Store\n"
            "store = Store(Path(sys.argv[1]))\n"
            "for n in range(20): store.image(f'{sys.argv[2]}-{n}', 'sha256:x')\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        with follow(store, timeout=60) as one, follow(store, timeout=60) as two:
            writers = [
                subprocess.Popen([sys.executable, "-c", code, str(store.root), str(number)], env=environment)
                for number in range(10)
            ]
            streams = [[next(stream) for _ in range(200)] for stream in (one, two)]
            assert [writer.wait(60) for writer in writers] == [0] * 10
        assert streams[0] == streams[1]
        assert [event.number for event in streams[0]] == list(range(2, 202))
        for number in range(10):
            names = [e.event["name"] for e in streams[0] if e.event["name"].startswith(f"{number}-")]
            assert names == [f"{number}-{n}" for n in range(20)]


class TestRing:
    @staticmethod
    def add(store: Store, count: int) -> None:
        with store.database.write() as db:
            db.executemany(
                "INSERT INTO events (at, namespace, topic, data) VALUES ('x', 'default', '/x', '{}')",
                [()] * count,
            )

    def test_the_newest_are_kept_and_numbers_go_on(self, store):
        self.add(store, KEPT + 1000)
        numbers = [event.number for event in seen(store)]
        assert KEPT <= len(numbers) < KEPT + 256
        assert numbers == list(range(numbers[0], KEPT + 1002))
        store.image("image", DIGEST)
        assert seen(store)[-1].number == KEPT + 1002

    def test_numbers_that_were_dropped_are_data_loss(self, store):
        self.add(store, KEPT + 1000)
        oldest = seen(store)[0].number
        assert seen(store, since=oldest - 1)[0].number == oldest
        with pytest.raises(DataLoss, match=rf"events 11 to {oldest - 1} were dropped") as caught:
            EventStream(store.config, since=10)
        assert caught.value.hint

    def test_a_follower_that_is_too_slow_is_told_and_may_go_on(self, store):
        with follow(store) as stream:
            self.add(store, 2)
            assert next(stream).number == 2
            self.add(store, KEPT + 1000)
            assert next(stream).number == 3
            oldest = seen(store)[0].number
            with pytest.raises(DataLoss, match=rf"events 4 to {oldest - 1} were dropped"):
                next(stream)
            assert next(stream).number == oldest


def line(container_id: str, topic: str = "/tasks/exit", **fields: Any) -> bytes:
    document = {
        "at": "2026-03-01T12:00:00.123456400Z",
        "namespace": "default",
        "topic": topic,
        "event": {"container_id": container_id, **fields},
    }
    return msgspec.json.encode(document) + b"\n"


def append(store: Store, data: bytes) -> None:
    path = spool.spool_path(store.root)
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.write(data)


def left(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / "events").iterdir())


class TestSpool:
    def test_its_lines_are_events_with_the_containers_name(self, store):
        store.container("box", "key")
        with store.database.write() as db:
            db.execute("UPDATE containers SET id = 'id'")
        start = seen(store)[-1].number
        append(store, line("id", exit_status=3) + b"\n" + line("other"))
        events = seen(store, since=start)
        assert [event.event for event in events] == [
            {"container_id": "id", "exit_status": 3, "name": "box"},
            {"container_id": "other"},
        ]
        assert events[0].timestamp == "2026-03-01T12:00:00.123456Z"
        assert left(store) == []

    def test_a_follower_takes_it_in(self, store):
        with follow(store) as stream:
            append(store, line("a"))
            assert next(stream).event["container_id"] == "a"

    @pytest.mark.parametrize(
        "garbage",
        [
            b"\0" * 4096,
            b'{"at":"2026-03-01T12:00:0',
            b"[]\n",
            b'{"at":"x","namespace":"default","topic":"/t","event":{"container_id":"a"}}',
            b'{"at":"2026-03-01T12:00:00Z","namespace":1,"topic":"/t","event":{"container_id":"a"}}',
            b'{"at":"2026-03-01T12:00:00Z","namespace":"default","topic":"/t","event":{}}',
            b"\xff\xfe\n",
            b"[" * 100_000,
        ],
    )
    def test_what_is_no_event_is_passed_over(self, store, garbage):
        append(store, line("before") + garbage + b"\n" + line("after"))
        assert [event.event["container_id"] for event in seen(store)[1:]] == ["before", "after"]
        assert left(store) == []

    @hypothesis.settings(
        max_examples=200, derandomize=True, suppress_health_check=[FIXTURE, hypothesis.HealthCheck.too_slow]
    )
    @hypothesis.given(
        st.lists(st.one_of(st.binary(), st.sampled_from([b"\n", line("a"), line("b")[:-9]])), max_size=8)
    )
    def test_whatever_it_holds_only_whole_lines_are_events(self, store, pieces):
        text = b"".join(pieces)
        start = seen(store)[-1].number
        append(store, text)
        wanted = sum(piece == line("a")[:-1] for piece in text.split(b"\n"))
        assert [event.event["container_id"] for event in seen(store, since=start)] == ["a"] * wanted
        assert left(store) == []

    def test_a_file_that_is_in_the_table_already_only_goes(self, store):
        append(store, line("a"))
        (taken,) = spool.take(store.root)
        spool.take_in(store.database, [taken])
        Path(taken).write_bytes(line("a"))  # whoever took it in was killed before he could remove it
        assert [event.event for event in seen(store)[1:]] == [{"container_id": "a"}]
        assert left(store) == []

    def test_names_of_files_that_are_gone_are_forgotten(self, store):
        for _ in range(5):
            append(store, line("a"))
            spool.drain(store.database, store.config)
        with store.database.read() as db:
            assert len(db.execute("SELECT name FROM drained_spools").fetchall()) == 1

    def test_older_files_come_first(self, store):
        append(store, line("a"))
        spool.take(store.root)  # and was killed
        append(store, line("b"))
        assert [event.event["container_id"] for event in seen(store)[1:]] == ["a", "b"]

    def test_a_monitor_that_was_stopped_in_its_write_holds_up_nobody_and_loses_nothing(self, store):
        append(store, line("a"))
        with spool.spool_path(store.root).open("ab") as writer:
            fcntl.flock(writer, fcntl.LOCK_SH)
            append(store, line("b"))
            assert seen(store)[1:] == []
            append(store, line("d"))  # to a new spool
            assert seen(store)[1:] == []
            writer.write(line("c"))
        assert [event.event["container_id"] for event in seen(store)[1:]] == ["a", "b", "c", "d"]

    def test_one_that_stays_stopped_holds_the_others_up_for_a_while_only(self, store, monkeypatch):
        append(store, line("a"))
        with spool.spool_path(store.root).open("ab") as writer:
            fcntl.flock(writer, fcntl.LOCK_SH)
            assert seen(store)[1:] == []
            append(store, line("b"))
            monkeypatch.setattr(spool, "STOPPED_SECONDS", 0)
            assert [event.event["container_id"] for event in seen(store)[1:]] == ["a", "b"]

    def test_other_files_beside_it_are_left_alone(self, store):
        append(store, line("a"))
        (store.root / "events/taken-notes").write_bytes(line("b"))
        assert [event.event["container_id"] for event in seen(store)[1:]] == ["a"]
        assert left(store) == ["taken-notes"]

    def test_two_who_take_in_at_once_insert_each_line_once(self, store, open_store):
        append(store, line("a"))
        one, two = store, open_store()
        first = spool.take(one.root)
        assert spool.take(two.root) == first
        spool.take_in(two.database, first)
        spool.take_in(one.database, first)
        assert [event.event["container_id"] for event in seen(store)[1:]] == ["a"]

    def test_as_part_of_a_transaction_it_stands_or_falls_with_it(self, store):
        append(store, line("a"))
        with pytest.raises(ZeroDivisionError), store.database.write():
            spool.take_in(store.database, spool.take(store.root))
            raise ZeroDivisionError
        assert len(left(store)) == 1
        with store.database.write():
            store.image("before", DIGEST)
            spool.take_in(store.database, spool.take(store.root))
            store.image("after", DIGEST)
        assert left(store) == []
        assert [e.event.get("name") or e.event["container_id"] for e in seen(store)[1:]] == [
            "before", "a", "after",
        ]  # fmt: skip

    def test_a_large_one_is_taken_in_by_whoever_notices(self, store):
        append(store, line("a"))
        spool.drain_if_large(store.database, store.config)
        assert left(store) == ["spool"]
        append(store, line("b") * (spool.SPOOL_LARGE // len(line("b")) + 1))
        spool.drain_if_large(store.database, store.config)
        assert left(store) == []

    def test_where_it_cannot_be_taken_in_followers_go_on(self, store):
        (store.root / "events").write_text("a file in the place of the folder")
        with follow(store) as stream:
            store.image("image", DIGEST)
            assert next(stream).event["name"] == "image"

    def test_nothing_happens_in_a_store_without_tasks(self, store):
        spool.drain(store.database, store.config)
        spool.drain_if_large(store.database, store.config)
        assert not (store.root / "events").exists()


def test_an_idle_follower_looks_seldom_enough(store, monkeypatch):
    looks = []
    real = Database.read
    monkeypatch.setattr(Database, "read", lambda self: looks.append(1) or real(self))
    with follow(store, timeout=5 * POLL_SECONDS) as stream, pytest.raises(DeadlineExceeded):
        next(stream)
    assert len(looks) <= 8

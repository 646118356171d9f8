"""The metadata database: versions, transactions, waiting, errors, forks."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from lamella.config import Config
from lamella.errors import (
    DataLoss,
    FailedPrecondition,
    Internal,
    LamellaError,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unsupported,
)
from lamella.metadata import Database, database, schema, timestamp
from lamella.metadata.clock import format_time, parse_time


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(root=tmp_path / "root", state=tmp_path / "state")


@pytest.fixture
def opened(config: Config) -> Iterator[Callable[..., Database]]:
    databases: list[Database] = []

    def opener(**arguments) -> Database:
        databases.append(Database(config, **arguments))
        return databases[-1]

    yield opener
    for each in databases:
        each.close()


@pytest.fixture
def db(opened) -> Database:
    return opened()


def _write_pages(target: Database, count: int) -> None:
    with target.write() as db:
        db.execute("CREATE TABLE IF NOT EXISTS filled (bytes BLOB)")
        db.execute("INSERT INTO filled VALUES (randomblob(?))", (count * 4096,))


def add(target: Database, name: str) -> None:
    with target.write() as db:
        db.execute("INSERT INTO namespaces (name, created_at, updated_at) VALUES (?, '', '')", (name,))


def names(target: Database) -> list[str]:
    with target.read() as db:
        return [row[0] for row in db.execute("SELECT name FROM namespaces ORDER BY name")]


def in_child(work: Callable[[], None]) -> None:
    """Run ``work`` in a forked child; fail with its traceback."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read().decode()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, said


class TestOpening:
    def test_the_store_is_made_for_its_owner_alone(self, config, db):
        assert config.root.stat().st_mode & 0o7777 == 0o700
        assert (config.root / "metadata.db").exists()

    def test_a_second_opening_finds_what_was_written(self, opened):
        add(opened(), "one")
        assert names(opened()) == ["one"]

    def test_it_is_in_wal_mode_with_foreign_keys(self, opened):
        opened()
        with opened().read() as db:
            assert db.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
            assert db.execute("PRAGMA foreign_keys").fetchall() == [(1,)]
            assert db.execute("PRAGMA synchronous").fetchall() == [(1,)]
            assert db.execute("PRAGMA user_version").fetchall() == [(schema.VERSION,)]

    def test_what_is_written_is_there_without_a_clean_close(self, config, opened):
        def work() -> None:
            add(Database(config), "one")
            os.kill(os.getpid(), signal.SIGKILL)

        opened().close()
        pid = os.fork()
        if pid == 0:
            work()
        os.waitpid(pid, 0)
        assert names(opened()) == ["one"]

    def test_many_may_create_it_at_once(self, config):
        failures: list[BaseException] = []
        start = threading.Barrier(8)

        def work(number: int) -> None:
            try:
                start.wait()
                with Database(config) as each:
                    add(each, f"n{number}")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        with Database(config) as each:
            assert len(names(each)) == 8

    def test_a_newer_schema_is_a_failed_precondition(self, config, opened):
        opened().close()
        with sqlite3.connect(config.root / "metadata.db") as raw:
            raw.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
        raw.close()
        with pytest.raises(FailedPrecondition, match=f"version {schema.VERSION + 1}") as caught:
            opened()
        assert "upgrade" in caught.value.hint

    @pytest.mark.parametrize("version", range(schema.VERSION))
    def test_every_earlier_schema_is_brought_up_to_date(self, config, opened, version):
        config.root.mkdir()
        raw = apsw.Connection(str(config.root / "metadata.db"))
        for script in schema.MIGRATIONS[:version]:
            raw.execute(script)
        raw.execute(f"PRAGMA user_version = {version}")
        raw.close()
        fresh_root = config.root.parent / "fresh"
        with (
            Database(Config(root=fresh_root, state=config.state)) as fresh,
            fresh.read() as new,
            opened().read() as old,
        ):
            query = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"
            assert old.execute(query).fetchall() == new.execute(query).fetchall()
            assert old.execute("PRAGMA user_version").fetchall() == [(schema.VERSION,)]

    def test_migrations_run_once_each_in_their_order_and_together(self, config, opened, monkeypatch):
        add(opened(), "one")
        steps = (
            "CREATE TABLE extra (a); INSERT INTO extra SELECT name FROM namespaces",
            "INSERT INTO extra VALUES (2)",
        )
        monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, *steps))
        monkeypatch.setattr(schema, "VERSION", schema.VERSION + 2)
        for _ in range(2):
            with opened().read() as db:
                assert db.execute("SELECT a FROM extra").fetchall() == [("one",), (2,)]

    def test_a_migration_that_fails_changes_nothing(self, config, opened, monkeypatch):
        add(opened(), "one")
        with monkeypatch.context() as patch:
            patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE extra (a)", "NONSENSE"))
            patch.setattr(schema, "VERSION", schema.VERSION + 2)
            with pytest.raises(Internal):
                opened()
        again = opened()
        assert names(again) == ["one"]
        with again.read() as db:
            assert db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'extra'").fetchall() == []

    def test_what_is_no_database_is_data_loss(self, config, opened):
        config.root.mkdir()
        (config.root / "metadata.db").write_bytes(b"This is a text, and longer than a header is." * 100)
        with pytest.raises(DataLoss):
            opened()

    def test_a_folder_in_its_place_is_an_error_of_ours(self, config, opened):
        (config.root / "metadata.db").mkdir(parents=True)
        with pytest.raises(PermissionDenied):
            opened()

    def test_a_file_in_the_place_of_the_root_is_an_error_of_ours(self, config, opened):
        config.root.write_text("x")
        with pytest.raises(LamellaError, match="root"):
            opened()

    def test_an_old_sqlite_is_refused(self, config, monkeypatch):
        monkeypatch.setattr(apsw, "SQLITE_VERSION_NUMBER", 3_051_002)
        with pytest.raises(Unsupported, match="too old"):
            Database(config)

    def test_a_long_log_is_copied_back_on_closing_unless_others_read_it(self, config, opened):
        first, second = opened(), opened()
        add(first, "one")
        log = config.root / "metadata.db-wal"
        with second.read():
            names(second)
            with first.write() as db:
                db.execute("CREATE TABLE big AS SELECT randomblob(20000000) AS bytes")
            first.close()
            assert log.stat().st_size > database.LOG_MAX
        second.close()
        assert log.stat().st_size == 0
        with opened().read() as db:
            assert db.execute("SELECT length(bytes) FROM big").fetchall() == [(20000000,)]

    def test_other_threads_write_while_the_log_is_copied_back(self, db, config, monkeypatch):
        monkeypatch.setattr(database, "CHECKPOINT_PAGES", 60)
        begun, go_on = threading.Event(), threading.Event()

        class Slow(apsw.Connection):
            def wal_checkpoint(self, *arguments, **options):
                begun.set()
                assert go_on.wait(60)
                return super().wal_checkpoint(*arguments, **options)

        monkeypatch.setattr(apsw, "Connection", Slow)
        thread = threading.Thread(target=_write_pages, args=(db, 70))
        thread.start()
        try:
            assert begun.wait(60)
            other = threading.Thread(target=add, args=(db, "meanwhile"), daemon=True)
            other.start()
            other.join(60)
            assert not other.is_alive()
        finally:
            go_on.set()
            thread.join(60)
        assert names(db) == ["meanwhile"]

    def test_the_log_is_copied_back_and_begun_anew(self, db, config, monkeypatch):
        monkeypatch.setattr(database, "CHECKPOINT_PAGES", 60)
        monkeypatch.setattr(database, "LONG_LOG", 1000)
        for _ in range(50):
            _write_pages(db, 70)
        assert (config.root / "metadata.db-wal").stat().st_size < 3 * 70 * 4096
        assert (config.root / "metadata.db").stat().st_size > 49 * 70 * 4096

    def test_a_log_that_grows_while_it_is_copied_back_is_copied_while_others_wait(
        self, db, config, monkeypatch
    ):
        monkeypatch.setattr(database, "CHECKPOINT_PAGES", 60)
        monkeypatch.setattr(db, "_copy_log_back", lambda: None)  # as if it were never done
        for _ in range(50):
            _write_pages(db, 70)
        assert (config.root / "metadata.db-wal").stat().st_size < 50 * 70 * 4096 / 5

    def test_a_fork_waits_until_the_log_is_copied_back(self, db, monkeypatch):
        monkeypatch.setattr(database, "CHECKPOINT_PAGES", 60)
        begun, ended = threading.Event(), threading.Event()

        class Slow(apsw.Connection):
            def wal_checkpoint(self, *arguments, **options):
                begun.set()
                time.sleep(0.1)
                result = super().wal_checkpoint(*arguments, **options)
                ended.set()
                return result

        monkeypatch.setattr(apsw, "Connection", Slow)
        thread = threading.Thread(target=_write_pages, args=(db, 70))
        thread.start()
        assert begun.wait(60)
        in_child(lambda: None)
        assert ended.is_set()
        thread.join(60)

    def test_close_is_harmless_twice_and_final(self, db):
        db.close()
        db.close()
        for attempt in (db.read, db.write):
            with pytest.raises(FailedPrecondition, match="closed"), attempt():
                pass


class TestTransactions:
    def test_a_statement_is_planned_once_whatever_its_values_are(self, db):
        planned = []

        def authorize(
            action: int, *_: object
        ) -> int:  # asked of each part of a statement while it is planned
            planned.append(action)
            return apsw.SQLITE_OK

        statement = (
            "SELECT b.size FROM content c JOIN blobs b USING (digest) WHERE c.namespace = ? AND c.digest = ?"
        )
        with db.read() as transaction:
            transaction.authorizer = authorize
            for number in range(5):
                transaction.execute(statement, (str(number), f"sha256:{number}")).fetchall()
            transaction.authorizer = None
        assert planned.count(apsw.SQLITE_SELECT) == 1

    def test_what_is_written_is_seen_by_others_after_the_commit(self, db, opened):
        other = opened()
        with db.write():
            add(db, "one")
            assert names(db) == ["one"]
            assert names(other) == []
        assert names(other) == ["one"]

    def test_an_error_rolls_back_and_passes(self, db):
        with pytest.raises(ZeroDivisionError), db.write():
            add(db, "one")
            raise ZeroDivisionError
        assert names(db) == []
        add(db, "two")
        assert names(db) == ["two"]

    def test_an_inner_transaction_can_fail_alone(self, db):
        with db.write():
            add(db, "one")
            with pytest.raises(ZeroDivisionError), db.write():
                add(db, "two")
                with db.write():
                    add(db, "three")
                raise ZeroDivisionError
            add(db, "four")
        assert names(db) == ["four", "one"]

    def test_an_inner_transaction_ends_with_the_outer_one(self, db):
        with pytest.raises(ZeroDivisionError), db.write():
            with db.write():
                add(db, "one")
            raise ZeroDivisionError
        assert names(db) == []

    def test_a_read_sees_one_state(self, db, opened):
        other = opened()
        with db.read():
            assert names(db) == []
            add(other, "one")
            assert names(db) == []
        assert names(db) == ["one"]

    def test_writing_inside_a_read_is_a_defect(self, db):
        with db.read(), pytest.raises(Internal), db.write():
            pass
        add(db, "one")

    def test_threads_take_turns(self, db):
        def work(number: int) -> None:
            for step in range(20):
                with db.write():
                    add(db, f"{number}-{step}")
                    assert f"{number}-{step}" in names(db)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(names(db)) == 80

    def test_actions_run_after_the_outermost_commit_without_the_lock(self, db):
        ran: list[str] = []

        def action() -> None:
            thread = threading.Thread(target=lambda: ran.append(",".join(names(db))))
            thread.start()
            thread.join(60)

        with db.write():
            with db.write():
                add(db, "one")
                db.after_commit(action)
            assert ran == []
        assert ran == ["one"]

    def test_actions_do_not_run_after_a_rollback(self, db):
        ran: list[object] = []
        with pytest.raises(ZeroDivisionError), db.write():
            db.after_commit(lambda: ran.append("after"))
            raise ZeroDivisionError
        with db.write():
            with pytest.raises(ZeroDivisionError), db.write():
                db.after_commit(lambda: ran.append("after"))
                raise ZeroDivisionError
            db.after_commit(lambda: ran.append("outer"))
        assert ran == ["outer"]

    def test_undo_runs_backwards_while_others_are_kept_away(self, db, opened):
        other = opened(busy_seconds=0)
        ran: list[object] = []

        def undo(exclusive: bool) -> None:
            with pytest.raises(Unavailable):
                add(other, "meanwhile")
            ran.append(exclusive)

        with pytest.raises(ZeroDivisionError), db.write():
            with db.write():
                db.on_rollback(lambda exclusive: ran.append("first"))
                db.on_rollback(undo)
            raise ZeroDivisionError
        assert ran == [True, "first"]
        with db.write():
            pass
        assert len(ran) == 2

    def test_an_action_that_fails_keeps_no_other_from_running(self, db):
        ran: list[str] = []

        def fail() -> None:
            raise PermissionDenied("cannot delete it")

        with pytest.raises(PermissionDenied, match="cannot delete it"), db.write():
            add(db, "one")
            db.after_commit(fail)
            db.after_commit(lambda: ran.append("after"))
        assert ran == ["after"]
        assert names(db) == ["one"]

    def test_an_undo_that_fails_does_not_hide_why(self, db):
        ran: list[bool] = []

        def fail(exclusive: bool) -> None:
            raise OSError("cannot put it back")

        with pytest.raises(ZeroDivisionError), db.write():
            db.on_rollback(ran.append)
            db.on_rollback(fail)
            raise ZeroDivisionError
        assert ran == [True]

    def test_undo_does_not_run_after_a_commit(self, db):
        with db.write():
            db.on_rollback(lambda exclusive: pytest.fail("it ran"))
        with pytest.raises(ZeroDivisionError), db.write():
            raise ZeroDivisionError


class TestWaiting:
    def test_a_writer_waits_for_another(self, db, opened):
        other = opened()
        entered = threading.Event()

        def work() -> None:
            with other.write():
                entered.set()
                add(other, "one")
                time.sleep(0.1)

        thread = threading.Thread(target=work)
        thread.start()
        entered.wait()
        add(db, "two")
        thread.join()
        assert names(db) == ["one", "two"]

    def test_it_gives_up_with_unavailable(self, db, opened):
        other = opened(busy_seconds=0.05)
        with db.write():
            with pytest.raises(Unavailable, match="busy"), other.write():
                pass
            assert names(other) == []
        add(other, "one")

    def test_ctrl_c_ends_the_wait(self, db, opened):
        other = opened()
        interrupted: list[bool] = []

        def interrupt(*_: object) -> None:
            if other._waiting_since and not interrupted:
                interrupted.append(True)
                raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            with db.write():
                signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
                with pytest.raises(KeyboardInterrupt), other.write():
                    pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        add(other, "one")
        assert names(db) == ["one"]


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (apsw.BusyError, Unavailable),
            (apsw.LockedError, Unavailable),
            (apsw.FullError, ResourceExhausted),
            (apsw.NoMemError, ResourceExhausted),
            (apsw.ReadOnlyError, PermissionDenied),
            (apsw.CantOpenError, PermissionDenied),
            (apsw.PermissionsError, PermissionDenied),
            (apsw.CorruptError, DataLoss),
            (apsw.NotADBError, DataLoss),
            (apsw.IOError, Unavailable),
            (apsw.SQLError, Internal),
            (apsw.ConstraintError, Internal),
        ],
    )
    def test_no_error_of_sqlite_comes_out(self, db, error, kind):
        for attempt in (db.read, db.write):
            with pytest.raises(kind) as caught, attempt():
                raise error("secret details")
            assert caught.value.hint
        add(db, "usable afterwards")

    def test_an_io_error_on_a_full_disk_says_so(self, db, monkeypatch):
        monkeypatch.setattr(db, "_disk_is_full", lambda: True)
        with pytest.raises(ResourceExhausted), db.write():
            raise apsw.IOError

    def test_a_damaged_database_is_data_loss(self, config, opened):
        with opened() as each:
            for number in range(200):
                add(each, f"name-{number}" * 10)
            with each.read() as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        path = config.root / "metadata.db"
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))
        with pytest.raises(DataLoss):
            names(opened())

    def test_a_file_system_without_space_is_resource_exhausted(self, config, opened):
        each = opened()
        add(each, "one")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
        try:
            with pytest.raises(LamellaError), each.write():
                for number in range(2000):
                    add(each, f"name-{number}" * 20)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        assert names(each) == ["one"]
        add(each, "two")
        assert names(opened()) == ["one", "two"]


class TestForks:
    def test_a_child_is_told_and_the_parent_goes_on(self, db):
        add(db, "one")

        def work() -> None:
            for attempt in (db.read, db.write):
                with pytest.raises(FailedPrecondition, match="fork"), attempt():
                    pass
            db.close()

        in_child(work)
        add(db, "two")
        assert names(db) == ["one", "two"]

    def test_a_child_may_open_its_own(self, config, db):
        def work() -> None:
            with Database(config) as own:
                add(own, "child")

        in_child(work)
        assert names(db) == ["child"]

    def test_a_fork_inside_a_transaction_does_not_end_it(self, db):
        with db.write():
            add(db, "one")

            def work() -> None:
                with pytest.raises(FailedPrecondition, match="fork"):
                    add(db, "child")
                database._still.in_child()

            in_child(work)
            add(db, "two")
        assert names(db) == ["one", "two"]

    def test_a_child_does_not_touch_a_transaction_that_has_spilled_to_the_log(self, config, db):
        def look(target: Database) -> object:
            with target.write() as inner:
                return inner.execute("SELECT count(*), sum(length(bytes)) FROM big").fetchall()

        def fill() -> None:
            with db.write() as inner:
                inner.execute(
                    "CREATE TABLE big AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000) "
                    "SELECT i, randomblob(4000) AS bytes FROM n"
                ).fetchall()

        with db.write():  # nothing here may refer to the connection, or the child would not let go of it
            fill()
            before = look(db)
            in_child(lambda: None)
            assert look(db) == before
        with Database(config) as other:
            assert look(other) == before
            with other.read() as reader:
                assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def test_a_child_cannot_commit_what_the_parent_began(self, db):
        def work() -> None:
            with pytest.raises(FailedPrecondition, match="fork"):
                transaction.__exit__(None, None, None)

        transaction = db.write()
        transaction.__enter__()
        add(db, "one")
        in_child(work)
        transaction.__exit__(None, None, None)
        assert names(db) == ["one"]

    def test_a_fork_while_another_thread_writes_hangs_nobody(self, db, tmp_path):
        # Idle ones, which the child lets go of: SQLite has locks that they share with the one that is written to.
        idle = [Database(Config(root=tmp_path / f"idle-{number}", state=tmp_path)) for number in range(3)]
        stop = threading.Event()

        def work() -> None:
            number = 0
            while not stop.is_set():
                add(db, f"name-{number}")
                number += 1

        thread = threading.Thread(target=work)
        thread.start()
        try:
            for _ in range(60):
                in_child(lambda: None)
        finally:
            stop.set()
            thread.join()
            for each in idle:
                each.close()
        with db.read() as reader:
            assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


class TestSchema:
    @pytest.fixture
    def content(self, db) -> Callable[[str], list[tuple[object, ...]]]:
        """Give a function that stores a content row with labels and returns how they are indexed."""

        def store(labels: str) -> list[tuple[object, ...]]:
            with db.write() as transaction:
                transaction.execute("INSERT OR IGNORE INTO blobs VALUES ('d', 1, '', '', 0)")
                transaction.execute(
                    "INSERT INTO content (namespace, digest, labels, created_at, updated_at) "
                    "VALUES ('ns', 'd', ?, '', '') ON CONFLICT DO UPDATE SET labels = excluded.labels",
                    (labels,),
                )
            with db.read() as transaction:
                return transaction.execute(
                    "SELECT kind, scope, named FROM gc_labels ORDER BY 1, 2, 3"
                ).fetchall()

        return store

    @pytest.mark.parametrize(
        ("label", "indexed"),
        [
            ("containerd.io/gc.root", ("root", "", "v")),
            ("containerd.io/gc.expire", ("expire", "", "v")),
            ("containerd.io/gc.ref.content", ("content", "", "v")),
            ("containerd.io/gc.ref.content.config", ("content", "", "v")),
            ("containerd.io/gc.ref.content.l.0", ("content", "", "v")),
            ("containerd.io/gc.ref.content/x.y", ("content", "", "v")),
            ("containerd.io/gc.ref.snapshot.overlayfs", ("snapshot", "overlayfs", "v")),
            ("containerd.io/gc.ref.snapshot.overlayfs/a/b", ("snapshot", "overlayfs", "v")),
            ("containerd.io/gc.ref.snapshot.my.own/a", ("snapshot", "my.own", "v")),
            ("containerd.io/gc.bref.content", ("<content", "", "v")),
            ("containerd.io/gc.bref.content.x", ("<content", "", "v")),
            ("containerd.io/gc.bref.snapshot.native", ("<snapshot", "native", "v")),
            ("containerd.io/gc.bref.image.x", ("<image", "", "v")),
            ("containerd.io/gc.bref.container/x", ("<container", "", "v")),
        ],
    )
    def test_labels_that_garbage_collection_follows_are_indexed(self, content, label, indexed):
        assert content(f'{{"a":"b","{label}":"v"}}') == [indexed]

    @pytest.mark.parametrize(
        "label",
        [
            "containerd.io/gc.flat",
            "containerd.io/gc.rooted",
            "containerd.io/gc.ref",
            "containerd.io/gc.ref.contents",
            "containerd.io/gc.ref.snapshot.",
            "containerd.io/gc.ref.snapshot",
            "containerd.io/gc.ref.image.x",
            "containerd.io/gc.bref.other.x",
            "x.containerd.io/gc.root",
            "containerd.io/distribution.source.docker.io",
        ],
    )
    def test_other_labels_are_not(self, content, label):
        assert content(f'{{"{label}":"containerd.io/gc.root"}}') == []

    def test_the_index_follows_changes_and_deletion(self, content, db):
        assert len(content('{"containerd.io/gc.root":"x","containerd.io/gc.ref.content.a":"y"}')) == 2
        assert content('{"containerd.io/gc.ref.content.b":"z"}') == [("content", "", "z")]
        assert content('{"a":"b"}') == []
        assert len(content('{"containerd.io/gc.root":"x"}')) == 1
        with db.write() as transaction:
            transaction.execute("DELETE FROM content")
            assert transaction.execute("SELECT * FROM gc_labels").fetchall() == []

    def test_a_namespace_comes_with_the_first_row_that_names_it(self, content, db):
        content("{}")
        assert names(db) == ["ns"]


class TestTimes:
    def test_they_sort_as_they_read_and_have_one_form(self):
        one, two, later = timestamp(), timestamp(), timestamp(3600)
        assert one <= two < later
        assert len(one) == len("2025-11-24T12:00:00.123456Z")
        assert parse_time(one) == one

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("2025-01-02T03:04:05Z", "2025-01-02T03:04:05.000000Z"),
            ("2025-01-02T03:04:05.123456789Z", "2025-01-02T03:04:05.123456Z"),
            ("2025-01-02T03:04:05+02:00", "2025-01-02T01:04:05.000000Z"),
            (" 2025-01-02T03:04:05.5-00:30\n", "2025-01-02T03:34:05.500000Z"),
        ],
    )
    def test_any_rfc_3339_time_is_read(self, text, expected):
        assert parse_time(text) == expected

    @pytest.mark.parametrize(
        "text", ["", "now", "2025-01-02", "2025-01-02T03:04:05", "0001-01-01T00:00:00+10:00"]
    )
    def test_what_is_no_time_is_an_invalid_argument(self, text):
        with pytest.raises(ValueError, match="RFC 3339"):
            parse_time(text)

    @pytest.mark.parametrize("microseconds", [10**25, -(10**25), 10**18])
    def test_a_time_that_cannot_be_kept_is_an_invalid_argument(self, microseconds):
        with pytest.raises(ValueError, match="no time"):
            format_time(microseconds)

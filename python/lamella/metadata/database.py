"""The metadata database: transactions, waiting, errors.

One file, ``<root>/metadata.db``, with ``-wal`` and ``-shm`` beside it while it was not copied back yet. SQLite in WAL mode:
readers never wait and see one state from the beginning to the end of their transaction; one writer at a time, in all
processes. Each visible change of the store is one write transaction.

A Database is one connection and a re-entrant lock around it, so that threads of a process take turns; a transaction of a
thread may contain further ones (a savepoint each). What a change does to the tree on disk is ordered around the commit so
that a process killed at any step leaves at most files that no row names: files are put in place inside the
transaction, before the row that names them is committed, and are removed after the row is gone (:meth:`Database.after_commit`).

Durability: synchronous=NORMAL. A committed transaction survives the death of every process at once; a power cut may take
the last ones back, whole and in order, and never damages the database. Opening checks a version number and no more; a
connection does not copy the log back on closing, since that costs two disk syncs (2.6 ms against 0.1 on ext4), but whoever
commits past CHECKPOINT_PAGES of log does. It does so after its transaction, by a connection of its own, so that other threads
write meanwhile: the syncs take 20 to 100 ms on a busy disk, a fifth of the time of eight threads that start containers. The log
is begun anew only when all of it is copied, which those that go on writing prevent; past LONG_LOG times as much they wait.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from _weakrefset import WeakSet  # of weakref, of which nothing else is needed
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType

import apsw

from lamella.config import Config
from lamella.disk import make_private_folder, translated
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
from lamella.locks import FileLock
from lamella.logs import Log
from lamella.metadata import schema
from lamella.metrics import recorder
from lamella.metrics.table import LOCK_WAIT, TRANSACTION
from lamella.ownership import check_owner
from lamella.reserve import fill, with_reserve
from lamella.typings import Any, Protocol, Self

BUSY_SECONDS = 60.0
"""How long a writer waits for the others before it gives up with Unavailable."""
CHECKPOINT_PAGES = 4000
"""Pages of log, of 4 KiB, that are written before it is copied back: some 140 containers that are started and removed."""
LONG_LOG = 2
"""Past how many times CHECKPOINT_PAGES the log is copied back while the other threads wait."""
LOG_MAX = 8 * 1024 * 1024
"""Bytes of log that may be left behind; one large transaction makes it longer than CHECKPOINT_PAGES."""
SQLITE_MINIMUM = 3_051_003
"""Older ones may corrupt a WAL database (sqlite.org/wal.html, "The WAL-Reset Bug")."""
APPLICATION_ID = 0x6C616D65  # "lame", for file(1)

FORK_SECONDS = 1.0
"""How long a fork waits for the transactions of other threads."""

_POLL_FIRST = 0.0002
_POLL_MAX = 0.004
_open: WeakSet[Database] = WeakSet()
_log = Log("lamella.metadata")
_WAIT = LOCK_WAIT.series("database")


class Database:
    """An open metadata database. Usable from several threads; not in a child of os.fork, which has to open its own.

    Errors of opening: PermissionDenied, DataLoss for what is no database, FailedPrecondition when a newer lamella made it.
    """

    def __init__(self, config: Config, *, busy_seconds: float = BUSY_SECONDS) -> None:
        self.config = config
        self.path = config.root / "metadata.db"
        self.busy_seconds = busy_seconds
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._depth = 0
        self._readers = 0
        self._waiting_since = 0.0
        self._held_since = 0.0
        self.metrics = recorder(config.state)
        self.held = TRANSACTION.series()
        """Which histogram gets how long this connection's write transactions keep others waiting."""
        self._after_commit: list[Callable[[], None]] = []
        self._on_rollback: list[Callable[[bool], None]] = []
        self._identity: tuple[int, int] | None = None
        self._connection: apsw.Connection | None = None
        self._log_pages = [0]
        """How long the log was at the last commit; in a list, for the connection that notes it must not hold this object."""
        self._copied_at = 0
        """How long it was when it was last copied back."""
        self._copying = threading.RLock()
        """Held by the thread that copies the log back."""
        with _still.opening:
            self._connection = with_reserve(config.root, self._connect)
            _open.add(self)

    def __repr__(self) -> str:
        return f"<lamella.metadata.Database {str(self.path)!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def read(self) -> Read:
        """Open a read transaction: ``with database.read() as db: db.execute(...)``. It sees one state all along.

        Inside a transaction of the same thread it is part of that.
        """
        return Read(self)

    def write(self) -> Write:
        """Open a write transaction, committed when the block ends and rolled back when it raises.

        Inside another one of the same thread it is a savepoint of that. Unavailable when others hold the database for
        longer than ``busy_seconds``. Inside a read transaction it is an error: what was read may be old by then.
        """
        return Write(self)

    @property
    def in_transaction(self) -> bool:
        """Whether the calling thread is in a write transaction."""
        with self._lock:
            return self._depth > 0

    def after_commit(self, action: Callable[[], None]) -> None:
        """Run ``action`` once the outermost transaction is committed and its lock released; never if it is not.

        What it raises comes out of the ``with`` block, after the other actions have run; the transaction stays committed.
        """
        assert self._depth
        self._after_commit.append(action)

    def on_rollback(self, action: Callable[[bool], None]) -> None:
        """Run ``action(exclusive)`` if this transaction or one around it is rolled back, the latest action first.

        ``exclusive`` is true while the transaction still keeps other writers away, so that files may be put back; it is not
        after errors upon which SQLite gives the transaction up by itself, such as a full disk. What it raises is passed over.
        """
        assert self._depth
        self._on_rollback.append(action)

    def flush(self) -> None:
        """Wait until every committed transaction is on disk. Twice is harmless.

        Syncing the log is enough: whatever is not in it any more was copied to the database, which SQLite syncs before it
        writes the log anew.
        """
        with translated(f"sync the metadata {self.path}"):
            try:
                descriptor = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Close the connection. Harmless twice, and in a forked child, where it does nothing."""
        if self._pid != os.getpid():
            return
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                _open.discard(self)
                self._shorten_log(connection)
                connection.close()

    def _shorten_log(self, connection: apsw.Connection) -> None:
        """Copy an uncommonly long log back, for the next who opens the store has to read it; not if others are at it."""
        with suppress(OSError, apsw.Error):
            if os.stat(f"{self.path}-wal").st_size > LOG_MAX:  # noqa: PTH116
                connection.set_busy_handler(None)
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _copy_log_back(self) -> None:
        """Copy the log back where it is due, after a commit, while other threads go on. What goes wrong is left to the next."""
        if not self._copying.acquire(blocking=False):
            return
        try:
            self._copied_at = self._log_pages[0]
            with suppress(apsw.Error):
                copier = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
                try:
                    copier.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
                    # A connection that has read nothing knows of no log, and would copy none.
                    _pragma(copier, "user_version")
                    copier.wal_checkpoint()
                finally:
                    copier.close()
        finally:
            self._copying.release()

    # Opening

    def _connect(self) -> apsw.Connection:
        if apsw.SQLITE_VERSION_NUMBER < SQLITE_MINIMUM or _library_version() < SQLITE_MINIMUM:
            raise Unsupported(
                f"SQLite {apsw.sqlite_lib_version()} is too old: before 3.51.3 it may damage the metadata",
                hint="Install the apsw wheel from PyPI, which brings its own SQLite.",
            )
        with translated(f"create the store {self.config.root}"):
            make_private_folder(self.config.root)
            check_owner(self.config.root)
        connection = None
        try:
            connection = apsw.Connection(str(self.path), statementcachesize=200)
            connection.set_busy_handler(self._wait)
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            # Or SQLite plans a statement anew for each set of values, though no plan here depends on them: 10 us of a query's 15.
            connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
            try:
                version = _pragma(connection, "user_version")
                self._identity = _identity(self.path)
            except apsw.CantOpenError:
                if not self._on_read_only_file_system():
                    raise
                connection.close()
                connection = self._open_alone()
                version = _pragma(connection, "user_version")
            if version > schema.VERSION:
                raise FailedPrecondition(
                    f"the store {self.config.root} has schema version {version}, this lamella knows {schema.VERSION}",
                    hint="A newer lamella made it: upgrade this one, or choose another root (--root).",
                )
            if version < schema.VERSION:
                self._migrate(connection)
            connection.execute(
                f"PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY;"
                f"PRAGMA journal_size_limit = {LOG_MAX}"
            ).fetchall()
            connection.set_wal_hook(partial(_note_log, self._log_pages))  # in the place of SQLite's own
        except apsw.Error as error:
            raise self._translate(error) from error
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        return connection

    def _open_alone(self) -> apsw.Connection:
        """Open for reading what lies on a read-only file system without the log's index, which SQLite would have to make.

        Nobody else has it open, or the index (``-shm``) would be there. A log is read without one and without locks; where
        there is no log either, the file alone is the database.
        """
        from urllib.parse import quote

        log = Path(f"{self.path}-wal").exists()
        connection = apsw.Connection(
            f"file:{quote(str(self.path))}?{'vfs=unix-none' if log else 'immutable=1'}",
            flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
        )
        if log:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()  # keeps the index in memory
        return connection

    def _migrate(self, connection: apsw.Connection) -> None:
        """Bring the schema up to date; one process at a time, the others find it done.

        The file lock is there because switching a new database to WAL mode fails at once, without the busy handler,
        when two do it together.
        """
        lock = FileLock(self.config.root / "locks" / "schema", what="the metadata schema", transient=True)
        with lock:
            fill(self.config.root)
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            connection.execute("PRAGMA foreign_keys = OFF").fetchall()
            connection.execute("BEGIN IMMEDIATE")
            try:
                version = _pragma(connection, "user_version")
                for script in schema.MIGRATIONS[version:]:
                    connection.execute(script).fetchall()
                if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
                    raise DataLoss(f"the metadata of {self.config.root} has references to rows that are gone")
                if version < schema.VERSION:
                    connection.execute(f"PRAGMA user_version = {schema.VERSION}")
                    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    # Waiting and errors

    def _wait(self, attempts: int) -> bool:
        """Sleep a little while another process writes. SQLite's own handler sleeps where Ctrl-C cannot reach it."""
        now = time.monotonic()
        if attempts == 0:
            self._waiting_since = now
        if now - self._waiting_since > self.busy_seconds:
            return False
        time.sleep(min(_POLL_MAX, _POLL_FIRST * (attempts + 1)))
        return True

    def _translate(self, error: apsw.Error) -> LamellaError:
        if isinstance(error, (apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError)):
            cause = self._cause()
            if cause == errno.EROFS:
                return PermissionDenied(
                    f"the metadata {self.path} cannot be written: the file system is read-only",
                    hint="Mount it read-write (the kernel's log says why it is not), or choose another root (--root).",
                )
            if cause == errno.ENOSPC:
                error = apsw.FullError()
            elif cause == errno.EACCES:
                error = apsw.ReadOnlyError()
        for kind, (ours, problem, hint) in _ERRORS.items():
            if isinstance(error, kind):
                return ours(f"the metadata {self.path} {problem}", hint=hint)
        return Internal(
            f"the metadata {self.path}: {type(error).__name__}: {error}",
            hint="This is a defect; please report it.",
        )

    def _cause(self) -> int:
        """Say which system error is behind one of SQLite's, as far as it can be told: EROFS, ENOSPC, EACCES or 0."""
        last = self._connection.system_errno if self._connection is not None else 0
        if last == errno.EROFS or self._on_read_only_file_system():
            return errno.EROFS
        if last in (errno.ENOSPC, errno.EDQUOT) or self._disk_is_full():
            return errno.ENOSPC
        return errno.EACCES if last in (errno.EACCES, errno.EPERM) else 0

    def _on_read_only_file_system(self) -> bool:
        try:
            return bool(os.statvfs(self.config.root).f_flag & os.ST_RDONLY)
        except OSError:
            return False

    def _disk_is_full(self) -> bool:
        try:
            return os.statvfs(self.config.root).f_bavail == 0
        except OSError:
            return False

    # Transactions (called by Read and Write)

    def _acquire(self) -> apsw.Connection:
        """Take the thread lock, which the caller must release."""
        if self._pid != os.getpid():
            raise _forked()
        if _still.forking and not self._depth and not self._readers:
            # Or a thread that writes all the time would never let the fork have the lock.
            with _still.opening:
                pass
        if not self._lock.acquire(blocking=False):
            began = time.monotonic()
            self._lock.acquire()
            self._note_wait(time.monotonic() - began, "another thread")
        if self._connection is None:
            self._lock.release()
            raise FailedPrecondition(f"the store {self.config.root} is closed", hint="Open a new client.")
        return self._connection

    def _begin_read(self) -> apsw.Connection:
        connection = self._acquire()
        try:
            if not self._depth and not self._readers:
                connection.execute("BEGIN")
            self._readers += 1
        except BaseException as error:
            self._lock.release()
            if isinstance(error, apsw.Error):
                raise self._translate(error) from error
            raise
        return connection

    def _end_read(self, error: BaseException | None) -> None:
        if self._pid != os.getpid():
            raise _forked()
        connection = self._connection
        assert connection is not None
        try:
            self._readers -= 1
            if not self._depth and not self._readers and connection.in_transaction:
                connection.execute("COMMIT")
            if isinstance(error, apsw.Error):
                raise self._translate(error) from error
        finally:
            self._lock.release()

    def _begin_write(self) -> apsw.Connection:
        connection = self._acquire()
        try:
            if self._readers and not self._depth:
                raise Internal("a write transaction was opened inside a read transaction")
            if self._depth:
                connection.execute("SAVEPOINT inner_write")
            else:
                self._check_identity()
                self._begin_immediate(connection)
        except BaseException as error:
            if not self._depth and not self._readers and connection.in_transaction:
                connection.execute("ROLLBACK")
            self._lock.release()
            if isinstance(error, apsw.Error):
                raise self._translate(error) from error
            raise
        self._depth += 1
        return connection

    def _begin_immediate(self, connection: apsw.Connection) -> None:
        """Take SQLite's write lock."""
        self._waiting_since = 0.0
        try:
            connection.execute("BEGIN IMMEDIATE")
        finally:
            self._held_since = time.monotonic()
            if self._waiting_since:
                self._note_wait(self._held_since - self._waiting_since, "another process")

    def _note_wait(self, seconds: float, reason: str) -> None:
        self.metrics.observe(_WAIT, seconds)
        _log.debug(
            "waited %(seconds).3f s for %(reason)s that wrote",
            seconds=seconds,
            lock="database",
            reason=reason,
        )

    def _note_held(self, seconds: float) -> None:
        self.metrics.observe(self.held, seconds)

    def _check_identity(self) -> None:
        """Refuse to write to a database that nobody will find any more."""
        with translated(f"write to the metadata {self.path}"):
            if self._identity is not None and _identity(self.path) != self._identity:
                raise FailedPrecondition(
                    f"the store {self.config.root} was removed or replaced while it was open",
                    hint="Open a new client.",
                )

    def _end_write(self, error: BaseException | None, after_mark: int, rollback_mark: int) -> None:
        if self._pid != os.getpid():
            raise _forked()
        connection = self._connection
        assert connection is not None
        actions: list[Callable[[], None]] = []
        due = False
        try:
            if error is None:
                try:
                    connection.execute("COMMIT" if self._depth == 1 else "RELEASE inner_write")
                except BaseException as failure:
                    self._roll_back(connection, after_mark, rollback_mark)
                    if isinstance(failure, apsw.Error):
                        raise self._translate(failure) from failure
                    raise
                if self._depth == 1:
                    actions, self._after_commit = self._after_commit, []
                    self._on_rollback.clear()
                    due = self._is_log_due(connection)
            else:
                self._roll_back(connection, after_mark, rollback_mark)
                if isinstance(error, apsw.Error):
                    raise self._translate(error) from error
        finally:
            self._depth -= 1
            if not self._depth:
                self._note_held(time.monotonic() - self._held_since)
            self._lock.release()
        try:
            _run_all(actions)
        finally:
            if due:
                self._copy_log_back()

    def _is_log_due(self, connection: apsw.Connection) -> bool:
        """Say, after a commit, whether the log is to be copied back once others may write. One that is too long is at once."""
        pages = self._log_pages[0]
        if pages < self._copied_at:
            self._copied_at = 0  # it was begun anew
        if pages >= LONG_LOG * CHECKPOINT_PAGES:
            with suppress(apsw.Error):
                connection.wal_checkpoint()
            return False
        return pages - self._copied_at >= CHECKPOINT_PAGES

    def _roll_back(self, connection: apsw.Connection, after_mark: int, rollback_mark: int) -> None:
        undo = self._on_rollback[rollback_mark:]
        del self._on_rollback[rollback_mark:]
        del self._after_commit[after_mark:]
        try:
            exclusive = connection.in_transaction
            for action in reversed(undo):
                with suppress(LamellaError, OSError):  # what matters is why the transaction failed
                    action(exclusive)
        finally:
            if connection.in_transaction:
                connection.execute(
                    "ROLLBACK" if self._depth == 1 else "ROLLBACK TO inner_write; RELEASE inner_write"
                )

    def _after_fork(self, *, still: bool) -> None:
        """Part with the inherited connection in the child. ``still``: no thread was inside SQLite at the fork.

        An idle one is closed then: its locks are the parent's, nothing is written. One in the middle of a transaction or a
        statement must never be closed, not even when the child's interpreter ends: closing would roll the parent's transaction
        back in the shared log index, or wait for a thread that the fork did not bring along. Nobody can reach it any more.
        """
        connection, self._connection = self._connection, None
        self._lock, self._copying = threading.RLock(), threading.RLock()
        if connection is None:
            return
        if still and not self._depth and not self._readers:
            connection.close()
            return
        import ctypes  # 3 ms, in the rare child that needs it

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


class Rows(Protocol):
    """What a statement gave: tuples, one a row."""

    def fetchone(self) -> Any:
        """Return the next row, or None."""

    def fetchall(self) -> list[Any]:
        """Return all rows that are left."""

    def __iter__(self) -> Iterator[Any]: ...


class Transaction(Protocol):
    """What a transaction can do: the part of apsw.Connection that is used, its values not typed by SQLite's union."""

    def execute(self, statements: str, bindings: Sequence[Any] | Mapping[str, Any] | None = None, /) -> Rows:
        """Run SQL; values stand for ``?`` or ``:name``."""

    def executemany(self, statements: str, sequence: Iterable[Sequence[Any]], /) -> Rows:
        """Run SQL once for each set of values."""


class Read:
    """The context that :meth:`Database.read` gives."""

    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> Transaction:
        return self._database._begin_read()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database._end_read(error)


class Write:
    """The context that :meth:`Database.write` gives. Use it once."""

    __slots__ = ("_after_mark", "_database", "_rollback_mark")

    def __init__(self, database: Database) -> None:
        self._database = database
        self._after_mark = self._rollback_mark = 0

    def __enter__(self) -> Transaction:
        database = self._database
        connection = database._begin_write()
        self._after_mark = len(database._after_commit)
        self._rollback_mark = len(database._on_rollback)
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database._end_write(error, self._after_mark, self._rollback_mark)


_ERRORS: dict[type[apsw.Error], tuple[type[LamellaError], str, str]] = {
    apsw.BusyError: (
        Unavailable,
        "stays busy: another process holds it",
        "Try again; if it persists, look for a process that hangs (fuser metadata.db).",
    ),
    apsw.LockedError: (Unavailable, "is busy", "Try again."),
    apsw.FullError: (
        ResourceExhausted,
        "cannot grow: the disk is full",
        "Free some space: remove images, then run lamella gc.",
    ),
    apsw.TooBigError: (ResourceExhausted, "takes no value of that size", "Use shorter labels."),
    apsw.NoMemError: (ResourceExhausted, "needs more memory than there is", "Free some memory."),
    apsw.ReadOnlyError: (
        PermissionDenied,
        "cannot be written",
        "Run as the user who owns the store, or choose another root (--root).",
    ),
    apsw.CantOpenError: (
        PermissionDenied,
        "cannot be opened",
        "Run as the user who owns the store, or choose another root (--root).",
    ),
    apsw.PermissionsError: (
        PermissionDenied,
        "cannot be used",
        "Run as the user who owns the store, or choose another root (--root).",
    ),
    apsw.CorruptError: (DataLoss, "is damaged", "Look for damage: lamella fsck."),
    apsw.NotADBError: (DataLoss, "is not a metadata database", "Choose another root (--root)."),
    apsw.IOError: (
        Unavailable,
        "cannot be read or written",
        "Look at the kernel's log for errors of the disk.",
    ),
}


def _library_version() -> int:
    major, minor, patch = (int(part) for part in apsw.sqlite_lib_version().split(".")[:3])
    return major * 1_000_000 + minor * 1000 + patch


def _run_all(actions: list[Callable[[], None]]) -> None:
    """Run actions; the first error comes when all have run."""
    failures = []
    for action in actions:
        try:
            action()
        except LamellaError as failed:  # the others are not to suffer
            failures.append(failed)
    if failures:
        raise failures[0]


def _note_log(noted: list[int], _: apsw.Connection, __: str, pages: int) -> int:
    """Note how many pages the log has after a commit."""
    noted[0] = pages
    return apsw.SQLITE_OK


def _identity(path: Path) -> tuple[int, int] | None:
    """Say which file a path leads to; None for none."""
    try:
        found = os.stat(path)  # noqa: PTH116 (before each write transaction)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _pragma(connection: apsw.Connection, name: str) -> int:
    row = connection.execute(f"PRAGMA {name}").fetchone()
    value = row[0] if row else 0
    assert isinstance(value, int)
    return value


def _forked() -> FailedPrecondition:
    return FailedPrecondition(
        "this store was opened before a fork, in the parent process",
        hint="Open a new client in the child process.",
    )


class _Still:
    """Keeps all threads out of SQLite while the process forks.

    Its connections share locks of their own (memory, file descriptors). A child that inherited one held would wait for ever
    where it closes a connection.
    """

    def __init__(self) -> None:
        self.opening = threading.RLock()
        self.forking = False
        self._held: list[threading.RLock] = []
        self._complete = False

    def before(self) -> None:
        """Wait for whoever is in a transaction, but not long: a child closes nothing then."""
        deadline = time.monotonic() + FORK_SECONDS
        self._complete = self.forking = self._take(self.opening, deadline)
        for database in list(_open):
            for lock in (database._lock, database._copying):
                self._complete = self._complete and self._take(lock, deadline)

    def _take(self, lock: threading.RLock, deadline: float) -> bool:
        taken = lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
        if taken:
            self._held.append(lock)
        return taken

    def in_parent(self) -> None:
        """Let the threads go on."""
        self.forking = False
        held, self._held = self._held, []
        for lock in held:
            lock.release()

    def in_child(self) -> None:
        """Part with what was inherited."""
        self._held, self.forking = [], False
        self.opening = threading.RLock()
        for database in list(_open):
            database._after_fork(still=self._complete)


_still = _Still()
os.register_at_fork(before=_still.before, after_in_parent=_still.in_parent, after_in_child=_still.in_child)

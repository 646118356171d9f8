"""The task of one container: its bundle on disk, the launcher that starts it, and how it stands.

How it stands is never stored by us: the monitor holds a lock while it lives and leaves ``exit.json`` when the container has
ended. Neither lock nor exit record: the monitor was killed or the machine restarted, and the state is ``unknown``. The lock is
in the store, beside the log, so that one container has one monitor wherever its bundle is, and where it is gone: who logs out
loses the session's folder, and not the container.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from lamella import _core
from lamella.config import DEFAULT_RUNTIME, Config, is_own_runtime
from lamella.containers.log_config import LogConfig
from lamella.containers.monitor import Attached, Connection, Exit, Reply, TaskEnded, _Failure, raise_failure
from lamella.containers.networks import Connection as NetworkConnection
from lamella.containers.networks import is_recorded, record_path
from lamella.containers.restart_policy import RestartPolicy, Restarts
from lamella.disk import is_there, make_private_folder, make_state_folder, names_in, storage_error
from lamella.errors import (
    FailedPrecondition,
    LamellaError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from lamella.events.spool import spool_path
from lamella.lazy import cached_property
from lamella.locks import FolderLock
from lamella.logs import Log
from lamella.snapshots import Mount
from lamella.state import keep_state
from lamella.structs import Malformed, Struct, decode, encode, read_json
from lamella.typings import Any, Literal

_log = Log("lamella.containers")
HOOKS_AT_END = "poststop.json"
"""What a bundle has of what is to follow a run, hooks as a rule, until that has been done."""
_EXIT = "exit.json"
_LOG = "log.jsonl"
_LOCK = "lock"
SETTLE_SECONDS = 60.0
"""How long a start that failed, or lost its caller, may take to be over: milliseconds, but for a machine with too much to do."""
OUTPUT_SECONDS = 2.0
"""How long the output of a run that has ended may wait in a path that somebody has open, and does not read (containerd's)."""
Status = Literal["created", "running", "restarting", "stopped", "unknown"]
Hold = Literal["program", "start"]
"""What a container waits for when all is ready: its program, which comes later, or the word to start."""
RECORDS = (_EXIT, "restart.json", "execs.json", "stdio.json", "control.sock", "pid")
"""What a run leaves in the bundle."""


class Paths(Struct, frozen=True, kw_only=True):
    """Where the streams of a process lead, as containerd's API has it (the launcher's ``Redirections``).

    Empty for nowhere, the path of a FIFO, or, of output, ``file:///PATH``.
    """

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""


class Started(Struct, frozen=True):
    """The launcher's answer."""

    pid: int = 0
    monitor_pid: int = 0
    started_at: str = ""
    warnings: list[str] = []
    error: _Failure | None = None


class Task:
    """The task of one container. The object is a view of the folder and holds nothing open."""

    def __init__(self, config: Config, container_id: str) -> None:
        self._path = f"{config.state}/tasks/{config.namespace}/{container_id}"
        self._kept = f"{config.root}/containers/{config.namespace}/{container_id}"
        self._lock = f"{self._kept}/{_LOCK}"
        self._config = config
        self._id = container_id
        self._events = {
            "spool": str(spool_path(config.root)),
            "namespace": config.namespace,
            "container": container_id,
        }

    @cached_property
    def folder(self) -> Path:
        """The bundle."""
        return Path(self._path)

    @cached_property
    def log_folder(self) -> Path:
        """What stays of it when the machine starts anew."""
        return Path(self._kept)

    def _has(self, name: str) -> bool:
        """Say whether the bundle has a file."""
        return is_there(f"{self._path}/{name}")

    @cached_property
    def network_record(self) -> Path:
        """What the container is plugged into while it is."""
        return record_path(self._config, self._id)

    @property
    def log_path(self) -> Path:
        """The log, one JSON object a line; not there before the first output. Older files have a number behind the name."""
        return self.log_folder / _LOG

    @property
    def _kept_exit(self) -> Path:
        """The copy of the exit record that is there after a restart of the machine, with which the state folder goes."""
        return self.log_folder / _EXIT

    def start(
        self,
        connect: Callable[[], NetworkConnection],
        rootfs: list[Mount],
        sources: list[dict[str, Any]],
        *,
        attach: bool,
        stdin: bool,
        paths: Paths | None = None,
        log: LogConfig,
        restart: RestartPolicy,
        init: bool,
        runtime: str = DEFAULT_RUNTIME,
        is_kept: bool,
        keep_cgroup_parents: bool = False,
        hold: Hold | None = None,
        confirm: Callable[[], object],
        before_reset: Callable[[], None],
    ) -> tuple[Started, Attached | None]:
        """Write the bundle and launch it.

        ``sources`` are what the spec's bind mounts of ``sources/N`` show (the launcher's request has them).
        ``connect`` plugs the container into its network, and is called when nothing of its last run is left. ``confirm`` raises
        NotFound when the container was removed; it is called when nobody can do that any more. ``before_reset`` is called
        before the records of the last run go. ``runtime`` is the name of the OCI runtime. ``is_kept`` says that the exit record
        is to outlive the machine, ``keep_cgroup_parents`` that the cgroups that its own is in are to outlive it. With ``hold``
        its program waits for :meth:`release` (``"program"``) or :meth:`begin` (``"start"``). ``paths`` are where its streams
        lead beside clients and the log. Errors: FailedPrecondition when it runs already, Unavailable when it does so out of
        reach, those of ``connect``, CommandNotFound and CommandNotExecutable for the program, NotFound for the runtime, and
        what else the launcher reports; after one nothing of the task is left.
        """
        program = _program(runtime)
        with self.held(confirm):
            self._reset(before_reset)
            network = connect()
            try:
                sources = self._write_bundle(network, sources, program, init=init)
                if paths is not None:
                    _write(self.folder / "stdio.json", encode(paths), 0o600)
                network.tell()
                return self._launch(
                    rootfs,
                    sources,
                    own_network=network.alone and program is None,
                    namespaces=network.namespaces,
                    attach=attach,
                    stdin=stdin,
                    paths=paths,
                    log=log,
                    restart=restart,
                    init=init,
                    runtime=program,
                    is_kept=is_kept,
                    keep_cgroup_parents=keep_cgroup_parents,
                    hold=hold,
                )
            except BaseException:
                self._unplug()
                raise
            finally:
                network.close()

    def _reset(self, before_reset: Callable[[], None]) -> None:
        """Take away what is left of the last run; its records go."""
        if names_in(self._path) == ["rootfs"] and not self._has_run():
            self._unplug()  # a start that was killed may have begun with that
            return
        if self._settled():
            raise FailedPrecondition("the container is running already")
        self._await_monitor()
        self._clean_up()
        self._run_hooks_at_end()
        self._unplug()
        before_reset()
        for name in RECORDS:
            (self.folder / name).unlink(missing_ok=True)
        self._kept_exit.unlink(missing_ok=True)

    def _write_bundle(
        self,
        network: NetworkConnection,
        sources: list[dict[str, Any]],
        runtime: Path | None,
        *,
        init: bool,
    ) -> list[dict[str, Any]]:
        """Write the bundle anew; return its sources."""
        spec = network.spec
        if runtime is not None:
            from lamella.containers.runtimes import bundle_for

            spec, sources = bundle_for(
                spec, sources, self.folder, init=init, has_network=network.namespaces is not None
            )
        try:
            _write(f"{self._path}/config.json", spec, 0o600)
            for name, data in network.files.items():
                # The container may write them. Beside the log, for there it fills the disk that its root fills anyway;
                # the state folder is the machine's memory as a rule, which every other service needs too.
                # Those of the last run never in place: they may be written to by others of its networks.
                _place(f"{self._kept}/{name}", data, 0o644)
        except OSError as error:
            raise _disk_error(error, self.folder) from error
        return sources

    def _launch(
        self,
        rootfs: list[Mount],
        sources: list[dict[str, Any]],
        *,
        own_network: bool,
        namespaces: tuple[int, int] | None,
        attach: bool,
        stdin: bool,
        paths: Paths | None,
        log: LogConfig,
        restart: RestartPolicy,
        init: bool,
        runtime: Path | None,
        is_kept: bool,
        keep_cgroup_parents: bool,
        hold: Hold | None,
    ) -> tuple[Started, Attached | None]:
        request = encode(
            {
                "version": 2,
                "bundle": self._path,
                "lock": self._lock,
                "rootfs": [{"type": m.type, "source": m.source, "options": m.options} for m in rootfs],
                "log": None
                if log.driver == "none"
                else {"path": f"{self._kept}/{_LOG}", "max_size": log.max_size, "max_file": log.max_file},
                "attach": attach,
                "stdin": stdin,
                "hold": hold is not None,
                "program_at_start": hold == "program",
                "events": self._events,
                "restart": restart.for_monitor(),
                "init": init,
                "exit_record": f"{self._kept}/{_EXIT}" if is_kept else None,
                "sources": sources,
                "network": str(self.network_record),
                "own_network": own_network,
                "keep_cgroup_parents": keep_cgroup_parents,
                **({"runtime": str(runtime)} if runtime is not None else {}),
                **({"stdio": paths} if paths is not None else {}),
                **({"deleted_later": True} if hold == "start" else {}),
            }
        )
        ours, theirs = _socket.socketpair() if attach else (None, None)
        try:
            reply = _core.launch(request, [theirs.fileno()] if theirs is not None else [], namespaces)
            started = decode(reply, Started)
            if started.error is not None:
                raise_failure(started.error)
        except BaseException:
            if ours is not None:
                ours.close()
            raise
        finally:
            if theirs is not None:
                theirs.close()
        return started, Attached(Connection(ours)) if ours is not None else None

    def _make_folders(self) -> None:
        """Make what is not there of them. Unavailable when it runs without: nobody could reach for it there."""
        if self._is_lost():
            raise self._lost()
        try:
            make_state_folder(self._config.state)
            keep_state(self._config)
        except PermissionDenied:
            raise
        except OSError as error:
            raise _disk_error(error, self.folder) from error
        try:
            lost = not is_there(self._path) and self._has_run()
            for folder in (self._path, self._kept, f"{self._path}/rootfs"):
                make_private_folder(folder)
            if lost:
                self._restore()
        except OSError as error:
            raise _disk_error(error, self.folder) from error

    def _has_run(self) -> bool:
        """Say whether it was ever started: then its files of /etc are there."""
        return bool(names_in(self._kept))

    def _restore(self) -> None:
        """Put the record of the last run back after a restart of the machine; without one it ran when that came."""
        try:
            _write(f"{self._path}/{_EXIT}", self._kept_exit.read_bytes(), 0o644)
        except FileNotFoundError:
            (self.folder / "pid").touch()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the bundle's folder, against other starts and removals. FileNotFoundError when it is gone, also by then."""
        lock = FolderLock(self.folder, what="the container's task")
        while not (os.path.isdir(self._path) and lock.try_acquire()):  # noqa: PTH112 (hot)
            if not self.folder.is_dir():
                raise FileNotFoundError(self.folder)
            time.sleep(0.001)
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def held(self, confirm: Callable[[], object]) -> Iterator[None]:
        """Keep starts and removals away for the length of a block, whether it runs or not.

        ``confirm`` raises NotFound when the container was removed; it is called when nobody can do that any more. Who waited for
        the folder may find it gone, with the container.
        """
        try:
            with ExitStack() as stack:
                while True:
                    self._make_folders()
                    try:
                        stack.enter_context(self._exclusive())
                        break
                    except FileNotFoundError:
                        confirm()
                try:
                    confirm()
                except NotFound:
                    self._remove_folders()
                    raise
                yield
        except FileNotFoundError:
            raise NotFound("the container was removed") from None

    @contextmanager
    def at_rest(self, confirm: Callable[[], object]) -> Iterator[bool]:
        """Keep a container that does not run from being started, for the length of a block; give False when it runs.

        ``confirm`` as for :meth:`held`: NotFound. Nothing has its root mounted meanwhile.
        """
        with self.held(confirm):
            resting = not self._settled()
            if resting:
                self._await_monitor()
                yield True
        if not resting:
            yield False

    def update(self, resources: dict[str, Any]) -> list[str]:
        """Change limits (sections of the spec's resources) of what runs and of the bundle, from which the monitor runs it again.

        Harmless when nothing runs, for a start writes it anew. Returns the monitor's warnings. After an error all is as it was.
        """
        if not self.running():
            return []
        path = self.folder / "config.json"
        try:
            before = path.read_bytes()
            spec = read_json(before)
            spec["linux"]["resources"] = (spec["linux"].get("resources") or {}) | resources
            _replace(path, encode(spec))
        except OSError as error:
            raise _disk_error(error, self.folder) from error
        try:
            return self._change_limits(resources)
        except BaseException:
            _replace(path, before)
            raise

    def set_restart_policy(self, policy: RestartPolicy) -> None:
        """Have the monitor follow another policy from the container's next end on. Harmless when nothing runs."""
        with suppress(NotFound):
            self.ask({"op": "update", "restart": policy.for_monitor()})

    def _change_limits(self, resources: dict[str, Any]) -> list[str]:
        request = dict(resources)
        if "memory" in request:  # v2 would kill where v1 refuses
            request["memory"] = request["memory"] | {"checkBeforeUpdate": True}
        try:
            with closing(self.connect()) as connection:
                connection.request({"op": "update", "resources": request})
                reply = connection.reply()
        except (NotFound, BrokenPipeError, ConnectionResetError):
            return []  # it has just ended
        except FailedPrecondition:
            if self.status() == "restarting" or not self.running():
                return []  # the next run reads the bundle
            raise
        return reply.warnings if reply is not None else []

    def join_network(self, namespace: str) -> None:
        """Have further runs of what runs now join the network namespace that is kept on a file."""
        from lamella.containers.networks.joining import join

        path = self.folder / "config.json"
        try:
            _replace(path, join(path.read_text(), namespace))
        except OSError as error:
            raise _disk_error(error, self.folder) from error

    def running(self) -> bool:
        """Say whether the container runs: a monitor lives, and has not recorded the end."""
        return not self._has(_EXIT) and self.monitored()

    def has_logged_all(self) -> bool:
        """Say whether the log holds all that it will: nothing runs, or what has ended has been read to its end."""
        return not self.monitored() or (self.exit() is not None and not self._has("pid"))

    def _settled(self) -> bool:
        """Say whether the container runs, once a start that has failed or lost its caller is over."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while self.running() and not self._begun() and time.monotonic() < deadline:
            time.sleep(0.001)
        return self.running()

    def _begun(self) -> bool:
        """Say whether a run has begun since the start: the present one, or one before it."""
        return self._has("pid") or self._has("restart.json")

    def monitored(self) -> bool:
        """Say whether a monitor lives. One that has recorded the end still has cgroups to remove."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _is_lost(self) -> bool:
        """Say whether a monitor lives whose bundle is not here: it was taken away, or is elsewhere."""
        # Looked at twice: a start makes the bundle before there is a monitor.
        return not is_there(self._path) and self.monitored() and not is_there(self._path)

    def connect(self) -> Connection:
        """Connect to the monitor. TaskEnded, which is NotFound, when there is none, Unavailable when it is out of reach."""
        try:
            return Connection.open(self.folder)
        except TaskEnded:
            if self._is_lost():
                raise self._lost() from None
            raise

    def _holder(self) -> _Holder:
        """Read what the lock says."""
        try:
            return decode(Path(self._lock).read_bytes(), _Holder)
        except (FileNotFoundError, Malformed):
            return _Holder()

    def _lost(self) -> Unavailable:
        holder = self._holder()
        if holder.machine not in ("", os.uname().nodename):
            return Unavailable(
                f"the container runs on another machine, {holder.machine}",
                hint="Reach for it there, or end it there.",
            )
        if is_there(holder.bundle):
            return Unavailable(
                f"the container runs with another state folder: {holder.bundle}",
                hint=f"Name that one: --state {Path(holder.bundle).parents[2]}, or Client(state=...).",
            )
        return Unavailable(
            f"the container runs and cannot be reached: its state folder {self._path} was removed",
            hint=f"End it by its monitor: kill -KILL {holder.pid}. A folder that goes with the login session is kept by "
            "loginctl enable-linger, or by a state elsewhere (--state, LAMELLA_STATE).",
        )

    def _has_hooks_to_run(self) -> bool:
        """Say whether what follows a run's end has not been done yet."""
        return self._has(HOOKS_AT_END)

    def _run_hooks_at_end(self) -> None:
        """Do what follows a run where no monitor has: it was killed, or that was left to who takes leave. Harmless twice.

        For when the bundle has no pid any more, or no monitor.
        """
        if self._has_hooks_to_run():
            from lamella.containers.hooks import run_left

            run_left(self.folder)

    def _await_monitor(self) -> None:
        """Wait until the monitor of an ended run has cleaned up, which takes milliseconds. FailedPrecondition if it stays."""
        now = time.monotonic()
        deadline, output_deadline = now + SETTLE_SECONDS, now + OUTPUT_SECONDS
        while self.monitored():
            if self._has_hooks_to_run() and self._has("pid"):  # they end by themselves, or by their time-outs
                deadline = time.monotonic() + SETTLE_SECONDS
            if time.monotonic() > output_deadline:
                output_deadline = deadline
                with suppress(LamellaError, OSError):
                    self._request({"op": "drop_output"}).close()
            if time.monotonic() > deadline:
                raise FailedPrecondition(
                    "the container's last run has ended, and a client that is attached to it does not take its output",
                    hint="End that client, or have it read.",
                )
            time.sleep(0.001)

    def status(self) -> Status:
        """Say how the task stands."""
        if self.exit() is not None:
            return "stopped"
        monitored = self.monitored()
        # A monitor writes the pid when the program runs, and takes it away at the end: a start that is under way, or has
        # failed a moment ago, has a monitor and no pid.
        if not is_there(self._path):  # it was taken away, or the machine was restarted
            ended: Status = "unknown" if self._has_run() else "created"
            return "running" if monitored else ended
        begun = self._has("pid")
        waits = not begun and self._has("restart.json")
        if self.exit() is not None:
            return "stopped"  # it ended between the looks
        if waits:
            return "restarting" if monitored else "unknown"
        if not begun:
            return "created"
        return "running" if monitored else "unknown"

    def exit(self) -> Exit | None:
        """Return the exit record, None before there is one.

        The monitor puts it in place whole; one that a power cut has spoiled, where the state is on a disk, says nothing.
        """
        try:
            try:
                with open(f"{self._path}/{_EXIT}", "rb", buffering=0) as file:  # noqa: PTH123 (hot)
                    data = file.readall()
            except FileNotFoundError:
                if is_there(self._path):
                    return None
                data = self._kept_exit.read_bytes()  # the machine was restarted
            return decode(data, Exit)
        except (FileNotFoundError, Malformed):
            return None

    def restarts(self) -> Restarts | None:
        """Return what is known of further runs since the start, None when there was only one."""
        try:
            return decode((self.folder / "restart.json").read_bytes(), Restarts)
        except (FileNotFoundError, NotADirectoryError, Malformed):
            return None

    def past_run(self) -> dict[str, Any] | None:
        """Give what the records say of a run that is over (the fields of /tasks/delete); None when there was none."""
        with suppress(NotADirectoryError):
            ended = self.exit()
            if ended is None and not self._has("pid") and (restarts := self.restarts()):
                ended = restarts.exit  # its monitor was killed between two runs
            if ended is not None:
                told = {"exit_status": ended.exit_code, "exited_at": ended.exited_at}
                return told if ended.pid is None else told | {"pid": ended.pid}
        return {} if self._has("pid") else None

    def pid(self) -> int | None:
        """Return the host's pid of the container's first process while it runs."""
        if not self.running():
            return None
        try:
            return int((self.folder / "pid").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def wait(self, deadline: float | None = None) -> Exit:
        """Wait for the end. DeadlineExceeded at ``deadline``, FailedPrecondition when it never ran or is unknown."""
        try:
            connection = self.connect()
        except NotFound:
            return self._exit_record()
        try:
            connection.request({"op": "wait"})
            while (reply := connection.reply(deadline)) is not None:
                if reply.exit is not None:
                    return reply.exit
        except BrokenPipeError:
            pass
        finally:
            connection.close()
        return self._exit_record()

    def _exit_record(self) -> Exit:
        record = self.exit()
        if record is None:
            raise FailedPrecondition(
                "the container has no running task and no exit status",
                hint="Start it; if it ran, its monitor was killed or the machine restarted.",
            )
        return record

    def ask(self, document: dict[str, Any]) -> None:
        """Send one request to the monitor and wait for its answer. NotFound when the task has ended."""
        if self.exit() is not None:
            raise _ended()
        self._request(document).close()

    def paused(self) -> bool:
        """Say whether it runs and is frozen, as its monitor knows."""
        try:
            with closing(self.connect()) as connection:
                connection.request({"op": "state"})
                reply = connection.reply()
        except (NotFound, Unavailable, BrokenPipeError, ConnectionResetError):
            return False
        return reply is not None and reply.status == "paused"

    def restart(self, signal: int, timeout: float) -> None:
        """Have the monitor end the container, by SIGKILL after ``timeout`` seconds, and run it again; wait until it runs.

        NotFound when the task has ended, and what is wrong with the program.
        """
        if self.exit() is not None:
            raise _ended()
        self._request({"op": "restart", "signal": signal, "timeout": timeout}).close()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze all processes for the length of a block, or until this process dies. NotFound when the task has ended.

        What is paused already stays so. Between two runs by its restart policy the next one waits for the end of the block.
        """
        while True:
            try:
                connection = self._request({"op": "pause", "hold": True})
                break
            except FailedPrecondition:
                if self.status() != "restarting":
                    raise
                time.sleep(0.002)  # the last run is being cleared away
        try:
            yield
        finally:
            with (
                closing(connection),
                suppress(BrokenPipeError, ConnectionResetError),
            ):  # it was killed meanwhile
                connection.request({"op": "release"})
                connection.reply()

    def release(self, spec: dict[str, Any]) -> None:
        """Run the program of a container that was started with ``hold``: the one in ``spec``, its config.json from now on.

        Errors: CommandNotFound, CommandNotExecutable, NotFound when the task has ended.
        """
        fresh = self.folder / "config.json.new"
        _write(fresh, encode(spec), 0o600)
        fresh.replace(self.folder / "config.json")
        program = {name: spec["process"][name] for name in ("args", "env")}
        self._request({"op": "start", "program": program}).close()

    def begin(self) -> None:
        """Run the program of a container that was made ready. Errors: CommandNotFound, CommandNotExecutable, NotFound."""
        self._request({"op": "start"}).close()

    def forget_run(self, confirm: Callable[[], object], before_reset: Callable[[], None]) -> None:
        """Take away all that is left of a run that is over; the container is then as if it had never been started.

        ``confirm`` and ``before_reset`` as for :meth:`start`. FailedPrecondition while it runs. Harmless twice.
        """
        with self.held(confirm):
            self._reset(before_reset)

    def attach(self, *, stdin: bool) -> Attached:
        """Join the streams from now on. NotFound when the task has ended."""
        return Attached(self._request({"op": "attach", "stdin": stdin}))

    def exec(self, process: dict[str, Any], *, stdin: bool) -> Attached:
        """Start one more process (the spec's process object); return its streams. NotFound when the task has ended."""
        return Attached(self._request({"op": "exec", "process": process, "stdin": stdin}))

    def replace_file(self, name: str, data: bytes) -> None:
        """Write a file of the bundle anew, whole or not at all."""
        try:
            _replace(self.folder / name, data)
        except OSError as error:
            raise _disk_error(error, self.folder) from error

    def question(self, document: dict[str, Any]) -> Reply:
        """Have the monitor answer a request. TaskEnded, and what it reports."""
        try:
            with closing(self.connect()) as connection:
                connection.request(document)
                reply = connection.reply()
        except (BrokenPipeError, ConnectionResetError):
            reply = None
        if reply is None:
            raise _ended()
        return reply

    def _request(self, document: dict[str, Any]) -> Connection:
        """Have the monitor accept a request; return the connection. NotFound when the task has ended, also meanwhile."""
        connection = self.connect()
        try:
            connection.request(document)
            if connection.reply() is not None:
                return connection
        except (BrokenPipeError, ConnectionResetError):
            pass
        except BaseException:
            connection.close()
            raise
        connection.close()
        raise _ended()

    def remove(
        self,
        *,
        forget: Callable[[], object] | None = None,
        stop: Callable[[], object] | None = None,
    ) -> None:
        """Remove the bundle and the log, and by ``forget`` the container's record before them.

        Unavailable when it is out of reach, FailedPrecondition while it runs, unless ``stop`` ends it. Nobody starts it
        meanwhile. Harmless twice, and when two do it at once.
        """
        if forget is not None and not is_there(self._path):
            with suppress(LamellaError, OSError):  # where no folder can be made nothing can be started
                self._make_folders()
        try:
            with self._exclusive():
                if self._settled():
                    if stop is None:
                        raise FailedPrecondition(
                            "the container is running", hint="Stop it first, or remove it with force."
                        )
                    stop()
                if forget is not None:
                    forget()
                self._remove_folders()
        except (FileNotFoundError, NotADirectoryError):
            if self.monitored():
                raise self._lost() from None
            self._clean_up()
            if forget is not None:
                forget()
            _core.remove_tree(self._kept)  # it never had a bundle, or another has just removed it

    def _remove_folders(self) -> None:
        # The pid goes after the cgroups: by now, as a rule (10 us). The bundle alone says which they are.
        while self._has("pid") and self.monitored():
            time.sleep(0.0005)
        self._clean_up()
        self._run_hooks_at_end()
        try:
            self._unplug()
        except LamellaError as error:  # a plugin that is gone, say; the record stays, and gc tries it again
            _log.warning("a network is left behind: %(reason)s", reason=str(error))
        _core.remove_tree(self._kept)
        _core.remove_tree(self._path)

    def put_right(self) -> None:
        """Take away what a killed monitor has left on the machine, unless somebody starts or removes the container now.

        Harmless twice.
        """
        lock = FolderLock(self.folder, what="the container's task")
        if not lock.try_acquire():
            return
        try:
            self._clean_up()
            if not self.monitored():
                (self.folder / "control.sock").unlink(missing_ok=True)
        finally:
            lock.release()

    def _unplug(self) -> None:
        """Take the network away of a run that is over, or was not to be; as a rule its monitor has. Harmless twice."""
        if is_recorded(self.network_record):
            from lamella.containers.networks.attachment import release

            release(self.network_record)

    def release_network(self) -> bool:
        """Take the network away that a run has left whose monitor was killed.

        False when there is none, it runs, or somebody is at it. Errors are those of
        :func:`lamella.containers.networks.attachment.release`.
        """
        if not is_recorded(self.network_record) or self.monitored():
            return False
        self._make_folders()
        lock = FolderLock(self.folder, what="the container's task")
        if not lock.try_acquire():
            return False
        try:
            if not is_recorded(self.network_record) or self.monitored():
                return False
            self._unplug()
            return True
        finally:
            lock.release()

    def _clean_up(self) -> None:
        """Take away what a monitor that was killed could not. Its socket tells: that goes last of all."""
        if self.monitored():
            return
        if self._has("control.sock"):
            try:
                cgroup = decode((self.folder / "config.json").read_bytes(), _BundleSpec).linux.cgroups_path
            except (FileNotFoundError, Malformed):
                return
        elif self._has("pid") or not is_there(self._path):  # the bundle was taken away, while it ran perhaps
            cgroup = self._holder().cgroups_path
            if not cgroup:
                return
            cgroup = f"/{cgroup}"
        else:
            return
        from lamella.containers.cgroups import end_processes, remove_cgroups

        # Not all processes end with the monitor: those of another runtime, whose keeper can be killed, too, nor those without a
        # PID namespace of the container's own.
        end_processes(cgroup)
        if self._has("runtime") and os.geteuid() != 0:
            from lamella.containers.runtimes import end_first_process

            end_first_process(self.folder)
        remove_cgroups(cgroup)


def _program(runtime: str) -> Path | None:
    """Give the program of a runtime that is not our own. Errors: those of ``find_runtime``."""
    if not runtime or is_own_runtime(runtime):
        return None
    from lamella.containers.runtimes import find_runtime

    return find_runtime(runtime)


def _ended() -> TaskEnded:
    return TaskEnded("the container's task has ended")


class _Holder(Struct, frozen=True):
    """What the lock says of the monitor that holds it, or held it last (the launcher's ``Holder``)."""

    pid: int = 0
    machine: str = ""
    bundle: str = ""
    cgroups_path: str = ""


class _BundleLinux(Struct, frozen=True, rename="camel"):
    cgroups_path: str = ""


class _BundleSpec(Struct, frozen=True):
    linux: _BundleLinux = _BundleLinux()


def _write(path: Path | str, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    _fill(descriptor, data, mode)


def _fill(descriptor: int, data: bytes, mode: int) -> None:
    """Write a fresh file, and close it. A file object would ask the kernel twice as much."""
    try:
        os.fchmod(descriptor, mode)  # whatever the umask is: users of the container read these
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
    finally:
        os.close(descriptor)


def _place(path: str, data: bytes, mode: int) -> None:
    """Write a file, where it is there already as :func:`_replace` does."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, mode)
    except FileExistsError:
        _replace(Path(path), data, mode)
    else:
        _fill(descriptor, data, mode)


def _replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file anew, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.new")
    _write(unfinished, data, mode)
    unfinished.rename(path)


def _disk_error(error: OSError, path: Path) -> Exception:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(
            f"no space left to write {path}", hint="Free space, or choose another --state."
        )
    if error.errno in (errno.EROFS, errno.EIO):
        return storage_error(error, f"write {error.filename or path}")
    return PermissionDenied(
        f"cannot write {path}: {error.strerror}", hint="Check the owner of the state folder."
    )

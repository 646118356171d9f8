"""One container: its record, and what can be done with it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial

from lamella import _core
from lamella.config import is_own_runtime
from lamella.containers.monitor import Attached, Exit, OnOutput, Stream, TaskEnded
from lamella.containers.networks import connect, describe, is_recorded, published
from lamella.containers.options import Environment, FileNames, parse_command
from lamella.containers.record import ContainerRecord, reread
from lamella.containers.restart_policy import RestartPolicy
from lamella.containers.result import RunResult, await_result
from lamella.containers.spec import exec_process
from lamella.containers.task import Hold, Paths, Started, Status, Task
from lamella.durability import Unverified
from lamella.errors import (
    CommandNotFound,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from lamella.events import spool
from lamella.logs import Log
from lamella.metadata import Transaction, timestamp
from lamella.metrics.table import EXEC_SECONDS, EXECS, START_SECONDS, STARTS
from lamella.operations import INFO, Operation, by_result, when_ok
from lamella.reserve import frees_space
from lamella.snapshots import SNAPSHOTTERS
from lamella.structs import Malformed, Struct, decode, read_json, replace, to_builtins
from lamella.tracing import span
from lamella.typings import TYPE_CHECKING, Any, Literal, Unpack, overload

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from lamella.client import Client
    from lamella.containers.branches import Branch
    from lamella.containers.cgroups import Cgroup
    from lamella.containers.conditions import Condition
    from lamella.containers.files import Archive, ArchiveData, PathStat
    from lamella.containers.limits import LimitOptions
    from lamella.containers.logs import Moment
    from lamella.containers.processes import ProcessInfo
    from lamella.containers.statistics import Statistics
    from lamella.images import Image
    from lamella.reference import Reference
    from lamella.snapshots import Change, Mount
    from lamella.transfer.commit import LayerCompression

__all__ = ["Attached", "Container"]

STOP_TIMEOUT = 10.0
_log = Log("lamella.containers")
_START = Operation(
    "start",
    "started the container %(container_name)s from %(image)s",
    log="lamella.containers",
    level=INFO,
    span="lamella.container.start",
    counts=by_result(STARTS),
    durations=when_ok(START_SECONDS),
)
_EXEC = Operation(
    "exec",
    "started %(program)r in the container %(container_name)s",
    log="lamella.containers",
    span="lamella.exec.start",
    counts=by_result(EXECS),
    durations=when_ok(EXEC_SECONDS),
)


class _Process(Struct, frozen=True):
    args: list[str] = []


class _Linux(Struct, frozen=True, rename="camel"):
    cgroups_path: str = ""


class _Spec(Struct, frozen=True):
    process: _Process = _Process()
    linux: _Linux = _Linux()


class Container:
    """One container of one namespace. The record is as it was when it was read; status, pid and exit are asked anew."""

    def __init__(self, client: Client, record: ContainerRecord) -> None:
        self._client = client.using(record.snapshotter)
        self.record = record
        self.task = Task(client.config, record.id)
        self.is_transient = (
            False  # whoever starts it will remove it, and needs no exit record after a restart of the machine
        )

    def __repr__(self) -> str:
        return f"<lamella.Container {self.name} {self.record.image} {self.status}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Container) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def id(self) -> str:
        """The identifier, unique in the store."""
        return self.record.id

    @property
    def short_id(self) -> str:
        """The first twelve characters of the identifier, as docker shows it."""
        return self.record.id[:12]

    @property
    def name(self) -> str:
        """The name, unique in the namespace."""
        return self.record.name

    @property
    def image(self) -> str:
        """The canonical name of the image it was made from."""
        return self.record.image

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels."""
        return self.record.labels

    @property
    def created_at(self) -> str:
        """When the record was made (RFC 3339, UTC)."""
        return self.record.created_at

    @property
    def snapshot_key(self) -> str:
        """The key of its active snapshot."""
        return self.record.snapshot_key

    @property
    def spec(self) -> dict[str, Any]:
        """The OCI runtime spec."""
        document: dict[str, Any] = read_json(self.record.spec)
        return document

    @property
    def runs_elsewhere(self) -> bool:
        """Whether another OCI runtime than lamella's own launcher makes it."""
        record = self.record
        return not is_own_runtime(record.runtime) or bool(
            record.extra.foreign and record.extra.foreign.program
        )

    @property
    def command(self) -> list[str]:
        """The arguments of its first process."""
        return self._own_spec.process.args

    @property
    def _own_spec(self) -> _Spec:
        """What the library itself wants of the spec, which may be of any form where another client made the record."""
        try:
            return decode(self.record.spec, _Spec)
        except Malformed:
            return _Spec()

    @property
    def mounts(self) -> list[dict[str, Any]]:
        """What is mounted in it beyond what every container has; see :func:`lamella.containers.mount_sources.describe`."""
        from lamella.containers.mount_sources import describe

        return describe(self.spec.get("mounts") or [], self.record.extra.sources, self._client.config)

    @property
    def status(self) -> Status:
        """``created``, ``running``, ``restarting``, ``stopped`` or ``unknown``.

        It is ``restarting`` between two runs, and ``unknown`` after its monitor was killed or the machine restarted.
        """
        return self.task.status()

    @property
    def pid(self) -> int | None:
        """The host's pid of its first process while it runs."""
        return self.task.pid()

    @property
    def restart_count(self) -> int:
        """How often its restart policy has run it again since it was started."""
        restarts = self.task.restarts()
        return restarts.count if restarts is not None else 0

    @property
    def exit(self) -> Exit | None:
        """How it ended, None before; a container that is run again has not."""
        return None if self.task.running() else self.task.exit()

    @property
    def exit_code(self) -> int | None:
        """Its exit status, None before the end."""
        ended = self.exit
        return ended.exit_code if ended is not None else None

    @property
    def ports(self) -> dict[str, list[dict[str, str]]]:
        """The published ports while it runs, as docker-py gives them: ``{"80/tcp": [{"HostIp": ..., "HostPort": "8080"}]}``."""
        from lamella.containers.networks.ports import bindings

        return bindings(published(self._client.config, self.record))

    @property
    def shown_ports(self) -> list[str]:
        """The ports as ``docker ps`` shows them: ``0.0.0.0:8080->80/tcp``, and ``53/udp`` for one that is only served."""
        extra = self.record.extra
        if not extra.exposed and extra.network_settings is None:
            return []
        from lamella.containers.networks.ports import show_ports

        running = self.status in ("running", "restarting")
        return show_ports(published(self._client.config, self.record), extra.exposed) if running else []

    def start(self, *, attach: bool = False) -> Attached | None:
        """Start it; with ``attach`` return its streams from the first byte on.

        Errors: FailedPrecondition when it runs already, Unavailable when it does so and its state folder was removed,
        CommandNotFound (127) and CommandNotExecutable (126) for its program, NotFound when its snapshot is gone, and what the
        kernel refuses, by the name of the step. A failed start leaves nothing running or mounted.
        """
        with self._starting():
            return self._launch(attach=attach)[1]

    def start_on(self, root: list[Mount], *, attach: bool) -> Attached | None:
        """Start it right after it was made, when it is known what its root is mounted from. Errors: those of :meth:`start`."""
        with self._starting():
            return self._launch(attach=attach, root=self._transient(root))[1]

    def hold(self) -> Attached:
        """Make everything ready for its program, which waits for :meth:`lamella.containers.task.Task.release`."""
        _, attached = self._launch(attach=True, hold="program")
        assert attached is not None
        return attached

    def prepare_task(self, root: list[Mount] | None, paths: Paths) -> Started:
        """Make everything ready for its program, which waits for :meth:`lamella.containers.task.Task.begin`.

        ``root`` is what its root is mounted from; None: its snapshot. Errors: those of :meth:`start`.
        """
        with self._starting():
            return self._launch(attach=False, hold="start", root=root, paths=paths)[0]

    def _starting(self) -> AbstractContextManager[object]:
        record = self.record
        return _START(
            self._client.database.metrics, container=record.id, container_name=record.name, image=record.image
        )

    def _launch(
        self,
        *,
        attach: bool,
        hold: Hold | None = None,
        root: list[Mount] | None = None,
        paths: Paths | None = None,
    ) -> tuple[Started, Attached | None]:
        record = self.record
        started, attached = self.task.start(
            lambda: connect(self._client, self.record),
            self._root() if root is None else root,
            self._sources(),
            attach=attach,
            stdin=record.extra.stdin if paths is None else bool(paths.stdin),
            paths=paths,
            log=record.extra.log,
            restart=record.extra.restart,
            init=record.extra.init,
            runtime=(record.extra.foreign and record.extra.foreign.program) or record.runtime,
            is_kept=not self.is_transient,
            keep_cgroup_parents=attach and hold is None and self.is_transient and self._keeps_parents(),
            hold=hold,
            confirm=self.refresh,
            before_reset=self.forget_past_run,
        )
        spool.drain_if_large(self._client.database, self._client.config)
        for warning in started.warnings:
            _log.warning(
                "the container %(container_name)s: %(reason)s",
                container=record.id,
                container_name=record.name,
                reason=warning,
            )
        return started, attached

    def _keeps_parents(self) -> bool:
        """Say whether what its cgroup is in is to stay, where that is the usual place."""
        path = f'"cgroupsPath":"/lamella/{self._client.config.namespace}/{self.record.id}"'
        return path in self.record.spec and self._client.keeps_cgroup_parents()

    def refresh(self) -> None:
        """Read the record again: its name, limits or networks may have been changed by others. NotFound."""
        with self._client.database.read() as db:
            self.record = reread(db, self._client.config.namespace, self.record)

    def forget_past_run(self) -> None:
        """Tell that the exit of the last run is given up, if there is one."""
        if self.task.past_run() is None:
            return
        spools = spool.take(self._client.config.root)
        with self._client.database.write() as db:
            spool.take_in(self._client.database, spools)
            self._tell_past_run(db)

    def _tell_past_run(self, db: Transaction) -> None:
        """Record the event that says that the exit of the last run is given up, if there is one."""
        past = self.task.past_run()
        if past is not None:
            fields = {"container_id": self.id, **past, "name": self.name}
            spool.record(db, timestamp(), self._client.config.namespace, "/tasks/delete", fields)

    def _root(self) -> list[Mount]:
        """As :meth:`_mounts`; what is removed at its end is not written to disk at its end, nor when its programs ask for it.

        Unmounting an overlay syncs the file system beneath, whoever wrote what is not on disk yet, and the end of the container
        waits for that: on ext4 half of the time of /bin/true, and more the more others write.
        """
        return self._transient(self._mounts())

    def _transient(self, mounts: list[Mount]) -> list[Mount]:
        """As :meth:`_root`, for these mounts."""
        if not (self.is_transient or self.record.extra.auto_remove):
            return mounts
        return [
            replace(mount, options=[*mount.options, "volatile"]) if mount.type == "overlay" else mount
            for mount in mounts
        ]

    def _mounts(self) -> list[Mount]:
        """Give what its root is mounted from; nothing where the spec's is ready as it is: a client of containerd's made that."""
        if self.record.extra.foreign and not self.record.snapshot_key:
            return []
        try:
            return usable_mounts(self._client, self.record.snapshot_key, self.record.image)
        except NotFound:
            self._client.containers.get(self.record.id)  # says so when the container itself was removed
            raise

    def _sources(self) -> list[dict[str, Any]]:
        """Give what the launcher is to make of the images, and the parts of volumes, that it mounts."""
        if not self.record.extra.sources:
            return []
        from lamella.containers.mount_sources import for_launcher

        return for_launcher(self._client, self.record.extra)

    def attach(self, *, stdin: bool = False) -> Attached:
        """Join its streams from now on. FailedPrecondition when it does not run."""
        try:
            return self.task.attach(stdin=stdin)
        except NotFound:
            raise self._not_running() from None

    @overload
    def exec(
        self,
        command: str | Sequence[str],
        *,
        detach: Literal[True],
        environment: Environment | None = None,
        env_file: FileNames | None = None,
        working_dir: str | None = None,
        user: str | int | None = None,
        privileged: bool = False,
    ) -> None: ...

    @overload
    def exec(
        self,
        command: str | Sequence[str],
        *,
        detach: Literal[False] = False,
        environment: Environment | None = None,
        env_file: FileNames | None = None,
        working_dir: str | None = None,
        user: str | int | None = None,
        privileged: bool = False,
        input: bytes | None = None,
        timeout: float | None = None,
        check: bool = False,
        on_output: OnOutput | None = None,
    ) -> RunResult: ...

    def exec(
        self,
        command: str | Sequence[str],
        *,
        detach: bool = False,
        environment: Environment | None = None,
        env_file: FileNames | None = None,
        working_dir: str | None = None,
        user: str | int | None = None,
        privileged: bool = False,
        input: bytes | None = None,
        timeout: float | None = None,
        check: bool = False,
        on_output: OnOutput | None = None,
    ) -> RunResult | None:
        """Run one more command in the running container and wait for it, or with ``detach`` leave it running, unheard.

        Environment, folder and user are the container's own where nothing else is said; its capabilities and seccomp profile
        hold. ``env_file`` is docker's; ``privileged`` gives the command all capabilities. ``timeout`` seconds after its start the
        command is killed with everything that it started, and the result says ``timed_out``; the container goes on. ``check``
        raises CommandFailed or DeadlineExceeded. ``on_output(stream, data)`` is called, in this thread, with each piece of output
        as it comes; the result has all of it nevertheless.
        Errors: FailedPrecondition when the container does not run, CommandNotFound, CommandNotExecutable.
        """
        arguments = parse_command(command)
        if detach:
            if input is not None or timeout is not None or check or on_output is not None:
                raise InvalidArgument(
                    "input, timeout, check and on_output are for a command that is waited for",
                    hint="Leave detach out.",
                )
            self.start_exec(
                arguments,
                environment=environment,
                env_file=env_file,
                working_dir=working_dir,
                user=user,
                privileged=privileged,
            ).close()
            return None
        with (
            span("lamella.exec", container=self.id, container_name=self.name, program=_program(arguments)),
            self.start_exec(
                arguments,
                environment=environment,
                env_file=env_file,
                working_dir=working_dir,
                user=user,
                privileged=privileged,
                stdin=input is not None,
            ) as attached,
        ):
            result = await_result(
                attached,
                input=input,
                timeout=timeout,
                kill=lambda: attached.kill(9, all=True),
                container_id=self.id,
                on_output=on_output,
            )
        return result.check(f"{arguments[0]!r} in {self.name}") if check else result

    def start_exec(
        self,
        command: str | Sequence[str],
        *,
        environment: Environment | None = None,
        env_file: FileNames | None = None,
        working_dir: str | None = None,
        user: str | int | None = None,
        privileged: bool = False,
        stdin: bool = False,
        tty: bool = False,
    ) -> Attached:
        """Start one more command in the running container and return its streams; ``exit`` is the command's own.

        Options and errors as :meth:`exec`. Closing the streams does not end it: see :meth:`Attached.kill`.
        """
        arguments = parse_command(command)
        with _EXEC(
            self._client.database.metrics,
            container=self.id,
            container_name=self.name,
            program=_program(arguments),
        ):
            process = exec_process(
                self.record.spec.encode(),
                arguments,
                environment=environment,
                env_file=env_file,
                working_dir=working_dir,
                user=user,
                tty=tty,
                privileged=privileged,
                read_file=self._read_file,
            )
            if self.runs_elsewhere:
                from lamella.containers.runtimes import limit_capabilities

                process = limit_capabilities(process)
            try:
                attached = self.task.exec(process, stdin=stdin)
            except TaskEnded:
                raise self._not_running() from None
        spool.drain_if_large(self._client.database, self._client.config)
        return attached

    def _read_file(self, path: str, limit: int) -> bytes | None:
        snapshots = self._client.snapshots
        layers = [str(layer) for layer in snapshots.layer_paths(self.record.snapshot_key)]
        return _core.read_file(layers, path, limit, whiteouts=snapshots.whiteouts)

    @overload
    def wait(
        self, timeout: float | None = None, *, condition: Literal["not-running", "next-exit"] = "not-running"
    ) -> int: ...

    @overload
    def wait(self, timeout: float | None = None, *, condition: Literal["removed"]) -> int | None: ...

    def wait(self, timeout: float | None = None, *, condition: Condition = "not-running") -> int | None:
        """Wait for its end, the final one where it is run again, and return the exit status.

        With the ``condition`` ``next-exit`` for the next end of a run, whoever starts it and also where it is run again, with
        ``removed`` for its removal (the last exit status then, None if it never ran). DeadlineExceeded after ``timeout``
        seconds; it runs on then. FailedPrecondition for one that never ran, or whose monitor was killed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            if condition == "not-running":
                return self.task.wait(deadline).exit_code
            from lamella.containers import conditions

            if condition == "next-exit":
                return conditions.await_next_exit(self, deadline)
            if condition == "removed":
                return conditions.await_removal(self._client, self, deadline)
        except DeadlineExceeded:
            what = "was not removed" if condition == "removed" else "did not end"
            raise DeadlineExceeded(f"container {self.name} {what} within {timeout} s") from None
        raise InvalidArgument(
            f"there is no condition {condition!r}", hint=f"Known: {', '.join(conditions.CONDITIONS)}."
        )

    def kill(self, signal: str | int = "SIGKILL", *, all: bool = False) -> None:
        """Send a signal to its first process, or to every process in it. FailedPrecondition when it does not run.

        SIGKILL and its stop signal end its restart policy, too.
        """
        number = signal_number(signal)
        try:
            self.task.ask(self._kill_request(number, stop=number == self.stop_signal) | {"all": all})
        except NotFound:
            raise self._not_running() from None

    def stop(self, timeout: float | None = None) -> int | None:
        """Ask it to end (its stop signal, SIGTERM by default), after ``timeout`` seconds kill it; return the exit status.

        Without a time-out it is the one that the container was created with, else 10 seconds.

        Harmless when it does not run: the last exit status is returned then, None if it never ran.
        """
        try:
            self.task.ask(self._kill_request(self.stop_signal, stop=True))
        except NotFound:
            return self.exit_code
        try:
            return self.wait(self._patience(timeout))
        except DeadlineExceeded:
            return self._kill_now()

    def _patience(self, timeout: float | None) -> float:
        own = self.record.extra.stop_timeout
        return timeout if timeout is not None else own if own is not None else STOP_TIMEOUT

    def restart(self, timeout: float | None = None) -> None:
        """End it as :meth:`stop` does and start it again; start it if it does not run.

        Who is attached, follows its log or waits for its end stays with it. Errors: those of :meth:`start`.
        """
        try:
            self.task.restart(self.stop_signal, self._patience(timeout))
        except NotFound as error:
            if isinstance(error, CommandNotFound):
                raise
            self.start()

    @property
    def stop_signal(self) -> int:
        """The number of the signal that asks it to end."""
        return signal_number(self.record.extra.stop_signal or "SIGTERM")

    def _kill_request(self, signal: int, *, stop: bool) -> dict[str, Any]:
        return {"op": "kill", "signal": signal, "all": False, "stop": stop}

    def _kill_now(self) -> int | None:
        try:
            self.task.ask(self._kill_request(9, stop=True))
        except NotFound:
            return self.exit_code
        return self.task.wait().exit_code

    def pause(self) -> None:
        """Freeze all its processes. Harmless twice. FailedPrecondition when it does not run."""
        self._control("pause")

    def resume(self) -> None:
        """Thaw it. Harmless twice. FailedPrecondition when it does not run."""
        self._control("resume")

    def _control(self, operation: str) -> None:
        try:
            self.task.ask({"op": operation})
        except NotFound:
            raise self._not_running() from None

    def rename(self, name: str) -> None:
        """Give it another name, also while it runs. Its snapshot keeps its key, and it its host name. Harmless twice.

        AlreadyExists when another container has the name, NotFound when it was removed, InvalidArgument.
        """
        from lamella.config import check_identifier

        self._client.containers.rename(self.id, check_identifier(name, "container name"))
        self.refresh()
        if is_recorded(self.task.network_record):
            from lamella.containers.networks.connecting import tell_again

            tell_again(self._client, self)

    def update(
        self,
        *,
        restart_policy: RestartPolicy | str | Mapping[str, Any] | None = None,
        **limits: Unpack[LimitOptions],
    ) -> None:
        """Change its limits: at once if it runs, and for its further starts. All of them change, or none.

        ``restart_policy`` changes what follows its next end, also of one that runs.

        ``memory``, ``memory_swap``, ``memory_reservation`` (bytes or ``"512m"``), ``cpus``, ``cpu_shares``, ``cpu_quota`` and
        ``cpu_period`` (microseconds), ``cpuset``, ``cpuset_mems``, ``pids_limit``, ``blkio_weight``; what is not named stays. A
        limit ends with memory or pids_limit -1, cpus 0. Twice is harmless.
        Errors: NotFound when it was removed; InvalidArgument; Unavailable when it uses more memory than that; FailedPrecondition
        and Unsupported for what the machine has no controller or file for.
        """
        from lamella.containers.update import update_container

        for warning in update_container(self._client, self.task, self.id, limits, restart_policy):
            _log.warning(
                "the container %(container_name)s: %(reason)s",
                container=self.id,
                container_name=self.name,
                reason=warning,
            )
        self.refresh()

    @overload
    def stats(self, *, stream: Literal[False] = False, interval: float = 1.0) -> Statistics: ...

    @overload
    def stats(self, *, stream: Literal[True], interval: float = 1.0) -> Iterator[Statistics]: ...

    def stats(self, *, stream: bool = False, interval: float = 1.0) -> Statistics | Iterator[Statistics]:
        """Say what it uses now; with ``stream`` yield that every ``interval`` seconds until it ends.

        All from the second reading on say by ``cpu.percent`` what has been used since the one before.
        FailedPrecondition when it does not run, InvalidArgument for an interval that is no time.
        """
        from lamella.containers.statistics import follow_statistics

        if not stream:
            return self._read_statistics()
        if not 0 < interval < float("inf"):
            raise InvalidArgument(f"interval {interval!r} is not a number of seconds")
        first: list[Statistics | None] = [self._read_statistics()]

        def read() -> Statistics | None:
            if first:
                return first.pop()
            while self.task.running():
                with suppress(FailedPrecondition):  # between two runs, or as it ends
                    return self._read_statistics()
                time.sleep(0.02)
            return None

        return follow_statistics(read, interval)

    def _read_statistics(self) -> Statistics:
        from lamella.containers.statistics import read_statistics

        try:
            return read_statistics(self._cgroup(), id=self.id, name=self.name, pid=self.pid)
        except FileNotFoundError:
            raise self._uncounted() from None

    def top(self) -> list[ProcessInfo]:
        """Return its processes, those of execs too. FailedPrecondition when it does not run."""
        from lamella.containers.processes import list_namespace, list_processes
        from lamella.containers.user import login_names

        names = login_names(self._read_file)
        try:
            return list_processes(self._cgroup(), self._cgroups_path, names)
        except FileNotFoundError:
            pid = self.pid
        try:
            found = list_namespace(pid, names) if pid is not None else None
        except OSError:  # it has just ended
            found = None
        if found is None:
            raise self._uncounted()
        return found

    @property
    def _cgroups_path(self) -> str:
        return self._own_spec.linux.cgroups_path

    def _cgroup(self) -> Cgroup:
        from lamella.containers.cgroups import Cgroup

        if not self.task.running():
            raise self._not_running()
        return Cgroup(self._cgroups_path)

    def _not_running(self) -> FailedPrecondition:
        return FailedPrecondition(f"container {self.name} is not running")

    def _uncounted(self) -> FailedPrecondition:
        if not self.task.running():
            return self._not_running()
        return FailedPrecondition(
            f"container {self.name} has no cgroup that would count what it uses",
            hint="That takes a cgroup that belongs to you: systemd-run --user --scope -p Delegate=yes, or root.",
        )

    def changes(self) -> list[Change]:
        """Return what it changed of its image, as ``docker diff`` shows it; while it runs, what it has so far."""
        return self._client.snapshots.changes(self.record.snapshot_key)

    @overload
    def commit(
        self,
        image: None = None,
        *,
        branch: str | None = None,
        labels: Mapping[str, str] | None = None,
        pause: bool = True,
    ) -> Branch: ...

    @overload
    def commit(
        self,
        image: str | Reference,
        *,
        message: str = "",
        author: str = "",
        changes: Iterable[str] = (),
        pause: bool = True,
        compression: LayerCompression = "gzip",
        squash: bool = False,
    ) -> Image: ...

    def commit(
        self,
        image: str | Reference | None = None,
        *,
        branch: str | None = None,
        labels: Mapping[str, str] | None = None,
        message: str = "",
        author: str = "",
        changes: Iterable[str] = (),
        pause: bool = True,
        compression: LayerCompression = "gzip",
        squash: bool = False,
    ) -> Branch | Image:
        """Freeze what it has written: as a branch on which others can stand, or with ``image`` as an image of that name.

        A branch of a container that does not run costs a folder and a few rows, however much was written: its writable layer
        becomes the branch, and it goes on with a new one on top. One that runs is paused while its layer is copied (blocks are
        shared on btrfs and XFS), and goes on with its own. ``branch`` is its name, by default made from the container's;
        ``labels`` are the branch's. It stays until it is removed (:class:`lamella.containers.branches.Branch`).

        An image has its image's layers, one for each branch between, and one of what was changed on top, or with ``squash`` one
        for them all. ``changes`` are instructions of a Dockerfile for the config (``CMD ["a"]``, ``ENV A=b``...); while it is
        made the container is paused if it runs and ``pause`` is true.

        What it has mounted is no part of either. Errors: AlreadyExists (the branch), NotFound when its image is not here any
        more, FailedPrecondition for more layers than overlayfs stacks and for a container that cannot be paused, else as
        :func:`lamella.transfer.commit.commit_image`.
        """
        from lamella.containers import branches

        if image is None:
            if message or author or changes or squash or compression != "gzip":
                raise InvalidArgument(
                    "message, author, changes, compression and squash are for an image", hint="Name it."
                )
            return branches.freeze(self._client, self, branch, labels=labels, pause=pause)
        if branch is not None or labels is not None:
            raise InvalidArgument(
                "branch and labels are for a branch, and an image is asked for",
                hint="An image gets labels by changes=['LABEL a=b'].",
            )
        from lamella.transfer.commit import commit_image

        base = branches.base_image(self._client, self)
        command = self._own_spec.process.args
        with ExitStack() as stack:
            if pause:
                try:
                    stack.enter_context(self.task.frozen())
                except (NotFound, FailedPrecondition):
                    if self.task.running():  # and has no cgroup that could be frozen
                        raise
            return commit_image(
                self._client,
                self.record.snapshot_key,
                base,
                image,
                message=message,
                author=author,
                created_by=" ".join(command),
                changes=changes,
                compression=compression,
                squash=squash,
            )

    def branch(self, count: int = 1, *, pause: bool = True) -> list[Container]:
        """Freeze it (:meth:`commit`) and make ``count`` containers like it on the branch, each with a writable layer of its own.

        They are not started; see :meth:`lamella.containers.branches.Branch.branch`.
        """
        return self.commit(pause=pause).branch(count)

    def get_archive(
        self, path: str, *, follow_link: bool = False, timeout: float | None = None
    ) -> tuple[Archive, PathStat]:
        """Return a file or a tree of it as a tar archive, which is made while it is read, and what is known of the path.

        The archive is an iterator over bytes and a context. Its names begin with the last part of the path; ``/.`` at the end of
        that means what is in the folder. With ``follow_link`` a symlink at the path's end is followed, never out of the
        container. Sockets are left out. It may run, be paused or not run. Errors: NotFound; DeadlineExceeded, where the archive
        would end, when that takes longer than ``timeout`` seconds.
        """
        from lamella.containers.files import get_archive

        return get_archive(self, path, follow_link=follow_link, timeout=timeout)

    def put_archive(
        self,
        path: str,
        data: ArchiveData,
        *,
        owner: tuple[int, int] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Take a tar archive (bytes, a binary file, or an iterable of bytes) into a folder of it, which has to be there.

        Owners are those of the archive; with ``owner`` (uid, gid) everything is theirs. What is there is replaced, but a folder
        by a folder only, whose other content stays. Nothing leads out of the container, whatever it does meanwhile. Errors:
        NotFound, FailedPrecondition (a folder in the way, something read-only), DataLoss and InvalidArgument for the archive,
        DeadlineExceeded after ``timeout`` seconds; what was made before an error stays. Twice is harmless.
        """
        from lamella.containers.files import put_archive

        put_archive(self, path, data, owner=owner, timeout=timeout)

    def copy_in(
        self,
        source: str | os.PathLike[str],
        target: str,
        *,
        archive: bool = False,
        follow_link: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Copy a file or folder of this machine into it, by the rules of ``docker cp``.

        A folder that is there gets the source by its name in it (what is in the source, where that ends with ``/.``); one that is
        not becomes a copy of it. Everything belongs to root, or with ``archive`` to whom it belonged. ``follow_link`` follows a
        symlink that is the source. Errors as :meth:`put_archive`. Twice is harmless.
        """
        from lamella.containers.files import copy_in

        copy_in(self, source, target, archive=archive, follow_link=follow_link, timeout=timeout)

    def copy_out(
        self,
        source: str,
        target: str | os.PathLike[str],
        *,
        archive: bool = False,
        follow_link: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Copy a file or folder of it to this machine, by the same rules.

        Everything belongs to the caller, or with ``archive`` to whom it belonged. Device nodes are left out. Errors: NotFound,
        FailedPrecondition for a folder where a file is, or the reverse, DeadlineExceeded after ``timeout`` seconds. Twice is
        harmless.
        """
        from lamella.containers.files import copy_out

        copy_out(self, source, target, archive=archive, follow_link=follow_link, timeout=timeout)

    def export(self) -> Archive:
        """Return its root as a tar archive, without what is mounted there, as ``docker export`` does; names in order.

        While it runs, files that it writes may be half there.
        """
        from lamella.containers.files import export

        return export(self)

    def logs(
        self,
        *,
        follow: bool = False,
        since: Moment | None = None,
        until: Moment | None = None,
        tail: int | Literal["all"] | None = None,
        timestamps: bool = False,
        stream: str | None = None,
    ) -> Iterator[tuple[Stream, bytes]]:
        """Yield ``(stream, bytes)`` of what it has written and its log keeps: lines, long ones in pieces of 16 KiB.

        ``since`` and ``until`` (both included) are a datetime, seconds since 1970 or RFC 3339 text; ``tail`` takes the last
        lines of what they leave; ``timestamps`` puts the time in front of each line; ``stream`` picks ``"stdout"`` or
        ``"stderr"``. With ``follow`` it goes on until the container has ended for good, through restarts by its policy or by
        :meth:`restart`; what the container writes is kept whether or not anybody reads. FailedPrecondition when it keeps no log
        (driver ``none``), InvalidArgument.
        """
        from lamella.containers.logs import read_log, select, with_times

        selection = select(stream=stream, since=since, until=until, tail=tail)
        if self.record.extra.log.driver == "none":
            raise FailedPrecondition(
                f"container {self.name} keeps no log", hint="It was created with the log driver none."
            )
        lines = read_log(
            self.task.log_path,
            selection,
            name=self.name,
            is_complete=self.task.has_logged_all if follow else None,
        )
        return with_times(lines) if timestamps else ((line.stream, line.data) for line in lines)  # type: ignore[misc]

    @frees_space
    def remove(self, *, force: bool = False, volumes: bool = False) -> None:
        """Remove the record, its active snapshot, its bundle and its log; nothing else.

        With ``volumes`` also its anonymous volumes that no other container has; those with a name stay.
        FailedPrecondition while it runs, unless ``force`` kills it first; also when other snapshots stand on its own.
        """
        trash: list[Path] = []
        self.task.remove(
            forget=partial(self.forget, trash if volumes else None),
            stop=self._kill_now if force else self._refuse,
        )
        for folder in trash:
            _core.remove_tree(str(folder))
        _log.info(
            "removed the container %(container_name)s",
            container=self.record.id,
            container_name=self.record.name,
        )

    def _refuse(self) -> None:
        raise FailedPrecondition(
            f"container {self.name} is running", hint="Stop it first, or remove it with force."
        )

    def forget(self, trash: list[Path] | None = None, *, keep_snapshot: bool = False) -> None:
        """Delete the record and its active snapshot; with ``trash``, which gets their folders, its anonymous volumes.

        For whoever holds its task's folder (:meth:`remove`). Harmless twice.
        """
        record = self.record
        key = (self._client.config.namespace, record.id)
        spools = spool.take(self._client.config.root)
        with self._client.database.write() as db:
            spool.take_in(self._client.database, spools)  # its exit is to stand before its end
            if db.execute("SELECT 1 FROM containers WHERE namespace = ? AND id = ?", key).fetchone():
                self._tell_past_run(db)
            db.execute("DELETE FROM containers WHERE namespace = ? AND id = ?", key)
            if record.snapshot_key and not keep_snapshot and record.snapshotter in SNAPSHOTTERS:
                with suppress(NotFound):
                    self._client.snapshots.remove(record.snapshot_key)
            if record.extra.sources:
                from lamella.containers.mount_sources import remove_views

                remove_views(self._client, record.extra.sources)
            if trash is not None and record.extra.volumes:
                from lamella.containers.volumes import discard_anonymous

                trash += discard_anonymous(self._client, db, record.extra.volumes)

    def inspect(self) -> dict[str, Any]:
        """Everything known about the container as plain data (the fields of ``lamella containers inspect``)."""
        record = self.record
        status, ended, restarts = self.status, self.exit, self.task.restarts()
        if status == "restarting" and restarts is not None:
            ended = restarts.exit
        return {
            "id": record.id,
            "name": record.name,
            "image": record.image,
            "status": status,
            "paused": status == "running" and self.task.paused(),
            "pid": self.pid,
            "exit_code": ended.exit_code if ended else None,
            "exited_at": ended.exited_at if ended else None,
            "oom_killed": ended.oom_killed if ended else False,
            "restart_policy": str(record.extra.restart),
            "restart_count": restarts.count if restarts is not None else 0,
            "last_run": to_builtins(restarts) if restarts is not None else None,
            "init": record.extra.init,
            "id_maps": to_builtins(record.extra.id_maps),
            "snapshotter": record.snapshotter,
            "snapshot_key": record.snapshot_key,
            "runtime": record.runtime,
            "labels": record.labels,
            "network": describe(self._client.config, record),
            "mounts": self.mounts,
            "exposed_ports": record.extra.exposed,
            "volumes": record.extra.volumes,
            "log_path": str(self.task.log_path),
            "created_at": record.created_at,
            "updated_at": record.updated_at,
            "spec": self.spec,
        }


def _program(arguments: Sequence[str]) -> str:
    """Give what spans and logs say of a command: arguments may be secrets."""
    return arguments[0] if arguments else ""


def usable_mounts(client: Client, key: str, image: str) -> list[Mount]:
    """Give what to mount for a snapshot; layers that a power cut may have spoiled are unpacked anew first. NotFound."""
    try:
        return client.snapshots.mounts(key)
    except Unverified as error:
        _log.warning("%(reason)s; unpacking them anew", image=image, reason=str(error))
        client.images.unpack(image)
        return client.snapshots.mounts(key)


def signal_number(value: str | int) -> int:
    """Return a signal's number from ``SIGTERM``, ``TERM``, ``15`` or 15. InvalidArgument for none."""
    import signal

    text = str(value).upper()
    try:
        if text.isascii() and text.isdigit():
            number = int(text)
            if 1 <= number <= signal.SIGRTMAX:
                return number
        else:
            return int(signal.Signals[text if text.startswith("SIG") else f"SIG{text}"])
    except KeyError:
        pass
    raise InvalidArgument(f"there is no signal {value!r}", hint="Write SIGTERM, TERM or 15.")

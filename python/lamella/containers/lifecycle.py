"""A task step by step, as clients of containerd's API drive it: created, started, ended, deleted; its further processes by name.

Nothing is kept here: the monitor knows what runs, the processes that were described and how those ended, and what it leaves in
the bundle (exit.json, execs.json, stdio.json) stands for it when it is gone. So whoever asks, and after whatever restart, gets
the same answer.

Rules and messages: containerd, plugins/services/tasks and cmd/containerd-shim-runc-v2.
"""

from __future__ import annotations

import fcntl
import os
import sys
import termios
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from lamella.config import check_identifier
from lamella.containers.cgroups import Cgroup
from lamella.containers.container import Container
from lamella.containers.monitor import Exit, Reply, TaskEnded
from lamella.containers.task import Paths
from lamella.errors import AlreadyExists, FailedPrecondition, NotFound
from lamella.events import spool
from lamella.structs import Malformed, Struct, convert, decode, encode, replace, to_builtins
from lamella.transfer.cancellation import current
from lamella.typings import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lamella.client import Client
    from lamella.snapshots import Mount

ProcessStatus = Literal["created", "running", "paused", "stopped"]
READERS_SECONDS = 1.0
"""How long an answer to who waits for an end is kept back at most, until what was written has been read."""
UNKNOWN_EXIT = 255
"""The exit status of a task whose monitor was killed (containerd's UnknownExitStatus)."""


class ProcessState(Struct, frozen=True, kw_only=True):
    """How a task, or a process of it, is. ``exit`` is there when it has ended."""

    status: ProcessStatus
    pid: int = 0
    exit: Exit | None = None
    paths: Paths = Paths()
    terminal: bool = False
    execs: dict[str, int] = {}
    """The pids of the processes with a name that run."""


class _EndedExec(Struct, frozen=True):
    """What a monitor leaves of a process that nobody has taken leave of."""

    pid: int | None
    paths: Paths
    terminal: bool
    exit: Exit


class _Process(Struct, frozen=True):
    terminal: bool = False


class _Linux(Struct, frozen=True, rename="camel"):
    cgroups_path: str = ""


class _Bundle(Struct, frozen=True):
    process: _Process = _Process()
    linux: _Linux = _Linux()


def _await_readers(paths: Paths) -> None:
    """Wait until the output's FIFOs are empty, for a moment at most: nobody may be there who reads them."""
    deadline = time.monotonic() + READERS_SECONDS
    for path in (paths.stdout, paths.stderr):
        try:
            if not path or not Path(path).is_fifo():
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            while _unread(descriptor) and time.monotonic() < deadline:
                time.sleep(0.001)
        finally:
            os.close(descriptor)


def _unread(descriptor: int) -> int:
    """Give how many bytes a pipe holds: ioctl_pipe(2)."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)


class Lifecycle:
    """The task of one container."""

    def __init__(self, client: Client, container: Container) -> None:
        self._client = client
        self.container = container
        self._task = container.task

    @property
    def id(self) -> str:
        """The container's identifier, which is the task's, too."""
        return self.container.id

    def create(self, root: Sequence[Mount], paths: Paths) -> int:
        """Make everything ready for the program, on these mounts; return the pid of what waits to become it.

        Without mounts the root is the container's snapshot, or where it has none, the spec's own folder. AlreadyExists when there
        is a task, also one that has ended; else the errors of :meth:`lamella.containers.container.Container.start`.
        """
        if self.exists():
            raise AlreadyExists(f"task {self.id}")
        mounts = list(root) if root or not self.container.snapshot_key else None
        return self.container.prepare_task(mounts, paths).pid

    def exists(self) -> bool:
        """Say whether there is a task."""
        with suppress(NotFound):
            self.state()
            return True
        return False

    def state(self, exec_id: str = "") -> ProcessState:
        """Say how it is, or a process by its name. NotFound."""
        return self._exec_state(exec_id) if exec_id else self._state()

    def _state(self) -> ProcessState:
        paths, bundle = self._paths(), self._bundle()
        ended = self._task.exit()
        if ended is None:
            with suppress(TaskEnded):
                reply = self._task.question({"op": "state"})
                status: ProcessStatus = "running"  # between two runs, too
                if reply.status in ("created", "paused"):
                    status = reply.status  # type: ignore[assignment]
                if reply.status != "stopped":
                    return ProcessState(
                        status=status,
                        pid=reply.pid or 0,
                        paths=paths,
                        terminal=bundle.process.terminal,
                        execs=reply.execs,
                    )
            ended = self._task.exit()
        if ended is None:
            if self._task.past_run() is None:
                raise self._no_task()
            ended = Exit(exit_code=UNKNOWN_EXIT)  # its monitor was killed
        return ProcessState(
            status="stopped", pid=ended.pid or 0, exit=ended, paths=paths, terminal=bundle.process.terminal
        )

    def _exec_state(self, exec_id: str) -> ProcessState:
        reply = self._ask({"op": "state", "exec": exec_id})
        if reply is not None:
            return ProcessState(
                status=reply.status,  # type: ignore[arg-type]
                pid=reply.pid or 0,
                exit=reply.exit,
                paths=convert(reply.stdio, Paths),
                terminal=reply.terminal,
            )
        left = self._left(exec_id)
        return ProcessState(
            status="stopped", pid=left.pid or 0, exit=left.exit, paths=left.paths, terminal=left.terminal
        )

    def start(self, exec_id: str = "") -> int:
        """Run the program of a task that was created, or of a process; return its pid. FailedPrecondition when it ran already.

        CommandNotFound, CommandNotExecutable; NotFound.
        """
        if exec_id:
            pid = self._need({"op": "start", "exec": exec_id}).pid
        else:
            self._present()
            pid = self._need({"op": "start"}).pid
        spool.drain_if_large(self._client.database, self._client.config)
        return pid or 0

    def add(self, exec_id: str, process: dict[str, Any], paths: Paths) -> None:
        """Describe a further process (the spec's process object), to be started by its name.

        AlreadyExists, InvalidArgument for a malformed name, FailedPrecondition when the task does not run.
        """
        check_identifier(exec_id, "exec id")
        if self._present().status == "stopped":
            raise FailedPrecondition("cannot exec in a stopped state")
        if self.container.runs_elsewhere:
            from lamella.containers.runtimes import limit_capabilities

            process = limit_capabilities(process)
        self._need({"op": "describe", "exec": exec_id, "process": process, "stdio": to_builtins(paths)})

    def wait(self, exec_id: str = "") -> Exit:
        """Wait for the end of it, or of a process. NotFound; Cancelled with the thread's transfer.

        What it has written has as a rule been taken from its FIFOs by then: ctr gives up opening them when it hears of the end.
        """
        while True:
            state = self.state(exec_id)
            ended = state.exit or self._await({"op": "wait"} | ({"exec": exec_id} if exec_id else {}))
            if ended is not None:
                _await_readers(state.paths)
                return ended

    def _await(self, request: dict[str, Any]) -> Exit | None:
        """Wait for an answer; None when the monitor has gone meanwhile, and what it has left tells."""
        try:
            connection = self._task.connect()
        except TaskEnded:
            return None
        cancellation = current.get()
        with closing(connection):
            if cancellation is not None:
                cancellation.add(connection.shut)
            try:
                connection.request(request)
                reply = connection.reply()
            except (BrokenPipeError, ConnectionResetError, TaskEnded):
                reply = None
            finally:
                if cancellation is not None:
                    cancellation.check()
        return reply.exit if reply is not None else None

    def kill(self, signal: int, *, exec_id: str = "", all: bool = False) -> None:
        """Send a signal; 0 only asks whether it has ended. NotFound when it has, InvalidArgument."""
        if self.state(exec_id).status == "stopped":
            raise NotFound("process already finished")
        if signal == 0:
            return
        request = {"op": "kill", "signal": signal, "all": all, "stop": signal in self._last_signals()}
        self._need(request | ({"exec": exec_id} if exec_id else {}), finished="process already finished")

    def _last_signals(self) -> tuple[int, ...]:
        return (9, self.container.stop_signal)

    def pause(self) -> None:
        """Freeze it. FailedPrecondition when it does not run, or is frozen."""
        self._change("running", "pause")

    def resume(self) -> None:
        """Thaw it. FailedPrecondition when it is not frozen."""
        self._change("paused", "resume")

    def _change(self, status: str, operation: str) -> None:
        state = self._present()
        if state.status != status:
            raise FailedPrecondition(f"cannot {operation} task in {state.status} state")
        self._need({"op": operation})

    def resize(self, columns: int, rows: int, exec_id: str = "") -> None:
        """Tell a terminal its size in characters. Harmless without one, and when the task has ended.

        FailedPrecondition for a further process that has ended.
        """
        state = self.state(exec_id)
        if exec_id and state.status == "stopped":
            raise FailedPrecondition("cannot resize a stopped container")
        if not state.terminal or state.status == "stopped" or (exec_id and state.status == "created"):
            return
        request = {"op": "resize", "rows": rows, "cols": columns}
        with suppress(TaskEnded):  # it has ended meanwhile
            self._task.question(request | ({"exec": exec_id} if exec_id else {}))

    def close_input(self, exec_id: str = "") -> None:
        """End its input when the last who writes has gone. Harmless twice, and when it has ended."""
        if self.state(exec_id).status != "stopped":
            with suppress(NotFound):
                self._need({"op": "close_input"} | ({"exec": exec_id} if exec_id else {}))

    def update(self, resources: dict[str, Any]) -> None:
        """Change limits of what runs (sections of the spec's resources); the record's spec is its client's.

        Devices are passed over, as runc does: clients send all of the resources along, and those in it are the start's.
        FailedPrecondition when it does not run; errors as for :meth:`lamella.containers.container.Container.update`.
        """
        if self._present().status == "stopped":
            raise FailedPrecondition("cannot update a stopped container")
        with self._task.held(self.container.refresh):
            self._task.update({name: each for name, each in resources.items() if name != "devices"})

    def processes(self) -> dict[int, str]:
        """Give the ids of its processes as the host sees them, with the names of those that have one."""
        state = self._present()
        if state.status == "stopped":
            return {}
        names = {pid: name for name, pid in state.execs.items()}
        pids = set(self.cgroup().processes()) | {pid for pid in (state.pid, *names) if pid}
        return {pid: names.get(pid, "") for pid in sorted(pids)}

    def cgroup(self) -> Cgroup:
        """Give its cgroup, which need not be there."""
        return Cgroup(self._bundle().linux.cgroups_path)

    def delete(self, exec_id: str = "") -> Exit:
        """Forget how it ended, or a process; return that. A task that was created and not started is killed.

        NotFound; FailedPrecondition while it runs.
        """
        if exec_id:
            return self._delete_exec(exec_id)
        state = self._present()
        if state.status in ("running", "paused"):
            raise FailedPrecondition(f"cannot delete a {state.status} process")
        ended = state.exit
        if ended is None:
            with suppress(NotFound):
                self.kill(9)
            ended = self.wait()
        self._task.forget_run(self.container.refresh, self.container.forget_past_run)
        return ended if ended.pid is not None else replace(ended, pid=state.pid)

    def _delete_exec(self, exec_id: str) -> Exit:
        reply = self._ask({"op": "forget", "exec": exec_id})
        if reply is not None:
            return reply.exit or Exit(exit_code=0)
        left = self._left(exec_id)
        with self._task.held(self.container.refresh):
            rest = {name: each for name, each in self._all_left().items() if name != exec_id}
            self._task.replace_file("execs.json", encode(rest))
        return left.exit

    def _present(self) -> ProcessState:
        """Give how it is. NotFound."""
        return self._state()

    def _ask(self, request: dict[str, Any]) -> Reply | None:
        """Have the monitor answer; None where there is none any more."""
        try:
            return self._task.question(request)
        except TaskEnded:
            return None

    def _need(self, request: dict[str, Any], finished: str = "") -> Reply:
        """Have the monitor answer. NotFound when the task has ended."""
        reply = self._ask(request)
        if reply is None:
            raise NotFound(finished) if finished else self._no_task()
        return reply

    def _no_task(self) -> NotFound:
        return NotFound(f"task {self.id} not found")

    def _left(self, exec_id: str) -> _EndedExec:
        """Give what a monitor that has gone has left of a process. NotFound."""
        self._state()
        left = self._all_left().get(exec_id)
        if left is None:
            raise NotFound(f"process does not exist {exec_id[:200]}")
        return left

    def _all_left(self) -> dict[str, _EndedExec]:
        with suppress(FileNotFoundError, Malformed):
            return decode((self._task.folder / "execs.json").read_bytes(), dict[str, _EndedExec])
        return {}

    def _paths(self) -> Paths:
        with suppress(FileNotFoundError, NotADirectoryError, Malformed):
            return decode((self._task.folder / "stdio.json").read_bytes(), Paths)
        return Paths()

    def _bundle(self) -> _Bundle:
        with suppress(FileNotFoundError, NotADirectoryError, Malformed):
            return decode((self._task.folder / "config.json").read_bytes(), _Bundle)
        return _Bundle()

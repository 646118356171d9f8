"""``containerd.services.tasks.v1.Tasks``: running containers, and further processes in them.

A task is the library's own (:mod:`lamella.containers.lifecycle`): its monitor holds the FIFOs of its client, so that neither the
client's nor the server's end harms it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from lamella.containers.container import Container
from lamella.containers.foreign import get_record
from lamella.containers.lifecycle import Lifecycle, ProcessState
from lamella.containers.task import Paths
from lamella.errors import AlreadyExists, InvalidArgument, NotFound, Unsupported
from lamella.filters import compile_filters
from lamella.serve.api import runc_options_pb2, task_types_pb2, tasks_pb2, types_pb2
from lamella.serve.call import Call
from lamella.serve.cgroup_metrics import metrics_of
from lamella.serve.messages import any_as, any_of, from_mounts, to_timestamp
from lamella.serve.service import Service
from lamella.serve.services.containers import check_runtime

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage

_STATUS = {
    "created": task_types_pb2.CREATED,
    "running": task_types_pb2.RUNNING,
    "paused": task_types_pb2.PAUSED,
    "stopped": task_types_pb2.STOPPED,
}
PATH_MAX = 4096
"""Bytes of a path (limits.h)."""
_SIZE_MAX = 0xFFFF
"""Of a terminal, in characters (ioctl_tty(2), struct winsize)."""


class Tasks(Service):
    """Running containers."""

    descriptor = tasks_pb2.DESCRIPTOR.services_by_name["Tasks"]
    waits = frozenset({"Wait"})

    def Create(self, request: tasks_pb2.CreateTaskRequest, call: Call) -> tasks_pb2.CreateTaskResponse:
        """Make everything ready for the program. AlreadyExists, NotFound, Unsupported, and what the launcher reports."""
        task = _task(call, request.container_id)
        if task.exists():
            raise AlreadyExists(f"task {task.id}")
        check_runtime(task.container.record)
        if request.HasField("checkpoint") or request.runtime_path or request.task_api_address:
            raise Unsupported(
                "a task cannot be restored from a checkpoint, or made by another runtime's shim"
            )
        _check_options(request.options)
        pid = task.create(from_mounts(request.rootfs), _paths(request))
        return tasks_pb2.CreateTaskResponse(container_id=request.container_id, pid=pid)

    def Start(self, request: tasks_pb2.StartRequest, call: Call) -> tasks_pb2.StartResponse:
        """Run the program, or a further process. NotFound, FailedPrecondition."""
        return tasks_pb2.StartResponse(pid=_task(call, request.container_id).start(request.exec_id))

    def Delete(self, request: tasks_pb2.DeleteTaskRequest, call: Call) -> tasks_pb2.DeleteResponse:
        """Forget how a task ended. NotFound, FailedPrecondition while it runs."""
        ended = _task(call, request.container_id).delete()
        return tasks_pb2.DeleteResponse(
            exit_status=ended.exit_code, exited_at=_moment(ended.exited_at), pid=ended.pid or 0
        )

    def DeleteProcess(self, request: tasks_pb2.DeleteProcessRequest, call: Call) -> tasks_pb2.DeleteResponse:
        """Forget how a further process ended. NotFound, FailedPrecondition while it runs."""
        if not request.exec_id:
            raise InvalidArgument("exec id cannot be empty")
        ended = _task(call, request.container_id).delete(request.exec_id)
        return tasks_pb2.DeleteResponse(
            id=request.exec_id,
            exit_status=ended.exit_code,
            exited_at=_moment(ended.exited_at),
            pid=ended.pid or 0,
        )

    def Get(self, request: tasks_pb2.GetRequest, call: Call) -> tasks_pb2.GetResponse:
        """Say how a task is, or a further process. NotFound."""
        task = _task(call, request.container_id)
        state = task.state(request.exec_id)
        return tasks_pb2.GetResponse(process=_message(request.exec_id or task.id, state))

    def List(self, request: tasks_pb2.ListTasksRequest, call: Call) -> tasks_pb2.ListTasksResponse:
        """Give all tasks. The filter of the request is passed over, as containerd does."""
        return tasks_pb2.ListTasksResponse(tasks=(_message(task.id, state) for task, state in _tasks(call)))

    def Kill(self, request: tasks_pb2.KillRequest, call: Call) -> Empty:
        """Send a signal. NotFound for what has ended, InvalidArgument."""
        task = _task(call, request.container_id)
        task.kill(request.signal, exec_id=request.exec_id, all=request.all)
        return Empty()

    def Exec(self, request: tasks_pb2.ExecProcessRequest, call: Call) -> Empty:
        """Describe a further process. NotFound, AlreadyExists, InvalidArgument, FailedPrecondition."""
        if not request.exec_id:
            raise InvalidArgument("exec id cannot be empty")
        task = _task(call, request.container_id)
        process = _object(request.spec, "process")
        task.add(request.exec_id, process | {"terminal": request.terminal}, _paths(request))
        return Empty()

    def ResizePty(self, request: tasks_pb2.ResizePtyRequest, call: Call) -> Empty:
        """Tell a terminal its size. NotFound, FailedPrecondition."""
        task = _task(call, request.container_id)
        task.resize(min(request.width, _SIZE_MAX), min(request.height, _SIZE_MAX), request.exec_id)
        return Empty()

    def CloseIO(self, request: tasks_pb2.CloseIORequest, call: Call) -> Empty:
        """End a process's input once its last writer has gone. NotFound."""
        task = _task(call, request.container_id)
        if request.stdin:
            task.close_input(request.exec_id)
        return Empty()

    def Pause(self, request: tasks_pb2.PauseTaskRequest, call: Call) -> Empty:
        """Freeze a task. NotFound, FailedPrecondition."""
        _task(call, request.container_id).pause()
        return Empty()

    def Resume(self, request: tasks_pb2.ResumeTaskRequest, call: Call) -> Empty:
        """Thaw a task. NotFound, FailedPrecondition."""
        _task(call, request.container_id).resume()
        return Empty()

    def ListPids(self, request: tasks_pb2.ListPidsRequest, call: Call) -> tasks_pb2.ListPidsResponse:
        """Give the processes of a task, as the host numbers them. NotFound."""
        response = tasks_pb2.ListPidsResponse()
        for pid, name in _task(call, request.container_id).processes().items():
            information = response.processes.add(pid=pid)
            if name:
                information.info.CopyFrom(any_of(runc_options_pb2.ProcessDetails(exec_id=name)))
        return response

    def Update(self, request: tasks_pb2.UpdateTaskRequest, call: Call) -> Empty:
        """Change the limits of what runs. NotFound, InvalidArgument, FailedPrecondition, Unavailable."""
        task = _task(call, request.container_id)
        if request.HasField("resources"):
            asked = _object(request.resources, "resources")
            resources = {name: value for name, value in asked.items() if value is not None}
            if not isinstance(resources.get("memory", {}), dict):
                raise InvalidArgument("the memory of the resources is no JSON object")
            task.update(resources)
        return Empty()

    def Metrics(self, request: tasks_pb2.MetricsRequest, call: Call) -> tasks_pb2.MetricsResponse:
        """Say what the tasks use that match the filters, by ``id`` and ``namespace``. InvalidArgument."""
        matches = compile_filters(request.filters)
        response = tasks_pb2.MetricsResponse()
        for task, _ in _tasks(call, lambda name: matches({"id": name, "namespace": call.namespace})):
            with suppress(FileNotFoundError):  # it has ended, or has no cgroup
                metrics = metrics_of(task.cgroup())
                moment = Timestamp()
                moment.GetCurrentTime()
                response.metrics.append(types_pb2.Metric(timestamp=moment, id=task.id, data=any_of(metrics)))
        return response

    def Wait(self, request: tasks_pb2.WaitRequest, call: Call) -> tasks_pb2.WaitResponse:
        """Wait for an end. NotFound."""
        ended = _task(call, request.container_id).wait(request.exec_id)
        return tasks_pb2.WaitResponse(exit_status=ended.exit_code, exited_at=_moment(ended.exited_at))


def _task(call: Call, container_id: str) -> Lifecycle:
    """Give the task of a container, which need not have one. NotFound."""
    return Lifecycle(call.client, Container(call.client, get_record(call.client, container_id)))


def _tasks(
    call: Call, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[Lifecycle, ProcessState]]:
    """Give the tasks that there are, by their containers' identifiers, and how they are."""
    client = call.client
    for record in client.containers.records():
        if wanted(record.id):
            task = Lifecycle(client, Container(client, record))
            with suppress(NotFound):
                yield task, task.state()


def _paths(request: tasks_pb2.CreateTaskRequest | tasks_pb2.ExecProcessRequest) -> Paths:
    for path in (request.stdin, request.stdout, request.stderr):
        if len(path.encode()) > PATH_MAX:
            raise InvalidArgument(f"the path {path[:80]!r}... has more than {PATH_MAX} bytes")
    # A terminal is one stream.
    return Paths(
        stdin=request.stdin, stdout=request.stdout, stderr="" if request.terminal else request.stderr
    )


def _check_options(options: AnyMessage) -> None:
    """Refuse what a task's options ask for beyond the usual. Unsupported."""
    asked = any_as(options, runc_options_pb2.Options)
    if asked is not None and asked.criu_image_path:
        raise Unsupported("a task cannot be restored from a checkpoint (criu_image_path)")


def _object(message: AnyMessage, what: str) -> dict[str, Any]:
    """Give the JSON object that an Any of containerd's holds. InvalidArgument."""
    try:
        return msgspec.json.decode(message.value, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"the {what} is no JSON object: {error}") from None


def _message(process_id: str, state: ProcessState) -> task_types_pb2.Process:
    process = task_types_pb2.Process(
        id=process_id,
        pid=state.pid,
        status=_STATUS[state.status],
        stdin=state.paths.stdin,
        stdout=state.paths.stdout,
        stderr=state.paths.stderr,
        terminal=state.terminal,
    )
    if state.exit is not None:
        process.exit_status = state.exit.exit_code
        process.exited_at.CopyFrom(_moment(state.exit.exited_at))
    return process


def _moment(time: str) -> Timestamp:
    """Give a time; the year 1 of Go for one that nobody knows."""
    return to_timestamp(time) or Timestamp(seconds=-62135596800)

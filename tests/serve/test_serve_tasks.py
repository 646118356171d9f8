"""Tasks over the socket, driven as ctr and the Go client drive them: FIFOs, created, started, waited for, deleted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.field_mask_pb2 import FieldMask

from lamella.containers import lifecycle
from lamella.containers.defaults import CAPABILITIES
from lamella.serve import Server
from lamella.serve.api import (
    cgroup1_pb2,
    cgroup2_pb2,
    containers_pb2,
    runc_options_pb2,
    task_types_pb2,
    tasks_pb2,
)
from lamella.serve.messages import SPEC_TYPE, any_of, to_mounts
from lamella.serve.resumption import resume
from rpc import refusal
from waiting import until

pytestmark = [pytest.mark.privileged]
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
DEADLINE = 30.0


def spec_of(*words: str, terminal: bool = False, namespace: str = "default", name: str = "box") -> dict:
    """Give the runtime spec that ctr generates, as far as it matters here."""
    capabilities = list(CAPABILITIES)
    return {
        "ociVersion": "1.0.2-dev",
        "process": process_of(*words, terminal=terminal)
        | {
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {
                "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=65536k"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "cgroupsPath": f"/{namespace}/{name}",
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
        },
    }  # fmt: skip


def process_of(*words: str, terminal: bool = False) -> dict:
    return {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
        "args": list(words),
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
    }


class Streams:
    """FIFOs as containerd's client makes them, and what is read from them."""

    def __init__(self, folder: Path, name: str, *, stdin: bool = False) -> None:
        self.paths = {kind: str(folder / f"{name}-{kind}") for kind in ("stdin", "stdout", "stderr")}
        for path in self.paths.values():
            os.mkfifo(path, 0o700)
        if not stdin:
            self.paths["stdin"] = ""
        self._pool = ThreadPoolExecutor(2)
        self._read = {kind: self._pool.submit(self._collect, kind) for kind in ("stdout", "stderr")}

    def _collect(self, kind: str) -> bytes:
        return Path(self.paths[kind]).read_bytes()

    def output(self) -> bytes:
        """Wait for the end of the only one that a terminal has."""
        os.close(os.open(self.paths["stderr"], os.O_RDWR))
        return self.ended()[0]

    def ended(self) -> tuple[bytes, bytes]:
        """Wait for the end of both."""
        return self._read["stdout"].result(DEADLINE), self._read["stderr"].result(DEADLINE)


class Box:
    """One container and its task, by the API alone."""

    def __init__(self, served, folder: Path, root: list, name: str = "box") -> None:
        self.containers = served.stub(containers_pb2, "Containers")
        self.tasks = served.stub(tasks_pb2, "Tasks")
        self.folder, self.root, self.name = folder, root, name

    def record(
        self,
        *words: str,
        terminal: bool = False,
        program: str = "",
        labels: dict[str, str] | None = None,
        **changes,
    ) -> Box:
        spec = spec_of(*words, terminal=terminal, name=self.name)
        container = containers_pb2.Container(
            id=self.name,
            labels=labels,
            runtime=containers_pb2.Container.Runtime(
                name="io.containerd.runc.v2",
                options=any_of(runc_options_pb2.Options(binary_name=program)) if program else None,
            ),
            spec=Any(type_url=SPEC_TYPE, value=json.dumps(spec | changes).encode()),
        )
        self.containers.Create(containers_pb2.CreateContainerRequest(container=container))
        return self

    def create(self, streams: Streams | None = None, *, terminal: bool = False, **more) -> int:
        paths = streams.paths if streams else {}
        if terminal:
            paths = paths | {"stderr": ""}
        request = tasks_pb2.CreateTaskRequest(
            container_id=self.name, rootfs=self.root, terminal=terminal, **paths, **more
        )
        return self.tasks.Create(request).pid

    def start(self, exec_id: str = "") -> int:
        return self.tasks.Start(tasks_pb2.StartRequest(container_id=self.name, exec_id=exec_id)).pid

    def run(self, *words: str, **more) -> Box:
        self.record(*words)
        self.create(**more)
        self.start()
        return self

    def exec(self, name: str, *words: str, streams: Streams | None = None, terminal: bool = False) -> None:
        process = json.dumps(process_of(*words)).encode()
        request = tasks_pb2.ExecProcessRequest(
            container_id=self.name, exec_id=name, terminal=terminal, **(streams.paths if streams else {}),
            spec=Any(type_url=PROCESS_TYPE, value=process),
        )  # fmt: skip
        self.tasks.Exec(request)

    def wait(self, exec_id: str = "") -> int:
        request = tasks_pb2.WaitRequest(container_id=self.name, exec_id=exec_id)
        return self.tasks.Wait(request).exit_status

    def get(self, exec_id: str = "") -> task_types_pb2.Process:
        return self.tasks.Get(tasks_pb2.GetRequest(container_id=self.name, exec_id=exec_id)).process

    def kill(self, number: int = signal.SIGKILL, exec_id: str = "", **more) -> None:
        self.tasks.Kill(tasks_pb2.KillRequest(container_id=self.name, exec_id=exec_id, signal=number, **more))

    def delete(self) -> tasks_pb2.DeleteResponse:
        return self.tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=self.name))

    def delete_exec(self, exec_id: str) -> tasks_pb2.DeleteResponse:
        return self.tasks.DeleteProcess(
            tasks_pb2.DeleteProcessRequest(container_id=self.name, exec_id=exec_id)
        )

    def close_input(self, exec_id: str = "") -> None:
        self.tasks.CloseIO(tasks_pb2.CloseIORequest(container_id=self.name, exec_id=exec_id, stdin=True))

    def streams(self, name: str = "init", **more) -> Streams:
        return Streams(self.folder, name, **more)


@pytest.fixture
def box(served, small_image, tmp_path):
    served.client.images.pull(small_image)
    image = served.client.images.get(small_image)
    served.client.snapshots.prepare("root", parent=str(image.chain_id))
    folder = tmp_path / "fifo"
    folder.mkdir()
    yield Box(served, folder, to_mounts(served.client.snapshots.mounts("root")))
    for container in served.client.containers.list(all=True):
        container.remove(force=True)


def test_a_task_goes_through_its_states(served, box) -> None:
    streams = box.record("/bin/sh", "-c", "echo out; echo err >&2; exit 3").streams()
    pid = box.create(streams)
    created = box.get()
    assert (created.status, created.pid, created.stdout) == (
        task_types_pb2.CREATED,
        pid,
        streams.paths["stdout"],
    )
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(box.wait)
        assert box.start() == pid
        assert waiting.result(DEADLINE) == 3
    assert streams.ended() == (b"out\n", b"err\n")
    stopped = box.get()
    assert (stopped.status, stopped.exit_status, stopped.pid) == (task_types_pb2.STOPPED, 3, pid)
    assert box.wait() == 3
    deleted = box.delete()
    assert (deleted.exit_status, deleted.pid) == (3, pid) and deleted.exited_at == stopped.exited_at
    assert refusal(box.get) is refusal(box.delete) is refusal(box.wait) is grpc.StatusCode.NOT_FOUND
    topics = []
    with served.client.events(follow=False, since=0) as events:
        topics = [event.topic for event in events if event.topic.startswith("/tasks")]
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    box.containers.Delete(containers_pb2.DeleteContainerRequest(id="box"))
    assert served.client.snapshots.stat("root")  # is its client's


def test_input_ends_when_it_is_closed_and_its_last_writer_has_gone(box) -> None:
    streams = box.record("/bin/cat").streams(stdin=True)
    box.create(streams)
    box.start()
    for text in (b"one ", b"two "):  # the first client that goes away ends nothing
        with Path(streams.paths["stdin"]).open("wb") as file:
            file.write(text)
    with Path(streams.paths["stdin"]).open("wb") as file:
        box.close_input()
        file.write(b"three")
    assert box.wait() == 0
    assert streams.ended() == (b"one two three", b"")


def test_a_terminal_is_one_stream_that_can_be_resized(box) -> None:
    script = "stat -c %t /dev/console; sleep 0.2; read line; echo got $line"
    streams = box.record("/bin/sh", "-c", script, terminal=True).streams(stdin=True)
    box.create(streams, terminal=True)
    box.start()
    box.tasks.ResizePty(tasks_pb2.ResizePtyRequest(container_id="box", width=90, height=33))
    Path(streams.paths["stdin"]).write_bytes(b"hello\n")
    assert box.wait() == 0
    assert b"got hello\r\n" in streams.output()
    # As ctr does when its own terminal changes in the last moment.
    box.tasks.ResizePty(tasks_pb2.ResizePtyRequest(container_id="box", width=90, height=33))
    assert box.get().terminal


def test_output_waits_for_a_reader_and_arrives_whole(box) -> None:
    # More than a FIFO and the monitor hold: the program has to wait, too.
    script = "i=0; while test $i -lt 40000; do echo line $i; i=$((i+1)); done"
    box.record("/bin/sh", "-c", script)
    path = box.folder / "out"
    os.mkfifo(path)
    box.create(stdout=str(path))
    box.start()
    time.sleep(0.3)
    assert box.get().status == task_types_pb2.RUNNING
    assert path.read_bytes() == b"".join(b"line %d\n" % number for number in range(40000))
    assert box.wait() == 0


def test_output_that_nobody_reads_holds_nothing_up_at_the_end(box) -> None:
    box.record("/bin/sh", "-c", "echo unread")
    path = box.folder / "out"
    os.mkfifo(path)
    box.create(stdout=str(path))
    box.start()
    assert box.wait() == 0
    assert box.delete().exit_status == 0


@pytest.mark.parametrize("exec_id", ["", "x"])
def test_an_end_is_told_when_what_was_written_has_been_read(box, monkeypatch, exec_id) -> None:
    """ctr gives up opening its FIFOs when it hears of the end: what it had not opened by then was lost."""
    monkeypatch.setattr(lifecycle, "READERS_SECONDS", DEADLINE)
    path = box.folder / "out"
    os.mkfifo(path)
    words = ("/bin/sh", "-c", "echo short")
    with ThreadPoolExecutor(1) as pool, os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as reader:
        if exec_id:
            box.run("/bin/sleep", "600")
            process = Any(type_url=PROCESS_TYPE, value=json.dumps(process_of(*words)).encode())
            box.tasks.Exec(
                tasks_pb2.ExecProcessRequest(container_id="box", exec_id="x", stdout=str(path), spec=process)
            )
        else:
            box.record(*words)
            box.create(stdout=str(path))
        waiting = pool.submit(box.wait, exec_id)
        box.start(exec_id)
        until(lambda: box.get(exec_id).status == task_types_pb2.STOPPED)
        assert not waiting.done()
        assert os.read(reader.fileno(), 100) == b"short\n"
        assert waiting.result(DEADLINE) == 0
    if exec_id:
        box.kill()
        box.wait()


def test_output_goes_to_a_file(box) -> None:
    place = f"file://{box.folder}/sub/log"
    box.record("/bin/sh", "-c", "echo out; echo err >&2")
    assert refusal(box.create, stdout="syslog://logger") is grpc.StatusCode.UNIMPLEMENTED
    assert refusal(box.create, stdout="relative/path") is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal(box.create, stdout=str(box.folder / "none")) is grpc.StatusCode.NOT_FOUND
    assert refusal(box.create, stdin="/dev/null") is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal(box.get) is grpc.StatusCode.NOT_FOUND, "nothing is left of them"
    box.create(stdout=place, stderr=place)
    box.start()
    assert box.wait() == 0
    box.delete()
    assert sorted((box.folder / "sub/log").read_bytes().split()) == [b"err", b"out"]


LOGGER = """#!/bin/sh
folder=$2
echo "$CONTAINER_NAMESPACE/$CONTAINER_ID $$" >> $folder/begun
exec 5>&-
{ cat <&3 > $folder/out; } & { cat <&4 > $folder/err; } & wait
sleep 0.3
echo done >> $folder/ended
"""


@pytest.fixture
def logger(tmp_path: Path) -> Path:
    """Give a program that keeps what it gets in the folder that its argument names."""
    file = tmp_path / "logger"
    file.write_text(LOGGER)
    file.chmod(0o755)
    return file


def test_output_goes_to_a_program_that_is_waited_for_at_the_end(box, logger, tmp_path) -> None:
    box.record("/bin/sh", "-c", "echo out; echo err >&2")
    box.create(stdout=f"binary://{logger}?to={tmp_path}", stderr=f"binary://{logger}?to={tmp_path}")
    assert (tmp_path / "begun").read_text().split()[0] == "default/box"
    assert not (tmp_path / "out").exists() or (tmp_path / "out").read_bytes() == b""
    box.start()
    assert box.wait() == 0
    box.delete()
    assert ((tmp_path / "out").read_bytes(), (tmp_path / "err").read_bytes()) == (b"out\n", b"err\n")
    assert (tmp_path / "ended").read_text() == "done\n", "the monitor has waited for it"


def test_a_process_that_is_added_may_have_a_logger_of_its_own(box, logger, tmp_path) -> None:
    box.run("/bin/sleep", "600")
    process = json.dumps(process_of("/bin/sh", "-c", "echo in")).encode()
    place = f"binary://{logger}?to={tmp_path}"
    request = tasks_pb2.ExecProcessRequest(
        container_id="box", exec_id="x", stdout=place, spec=Any(type_url=PROCESS_TYPE, value=process)
    )
    box.tasks.Exec(request)
    box.start("x")
    assert box.wait("x") == 0
    until((tmp_path / "ended").exists)
    assert (tmp_path / "out").read_bytes() == b"in\n"
    box.kill()
    box.wait()
    box.delete()


def test_a_logger_that_takes_its_time_holds_nobody_else_up(box, logger, tmp_path) -> None:
    logger.write_text(LOGGER.replace("exec 5>&-", "until [ -e $folder/go ]; do sleep 0.01; done; exec 5>&-"))
    box.run("/bin/sleep", "600")
    place = f"binary://{logger}?to={tmp_path}"
    process = json.dumps(process_of("/bin/sh", "-c", "echo in")).encode()
    spec = Any(type_url=PROCESS_TYPE, value=process)
    box.tasks.Exec(tasks_pb2.ExecProcessRequest(container_id="box", exec_id="slow", stdout=place, spec=spec))
    pool = ThreadPoolExecutor(1)
    started = pool.submit(box.start, "slow")
    until((tmp_path / "begun").exists)
    box.exec("quick", "/bin/true")
    box.start("quick")
    assert box.wait("quick") == 0
    assert refusal(box.start, "slow") is grpc.StatusCode.FAILED_PRECONDITION
    assert not started.done()
    (tmp_path / "go").touch()
    assert started.result()
    pool.shutdown()
    assert box.wait("slow") == 0
    until((tmp_path / "ended").exists)
    assert (tmp_path / "out").read_bytes() == b"in\n"
    box.kill()
    box.wait()
    box.delete()


def test_a_container_that_ends_does_not_wait_for_a_logger_to_be_ready(box, logger, tmp_path) -> None:
    logger.write_text(LOGGER.replace("exec 5>&-", "exec 3<&- 4<&-; exec sleep 600"))
    box.run("/bin/sleep", "600")
    spec = Any(type_url=PROCESS_TYPE, value=json.dumps(process_of("/bin/true")).encode())
    place = f"binary://{logger}?to={tmp_path}"
    box.tasks.Exec(tasks_pb2.ExecProcessRequest(container_id="box", exec_id="slow", stdout=place, spec=spec))
    pool = ThreadPoolExecutor(1)
    started = pool.submit(box.start, "slow")
    until(lambda: (tmp_path / "begun").exists() and (tmp_path / "begun").read_text().endswith("\n"))
    pid = int((tmp_path / "begun").read_text().split()[1])
    box.kill()
    assert refusal(started.result) is grpc.StatusCode.NOT_FOUND
    pool.shutdown()
    box.wait()
    box.delete()
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_logger_that_dies_does_not_hold_the_container_up(box, logger, tmp_path) -> None:
    script = "until [ -e /run/go ]; do sleep 0.01; done; yes | head -c 1000000; exit 5"
    box.record("/bin/sh", "-c", script)
    box.create(stdout=f"binary://{logger}?to={tmp_path}")
    os.killpg(int((tmp_path / "begun").read_text().split()[1]), signal.SIGKILL)
    box.start()
    box.exec("x", "/bin/sh", "-c", ": > /run/go")
    box.start("x")
    assert box.wait() == 5
    box.delete()


def test_a_logger_that_does_not_end_is_killed_after_a_while(box, logger, tmp_path) -> None:
    logger.write_text(LOGGER.replace("sleep 0.3", "exec sleep 600"))
    box.record("/bin/true")
    box.create(stdout=f"binary://{logger}?to={tmp_path}")
    pid = int((tmp_path / "begun").read_text().split()[1])
    box.start()
    assert box.wait() == 0
    box.delete()
    assert not Path(f"/proc/{pid}").exists()


def test_programs_that_are_no_loggers_are_refused(box, tmp_path) -> None:
    box.record("/bin/true")
    codes = grpc.StatusCode
    assert refusal(box.create, stdout=f"binary://{tmp_path}/none") is codes.NOT_FOUND
    assert refusal(box.create, stdout="binary://relative") is codes.INVALID_ARGUMENT
    (tmp_path / "text").write_text("no program")
    assert refusal(box.create, stdout=f"binary://{tmp_path}/text") is codes.PERMISSION_DENIED
    assert refusal(box.get) is codes.NOT_FOUND, "nothing is left of them"


def restarts(policy: str, *, stopped: str = "") -> dict[str, str]:
    """Give the labels by which containerd's clients ask for a restart policy."""
    labels = {"status": "running", "policy": policy, "explicitly-stopped": stopped}
    return {f"containerd.io/restart.{key}": value for key, value in labels.items() if value}


@pytest.mark.parametrize(
    ("labels", "runs"),
    [
        (restarts("on-failure:2"), 3),
        (restarts("on-failure:2", stopped="true"), 1),
        (restarts("on-failure:2") | {"containerd.io/restart.status": "stopped"}, 1),
        (restarts("no"), 1),
        (restarts("nonsense"), 1),
        ({}, 1),
    ],
)
def test_labels_say_when_it_is_run_again(box, labels, runs) -> None:
    place = f"file://{box.folder}/log"
    box.record("/bin/sh", "-c", "echo run; exit 3", labels=labels)
    box.create(stdout=place, stderr=place)
    box.start()
    assert box.wait() == 3
    box.delete()
    assert (box.folder / "log").read_text() == "run\n" * runs


def test_a_label_tells_how_often_it_was_run_again(box) -> None:
    def told() -> str:
        return box.containers.Get(containers_pb2.GetContainerRequest(id=box.name)).container.labels.get(
            name, ""
        )

    name = "containerd.io/restart.count"
    box.record("/bin/sh", "-c", "exit 3", labels=restarts("on-failure:2"))
    box.create()
    assert told() == ""
    box.start()
    assert box.wait() == 3
    assert told() == "2"
    listed = box.containers.List(
        containers_pb2.ListContainersRequest(filters=[f'labels."{name}"==2'])
    ).containers
    assert [(each.id, each.labels[name]) for each in listed] == [(box.name, "2")]
    box.delete()
    assert told() == ""


SLOW_AT_FURTHER_RUNS = """
[ ! -e $folder/out ] || until [ -e $folder/go ]; do sleep 0.01; done
exec 5>&-"""


def test_a_logger_that_takes_its_time_at_a_further_run_holds_nobody_up(box, logger, tmp_path) -> None:
    def begun() -> int:
        return (tmp_path / "begun").read_text().count("\n")

    logger.write_text(LOGGER.replace("\nexec 5>&-", SLOW_AT_FURTHER_RUNS))
    box.record("/bin/sh", "-c", "echo run; exit 3", labels=restarts("on-failure:1"))
    box.create(stdout=f"binary://{logger}?to={tmp_path}")
    box.start()
    until(lambda: begun() == 2)
    assert box.get().status == task_types_pb2.RUNNING, "it is answered while the logger begins"
    (tmp_path / "go").touch()
    assert box.wait() == 3
    assert begun() == 2
    box.delete()


def test_a_task_that_is_killed_does_not_wait_for_the_logger_of_its_next_run(box, logger, tmp_path) -> None:
    logger.write_text(LOGGER.replace("\nexec 5>&-", SLOW_AT_FURTHER_RUNS))
    box.record("/bin/sh", "-c", "echo run; exit 3", labels=restarts("always"))
    box.create(stdout=f"binary://{logger}?to={tmp_path}")
    box.start()
    until(lambda: (tmp_path / "begun").read_text().count("\n") == 2)
    pid = int((tmp_path / "begun").read_text().split()[3])
    box.kill()
    assert box.wait() == 3
    box.delete()
    until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_label_that_says_it_was_stopped_ends_the_restarts(box) -> None:
    place = f"file://{box.folder}/log"
    script = "echo run; until [ -e /run/go ]; do sleep 0.01; done; exit 3"
    box.record("/bin/sh", "-c", script, labels=restarts("always"))
    box.create(stdout=place, stderr=place)
    box.start()
    until(lambda: (box.folder / "log").read_text() == "run\n")
    name = "containerd.io/restart.explicitly-stopped"
    update = containers_pb2.UpdateContainerRequest(
        container=containers_pb2.Container(id=box.name, labels={name: "true"}),
        update_mask=FieldMask(paths=[f"labels.{name}"]),
    )
    box.containers.Update(update)
    box.exec("x", "/bin/sh", "-c", ": > /run/go")
    box.start("x")
    assert box.wait() == 3
    box.delete()
    assert (box.folder / "log").read_text() == "run\n"


def test_what_its_labels_say_runs_is_started_by_the_next_server(served, box, tmp_path) -> None:
    def log(name: str) -> Path:
        return tmp_path / name / "log"

    def record(name: str, labels: dict[str, str]) -> Box:
        log(name).parent.mkdir()
        made = Box(served, tmp_path / name, [], name)
        return made.record(
            "/bin/sh", "-c", "echo run; until [ -e /run/go ]; do sleep 0.01; done",
            labels=labels | {"containerd.io/restart.loguri": f"file://{log(name)}"},
            root={"path": root, "readonly": True},
        )  # fmt: skip

    with served.client.snapshots.mounted("root") as folder:
        root = str(folder)
        others = {
            "stopped": restarts("always", stopped="true"),
            "failing": restarts("on-failure"),
            "created": restarts("always") | {"containerd.io/restart.status": "created"},
            "plain": {},
        }
        for name, labels in others.items():
            record(name, labels)
        record("missing", restarts("always") | {"containerd.io/restart.loguri": "file:///nowhere/log"})
        due = record("due", restarts("unless-stopped"))
        address = served.server.address.with_name("next")
        with Server(client=served.client, address=address):
            until(lambda: log("due").exists() and log("due").read_text() == "run\n")
            assert due.get().status == task_types_pb2.RUNNING
            for name in others:
                assert refusal(Box(served, tmp_path, [], name).get) is grpc.StatusCode.NOT_FOUND
            assert resume(served.client) == [], "it runs"
        served.client.containers.get("due").remove(force=True)


HOOKS = ("createRuntime", "poststart", "poststop")


def hooks_of(folder: Path) -> dict:
    """Give hooks that write down their points and the container's status."""
    script = 'echo $POINT $(cat | tr "," "\\n" | grep status) >> $FOLDER/told'
    return {
        point: [
            {
                "path": "/bin/sh",
                "args": ["sh", "-c", script],
                "env": ["PATH=/usr/bin:/bin", f"POINT={point}", f"FOLDER={folder}"],
            }
        ]
        for point in HOOKS
    }


@pytest.mark.parametrize("program", ["", "/usr/sbin/runc"])
def test_hooks_run_and_the_last_ones_when_the_task_is_deleted(box, tmp_path, program) -> None:
    told = tmp_path / "told"
    box.record("/bin/sh", "-c", "exit 3", program=program, hooks=hooks_of(tmp_path))
    for count in (1, 2):
        box.create()
        box.start()
        assert box.wait() == 3
        points = [line.split()[0] for line in told.read_text().splitlines()]
        assert points == [*HOOKS] * (count - 1) + ["createRuntime", "poststart"]
        box.delete()
        points = [line.split()[0] for line in told.read_text().splitlines()]
        assert points == [*HOOKS] * count
    assert told.read_text().splitlines()[2] == 'poststop "status":"stopped"'


def test_the_last_hooks_run_when_the_library_removes_the_container(served, box, tmp_path) -> None:
    box.record("/bin/true", hooks=hooks_of(tmp_path))
    box.create()
    box.start()
    box.wait()
    served.client.containers.get("box").remove()
    assert (tmp_path / "told").read_text().splitlines()[-1] == 'poststop "status":"stopped"'


@pytest.mark.needs_program("runc")
def test_another_runtime_makes_a_task_that_waits_for_its_start(box) -> None:
    box.record("/bin/sh", "-c", "echo out; cat; exit 4", program="/usr/sbin/runc")
    streams = box.streams(stdin=True)
    pid = box.create(streams)
    assert box.get().status == task_types_pb2.CREATED
    assert Path(f"/proc/{pid}").exists()
    assert box.start() == pid
    assert refusal(box.start) is grpc.StatusCode.FAILED_PRECONDITION
    box.exec("x", "/bin/sh", "-c", "exit 6")
    box.start("x")
    assert box.wait("x") == 6
    Path(streams.paths["stdin"]).write_bytes(b"in\n")
    box.close_input()
    assert box.wait() == 4
    assert streams.ended() == (b"out\nin\n", b"")
    assert box.delete().exit_status == 4


@pytest.mark.needs_program("runc")
def test_a_task_of_another_runtime_that_is_not_started_is_deleted(box) -> None:
    box.record("/bin/sleep", "600", program="/usr/sbin/runc")
    pid = box.create()
    assert box.delete().exit_status == 137
    assert not Path(f"/proc/{pid}").exists()
    assert refusal(box.get) is grpc.StatusCode.NOT_FOUND
    box.create()
    box.kill()
    assert box.wait() == 137
    box.delete()
    with pytest.raises(grpc.RpcError) as caught:
        box.name = "none"
        box.record("/no/such/program", program="/usr/sbin/runc")
        box.create()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_processes_are_added_by_name_and_their_end_is_kept(box) -> None:
    box.run("/bin/sleep", "600")
    streams = box.streams("one", stdin=True)
    box.exec("one", "/bin/sh", "-c", "cat; echo err >&2; exit 7", streams=streams)
    assert box.get("one").status == task_types_pb2.CREATED
    assert refusal(box.exec, "one", "/bin/true") is grpc.StatusCode.ALREADY_EXISTS
    assert refusal(box.kill, exec_id="one") is grpc.StatusCode.FAILED_PRECONDITION
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(box.wait, "one")
        pid = box.start("one")
        assert refusal(box.delete_exec, "one") is grpc.StatusCode.FAILED_PRECONDITION
        listed = box.tasks.ListPids(tasks_pb2.ListPidsRequest(container_id="box")).processes
        names = {
            each.pid: runc_options_pb2.ProcessDetails.FromString(each.info.value).exec_id for each in listed
        }
        assert names[pid] == "one" and names[box.get().pid] == ""
        with Path(streams.paths["stdin"]).open("wb") as file:
            file.write(b"given")
            box.close_input("one")
        assert waiting.result(DEADLINE) == 7
    assert streams.ended() == (b"given", b"err\n")
    state = box.get("one")
    assert (state.status, state.exit_status, state.id) == (task_types_pb2.STOPPED, 7, "one")
    assert state.stdout == streams.paths["stdout"]
    assert box.wait("one") == 7
    deleted = box.delete_exec("one")
    assert (deleted.exit_status, deleted.id, deleted.pid) == (7, "one", pid)
    assert refusal(box.get, "one") is refusal(box.delete_exec, "one") is grpc.StatusCode.NOT_FOUND


def test_who_waits_for_a_process_hears_of_every_end(box) -> None:
    box.run("/bin/sleep", "600")
    with ThreadPoolExecutor(4) as pool:
        for number in range(40):
            name = f"e{number}"
            box.exec(name, "/bin/sh", "-c", f"exit {number}")
            waiting = pool.submit(box.wait, name)
            box.start(name)
            assert waiting.result(DEADLINE) == number
            assert box.delete_exec(name).exit_status == number


def test_an_exec_with_a_terminal_or_a_program_that_is_not_there(box) -> None:
    box.run("/bin/sleep", "600")
    streams = box.streams("t")
    box.exec("t", "/bin/sh", "-c", "test -t 0 && echo tty", streams=streams, terminal=True)
    box.start("t")
    assert box.wait("t") == 0
    assert streams.output() == b"tty\r\n"
    box.exec("none", "/bin/none")
    assert refusal(box.start, "none") is grpc.StatusCode.NOT_FOUND
    assert box.wait("none") == 127
    assert box.delete_exec("none").exit_status == 127


def test_processes_end_with_the_container_and_are_known_after_it(box) -> None:
    box.run("/bin/sleep", "600")
    box.exec("sleeps", "/bin/sleep", "600")
    box.start("sleeps")
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(box.wait, name) for name in ("", "sleeps")]
        box.kill()
        assert [each.result(DEADLINE) for each in waiting] == [137, 137]
    assert box.get("sleeps").status == task_types_pb2.STOPPED
    assert box.delete_exec("sleeps").exit_status == 137
    assert refusal(box.get, "sleeps") is grpc.StatusCode.NOT_FOUND
    assert refusal(box.exec, "late", "/bin/true") is grpc.StatusCode.FAILED_PRECONDITION
    assert box.delete().exit_status == 137


def test_signals_reach_the_process_they_are_for(box) -> None:
    script = "trap 'exit 5' USR1; trap 'exit 6' TERM; echo > /$0; while true; do sleep 0.05; done"
    box.run("/bin/sh", "-c", script, "first")
    box.exec("other", "/bin/sh", "-c", script, "second")
    box.start("other")
    box.exec("looks", "/bin/sh", "-c", "until test -e /first -a -e /second; do sleep 0.01; done")
    box.start("looks")
    assert box.wait("looks") == 0
    box.kill(signal.SIGUSR1, "other")
    assert box.wait("other") == 5
    assert refusal(box.kill, exec_id="other") is grpc.StatusCode.NOT_FOUND
    assert refusal(box.kill, 99) is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal(box.kill, exec_id="none") is grpc.StatusCode.NOT_FOUND
    box.kill(0)
    box.kill(signal.SIGTERM, all=True)
    assert box.wait() == 6
    assert refusal(box.kill) is grpc.StatusCode.NOT_FOUND


def test_a_task_is_frozen_thawed_limited_and_measured(box) -> None:
    box.run("/bin/sleep", "600")
    box.tasks.ResizePty(
        tasks_pb2.ResizePtyRequest(container_id="box", width=1, height=1)
    )  # there is no terminal
    box.tasks.Pause(tasks_pb2.PauseTaskRequest(container_id="box"))
    assert box.get().status == task_types_pb2.PAUSED
    again = tasks_pb2.PauseTaskRequest(container_id="box")
    assert refusal(box.tasks.Pause, again) is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal(box.exec, "x", "/bin/true") is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal(box.delete) is grpc.StatusCode.FAILED_PRECONDITION
    box.tasks.Resume(tasks_pb2.ResumeTaskRequest(container_id="box"))
    assert box.get().status == task_types_pb2.RUNNING
    again = tasks_pb2.ResumeTaskRequest(container_id="box")
    assert refusal(box.tasks.Resume, again) is grpc.StatusCode.FAILED_PRECONDITION
    limits = Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources")
    limits.value = json.dumps({"pids": {"limit": 77}}).encode()
    box.tasks.Update(tasks_pb2.UpdateTaskRequest(container_id="box", resources=limits))
    (metric,) = box.tasks.Metrics(tasks_pb2.MetricsRequest(filters=["id==box"])).metrics
    kinds = {kind.DESCRIPTOR.full_name: kind for kind in (cgroup1_pb2.Metrics, cgroup2_pb2.Metrics)}
    told = kinds[metric.data.type_url].FromString(metric.data.value)
    assert (metric.id, told.pids.limit) == ("box", 77) and told.pids.current >= 1
    assert not box.tasks.Metrics(tasks_pb2.MetricsRequest(filters=["id==other"])).metrics
    limits.value = b'{"colour": 1}'
    bad = tasks_pb2.UpdateTaskRequest(container_id="box", resources=limits)
    assert refusal(box.tasks.Update, bad) is grpc.StatusCode.INVALID_ARGUMENT
    for text in (b'{"memory": "much"}', b"{"):
        limits.value = text
        bad = tasks_pb2.UpdateTaskRequest(container_id="box", resources=limits)
        assert refusal(box.tasks.Update, bad) is grpc.StatusCode.INVALID_ARGUMENT
    limits.value = b'{"memory": null}'
    box.tasks.Update(tasks_pb2.UpdateTaskRequest(container_id="box", resources=limits))
    limits.value = b"[]"
    bad = tasks_pb2.UpdateTaskRequest(container_id="box", resources=limits)
    assert refusal(box.tasks.Update, bad) is grpc.StatusCode.INVALID_ARGUMENT


def test_refusals_are_those_of_containerd(box) -> None:
    codes = grpc.StatusCode
    assert refusal(box.create) is codes.NOT_FOUND, "no container"
    box.record("/bin/sleep", "600")
    for call in (box.start, box.get, box.wait, box.kill, box.delete):
        assert refusal(call) is codes.NOT_FOUND, call
    assert refusal(box.exec, "x", "/bin/true") is codes.NOT_FOUND
    box.create()
    assert refusal(box.create) is codes.ALREADY_EXISTS
    pause = tasks_pb2.PauseTaskRequest(container_id="box")
    assert refusal(box.tasks.Pause, pause) is codes.FAILED_PRECONDITION
    box.start()
    assert refusal(box.start) is codes.FAILED_PRECONDITION
    assert refusal(box.delete) is codes.FAILED_PRECONDITION
    for name in ("", "a" * 77, "a\0b", "../x"):
        assert refusal(box.exec, name, "/bin/true") is codes.INVALID_ARGUMENT, name
    spec = tasks_pb2.ExecProcessRequest(container_id="box", exec_id="x", spec=Any(value=b"[]"))
    assert refusal(box.tasks.Exec, spec) is codes.INVALID_ARGUMENT
    for name in ("start", "wait", "get", "delete_exec"):
        assert refusal(getattr(box, name), "none") is codes.NOT_FOUND, name
    delete = containers_pb2.DeleteContainerRequest(id="box")
    assert refusal(box.containers.Delete, delete) is codes.FAILED_PRECONDITION
    checkpoint = tasks_pb2.CheckpointTaskRequest(container_id="box")
    assert refusal(box.tasks.Checkpoint, checkpoint) is codes.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        box.tasks.Get(tasks_pb2.GetRequest(container_id="box"), namespace="other")
    assert caught.value.code() is codes.NOT_FOUND


def test_a_task_that_is_created_and_not_started_is_deleted(box) -> None:
    box.record("/bin/sleep", "600")
    pid = box.create()
    assert box.delete().exit_status == 137
    assert not Path(f"/proc/{pid}").exists()
    assert refusal(box.get) is grpc.StatusCode.NOT_FOUND


def test_what_the_launcher_does_not_know_is_refused_by_name(box) -> None:
    box.record("/bin/true", linux=spec_of("x")["linux"] | {"intelRdt": {"closID": "x"}})
    with pytest.raises(grpc.RpcError) as caught:
        box.create()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "linux.intelRdt" in caught.value.details()


def test_the_library_drives_what_a_client_created_and_the_reverse(served, box, small_image) -> None:
    box.record("/bin/sleep", "600")
    box.create()
    box.start()
    library = served.client.containers.get("box")
    assert library.status == "running" and library.pid == box.get().pid
    assert library.exec(["/bin/echo", "hi"]).stdout == b"hi\n"
    assert library.stop(0) == 137
    assert box.wait() == 137
    library.remove()
    own = served.client.containers.run(small_image, ["/bin/sleep", "600"], name="own", detach=True)
    listed = {each.id: each.status for each in box.tasks.List(tasks_pb2.ListTasksRequest()).tasks}
    assert listed == {own.id: task_types_pb2.RUNNING}
    box.name = own.id
    box.exec("x", "/bin/sh", "-c", "exit 4")
    box.start("x")
    assert box.wait("x") == 4
    box.kill()
    assert own.wait() == 137
    box.delete()
    assert own.status == "created"


SERVER = """
import sys
from lamella.serve import Server
with Server(root=sys.argv[1], state=sys.argv[2], address=sys.argv[3]) as server:
    print("ready", flush=True)
    server.wait()
"""


def test_a_server_that_is_killed_harms_no_container_and_the_next_one_finds_all(served, box, tmp_path) -> None:
    """Everything is done through a second server, which is killed; the first one is the next."""
    address = str(Path(served.address).parent / "killed.sock")
    command = [sys.executable, "-c", SERVER, str(tmp_path / "root"), str(tmp_path / "state"), address]
    server = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        with grpc.insecure_channel(f"unix:{address}") as channel:
            other = type(served.stub(tasks_pb2, "Tasks"))
            tasks, box.tasks = (
                box.tasks,
                other(channel, tasks_pb2.DESCRIPTOR.services_by_name["Tasks"], "default"),
            )
            streams = box.record("/bin/sh", "-c", "read line; echo $line; exit 9").streams(stdin=True)
            box.create(streams)
            box.start()
            box.exec("sleeps", "/bin/sleep", "600")
            box.start("sleeps")
            failed: list[grpc.StatusCode] = []
            waiter = threading.Thread(target=lambda: failed.append(refusal(box.wait)))
            waiter.start()
            time.sleep(0.2)
            server.kill()
            waiter.join(DEADLINE)
            assert failed == [grpc.StatusCode.UNAVAILABLE]
            box.tasks = tasks
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    state = box.get()
    assert (state.status, state.stdout) == (task_types_pb2.RUNNING, streams.paths["stdout"])
    assert box.get("sleeps").status == task_types_pb2.RUNNING
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(box.wait)
        Path(streams.paths["stdin"]).write_bytes(b"still here\n")
        assert waiting.result(DEADLINE) == 9
    assert streams.ended() == (b"still here\n", b"")
    assert box.delete_exec("sleeps").exit_status == 137
    assert box.delete().exit_status == 9

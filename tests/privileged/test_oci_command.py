"""``lamella-oci``: the operations of the runtime spec, as engines call them.

Sources: the runtime spec's runtime.md (operations, lifecycle) and config.md (hooks); runc's command line (options, exit status).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launcher_box import PYTHON
from oci_bundle import HOOK_STATUS, OciBundle, reaping

from lamella import _core
from monitors import hierarchies
from oci_program import COMMAND
from waiting import until

pytestmark = pytest.mark.privileged
SLEEP = ("/bin/sleep", "1000")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], OciBundle]]:
    bundles: list[OciBundle] = []

    def one() -> OciBundle:
        bundles.append(OciBundle(tmp_path))
        return bundles[-1]

    with reaping():
        try:
            yield one
        finally:
            for bundle in bundles:
                bundle.clean()


@pytest.fixture
def box(make: Callable[[], OciBundle]) -> OciBundle:
    return make()


def test_a_container_is_created_started_ended_and_deleted(box: OciBundle) -> None:
    box.spec["annotations"] = {"a.b/c": "d"}
    box.create("/bin/sh", "-c", "echo out; echo err >&2; exec sleep 1000")
    state = box.state()
    assert (state["status"], state["pid"], state["bundle"]) == ("created", box.pids[0], str(box.folder))
    assert (state["id"], state["annotations"]) == (box.id, {"a.b/c": "d"})
    assert state["ociVersion"].startswith("1.")
    assert box.output == ""
    box.call("start", box.id)
    until(lambda: box.output == "out\nerr\n")
    assert box.status == "running"
    box.call("kill", box.id, "KILL")
    assert box.wait() == -signal.SIGKILL
    state = box.state()
    assert (state["status"], state["pid"]) == ("stopped", 0)
    assert box.left() != []
    box.call("delete", box.id)
    assert box.left() == []
    assert f'there is no container "{box.id}"' in box.refused("state", box.id)


def test_a_container_is_the_callers_child_and_nothing_of_the_command_stays(box: OciBundle) -> None:
    box.start("/bin/sh", "-c", "exit 7")
    assert box.wait() == 7
    box.call("delete", box.id)
    box.start(*SLEEP)
    status = Path(f"/proc/{box.pids[0]}/status").read_text()
    assert f"PPid:\t{os.getpid()}\n" in status


def test_what_a_container_does_not_admit_has_no_effect(box: OciBundle) -> None:
    box.create(*SLEEP)
    assert "is created, not stopped" in box.refused("delete", box.id)
    assert "there is a container" in box.refused("create", "--bundle", str(box.folder), box.id)
    box.call("start", box.id)
    assert "is running, not created" in box.refused("start", box.id)
    assert "is running, not stopped" in box.refused("delete", box.id)
    assert box.status == "running"
    box.call("kill", box.id, "9")
    box.wait()
    assert "is stopped, not created" in box.refused("start", box.id)
    assert "is stopped, not created or running" in box.refused("kill", box.id, "KILL")
    assert "there is no container" in box.refused("start", "other")
    assert "there is no container" in box.refused("kill", "other")
    box.call("delete", "--force", "other")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "", "a b", "x" * 300])
def test_an_identifier_leads_nowhere(box: OciBundle, name: str) -> None:
    box.write(*SLEEP)
    for command in (["create", "--bundle", str(box.folder)], ["state"], ["delete", "--force"], ["kill"]):
        assert "is no identifier" in box.refused(*command, name)
    assert box.left() == []


def test_a_created_container_heeds_signals_as_any_process_does(box: OciBundle) -> None:
    box.create(*SLEEP)
    box.call("kill", box.id, "SIGTERM")
    assert box.wait() == 128 + signal.SIGTERM
    assert box.status == "stopped"


def test_signals_reach_the_program_by_name_and_by_number(box: OciBundle) -> None:
    code = "import signal\nwhile 1: print(signal.sigwait([10, 12, 15]).value, flush=True)"
    mask = (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [10, 12, 15])\nprint('ready', flush=True)\n"
    )
    box.start(PYTHON, "-I", "-S", "-c", mask + code)
    until(lambda: "ready" in box.output)
    for name, number in {"USR1": 10, "sigusr2": 12, "15": 15}.items():
        box.call("kill", box.id, name)
        until(lambda number=number: f"{number}\n" in box.output)
    box.call("kill", box.id)
    until(lambda: box.output.endswith("15\n15\n"))
    assert "is no signal" in box.refused("kill", box.id, "NOISE")


def test_a_process_that_got_the_same_id_later_is_not_taken_for_the_container(box: OciBundle) -> None:
    box.start(*SLEEP)
    record = box.root / box.id / "state.json"
    document = json.loads(record.read_text())
    record.write_text(json.dumps({**document, "startTime": document["startTime"] + 1}))
    assert box.status == "stopped"
    assert "is stopped" in box.refused("kill", box.id, "KILL")
    assert Path(f"/proc/{box.pids[0]}").exists()
    record.write_text(json.dumps(document))


def test_what_cannot_be_made_leaves_nothing_and_says_why(box: OciBundle) -> None:
    assert 'exec: "nothing": executable file not found' in box.create("nothing", check=False)
    assert box.left() == []
    box.linux["intelRdt"] = {}
    assert "linux.intelRdt" in box.create(*SLEEP, check=False)
    assert box.left() == []
    assert "open the bundle" in box.refused("create", "--bundle", "/nowhere", box.id)


def test_the_program_that_cannot_be_run_is_told_by_start(box: OciBundle) -> None:
    script = box.lower / "script"
    script.write_text("no program at all")
    script.chmod(0o755)
    box.create("/script")
    assert "exec format error" in box.refused("start", box.id)
    assert box.wait() == 126
    assert box.status == "stopped"


def test_errors_go_to_the_log_in_the_form_that_engines_read(box: OciBundle, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for form in ("json", "text"):
        done = subprocess.run(
            [COMMAND, "--root", box.root, "--log", log, "--log-format", form, "state", "other"],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
    first, second = log.read_text().splitlines()
    assert json.loads(first)["level"] == "error"
    assert json.loads(first)["msg"] == 'there is no container "other"'
    assert 'level=error msg="there is no container \\"other\\""' in second


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--systemd-cgroup", "state", "x"], "--systemd-cgroup"),
        (["create", "--no-pivot", "x"], "--no-pivot"),
        (["state", "--colour", "x"], "--colour"),
        (["checkpoint", "x"], "checkpoint"),
        (["--log-format", "xml", "state", "x"], "xml"),
    ],
)
def test_what_the_command_does_not_know_is_refused_by_name(
    box: OciBundle, arguments: list[str], name: str
) -> None:
    assert name in box.refused(*arguments)


def test_the_terminal_is_handed_over_by_the_console_socket(box: OciBundle, tmp_path: Path) -> None:
    box.process["terminal"] = True
    assert "--console-socket" in box.create(*SLEEP, check=False)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "console"))
        listener.listen()
        box.create(
            "/bin/sh",
            "-c",
            "test -t 0 && test -t 1 && tty && exec sleep 1000",
            options=("--console-socket", str(tmp_path / "console")),
        )
        connection, _ = listener.accept()
        with connection:
            name, (master,), *_ = socket.recv_fds(connection, 100, 1)
    assert name == b"/dev/ptmx"
    with os.fdopen(master, "rb", buffering=0) as terminal:
        box.call("start", box.id)
        shown = b""
        while not shown.endswith(b"\n"):  # what is written at once may come in pieces
            shown += terminal.read(100)
        assert shown == b"/dev/pts/0\r\n"


def _namespace(pid: int, kind: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def _note(folder: Path, name: str) -> dict[str, Any]:
    script = f"printf '%s ' {name} >> {folder}/order; cat > {folder}/{name}"
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}


HOOKS = tuple(HOOK_STATUS)


def test_hooks_run_in_order_with_the_state_on_their_standard_input(box: OciBundle, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    box.spec["hooks"] = {name: [_note(notes, name)] for name in HOOKS}
    box.spec["mounts"].append(
        {"destination": str(notes), "type": "bind", "source": str(notes), "options": ["rbind"]}
    )
    box.create(*SLEEP)
    assert (notes / "order").read_text().split() == list(HOOKS[:3])
    box.call("start", box.id)
    assert (notes / "order").read_text().split() == list(HOOKS[:5])
    pid = box.pids[0]
    box.call("kill", box.id, "KILL")
    box.wait()
    box.call("delete", box.id)
    assert (notes / "order").read_text().split() == list(HOOKS)
    told = {name: json.loads((notes / name).read_text()) for name in HOOKS}
    assert {name: state["status"] for name, state in told.items()} == HOOK_STATUS
    assert [told[name]["pid"] for name in HOOKS] == [pid, pid, 1, 1, pid, 0]
    assert {(state["id"], state["bundle"]) for state in told.values()} == {(box.id, str(box.folder))}


def test_hooks_see_the_namespaces_that_the_spec_gives_them(box: OciBundle, tmp_path: Path) -> None:
    look = f"readlink /proc/self/ns/mnt >> {tmp_path}/$0; ls / > {tmp_path}/$0.root"
    box.spec["hooks"] = {
        name: [{"path": "/bin/sh", "args": [name, "-c", look], "env": ["PATH=/usr/bin:/bin"]}]
        for name in ("createRuntime", "createContainer")
    }
    box.create(*SLEEP)
    own, inside = _namespace(os.getpid(), "mnt"), _namespace(box.pids[0], "mnt")
    assert (tmp_path / "createRuntime").read_text().strip() == own
    assert (tmp_path / "createContainer").read_text().strip() == inside
    # Before the container's root becomes the root.
    assert (tmp_path / "createContainer.root").read_text() == (tmp_path / "createRuntime.root").read_text()


@pytest.mark.parametrize("point", HOOKS[:3])
def test_a_hook_that_fails_ends_the_creation(box: OciBundle, point: str) -> None:
    box.spec["hooks"] = {point: [{"path": "/bin/sh", "args": ["sh", "-c", "echo no way; exit 3"]}]}
    said = box.create(*SLEEP, check=False)
    assert f"hooks.{point}[0] /bin/sh: exit status: 3: no way" in said
    assert box.left() == []


def test_a_hook_that_takes_too_long_fails(box: OciBundle) -> None:
    box.spec["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]}
    assert "killed after 1 s" in box.create(*SLEEP, check=False)
    assert box.left() == []


def test_hooks_of_the_start_that_fail_end_the_container_and_those_after_the_end_do_not(
    box: OciBundle,
) -> None:
    for point, code in {"startContainer": 1, "poststart": -signal.SIGKILL}.items():
        box.spec["hooks"] = {point: [{"path": "/bin/false"}], "poststop": [{"path": "/bin/false"}]}
        box.create(*SLEEP)
        assert f"hooks.{point}[0] /bin/false" in box.refused("start", box.id)
        assert box.wait() == code
        assert "warning: hooks.poststop[0] /bin/false" in box.call("delete", box.id).stderr
        assert box.left() == []


def test_a_create_that_is_killed_leaves_no_process_and_delete_takes_the_rest(
    box: OciBundle, tmp_path: Path
) -> None:
    box.spec["hooks"] = {
        "createContainer": [
            {"path": "/bin/sh", "args": ["sh", "-c", f"echo $PPID > {tmp_path}/ready; exec sleep 1000"]}
        ]
    }
    box.write(*SLEEP)
    command = [COMMAND, "--root", box.root, "create", "--bundle", box.folder, box.id]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as creating:
        until(lambda: (tmp_path / "ready").exists() and (tmp_path / "ready").read_text())
        state = box.state()
        assert state["status"] == "creating"
        creating.kill()
    os.waitpid(state["pid"], 0)
    assert box.status == "stopped"
    box.call("delete", "--force", box.id)
    assert box.left() == []


def test_descriptors_of_the_caller_are_handed_down_only_when_asked_for(
    box: OciBundle, tmp_path: Path
) -> None:
    handed = tmp_path / "handed"
    open_files = ("/bin/sh", "-c", f'exec "$@" 3>{handed} 9</etc/hostname', "sh")
    script = "echo handed >&3; exec ls /proc/self/fd"
    box.create("/bin/sh", "-c", script, options=("--preserve-fds", "1"), before=open_files)
    box.call("start", box.id)
    assert box.wait() == 0
    # The last one is the folder that is listed.
    assert box.output.split() == ["0", "1", "2", "3", "4"]
    assert handed.read_text() == "handed\n"


def test_a_working_folder_outside_of_the_root_is_refused_also_where_a_descriptor_leads_there(
    box: OciBundle, tmp_path: Path
) -> None:
    box.process["cwd"] = "/proc/self/fd/3"
    open_folder = ("/bin/sh", "-c", f'exec "$@" 3<{tmp_path}', "sh")
    said = box.create("/bin/true", options=("--preserve-fds", "1"), before=open_folder, check=False)
    assert "outside the container's root" in said


def test_a_further_process_is_run_in_the_foreground_or_left_to_the_caller(
    box: OciBundle, tmp_path: Path
) -> None:
    box.start(*SLEEP)
    done = box.call(
        "exec",
        "-e",
        "A=b",
        "--cwd",
        "/usr",
        "-u",
        "5:6",
        box.id,
        "/bin/sh",
        "-c",
        "echo $A $PWD $(id -u):$(id -g); exit 9",
        check=False,
    )
    assert (done.returncode, done.stdout) == (9, "b /usr 5:6\n")
    assert "executable file not found" in box.call("exec", box.id, "nothing", check=False).stderr
    process = tmp_path / "process.json"
    process.write_text(json.dumps({**box.process, "args": ["/bin/sh", "-c", "exec sleep 1000"]}))
    options = ["--process", str(process), "--pid-file", str(tmp_path / "pid"), "--detach"]
    with Path(os.devnull).open("r+b") as null:
        subprocess.run(
            [COMMAND, "--root", box.root, "exec", *options, box.id],
            stdin=null,
            stdout=null,
            stderr=null,
            timeout=60,
            check=True,
        )
    pid = int((tmp_path / "pid").read_text())
    for kind in ("mnt", "pid", "net"):
        assert _namespace(pid, kind) == _namespace(box.pids[0], kind)
    assert pid in json.loads(box.call("ps", "--format", "json", box.id).stdout)
    box.call("kill", box.id, "KILL")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_container_is_paused_resumed_and_given_other_limits(box: OciBundle) -> None:
    box.start(*SLEEP)
    box.call("pause", box.id)
    assert box.status == "paused"
    assert "is paused, not created or running" in box.refused("exec", box.id, "true")
    box.call("resume", box.id)
    assert box.status == "running"
    assert "is running, not paused" in box.refused("resume", box.id)
    box.call("update", "--resources", "-", box.id, input='{"pids":{"limit":77}}')
    assert any(
        (folder / "pids.max").read_text() == "77\n"
        for folder in box.cgroup_folders()
        if (folder / "pids.max").exists()
    )
    box.call("pause", box.id)
    box.call("kill", box.id, "KILL")
    assert box.wait() == -signal.SIGKILL


def test_deleting_takes_the_cgroup_and_the_parent_that_is_ours_and_leaves_others(
    box: OciBundle, parent: str
) -> None:
    for top in hierarchies():
        (top / parent).mkdir()
    for cgroup, stays in ((f"/{parent}/{box.id}", True), (f"/{parent}/lamella-oci/{box.id}", False)):
        box.cgroup = box.linux["cgroupsPath"] = cgroup
        box.start(*SLEEP)
        folders = box.cgroup_folders()
        box.call("kill", box.id, "KILL")
        box.wait()
        box.call("delete", box.id)
        assert box.left() == []
        assert {folder.parent.is_dir() for folder in folders} == {stays}


def test_all_containers_are_listed(make: Callable[[], OciBundle]) -> None:
    one, other = make(), make()
    one.start(*SLEEP)
    other.create(*SLEEP)
    documents = json.loads(one.call("list", "--format", "json").stdout)
    assert {row["id"]: row["status"] for row in documents} == {one.id: "running", other.id: "created"}
    assert sorted(one.call("list", "--quiet").stdout.split()) == sorted([one.id, other.id])
    assert one.call("list").stdout.splitlines()[0].split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED"]


def test_run_gives_the_programs_exit_status_and_leaves_nothing(box: OciBundle) -> None:
    box.write("/bin/sh", "-c", "read line; echo got $line; exit 5")
    done = box.call("run", "--bundle", str(box.folder), box.id, input="something\n", check=False)
    assert (done.returncode, done.stdout) == (5, "got something\n")
    box.write("nothing")
    assert box.call("run", "--bundle", str(box.folder), box.id, check=False).returncode == 127
    box.without_namespace("pid")
    box.write("/bin/sh", "-c", "kill -9 $$; exit 1")
    assert box.call("run", "--bundle", str(box.folder), box.id, check=False).returncode == 128 + 9
    assert box.left() == []


def test_a_container_without_a_pid_namespace_is_killed_whole(box: OciBundle) -> None:
    box.without_namespace("pid")
    box.start("/bin/sh", "-c", "sleep 1000 & echo $!; exec sleep 1000")
    until(lambda: box.output.endswith("\n"))
    child = int(box.output)
    box.call("kill", box.id, "KILL")
    assert box.wait() == -signal.SIGKILL
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_the_container_may_have_a_user_namespace(box: OciBundle) -> None:
    box.linux["namespaces"].append({"type": "user"})
    box.linux["uidMappings"] = box.linux["gidMappings"] = [
        {"containerID": 0, "hostID": 100000, "size": 65536}
    ]
    for folder in (box.folder, box.folder.parent, box.folder.parent.parent, box.folder.parent.parent.parent):
        folder.chmod(folder.stat().st_mode | 0o055)
    # A Python that lies in a folder of root's.
    box.spec["mounts"] = [
        mount for mount in box.spec["mounts"] if not mount["destination"].startswith("/root/")
    ]
    box.start("/bin/sh", "-c", "id -u; cat /proc/self/uid_map; exec sleep 1000")
    until(lambda: "100000" in box.output)
    assert box.output.split() == ["0", "0", "100000", "65536"]
    assert box.call("exec", box.id, "id", "-u").stdout == "0\n"


@pytest.mark.parametrize("says", ["maps", "no maps"])
def test_the_container_may_join_a_user_namespace_with_all_that_is_made_in_it(
    box: OciBundle, tmp_path: Path, says: str
) -> None:
    path = tmp_path / "network"
    _core.pin_network(str(path), ("0:100000:65536", "0:100000:65536"))
    try:
        for namespace in box.linux["namespaces"]:
            if namespace["type"] == "network":
                namespace["path"] = str(path)
        box.linux["namespaces"].append({"type": "user", "path": f"{path}.user"})
        if says == "maps":
            box.linux["uidMappings"] = box.linux["gidMappings"] = [
                {"containerID": 0, "hostID": 100000, "size": 65536}
            ]
        for folder in (box.folder, *list(box.folder.parents)[:3]):
            folder.chmod(folder.stat().st_mode | 0o055)
        box.spec["mounts"] = [
            mount for mount in box.spec["mounts"] if not mount["destination"].startswith("/root/")
        ]
        box.spec["hostname"] = "joined"
        box.start(
            "/bin/sh", "-c", "id -u; hostname; cat /proc/self/uid_map; ls /sys/class/net; exec sleep 1000"
        )
        until(lambda: "lo" in box.output.split())
        assert box.output.split() == ["0", "joined", "0", "100000", "65536", "lo"]
        kept = Path(f"{path}.user").stat()
        assert Path(f"/proc/{box.pids[0]}/ns/user").stat().st_ino == kept.st_ino
        assert box.call("exec", box.id, "id", "-u").stdout == "0\n"
    finally:
        _core.unpin_network(str(path))


def test_the_executable_itself_can_be_installed(box: OciBundle, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    path = tmp_path / "bin" / "lamella-oci"
    box.call("install", str(path))
    assert path.read_bytes()[:4] == b"\x7fELF"
    box.write("/bin/sh", "-c", "exit 4")
    run = ["--root", str(box.root), "run", "--bundle", str(box.folder), box.id]
    assert subprocess.run([path, *run], timeout=60, check=False).returncode == 4
    assert "must be called lamella-oci" in box.refused("install", str(tmp_path / "other"))


def test_warnings_are_told_in_the_log_and_not_to_a_container(box: OciBundle, tmp_path: Path) -> None:
    box.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 1 << 30, "hard": 1 << 30}]
    box.write("/bin/sh", "-c", "true")
    log = tmp_path / "log"
    for options in ([], ["--log", str(log)]):
        assert box.call(*options, "run", "--bundle", str(box.folder), box.id).stderr == ""
    assert "level=warning" in log.read_text()
    assert "RLIMIT_NOFILE is" in log.read_text()


def test_the_example_and_the_features_are_documents_of_the_spec(box: OciBundle, tmp_path: Path) -> None:
    box.call("spec", "--bundle", str(tmp_path))
    example = json.loads((tmp_path / "config.json").read_text())
    assert (example["root"]["path"], example["process"]["args"]) == ("rootfs", ["sh"])
    box.spec.update({key: value for key, value in example.items() if key not in ("root", "mounts")})
    box.process["terminal"] = False
    box.write("/bin/sh", "-c", "id -u; hostname")
    assert box.call("run", "--bundle", str(box.folder), box.id).stdout == "0\nlamella\n"
    features = json.loads(box.call("features").stdout)
    assert features["hooks"] == list(HOOKS)
    assert {"mount", "pid", "user"} <= set(features["linux"]["namespaces"])
    assert "lamella-oci version" in box.call("--version").stdout
    assert "create" in box.call("--help").stdout

"""Hooks of the runtime spec in the library's own containers: order, place, state, failure, and that nothing is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from oci_bundle import HOOK_STATUS

from lamella.errors import FailedPrecondition, LamellaError
from monitors import cgroups, kill_monitor
from waiting import until

pytestmark = pytest.mark.privileged

HOST_POINTS = ("prestart", "createRuntime", "poststart", "poststop")
POINTS = tuple(HOOK_STATUS)


def hook(script: str, **more: Any) -> dict[str, Any]:
    return {
        "path": "/bin/sh",
        "args": ["sh", "-c", script],
        "env": [f"PATH={os.environ['PATH']}", "KEY=value"],
        **more,
    }


def hooks(**scripts: str) -> Any:
    """Give the ``spec`` option for one hook at each of some points."""
    return {"hooks": {point: [hook(script)] for point, script in scripts.items()}}


class Told:
    """What hooks of the host's side have written down, a line each: the point, and what follows."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "told"

    def script(self, point: str, rest: str = "") -> str:
        return f"echo {point} {rest} >> {self.file}"

    def open_for_all(self) -> None:
        """Let the root of mapped ids write, who is nobody here."""
        self.file.touch()
        self.file.chmod(0o666)
        for folder in self.file.parents:
            if folder.stat().st_uid == os.getuid() and folder.name.startswith(("pytest-", "test_")):
                folder.chmod(0o755)

    def lines(self) -> list[str]:
        return [line.strip() for line in self.file.read_text().splitlines()] if self.file.exists() else []


def starting(client: Any, box: Any) -> str:
    """Give a Python program that starts a container."""
    place = f"root={str(client.config.root)!r}, state={str(client.config.state)!r}"
    return f"import lamella; lamella.Client({place}).containers.get({box.id!r}).start()"


@pytest.fixture
def told(tmp_path) -> Told:
    return Told(tmp_path)


@pytest.mark.parametrize("options", [{}, {"userns": "auto"}, {"init": True}, {"network": "host"}], ids=str)
def test_hooks_run_in_the_order_of_the_spec_in_their_namespaces_with_the_state(client, image, told, options):
    namespaces = "$(ls -l /proc/self/ns/mnt) $(cat)"
    points = {point: told.script(point, namespaces) for point in HOST_POINTS}
    points["createContainer"] = told.script("createContainer", namespaces)
    points["startContainer"] = "cat > /dev/shm/state; ls -l /proc/self/ns/mnt > /dev/shm/namespace"
    box = client.containers.create(
        image,
        ["sh", "-c", "cat /dev/shm/state; echo; cat /dev/shm/namespace; ls -l /proc/self/ns/mnt"],
        spec=hooks(**points) | {"annotations": {"a.b": "c d"}},
        **options,
    )
    told.open_for_all()
    box.start()
    assert box.wait(60) == 0
    until(lambda: len(told.lines()) == 5)
    inside = b"".join(data for _, data in box.logs()).decode().splitlines()
    box.remove()

    lines = [re.fullmatch(r"(\w+) .* -> (\S+) (\{.*\})", line) for line in told.lines()]
    seen = {line[1]: (line[2], json.loads(line[3].replace('\\"', '"'))) for line in lines if line}
    assert list(seen) == ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
    here = str(Path("/proc/self/ns/mnt").readlink())
    assert all(seen[point][0] == here for point in HOST_POINTS)
    assert seen["createContainer"][0] == inside[1].split()[-1] == inside[2].split()[-1] != here
    states = {point: state for point, (_, state) in seen.items()} | {"startContainer": json.loads(inside[0])}
    assert {point: states[point]["status"] for point in POINTS} == HOOK_STATUS
    for state in states.values():
        assert (state["id"], state["bundle"]) == (box.id, str(box.task.folder))
        assert state["annotations"]["a.b"] == "c d"
    assert states["createRuntime"]["pid"] == states["poststart"]["pid"] > 1
    assert states["poststop"]["pid"] == 0


@pytest.mark.parametrize("point", [point for point in POINTS if point != "poststop"])
@pytest.mark.parametrize("network", ["none", "host"])
def test_a_hook_that_fails_ends_the_start_and_nothing_is_left(client, image, told, point, network):
    scripts = {point: "echo no good >&2; exit 3", "poststop": told.script("poststop")}
    box = client.containers.create(image, ["sleep", "600"], spec=hooks(**scripts), network=network)
    with pytest.raises(FailedPrecondition, match=rf"hooks.{point}\[0\] /bin/sh: exit status: 3: no good"):
        box.start()
    assert told.lines() == ["poststop"], "what other hooks have done is undone"
    assert (box.status, cgroups(box)) == ("created", [])
    box.remove()


def test_a_hook_that_is_not_there_is_an_error_by_name(client, image):
    spec = {"hooks": {"createRuntime": [{"path": "/no/such/program"}]}}
    with pytest.raises(LamellaError, match=r"hooks.createRuntime\[0\] /no/such/program"):
        client.containers.run(image, ["true"], spec=spec, remove=True)


@pytest.mark.parametrize("point", ["createRuntime", "createContainer"])
def test_a_hook_that_takes_too_long_is_killed_with_all_that_it_has_started(client, image, tmp_path, point):
    tell = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid"
    script = f"setsid sh -c '{tell}; exec sleep 60125' & sleep 600"
    for seconds in (1, 20):  # the second for a machine that has not come to what it starts
        with pytest.raises(FailedPrecondition, match=f"it was killed after {seconds} s"):
            client.containers.run(
                image, ["true"], spec={"hooks": {point: [hook(script, timeout=seconds)]}}, remove=True
            )
        if (tmp_path / "pid").exists():
            break
    if point == "createRuntime":
        assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()
    else:  # by the end of its PID namespace, in which it has another id
        assert (tmp_path / "pid").exists()
        until(lambda: not processes("sleep", "60125"))


def processes(*arguments: str) -> list[int]:
    wanted = b"".join(argument.encode() + b"\0" for argument in arguments)
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes() == wanted:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_hooks_inherit_no_descriptor_and_their_environment_is_the_specs(client, image, tmp_path):
    script = f"ls -l /proc/self/fd | grep -c -- '->' > {tmp_path}/$POINT; env > {tmp_path}/$POINT.env"
    spec = {
        "hooks": {
            point: [hook(script) | {"env": [f"PATH={os.environ['PATH']}", f"POINT={point}"]}]
            for point in (*HOST_POINTS, "createContainer")
        }
    }
    with (tmp_path / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        box = client.containers.create(image, ["true"], spec=spec)
        box.start()
        box.wait(60)
        box.remove()
    for point in (*HOST_POINTS, "createContainer"):
        assert (tmp_path / point).read_text() == "4\n", "the three streams, and the folder that is listed"
        names = {line.partition("=")[0] for line in (tmp_path / f"{point}.env").read_text().splitlines()}
        assert names <= {"PATH", "POINT", "PWD", "SHLVL", "_"}


def test_what_a_poststop_hook_complains_of_is_logged_and_stops_nothing(client, image, told, caplog):
    spec = {"hooks": {"poststop": [hook("echo too bad; exit 4"), hook(told.script("second"))]}}
    box = client.containers.create(image, ["sh", "-c", "echo out; exit 5"], spec=spec)
    box.start()
    assert box.wait(60) == 5
    with caplog.at_level("WARNING", logger="lamella"):
        assert b"".join(data for _, data in box.logs(follow=True)) == b"out\n"
    assert "hooks.poststop[0] /bin/sh: exit status: 4: too bad" in caplog.text
    assert told.lines() == ["second"]
    box.start()
    box.wait(60)
    box.remove()
    assert told.lines() == ["second", "second"]


def test_poststop_hooks_run_when_the_caller_is_gone(client, image, told, tmp_path):
    spec = hooks(poststop=told.script("poststop"))
    box = client.containers.create(
        image,
        ["sh", "-c", "until [ -e /go/now ]; do sleep 0.01; done"],
        spec=spec,
        volumes=[f"{tmp_path}:/go"],
    )
    subprocess.run([sys.executable, "-c", starting(client, box)], check=True)
    assert box.status == "running" and told.lines() == []
    (tmp_path / "now").touch()
    until(lambda: told.lines() == ["poststop"])
    box.remove()
    assert told.lines() == ["poststop"]


def test_each_run_has_its_hooks(client, image, told):
    spec = hooks(**{point: told.script(point) for point in ("createRuntime", "poststart", "poststop")})
    box = client.containers.create(image, ["false"], spec=spec, restart_policy="on-failure:2")
    box.start()
    box.wait(60)
    box.remove()
    assert told.lines() == ["createRuntime", "poststart", "poststop"] * 3


def test_a_further_run_that_a_hook_stops_is_as_one_that_failed(client, image, told):
    script = f"test ! -e {told.file} || exit 6; {told.script('createRuntime')}"
    spec = hooks(createRuntime=script, poststop=told.script("poststop"))
    box = client.containers.create(image, ["false"], spec=spec, restart_policy="on-failure:2")
    box.start()
    assert box.wait(60) == 1
    assert "hooks.createRuntime[0]" in box.inspect()["last_run"]["error"]
    box.remove()
    assert told.lines() == ["createRuntime", "poststop", "poststop", "poststop"]


def test_a_container_that_waits_for_its_program_has_hooks(client, image, told):
    spec = hooks(**{point: told.script(point) for point in HOST_POINTS})
    with client.containers.pool(image, size=1, spec=spec) as pool:
        result = pool.run(["echo", "words"])
        assert (result.exit_code, result.stdout) == (0, b"words\n")
    lines = told.lines()
    assert lines.count("poststart") == 1
    assert lines.count("createRuntime") == lines.count("prestart") == lines.count("poststop")


def test_a_container_answers_while_its_hooks_run(client, image, tmp_path):
    script = f"touch {tmp_path}/begun; until [ -e {tmp_path}/now ]; do sleep 0.01; done"
    box = client.containers.create(image, ["true"], spec=hooks(poststop=script))
    box.start()
    assert box.wait(60) == 0
    until((tmp_path / "begun").exists)
    assert (box.status, box.exit_code) == ("stopped", 0)
    assert box.task.monitored()
    (tmp_path / "now").touch()
    box.remove()
    assert not box.task.monitored()


def test_where_the_monitor_is_killed_the_next_look_runs_the_poststop_hooks_once(client, image, told):
    box = client.containers.create(
        image, ["sleep", "600"], spec=hooks(poststop=told.script("poststop", "$(cat)"))
    )
    box.start()
    kill_monitor(box)
    assert told.lines() == []
    box.start()
    assert len(told.lines()) == 1 and '"status":"stopped"' in told.lines()[0].replace("\\", "")
    kill_monitor(box)
    box.remove()
    assert len(told.lines()) == 2


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_hooks_end_with_the_monitor(client, image, tmp_path):
    script = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 600"
    box = client.containers.create(image, ["true"], spec=hooks(poststop=script))
    box.start()
    box.wait(60)
    until((tmp_path / "pid").exists)
    pid = (tmp_path / "pid").read_text().strip()
    os.kill(parent(parent(int(pid))), signal.SIGKILL)
    until(lambda: not Path("/proc", pid).exists())
    (box.task.folder / "poststop.json").unlink()
    box.remove()


def test_hooks_end_with_the_caller_of_a_start(client, image, tmp_path):
    script = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 600"
    box = client.containers.create(image, ["true"], spec=hooks(createRuntime=script))
    caller = subprocess.Popen([sys.executable, "-c", starting(client, box)])
    until((tmp_path / "pid").exists)
    caller.kill()
    caller.wait()
    pid = (tmp_path / "pid").read_text().strip()
    until(lambda: not Path("/proc", pid).exists())
    until(lambda: not box.task.monitored())
    box.remove()


@pytest.mark.needs_program("runc")
def test_runc_runs_the_same_hooks(client, image, told):
    spec = hooks(**{point: told.script(point) for point in HOST_POINTS})
    client.containers.run(image, ["true"], spec=spec, runtime="runc", remove=True, check=True)
    assert told.lines() == ["prestart", "createRuntime", "poststart", "poststop"]

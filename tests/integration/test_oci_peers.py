"""``lamella-oci`` under the engines that people know: podman (with conmon) and containerd (with its shim for runc)."""

from __future__ import annotations

import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import systems
from oci_program import COMMAND
from waiting import until

pytestmark = [pytest.mark.privileged, pytest.mark.integration]
NAME = "localhost/box:latest"
TERMINAL = ["/bin/sh", "-c", "test -t 0 && test -t 1 && echo a terminal"]

Run = Callable[..., subprocess.CompletedProcess[str]]


def _run(command: list[str], check: bool, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"stdin": subprocess.DEVNULL} | options if "input" not in options else options
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture
def podman(small_image: str) -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as folder, systems.Podman(Path(folder), "", Path()) as running:

        def command(*words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
            return _run(running.command("--runtime", COMMAND, *words), check, **options)

        command("pull", "--quiet", "--tls-verify=false", small_image)
        command("tag", small_image, NAME)
        yield command
        command("rm", "--all", "--force", "--time", "0")
        command("rmi", "--all", "--force")


@pytest.fixture
def options() -> list[str]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return ["--ulimit", f"nofile={limit}:{limit}", "--ulimit", "nproc=1024:1024", "--network=none"]


@pytest.mark.needs_program("podman", "conmon")
class TestPodman:
    def test_a_container_is_run_with_its_streams_and_exit_status(
        self, podman: Run, options: list[str]
    ) -> None:
        script = "cat; echo err >&2; exit 3"
        done = podman(
            "run", "--rm", "-i", *options, NAME, "/bin/sh", "-c", script, check=False, input="data\n"
        )
        assert (done.returncode, done.stdout, done.stderr) == (3, "data\n", "err\n")
        assert podman("run", "--rm", "-t", *options, NAME, *TERMINAL).stdout.split() == ["a", "terminal"]

    def test_a_program_that_cannot_be_run_gives_the_usual_status(
        self, podman: Run, options: list[str]
    ) -> None:
        done = podman("run", "--rm", *options, NAME, "nothing", check=False)
        assert done.returncode == 127
        assert "executable file not found" in done.stderr

    def test_a_container_goes_through_its_life(self, podman: Run, options: list[str]) -> None:
        script = 'echo up; trap "echo bye; exit 5" TERM; while :; do sleep 0.1; done'
        limits = ["--memory=64m", "--pids-limit=50"]
        podman("run", "--detach", "--name=life", *options, *limits, NAME, "/bin/sh", "-c", script)
        until(lambda: podman("logs", "life").stdout == "up\n")
        done = podman("exec", "-i", "life", "/bin/sh", "-c", "cat; exit 4", check=False, input="data")
        assert (done.returncode, done.stdout) == (4, "data")
        assert podman("exec", "-t", "life", *TERMINAL).stdout.split() == ["a", "terminal"]
        assert int(podman("top", "life", "hpid").stdout.split()[1])
        podman("pause", "life")
        assert podman("inspect", "life", "--format={{.State.Status}}").stdout == "paused\n"
        podman("unpause", "life")
        podman("stop", "--time=20", "life")
        assert podman("logs", "life").stdout == "up\nbye\n"
        state = podman("inspect", "life", "--format={{.State.Status}} {{.State.ExitCode}}").stdout
        assert state == "exited 5\n"
        podman("start", "life")
        podman("rm", "--force", "--time=0", "life")

    def test_limits_and_privileges_take_effect(self, podman: Run, options: list[str]) -> None:
        look = "id -u; id -g; while read key value; do test $key = CapEff: && echo $value; done < /proc/self/status; : > /file"
        more = ["--user=5:6", "--cap-drop=all", "--read-only", "--read-only-tmpfs=false"]
        done = podman("run", "--rm", *options, *more, NAME, "/bin/sh", "-c", look, check=False)
        assert done.stdout == "5\n6\n0000000000000000\n"
        assert "Read-only file system" in done.stderr


@pytest.mark.needs_program("containerd", "ctr", "runc")
def test_containerds_shim_runs_containers_with_it(small_image: str) -> None:
    with tempfile.TemporaryDirectory() as folder, systems.Containerd(Path(folder), "", Path()) as running:

        def ctr(*words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
            return _run(running.ctr(*words), check, **options)

        fifos = ["--fifo-dir", f"{folder}/fifo"]
        runtime = ["--runtime", "io.containerd.runc.v2", "--runc-binary", COMMAND, *fifos]
        ctr("images", "pull", "--plain-http", small_image)
        script = "echo out; echo err >&2; exit 3"
        done = ctr("run", "--rm", *runtime, small_image, "one", "/bin/sh", "-c", script, check=False)
        assert done.stderr == "err\n"
        assert (done.returncode, done.stdout) == (3, "out\n")
        ctr("run", "--detach", *runtime, small_image, "two", "/bin/sleep", "1000")
        tasks = ["tasks", "exec", *fifos]
        done = ctr(*tasks, "--exec-id", "further", "two", "/bin/sh", "-c", "echo in; exit 4", check=False)
        assert (done.returncode, done.stdout) == (4, "in\n")
        ctr("tasks", "pause", "two")
        assert "PAUSED" in ctr("tasks", "ls").stdout
        ctr("tasks", "resume", "two")
        assert "RUNNING" in ctr("tasks", "ls").stdout
        assert len(ctr("tasks", "ps", "two").stdout.splitlines()) == 2
        ctr("tasks", "kill", "--signal", "SIGKILL", "two")
        until(lambda: "STOPPED" in ctr("tasks", "ls").stdout)
        ctr("tasks", "rm", "two", check=False)
        ctr("containers", "rm", "two")

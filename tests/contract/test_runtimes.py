"""The OCI runtimes that make containers: our launcher, runc and crun under one contract.

docs/runtimes.md lists what differs, and is held to what is seen here. crun refuses cgroups of which some are of v1: there its
tests are run by test_unified.py, on a machine that has v2 alone.
"""

from __future__ import annotations

import os
import re
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from container_contract import PATIENCE, ContainerContract
from container_probe import SCRIPT, findings

import lamella
from lamella.errors import (
    CommandNotExecutable,
    CommandNotFound,
    FailedPrecondition,
    LamellaError,
    NotFound,
    PermissionDenied,
    Unsupported,
)
from networking import SERVE, ask, heard, inside, pins
from waiting import until

pytestmark = pytest.mark.privileged

IS_V1 = not Path("/sys/fs/cgroup/cgroup.controllers").exists()
WITH_IDS = {"userns": "auto"}
DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "runtimes.md"


class TestLauncher(ContainerContract):
    @pytest.fixture
    def runtime(self) -> str:
        return "lamella"


@pytest.mark.needs_program("runc")
class TestRunc(ContainerContract):
    @pytest.fixture
    def runtime(self) -> str:
        return "runc"


class TestLauncherWithMappedIds(TestLauncher):
    options = WITH_IDS


@pytest.mark.needs_program("runc")
class TestRuncWithMappedIds(TestRunc):
    options = WITH_IDS


if not IS_V1:

    @pytest.mark.needs_program("crun")
    class TestCrun(ContainerContract):
        @pytest.fixture
        def runtime(self) -> str:
            return "crun"

        def test_a_part_of_a_volume_may_be_a_file(self, run):
            """crun 1.8 looks for a folder where a mount has attributes for what is beneath."""
            with pytest.raises(LamellaError, match="Not a directory"):
                super().test_a_part_of_a_volume_may_be_a_file(run)

    class TestCrunWithMappedIds(TestCrun):
        options = WITH_IDS


@pytest.fixture
def client(tmp_path) -> Iterator[lamella.Client]:
    """Give a client whose state others pass through, as they do at its usual place: the root of mapped ids is one of them."""
    with tempfile.TemporaryDirectory(dir="/run", prefix="lamella-test-") as folder:
        Path(folder).chmod(0o711)
        with lamella.Client(root=tmp_path / "root", state=Path(folder) / "state") as opened:
            yield opened


# What a program sees

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "limited": {
        "memory": "64m",
        "pids_limit": 50,
        "cpus": 0.5,
        "ulimits": ["nofile=512:1024"],
        "oom_score_adj": 100,
        "shm_size": "8m",
        "sysctls": {"net.ipv4.ip_forward": "1"},
    },
    "as a user": {"user": "7:8", "working_dir": "/tmp", "environment": {"A": "b"}, "no_new_privileges": True},
    "with other rights": {"cap_add": ["NET_ADMIN"], "cap_drop": ["CHOWN", "MKNOD"], "seccomp": "unconfined"},
    "with files": {
        "read_only": True,
        "tmpfs": ["/scratch:size=1m", "/run"],
        "volumes": ["/usr:/host:ro", "kept:/kept"],
        "devices": ["/dev/null:/dev/nothing:r"],
    },
    "nothing hidden": {"masked_paths": [], "readonly_paths": []},
    "privileged": {"privileged": True},
    "on the host's network": {"network": "host"},
    "on a terminal": {"tty": True, "stdin": True},
    "with an init": {"init": True},
    "with ids of its own": {
        "uid_maps": ["0:655360:65536"],
        "volumes": ["/usr:/host:ro", "kept:/kept"],
        "sysctls": {"net.ipv4.ip_forward": "1"},
    },
}


def probe(client: Any, image: Any, runtime: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Give what the probe finds in each way of running it."""
    for way, options in WAYS.items():
        box = client.containers.create(
            image, ["/bin/sh", "-c", SCRIPT], runtime=runtime, hostname="box", **options
        )
        try:
            with box.start(attach=True) as streams:
                yield way, findings(b"".join(data for _, data in streams))
        finally:
            box.remove(force=True, volumes=True)
    box = client.containers.create(image, ["/bin/sleep", "600"], runtime=runtime, hostname="box")
    try:
        box.start()
        for way, options in {"exec": {}, "exec on a terminal": {"tty": True, "user": "7"}}.items():
            with box.start_exec(["/bin/sh", "-c", SCRIPT], **options) as streams:
                yield way, findings(b"".join(data for _, data in streams))
    finally:
        box.remove(force=True)


def listed() -> dict[str, tuple[str, str]]:
    """Give the differences that the document lists for a machine like this."""
    always, _, of_v1 = DOCUMENT.read_text().partition("Where cgroups are those of v1:")
    rows = re.findall(
        r"^\| `([^`]+)` \| (.+?) \| (.+?) \| .+ \|$", always + (of_v1 if IS_V1 else ""), re.MULTILINE
    )
    return {what: (ours.strip("`"), theirs.strip("`")) for what, ours, theirs in rows}


@pytest.mark.needs_program("runc")
@pytest.mark.timeout(300)
def test_a_program_sees_the_same_whoever_made_its_container_but_for_what_is_listed(client, image):
    found = {runtime: dict(probe(client, image, runtime)) for runtime in ("lamella", "runc")}
    assert all(len(one["plain"]) > 100 for one in found.values()), "the probe has said little"
    seen: dict[str, set[tuple[str, str]]] = {}
    where: dict[str, list[str]] = {}
    for way, ours in found["lamella"].items():
        theirs = found["runc"][way]
        for what in ours.keys() | theirs.keys():
            pair = ours.get(what) or "nothing", theirs.get(what) or "nothing"
            if pair[0] != pair[1]:
                seen.setdefault(what, set()).add(pair)
                where.setdefault(what, []).append(way)
    known = listed()
    assert {what: (seen[what], where[what]) for what in seen.keys() - known.keys()} == {}, "not in the list"
    assert known.keys() - seen.keys() == set(), "no difference any more"
    assert {what: seen[what] for what, pair in known.items() if pair not in seen[what]} == {}, (
        "listed otherwise"
    )


@pytest.mark.needs_program("runc")
def test_a_runtime_mounts_images_and_volumes_with_mapped_ids(client, image):
    (client.volumes.create("data").path / "part").mkdir()
    options = {
        "mounts": [
            {"type": "image", "source": image.name, "target": "/image"},
            {"type": "volume", "source": "data", "target": "/part", "volume-subpath": "part"},
        ],
        "volumes": ["data:/data"],
        "uid_maps": ["0:655360:65536"],
    }
    script = "echo x >/part/new; stat -c '%u %g' /image/bin/sh /part/new /data/part/new /etc/hosts; id -u; echo x >/image/x"
    for runtime in ("lamella", "runc"):
        result = client.containers.run(
            image, ["/bin/sh", "-c", script], remove=True, runtime=runtime, **options
        )
        assert result.stdout == b"0 0\n" * 4 + b"0\n"
        assert b"Read-only" in result.stderr
    assert (client.volumes.get("data").path / "part/new").stat().st_uid == 0


@pytest.mark.needs_program("runc")
@pytest.mark.parametrize("runtime", ["lamella", "runc"])
def test_with_ids_of_its_own_the_hosts_network_is_shown_and_out_of_its_reach(client, image, runtime):
    script = "ls /sys/class/net; echo 1 >/sys/class/net/lo/mtu || echo refused"
    options = {"network": "host", "userns": "auto", "cap_add": ["NET_ADMIN"], "runtime": runtime}
    result = client.containers.run(image, ["/bin/sh", "-c", script], remove=True, **options)
    assert set(result.stdout.decode().split()) == {*os.listdir("/sys/class/net"), "refused"}


@pytest.mark.needs_program("runc")
def test_a_folder_that_lets_nobody_pass_is_named_where_a_runtime_could_not_open_the_root(client, image):
    client.config.state.parent.chmod(0o700)
    box = client.containers.create(image, ["/bin/true"], userns="auto", runtime="runc")
    with pytest.raises(FailedPrecondition, match=str(client.config.state.parent)):
        box.start()
    box.remove()


@pytest.mark.needs_program("runc", "busybox", "iptables")
def test_a_runtime_joins_networks_with_the_user_namespace_that_they_belong_to(cni, client, start):
    server = start(*SERVE, network="bridge", userns="auto", runtime="runc", name="web", ports=["8083:80"])
    assert ask("127.0.0.1", 8083) == b"hello\n"
    shared = {"network": "container:web", "userns": "container:web", "cap_add": ["NET_ADMIN"]}
    box = start("/bin/busybox", "sleep", "600", runtime="runc", **shared)
    assert heard(box) == "hello\n"
    inside(box, "ip", "link", "set", "eth0", "mtu", "1300")
    for kind in ("user", "net"):
        assert (
            Path(f"/proc/{box.pid}/ns/{kind}").readlink() == Path(f"/proc/{server.pid}/ns/{kind}").readlink()
        )
    for each in (box, server):
        each.remove(force=True)
    assert pins(client.config) == []


# What a caller sees


@pytest.fixture
def script(client, image):
    """Give a container whose image has a program without its interpreter."""

    def make(content: bytes, **options: Any) -> Any:
        box = client.containers.create(image, ["/tool"], **options)
        tool = client.snapshots.layer_paths(box.snapshot_key)[0] / "tool"
        tool.write_bytes(content)
        tool.chmod(0o755)
        return box

    return make


@pytest.mark.needs_program("runc")
def test_a_program_that_only_exec_refuses_is_told_by_the_container_itself(script):
    for content, error in ((b"#!/no/such\n", CommandNotFound), (b"\x7fELFnonsense", CommandNotExecutable)):
        ours = script(content)
        with pytest.raises(error):
            ours.start()
        theirs = script(content, runtime="runc")
        theirs.start()
        assert theirs.wait(PATIENCE) in (1, 255)
        assert b"exec /tool" in b"".join(data for _, data in theirs.logs(follow=True))
        for box in (ours, theirs):
            box.remove()


@pytest.mark.needs_program("runc")
def test_beneath_an_init_a_missing_program_is_told_by_the_container_itself(client, image):
    options = {"init": True, "remove": True}
    with pytest.raises(CommandNotFound):
        client.containers.run(image, ["nonsense"], **options)
    result = client.containers.run(image, ["nonsense"], runtime="runc", **options)
    assert result.exit_code == 127
    assert b"executable file not found" in result.stderr


@pytest.mark.needs_program("runc")
def test_other_runtimes_get_fields_of_the_spec_that_ours_refuses(client, image):
    def with_unknown(spec):
        spec["linux"]["intelRdt"] = {}

    with pytest.raises(Unsupported, match="intelRdt"):
        client.containers.run(image, ["/bin/true"], spec=with_unknown, remove=True)
    client.containers.run(image, ["/bin/true"], spec=with_unknown, remove=True, runtime="runc", check=True)


@pytest.mark.needs_program("runc")
def test_a_runtime_refuses_in_its_own_words_and_leaves_nothing(client, image):
    def with_mount(spec):
        spec["mounts"].append({"destination": "/x", "type": "nonsense", "source": "x"})

    with pytest.raises(LamellaError, match=r"^runc create: .*no such device"):
        client.containers.run(image, ["/bin/true"], spec=with_mount, remove=True, runtime="runc")
    assert client.containers.list(all=True) == []


def test_who_has_a_runtime_make_a_container_holds_nothing_of_the_monitors_open(
    client, image, tmp_path, monkeypatch
):
    """Others wait for the end of the monitor's pipes and sockets: it would not come as long as the runtime is at work."""
    program = tmp_path / "bin" / "runx"
    program.parent.mkdir()
    # Who starts a program has one more socket until it knows that the program has begun (Rust's Command).
    program.write_text(
        f"#!/bin/sh\nseen={tmp_path}/$1-$$.seen; tries=0\n"
        "while ls -l /proc/$PPID/fd >$seen && test $(grep -c socket: $seen) -gt 2 -a $tries -lt 300; do\n"
        "  tries=$((tries+1)); sleep 0.1\ndone\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    box = client.containers.create(image, ["/bin/true"], runtime="runx", stdin=True)
    with pytest.raises(LamellaError):
        box.start()
    box.remove()
    seen = [path.read_text() for path in tmp_path.glob("*.seen")]
    assert seen
    for names in seen:  # the channel, the way back to who started it, and the program's streams
        assert names.count("socket:") <= 2 and names.count("pipe:") <= 3, names
        assert str(client.config.state) not in names, names
        assert str(client.config.root) not in names.replace(f"{box.task.log_folder}/lock", ""), names


@pytest.mark.needs_program("runc")
def test_what_a_runtime_says_of_a_run_that_cannot_begin_is_not_the_containers(client, image):
    options = {"runtime": "runc", "restart_policy": "on-failure:2"}
    box = client.containers.create(image, ["/bin/sh", "-c", "echo once; rm /bin/sh; exit 3"], **options)
    box.start()
    assert box.wait(2 * PATIENCE) == 127
    assert list(box.logs(follow=True)) == [("stdout", b"once\n")]
    assert "/bin/sh" in str(box.inspect()["last_run"]["error"])
    box.remove()


@pytest.mark.needs_program("runc")
def test_a_stop_while_a_runtime_is_still_making_the_next_run_ends_that_too(client, image, tmp_path):
    program, again = tmp_path / "runx", tmp_path / "again"
    program.write_text(
        f"""#!/bin/sh
case "$*" in *create*) [ -e {tmp_path}/once ] && {{ : > {again}; sleep {PATIENCE / 6}; }}; : > {tmp_path}/once;; esac
exec runc "$@"
"""
    )
    program.chmod(0o755)
    box = client.containers.create(
        image, ["/bin/sh", "-c", "sleep 0.1; exit 1"], runtime=str(program), restart_policy="always"
    )
    box.start()
    until(again.exists)
    box.stop(timeout=2 * PATIENCE)
    assert (box.status, box.restart_count) == ("stopped", 1)
    box.remove()


@pytest.mark.needs_program("runc")
def test_the_time_out_of_an_exec_begins_when_its_runtime_has_started_it(client, image, tmp_path):
    program, patience = tmp_path / "runx", PATIENCE / 10
    program.write_text(f'#!/bin/sh\ncase "$*" in *exec*) sleep {patience + 1};; esac\nexec runc "$@"\n')
    program.chmod(0o755)
    box = client.containers.run(image, ["/bin/sleep", "600"], runtime=str(program), detach=True)
    result = box.exec(["/bin/sh", "-c", "sleep 0.5; echo done"], timeout=patience)
    assert (result.timed_out, result.exit_code, result.stdout) == (False, 0, b"done\n")
    box.remove(force=True)


@pytest.mark.needs_program("runc")
def test_an_ulimit_that_cannot_be_raised_so_far_is_a_warning_or_refused(client, image):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if (
        hard == resource.RLIM_INFINITY
        or int(Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0], 16) >> 24 & 1
    ):
        return  # this machine lets it be raised
    options = {"ulimits": [f"nofile={hard + 1}"], "remove": True}
    client.containers.run(image, ["/bin/true"], check=True, **options)
    with pytest.raises(PermissionDenied):
        client.containers.run(image, ["/bin/true"], runtime="runc", **options)


@pytest.mark.needs_program("runc")
def test_a_pool_needs_our_own(client, image):
    with pytest.raises(Unsupported, match="runc"):
        client.containers.pool(image, size=1, runtime="runc")


# Which one


def test_a_runtime_that_is_not_there_is_an_error_that_names_those_that_are(client, image, tmp_path):
    with pytest.raises(NotFound, match="norunc") as caught:
        client.containers.create(image, ["/bin/true"], runtime="norunc")
    assert "lamella" in str(caught.value.hint)
    program = tmp_path / "runx"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    box = client.containers.create(image, ["/bin/true"], runtime=str(program))
    with pytest.raises(LamellaError, match=r"runx create: .*does not say why"):
        box.start()
    assert box.status == "created"
    program.unlink()
    with pytest.raises(NotFound, match="runx"):
        box.start()
    box.remove()


def test_a_runtime_gets_nothing_of_the_callers_and_is_not_looked_for_in_the_container(
    client, image, tmp_path, monkeypatch
):
    """CVE-2024-21626: descriptors that a runtime inherits are the container's, if it does not close them."""
    seen = tmp_path / "seen"
    program = tmp_path / "bin" / "runx"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{{ env; ls -l /proc/$$/fd; ls -l /proc/$$/cwd; }} > {seen}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SECRET", "of the caller")
    held = os.open("/etc", os.O_RDONLY)
    os.set_inheritable(held, True)
    try:
        box = client.containers.create(image, ["/bin/true"], runtime="runx", environment={"PATH": "/nowhere"})
        with pytest.raises(LamellaError):
            box.start()
    finally:
        os.close(held)
    text = seen.read_text()
    assert "SECRET" not in text
    opened = [line.rpartition(" -> ")[2] for line in text.splitlines() if " -> " in line]
    allowed = re.compile(
        r"pipe:|/dev/null|" + "|".join(map(re.escape, (str(seen), str(program), str(box.task.folder))))
    )
    assert [name for name in opened if not allowed.match(name)] == []
    box.remove()

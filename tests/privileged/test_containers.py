"""Containers through the library: what a user of docker-py expects, on an image of this machine's own programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import lamella
from inventory import children
from lamella.errors import (
    AlreadyExists,
    CommandFailed,
    CommandNotExecutable,
    CommandNotFound,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unsupported,
)
from monitors import monitor_of
from waiting import cut_off, settled, until

pytestmark = [pytest.mark.privileged, pytest.mark.rootless]


@pytest.fixture
def run(client, image):
    def call(*command, **options):
        return client.containers.run(image, list(command), remove=True, **options)

    return call


def sh(run, script, **options):
    result = run("/bin/sh", "-c", script, **options)
    assert result.exit_code == 0, result
    return result.stdout.decode().strip()


# Output and exit


def test_stdout_stderr_and_exit_code_are_told_apart(run):
    result = run("/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 7)
    assert 0 < result.duration < 60


def test_input_is_fed_to_stdin_and_output_of_any_size_comes_whole(run):
    data = os.urandom(3_000_000)
    assert run("/bin/cat", input=data).stdout == data


def test_stdin_is_empty_without_input(run):
    assert run("/bin/cat").stdout == b""


def test_a_signal_ends_a_container_with_128_and_its_number(run):
    assert run("/bin/sh", "-c", "kill -TERM $$").exit_code in (128 + signal.SIGTERM, 0)
    assert run("/bin/sh", "-c", "sh -c 'kill -KILL $$'").exit_code == 128 + signal.SIGKILL


def test_check_raises_with_the_output_in_it(run):
    with pytest.raises(CommandFailed, match="broken") as caught:
        run("/bin/sh", "-c", "echo out; echo broken >&2; exit 3", check=True)
    assert (caught.value.exit_code, caught.value.stdout, caught.value.stderr) == (3, b"out\n", b"broken\n")


def test_a_time_out_kills_the_whole_tree_and_keeps_the_output(client, run):
    script = "echo early; sleep 1000 & sleep 1000"  # longer than a test may take
    result = cut_off(lambda seconds: run("/bin/sh", "-c", script, timeout=seconds))
    assert (result.timed_out, result.exit_code, result.stdout) == (True, 137, b"early\n")
    with pytest.raises(DeadlineExceeded):
        run("/bin/sleep", "300", timeout=0.2, check=True)
    assert client.containers.list(all=True) == []


# The program


def test_a_missing_program_is_127_and_leaves_nothing(client, run):
    with pytest.raises(CommandNotFound, match="nonsense") as caught:
        run("nonsense")
    assert caught.value.exit_code == 127
    with pytest.raises(CommandNotFound):
        run("/no/such/program")
    assert_nothing_left(client)


def test_a_container_whose_start_failed_counts_as_created_and_can_be_started_when_mended(client, image):
    box = client.containers.create(image, ["/tool"], name="mended")
    with pytest.raises(CommandNotFound):
        box.start()
    assert (box.status, box.exit_code, box.pid) == ("created", None, None)
    tool = client.snapshots.layer_paths("mended")[0] / "tool"
    tool.write_text("#!/bin/sh\nexit 6\n")
    tool.chmod(0o755)
    box.start()
    assert box.wait(30) == 6
    box.remove()


def test_a_program_that_cannot_be_run_is_126_and_leaves_nothing(client, run):
    for program in ("/etc/passwd", "/etc"):
        with pytest.raises(CommandNotExecutable) as caught:
            run(program)
        assert caught.value.exit_code == 126
    assert_nothing_left(client)


def assert_nothing_left(client):
    assert client.containers.list(all=True) == []
    assert [info for info in client.snapshots.walk() if info.kind == "active"] == []
    tasks = client.config.state / "tasks"
    assert [path for path in tasks.rglob("*") if path.is_file()] == []


def test_a_mount_that_the_kernel_refuses_is_one_error_that_names_it(client, image):
    def patch(spec):
        spec["mounts"].append({"destination": "/bad", "type": "nosuchfs", "source": "none"})

    with pytest.raises(lamella.LamellaError, match="/bad"):
        client.containers.run(image, ["/bin/true"], remove=True, spec=patch)
    assert_nothing_left(client)


def test_an_unknown_field_of_the_spec_is_refused_by_name(client, image):
    with pytest.raises(Unsupported, match="intelRdt"):
        client.containers.run(
            image,
            ["/bin/true"],
            remove=True,
            spec=lambda spec: spec["linux"].update(intelRdt={"closID": "x"}),
        )
    assert_nothing_left(client)


# What it is given


def test_environment_working_folder_and_hostname(run):
    out = sh(
        run,
        'echo "$A $HOME $HOSTNAME"; pwd; hostname',
        environment={"A": "1"},
        working_dir="/etc",
        hostname="box",
    )
    assert out.splitlines() == ["1 /root box", "/etc", "box"]


@pytest.mark.needs_ids
def test_a_user_takes_its_ids_and_groups(run):
    assert sh(run, "id -u; id -g", user="1234:4321").split() == ["1234", "4321"]
    with pytest.raises(InvalidArgument, match="nobody-here"):
        run("/bin/true", user="nobody-here")


def test_a_volume_is_seen_and_written_and_read_only_holds(run, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "in").write_text("in\n")
    assert sh(run, "cat /data/in; echo out > /data/out", volumes=[f"{source}:/data"]) == "in"
    assert (source / "out").read_text() == "out\n"
    result = run("/bin/sh", "-c", "echo no > /data/no", volumes=[f"{source}:/data:ro"])
    assert result.exit_code != 0
    assert not (source / "no").exists()


@pytest.mark.needs_root
def test_a_read_only_volume_is_read_only_in_what_is_mounted_beneath_it(run, tmp_path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    lamella._core.mount([("tmpfs", "tmpfs", ["size=1m"])], str(source / "sub"))
    try:
        result = run("/bin/sh", "-c", "touch /data/sub/no", volumes=[f"{source}:/data:ro"])
        assert result.exit_code != 0
        assert list((source / "sub").iterdir()) == []
    finally:
        lamella._core.unmount(str(source / "sub"))


def test_a_volume_of_another_type_than_its_target_is_an_error_that_says_so(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        InvalidArgument, match=r"on /etc/passwd.*source is a folder, the target is none"
    ) as caught:
        run("true", volumes=[f"{tmp_path}:/etc/passwd"])
    assert "folder onto a folder" in str(caught.value.hint)
    with pytest.raises(InvalidArgument, match=r"on /etc: .*target is a folder, the source is none"):
        run("true", volumes=[f"{tmp_path}/file:/etc"])


def test_failed_starts_may_follow_each_other_at_once(client, image):
    box = client.containers.create(image, ["/missing"])
    for _ in range(20):
        with pytest.raises(CommandNotFound):
            box.start()
        assert box.status == "created"
    box.remove()


def test_starting_a_removed_container_names_the_container(client, image):
    box = client.containers.create(image, ["true"], name="gone")
    box.remove()
    with pytest.raises(NotFound, match="there is no container"):
        box.start()


def test_input_that_is_text_is_refused_before_anything_is_made(client, run):
    with pytest.raises(InvalidArgument, match="input is str"):
        run("cat", input="text")
    assert client.containers.list(all=True) == []


@pytest.mark.parametrize("mask", [0o000, 0o077])
@pytest.mark.needs_ids
def test_the_callers_umask_neither_opens_nor_closes_anything(client, image, mask):
    before = os.umask(mask)
    try:
        box = client.containers.create(
            image, ["cat", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"], user="1000"
        )
        box.start()
        assert box.wait() == 0
    finally:
        os.umask(before)
    state, root = client.config.state, client.config.root
    folders = [box.task.folder, *box.task.folder.parents, box.task.log_folder, *box.task.log_folder.parents]
    ours = {path for path in folders if path.is_relative_to(state) or path.is_relative_to(root)}
    modes = {str(path): path.stat().st_mode & 0o777 for path in ours - {state}}
    assert set(modes.values()) == {0o700}, modes
    assert state.stat().st_mode & 0o777 == 0o711
    box.remove()


def test_a_missing_volume_source_is_an_error_and_leaves_nothing(client, run, tmp_path):
    with pytest.raises(NotFound):
        run("/bin/true", volumes=[f"{tmp_path}/absent:/x"])
    assert_nothing_left(client)


def test_tmpfs_and_read_only_root(run):
    out = sh(run, "touch /tmp/x && echo yes; touch /x 2>/dev/null || echo no", tmpfs=["/tmp"], read_only=True)
    assert out.split() == ["yes", "no"]


def test_entrypoint_and_command_combine_as_in_docker(client, image):
    result = client.containers.run(image, ["a", "b"], entrypoint=["/bin/echo", "x"], remove=True)
    assert result.stdout == b"x a b\n"


@pytest.mark.needs_root  # limits are a cgroup's
def test_limits_reach_the_kernel(run):
    result = run("/bin/sh", "-c", "x=a; while :; do x=$x$x; done", memory="16m", timeout=60)
    assert (result.exit_code, result.oom_killed) == (137, True)
    result = run("/bin/sh", "-c", "sleep 9 & sleep 9 & sleep 9 & sleep 9 & wait", pids_limit=3, timeout=20)
    assert b"ork" in result.stderr  # "Cannot fork", "fork: retry"
    out = sh(run, "ulimit -n", ulimits=["nofile=77:77"])
    assert out == "77"


# Isolation


def test_a_container_sees_itself_alone(run):
    out = sh(run, "echo $$; ls /proc | cat")
    pids = {name for name in out.split() if name.isdigit()}
    assert len(pids) <= 4
    assert "1" in pids


def test_only_loopback_is_there_by_default(run):
    devices = [line.split(":")[0].strip() for line in sh(run, "cat /proc/net/dev").splitlines()[2:]]
    assert devices == ["lo"]
    assert sh(run, "cat /proc/net/if_inet6 /proc/net/dev | cat; cat /sys/class/net/lo/flags").endswith("0x9")


def test_the_host_network_is_the_hosts(run):
    own = Path("/proc/net/dev").read_text().splitlines()
    devices = {
        line.split(":")[0].strip() for line in sh(run, "cat /proc/net/dev", network="host").splitlines()[2:]
    }
    assert devices == {line.split(":")[0].strip() for line in own[2:]}


@pytest.mark.parametrize("network", ["none", "host"])
def test_nothing_under_sys_can_be_written_whatever_the_network(run, network):
    mounts = [line.split() for line in sh(run, "cat /proc/mounts", network=network).splitlines()]
    under_sys = {
        point: options.split(",") for _, point, _, options, *_ in mounts if f"{point}/".startswith("/sys/")
    }
    assert under_sys["/sys/fs/cgroup"]
    assert [point for point, options in under_sys.items() if "ro" not in options] == []
    assert "kernel/debug" not in " ".join(under_sys)


@pytest.mark.needs_root  # limits are a cgroup's
def test_a_container_sees_its_own_limits(run):
    shown = sh(
        run,
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true",
        memory="64m",
    )
    assert shown == str(64 << 20)


def test_capabilities_are_dockers_and_nothing_is_inheritable(run):
    status = dict(
        line.split(":\t") for line in sh(run, "cat /proc/self/status").splitlines() if ":\t" in line
    )
    dockers = 0x00000000A80425FB
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == int(status["CapPrm"], 16) == dockers
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "0"


def test_no_new_privileges_is_a_choice(run):
    status = sh(run, "cat /proc/self/status", no_new_privileges=True)
    assert "NoNewPrivs:\t1" in status


def test_dropping_all_capabilities_leaves_none(run):
    status = sh(run, "cat /proc/self/status", cap_drop=["ALL"])
    assert "CapEff:\t0000000000000000" in status


@pytest.mark.needs_root
def test_privileged_has_all_that_the_machine_has(run):
    status = sh(run, "cat /proc/self/status", privileged=True)
    own = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd")
    )
    assert own in status
    assert "Seccomp:\t0" in status


def test_an_unknown_network_is_refused_by_name(client, run):
    with pytest.raises(NotFound, match="bridge0"):
        run("/bin/true", network="bridge0")
    assert_nothing_left(client)


# Lifecycle


def test_deleting_a_container_deletes_its_active_snapshot_and_nothing_else(client, image):
    before = {info.name for info in client.snapshots.walk()}
    blobs = {info.digest for info in client.content.walk()}
    box = client.containers.create(image, ["/bin/true"], name="nginx-container-abc123")
    assert {info.name for info in client.snapshots.walk()} - before == {"nginx-container-abc123"}
    assert client.snapshots.stat("nginx-container-abc123").parent == image.chain_id
    assert client.snapshots.stat("nginx-container-abc123").kind == "active"
    assert box.status == "created"
    box.remove()
    assert {info.name for info in client.snapshots.walk()} == before
    assert {info.digest for info in client.content.walk()} == blobs
    assert client.images.get(image.name) == image
    with pytest.raises(NotFound):
        client.containers.get("nginx-container-abc123")


def test_what_a_container_writes_stays_in_its_own_snapshot(client, image):
    box = client.containers.create(image, ["/bin/sh", "-c", "echo mine > /mine"], name="writer")
    box.start()
    assert box.wait(30) == 0
    [upper, *lowers] = client.snapshots.layer_paths("writer")
    assert (upper / "mine").read_text() == "mine\n"
    assert not any((lower / "mine").exists() for lower in lowers)
    box.remove()
    assert client.containers.run(image, ["/bin/ls", "/"], remove=True).stdout.split().count(b"mine") == 0


def test_a_detached_container_is_found_waited_for_and_read_by_another_client(client, image):
    box = client.containers.run(
        image, ["/bin/sh", "-c", "echo hello; echo oops >&2; sleep 0.3; exit 5"], detach=True, name="d"
    )
    with lamella.Client(client.config.root, client.config.state) as other:
        found = other.containers.get("d")
        assert found == box
        assert found.wait(30) == 5
        assert (found.status, found.exit_code) == ("stopped", 5)
        assert list(found.logs()) == [("stdout", b"hello\n"), ("stderr", b"oops\n")]
        assert list(found.logs(stream="stderr")) == [("stderr", b"oops\n")]
        found.remove()


def test_a_container_outlives_the_process_that_started_it(client, image):
    code = f"""
        import lamella, os
        client = lamella.Client({str(client.config.root)!r}, {str(client.config.state)!r})
        client.containers.run({image.name!r}, ["/bin/sh", "-c", "sleep 0.5; echo done; exit 9"], detach=True, name="orphan")
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    box = client.containers.get("orphan")
    assert box.wait(30) == 9
    assert list(box.logs()) == [("stdout", b"done\n")]
    box.remove()


def test_no_child_process_is_left_with_the_caller(client, image):
    before = children()  # of other fixtures, such as a registry
    client.containers.run(image, ["/bin/true"], remove=True)
    client.containers.run(image, ["/bin/true"], detach=True).wait()
    assert children() == before


def test_kill_stop_and_wait(client, image):
    box = client.containers.run(image, ["/bin/sleep", "300"], detach=True)
    assert (box.status, box.exit_code) == ("running", None)
    assert box in client.containers.list()
    with pytest.raises(DeadlineExceeded):
        box.wait(0.05)
    with pytest.raises(FailedPrecondition):
        box.start()
    with pytest.raises(FailedPrecondition):
        box.remove()
    with pytest.raises(InvalidArgument):
        box.kill("SIGNONSENSE")
    box.kill()
    assert box.wait(30) == 137
    assert box.stop() == 137
    with pytest.raises(FailedPrecondition):
        box.kill()
    box.remove()

    # PID 1 without a handler ignores SIGTERM: stop has to kill it.
    box = client.containers.run(image, ["/bin/sleep", "300"], detach=True)
    assert box.stop(timeout=0.2) == 137
    box.remove()

    box = client.containers.run(
        image, ["/bin/sh", "-c", "trap 'exit 4' TERM; echo up; while :; do sleep 0.05; done"], detach=True
    )
    until(lambda: list(box.logs()))
    assert box.stop(timeout=20) == 4
    box.remove()


def test_a_container_can_be_started_again_and_keeps_its_files(client, image):
    box = client.containers.create(
        image, ["/bin/sh", "-c", "cat /count 2>/dev/null; echo x >> /count"], name="again"
    )
    for expected in (b"", b"x\n"):
        attached = box.start(attach=True)
        assert attached.communicate() == (expected, b"")
        attached.close()
        assert box.wait(60) == 0
    box.remove()


def test_force_removes_a_running_container(client, image):
    box = client.containers.run(image, ["/bin/sleep", "300"], detach=True)
    box.remove(force=True)
    assert client.containers.list(all=True) == []


def test_a_name_is_unique_and_a_prefix_of_an_identifier_finds(client, image):
    box = client.containers.create(image, ["/bin/true"], name="one")
    with pytest.raises(AlreadyExists, match="one"):
        client.containers.create(image, ["/bin/true"], name="one")
    assert client.containers.get(box.id[:8]) == box
    with pytest.raises(NotFound):
        client.containers.get("zzz")
    for bad in ("", "../x", "-a", "a" * 77):
        with pytest.raises(InvalidArgument):
            client.containers.create(image, ["/bin/true"], name=bad)
    box.remove()


def test_a_snapshot_that_carries_the_name_is_not_taken_over(client, image):
    client.snapshots.prepare("taken", image.chain_id)
    with pytest.raises(AlreadyExists):
        client.containers.create(image, ["/bin/true"], name="taken")
    assert client.containers.list(all=True) == []
    assert client.snapshots.stat("taken").kind == "active"
    client.snapshots.remove("taken")


def test_a_detached_container_that_was_to_be_removed_goes_when_it_has_ended(client, image):
    box = client.containers.run(image, ["/bin/true"], detach=True, remove=True)
    box.wait(30)
    assert client.containers.list(all=True) == []
    box = client.containers.run(image, ["/bin/true"], detach=True, remove=True)
    box.wait(30)
    client.gc()
    with pytest.raises(NotFound):
        client.containers.get(box.id)


def test_several_may_remove_one_container_at_once(client, image):
    import threading

    for _ in range(10):
        box = client.containers.create(image, ["/bin/true"])
        box.start()
        box.wait(30)
        failures = []

        def remove(box=box, failures=failures):
            try:
                with lamella.Client(client.config.root, client.config.state) as other:
                    other.containers.get(box.id).remove()
            except NotFound:
                pass
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=remove) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert not box.task.folder.exists()


def test_attach_joins_a_running_container(client, image):
    box = client.containers.create(image, ["/bin/cat"], stdin=True, name="cat")
    box.start()
    with box.attach(stdin=True) as attached:
        attached.write_stdin(b"hello\n")
        attached.close_stdin()
        assert list(attached) == [("stdout", b"hello\n")]
        assert attached.exit.exit_code == 0
    box.remove()


@pytest.mark.needs_root  # a cgroup freezes it
def test_pause_freezes_and_resume_thaws(client, image):
    box = client.containers.run(image, ["/bin/sh", "-c", "while :; do echo x; sleep 0.02; done"], detach=True)
    box.pause()
    before = settled(lambda: len(list(box.logs())))
    box.resume()
    until(lambda: len(list(box.logs())) > before)
    box.remove(force=True)


def test_killing_the_monitor_leaves_a_state_that_is_called_unknown_and_can_be_removed(client, image):
    box = client.containers.run(image, ["/bin/sleep", "300"], detach=True)
    pid = box.pid
    os.kill(monitor_of(box), signal.SIGKILL)
    until(lambda: box.status != "running" and not Path(f"/proc/{pid}").exists())
    assert box.status == "unknown"
    with pytest.raises(FailedPrecondition):
        box.wait(1)
    box.remove()


def test_gc_takes_the_folders_of_a_container_whose_removal_was_cut_off(client, image):
    kept = client.containers.create(image, ["/bin/echo", "x"], name="kept")
    gone = client.containers.create(image, ["/bin/echo", "x"], name="gone")
    for box in (kept, gone):
        box.start()
        box.wait(30)
    with client.database.write() as db:
        db.execute("DELETE FROM containers WHERE name = 'gone'")
    assert client.gc(dry_run=True).orphans == 1
    assert gone.task.folder.exists()
    client.gc()
    assert not gone.task.folder.exists()
    assert not gone.task.log_folder.exists()
    assert kept.exit_code == 0
    assert list(kept.logs()) == [("stdout", b"x\n")]
    kept.remove()


def test_many_runs_leave_no_descriptor_and_no_mount(client, image):
    client.containers.run(image, ["/bin/true"], remove=True)
    descriptors = settled(lambda: set(os.listdir("/proc/self/fd")))  # a registry lets go of its end of a pull
    mounts = Path("/proc/self/mountinfo").read_text()
    for _ in range(30):
        assert client.containers.run(image, ["/bin/true"], remove=True).exit_code == 0
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert Path("/proc/self/mountinfo").read_text() == mounts


def test_a_state_folder_that_cannot_be_written_is_permission_denied(image, client, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with lamella.Client(client.config.root, blocked / "state") as other, pytest.raises(PermissionDenied):
        other.containers.run(image.name, ["/bin/true"], remove=True)
    assert client.containers.list(all=True) == []


# exec


@pytest.fixture
def box(client, image):
    container = client.containers.run(
        image, ["/bin/sleep", "300"], detach=True, environment={"A": "own"}, working_dir="/etc"
    )
    yield container
    container.remove(force=True)


def test_exec_runs_in_the_container_with_its_environment(box):
    result = box.exec(["/bin/sh", "-c", "echo $A; pwd; echo $$; echo err >&2; exit 3"])
    assert result.stdout.split()[:2] == [b"own", b"/etc"]
    assert (result.stderr, result.exit_code) == (b"err\n", 3)
    assert box.status == "running"


@pytest.mark.needs_ids
def test_exec_takes_an_environment_folder_user_and_input_of_its_own(box):
    result = box.exec(
        ["/bin/sh", "-c", "echo $A $B; pwd; id -u; id -g; cat"],
        environment={"B": "b"},
        working_dir="/bin",
        user="12:34",
        input=b"fed",
    )
    assert result.stdout.decode().split() == ["own", "b", "/bin", "12", "34", "fed"]


def test_exec_time_outs_kill_what_it_started_and_nothing_else(box):
    script = "echo early; sleep 200 & sleep 200"
    result = cut_off(lambda seconds: box.exec(["/bin/sh", "-c", script], timeout=seconds))
    assert (result.timed_out, result.exit_code, result.stdout) == (True, 137, b"early\n")
    assert box.status == "running"
    left = box.exec(["/bin/sh", "-c", "cat /proc/[0-9]*/cmdline"]).stdout
    assert b"sleep\x00200" not in left
    assert b"sleep\x00300" in left


def test_exec_check_raises_with_the_output(box):
    with pytest.raises(CommandFailed) as caught:
        box.exec(["/bin/sh", "-c", "echo out; exit 9"], check=True)
    assert (caught.value.exit_code, caught.value.stdout) == (9, b"out\n")


def test_exec_of_a_missing_program_is_127_and_of_a_folder_126(box):
    for program, kind in (("nonsense", CommandNotFound), ("/etc", CommandNotExecutable)):
        with pytest.raises(kind):
            box.exec([program])
    assert box.status == "running"


def test_exec_needs_a_running_container(client, image):
    box = client.containers.create(image, ["/bin/true"])
    with pytest.raises(FailedPrecondition):
        box.exec(["/bin/true"])
    box.start()
    box.wait(30)
    with pytest.raises(FailedPrecondition):
        box.exec(["/bin/true"])
    box.remove()


def test_a_list_can_be_filtered_as_containerd_filters_containers(client, image):
    one = client.containers.create(image, ["/bin/true"], name="one", labels={"stage": "test"})
    two = client.containers.create(image, ["/bin/sleep", "300"], name="two")
    two.start()

    def names(*filters, all=True):
        return [box.name for box in client.containers.list(all=all, filters=filters)]

    assert names("labels.stage==test") == names(f"id=={one.id}") == names("status==created") == ["one"]
    assert names("runtime.name==lamella,name!=one") == names(all=False) == ["two"]
    assert names("labels.stage==test", all=False) == []
    assert names(f"image=={image.name}", "snapshotter==none") == ["one", "two"]
    for box in (one, two):
        box.remove(force=True)


def test_an_exec_that_comes_as_the_container_ends_is_told_that_it_does_not_run(client, image):
    box = client.containers.create(image, ["/bin/sleep", "300"])
    for _ in range(10):
        box.start()
        box.kill()
        with pytest.raises(FailedPrecondition, match="is not running"):
            while True:
                box.exec(["/bin/true"])
        box.wait(30)
    box.remove()


def test_many_execs_run_at_once(box):
    import threading

    outputs = {}

    def work(number):
        outputs[number] = box.exec(["/bin/sh", "-c", f"sleep 0.1; echo {number}"]).stdout

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {number: f"{number}\n".encode() for number in range(8)}


def test_the_streams_of_an_exec_can_be_followed(box):
    with box.start_exec(["/bin/cat"], stdin=True) as attached:
        attached.write_stdin(b"one")
        stream = iter(attached)
        assert next(stream) == ("stdout", b"one")
        attached.close_stdin()
        assert list(stream) == []
        assert attached.exit.exit_code == 0

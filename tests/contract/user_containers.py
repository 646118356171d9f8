"""What holds of containers for an ordinary user: a suite that is run as one, by tests/privileged/test_user_containers.py.

Its name keeps it from being collected as root, for whom test_runtimes.py has the same contract. Where it differs there is
no cgroup, for nobody has delegated one, or no id but the user's own.
"""

from __future__ import annotations

import io
import os
import socket
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from container_contract import PATIENCE, ContainerContract, said

from lamella import _core
from lamella.errors import FailedPrecondition, NetworkFailed, NotFound, PermissionDenied, Unsupported
from networking import pins
from waiting import until

MAPS = _core.helper_maps()
assert MAPS is not None, "this is for a user who is not root"
HAS_RANGES = len(MAPS[0]) > 1
PYTHON = os.path.realpath("/usr/bin/python3")
USR = ["/usr:/usr:ro"]
SECOND_ID = "has no [ug]id [0-9]+"


def entries(archive: Iterable[bytes]) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(archive))) as opened:
        return opened.getmembers()


class UserContract(ContainerContract):
    # Without a cgroup

    def test_running_out_of_memory_is_told(self, run):
        with pytest.raises(PermissionDenied, match="cgroup") as caught:
            super().test_running_out_of_memory_is_told(run)
        assert "delegated" in caught.value.hint

    @pytest.mark.parametrize(
        "limit",
        [{"memory": "64m"}, {"cpus": 0.5}, {"pids_limit": 20}, {"cpu_shares": 512}],
        ids=lambda limit: next(iter(limit)),
    )
    def test_limits_hold_and_can_be_changed(self, create, limit):
        box = create("/bin/sleep", "600", **limit)
        with pytest.raises(PermissionDenied, match="cgroup") as caught:
            box.start()
        assert "delegated" in caught.value.hint
        assert box.status == "created"

    def test_pause_stops_everything_and_resume_lets_it_go_on(self, box):
        with pytest.raises(FailedPrecondition, match="no cgroup") as caught:
            box.pause()
        assert "delegated" in caught.value.hint
        assert box.exec(["/bin/echo", "on"]).stdout == b"on\n"

    def test_processes_and_statistics_are_those_of_the_container(self, box):
        with box.start_exec(["/bin/sleep", "601"]):
            # runc comes back before its init, which is about to become the program, has become it.
            expected = [["/bin/sleep", "600"], ["/bin/sleep", "601"]]
            until(lambda: sorted(process.command for process in box.top()) == expected)
            assert {process.user for process in box.top()} == {"root"}
        with pytest.raises(FailedPrecondition, match="no cgroup") as caught:
            box.stats()
        assert "Delegate" in caught.value.hint

    def test_a_removed_container_leaves_nothing(self, create):
        box = create("/bin/sh", "-c", "sleep 600 & sleep 600")
        box.start()
        box.start_exec(["/bin/sleep", "600"]).close()
        pids = [process.host_pid for process in box.top()]
        box.remove(force=True)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        assert not box.task.folder.exists()

    def test_what_it_wrote_can_be_seen_copied_and_committed(self, client, create, runtime, tmp_path):
        box = create("/bin/sh", "-c", "echo one > /new; sleep 600")
        box.start()
        until(lambda: "new" in [change.path.strip("/") for change in box.changes()])
        (tmp_path / "in").write_text("copied")
        box.copy_in(tmp_path / "in", "/in")
        assert box.exec(["/bin/cat", "/in", "/new"]).stdout == b"copiedone\n"
        box.copy_out("/new", tmp_path / "out")
        assert (tmp_path / "out").read_text() == "one\n"
        with pytest.raises(FailedPrecondition, match="no cgroup"):
            box.branch()
        with pytest.raises(FailedPrecondition, match="no cgroup"):
            box.commit(image="made:1")
        made = box.commit(image="made:1", pause=False)
        assert (
            client.containers.run(made, ["/bin/cat", "/new"], runtime=runtime, remove=True).stdout == b"one\n"
        )
        (branch,) = box.branch(pause=False)
        assert branch.record.runtime == runtime
        branch.remove()
        stone = box.commit(pause=False)
        box.stop(timeout=0)
        box.copy_out("/new", tmp_path / "out-again")
        assert (tmp_path / "out-again").read_text() == "one\n"
        box.copy_in(tmp_path / "in", "/in-again")
        with box.export() as archive:
            names = [entry.name for entry in entries(archive)]
        assert {"new", "in", "in-again", "bin/sh"} <= set(names)
        box.remove()
        other = client.containers.run(stone, ["/bin/cat", "/new"], runtime=runtime, remove=True)
        assert other.stdout == b"one\n"
        stone.remove()

    # Ids

    def test_the_program_gets_what_the_options_say(self, run):
        if HAS_RANGES:
            super().test_the_program_gets_what_the_options_say(run)
            return
        for user in ("7:0", "0:7", "7:8"):
            with pytest.raises(FailedPrecondition, match=SECOND_ID) as caught:
                run("/bin/true", user=user)
            assert "/etc/sub" in caught.value.hint
        with pytest.raises(FailedPrecondition, match=SECOND_ID):
            run("/bin/true", group_add=["9"])

    def test_an_exec_has_streams_status_and_surroundings_of_its_own(self, box):
        if HAS_RANGES:
            super().test_an_exec_has_streams_status_and_surroundings_of_its_own(box)
            return
        with pytest.raises(FailedPrecondition, match=SECOND_ID):
            box.exec(["/bin/true"], user="9")
        assert box.exec(["/bin/pwd"], working_dir="/etc").stdout == b"/etc\n"

    def test_an_id_beyond_the_ranges_is_an_error_that_says_how_many_there_must_be(self, run):
        with pytest.raises(FailedPrecondition, match="has no uid 70000") as caught:
            run("/bin/true", user="70000:0")
        assert "at least 70000 ids in /etc/subuid" in caught.value.hint

    def test_a_device_of_the_machine_is_there_whoever_it_belongs_to(self, run):
        options = {"devices": ["/dev/net/tun"]}
        assert run("/bin/sh", "-c", "[ -c /dev/net/tun ] && echo there", **options).stdout == b"there\n"

    def test_a_device_of_the_machine_may_have_another_name_inside(self, run):
        script = "ls -l /dev/other /dev/further/full; echo x >/dev/further/full || echo full"
        devices = ["/dev/net/tun:/dev/other", "/dev/full:/dev/further/full"]
        result = run("/bin/sh", "-c", script, devices=devices)
        *nodes, said = result.stdout.decode().splitlines()
        assert [line.split()[0][0] + line.split()[4] for line in nodes] == ["c1,", "c10,"]
        assert said == "full"

    def test_a_privileged_one_has_what_the_user_has(self, run):
        assert run("/bin/sh", "-c", "ls /dev/full && id -u", privileged=True).stdout == b"/dev/full\n0\n"

    # Hooks

    def test_hooks_are_run_at_each_point(self, run, tmp_path):
        told = tmp_path / "told"
        points = ["prestart", "createRuntime", "poststart", "poststop"]
        hooks = {
            point: [{"path": "/bin/sh", "args": ["sh", "-c", f"cat >/dev/null; echo {point} >>{told}"]}]
            for point in points
        }
        run("/bin/true", spec={"hooks": hooks})
        until(lambda: told.read_text().split() == points)

    # Networks

    def test_the_hosts_sys_can_be_looked_at_and_not_written(self, run):
        script = "ls /sys/class/net; echo x > /sys/made; mkdir /sys/kernel/x; true"
        result = run("/bin/sh", "-c", script, network="host")
        assert b"lo" in result.stdout.split()
        assert result.stderr.count(b"ead-only") == 2


class TestLauncher(UserContract):
    @pytest.fixture
    def runtime(self) -> str:
        return "lamella"

    # Files

    def test_files_of_other_ids_are_copied_with_their_owners(self, create, tmp_path):
        if not HAS_RANGES:
            return
        program = "import os, time; os.close(os.open('/own', os.O_CREAT, 0o600)); os.chown('/own', 7, 8)"
        box = create(PYTHON, "-c", f"{program}; print('made', flush=True); time.sleep(600)", volumes=USR)
        box.start()
        until(lambda: said(box))
        for _ in range(2):
            with box.get_archive("/own")[0] as archive:
                (entry,) = entries(archive)
            assert (entry.uid, entry.gid, entry.mode) == (7, 8, 0o600)
            box.stop(timeout=0)

    def test_a_volume_begins_with_what_the_image_has_owners_and_all(self, run):
        command = ["/bin/ls", "-lnR", "/usr/share"]
        assert run(*command, volumes=["share:/usr/share"]).stdout == run(*command).stdout != b""

    def test_root_inside_is_the_user_outside_and_made_files_are_his(self, run, tmp_path):
        run("/bin/sh", "-c", "echo x > /host/made", volumes=[f"{tmp_path}:/host"])
        made = (tmp_path / "made").stat()
        assert (made.st_uid, made.st_gid) == (os.getuid(), os.getgid())

    @pytest.mark.parametrize("options", [{"userns": "auto"}, {"uid_maps": ["0:1:10"]}])
    def test_a_user_namespace_in_the_users_own_is_refused_by_name(self, create, options):
        with pytest.raises(Unsupported, match="user namespace"):
            create("/bin/true", **options)

    def test_the_user_namespace_of_the_container_whose_network_it_has_is_its_own(self, create, run):
        box = create("/bin/sleep", "600")
        box.start()
        inode = ["/bin/stat", "-L", "-c", "%i", "/proc/self/ns/user"]
        shared = {"network": f"container:{box.id}", "userns": f"container:{box.id}"}
        assert run(*inode, **shared).stdout == box.exec(inode).stdout != b""

    # Many

    def test_a_pool_has_them_waiting_for_their_program(self, client, image):
        with client.containers.pool(image, size=1) as pool:
            assert [pool.run(["/bin/echo", word]).stdout for word in ("one", "two")] == [b"one\n", b"two\n"]
        assert client.containers.list(all=True) == []

    def test_one_is_renamed_and_goes_with_the_others_that_have_ended(self, client, create):
        box, other = create("/bin/sleep", "600"), create("/bin/sleep", "600")
        for one in (box, other):
            one.start()
        box.rename("renamed")
        assert client.containers.get("renamed").exec(["/bin/echo", "on"]).stdout == b"on\n"
        box.stop(timeout=0)
        assert client.containers.prune() == ["renamed"]
        assert [one.id for one in client.containers.list()] == [other.id]

    def test_a_log_is_followed_to_the_end(self, create):
        box = create("/bin/sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.05; done")
        box.start()
        assert b"".join(data for _, data in box.logs(follow=True)) == b"1\n2\n3\n"

    # What outlives what

    def test_it_outlives_whoever_started_it(self, client, create, image):
        program = (
            "import sys, lamella\n"
            "with lamella.Client(root=sys.argv[1], state=sys.argv[2]) as client:\n"
            "    box = client.containers.get(sys.argv[3])\n"
            "    box.start()\n"
            "    print(box.pid)\n"
        )
        box = create("/bin/sh", "-c", "echo up; while read line; do echo got $line; done", stdin=True)
        import subprocess

        config = client.config
        command = [sys.executable, "-c", program, str(config.root), str(config.state), box.id]
        pid = int(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
        assert (box.status, box.pid) == ("running", pid)
        until(lambda: said(box) == b"up\n")
        with box.attach(stdin=True) as streams:
            streams.write_stdin(b"this\n")
            assert next(iter(streams)) == ("stdout", b"got this\n")
            streams.close_stdin()
            assert list(streams) == []
        assert box.wait(PATIENCE) == 0

    # Networks

    def test_a_cni_network_is_refused(self, create):
        with pytest.raises((PermissionDenied, NotFound)):
            create("/bin/true", network="bridge").start()


@pytest.mark.needs_program("runc")
class TestRunc(UserContract):
    @pytest.fixture
    def runtime(self) -> str:
        return "runc"


ECHO = """
import selectors, socket
chosen = selectors.DefaultSelector()
for family, address in ((socket.AF_INET, '0.0.0.0'), (socket.AF_INET6, '::')):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        sock = socket.socket(family, kind)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, 8080))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        chosen.register(sock, selectors.EVENT_READ)
print('ready', flush=True)
while True:
    for key, _ in chosen.select():
        if key.fileobj.type == socket.SOCK_STREAM:
            with key.fileobj.accept()[0] as client:
                client.sendall(client.recv(100))
        else:
            data, sender = key.fileobj.recvfrom(100)
            key.fileobj.sendto(data, sender)
"""


def echoed(family: socket.AddressFamily, kind: socket.SocketKind, port: int) -> bytes:
    """Give what comes back from a server at a published port, which may have to be asked more than once."""
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family, kind) as sock:
        sock.settimeout(2)
        try:
            sock.connect((address, port))
            sock.sendall(b"hello")
            return sock.recv(100)
        except OSError:
            return b""


@pytest.mark.needs_program("pasta", "/usr/bin/python3")
class TestPasta:
    @pytest.fixture
    def server(self, client, image) -> Iterator[Any]:
        box = client.containers.create(
            image,
            [PYTHON, "-c", ECHO],
            network="pasta",
            ports=["8080:8080", "8080:8080/udp"],
            volumes=USR,
        )
        box.start()
        until(lambda: said(box) == b"ready\n")
        yield box
        box.remove(force=True)

    def test_published_ports_are_reached_by_tcp_and_udp_also_after_a_restart(self, client, server):
        for _ in range(2):
            for family in (socket.AF_INET, socket.AF_INET6):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    until(lambda family=family, kind=kind: echoed(family, kind, 8080) == b"hello")
            assert server.ports["8080/tcp"] == [{"HostIp": "0.0.0.0", "HostPort": "8080"}]
            server.restart(timeout=0)
        assert client.networks.check() == []

    def test_it_goes_with_the_container(self, client, server):
        record = server.inspect()["network"]
        assert record["connected"]
        server.stop(timeout=0)
        assert pins(client.config) == []
        until(lambda: echoed(socket.AF_INET, socket.SOCK_STREAM, 8080) == b"")

    def test_another_container_shares_it(self, client, image, server):
        command = ["/bin/stat", "-L", "-c", "%i", "/proc/self/ns/net"]
        own = server.exec(command).stdout
        options = {"network": f"container:{server.name}", "remove": True}
        assert client.containers.run(image, command, **options).stdout == own

    def test_the_hosts_names_are_resolved_by_what_the_host_asks(self, server):
        hosts = server.exec(["/bin/cat", "/etc/hosts", "/etc/resolv.conf"]).stdout.decode()
        assert server.record.extra.hostname in hosts
        assert "nameserver" in hosts

    def test_a_pasta_that_cannot_work_is_an_error_and_leaves_nothing(self, client, image):
        with pytest.raises(NetworkFailed, match="pasta"):
            client.containers.run(image, ["/bin/true"], network="pasta:--no-such-option", remove=True)
        assert pins(client.config) == []
        assert client.containers.list(all=True) == []

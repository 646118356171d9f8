"""Containers in a user namespace of their own: nobody inside is anybody outside, and files keep their owners."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella.containers.id_maps import SIZE
from lamella.errors import InvalidArgument, LamellaError, Unsupported
from waiting import until

pytestmark = pytest.mark.privileged

HOST = 700_000 // SIZE * SIZE
MAPS = {"uid_maps": [f"0:{HOST}:{SIZE}"], "gid_maps": [f"0:{HOST + 5 * SIZE}:{SIZE}"]}


@pytest.fixture
def create(client, image):
    made = []

    def call(*command, **options):
        made.append(client.containers.create(image, list(command), **options))
        return made[-1]

    yield call
    for box in made:
        box.remove(force=True, volumes=True)


def ids(pid, name):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return {int(number) for number in line.split()[1:]}


def test_root_inside_is_somebody_without_rights_outside(create):
    box = create("sleep", "100", **MAPS)
    box.start()
    assert ids(box.pid, "Uid") == {HOST}
    assert ids(box.pid, "Gid") == {HOST + 5 * SIZE}
    assert Path(f"/proc/{box.pid}/uid_map").read_text().split() == ["0", str(HOST), str(SIZE)]
    inside = box.exec(
        ["sh", "-c", "cat /proc/self/uid_map; echo x > /made && cat /made /etc/hostname"], check=True
    )
    assert inside.text.split() == ["0", str(HOST), str(SIZE), "x", box.short_id]
    other = box.exec(["sleep", "100"], user="7:8", detach=True)
    assert other is None
    users = {process.host_pid: ids(process.host_pid, "Uid") for process in box.top()}
    assert {HOST + 7} in users.values()


def test_what_it_writes_belongs_to_its_own_ids_for_everybody(client, create):
    script = "echo x > /root-s; umask 0; mkdir /open; echo changed >> /etc/passwd; exec sleep 100"
    box = create("sh", "-c", script, userns="auto")
    box.start()
    until(lambda: box.exec(["sh", "-c", "test -d /open"]).exit_code == 0)
    box.exec(["touch", "/open/of-7"], user="7:8", check=True)
    box.stop(0)
    upper = client.snapshots.layer_paths(box.snapshot_key)[0]
    assert ((upper / "root-s").stat().st_uid, (upper / "open/of-7").stat().st_uid) == (0, 7)
    show = ["sh", "-c", "test -O /root-s && echo mine"]
    branch = box.commit()
    assert client.containers.run(branch, show, remove=True).text == "mine"
    assert client.containers.run(branch, show, remove=True, userns="auto").text == "mine"
    (like,) = box.branch()
    like.start()
    assert like.exec(show).text == "mine"
    like.remove(force=True)


def test_a_volume_is_its_roots_whatever_the_ids(client, create):
    for number, userns in enumerate(("auto", "host", "auto:size=1000")):
        script = f"test ! -e /data/{number} && echo x > /data/{number} && test -O /data/0"
        box = create("sh", "-c", script, userns=userns, volumes=["shared-ids:/data"])
        box.start()
        assert box.wait(30) == 0, list(box.logs())
    assert {path.stat().st_uid for path in (client.config.root / "volumes").glob("*/shared-ids/data/*")} == {
        0
    }


def test_standard_streams_are_the_programs_own_whoever_it_runs_as(create):
    script = "echo out > /dev/stdout; echo err > /dev/stderr"
    for user in ("0", "7:8"):
        box = create("sh", "-c", f"{script}; exec sleep 100", userns="auto", user=user)
        box.start()
        until(lambda: len(list(box.logs())) == 2)  # noqa: B023
        result = box.exec(["sh", "-c", script], check=True)
        assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


@pytest.mark.parametrize("state", ["created", "running"])
def test_files_go_in_and_out_with_the_owners_that_it_knows(client, create, tmp_path, state):
    box = create("sleep", "100", volumes=["data:/data"], **MAPS)
    if state == "running":
        box.start()
    box.copy_out("/etc/passwd", tmp_path / "passwd")
    assert (tmp_path / "passwd").stat().st_uid == os.geteuid()
    os.chown(tmp_path / "passwd", 7, 8)
    for target in ("/plain", "/data/plain"):
        box.copy_in(tmp_path / "passwd", target)
        box.copy_in(tmp_path / "passwd", f"{target}-kept", archive=True)
        found = [box.get_archive(path)[1] for path in (target, f"{target}-kept")]
        assert [(each.uid, each.gid) for each in found] == [(0, 0), (7, 8)]
        assert {each.mode for each in found} == {found[0].mode}
    assert (client.volumes.get("data").path / "plain-kept").stat().st_uid == 7
    if state == "created":
        box.start()
    script = "stat -c '%u %g' /plain /plain-kept /data/plain /data/plain-kept; echo more >>/plain"
    assert box.exec(["sh", "-c", script], check=True).stdout == b"0 0\n7 8\n" * 2
    os.chown(tmp_path / "passwd", SIZE, 0)
    with pytest.raises(InvalidArgument, match="no id"):
        box.copy_in(tmp_path / "passwd", "/stranger", archive=True)


def test_message_queues_are_its_roots(create):
    """Their folder belongs to whoever makes the IPC namespace: the machine's root would be nobody inside."""
    box = create("sleep", "100", **MAPS)
    box.start()
    script = "echo > /dev/mqueue/queue; cd /dev/mqueue && ls -ldn . queue"
    lines = box.exec(["sh", "-c", script], check=True).text.splitlines()
    assert [line.split()[2:4] for line in lines] == [["0", "0"], ["0", "0"]]
    outside = Path(f"/proc/{box.pid}/root/dev/mqueue").stat()
    assert (outside.st_uid, outside.st_gid) == (HOST, HOST + 5 * SIZE)


def test_ranges_are_chosen_so_that_no_two_containers_share_one(create):
    boxes = [create("true", userns="auto") for _ in range(3)]
    texts = {box.record.extra.id_maps.users for box in boxes}
    assert len(texts) == 3
    assert all(524_288 <= int(text.split(":")[1]) <= 1_878_982_655 for text in texts)


def test_it_is_run_again_and_has_a_terminal_and_limits(create):
    box = create(
        "sh",
        "-c",
        "test -t 1 && exit 3",
        userns="auto",
        tty=True,
        restart_policy="on-failure:2",
        memory="64m",
    )
    box.start()
    assert box.wait(30) == 3
    assert box.restart_count == 2


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"userns": "keep-id"}, Unsupported),
        ({"userns": "container:x"}, Unsupported),
        ({"userns": "auto:size=0"}, InvalidArgument),
        ({"userns": "auto:x"}, InvalidArgument),
        ({"userns": "host", "uid_maps": "0:1:1"}, InvalidArgument),
        ({"uid_maps": ["0:1"]}, InvalidArgument),
        ({"userns": "auto", "privileged": True}, Unsupported),
        ({"userns": "auto", "pid_mode": "host"}, Unsupported),
    ],
)
def test_what_does_not_go_together_is_refused(client, image, options, error):
    with pytest.raises(error) as caught:
        client.containers.create(image, ["true"], **options)
    assert isinstance(caught.value, LamellaError)
    assert client.containers.list(all=True) == []
